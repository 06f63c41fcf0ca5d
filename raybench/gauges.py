"""What a run tells Prometheus, through the metrics agent of every Ray node.

`METRICS` is the one list of names; Ray puts ``ray_`` before each, and ``_total`` behind a counter. Tags have few
values: a suite, a status, a cell; never a trial.
"""

from __future__ import annotations

import functools
import resource
import threading
from collections import Counter as Count
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import raybench.rayenv  # noqa: F401  # isort: skip  # sets what Ray reads when it is imported

import ray.util.metrics
import torch

from raybench.grid import Trial
from raybench.records import EpochRow, Outcome, TrialRow

Name = Literal[
    "raybench_trials",
    "raybench_images_per_second",
    "raybench_val_accuracy",
    "raybench_device_memory_bytes",
    "raybench_retries",
    "raybench_seconds_left",
]


REPEAT_SECONDS = 1


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: what it means, and its tags besides those that Ray adds (node, process, session)."""

    about: str
    tags: tuple[str, ...]
    counter: bool = False


METRICS: dict[Name, Metric] = {
    "raybench_trials": Metric(
        "Trials of the suite by status: waiting, running, completed, stopped_early, pruned, failed.",
        ("suite", "status"),
    ),
    "raybench_images_per_second": Metric(
        "Training images per second of the running trials of a model together, evaluation included.",
        ("suite", "model"),
    ),
    "raybench_val_accuracy": Metric(
        "Validation accuracy, 0 to 1, in the epoch of a cell that was reported last.", ("suite", "cell")
    ),
    "raybench_device_memory_bytes": Metric(
        "Memory that a process of a trial holds: of the GPU, or its resident memory where it trains on the CPU.",
        ("suite", "device"),
    ),
    "raybench_retries": Metric(
        "Trials that started again because a process or a node was lost, or memory ran out.", ("suite",), counter=True
    ),
    "raybench_seconds_left": Metric("Estimate of the time until the suite is finished.", ("suite",)),
}


def exported(name: Name) -> str:
    """Return what a metric is called in Prometheus."""
    return f"ray_{name}_total" if METRICS[name].counter else f"ray_{name}"


@functools.cache
def _made(name: Name) -> Any:
    metric = METRICS[name]
    kind = ray.util.metrics.Counter if metric.counter else ray.util.metrics.Gauge
    return kind(name, metric.about, metric.tags)


Value = float | Callable[[], float]


class Board:
    """The gauges of this process. Ray drops a gauge that is not set anew between two of its reports, which come every
    10 s or, where it was told so, every second: a thread repeats all of them until they are taken off."""

    def __init__(self) -> None:
        self._values: dict[tuple[Name, tuple[tuple[str, str], ...]], Value] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="raybench metrics", daemon=True)
        self._thread.start()

    def set(self, name: Name, value: Value, **tags: str) -> None:
        """Show ``value``, or what it returns whenever it is asked."""
        self._values[name, tuple(tags.items())] = value

    def take_off(self, name: Name, **tags: str) -> None:
        self._values.pop((name, tuple(tags.items())), None)

    def _repeat(self) -> None:
        while not self._over.wait(REPEAT_SECONDS):
            for (name, tags), value in list(self._values.items()):
                _made(name).set(value() if callable(value) else value, tags=dict(tags))

    def close(self) -> None:
        """Take all gauges off, and wait until nothing is repeated any more."""
        self._values.clear()
        self._over.set()
        self._thread.join()


class Gauges:
    """Follows a sweep in the driver (`raybench.run.Follower`); its gauges end with it."""

    def __init__(
        self, suite: str, statuses: Iterable[str], planned: int, seconds_left: Callable[[], float | None]
    ) -> None:
        """``statuses`` are those of the trials that have ended already, ``planned`` all there will be."""
        self.suite, self.planned, self.seconds_left = suite, planned, seconds_left
        self.ended_as = Count(statuses)
        self.running: set[str] = set()
        self.rates: dict[str, tuple[str, float]] = {}
        """Model and images per second of each running trial, since its first epoch."""
        self.board = Board()
        self._count()

    def _set(self, name: Name, value: float, **tags: str) -> None:
        self.board.set(name, value, suite=self.suite, **tags)

    def _count(self) -> None:
        for status, count in self.ended_as.items():
            self._set("raybench_trials", count, status=status)
        self._set("raybench_trials", len(self.running), status="running")
        waiting = self.planned - self.ended_as.total() - len(self.running)
        self._set("raybench_trials", max(0, waiting), status="waiting")
        left = self.seconds_left()
        if left is not None:
            self._set("raybench_seconds_left", left)

    def _rate(self, model: str) -> None:
        rates = [rate for other, rate in self.rates.values() if other == model]
        if rates:
            self._set("raybench_images_per_second", sum(rates), model=model)
        else:
            self.board.take_off("raybench_images_per_second", suite=self.suite, model=model)

    def _left(self, trial: Trial) -> None:
        """Count a trial that runs no longer."""
        self.running.discard(trial.id)
        if trial.id in self.rates:
            model, _ = self.rates.pop(trial.id)
            self._rate(model)
        self._count()

    def started(self, trial: Trial) -> None:
        self.running.add(trial.id)
        self._count()

    def epoch(self, trial: Trial, row: EpochRow, begun: TrialRow) -> None:
        if begun.train_images and row.seconds > 0:
            images = begun.train_images * (1 + trial.settings["train"]["augmented_copies"])
            self.rates[trial.id] = begun.model, images / row.seconds
            self._rate(begun.model)
        self._set("raybench_val_accuracy", row.val_accuracy, cell="/".join(map(str, trial.cell)) or self.suite)

    def lost(self, trial: Trial, reason: str) -> None:
        _made("raybench_retries").inc(tags={"suite": self.suite})
        self._left(trial)

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        self.ended_as[outcome.row.status] += 1
        self._left(trial)

    def close(self) -> None:
        self.board.close()


@functools.cache
def _board() -> Board:
    return Board()


def show_memory(suite: str, device: str) -> None:
    """Show what this process of a trial holds of its device's memory, until `hide_memory`."""
    held = functools.partial(torch.cuda.memory_reserved, device) if device.startswith("cuda") else _resident
    _board().set("raybench_device_memory_bytes", held, suite=suite, device=device.partition(":")[0])


def hide_memory(suite: str, device: str) -> None:
    _board().take_off("raybench_device_memory_bytes", suite=suite, device=device.partition(":")[0])


def _resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # no Linux: the most it ever held
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
