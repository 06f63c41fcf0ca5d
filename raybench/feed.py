"""The images of a split as batches on the device: held in its memory, or read a little ahead."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from raybench.data import Part

AHEAD = 2
"""Batches that are read before they are needed."""


class Feed:
    """The images of one split as batches on the device.

    On a GPU all of them lie in its memory, moved there once per process, unless they are streamed or too many: then, as
    on the CPU, each batch is copied out of the shared array, so that nothing a trial does can reach it.
    """

    def __init__(self, part: Part, device: torch.device, limit: int | None = None) -> None:
        """``limit`` cuts the split after so many images."""
        self.part = dataclasses.replace(part, index=part.index[:limit])
        self.device = device
        self.labels = torch.from_numpy(self.part.images.labels[self.part.index]).to(device)
        self.pixels = None if device.type == "cpu" else _resident(self.part, device)
        self.at = torch.device("cpu") if self.pixels is None else device
        """Where positions are to lie."""
        # Reading ahead hides a disk and the way to a GPU; from memory to the CPU there is nothing to be hidden.
        self.reads_ahead = self.pixels is None and (part.streamed or device.type != "cpu")

    def __len__(self) -> int:
        return len(self.part)

    def batches(self, positions: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for each of ``positions`` the images there: float [n, C, H, W] from 0 to 1, and labels int64 [n].

        The pixels lie channels last in memory, the layout that convolutions want.
        """
        gathered = self._ahead(positions) if self.reads_ahead else map(self._gather, positions)
        for pixels, labels in gathered:
            yield self._batch(pixels, labels)

    def take(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images at the positions ``at``, as `batches` does."""
        return self._batch(*self._gather(at))

    def _batch(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
        return images, labels.to(self.device, non_blocking=True)

    def _gather(self, at: Tensor) -> tuple[Tensor, Tensor]:
        if self.pixels is not None:
            return self.pixels[at], self.labels[at]
        pixels, labels = map(torch.from_numpy, self.part.gather(at.numpy()))
        if self.device.type == "cpu":
            return pixels, labels
        with torch.cuda.device(self.device):  # a thread begins with the first GPU
            # From pinned memory the copy does not hold up this process, and torch keeps the memory until it is done.
            return pixels.pin_memory(), labels.pin_memory()

    def _ahead(self, positions: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Gather in a thread, `AHEAD` batches before they are needed."""
        coming: deque[Future[tuple[Tensor, Tensor]]] = deque()
        with ThreadPoolExecutor(1) as thread:
            for at in positions:
                coming.append(thread.submit(self._gather, at))
                if len(coming) > AHEAD:
                    yield coming.popleft().result()
            for gathered in coming:
                yield gathered.result()


_on_device: dict[tuple[str, str, torch.device, bytes], Tensor] = {}
"""The images of the last dataset on the GPU, for the next trial of this process: by all that says which they are."""


def _resident(part: Part, device: torch.device) -> Tensor | None:
    """Return the pixels of ``part`` on ``device``, from the copy that an earlier trial made if there is one.

    None where they are streamed, or would take more than a quarter of the memory that is free there.
    """
    key = None
    if part.origin is not None:
        key = (*part.origin, device, hashlib.sha256(part.index.tobytes()).digest())
        if any(fingerprint != part.origin[0] for fingerprint, *_ in _on_device):
            _on_device.clear()
        if key in _on_device:
            return _on_device[key]
    size = len(part) * part.images.pixels[0].nbytes
    if part.streamed or size > torch.cuda.mem_get_info(device)[0] / 4:
        return None
    pixels = torch.from_numpy(part.images.pixels[part.index]).to(device)
    if key is not None:
        _on_device[key] = pixels
    return pixels
