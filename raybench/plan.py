"""From a suite to its list of trials: those that the user chose, as far as they are known, in their order.

Everything here is a pure function of the suite and of how trials have ended, so that `raybench plan`, `run` and
`summarize` agree on what there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raybench.axes import Label, find_label
from raybench.errors import SuiteError, did_you_mean
from raybench.grid import MAX_TRIALS, Grid, Point, Trial, grid_points, sizes
from raybench.search import Ended
from raybench.stages import staged
from raybench.suite import Suite, build
from raybench.yamlfile import Complaints


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
    grid = Grid(suite)
    trials = staged(grid, points, seeds, ended or {}) if suite.searches else grid.trials(points, seeds, "grid")
    return trials if limit is None else trials[:limit]


def _chosen(suite: Suite, only: Mapping[str, Sequence[str]]) -> tuple[list[Point], list[int]]:
    """Return the points of the grid and the seeds that ``only`` keeps."""
    points = grid_points(suite)
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
