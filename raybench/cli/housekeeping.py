"""Commands that show or tidy what there is: compact, list, doctor, schema, completion."""

from __future__ import annotations

import json
from pathlib import Path

import rich_click as click

from raybench.cli.base import app, data_option, literal, results_option, stored, stored_argument, warn


@app.command()
@stored_argument
@results_option
def compact(suite: str, results: str | Path) -> None:
    """Merge the files of finished trials, as a run does by itself every 250 trials. No row is changed."""
    store, _ = stored(suite, results)
    from raybench.grid import counted
    from raybench.store import read_snapshot

    store.open(read_snapshot(store.folder))
    try:
        print(f"{store.folder}: {counted(store.compact(), 'trial')} merged")
        warn(*store.done()[1])
    finally:
        store.close()


@app.command("list")
@click.argument("kind", type=click.Choice(["models", "augmentations", "datasets", "suites"]))
@click.option("--filter", "pattern", metavar="GLOB", help="For models: also timm's whose name matches, e.g. `resnet*`.")
def list_(kind: str, pattern: str | None) -> None:
    """List what a suite can name."""
    from rich.table import Table as Grid

    from raybench import registry

    grid = Grid(box=None, header_style="bold", pad_edge=False)
    if kind == "suites":
        from raybench.plan import Choice
        from raybench.suite import load, report_of, shipped_suites

        for column in ("report", "suite", "trials", "about"):
            grid.add_column(column, justify="right" if column == "trials" else "left", overflow="fold")
        for suite in sorted(map(load, shipped_suites().values()), key=report_of):
            grid.add_row(report_of(suite) or "–", suite.name, str(Choice(suite).planned()), suite.about)
    else:
        entries = {"models": registry.MODELS, "augmentations": registry.AUGMENTATIONS, "datasets": registry.DATASETS}[
            kind
        ]
        grid.add_column(kind[:-1], overflow="fold")
        grid.add_column("what it is", overflow="fold")
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
    literal().print(grid)


@app.command()
@data_option
def doctor(data_dir: Path) -> None:
    """Say what is installed and found: versions, devices, Ray, data."""
    from rich.table import Table as Grid

    from raybench.doctor import findings

    grid = Grid(box=None, show_header=False, pad_edge=False)
    for column in ("what", "found"):
        grid.add_column(column, overflow="fold")  # addresses to fetch data from are long
    for what, found in findings(data_dir):
        grid.add_row(what, found)
    literal().print(grid)


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
