"""The cluster of `raybench cluster`: what it writes down and whom it ends; and a suite on it that loses a node."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from raybench import localcluster
from raybench.cli import app
from raybench.errors import UserError
from raybench.localcluster import LocalCluster, Process, Started, State, end, family, processes

if not Path("/proc/self/stat").exists():
    pytest.skip("Ray runs clusters of several nodes on Linux alone", allow_module_level=True)

# ---------------------------------------------------------------------------------------------------------------------
# Processes


def sleeper(*, deaf: bool = False, alone: bool = False) -> subprocess.Popen[bytes]:
    """Start a process with a child, unless it is to be ``alone``, and return it once both run."""
    command = f"{'trap : TERM; ' if deaf else ''}sleep 1000 & echo; while :; do wait; done"
    if alone:
        command = "echo; exec sleep 1000"
    process = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.parametrize("deaf", [False, True])
def test_a_family_is_ended_whole_and_nobody_else(deaf: bool) -> None:
    mine, other = sleeper(deaf=deaf), sleeper()
    leader = processes()[mine.pid]
    members = family(leader)
    assert len(members) == 2 and leader in members
    end([leader], seconds=0.3)
    assert not members & set(processes().values())
    assert other.poll() is None
    end([processes()[other.pid]], seconds=0)
    for process in (mine, other):
        process.communicate()


def test_children_are_found_after_their_leader_has_gone() -> None:
    mine = sleeper()
    leader = processes()[mine.pid]
    (child,) = family(leader) - {leader}
    mine.kill()
    mine.wait()
    assert family(leader) == {child}
    end([leader], seconds=0)
    assert child not in processes().values()
    mine.communicate()


def test_a_process_that_was_given_the_number_later_is_not_ended() -> None:
    other = sleeper()
    now = processes()[other.pid]
    before = Process(now.pid, now.started - 1)
    assert family(before) == set()
    end([before], seconds=0)
    assert other.poll() is None
    end([now], seconds=0)
    other.communicate()


def test_a_process_is_read_whatever_its_name_is(tmp_path: Path) -> None:
    program = tmp_path / "a) Z 1 (b"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "1000"], start_new_session=True)
    found = processes()[process.pid]
    assert (found.parent, found.session) == (os.getpid(), process.pid)
    process.kill()
    process.wait()
    assert process.pid not in processes()


# ---------------------------------------------------------------------------------------------------------------------
# What is written down


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalCluster:
    monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "tokens" / "token"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    return LocalCluster(tmp_path / "cluster")


def pretend(kept: LocalCluster, *nodes: Process, boot: str | None = None) -> State:
    """Write down a cluster whose nodes are other processes."""
    folder = kept.folder.parent / "ray"
    folder.mkdir()
    kept.folder.mkdir()
    started = tuple(Started(cpus=2, gpus=1, pid=node.pid, started=node.started) for node in nodes)
    state = State(boot or localcluster._boot(), str(folder), 6379, 8265, True, started)
    kept._write(state)
    assert kept.state() == state
    return state


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["cluster", *arguments], standalone_mode=False)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.return_value or 0, result.stdout


def up(kept: LocalCluster, **options: int) -> State:
    free = localcluster.free_port
    wanted = {"nodes": 1, "cpus": 1, "gpus": 0, "port": free(), "dashboard_port": free(), **options}
    return kept.up(**wanted, token=True, say=lambda _: None)  # type: ignore[arg-type]


def test_nodes_and_cluster_are_ended(kept: LocalCluster) -> None:
    sleepers = [sleeper(alone=True) for _ in range(3)]
    state = pretend(kept, *(processes()[process.pid] for process in sleepers))
    status, out = call("status")
    assert status == 0
    assert out.splitlines()[0] == "3 nodes, 6 CPUs, 3 GPUs at 127.0.0.1:6379, dashboard http://127.0.0.1:8265, token"
    assert call("down", "--node", "2") == (0, "node 2 is gone, 2 left\n")
    assert [node.alive for node in state.nodes] == [True, True, False]
    assert call("status")[1].splitlines()[-1].split() == ["2", "gone", "2", "1", str(sleepers[2].pid)]
    for number, problem in {
        0: "--node 0: must be from 1 to 2; without it, the cluster is ended",
        2: "--node 2: is gone already",
        3: "--node 3: must be from 1 to 2; without it, the cluster is ended",
    }.items():
        with pytest.raises(UserError) as error:
            kept.down(number)
        assert str(error.value) == problem
    with pytest.raises(UserError) as error:
        up(kept)
    assert str(error.value) == "cluster up: one is up at 127.0.0.1:6379 already: `raybench cluster down` ends it"
    assert call("down") == (0, "127.0.0.1:6379 is down, nothing is left of it\n")
    assert not any(node.alive for node in state.nodes)
    assert not kept.folder.exists() and not Path(state.folder).exists()
    for process in sleepers:
        process.communicate()


def test_where_none_is_up(kept: LocalCluster) -> None:
    assert call("status") == (1, "")
    assert call("down") == (0, "none was up\n")
    with pytest.raises(UserError) as error:
        kept.down(1)
    assert str(error.value) == "cluster down: none is up: `raybench cluster up` starts one"


def test_numbers_of_processes_mean_nothing_after_the_machine_was_started_again(kept: LocalCluster) -> None:
    other = sleeper()
    state = pretend(kept, processes()[other.pid], boot="before")
    assert call("status") == (1, "")
    assert call("down") == (0, "none was up\n")
    assert other.poll() is None
    assert not kept.folder.exists() and not Path(state.folder).exists()
    end([processes()[other.pid]], seconds=0)
    other.communicate()


def test_what_is_written_down_cannot_be_read(kept: LocalCluster) -> None:
    kept.folder.mkdir()
    (kept.folder / "state.json").write_text("{")
    with pytest.raises(UserError) as error:
        kept.state()
    assert str(error.value) == (
        f"{kept.folder}/state.json: cannot be read: end what it names by hand, remove the folder"
    )


def test_a_second_command_is_refused_meanwhile(kept: LocalCluster) -> None:
    with kept._alone(), pytest.raises(UserError) as error:
        LocalCluster(kept.folder).down()
    assert str(error.value) == f"cluster: another command starts or ends it now ({kept.folder}.lock is locked)"


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path / "file" / "cache"))
    assert call("status") == (1, "")
    for command in ("up", "down"):
        with pytest.raises(UserError) as error:
            call(command)
        assert str(error.value) == (
            f"cluster: {tmp_path}/file/cache: Not a directory: set RAYBENCH_CACHE to a folder that can be written"
        )


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be started


@pytest.mark.parametrize("option", ["--port", "--dashboard-port"])
def test_a_port_that_is_taken(kept: LocalCluster, option: str) -> None:
    with localcluster.socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError) as error:
            up(kept, **{option.strip("-").replace("-", "_"): port})
    assert str(error.value) == f"{option} {port}: Address already in use: choose another, e.g. {port + 1}"
    assert not kept.folder.exists()


@pytest.fixture
def fake_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``fake_ray(script)`` puts a script in the place of ``ray``."""

    def put(script: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "ray").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "ray").chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(folder / "python"))

    return put


def test_ray_that_does_not_start_is_one_line_and_leaves_nothing(kept: LocalCluster, fake_ray) -> None:
    child = kept.folder.parent / "child"
    fake_ray(f"echo starting; sleep 1000 & echo $! > {child}; echo 'RuntimeError: no room' >&2; exit 1")
    with pytest.raises(UserError) as error:
        up(kept, nodes=2)
    assert str(error.value) == "Ray did not start: RuntimeError: no room"
    assert not kept.folder.exists()
    assert int(child.read_text()) not in processes()


def test_a_path_that_is_too_long_for_ray(kept: LocalCluster, fake_ray) -> None:
    said = "OSError: validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /x"
    fake_ray(f"echo '{said}'; exit 1")
    with pytest.raises(UserError) as error:
        up(kept)
    assert str(error.value) == f"Ray did not start: {said}; set TMPDIR to a shorter path"


@pytest.mark.parametrize(
    "slow",
    [
        "Exception: The current node timed out during startup. This could happen because",
        "ray.exceptions.RaySystemError: System error: Failed to connect to GCS. Please check if the GCS server",
    ],
)
def test_a_node_that_was_too_slow_is_tried_again(kept: LocalCluster, fake_ray, slow: str) -> None:
    tries = kept.folder.parent / "tries"
    fake_ray(
        f'echo >> {tries}; [ $(wc -l < {tries}) = 3 ] || {{ echo "{slow}"; exit 1; }}; echo "Ray runtime started."'
    )
    assert len(up(kept).nodes) == 1
    kept.down()
    tries.write_text("too\noften\nalready\n")
    with pytest.raises(UserError) as error:
        up(kept)
    assert str(error.value) == f"Ray did not start: {slow}"
    assert len(tries.read_text().splitlines()) == 6


def test_an_interrupted_start_leaves_nothing(kept: LocalCluster, fake_ray) -> None:
    fake_ray("kill -INT $(cat $PIDFILE); sleep 1000")
    pidfile = kept.folder.parent / "pid"
    pidfile.write_text(str(os.getpid()))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PIDFILE", str(pidfile))
            with pytest.raises(KeyboardInterrupt):
                up(kept)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not kept.folder.exists()


def test_what_a_node_is_started_with(kept: LocalCluster, fake_ray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(localcluster, "memory", lambda: 2_000_000_000)  # as a container may limit it
    said = kept.folder.parent / "said"
    fake_ray(f'echo "$RAY_AUTH_MODE,$RAY_ADDRESS,$*" >> {said}; echo "Ray runtime started."; exec sleep 1000')
    state = up(kept, nodes=2, cpus=3, gpus=4)
    head, worker = said.read_text().splitlines()
    for node in (head, worker):
        assert node.startswith("token,,start --block --num-cpus=3 ") and "--num-gpus=4" in node
    assert f"--head --port={state.port} --temp-dir={state.folder}" in head
    assert f"--include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port={state.dashboard_port}" in head
    assert f"--address=127.0.0.1:{state.port}" in worker
    stores = [int(node.partition("--object-store-memory=")[2].split()[0]) for node in (head, worker)]
    assert stores == [300_000_000] * 2
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and len(token.read_text()) == 64
    assert token.read_text() not in (kept.folder / "state.json").read_text() + said.read_text()
    kept.down()
    localcluster.make_token()
    assert token.exists(), "it is the account's, and stays"


# ---------------------------------------------------------------------------------------------------------------------
# A suite on it

SUITE = """
name: removed
imports: [removed_module]
dataset: {name: digits, train_size: 100, test_size: 50}
model: held
repeat: {seed: 4}
train: {epochs: 2, batch_size: 50}
"""
MODULE = """
import os, pathlib, time
from torch import nn
from raybench.models import mlp
from raybench.registry import MODELS

class Held(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
    def forward(self, x):
        if self.training:
            here = pathlib.Path(__file__).parent
            (here / f"{os.getpid()}.step").touch()
            while (here / "hold").exists():
                time.sleep(0.1)
        return self.inner(x)

@MODELS.register("held")
def held(shape, classes):
    return Held(mlp(shape, classes))
"""


@pytest.mark.ray
def test_a_suite_is_finished_though_a_node_is_taken_down(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / "suite.yaml").write_text(SUITE)
    (tmp_path / "removed_module.py").write_text(MODULE)
    (tmp_path / "hold").touch()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {"RAYBENCH_CACHE": str(tmp_path / "cache"), "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    environment = {**kept, **own, "PYTHONPATH": str(Path.cwd())}
    cli = [sys.executable, "-m", "raybench.cli"]

    def cluster(*words: str, status: int = 0) -> str:
        command = [*cli, "cluster", *words]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        return done.stdout

    port, dashboard = localcluster.free_port(), localcluster.free_port()
    said = cluster("up", "--cpus", "1", "--port", str(port), "--dashboard-port", str(dashboard))
    state = LocalCluster(tmp_path / "cache" / "cluster").state()
    assert state is not None
    members = set().union(*(family(node.leader) for node in state.nodes))
    try:
        assert said.startswith(f"3 nodes, 3 CPUs, 0 GPUs at 127.0.0.1:{port}, dashboard http://127.0.0.1:{dashboard}\n")
        (line,) = [line for line in said.splitlines() if "raybench run" in line]
        assert line == f"  raybench run suites/quickstart.yaml --address 127.0.0.1:{port}"
        run = [*cli, "run", "suite.yaml", "--address", f"127.0.0.1:{port}", "--format", "json"]
        client = {**environment, "RAY_AUTH_MODE": "token"}
        with open(tmp_path / "log", "w") as log:
            driver = subprocess.Popen(run, cwd=tmp_path, env=client, stdout=subprocess.PIPE, stderr=log, text=True)
        until = time.monotonic() + 240
        while not any((tmp_path / f"{process.pid}.step").exists() for process in family(state.nodes[2].leader)):
            assert driver.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.1)
        cluster("down", "--node", "2")
        (tmp_path / "hold").unlink()
        out, _ = driver.communicate(timeout=240)
        assert driver.returncode == 0, (tmp_path / "log").read_text()
        assert [row["n"] for row in json.loads(out)["rows"]] == [4]
        assert (tmp_path / "log").read_text().count(": its node is gone: starts again") == 1
        members |= set().union(*(family(node.leader) for node in state.nodes))
    finally:
        if "driver" in locals() and driver.poll() is None:
            driver.send_signal(signal.SIGKILL)
            driver.communicate()
        cluster("down")
    assert not members & set(processes().values())
    assert not Path(state.folder).exists()
    assert cluster("status", status=1) == ""
