"""What can be tabled of a trial, and the rules that say which epoch of it counts. Pure functions on stored numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd

from raybench.errors import UserError, did_you_mean
from raybench.records import Predictions

Rule = Literal["best_val", "last", "peek"]
RULES: tuple[Rule, ...] = get_args(Rule)
"""``best_val``: the epoch that was best by the suite's ``train.best``, as training chose it. ``last``: the last one.
``peek``: the first with the best test accuracy, which is chosen on the images that it is judged on."""

PredictionsOf = Callable[[Iterable[str]], Mapping[str, Predictions]]
"""`raybench.store.Store.predictions`."""
AT_ONCE = 250
"""Trials whose predictions are in memory together."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that every finished trial has."""

    title: str
    """In figures."""
    unit: str
    meaning: str
    format: str
    column: str = ""
    """Of ``trials/``; none where it is computed from ``predictions/``."""
    by_epoch: bool = False
    """Whether it is one of an epoch, in ``epochs/`` too, so that the rule matters."""


SHARE, _LOSS = "share of images", "mean per image"
_TRAINING = "while training (with any augmentation and dropout)"
METRICS: dict[str, Metric] = {
    "accuracy": Metric("test accuracy", SHARE, "share of the test images, 0 to 1", ".4f", "test_accuracy", True),
    "macro_f1": Metric("macro F1", "0 to 1", "mean of the classes' F1 scores on the test images, 0 to 1", ".4f"),
    "loss": Metric("test loss", _LOSS, "mean loss over the test images", ".4f", "test_loss", True),
    "val_accuracy": Metric(
        "validation accuracy", SHARE, "share of the validation images, 0 to 1", ".4f", "val_accuracy", True
    ),
    "val_loss": Metric("validation loss", _LOSS, "mean loss over the validation images", ".4f", "val_loss", True),
    "train_accuracy": Metric(
        "training accuracy", SHARE, f"share of the training images, 0 to 1, {_TRAINING}", ".4f", "train_accuracy", True
    ),
    "train_loss": Metric(
        "training loss", _LOSS, f"mean loss over the training images {_TRAINING}", ".4f", "train_loss", True
    ),
    "epochs": Metric("epochs trained", "number", "number trained", ".1f", "epochs"),
    "images_per_second": Metric(
        "speed of training",
        "images per second",
        "training images per second of training steps",
        ",.0f",
        "images_per_second",
    ),
    "train_seconds": Metric("time in training steps", "s", "seconds in training steps", ",.1f", "train_seconds"),
    "wall_seconds": Metric(
        "time from start to row", "s", "seconds from a trial's start to its row", ",.1f", "wall_seconds"
    ),
    "parameters": Metric("weights", "number", "number of weights", ",.0f", "parameters"),
}
"""What ``--metric`` can name. So can the columns where they are called otherwise, `test_accuracy` and `test_loss`."""
STORED = tuple(name for name, metric in METRICS.items() if metric.column)
"""Those that are a column of ``trials/``."""
COLUMNS = tuple(metric.column for metric in METRICS.values() if metric.column)
OF_EPOCHS = tuple(metric.column for metric in METRICS.values() if metric.by_epoch)
"""Those that ``epochs/`` has too."""


def selection(best: str, rule: Rule = "best_val") -> str:
    """Say which weights the numbers of a trial are of; ``best`` is the suite's ``train.best``."""
    rules: dict[Rule, str] = {
        "best_val": f"the weights of the epoch with the best {best}",
        "last": "last, the weights after the last epoch",
        "peek": "peek, the weights of the epoch with the best test accuracy",
    }
    return f"selection rule: {rules[rule]}"


def says(metric: str, best: str, rule: Rule = "best_val") -> str:
    """Say what a metric is, and where it is one of an epoch, which rule chose that."""
    found = METRICS[metric]
    of_epoch = found.by_epoch or not found.column
    return f"{metric}: {found.meaning}" + (f"; {selection(best, rule)}" if of_epoch else "")


def find_metric(word: str, among: Iterable[str] = METRICS) -> str:
    """Return the name in `METRICS` of the metric or the column that is called ``word``.

    Raises:
        UserError: if there is none, with what was meant, or it is none of ``among``.
    """
    names = {METRICS[name].column or name: name for name in among} | {name: name for name in among}
    if word in names:
        return names[word]
    if word in METRICS:
        raise UserError(f"--metric {word}: is computed from predictions, by raybench summarize alone")
    raise UserError(f"--metric {word}: no such metric{did_you_mean(word, [*among, *names])}")


def find_rule(name: str) -> Rule:
    """Return the rule called ``name``.

    Raises:
        UserError: if there is none, with what was meant.
    """
    for rule in RULES:
        if rule == name:
            return rule
    raise UserError(f"--rule {name}: no such rule{did_you_mean(name, RULES)}")


def check(metric: str, rule: Rule) -> None:
    """Refuse a rule where it chooses nothing.

    Raises:
        UserError: naming the option, and what would be right.
    """
    if rule != "best_val" and metric == "macro_f1":
        raise UserError(f"--rule {rule}: predictions, and so macro_f1, are stored of the epoch of best_val alone")
    if rule != "best_val" and not METRICS[metric].by_epoch:
        raise UserError(f"--rule {rule}: {metric} is of the whole trial, not of an epoch: leave --rule out")


def chosen_epochs(epochs: pd.DataFrame, rule: Rule) -> pd.DataFrame:
    """Return the row of ``epochs/`` that ``last`` or ``peek`` chooses of each trial, indexed by trial id.

    A trial that was not tested after every epoch has no row by ``peek``: an epoch that nobody looked at may be better.
    """
    ordered = epochs.drop_duplicates(["trial_id", "epoch"], keep="last").sort_values(["trial_id", "epoch"])
    if rule == "peek":
        tested = ordered["test_accuracy"].notna().groupby(ordered["trial_id"]).transform("all")
        ordered = ordered[tested].sort_values("test_accuracy", ascending=False, kind="stable")
    kept: Literal["first", "last"] = "first" if rule == "peek" else "last"
    return ordered.drop_duplicates("trial_id", keep=kept).set_index("trial_id")


def values_of(
    stored: pd.DataFrame,
    metric: str,
    rule: Rule = "best_val",
    epochs: pd.DataFrame | None = None,
    predictions: PredictionsOf | None = None,
) -> pd.Series:
    """Return the metric of every row of ``stored``, in its order; NaN where there is none, or an infinite loss.

    Args:
        stored: columns ``trial_id`` and `COLUMNS` (`raybench.cells.stored_of`).
        epochs: rows of ``epochs/``, for the rules ``last`` and ``peek``.
        predictions: for ``macro_f1``.
    """
    if metric == "macro_f1":
        assert predictions is not None
        return stored["trial_id"].map(_macro_f1s(stored["trial_id"], predictions)).astype(float)
    column = METRICS[metric].column
    if rule == "best_val":
        return finite(stored[column])
    assert epochs is not None
    return finite(stored["trial_id"].map(chosen_epochs(epochs, rule)[column]))


def finite(values: pd.Series) -> pd.Series:
    """Return ``values`` with NaN for infinite ones: of such a loss there is no mean."""
    return values.astype(float).replace([np.inf, -np.inf], np.nan)


def _macro_f1s(trial_ids: Iterable[str], predictions: PredictionsOf) -> dict[str, float]:
    ids = list(trial_ids)
    return {
        trial_id: macro_f1(found.label, found.prediction)
        for start in range(0, len(ids), AT_ONCE)
        for trial_id, found in predictions(ids[start : start + AT_ONCE]).items()
    }


def macro_f1(label: np.ndarray, prediction: np.ndarray) -> float:
    """Return the mean over classes of F1 = 2 TP / (2 TP + FP + FN), each class the same weight, 0 to 1.

    Classes are those among the labels or the predictions; one that is never right has F1 = 0. As scikit-learn's
    ``f1_score(average="macro", zero_division=0)``.

    Args:
        label, prediction: whole numbers from 0, [n].
    """
    classes = int(max(label.max(), prediction.max())) + 1
    true, said = np.bincount(label, minlength=classes), np.bincount(prediction, minlength=classes)
    right = np.bincount(label[label == prediction], minlength=classes)
    there = true + said > 0
    return float(np.mean(2 * right[there] / (true + said)[there]))
