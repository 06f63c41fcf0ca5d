"""One trial's life: every failure becomes a row, finished rows say where they come from, fitted statistics are kept."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raybench import augment, models
from raybench.data import Source, TrialData, trial_data
from raybench.errors import DataError, UserError, WeightsError
from raybench.grid import Trial
from raybench.records import EpochRow, Outcome, TrialRow, computed
from raybench.suite import Suite
from raybench.train import Diverged, Training
from raybench.trial import error_class, failed, fit_augmentation, run_trial

MakeTrial = Callable[..., Trial]
AddModel = Callable[[str, Any], None]
LoadSuite = Callable[..., tuple[Suite, list[Trial]]]


def data_for(trial: Trial, source: Source) -> TrialData:
    return trial_data(source, trial.typed().dataset)


def run(trial: Trial, source: Source, **options: Any) -> Outcome:
    return run_trial(trial, data_for(trial, source), **options)


# ---------------------------------------------------------------------------------------------------------------------
# Failures


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (MemoryError(), "out_of_memory", "MemoryError:"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out_of_memory", "OutOfMemoryError: CUDA out of memory."),
        (
            torch.AcceleratorError("CUDA error: out of memory"),
            "out_of_memory",
            "AcceleratorError: CUDA error: out of memory",
        ),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory", "RuntimeError: CUDA error: out of memory"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "out_of_memory",
            "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        ),
        (
            RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
            "out_of_memory",
            "RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        ),
        (
            torch.distributed.DistBackendError("NCCL error\nLast error:\nCuda failure 2 'out of memory'"),
            "out_of_memory",
            "DistBackendError: NCCL error Last error: Cuda failure 2 'out of memory'",
        ),
        (RuntimeError("CUDA error: invalid argument"), "error", "RuntimeError: CUDA error: invalid argument"),
        (Diverged("no longer finite"), "diverged", "Diverged: no longer finite"),
        (DataError("no images"), "data", "DataError: no images"),
        (WeightsError("no weights"), "weights", "WeightsError: no weights"),
        (ValueError("two\n  lines\tof it"), "error", "ValueError: two lines of it"),
        (KeyError("missing"), "error", "KeyError: 'missing'"),
        (ZeroDivisionError("x" * 5000), "error", f"ZeroDivisionError: {'x' * 981}"),
        (SystemExit(3), "error", "SystemExit: 3"),
    ],
)
def test_what_a_model_raises_becomes_a_row(
    error: BaseException, expected: str, text: str, make_trial: MakeTrial, source: Source, add_mlp: AddModel
) -> None:
    steps = itertools.count(1)

    def faulty(mlp: nn.Module, images: torch.Tensor) -> torch.Tensor:
        if mlp.training and next(steps) == 5:  # in its second epoch
            raise error
        return mlp(images)

    add_mlp("faulty", faulty)
    reported: list[EpochRow] = []
    outcome = run(make_trial(model="faulty"), source, report=reported.append)
    row = outcome.row
    assert (row.status, row.error_class, row.error, row.epochs) == ("failed", expected, text, 1)
    assert row.traceback is not None and row.traceback.startswith("Traceback (most recent call last):")
    assert "raise error\n" in row.traceback and "test_trial.py" in row.traceback
    assert list(outcome.epochs) == reported and len(reported) == 1
    assert outcome.predictions is None
    assert row.best_epoch is None and row.test_accuracy is None and row.train_seconds is None
    assert row.wall_seconds is not None and row.device is not None


def test_memory_that_is_not_there(make_trial: MakeTrial, source: Source, add_model: AddModel) -> None:
    """Torch's CPU allocator raises a plain RuntimeError."""

    def huge(shape: models.Shape, classes: int) -> nn.Module:
        return nn.Linear(2**30, 2**30)

    add_model("huge", huge)
    row = run(make_trial(model="huge"), source).row
    assert (row.status, row.error_class, row.epochs) == ("failed", "out_of_memory", 0)


def test_an_error_before_the_first_epoch(make_trial: MakeTrial, source: Source) -> None:
    outcome = run(make_trial(model={"name": "mlp", "hidden": [0]}), source)
    assert outcome.row.error == (
        "UserError: model 'mlp' (hidden=[0]) for images of 8x8: hidden must be a list of layer widths such as"
        " [128, 64], not [0]"
    )
    assert (outcome.row.status, outcome.row.epochs, outcome.epochs) == ("failed", 0, ())


def test_a_trial_that_broke_the_gpu_has_its_row(
    make_trial: MakeTrial, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every further call fails then, that which gives memory back too."""

    def broken(*_: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", broken)
    monkeypatch.setattr(Training, "finish", broken)
    row = run(make_trial(), source).row
    assert (row.status, row.error) == ("failed", "RuntimeError: CUDA error: device-side assert triggered")
    assert row.parameters and row.host


def test_a_long_traceback_keeps_its_end() -> None:
    def deep(n: int) -> None:
        if not n:
            raise ValueError("at the bottom")
        (deep if n % 2 else lambda m: deep(m))(n - 1)

    row = planned_row_of_nothing()
    with pytest.raises(ValueError) as caught:
        deep(400)
    found = failed(row, caught.value).traceback
    assert found is not None and len(found) == 20_000 and found.endswith("ValueError: at the bottom\n")


def planned_row_of_nothing() -> TrialRow:
    return TrialRow(
        trial_id="t",
        suite="s",
        dataset="d",
        model="m",
        augmentation="a",
        seed=0,
        lr=0.1,
        status="failed",
        selection="val_accuracy",
        validation="test",
        settings="{}",
    )


def test_causes_do_not_change_the_class() -> None:
    """A wrapped error counts as what it was raised as."""
    try:
        try:
            raise DataError("inner")
        except DataError as inner:
            raise RuntimeError("outer") from inner
    except RuntimeError as outer:
        assert error_class(outer) == "error"
        assert "DataError: inner" in str(failed(planned_row_of_nothing(), outer).traceback)


@pytest.mark.parametrize("error", [SystemExit, ValueError, KeyboardInterrupt, MemoryError])
def test_what_report_raises_passes_through(error: type[BaseException], make_trial: MakeTrial, source: Source) -> None:
    """Ray stops a trial with a SystemExit out of its report."""
    told = []

    def report(row: EpochRow) -> None:
        told.append(row.epoch)
        if row.epoch == 2:
            raise error

    with pytest.raises(error):
        run(make_trial(), source, report=report)
    assert told == [1, 2]


def test_ctrl_c_in_a_debugger_is_no_failed_trial(make_trial: MakeTrial, source: Source, add_model: AddModel) -> None:
    def interrupted(shape: models.Shape, classes: int) -> nn.Module:
        raise KeyboardInterrupt

    add_model("interrupted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(make_trial(model="interrupted"), source)


def test_a_report_that_swallowed_its_error_leaves_nothing_behind(
    make_trial: MakeTrial, source: Source, add_mlp: AddModel
) -> None:
    """An error of the model after a report that returned is the trial's own."""
    calls = itertools.count(1)

    def late(mlp: nn.Module, images: torch.Tensor) -> torch.Tensor:
        if next(calls) > 8:
            raise SystemExit("bye")
        return mlp(images)

    add_mlp("late", late)
    row = run(make_trial(model="late"), source, report=lambda row: None).row
    assert (row.status, row.error, row.epochs) == ("failed", "SystemExit: bye", 1)


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def test_a_finished_row_says_where_it_comes_from(make_trial: MakeTrial, source: Source) -> None:
    import platform

    import torchvision

    from raybench import __version__

    provenance = {"git_commit": "c0ffee", "git_dirty": True, "ray_version": "2.60.0"}
    trial = make_trial(7, epochs=2)
    row = run(trial, source, provenance=provenance).row
    assert row.trial_id == trial.id and row.seed == 7 and row.suite == "tests"
    assert (row.status, row.epochs, row.error, row.error_class, row.traceback) == ("completed", 2, None, None, None)
    assert (row.dataset_fingerprint, row.weights_fingerprint) == (source.fingerprint, None)
    assert (row.threads, row.workers) == (1, 1)
    assert (row.train_images, row.validation_images, row.test_images) == (60, 30, 40)
    assert row.parameters == 64 * 64 + 64 + 64 * 3 + 3
    assert {name: getattr(row, name) for name in provenance} == provenance
    versions = (row.raybench_version, row.python_version, row.torch_version, row.torchvision_version)
    assert versions == (
        __version__,
        platform.python_version(),
        torch.__version__.partition("+")[0],
        row.torchvision_version,
    )
    assert row.torchvision_version in torchvision.__version__ and row.numpy_version == np.__version__
    assert str(row.device).endswith("(cpu)") and row.host
    assert row.started_at is not None and datetime.fromisoformat(row.started_at).utcoffset() is not None
    for name in ("train_seconds", "wall_seconds", "images_per_second"):
        assert getattr(row, name) > 0
    measured = {field.name for field in dataclasses.fields(TrialRow) if field.metadata.get("measured")}
    # The driver alone knows these.
    assert {name for name in measured if getattr(row, name) is None} == {"attempts", "undecided"}
    assert measured.isdisjoint(computed(row))
    assert json.loads(row.settings) == json.loads(json.dumps(trial.settings))


def test_threads_are_those_of_the_resources(make_trial: MakeTrial, source: Source, add_model: AddModel) -> None:
    seen = []

    def counting(shape: models.Shape, classes: int) -> nn.Module:
        seen.append(torch.get_num_threads())
        return models.mlp(shape, classes)

    add_model("counting", counting)
    for cpus in (2, 1):
        row = run(make_trial(model="counting", resources={"cpus": cpus}, epochs=1), source).row
        assert (row.threads, seen[-1]) == (cpus, cpus)


def test_predictions_agree_with_the_row(make_trial: MakeTrial, source: Source) -> None:
    trial = make_trial(epochs=1, lr=1e-4, dataset={"test_size": 25})
    outcome = run(trial, source)
    predictions, test = outcome.predictions, data_for(trial, source).test()
    assert predictions is not None and outcome.row.test_accuracy is not None
    assert 0 < outcome.row.test_accuracy < 1
    assert [a.dtype for a in (predictions.index, predictions.label, predictions.prediction, predictions.logits)] == [
        np.int32,
        np.int16,
        np.int16,
        np.float16,
    ]
    assert predictions.index.tolist() == test.index.tolist()
    assert predictions.label.tolist() == source.splits["test"].labels[test.index].tolist()
    assert (predictions.prediction == predictions.label).mean() == pytest.approx(outcome.row.test_accuracy)
    assert predictions.logits.shape == (25, 3)
    assert (predictions.logits.argmax(1) == predictions.prediction).all()


def test_logits_too_large_for_float16_stay_finite(make_trial: MakeTrial, source: Source, add_mlp: AddModel) -> None:
    add_mlp("loud", lambda mlp, images: mlp(images) * 1e7)
    outcome = run(make_trial(model="loud", epochs=1), source)
    assert outcome.predictions is not None, outcome.row.error
    assert np.isfinite(outcome.predictions.logits).all()
    assert outcome.predictions.logits.max() == 65504


# ---------------------------------------------------------------------------------------------------------------------
# Fitted statistics


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one)


def test_statistics_are_fitted_once_and_kept(
    make_trial: MakeTrial, source: Source, fits: list[int], tmp_path: Path
) -> None:
    trial = make_trial(augmentation="zca")
    data = data_for(trial, source)
    first = fit_augmentation(trial.typed(), data)
    assert {name: array.shape for name, array in first.items()} == {"zca_mean": (1,), "zca_matrix": (64, 64)}
    assert same(fit_augmentation(make_trial(augmentation=["shift", "zca"]).typed(), data), first)
    assert fits == [60]
    assert len(list(tmp_path.glob("cache/statistics/*.npz"))) == 1

    smaller = make_trial(augmentation="zca", dataset={"train_size": 40})
    assert not same(fit_augmentation(smaller.typed(), data_for(smaller, source)), first)
    stronger = make_trial(augmentation={"zca": 0.1})
    assert not same(fit_augmentation(stronger.typed(), data), first)
    other = dataclasses.replace(data, fingerprint="f" * 16)
    assert same(fit_augmentation(trial.typed(), other), first)
    assert fits == [60, 40, 60, 60]
    assert len(list(tmp_path.glob("cache/statistics/*.npz"))) == 4


def test_nothing_to_fit(make_trial: MakeTrial, source: Source, fits: list[int], tmp_path: Path) -> None:
    trial = make_trial(augmentation=["shift", "flip"])
    assert fit_augmentation(trial.typed(), data_for(trial, source)) == {}
    assert fits == [] and not list(tmp_path.iterdir())


def test_a_torn_cache_file_is_fitted_again(
    make_trial: MakeTrial, source: Source, fits: list[int], tmp_path: Path
) -> None:
    trial = make_trial(augmentation="zca")
    data = data_for(trial, source)
    first = fit_augmentation(trial.typed(), data)
    (path,) = tmp_path.glob("cache/statistics/*.npz")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    torn = [whole[:n] for n in (0, 1, 4, 30, 100, len(whole) // 2, len(whole) - 1)]
    damaged = [*torn, bytes(flipped), b"PK\x03\x04", b"hello", np.zeros(3).tobytes()]
    for content in damaged:
        path.write_bytes(content)
        assert same(fit_augmentation(trial.typed(), data), first)
        assert path.read_bytes() == whole
    assert len(fits) == 1 + len(damaged)
    assert list(tmp_path.glob("cache/statistics/*.npz")) == [path]


def test_a_cache_that_cannot_be_written_is_the_users_to_mend(
    make_trial: MakeTrial, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path / "file"))
    trial, folder = make_trial(augmentation="zca"), tmp_path / "file" / "statistics"
    with pytest.raises(DataError) as caught:
        fit_augmentation(trial.typed(), data_for(trial, source))
    assert str(caught.value) == (
        f"cannot fill {folder} ([Errno 20] Not a directory: '{folder}'): set RAYBENCH_CACHE to a folder that can be"
        " written and has room"
    )


def test_a_trial_fits_what_it_is_not_given(make_trial: MakeTrial, source: Source, fits: list[int]) -> None:
    trial = make_trial(augmentation="zca", epochs=1)
    given = fit_augmentation(trial.typed(), data_for(trial, source))
    with_given, by_itself = run(trial, source, statistics=given), run(trial, source)
    assert fits == [60]
    assert computed(with_given.row) == computed(by_itself.row)
    wrong = {name: np.zeros_like(array) for name, array in given.items()}
    assert run(trial, source, statistics=wrong).row.train_loss != by_itself.row.train_loss


def test_images_too_large_to_whiten_are_the_users_mistake(make_trial: MakeTrial, source: Source) -> None:
    trial = make_trial(augmentation="zca")
    large = np.zeros((2, 65, 65, 3), np.uint8)
    with pytest.raises(UserError, match=r"^zca is for images of at most 64x64x3 numbers, not 65x65x3$"):
        augment.build(trial.typed().augmentation).fit(large)
