"""What a trial costs beyond its own training: 100 trials of one step each, through Ray Tune, TorchTrainer and Parquet.

    python benchmarks/orchestration.py [--trials 100] [--rounds 3]

For each number of slots the same trials run several times, the slots taking turns. "Beyond training" is the time from
the first start to the last stored row, times the slots, less what the trials report as their own wall time, per trial.
Start-up (joining Ray, starting the actors, their first imports) ends with the first `slots` trials and is shown apart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from raybench import connect, schedule
from raybench.grid import Trial
from raybench.job import Job, prepare
from raybench.plan import expand
from raybench.records import EpochRow, Outcome, TrialRow
from raybench.store import Store
from raybench.suite import Suite, load

SUITE = """
name: one_step
dataset: {{name: digits, train_size: 32, test_size: 32, validation: {{size: 32}}}}
model: mlp
repeat: {{seed: {trials}}}
train: {{epochs: 1, batch_size: 32}}
"""


class Clock:
    """Stores what ends, as a run does, and notes when."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.ends: list[tuple[float, float]] = []

    def started(self, trial: Trial) -> None:
        pass

    def epoch(self, trial: Trial, row: EpochRow, begun: TrialRow) -> bool:
        return False

    def stopped(self, trial: Trial) -> None:
        raise AssertionError("none was to stop")

    def warned(self, trial: Trial, warning: str) -> None:
        print(f"{trial.name}: {warning}")

    def lost(self, trial: Trial, reason: str) -> None:
        raise AssertionError(f"{trial.name}: {reason}")

    def no_room(self, reason: str) -> None:
        raise AssertionError(reason)

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        assert outcome.row.status == "completed", outcome.row.error
        self.store.write(outcome)
        self.ends.append((time.perf_counter(), outcome.row.wall_seconds or 0))


def measure(
    suite: Suite, job: Job, trials: list[Trial], cluster: connect.Cluster, slots: int
) -> tuple[float, float, float]:
    """Return seconds until the first ``slots`` rows, seconds beyond training per later trial, and its training."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), suite)
        store.open({})
        clock = Clock(store)
        begun = time.perf_counter()
        schedule.run(job, trials, clock, cluster, max_concurrent=slots)
        store.close()
    first, later = clock.ends[slots - 1][0], clock.ends[slots:]
    training = sum(seconds for _, seconds in later)
    return first - begun, ((later[-1][0] - first) * slots - training) / len(later), training / len(later)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(SUITE.format(trials=arguments.trials))
        file.flush()
        suite = load(Path(file.name))
    trials = expand(suite)
    job = prepare(suite, trials, Path())
    begun = time.perf_counter()
    results: dict[int, list[tuple[float, float, float]]] = {}
    with connect.connect("local") as cluster:
        connected = time.perf_counter() - begun
        for _ in range(arguments.rounds):
            for slots in sorted({1, cluster.cpus}):
                results.setdefault(slots, []).append(measure(suite, job, trials, cluster, slots))
    print(f"{arguments.trials} trials of one step, {arguments.rounds} rounds; ray.init {connected:.1f} s")
    print("| slots | first rows after, s | beyond training, ms/trial: median (range) | training, ms/trial |")
    print("|--:|--:|--:|--:|")
    for slots, rows in results.items():
        start, beyond, training = (list(column) for column in zip(*rows, strict=True))
        print(
            f"| {slots} | {statistics.median(start):.1f} | {1e3 * statistics.median(beyond):.1f}"
            f" ({1e3 * min(beyond):.1f} to {1e3 * max(beyond):.1f}) | {1e3 * statistics.median(training):.1f} |"
        )


if __name__ == "__main__":
    main()
