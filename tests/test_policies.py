"""The policies of torchvision and timm: those of their libraries, with a seed for every image."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from photographs import make
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import AutoAugmentPolicy, v2

from raybench.augment import Augmentation
from raybench.errors import UserError


def draw(augmentation: Augmentation, images: int) -> torch.Tensor:
    return augmentation.draw(images, torch.Generator().manual_seed(0), "cpu")


def timms(policy: str) -> Any:
    """What timm's training script applies, with its default interpolation, and grey where an image ends."""
    whole = create_transform(32, is_training=True, auto_augment=policy, interpolation="random", mean=(0.5,) * 3)
    (step,) = [step for step in whole.transforms if type(step).__module__ == "timm.data.auto_augment"]
    return step


def seeded_by(uniform: list[float], transform: Any, image: np.ndarray) -> np.ndarray:
    seed = int(uniform[0] * 2**24) * 2**24 + int(uniform[1] * 2**24)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return np.asarray(transform(Image.fromarray(image)))


@pytest.mark.parametrize(
    ("spec", "transform"),
    [
        ("torchvision:TrivialAugmentWide", v2.TrivialAugmentWide()),
        ("torchvision:AugMix", v2.AugMix()),
        ({"torchvision:RandAugment": {"num_ops": 1, "magnitude": 20}}, v2.RandAugment(1, 20)),
        ({"torchvision:AutoAugment": {"policy": "cifar10"}}, v2.AutoAugment(AutoAugmentPolicy.CIFAR10)),
        ("timm:rand-m9-mstd0.5-inc1", timms("rand-m9-mstd0.5-inc1")),
        ("timm:augmix-m5-w4-d2", timms("augmix-m5-w4-d2")),
        ("timm:original-mstd0.5", timms("original-mstd0.5")),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_a_policy_is_that_of_its_library_with_a_seed_for_every_image(spec, transform):
    augmentation = make(spec)
    pixels = (np.random.default_rng(0).random((12, 32, 40, 3)).cumsum(1) * 8).astype(np.uint8)
    uniform = draw(augmentation, 12)
    found = augmentation.train(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255, uniform)
    expected = np.stack([seeded_by(u, transform, image) for u, image in zip(uniform.tolist(), pixels, strict=True)])
    assert torch.equal(found, torch.from_numpy(expected).permute(0, 3, 1, 2).float().div_(255))
    assert (expected != pixels).any()


@pytest.mark.parametrize("name", ["torchvision:TrivialAugmentWide", "timm:rand-m9-mstd0.5"])
def test_a_policy_leaves_the_streams_of_everyone_alone(name):
    def state() -> list[Any]:
        return [random.random(), np.random.rand(), torch.rand(1)]

    seeded_by([0, 0], np.asarray, np.zeros((1, 1, 3), np.uint8))
    undisturbed = [state(), state()]
    seeded_by([0, 0], np.asarray, np.zeros((1, 1, 3), np.uint8))
    disturbed = [state()]
    augmentation = make(name)
    augmentation.train(torch.zeros(7, 3, 6, 8), draw(augmentation, 7))
    assert [*disturbed, state()] == undisturbed


@pytest.mark.parametrize("name", ["torchvision:TrivialAugmentWide", "timm:rand-m9-mstd0.5"])
def test_policies_take_grey_images_and_no_others(name):
    augmentation, images = make(name), torch.rand(7, 1, 8, 8)
    assert augmentation.train(images, draw(augmentation, 7)).shape == images.shape
    with pytest.raises(UserError) as error:
        augmentation.train(torch.rand(7, 4, 8, 8), draw(augmentation, 7))
    assert str(error.value) == f"augmentation {name!r} is for images of 1 or 3 channels, not 4"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "torchvision:RandAugmnt",
            "augmentation 'torchvision:RandAugmnt': torchvision has no such policy; did you mean 'RandAugment'?",
        ),
        (
            {"torchvision:AutoAugment": {"policy": "cifar"}},
            "augmentation 'torchvision:AutoAugment': 'cifar' is not a valid AutoAugmentPolicy",
        ),
        (
            {"torchvision:RandAugment": {"magnitude": 31}},
            "augmentation 'torchvision:RandAugment': IndexError:"
            " index 31 is out of bounds for dimension 0 with size 31",
        ),
        (
            "timm:rand-m9-strong",
            "augmentation 'timm:rand-m9-strong': 'strong' is not a letter and a number, as in rand-m9-mstd0.5",
        ),
        ("timm:randm9", "augmentation 'timm:randm9': AssertionError: Unknown AA policy randm9"),
        ("timm:rand-q9", "augmentation 'timm:rand-q9': AssertionError: Unknown RandAugment config section"),
    ],
)
def test_mistakes_are_named(spec, message):
    with pytest.raises(UserError) as error:
        make(spec)
    assert str(error.value) == message
