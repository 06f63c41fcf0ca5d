"""What several test files make up and read off: rows of trials, suites, cells of a table, what a command prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raybench.grid import Trial
from raybench.plan import expand
from raybench.records import Predictions, TrialRow
from raybench.suite import Suite, build
from raybench.table import Table
from raybench.yamlfile import Complaints, parse_yaml


def row_of(trial: Trial, **columns: Any) -> TrialRow:
    """Return the row of a trial that was completed on a few digits, but for ``columns``."""
    row: dict[str, Any] = {
        "trial_id": trial.id,
        "suite": trial.suite,
        "stage": trial.stage,
        "dataset": "digits",
        "model": str(trial.labels.get("model", "mlp")),
        "augmentation": str(trial.labels.get("augmentation", "none")),
        "seed": trial.seed,
        "lr": trial.settings["train"]["lr"],
        "axes": dict(trial.labels),
        "status": "completed",
        "epochs": 4,
        "selection": "val_accuracy",
        "validation": "fraction 0.1",
        "train_images": 900,
        "validation_images": 100,
        "test_images": 500,
        "settings": json.dumps(trial.settings),
        "dataset_fingerprint": "0123456789abcdef",
        "device": "cpu",
        "raybench_version": "0.5.0",
        "torch_version": "2.13.0",
    }
    return TrialRow(**{**row, **columns})


def predicted(label: np.ndarray, prediction: np.ndarray, **others: Any) -> Predictions:
    """Return predictions of which each is as certain as the others."""
    index, logits = np.arange(len(label), dtype=np.int32), np.eye(3, dtype=np.float16)[prediction]
    return Predictions(**{"index": index, "label": label, "prediction": prediction, "logits": logits, **others})


def objects(table: Table) -> list[dict[str, Any]]:
    names = [column.name for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in table.rows]


class Result(NamedTuple):
    """How a command ended."""

    status: Any
    out: str
    err: str


Raybench = Callable[..., Result]
"""The fixture `raybench`."""


# Suites that several files look at

TWO_MODELS = """
name: small_test
about: 50 % of two models
dataset: {name: digits, validation: {size: 100}}
compare: {model: [model1, small_cnn], augmentation: [none]}
search: {lr: [1e-3]}
repeat: {seed: 3}
"""


def suite(text: str, *sets: str) -> Suite:
    """Return what ``s.yaml`` with this text would be."""
    document, marks = parse_yaml(text, "s.yaml")
    return build(document, Complaints("s.yaml", marks), Path(), sets)


def plan(text: str, *sets: str, **options: Any) -> list[Trial]:
    """Return the trials of such a suite, with the ``options`` of `expand`."""
    return expand(suite(text, *sets), **options)


ONE_MODEL = """
name: s
dataset: {name: digits}
model: mlp
confirm: none
"""
"""Axes are to be added."""
GRID = """
name: small
dataset: {name: digits, validation: {size: 100}}
compare:
  model: [mlp, small_cnn]
  augmentation: {none: none, mild: [flip, {shift: 0.1}]}
search: {lr: [1e-3, 1e-2]}
confirm: none
repeat: {seed: 2}
train: {epochs: 5, optimizer: sgd}
"""
SEARCHED = """
name: s
dataset: {name: digits}
compare: {model: [mlp, small_cnn]}
search: {lr: [1, 0.1, 0.01]}
repeat: {seed: [7, 3, 5]}
train: {epochs: 9}
"""
MANY_AXES = """
name: stored
dataset: {name: digits}
compare:
  model: [mlp, small_cnn]
  augmentation: [none]
  train.batch_size: [16, 32]
  train.optimizer.decay: [0, 0.5]
  train.smoke: [true, false]
  variant: {plain: {}, "2": {train.epochs: 2}}
search: {lr: [1e-3, 1e-2]}
confirm: none
repeat: {seed: 3}
"""
"""Axes of every type of column."""
SLASHES = """
name: s
dataset: {name: digits}
model: mlp
compare: {v: {x/y: {}, x: {lr: 0.1}}, w: {z: {}, y/z: {train.batch_size: 8}}}
repeat: {seed: 3}
"""
"""Two of the four cells are called x/y/z."""
