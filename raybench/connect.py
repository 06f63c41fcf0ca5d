"""A Ray cluster: started or joined, with the code of a suite and the same versions on all its nodes."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raybench import __version__, rayenv  # isort: skip  # sets what Ray reads when it is imported

import ray
from ray._private import ray_constants
from ray.job_config import JobConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybench.errors import UserError
from raybench.settings import SELECTOR, Resources

ACTOR_ENVIRONMENT = {
    # Otherwise glibc gives the memory of every batch back and fetches it again: 1.2x in a step of a small network.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_ARENA_MAX": "1",  # every trial has a thread of its own; an arena for each would hold half a gigabyte more
    # A trial that is stopped may need a while to leave its step. After Tune's 2 s its actor would be given up, and the
    # next, innocent trial with it.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "600",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
}
PASSED_ON = ("RAY_TRAIN_ENABLE_STATE_TRACKING",)
"""What Ray reads in trials and the user may have set here. It lets worker groups be listed, by an actor that stays."""
PRELOADED = {"RAY_preload_python_modules": "raybench.actor"}
"""Ray starts a process for every CPU at once, and gives them to the first actors if these ask for no environment of
their own. So on this machine the environment is Ray's own, and PyTorch is loaded by the time an actor is asked for."""
PRELOADED_CPUS = 16
"""On a machine with more, that many processes would hold PyTorch (0.3 GB each) and few of them ever train."""


@dataclass(frozen=True, slots=True)
class Node:
    """What a node of the cluster has."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]

    def fits(self, wanted: Mapping[str, str]) -> bool:
        """Return whether the node's labels are as ``wanted`` (Ray's label selectors)."""
        for key, selector in wanted.items():
            match = SELECTOR.fullmatch(selector)
            assert match is not None
            no, several, one = match.groups()
            values = re.split(", ?", several) if several else [one]
            if (self.labels.get(key) in values) == bool(no):
                return False
        return True


@dataclass(frozen=True, slots=True)
class Cluster:
    """What was connected to."""

    nodes: tuple[Node, ...]
    dashboard: str | None = None
    grows_to: Mapping[str, float] = field(default_factory=dict)
    """What the autoscaler may start, where there is one that says so; by resource."""
    _put: dict[int, tuple[object, ray.ObjectRef]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What lies in the object store, by identity."""

    def put(self, thing: object) -> ray.ObjectRef:
        """Return a reference to ``thing`` in the object store, where it lies once, as long as this is connected to:
        Tune keeps what it starts trials with, and so nothing that it refers to is ever let go."""
        if id(thing) not in self._put:
            self._put[id(thing)] = thing, ray.put(thing)
        return self._put[id(thing)][1]

    @property
    def cpus(self) -> int:
        return int(self.total("CPU", {}))

    @property
    def gpus(self) -> int:
        return int(self.total("GPU", {}))

    def total(self, name: str, labels: Mapping[str, str]) -> float:
        """Return how much of a resource the nodes with these labels have, those included that may yet be started."""
        here = sum(node.resources.get(name, 0) for node in self.nodes if node.fits(labels))
        return max(here, self.grows_to.get(name, 0))

    def needs(self, resources: Resources) -> dict[str, float]:
        """Return what each process of a trial asks of its node; no GPUs where the cluster has none."""
        return needs_of(resources, self.gpus > 0)

    def slots(self, resources: Resources) -> int:
        """Return how many trials with these needs fit at once, if no other job runs."""
        needs, labels = self.needs(resources), resources.labels
        room = room_for(needs, labels, self.nodes)
        if self.grows_to:  # how large the nodes are that may yet be started is not known
            room = max(room, _times(needs, {name: self.total(name, labels) for name in needs}))
        return room // resources.workers


def needs_of(resources: Resources, gpus: bool) -> dict[str, float]:
    """Return what each process of a trial asks of its node, ``gpus`` among it or not."""
    each = {"CPU": resources.cpus, **({"GPU": resources.gpus} if gpus else {}), **resources.custom}
    return {name: amount for name, amount in each.items() if amount}


def room_for(needs: Mapping[str, float], labels: Mapping[str, str], nodes: Iterable[Node]) -> int:
    """Return how many processes that ask for ``needs`` fit on the nodes with these labels; each lies on one node."""
    return sum(_times(needs, node.resources) for node in nodes if node.fits(labels))


def _times(needs: Mapping[str, float], there: Mapping[str, float]) -> int:
    """Return how many times ``needs`` go into what is there; a part of a GPU lies on one GPU."""
    counts = []
    for name, need in needs.items():
        have = there.get(name, 0)
        apart = name == "GPU" and need < 1
        counts.append(int(have) * int(1 / need + 1e-9) if apart else int(have / need + 1e-9))
    return min(counts)


def alive() -> tuple[Node, ...]:
    """Return the nodes of the cluster that is connected to, as Ray sees them now."""
    return tuple(Node(node["Resources"], node["Labels"]) for node in ray.nodes() if node["Alive"])


@contextmanager
def connect(
    address: str,
    *,
    suite: str = "",
    ship: Sequence[Path] = (),
    checked: bool = False,
    to_train: bool = False,
    verbose: bool = False,
) -> Iterator[Cluster]:
    """Start a cluster on this machine (``local``) or join one (``auto``, ``host:port``), for the ``with`` block.

    What Ray prints to stdout meanwhile is dropped, or with ``verbose`` goes to stderr: stdout is for tables.

    Args:
        suite: what the job is called in the dashboard.
        ship: modules that every process of a cluster that is joined finds first (`raybench.shipping`).
        checked: refuse a cluster that is joined if its nodes have other versions.
        to_train: on this machine, have the processes that Ray starts at once load PyTorch, for trials to come.

    Raises:
        UserError: if there is no cluster at ``address``, or its nodes have other versions.
    """
    if address.startswith("ray://"):
        raise UserError(f"--address {address}: Ray Client is not supported: use `auto` on the head, or host:6379")
    if address.startswith(("http://", "https://")):
        raise UserError(f"--address {address}: is a dashboard: send the suite there with raybench submit")
    if address != "local" and (wrong := rayenv.wrong_token()):
        raise UserError(f"--address {address}: no token: {wrong}")
    if address not in ("local", "auto"):
        _knock(address)
    here, environment = _environments(address, ship, to_train)
    about = {"raybench": __version__, "suite": suite, "job_name": f"raybench {suite}", "submitted_by": whoami()}
    with contextlib.ExitStack() as stack:
        elsewhere = sys.stderr if verbose else stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(contextlib.redirect_stdout(elsewhere))
        try:
            quiet = contextlib.nullcontext() if verbose or address == "local" else silent()
            with _with_environment(here), quiet, _same_on_sigterm():
                context = ray.init(
                    address=address,
                    log_to_driver=verbose,
                    logging_level=logging.INFO if verbose else logging.ERROR,
                    runtime_env=environment or None,
                    job_config=JobConfig(metadata=about) if suite else None,
                    **({"dashboard_host": "127.0.0.1"} if address == "local" else {}),
                )
        except Exception as error:  # Ray raises plain ones too, as when a node is slow to start
            what = "Ray could not start" if address == "local" else "no Ray cluster answers there"
            hint = "" if address == "local" or "mismatch" in str(error) else f"; perhaps {rayenv.TOKENS}"
            if rayenv.LONG_PATH in str(error):
                hint = "; set RAY_TMPDIR to a shorter path"
            raise UserError(f"--address {address}: {what}: {_in_a_line(error)}{hint}") from None
        stack.callback(_shut_down)
        if checked and address != "local":
            _check_versions(address)
        yield Cluster(
            nodes=alive(),
            dashboard=f"http://{context.dashboard_url}" if context.dashboard_url else None,
            grows_to=ray._private.state.state.get_max_resources_from_cluster_config() or {},  # private
        )


def _shut_down() -> None:
    """Leave the cluster, and end it if it was started here.

    Ray ends its processes one by one, and its monitor, which looks after autoscaling alone, after the process that it
    would tell of it: that takes the whole second that is allowed to each. So it goes first.
    """
    if node := ray._private.worker._global_node:  # private
        node.kill_monitor(check_alive=False)
    ray.shutdown()


def _environments(address: str, ship: Sequence[Path], to_train: bool) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the variables that Ray is to be started with here, and the runtime environment of the job."""
    if address == "local":
        few = (os.cpu_count() or 1) <= PRELOADED_CPUS
        return {**ACTOR_ENVIRONMENT, **(PRELOADED if to_train and few else {})}, {}
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment: dict[str, Any] = {"env_vars": {**ACTOR_ENVIRONMENT, **passed_on}}
    if ship:
        environment |= {"py_modules": [str(path) for path in ship], "excludes": ["__pycache__", "*.pyc"]}
    return {}, environment


@contextmanager
def _with_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Have these variables in the environment, for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _same_on_sigterm() -> Iterator[None]:
    """Keep what SIGTERM does: in the main thread Ray has it end the process, whatever is left undone."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def without_dashboard() -> None:
    """Have a start of Ray that is under way in another thread wait for no dashboard: a terminal's Ctrl-C goes to the
    processes of the dashboard too, and where one of them has ended Ray waits a minute for the others."""
    ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S = 0  # private
    logging.getLogger("ray._private.services").setLevel(logging.CRITICAL)  # it would print the dashboard's log


@contextmanager
def silent() -> Iterator[None]:
    """Drop what is written to stderr, by whatever language: Ray says every second that a head refuses."""
    sys.stderr.flush()
    with open(os.devnull, "w") as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def whoami() -> str:
    """Return user and host, for people who look at jobs."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a container whose user has no name
        return socket.gethostname()


def _in_a_line(error: Exception) -> str:
    """Return the first line of a message of Ray's, or all where the first only announces the others."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines) if lines[0].endswith(":") else lines[0]


PACKAGES = ("raybench", "python", "ray", "torch")
"""What must be alike in all processes: they send each other objects of these."""
VERSIONS_SECONDS = 120
"""How long nodes may take to start a process and say what they have; one that does not is left to Ray."""


def _check_versions(address: str) -> None:
    """Ask every node which versions its processes have.

    Raises:
        UserError: naming the first node whose versions differ from those here.
    """

    def versions() -> dict[str, str]:  # inside, so that it is sent as it is: a node may lack raybench
        import platform
        from importlib import import_module, metadata

        found = {"python": ".".join(platform.python_version_tuple()[:2])}
        try:
            found["raybench"] = import_module("raybench").__version__
        except ImportError:
            found["raybench"] = "missing"
        for package in ("ray", "torch"):
            try:
                found[package] = metadata.version(package).partition("+")[0]  # builds for CPU and GPU go together
            except metadata.PackageNotFoundError:
                found[package] = "missing"
        return found

    here = versions()
    ask = ray.remote(num_cpus=0)(versions)
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            answer = ask.options(name="raybench versions", scheduling_strategy=there).remote()
            asked[answer] = f"node {node['NodeManagerAddress']} ({node['NodeName']})"
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=VERSIONS_SECONDS)
    different = []
    for answer in answered:
        try:
            found = ray.get(answer)
        except ray.exceptions.RuntimeEnvSetupError as error:
            raise UserError(
                f"--address {address}: {asked[answer]} cannot take what was sent to it: {_in_a_line(error)}"
            ) from None
        except ray.exceptions.RayError:
            continue  # it has gone meanwhile, as nodes may; no trial goes there
        if wrong := [name for name in PACKAGES if found[name] != here[name]]:
            what = ", ".join(f"{name} {found[name]} (here {here[name]})" for name in wrong)
            different.append(f"{asked[answer]} has other versions: {what}")
    if different:
        others = f"; {len(different) - 1} more of {len(asked)} nodes differ too" if different[1:] else ""
        raise UserError(
            f"--address {address}: {different[0]}{others}: install the same there; raybench itself can be sent along"
            " with --ship"
        )


def _knock(address: str) -> None:
    """Refuse an address where nobody listens; Ray itself would try for minutes and then end the process."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with contextlib.suppress(TimeoutError, ConnectionError):
                if connection.recv(5) == b"HTTP/":
                    raise UserError(
                        f"--address {address}: a web server answers there, such as a dashboard: give the port of"
                        f" `ray start --head`, {host}:6379"
                    )
    except ValueError:
        raise UserError(f"--address {address}: must be local, auto or host:port, such as 10.0.0.5:6379") from None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--address {address}: no Ray cluster answers there: {reason}") from None
