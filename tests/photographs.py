"""Images and augmentations that the tests of augmentation and of what it learns share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from raybench import augment
from raybench.augment import Augmentation
from raybench.settings import Named, augmentation_parts

COUNT, HEIGHT, WIDTH = 1500, 6, 8


def make(spec: Any) -> Augmentation:
    return augment.build([Named.model_validate(part) for part in augmentation_parts(spec)])


def photographs(count: int = COUNT) -> np.ndarray:
    """Images whose neighbouring pixels resemble each other, as those of photographs do."""
    steps = np.random.default_rng(0).normal(size=(count, HEIGHT, WIDTH, 3))
    images = 128 + 20 * steps.cumsum(1).cumsum(2)
    return images.clip(0, 255).astype(np.uint8)


def batch(images: int = 7) -> torch.Tensor:
    return torch.from_numpy(photographs(images)).permute(0, 3, 1, 2) / 255


def ready(spec: Any) -> Augmentation:
    augmentation = make(spec)
    augmentation.load(augmentation.fit(photographs()), "cpu")
    return augmentation
