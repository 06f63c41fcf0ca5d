"""The points of a suite's grid, and the trials that they make: settings, identity, random streams.

Everything here is a pure function of the suite.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from raybench.axes import NO_MODEL, Axis, Label
from raybench.dotted import Assignments, assign, first_complaint
from raybench.errors import SuiteError
from raybench.records import Stage
from raybench.search import Ended
from raybench.settings import TrialSettings
from raybench.suite import Suite

MAX_TRIALS = 100_000
IDENTITY_VERSION = 1
"""Bump when a default, a random stream or the arithmetic of training changes what the same settings compute."""

Point = tuple[dict[str, Label], Assignments]
"""Labels of axes, and what they assign."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One point of the grid."""

    id: str
    suite: str
    labels: dict[str, Label]
    """Axis -> label, in the suite's order, the seed included."""
    cell: tuple[Label, ...]
    """Labels of the compare axes."""
    point: tuple[Label, ...]
    """Labels of the search axes."""
    seed: int
    settings: dict[str, Any]
    """A resolved `TrialSettings`, as plain data."""
    stage: Stage = "grid"
    draw: int | None = None
    """The number of its point in the study that drew it, from 0."""

    @property
    def name(self) -> str:
        """A short name for people: ``model1/aug2/0.001/s3``."""
        return "/".join([*(str(label) for label in (*self.cell, *self.point)), f"s{self.seed}"])

    def typed(self) -> TrialSettings:
        return TrialSettings.model_validate(self.settings)


def stream(seed: int, purpose: str) -> int:
    """Return the 63-bit seed of the random stream for ``purpose`` in a trial with ``seed``.

    Derived from both by SHA-256 and from nothing else: not from the position in the grid, the machine, or the time.
    """
    digest = hashlib.sha256(f"{IDENTITY_VERSION}/{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def identity(settings: Mapping[str, Any], seed: int) -> str:
    """Return the trial's id: a hash of all that can change its result, and of nothing else.

    Threads and workers per trial are in it (another order of additions, other shards); paths, addresses, GPU shares,
    streaming, labels and the size of the cluster are not. Settings at their default are left out, so that a setting
    which is added to raybench later changes no id.
    """
    return _seeded(_content(TrialSettings.model_validate(settings)), seed)


def _content(settings: TrialSettings) -> str:
    content = settings.model_dump(exclude_defaults=True)
    content["resources"] = {"cpus": settings.resources.cpus, "workers": settings.resources.workers}
    content["dataset"].pop("stream", None)
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def _seeded(content: str, seed: int) -> str:
    return hashlib.sha256(f"{IDENTITY_VERSION}/{seed}/{content}".encode()).hexdigest()[:16]


class Grid:
    """Makes trials of points; equal settings are refused, and resolved once for all seeds."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.compare, self.search = suite.names("compare"), suite.names("search")
        self._seen: dict[str, str] = {}

    def typed(self, assignments: Assignments, name: str = "") -> TrialSettings:
        """Return the settings of a point; ``name`` is how a complaint calls it."""
        return _settings(self.suite, assignments, name)

    def trials(self, points: Iterable[Point], seeds: Sequence[int], stage: Stage) -> list[Trial]:
        """Return the trials of the points with each seed, seed-major."""
        rounds: dict[int, list[Trial]] = {seed: [] for seed in seeds}
        for labels, assignments in points:
            name = ", ".join(f"{axis}={label}" for axis, label in labels.items())
            typed = self.typed(assignments, name)
            settings, content = typed.model_dump(), _content(typed)
            if content in self._seen:
                twice = f"{self._seen[content]} and {name} are the same trial: no setting differs"
                same = self._seen[content] == name
                raise SuiteError(f"{self.suite.source}: {f'{name} is listed twice' if same else twice}")
            self._seen[content] = name
            for seed, trials in rounds.items():
                trials.append(self._trial(labels, settings, content, seed, stage))
        return list(itertools.chain.from_iterable(rounds.values()))

    def drawn(self, cell: Point, point: Mapping[str, Label], seed: int, number: int) -> Trial:
        """Return the trial of a point that a study drew for ``cell``."""
        labels, assignments = dict(cell[0]), dict(cell[1])
        for name, label in point.items():
            labels[name] = label
            assignments |= self.suite.axis(name).assigned(label)
        labels = {name: labels[name] for name in (*self.compare, *self.search)}
        typed = self.typed(assignments, ", ".join(f"{axis}={label}" for axis, label in labels.items()))
        trial = self._trial(labels, typed.model_dump(), _content(typed), seed, "search")
        return replace(trial, draw=number)

    def again(self, ended: Ended, cells: Mapping[tuple[Label | None, ...], Point]) -> Trial | None:
        """Return the trial that a stored one would be today; None if the suite no longer has its labels."""
        stored = ended.labels or {}
        labels = {name: self.suite.axis(name).find(stored.get(name)) for name in (*self.compare, *self.search)}
        cell, seed = cells.get(tuple(labels[name] for name in self.compare)), stored.get("seed")
        point = {name: label for name in self.search if (label := labels[name]) is not None}
        if cell is None or seed is None or ended.draw is None or len(point) < len(self.search):
            return None
        return self.drawn(cell, point, int(seed), ended.draw)

    def _trial(
        self, labels: Mapping[str, Label], settings: dict[str, Any], content: str, seed: int, stage: Stage
    ) -> Trial:
        return Trial(
            id=_seeded(content, seed),
            suite=self.suite.name,
            labels={**labels, "seed": seed},
            cell=tuple(labels[axis] for axis in self.compare),
            point=tuple(labels[axis] for axis in self.search),
            seed=seed,
            settings=settings,
            stage=stage,
        )


def _settings(suite: Suite, assignments: Assignments, name: str) -> TrialSettings:
    """Return the settings of a point, now that all its axes have their say."""
    try:
        settings = TrialSettings.model_validate(assign(assign(suite.base, assignments), suite.overrides))
    except ValidationError as failed:
        place, message = first_complaint(failed, TrialSettings)
        where = ".".join(str(key) for key in place)  # of no key where several do not go together
        raise SuiteError(": ".join(filter(None, [suite.source, name, where, message]))) from None
    if settings.model.name == NO_MODEL:
        raise SuiteError(f"{suite.source}: {name}: names no model")
    return settings


def _dimensions(suite: Suite) -> list[list[Point]]:
    """Return what is multiplied: each axis, or each group of axes that go in step, as a list of partial points."""
    dimensions: list[list[Point]] = []
    grouped: set[str] = set()
    for axis in suite.axes:
        if axis.role == "repeat" or axis.name in grouped or (suite.draw and axis.role == "search"):
            continue
        group = next((names for names in suite.zip if axis.name in names), (axis.name,))
        grouped.update(group)
        dimensions.append([_in_step([suite.axis(name) for name in group], i) for i in range(len(axis.labels))])
    return dimensions


def _in_step(axes: Sequence[Axis], index: int) -> Point:
    assignments: Assignments = {}
    for axis in axes:
        assignments.update(axis.assignments[index])
    return {axis.name: axis.labels[index] for axis in axes}, assignments


def grid_points(suite: Suite) -> list[Point]:
    """Return every point of the grid but its seed, after ``exclude`` and ``include``."""
    if count(suite) > MAX_TRIALS:
        raise SuiteError(
            f"{suite.source}: the axes give {count(suite):,} trials ({sizes(suite)}); raybench plans at most"
            f" {MAX_TRIALS:,}: make an axis shorter"
        )
    order = suite.names("compare") if suite.draw else suite.names("compare", "search")
    unused = set(range(len(suite.exclude)))
    points: list[Point] = []
    for combination in itertools.product(*_dimensions(suite)):
        found = {name: label for labels, _ in combination for name, label in labels.items()}
        matched = {i for i, out in enumerate(suite.exclude) if all(found[name] == label for name, label in out.items())}
        unused -= matched
        if not matched:
            assignments = {path: value for _, part in combination for path, value in part.items()}
            points.append(({name: found[name] for name in order}, assignments))
    for index in sorted(unused):
        raise SuiteError(f"{suite.source}: exclude: entry {index + 1} ({suite.exclude[index]}) matches no point")
    return [*points, *suite.include]


def count(suite: Suite) -> int:
    """Return an upper bound of the number of trials (what ``exclude`` removes still counted), without building any."""
    grid = math.prod(len(dimension) for dimension in _dimensions(suite))
    drawn = suite.draw.points if suite.draw else 1
    return (grid + len(suite.include)) * drawn * len(suite.axis("seed").labels)


def counted(number: int, noun: str) -> str:
    """Return ``1 trial``, ``2 trials``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def sizes(suite: Suite) -> str:
    """Return the axes and how many values each has, as ``model 3 x augmentation 3 x seed 5``."""
    listed = [axis for axis in suite.axes if not (suite.draw and axis.role == "search")]
    terms = [f"{axis.name} {len(axis.labels)}" for axis in listed]
    if suite.draw:
        terms.insert(-1, f"{suite.draw.points} drawn points")
    if suite.confirms:
        return f"{' x '.join(terms[:-1])} searched with one seed, each winner with {terms[-1]}"
    return " x ".join(terms)


def cells(trials: Sequence[Trial]) -> Iterator[tuple[tuple[Label, ...], tuple[Label, ...], list[Trial]]]:
    """Yield (cell, search point, its trials), in the order in which the suite names them."""
    groups: dict[tuple[tuple[Label, ...], tuple[Label, ...]], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.cell, trial.point), []).append(trial)
    for (cell, point), members in groups.items():
        yield cell, point, members


def by_cell(trials: Iterable[Trial]) -> dict[tuple[Label, ...], list[Trial]]:
    """Return the trials of each cell, in the order of the first of each."""
    groups: dict[tuple[Label, ...], list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.cell, []).append(trial)
    return groups


def cell_settings(suite: Suite) -> dict[tuple[Label, ...], dict[str, Any]]:
    """Return the settings of each cell: those of its first point, or where points are drawn those before any is."""
    found: dict[tuple[Label, ...], dict[str, Any]] = {}
    for labels, assignments in grid_points(suite):
        cell = tuple(labels[axis] for axis in suite.names("compare"))
        if cell not in found:
            found[cell] = _settings(suite, assignments, ", ".join(map(str, cell))).model_dump()
    return found


def changes(trials: Sequence[Trial]) -> Iterator[tuple[Trial, list[tuple[str, str, str]]]]:
    """Yield a trial of every cell, in the suite's order, and the settings in which it differs from the cell before:
    their dotted paths, the value before and the value now.

    Keys that a suite leaves out have their defaults; an option of a model that a cell does not give is an en dash.
    """
    before: dict[str, Any] | None = None
    for _, _, (trial, *_) in cells(trials):
        yield trial, [] if before is None else list(differences(before, trial.settings))
        before = trial.settings


def resolved(stored: dict[str, Any]) -> dict[str, Any]:
    """Return a trial's stored settings with the defaults of keys that raybench did not have yet; as they are if they
    have a key that it no longer has."""
    try:
        return TrialSettings.model_validate(stored).model_dump()
    except ValidationError:
        return stored


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the dotted path, the value before and the value now of each setting that differs; an en dash for none."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key, "–"), new.get(key, "–"), f"{path}.{key}".lstrip("."))
    elif old != new:
        before, after = (value if isinstance(value, str) else json.dumps(value) for value in (old, new))
        yield path, before, after
