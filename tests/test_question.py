"""Questions and their answers, on numbers made by hand; the tables made of them are in test_inference.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from raybench import stats
from raybench.errors import UserError
from raybench.question import Family, Question, Sample, contrast, mean_of, name_of, number_or_none, single
from raybench.stats import Compared

FIRST = Sample((0, 1, 2), np.array([0.50, 0.52, 0.54]))
SECOND = Sample((2, 0, 3), np.array([0.60, 0.51, 0.57]))


def test_each_test_takes_the_seeds_that_it_is_for() -> None:
    assert contrast(FIRST, SECOND, Question()) == stats.welch(FIRST.values, SECOND.values)
    shared = [0.50, 0.54], [0.51, 0.60]  # seeds 0 and 2
    assert contrast(FIRST, SECOND, Question(test="paired")) == stats.paired_t(*shared)
    assert contrast(FIRST, SECOND, Question(test="sign-flip")) == stats.sign_flip(*shared)


def test_over_images_both_cells_need_the_answers_to_the_same_ones() -> None:
    asked = Question(over="images", interval="bootstrap")
    right = np.array([[True] * 15 + [False] * 5])
    one = Sample((0,), np.array([0.75]), right, images=1)
    other = Sample((0,), np.array([0.25]), ~right, images=1)
    assert single(one, other, asked) and not single(one, other, Question())
    exact, drawn = stats.mcnemar(right[0], ~right[0]), contrast(one, other, asked)
    assert (drawn.p, drawn.difference) == (exact.p, -0.5)
    assert contrast(one, FIRST, asked).why == "different test images"
    assert contrast(one, Sample((0,), other.values, ~right, images=2), asked).why == "different test images"
    assert contrast(one, Sample((), np.array([])), asked).why == "no predictions"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"metric": "val_acuracy"}, "--metric val_acuracy: no such metric; did you mean 'val_accuracy'?"),
        (
            {"over": "images", "metric": "val_loss", "interval": "bootstrap"},
            "--metric val_loss: --over images compares the answers to single test images",
        ),
        ({"over": "images", "test": "paired"}, "--test paired: is a test over seeds, not with --over images"),
        ({"over": "both", "interval": "t"}, "--interval t: is over seeds; with --over both it is bootstrap"),
    ],
)
def test_questions_that_do_not_fit(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        Question(**asked)
    assert str(error.value) == message


def test_verdicts() -> None:
    family = Family((Compared(1, p=0.01), Compared(-1, p=0.001), Compared(1, p=0.2), Compared(1, why="x")), 0.05)
    assert family.verdicts("up", "down") == ["up", "down", "not told apart", "cannot tell: x"]
    assert (family.tested, family.notes()) == (3, [])
    assert Family((), 0.05).verdicts("up", "down") == []


def test_a_correction_whose_smallest_p_is_the_level_cannot_tell() -> None:
    """250 bootstraps, whose smallest p is 0.0002: after Holm's correction 0.05, which is not below the level."""
    found = tuple(Compared(1, p=0.0002, smallest=0.0002) for _ in range(250))
    for count, verdict, notes in (
        (249, "up", []),
        (
            250,
            "cannot tell: 250 comparisons",
            [
                "after Holm's correction for 250 comparisons this test has no p below 0.05: compare fewer cells, or use"
                " more seeds"
            ],
        ),
    ):
        family = Family(found[:count], 0.05)
        assert {*family.verdicts("up", "down")} == {verdict}
        assert family.notes() == notes


def test_what_tables_hold() -> None:
    assert name_of(("mlp", None, 0.1)) == "mlp/–/0.1"
    assert (mean_of(np.array([0.25, 0.75])), mean_of(np.array([]))) == (0.5, None)
    assert [number_or_none(value) for value in (None, math.nan, np.float64(0.5))] == [None, None, 0.5]
