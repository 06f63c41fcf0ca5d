"""What a suite would cost: a few batches of every kind of trial, timed in this process, times what is planned.

    meter = Meter(suite.source, data_dir)
    rows, wall = estimate(rounds(choice, ended), meter.cost, slots, gpus=False)

All epochs are counted: early stopping and pruning make it less. Trials that share a device or a memory bus slow each
other down: that is not measured.
"""

from __future__ import annotations

import dataclasses
import gc
import heapq
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from raybench import augment, backbones
from raybench.axes import Label
from raybench.data import Division, Source, TrialData, load
from raybench.datasets import Images
from raybench.errors import DataError, UserError
from raybench.grid import Trial
from raybench.job import check, divided, source_key
from raybench.plan import Choice
from raybench.schedule import in_turns
from raybench.search import Ended
from raybench.settings import DatasetSettings, Resources, TrialSettings
from raybench.stages import is_done
from raybench.train import EVALUATION_BATCH, Training, World
from raybench.trial import fresh_process

BATCHES = 4
"""Training batches that are timed together."""
SECONDS = 1.0
"""How long a rate is measured, if a single time does not take longer."""
KNOWN = {
    "cifar10": (32, 3, 10, {"train": 50_000, "test": 10_000}),
    "cifar100": (32, 3, 100, {"train": 50_000, "test": 10_000}),
    "cinic10": (32, 3, 10, {"train": 90_000, "valid": 90_000, "test": 90_000}),
    "svhn": (32, 3, 10, {"train": 73_257, "test": 26_032}),
    "mnist": (28, 1, 10, {"train": 60_000, "test": 10_000}),
    "fashion_mnist": (28, 1, 10, {"train": 60_000, "test": 10_000}),
}
"""Pixels on a side, channels, classes and images of datasets that need not be here to be measured."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one trial that trains all its epochs."""

    seconds: float
    memory: int
    """Bytes at most: of the GPU, or of the process."""


@dataclass(slots=True)
class Row:
    """Of the trials of a cell."""

    trials: int = 0
    epochs: int = 0
    seconds: float = 0
    cpu_seconds: float = 0
    gpu_seconds: float = 0
    """Of trials that have GPUs, which are not counted as CPUs too."""
    memory: int = 0


@dataclass(frozen=True, slots=True)
class Speed:
    """Of trials that differ only in what changes no time."""

    start: float
    """Seconds until the first step."""
    epochs: tuple[float, ...]
    """Seconds of an epoch of each phase, validation included."""
    end: float
    """Seconds of the tests at the end."""
    memory: int


def rounds(choice: Choice, ended: Mapping[str, Ended]) -> Iterator[list[Trial]]:
    """Yield the trials that are to run, those together that are known at a time, as if all ended equally well."""
    ended = dict(ended)
    while todo := [trial for trial in choice.trials(ended) if not is_done(choice.suite, trial, ended)]:
        yield todo
        ended |= {trial.id: Ended("completed", 0.5, 1, trial.draw, trial.labels) for trial in todo}


def estimate(
    todo: Iterable[Sequence[Trial]], cost: Callable[[Trial], Cost], slots: Callable[[Resources], int], gpus: bool
) -> tuple[dict[tuple[Label, ...], Row], float]:
    """Return a row for each cell, and the seconds that all trials take on a cluster with so many ``slots``.

    Args:
        todo: the trials, as `rounds` has them.
        gpus: whether trials get the GPUs that they ask for.
    """
    rows: dict[tuple[Label, ...], Row] = {}
    wall = 0.0
    for known in todo:
        for resources, trials in in_turns(known):
            free = [0.0] * slots(resources)
            for trial in trials:
                one, row = cost(trial), rows.setdefault(trial.cell, Row())
                row.trials += 1
                row.epochs += trial.typed().train.planned_epochs
                row.seconds += one.seconds
                if gpus and resources.gpus:
                    row.gpu_seconds += one.seconds * resources.workers * resources.gpus
                else:
                    row.cpu_seconds += one.seconds * resources.workers * resources.cpus
                row.memory = max(row.memory, one.memory)
                heapq.heapreplace(free, free[0] + one.seconds)
            wall += max(free)
    return rows, wall


class Meter:
    """Measures what trials cost on the devices at hand, each kind of them once."""

    def __init__(
        self, where: str, data_dir: Path, say: Callable[[str], None] = lambda line: None, gpus: bool = False
    ) -> None:
        """``where`` is the suite file, for messages; ``gpus`` says whether trials get the GPUs that they ask for."""
        self.where, self.data_dir, self.say = where, data_dir, say
        self.gpus = gpus and torch.cuda.is_available()
        self.devices: set[str] = set()
        """What has been measured on."""
        self.sources: dict[str, Source] = {}
        self.speeds: dict[str, Speed] = {}
        self.random: set[str] = set()
        """Datasets whose images are not here."""

    def cost(self, trial: Trial) -> Cost:
        settings = trial.typed()
        device = torch.device("cuda" if self.gpus and settings.resources.gpus else "cpu")
        kind = _kind(settings, device)
        self.devices.add(device.type)
        if kind not in self.speeds:
            self.say(f"measuring {trial.name}")
            data = self._data(settings)
            check(settings, data.shape, len(data.classes), self.where)
            try:
                self.speeds[kind] = speed(settings, data, device)
            except (RuntimeError, MemoryError) as error:  # torch's own want of memory is a RuntimeError
                raise UserError(f"{trial.name} cannot be measured: {' '.join(str(error).split())}") from None
        found = self.speeds[kind]
        epochs = [1 if phase.smoke else phase.epochs for phase in settings.train.in_phases()]
        training = sum(n * seconds for n, seconds in zip(epochs, found.epochs, strict=True))
        return Cost(found.start + training + found.end, found.memory)

    def _data(self, settings: TrialSettings) -> TrialData:
        key, dataset = source_key(settings), settings.dataset
        if key not in self.sources:
            try:
                self.sources[key] = load(dataset, self.data_dir, download=False)
            except DataError:
                if dataset.name not in KNOWN:
                    raise
                self.random.add(dataset.name)
                self.sources[key] = noise(dataset)
        return divided(self.sources[key], dataset)


def _kind(settings: TrialSettings, device: torch.device) -> str:
    """Name all that changes how long an epoch takes, and nothing that does not, such as learning rates."""
    train = settings.train
    return json.dumps(
        [
            settings.dataset.model_dump(),
            settings.model.model_dump(),
            [part.model_dump() for part in settings.augmentation],
            [device.type, settings.resources.model_dump()],
            [train.batch_size, train.precision, train.cuda_graph],
            [train.augmented_copies, train.test_every_epoch, train.smoke],
            [train.l2 > 0, train.elastic_net is not None],
            [[phase.optimizer.name, str(phase.trainable)] for phase in train.in_phases()],
        ]
    )


def noise(settings: DatasetSettings) -> Source:
    """Return as many images as a dataset has, all of them the same noise."""
    side, channels, classes, counts = KNOWN[settings.name]
    side = settings.image_size or side
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, channels), np.uint8)
    splits = {
        split: Images(np.broadcast_to(image, (count, side, side, channels)), np.arange(count) % classes)
        for split, count in counts.items()
    }
    return Source(splits, tuple(str(label) for label in range(classes)), f"noise for {settings.name} of {side}x{side}")


def speed(settings: TrialSettings, data: TrialData, device: torch.device) -> Speed:
    """Train and evaluate a few batches of ``data`` and return what all of it takes."""
    train = settings.train
    most = 2 * train.batch_size if train.smoke else None
    validation, test = (min(len(part), most or len(part)) for part in (data.validation(), data.test()))
    images = min(len(data.train()), most or len(data.train())) * (1 + train.augmented_copies)
    settings = settings.model_copy(update={"model": backbones.without_pretrained(settings.model)})  # no download
    few = _cut(data, BATCHES * train.batch_size)
    with fresh_process(0, settings.resources.cpus):
        _forget_peak(device)
        begun = time.perf_counter()
        augmentation = augment.build(settings.augmentation)
        pixels = few.train().gather(slice(None))[0]
        statistics = {} if augmentation.key is None else augmentation.fit(pixels)
        training = Training("measured", 0, settings, few, device, World(), statistics)
        start = time.perf_counter() - begun
        steps = []
        for phase in train.in_phases():
            training._begin(phase.model_copy(update={"lr": 1e-9}))  # a few images over and over could diverge
            steps.append(_seconds(lambda: training._train_epoch(1)) / training._images_per_epoch())
        evaluation = _seconds(lambda: training._logits("val").sum().item()) / len(training.feeds["val"])
        memory = _peak(device)
    if device.type == "cuda":  # all images lie there, not only those measured
        memory += sum(len(part) for part in (data.train(), data.validation(), data.test())) * pixels[0].nbytes
    per_epoch = validation + (test if train.test_every_epoch and not training.validates_on_test else 0)
    end = 0 if training.validates_on_test else 2 * test  # the best epoch and the last one
    return Speed(
        start=start,
        epochs=tuple(images * step + per_epoch * evaluation for step in steps),
        end=end * evaluation,
        memory=memory,
    )


def _cut(data: TrialData, train: int) -> TrialData:
    """Return the first ``train`` training images, and as many others as are evaluated at a time."""
    rows = data.division
    split, validation = rows.validation
    few = Division(rows.train[:train], (split, validation[:EVALUATION_BATCH]), rows.test[:EVALUATION_BATCH])
    return dataclasses.replace(data, division=few)


def _seconds(work: Callable[[], object]) -> float:
    """Return the mean seconds of ``work``, once it has warmed up."""
    work()
    begun, times, passed = time.perf_counter(), 0, 0.0
    while passed < SECONDS:
        work()
        times, passed = times + 1, time.perf_counter() - begun
    return passed / times


def _forget_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux alone can; elsewhere the peak is that of all that was measured before too
            Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int:
    """Return the largest number of bytes since `_forget_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
