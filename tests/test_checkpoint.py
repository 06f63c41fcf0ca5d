"""A trial that is interrupted and goes on ends with the numbers of one that never was."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raybench.checkpoint import Checkpoints
from raybench.data import Source, trial_data
from raybench.errors import UserError
from raybench.grid import Trial
from raybench.records import EpochRow, Outcome, computed
from raybench.trial import run_trial

MakeTrial = Callable[..., Trial]


class Killed(SystemExit):
    """As when the process is gone: nothing is caught."""


def run(trial: Trial, source: Source, checkpoints: Checkpoints | None = None, die_after: int | None = None) -> Outcome:
    def report(row: EpochRow) -> None:
        if row.epoch == die_after:
            raise Killed

    return run_trial(trial, trial_data(source, trial.typed().dataset), report=report, checkpoints=checkpoints)


def assert_same(one: Outcome, other: Outcome) -> None:
    assert computed(one.row) == computed(other.row)
    assert [computed(row) for row in one.epochs] == [computed(row) for row in other.epochs]
    assert one.predictions is not None and other.predictions is not None
    assert np.array_equal(one.predictions.logits, other.predictions.logits)


DROPOUT = {"name": "mlp", "hidden": [16], "dropout": 0.5}
CASES: dict[str, dict[str, Any]] = {
    "adam with dropout": {"model": DROPOUT},
    "sgd with momentum and decay": {"model": DROPOUT, "optimizer": {"name": "sgd", "momentum": 0.9, "decay": 0.01}},
    "rmsprop": {"optimizer": {"name": "rmsprop", "momentum": 0.5}},
    "batch norm and augmentation": {
        "model": {"name": "timm:resnet10t", "head": {}},
        "augmentation": [{"shift": 0.2}, "flip"],
    },
    "plateau": {"schedule": {"name": "plateau", "patience": 1, "min_delta": 0.5}, "lr": 0.03},
    "step": {"schedule": {"name": "step", "every": 2}},
    "early stopping": {"early_stopping": {"metric": "val_loss", "patience": 2, "min_delta": 0.2}, "epochs": 9},
    "phases": {
        "phases": [{"epochs": 2, "lr": 0.01, "trainable": "head"}, {"epochs": 3, "optimizer": {"name": "sgd"}}],
        "epochs": 5,
        "model": {"name": "mlp", "hidden": [16, 8]},
    },
    "validation on test images": {"dataset": {"validation": "test"}},
    "test every epoch, copies": {"test_every_epoch": True, "augmented_copies": 1, "augmentation": [{"noise": 0.1}]},
}


@pytest.mark.parametrize("case", CASES)
def test_it_ends_with_the_same_numbers(case: str, make_trial: MakeTrial, source: Source, tmp_path: Path) -> None:
    trial = make_trial(3, **{"epochs": 5, **CASES[case]})
    whole = run(trial, source)
    checkpoints = Checkpoints(str(tmp_path / "new" / "folder"), seconds=0)
    checkpoints.check()
    for die_after in (1, 2, 3, 4):
        if die_after <= len(whole.epochs):
            with pytest.raises(Killed):
                run(trial, source, checkpoints, die_after)
    seen: list[int] = []
    outcome = run_trial(
        trial,
        trial_data(source, trial.typed().dataset),
        report=lambda row: seen.append(row.epoch),
        checkpoints=checkpoints,
    )
    assert_same(outcome, whole)
    assert seen == list(range(1, len(whole.epochs) + 1)), "those of before are told again"


def test_it_really_goes_on(
    make_trial: MakeTrial, source: Source, tmp_path: Path, add_mlp: Callable[[str, Any], None]
) -> None:
    steps = []

    def counting(mlp: nn.Module, images: torch.Tensor) -> torch.Tensor:
        steps.append(1) if mlp.training else None
        return mlp(images)

    add_mlp("counting", counting)
    trial, checkpoints = make_trial(model="counting", epochs=4), Checkpoints(str(tmp_path), seconds=0)
    whole = run(trial, source)
    per_epoch = len(steps) // 4
    for die_after in (1, 3):
        steps.clear()
        with pytest.raises(Killed):
            run(trial, source, checkpoints, die_after)
        assert len(steps) == {1: 1, 3: 2}[die_after] * per_epoch
    steps.clear()
    assert_same(run(trial, source, checkpoints), whole)
    assert len(steps) == per_epoch


def test_python_and_numpy_draw_on(
    make_trial: MakeTrial, source: Source, tmp_path: Path, add_mlp: Callable[[str, Any], None]
) -> None:
    """Models from outside may draw from these."""
    import random

    def drawing(mlp: nn.Module, images: torch.Tensor) -> torch.Tensor:
        scale = 1 + random.random() + np.random.standard_normal() if mlp.training else 1.0
        return mlp(images) * scale

    add_mlp("drawing", drawing)
    trial, checkpoints = make_trial(model="drawing", epochs=4), Checkpoints(str(tmp_path), seconds=0)
    whole = run(trial, source)
    with pytest.raises(Killed):
        run(trial, source, checkpoints, 2)
    assert_same(run(trial, source, checkpoints), whole)


def test_a_short_trial_leaves_none(make_trial: MakeTrial, source: Source, tmp_path: Path) -> None:
    run(make_trial(), source, Checkpoints(str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_a_damaged_one_or_one_of_other_images_is_not_taken_up(
    make_trial: MakeTrial, source: Source, tmp_path: Path
) -> None:
    trial, checkpoints = make_trial(), Checkpoints(str(tmp_path), seconds=0)
    whole = run(trial, source)
    for damage in (lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"x" * 99):
        with pytest.raises(Killed):
            run(trial, source, checkpoints, 2)
        (file,) = tmp_path.iterdir()
        file.write_bytes(damage(file.read_bytes()))
        assert_same(run(trial, source, checkpoints), whole)
    other = Source(source.splits, source.classes, "another fingerprint")
    with pytest.raises(Killed):
        run(trial, other, checkpoints, 2)
    assert run(trial, source, checkpoints).row.test_accuracy == whole.row.test_accuracy


def test_nothing_in_a_checkpoint_is_run(make_trial: MakeTrial, source: Source, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "evil",)

    trial = make_trial()
    (tmp_path / f"{trial.id}-0.pt").write_bytes(pickle.dumps(Evil()))
    assert Checkpoints(str(tmp_path)).load(trial.id, 0, torch.device("cpu")) is None
    assert not (tmp_path / "evil").exists()


def test_dropped(make_trial: MakeTrial, source: Source, tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), seconds=0)
    run(make_trial(), source, checkpoints)
    (file,) = tmp_path.iterdir()
    checkpoints.drop("unknown", 2)
    checkpoints.drop(make_trial().id, 2)
    assert not file.exists()


def test_a_storage_that_fails_stops_no_trial(
    make_trial: MakeTrial, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, checkpoints = make_trial(epochs=4), Checkpoints(str(tmp_path), seconds=0)
    whole, save = run(trial, source), Checkpoints.save
    saves: list[int] = []

    def failing(self: Checkpoints, trial_id: str, rank: int, state: Any) -> None:
        saves.append(len(state["epochs"]))
        if len(saves) > 1:
            raise OSError("When uploading part for key\n  'x': timed out")
        save(self, trial_id, rank, state)

    monkeypatch.setattr(Checkpoints, "save", failing)
    with pytest.warns(UserWarning) as warned:
        assert_same(run(trial, source, checkpoints), whole)
    assert saves == [1, 2, 3, 4], "it is tried again"
    assert [str(warning.message) for warning in warned] == [
        f"its checkpoint in {tmp_path} is not kept: OSError: When uploading part for key 'x': timed out"
    ]
    assert len([*tmp_path.iterdir()]) == 1, "what was kept before is there"

    def unreachable(*_: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr(Checkpoints, "save", save)
    monkeypatch.setattr(Checkpoints, "load", unreachable)
    with pytest.warns(UserWarning, match=r"cannot be read, and the trial starts again: OSError: no route$"):
        assert_same(run(trial, source, checkpoints), whole)


def test_half_a_file_is_not_left_on_a_full_disk(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    (tmp_path / "x-0.pt").mkdir()  # nothing can be moved there
    with pytest.raises(OSError, match=r"x-0\.pt"):
        checkpoints.save("x", 0, {})
    assert [path.name for path in tmp_path.iterdir()] == ["x-0.pt"]


def test_a_folder_is_the_same_one_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("driver", "worker"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "driver")
    sent = pickle.dumps(Checkpoints("kept"))
    monkeypatch.chdir(tmp_path / "worker")
    checkpoints: Checkpoints = pickle.loads(sent)
    assert checkpoints == Checkpoints(str(tmp_path / "driver" / "kept"))
    checkpoints.check()
    assert (tmp_path / "driver" / "kept").is_dir() and not [*(tmp_path / "worker").iterdir()]
    assert Checkpoints("s3://bucket/kept").uri == "s3://bucket/kept"


def test_a_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^--storage .*/file: cannot be written: .*Cannot create directory"):
        Checkpoints(str(tmp_path / "file")).check()
    with pytest.raises(UserError, match=r"^--storage abc://x: cannot be written: Unrecognized filesystem type in URI"):
        Checkpoints("abc://x").check()
