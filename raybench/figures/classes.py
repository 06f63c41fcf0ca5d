"""What a cell's predictions say of each class: confusion matrices and class reports, as data and as figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import classification_report, confusion_matrix

from raybench.axes import Label
from raybench.cells import best_of
from raybench.errors import UserError, did_you_mean
from raybench.figures.results import Results, axes, best, cells, doubts, finished, name_of, with_status, without
from raybench.figures.style import COLUMN, PAGE, SHARES, TALLEST, finish, heading, on, sheet, side_by_side
from raybench.grid import Trial
from raybench.metrics import selection
from raybench.records import FINISHED
from raybench.table import Column, Table

SCORES = ("precision", "recall", "f1", "support")
AVERAGES = ("accuracy", "macro avg", "weighted avg")
"""The last rows of a class report."""
SMALLEST = 3.5
"""Points: where its numbers would be smaller, a confusion matrix has none."""

# ---------------------------------------------------------------------------------------------------------------------
# Data


def counts(predictions: pd.DataFrame, classes: int) -> NDArray[np.int64]:
    """Return how many images of each true class (row) got each prediction (column): [classes, classes]."""
    return confusion_matrix(predictions["label"], predictions["prediction"], labels=range(classes))


def class_scores(predictions: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Return precision, recall, F1 and support of each class of one trial, and `AVERAGES` below, as scikit-learn has
    them; a class that was never predicted has precision 0. Accuracy stands under ``f1``, and has no other."""
    found = classification_report(
        predictions["label"],
        predictions["prediction"],
        labels=range(len(classes)),
        target_names=[f"c{number}" for number in range(len(classes))],
        output_dict=True,
        zero_division=0,
    )
    # All classes are asked for, so that the micro average, which scikit-learn gives if they were not, is the accuracy.
    accuracy = float((predictions["label"] == predictions["prediction"]).mean())
    rows = [found[f"c{number}"] for number in range(len(classes))]
    rows = [[row["precision"], row["recall"], row["f1-score"], row["support"]] for row in rows]
    rows.append([np.nan, np.nan, accuracy, len(predictions)])
    rows += [[*(found[name][key] for key in ("precision", "recall", "f1-score", "support"))] for name in AVERAGES[1:]]
    return pd.DataFrame(rows, index=[*classes, *AVERAGES], columns=list(SCORES), dtype=float)


@dataclass(frozen=True, slots=True)
class Shown:
    """Some trials whose mean is shown together."""

    labels: dict[str, Label | None]
    name: str
    trials: list[Trial]


@dataclass(frozen=True, slots=True)
class Measured:
    """What the predictions of some trials say, all on one dataset."""

    labels: dict[str, Label | None]
    name: str
    classes: tuple[str, ...]
    each: NDArray[np.float64]
    """[trials, ...]: of each trial whose predictions can be read."""


def measured(
    results: Results, every: Sequence[Shown], of: Callable[[pd.DataFrame, tuple[str, ...]], NDArray[Any]]
) -> tuple[list[Measured], list[str]]:
    """Return what ``of`` makes of predictions and names of classes, for each trial of ``every``; and a line for trials
    whose predictions cannot be read. Those of which none can are left out.

    Raises:
        UserError: if nothing is left.
    """
    found, unread = [], []
    for one in every:
        stored = dict(iter(results.predictions([trial.id for trial in one.trials]).groupby("trial_id")))
        unread += [trial for trial in one.trials if trial.id not in stored]
        if stored:
            classes = results.classes(one.trials[0])
            each = [of(stored[trial.id], classes) for trial in one.trials if trial.id in stored]
            found.append(Measured(one.labels, one.name, classes, np.stack(each)))
    if every and not found:
        of_one = f" of {every[0].name}" if len(every) == 1 else ""
        raise UserError(f"{results.suite.name}: needs predictions{of_one}, and none that can be read are stored")
    return found, without(unread, "predictions that can be read")


def shown(results: Results, trial: str = "", most: int | None = 12) -> tuple[list[Shown], list[str]]:
    """Return every cell with finished trials, or the one trial whose id (or the beginning of it) or name ``trial`` is;
    and a line for what is left out."""
    if trial:
        one = find_trial(results, trial)
        return [Shown(dict(one.labels), one.name, [one])], []
    with_any = [cell for cell in cells(results) if with_status(results, cell.trials, *FINISHED)]
    kept, left_out = best(results, with_any, most or len(with_any))
    names = axes(results)
    return [
        Shown(cell.labels, name_of(cell.labels, names), with_status(results, cell.trials, *FINISHED)) for cell in kept
    ], left_out


def find_trial(results: Results, word: str) -> Trial:
    """Return the finished trial whose id begins with ``word``, or whose name that is."""
    known = finished(results)
    found = [trial for trial in known if trial.id.startswith(word) or trial.name == word]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"--trial {word}: {len(found)} trials begin so: write more of the id")
    near = did_you_mean(word, [trial.name for trial in known][:200])
    raise UserError(f"--trial {word}: no finished trial of {results.suite.name} is called so{near}")


def class_table(results: Results, trial: str = "") -> Table:
    """Return precision, recall, F1 and support of every class, for each cell (or one trial): means over its trials."""
    every, unread = measured(results, shown(results, trial, None)[0], _scores_of)
    names = [] if trial else axes(results)
    rows: list[tuple[Label | None, ...]] = []
    for one in every:
        means, n = one.each.mean(axis=0), len(one.each)
        spread = one.each[:, :, 2].std(axis=0, ddof=1) if n > 1 else [None] * len(means)
        labels = tuple(one.labels[name] for name in names)
        for name, (precision, recall, f1, support), std in zip([*one.classes, *AVERAGES], means, spread, strict=True):
            scores = [None if np.isnan(score) else float(score) for score in (precision, recall, f1)]
            deviation = None if std is None else float(std)
            whole = int(support) if float(support).is_integer() else float(support)
            rows.append((*labels, name, n, *scores, deviation, whole))
    said = doubts(results, None)
    return Table(
        suite=results.suite.name,
        title=f"{results.suite.name}: classes" + (f" of {every[0].name}" if trial else ""),
        header=(
            "precision, recall, F1: of the test images, means over n trials; F1 std: over the trials (ddof=1);"
            f" {selection(best_of(results.trials))}",
            "support: test images of the class; accuracy: share of the test images, under F1; macro avg: mean of the"
            " classes; weighted avg: weighted by support",
        ),
        warnings=tuple(line.removeprefix("WARNING: ") for line in said if line.startswith("WARNING: ")),
        columns=(
            *(Column(name, name, align="left") for name in names),
            Column("class", "class", align="left"),
            Column("n", "n"),
            Column("precision", "precision", ".4f"),
            Column("recall", "recall", ".4f"),
            Column("f1", "F1", ".4f"),
            Column("f1_std", "F1 std", ".4f"),
            Column("support", "support"),
        ),
        rows=tuple(rows),
        notes=(*unread, *(line for line in said if not line.startswith("WARNING: "))),
    )


def _scores_of(predictions: pd.DataFrame, classes: tuple[str, ...]) -> NDArray[np.float64]:
    return class_scores(predictions, classes).to_numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def confusion(results: Results, *, trial: str = "") -> Figure:
    """Confusion matrices, a panel per cell: the mean over its seeds, as shares of each true class, with counts.

    Args:
        trial: of this trial alone: its id, or the beginning of it, or its name.
    """
    kept, left_out = shown(results, trial)
    every, unread = measured(results, kept, lambda predictions, classes: counts(predictions, len(classes)))
    alone, same = len(every) == 1, len({one.classes for one in every}) == 1
    columns = side_by_side(len(every))
    width = min(PAGE, max(COLUMN, 0.42 * len(every[0].classes) + 1)) if alone else PAGE
    longest = max(len(name) for one in every for name in one.classes) * 0.055  # inches
    side = max(0.8, (width - 1.0) / columns - (0 if same else longest))
    rows = -(-len(every) // columns)
    named = rows if not same else 1 if len(every) % columns == 0 else 2  # that have the classes' names below
    figure, grid = sheet(len(every), columns=columns, width=width, height=side + 0.25 + named / rows * longest)
    for number, (panel, one) in enumerate(zip(grid, every, strict=True)):
        _matrix(panel, one.each.mean(axis=0), one.classes, side, with_counts=alone)
        heading(panel, f"{one.name}, n={len(one.each)}", 0.85 * side)
        left, below = number % columns == 0, number >= len(every) - columns
        panel.set_ylabel("true class" if left else "")
        panel.set_xlabel("predicted class" if below else "")
        panel.tick_params(labelleft=left or not same, labelbottom=below or not same)
    bar = figure.colorbar(
        matplotlib.cm.ScalarMappable(Normalize(0, 1), SHARES), ax=grid, aspect=30, fraction=0.04, pad=0.02
    )
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    said = []
    if any(_size(side, one.classes) >= SMALLEST for one in every):
        said = ["numbers: % of the true class" + (", images (mean over the trials) below" if alone else "")]
    title = f"{results.suite.name}: confusion of the test images"
    return finish(figure, title, [*said, *left_out, *unread, *doubts(results)])


def _size(side: float, classes: Sequence[str]) -> float:
    """Return the points of the numbers in a matrix of ``side`` inches."""
    return min(7.0, side / len(classes) * 72 / 3.3)


def _matrix(
    panel: Axes, matrix: NDArray[np.float64], classes: Sequence[str], side: float, *, with_counts: bool
) -> None:
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros_like(matrix), where=totals > 0)
    panel.pcolormesh(shares, cmap=SHARES, vmin=0, vmax=1, edgecolors="0.9", linewidth=0.3)
    panel.set_aspect("equal")
    panel.invert_yaxis()
    panel.grid(visible=False)
    room = side / len(classes)  # inches
    size = _size(side, classes)
    if size >= SMALLEST:
        scale, colors = Normalize(0, 1), matplotlib.colormaps[SHARES]
        for (true, predicted), share in np.ndenumerate(shares):
            if matrix[true, predicted] == 0:
                continue
            text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
            if with_counts:
                text += f"\n{matrix[true, predicted]:.3g}" if room > 0.3 else ""
            at = (predicted + 0.5, true + 0.5)
            panel.text(
                *at, text, ha="center", va="center", fontsize=size, color=on(colors(scale(share))), linespacing=1
            )
    every = max(1, int(np.ceil(0.11 / room)))
    shown_at = range(0, len(classes), every)
    words = [classes[at] for at in shown_at]
    font = min(7.0, max(4.5, room * 72 * 0.8))
    panel.set_xticks(
        [at + 0.5 for at in shown_at], words, rotation=90 if max(map(len, words)) > 2 else 0, fontsize=font
    )
    panel.set_yticks([at + 0.5 for at in shown_at], words, fontsize=font)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)


def class_report(results: Results, *, trial: str = "") -> Figure:
    """Class reports, a panel per cell: precision, recall and F1 of every class, means over its seeds, and the support.

    Args:
        trial: of this trial alone: its id, or the beginning of it, or its name.
    """
    most = max(len(results.classes(one)) for one in finished(results)) + len(AVERAGES)
    height = 0.155 * most + 0.65
    kept, left_out = shown(results, trial, min(12, 3 * max(1, int(TALLEST / height))))
    every, unread = measured(results, kept, _scores_of)
    same = len({one.classes for one in every}) == 1
    columns = side_by_side(len(every))
    width = COLUMN * 1.1 if len(every) == 1 else PAGE
    figure, grid = sheet(len(every), columns=columns, width=width, height=height)
    for number, (panel, one) in enumerate(zip(grid, every, strict=True)):
        _scores(panel, one.each.mean(axis=0), [*one.classes, *AVERAGES], most)
        heading(panel, f"{one.name}, n={len(one.each)}", (width - 0.8) / columns)
        panel.tick_params(labelleft=number % columns == 0 or not same)
    said = "test images, means over n trials; accuracy: share of the test images; support: images of the class"
    title = f"{results.suite.name}: precision, recall and F1 by class"
    return finish(figure, title, [said, *left_out, *unread, *doubts(results)])


def _scores(panel: Axes, means: NDArray[np.float64], rows: Sequence[str], most: int) -> None:
    """Draw the scores of ``rows``, where the figure's longest report has ``most``."""
    colors, classes = matplotlib.colormaps[SHARES], len(rows) - len(AVERAGES)
    panel.pcolormesh(np.ma.masked_invalid(means[:, :3]), cmap=SHARES, vmin=0, vmax=1, edgecolors="white", linewidth=0.6)
    for (row, column), value in np.ndenumerate(means):
        if np.isnan(value):
            continue
        text = f"{value:.3f}" if column < 3 else f"{value:,.0f}"
        color = on(colors(value)) if column < 3 else "black"
        panel.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=6.5, color=color)
    panel.axhline(classes, color="black", linewidth=0.8)
    panel.set_xlim(0, 4)
    panel.set_ylim(most, 0)
    panel.grid(visible=False)
    panel.set_xticks(np.arange(4) + 0.5, ["precision", "recall", "F1", "support"])
    panel.xaxis.set_ticks_position("top")
    panel.set_yticks(np.arange(len(rows)) + 0.5, rows)
    panel.tick_params(length=0, labelsize=6.5)
    panel.spines[:].set_visible(False)
