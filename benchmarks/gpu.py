"""What raybench reaches on a GPU: written for one of the H100 or H200 class, and to be run there.

    python benchmarks/gpu.py counts                                         # what a step asks of a GPU; needs none
    python benchmarks/gpu.py small   [--rounds 5] [--processes 1 2 4 8]     # model2 at batch 32
    python benchmarks/gpu.py ways                                           # what each lever brings to it
    python benchmarks/gpu.py large   [--timm benchmark.py]                  # a timm network at 224x224, and timm's own
    python benchmarks/gpu.py table1 --data-dir ~/cifar10 [--share 8] [--results results] [-- --set train.precision=tf32]
    python benchmarks/gpu.py all --data-dir ~/cifar10 --timm benchmark.py --minutes 8 [--rounds 3]

Aims: model2 at batch 32 above 150,000 images/s in one process, and three times that with several on the GPU; table1 in
ten minutes; resnet50 at 224 above 85 % of what timm's own benchmark.py reaches in the same minutes. That lies beside
timm in its repository, not in its package: `--timm` says where. `all` is all of it one after the other, table1 with
what is left of the minutes: what trials it then ends with is stored, and the same command goes on.

Where NVIDIA's MPS is installed (nvidia-cuda-mps-control), its daemon runs meanwhile: without it processes take turns on
a GPU, and several small networks are no faster than one. `--no-mps` leaves it out.

Every number is of real training steps of raybench's own loop, augmentation and the optimizer's step included, on images
that lie on the GPU. The clock is read when the epoch's loss has come back from the GPU, so all of its work is done.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rounds import Contender, serve, spread, start_together, table, take_turns
from torch.utils._python_dispatch import TorchDispatchMode

from raybench.data import Images, Source, trial_data
from raybench.settings import TrialSettings
from raybench.train import Training, World
from raybench.trial import fresh_process

AIM = 150_000
"""Images/s of model2 at batch 32, in one process."""
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
    way: str,
    model: str,
    batch: int,
    side: int,
    steps: int,
    device: str = "cuda",
    augmentation: Sequence[Any] = tuple(AFFINE),
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
            "augmentation": list(augmentation),
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


class Launches(TorchDispatchMode):
    """Counts operations that compute something: on a GPU each is a kernel, or a few."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(("empty", "new_empty", "detach", "_record_function")):
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def launches(way: str, augmentation: Sequence[Any]) -> Counter[str]:
    """Return the operations of one step of model2 at batch 32, here on the CPU: what a third step adds to two."""
    counted = []
    for steps in (2, 3):
        turn = trainer(way, "model2", 32, 32, steps, "cpu", augmentation)
        turn()  # optimizers make their state
        with Launches() as mode:
            turn()
        counted.append(mode.seen)
    return counted[1] - counted[0]


def counts(arguments: argparse.Namespace) -> None:
    step = 32 / AIM
    rows = []
    for way in ("float32", "bf16"):
        all_of_them, alone = launches(way, AFFINE), launches(way, [])
        number = all_of_them.total()
        augmentation, casts = number - alone.total(), all_of_them["_to_copy"]
        rows.append((way, number, augmentation, casts, f"{1e6 * step:.0f}", f"{1e6 * step / number:.2f}"))
    header = ("model2, batch 32", "operations a step", "augmentation", "casts", "µs a step at the aim", "an operation")
    print(table(header, rows))


def contender(name: str, way: str, *sizes: int | str) -> Contender:
    """Return a process that trains so."""
    from raybench.connect import ACTOR_ENVIRONMENT  # here, so that contenders need not import Ray

    command = [sys.executable, __file__, "contender", way, *map(str, sizes)]
    return Contender(name, command, {**ACTOR_ENVIRONMENT, "OMP_NUM_THREADS": "1"})


def measured(contenders: list[Contender], rounds: int) -> dict[str, list[float]]:
    """Let them take turns; return the images/s of each."""
    take_turns(contenders, ["epoch"], rounds)
    return {c.name: [turn["images"] / turn["seconds"] for turn in c.turns["epoch"]] for c in contenders}


def together(contenders: list[Contender], counts: Sequence[int], rounds: int) -> dict[int, list[float]]:
    """Let the first so many of them train at once, as trials that share a GPU do; return all their images/s."""
    totals: dict[int, list[float]] = {}
    try:
        start_together(contenders)
        _at_once(contenders)  # to warm up
        for count in counts:
            totals[count] = [_at_once(contenders[:count]) for _ in range(rounds)]
    finally:
        for one in contenders:
            if hasattr(one, "process"):
                one.stop()
    return totals


def _at_once(contenders: list[Contender]) -> float:
    begun = time.perf_counter()
    for one in contenders:
        one.tell("epoch")
    images = sum(one.hear()["images"] for one in contenders)
    return images / (time.perf_counter() - begun)


def small(arguments: argparse.Namespace) -> None:
    rows = []
    for way in arguments.ways:
        made = [contender(f"{number}", way, "model2", 32, 32, 1500) for number in range(max(arguments.processes))]
        for processes, rates in together(made, arguments.processes, arguments.rounds).items():
            rows.append((way, processes, spread(rates, 0), f"{statistics.median(rates) / AIM:.2f}"))
    print(table(("model2, batch 32", "processes", "images/s together", "of 150,000"), rows))


def ways(arguments: argparse.Namespace) -> None:
    made = [contender(way, way, "model2", 32, 32, 1500) for way in WAYS]
    rates = measured(made, arguments.rounds)
    first = statistics.median(rates["float32"])
    rows = [(way, spread(values, 0), f"{statistics.median(values) / first:.2f}") for way, values in rates.items()]
    print(table(("model2, batch 32", "images/s", "of float32"), rows))


def large(arguments: argparse.Namespace) -> None:
    sizes = f"timm:{arguments.model}", arguments.batch, 224, 30
    peer = timm_rates(arguments)
    rates = {}
    for way in arguments.large_ways:  # one after the other: together they might not fit on the GPU
        rates |= measured([contender(way, way, *sizes)], arguments.rounds)
    peer += timm_rates(arguments)
    rows = [(way, spread(values, 0), _share(values, peer)) for way, values in rates.items()]
    rows += [("timm's benchmark.py, bf16, before and after", spread(peer, 0), "")] if peer else []
    print(table((f"{arguments.model} at 224x224, batch {arguments.batch}", "images/s", "of timm's"), rows))


def _share(rates: Sequence[float], peer: Sequence[float]) -> str:
    return f"{statistics.median(rates) / statistics.median(peer):.2f}" if peer else ""


def timm_rates(arguments: argparse.Namespace) -> list[float]:
    """Return the images/s of timm's own script, if it is there and runs.

    Left to itself it would take the size for tests, 288, and where memory is short a smaller batch.
    """
    if not arguments.timm:
        return []
    command = [sys.executable, arguments.timm, "--model", arguments.model, "--bench", "train", "--channels-last"]
    command += ["--batch-size", str(arguments.batch), "--img-size", "224", "--no-retry"]
    command += ["--amp", "--amp-dtype", "bfloat16"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout.rpartition("--result")[2]) if done.returncode == 0 else {}
    if "train_samples_per_sec" not in result:
        print(f"{arguments.timm} failed: {result.get('error', f'it ended with {done.returncode}')}")
        return []
    return [result["train_samples_per_sec"]]


def table1(arguments: argparse.Namespace, minutes: float | None = None) -> None:
    suite = Path(__file__).parent.parent / "suites" / "table1.yaml"
    command = [sys.executable, "-m", "raybench.cli", "run", str(suite), "--data-dir", arguments.data_dir]
    # Each trial a share of the GPU, which Ray counts in 10,000ths and rounds; graphs, since its networks are small.
    command += ["--set", f"resources.gpus={10_000 // arguments.share / 10_000}", "--set", "train.cuda_graph=true"]
    command += ["--results", arguments.results]
    command += ["--budget", f"{minutes * 60:.0f}s"] if minutes else []
    started, begun = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    status = subprocess.run([*command, *arguments.options]).returncode
    seconds = time.perf_counter() - begun
    print(f"table1 ended with {status} after {seconds:.0f} s, {arguments.share} trials at a time")
    trials = Path(arguments.results) / "table1" / "trials"
    if any(trials.glob("*.parquet")):
        rows = pd.read_parquet(trials)
        rows = rows[rows["started_at"] >= started]
        epochs, images = rows["epochs_run"], (rows["epochs_run"] * rows["train_images"]).sum()
        failed = (rows["status"] == "failed").sum()
        print(f"{len(rows)} trials, {failed} failed, {epochs.sum()} epochs: {images / seconds:,.0f} images/s in all")
        print(f"trained on: {', '.join(rows['device'].dropna().unique())}")  # Ray may see no GPU


def everything(arguments: argparse.Namespace) -> None:
    """All of it, each with a heading, and without what fails."""
    end = time.monotonic() + arguments.minutes * 60
    for what in (small, ways, large):
        begun = time.monotonic()
        try:
            what(arguments)
        except (Exception, SystemExit) as error:
            print(f"{what.__name__} failed: {error}")
        print(f"{what.__name__}: {time.monotonic() - begun:.0f} s\n", flush=True)
    table1(arguments, max(1.0, (end - time.monotonic()) / 60))


def gpu() -> str | None:
    """Return what the GPU is called, if there is one; asked by another process, so that this one stays off it."""
    asked = [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name(torch.zeros(1).cuda().device))"]
    answer = subprocess.run(asked, capture_output=True, text=True)
    return answer.stdout.strip() if answer.returncode == 0 else None


@contextmanager
def mps(wanted: bool = True) -> Iterator[bool]:
    """Run NVIDIA's MPS daemon for the ``with`` block; say whether it runs, and processes reach the GPU through it."""
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None or not wanted:
        yield False
        return
    with tempfile.TemporaryDirectory() as folder:
        places = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
        os.environ.update(dict.fromkeys(places, folder))
        started = subprocess.run([control, "-d"]).returncode == 0
        works = started and gpu() is not None
        if not works:
            _end_mps(control, started, places)
        try:
            yield works
        finally:
            if works:
                _end_mps(control, started, places)


def _end_mps(control: str, started: bool, places: Sequence[str]) -> None:
    if started:
        subprocess.run([control], input="quit\n", text=True)
    for place in places:
        del os.environ[place]


WHAT = {"counts": counts, "small": small, "ways": ways, "large": large, "table1": table1, "all": everything}


def arguments_of(words: Sequence[str]) -> argparse.Namespace:
    """Return the arguments; ``options`` are what follows ``--``."""
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(WHAT))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=["float32, graph", "bf16, graph"])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--large-ways", nargs="+", choices=tuple(WAYS), default=["tf32", "bf16"])
    parser.add_argument("--timm", metavar="FILE", help="timm's benchmark.py, to be run beside large")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--results", default="results", help="where table1 stores its rows")
    parser.add_argument("--share", type=int, default=8, help="trials of table1 at once")
    parser.add_argument("--minutes", type=float, default=8, help="of all: what is left is for table1")
    parser.add_argument("--no-mps", action="store_true", help="let processes take turns on the GPU")
    parser.epilog = "What follows -- is for raybench run."
    arguments = parser.parse_args(words[:at])
    arguments.options = words[at + 1 :]
    return arguments


def main() -> None:
    arguments = arguments_of(sys.argv[1:])
    if arguments.what == "counts":
        counts(arguments)
        return
    with mps(not arguments.no_mps) as shared:
        name = gpu()
        if name is None:
            raise SystemExit("gpu.py: torch sees no GPU here")
        print(f"{name}, torch {torch.__version__}, {'with' if shared else 'without'} MPS\n", flush=True)
        WHAT[arguments.what](arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["contender"]:
        way, model, batch, side, steps = sys.argv[2:]
        serve({}, {"epoch": trainer(way, model, int(batch), int(side), int(steps))})
    else:
        main()
