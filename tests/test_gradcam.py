"""Grad-CAM: captum's maps are those of the formula, for the project's networks and timm's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raybench import gradcam, models
from raybench.data import Part, Source, trial_data
from raybench.errors import UserError
from raybench.grid import Trial
from raybench.trained import Trained, again
from raybench.weights import packed

pytest.importorskip("captum", reason="no captum: pip install 'raybench[explain]'")

MakeTrial = Callable[..., Trial]
CLASSES = np.array([0, 2, 1, 1, 0])


def by_hand(network: nn.Module, module: nn.Module, images: Tensor, classes: Tensor, size: tuple[int, int]) -> Tensor:
    """Formulas 1 and 2 of Selvaraju et al. (2017)."""
    kept: list[Tensor] = []
    # What comes after may work in place: it gets another copy.
    hook = module.register_forward_hook(lambda module, inputs, output: kept.append(output.clone()) or kept[0].clone())
    logits = network(images)
    hook.remove()
    (gradients,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), kept)
    weights = gradients.mean((2, 3), keepdim=True)
    cam = (weights * kept[0]).sum(1, keepdim=True).relu()
    return functional.interpolate(cam, size, mode="bilinear", align_corners=False)[:, 0]


def trained(trial: Trial, source: Source) -> Any:
    """Return the context of a network that was not trained: Grad-CAM does not mind."""
    torch.manual_seed(0)
    data = trial_data(source, trial.typed().dataset)
    network = models.build(trial.typed().model, data.shape, len(data.classes))
    network(torch.rand(8, *data.shape))  # averages of batch norm that are not those of the start
    return again(trial.typed(), 0, packed(trial.id, network.state_dict()), data, "cpu")


def some(network: Trained) -> Part:
    return Part(network.data.pools["test"], np.array([3, 4, 8, 20, 39]))


@pytest.mark.parametrize(
    ("model", "layer", "last"),
    [
        ("small_cnn", None, "6"),
        ("small_cnn", "1", None),  # the ReLU after the first convolution
        ({"name": "ladder", "blocks": [[4], [8]], "batch_norm": True, "dropout": 0.5}, None, "4"),
        ({"name": "residual", "blocks": 1, "filters": 4}, None, "3.layers.3"),
        ({"name": "timm:resnet10t", "size": 64}, "backbone.layer4", None),
        ({"name": "timm:vgg11", "head": {}, "size": 32}, None, "backbone.features.18"),  # its ReLUs work in place
    ],
    ids=str,
)
def test_maps_are_those_of_the_formula(
    model: Any, layer: str | None, last: str | None, make_trial: MakeTrial, source: Source
) -> None:
    trial = make_trial(model=model, augmentation=["standardize"])
    with trained(trial, source) as network:
        part = some(network)
        name, module = gradcam.layer(network.network, layer)
        assert name == (last or layer)
        found = gradcam.maps(network, part, CLASSES, module)
        (images,) = network.inputs(part)
        expected = by_hand(network.network, module, images, torch.from_numpy(CLASSES), (8, 8))
        assert not network.network.training
    assert found.shape == (5, 8, 8) and found.dtype == np.float32
    assert found.min() >= 0 and found.any() == bool(expected.any())  # a residual branch begins with zeros
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-7)


def test_images_are_looked_at_some_at_a_time(
    make_trial: MakeTrial, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trained(make_trial(model="small_cnn"), source) as network:
        part, (_, module) = some(network), gradcam.layer(network.network)
        together = gradcam.maps(network, part, CLASSES, module)
        monkeypatch.setattr(gradcam, "AT_ONCE", 2)
        np.testing.assert_allclose(gradcam.maps(network, part, CLASSES, module), together, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("model", "layer", "message"),
    [
        ("mlp", None, "the network has no convolution: name a layer whose output is maps with --layer"),
        (
            "mlp",
            "relu",
            "no layer 'relu' in the network; known: 0 (Flatten), 1 (Linear), 2 (ReLU), 3 (Dropout), 4 (Linear)",
        ),
        ("mlp", "1", "the output of Linear are no maps [n, channels, height, width]: choose another --layer"),
        (
            {"name": "timm:resnet10t", "stem": None},
            "layer4.0.conv3",
            "no layer 'layer4.0.conv3' in the network; did you mean 'layer4.0.conv2'?",
        ),
    ],
    ids=str,
)
def test_layers_without_maps(
    model: Any, layer: str | None, message: str, make_trial: MakeTrial, source: Source
) -> None:
    with trained(make_trial(model=model), source) as network, pytest.raises(UserError) as failed:
        gradcam.maps(network, some(network), CLASSES, gradcam.layer(network.network, layer)[1])
    assert str(failed.value) == message


def test_without_captum(make_trial: MakeTrial, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with trained(make_trial(model="small_cnn"), source) as network, pytest.raises(UserError) as failed:
        gradcam.maps(network, some(network), CLASSES, gradcam.layer(network.network)[1])
    assert str(failed.value) == "Grad-CAM needs captum: pip install 'raybench[explain]'"
