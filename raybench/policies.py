"""The automatic policies of torchvision and timm as augmentations: ``torchvision:RandAugment``, ``timm:rand-m9``."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from raybench.augment import Part, seeds
from raybench.errors import UserError, did_you_mean

Transform = Callable[[Image.Image], Image.Image]


class Policy(Part):
    """A policy, applied to one image after the other, on the CPU and in 8 bits: slow.

    An image of 32x32 pixels takes 0.2 to 0.4 ms, AugMix 2 to 3, and a GPU waits meanwhile. Policies draw from the
    streams of Python, NumPy and torch; those are seeded for every image with a number from the trial's own stream.
    """

    draws = 2
    needs_pixels = True
    recordable = False

    def __init__(self, make: Callable[[int], Transform]) -> None:
        """Try it on a few images: ``make`` returns the transform for those whose shorter side has so many pixels.

        Raises `ValueError` for options with which it fails.
        """
        self.transform = functools.cache(make)
        with _global_streams_kept():
            for seed in range(8):
                _seed_global_streams(seed)
                try:
                    self.transform(32)(Image.new("RGB", (32, 32)))
                except Exception as error:  # whatever a wrong option leads to: AssertionError, IndexError
                    raise ValueError(f"{type(error).__name__}: {error}") from error

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        pixels = (images * 255).round_().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
        _, height, width, channels = pixels.shape
        if channels not in (1, 3):
            raise UserError(f"augmentation {self.name!r} is for images of 1 or 3 channels, not {channels}")
        transform, changed = self.transform(min(height, width)), np.empty_like(pixels)
        with _global_streams_kept():
            for row, seed in enumerate(seeds(uniform).tolist()):
                _seed_global_streams(seed)
                image = Image.fromarray(pixels[row] if channels == 3 else pixels[row, ..., 0])
                image = transform(image.convert("RGB")).convert(image.mode)
                changed[row] = np.asarray(image).reshape(height, width, channels)
        return torch.from_numpy(changed).to(images.device).permute(0, 3, 1, 2).float().div_(255)


def from_torchvision(policy: str, /, **options: Any) -> Part:
    """Make ``torchvision:<policy>``; the options are those of the class in torchvision.transforms.v2."""
    from torchvision.transforms import AutoAugmentPolicy, v2

    policies = ("AugMix", "AutoAugment", "RandAugment", "TrivialAugmentWide")
    if policy not in policies:
        raise ValueError(f"torchvision has no such policy{did_you_mean(policy, policies)}")
    if "policy" in options:
        options["policy"] = AutoAugmentPolicy(options["policy"])
    return Policy(lambda side: getattr(v2, policy)(**options))


def from_timm(policy: str, /) -> Part:
    """Make ``timm:<policy>``: the texts of timm's option ``--aa``, such as rand-m9-mstd0.5 or augmix-m5-w4-d2."""
    from timm.data import auto_augment

    kind, *sections = policy.split("-")
    for section in sections:
        if not re.match(r"t|[a-z]+\d", section):  # timm would pass over it
            raise ValueError(f"{section!r} is not a letter and a number, as in rand-m9-mstd0.5")
    makers = {"rand": auto_augment.rand_augment_transform, "augmix": auto_augment.augment_and_mix_transform}
    maker = makers.get(kind, auto_augment.auto_augment_transform)

    def make(side: int) -> Transform:
        """Set distances as timm's training script does."""
        return maker(policy, {"translate_const": int(side * 0.45), "translate_pct": 0.3 if kind == "augmix" else 0.45})

    return Policy(make)


@contextmanager
def _global_streams_kept() -> Iterator[None]:
    """Put the streams that belong to everyone back to where they were: dropout draws from torch's."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed_global_streams(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
