"""Commands that read what is stored: summarize, explain, check, stats, compare, report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from raybench.cli.base import (
    EXIT_FAILED,
    Number,
    app,
    data_option,
    format_option,
    results_option,
    show,
    stored,
    stored_argument,
    suite_argument,
    suite_names,
    warn,
)
from raybench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from raybench.grid import Trial
    from raybench.plan import Choice
    from raybench.store import Store
    from raybench.table import Table


@app.command()
@stored_argument
@results_option
@click.option(
    "--rows",
    "--by",
    metavar="AXIS,...",
    default="",
    help="Axes that label the rows, e.g. `model` or `model,lr`; trials that differ in others are pooled, and the table"
    " says so. All, if left out.",
)
@click.option(
    "--columns", metavar="AXIS,...", default="", help="Axes whose values become columns, e.g. `augmentation`."
)
@click.option(
    "--metric",
    metavar="METRIC",
    default="accuracy",
    show_default=True,
    help="accuracy, macro_f1, loss, val_accuracy, val_loss, train_accuracy, train_loss, epochs, images_per_second,"
    " train_seconds, wall_seconds or parameters.",
)
@click.option(
    "--rule",
    metavar="RULE",
    default="best_val",
    show_default=True,
    help="The epoch that counts: `best_val` as the suite chose it, `last`, or `peek`, the best on the test images, with"
    " how optimistic that is.",
)
@click.option("--ensemble", is_flag=True, help="The trials of each cell as one classifier, beside their mean.")
@format_option
def summarize(
    suite: str, results: str | Path, rows: str, columns: str, metric: str, rule: str, ensemble: bool, format: str
) -> None:
    """Print the table of what a suite's last run stored: n, mean, std, min, max and epochs per cell.

    Give a suite (its folder below --results is read) or a folder of results. Nothing is trained again, and neither
    torch nor Ray is needed.
    """
    from raybench import ensemble as ensembles
    from raybench import metrics
    from raybench.cells import find_cells
    from raybench.summarize import View
    from raybench.summarize import summarize as make_table

    view = View(rows=_axes(rows), columns=_axes(columns), metric=metric, rule=metrics.find_rule(rule))
    metrics.check(view.metric, view.rule)
    if ensemble and view != View():
        raise UserError(
            "--ensemble: combines the trials of each cell at the epoch that was stored: leave out --rows, --columns,"
            " --metric and --rule"
        )
    store, choice = stored(suite, results)
    trials, stored_rows = _read(store, choice)
    damaged: list[str] = []
    predictions = partial(store.predictions, damaged=damaged)
    if ensemble:
        cells = find_cells(stored_rows, choice.suite, trials, choice.seeds())
        table = ensembles.table(cells, choice.suite, predictions)
    else:
        of_epochs = ["trial_id", "epoch", *metrics.OF_EPOCHS]
        table = make_table(
            stored_rows,
            choice.suite,
            trials,
            view,
            seeds=choice.seeds(),
            epochs=read(store, "epochs", of_epochs) if view.rule != "best_val" else None,
            predictions=predictions,
        )
    warn(*damaged)
    show(table, format)


@app.command()
@stored_argument
@click.argument("words", metavar="AXIS=VALUE...", nargs=-1)
@results_option
@format_option
def explain(suite: str, words: tuple[str, ...], results: str | Path, format: str) -> None:
    """Say where the number of a cell comes from: its trials, and those left out and why; rule, data, versions, devices.

    The cell is named by its values of the axes that are compared, as in [bold]raybench explain table1 model=model1
    augmentation=none[/bold]; those with one value can be left out. The last line is the command that runs
    it again.
    """
    from raybench.explain import explain as make_table

    store, choice = stored(suite, results)
    trials, rows = _read(store, choice)
    show(make_table(rows, choice, trials, words, str(store.folder.parent)), format)


def _axes(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",") if word.strip())


def _read(store: Store, choice: Choice) -> tuple[list[Trial], pd.DataFrame]:
    """Return the trials of the last run that are known, and all rows; say which files are damaged."""
    return choice.trials(store.ended(failed=True)), read(store)


@app.command()
@suite_argument
@results_option
@click.option("--test-size", type=click.IntRange(min=1), metavar="N", help="Number of test images of the publication.")
@click.option(
    "--class-report",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Check a published class report too: the text that scikit-learn's `classification_report` prints.",
)
def check(suite: str, results: str | Path, test_size: int | None, class_report: Path | None) -> int:
    """Name published and measured rows that cannot be: an impossible std, a mean outside, accuracies that never vary.

    The suite's `reference` rows are checked by arithmetic alone, and what is stored of its last run, if anything.
    Exit status 1 if anything was found.
    """
    from raybench.check import check_suite, check_trials
    from raybench.classreport import AVERAGES, check_class_report, read_class_report
    from raybench.grid import counted
    from raybench.objects import place
    from raybench.suite import find_suite, load

    loaded = load(find_suite(suite))
    print(f"{loaded.name}: {counted(len(loaded.reference), 'published row')}")
    findings = check_suite(loaded, test_size)
    if (place(results) / loaded.name).is_dir():
        store, choice = stored(suite, results)
        trials, rows = _read(store, choice)
        rows = rows[rows["trial_id"].isin([trial.id for trial in trials])]
        print(f"{loaded.name}: {counted(len(rows), 'stored trial')}")
        findings += check_trials(rows)
    if class_report:
        report = read_class_report(class_report.read_text(encoding="utf-8", errors="replace"), str(class_report))
        print(f"{class_report}: {sum(row['class'] not in ('accuracy', *AVERAGES) for row in report)} classes")
        findings += check_class_report(report)
    for finding in findings:
        print(f"  {finding}")
    return EXIT_FAILED if findings else 0


# ---------------------------------------------------------------------------------------------------------------------
# What the numbers show


def question_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what is asked of cells over their seeds."""
    for option in reversed(
        [
            click.option(
                "--metric",
                default="accuracy",
                show_default=True,
                metavar="METRIC",
                help="E.g. `val_loss` or `images_per_second`: those of `summarize`, but for macro_f1.",
            ),
            click.option(
                "--test",
                type=click.Choice(["welch", "paired", "sign-flip"]),
                default="welch",
                show_default=True,
                help="Over seeds: Welch's t test; or over the seeds that two cells share, the paired t test or the"
                " exact permutation test.",
            ),
            click.option(
                "--confidence",
                type=Number(0.5, 1, max_open=True),
                default=0.95,
                show_default=True,
                metavar="SHARE",
                help="Of the intervals; tests have the level 1 minus it.",
            ),
        ]
    ):
        command = option(command)
    return command


@app.command()
@stored_argument
@results_option
@question_options
@click.option(
    "--over",
    type=click.Choice(["seeds", "images", "both"]),
    default="seeds",
    show_default=True,
    help="What would be drawn again: other seeds; other test images for the trials as they are, from the stored"
    " predictions; or both.",
)
@click.option(
    "--interval",
    type=click.Choice(["t", "bootstrap"]),
    help="Student's t, which holds its level with few seeds (the default over seeds), or the percentile bootstrap.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Of the bootstrap's draws.  [default: 0]")
@click.option(
    "--pairs",
    nargs=2,
    multiple=True,
    metavar="A B",
    help="Compare these two cells, called as in the table, e.g. `--pairs mlp/none mlp/mild`. Repeatable; by default all"
    " with all.",
)
@click.option(
    "--table",
    "parts",
    type=click.Choice(["cells", "pairs", "effects"]),
    multiple=True,
    help="Only this table. Repeatable.",
)
@format_option
def stats(
    suite: str,
    results: str | Path,
    metric: str,
    test: str,
    confidence: float,
    over: str,
    interval: str | None,
    seed: int | None,
    pairs: tuple[tuple[str, str], ...],
    parts: tuple[str, ...],
    format: str,
) -> None:
    """Say what a suite's stored numbers can show: intervals, which cells differ, how much each axis matters.

    Cells that share a letter are not told apart; p values are corrected for their number by Holm's method. A test that
    cannot reach its level with so few seeds says so and has no p value. Neither torch nor Ray is needed.
    """
    from raybench.cells import find_cells
    from raybench.inference import tables
    from raybench.question import Question

    question = Question(
        metric=metric,
        test=test,  # type: ignore[arg-type]
        over=over,  # type: ignore[arg-type]
        interval=interval or ("t" if over == "seeds" else "bootstrap"),  # type: ignore[arg-type]
        confidence=confidence,
        seed=seed or 0,
    )
    if seed is not None and question.interval == "t":
        raise UserError(f"--seed {seed}: nothing is drawn: goes with --interval bootstrap, --over images or both")
    one_table(parts, format, "cells, pairs or effects")
    store, choice = stored(suite, results)
    trials, rows = _read(store, choice)
    cells = find_cells(rows, choice.suite, trials, choice.seeds())
    predictions = None
    if over != "seeds":
        predictions = read(store, "predictions", ["trial_id", "index", "label", "prediction"])
    made = tables(cells, choice.suite.name, question, pairs=pairs, predictions=predictions)
    show_parts(made, parts, format)


@app.command()
@click.argument("first", metavar="FIRST", shell_complete=lambda *_: suite_names())
@click.argument("second", metavar="SECOND", shell_complete=lambda *_: suite_names())
@results_option
@question_options
@click.option(
    "--table", "parts", type=click.Choice(["changes", "cells"]), multiple=True, help="Only this table. Repeatable."
)
@format_option
def compare(
    first: str,
    second: str,
    results: str | Path,
    metric: str,
    test: str,
    confidence: float,
    parts: tuple[str, ...],
    format: str,
) -> int:
    """Say what changed between two results, in code, data, versions and settings, and which cells differ beyond noise.

    Give two folders of results, such as `before/quickstart` and `results/quickstart`, or two suites below --results.
    Cells are matched by their labels. Exit status 1 if any differs beyond noise, 0 if none does. Neither torch nor Ray
    is needed.
    """
    from raybench.compare import Side
    from raybench.compare import compare as put_side_by_side
    from raybench.question import Question

    question = Question(metric=metric, test=test, confidence=confidence)  # type: ignore[arg-type]
    one_table(parts, format, "changes or cells")
    old, new = (stored(name, results) for name in (first, second))
    sides = [
        Side(name, choice.suite, read(store), choice.trials(store.ended(failed=True)), choice.seeds())
        for name, (store, choice) in ((first, old), (second, new))
    ]
    comparison = put_side_by_side(sides[0], sides[1], question)
    show_parts(comparison.tables, parts, format)
    return EXIT_FAILED if comparison.differs else 0


def read(store: Store, kind: Any = "trials", columns: list[str] | None = None) -> pd.DataFrame:
    """Return what is stored, and say on stderr which files cannot be read."""
    rows, damaged = store.read(kind, columns)
    warn(*damaged)
    return rows


def one_table(parts: tuple[str, ...], format: str, known: str) -> None:
    if format == "csv" and len(set(parts)) != 1:
        raise UserError(f"--format csv: holds one table: add --table {known}")


def show_parts(tables: Mapping[str, Table], parts: tuple[str, ...], format: str) -> None:
    """Print several tables, or the ``parts`` that were asked for; as JSON one object with each under its name."""
    from raybench.table import render

    chosen = {name: table for name, table in tables.items() if not parts or name in parts}
    if format == "json":
        print(json.dumps({n: json.loads(render(t, format)) for n, t in chosen.items()}, indent=2, ensure_ascii=False))
        return
    for number, table in enumerate(chosen.values()):
        if number:
            print()
        show(table, format)


@app.command()
@stored_argument
@results_option
@data_option
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where to write it; by default report.html beside the results.",
)
@click.option("--gradcam", is_flag=True, help="Draw Grad-CAM too, of a trial whose weights were kept: needs torch.")
def report(suite: str, results: str | Path, data_dir: Path, output: Path | None, gradcam: bool) -> None:
    """Write one HTML file of what a suite's last run stored: tables, figures, trials, failures, provenance.

    Give a suite (its folder below --results is read) or a folder of results. The file needs no network and no other
    file; where the dataset lies in --data-dir it has the names of the classes and test images too. Neither torch nor
    Ray is needed, but for --gradcam.
    """
    from raybench.cli.figures import with_data
    from raybench.cli.weights import looked
    from raybench.figures import collect
    from raybench.report import report as make_report

    store, choice = stored(suite, results)
    found = collect(store, choice)
    try:
        found = with_data(found, data_dir)
    except UserError as error:
        warn(f"without images and names of classes: {error}")
    given = {}
    if gradcam:
        given["gradcam"] = looked(found, store, data_dir, None, None, 16, "any")
    file = output or store.folder / "report.html"
    try:
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(make_report(store, choice, found, given).encode())
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror or error}; choose another file with -o") from None
    print(file)
