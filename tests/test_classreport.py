"""Class reports that cannot be are named with their reason; what scikit-learn prints never is."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from sklearn.metrics import classification_report

from raybench import cli
from raybench.classreport import METRICS, check_class_report, read_class_report
from raybench.errors import UserError


def said(findings: Sequence[object]) -> list[str]:
    return [str(finding) for finding in findings]


def class_report(matrix: np.ndarray, decimals: int = 2) -> list[dict[str, Any]]:
    """Return what scikit-learn prints of a confusion matrix (rows: truth)."""

    def share(part: Any, whole: Any) -> np.ndarray:
        return np.divide(part, whole, out=np.zeros(len(matrix)), where=np.asarray(whole) > 0)

    right, support, called = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    metrics = [share(right, called), share(right, support), share(2 * right, support + called)]
    rows: list[dict[str, Any]] = [
        {"class": str(i), **dict(zip(METRICS, values, strict=True)), "support": support[i]}
        for i, values in enumerate(zip(*metrics, strict=True))
    ]
    images = support.sum()
    rows.append({"class": "accuracy", "f1": right.sum() / images, "support": images})
    for name, weights in (("macro avg", None), ("weighted avg", support)):
        averages = [np.average(values, weights=weights) for values in metrics]
        rows.append({"class": name, **dict(zip(METRICS, averages, strict=True)), "support": images})
    return [{k: f"{v:.{decimals}f}" if k in METRICS else v for k, v in row.items()} for row in rows]


MATRIX = np.array([[30, 4, 2], [3, 31, 2], [6, 0, 30]])


SCIKIT_LEARN = """\
              precision    recall  f1-score   support

           0       0.77      0.83      0.80        36
           1       0.89      0.86      0.87        36
           2       0.88      0.83      0.86        36

    accuracy                           0.84       108
   macro avg       0.85      0.84      0.84       108
weighted avg       0.85      0.84      0.84       108
"""
"""What its classification_report prints of MATRIX."""


def test_a_report_is_as_scikit_learn_prints_it() -> None:
    rows = class_report(MATRIX)
    lines = [line.split() for line in SCIKIT_LEARN.splitlines()[1:] if line]
    assert lines == [" ".join(map(str, row.values())).split() for row in rows]
    assert check_class_report(rows) == []
    assert check_class_report(read_class_report(SCIKIT_LEARN, "it")) == []
    named = read_class_report(SCIKIT_LEARN.replace("           0 ", "  polar bear "), "it")
    assert [row["class"] for row in named] == ["polar bear", "1", "2", "accuracy", "macro avg", "weighted avg"]


def test_a_class_report_is_checked_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.txt"
    for text, status, out in (
        (SCIKIT_LEARN, 0, ""),
        (
            SCIKIT_LEARN.replace("0.77      0.83", "0.99      0.83"),
            1,
            "  class=0: precision 0.99 cannot be: with recall 0.83 no whole number of predictions gives it\n",
        ),
    ):
        file.write_text(text)
        command = ["raybench", "check", "quickstart", "--results", str(tmp_path), "--class-report", str(file)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == status
        assert capsys.readouterr().out.startswith(f"quickstart: 0 published rows\n{file}: 3 classes\n{out}")


def test_a_report_of_some_of_the_classes() -> None:
    """scikit-learn prints ``micro avg`` in place of the accuracy; images of other classes are taken for these too."""
    truth, called = np.repeat([0, 1, 2], [100, 85, 400]), np.zeros(585, int)
    called[100:185], called[:20] = 1, 2
    text = classification_report(truth, called, labels=[0, 1])
    rows = read_class_report(text, "it")
    assert [row["class"] for row in rows] == ["0", "1", "micro avg", "macro avg", "weighted avg"]
    assert (rows[0]["precision"], rows[2]["precision"]) == ("0.17", "0.29"), "480 are taken for class 0"
    assert check_class_report(rows) == []
    for key, wrong, reason in (
        ("precision", "0.40", "the precision of the classes gives 0.29 to 0.30"),
        ("recall", "0.80", "the recall of the classes gives 0.89"),
        ("f1", "0.60", "the f1 of the classes gives 0.44 to 0.45"),
    ):
        changed = [{**row, key: wrong} if row["class"] == "micro avg" else row for row in rows]
        assert said(check_class_report(changed)) == [f"micro avg {key} {wrong} cannot be: {reason}"]
    rows[2]["support"] = 184
    assert said(check_class_report(rows)) == ["micro avg support 184 cannot be: the classes have 185 images"]


def test_a_report_of_which_nothing_is_right() -> None:
    rows = read_class_report(classification_report([0, 0, 1], [1, 1, 0]), "it")
    assert [row["support"] for row in rows] == ["2.0", "1.0", "3.0", "3.0", "3.0"]
    assert check_class_report(rows) == []


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 4), st.booleans())
def test_no_report_of_scikit_learn_is_named(seed: int, images: int, digits: int, several: bool) -> None:
    """Of two of four classes, or of images with several of three classes each."""
    rng = np.random.default_rng(seed)
    if several:
        truth, called = rng.random((images, 3)) < 0.4, rng.random((images, 3)) < 0.6
        truth[0, 0] = True
        text = classification_report(truth, called, digits=digits, zero_division=0)
    else:
        truth, called = rng.integers(0, 4, images), rng.integers(0, 4, images)
        truth[0] = 2
        text = classification_report(truth, called, labels=[0, 2], digits=digits, zero_division=0)
    rows = read_class_report(text, "it")
    assert rows[-1]["class"] == ("samples avg" if several else "weighted avg")
    assert check_class_report(rows) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it: no class report in it, as scikit-learn's classification_report prints one"),
        ("precision recall\n", "it, line 1: must be a class with precision, recall, F1 and support"),
    ],
)
def test_a_text_that_is_no_class_report(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        read_class_report(text, "it")


@hypothesis.settings(deadline=None, max_examples=80)
@hypothesis.given(st.data(), st.integers(2, 5), st.integers(1, 4))
def test_no_confusion_matrix_is_named(data: st.DataObject, classes: int, decimals: int) -> None:
    most = data.draw(st.sampled_from([3, 30, 1000]))
    counts = data.draw(st.lists(st.integers(0, most), min_size=classes**2, max_size=classes**2))
    hypothesis.assume(sum(counts) > 0)
    rows = class_report(np.array(counts).reshape(classes, classes), decimals)
    assert check_class_report(rows) == []
    as_numbers = [{k: float(v) if k in METRICS else v for k, v in row.items()} for row in rows]
    assert check_class_report(as_numbers) == []


@pytest.mark.parametrize(
    ("row", "change", "reason"),
    [
        (0, {"recall": "0.82"}, "class=0: recall 0.82 cannot be: of 36 images 29 right are 0.81 and 30 right are 0.83"),
        (0, {"f1": "0.90"}, "class=0: f1 0.90 cannot be: precision 0.77 and recall 0.83 give 0.80"),
        (
            0,
            {"precision": "0.99"},
            "class=0: precision 0.99 cannot be: with recall 0.83 no whole number of predictions gives it",
        ),
        (0, {"f1": "80"}, "class=0: f1 80 cannot be: it is a share, between 0 and 1"),
        (3, {"f1": "0.80"}, "accuracy 0.80 cannot be: the recall of the classes gives 0.84"),
        (4, {"precision": "0.80"}, "macro avg precision 0.80 cannot be: the precision of the classes gives 0.85"),
        (5, {"f1": "0.90"}, "weighted avg f1 0.90 cannot be: the f1 of the classes gives 0.84"),
        (5, {"support": 107}, "weighted avg support 107 cannot be: the classes have 108 images"),
    ],
)
def test_class_reports_that_cannot_be(row: int, change: dict[str, Any], reason: str) -> None:
    rows = class_report(MATRIX)
    rows[row] |= change
    assert said(check_class_report(rows))[0] == reason


def test_there_are_as_many_predictions_as_images() -> None:
    """Each class is possible by itself, but together they would have been predicted too seldom."""
    rows = [{"class": i, "precision": "0.91", "recall": "0.50", "f1": "0.65", "support": 100} for i in range(3)]
    assert said(check_class_report(rows)) == [
        "precision and recall cannot all be: they make 165 predictions for 300 images"
    ]


def test_what_is_not_legible_is_left_out_and_support_is_needed() -> None:
    rows = class_report(MATRIX)
    rows[0]["precision"] = rows[1]["f1"] = rows[2]["recall"] = None
    assert check_class_report(rows) == []
    assert check_class_report([]) == []
    del rows[1]["support"]
    with pytest.raises(UserError, match=r"^class report: class 1 has no support$"):
        check_class_report(rows)


# ---------------------------------------------------------------------------------------------------------------------
# Those of the reports


def class_reports(text: str) -> list[list[dict[str, Any]]]:
    """Return the class reports in a text; two may stand side by side, five cells each."""
    found: list[list[dict[str, Any]]] = []
    names = ("class", *METRICS, "support")
    lines = iter(text.splitlines())
    for line in lines:
        if "precision\trecall" in line:
            halves: list[list[dict[str, Any]]] = [[] for _ in range(line.count("precision"))]
            while "weighted" not in line:
                line = next(lines)
                cells = [cell.strip() or None for cell in line.split("\t")]
                for i, half in enumerate(halves):
                    half.append(dict(zip(names, cells[5 * i : 5 * i + 5], strict=True)))
            found += halves
    return found


@pytest.mark.parametrize(("number", "count"), [("000", 4), ("001", 2)])
def test_class_reports_of_the_reports(report_text: Callable[[str], str], number: str, count: int) -> None:
    text = report_text(number).replace("A 96\t1000\n0\t\t\t0.86\t1000", "0.86\t1000")  # a line that was read as two
    tables = class_reports(text)
    assert len(tables) == count
    for rows in tables:
        assert [row["class"] for row in rows] == [*map(str, range(10)), "accuracy", "macro avg", "weighted avg"]
        assert check_class_report(rows) == []
        for row in rows[:10]:  # and none of its numbers could be much else
            wrong = f"{(float(row['f1']) + 0.5) % 1:.2f}"
            changed = [{**other, "f1": wrong} if other is row else other for other in rows]
            assert said(check_class_report(changed))[0].startswith(f"class={row['class']}: f1 {wrong} cannot be: ")
