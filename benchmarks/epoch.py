"""One training epoch of raybench beside what people use instead, in turns, and beside the machine's own GEMM rate.

    python3 -m venv peers && peers/bin/pip install -r benchmarks/requirements.txt
    python benchmarks/epoch.py --peer-python peers/bin/python [--data-dir ~/cifar10] [--rounds 5] [--cores 2]

All train the same network in float32 with Adam on the same images, augmented by rotation, shift and zoom, or by what
comes next to it. Ratios are images per second of raybench over those of the other, round by round; once by wall-clock
time, and once by CPU time, of DataLoader's workers too, which is what a busy machine can still compare. On a busy
machine use `--cores 1`: threads that wait for one another burn CPU time.

Without --peer-python, the Keras rows are left out; without --data-dir, the images are noise, which takes as long.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rounds import Contender, machine, ratios, spread, table, take_turns

from raybench.connect import ACTOR_ENVIRONMENT

HERE = Path(__file__).parent
KERAS = ("keras-generator", "keras-layers")
OWN = ("raybench", "augmentation", "tutorial-0", "tutorial-2", "timm-2", "raybench-apart", "raybench-bf16", "gemm")
WITH_WORKERS = {f"{name}-{count}": (name, count) for name in ("tutorial", "timm") for count in "02"}
ABOUT = {
    "raybench": "raybench",
    "keras-generator": "Keras ImageDataGenerator",
    "keras-layers": "Keras preprocessing layers",
    "tutorial-0": "PyTorch tutorial, DataLoader without workers",
    "tutorial-2": "PyTorch tutorial, DataLoader with 2 workers",
    "timm-2": "timm's create_loader, 2 workers",
    "raybench-apart": "raybench, a trial on each core",
    "raybench-bf16": "raybench, `train.precision: bf16`",
}


def contenders(
    kinds: Sequence[str], works: Sequence[str], cores: int, images: Path, peer: str | None
) -> list[Contender]:
    """Return the processes that take part, not yet started."""
    made = []
    for kind in kinds:
        if kind in KERAS:
            assert peer
            command = [peer, str(HERE / "epoch_keras.py"), kind, str(cores), str(images), *works]
            made.append(Contender(kind, command, {"CUDA_VISIBLE_DEVICES": ""}, cores))
            continue
        name, workers = WITH_WORKERS.get(kind, (kind, "0"))
        command = [sys.executable, str(HERE / "epoch_torch.py"), name, workers, str(images), *works]
        environment = {"OMP_NUM_THREADS": str(cores), "CUDA_VISIBLE_DEVICES": ""}
        if kind.startswith(("raybench", "augmentation")):  # as its actors get it
            environment |= ACTOR_ENVIRONMENT
        made.append(Contender(kind, command, environment, cores))
    return made


def report(made: Sequence[Contender], work: str) -> str:
    """Return the table of one network and batch size, and what follows from it."""
    turns = {contender.name: contender.turns[work] for contender in made}
    ours, gemm, augmented = turns["raybench"], turns.pop("gemm", None), turns.pop("augmentation", None)
    speeds = {
        clock: {name: [turn["images"] / turn[clock] for turn in own] for name, own in turns.items()}
        for clock in ("seconds", "cpu")
    }
    rows = []
    for name in turns:
        row = [ABOUT[name]]
        for speed in speeds.values():
            ratio = "1" if name == "raybench" else spread(ratios(speed["raybench"], speed[name]))
            row += [spread(speed[name], 0), ratio]
        rows.append(row)
    network, _, batch = work.partition("-")
    lines = [
        f"**{network}, batch {batch}**: {ours[0]['images']:,} images, {ours[0]['steps']} steps, {len(ours)} rounds",
        table(("contender", "images/s", "raybench / it", "images per CPU second", "raybench / it, by CPU time"), rows),
    ]
    flop = made[0].ready[work]["flop"]
    for clock, speed in speeds.items() if gemm else ():
        rate = [turn["flop"] / turn[clock] for turn in gemm or ()]
        reached = [value * flop for value in speed["raybench"]]
        lines.append(
            f"By {'CPU' if clock == 'cpu' else 'wall-clock'} time raybench does {statistics.median(reached) / 1e9:.0f}"
            f" GFLOP/s ({flop / 1e6:.1f} MFLOP an image) and GEMM {statistics.median(rate) / 1e9:.0f}:"
            f" {spread([100 * share for share in ratios(reached, rate)], 0)} %."
        )
    if augmented:
        share = ratios([100 * turn["alone"] for turn in augmented], [turn["cpu"] for turn in ours])
        lines.append(f"Augmentation takes {spread(share, 1)} % of the CPU time of an epoch.")
    return "\n\n".join(lines)


def stored_images(folder: Path, data_dir: Path | None, count: int) -> Path:
    """Write ``count`` images, of CIFAR-10 if it is at hand, for all contenders to read."""
    if data_dir is None:
        rng = np.random.default_rng(0)
        pixels, labels = rng.integers(0, 256, (count, 32, 32, 3), np.uint8), np.arange(count) % 10
    else:
        from raybench.data import load
        from raybench.settings import DatasetSettings

        train = load(DatasetSettings.model_validate("cifar10"), data_dir).splits["train"]
        pixels, labels = train.pixels[:count], train.labels[:count]
    path = folder / f"{count}.npz"
    np.savez(path, pixels=pixels, labels=labels.astype(np.int64))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="the Python that has benchmarks/requirements.txt")
    parser.add_argument("--data-dir", type=Path, help="folder of CIFAR-10")
    parser.add_argument("--model", nargs="+", choices=("model2", "resnet18"), default=("model2", "resnet18"))
    parser.add_argument("--batch", nargs="+", type=int, default=(32, 128))
    parser.add_argument("--images", type=int, default=1920, help="of an epoch (default 1920)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="for each contender")
    parser.add_argument("--only", nargs="+", choices=(*OWN, *KERAS), help="raybench and these")
    arguments = parser.parse_args()
    kinds = [*OWN[:1], *(KERAS if arguments.peer_python else ()), *OWN[1:]]
    if arguments.only:
        kinds = [kind for kind in kinds if kind == "raybench" or kind in arguments.only]
    print(f"{machine()}; {arguments.cores} of them for each contender, one contender at a time")
    with tempfile.TemporaryDirectory() as name:
        images = stored_images(Path(name), arguments.data_dir, arguments.images)
        works = [f"{model}-{batch}" for model in arguments.model for batch in arguments.batch]
        made = contenders(kinds, works, arguments.cores, images, arguments.peer_python)
        take_turns(made, works, arguments.rounds)
    for work in works:
        sizes = {contender.name: contender.ready[work].get("parameters") for contender in made}
        assert len(set(sizes.values()) - {None}) == 1, f"not the same network: {sizes}"
        steps = {contender.name: contender.turns[work][0].get("steps") for contender in made}
        assert len(set(steps.values()) - {None}) == 1, f"not the same number of steps: {steps}"
        print(f"\n{report(made, work)}", flush=True)
    print(f"\nat the end: {machine()}")


if __name__ == "__main__":
    main()
