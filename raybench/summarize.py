"""The honest table: what of a suite's plan is finished, its numbers cell by cell, and what is missing and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from raybench import metrics
from raybench.axes import Label
from raybench.cells import (
    Group,
    as_searched,
    best_of,
    cells_of,
    data_of,
    groups_of,
    listed,
    missing,
    mixtures,
    open_search,
    pooled_in,
    search_axes,
    search_of,
    stored_of,
    unplanned,
    warnings_of,
    winner_axes,
)
from raybench.errors import UserError, did_you_mean
from raybench.grid import Trial, counted
from raybench.metrics import METRICS, PredictionsOf, Rule
from raybench.published import Protocol, published_row, said_of, verdict
from raybench.records import FINISHED
from raybench.suite import Suite
from raybench.table import Column, Table

MEASURED = (
    Column("n", "n", of="planned"),
    Column("planned", "planned"),
    Column("mean", "mean", ".4f"),
    Column("std", "std", ".4f"),
    Column("min", "min", ".4f"),
    Column("max", "max", ".4f"),
    Column("epochs", "epochs", ".1f"),
)
PEEKED = (Column("best_val", "best_val", ".4f"), Column("optimism", "optimism", "+.4f"))
PUBLISHED = {
    key: Column(f"published_{key}", key, format, group="published")
    for key, format in (("n", ""), ("mean", ".4f"), ("std", ".4f"), ("min", ".4f"), ("max", ".4f"), ("epochs", ".1f"))
}
"""Key of a suite's ``reference`` row -> the column that shows it."""
COMPARED = (
    Column("difference", "difference", "+.4f"),
    Column("sigma", "sigma", ".1f", machine=True),
    Column("verdict", "verdict", align="left", brief=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a table shows of a suite's results."""

    rows: tuple[str, ...] = ()
    """Axes whose values label the rows; none for all that are not ``columns``. Trials that differ in others are pooled.
    """
    columns: tuple[str, ...] = ()
    """Axes whose values get a group of columns each."""
    metric: str = "accuracy"
    """What `metrics.find_metric` finds; it is kept by its name there."""
    rule: Rule = "best_val"

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", metrics.find_metric(self.metric))

    @property
    def is_compared(self) -> bool:
        """Whether it shows the number that publications print."""
        return self.metric == "accuracy"


def summarize(
    rows: pd.DataFrame,
    suite: Suite,
    trials: Sequence[Trial],
    view: View | None = None,
    *,
    seeds: Sequence[int] = (),
    epochs: pd.DataFrame | None = None,
    predictions: PredictionsOf | None = None,
) -> Table:
    """Return one row per cell of the plan: how many trials finished, and mean, std, min, max of their accuracies.

    Args:
        rows: what is stored, one row per trial, columns as in `records.TrialRow`; may be empty. Only rows with a
            finished status enter the numbers; rows that are not planned are counted in a note.
        suite: its compare axes, and the search axes with several values, label the rows; a published row of its
            ``reference`` stands beside each cell that has all the labels it names, with a verdict
            (`raybench.published.verdict`).
        trials: the plan, `plan.expand(suite)` or a part of it: decides which cells there are, and their order.
        view: which axes, metric and rule; by default all axes, and the accuracy as it was stored.
        seeds: those that were chosen, `plan.Choice.seeds`; by default all of the suite.
        epochs: rows of ``epochs/``, for the rules ``last`` and ``peek``.
        predictions: `raybench.store.Store.predictions`, for the metric ``macro_f1``.

    Accuracies are shares, 0 to 1: the stored ``test_accuracy``, of the weights of the epoch that was best by
    ``train.best``. std is the sample standard deviation (ddof=1), None for one trial. ``epochs`` is the mean number
    of epochs trained, ``difference`` the measured minus the published mean, ``optimism`` the mean by ``peek`` minus
    that by ``best_val`` of the same trials.

    Raises:
        UserError: if the view names what is no axis, metric or rule, or the rule cannot be followed.
    """
    view = view or View()
    metrics.check(view.metric, view.rule)
    shown_axes = _axes(suite, trials, view)
    groups = list(groups_of(suite, trials, (*shown_axes, *view.columns), seeds))
    shown = [trial for group in groups for trial in group.members]
    stored = stored_of(rows, [group.members for group in groups])
    finished = stored[stored["status"].isin(FINISHED)]
    finished = finished.assign(
        value=metrics.values_of(finished, view.metric, view.rule, epochs, predictions),
        best_val=metrics.values_of(finished, view.metric) if view.rule == "peek" else None,
        tested=_tested(finished, view, epochs),
    )
    if len(finished) and not finished["tested"].any():
        raise UserError(
            "--rule peek: needs the test accuracy of every epoch, and no finished trial has it: run the suite with"
            " --set train.test_every_epoch=true"
        )
    with_value = finished.dropna(subset="value")
    numbers = _numbers(with_value, groups, suite, view)

    beside = [*numbers, *(_as_published(row) for row in suite.reference if suite.draw and view.is_compared)]
    keys = [key for key in PUBLISHED if any(f"published_{key}" in number for number in beside)]
    columns, table = (_pivot if view.columns else _long)(suite, groups, numbers, shown_axes, view, keys)
    pooled = pooled_in(groups)
    return Table(
        suite=suite.name,
        title=", ".join(
            [
                f"{suite.name}: {suite.about}" if suite.about else suite.name,
                *([view.metric] if view.metric != "accuracy" else []),
                *([f"rule {view.rule}"] if view.rule != "best_val" else []),
                *([f"pooled over {' and '.join(pooled)}"] if pooled else []),
                *(["mean ± std (n)"] if view.columns else []),
            ]
        ),
        header=(
            *_header(view, stored, shown or trials, pooled, epochs=any(column.name == "epochs" for column in columns)),
            *search_of(rows, suite, trials, seeds),
            *([said_of(suite.reference)] if any(number.get("sigma") is not None for number in numbers) else []),
        ),
        warnings=(*warnings_of(stored, trials), *_of_rule(view)),
        columns=columns,
        rows=table,
        notes=(
            *as_searched(suite, (*shown_axes, *view.columns)),
            *missing(stored, shown),
            *_without_value(finished, view),
            *_no_optimism(with_value, view),
            *_unequal(with_value, shown, groups),
            *_verdicts(numbers),
            *open_search(rows, suite, trials),
            *mixtures(finished, shown),
            *unplanned(rows, trials),
        ),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Which axes label the rows


def _axes(suite: Suite, trials: Sequence[Trial], view: View) -> tuple[str, ...]:
    """Return the axes that label the rows.

    Raises:
        UserError: if the view names what is no axis, or one twice.
    """
    known = suite.names("compare", "search", "repeat")
    named = [*(("--rows", axis) for axis in view.rows), *(("--columns", axis) for axis in view.columns)]
    for option, axis in named:
        if axis not in known:
            raise UserError(f"{option} {axis}: is no axis of {suite.name}{did_you_mean(axis, known)}")
        if [axis for _, axis in named].count(axis) > 1:
            raise UserError(f"{option} {axis}: is named twice: an axis labels rows or columns")
    if view.rows:
        return view.rows
    cells = cells_of(suite, trials)
    in_columns = (*view.columns, *_winners(suite, view))
    return tuple(axis for axis in (*suite.names("compare"), *search_axes(suite, cells)) if axis not in in_columns)


def _winners(suite: Suite, view: View) -> list[str]:
    """Return the searched axes whose winners stand beside the numbers of a pivot, where each column has its own."""
    of_cells = any(axis in suite.names("compare") for axis in view.columns)
    return [axis for axis in winner_axes(suite) if of_cells and axis not in (*view.rows, *view.columns)]


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def _numbers(with_value: pd.DataFrame, groups: Sequence[Group], suite: Suite, view: View) -> list[dict[str, Any]]:
    """Return the numbers of each group by the names of their columns; those that there are not are None."""
    by_cell = with_value.groupby("cell")
    found = by_cell["value"].agg(["count", "mean", "std", "min", "max"])
    found["epochs"] = by_cell["epochs"].mean()
    if view.rule == "peek":
        found["best_val"] = by_cell["best_val"].agg(lambda values: values.mean(skipna=False))  # of the same trials
        found["optimism"] = (found["mean"] - found["best_val"]).drop(_peeked(with_value), errors="ignore")
    found = found.reindex(range(len(groups))).astype(object)
    protocol = Protocol(suite) if view.is_compared else None
    numbers = []
    for group, measured in zip(groups, found.where(found.notna(), None).to_dict("records"), strict=True):
        number = {str(name): value for name, value in measured.items()}
        number |= {"n": int(number.pop("count") or 0), "planned": group.planned}
        number |= {axis: group.labels.get(axis) for axis in _winners(suite, view)}
        if protocol:
            published = published_row(suite, group.labels)
            number |= _as_published(published)
            if number["mean"] is not None and "mean" in published:
                number["difference"] = number["mean"] - published["mean"]
                why = "; ".join(filter(None, [_not_as_published(group, view), protocol.changed(group.members[0])]))
                number["sigma"], number["verdict"] = verdict(number["n"], number["mean"], number["std"], published, why)
        numbers.append(number)
    return numbers


def _peeked(with_value: pd.DataFrame) -> list[int]:
    """Return the groups whose epochs ``best_val`` has chosen on the test images too."""
    return with_value["cell"][with_value["validation"] == "test"].unique().tolist()


def _as_published(row: Mapping[str, Any]) -> dict[str, Any]:
    return {f"published_{key}": row[key] for key in PUBLISHED if key in row}


def _not_as_published(group: Group, view: View) -> str:
    """Return why a group's numbers are another thing than a cell's of the suite's protocol, or nothing."""
    if view.rule != "best_val":
        return f"rule {view.rule}"
    return f"pooled over {' and '.join(group.pooled)}" if group.pooled else ""


# ---------------------------------------------------------------------------------------------------------------------
# Columns and rows

Grid = tuple[tuple[Column, ...], tuple[tuple[Label | None, ...], ...]]


def _long(
    suite: Suite,
    groups: Sequence[Group],
    numbers: Sequence[Mapping[str, Any]],
    axes: Sequence[str],
    view: View,
    keys: Sequence[str],
) -> Grid:
    """Return a row per group, with a column per number."""
    spec = METRICS[view.metric].format
    shown = [replace(column, format=spec) if column.format == ".4f" else column for column in MEASURED]
    if view.metric == "epochs":
        shown.pop()
    if view.rule == "peek":
        shown += PEEKED
    shown += [PUBLISHED[key] for key in keys]
    shown += COMPARED if "mean" in keys else ()
    rows = [
        (*(group.labels[axis] for axis in axes), *(number.get(column.name) for column in shown))
        for group, number in zip(groups, numbers, strict=True)
    ]
    if suite.draw and not view.rows:  # points are not drawn twice: what was published stands below what was measured
        beside = [published_row(suite, group.labels) for group in groups]
        for published in suite.reference if keys else ():
            if published not in beside:
                alone = _as_published(published)
                rows.append((*(published.get(axis) for axis in axes), *(alone.get(column.name) for column in shown)))
    return (*(Column(axis, axis, align="left") for axis in axes), *shown), tuple(rows)


def _pivot(
    suite: Suite,
    groups: Sequence[Group],
    numbers: Sequence[Mapping[str, Any]],
    axes: Sequence[str],
    view: View,
    keys: Sequence[str],
) -> Grid:
    """Return a row per values of ``axes``, with a group of columns per values of the view's ``columns``."""
    cells: dict[tuple[Label | None, ...], dict[tuple[Label | None, ...], Mapping[str, Any]]] = {}
    across: dict[tuple[Label | None, ...], str] = {}
    for group, number in zip(groups, numbers, strict=True):
        values = tuple(group.labels[axis] for axis in view.columns)
        across[values] = "/".join(map(str, values))
        cells.setdefault(tuple(group.labels[axis] for axis in axes), {})[values] = number
    each, of_axes = _each_value(view, keys), "/".join(view.columns)
    each += [Column(axis, axis, align="left") for axis in _winners(suite, view)]
    columns = [Column(axis, axis, align="left") for axis in axes]
    for name in across.values():
        for column in each:
            alone = len(each) == len(MEASURED) - 1  # then its title can be the value
            columns.append(
                replace(
                    column,
                    name=f"{name}_{column.name}",
                    title=name if alone else column.title,
                    group=of_axes if alone else f"{of_axes} {name}",
                    of=column.of and f"{name}_{column.of}",
                    spread=column.spread and f"{name}_{column.spread}",
                    count=column.count and f"{name}_{column.count}",
                )
            )
    rows = tuple(
        (*labels, *(found.get(values, {}).get(column.name) for values in across for column in each))
        for labels, found in cells.items()
    )
    return tuple(columns), rows


def _each_value(view: View, keys: Sequence[str]) -> list[Column]:
    """Return the columns of one value of a pivot: people see mean, spread and count in one."""
    spec = METRICS[view.metric].format
    title = "measured" if keys else view.rule
    each = [
        replace(column, format=column.format and spec, machine=column.name in ("min", "max"))
        if column.name != "mean"
        else Column("mean", title, spec, spread="std", count="n")
        for column in MEASURED[:-1]
    ]
    if view.rule == "peek":
        each += (replace(PEEKED[0], format=spec, machine=True), replace(PEEKED[1], format=f"+{spec}"))
    for key in keys:
        column = replace(PUBLISHED[key], machine=key in ("min", "max", "epochs"))
        if key == "mean":
            spread, count = (f"published_{part}" if part in keys else "" for part in ("std", "n"))
            column = replace(column, title="published", spread=spread, count=count)
        each.append(column)
    if "mean" in keys:
        each += [replace(column, machine=column.name != "verdict") for column in COMPARED]
    return each


# ---------------------------------------------------------------------------------------------------------------------
# What is said beside the numbers


def _header(
    view: View,
    stored: pd.DataFrame,
    planned: Sequence[Trial],
    pooled: Mapping[str, Sequence[Label | None]],
    *,
    epochs: bool,
) -> list[str]:
    """Say what the numbers are; where ``epochs`` are shown, these too."""
    lines = [
        metrics.says(view.metric, best_of(planned), view.rule),
        "std: sample standard deviation (ddof=1); n: finished trials, of those planned where some are missing"
        + ("; epochs: mean number trained" if epochs else ""),
    ]
    if pooled:
        axes = " and ".join(f"{axis} ({listed(labels)})" for axis, labels in pooled.items())
        lines.append(f"pooled over {axes}: n counts trials of all of them, and std has their differences in it")
    if view.rule == "peek":
        lines.append("optimism: mean by peek minus mean by best_val, of the same trials")
    return [*lines, *data_of(stored, planned)]


def _of_rule(view: View) -> list[str]:
    said = "rule peek: every trial's epoch was chosen on the test images that it is judged on, numbers are optimistic"
    return [said] if view.rule == "peek" else []


def _tested(finished: pd.DataFrame, view: View, epochs: pd.DataFrame | None) -> pd.Series:
    """Return of which trials the rule finds an epoch: all, but ``peek`` needs the test accuracy of every epoch."""
    if view.rule != "peek":
        return pd.Series(True, finished.index)
    assert epochs is not None
    return finished["trial_id"].isin(metrics.chosen_epochs(epochs, view.rule).index)


def _without_value(finished: pd.DataFrame, view: View) -> list[str]:
    """Say why finished trials are in no number."""
    tested = finished["tested"]
    why = {
        "peek": f"no finite {view.metric} of the epoch with the best test accuracy",
        "last": f"no finite {view.metric} of the last epoch",
        "best_val": "no readable predictions" if view.metric == "macro_f1" else f"no finite {view.metric}",
    }
    reasons = {"not tested after every epoch (train.test_every_epoch)": ~tested}
    reasons[why[view.rule]] = tested & finished["value"].isna()
    return [
        f"{counted(n, 'finished trial')} in no number: {reason}"
        for reason, which in reasons.items()
        if (n := int(which.sum()))
    ]


def _no_optimism(with_value: pd.DataFrame, view: View) -> list[str]:
    """Say where there is nothing to compare ``peek`` with."""
    if view.rule != "peek":
        return []
    reasons = {
        "with validation = test, best_val has peeked as well": len(_peeked(with_value)),
        f"a trial has no finite {view.metric} by best_val": with_value["cell"][with_value["best_val"].isna()].nunique(),
    }
    return [f"no optimism in {counted(n, 'mean')}: {reason}" for reason, n in reasons.items() if n]


def _unequal(with_value: pd.DataFrame, shown: Sequence[Trial], groups: Sequence[Group]) -> list[str]:
    """Say where the cells that are pooled do not have as many trials each: the mean leans to those with more."""
    behind = Counter((shown[index].cell, shown[index].point) for index in with_value.index)
    unequal = 0
    for group in groups:
        if group.pooled:
            unequal += len({behind[cell] for cell in {(trial.cell, trial.point) for trial in group.members}}) > 1
    return [f"{counted(unequal, 'mean')} pooled from cells of unequal n: those with more count more"] if unequal else []


def _verdicts(numbers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say why measured and published numbers were not compared: a line per reason."""
    said = Counter(text for number in numbers if (text := number.get("verdict")) and ":" in text)
    return [f"{text} ({counted(n, 'cell')})" for text, n in said.items()]
