from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made import TWO_MODELS, objects, plan, predicted, row_of, suite

from raybench.cells import find_cells
from raybench.ensemble import accuracies, majority_vote, mean_softmax, same_images, table
from raybench.grid import Trial
from raybench.metrics import PredictionsOf
from raybench.records import Predictions
from raybench.table import Table

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


# ---------------------------------------------------------------------------------------------------------------------
# The table

SUITE = TWO_MODELS


def table_of(trials: Sequence[Trial], predictions: PredictionsOf, text: str = SUITE, **columns: Sequence[Any]) -> Table:
    """Return the table where ``trials`` have finished; ``columns`` of their rows."""
    found = [
        row_of(trial, test_accuracy=0.5, **{name: values[trial.seed] for name, values in columns.items()})
        for trial in trials
    ]
    rows = pd.DataFrame([dataclasses.asdict(row) for row in found or [row_of(plan(text)[0])]]).head(len(found))
    return table(find_cells(rows, suite(text), plan(text)), suite(text), predictions)


def test_ensembles_by_hand() -> None:
    trials = plan(SUITE)[:5]  # model1 has three, small_cnn two
    label = np.array([0, 1, 2, 0], np.int16)
    said = {0: [0, 1, 0, 1], 1: [0, 2, 2, 1], 2: [1, 1, 2, 1]}  # right 2, 2 and 2 of 4; together 3
    found = {t.id: predicted(label, np.array(said[t.seed], np.int16)) for t in trials}
    asked: list[list[str]] = []

    def predictions(ids: Any) -> dict[str, Predictions]:
        asked.append(list(ids))
        return {i: found[i] for i in asked[-1]}

    made = table_of(trials, predictions)
    model1, small_cnn = objects(made)
    assert model1 == {
        "model": "model1",
        "augmentation": "none",
        "n": 3,
        "planned": 3,
        "mean": 0.5,
        "std": 0.0,
        "softmax": 0.75,
        "vote": 0.75,
        "gain": 0.25,
    }
    # Seeds 0 and 1 disagree on images 1 and 2, with equal certainty: the smaller class.
    assert (small_cnn["n"], small_cnn["planned"], small_cnn["vote"]) == (2, 3, 0.5)
    assert asked == [[t.id for t in trials[:5:2]], [t.id for t in trials[1:5:2]]]
    assert made.title == "small_test: 50 % of two models, ensembles"
    assert made.notes == ("1 trial not run yet",)
    assert made.header[4] == (
        "ensemble: of the n trials of a row, from their stored logits; mean softmax: the largest class of the mean of"
        " their softmax; majority vote: the class that most of them predict, of equally many votes the one with the"
        " larger mean softmax; gain: mean softmax minus mean"
    )
    assert "epochs" not in made.header[1]


def test_what_is_not_combined_says_why() -> None:
    a0, b0, a1, b1, a2, _ = plan(SUITE)
    label = np.array([0, 1, 2], np.int16)
    found = {t.id: predicted(label, label) for t in (a0, a1, a2, b0)}
    found[a2.id] = predicted(label, label, index=np.array([0, 1, 3], np.int32))
    made = table_of([a0, a1, a2, b0, b1], lambda ids: {i: found[i] for i in ids if i in found})
    assert [(row["n"], row["mean"], row["softmax"], row["vote"], row["gain"]) for row in objects(made)] == [
        (3, 1.0, None, None, None),
        (1, 1.0, None, None, None),
    ]
    assert made.notes == (
        "model=model1, augmentation=none: not combined: its trials have different test images",
        "model=small_cnn, augmentation=none: 1 finished trial in no number: no readable predictions",
        "1 trial not run yet",
    )


def test_trials_of_other_images_are_not_combined() -> None:
    """The same rows with the same labels, of a dataset with another fingerprint: as where one has a JPEG copy of it."""
    label = np.array([0, 1, 2], np.int16)
    prints = ["0123456789abcdef", "0123456789abcdef", "fedcba9876543210"]
    trials = [trial for trial in plan(SUITE) if trial.seed != 1]
    made = table_of(trials, lambda ids: {i: predicted(label, label) for i in ids}, dataset_fingerprint=prints)
    assert [(row["n"], row["mean"], row["softmax"], row["vote"]) for row in objects(made)] == [(2, 1.0, None, None)] * 2
    assert made.notes[0] == "model=model1, augmentation=none: not combined: its trials have different test images"


def test_ensembles_of_nothing() -> None:
    made = table_of([], lambda ids: {})
    assert [row[2:] for row in made.rows] == [(0, 3, None, None, None, None, None)] * 2


def test_points_of_a_search_that_was_not_confirmed_are_said() -> None:
    text = SUITE.replace("search: {lr: [1e-3]}", "search: {lr: [1e-3, 1e-2]}\nconfirm: none")
    made = table_of([], lambda ids: {}, text)
    assert len(made.rows) == 4
    assert made.notes[0] == "lr is searched: each value is shown as it is, none was chosen and confirmed"


def test_a_suite_without_axes_is_called_by_its_name() -> None:
    text = "name: alone\ndataset: digits\nmodel: mlp\nrepeat: {seed: 2}"
    label = np.array([0, 1, 2], np.int16)
    found = {t.id: predicted(label, label, index=np.arange(3, dtype=np.int32) + t.seed) for t in plan(text)}
    made = table_of(plan(text), lambda ids: {i: found[i] for i in ids}, text)
    assert made.notes == ("alone: not combined: its trials have different test images",)
