"""Memory and speed of a trial while its dataset grows tenfold: held in memory, and streamed from the decoded file.

    python benchmarks/streaming.py [--images 20000 200000] [--size 32] [--rounds 3]

Each trial runs alone, through Ray, in an actor of its own; the ways take turns. Memory is what the kernel says of the
actor's process after the last epoch: pages of its own (RssAnon), pages of files (RssFile; the kernel takes them back
when memory is short, and processes share them), and pages of Ray's object store (RssShmem; they stay as long as the
run does). The images are noise, made in a temporary folder, which must have room for two copies of the largest set.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from raybench import connect, schedule
from raybench.datasets import Dataset, Images
from raybench.grid import Trial
from raybench.job import prepare
from raybench.plan import expand
from raybench.records import EpochRow, Outcome, TrialRow
from raybench.registry import DATASETS
from raybench.suite import load

SUITE = """
name: streaming
dataset: {{name: generated, folder: "{images}", stream: {stream}, validation: {{size: 1000}}}}
model: {{name: mlp, hidden: [16]}}
train: {{epochs: 2, batch_size: 64}}
"""
KINDS = ("RssAnon", "RssFile", "RssShmem")


@DATASETS.register("generated")
class Generated(Dataset):
    """Noise that `make` wrote."""

    def files(self, place: Path) -> list[Path]:
        return [place / "train.npy", place / "test.npy"]

    def read(self, place: Path, image_size: int | None) -> tuple[dict[str, Images], tuple[str, ...]]:
        pixels = {split: np.load(place / f"{split}.npy", "r") for split in ("train", "test")}
        return {split: Images(p, np.arange(len(p)) % 10) for split, p in pixels.items()}, tuple("0123456789")


def make(folder: Path, images: int, size: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(images)
    for split, count in (("train", images), ("test", 1000)):
        shape = (count, size, size, 3)
        array = np.lib.format.open_memmap(folder / f"{split}.npy", "w+", np.uint8, shape)
        for start in range(0, count, 1000):
            array[start : start + 1000] = rng.integers(0, 256, array[start : start + 1000].shape, np.uint8)


class Watch:
    """Looks at the memory of the one actor that trains, after every epoch."""

    def __init__(self) -> None:
        self.memory: dict[str, float] = {}
        self.speed = 0.0

    def started(self, trial: Trial) -> None:
        pass

    def epoch(self, trial: Trial, row: EpochRow, begun: TrialRow) -> bool:
        self.memory = max((status(pid) for pid in descendants(os.getpid())), key=lambda memory: memory["RssAnon"])
        return False

    def stopped(self, trial: Trial) -> None:
        pass

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        assert outcome.row.status == "completed", outcome.row.error
        self.speed = outcome.row.images_per_second or 0


def descendants(root: int) -> list[int]:
    """Return the Ray actors among the processes that ``root`` started."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, here = [], [root]
    while here:
        here = [pid for pid, parent in parents.items() if parent in here]
        found += here
    return [pid for pid in found if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")]


def status(pid: int) -> dict[str, float]:
    """Return the resident memory of a process in MB."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) / 1024 for words in lines if words and words[0][:-1] in KINDS}


def measure(folder: Path, images: int, stream: bool, cluster: connect.Cluster) -> Watch:
    path = folder / "suite.yaml"
    path.write_text(SUITE.format(images=images, stream=str(stream).lower()))
    suite = load(path)
    trials, watch = expand(suite), Watch()
    here = [str(Path(__file__).parent)]
    schedule.run(prepare(suite, trials, folder), trials, watch, cluster, imports=["streaming"], paths=here)
    return watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    results: dict[tuple[int, bool], list[Watch]] = {}
    with tempfile.TemporaryDirectory() as name, connect.connect("local") as cluster:
        folder = Path(name)
        os.environ["RAYBENCH_CACHE"] = str(folder / "cache")
        for images in arguments.images:
            make(folder / str(images), images, arguments.size)
        for _ in range(arguments.rounds):
            for images in arguments.images:
                for stream in (False, True):
                    watch = measure(folder, images, stream, cluster)
                    results.setdefault((images, stream), []).append(watch)
                    print(
                        f"{images:,} images, streamed: {stream}, {watch.speed:,.0f} images/s, {watch.memory}",
                        file=sys.stderr,
                    )
    print("| images | MB | way | " + ", ".join(KINDS) + ", MB | images/s: median (range) |")
    print("|--:|--:|---|--:|--:|")
    for (images, stream), watches in results.items():
        memory = ", ".join(f"{statistics.median(watch.memory[kind] for watch in watches):,.0f}" for kind in KINDS)
        speeds = [watch.speed for watch in watches]
        print(
            f"| {images:,} | {images * 3 * arguments.size**2 / 2**20:,.0f} | {'streamed' if stream else 'in memory'} |"
            f" {memory} | {statistics.median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f}) |"
        )


if __name__ == "__main__":
    main()
