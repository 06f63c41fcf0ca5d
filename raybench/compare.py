"""Two results side by side: what changed in code, data, versions and settings, and which cells differ beyond noise."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from raybench.axes import Label
from raybench.cells import Cells, find_cells, listed
from raybench.errors import UserError
from raybench.grid import Trial, counted, differences
from raybench.metrics import METRICS, says
from raybench.question import Family, Question, Sample, contrast, mean_of, name_of, number_or_none, sample
from raybench.records import OWN_COLUMN, TrialRow, measured_columns
from raybench.suite import Suite
from raybench.table import Column, Table

SURROUNDINGS = (
    *("git_commit", "git_dirty", "raybench_version", "dataset_fingerprint", "weights_fingerprint"),
    *("python_version", "torch_version", "torchvision_version", "timm_version", "numpy_version", "ray_version"),
    *("device", "host"),
)
"""Columns that say what computed a trial, and from what."""
NAMES = (*OWN_COLUMN, "trial_id", "suite", "stage", "draw", "axes", "settings", "schema_version")
"""Columns that say what a trial is, and not what came out of it: its id stands for its settings."""
OUTCOMES = [f.name for f in dataclasses.fields(TrialRow) if f.name not in {*NAMES, *SURROUNDINGS, *measured_columns()}]
"""What the same trial must repeat to the last bit."""

Key = tuple[Label | None, ...]
"""Labels of the axes by which cells are matched."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two results."""

    name: str
    """As the user called it."""
    suite: Suite
    rows: pd.DataFrame
    trials: Sequence[Trial]
    seeds: Sequence[int] = ()
    """Those that were chosen; by default all of the suite."""


@dataclass(frozen=True, slots=True)
class Comparison:
    tables: dict[str, Table]
    """``changes`` and ``cells``."""
    differs: bool
    """Whether any cell differs beyond noise."""


def compare(first: Side, second: Side, question: Question) -> Comparison:
    """Return what changed from ``first`` to ``second``.

    Two cells are the same if all axes that label cells on both sides have the same labels. An axis of one side alone is
    no obstacle if it has one label there; nor are searched axes, where each cell shows its winner.

    Raises:
        UserError: if the cells cannot be matched, or none is on both sides.
    """
    sides = (first, second)
    found = tuple(find_cells(side.rows, side.suite, side.trials, side.seeds) for side in sides)
    places = _places(sides, found)
    both = [key for key in places[0] if key in places[1]]
    if not both:
        raise UserError(
            f"{first.name} and {second.name} have no cell in common: one has {name_of(next(iter(places[0])))}, for"
            f" example, the other {name_of(next(iter(places[1])))}"
        )
    numbers, differs = _cells_table(sides, found, places, question)
    return Comparison({"changes": _changes_table(sides, found, places, both), "cells": numbers}, differs)


def _shared_axes(found: Sequence[Cells]) -> list[str]:
    """Return the axes by which a cell is found again: winners of a search may have changed."""
    first, second = found
    return [axis for axis in first.compared if axis in second.compared]


def _places(sides: Sequence[Side], found: Sequence[Cells]) -> list[dict[Key, int]]:
    """Return for each side the number of every cell."""
    shared = _shared_axes(found)
    places = []
    for side, cells in zip(sides, found, strict=True):
        for axis in cells.compared:
            if axis not in shared and len({labels[cells.axes.index(axis)] for labels in cells.labels}) > 1:
                raise UserError(f"{side.name}: its cells differ in {axis}, which is no axis of the other results")
        at = [cells.axes.index(axis) for axis in shared]
        places.append({tuple(labels[i] for i in at): number for number, labels in enumerate(cells.labels)})
    return places


# ---------------------------------------------------------------------------------------------------------------------
# What changed


def _changes_table(
    sides: Sequence[Side], found: Sequence[Cells], places: Sequence[Mapping[Key, int]], both: Sequence[Key]
) -> Table:
    rows: list[tuple[str | int | None, ...]] = []
    same = []
    for column in SURROUNDINGS:
        values = [cells.finished[column].dropna().unique().tolist() for cells in found]
        if {*values[0]} != {*values[1]}:
            rows.append((column, *(listed(map(str, sorted(side))) or None for side in values), None))
        elif values[0]:
            same.append(f"{column} {listed(map(str, sorted(values[0])))}")
    rows += _settings(found, places, both)
    dirty = any(cells.finished["git_dirty"].eq(True).any() for cells in found)
    return Table(
        suite=sides[0].suite.name,
        part="changes",
        title=f"what changed from {sides[0].name} to {sides[1].name}",
        header=(*(f"the same on both sides: {line}" for line in [", ".join(same)] if line),),
        warnings=_said(cells.warnings for cells in found),
        columns=(
            Column("what", "what", align="left"),
            Column("first", "first", align="left"),
            Column("second", "second", align="left"),
            Column("cells", "cells"),
        ),
        rows=tuple(rows),
        notes=(
            *([] if rows else ["nothing that is stored of code, data, versions, devices and settings changed"]),
            *(["git_dirty: files differed from the commit, so equal commits need not be equal code"] if dirty else []),
        ),
    )


def _settings(
    found: Sequence[Cells], places: Sequence[Mapping[Key, int]], both: Sequence[Key]
) -> list[tuple[str | int | None, ...]]:
    """Return the settings in which cells of the same labels differ: the key, both values, and in how many cells."""
    changed: dict[str, list[tuple[str, str]]] = {}
    for key in both:
        one, other = (cells.members[place[key]] for cells, place in zip(found, places, strict=True))
        if one and other and one[0].settings != other[0].settings:
            for path, old, new in differences(one[0].settings, other[0].settings):
                changed.setdefault(path, []).append((old, new))
    return [
        (path, listed(old for old, _ in values), listed(new for _, new in values), len(values))
        for path, values in changed.items()
    ]


def _said(lines: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the lines of both sides, once where they are the same."""
    first, second = lines
    return (
        *(line if line in second else f"first: {line}" for line in first),
        *(f"second: {line}" for line in second if line not in first),
    )


# ---------------------------------------------------------------------------------------------------------------------
# What differs


def _cells_table(
    sides: Sequence[Side], found: Sequence[Cells], places: Sequence[Mapping[Key, int]], question: Question
) -> tuple[Table, bool]:
    shared, repeated = _shared(found)
    # what the same trial need not repeat, such as its seconds, says nothing of equal cells
    is_measured = METRICS[question.metric].column in measured_columns()
    equal = set() if is_measured else _equal_cells(found, places, repeated)
    (old, old_lines), (new, new_lines) = (sample(cells, question.metric) for cells in found)
    tested = [key for key in places[0] if key in places[1] and key not in equal]
    family = Family(
        tuple(contrast(old[places[0][key]], new[places[1][key]], question) for key in tested), question.level
    )
    adjusted = family.adjusted()
    results = dict(
        zip(tested, zip(family.found, adjusted, family.verdicts("higher", "lower"), strict=True), strict=True)
    )
    rows, verdicts = [], []
    for key in dict.fromkeys([*places[0], *places[1]]):
        numbers: tuple[float | None, ...] = (None,) * 5
        if key in results:
            one, p, verdict = results[key]
            numbers = tuple(map(number_or_none, (one.difference, one.low, one.high, one.p, p)))
        elif key in equal:
            verdict, numbers = "identical", (0.0, *numbers[1:])
        else:
            verdict = f"only in the {'first' if key in places[0] else 'second'}"
        beside = (_numbers(key, *side) for side in zip(found, (old, new), places, strict=True))
        rows.append((*key, *itertools.chain(*beside), *numbers, verdict))
        verdicts.append(verdict.partition(":")[0])
    table = Table(
        suite=sides[0].suite.name,
        part="compare",
        title=f"{question.metric} in {sides[0].name} (first) and {sides[1].name} (second)",
        header=(
            f"test: {question.says()}; Holm over {counted(family.tested, 'comparison')}, level {question.error}"
            if tested
            else "no cell had to be tested",
            "difference: mean of the second minus that of the first; higher, lower: beyond noise"
            + ("" if is_measured else "; identical: all trials are, to the last bit"),
            *_said((says(question.metric, cells.best), *cells.header) for cells in found),
        ),
        warnings=_said(cells.warnings for cells in found),
        columns=_columns(_shared_axes(found), question),
        rows=tuple(rows),
        notes=(
            f"cells: {', '.join(f'{number:,} {verdict}' for verdict, number in Counter(verdicts).items())}",
            shared,
            *family.notes(),
            *_said((tuple(old_lines), tuple(new_lines))),
            *_said(cells.notes for cells in found),
        ),
    )
    return table, any(p is not None and p < family.level for p in adjusted)


def _numbers(
    key: Key, cells: Cells, samples: Sequence[Sample], place: Mapping[Key, int]
) -> tuple[int | float | None, ...]:
    """Return n, the number planned and the mean of a cell on one side."""
    if key not in place:
        return None, None, None
    one = samples[place[key]]
    return len(one.seeds), cells.planned[place[key]], mean_of(one.values)


def _columns(axes: Sequence[str], question: Question) -> tuple[Column, ...]:
    number = question.number
    interval = f"{question.percent} interval"
    return (
        *(Column(axis, axis, align="left") for axis in axes),
        *(
            column
            for side in ("first", "second")
            for column in (
                Column(f"{side}_n", "n", group=side, of=f"{side}_planned"),
                Column(f"{side}_planned", "planned"),
                Column(f"{side}_mean", "mean", number, group=side),
            )
        ),
        Column("difference", "difference", f"+{number}"),
        Column("interval_low", "low", f"+{number}", group=interval),
        Column("interval_high", "high", f"+{number}", group=interval),
        Column("p_value", "p", ".3g"),
        Column("p_holm", "p (Holm)", ".3g"),
        Column("verdict", "verdict", align="left"),
    )


def _shared(found: Sequence[Cells]) -> tuple[str, set[Any]]:
    """Return a line on the trials that finished on both sides, and the ids of those that repeat to the last bit."""
    one, other = (cells.finished.set_index("trial_id") for cells in found)
    ids = one.index.intersection(other.index)
    if ids.empty:
        return "no trial is the same on both sides: settings or seeds differ", set()
    old, new = (side.loc[ids, OUTCOMES].astype(object) for side in (one, other))
    differ = (old != new) & ~(old.isna() & new.isna())
    repeated = ids[~differ.any(axis=1)]
    line = f"{len(repeated):,} of {counted(len(ids), 'shared trial')} {'is' if len(ids) == 1 else 'are'} identical"
    line += " to the last bit"
    if len(repeated) < len(ids):
        names = {trial.id: trial.name for members in found[0].members for trial in members}
        first = names[ids[differ.any(axis=1)][0]]
        line += f"; the others differ in {listed(differ.columns[differ.any()])}, the first {first}"
    return line, set(repeated)


def _equal_cells(found: Sequence[Cells], places: Sequence[Mapping[Key, int]], repeated: set[Any]) -> set[Key]:
    """Return the cells that have the same finished trials on both sides, each with the same bits."""
    sets = [{cell: set(ids) for cell, ids in cells.finished.groupby("cell")["trial_id"]} for cells in found]
    one, other = ({key: sets[side].get(place[key]) for key in place} for side, place in enumerate(places))
    return {key for key, ids in one.items() if ids and ids == other.get(key) and ids <= repeated}
