"""Figures: what they compute, by value; that every kind can be drawn and read; the command line."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made import Raybench
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import stats
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from raybench import figures, plan
from raybench.errors import UserError
from raybench.figures import OF_TRIALS, PLOTS, Results, available, classes, curves, draw, grids, images, save, svg
from raybench.figures import results as data
from raybench.grid import Trial
from raybench.records import EpochRow, Outcome, Predictions, TrialRow
from raybench.search import Ended
from raybench.store import Store
from raybench.suite import Suite
from raybench.table import render

NAMES = ("airplane", "automobile", "bird")
SUITE = """
name: made
about: made up numbers
dataset: {name: digits, validation: {size: 100}}
compare: {model: [mlp, small_cnn], lr: [1e-2, 1e-3], train.batch_size: [16, 32]}
repeat: {seed: 3}
train: {epochs: 4}
"""


def row_of(trial: Trial, **values: Any) -> TrialRow:
    rng = np.random.default_rng(int(trial.id[:8], 16))
    row = TrialRow(
        trial_id=trial.id,
        suite=trial.suite,
        dataset="digits",
        model=str(trial.labels.get("model", "mlp")),
        augmentation="none",
        seed=trial.seed,
        lr=trial.settings["train"]["lr"],
        axes={"train.batch_size": trial.labels.get("train.batch_size", 32)},
        status="completed",
        epochs=4,
        best_epoch=4,
        selection="val_accuracy",
        validation="size 100",
        test_accuracy=round(float(rng.uniform(0.5, 0.9)), 3),
        test_loss=1.0,
        val_accuracy=0.8,
        settings="{}",
        dataset_fingerprint="0123456789abcdef",
    )
    return dataclasses.replace(row, **values)


def epochs_of(trial: Trial, count: int = 4) -> tuple[EpochRow, ...]:
    rng = np.random.default_rng(int(trial.id[:8], 16))
    noise = rng.uniform(0, 0.1, (count, 4))
    return tuple(
        EpochRow(
            trial_id=trial.id,
            epoch=number + 1,
            train_loss=2 / (number + 1) + noise[number, 0],
            train_accuracy=1 - 0.6 / (number + 1) - noise[number, 1],
            val_loss=2.2 / (number + 1) + noise[number, 2],
            val_accuracy=1 - 0.7 / (number + 1) - noise[number, 3],
            lr=0.01,
        )
        for number in range(count)
    )


def predicted(trial: Trial, n: int = 60, count: int = len(NAMES)) -> pd.DataFrame:
    rng = np.random.default_rng(int(trial.id[:8], 16))
    label = np.arange(n) % count
    prediction = np.where(rng.random(n) < 0.7, label, rng.integers(0, count, n))
    return pd.DataFrame({"trial_id": trial.id, "index": np.arange(n), "label": label, "prediction": prediction})


def flat(rows: Sequence[TrialRow]) -> pd.DataFrame:
    found = [dataclasses.asdict(row) for row in rows]
    return pd.DataFrame([{**values, **values.pop("axes")} for values in found])


def detected(trials: Sequence[Trial]) -> pd.DataFrame:
    names = ["layer features.relu (ReLU)", "layer an.even.longer.name.relu (ReLU)", "max softmax"]
    columns = ["trial_id", "name", "dataset", "value"]
    frame = pd.DataFrame(
        itertools.product([trial.id for trial in trials], names, ["in", "out"], range(50)), columns=columns
    )
    return frame.assign(
        value=(frame["value"] + (frame["dataset"] == "out") * 25) / 4000 + 0.0067,
        index=frame["value"],
        score="mean_activation",
        layer="relu",
        threshold=0.015,
        accuracy=frame["name"].map({name: 0.5 + (name == names[1]) / 4 for name in names}),
        outside="svhn",
        settings="{}",
        out_fingerprint="fedc",
    )


def made(
    suite: Suite,
    trials: Sequence[Trial],
    rows: Sequence[TrialRow] | None = None,
    epochs: Sequence[EpochRow] | None = None,
    names: tuple[str, ...] = NAMES,
) -> Results:
    """Return results of a plan: by default every trial has finished."""
    stored = {trial.id: predicted(trial, count=len(names)) for trial in trials}
    all_epochs = itertools.chain(*map(epochs_of, trials)) if epochs is None else epochs
    columns = [field.name for field in dataclasses.fields(EpochRow)]
    return Results(
        suite=suite,
        trials=trials,
        rows=flat([row_of(trial) for trial in trials] if rows is None else rows),
        epochs=pd.DataFrame([dataclasses.asdict(epoch) for epoch in all_epochs], columns=columns),
        predictions=lambda ids: pd.concat([stored[id_] for id_ in ids], ignore_index=True),
        classes=lambda trial: names,
        detections=lambda: detected(trials),
        images=lambda trial, index: np.full((len(index), 8, 8, 3), 90, np.uint8),
        foreign=lambda trial, settings, fingerprint, index: np.full((len(index), 8, 8, 3), 30, np.uint8),
    )


Load = Callable[..., tuple[Suite, list[Trial]]]


@pytest.fixture
def results(load_suite: Load) -> Results:
    return made(*load_suite(SUITE))


def options_of(kind: str) -> dict[str, Any]:
    """Return what a kind is given besides the results."""
    n = 6
    rng = np.random.default_rng(0)
    if kind == "gradcam":
        pixels = rng.integers(0, 255, (n, 8, 8, 3), np.uint8)
        return {"images": pixels, "maps": rng.random((n, 8, 8)), "true": [*"abc"] * 2, "predicted": [*"abb"] * 2}
    return {}


# ---------------------------------------------------------------------------------------------------------------------
# What is computed


def test_a_band_by_hand() -> None:
    epochs = pd.DataFrame(
        [("a", 1, 0.5), ("a", 2, 0.75), ("b", 1, 0.25), ("b", 2, 0.25), ("b", 3, 1.0)],
        columns=["trial_id", "epoch", "val_accuracy"],
    )
    table = curves.band(epochs, "val_accuracy")
    assert table.to_dict("list") == {
        "n": [2, 2, 1],
        "mean": [0.375, 0.5, 1.0],
        "low": [0.25, 0.25, 1.0],
        "high": [0.5, 0.75, 1.0],
    }
    std = curves.band(epochs, "val_accuracy", "std")
    assert std.loc[1, "high"] - std.loc[1, "mean"] == pytest.approx(np.std([0.5, 0.25], ddof=1))
    assert std.loc[3, "low"] == std.loc[3, "high"] == 1.0


def test_values_are_those_of_finished_trials_cell_by_cell(load_suite: Load) -> None:
    suite, trials = load_suite(SUITE)
    rows = [row_of(trial, test_accuracy=number / 64) for number, trial in enumerate(trials)]
    rows[0] = dataclasses.replace(rows[0], status="failed", test_accuracy=None)
    rows[1] = dataclasses.replace(rows[1], status="pruned")
    results = made(suite, trials, rows[:-1])
    frame = data.values(results)
    assert len(frame) == len(trials) - 3  # failed, pruned, not run
    assert set(frame["trial_id"]) == {trial.id for trial in trials[2:-1]}
    number = {trial.id: n for n, trial in enumerate(trials)}
    assert [value * 64 for value in frame[data.VALUE]] == [number[id_] for id_ in frame["trial_id"]]
    first = frame.iloc[0]
    assert (first["model"], first["lr"], first["train.batch_size"], first["seed"]) == ("mlp", 0.01, 16, 1)


def test_a_pivot_by_hand() -> None:
    frame = pd.DataFrame({"a": [1, 1, 1, 2], "b": ["x", "x", "y", "x"], data.VALUE: [0.25, 0.75, 0.5, 1.0]})
    means, counts = grids.pivot(frame, "a", "b")
    assert means.loc[1].to_dict() == {"x": 0.5, "y": 0.5}
    assert means.loc[2, "x"] == 1.0
    assert math.isnan(means.loc[2, "y"])
    assert counts.to_numpy().tolist() == [[2, 1], [1, 0]]


def test_the_ranking_has_scipys_intervals() -> None:
    numbers = {0: [0.5, 0.6, 0.7], 1: [0.9], 2: [0.8, 0.82]}
    frame = pd.DataFrame([(cell, value) for cell, values in numbers.items() for value in values])
    frame.columns = [data.CELL, data.VALUE]
    table = grids.ranked(frame)
    assert table["cell"].tolist() == [1, 2, 0]
    assert table["n"].tolist() == [1, 2, 3]
    assert math.isnan(table.loc[0, "low"])
    mean, spread = np.mean(numbers[0]), stats.sem(numbers[0])
    assert table.loc[2, ["low", "high"]].tolist() == pytest.approx(stats.t.interval(0.95, 2, mean, spread))


def test_confusion_is_the_mean_over_the_seeds_of_scikit_learns(results: Results) -> None:
    trials = data.cells(results)[0].trials
    assert len(trials) == 3
    each = [predicted(trial) for trial in trials]
    expected = np.mean([confusion_matrix(one["label"], one["prediction"]) for one in each], axis=0)
    (first, *_), _ = classes.shown(results)
    (one,), _ = classes.measured(results, [first], lambda frame, names: classes.counts(frame, len(names)))
    assert one.classes == NAMES
    assert np.array_equal(one.each.mean(axis=0), expected)
    assert [matrix.sum() for matrix in one.each] == [60] * 3


def test_a_confusion_matrix_has_classes_that_nobody_saw() -> None:
    frame = pd.DataFrame({"label": [0, 0, 1], "prediction": [0, 1, 1]})
    assert classes.counts(frame, 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_class_scores_are_scikit_learns(results: Results) -> None:
    one = predicted(results.trials[0])
    table = classes.class_scores(one, NAMES)
    precision, recall, f1, support = precision_recall_fscore_support(one["label"], one["prediction"])
    assert np.array_equal(table.loc[list(NAMES)].to_numpy(), np.transpose([precision, recall, f1, support]))
    macro = precision_recall_fscore_support(one["label"], one["prediction"], average="macro")
    assert table.loc["macro avg"].tolist() == pytest.approx([*macro[:3], 60])
    weighted = precision_recall_fscore_support(one["label"], one["prediction"], average="weighted")
    assert table.loc["weighted avg"].tolist() == pytest.approx([*weighted[:3], 60])
    assert table.loc["accuracy", "f1"] == (one["label"] == one["prediction"]).mean()


def test_a_class_that_is_never_predicted_has_precision_0() -> None:
    table = classes.class_scores(pd.DataFrame({"label": [0, 1, 2], "prediction": [0, 0, 0]}), NAMES)
    assert table["precision"].tolist()[:3] == [1 / 3, 0, 0]
    assert table.loc["accuracy", "f1"] == 1 / 3


def test_the_table_of_classes(results: Results) -> None:
    table = classes.class_table(results)
    rows = [dict(zip([column.name for column in table.columns], row, strict=True)) for row in table.rows]
    assert len(rows) == 8 * 6
    scores = [classes.class_scores(predicted(trial), NAMES) for trial in data.cells(results)[0].trials]
    f1 = [one.loc["bird", "f1"] for one in scores]
    assert rows[2] == {
        "model": "mlp",
        "lr": 0.01,
        "train.batch_size": 16,
        "class": "bird",
        "n": 3,
        "precision": pytest.approx(np.mean([one.loc["bird", "precision"] for one in scores])),
        "recall": pytest.approx(np.mean([one.loc["bird", "recall"] for one in scores])),
        "f1": pytest.approx(np.mean(f1)),
        "f1_std": pytest.approx(np.std(f1, ddof=1)),
        "support": 20,
    }
    assert rows[3]["class"] == "accuracy"
    assert rows[3]["precision"] is rows[3]["recall"] is None
    one = classes.class_table(results, results.trials[0].id[:12])
    assert one.title == "made: classes of mlp/0.01/16/s0"
    assert [row[:2] for row in one.rows] == [(name, 1) for name in (*NAMES, *classes.AVERAGES)]
    assert {row[5] for row in one.rows} == {None}
    for format in ("markdown", "latex", "csv", "json"):
        assert "weighted avg" in render(table, format)


def test_the_images_of_a_gallery_are_drawn_by_a_seed(results: Results) -> None:
    stored = predicted(results.trials[0])
    right, wrong = images.pick(stored, 5, 0)
    assert len(right) == len(wrong) == 5
    assert (right["label"] == right["prediction"]).all()
    assert (wrong["label"] != wrong["prediction"]).all()
    shuffled = stored.sample(frac=1, random_state=1)
    assert images.pick(shuffled, 5, 0)[0]["index"].tolist() == right["index"].tolist()
    assert images.pick(stored, 5, 1)[0]["index"].tolist() != right["index"].tolist()
    assert len(images.pick(stored, 1000, 0)[1]) == (stored["label"] != stored["prediction"]).sum()


def test_a_search_shows_winners_in_cells_and_all_in_points(load_suite: Load) -> None:
    text = SUITE.replace("compare: {model: [mlp, small_cnn], lr: [1e-2, 1e-3], train.batch_size: [16, 32]}", "")
    suite, trials = load_suite(f"{text}compare: {{model: [mlp, small_cnn]}}\nsearch: {{lr: [1e-2, 1e-3]}}\n")
    rows = [row_of(trial) for trial in trials]
    results = made(suite, trials, rows)
    assert [len(cell.trials) for cell in data.points(results)] == [1, 1, 1, 1]
    assert [cell.trials for cell in data.cells(results)] == [[], []]  # no winner is known yet
    assert available("curves", results) == "no planned trial has finished"


# ---------------------------------------------------------------------------------------------------------------------
# Words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["modle=mlp"], "modle=mlp: no axis is called 'modle'; did you mean 'model'?"),
        (["model=mpl"], "model=mpl: no such value of model; did you mean 'mlp'?"),
        (["mlp"], "mlp: must be axis=value, e.g. model=mlp"),
    ],
)
def test_words_that_name_no_part(results: Results, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        data.chosen(results.trials, words)


def test_words_keep_a_part(results: Results) -> None:
    kept = data.chosen(results.trials, ["lr=0.010", "model=mlp", "model=small_cnn", "seed=2"])
    assert {(trial.labels["lr"], trial.seed) for trial in kept} == {(0.01, 2)}
    assert len(kept) == 4


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("curvs", {}, "unknown figure 'curvs'; did you mean 'curves'?"),
        ("box", {"rows": "lr"}, "figure 'box' has no option 'rows'; known: axis, metric"),
        ("box", {"axis": "modl"}, "--axis modl: is no axis of made; did you mean 'model'?"),
        ("heatmap", {"rows": "lr", "columns": "lr"}, "--rows lr --columns lr: name different axes"),
        ("ranking", {"metric": "test_acuracy"}, "--metric test_acuracy: no such metric; did you mean 'test_accuracy'?"),
        ("curves", {"metric": "los"}, "--metric los: no such metric of epochs; did you mean 'loss'?"),
        ("gallery", {"trial": "mlp/0.01/16/s7"}, "--trial mlp/0.01/16/s7: no finished trial of made is called so"),
        ("activations", {"trial": "mlp/0.01/16/s7"}, "--trial mlp/0.01/16/s7: no finished trial of made is called so"),
        ("gradcam", {"count": 3}, "made: cannot draw gradcam: is made from a trial's weights"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_line(
    results: Results, kind: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        draw(kind, results, **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_axes_may_have_the_names_of_columns(load_suite: Load) -> None:
    axes = "{cell: {a: {}, b: {train.epochs: 5}}, value: {c: {}, d: {train.batch_size: 8}}, lr: [1e-2, 1e-3]}"
    results = made(*load_suite(SUITE.partition("compare")[0] + f"model: mlp\ncompare: {axes}\nrepeat: {{seed: 2}}\n"))
    for kind in ("box", "heatmap", "grid", "ranking", "lr", "curves"):
        assert overlaps(draw(kind, results)) == [], kind


@pytest.mark.parametrize(
    ("axis", "name"),
    [("lr: [1e-2, 1e-3]", "lr"), ("train.lr: [1e-2, 1e-3]", "train.lr"), ("lr: {fast: 1e-2, slow: 1e-3}", "lr")],
)
def test_the_axis_of_learning_rates_however_it_is_written(load_suite: Load, axis: str, name: str) -> None:
    results = made(*load_suite(SUITE.replace("lr: [1e-2, 1e-3]", axis)))
    assert [available(kind, results) for kind in ("lr", "curves_by_lr")] == [None, None]
    figure = draw("lr", results)
    (panel,) = figure.axes
    points = [rate for line in panel.lines if line.get_alpha() == 0.35 for rate in line.get_xdata()]
    assert len(points) == 2 * 2 * 2 * 3 and {0.001, 0.01} == {float(f"{rate:.1g}") for rate in points}
    said = [text for text, _ in texts(figure)]
    assert {"mlp / batch_size 16", "learning rate at the first step (log scale)"} <= {*said}
    curves = [text for text, _ in texts(draw("curves_by_lr", results))]
    assert f"made: validation curves by {name}" in curves
    labels = ("fast", "slow") if "fast" in axis else ("0.001", "0.01")
    assert {f"{name} {label}" for label in labels} <= {*curves}


def test_what_is_missing_for_a_kind(load_suite: Load) -> None:
    suite, trials = load_suite(SUITE.replace("lr: [1e-2, 1e-3], train.batch_size: [16, 32]", "augmentation: [none]"))
    bare = dataclasses.replace(
        made(suite, trials, epochs=[]), classes=lambda trial: (), images=None, detections=lambda: detected([])
    )
    assert {kind: reason for kind in PLOTS.names() if (reason := available(kind, bare))} == {
        "curves": "no epochs that can be read are stored",
        "lr": "needs an axis lr with several values",
        "curves_by_lr": "no epochs that can be read are stored",
        "heatmap": "needs 2 axes with several values; the plan has model",
        "grid": "needs 3 axes with several values; the plan has model",
        "confusion": "needs predictions, and none that can be read are stored",
        "class_report": "needs predictions, and none that can be read are stored",
        "gallery": "needs predictions, and none that can be read are stored",
        "gradcam": "is made from a trial's weights: `raybench gradcam` does it",
        "activations": "needs scores of images from outside: `raybench ood` stores them",
        "outside": "needs scores of images from outside: `raybench ood` stores them",
    }
    nothing = made(suite, trials, [row_of(trial, status="failed", test_accuracy=None) for trial in trials])
    assert {str(available(kind, nothing)).partition(":")[0] for kind in PLOTS.names()} == {
        "no planned trial has finished",
        "is made from a trial's weights",
    }


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def texts(figure: Figure) -> list[tuple[str, Any]]:
    """Return every text that is seen, with its extent in pixels."""
    FigureCanvasAgg(figure).draw()
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            drawn = set(axis._update_ticks())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if tick not in drawn or not axis.get_visible() or not axes.get_visible():
                    hidden |= {tick.label1, tick.label2}
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent()) for text in found if text not in hidden]


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Return the pairs of texts of which one covers the other, by more than a pixel."""

    def covers(a: Any, b: Any) -> bool:
        return min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1

    pairs = itertools.combinations(texts(figure), 2)
    return [(one, other) for (one, at), (other, there) in pairs if covers(at, there)]


def outside(figure: Figure) -> list[str]:
    """Return the texts that go over the edge."""
    width, height = figure.bbox.width, figure.bbox.height
    return [text for text, at in texts(figure) if at.x0 < -1 or at.y0 < -1 or at.x1 > width + 1 or at.y1 > height + 1]


def test_signs_that_no_font_has_are_told_once(
    load_suite: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(figures.style, "FONTS", figures.style.FONTS[:1])  # a machine may have others
    text = SUITE.replace("[mlp, small_cnn]", "{\u6c49 \u5b57: mlp, other: small_cnn}")
    figure = draw("ranking", made(*load_suite(text)))
    line = "no font here has U+5B57, U+6C49: install Noto Sans CJK, for instance"
    assert [text.get_text() for text in figure.texts if "font" in text.get_text()] == [line]
    for suffix in ("png", "svg", "pdf"):
        save(figure, tmp_path / f"x.{suffix}")


@pytest.mark.parametrize("kind", PLOTS.names())
def test_every_kind_is_drawn_the_same_twice_and_nothing_overlaps(results: Results, kind: str) -> None:
    options = options_of(kind)
    figure = draw(kind, results, **options)
    text = svg(figure)
    assert text == svg(draw(kind, results, **options))
    assert text.startswith("<svg")
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert {*re.findall(r'(?:href="|url\()#([^")]+)', text)} <= {*ids}
    assert PLOTS.get(kind).__doc__
    assert overlaps(figure) == []
    assert outside(figure) == []
    assert figure.get_figwidth() <= 7.1


LONG = """
name: long_names
dataset: {name: digits, validation: test}
compare:
  model:
    a_rather_long_name_of_a_network: mlp
    another_name_that_is_longer_still_by_far: small_cnn
    m3: {name: mlp, hidden: [33]}
  augmentation: {none: none, shift and rotation and more: [{shift: 0.05}, {rotation: 5}], flip: flip, x1: {shift: 0.1}}
  train.batch_size: [16, 32]
repeat: {seed: 2}
"""


@pytest.mark.parametrize("kind", [kind for kind in PLOTS.names() if "lr" not in kind])
def test_long_names_many_cells_and_doubts_do_not_overlap(load_suite: Load, kind: str) -> None:
    suite, trials = load_suite(LONG)
    epochs = itertools.chain(*(epochs_of(trial, 3 + number % 5) for number, trial in enumerate(trials)))
    rows = [row_of(trial, validation="test") for trial in trials[5:]]
    results = made(suite, trials, rows, list(epochs), tuple(f"class number {number}" for number in range(6)))
    figure = draw(kind, results, **options_of(kind))
    assert overlaps(figure) == []
    assert outside(figure) == []
    said = " ".join(text for text, _ in texts(figure))
    assert "WARNING: validation images = TEST images" in said
    assert "finished trials of those planned: a_rather_long_name_of_a_network / none /" in said


def test_names_are_broken_where_they_can_be() -> None:
    assert figures.style.broken("train.optimizer.momentum", 16) == "train.optimizer.\nmomentum"
    assert figures.style.broken("a_long_name / lr 0.001", 10) == "a_long_\nname / lr\n0.001"
    assert figures.style.broken("indivisible", 4) == "indivisible"


def test_colours_can_be_told_apart_in_grey_by_dashes_and_markers() -> None:
    looks = [figures.style.look(index) for index in range(9)]
    assert len({(str(look["linestyle"]), look["marker"]) for look in looks}) == 9
    assert len({look["color"] for look in looks}) == 9


def test_trials_that_stop_early_go_on_as_thin_lines_and_pruned_ones_are_in_no_mean(load_suite: Load) -> None:
    suite, trials = load_suite(SUITE.replace("seed: 3", "seed: 4"))
    cell = data.cells(made(suite, trials))[0].trials
    epochs = [*epochs_of(cell[0], 4), *epochs_of(cell[1], 2), *epochs_of(cell[2], 3), *epochs_of(cell[3], 2)]
    rows = [row_of(trial) for trial in cell[:3]] + [row_of(cell[3], status="pruned")]
    figure = draw("curves", made(suite, cell, rows, epochs), metric="accuracy")
    (panel,) = figure.axes
    solid = [line for line in panel.lines if line.get_color() == figures.style.COLORS[1]]
    mean, *others = solid
    expected = np.mean(
        [
            [epoch.val_accuracy for epoch in epochs_of(trial, n)[:2]]
            for trial, n in zip(cell[:3], (4, 2, 3), strict=True)
        ],
        0,
    )
    assert mean.get_ydata() == pytest.approx(expected)
    assert [list(line.get_xdata()) for line in others] == [[2, 3, 4], [2, 3], [1, 2]]
    assert [line.get_linestyle() for line in others] == ["-", "-", ":"]
    said = " ".join(text for text, _ in texts(figure))
    assert "mean of n = 3 finished trials, as far as all of them have trained" in said
    assert "pruned trials are in no mean" in said


SEARCH = """
name: tuned
dataset: {name: digits, validation: {size: 100}}
compare: {model: [mlp, small_cnn]}
search: {lr: [1e-1, 1e-2, 1e-3, 1e-4]}
prune: asha
repeat: {seed: 3}
train: {epochs: 4}
"""
DRAWN = """
name: drawn
dataset: {name: digits, validation: {size: 100}}
compare: {model: [mlp, small_cnn]}
search: {lr: {range: [1e-4, 1e-1], log: true}, train.batch_size: [16, 32, 64]}
draw: {points: 4}
confirm: none
repeat: {seed: 2}
train: {epochs: 4}
"""


def test_winners_are_in_means_and_points_of_the_search_against_the_learning_rate(load_suite: Load) -> None:
    suite, first = load_suite(SEARCH)
    lost = {trial.id for trial in first if trial.labels["lr"] == 1e-4}
    ended = {
        trial.id: Ended("pruned" if trial.id in lost else "completed", 0.5 + trial.labels["lr"], 4, None, None)  # type: ignore[operator]
        for trial in first
    }
    trials = plan.expand(suite, ended=ended)
    rows = [row_of(trial, status="pruned" if trial.id in lost else "completed") for trial in trials]
    results = made(suite, trials, rows)
    assert {cell.labels["lr"] for cell in data.cells(results)} == {0.1}
    assert len(data.values(results)) == 2 * 3
    assert len(data.values(results, every_point=True)) == 2 * (3 + 2)
    said = " ".join(text for text, _ in texts(draw("curves_by_lr", results)))
    assert "pruned trials are in no mean" in said
    (panel,) = draw("lr", results).axes
    assert sum(len(line.get_xdata()) for line in panel.lines if line.get_alpha() == 0.35) == 2 * (3 + 2)


def test_axes_that_are_drawn_are_in_no_heat_map(load_suite: Load) -> None:
    suite, trials = load_suite(DRAWN)
    ended: dict[str, Ended] = {}
    while len(trials) > len(ended):
        ended |= {trial.id: Ended("completed", 0.5, 4, trial.draw, trial.labels) for trial in trials}
        trials = plan.expand(suite, ended=ended)
    results = made(suite, trials)
    assert data.listed_axes(results) == ["model", "train.batch_size"]
    assert available("grid", results) == "needs 3 axes with several values; the plan has model, train.batch_size"
    for kind in ("lr", "curves_by_lr", "box", "heatmap", "ranking"):
        assert overlaps(draw(kind, results)) == [], kind


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_file_is_the_same_twice(results: Results, tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        save(draw("heatmap", results), tmp_path / f"{name}{suffix}")
    content = (tmp_path / f"a{suffix}").read_bytes()
    assert content == (tmp_path / f"b{suffix}").read_bytes()
    assert content[:4] in (b"\x89PNG", b"<?xm", b"%PDF")


def test_a_file_that_cannot_be_written(results: Results, tmp_path: Path) -> None:
    figure = draw("heatmap", results)
    with pytest.raises(UserError, match=r"a\.gif: a figure's file ends in \.png, \.svg, \.pdf$"):
        save(figure, tmp_path / "a.gif")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/a\.png: cannot be written: "):
        save(figure, tmp_path / "file" / "a.png")


# ---------------------------------------------------------------------------------------------------------------------
# The command line


TWO_CELLS = SUITE.replace("lr: [1e-2, 1e-3], train.batch_size: [16, 32]", "augmentation: [none]").replace("3}", "2}")


def outcome(trial: Trial, fingerprint: str | None) -> Outcome:
    """Return a finished trial with predictions of 100 of the digits."""
    frame = predicted(trial, 100, 10)
    index, label, prediction = (frame[name].to_numpy() for name in ("index", "label", "prediction"))
    logits = np.eye(10, dtype=np.float16)[prediction]
    predictions = Predictions(index=index, label=label, logits=logits, prediction=prediction)
    row = row_of(trial, axes={}, dataset_fingerprint=fingerprint)
    return Outcome(row=row, epochs=epochs_of(trial), predictions=predictions)


@pytest.fixture
def stored(load_suite: Load, tmp_path: Path) -> Path:
    """Results of two cells and two seeds on digits, of which one trial has failed."""
    suite, trials = load_suite(TWO_CELLS)
    store = Store(tmp_path / "results", suite)
    store.open(plan.snapshot(plan.Choice(suite)))
    for trial in trials:
        store.write(outcome(trial, None))
    failed = row_of(trials[-1], axes={}, status="failed", test_accuracy=None, dataset_fingerprint=None)
    store.write(Outcome(row=failed))
    store.close()
    return tmp_path / "results" / "made"


@pytest.fixture
def command(raybench: Raybench, stored: Path) -> Raybench:
    """``command("plot", ...)`` runs in a folder with results of ``made``."""
    return raybench


def test_plot_prints_where_the_figure_is(command: Raybench, tmp_path: Path) -> None:
    assert command("plot", "curves", "made") == (0, "made-curves.png\n", "")
    assert (tmp_path / "made-curves.png").read_bytes()[:4] == b"\x89PNG"
    assert command("plot", "ranking", "results/made", "-o", "new/a.pdf")[:2] == (0, "new/a.pdf\n")
    assert command("plot", "box", "made", "model=mlp", "--axis", "seed", "-o", "new")[:2] == (0, "new/made-box.png\n")


def test_plot_names_classes_and_shows_images_of_the_dataset(command: Raybench) -> None:
    status, out, err = command("plot", "gallery", "made", "--count", "2", "--trial", "mlp/none/s1", "-o", "g.svg")
    assert (status, out, err) == (0, "g.svg\n", "")
    assert Path("g.svg").read_text().count("<image") == 4
    assert command("plot", "confusion", "made", "-o", "c.svg")[0] == 0
    assert "small_cnn, n=1" in Path("c.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["curvs", "made"], "raybench: unknown figure 'curvs'; did you mean 'curves'?\n"),
        (["curves", "made", "modl=mlp"], "raybench: modl=mlp: no axis is called 'modl'; did you mean 'model'?\n"),
        (
            ["heatmap", "made"],
            "raybench: made: cannot draw heatmap: needs 2 axes with several values; the plan has model\n",
        ),
        (["box", "made", "--trial", "x"], "raybench: figure 'box' has no option 'trial'; known: axis, metric\n"),
        (["box", "made", "-o", "a.jpg"], "raybench: a.jpg: a figure's file ends in .png, .svg, .pdf\n"),
        (
            ["ranking", "made", "model=small_cnn", "seed=1"],
            "raybench: made: cannot draw ranking: no planned trial has finished\n",
        ),
    ],
)
def test_plot_says_what_is_wrong(command: Raybench, arguments: list[str], message: str) -> None:
    assert command("plot", *arguments) == (2, "", message)


def test_the_help_of_plot_lists_every_kind(command: Raybench) -> None:
    status, out, _ = command("plot", "--help")
    assert status == 0
    for name in PLOTS.names():
        assert f" {name}: " in out


def test_images_must_be_those_that_were_tested_on(command: Raybench, stored: Path, load_suite: Load) -> None:
    suite, trials = load_suite(TWO_CELLS)
    store = Store(stored.parent, suite)
    store.open()
    store.write(outcome(trials[0], "0123456789abcdef"))
    store.close()
    status, _, err = command("plot", "gallery", "made")
    assert status == 2
    assert "has other digits images (fingerprint " in err
    status, out, err = command("plot", "confusion", "made")
    assert (status, out) == (0, "made-confusion.png\n")
    assert err.startswith("classes have no names here: ")


def test_classes_prints_a_table(command: Raybench) -> None:
    status, out, err = command("classes", "made", "model=mlp", "--format", "json")
    assert (status, err) == (0, "")
    table = json.loads(out)
    assert table["columns"] == ["class", "n", "precision", "recall", "f1", "f1_std", "support"]
    assert [row["class"] for row in table["rows"]] == [*"0123456789", *classes.AVERAGES]
    assert {row["n"] for row in table["rows"]} == {2}
    assert table["rows"][0]["support"] == 10


def test_a_figure_needs_neither_torch_nor_ray(command: Raybench) -> None:
    code = """
import sys
from raybench import cli
sys.argv = ["raybench", "plot", "gallery", "made"]
try:
    cli.main()
except SystemExit as end:
    assert end.code == 0, end.code
assert not {"torch", "ray", "matplotlib.pyplot"} & set(sys.modules), sys.modules.keys()
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (out.stdout, out.stderr) == ("made-gallery.png\n", "")


# ---------------------------------------------------------------------------------------------------------------------
# Cells on different datasets, and files that cannot be read


@pytest.fixture
def two_datasets(load_suite: Load, tmp_path: Path) -> Callable[[str], Results]:
    """``two_datasets("cifar100, digits")`` returns results of two seeds on each, a class of their own every one."""

    def make(names: str) -> Results:
        suite, trials = load_suite(
            f"name: two\ndataset: digits\nmodel: mlp\ncompare: {{dataset: [{names}]}}\nrepeat: {{seed: 2}}\n"
        )
        store = Store(tmp_path / "results", suite)
        store.open(plan.snapshot(plan.Choice(suite)))
        for trial in trials:
            count = {"digits": 10, "cifar100": 100}[str(trial.labels["dataset"])]
            frame = predicted(trial, 300, count)
            frame = frame[frame["label"] != count - 1]  # the last class is in no image, but in the logits
            index, label, prediction = (frame[name].to_numpy() for name in ("index", "label", "prediction"))
            logits = np.eye(count, dtype=np.float16)[prediction]
            row = row_of(trial, dataset=str(trial.labels["dataset"]), axes={}, dataset_fingerprint=None)
            found = Predictions(index=index, label=label, logits=logits, prediction=prediction)
            store.write(Outcome(row=row, epochs=epochs_of(trial), predictions=found))
        store.close()
        return data.collect(store, plan.Choice(suite))

    return make


@pytest.mark.parametrize("names", ["cifar100, digits", "digits, cifar100"])
def test_every_cell_has_the_classes_of_its_own_dataset(two_datasets: Callable[[str], Results], names: str) -> None:
    results = two_datasets(names)
    table = classes.class_table(results)
    for dataset, count in (("digits", 10), ("cifar100", 100)):
        rows = [row for row in table.rows if row[0] == dataset]
        assert [row[1] for row in rows] == [*map(str, range(count)), *classes.AVERAGES]
        trials = [trial for trial in results.trials if trial.labels["dataset"] == dataset]
        each = [results.predictions([trial.id]) for trial in trials]
        f1 = [
            precision_recall_fscore_support(
                one["label"], one["prediction"], labels=range(count), average="macro", zero_division=0
            )[2]
            for one in each
        ]
        assert rows[-2][5] == pytest.approx(np.mean(f1))
    for kind in ("confusion", "class_report"):
        figure = draw(kind, results)
        assert overlaps(figure) == []
        panels = [axes for axes in figure.axes if axes.get_title()]
        for panel in panels:
            words = [label.get_text() for label in panel.get_yticklabels()]
            numbers = [int(word) for word in words if word not in classes.AVERAGES]
            assert (max(numbers) > 90) if "cifar100" in panel.get_title() else (max(numbers) == 9)
            assert panel.yaxis.get_tick_params()["labelleft"]


def test_names_of_classes_come_from_each_cells_own_dataset(
    two_datasets: Callable[[str], Results], command: Raybench
) -> None:
    two_datasets("cifar100, digits")
    status, out, err = command("classes", "two", "--format", "json")
    assert status == 0
    assert err.startswith("classes have no names here: no data/cifar-100-python/train")
    assert err.count("\n") == 1  # digits comes with scikit-learn, CIFAR-100 does not
    rows = json.loads(out)["rows"]
    assert [row["class"] for row in rows if row["dataset"] == "digits"][:3] == ["0", "1", "2"]
    status, out, err = command("plot", "gallery", "two")
    assert (status, out) == (2, "")
    assert err.startswith("raybench: no data/cifar-100-python/train") and err.count("\n") == 1
    assert command("plot", "gallery", "two", "dataset=digits")[:2] == (0, "two-gallery.png\n")


def tear(folder: Path, *trials: Trial) -> list[str]:
    """Cut the files of some trials in half, as a full disk might; return their paths."""
    paths = [folder / f"{trial.id}.parquet" for trial in trials]
    for path in paths:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return [str(path) for path in paths]


@pytest.fixture
def whole(load_suite: Load, tmp_path: Path) -> tuple[Path, list[Trial]]:
    """Results of two cells with three finished trials each."""
    suite, trials = load_suite(TWO_CELLS.replace("seed: 2", "seed: 3").replace("name: made", "name: whole"))
    store = Store(tmp_path / "results", suite)
    store.open(plan.snapshot(plan.Choice(suite)))
    for trial in trials:
        store.write(outcome(trial, None))
    store.close()
    return store.folder, trials


def headings(path: str) -> set[str]:
    return {text for text in re.findall(r">([^<>]+)</text>", Path(path).read_text()) if ", n=" in text}


def caption(path: str) -> str:
    """Return all words of a figure; lines of text are written from the last to the first."""
    return " ".join(reversed(re.findall(r">([^<>]+)</text>", Path(path).read_text())))


def test_predictions_that_cannot_be_read_are_not_counted_and_are_named(
    command: Raybench, whole: tuple[Path, list[Trial]]
) -> None:
    folder, trials = whole
    (torn,) = tear(folder / "predictions", trials[0])
    for kind in ("confusion", "class_report"):
        status, out, err = command("plot", kind, "whole", "-o", "a.svg")
        assert (status, out) == (0, "a.svg\n")
        assert err.count("\n") == 1 and err.startswith(f"{Path(torn).relative_to(Path.cwd())}: not a readable result")
        assert headings("a.svg") == {"mlp, n=2", "small_cnn, n=3"}
        said = caption("a.svg")
        assert f"finished trials without predictions that can be read, not shown: {trials[0].name}" in said
        assert "files that cannot be read: 1" in said
    status, out, err = command("classes", "whole", "--format", "json")
    assert status == 0 and "not a readable result" in err
    table = json.loads(out)
    assert [(row["model"], row["class"], row["n"]) for row in table["rows"][:1]] == [("mlp", "0", 2)]
    assert f"finished trials without predictions that can be read, not shown: {trials[0].name}" in table["notes"]
    status, out, err = command("plot", "gallery", "whole", "-o", "g.svg")
    assert status == 0 and "trial mlp/none/s1 (" in caption("g.svg")
    for arguments in (["plot", "confusion"], ["plot", "gallery"], ["classes"]):
        status, out, err = command(*arguments, "whole", "--trial", trials[0].name)
        assert (status, out) == (2, "")
        assert err.splitlines()[-1] == (
            f"raybench: whole: needs predictions of {trials[0].name}, and none that can be read are stored"
        )


def test_a_cell_without_readable_predictions_is_left_out_and_the_report_is_written(
    command: Raybench, whole: tuple[Path, list[Trial]]
) -> None:
    folder, trials = whole
    cell = [trial for trial in trials if trial.labels["model"] == "mlp"]
    torn = tear(folder / "predictions", *cell)
    for kind in ("confusion", "class_report"):
        status, _, err = command("plot", kind, "whole", "-o", "a.svg")
        assert status == 0 and all(Path(path).name in err for path in torn)
        assert headings("a.svg") == {"small_cnn, n=3"}
    status, out, _ = command("classes", "whole", "--format", "json")
    assert {(row["model"], row["n"]) for row in json.loads(out)["rows"]} == {("small_cnn", 3)}
    assert command("report", "whole")[:2] == (0, "results/whole/report.html\n")
    text = (folder / "report.html").read_text()
    assert all(f"{Path(path).name}: not a readable result" in text for path in torn)
    tear(folder / "predictions", *(trial for trial in trials if trial not in cell))
    status, _, err = command("plot", "confusion", "whole")
    reason = "needs predictions, and none that can be read are stored"
    assert (status, err.splitlines()[-1]) == (2, f"raybench: whole: cannot draw confusion: {reason}")
    assert err.count("not a readable result") == 6
    assert command("classes", "whole")[2].splitlines()[-1] == f"raybench: whole: {reason}"
    assert command("report", "whole")[0] == 0


def test_epochs_that_cannot_be_read_are_not_counted_and_are_named(
    command: Raybench, whole: tuple[Path, list[Trial]]
) -> None:
    folder, trials = whole
    cell = [trial for trial in trials if trial.labels["model"] == "mlp"]
    tear(folder / "epochs", cell[0])
    for options in ([], ["--axis", "model"]):
        status, _, err = command("plot", "curves", "whole", *options, "-o", "a.svg")
        assert status == 0 and err.count("not a readable result") == 1
        assert "lines: mean of n = 2 to 3 finished trials" in caption("a.svg")
        assert f"finished trials without epochs that can be read, not shown: {cell[0].name}" in caption("a.svg")
    tear(folder / "epochs", *cell[1:])
    assert command("plot", "curves", "whole", "-o", "a.svg")[0] == 0
    assert "lines: mean of n = 3 finished trials" in caption("a.svg")
    tear(folder / "epochs", *(trial for trial in trials if trial not in cell))
    status, _, err = command("plot", "curves", "whole")
    message = "raybench: whole: cannot draw curves: no epochs that can be read are stored"
    assert (status, err.splitlines()[-1]) == (2, message)
    assert command("report", "whole")[0] == 0


def test_the_mean_of_readable_epochs_is_a_line(load_suite: Load) -> None:
    suite, trials = load_suite(TWO_CELLS.replace("seed: 2", "seed: 3"))
    cell = data.cells(made(suite, trials))[0].trials
    results = made(suite, cell, epochs=[epoch for trial in cell[1:] for epoch in epochs_of(trial)])
    (panel,) = draw("curves", results, metric="accuracy").axes
    (mean,) = [line for line in panel.lines if line.get_color() == figures.style.COLORS[1]]
    expected = np.mean([[epoch.val_accuracy for epoch in epochs_of(trial)] for trial in cell[1:]], 0)
    assert mean.get_ydata() == pytest.approx(expected)


@pytest.mark.parametrize(
    "arguments",
    [["--rule", "last", "--metric", "val_accuracy"], ["--metric", "macro_f1"], ["--ensemble"]],
    ids=["epochs", "macro_f1", "ensemble"],
)
def test_summarize_names_files_that_cannot_be_read(
    command: Raybench, whole: tuple[Path, list[Trial]], arguments: list[str]
) -> None:
    folder, trials = whole
    (torn,) = tear(folder / ("epochs" if "last" in arguments else "predictions"), trials[0])
    status, out, err = command("summarize", "whole", *arguments, "--format", "json")
    assert status == 0 and [row["n"] for row in json.loads(out)["rows"]] == [2, 3]
    assert err.count("\n") == 1 and err.startswith(f"{Path(torn).relative_to(Path.cwd())}: not a readable result (")


# ---------------------------------------------------------------------------------------------------------------------
# Which epoch's numbers are drawn, and where there are none


def test_every_figure_of_a_selected_epoch_says_the_rule(load_suite: Load) -> None:
    suite, trials = load_suite(SUITE.replace("epochs: 4", "epochs: 4, best: val_loss"))
    results = made(suite, trials)
    rule = "selection rule: the weights of the epoch with the best val_loss"
    for kind in PLOTS.names():
        said = [text for text, _ in texts(draw(kind, results, **options_of(kind)))]
        assert (rule in said) == (kind not in ("curves", "curves_by_lr")), kind
    for kind in OF_TRIALS:  # their number is of none
        assert rule not in [text for text, _ in texts(draw(kind, results, metric="epochs"))]
    assert rule in classes.class_table(results).header[0]


@pytest.mark.parametrize("kind", sorted(OF_TRIALS))
def test_a_metric_that_no_trial_has_is_said_in_a_line(results: Results, kind: str) -> None:
    none = dataclasses.replace(results, rows=results.rows.assign(train_loss=None, test_accuracy=None))
    with pytest.raises(UserError, match=f"^made: cannot draw {kind}: no finished trial has a finite training loss$"):
        draw(kind, none, metric="train_loss")
    assert available(kind, none) == "no finished trial has a test accuracy"


def test_trials_without_the_metric_are_named(results: Results) -> None:
    first = results.trials[0]
    rows = results.rows.assign(train_loss=results.rows["test_loss"].mask(results.rows["trial_id"] == first.id))
    said = [text for text, _ in texts(draw("ranking", dataclasses.replace(results, rows=rows), metric="train_loss"))]
    assert f"finished trials without finite training loss, not shown: {first.name}" in said


@pytest.mark.parametrize("kind", sorted(OF_TRIALS))
def test_a_trial_with_an_infinite_loss_is_in_no_number_and_named(load_suite: Load, kind: str) -> None:
    suite, trials = load_suite(SUITE)
    first = trials[0]
    rows = [row_of(trial, test_loss=math.inf if trial is first else 1.0) for trial in trials]
    results = made(suite, trials, rows)
    assert first.id not in set(data.values(results, "test_loss", every_point=kind == "lr")["trial_id"])
    said = [text for text, _ in texts(draw(kind, results, metric="test_loss"))]
    assert f"finished trials without finite test loss, not shown: {first.name}" in said
    none = made(suite, trials, [row_of(trial, test_loss=math.inf) for trial in trials])
    with pytest.raises(UserError, match=f"^made: cannot draw {kind}: no finished trial has a finite test loss$"):
        draw(kind, none, metric="test_loss")


@pytest.mark.parametrize("band", ["range", "std"])
@pytest.mark.parametrize("kind", ["curves", "curves_by_lr"])
def test_a_curve_has_a_gap_where_a_loss_is_infinite(load_suite: Load, kind: str, band: str) -> None:
    suite, trials = load_suite(SUITE)
    note = "no mean is drawn of an epoch with an infinite loss"
    epochs = [epoch for trial in trials for epoch in epochs_of(trial)]

    def with_infinite(*numbers: int) -> Results:
        first = trials[0].id
        return made(
            suite,
            trials,
            epochs=[
                dataclasses.replace(each, val_loss=math.inf)
                if each.trial_id == first and each.epoch in numbers
                else each
                for each in epochs
            ],
        )

    figure = draw(kind, with_infinite(2), metric="loss", band=band)
    FigureCanvasAgg(figure).draw()
    assert any(note in text for text, _ in texts(figure))
    lines = [np.asarray(line.get_ydata(), float) for panel in figure.axes for line in panel.lines]
    assert [list(np.isnan(line)) for line in lines if np.isnan(line).any()] == [[False, True, False, False]]
    assert all(np.isfinite(line[~np.isnan(line)]).all() for line in lines)
    FigureCanvasAgg(draw(kind, with_infinite(1, 2, 3, 4), metric="loss", band=band)).draw()
    assert not any(note in text for text, _ in texts(draw(kind, made(suite, trials), metric="loss", band=band)))
