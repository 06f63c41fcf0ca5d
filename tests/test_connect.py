"""Clusters: how many trials fit, on which nodes, and nodes that have other versions."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")
from raybench import connect, doctor, grid
from raybench.connect import Cluster, Node
from raybench.errors import UserError
from raybench.room import slots_of
from raybench.settings import Resources


def cluster(*nodes: dict[str, float], **grows_to: float) -> Cluster:
    return Cluster(tuple(Node(resources, {}) for resources in nodes), grows_to=grows_to)


def test_slots() -> None:
    both = cluster({"CPU": 12, "GPU": 1}, {"CPU": 4, "GPU": 1})
    slots = lambda **resources: both.slots(Resources(**resources))  # noqa: E731
    assert (both.cpus, both.gpus) == (16, 2)
    assert slots(cpus=1) == 16
    assert slots(cpus=3) == 5
    assert slots(cpus=1, gpus=0.25) == 8
    assert slots(cpus=1, gpus=0.1) == 10 + 4
    assert slots(cpus=1, gpus=1, workers=2) == 1
    assert slots(cpus=32) == 0
    assert cluster({"CPU": 4}).slots(Resources(cpus=1, gpus=0.5)) == 4, "GPUs are unused where none is"


def test_a_process_needs_a_node_that_has_all_it_asks_for() -> None:
    four = cluster(*[{"CPU": 8, "GPU": 1, "fast": 1}] * 4)
    slots = lambda **resources: four.slots(Resources(**resources))  # noqa: E731
    assert (slots(cpus=16), slots(gpus=4), slots(custom={"fast": 2})) == (0, 0, 0)
    assert slots(cpus=8, workers=4) == 1 and slots(gpus=1, workers=4) == 1 and slots(workers=5, gpus=1) == 0
    assert slots(cpus=5) == 4 and slots(gpus=0.4) == 8
    apart = cluster({"CPU": 64}, {"CPU": 1, "GPU": 8})
    assert apart.slots(Resources(cpus=1, gpus=0.6)) == 1, "beside the node's one CPU"
    two = cluster({"CPU": 8, "GPU": 2})
    assert two.slots(Resources(gpus=0.6)) == 2 and two.slots(Resources(gpus=0.5)) == 4, "a part lies on one GPU"
    assert apart.slots(Resources(cpus=2, gpus=1)) == 0 and apart.slots(Resources(cpus=1, gpus=1)) == 1


def test_slots_of_custom_resources_and_labels() -> None:
    mixed = Cluster(
        (
            Node({"CPU": 8}, {}),
            Node({"CPU": 8, "GPU": 2, "fast": 1}, {"ray.io/accelerator-type": "A100"}),
            Node({"CPU": 8, "GPU": 4}, {"ray.io/accelerator-type": "H100", "zone": "a"}),
        )
    )
    on = lambda selector: mixed.slots(Resources(gpus=1, labels={"ray.io/accelerator-type": selector}))  # noqa: E731
    assert (on("A100"), on("H100"), on("!A100"), on("in(A100, H100)"), on("!in(A100,H100)"), on("T4")) == (
        2, 4, 4, 6, 0, 0,
    )  # fmt: skip
    assert mixed.slots(Resources(gpus=1, labels={"ray.io/accelerator-type": "H100", "zone": "b"})) == 0
    assert mixed.slots(Resources(custom={"fast": 0.25})) == 4
    assert mixed.slots(Resources(custom={"slow": 1})) == 0
    assert mixed.needs(Resources(gpus=0.5, workers=2, custom={"fast": 1})) == {"CPU": 1, "GPU": 0.5, "fast": 1}


def test_an_autoscaler_is_asked_for_all_that_it_may_start() -> None:
    empty = cluster({"CPU": 2}, CPU=64, GPU=8)
    assert (empty.cpus, empty.gpus) == (64, 8)
    assert empty.slots(Resources(cpus=4, gpus=1)) == 8 and empty.slots(Resources(cpus=4, workers=4)) == 4
    assert empty.needs(Resources(gpus=1)) == {"CPU": 1, "GPU": 1}, "trials ask for GPUs that are not there yet"


def test_a_thing_is_put_once_into_the_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[object] = []
    monkeypatch.setattr(connect.ray, "put", lambda thing: put.append(thing) or len(put))
    one, other = cluster(), cluster()
    images: dict[str, list[int]] = {"train": [1]}
    assert [one.put(images), one.put({"train": [1]}), one.put(images)] == [1, 2, 1]
    assert other.put(images) == 3 and len(put) == 3, "another connection has a store of its own"


def test_what_no_node_has_is_refused() -> None:
    for there, asked, said in (
        (
            cluster({"CPU": 2}),
            Resources(custom={"fast": 2}, labels={"ray.io/accelerator-type": "A100"}),
            "1 x (1 CPUs, 0 GPUs, 2 fast), but there is no node with ray.io/accelerator-type=A100",
        ),
        (
            cluster(*[{"CPU": 8, "GPU": 1}] * 3, {"CPU": 4}),
            Resources(cpus=16, workers=2),
            "2 x (16 CPUs, 0 GPUs), but the nodes are 3 x (8 CPUs, 1 GPUs) and 1 x (4 CPUs, 0 GPUs)",
        ),
        (
            cluster({"CPU": 2}, CPU=64, GPU=8),
            Resources(gpus=16),
            "1 x (1 CPUs, 16 GPUs), but the nodes are 1 x (2 CPUs, 0 GPUs), and may grow to (64 CPUs, 8 GPUs)",
        ),
    ):
        with pytest.raises(UserError) as refused:
            slots_of(there, asked, None)
        assert str(refused.value) == (f"resources: a trial asks for {said}: ask for less, e.g. --set resources.cpus=1")


def test_where_a_trial_runs_is_not_in_its_id(make_trial: Any) -> None:
    bare = make_trial(resources={"cpus": 2})
    there = make_trial(resources={"cpus": 2, "custom": {"fast": 0.5}, "labels": {"zone": "!a"}})
    assert there.id == bare.id == grid.identity(there.settings, 0)
    assert there.id != make_trial(resources={"cpus": 1}).id
    assert len({bare.typed().resources, there.typed().resources}) == 2, "they are of two kinds"


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"custom": {"GPU": 1}}, "'GPU' is not right: must be a custom resource; CPUs and GPUs are `cpus`, `gpus`"),
        ({"custom": {"fast": 1.5}}, "fast: 1.5 is not right: must be a fraction below 1 or a whole number"),
        (
            {"labels": {"zone": "a b"}},
            "zone: 'a b' is not right: must be a label such as A100, !A100 or in(A100, H100)",
        ),
    ],
)
def test_resources_that_no_node_can_have(resources: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as refused:
        Resources(**resources)
    assert said in str(refused.value)


class Fault(Exception):
    pass


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Node id -> what it answers to the question for its versions: changes to those here, or an error."""
    answers: dict[str, Any] = {}

    class Asked:
        def __init__(self, ask: Any) -> None:
            self.ask = ask

        def options(self, *, name: str, scheduling_strategy: Any) -> Asked:
            return self

        def remote(self) -> int:
            Asked.count += 1
            return Asked.count - 1

        count = 0

    made: list[Asked] = []

    def remote(**_: Any) -> Any:
        Asked.count = 0
        return lambda ask: made.append(Asked(ask)) or made[-1]

    def get(number: int) -> dict[str, str]:
        answer = list(answers.values())[number]
        if isinstance(answer, Exception):
            raise answer
        return {**made[-1].ask(), **answer}

    listed = lambda: [  # noqa: E731
        {"Alive": True, "NodeID": node.encode().hex(), "NodeManagerAddress": node, "NodeName": f"{node}-name"}
        for node in answers
    ]
    monkeypatch.setattr(connect.ray, "remote", remote)
    monkeypatch.setattr(connect.ray, "nodes", listed)
    monkeypatch.setattr(connect.ray, "wait", lambda asked, **_: (asked, []))
    monkeypatch.setattr(connect.ray, "get", get)
    monkeypatch.setattr(connect, "NodeAffinitySchedulingStrategy", lambda node_id, soft: None)
    return answers


def refusal() -> str | None:
    with contextlib.suppress(UserError):
        connect._check_versions("auto")
        return None
    with pytest.raises(UserError) as refused:
        connect._check_versions("auto")
    return str(refused.value)


def test_versions_of_all_nodes_are_compared(nodes: dict[str, Any]) -> None:
    import ray
    import torch

    from raybench import __version__

    nodes.update(a={}, gone=ray.exceptions.NodeDiedError("gone"))
    assert refusal() is None
    nodes["b"] = {"raybench": "0.0.9", "torch": "2.1.0"}
    torch_here = torch.__version__.partition("+")[0]
    what = f"raybench 0.0.9 (here {__version__}), torch 2.1.0 (here {torch_here})"
    advice = "install the same there; raybench itself can be sent along with --ship"
    assert refusal() == f"--address auto: node b (b-name) has other versions: {what}: {advice}"
    nodes["c"] = {"raybench": "missing"}
    assert refusal() == (
        f"--address auto: node b (b-name) has other versions: {what}; 1 more of 4 nodes differ too: {advice}"
    )
    nodes.clear()
    nodes["d"] = ray.exceptions.RuntimeEnvSetupError("no space\nmore")
    assert refusal() == (
        "--address auto: node d (d-name) cannot take what was sent to it: Failed to set up runtime environment."
    )


@pytest.mark.parametrize("to_train", [True, False])
def test_a_cluster_here_gets_its_environment_from_the_driver(monkeypatch: pytest.MonkeyPatch, to_train: bool) -> None:
    """Actors that ask for none of their own get processes that Ray has started already."""
    seen: list[dict[str, Any]] = []

    def init(**options: Any) -> Any:
        seen.append({"options": options, "environment": dict(os.environ)})
        raise RuntimeError("enough")

    monkeypatch.setattr(connect.ray, "init", init)
    monkeypatch.setattr(os, "cpu_count", lambda: connect.PRELOADED_CPUS)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "7")
    before = dict(os.environ)
    for address in ("local", "auto"):
        with pytest.raises(UserError, match="enough"), connect.connect(address, to_train=to_train):
            pass
    here, joined = seen
    assert here["options"]["runtime_env"] is None
    assert connect.ACTOR_ENVIRONMENT.items() <= here["environment"].items()
    assert (connect.PRELOADED.items() <= here["environment"].items()) == to_train
    assert connect.ACTOR_ENVIRONMENT.items() <= joined["options"]["runtime_env"]["env_vars"].items()
    assert joined["environment"] == dict(os.environ) == before


def test_a_sigterm_is_what_it_was_after_ray_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own handler, in the main thread, ends the process at once."""
    shut = []

    def init(**options: Any) -> Any:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        return SimpleNamespace(dashboard_url=None)

    monkeypatch.setattr(connect.ray, "init", init)
    monkeypatch.setattr(connect.ray, "shutdown", lambda: shut.append(True))
    monkeypatch.setattr(connect, "alive", tuple)
    monkeypatch.setattr(connect.ray._private.state.state, "get_max_resources_from_cluster_config", dict)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), connect.connect("auto"):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert shut == [True]


def test_the_monitor_is_ended_before_what_it_reports_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ray's own means, which end what this process has started and nothing of a cluster that it has joined."""
    ended: list[Any] = []
    node = SimpleNamespace(kill_monitor=lambda **how: ended.append(how))
    monkeypatch.setattr(connect.ray, "init", lambda **options: SimpleNamespace(dashboard_url=None))
    monkeypatch.setattr(connect.ray, "shutdown", lambda: ended.append("the others"))
    monkeypatch.setattr(connect.ray._private.worker, "_global_node", node)
    monkeypatch.setattr(connect, "alive", tuple)
    monkeypatch.setattr(connect.ray._private.state.state, "get_max_resources_from_cluster_config", dict)
    with connect.connect("local"):
        assert ended == []
    assert ended == [{"check_alive": False}, "the others"]


STARTED_BESIDE = """
import os, signal, time
import ray
from raybench.beside import beside
from raybench.connect import connect

signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    with beside(lambda: connect("local")) as starting:
        starting.result()
        [monitor] = ray._private.worker._global_node.all_processes["monitor"]
        asked = []
        monitor.process.terminate = lambda: asked.append("to end")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
except KeyboardInterrupt:
    time.sleep(5)  # longer than a crash would let it
    print("put in order; the monitor ended with", monitor.process.returncode, "asked", asked)
"""


@pytest.mark.ray
def test_a_sigterm_is_no_crash_where_ray_was_started_in_a_thread() -> None:
    done = subprocess.run([sys.executable, "-c", STARTED_BESIDE], capture_output=True, text=True, check=False)
    # Ray's monitor has gone when Ray would ask it to end, see `connect._shut_down`: with GCS away it takes a second
    said = "put in order; the monitor ended with -9 asked []\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_on_many_cpus_nothing_is_loaded_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: connect.PRELOADED_CPUS + 1)
    assert not connect.PRELOADED.items() & connect._environments("local", (), True)[0].items()


def test_the_port_of_a_dashboard_is_refused_at_once() -> None:
    """Ray would try for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as web:

        def answer() -> None:
            with web.accept()[0] as connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        threading.Thread(target=answer).start()
        address = f"127.0.0.1:{web.getsockname()[1]}"
        with pytest.raises(UserError) as refused, connect.connect(address):
            pass
    assert str(refused.value) == (
        f"--address {address}: a web server answers there, such as a dashboard: give the port of `ray start --head`,"
        " 127.0.0.1:6379"
    )


def test_sockets_too_deep_for_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /x"

    def init(**_: Any) -> None:
        raise OSError(said)

    monkeypatch.setattr(connect.ray, "init", init)
    with pytest.raises(UserError) as refused, connect.connect("local"):
        pass
    assert str(refused.value) == f"--address local: Ray could not start: {said}; set RAY_TMPDIR to a shorter path"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, Ray looks at no TMPDIR")
def test_doctor_looks_for_a_cluster_where_ray_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for number, name in enumerate(("TMPDIR", "RAY_TMPDIR")):  # the second comes before the first
        place = tmp_path / name / "ray"
        place.mkdir(parents=True)
        (place / "ray_current_cluster").write_text(f"10.0.0.{number}:6379")
        monkeypatch.setenv(name, str(place.parent))
        assert doctor._cluster() == f"`--address auto` would join 10.0.0.{number}:6379"
