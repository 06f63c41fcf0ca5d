"""The driver's side of Ray: a cluster, a sweep of trials on it, and what becomes of each.

Ray Tune starts one Tune trial for every trial; `raybench.actor` is what runs inside. All that comes out of a trial
travels to the driver in its reports, and the driver alone writes. Tune's own records are not used: what is finished is
what the store says.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import signal
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from raybench import tuneparts  # isort: skip  # before Tune: sets what it reads

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from raybench.actor import Fetched, Share, alive_nodes, lost_row, shown_name, trainable
from raybench.connect import Cluster
from raybench.grid import Trial
from raybench.job import Job
from raybench.records import EpochRow, ErrorClass, Outcome, TrialRow
from raybench.room import Room, slots_of
from raybench.rows import planned_row
from raybench.settings import Resources
from raybench.trial import failed

LIMITS: dict[ErrorClass, int] = {"crashed": 3, "node_lost": 10}
"""How often a trial may lose its process, and how often its node, until it is given up. A lost node is hardly the
trial's fault, but one that takes every node down must end too."""
LOOK_SECONDS = 5
NODE_SECONDS = 30
"""How long Ray may take to find out that a node is gone: 15 s after a kill, seen with 2.60. A process on another node
than the driver's that only died is waited for as long."""
ROUND = 10_000
"""How many trials one fit() has at most: Tune keeps some 25 kB of each until it ends."""


class Listener(Protocol):
    """Who is told of every step of a sweep."""

    def started(self, trial: Trial) -> None: ...
    def epoch(self, trial: Trial, row: EpochRow, begun: TrialRow) -> bool:
        """Hear of an epoch, and of the row with which its trial began; return whether the trial is to stop."""

    def stopped(self, trial: Trial) -> None:
        """Hear that a trial has stopped, as `epoch` said."""

    def ended(self, trial: Trial, outcome: Outcome) -> None: ...
    def lost(self, trial: Trial, reason: str) -> None:
        """Hear that a trial went down through no decision of its own, and starts again later."""

    def warned(self, trial: Trial, warning: str) -> None:
        """Hear what is no reason for the trial to fail."""

    def no_room(self, reason: str) -> None:
        """Hear that there is no room for a trial: nodes are gone, or other jobs run there."""


class Budget(Protocol):
    """What may be started, and until when."""

    def allows(self, trial: Trial) -> bool:
        """Return whether the trial may start now. Where one may not, none is started after it."""

    def seconds(self) -> float | None:
        """Return how long trials may run from now on; None for as long as they like."""


class Interrupted(Exception):
    """The user asked to stop. Every trial that had ended was told to the listener."""


class Spent(Exception):
    """The budget allows no more. Every trial that had ended was told to the listener; of the others nothing is kept."""


def run(
    job: Job,
    todo: Sequence[Trial],
    listener: Listener,
    cluster: Cluster,
    *,
    budget: Budget | None = None,
    max_concurrent: int | None = None,
    imports: Sequence[str] = (),
    paths: Sequence[str] = (),
    verbose: bool = False,
) -> None:
    """Run the trials of ``todo`` in their order, as many at once as fit, telling ``listener`` of every step.

    Every trial ends with one `Listener.ended` or `Listener.stopped`. One whose process or node went away, or that ran
    out of memory beside others, is told by `Listener.lost` and starts again, until a limit makes it a failed row.

    Args:
        imports: modules that register the suite's names, imported first in every process, from ``paths`` or installed.
        verbose: let Ray Tune print its own reports.

    Raises:
        UserError: if a process of a trial asks for more than any node has, or all of them for more than there is.
        Interrupted: after Ctrl-C or SIGTERM, once the running trials have let go.
        Spent: if ``budget`` has left trials out, once the running ones have ended or, at its end, let go.
    """
    tuneparts.speak(verbose)
    turns = in_turns(todo)
    slots = {resources: slots_of(cluster, resources, max_concurrent) for resources, _ in turns}
    with tempfile.TemporaryDirectory(prefix="raybench-") as storage, _stop_gently() as interrupted:
        share = Share(
            job=replace(
                job,
                provenance={**job.provenance, "ray_version": ray.__version__},
                trials={},
                sources=Fetched({key: cluster.put(source.stored or source) for key, source in job.sources.items()}),
                statistics=Fetched({key: cluster.put(fitted) for key, fitted in job.statistics.items()}),
            ),
            trials=ray.put({trial.id: trial for trial in todo}),
            suite=todo[0].suite if todo else "",
            imports=tuple(imports),
            paths=tuple(paths),
            use_gpu=False,
            storage=storage,
        )
        for resources, trials in turns:
            if interrupted.is_set():
                raise Interrupted
            if budget and not budget.allows(trials[0]):
                raise Spent
            needs = cluster.needs(resources)
            watcher = _Watcher({t.id: t for t in trials}, listener, interrupted, budget, resources, needs)
            kind = trainable(replace(share, use_gpu="GPU" in needs), resources)
            _run_kind(kind, watcher, slots[resources], storage, verbose)


def in_turns(todo: Sequence[Trial]) -> list[tuple[Resources, list[Trial]]]:
    """Return the trials of ``todo`` as they run: at any time those that ask for the same resources, seed by seed.

    So stopping anywhere leaves about equal n in the cells of all kinds. To change from kind to kind costs new actors:
    a seed begins with the kind that the seed before ended with.
    """
    turns: list[tuple[Resources, list[Trial]]] = []
    for _, trials in itertools.groupby(todo, key=lambda trial: trial.seed):
        kinds: dict[Resources, list[Trial]] = {}
        for trial in trials:
            kinds.setdefault(Resources.model_validate(trial.settings["resources"]), []).append(trial)
        if turns:
            resources, before = turns[-1]
            before += kinds.pop(resources, [])
        turns += kinds.items()
    return [(resources, trials[i : i + ROUND]) for resources, trials in turns for i in range(0, len(trials), ROUND)]


def _run_kind(trial_class: type[tune.Trainable], watcher: _Watcher, slots: int, storage: str, verbose: bool) -> None:
    """Run trials that ask for the same resources.

    Each fit() of Tune is a round; trials that were lost in it are run in a further one. Those that ran out of memory
    come last, one at a time. A round ends a trial or counts a loss, so there is an end to them.
    """
    open_trials = watcher.open
    for number in itertools.count():
        ids = [trial_id for trial_id in open_trials if trial_id not in watcher.alone]
        watcher.slots, ids = (slots, ids) if ids else (1, list(open_trials))
        watcher.running.clear()
        watcher.stopping.clear()
        before = len(open_trials), watcher.losses.total()
        cause = Exception("the sweep ended before the trial did")
        try:
            tune.Tuner(
                trial_class,
                tune_config=tune.TuneConfig(
                    search_alg=_ListSearcher(ids, watcher),
                    scheduler=_FirstInFirstOut(watcher),
                    num_samples=len(ids),
                    time_budget_s=watcher.budget and watcher.budget.seconds(),
                    max_concurrent_trials=watcher.slots,
                    reuse_actors=True,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name=f"{os.getpid()}-{number}",
                    storage_path=storage,
                    verbose=2 if verbose else 0,
                    callbacks=[watcher] if verbose else [watcher, tuneparts.Silence()],
                ),
            ).fit()
        except Exception as error:
            if watcher.failure is not None:
                raise watcher.failure from None
            cause = error
        watcher.decide(wait=True)
        if watcher.interrupted.is_set():
            raise Interrupted
        if not open_trials:
            return
        if watcher.budget and not watcher.budget.allows(next(iter(open_trials.values()))):
            raise Spent
        # Some faults end fit() itself, and with it what was running.
        down = watcher.running & open_trials.keys()
        if not down and before == (len(open_trials), watcher.losses.total()):
            down = set(ids)
        for trial_id in down:
            row = replace(failed(planned_row(open_trials[trial_id]), cause), error_class="crashed")
            watcher.count_loss(trial_id, Outcome(row=row))


class _Watcher(tune.Callback):  # type: ignore[misc]
    """Tells the listener what Tune's controller sees, in the driver."""

    def __init__(
        self,
        open_trials: dict[str, Trial],
        listener: Listener,
        interrupted: threading.Event,
        budget: Budget | None,
        resources: Resources,
        needs: Mapping[str, float],
    ) -> None:
        """A trial that has ended is taken out of ``open_trials``; each of its processes ``needs`` this."""
        self.open, self.listener, self.interrupted, self.budget = open_trials, listener, interrupted, budget
        self.room, self.look_at = Room(resources, needs), 0.0
        self.slots = 1
        self.running: set[str] = set()
        self.stopping: set[str] = set()
        self.starts: Counter[str] = Counter()
        self.losses: Counter[tuple[str, ErrorClass]] = Counter()
        self.alone: set[str] = set()
        """Trials that ran out of memory beside others."""
        self.undecided: list[tuple[str, Outcome, frozenset[str], float]] = []
        """Lost trials, the nodes each was on, and until when one of them may turn out to be gone."""
        self.failure: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks; nothing reads that

    def may_start(self, trial_id: str) -> bool:
        return self.budget is None or self.budget.allows(self.open[trial_id])

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.running.add(trial.config["id"])
        self.starts[trial.config["id"]] += 1
        self.listener.started(self.open[trial.config["id"]])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        # Taken out of the result, which Tune keeps for every trial.
        result.pop("epoch", None)
        message = result.pop("outcome", None)
        if message is not None:
            self._arrived(trial.config["id"], *pickle.loads(message))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.interrupted.is_set():
            _stop_tune()  # it may have come before Tune listened
        self.decide()
        if time.monotonic() >= self.look_at:
            self.look_at = time.monotonic() + LOOK_SECONDS
            if reason := self.room.lack(busy=bool(self.running)):
                with self._noting_failure():
                    self.listener.no_room(reason)

    def is_to_stop(self, trial_id: str, epochs: bytes) -> bool:
        """Tell the listener of epochs; return whether Tune is to stop the trial."""
        if trial_id in self.stopping:
            return True
        with self._noting_failure():
            rows, begun, warnings = pickle.loads(epochs)
            for warning in warnings:
                self.listener.warned(self.open[trial_id], warning)
            begun = replace(begun, attempts=self.starts[trial_id])
            # Those after the one at which it is to stop were trained too.
            if any([self.listener.epoch(self.open[trial_id], row, begun) for row in rows]):
                self.stopping.add(trial_id)
        return trial_id in self.stopping

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._stopped(trial.config["id"])

    def _stopped(self, trial_id: str) -> bool:
        """Tell the listener, if the trial has stopped because it was to; return whether it has."""
        if trial_id not in self.stopping or trial_id not in self.open:
            return False
        with self._noting_failure():
            self.listener.stopped(self.open[trial_id])
        self.running.discard(trial_id)
        del self.open[trial_id]
        return True

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        known = self.open.get(trial.config["id"])
        if known is not None and not self.interrupted.is_set() and not self._stopped(known.id):
            # Where Tune writes it; its get_pickled_error() looks in the storage folder, where it arrives later.
            error = pickle.loads(Path(trial.pickled_error_file).read_bytes())
            if "The actor never ran" in str(error):
                self.running.discard(known.id)  # no fault of the trial: the next round starts it again
            else:
                if known.id not in self.running:  # its process never came up: that was a start too
                    self.starts[known.id] += 1
                row, nodes = lost_row(known, error)
                self._arrived(known.id, Outcome(row=row), nodes)

    def _arrived(self, trial_id: str, outcome: Outcome, nodes: frozenset[str]) -> None:
        """Take what a trial left behind, or what is said of it; one of ``nodes`` may turn out to be gone."""
        if outcome.row.error_class not in ("crashed", "out_of_memory"):
            self._end(trial_id, outcome)
        elif not self._stopped(trial_id):
            self.running.discard(trial_id)
            if nodes:
                self.undecided.append((trial_id, outcome, nodes, time.monotonic() + NODE_SECONDS))
            else:
                self.count_loss(trial_id, outcome)

    def decide(self, wait: bool = False) -> None:
        """Go on with the lost trials of which it is known by now whether their node is gone; or ``wait`` for all."""
        while self.undecided:
            nodes_alive = alive_nodes()
            for loss in list(self.undecided):
                trial_id, outcome, nodes, until = loss
                if not nodes <= nodes_alive:
                    outcome = replace(outcome, row=replace(outcome.row, error_class="node_lost"))
                elif time.monotonic() < until:
                    continue
                self.undecided.remove(loss)
                self.count_loss(trial_id, outcome)
            if not wait or self.interrupted.wait(0.2):
                return

    def count_loss(self, trial_id: str, outcome: Outcome) -> None:
        """Let a lost trial start again in the next round, or end it."""
        trial, error_class = self.open[trial_id], outcome.row.error_class
        assert error_class is not None
        self.losses[trial_id, error_class] += 1
        times = self.losses[trial_id, error_class]
        if error_class == "out_of_memory" and self.slots > 1:
            self.alone.add(trial_id)
            reason = "out of memory: starts again at the end, alone"
        elif times < LIMITS.get(error_class, 0):
            what = {"crashed": f"its process died ({times} of {LIMITS['crashed']})", "node_lost": "its node is gone"}
            reason = f"{what[error_class]}: starts again"
        else:
            if error_class in LIMITS:
                outcome = replace(outcome, row=replace(outcome.row, error=f"lost {times} times: {outcome.row.error}"))
            self._end(trial_id, outcome)
            return
        with self._noting_failure():
            self.listener.lost(trial, reason)

    def _end(self, trial_id: str, outcome: Outcome) -> None:
        self.running.discard(trial_id)
        outcome = replace(outcome, row=replace(outcome.row, attempts=self.starts[trial_id]))
        with self._noting_failure():
            self.listener.ended(self.open[trial_id], outcome)
        del self.open[trial_id]

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as failure:
            self.failure = failure  # a full disk, say: Tune would wrap it
            raise


class _ListSearcher(Searcher):  # type: ignore[misc]
    """Hands Tune the trials in our order. A ``grid_search`` over a list is expanded in quadratic time."""

    def __init__(self, ids: Sequence[str], watcher: _Watcher) -> None:
        super().__init__(metric="epoch", mode="max")
        self.ids, self.watcher = deque(ids), watcher

    def suggest(self, trial_id: str) -> Any:
        if not self.ids or self.watcher.interrupted.is_set() or not self.watcher.may_start(self.ids[0]):
            return Searcher.FINISHED
        trial = self.watcher.open[self.ids.popleft()]
        return {"id": trial.id, "name": shown_name(trial)}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        pass


class _FirstInFirstOut(FIFOScheduler):  # type: ignore[misc]
    """Starts the trials in order, and stops one when the listener says so."""

    def __init__(self, watcher: _Watcher) -> None:
        super().__init__()
        self.watcher = watcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        epoch = result.get("epoch")
        stop = epoch is not None and self.watcher.is_to_stop(trial.config["id"], epoch)
        return FIFOScheduler.STOP if stop else FIFOScheduler.CONTINUE

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Leave the choice to Tune's controller, which starts waiting trials in order; the base scans all others."""
        return None


def _stop_tune() -> None:
    """Ask Tune to stop gently; it listens while it runs trials, not while it gets ready."""
    os.kill(os.getpid(), signal.SIGUSR1)


@contextmanager
def _stop_gently() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into Tune's own graceful stop for the ``with`` block; a second one ends at once."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def stop(number: int, frame: Any) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        _stop_tune()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    ignored = signal.signal(signal.SIGUSR1, lambda number, frame: None)  # in case Tune does not run yet
    try:
        yield interrupted
    finally:
        for number, handler in {**before, signal.SIGUSR1: ignored}.items():
            with contextlib.suppress(TypeError):
                signal.signal(number, handler)
