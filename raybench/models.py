"""The networks: those of the reports, two small ones, and every model of timm.

A registered builder is a function ``(shape, classes, **options) -> torch.nn.Module``. The module it returns maps float
images [B, C, H, W] to logits [B, classes]: no softmax at its end, the loss brings its own.
"""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from raybench.backbones import TIMM, Shape, build_timm, flag, has_weights, in_head, timm_name, whole
from raybench.errors import UserError
from raybench.registry import MODELS, check_model_name
from raybench.settings import ModelSettings

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


def check(model: ModelSettings, shape: Shape, classes: int) -> nn.Module | None:
    """Raise `UserError` unless the network can be built and maps such images to logits; return one to be looked at.

    Networks of timm, and all on images of more than 64x64, run on torch's meta device, which knows shapes and no
    numbers: quick for large ones too. Others are built as they are: the meta device would cost 1.3 s, for which torch
    loads its compiler. A file of weights must be there, but is not read; pretrained weights are not looked for. None
    where only real images can tell.
    """
    builder = _builder(model)  # outside: what importing makes must not land on the meta device
    device = "meta" if model.name.startswith(TIMM) or math.prod(shape[1:]) > 64 * 64 else "cpu"
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device), torch.no_grad(), warnings.catch_warnings():
            # Of weights that a builder loads itself: the meta device takes none.
            warnings.filterwarnings("ignore", ".*copying from a non-meta parameter")
            network = builder(shape, classes, **model.options).eval()
            logits = network(torch.zeros(2, *shape))
    except _MISFIT as error:
        if device == "meta" and "meta" in str(error):  # code that needs a number on its way
            return None
        raise _misfit(model, shape, error) from error
    found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != [2, classes]:
        raise UserError(f"model {model.name!r} must map two images to logits of shape [2, {classes}], not {found}")
    return network


def random_tensors(model: ModelSettings, shape: Shape, classes: int) -> list[str]:
    """Return what starts at random, the classifier aside, in a network that is given weights; get them if need be.

    Raises what `build` raises.
    """
    network = build(model, shape, classes)
    other = build(model, shape, classes).state_dict()  # the random stream goes on: what is drawn differs
    state = network.state_dict()
    return [key for key in state if not in_head(network, key) and not torch.equal(state[key], other[key])]


def parameter_count(network: nn.Module) -> int:
    """Count a network's weights, frozen or not. Keras counts batch norm's running statistics too, this does not."""
    return sum(parameter.numel() for parameter in network.parameters())


def weights_fingerprint(model: ModelSettings, network: nn.Module) -> str | None:
    """Identify the weights that a freshly built network was given: 16 hex digits, None for a random start.

    The classifier is left out, because it starts at random wherever the number of classes differs.
    """
    if not has_weights(model):
        return None
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        if not in_head(network, key):
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
        _batch_norm(128),
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


def vgg_like(shape: Shape, classes: int, *, width: int = 92, dropout: float | list[float] | None = None) -> nn.Module:
    """Report 001, Figure 2: six convolutions, from ``width`` filters to four times as many.

    For 32x32 RGB images and 10 classes it has the 2,429,270 parameters of Figure 2, which are 2,426,694 weights and
    the 2,576 running means and variances of batch norm. The report leaves the dropout rates open: [0.2, 0.3, 0.4] are
    those of this network in Elgendy's "Deep Learning for Vision Systems", which the report cites.

    Args:
        dropout: one rate, or one for each of the three pairs of convolutions.
    """
    rates = _rates([0.2, 0.3, 0.4] if dropout is None else dropout, 3)
    layers: list[nn.Module] = []
    inputs = shape[0]
    for filters, rate in zip((width, 2 * width, 4 * width), rates, strict=True):
        for _ in range(2):
            layers += [*_conv(inputs, filters, 3), nn.ReLU(), _batch_norm(filters)]
            inputs = filters
        layers += [nn.MaxPool2d(2), nn.Dropout(rate)]
    features = nn.Sequential(*layers, nn.Flatten())
    return _as_keras(*features, nn.Linear(_width(features, shape), classes))


class ResidualBlock(nn.Module):
    """Two convolutions of as many filters as there are inputs, added to the inputs."""

    def __init__(self, filters: int, kernel_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_conv(filters, filters, kernel_size),
            _batch_norm(filters),
            nn.ReLU(),
            *_conv(filters, filters, kernel_size),
            _batch_norm(filters),
        )
        self.activation = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.activation(images + self.layers(images))
        return result


def residual(
    shape: Shape, classes: int, *, blocks: int = 3, kernel_size: int = 3, dropout: float = 0.2, filters: int = 64
) -> nn.Module:
    """Report 002, section 2: residual blocks, each with dropout at its end and pooling after it.

    The report leaves open the filters (here equally many everywhere, since it adds a block's inputs to its result as
    they are), the first convolution (3x3 whatever ``kernel_size`` is, which it gives for the blocks) and that the
    last maps are flattened. Beyond five blocks the maps of a 32x32 image have one pixel, and pooling leaves it.
    """
    whole("blocks", blocks)
    layers = [*_conv(shape[0], filters, 3), _batch_norm(filters), nn.ReLU()]
    for _ in range(blocks):
        layers += [ResidualBlock(filters, kernel_size), nn.Dropout(dropout), nn.MaxPool2d(2, ceil_mode=True)]
    features = nn.Sequential(*layers, nn.Flatten())
    return _as_keras(*features, nn.Linear(_width(features, shape), classes))


def simple_cnn(shape: Shape, classes: int) -> nn.Module:
    """Report 002, section 4: three convolutions, max pooling and three dense layers.

    The filters and the places of the pooling, which it leaves open, are those of TensorFlow's CNN tutorial. The dense
    layers are 128, 64 and ``classes`` wide, without dropout, so that augmentation alone acts against overfitting.
    """
    features = nn.Sequential(
        nn.Conv2d(shape[0], 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.Flatten(),
    )
    return _as_keras(
        *features,
        nn.Linear(_width(features, shape), 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def ladder(
    shape: Shape,
    classes: int,
    *,
    blocks: list[list[int]] | None = None,
    max_pool: bool = False,
    batch_norm: bool = False,
    dropout: float = 0.0,
    pooling: str = "flatten",
    dense: int = 100,
) -> nn.Module:
    """Report 003, models 1 to 11. As it stands it is model 1; the best, model 10, has the options

        {blocks: [[64, 64], [128, 128], [256, 256], [256, 256]], max_pool: true, batch_norm: true, dropout: 0.25,
         pooling: average}

    which make the 23 layers that the report counts: four blocks of two convolutions, batch norm, pooling and dropout,
    the pooling over all pixels and two dense layers.

    Args:
        blocks: filters of the 3x3 convolutions of each block; [[32]] where none are given.
        max_pool, batch_norm: whether each block ends with one, batch norm first.
        dropout: at the end of each block.
        pooling: ``flatten``, or ``average`` over all pixels, before the dense layers.
        dense: width of the first dense layer.
    """
    blocks = [[32]] if blocks is None else blocks
    if not isinstance(blocks, list) or not all(isinstance(block, list) and block for block in blocks):
        raise ValueError(f"blocks must be lists of filters such as [[64, 64], [128]], not {blocks!r}")
    if pooling not in ("flatten", "average"):
        raise ValueError(f"pooling must be flatten or average, not {pooling!r}")
    layers: list[nn.Module] = []
    inputs = shape[0]
    for block in blocks:
        for filters in block:
            layers += [*_conv(inputs, filters, 3), nn.ReLU()]
            inputs = filters
        layers += [_batch_norm(inputs)] if flag("batch_norm", batch_norm) else []
        layers += [nn.MaxPool2d(2)] if flag("max_pool", max_pool) else []
        layers += [nn.Dropout(dropout)] if dropout else []
    layers += [nn.AdaptiveAvgPool2d(1)] if pooling == "average" else []
    features = nn.Sequential(*layers, nn.Flatten())
    return _as_keras(
        *features, nn.Linear(_width(features, shape), whole("dense", dense)), nn.ReLU(), nn.Linear(dense, classes)
    )


def cnn5x5(shape: Shape, classes: int, *, batch_norm: bool = False, dropout: float = 0.0) -> nn.Module:
    """Report 004, section 2.1: three 5x5 convolutions, each with max pooling 3x3 of stride 2.

    Its improved network has one layer of batch norm and one of dropout more. Where, it leaves open: here batch norm
    follows the first convolution, and dropout the dense layer of 64.
    """
    features = nn.Sequential(
        nn.Conv2d(shape[0], 32, 5, padding=2),
        *([_batch_norm(32)] if flag("batch_norm", batch_norm) else []),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Flatten(),
    )
    return _as_keras(
        *features,
        nn.Linear(_width(features, shape), 64),
        nn.ReLU(),
        *([nn.Dropout(dropout)] if dropout else []),
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
    network = nn.Sequential(*layers)
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            for parameter in layer.parameters():
                (nn.init.xavier_uniform_ if parameter.ndim > 1 else nn.init.zeros_)(parameter)
    return network


def _conv(inputs: int, filters: int, size: int) -> list[nn.Module]:
    """Make a convolution that keeps the image's size; with an even kernel, the image is padded more at its end."""
    whole("the number of filters", filters)
    before, after = (whole("kernel_size", size) - 1) // 2, size // 2
    if before == after:
        return [nn.Conv2d(inputs, filters, size, padding=before)]
    return [nn.ZeroPad2d((before, after, before, after)), nn.Conv2d(inputs, filters, size)]


def _batch_norm(filters: int) -> nn.BatchNorm2d:
    """Make batch norm with Keras' defaults; its momentum 0.99 is the weight of the old average, torch's of the new."""
    return nn.BatchNorm2d(filters, eps=1e-3, momentum=0.01)


def _rates(dropout: float | list[float], count: int) -> list[float]:
    """Return ``count`` dropout rates."""
    rates = dropout if isinstance(dropout, list) else [dropout] * count
    if len(rates) != count:
        raise ValueError(f"dropout must be one rate or {count}, not {dropout!r}")
    return rates


def _width(features: nn.Sequential, shape: Shape) -> int:
    """Count the numbers that ``features`` make of one image, by passing one through."""
    try:
        with torch.no_grad():  # eval: leaves batch norm's statistics and the random stream alone
            width: int = features.eval()(torch.zeros(1, *shape)).numel()
    except RuntimeError as error:
        raise ValueError("they are too small, its layers leave nothing of them") from error
    features.train()
    return width


def _builder(model: ModelSettings) -> Callable[..., nn.Module]:
    """Return the builder that a suite means, if it takes all the options given."""
    check_model_name(model.name)
    if model.name.startswith(TIMM):
        return functools.partial(build_timm, timm_name(model.name.removeprefix(TIMM)))
    MODELS.check_options(model.name, model.options)
    return MODELS.get(model.name)


def _misfit(model: ModelSettings, shape: Shape, error: Exception) -> UserError:
    """Say in one line which model could not be made, and why."""
    options = ", ".join(f"{name}={value!r}" for name, value in model.options.items())
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return UserError(f"model {model.name!r}{options and f' ({options})'} for images of {shape[1]}x{shape[2]}: {reason}")
