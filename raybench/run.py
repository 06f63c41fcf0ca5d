"""A suite's missing trials, from the plan to stored rows: the story of ``raybench run``."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from rich.console import Console
from rich.text import Text

from raybench import shipping
from raybench.axes import Label
from raybench.beside import beside
from raybench.errors import DataError
from raybench.grid import Trial, counted, sizes
from raybench.live import Watch, busy
from raybench.plan import Choice, expand, snapshot
from raybench.records import FINISHED, EpochRow, Outcome, TrialRow
from raybench.rows import pruned
from raybench.search import Ended
from raybench.settings import TrialSettings
from raybench.stages import is_done, pruner, start_order, with_weights
from raybench.store import Store
from raybench.track import open_trackers

if TYPE_CHECKING:  # PyTorch and Ray take seconds to load: not before they are needed
    from concurrent.futures import Future

    from raybench.checkpoint import Checkpoints
    from raybench.connect import Cluster
    from raybench.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user chose besides the suite."""

    data_dir: Path
    address: str = "local"
    max_concurrent: int | None = None
    budget: float | None = None
    """Seconds."""
    max_trials: int | None = None
    """How many trials may be started."""
    verbose: bool = False
    checkpoints: Checkpoints | None = None
    track: tuple[str, ...] = ()
    """Trackers besides those that the suite names."""
    ship: bool = False
    """Whether nodes of a cluster that is joined get this raybench, whatever they have."""


class Follower(Protocol):
    """Who hears of a sweep after what was heard is stored."""

    def started(self, trial: Trial) -> None: ...
    def epoch(self, trial: Trial, row: EpochRow, begun: TrialRow) -> None: ...
    def lost(self, trial: Trial, reason: str) -> None: ...
    def ended(self, trial: Trial, outcome: Outcome) -> None: ...
    def close(self) -> None: ...


End = Literal["finished", "interrupted", "spent"]


def run_missing(choice: Choice, store: Store, options: Options, console: Console) -> End:
    """Run the trials that ``store``, which is open, has no finished row of; return why no more are run: none is left,
    the user interrupted, or the budget is spent. ``console`` prints text as it is, without markup.

    Raises:
        UserError: for anything that the user must mend first; nothing has run then.
    """
    suite, budget = choice.suite, Budget(options)
    done, damaged = store.done()
    for line in damaged:
        console.print(line, style="yellow", soft_wrap=True)
    sweep = _Sweep(choice, store)
    planned, finished = choice.planned(), len(sweep.trials) - len(sweep.todo)
    console.print(Text.assemble((suite.name, "bold"), f"  {suite.about}" if suite.about else ""), soft_wrap=True)
    left = f"{finished:,} finished, {planned - finished:,} to run"
    console.print(f"{counted(planned, 'trial')} ({sizes(suite)}): {left}", soft_wrap=True)
    if lacking := len(sweep.without_weights()):
        console.print(
            f"weights of {counted(lacking, 'finished trial')} were not kept: to train again, choose another --results",
            style="yellow",
            soft_wrap=True,
        )
    if not sweep.todo:
        store.keep(snapshot(choice))
        return "finished"
    trackers = tuple(dict.fromkeys((*suite.track, *options.track)))
    tracking = open_trackers(trackers, suite.name, store.folder, lambda line: console.print(line, style="yellow"))

    local = options.address == "local"

    def connected() -> AbstractContextManager[Cluster]:
        from raybench.connect import connect  # loads Ray: seconds, not for a run that has nothing to do

        # On this machine, every process finds what this one does.
        ship = [] if local else [*shipping.modules(suite), *([shipping.package()] if options.ship else [])]
        return connect(
            options.address, suite=suite.name, ship=ship, checked=True, to_train=True, verbose=options.verbose
        )

    with contextlib.ExitStack() as stack:
        with busy(console, "preparing") as say:
            # Ray's own start is mostly waiting. Another's cluster is not asked before all is well here.
            starting = stack.enter_context(beside(connected)) if local else None
            if starting:
                stack.enter_context(_said_to_wait(starting, console))
            from raybench.job import prepare

            job = prepare(suite, sweep.todo, options.data_dir, say)
            for note in job.notes:
                console.print(f"WARNING: {note}", style="yellow", soft_wrap=True)
            _refuse_other_data(job, store)
            store.keep(snapshot(choice))
            say("loading Ray")
            from raybench import schedule
            from raybench.gauges import Gauges
        with busy(console, "starting Ray" if local else f"joining Ray at {options.address}"):
            cluster = starting.result() if starting else stack.enter_context(connected())
        slots = cluster.slots(sweep.todo[0].typed().resources)
        console.print(
            f"Ray: {counted(len(cluster.nodes), 'node')}, {cluster.cpus} CPUs, {cluster.gpus} GPUs"
            + (f", dashboard {cluster.dashboard}" if cluster.dashboard else "")
        )
        watch = stack.enter_context(Watch(console, planned, finished, min(slots, options.max_concurrent or slots)))
        stored = [done[trial.id] for trial in sweep.trials if trial.id in done]
        gauges = Gauges(suite.name, stored, planned, watch.seconds_left)
        followers = gauges, tracking
        for follower in followers:
            stack.callback(follower.close)
        while sweep.todo:
            job = replace(job, checkpoints=options.checkpoints)
            recorder = _Recorder(sweep, store, watch, budget, options.checkpoints, followers)
            try:
                schedule.run(
                    job,
                    sweep.todo,
                    recorder,
                    cluster,
                    budget=budget,
                    max_concurrent=options.max_concurrent,
                    imports=suite.imports,
                    # Elsewhere, what lies in this folder may be another file.
                    paths=[str(suite.folder.resolve())] if suite.imports and local else [],
                    verbose=options.verbose,
                )
            except schedule.Interrupted:
                return "interrupted"
            except schedule.Spent:
                return "spent"
            finally:
                recorder.close()
            sweep.go_on()
            job = prepare(suite, sweep.todo, options.data_dir, known=job)
    return "finished"


@contextlib.contextmanager
def _said_to_wait(starting: Future[Cluster], console: Console) -> Iterator[None]:
    """Say why it takes until a run ends that is interrupted before Ray has started."""
    try:
        yield
    except KeyboardInterrupt:
        if not starting.done():
            console.print("ending, as soon as Ray has started", style="yellow")
            from raybench.connect import without_dashboard

            without_dashboard()
        raise


class Budget:
    """What a command may still start (`raybench.schedule.Budget`)."""

    def __init__(self, options: Options) -> None:
        self.max_trials = options.max_trials
        self.end = None if options.budget is None else time.monotonic() + options.budget
        self.started: set[str] = set()
        self.longest: dict[tuple[Label, ...], float] = {}
        """Seconds of a trial of each cell, as far as known."""

    def seconds(self) -> float | None:
        return None if self.end is None else self.end - time.monotonic()

    def allows(self, trial: Trial) -> bool:
        """Return whether the trial may start. The first that may not, since it would not end in time, is the last that
        is asked for: a short one in its place would leave the cells with unequal n."""
        left = self.seconds()
        if left is not None and left <= self.longest.get(trial.cell, 0):
            return False
        if trial.id not in self.started and len(self.started) == self.max_trials:
            return False
        self.started.add(trial.id)
        return True

    def took(self, trial: Trial, seconds: float) -> None:
        """Hear how long a trial took."""
        self.longest[trial.cell] = max(seconds, self.longest.get(trial.cell, 0))


NOT_ITS_FAULT = ("crashed", "node_lost", "out_of_memory", "data")
"""Failures after which a trial may go on from its checkpoint: "data" is a disk that a node lacks, or that is full."""


class _Sweep:
    """The trials of a suite as they become known: what there is, and what is left to do."""

    def __init__(self, choice: Choice, store: Store) -> None:
        self.choice, self.store = choice, store
        self.failed: dict[str, Ended] = {}
        """Those that failed in this run: the search goes on without them, and the next run tries them again."""
        self.go_on()

    def go_on(self) -> None:
        """Look at what has ended, and plan what follows from it."""
        suite, ended = self.choice.suite, {**self.failed, **self.store.ended()}
        self.trials = self.choice.trials(ended)
        self.todo = start_order(suite, [trial for trial in self.trials if not is_done(suite, trial, ended)])
        # A trial has its stage whatever was chosen to run.
        whole = expand(suite, ended=ended) if self.choice.only or self.choice.limit else self.trials
        self.store.set_stages({trial.id: trial.stage for trial in whole})
        self.keeping = {trial.id for trial in with_weights(suite, whole)}
        if suite.keep_weights == "best":  # the losers' of a search, once it is over
            self.store.drop_weights({trial.id for trial in whole} - self.keeping)

    def without_weights(self) -> set[str]:
        """Return the finished trials whose weights the suite keeps, but which ended before it did."""
        finished = {id_ for id_, status in self.store.done()[0].items() if status in FINISHED}
        return self.keeping & finished & {trial.id for trial in self.trials} - self.store.kept_weights()


class _Recorder:
    """Stores what ends, then shows it: what is seen is safe. Stops the trials that lost."""

    def __init__(
        self,
        sweep: _Sweep,
        store: Store,
        watch: Watch,
        budget: Budget,
        checkpoints: Checkpoints | None,
        followers: Sequence[Follower],
    ) -> None:
        self.sweep, self.store, self.watch, self.budget, self.checkpoints = sweep, store, watch, budget, checkpoints
        self.followers = followers
        self.pruner = pruner(sweep.choice.suite, sweep.trials)
        self.warnings: Counter[str] = Counter()
        self.curves: dict[str, list[EpochRow]] = {}
        self.begun: dict[str, TrialRow] = {}
        self.undecided: dict[str, Trial] = {}
        """Trials that are stored as finished, and may yet be found to have lost before: those they compete with come
        later."""
        if self.pruner.brackets:
            self._replay()

    def _replay(self) -> None:
        """Tell the pruner of the trials that ended in earlier runs."""
        todo = {trial.id for trial in self.sweep.todo}
        stored = [trial for trial in self.sweep.trials if trial.id not in todo]
        rows, _ = self.store.read("epochs")
        curves = {trial_id: curve.sort_values("epoch") for trial_id, curve in rows.groupby("trial_id")}
        for trial in stored:
            metric = trial.settings["train"]["best"]
            if trial.id in curves:
                for epoch, value in zip(curves[trial.id]["epoch"], curves[trial.id][metric], strict=True):
                    self.pruner.report(trial.id, int(epoch), float(value))
            self.pruner.end(trial.id)
        flags, _ = self.store.read("trials", ["trial_id", "undecided"])
        flagged = set(flags["trial_id"][flags["undecided"].eq(True)])
        self.undecided = {trial.id: trial for trial in stored if trial.id in flagged}
        self._release()

    def started(self, trial: Trial) -> None:
        self.curves[trial.id] = []
        self.watch.started(trial)
        for follower in self.followers:
            follower.started(trial)

    def epoch(self, trial: Trial, row: EpochRow, begun: TrialRow) -> bool:
        self.begun[trial.id] = begun
        self.curves.setdefault(trial.id, []).append(row)
        self.watch.epoch(trial, row)
        for follower in self.followers:
            follower.epoch(trial, row, begun)
        self.pruner.report(trial.id, row.epoch, getattr(row, begun.selection))
        self._release()
        lost = self.pruner.stopped(trial.id)
        # One that was to stop may have gone down before it did; what is kept of it must be trained again.
        return lost is not None and row.epoch >= lost.epoch

    def stopped(self, trial: Trial) -> None:
        lost = self.pruner.stopped(trial.id)
        assert lost is not None
        self._store(trial, pruned(self.begun[trial.id], self.curves[trial.id], lost.epoch))
        self._ended(trial)

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        self.budget.took(trial, outcome.row.wall_seconds or 0)
        if outcome.row.status in FINISHED and self.pruner.pending(trial.id):
            self.undecided[trial.id] = trial
            outcome = replace(outcome, row=replace(outcome.row, undecided=True))
        self._store(trial, outcome)
        self._ended(trial)

    def lost(self, trial: Trial, reason: str) -> None:
        self.watch.lost(trial, reason)
        for follower in self.followers:
            follower.lost(trial, reason)

    def warned(self, trial: Trial, warning: str) -> None:
        self.warnings[warning] += 1
        if self.warnings[warning] == 1:
            self.watch.say(f"{trial.name}: {warning}")

    def no_room(self, reason: str) -> None:
        self.watch.say(reason)

    def _ended(self, trial: Trial) -> None:
        self.pruner.end(trial.id)
        self._release()
        self.curves.pop(trial.id, None)
        self.begun.pop(trial.id, None)

    def _release(self) -> None:
        """Put an end to the doubt about trials where there is none any more."""
        for trial_id in [trial_id for trial_id in self.undecided if not self.pruner.pending(trial_id)]:
            trial = self.undecided.pop(trial_id)
            if lost := self.pruner.stopped(trial_id):
                outcome = self.store.outcome(trial_id)
                row = replace(outcome.row, undecided=None, stage=trial.stage)
                self.store.write(pruned(row, outcome.epochs, lost.epoch))
            else:
                self.store.set_decided(trial_id)

    def _store(self, trial: Trial, outcome: Outcome) -> None:
        lost = self.pruner.stopped(trial.id)
        if lost is not None and outcome.row.status in FINISHED:
            outcome = pruned(outcome.row, outcome.epochs, lost.epoch)
        self.store.write(outcome)
        self.watch.ended(trial, outcome)
        for follower in self.followers:
            follower.ended(trial, outcome)
        if self.checkpoints and outcome.row.error_class not in NOT_ITS_FAULT:
            try:
                self.checkpoints.drop(trial.id, trial.settings["resources"]["workers"])
            except (OSError, ValueError) as error:  # the row is stored, and nobody asks for the checkpoint again
                reason = " ".join(str(error).split())
                self.watch.say(f"{trial.name}: its checkpoint stays in {self.checkpoints.uri}: {reason}")
        if outcome.row.status == "failed":
            self.sweep.failed[trial.id] = Ended("failed", None, outcome.row.epochs)

    def close(self) -> None:
        """Keep what was decided, for people to read: it follows from the curves, and is made anew in every run."""
        for warning, times in self.warnings.items():
            if times > 1:
                self.watch.say(f"{counted(times - 1, 'further trial')}: {warning}")
        if self.pruner.brackets:
            self.store.write_decisions(self.pruner.decisions)


def _refuse_other_data(job: Job, store: Store) -> None:
    """Keep rows that were measured on other images out of one table: an id does not know where the images came from."""
    from raybench.job import source_key

    rows, _ = store.read("trials", ["dataset_fingerprint", "settings"])
    known = rows.dropna().drop_duplicates()
    stored = {
        source_key(TrialSettings.model_validate_json(settings)): fingerprint
        for settings, fingerprint in zip(known["settings"], known["dataset_fingerprint"], strict=True)
    }
    for key, source in job.sources.items():
        if stored.get(key, source.fingerprint) != source.fingerprint:
            name = json.loads(key)[0]
            raise DataError(
                f"{store.folder}: its rows were measured on other {name} images (fingerprint {stored[key]}) than those"
                f" at hand ({source.fingerprint}): choose another --results, or give the same images with --data-dir"
            )
