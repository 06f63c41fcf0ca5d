"""Telling images from outside: thresholds by hand, AUROC and FPR95 against scikit-learn, and the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made import objects
from sklearn.metrics import roc_auc_score, roc_curve

from raybench import ood, table
from raybench.cells import Cells, find_cells
from raybench.grid import Trial
from raybench.ood import accuracy, auroc, best_threshold, fpr_at_tpr, judge
from raybench.parquet import DETECTION
from raybench.records import Activations, DetectionRow
from raybench.suite import Suite

LoadSuite = Callable[..., tuple[Suite, list[Trial]]]
Finish = Callable[..., tuple[Suite, list[Trial], Cells]]


def numbers(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.fixture(params=range(6))
def scores(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping scores of unequal numbers of images, some of them ties."""
    rng = np.random.default_rng(request.param)
    digits = (1, 2, 7)[request.param % 3]
    inside = rng.normal(1.0, 1.0, 37 + 20 * request.param).round(digits).astype(np.float32)
    return inside, rng.normal(0.0, 1.5, 50).round(digits).astype(np.float32)


def test_auroc_and_fpr_are_those_of_scikit_learn(scores: tuple[np.ndarray, np.ndarray]) -> None:
    inside, outside = scores
    truth, both = np.repeat([1, 0], [len(inside), len(outside)]), np.concatenate(scores)
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(truth, both), abs=1e-12)
    fpr, tpr, _ = roc_curve(truth, both, drop_intermediate=False)
    assert fpr_at_tpr(inside, outside) == pytest.approx(fpr[np.argmax(tpr >= 0.95)], abs=1e-12)


def test_auroc_by_hand() -> None:
    assert auroc(numbers(2, 3), numbers(0, 1)) == 1.0
    assert auroc(numbers(0, 1), numbers(2, 3)) == 0.0
    assert auroc(numbers(1, 1), numbers(1, 1)) == 0.5
    assert auroc(numbers(1, 3), numbers(0, 2)) == 0.75, "three pairs of four"


def test_fpr_by_hand() -> None:
    """Of 20 from inside, 19 must be accepted: those from 1 on, and so are the 1 and the 7 from outside."""
    inside = np.arange(20).astype(np.float32)
    assert fpr_at_tpr(inside, numbers(0.5, 1, 7, -3)) == 0.5
    assert fpr_at_tpr(inside[:10], numbers(-1, 0, 5, 6)) == 0.75, "of 10 all must be: 9 are only 90 %"


@pytest.mark.parametrize(
    ("inside", "outside", "threshold", "share"),
    [
        ((3, 4), (1, 2), 2.5, 1.0),
        ((2, 4, 5), (1, 3), 1.5, 0.8),  # 1.5 and 3.5 tell four of five: the first
        ((1, 2), (3, 4), 1.0, 0.5),  # all or none: none from outside
        ((1, 1), (1, 1, 1), np.nextafter(1.0, 2.0), 0.6),  # all from outside
        ((1, 2, 2), (2, 0), 0.5, 0.8),  # ties cannot be told apart
    ],
)
def test_the_threshold_by_hand(inside: Any, outside: Any, threshold: float, share: float) -> None:
    found = best_threshold(numbers(*inside), numbers(*outside))
    assert found == threshold
    assert accuracy(numbers(*inside), numbers(*outside), found) == share


def test_no_other_threshold_tells_more(scores: tuple[np.ndarray, np.ndarray]) -> None:
    inside, outside = scores
    best = accuracy(inside, outside, best_threshold(inside, outside))
    others = np.concatenate([*scores, [-np.inf, np.inf]])
    tried = [accuracy(inside, outside, value + step) for value in others for step in (-1e-4, 0, 1e-4)]
    assert best == max(tried)


def test_the_images_that_choose_are_not_judged() -> None:
    """Those that choose say 1.5. It tells two of the four others; 5, which they would choose themselves, tells all."""
    inside, outside = numbers(2, 6, 7), numbers(1, 3, 4)
    judged = np.array([False, True, True])
    found = judge(inside, outside, judged, judged)
    assert found == {
        "threshold": 1.5,
        "accuracy": 0.5,
        "peek_accuracy": 1.0,
        "auroc": 1.0,
        "fpr95": 0.0,
        "n_in": 2,
        "n_out": 2,
        "n_choosing": 2,
    }


SUITE = """
name: told
dataset: {name: digits}
compare: {model: [mlp, small_cnn]}
repeat: {seed: 2}
ood: {dataset: svhn, layers: ["1"]}
"""


def activations(shift: float, layer: str | None = "1") -> Activations:
    values = np.array([shift, 4, 5, 6, 0, 1, 2, 3], np.float32)
    return Activations(
        score="mean_activation" if layer else "energy",
        layer=layer,
        outside="svhn",
        dataset=np.repeat(["in", "out"], 4),
        index=np.arange(8, dtype=np.int32),
        judged=np.tile([False, False, True, True], 2),
        value=values,
    )


def told(suite: Suite, trial_id: str, shift: float) -> list[DetectionRow]:
    assert suite.ood
    scores = [activations(shift), activations(0.0, None)]
    return ood.rows_of(trial_id, suite.ood, "fedc", scores, {"1": "ReLU"})


def test_rows_say_what_they_are_of(load_suite: LoadSuite) -> None:
    suite, _ = load_suite(SUITE)
    one, other = told(suite, "t0", 3.0)
    assert (one.trial_id, one.dataset, one.score, one.layer, one.kind) == ("t0", "svhn", "mean_activation", "1", "ReLU")
    assert (other.score, other.layer, other.kind) == ("energy", None, None)
    assert (one.threshold, one.accuracy, one.n_in, one.n_out, one.n_choosing) == (2.0, 0.5, 2, 2, 4)
    assert (other.threshold, other.accuracy, other.out_fingerprint) == (2.5, 0.75, "fedc")
    assert json.loads(one.settings)["layers"] == ["1"]


def frame(rows: list[DetectionRow]) -> pd.DataFrame:
    return pd.DataFrame(
        [{name: getattr(row, name) for name in DETECTION.names} for row in rows], columns=DETECTION.names
    )


@pytest.fixture
def finish(tmp_path: Path, store_results: Callable[..., Any]) -> Finish:
    """``finish(text, **columns)`` returns a suite, its trials, and its cells with all of them finished."""

    def finish(text: str = SUITE, **others: Any) -> tuple[Suite, list[Trial], Cells]:
        store, suite, trials = store_results(tmp_path / "results", text, lambda _: 0.5, **others)
        return suite, trials, find_cells(store.read()[0], suite, trials)

    return finish


def test_the_table_has_means_over_the_seeds_of_a_cell(finish: Finish) -> None:
    suite, trials, cells = finish()
    assert suite.ood
    mlp = [trial.id for trial in trials if trial.cell == ("mlp",)]
    rows = [*told(suite, mlp[0], 3.0), *told(suite, mlp[1], 4.0), *told(suite, "of no trial", 4.0)]
    found = ood.table(frame(rows), cells, suite.name, [suite.ood])
    lines = objects(found)
    assert [(line["model"], line["score"], line["layer"], line["kind"]) for line in lines] == [
        ("mlp", "mean activation", "1", "ReLU"),
        ("mlp", "energy", None, None),
    ]
    shares = [row.accuracy for row in rows if row.score == "mean_activation"][:2]
    assert lines[0]["n"] == lines[0]["planned"] == 2
    assert lines[0]["accuracy"] == pytest.approx(np.mean(shares))
    assert lines[0]["accuracy_std"] == pytest.approx(np.std(shares, ddof=1))
    assert found.notes == ("2 finished trials in no number: not asked, or without weights",)
    assert "judged: 2 images from inside and 2 from outside; 4 others choose it" in found.header
    assert found.header[-3:] == (
        "selection rule: the weights of the epoch with the best val_accuracy",
        "dataset: digits, 900 training images, 100 validation images, 500 test images, fingerprint 0123456789abcdef",
        "validation images: fraction 0.1",
    )
    assert found.warnings == ()
    assert "| mlp   | svhn    | mean activation | 1     | ReLU |   2 |" in table.render(found, "markdown")


def test_each_point_of_a_search_that_is_not_confirmed_is_a_row(finish: Finish) -> None:
    """Of the judged images three are told rightly with the smaller learning rate, two with the larger."""
    suite, trials, cells = finish(SUITE.replace("repeat", "search: {lr: [1e-3, 1e-2]}\nconfirm: none\nrepeat"))
    assert suite.ood
    rows = [
        row for t in trials for row in told(suite, t.id, 3.0 * (t.point == (0.01,))) if row.score == "mean_activation"
    ]
    found = ood.table(frame(rows), cells, suite.name, [suite.ood])
    assert found.notes == ("lr is searched: each value is shown as it is, none was chosen and confirmed",)
    lines = objects(found)
    assert [(line["model"], line["lr"], line["n"], line["planned"], line["accuracy"]) for line in lines] == [
        ("mlp", 0.001, 2, 2, 0.75),
        ("mlp", 0.01, 2, 2, 0.5),
        ("small_cnn", 0.001, 2, 2, 0.75),
        ("small_cnn", 0.01, 2, 2, 0.5),
    ]


def test_the_table_is_marked_as_the_summary_is(finish: Finish) -> None:
    suite, _, cells = finish(validation="test")
    assert suite.ood
    found = ood.table(frame([]), cells, suite.name, [suite.ood])
    assert found.warnings == (
        "validation images = TEST images: the epoch was chosen on the test set, accuracies are optimistic",
    )


def test_rows_of_other_images_or_layers_enter_no_table(load_suite: LoadSuite, finish: Finish) -> None:
    suite, trials, cells = finish()
    other, _ = load_suite(SUITE, "ood.layers=all")
    assert suite.ood and other.ood
    rows = frame(told(suite, trials[0].id, 3.0))
    assert len(ood.table(rows, cells, suite.name, [suite.ood]).rows) == 2
    nothing = ood.table(rows, cells, suite.name, [other.ood])
    assert nothing.rows == ()
    assert nothing.notes == ("4 finished trials in no number: not asked, or without weights",)
    assert table.render(nothing, "csv").count("\n") == 1


def test_several_datasets_stand_beside_each_other(load_suite: LoadSuite, finish: Finish) -> None:
    """In the order in which they were asked about; with those that nobody asked about in a note."""
    suite, trials, cells = finish()
    others = [load_suite(SUITE, f"ood.dataset={name}")[0] for name in ("digits", "{name: imagefolder, folder: a/b}")]
    asked = [one.ood for one in (suite, *others) if one.ood]
    rows = [row for one in (others[0], suite, others[1]) for row in told(one, trials[0].id, 3.0)]
    found = ood.table(frame(rows), cells, suite.name, asked[:2])
    lines = objects(found)
    assert [(line["outside"], line["layer"], line["n"]) for line in lines] == [
        ("svhn", "1", 1),
        ("svhn", None, 1),
        ("digits", "1", 1),
        ("digits", None, 1),
    ]
    assert found.header[0] == "inside: the test images of each trial; outside: test images of svhn, digits"
    assert found.header[2:4] == (
        "judged: 2 images from inside and 2 from outside of svhn; 4 others choose it",
        "judged: 2 images from inside and 2 from outside of digits; 4 others choose it",
    )
    assert found.notes == (
        "3 finished trials in no number: not asked, or without weights",
        "stored too, and shown where --dataset names them: imagefolder/a/b",
    )


def test_other_images_of_the_same_name_are_a_warning(finish: Finish) -> None:
    suite, trials, cells = finish()
    assert suite.ood
    more = [replace(row, out_fingerprint="0123") for row in told(suite, trials[1].id, 3.0)]
    found = ood.table(frame([*told(suite, trials[0].id, 3.0), *more]), cells, suite.name, [suite.ood])
    assert found.notes == (
        "2 finished trials in no number: not asked, or without weights",
        "warning: images of svhn differ, fingerprints fedc / 0123",
    )


def test_images_are_judged_by_the_threshold_of_their_own_dataset(load_suite: LoadSuite) -> None:
    suite, trials = load_suite(SUITE)
    other, _ = load_suite(SUITE, "ood.dataset=digits")
    rows = frame([*told(suite, trials[0].id, 3.0), *told(other, trials[0].id, 9.0)])
    rows.loc[rows["dataset"] == "digits", "threshold"] = 7.0
    scores = pd.concat(
        pd.DataFrame({"trial_id": trials[0].id, **{name: getattr(one, name) for name in Activations.__slots__}})
        for one in (activations(3.0), replace(activations(9.0), outside="digits"))
    )
    found = ood.frame(rows, scores)
    assert {*zip(found["outside"], found["threshold"], strict=True)} == {("svhn", 2.0), ("digits", 7.0)}
    assert len(found) == scores["judged"].sum()
    before = scores[scores["outside"] == "svhn"].assign(outside=None)  # as files had it before there was the column
    assert {*ood.frame(rows[rows["dataset"] == "svhn"], before)["outside"]} == {"svhn"}
