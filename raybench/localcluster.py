"""A Ray cluster of several nodes on this machine, to try things out and for tests.

A node is a ``ray start --block`` in a session of its own, which Ray's processes share: so they are found again when it
is to end, and nobody else's are. `LocalCluster` keeps one cluster for the command line, written down in a folder.

Ray runs clusters of several nodes on Linux alone; ``/proc`` is what tells processes apart here.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from raybench import rayenv
from raybench.errors import UserError
from raybench.machine import memory

HOST = "127.0.0.1"
RAN = "Ray runtime started."
"""What ``ray start`` says once its node runs."""
START_SECONDS = 120
"""How long a node may take to start: 5 s, of a machine that is at rest."""
TOO_SLOW, TRIES = ("timed out during startup", "Failed to connect to GCS"), 3
"""What Ray says of a node or a head of which it sees nothing for some seconds, as on a busy machine; and how often such
a node is tried."""
END_SECONDS = 10
"""How long a node has to end by itself."""
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # otherwise a node that is to go waits for its trials, half a minute
}
"""What a node of such a cluster has in its environment, besides what lets it in."""
STORE_BYTES = 150_000_000
"""The least that a node's object store is given."""


class ClusterError(UserError):
    """A local cluster that cannot be started, or is not there."""


# ---------------------------------------------------------------------------------------------------------------------
# Processes


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this machine: the time of its start tells it from a later one that has its number."""

    pid: int
    started: int
    """Clock ticks after the machine's own start."""
    parent: int = field(default=0, compare=False)
    session: int = field(default=0, compare=False)


def processes() -> dict[int, Process]:
    """Return the processes that run, by their number."""
    read = (_read(int(folder.name)) for folder in Path("/proc").glob("[0-9]*"))
    return {process.pid: process for process in read if process is not None}


def _read(pid: int) -> Process | None:
    """Return the process with this number; None if there is none, or only its exit status is left of it."""
    try:
        # The name may have blanks and brackets in it: what follows the last bracket begins with the state.
        state, *values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return Process(pid, int(values[18]), parent=int(values[0]), session=int(values[2])) if state not in "ZX" else None


def family(leader: Process) -> set[Process]:
    """Return what runs of a session's leader, its session, and their descendants; it may have ended before them."""
    running = processes()
    if running.get(leader.pid, leader) != leader:
        return set()  # its number has been given to another
    found = {each.pid for each in running.values() if leader.pid in (each.pid, each.session)}
    new = found
    while new := {each.pid for each in running.values() if each.parent in new} - found:
        found |= new
    return {running[pid] for pid in found}


def end(leaders: Sequence[Process], seconds: float = END_SECONDS) -> None:
    """End the families of ``leaders``: the leaders are asked to, and what runs after ``seconds`` is killed."""
    known: set[Process] = set().union(*map(family, leaders))
    until = time.monotonic() + seconds
    for leader in known.intersection(leaders) if seconds else ():
        _signal(leader, signal.SIGTERM)
    while known := known.intersection(processes().values()).union(*map(family, leaders)):
        if time.monotonic() >= until:
            for process in known:
                _signal(process, signal.SIGKILL)
        time.sleep(0.05)


def _signal(process: Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)


# ---------------------------------------------------------------------------------------------------------------------
# Nodes


def free_port() -> int:
    """Return a port of this machine on which nobody listens."""
    with socket.create_server((HOST, 0)) as server:
        return server.getsockname()[1]


def head_options(port: int, folder: Path, dashboard: int | None = None) -> list[str]:
    """Return the options of ``ray start`` for a cluster's first node, which keeps its files in ``folder``."""
    options = ["--head", f"--port={port}", f"--temp-dir={folder}", f"--ray-client-server-port={free_port()}"]
    if dashboard is None:
        return [*options, "--include-dashboard=false"]
    return [*options, "--include-dashboard=true", f"--dashboard-host={HOST}", f"--dashboard-port={dashboard}"]


class Node:
    """A node that `start` starts."""

    process: subprocess.Popen[bytes]
    leader: Process

    def __init__(
        self, options: Sequence[str], log: Path, environment: Mapping[str, str], *, cpus: int, wrap: str = "exec {}"
    ) -> None:
        """``options`` are `head_options`, or ``--address=...``; ``wrap`` is a shell line around ``ray start``."""
        ray = Path(sys.executable).with_name("ray")
        if not ray.exists():
            raise ClusterError(f"{ray}: not found: install Ray beside raybench, pip install 'ray[default]'")
        command = [str(ray), "start", "--block", f"--num-cpus={cpus}", *options]
        # Nodes that share a machine would want the same ports, or take those that others are about to.
        command += [f"--dashboard-agent-listen-port={free_port()}", "--min-worker-port=0", "--max-worker-port=0"]
        self.command = ["sh", "-c", wrap.format(shlex.join(command))]
        self.log, self.environment = log, environment

    def start(self, launched: Callable[[], None] = lambda: None) -> None:
        """Start the node, again where it was too slow, and return once it runs; ``launched`` is called when there is a
        `leader` already.

        Raises:
            ClusterError: if it does not run; nothing of it is left then.
        """
        for tries_left in reversed(range(TRIES)):
            with open(self.log, "w") as log:
                self.process = subprocess.Popen(
                    self.command,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            try:
                self.leader = _read(self.process.pid) or Process(self.process.pid, 0)
                launched()
                self._wait()
                return
            except BaseException as error:
                self.kill()
                if not tries_left or not any(words in str(error) for words in TOO_SLOW):
                    raise

    def _wait(self) -> None:
        until = time.monotonic() + START_SECONDS
        while RAN not in (said := self.log.read_text(errors="replace")):
            if self.process.poll() is not None or time.monotonic() > until:
                lines = [line.strip() for line in said.splitlines() if line.strip()]
                last = lines[-1] if lines else "it said nothing"
                hint = "; set TMPDIR to a shorter path" if rayenv.LONG_PATH in last else ""
                raise ClusterError(f"Ray did not start: {last}{hint}")
            time.sleep(0.05)

    def leave(self) -> None:
        """Let the node run on when this process ends."""
        self.process.returncode = 0  # of no meaning: Popen would warn of a process whose end it does not see

    def kill(self) -> None:
        """End the node as a power cut would."""
        end([self.leader], seconds=0)
        self.process.wait()


def make_token() -> None:
    """Make the account's token where Ray looks for it, for the account's eyes only, unless there is one."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        return
    except OSError as error:
        raise ClusterError(f"{path}: cannot be made: {error.strerror}: name another in RAY_AUTH_TOKEN_PATH") from None


# ---------------------------------------------------------------------------------------------------------------------
# The cluster of the command line


@dataclass(frozen=True, slots=True)
class Started:
    """A node that was started."""

    cpus: int
    gpus: int
    pid: int
    started: int

    @property
    def leader(self) -> Process:
        return Process(self.pid, self.started)

    @property
    def alive(self) -> bool:
        return _read(self.pid) == self.leader


@dataclass(frozen=True, slots=True)
class State:
    """What is written down about a cluster."""

    boot: str
    """Of the machine: numbers of processes mean nothing after its next."""
    folder: str
    """Ray's files."""
    port: int
    dashboard_port: int
    token: bool
    """Whether it lets in only who has the account's token; those who come must know: $RAY_AUTH_MODE."""
    nodes: tuple[Started, ...] = ()
    """The first is the head."""

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def dashboard(self) -> str:
        return f"http://{HOST}:{self.dashboard_port}"

    @property
    def alive(self) -> bool:
        return self.boot == _boot() and any(node.alive for node in self.nodes)


class LocalCluster:
    """The cluster that `raybench cluster` starts and ends: there is one of them in a folder."""

    def __init__(self, folder: Path) -> None:
        """``folder`` exists while the cluster does, and holds what is known of it."""
        if not Path("/proc/self/stat").exists():
            raise ClusterError("cluster: needs Linux: Ray runs no cluster of several nodes on other systems")
        self.folder = folder.absolute()

    def state(self) -> State | None:
        """Return the cluster that was started last and not ended since."""
        try:
            said: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
            return State(**{**said, "nodes": tuple(Started(**node) for node in said["nodes"])})
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError, KeyError):
            raise ClusterError(
                f"{self.folder}/state.json: cannot be read: end what it names by hand, remove the folder"
            ) from None

    def up(
        self,
        nodes: int,
        *,
        cpus: int,
        gpus: int,
        port: int,
        dashboard_port: int,
        token: bool,
        say: Callable[[str], None],
    ) -> State:
        """Start a cluster of ``nodes``, each with ``cpus`` and ``gpus`` that Ray is told of; ``say`` hears steps.

        Raises:
            ClusterError: if one is up, a port is taken, or Ray does not start; nothing is left then.
        """
        with self._alone():
            before = self.state()
            if before is not None and before.alive:
                raise ClusterError(
                    f"cluster up: one is up at {before.address} already: `raybench cluster down` ends it"
                )
            for option, wanted in (("--port", port), ("--dashboard-port", dashboard_port)):
                _refuse_taken(option, wanted)
            if token:
                make_token()
            self._end(before)
            self.folder.mkdir(parents=True, mode=0o700)
            folder = tempfile.mkdtemp(prefix="raybench-cluster-")
            state = State(_boot(), folder, port, dashboard_port, token)
            self._write(state)
            try:
                return self._start(state, nodes, cpus, gpus, say)
            except BaseException:
                self._end(self.state())
                raise

    def _start(self, state: State, nodes: int, cpus: int, gpus: int, say: Callable[[str], None]) -> State:
        mode = "token" if state.token else "disabled"
        environment = {**os.environ, **ENVIRONMENT, "RAY_AUTH_MODE": mode}
        environment.pop("RAY_ADDRESS", None)
        shared = [f"--num-gpus={gpus}", f"--object-store-memory={_store_bytes(nodes)}", "--disable-usage-stats"]
        # One after the other: they share the processor, and Ray gives them little time.
        for number in range(nodes):
            say(f"starting node {number}")
            place = [f"--address={state.address}"]
            if number == 0:
                place = head_options(state.port, Path(state.folder), state.dashboard_port)
            node = Node([*place, *shared], self.folder / f"node{number}.log", environment, cpus=cpus)
            before = state.nodes

            def launched(node: Node = node, before: tuple[Started, ...] = before) -> None:
                nonlocal state
                state = replace(state, nodes=(*before, Started(cpus, gpus, node.leader.pid, node.leader.started)))
                self._write(state)

            node.start(launched)
            node.leave()
        return state

    def down(self, node: int | None = None) -> State | None:
        """End the cluster, or one of its nodes; return what it was, or None if there was none.

        Raises:
            ClusterError: if there is no such node, or it is the head.
        """
        with self._alone():
            state = self.state()
            if state is None or not state.alive:
                self._end(state)
                if node is not None:
                    raise ClusterError("cluster down: none is up: `raybench cluster up` starts one")
                return None
            if node is None:
                self._end(state)
                return state
            if not 1 <= node < len(state.nodes):
                raise ClusterError(
                    f"--node {node}: must be from 1 to {len(state.nodes) - 1}; without it, the cluster is ended"
                )
            if not state.nodes[node].alive:
                raise ClusterError(f"--node {node}: is gone already")
            end([state.nodes[node].leader])
            return state

    def _end(self, state: State | None) -> None:
        """End what is left of a cluster, and remove its files."""
        if state is not None and state.boot == _boot():
            # The head last: nodes that lose it try for a while to reach it.
            end([node.leader for node in state.nodes[1:]])
            end([node.leader for node in state.nodes[:1]])
        if state is not None:
            shutil.rmtree(state.folder, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, state: State) -> None:
        beside = self.folder / ".state.json.tmp"
        beside.write_text(json.dumps(asdict(state), indent=1))
        beside.replace(self.folder / "state.json")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep out a second command that starts or ends the cluster."""
        lock = FileLock(f"{self.folder}.lock")
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise ClusterError(f"cluster: another command starts or ends it now ({lock.lock_file} is locked)") from None
        except OSError as error:
            raise ClusterError(
                f"cluster: {self.folder.parent}: {error.strerror}: set RAYBENCH_CACHE to a folder that can be written"
            ) from None
        try:
            yield
        finally:
            lock.release()


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _refuse_taken(option: str, port: int) -> None:
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise ClusterError(
            f"{option} {port}: {os.strerror(error.errno or 0)}: choose another, e.g. {port + 1}"
        ) from None


def _store_bytes(nodes: int) -> int:
    """Return the size of a node's object store: together they get what Ray gives to one, 30 % of the memory."""
    return max(int(0.3 * memory() / nodes), STORE_BYTES)
