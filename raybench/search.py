"""What is tuned away: ranges, points that Optuna draws from them, and the winner that is confirmed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from raybench.records import FINISHED, Status
from raybench.settings import Section

if TYPE_CHECKING:
    import optuna

Value = str | int | float | bool
Point = dict[str, Value]
"""Search axis -> value."""

DIGITS = 4
"""Significant digits of a number that is drawn: it stands in tables, and is typed again."""
TRIES = 100
"""Points already tried that TPE may draw before random ones are taken, and those before there is no further point."""


class Range(Section):
    """``lr: {range: [1e-5, 1e-1], log: true}``: a search axis whose values are drawn, not listed."""

    range: tuple[float, float] = Field(description="The smallest and the largest value.")
    log: bool = Field(False, description="Draw evenly over the logarithm.")
    integer: bool = Field(False, description="Whole numbers only.")

    @field_validator("range", mode="before")
    @classmethod
    def _two(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ValueError(f"{value!r} is not right: must be the smallest and the largest value, as [1e-5, 1e-1]")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Range:
        low, high = self.range
        if not low < high:
            raise ValueError(f"range must go from a smaller to a larger number, not from {low:g} to {high:g}")
        if self.log and low <= 0:
            raise ValueError(f"range must begin above 0 with log, not at {low:g}")
        if self.integer and not (low.is_integer() and high.is_integer()):
            raise ValueError(f"range must have whole numbers with integer, not {low:g} and {high:g}")
        return self

    @property
    def ends(self) -> tuple[int | float, int | float]:
        low, high = self.range
        return (int(low), int(high)) if self.integer else (low, high)

    def rounded(self, value: float) -> int | float:
        """Return ``value`` as it is used and shown."""
        low, high = self.ends
        return value if self.integer else min(max(float(f"{value:.{DIGITS}g}"), low), high)


class Draw(Section):
    """Optuna draws the points of ``search``, for each cell and searched seed a study of its own."""

    points: int = Field(ge=1, description="Points that are tried in all.")
    at_once: int = Field(
        5,
        ge=1,
        description="Points that are drawn together: the first so many at random, the next knowing how those before"
        " have ended. They do not depend on how many run at once.",
    )


@dataclass(frozen=True, slots=True)
class Ended:
    """What tuning must know of a trial that has ended."""

    status: Status
    value: float | None
    """The metric that chose its epoch, at that epoch."""
    epochs: int
    draw: int | None = None
    """The number of its point in the study it was drawn in, from 0."""
    labels: Mapping[str, Value] | None = None
    """What is stored of its axes, where it was drawn."""


def maximises(metric: str) -> bool:
    """Return whether more of ``metric`` is better."""
    return metric.endswith("accuracy")


def draw(
    space: Mapping[str, Range | Sequence[Value]],
    history: Sequence[tuple[Point, Ended]],
    count: int,
    *,
    seed: int,
    maximise: bool,
) -> list[Point]:
    """Return the next ``count`` points of a study, all different, by Optuna's TPE sampler; fewer if there are no more.

    The same arguments give the same points: nothing is kept between calls.

    Args:
        space: axis -> its range, or the values to choose from.
        history: the points drawn before, and how their trials ended; a failed one counts for nothing. Without any, the
            points are random.
        seed: of the sampler, another one for every round of a study.
    """
    import optuna  # here, because it takes half a second

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {name: _distribution(values) for name, values in space.items()}
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1 if history else count)
    study = optuna.create_study(direction="maximize" if maximise else "minimize", sampler=sampler)
    study.add_trials([_told(point, ended, distributions) for point, ended in history])
    points: list[Point] = []
    taken = [point for point, _ in history]
    known = 0
    while len(points) < count:
        trial = study.ask(distributions)
        point = {name: _rounded(space[name], value) for name, value in trial.params.items()}
        if point not in taken:
            points.append(point)
            taken.append(point)
            continue
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        known += 1
        if known == TRIES:
            study.sampler = optuna.samplers.RandomSampler(seed=seed)
        elif known > 10 * TRIES:
            break
    return points


def size(space: Mapping[str, Range | Sequence[Value]]) -> float:
    """Return the number of points in a space."""
    return math.prod(_count(values) for values in space.values())


def _count(values: Range | Sequence[Value]) -> float:
    if not isinstance(values, Range):
        return len(values)
    return values.ends[1] - values.ends[0] + 1 if values.integer else math.inf


def _distribution(values: Range | Sequence[Value]) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution(tuple(values))
    low, high = values.ends
    if values.integer:
        return IntDistribution(int(low), int(high), log=values.log)
    return FloatDistribution(low, high, log=values.log)


def _rounded(values: Range | Sequence[Value], value: Value) -> Value:
    return values.rounded(value) if isinstance(values, Range) and not isinstance(value, str) else value


def _told(
    point: Point, ended: Ended, distributions: dict[str, optuna.distributions.BaseDistribution]
) -> optuna.trial.FrozenTrial:
    """Return a stored trial as Optuna knows trials."""
    import optuna

    state, value, seen = optuna.trial.TrialState.FAIL, None, {}
    if ended.value is not None and math.isfinite(ended.value):
        if ended.status in FINISHED:
            state, value = optuna.trial.TrialState.COMPLETE, ended.value
        elif ended.status == "pruned":
            state, seen = optuna.trial.TrialState.PRUNED, {ended.epochs: ended.value}
    return optuna.trial.create_trial(
        state=state, params=point, distributions=distributions, value=value, intermediate_values=seen
    )


Confirm = Literal["winner", "none"]


def winner(values: Mapping[tuple[Value, ...], Sequence[float]], *, maximise: bool) -> tuple[Value, ...] | None:
    """Return the point whose trials did best: the best mean among the points that finished for the most seeds.

    Args:
        values: point -> the metric of its finished trials, one per searched seed; the first of equals wins.

    Returns None where nothing finished.
    """
    sign = 1 if maximise else -1
    ranked = {point: (len(found), sign * math.fsum(found) / len(found)) for point, found in values.items() if found}
    return max(ranked, key=lambda point: ranked[point], default=None)
