"""Dotted paths: short and whole, checked key by key, set without changing what was there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raybench.dotted import assign, flatten, full_path, wrong_key
from raybench.settings import TrialSettings


def test_short_names() -> None:
    assert [full_path(name) for name in ("lr", "batch_size", "optimizer.name", "train.lr", "model.lr", "variant")] == (
        ["train.lr", "train.batch_size", "train.optimizer.name", "train.lr", "model.lr", "variant"]
    )


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("train.optimizer.momentum", ""),
        ("train.early_stopping.patience", ""),
        ("train.elastic_net.lambda", ""),
        ("train.schedule.factor", ""),
        ("model.anything.at.all", ""),
        ("augmentation", ""),
        ("dataset.validation", ""),
        ("trian", "unknown key; did you mean 'train'?"),
        ("train.optimizer.momentun", "unknown key; did you mean 'momentum'?"),
        ("train.optimiser.momentum", "unknown key 'optimiser'; did you mean 'optimizer'?"),
        ("augmentation.shift", "augmentation is given as a whole, not key by key"),
        ("dataset.validation.size", "dataset.validation is given as a whole, not key by key"),
        ("train.epochs.x", "train.epochs is given as a whole, not key by key"),
    ],
)
def test_paths_are_checked_key_by_key(path: str, problem: str) -> None:
    assert wrong_key(TrialSettings, path) == problem


@pytest.mark.parametrize(
    ("path", "value", "flat"),
    [
        ("train", {"epochs": 3, "optimizer": {"momentum": 0.9}}, {"train.epochs": 3, "train.optimizer.momentum": 0.9}),
        ("train", {"optimizer.momentum": 0.9}, {"train.optimizer.momentum": 0.9}),
        ("train.optimizer", {"name": "sgd", "momentum": 0.9}, {"train.optimizer": {"name": "sgd", "momentum": 0.9}}),
        ("train.optimizer", "sgd", {"train.optimizer": "sgd"}),
        ("train.early_stopping", {}, {"train.early_stopping": {}}),
        ("train.early_stopping", None, {"train.early_stopping": None}),
        ("train.schedule", {}, {"train.schedule": {}}),
        ("train.optimizer", {}, {}),
        ("dataset", {}, {}),
        ("dataset", "digits", {"dataset": "digits"}),
        ("train", {"optimizer": {}, "early_stopping": {}}, {"train.early_stopping": {}}),
        ("model", {"hidden": [8], "head": {"x": 1}}, {"model.hidden": [8], "model.head": {"x": 1}}),
        ("model", {"name": "mlp", "hidden": [8]}, {"model": {"name": "mlp", "hidden": [8]}}),
        ("augmentation", {"shift": 0.1}, {"augmentation": {"shift": 0.1}}),
        ("dataset", {"validation": {"size": 5}, "seed": 1}, {"dataset.validation": {"size": 5}, "dataset.seed": 1}),
    ],
)
def test_nested_overrides_become_paths(path: str, value: Any, flat: dict[str, Any]) -> None:
    assert flatten(path, value) == flat


def test_assigning_changes_a_copy_and_the_deeper_path_last() -> None:
    before = {"model": {"name": "mlp", "hidden": [8]}, "train": {"optimizer": {"name": "sgd"}, "lr": 1}}
    kept = json.dumps(before)
    after = assign(before, {"model.hidden": [4], "train.optimizer.momentum": 0.9, "model": "small_cnn", "train.lr": 2})
    assert after == {
        "model": {"name": "small_cnn", "hidden": [4]},
        "train": {"optimizer": {"name": "sgd", "momentum": 0.9}, "lr": 2},
    }
    assert json.dumps(before) == kept
