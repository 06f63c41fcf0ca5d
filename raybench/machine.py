"""What this machine has."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def memory() -> int:
    """Return the bytes of memory that this machine has, or the container it seems to be."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no such file, or "max"
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total
