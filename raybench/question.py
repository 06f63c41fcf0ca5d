"""A question to the cells of a suite, and its answer: the numbers of each, and what tests say of them, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from raybench import metrics, stats
from raybench.cells import Cells
from raybench.errors import UserError
from raybench.grid import counted
from raybench.metrics import METRICS
from raybench.stats import Compared

Over = Literal["seeds", "images", "both"]
Test = Literal["welch", "paired", "sign-flip"]
Interval = Literal["t", "bootstrap"]

TESTS = {
    "welch": "Welch's t test over the seeds",
    "paired": "paired t test over the shared seeds",
    "sign-flip": "exact sign-flip test over the shared seeds",
}
OVER = {"seeds": "the seeds", "images": "the test images, the trials as they are", "both": "test images and seeds"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of the cells, and how it is to be answered.

    Raises:
        UserError: if the parts do not fit together.
    """

    metric: str = "accuracy"
    """What `metrics.find_metric` finds among the stored ones; it is kept by its name there."""
    over: Over = "seeds"
    """What would be drawn again: other seeds, other test images, or both."""
    test: Test = "welch"
    """Over seeds; over images it is a paired bootstrap, or McNemar's test where both cells have one trial."""
    interval: Interval = "t"
    confidence: float = 0.95
    seed: int = 0
    """Of the bootstrap's draws."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", metrics.find_metric(self.metric, metrics.STORED))
        if self.over == "seeds":
            return
        if self.metric != "accuracy":
            raise UserError(f"--metric {self.metric}: --over {self.over} compares the answers to single test images")
        if self.test != "welch":
            raise UserError(f"--test {self.test}: is a test over seeds, not with --over {self.over}")
        if self.interval == "t":
            raise UserError(f"--interval t: is over seeds; with --over {self.over} it is bootstrap")

    @property
    def number(self) -> str:
        """Return how people see the metric's numbers."""
        return METRICS[self.metric].format

    @property
    def level(self) -> float:
        return round(1 - self.confidence, 12)

    @property
    def percent(self) -> str:
        return f"{100 * self.confidence:g} %"

    @property
    def error(self) -> str:
        return f"{100 * self.level:g} %"

    def says(self) -> str:
        """Name the test."""
        return TESTS[self.test] if self.over == "seeds" else f"paired {self.drawn()}"

    def drawn(self) -> str:
        """Name the bootstrap."""
        return f"bootstrap over {OVER[self.over]}, {stats.RESAMPLES:,} resamples, seed {self.seed}"


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """The numbers of one cell."""

    seeds: tuple[int, ...]
    """Of its finished trials, in their order."""
    values: npt.NDArray[np.float64]
    """float64 [seeds]: the metric."""
    right: npt.NDArray[np.bool_] | None = None
    """bool [trials, images]: which test images each of them had right; None where that is not asked or not stored."""
    images: int = 0
    """A hash of the test images and their labels."""

    def at(self, seeds: Iterable[int]) -> npt.NDArray[np.float64]:
        """Return the values of some of its seeds."""
        by_seed = dict(zip(self.seeds, self.values, strict=True))
        return np.array([by_seed[seed] for seed in seeds])


def sample(cells: Cells, metric: str, predictions: pd.DataFrame | None = None) -> tuple[list[Sample], list[str]]:
    """Return the numbers of each cell, and lines that say what is missing from them.

    Args:
        predictions: of the test images, where they are asked for: columns trial_id, index, label, prediction.
    """
    column = METRICS[metric].column
    stored = cells.finished.dropna(subset=column)
    rows = stored[metrics.finite(stored[column]).notna()].sort_values("seed")
    notes = []
    if lost := len(cells.finished) - len(stored):
        notes.append(f"{metric} is not stored for {counted(lost, 'finished trial')}")
    if lost := len(stored) - len(rows):
        notes.append(f"{metric} is not finite in {counted(lost, 'finished trial')}, which are in no number here")
    answers: dict[str, tuple[npt.NDArray[np.bool_], int]] = {}
    if predictions is not None:
        fingerprints = dict(zip(rows["trial_id"], rows["dataset_fingerprint"].astype(str), strict=True))
        wanted = predictions[predictions["trial_id"].isin(list(fingerprints))]
        for id_, group in wanted.groupby("trial_id", sort=False):
            group = group.sort_values("index")
            tested = hash(
                (fingerprints[str(id_)], group["index"].to_numpy().tobytes(), group["label"].to_numpy().tobytes())
            )
            answers[str(id_)] = (group["prediction"] == group["label"]).to_numpy(), tested
        if lost := len(rows) - len(answers):
            notes.append(f"no predictions are stored of {counted(lost, 'finished trial')}, which are in no number here")
        rows = rows[rows["trial_id"].isin(list(answers))]
    at: list[list[int]] = [[] for _ in cells.labels]
    for row, cell in enumerate(rows["cell"]):
        at[cell].append(row)
    seeds, ids, values = rows["seed"].tolist(), rows["trial_id"].tolist(), rows[column].to_numpy(float)
    samples = []
    for labels, members in zip(cells.labels, at, strict=True):
        one = Sample(tuple(seeds[row] for row in members), values[members])
        given = [answers[ids[row]] for row in members] if answers else []
        if len({tested for _, tested in given}) == 1:
            one = replace(one, right=np.stack([right for right, _ in given]), images=given[0][1])
        elif given:
            notes.append(f"{name_of(labels)}: its trials were tested on different images")
        samples.append(one)
    return samples, notes


def contrast(first: Sample, second: Sample, question: Question) -> Compared:
    """Return what the test that is asked for says about two cells."""
    if question.over != "seeds":
        return _over_images(first, second, question)
    if question.test == "welch":
        return stats.welch(first.values, second.values, question.confidence)
    shared = [seed for seed in first.seeds if seed in second.seeds]
    test = stats.paired_t if question.test == "paired" else stats.sign_flip
    return test(first.at(shared), second.at(shared), question.confidence)


def _over_images(first: Sample, second: Sample, question: Question) -> Compared:
    if not (first.seeds and second.seeds):
        return Compared(math.nan, why="no predictions")
    if first.right is None or second.right is None or first.images != second.images:
        return Compared(math.nan, why="different test images")
    found = stats.paired_bootstrap(
        first.right,
        second.right,
        question.confidence,
        seed=question.seed,
        shared=first.seeds == second.seeds,
        seeds_too=question.over == "both",
    )
    if single(first, second, question):
        exact = stats.mcnemar(first.right[0], second.right[0], question.confidence)
        return Compared(found.difference, found.low, found.high, exact.p, exact.why, exact.smallest)
    return found


def single(first: Sample, second: Sample, question: Question) -> bool:
    """Return whether two trials are compared image by image, which McNemar's test is for."""
    return question.over == "images" and len(first.seeds) == len(second.seeds) == 1


@dataclass(frozen=True, slots=True)
class Family:
    """Comparisons that are made together, and corrected for their number."""

    found: tuple[Compared, ...]
    level: float

    @property
    def tested(self) -> int:
        return sum(one.p is not None for one in self.found)

    @property
    def least(self) -> float:
        """The smallest p that any of the tests could show after the correction."""
        return self.tested * min((one.smallest for one in self.found if one.p is not None), default=0.0)

    def adjusted(self) -> list[float | None]:
        """Return the p values after Holm's correction; none where it leaves no chance to reach the level."""
        in_reach = self.least < self.level
        return stats.holm([one.p for one in self.found]) if in_reach else [None] * len(self.found)

    def verdicts(self, higher: str, lower: str) -> list[str]:
        """Say in words what each comparison shows."""
        words = []
        for one, p in zip(self.found, self.adjusted(), strict=True):
            if one.p is None:
                words.append(f"cannot tell: {one.why}")
            elif p is None:
                words.append(f"cannot tell: {self.tested:,} comparisons")
            elif p < self.level:
                words.append(higher if one.difference > 0 else lower)
            else:
                words.append("not told apart")
        return words

    def notes(self) -> list[str]:
        if self.least < self.level:
            return []
        return [
            f"after Holm's correction for {self.tested:,} comparisons this test has no p below {self.least:.2g}:"
            " compare fewer cells, or use more seeds"
        ]


def name_of(labels: Iterable[Any]) -> str:
    """Return what people call a cell: ``mlp/none``."""
    return "/".join("–" if label is None else str(label) for label in labels)


def mean_of(values: npt.NDArray[np.float64]) -> float | None:
    """Return the mean; none of no values."""
    return float(values.mean()) if len(values) else None


def number_or_none(value: Any) -> float | None:
    """Return a number as tables hold it, which have no NaN."""
    return None if value is None or math.isnan(value) else float(value)
