"""Training: bit-identical repeats, the arithmetic of losses and optimizers, stopping and selection, two processes."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from raybench import augment, models, preparation, train
from raybench.data import Source, TrialData, load, trial_data
from raybench.datasets import Dataset, Images
from raybench.grid import Trial
from raybench.rates import Patience
from raybench.records import EpochRow, Outcome, computed
from raybench.registry import AUGMENTATIONS, DATASETS
from raybench.settings import DatasetSettings, EarlyStopping, ModelSettings, Optimizer, TrainSettings
from raybench.train import History, Training, World, _Best, make_optimizer, set_precision
from raybench.trial import fit_augmentation, run_trial

GOLDEN = Path(__file__).parent / "golden"
MakeTrial = Callable[..., Trial]
AddModel = Callable[[str, Any], None]
OPTIMIZERS = get_args(Optimizer.model_fields["name"].annotation)
LOSSES = get_args(TrainSettings.model_fields["loss"].annotation)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return load(DatasetSettings(name="digits"), tmp_path_factory.mktemp("data"))


def data_for(trial: Trial, source: Source) -> TrialData:
    return trial_data(source, trial.typed().dataset)


def run(trial: Trial, source: Source, **options: Any) -> Outcome:
    return run_trial(trial, data_for(trial, source), **options)


def finished(trial: Trial, source: Source) -> Outcome:
    outcome = run(trial, source)
    assert outcome.row.error is None
    return outcome


def trained(trial: Trial, source: Source) -> tuple[Training, History]:
    settings, data = trial.typed(), data_for(trial, source)
    statistics = fit_augmentation(settings, data)
    training = Training(trial.id, trial.seed, settings, data, torch.device("cpu"), World(), statistics)
    return training, training.finish(lambda row: None)


def facts(outcome: Outcome) -> list[Any]:
    """All of a finished trial that must repeat bit for bit."""
    predictions = outcome.predictions
    assert predictions is not None, outcome.row.traceback
    arrays = (predictions.index, predictions.label, predictions.prediction, predictions.logits)
    return [computed(outcome.row), *map(computed, outcome.epochs), *(array.tobytes() for array in arrays)]


class Spy(nn.Module):
    """A network that keeps the batches it is given: (whether in training, images)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen: list[tuple[bool, Tensor]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append((self.training, images.clone()))
        return self.inner(images)

    def batches(self, training: bool) -> list[Tensor]:
        return [images for was_training, images in self.seen if was_training == training]


@pytest.fixture
def spies(add_model: AddModel) -> list[Spy]:
    """The networks that were made under the name ``spy``."""
    made: list[Spy] = []

    def spy(shape: models.Shape, classes: int) -> nn.Module:
        made.append(Spy(models.mlp(shape, classes, hidden=[16])))
        return made[-1]

    add_model("spy", spy)
    return made


class Noise(Dataset):
    """130 + 40 images from a file."""

    def files(self, place: Path) -> list[Path]:
        return [place / "noise.npy"]

    def read(self, place: Path, image_size: int | None) -> Any:
        pixels = np.load(place / "noise.npy")
        splits = {"train": pixels[:130], "test": pixels[130:]}
        return {split: Images(each, np.arange(len(each)) % 3) for split, each in splits.items()}, ("a", "b", "c")


@pytest.mark.parametrize(
    "choices",
    [
        {"augmentation": [{"shift": 0.1}, {"zca": 1e-2}], "lr": 3e-3},
        {"augmentation": [{"flip": 0.5}, "standardize"], "augmented_copies": 2, "model": "small_cnn"},
        {"smoke": True},
    ],
)
def test_a_streamed_trial_repeats_one_in_memory_bit_for_bit(
    choices: dict[str, Any], make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path))
    monkeypatch.setitem(DATASETS._entries, "noise", Noise)
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).integers(0, 256, (170, 8, 8, 1), np.uint8))
    trial = make_trial(dataset={"name": "noise"}, **choices)
    found = []
    for stream in (False, True):
        dataset = trial.typed().dataset.model_copy(update={"stream": stream})
        data = trial_data(load(dataset, tmp_path), dataset)
        assert data.train().streamed == stream
        found.append(facts(run_trial(trial, data)))
    assert found[0] == found[1]


def pixels_of(images: Any) -> list[bytes]:
    """Return the bytes of each image of one channel, whether uint8 or float from 0 to 1."""
    if isinstance(images, Tensor):
        images = (images * 255).round().to(torch.uint8).numpy()
    return [image.tobytes() for image in images]


def row(epoch: int = 1, **metrics: float) -> EpochRow:
    losses = dict.fromkeys(("train_loss", "train_accuracy", "val_loss", "val_accuracy"), 0.5)
    return EpochRow(trial_id="t", epoch=epoch, lr=0.1, **{**losses, **metrics})


# ---------------------------------------------------------------------------------------------------------------------
# The same trial, the same numbers


@pytest.mark.parametrize(
    "choices",
    [
        {"model": {"name": "mlp", "hidden": [32], "dropout": 0.5}, "augmentation": ["shift", "rotation", "flip"]},
        {"model": "small_cnn", "augmentation": "aug1", "optimizer": {"name": "sgd", "momentum": 0.9}, "loss": "bce"},
    ],
)
def test_a_trial_repeats_bit_for_bit_and_a_seed_changes_it(
    choices: dict[str, Any], make_trial: MakeTrial, source: Source
) -> None:
    first = facts(finished(make_trial(3, **choices), source))
    other = facts(finished(make_trial(4, **choices), source))
    assert facts(finished(make_trial(3, **choices), source)) == first  # and another trial in between changed nothing
    for name in ("train_loss", "val_loss", "test_loss"):
        assert other[0][name] != first[0][name]
    assert other[-1] != first[-1]


def test_another_batch_order_and_first_weights_come_from_the_seed(
    make_trial: MakeTrial, source: Source, spies: list[Spy]
) -> None:
    for seed in (0, 1, 0):
        finished(make_trial(seed, model="spy", epochs=2), source)
    first, other, again = ([batch for batch in spy.batches(training=True)] for spy in spies)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[4])  # every epoch has an order of its own


PRECISIONS: Any = (
    *(torch.backends, torch.backends.cudnn, torch.backends.cudnn.conv, torch.backends.cuda.matmul),
    *(torch.backends.mkldnn, torch.backends.mkldnn.conv, torch.backends.mkldnn.rnn, torch.backends.mkldnn.matmul),
)
"""Where torch has switches for the precision of float32; the first of them are also the default of the others."""


def mess_up() -> None:
    """Leave a process in the worst state."""
    torch.manual_seed(1)
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.set_flush_denormal(True)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.allow_tf32 = True
    for place in PRECISIONS:
        place.fp32_precision = "tf32"
    random.seed(1)
    np.random.seed(1)


def test_what_a_trial_leaves_behind_does_not_reach_the_next(
    make_trial: MakeTrial, source: Source, add_model: AddModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even to code from outside, which draws from the streams of Python, NumPy and torch."""

    class Dim(augment.Part):
        def __init__(self) -> None:
            self.amount = 0.5 + float(torch.rand(1)) / 2

        def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
            return images * self.amount

    def foreign(shape: models.Shape, classes: int) -> nn.Module:
        model = models.mlp(shape, classes, hidden=[16], dropout=0.3)
        with torch.no_grad():
            model[1].bias += random.random() + float(np.random.random()) + torch.rand(16)
        return model

    def naughty(shape: models.Shape, classes: int) -> nn.Module:
        model = models.mlp(shape, classes)
        mess_up()
        return model

    add_model("foreign", foreign)
    add_model("naughty", naughty)
    monkeypatch.setitem(AUGMENTATIONS._entries, "dim", Dim)
    trial = make_trial(model="foreign", augmentation=["shift", "dim"])
    first = facts(finished(trial, source))
    try:
        run(make_trial(model="naughty"), source)
        assert torch.get_default_dtype() == torch.float64
        mess_up()  # its own streams, too, which the trial had set anew after the model was made
        assert facts(finished(trial, source)) == first
    finally:
        finished(make_trial(epochs=1), source)  # leaves a clean process
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_num_threads() == 1
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
    assert {place.fp32_precision for place in PRECISIONS} == {"none", "ieee"}


def test_five_epochs_of_losses_are_as_they_were(make_trial: MakeTrial, source: Source, add_model: AddModel) -> None:
    """Guards refactors. What changes these numbers on purpose bumps `grid.IDENTITY_VERSION`."""

    def network(shape: models.Shape, classes: int) -> nn.Module:
        features = nn.Sequential(nn.Conv2d(shape[0], 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        return nn.Sequential(features, nn.Dropout(0.2), nn.Linear(72, classes))

    add_model("golden", network)
    epochs = {}
    for loss, optimizer in (
        ("cross_entropy", {"name": "sgd", "momentum": 0.9, "decay": 1e-2}),
        ("bce", {"name": "sgd", "momentum": 0.8, "nesterov": True, "weight_decay": 1e-3}),
    ):
        trial = make_trial(
            model="golden", augmentation=["shift", "flip"], epochs=5, lr=0.01, loss=loss, optimizer=optimizer
        )
        names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr")
        rows = finished(trial, source).epochs
        epochs[loss] = {name: [getattr(epoch, name) for epoch in rows] for name in names}
    golden = json.loads((GOLDEN / "epochs.json").read_text())
    assert epochs.keys() == golden.keys()
    for loss, columns in golden.items():
        for name, values in columns.items():
            assert epochs[loss][name] == pytest.approx(values, rel=1e-4), (loss, name)


# ---------------------------------------------------------------------------------------------------------------------
# Arithmetic


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_loss_falls(optimizer: str, loss: str, make_trial: MakeTrial, digits: Source) -> None:
    trial = make_trial(optimizer=optimizer, loss=loss, lr=0.01, epochs=3, dataset={"train_size": 300, "test_size": 100})
    first, second, third = (epoch.train_loss for epoch in finished(trial, digits).epochs)
    assert first > second > third


@pytest.mark.parametrize(
    ("settings", "kind", "expected"),
    [
        ({"name": "adam", "weight_decay": 0.1}, torch.optim.Adam, {"weight_decay": 0.1, "betas": (0.9, 0.999)}),
        ({"name": "adamw", "weight_decay": 0.1}, torch.optim.AdamW, {"weight_decay": 0.1, "betas": (0.9, 0.999)}),
        (
            {"name": "sgd", "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
            torch.optim.SGD,
            {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1, "dampening": 0},
        ),
        ({"name": "sgd"}, torch.optim.SGD, {"momentum": 0, "nesterov": False, "weight_decay": 0}),
        (
            {"name": "rmsprop", "momentum": 0.8, "weight_decay": 0.1},
            torch.optim.RMSprop,
            {"alpha": 0.9, "momentum": 0.8, "weight_decay": 0.1, "centered": False},
        ),
    ],
)
def test_settings_reach_the_optimizer(settings: dict[str, Any], kind: type, expected: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    optimizer = make_optimizer(TrainSettings.model_validate({"lr": 0.25, "optimizer": settings}), model)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert group["lr"] == 0.25
    assert {name: group[name] for name in expected} == expected
    assert group.get("fused", True) is True
    assert [id(p) for p in group["params"]] == [id(p) for p in model[1].parameters()]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_is_that_of_keras(name: str, make_trial: MakeTrial, source: Source) -> None:
    """One batch per epoch: the lr of epoch row t is that of step t - 1, counted from 0."""
    trial = make_trial(optimizer={"name": name, "decay": 0.5}, lr=0.012, batch_size=64, epochs=5)
    lrs = [epoch.lr for epoch in finished(trial, source).epochs]
    assert lrs == [0.012 / (1 + 0.5 * step) for step in range(5)]
    assert lrs == pytest.approx([0.012, 0.008, 0.006, 0.0048, 0.004])


def test_decay_counts_steps_and_not_epochs(make_trial: MakeTrial, source: Source) -> None:
    trial = make_trial(optimizer={"name": "adam", "decay": 0.01}, lr=0.01, batch_size=16, epochs=3)
    # 60 images are 4 steps: the last ones of the epochs are steps 3, 7 and 11.
    assert [e.lr for e in finished(trial, source).epochs] == [0.01 / 1.03, 0.01 / 1.07, 0.01 / 1.11]
    assert [e.lr for e in finished(make_trial(lr=0.01), source).epochs] == [0.01] * 3


def test_the_decayed_rate_is_the_one_that_steps(make_trial: MakeTrial, source: Source) -> None:
    """SGD's first step moves the weights by lr times the gradient; with a huge decay nothing moves after it."""
    still = make_trial(optimizer={"name": "sgd", "decay": 1e12}, lr=0.1, batch_size=64, epochs=2)
    moving = make_trial(optimizer="sgd", lr=0.1, batch_size=64, epochs=2)
    (one, two), (first, second) = finished(still, source).epochs, finished(moving, source).epochs
    assert one.val_loss == first.val_loss
    assert two.val_loss == pytest.approx(one.val_loss, rel=1e-6) and second.val_loss < first.val_loss


def test_the_smoothed_loss_is_reported(make_trial: MakeTrial, source: Source) -> None:
    _, history = trained(make_trial(label_smoothing=0.2), source)
    loss = nn.functional.cross_entropy(history.logits, history.labels, label_smoothing=0.2)
    assert float(loss) == pytest.approx(history.best.test_loss)


@pytest.mark.parametrize(
    ("penalty", "on", "gradient"),
    [
        ({"l2": 0.3}, (1, 3), lambda w: 0.3 * 2 * w),
        ({"elastic_net": {"alpha": 0.2, "lambda": 0.5}}, (3,), lambda w: 0.5 * (0.2 * w.sign() + 0.8 * 2 * w)),
        (
            {"elastic_net": {"alpha": 1, "lambda": 0.5, "layers": "all"}, "l2": 0.1},
            (1, 3),
            lambda w: 0.5 * w.sign() + 0.1 * 2 * w,
        ),
    ],
)
def test_penalties_fall_on_kernels(
    penalty: dict[str, Any],
    on: tuple[int, ...],
    gradient: Callable[[Tensor], Tensor],
    make_trial: MakeTrial,
    source: Source,
    add_model: AddModel,
) -> None:
    """One step of SGD: weights move by lr times the gradient of the penalty more than without it."""
    first: dict[str, Tensor] = {}

    def network(shape: models.Shape, classes: int) -> nn.Module:
        made = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, classes))
        first.update({name: tensor.clone() for name, tensor in made.state_dict().items()})
        return made

    add_model("two", network)
    common = {"model": "two", "optimizer": "sgd", "lr": 0.1, "batch_size": 64, "epochs": 1}
    plain, without = trained(make_trial(**common), source)
    other, history = trained(make_trial(**common, **penalty), source)
    for name, weight in other.model.state_dict().items():
        expected = plain.model.state_dict()[name]
        if name in {f"{layer}.weight" for layer in on}:
            expected = expected - 0.1 * gradient(first[name])
        assert torch.allclose(weight, expected, atol=1e-6), name
    assert history.epochs[0].train_loss == without.epochs[0].train_loss  # the loss that is reported is without it


def test_the_rate_falls_at_steps_and_plateaus(make_trial: MakeTrial, source: Source) -> None:
    def lrs(**train: Any) -> list[float]:
        return [epoch.lr for epoch in finished(make_trial(lr=0.01, batch_size=64, **train), source).epochs]

    step = {"name": "step", "every": 2, "factor": 0.5}
    assert lrs(epochs=5, schedule=step) == pytest.approx([0.01, 0.01, 0.005, 0.005, 0.0025])
    never = {"name": "plateau", "patience": 1, "min_delta": 100, "min_lr": 2e-4}
    assert lrs(epochs=5, schedule=never) == pytest.approx([0.01, 0.01, 0.001, 2e-4, 2e-4])
    both = lrs(epochs=4, schedule=step, optimizer={"name": "adam", "decay": 1.0})
    assert both == pytest.approx([0.01, 0.01 / 2, 0.005 / 3, 0.005 / 4])


def test_bf16_runs_and_is_near_float32(make_trial: MakeTrial, source: Source) -> None:
    full, half = (finished(make_trial(model="small_cnn", precision=p), source).epochs for p in ("float32", "bf16"))
    assert [epoch.train_loss for epoch in half] == pytest.approx([epoch.train_loss for epoch in full], rel=0.1)
    assert half[0].train_loss != full[0].train_loss


@pytest.mark.parametrize("gpu", [False, True])
def test_tf32_is_allowed_for_its_trial_alone_and_changes_nothing_here(
    make_trial: MakeTrial, source: Source, add_model: AddModel, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    """On a CPU nothing is set: one with matrix units would take it for a permission. And as if on a GPU."""
    if gpu:
        monkeypatch.setattr(
            train, "set_precision", lambda settings, _, real=set_precision: real(settings, torch.device("cuda"))
        )
    seen: list[tuple[bool, str]] = []

    class Noting(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            seen.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
            return super().forward(images)

    add_model("noting", lambda shape, classes: Noting(nn.Flatten(), nn.Linear(64, classes)))
    trials = [make_trial(model="noting", augmentation="zca", precision=p, epochs=1) for p in ("tf32", "float32")]
    outcomes = [finished(trial, source) for trial in trials]
    assert set(seen[: len(seen) // 2]) == {(True, "high") if gpu else (False, "highest")}
    assert set(seen[len(seen) // 2 :]) == {(False, "highest")}
    assert trials[0].id != trials[1].id
    losses = [[epoch.train_loss for epoch in outcome.epochs] for outcome in outcomes]
    assert losses[0] == (pytest.approx(losses[1], rel=1e-6) if gpu else losses[1])


def test_whitening_is_of_all_digits_in_a_trial_of_tf32() -> None:
    zca = preparation.ZCA()
    zca.mean, zca.matrix = torch.zeros(3), torch.eye(12)
    seen: list[str] = []

    class Noting(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "matmul" in func.__name__:
                seen.append(torch.get_float32_matmul_precision())
            return func(*args, **(kwargs or {}))

    torch.set_float32_matmul_precision("high")
    try:
        with Noting():
            zca.apply(torch.rand(2, 3, 2, 2), torch.empty(2, 0))
        assert seen == ["highest"]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


# ---------------------------------------------------------------------------------------------------------------------
# Which images


def test_every_image_is_trained_on_once_an_epoch(make_trial: MakeTrial, source: Source, spies: list[Spy]) -> None:
    trial = make_trial(model="spy", epochs=2)
    finished(trial, source)
    expected = pixels_of(data_for(trial, source).train().gather(slice(None))[0])
    batches = spies[0].batches(training=True)
    assert [len(batch) for batch in batches] == [16, 16, 16, 12] * 2
    for epoch in (batches[:4], batches[4:]):
        assert sorted(pixels_of(torch.cat(epoch))) == sorted(expected)


def test_a_last_batch_of_one_image_is_left_out(make_trial: MakeTrial, source: Source, add_model: AddModel) -> None:
    """Batch norm cannot take one; whoever is left out changes from epoch to epoch."""
    made: list[Spy] = []

    def normed(shape: models.Shape, classes: int) -> nn.Module:
        made.append(Spy(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, classes))))
        return made[-1]

    add_model("normed", normed)
    outcome = finished(make_trial(model="normed", batch_size=16, epochs=2, dataset={"train_size": 33}), source)
    assert [len(batch) for batch in made[0].batches(training=True)] == [16, 16] * 2
    assert outcome.row.train_images == 33
    assert (outcome.epochs[0].train_accuracy * 32) % 1 == 0


def test_batches_of_one_image_are_all_trained_on(make_trial: MakeTrial, source: Source, spies: list[Spy]) -> None:
    finished(make_trial(model="spy", batch_size=1, epochs=1), source)
    assert [len(batch) for batch in spies[0].batches(training=True)] == [1] * 60


def test_a_batch_larger_than_the_training_images(make_trial: MakeTrial, source: Source, spies: list[Spy]) -> None:
    finished(make_trial(model="spy", batch_size=1000, epochs=2), source)
    assert [len(batch) for batch in spies[0].batches(training=True)] == [60, 60]


def test_evaluation_is_whitened_and_not_augmented(make_trial: MakeTrial, source: Source, spies: list[Spy]) -> None:
    trial = make_trial(model="spy", augmentation=[{"shift": 0.5}, "zca"], epochs=1)
    finished(trial, source)
    data = data_for(trial, source)
    whitening = augment.build(trial.typed().augmentation)
    whitening.load(fit_augmentation(trial.typed(), data), "cpu")
    validation, test = spies[0].batches(training=False)
    for seen, part in ((validation, data.validation()), (test, data.test())):
        raw = torch.from_numpy(part.gather(slice(None))[0]).permute(0, 3, 1, 2).float() / 255
        assert torch.allclose(seen, whitening.evaluate(raw), atol=1e-3)
        assert not torch.allclose(seen, raw, atol=0.1)

    plain = make_trial(model="spy", augmentation={"shift": 0.5}, epochs=1)
    finished(plain, source)
    raw = torch.from_numpy(data.test().gather(slice(None))[0]).permute(0, 3, 1, 2).float() / 255
    assert torch.allclose(spies[1].batches(training=False)[-1], raw)
    shown = pixels_of(torch.cat(spies[1].batches(training=True)))
    assert not set(shown) & set(pixels_of(data.train().gather(slice(None))[0]))  # every one was moved


@pytest.mark.parametrize("copies", [1, 2])
def test_originals_and_augmented_copies(copies: int, make_trial: MakeTrial, source: Source, spies: list[Spy]) -> None:
    trial = make_trial(model="spy", augmentation={"shift": 0.5}, epochs=2, augmented_copies=copies)
    outcome = finished(trial, source)
    originals = sorted(pixels_of(data_for(trial, source).train().gather(slice(None))[0]))
    batches = spies[0].batches(training=True)
    half = len(batches) // 2
    for epoch in (batches[:half], batches[half:]):
        shown = pixels_of(torch.cat(epoch))
        assert len(shown) == 60 * (1 + copies)
        assert sorted(image for image in shown if image in originals) == originals  # the rest was moved
    assert outcome.row.train_images == 60


def test_originals_are_whitened(make_trial: MakeTrial, source: Source, spies: list[Spy]) -> None:
    trial = make_trial(model="spy", augmentation=[{"shift": 0.5}, "zca"], epochs=1, augmented_copies=1)
    finished(trial, source)
    data = data_for(trial, source)
    whitening = augment.build(trial.typed().augmentation)
    whitening.load(fit_augmentation(trial.typed(), data), "cpu")
    raw = torch.from_numpy(data.train().gather(slice(None))[0]).permute(0, 3, 1, 2).float() / 255
    shown = torch.cat(spies[0].batches(training=True)).flatten(1)
    nearest = torch.cdist(whitening.evaluate(raw).flatten(1), shown).min(1).values
    assert float(nearest.max()) < 0.1


def test_smoke_is_one_epoch_of_two_batches(make_trial: MakeTrial, source: Source, spies: list[Spy]) -> None:
    outcome = finished(make_trial(model="spy", smoke=True, batch_size=8), source)
    row = outcome.row
    assert [len(batch) for batch in spies[0].batches(training=True)] == [8, 8]
    assert (row.status, row.epochs) == ("completed", 1)
    assert (row.train_images, row.validation_images, row.test_images) == (16, 16, 16)
    assert outcome.predictions is not None and len(outcome.predictions.label) == 16


def test_smoke_needs_no_pretrained_weights(
    make_trial: MakeTrial, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timm.models._builder.load_pretrained", None)  # calling it would fail
    model = {"name": "timm:resnet10t", "pretrained": True, "head": {}}
    row = finished(make_trial(model=model, smoke=True, batch_size=4), source).row
    assert (row.status, row.weights_fingerprint) == ("completed", None)


# ---------------------------------------------------------------------------------------------------------------------
# Stopping, selecting, testing


@pytest.mark.parametrize(
    ("metric", "values", "epoch"),
    [
        ("val_accuracy", [0.1, 0.3, 0.3, 0.2], 2),
        ("val_loss", [0.3, 0.1, 0.2, 0.1], 2),
        ("train_loss", [0.3, 0.2, 0.1], 3),
        ("val_accuracy", [math.nan, 0.0, math.nan], 2),
        ("val_loss", [math.nan, math.nan], 1),
    ],
)
def test_the_first_best_epoch_is_chosen_with_its_weights(metric: str, values: list[float], epoch: int) -> None:
    model, best = nn.Linear(1, 1), _Best(metric)
    for number, value in enumerate(values, 1):
        nn.init.constant_(model.weight, number)
        best.see(row(number, **{metric: value}), model, None)
    assert best.epoch == epoch
    assert best.weights["weight"].item() == epoch
    assert best.logits is None


@pytest.mark.parametrize(
    ("metric", "patience", "min_delta"), [("val_accuracy", 2, 0.05), ("val_loss", 1, 0.2), ("train_accuracy", 3, 0.1)]
)
def test_training_stops_where_its_patience_ends(
    metric: str, patience: int, min_delta: float, make_trial: MakeTrial, digits: Source
) -> None:
    common = {"dataset": {"train_size": 200, "test_size": 100}, "epochs": 15, "lr": 0.01}
    stopping = {"metric": metric, "patience": patience, "min_delta": min_delta}
    whole = finished(make_trial(**common), digits)
    stopped = finished(make_trial(**common, early_stopping=stopping), digits)
    rule = Patience(EarlyStopping(**stopping))
    stops = next(epoch.epoch for epoch in whole.epochs if rule.is_exhausted_by(epoch))
    assert 1 < stops < 15
    assert (whole.row.status, whole.row.epochs) == ("completed", 15)
    assert (stopped.row.status, stopped.row.epochs) == ("stopped_early", stops)
    assert [epoch.train_loss for epoch in stopped.epochs] == [epoch.train_loss for epoch in whole.epochs[:stops]]


def test_patience_that_ends_with_the_last_epoch_stops_nothing_early(make_trial: MakeTrial, source: Source) -> None:
    trial = make_trial(epochs=3, early_stopping={"metric": "val_accuracy", "patience": 2, "min_delta": 1.0})
    outcome = finished(trial, source)
    assert (outcome.row.status, outcome.row.epochs) == ("completed", 3)


def test_the_weights_of_the_best_epoch_are_tested(make_trial: MakeTrial, digits: Source) -> None:
    """Training again for just so many epochs ends with the same weights."""
    common = {"dataset": {"train_size": 200, "test_size": 200}, "lr": 0.03, "model": "small_cnn"}
    whole = finished(make_trial(**common, epochs=8), digits)
    best = whole.row.best_epoch
    assert best is not None and best < 8
    values = [epoch.val_accuracy for epoch in whole.epochs]
    assert best == values.index(max(values)) + 1
    short = finished(make_trial(**common, epochs=best), digits)
    assert short.row.best_epoch == best
    assert facts(short)[-2:] == facts(whole)[-2:]
    same = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy")
    assert [getattr(short.row, name) for name in same] == [getattr(whole.row, name) for name in same]
    assert [getattr(whole.epochs[best - 1], name) for name in same] == [getattr(whole.row, name) for name in same]
    last = finished(make_trial(**common, epochs=8, best="train_loss", test_every_epoch=True), digits)
    assert whole.epochs[-1].test_accuracy == last.epochs[-1].test_accuracy
    assert whole.epochs[best - 1].test_accuracy == last.epochs[best - 1].test_accuracy


def test_the_best_and_the_last_epoch_are_tested_or_every_one(make_trial: MakeTrial, digits: Source) -> None:
    common = {"dataset": {"train_size": 200, "test_size": 200}, "lr": 0.03, "model": "small_cnn", "epochs": 8}
    some = finished(make_trial(**common), digits)
    every = finished(make_trial(**common, test_every_epoch=True), digits)
    assert [e.epoch for e in some.epochs if e.test_accuracy is not None] == [some.row.best_epoch, 8]
    assert [e.epoch for e in some.epochs if e.test_loss is not None] == [some.row.best_epoch, 8]
    for one, other in zip(some.epochs, every.epochs, strict=True):
        assert other.test_loss is not None and other.test_accuracy is not None
        assert (one.test_loss, one.test_accuracy) in ((None, None), (other.test_loss, other.test_accuracy))
    assert facts(every)[-1] == facts(some)[-1]


def test_validation_on_test_images(make_trial: MakeTrial, digits: Source) -> None:
    dataset = {"train_size": 200, "test_size": 200, "validation": "test"}
    outcome = finished(make_trial(dataset=dataset, model="small_cnn", lr=0.03, epochs=6), digits)
    for epoch in outcome.epochs:
        assert (epoch.val_loss, epoch.val_accuracy) == (epoch.test_loss, epoch.test_accuracy)
    assert outcome.row.test_accuracy == max(epoch.val_accuracy for epoch in outcome.epochs)
    assert outcome.row.validation == "test"
    assert outcome.predictions is not None
    right = outcome.predictions.prediction == outcome.predictions.label
    assert right.mean() == pytest.approx(outcome.row.test_accuracy)


def test_what_training_hands_back(make_trial: MakeTrial, source: Source) -> None:
    training, history = trained(make_trial(epochs=2), source)
    assert {name: len(feed) for name, feed in training.feeds.items()} == {"train": 60, "val": 30, "test": 40}
    assert training.weights_fingerprint is None
    assert history.best is history.epochs[history.best.epoch - 1]
    assert torch.equal(history.labels, torch.from_numpy(source.splits["test"].labels))
    assert float((history.logits.argmax(1) == history.labels).double().mean()) == history.best.test_accuracy
    loss = float(nn.functional.cross_entropy(history.logits, history.labels))
    assert loss == pytest.approx(history.best.test_loss)
    assert training.rate.steps == 8


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_diverged_trial_keeps_its_epochs(
    poison: float, make_trial: MakeTrial, source: Source, add_mlp: AddModel
) -> None:
    steps = itertools.count(1)

    def poisoned(mlp: nn.Module, images: Tensor) -> Tensor:  # in the last step of its third epoch
        return mlp(images) * (poison if mlp.training and next(steps) == 12 else 1)

    add_mlp("poisoned", poisoned)
    outcome = run(make_trial(model="poisoned", epochs=5), source)
    row = outcome.row
    assert (row.status, row.error_class, row.epochs) == ("failed", "diverged", 2)
    assert row.error == "Diverged: the training loss is nan in epoch 3: a smaller learning rate may help"
    assert [epoch.epoch for epoch in outcome.epochs] == [1, 2]
    assert row.test_accuracy is None and row.best_epoch is None and outcome.predictions is None
    healthy = finished(make_trial(epochs=2), source)
    assert [epoch.train_loss for epoch in outcome.epochs] == [epoch.train_loss for epoch in healthy.epochs]


def test_a_learning_rate_that_is_too_large_diverges(make_trial: MakeTrial, source: Source) -> None:
    row = run(make_trial(optimizer="sgd", lr=1e30, epochs=5), source).row
    assert (row.status, row.error_class) == ("failed", "diverged")


# ---------------------------------------------------------------------------------------------------------------------
# Parts of the network, phases


def snapshots(training: Training) -> list[dict[str, Tensor]]:
    """Train to the end and return the weights after each epoch."""
    kept: list[dict[str, Tensor]] = []
    training.finish(lambda row: kept.append({k: v.clone() for k, v in training.model.state_dict().items()}))
    return kept


def begun(trial: Trial, source: Source) -> Training:
    return Training(trial.id, trial.seed, trial.typed(), data_for(trial, source), torch.device("cpu"), World(), {})


def changes(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("trainable", "moved"), [("head", {"10"}), ({"last": 1}, {"6", "10"}), ({"last": 2}, {"2", "3", "6", "10"})]
)
def test_what_is_not_trained_keeps_every_bit(
    trainable: Any, moved: set[str], make_trial: MakeTrial, source: Source
) -> None:
    training = begun(make_trial(model="small_cnn", trainable=trainable, epochs=2), source)
    before = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    after = snapshots(training)[-1]
    assert {name.split(".")[0] for name in changes(before, after)} == moved


def test_more_layers_than_there_are_fail_the_trial(make_trial: MakeTrial, source: Source) -> None:
    row = run(make_trial(trainable={"last": 5}), source).row
    assert row.status == "failed"
    assert row.error == "UserError: last: 5 is too many: 1 layers with weights stand before the head"


def test_phases_go_on_from_the_last_weights(make_trial: MakeTrial, source: Source) -> None:
    phases = [{"epochs": 2, "trainable": "head"}, {"epochs": 3, "lr": 1e-5, "optimizer": "sgd"}]
    trial = make_trial(model="small_cnn", lr=0.01, phases=phases, epochs=5)
    training = begun(trial, source)
    rows: list[EpochRow] = []
    kept: list[dict[str, Tensor]] = []

    def see(row: EpochRow) -> None:
        rows.append(row)
        kept.append({name: tensor.clone() for name, tensor in training.model.state_dict().items()})

    history = training.finish(see)
    assert [row.epoch for row in rows] == [1, 2, 3, 4, 5]
    assert [row.lr for row in rows] == [0.01, 0.01, 1e-5, 1e-5, 1e-5]
    assert training.rate.steps == 3 * 4, "counted from the first of the phase"
    assert {name.split(".")[0] for name in changes(kept[0], kept[1])} == {"10"}
    assert {name.split(".")[0] for name in changes(kept[1], kept[2])} == {"0", "2", "3", "6", "10"}
    assert isinstance(training.optimizer, torch.optim.SGD)
    assert torch.allclose(kept[1]["10.weight"], kept[2]["10.weight"], atol=1e-3)  # it went on from there
    assert not history.stopped_early

    alone = begun(make_trial(model="small_cnn", lr=0.01, trainable="head", epochs=2), source)
    assert not changes(snapshots(alone)[-1], kept[1])


def test_one_phase_is_training_without_phases(make_trial: MakeTrial, source: Source) -> None:
    choices = {"model": "small_cnn", "augmentation": "shift", "optimizer": {"name": "adam", "decay": 0.1}}
    plain = finished(make_trial(**choices), source)
    phased = finished(make_trial(**choices, phases=[{"epochs": 3}]), source)
    names = ("train_loss", "val_loss", "test_loss", "lr")
    assert [[getattr(e, n) for n in names] for e in phased.epochs] == [
        [getattr(e, n) for n in names] for e in plain.epochs
    ]


def test_every_phase_has_its_own_patience_schedule_and_decay(make_trial: MakeTrial, source: Source) -> None:
    trial = make_trial(
        lr=0.01,
        batch_size=64,
        phases=[{"epochs": 9}, {"epochs": 9, "lr": 0.02}],
        epochs=18,
        early_stopping={"patience": 3, "min_delta": 1.0},
        schedule={"name": "step", "every": 2},
        optimizer={"name": "adam", "decay": 1.0},
        best="val_loss",
    )
    outcome = finished(trial, source)
    assert (outcome.row.status, outcome.row.epochs) == ("stopped_early", 8)
    falls = [1, 1 / 2, 0.1 / 3, 0.1 / 4]
    assert [e.lr for e in outcome.epochs] == pytest.approx([0.01 * f for f in falls] + [0.02 * f for f in falls])
    losses = [epoch.val_loss for epoch in outcome.epochs]
    assert outcome.row.best_epoch == losses.index(min(losses)) + 1


def test_a_phase_may_have_another_patience_and_schedule(make_trial: MakeTrial, source: Source) -> None:
    phases = [
        {"epochs": 9, "early_stopping": {"patience": 2, "min_delta": 1.0}},
        {"epochs": 4, "schedule": {"name": "step", "every": 2}},
    ]
    outcome = finished(make_trial(lr=0.01, batch_size=64, phases=phases, epochs=13), source)
    assert (outcome.row.status, outcome.row.epochs) == ("stopped_early", 7)
    assert [e.lr for e in outcome.epochs] == pytest.approx([0.01] * 5 + [0.001] * 2)


def test_the_best_epoch_is_that_of_all_phases(make_trial: MakeTrial, source: Source) -> None:
    phases = [{"epochs": 3, "lr": 0.01}, {"epochs": 2, "lr": 10.0, "optimizer": "sgd"}]
    outcome = finished(make_trial(phases=phases, epochs=5, best="val_loss"), source)
    assert outcome.epochs[-1].val_loss > outcome.epochs[2].val_loss
    assert outcome.row.best_epoch is not None and outcome.row.best_epoch <= 3
    assert outcome.row.test_loss == outcome.epochs[outcome.row.best_epoch - 1].test_loss


def test_smoke_is_one_epoch_of_each_phase(make_trial: MakeTrial, source: Source) -> None:
    phases = [{"epochs": 4, "trainable": "head"}, {"epochs": 4}]
    row = finished(make_trial(phases=phases, epochs=8, smoke=True), source).row
    assert (row.status, row.epochs) == ("completed", 2)


# ---------------------------------------------------------------------------------------------------------------------
# Several processes


def one_rank(rank: int, folder: Path, trials: list[tuple[Trial, TrialData]]) -> None:
    """What each of two processes does."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    outcomes = [run_trial(trial, data, world=World(rank, 2)) for trial, data in trials]
    trial, data = trials[2]
    training = Training(trial.id, trial.seed, trial.typed(), data, torch.device("cpu"), World(rank, 2), {})
    stream = torch.initial_seed()
    training.finish(lambda row: None)
    (folder / str(rank)).write_bytes(pickle.dumps((outcomes, stream, training.model.state_dict())))
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(make_trial: MakeTrial, source: Source, tmp_path: Path) -> None:
    plain = {"augmentation": {"shift": 0.2}, "batch_size": 16, "optimizer": "sgd", "lr": 0.05, "epochs": 2}
    trials = [
        make_trial(**plain, loss="bce"),
        make_trial(**plain, dataset={"validation": "test"}, test_every_epoch=True),
        make_trial(**plain, model="small_cnn"),  # its batch norm sees half of a batch in each process
        make_trial(**plain, model={"name": "mlp", "dropout": 0.5}),
        make_trial(
            **plain,
            phases=[{"epochs": 1, "trainable": "head", "lr": 0.1}, {"epochs": 1}],
            augmented_copies=1,
            l2=0.01,
            label_smoothing=0.1,
        ),
        make_trial(**{**plain, "lr": 1e30}),
    ]
    work = [(trial, data_for(trial, source)) for trial in trials]
    torch.multiprocessing.spawn(one_rank, (tmp_path, work), nprocs=2)
    ranks = [pickle.loads((tmp_path / str(rank)).read_bytes()) for rank in (0, 1)]
    (outcomes, stream, weights), (others, other_stream, other_weights) = ranks
    for one, other in zip(outcomes, others, strict=True):
        assert one.row.workers == other.row.workers == 2
        assert [computed(epoch) for epoch in one.epochs] == [computed(epoch) for epoch in other.epochs]
        assert one.row.error_class == other.row.error_class
    assert [outcome.row.error_class for outcome in outcomes] == [None] * 5 + ["diverged"]
    assert [facts(outcome) for outcome in outcomes[:5]] == [facts(outcome) for outcome in others[:5]]
    assert stream != other_stream  # dropout falls on other units
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)  # batch norm's averages too

    for trial, outcome in [(trials[at], outcomes[at]) for at in (0, 1, 4)]:
        alone = finished(trial, source)
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"):
            found, expected = ([getattr(epoch, name) for epoch in o.epochs] for o in (outcome, alone))
            assert found == pytest.approx(expected, abs=1e-4), name
        assert outcome.row.test_loss == pytest.approx(alone.row.test_loss, abs=1e-4)


def test_a_process_may_have_no_image_to_test(
    make_trial: MakeTrial, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sent in ("broadcast", "all_reduce"):
        monkeypatch.setattr(train.dist, sent, lambda tensor, *of: None)
    trial = make_trial(dataset={"test_size": 1})
    settings, data = trial.typed(), data_for(trial, source)
    logits = [
        Training(trial.id, 0, settings, data, torch.device("cpu"), World(rank, size), {})._logits("test")
        for rank, size in ((0, 1), (0, 3), (1, 3), (2, 3))
    ]
    alone, *parts = logits
    assert torch.equal(parts[0], alone)
    assert [part.count_nonzero().item() for part in parts[1:]] == [0, 0]


def test_a_pretrained_model_has_a_fingerprint_of_its_weights(
    make_trial: MakeTrial, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "weights_fingerprint", lambda settings, model: f"weights of {settings.name}")
    assert finished(make_trial(epochs=1), source).row.weights_fingerprint == "weights of mlp"
    assert isinstance(make_trial().typed().model, ModelSettings)
