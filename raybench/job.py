"""All that a sweep's trials need besides their own settings, gathered once, on the driver, before Ray is asked.

job = prepare(suite, trials, data_dir)
outcome = job.run(trial)                  # in this process; raybench.schedule runs the same on a cluster
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from raybench import augment, backbones, models
from raybench.checkpoint import Checkpoints
from raybench.data import Source, TrialData, load, trial_data
from raybench.errors import DataError, SuiteError, UserError
from raybench.grid import Trial
from raybench.records import Outcome, TrialRow
from raybench.rows import planned_row
from raybench.settings import DatasetSettings, TrialSettings
from raybench.shipping import git_state
from raybench.suite import Suite
from raybench.train import Report, Statistics, World, choose_trained
from raybench.trial import failed, fit_augmentation, run_trial


@dataclass(frozen=True, slots=True)
class Job:
    """The shared, read-only part of a sweep."""

    trials: dict[str, Trial]
    """By id."""
    sources: Mapping[str, Source]
    """By `source_key`; in other processes, a `Stored` stands for one that is streamed."""
    statistics: Mapping[str, Statistics]
    """By `statistics_key`: what augmentations fitted on training images."""
    provenance: dict[str, Any]
    checkpoints: Checkpoints | None = None
    """Where trials keep their state between epochs."""
    notes: tuple[str, ...] = ()
    """What a reader of the results should know of the weights that models start from, a line each."""
    keep_weights: bool = False

    def run(
        self,
        trial: Trial,
        *,
        device: str = "cpu",
        world: World | None = None,
        begun: Callable[[TrialRow], None] | None = None,
        report: Report | None = None,
        warn: Callable[[str], None] = warnings.warn,
    ) -> Outcome:
        """Train one trial in this process (see `raybench.trial.run_trial`)."""
        settings = trial.typed()
        try:
            source = self.sources[source_key(settings)].open()
        except DataError as error:  # streamed, on a node that has not got the images
            return Outcome(row=failed(planned_row(trial), error))
        return run_trial(
            trial,
            divided(source, settings.dataset),
            device=device,
            world=world or World(),
            begun=begun,
            report=report,
            warn=warn,
            statistics=self.statistics[statistics_key(settings)],
            checkpoints=self.checkpoints,
            provenance=self.provenance,
            keep_weights=self.keep_weights,
        )


def source_key(settings: TrialSettings) -> str:
    """Name the arrays that a trial reads; trials that divide the same images differently share them."""
    dataset = settings.dataset
    return json.dumps([dataset.name, dataset.folder, dataset.image_size])


def statistics_key(settings: TrialSettings) -> str:
    """Name what a trial's augmentation fits and the images it fits that on."""
    key = augment.build(settings.augmentation).key
    return "" if key is None else f"{settings.dataset.model_dump_json()} {key}"


_divisions: dict[tuple[str, str], TrialData] = {}
"""What `divided` returned: a division is drawn once per process and not once per trial."""


def divided(source: Source, settings: DatasetSettings) -> TrialData:
    """Return ``source`` as a trial with these settings sees it."""
    key = source.fingerprint, settings.model_dump_json()
    if key not in _divisions:
        _divisions[key] = trial_data(source, settings)
    return _divisions[key]


def prepare(
    suite: Suite,
    trials: Sequence[Trial],
    data_dir: Path,
    say: Callable[[str], None] = lambda line: None,
    *,
    known: Job | None = None,
) -> Job:
    """Load the images, check every model and augmentation on their shape, and get weights and fitted statistics once.

    Args:
        known: what was prepared for trials before these; its images and statistics are taken over as they are.

    Raises:
        UserError: for anything that would make a trial fail before its first step, and before any is started.
    """
    sources: dict[str, Source] = dict(known.sources) if known else {}
    statistics: dict[str, Statistics] = dict(known.statistics) if known else {"": {}}
    notes: dict[str, list[str]] = {}
    for settings in _different(trials):
        key = source_key(settings)
        if key not in sources:
            say(f"reading {settings.dataset.name}")
            sources[key] = load(settings.dataset, data_dir)
        data = divided(sources[key], settings.dataset)
        check(settings, data.shape, len(data.classes), suite.source)
        _check_prepared(settings, data, suite.source)
        start = f"{settings.model.model_dump_json()} {data.shape} {len(data.classes)}"
        if start not in notes:
            notes[start] = _notes(settings, data, say)
        fitted = statistics_key(settings)
        if fitted not in statistics:
            say(f"fitting {augment.build(settings.augmentation).key} on {len(data.train()):,} training images")
            statistics[fitted] = fit_augmentation(settings, data)
    distinct = tuple(dict.fromkeys(note for found in notes.values() for note in found))
    return Job(
        {trial.id: trial for trial in trials},
        sources,
        statistics,
        git_state(suite.folder),
        notes=distinct,
        keep_weights=suite.keep_weights != "none",
    )


def _different(trials: Iterable[Trial]) -> Iterator[TrialSettings]:
    """Yield the settings of trials that differ in more than their seed and how long and fast they train."""
    seen: set[str] = set()
    for trial in trials:
        train = {key: trial.settings["train"][key] for key in ("trainable", "phases", "l2", "elastic_net")}
        distinct = json.dumps({**trial.settings, "train": train}, sort_keys=True)
        if distinct not in seen:
            seen.add(distinct)
            yield trial.typed()


def _notes(settings: TrialSettings, data: TrialData, say: Callable[[str], None]) -> list[str]:
    """Return what is to be said of the weights that a model starts from, and get them if need be."""
    model = settings.model
    if settings.train.smoke and backbones.needs_pretrained(model):
        return ["smoke run: pretrained weights are not loaded"]
    notes = backbones.notes(model)
    if backbones.has_weights(model):
        say(f"loading the weights of {model.name}")
        if found := models.random_tensors(model, data.shape, len(data.classes)):
            shown = f"{', '.join(found[:3])}{' ...' * (len(found) > 3)}"
            notes.append(f"{model.name}: the weights fit only partly: {shown} start at random")
    return notes


def check(settings: TrialSettings, shape: tuple[int, int, int], classes: int, source: str) -> None:
    """Build the augmentation, and the model on no data, and choose what is trained, so that mistakes are found here.

    Args:
        shape: (channels, height, width) of the images.
        source: the suite file, for the message.
    """
    try:
        augment.build(settings.augmentation)
        network = models.check(settings.model, shape, classes)
        if network is not None:
            _check_trained(settings, network)
    except UserError as error:
        raise SuiteError(f"{source}: {error}") from None


def _check_prepared(settings: TrialSettings, data: TrialData, source: str) -> None:
    """Look whether the numbers that a suite gives for the channels are for those of its images."""
    try:
        augment.build(settings.augmentation).check(data.shape)
    except UserError as error:
        raise SuiteError(f"{source}: {error}") from None


def _check_trained(settings: TrialSettings, network: nn.Module) -> None:
    try:
        for phase in settings.train.in_phases():
            choose_trained(settings.train, phase, network)
    except UserError as error:
        raise UserError(f"model {settings.model.name!r}: {error}") from None


def check_options(suite: Suite, trials: Sequence[Trial]) -> None:
    """Check the options of every model and augmentation of ``trials`` without the images.

    Where a dataset does not say the shape of its images, the model's options are checked on a usual one.

    Raises:
        SuiteError: for the first that cannot be built.
    """
    for settings in _different(trials):
        side = settings.dataset.image_size or 32
        check(settings, (3, side, side), 10, suite.source)
