"""Tokens: Ray is told to use the one that there is, before it is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raybench import rayenv


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_token_is_found_where_ray_looks_for_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not rayenv.has_token()
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("secret")
    assert rayenv.has_token()
    (home / ".ray" / "auth_token").unlink()
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "something")
        assert rayenv.has_token()
        monkeypatch.delenv(name)


def test_a_token_that_ray_cannot_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rayenv.wrong_token() is None
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert rayenv.wrong_token() == f"{home}/.ray/auth_token: No such file or directory"
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(" \n")
    assert rayenv.wrong_token() == f"{home}/.ray/auth_token is empty"
    (home / ".ray" / "auth_token").write_text("secret")
    assert rayenv.wrong_token() is None
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home))
    assert rayenv.wrong_token() == f"{home}: Is a directory"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert rayenv.wrong_token() is None


@pytest.mark.parametrize("module", ["schedule", "tuneparts", "connect", "jobs", "gauges", "actor"])
def test_every_module_that_imports_ray_has_it_use_the_token(home: Path, module: str) -> None:
    """Ray reads the mode once, when it is imported."""
    code = f"""
import builtins, os, sys
real = builtins.__import__
def watched(name, *more, **words):
    if name.partition(".")[0] == "ray":
        print(os.environ.get("RAY_AUTH_MODE"), os.environ.get("RAY_USAGE_STATS_ENABLED"))
        os._exit(0)
    return real(name, *more, **words)
builtins.__import__ = watched
import raybench.{module}
"""
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("secret")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    sys.stdout.write(done.stderr)
    assert done.stdout.split() in (["token", "0"], []) and done.stdout.split() == ["token", "0"]
