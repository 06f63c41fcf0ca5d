"""The stages of a search: which trials follow from how those before have ended, and which compete with each other.

First the points of the search, listed or drawn study by study, and then those that confirm each cell's winner.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from raybench.axes import Label
from raybench.errors import SuiteError
from raybench.grid import Grid, Point, Trial, by_cell, identity, stream
from raybench.prune import Bracket, Pruner
from raybench.records import FINISHED
from raybench.search import Ended, draw, maximises, winner
from raybench.suite import Suite


def is_done(suite: Suite, trial: Trial, ended: Mapping[str, Ended]) -> bool:
    """Return whether a trial need not run again: one that was pruned only where it is one of those that prune."""
    end = ended.get(trial.id)
    return end is not None and (end.status != "pruned" or (suite.prune is not None and trial.stage == "search"))


def staged(grid: Grid, points: list[Point], seeds: list[int], ended: Mapping[str, Ended]) -> list[Trial]:
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
    grid: Grid, cells: list[Point], seeds: Sequence[int], ended: Mapping[str, Ended]
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
    grid: Grid,
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
