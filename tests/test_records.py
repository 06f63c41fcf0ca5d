from __future__ import annotations

import ast
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any, get_args

import pytest

import raybench
from raybench.axes import TAKEN
from raybench.records import (
    DONE,
    FINISHED,
    OWN_COLUMN,
    STATISTICS,
    STATUSES,
    EpochRow,
    Outcome,
    Predictions,
    Status,
    TrialRow,
    computed,
)

COMPUTED = {
    "trial_id": "0123",
    "suite": "s",
    "dataset": "digits",
    "model": "mlp",
    "augmentation": "none",
    "seed": 0,
    "lr": 0.001,
    "status": "completed",
    "selection": "val_accuracy",
    "validation": "size 100",
    "settings": "{}",
}
MEASURED = {
    *(
        "epochs_run",
        "undecided",
        "attempts",
        "train_seconds",
        "wall_seconds",
        "images_per_second",
        "device",
        "host",
        "started_at",
    ),
    *("raybench_version", "python_version", "torch_version", "torchvision_version", "timm_version", "ray_version"),
    *("numpy_version", "git_commit", "git_dirty"),
}


def row(**values: Any) -> TrialRow:
    return TrialRow(**{**COMPUTED, **values})


def test_statuses() -> None:
    assert get_args(Status) == STATUSES
    assert set(FINISHED) < set(DONE) < set(STATUSES)
    assert set(STATUSES) - set(DONE) == {"failed"}, "only what failed is run again"
    assert set(DONE) - set(FINISHED) == {"pruned"}, "which never enters a mean"


def test_what_the_machine_measures_is_no_part_of_what_was_computed() -> None:
    assert {field.name for field in fields(TrialRow)} - set(computed(row())) == MEASURED
    moment = dict.fromkeys(MEASURED, "other")
    assert computed(row(**moment)) == computed(row())
    assert row(**moment) != row()
    assert computed(row(test_accuracy=0.5)) != computed(row(test_accuracy=0.25))


def test_an_epoch_is_compared_but_for_its_seconds() -> None:
    epoch: dict[str, Any] = {"trial_id": "0123", "epoch": 1, "lr": 0.1}
    epoch |= dict.fromkeys(["train_loss", "train_accuracy", "val_loss", "val_accuracy"], 0.5)
    assert computed(EpochRow(**epoch, seconds=1.0)) == computed(EpochRow(**epoch, seconds=2.0))
    assert "seconds" not in computed(EpochRow(**epoch))


def test_rows_are_read_only_and_know_their_fields() -> None:
    with pytest.raises(FrozenInstanceError):
        row().seed = 1  # type: ignore[misc]
    with pytest.raises(TypeError, match="unexpected keyword argument 'sed'"):
        row(sed=1)
    with pytest.raises(TypeError, match="missing"):
        TrialRow()  # type: ignore[call-arg]
    assert row().axes is not row().axes


def test_an_outcome_may_be_a_row_alone() -> None:
    assert Outcome(row=row()).epochs == ()
    assert Outcome(row=row()).predictions is None
    assert [field.name for field in fields(Predictions)] == ["index", "label", "logits", "prediction"]


def test_names_of_columns() -> None:
    columns = {field.name for field in fields(TrialRow)}
    assert set(OWN_COLUMN) < columns
    assert columns & STATISTICS == {"epochs"}, "the one that is of both kinds"


WITHOUT_AXES = {"what", "first", "second", "cells", "source", "values", "eta", "omega", "first_n", "second_n"}
"""Columns of tables that show no axes: of pairs, effects and changes."""


def columns_in_the_code() -> set[str]:
    """Return the name of each `Column` that is written out anywhere in raybench."""
    files = Path(raybench.__file__).parent.rglob("*.py")
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    calls = (node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Column")
    firsts = (call.args[0] for call in calls)
    return {first.value for first in firsts if isinstance(first, ast.Constant) and isinstance(first.value, str)}


def test_no_axis_can_be_called_as_a_column_of_a_table() -> None:
    written = columns_in_the_code()
    assert written - WITHOUT_AXES <= TAKEN
    made = {f"{side}_{name}" for side in ("first", "second") for name in ("n", "planned", "mean")}
    made |= {f"published_{name}" for name in ("n", "mean", "std", "min", "max", "epochs")}
    assert written | made >= STATISTICS, "and no name is refused without need"
