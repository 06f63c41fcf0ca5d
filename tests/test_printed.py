"""What a printed number stands for, and to how many decimals it was printed."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from raybench.errors import UserError
from raybench.printed import SLACK, count_of, decimals_of, not_a_share, not_whole, read, spelled
from raybench.suite import find_suite, load


def test_the_decimals_of_a_column_are_the_most_that_one_of_its_numbers_needs() -> None:
    reference = load(find_suite("table1")).reference
    columns = ("mean", "std", "min", "max", "epochs")
    assert decimals_of(reference, columns) == {"mean": 3, "std": 3, "min": 3, "max": 3, "epochs": 1}
    assert decimals_of([{"mean": 0.69}, {"mean": None}, {}], columns) == {"mean": 2}
    assert decimals_of([{"mean": "0.690"}, {"mean": 1}, {"mean": 1e-05}], ("mean",)) == {"mean": 5}
    assert decimals_of([{"mean": np.float64(0.25), "epochs": 40.0}], columns) == {"mean": 2, "epochs": 0}


def test_what_is_no_number_is_said_so() -> None:
    for value in ("A 96", [1], "inf", float("inf")):
        with pytest.raises(UserError, match=rf"^mean: {re.escape(repr(value))} is not a number$"):
            read(value, "mean")
    with pytest.raises(UserError, match=r"^n: 2.5 is not a whole number$"):
        count_of(2.5, "n")
    for missing in (None, float("nan"), pd.NA):
        assert read(missing, "mean") is None and count_of(missing, "n") is None


def test_a_number_stands_for_half_a_unit_to_either_side() -> None:
    number = read("0.690", "mean")
    assert number and (number.text, number.decimals) == ("0.690", 3)
    assert (number.low, number.high) == pytest.approx((0.6895, 0.6905), abs=2 * SLACK)
    assert number.low < 0.6895 and number.high > 0.6905, "either side rounds so"
    assert read(0.69, "mean", 3) == number != read(0.69, "mean")
    assert number.format(0.5, 0.5004, 0.6) == "0.500 to 0.600"
    assert number.whole(29) and not number.whole(30), "20 of 29 are 0.6897"
    assert number.beside(30, "right") == "20 right are 0.667 and 21 right are 0.700"


def test_which_shares_and_counts_are_named() -> None:
    percent, half = read("69.0", "mean"), read("0.50", "mean")
    assert percent and half
    assert not_a_share("mean", percent) == ["mean 69.0 cannot be: it is a share, between 0 and 1"]
    assert not_a_share("mean", half) == []
    assert not_whole("mean", half, 2) == not_whole("mean", half, 3, runs=2) == not_whole("mean", half, 3, None) == []
    assert not_whole("max", half, 3) == ["max 0.50 cannot be: of three images 1 right are 0.33 and 2 right are 0.67"]
    assert not_whole("mean", half, 13, runs=3) == [
        "mean 0.50 cannot be: of 3 x 13 images 19 right are 0.49 and 20 right are 0.51"
    ]
    assert [spelled(n, "row") for n in (0, 1, 12, 13, 1000)] == [
        "no rows",
        "one row",
        "twelve rows",
        "13 rows",
        "1,000 rows",
    ]
