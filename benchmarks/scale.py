"""What grows with the number of trials: one suite of many trials of one step each, run as `raybench run` runs it.

    python benchmarks/scale.py [--trials 10000] [--every 1000]

Each row of the first table is about the trials since the row before. Memory is that of the driver: the process that
plans, watches and stores. The second table has what is done once for all of them.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from raybench.live import Watch
from raybench.plan import Choice
from raybench.records import Outcome
from raybench.run import Options, run_missing
from raybench.store import Store
from raybench.suite import load
from raybench.summarize import summarize
from raybench.trial import planned_row

SUITE = """
name: scale
dataset: {{name: digits, train_size: 32, test_size: 32, validation: {{size: 32}}}}
compare: {{model: {{narrow: {{name: mlp, hidden: [8]}}, wide: {{name: mlp, hidden: [16]}}}}}}
repeat: {{seed: {seeds}}}
train: {{epochs: 1, batch_size: 32}}
"""


class Noting(Store):
    """A store that says how far it is after every ``every`` trials."""

    every = 1000
    count = 0
    last = 0.0, 0.0
    """Wall and CPU time at the row before."""

    def write(self, outcome: Outcome) -> None:
        super().write(outcome)
        self.count += 1
        if self.count % self.every == 0:
            wall, cpu = (1e3 * (n - last) / self.every for n, last in zip(now(), self.last, strict=True))
            files = sum(path.is_file() for path in self.folder.rglob("*"))
            line = f"| {self.count:,} | {resident():,.0f} | {wall:.0f} | {cpu:.1f} | {files} |"
            print(line, file=sys.__stdout__, flush=True)  # while Ray runs, what is printed to stdout is dropped
        if self.count % self.every == 0 or self.count == 1:  # the first row comes after Ray's start
            self.last = now()


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def resident() -> float:
    """Return the memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def timed(what: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    print(f"| {what} | {time.perf_counter() - begun:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scale.yaml").write_text(SUITE.format(seeds=arguments.trials // 2), encoding="utf-8")
        choice = Choice(load(folder / "scale.yaml"))
        store = Noting(folder, choice.suite)
        store.every = arguments.every
        store.open({})
        options, console = Options(data_dir=folder), Console(file=io.StringIO())
        print(f"{resident():,.0f} MB before\n")
        print("| trials ended | driver, MB | ms/trial | driver's CPU, ms/trial | files of results |")
        print("|--:|--:|--:|--:|--:|")
        run_missing(choice, store, options, console)
        print("\n| once for all | s |\n|:--|--:|")
        with timed("expansion"):
            trials = choice.trials({})
        with timed("a run with nothing to do"):
            run_missing(choice, store, options, console)
        with timed("table"):
            summarize(store.read()[0], choice.suite, choice.trials(store.ended(failed=True)))
        terminal = Console(file=io.StringIO(), width=100, height=30, force_terminal=True)
        with timed("live view"), Watch(terminal, planned=len(trials), done=0, slots=2) as watch:
            for trial in trials:
                watch.started(trial)
                watch.ended(trial, Outcome(row=planned_row(trial)))
        store.close()


if __name__ == "__main__":
    main()
