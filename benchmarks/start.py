"""Time from the command to the first training step, part by part.

    python benchmarks/start.py [--rounds 5]

Runs `raybench run` on a small suite, every time in a new process and with a new Ray on this machine. Each line is the
wall-clock time from the mark before it; the parts of the actor that trains first are its own. CPU time is that of all
processes together, Ray's own among them, until the command has ended.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rounds import Usage, machine, spread, table

HERE = Path(__file__).parent
SUITE = """
name: start
imports: [clocked]
dataset: {{name: digits, validation: {{size: 32}}}}
model: {{name: clocked, file: "{folder}/actor.json"}}
repeat: {{seed: 2}}
train: {{epochs: 1}}
"""
MARKED = """
import json, sys, time
marks = [["Python", time.time()]]
from contextlib import contextmanager
from rich.console import Console
from raybench import cli, live

def mark(text):
    marks.append([str(text), time.time()])

def printing(self, *texts, say=Console.print, **options):
    mark(texts[0] if texts else "")
    say(self, *texts, **options)

@contextmanager
def busy(console, what, busy=live.busy):
    mark(what)
    with busy(console, what) as say:
        yield lambda words: (mark(words), say(words))

Console.print, live.busy = printing, busy
sys.argv = ["raybench", *sys.argv[2:]]
try:
    cli.main()
finally:
    with open({path!r}, "w") as file:
        json.dump(marks, file)
"""
"""A Python that notes when raybench said what to people."""
PARTS = (
    ("Python's own start", "Python"),
    ("suite and stored rows; Ray begins to start", "preparing"),
    ("PyTorch, images, models checked", "loading Ray"),
    ("modules of Tune and Train", "starting Ray"),
    ("the rest of Ray's start", "Ray: 1 node"),
)
"""Each with the beginning of what raybench says when it ends."""


def once(folder: Path) -> dict[str, float]:
    """Run the command once and return the seconds of each part."""
    (folder / "start.yaml").write_text(SUITE.format(folder=folder))
    # The suite's folder and this one: the actor imports `clocked` as the driver does.
    (folder / "clocked.py").write_text((HERE / "clocked.py").read_text())
    begun = time.time()
    command = [sys.executable, "-c", MARKED.replace("{path!r}", repr(str(folder / "driver.json"))), "raybench"]
    arguments = ["run", str(folder / "start.yaml"), "--results", str(folder / "results")]
    with Usage([*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as usage:
        _, errors = usage.process.communicate()
    if usage.process.returncode:
        raise SystemExit(f"raybench run failed:\n{errors.decode()}")
    marks = json.loads((folder / "driver.json").read_text())
    actor = json.loads((folder / "actor.json").read_text())
    seconds, last = {}, begun
    for part, text in PARTS:
        at = next(at for said, at in marks if said.startswith(text))
        seconds[part], last = at - last, at
    seconds["until the first step"] = actor["second"] - last
    seconds["all, from the command to the end of the first step"] = actor["second"] - begun
    seconds["of which in the actor: its process and raybench in it"] = actor["imported"] - actor["process"]
    seconds["of which in the actor: images, network, first batch"] = actor["first"] - actor["imported"]
    seconds["of which in the actor: the first step"] = actor["second"] - actor["first"]
    seconds["the whole command"] = usage.seconds
    seconds["CPU time of the whole command"] = usage.cpu
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(machine())
    found: list[dict[str, float]] = []
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as name:
            found.append(once(Path(name)))
        print(f"round {number + 1}: {found[-1]}", file=sys.stderr)
    rows = [(part, spread([seconds[part] for seconds in found], 1)) for part in found[0]]
    print(table(("part", "s: median (range)"), rows))


if __name__ == "__main__":
    main()
