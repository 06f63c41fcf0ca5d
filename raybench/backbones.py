"""The models of timm, with a classifier of their own or of ours, and which part of a network is trained.

``timm:<name>`` alone is timm's network with a classifier for the dataset. With ``head``, ``size`` or ``normalize`` it
becomes a `Backbone`: timm's network as far as its pooled features, and dense layers after it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from raybench.errors import UserError, WeightsError, did_you_mean
from raybench.settings import ModelSettings

Shape = tuple[int, int, int]
"""Channels, height and width of one image, in pixels."""

TIMM = "timm:"
POOLS = {"average": "avg", "max": "max", "flatten": ""}
"""What a suite calls a pooling -> what timm calls it."""
_FROZEN = "_raybench_frozen"
"""Attribute that marks the modules which `train_mode` leaves in eval mode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """``head: {dense: [1024, 512], dropout: 0.4}``: what follows the convolutions in place of timm's classifier."""

    dense: list[int] = dataclasses.field(default_factory=list)
    """Widths of dense layers with ReLU, before the one that gives the logits."""
    dropout: float = 0.0
    """Between the last two layers."""
    pool: str = "average"
    """How the feature maps become one vector: ``average`` or ``max`` over their pixels, or ``flatten``."""
    batch_norm: bool = False
    """After each of the ``dense`` layers, before its ReLU."""

    def __post_init__(self) -> None:
        if not isinstance(self.dense, list) or not all(type(width) is int and width > 0 for width in self.dense):
            raise ValueError(f"dense must be a list of layer widths such as [1024, 512], not {self.dense!r}")
        flag("batch_norm", self.batch_norm)
        if self.pool not in POOLS:
            raise ValueError(f"pool must be average, max or flatten, not {self.pool!r}")

    @classmethod
    def read(cls, options: Any) -> Head:
        """Make it from what a suite says. Raise `ValueError` for what it cannot say."""
        if not isinstance(options, Mapping):
            raise ValueError(f"head must be a mapping such as {{dense: [512], dropout: 0.4}}, not {options!r}")
        known = [field.name for field in dataclasses.fields(cls)]
        for option in options:
            if option not in known:
                raise ValueError(f"head has no option {option!r}{did_you_mean(option, known)}")
        return cls(**options)

    def layers(self, inputs: int, classes: int) -> nn.Sequential:
        """Return the layers after the pooling, with Keras' initial weights."""
        layers: list[nn.Module] = [nn.Flatten()]
        for width in self.dense:
            norm = [nn.BatchNorm1d(width, eps=1e-3, momentum=0.01)] if self.batch_norm else []  # Keras' defaults
            layers += [_dense(inputs, width), *norm, nn.ReLU()]
            inputs = width
        return nn.Sequential(*layers, nn.Dropout(self.dropout), _dense(inputs, classes))


class Backbone(nn.Module):
    """A network of timm that ends with its features [B, ...], and the ``head`` that makes logits of them."""

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self, backbone: nn.Module, head: nn.Module, size: int | None, normal: tuple[Tensor, Tensor] | None
    ) -> None:
        """
        Args:
            size: bring every image to this many pixels square.
            normal: mean and standard deviation [C] of the pixels that the backbone's weights are made for.
        """
        super().__init__()
        self.backbone, self.head, self.size = backbone, head, size
        for name, values in zip(("mean", "std"), normal or (None, None), strict=True):
            # Not in the state dict: they belong to the settings, not to the weights.
            self.register_buffer(name, None if values is None else values[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map float images [B, C, H, W] of values 0 to 1 to logits [B, classes]."""
        if self.mean is not None and self.std is not None:
            images = (images - self.mean) / self.std
        if self.size is not None:
            images = functional.interpolate(images, (self.size, self.size), mode="bilinear", antialias=False)
        logits: Tensor = self.head(self.backbone(images))
        return logits


def build_timm(
    name: str,
    shape: Shape,
    classes: int,
    *,
    pretrained: bool = False,
    weights: str | None = None,
    stem: str | None = None,
    head: Mapping[str, Any] | None = None,
    size: int | None = None,
    normalize: bool | None = None,
    **options: Any,
) -> nn.Module:
    """Make timm's model ``name``; options that are not named here go to `timm.create_model`.

    Args:
        pretrained: start from the weights that timm names for it (its hub, or the hub's cache).
        weights: start from this file instead: safetensors, or a state dict saved by torch.
        stem: ``small`` gives a ResNet a 3x3 first convolution of stride 1 and no pooling after it, as is usual
            for images of 32x32.
        head: options of `Head`, which takes the place of timm's classifier and its pooling; with it a VGG also loses
            the two dense layers of 4096, as with Keras' ``include_top=False``.
        size: bring the images to this many pixels square (bilinear, no antialias), on the device.
        normalize: subtract the mean and divide by the standard deviation of the pixels that timm's weights were made
            with. With ``head`` or ``size``, true by default where there are ``pretrained`` weights or ``weights``.
    """
    if flag("pretrained", pretrained) and weights is not None:
        raise ValueError("give either pretrained or weights")
    if pretrained and stem is not None:
        raise ValueError("the pretrained first convolution does not fit another stem: give either pretrained or stem")
    if size is not None:
        whole("size", size)
    if normalize is not None:
        flag("normalize", normalize)
    file = None if weights is None else _weights_file(weights)
    top = None if head is None else Head.read(head)

    plain = is_plain(head=head, size=size, normalize=normalize)
    if plain:
        network = _create(name, shape, pretrained, num_classes=classes, **options)
    else:
        pool = {} if top is None else {"global_pool": POOLS[top.pool]}
        seen = shape if size is None else (shape[0], size, size)
        network = _create(name, seen, pretrained, num_classes=0, **pool, **options)
    if stem is not None:
        _set_stem(network, stem)
    if file is not None and _has_numbers():
        _load_weights(network, file)
    if plain:
        return network

    if top is not None and hasattr(network, "pre_logits"):
        network.pre_logits = nn.Identity()
    normalize = bool(pretrained or weights) if normalize is None else normalize
    normal = _pixel_statistics(network, shape[0]) if normalize else None
    complete = Backbone(network, nn.Flatten(), size, normal).eval()
    with torch.no_grad():
        inputs = complete(torch.zeros(1, *shape)).shape[1]
    complete.head = (top or Head()).layers(inputs, classes)
    return complete.train()


def without_pretrained(model: ModelSettings) -> ModelSettings:
    """Return a model whose ``pretrained`` weights are random, and which is otherwise built as with them."""
    return _random(model, pretrained=False) if needs_pretrained(model) else model


def without_weights(model: ModelSettings) -> ModelSettings:
    """Return a model that loads no weights, from a file neither, and which is otherwise built as with them."""
    ours = model.name.startswith(TIMM) and has_weights(model)
    return _random(model, pretrained=False, weights=None) if ours else model


def _random(model: ModelSettings, **instead: Any) -> ModelSettings:
    options = {**model.options, **instead}
    if options.get("normalize") is None and not is_plain(**options):
        options["normalize"] = True
    return ModelSettings(name=model.name, **options)


def needs_pretrained(model: ModelSettings) -> bool:
    """Whether timm is asked for the weights that it names for a model."""
    return model.name.startswith(TIMM) and bool(model.options.get("pretrained"))


def is_plain(**options: Any) -> bool:
    """Whether a model of timm with these options is timm's own network, classifier and all."""
    return all(options.get(option) is None for option in ("head", "size", "normalize"))


def whole(name: str, value: int) -> int:
    """Return the value of an option that must be a whole number from 1."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be a whole number from 1, not {value!r}")
    return value


def flag(name: str, value: bool) -> bool:
    """Return the value of an option that must be true or false; YAML's ``off`` is a word, and words are true."""
    if type(value) is not bool:
        raise ValueError(f"{name} must be true or false, not {value!r}")
    return value


def notes(model: ModelSettings) -> list[str]:
    """Say what a reader of the results should know about the weights that a model starts from, a line each."""
    if not model.name.startswith(TIMM):
        return []
    if not has_weights(model):
        meant = "pretrained" in model.options or model.options.get("stem")
        hint = "random weights (pretrained: true for those of the hub, pretrained: false if that is meant)"
        return [] if meant else [f"{model.name}: {hint}"]
    if is_plain(**model.options):
        return [f"{model.name}: the images are not normalised as for its pretrained weights (normalize: true does it)"]
    return []


def has_weights(model: ModelSettings) -> bool:
    """Whether a model starts from weights that were trained before, of the hub or of a file."""
    return bool(model.options.get("pretrained") or model.options.get("weights"))


# ---------------------------------------------------------------------------------------------------------------------
# What is trained


def set_trainable(network: nn.Module, which: Literal["all", "head"] | Mapping[str, int]) -> None:
    """Choose the part of a network that training changes; the rest is frozen until the next call.

    A frozen part keeps every bit, batch norm's running statistics included, and its dropout is off, if `train_mode`
    is called in place of ``network.train()``. Call this before the optimizer and `DistributedDataParallel` are made.

    Args:
        which: ``all``; ``head``, which in a network that is no `Backbone` is its last layer; or ``{"last": n}``, the
            head and the last n layers with weights before it. Layers are counted in the order in which the network
            registers them; those with a matrix or kernel count, and what follows them (batch norm) goes with them.
    """
    modules = list(network.modules())  # a container stands before what it contains
    position = {module: at for at, module in enumerate(modules)}
    start = position[_first_trained(network, modules, which)]
    for module in modules:
        trained = position[module] >= start
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(trained)
            parameter.grad = parameter.grad if trained else None
        setattr(module, _FROZEN, all(position[below] < start for below in module.modules()))


def train_mode(network: nn.Module) -> None:
    """Put a network, or what `DistributedDataParallel` made of it, in training mode, but for its frozen parts."""
    network.train()
    for module in network.modules():
        if getattr(module, _FROZEN, False):
            module.eval()


def _first_trained(
    network: nn.Module, modules: list[nn.Module], which: Literal["all", "head"] | Mapping[str, int]
) -> nn.Module:
    """Return the module that begins the trained part."""
    if which == "all":
        return network
    last = which["last"] if isinstance(which, Mapping) else 0
    layers = [module for module in modules if any(p.ndim > 1 for p in module.parameters(recurse=False))]
    if not layers:
        raise UserError("the network has no layer with weights of which a part could be trained")
    head = network.head if isinstance(network, Backbone) else layers[-1]
    inside = set(head.modules())
    before = [layer for layer in layers if layer not in inside]
    if last > len(before):
        raise UserError(f"last: {last} is too many: {len(before)} layers with weights stand before the head")
    return before[-last] if last else head


# ---------------------------------------------------------------------------------------------------------------------
# Making a network of timm


def timm_name(name: str) -> str:
    """Return the name if timm knows it; with 1,300 models one is always near enough to suggest."""
    import timm  # takes seconds

    if not timm.is_model(name):
        (nearest,) = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0)
        raise UserError(f"unknown model '{TIMM}{name}'; did you mean '{TIMM}{nearest}'?")
    return name


def _create(name: str, shape: Shape, pretrained: bool, **options: Any) -> Any:
    """Call timm, for images of this shape."""
    import timm

    made_for = timm.get_pretrained_cfg(name)
    if made_for and made_for.fixed_input_size:
        options = {"img_size": shape[1:], **options}

    def create() -> Any:
        return timm.create_model(name, pretrained=pretrained and _has_numbers(), in_chans=shape[0], **options)

    state = torch.get_rng_state()
    try:
        with contextlib.suppress(OSError), _hub_offline():  # asking the hub for what is cached would cost every trial
            return create()
        torch.set_rng_state(state)
        return create()
    except OSError as error:
        raise WeightsError(
            f"the pretrained weights of {TIMM}{name} are neither in the hub's cache nor could they be downloaded: run"
            " once where the hub can be reached, name a file (weights: path/to/file.safetensors), or say"
            " pretrained: false"
        ) from error


@contextlib.contextmanager
def _hub_offline() -> Iterator[None]:
    """Let the hub's client look into its cache alone; timm passes no option for that on to it."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _has_numbers() -> bool:
    """Whether networks are being made to be used: on the meta device there is nothing to put weights into."""
    return torch.get_default_device().type != "meta"


def _dense(inputs: int, outputs: int) -> nn.Linear:
    """Make a dense layer with Keras' initial weights: Glorot uniform, no bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _pixel_statistics(network: Any, channels: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [C] of the pixels 0 to 1 that timm's weights for a network were made with."""
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    config = network.pretrained_cfg
    both = [config.get("mean") or IMAGENET_DEFAULT_MEAN, config.get("std") or IMAGENET_DEFAULT_STD]
    if channels != 3:  # timm adds up or repeats the first convolution's three channels
        both = [[sum(values) / 3] * channels for values in both]
    return torch.tensor(both[0]), torch.tensor(both[1])


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


# ---------------------------------------------------------------------------------------------------------------------
# Weights from a file

_WANTED = "give a .safetensors file or a state dict saved by torch"
_UNUSED = "AuxLogits."
"""Keys of a second classifier, for training only, that Inception v3's files contain and timm builds it without."""


def in_head(network: Any, key: str) -> bool:
    """Whether a key of the network's state dict belongs to its classifier, where timm says which that is."""
    if isinstance(network, Backbone):
        return key.startswith("head.")
    heads = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    return key.startswith(tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads)))


def _load_weights(network: nn.Module, path: Path) -> None:
    """Load all weights from a file, but a classifier that the network has not, or has for other classes."""
    own, state = network.state_dict(), _read_weights(path)
    needed = [key for key in own if not key.endswith("num_batches_tracked")]  # older files do without

    def differs(key: str) -> bool:
        return key in own and own[key].shape != state[key].shape

    if any(in_head(network, key) and (key not in own or differs(key)) for key in state):
        state = {key: value for key, value in state.items() if not in_head(network, key)}
    faults = {
        "lack": [key for key in needed if key not in state and not in_head(network, key)],
        "have besides": [key for key in state if key not in own and not key.startswith(_UNUSED)],
        "have in another shape": [key for key in state if differs(key)],
    }
    found = [f"{fault} {', '.join(keys[:3])}{' ...' * (len(keys) > 3)}" for fault, keys in faults.items() if keys]
    if found:
        raise WeightsError(f"the weights in {path} do not fit the model: they {'; '.join(found)}")
    network.load_state_dict(state, strict=False)


def _weights_file(weights: str) -> Path:
    path = Path(weights)
    if not path.is_file():
        raise WeightsError(f"no weights file {path}: {_WANTED}")
    return path


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict without running code from the file, as unpickling it freely would."""
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file that holds something else makes a reader raise
        raise WeightsError(f"cannot read {path} as weights: {_WANTED}") from error
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no weights: {_WANTED}")
    return dict(state)
