"""What raybench reaches on a GPU: written for one of the H100 or H200 class, and to be run there.

    python benchmarks/gpu.py small   [--rounds 5] [--processes 1 2 4 8]     # model2 at batch 32
    python benchmarks/gpu.py ways                                           # what each lever brings to it
    python benchmarks/gpu.py large   [--model resnet50] [--batch 256]       # a timm network at 224x224, and timm's own
    python benchmarks/gpu.py table1 --data-dir ~/cifar10 [--share 8]        # all 45 trials, stored under results/

Aims: model2 at batch 32 above 150,000 images/s in one process, and three times that with several on the GPU; table1 in
ten minutes; resnet50 at 224 above 85 % of what timm's own benchmark.py reaches in the same minutes (run that beside:
`python benchmark.py --model resnet50 --bench train --batch-size 256 --amp --amp-dtype bfloat16 --channels-last`).

Every number is of real training steps of raybench's own loop, augmentation and the optimizer's step included, on images
that lie on the GPU. The clock is read when the epoch's loss has come back from the GPU, so all of its work is done.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rounds import Contender, serve, spread, table, take_turns

from raybench.connect import ACTOR_ENVIRONMENT
from raybench.data import Images, Source, trial_data
from raybench.settings import TrialSettings
from raybench.train import Training, World
from raybench.trial import fresh_process

AFFINE = [{"rotation": 20}, {"shift": 0.2}, {"zoom": 0.2}]
WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "tf32": {"precision": "tf32"},
    "bf16": {"precision": "bf16"},
    "float32, graph": {"cuda_graph": True},
    "tf32, graph": {"precision": "tf32", "cuda_graph": True},
    "bf16, graph": {"precision": "bf16", "cuda_graph": True},
}


def trainer(
    way: str, model: str, batch: int, side: int, steps: int, device: str = "cuda"
) -> Callable[[], dict[str, Any]]:
    """Return what trains an epoch of ``steps`` steps on noise."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (batch * steps, side, side, 3), np.uint8)
    labels = np.arange(len(pixels)) % 10
    source = Source(
        {"train": Images(pixels, labels), "test": Images(pixels[:100], labels[:100])}, tuple("0123456789"), way
    )
    settings = TrialSettings.model_validate(
        {
            "dataset": {"name": "cifar10", "validation": "test"},
            "model": model,
            "augmentation": AFFINE,
            "train": {"batch_size": batch, **WAYS[way]},
        }
    )
    with fresh_process(0, 1):
        training = Training("gpu", 0, settings, trial_data(source, settings.dataset), torch.device(device), World(), {})
        training._begin(settings.train)
    epoch = 0

    def turn() -> dict[str, Any]:
        nonlocal epoch
        epoch += 1
        begun = time.perf_counter()
        loss, _ = training._train_epoch(epoch)
        seconds = time.perf_counter() - begun
        return {"seconds": seconds, "images": len(pixels), "steps": training.rate.steps // epoch, "loss": loss}

    return turn


def contender(name: str, way: str, *sizes: int | str) -> Contender:
    """Return a process that trains so."""
    command = [sys.executable, __file__, "contender", way, *map(str, sizes)]
    return Contender(name, command, {**ACTOR_ENVIRONMENT, "OMP_NUM_THREADS": "1"})


def measured(contenders: list[Contender], rounds: int) -> dict[str, list[float]]:
    """Let them take turns; return the images/s of each."""
    take_turns(contenders, ["epoch"], rounds)
    return {c.name: [turn["images"] / turn["seconds"] for turn in c.turns["epoch"]] for c in contenders}


def together(way: str, processes: int, rounds: int) -> list[float]:
    """Let so many processes train model2 at once, as trials with ``gpus: 1/processes`` do; return all their images/s.

    Processes without NVIDIA's MPS take turns on the GPU; start its daemon before for kernels that run side by side.
    """
    made = [contender(f"{number}", way, "model2", 32, 32, 1500) for number in range(processes)]
    totals = []
    try:
        for one in made:
            one.start()
        for number in range(rounds + 1):
            begun = time.perf_counter()
            for one in made:
                one.tell("epoch")
            images = sum(one.hear()["images"] for one in made)
            if number:  # the first is to warm up
                totals.append(images / (time.perf_counter() - begun))
    finally:
        for one in made:
            one.stop()
    return totals


def small(arguments: argparse.Namespace) -> None:
    rows = []
    for way in arguments.ways:
        for processes in arguments.processes:
            rates = together(way, processes, arguments.rounds)
            rows.append((way, processes, spread(rates, 0), f"{statistics.median(rates) / 150_000:.2f}"))
    print(table(("model2, batch 32", "processes", "images/s together", "of 150,000"), rows))


def ways(arguments: argparse.Namespace) -> None:
    made = [contender(way, way, "model2", 32, 32, 1500) for way in WAYS]
    rates = measured(made, arguments.rounds)
    first = statistics.median(rates["float32"])
    rows = [(way, spread(values, 0), f"{statistics.median(values) / first:.2f}") for way, values in rates.items()]
    print(table(("model2, batch 32", "images/s", "of float32"), rows))


def large(arguments: argparse.Namespace) -> None:
    sizes = f"timm:{arguments.model}", arguments.batch, 224, 30
    rates = measured([contender(way, way, *sizes) for way in ("float32", "tf32", "bf16")], arguments.rounds)
    rows = [(way, spread(values, 0)) for way, values in rates.items()]
    print(table((f"{arguments.model} at 224x224, batch {arguments.batch}", "images/s"), rows))


def table1(arguments: argparse.Namespace) -> None:
    suite = Path(__file__).parent.parent / "suites" / "table1.yaml"
    command = [sys.executable, "-m", "raybench.cli", "run", str(suite), "--data-dir", arguments.data_dir]
    # Each trial a share of the GPU; graphs, since its networks are small.
    command += ["--set", f"resources.gpus={1 / arguments.share}", "--set", "train.cuda_graph=true"]
    begun = time.perf_counter()
    subprocess.run([*command, *arguments.options], check=True)
    print(f"table1: {time.perf_counter() - begun:.0f} s, {arguments.share} trials at a time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("small", "ways", "large", "table1"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=["float32, graph", "bf16, graph"])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--share", type=int, default=8, help="trials of table1 at once")
    parser.add_argument("options", nargs="*", help="further options of raybench run, after --")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("gpu.py: torch sees no GPU here")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n", flush=True)
    {"small": small, "ways": ways, "large": large, "table1": table1}[arguments.what](arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["contender"]:
        way, model, batch, side, steps = sys.argv[2:]
        serve({}, {"epoch": trainer(way, model, int(batch), int(side), int(steps))})
    else:
        main()
