"""What a handful of seeds can and cannot show. Pure functions on plain numbers.

`docs/statistics.md` says which of them answers which question. A test that cannot reach its level, whatever the
numbers are, has no p value but a reason (`Compared.why`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_letters

import numpy as np
import numpy.typing as npt

Values = Sequence[float] | npt.NDArray[np.float64]
Right = npt.NDArray[np.bool_]
"""bool [trials, images]: which test images each trial had right, the same images in the same order."""

RESAMPLES = 9_999
"""Of a bootstrap: the smallest p that it can show is 2 / 10,000."""
MOST_SEEDS = 20
"""Of a sign-flip test, which looks at 2 ** seeds sums."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What a test says about two means, the second minus the first."""

    difference: float
    low: float | None = None
    high: float | None = None
    """Ends of the confidence interval of the difference, where the test has one."""
    p: float | None = None
    """Two-sided."""
    why: str = ""
    """Where there is no p: why this test cannot tell the two apart, whatever the difference is."""
    smallest: float = 0.0
    """The smallest p that the test could have given with as many seeds, images or resamples."""


@dataclass(frozen=True, slots=True)
class Share:
    """How much of a variance one source explains."""

    eta: float
    """Eta squared: its share of the sum of squares, in these numbers."""
    omega: float | None
    """Omega squared: what eta squared estimates, less what chance alone would add to it; 0 where that is more."""


# ---------------------------------------------------------------------------------------------------------------------
# One mean


def smallest_difference(n: int, confidence: float = 0.95) -> float:
    """Return the smallest difference between two cells' means that n seeds each can show.

    In units of the cells' common sample standard deviation: with n = 5 and a std of 0.01, means that lie closer than
    1.46 * 0.01 are not told apart at the 5 % level, whatever is tested afterwards.

    The two-sample t test calls a difference d significant when ``|d| / (s * sqrt(2 / n))`` exceeds the quantile
    ``t(1 - alpha / 2, 2n - 2)`` (Student 1908; see Welch, Biometrika 34, 1947). That is Welch's test where both cells
    have the same std; where they differ, Welch's has fewer degrees of freedom and asks for more. One seed shows
    nothing: infinity.
    """
    if n < 2:
        return math.inf
    return _t_quantile(confidence, 2 * n - 2) * math.sqrt(2 / n)


def mean_interval(values: Values, confidence: float = 0.95) -> tuple[float, float]:
    """Return Student's t interval (low, high) for the mean of ``values``, in their unit: mean -+ t * s / sqrt(n).

    For a few seeds this is the interval that holds its level; a bootstrap over five values covers 84 % where it
    promises 95 % (benchmarks/coverage.py). Fewer than two values have no interval: (nan, nan).
    """
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    mean = float(np.mean(values))
    half = _t_quantile(confidence, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


def bootstrap_interval(
    values: Values, confidence: float = 0.95, *, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Return the percentile bootstrap interval for the mean of ``values`` (Efron, Annals of Statistics 7, 1979).

    ``seed`` decides every draw. Of n values n are drawn with replacement; how often each comes up is a multinomial
    variable, so that is drawn: of 10,000 images that are right or wrong, two numbers. Fewer than two values have no
    interval: (nan, nan).
    """
    if len(values) < 2:
        return math.nan, math.nan
    distinct, counts = np.unique(np.asarray(values, float), return_counts=True)
    n = int(counts.sum())
    means = np.random.default_rng(seed).multinomial(n, counts / n, resamples) @ distinct / n
    return _percentiles(means, confidence)


def accuracy_interval(
    right: Right, confidence: float = 0.95, *, seed: int, seeds_too: bool = False
) -> tuple[float, float]:
    """Return the percentile bootstrap interval for the mean accuracy of the trials in ``right``.

    Images are drawn, the trials stay: what these networks would do on other images. With ``seeds_too`` trials are
    drawn as well, as often as there are (the two-way bootstrap of Owen, Annals of Applied Statistics 1, 2007).
    """
    rng = np.random.default_rng(seed)
    trials = len(right)
    return _percentiles(_drawn(right.astype(np.int64), _weights(trials, rng, seeds_too), rng) / trials, confidence)


# ---------------------------------------------------------------------------------------------------------------------
# Two means


def welch(first: Values, second: Values, confidence: float = 0.95) -> Compared:
    """Compare two cells over their seeds: Welch's t test and interval (Welch, Biometrika 34, 1947)."""
    a, b = np.asarray(first, float), np.asarray(second, float)
    if not (len(a) and len(b)):
        return Compared(math.nan, why="no finished trial")
    difference = float(b.mean() - a.mean())
    if min(len(a), len(b)) < 2:
        return Compared(difference, why="one seed shows no spread")
    if not (_varies(a) or _varies(b)):
        return Compared(difference, why="no spread over the seeds")
    errors = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    degrees = sum(errors) ** 2 / (errors[0] ** 2 / (len(a) - 1) + errors[1] ** 2 / (len(b) - 1))
    return _t_test(difference, math.sqrt(sum(errors)), degrees, confidence)


def paired_t(first: Values, second: Values, confidence: float = 0.95) -> Compared:
    """Compare two cells over the seeds that they share, in the same order: the t test of the differences."""
    differences = np.asarray(second, float) - np.asarray(first, float)
    n = len(differences)
    if not n:
        return Compared(math.nan, why="no shared seed")
    difference = float(differences.mean())
    if n < 2:
        return Compared(difference, why="one shared seed shows no spread")
    if not _varies(differences, np.asarray(first, float)):
        return Compared(difference, why="the same difference with every seed")
    return _t_test(difference, float(differences.std(ddof=1)) / math.sqrt(n), n - 1, confidence)


def sign_flip(first: Values, second: Values, confidence: float = 0.95) -> Compared:
    """Compare two cells over the seeds that they share: the exact permutation test (Fisher 1935).

    Were the cells alike, each seed's difference could as well have the other sign: p is the share of all sign patterns
    whose sum is at least as far from zero. k differences that are not zero give no p below ``2 ** (1 - k)``.
    """
    differences = np.asarray(second, float) - np.asarray(first, float)
    if not len(differences):
        return Compared(math.nan, why="no shared seed")
    difference = float(differences.mean())
    differences = differences[differences != 0]
    smallest = 2.0 ** (1 - len(differences)) if len(differences) else 1.0
    if smallest >= 1 - confidence:
        return Compared(difference, why=_too_few(len(differences), "shared seed", smallest))
    if len(differences) > MOST_SEEDS:
        return Compared(
            difference, why=f"more than {MOST_SEEDS} seeds have too many sign patterns: use the paired t test"
        )
    sums = np.zeros(1)
    for size in differences:
        sums = np.concatenate([sums - size, sums + size])
    slack = 1e-12 * float(np.abs(differences).sum())  # sums that are equal but for the order of their terms
    p = float(np.mean(np.abs(sums) >= abs(differences.sum()) - slack))
    return Compared(difference, p=p, smallest=smallest)


def mcnemar(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], confidence: float = 0.95) -> Compared:
    """Compare two trials over the test images: the exact form of McNemar's test (Psychometrika 12, 1947).

    Args:
        first, second: bool [images]: which the two had right.

    Only the images that exactly one of them has right count: were the two alike, each would be either's by the toss
    of a coin. k such images give no p below ``2 ** (1 - k)``.
    """
    from scipy.special import bdtr

    if not len(first):
        return Compared(math.nan, why="no test images")
    lost, won = int((first & ~second).sum()), int((second & ~first).sum())
    difference, discordant = (won - lost) / len(first), lost + won
    smallest = 2.0 ** (1 - discordant) if discordant else 1.0
    if smallest >= 1 - confidence:
        return Compared(difference, why=_too_few(discordant, "image", smallest))
    return Compared(difference, p=min(1.0, 2 * float(bdtr(min(lost, won), discordant, 0.5))), smallest=smallest)


def paired_bootstrap(
    first: Right,
    second: Right,
    confidence: float = 0.95,
    *,
    seed: int,
    shared: bool = False,
    seeds_too: bool = False,
) -> Compared:
    """Compare the mean accuracies of two cells' trials over the test images, the same ones drawn for both.

    Args:
        first, second: bool [trials, images], each with trials of its own.
        seed: decides every draw.
        shared: the trials of both belong to the same seeds, in the same order, and are drawn together.
        seeds_too: draw trials as well as images, see `accuracy_interval`.

    The interval is that of percentiles, and p is twice the share of the resampled differences on the other side of
    zero, itself counted on both sides, so that no p is 0 (Davison and Hinkley, Bootstrap Methods, 1997, chapter 4):
    p falls below ``1 - confidence`` where the interval leaves zero.
    """
    rng = np.random.default_rng(seed)
    a, b = len(first), len(second)
    if not (a and b and first.shape[1]):
        return Compared(math.nan, why="no finished trial")
    difference = float(second.mean() - first.mean())
    if seeds_too and min(a, b) < 2:
        return Compared(difference, why="one seed shows no spread")
    if shared:
        signed = second.astype(np.int64) - first
        means = _drawn(signed, _weights(a, rng, seeds_too), rng) / a
    else:
        signed = np.concatenate([second.astype(np.int64) * a, first.astype(np.int64) * -b])
        weights = [_weights(trials, rng, seeds_too) for trials in (b, a)]
        means = _drawn(signed, np.concatenate(weights, axis=1), rng) / (a * b)
    beyond = 1 + min(int((means <= 0).sum()), int((means >= 0).sum()))
    low, high = _percentiles(means, confidence)
    smallest = 2 / (RESAMPLES + 1)
    return Compared(difference, low, high, min(1.0, beyond * smallest), smallest=smallest)


# ---------------------------------------------------------------------------------------------------------------------
# Many means


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Return p values adjusted for their number (Holm, Scandinavian Journal of Statistics 6, 1979).

    The chance that any of them falls below a level by chance is at most that level. None stands for a comparison that
    was not tested: it stays None, and does not count.
    """
    order = sorted((value, index) for index, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (value, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * value))
        adjusted[index] = largest
    return adjusted


def tie_letters(different: npt.NDArray[np.bool_]) -> list[str] | None:
    """Return a letter display: two cells share a letter if, and only if, they are not ``different``.

    Args:
        different: symmetric bool [cells, cells].

    Insert and absorb (Piepho, Journal of Computational and Graphical Statistics 13, 2004): start with one group of all;
    for each different pair, split every group that has both into one without the one and one without the other, and
    drop the groups that lie in another. Letters come in the order of the cells. None where there are more groups than
    letters.
    """
    groups = [frozenset(range(len(different)))]
    for one, other in zip(*np.nonzero(np.triu(different, 1)), strict=True):
        split = [group for group in groups if {one, other} <= group]
        whole = [group for group in groups if not {one, other} <= group]
        for part in (group - {left} for group in split for left in (one, other)):
            if not any(part <= group for group in whole):
                whole = [group for group in whole if not group < part] + [part]
        groups = whole
        if len(groups) > len(ascii_letters):
            return None
    groups.sort(key=sorted)
    return [
        "".join(letter for letter, group in zip(ascii_letters, groups, strict=False) if cell in group)
        for cell in range(len(different))
    ]


def variance_shares(values: npt.NDArray[np.float64]) -> dict[int | str, Share] | None:
    """Divide the variance of a full, balanced grid among its axes: analysis of variance with fixed effects.

    Args:
        values: [levels of the first axis, levels of the second, ..., seeds].

    Returns:
        The share of each axis, under its number; under ``interactions`` what the cells' means differ by beyond the sum
        of the axes' effects (where there are several axes); under ``seed`` what trials of one cell differ by. With one
        seed these two cannot be told apart: both are under ``interactions``, and no share has an omega. None if all
        values are equal.

    Eta squared is SS / SS_total (Fisher 1925); omega squared is (SS - df * MS_seed) / (SS_total + MS_seed) (Hays 1963).
    """
    seeds, cells, axes = values.shape[-1], math.prod(values.shape[:-1]), range(values.ndim - 1)
    total = float(((values - values.mean()) ** 2).sum())
    if not _varies(values):
        return None
    sums: dict[int | str, float] = {}
    degrees: dict[int | str, int] = {}
    for axis in axes:
        means = values.mean(axis=tuple(other for other in range(values.ndim) if other != axis))
        sums[axis] = float(((means - values.mean()) ** 2).sum()) * values.size / len(means)
        degrees[axis] = len(means) - 1
    within = float(((values - values.mean(axis=-1, keepdims=True)) ** 2).sum())
    if len(axes) > 1 or seeds == 1:
        sums["interactions"] = max(0.0, total - within - sum(sums.values()))
        degrees["interactions"] = cells - 1 - sum(degrees.values())
    noise = within / (cells * (seeds - 1)) if seeds > 1 else None
    shares = {
        source: Share(
            squares / total, None if noise is None else max(0.0, (squares - degrees[source] * noise) / (total + noise))
        )
        for source, squares in sums.items()
    }
    return shares if noise is None else {**shares, "seed": Share(within / total, None)}


# ---------------------------------------------------------------------------------------------------------------------


def _t_quantile(confidence: float, degrees: float) -> float:
    """Return the two-sided quantile of Student's t distribution."""
    from scipy.special import stdtrit  # scipy.stats, which has the same number, takes most of a second to import

    return float(stdtrit(degrees, (1 + confidence) / 2))


def _t_test(difference: float, error: float, degrees: float, confidence: float) -> Compared:
    from scipy.special import stdtr

    half = _t_quantile(confidence, degrees) * error
    p = 2 * float(stdtr(degrees, -abs(difference) / error))
    return Compared(difference, difference - half, difference + half, p)


def _percentiles(means: npt.NDArray[np.float64], confidence: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _weights(trials: int, rng: np.random.Generator, draw: bool) -> npt.NDArray[np.int64]:
    """Return how often each trial counts in each resample, [RESAMPLES, trials]: once each, or as drawn."""
    if not draw:
        return np.ones((RESAMPLES, trials), np.int64)
    return rng.multinomial(trials, np.full(trials, 1 / trials), RESAMPLES)


def _drawn(
    values: npt.NDArray[np.int64], weights: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Return for each resample the mean over drawn images of ``weights @ values``; values are [trials, images].

    The weighted values of the images are a few whole numbers: for each set of weights that comes up, how often each
    number does among the drawn images is one multinomial variable.
    """
    images = values.shape[1]
    means = np.empty(len(weights))
    kinds, kind_of = np.unique(weights, axis=0, return_inverse=True)
    for kind, weight in enumerate(kinds):
        numbers = weight @ values
        first = int(numbers.min())
        counts = np.bincount(numbers - first)
        here = np.flatnonzero(kind_of.reshape(-1) == kind) if len(kinds) > 1 else np.arange(len(weights))
        distinct = np.flatnonzero(counts)
        drawn = rng.multinomial(images, counts[distinct] / images, len(here))
        means[here] = drawn @ (distinct + first) / images
    return means


def _varies(values: npt.NDArray[np.float64], scale: npt.NDArray[np.float64] | None = None) -> bool:
    """Return whether values differ by more than the rounding of numbers as large as ``scale``."""
    return float(np.ptp(values)) > 1e-12 * float(np.abs(values if scale is None else scale).max())


def _too_few(number: int, noun: str, smallest: float) -> str:
    """Say why an exact test of ``number`` pairs that differ cannot reach its level."""
    if number < 2:
        return f"{'one' if number else 'no'} {noun} differs"
    return f"{number} {noun}s differ: no p below {smallest:.2g}"
