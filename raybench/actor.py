"""The worker's side of Ray: what runs inside a Tune trial.

`trainable` makes the Tune trainable. A trial with one process runs TorchTrainer in Ray Train's local mode, in the Tune
actor itself, which the next trial then uses again. A trial with several runs a TorchTrainer worker group beside the
actor, and has to be stopped gently (`_WorkerGroup`).

Uses names of Ray that are not public, each marked with "private"; tests/test_schedule.py runs every one of them.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import math
import pickle
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import raybench.rayenv  # noqa: F401  # isort: skip  # sets what Ray reads when it is imported

import ray
import torch
import torch.distributed
from ray import train, tune
from ray.experimental.internal_kv import (  # private
    _internal_kv_del,
    _internal_kv_exists,
    _internal_kv_get,
    _internal_kv_put,
)
from ray.train import ScalingConfig
from ray.train._internal.session import get_session  # private
from ray.train.torch import TorchTrainer
from ray.tune import PlacementGroupFactory
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.trainable.function_trainable import wrap_function  # private
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.queue import Empty

from raybench import gauges, replay
from raybench.connect import needs_of
from raybench.grid import Trial
from raybench.job import Job
from raybench.records import EpochRow, Outcome, TrialRow
from raybench.rows import planned_row
from raybench.settings import Resources
from raybench.train import World
from raybench.trial import failed

KV = b"raybench"
STOP_SECONDS = 60
"""How long a worker group may take to notice that it is to stop: an epoch, usually."""
TELL_SHARE = 0.01
"""How much of its time a trial may tell of its epochs, of which short ones wait to be told together: it stands still
until the driver has heard a report. That took 4 to 18 ms with two trials on two cores, as long as the short epochs of a
small network, and takes longer where many trials report to one driver."""
TELL_SECONDS = 1.0
"""After how long the next epoch to end is told with those that wait, whatever a report took: people look at them, and a
trial that has lost trains on."""

PEER_GONE = "by peer"
"""In what gloo says where another process of the group has gone: connection closed, or reset, by peer."""


class Fetched(Mapping[str, Any]):
    """Objects that lie in Ray's object store, fetched when they are looked up; their arrays are shared, not copied."""

    def __init__(self, refs: Mapping[str, ray.ObjectRef]) -> None:
        self.refs = dict(refs)

    def __getitem__(self, key: str) -> Any:
        return ray.get(self.refs[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self.refs)

    def __len__(self) -> int:
        return len(self.refs)


@dataclass(frozen=True, slots=True)
class Share:
    """A `Job` whose large parts lie in the object store, and what a process needs before it can run its trials."""

    job: Job
    """``sources`` and ``statistics`` are `Fetched`; ``trials`` is empty: they are in ``trials``."""
    trials: Any
    """A reference to the dict of trials by id."""
    suite: str
    imports: tuple[str, ...]
    paths: tuple[str, ...]
    use_gpu: bool
    storage: str
    """Folder for what Ray Train writes about a worker group."""

    def trial(self, trial_id: str) -> Trial:
        return _all(self.trials)[trial_id]

    def import_modules(self) -> None:
        """Import the user's modules, which may fail here alone: on another node, or beside others."""
        for path in self.paths:
            if path not in sys.path:
                sys.path.insert(0, path)
        for module in self.imports:
            importlib.import_module(module)

    @property
    def device(self) -> str:
        return "cuda" if self.use_gpu and torch.cuda.is_available() else "cpu"


@functools.lru_cache(maxsize=1)
def _all(trials: ray.ObjectRef) -> dict[str, Trial]:
    """Return the trials by id, fetched once per process: unpacking thousands takes longer than a short trial."""
    return ray.get(trials)


class ActorEnded(ray.exceptions.RayActorError):  # type: ignore[misc]
    """The end of an actor by a ``cause`` that Tune does not take for one, such as a kill by Ray's memory monitor."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(error_msg=str(cause))
        self.cause = cause


def lost_row(trial: Trial, error: Exception) -> tuple[TrialRow, frozenset[str]]:
    """Return the failed row of a trial that sent none itself, and the nodes of which one may be what was lost.

    A node that goes takes its processes with it, and Ray may miss them first.
    """
    error = error.cause if isinstance(error, ActorEnded) else error
    row, nowhere = failed(planned_row(trial), error), frozenset[str]()
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return dataclasses.replace(row, error_class="out_of_memory"), nowhere
    if not _is_gone(error):
        return row, nowhere
    row = dataclasses.replace(row, error_class="crashed")
    if isinstance(error, ray.exceptions.ActorDiedError):  # its last line says how; all of them are in the traceback
        row = dataclasses.replace(row, error=str(error).splitlines()[-1].partition(" Some common causes")[0])
    if not isinstance(error, ray.exceptions.RayActorError) or error.actor_id is None:
        return row, nowhere
    return row, _elsewhere([ray._private.state.actors(error.actor_id)["Address"]["NodeID"]])  # private


def _elsewhere(nodes: Iterable[str]) -> frozenset[str]:
    """Return those of ``nodes`` that this process does not run on."""
    return frozenset(nodes) - {ray.get_runtime_context().get_node_id()}


def _is_gone(error: Exception) -> bool:
    """Return whether ``error`` comes from Ray itself, and not from code that ran on it."""
    return isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError)


def alive_nodes() -> set[str]:
    """Return the ids of the nodes that Ray takes for alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def shown_name(trial: Trial) -> str:
    """Return the name under which Ray shows a trial's tasks and processes: suite, cell and seed.

    Without what it is searched over: Ray makes series of its own metrics for each name, and never drops one.
    """
    return re.sub(r"\s+", "_", "/".join(map(str, (trial.suite, *trial.cell, f"s{trial.seed}"))))


class Slot(PlacementGroupFactory):  # type: ignore[misc]
    """The resources of trials, under the name of their suite. Ray wants every name but once in a job."""

    _numbers = itertools.count(1)

    def __init__(self, suite: str, needs: dict[str, float], labels: dict[str, str] | None = None) -> None:
        super().__init__([needs], **({"bundle_label_selector": [labels]} if labels else {}))
        self.suite = suite

    def to_placement_group(self) -> PlacementGroup:
        name = f"raybench/{self.suite}/{next(self._numbers)}"
        return placement_group(*self._bound.args, **self._bound.kwargs, name=name)  # private


class Stopped(Exception):
    """The driver asked this worker group to stop."""


def trainable(share: Share, resources: Resources) -> type[tune.Trainable]:
    """Return the class that Tune starts: one per kind of trial."""
    group = _WorkerGroup(share, resources) if resources.workers > 1 else None

    def train_one(config: dict[str, Any]) -> None:
        trial = share.trial(config["id"])
        try:
            share.import_modules()
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # Ray would say no more than a traceback
            tune.report(outcome_metrics(Outcome(row=failed(planned_row(trial), error))))
            return
        if group is None:
            _in_this_process(share, trial)
        else:
            group.run(trial)

    class RaybenchTrial(wrap_function(train_one, name="raybench")):  # type: ignore[misc]
        @classmethod
        def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
            if group is not None:
                # The workers bring their own CPUs, so this actor must take none; it only waits, on the head.
                return Slot(share.suite, {"node:__internal_head__": 0.001})
            return Slot(share.suite, needs_of(resources, share.use_gpu), resources.labels)

        def __repr__(self) -> str:
            return f"raybench {share.suite}"

        def cleanup(self) -> None:
            if group is not None:
                group.stop()
            super().cleanup()

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            if group is not None:
                group.stop()
            return super().reset_config(new_config)

    RaybenchTrial.__qualname__ = "RaybenchTrial"  # what the dashboard shows
    return RaybenchTrial


def epoch_metrics(rows: Sequence[EpochRow], trial: TrialRow, warnings: Sequence[str]) -> dict[str, Any]:
    """Return the report of some epochs: one entry, so that Tune keeps no statistics of its own about it.

    ``trial`` is the trial's row as it was at its beginning, for a trial that does not live to send its own;
    ``warnings`` are told to the user.
    """
    return {"epoch": pickle.dumps((tuple(rows), trial, tuple(warnings)))}


def outcome_metrics(outcome: Outcome, nodes: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the last report of a trial: all that it leaves behind, and the nodes of `lost_row`."""
    return {"outcome": pickle.dumps((outcome, nodes))}


def _in_this_process(share: Share, trial: Trial) -> None:
    begun: list[TrialRow] = []
    waiting: list[EpochRow] = []
    warnings: list[str] = []
    due = -math.inf

    def tell() -> None:
        nonlocal due
        told = time.monotonic()
        tune.report(epoch_metrics(waiting, begun[0], warnings))
        waiting.clear()
        warnings.clear()
        heard = time.monotonic()
        due = heard + min((heard - told) / TELL_SHARE, TELL_SECONDS)

    def report(row: EpochRow) -> None:
        waiting.append(row)
        if time.monotonic() >= due:
            tell()

    def loop() -> None:
        gauges.show_memory(share.suite, share.device)
        try:
            outcome = share.job.run(trial, device=share.device, begun=begun.append, report=report, warn=warnings.append)
        finally:
            gauges.hide_memory(share.suite, share.device)
        broken = device_failure(share.device) if outcome.row.status == "failed" else None
        if begun and (waiting or warnings):
            tell()
        tune.report(outcome_metrics(outcome))
        if broken is not None:  # the row has arrived, and this ends the trial; the next one gets a process of its own
            raise broken

    TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=0, use_gpu=share.device == "cuda")).fit()


def device_failure(device: str) -> RuntimeError | None:
    """Return what a GPU says to this process, where it is of no more use to it: after a fault on the device, every
    further call fails, and after a recording that CUDA refused, every further recording."""
    if not device.startswith("cuda"):
        return None
    if replay.spoilt:
        return RuntimeError(replay.spoilt[0])
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return error
    return None


class _WorkerGroup:
    """A trial in several processes.

    Tune stops a trial by abandoning its thread, but this thread waits for other actors: the group would train on and
    keep its CPUs. So a stop is a key in the cluster's store, which the processes look at after every epoch.
    """

    def __init__(self, share: Share, resources: Resources) -> None:
        self.share, self.resources = share, resources

    def run(self, trial: Trial) -> None:
        """Train ``trial`` to its end; runs in the thread that Tune gives a trial."""
        tune_id = tune.get_context().get_trial_id()
        keys = f"{tune_id}/"
        _running.update(keys=keys, ended=threading.Event())
        try:
            TorchTrainer(
                _worker_loop(self.share, trial, keys),
                scaling_config=ScalingConfig(
                    num_workers=self.resources.workers,
                    use_gpu=self.share.use_gpu,
                    resources_per_worker=needs_of(self.resources, self.share.use_gpu),
                    label_selector=self.resources.labels or None,
                ),
                run_config=train.RunConfig(
                    # A folder that exists would be resumed from.
                    name=f"{re.sub('[^A-Za-z0-9_.-]', '-', shown_name(trial))[:100]}-{trial.id}-{tune_id}",
                    storage_path=self.share.storage,
                    callbacks=[TuneReportCallback()],
                ),
            ).fit()
        except train.WorkerGroupError as error:
            # A process whose peer has gone fails too; the peer says more.
            wrapped = [cause for _, cause in sorted(error.worker_failures.items())]
            causes = [getattr(cause, "health_check_failure", cause) for cause in wrapped]  # private
            cause = min(causes, key=lambda cause: (not _is_gone(cause), PEER_GONE in str(cause)))
            if not isinstance(cause, Failed):
                row, nodes = lost_row(trial, cause)
            elif PEER_GONE in str(cause):  # and Ray does not say yet which, or whether its node has
                row, nodes = dataclasses.replace(cause.row(), error_class="crashed"), self._nodes(keys)
            else:
                row, nodes = cause.row(), frozenset()
            tune.report(outcome_metrics(Outcome(row=row), nodes))
        finally:
            try:
                _internal_kv_del(keys, del_by_prefix=True, namespace=KV)
            finally:
                _running["ended"].set()

    def _nodes(self, keys: str) -> frozenset[str]:
        """Return the nodes of the group's processes, but for this one's own."""
        found = [_internal_kv_get(f"{keys}node/{rank}", namespace=KV) for rank in range(self.resources.workers)]
        return _elsewhere(node.decode() for node in found if node)

    def stop(self) -> None:
        """Stop the group, if one runs, and wait until it has let go; called by Tune in the actor's main thread."""
        if not _running or _running["ended"].is_set():
            return
        _internal_kv_put(f"{_running['keys']}stop", b"1", namespace=KV)
        queue = get_session()._inter_actor_queue  # private
        for _ in range(STOP_SECONDS * 5):
            if _running["ended"].is_set():
                return
            try:
                # It holds one report, and nobody else reads it now: full, it would block the group.
                if queue is not None:
                    queue.get(block=True, timeout=0.2)
                else:
                    _running["ended"].wait(0.2)
            except Empty:
                pass


_running: dict[str, Any] = {}
"""The worker group of this actor: ``ended``, and ``keys``, with which its keys in the cluster's store begin."""


class Failed(Exception):
    """Carries a failed row out of a worker process."""

    def row(self) -> Any:
        return pickle.loads(self.args[1])


def _worker_loop(share: Share, trial: Trial, keys: str) -> Any:
    """Return what each process of the group runs."""

    def loop() -> None:
        share.import_modules()
        context = train.get_context()
        world = World(context.get_world_rank(), context.get_world_size())
        _internal_kv_put(f"{keys}node/{world.rank}", ray.get_runtime_context().get_node_id(), namespace=KV)
        device = str(train.torch.get_device())
        gauges.show_memory(share.suite, device)
        begun: list[TrialRow] = []
        warnings: list[str] = []

        def warn(warning: str) -> None:  # only what the first process reports reaches the driver
            if world.rank == 0:
                warnings.append(warning)
            else:
                _internal_kv_put(f"{keys}warning/{world.rank}", f"process {world.rank}: {warning}", namespace=KV)

        def report(row: EpochRow) -> None:
            for rank in range(1, world.size) if world.rank == 0 else ():
                if text := _internal_kv_get(f"{keys}warning/{rank}", namespace=KV):
                    warnings.append(text.decode())
                    _internal_kv_del(f"{keys}warning/{rank}", namespace=KV)
            train.report(epoch_metrics([row], begun[0], warnings))
            warnings.clear()
            stop = torch.zeros(1, device=device)
            if world.rank == 0 and _internal_kv_exists(f"{keys}stop", namespace=KV):
                stop += 1
            torch.distributed.broadcast(stop, 0)
            if stop.item():
                raise Stopped

        try:
            outcome = share.job.run(trial, device=device, world=world, begun=begun.append, report=report, warn=warn)
        except Stopped:
            return
        finally:
            gauges.hide_memory(share.suite, device)
        if outcome.row.status == "failed":  # the other processes may be waiting for this one: end them all
            raise Failed(outcome.row.error, pickle.dumps(outcome.row))
        train.report(outcome_metrics(outcome) if world.rank == 0 else {})

    return loop
