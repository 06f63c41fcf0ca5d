from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from raybench.stats import mean_interval, smallest_difference


@pytest.mark.parametrize(
    ("n", "expected"),
    [  # quantiles from a printed t table: 4.303, 2.776, 2.306, 2.101 at 2, 4, 8, 18 degrees of freedom
        (2, 4.303 * 1.0),
        (3, 2.776 * 0.8165),
        (5, 2.306 * 0.6325),
        (10, 2.101 * 0.4472),
    ],
)
def test_smallest_difference_by_hand(n: int, expected: float) -> None:
    assert smallest_difference(n) == pytest.approx(expected, rel=5e-4)


@pytest.mark.parametrize("n", [0, 1])
def test_one_seed_shows_nothing(n: int) -> None:
    assert smallest_difference(n) == math.inf


def test_more_seeds_or_less_confidence_show_smaller_differences() -> None:
    differences = [smallest_difference(n) for n in range(2, 30)]
    assert differences == sorted(differences, reverse=True)
    assert smallest_difference(5, confidence=0.9) < smallest_difference(5) < smallest_difference(5, confidence=0.99)


@pytest.mark.parametrize(("n", "confidence"), [(2, 0.95), (5, 0.95), (5, 0.99), (12, 0.9)])
def test_smallest_difference_is_where_the_tests_turn(n: int, confidence: float) -> None:
    """Two cells of one std, apart by a little more or less than the difference: scipy's p crosses 1 - confidence."""
    from scipy import stats

    cell = np.random.default_rng(n).normal(size=n)
    cell /= cell.std(ddof=1)
    for equal_variances in (True, False):
        for factor, significant in ((1.001, True), (0.999, False)):
            other = cell + factor * smallest_difference(n, confidence)
            p = stats.ttest_ind(cell, other, equal_var=equal_variances).pvalue
            assert (p < 1 - confidence) == significant


def test_mean_interval_by_hand() -> None:
    low, high = mean_interval([0.1, 0.2, 0.3])  # mean 0.2, std 0.1, t(0.975, 2) = 4.303
    assert (low, high) == pytest.approx((0.2 - 4.303 * 0.1 / 3**0.5, 0.2 + 4.303 * 0.1 / 3**0.5), abs=1e-4)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_mean_interval_agrees_with_scipy(confidence: float) -> None:
    from scipy import stats

    values = np.random.default_rng(0).normal(0.8, 0.01, size=7)
    expected = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    assert mean_interval(values.tolist(), confidence) == pytest.approx((expected.low, expected.high), rel=1e-12)


@pytest.mark.parametrize("values", [[], [0.8]])
def test_no_interval_from_fewer_than_two_values(values: list[float]) -> None:
    assert all(math.isnan(end) for end in mean_interval(values))


def test_equal_values_give_a_point() -> None:
    assert mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


@pytest.mark.parametrize("module", ["raybench.stats", "raybench.summarize"])
def test_tables_are_made_without_heavy_libraries(module: str) -> None:
    heavy = ("torch", "ray", "matplotlib", "sklearn", "scipy")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
