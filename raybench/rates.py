"""The learning rate of every step, and when a metric has stopped improving."""

from __future__ import annotations

import math

from raybench.records import EpochRow
from raybench.settings import EarlyStopping, Schedule, TrainSettings


def is_better(metric: str, value: float, than: float, by: float = 0.0) -> bool:
    """Whether ``value`` improves on ``than`` by more than ``by``, as Keras computes it; any number improves on NaN."""
    if math.isnan(than):
        return not math.isnan(value)
    return value + by < than if metric.endswith("loss") else value - by > than


class Patience:
    """Keras' EarlyStopping: exhausted after ``patience`` epochs in a row without an improvement over ``min_delta``."""

    def __init__(self, settings: EarlyStopping | Schedule) -> None:
        self.settings, self.best, self.waited = settings, math.nan, 0

    def is_exhausted_by(self, row: EpochRow) -> bool:
        value = getattr(row, self.settings.metric)
        if is_better(self.settings.metric, value, self.best, self.settings.min_delta):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited >= self.settings.patience


class Rate:
    """The learning rate: what the schedule has made of ``lr``, times Keras' inverse-time decay.

    Step t, counted from 0, uses rate / (1 + decay * t).
    """

    def __init__(self, train: TrainSettings) -> None:
        self.train, self.schedule = train, train.schedule
        self.rate = self.last = train.lr
        self.steps = self.epochs = 0
        self.patience = Patience(train.schedule) if train.schedule else None

    def next_step(self) -> float:
        """Return the learning rate of the next step, and count it."""
        self.last = self.rate / (1 + self.train.optimizer.decay * self.steps)
        self.steps += 1
        return self.last

    def end_epoch(self, row: EpochRow) -> None:
        """Let the schedule see an epoch that has ended."""
        self.epochs += 1
        if self.schedule is None or self.patience is None:
            return
        if self.schedule.name == "step":
            self.rate = self.train.lr * self.schedule.factor ** (self.epochs // self.schedule.every)
        elif self.patience.is_exhausted_by(row):  # Keras' ReduceLROnPlateau
            self.patience.waited = 0
            self.rate = min(self.rate, max(self.rate * self.schedule.factor, self.schedule.min_lr))
