"""Losses and penalties, by hand and by their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from raybench.errors import UserError
from raybench.losses import Penalty, loss_sum
from raybench.settings import TrainSettings


def test_losses_of_hand() -> None:
    logits, labels = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]), torch.tensor([0, 1])
    # Softmax gives the labels 1/2 and 1/4. The sigmoids are 1/2, 1/2 and 3/4, 1/2 for the targets 1, 0 and 0, 1.
    assert float(loss_sum("cross_entropy", logits, labels)) == pytest.approx(math.log(2) + math.log(4))
    assert float(loss_sum("bce", logits, labels)) == pytest.approx(math.log(2) + (math.log(4) + math.log(2)) / 2)


def test_losses_of_the_formulas() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (7, 5)), rng.integers(0, 5, 7)
    sigmoid, target = 1 / (1 + np.exp(-logits)), np.eye(5)[labels]
    bce = -(target * np.log(sigmoid) + (1 - target) * np.log(1 - sigmoid)).mean(1).sum()
    cross_entropy = (np.log(np.exp(logits).sum(1)) - logits[np.arange(7), labels]).sum()
    tensors = torch.from_numpy(logits).float(), torch.from_numpy(labels)
    assert float(loss_sum("bce", *tensors)) == pytest.approx(bce, rel=1e-5)
    assert float(loss_sum("cross_entropy", *tensors)) == pytest.approx(cross_entropy, rel=1e-5)
    mean = nn.BCEWithLogitsLoss()(tensors[0], torch.from_numpy(target).float())
    assert float(loss_sum("bce", *tensors)) / 7 == pytest.approx(float(mean), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_label_smoothing_is_that_of_keras(smoothing: float) -> None:
    """keras.losses: y * (1 - s) + s / classes for categorical and y * (1 - s) + s / 2 for binary cross-entropy."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (7, 5)), rng.integers(0, 5, 7)
    tensors = torch.from_numpy(logits), torch.from_numpy(labels)
    one_hot = np.eye(5)[labels] * (1 - smoothing)
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -((one_hot + smoothing / 5) * log_softmax).sum()
    assert float(loss_sum("cross_entropy", *tensors, smoothing)) == pytest.approx(expected)
    sigmoid, target = 1 / (1 + np.exp(-logits)), one_hot + smoothing / 2
    expected = -(target * np.log(sigmoid) + (1 - target) * np.log(1 - sigmoid)).mean(1).sum()
    assert float(loss_sum("bce", *tensors, smoothing)) == pytest.approx(expected)


def test_smoothed_losses_of_hand() -> None:
    logits, labels = torch.tensor([[math.log(3), 0.0]]), torch.tensor([1])
    # The probabilities are 3/4 and 1/4, and for bce 3/4 and 1/2; both labels become 0.1 and 0.9.
    right = 0.1 * math.log(4 / 3) + 0.9 * math.log(4)
    assert float(loss_sum("cross_entropy", logits, labels, 0.2)) == pytest.approx(right)
    assert float(loss_sum("bce", logits, labels, 0.2)) == pytest.approx((right + math.log(2)) / 2)


def test_penalties_of_hand() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(2, 1))
    with torch.no_grad():
        network[0].weight.fill_(-3.0)
        network[3].weight.copy_(torch.tensor([[1.0, -2.0]]))
    of = lambda **train: Penalty(TrainSettings.model_validate(train), network)().item()  # noqa: E731
    assert of(l2=0.5) == pytest.approx(0.5 * (9 + 1 + 4))
    assert of(elastic_net={"alpha": 0.25, "lambda": 0.1}) == pytest.approx(0.1 * (0.25 * 3 + 0.75 * 5))
    assert of(elastic_net={"alpha": 0.25, "lambda": 0.1, "layers": "all"}) == pytest.approx(0.1 * (1.5 + 0.75 * 14))
    network[0].requires_grad_(False)
    assert of(l2=0.5) == pytest.approx(0.5 * 5)
    assert not Penalty(TrainSettings(), network)
    with pytest.raises(UserError) as error:
        Penalty(TrainSettings(l2=0.5), nn.BatchNorm2d(1))
    assert str(error.value) == "l2 and elastic_net need a convolution or a dense layer that is trained"
