from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest

from raybench.errors import UserError
from raybench.registry import AUGMENTATIONS, DATASETS, MODELS, Registry, check_model_name

REGISTRIES = [MODELS, AUGMENTATIONS, DATASETS]


@pytest.fixture
def shapes() -> Registry:
    return Registry("shape", {"fraction": "fractions:Fraction", "circle": "nowhere:Circle"})


@pytest.mark.parametrize(
    ("registry", "name"), [(r, name) for r in REGISTRIES for name in r.names()], ids=lambda x: getattr(x, "kind", x)
)
def test_every_shipped_name_leads_to_documented_code(registry: Registry, name: str) -> None:
    entry = registry.get(name)
    assert callable(entry)
    assert entry.__module__.startswith("raybench.")
    assert (entry.__doc__ or "").strip(), "`raybench list` shows its first line"


def test_an_unknown_name_gets_a_suggestion(shapes: Registry) -> None:
    with pytest.raises(UserError) as error:
        shapes.get("cirle")
    assert str(error.value) == "unknown shape 'cirle'; did you mean 'circle'?"
    with pytest.raises(UserError) as error:
        shapes.check("square")
    assert str(error.value) == "unknown shape 'square'; known: fraction, circle"


def test_checking_and_listing_import_nothing(shapes: Registry) -> None:
    shapes.check("circle")
    assert shapes.names() == ["fraction", "circle"]
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        shapes.get("circle")


def test_code_is_imported_once_and_kept(shapes: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = shapes.get("fraction")
    assert entry(1, 2) * 2 == 1
    monkeypatch.setattr(importlib, "import_module", None)
    assert shapes.get("fraction") is entry


def test_registered_code_is_found_and_unchanged(shapes: Registry) -> None:
    def square(side: float) -> float:
        return side * side

    assert shapes.register("square")(square) is square
    assert shapes.get("square") is square
    assert shapes.names() == ["fraction", "circle", "square"]


@pytest.mark.parametrize("name", ["fraction", "square"])
def test_a_taken_name_is_refused(shapes: Registry, name: str) -> None:
    @shapes.register("square")
    def square() -> None: ...

    def other() -> None: ...

    with pytest.raises(UserError) as error:
        shapes.register(name)(other)
    assert str(error.value) == f"shape {name!r} is registered already: choose another name"
    assert shapes.get("square") is square


def test_the_same_code_may_come_again(shapes: Registry) -> None:
    """A module of the user may be imported under one name in this process and reloaded in a notebook."""

    def define() -> Any:
        @shapes.register("square")
        def square() -> None: ...

        return square

    define()
    latest = define()
    assert shapes.get("square") is latest


def test_any_timm_model_is_a_model_name() -> None:
    check_model_name("timm:resnet18")
    check_model_name("mlp")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("modle1", "unknown model 'modle1'; did you mean 'model1'?"),
        ("tim:<nam>", "unknown model 'tim:<nam>'; did you mean 'timm:<name>'?"),
        ("timm:", "unknown model 'timm:'; did you mean 'timm:<name>'?"),
    ],
)
def test_other_model_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        check_model_name(name)
    assert str(error.value) == message


def test_no_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError) as error:
        check_model_name("")
    assert str(error.value) == f"unknown model ''; known: {', '.join([*MODELS.names(), 'timm:<name>'])}"


def test_names_are_checked_without_loading_what_they_name() -> None:
    code = """
import sys
from raybench.registry import AUGMENTATIONS, DATASETS, MODELS, check_model_name
for registry in (MODELS, AUGMENTATIONS, DATASETS):
    for name in registry.names():
        registry.check(name)
check_model_name("timm:resnet18")
print(sorted(name for name in sys.modules if name.startswith("raybench")))
print({"torch", "numpy", "timm", "PIL"} & set(sys.modules))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "['raybench', 'raybench.errors', 'raybench.registry']\nset()\n"
