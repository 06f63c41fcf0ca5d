"""What a run tells Prometheus: numbers of the driver's gauges, and that they are taken off at the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("ray")
from raybench import actor, gauges
from raybench.gauges import METRICS, Board, Gauges, exported
from raybench.records import EpochRow, Outcome
from raybench.rows import planned_row


class Metric:
    """Stands in for one of Ray's."""

    def __init__(self, seen: dict[Any, float], name: str) -> None:
        self.seen, self.name = seen, name

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(METRICS[self.name].tags), "Ray refuses other tags"
        self.seen[self.name, *tags.values()] = value

    def inc(self, tags: dict[str, str]) -> None:
        self.set(self.seen.get((self.name, *tags.values()), 0) + 1, tags)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[Any, float]]:
    """What Ray was told last, by name and values of tags."""
    told: dict[Any, float] = {}
    monkeypatch.setattr(gauges, "_made", lambda name: Metric(told, name))
    monkeypatch.setattr(gauges, "REPEAT_SECONDS", 0.01)
    yield told


def after_a_repeat(board: Board, seen: dict[Any, float]) -> dict[Any, float]:
    """Return what is repeated once everything before has been: counters stay, gauges are those that still hold."""
    done = threading.Event()
    for _ in range(2):  # one repeat may have begun before
        done.clear()
        for key in list(seen):
            if key[0] != "raybench_retries":
                del seen[key]
        board.set("raybench_seconds_left", lambda: done.set() or 1.0, suite="end")
        assert done.wait(20)
        board.take_off("raybench_seconds_left", suite="end")
    return {key: value for key, value in seen.items() if key[1] != "end"}


def epoch(trial: Any, val: float, seconds: float) -> EpochRow:
    return EpochRow(
        trial_id=trial.id, epoch=1, train_loss=1, train_accuracy=0.5, val_loss=1, val_accuracy=val, lr=0.1,
        seconds=seconds,
    )  # fmt: skip


def test_the_gauges_of_a_sweep(seen: dict[Any, float], make_trial: Any) -> None:
    trials = make_trial(0), make_trial(1, augmentation=["flip"], augmented_copies=1)
    one, other = (replace(trial, suite="s", cell=("mlp", "none")) for trial in trials)
    begun = replace(planned_row(one), train_images=300)
    gauges = Gauges("s", ["completed", "completed", "pruned"], planned=6, seconds_left=lambda: 12.5)
    gauges.started(one)
    gauges.started(other)
    gauges.epoch(one, epoch(one, 0.25, 2.0), begun)
    gauges.epoch(other, epoch(other, 0.75, 3.0), begun)
    assert after_a_repeat(gauges.board, seen) == {
        ("raybench_trials", "s", "completed"): 2,
        ("raybench_trials", "s", "pruned"): 1,
        ("raybench_trials", "s", "running"): 2,
        ("raybench_trials", "s", "waiting"): 1,
        ("raybench_seconds_left", "s"): 12.5,
        ("raybench_images_per_second", "s", begun.model): 300 / 2 + 2 * 300 / 3,
        ("raybench_val_accuracy", "s", "mlp/none"): 0.75,
    }
    gauges.lost(one, "its node is gone")
    gauges.ended(other, Outcome(row=replace(begun, status="failed")))
    assert after_a_repeat(gauges.board, seen) == {
        ("raybench_trials", "s", "completed"): 2,
        ("raybench_trials", "s", "pruned"): 1,
        ("raybench_trials", "s", "failed"): 1,
        ("raybench_trials", "s", "running"): 0,
        ("raybench_trials", "s", "waiting"): 2,
        ("raybench_seconds_left", "s"): 12.5,
        ("raybench_val_accuracy", "s", "mlp/none"): 0.75,
        ("raybench_retries", "s"): 1,
    }
    gauges.close()
    assert not gauges.board._thread.is_alive(), "what is repeated no more, Ray drops"


def test_memory_is_asked_for_whenever_it_is_shown(seen: dict[Any, float], monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board()
    monkeypatch.setattr(gauges, "_board", lambda: board)
    gauges.show_memory("s", "cpu")
    shown = after_a_repeat(gauges._board(), seen)
    assert set(shown) == {("raybench_device_memory_bytes", "s", "cpu")}
    assert 2**24 < shown["raybench_device_memory_bytes", "s", "cpu"] < 2**40
    gauges.hide_memory("s", "cpu")
    assert after_a_repeat(gauges._board(), seen) == {}
    gauges._board().close()


def test_a_trial_that_is_stopped_shows_no_memory_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise SystemExit

    shown: list[str] = []
    monkeypatch.setattr(actor, "TorchTrainer", lambda loop, **_: SimpleNamespace(fit=loop))
    monkeypatch.setattr(gauges, "show_memory", lambda suite, device: shown.append(device))
    monkeypatch.setattr(gauges, "hide_memory", lambda suite, device: shown.remove(device))
    share = SimpleNamespace(suite="s", device="cpu", job=SimpleNamespace(run=stopped))
    with pytest.raises(SystemExit):
        actor._in_this_process(share, None)
    assert shown == []


def test_each_process_of_a_group_shows_the_memory_of_its_own_gpu(
    seen: dict[Any, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board()
    monkeypatch.setattr(gauges, "_board", lambda: board)
    monkeypatch.setattr(torch.cuda, "memory_reserved", {"cuda:0": 1, "cuda:1": 2}.__getitem__)
    gauges.show_memory("s", "cuda:1")
    assert after_a_repeat(board, seen) == {("raybench_device_memory_bytes", "s", "cuda"): 2}
    board.close()


def test_names_as_prometheus_has_them() -> None:
    assert exported("raybench_trials") == "ray_raybench_trials"
    assert exported("raybench_retries") == "ray_raybench_retries_total"
    tags = {tag for metric in METRICS.values() for tag in metric.tags}
    assert tags == {"suite", "status", "model", "cell", "device"}, "few values each: no trial, no seed"
