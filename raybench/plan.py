"""From a suite to its list of trials: expansion, identity, random streams, order.

Everything here is a pure function of the suite, so that `raybench plan`, `run` and `summarize` agree on what there is.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raybench.axes import NO_MODEL, Axis, Label, find_label
from raybench.errors import SuiteError, did_you_mean
from raybench.prune import Bracket, Pruner
from raybench.records import FINISHED, Stage
from raybench.search import Ended, draw, maximises, winner
from raybench.settings import Assignments, TrialSettings, assign, first_complaint
from raybench.suite import Suite, build
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


def expand(
    suite: Suite,
    only: Mapping[str, Sequence[str]] | None = None,
    limit: int | None = None,
    ended: Mapping[str, Ended] | None = None,
) -> list[Trial]:
    """Return the trials of ``suite`` that are known by now, in the order in which they should start.

    Seed-major: every cell gets its first seed before any gets its second, so that stopping anywhere leaves about equal
    n. ``only`` keeps the named values of some axes; ``limit`` then cuts the list.

    A suite that searches has its trials in stages, which follow from how those before have ended: each study's next
    points once all its earlier ones have, and the trials that confirm the winners after the search. So a run expands
    again when nothing is left to do, until nothing new is known.

    Args:
        ended: what is known of trials that have ended, by id (`raybench.store.Store.ended`).

    Raises:
        SuiteError: if the grid is empty or too large to be built, if ``trials`` says another number, if the settings
            of a point do not fit together, if two points are the same trial, or if ``only`` leaves none.
    """
    points, seeds = _chosen(suite, only or {})
    grid = _Grid(suite)
    trials = _in_stages(grid, points, seeds, ended or {}) if suite.searches else grid.trials(points, seeds, "grid")
    return trials if limit is None else trials[:limit]


def _chosen(suite: Suite, only: Mapping[str, Sequence[str]]) -> tuple[list[Point], list[int]]:
    """Return the points of the grid and the seeds that ``only`` keeps."""
    points = _points(suite)
    seeds = [int(seed) for seed in suite.axis("seed").labels]
    total = _total(suite, points, seeds)
    if suite.trials is not None and suite.trials != total:
        raise SuiteError(f"{suite.source}: trials: says {suite.trials}, but the axes give {total} ({sizes(suite)})")
    keep = _only(suite, only)
    points = [p for p in points if all(p[0][axis] in labels for axis, labels in keep.items() if axis != "seed")]
    seeds = [seed for seed in seeds if seed in keep.get("seed", seeds)]
    if not points:
        raise SuiteError(f"{suite.source}: no point of the grid is left by {'--only' if keep else 'exclude'}")
    return points, seeds


def is_done(suite: Suite, trial: Trial, ended: Mapping[str, Ended]) -> bool:
    """Return whether a trial need not run again: one that was pruned only where it is one of those that prune."""
    end = ended.get(trial.id)
    return end is not None and (end.status != "pruned" or (suite.prune is not None and trial.stage == "search"))


def _in_stages(grid: _Grid, points: list[Point], seeds: list[int], ended: Mapping[str, Ended]) -> list[Trial]:
    """Return the trials of the search, and once all have ended those that confirm each cell's winner.

    ``seeds`` are those that were chosen; a search that is to be confirmed has the first of the suite, chosen or not.
    """
    suite = grid.suite
    searched = seeds if suite.confirm == "none" else [int(suite.axis("seed").labels[0])]
    if suite.draw:
        search, complete = _drawn(grid, points, searched, ended)
    else:
        search = grid.trials(points, searched, "search")
        complete = all(is_done(suite, trial, ended) for trial in search)
    for trial in search:
        epochs = trial.settings["train"]["epochs"]
        if suite.prune and not suite.prune.rungs(epochs):
            raise SuiteError(
                f"{suite.source}: prune: first: {suite.prune.first} leaves no epoch to decide after: {trial.name} has"
                f" {epochs}"
            )
    if suite.confirm == "none":
        return search
    won = _winners(suite, search, ended, complete)
    here = {trial.id for trial in won if trial.seed in seeds}
    others = [
        replace(
            trial,
            id=identity(trial.settings, seed),
            seed=seed,
            labels={**trial.labels, "seed": seed},
            stage="confirm",
            draw=None,
        )
        for seed in seeds
        for trial in won
        if seed != trial.seed
    ]
    return [*(replace(trial, stage="confirm") if trial.id in here else trial for trial in search), *others]


def _winners(suite: Suite, search: Sequence[Trial], ended: Mapping[str, Ended], complete: bool) -> list[Trial]:
    """Return for each cell a trial with the point that won, in the order of the cells; none before all have ended.

    Raises:
        SuiteError: if the points of a cell are judged by different measures.
    """
    won: list[Trial] = []
    for members in by_cell(search).values():
        measures = {_measure(trial) for trial in members}
        if len(measures) > 1:
            listed = " and ".join(sorted(" of ".join(measure) for measure in measures))
            raise SuiteError(
                f"{suite.source}: search: points of one cell must be judged by one measure, not by {listed}"
            )
        if not complete:
            continue
        values: dict[tuple[Label, ...], list[float]] = {trial.point: [] for trial in members}
        for trial in members:
            end = ended[trial.id]
            if end.status in FINISHED and end.value is not None:
                values[trial.point].append(end.value)
        best = winner(values, maximise=maximises(members[0].settings["train"]["best"]))
        won += [trial for trial in members if trial.point == best][:1]
    return won


def _measure(trial: Trial) -> tuple[str, ...]:
    """Return what the value of a trial is: accuracies of different losses compare, losses do not."""
    train = trial.settings["train"]
    metric = train["best"]
    return (metric,) if maximises(metric) else (metric, f"{train['loss']}, smoothed by {train['label_smoothing']}")


def _drawn(
    grid: _Grid, cells: list[Point], seeds: Sequence[int], ended: Mapping[str, Ended]
) -> tuple[list[Trial], bool]:
    """Return the trials of every study so far, those that have ended and the points drawn from them; and whether
    all studies are over.

    A stored trial belongs to a study if its settings are what the suite makes of its labels today.
    """
    suite = grid.suite
    assert suite.draw is not None
    by_labels: dict[tuple[Label | None, ...], Point] = {
        tuple(labels[name] for name in grid.compare): (labels, assigned) for labels, assigned in cells
    }
    stored: dict[tuple[tuple[Label | None, ...], int, int], Trial] = {}
    for trial_id, end in sorted(ended.items()):
        if end.draw is not None and (trial := grid.again(end, by_labels)) and trial.id == trial_id:
            stored.setdefault((trial.cell, trial.seed, end.draw), trial)
    studies: list[list[Trial]] = []
    complete = True
    for seed, (key, cell) in itertools.product(seeds, by_labels.items()):
        study: list[Trial] = []
        while len(study) < suite.draw.points and all(is_done(suite, trial, ended) for trial in study):
            first = len(study)
            numbers = range(first, min(first + suite.draw.at_once, suite.draw.points))
            known = {number: stored[key, seed, number] for number in numbers if (key, seed, number) in stored}
            if len(known) < len(numbers):
                known |= _draw_round(grid, cell, seed, numbers, known, study, ended)
            if not known:  # the space has no further point
                break
            study += [known[number] for number in numbers if number in known]
        complete = complete and all(is_done(suite, trial, ended) for trial in study)
        studies.append(study)
    return [trial for trials in itertools.zip_longest(*studies) for trial in trials if trial is not None], complete


def _draw_round(
    grid: _Grid,
    cell: Point,
    seed: int,
    numbers: range,
    known: Mapping[int, Trial],
    study: Sequence[Trial],
    ended: Mapping[str, Ended],
) -> dict[int, Trial]:
    """Return the trials of a round of a study that are not ``known``; fewer where the space has no other points."""
    suite = grid.suite
    space = {name: suite.axis(name).range or suite.axis(name).labels for name in grid.search}
    key = json.dumps([cell[0][name] for name in grid.compare])
    drawn = draw(
        space,
        [({name: trial.labels[name] for name in space}, ended[trial.id]) for trial in study],
        len(numbers),
        seed=stream(seed, f"draw/{key}/{numbers.start}") % 2**32,
        maximise=maximises(grid.typed(cell[1]).train.best),
    )
    # Those known are among them, unless they were drawn otherwise: another version of Optuna, another `at_once`.
    taken = [{name: trial.labels[name] for name in space} for trial in known.values()]
    fresh = iter(point for point in drawn if point not in taken)
    missing = (number for number in numbers if number not in known)
    return {number: grid.drawn(cell, point, seed, number) for number, point in zip(missing, fresh, strict=False)}


class _Grid:
    """Makes trials of points; equal settings are refused, and resolved once for all seeds."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.compare, self.search = suite.names("compare"), suite.names("search")
        self._seen: dict[str, str] = {}

    def typed(self, assignments: Assignments, name: str = "") -> TrialSettings:
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


def with_weights(suite: Suite, trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials whose weights ``suite`` keeps, of all that are known by now.

    With ``best``, any point of a search may still be in the table in the end, until the winners are known.
    """
    if suite.keep_weights == "none":
        return []
    over = suite.keep_weights == "best" and any(trial.stage == "confirm" for trial in trials)
    return [trial for trial in trials if not (over and trial.stage == "search")]


def start_order(suite: Suite, trials: Sequence[Trial]) -> list[Trial]:
    """Return ``trials`` in the order in which they are started and, where they prune each other, compared.

    Values are often listed from bad to good, and in that order nothing would be stopped: the points of each cell are
    shuffled, by the hash that is a trial's id. Points that were drawn come in the order in which they were.
    """
    if suite.prune is None:
        return list(trials)
    seeds = {seed: number for number, seed in enumerate(suite.axis("seed").labels)}
    rank: dict[str, int] = {}
    for group in _brackets(trials):
        rank |= {trial.id: number for number, trial in enumerate(_compared(group))}
    return sorted(trials, key=lambda trial: (seeds[trial.seed], rank[trial.id]))


def _compared(group: Sequence[Trial]) -> list[Trial]:
    """Return the trials of a bracket in the order in which each is compared with those before it."""
    return sorted(group, key=lambda trial: (trial.draw is None, trial.draw or 0, trial.id))


def pruner(suite: Suite, trials: Sequence[Trial]) -> Pruner:
    """Return what stops the weak trials of a search: a bracket for each cell and seed; none if nothing is pruned.

    A smoke run ends after an epoch, and is to show that the rest works too: it prunes nothing.
    """
    if suite.prune is None or any(trial.settings["train"]["smoke"] for trial in trials):
        return Pruner(())
    return Pruner(
        Bracket(
            suite.prune,
            [(trial.id, trial.settings["train"]["epochs"]) for trial in group],
            maximise=maximises(group[0].settings["train"]["best"]),
        )
        for group in map(_compared, _brackets(trials))
    )


def _brackets(trials: Iterable[Trial]) -> list[list[Trial]]:
    """Return the trials of a search that compete with each other: those of one cell and seed."""
    groups: dict[tuple[tuple[Label, ...], int], list[Trial]] = {}
    for trial in trials:
        if trial.stage != "grid":
            groups.setdefault((trial.cell, trial.seed), []).append(trial)
    return list(groups.values())


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
    drawn = suite.draw.points if suite.draw else 1
    return (grid + len(suite.include)) * drawn * len(suite.axis("seed").labels)


def _total(suite: Suite, points: Sequence[Point], seeds: Sequence[int]) -> int:
    """Return how many trials the whole suite has, those included that are not known before others have ended."""
    if not suite.searches:
        return len(points) * len(seeds)
    if suite.confirm == "none":
        return _searched(suite, points, len(seeds))
    won = len({tuple(labels[axis] for axis in suite.names("compare")) for labels, _ in points})
    return _searched(suite, points, 1) + won * len([seed for seed in seeds if seed != suite.axis("seed").labels[0]])


def _searched(suite: Suite, points: Sequence[Point], seeds: int) -> int:
    """Return the number of trials of the search."""
    return len(points) * seeds * (suite.draw.points if suite.draw else 1)


def sizes(suite: Suite) -> str:
    """Return the axes and how many values each has, as ``model 3 x augmentation 3 x seed 5``."""
    listed = [axis for axis in suite.axes if not (suite.draw and axis.role == "search")]
    terms = [f"{axis.name} {len(axis.labels)}" for axis in listed]
    if suite.draw:
        terms.insert(-1, f"{suite.draw.points} drawn points")
    if suite.searches and suite.confirm == "winner":
        return f"{' x '.join(terms[:-1])} searched with one seed, each winner with {terms[-1]}"
    return " x ".join(terms)


Point = tuple[dict[str, Label], Assignments]
"""Labels of axes, and what they assign."""


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


def _points(suite: Suite) -> list[Point]:
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
            if suite.draw and name in suite.names("search"):
                raise SuiteError(f"--only {name}={word}: the values of {name} are drawn, not chosen")
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


def by_cell(trials: Iterable[Trial]) -> dict[tuple[Label, ...], list[Trial]]:
    """Return the trials of each cell, in the order of the first of each."""
    groups: dict[tuple[Label, ...], list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.cell, []).append(trial)
    return groups


def cell_settings(suite: Suite) -> dict[tuple[Label, ...], dict[str, Any]]:
    """Return the settings of each cell: those of its first point, or where points are drawn those before any is."""
    found: dict[tuple[Label, ...], dict[str, Any]] = {}
    for labels, assignments in _points(suite):
        cell = tuple(labels[axis] for axis in suite.names("compare"))
        if cell not in found:
            found[cell] = _settings(suite, assignments, ", ".join(map(str, cell))).model_dump()
    return found


@dataclass(frozen=True, slots=True)
class Choice:
    """A suite, and what the user chose to run of it."""

    suite: Suite
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    limit: int | None = None

    def trials(self, ended: Mapping[str, Ended]) -> list[Trial]:
        """Return the trials that are known once ``ended`` have ended (`expand`)."""
        return expand(self.suite, self.only, self.limit, ended)

    def planned(self) -> int:
        """Return how many trials there are in the end."""
        points, seeds = _chosen(self.suite, self.only)
        return min(_total(self.suite, points, seeds), self.limit or MAX_TRIALS)

    def seeds(self) -> list[int]:
        return _chosen(self.suite, self.only)[1]


def snapshot(choice: Choice) -> dict[str, Any]:
    """Return what `restore` needs to plan the same trials again, as plain data for JSON."""
    suite = choice.suite
    document = {"source": suite.source, "document": suite.document, "sets": suite.sets, "written": suite.written}
    return {**document, "only": dict(choice.only), "limit": choice.limit}


def restore(kept: Any, where: str) -> Choice:
    """Return what a `snapshot` holds, without importing the modules that its suite names.

    Raises:
        SuiteError: naming ``where``, the file it was kept in, if it is none.
    """
    try:
        suite = build(kept["document"], Complaints(kept["source"], None), Path(), kept["sets"], trusted=True)
        written = kept.get("written", None if kept["sets"] else suite.document)  # not kept at first
        choice = Choice(replace(suite, written=written), kept["only"], kept["limit"])
        choice.planned()
        return choice
    except (SuiteError, KeyError, TypeError, AttributeError) as error:
        raise SuiteError(f"{where}: is not what a run keeps of its suite ({error}): run the suite again") from None


def changes(trials: Sequence[Trial]) -> Iterator[tuple[Trial, list[tuple[str, str, str]]]]:
    """Yield a trial of every cell, in the suite's order, and the settings in which it differs from the cell before:
    their dotted paths, the value before and the value now.

    Keys that a suite leaves out have their defaults; an option of a model that a cell does not give is an en dash.
    """
    before: dict[str, Any] | None = None
    for _, _, (trial, *_) in cells(trials):
        yield trial, [] if before is None else list(differences(before, trial.settings))
        before = trial.settings


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the dotted path, the value before and the value now of each setting that differs; an en dash for none."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key, "–"), new.get(key, "–"), f"{path}.{key}".lstrip("."))
    elif old != new:
        before, after = (value if isinstance(value, str) else json.dumps(value) for value in (old, new))
        yield path, before, after
