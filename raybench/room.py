"""Room for trials on a cluster: how many run at once, and what is said where there is none."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping

import raybench.rayenv  # noqa: F401  # isort: skip  # sets what Ray reads when it is imported

import ray
from ray.util import placement_group_table

from raybench.connect import Cluster, Node, alive, room_for
from raybench.errors import UserError
from raybench.settings import Resources

PLACE_SECONDS = 15
"""How long a trial may wait for its place on the cluster until that is told: what ends leaves its own with a delay."""


def slots_of(cluster: Cluster, resources: Resources, max_concurrent: int | None) -> int:
    """Return how many trials with these needs run at once.

    Raises:
        UserError: if not even one can.
    """
    slots = cluster.slots(resources)
    if slots < 1:
        labels = " and ".join(f"{name}={value}" for name, value in resources.labels.items())
        where, there = f" with {labels}" if labels else "", _listed(cluster.nodes, resources)
        more = f", and may grow to {_amounts(cluster.grows_to, resources)}" if cluster.grows_to else ""
        found = f"the nodes{where} are {there}" if there else f"there is no node{where}"
        raise UserError(
            f"resources: a trial asks for {_asked(resources)}, but {found}{more}: ask for less, e.g. --set"
            " resources.cpus=1"
        )
    return min(slots, max_concurrent or slots)


def _asked(resources: Resources) -> str:
    each = {"CPU": resources.cpus, "GPU": resources.gpus, **resources.custom}
    return f"{resources.workers} x {_amounts(each, resources)}"


def _listed(nodes: Iterable[Node], resources: Resources) -> str:
    """Return what the nodes that may be used have, of what a trial asks for."""
    kinds = Counter(_amounts(node.resources, resources) for node in nodes if node.fits(resources.labels))
    return " and ".join(f"{count} x {kind}" for kind, count in kinds.items())


def _amounts(of: Mapping[str, float], resources: Resources) -> str:
    names = {"CPU": "CPUs", "GPU": "GPUs", **{name: name for name in resources.custom}}
    return f"({', '.join(f'{of.get(name, 0):g} {shown}' for name, shown in names.items())})"


class Room:
    """What a sweep knows of the room for its trials, from look to look; Tune itself waits in silence."""

    def __init__(self, resources: Resources, needs: Mapping[str, float]) -> None:
        """Each process of a trial ``needs`` this."""
        self.resources, self.needs = resources, needs
        self.waiting = False
        self.places: dict[str, float] = {}
        """Places on the cluster for which this job waits, as of the last look, and since when."""

    def lack(self, *, busy: bool) -> str | None:
        """Look, and say, once, where lost nodes leave no room for a trial, or other jobs do not.

        Args:
            busy: whether a trial of this sweep runs; it waits for no place then.
        """
        left, reason, now = alive(), None, time.monotonic()
        self.places = {place: self.places.get(place, now) for place in (() if busy else _places_in_wait())}
        if room_for(self.needs, self.resources.labels, left) < self.resources.workers:
            there = _listed(left, self.resources) or "none"
            reason = f"waiting for nodes: a trial asks for {_asked(self.resources)}; left: {there}"
        elif any(now - since >= PLACE_SECONDS for since in self.places.values()):
            reason = f"waiting for room: a trial asks for {_asked(self.resources)}, and no node has that free"
        waited, self.waiting = self.waiting, reason is not None
        return None if waited else reason


def _places_in_wait() -> set[str]:
    """Return the ids of the places that this job waits for, if it has none; they end with the job's."""
    job = ray.get_runtime_context().get_job_id()
    states = {id_: place["state"] for id_, place in placement_group_table().items() if id_.endswith(job)}
    return set() if "CREATED" in states.values() else {id_ for id_, state in states.items() if state == "PENDING"}
