"""Figures of epochs and learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from raybench.axes import Label
from raybench.errors import UserError, did_you_mean
from raybench.figures.results import (
    METRICS,
    VALUE,
    Cell,
    Results,
    axes,
    best,
    cells,
    check_axis,
    check_metric,
    doubts,
    finished,
    lr_axis,
    name_of,
    points,
    titled,
    values,
    with_status,
    without,
    written,
)
from raybench.figures.style import COLORS, COLUMN, PAGE, TALLEST, finish, heading, look, sheet, side_by_side
from raybench.grid import Trial
from raybench.metrics import finite
from raybench.records import FINISHED

MEASURES = {"loss": "mean per image", "accuracy": "share of images"}
"""Of an epoch, with their units."""
BANDS = {"range": "min to max", "std": "mean ± std (ddof=1)"}
LOG_FROM = 30
"""A loss whose largest value is so many times its smallest is drawn on a logarithmic axis."""
APART = 1.02
"""Lines of one learning rate stand so many times to the right of each other."""
ROOMY = 9
"""Up to so many cells the panels are high enough for the units at their axes."""
LINES = 10
"""At most so many values are told apart by colour, dashes and marker."""


def band(epochs: pd.DataFrame, metric: str, kind: str = "range") -> pd.DataFrame:
    """Return a row per epoch, by its number: ``n`` trials that have it, their ``mean``, and ``low`` and ``high``; an
    infinite loss is none.

    Args:
        epochs: rows as in `raybench.records.EpochRow`.
        metric: one of its columns.
        kind: ``range``: from the lowest trial to the highest; ``std``: one sample standard deviation (ddof=1) about
            the mean, 0 where only one trial is left.
    """
    of = finite(epochs[metric]).groupby(epochs["epoch"])
    table = of.agg(["count", "mean", "min", "max"]).rename(columns={"count": "n", "min": "low", "max": "high"})
    if kind == "std":
        std = of.std(ddof=1).fillna(0)
        table["low"], table["high"] = table["mean"] - std, table["mean"] + std
    return table


def curves(results: Results, *, metric: str = "both", axis: str = "", band: str = "range") -> Figure:
    """Loss and accuracy over the epochs, training and validation, a panel per cell, with the band over the seeds.

    Args:
        metric: ``loss``, ``accuracy`` or ``both``.
        axis: draw a line per value of this axis instead, of the validation images alone, and a panel for each
            combination of the others.
        band: ``range`` (min to max) or ``std``.
    """
    measures = _measures(metric)
    if band not in BANDS:
        raise UserError(f"--band {band}: no such band{did_you_mean(band, BANDS)}")
    if axis:
        return _by_axis(results, check_axis(results, axis, "axis"), measures, band)
    kept, left_out = best(results, [cell for cell in cells(results) if _with_epochs(results, cell.trials, *FINISHED)])
    figure, grid = _layout(len(kept), measures)
    shown = _Shown()
    for number, cell in enumerate(kept):
        for row, measure in enumerate(measures):
            panel = grid[number][row]
            if row == 0:
                heading(panel, name_of(cell.labels, axes(results)), _room(len(kept)))
            for part, index in (("train", 0), ("val", 1)):
                style = {"color": COLORS[index], "linestyle": ("--", "-")[index]}
                _draw(panel, results, cell.trials, f"{part}_{measure}", band, style, shown)
    _scales(grid, measures)
    on_test = (results.rows["validation"] == "test").any()
    names = ("training (with any augmentation and dropout)", "validation" + (" (= test images)" if on_test else ""))
    handles: list[Artist] = [
        Line2D([], [], color=COLORS[index], linestyle=("--", "-")[index], label=name)
        for index, name in enumerate(names)
    ]
    handles += shown.handles(band, COLORS[1])
    title = f"{results.suite.name}: learning curves"
    said = [*shown.said(), *_units(grid, measures), *left_out, *_without_epochs(results)]
    return finish(figure, title, [*said, *doubts(results, None)], handles)


def curves_by_lr(results: Results, *, metric: str = "both", band: str = "range") -> Figure:
    """Loss and accuracy of the validation images over the epochs, a line per learning rate, a panel per cell."""
    return curves(results, metric=metric, axis=lr_axis(results), band=band)


def lr(results: Results, *, metric: str = "test_accuracy") -> Figure:
    """Accuracy against the learning rate, on a logarithmic axis: every trial, and the mean of each learning rate.

    Args:
        metric: what is drawn instead, such as ``val_accuracy`` or ``epochs``.
    """
    metric = check_metric(metric)
    axis = lr_axis(results)
    frame = values(results, metric, every_point=True)
    rates = {trial.id: trial.settings["train"]["lr"] for trial in results.trials}  # labels may be words
    frame[axis] = frame["trial_id"].map(rates)
    drawn = results.suite.draw is not None
    others = [name for name in axes(results) if name != axis and not (drawn and name in results.suite.names("search"))]
    figure, (panel,) = sheet(1, columns=1, width=COLUMN if len(others) < 2 else PAGE * 0.75, height=2.6)
    handles: list[Artist] = []
    groups = list(frame.groupby(others, sort=False)) if others else [((), frame)]
    for index, (labels, group) in enumerate(groups):
        found: dict[str, Any] = dict(zip(others, labels, strict=True))
        style = {**look(index), "label": name_of(found, others) if others else "trials"}
        if drawn:
            style["linestyle"] = ""
        aside = 1.0 if drawn else APART ** (index - (len(groups) - 1) / 2)
        panel.plot(group[axis] * aside, group[VALUE], **{**style, "linestyle": "", "alpha": 0.7 if drawn else 0.35})
        if not drawn:
            of = group.groupby(axis)[VALUE].agg(["mean", "std"]).sort_index()
            panel.errorbar(of.index * aside, of["mean"], yerr=of["std"].fillna(0), capsize=2, elinewidth=0.8, **style)
        handles.append(Line2D([], [], **style))
    panel.set_xscale("log")
    panel.set_xlabel("learning rate at the first step (log scale)")
    panel.set_ylabel(titled(metric))
    counts = frame.groupby([*others, axis] if not drawn else "trial_id").size()
    said = ["each point is a trial" if drawn else f"pale: trials; lines: means, bars: ± std (ddof=1), {_n(counts)}"]
    if len(groups) > 1 and not drawn:
        said[0] += "; points of one learning rate stand a little aside of each other"
    if results.suite.confirms:
        said.append("points of the search have one seed each, the winners all seeds")
    title = f"{results.suite.name}: {METRICS[metric][0]} by learning rate"
    return finish(figure, title, [*said, *doubts(results, metric)], handles)


def _n(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"n = {low}" if low == high else f"n = {low} to {high}"


# ---------------------------------------------------------------------------------------------------------------------


def _with_epochs(results: Results, trials: Sequence[Trial], *statuses: str) -> list[Trial]:
    """Return those of ``trials`` that are stored with one of ``statuses``, and with epochs."""
    stored = set(results.epochs["trial_id"])
    return [trial for trial in with_status(results, trials, *statuses) if trial.id in stored]


def _without_epochs(results: Results) -> list[str]:
    stored = set(results.epochs["trial_id"])
    return without([trial for trial in finished(results) if trial.id not in stored], "epochs that can be read")


class _Shown:
    """What has been drawn so far, and so must be explained."""

    def __init__(self) -> None:
        self.counts: set[int] = set()
        self.ends = self.pruned = self.infinite = False

    def handles(self, kind: str, color: str) -> list[Artist]:
        found: list[Artist] = []
        if max(self.counts, default=0) > 1:
            found.append(Patch(facecolor=color, alpha=0.2, label=f"{BANDS[kind]} over seeds"))
        if self.pruned:
            found.append(Line2D([], [], color="0.4", linestyle=":", linewidth=0.7, label="pruned"))
        return found

    def said(self) -> list[str]:
        low, high = min(self.counts), max(self.counts)
        lines = [f"lines: mean of n = {low if low == high else f'{low} to {high}'} finished trials"]
        if self.ends:
            lines[0] += ", as far as all of them have trained; beyond that each goes on as a thin line"
        if self.pruned:
            lines[0] += "; pruned trials are in no mean"
        if self.infinite:
            lines.append("no mean is drawn of an epoch with an infinite loss")
        return lines


def _draw(
    panel: Axes,
    results: Results,
    trials: Sequence[Trial],
    column: str,
    kind: str,
    style: dict[str, Any],
    shown: _Shown,
) -> None:
    """Draw the mean and the band of the finished trials as far as all have trained, and each alone beyond that."""
    done = _with_epochs(results, trials, *FINISHED)
    epochs = results.epochs[results.epochs["trial_id"].isin([trial.id for trial in done])].sort_values("epoch")
    thin = {"color": style["color"], "linewidth": 0.6, "alpha": 0.8}
    if len(epochs):
        table = band(epochs, column, kind)
        shared = table["n"] == len(done)
        end = int(table.index[shared].max()) if shared.any() else 0
        whole = table.loc[:end].where(shared)
        shown.counts.add(len(done))
        shown.infinite |= bool(np.isinf(epochs[column]).any())
        every = max(1, len(whole) // 8)
        panel.plot(whole.index, whole["mean"], markevery=every, **style)
        if len(done) > 1:
            panel.fill_between(whole.index, whole["low"], whole["high"], color=style["color"], alpha=0.2, linewidth=0)
        for _, one in epochs[epochs["epoch"] >= end].groupby("trial_id", sort=False):
            if len(one) > 1:
                shown.ends = True
                panel.plot(one["epoch"], one[column], linestyle=style["linestyle"], **thin)
    for trial in _with_epochs(results, trials, "pruned") if column.startswith("val") else ():
        one = results.epochs[results.epochs["trial_id"] == trial.id].sort_values("epoch")
        shown.pruned = True
        panel.plot(one["epoch"], one[column], linestyle=":", **thin)


def _by_axis(results: Results, axis: str, measures: Sequence[str], kind: str) -> Figure:
    """Draw a line per value of ``axis``, of the validation images, and a panel per combination of the other axes."""
    searched = axis in results.suite.names("search")
    others = [name for name in axes(results) if name != axis]
    every = points(results) if searched else cells(results)
    if axis == "seed":
        every = [Cell({**cell.labels, "seed": trial.seed}, [trial]) for cell in every for trial in cell.trials]
    groups: dict[tuple[Label | None, ...], list[Cell]] = {}
    for cell in every:
        if _with_epochs(results, cell.trials, *FINISHED, "pruned"):
            groups.setdefault(tuple(cell.labels[name] for name in others), []).append(cell)
    lines: list[Any] = list(dict.fromkeys(cell.labels[axis] for members in groups.values() for cell in members))
    ordered = sorted(lines, key=float) if all(isinstance(label, int | float) for label in lines) else lines
    styles = {label: _line(index, ordered) for index, label in enumerate(ordered)}
    figure, grid = _layout(len(groups), measures)
    shown = _Shown()
    for number, (labels, members) in enumerate(groups.items()):
        for row, measure in enumerate(measures):
            panel = grid[number][row]
            if row == 0 and others:
                heading(panel, name_of(dict(zip(others, labels, strict=True)), others), _room(len(groups)))
            for cell in members:
                _draw(panel, results, cell.trials, f"val_{measure}", kind, styles[cell.labels[axis]], shown)
    _scales(grid, measures, "validation ")
    handles: list[Artist] = [Line2D([], [], label=f"{axis} {written(label)}", **styles[label]) for label in ordered]
    handles += shown.handles(kind, "0.4")
    title = f"{results.suite.name}: validation curves by {axis}"
    said = [*shown.said(), *_units(grid, measures), *_without_epochs(results)]
    return finish(figure, title, [*said, *doubts(results, None)], handles)


def _line(index: int, lines: Sequence[Any]) -> dict[str, Any]:
    """Return how a line is drawn; where there are more than can be told apart, colours along a scale."""
    if len(lines) <= LINES:
        return look(index)
    color = matplotlib.colormaps["viridis"](index / (len(lines) - 1) * 0.92)
    return {**look(index), "color": color}


def _measures(metric: str) -> list[str]:
    if metric not in (*MEASURES, "both"):
        raise UserError(f"--metric {metric}: no such metric of epochs{did_you_mean(metric, [*MEASURES, 'both'])}")
    return [*MEASURES] if metric == "both" else [metric]


def _columns(count: int) -> tuple[int, float]:
    """Return how many panels stand side by side, and the width of the figure in inches."""
    columns = side_by_side(count)
    return columns, {1: COLUMN, 2: PAGE * 0.75}.get(columns, PAGE)


def _room(count: int) -> float:
    """Return the inches that a panel has for its title."""
    columns, width = _columns(count)
    return (width - 0.6) / columns


def _layout(count: int, measures: Sequence[str]) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure and, for each of ``count`` cells, a panel per measure, one below the other."""
    columns, width = _columns(count)
    blocks, depth = -(-count // columns), len(measures)
    height = min(1.75, (TALLEST - 1) / (blocks * depth))
    figure, every = sheet(columns * blocks * depth, columns=columns, width=width, height=height)
    grid = [
        [every[(number // columns * depth + row) * columns + number % columns] for row in range(depth)]
        for number in range(columns * blocks)
    ]
    for spare in grid[count:]:
        for panel in spare:
            panel.remove()
    for number, stack in enumerate(grid[:count]):
        for panel in stack:
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            panel.tick_params(labelleft=number % columns == 0)
        for panel in stack[:-1]:
            panel.tick_params(labelbottom=False)
        stack[-1].set_xlabel("epoch" if number + columns >= count else "")
        if number % columns == 0:
            for panel, measure in zip(stack, measures, strict=True):
                panel.set_ylabel(measure)
    return figure, grid[:count]


def _units(grid: Sequence[Sequence[Axes]], measures: Sequence[str]) -> list[str]:
    """Say the units, where the panels are too low for them."""
    return [] if len(grid) <= ROOMY else ["; ".join(f"{measure}: {MEASURES[measure]}" for measure in measures)]


def _scales(grid: Sequence[Sequence[Axes]], measures: Sequence[str], prefix: str = "") -> None:
    """Give all panels of one measure the same axis, and all panels the same epochs."""
    lines = [line for stack in grid for panel in stack for line in panel.lines]
    last = max((float(at) for line in lines for at in np.asarray(line.get_xdata())), default=1.0)
    for row, measure in enumerate(measures):
        found = [np.asarray(line.get_ydata(), float) for stack in grid for line in stack[row].lines]
        found += [
            np.asarray(area.get_paths()[0].vertices)[:, 1]
            for stack in grid
            for area in stack[row].collections
            if area.get_paths()
        ]
        numbers = np.concatenate([*found, np.empty(0)])
        numbers = numbers[np.isfinite(numbers)]
        numbers = numbers if numbers.size else np.array([0.0, 1.0])
        low, high = float(numbers.min()), float(numbers.max())
        log = measure == "loss" and low > 0 and high > LOG_FROM * low
        for stack in grid:
            panel = stack[row]
            panel.set_xlim(1 - 0.02 * last, last * 1.02 + 0.1)
            if panel.get_ylabel():
                panel.set_ylabel(f"{prefix}{measure}\n({MEASURES[measure]})" if len(grid) <= ROOMY else measure)
            if log:
                panel.set_yscale("log")
                panel.set_ylim(low / 1.2, high * 1.2)
            else:
                margin = 0.05 * (high - low or 0.1)
                panel.set_ylim(low - margin, high + margin)
