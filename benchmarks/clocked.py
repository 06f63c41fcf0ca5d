"""A model that notes when it trains first: what start.py and sweep.py know of the inside of a Tune actor.

A suite imports this module and names the model ``clocked``, an mlp whose first training step writes a file: seconds
since 1970 of the start of its process, of the import of this module (raybench is loaded then), of the building of the
network, of its first batch and of its second. Nothing heavy is imported at the top, since the driver imports the
modules of a suite too, and before anything else.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybench.registry import MODELS

if TYPE_CHECKING:
    from torch import nn

IMPORTED = time.time()


def process_start() -> float:
    """Return when this process began, from the kernel, which counts hundredths since boot."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    return int(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")


@MODELS.register("clocked")
def clocked(shape: tuple[int, int, int], classes: int, *, file: str, **options: Any) -> nn.Module:
    """An mlp; its first training steps are noted in ``file``."""
    from raybench import models

    network = models.mlp(shape, classes, **options)
    times = {"process": process_start(), "imported": IMPORTED, "built": time.time()}

    def note(network: nn.Module, inputs: Any) -> None:
        if network.training and "second" not in times:
            first = "first" not in times
            times["first" if first else "second"] = time.time()
            if not first and not Path(file).exists():
                beside = Path(f"{file}.{os.getpid()}")
                beside.write_text(json.dumps(times))
                beside.rename(file)

    network.register_forward_pre_hook(note)
    return network
