"""Ranges, points that Optuna draws, and winners."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from raybench.dotted import first_complaint
from raybench.search import Ended, Point, Range, draw, maximises, size, winner

LR = Range(range=(1e-5, 1e-1), log=True)
WIDTH = Range(range=(16, 128), integer=True)
SPACE: dict[str, Any] = {"lr": LR, "width": WIDTH, "optimizer": ["adam", "sgd"]}


def ended(value: float | None, status: Any = "completed", epochs: int = 9) -> Ended:
    return Ended(status, value, epochs)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "is missing"),
        ({"range": [1]}, "[1] is not right: must be the smallest and the largest value, as [1e-5, 1e-1]"),
        ({"range": [2, 1]}, "range must go from a smaller to a larger number, not from 2 to 1"),
        ({"range": [0, 1], "log": True}, "range must begin above 0 with log, not at 0"),
        ({"range": [0.5, 2], "integer": True}, "range must have whole numbers with integer, not 0.5 and 2"),
        ({"range": [1, 2], "step": 1}, "unknown key; known: range, log, integer"),
        ({"range": ["a", 2]}, "'a' is not right: must be a number"),
    ],
)
def test_a_range_that_is_none(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError) as failed:
        Range.model_validate(given)
    assert first_complaint(failed.value, Range)[1] == complaint


def test_numbers_are_rounded_and_stay_inside() -> None:
    assert LR.rounded(0.00123456) == 0.001235
    assert Range(range=(0.12344, 1)).rounded(0.123441) == 0.12344
    assert [WIDTH.rounded(17), type(WIDTH.rounded(17))] == [17, int]
    assert WIDTH.ends == (16, 128) and all(type(end) is int for end in WIDTH.ends)


def test_points_lie_in_their_space_and_differ() -> None:
    points = draw(SPACE, [], 50, seed=0, maximise=True)
    assert len({tuple(point.items()) for point in points}) == len(points) == 50
    for point in points:
        assert list(point) == list(SPACE)
        assert 1e-5 <= point["lr"] <= 1e-1 and point["lr"] == float(f"{point['lr']:.4g}")
        assert point["width"] in range(16, 129) and type(point["width"]) is int
        assert point["optimizer"] in ("adam", "sgd")
    assert 5 < sum(float(point["lr"]) < 1e-3 for point in points) < 45, "even over the logarithm"


def test_the_same_history_draws_the_same_points_and_another_others() -> None:
    first = draw(SPACE, [], 5, seed=1, maximise=True)
    assert first == draw(SPACE, [], 5, seed=1, maximise=True) != draw(SPACE, [], 5, seed=2, maximise=True)
    told = [(point, ended(float(i))) for i, point in enumerate(first)]
    otherwise = [(point, ended(-float(i))) for i, point in enumerate(first)]
    second = draw(SPACE, told, 5, seed=1, maximise=True)
    assert second == draw(SPACE, told, 5, seed=1, maximise=True)
    assert second != draw(SPACE, otherwise, 5, seed=1, maximise=True)
    assert second == draw(SPACE, otherwise, 5, seed=1, maximise=False), "less of the opposite is more"
    assert not [point for point in second if point in first]


def distance(point: Point) -> float:
    return -abs(float(point["x"]) - 0.7)


@pytest.mark.parametrize("at_once", [1, 5])
def test_points_come_closer_to_the_best(at_once: int) -> None:
    """On average over 20 studies, the last points lie nearer to the optimum than the first, which are random."""
    space = {"x": Range(range=(0, 1))}
    early, late = 0.0, 0.0
    for study in range(20):
        history: list[tuple[Point, Ended]] = []
        for first in range(0, 25, at_once):
            points = draw(space, history, at_once, seed=1000 * study + first, maximise=True)
            history += [(point, ended(distance(point))) for point in points]
        early += sum(distance(point) for point, _ in history[:5])
        late += sum(distance(point) for point, _ in history[-10:]) / 2
    assert late > 0.7 * early


def test_failures_count_for_nothing_but_are_not_drawn_again() -> None:
    space = {"layers": [1, 2, 3]}
    history = [({"layers": 1}, ended(None, "failed")), ({"layers": 3}, ended(0.5, "pruned", 2))]
    assert draw(space, history, 1, seed=0, maximise=True) == [{"layers": 2}]
    assert draw(space, [*history, ({"layers": 2}, ended(float("inf")))][:2], 1, seed=3, maximise=False) == [
        {"layers": 2}
    ]


def test_a_space_without_a_further_point() -> None:
    space: dict[str, Any] = {"a": [1, 2], "b": Range(range=(1, 2), integer=True)}
    assert len(draw(space, [], 5, seed=0, maximise=True)) == size(space) == 4
    assert size(SPACE) == float("inf") and size({"width": WIDTH, "c": ["x"]}) == 113


def test_the_winner_has_the_best_mean_among_those_that_finished_most_often() -> None:
    assert winner({(1,): [0.5, 0.7], (2,): [0.9], (3,): [0.8, 0.3]}, maximise=True) == (1,)
    assert winner({(1,): [0.5, 0.7], (2,): [0.9], (3,): [0.8, 0.3]}, maximise=False) == (3,)
    assert winner({(1,): [], (2,): [0.1]}, maximise=True) == (2,)
    assert winner({(1,): [0.5], (2,): [0.5]}, maximise=True) == (1,), "of equals the first"
    assert winner({(1,): []}, maximise=True) is None


def test_what_is_better() -> None:
    assert [maximises(f"{split}_{kind}") for split in ("val", "train") for kind in ("accuracy", "loss")] == [
        True,
        False,
        True,
        False,
    ]
