from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made import objects
from rich.console import Console

from raybench.errors import UserError
from raybench.table import FORMATS, Column, Table, render, show

HEADER = (
    "accuracy: share of the test images, 0 to 1; selection rule: the weights of the epoch with the best val_accuracy",
    "validation images: size 100",
)


@pytest.fixture
def small() -> Table:
    """Two cells, of which one lacks two of three trials and has no published row."""
    columns = (
        Column("model", "model", align="left"),
        Column("augmentation", "augmentation", align="left"),
        Column("n", "n", of="planned"),
        Column("planned", "planned"),
        *(Column(name, name, ".4f") for name in ("mean", "std", "min", "max")),
        Column("epochs", "epochs", ".1f"),
        Column("published_mean", "mean", ".4f", group="published"),
        Column("published_std", "std", ".4f", group="published"),
        Column("published_epochs", "epochs", ".1f", group="published"),
        Column("difference", "difference", "+.4f"),
    )
    return Table(
        suite="small_test",
        title="small_test: 50 % of two models",
        header=HEADER,
        warnings=(),
        columns=columns,
        rows=(
            ("model1", "none", 3, 3, 0.625, 0.125, 0.5, 0.75, 6.0, 0.5, 0.25, 10.0, 0.125),
            ("small_cnn", "none", 1, 3, 0.75, None, 0.75, 0.75, 5.0, None, None, None, None),
        ),
        notes=(
            "1 trial failed, out_of_memory: small_cnn/none/0.001/s1 with CUDA out of memory",
            "1 trial not run yet",
        ),
    )


def test_two_columns_of_one_name_are_refused(small: Table) -> None:
    columns = (dataclasses.replace(small.columns[0], name="mean"), *small.columns[1:])
    message = (
        "small_test: 50 % of two models: two columns would be called 'mean': give the axis or its values other names"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        dataclasses.replace(small, columns=columns)


# ---------------------------------------------------------------------------------------------------------------------
# Formats


def shown(table: Table, width: int = 80, **options: Any) -> str:
    text = io.StringIO()
    show(table, Console(file=text, width=width, **options))
    return text.getvalue()


def test_terminal(small: Table) -> None:
    lines = shown(small, width=120).splitlines()
    assert lines[0] == small.title
    assert lines[1:3] == list(small.header)
    assert [line.rstrip() for line in lines[4:9]] == [
        "                                                                      published",
        "model      augmentation    n    mean     std     min     max  epochs       mean     std  epochs  difference",
        "─" * 107,
        "model1     none            3  0.6250  0.1250  0.5000  0.7500     6.0     0.5000  0.2500    10.0     +0.1250",
        "small_cnn  none          1/3  0.7500       –  0.7500  0.7500     5.0          –       –       –           –",
    ]
    assert lines[10:] == list(small.notes)


def test_a_pipe_of_80_characters_cuts_nothing(small: Table) -> None:
    assert shown(small, width=80) == shown(small, width=200)
    # On a narrow terminal prose is wrapped between words, numbers stay whole.
    assert "small_cnn  none          1/3  0.7500       –" in shown(small, width=40, force_terminal=True, no_color=True)


def test_a_warning_is_marked_in_every_format_for_people(small: Table) -> None:
    table = dataclasses.replace(small, warnings=("all < 5 % are <b>guesses</b>",))
    assert "WARNING: all < 5 % are <b>guesses</b>\n" in shown(table)
    assert "- **WARNING: all < 5 % are <b>guesses</b>**\n" in render(table, "markdown")
    assert r"\caption{small\_test: 50 \% of two models. all \textless{} 5 \% are" in render(table, "latex")
    assert '<p class="warning">WARNING: all &lt; 5 % are &lt;b&gt;guesses&lt;/b&gt;</p>' in render(table, "html")
    assert json.loads(render(table, "json"))["warnings"] == list(table.warnings)


# ---------------------------------------------------------------------------------------------------------------------
# Columns that people see as one


@pytest.fixture
def pivot(small: Table) -> Table:
    """One value of a pivot: mean, spread and count in one column; what programs alone see; a verdict with a reason."""
    columns = (
        Column("model", "model", align="left"),
        Column("none_n", "n", of="none_planned"),
        Column("none_planned", "planned"),
        Column("none_mean", "none", ".2f", group="augmentation", spread="none_std", count="none_n"),
        Column("none_std", "std", ".3f"),
        Column("none_min", "min", ".2f", machine=True),
        Column("verdict", "verdict", align="left", brief=True),
    )
    rows = (
        ("a", 3, 3, 0.625, 0.125, 0.5, "not comparable: too few"),
        ("b", 1, 3, 0.75, None, 0.75, "consistent"),
        ("c", 0, 3, None, None, None, None),
        ("d", None, None, None, None, None, None),
    )
    return dataclasses.replace(small, columns=columns, rows=rows)


def test_mean_spread_and_count_are_one_for_people(pivot: Table) -> None:
    assert [line.rstrip() for line in shown(pivot).splitlines()[4:11]] == [
        "           augmentation",
        "model              none  verdict",
        "─" * 39,
        "a      0.62 ± 0.125 (3)  not comparable",
        "b            0.75 (1/3)  consistent",
        "c               – (0/3)  –",
        "d                     –  –",
    ]
    assert "| a     |  0.62 ± 0.125 (3) |" in render(pivot, "markdown")
    assert r"a & 0.62 $\pm$ 0.125 (3) & not comparable \\" in render(pivot, "latex")


def test_programs_get_every_number_of_its_own(pivot: Table) -> None:
    first, second, *_ = csv.DictReader(io.StringIO(render(pivot, "csv")))
    assert list(first) == ["model", "none_n", "none_planned", "none_mean", "none_std", "none_min", "verdict"]
    assert list(first.values()) == ["a", "3", "3", "0.625", "0.125", "0.5", "not comparable: too few"]
    assert (second["none_n"], second["none_std"]) == ("1", "")
    assert json.loads(render(pivot, "json"))["rows"] == objects(pivot)


# ---------------------------------------------------------------------------------------------------------------------
# HTML


class Reader(HTMLParser):
    """Reads a fragment: the tags in their order, the rows of its tables as (text, number) pairs, unbalanced tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.rows: list[list[tuple[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append(("", dict(attributes).get("data-value")))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            text, value = self.rows[-1][-1]
            self.rows[-1][-1] = (text + data, value)


def test_html_is_a_table_that_can_be_sorted(small: Table) -> None:
    text = render(small, "html")
    read = Reader(text)
    assert [read.tags.count(tag) for tag in ("section", "h3", "table", "thead", "tbody", "tr")] == [1, 1, 1, 1, 1, 4]
    assert [text for text, _ in read.rows[0]] == ["", "published", ""]
    assert '<td colspan="8"></td><th scope="colgroup" colspan="3">published</th><td colspan="1"></td>' in text
    assert [text for text, _ in read.rows[1]] == (
        ["model", "augmentation", "n", "mean", "std", "min", "max", "epochs", "mean", "std", "epochs", "difference"]
    )
    assert read.rows[2][:5] == [
        ("model1", None), ("none", None), ("3", "3"), ("0.6250", "0.625"), ("0.1250", "0.125")
    ]  # fmt: skip
    assert read.rows[3][2:5] == [("1/3", "1"), ("0.7500", "0.75"), ("–", None)]
    assert all(f"<li>{line}</li>" in text for line in (*small.header, *small.notes))


def test_html_of_a_pivot_sorts_by_the_mean(pivot: Table) -> None:
    assert Reader(render(pivot, "html")).rows[2] == [
        ("a", None),
        ("0.62 ± 0.125 (3)", "0.625"),
        ("not comparable", None),
    ]


def test_html_escapes_everything(small: Table) -> None:
    evil = "</td><script>alert('x')</script>\"&"
    first, *others = small.columns
    column = dataclasses.replace(first, name=evil, title=evil, group=evil)
    table = Table(
        suite=evil,
        title=evil,
        header=(evil,),
        warnings=(evil,),
        columns=(column, *others),
        rows=tuple((evil, *row[1:]) for row in small.rows),
        notes=(evil,),
    )
    text = render(table, "html")
    read = Reader(text)
    assert "script" not in read.tags
    assert [row[0][0] for row in read.rows] == [evil] * 4
    assert "<script" not in text and text.count("&lt;script&gt;") == 9


def test_html_has_no_second_row_of_headings_where_nothing_is_grouped(small: Table) -> None:
    columns = tuple(dataclasses.replace(column, group="") for column in small.columns)
    assert len(Reader(render(dataclasses.replace(small, columns=columns), "html")).rows) == 3


@pytest.mark.parametrize("format", FORMATS)
def test_a_table_without_rows(format: str, small: Table) -> None:
    assert render(dataclasses.replace(small, rows=()), format).endswith("\n")


# ---------------------------------------------------------------------------------------------------------------------
# Markdown, CSV, JSON, LaTeX


def test_nothing_is_taken_for_markup(small: Table) -> None:
    odd = dataclasses.replace(
        small, title="[/b] [red]x", notes=("[/nothing] :smile:",), rows=(("[red]", *small.rows[0][1:]),)
    )
    text = shown(odd)
    assert text.startswith("[/b] [red]x\n")
    assert text.endswith("[/nothing] :smile:\n")
    assert "[red]  " in text


def test_markdown(small: Table) -> None:
    assert render(small, "markdown") == (
        """\
**small_test: 50 % of two models**

- accuracy: share of the test images, 0 to 1; selection rule: the weights of the epoch with the best val_accuracy
- validation images: size 100

| model     | augmentation |   n |   mean |    std |    min |    max | epochs | published mean | published std | published epochs | difference |
| --------- | ------------ | --: | -----: | -----: | -----: | -----: | -----: | -------------: | ------------: | ---------------: | ---------: |
| model1    | none         |   3 | 0.6250 | 0.1250 | 0.5000 | 0.7500 |    6.0 |         0.5000 |        0.2500 |             10.0 |    +0.1250 |
| small_cnn | none         | 1/3 | 0.7500 |      – | 0.7500 | 0.7500 |    5.0 |              – |             – |                – |          – |

- 1 trial failed, out_of_memory: small_cnn/none/0.001/s1 with CUDA out of memory
- 1 trial not run yet
"""  # noqa: E501
    )


def test_csv_is_raw_and_nothing_but_rows(small: Table) -> None:
    assert render(small, "csv") == (
        """\
model,augmentation,n,planned,mean,std,min,max,epochs,published_mean,published_std,published_epochs,difference
model1,none,3,3,0.625,0.125,0.5,0.75,6.0,0.5,0.25,10.0,0.125
small_cnn,none,1,3,0.75,,0.75,0.75,5.0,,,,
"""
    )


def test_csv_keeps_full_precision(small: Table) -> None:
    third = 1 / 3
    table = dataclasses.replace(small, rows=((*small.rows[0][:4], third, *small.rows[0][5:]),))
    (row,) = csv.DictReader(io.StringIO(render(table, "csv")))
    assert float(row["mean"]) == third


def test_json(small: Table) -> None:
    content = json.loads(render(small, "json"))
    assert list(content) == ["suite", "title", "header", "warnings", "columns", "rows", "notes"]
    assert content["suite"] == "small_test"
    assert content["header"] == list(small.header)
    assert content["notes"] == list(small.notes)
    assert content["columns"] == [column.name for column in small.columns]
    assert content["rows"] == objects(small)
    assert content["rows"][1]["std"] is None
    assert "NaN" not in render(small, "json")


def test_latex(small: Table) -> None:
    assert render(small, "latex") == (
        r"""\begin{table}
\centering
\caption{small\_test: 50 \% of two models}
\label{tab:small_test}
\par\smallskip\parbox{\linewidth}{\footnotesize\raggedright
accuracy: share of the test images, 0 to 1; selection rule: the weights of the epoch with the best val\_accuracy\par
validation images: size 100\par
}\par\smallskip
\begin{tabular}{llrrrrrrrrrr}
\toprule
\multicolumn{8}{c}{} & \multicolumn{3}{c}{published} &  \\
model & augmentation & n & mean & std & min & max & epochs & mean & std & epochs & difference \\
\midrule
model1 & none & 3 & 0.6250 & 0.1250 & 0.5000 & 0.7500 & 6.0 & 0.5000 & 0.2500 & 10.0 & +0.1250 \\
small\_cnn & none & 1/3 & 0.7500 & -- & 0.7500 & 0.7500 & 5.0 & -- & -- & -- & -- \\
\bottomrule
\end{tabular}
\par\smallskip\parbox{\linewidth}{\footnotesize\raggedright
1 trial failed, out\_of\_memory: small\_cnn/none/0.001/s1 with CUDA out of memory\par
1 trial not run yet\par
}\par\smallskip
\end{table}
"""
    )


def hostile(table: Table) -> Table:
    """A table whose every text tries to leave its place."""
    odd = r"50% \of {a} & b_c #1 $x^2$ ~ <z> | y"
    first, *others = table.columns
    return dataclasses.replace(
        table,
        title=odd,
        notes=(f"{odd}\n\\input{{evil}} with --set, 3² – 4",),
        columns=(dataclasses.replace(first, title=odd), *others),
        rows=tuple((odd, *row[1:]) for row in table.rows),
    )


def test_latex_escapes_everything(small: Table) -> None:
    text = render(hostile(small), "latex")
    escaped = (
        r"50\% \textbackslash{}of \{a\} \& b\_c \#1 \$x\textasciicircum{}2\$ \textasciitilde{}"
        r" \textless{}z\textgreater{} \textbar{} y"
    )
    body = text.splitlines()
    assert rf"\caption{{{escaped}}}" in body
    assert sum(line.startswith(f"{escaped} & ") for line in body) == 1 + len(small.rows)
    assert rf"{escaped} \textbackslash{{}}input\{{evil\}} with -{{}}-set, 3$^2$ -- 4\par" in body


def bracketed(table: Table) -> Table:
    """A table whose rows begin as an argument of what ends the row above them would."""
    first, *others = table.columns
    return dataclasses.replace(
        table,
        columns=(dataclasses.replace(first, title="[b]"), *others),
        rows=tuple((f"{start}] [b]", *row[1:]) for start, row in zip(("[b", "*"), table.rows, strict=True)),
    )


def test_latex_takes_no_label_for_an_argument(small: Table) -> None:
    body = render(bracketed(small), "latex").splitlines()
    starts = [line.partition(" & ")[0] for line in body if line.endswith(r"\\")]
    assert starts == [r"\multicolumn{8}{c}{}", "{[}b]", "{[}b] [b]", "{*}] [b]"]


def test_markdown_keeps_a_bar_inside_its_cell(small: Table) -> None:
    assert r"<z> \| y | none " in render(hostile(small), "markdown")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path: Path, small: Table) -> None:
    body = "".join(render(table, "latex") for table in (small, hostile(small), bracketed(small)))
    document = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}\n{body}\\end{{document}}\n"
    (tmp_path / "t.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
