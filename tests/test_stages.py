"""Searches: the points of a study, the winners, what confirms them, and what prunes what."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from made import SEARCHED as SEARCH
from made import plan, suite

from raybench.errors import SuiteError
from raybench.grid import Trial, sizes
from raybench.plan import Choice, expand
from raybench.search import Ended
from raybench.stages import is_done, pruner, start_order


def ids(text: str, *sets: str) -> set[str]:
    return {trial.id for trial in plan(text, *sets)}


DRAWN = """
name: s
dataset: {name: digits}
compare: {model: [mlp, small_cnn]}
search: {lr: {range: [1e-5, 1], log: true}, optimizer: [adam, sgd]}
draw: {points: 7, at_once: 3}
repeat: {seed: 2}
train: {epochs: 9}
"""


def told(trials: list[Trial], values: dict[str, float | None] | None = None) -> dict[str, Ended]:
    """All trials have ended: with the value of their name, with none as failed, else with 0.5."""
    ended = {}
    for trial in trials:
        value = (values or {}).get(trial.name, 0.5)
        ended[trial.id] = Ended("failed" if value is None else "completed", value, 9, trial.draw, trial.labels)
    return ended


def stages(trials: list[Trial]) -> list[str]:
    return [f"{trial.stage} {trial.name}" for trial in trials]


def test_a_search_is_made_with_the_first_seed_and_its_winners_with_all() -> None:
    read = suite(SEARCH)
    first = expand(read)
    assert stages(first) == [f"search {m}/{lr}/s7" for m in ("mlp", "small_cnn") for lr in (1.0, 0.1, 0.01)]
    assert expand(read, ended=told(first[:-1])) == first, "as long as one is open, there is no winner"
    ended = told(first, {"mlp/0.1/s7": 0.9, "small_cnn/0.01/s7": 0.6})
    both = expand(read, ended=ended)
    assert stages(both) == [
        *("search mlp/1.0/s7", "confirm mlp/0.1/s7", "search mlp/0.01/s7"),
        *("search small_cnn/1.0/s7", "search small_cnn/0.1/s7", "confirm small_cnn/0.01/s7"),
        *("confirm mlp/0.1/s3", "confirm small_cnn/0.01/s3", "confirm mlp/0.1/s5", "confirm small_cnn/0.01/s5"),
    ]
    assert {trial.id for trial in first} < {trial.id for trial in both}, "the search's trial is one of the winner's"
    assert {trial.id for trial in both} < ids(SEARCH + "confirm: none"), "the stage is no part of an id"
    assert Choice(read).planned() == len(both) == 10
    assert sizes(read) == "model 2 x lr 3 searched with one seed, each winner with seed 3"


def test_losses_are_won_by_less_and_a_cell_without_a_finished_trial_has_no_winner() -> None:
    read = suite(SEARCH, "train.best=val_loss")
    values = {"mlp/0.1/s7": 0.4, "small_cnn/1.0/s7": None, "small_cnn/0.1/s7": None, "small_cnn/0.01/s7": None}
    both = expand(read, ended=told(expand(read), values))
    assert [name for name in stages(both) if name.startswith("confirm")] == [f"confirm mlp/0.1/s{s}" for s in (7, 3, 5)]


def test_a_pruned_trial_wins_nothing() -> None:
    read = suite(SEARCH + "prune: asha")
    ended = told(expand(read), {"mlp/1.0/s7": 0.9})
    lost = next(trial.id for trial in expand(read) if trial.name == "mlp/1.0/s7")
    ended[lost] = Ended("pruned", 0.9, 1)
    assert "confirm mlp/0.1/s7" in stages(expand(read, ended=ended)), "of equals the first"


def test_a_search_of_one_point_is_none() -> None:
    assert {trial.stage for trial in plan(SEARCH, "search.lr=[1]")} == {"grid"}
    assert sizes(suite(SEARCH, "search.lr=[1]")) == "model 2 x lr 1 x seed 3"


def test_without_confirmation_the_search_has_all_seeds() -> None:
    trials = plan(SEARCH + "confirm: none")
    assert len(trials) == 18 and {trial.stage for trial in trials} == {"search"}


def finish(text: str, value: Any, *sets: str) -> tuple[list[Trial], dict[str, Ended], int]:
    """End all trials with the values of their labels; return them, what is known of them, and the number of rounds."""
    read, ended, rounds = suite(text, *sets), {}, 0
    while todo := [trial for trial in expand(read, ended=ended) if trial.id not in ended]:
        ended |= told(todo, {trial.name: value(trial.labels) for trial in todo})
        rounds += 1
    return expand(read, ended=ended), ended, rounds


def near(labels: dict[str, Any]) -> float:
    return -abs(labels["lr"] - 0.01)


def test_points_are_drawn_round_by_round() -> None:
    read = suite(DRAWN)
    first = expand(read)
    assert [(trial.cell, trial.draw, trial.stage) for trial in first] == [
        ((model,), number, "search") for number in range(3) for model in ("mlp", "small_cnn")
    ]
    assert expand(read) == first
    assert len({(trial.labels["lr"], trial.labels["optimizer"]) for trial in first}) == 6, "cells have their own points"
    half = expand(read, ended=told([trial for trial in first if trial.cell == ("mlp",)]))
    assert Counter(trial.cell for trial in half) == {("mlp",): 6, ("small_cnn",): 3}
    trials, _, rounds = finish(DRAWN, near)
    assert rounds == 4, "three of points and one that confirms"
    assert Counter(trial.stage for trial in trials) == {"search": 12, "confirm": 4}
    assert Choice(read).planned() == len(trials) == 16
    for model in ("mlp", "small_cnn"):
        mine = [trial for trial in trials if trial.cell == (model,)]
        best = max(mine, key=lambda trial: near(trial.labels))
        assert {trial.point for trial in mine if trial.stage == "confirm"} == {best.point}
        assert sorted(trial.draw for trial in mine if trial.draw is not None and trial.seed == 0) == list(range(7))


def test_a_study_goes_on_from_what_is_stored() -> None:
    trials, ended, _ = finish(DRAWN, near)
    search = [trial for trial in trials if trial.seed == 0]
    for kept in range(len(search) + 1):
        part = {trial.id: ended[trial.id] for trial in search[:kept]}
        again, whole = expand(suite(DRAWN), ended=part), {trial.id for trial in trials}
        assert {trial.id for trial in again} <= whole


def test_stored_points_count_even_if_another_sampler_would_draw_others(monkeypatch: pytest.MonkeyPatch) -> None:
    trials, ended, _ = finish(DRAWN, near)
    monkeypatch.setattr("raybench.stages.draw", lambda *args, **options: pytest.fail("all were drawn already"))
    assert expand(suite(DRAWN), ended=ended) == trials


def test_more_points_go_on_with_a_study_and_other_settings_begin_one() -> None:
    trials, ended, _ = finish(DRAWN, near)
    drawn = [trial.id for trial in trials if trial.draw is not None]
    more = expand(suite(DRAWN, "draw.points=9"), ended=ended)
    assert set(drawn) < {trial.id for trial in more} and len(more) == 2 * 9
    other = expand(suite(DRAWN, "train.epochs=8"), ended=ended)
    assert len(other) == 6 and not {trial.id for trial in other} & set(ended)


def test_a_study_ends_where_its_space_does() -> None:
    text = DRAWN.replace("{range: [1e-5, 1], log: true}", "{range: [1, 1.0002]}").replace("[adam, sgd]", "[adam]")
    trials, _, _ = finish(text, lambda labels: 0.5)
    assert Counter(trial.stage for trial in trials)["confirm"] == 4
    assert len({trial.id for trial in trials}) == len(trials) < 16, "1 and 1.0002 are all that four digits tell apart"


def test_a_stored_point_is_not_drawn_twice() -> None:
    """Also where another `at_once` made other rounds."""
    text = DRAWN.replace("{range: [1e-5, 1], log: true}", "[1, 2, 3, 4]").replace("points: 7", "points: 3")
    _, ended, _ = finish(text, lambda labels: 0.5)
    read = suite(text, "draw.points=8", "draw.at_once=2")
    while todo := [trial for trial in expand(read, ended=ended) if trial.id not in ended]:
        ended |= told(todo)
    search = [trial for trial in expand(read, ended=ended) if trial.seed == 0]
    assert len({trial.id for trial in search}) == len(search) == 16


def test_points_outside_a_narrower_range_are_of_another_study() -> None:
    _, ended, _ = finish(DRAWN, near)
    trials = expand(suite(DRAWN, "search.lr={range: [0.01, 0.02], log: true}"), ended=ended)
    assert all(0.01 <= float(trial.labels["lr"]) <= 0.02 for trial in trials)


def test_pruned_trials_are_done_only_where_they_prune() -> None:
    read = suite(SEARCH + "prune: asha")
    trials = expand(read)
    ended = told(trials) | {trials[0].id: Ended("pruned", 0.1, 1)}
    assert is_done(read, trials[0], ended) and not is_done(suite(SEARCH), trials[0], ended)
    assert not is_done(read, replace(trials[0], stage="confirm"), ended) and not is_done(read, trials[0], {})


@pytest.mark.parametrize("text", [SEARCH + "prune: asha", DRAWN + "prune: asha"])
def test_brackets_keep_their_order_when_winners_are_known(text: str) -> None:
    read = suite(text)
    trials, _, _ = finish(text, near)
    search = [replace(trial, stage="search") for trial in trials if trial.seed == int(read.axis("seed").labels[0])]
    before = {bracket.order[0]: bracket.order for bracket in pruner(read, search).brackets}
    after = {bracket.order[0]: bracket.order for bracket in pruner(read, trials).brackets}
    assert {first: order for first, order in after.items() if len(order) > 1} == before


def test_a_failed_point_is_drawn_again_by_its_number() -> None:
    read = suite(DRAWN)
    first = expand(read)
    done = told(first[1:])
    assert expand(read, ended=done)[:1] == first[:1], "an open trial of the round is the same as before"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("draw: {points: 7, at_once: 3}", ""),
            "4:10: search.lr: a range is drawn from: say how often, as in draw: {points: 10}",
        ),
        (("points: 7", "points: 0"), "5:8: draw.points: 0 is not right: must be greater than or equal to 1"),
        (
            ("1e-5, 1]", "1e-5, -1]"),
            "4:10: search.lr: range must go from a smaller to a larger number, not from 1e-05 to -1",
        ),
        (("[1e-5, 1], log: true", "[-1, 1]"), "4:15: search.lr.range: -1.0 is not right: must be greater than 0"),
        (
            ("train: {epochs: 9}", "zip: [[lr, optimizer]]"),
            "7:7: zip.0: axes of search are drawn one by one: they cannot go in step",
        ),
        (
            ("train: {epochs: 9}", "include: [{model: mlp, lr: 1, optimizer: adam}]"),
            "7:11: include.0: the points of search are drawn: none can be listed",
        ),
        (
            ("train: {epochs: 9}", "exclude: [{optimizer: adam}]"),
            "7:11: exclude.0: the points of search are drawn: none can be listed",
        ),
        (
            ("search: {lr: {range: [1e-5, 1], log: true}, optimizer: [adam, sgd]}", "prune: asha"),
            "5:1: draw: there is nothing to draw: name axes under search",
        ),
        (
            (
                "search: {lr: {range: [1e-5, 1], log: true}, optimizer: [adam, sgd]}\ndraw: {points: 7, at_once: 3}",
                "prune: asha\nsearch: {lr: [1]}",
            ),
            "4:1: prune: there is nothing to prune: only trials that differ in an axis of search"
            " compete, and none does",
        ),
        (
            ("train: {epochs: 9}", "trials: 14"),
            " trials: says 14, but the axes give 16 (model 2 x 7 drawn points searched with one seed,"
            " each winner with seed 2)",
        ),
        (
            ("search: {lr: {range: [1e-5, 1], log: true}, optimizer: [adam, sgd]}", "search: {optimizer: [adam, sgd]}"),
            "5:8: draw.points: there are only 2 different points to draw",
        ),
        (
            ("compare: {model: [mlp, small_cnn]}", "compare: {model: [mlp], v: {a: {lr: 1}, b: {lr: 2}}}"),
            "4:10: search.lr: sets train.lr, which the axis v sets too",
        ),
        (
            ("optimizer: [adam, sgd]", "v: {a: {train.best: val_loss}, b: {}}"),
            " search: points of one cell must be judged by one measure, not by val_accuracy and val_loss of",
        ),
        (("points: 7", "points: 7, first: 1"), "5:19: draw.first: unknown key; known: points, at_once"),
        (
            ("train: {epochs: 9}", "prune: {name: asha, first: 20}"),
            " prune: first: 20 leaves no epoch to decide after: mlp/",
        ),
    ],
)
def test_a_mistake_in_a_search(change: tuple[str, str], message: str) -> None:
    with pytest.raises(SuiteError) as refused:
        expand(suite(DRAWN.strip().replace(*change)))
    assert str(refused.value).removeprefix("s.yaml:").startswith(message)


def test_trials_that_prune_each_other_start_in_an_order_of_their_own() -> None:
    read = suite(SEARCH + "prune: asha\nconfirm: none")
    trials = expand(read)
    order = start_order(read, trials)
    assert sorted(order, key=lambda t: t.id) == sorted(trials, key=lambda t: t.id) and order != trials
    assert [trial.seed for trial in order] == [7] * 6 + [3] * 6 + [5] * 6
    assert [trial.cell[0] for trial in order[:6]] == ["mlp", "small_cnn"] * 3, "cells take turns"
    assert start_order(read, trials[::-1])[::6] != [] and [t.id for t in start_order(read, trials[:6])] == [
        t.id for t in order[:6]
    ]
    brackets = pruner(read, trials).brackets
    assert len(brackets) == 6 and all(bracket.order == sorted(bracket.order) for bracket in brackets)
    assert start_order(suite(SEARCH), expand(suite(SEARCH))) == expand(suite(SEARCH))


def test_nothing_is_pruned_without_a_rule_nor_in_a_smoke_run() -> None:
    assert pruner(suite(SEARCH), plan(SEARCH)).brackets == ()
    text = SEARCH + "prune: asha"
    assert pruner(suite(text, "train.smoke=true"), plan(text, "train.smoke=true")).brackets == ()
