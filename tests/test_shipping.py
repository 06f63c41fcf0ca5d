"""What travels with a suite: its own modules, and nothing that is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import raybench
from raybench import shipping
from raybench.suite import Suite, load

SUITE = """
name: own
imports: [own_package.nets, own_module, sklearn.datasets]
dataset: digits
model: mlp
"""


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").touch()
    (tmp_path / "own_package" / "nets.py").write_text("import own_helper, scipy")
    (tmp_path / "own_helper.py").touch()
    (tmp_path / "own_module.py").touch()
    (tmp_path / "never_imported.py").touch()
    (tmp_path / "suite.yaml").write_text(SUITE)
    before = set(sys.modules)
    path = list(sys.path)
    yield load(tmp_path / "suite.yaml")
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


def test_the_modules_of_a_suite_and_those_beside_it_that_they_import(suite: Suite, tmp_path: Path) -> None:
    names = ["own_helper.py", "own_module.py", "own_package"]
    assert shipping.modules(suite) == [tmp_path.resolve() / name for name in names]


def test_a_module_that_lies_elsewhere_is_sent_if_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "own_far.py").write_text("import own_near")
    (tmp_path / "lib" / "own_near.py").touch()
    (tmp_path / "suite.yaml").write_text("name: far\nimports: [own_far]\ndataset: digits\nmodel: mlp\n")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    try:
        assert shipping.modules(load(tmp_path / "suite.yaml")) == [tmp_path.resolve() / "lib" / "own_far.py"]
    finally:
        del sys.modules["own_far"], sys.modules["own_near"]


def test_a_module_that_is_a_link_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "lib" / "own_nets_v2").mkdir(parents=True)
    (tmp_path / "lib" / "own_nets_v2" / "__init__.py").touch()
    (tmp_path / "lib" / "own_code_v2.py").touch()
    (tmp_path / "own_code.py").symlink_to(tmp_path / "lib" / "own_code_v2.py")
    (tmp_path / "own_nets").symlink_to(tmp_path / "lib" / "own_nets_v2")
    (tmp_path / "suite.yaml").write_text("name: l\nimports: [own_code, own_nets]\ndataset: digits\nmodel: mlp\n")
    path = list(sys.path)
    try:
        found = shipping.modules(load(tmp_path / "suite.yaml"))
        assert found == [tmp_path.resolve() / name for name in ("own_code.py", "own_nets")]
    finally:
        sys.path[:] = path
        del sys.modules["own_code"], sys.modules["own_nets"]


def test_a_suite_without_imports_sends_nothing() -> None:
    assert shipping.modules(load(Path(__file__).parent.parent / "suites" / "quickstart.yaml")) == []


def test_raybench_itself_is_no_module_of_a_suite() -> None:
    assert shipping.package() == Path(raybench.__file__).resolve().parent
    assert (shipping.package() / "schedule.py").is_file()
