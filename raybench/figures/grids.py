"""Figures of the axes of a suite: distributions per value, heat maps, and the ranking of the cells."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raybench.axes import Label
from raybench.errors import UserError
from raybench.figures.results import (
    CELL,
    METRICS,
    VALUE,
    Results,
    axes,
    cells,
    check_axis,
    check_metric,
    doubts,
    listed_axes,
    name_of,
    titled,
    values,
    written,
)
from raybench.figures.style import COLORS, COLUMN, HEAT, PAGE, below, broken, finish, heading, on, sheet, ticks
from raybench.stats import mean_interval

# ---------------------------------------------------------------------------------------------------------------------
# Data


def labels_of(results: Results, axis: str) -> list[Label]:
    """Return the values of an axis among the trials in `cells`, in the suite's order; drawn numbers ascend."""
    found = list(dict.fromkeys(trial.labels[axis] for cell in cells(results) for trial in cell.trials))
    listed = list(results.suite.axis(axis).labels)
    if all(isinstance(label, int | float) for label in found) and not listed:
        return sorted(found, key=float)
    return sorted(found, key=lambda label: listed.index(label) if label in listed else len(listed))


def pivot(frame: pd.DataFrame, rows: str, columns: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the mean of `VALUE` for each pair of labels of two axes, and how many trials it is of."""
    of = frame.groupby([rows, columns], sort=False)[VALUE]
    return of.mean().unstack(columns), of.size().unstack(columns).fillna(0).astype(int)


def ranked(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row per cell of ``frame``, the best mean first: ``cell``, ``n``, ``mean``, ``low`` and ``high``.

    The ends are Student's 95 % t interval for the mean (`raybench.stats.mean_interval`), NaN for one trial.
    """
    found = []
    for number, group in frame.groupby(CELL):
        low, high = mean_interval(list(group[VALUE]))
        found.append((number, len(group), group[VALUE].mean(), low, high))
    table = pd.DataFrame(found, columns=["cell", "n", "mean", "low", "high"])
    return table.sort_values("mean", ascending=False, kind="stable", ignore_index=True)


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def box(results: Results, *, axis: str = "", metric: str = "test_accuracy") -> Figure:
    """Box and strip plot of the trials that have each value of an axis, or of every axis, a panel each.

    Args:
        axis: only this axis; ``seed`` is one too.
        metric: a column of the results, by default the test accuracy.
    """
    metric = check_metric(metric)
    frame = values(results, metric)
    names = [check_axis(results, axis, "axis")] if axis else listed_axes(results)
    every = {name: labels_of(results, name) for name in names}
    heights = [0.3 * len(labels) + 0.45 for labels in every.values()]
    figure = Figure(figsize=(PAGE * 0.7, sum(heights) + 0.3), layout="constrained")
    grid = figure.subplots(len(names), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for panel, (name, labels) in zip(grid, every.items(), strict=True):
        groups = [frame[VALUE][frame[name] == label].to_numpy() for label in labels]
        _boxes(panel, groups)
        panel.set_yticks(
            range(len(labels)),
            [f"{written(label)}  n={len(group)}" for label, group in zip(labels, groups, strict=True)],
        )
        panel.set_title(name, loc="left")
        panel.grid(axis="y", visible=False)
    grid[-1].set_xlabel(titled(metric, " "))
    said = "box: quartiles and median; whiskers: min and max; dots: trials; diamond: mean"
    if len(axes(results)) > 1:
        said += "; each box pools the values of all other axes"
    title = f"{results.suite.name}: {METRICS[metric][0]} by {axis or 'the value of each axis'}"
    return finish(figure, title, [said, *doubts(results, metric)])


def _boxes(panel: Axes, groups: Sequence[np.ndarray]) -> None:
    """Draw a box for each group of values, one below the other."""
    filled = [(number, group) for number, group in enumerate(groups) if len(group)]
    panel.boxplot(
        [group for _, group in filled],
        positions=[number for number, _ in filled],
        orientation="horizontal",
        widths=0.6,
        whis=(0, 100),
        patch_artist=True,
        boxprops={"facecolor": "0.9", "linewidth": 0.8},
        medianprops={"color": "black", "linewidth": 1.2},
        whiskerprops={"linewidth": 0.8},
        capprops={"linewidth": 0.8},
        manage_ticks=False,
    )
    for number, group in filled:
        aside = np.linspace(-0.18, 0.18, len(group)) if len(group) > 1 else np.zeros(1)
        panel.plot(group, number + aside, "o", color=COLORS[0], markersize=2.5, alpha=0.6, markeredgewidth=0)
        panel.plot(group.mean(), number, "D", color=COLORS[1], markersize=4, markeredgecolor="white", zorder=4)
    panel.set_ylim(len(groups) - 0.4, -0.6)


def heatmap(results: Results, *, rows: str = "", columns: str = "", metric: str = "test_accuracy") -> Figure:
    """Heat map of two axes: the mean of the trials with each pair of values, and how many they are.

    Args:
        rows, columns: the axes; by default the first two that have several values.
        metric: a column of the results, by default the test accuracy.
    """
    return _maps(results, {"rows": rows, "columns": columns}, metric)


def grid(
    results: Results, *, rows: str = "", columns: str = "", panels: str = "", metric: str = "test_accuracy"
) -> Figure:
    """Grid of three axes: a heat map of two of them for each value of the third.

    Args:
        rows, columns, panels: the axes; by default the first three that have several values.
        metric: a column of the results, by default the test accuracy.
    """
    return _maps(results, {"rows": rows, "columns": columns, "panels": panels}, metric)


def _maps(results: Results, asked: dict[str, str], metric: str) -> Figure:
    """Draw a heat map of ``rows`` and ``columns``, for each value of ``panels`` if that is asked for."""
    metric = check_metric(metric)
    frame = values(results, metric)
    chosen = [check_axis(results, name, option) for option, name in asked.items() if name]
    if len(set(chosen)) < len(chosen):
        raise UserError(
            f"{' '.join(f'--{option} {name}' for option, name in asked.items() if name)}: name different axes"
        )
    free = (name for name in listed_axes(results) if name not in chosen)
    at = {option: name or next(free) for option, name in asked.items()}
    rows, columns, third = at["rows"], at["columns"], at.get("panels", "")
    down, across = labels_of(results, rows), labels_of(results, columns)
    several: Sequence[Label | None] = labels_of(results, third) if third else [None]

    width = PAGE if third else max(COLUMN, min(PAGE, 1.3 + 0.62 * len(across)))
    in_row = min(len(several), 3)
    beside = 0.9 + max(len(written(label)) for label in down) * 0.058  # inches of the labels, and of the scale
    room = (width - beside) / (in_row * len(across))
    tall = 0.34 if room > 0.42 else 0.28
    words = [written(one) for one in across]
    height = max(1.5, tall * len(down) + 0.55) + below(words, room)
    figure, every = sheet(len(several), columns=in_row, width=width, height=height)
    scale = Normalize(*_span(frame, [name for name in (rows, columns, third) if name]))
    for number, (panel, label) in enumerate(zip(every, several, strict=True)):
        part = frame if label is None else frame[frame[third] == label]
        means, counts = pivot(part, rows, columns)
        _heat(
            panel,
            means.reindex(down, columns=across),
            counts.reindex(down, columns=across).fillna(0),
            scale,
            room,
            metric,
        )
        ticks(panel, words, room, [place + 0.5 for place in range(len(across))])
        panel.set_yticks(np.arange(len(down)) + 0.5, [written(one) for one in down])
        panel.tick_params(length=0, labelleft=number % in_row == 0)
        panel.set_xlabel(broken(columns, max(12, int(room * len(across) / 0.062))))
        panel.set_ylabel(broken(rows, int(tall * len(down) / 0.062)) if number % in_row == 0 else "")
        if label is not None:
            heading(panel, f"{third} = {written(label)}", room * len(across))
    bar = figure.colorbar(matplotlib.cm.ScalarMappable(scale, HEAT), ax=every, aspect=30, fraction=0.05, pad=0.02)
    bar.set_label(f"mean {titled(metric)}")
    bar.outline.set_visible(False)
    others = [name for name in axes(results) if name not in at.values()]
    said = f"each mean with n, the trials it is of: all seeds{''.join(f' and values of {name}' for name in others)}"
    title = (
        f"{results.suite.name}: {METRICS[metric][0]} by {rows} and {columns}{f', for each {third}' if third else ''}"
    )
    return finish(figure, title, [said, *doubts(results, metric)])


def _span(frame: pd.DataFrame, names: Sequence[str]) -> tuple[float, float]:
    means = frame.groupby(list(names))[VALUE].mean()
    low, high = float(means.min()), float(means.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _heat(panel: Axes, means: pd.DataFrame, counts: pd.DataFrame, scale: Normalize, room: float, metric: str) -> None:
    """Draw one heat map: each mean as a number and, below it, n, and a dash where there is none."""
    colors = matplotlib.colormaps[HEAT]
    panel.pcolormesh(
        np.ma.masked_invalid(means.to_numpy(float)), cmap=HEAT, norm=scale, edgecolors="white", linewidth=1
    )
    panel.set_facecolor("0.95")
    panel.grid(visible=False)
    panel.set_ylim(len(means), 0)
    panel.spines[:].set_visible(False)
    size = min(7.0, room * 72 / 3.4)
    sizes = counts.to_numpy(dtype=int)
    for (down, across), mean in np.ndenumerate(means.to_numpy(dtype=float)):
        number = sizes[down, across]
        if math.isnan(mean):
            panel.text(across + 0.5, down + 0.5, "–", ha="center", va="center", color="0.4")
            continue
        text = f"{mean:.3f}" if metric.endswith(("accuracy", "loss")) else f"{mean:.3g}"
        color = on(colors(scale(mean)))
        panel.text(
            across + 0.5,
            down + 0.5,
            f"{text}\nn={number}",
            ha="center",
            va="center",
            color=color,
            fontsize=size,
            linespacing=1.1,
        )


def ranking(results: Results, *, metric: str = "test_accuracy") -> Figure:
    """Ranking of the cells by their mean, with 95 % t intervals, n, and every trial.

    Args:
        metric: a column of the results, by default the test accuracy.
    """
    metric = check_metric(metric)
    frame = values(results, metric)
    table = ranked(frame)
    every, names = cells(results), axes(results)
    written_names = [broken(name_of(every[int(number)].labels, names), 34) for number in table["cell"]]
    line = 0.1 + 0.115 * max(name.count("\n") + 1 for name in written_names)
    figure, (panel,) = sheet(1, columns=1, width=PAGE * 0.8, height=0.75 + line * len(table))
    at = np.arange(len(table))
    for y, number in zip(at, table["cell"], strict=True):
        group = frame[VALUE][frame[CELL] == number]
        panel.plot(group, np.full(len(group), y + 0.27), "o", color="0.45", markersize=2.5, markeredgewidth=0)
    errors = np.vstack([table["mean"] - table["low"], table["high"] - table["mean"]])
    panel.errorbar(table["mean"], at, xerr=np.nan_to_num(errors), fmt="D", color=COLORS[0], capsize=2.5, markersize=4)
    low, high = float(frame[VALUE].min()), float(frame[VALUE].max())
    margin = 0.6 * (high - low or 0.1)
    cut = bool((table["low"] < low - margin).any() or (table["high"] > high + margin).any())
    if cut:
        panel.set_xlim(low - margin, high + margin)
    panel.set_yticks(at, written_names)
    panel.set_ylim(len(table) - 0.4, -0.6)
    panel.set_xlabel(titled(metric, " "))
    beside = panel.twinx()
    beside.set_ylim(panel.get_ylim())
    beside.grid(visible=False)
    beside.spines[:].set_visible(False)
    digits = ".4f" if metric.endswith(("accuracy", "loss")) else ".4g"
    beside.set_yticks(at, [f"{mean:{digits}}  n={n}" for mean, n in zip(table["mean"], table["n"], strict=True)])
    beside.tick_params(length=0)
    handles = [
        Line2D([], [], marker="D", color=COLORS[0], markersize=4, label="mean and 95 % t interval"),
        Line2D([], [], marker="o", linestyle="", color="0.45", markersize=2.5, label="trials"),
    ]
    said = []
    if (table["n"] == 1).any():
        said.append("one trial has no interval")
    if cut:
        said.append("intervals that reach the edge go on beyond it")
    best_first = "the highest first" if not metric.endswith("loss") else "the highest loss first"
    return finish(
        figure,
        f"{results.suite.name}: cells by mean {METRICS[metric][0]}, {best_first}",
        [*said, *doubts(results, metric)],
        handles,
    )
