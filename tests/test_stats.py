from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybench.stats import (
    Compared,
    accuracy_interval,
    bootstrap_interval,
    holm,
    mcnemar,
    mean_interval,
    paired_bootstrap,
    paired_t,
    sign_flip,
    smallest_difference,
    tie_letters,
    variance_shares,
    welch,
)


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


# ---------------------------------------------------------------------------------------------------------------------
# Bootstrap


def test_bootstrap_agrees_with_all_resamples_there_are() -> None:
    """Of four values there are 4 ** 4 = 256 resamples: their quantiles are what drawing estimates."""
    values = [0.1, 0.2, 0.4, 0.8]
    means = [np.mean(drawn) for drawn in itertools.product(values, repeat=4)]
    found = bootstrap_interval(values, 0.9, seed=0, resamples=100_000)
    assert found == pytest.approx(np.quantile(means, [0.05, 0.95], method="inverted_cdf"), abs=1e-12)


def test_bootstrap_agrees_with_scipy() -> None:
    from scipy import stats

    values = np.random.default_rng(0).normal(0.8, 0.01, size=40)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    found = bootstrap_interval(values, seed=2, resamples=20_000)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-4)  # the interval is 0.006 wide


def test_the_seed_decides_every_draw() -> None:
    values = np.random.default_rng(0).normal(size=30)
    np.random.seed(1)
    first = bootstrap_interval(values, seed=3)
    np.random.seed(2)
    assert bootstrap_interval(values, seed=3) == first
    assert bootstrap_interval(values, seed=4) != first


@pytest.mark.parametrize("values", [[], [0.8]])
def test_no_bootstrap_of_fewer_than_two_values(values: list[float]) -> None:
    assert all(math.isnan(end) for end in bootstrap_interval(values, seed=0))


def test_an_accuracy_over_images_is_a_bootstrap_of_the_images() -> None:
    right = np.random.default_rng(0).uniform(size=(3, 200)) < 0.7
    expected = bootstrap_interval(right.mean(axis=0), seed=5)
    assert accuracy_interval(right, seed=5) == pytest.approx(expected, abs=1e-12)


def test_drawing_seeds_too_agrees_with_drawing_both_by_hand() -> None:
    rng = np.random.default_rng(0)
    right = rng.uniform(size=(4, 60)) < np.array([[0.5], [0.6], [0.7], [0.9]])
    means = [right[np.ix_(rng.integers(0, 4, 4), rng.integers(0, 60, 60))].mean() for _ in range(5_000)]
    found = accuracy_interval(right, seed=1, seeds_too=True)
    assert found == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)
    only_images = accuracy_interval(right, seed=1)
    assert found[0] < only_images[0] < only_images[1] < found[1]


# ---------------------------------------------------------------------------------------------------------------------
# Two cells over seeds

A, B = [0.80, 0.82, 0.81, 0.79, 0.83], [0.84, 0.83, 0.86, 0.82, 0.85, 0.85]


def test_welch_by_hand() -> None:
    """Means 2 and 5, variances 1 and 4, n 3 and 3: t = 3 / sqrt(5 / 3), df = (5 / 3)^2 / ((1/9 + 16/9) / 2)."""
    found = welch([1, 2, 3], [3, 5, 7])
    assert found.difference == 3
    t, df = 3 / math.sqrt(5 / 3), (5 / 3) ** 2 / ((1 / 9 + 16 / 9) / 2)
    assert (t, df) == pytest.approx((2.3238, 2.9412), abs=1e-4)
    half = 3.2188 * math.sqrt(5 / 3)  # t(0.975, 2.9412), between the printed 4.303 at 2 and 3.182 at 3
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), abs=1e-3)


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_welch_agrees_with_scipy(confidence: float) -> None:
    from scipy import stats

    expected = stats.ttest_ind(B, A, equal_var=False)
    low, high = expected.confidence_interval(confidence)
    found = welch(A, B, confidence)
    assert (found.difference, found.p) == pytest.approx((np.mean(B) - np.mean(A), expected.pvalue), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_the_paired_t_test_agrees_with_scipy() -> None:
    from scipy import stats

    expected = stats.ttest_rel(B[:5], A)
    found = paired_t(A, B[:5])
    assert (found.p, found.low, found.high) == pytest.approx(
        (expected.pvalue, *expected.confidence_interval()), rel=1e-12
    )


@pytest.mark.parametrize(
    ("test", "first", "second", "found"),
    [
        (welch, [0.8], [0.9, 0.8], Compared(pytest.approx(0.05), why="one seed shows no spread")),
        (welch, [0.8, 0.8], [0.9, 0.9], Compared(pytest.approx(0.1), why="no spread over the seeds")),
        (paired_t, [0.8], [0.9], Compared(pytest.approx(0.1), why="one shared seed shows no spread")),
        # 0.3 - 0.1 and 0.9 - 0.7 differ in their last bit, which is no spread
        (paired_t, [0.1, 0.7], [0.3, 0.9], Compared(pytest.approx(0.2), why="the same difference with every seed")),
        (sign_flip, [1, 1], [1, 1], Compared(0.0, why="no shared seed differs")),
        (sign_flip, [1, 1], [1, 2], Compared(0.5, why="one shared seed differs")),
        (sign_flip, [1, 2, 3], [2, 3, 4], Compared(1.0, why="3 shared seeds differ: no p below 0.25")),
        (sign_flip, [0] * 5, [1] * 5, Compared(1.0, why="5 shared seeds differ: no p below 0.062")),
        (
            sign_flip,
            [0] * 21,
            [1] * 21,
            Compared(1.0, why="more than 20 seeds have too many sign patterns: use the paired t test"),
        ),
    ],
)
def test_a_test_that_cannot_tell_says_why(test, first, second, found) -> None:  # type: ignore[no-untyped-def]
    assert test(first, second) == found


@pytest.mark.parametrize(
    ("test", "why"), [(welch, "no finished trial"), (paired_t, "no shared seed"), (sign_flip, "no shared seed")]
)
def test_nothing_compares_to_nothing(test, why: str) -> None:  # type: ignore[no-untyped-def]
    found = test([], [])
    assert (found.p, found.why, math.isnan(found.difference)) == (None, why, True)


def test_sign_flip_by_hand() -> None:
    """Differences 1, 2, 3, 4, 5, -6: of the 64 sign patterns, count those whose sum is at least 9 from zero."""
    differences = [1, 2, 3, 4, 5, -6]
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=6)
    ]
    found = sign_flip([0] * 6, differences)
    assert found.p == sum(total >= 9 for total in sums) / 64
    assert (found.difference, found.smallest) == (1.5, 2 / 64)
    assert sign_flip([0] * 6, [1, 2, 3, 4, 5, 6]).p == 2 / 64  # only all plus and all minus are as far
    assert sign_flip([0] * 3, [1, 2, 3], confidence=0.7).p == 0.25  # at this level three seeds are enough
    found = sign_flip([0] * 3, [1, 2, 3], confidence=0.75)  # p must be below the level: here it cannot
    assert found == Compared(2.0, why="3 shared seeds differ: no p below 0.25")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-5, 5).filter(bool), min_size=6, max_size=9))
def test_sign_flip_agrees_with_scipy(differences: list[int]) -> None:
    from scipy import stats

    sample = np.array(differences)
    expected = stats.permutation_test(
        (sample,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    for scale in (1, 7):  # sevenths: sums that are equal on paper and not in floats
        assert sign_flip(np.zeros(len(sample)), sample / scale).p == pytest.approx(expected.pvalue, abs=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Two cells over test images


def answers(both: int, lost: int, won: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what two trials had right, from the four counts of their table."""
    first = np.repeat([True, True, False, False], [both, lost, won, neither])
    return first, np.repeat([True, False, True, False], [both, lost, won, neither])


def test_mcnemar_by_hand() -> None:
    """1 against 9 of 10 coins: 2 * (1 + 10) / 1024."""
    found = mcnemar(*answers(70, 1, 9, 20))
    assert found == Compared(pytest.approx(0.08), p=pytest.approx(22 / 1024), smallest=2 / 1024)


@pytest.mark.parametrize(("lost", "won"), [(0, 6), (7, 7), (3, 12), (40, 61)])
def test_mcnemar_agrees_with_scipy(lost: int, won: int) -> None:
    from scipy import stats

    assert mcnemar(*answers(100, lost, won, 50)).p == pytest.approx(stats.binomtest(lost, lost + won).pvalue, rel=1e-12)


@pytest.mark.parametrize(
    ("lost", "won", "why"),
    [(0, 0, "no image differs"), (0, 1, "one image differs"), (0, 5, "5 images differ: no p below 0.062")],
)
def test_mcnemar_of_few_images_that_differ_cannot_tell(lost: int, won: int, why: str) -> None:
    found = mcnemar(*answers(10, lost, won, 10))
    assert (found.p, found.why) == (None, why)


def test_mcnemar_whose_smallest_p_is_the_level_cannot_tell() -> None:
    for confidence, p, why in ((0.9375, None, "5 images differ: no p below 0.062"), (0.93, 0.0625, "")):
        found = mcnemar(*answers(10, 0, 5, 10), confidence)
        assert (found.p, found.why) == (p, why)


def test_the_paired_bootstrap_is_a_bootstrap_of_the_differences() -> None:
    rng = np.random.default_rng(0)
    easy = rng.uniform(size=300)
    first, second = (easy + 0.3 * rng.uniform(size=(3, 300)) < level for level in (0.8, 0.9))
    found = paired_bootstrap(first, second, seed=1)
    differences = second.mean(axis=0) - first.mean(axis=0)
    assert found.difference == pytest.approx(differences.mean())
    assert (found.low, found.high) == pytest.approx(bootstrap_interval(differences, seed=9), abs=0.004)
    # Shared or not, the trials stay as they are.
    shared = paired_bootstrap(first, second, seed=1, shared=True)
    assert (shared.low, shared.high, shared.p) == pytest.approx((found.low, found.high, found.p), abs=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_the_paired_bootstrap_over_seeds_too_agrees_with_drawing_by_hand(shared: bool) -> None:
    rng = np.random.default_rng(0)
    good = rng.normal(0.6, 0.1, size=(4, 1))
    first, second = (rng.uniform(size=(4, 80)) < good + more for more in (0, 0.1))
    differences = []
    for _ in range(5_000):
        images, seeds = rng.integers(0, 80, 80), rng.integers(0, 4, 4)
        others = seeds if shared else rng.integers(0, 4, 4)
        differences.append(second[np.ix_(others, images)].mean() - first[np.ix_(seeds, images)].mean())
    found = paired_bootstrap(first, second, seed=3, shared=shared, seeds_too=True)
    assert (found.low, found.high) == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.01)
    assert found.p == pytest.approx(2 * np.mean(np.array(differences) <= 0), abs=0.02)


def test_the_paired_bootstrap_of_equal_answers_sees_no_difference() -> None:
    right = np.random.default_rng(0).uniform(size=(2, 50)) < 0.5
    assert paired_bootstrap(right, right, seed=0, shared=True) == Compared(0.0, 0.0, 0.0, 1.0, smallest=2 / 10_000)


def test_no_p_of_a_bootstrap_is_zero() -> None:
    found = paired_bootstrap(np.zeros((1, 50), bool), np.ones((1, 50), bool), seed=0)
    assert found.p == found.smallest == 2 / 10_000


def test_one_trial_says_nothing_about_seeds() -> None:
    one, two = np.ones((1, 5), bool), np.zeros((2, 5), bool)
    assert paired_bootstrap(one, two, seed=0, seeds_too=True) == Compared(-1.0, why="one seed shows no spread")


# ---------------------------------------------------------------------------------------------------------------------
# Many cells


def test_holm_by_hand() -> None:
    """Sorted .005 .01 .03 .04 times 4, 3, 2, 1 is .02 .03 .06 .04; no adjusted p is below that of a smaller p."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, None, 0.04]) == [pytest.approx(0.02), None, pytest.approx(0.04)]
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def different(cells: int, *pairs: tuple[int, int]) -> np.ndarray:
    matrix = np.zeros((cells, cells), bool)
    for one, other in pairs:
        matrix[one, other] = matrix[other, one] = True
    return matrix


@pytest.mark.parametrize(
    ("matrix", "letters"),
    [
        (different(1), ["a"]),
        (different(3), ["a", "a", "a"]),
        (different(2, (0, 1)), ["a", "b"]),
        (different(3, (0, 2)), ["a", "ab", "b"]),
        (different(4, (0, 2), (0, 3), (1, 3)), ["a", "ab", "bc", "c"]),
        # Not an order: the first is told from the second, but not from the third, which is worse.
        (different(3, (0, 1)), ["a", "b", "ab"]),
        (different(0), []),
    ],
)
def test_letters_by_hand(matrix: np.ndarray, letters: list[str]) -> None:
    assert tie_letters(matrix) == letters


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_cells_share_a_letter_only_if_they_are_not_different(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    n, pairs = drawn
    matrix = different(n, *((a, b) for a, b in pairs if a != b))
    letters = tie_letters(matrix)
    assert letters is not None
    for one, other in itertools.product(range(n), repeat=2):
        assert bool({*letters[one]} & {*letters[other]}) != matrix[one, other]
    groups = [{cell for cell in range(n) if letter in letters[cell]} for letter in {*"".join(letters)}]
    assert not any(one < other for one, other in itertools.permutations(groups, 2)), "a letter that says nothing"


def test_no_letters_where_the_alphabet_ends() -> None:
    everyone = ~np.eye(53, dtype=bool)
    assert tie_letters(everyone) is None
    assert tie_letters(everyone[:52, :52]) == list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def test_variance_shares_by_hand() -> None:
    """Two axes of two values, two seeds. Cell means 2, 4, 6, 12 with -1 and +1 around each; grand mean 6."""
    values = np.array([[[1, 3], [3, 5]], [[5, 7], [11, 13]]], float)
    shares = variance_shares(values)
    assert shares is not None
    # First axis: means 3 and 9, SS = 8 * 3^2 = 72; second: 4 and 8, SS = 8 * 2^2 = 32; seeds: 8 * 1 = 8, df 4, MS 2;
    # interactions: cells' SS 2 * (16 + 4 + 0 + 36) = 112 less 72 and 32 = 8; total 120.
    assert {source: share.eta for source, share in shares.items()} == pytest.approx(
        {0: 72 / 120, 1: 32 / 120, "interactions": 8 / 120, "seed": 8 / 120}
    )
    omega = {source: share.omega for source, share in shares.items() if source != "seed"}
    assert omega == pytest.approx({0: 70 / 122, 1: 30 / 122, "interactions": 6 / 122})
    assert shares["seed"].omega is None


def test_one_axis_agrees_with_scipy() -> None:
    from scipy import stats

    values = np.random.default_rng(0).normal(size=(3, 5)) + np.array([[0], [0.5], [2]])
    f = stats.f_oneway(*values).statistic
    shares = variance_shares(values)
    assert shares is not None
    assert list(shares) == [0, "seed"]
    assert shares[0].eta == pytest.approx(2 * f / (2 * f + 12))
    assert shares[0].omega == pytest.approx((2 * f - 2) / (2 * f + 12 + 1))


def test_with_one_seed_chance_and_interactions_are_one() -> None:
    shares = variance_shares(np.array([[[1.0], [3.0]], [[5.0], [11.0]]]))
    assert shares is not None
    assert {source: share.eta for source, share in shares.items()} == pytest.approx(
        {0: 36 / 56, 1: 16 / 56, "interactions": 4 / 56}
    )
    assert {share.omega for share in shares.values()} == {None}


def test_equal_values_have_no_variance_to_divide() -> None:
    assert variance_shares(np.full((2, 3, 2), 0.1)) is None


def test_an_axis_without_effect_has_no_negative_share() -> None:
    shares = variance_shares(np.array([[0.0, 2.0], [2.0, 0.0]]))
    assert shares is not None
    assert shares[0].omega == 0


@pytest.mark.parametrize("module", ["raybench.stats", "raybench.compare"])
def test_tables_are_made_without_heavy_libraries(module: str) -> None:
    heavy = ("torch", "ray", "matplotlib", "sklearn", "scipy")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
