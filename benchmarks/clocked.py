"""A model that notes when it trains first: what start.py and sweep.py know of the inside of a Tune actor.

A suite imports this module and names the model ``clocked``, an mlp whose first training step writes a file: seconds
since 1970 of the start of its process, of the import of this module (raybench is loaded then), of the building of the
network, of its first batch and of its second.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from raybench import models
from raybench.registry import MODELS

IMPORTED = time.time()


def process_start() -> float:
    """Return when this process began, from the kernel, which counts hundredths since boot."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    return int(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")


class Clocked(nn.Module):
    def __init__(self, network: nn.Module, file: Path) -> None:
        super().__init__()
        self.network, self.file = network, file
        self.times: dict[str, float] = {"process": process_start(), "imported": IMPORTED, "built": time.time()}

    def forward(self, images: Tensor) -> Tensor:
        if self.training and "second" not in self.times:
            first = "first" not in self.times
            self.times["first" if first else "second"] = time.time()
            if not first and not self.file.exists():
                beside = self.file.with_suffix(f".{os.getpid()}")
                beside.write_text(json.dumps(self.times))
                beside.rename(self.file)
        return self.network(images)


@MODELS.register("clocked")
def clocked(shape: tuple[int, int, int], classes: int, *, file: str, **options: Any) -> nn.Module:
    """An mlp; its first training steps are noted in ``file``."""
    return Clocked(models.mlp(shape, classes, **options), Path(file))
