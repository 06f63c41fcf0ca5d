"""What every image is prepared by, learnt from the training images: standardizing and whitening.

Sums over the images are of whole numbers, so that what is learnt is the same however many threads add them up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raybench.augment import Preparation, Statistics, TrainingImages, number
from raybench.errors import UserError


class Standardize(Preparation):
    """Give each channel mean 0 and standard deviation 1 over the training images; or subtract and divide as told.

    ``mean`` and ``std`` are a number, or a list of one per channel, for values from 0 to 1.
    """

    def __init__(self, mean: float | Sequence[float] | None = None, std: float | Sequence[float] | None = None) -> None:
        if (mean is None) != (std is None):
            raise ValueError("give both mean and std, or neither")
        self.given: Statistics = {}
        if mean is not None:
            self.given = {"mean": _numbers("mean", mean, 0, 1), "std": _numbers("std", std, 1e-6, 1)}

    @property
    def key(self) -> str | None:
        return None if self.given else "standardize"

    def fit(self, images: TrainingImages) -> Statistics:
        count, (total, squares) = 0, np.zeros((2, images[:1].shape[3]), np.int64)  # whole numbers: no digit is lost
        for block in _blocks(images):
            rows = block.reshape(-1, block.shape[3])
            count += len(rows)
            total += rows.sum(0, dtype=np.int64)
            squares += np.einsum("nc,nc->c", rows, rows, dtype=np.int64)
        mean = total / count
        variance = squares / count - mean**2
        std = np.where(variance > 0, np.sqrt(variance), 255)  # a channel of one value is only shifted
        return {"mean": (mean / 255).astype(np.float32), "std": (std / 255).astype(np.float32)}

    def load(self, statistics: Statistics, device: torch.device | str) -> None:
        statistics = self.given or statistics
        self.mean, self.std = (torch.tensor(statistics[key], device=device)[:, None, None] for key in ("mean", "std"))

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, images.shape[1]):
                raise UserError(
                    f"standardize has {len(numbers)} numbers for {name}, but images of {images.shape[1]} channels"
                )
        return (images - self.mean).div_(self.std)


class ZCA(Preparation):
    """Whiten images with the statistics of the training images.

    As the ImageDataGenerator(zca_whitening=True) of Keras 2 does with images of values 0 to 1: subtract each channel's
    mean, then multiply the flattened image by U diag(1 / sqrt(s + eps)) U^T, where U diag(s) U^T is the covariance of
    the training images. Flattened here means by row, column, channel. (Keras 3 adds eps to singular values instead.)
    """

    largest = 64 * 64 * 3
    """Numbers per image; the matrix holds the square of this."""

    def __init__(self, eps: float = 1e-6) -> None:
        self.eps = number("eps", eps, 1e-12, 1)

    @property
    def key(self) -> str:
        return f"zca-{self.eps!r}"

    def fit(self, images: TrainingImages) -> Statistics:
        height, width, channels = images[:1].shape[1:]
        if height * width * channels > self.largest:
            raise UserError(f"zca is for images of at most 64x64x3 numbers, not {height}x{width}x{channels}")
        mean, covariance = _moments(images)
        with _one_thread():  # with several, the last bits of the result depend on how many
            scales, axes = torch.linalg.eigh(covariance)
            matrix = (axes / (scales.clamp(min=0) + self.eps).sqrt()) @ axes.T
        return {"zca_mean": mean.float().numpy(), "zca_matrix": matrix.float().numpy()}

    def load(self, statistics: Statistics, device: torch.device | str) -> None:
        self.mean = torch.tensor(statistics["zca_mean"], device=device)
        self.matrix = torch.tensor(statistics["zca_matrix"], device=device)

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        rows = (images.permute(0, 2, 3, 1) - self.mean).flatten(1)
        with torch.autocast(images.device.type, enabled=False), _all_digits():
            rows = rows @ self.matrix
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _numbers(name: str, value: Any, low: float, high: float) -> NDArray[np.float32]:
    several = value if isinstance(value, list | tuple) else [value]
    return np.array([number(name, each, low, high) for each in several], np.float32)


def _blocks(images: TrainingImages) -> Iterator[NDArray[np.uint8]]:
    return (images[start : start + 1024] for start in range(0, len(images), 1024))


def _moments(images: TrainingImages) -> tuple[Tensor, Tensor]:
    """Return mean [C] and covariance [D, D] about it of uint8 images [N, H, W, C], scaled to 0..1, in float64.

    The sums are of whole numbers from -128 to 127, and over 1024 images their products stay within 2**24, up to which
    float32 is exact: the fast matrix product loses nothing, and the order of summation does not matter.
    """
    count, channels, size = len(images), images[:1].shape[3], images[:1].size
    total = torch.zeros(size, dtype=torch.float64)
    products = torch.zeros(size, size, dtype=torch.float64)
    for block in _blocks(images):
        rows = torch.from_numpy(block.reshape(-1, size).astype(np.float32)) - 128
        total += rows.sum(0)
        products += rows.T @ rows
    average = total / count
    mean = average.view(-1, channels).mean(0)
    centre = mean.repeat(size // channels)
    cross = torch.outer(average, centre)
    covariance = products / count - cross - cross.T + torch.outer(centre, centre)
    return (mean + 128) / 255, covariance / 255**2


@contextmanager
def _all_digits() -> Iterator[None]:
    """Multiply float32 matrices as such, also where the trial trains in TF32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
