"""What is learnt from the training images: by the book, some images at a time, with the same bits each time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from photographs import COUNT, batch, make, photographs, ready
from torchvision.transforms.v2 import functional as transforms

from raybench.errors import UserError


def test_standardized_training_images_have_mean_0_and_deviation_1():
    augmentation = make("standardize")
    statistics = augmentation.fit(photographs())
    for array in statistics.values():
        array.setflags(write=False)
    augmentation.load(statistics, "cpu")
    standard = augmentation.evaluate(batch(COUNT)).double()
    zeros, ones = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(standard.mean((0, 2, 3)), zeros, atol=1e-6, rtol=0)
    torch.testing.assert_close(standard.std((0, 2, 3), correction=0), ones, atol=1e-6, rtol=0)
    assert torch.equal(augmentation.train(batch(), torch.empty(7, 0)), augmentation.evaluate(batch()))
    assert augmentation.key == "standardize"


class Slices:
    """Images that are never handed out all at once."""

    def __init__(self, images: np.ndarray) -> None:
        self.images, self.largest = images, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.largest = max(self.largest, len(self.images[rows]))
        return self.images[rows]


@pytest.mark.parametrize("name", ["standardize", "zca"])
def test_fitting_asks_for_some_images_at_a_time(name):
    images = np.random.default_rng(0).integers(0, 256, (3000, 4, 4, 3), np.uint8)
    slices = Slices(images)
    fitted = make(name).fit(slices)
    assert slices.largest == 1024
    if name == "standardize":
        np.testing.assert_allclose(fitted["mean"], images.mean((0, 1, 2)) / 255, rtol=1e-6)
        np.testing.assert_allclose(fitted["std"], images.std((0, 1, 2)) / 255, rtol=1e-6)


def test_standardizing_by_given_numbers_fits_nothing():
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    augmentation = make({"standardize": {"mean": mean, "std": std}})
    assert augmentation.key is None
    assert augmentation.fit(photographs(2)) == {}
    augmentation.load({}, "cpu")
    torch.testing.assert_close(augmentation.evaluate(batch()), transforms.normalize(batch(), mean, std))
    grey = make({"standardize": {"mean": 0.5, "std": 0.25}})
    grey.load({}, "cpu")
    torch.testing.assert_close(grey.evaluate(batch()), batch() * 4 - 2)
    with pytest.raises(UserError) as error:
        augmentation.evaluate(torch.rand(2, 1, 4, 4))
    assert str(error.value) == "standardize has 3 numbers for mean, but images of 1 channels"


def test_a_channel_of_one_value_is_only_shifted():
    augmentation = make("standardize")
    augmentation.load(augmentation.fit(np.full((3, 4, 4, 1), 51, np.uint8)), "cpu")
    assert augmentation.evaluate(torch.full((1, 1, 4, 4), 1.2)).unique().tolist() == [1]


def test_zca_makes_the_training_images_white():
    white = ready({"zca": 1e-9}).evaluate(batch(COUNT)).flatten(1).double()
    covariance = white.T @ white / COUNT
    torch.testing.assert_close(covariance, torch.eye(len(covariance), dtype=torch.float64), atol=1e-3, rtol=0)


def test_zca_is_keras_formula():
    images = photographs() / 255
    centred = (images - images.mean(axis=(0, 1, 2))).reshape(COUNT, -1)
    u, s, _ = np.linalg.svd(centred.T @ centred / COUNT)
    expected = (centred @ (u / np.sqrt(s + 1e-2)) @ u.T).reshape(images.shape)

    augmentation = make({"zca": 1e-2})
    statistics = augmentation.fit(photographs())
    for array in statistics.values():
        array.setflags(write=False)  # as arrays from Ray's object store are
    augmentation.load(statistics, "cpu")
    found = augmentation.evaluate(batch(COUNT)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert statistics["zca_matrix"].dtype == np.float32


def test_fitting_gives_the_same_bits_on_any_number_of_threads():
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(make("zca").fit(photographs()))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert all(np.array_equal(results[0][key], results[1][key]) for key in results[0])


def test_whitening_keeps_its_digits_under_autocast():
    augmentation, images = ready("zca"), batch()
    expected = augmentation.evaluate(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augmentation.evaluate(images), expected)


def test_a_key_names_what_was_fitted():
    assert make("aug1").key == make("zca").key == "zca-1e-06"
    assert make({"zca": 1e-2}).key == "zca-0.01"
    assert make("aug2").key is None
    assert make("aug2").fit(photographs(2)) == {}


def test_whitening_refuses_images_whose_matrix_would_not_fit_in_memory():
    with pytest.raises(UserError) as error:
        make("zca").fit(np.zeros((2, 96, 96, 3), np.uint8))
    assert str(error.value) == "zca is for images of at most 64x64x3 numbers, not 96x96x3"
