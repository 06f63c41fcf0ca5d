"""Commands for clusters of others: submit, status, stop."""

from __future__ import annotations

import sys
import time
from typing import Any

import rich_click as click
from click.core import ParameterSource

from raybench.cli.base import EXIT_INTERRUPTED, app, literal, load_choice, progress, seconds_of
from raybench.cli.running import run

dashboard_option = click.option(
    "--address",
    default="auto",
    show_default=True,
    envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"],
    show_envvar=True,
    help="The cluster's dashboard, such as `http://head:8265`; `auto` on one of its machines.",
)
follow_option = click.option(
    "--follow", is_flag=True, help="Show what the job prints, on stderr, and end with its exit status."
)
WIDE = 1000
"""Columns of output that is no terminal: no path or name is cut in two."""
OWN = ("results", "data_dir", "address")
"""Options of `run` that mean another place here."""


@app.command(params=[param for param in run.params if param.name not in OWN])
@click.option(
    "--results",
    metavar="FOLDER_OR_URI",
    help="A full path on the head of the cluster, or `s3://...`. Left out: its $RAYBENCH_RESULTS, or ~/results there.",
)
@click.option(
    "--data-dir",
    metavar="FOLDER",
    help="A full path on the head, where the images lie. Left out: its $RAYBENCH_DATA, or ~/data there.",
)
@dashboard_option
@follow_option
def submit(
    suite: str,
    results: str | None,
    data_dir: str | None,
    address: str,
    follow: bool,
    **options: Any,
) -> int:
    """Run a suite as a job of a Ray cluster, and print the job's id.

    The suite travels there with what it extends and the modules it imports; raybench itself must be installed there,
    or is sent along with [bold]--ship[/bold]. All options of [bold]raybench run[/bold] are passed on. The same command
    again goes on where a job was stopped.
    """
    from raybench.jobs import Jobs, check_place

    for option, place in (("--results", results), ("--storage", options["storage"]), ("--data-dir", data_dir)):
        if place is not None:
            check_place(option, place, uri=option != "--data-dir")
    if options["budget"]:
        seconds_of(options["budget"])
    choice = load_choice(suite, *(options[name] for name in ("sets", "only", "limit", "smoke")))
    words: list[str] = []
    context = click.get_current_context(silent=False)
    assert context is not None
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        if param.name in options and source is not ParameterSource.DEFAULT:
            words += as_words(param, options[param.name])
    jobs = Jobs(address)
    job_id = jobs.submit(choice.suite, words, results=results, data_dir=data_dir, ship=options["ship"])
    print(job_id, flush=True)
    if follow:
        return _follow(jobs, job_id)
    progress().print(f"raybench status {job_id} shows how it goes, --follow what it prints", soft_wrap=True)
    return 0


def as_words(param: click.Parameter, value: Any) -> list[str]:
    """Return an option as it was given on the command line."""
    name = param.opts[0]
    if getattr(param, "is_flag", False):
        return [name] if value else []
    values = value if param.multiple else [value]
    return [word for one in values for word in (name, str(one))]


def _follow(jobs: Any, job_id: str) -> int:
    try:
        code: int = jobs.follow(job_id, lambda text: print(text, end="", file=sys.stderr, flush=True))
        return code
    except KeyboardInterrupt:
        console = progress()
        console.print(f"{job_id} goes on: raybench stop {job_id} would stop it", style="yellow", soft_wrap=True)
        return EXIT_INTERRUPTED


@app.command()
@click.argument("job", required=False)
@dashboard_option
@follow_option
def status(job: str | None, address: str, follow: bool) -> int:
    """List the runs of raybench on a cluster, or show JOB.

    Those of [bold]raybench run --address[/bold] are listed too, under the number that Ray gave them.
    """
    from rich.table import Table as Grid

    from raybench.errors import UserError
    from raybench.jobs import Jobs
    from raybench.live import duration

    if follow and job is None:
        raise UserError("--follow: name the job: raybench status lists them")
    jobs = Jobs(address)
    if follow and job is not None:
        return _follow(jobs, job)
    listed = jobs.all() if job is None else [jobs.find(job)]
    if not listed:
        progress().print(f"no run of raybench at {address}", soft_wrap=True)
        return 0
    grid = Grid(box=None, header_style="bold", pad_edge=False)
    for column in ("job", "suite", "state", "for", "submitted by", "results"):
        grid.add_column(column, justify="right" if column == "for" else "left", overflow="fold")
    for one in listed:
        took = "" if one.began is None else duration((one.ended or time.time()) - one.began)
        grid.add_row(one.id, one.suite, one.state, took, one.submitted_by, one.results)
    literal(width=None if sys.stdout.isatty() else WIDE).print(grid)
    return 0


@app.command()
@click.argument("job")
@dashboard_option
def stop(job: str, address: str) -> None:
    """Stop JOB as Ctrl-C would: running trials are left, what is stored stays, and submitting it again goes on."""
    from raybench.jobs import Jobs

    ended = Jobs(address).stop(job)
    progress().print(f"{job}: {ended.state}", soft_wrap=True)
