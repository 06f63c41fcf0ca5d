"""Augmentation: whole batches on the device that trains, with parameters of its own for every image.

Randomness is kept apart from arithmetic. `Augmentation.draw` asks the trial's random stream once per batch for uniform
numbers, a row per image, and each part turns its columns of them into shifts, angles, flips. The same numbers give the
same images, and workers that share a batch can all draw the whole table and keep the rows of their own images.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from raybench.errors import UserError
from raybench.registry import AUGMENTATIONS, POLICIES, check_augmentation_name
from raybench.settings import AugmentationSpec, Named, augmentation_parts

Statistics = Mapping[str, NDArray[np.float32]]
"""What was learnt from the training images, ready to be cached or sent to other processes."""


class TrainingImages(Protocol):
    """uint8 [N, H, W, C], which may be more than memory holds: a slice is an array."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> NDArray[np.uint8]: ...


class Part(ABC):
    """One step of an augmentation. A registered augmentation returns one of these, or a list of specs: a recipe."""

    name = ""
    """What the suite calls it; `build` sets it."""
    draws = 0
    """Uniform numbers that it needs for each image."""
    needs_pixels = False
    """Whether it relies on values from 0 to 1, so that zca and standardize cannot come before it."""
    recordable = True
    """Whether a CUDA graph can hold it: one that takes images to the CPU cannot be recorded."""

    @abstractmethod
    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Change float images [B, C, H, W] of values 0 to 1 by numbers [B, draws] in [0, 1).

        Nothing may depend on a tensor's value in Python (``.item()``, ``if tensor``): a GPU would wait for its host.
        """


class Geometric(Part):
    """A part that moves pixels. Neighbours in an augmentation are combined, so that images are resampled only once."""

    @abstractmethod
    def source(self, x: Tensor, y: Tensor, uniform: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the place in the image that each place (x, y) of the result shows.

        Args:
            x, y: pixels to the right of and below the image's centre, of shapes that broadcast to [B, H, W]
            uniform: [B, draws]
            size: height and width of the image in pixels
        """

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Resample bilinearly; beyond its edge an image continues with its border pixels (Keras' ``nearest``)."""
        height, width = images.shape[2:]
        return _resampled(images, lambda x, y: self.source(x, y, uniform, (height, width)), "bilinear", "border")


class Combined(Geometric):
    """Two geometric parts, one after the other, as one."""

    def __init__(self, first: Geometric, second: Geometric) -> None:
        self.first, self.second = first, second
        self.draws = first.draws + second.draws

    def source(self, x: Tensor, y: Tensor, uniform: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Trace the result back: through the second part to the first part's result, and on to the image."""
        x, y = self.second.source(x, y, uniform[:, self.first.draws :], size)
        return self.first.source(x, y, uniform[:, : self.first.draws], size)


class Shift(Geometric):
    """Move by up to the fraction ``x`` of the width and ``y`` (as ``x`` if not given) of the height, either way."""

    draws = 2

    def __init__(self, x: float = 0.1, y: float | None = None) -> None:
        self.x = number("x", x, 0, 1)
        self.y = self.x if y is None else number("y", y, 0, 1)

    def source(self, x: Tensor, y: Tensor, uniform: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        height, width = size
        right, down = _columns(_signed(uniform))
        return x + self.x * width * right, y + self.y * height * down


class Zoom(Geometric):
    """Show between 1 - ``range`` and 1 + ``range`` of the image, drawn for x and for y on their own as Keras does."""

    draws = 2

    def __init__(self, range: float = 0.1) -> None:
        self.range = number("range", range, 0, 1)

    def source(self, x: Tensor, y: Tensor, uniform: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        wider, higher = _columns(1 + self.range * _signed(uniform))
        return x * wider, y * higher


class ZoomIn(Geometric):
    """Magnify by a factor from 1 to 1 / (1 - ``range``), the same for x and y: at 0.5, to half of the image at most."""

    draws = 1

    def __init__(self, range: float = 0.5) -> None:
        self.largest = 1 / (1 - number("range", range, 0, 0.99))

    def source(self, x: Tensor, y: Tensor, uniform: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        factor = 1 + (self.largest - 1) * uniform[:, :, None]
        return x / factor, y / factor


class Rotation(Geometric):
    """Turn about the image's centre by up to ``degrees``, either way."""

    draws = 1

    def __init__(self, degrees: float = 10.0) -> None:
        self.radians = math.radians(number("degrees", degrees, 0, 180))

    def source(self, x: Tensor, y: Tensor, uniform: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        (angle,) = _columns(self.radians * _signed(uniform))
        cos, sin = torch.cos(angle), torch.sin(angle)
        return cos * x - sin * y, sin * x + cos * y


class Flip(Part):
    """Mirror left to right, and top to bottom, with these probabilities."""

    draws = 2

    def __init__(self, horizontal: float = 0.5, vertical: float = 0.0) -> None:
        self.horizontal = number("horizontal", horizontal, 0, 1)
        self.vertical = number("vertical", vertical, 0, 1)

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        horizontal, vertical = uniform[:, :, None, None, None].unbind(1)
        images = torch.where(horizontal < self.horizontal, images.flip(3), images)
        return torch.where(vertical < self.vertical, images.flip(2), images)


class Crop(Part):
    """Put a black frame of ``padding`` pixels around the image, and cut an image of its size out of that anywhere."""

    draws = 2

    def __init__(self, padding: int = 4) -> None:
        if padding != int(number("padding", padding, 0, 1000)):
            raise ValueError(f"padding must be a whole number of pixels, not {padding!r}")
        self.padding = int(padding)

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        right, down = _columns((uniform * (2 * self.padding + 1)).floor_().sub_(self.padding))
        return _resampled(images, lambda x, y: (x + right, y + down), "nearest", "zeros")


class Cutout(Part):
    """Set a square to ``fill``: its side is ``size`` times the image's shorter one, its centre any of the pixels.

    So near an edge only a part of the square lies in the image, as in the paper (DeVries and Taylor, 2017), whose
    squares of 16 pixels on CIFAR-10 and 8 on CIFAR-100 are sizes 0.5 and 0.25.
    """

    draws = 2

    def __init__(self, size: float = 0.5, fill: float = 0.0) -> None:
        self.size = number("size", size, 0, 1)
        self.fill = number("fill", fill, 0, 1)

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        height, width = images.shape[2:]
        side = round(self.size * min(height, width))
        x, y = uniform[:, :, None, None, None].unbind(1)
        left, top = (x * width).floor() - side // 2, (y * height).floor() - side // 2
        column = torch.arange(width, device=images.device)
        row = torch.arange(height, device=images.device)[:, None]
        columns = (column >= left) & (column < left + side)
        rows = (row >= top) & (row < top + side)
        return torch.where(columns & rows, self.fill, images)


class Brightness(Part):
    """Multiply the image by a factor between 1 - ``range`` and 1 + ``range``, and clip it to 0 and 1."""

    draws = 1
    needs_pixels = True

    def __init__(self, range: float = 0.2) -> None:
        self.range = number("range", range, 0, 1)

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        factor = 1 + self.range * _signed(uniform)
        return (images * factor[:, :, None, None]).clamp_(0, 1)


class Noise(Part):
    """Add normal noise of standard deviation ``std`` (the image's values go from 0 to 1), and clip to 0 and 1."""

    draws = 2
    needs_pixels = True

    def __init__(self, std: float = 0.1) -> None:
        self.std = number("std", std, 0, 1)

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        noise = _normal(uniform, images[0].numel()).view(images.shape)
        return torch.add(images, noise, alpha=self.std).clamp_(0, 1)


class Preparation(Part):
    """A part that changes every image in the same way, in training and evaluation alike. An augmentation has one."""

    @property
    @abstractmethod
    def key(self) -> str | None:
        """What `fit` learns, as a name that a cache can use; None when there is nothing to learn."""

    @abstractmethod
    def fit(self, images: TrainingImages) -> Statistics:
        """Learn from the training images, some at a time; asked only of a part that has a key."""

    @abstractmethod
    def load(self, statistics: Statistics, device: torch.device | str) -> None:
        """Take over what `fit` returned, or nothing."""


class Augmentation:
    """Parts in the order they are applied."""

    def __init__(self, parts: list[Part]) -> None:
        self._steps = _combine(parts)
        self.draws = sum(part.draws for part in parts)
        self.recordable = all(part.recordable for part in parts)
        self._preparation: Preparation | None = None
        for part in parts:
            if self._preparation and (part.needs_pixels or isinstance(part, Preparation)):
                reason = "it needs values from 0 to 1" if part.needs_pixels else "one of them is enough"
                raise UserError(f"augmentation {part.name!r} cannot follow {self._preparation.name!r}: {reason}")
            if isinstance(part, Preparation):
                self._preparation = part

    @property
    def key(self) -> str | None:
        """What `fit` learns, as a name that a cache can use; None when there is nothing to learn."""
        return self._preparation.key if self._preparation else None

    def fit(self, images: TrainingImages) -> Statistics:
        """Learn from the training images: the same result on any number of threads.

        For 50,000 images of 32x32x3 zca takes half a minute of two cores. Raise `UserError` for large images.
        """
        return self._preparation.fit(images) if self._preparation and self.key else {}

    def load(self, statistics: Statistics, device: torch.device | str) -> None:
        """Take over what `fit` returned; needed before `train` and `evaluate`."""
        if self._preparation:
            self._preparation.load(statistics, device)

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raise `UserError` if what was told, and is not fitted, is not for images of ``shape`` (C, H, W)."""
        if self._preparation and not self.key:
            self.load({}, "cpu")
            self.evaluate(torch.zeros(1, *shape))

    def draw(self, images: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
        """Draw the uniform numbers for a batch: a row per image, from one call on the random stream."""
        return torch.rand(images, self.draws, generator=generator, device=device)

    def train(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Augment float images [B, C, H, W] of values 0 to 1 by the numbers that `draw` gave them.

        The memory format stays.
        """
        given = (
            torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        )
        used = 0
        for step in self._steps:
            images = step.apply(images, uniform[:, used : used + step.draws])
            used += step.draws
        return images.contiguous(memory_format=given)

    def evaluate(self, images: Tensor) -> Tensor:
        """Prepare images as `train` does, without what is random."""
        return self._preparation.apply(images, images.new_empty(len(images), 0)) if self._preparation else images


def build(spec: AugmentationSpec) -> Augmentation:
    """Make the augmentation that a suite describes. Raise `UserError` for a wrong name, option or value."""
    return Augmentation(list(_parts(spec)))


def none() -> list[Any]:
    """Images as they are."""
    return []


def aug1() -> list[Any]:
    """Approach 1 of report 000, in the order in which Keras' ImageDataGenerator applies it."""
    return [{"rotation": 20}, {"shift": 0.2}, {"zoom": 0.2}, {"zca": 1e-6}]


def aug2() -> list[Any]:
    """Approach 2 of report 000, in the order in which Keras' ImageDataGenerator applies it."""
    return [{"shift": 0.1}, {"zoom": 0.1}, {"flip": {"horizontal": 0.5, "vertical": 0.5}}]


def _parts(spec: AugmentationSpec) -> Iterator[Part]:
    """Make each part that is named, and the parts of each recipe."""
    for named in spec:
        made = _make(named)
        if isinstance(made, Part):
            yield made
        else:
            yield from _parts([Named.model_validate(part) for part in augmentation_parts(made)])


def _make(named: Named) -> Any:
    """Call a registered augmentation with the options given; a bare value is its first parameter."""
    name, options = named.name, named.options
    check_augmentation_name(name)
    try:
        if name in AUGMENTATIONS.names():
            entry = AUGMENTATIONS.get(name)
            main = next(iter(inspect.signature(entry).parameters), None)
            if "value" in options and main and main not in options:
                options[main] = options.pop("value")
            AUGMENTATIONS.check_options(name, options)
            made = entry(**options)
        else:
            library, _, policy = name.partition(":")
            made = POLICIES.get(library)(policy, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"augmentation {name!r}: {error}") from error
    if isinstance(made, Part):
        made.name = name
    return made


def _combine(parts: list[Part]) -> list[Part]:
    """Put geometric parts that follow one another together."""
    steps: list[Part] = []
    for part in parts:
        last = steps[-1] if steps else None
        if isinstance(part, Geometric) and isinstance(last, Geometric):
            steps[-1] = Combined(last, part)
        else:
            steps.append(part)
    return steps


def number(name: str, value: Any, low: float, high: float) -> float:
    """Return an option that must be a number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low} to {high}, not {value!r}")
    return float(value)


def _signed(uniform: Tensor) -> Tensor:
    """Stretch numbers from [0, 1) to [-1, 1): 2 * uniform - 1, to the last bit, in one operation: a GPU counts them."""
    return torch.rsub(uniform, -1, alpha=-2)


def _columns(numbers: Tensor) -> tuple[Tensor, ...]:
    """Return each column of [B, draws] as [B, 1, 1], for use with coordinates."""
    return numbers[:, :, None, None].unbind(1)


def _resampled(
    images: Tensor, source: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], mode: str, beyond: str
) -> Tensor:
    """Fill each place (x, y), counted in pixels from the images' centre, with what lies at its ``source``."""
    height, width = images.shape[2:]
    x, y = (
        torch.arange((1 - side) / 2, side / 2, dtype=images.dtype, device=images.device) for side in (width, height)
    )
    x, y = source(x[None, None, :], y[None, :, None])
    # grid_sample counts from the centre too, in units of half an image: from edge to edge, not between the centres
    # of the outermost pixels (that would be align_corners).
    shape = len(images), height, width
    grid = images.new_empty(*shape, 2)
    torch.mul(x.expand(shape), 2 / width, out=grid[..., 0])
    torch.mul(y.expand(shape), 2 / height, out=grid[..., 1])
    return functional.grid_sample(images, grid, mode=mode, padding_mode=beyond, align_corners=False)


def seeds(uniform: Tensor) -> Tensor:
    """Make a whole number of 48 random bits from each row of [B, 2]: a float32 from 0 to 1 has 24."""
    high, low = (uniform * 2**24).long().unbind(1)
    return high << 24 | low


def _normal(uniform: Tensor, count: int) -> Tensor:
    """Return [B, count] numbers of the standard normal distribution, of each row those that [B, 2] decide.

    The SplitMix64 generator (Steele, Lea and Flood, 2014) finds each from a seed and a position alone, so that a
    batch's numbers need no stream of their own, and a worker computes those of its own images.
    """
    step, first, second = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # 64 bits, signed
    bits = seeds(uniform)[:, None] + step * torch.arange(1, count + 1, device=uniform.device)
    for shift, factor in ((30, first), (27, second), (31, 1)):
        bits = (bits ^ (bits >> shift & (1 << 64 - shift) - 1)) * factor
    unit = ((bits >> 41 & (1 << 23) - 1) + 0.5) * 2**-22 - 1  # between -1 and 1, exclusive, without rounding
    return torch.erfinv(unit) * math.sqrt(2)
