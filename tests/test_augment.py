from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from photographs import batch, make, photographs, ready
from scipy import stats
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

from raybench.augment import Augmentation
from raybench.errors import UserError
from raybench.registry import AUGMENTATIONS, check_augmentation_name


def draw(augmentation: Augmentation, images: int, seed: int = 0) -> torch.Tensor:
    return augmentation.draw(images, torch.Generator().manual_seed(seed), "cpu")


# Every registered augmentation, and a policy of each kind

NAMES = [
    *AUGMENTATIONS.names(),
    *(
        "torchvision:TrivialAugmentWide",
        "torchvision:AugMix",
        "timm:rand-m9-mstd0.5",
        "timm:augmix-m5-w4-d2",
        "timm:3a",
    ),
]


@pytest.mark.parametrize("name", NAMES)
def test_an_augmentation_keeps_shape_type_and_layout(name):
    augmentation = ready(name)
    for layout in (torch.contiguous_format, torch.channels_last):
        images = batch().contiguous(memory_format=layout)
        before = images.clone()
        for result in (augmentation.train(images, draw(augmentation, 7)), augmentation.evaluate(images)):
            assert result.shape == images.shape
            assert result.dtype == torch.float32
            assert result.isfinite().all()
        assert augmentation.train(images, draw(augmentation, 7)).is_contiguous(memory_format=layout)
        assert torch.equal(images, before)


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_drawn_decide_the_images(name):
    augmentation, images = ready(name), batch()
    first = augmentation.train(images, draw(augmentation, 7))
    assert torch.equal(first, augmentation.train(images, draw(augmentation, 7)))
    assert torch.equal(first, augmentation.train(images, draw(augmentation, 7, seed=1))) == (augmentation.draws == 0)


@pytest.mark.parametrize("name", NAMES)
def test_every_image_has_parameters_of_its_own(name):
    augmentation = ready(name)
    same = batch(1).repeat(20, 1, 1, 1)
    different = augmentation.train(same, draw(augmentation, 20)).flatten(1).unique(dim=0)
    assert (len(different) > 1) == (augmentation.draws > 0)


@pytest.mark.parametrize("name", NAMES)
def test_workers_that_share_a_batch_augment_as_one_would(name):
    augmentation, images = ready(name), batch(8)
    uniform = draw(augmentation, 8)
    whole = augmentation.train(images, uniform)
    for rank in range(2):
        torch.testing.assert_close(augmentation.train(images[rank::2], uniform[rank::2]), whole[rank::2])


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_fitted_changes_images_for_evaluation(name):
    augmentation, images = ready(name), batch()
    assert torch.equal(augmentation.evaluate(images), images) == (augmentation.key is None)


@pytest.mark.parametrize("name", sorted({*AUGMENTATIONS.names()} - {"zca", "aug1"}))  # meta has no autocast, for zca
def test_nothing_waits_for_the_device(name):
    augmentation = make(name)
    augmentation.load(augmentation.fit(photographs()), "meta")  # a device that knows shapes and has no values
    images = batch().to("meta")
    assert augmentation.train(images, torch.empty(7, augmentation.draws, device="meta")).shape == images.shape
    assert augmentation.evaluate(images).shape == images.shape


def test_drawing_asks_the_given_stream_only():
    augmentation = make("aug2")
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    uniform = draw(augmentation, 5)
    assert uniform.shape == (5, 6)
    assert ((uniform >= 0) & (uniform < 1)).all()
    assert torch.equal(torch.random.get_rng_state(), state)


# Geometry


def test_a_shift_by_whole_pixels_rolls_the_image_and_repeats_its_border():
    images = torch.rand(2, 3, 4, 8)
    shifted = make({"shift": {"x": 0.25, "y": 0.5}}).train(images, torch.tensor([[0.0, 0.5], [0.5, 0.0]]))
    right = torch.roll(images[0], 2, dims=2)  # 0 is one end of the range: two pixels of eight
    right[:, :, :2] = images[0, :, :, :1]
    down = torch.roll(images[1], 2, dims=1)
    down[:, :2] = images[1, :, :1]
    torch.testing.assert_close(shifted, torch.stack([right, down]))


def test_a_bare_shift_is_for_both_directions():
    images, uniform = torch.rand(3, 1, 5, 7), torch.rand(3, 2)
    both = make({"shift": {"x": 0.3, "y": 0.3}}).train(images, uniform)
    assert torch.equal(make({"shift": 0.3}).train(images, uniform), both)


@pytest.mark.parametrize(("uniform", "factor"), [(0.0, 0.6), (0.25, 0.8), (0.5, 1.0), (0.75, 1.2)])
def test_a_zoom_shows_so_much_of_the_image_about_its_centre(uniform, factor):
    columns, rows = torch.arange(9.0) - 4, torch.arange(5.0) - 2  # each pixel holds its distance from the centre
    images = torch.stack([columns.expand(5, 9), rows[:, None].expand(5, 9)])[None]
    x, y = make({"zoom": 0.4}).train(images, torch.tensor([[uniform, 0.5]]))[0]
    torch.testing.assert_close(x, (columns * factor).clamp(-4, 4).expand(5, 9))
    torch.testing.assert_close(y, images[0, 1])


def test_a_rotation_turns_about_the_centre_of_an_image_that_is_not_square():
    images = torch.rand(1, 3, 6, 10)
    turned = make({"rotation": 180}).train(images, torch.tensor([[0.75]]))  # a quarter turn
    torch.testing.assert_close(turned[..., 2:8], torch.rot90(images[..., 2:8], 1, dims=(2, 3)), atol=1e-5, rtol=0)


def test_parts_act_in_their_order():
    images = torch.rand(1, 1, 4, 4)
    moved = make({"shift": 0.25}).train(images, torch.tensor([[0.0, 0.5]]))
    uniform = torch.tensor([[0.0, 0.5, 0.0]])  # a pixel to the right and half a turn
    then_turned = make([{"shift": 0.25}, {"rotation": 180}]).train(images, uniform)
    torch.testing.assert_close(then_turned, moved.flip(2, 3), atol=1e-5, rtol=0)
    turned_first = make([{"rotation": 180}, {"shift": 0.25}]).train(images, uniform.roll(1, dims=1))
    expected = make({"shift": 0.25}).train(images.flip(2, 3), torch.tensor([[0.0, 0.5]]))
    torch.testing.assert_close(turned_first, expected, atol=1e-5, rtol=0)


def test_each_part_has_numbers_of_its_own():
    images = torch.rand(1, 1, 4, 4)
    uniform = torch.tensor([[0.0, 0.5, 0.7, 0.2]])
    moved = make({"shift": 0.25}).train(images, uniform[:, :2])
    flipped = make([{"shift": 0.25}, {"flip": {"horizontal": 0.5, "vertical": 0.5}}]).train(images, uniform)
    assert torch.equal(flipped, moved.flip(2))


def test_geometric_parts_agree_with_kornia():
    transform = pytest.importorskip("kornia.geometry.transform")
    images = torch.rand(6, 3, 12, 16)
    augmentation = make([{"rotation": 30}, {"shift": {"x": 0.2, "y": 0.1}}, {"zoom": 0.3}])
    uniform = draw(augmentation, 6)

    matrices = []
    for turn, right, down, wider, higher in (2 * uniform - 1).tolist():
        cos, sin = math.cos(math.radians(30) * turn), math.sin(math.radians(30) * turn)
        centre = np.array([[1, 0, 7.5], [0, 1, 5.5], [0, 0, 1]])
        rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        shift = np.array([[1, 0, 0.2 * 16 * right], [0, 1, 0.1 * 12 * down], [0, 0, 1]])
        zoom = np.diag([1 + 0.3 * wider, 1 + 0.3 * higher, 1])
        to_source = centre @ rotation @ shift @ zoom @ np.linalg.inv(centre)
        matrices.append(torch.tensor(np.linalg.inv(to_source)[:2], dtype=torch.float32))
    expected = transform.warp_affine(images, torch.stack(matrices), (12, 16), "bilinear", "border", align_corners=True)
    torch.testing.assert_close(augmentation.train(images, uniform), expected, atol=1e-4, rtol=0)


def test_neighbouring_geometric_parts_resample_once(monkeypatch):
    calls = []
    sample = functional.grid_sample
    monkeypatch.setattr(functional, "grid_sample", lambda *args, **kw: calls.append(1) or sample(*args, **kw))
    for spec, times in [("aug1", 1), ("aug2", 1), ("flip", 0), ([{"shift": 0.1}, "flip", {"zoom": 0.1}], 2)]:
        calls.clear()
        augmentation = ready(spec)
        augmentation.train(batch(), draw(augmentation, 7))
        assert len(calls) == times


def test_a_flip_mirrors_exactly_where_the_number_is_below_the_probability():
    images = torch.rand(4, 3, 5, 6)
    uniform = torch.tensor([[0.2, 0.2], [0.2, 0.4], [0.6, 0.2], [0.6, 0.4]])
    flipped = make({"flip": {"horizontal": 0.5, "vertical": 0.3}}).train(images, uniform)
    expected = [images[0].flip(1, 2), images[1].flip(2), images[2].flip(1), images[3]]
    assert torch.equal(flipped, torch.stack(expected))


def test_zooming_in_magnifies_both_directions_by_the_same_factor():
    columns, rows = torch.arange(9.0) - 4, torch.arange(5.0) - 2
    images = torch.stack([columns.expand(5, 9), rows[:, None].expand(5, 9)]).expand(3, 2, 5, 9)
    magnified = make({"zoom_in": 0.6}).train(images, torch.tensor([[0.0], [0.5], [1.0]]))
    for result, factor in zip(magnified, (1, 1.75, 2.5), strict=True):  # at most 1 / (1 - 0.6)
        torch.testing.assert_close(result, images[0] / factor)


def test_a_crop_is_cut_out_of_a_black_frame():
    images = torch.rand(81, 3, 7, 10)
    uniform = torch.cartesian_prod(torch.arange(9), torch.arange(9)) / 9 + 0.01  # every place there is
    cropped = make("crop").train(images, uniform)
    for image, (x, y), found in zip(images, (uniform * 9).int().tolist(), cropped, strict=True):
        framed = transforms.pad(image, [4])
        assert torch.equal(found, transforms.crop(framed, y, x, 7, 10))
    ends = torch.tensor([[0.0, 0.0], [1 - 2**-24, 1 - 2**-24]])  # the least and the largest number that are drawn
    assert torch.equal(
        make("crop").train(images[[40, 40]], ends),
        torch.stack([transforms.crop(transforms.pad(images[40], [4]), p, p, 7, 10) for p in (0, 8)]),
    )


@pytest.mark.parametrize(
    ("side", "x", "y", "columns", "rows"),
    [
        (0.5, 0.5, 0.5, (3, 6), (2, 5)),  # 3 of 6 pixels, its centre column 4 and row 3
        (0.5, 0.0, 1 - 2**-24, (0, 2), (4, 6)),  # near an edge only a part
        (1 / 3, 0.5, 0.5, (3, 5), (2, 4)),
        (0.0, 0.5, 0.5, (0, 0), (0, 0)),
    ],
)
def test_a_cutout_fills_a_square_about_a_pixel(side, x, y, columns, rows):
    images = torch.rand(2, 3, 6, 8)
    expected = images.clone()
    expected[1, :, slice(*rows), slice(*columns)] = 0.25
    far = [0.5, 0.5] if side == 0 else [2.0, 2.0]
    cut = make({"cutout": {"size": side, "fill": 0.25}}).train(images, torch.tensor([far, [x, y]]))
    assert torch.equal(cut, expected)


def test_brightness_is_that_of_torchvision():
    images, uniform = torch.rand(8, 3, 5, 6), torch.linspace(0, 1, 8)[:, None]
    expected = [
        transforms.adjust_brightness(image, 0.6 + 0.8 * float(u)) for image, u in zip(images, uniform, strict=True)
    ]
    torch.testing.assert_close(make({"brightness": 0.4}).train(images, uniform), torch.stack(expected))


def test_noise_is_normal_and_its_own_for_every_value():
    augmentation = make({"noise": 0.05})
    noise = augmentation.train(torch.full((200, 3, 32, 32), 0.5), draw(augmentation, 200)).sub(0.5).div(0.05).double()
    assert stats.kstest(noise.flatten(), "norm").pvalue > 0.01
    assert abs(noise.std() - 1) < 0.005
    values = noise.flatten(1)
    for one, other in [(values[:, :-1], values[:, 1:]), (values[:-1], values[1:]), (noise[:, 0], noise[:, 1])]:
        assert abs((one * other).mean()) < 0.005  # neighbouring values, images and channels have nothing in common


def test_noise_stays_within_the_values_of_images():
    augmentation = make({"noise": 1.0})
    noisy = augmentation.train(batch(), draw(augmentation, 7))
    assert (noisy.min(), noisy.max()) == (0, 1)


# The suite's spelling


def test_names_are_checked_without_their_libraries():
    for name in NAMES:
        check_augmentation_name(name)
    for name, message in {
        "shfit": "unknown augmentation 'shfit'; did you mean 'shift'?",
        "timm:": "unknown augmentation 'timm:'; did you mean 'timm:<name>'?",
    }.items():
        with pytest.raises(UserError) as error:
            check_augmentation_name(name)
        assert str(error.value) == message


def test_a_recipe_is_its_parts():
    parts = [{"shift": 0.1}, {"zoom": {"range": 0.1}}, {"name": "flip", "horizontal": 0.5, "vertical": 0.5}]
    augmentation, uniform = make("aug2"), draw(make("aug2"), 7)
    assert torch.equal(augmentation.train(batch(), uniform), make(parts).train(batch(), uniform))
    assert torch.equal(make(None).train(batch(), torch.empty(7, 0)), batch())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shfit", "unknown augmentation 'shfit'; did you mean 'shift'?"),
        ({"flip": {"vertcal": 0.5}}, "augmentation 'flip' has no option 'vertcal'; did you mean 'vertical'?"),
        ({"none": 3}, "augmentation 'none' has no option 'value'"),
        ({"shift": 2}, "augmentation 'shift': x must be a number from 0 to 1, not 2"),
        ({"zoom": "big"}, "augmentation 'zoom': range must be a number from 0 to 1, not 'big'"),
        ({"rotation": -5}, "augmentation 'rotation': degrees must be a number from 0 to 180, not -5"),
        ({"flip": True}, "augmentation 'flip': horizontal must be a number from 0 to 1, not True"),
        ({"zca": 0}, "augmentation 'zca': eps must be a number from 1e-12 to 1, not 0"),
        ({"zoom_in": 1}, "augmentation 'zoom_in': range must be a number from 0 to 0.99, not 1"),
        ({"crop": 1.5}, "augmentation 'crop': padding must be a whole number of pixels, not 1.5"),
        ({"crop": -1}, "augmentation 'crop': padding must be a number from 0 to 1000, not -1"),
        ({"cutout": 8}, "augmentation 'cutout': size must be a number from 0 to 1, not 8"),
        ({"brightness": 2}, "augmentation 'brightness': range must be a number from 0 to 1, not 2"),
        ({"noise": "much"}, "augmentation 'noise': std must be a number from 0 to 1, not 'much'"),
        ({"standardize": 0.5}, "augmentation 'standardize': give both mean and std, or neither"),
        (
            {"standardize": {"mean": [0.5, "x"], "std": 1}},
            "augmentation 'standardize': mean must be a number from 0 to 1, not 'x'",
        ),
        (["aug1", "zca"], "augmentation 'zca' cannot follow 'zca': one of them is enough"),
        (["standardize", "crop", "zca"], "augmentation 'zca' cannot follow 'standardize': one of them is enough"),
        (["zca", "noise"], "augmentation 'noise' cannot follow 'zca': it needs values from 0 to 1"),
        (
            ["standardize", "timm:rand-m9"],
            "augmentation 'timm:rand-m9' cannot follow 'standardize': it needs values from 0 to 1",
        ),
    ],
)
def test_mistakes_are_named(spec, message):
    with pytest.raises(UserError) as error:
        make(spec)
    assert str(error.value) == message
