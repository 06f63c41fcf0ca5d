"""What can be named: a suite's models, augmentations and datasets, and kinds of figures.

The tables below are the contents page: a name and where its code lives. Nothing heavy is imported until an entry is
asked for, so that ``raybench plan`` can check every name of a suite without loading torch. Code outside the package
adds entries with the decorator, from a module that the suite lists under ``imports``:

    from raybench.registry import MODELS

    @MODELS.register("tiny")
    def tiny(shape, classes, *, width=8): ...
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from raybench.errors import UserError, did_you_mean

Entry = Callable[..., Any]


class Registry:
    """Names of one kind of thing, each with the callable that makes it."""

    def __init__(self, kind: str, builtin: dict[str, str], given: int = 0) -> None:
        """
        Args:
            builtin: maps a name to ``"module:attribute"``, imported on first use.
            given: how many of an entry's first parameters raybench itself provides; the others are options.
        """
        self.kind, self.given = kind, given
        self._entries: dict[str, Entry | str] = dict(builtin)

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Decorate a callable to make it known as ``name``. A name that is taken by other code is refused."""

        def add(entry: Entry) -> Entry:
            taken = self._entries.get(name)
            if taken is not None and not _same_code(taken, entry):
                raise UserError(f"{self.kind} {name!r} is registered already: choose another name")
            self._entries[name] = entry
            return entry

        return add

    def names(self) -> list[str]:
        return list(self._entries)

    def where(self, name: str) -> tuple[str, str]:
        """Return the module and the attribute of an entry, without importing it."""
        self.check(name)
        entry = self._entries[name]
        module, attribute = entry.split(":") if isinstance(entry, str) else (entry.__module__, entry.__qualname__)
        return module, attribute

    def check(self, name: str) -> None:
        """Raise `UserError` with a suggestion unless ``name`` is known."""
        if name not in self._entries:
            raise UserError(f"unknown {self.kind} {name!r}{did_you_mean(name, self._entries)}")

    def get(self, name: str) -> Entry:
        """Return the callable called ``name``, importing its module if need be."""
        self.check(name)
        entry = self._entries[name]
        if isinstance(entry, str):
            module, attribute = self.where(name)
            entry = self._entries[name] = getattr(importlib.import_module(module), attribute)
        return entry

    def check_options(self, name: str, options: Iterable[str]) -> None:
        """Raise `UserError` with a suggestion unless the callable called ``name`` takes all ``options``."""
        parameters = list(inspect.signature(self.get(name)).parameters.values())[self.given :]
        known = [parameter.name for parameter in parameters]
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            for option in options:
                if option not in known:
                    raise UserError(f"{self.kind} {name!r} has no option {option!r}{did_you_mean(option, known)}")


def _same_code(taken: Entry | str, entry: Entry) -> bool:
    """Whether a second registration is the same function again (a module imported twice or reloaded)."""
    if isinstance(taken, str):
        return False
    return (taken.__module__, taken.__qualname__) == (entry.__module__, entry.__qualname__)


MODELS = Registry(
    "model",
    {
        "model1": "raybench.models:model1",
        "model2": "raybench.models:model2",
        "model3": "raybench.models:model3",
        "vgg_like": "raybench.models:vgg_like",
        "residual": "raybench.models:residual",
        "simple_cnn": "raybench.models:simple_cnn",
        "ladder": "raybench.models:ladder",
        "cnn5x5": "raybench.models:cnn5x5",
        "small_cnn": "raybench.models:small_cnn",
        "mlp": "raybench.models:mlp",
    },
    given=2,
)
"""Builders ``(shape, classes, **options) -> torch.nn.Module``; any timm model is named ``timm:<name>`` instead."""

AUGMENTATIONS = Registry(
    "augmentation",
    {
        "none": "raybench.augment:none",
        "aug1": "raybench.augment:aug1",
        "aug2": "raybench.augment:aug2",
        "shift": "raybench.augment:Shift",
        "zoom": "raybench.augment:Zoom",
        "zoom_in": "raybench.augment:ZoomIn",
        "rotation": "raybench.augment:Rotation",
        "flip": "raybench.augment:Flip",
        "crop": "raybench.augment:Crop",
        "cutout": "raybench.augment:Cutout",
        "brightness": "raybench.augment:Brightness",
        "noise": "raybench.augment:Noise",
        "standardize": "raybench.preparation:Standardize",
        "zca": "raybench.preparation:ZCA",
    },
)
"""Callables ``(**parameters)`` that return one part, or a list of specs of parts (a recipe).

Automatic policies are named ``torchvision:<name>`` and ``timm:<name>`` instead.
"""

POLICIES = Registry(
    "library of policies",
    {"torchvision": "raybench.policies:from_torchvision", "timm": "raybench.policies:from_timm"},
)
"""Callables ``(name, **options)`` that return the part ``<library>:<name>``."""

DATASETS = Registry(
    "dataset",
    {
        "digits": "raybench.datasets:Digits",
        "cifar10": "raybench.datasets:CIFAR10",
        "cifar100": "raybench.datasets:CIFAR100",
        "cinic10": "raybench.datasets:CINIC10",
        "svhn": "raybench.datasets:SVHN",
        "mnist": "raybench.datasets:MNIST",
        "fashion_mnist": "raybench.datasets:FashionMNIST",
        "imagefolder": "raybench.datasets:ImageFolder",
        "parquet": "raybench.datasets:ParquetImages",
    },
)
"""Classes of `raybench.datasets.Dataset`: which files it needs, and how they become uint8 arrays."""

PLOTS = Registry(
    "figure",
    {
        "curves": "raybench.figures.curves:curves",
        "lr": "raybench.figures.curves:lr",
        "curves_by_lr": "raybench.figures.curves:curves_by_lr",
        "box": "raybench.figures.grids:box",
        "heatmap": "raybench.figures.grids:heatmap",
        "grid": "raybench.figures.grids:grid",
        "ranking": "raybench.figures.grids:ranking",
        "confusion": "raybench.figures.classes:confusion",
        "class_report": "raybench.figures.classes:class_report",
        "gallery": "raybench.figures.images:gallery",
        "gradcam": "raybench.figures.images:gradcam",
        "activations": "raybench.figures.outside:activations",
        "outside": "raybench.figures.outside:outside",
    },
    given=1,
)
"""Functions ``(results, **options) -> matplotlib.figure.Figure``; see `raybench.figures`."""


def check_model_name(name: str) -> None:
    """Raise `UserError` unless ``name`` is registered or begins with ``timm:`` (timm knows its own when it builds)."""
    if name.startswith("timm:") and len(name) > len("timm:"):
        return
    if name not in MODELS.names():
        raise UserError(f"unknown model {name!r}{did_you_mean(name, [*MODELS.names(), 'timm:<name>'])}")


def check_augmentation_name(name: str) -> None:
    """Raise `UserError` unless ``name`` is registered or begins with a library of `POLICIES`, which knows its own."""
    library, _, policy = name.partition(":")
    if library in POLICIES.names() and policy:
        return
    if name not in AUGMENTATIONS.names():
        known = [*AUGMENTATIONS.names(), *(f"{library}:<name>" for library in POLICIES.names())]
        raise UserError(f"unknown augmentation {name!r}{did_you_mean(name, known)}")
