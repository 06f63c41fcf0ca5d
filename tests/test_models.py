from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from raybench import models
from raybench.errors import UserError
from raybench.registry import MODELS
from raybench.settings import ModelSettings

SMALLEST = {
    "model1": (3, 10, 12),
    "model2": (3, 8, 8),
    "model3": (3, 10, 12),
    "vgg_like": (3, 8, 8),
    "residual": (1, 1, 1),
    "simple_cnn": (3, 18, 18),
    "ladder": (1, 1, 1),
    "cnn5x5": (3, 15, 15),
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

KERAS = {
    "Conv2d": "Conv2D",
    "MaxPool2d": "MaxPooling2D",
    "AdaptiveAvgPool2d": "GlobalAveragePooling2D",
    "BatchNorm2d": "BatchNormalization",
    "Linear": "Dense",
}


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
        ("residual", 1_792 + 128 + 3 * 2 * (36_928 + 128) + (4 * 4 * 64 * 10 + 10)),
        ("simple_cnn", 896 + 18_496 + 36_928 + (4 * 4 * 64 * 128 + 128) + 8_256 + 650),
        ("ladder", 896 + (32 * 32 * 32 * 100 + 100) + 1_010),
        ("cnn5x5", 2_432 + 25_632 + 51_264 + (3 * 3 * 64 * 64 + 64) + 650),
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


# The networks of the other reports

FIGURE_2 = [
    *[("Conv2D", 2_576), ("BatchNormalization", 368), ("Conv2D", 76_268), ("BatchNormalization", 368)],
    *[("MaxPooling2D", 0), ("Dropout", 0)],
    *[("Conv2D", 152_536), ("BatchNormalization", 736), ("Conv2D", 304_888), ("BatchNormalization", 736)],
    *[("MaxPooling2D", 0), ("Dropout", 0)],
    *[("Conv2D", 609_776), ("BatchNormalization", 1_472), ("Conv2D", 1_219_184), ("BatchNormalization", 1_472)],
    *[("MaxPooling2D", 0), ("Dropout", 0), ("Flatten", 0), ("Dense", 58_890)],
]
"""Report 001. The activations, which have no parameters, stand between convolutions and batch norm."""


def test_the_vgg_like_network_is_that_of_the_report_to_the_last_parameter():
    network = make("vgg_like")
    found = []
    for layer in network:
        if not isinstance(layer, nn.ReLU):
            name, state = type(layer).__name__, layer.state_dict().items()
            numbers = sum(value.numel() for key, value in state if key != "num_batches_tracked")
            found.append((KERAS.get(name, name), numbers))
    assert found == FIGURE_2
    assert sum(count for _, count in FIGURE_2) == 2_429_270  # "Total params", with running means and variances
    assert models.parameter_count(network) == 2_426_694  # "Trainable params"
    assert [layer.p for layer in network if isinstance(layer, nn.Dropout)] == [0.2, 0.3, 0.4]
    assert layers(network)[:4] == ["Conv2d", "ReLU", "BatchNorm2d", "Conv2d"]


@pytest.mark.parametrize(("dropout", "rates"), [(0.5, [0.5, 0.5, 0.5]), ([0.1, 0.2, 0], [0.1, 0.2, 0])])
def test_a_vgg_like_network_takes_a_width_and_rates(dropout, rates):
    network = make("vgg_like", width=4, dropout=dropout)
    assert [layer.out_channels for layer in network if isinstance(layer, nn.Conv2d)] == [4, 4, 8, 8, 16, 16]
    assert [layer.p for layer in network if isinstance(layer, nn.Dropout)] == rates


@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5])
def test_residual_networks_of_any_depth_and_kernel(blocks, kernel_size):
    network = make("residual", blocks=blocks, kernel_size=kernel_size, dropout=0.4, filters=8)
    assert layers(network) == [
        *["Conv2d", "BatchNorm2d", "ReLU"],
        *["ResidualBlock", "Dropout", "MaxPool2d"] * blocks,
        *["Flatten", "Linear"],
    ]
    assert [layer.p for layer in network if isinstance(layer, nn.Dropout)] == [0.4] * blocks
    side = {1: 16, 2: 8, 3: 4, 5: 1, 7: 1}[blocks]
    block = 2 * (8 * 8 * kernel_size**2 + 8 + 16)
    assert models.parameter_count(network) == (9 * 3 * 8 + 8 + 16) + blocks * block + (side**2 * 8 * 10 + 10)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_a_residual_block_adds_its_inputs():
    block = make("residual", filters=4)[3].eval()
    images = torch.rand(2, 4, 6, 6)
    with torch.no_grad():
        assert torch.equal(block(images), torch.relu(images + block.layers(images)))
        nn.init.zeros_(block.layers[4].weight)  # the last batch norm
        torch.testing.assert_close(block(images), images)


@pytest.mark.parametrize(("kernel_size", "before"), [(2, 0), (3, 1), (4, 1), (5, 2)])
def test_even_kernels_are_padded_as_in_tensorflow(kernel_size, before):
    network = make("residual", (1, 6, 6), filters=1, kernel_size=kernel_size)
    convolution = nn.Sequential(*[layer for layer in network[3].layers[:2] if not isinstance(layer, nn.BatchNorm2d)])
    with torch.no_grad():
        nn.init.zeros_(convolution[-1].weight)
        convolution[-1].weight[0, 0, before, before] = 1  # the tap above the pixel itself
        image = torch.rand(1, 1, 6, 6)
        assert torch.equal(convolution(image), image)


DEEP = [[64, 64], [128, 128]]
DEEPER = [*DEEP, [256, 256], [256, 256]]
MODEL_3 = {"blocks": DEEP, "max_pool": True, "batch_norm": True, "dropout": 0.25}
MODEL_7 = {**MODEL_3, "blocks": DEEPER, "pooling": "average"}
CONV_64 = 1_792 + 36_928
CONV_128 = 73_856 + 147_584
CONV_256 = 295_168 + 3 * 590_080


@pytest.mark.parametrize(
    ("options", "expected", "parameters"),
    [
        ({}, "Conv2D Flatten Dense Dense", 896 + 3_276_900 + 1_010),
        (
            {"batch_norm": True, "dropout": 0.25},
            "Conv2D BatchNormalization Dropout Flatten Dense Dense",
            896 + 64 + 3_276_900 + 1_010,
        ),
        (
            MODEL_3,
            "Conv2D Conv2D BatchNormalization MaxPooling2D Dropout " * 2 + "Flatten Dense Dense",
            CONV_64 + 128 + CONV_128 + 256 + (8 * 8 * 128 * 100 + 100) + 1_010,
        ),
        (
            {**MODEL_3, "pooling": "average"},
            "Conv2D Conv2D BatchNormalization MaxPooling2D Dropout " * 2 + "GlobalAveragePooling2D Flatten Dense Dense",
            CONV_64 + 128 + CONV_128 + 256 + 12_900 + 1_010,
        ),
        (
            MODEL_7,
            "Conv2D Conv2D BatchNormalization MaxPooling2D Dropout " * 4 + "GlobalAveragePooling2D Flatten Dense Dense",
            CONV_64 + 128 + CONV_128 + 256 + CONV_256 + 2 * 512 + 25_700 + 1_010,
        ),
    ],
    ids=["model 1", "model 2", "model 3", "models 4 to 6", "models 7 to 11"],
)
def test_the_ladder_has_the_networks_of_report_003(options, expected, parameters):
    network = make("ladder", **options)
    found = [KERAS.get(layer, layer) for layer in layers(network) if layer != "ReLU"]
    assert found == expected.split()
    assert models.parameter_count(network) == parameters
    activations = sum(isinstance(layer, nn.ReLU) for layer in network)
    assert activations == found.count("Conv2D") + 1


def test_the_best_of_the_ladder_has_the_23_layers_that_the_report_counts():
    network = make("ladder", **MODEL_7)
    within = ("ReLU", "Flatten")  # Keras' global pooling flattens, and its layers have their activation inside
    assert len([layer for layer in layers(network) if layer not in within]) == 23


def test_the_improved_5x5_network_has_one_batch_norm_and_one_dropout_more():
    base, improved = make("cnn5x5"), make("cnn5x5", batch_norm=True, dropout=0.2)
    assert layers(base) == [*["Conv2d", "ReLU", "MaxPool2d"] * 3, "Flatten", "Linear", "ReLU", "Linear"]
    assert layers(improved) == [
        *["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"],
        *["Conv2d", "ReLU", "MaxPool2d"] * 2,
        *["Flatten", "Linear", "ReLU", "Dropout", "Linear"],
    ]
    assert improved[-2].p == 0.2
    assert models.parameter_count(improved) == models.parameter_count(base) + 2 * 32
    sides = [32]
    image = torch.rand(1, 3, 32, 32)
    for layer in base[:9]:
        image = layer(image)
        sides += [image.shape[2]] if isinstance(layer, nn.MaxPool2d) else []
    assert sides == [32, 15, 7, 3]


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
            {"name": "vgg_like", "width": 46.0},
            (3, 32, 32),
            "model 'vgg_like' (width=46.0) for images of 32x32:"
            " the number of filters must be a whole number from 1, not 46.0",
        ),
        (
            {"name": "vgg_like", "dropout": [0.2, 0.3]},
            (3, 32, 32),
            "model 'vgg_like' (dropout=[0.2, 0.3]) for images of 32x32: dropout must be one rate or 3, not [0.2, 0.3]",
        ),
        (
            {"name": "residual", "blocks": 0},
            (3, 32, 32),
            "model 'residual' (blocks=0) for images of 32x32: blocks must be a whole number from 1, not 0",
        ),
        (
            {"name": "residual", "kernel_size": "3x3"},
            (3, 32, 32),
            "model 'residual' (kernel_size='3x3') for images of 32x32:"
            " kernel_size must be a whole number from 1, not '3x3'",
        ),
        (
            {"name": "ladder", "blocks": [32]},
            (3, 32, 32),
            "model 'ladder' (blocks=[32]) for images of 32x32:"
            " blocks must be lists of filters such as [[64, 64], [128]], not [32]",
        ),
        (
            {"name": "ladder", "pooling": "max"},
            (3, 32, 32),
            "model 'ladder' (pooling='max') for images of 32x32: pooling must be flatten or average, not 'max'",
        ),
        (
            {"name": "ladder", "max_pool": "off"},
            (3, 32, 32),
            "model 'ladder' (max_pool='off') for images of 32x32: max_pool must be true or false, not 'off'",
        ),
        (
            {"name": "cnn5x5", "batchnorm": True},
            (3, 32, 32),
            "model 'cnn5x5' has no option 'batchnorm'; did you mean 'batch_norm'?",
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


def test_what_starts_at_random_besides_given_weights(monkeypatch):
    def partly(shape, classes, weights):
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, classes))
        nn.init.ones_(network[0].weight)
        network.pretrained_cfg = {"classifier": "3"}
        return network

    monkeypatch.setitem(MODELS._entries, "partly", partly)
    settings = ModelSettings(name="partly", weights="w.pt")
    assert models.random_tensors(settings, (3, 8, 8), 10) == ["0.bias", "1.weight", "1.bias"]


def test_checking_passes_over_a_model_that_needs_real_numbers(monkeypatch):
    def builder(shape, classes, **options):
        rates = [rate.item() for rate in torch.linspace(0, options["most"], 3)]
        return nn.Sequential(nn.Flatten(), nn.Dropout(rates[-1]), nn.Linear(math.prod(shape), classes))

    monkeypatch.setitem(MODELS._entries, "rates", builder)
    settings = ModelSettings(name="rates", most=0.5)
    assert models.check(settings, (3, 128, 128), 10) is None
    assert models.check(settings, (3, 8, 8), 10)[1].p == 0.5
    assert make("rates", (3, 8, 8), most=0.5)[1].p == 0.5


def test_networks_for_large_images_are_checked_without_their_numbers(monkeypatch):
    def builder(shape, classes, **options):
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))

    monkeypatch.setitem(MODELS._entries, "wide", builder)
    devices = {
        size: models.check(ModelSettings(name="wide"), (3, size, size), 10)[1].weight.device.type for size in (64, 65)
    }
    assert devices == {64: "cpu", 65: "meta"}


def test_a_network_that_loads_its_own_weights_is_checked_in_silence(monkeypatch):
    def builder(shape, classes, **options):
        network = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))
        network.load_state_dict({"1.weight": torch.zeros(classes, math.prod(shape), device="cpu"), "1.bias": bias})
        return network

    bias = torch.zeros(10)
    monkeypatch.setitem(MODELS._entries, "loaded", builder)
    assert models.check(ModelSettings(name="loaded"), (3, 65, 65), 10) is not None


def test_a_mistake_that_speaks_of_meta_is_one(monkeypatch):
    def builder(shape, classes, **options):
        raise ValueError("meta_dim must be at most 2")

    monkeypatch.setitem(MODELS._entries, "strict", builder)
    assert "meta_dim must be at most 2" in message("strict", (3, 8, 8), models.check)
