"""Patience and the learning rate, beside Keras' rules written down again."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybench.rates import Patience, Rate, is_better
from raybench.records import EpochRow
from raybench.settings import EarlyStopping, TrainSettings


def row(epoch: int = 1, **metrics: float) -> EpochRow:
    losses = dict.fromkeys(("train_loss", "train_accuracy", "val_loss", "val_accuracy"), 0.5)
    return EpochRow(trial_id="t", epoch=epoch, lr=0.1, **{**losses, **metrics})


def test_better_is_strictly_better() -> None:
    assert is_better("val_loss", 0.1, 0.2) and not is_better("val_loss", 0.2, 0.2)
    assert is_better("val_accuracy", 0.2, 0.1) and not is_better("val_accuracy", 0.1, 0.2)
    assert not is_better("val_loss", math.nan, 0.2) and is_better("val_loss", 0.2, math.nan)
    assert not is_better("val_loss", math.nan, math.nan)


def keras_stops_after(values: list[float], patience: int, min_delta: float, is_loss: bool) -> int:
    """tf.keras.callbacks.EarlyStopping, written down again: return how many epochs are trained."""
    best, wait = (math.inf if is_loss else -math.inf), 0
    for epoch, value in enumerate(values, 1):
        wait += 1
        if (value + min_delta < best) if is_loss else (value - min_delta > best):
            best, wait = value, 0
        elif wait >= patience:
            return epoch
    return len(values)


@given(
    st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=1, max_size=20),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.01, 0.05, 0.1]),
    st.sampled_from(["val_accuracy", "val_loss", "train_accuracy", "train_loss"]),
)
def test_patience_is_that_of_keras(values: list[float], patience: int, min_delta: float, metric: str) -> None:
    rule = Patience(EarlyStopping(metric=metric, patience=patience, min_delta=min_delta))
    stops = next((n for n, v in enumerate(values, 1) if rule.is_exhausted_by(row(n, **{metric: v}))), len(values))
    assert stops == keras_stops_after(values, patience, min_delta, metric.endswith("loss"))


@pytest.mark.parametrize(
    ("metric", "values", "patience", "min_delta", "stops"),
    [
        ("val_accuracy", [0.1, 0.2, 0.2, 0.2, 0.3], 2, 0.0, 4),  # equal is no improvement
        ("val_accuracy", [0.10, 0.14, 0.18, 0.22, 0.26], 2, 0.05, None),  # 0.18 is 0.08 above the best that counted
        ("val_accuracy", [0.10, 0.12, 0.14, 0.16], 2, 0.1, 3),
        ("val_loss", [1.0, 1.1, 0.9, 0.95, 0.9], 2, 0.0, 5),
        ("val_loss", [1.0, math.nan, math.nan], 2, 0.0, 3),
        ("val_loss", [math.nan, 1.0, 0.9, 1.0, 1.0], 2, 0.0, 5),  # a number improves on NaN
        ("val_loss", [math.nan, math.nan], 2, 0.0, 2),
    ],
)
def test_patience(metric: str, values: list[float], patience: int, min_delta: float, stops: int | None) -> None:
    rule = Patience(EarlyStopping(metric=metric, patience=patience, min_delta=min_delta))
    exhausted = [n for n, value in enumerate(values, 1) if rule.is_exhausted_by(row(n, **{metric: value}))]
    assert exhausted[:1] == ([] if stops is None else [stops])


@given(
    st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=1, max_size=20),
    st.integers(1, 3),
    st.sampled_from([0.0, 1e-4, 0.1]),
    st.sampled_from([0.0, 0.003, 0.02]),
    st.sampled_from(["val_accuracy", "val_loss"]),
)
def test_plateau_is_that_of_keras(
    values: list[float], patience: int, min_delta: float, min_lr: float, metric: str
) -> None:
    """tf.keras.callbacks.ReduceLROnPlateau without cooldown, written down again."""
    schedule = {"name": "plateau", "metric": metric, "patience": patience, "min_delta": min_delta, "min_lr": min_lr}
    rate = Rate(TrainSettings.model_validate({"lr": 0.01, "schedule": schedule}))
    is_loss, lr, wait = metric == "val_loss", 0.01, 0
    best = math.inf if is_loss else -math.inf
    for epoch, value in enumerate(values, 1):
        assert rate.next_step() == pytest.approx(lr)
        rate.end_epoch(row(epoch, **{metric: value}))
        if (value + min_delta < best) if is_loss else (value - min_delta > best):
            best, wait = value, 0
        else:
            wait += 1
            if wait >= patience and lr > min_lr:
                lr, wait = max(lr * 0.1, min_lr), 0
