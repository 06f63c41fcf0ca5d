"""One trial's whole life: a fresh process state, training, and a row for whatever came of it.

    outcome = run_trial(trial, data)

The same call serves a debugger, a test, a Tune actor and each process of a worker group.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import gc
import hashlib
import os
import platform
import random
import socket
import threading
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np
import torch

from raybench import __version__, augment, models
from raybench.checkpoint import Checkpoints, Keeper
from raybench.data import TrialData, cache_folder, digest, filling
from raybench.errors import DataError, WeightsError
from raybench.grid import Trial, stream
from raybench.records import EpochRow, ErrorClass, Outcome, Predictions, TrialRow
from raybench.rows import planned_row, scores
from raybench.settings import TrialSettings
from raybench.train import Diverged, History, Report, Statistics, Training, World
from raybench.weights import packed

NO_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Cuda failure 2 'out of memory'",  # NCCL's words
)


def run_trial(
    trial: Trial,
    data: TrialData,
    *,
    device: str = "cpu",
    world: World = World(),  # noqa: B008 - frozen
    begun: Callable[[TrialRow], None] | None = None,
    report: Report | None = None,
    warn: Callable[[str], None] = warnings.warn,
    statistics: Statistics | None = None,
    checkpoints: Checkpoints | None = None,
    provenance: Mapping[str, Any] | None = None,
    keep_weights: bool = False,
) -> Outcome:
    """Train and test ``trial``; whatever goes wrong inside it becomes its ``failed`` row.

    Args:
        trial: the point of the grid.
        data: its images, shared and read-only.
        device: ``cpu`` or ``cuda``.
        world: this process's place in the trial's worker group.
        begun: called before the first step, with the row as far as it is known then.
        report: called after each epoch. What it raises (Ray's stop is a `SystemExit`) passes through.
        warn: told what is no reason to fail and should be known, such as checkpoints that cannot be kept.
        statistics: what the augmentation fitted on the training images (`fit_augmentation`); fitted here if not given.
        checkpoints: where the trial's state is kept between epochs, and taken up from. Who stores the row drops it.
        provenance: further columns of `TrialRow` that only the caller knows.
        keep_weights: whether the outcome is to have the weights of the selected epoch. Changes nothing else in it.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    settings = trial.typed()
    row = dataclasses.replace(
        planned_row(trial),
        dataset_fingerprint=data.fingerprint,
        threads=settings.resources.cpus,
        workers=world.size,
        device=device_name(device),
        host=socket.gethostname(),
        started_at=started.isoformat(timespec="seconds"),
        **versions(),
        **(provenance or {}),
    )
    keeper = Keeper(checkpoints, trial.id, world.rank, data.fingerprint, warn) if checkpoints else None
    reporting = False
    seen: list[EpochRow] = []

    def tell(epoch: EpochRow) -> None:
        nonlocal reporting
        seen.append(epoch)
        if report is not None:
            reporting = True
            report(epoch)
            reporting = False

    with fresh_process(trial.seed, settings.resources.cpus):
        training: Training | None = None
        try:
            if statistics is None:
                statistics = fit_augmentation(settings, data)
            training = Training(
                trial.id, trial.seed, settings, data, torch.device(device), world, statistics, keep_weights
            )
            row = dataclasses.replace(
                row,
                train_images=len(training.feeds["train"]),
                validation_images=len(training.feeds["val"]),
                test_images=len(training.feeds["test"]),
                parameters=models.parameter_count(training.model),
                weights_fingerprint=training.weights_fingerprint,
            )
            if begun is not None:
                begun(row)
            history = training.finish(tell, keeper)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            # Ctrl-C reaches the main thread alone, that of a debugger; on Ray a trial has another.
            ctrl_c = isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()
            if reporting or ctrl_c:
                raise
            wall_seconds = time.perf_counter() - clock
            row = dataclasses.replace(row, epochs=len(seen), epochs_run=len(seen), wall_seconds=wall_seconds)
            return Outcome(row=failed(row, error), epochs=tuple(seen))
        finally:
            training = None  # its network goes before memory is given back
    return Outcome(
        row=_finished(row, history, time.perf_counter() - clock),
        epochs=history.epochs,
        predictions=_predictions(history, data),
        weights=packed(trial.id, history.weights) if keep_weights and world.rank == 0 else None,
    )


def failed(row: TrialRow, error: BaseException) -> TrialRow:
    """Return ``row`` as a failed one that says why."""
    return dataclasses.replace(
        row,
        status="failed",
        error_class=error_class(error),
        error=" ".join(f"{type(error).__name__}: {error}".split())[:1000],
        traceback="".join(traceback.format_exception(error))[-20_000:],
    )


def error_class(error: BaseException) -> ErrorClass:
    """Sort an exception into the classes that tables report."""
    # Torch raises a plain RuntimeError where its CPU allocator or a call of CUDA itself finds no memory.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in NO_MEMORY):
        return "out_of_memory"
    if isinstance(error, Diverged):
        return "diverged"
    if isinstance(error, DataError):
        return "data"
    if isinstance(error, WeightsError):
        return "weights"
    return "error"


def fit_augmentation(settings: TrialSettings, data: TrialData) -> Statistics:
    """Return what the augmentation must know of the training images (ZCA's matrix), fitted once and kept on disk."""
    augmentation = augment.build(settings.augmentation)
    if augmentation.key is None:
        return {}
    content = f"{data.fingerprint}/{digest(data.division)}/{augmentation.key}"
    folder = cache_folder() / "statistics"
    path = folder / f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.npz"
    torn = ValueError, EOFError, zipfile.BadZipFile
    with contextlib.suppress(OSError, *torn), open(path, "rb") as file, np.load(file) as stored:
        return dict(stored)
    statistics = augmentation.fit(data.train())
    with filling(folder):
        beside = folder / f".{path.name}.npz"
        np.savez(beside, allow_pickle=False, **statistics)
        os.replace(beside, path)
    return statistics


def _finished(row: TrialRow, history: History, wall_seconds: float) -> TrialRow:
    best = history.best
    return dataclasses.replace(
        row,
        status="stopped_early" if history.stopped_early else "completed",
        epochs=len(history.epochs),
        epochs_run=len(history.epochs),
        **scores(best),
        train_seconds=history.train_seconds,
        images_per_second=history.images_per_second,
        wall_seconds=wall_seconds,
    )


def _predictions(history: History, data: TrialData) -> Predictions:
    largest = torch.finfo(torch.float16).max
    return Predictions(
        index=data.test().index[: len(history.labels)].astype(np.int32),
        label=history.labels.cpu().numpy().astype(np.int16),
        prediction=history.logits.argmax(1).cpu().numpy().astype(np.int16),
        logits=history.logits.clamp(-largest, largest).half().cpu().numpy(),
    )


@contextlib.contextmanager
def fresh_process(seed: int, threads: int) -> Iterator[None]:
    """Give the trial the state of a new process, whatever the trial before left behind."""
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    torch.set_flush_denormal(False)
    torch.use_deterministic_algorithms(False)
    backends: Any = torch.backends
    for place in (backends, backends.cudnn, backends.mkldnn, backends.mkldnn.conv, backends.mkldnn.rnn):
        place.fp32_precision = "none"  # else it would be what the two switches below fall back on
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    # raybench draws from streams of its own; these are for the code of models and augmentations from outside.
    random.seed(stream(seed, "python"))
    np.random.seed(stream(seed, "numpy") % 2**32)
    torch.manual_seed(stream(seed, "torch"))
    try:
        yield
    finally:
        gc.collect()
        _keep_what_is_there()
        if torch.cuda.is_available():
            # After a fault on the device every call fails; the trial has its row already, and what it says is why.
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()


@functools.cache
def _keep_what_is_there() -> None:
    """Spare the collector everything that torch and Ray made: looking through it takes 0.2 s after every trial."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # else triton complains of leaks when the process ends


@functools.cache
def versions() -> dict[str, Any]:
    """Return the columns that say which software computed a row."""
    packages = ("torch", "torchvision", "timm", "numpy")
    return {
        "raybench_version": __version__,
        "python_version": platform.python_version(),
        **{f"{package}_version": metadata.version(package) for package in packages},
    }


@functools.cache
def device_name(device: str) -> str:
    """Return what people call the processor: ``NVIDIA H100 80GB HBM3``, ``AMD EPYC 9R14 (cpu)``."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as info:
        for line in info:
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} (cpu)"
    return f"{platform.processor() or platform.machine()} (cpu)"
