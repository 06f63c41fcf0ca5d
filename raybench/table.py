"""A table as plain data, and its written forms: terminal, Markdown, LaTeX, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.segment import Segments
from rich.table import Table as Grid
from rich.text import Text

from raybench.axes import Label

WIDEST = 10_000
"""Characters; more than any table takes."""


@dataclass(frozen=True, slots=True)
class Column:
    """What a column holds and how people see it."""

    name: str
    """For programs, in CSV and JSON."""
    title: str
    format: str = ""
    """How a value is written for people, as `format` takes it."""
    align: Literal["left", "right"] = "right"
    group: str = ""
    """Stands above or before the titles of the neighbours that share it."""
    of: str = ""
    """The column with the whole of which this one counts a part: people see ``4/5`` here and no column for the 5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table and all that must be said beside it."""

    suite: str
    title: str
    header: tuple[str, ...]
    """What the numbers are."""
    warnings: tuple[str, ...]
    """Why they must not be taken at face value: shown where they cannot be missed."""
    columns: tuple[Column, ...]
    rows: tuple[tuple[Label | None, ...], ...]
    """Raw values, one per column; None where there is none, never NaN."""
    notes: tuple[str, ...]
    """What is missing from the numbers, and why."""


def show(table: Table, console: Console) -> None:
    """Print ``table`` for people. It takes the width it needs: no pipe or narrow terminal cuts a number off."""
    columns, rows = _for_people(table, missing="–")
    grid = Grid(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, show_edge=False)
    before = ""
    for column in columns:
        title = column.title if column.group == before else f"{column.group}\n{column.title}".lstrip()
        before, style = column.group, "cyan" if column.group else ""
        grid.add_column(
            Text(title), justify=column.align, vertical="bottom", no_wrap=True, style=style, header_style=style
        )
    for row in rows:
        grid.add_row(*map(Text, row))

    def say(line: str, style: str = "") -> None:
        console.print(Text(line, style), soft_wrap=not console.is_terminal)

    say(table.title, "bold")
    for line in table.header:
        say(line, "dim")
    for line in table.warnings:
        say(f"WARNING: {line}", "bold red")
    console.print()
    console.print(Segments(console.render(grid, console.options.update(max_width=WIDEST))), soft_wrap=True)
    console.print()
    for line in table.notes:
        say(line)


def render(table: Table, format: str) -> str:
    """Return ``table`` in one of `FORMATS`, ending with a newline."""
    return FORMATS[format](table)


def _for_people(table: Table, missing: str) -> tuple[list[Column], list[list[str]]]:
    """Return the columns that people see, and their cells as text, ``missing`` where there is no value."""
    at = {column.name: index for index, column in enumerate(table.columns)}
    wholes = {column.of for column in table.columns}
    shown = [column for column in table.columns if column.name not in wholes]

    def cell(row: tuple[Label | None, ...], column: Column) -> str:
        value = row[at[column.name]]
        if value is None:
            return missing
        text = format(value, column.format)
        return f"{text}/{row[at[column.of]]}" if column.of and value != row[at[column.of]] else text

    return shown, [[cell(row, column) for column in shown] for row in table.rows]


def _markdown(table: Table) -> str:
    columns, rows = _for_people(table, missing="–")
    titles = [f"{column.group} {column.title}".strip() for column in columns]
    lines = [[text.replace("|", r"\|") for text in line] for line in (titles, *rows)]
    widths = [max(3, *map(len, texts)) for texts in zip(*lines, strict=True)]
    rule = ["-" * (w - 1) + ":" if c.align == "right" else "-" * w for c, w in zip(columns, widths, strict=True)]
    padded = [
        [t.rjust(w) if c.align == "right" else t.ljust(w) for t, c, w in zip(line, columns, widths, strict=True)]
        for line in lines
    ]
    grid = [f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:])]
    blocks = [
        [f"**{table.title}**"],
        [f"- {line}" for line in table.header],
        [f"- **WARNING: {line}**" for line in table.warnings],
        grid,
        [f"- {line}" for line in table.notes],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


TEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
    }
)


def _latex(table: Table) -> str:
    columns, rows = _for_people(table, missing="--")
    frame = pd.DataFrame([[text.translate(TEX) for text in row] for row in rows])
    titles = [(column.group.translate(TEX), column.title.translate(TEX)) for column in columns]
    grouped = any(group for group, _ in titles)
    frame.columns = pd.MultiIndex.from_tuples(titles) if grouped else pd.Index([title for _, title in titles])
    body = frame.style.hide(axis="index").to_latex(
        hrules=True,
        column_format="".join(column.align[0] for column in columns),
        multicol_align="c",
        position_float="centering",
        caption=". ".join((table.title, *table.warnings)).translate(TEX),
        label=f"tab:{table.suite}",
    )
    said = "\n".join((*table.header, *table.notes))
    return "".join(f"% {line}\n" for line in said.splitlines()) + body


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.name for column in table.columns)
    writer.writerows(table.rows)
    return text.getvalue()


def _json(table: Table) -> str:
    names = [column.name for column in table.columns]
    content = {
        "suite": table.suite,
        "title": table.title,
        "header": table.header,
        "warnings": table.warnings,
        "columns": names,
        "rows": [dict(zip(names, row, strict=True)) for row in table.rows],
        "notes": table.notes,
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {"markdown": _markdown, "latex": _latex, "csv": _csv, "json": _json}
"""The written forms of a table, besides the one that `show` prints."""
