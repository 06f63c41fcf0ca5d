from __future__ import annotations

import numpy as np
import pytest

from raybench.ensemble import accuracies, majority_vote, mean_softmax, same_images
from raybench.records import Predictions

LOG = np.log(np.array([[0.9, 0.05, 0.05], [0.2, 0.5, 0.3], [0.2, 0.3, 0.5]])).astype(np.float32)[:, None, :]
"""Three networks, one image: one is sure of class 0, the others lean to 1 and to 2."""


def trial(logits: object, label: object, index: object = None) -> Predictions:
    z, y = np.asarray(logits, np.float16), np.asarray(label, np.int16)
    i = np.arange(len(y), dtype=np.int32) if index is None else np.asarray(index, np.int32)
    return Predictions(index=i, label=y, logits=z, prediction=z.argmax(1).astype(np.int16))


def test_the_mean_of_the_softmax_by_hand() -> None:
    assert mean_softmax(LOG) == pytest.approx(np.array([[(0.9 + 0.2 + 0.2) / 3, 0.85 / 3, 0.85 / 3]]), abs=1e-6)


def test_the_largest_logits() -> None:
    assert mean_softmax(np.array([[[60000, -60000]]], np.float16)).tolist() == [[1.0, 0.0]]


def test_votes_and_ties_by_hand() -> None:
    predictions = np.array([[0, 1, 0, 2], [1, 1, 1, 2], [2, 0, 1, 0], [2, 0, 2, 0]])
    mean = np.array([[0.6, 0.3, 0.1], [0.4, 0.5, 0.1], [0.9, 0.05, 0.05], [0.3, 0.4, 0.3]])
    # 2 has two of four votes; 0 and 1 two each, 1 the larger mean; 1 has two, though 0 has the mean; 0 and 2 have two
    # votes and equal means, so the first; that 1 has the largest mean does not help it, nobody voted for it.
    assert majority_vote(predictions, mean).tolist() == [2, 1, 1, 0]


def test_the_two_can_disagree() -> None:
    predictions = LOG.argmax(axis=2)
    mean = mean_softmax(LOG)
    assert predictions[:, 0].tolist() == [0, 1, 2]
    assert majority_vote(predictions, mean).tolist() == [0], "one vote each: the larger mean softmax"
    outvoted = np.concatenate([LOG[:1], LOG[1:2], LOG[1:2]])
    assert mean_softmax(outvoted).argmax(1).tolist() == [0]
    assert majority_vote(outvoted.argmax(axis=2), mean_softmax(outvoted)).tolist() == [1]


def test_accuracies_by_hand() -> None:
    label = [0, 1, 1, 0]
    trials = [
        trial([[4, 0], [0, 1], [5, 0], [1, 0]], label),  # right, right, very wrong, right
        trial([[0, 1], [0, 1], [0, 1], [0, 1]], label),  # says 1 always: wrong, right, right, wrong
        trial([[0, 1], [1, 0], [0, 1], [1, 0]], label),  # wrong, wrong, right, right
    ]
    # Votes: 1, 1, 1, 0: three right. Mean softmax: the first network's certainty decides images 0 and 2: 0, 1, 0, 0.
    assert accuracies(trials) == (0.75, 0.75)
    assert accuracies(trials[:2]) == (0.5 + 0.25, 0.75)
    assert accuracies(trials[:1]) == (0.75, 0.75)


def test_three_that_err_on_different_images_are_right_together() -> None:
    right, wrong = [1, 0], [0, 1]
    trials = [trial([wrong if image == network else right for image in range(3)], [0, 0, 0]) for network in range(3)]
    assert [(t.prediction == t.label).mean() for t in trials] == [pytest.approx(2 / 3)] * 3
    assert accuracies(trials) == (1.0, 1.0)


def test_only_the_same_images_go_together() -> None:
    first = trial([[1, 0], [0, 1]], [0, 1])
    assert same_images([first]) and same_images([first, trial([[0, 1], [0, 1]], [0, 1])])
    assert not same_images([first, trial([[1, 0], [0, 1]], [0, 1], index=[0, 2])])
    assert not same_images([first, trial([[1, 0], [0, 1]], [0, 0])])
    assert not same_images([first, trial([[1, 0]], [0])])
    assert not same_images([first, trial([[1, 0, 0], [0, 1, 0]], [0, 1])])
