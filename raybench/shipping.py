"""What a suite brings along to other machines: the modules that it imports, and where it came from."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import raybench
from raybench.suite import Suite


def modules(suite: Suite) -> list[Path]:
    """Return the files and folders of the modules under ``imports``, and of those beside the suite that they import.

    What is installed (below ``site-packages``, or part of Python) is left out: the nodes must have it. A module beside
    the suite that is imported only while a trial runs is not found. The suite's modules must have been imported.
    """
    if not suite.imports:
        return []
    folder = suite.folder.resolve()
    named = {name.partition(".")[0] for name in suite.imports}
    found = []
    for name, module in sorted(sys.modules.items()):
        if "." in name or name in ("raybench", "__main__") or (path := _path(module)) is None or _installed(path):
            continue
        if name in named or path.parent == folder:
            found.append(path)
    return found


def package() -> Path:
    """Return the folder of raybench itself."""
    return Path(raybench.__file__).resolve().parent


def _path(module: ModuleType) -> Path | None:
    """Return the file of a module, or the folder of a package, under the name by which it is imported, which a link may
    give it; None for one that has neither."""
    folders = list(getattr(module, "__path__", ()))
    file = folders[0] if folders else getattr(module, "__file__", None)
    if not isinstance(file, str):
        return None
    path = Path(file).parent.resolve() / Path(file).name
    return path if path.exists() else None


def _installed(path: Path) -> bool:
    parts = {"site-packages", "dist-packages"} & set(path.parts)
    return bool(parts) or path.is_relative_to(Path(sysconfig.get_path("stdlib")).resolve())


GIT_STATE = ".raybench-git.json"
"""Lies beside a suite that was sent to a cluster, and says what `git_state` found where it came from."""


def git_state(folder: Path) -> dict[str, Any]:
    """Return the commit of the checkout that ``folder`` lies in, and whether tracked files differ from it."""
    if (folder / GIT_STATE).is_file():
        sent: dict[str, Any] = json.loads((folder / GIT_STATE).read_text(encoding="utf-8"))
        return sent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):  # no git, or no checkout: a row without a commit is no error
        return {}
