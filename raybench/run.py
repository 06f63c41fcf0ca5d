"""A suite's missing trials, from the plan to stored rows: the story of ``raybench run``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from raybench.errors import DataError
from raybench.job import Job, prepare, source_key
from raybench.live import Watch
from raybench.plan import Trial, sizes
from raybench.records import EpochRow, Outcome
from raybench.settings import TrialSettings
from raybench.store import Store
from raybench.suite import Suite


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user chose besides the suite."""

    data_dir: Path
    address: str = "local"
    max_concurrent: int | None = None
    verbose: bool = False


def run_missing(suite: Suite, trials: Sequence[Trial], store: Store, options: Options, console: Console) -> bool:
    """Run the trials that ``store``, which is open, has no finished row of; return False if the user interrupted.

    Raises:
        UserError: for anything that the user must mend first; nothing has run then.
    """
    done, damaged = store.done()
    for line in damaged:
        console.print(line, style="yellow", soft_wrap=True)
    todo = [trial for trial in trials if trial.id not in done]
    console.print(f"[bold]{suite.name}[/bold]  {suite.about}", soft_wrap=True)
    count = "1 trial" if len(trials) == 1 else f"{len(trials)} trials"
    console.print(f"{count} ({sizes(suite)}): {len(trials) - len(todo)} finished, {len(todo)} to run")
    if not todo:
        return True
    with console.status("preparing") as status:
        job = prepare(suite, todo, options.data_dir, status.update)
        for note in job.notes:
            console.print(f"WARNING: {note}", style="yellow", markup=False, soft_wrap=True)
        _refuse_other_data(job, store)
        status.update("loading Ray")
        from raybench import schedule  # seconds: not for a run that has nothing to do
    with contextlib.ExitStack() as stack:
        with console.status("starting Ray" if options.address == "local" else f"joining Ray at {options.address}"):
            cluster = stack.enter_context(schedule.connect(options.address, verbose=options.verbose))
        slots = cluster.slots(todo[0].typed().resources)
        console.print(
            f"Ray: {cluster.nodes} node{'s' * (cluster.nodes != 1)}, {cluster.cpus} CPUs, {cluster.gpus} GPUs"
            + (f", dashboard {cluster.dashboard}" if cluster.dashboard else "")
        )
        watch = stack.enter_context(
            Watch(console, len(trials), len(trials) - len(todo), min(slots, options.max_concurrent or slots))
        )
        try:
            schedule.run(
                job,
                todo,
                _Recorder(store, watch),
                cluster,
                max_concurrent=options.max_concurrent,
                imports=suite.imports,
                paths=[str(suite.folder.resolve())] if suite.imports else [],
                verbose=options.verbose,
            )
        except schedule.Interrupted:
            return False
    return True


class _Recorder:
    """Stores what ends, then shows it: what is seen is safe."""

    def __init__(self, store: Store, watch: Watch) -> None:
        self.store, self.watch = store, watch

    def started(self, trial: Trial) -> None:
        self.watch.started(trial)

    def epoch(self, trial: Trial, row: EpochRow) -> None:
        self.watch.epoch(trial, row)

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        self.store.write(outcome)
        self.watch.ended(trial, outcome)


def _refuse_other_data(job: Job, store: Store) -> None:
    """Keep rows that were measured on other images out of one table: an id does not know where the images came from."""
    rows, _ = store.read("trials", ["dataset_fingerprint", "settings"])
    known = rows.dropna().drop_duplicates()
    stored = {
        source_key(TrialSettings.model_validate_json(settings)): fingerprint
        for settings, fingerprint in zip(known["settings"], known["dataset_fingerprint"], strict=True)
    }
    for key, source in job.sources.items():
        if stored.get(key, source.fingerprint) != source.fingerprint:
            name = json.loads(key)[0]
            raise DataError(
                f"{store.folder}: its rows were measured on other {name} images (fingerprint {stored[key]}) than those"
                f" at hand ({source.fingerprint}): choose another --results, or give the same images with --data-dir"
            )
