"""What Ray reads from the environment: set here, before any module of raybench imports it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

DEFAULT_TOKEN = "~/.ray/auth_token"
"""Where Ray looks for a token, if neither $RAY_AUTH_TOKEN nor $RAY_AUTH_TOKEN_PATH is set."""

TOKENS = (
    "the cluster wants its token: put it into ~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH, and set"
    " RAY_AUTH_MODE=token"
)
"""What to do where a cluster refuses."""
LONG_PATH = "AF_UNIX path length"
"""What Ray says where its sockets lie too deep."""


def has_token() -> bool:
    """Return whether Ray would find a token; its content is not looked at."""
    return bool(
        os.environ.get("RAY_AUTH_TOKEN")
        or os.environ.get("RAY_AUTH_TOKEN_PATH")
        or Path(DEFAULT_TOKEN).expanduser().is_file()
    )


def wrong_token() -> str | None:
    """Return what is wrong with the file that Ray would read its token from: a client of Ray's ends the process, with a
    trace, where it finds none."""
    if os.environ.get("RAY_AUTH_MODE") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return None
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or DEFAULT_TOKEN).expanduser()
    try:
        return None if path.read_bytes().strip() else f"{path} is empty"
    except OSError as error:
        return f"{path}: {error.strerror}"


def prepare() -> None:
    """Set what Ray reads when it is imported, where the user has not."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Otherwise SIGTERM, where Ray is started in a thread, is a crash: a trace, and after 3 s the end of the process.
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    if "ray" not in sys.modules and has_token():
        # Ray does so for `local` and `auto` alone; host:port would hang, and the dashboard refuse. Once it is
        # imported, it no longer looks.
        os.environ.setdefault("RAY_AUTH_MODE", "token")


prepare()
