"""A whole sweep of short trials: raybench beside a shell loop and beside one worker group per trial, in turns.

    python benchmarks/sweep.py [--trials 24] [--groups 8] [--rounds 3] [--epochs 40] [--no-shells]

The trials are the same everywhere, to the last bit, and train with raybench's own loop; what differs is who starts
them:

- raybench: `raybench run`, on as many slots as there are cores;
- shell loop: one Python script per trial (this file, `one`), one at a time and as many as there are cores;
- worker groups: Ray Tune with one TorchTrainer of one worker per trial, as Ray's user guide shows ("Hyperparameter
  tuning with Ray Tune"); of --groups trials alone, since each takes seconds.

"Training" is what the trials take in a warm process, one after the other, with nothing beside them; "side by side",
what they take in as many processes as there are cores, all ready before the first begins, and no Ray: cores share
memory and heat, and what that costs is nobody's overhead. Start-up is until the first batch of the first trial, and the
end begins when the last trial has ended; both come once, however many trials there are, and stand in columns of their
own. Overhead is what lies between beyond training, for each trial but those that the slots began with: wall-clock time
times slots less training, in core seconds; and CPU time less training's, which a busy machine can still compare.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from rounds import Contender, Usage, machine, serve, spread, start_together, table

if TYPE_CHECKING:
    from raybench.grid import Trial
    from raybench.job import Job

HERE = Path(__file__).parent
SUITE = """
name: sweep
imports: [clocked]
dataset: {{name: digits, validation: {{size: 259}}}}
model: {{name: clocked, file: "{folder}/actor.json", hidden: [{hidden}]}}
search: {{lr: [1.0e-3, 3.0e-3]}}
confirm: none
repeat: {{seed: {seeds}}}
train: {{epochs: {epochs}, batch_size: 32}}
"""
CORES = len(os.sched_getaffinity(0))


def prepared(suite: Path, which: slice) -> tuple[Job, list[Trial]]:
    """Return trials of a suite, and the job that runs them in this process."""
    from raybench.job import prepare
    from raybench.plan import expand
    from raybench.suite import load

    sys.path.insert(0, str(suite.parent))
    import clocked  # noqa: F401 - registers the model

    loaded = load(suite)
    trials = expand(loaded)[which]
    return prepare(loaded, trials, suite.parent), trials


def train(job: Job, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Train trials one after the other; return of each its id, test accuracy and seconds, and when it ended."""
    done = []
    for trial in trials:
        begun, cpu = time.perf_counter(), time.process_time()
        row = job.run(trial).row
        assert row.status == "completed", row.error
        took = {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - cpu, "ended": time.time()}
        done.append({"id": trial.id, "accuracy": row.test_accuracy} | took)
    return done


def in_processes(suite: Path, count: int, processes: int) -> list[dict[str, Any]]:
    """Train the first ``count`` trials in turns in so many processes, which begin together when all are ready."""
    me = [sys.executable, str(HERE / "sweep.py"), "part", str(suite), str(count)]
    parts = [Contender(f"process {one}", [*me, str(one), str(processes)]) for one in range(processes)]
    start_together(parts)
    try:
        for part in parts:
            part.tell("train")
        return [row for part in parts for row in part.hear()["rows"]]
    finally:
        for part in parts:
            part.stop()


def groups(suite: Path, count: int) -> None:
    """Let Ray Tune start a TorchTrainer worker group for each trial, as Ray's user guide does."""
    import ray
    from ray import train, tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    def train_fn(config: dict[str, Any]) -> None:
        sys.path.insert(0, str(HERE))
        import sweep

        (done,) = sweep.train(*sweep.prepared(suite, slice(config["index"], config["index"] + 1)))
        train.report(done)

    def train_driver_fn(config: dict[str, Any]) -> None:
        trainer = TorchTrainer(
            train_fn,
            train_loop_config=config,
            scaling_config=train.ScalingConfig(num_workers=1),
            run_config=train.RunConfig(
                name=f"group-{config['index']}",
                storage_path=str(suite.parent / "ray"),
                callbacks=[TuneReportCallback()],
            ),
        )
        trainer.fit()

    ray.init(address="local", log_to_driver=False)
    found = tune.Tuner(
        # The workers bring their own CPUs.
        tune.with_resources(train_driver_fn, {"CPU": 0.01}),
        param_space={"index": tune.grid_search(list(range(count)))},
        tune_config=tune.TuneConfig(max_concurrent_trials=CORES),
        run_config=tune.RunConfig(storage_path=str(suite.parent / "ray"), verbose=0),
    ).fit()
    print(json.dumps([{key: result.metrics[key] for key in ("id", "accuracy", "ended")} for result in found]))
    ray.shutdown()


class Way:
    """One way to run the trials, and what its rounds took."""

    def __init__(self, name: str, slots: int, trials: int) -> None:
        self.name, self.slots, self.trials = name, slots, trials
        self.seconds: list[float] = []
        self.start: list[float] = []
        """Until the first batch of the first trial."""
        self.end: list[float] = []
        """After the last trial."""
        self.cpu: list[float] = []
        """Between the two."""
        self.accuracies: dict[str, float] = {}

    def note(self, usages: Sequence[Usage], begun: float, suite: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take down a round that began at ``begun`` and is over now; each row says when its trial ended."""
        over, first = time.time(), json.loads(clock_of(suite).read_text())["first"]
        last = max(row["ended"] for row in rows)
        self.seconds.append(over - begun)
        self.start.append(first - begun)
        self.end.append(over - last)
        self.cpu.append(sum(usage.cpu_until(last) - usage.cpu_until(first) for usage in usages))
        self.accuracies |= {row["id"]: row["accuracy"] for row in rows}
        assert len(rows) == self.trials, f"{self.name}: {len(rows)} of {self.trials} trials"
        print(f"{self.name}: {self.start[-1]:.1f} s to the first batch, {self.seconds[-1]:.1f} in all", file=sys.stderr)


def clock_of(suite: Path) -> Path:
    """Return the file in which the first trial notes its first batch."""
    return suite.parent / "actor.json"


def _output(usage: Usage) -> Any:
    out, errors = usage.process.communicate()
    if usage.process.returncode:
        raise SystemExit(f"{' '.join(map(str, usage.command))} failed:\n{errors.decode()[-3000:]}")
    return out


def _run(*arguments: str) -> tuple[Usage, Any]:
    """Run this script for one of the ways and return what it printed last."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Usage([sys.executable, str(HERE / "sweep.py"), *arguments], **options) as usage:
        out = _output(usage)
    return usage, json.loads(out.splitlines()[-1])


def run_raybench(way: Way, suite: Path) -> None:
    begun, results = time.time(), suite.parent / f"results-{len(way.seconds)}"
    command = [sys.executable, "-m", "raybench.cli", "run", str(suite), "--results", str(results)]
    # Its processes live long, and two looks a second take none of their cores.
    with Usage(command, 0.5, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as usage:
        _output(usage)
    rows = {path.stem: path for path in (results / "sweep" / "trials").glob("[!.]*.parquet")}
    found = [pq.read_table(path, columns=["test_accuracy"])[0][0].as_py() for path in rows.values()]
    ended = [path.stat().st_mtime for path in rows.values()]
    columns = zip(rows, found, ended, strict=True)
    way.note([usage], begun, suite, [{"id": i, "accuracy": accuracy, "ended": end} for i, accuracy, end in columns])


def run_shell(way: Way, suite: Path) -> None:
    begun = time.time()
    with ThreadPoolExecutor(way.slots) as pool:
        done = list(pool.map(lambda index: _run("one", str(suite), str(index)), range(way.trials)))
    way.note([usage for usage, _ in done], begun, suite, [row for _, (row,) in done])


def run_groups(way: Way, suite: Path) -> None:
    begun = time.time()
    usage, rows = _run("groups", str(suite), str(way.trials))
    way.note([usage], begun, suite, rows)


def sweep(
    trials: int, groups: int, rounds: int, epochs: int, hidden: int, shells: bool = True
) -> tuple[list[Way], list[dict[str, float]], list[float]]:
    """Run all ways in turns; return what they took, of each trial the median of what it takes alone, and of every round
    the seconds of all trials side by side."""
    ours = Way("raybench", CORES, trials)
    loops = [Way(f"shell loop, {slots} at a time", slots, trials) for slots in sorted({1, CORES})]
    grouped = Way("one worker group per trial", CORES, groups)
    ways = [ours, *(loops if shells else []), *([grouped] if groups else [])]
    runs = {ours: run_raybench, grouped: run_groups}
    alone: list[list[dict[str, Any]]] = []
    beside: list[list[dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as name:
        suite = Path(name) / "sweep.yaml"
        suite.write_text(SUITE.format(folder=name, seeds=(trials + 1) // 2, epochs=epochs, hidden=hidden))
        (Path(name) / "clocked.py").write_text((HERE / "clocked.py").read_text())
        for _ in range(rounds):
            for rows, processes in ((alone, 1), (beside, CORES)):
                rows.append(in_processes(suite, trials, processes))
                took = sum(row["seconds"] for row in rows[-1])
                print(f"training, {processes} at a time: {took:.1f} s", file=sys.stderr)
            for way in ways:
                clock_of(suite).unlink()
                runs.get(way, run_shell)(way, suite)
    found = {way.name: way.accuracies for way in ways}
    found["side by side"] = {row["id"]: row["accuracy"] for row in beside[0]}
    for name, accuracies in found.items():
        for row in alone[0]:
            same = accuracies.get(row["id"], row["accuracy"])
            assert same == row["accuracy"], f"{name}: another accuracy of {row['id']}"
    median = [
        {clock: statistics.median(turn[index][clock] for turn in alone) for clock in ("seconds", "cpu")}
        for index in range(trials)
    ]
    return ways, median, [sum(row["seconds"] for row in turn) for turn in beside]


def report(ways: Sequence[Way], alone: Sequence[Mapping[str, float]], beside: Sequence[float]) -> str:
    """Return the table, and what start-up, training and the end explain of raybench's time."""
    rows, beyond = [], {}
    for way in ways:
        training, cpu = (sum(row[clock] for row in alone[: way.trials]) for clock in ("seconds", "cpu"))
        further = way.trials - way.slots
        times = zip(way.seconds, way.start, way.end, strict=True)
        wall = [((seconds - start - end) * way.slots - training) / further for seconds, start, end in times]
        beyond[way.name] = [(seconds - cpu) / further for seconds in way.cpu]
        whole = (spread(seconds, 1) for seconds in (way.seconds, way.start, way.end))
        row = (way.name, way.trials, way.slots, *whole, spread(wall), spread(beyond[way.name]))
        rows.append((*row, f"{statistics.median(beyond[way.name]) / statistics.median(beyond['raybench']):.1f}"))
    columns = (
        *("way", "trials", "slots", "s", "of which start-up", "and the end"),
        *("overhead of a further trial, core s", "in CPU s", "CPU overhead / raybench's"),
    )
    ours = ways[0]
    training = sum(row["seconds"] for row in alone)
    took, start, end = (statistics.median(seconds) for seconds in (ours.seconds, ours.start, ours.end))
    lines = [
        f"raybench: {spread(ours.seconds, 1)} s in all, of which {spread(ours.start, 1)} to the first batch and"
        f" {spread(ours.end, 1)} after the last trial."
    ]
    for what, seconds in (("one after the other", training), ("side by side", statistics.median(beside))):
        pure = seconds / ours.slots
        lines.append(
            f"Of training {what}, {pure:.1f} s on {ours.slots} slots: in all {took / (start + pure):.2f} times start-up"
            f" and training, {took / (start + pure + end):.2f} times them and the end."
        )
    return "\n\n".join(
        [
            f"Training alone: {training:.1f} s for {len(alone)} trials, {sum(row['cpu'] for row in alone):.1f} of CPU;"
            f" side by side, in {ours.slots} processes without Ray: {spread(beside, 1)} s.",
            table(columns, rows),
            "\n".join(lines),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--groups", type=int, default=4 * CORES, help="trials with a worker group each; 0 for none")
    parser.add_argument("--no-shells", dest="shells", action="store_false", help="leave out the shell loops")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40, help="of each trial")
    parser.add_argument("--hidden", type=int, default=512, help="width of the network")
    arguments = parser.parse_args()
    for name, count in (("--trials", arguments.trials), ("--groups", arguments.groups or CORES + 1)):
        if count <= CORES:
            parser.error(f"{name} {count}: {CORES} start at once, and those after them are measured: name more")
    if arguments.trials % 2:
        parser.error(f"--trials {arguments.trials}: two learning rates are tried with each seed: name an even number")
    print(machine())
    print(
        report(*sweep(**vars(arguments))),
        f"at the end: {machine()}",
        sep="\n\n",
    )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["one", suite, index]:
            print(json.dumps(train(*prepared(Path(suite), slice(int(index), int(index) + 1)))))
        case ["part", suite, count, first, step]:
            job, trials = prepared(Path(suite), slice(int(first), int(count), int(step)))
            train(job, trials[:1])  # the first in a process also loads what PyTorch loads late: that is start-up
            serve({}, {"train": lambda: {"rows": train(job, trials)}})
        case ["groups", suite, count]:
            groups(Path(suite), int(count))
        case _:
            main()
