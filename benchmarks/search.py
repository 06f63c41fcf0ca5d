"""ASHA with search-then-confirm beside the full grid: epochs and time to the same winner.

    python benchmarks/search.py --data-dir ~/cifar10 [--set train.epochs=18]

Runs benchmarks/search.yaml twice, as `raybench run` does: as it stands, and as the full grid, every point with every
seed to its last epoch. The full grid's winner of a cell has the best mean validation accuracy over its seeds. Where the
search chose another point, the last columns say what that costs, and how much seeds of the winner differ. CPU time is
that of all processes together, Ray's start and end included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rounds import Usage, machine, table

if TYPE_CHECKING:
    import pandas as pd

SUITE = Path(__file__).with_suffix(".yaml")
FULL = ("--set", "prune=null", "--set", "confirm=none")


def run(suite: Path, results: Path, *arguments: str) -> tuple[Usage, pd.DataFrame]:
    """Run the suite; return what that used, and its trials."""
    from raybench.store import Store
    from raybench.suite import load

    command = [sys.executable, "-m", "raybench.cli", "run", str(suite), "--results", str(results), *arguments]
    with Usage(command, stdout=subprocess.DEVNULL) as usage:
        pass
    if usage.process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {usage.process.returncode}")
    rows, _ = Store(results, load(suite)).read()
    return usage, rows


def report(searched: pd.DataFrame, full: pd.DataFrame) -> str:
    """Return for each cell the winner of both ways, and what the search's costs by the full grid's own numbers."""
    rows = []
    for model, grid in full.groupby("model"):
        means = grid.groupby("lr")["val_accuracy"].mean()
        best = means.idxmax()
        confirmed = searched[searched["model"].eq(model) & searched["stage"].eq("confirm")]
        chosen = confirmed["lr"].iloc[0]
        seeds = grid[grid["lr"].eq(best)]["val_accuracy"]
        rows.append(
            (
                model,
                f"{best:g}",
                f"{chosen:g}",
                f"{means[best]:.4f}",
                f"{means[chosen]:.4f}",
                f"{means[best] - means[chosen]:.4f}",
                f"{seeds.max() - seeds.min():.4f}",
            )
        )
    columns = ("cell", "winner of the grid: lr", "of the search", "its mean accuracy", "the search's", "difference")
    return table((*columns, "range of the grid's winner over seeds"), rows)


def costs(ways: list[tuple[str, Usage, pd.DataFrame]]) -> str:
    """Return what both ways cost."""
    rows = []
    for name, usage, trials in ways:
        epochs = int(trials["epochs_run"].sum())
        full = int(ways[-1][2]["epochs_run"].sum())
        pruned = int(trials["status"].eq("pruned").sum())
        row = (name, len(trials), pruned, epochs, f"{epochs / full:.2f}", f"{usage.seconds:.0f}", f"{usage.cpu:.0f}")
        rows.append(row)
    columns = ("way", "trials", "of which pruned", "epochs", "of the full grid's", "s", "CPU s")
    return table(columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="folder of CIFAR-10")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="as of raybench run")
    arguments = parser.parse_args()
    common = ["--data-dir", arguments.data_dir, *(word for value in arguments.set for word in ("--set", value))]
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        searched = run(SUITE, Path(name) / "searched", *common)
        full = run(SUITE, Path(name) / "full", *common, *FULL)
    print(f"\n{costs([('ASHA, then confirmed', *searched), ('full grid', *full)])}")
    print(f"\n{report(searched[1], full[1])}")
    settings = json.loads(full[1]["settings"].iloc[0])
    print(f"\n{settings['dataset']['train_size']:,} training images, {settings['train']['epochs']} epochs; {machine()}")


if __name__ == "__main__":
    main()
