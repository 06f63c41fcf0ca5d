from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from raybench import metrics
from raybench.cli.tables import summarize
from raybench.errors import UserError
from raybench.figures.results import check_metric, titled
from raybench.inference import Question
from raybench.metrics import METRICS, RULES, chosen_epochs, find_metric, macro_f1, values_of
from raybench.records import EpochRow, Predictions, TrialRow
from raybench.summarize import View

EPOCHS = pd.DataFrame(
    [
        ("a", 2, 0.75, 1.0),
        ("a", 1, 0.5, 2.0),
        ("a", 3, 0.75, 0.5),
        ("b", 1, None, None),
        ("b", 2, 0.25, 3.0),
        ("c", 1, 0.9, 0.1),
        ("c", 2, 0.8, 0.2),
        ("c", 2, 0.8, 0.2),  # a file that is being merged is read twice
    ],
    columns=["trial_id", "epoch", "test_accuracy", "test_loss"],
)
STORED = pd.DataFrame(
    {"trial_id": ["c", "a", "b", "none"], "test_accuracy": [0.9, 0.5, 0.25, np.nan], "epochs": [2, 3, 2, 0]}
)


def values(*arguments: Any, **options: Any) -> list[float | None]:
    found = values_of(STORED, *arguments, **options)
    assert list(found.index) == list(STORED.index) and found.dtype == float
    return [None if np.isnan(value) else value for value in found]


# ---------------------------------------------------------------------------------------------------------------------
# Rules


def test_the_rules_choose_by_hand() -> None:
    assert chosen_epochs(EPOCHS, "last")["epoch"].to_dict() == {"a": 3, "b": 2, "c": 2}
    # The first of equal ones; b was not tested after its first epoch, which may have been better.
    assert chosen_epochs(EPOCHS, "peek")["epoch"].to_dict() == {"a": 2, "c": 1}


def test_a_metric_is_that_of_the_epoch_that_the_rule_chose() -> None:
    assert values("accuracy") == [0.9, 0.5, 0.25, None]
    assert values("accuracy", "last", EPOCHS) == [0.8, 0.75, 0.25, None]
    assert values("accuracy", "peek", EPOCHS) == [0.9, 0.75, None, None]
    assert values("loss", "peek", EPOCHS) == [0.1, 1.0, None, None], "at the epoch of the best accuracy"
    assert values("loss", "last", EPOCHS) == [0.2, 0.5, 3.0, None]
    assert values("epochs") == [2, 3, 2, 0]


def test_no_epochs_at_all() -> None:
    assert values("accuracy", "last", EPOCHS[:0]) == values("accuracy", "peek", EPOCHS[:0]) == [None] * 4


def test_rules_have_names() -> None:
    assert [metrics.find_rule(rule) for rule in RULES] == ["best_val", "last", "peek"]
    with pytest.raises(UserError, match=r"^--rule pek: no such rule; did you mean 'peek'\?$"):
        metrics.find_rule("pek")


@pytest.mark.parametrize(
    ("metric", "rule", "message"),
    [
        ("macro_f1", "last", "--rule last: predictions, and so macro_f1, are stored of the epoch of best_val alone"),
        ("epochs", "peek", "--rule peek: epochs is of the whole trial, not of an epoch: leave --rule out"),
    ],
)
def test_what_cannot_be_asked_for(metric: str, rule: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        metrics.check(metric, rule)


def test_a_metric_is_found_by_its_name_and_by_its_column() -> None:
    assert [find_metric(word) for word in ("accuracy", "test_accuracy", "test_loss", "val_loss")] == [
        *("accuracy", "accuracy", "loss", "val_loss")
    ]
    assert [find_metric(METRICS[name].column) for name in metrics.STORED] == [*metrics.STORED]
    for word, meant in (("acuracy", "accuracy"), ("test_acuracy", "test_accuracy"), ("val_acuracy", "val_accuracy")):
        with pytest.raises(UserError, match=rf"^--metric {word}: no such metric; did you mean '{meant}'\?$"):
            find_metric(word)
    with pytest.raises(
        UserError, match=r"^--metric macro_f1: is computed from predictions, by raybench summarize alone$"
    ):
        find_metric("macro_f1", metrics.STORED)


@pytest.mark.parametrize("name", metrics.STORED)
def test_every_command_knows_every_stored_metric(name: str) -> None:
    for word in (name, METRICS[name].column):
        assert View(metric=word).metric == Question(metric=word).metric == name
        assert check_metric(word) == METRICS[name].column
        assert titled(word) == f"{METRICS[name].title}\n({METRICS[name].unit})"


def test_what_a_metric_is_and_where_it_matters_the_rule() -> None:
    assert metrics.says("val_loss", "val_accuracy") == (
        "val_loss: mean loss over the validation images; selection rule: the weights of the epoch with the best"
        " val_accuracy"
    )
    assert metrics.says("epochs", "val_accuracy") == "epochs: number trained"


def test_every_metric_is_a_stored_column_and_named_by_the_help() -> None:
    for name, metric in METRICS.items():
        metrics.check(name, "best_val")
        assert (metric.column in TrialRow.__dataclass_fields__) == (name != "macro_f1")
        if metric.by_epoch:
            metrics.check(name, "peek")
            assert metric.column in EpochRow.__dataclass_fields__
        assert format(1234.5, metric.format)
    (option,) = (option for option in summarize.params if option.name == "metric")
    assert re.findall(r"\w+", option.help.replace(" or ", " ")) == list(METRICS)


# ---------------------------------------------------------------------------------------------------------------------
# Macro F1


def test_macro_f1_by_hand() -> None:
    # Class 0: 2 right of 2, said 3 times: F1 4/5. Class 1: 1 of 2, said once: 2/3. Class 2: never said: 0. No class 3.
    label, prediction = np.array([0, 0, 1, 1, 2, 4]), np.array([0, 0, 1, 0, 4, 4])
    assert macro_f1(label, prediction) == pytest.approx((4 / 5 + 2 / 3 + 0 + 2 / 3) / 4)
    assert macro_f1(np.array([3]), np.array([3])) == 1.0
    assert macro_f1(np.array([0]), np.array([1])) == 0.0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_macro_f1_is_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    label, prediction = np.array(pairs, dtype=np.int16).T
    assert macro_f1(label, prediction) == pytest.approx(f1_score(label, prediction, average="macro", zero_division=0))


def test_macro_f1_is_read_some_trials_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "AT_ONCE", 3)
    asked: list[list[str]] = []

    def predictions(trial_ids: Any) -> dict[str, Predictions]:
        asked.append(list(trial_ids))
        label = np.array([0, 1], np.int16)
        one = Predictions(index=label, label=label, prediction=label, logits=np.zeros((2, 2), np.float16))
        return {trial_id: one for trial_id in asked[-1] if trial_id != "b"}

    assert values("macro_f1", predictions=predictions) == [1.0, 1.0, None, 1.0]
    assert asked == [["c", "a", "b"], ["none"]]
