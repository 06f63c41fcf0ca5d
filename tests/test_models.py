from __future__ import annotations

import math
import os
import pickle
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from raybench import models
from raybench.errors import UserError, WeightsError
from raybench.registry import MODELS
from raybench.settings import ModelSettings

SMALLEST = {
    "model1": (3, 10, 12),
    "model2": (3, 8, 8),
    "model3": (3, 10, 12),
    "small_cnn": (1, 4, 4),
    "mlp": (1, 1, 1),
}


def make(name: str, shape=(3, 32, 32), classes=10, seed=0, **options) -> nn.Module:
    torch.manual_seed(seed)
    return models.build(ModelSettings(name=name, **options), shape, classes)


def message(name: str, shape=(3, 32, 32), function=models.build, **options) -> str:
    with pytest.raises(UserError) as error:
        function(ModelSettings(name=name, **options), shape, 10)
    assert "\n" not in str(error.value)
    return str(error.value)


def layers(network: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in network.children()]


# Every registered model


@pytest.mark.parametrize("name", MODELS.names())
@pytest.mark.parametrize("smallest", [True, False])
def test_a_model_maps_images_to_logits_and_learns_with_all_its_parameters(name, smallest):
    shape = SMALLEST[name] if smallest and name in SMALLEST else (3, 32, 32)
    network = make(name, shape, classes=7)
    logits = network(torch.rand(8, *shape))
    assert logits.shape == (8, 7)
    assert logits.isfinite().all()
    assert (logits < 0).any()  # no softmax
    nn.functional.cross_entropy(logits, torch.arange(8) % 7).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert (parameter.grad != 0).any(), key


@pytest.mark.parametrize("name", MODELS.names())
def test_the_random_stream_decides_the_weights(name):
    first, again, other = (make(name, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
    assert all(module.training for module in make(name).modules())


@pytest.mark.parametrize("name", MODELS.names())
def test_checking_accepts_a_model_and_leaves_the_random_stream_alone(name):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    models.check(ModelSettings(name=name), (3, 32, 32), 10)
    assert torch.equal(torch.random.get_rng_state(), before)


# The models of report 000, section 3.1

REPORT = {
    "model1": "Conv2D LeakyReLU Conv2D LeakyReLU MaxPooling2D Dropout"
    " Conv2D LeakyReLU Conv2D LeakyReLU MaxPooling2D Dropout Flatten Dense LeakyReLU Dropout Dense",
    "model2": "Conv2D Conv2D MaxPooling2D Dropout Conv2D Conv2D MaxPooling2D Dropout"
    " Conv2D Conv2D MaxPooling2D Dropout BatchNormalization Flatten Dense Dropout Dense",
    "model3": "Conv2D MaxPooling2D Conv2D MaxPooling2D Flatten Dense Dropout Dense Dropout Dense Dropout Dense",
}
"""Without the activation at the end, which is the loss's. Models 2 and 3 have ReLU inside their layers."""

KERAS = {"Conv2d": "Conv2D", "MaxPool2d": "MaxPooling2D", "BatchNorm2d": "BatchNormalization", "Linear": "Dense"}


@pytest.mark.parametrize("name", REPORT)
def test_the_layers_are_those_of_the_report(name):
    network = make(name)
    found = [KERAS.get(layer, layer) for layer in layers(network) if layer != "ReLU"]
    assert found == REPORT[name].split()
    activations = [layer for layer in layers(network) if layer.endswith("ReLU")]
    weighted = [layer for layer in layers(network) if layer in ("Conv2d", "Linear")]
    assert len(activations) == len(weighted) - 1


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # 3x3 convolutions: 9 * in * out + out; dense layers: in * out + out
        ("model1", 896 + 9_248 + 18_496 + 36_928 + (6 * 6 * 64 * 512 + 512) + 5_130),
        ("model2", 896 + 9_248 + 18_496 + 36_928 + 73_856 + 147_584 + 2 * 128 + (4 * 4 * 128 * 128 + 128) + 1_290),
        ("model3", 896 + 18_496 + (6 * 6 * 64 * 256 + 256) + 32_896 + 8_256 + 650),
        ("small_cnn", 448 + 4_640 + 2 * 32 + 18_496 + (8 * 8 * 64 * 10 + 10)),
        ("mlp", (3_072 * 64 + 64) + 650),
    ],
)
def test_parameters_are_as_counted_by_hand(name, parameters):
    assert models.parameter_count(make(name)) == parameters


def test_model2_does_the_arithmetic_it_was_measured_with():
    with torch.device("meta"):
        network, image = make("model2"), torch.rand(1, 3, 32, 32)
    with FlopCounterMode(display=False) as forward:
        logits = network.eval()(image)
    assert forward.get_total_flops() == 77_793_792
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    assert forward.get_total_flops() + backward.get_total_flops() == 231_611_904


def test_weights_start_as_in_keras():
    conv = make("model1")[2]
    limit = math.sqrt(6 / (9 * 32 + 9 * 32))
    assert 0.99 * limit < conv.weight.abs().max() <= limit
    assert (conv.bias == 0).all()


def test_model2_normalises_as_keras_does():
    (norm,) = [layer for layer in make("model2") if isinstance(layer, nn.BatchNorm2d)]
    assert (norm.eps, norm.momentum) == (1e-3, 0.01)


# Options


def test_an_mlp_has_the_layers_it_is_asked_for():
    network = make("mlp", hidden=[20, 12], dropout=0.3)
    assert layers(network) == ["Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert [layer.out_features for layer in network if isinstance(layer, nn.Linear)] == [20, 12, 10]
    assert network[3].p == 0.3


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        ({"name": "modl1"}, (3, 32, 32), "unknown model 'modl1'; did you mean 'model1'?"),
        ({"name": "mlp", "hiden": [8]}, (3, 32, 32), "model 'mlp' has no option 'hiden'; did you mean 'hidden'?"),
        ({"name": "model1", "width": 8}, (3, 32, 32), "model 'model1' has no option 'width'"),
        (
            {"name": "mlp", "hidden": 64},
            (1, 8, 8),
            "model 'mlp' (hidden=64) for images of 8x8:"
            " hidden must be a list of layer widths such as [128, 64], not 64",
        ),
        (
            {"name": "mlp", "dropout": 2},
            (1, 8, 8),
            "model 'mlp' (dropout=2) for images of 8x8: dropout probability has to be between 0 and 1, but got 2",
        ),
        (
            {"name": "model1"},
            (3, 8, 8),
            "model 'model1' for images of 8x8: they are too small, its layers leave nothing of them",
        ),
        (
            {"name": "timm:resnet81"},
            (3, 32, 32),
            "unknown model 'timm:resnet81'; did you mean 'timm:resnet18'?",
        ),
        (
            {"name": "timm:resnet10t", "drop_rte": 0.1},
            (3, 32, 32),
            "model 'timm:resnet10t' (drop_rte=0.1) for images of 32x32:"
            " ResNet.__init__() got an unexpected keyword argument 'drop_rte'",
        ),
        (
            {"name": "timm:resnet10t", "stem": "small"},
            (3, 32, 32),
            "model 'timm:resnet10t' (stem='small') for images of 32x32: stem: small is for networks that begin with"
            " a 7x7 convolution and pooling, such as resnet18",
        ),
        (
            {"name": "timm:resnet18", "stem": "tiny"},
            (3, 32, 32),
            "model 'timm:resnet18' (stem='tiny') for images of 32x32: stem must be small, not 'tiny'",
        ),
        (
            {"name": "timm:resnet18", "pretrained": True, "stem": "small"},
            (3, 32, 32),
            "model 'timm:resnet18' (pretrained=True, stem='small') for images of 32x32: the pretrained first"
            " convolution does not fit another stem: give either pretrained or stem",
        ),
        (
            {"name": "timm:resnet18", "pretrained": True, "weights": "w.pt"},
            (3, 32, 32),
            "model 'timm:resnet18' (pretrained=True, weights='w.pt') for images of 32x32:"
            " give either pretrained or weights",
        ),
    ],
)
@pytest.mark.parametrize("function", [models.build, models.check])
def test_mistakes_are_named_before_and_while_building(function, model, shape, expected):
    assert message(**model, shape=shape, function=function) == expected


# Checking


def test_checking_finds_images_that_only_the_forward_pass_refuses(monkeypatch):
    monkeypatch.setitem(MODELS._entries, "pools", lambda shape, classes: nn.Sequential(nn.MaxPool2d(9), nn.Flatten()))
    found = message("pools", (3, 8, 8), models.check)
    assert re.match(r"model 'pools' for images of 8x8: .*Output size is too small", found)


def test_checking_finds_an_output_that_is_not_logits(monkeypatch):
    monkeypatch.setitem(MODELS._entries, "flat", lambda shape, classes: nn.Flatten())
    expected = "model 'flat' must map two images to logits of shape [2, 10], not [2, 192]"
    assert message("flat", (3, 8, 8), models.check) == expected


def test_checking_passes_over_a_model_that_needs_real_numbers(monkeypatch):
    def builder(shape, classes, **options):
        rates = [rate.item() for rate in torch.linspace(0, options["most"], 3)]
        return nn.Sequential(nn.Flatten(), nn.Dropout(rates[-1]), nn.Linear(192, classes))

    monkeypatch.setitem(MODELS._entries, "rates", builder)
    models.check(ModelSettings(name="rates", most=0.5), (3, 8, 8), 10)
    assert make("rates", (3, 8, 8), most=0.5)[1].p == 0.5


def test_checking_looks_for_no_weights():
    models.check(ModelSettings(name="timm:resnet10t", pretrained=True), (3, 32, 32), 10)
    models.check(ModelSettings(name="timm:resnet10t", weights="missing.pt"), (3, 32, 32), 10)


# timm


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("timm:resnet10t", (1, 28, 20), {"drop_rate": 0.2}),
        ("timm:test_vit", (3, 32, 32), {}),  # made for 160x160
    ],
)
def test_a_timm_model_takes_the_images_of_the_dataset(name, shape, options):
    models.check(ModelSettings(name=name, **options), shape, 7)
    network = make(name, shape, 7, **options)
    assert network(torch.rand(2, *shape)).shape == (2, 7)
    assert models.weights_fingerprint(ModelSettings(name=name, **options), network) is None


def test_a_small_stem_keeps_the_resolution():
    network = make("timm:resnet18", stem="small")
    first = network.conv1
    assert (first.kernel_size, first.stride, first.padding, first.bias) == ((3, 3), (1, 1), (1, 1), None)
    before_layer1 = network.maxpool(network.conv1(torch.rand(1, 3, 32, 32)))
    assert before_layer1.shape == (1, 64, 32, 32)
    assert first.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.05)


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, Tensor]:
    """The state of a network with 10 classes, saved in every form that is accepted."""
    state = make("timm:resnet10t", seed=7).state_dict()
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "nested.pt")
    return state


@pytest.mark.parametrize("file", ["w.safetensors", "w.pt", "nested.pt"])
def test_weights_come_from_a_file(file, saved, tmp_path):
    options = {"weights": str(tmp_path / file)}
    network = make("timm:resnet10t", **options)
    assert all(torch.equal(value, saved[key]) for key, value in network.state_dict().items())

    other = make("timm:resnet10t", classes=4, seed=1, **options)  # the head is made for other classes: a fresh one
    assert other.get_classifier().out_features == 4
    assert torch.equal(other.state_dict()["layer1.0.conv1.weight"], saved["layer1.0.conv1.weight"])

    prints = {models.weights_fingerprint(ModelSettings(name="timm:resnet10t", **options), n) for n in (network, other)}
    assert len(prints) == 1
    assert re.fullmatch("[0-9a-f]{16}", prints.pop())


def test_a_fingerprint_changes_with_the_weights(saved, tmp_path):
    settings = ModelSettings(name="timm:resnet10t", weights=str(tmp_path / "w.pt"))
    network = make("timm:resnet10t", weights=settings.options["weights"])
    before = models.weights_fingerprint(settings, network)
    assert models.weights_fingerprint(settings, network.to(memory_format=torch.channels_last)) == before
    with torch.no_grad():
        network.layer1[0].conv1.weight[0, 0, 0, 0] += 1
    assert models.weights_fingerprint(settings, network) != before


def test_a_fingerprint_covers_registered_models_that_load_weights(monkeypatch):
    monkeypatch.setitem(MODELS._entries, "loads", lambda shape, classes, weights: nn.Linear(3, classes))
    settings = ModelSettings(name="loads", weights="w.pt")
    assert models.weights_fingerprint(settings, make("loads", weights="w.pt")) is not None


def weights_message(path: Path) -> str:
    with pytest.raises(WeightsError) as error:
        make("timm:resnet10t", weights=str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_weights_that_do_not_fit_are_refused_by_key(saved, tmp_path):
    path = tmp_path / "odd.pt"
    without = {key: value for key, value in saved.items() if not key.startswith("layer1.")}
    torch.save({**without, "extra": torch.zeros(1), "bn1.weight": torch.zeros(5)}, path)
    assert weights_message(path) == (
        f"the weights in {path} do not fit the model: they lack layer1.0.conv1.weight, layer1.0.bn1.weight,"
        " layer1.0.bn1.bias ...; have besides extra; have in another shape bn1.weight"
    )


def test_weights_without_batch_norms_counters_fit(saved, tmp_path):
    path = tmp_path / "old.pt"
    torch.save({key: value for key, value in saved.items() if "num_batches_tracked" not in key}, path)
    make("timm:resnet10t", weights=str(path))


def test_a_missing_or_unusable_file_is_named(tmp_path):
    wanted = "give a .safetensors file or a state dict saved by torch"
    path = tmp_path / "w.pt"
    assert weights_message(path) == f"no weights file {path}: {wanted}"
    torch.save([torch.zeros(1)], path)
    assert weights_message(path) == f"{path} holds no weights: {wanted}"
    for path in (tmp_path / "text.pt", tmp_path / "text.safetensors"):
        path.write_bytes(b"text")
        assert weights_message(path) == f"cannot read {path} as weights: {wanted}"


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_weights_file_cannot_run_code(tmp_path):
    path = tmp_path / "harmful.pt"
    for save in (lambda value: torch.save(value, path), lambda value: path.write_bytes(pickle.dumps(value))):
        save({"state_dict": Harmful(tmp_path / "made")})
        assert weights_message(path).startswith(f"cannot read {path} as weights")
        assert not (tmp_path / "made").exists()


def test_pretrained_weights_that_cannot_be_had_point_to_a_local_file(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError) as error:
        make("timm:resnet10t", pretrained=True, cache_dir=str(tmp_path))
    assert str(error.value) == (
        "the pretrained weights of timm:resnet10t are neither on the hub, as far as it can be reached, nor in its"
        " cache: `weights: path/to/file.safetensors` takes a local file"
    )
