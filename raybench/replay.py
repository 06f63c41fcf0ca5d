"""A training step as one CUDA graph: recorded once, and from then on launched as a whole.

A step of a small network is a hundred launches of kernels that take microseconds each, and a GPU that waits for them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UP = 3
"""Calls before the recording: libraries choose their kernels in them, and optimizers make their state."""

spoilt: list[str] = []
"""How CUDA refused to end recordings of this process: torch then takes them for recordings that go on, gives no memory
back and records nothing any more."""


class Replayed:
    """Calls ``step`` on tensors of the same shapes, over and over, and launches it as a graph as soon as it can.

    The first calls, and those with other shapes, such as the remainder at an epoch's end, run as they are, so every
    call does the work of ``step`` once. What it leaves behind it must write into tensors that stay where they are.
    """

    def __init__(self, step: Callable[..., None]) -> None:
        self.step = step
        self.shapes: list[torch.Size] = []
        self.calls = 0
        self.inputs: list[Tensor] = []
        self.replay: Callable[[], None] | None = None

    def __call__(self, *inputs: Tensor) -> None:
        shapes = [tensor.shape for tensor in inputs]
        self.shapes = self.shapes or shapes
        if shapes != self.shapes:
            self.step(*inputs)
        elif self.calls < WARM_UP:
            self.calls += 1
            on_a_side_stream(lambda: self.step(*inputs))
        else:
            if self.replay is None:
                self.inputs = [tensor.clone() for tensor in inputs]
                self.replay = record(self.step, self.inputs)  # does not run it
            for place, tensor in zip(self.inputs, inputs, strict=True):
                place.copy_(tensor)
            self.replay()


def on_a_side_stream(work: Callable[[], None]) -> None:
    """Run ``work`` as CUDA wants it before a recording."""
    stream = _side_stream(torch.cuda.current_device())
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        work()
    current.wait_stream(stream)


@functools.cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """Return the one stream of this process for it: torch keeps memory apart for every stream that has used some."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def record(step: Callable[..., None], inputs: Sequence[Tensor]) -> Callable[[], None]:
    """Return what launches ``step`` on whatever lies in ``inputs`` then.

    Dropout draws new numbers in every launch: torch registers its own generator with the graph.

    Raises:
        whatever ``step`` raised; CUDA says of the recording as a whole only that something was wrong before.
    """
    graph = torch.cuda.CUDAGraph()
    own: list[Exception] = []
    try:
        with torch.cuda.graph(graph):
            try:
                step(*inputs)
            except Exception as error:
                own.append(error)
                raise
    except Exception as error:
        if error not in own:
            spoilt.append(str(error))
        raise (own or [error])[0] from None
    return graph.replay
