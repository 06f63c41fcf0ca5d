"""What the plan and the curves alone say of a trial."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from raybench.grid import Trial
from raybench.records import EpochRow, TrialRow
from raybench.rows import planned_row, pruned
from raybench.suite import Suite

MakeTrial = Callable[..., Trial]
LoadSuite = Callable[..., tuple[Suite, list[Trial]]]

SUITE = """
name: rows
dataset: {name: digits, validation: {fraction: 0.25}}
compare:
  model: {small: {name: mlp, hidden: [8]}, cnn: small_cnn}
  augmentation: {none: none, mild: [{shift: 0.1}, flip]}
  train.batch_size: [16, 32]
  recipe: {slow: {lr: 1e-4}, fast: {lr: 1e-2, train.best: val_loss}}
repeat: {seed: [5]}
"""


def test_the_planned_row(load_suite: LoadSuite) -> None:
    _, trials = load_suite(SUITE)
    trial = next(t for t in trials if t.cell == ("cnn", "mild", 32, "fast"))
    assert planned_row(trial) == TrialRow(
        trial_id=trial.id,
        suite="rows",
        dataset="digits",
        model="cnn",
        augmentation="mild",
        seed=5,
        lr=0.01,
        axes={"train.batch_size": 32, "recipe": "fast"},
        status="failed",
        selection="val_loss",
        validation="fraction 0.25",
        settings=json.dumps(trial.settings, sort_keys=True),
    )


@pytest.mark.parametrize(
    ("validation", "text"),
    [("test", "test"), ("split", "split"), ({"size": 30}, "size 30"), ({"fraction": 0.1}, "fraction 0.1")],
)
def test_the_row_says_what_the_validation_images_were(validation: Any, text: str, make_trial: MakeTrial) -> None:
    assert planned_row(make_trial(dataset={"validation": validation})).validation == text


def test_without_axes_the_row_names_what_was_used(make_trial: MakeTrial) -> None:
    row = planned_row(make_trial(augmentation=["shift", {"flip": 0.5}]))
    assert (row.dataset, row.model, row.augmentation, row.axes) == ("digits", "mlp", "shift+flip", {})


def curve(*values: tuple[float, float]) -> tuple[EpochRow, ...]:
    """Return epochs with these validation and test accuracies."""
    return tuple(
        EpochRow(
            trial_id="t",
            epoch=number,
            lr=0.1,
            train_loss=1.0,
            train_accuracy=0.5,
            val_loss=1.0,
            val_accuracy=val,
            test_loss=1.0,
            test_accuracy=test,
        )
        for number, (val, test) in enumerate(values, 1)
    )


def test_a_pruned_trial_keeps_its_curve_up_to_the_rung_and_was_never_tested(make_trial: MakeTrial) -> None:
    row = planned_row(make_trial())
    outcome = pruned(replace(row, test_accuracy=0.9), curve((0.2, 0.3), (0.6, 0.1), (0.5, 0.4), (0.9, 0.8)), 3)
    assert (outcome.row.status, outcome.row.epochs, outcome.row.epochs_run) == ("pruned", 3, 4)
    assert (outcome.row.best_epoch, outcome.row.val_accuracy) == (2, 0.6)
    assert (outcome.row.test_loss, outcome.row.test_accuracy) == (None, None)
    assert [epoch.epoch for epoch in outcome.epochs] == [1, 2, 3]
    assert {epoch.test_accuracy for epoch in outcome.epochs} == {None}


@pytest.mark.parametrize("settings", [{"dataset": {"validation": "test"}}, {"test_every_epoch": True}])
def test_it_keeps_the_tests_of_its_epochs_where_every_epoch_is_tested(
    settings: dict[str, Any], make_trial: MakeTrial
) -> None:
    outcome = pruned(planned_row(make_trial(**settings)), curve((0.2, 0.3), (0.6, 0.1)), 2)
    assert [epoch.test_accuracy for epoch in outcome.epochs] == [0.3, 0.1]
    assert outcome.row.test_accuracy is None
