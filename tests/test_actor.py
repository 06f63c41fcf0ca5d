"""What a trial tells the driver, without Ray; tests/test_schedule.py has the rest of the worker's side."""

from __future__ import annotations

import dataclasses
import pickle
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")
from ray import train

from raybench import actor, schedule
from raybench.grid import Trial
from raybench.records import EpochRow, Outcome
from raybench.rows import planned_row
from raybench.settings import Resources
from raybench.trial import failed

Told = Callable[..., list[Any]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, make_trial: Callable[..., Trial]) -> Told:
    """``told(seconds, heard)`` runs a trial whose epochs end at these times, if reports take no time, and which warns
    after the second and at its end; ``heard`` is how long the driver takes to hear a report. Returns of each report but
    the last, which is the outcome, its epochs and warnings."""
    trial, reports = make_trial(), []
    row = planned_row(trial)
    measured = {"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(actor, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(actor, "TorchTrainer", lambda loop, **_: SimpleNamespace(fit=loop))

    def told(seconds: Sequence[float], heard: float) -> list[Any]:
        def tell(report: dict[str, bytes]) -> None:
            reports.append(report)
            clock.now += heard

        def run(trial: Trial, *, begun: Callable[..., None], report: Callable[..., None], **more: Any) -> Outcome:
            begun(row)
            before = 0.0
            for number, second in enumerate(seconds, 1):
                clock.now += second - before
                before = second
                report(EpochRow(trial_id=trial.id, epoch=number, lr=0.1, **measured))
                if number == 2:
                    more["warn"]("full")
            more["warn"]("over")
            return Outcome(row=row)

        monkeypatch.setattr(actor.tune, "report", tell)
        share: Any = SimpleNamespace(job=SimpleNamespace(run=run), suite="s", device="cpu")
        actor._in_this_process(share, trial)
        assert [*reports[-1]] == ["outcome"]
        epochs = [pickle.loads(report["epoch"]) for report in reports[:-1]]
        assert all(begun == row for _, begun, _ in epochs)
        return [([epoch.epoch for epoch in rows], list(warnings)) for rows, _, warnings in epochs]

    return told


def test_short_epochs_are_told_together_and_none_is_left_out(told: Told) -> None:
    # A report that takes 2.5 ms lets a quarter of a second pass until the next.
    assert told([0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.61], 0.0025) == [
        ([1], []),
        ([2, 3, 4], ["full"]),
        ([5, 6], []),
        ([7], ["over"]),
    ]


def test_telling_takes_a_small_share_of_a_trials_time(told: Told) -> None:
    reports = told([0.01 * epoch for epoch in range(1000)], 0.005)
    assert 10 / 0.005 * actor.TELL_SHARE * 0.9 < len(reports) < 10 / 0.005 * actor.TELL_SHARE + 2
    assert [epoch for epochs, _ in reports for epoch in epochs] == [*range(1, 1001)]


def test_a_driver_that_is_slow_to_hear_hears_once_a_second(told: Told) -> None:
    reports = told([0.125 * epoch for epoch in range(81)], 0.5)
    assert [len(epochs) for epochs, _ in reports] == [1, *[8] * 10, 0]


def test_a_long_epoch_is_told_at_once(told: Told) -> None:
    assert told([0, 1.1, 2.2, 3.3], 0.2) == [([1], []), ([2], []), ([3], ["full"]), ([4], []), ([], ["over"])]


def test_epochs_trained_after_the_one_at_which_a_trial_lost_are_heard_too(make_trial: Callable[..., Trial]) -> None:
    trial, heard, warned = make_trial(), [], []
    row = planned_row(trial)
    measured = {"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}
    rows = [EpochRow(trial_id=trial.id, epoch=number, lr=0.1, **measured) for number in range(1, 5)]
    listener: Any = SimpleNamespace(
        epoch=lambda trial, row, begun: heard.append(row.epoch) or row.epoch == 2,
        warned=lambda trial, warning: warned.append(warning),
    )
    resources = Resources.model_validate(trial.settings["resources"])
    watcher = schedule._Watcher({trial.id: trial}, listener, threading.Event(), None, resources, {})
    assert not watcher.is_to_stop(trial.id, actor.epoch_metrics(rows[:1], row, [])["epoch"])
    assert watcher.is_to_stop(trial.id, actor.epoch_metrics(rows[1:], row, ["full"])["epoch"])
    assert (heard, warned, watcher.stopping) == ([1, 2, 3, 4], ["full"], {trial.id})


class Kv(dict[str, bytes]):
    """What worker groups use of the cluster's store."""

    def put(self, key: str, value: str | bytes, namespace: bytes) -> None:
        self[key] = value.encode() if isinstance(value, str) else value

    def take(self, key: str, *, namespace: bytes, del_by_prefix: bool = False) -> None:
        for each in [each for each in self if each == key or (del_by_prefix and each.startswith(key))]:
            del self[each]

    def find(self, key: str, namespace: bytes) -> bytes | None:
        return self.get(key)


@pytest.fixture
def kv(monkeypatch: pytest.MonkeyPatch) -> Kv:
    made = Kv()
    for name, method in {"put": made.put, "del": made.take, "get": made.find, "exists": made.find}.items():
        monkeypatch.setattr(actor, f"_internal_kv_{name}", method)
    return made


def test_a_group_whose_peer_has_gone_names_the_nodes_and_leaves_no_key(
    kv: Kv, monkeypatch: pytest.MonkeyPatch, make_trial: Callable[..., Trial]
) -> None:
    trial, reports = make_trial(resources={"workers": 3}), []

    def lost() -> None:
        for rank, node in enumerate(("head", "a", "b")):
            kv.put(f"tune/node/{rank}", node, actor.KV)
        row = failed(planned_row(trial), RuntimeError("Connection closed by peer [10.0.0.2]"))
        raise train.WorkerGroupError("lost", {0: actor.Failed(row.error, pickle.dumps(row))})

    monkeypatch.setattr(actor.tune, "report", reports.append)
    monkeypatch.setattr(actor.tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "tune"))
    monkeypatch.setattr(actor, "TorchTrainer", lambda *_, **__: SimpleNamespace(fit=lost))
    monkeypatch.setattr(actor, "TuneReportCallback", lambda: None)
    monkeypatch.setattr(actor.train, "RunConfig", lambda **_: None)
    monkeypatch.setattr(actor.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "head"))
    kv.put("another/stop", b"1", actor.KV)
    share: Any = SimpleNamespace(use_gpu=False, storage="")
    actor._WorkerGroup(share, trial.typed().resources).run(trial)
    outcome, nodes = pickle.loads(reports[0]["outcome"])
    assert (outcome.row.error_class, nodes) == ("crashed", {"a", "b"})
    assert [*kv] == ["another/stop"]


def test_warnings_of_all_processes_of_a_group_are_told_once(
    kv: Kv, monkeypatch: pytest.MonkeyPatch, make_trial: Callable[..., Trial]
) -> None:
    trial, reports = make_trial(), []
    row = dataclasses.replace(planned_row(trial), status="completed")
    measured = {"train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5}

    def run(trial: Trial, *, world: Any, begun: Any, report: Any, warn: Any, **_: Any) -> Outcome:
        begun(row)
        warn("full")
        for number in (1, 2):
            report(EpochRow(trial_id=trial.id, epoch=number, lr=0.1, **measured))
        return Outcome(row=row)

    monkeypatch.setattr(actor.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "head"))
    monkeypatch.setattr(actor.train, "report", reports.append)
    monkeypatch.setattr(actor.train.torch, "get_device", lambda: "cpu")
    monkeypatch.setattr(actor.torch.distributed, "broadcast", lambda *_: None)
    share: Any = SimpleNamespace(job=SimpleNamespace(run=run), suite="s", import_modules=lambda: None)
    for rank in (1, 0):
        context = SimpleNamespace(get_world_rank=lambda rank=rank: rank, get_world_size=lambda: 2)
        monkeypatch.setattr(actor.train, "get_context", lambda context=context: context)
        reports.clear()
        actor._worker_loop(share, trial, "tune/")()
    told = [pickle.loads(report["epoch"])[2] for report in reports if "epoch" in report]
    assert told == [("full", "process 1: full"), ()]
    assert kv == {"tune/node/0": b"head", "tune/node/1": b"head"}
