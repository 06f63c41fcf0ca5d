"""The command line. Each command imports what it needs inside itself, so that help and plans come at once.

stdout carries tables and JSON only; progress, notes and errors go to stderr. Exit status: 0 every trial has a finished
row, 1 some failed, 2 a usage or suite error, 3 a budget is spent and 130 interrupted, both resumable.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from click.exceptions import Abort

from raybench import __version__
from raybench.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from raybench.plan import Choice
    from raybench.store import Store
    from raybench.summarize import Table

FORMATS = ["table", "markdown", "latex", "csv", "json"]
EXIT_FAILED, EXIT_USAGE, EXIT_SPENT, EXIT_INTERRUPTED = 1, 2, 3, 130

click.rich_click.TEXT_MARKUP = "rich"
click.rich_click.SHOW_ARGUMENTS = True


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="raybench")
def app() -> None:
    """Fair benchmark tables for image classifiers, from a suite file, on Ray.

    Start with [bold]raybench run suites/quickstart.yaml[/bold]: it needs no download and ends with a table.
    """


def main() -> None:
    """Run the command line; every `UserError` is one line on stderr and exit status 2."""
    try:
        status = app.main(prog_name="raybench", standalone_mode=False)
    except UserError as error:
        print(f"raybench: {error}", file=sys.stderr)
        status = EXIT_USAGE
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (Abort, KeyboardInterrupt):
        print("raybench: interrupted; the same command again goes on where this one stopped", file=sys.stderr)
        status = EXIT_INTERRUPTED
    except BrokenPipeError:  # `raybench ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    sys.exit(status if isinstance(status, int) else 0)


# ---------------------------------------------------------------------------------------------------------------------
# What several commands share

Command = Callable[..., Any]


def suite_options(command: Command) -> Command:
    """Add the options that choose a suite's trials."""
    for option in reversed(
        [
            click.option(
                "--set",
                "sets",
                multiple=True,
                metavar="KEY=VALUE",
                help="Override a key, e.g. `train.epochs=2`. Repeatable.",
            ),
            click.option(
                "--only",
                multiple=True,
                metavar="AXIS=VALUE",
                help="Only these values of an axis, e.g. `seed=0`. Repeatable.",
            ),
            click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N trials."),
            click.option(
                "--smoke",
                is_flag=True,
                help="One epoch of two batches per trial, into results of its own: does it all run?",
            ),
        ]
    ):
        command = option(command)
    return command


class _Place(click.Path):
    """A folder, or the URI of one, which is looked at when it is needed: other mistakes are said at once."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value if "://" in str(value) else super().convert(value, param, ctx)


results_option = click.option(
    "--results",
    type=_Place(file_okay=False, path_type=Path),
    default=Path("results"),
    show_default=True,
    envvar="RAYBENCH_RESULTS",
    help="Folder that holds a folder per suite, or its URI in object storage, e.g. `s3://bucket/prefix`.",
)
data_option = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("data"),
    show_default=True,
    envvar="RAYBENCH_DATA",
    help="Where the images lie, or are downloaded to.",
)
address_option = click.option(
    "--address",
    default="local",
    show_default=True,
    envvar="RAY_ADDRESS",
    show_envvar=True,
    help="`local` starts Ray here; `auto` joins the cluster this machine is part of; or host:port of a head.",
)
concurrency_option = click.option(
    "--max-concurrent", type=click.IntRange(min=1), metavar="N", help="At most N trials at once."
)
suite_argument = click.argument("suite", metavar="SUITE", shell_complete=lambda *_: _suite_names())


def _suite_names() -> list[str]:
    from raybench.suite import shipped_suites

    return list(shipped_suites())


def _load(name: str, sets: tuple[str, ...], only: tuple[str, ...], limit: int | None, smoke: bool) -> Choice:
    from raybench.plan import Choice
    from raybench.suite import find_suite, load

    choice = Choice(load(find_suite(name), sets, smoke=smoke), _only(only), limit)
    choice.trials({})  # all that can be wrong is said at once
    return choice


def _stored(name: str, results: str | Path) -> tuple[Store, Choice]:
    """Return the results called ``name`` (a folder, or a suite's below ``results``) and what was last run there."""
    from raybench.objects import place
    from raybench.plan import restore
    from raybench.store import SNAPSHOT, Store, read_snapshot
    from raybench.suite import find_suite, load

    folder = place(name)
    if not folder.is_dir():
        root = place(results)
        folder = root / (name if (root / name).is_dir() else load(find_suite(name)).name)
    choice = restore(read_snapshot(folder), str(folder / SNAPSHOT))
    return Store(folder.parent, choice.suite), choice


def _only(words: tuple[str, ...]) -> dict[str, list[str]]:
    only: dict[str, list[str]] = {}
    for word in words:
        axis, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--only {word}: must be axis=value, e.g. seed=0")
        only.setdefault(axis.strip(), []).append(value.strip())
    return only


def _seconds(text: str) -> float:
    """Return the seconds of a time such as ``90m`` or ``1h30m``."""
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    match = re.fullmatch("".join(rf"(?:(\d+){unit})?" for unit in units), text)
    seconds = sum(int(n or 0) * unit for n, unit in zip(match.groups(), units.values(), strict=True)) if match else 0
    if not seconds:
        raise UserError(f"--budget {text}: must be a time such as 90m, 2h or 1h30m; the units are d, h, m and s")
    return seconds


def _console() -> Console:
    """Return the console for everything that is not the result."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _show(table: Table, format: str) -> None:
    """Print a table to stdout."""
    from rich.console import Console

    from raybench import summarize

    if format == "table":
        summarize.show(table, Console())
    else:
        print(summarize.render(table, format), end="")


# ---------------------------------------------------------------------------------------------------------------------
# Commands


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
    type=click.FloatRange(min=0),
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
    verbose: bool,
) -> int:
    """Run a suite's missing trials, and print its table.

    SUITE is a file, or the name of a suite that ships with raybench ([bold]raybench list suites[/bold]). Trials that
    have a finished row are not run again: after an interruption, or with a budget spent, the same command goes on.
    """
    from raybench.objects import StoreError, place

    seconds = None if budget is None else _seconds(budget)  # before anything heavy: a typo is said at once
    choice = _load(suite, sets, only, limit, smoke)
    root = place(results)
    from raybench.run import Options, run_missing
    from raybench.store import Store
    from raybench.summarize import summarize as make_table

    checkpoints = None
    if storage:
        from raybench.checkpoint import Checkpoints

        checkpoints = Checkpoints(storage, checkpoint_every)
        checkpoints.check()
    console = _console()
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
        )
        end = run_missing(choice, store, options, console)
        rows, _ = store.read()
        trials = choice.trials(store.ended(failed=True))
    except OSError as error:
        raise UserError(f"{store.folder}: {error.strerror or error}: rows stored so far are whole; run again") from None
    except StoreError as error:
        raise UserError(f"{error}: rows stored so far are whole; run again") from None
    finally:
        store.close()
    _show(make_table(rows, choice.suite, trials), format)
    console.print(f"stored in {store.folder}: trials, epochs, predictions", soft_wrap=True)
    stored = rows[rows["trial_id"].isin([trial.id for trial in trials])]
    failed = int((stored["status"] == "failed").sum())
    if end != "finished":
        left = choice.planned() - len(stored) + failed
        count = "1 trial" if left == 1 else f"{left} trials"
        why = "interrupted" if end == "interrupted" else "budget spent"
        console.print(f"{why}, {count} to go: the same command goes on from here", style="yellow")
        return EXIT_INTERRUPTED if end == "interrupted" else EXIT_SPENT
    if failed:
        count = "1 trial" if failed == 1 else f"{failed} trials"
        console.print(f"{count} failed: the same command tries again", style="red")
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
    from raybench import plan as planning
    from raybench.objects import place
    from raybench.stats import smallest_difference
    from raybench.store import Store

    choice = _load(suite, sets, only, limit, smoke)
    loaded, store = choice.suite, Store(place(results), choice.suite)
    done, damaged = store.done()
    known = store.ended()
    trials = choice.trials(known)
    console = _console()
    for line in damaged:
        console.print(line, style="yellow", soft_wrap=True)
    if as_json:
        listed = [
            {"trial_id": t.id, "labels": t.labels, "status": done.get(t.id, "to run"), "settings": t.settings}
            for t in trials
        ]
        print(json.dumps(listed, indent=1))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Grid

    out = Console(highlight=False)
    out.print(f"[bold]{loaded.name}[/bold]  {loaded.about}", soft_wrap=True)
    grid = Grid(box=None, header_style="bold", pad_edge=False)
    axes = [*loaded.names("compare"), *loaded.names("search")]
    for axis in axes:
        grid.add_column(axis)
    if changes:
        for column in ("setting", "before", "after"):
            grid.add_column(column, overflow="fold")
        for trial, changed in planning.changes(trials):
            named = [*map(str, (*trial.cell, *trial.point))]
            for texts in changed or [("", "", "")]:
                grid.add_row(*named, *map(escape, texts))
                named = [""] * len(axes)
        out.print(grid)
        return
    if loaded.searches:
        grid.add_column("stage")
    grid.add_column("seeds", justify="right")
    grid.add_column("done", justify="right")
    grid.add_column("left", justify="right")
    for cell, point, members in planning.cells(trials):
        ended = sum(planning.is_done(loaded, trial, known) for trial in members)
        stage = [members[0].stage] if loaded.searches else []
        grid.add_row(*map(str, (*cell, *point)), *stage, str(len(members)), str(ended), str(len(members) - ended))
    out.print(grid)
    planned, ended = choice.planned(), sum(planning.is_done(loaded, trial, known) for trial in trials)
    out.print(f"{planned} trials ({planning.sizes(loaded)}), {ended} done, {planned - ended} to run", soft_wrap=True)
    if len(trials) < planned:
        out.print(f"{len(trials)} of them are known by now: the others follow from how these end")
    needs, train = trials[0].typed().resources, trials[0].typed().train
    epochs = "1 epoch" if train.planned_epochs == 1 else f"{train.planned_epochs} epochs"
    length = f"{epochs} of two batches" if train.smoke else epochs
    processes = "1 process" if needs.workers == 1 else f"{needs.workers} processes"
    cpus = "1 CPU" if needs.cpus == 1 else f"{needs.cpus} CPUs"
    out.print(f"each trial: {processes} of {cpus} and {needs.gpus:g} GPUs, at most {length}")
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


def _show_cost(
    choice: Choice, store: Store, out: Console, data_dir: Path, address: str, max_concurrent: int | None
) -> None:
    """Print what the trials that are to run would take."""
    from rich.table import Table as Grid

    from raybench.live import duration
    from raybench.measure import Meter, Row, estimate, rounds
    from raybench.schedule import connect, slots_of
    from raybench.trial import device_name

    console = _console()
    with console.status("asking Ray for its CPUs and GPUs"), connect(address) as cluster:
        pass
    with console.status("measuring") as status:
        meter = Meter(choice.suite.source, data_dir, status.update)
        todo = rounds(choice, store.ended())
        rows, wall = estimate(
            todo, meter.cost, lambda needs: slots_of(cluster, needs, max_concurrent), gpus=cluster.gpus > 0
        )
    total = Row()
    unit = "GPU hours" if cluster.gpus else "CPU hours"
    grid = Grid(box=None, header_style="bold", pad_edge=False)
    for axis in choice.suite.names("compare"):
        grid.add_column(axis)
    for column in ("to run", "epochs", "a trial", unit, "memory"):
        grid.add_column(column, justify="right")
    for cell, row in rows.items():
        numbers = (str(row.trials), f"{row.epochs:,}", duration(row.seconds / row.trials))
        hours, memory = f"{row.device_seconds / 3600:.3g}", f"{row.memory / 1e9:.2f} GB"
        grid.add_row(*map(str, cell), *numbers, hours, memory)
        total.trials += row.trials
        total.epochs += row.epochs
        total.device_seconds += row.device_seconds
    images = f"noise in place of {', '.join(sorted(meter.random))}" if meter.random else "the suite's images"
    out.print(
        f"\nmeasured on {device_name(meter.device.type)} with {images}, all epochs, none slowed by others:",
        soft_wrap=True,
    )
    out.print(grid)
    out.print(
        f"{total.trials} trials, {total.epochs:,} epochs, {total.device_seconds / 3600:.3g} {unit}:"
        f" {duration(wall)} on {cluster.cpus} CPUs and {cluster.gpus} GPUs, without Ray's start",
        soft_wrap=True,
    )


@app.command()
@click.argument("suites", metavar="SUITE...", nargs=-1, required=True)
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key. Repeatable.")
def validate(suites: tuple[str, ...], sets: tuple[str, ...]) -> int:
    """Check suite files to the last key: names, options of models and augmentations, axes, number of trials."""
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
            print(f"{name}: ok, {choice.planned()} trials")
        except UserError as error:
            print(f"raybench: {error}", file=sys.stderr)
            problems += 1
    return EXIT_USAGE if problems else 0


@app.command()
@click.argument("suite", metavar="SUITE_OR_FOLDER", shell_complete=lambda *_: _suite_names())
@results_option
@click.option("--format", type=click.Choice(FORMATS), default="table", show_default=True)
def summarize(suite: str, results: str | Path, format: str) -> None:
    """Print the table of what a suite's last run stored: n, mean, std, min, max and epochs per cell.

    Give a suite (its folder below --results is read) or a folder of results. Neither torch nor Ray is needed.
    """
    from raybench.summarize import summarize as make_table

    store, choice = _stored(suite, results)
    rows, damaged = store.read()
    for line in damaged:
        _console().print(line, style="yellow", soft_wrap=True)
    _show(make_table(rows, choice.suite, choice.trials(store.ended(failed=True))), format)


@app.command()
@click.argument("suite", metavar="SUITE", shell_complete=lambda *_: _suite_names())
@results_option
@click.option("--test-size", type=click.IntRange(min=1), metavar="N", help="Number of test images of the publication.")
def check(suite: str, results: str | Path, test_size: int | None) -> int:
    """Name published and measured rows that cannot be: an impossible std, a mean outside, accuracies that never vary.

    The suite's `reference` rows are checked by arithmetic alone, and what is stored of its last run, if anything.
    Exit status 1 if anything was found.
    """
    from raybench.check import check_suite, check_trials
    from raybench.objects import place
    from raybench.suite import find_suite, load

    loaded = load(find_suite(suite))
    print(f"{loaded.name}: {len(loaded.reference)} published rows")
    findings = check_suite(loaded, test_size)
    if (place(results) / loaded.name).is_dir():
        store, choice = _stored(suite, results)
        trials = choice.trials(store.ended(failed=True))
        rows, damaged = store.read()
        for line in damaged:
            _console().print(line, style="yellow", soft_wrap=True)
        rows = rows[rows["trial_id"].isin([trial.id for trial in trials])]
        print(f"{loaded.name}: {len(rows)} stored trials")
        findings += check_trials(rows)
    for finding in findings:
        print(f"  {finding}")
    return EXIT_FAILED if findings else 0


@app.command()
@click.argument("suite", metavar="SUITE_OR_FOLDER", shell_complete=lambda *_: _suite_names())
@results_option
def compact(suite: str, results: str | Path) -> None:
    """Merge the files of finished trials, as a run does by itself every 250 trials. No row is changed."""
    store, _ = _stored(suite, results)
    from raybench.store import read_snapshot

    store.open(read_snapshot(store.folder))
    try:
        print(f"{store.folder}: {store.compact()} trials merged")
    finally:
        store.close()


@app.command("list")
@click.argument("kind", type=click.Choice(["models", "augmentations", "datasets", "suites"]))
@click.option("--filter", "pattern", metavar="GLOB", help="For models: also timm's whose name matches, e.g. `resnet*`.")
def list_(kind: str, pattern: str | None) -> None:
    """List what a suite can name."""
    from rich.console import Console
    from rich.table import Table as Grid

    from raybench import registry

    grid = Grid(box=None, header_style="bold", pad_edge=False)
    if kind == "suites":
        from raybench.plan import Choice
        from raybench.suite import load, report_of, shipped_suites

        for column in ("report", "suite", "trials", "about"):
            grid.add_column(column, justify="right" if column == "trials" else "left")
        for suite in sorted(map(load, shipped_suites().values()), key=report_of):
            grid.add_row(report_of(suite) or "–", suite.name, str(Choice(suite).planned()), suite.about)
    else:
        entries = {"models": registry.MODELS, "augmentations": registry.AUGMENTATIONS, "datasets": registry.DATASETS}[
            kind
        ]
        grid.add_column(kind[:-1])
        grid.add_column("what it is")
        for name in entries.names():
            grid.add_row(name, (entries.get(name).__doc__ or "").strip().splitlines()[0])
        if kind == "models":
            if pattern:
                import timm

                for name in timm.list_models(pattern):
                    grid.add_row(f"timm:{name}", "")
            else:
                grid.add_row("timm:<name>", "Any model of timm; `--filter 'resnet*'` lists them.")
        if kind == "augmentations":
            grid.add_row(
                "torchvision:<name>", "A policy of torchvision, such as TrivialAugmentWide; one by one on the CPU."
            )
            grid.add_row("timm:<policy>", "Any policy of timm's training script, such as timm:rand-m9-mstd0.5.")
    Console(highlight=False).print(grid)


@app.command()
@data_option
def doctor(data_dir: Path) -> None:
    """Say what is installed and found: versions, devices, Ray, data."""
    from rich.console import Console
    from rich.table import Table as Grid

    from raybench.doctor import findings

    grid = Grid(box=None, show_header=False, pad_edge=False)
    for what, found in findings(data_dir):
        grid.add_row(what, found)
    Console(highlight=False).print(grid)


@app.command()
def schema() -> None:
    """Print the JSON Schema of suite files, for editors."""
    from raybench.suite import json_schema

    print(json.dumps(json_schema(), indent=1))


@app.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the line that switches on completion: put it into your shell's start-up file."""
    if shell == "fish":
        print("_RAYBENCH_COMPLETE=fish_source raybench | source")
    else:
        print(f'eval "$(_RAYBENCH_COMPLETE={shell}_source raybench)"')


if __name__ == "__main__":
    main()
