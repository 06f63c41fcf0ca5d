"""The rows of trials, as far as they follow from the plan and from curves alone.

The driver writes them too, so that nothing here needs PyTorch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from raybench.grid import Trial
from raybench.rates import is_better
from raybench.records import OWN_COLUMN, EpochRow, Outcome, TrialRow
from raybench.settings import HeldOut


def planned_row(trial: Trial) -> TrialRow:
    """Return the row of a trial of which nothing is known but its plan: a failed one, until it has finished."""
    settings = trial.typed()
    validation: str | HeldOut = settings.dataset.validation
    if isinstance(validation, HeldOut):
        validation = f"size {validation.size}" if validation.size else f"fraction {validation.fraction}"
    return TrialRow(
        trial_id=trial.id,
        suite=trial.suite,
        dataset=str(trial.labels.get("dataset", settings.dataset.name)),
        model=str(trial.labels.get("model", settings.model.name)),
        augmentation=str(trial.labels.get("augmentation", "+".join(part.name for part in settings.augmentation))),
        seed=trial.seed,
        lr=settings.train.in_phases()[0].lr,
        axes={name: label for name, label in trial.labels.items() if name not in OWN_COLUMN},
        stage=trial.stage,
        draw=trial.draw,
        status="failed",
        selection=settings.train.best,
        validation=validation,
        settings=json.dumps(trial.settings, sort_keys=True),
    )


def pruned(row: TrialRow, epochs: Sequence[EpochRow], at: int) -> Outcome:
    """Return what is kept of a trial that lost at epoch ``at`` and had trained ``epochs``: its curve up to there."""
    seen = epochs[:at]
    if not (row.validation == "test" or json.loads(row.settings)["train"]["test_every_epoch"]):
        # One that lost after its end has been tested; equal trials must leave the same.
        seen = [dataclasses.replace(epoch, test_loss=None, test_accuracy=None) for epoch in seen]
    best = seen[0]
    for epoch in seen[1:]:
        if is_better(row.selection, getattr(epoch, row.selection), getattr(best, row.selection)):
            best = epoch
    kept = dataclasses.replace(
        row,
        status="pruned",
        epochs=at,
        epochs_run=len(epochs),
        **{**scores(best), "test_loss": None, "test_accuracy": None},
    )
    return Outcome(row=kept, epochs=tuple(seen))


def scores(best: EpochRow) -> dict[str, Any]:
    """Return the columns of a trial that say what its best epoch reached."""
    names = (f"{split}_{kind}" for split in ("train", "val", "test") for kind in ("loss", "accuracy"))
    return {"best_epoch": best.epoch, **{name: getattr(best, name) for name in names}}
