"""Which trials of a search are stopped early: successive halving and the median rule, the same in any order of events.

The asynchronous rules of the literature (ASHA: Li and others, A System for Massively Parallel Hyperparameter Tuning,
MLSys 2020; median stopping: Golovin and others, Google Vizier, KDD 2017) compare a trial with those that happened to
arrive before it, so that the same search on another cluster keeps other trials. Here a trial is compared with those
*before it in the plan*. Where these have not got so far yet it trains on, and is stopped when they have. Its row then
ends at the epoch at which it lost, so what a search leaves behind is a function of the plan and of the learning curves.

Trials are compared within a bracket alone: one cell of the table, one seed. The first trial of a bracket is never
stopped.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from raybench.settings import ByName, Section

WORST = -1e300
"""What infinity and NaN count as, whichever is better: sums of it and quantiles are numbers."""


class Prune(Section, ByName):
    """Stop the weak trials of a search early."""

    name: Literal["asha", "median"] = Field(
        description="`asha`: at each rung, the best 1/factor go on. `median`: from epoch `first` on, a trial goes on"
        " while its best value is not below the median of the others' means so far.",
    )
    first: int = Field(1, ge=1, description="The first epoch after which a trial may be stopped.")
    factor: int = Field(3, ge=2, description="For asha: rungs are at first, first * factor, first * factor^2, ...")

    @model_validator(mode="after")
    def _fits(self) -> Prune:
        if self.name == "median" and self.factor != type(self).model_fields["factor"].default:
            raise ValueError("median has no factor: it belongs to asha")
        return self

    def rungs(self, epochs: int) -> list[int]:
        """Return the epochs after which a trial of ``epochs`` epochs may be stopped; never after its last."""
        if self.name == "median":
            return list(range(self.first, epochs))
        steps = (self.first * self.factor**k for k in itertools.count())
        return list(itertools.takewhile(lambda epoch: epoch < epochs, steps))


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about a trial at a rung."""

    trial_id: str
    epoch: int
    value: float
    """Its metric there; with ``median``, its best so far."""
    cutoff: float | None
    """What it had to reach; None where it was the first."""
    compared: int
    """Trials before it that got this far."""
    stop: bool


class Bracket:
    """The trials that may stop each other, in the order of the plan."""

    def __init__(self, rule: Prune, trials: Sequence[tuple[str, int]], *, maximise: bool) -> None:
        """``trials`` are ids and the epochs each is to train."""
        self.rule, self.sign = rule, 1 if maximise else -1
        self.order = [trial_id for trial_id, _ in trials]
        self.rungs = rule.rungs(max(epochs for _, epochs in trials))
        self.own_rungs = {trial_id: len(rule.rungs(epochs)) for trial_id, epochs in trials}
        self._at = {trial_id: place for place, trial_id in enumerate(self.order)}
        self.curves: dict[str, list[float]] = {trial_id: [] for trial_id in self.order}
        self.ended: set[str] = set()
        self.stopped: dict[str, Decision] = {}
        self._next = [0] * len(self.rungs)
        """Per rung, the first trial in the order that is not decided there."""
        self._passed: list[list[float]] = [[] for _ in self.rungs]
        """Per rung, the sorted values of the trials that got there."""

    def report(self, trial_id: str, epoch: int, value: float) -> None:
        """Tell an epoch's value; a trial that starts again tells its epochs again."""
        curve = self.curves[trial_id]
        if epoch == len(curve) + 1:
            curve.append(self.sign * value if math.isfinite(value) else WORST)

    def decide(self) -> list[Decision]:
        """Return the decisions that can be made now and could not before."""
        made: list[Decision] = []
        for rung in range(len(self.rungs)):
            while self._next[rung] < len(self.order) and self._decide(self.order[self._next[rung]], rung, made):
                self._next[rung] += 1
        return made

    def pending(self, trial_id: str) -> bool:
        """Return whether a rung that the trial has reached is not decided."""
        at, epochs = self._at[trial_id], len(self.curves[trial_id])
        reached = bisect.bisect_right(self.rungs[: self.own_rungs[trial_id]], epochs)
        return trial_id not in self.stopped and any(self._next[rung] <= at for rung in range(reached))

    def _decide(self, trial_id: str, rung: int, made: list[Decision]) -> bool:
        """Decide about a trial at a rung, if it gets there; return False if that is not known yet."""
        epoch, curve = self.rungs[rung], self.curves[trial_id]
        if trial_id in self.stopped or rung >= self.own_rungs[trial_id]:
            return True
        if rung and self._next[rung - 1] <= self._next[rung]:
            return False  # it may be stopped below
        if len(curve) < epoch:
            return trial_id in self.ended
        passed = self._passed[rung]
        value, kept = curve[epoch - 1], curve[epoch - 1]
        if self.rule.name == "median":
            value, kept = max(curve[:epoch]), math.fsum(curve[:epoch]) / epoch
        share = 0.5 if self.rule.name == "median" else 1 - 1 / self.rule.factor
        cutoff = _quantile(passed, share) if passed else None
        stop = cutoff is not None and value < cutoff
        shown = None if cutoff is None else self.sign * cutoff
        decision = Decision(trial_id, epoch, self.sign * value, shown, len(passed), stop)
        bisect.insort(passed, kept)
        made.append(decision)
        if stop:
            self.stopped[trial_id] = decision
        return True


def _quantile(values: Sequence[float], share: float) -> float:
    """Return the quantile of sorted ``values`` with linear interpolation, as numpy's default."""
    place = share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


class Pruner:
    """All brackets of a search."""

    def __init__(self, brackets: Iterable[Bracket]) -> None:
        self.brackets = tuple(brackets)
        self._of = {trial_id: bracket for bracket in self.brackets for trial_id in bracket.order}
        self.decisions: list[Decision] = []

    def report(self, trial_id: str, epoch: int, value: float) -> None:
        """Tell the value of a trial's epoch, which may decide about others too."""
        if bracket := self._of.get(trial_id):
            bracket.report(trial_id, epoch, value)
            self.decisions += bracket.decide()

    def end(self, trial_id: str) -> None:
        """Tell that a trial trains no further."""
        if bracket := self._of.get(trial_id):
            bracket.ended.add(trial_id)
            self.decisions += bracket.decide()

    def pending(self, trial_id: str) -> bool:
        """Return whether a trial may yet be found to have lost at an epoch that it has trained."""
        bracket = self._of.get(trial_id)
        return bracket is not None and bracket.pending(trial_id)

    def stopped(self, trial_id: str) -> Decision | None:
        """Return the decision that ends a trial, if there is one."""
        bracket = self._of.get(trial_id)
        return bracket.stopped.get(trial_id) if bracket else None
