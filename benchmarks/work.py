"""Cost against work: how time grows with trials, with nodes, and with images.

    python benchmarks/work.py [--trials 10 100 1000] [--nodes 1 2 4] [--images 1000 10000 50000] [--rounds 3]

Trials of one step each: what they cost is what raybench and Ray cost. Nodes are Ray nodes of one CPU each on this
machine: with more of them than it has cores, the CPU time per trial says whether many nodes cost more than one, and
the wall-clock time says nothing. Images are noise of 32x32 pixels, read from raybench's cache; trials on them run one
at a time. Ten thousand trials have a script of their own, scale.py, which also follows the driver's memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from orchestration import SUITE, Clock
from ray.cluster_utils import Cluster
from rounds import cpu_seconds, machine, spread, table
from streaming import make

from raybench import connect, schedule
from raybench.grid import Trial
from raybench.job import Job, prepare
from raybench.plan import expand
from raybench.store import Store
from raybench.suite import Suite, load

IMAGES = """
name: images
imports: [streaming]
dataset: {{name: generated, folder: "{images}", validation: {{size: 500}}, test_size: 500}}
model: {{name: mlp, hidden: [16]}}
train: {{epochs: 1, batch_size: 128}}
repeat: {{seed: 6}}
"""


@contextmanager
def cluster(nodes: int) -> Iterator[connect.Cluster]:
    """Start so many Ray nodes of one CPU each here, and join them."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            made.add_node(num_cpus=1)
        with connect.connect(made.address) as connected:
            yield connected
    finally:
        made.shutdown()


def run(suite: Suite, job: Job, trials: list[Trial], connected: connect.Cluster, **options: Any) -> Clock:
    """Run the trials; return when each ended and what it took by its own clock."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), suite)
        store.open({})
        clock = Clock(store)
        schedule.run(job, trials, clock, connected, **options)
        store.close()
    return clock


def timed(suite: Suite, job: Job, trials: list[Trial], connected: connect.Cluster) -> list[float]:
    """Run the trials; return seconds to the first row, and seconds and CPU seconds of this process and its children
    for each later trial."""
    begun, cpu = time.perf_counter(), cpu_seconds(os.getpid())
    ends = [end for end, _ in run(suite, job, trials, connected).ends]
    used = cpu_seconds(os.getpid()) - cpu
    return [ends[0] - begun, (ends[-1] - ends[0]) / max(1, len(ends) - 1), used / len(ends)]


def parsed(folder: Path, text: str) -> tuple[Suite, list[Trial], Job]:
    (folder / "suite.yaml").write_text(text)
    suite = load(folder / "suite.yaml")
    trials = expand(suite)
    return suite, trials, prepare(suite, trials, folder)


def trials_by_nodes(counts: list[int], nodes: list[int], rounds: int) -> str:
    found: dict[tuple[int, int], list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        plans = {count: parsed(Path(name), SUITE.format(trials=count)) for count in counts}
        for _ in range(rounds):
            for number in nodes:
                with cluster(number) as connected:
                    for count, (suite, trials, job) in plans.items():
                        found.setdefault((count, number), []).append(timed(suite, job, trials, connected))
                        print(f"{count} trials, {number} nodes: {found[count, number][-1]}", file=sys.stderr)
    rows = []
    for (count, number), values in sorted(found.items()):
        first, later, cpu = (list(column) for column in zip(*values, strict=True))
        later, cpu = [1e3 * value for value in later], [1e3 * value for value in cpu]
        rows.append((f"{count:,}", number, spread(first, 1), spread(later, 1), spread(cpu, 1)))
    return table(("trials", "nodes", "first row after, s", "then ms/trial", "CPU ms/trial, all of it"), rows)


def images(counts: list[int], rounds: int) -> str:
    """Measure trials of one epoch, one at a time: each but the first of an actor, by its own clock."""
    found: dict[int, list[list[float]]] = {}
    here = {"imports": ["streaming"], "paths": [str(Path(__file__).parent)], "max_concurrent": 1}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in counts:
            make(folder / str(count), count, 32)
        with connect.connect("local") as connected:
            for _ in range(rounds):
                for count in counts:
                    begun = time.perf_counter()
                    suite, trials, job = parsed(folder, IMAGES.format(images=count))
                    read = time.perf_counter() - begun
                    seconds = [took for _, took in run(suite, job, trials, connected, **here).ends][1:]
                    found.setdefault(count, []).append([read, statistics.median(seconds)])
                    print(f"{count} images: {found[count][-1]}", file=sys.stderr)
    rows = []
    for count, values in found.items():
        read, took = (list(column) for column in zip(*values, strict=True))
        per_image = [1e6 * value / count for value in took]
        rows.append((f"{count:,}", spread(read), spread(took), spread(per_image, 1)))
    return table(("images", "read in, s", "a trial of one epoch, s", "µs/image"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--images", type=int, nargs="*", default=[1000, 10_000, 50_000])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as cache:
        os.environ["RAYBENCH_CACHE"] = cache
        if arguments.trials:
            print(f"\n{trials_by_nodes(arguments.trials, arguments.nodes, arguments.rounds)}", flush=True)
            assert not ray.is_initialized()
        if arguments.images:
            print(f"\n{images(arguments.images, arguments.rounds)}")
    print(f"\nat the end: {machine()}")


if __name__ == "__main__":
    main()
