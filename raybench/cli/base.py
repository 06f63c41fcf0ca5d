"""The group of commands, how they end, and the options and steps that several of them share."""

from __future__ import annotations

import atexit
import errno
import gc
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import rich_click as click
from click.exceptions import Abort

from raybench import __version__
from raybench.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from raybench.plan import Choice
    from raybench.store import Store
    from raybench.table import Table

FORMATS = ["table", "markdown", "latex", "csv", "json", "html"]
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
    _open_what_is_closed()
    try:
        with _interruptible():
            status = app.main(prog_name="raybench", standalone_mode=False)
            sys.stdout.flush()  # what cannot be written is said here, not by Python as it ends
    except UserError as error:
        print(f"raybench: {error}", file=sys.stderr)
        status = EXIT_USAGE
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (Abort, KeyboardInterrupt):
        print("raybench: interrupted; the same command again goes on where this one stopped", file=sys.stderr)
        status = EXIT_INTERRUPTED
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries once more as it ends
        status = 128 + signal.SIGPIPE
        if error.errno == errno.ENOSPC:
            print(f"raybench: stdout: {error.strerror}", file=sys.stderr)
            status = EXIT_USAGE
    except SystemExit as end:  # click ends so where a pipe is closed, `raybench ... | head`: no trial has failed
        status = 128 + signal.SIGPIPE if end.code == 1 else end.code
    sys.exit(status if isinstance(status, int) else 0)


def _open_what_is_closed() -> None:
    """Put nowhere in the place of what is closed of stdin, stdout and stderr: the next file that is opened, such as one
    of results, would get its number, and with it what a library prints; and Ray does not start without a stderr."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # by their numbers: the lowest is given first
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # stays open


@atexit.register
def _end_at_once() -> None:
    """Spare Python its last look through all that libraries made, for cycles: a second, with PyTorch and Ray."""
    if "triton" not in sys.modules:  # takes what is not collected for leaks, and lists it
        gc.freeze()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM be as Ctrl-C, so that what was begun is put in order, and neither come at a wrong moment.

    In an import KeyboardInterrupt would leave Python's locks of imports taken, and another thread that imports, as one
    does that starts Ray, would wait for ever: where there are other threads it is raised when the import is over. What
    a library makes of it, such as an error of its own, is an interruption still.
    """
    raised = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        while frame is not None and threading.active_count() > 1:
            if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
                later = threading.Timer(0.05, signal.pthread_kill, [threading.main_thread().ident, number])
                later.daemon = True
                later.start()
                return
            frame = frame.f_back
        raised = True
        raise KeyboardInterrupt

    # A shell has what runs in its background ignore Ctrl-C.
    numbers = [signal.SIGTERM, *([] if signal.getsignal(signal.SIGINT) == signal.SIG_IGN else [signal.SIGINT])]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    except Exception as error:
        if raised:
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


class Place(click.Path):
    """A folder, or the URI of one, which is looked at when it is needed: other mistakes are said at once."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not str(value):
            self.fail("must be a folder, or the URI of one.", param, ctx)
        return value if "://" in str(value) else super().convert(value, param, ctx)


class Number(click.FloatRange):
    """A number in a range: nan, which is below and above nothing, is none."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number = float(super().convert(value, param, ctx))
        return self.fail(f"{value} is not a number.", param, ctx) if math.isnan(number) else number


results_option = click.option(
    "--results",
    type=Place(file_okay=False, path_type=Path),
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
    help="Where the images lie. `run` and `ood` download those that are missing, other commands ask for their folder.",
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
suite_argument = click.argument("suite", metavar="SUITE", shell_complete=lambda *_: suite_names())
stored_argument = click.argument("suite", metavar="SUITE_OR_FOLDER", shell_complete=lambda *_: suite_names())
format_option = click.option("--format", type=click.Choice(FORMATS), default="table", show_default=True)


def suite_names() -> list[str]:
    from raybench.suite import shipped_suites

    return list(shipped_suites())


def load_choice(name: str, sets: tuple[str, ...], only: tuple[str, ...], limit: int | None, smoke: bool) -> Choice:
    from raybench.plan import Choice
    from raybench.suite import find_suite, load

    choice = Choice(load(find_suite(name), sets, smoke=smoke), chosen(only), limit)
    choice.trials({})  # all that can be wrong is said at once
    return choice


def stored(name: str, results: str | Path) -> tuple[Store, Choice]:
    """Return the results called ``name`` (a suite's below ``results``, or a folder) and what was last run there."""
    from raybench.objects import place
    from raybench.plan import restore
    from raybench.store import SNAPSHOT, Store, read_snapshot
    from raybench.suite import find_suite, load

    folder = place(name)
    is_word = Path(name).parts == (name,) and name != ".."
    if is_word or not folder.is_dir():
        root = place(results)
        if (root / name).is_dir():  # whatever else is called so here
            folder = root / name
        elif not folder.is_dir():
            folder = root / load(find_suite(name)).name
    choice = restore(read_snapshot(folder), str(folder / SNAPSHOT))
    return Store(folder.parent, choice.suite, folder), choice  # a copy has a name of its own


def chosen(words: tuple[str, ...]) -> dict[str, list[str]]:
    only: dict[str, list[str]] = {}
    for word in words:
        axis, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--only {word}: must be axis=value, e.g. seed=0")
        only.setdefault(axis.strip(), []).append(value.strip())
    return only


def seconds_of(text: str) -> float:
    """Return the seconds of a time such as ``90m`` or ``1h30m``."""
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    match = re.fullmatch("".join(rf"(?:(\d+){unit})?" for unit in units), text)
    seconds = sum(int(n or 0) * unit for n, unit in zip(match.groups(), units.values(), strict=True)) if match else 0
    if not seconds:
        raise UserError(f"--budget {text}: must be a time such as 90m, 2h or 1h30m; the units are d, h, m and s")
    return seconds


def progress() -> Console:
    """Return the console for everything that is not the result."""
    return literal(stderr=True)


def literal(**options: Any) -> Console:
    """Return a console that prints text as it is: brackets and colons in a user's words are no markup."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, **options)


def warn(*lines: str) -> None:
    """Print what must not be missed, and is no error, to stderr: each on a line of its own, however long."""
    console = progress()
    for line in lines:
        console.print(line, style="yellow", soft_wrap=True)


def show(table: Table, format: str) -> None:
    """Print a table to stdout, and the warnings of one that has no room for them to stderr."""
    from rich.console import Console

    from raybench import table as tables

    if format == "table":
        tables.show(table, Console())
    else:
        print(tables.render(table, format), end="")
    if format == "csv":
        warn(*(f"WARNING: {line}" for line in table.warnings))
