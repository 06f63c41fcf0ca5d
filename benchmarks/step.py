"""Where the time of a training step goes: what stands between raybench's rate and that of GEMM.

    python benchmarks/step.py [--cores 2] [--steps 40] [--rounds 5]

Epochs of noise are trained under PyTorch's profiler, which slows small operations down a little; the one that took
least counts, which was disturbed least. Shares are of the time that PyTorch's operations take; what Python does between
them has none. Convolutions and dense layers are all that the operations of epoch.py's GFLOP/s are counted in; the rest
moves memory.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from typing import Any

from rounds import machine, table

from raybench.connect import ACTOR_ENVIRONMENT

KINDS = {
    "convolutions, dense": ("convolution", "addmm", "mm", "linear"),
    "batch norm": ("batch_norm", "batchnorm"),
    "pooling": ("pool",),
    "activations, dropout": ("relu", "threshold", "dropout", "bernoulli"),
    "optimizer": ("adam",),
    "copies": ("copy_",),
}
"""Kinds of operations, and parts of the names that PyTorch has for them."""
REST = "everything else"


def kind_of(event: Any) -> str:
    """Return which kind an operation is of: by its name, or else by that of what called it, as relu calls clamp_min."""
    while event is not None:
        name = event.name.lower()
        for kind, parts in KINDS.items():
            if any(part in name for part in parts):
                return kind
        event = event.cpu_parent
    return REST


def shares(name: str, batch: int, steps: int, rounds: int) -> dict[str, float]:
    """Return which share of the time of some training steps each kind of operation has, in the fastest round."""
    import epoch_torch
    import numpy as np
    from torch import profiler

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (steps * batch, 32, 32, 3), np.uint8)
    turn = epoch_torch.raybench(name, batch, 0, pixels, np.arange(len(pixels)) % 10)
    turn()
    found: list[Counter[str]] = []
    for _ in range(rounds):
        with profiler.profile(activities=[profiler.ProfilerActivity.CPU]) as profile:
            turn()
        times: Counter[str] = Counter()
        for event in profile.events():
            times[kind_of(event)] += event.self_cpu_time_total
        found.append(times)
    fastest = min(found, key=Counter.total)
    return {kind: fastest[kind] / fastest.total() for kind in (*KINDS, REST)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    wanted = {**ACTOR_ENVIRONMENT, "OMP_NUM_THREADS": str(arguments.cores)}
    if wanted.items() - os.environ.items():  # the allocator reads them when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})
    works = [(name, batch) for name in ("model2", "resnet18") for batch in (32, 128)]
    found = [shares(name, batch, arguments.steps, arguments.rounds) for name, batch in works]
    columns = ("of the time of a step", *(f"{name}, {batch}" for name, batch in works))
    print(f"{machine()}; {arguments.cores} of them")
    print(table(columns, [(kind, *(f"{share[kind]:.1%}" for share in found)) for kind in (*KINDS, REST)]))


if __name__ == "__main__":
    main()
