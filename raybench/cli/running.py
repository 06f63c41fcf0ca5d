"""Commands that train, or say what would be trained: run, plan, validate."""

from __future__ import annotations

import errno
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from raybench.cli.base import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_SPENT,
    EXIT_USAGE,
    FORMATS,
    Number,
    address_option,
    app,
    concurrency_option,
    data_option,
    literal,
    load_choice,
    progress,
    results_option,
    seconds_of,
    show,
    suite_argument,
    suite_options,
    warn,
)
from raybench.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from raybench.plan import Choice
    from raybench.settings import Resources, TrainSettings
    from raybench.store import Store


@app.command()
@suite_argument
@suite_options
@results_option
@data_option
@address_option
@click.option(
    "--storage",
    metavar="FOLDER_OR_URI",
    help="Keep the state of long trials here, a folder or s3://... that all nodes reach: one that is interrupted then"
    " goes on from its last checkpoint.",
)
@click.option(
    "--checkpoint-every",
    type=Number(min=0),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="With --storage: time between two checkpoints of a trial, after an epoch.",
)
@concurrency_option
@click.option("--budget", metavar="TIME", help="Start no trial that would not end in this time, e.g. `90m` or `1h30m`.")
@click.option("--max-trials", type=click.IntRange(min=1), metavar="N", help="Start at most N of the missing trials.")
@click.option(
    "--format", type=click.Choice(FORMATS), default="table", show_default=True, help="Of the table at the end."
)
@click.option(
    "--track",
    multiple=True,
    type=click.Choice(["tensorboard", "mlflow", "wandb"]),
    help="Also send every trial's curves there, besides the trackers that the suite names. Repeatable.",
)
@click.option(
    "--ship",
    is_flag=True,
    help="Send this raybench to the nodes of a cluster, which then need only what it depends on.",
)
@click.option("--verbose", is_flag=True, help="Show Ray Tune's own output too.")
def run(
    suite: str,
    sets: tuple[str, ...],
    only: tuple[str, ...],
    limit: int | None,
    smoke: bool,
    results: str | Path,
    data_dir: Path,
    address: str,
    storage: str | None,
    checkpoint_every: float,
    max_concurrent: int | None,
    budget: str | None,
    max_trials: int | None,
    format: str,
    track: tuple[str, ...],
    ship: bool,
    verbose: bool,
) -> int:
    """Run a suite's missing trials, and print its table.

    SUITE is a file, or the name of a suite that ships with raybench ([bold]raybench list suites[/bold]). Trials that
    have a finished row are not run again: after an interruption, or with a budget spent, the same command goes on.
    """
    from raybench.objects import StoreError, place

    seconds = None if budget is None else seconds_of(budget)  # before anything heavy: a typo is said at once
    choice = load_choice(suite, sets, only, limit, smoke)
    root = place(results)
    from raybench.grid import counted
    from raybench.run import Options, run_missing
    from raybench.store import Store
    from raybench.summarize import summarize as make_table

    checkpoints = None
    if storage:
        from raybench.checkpoint import Checkpoints

        checkpoints = Checkpoints(storage, checkpoint_every)
        checkpoints.check()
    console = progress()
    store = Store(root, choice.suite)
    store.open()
    try:
        options = Options(
            data_dir=data_dir,
            address=address,
            max_concurrent=max_concurrent,
            budget=seconds,
            max_trials=max_trials,
            verbose=verbose,
            checkpoints=checkpoints,
            track=track,
            ship=ship,
        )
        end = run_missing(choice, store, options, console)
        rows, _ = store.read()
        trials = choice.trials(store.ended(failed=True))
    except OSError as error:
        file, reason = error.filename, error.strerror or error
        stored_in = store.folder.absolute() if isinstance(store.folder, Path) else None  # else in object storage
        if isinstance(file, str | Path) and not (stored_in and Path(file).absolute().is_relative_to(stored_in)):
            raise UserError(f"{file}: {reason}") from None
        if file is not None and error.errno == errno.ENOENT:
            raise UserError(f"{store.folder}: a part of it was removed during the run: run again") from None
        raise UserError(f"{store.folder}: {reason}: rows stored so far are whole; run again") from None
    except StoreError as error:
        raise UserError(f"{error}: rows stored so far are whole; run again") from None
    finally:
        store.close()
    show(make_table(rows, choice.suite, trials), format)
    kinds = ["trials", "epochs", "predictions", *(["weights"] if store.kept_weights() else [])]
    console.print(f"stored in {store.folder}: {', '.join(kinds)}", soft_wrap=True)
    stored = rows[rows["trial_id"].isin([trial.id for trial in trials])]
    failed = int((stored["status"] == "failed").sum())
    if end != "finished":
        left = choice.planned() - len(stored) + failed
        why = "interrupted" if end == "interrupted" else "budget spent"
        console.print(f"{why}, {counted(left, 'trial')} to go: the same command goes on from here", style="yellow")
        return EXIT_INTERRUPTED if end == "interrupted" else EXIT_SPENT
    if failed:
        console.print(f"{counted(failed, 'trial')} failed: the same command tries again", style="red")
        return EXIT_FAILED
    return 0


@app.command()
@suite_argument
@suite_options
@results_option
@click.option("--json", "as_json", is_flag=True, help="Print every trial as JSON instead.")
@click.option(
    "--changes", is_flag=True, help="Print what changes from each cell to the next instead: setting, before, after."
)
@click.option("--measure", is_flag=True, help="Also time a few batches of each kind of trial here: hours, memory.")
@data_option
@address_option
@concurrency_option
def plan(
    suite: str,
    sets: tuple[str, ...],
    only: tuple[str, ...],
    limit: int | None,
    smoke: bool,
    results: str | Path,
    as_json: bool,
    changes: bool,
    measure: bool,
    data_dir: Path,
    address: str,
    max_concurrent: int | None,
) -> None:
    """Show what a suite would run: cells, trials, resources, and what is done already. Nothing is trained.

    With [bold]--measure[/bold], also what it would take, here for one trial and with --address and --max-concurrent for
    all: early stopping and pruning make it less, trials that share a device or its memory slow each other down.
    """
    from raybench.grid import cells, counted, sizes
    from raybench.grid import changes as changes_of
    from raybench.objects import place
    from raybench.stages import is_done
    from raybench.stats import smallest_difference
    from raybench.store import Store

    if sum((as_json, changes, measure)) > 1:
        raise UserError("--json, --changes and --measure: each is a plan of its own: give one of them")
    choice = load_choice(suite, sets, only, limit, smoke)
    loaded, store = choice.suite, Store(place(results), choice.suite)
    done, damaged = store.done()
    known = store.ended()
    trials = choice.trials(known)
    warn(*damaged)
    if as_json:
        listed = [
            {"trial_id": t.id, "labels": t.labels, "status": done.get(t.id, "to run"), "settings": t.settings}
            for t in trials
        ]
        print(json.dumps(listed, indent=1))
        return
    from rich.table import Table as Grid
    from rich.text import Text

    out = literal()
    out.print(Text.assemble((loaded.name, "bold"), f"  {loaded.about}" if loaded.about else ""), soft_wrap=True)
    grid = Grid(box=None, header_style="bold", pad_edge=False)
    axes = [*loaded.names("compare"), *loaded.names("search")]
    for axis in axes:
        grid.add_column(axis, overflow="fold")
    if changes:
        for column in ("setting", "before", "after"):
            grid.add_column(column, overflow="fold")
        for trial, changed in changes_of(trials):
            named = [*map(str, (*trial.cell, *trial.point))]
            for texts in changed or [("", "", "")]:
                grid.add_row(*named, *texts)
                named = [""] * len(axes)
        out.print(grid)
        return
    if loaded.searches:
        grid.add_column("stage")
    grid.add_column("seeds", justify="right")
    grid.add_column("done", justify="right")
    grid.add_column("left", justify="right")
    for cell, point, members in cells(trials):
        ended = sum(is_done(loaded, trial, known) for trial in members)
        stage = [members[0].stage] if loaded.searches else []
        grid.add_row(*map(str, (*cell, *point)), *stage, str(len(members)), str(ended), str(len(members) - ended))
    out.print(grid)
    planned, ended = choice.planned(), sum(is_done(loaded, trial, known) for trial in trials)
    left = f"{ended:,} done, {planned - ended:,} to run"
    out.print(f"{counted(planned, 'trial')} ({sizes(loaded)}), {left}", soft_wrap=True)
    if len(trials) < planned:
        out.print(f"{len(trials)} of them are known by now: the others follow from how these end")
    needs: Counter[str] = Counter()
    longest: dict[str, TrainSettings] = {}  # of the trials with the same needs
    for _, _, members in cells(trials):
        typed = members[0].typed()
        need = _needs(typed.resources)
        needs[need] += len(members)
        longest[need] = max(longest.get(need, typed.train), typed.train, key=lambda train: train.planned_epochs)
    for need, count in needs.items():
        train = longest[need]
        epochs = "1 epoch" if train.planned_epochs == 1 else f"{train.planned_epochs} epochs"
        length = f"{epochs} of two batches" if train.smoke else epochs
        who = "each trial" if len(needs) == 1 else f"{count} of the trials"
        out.print(f"{who}: {need}, at most {length}")
    seeds = len(choice.seeds())
    if seeds < 2:
        out.print("1 seed can show no difference between cells: its spread is not known")
    else:
        out.print(
            f"{seeds} seeds can show a difference of {smallest_difference(seeds):.1f} standard deviations or more"
            " between two cells (t test, 95 %)",
            soft_wrap=True,
        )
    if measure:
        _show_cost(choice, store, out, data_dir, address, max_concurrent)


def _needs(resources: Resources) -> str:
    processes = "1 process" if resources.workers == 1 else f"{resources.workers} processes"
    cpus = "1 CPU" if resources.cpus == 1 else f"{resources.cpus} CPUs"
    return f"{processes} of {cpus} and {resources.gpus:g} GPUs"


def _show_cost(
    choice: Choice, store: Store, out: Console, data_dir: Path, address: str, max_concurrent: int | None
) -> None:
    """Print what the trials that are to run would take."""
    from rich.table import Table as Grid

    from raybench.connect import connect
    from raybench.live import busy, duration
    from raybench.measure import Meter, Row, estimate, rounds
    from raybench.room import slots_of
    from raybench.trial import device_name

    console = progress()
    with busy(console, "asking Ray for its CPUs and GPUs"), connect(address) as cluster:
        pass
    with busy(console, "measuring") as say:
        meter = Meter(choice.suite.source, data_dir, say, gpus=cluster.gpus > 0)
        todo = rounds(choice, store.ended())
        rows, wall = estimate(
            todo, meter.cost, lambda needs: slots_of(cluster, needs, max_concurrent), gpus=cluster.gpus > 0
        )
    total = Row()
    for row in rows.values():
        total.trials += row.trials
        total.epochs += row.epochs
        total.cpu_seconds += row.cpu_seconds
        total.gpu_seconds += row.gpu_seconds
    kinds = [kind for kind in ("cpu", "gpu") if getattr(total, f"{kind}_seconds")] or ["cpu"]
    units = [f"{kind.upper()} hours" for kind in kinds]

    def hours(row: Row) -> list[str]:
        return [f"{getattr(row, f'{kind}_seconds') / 3600:.3g}" for kind in kinds]

    grid = Grid(box=None, header_style="bold", pad_edge=False)
    for axis in choice.suite.names("compare"):
        grid.add_column(axis, overflow="fold")
    for column in ("to run", "epochs", "a trial", *units, "memory"):
        grid.add_column(column, justify="right")
    for cell, row in rows.items():
        numbers = (str(row.trials), f"{row.epochs:,}", duration(row.seconds / row.trials))
        grid.add_row(*map(str, cell), *numbers, *hours(row), f"{row.memory / 1e9:.2f} GB")
    devices = " and ".join(map(device_name, sorted(meter.devices or {"cpu"})))
    images = f"noise in place of {', '.join(sorted(meter.random))}" if meter.random else "the suite's images"
    out.print(
        f"\nmeasured on {devices} with {images}, all epochs, none slowed by others:",
        soft_wrap=True,
    )
    out.print(grid)
    out.print(
        f"{total.trials} trials, {total.epochs:,} epochs,"
        f" {' and '.join(map(' '.join, zip(hours(total), units, strict=True)))}:"
        f" {duration(wall)} on {cluster.cpus} CPUs and {cluster.gpus} GPUs, without Ray's start",
        soft_wrap=True,
    )


@app.command()
@click.argument("suites", metavar="SUITE...", nargs=-1, required=True)
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key. Repeatable.")
def validate(suites: tuple[str, ...], sets: tuple[str, ...]) -> int:
    """Check suite files to the last key: names, options of models and augmentations, axes, number of trials."""
    from raybench.grid import counted
    from raybench.plan import Choice
    from raybench.suite import find_suite, load

    problems = 0
    for name in suites:
        try:
            suite = load(find_suite(name), sets)
            choice = Choice(suite)
            trials = choice.trials({})
            from raybench.job import check_options

            check_options(suite, trials)
            print(f"{name}: ok, {counted(choice.planned(), 'trial')}")
        except UserError as error:
            print(f"raybench: {error}", file=sys.stderr)
            problems += 1
    return EXIT_USAGE if problems else 0
