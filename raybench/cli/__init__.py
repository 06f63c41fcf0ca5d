"""The command line. Each command imports what it needs inside itself, so that help and plans come at once.

stdout carries tables and JSON only; progress, notes and errors go to stderr. Exit status: 0 every trial has a finished
row, 1 some failed, 2 a usage or suite error, 3 a budget is spent and 130 interrupted, both resumable.

`base` has the group and what commands share; the other modules have the commands, which are listed in the order in
which they are imported here.
"""

from raybench.cli import running, jobs, cluster, tables, figures, weights, housekeeping  # isort: skip
from raybench.cli.base import app, main

__all__ = ["app", "cluster", "figures", "housekeeping", "jobs", "main", "running", "tables", "weights"]
