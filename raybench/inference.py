"""From stored rows to what they show: intervals of the cells, which cells differ, and how much each axis matters."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from raybench import metrics, stats
from raybench.cells import Cells
from raybench.errors import UserError, did_you_mean
from raybench.grid import counted
from raybench.question import (
    Family,
    Question,
    Sample,
    contrast,
    mean_of,
    name_of,
    number_or_none,
    sample,
    single,
)
from raybench.table import Column, Table

MOST_PAIRS = 2_000
"""Beyond these a table of all pairs is not read, and nothing survives their correction."""


def tables(
    cells: Cells,
    suite: str,
    question: Question,
    *,
    pairs: Sequence[tuple[str, str]] = (),
    predictions: pd.DataFrame | None = None,
) -> dict[str, Table]:
    """Return three tables: ``cells`` with their intervals, ``pairs`` and ``effects``.

    Args:
        cells: what `cells.find_cells` found in a suite's results.
        suite: its name.
        pairs: names of cells, such as ``mlp/none``, to be compared; by default all with all.
        predictions: of the test images, where the question is over images: see `sample`.

    Raises:
        UserError: if a pair names no cell.
    """
    samples, missing = sample(cells, question.metric, predictions)
    chosen, too_many = _pairs(cells, pairs)
    family = Family(tuple(contrast(samples[a], samples[b], question) for a, b in chosen), question.level)
    ends = [_ends(one, question) for one in samples]
    drawn = _too_narrow(samples, question) if question.over == "both" else []  # the tests are bootstraps too
    whole = not pairs and any(p is not None for p in family.adjusted())
    letters, without = _letters(samples, chosen, family) if whole else (None, [])
    alone = any(single(samples[a], samples[b], question) for a, b in chosen)
    exact = "; exact McNemar test where both cells have one trial" if alone else ""
    said = f"{question.says()}{exact}; Holm over {counted(family.tested, 'comparison')}, level {question.error}"
    return {
        "cells": Table(
            suite=suite,
            part="cells",
            warnings=cells.warnings,
            title=f"{suite}: {question.metric} of the cells",
            header=(
                metrics.says(question.metric, cells.best),
                "std: sample standard deviation over the seeds (ddof=1); n: finished trials, of those planned where"
                " some are missing",
                _interval_says(question),
                *([f"letters: cells that share one are not told apart ({said})"] if letters else []),
                *cells.header,
            ),
            columns=_cell_columns(cells, question, letters is not None),
            rows=tuple(
                (*labels, len(one.seeds), planned, *_spread(one.values), *ends[number])
                + ((letters[number] or None,) if letters else ())
                for number, (labels, planned, one) in enumerate(zip(cells.labels, cells.planned, samples, strict=True))
            ),
            notes=(
                *_too_narrow(samples, question),
                *_reach(samples, len(chosen), question),
                *_beyond(ends, question),
                *without,
                *too_many,
                *missing,
                *cells.notes,
            ),
        ),
        "pairs": _pairs_table(cells, samples, chosen, family, question, suite, said, (*drawn, *too_many, *missing)),
        "effects": _effects_table(cells, samples, question, suite, missing),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Cells


def _cell_columns(cells: Cells, question: Question, letters: bool) -> tuple[Column, ...]:
    number, interval = question.number, f"{question.percent} interval"
    return (
        *(Column(axis, axis, align="left") for axis in cells.axes),
        Column("n", "n", of="planned"),
        Column("planned", "planned"),
        Column("mean", "mean", number),
        Column("std", "std", number),
        Column("interval_low", "low", number, group=interval),
        Column("interval_high", "high", number, group=interval),
        *([Column("letters", "letters", align="left")] if letters else []),
    )


def _interval_says(question: Question) -> str:
    if question.interval == "t":
        return f"interval: {question.percent}, Student's t over the seeds"
    return f"interval: {question.percent}, percentile {question.drawn()}"


def _spread(values: npt.NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation."""
    return mean_of(values), float(values.std(ddof=1)) if len(values) > 1 else None


def _ends(one: Sample, question: Question) -> tuple[float | None, float | None]:
    """Return the ends of a cell's interval; none where the cell has too few numbers for one."""
    numbers, confidence = one.values, question.confidence
    if question.over == "seeds" and question.interval == "t":
        low, high = stats.mean_interval(numbers, confidence)
    elif question.over == "seeds":
        low, high = stats.bootstrap_interval(numbers, confidence, seed=question.seed)
    elif one.right is None or (question.over == "both" and len(one.right) < 2):
        return None, None
    else:
        both = question.over == "both"
        low, high = stats.accuracy_interval(one.right, confidence, seed=question.seed, seeds_too=both)
    return number_or_none(low), number_or_none(high)


def _beyond(ends: Iterable[tuple[float | None, float | None]], question: Question) -> list[str]:
    """Say where Student's t, which knows no limits, goes beyond those of a share."""
    beyond = sum(low is not None and high is not None and (low < 0 or high > 1) for low, high in ends)
    if question.interval != "t" or metrics.METRICS[question.metric].unit != metrics.SHARE or not beyond:
        return []
    return [f"{counted(beyond, 'interval')} beyond 0 or 1, where no {question.metric} is: Student's t knows no limits"]


def _too_narrow(samples: Sequence[Sample], question: Question) -> list[str]:
    """Say where seeds are drawn from too few."""
    few = min((n for one in samples if (n := len(one.seeds)) > 1), default=10)  # one has no interval
    if question.interval != "bootstrap" or question.over == "images" or few >= 10:
        return []
    return [f"a bootstrap over {counted(few, 'seed')} is too narrow: Student's t over them holds its level"]


def _reach(samples: Sequence[Sample], pairs: int, question: Question) -> list[str]:
    """Say what the smallest number of seeds can show."""
    few = min((len(one.seeds) for one in samples), default=0)
    lines = []
    if question.over == "seeds" and question.test == "welch":
        one = stats.smallest_difference(few, question.confidence)
        many = stats.smallest_difference(few, 1 - question.level / max(1, pairs))
        line = (
            f"{counted(few, 'seed')} can show a difference of {one:.1f} standard deviations or more between two cells"
        )
        if pairs > 1:
            line += f", of {many:.1f} as the first of {pairs:,} comparisons"
        lines.append(line if few > 1 else "a cell has fewer than two seeds: its differences cannot be told from chance")
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# Pairs


def _pairs(cells: Cells, names: Sequence[tuple[str, str]]) -> tuple[list[tuple[int, int]], list[str]]:
    """Return the numbers of the cells to be compared, and a line if there are too many."""
    chosen: dict[frozenset[int], tuple[int, int]] = {}
    for first, second in names:
        pair = _find(cells, first), _find(cells, second)
        if pair[0] == pair[1]:
            raise UserError(f"--pairs {first} {second}: is one cell: name two")
        chosen.setdefault(frozenset(pair), pair)
    if names:
        return [*chosen.values()], []
    number = len(cells.labels)
    count = math.comb(number, 2)
    if count > MOST_PAIRS:
        many = f"{number:,} cells have {count:,} pairs, more than {MOST_PAIRS:,}"
        return [], [f"not compared: {many}: name some with --pairs A B"]
    return list(itertools.combinations(range(number), 2)), []


def _find(cells: Cells, name: str) -> int:
    """Return the number of the cell that is called ``name``, with its axes or without."""
    short, full = [name_of(labels) for labels in cells.labels], _in_full(cells)
    found = [number for number, names in enumerate(zip(short, full, strict=True)) if name in names]
    if not found:
        raise UserError(f"--pairs {name}: is no cell{did_you_mean(name, short[:50])}")
    if len(found) > 1:
        raise UserError(
            f"--pairs {name}: is the name of {len(found)} cells: name one with its axes, such as {full[found[0]]}"
        )
    return found[0]


def _in_full(cells: Cells) -> list[str]:
    """Return the names of the cells with their axes: ``model=mlp,augmentation=none``."""
    return [
        ",".join(f"{axis}={name_of([label])}" for axis, label in zip(cells.axes, labels, strict=True))
        for labels in cells.labels
    ]


def _names(cells: Cells) -> list[str]:
    """Return what each cell is called: ``mlp/none``, and with its axes where others are called so too."""
    short = [name_of(labels) for labels in cells.labels]
    times = Counter(short)
    return [one if times[one] == 1 else full for one, full in zip(short, _in_full(cells), strict=True)]


def _letters(
    samples: Sequence[Sample], pairs: Sequence[tuple[int, int]], family: Family
) -> tuple[list[str] | None, list[str]]:
    """Return the letters of the cells, "a" with the highest mean, and a line on those that have none.

    To share a letter or not says something of a pair, so only cells that were tested with each other have letters:
    none has one that was tested with no other, nor then one that is left in a pair that was not tested.
    """
    adjusted = family.adjusted()
    untested = [pair for pair, p in zip(pairs, adjusted, strict=True) if p is None]
    tested = {cell for pair, p in zip(pairs, adjusted, strict=True) if p is not None for cell in pair}
    tested -= {cell for pair in untested if tested.issuperset(pair) for cell in pair}
    order = sorted(tested, key=lambda cell: (-samples[cell].values.mean(), cell))
    place = {cell: rank for rank, cell in enumerate(order)}
    different = np.zeros((len(order), len(order)), bool)
    for (a, b), p in zip(pairs, adjusted, strict=True):
        if p is not None and p < family.level and a in place and b in place:
            different[place[a], place[b]] = different[place[b], place[a]] = True
    letters = stats.tie_letters(different) if len(order) > 1 else None
    none = f": {counted(len(samples) - len(order), 'cell')} of theirs without a letter" if letters else ""
    notes = [f"{len(untested):,} of {counted(len(pairs), 'pair')} not tested{none}"] if untested else []
    if letters is None:
        return None, notes
    return [letters[place[cell]] if cell in place else "" for cell in range(len(samples))], notes


def _pairs_table(
    cells: Cells,
    samples: Sequence[Sample],
    pairs: Sequence[tuple[int, int]],
    family: Family,
    question: Question,
    suite: str,
    said: str,
    notes: Iterable[str],
) -> Table:
    number, interval = f"+{question.number}", f"{question.percent} interval"
    names = _names(cells)
    rows = tuple(
        (
            *(names[cell] for cell in (a, b)),
            *(len(samples[cell].seeds) for cell in (a, b)),
            *map(number_or_none, (one.difference, one.low, one.high, one.p, p)),
            verdict,
        )
        for (a, b), one, p, verdict in zip(
            pairs, family.found, family.adjusted(), family.verdicts("second higher", "first higher"), strict=True
        )
    )
    return Table(
        suite=suite,
        warnings=cells.warnings,
        part="pairs",
        title=f"{suite}: {question.metric}, cell against cell",
        header=(
            f"difference: mean of the second cell minus that of the first; test: {said}",
            *(
                [f"interval: {question.percent}, of this difference alone"]
                if any(one.low is not None for one in family.found)
                else []
            ),
            "not told apart: no evidence of a difference, which is no evidence that there is none",
            metrics.says(question.metric, cells.best),
            *cells.header,
        ),
        columns=(
            Column("first", "first", align="left"),
            Column("second", "second", align="left"),
            Column("first_n", "n", group="first"),
            Column("second_n", "n", group="second"),
            Column("difference", "difference", number),
            Column("interval_low", "low", number, group=interval),
            Column("interval_high", "high", number, group=interval),
            Column("p_value", "p", ".3g"),
            Column("p_holm", "p (Holm)", ".3g"),
            Column("verdict", "verdict", align="left"),
        ),
        rows=rows,
        notes=(*family.notes(), *notes, *cells.notes),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Effects


def _effects_table(
    cells: Cells, samples: Sequence[Sample], question: Question, suite: str, missing: Sequence[str]
) -> Table:
    grid, axes, why = _grid(cells, samples)
    shares = None if grid is None else stats.variance_shares(grid)
    if grid is not None and shares is None:
        why = ["not computed: all values are equal"]
    rows: list[tuple[str | int | float | None, ...]] = []
    if grid is not None and shares:
        names: dict[int | str, str] = {**dict(enumerate(axes)), "interactions": "interactions", "seed": "seed"}
        levels: dict[int | str, int] = {**dict(enumerate(grid.shape[:-1])), "seed": grid.shape[-1]}
        if grid.shape[-1] == 1:
            names["interactions"] = "interactions and seed"
        rows = [(names[key], levels.get(key), share.eta, share.omega) for key, share in shares.items()]
    return Table(
        suite=suite,
        warnings=cells.warnings,
        part="effects",
        title=f"{suite}: how much of the variance of {question.metric} each axis explains",
        header=(
            "eta²: share of the sum of squares (analysis of variance of the full grid, fixed effects); omega²: the same"
            " less what chance adds",
            "interactions: what the cells' means differ by beyond the sum of the axes; seed: what trials of one cell"
            " differ by",
            metrics.says(question.metric, cells.best),
            *cells.header,
        ),
        columns=(
            Column("source", "source", align="left"),
            Column("values", "values"),
            Column("eta", "eta²", ".3f"),
            Column("omega", "omega²", ".3f"),
        ),
        rows=tuple(rows),
        notes=(*why, *missing, *cells.notes),
    )


def _grid(cells: Cells, samples: Sequence[Sample]) -> tuple[npt.NDArray[np.float64] | None, list[str], list[str]]:
    """Return the values as [levels of each axis that varies, seeds], these axes, and lines on what was left out.

    An unbalanced grid has no one answer, so only the seeds that all cells have are used.
    """
    levels = [list(dict.fromkeys(column)) for column in zip(*cells.labels, strict=True)]
    varying = [i for i, found in enumerate(levels) if len(found) > 1 and cells.axes[i] in cells.compared]
    axes = [cells.axes[index] for index in varying]
    if not varying:
        return None, axes, ["not computed: no axis has two values"]
    shape = [len(levels[index]) for index in varying]
    if math.prod(shape) != len(cells.labels):
        return None, axes, [f"not computed: the cells are not the full grid of {' x '.join(axes)}"]
    every = sorted({seed for one in samples for seed in one.seeds})
    shared = [seed for seed in every if all(seed in one.seeds for one in samples)]
    if len(shared) < (1 if len(axes) > 1 else 2):
        return None, axes, [f"not computed: {counted(len(shared), 'seed')} that all cells have"]
    grid = np.empty((*shape, len(shared)))
    for labels, one in zip(cells.labels, samples, strict=True):
        grid[tuple(levels[index].index(labels[index]) for index in varying)] = one.at(shared)
    listed = ", ".join(map(str, shared[:10])) + (", ..." if len(shared) > 10 else "")
    left = [f"over the {counted(len(shared), 'seed')} that all cells have ({listed}), of {len(every)}"]
    return grid, axes, left if len(every) > len(shared) else []
