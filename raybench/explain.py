"""Where a number comes from: the trials behind a cell, those that are not and why, and how to run them again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from raybench.axes import Label, assigned_paths, find_label
from raybench.cells import (
    best_of,
    cells_of,
    data_of,
    listed,
    missing,
    mixtures,
    search_of,
    stored_of,
    warnings_of,
)
from raybench.errors import UserError, did_you_mean
from raybench.grid import Trial, counted, differences, resolved
from raybench.metrics import says
from raybench.plan import Choice
from raybench.records import FINISHED
from raybench.suite import Suite, command, results_words
from raybench.table import Column, Table

IN_MEAN = "yes"
VERSIONS = ("raybench", "python", "torch", "torchvision", "timm", "ray", "numpy")
SHOWN = (
    Column("status", "status", align="left"),
    Column("in_mean", "in the mean", align="left"),
    Column("epochs", "epochs"),
    Column("best_epoch", "best epoch"),
    Column("test_accuracy", "accuracy", ".4f"),
    Column("val_accuracy", "val accuracy", ".4f"),
    Column("train_seconds", "training s", ",.1f"),
    Column("wall_seconds", "wall s", ",.1f"),
    *(Column(name, name, align="left", machine=True) for name in ("device", "host", "started_at", "error")),
)


def explain(rows: pd.DataFrame, choice: Choice, trials: Sequence[Trial], words: Iterable[str], results: str) -> Table:
    """Return a row per trial of one cell, and what must be known to believe its mean.

    Args:
        rows: what is stored, one row per trial, columns as in `records.TrialRow`.
        choice: the suite, and what was run of it.
        trials: the trials of ``choice`` that are known.
        words: ``axis=value`` of the axes that tell rows of the table apart; those with one value may be left out.
        results: where the suite's folder lies, for the command.

    Raises:
        UserError: if the words name no cell, or several.
    """
    suite = choice.suite
    labels, members = _find(suite, trials, list(words))
    cell = tuple(labels[axis] for axis in suite.names("compare"))
    ids = {trial.id for trial in members}
    searched = suite.confirms
    lost = [trial for trial in trials if trial.cell == cell and trial.id not in ids] if searched else []
    planned = [*members, *lost]
    plain = rows.astype(object).where(rows.notna(), None)
    by_id = {row["trial_id"]: {str(name): value for name, value in row.items()} for row in plain.to_dict("records")}
    others = _others(by_id, suite, trials, labels)

    stored = stored_of(rows, [members])
    behind = stored[stored["status"].isin(FINISHED)].dropna(subset="test_accuracy")
    behind_rows = [by_id[trial_id] for trial_id in behind["trial_id"]]
    shown = [(trial.id, trial.labels, by_id.get(trial.id, {}), _why(trial, by_id, members)) for trial in planned]
    shown += [(row["trial_id"], row, row, _why_other(row)) for row in others]
    axes = ["seed", *(suite.names("search") if suite.searches else [])]
    stage = [Column("stage", "stage", align="left")] if suite.searches else []
    stages = {trial.id: trial.stage for trial in planned}
    return Table(
        suite=suite.name,
        title=f"{suite.name}: {', '.join(f'{axis}={label}' for axis, label in labels.items() if label is not None)}",
        header=(
            _number(behind["test_accuracy"], len(members) or len(choice.seeds())),
            says("accuracy", best_of(planned)),
            *data_of(stored, planned),
            *(search_of(rows, suite, planned, choice.seeds()) if searched else ()),
            *_provenance(behind_rows),
            _cost(behind_rows, [row for _, _, row, _ in shown if row]),
        ),
        warnings=warnings_of(stored, planned),
        columns=(
            Column("trial_id", "trial", align="left"),
            *(Column(axis, axis, align="left") for axis in axes),
            *stage,
            *SHOWN,
        ),
        rows=tuple(
            (
                trial_id,
                *(at.get(axis) for axis in axes),
                *([stages.get(trial_id, row.get("stage"))] if stage else []),
                *_values({**row, "in_mean": why}),
            )
            for trial_id, at, row, why in shown
        ),
        notes=(
            *missing(stored, members),
            *_differences(others, (members or planned)[0], suite),
            *mixtures(behind, members),
            "to run it again, what is missing here, or with another --results all of it:",
            command(suite, _only(choice, labels, planned), *results_words(results)),
        ),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Which cell


def _find(suite: Suite, trials: Sequence[Trial], words: Sequence[str]) -> tuple[dict[str, Label | None], list[Trial]]:
    """Return the labels of the cell that ``words`` name, and the trials behind its mean."""
    axes = _axes(suite)
    every = cells = cells_of(suite, trials)
    for word in words:
        axis, equals, value = (part.strip() for part in word.partition("="))
        if not equals:
            raise UserError(f"{word}: must be axis=value, with one of the axes {', '.join(axes) or '(there are none)'}")
        if axis not in axes:
            raise UserError(f"{word}: {axis} is no axis of the table of {suite.name}{did_you_mean(axis, axes)}")
        known = list(dict.fromkeys(labels[axis] for labels, _ in every))
        label = find_label([label for label in known if label is not None], value)
        if label is None:
            raise UserError(f"{word}: no such value of {axis}{did_you_mean(value, known)}")
        cells = [(labels, members) for labels, members in cells if labels[axis] == label]
    if not cells:
        raise UserError(f"{' '.join(words)}: no cell of {suite.name} has all of these")
    if len(cells) > 1:
        values = {axis: list(dict.fromkeys(labels[axis] for labels, _ in cells)) for axis in axes}
        open_ = " and ".join(f"{axis}={'|'.join(map(str, found))}" for axis, found in values.items() if len(found) > 1)
        raise UserError(f"{' '.join(words) or suite.name}: names {len(cells)} cells: say also {open_}")
    return cells[0]


def _axes(suite: Suite) -> list[str]:
    """Return the axes that tell rows of the table apart."""
    return suite.names("compare", "search") if suite.searches and suite.confirm == "none" else suite.names("compare")


def _others(
    by_id: Mapping[str, dict[str, Any]], suite: Suite, trials: Sequence[Trial], labels: Mapping[str, Label | None]
) -> list[dict[str, Any]]:
    """Return the stored rows with the labels of the cell that are of no planned trial."""
    planned = {trial.id for trial in trials}
    axes = _axes(suite)

    def fits(row: Mapping[str, Any]) -> bool:
        wanted = ((labels[axis], row.get(axis)) for axis in axes)
        return all(label is not None and find_label([label], value) is not None for label, value in wanted)

    return [row for trial_id, row in by_id.items() if trial_id not in planned and fits(row)]


# ---------------------------------------------------------------------------------------------------------------------
# What is said of its trials


def _why(trial: Trial, by_id: Mapping[str, Mapping[str, Any]], members: Sequence[Trial]) -> str:
    """Return whether a planned trial is in the mean, or why not."""
    row = by_id.get(trial.id)
    if row is None:
        return "not run yet"
    if row["status"] == "failed":
        return f"failed: {row['error_class'] or 'error'}"
    if row["status"] == "pruned":
        return "pruned"
    if trial.id not in {member.id for member in members}:
        if not members:
            return "search"
        return "won; its seed is not chosen" if trial.point == members[0].point else "another point won"
    return IN_MEAN if row["test_accuracy"] is not None else "no accuracy"


def _why_other(row: Mapping[str, Any]) -> str:
    return "former" if row.get("stage") == "former" else "other settings"


def _values(row: Mapping[str, Any]) -> list[Any]:
    whole = ("epochs", "best_epoch")
    values = {column.name: row.get(column.name) for column in SHOWN}
    return [int(value) if name in whole and value is not None else value for name, value in values.items()]


def _number(accuracy: pd.Series, planned: int) -> str:
    """Return the numbers of the cell as its row of the table has them."""
    if accuracy.empty:
        return f"mean: none, n = 0 of {planned} planned"
    std = "" if len(accuracy) < 2 else f", std {accuracy.std():.4f} (ddof=1)"
    spread = f"min {accuracy.min():.4f}, max {accuracy.max():.4f}"
    return f"mean {accuracy.mean():.4f}{std}, {spread}, n = {len(accuracy)} of {planned} planned"


def _provenance(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say what the trials in the mean started from, ran on, and were run by."""
    if not rows:
        return []

    def found(name: str) -> str:
        return listed(value for row in rows if (value := row.get(name)) is not None)

    weights = found("weights_fingerprint")
    devices = Counter(row["device"] or "unknown" for row in rows)
    on = ", ".join(f"{device} ({counted(n, 'trial')})" for device, n in devices.items())
    hosts, threads, workers = found("host"), found("threads"), found("workers")
    size = ", ".join(f"{text} {value}" for text, value in (("threads", threads), ("processes", workers)) if value)
    versions = ", ".join(f"{name} {version}" for name in VERSIONS if (version := found(f"{name}_version")))
    commit = found("git_commit") or "none, not in a git checkout"
    dirty = ", with changes that are in no commit" if any(row.get("git_dirty") for row in rows) else ""
    return [
        f"weights: fingerprint {weights}" if weights else "weights: random at the start",
        "; ".join(filter(None, [f"ran on: {on}", size, hosts and f"host {hosts}"])),
        f"versions: {versions or 'not stored'}",
        f"commit: {commit}{dirty}",
    ]


def _cost(behind: Sequence[Mapping[str, Any]], everything: Sequence[Mapping[str, Any]]) -> str:
    """Return the seconds of the trials in the mean, and of all that are shown where these are more."""

    def seconds(rows: Sequence[Mapping[str, Any]]) -> str:
        training, wall = (sum(row.get(name) or 0 for row in rows) for name in ("train_seconds", "wall_seconds"))
        return f"{training:,.1f} s in training steps, {wall:,.1f} s from start to row"

    more = f"; all {len(everything)} below: {seconds(everything)}" if len(everything) > len(behind) else ""
    return f"cost of the {counted(len(behind), 'trial')} in the mean: {seconds(behind)}{more}"


def _differences(others: Sequence[Mapping[str, Any]], trial: Trial, suite: Suite) -> list[str]:
    """Say what the settings of stored trials are that the plan does not have: a line for each kind."""
    searched = {path for axis in suite.axes if axis.role == "search" for path in assigned_paths(axis)}
    kinds = Counter(
        ", ".join(
            f"{path} {before} instead of {now}"
            for path, before, now in differences(resolved(json.loads(row["settings"])), trial.settings)
            if path not in searched
        )
        for row in others
        if _why_other(row) == "other settings"
    )
    return [f"{counted(n, 'trial')} of other settings: {kind or 'another seed'}" for kind, n in kinds.items()]


def _only(choice: Choice, labels: Mapping[str, Label | None], planned: Sequence[Trial]) -> list[tuple[str, Any]]:
    """Return axes, each with a value, that name the cell's trials among those of the suite."""
    suite = choice.suite
    only: list[tuple[str, Any]] = [(axis, labels[axis]) for axis in suite.names("compare") if _several(suite, axis)]
    if suite.searches and suite.confirm == "none" and not suite.draw:
        only += [(axis, labels[axis]) for axis in suite.names("search") if _several(suite, axis)]
    else:
        only += [(axis, value) for axis in suite.names("search") for value in choice.only.get(axis, ())]
    if choice.only.get("seed"):
        only += [("seed", seed) for seed in choice.seeds()]
    elif choice.limit:
        only += [("seed", seed) for seed in dict.fromkeys(trial.seed for trial in planned)]
    return only


def _several(suite: Suite, axis: str) -> bool:
    return len(suite.axis(axis).labels) > 1
