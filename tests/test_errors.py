from __future__ import annotations

import pytest

from raybench.errors import DataError, SuiteError, UserError, WeightsError, did_you_mean

NAMES = ["model1", "small_cnn", "CIFAR10"]


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("modle1", "; did you mean 'model1'?"),
        ("smallcnn", "; did you mean 'small_cnn'?"),
        ("cifar-10", "; did you mean 'CIFAR10'?"),
        ("SMALL_CNN", "; did you mean 'small_cnn'?"),
        ("resnet", "; known: model1, small_cnn, CIFAR10"),
        ("", "; known: model1, small_cnn, CIFAR10"),
    ],
)
def test_the_nearest_name_is_suggested_or_all_are_listed(word: str, hint: str) -> None:
    assert did_you_mean(word, NAMES) == hint


def test_names_need_not_be_words() -> None:
    assert did_you_mean("0.0l", [0.01, True]) == "; did you mean '0.01'?"


def test_nothing_is_said_where_nothing_is_known() -> None:
    assert did_you_mean("model1", []) == ""
    assert did_you_mean("model1", iter(())) == ""


@pytest.mark.parametrize("kind", [SuiteError, DataError, WeightsError])
def test_every_error_of_the_user_is_one_kind(kind: type[Exception]) -> None:
    assert issubclass(kind, UserError)
