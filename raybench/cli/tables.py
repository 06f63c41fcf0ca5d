"""Commands that read what is stored: summarize, check."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from raybench.cli.base import (
    EXIT_FAILED,
    FORMATS,
    app,
    progress,
    results_option,
    show,
    stored,
    suite_names,
)


@app.command()
@click.argument("suite", metavar="SUITE_OR_FOLDER", shell_complete=lambda *_: suite_names())
@results_option
@click.option("--format", type=click.Choice(FORMATS), default="table", show_default=True)
def summarize(suite: str, results: str | Path, format: str) -> None:
    """Print the table of what a suite's last run stored: n, mean, std, min, max and epochs per cell.

    Give a suite (its folder below --results is read) or a folder of results. Neither torch nor Ray is needed.
    """
    from raybench.summarize import summarize as make_table

    store, choice = stored(suite, results)
    rows, damaged = store.read()
    for line in damaged:
        progress().print(line, style="yellow", soft_wrap=True)
    show(make_table(rows, choice.suite, choice.trials(store.ended(failed=True))), format)


@app.command()
@click.argument("suite", metavar="SUITE", shell_complete=lambda *_: suite_names())
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
        store, choice = stored(suite, results)
        trials = choice.trials(store.ended(failed=True))
        rows, damaged = store.read()
        for line in damaged:
            progress().print(line, style="yellow", soft_wrap=True)
        rows = rows[rows["trial_id"].isin([trial.id for trial in trials])]
        print(f"{loaded.name}: {len(rows)} stored trials")
        findings += check_trials(rows)
    for finding in findings:
        print(f"  {finding}")
    return EXIT_FAILED if findings else 0
