"""What only a GPU can show: `pytest tests/test_gpu.py` on a machine that has one. Elsewhere all of it is skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raybench import feed as feeds
from raybench import models, replay
from raybench.checkpoint import Checkpoints
from raybench.data import Source, trial_data
from raybench.grid import Trial
from raybench.records import EpochRow, Outcome
from raybench.trial import run_trial

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    # Torch says of an optimizer for graphs that its first steps are in none.
    pytest.mark.filterwarnings("default"),
]
MakeTrial = Callable[..., Trial]
PARTS = ["rotation", "shift", "zoom", "zoom_in", "flip", "crop", "cutout", "brightness", "noise"]
OPTIMIZERS = ["adam", "adamw", {"name": "sgd", "momentum": 0.9}, "sgd", {"name": "rmsprop", "momentum": 0.5}, "rmsprop"]


def finished(trial: Trial, source: Source, **more: Any) -> Outcome:
    outcome = run_trial(trial, trial_data(source, trial.typed().dataset), device="cuda", **more)
    assert outcome.row.error is None, outcome.row.traceback
    return outcome


def facts(outcome: Outcome) -> tuple[list[tuple[float, ...]], bytes]:
    """Return all that must repeat to the last bit."""
    epochs = [(row.train_loss, row.val_loss, row.train_accuracy, row.val_accuracy) for row in outcome.epochs]
    assert outcome.predictions is not None
    return epochs, outcome.predictions.logits.tobytes()


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How large the batches were that graphs were recorded of."""
    made: list[int] = []
    record = replay.record
    monkeypatch.setattr(replay, "record", lambda step, inputs: (made.append(len(inputs[0])), record(step, inputs))[1])
    return made


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_a_graph_trains_as_the_steps_do(
    make_trial: MakeTrial, source: Source, recordings: list[int], optimizer: Any, precision: str
) -> None:
    choices = {"optimizer": optimizer, "precision": precision, "l2": 1e-4, "loss": "bce", "label_smoothing": 0.1}
    schedule = {"name": "step", "every": 1, "factor": 0.5}
    common = {"model": "small_cnn", "augmentation": [*PARTS, "zca"], "epochs": 5, "schedule": schedule, **choices}
    eager = finished(make_trial(**common), source)
    assert recordings == []
    replayed = finished(make_trial(**common, cuda_graph=True), source)
    assert recordings == [16]
    for one, other in zip(replayed.epochs, eager.epochs, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=0.02 if precision == "bf16" else 2e-3)


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("model", ["small_cnn", "model2"])
def test_a_trial_repeats_to_the_last_bit(make_trial: MakeTrial, source: Source, model: str, cuda_graph: bool) -> None:
    """Also after one in another precision."""
    trial = make_trial(model=model, augmentation=[*PARTS, "standardize"], epochs=4, cuda_graph=cuda_graph)
    first = facts(finished(trial, source))
    finished(make_trial(model=model, precision="tf32"), source)
    assert facts(finished(trial, source)) == first
    assert facts(finished(make_trial(1, model=model, epochs=4), source)) != first


@pytest.mark.parametrize("model", ["mlp", "small_cnn"])
def test_images_that_do_not_fit_train_as_those_that_do(
    make_trial: MakeTrial, source: Source, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    trial = make_trial(model=model, augmentation=["shift", "flip"], epochs=3)
    held = facts(finished(trial, source))
    monkeypatch.setattr(feeds, "_on_device", {})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    assert facts(finished(trial, source)) == held


def test_dropout_draws_anew_in_every_launch(
    make_trial: MakeTrial, source: Source, add_model: Callable[[str, Any], None], recordings: list[int]
) -> None:
    seen: list[Tensor] = []

    class Noted(nn.Module):
        """Keeps the mask of every step, on the device."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.register_buffer("masks", torch.zeros(100, 64))
            self.register_buffer("step", torch.zeros(1, dtype=torch.long))

        def forward(self, images: Tensor) -> Tensor:
            if self.training:
                mask = nn.functional.dropout(torch.ones(1, 64, device=images.device))
                self.masks.index_copy_(0, self.step, mask)
                self.step += 1
                seen[:] = [self.masks, self.step]
            return self.inner(images)

    add_model("noted", lambda shape, classes: Noted(models.mlp(shape, classes)))
    finished(make_trial(model="noted", cuda_graph=True, epochs=4), source)
    assert recordings == [16]
    masks, steps = seen[0].cpu(), int(seen[1])
    assert steps == 4 * 4 and len(masks[:steps].unique(dim=0)) == steps


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_a_trial_that_is_replayed_goes_on_where_it_was(
    make_trial: MakeTrial, source: Source, tmp_path: Path, optimizer: Any
) -> None:
    trial = make_trial(model="small_cnn", optimizer=optimizer, cuda_graph=True, epochs=5)
    data, checkpoints = trial_data(source, trial.typed().dataset), Checkpoints(str(tmp_path), seconds=0)
    whole = finished(trial, source)

    def stop(row: EpochRow) -> None:
        if row.epoch == 2:
            raise SystemExit

    with pytest.raises(SystemExit):
        run_trial(trial, data, device="cuda", report=stop, checkpoints=checkpoints)
    rest = finished(trial, source, checkpoints=checkpoints)
    losses = [[epoch.train_loss for epoch in outcome.epochs] for outcome in (rest, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_trial_gives_its_memory_back(make_trial: MakeTrial, source: Source) -> None:
    held = []
    for seed in range(4):
        outcome = finished(make_trial(seed, model="model2", cuda_graph=True), source)
        del outcome
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated())
    assert held[3] <= held[1], "the images, and what libraries keep for themselves"


def test_a_step_that_cannot_be_recorded_says_why_and_ends_its_process() -> None:
    """In a process of its own, which is of no use afterwards."""
    code = """
import numpy as np
from raybench import actor, models, replay
from raybench.data import Images, Source, trial_data
from raybench.grid import Trial
from raybench.registry import MODELS
from raybench.settings import TrialSettings
from raybench.trial import run_trial
from torch import nn

class Asks(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
    def forward(self, images):
        return self.inner(images) * (1 + 0 * float(images.sum()))

MODELS._entries["asks"] = lambda shape, classes: Asks(models.mlp(shape, classes))
settings = TrialSettings.model_validate({
    "dataset": {"name": "digits", "validation": "test"}, "model": "asks", "augmentation": "none",
    "train": {"epochs": 3, "batch_size": 16, "cuda_graph": True},
}).model_dump()
pixels = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 1), np.uint8)
images = Images(pixels, np.arange(90) % 3)
source = Source({"train": images, "test": images}, ("a", "b", "c"), "")
trial = Trial(id="x", suite="tests", labels={"seed": 0}, cell=(), point=(), seed=0, settings=settings)
row = run_trial(trial, trial_data(source, trial.typed().dataset), device="cuda").row
print(row.error)
print(actor.device_failure("cuda"))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert said.returncode == 0, said.stderr
    error, failure = said.stdout.splitlines()[0], said.stdout.splitlines()[-1]
    assert "capturing" in error and failure != "None"
