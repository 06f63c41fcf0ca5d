"""What the user chooses of a suite: some values, the first trials, a search cut short; kept, and read again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from made import GRID as SMALL
from made import ONE_MODEL as HEAD
from made import SEARCHED as SEARCH
from made import plan, suite

from raybench.errors import SuiteError
from raybench.plan import Choice, restore, snapshot
from raybench.search import Ended


def names(text: str, *sets: str, **options: Any) -> list[str]:
    return [trial.name for trial in plan(text, *sets, **options)]


@pytest.mark.parametrize(
    ("only", "left"),
    [
        ({"lr": ["1e-3"]}, ["mlp/0.001/s0", "small_cnn/0.001/s0", "mlp/0.001/s1", "small_cnn/0.001/s1"]),
        ({"lr": ["0.001"], "seed": ["1"]}, ["mlp/0.001/s1", "small_cnn/0.001/s1"]),
        ({"model": ["mlp"], "lr": ["0.01"], "seed": ["1.0"]}, ["mlp/0.01/s1"]),
        ({"model": ["mlp", "small_cnn"], "lr": ["0.01"], "seed": ["0"]}, ["mlp/0.01/s0", "small_cnn/0.01/s0"]),
    ],
)
def test_only_some_values(only: dict[str, list[str]], left: list[str]) -> None:
    text = HEAD + "compare: {model: [mlp, small_cnn]}\nsearch: {lr: [1e-3, '1e-2']}\nrepeat: {seed: 2}\ntrials: 8"
    assert names(text, only=only) == left
    whole = {trial.name: trial.id for trial in plan(text)}
    assert all(whole[trial.name] == trial.id for trial in plan(text, only=only))


def test_only_reaches_truth_values_and_included_points() -> None:
    text = HEAD + "search: {train.test_every_epoch: [true, false], lr: [1]}\n"
    text += "include: [{train.test_every_epoch: true, lr: 7}]"
    assert names(text, only={"train.test_every_epoch": ["true"]}) == ["True/1.0/s0", "True/7.0/s0"]
    assert names(text, only={"lr": ["7"]}) == ["True/7.0/s0"]


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ({"modle": ["mlp"]}, "--only modle: is no axis of s; did you mean 'model'?"),
        ({"model": ["mpl"]}, "--only model=mpl: no such value; did you mean 'mlp'?"),
        ({"lr": ["0.1"]}, "--only lr=0.1: no such value; did you mean '0.01'?"),
        ({"seed": ["7"]}, "--only seed=7: no such value; known: 0, 1"),
        ({"model": ["mlp"], "lr": ["0.001"]}, "s.yaml: no point of the grid is left by --only"),
    ],
)
def test_only_refuses_what_is_not_there(only: dict[str, list[str]], message: str) -> None:
    text = HEAD + "compare: {model: [mlp, small_cnn]}\nsearch: {lr: [1e-3, 1e-2]}\nrepeat: {seed: 2}\n"
    with pytest.raises(SuiteError) as error:
        plan(text + "exclude: [{model: mlp, lr: 1e-3}]", only=only)
    assert str(error.value) == message


def test_a_limit_cuts_the_end() -> None:
    everything = names(SMALL)
    assert [names(SMALL, limit=limit) for limit in (1, 5, 99)] == [everything[:1], everything[:5], everything]
    assert names(SMALL, only={"seed": ["1"]}, limit=1) == ["mlp/none/0.001/s1"]


def test_a_search_can_be_cut() -> None:
    read = suite(SEARCH)
    chosen = Choice(read, {"model": ["mlp"], "seed": ["3", "5"]})
    first = chosen.trials({})
    assert [trial.name for trial in first] == ["mlp/1.0/s7", "mlp/0.1/s7", "mlp/0.01/s7"], "whatever is chosen"
    both = chosen.trials({trial.id: Ended("completed", 0.5, 9) for trial in first})
    assert [(trial.stage, trial.name) for trial in both[3:]] == [("confirm", "mlp/1.0/s3"), ("confirm", "mlp/1.0/s5")]
    assert chosen.planned() == 5 and chosen.seeds() == [3, 5]
    assert Choice(read, limit=4).planned() == len(Choice(read, limit=4).trials({})) == 4
    again = restore(json.loads(json.dumps(snapshot(chosen))), "suite.json")
    assert again.trials({}) == chosen.trials({}) and again.planned() == 5


def test_what_ran_is_read_though_a_column_took_the_name_of_its_axis() -> None:
    document = {"name": "s", "dataset": {"name": "digits"}, "model": "mlp"}
    document |= {"compare": {"precision": {"low": {}, "high": {"lr": 0.1}}}}
    kept = {"source": "s.yaml", "document": document, "sets": [], "only": {}, "limit": None}
    assert [trial.name for trial in restore(kept, "suite.json").trials({})] == ["low/s0", "high/s0"]


def test_drawn_values_are_not_chosen() -> None:
    with pytest.raises(SuiteError, match=r"^--only lr=1: the values of lr are drawn, not chosen$"):
        plan(SEARCH.replace("[1, 0.1, 0.01]", "{range: [0.01, 1]}") + "draw: {points: 3}", only={"lr": ["1"]})
