"""The layers of raybench: what each module may import, read from its source; and what the commands really load."""

from __future__ import annotations

import ast
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import raybench

PACKAGE = Path(raybench.__file__).parent
MODULES = sorted({path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")})
"""A folder of modules, like `raybench.cli`, counts as one."""


@dataclass(frozen=True)
class Layer:
    """Modules, and what they may import besides each other, the standard library, and raybench's version."""

    modules: tuple[str, ...]
    below: tuple[str, ...] = ()
    """Layers whose modules they may import."""
    libraries: frozenset[str] = frozenset()


LAYERS = {
    "light": Layer(
        (
            "__init__",
            "errors",
            "machine",
            "registry",
            "settings",
            "dotted",
            "yamlfile",
            "axes",
            "suite",
            "grid",
            "stages",
            "plan",
            "records",
            "search",
            "prune",
            "shipping",
            "rayenv",
            "beside",
        ),
        libraries=frozenset({"pydantic", "ruamel", "optuna"}),
    ),
    "training": Layer(
        (
            "data",
            "datasets",
            "augment",
            "preparation",
            "policies",
            "models",
            "backbones",
            "losses",
            "rates",
            "rows",
            "checkpoint",
            "weights",
            "replay",
            "feed",
            "train",
            "trial",
            "job",
            "trained",
            "gradcam",
        ),
        ("light",),
        frozenset(
            {
                *("numpy", "PIL", "filelock", "pyarrow", "sklearn", "torch", "torchvision"),
                *("timm", "safetensors", "huggingface_hub", "captum"),
            }
        ),
    ),
    "results": Layer(
        (
            "objects",
            "parquet",
            "store",
            "table",
            "metrics",
            "cells",
            "ensemble",
            "published",
            "summarize",
            "explain",
            "stats",
            "printed",
            "check",
            "classreport",
            "question",
            "inference",
            "compare",
            "figures",
            "report",
            "ood",
        ),
        ("light",),
        frozenset(
            {
                *("numpy", "pandas", "pyarrow", "scipy", "filelock", "rich"),
                *("matplotlib", "sklearn", "jinja2", "markupsafe"),
            }
        ),
    ),
    "watching": Layer(("live", "track"), ("light",), frozenset({"rich", "tensorboardX", "mlflow", "wandb"})),
    "local cluster": Layer(("localcluster",), ("light",), frozenset({"filelock"})),
    "cluster": Layer(
        ("actor", "tuneparts", "schedule", "room", "connect", "gauges", "jobs"),
        ("light", "training"),
        frozenset({"torch", "ray", "aiohttp", "requests"}),
    ),
    "above": Layer(
        ("run", "measure", "doctor", "revisit", "cli"),
        ("light", "training", "results", "watching", "cluster", "local cluster"),
        frozenset({"rich", "rich_click", "click", "torch", "timm", "numpy", "pandas"}),
    ),
}
LAYER_OF = {module: layer for layer in LAYERS.values() for module in layer.modules}
FOR_TYPES_ONLY = {"records": {"numpy"}, "cli": {"pandas"}}
"""Imported under TYPE_CHECKING, never at run time."""


def imports(module: str) -> Iterator[str]:
    """Yield what ``module`` imports anywhere in it: raybench's modules as ``raybench.plan``, others by first name."""
    files = [path for path in (PACKAGE / f"{module}.py", *(PACKAGE / module).glob("*.py")) if path.is_file()]
    for node in itertools.chain(*(ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for path in files)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}.py: imports are absolute here"
            package = node.module or ""
            found = [f"raybench.{alias.name}" for alias in node.names] if package == "raybench" else [package]
        else:
            continue
        for name in found:
            first, _, rest = name.partition(".")
            yield f"raybench.{rest.split('.')[0]}" if first == "raybench" and rest else first


def test_every_module_is_in_one_layer() -> None:
    placed = sorted(module for layer in LAYERS.values() for module in layer.modules)
    assert placed == MODULES, "a new file needs a layer"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_layer_may(module: str) -> None:
    layer = LAYER_OF[module]
    allowed = {
        f"raybench.{name}" for other in (layer, *(LAYERS[name] for name in layer.below)) for name in other.modules
    }
    allowed |= {"raybench", "raybench.__version__"} | layer.libraries | FOR_TYPES_ONLY.get(module, set())
    found = {name for name in imports(module) if name.split(".")[0] not in sys.stdlib_module_names}
    assert found <= allowed, f"{module}.py may not import {sorted(found - allowed)}"


def test_only_the_cluster_layer_imports_ray() -> None:
    assert {module for module in MODULES if "ray" in imports(module)} == set(LAYERS["cluster"].modules)


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {
        module: ({name.removeprefix("raybench.") for name in imports(module)} & set(MODULES)) - {module}
        for module in MODULES
    }
    while free := {module for module, below in graph.items() if not below & set(graph)}:
        for module in free:
            del graph[module]
    assert not graph


# ---------------------------------------------------------------------------------------------------------------------
# What is really loaded

HEAVY = ("torch", "torchvision", "timm", "ray", "sklearn", "matplotlib")


def loaded(*arguments: str) -> set[str]:
    """Return the first names of the modules in memory after a command."""
    code = f"""
import json, sys
from raybench import cli
sys.argv = ["raybench", *{list(arguments)!r}]
try:
    cli.main()
except SystemExit as end:
    assert end.code == 0, end.code
print("\\n" + json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(out.stdout.splitlines()[-1]))


def test_the_command_line_is_imported_in_a_blink() -> None:
    code = "import sys, raybench.cli; print(*{name.split('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {*HEAVY, "pandas", "pyarrow", "numpy", "pydantic"} & set(out)


def test_help_loads_no_library_of_numbers() -> None:
    assert not {*HEAVY, "pandas", "pyarrow", "numpy"} & loaded("--help")


@pytest.mark.parametrize("command", ["plan", "run", "plot"])
def test_help_of_a_command_loads_no_library_of_numbers(command: str) -> None:
    assert not {*HEAVY, "pandas", "pyarrow", "numpy"} & loaded(command, "--help")


def test_a_plan_loads_neither_torch_nor_ray(tmp_path: Path) -> None:
    assert not set(HEAVY) & loaded("plan", "table1", "--results", str(tmp_path))


def test_a_run_with_nothing_to_do_loads_neither_torch_nor_ray(
    tmp_path: Path, store_results: Callable[..., object]
) -> None:
    suite = "name: small\ndataset: {name: digits}\ncompare: {model: [mlp, small_cnn]}\nrepeat: {seed: 2}\n"
    store_results(tmp_path, suite, lambda trial: 0.5)
    (tmp_path / "small.yaml").write_text(suite)
    assert not set(HEAVY) & loaded("run", str(tmp_path / "small.yaml"), "--results", str(tmp_path))


def test_networks_of_raybench_are_checked_without_the_compiler_of_torch() -> None:
    libraries = loaded("validate", "table1")
    assert "torch" in libraries and "sympy" not in libraries  # which torch's compiler brings along


@pytest.mark.parametrize("arguments", [("list", "suites"), ("schema",), ("completion", "bash")])
def test_what_is_listed_from_files_loads_no_library_of_numbers(arguments: tuple[str, ...]) -> None:
    assert not {*HEAVY, "pandas", "pyarrow"} & loaded(*arguments)


@pytest.mark.parametrize("arguments", [("stats", "small"), ("compare", "small", "small")], ids=["stats", "compare"])
def test_what_numbers_show_is_said_without_torch_and_ray(
    arguments: tuple[str, ...], tmp_path: Path, store_results: Callable[..., object]
) -> None:
    suite = "name: small\ndataset: {name: digits}\ncompare: {model: [mlp, small_cnn]}\nrepeat: {seed: 2}\n"
    store_results(tmp_path, suite, lambda trial: 0.5 + trial.seed / 10)
    assert not {"torch", "torchvision", "timm", "ray", "matplotlib"} & loaded(*arguments, "--results", str(tmp_path))
