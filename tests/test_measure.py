"""What a suite would cost: the arithmetic with made-up speeds, and real batches of tiny networks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from raybench import measure
from raybench.data import Source, TrialData, trial_data
from raybench.errors import DataError, UserError
from raybench.grid import Trial
from raybench.measure import Cost, Meter, Row, Speed, estimate, rounds
from raybench.plan import Choice
from raybench.settings import DatasetSettings, Resources, TrialSettings
from raybench.suite import Suite

LoadSuite = Callable[..., tuple[Suite, list[Trial]]]
SUITE = """
name: costs
dataset: {name: digits}
compare: {variant: {small: {}, large: {train.epochs: 40, resources: {cpus: 2, gpus: 0.5}}}}
model: mlp
repeat: {seed: 3}
train: {epochs: 10}
"""
SEARCH = """
name: searched
dataset: {name: digits}
model: {name: mlp, hidden: [8]}
search: {lr: {range: [1e-4, 1e-1], log: true}}
draw: {points: 4, at_once: 3}
repeat: {seed: 2}
train: {epochs: 1}
"""


def in_seconds(trial: Trial) -> Cost:
    """A second for every epoch."""
    return Cost(trial.settings["train"]["epochs"], 1000 * trial.settings["train"]["epochs"])


def test_trials_are_added_up_by_cell_and_packed_into_slots(load_suite: LoadSuite) -> None:
    _, trials = load_suite(SUITE)

    def slots(needs: Resources) -> int:
        return 2 if needs.cpus == 1 else 1

    rows, wall = estimate([trials], in_seconds, slots, gpus=False)
    assert rows == {
        ("small",): Row(trials=3, epochs=30, seconds=30, cpu_seconds=30, memory=10_000),
        ("large",): Row(trials=3, epochs=120, seconds=120, cpu_seconds=240, memory=40_000),
    }
    # Seed 0 of the small; seeds 0 and 1 of the large; seeds 1 and 2 of the small, at once; seed 2 of the large.
    assert wall == 10 + 80 + 10 + 40
    rows, _ = estimate([trials], in_seconds, slots, gpus=True)
    assert [(row.cpu_seconds, row.gpu_seconds) for row in rows.values()] == [(30, 0), (0, 60)]


def test_a_search_is_measured_to_its_end(load_suite: LoadSuite) -> None:
    suite, first = load_suite(SEARCH)
    found = list(rounds(Choice(suite), {}))
    assert [len(todo) for todo in found] == [3, 1, 1]
    assert found[0] == first and found[2][0].stage == "confirm"
    _, wall = estimate(found, in_seconds, lambda needs: 8, gpus=False)
    assert wall == 3, "a round begins when the one before has ended"


def test_what_is_stored_costs_nothing(load_suite: LoadSuite) -> None:
    from raybench.search import Ended

    suite, trials = load_suite(SUITE)
    ended = {trial.id: Ended("completed", 0.5, 10) for trial in trials}
    assert list(rounds(Choice(suite), ended)) == []
    assert estimate([], in_seconds, lambda needs: 1, gpus=False) == ({}, 0)
    del ended[trials[4].id]
    assert list(rounds(Choice(suite), ended)) == [[trials[4]]]
    ended[trials[4].id] = Ended("pruned", 0.5, 3)
    assert list(rounds(Choice(suite), ended)) == [[trials[4]]], "of a run with another prune: it is to run again"


def test_a_kind_of_trial_is_measured_once(
    load_suite: LoadSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, trials = load_suite(
        SUITE.replace(
            "{small: {}, large: {", "{small: {}, fast: {lr: 1}, long: {train.epochs: 30}, large: {batch_size: 8,"
        )
    )
    monkeypatch.setattr(measure, "speed", lambda *_: Speed(start=1, epochs=(0.5,), end=2, memory=7))
    meter, said = Meter(suite.source, tmp_path), []
    meter.say = said.append
    assert [meter.cost(trial) for trial in trials[:4]] == [Cost(s, 7) for s in (8, 8, 18, 23)]
    assert [meter.cost(trial) for trial in trials[4:8]] == [Cost(s, 7) for s in (8, 8, 18, 23)]
    assert said == ["measuring small/s0", "measuring large/s0"]


@pytest.mark.parametrize("gpu_here", [True, False])
@pytest.mark.parametrize("gpus", [True, False])
def test_it_is_measured_on_what_the_trial_gets(
    load_suite: LoadSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu_here: bool, gpus: bool
) -> None:
    suite, trials = load_suite(SUITE)  # the small ones ask for no GPU
    used: list[str] = []

    def speed(settings: TrialSettings, data: TrialData, device: torch.device) -> Speed:
        used.append(device.type)
        return Speed(start=1, epochs=(1,), end=1, memory=7)

    monkeypatch.setattr(measure, "speed", speed)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu_here)
    meter = Meter(suite.source, tmp_path, gpus=gpus)
    for trial in trials:
        meter.cost(trial)
    assert used == ["cpu", "cuda" if gpus and gpu_here else "cpu"]
    assert meter.devices == {*used}


def test_phases_have_speeds_of_their_own(
    load_suite: LoadSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, trials = load_suite(
        SEARCH, "draw=null", "search={}", "train.epochs=5", "train.phases=[{epochs: 2}, {epochs: 3}]"
    )
    monkeypatch.setattr(measure, "speed", lambda *_: Speed(start=0, epochs=(10, 100), end=0, memory=7))
    assert Meter(suite.source, tmp_path).cost(trials[0]).seconds == 320


def test_images_that_are_not_here_are_noise(load_suite: LoadSuite, tmp_path: Path) -> None:
    suite, trials = load_suite(SEARCH.replace("digits", "cifar10, image_size: 4, train_size: 100, test_size: 50"))
    meter = Meter(suite.source, tmp_path)
    assert meter.cost(trials[0]).memory > 0 and meter.random == {"cifar10"}
    shape = measure.noise(DatasetSettings(name="cifar10", image_size=4)).splits["train"].pixels
    assert shape.shape == (50_000, 4, 4, 3) and shape.base is not None, "no memory for them"
    of = [("cifar10", None), ("cifar10", 4), ("cifar100", None), ("mnist", None), ("svhn", None)]
    prints = [measure.noise(DatasetSettings(name=name, image_size=size)).fingerprint for name, size in of]
    assert len({*prints}) == len(of), "noise in place of one is not taken for that of another"
    assert list(tmp_path.iterdir()) == [tmp_path / "suite.yaml"]
    _, own = load_suite(SEARCH.replace("digits", "imagefolder"))
    with pytest.raises(DataError) as missing:
        meter.cost(own[0])
    assert str(missing.value).startswith(f"no images in {tmp_path / 'train'}: ")


def test_the_known_datasets_are_those_that_ship(source: Source) -> None:
    from raybench.registry import DATASETS

    assert {*measure.KNOWN} == {*DATASETS.names()} - {"digits", "imagefolder", "parquet"}


@pytest.mark.parametrize("change", [{}, {"test_every_epoch": True}, {"augmented_copies": 1}, {"smoke": True}])
def test_seconds_are_images_times_their_rate(
    make_trial: Callable[..., Trial], source: Source, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """By a clock that goes on by a second whenever it is looked at: every batch of work takes one."""
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=itertools.count(0.0).__next__))
    settings = make_trial(epochs=1, batch_size=4, lr=1e6, **change).typed()
    data = trial_data(source, settings.dataset)  # 60 + 30 + 40 images
    found = measure.speed(settings, data, torch.device("cpu"))
    images, validation, test = (8, 8, 8) if change == {"smoke": True} else (60, 30, 40)
    measured_images, measured_validation = (8, 8) if change == {"smoke": True} else (16, 30)
    assert found.start == 1
    evaluated = validation + (test if "test_every_epoch" in change else 0)
    # 16 training images were timed, or these and their copies.
    assert found.epochs == (pytest.approx(images / measured_images + evaluated / measured_validation),)
    assert found.end == pytest.approx(2 * test / measured_validation)
    assert found.memory > 0


def test_what_does_not_fit_is_one_line(load_suite: LoadSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\n Tried to allocate 2 GiB")

    suite, trials = load_suite(SUITE)
    monkeypatch.setattr(measure, "speed", out_of_memory)
    with pytest.raises(UserError) as refused:
        Meter(suite.source, tmp_path).cost(trials[0])
    assert str(refused.value) == "small/s0 cannot be measured: CUDA out of memory. Tried to allocate 2 GiB"
