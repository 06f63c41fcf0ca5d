"""Several trained networks as one classifier, from their stored logits: functions on arrays, and the table of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from raybench import metrics
from raybench.cells import Cells
from raybench.grid import counted
from raybench.metrics import PredictionsOf
from raybench.records import Predictions
from raybench.suite import Suite
from raybench.table import Column, Table


def mean_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the mean over the networks of their softmax, [images, classes], of ``logits`` [networks, images, classes].

    The ensemble's prediction is its largest class, the first of several equal ones.
    """
    from scipy.special import softmax  # here: tables without ensembles do not wait for it

    return softmax(logits.astype(np.float64), axis=-1).mean(axis=0)


def majority_vote(predictions: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the class that most networks predict, [images].

    Args:
        predictions: [networks, images], each network's class.
        mean: [images, classes], the `mean_softmax`: of classes with equally many votes the one with more of it wins.
    """
    votes = np.zeros(mean.shape, int)
    for prediction in predictions:
        votes[np.arange(len(mean)), prediction] += 1
    tied = votes == votes.max(axis=1, keepdims=True)
    return np.where(tied, mean, -1.0).argmax(axis=1)


def same_images(trials: Sequence[Predictions]) -> bool:
    """Return whether the trials were tested on the same rows of a dataset, with the same classes, in the same order.

    Whether it was the same dataset, their ``dataset_fingerprint`` says.
    """
    first = trials[0]
    return all(
        np.array_equal(trial.index, first.index)
        and np.array_equal(trial.label, first.label)
        and trial.logits.shape == first.logits.shape
        for trial in trials
    )


def accuracies(trials: Sequence[Predictions]) -> tuple[float, float]:
    """Return the accuracies of the mean softmax and of the majority vote, 0 to 1, of trials with the `same_images`."""
    label = trials[0].label
    mean = mean_softmax(np.stack([trial.logits for trial in trials]))
    vote = majority_vote(np.stack([trial.prediction for trial in trials]), mean)
    return float((mean.argmax(axis=1) == label).mean()), float((vote == label).mean())


# ---------------------------------------------------------------------------------------------------------------------
# The table

COLUMNS = (
    Column("n", "n", of="planned"),
    Column("planned", "planned"),
    Column("mean", "mean", ".4f"),
    Column("std", "std", ".4f"),
    Column("softmax", "mean softmax", ".4f", group="ensemble"),
    Column("vote", "majority vote", ".4f", group="ensemble"),
    Column("gain", "gain", "+.4f", group="ensemble"),
)


def table(cells: Cells, suite: Suite, predictions: PredictionsOf) -> Table:
    """Return one row per cell: the mean accuracy of its trials, and that of them together.

    The finished trials of a cell are combined on the test images; those of different images are not, and one alone is
    no ensemble. ``gain`` is the accuracy of the mean softmax minus the mean of the trials'.

    Args:
        cells: what `raybench.cells.find_cells` found in the suite's results.
        predictions: `raybench.store.Store.predictions`.
    """
    notes, rows = [], []
    for number, (labels, planned) in enumerate(zip(cells.labels, cells.planned, strict=True)):
        here = cells.finished[cells.finished["cell"] == number]
        ids, by_id = here["trial_id"], predictions(here["trial_id"])
        found = list(by_id.values())
        prints = here["dataset_fingerprint"][ids.isin(by_id.keys())]
        same = prints.nunique(dropna=False) == 1 and same_images(found)
        name = ", ".join(f"{axis}={label}" for axis, label in zip(cells.axes, labels, strict=True)) or suite.name
        if len(found) < len(ids):
            without = counted(len(ids) - len(found), "finished trial")
            notes.append(f"{name}: {without} in no number: no readable predictions")
        if found and not same:
            notes.append(f"{name}: not combined: its trials have different test images")
        rows.append((*labels, len(found), planned, *_combined(found, same)))
    return Table(
        suite=suite.name,
        title=f"{suite.name}: {suite.about}, ensembles" if suite.about else f"{suite.name}, ensembles",
        header=(
            metrics.says("accuracy", cells.best),
            "std: sample standard deviation (ddof=1); n: finished trials, of those planned where some are missing",
            *cells.header,
            "ensemble: of the n trials of a row, from their stored logits; mean softmax: the largest class of the mean"
            " of their softmax; majority vote: the class that most of them predict, of equally many votes the one with"
            " the larger mean softmax; gain: mean softmax minus mean",
        ),
        warnings=cells.warnings,
        columns=(*(Column(axis, axis, align="left") for axis in cells.axes), *COLUMNS),
        rows=tuple(rows),
        notes=(*notes, *cells.notes),
    )


def _combined(found: Sequence[Predictions], same: bool) -> list[float | None]:
    """Return mean and std of the trials, and accuracies and gain of the ensembles."""
    single = pd.Series([float((trial.prediction == trial.label).mean()) for trial in found], dtype=float)
    mean, std = (None if pd.isna(value) else float(value) for value in (single.mean(), single.std()))
    if len(found) < 2 or not same:
        return [mean, std, None, None, None]
    softmax, vote = accuracies(found)
    return [mean, std, softmax, vote, softmax - mean if mean is not None else None]
