"""Weights that are kept: files that repeat bit for bit, networks made again from them, and what a suite keeps."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from raybench import models, plan, trained
from raybench.backbones import without_weights
from raybench.checkpoint import Checkpoints
from raybench.data import Source, trial_data
from raybench.errors import SuiteError, WeightsError
from raybench.grid import Trial
from raybench.records import Outcome, computed
from raybench.settings import ModelSettings
from raybench.stages import with_weights
from raybench.suite import Suite, load
from raybench.train import set_precision
from raybench.trained import again
from raybench.trial import run_trial
from raybench.weights import packed, restored

MakeTrial = Callable[..., Trial]
LoadSuite = Callable[..., tuple[Suite, list[Trial]]]


def run(trial: Trial, source: Source, **options: Any) -> Outcome:
    return run_trial(trial, trial_data(source, trial.typed().dataset), **options)


def kept(outcome: Outcome) -> bytes:
    assert outcome.weights is not None, outcome.row.traceback
    return outcome.weights


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_a_file_says_whose_it_is_and_repeats(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    content = packed("t0", network.state_dict())
    assert content == packed("t0", {key: value.clone() for key, value in network.state_dict().items()})
    (tmp_path / "t0.safetensors").write_bytes(content)
    with safetensors.safe_open(tmp_path / "t0.safetensors", "pt") as file:
        assert file.metadata() == {"trial_id": "t0"}
        assert sorted(file.keys()) == sorted(network.state_dict())
        for key, value in network.state_dict().items():
            assert torch.equal(file.get_tensor(key), value)


def test_a_network_comes_back_in_eval_mode_with_batch_norms_averages() -> None:
    settings = ModelSettings(name="small_cnn")
    network = models.build(settings, (1, 8, 8), 3)
    network(torch.rand(5, 1, 8, 8))  # moves the averages
    again_ = restored(settings, packed("t0", network.state_dict()), (1, 8, 8), 3)
    assert not again_.training
    images = torch.rand(7, 1, 8, 8)
    assert torch.equal(again_(images), network.eval()(images))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nothing of ours", "the weights of model 'mlp' are damaged: "),
        (
            safetensors.torch.save({"1.weight": torch.zeros(2, 2)}),
            "the stored weights do not fit model 'mlp' as it is built today: Missing key(s) in state_dict: ",
        ),
    ],
)
def test_weights_that_do_not_fit(content: bytes, message: str) -> None:
    with pytest.raises(WeightsError) as failed:
        restored(ModelSettings(name="mlp"), content, (1, 8, 8), 3)
    assert str(failed.value).startswith(message)
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"pretrained": True}, {"pretrained": False, "weights": None}),
        ({"weights": "gone.pt", "head": {}}, {"pretrained": False, "weights": None, "head": {}, "normalize": True}),
        ({"pretrained": True, "normalize": False}, {"pretrained": False, "weights": None, "normalize": False}),
        ({"stem": "small"}, {"stem": "small"}),
    ],
)  # fmt: skip
def test_no_weights_are_loaded_where_all_are_at_hand(options: dict[str, Any], asked: dict[str, Any]) -> None:
    assert without_weights(ModelSettings(name="timm:resnet10t", **options)).options == asked


def test_a_network_of_timm_comes_back_without_its_first_weights(tmp_path: Path) -> None:
    settings = ModelSettings(name="timm:resnet10t", weights=str(tmp_path / "first.safetensors"), head={"dense": [8]})
    fresh = ModelSettings(name="timm:resnet10t", head={"dense": [8]}, normalize=True)
    network = models.build(fresh, (3, 32, 32), 4).eval()
    images = torch.rand(2, 3, 32, 32)
    content = packed("t0", network.state_dict())
    assert torch.equal(restored(settings, content, (3, 32, 32), 4)(images), network(images))


# ---------------------------------------------------------------------------------------------------------------------
# Trials


@pytest.mark.parametrize(
    ("model", "augmentation", "options"),
    [
        ("small_cnn", ["flip", "standardize"], {}),
        ("mlp", "none", {"dataset": {"validation": "test"}}),
        ("small_cnn", ["zca"], {"precision": "bf16", "best": "train_loss"}),
    ],
)
def test_the_stored_predictions_follow_from_the_weights_bit_for_bit(
    model: str, augmentation: Any, options: dict[str, Any], make_trial: MakeTrial, source: Source
) -> None:
    trial = make_trial(3, model=model, augmentation=augmentation, **options)
    outcome = run(trial, source, keep_weights=True)
    data = trial_data(source, trial.typed().dataset)
    with again(trial.typed(), trial.seed, kept(outcome), data, "cpu") as network:
        logits = network.logits(data.test())
    assert outcome.predictions is not None
    assert np.array_equal(logits.half().numpy(), outcome.predictions.logits)
    assert (logits.argmax(1).numpy() == outcome.predictions.prediction).all()


def test_a_network_is_asked_in_the_precision_that_it_was_trained_in(
    make_trial: MakeTrial, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if on a GPU."""
    monkeypatch.setattr(trained, "set_precision", lambda train, _: set_precision(train, torch.device("cuda")))
    found = []
    for precision in ("tf32", "float32"):
        trial = make_trial(precision=precision, epochs=1)
        weights, data = kept(run(trial, source, keep_weights=True)), trial_data(source, trial.typed().dataset)
        with again(trial.typed(), trial.seed, weights, data, "cpu"):
            found.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
    assert found == [("high", True), ("highest", False)]


def test_the_weights_are_those_of_the_best_epoch_and_not_of_the_last(make_trial: MakeTrial, source: Source) -> None:
    """All validation images are right before the last epoch: the first such epoch stays the best."""
    outcome = run(make_trial(epochs=6, lr=0.01), source, keep_weights=True)
    short = run(make_trial(epochs=outcome.row.best_epoch, lr=0.01), source, keep_weights=True)
    assert outcome.row.best_epoch is not None and outcome.row.best_epoch < 6, "else this shows nothing"
    one, other = (safetensors.torch.load(kept(o)) for o in (outcome, short))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("validation", [{"size": 30}, "test"])
def test_keeping_weights_changes_no_number(validation: Any, make_trial: MakeTrial, source: Source) -> None:
    trial = make_trial(model="small_cnn", augmentation="flip", dataset={"validation": validation})
    without, with_ = run(trial, source), run(trial, source, keep_weights=True)
    assert without.weights is None and with_.weights is not None
    assert computed(without.row) == computed(with_.row)
    assert [*map(computed, without.epochs)] == [*map(computed, with_.epochs)]
    for field in dataclasses.fields(without.predictions):  # type: ignore[arg-type]
        assert np.array_equal(getattr(without.predictions, field.name), getattr(with_.predictions, field.name))
    assert kept(run(trial, source, keep_weights=True)) == with_.weights


def test_a_failed_trial_has_none(make_trial: MakeTrial, source: Source) -> None:
    outcome = run(make_trial(model={"name": "mlp", "hidden": [0]}), source, keep_weights=True)
    assert (outcome.row.status, outcome.weights) == ("failed", None)


class Stop(SystemExit):
    pass


@pytest.mark.parametrize("kept_before", [True, False])
def test_a_trial_that_goes_on_from_a_checkpoint_ends_with_the_same_weights(
    kept_before: bool, make_trial: MakeTrial, source: Source, tmp_path: Path
) -> None:
    """Also from one of a run that kept none, and whose checkpoint therefore lacks them."""
    trial = make_trial(dataset={"validation": "test"}, epochs=3)
    checkpoints = Checkpoints(str(tmp_path), seconds=0)

    def stop(epoch: Any) -> None:
        if epoch.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        run(trial, source, checkpoints=checkpoints, report=stop, keep_weights=kept_before)
    resumed = run(trial, source, checkpoints=checkpoints, keep_weights=True)
    assert kept(resumed) == kept(run(trial, source, keep_weights=True))


# ---------------------------------------------------------------------------------------------------------------------
# Suites

KEEPING = """
name: keeping
dataset: {name: digits}
compare: {model: [mlp]}
search: {lr: [1e-2, 1e-3]}
repeat: {seed: 2}
"""


def test_the_setting_changes_no_id(load_suite: LoadSuite) -> None:
    ids = {trial.id for trial in load_suite(KEEPING)[1]}
    assert ids == {trial.id for trial in load_suite(KEEPING, "keep_weights=all", "ood.dataset=digits")[1]}


def test_what_a_suite_keeps(load_suite: LoadSuite) -> None:
    """``best`` keeps every point of a search until the winner is known, then what is in the table."""
    suite, search = load_suite(KEEPING, "keep_weights=best")
    confirm = [dataclasses.replace(search[0], stage="confirm"), search[1]]
    assert [trial.stage for trial in search] == ["search", "search"]
    assert with_weights(suite, search) == search
    assert with_weights(suite, confirm) == confirm[:1]
    every = dataclasses.replace(suite, keep_weights="all")
    assert with_weights(every, confirm) == confirm
    assert with_weights(dataclasses.replace(suite, keep_weights="none"), search) == []
    reported, points = load_suite(KEEPING, "keep_weights=best", "confirm=none")
    assert with_weights(reported, points) == points


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("keep_weights: last", "keep_weights: 'last' is not right: must be 'none', 'best' or 'all'"),
        ("ood: {dataset: svnh}", "ood.dataset.name: unknown dataset 'svnh'; did you mean 'svhn'?"),
        ("ood: {dataset: svhn, layer: [a]}", "ood.layer: unknown key; did you mean 'layers'?"),
        ("ood: {layers: all}", "ood.dataset: is missing"),
    ],
)
def test_mistakes_are_one_line(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(f"{KEEPING}{line}\n", encoding="utf-8")
    with pytest.raises(SuiteError) as failed:
        load(path)
    assert str(failed.value).partition(": ")[2] == message


def test_a_trusted_suite_asks_for_no_dataset_by_name(load_suite: LoadSuite) -> None:
    suite, _ = load_suite(KEEPING + "ood: {dataset: digits}")
    kept_as = json.loads(json.dumps(plan.snapshot(plan.Choice(suite)), default=str))
    kept_as["document"]["ood"]["dataset"] = "gone"
    found = plan.restore(kept_as, "suite.json").suite.ood
    assert found is not None and found.dataset.name == "gone" and found.layers == "activations"
