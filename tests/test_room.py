"""What is said where a cluster has no room, without Ray; tests/test_connect.py counts slots."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("ray")
from raybench import room
from raybench.connect import Node
from raybench.room import Room
from raybench.settings import Resources


def test_where_the_rest_of_the_nodes_has_no_room_it_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Room(Resources(cpus=2, gpus=1, workers=2), {"CPU": 2, "GPU": 1})
    monkeypatch.setattr(room, "_places_in_wait", set)
    said = []
    for left in ([{"CPU": 4, "GPU": 2}], [{"CPU": 8}, {"CPU": 1, "GPU": 8}], [], [{"CPU": 2, "GPU": 1}] * 2):
        monkeypatch.setattr(room, "alive", lambda left=left: [Node(resources, {}) for resources in left])
        said.append(here.lack(busy=False))
    assert said == [
        None,
        "waiting for nodes: a trial asks for 2 x (2 CPUs, 1 GPUs); left: 1 x (8 CPUs, 0 GPUs) and 1 x (1 CPUs, 8 GPUs)",
        None,
        None,
    ]


def test_where_other_jobs_leave_no_room_it_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    states, now = dict.fromkeys(("a07", "b07", "a08"), "PENDING"), [0.0]
    states["b07"], states["a08"] = "REMOVED", "CREATED"  # the last is another job's
    monkeypatch.setattr(room, "alive", lambda: [Node({"CPU": 2}, {})])
    monkeypatch.setattr(room, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(room.ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "07"))
    monkeypatch.setattr(room, "placement_group_table", lambda: {id_: {"state": one} for id_, one in states.items()})
    here = Room(Resources(), {"CPU": 1})

    def look(times: int, *, busy: bool = False) -> list[str | None]:
        """Look every five seconds; return what is said."""
        said = []
        for _ in range(times):
            said.append(here.lack(busy=busy))
            now[0] += 5
        return [line for line in said if line]

    waiting = ["waiting for room: a trial asks for 1 x (1 CPUs, 0 GPUs), and no node has that free"]
    assert look(3) == []  # it may take a moment
    states["c07"] = states.pop("a07")  # another place: the process of the first has died
    assert look(3) == []
    assert look(4) == waiting
    states["b07"] = "CREATED"  # a process starts there
    assert look(5) == []
    states["b07"] = "REMOVED"
    assert look(5, busy=True) == []
    assert look(3) == []
    assert look(5) == waiting
