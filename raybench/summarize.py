"""The honest table: what of a suite's plan is finished, its accuracies cell by cell, and what is missing and why."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from raybench import plan
from raybench.axes import Label
from raybench.plan import Trial
from raybench.records import FINISHED
from raybench.suite import Reference, Suite
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
PUBLISHED = {
    key: Column(f"published_{key}", key, format, group="published")
    for key, format in (("n", ""), ("mean", ".4f"), ("std", ".4f"), ("min", ".4f"), ("max", ".4f"), ("epochs", ".1f"))
}
"""Key of a suite's ``reference`` row -> the column that shows it."""
DIFFERENCE = Column("difference", "difference", "+.4f")
PROVENANCE = ("device", "dataset_fingerprint", "raybench_version", "torch_version")
"""What should be one and the same behind all trials of a cell."""
NUMBERS = ("test_accuracy", "epochs", "epochs_run", "train_images", "validation_images", "test_images")
TEXTS = ("status", "error_class", "error", "validation", *PROVENANCE)


def summarize(rows: pd.DataFrame, suite: Suite, trials: Sequence[Trial]) -> Table:
    """Return one row per cell of the plan: how many trials finished, and mean, std, min, max of their accuracies.

    Args:
        rows: what is stored, one row per trial, columns as in `records.TrialRow`; may be empty. Only rows with a
            finished status enter the numbers; rows that are not planned are counted in a note.
        suite: its compare axes, and the search axes with several values, label the rows; a published row of its
            ``reference`` stands beside each cell that has all the labels it names.
        trials: the plan, `plan.expand(suite)` or a part of it: decides which cells there are, and their order.

    Accuracies are shares, 0 to 1: the stored ``test_accuracy``, of the weights of the epoch that was best by
    ``train.best``. std is the sample standard deviation (ddof=1), None for one trial. ``epochs`` is the mean number
    of epochs trained, ``difference`` the measured minus the published mean.
    """
    cells = _cells(suite, trials)
    shown = [trial for _, members in cells for trial in members]
    stored = _stored(rows, [members for _, members in cells])
    finished = stored[stored["status"].isin(FINISHED)]

    by_cell = finished.groupby("cell")
    numbers = by_cell["test_accuracy"].agg(["count", "mean", "std", "min", "max"])
    numbers["epochs"] = by_cell["epochs"].mean()
    numbers = numbers.reindex(range(len(cells))).astype(object)
    measured = numbers.where(numbers.notna(), None).itertuples(index=False)

    search = suite.names("search") if suite.searches else []
    search = [axis for axis in search if suite.confirm == "winner" or len({labels[axis] for labels, _ in cells}) > 1]
    axes = [*suite.names("compare"), *search]
    keys = [key for key in PUBLISHED if any(key in reference for reference in suite.reference)]
    seeds = len(suite.axis("seed").labels)
    table: list[tuple[Label | None, ...]] = []
    beside: list[Mapping[str, Any]] = []
    for (labels, members), (count, mean, *spread) in zip(cells, measured, strict=True):
        published = _published(suite, labels)
        beside.append(published)
        values = [*(labels[axis] for axis in axes), int(count or 0), len(members) or seeds, mean, *spread]
        values += [published.get(key) for key in keys]
        if "mean" in keys:
            values.append(mean - published["mean"] if mean is not None and "mean" in published else None)
        table.append(tuple(values))
    for published in suite.reference if suite.draw else ():
        if published not in beside:  # points are not drawn twice: what was published stands below what was measured
            blank = [None] * len(MEASURED), [published.get(key) for key in keys], [None] * ("mean" in keys)
            table.append((*(published.get(axis) for axis in axes), *itertools.chain(*blank)))

    return Table(
        suite=suite.name,
        title=f"{suite.name}: {suite.about}" if suite.about else suite.name,
        header=(*_header(stored, shown or trials), *_search(rows, suite, trials)),
        warnings=_warnings(stored, trials),
        columns=(
            *(Column(axis, axis, align="left") for axis in axes),
            *MEASURED,
            *(PUBLISHED[key] for key in keys),
            *([DIFFERENCE] if "mean" in keys else []),
        ),
        rows=tuple(table),
        notes=(
            *(
                f"{axis} is searched: each value is shown as it is, none was chosen and confirmed"
                for axis in search
                if suite.confirm == "none"
            ),
            *_missing(stored, shown),
            *_open_search(rows, suite, trials),
            *_mixtures(finished, shown),
            *_unplanned(rows, trials),
        ),
    )


def _cells(suite: Suite, trials: Sequence[Trial]) -> list[tuple[dict[str, Label | None], list[Trial]]]:
    """Return the rows of the table: their labels, and the trials whose accuracies they show.

    Where winners are confirmed a row is a cell with its winner, and has no labels of ``search`` until one is known.
    """
    names = suite.names("compare", "search")
    if not suite.searches or suite.confirm == "none":
        return [(dict(zip(names, (*cell, *point), strict=True)), group) for cell, point, group in plan.cells(trials)]
    rows: list[tuple[dict[str, Label | None], list[Trial]]] = []
    for cell, members in plan.by_cell(trials).items():
        confirm = [trial for trial in members if trial.stage == "confirm"]
        point = confirm[0].point if confirm else [None] * len(suite.names("search"))
        rows.append((dict(zip(names, (*cell, *point), strict=True)), confirm))
    return rows


def _search(rows: pd.DataFrame, suite: Suite, trials: Sequence[Trial]) -> list[str]:
    """Say how the points of a search came about, how a winner was found, and what that cost."""
    if not suite.searches:
        return []
    first = trials[0]
    search = [trial for trial in trials if trial.stage == "search" or trial.seed == first.seed]
    points = _listed(len({trial.point for trial in group}) for group in plan.by_cell(search).values())
    axes, drawn = ", ".join(suite.names("search")), " drawn by Optuna" if suite.draw else ""
    lines = []
    if suite.confirm == "winner":
        lines.append(
            f"{axes}: in each cell the best of {points} points{drawn} by {first.settings['train']['best']} with seed"
            f" {first.seed}, trained with every seed; the other points are in no number"
        )
    ended = _stored(rows, [search]).dropna(subset="status")
    cost = f"search: {_count(len(ended), 'trial')}{drawn}, {_count(int(_epochs_run(ended).sum()), 'epoch')}"
    pruned = ended[ended["status"] == "pruned"]
    if suite.prune:
        planned = sum(search[index].settings["train"]["epochs"] for index in pruned.index)
        saved = f"{planned - int(_epochs_run(pruned).sum()):,}"
        cost += f"; {len(pruned)} pruned by {suite.prune.name}, {saved} of their epochs not trained"
    return [*lines, cost]


def _epochs_run(stored: pd.DataFrame) -> pd.Series:
    return stored["epochs_run"].fillna(0)


def _open_search(rows: pd.DataFrame, suite: Suite, trials: Sequence[Trial]) -> list[str]:
    """Say what is missing of a search whose winners are confirmed."""
    search = [trial for trial in trials if trial.stage == "search"]
    if not search or suite.confirm == "none":
        return []
    lines = [f"search: {line}" for line in _missing(_stored(rows, [search]), search) if not line.endswith("pruned")]
    if not any(trial.stage == "confirm" for trial in trials):
        lines.append("search: no winner is known yet")
    return lines


def _stored(rows: pd.DataFrame, cells: Sequence[Sequence[Trial]]) -> pd.DataFrame:
    """Return one row per planned trial, in the order of ``cells``: the index of its cell, and what is stored of it."""
    planned = [(trial.id, cell) for cell, members in enumerate(cells) for trial in members]
    found = rows[["trial_id", *NUMBERS, *TEXTS]].drop_duplicates("trial_id", keep="last")
    stored = pd.DataFrame(planned, columns=["trial_id", "cell"]).merge(found, on="trial_id", how="left")
    return stored.astype(dict.fromkeys(NUMBERS, float))


def _published(suite: Suite, labels: Mapping[str, Label | None]) -> dict[str, Any]:
    """Return the first reference row whose axes all have the cell's labels, or an empty one."""
    for reference in suite.reference:
        if all(labels.get(axis) == label for axis, label in reference.items() if axis not in Reference.model_fields):
            return reference
    return {}


def _header(stored: pd.DataFrame, planned: Sequence[Trial]) -> tuple[str, ...]:
    """Say what was measured, on what, and what the columns mean."""
    best = _listed(trial.settings["train"]["best"] for trial in planned)
    validation = _listed(stored["validation"].dropna().unique())
    dataset = [
        ("{}", _listed(trial.settings["dataset"]["name"] for trial in planned)),
        ("{} training images", _listed(stored["train_images"].dropna().unique(), ",.0f")),
        ("{} validation images", _listed(stored["validation_images"].dropna().unique(), ",.0f")),
        ("{} test images", _listed(stored["test_images"].dropna().unique(), ",.0f")),
        ("fingerprint {}", _listed(stored["dataset_fingerprint"].dropna().unique())),
    ]
    return (
        f"accuracy: share of the test images, 0 to 1; selection rule: the weights of the epoch with the best {best}",
        "std: sample standard deviation (ddof=1); n: finished trials, of those planned where some are missing;"
        " epochs: mean number trained",
        f"dataset: {', '.join(text.format(values) for text, values in dataset if values)}",
        *([f"validation images: {validation}"] if validation else []),
    )


def _warnings(stored: pd.DataFrame, planned: Sequence[Trial]) -> tuple[str, ...]:
    warnings = []
    if any(trial.settings["train"]["smoke"] for trial in planned):
        warnings.append("smoke run: numbers mean nothing")
    if (stored["validation"] == "test").any():
        warnings.append(
            "validation images = TEST images: the epoch was chosen on the test set, accuracies are optimistic"
        )
    return tuple(warnings)


def _missing(stored: pd.DataFrame, planned: Sequence[Trial]) -> list[str]:
    """Say why planned trials are in no number: a line per class of error, with the first as an example."""
    lines = []
    failed = stored[stored["status"] == "failed"]
    classes = failed["error_class"].fillna("error")
    for error_class in classes.unique():
        first = classes.index[classes == error_class][0]
        example = f"{planned[first].name} with {failed.at[first, 'error']!s}"
        lines.append(f"{_count((classes == error_class).sum(), 'trial')} failed, {error_class}: {example}")
    pruned, waiting = (stored["status"] == "pruned").sum(), stored["status"].isna().sum()
    if pruned:
        lines.append(f"{_count(pruned, 'trial')} pruned")
    if waiting:
        lines.append(f"{_count(waiting, 'trial')} not run yet")
    return lines


def _mixtures(finished: pd.DataFrame, planned: Sequence[Trial]) -> list[str]:
    """Say where the trials of one cell ran on different devices, data or code."""
    lines = []
    for column in PROVENANCE:
        different = finished.groupby("cell")[column].nunique()
        mixed = finished[finished["cell"].isin(different.index[different > 1])]
        if len(mixed):
            rows, first = _count(mixed["cell"].nunique(), "row"), planned[mixed.index[0]].name
            values = _listed(mixed[column].dropna().unique())
            lines.append(f"warning: {column} differs among the trials of {rows}, the first with {first}: {values}")
    return lines


def _unplanned(rows: pd.DataFrame, planned: Sequence[Trial]) -> list[str]:
    unplanned = len(set(rows["trial_id"]) - {trial.id for trial in planned})
    return [f"not shown: {_count(unplanned, 'stored trial')} of other settings"] if unplanned else []


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _listed(values: Iterable[Any], spec: str = "") -> str:
    """Return the different ``values`` in their order; of many, the first few."""
    different = [format(value, spec) for value in dict.fromkeys(values)]
    return " / ".join(different[:5]) + (f" / ... ({len(different)} in all)" if len(different) > 5 else "")
