"""The story of a run, for the most part without Ray; tests/test_schedule.py has the rest."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from raybench import cli
from raybench import run as story
from raybench.checkpoint import Checkpoints
from raybench.connect import PRELOADED_CPUS
from raybench.errors import DataError, UserError
from raybench.grid import Trial
from raybench.job import Job
from raybench.live import Watch
from raybench.plan import Choice
from raybench.records import FINISHED, EpochRow, Outcome, TrialRow, measured_columns
from raybench.rows import planned_row
from raybench.run import Budget, End, Options, run_missing
from raybench.store import PRUNING, Store
from raybench.suite import load
from raybench.summarize import summarize
from raybench.table import Table
from raybench.trial import failed

SUITE = """
name: noted
dataset: digits
compare: {model: {deep: {name: "timm:resnet10t", head: {}}}, augmentation: [none, flip]}
"""


def test_notes_on_weights_are_shown_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "40")  # what is written to no terminal is not folded
    Path("noted.yaml").write_text(SUITE, encoding="utf-8")
    # An address that is refused once the trials are prepared.
    monkeypatch.setattr(sys, "argv", ["raybench", "run", "noted.yaml", "--address", "ray://nowhere"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "noted",
        "2 trials (model 1 x augmentation 2 x seed 1): 0 finished, 2 to run",
        "WARNING: timm:resnet10t: random weights (pretrained: true for those of the hub, pretrained: false if that is"
        " meant)",
        "raybench: --address ray://nowhere: Ray Client is not supported: use `auto` on the head, or host:6379",
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Search, then confirm, with trials that run in this process one after another

SEARCH = """
name: searched
dataset: {name: digits, train_size: 200, test_size: 100}
compare: {model: {narrow: {name: mlp, hidden: [8]}, wide: {name: mlp, hidden: [64]}}}
search: {lr: [3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 1e-5]}
repeat: {seed: 2}
train: {epochs: 9, batch_size: 16}
prune: asha
"""
DRAWN = SEARCH.replace(
    "search: {lr: [3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 1e-5]}",
    "search: {lr: {range: [1e-5, 1], log: true}}\ndraw: {points: 6, at_once: 3}",
)
Order = Callable[[Sequence[Trial]], Sequence[Trial]]


class Stop(SystemExit):
    """What Ray raises out of a report."""


@pytest.fixture
def ray_free(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``ray_free(order, after)`` runs the trials of a sweep here, in an order of one's own; interrupted after some."""
    from raybench import connect, schedule

    cluster = SimpleNamespace(nodes=(None,), cpus=1, gpus=0, dashboard=None, slots=lambda resources: 1)
    monkeypatch.setattr(connect, "connect", lambda *_, **__: contextlib.nullcontext(cluster))

    def install(order: Order = list, after: int = 10**9) -> None:
        left = [after]

        def run(job: Job, todo: Sequence[Trial], listener: Any, *_: Any, budget: Budget, **__: Any) -> None:
            for trial in order(todo):
                if not budget.allows(trial):
                    raise schedule.Spent
                if not left[0]:
                    raise schedule.Interrupted
                left[0] -= 1
                run_here(job, trial, listener)

        monkeypatch.setattr(schedule, "run", run)

    return install


def test_an_interruption_before_ray_is_up_says_what_it_waits_for(
    tmp_path: Path, ray_free: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raybench import connect, job

    up, text = threading.Event(), io.StringIO()

    class Console_(Console):
        def print(self, *things: Any, **style: Any) -> None:
            super().print(*things, **style)
            if "ending" in str(things[0]):
                up.set()

    @contextlib.contextmanager
    def slow(*_: Any, **__: Any) -> Iterator[None]:
        assert up.wait(60)
        yield

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    ray_free()
    monkeypatch.setattr(connect, "connect", slow)
    monkeypatch.setattr(connect, "without_dashboard", lambda: None)  # of all that runs here
    monkeypatch.setattr(job, "prepare", interrupt)
    (tmp_path / "suite.yaml").write_text(SUITE, encoding="utf-8")
    choice = Choice(load(tmp_path / "suite.yaml"))
    with pytest.raises(KeyboardInterrupt):
        run_missing(choice, Store(tmp_path, choice.suite), Options(data_dir=tmp_path), Console_(file=text))
    assert text.getvalue().splitlines()[-1] == "ending, as soon as Ray has started"


def run_here(job: Job, trial: Trial, listener: Any) -> None:
    begun: list[TrialRow] = []

    def report(row: EpochRow) -> None:
        if listener.epoch(trial, row, begun[0]):
            raise Stop

    listener.started(trial)
    try:
        outcome = job.run(
            trial, begun=begun.append, report=report, warn=lambda warning: listener.warned(trial, warning)
        )
    except Stop:
        listener.stopped(trial)
    else:
        listener.ended(trial, outcome)


def run_suite(folder: Path, text: str, *sets: str, **options: Any) -> tuple[End, Store, Table]:
    folder.mkdir(exist_ok=True)
    (folder / "suite.yaml").write_text(text, encoding="utf-8")
    choice = Choice(load(folder / "suite.yaml", sets))
    store = Store(folder, choice.suite)
    store.open()
    try:
        end = run_missing(choice, store, Options(data_dir=folder, **options), Console(file=io.StringIO()))
    finally:
        store.close()
    rows, damaged = store.read()
    assert not damaged
    return end, store, summarize(rows, choice.suite, choice.trials(store.ended(failed=True)))


def stored(store: Store) -> dict[str, Any]:
    """All that is stored and does not depend on the machine or the moment."""
    trials, epochs, predictions = (store.read(kind)[0] for kind in ("trials", "epochs", "predictions"))
    decisions = pd.read_parquet(store.folder / PRUNING)
    return {
        "trials": trials.drop(columns=measured_columns()).sort_values("trial_id").to_json(orient="records"),
        "epochs": epochs.drop(columns="seconds").sort_values(["trial_id", "epoch"]).to_json(orient="records"),
        "predictions": sorted(set(predictions["trial_id"])),
        "decisions": decisions.sort_values(["trial_id", "epoch"]).to_json(orient="records"),
    }


def shuffled(seed: int) -> Order:
    return lambda trials: random.Random(seed).sample(list(trials), len(trials))


@pytest.mark.parametrize("text", [SEARCH, SEARCH + "confirm: none", DRAWN, SEARCH.replace("asha", "median")])
def test_the_order_in_which_trials_run_changes_nothing(text: str, tmp_path: Path, ray_free: Any) -> None:
    results = []
    for number, order in enumerate([list, lambda trials: list(trials)[::-1], shuffled(1), shuffled(2)]):
        ray_free(order)
        end, store, table = run_suite(tmp_path / str(number), text)
        assert end == "finished"
        lines = [line for line in table.header if not line.startswith("search: ")]  # epochs trained in vain
        results.append((stored(store), table.rows, lines, table.notes))
    assert results[1:] == results[:-1]


def test_a_search_leaves_a_finished_winner_and_pruned_trials_enter_no_number(tmp_path: Path, ray_free: Any) -> None:
    ray_free()
    _, store, table = run_suite(tmp_path, SEARCH)
    rows, _ = store.read()
    assert (rows["status"] == "pruned").sum() >= 4
    pruned = rows[rows["status"] == "pruned"]
    assert pruned["test_accuracy"].isna().all() and (pruned["stage"] == "search").all()
    assert set(pruned["epochs"]) <= {1, 3} and (pruned["best_epoch"] <= pruned["epochs"]).all()
    assert pruned[["val_accuracy", "val_loss", "train_loss", "device", "dataset_fingerprint"]].notna().all(axis=None)
    curves, _ = store.read("epochs")
    assert (curves.groupby("trial_id").size()[pruned["trial_id"]] == pruned.set_index("trial_id")["epochs"]).all()
    assert not set(store.read("predictions")[0]["trial_id"]) & set(pruned["trial_id"])

    keys = [column.name for column in table.columns]
    for model in ("narrow", "wide"):
        mine = rows[rows["model"] == model]
        confirm = mine[mine["stage"] == "confirm"]
        assert sorted(confirm["seed"]) == [0, 1] and confirm["status"].isin(FINISHED).all()
        ended = mine[(mine["seed"] == 0) & mine["status"].isin(FINISHED)]
        assert ended["val_accuracy"].max() == confirm.set_index("seed")["val_accuracy"][0]
        shown = dict(zip(keys, next(row for row in table.rows if row[0] == model), strict=True))
        assert (shown["n"], shown["lr"]) == (2, confirm["lr"].iloc[0])
        assert shown["mean"] == pytest.approx(confirm["test_accuracy"].mean())
    assert table.header[-2] == (
        "lr: in each cell the best of 8 points by val_accuracy with seed 0, trained with every seed; the other points"
        " are in no number"
    )
    saved = int((9 - pruned["epochs_run"]).sum())
    total = int(rows[rows["seed"] == 0]["epochs_run"].sum())
    assert table.header[-1] == (
        f"search: 16 trials, {total} epochs; {len(pruned)} pruned by asha, {saved} of their epochs not trained"
    )
    decisions = pd.read_parquet(store.folder / PRUNING)
    assert set(decisions["trial_id"][decisions["stop"]]) == set(pruned["trial_id"])


def test_the_stages_of_a_search_share_one_copy_of_the_images(
    tmp_path: Path, ray_free: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raybench import job, schedule

    ray_free()
    seen: list[Job] = []
    loads: list[str] = []
    run_trials, load_images = schedule.run, job.load
    monkeypatch.setattr(schedule, "run", lambda job, *rest, **more: seen.append(job) or run_trials(job, *rest, **more))
    monkeypatch.setattr(job, "load", lambda *given: loads.append(given[0].name) or load_images(*given))
    run_suite(tmp_path, DRAWN, "train.smoke=true")
    assert len(seen) >= 3 and loads == ["digits"], "it is read once"
    assert all(job.sources[key] is source for job in seen for key, source in seen[0].sources.items())


@pytest.mark.parametrize("text", [SEARCH, DRAWN])
def test_an_interrupted_search_goes_on_to_the_same_end(text: str, tmp_path: Path, ray_free: Any) -> None:
    ray_free()
    _, whole, table = run_suite(tmp_path / "whole", text)
    (tmp_path / "parts").mkdir()
    for number in range(20):
        ray_free(shuffled(number), after=3)
        end, store, again = run_suite(tmp_path / "parts", text)
        if end == "finished":
            break
        assert end == "interrupted"
        assert "search: no winner is known yet" in again.notes or again.rows
    assert end == "finished" and number >= 4
    assert stored(store) == stored(whole) and again.rows == table.rows


def test_a_failed_trial_of_a_search_is_left_out_and_tried_again(
    tmp_path: Path, ray_free: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it would have won: the next run finds out."""
    ray_free()
    _, whole, table_of_whole = run_suite(tmp_path / "whole", SEARCH)
    best = whole.read()[0].query("stage == 'confirm' and model == 'wide' and seed == 0")["trial_id"].item()
    run = Job.run

    def failing(job: Job, trial: Trial, **options: Any) -> Any:
        if trial.id == best:
            return Outcome(row=failed(planned_row(trial), MemoryError("no room")))
        return run(job, trial, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Job, "run", failing)
        end, store, table = run_suite(tmp_path / "again", SEARCH)
    assert end == "finished" and best in set(store.read()[0].query("status == 'failed'")["trial_id"])
    assert [row[2] for row in table.rows] == [2, 2], "the second best is confirmed"
    assert [note.partition(":")[0] for note in table.notes] == ["search"]
    assert table.notes[0].endswith("/s0 with MemoryError: no room")

    end, store, table = run_suite(tmp_path / "again", SEARCH)
    trials = store.read()[0].set_index("trial_id")
    theirs = whole.read()[0].set_index("trial_id")
    assert end == "finished" and trials["status"][best] in FINISHED and trials["stage"][best] == "confirm"
    assert table.rows == table_of_whole.rows and set(theirs.index) < set(trials.index)


def test_a_checkpoint_outlives_what_is_not_the_trials_fault(
    tmp_path: Path, ray_free: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that cannot be removed is a line, and not the end of the run."""
    text = "{name: kept, dataset: {name: digits}, model: mlp, repeat: {seed: 4}, train: {epochs: 1}}"
    errors = [DataError("its disk is full"), MemoryError("no room"), ValueError("its own")]
    dropped: list[tuple[int, int]] = []
    trials: list[Trial] = []

    def outcome(job: Job, trial: Trial, **_: Any) -> Outcome:
        trials.append(trial)
        row = planned_row(trial)
        if trial.seed < len(errors):
            return Outcome(row=failed(row, errors[trial.seed]))
        return Outcome(row=dataclasses.replace(row, status="completed", epochs=1, test_accuracy=0.5, val_accuracy=0.5))

    def drop(self: Checkpoints, trial_id: str, processes: int) -> None:
        (seed,) = (trial.seed for trial in trials if trial.id == trial_id)
        dropped.append((seed, processes))
        raise OSError("no\nroute")

    ray_free()
    monkeypatch.setattr(Job, "run", outcome)
    monkeypatch.setattr(Checkpoints, "drop", drop)
    said: list[str] = []
    monkeypatch.setattr(Watch, "say", lambda self, line: said.append(line))
    end, store, _ = run_suite(tmp_path, text, checkpoints=Checkpoints(str(tmp_path / "kept")))
    assert end == "finished" and len(store.read()[0]) == 4
    assert dropped == [(2, 1), (3, 1)]
    assert said == [f"s{seed}: its checkpoint stays in {tmp_path / 'kept'}: no route" for seed in (2, 3)]


def test_a_warning_of_many_trials_is_said_once_and_counted(
    tmp_path: Path, ray_free: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_free()
    said: list[str] = []
    monkeypatch.setattr(Watch, "say", lambda self, line: said.append(line))
    gone = Checkpoints(str(tmp_path / "gone"), seconds=0)
    text = (
        "name: s\ndataset: {name: digits, train_size: 100, test_size: 50}\nmodel: mlp\nrepeat: {seed: 3}\n"
        "train: {epochs: 2}\n"
    )
    assert run_suite(tmp_path, text, checkpoints=gone)[0] == "finished"
    first, last = said
    head, warning = first.split(": ", 1)
    assert head == "s0" and warning.startswith(f"its checkpoint in {gone.uri} is not kept: FileNotFoundError: ")
    assert last == f"2 further trials: {warning}"


def test_a_smoke_run_searches_and_confirms(tmp_path: Path, ray_free: Any) -> None:
    ray_free()
    _, store, table = run_suite(tmp_path, SEARCH, "train.smoke=true")
    rows, _ = store.read()
    assert len(rows) == 18 and set(rows["status"]) == {"completed"}
    assert [row[2] for row in table.rows] == [2, 2]


# ---------------------------------------------------------------------------------------------------------------------
# The start


@pytest.mark.ray
def test_a_run_in_a_terminal(tmp_path: Path) -> None:
    """Its table goes to stdout, wherever that leads, and its trial gets a process that was started with Ray."""
    (tmp_path / "s.yaml").write_text(
        f"name: s\nimports: [clocked]\ndataset: {{name: digits, train_size: 200, test_size: 100}}\n"
        f'model: {{name: clocked, file: "{tmp_path}/times.json"}}\nrepeat: {{seed: 1}}\ntrain: {{epochs: 1}}\n'
    )
    # Its file, not the module: importing it here would register its model for the tests of all other files.
    shutil.copy(Path(__file__).parents[1] / "benchmarks" / "clocked.py", tmp_path)
    command = [sys.executable, "-m", "raybench.cli", "run", "s.yaml", "--results", "r", "--format", "csv"]
    ours, terminal = pty.openpty()
    env, shown, up = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}, b"", math.nan
    with open(tmp_path / "table.csv", "w") as table:
        run = subprocess.Popen(command, cwd=tmp_path, stdout=table, stderr=terminal, env=env)
    os.close(terminal)
    with contextlib.suppress(OSError):  # the terminal is gone once the run is
        while read := os.read(ours, 65536):
            shown += read
            if math.isnan(up) and b"Ray: 1 node" in shown:
                up = time.time()
    os.close(ours)
    assert run.wait() == 0, shown.decode()
    head, row = (tmp_path / "table.csv").read_text().splitlines()
    assert "mean" in head.split(",") and len(row.split(",")) == len(head.split(","))
    assert b"running " in shown, "the live view"
    if (os.cpu_count() or 1) <= PRELOADED_CPUS:
        # It holds PyTorch by then: what `clocked` notes of it began before Ray was up.
        assert json.loads((tmp_path / "times.json").read_text())["process"] < up


@pytest.mark.ray
def test_a_mistake_that_is_found_while_ray_starts_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("name: s\ndataset: {name: imagefolder, folder: nowhere}\nmodel: mlp\n")
    command = [sys.executable, "-m", "raybench.cli", "run", "s.yaml", "--results", "r"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "MARK": str(tmp_path)}, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("raybench: "), done.stderr
    assert "Traceback" not in done.stderr
    # What the dashboard forked notices that it has gone when its imports are done.
    until = time.monotonic() + 60
    while (left := list(marked(tmp_path))) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left


SLEEPING_DASHBOARD = """
import time
from pathlib import Path

if b"ray/dashboard/dashboard.py" in Path("/proc/self/cmdline").read_bytes():
    Path(__file__).with_name("asleep").touch()
    time.sleep(1000)
"""


@pytest.mark.ray
def test_an_interruption_does_not_wait_for_a_dashboard_that_it_ended_too(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SUITE, encoding="utf-8")
    (tmp_path / "sitecustomize.py").write_text(SLEEPING_DASHBOARD)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "1000"}
    command = [sys.executable, "-m", "raybench.cli", "run", "s.yaml", "--results", "r"]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment)
    while not (tmp_path / "asleep").exists():
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    try:
        said = run.communicate(timeout=120)[1].splitlines()
    finally:
        run.kill()
    assert run.returncode == 130
    assert [line for line in said if line][-2:] == [
        "ending, as soon as Ray has started",
        "raybench: interrupted; the same command again goes on where this one stopped",
    ]


def marked(mark: Path) -> Iterator[bytes]:
    """Yield the command lines of the processes whose environment has this ``MARK``."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # of another user, or gone by now
            if f"MARK={mark}".encode() in environment.read_bytes().split(b"\0"):
                yield environment.parent.joinpath("cmdline").read_bytes()


# ---------------------------------------------------------------------------------------------------------------------
# Budgets

GRID = """
name: grid
dataset: {name: digits, train_size: 200, test_size: 100}
compare: {model: [mlp, small_cnn], augmentation: [none, flip]}
repeat: {seed: 3}
"""


@pytest.mark.parametrize(
    "text",
    [GRID, GRID + "search: {lr: [0.1, 0.01]}", GRID + "search: {lr: [0.1, 0.01]}\nconfirm: none", DRAWN],
    ids=["grid", "search", "search alone", "drawn"],
)
def test_stopping_after_any_trial_leaves_about_equal_n(
    text: str, tmp_path: Path, ray_free: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_once(job: Job, trial: Trial, **options: Any) -> Outcome:
        numbers = {"epochs": 1, "best_epoch": 1, "val_accuracy": trial.settings["train"]["lr"], "test_accuracy": 0.5}
        return Outcome(row=dataclasses.replace(planned_row(trial), status="completed", **numbers))

    monkeypatch.setattr(Job, "run", at_once)
    ray_free()
    ends: list[End] = []
    while ends[-1:] != ["finished"]:
        end, store, table = run_suite(tmp_path, text, max_trials=1)
        ends.append(end)
        assert len(store.done()[0]) == len(ends), "one more"
        n = [row[[column.name for column in table.columns].index("n")] for row in table.rows]
        assert not n or max(n) - min(n) <= 1
    assert ends == ["spent"] * (Choice(load(tmp_path / "suite.yaml")).planned() - 1) + ["finished"]


def test_a_budget_of_time_starts_nothing_that_would_not_end(
    load_suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(story, "time", clock)
    mlp, cnn, *_ = load_suite(GRID.replace("none, flip", "none"))[1]
    budget = Budget(Options(data_dir=tmp_path, budget=100))
    assert budget.seconds() == 100 and budget.allows(mlp) and budget.allows(cnn), "how long they take is not known"
    budget.took(mlp, 40)
    budget.took(mlp, 30)
    clock.now += 59
    assert budget.allows(mlp), "41 seconds are left"
    clock.now += 1
    assert not budget.allows(mlp) and budget.allows(cnn)
    clock.now += 40
    assert budget.seconds() == 0 and not budget.allows(cnn)


def test_a_trial_that_is_started_again_counts_once(load_suite: Any, tmp_path: Path) -> None:
    first, second, third, *_ = load_suite(GRID)[1]
    budget = Budget(Options(data_dir=tmp_path, max_trials=2))
    assert budget.seconds() is None
    assert [budget.allows(trial) for trial in (first, second, third, first)] == [True, True, False, True]


def test_pruning_takes_nothing_back_that_was_finished_before(tmp_path: Path, ray_free: Any) -> None:
    """Neither when `prune` is added to what has run, nor when it is taken away again."""
    ray_free()
    plain = SEARCH.replace("prune: asha\n", "") + "confirm: none"
    _, store, _ = run_suite(tmp_path, plain)
    before = store.read()[0].set_index("trial_id")
    assert set(before["status"]) == {"completed"}
    _, store, _ = run_suite(tmp_path, SEARCH)
    after = store.read()[0].set_index("trial_id").loc[before.index]
    assert after["status"].equals(before["status"]) and after["test_accuracy"].equals(before["test_accuracy"])

    _, store, _ = run_suite(tmp_path / "other", SEARCH)
    assert "pruned" in set(store.read()[0]["status"])
    finished, store, table = run_suite(tmp_path / "other", plain)
    assert finished and set(store.read()[0]["status"]) == {"completed"} and {row[2] for row in table.rows} == {2}


def test_a_summary_survives_a_run_that_could_not_begin(tmp_path: Path, ray_free: Any) -> None:
    ray_free()
    run_suite(tmp_path, SEARCH)
    kept = (tmp_path / "searched" / "suite.json").read_bytes()
    with pytest.raises(UserError):
        run_suite(tmp_path, SEARCH, "dataset={name: cifar10, folder: null}")
    assert (tmp_path / "searched" / "suite.json").read_bytes() == kept


# ---------------------------------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize("keep", ["best", "all"])
def test_weights_of_a_search(keep: str, tmp_path: Path, ray_free: Any) -> None:
    """While it goes on any point may win; then ``best`` keeps those that did. Those that were pruned have none."""
    ray_free(after=8)
    end, store, _ = run_suite(tmp_path, SEARCH, f"keep_weights={keep}")
    rows = store.read()[0]
    assert end == "interrupted" and set(rows["stage"]) == {"search"}
    assert store.kept_weights() == set(rows["trial_id"][rows["status"].isin(FINISHED)]) != set()

    ray_free()
    _, store, _ = run_suite(tmp_path, SEARCH, f"keep_weights={keep}")
    rows = store.read()[0]
    done = rows[rows["status"].isin(FINISHED)]
    assert {"search", "confirm"} == set(done["stage"]) and "pruned" in set(rows["status"])
    expected = done if keep == "all" else done[done["stage"] == "confirm"]
    assert store.kept_weights() == set(expected["trial_id"])
    assert all(store.weights(trial_id)[8:9] == b"{" for trial_id in store.kept_weights())


def test_trials_that_ended_before_weights_were_kept_are_not_trained_again(tmp_path: Path, ray_free: Any) -> None:
    ray_free(after=3)
    _, store, _ = run_suite(tmp_path, GRID)
    assert store.kept_weights() == set()
    before = store.read()[0].set_index("trial_id")["started_at"]

    def run_again(*sets: str) -> str:
        out, choice = io.StringIO(), Choice(load(tmp_path / "suite.yaml", sets))
        store.open()
        try:
            run_missing(choice, store, Options(data_dir=tmp_path), Console(file=out))
        finally:
            store.close()
        return out.getvalue()

    ray_free(after=1)
    note = "weights of 3 finished trials were not kept: to train again, choose another --results\n"
    assert note in run_again("keep_weights=best")
    assert len(store.kept_weights()) == 1
    assert store.read()[0].set_index("trial_id")["started_at"].loc[before.index].equals(before)
    ray_free(after=0)
    assert note in run_again("keep_weights=all")
    assert "weights of" not in run_again()
    assert len(store.kept_weights()) == 1, "what is kept stays where nothing more is asked for"
