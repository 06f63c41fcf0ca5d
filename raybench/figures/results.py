"""What a figure is made from: the stored rows of a suite's plan, and their values cell by cell."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from raybench import grid, metrics, ood
from raybench.axes import Label, find_label
from raybench.cells import as_searched, best_of, cells_of, warnings_of
from raybench.dotted import SHORT, full_path
from raybench.errors import UserError, did_you_mean
from raybench.grid import Trial
from raybench.plan import Choice
from raybench.records import FINISHED
from raybench.store import Store
from raybench.suite import Suite

PREDICTED = ("trial_id", "index", "label", "prediction")
"""Columns of `Results.predictions`."""
METRICS = {of.column: (of.title, of.unit) for of in map(metrics.METRICS.__getitem__, metrics.STORED)}
"""Columns of `raybench.records.TrialRow` that can be drawn: their names for people, and their units."""
CELL, VALUE = "(cell)", "(value)"
"""Columns of `values` beside those of the axes, none of which can be called so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What a figure is made from."""

    suite: Suite
    trials: Sequence[Trial]
    """The plan, or the part of it that is drawn."""
    rows: pd.DataFrame
    """What is stored of ``trials``: one row each, columns as in `raybench.records.TrialRow`."""
    epochs: pd.DataFrame
    """Their epochs, columns as in `raybench.records.EpochRow`."""
    seeds: Sequence[int] = ()
    """Those that were chosen; by default all of the suite."""
    predictions: Callable[[Sequence[str]], pd.DataFrame]
    """Reads the test images of the trials with these ids: columns `PREDICTED`."""
    detections: Callable[[], pd.DataFrame]
    """Reads the judged images of the data and from outside of it, as `raybench.ood.frame` returns them."""
    classes: Callable[[Trial], tuple[str, ...]]
    """Returns the names of the classes of a trial's dataset, or "0", "1", ... where they are unknown; nothing where no
    predictions on that dataset are stored."""
    images: Callable[[Trial, np.ndarray], np.ndarray] | None = None
    """Returns the test images of a trial at some indices, uint8 [n, H, W, C]; None where they cannot be had."""
    foreign: Callable[[Trial, str, str, np.ndarray], np.ndarray] | None = None
    """Returns images from outside at some indices as a trial's network sees them, uint8 [n, H, W, C], by the
    ``settings`` and ``out_fingerprint`` of their scores; None where they cannot be had."""
    damaged: Sequence[str] = ()
    """A line for each file that cannot be read: its trial is not drawn. It grows as ``predictions`` are read."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A row of the suite's table, or a point of its search."""

    labels: dict[str, Label | None]
    """Of the axes of compare and search; None where a search has no winner yet."""
    trials: list[Trial]


def collect(store: Store, choice: Choice, words: Sequence[str] = ()) -> Results:
    """Return what is stored of a plan, or of the part of it that ``words`` such as ``model=model2`` name.

    Raises:
        UserError: for a word that names no axis, or no value of it.
    """
    trials = chosen(choice.trials(store.ended(failed=True)), words)
    ids = [trial.id for trial in trials]
    rows, damaged = store.read("trials")
    epochs, more = store.read("epochs")
    damaged += more

    def predictions(trial_ids: Sequence[str]) -> pd.DataFrame:
        found = [
            pd.DataFrame({"trial_id": id_, "index": of.index, "label": of.label, "prediction": of.prediction})
            for id_, of in store.predictions(trial_ids, damaged).items()
        ]
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(PREDICTED))

    @functools.cache
    def width(dataset: str) -> int:
        """Return the number of classes, from the first logits that can be read."""
        done = set(rows["trial_id"][rows["status"].isin(FINISHED)])
        for trial in trials:
            if trial.id in done and dataset_of(trial) == dataset:
                for found in store.predictions([trial.id], damaged).values():
                    return found.logits.shape[1]
        return 0

    @functools.cache
    def detections() -> pd.DataFrame:
        rows, scores = store.read("ood")[0], store.read("activations")[0]
        return ood.frame(rows, scores[scores["trial_id"].isin(ids)])

    return Results(
        suite=choice.suite,
        trials=trials,
        seeds=choice.seeds(),
        rows=rows[rows["trial_id"].isin(ids)].drop_duplicates("trial_id", keep="last"),
        epochs=epochs[epochs["trial_id"].isin(ids)].drop_duplicates(["trial_id", "epoch"], keep="last"),
        predictions=predictions,
        detections=detections,
        classes=lambda trial: tuple(str(number) for number in range(width(dataset_of(trial)))),
        damaged=damaged,
    )


def dataset_of(trial: Trial) -> str:
    """Return what tells the dataset of a trial from that of others."""
    return json.dumps(trial.settings["dataset"], sort_keys=True)


def chosen(trials: Sequence[Trial], words: Sequence[str]) -> list[Trial]:
    """Return the trials that have the labels that ``words``, each ``axis=value``, name; several of one axis add up."""
    keep: dict[str, set[Label]] = {}
    for word in words:
        name, equals, value = (part.strip() for part in word.partition("="))
        axes = list(trials[0].labels)
        if not equals:
            raise UserError(f"{word}: must be axis=value, e.g. {axes[0]}={trials[0].labels[axes[0]]}")
        if name not in axes:
            raise UserError(f"{word}: no axis is called {name!r}{did_you_mean(name, axes)}")
        labels = list(dict.fromkeys(trial.labels[name] for trial in trials))
        label = find_label(labels, value)
        if label is None:
            raise UserError(f"{word}: no such value of {name}{did_you_mean(value, labels[:50])}")
        keep.setdefault(name, set()).add(label)
    left = [trial for trial in trials if all(trial.labels[name] in labels for name, labels in keep.items())]
    if not left:
        raise UserError(f"{' '.join(words)}: no planned trial has all of them")
    return left


def finished(results: Results) -> list[Trial]:
    """Return the trials that enter the numbers, in the order of the table."""
    done = set(results.rows["trial_id"][results.rows["status"].isin(FINISHED)])
    return [trial for cell in cells(results) for trial in cell.trials if trial.id in done]


def with_status(results: Results, trials: Sequence[Trial], *statuses: str) -> list[Trial]:
    """Return those of ``trials`` that are stored with one of ``statuses``."""
    ids = set(results.rows["trial_id"][results.rows["status"].isin(statuses)])
    return [trial for trial in trials if trial.id in ids]


def cells(results: Results) -> list[Cell]:
    """Return the rows of the suite's table, with the trials whose numbers they show: of a search, the winners'."""
    return [Cell(labels, trials) for labels, trials in cells_of(results.suite, results.trials)]


def points(results: Results) -> list[Cell]:
    """Return every point of the plan, those included that lost their search."""
    names = results.suite.names("compare", "search")
    return [
        Cell(dict(zip(names, (*cell, *point), strict=True)), trials)
        for cell, point, trials in grid.cells(results.trials)
    ]


def axes(results: Results) -> list[str]:
    """Return the axes of compare and search that have several values among the trials, in the suite's order."""
    names = results.suite.names("compare", "search")
    return [name for name in names if len({trial.labels[name] for trial in results.trials}) > 1]


def listed_axes(results: Results) -> list[str]:
    """Return those of `axes` whose values the suite lists: of drawn numbers each is another."""
    return [name for name in axes(results) if results.suite.axis(name).range is None]


def lr_axis(results: Results) -> str:
    """Return the one of `axes` that sets the learning rate, ``lr`` or ``train.lr``; nothing where none does."""
    return next((name for name in axes(results) if full_path(name) == SHORT["lr"]), "")


def check_axis(results: Results, name: str, option: str) -> str:
    """Return ``name`` if it is an axis of the plan."""
    known = results.suite.names("compare", "search", "repeat")
    if name not in known:
        raise UserError(f"--{option} {name}: is no axis of {results.suite.name}{did_you_mean(name, known)}")
    return name


def check_metric(metric: str) -> str:
    """Return the column of ``metric`` if it can be drawn."""
    return metrics.METRICS[metrics.find_metric(metric, metrics.STORED)].column


def described(metric: str) -> str:
    """Return what a trial has that is drawn: of losses, those that are infinite are not."""
    return f"{'finite ' * metric.endswith('loss')}{METRICS[metric][0]}"


def titled(metric: str, between: str = "\n") -> str:
    """Return the title of an axis: the metric, and its unit."""
    name, unit = METRICS[check_metric(metric)]
    return f"{name}{between}({unit})"


def name_of(labels: dict[str, Label | None], names: Sequence[str]) -> str:
    """Return what tells a cell from others, for people: ``model1 / aug2``; numbers with their axis, ``lr 0.001``."""
    return " / ".join(word(name, labels[name]) for name in names) or "all trials"


def word(name: str, label: Label | None) -> str:
    """Return the label of an axis as it stands in a legend or a title."""
    text = written(label)
    return text if isinstance(label, str) else f"{name.rpartition('.')[2]} {text}"


def written(label: Label | None) -> str:
    if label is None:
        return "open"
    return f"{label:.4g}" if isinstance(label, float) else str(label)


def values(results: Results, metric: str = "test_accuracy", *, every_point: bool = False) -> pd.DataFrame:
    """Return a row per finished trial: the number of its cell in `cells` (or in `points`), its labels, and its value.

    Columns: `CELL`, the axes of compare and search, ``seed``, ``trial_id``, `VALUE` (in the unit of the metric).
    """
    metric = check_metric(metric)
    done = results.rows[results.rows["status"].isin(FINISHED)]
    stored = dict(zip(done["trial_id"], metrics.finite(done[metric]), strict=True))
    names = results.suite.names("compare", "search")
    table: list[dict[str, Any]] = []
    for number, cell in enumerate(points(results) if every_point else cells(results)):
        for trial in cell.trials:
            if trial.id in stored:
                labels = {name: trial.labels[name] for name in names}
                row = {CELL: number, **labels, "seed": trial.seed, "trial_id": trial.id}
                table.append({**row, VALUE: stored[trial.id]})
    frame = pd.DataFrame(table, columns=[CELL, *names, "seed", "trial_id", VALUE])
    return frame.dropna(subset=VALUE)


def doubts(results: Results, metric: str | None = "test_accuracy") -> list[str]:
    """Return what must be said beside every number: why it must not be taken at face value, which epoch it is of, and
    what is missing.

    Args:
        metric: what is drawn of each trial: by default it comes from the weights that were tested; None for its epochs.
    """
    lines = [f"WARNING: {line}" for line in warnings_of(results.rows, results.trials)]
    if metric in metrics.OF_EPOCHS:
        lines.append(metrics.selection(best_of(results.trials)))
    if metric:
        empty = set(results.rows["trial_id"][metrics.finite(results.rows[metric]).isna()])
        lines += without([trial for trial in finished(results) if trial.id in empty], described(metric))
    done = {trial.id for trial in finished(results)}
    names, seeds = axes(results), len(results.seeds or results.suite.axis("seed").labels)
    short = []
    for cell in cells(results):
        n, planned = sum(trial.id in done for trial in cell.trials), len(cell.trials) or seeds
        if n < planned:
            short.append(f"{name_of(cell.labels, names)} {n}/{planned}")
    if short:
        more = f" and {len(short) - 4} cells more" if len(short) > 4 else ""
        lines.append(f"finished trials of those planned: {', '.join(short[:4])}{more}")
    lines += as_searched(results.suite, names) if metric else []
    if results.damaged:
        lines.append(f"files that cannot be read: {len(results.damaged)}")
    return lines


def without(trials: Sequence[Trial], what: str) -> list[str]:
    """Say which finished trials are in no number, as they have no ``what``."""
    if not trials:
        return []
    names = [trial.name for trial in trials]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return [f"finished trials without {what}, not shown: {', '.join(names[:4])}{more}"]


def best(results: Results, among: Sequence[Cell], most: int = 12) -> tuple[list[Cell], list[str]]:
    """Return at most ``most`` cells, in their order, and a line that says which, where some are left out."""
    if len(among) <= most:
        return list(among), []
    means = values(results).groupby(CELL)[VALUE].mean()
    by_trial = {cell.trials[0].id: means.get(number) for number, cell in enumerate(cells(results)) if cell.trials}
    ranked = sorted(among, key=lambda cell: -(by_trial[cell.trials[0].id] or 0))
    kept = {cell.trials[0].id for cell in ranked[:most]}
    line = f"the {most} best of {len(among)} cells by mean test accuracy; name the axes' values to see others"
    return [cell for cell in among if cell.trials[0].id in kept], [line]
