"""Trials on a real Ray: the same numbers as in this process, and faults that stay where they happen."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raybench.checkpoint import Checkpoints
from raybench.data import Source
from raybench.grid import Trial
from raybench.job import Job, prepare
from raybench.plan import expand
from raybench.records import EpochRow, Outcome, TrialRow, computed
from raybench.registry import MODELS
from raybench.settings import Resources
from raybench.suite import load
from raybench.weights import restored

pytestmark = [
    pytest.mark.ray,
    # Ray 2.60 leaves sockets and files to the garbage collector, and warns about its own deprecated names.
    pytest.mark.filterwarnings("ignore"),
]


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.epochs: list[tuple[str, int]] = []
        self.starts: list[str] = []
        self.losses: list[tuple[str, str]] = []
        self.warnings: list[tuple[str, str]] = []

    def started(self, trial: Trial) -> None:
        self.starts.append(trial.id)

    def epoch(self, trial: Trial, row: EpochRow, begun: TrialRow) -> bool:
        assert begun.trial_id == row.trial_id == trial.id and begun.started_at is not None
        self.epochs.append((trial.id, row.epoch))
        return False

    def stopped(self, trial: Trial) -> None:
        raise AssertionError("none was to stop")

    def lost(self, trial: Trial, reason: str) -> None:
        self.losses.append((trial.name, reason))

    def warned(self, trial: Trial, warning: str) -> None:
        self.warnings.append((trial.name, warning))

    def no_room(self, reason: str) -> None:
        raise AssertionError(reason)

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        assert trial.id not in self.outcomes, "a trial ended twice"
        self.outcomes[trial.id] = outcome


@pytest.fixture(autouse=True)
def own_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what a test's modules register from other files' tests."""
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))


def job_of(folder: Path, text: str) -> tuple[Job, list[Trial], tuple[str, ...]]:
    (folder / "suite.yaml").write_text(text)
    suite = load(folder / "suite.yaml")
    trials = expand(suite)
    return prepare(suite, trials, folder), trials, suite.imports


def assert_same(one: Outcome, other: Outcome) -> None:
    """Bit for bit, but for times and places."""
    # The commit may be unknown on one side; it is no computed column.
    assert computed(one.row) == computed(other.row)
    assert [computed(row) for row in one.epochs] == [computed(row) for row in other.epochs]
    assert one.predictions is not None and other.predictions is not None
    assert np.array_equal(one.predictions.logits, other.predictions.logits)
    assert np.array_equal(one.predictions.index, other.predictions.index)
    assert one.weights == other.weights


SAME = """
name: same
dataset: {name: digits, train_size: 400}
compare: {model: [small_cnn, mlp], augmentation: {none: none, all: [{shift: 0.1}, {rotation: 10}, {zca: 1e-2}]}}
repeat: {seed: 2}
train: {epochs: 3, lr: 3e-3, early_stopping: {patience: 2}}
keep_weights: best
"""


def test_rows_are_the_same_in_process_on_ray_in_fresh_and_reused_actors(cluster, tmp_path, monkeypatch) -> None:
    import ray

    from raybench import schedule

    job, trials, _ = job_of(tmp_path, SAME)
    expected = {trial.id: job.run(trial) for trial in trials}
    assert {outcome.row.status for outcome in expected.values()} <= {"completed", "stopped_early"}
    assert len({outcome.weights for outcome in expected.values()}) == len(trials)

    # Eight trials on two slots: an actor's first trial is its first, the others find it used.
    both, one = Heard(), Heard()
    put: list[object] = []
    monkeypatch.setattr(ray, "put", lambda thing, put_=ray.put: put.append(thing) or put_(thing))
    schedule.run(job, trials, both, cluster)
    schedule.run(job, trials[::-1], one, cluster, max_concurrent=1)
    assert sum(isinstance(thing, Source) for thing in put) == 1, "a later stage of a search finds the images there"
    for trial in trials:
        assert_same(expected[trial.id], both.outcomes[trial.id])
        assert_same(expected[trial.id], one.outcomes[trial.id])
        epochs = expected[trial.id].row.epochs
        assert [e for i, e in one.epochs if i == trial.id] == list(range(1, epochs + 1))
    assert one.starts == [trial.id for trial in trials[::-1]]


STREAMED = """
name: streamed
dataset: {name: imagefolder, stream: STREAM}
model: mlp
augmentation: [{shift: 0.1}, standardize]
repeat: {seed: 2}
train: {epochs: 2, batch_size: 8}
"""


def test_streamed_images_stay_out_of_the_object_store_and_give_the_same_rows(cluster, tmp_path, monkeypatch) -> None:
    import ray

    from raybench import schedule

    monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for split, label, number in product(("train", "test"), "ab", range(20)):
        (tmp_path / split / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / split / label / f"{number}.png")
    held, trials, _ = job_of(tmp_path, STREAMED.replace("STREAM", "false"))
    expected = {trial.id: held.run(trial) for trial in trials}
    job, same, _ = job_of(tmp_path, STREAMED.replace("STREAM", "true"))
    assert [trial.id for trial in same] == list(expected)

    put: list[object] = []
    monkeypatch.setattr(ray, "put", lambda thing, put_=ray.put: put.append(thing) or put_(thing))
    shutil.rmtree(tmp_path / "cache")  # the nodes make it from the images
    heard = Heard()
    schedule.run(job, same, heard, cluster)
    assert not any(isinstance(thing, Source) for thing in put)
    for trial in same:
        outcome, other = expected[trial.id], heard.outcomes[trial.id]
        assert_same(replace(outcome, row=replace(outcome.row, settings=other.row.settings)), other)

    shutil.rmtree(tmp_path / "test")
    heard = Heard()
    schedule.run(job, same[:1], heard, cluster)
    row = heard.outcomes[same[0].id].row
    assert (row.status, row.error_class) == ("failed", "data")
    assert row.error == (
        f"DataError: no images in {tmp_path}/test: put a folder of them per class there, or set dataset.folder"
    )


FAULTS_MODULE = """
import ctypes, os, sys, time
import torch
from raybench.registry import MODELS
from raybench.models import mlp

def bad(name):
    class Bad(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
        def forward(self, x):
            if self.training:
                FAULTS[name]()
            return self.inner(x)
    @MODELS.register(name)
    def build(shape, classes):
        return Bad(mlp(shape, classes))

def raises(): raise ValueError("the user's own bug")
def interrupt(): raise KeyboardInterrupt
FAULTS = {
    "raises": raises,
    "exits": lambda: sys.exit(0),
    "interrupts": interrupt,
    "dies": lambda: os._exit(3),
    "segfaults": lambda: ctypes.string_at(0),
}
for name in FAULTS:
    bad(name)
"""


def test_a_fault_is_one_failed_row_and_harms_no_other_trial(cluster, tmp_path, monkeypatch) -> None:
    from raybench import schedule

    (tmp_path / "faulty_models.py").write_text(FAULTS_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    job, trials, imports = job_of(
        tmp_path,
        """
name: faults
imports: [faulty_models]
dataset: {name: digits, train_size: 100, test_size: 50}
compare: {model: [mlp, raises, exits, interrupts, dies, segfaults]}
repeat: {seed: 2}
train: {epochs: 1}
""",
    )
    heard = Heard()
    schedule.run(job, trials, heard, cluster, imports=imports, paths=[str(tmp_path)])
    rows = {(trial.cell[0], trial.seed): heard.outcomes[trial.id].row for trial in trials}
    for seed in (0, 1):
        assert rows["mlp", seed].status == "completed"
        assert rows["raises", seed].error == "ValueError: the user's own bug"
        assert "in raises" in rows["raises", seed].traceback
        assert rows["exits", seed].error == "SystemExit: 0"
        assert rows["interrupts", seed].error == "KeyboardInterrupt:"
        for model in ("raises", "exits", "interrupts"):
            assert (rows[model, seed].status, rows[model, seed].error_class) == ("failed", "error")
        for model in ("dies", "segfaults"):
            assert (rows[model, seed].status, rows[model, seed].error_class) == ("failed", "crashed"), rows[model, seed]


@pytest.mark.parametrize(
    ("fault", "error"),
    [("raise Own('of the', 'user')", "Own: of the user"), ("sys.exit(3)", "SystemExit: 3")],
    ids=["raises", "exits"],
)
def test_a_module_that_cannot_be_imported_in_a_trial_is_what_its_row_says(
    cluster, tmp_path, monkeypatch, fault: str, error: str
) -> None:
    from raybench import schedule

    (tmp_path / "faulty_there.py").write_text(f"""
import sys

class Own(Exception):
    def __init__(self, first, second):
        super().__init__(f"{{first}} {{second}}")

if sys.argv[0].endswith("default_worker.py"):
    {fault}
""")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "name: s\nimports: [faulty_there]\ndataset: {name: digits, train_size: 100, test_size: 50}\nmodel: mlp\n"
    job, (trial,), imports = job_of(tmp_path, text)
    heard = Heard()
    schedule.run(job, [trial], heard, cluster, imports=imports, paths=[str(tmp_path)])
    row = heard.outcomes[trial.id].row
    assert (row.status, row.error_class, row.attempts, row.error) == ("failed", "error", 1, error)
    assert "faulty_there.py" in row.traceback


def test_a_checkpoint_that_cannot_be_kept_is_told(cluster, tmp_path) -> None:
    from raybench import schedule

    text = "name: s\ndataset: {name: digits, train_size: 100, test_size: 50}\nmodel: mlp\ntrain: {epochs: 2}\n"
    job, (trial,), _ = job_of(tmp_path, text)
    heard = Heard()
    gone = Checkpoints(str(tmp_path / "gone"), seconds=0)
    schedule.run(replace(job, checkpoints=gone), [trial], heard, cluster)
    assert heard.outcomes[trial.id].row.status == "completed"
    ((name, warning),) = heard.warnings
    assert name == trial.name and warning.startswith(f"its checkpoint in {gone.uri} is not kept: FileNotFoundError: ")


BREAKS_MODULE = """
import torch
from raybench import actor
from raybench.registry import MODELS
from raybench.models import mlp

broken = []

class Breaks(torch.nn.Module):
    def __init__(self, inner, breaks):
        super().__init__()
        self.inner, self.breaks = inner, breaks
    def forward(self, x):
        if self.training and self.breaks:
            broken.append(True)
        if broken:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return self.inner(x)

@MODELS.register("breaks")
def breaks(shape, classes):
    return Breaks(mlp(shape, classes), True)

@MODELS.register("works")
def works(shape, classes):
    return Breaks(mlp(shape, classes), False)

def synchronize(device):
    if broken:
        raise RuntimeError("CUDA error: device-side assert triggered")

torch.cuda.synchronize, ask = synchronize, actor.device_failure
actor.device_failure = lambda device: ask("cuda")
"""


def test_a_broken_gpu_costs_one_trial_and_the_next_has_a_process_of_its_own(cluster, tmp_path, monkeypatch) -> None:
    from raybench import actor, schedule

    (tmp_path / "breaking_models.py").write_text(BREAKS_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = """
name: breaks
dataset: {name: digits, train_size: 100, test_size: 50}
model: works
compare: {variant: {first: {}, breaks: {model: breaks}, then: {train.lr: 0.01}, last: {train.lr: 0.02}}}
train: {epochs: 1}
"""
    with monkeypatch.context() as patch:  # what the module does to this process
        patch.setattr(torch.cuda, "synchronize", torch.cuda.synchronize)
        patch.setattr(actor, "device_failure", actor.device_failure)
        job, trials, imports = job_of(tmp_path, text + "imports: [breaking_models]\n")
    heard = Heard()
    schedule.run(job, trials, heard, cluster, max_concurrent=1, imports=imports, paths=[str(tmp_path)])
    rows = [heard.outcomes[trial.id].row for trial in trials]
    assert [row.status for row in rows] == ["completed", "failed", "completed", "completed"]
    assert (rows[1].error, rows[1].error_class) == ("RuntimeError: CUDA error: device-side assert triggered", "error")
    assert rows[1].host is not None, "the trial's own row"
    assert heard.starts == [trial.id for trial in trials] and heard.losses == []


def test_only_a_gpu_is_asked_whether_it_is_broken(monkeypatch) -> None:
    from raybench import actor, replay

    asked, error = [], RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    assert actor.device_failure("cpu") is None and asked == []
    assert actor.device_failure("cuda") is None and asked == ["cuda"]

    def broken(device: str) -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    assert actor.device_failure("cuda") is error
    monkeypatch.setattr(replay, "spoilt", ["CUDA error: operation failed due to a previous error during capture"])
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    assert str(actor.device_failure("cuda")) == "CUDA error: operation failed due to a previous error during capture"
    assert actor.device_failure("cpu") is None


GROUP = """
name: group
dataset: {name: digits, train_size: 400}
model: mlp
repeat: {seed: 1}
train: {epochs: EPOCHS, lr: 3e-3}
resources: {cpus: 1, workers: 2}
"""


def alive() -> list[str]:
    """Return the placement groups and actors that live, but for Ray's one coordinator per cluster."""
    import ray
    from ray.util.state import list_actors, list_placement_groups

    # Without an address it asks the cluster of /tmp/ray/ray_current_cluster, which may be another, or long dead.
    here = ray.get_runtime_context().gcs_address
    groups = [f"group {g['name']}" for g in list_placement_groups(address=here) if g["state"] != "REMOVED"]
    actors = [
        actor
        for actor in list_actors(address=here, filters=[("state", "!=", "DEAD")])
        if actor["name"] != "AutoscalingCoordinator"
    ]
    return groups + [actor["class_name"] for actor in actors]


def wait_until_nothing_lives(seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while alive() and time.monotonic() < until:
        time.sleep(0.5)
    assert alive() == []


def test_a_worker_group_of_two_gives_a_valid_row(cluster, tmp_path) -> None:
    from raybench import schedule

    job, trials, _ = job_of(tmp_path, GROUP.replace("EPOCHS", "3") + "keep_weights: best\n")
    heard = Heard()
    schedule.run(job, trials, heard, cluster)
    (outcome,) = heard.outcomes.values()
    model = trials[0].typed().model
    assert outcome.weights and restored(model, outcome.weights, (1, 8, 8), 10), "of the first process"
    assert outcome.row.status == "completed", outcome.row.traceback
    assert outcome.row.workers == 2
    assert [epoch for _, epoch in heard.epochs] == [1, 2, 3]
    assert outcome.row.test_images == 500 == len(outcome.predictions.label)
    right = (outcome.predictions.label == outcome.predictions.prediction).mean()
    assert outcome.row.test_accuracy == pytest.approx(right) and right > 0.8
    # The mlp has neither dropout nor batch norm: two processes take the steps of one, but for the order of additions.
    alone = job.run(trials[0])
    for one, two in zip(alone.epochs, outcome.epochs, strict=True):
        assert two.train_loss == pytest.approx(one.train_loss, rel=1e-3)
        assert two.val_loss == pytest.approx(one.val_loss, rel=1e-3)
    wait_until_nothing_lives()


def test_a_worker_group_that_is_stopped_leaves_nothing_behind(cluster, tmp_path) -> None:
    from raybench import schedule

    job, trials, _ = job_of(tmp_path, GROUP.replace("EPOCHS", "100000"))

    class StopAfterThree(Heard):
        def epoch(self, trial: Trial, row: EpochRow, begun: TrialRow) -> bool:
            stop = super().epoch(trial, row, begun)
            if len(self.epochs) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return stop

    heard = StopAfterThree()
    with pytest.raises(schedule.Interrupted):
        schedule.run(job, trials, heard, cluster)
    assert heard.outcomes == {}
    wait_until_nothing_lives()


def test_a_failure_in_one_process_of_a_group_is_one_failed_row(cluster, tmp_path, monkeypatch) -> None:
    from raybench import schedule

    (tmp_path / "half_bad.py").write_text(
        "import torch.distributed as dist\n"
        "from raybench.models import mlp\n"
        "from raybench.registry import MODELS\n"
        "@MODELS.register('half_bad')\n"
        "def half_bad(shape, classes):\n"
        "    if dist.is_initialized() and dist.get_rank() == 1:\n"
        "        raise ValueError('only in rank 1')\n"
        "    return mlp(shape, classes)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    text = GROUP.replace("EPOCHS", "2").replace("model: mlp", "model: half_bad\nimports: [half_bad]")
    job, trials, imports = job_of(tmp_path, text)
    heard = Heard()
    schedule.run(job, trials, heard, cluster, imports=imports, paths=[str(tmp_path)])
    (outcome,) = heard.outcomes.values()
    assert outcome.row.status == "failed"
    assert "only in rank 1" in outcome.row.error
    wait_until_nothing_lives()


def test_ctrl_c_ends_the_sweep_and_keeps_what_had_finished(cluster, tmp_path) -> None:
    from raybench import schedule

    job, trials, _ = job_of(
        tmp_path,
        """
name: interrupted
dataset: {name: digits, train_size: 200, test_size: 50}
model: mlp
compare: {variant: {short: {train.epochs: 1}, endless: {train.epochs: 1000000}}}
repeat: {seed: 3}
""",
    )

    class StopAtFirstEnd(Heard):
        def ended(self, trial: Trial, outcome: Outcome) -> None:
            super().ended(trial, outcome)
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    heard = StopAtFirstEnd()
    with pytest.raises(schedule.Interrupted):
        schedule.run(job, trials, heard, cluster)
    assert "short" in {trial.cell[0] for trial in trials if trial.id in heard.outcomes}
    assert len(heard.outcomes) < len(trials)
    assert signal.getsignal(signal.SIGINT) is handler
    wait_until_nothing_lives()


@pytest.mark.parametrize("where", ["ray.put", "tune.Tuner"])
def test_ctrl_c_before_tune_listens_starts_no_trial(cluster, tmp_path, monkeypatch, where) -> None:
    from raybench import schedule

    job, trials, _ = job_of(tmp_path, BUDGET.replace("OTHER", "2"))
    module, name = where.split(".")
    made = getattr(getattr(schedule, module), name)

    def interrupted(*given: object, **more: object) -> object:
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGINT))
        return made(*given, **more)

    sent: list[None] = []
    monkeypatch.setattr(getattr(schedule, module), name, interrupted)
    heard = Heard()
    with pytest.raises(schedule.Interrupted):
        schedule.run(job, trials, heard, cluster)
    assert sent and heard.starts == []


def test_a_running_tune_is_told_again_to_stop(monkeypatch) -> None:
    event, told = threading.Event(), []
    watch = watcher([], Heard(), event)
    monkeypatch.setattr(watch.room, "lack", lambda busy: None)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: told.append(number))
    try:
        watch.on_step_end(1, [])
        assert told == []
        event.set()
        watch.on_step_end(2, [])
        assert told == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


class Limits:
    """A budget: so many trials may start, and run until so many seconds are over."""

    def __init__(self, trials: int, seconds: float | None = None) -> None:
        self.trials, self.started = trials, set()
        self.end = None if seconds is None else time.monotonic() + seconds

    def allows(self, trial: Trial) -> bool:
        if len(self.started | {trial.id}) > self.trials or (self.seconds() is not None and self.seconds() <= 0):
            return False
        self.started.add(trial.id)
        return True

    def seconds(self) -> float | None:
        return None if self.end is None else self.end - time.monotonic()


BUDGET = """
name: budget
dataset: {name: digits, train_size: 200, test_size: 50}
model: mlp
compare: {variant: {short: {train.epochs: 1}, other: {train.epochs: OTHER, resources: {cpus: 2}}}}
repeat: {seed: 3}
"""


def test_a_budget_of_trials_starts_the_first_of_them_and_lets_them_end(cluster, tmp_path) -> None:
    from raybench import schedule

    job, trials, _ = job_of(tmp_path, BUDGET.replace("OTHER", "2"))
    heard = Heard()
    with pytest.raises(schedule.Spent):
        schedule.run(job, trials, heard, cluster, budget=Limits(3))
    # Seed 0 of both kinds, and then the kind that runs already.
    assert heard.starts == [trials[0].id, trials[1].id, trials[3].id] and set(heard.outcomes) == set(heard.starts)
    heard = Heard()
    schedule.run(job, trials[:2], heard, cluster, budget=Limits(2))
    assert len(heard.outcomes) == 2, "just enough"


def test_at_the_end_of_its_time_a_budget_stops_what_runs(cluster, tmp_path) -> None:
    from raybench import schedule

    job, trials, _ = job_of(tmp_path, BUDGET.replace("OTHER", "1000000"))
    heard = Heard()
    with pytest.raises(schedule.Spent):
        schedule.run(job, trials[1:], heard, cluster, budget=Limits(100, seconds=20))
    assert set(heard.starts) <= {trials[1].id} and heard.outcomes == {}
    wait_until_nothing_lives()


def test_kinds_of_resources_take_turns_seed_by_seed(tmp_path, monkeypatch) -> None:
    from raybench import schedule
    from raybench.schedule import in_turns

    _, trials, _ = job_of(tmp_path, BUDGET.replace("OTHER", "2"))
    turns = [(needs.cpus, [trial.name for trial in members]) for needs, members in in_turns(trials)]
    assert turns == [
        (1, ["short/s0"]),
        (2, ["other/s0", "other/s1"]),
        (1, ["short/s1", "short/s2"]),
        (2, ["other/s2"]),
    ]
    one = [trial for trial in trials if trial.cell == ("short",)]
    assert in_turns(one) == [(Resources(), one)] and in_turns([]) == []
    monkeypatch.setattr(schedule, "ROUND", 2)
    assert in_turns(one) == [(Resources(), one[:2]), (Resources(), one[2:])], "many trials run in several rounds"


def test_more_than_the_cluster_has_is_refused(cluster, tmp_path) -> None:
    from raybench import schedule
    from raybench.errors import UserError

    job, trials, _ = job_of(tmp_path, GROUP.replace("EPOCHS", "1").replace("cpus: 1", "cpus: 4000"))
    with pytest.raises(UserError) as refused:
        schedule.run(job, trials, Heard(), cluster)
    assert str(refused.value) == (
        f"resources: a trial asks for 2 x (4000 CPUs, 0 GPUs), but the nodes are 1 x ({cluster.cpus} CPUs,"
        " 0 GPUs): ask for less, e.g. --set resources.cpus=1"
    )


def watcher(trials: list[Trial], heard: Heard, interrupted: threading.Event) -> object:
    from raybench import schedule

    return schedule._Watcher({trial.id: trial for trial in trials}, heard, interrupted, None, Resources(), {"CPU": 1})


def test_a_trial_that_takes_the_whole_sweep_down_is_given_up(tmp_path, monkeypatch) -> None:
    """What Ray raises in Tune's own loop ends fit()."""
    from raybench import schedule

    job, trials, _ = job_of(tmp_path, SAME)
    del job
    bad = trials[0]
    rounds = []

    class Fit:
        def __init__(self, *_: object, tune_config, run_config) -> None:
            self.ids, (self.watcher, *_) = list(tune_config.search_alg.ids), run_config.callbacks

        def fit(self) -> None:
            rounds.append(self.ids)
            for trial_id in self.ids:
                trial = type("T", (), {"config": {"id": trial_id}})
                self.watcher.on_trial_start(0, [], trial)
                if trial_id == bad.id:
                    raise RuntimeError("a placement group is gone")
                outcome = pickle.dumps((Outcome(row=schedule.planned_row(self.watcher.open[trial_id])), None))
                self.watcher.on_trial_result(0, [], trial, {"outcome": outcome})

    monkeypatch.setattr(schedule.tune, "Tuner", Fit)
    heard = Heard()
    schedule._run_kind(None, watcher(trials, heard, threading.Event()), 2, str(tmp_path), False)
    assert len(rounds) == 4 and heard.starts.count(bad.id) == 3
    assert [reason for _, reason in heard.losses] == [f"its process died ({n} of 3): starts again" for n in (1, 2)]
    assert set(heard.outcomes) == {trial.id for trial in trials}
    row = heard.outcomes[bad.id].row
    assert (row.status, row.error_class) == ("failed", "crashed") and row.attempts == 3
    assert row.error == "lost 3 times: RuntimeError: a placement group is gone"


def test_a_process_that_does_not_come_up_costs_one_trial_a_start(cluster, tmp_path, monkeypatch) -> None:
    """Ray's memory monitor may kill it before it is asked anything; Tune keeps only errors of actors and of tasks."""
    from ray.exceptions import OutOfMemoryError, RuntimeEnvSetupError

    from raybench import schedule, tuneparts

    job, trials, _ = job_of(tmp_path, SAME.replace("epochs: 3", "epochs: 1"))
    causes = [OutOfMemoryError("the node is low on memory"), RuntimeEnvSetupError("no such package")]
    resolved = tuneparts.ActorManager._actor_start_resolved

    def start_resolved(self: object, tracked_actor: object, future: object) -> None:
        if causes:
            self._actor_start_failed(tracked_actor=tracked_actor, exception=causes.pop(0))
        else:
            resolved(self, tracked_actor=tracked_actor, future=future)

    monkeypatch.setattr(tuneparts.ActorManager, "_actor_start_resolved", start_resolved)
    heard = Heard()
    schedule.run(job, trials, heard, cluster, max_concurrent=2)
    assert {outcome.row.status for outcome in heard.outcomes.values()} == {"completed"}
    assert sorted(reason for _, reason in heard.losses) == [
        "its process died (1 of 3): starts again",
        "out of memory: starts again at the end, alone",
    ]
    lost = {name for name, _ in heard.losses}
    assert {trial.name: heard.outcomes[trial.id].row.attempts for trial in trials} == {
        trial.name: 1 + (trial.name in lost) for trial in trials
    }


@pytest.mark.parametrize("interrupted", [False, True])
def test_an_actor_that_never_ran_is_no_failure_of_its_trial(tmp_path, monkeypatch, interrupted) -> None:
    """Tune cancels waiting actors when it uses others again, and when it stops."""
    import cloudpickle
    import ray

    from raybench import schedule

    _, trials, _ = job_of(tmp_path, SAME)
    error = ray.exceptions.ActorDiedError()
    error.error_msg = "The actor never ran - it was cancelled before it started running."
    (tmp_path / "error.pkl").write_bytes(cloudpickle.dumps(error))
    event = threading.Event()
    rounds = []

    class Fit:
        def __init__(self, *_: object, tune_config, run_config) -> None:
            self.ids, (self.watcher, *_) = list(tune_config.search_alg.ids), run_config.callbacks

        def fit(self) -> None:
            rounds.append(self.ids)
            for trial_id in self.ids:
                trial = type("T", (), {"config": {"id": trial_id}, "pickled_error_file": str(tmp_path / "error.pkl")})
                self.watcher.on_trial_start(0, [], trial)
                if trial_id == trials[1].id and len(rounds) == 1:
                    event.set() if interrupted else event.clear()
                    self.watcher.on_trial_error(0, [], trial)
                else:
                    outcome = pickle.dumps((Outcome(row=schedule.planned_row(self.watcher.open[trial_id])), None))
                    self.watcher.on_trial_result(0, [], trial, {"outcome": outcome})

    monkeypatch.setattr(schedule.tune, "Tuner", Fit)
    heard = Heard()
    if interrupted:
        with pytest.raises(schedule.Interrupted):
            schedule._run_kind(None, watcher(trials, heard, event), 2, str(tmp_path), False)
        assert trials[1].id not in heard.outcomes and len(rounds) == 1
    else:
        schedule._run_kind(None, watcher(trials, heard, event), 2, str(tmp_path), False)
        assert rounds[1:] == [[trials[1].id]] and set(heard.outcomes) == {trial.id for trial in trials}


def test_an_address_without_a_cluster_is_one_line(tmp_path) -> None:
    """In a process of its own: this one has a cluster."""
    for address, said in {
        "127.0.0.1:1": "raybench: --address 127.0.0.1:1: no Ray cluster answers there: Connection refused",
        "nowhere": "raybench: --address nowhere: must be local, auto or host:port, such as 10.0.0.5:6379",
        "ray://127.0.0.1:10001": "raybench: --address ray://127.0.0.1:10001: Ray Client is not supported: ",
    }.items():
        command = [sys.executable, "-m", "raybench.cli", "run", "quickstart", "--address", address]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith(said)
        assert "Traceback" not in done.stderr and done.stdout == ""
