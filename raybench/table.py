"""A table as plain data, and its written forms: terminal, Markdown, LaTeX, CSV, JSON, HTML."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Literal

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.segment import Segments
from rich.table import Table as Grid
from rich.text import Text

from raybench.axes import Label
from raybench.errors import UserError

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
    spread: str = ""
    """The column with the spread of this one's mean: people see ``0.80 ± 0.02`` here and no column for the 0.02."""
    count: str = ""
    """The column with the number behind this one: people see ``0.80 (5)`` here and no column for the 5."""
    brief: bool = False
    """Whether people see a text up to its first colon: the rest is in the notes."""
    machine: bool = False
    """Whether the column is for programs alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table and all that must be said beside it.

    Raises:
        UserError: if two columns have one name, as those of values can that are called ``a/b`` and ``c``, ``a`` and
            ``b/c``.
    """

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
    part: str = ""
    """Which of a suite's tables this is, where there are several."""

    def __post_init__(self) -> None:
        for name, times in Counter(column.name for column in self.columns).items():
            if times > 1:
                raise UserError(
                    f"{self.title}: two columns would be called {name!r}: give the axis or its values other names"
                )


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
    by_name = {column.name: column for column in table.columns}
    parts = {name for column in table.columns for name in (column.of, column.spread, column.count)}
    shown = [column for column in table.columns if column.name not in parts and not column.machine]

    def cell(values: Mapping[str, Label | None], column: Column) -> str:
        value = values[column.name]
        text = missing if value is None else format(value, column.format)
        if column.brief:
            text = text.partition(":")[0]
        if column.of and value is not None and value != values[column.of]:
            text += f"/{values[column.of]}"
        if column.spread and values[column.spread] is not None:
            text += f" ± {cell(values, by_name[column.spread])}"
        if column.count and values[column.count] is not None:
            text += f" ({cell(values, by_name[column.count])})"
        return text

    named = [dict(zip(by_name, row, strict=True)) for row in table.rows]
    return shown, [[cell(values, column) for column in shown] for values in named]


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
        "±": r"$\pm$",
        "|": r"\textbar{}",
        "²": r"$^2$",
        "–": "--",
        "→": r"$\to$",
    }
)


def _latex(table: Table) -> str:
    columns, rows = _for_people(table, missing="--")
    frame = pd.DataFrame([_latex_row(row) for row in rows], columns=range(len(columns)))
    groups, names = (_latex_row([getattr(column, text) for column in columns]) for text in ("group", "title"))
    titles = [*zip(groups, names, strict=True)]
    grouped = any(group for group, _ in titles)
    frame.columns = pd.MultiIndex.from_tuples(titles) if grouped else pd.Index([title for _, title in titles])
    body = frame.style.hide(axis="index").to_latex(
        hrules=True,
        column_format="".join(column.align[0] for column in columns),
        multicol_align="c",
        position_float="centering",
        caption=". ".join((table.title, *table.warnings)).translate(TEX),
        label=f"tab:{'-'.join(filter(None, (table.suite, table.part)))}",
    )
    start, end = r"\begin{tabular}", r"\end{tabular}" + "\n"
    before, _, rest = body.partition(start)
    grid, _, after = rest.rpartition(end)
    return "".join((before, _latex_lines(table.header), start, grid, end, _latex_lines(table.notes), after))


def _latex_row(texts: Sequence[str]) -> list[str]:
    """Return cells of a row, of whose first a bracket or a star would be an argument of what ends the row above."""
    cells = [text.translate(TEX) for text in texts]
    return [re.sub(r"^(\s*)([\[*])", r"\1{\2}", cells[0]), *cells[1:]] if cells else []


def _latex_lines(lines: Sequence[str]) -> str:
    """Return lines as small text, as wide as the page's; nothing in it is markup, nor are two hyphens a dash."""
    if not lines:
        return ""
    words = ("-{}-".join(part.translate(TEX) for part in " ".join(line.split()).split("--")) for line in lines)
    text = [rf"{line}\par" for line in words]
    return "\n".join([r"\par\smallskip\parbox{\linewidth}{\footnotesize\raggedright", *text, r"}\par\smallskip", ""])


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


def _html(table: Table) -> str:
    """Return a fragment: a section with a heading, what is said, and a table whose numbers can be sorted by.

    ``data-name`` of a heading is the column's name for programs, ``data-value`` of a cell the unrounded number.
    """
    columns, rows = _for_people(table, missing="–")
    names = [column.name for column in table.columns]
    raw = [dict(zip(names, row, strict=True)) for row in table.rows]

    def listed(lines: Sequence[str], kind: str) -> list[str]:
        return [f'<ul class="{kind}">', *(f"<li>{escape(line)}</li>" for line in lines), "</ul>"] if lines else []

    def head(column: Column) -> str:
        return f'<th scope="col" class="{column.align}" data-name="{escape(column.name)}">{escape(column.title)}</th>'

    def cell(text: str, column: Column, values: Mapping[str, Label | None]) -> str:
        value = values[column.name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        attribute = f' data-value="{json.dumps(value)}"' if number else ""
        return f'<td class="{column.align}"{attribute}>{escape(text)}</td>'

    groups = [(group, len(list(members))) for group, members in groupby(columns, key=lambda column: column.group)]
    above = [
        f'<th scope="colgroup" colspan="{n}">{escape(group)}</th>' if group else f'<td colspan="{n}"></td>'
        for group, n in groups
    ]
    body = [
        f"<tr>{''.join(cell(text, column, values) for text, column in zip(texts, columns, strict=True))}</tr>"
        for texts, values in zip(rows, raw, strict=True)
    ]
    lines = [
        '<section class="raybench-table">',
        f"<h3>{escape(table.title)}</h3>",
        *listed(table.header, "header"),
        *(f'<p class="warning">WARNING: {escape(line)}</p>' for line in table.warnings),
        "<table>",
        "<thead>",
        *([f"<tr>{''.join(above)}</tr>"] if any(column.group for column in columns) else []),
        f"<tr>{''.join(map(head, columns))}</tr>",
        "</thead>",
        "<tbody>",
        *body,
        "</tbody>",
        "</table>",
        *listed(table.notes, "notes"),
        "</section>",
    ]
    return "\n".join(lines) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
    "json": _json,
    "html": _html,
}
"""The written forms of a table, besides the one that `show` prints."""
