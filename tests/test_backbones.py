from __future__ import annotations

import copy
import math
import os
import pickle
import re
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor, nn
from torch import distributed as dist

from raybench import backbones, models
from raybench.backbones import Backbone, set_trainable, train_mode
from raybench.errors import UserError, WeightsError
from raybench.registry import MODELS
from raybench.settings import ModelSettings

SMALL = "timm:resnet10t"


def make(name: str = SMALL, shape=(3, 32, 32), classes=10, seed=0, **options) -> nn.Module:
    torch.manual_seed(seed)
    return models.build(ModelSettings(name=name, **options), shape, classes)


def outline(name: str, **options) -> nn.Module:
    """The network on the meta device: its shapes, in no time."""
    with torch.device("meta"):
        return make(name, **options)


def train(network: nn.Module) -> None:
    """Train a little, with all that could change a weight: momentum and weight decay too."""
    torch.manual_seed(5)
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9, weight_decay=0.1)
    train_mode(network)
    for _ in range(2):  # timm's zeros at the ends of residual blocks let nothing through the first time
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()


def changed(network: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Keys of the state dict that differ in a bit from those before."""
    return {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A small network that has learnt something, so that batch norm's statistics are not the first ones."""
    network = make(seed=7)
    train(network)
    return network.eval()


# timm's own classifier


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
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
        (
            {"name": SMALL, "weights": "w.pt"},
            (3, 32, 32),
            "no weights file w.pt: give a .safetensors file or a state dict saved by torch",
        ),
        (
            {"name": SMALL, "pretrained": "no"},
            (3, 32, 32),
            "model 'timm:resnet10t' (pretrained='no') for images of 32x32: pretrained must be true or false, not 'no'",
        ),
        (
            {"name": SMALL, "head": [512]},
            (3, 32, 32),
            "model 'timm:resnet10t' (head=[512]) for images of 32x32:"
            " head must be a mapping such as {dense: [512], dropout: 0.4}, not [512]",
        ),
        (
            {"name": SMALL, "head": {"dens": [512]}},
            (3, 32, 32),
            "model 'timm:resnet10t' (head={'dens': [512]}) for images of 32x32:"
            " head has no option 'dens'; did you mean 'dense'?",
        ),
        (
            {"name": SMALL, "head": {"dense": 512}},
            (3, 32, 32),
            "model 'timm:resnet10t' (head={'dense': 512}) for images of 32x32:"
            " dense must be a list of layer widths such as [1024, 512], not 512",
        ),
        (
            {"name": SMALL, "head": {"pool": "avg"}},
            (3, 32, 32),
            "model 'timm:resnet10t' (head={'pool': 'avg'}) for images of 32x32:"
            " pool must be average, max or flatten, not 'avg'",
        ),
        (
            {"name": SMALL, "head": {"dropout": 1.5}},
            (3, 32, 32),
            "model 'timm:resnet10t' (head={'dropout': 1.5}) for images of 32x32:"
            " dropout probability has to be between 0 and 1, but got 1.5",
        ),
        (
            {"name": SMALL, "head": {"batch_norm": "off"}},
            (3, 32, 32),
            "model 'timm:resnet10t' (head={'batch_norm': 'off'}) for images of 32x32:"
            " batch_norm must be true or false, not 'off'",
        ),
        (
            {"name": SMALL, "size": 0},
            (3, 32, 32),
            "model 'timm:resnet10t' (size=0) for images of 32x32: size must be a whole number from 1, not 0",
        ),
        (
            {"name": SMALL, "normalize": "yes"},
            (3, 32, 32),
            "model 'timm:resnet10t' (normalize='yes') for images of 32x32: normalize must be true or false, not 'yes'",
        ),
    ],
)
@pytest.mark.parametrize("function", [models.build, models.check])
def test_mistakes_are_named_before_and_while_building(function, model, shape, expected):
    with pytest.raises(UserError) as error:
        function(ModelSettings(**model), shape, 10)
    assert str(error.value) == expected


def test_checking_does_not_look_for_pretrained_weights():
    models.check(ModelSettings(name=SMALL, pretrained=True), (3, 32, 32), 10)
    models.check(ModelSettings(name=SMALL, pretrained=True, head={}, size=64), (3, 32, 32), 10)


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


# A head of ours


HEAD = {"dense": [24, 12], "dropout": 0.4}


def test_a_head_has_the_layers_it_is_asked_for():
    head = make(head=HEAD).head
    expected = ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Dropout", "Linear"]
    assert [type(layer).__name__ for layer in head] == expected
    assert [layer.out_features for layer in head if isinstance(layer, nn.Linear)] == [24, 12, 10]
    assert head[-2].p == 0.4
    limit = math.sqrt(6 / (512 + 24))
    assert 0.99 * limit < head[1].weight.abs().max() <= limit  # as Keras starts
    assert (head[1].bias == 0).all()

    head = make(head={**HEAD, "batch_norm": True}).head
    expected = ["Flatten", *["Linear", "BatchNorm1d", "ReLU"] * 2, "Dropout", "Linear"]
    assert [type(layer).__name__ for layer in head] == expected
    assert (head[2].eps, head[2].momentum) == (1e-3, 0.01)


@pytest.mark.parametrize(
    ("name", "options", "head", "backbone"),
    [
        # What Keras prints for include_top=False. Its ResNet50 counts 53,120 running statistics and has 26,560 biases
        # that batch norm makes superfluous: 23,587,712 - 53,120 - 26,560. Its InceptionV3 counts 34,432 and lacks
        # the 17,216 scales of batch norm: 21,802,784 - 34,432 + 17,216.
        ("timm:vgg16.tv_in1k", {"head": {}}, [5_130], 14_714_688),
        ("timm:vgg16.tv_in1k", {"head": {"pool": "flatten"}}, [5_130], 14_714_688),
        ("timm:vgg16.tv_in1k", {"head": {"pool": "flatten"}, "size": 224}, [7 * 7 * 5_120 + 10], 14_714_688),
        ("timm:vgg19.tv_in1k", {"head": {"dense": [512, 512, 512]}}, [262_656] * 3 + [5_130], 20_024_384),
        ("timm:resnet50.tv_in1k", {"head": {"pool": "flatten"}}, [20_490], 23_508_032),
        (
            "timm:resnet50.tv_in1k",
            {"head": {"dense": [1024, 512]}, "size": 224},
            [2_098_176, 524_800, 5_130],
            23_508_032,
        ),
        ("timm:inception_v3.tf_in1k", {"head": {"pool": "max"}, "size": 75}, [20_490], 21_785_568),
    ],
)
def test_the_reports_transfer_models_have_as_many_parameters_as_keras_prints(name, options, head, backbone):
    network = outline(name, **options)
    assert isinstance(network, Backbone)
    layers = [layer for layer in network.head if isinstance(layer, nn.Linear)]
    assert [models.parameter_count(layer) for layer in layers] == head
    assert models.parameter_count(network.backbone) == backbone
    models.check(ModelSettings(name=name, **options), (3, 32, 32), 10)


@pytest.mark.parametrize("pool", ["average", "max", "flatten"])
def test_a_head_sees_the_pooled_features(pool):
    network = make(head={"pool": pool}, size=64).eval()
    images = torch.rand(2, 3, 32, 32)
    larger = nn.functional.interpolate(images, (64, 64), mode="bilinear", align_corners=False)
    with torch.no_grad():
        maps = network.backbone.forward_features(larger)
        assert maps.shape == (2, 512, 2, 2)
        expected = {"average": maps.mean((2, 3)), "max": maps.amax((2, 3)), "flatten": maps.flatten(1)}[pool]
        torch.testing.assert_close(network(images), network.head(expected))


def test_without_a_head_the_features_and_the_classifier_are_as_timm_has_them():
    network = outline("timm:vgg16", size=224)
    assert network.backbone.pre_logits.fc1.weight.shape == (4096, 512, 7, 7)
    assert [type(layer).__name__ for layer in network.head] == ["Flatten", "Dropout", "Linear"]
    assert network.head[-1].in_features == 4096
    vit = make("timm:test_vit", size=64)  # made for 160x160
    assert vit.backbone.patch_embed.img_size == (64, 64)
    assert vit(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("options", [{"head": HEAD}, {"size": 48}, {"normalize": False}, {"head": {}, "stem": "small"}])
def test_a_backbone_learns_with_all_its_parameters_and_the_random_stream_decides_them(options):
    options = {"name": "timm:resnet18" if "stem" in options else SMALL, "zero_init_last": False, **options}
    first, again, other = (make(seed=seed, **options) for seed in (0, 0, 1))
    assert not changed(again, first.state_dict())
    assert changed(other, first.state_dict())
    assert isinstance(first, Backbone)
    assert all(module.training for module in first.modules())
    nn.functional.cross_entropy(first(torch.rand(4, 3, 32, 32)), torch.arange(4)).backward()
    assert all((parameter.grad != 0).any() for parameter in first.parameters())


# The images it sees


def seen(network: nn.Module, images: Tensor) -> Tensor:
    """What the backbone is given for these images."""
    found: list[Tensor] = []
    hook = network.backbone.register_forward_pre_hook(lambda module, arguments: found.append(arguments[0]))
    with torch.no_grad():
        network.eval()(images)
    hook.remove()
    return found[0]


def test_images_are_brought_to_size_bilinearly_and_keep_their_memory_format():
    images = torch.rand(2, 3, 32, 32).to(memory_format=torch.channels_last)
    found = seen(make(size=64), images)
    assert torch.equal(found, nn.functional.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False))
    assert found.is_contiguous(memory_format=torch.channels_last)
    smaller = seen(make(size=16), images)  # every second pixel's neighbours: an antialias would mix more of them
    torch.testing.assert_close(smaller, nn.functional.avg_pool2d(images, 2))


@pytest.mark.parametrize(
    ("options", "normal"),
    [
        ({"head": {}}, False),
        ({"head": {}, "weights": "w.pt"}, True),
        ({"size": 48, "weights": "w.pt"}, True),
        ({"head": {}, "weights": "w.pt", "normalize": False}, False),
        ({"normalize": True}, True),
    ],
)
def test_images_are_normalised_where_there_are_weights_unless_the_suite_says_otherwise(
    options, normal, tmp_path, saved
):
    if "weights" in options:
        options = {**options, "weights": str(tmp_path / options["weights"])}
    images = torch.rand(2, 3, 32, 32)
    found = seen(make(**options), images)
    if "size" in options:
        images = nn.functional.interpolate(images, (48, 48), mode="bilinear")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # ImageNet's
    expected = (images - mean[:, None, None]) / std[:, None, None] if normal else images
    torch.testing.assert_close(found, expected)


def test_images_are_normalised_by_the_numbers_of_the_weights_for_any_number_of_channels():
    half = make("timm:test_vit", normalize=True)  # timm says mean and std 0.5 for it
    torch.testing.assert_close(seen(half, torch.full((1, 3, 32, 32), 0.75)), torch.full((1, 3, 32, 32), 0.5))
    grey = make(shape=(1, 32, 32), normalize=True)
    expected = torch.full((1, 1, 32, 32), (0.75 - 0.449) / 0.226)
    torch.testing.assert_close(seen(grey, torch.full((1, 1, 32, 32), 0.75)), expected)


def test_mean_and_std_move_with_the_network_and_are_no_weights():
    network = make(normalize=True)
    assert network.double().mean.dtype == torch.float64
    assert not {"mean", "std"} & set(network.state_dict())


# What is trained


FEATURES = ("backbone.",)
LAYER4 = ("backbone.layer4.0.conv2.", "backbone.layer4.0.bn2.", "backbone.layer4.0.downsample.", "head.")


def test_a_frozen_backbone_keeps_every_bit(saved, tmp_path):
    network = make(head=HEAD, weights=str(tmp_path / "w.pt"), classes=8, drop_path_rate=0.5, drop_block_rate=0.5)
    assert all(torch.equal(network.backbone.state_dict()[key], saved[key]) for key in network.backbone.state_dict())
    before = copy.deepcopy(network.state_dict())
    set_trainable(network, "head")
    train(network)
    assert changed(network, before) == {key for key in before if key.startswith("head.")}
    assert not any(module.training for module in network.backbone.modules())
    assert all(module.training for module in network.head.modules())
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(network.backbone(images), network.backbone(images))  # no dropout


def test_all_is_trained_until_told_otherwise_and_after_it_is_thawed():
    network = make(head=HEAD, classes=8)
    for thaw in (False, True):
        if thaw:
            set_trainable(network, "head")
            train(network)
            set_trainable(network, "all")
        before = copy.deepcopy(network.state_dict())
        train(network)
        assert changed(network, before) == set(before)
        assert all(module.training for module in network.modules())
        assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_last_layers_are_trained_with_what_follows_them():
    network = make(head=HEAD, classes=8)
    before = copy.deepcopy(network.state_dict())
    set_trainable(network, {"last": 2})  # the shortcut's convolution is registered last
    train(network)
    assert changed(network, before) == {key for key in before if key.startswith(LAYER4)}
    block = network.backbone.layer4[0]
    assert not block.conv1.training and not block.bn1.training and not network.backbone.layer3.training
    assert block.training and block.conv2.training and block.bn2.training  # the block holds a trained part
    assert block.bn1.weight.grad is None


def test_phases_follow_one_another():
    network = make(head=HEAD, classes=8)
    sizes = []
    for which in ("head", {"last": 1}, {"last": 3}, "all", "head"):
        set_trainable(network, which)
        assert all(parameter.grad is None for parameter in network.parameters() if not parameter.requires_grad)
        before = copy.deepcopy(network.state_dict())
        train(network)
        named = {key for key, parameter in network.named_parameters() if parameter.requires_grad}
        assert named == changed(network, before) & {key for key, _ in network.named_parameters()}
        sizes.append(len(named))
    assert sizes[0] < sizes[1] < sizes[2] < sizes[3] == len([*network.parameters()])
    assert sizes[4] == sizes[0] == 6


def test_the_last_four_layers_that_keras_counts_in_vgg16_are_three_convolutions_and_a_pooling():
    network = outline("timm:vgg16", head={})
    set_trainable(network, {"last": 3})
    trained = [key for key, parameter in network.named_parameters() if parameter.requires_grad]
    assert [key for key in trained if key.endswith("weight")] == [
        "backbone.features.24.weight",
        "backbone.features.26.weight",
        "backbone.features.28.weight",
        "head.2.weight",
    ]


@pytest.mark.parametrize("name", [*MODELS.names(), SMALL])
def test_the_head_of_any_other_network_is_its_last_layer(name):
    network = make(name, classes=8)
    before = copy.deepcopy(network.state_dict())
    set_trainable(network, "head")
    train(network)
    last = [key for key in before if key.endswith("weight")][-1].removesuffix("weight")
    assert changed(network, before) == {f"{last}weight", f"{last}bias"}
    assert not any(module.training for module in network.modules() if isinstance(module, nn.Dropout))


def test_the_last_layers_of_any_other_network():
    network = make("model2")
    set_trainable(network, {"last": 1})
    dropouts = [module for module in network if isinstance(module, nn.Dropout)]
    train_mode(network)
    assert [module.training for module in dropouts] == [False, False, False, True]
    trained = [key for key, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained == ["20.weight", "20.bias", "23.weight", "23.bias"]


def test_of_a_network_without_weights_no_part_is_trained():
    with pytest.raises(UserError, match=r"^the network has no layer with weights of which a part could be trained$"):
        set_trainable(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192)), "head")


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(UserError) as error:
        set_trainable(make(head=HEAD), {"last": 20})
    assert str(error.value) == "last: 20 is too many: 14 layers with weights stand before the head"


def test_freezing_survives_a_group_of_processes_and_the_state_dict(tmp_path):
    network = make(head=HEAD, classes=8)
    before = copy.deepcopy(network.state_dict())
    set_trainable(network, "head")
    network.load_state_dict(before)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        train(nn.parallel.DistributedDataParallel(network))
    finally:
        dist.destroy_process_group()
    assert changed(network, before) == {key for key in before if key.startswith("head.")}
    assert not network.backbone.training
    assert set(network.state_dict()) == set(before)
    train(copy.deepcopy(network))  # a copy is as frozen
    other = pickle.loads(pickle.dumps(network))
    train(other)
    assert changed(other, before) == {key for key in before if key.startswith("head.")}


# Notes

RANDOM = "timm:resnet10t: random weights (pretrained: true for those of the hub, pretrained: false if that is meant)"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "model1"}, []),
        ({"name": SMALL}, [RANDOM]),
        ({"name": SMALL, "head": {}, "size": 64}, [RANDOM]),
        ({"name": SMALL, "pretrained": False, "head": {}}, []),
        ({"name": "timm:resnet18", "stem": "small"}, []),
        (
            {"name": SMALL, "pretrained": True},
            ["timm:resnet10t: the images are not normalised as for its pretrained weights (normalize: true does it)"],
        ),
        ({"name": SMALL, "pretrained": True, "normalize": False}, []),
        ({"name": SMALL, "weights": "w.pt", "head": {}}, []),
    ],
)
def test_notes_say_what_weights_a_model_starts_from(options, expected):
    assert backbones.notes(ModelSettings(**options)) == expected


# Without pretrained weights


@pytest.mark.parametrize(
    ("options", "without"),
    [
        ({"pretrained": True}, {"pretrained": False}),
        ({"pretrained": True, "head": {}}, {"pretrained": False, "head": {}, "normalize": True}),
        ({"pretrained": True, "size": 64}, {"pretrained": False, "size": 64, "normalize": True}),
        ({"pretrained": True, "normalize": False}, {"pretrained": False, "normalize": False}),
        ({"weights": "w.pt", "head": {}}, {"weights": "w.pt", "head": {}}),
        ({}, {}),
    ],
)
def test_without_pretrained_weights_a_model_is_otherwise_the_same(options, without):
    model = backbones.without_pretrained(ModelSettings(name=SMALL, **options))
    assert (model.name, model.options) == (SMALL, without)
    if "weights" not in options:
        whole, random = outline(SMALL, **options), outline(SMALL, **without)
        assert str(whole) == str(random)
        assert [b.shape for b in whole.buffers()] == [b.shape for b in random.buffers()]


def test_an_option_of_other_models_is_theirs():
    model = ModelSettings(name="mine", pretrained=True)
    assert backbones.without_pretrained(model) is model


# Weights


@pytest.fixture
def saved(tmp_path: Path, trained: nn.Module) -> dict[str, Tensor]:
    """The state of a trained network with 10 classes, saved in every form that is accepted."""
    state = trained.state_dict()
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
        "the pretrained weights of timm:resnet10t are neither in the hub's cache nor could they be downloaded: run once"
        " where the hub can be reached, name a file (weights: path/to/file.safetensors), or say pretrained: false"
    )


def test_cached_weights_are_found_without_a_network(monkeypatch, tmp_path, trained):
    cached = tmp_path / "models--timm--resnet10t.c3_in1k"  # as the hub's client keeps it
    for folder in ("refs", "snapshots/c0ffee"):
        (cached / folder).mkdir(parents=True)
    (cached / "refs" / "main").write_text("c0ffee")
    state = {**trained.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    safetensors.torch.save_file(state, cached / "snapshots" / "c0ffee" / "model.safetensors")
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    network = make(pretrained=True, cache_dir=str(tmp_path))
    assert torch.equal(network.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])


def test_the_hub_is_asked_only_for_what_is_not_in_its_cache(monkeypatch, trained):
    state = {**trained.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    cached, asked = False, []

    def hub(*_: object, **__: object) -> dict[str, Tensor]:
        asked.append("cache" if constants.HF_HUB_OFFLINE else "hub")
        if constants.HF_HUB_OFFLINE and not cached:
            raise LocalEntryNotFoundError("not cached")
        return dict(state)

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", hub)
    downloaded = make(pretrained=True)
    assert asked == ["cache", "hub"] and not constants.HF_HUB_OFFLINE
    cached = True
    found = make(pretrained=True)
    assert asked == ["cache", "hub", "cache"] and not constants.HF_HUB_OFFLINE
    assert not changed(downloaded, found.state_dict())  # the classifier's random start too


@pytest.mark.parametrize("options", [{"head": HEAD}, {"head": {"pool": "max"}}, {"size": 32}])
def test_a_backbone_with_weights_from_a_file_has_the_features_of_the_network_they_were_saved_from(
    options, saved, trained, tmp_path
):
    network = make(weights=str(tmp_path / "w.safetensors"), normalize=False, classes=4, **options).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        maps = trained.forward_features(images)
        pooled = maps.amax((2, 3)) if options.get("head", {}).get("pool") == "max" else maps.mean((2, 3))
        assert torch.equal(network.backbone(images).flatten(1), pooled)
    settings = ModelSettings(name=SMALL, weights="w.safetensors")
    fingerprint = models.weights_fingerprint(settings, network)
    other = make(weights=str(tmp_path / "w.pt"), seed=3, **options)
    assert models.weights_fingerprint(settings, other) == fingerprint  # another head, the same weights
    with torch.no_grad():
        other.backbone.bn1.running_mean[0] += 1
    assert models.weights_fingerprint(settings, other) != fingerprint


def test_a_vgg_takes_a_file_with_the_dense_layers_that_its_head_replaces(tmp_path):
    path = tmp_path / "vgg.safetensors"
    full = timm.create_model("vgg11", mlp_ratio=0.001)
    safetensors.torch.save_file(full.state_dict(), path)
    network = make("timm:vgg11", head={"dense": [6]}, weights=str(path), mlp_ratio=0.001)
    assert models.parameter_count(network.backbone) == 9_220_480  # Keras' way to count: the convolutions alone
    assert torch.equal(network.backbone.features[3].weight, full.features[3].weight)


def test_a_file_may_hold_the_second_classifier_that_timm_leaves_out(saved, tmp_path):
    path = tmp_path / "inception.pt"
    torch.save({**saved, "AuxLogits.fc.weight": torch.zeros(1)}, path)
    make(weights=str(path))


def test_pretrained_weights_come_from_the_hubs_cache(monkeypatch, trained):
    state = {**trained.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    asked: list[str] = []

    def cached(name: str, *_: object, **__: object) -> dict[str, Tensor]:
        asked.append(name)
        return dict(state)

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", cached)
    network = make(pretrained=True, head=HEAD)
    assert asked == ["timm/resnet10t.c3_in1k"]
    assert all(torch.equal(value, state[key]) for key, value in network.backbone.state_dict().items())
    assert network.mean is not None
