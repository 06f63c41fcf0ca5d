"""Contenders that take turns: what the benchmarks of this folder share. Nothing but the standard library.

Each contender is a process of its own that prepares itself, says that it is ready, and then works once for every line
that it reads. Between its turns it sleeps. So all of them see the same machine, and what disturbs one of them in one
round disturbs the ratio of that round alone: ratios are taken within rounds, and the median is over the rounds.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")


def serve(ready: Mapping[str, Any], work: Mapping[str, Callable[[], Mapping[str, Any]]]) -> None:
    """Be a contender: say ``ready``, and do the ``work`` that each line of stdin names, answering with its result."""
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        print(json.dumps(work[line.strip()]()), flush=True)


@dataclass
class Contender:
    """A process that takes part, and what its turns took."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    cores: int | None = None
    """It and its children may use so many; all that there are, if not given."""

    def __post_init__(self) -> None:
        self.turns: dict[str, list[dict[str, Any]]] = {}
        """By the name of the work."""
        self.ready: dict[str, Any] = {}

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self.launch()
        self.ready = self.hear()

    def launch(self) -> None:
        """Start it; the first that it says is that it is ready."""
        here = sorted(os.sched_getaffinity(0))[: self.cores]
        self.process = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, here)), *self.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environment},
        )

    def turn(self, work: str) -> dict[str, Any]:
        """Let it work once and return its answer; ``cpu`` is the CPU time of it and its children meanwhile."""
        before = cpu_seconds(self.process.pid)
        self.tell(work)
        answer = self.hear()
        return answer | {"cpu": cpu_seconds(self.process.pid) - before}

    def tell(self, work: str) -> None:
        """Let it begin; `hear` waits for the answer."""
        assert self.process.stdin
        self.process.stdin.write(f"{work}\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        """End it."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def hear(self) -> dict[str, Any]:
        """Wait for its answer and return it."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries print too
                return json.loads(line)
        raise SystemExit(f"{self.name} ended: {' '.join(self.command)}")


def start_together(contenders: Sequence[Contender]) -> None:
    """Start all of them and wait until they are ready."""
    for contender in contenders:
        contender.launch()
    for contender in contenders:
        print(f"starting {contender.name}", file=sys.stderr)
        contender.ready = contender.hear()


def take_turns(contenders: Sequence[Contender], work: Sequence[str], rounds: int) -> None:
    """Let all contenders do each ``work`` so many times, in turns, after once to warm up."""
    try:
        start_together(contenders)
        for name in work:
            for contender in contenders:
                contender.turn(name)
            for number in range(rounds):
                # Every second round backwards, so that nobody always follows the same one.
                for contender in contenders[:: -1 if number % 2 else 1]:
                    done = contender.turn(name)
                    contender.turns.setdefault(name, []).append(done)
                    took = f"{done['seconds']:.2f} s, {done['cpu']:.2f} of CPU"
                    print(f"{name}, round {number + 1}: {contender.name}: {took}", file=sys.stderr)
    finally:
        for contender in contenders:
            if hasattr(contender, "process"):
                contender.stop()


class Usage:
    """Runs a command for the ``with`` block and adds up what it and all its descendants use, wherever they end up.

    A process is looked at ``every`` so many seconds; what it used after the last look is not counted. To look at a
    hundred processes takes 3 ms.
    """

    def __init__(self, command: Sequence[str], every: float = 0.1, **options: Any) -> None:
        self.command, self.every, self.options = command, every, options
        self.seconds = self.cpu = 0.0

    def __enter__(self) -> Usage:
        self.begun = time.perf_counter()
        self.process = subprocess.Popen(self.command, **self.options)
        self.seen = {self.process.pid: 0}
        self.looks: list[tuple[float, int]] = []
        self.over = threading.Event()
        self.looking = threading.Thread(target=self._look)
        self.looking.start()
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self.process.kill()
        self.process.wait()
        self.seconds = time.perf_counter() - self.begun
        self.over.set()
        self.looking.join()
        self.cpu = sum(self.seen.values()) / TICKS

    def _look(self) -> None:
        while not self.over.wait(self.every):
            processes = _processes()
            # A child whose parent has gone belongs to init: known processes stay known.
            known = set(self.seen) & set(processes)
            while new := {pid for pid, (parent, *_) in processes.items() if parent in known} - known:
                known |= new
            self.seen |= {pid: processes[pid][1] for pid in known}
            self.looks.append((time.time(), sum(self.seen.values())))

    def cpu_until(self, moment: float) -> float:
        """Return the CPU time until a moment in seconds since 1970; between two looks it grows evenly."""
        before, seen = max((look for look in self.looks if look[0] <= moment), default=(moment, 0))
        after, then = min((look for look in self.looks if look[0] > moment), default=(math.inf, seen))
        return (seen + (then - seen) * (moment - before) / (after - before)) / TICKS


def cpu_seconds(root: int) -> float:
    """Return the CPU time of a process and its living descendants, and of their children that they have waited for."""
    processes = _processes()
    total, here = 0, [root]
    while here:
        total += sum(sum(processes[pid][1:]) for pid in here if pid in processes)
        here = [pid for pid, (parent, *_) in processes.items() if parent in here]
    return total / TICKS


def _processes() -> dict[int, tuple[int, int, int]]:
    """Return of each process its parent, its own CPU time in ticks, and that of children it has waited for.

    Linux alone: read from /proc.
    """
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[int(path.parent.name)] = int(words[1]), sum(map(int, words[11:13])), sum(map(int, words[13:15]))
    return found


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return ``median (smallest to largest)``."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def ratios(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Return one / other, round by round."""
    return [a / b for a, b in zip(one, other, strict=True)]


def machine() -> str:
    """Return what the numbers were measured on: the processor as /proc/cpuinfo names it, cores, load."""
    names = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "name" in line
    ]
    model = next(iter(names), "unknown processor")
    return f"{model}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; the first column is text, the others are numbers."""
    lines = [" | ".join(columns), "---|" + "|".join("--:" for _ in columns[1:])]
    lines += [" | ".join(str(cell) for cell in row) for row in rows]
    return "\n".join(f"| {line} |" if number != 1 else f"|{line}|" for number, line in enumerate(lines))
