"""Commands for a Ray cluster of several nodes on this machine: cluster up, status, down."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import rich_click as click

from raybench.cli.base import EXIT_FAILED, app, literal, progress, warn

if TYPE_CHECKING:
    from raybench.localcluster import LocalCluster, State


@app.group()
def cluster() -> None:
    """Start a Ray cluster of several nodes on this machine, to try one out, and end it.

    For one machine alone nothing needs to be started: [bold]raybench run[/bold] does it. For several machines there are
    recipes in [bold]cluster/[/bold], with a page that says which to take.
    """


@cluster.command()
@click.option("--nodes", type=click.IntRange(min=1), default=3, show_default=True, metavar="N", help="With the head.")
@click.option(
    "--cpus", type=click.IntRange(min=0), metavar="N", help="Of each node.  [default: this machine's, divided]"
)
@click.option(
    "--gpus",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Of each node, pretended: Ray hands them out, and trials of one process train on the CPU.",
)
@click.option("--token/--no-token", default=True, show_default=True, help="Let in only who has a token.")
@click.option("--port", type=click.IntRange(1, 65535), default=6379, show_default=True, help="Of the head.")
@click.option("--dashboard-port", type=click.IntRange(1, 65535), default=8265, show_default=True)
def up(nodes: int, cpus: int | None, gpus: int, token: bool, port: int, dashboard_port: int) -> None:
    """Start a cluster, and say how to use it.

    It stays until [bold]raybench cluster down[/bold]. The dashboard listens on this machine's loopback address alone.
    Ray's other ports are open to the network, and closed by your token (~/.ray/auth_token, made if there is none).
    """
    kept = _kept()
    if cpus is None:
        cpus = max(1, (os.cpu_count() or 1) // nodes)
    from raybench.live import busy

    with busy(progress(), "starting") as say:
        state = kept.up(nodes, cpus=cpus, gpus=gpus, port=port, dashboard_port=dashboard_port, token=token, say=say)
    print(f"{_size(state)} at {state.address}, dashboard {state.dashboard}")
    if token:
        print("The dashboard asks for your token once, `ray get-auth-token` prints it.")
        print("Ray's own commands, such as `ray status`, need it too: export RAY_AUTH_MODE=token")
    else:
        warn("WARNING: no token: whoever reaches a port of this machine can run code on it")
        print("In each shell that uses it, first: export RAY_AUTH_MODE=disabled")
    print(f"\nNext:\n\n  raybench run suites/quickstart.yaml --address {state.address}")
    if nodes > 1:
        print(f"  raybench cluster down --node {nodes - 1}  # while it runs: a node goes, the table becomes whole")
    print("  raybench cluster down")


@cluster.command()
def status() -> int:
    """Say whether a cluster is up, and what is left of it. Exit status 1 if none is."""
    from rich.table import Table as Grid

    state = _kept().state()
    if state is None or not state.alive:
        progress().print("none is up: `raybench cluster up` starts one")
        return EXIT_FAILED
    print(f"{_size(state)} at {state.address}, dashboard {state.dashboard}, {'token' if state.token else 'no token'}")
    grid = Grid(box=None, header_style="bold", pad_edge=False)
    for column in ("node", "", "CPUs", "GPUs", "process"):
        grid.add_column(column, justify="left" if column == "" else "right")
    for number, node in enumerate(state.nodes):
        role = ("worker" if number else "head") if node.alive else "gone"
        grid.add_row(str(number), role, str(node.cpus), str(node.gpus), str(node.pid))
    literal().print(grid)
    return 0


@cluster.command()
@click.option("--node", type=int, metavar="N", help="End only this one: from 1, the head goes with the cluster.")
def down(node: int | None) -> None:
    """End the cluster that `up` started, and remove its files; or one of its nodes, while trials run."""
    from raybench.live import busy

    with busy(progress(), "ending"):
        state = _kept().down(node)
    if state is None:
        print("none was up")
    elif node is None:
        print(f"{state.address} is down, nothing is left of it")
    else:
        left = sum(other.alive for other in state.nodes)
        print(f"node {node} is gone, {left} left")


def _kept() -> LocalCluster:
    from raybench.data import cache_folder
    from raybench.localcluster import LocalCluster

    return LocalCluster(cache_folder() / "cluster")


def _size(state: State) -> str:
    alive = [node for node in state.nodes if node.alive]
    nodes = "1 node" if len(alive) == 1 else f"{len(alive)} nodes"
    return f"{nodes}, {sum(node.cpus for node in alive)} CPUs, {sum(node.gpus for node in alive)} GPUs"
