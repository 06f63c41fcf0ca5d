"""What a person sees while a sweep runs: one live table on a terminal, a line per finished trial anywhere else.

Everything goes to stderr; stdout is for tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from raybench.grid import Trial
from raybench.records import FINISHED, EpochRow, Outcome, TrialRow

BAR_COLUMNS = 60
"""On a terminal that has fewer, the numbers of the bar would be cut off: the most important stand in its place."""
COLUMNS = {"epoch": 10, "train acc": 11, "val acc": 9, "for": 9}
"""What is shown of a running trial, with the columns of the terminal that it takes."""
LEFT_OUT = ("train acc", "for", "val acc")
"""What is left out where the terminal has no room for all, the first first."""


@contextmanager
def busy(console: Console, what: str) -> Iterator[Callable[[str], None]]:
    """Show ``what`` is being done until the ``with`` block ends, on a terminal; give a function that shows another.

    Rich's own ``console.status`` would put a stdout of its own in the place of the one there, and back: of no use to
    who redirects it meanwhile.
    """
    spinner = Spinner("dots", Text(what))
    with Live(spinner, console=console, refresh_per_second=10, transient=True, redirect_stdout=False):
        yield lambda words: spinner.update(text=Text(words))


@dataclass(slots=True)
class Running:
    """A trial between its start and its end."""

    trial: Trial
    since: float = field(default_factory=time.monotonic)
    last: EpochRow | None = None


class Watch:
    """Follows a sweep and shows it. Use it as a context, so that the terminal is given back whatever happens."""

    def __init__(self, console: Console, planned: int, done: int, slots: int) -> None:
        """``planned`` trials in all, ``done`` of them stored before this run began."""
        self.console, self.planned, self.done, self.slots = console, planned, done, slots
        self.begun = time.monotonic()
        self.ended_now = 0
        self.failures = 0
        self.last_failure: TrialRow | None = None
        self.best: tuple[float, str] | None = None
        """Test accuracy and name of a trial."""
        self.running: dict[str, Running] = {}
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("trials", total=planned, completed=done, rate="", left="?")
        self._live = Live(
            get_renderable=self._view, console=console, refresh_per_second=4, transient=True, redirect_stdout=False
        )

    def __enter__(self) -> Watch:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    # -- told by the scheduler ----------------------------------------------------------------------------------------

    def started(self, trial: Trial) -> None:
        self.running[trial.id] = Running(trial)

    def epoch(self, trial: Trial, row: EpochRow) -> None:
        self.running.setdefault(trial.id, Running(trial)).last = row

    def lost(self, trial: Trial, reason: str) -> None:
        self.running.pop(trial.id, None)
        self.say(f"{trial.name}: {reason}")

    def say(self, line: str) -> None:
        self.console.print(Text(line, "yellow"), highlight=False, soft_wrap=True)

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        row = outcome.row
        self.running.pop(trial.id, None)
        self.ended_now += 1
        if row.status == "failed":
            self.failures, self.last_failure = self.failures + 1, row
        accuracy = row.test_accuracy if row.status in FINISHED else None
        if accuracy is not None and (self.best is None or accuracy > self.best[0]):
            self.best = accuracy, trial.name
        self._bar.update(self._task, completed=self.done + self.ended_now, rate=self._rate(), left=self._left())
        if not self.console.is_terminal:
            self.console.print(self._line(trial, row), highlight=False, soft_wrap=True)

    # -- what it looks like -------------------------------------------------------------------------------------------

    def _rate(self) -> str:
        per_minute = 60 * self.ended_now / (time.monotonic() - self.begun)
        return f"{per_minute:.1f}/min"

    def seconds_left(self) -> float | None:
        """Return the time left, from the trials that ended since this run began; None before one has."""
        open_trials = self.planned - self.done - self.ended_now
        return open_trials * (time.monotonic() - self.begun) / self.ended_now if self.ended_now else None

    def _left(self) -> str:
        left = self.seconds_left()
        return "?" if left is None else duration(left)

    def _line(self, trial: Trial, row: TrialRow) -> Text:
        width = len(str(self.planned))
        line = Text(f"[{self.done + self.ended_now:{width}}/{self.planned}] {trial.name}: ")
        if row.status == "failed":
            return line.append(f"failed ({row.error_class}): {row.error}", "red")
        line.append(f"{row.status.replace('_', ' ')} after epoch {row.epochs}")
        if row.status in FINISHED:
            line.append(f", best {row.best_epoch}, val {row.val_accuracy:.4f}, test {row.test_accuracy:.4f}")
        return line.append(f", {duration(row.wall_seconds or 0)}, left {self._left()}")

    def _view(self) -> RenderableType:
        table = Table(box=None, expand=True, pad_edge=False, header_style="bold")
        table.add_column(f"running {len(self.running)} of {self.slots}", ratio=1, no_wrap=True, overflow="ellipsis")
        shown = list(self.running.values())[: max(3, self.console.height - 8)]
        names = self._columns(shown)
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        for running in shown:
            last = running.last
            texts = {
                "epoch": f"{last.epoch}/{running.trial.typed().train.planned_epochs}" if last else "starting",
                "train acc": f"{last.train_accuracy:.4f}" if last else "",
                "val acc": f"{last.val_accuracy:.4f}" if last else "",
                "for": duration(time.monotonic() - running.since),
            }
            table.add_row(Text(running.trial.name), *(texts[name] for name in names))
        brief = f"trials {self.done + self.ended_now}/{self.planned}, left {self._left()}"
        lines: list[RenderableType] = [self._bar if self.console.width >= BAR_COLUMNS else Text(brief), table]
        if self.best is not None:
            accuracy, name = self.best
            lines.append(Text(f"best test accuracy so far {accuracy:.4f}  {name}", "green"))
        if last_row := self.last_failure:
            text = f"{self.failures} failed, last ({last_row.error_class}): {last_row.error}"
            lines.append(Text(text, "red", no_wrap=True))
        return Group(*lines)

    def _columns(self, shown: list[Running]) -> list[str]:
        """Return the columns for which there is room beside the names of trials, or half the terminal if these are
        longer."""
        width, names = self.console.width, list(COLUMNS)
        room = width - min(width // 2, max((len(running.trial.name) for running in shown), default=0))
        for name in LEFT_OUT:
            if sum(COLUMNS[kept] for kept in names) > room:
                names.remove(name)
        return names


def duration(seconds: float) -> str:
    """Return ``4.2 s``, ``3:05`` or ``2:03:05``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
