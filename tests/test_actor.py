"""What a trial tells the driver, without Ray; tests/test_schedule.py has the rest of the worker's side."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")
from raybench import actor
from raybench.grid import Trial
from raybench.records import EpochRow, Outcome
from raybench.rows import planned_row


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, make_trial: Callable[..., Trial]) -> Callable[[Sequence[float]], list[Any]]:
    """``told(seconds)`` runs a trial whose epochs end at these times, and which warns after the second and at its end;
    returns of each report but the last, which is the outcome, its epochs and warnings."""
    trial, reports = make_trial(), []
    row = planned_row(trial)
    measured = {"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}
    monkeypatch.setattr(actor.tune, "report", reports.append)
    monkeypatch.setattr(actor, "TorchTrainer", lambda loop, **_: SimpleNamespace(fit=loop))

    def told(seconds: Sequence[float]) -> list[Any]:
        def run(trial: Trial, *, begun: Callable[..., None], report: Callable[..., None], **more: Any) -> Outcome:
            begun(row)
            for number, second in enumerate(seconds, 1):
                monkeypatch.setattr(actor, "time", SimpleNamespace(monotonic=lambda now=second: now))
                report(EpochRow(trial_id=trial.id, epoch=number, lr=0.1, **measured))
                if number == 2:
                    more["warn"]("full")
            more["warn"]("over")
            return Outcome(row=row)

        share: Any = SimpleNamespace(job=SimpleNamespace(run=run), suite="s", device="cpu")
        actor._in_this_process(share, trial)
        assert [*reports[-1]] == ["outcome"]
        epochs = [pickle.loads(report["epoch"]) for report in reports[:-1]]
        assert all(begun == row for _, begun, _ in epochs)
        return [([epoch.epoch for epoch in rows], list(warnings)) for rows, _, warnings in epochs]

    return told


def test_short_epochs_are_told_together_and_none_is_left_out(told: Callable[[Sequence[float]], list[Any]]) -> None:
    assert told([0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.61]) == [
        ([1], []),
        ([2, 3, 4], ["full"]),
        ([5, 6], []),
        ([7], ["over"]),
    ]


def test_a_long_epoch_is_told_at_once(told: Callable[[Sequence[float]], list[Any]]) -> None:
    assert told([0, 1, 2, 3]) == [([1], []), ([2], []), ([3], ["full"]), ([4], []), ([], ["over"])]
