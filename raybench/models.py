"""The networks: those of the reports, two small ones, and every model of timm.

A registered builder is a function ``(shape, classes, **options) -> torch.nn.Module``. The module it returns maps float
images [B, C, H, W] to logits [B, classes]: no softmax at its end, the loss brings its own.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from raybench.errors import UserError, WeightsError, did_you_mean
from raybench.registry import MODELS, check_model_name
from raybench.settings import ModelSettings

Shape = tuple[int, int, int]
"""Channels, height and width of one image, in pixels."""

TIMM = "timm:"
_MISFIT = (TypeError, ValueError, RuntimeError, AssertionError)
"""What networks raise for options or images that they cannot take. Anything else is a bug and keeps its traceback."""


def build(model: ModelSettings, shape: Shape, classes: int) -> nn.Module:
    """Make the network, its fresh weights drawn from torch's global random stream.

    Raises:
        UserError: the name, an option or its value is wrong, or the network cannot take images of this shape.
        WeightsError: pretrained weights cannot be had, or do not fit.
    """
    builder = _builder(model)
    try:
        return builder(shape, classes, **model.options)
    except _MISFIT as error:
        raise _misfit(model, shape, error) from error


def check(model: ModelSettings, shape: Shape, classes: int) -> None:
    """Raise `UserError` unless the network can be built and maps such images to logits.

    It runs on torch's meta device, which knows shapes and no numbers: quick for large networks too. Pretrained weights
    are not looked for.
    """
    builder = _builder(model)  # outside: what importing makes must not land on the meta device
    try:
        with torch.device("meta"), torch.no_grad():
            network = builder(shape, classes, **model.options).eval()
            logits = network(torch.zeros(2, *shape))
    except _MISFIT as error:
        if "meta" in str(error):  # code that needs a number on its way: only real images can tell
            return
        raise _misfit(model, shape, error) from error
    found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != [2, classes]:
        raise UserError(f"model {model.name!r} must map two images to logits of shape [2, {classes}], not {found}")


def parameter_count(network: nn.Module) -> int:
    """Count the numbers that training can change. Keras counts batch norm's running statistics too, this does not."""
    return sum(parameter.numel() for parameter in network.parameters())


def weights_fingerprint(model: ModelSettings, network: nn.Module) -> str | None:
    """Identify the weights that a freshly built network was given: 16 hex digits, None for a random start.

    The classifier head is left out, because it starts at random wherever the number of classes differs.
    """
    if not (model.options.get("pretrained") or model.options.get("weights")):
        return None
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        if not _in_head(network, key):
            digest.update(key.encode())
            digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def model1(shape: Shape, classes: int) -> nn.Module:
    """Report 000, model 1. Filters, rates and slope, which it leaves open, are those of Keras' CIFAR-10 example."""
    features = nn.Sequential(
        nn.Conv2d(shape[0], 32, 3, padding="same"),
        nn.LeakyReLU(0.3),
        nn.Conv2d(32, 32, 3),
        nn.LeakyReLU(0.3),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Conv2d(32, 64, 3, padding="same"),
        nn.LeakyReLU(0.3),
        nn.Conv2d(64, 64, 3),
        nn.LeakyReLU(0.3),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
    )
    return _as_keras(
        *features,
        nn.Linear(_width(features, shape), 512),
        nn.LeakyReLU(0.3),
        nn.Dropout(0.5),
        nn.Linear(512, classes),
    )


def model2(shape: Shape, classes: int) -> nn.Module:
    """Report 000, model 2: 231.6 MFLOP forward and backward for a 32x32 RGB image, at 2 per multiply-add.

    Filters and dropout rates, which the report leaves open, are those usual for this network.
    """
    features = nn.Sequential(
        nn.Conv2d(shape[0], 32, 3, padding="same"),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.2),
        nn.Conv2d(32, 64, 3, padding="same"),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.3),
        nn.Conv2d(64, 128, 3, padding="same"),
        nn.ReLU(),
        nn.Conv2d(128, 128, 3, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.4),
        nn.BatchNorm2d(128, eps=1e-3, momentum=0.01),  # Keras' defaults; its momentum 0.99 weighs the old average
        nn.Flatten(),
    )
    return _as_keras(
        *features,
        nn.Linear(_width(features, shape), 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, classes),
    )


def model3(shape: Shape, classes: int) -> nn.Module:
    """Report 000, model 3. It leaves filters, widths, padding (here Keras' default, none) and dropout rates open."""
    features = nn.Sequential(
        nn.Conv2d(shape[0], 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    return _as_keras(
        *features,
        nn.Linear(_width(features, shape), 256),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(64, classes),
    )


def small_cnn(shape: Shape, classes: int) -> nn.Module:
    """Three convolutions for images of 8x8 to 32x32 pixels: two seconds of CPU on scikit-learn's digits."""
    features = nn.Sequential(
        nn.Conv2d(shape[0], 16, 3, padding="same"),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding="same"),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    return _as_keras(*features, nn.Linear(_width(features, shape), classes))


def mlp(shape: Shape, classes: int, *, hidden: list[int] | None = None, dropout: float = 0.0) -> nn.Module:
    """Dense layers of the ``hidden`` widths ([64] where none are given), each with ReLU and dropout."""
    hidden = [64] if hidden is None else hidden
    if not isinstance(hidden, list) or not all(type(width) is int and width > 0 for width in hidden):
        raise ValueError(f"hidden must be a list of layer widths such as [128, 64], not {hidden!r}")
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = shape[0] * shape[1] * shape[2]
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout)]
        inputs = width
    return _as_keras(*layers, nn.Linear(inputs, classes))


def _as_keras(*layers: nn.Module) -> nn.Module:
    """Chain the layers, with Keras' initial weights (Glorot uniform, no bias): the reports used Keras."""
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            for parameter in layer.parameters():
                (nn.init.xavier_uniform_ if parameter.ndim > 1 else nn.init.zeros_)(parameter)
    return nn.Sequential(*layers)


def _width(features: nn.Sequential, shape: Shape) -> int:
    """Count the numbers that ``features`` make of one image, by passing one through."""
    try:
        with torch.no_grad():  # eval: leaves batch norm's statistics and the random stream alone
            width: int = features.eval()(torch.zeros(1, *shape)).numel()
    except RuntimeError as error:
        raise ValueError("they are too small, its layers leave nothing of them") from error
    features.train()
    return width


def _timm(
    name: str,
    shape: Shape,
    classes: int,
    *,
    pretrained: bool = False,
    weights: str | None = None,
    stem: str | None = None,
    **options: Any,
) -> nn.Module:
    """Make timm's model ``name``; options that are not named here go to `timm.create_model`.

    Args:
        pretrained: start from the weights that timm names for it (its hub, or the hub's cache).
        weights: start from this file instead: safetensors, or a state dict saved by torch.
        stem: ``small`` gives a ResNet a 3x3 first convolution of stride 1 and no pooling after it, as is usual
            for images of 32x32.
    """
    import timm

    if pretrained and weights is not None:
        raise ValueError("give either pretrained or weights")
    if pretrained and stem is not None:
        raise ValueError("the pretrained first convolution does not fit another stem: give either pretrained or stem")

    real = torch.get_default_device().type != "meta"  # there is nothing to put weights into on the meta device
    made_for = timm.get_pretrained_cfg(name)
    if made_for and made_for.fixed_input_size:
        options = {"img_size": shape[1:], **options}
    try:
        network = timm.create_model(
            name, pretrained=pretrained and real, num_classes=classes, in_chans=shape[0], **options
        )
    except OSError as error:
        raise WeightsError(
            f"the pretrained weights of {TIMM}{name} are neither on the hub, as far as it can be reached, nor in its"
            " cache: `weights: path/to/file.safetensors` takes a local file"
        ) from error
    if stem is not None:
        _set_stem(network, stem)
    if weights is not None and real:
        _load_weights(network, Path(weights))
    return network


def _set_stem(network: Any, stem: str) -> None:
    """Replace a ResNet's 7x7 convolution of stride 2 and the pooling after it."""
    if stem != "small":
        raise ValueError(f"stem must be small, not {stem!r}")
    first = getattr(network, "conv1", None)
    if not (isinstance(first, nn.Conv2d) and first.kernel_size == (7, 7) and hasattr(network, "maxpool")):
        raise ValueError("stem: small is for networks that begin with a 7x7 convolution and pooling, such as resnet18")
    network.conv1 = nn.Conv2d(first.in_channels, first.out_channels, 3, padding=1, bias=first.bias is not None)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm's ResNets start
    network.maxpool = nn.Identity()


def _load_weights(network: nn.Module, path: Path) -> None:
    """Load all weights from a file, but a classifier head made for other classes."""
    own, state = network.state_dict(), _read_weights(path)
    needed = [key for key in own if not key.endswith("num_batches_tracked")]  # older files do without

    def differs(key: str) -> bool:
        return key in own and own[key].shape != state[key].shape

    if any(_in_head(network, key) and differs(key) for key in state):
        state = {key: value for key, value in state.items() if not _in_head(network, key)}
    faults = {
        "lack": [key for key in needed if key not in state and not _in_head(network, key)],
        "have besides": [key for key in state if key not in own],
        "have in another shape": [key for key in state if differs(key)],
    }
    found = [f"{fault} {', '.join(keys[:3])}{' ...' * (len(keys) > 3)}" for fault, keys in faults.items() if keys]
    if found:
        raise WeightsError(f"the weights in {path} do not fit the model: they {'; '.join(found)}")
    network.load_state_dict(state, strict=False)


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict without running code from the file, as unpickling it freely would."""
    wanted = "give a .safetensors file or a state dict saved by torch"
    if not path.is_file():
        raise WeightsError(f"no weights file {path}: {wanted}")
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file that holds something else makes a reader raise
        raise WeightsError(f"cannot read {path} as weights: {wanted}") from error
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no weights: {wanted}")
    return dict(state)


def _in_head(network: Any, key: str) -> bool:
    """Whether a key of the network's state dict belongs to its classifier, where timm says which that is."""
    heads = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    return key.startswith(tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads)))


def _builder(model: ModelSettings) -> Callable[..., nn.Module]:
    """Return the builder that a suite means, if it takes all the options given."""
    check_model_name(model.name)
    if model.name.startswith(TIMM):
        return functools.partial(_timm, _timm_name(model.name.removeprefix(TIMM)))
    builder = MODELS.get(model.name)
    parameters = list(inspect.signature(builder).parameters.values())[2:]
    known = [parameter.name for parameter in parameters]
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        for option in model.options:
            if option not in known:
                raise UserError(f"model {model.name!r} has no option {option!r}{did_you_mean(option, known)}")
    return builder


def _timm_name(name: str) -> str:
    """Return the name if timm knows it; with 1,300 models one is always near enough to suggest."""
    import timm  # takes seconds

    if not timm.is_model(name):
        (nearest,) = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0)
        raise UserError(f"unknown model '{TIMM}{name}'; did you mean '{TIMM}{nearest}'?")
    return name


def _misfit(model: ModelSettings, shape: Shape, error: Exception) -> UserError:
    """Say in one line which model could not be made, and why."""
    options = ", ".join(f"{name}={value!r}" for name, value in model.options.items())
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return UserError(f"model {model.name!r}{options and f' ({options})'} for images of {shape[1]}x{shape[2]}: {reason}")
