"""What cannot be is named with its reason; what can be, however it was rounded, is never named."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies as st

from raybench import suite as suites
from raybench.check import (
    DISAGREEMENT,
    RARE,
    check_row,
    check_rows,
    check_suite,
    check_trials,
    mean_bounds,
    read,
    sameness,
    squares_bounds,
)
from raybench.grid import Trial
from raybench.records import TrialRow
from raybench.suite import Suite

IMPOSSIBLE = (
    "model=model3, augmentation=aug1: std 0.010 cannot be: five values from 0.634 to 0.686 with mean 0.653 have a"
    " standard deviation of at least 0.017 (n in the denominator) or 0.019 (n-1)"
)
SAME = (
    "accuracy {} in all {} rows: runs that differ agree so in fewer than one of 1,000 tables; what was measured may"
    " never have changed"
)


def said(findings: Sequence[object]) -> list[str]:
    return [str(finding) for finding in findings]


# ---------------------------------------------------------------------------------------------------------------------
# Rows of statistics


@pytest.fixture(scope="module")
def table1() -> Suite:
    return suites.load(suites.find_suite("table1"))


@pytest.mark.parametrize("test_size", [None, 10_000])
def test_the_impossible_row_of_table_1_is_found_and_no_other(table1: Suite, test_size: int | None) -> None:
    assert len(table1.reference) == 9
    assert said(check_suite(table1, test_size)) == [IMPOSSIBLE]


def test_the_impossible_row_by_hand() -> None:
    """Four values at 0.6335 + x and one at 0.6855 have the mean 0.6535 with x = 0.012: too high for a minimum there, so
    one stands at 0.6345 and three lie between; the deviations are 0.019, 0.032 and three of -0.0043."""
    low, mean, high = (read(text, "") for text in ("0.634", "0.653", "0.686"))
    assert low and mean and high
    smallest, _ = squares_bounds(5, low, high, mean)
    assert smallest == pytest.approx(0.019**2 + 0.032**2 + 3 * (0.013 / 3) ** 2, rel=1e-3)
    assert math.sqrt(smallest / 5) == pytest.approx(0.0170, abs=5e-5)
    assert math.sqrt(smallest / 4) == pytest.approx(0.0190, abs=5e-5)


def test_a_zero_that_yaml_loses_counts() -> None:
    """0.690 as the number 0.69 is not 0.685 to 0.695: its column has three decimals."""
    rows = [
        {"model": "a", "n": 3, "mean": 0.69, "min": 0.69, "max": 0.694, "std": 0.002},
        {"model": "b", "n": 3, "mean": 0.701, "min": 0.689, "max": 0.712, "std": 0.011},
    ]
    assert said(check_rows(rows)) == [
        "model=a: mean 0.690 cannot be: three values from 0.690 to 0.694 have one of 0.691 to 0.693"
    ]
    assert check_rows(rows[:1]) == []


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"mean": "60.92"}, "mean 60.92 cannot be: it is a share, between 0 and 1"),
        ({"min": "-0.2", "max": "0.5"}, "min -0.2 cannot be: it is a share, between 0 and 1"),
        ({"mean": "0.653", "min": "0.655"}, "min 0.655 is above mean 0.653"),
        ({"mean": "0.653", "max": "0.651"}, "mean 0.653 is above max 0.651"),
        ({"min": "0.653", "max": "0.651"}, "min 0.653 is above max 0.651"),
        ({"std": "-0.1"}, "std -0.1 cannot be: it is never negative"),
        ({"n": 1, "mean": "0.80", "std": "0.01"}, "std 0.01 cannot be: n is 1, and one value has no spread"),
        (
            {"n": 1, "mean": "0.80", "max": "0.82"},
            "mean 0.80 and max 0.82 cannot both be: n is 1, and one value is both",
        ),
        (
            {"n": 5, "mean": "0.80", "min": "0.70", "max": "0.81"},
            "mean 0.80 cannot be: five values from 0.70 to 0.81 have one of 0.72 to 0.79",
        ),
        (
            {"n": 5, "mean": "0.500", "std": "0.012", "min": "0.490", "max": "0.510"},
            "std 0.012 cannot be: five values from 0.490 to 0.510 with mean 0.500 have a standard deviation of at most"
            " 0.009 (n in the denominator) or 0.011 (n-1)",
        ),
        (
            {"n": 2, "mean": "0.500", "std": "0.012", "min": "0.490", "max": "0.510"},
            "std 0.012 cannot be: two values from 0.490 to 0.510 with mean 0.500 have a standard deviation of"
            " 0.009 to 0.011 (n in the denominator) or 0.013 to 0.015 (n-1)",
        ),
        (
            {"n": 20, "mean": "0.90", "std": "0.40"},
            "std 0.40 cannot be: 20 values with mean 0.90 have a standard deviation of at most 0.30 (n in the"
            " denominator) or 0.31 (n-1)",
        ),
        (
            {"n": 2, "std": "0.01", "max": "0.60", "min": "0.50"},
            "std 0.01 cannot be: two values from 0.50 to 0.60 have a standard deviation of at least 0.04 (n in the"
            " denominator) or 0.06 (n-1)",
        ),
        (
            {"std": "0.05", "min": "0.80", "max": "0.82"},
            "std 0.05 cannot be: values from 0.80 to 0.82 have one of at most 0.02",
        ),
        ({"n": 5, "epochs": "25.7"}, "epochs 25.7 cannot be: in five runs 128 epochs are 25.6 and 129 epochs are 25.8"),
    ],
)
def test_reasons(row: dict[str, Any], reason: str) -> None:
    assert check_row(row) == [reason]


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"n": None, "mean": float("nan"), "min": np.float32("nan"), "max": pd.NA},
        {"n": 5.0, "mean": 0.5},  # a count in a column with gaps
        {"n": 0, "mean": None, "planned": 3},
        {"n": 1, "mean": "0.8303"},
        {"n": 1, "mean": "0.83", "std": "0.00", "min": "0.83", "max": "0.83", "epochs": "12"},
        {"n": 3, "mean": "0.69", "std": "0.00", "min": "0.69", "max": "0.69"},  # all within rounding
        {"n": 2, "mean": "0.500", "std": "0.010", "min": "0.490", "max": "0.510"},  # n in the denominator
        {"n": 2, "mean": "0.500", "std": "0.014", "min": "0.490", "max": "0.510"},  # n - 1
        {"n": 5, "std": "0.01"},
        {"n": 5, "mean": "0.65", "min": "0.63", "max": "0.68", "std": "0.01"},  # too coarse to say
        {"mean": "0.653", "std": "0.010", "min": "0.634", "max": "0.686"},  # no n
        {"n": 5, "mean": "1.0", "min": "1.0", "max": "1.0", "std": "0.0"},
        {"n": 3, "min": "0.63", "mean": "0.634", "max": "0.634"},  # decimals that differ
    ],
)
def test_rows_that_can_be(row: dict[str, Any]) -> None:
    assert check_row(row, test_size=10_000) == []


def test_a_stated_denominator_is_held_to() -> None:
    row = {"n": 2, "mean": "0.500", "std": "0.010", "min": "0.490", "max": "0.510"}
    assert check_row(row, ddof=(0,)) == []
    assert check_row(row, ddof=(1,)) == [
        "std 0.010 cannot be: two values from 0.490 to 0.510 with mean 0.500 have a standard deviation of at least"
        " 0.013 (n-1 in the denominator)"
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"n": 1, "mean": "0.85"}, "mean 0.85 cannot be: of 36 images 30 right are 0.83 and 31 right are 0.86"),
        (
            {"n": 3, "mean": "0.850"},
            "mean 0.850 cannot be: of 3 x 36 images 91 right are 0.843 and 92 right are 0.852",
        ),
        ({"min": "0.85"}, "min 0.85 cannot be: of 36 images 30 right are 0.83 and 31 right are 0.86"),
        ({"n": 1, "mean": "0.86"}, None),
        ({"n": 3, "mean": "0.85"}, None),
        ({"mean": "0.85"}, None),  # of how many runs?
    ],
)
def test_accuracies_are_whole_numbers_of_images(row: dict[str, Any], reason: str | None) -> None:
    assert check_row(row, test_size=36) == ([reason] if reason else [])


def test_many_decimals_say_which_test_set_it_was() -> None:
    """Report 002 prints 0.6916222: 62,246 of CINIC-10's 90,000 images, and no number of 10,000."""
    row = {"n": 1, "mean": "0.6916222"}
    assert check_row(row, test_size=90_000) == []
    assert check_row(row, test_size=10_000) == [
        "mean 0.6916222 cannot be: of 10,000 images 6,916 right are 0.6916000 and 6,917 right are 0.6917000"
    ]


def test_a_float_of_32_bits_is_a_whole_number_too() -> None:
    for right in range(0, 90_000, 997):
        text = f"{np.float32(right / 90_000):.8f}"
        assert check_row({"n": 1, "mean": text}, test_size=90_000) == []


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(
    st.integers(1, 100_000).flatmap(
        lambda images: st.tuples(st.just(images), st.lists(st.integers(0, images), min_size=1, max_size=8))
    ),
    st.integers(1, 6),
    st.sampled_from([0, 1]),
    st.data(),
)
def test_no_sample_is_named_however_it_is_rounded(
    sample: tuple[int, list[int]], decimals: int, ddof: int, data: st.DataObject
) -> None:
    images, right = sample
    if data.draw(st.booleans()):  # close together, as accuracies are
        right = [min(images, right[0] + value % 7) for value in right]
    row = printed(np.array(right) / images, decimals, ddof)
    missing = data.draw(st.sets(st.sampled_from(["n", "mean", "std", "min", "max"])))
    row = {key: value for key, value in row.items() if key not in missing}
    as_numbers = {key: float(value) if isinstance(value, str) else value for key, value in row.items()}
    assert check_row(row, test_size=images) == []
    assert check_row(as_numbers, test_size=images) == []  # fewer decimals than were printed
    assert check_row(as_numbers, decimals=dict.fromkeys(row, decimals), test_size=images) == []
    assert check_rows([as_numbers, {**as_numbers, "mean": None}], test_size=images) == []


def printed(values: np.ndarray, decimals: int, ddof: int) -> dict[str, Any]:
    """Return the row that a report prints of ``values``."""
    std = values.std(ddof=ddof) if len(values) > ddof else 0.0
    numbers = {"mean": values.mean(), "std": std, "min": values.min(), "max": values.max()}
    return {"n": len(values), **{key: f"{number:.{decimals}f}" for key, number in numbers.items()}}


@hypothesis.settings(deadline=None, max_examples=80)
@hypothesis.given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.integers(1, 3))
def test_the_bounds_are_those_of_a_search(values: list[float], decimals: int) -> None:
    """Over a grid of all extremes and means that print so, the formulas' samples come as near as the grid is fine."""
    n, row = len(values), printed(np.array(values), decimals, 1)
    low, mean, high = (read(row[key], key) for key in ("min", "mean", "max"))
    assert low and mean and high
    least, most = squares_bounds(n, low, high, mean)
    a, b = np.meshgrid(np.linspace(low.low, low.high, 33), np.linspace(high.low, high.high, 33))
    searched = [sums for c in np.linspace(mean.low, mean.high, 33) for sums in samples(n, a.ravel(), b.ravel(), c)]
    hypothesis.assume(searched)
    found = min(smallest for smallest, _ in searched), max(largest for _, largest in searched)
    assert least <= found[0] + 1e-12 and found[1] <= most + 1e-12
    unit = 10.0**-decimals  # in the std, the grid misses less than a tenth of it
    if n > 2:
        assert math.sqrt(found[0] / n) - math.sqrt(least / n) < 0.1 * unit
        assert math.sqrt(most / n) - math.sqrt(found[1] / n) < 0.1 * unit


def samples(n: int, a: np.ndarray, b: np.ndarray, c: float) -> list[tuple[float, float]]:
    """Return the smallest and largest sums of squares over real samples with extremes (a, b) and mean c."""
    a, b = a[a < b], b[a < b]
    others = n * c - a - b
    fits = (others >= (n - 2) * a - 1e-12) & (others <= (n - 2) * b + 1e-12)
    a, b, others = a[fits], b[fits], others[fits]
    if not len(a):
        return []
    inner = others / max(1, n - 2)
    equal = (a - c) ** 2 + (b - c) ** 2 + (n - 2) * (inner - c) ** 2
    at_b = np.floor((others - (n - 2) * a) / (b - a) + 1e-9).clip(0, n - 2)  # how many of the others
    odd = others - at_b * b - (n - 3 - at_b) * a
    apart = (1 + at_b) * (b - c) ** 2 + (n - 2 - at_b) * (a - c) ** 2 + np.where(at_b < n - 2, (odd - c) ** 2, 0)
    return [(float(equal.min()), float(apart.max()))]


def test_what_lies_beyond_the_bounds_is_named() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        values = rng.normal(0.8, 0.01, int(rng.integers(2, 9)))
        row = printed(values, 4, 1)
        low, mean, high = (read(row[key], key) for key in ("min", "mean", "max"))
        assert low and mean and high
        assert mean_bounds(len(values), low, high)[0] <= values.mean() <= mean_bounds(len(values), low, high)[1]
        least, most = squares_bounds(len(values), low, high, mean)
        for wrong in (math.sqrt(least / len(values)) - 2e-4, math.sqrt(most / (len(values) - 1)) + 2e-4):
            assert len(check_row({**row, "std": f"{wrong:.4f}"})) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Rows that are all the same


def optuna(*accuracies: str, n: int | None = None) -> list[dict[str, Any]]:
    return [{"study": "vgg", "trial": i, "n": n, "mean": accuracy} for i, accuracy in enumerate(accuracies)]


@pytest.mark.parametrize("n", [None, 1])
def test_ten_equal_accuracies_are_named(n: int | None) -> None:
    assert said(check_rows(optuna(*["0.8303"] * 10, n=n), test_size=10_000)) == [
        f"study=vgg: {SAME.format('0.8303', 'ten')}"
    ]


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (optuna("0.8303", "0.8303"), False),  # two agree by chance
        (optuna("0.8303", "0.8303", "0.8303"), True),
        (optuna("0.8303", "0.8303", "0.8303", "0.8303", "0.8304"), False),
        (optuna(*["0.83"] * 10), False),  # two decimals: networks of one kind
        (optuna(*["0.830"] * 3), False),
        (optuna(*["1.0000"] * 5), False),  # nothing left to differ in
        (optuna(*["0.8303"] * 10, n=5), False),  # means
        ([], False),
    ],
)
def test_when_equal_accuracies_are_named(rows: list[dict[str, Any]], named: bool) -> None:
    assert bool(check_rows(rows)) == named


def test_a_small_test_set_makes_equal_accuracies_likely() -> None:
    accuracy = read("0.9500", "")
    assert accuracy
    assert [sameness([accuracy] * k, 360) is not None for k in (3, 4, 5, 6)] == [False, False, True, True]
    assert sameness([accuracy] * 5, 20) is None


def test_chance_is_as_often_as_the_rule_says() -> None:
    """Three runs that toss a coin for 400 of 10,000 images each, so that two disagree about 200 (`DISAGREEMENT`)."""
    rng = np.random.default_rng(0)
    right = rng.binomial(400, 0.5, (200_000, 3))
    agree = (right == right[:, :1]).all(1).mean()
    scatter = math.sqrt(DISAGREEMENT / 2 * 10_000)
    assert agree == pytest.approx((1 / (math.sqrt(2 * math.pi) * scatter)) ** 2 / math.sqrt(3), rel=0.2)
    assert agree < RARE


# ---------------------------------------------------------------------------------------------------------------------
# Measured trials


def trial_row(seed: int, right: int, **others: Any) -> TrialRow:
    row = TrialRow(
        trial_id=f"t{seed}",
        suite="s",
        dataset="digits",
        model="mlp",
        augmentation="none",
        seed=seed,
        lr=1e-3,
        axes={"width": "wide"},
        status="completed",
        epochs=3,
        best_epoch=2,
        selection="val_accuracy",
        validation="size 100",
        train_accuracy=0.987654,
        val_accuracy=right / 100,
        test_accuracy=right / 500,
        validation_images=100,
        test_images=500,
        settings=json.dumps({"train": {"epochs": 3, "smoke": False}}),
    )
    return dataclasses.replace(row, **others)


def frame(*rows: TrialRow) -> pd.DataFrame:
    flat = [dataclasses.asdict(row) for row in rows]
    return pd.DataFrame([{**values, **values.pop("axes")} for values in flat])


FAILED = {
    **dict.fromkeys(("train_accuracy", "val_accuracy", "test_accuracy", "best_epoch", "test_images")),
    "epochs": 0,
}


def test_trials_that_can_be() -> None:
    rows = [trial_row(seed, right) for seed, right in enumerate((60, 63, 59, 60))]
    assert check_trials(frame(*rows, trial_row(9, 0, status="failed", **FAILED))) == []
    assert check_trials(frame(*rows[:1])) == []
    assert check_trials(frame(*rows).iloc[:0]) == []


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (
            {"test_accuracy": 0.1234},
            "test_accuracy 0.123400 cannot be: of 500 images 61 right are 0.122000 and 62 right are 0.124000",
        ),
        (
            {"val_accuracy": 0.125},
            "val_accuracy 0.125000 cannot be: of 100 images 12 right are 0.120000 and 13 right are 0.130000",
        ),
        ({"test_accuracy": 61.2}, "test_accuracy 61.200000 cannot be: it is a share, between 0 and 1"),
        ({"train_accuracy": -0.5}, "train_accuracy -0.500000 cannot be: it is a share, between 0 and 1"),
        ({"epochs": 4}, "trained four epochs where 3 were planned"),
        ({"best_epoch": 4}, "best_epoch 4 cannot be: it trained three epochs"),
        ({"test_accuracy": None}, "completed, but has no test_accuracy"),
    ],
)
def test_trials_that_cannot_be(wrong: dict[str, Any], reason: str) -> None:
    rows = frame(trial_row(0, 60), trial_row(1, 63, axes={"width": "narrow"}, **wrong))
    assert said(check_trials(rows)) == [f"seed=1, width=narrow, trial_id=t1: {reason}"]


def test_trials_that_all_agree_are_odd() -> None:
    rows = [trial_row(seed, 60) for seed in range(6)]
    assert said(check_trials(frame(*rows))) == [SAME.format("0.120000", "six")]
    smoke = json.dumps({"train": {"epochs": 3, "smoke": True}})
    assert check_trials(frame(*[dataclasses.replace(row, settings=smoke) for row in rows])) == []
    assert check_trials(frame(*rows[:5], trial_row(6, 61))) == []


def test_stored_trials_of_a_run_can_be_checked(
    load_suite: Callable[..., tuple[Suite, list[Trial]]], tmp_path: Path
) -> None:
    """The columns are those that the store gives, axes and all."""
    from raybench.records import Outcome
    from raybench.store import Store

    suite, _ = load_suite(
        "{name: s, dataset: {name: digits}, model: mlp, compare: {width: {wide: {train.epochs: 3}, narrow: null}}}"
    )
    store = Store(tmp_path, suite)
    store.open({})
    for seed, right in enumerate((60, 61, 65)):
        store.write(Outcome(row=trial_row(seed, right)))
    store.write(Outcome(row=trial_row(3, 62, test_accuracy=0.123)))
    store.close()
    rows, damaged = store.read()
    assert damaged == []
    assert said(check_trials(rows)) == [
        "seed=3, trial_id=t3: test_accuracy 0.123000 cannot be: of 500 images 61 right are 0.122000 and 62 right are"
        " 0.124000"
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The reports themselves


def rows_between(text: str, start: str, end: str, separator: str) -> list[list[str]]:
    lines = text.partition(start)[2].partition(end)[0].splitlines()
    return [[cell.strip() for cell in line.strip(separator).split(separator)] for line in lines if separator in line]


def test_table_1_of_report_000_is_that_of_the_suite(report_text: Callable[[str], str], table1: Suite) -> None:
    cells = rows_between(report_text("000"), "**Table 1:**", "**Figure 4:**", "\t")[1:]
    names = ("mean", "std", "min", "max", "epochs")
    rows: list[dict[str, Any]] = [
        {"row": name, "n": 5, **dict(zip(names, numbers, strict=True))} for name, *numbers in cells
    ]
    keys = ("n", *names)
    assert [[float(row[key]) for key in keys] for row in rows] == [
        [ref[key] for key in keys] for ref in table1.reference
    ]
    assert said(check_rows(rows, test_size=10_000)) == [
        IMPOSSIBLE.replace("model=model3, augmentation=aug1", "row=model 3 aug 1")
    ]


def test_figure_8_of_report_001(report_text: Callable[[str], str]) -> None:
    cells = rows_between(report_text("001"), "Results Table:", "Figure 8.", "\t")[-10:]
    rows = [{"trial": trial, "mean": row[-1]} for trial, row in enumerate(cells)]
    assert said(check_rows(rows, test_size=10_000)) == [SAME.format("0.8303", "ten")]


def test_tables_of_report_003(report_text: Callable[[str], str]) -> None:
    text = report_text("003").replace("<br>", " ")
    ladder = rows_between(text, "| Model# | Accuracy | Loss", "Table 1-", "|")
    transfer = rows_between(text, "| Model                |", "Table 2 -", "|")
    for rows, count, of in ((ladder, 11, 50_000), (transfer, 3, 50_000)):
        numbers = [row for row in rows if row[1].replace(".", "").isdigit()]
        assert len(numbers) == count
        for column, images in ((1, of), (3, 10_000)):
            accuracies = [{"model": row[0], "n": 1, "mean": row[column]} for row in numbers]
            assert check_rows(accuracies, test_size=images) == []


@pytest.mark.parametrize(("table", "count"), [("Table 1: Test accuracies", 6), ("Table 2: Accuracy of the OOD", 2)])
def test_tables_of_report_004(report_text: Callable[[str], str], table: str, count: int) -> None:
    rows = rows_between(report_text("004"), table, "\nTable" if count == 6 else "mals or", "|")
    shares = [(name, value) for name, value in rows if value.replace(".", "").isdigit()]
    assert len(shares) == count
    # percent with two decimals: shares with four
    accuracies = [{"row": name, "n": 1, "mean": f"{float(value) / 100:.4f}"} for name, value in shares]
    assert check_rows(accuracies, test_size=10_000) == []
    assert all("is a share" in finding.reason for finding in check_rows([{"mean": value} for _, value in shares]))
