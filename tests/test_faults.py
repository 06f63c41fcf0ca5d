"""Faults that really happen: on a cluster of several nodes, of which one has no file in common with the driver.

Every test is the command line in a process of its own, on nodes that ``ray start`` made.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("ray")
import kill
from kill import Node, environment

from raybench.store import Store
from raybench.suite import load

pytestmark = [pytest.mark.ray, pytest.mark.faults]

MODULE = """
import os, pathlib, time
from torch import nn
from raybench.models import mlp
from raybench.registry import MODELS

class Slow(nn.Module):
    def __init__(self, inner, at_step):
        super().__init__()
        self.inner, self.at_step = inner, at_step
    def forward(self, x):
        if self.training:
            (pathlib.Path("PLACE") / f"{os.getpid()}.step").touch()
            self.at_step()
        return self.inner(x)

@MODELS.register("slow")
def slow(shape, classes, *, seconds=0.3):
    return Slow(mlp(shape, classes), lambda: time.sleep(seconds))

@MODELS.register("no_memory")
def no_memory(shape, classes):
    def fail(): raise MemoryError("no room")
    return Slow(mlp(shape, classes), fail)

@MODELS.register("data_error")
def data_error(shape, classes):
    from raybench.errors import DataError
    def fail(): raise DataError("torn image")
    return Slow(mlp(shape, classes), fail)
"""
SUITE = """
name: faulty
imports: [faulty_module]
dataset: {name: digits, train_size: 100, test_size: 50}
repeat: {seed: 4}
train: {epochs: 6, batch_size: 50}
"""
HIDE = "unshare -rm sh -c 'mount -t tmpfs none {hidden} && exec {{}}'"
"""A shell line around ``ray start`` that takes a folder away from a node."""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder with a short name, for sockets lie below it: ``lib`` on every node, ``driver`` only where it runs."""
    folder = Path(tempfile.mkdtemp(prefix="rb"))
    (folder / "lib").mkdir()
    (folder / "driver").mkdir()
    (folder / "lib" / "faulty_module.py").write_text(MODULE.replace("PLACE", str(folder / "lib")))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "lib"))  # suites are loaded here too
        yield folder
    shutil.rmtree(folder, ignore_errors=True)


def paths(place: Path) -> dict[str, str]:
    return {"PYTHONPATH": f"{place / 'lib'}:{Path.cwd()}"}


@pytest.fixture(scope="module")
def head(place: Path) -> Iterator[Node]:
    node = Node(place / "ray", cpus=1, **paths(place))
    yield node
    node.kill()


@pytest.fixture
def add_node(place: Path, head: Node) -> Iterator[Callable[..., Node]]:
    """``add_node(cpus=1)`` starts a node in which the driver's folders are empty and cannot be shared."""
    nodes: list[Node] = []
    hide = HIDE.format(hidden=place / "driver")
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        hide = "exec {}"

    def add(**options: object) -> Node:
        elsewhere = place / f"node{len(nodes)}"
        elsewhere.mkdir(exist_ok=True)
        cache = {"RAYBENCH_CACHE": str(elsewhere), "TMPDIR": str(elsewhere)}
        nodes.append(Node(place, head, **{"cpus": 1, "wrap": hide, **paths(place), **cache, **options}))
        return nodes[-1]

    yield add
    for node in nodes:
        if node.process.poll() is None:
            node.kill()


def training(place: Path, node: Node) -> list[int]:
    """Return the processes of a node that have taken a step."""
    workers = node.workers() + node.workers("ray::RayTrainWorker")
    return [pid for pid in workers if (place / "lib" / f"{pid}.step").exists()]


class Run:
    """``raybench run`` of a suite, watched by its lines on stderr and what it stores."""

    def __init__(self, place: Path, head: Node, text: str, *options: str, wrap: str = "") -> None:
        """``wrap`` is a shell line around the command, in a mount namespace of its own."""
        self.folder = place / "driver" / f"run{random.randrange(10**9)}"
        (self.folder / "tmp").mkdir(parents=True)
        (self.folder / "suite.yaml").write_text(SUITE + text)
        self.store = Store(self.folder / "results", load(self.folder / "suite.yaml"))
        self.log = self.folder / "log"
        self.command = [sys.executable, "-m", "raybench.cli", "run", "suite.yaml", "--format", "json"]
        self.command += ["--address", f"127.0.0.1:{head.port}", *options]
        own = {"TMPDIR": str(self.folder / "tmp"), "RAYBENCH_CACHE": str(self.folder / "cache")}
        self.environment = environment(**paths(place), **own)
        self.start(wrap)

    def start(self, wrap: str = "") -> None:
        command = self.command
        if wrap:
            command = ["unshare", "-rm", "sh", "-c", wrap.format(shlex.join(command))]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log)

    def wait_for(self, condition: Callable[[], object], seconds: float = 240) -> object:
        until = time.monotonic() + seconds
        while not (met := condition()):
            assert self.process.poll() is None and time.monotonic() < until, self.log.read_text()
            time.sleep(0.1)
        return met

    def end(self, status: int = 0) -> pd.DataFrame:
        """Return the rows by seed, after a check that they are whole and that no traceback was shown."""
        assert self.process.wait(400) == status, self.log.read_text()
        assert "Traceback" not in self.log.read_text()
        rows, damaged = self.store.read()
        assert damaged == []
        predictions = self.store.read("predictions")[0].groupby("trial_id").size()
        assert set(predictions) <= {50}
        assert set(predictions.index) == set(rows["trial_id"][rows["status"] == "completed"])
        return rows.sort_values(["model", "seed"]).reset_index(drop=True)

    def lines(self, words: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if words in line]


def test_trials_run_on_every_node_and_only_the_driver_writes(place, head, add_node) -> None:
    add_node()
    run = Run(place, head, "model: slow\n")
    used = set()
    run.wait_for(lambda: used.add(len(head.workers())) or len(run.lines("completed")) == 4)
    rows = run.end()
    assert list(rows["status"]) == ["completed"] * 4 and list(rows["attempts"]) == [1] * 4
    assert run.lines("Ray: 2 nodes, 2 CPUs, 0 GPUs")
    assert max(used) == 1, "the head has one CPU, so at most one trial; the other ran elsewhere"
    assert list(run.folder.glob("tmp/raybench-*")) == []


def test_the_processes_of_a_worker_group_may_lie_on_several_nodes(place, head, add_node) -> None:
    add_node()
    run = Run(place, head, "model: slow\nresources: {workers: 2}\n", "--limit", "1")
    rows = run.end()
    assert list(rows["status"]) == ["completed"] and list(rows["workers"]) == [2]


def test_a_lost_node_is_no_failure_of_its_trial(place, head, add_node) -> None:
    node = add_node()
    run = Run(place, head, "model: slow\n")
    run.wait_for(lambda: run.lines("completed") and training(place, node))
    before = run.store.read()[0]
    node.kill()
    rows = run.end()
    assert list(rows["status"]) == ["completed"] * 4
    assert sorted(rows["attempts"]) == [1, 1, 1, 2]
    (line,) = run.lines("starts again")
    assert line.endswith(": its node is gone: starts again")
    kept = rows[rows["trial_id"].isin(before["trial_id"])]
    assert set(before["started_at"]) == set(kept["started_at"])


def test_a_killed_worker_is_tried_three_times(place, head) -> None:
    run = Run(place, head, "model: {name: slow, seconds: 1}\n", "--limit", "1")
    killed: set[int] = set()
    for _ in range(3):
        (pid, *_) = run.wait_for(lambda: set(training(place, head)) - killed)
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    rows = run.end(1)
    assert list(rows["error_class"]) == ["crashed"] and list(rows["attempts"]) == [3]
    assert rows["error"][0].startswith(
        "lost 3 times: The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"
    )
    assert run.lines("starts again") == [f"s0: its process died ({n} of 3): starts again" for n in (1, 2)]


def test_a_group_that_loses_a_process_starts_again(place, head, add_node) -> None:
    node = add_node()
    run = Run(place, head, "model: {name: slow, seconds: 1}\nresources: {workers: 2}\n", "--limit", "1")
    (pid, *_) = run.wait_for(lambda: training(place, node))
    os.kill(pid, signal.SIGKILL)
    rows = run.end()
    assert list(rows["status"]) == ["completed"] and list(rows["attempts"]) == [2]
    assert run.lines("starts again") == ["s0: its process died (1 of 3): starts again"]


def test_a_group_that_loses_its_node_waits_for_another(place, head, add_node) -> None:
    node = add_node()
    run = Run(place, head, "model: slow\nresources: {workers: 2}\n", "--limit", "1")
    run.wait_for(lambda: training(place, node))
    node.kill()
    run.wait_for(lambda: run.lines("waiting for nodes"))
    add_node()
    rows = run.end()
    assert list(rows["status"]) == ["completed"] and list(rows["attempts"]) == [2]
    assert run.lines("starts again") == ["s0: its node is gone: starts again"]
    assert run.lines("waiting") == [
        "waiting for nodes: a trial asks for 2 x (1 CPUs, 0 GPUs); left: 1 x (1 CPUs, 0 GPUs)"
    ]


def test_what_would_fail_again_is_not_tried_again(place, head) -> None:
    text = "compare: {model: [data_error, slow], lr: [1e-3, 1e40]}\n"
    run = Run(place, head, text, "--set", "repeat.seed=1", "--only", "model=data_error", "--only", "lr=0.001")
    rows = run.end(1)
    assert list(rows["error_class"]) == ["data"] and list(rows["attempts"]) == [1]
    assert run.lines("starts again") == []


def test_no_memory_beside_others_is_tried_again_alone(place, head, add_node) -> None:
    add_node()
    run = Run(place, head, "compare: {model: [no_memory, slow]}\n", "--set", "repeat.seed=2")
    rows = run.end(1)
    failed, completed = rows[rows["model"] == "no_memory"], rows[rows["model"] == "slow"]
    assert list(completed["attempts"]) == [1, 1]
    assert list(failed["attempts"]) == [2, 2] and list(failed["error"]) == ["MemoryError: no room"] * 2
    assert sorted(run.lines("starts again")) == [
        f"no_memory/s{seed}: out of memory: starts again at the end, alone" for seed in (0, 1)
    ]


def test_a_kill_by_the_memory_monitor_costs_one_trial(place, head, add_node) -> None:
    """The second node takes itself for full, and kills whatever starts there."""
    add_node(RAY_memory_usage_threshold="0.01", RAY_memory_monitor_refresh_ms="100")
    run = Run(place, head, "model: slow\n")
    assert run.process.wait(400) in (0, 1)
    rows = run.end(run.process.returncode)
    killed = run.lines("starts again")
    assert killed and all(line.endswith(": out of memory: starts again at the end, alone") for line in killed)
    assert (rows["attempts"] == 1).any() and set(rows["attempts"]) <= {1, 2}
    assert set(rows["error_class"].dropna()) <= {"out_of_memory"}


def test_a_full_disk_ends_the_run_in_one_line_and_harms_no_row(place, head) -> None:
    full = "mkdir results; mount -t tmpfs -o size=150k none results; {}; status=$?; cp -r results kept; exit $status"
    run = Run(place, head, "model: {name: slow, seconds: 0}\n", "--set", "repeat.seed=20", wrap=full)
    assert run.process.wait(400) == 2
    assert run.log.read_text().splitlines()[-1] == (
        "raybench: results/faulty: No space left on device: rows stored so far are whole; run again"
    )
    (run.folder / "kept").rename(run.folder / "results")
    before = run.store.done()
    assert 0 < len(before[0]) < 20 and before[1] == []
    files = {path: path.read_bytes() for path in run.store.folder.glob("trials/*.parquet")}
    run.start()
    assert len(run.end()) == 20
    assert files == {path: path.read_bytes() for path in files}


def test_sweeps_survive_kills_of_driver_worker_and_node() -> None:
    with tempfile.TemporaryDirectory(prefix="rb", ignore_cleanup_errors=True) as folder:
        seen, _ = kill.run(Path(folder), ["node", "driver", "worker"], random.Random(time.time_ns()))
    for kind, row in seen.items():
        assert (kind, row.kills, row.lost, row.doubled, row.torn) == (kind, int(kind != kill.END), 0, 0, 0)
