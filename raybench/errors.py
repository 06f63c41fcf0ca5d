"""Errors that are the user's to mend: one clear line each, exit status 2, never a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what would be right."""


class SuiteError(UserError):
    """A suite file (or a command-line override of it) that cannot be run."""


class DataError(UserError):
    """Missing or unusable data; the message says what to fetch and where to put it."""


class WeightsError(UserError):
    """Pretrained weights that are neither in the hub's cache nor in the file that was named."""


def did_you_mean(word: str, known: Iterable[object]) -> str:
    """Return ``"; did you mean 'x'?"``, or the list of what is known where nothing is close."""
    names = {str(name).lower(): str(name) for name in known}
    close = difflib.get_close_matches(str(word).lower(), names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {names[close[0]]!r}?"
    return f"; known: {', '.join(names.values())}" if names else ""
