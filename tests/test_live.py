"""What a person sees of a sweep: a line per ended trial in a file, a live view on a terminal."""

from __future__ import annotations

import dataclasses
import io
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from raybench import live
from raybench.grid import Trial
from raybench.live import Watch, duration
from raybench.records import EpochRow, Outcome
from raybench.rows import planned_row
from raybench.suite import Suite

LoadSuite = Callable[..., tuple[Suite, list[Trial]]]
SUITE = """
name: watched
dataset: {name: digits}
compare: {model: [mlp, small_cnn], augmentation: [none]}
search: {lr: [1e-3]}
repeat: {seed: 3}
train: {epochs: 20}
"""


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(live, "time", made)
    return made


@pytest.fixture
def trials(load_suite: LoadSuite) -> list[Trial]:
    return load_suite(SUITE)[1]


def test_what_is_being_done_is_shown_on_a_terminal_and_stdout_stays_what_it_is() -> None:
    console, file = terminal()
    stdout = sys.stdout
    with live.busy(console, "reading [x]") as say:
        assert sys.stdout is stdout, "who redirects it now would give back rich's in the end"
        console.print("between", markup=False)
        say("writing [/y]")
    assert sys.stdout is stdout
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "reading [x]" in shown and "between" in shown and "writing [/y]" in shown
    console, file = plain()
    with live.busy(console, "reading"):
        pass
    assert file.getvalue() == ""


def plain() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=60), file


def terminal(width: int = 100) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=width, height=30, force_terminal=True, legacy_windows=False, _environ={}), file


def outcome(trial: Trial, **columns: Any) -> Outcome:
    finished = {"status": "completed", "epochs": 20, "best_epoch": 17, "val_accuracy": 0.98765, "test_accuracy": 0.9}
    return Outcome(row=dataclasses.replace(planned_row(trial), **{**finished, "wall_seconds": 75.0, **columns}))


def failure(trial: Trial, error_class: str, error: str) -> Outcome:
    return Outcome(row=dataclasses.replace(planned_row(trial), error_class=error_class, error=error))


def epoch(number: int, accuracy: float) -> EpochRow:
    return EpochRow(
        trial_id="t",
        epoch=number,
        train_loss=1.0,
        train_accuracy=accuracy,
        val_loss=1.0,
        val_accuracy=accuracy / 2,
        lr=0.1,
    )


def frames(file: io.StringIO) -> str:
    """Return what was drawn, without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())


def test_a_line_per_ended_trial(trials: list[Trial], clock: Clock) -> None:
    console, file = plain()
    with Watch(console, planned=12, done=6, slots=2) as watch:
        watch.started(trials[0])
        watch.epoch(trials[0], epoch(1, 0.5))
        clock.now += 30
        watch.ended(trials[0], outcome(trials[0]))
        clock.now += 30
        watch.ended(trials[1], outcome(trials[1], status="stopped_early", epochs=7, best_epoch=5, wall_seconds=4.2))
        watch.ended(trials[2], failure(trials[2], "out_of_memory", "MemoryError: [red]no[/red] 'room' for 10 GB"))
        watch.ended(trials[3], outcome(trials[3], status="pruned", epochs=3, best_epoch=None, test_accuracy=None))
        clock.now += 3600
        watch.ended(trials[4], failure(trials[4], "node_lost", "x" * 100))
        watch.ended(trials[5], outcome(trials[5], wall_seconds=None))
    accuracies = "val 0.9877, test 0.9000"
    assert file.getvalue().splitlines() == [
        f"[ 7/12] mlp/none/0.001/s0: completed after epoch 20, best 17, {accuracies}, 1:15, left 2:30",
        f"[ 8/12] small_cnn/none/0.001/s0: stopped early after epoch 7, best 5, {accuracies}, 4.2 s, left 2:00",
        "[ 9/12] mlp/none/0.001/s1: failed (out_of_memory): MemoryError: [red]no[/red] 'room' for 10 GB",
        "[10/12] small_cnn/none/0.001/s1: pruned after epoch 3, 1:15, left 0:30",
        f"[11/12] mlp/none/0.001/s2: failed (node_lost): {'x' * 100}",
        f"[12/12] small_cnn/none/0.001/s2: completed after epoch 20, best 17, {accuracies}, 0.0 s, left 0.0 s",
    ]


def test_the_view_on_a_terminal(trials: list[Trial]) -> None:
    console, file = terminal()
    with Watch(console, planned=8, done=2, slots=3) as watch:
        for trial in trials[:3]:
            watch.started(trial)
        watch.epoch(trials[0], epoch(3, 0.5))
        watch.epoch(trials[0], epoch(4, 0.75))
        watch.epoch(trials[3], epoch(1, 0.25))  # its start was not told
        watch.ended(trials[1], outcome(trials[1], test_accuracy=0.5))
        watch.ended(trials[4], failure(trials[4], "diverged", "Diverged: [b]nan[/b]"))
        watch.ended(trials[5], outcome(trials[5], test_accuracy=0.25))
    last = frames(file).rpartition("trials ")[2]
    assert re.search(r"5/8 +\d[\d.]*/min 0:00:0\d left", last)
    assert "running 3 of 3" in last
    assert re.search(r"^mlp/none/0.001/s0 +4/20 +0\.7500 +0\.3750 +\d\.\d s *$", last, re.MULTILINE)
    assert re.search(r"^mlp/none/0.001/s1 +starting +\d\.\d s *$", last, re.MULTILINE)
    assert re.search(r"^small_cnn/none/0.001/s1 +1/20 +0\.2500 +0\.1250 +\d\.\d s *$", last, re.MULTILINE)
    assert "small_cnn/none/0.001/s0  " not in last.partition("best")[0]
    assert "best test accuracy so far 0.5000  small_cnn/none/0.001/s0" in last
    assert "1 failed, last (diverged): Diverged: [b]nan[/b]" in last
    assert "completed after" not in frames(file)  # lines are for files


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (
            60,
            [
                "running 2 of 2                         epoch  val acc    for",
                "mlp/none/0.001/s0                       4/20   0.3750  0.0 s",
                "small_cnn/none/0.001/s0             starting           0.0 s",
                "best test accuracy so far 0.5000  mlp/none/0.001/s1",
                "1 failed, last (diverged): Diverged: nan",
            ],
        ),
        (
            40,
            [
                "trials 4/8, left 0:30",
                "running 2 of 2            epoch  val acc",
                "mlp/none/0.001/s0          4/20   0.3750",
                "small_cnn/none/0.001…  starting",
                "best test accuracy so far 0.5000",
                "mlp/none/0.001/s1",
                "1 failed, last (diverged): Diverged: nan",
            ],
        ),
        (
            20,
            [
                "trials 4/8, left",
                "0:30",
                "running 2…     epoch",
                "mlp/none/…      4/20",
                "small_cnn…  starting",
                "best test accuracy",
                "so far 0.5000",
                "mlp/none/0.001/s1",
                "1 failed, last (dive",
            ],
        ),
    ],
)
def test_the_view_on_a_narrow_terminal(trials: list[Trial], clock: Clock, width: int, lines: list[str]) -> None:
    console, file = terminal(width)
    with Watch(console, planned=8, done=2, slots=2) as watch:
        watch.started(trials[0])
        watch.epoch(trials[0], epoch(4, 0.75))
        watch.started(trials[1])
        clock.now += 15
        for trial in trials[:2]:
            watch.running[trial.id].since = clock.now
        watch.ended(trials[2], outcome(trials[2], test_accuracy=0.5))
        watch.ended(trials[3], failure(trials[3], "diverged", "Diverged: nan"))
    last = "trials " + frames(file).rpartition("trials ")[2]
    drawn = [line.rstrip() for line in last.splitlines() if line.strip()]
    assert drawn[-len(lines) :] == lines


def test_a_smoke_run_has_an_epoch_of_each_phase(load_suite: LoadSuite) -> None:
    _, trials = load_suite(SUITE.replace("epochs: 20", "smoke: true, phases: [{epochs: 7}, {epochs: 8}]"))
    console, file = terminal()
    with Watch(console, planned=1, done=0, slots=1) as watch:
        watch.epoch(trials[0], epoch(1, 0.5))
    assert re.search(r"^mlp/none/0.001/s0 +1/2 ", frames(file), re.MULTILINE)


def test_the_best_has_the_name_of_its_trial(load_suite: LoadSuite) -> None:
    _, trials = load_suite(SUITE.replace("augmentation: [none]", "recipe: {plain: {}, smooth: {train.l2: 0.1}}"))
    console, file = terminal()
    with Watch(console, planned=12, done=0, slots=1) as watch:
        watch.ended(trials[1], outcome(trials[1]))
    assert "best test accuracy so far 0.9000  mlp/smooth/0.001/s0" in frames(file)


def test_the_terminal_is_given_back(trials: list[Trial]) -> None:
    console, file = terminal()
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    with pytest.raises(KeyboardInterrupt), Watch(console, planned=1, done=0, slots=1) as watch:
        watch.started(trials[0])
        assert hidden in file.getvalue() and shown not in file.getvalue()
        raise KeyboardInterrupt
    assert file.getvalue().rindex(shown) > file.getvalue().rindex(hidden)


def test_more_trials_than_lines(load_suite: LoadSuite) -> None:
    _, trials = load_suite(SUITE, "repeat.seed=50")
    console, file = terminal()
    with Watch(console, planned=100, done=0, slots=100) as watch:
        for trial in trials:
            watch.started(trial)
    last = frames(file).rpartition("running 100 of 100")[2]
    assert last.count("starting") == 22


def test_only_finished_trials_can_be_the_best(trials: list[Trial], clock: Clock) -> None:
    console, _ = plain()
    watch = Watch(console, planned=6, done=0, slots=1)
    clock.now += 1
    assert watch.best is None
    watch.ended(trials[0], failure(trials[0], "error", "e"))
    watch.ended(trials[1], outcome(trials[1], status="pruned", test_accuracy=0.99))
    assert watch.best is None
    for trial, accuracy in zip(trials[2:], (0.5, 0.7, 0.7, 0.6), strict=True):
        watch.ended(trial, outcome(trial, test_accuracy=accuracy))
    assert watch.best == (0.7, "small_cnn/none/0.001/s1")
    assert watch.failures == 1


def test_ten_thousand_trials(load_suite: LoadSuite) -> None:
    _, trials = load_suite(SUITE, "repeat.seed=5000")
    console, file = terminal()
    with Watch(console, planned=10_000, done=0, slots=8) as watch:
        for number, trial in enumerate(trials):
            watch.started(trial)
            watch.ended(trial, failure(trial, "error", "e") if number % 2 else outcome(trial))
    last = frames(file).rpartition("trials ")[2]
    assert "10000/10000" in last and "left 0.0 s" in last and "5000 failed, last (error): e" in last
    assert watch.running == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.23, "4.2 s"),
        (9.94, "9.9 s"),
        (10, "0:10"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (185, "3:05"),
        (3599.7, "1:00:00"),
        (7385, "2:03:05"),
        (360000, "100:00:00"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
