from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from raybench import plan
from raybench import suite as suites
from raybench.plan import Trial
from raybench.records import TrialRow
from raybench.suite import Suite
from raybench.summarize import summarize
from raybench.table import FORMATS, Table, render, show

SUITE = """
name: small_test
about: 50 % of two models
dataset: {name: digits, validation: {size: 100}}
compare: {model: [model1, small_cnn], augmentation: [none]}
search: {lr: [1e-3]}
repeat: {seed: 3}
reference:
  - {model: model1, augmentation: none, mean: 0.5, std: 0.25, epochs: 10.0}
"""


def load(tmp_path: Path, text: str = SUITE, *sets: str, smoke: bool = False) -> tuple[Suite, list[Trial]]:
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    suite = suites.load(path, sets, smoke=smoke)
    return suite, plan.expand(suite)


def finished(trial: Trial, accuracy: float, epochs: int = 4, **others: Any) -> TrialRow:
    row = TrialRow(
        trial_id=trial.id,
        suite=trial.suite,
        dataset="digits",
        model=str(trial.labels.get("model")),
        augmentation=str(trial.labels.get("augmentation")),
        seed=trial.seed,
        lr=trial.settings["train"]["lr"],
        axes={"train.batch_size": 32},
        status="completed",
        epochs=epochs,
        selection="val_accuracy",
        validation="size 100",
        test_accuracy=accuracy,
        train_images=1337,
        validation_images=100,
        test_images=360,
        settings="{}",
        dataset_fingerprint="0123456789abcdef",
        device="cpu",
        raybench_version="0.1.0",
        torch_version="2.15.0",
    )
    return dataclasses.replace(row, **others)


def failed(trial: Trial, error_class: str | None = "out_of_memory", error: str = "CUDA out of memory") -> TrialRow:
    row = finished(trial, 0.0)
    nothing = dict.fromkeys(("train_images", "validation_images", "test_images", "dataset_fingerprint"))
    return dataclasses.replace(
        row,
        status="failed",
        test_accuracy=None,
        error_class=error_class,  # type: ignore[arg-type]
        error=error,
        **nothing,  # type: ignore[arg-type]
    )


def frame(rows: Sequence[TrialRow]) -> pd.DataFrame:
    """As the store gives them: the axes without a column of their own flattened into one each."""
    flat = [dataclasses.asdict(row) for row in rows]
    names = [field.name for field in dataclasses.fields(TrialRow) if field.name != "axes"]
    return pd.DataFrame([{**values, **values.pop("axes")} for values in flat], columns=None if flat else names)


def objects(table: Table) -> list[dict[str, Any]]:
    names = [column.name for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in table.rows]


@pytest.fixture
def small(tmp_path: Path) -> Table:
    """model1: 0.5, 0.625, 0.75; small_cnn: 0.75, a failure, a seed that has not run."""
    suite, trials = load(tmp_path)
    a0, b0, a1, b1, a2, _ = trials
    rows = [
        finished(a0, 0.5, 4),
        finished(a1, 0.625, 6, status="stopped_early"),
        finished(a2, 0.75, 8),
        finished(b0, 0.75, 5),
        failed(b1),
    ]
    return summarize(frame(rows), suite, trials)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def test_numbers_by_hand(small: Table) -> None:
    model1, small_cnn = objects(small)
    assert model1 == {
        "model": "model1",
        "augmentation": "none",
        "n": 3,
        "planned": 3,
        "mean": 0.625,
        "std": 0.125,  # sqrt((1/64 + 0 + 1/64) / (3 - 1))
        "min": 0.5,
        "max": 0.75,
        "epochs": 6.0,
        "published_mean": 0.5,
        "published_std": 0.25,
        "published_epochs": 10.0,
        "difference": 0.125,
    }
    # One finished seed of three: it has a mean but no std, and no published row is its own.
    nothing = dict.fromkeys(("std", "published_mean", "published_std", "published_epochs", "difference"))
    labels = {"model": "small_cnn", "augmentation": "none"}
    assert small_cnn == {
        **labels,
        "n": 1,
        "planned": 3,
        "mean": 0.75,
        "min": 0.75,
        "max": 0.75,
        "epochs": 5.0,
        **nothing,
    }


def test_what_the_numbers_are_is_said(small: Table) -> None:
    assert small.title == "small_test: 50 % of two models"
    assert small.header == (
        "accuracy: share of the test images, 0 to 1; selection rule: the weights of the epoch with the best"
        " val_accuracy",
        "std: sample standard deviation (ddof=1); n: finished trials, of those planned where some are missing;"
        " epochs: mean number trained",
        "dataset: digits, 1,337 training images, 100 validation images, 360 test images, fingerprint 0123456789abcdef",
        "validation images: size 100",
    )
    assert small.warnings == ()
    assert small.notes == (
        "1 trial failed, out_of_memory: small_cnn/none/0.001/s1 with CUDA out of memory",
        "1 trial not run yet",
    )


def test_nothing_stored_gives_a_table_of_dashes(tmp_path: Path) -> None:
    suite, trials = load(tmp_path)
    table = summarize(frame([]), suite, trials)
    assert [(row["n"], row["planned"], row["mean"], row["epochs"]) for row in objects(table)] == [
        (0, 3, None, None)
    ] * 2
    assert objects(table)[0]["published_mean"] == 0.5
    assert table.header[-1] == "dataset: digits"
    assert table.notes == ("6 trials not run yet",)
    assert "| small_cnn | none         | 0/3 |    – |   – |   – |   – |      – |" in render(table, "markdown")
    for format in FORMATS:
        assert render(table, format)
    assert summarize(frame([]), suite, []).rows == ()


def test_only_failures_give_no_numbers(tmp_path: Path) -> None:
    suite, trials = load(tmp_path)
    rows = [failed(trials[0]), failed(trials[1], "diverged", "loss is nan"), failed(trials[2], None, "KeyError: 'x'")]
    table = summarize(frame([*rows, failed(trials[3])]), suite, trials)
    assert [row["mean"] for row in objects(table)] == [None, None]
    assert table.notes == (
        "2 trials failed, out_of_memory: model1/none/0.001/s0 with CUDA out of memory",
        "1 trial failed, error: model1/none/0.001/s1 with KeyError: 'x'",
        "1 trial failed, diverged: small_cnn/none/0.001/s0 with loss is nan",
        "2 trials not run yet",
    )


def test_pruned_trials_never_enter_a_mean(tmp_path: Path) -> None:
    suite, trials = load(tmp_path)
    rows = [finished(trials[0], 0.5, 8), finished(trials[2], 1.0, 1, status="pruned")]
    table = summarize(frame(rows), suite, trials)
    assert (objects(table)[0]["mean"], objects(table)[0]["epochs"], objects(table)[0]["n"]) == (0.5, 8.0, 1)
    assert table.notes == ("1 trial pruned", "4 trials not run yet")


def test_n_counts_what_is_in_the_mean(tmp_path: Path) -> None:
    suite, trials = load(tmp_path)
    rows = [finished(trials[0], 0.5), finished(trials[2], 0.0, test_accuracy=None)]
    assert objects(summarize(frame(rows), suite, trials))[0]["n"] == 1


def test_stored_trials_that_are_not_planned_are_counted_not_shown(tmp_path: Path) -> None:
    suite, trials = load(tmp_path)
    rows = [finished(trial, 0.5) for trial in trials]
    others = [finished(trials[0], 1.0, trial_id=f"other{i}", device="H200", validation="test") for i in range(12)]
    table = summarize(frame([*others, *rows]), suite, trials)
    assert [row["max"] for row in objects(table)] == [0.5, 0.5]
    assert table.notes == ("not shown: 12 stored trials of other settings",)
    assert table.warnings == ()


def test_a_trial_that_is_stored_twice_counts_once(tmp_path: Path) -> None:
    suite, trials = load(tmp_path)
    table = summarize(frame([failed(trials[0]), finished(trials[0], 0.5)]), suite, trials[:1])
    assert (objects(table)[0]["n"], objects(table)[0]["planned"], table.notes) == (1, 1, ())


def test_rows_read_from_parquet_give_the_same_table(tmp_path: Path, small: Table) -> None:
    suite, trials = load(tmp_path)
    a0, b0, a1, b1, a2, _ = trials
    rows = [finished(a0, 0.5, 4), finished(a1, 0.625, 6), finished(a2, 0.75, 8), finished(b0, 0.75, 5), failed(b1)]
    frame(rows).to_parquet(tmp_path / "rows.parquet")
    assert summarize(pd.read_parquet(tmp_path / "rows.parquet"), suite, trials) == small


def test_ten_thousand_rows_are_quick(tmp_path: Path) -> None:
    sizes = ", ".join(map(str, range(1, 101)))
    text = f"""
name: large
dataset: {{name: digits}}
model: mlp
compare: {{train.batch_size: [{sizes}]}}
repeat: {{seed: 100}}
"""
    suite, trials = load(tmp_path, text)
    rows = frame([finished(trials[0], 0.5)] * len(trials)).assign(trial_id=[trial.id for trial in trials])
    seconds = []
    for _ in range(3):  # the best of three: others use the machine too
        start = time.perf_counter()
        table = summarize(rows, suite, trials)
        seconds.append(time.perf_counter() - start)
    assert (len(table.rows), {row[1] for row in table.rows}) == (100, {100})
    assert min(seconds) < 0.5


# ---------------------------------------------------------------------------------------------------------------------
# Axes and published rows


def test_every_point_of_a_search_is_a_row_and_marked(tmp_path: Path) -> None:
    suite, trials = load(tmp_path, SUITE, "search.lr=[1e-2,1e-3]", "repeat.seed=1", "confirm=none")
    table = summarize(frame([finished(trial, i / 4) for i, trial in enumerate(trials)]), suite, trials)
    keys = ("model", "lr", "n", "mean", "published_mean")
    assert [tuple(row[key] for key in keys) for row in objects(table)] == [
        ("model1", 0.01, 1, 0.0, 0.5),
        ("model1", 0.001, 1, 0.25, 0.5),
        ("small_cnn", 0.01, 1, 0.5, None),
        ("small_cnn", 0.001, 1, 0.75, None),
    ]
    assert table.notes == ("lr is searched: each value is shown as it is, none was chosen and confirmed",)


def test_part_of_a_plan_shows_its_cells_only(tmp_path: Path) -> None:
    suite, trials = load(tmp_path)
    rows = frame([finished(trial, 0.5) for trial in trials])
    table = summarize(rows, suite, plan.expand(suite, only={"model": ["small_cnn"], "seed": ["0", "2"]}))
    assert [(row["model"], row["n"], row["planned"]) for row in objects(table)] == [("small_cnn", 2, 2)]
    assert table.notes == ("not shown: 4 stored trials of other settings",)


def test_a_published_row_stands_beside_every_cell_whose_labels_it_names(tmp_path: Path) -> None:
    text = SUITE.replace("[none]", "[none, aug1]").partition("reference:")[0]
    text += """
reference:
  - {model: model1, lr: 1e-3, augmentation: aug1, mean: 0.25, n: 5}
  - {model: model1, mean: 0.5, min: 0.375, max: 0.625}
"""
    suite, trials = load(tmp_path, text)
    table = summarize(frame([finished(trials[0], 0.75)]), suite, trials)
    names = [column.name for column in table.columns][-5:]
    assert names == ["published_n", "published_mean", "published_min", "published_max", "difference"]
    assert [row[-5:] for row in table.rows] == [
        (None, 0.5, 0.375, 0.625, 0.25),
        (5, 0.25, None, None, None),
        (None, None, None, None, None),
        (None, None, None, None, None),
    ]


def test_a_suite_without_published_rows_has_no_columns_for_them(tmp_path: Path) -> None:
    suite, trials = load(tmp_path, SUITE.partition("reference:")[0])
    table = summarize(frame([]), suite, trials)
    assert [column.name for column in table.columns] == (
        ["model", "augmentation", "n", "planned", "mean", "std", "min", "max", "epochs"]
    )


def test_no_compare_axis_is_one_row(tmp_path: Path) -> None:
    suite, trials = load(tmp_path, "name: t\ndataset: {name: digits}\nmodel: mlp\nrepeat: {seed: 2}\n")
    table = summarize(frame([finished(trial, 0.5) for trial in trials]), suite, trials)
    assert (table.title, table.rows) == ("t", ((2, 2, 0.5, 0.0, 0.5, 0.5, 4.0),))


# ---------------------------------------------------------------------------------------------------------------------
# What must not be missed


def test_validation_on_the_test_images_is_marked_in_every_format_for_people(tmp_path: Path) -> None:
    suite, trials = load(tmp_path, SUITE, "dataset.validation=test")
    table = summarize(frame([finished(trial, 0.5, validation="test") for trial in trials]), suite, trials)
    line = "validation images = TEST images: the epoch was chosen on the test set, accuracies are optimistic"
    assert table.warnings == (line,)
    assert table.header[-1] == "validation images: test"
    assert f"WARNING: {line}" in shown(table)
    assert f"- **WARNING: {line}**\n" in render(table, "markdown")
    assert rf"\caption{{small\_test: 50 \% of two models. {line}}}" in render(table, "latex")
    assert json.loads(render(table, "json"))["warnings"] == [line]


def test_a_smoke_run_is_marked(tmp_path: Path) -> None:
    suite, trials = load(tmp_path, smoke=True)
    table = summarize(frame([]), suite, trials)
    assert table.suite == "small_test-smoke"
    assert table.warnings == ("smoke run: numbers mean nothing",)


def test_a_row_from_different_machines_data_or_code_is_noted(tmp_path: Path) -> None:
    suite, trials = load(tmp_path)
    changes: list[dict[str, Any]] = [{} for _ in trials]
    changes[1] = {"device": "H200", "raybench_version": "0.2.0"}
    changes[3] = {"device": "A100", "dataset_fingerprint": "fedcba9876543210"}
    changes[4] = {"torch_version": "2.16.0", "device": None}
    rows = [finished(trial, 0.5, **change) for trial, change in zip(trials, changes, strict=True)]
    table = summarize(frame(rows), suite, trials)
    cnn = "differs among the trials of 1 row, the first with small_cnn/none/0.001/s0:"
    assert table.notes == (
        f"warning: device {cnn} H200 / A100 / cpu",
        f"warning: dataset_fingerprint {cnn} 0123456789abcdef / fedcba9876543210",
        f"warning: raybench_version {cnn} 0.2.0 / 0.1.0",
        f"warning: torch_version {cnn.replace('small_cnn', 'model1')} 2.15.0 / 2.16.0",
    )
    assert "fingerprint 0123456789abcdef / fedcba9876543210" in table.header[2]


def test_rows_that_differ_from_each_other_are_no_mixture(tmp_path: Path) -> None:
    suite, trials = load(tmp_path)
    rows = [finished(trial, 0.5, device=str(trial.labels["model"])) for trial in trials]
    assert summarize(frame(rows), suite, trials).notes == ()


def test_long_lists_are_cut(tmp_path: Path) -> None:
    suite, trials = load(tmp_path)
    rows = [finished(trial, 0.5, train_images=1000 * (i + 1)) for i, trial in enumerate(trials)]
    table = summarize(frame(rows), suite, trials)
    # The order is that of the table: model1's seeds first.
    assert "digits, 1,000 / 3,000 / 5,000 / 2,000 / 4,000 / ... (6 in all) training images" in table.header[2]


# ---------------------------------------------------------------------------------------------------------------------
# Formats


def shown(table: Table, width: int = 80, **options: Any) -> str:
    text = io.StringIO()
    show(table, Console(file=text, width=width, **options))
    return text.getvalue()


def test_terminal(small: Table) -> None:
    lines = shown(small, width=120).splitlines()
    assert lines[0] == small.title
    assert lines[1:5] == list(small.header)
    assert [line.rstrip() for line in lines[6:11]] == [
        "                                                                      published",
        "model      augmentation    n    mean     std     min     max  epochs       mean     std  epochs  difference",
        "─" * 107,
        "model1     none            3  0.6250  0.1250  0.5000  0.7500     6.0     0.5000  0.2500    10.0     +0.1250",
        "small_cnn  none          1/3  0.7500       –  0.7500  0.7500     5.0          –       –       –           –",
    ]
    assert lines[12:] == list(small.notes)


def test_a_pipe_of_80_characters_cuts_nothing(small: Table) -> None:
    assert shown(small, width=80) == shown(small, width=200)
    # On a narrow terminal prose is wrapped between words, numbers stay whole.
    assert "small_cnn  none          1/3  0.7500       –" in shown(small, width=40, force_terminal=True, no_color=True)


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
- std: sample standard deviation (ddof=1); n: finished trials, of those planned where some are missing; epochs: mean number trained
- dataset: digits, 1,337 training images, 100 validation images, 360 test images, fingerprint 0123456789abcdef
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
        r"""% accuracy: share of the test images, 0 to 1; selection rule: the weights of the epoch with the best val_accuracy
% std: sample standard deviation (ddof=1); n: finished trials, of those planned where some are missing; epochs: mean number trained
% dataset: digits, 1,337 training images, 100 validation images, 360 test images, fingerprint 0123456789abcdef
% validation images: size 100
% 1 trial failed, out_of_memory: small_cnn/none/0.001/s1 with CUDA out of memory
% 1 trial not run yet
\begin{table}
\centering
\caption{small\_test: 50 \% of two models}
\label{tab:small_test}
\begin{tabular}{llrrrrrrrrrr}
\toprule
\multicolumn{8}{c}{} & \multicolumn{3}{c}{published} &  \\
model & augmentation & n & mean & std & min & max & epochs & mean & std & epochs & difference \\
\midrule
model1 & none & 3 & 0.6250 & 0.1250 & 0.5000 & 0.7500 & 6.0 & 0.5000 & 0.2500 & 10.0 & +0.1250 \\
small\_cnn & none & 1/3 & 0.7500 & -- & 0.7500 & 0.7500 & 5.0 & -- & -- & -- & -- \\
\bottomrule
\end{tabular}
\end{table}
"""  # noqa: E501
    )


def hostile(table: Table) -> Table:
    """A table whose every text tries to leave its place."""
    odd = r"50% \of {a} & b_c #1 $x^2$ ~ <z> | y"
    first, *others = table.columns
    return dataclasses.replace(
        table,
        title=odd,
        notes=(f"{odd}\n\\input{{evil}}",),
        columns=(dataclasses.replace(first, title=odd), *others),
        rows=tuple((odd, *row[1:]) for row in table.rows),
    )


def test_latex_escapes_all_but_comments(small: Table) -> None:
    text = render(hostile(small), "latex")
    escaped = (
        r"50\% \textbackslash{}of \{a\} \& b\_c \#1 \$x\textasciicircum{}2\$ \textasciitilde{}"
        r" \textless{}z\textgreater{} | y"
    )
    body = [line for line in text.splitlines() if not line.startswith("% ")]
    assert rf"\caption{{{escaped}}}" in body
    assert sum(line.startswith(f"{escaped} & ") for line in body) == 1 + len(small.rows)
    assert r"\input{evil}" not in "\n".join(body)


def test_markdown_keeps_a_bar_inside_its_cell(small: Table) -> None:
    assert r"<z> \| y | none " in render(hostile(small), "markdown")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path: Path, small: Table) -> None:
    body = "".join(render(table, "latex") for table in (small, hostile(small)))
    document = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}\n{body}\\end{{document}}\n"
    (tmp_path / "t.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
