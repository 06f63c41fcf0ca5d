"""The cells of a plan, what is stored of their trials, and what must be said of that beside every number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd

from raybench import grid
from raybench.axes import Label
from raybench.grid import Trial, counted
from raybench.metrics import COLUMNS
from raybench.records import FINISHED, TrialRow
from raybench.suite import Suite

PROVENANCE = ("device", "dataset_fingerprint", "raybench_version", "torch_version", "git_commit")
"""What should be one and the same behind all trials of a table."""
NUMBERS = tuple(dict.fromkeys((*COLUMNS, "epochs", "epochs_run", "train_images", "validation_images", "test_images")))
TEXTS = ("status", "error_class", "error", "validation", *PROVENANCE)


def cells_of(suite: Suite, trials: Sequence[Trial]) -> list[tuple[dict[str, Label | None], list[Trial]]]:
    """Return the rows of the table: their labels, and the trials whose accuracies they show.

    Where winners are confirmed a row is a cell with its winner, and has no labels of ``search`` until one is known.
    """
    names = suite.names("compare", "search")
    if not suite.confirms:
        return [(dict(zip(names, (*cell, *point), strict=True)), group) for cell, point, group in grid.cells(trials)]
    rows: list[tuple[dict[str, Label | None], list[Trial]]] = []
    for cell, members in grid.by_cell(trials).items():
        confirm = [trial for trial in members if trial.stage == "confirm"]
        point = confirm[0].point if confirm else [None] * len(suite.names("search"))
        rows.append((dict(zip(names, (*cell, *point), strict=True)), confirm))
    return rows


@dataclass(frozen=True, slots=True)
class Group:
    """Trials behind one mean: those of a cell, or of several where their axes are not shown."""

    labels: dict[str, Label | None]
    """Of the axes in which they agree."""
    members: list[Trial]
    planned: int
    pooled: dict[str, list[Label | None]]
    """The axes, but for the seed, in which they differ, and their values."""


def groups_of(suite: Suite, trials: Sequence[Trial], axes: Sequence[str], seeds: Sequence[int] = ()) -> Iterator[Group]:
    """Yield what is behind each number, where ``axes`` tell numbers apart; ``seeds`` are those that were chosen."""
    found: dict[tuple[Label | None, ...], list[tuple[dict[str, Label | None], list[Trial], int]]] = {}
    for part in _parts(suite, trials, "seed" in axes, seeds or suite.axis("seed").labels):
        found.setdefault(tuple(part[0][axis] for axis in axes), []).append(part)
    for parts in found.values():
        values = {axis: list(dict.fromkeys(labels[axis] for labels, _, _ in parts)) for axis in parts[0][0]}
        yield Group(
            labels={axis: labels[0] for axis, labels in values.items() if len(labels) == 1},
            members=[trial for _, members, _ in parts for trial in members],
            planned=sum(planned for _, _, planned in parts),
            pooled={axis: labels for axis, labels in values.items() if len(labels) > 1},
        )


def _parts(
    suite: Suite, trials: Sequence[Trial], by_seed: bool, seeds: Sequence[Label]
) -> Iterator[tuple[dict[str, Label | None], list[Trial], int]]:
    """Yield the labels, the trials, and the number of those planned of every cell, or of each of its seeds."""
    for labels, members in cells_of(suite, trials):
        if not by_seed:
            yield labels, members, len(members) or len(seeds)
            continue
        for seed in seeds:
            own = [trial for trial in members if trial.seed == seed]
            if own or not members:
                yield {**labels, "seed": seed}, own, 1


def pooled_in(groups: Iterable[Group]) -> dict[str, list[Label | None]]:
    """Return the axes over which any number is pooled, and their values."""
    pooled: dict[str, dict[Label | None, None]] = {}
    for group in groups:
        for axis, labels in group.pooled.items():
            pooled.setdefault(axis, {}).update(dict.fromkeys(labels))
    return {axis: list(labels) for axis, labels in pooled.items()}


def stored_of(rows: pd.DataFrame, cells: Sequence[Sequence[Trial]]) -> pd.DataFrame:
    """Return one row per planned trial, in the order of ``cells``: the index of its cell, and what is stored of it."""
    planned = [(trial.id, cell) for cell, members in enumerate(cells) for trial in members]
    found = rows[["trial_id", *NUMBERS, *TEXTS]].drop_duplicates("trial_id", keep="last")
    stored = pd.DataFrame(planned, columns=["trial_id", "cell"]).merge(found, on="trial_id", how="left")
    return stored.astype(dict.fromkeys(NUMBERS, float))


def best_of(planned: Sequence[Trial]) -> str:
    """Return what chose the epochs, e.g. ``val_accuracy``."""
    return listed(trial.settings["train"]["best"] for trial in planned)


def data_of(stored: pd.DataFrame, planned: Sequence[Trial]) -> tuple[str, ...]:
    """Say which images were trained on, which chose the epoch, and which it was judged on."""
    validation = listed(stored["validation"].dropna().unique())
    dataset = [
        ("{}", listed(trial.settings["dataset"]["name"] for trial in planned)),
        ("{} training images", listed(stored["train_images"].dropna().unique(), ",.0f")),
        ("{} validation images", listed(stored["validation_images"].dropna().unique(), ",.0f")),
        ("{} test images", listed(stored["test_images"].dropna().unique(), ",.0f")),
        ("fingerprint {}", listed(stored["dataset_fingerprint"].dropna().unique())),
    ]
    return (
        f"dataset: {', '.join(text.format(values) for text, values in dataset if values)}",
        *([f"validation images: {validation}"] if validation else []),
    )


def warnings_of(stored: pd.DataFrame, planned: Sequence[Trial]) -> tuple[str, ...]:
    warnings = []
    if any(trial.settings["train"]["smoke"] for trial in planned):
        warnings.append("smoke run: numbers mean nothing")
    if (stored["validation"] == "test").any():
        warnings.append(
            "validation images = TEST images: the epoch was chosen on the test set, accuracies are optimistic"
        )
    return tuple(warnings)


def missing(stored: pd.DataFrame, planned: Sequence[Trial]) -> list[str]:
    """Say why planned trials are in no number: a line per class of error, with the first as an example."""
    lines = []
    failed = stored[stored["status"] == "failed"]
    classes = failed["error_class"].fillna("error")
    for error_class in classes.unique():
        first = classes.index[classes == error_class][0]
        example = f"{planned[first].name} with {failed.at[first, 'error']!s}"
        lines.append(f"{counted((classes == error_class).sum(), 'trial')} failed, {error_class}: {example}")
    pruned, waiting = (stored["status"] == "pruned").sum(), stored["status"].isna().sum()
    if pruned:
        lines.append(f"{counted(pruned, 'trial')} pruned")
    if waiting:
        lines.append(f"{counted(waiting, 'trial')} not run yet")
    return lines


def mixtures(finished: pd.DataFrame, planned: Sequence[Trial]) -> list[str]:
    """Say where the trials of one cell, or the rows, were of different devices, data or code: a line for each."""
    lines = []
    for column in PROVENANCE:
        known = finished.dropna(subset=column)
        if known[column].nunique() < 2:
            continue
        if column == "dataset_fingerprint":  # other datasets have others
            same = known[column].groupby([images_of(planned[index]) for index in known.index])
            known = known[same.transform("nunique") > 1]
            if known.empty:
                continue
        different = known.groupby("cell")[column].nunique()
        mixed = known[known["cell"].isin(different.index[different > 1])]
        values = listed(known[column].unique())
        if mixed.empty:
            lines.append(f"warning: {column} differs between rows: {values}")
            continue
        rows, first, inside = counted(mixed["cell"].nunique(), "row"), planned[mixed.index[0]].name, mixed[column]
        more = f"; over all rows: {values}" if inside.nunique() < known[column].nunique() else ""
        lines.append(
            f"warning: {column} differs among the trials of {rows}, the first with {first}: {listed(inside.unique())}"
            + more
        )
    return lines


def images_of(trial: Trial) -> str:
    """Return what decides on the images that the fingerprint of a trial's dataset is of."""
    dataset = trial.settings["dataset"]
    return "/".join(str(dataset.get(key)) for key in ("name", "folder", "image_size"))


def unplanned(rows: pd.DataFrame, planned: Sequence[Trial]) -> list[str]:
    """Say how many stored trials are none of the plan's."""
    others = len(set(rows["trial_id"]) - {trial.id for trial in planned})
    return [f"not shown: {counted(others, 'stored trial')} of other settings"] if others else []


def search_of(rows: pd.DataFrame, suite: Suite, trials: Sequence[Trial], seeds: Sequence[int] = ()) -> list[str]:
    """Say how the points of a search came about, how a winner was found, and what that cost.

    Args:
        seeds: those that were chosen, to confirm winners with; the search's own is the first of the suite all the same.
    """
    if not suite.searches:
        return []
    first, every = trials[0], suite.axis("seed").labels
    search = [trial for trial in trials if trial.stage == "search" or trial.seed == every[0]]
    points = listed(len({trial.point for trial in group}) for group in grid.by_cell(search).values())
    axes, drawn = ", ".join(suite.names("search")), " drawn by Optuna" if suite.draw else ""
    lines = []
    if suite.confirm == "winner":
        chosen = f"seed {listed(seeds)}" if seeds and {*seeds} != {*every} else "every seed"
        lines.append(
            f"{axes}: in each cell the best of {points} points{drawn} by {first.settings['train']['best']} with seed"
            f" {every[0]}, trained with {chosen}; the other points are in no number"
        )
    ended = stored_of(rows, [search]).dropna(subset="status")
    cost = f"search: {counted(len(ended), 'trial')}{drawn}, {counted(int(_epochs_run(ended).sum()), 'epoch')}"
    pruned = ended[ended["status"] == "pruned"]
    if suite.prune:
        planned = sum(search[index].settings["train"]["epochs"] for index in pruned.index)
        saved = f"{planned - int(_epochs_run(pruned).sum()):,}"
        cost += f"; {len(pruned)} pruned by {suite.prune.name}, {saved} of their epochs not trained"
    return [*lines, cost]


def _epochs_run(stored: pd.DataFrame) -> pd.Series:
    return stored["epochs_run"].fillna(0)


def as_searched(suite: Suite, axes: Sequence[str]) -> list[str]:
    """Say which of ``axes`` were searched, where no winner was confirmed and each of their values is a cell."""
    if not suite.searches or suite.confirms:
        return []
    searched = [axis for axis in suite.names("search") if axis in axes]
    return [f"{axis} is searched: each value is shown as it is, none was chosen and confirmed" for axis in searched]


def open_search(rows: pd.DataFrame, suite: Suite, trials: Sequence[Trial]) -> list[str]:
    """Say what is missing of a search whose winners are confirmed."""
    search = [trial for trial in trials if trial.stage == "search"]
    if not search or suite.confirm == "none":
        return []
    lines = [f"search: {line}" for line in missing(stored_of(rows, [search]), search) if not line.endswith("pruned")]
    if not any(trial.stage == "confirm" for trial in trials):
        lines.append("search: no winner is known yet")
    return lines


def listed(values: Iterable[Any], spec: str = "") -> str:
    """Return the different ``values`` in their order; of many, the first few."""
    different = [format(value, spec) for value in dict.fromkeys(values)]
    return " / ".join(different[:5]) + (f" / ... ({len(different)} in all)" if len(different) > 5 else "")


def winner_axes(suite: Suite) -> list[str]:
    """Return the axes of the search where each cell shows its winner: they label cells, and tell none apart."""
    return suite.names("search") if suite.confirms else []


def search_axes(suite: Suite, cells: Sequence[tuple[Mapping[str, Label | None], Sequence[Trial]]]) -> list[str]:
    """Return the search axes that label the cells."""
    search = suite.names("search") if suite.searches else []
    return [axis for axis in search if suite.confirm == "winner" or len({labels[axis] for labels, _ in cells}) > 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """The cells of a table, and the rows behind their numbers."""

    axes: tuple[str, ...]
    compared: tuple[str, ...]
    """Those of ``axes`` that tell cells apart: not the searched ones where each cell shows its winner."""
    labels: tuple[tuple[Label | None, ...], ...]
    """Of each cell, one for each of ``axes``."""
    members: tuple[tuple[Trial, ...], ...]
    """The planned trials of each cell whose accuracies it shows."""
    planned: tuple[int, ...]
    """How many there will be: a search whose winner is not known yet has none so far."""
    finished: pd.DataFrame
    """One row for each of them that has finished: the columns of `records.TrialRow`, and ``cell``, its number."""
    best: str
    """What chose the epochs: `raybench.metrics.says` puts it into words."""
    header: tuple[str, ...]
    """Which images the numbers are of, and how the winners of a search were found."""
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    """What is missing from the numbers, and why."""


def find_cells(rows: pd.DataFrame, suite: Suite, trials: Sequence[Trial], seeds: Sequence[int] = ()) -> Cells:
    """Return the rows of the table that `summarize.summarize` makes of the same, and the trials behind each."""
    cells = cells_of(suite, trials)
    axes = [*suite.names("compare"), *search_axes(suite, cells)]
    shown = [trial for _, members in cells for trial in members]
    stored = stored_of(rows, [members for _, members in cells])
    finished = stored[stored["status"].isin(FINISHED)]
    columns = [f.name for f in fields(TrialRow) if f.name in rows.columns]
    return Cells(
        axes=tuple(axes),
        compared=tuple(axis for axis in axes if axis not in winner_axes(suite)),
        labels=tuple(tuple(labels[axis] for axis in axes) for labels, _ in cells),
        members=tuple(tuple(members) for _, members in cells),
        planned=tuple(len(members) or len(seeds or suite.axis("seed").labels) for _, members in cells),
        finished=finished[["trial_id", "cell"]].merge(
            rows[columns].drop_duplicates("trial_id", keep="last"), on="trial_id", how="left"
        ),
        best=best_of(shown or trials),
        header=(*data_of(stored, shown or trials), *search_of(rows, suite, trials, seeds)),
        warnings=warnings_of(stored, trials),
        notes=(
            *as_searched(suite, axes),
            *missing(stored, shown),
            *open_search(rows, suite, trials),
            *mixtures(finished, shown),
            *unplanned(rows, trials),
        ),
    )
