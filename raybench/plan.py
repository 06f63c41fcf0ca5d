"""From a suite to its list of trials: expansion, identity, random streams, order.

Everything here is a pure function of the suite, so that `raybench plan`, `run` and `summarize` agree on what there is.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raybench.errors import SuiteError, did_you_mean
from raybench.settings import Assignments, TrialSettings, assign, first_complaint
from raybench.suite import NO_MODEL, Axis, Label, Suite, build, find_label
from raybench.yamlfile import Complaints

MAX_TRIALS = 100_000
IDENTITY_VERSION = 1
"""Bump when a default, a random stream or the arithmetic of training changes what the same settings compute."""


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
    labels and the size of the cluster are not. Settings at their default are left out, so that a setting which is
    added to raybench later changes no id.
    """
    return _seeded(_content(TrialSettings.model_validate(settings)), seed)


def _content(settings: TrialSettings) -> str:
    content = settings.model_dump(exclude_defaults=True)
    content["resources"] = {"cpus": settings.resources.cpus, "workers": settings.resources.workers}
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def _seeded(content: str, seed: int) -> str:
    return hashlib.sha256(f"{IDENTITY_VERSION}/{seed}/{content}".encode()).hexdigest()[:16]


def expand(suite: Suite, only: Mapping[str, Sequence[str]] | None = None, limit: int | None = None) -> list[Trial]:
    """Return the trials of ``suite`` in the order in which they should start.

    Seed-major: every cell gets its first seed before any gets its second, so that stopping anywhere leaves about equal
    n. ``only`` keeps the named values of some axes; ``limit`` then cuts the list.

    Raises:
        SuiteError: if the grid is empty or too large to be built, if ``trials`` says another number, if the settings
            of a point do not fit together, if two points are the same trial, or if ``only`` leaves none.
    """
    points = _points(suite)
    seeds = suite.axis("seed").labels
    total = len(points) * len(seeds)
    if suite.trials is not None and suite.trials != total:
        raise SuiteError(f"{suite.source}: trials: says {suite.trials}, but the axes give {total} ({sizes(suite)})")
    keep = _only(suite, only or {})
    points = [p for p in points if all(p[0][axis] in labels for axis, labels in keep.items() if axis != "seed")]
    seeds = [seed for seed in seeds if seed in keep.get("seed", seeds)]
    if not points:
        raise SuiteError(f"{suite.source}: no point of the grid is left by {'--only' if keep else 'exclude'}")

    compare, search = suite.names("compare"), suite.names("search")
    rounds: dict[int, list[Trial]] = {int(seed): [] for seed in seeds}
    seen: dict[str, str] = {}
    for labels, assignments in points:
        name = ", ".join(f"{axis}={label}" for axis, label in labels.items())
        typed = _settings(suite, assignments, name)
        settings, content = typed.model_dump(), _content(typed)
        if content in seen:
            twice = f"{seen[content]} and {name} are the same trial: no setting differs"
            raise SuiteError(f"{suite.source}: {f'{name} is listed twice' if seen[content] == name else twice}")
        seen[content] = name
        cell = tuple(labels[axis] for axis in compare)
        point = tuple(labels[axis] for axis in search)
        for seed, trials in rounds.items():
            trials.append(
                Trial(
                    id=_seeded(content, seed),
                    suite=suite.name,
                    labels={**labels, "seed": seed},
                    cell=cell,
                    point=point,
                    seed=seed,
                    settings=settings,
                )
            )
    trials = list(itertools.chain.from_iterable(rounds.values()))
    return trials if limit is None else trials[:limit]


def _settings(suite: Suite, assignments: Assignments, name: str) -> TrialSettings:
    """Return the settings of a point, now that all its axes have their say."""
    try:
        settings = TrialSettings.model_validate(assign(assign(suite.base, assignments), suite.overrides))
    except ValidationError as failed:
        place, message = first_complaint(failed, TrialSettings)
        raise SuiteError(f"{suite.source}: {name}: {'.'.join(str(key) for key in place)}: {message}") from None
    if settings.model.name == NO_MODEL:
        raise SuiteError(f"{suite.source}: {name}: names no model")
    return settings


def count(suite: Suite) -> int:
    """Return an upper bound of the number of trials (what ``exclude`` removes still counted), without building any."""
    grid = math.prod(len(dimension) for dimension in _dimensions(suite))
    return (grid + len(suite.include)) * len(suite.axis("seed").labels)


def sizes(suite: Suite) -> str:
    """Return the axes and how many values each has, as ``model 3 x augmentation 3 x seed 5``."""
    return " x ".join(f"{axis.name} {len(axis.labels)}" for axis in suite.axes)


Point = tuple[dict[str, Label], Assignments]


def _dimensions(suite: Suite) -> list[list[Point]]:
    """Return what is multiplied: each axis, or each group of axes that go in step, as a list of partial points."""
    dimensions: list[list[Point]] = []
    grouped: set[str] = set()
    for axis in suite.axes:
        if axis.role == "repeat" or axis.name in grouped:
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


def _points(suite: Suite) -> list[Point]:
    """Return every point of the grid but its seed, after ``exclude`` and ``include``."""
    if count(suite) > MAX_TRIALS:
        raise SuiteError(
            f"{suite.source}: the axes give {count(suite):,} trials ({sizes(suite)}); raybench plans at most"
            f" {MAX_TRIALS:,}: make an axis shorter"
        )
    order = [axis.name for axis in suite.axes if axis.role != "repeat"]
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


def _only(suite: Suite, only: Mapping[str, Sequence[str]]) -> dict[str, set[Label]]:
    """Turn ``--only axis=value`` words into labels."""
    names = suite.names("compare", "search", "repeat")
    keep: dict[str, set[Label]] = {}
    for name, words in only.items():
        if name not in names:
            raise SuiteError(f"--only {name}: is no axis of {suite.name}{did_you_mean(name, names)}")
        labels = [*suite.axis(name).labels, *(labels[name] for labels, _ in suite.include if name in labels)]
        for word in words:
            found = find_label(labels, word)
            if found is None:
                raise SuiteError(f"--only {name}={word}: no such value{did_you_mean(word, labels[:50])}")
            keep.setdefault(name, set()).add(found)
    return keep


def cells(trials: Sequence[Trial]) -> Iterator[tuple[tuple[Label, ...], tuple[Label, ...], list[Trial]]]:
    """Yield (cell, search point, its trials), in the order in which the suite names them."""
    groups: dict[tuple[tuple[Label, ...], tuple[Label, ...]], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.cell, trial.point), []).append(trial)
    for (cell, point), members in groups.items():
        yield cell, point, members


def snapshot(suite: Suite, only: Mapping[str, Sequence[str]] | None = None, limit: int | None = None) -> dict[str, Any]:
    """Return what `restore` needs to expand the same trials again, as plain data for JSON."""
    return {"source": suite.source, "document": suite.document, "sets": suite.sets, "only": only or {}, "limit": limit}


def restore(kept: Any, where: str) -> tuple[Suite, list[Trial]]:
    """Return the suite and the trials of a `snapshot`, without importing the modules that the suite names.

    Raises:
        SuiteError: naming ``where``, the file it was kept in, if it is none.
    """
    try:
        suite = build(kept["document"], Complaints(kept["source"], None), Path(), kept["sets"], trusted=True)
        return suite, expand(suite, kept["only"], kept["limit"])
    except (SuiteError, KeyError, TypeError, AttributeError) as error:
        raise SuiteError(f"{where}: is not what a run keeps of its suite ({error}): run the suite again") from None


def changes(trials: Sequence[Trial]) -> Iterator[tuple[Trial, list[tuple[str, str, str]]]]:
    """Yield a trial of every cell, in the suite's order, and the settings in which it differs from the cell before:
    their dotted paths, the value before and the value now.

    Keys that a suite leaves out have their defaults; an option of a model that a cell does not give is an en dash.
    """
    before: dict[str, Any] | None = None
    for _, _, (trial, *_) in cells(trials):
        yield trial, [] if before is None else list(_differences(before, trial.settings))
        before = trial.settings


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key, "–"), new.get(key, "–"), f"{path}.{key}".lstrip("."))
    elif old != new:
        before, after = (value if isinstance(value, str) else json.dumps(value) for value in (old, new))
        yield path, before, after
