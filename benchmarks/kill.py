"""What survives kills: driver, worker processes and nodes are killed with SIGKILL at random moments of real sweeps.

    python benchmarks/kill.py [--rounds 50]

A cluster of three nodes on this machine: a head that trains nothing, and two that a kill may take; what was killed is
started again. After every kill, each row that was stored before must lie there unchanged, and whatever has a row must
be readable as a whole. At the end of a sweep every planned trial has exactly one finished row. Exit status 1 if not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from raybench import localcluster
from raybench.plan import expand
from raybench.store import Store
from raybench.suite import load

SUITE = """
name: killed
dataset: {name: digits, train_size: 600, test_size: 100}
compare: {model: [mlp, small_cnn]}
repeat: {seed: 20}
train: {epochs: 8, batch_size: 8}
"""
KINDS = ("driver", "worker", "node")
END = "nothing: the end of a sweep"
SECONDS = 300
"""Until something that should happen counts as hanging."""


class Node(localcluster.Node):
    """A node of a cluster on this machine that runs, and what trains on it."""

    def __init__(self, folder: Path, head: Node | None = None, *, cpus: int, wrap: str = "exec {}", **env: str) -> None:
        """``wrap`` is a shell line around ``ray start``, ``env`` what to add to its environment."""
        self.port = localcluster.free_port() if head is None else head.port
        options = [f"--address=127.0.0.1:{self.port}"]
        if head is None:
            folder.mkdir()
            options = localcluster.head_options(self.port, folder)
        log = folder / f"node{time.monotonic_ns()}.log"
        options += [f"--object-store-memory={localcluster.STORE_BYTES}"]
        super().__init__(options, log, environment(**env), cpus=cpus, wrap=wrap)
        self.start()

    def workers(self, called: str = "ray::RaybenchTrial.train") -> list[int]:
        """Return the processes that train here."""
        found = []
        for process in localcluster.family(self.leader):
            with contextlib.suppress(OSError):  # it may have ended
                if Path(f"/proc/{process.pid}/cmdline").read_text().startswith(called):
                    found.append(process.pid)
        return found


def environment(**more: str) -> dict[str, str]:
    """Return an environment in which a cluster of its own needs no token and meets no other."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, **localcluster.ENVIRONMENT, "RAY_AUTH_MODE": "disabled", **more}


def start_driver(folder: Path, head: Node, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "raybench.cli", "run", "suite.yaml", "--address", f"127.0.0.1:{head.port}"]
    with open(folder / "log", "a") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment(**env), stdout=subprocess.DEVNULL, stderr=log, text=True
        )


@dataclass
class Seen:
    """What the kills of one kind did."""

    kills: int = 0
    rows: int = 0
    """Stored when a kill came, summed; none of those that the end of a sweep looks at."""
    lost: int = 0
    doubled: int = 0
    torn: int = 0


@dataclass
class Sweep:
    """A sweep in a folder of its own, and the rows that were seen to lie there."""

    folder: Path
    before: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        (self.folder / "suite.yaml").write_text(SUITE)
        self.suite = load(self.folder / "suite.yaml")
        self.store = Store(self.folder / "results", self.suite)
        self.planned = {trial.id for trial in expand(self.suite)}

    def stored(self) -> dict[str, bytes]:
        """Return the finished rows as they lie there."""
        files = {path.stem: path.read_bytes() for path in (self.store.folder / "trials").glob("[!.]*.parquet")}
        done, _ = self.store.done()
        return {id_: content for id_, content in files.items() if id_ in done}

    def check(self, seen: Seen) -> None:
        """Compare with what lay there before, and read everything that has a row."""
        after = self.stored()
        seen.lost += len(self.before.keys() - after.keys())
        seen.doubled += sum(after.get(id_, content) != content for id_, content in self.before.items())
        seen.torn += len(self.store.done()[1])
        for id_ in after:
            for kind in ("trials", "epochs", "predictions"):
                try:
                    seen.torn += not pq.read_table(self.store.folder / kind / f"{id_}.parquet").num_rows
                except Exception:
                    seen.torn += 1
        self.before = after


def run(folder: Path, kinds: Sequence[str], moments: random.Random) -> tuple[dict[str, Seen], Counter[str]]:
    """Kill each of ``kinds`` in turn; return what was seen at each and at the `END` of the sweeps, and how often the
    console told what of lost trials."""
    seen = {kind: Seen() for kind in (*sorted(set(kinds)), END)}
    told: Counter[str] = Counter()
    head = Node(folder / "ray", cpus=0)
    nodes = [Node(folder, head, cpus=1) for _ in range(2)]
    left = list(kinds)
    try:
        number = 0
        while left:
            sweep = Sweep(folder / f"sweep{number}")
            number += 1
            driver = start_driver(sweep.folder, head)
            while left:
                until = time.monotonic() + SECONDS
                while len(sweep.stored()) == len(sweep.before) and driver.poll() is None:
                    assert time.monotonic() < until, f"nothing happens: {(sweep.folder / 'log').read_text()}"
                    time.sleep(0.1)
                time.sleep(moments.uniform(0, 3))
                if driver.poll() is not None:
                    break
                kind, node = left.pop(), moments.randrange(2)
                workers = nodes[node].workers() or nodes[1 - node].workers()
                if kind == "worker" and not workers:  # all are between two tasks: once more, a moment later
                    left.append(kind)
                    continue
                sweep.before = sweep.stored()
                if kind == "driver":
                    driver.kill()
                    driver.wait()
                elif kind == "worker":
                    os.kill(moments.choice(workers), signal.SIGKILL)
                elif kind == "node":
                    nodes[node].kill()
                seen[kind].kills += 1
                seen[kind].rows += len(sweep.before)
                sweep.check(seen[kind])
                if kind == "driver":
                    driver = start_driver(sweep.folder, head)
                elif kind == "node":
                    nodes[node] = Node(folder, head, cpus=1)
                print(f"{len(kinds) - len(left):3}/{len(kinds)} {kind}: {len(sweep.before)} rows", flush=True)
            if driver.wait(2 * SECONDS):  # a trial whose process was killed too often is failed: the next run has it
                driver = start_driver(sweep.folder, head)
                assert driver.wait(2 * SECONDS) == 0, (sweep.folder / "log").read_text()
            end = seen[END]
            sweep.check(end)
            end.lost += len(sweep.planned - sweep.before.keys())
            rows, _ = sweep.store.read()
            end.doubled += len(rows) - len(set(rows["trial_id"]))
            log = (sweep.folder / "log").read_text()
            told.update({words: log.count(words) for words in ("its process died", "its node is gone", ": failed")})
    finally:
        for node in [*nodes, head]:
            node.kill()
    return seen, told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    begun = time.monotonic()
    kinds = [KINDS[number % len(KINDS)] for number in range(arguments.rounds)]
    moments.shuffle(kinds)
    with tempfile.TemporaryDirectory(prefix="kill", ignore_cleanup_errors=True) as folder:
        seen, told = run(Path(folder), kinds, moments)
    print("| killed | times | rows stored before, summed | lost | doubled | torn |")
    print("|---|--:|--:|--:|--:|--:|")
    for kind, row in seen.items():
        print(f"| {kind} | {row.kills} | {row.rows} | {row.lost} | {row.doubled} | {row.torn} |")
    print(
        f"{time.monotonic() - begun:.0f} s; told of lost trials: {told['its process died']} x process,"
        f" {told['its node is gone']} x node, {told[': failed']} x failed"
    )
    sys.exit(any(row.lost or row.doubled or row.torn for row in seen.values()))


if __name__ == "__main__":
    main()
