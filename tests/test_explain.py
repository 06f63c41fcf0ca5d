from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made import objects, row_of

from raybench import plan
from raybench import suite as suites
from raybench.cells import find_cells
from raybench.errors import UserError
from raybench.explain import explain
from raybench.grid import Trial
from raybench.plan import Choice, restore, snapshot
from raybench.records import TrialRow
from raybench.search import Ended
from raybench.suite import shipped_suites
from raybench.summarize import summarize
from raybench.table import FORMATS, render

SUITE = """
name: small
about: two models
dataset: {name: digits, validation: {size: 100}}
compare: {model: [mlp, small_cnn], augmentation: [none, aug1]}
search: {lr: [1e-3]}
repeat: {seed: 3}
"""
SEARCH = SUITE.replace("[1e-3]", "[1e-1, 1e-3]")
Load = Callable[..., tuple[Choice, list[Trial]]]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """``load(yaml, *sets, only=..., ended=...)`` returns what a run of ``small.yaml`` keeps, and its trials."""
    monkeypatch.chdir(tmp_path)

    def load(text: str = SUITE, *sets: str, ended: Any = None, smoke: bool = False, **chosen: Any) -> Any:
        Path("small.yaml").write_text(text)
        kept = snapshot(Choice(suites.load(Path("small.yaml"), sets, smoke=smoke), **chosen))
        choice = restore(json.loads(json.dumps(kept)), "suite.json")
        return choice, choice.trials(ended or {})

    return load


def row(trial: Trial, accuracy: float | None = None, **others: Any) -> TrialRow:
    made = row_of(
        trial,
        status="failed" if accuracy is None else "completed",
        epochs_run=4,
        best_epoch=None if accuracy is None else 3,
        validation="size 100",
        test_accuracy=accuracy,
        val_accuracy=accuracy and accuracy + 0.125,
        train_images=1337,
        test_images=360,
        train_seconds=1.5,
        wall_seconds=2.0,
        threads=1,
        workers=1,
        device="a CPU",
        host="node1",
        raybench_version="0.1.0",
        torch_version="2.15.0",
        git_commit="c0ffee",
        git_dirty=False,
    )
    return dataclasses.replace(made, **others)


def frame(rows: Sequence[TrialRow]) -> pd.DataFrame:
    flat = [dataclasses.asdict(row) for row in rows]
    return pd.DataFrame(flat, columns=[field.name for field in dataclasses.fields(TrialRow)]).drop(columns="axes")


def cell(trials: Sequence[Trial], *labels: str) -> list[Trial]:
    return [trial for trial in trials if trial.cell == labels]


MLP = ["model=mlp", "augmentation=aug1"]


# ---------------------------------------------------------------------------------------------------------------------
# One cell


def test_a_cell_by_hand(load: Load) -> None:
    choice, trials = load()
    first, second, third = cell(trials, "mlp", "aug1")
    others = [row(trial, 1.0) for trial in trials if trial.cell != ("mlp", "aug1")]
    rows = [
        row(first, 0.5),
        row(second, 0.625, device="a GPU", threads=2),
        row(third, error_class="data", error="x.png"),
    ]
    table = explain(frame([*others, *rows]), choice, trials, MLP, "results")
    assert table.title == "small: model=mlp, augmentation=aug1, lr=0.001"
    assert table.header == (
        "mean 0.5625, std 0.0884 (ddof=1), min 0.5000, max 0.6250, n = 2 of 3 planned",
        "accuracy: share of the test images, 0 to 1; selection rule: the weights of the epoch with the best"
        " val_accuracy",
        "dataset: digits, 1,337 training images, 100 validation images, 360 test images, fingerprint 0123456789abcdef",
        "validation images: size 100",
        "weights: random at the start",
        "ran on: a CPU (1 trial), a GPU (1 trial); threads 1 / 2, processes 1; host node1",
        "versions: raybench 0.1.0, torch 2.15.0",
        "commit: c0ffee",
        "cost of the 2 trials in the mean: 3.0 s in training steps, 4.0 s from start to row;"
        " all 3 below: 4.5 s in training steps, 6.0 s from start to row",
    )
    assert objects(table)[0] == {
        "trial_id": first.id,
        "seed": 0,
        "status": "completed",
        "in_mean": "yes",
        "epochs": 4,
        "best_epoch": 3,
        "test_accuracy": 0.5,
        "val_accuracy": 0.625,
        "train_seconds": 1.5,
        "wall_seconds": 2.0,
        "device": "a CPU",
        "host": "node1",
        "started_at": None,
        "error": None,
    }
    assert [(r["seed"], r["status"], r["in_mean"], r["error"]) for r in objects(table)[1:]] == [
        (1, "completed", "yes", None),
        (2, "failed", "failed: data", "x.png"),
    ]
    assert table.notes == (
        "1 trial failed, data: mlp/aug1/0.001/s2 with x.png",
        "warning: device differs among the trials of 1 row, the first with mlp/aug1/0.001/s0: a CPU / a GPU",
        "to run it again, what is missing here, or with another --results all of it:",
        "raybench run small.yaml --only model=mlp --only augmentation=aug1",
    )


@pytest.mark.parametrize("format", FORMATS)
def test_every_format(format: str, load: Load) -> None:
    choice, trials = load()
    table = explain(frame([row(trial, 0.5) for trial in trials]), choice, trials, MLP, "results")
    text = render(table, format)
    assert cell(trials, "mlp", "aug1")[0].id in text and cell(trials, "mlp", "none")[0].id not in text
    if format == "json":
        assert json.loads(text)["notes"][-1].startswith("raybench run ")


def test_nothing_has_run(load: Load) -> None:
    choice, trials = load()
    table = explain(frame([]), choice, trials, MLP, "results")
    assert table.header[0] == "mean: none, n = 0 of 3 planned"
    assert table.header[-1].startswith("cost of the 0 trials in the mean: 0.0 s in training steps")
    assert [(r["status"], r["in_mean"], r["epochs"]) for r in objects(table)] == [(None, "not run yet", None)] * 3
    assert table.notes[0] == "3 trials not run yet"


def test_one_trial_has_no_std(load: Load) -> None:
    choice, trials = load()
    alone = frame([row(cell(trials, "mlp", "aug1")[0], 0.5)])
    assert explain(alone, choice, trials, MLP, "results").header[0] == (
        "mean 0.5000, min 0.5000, max 0.5000, n = 1 of 3 planned"
    )


def test_rows_of_other_settings_are_shown_and_said_to_be(load: Load) -> None:
    before = load(SUITE, "train.epochs=2", "train.batch_size=16")[1]
    choice, trials = load()
    rows = [row(trial, 0.5) for trial in (*trials, *cell(before, "mlp", "aug1"), *cell(before, "mlp", "none"))]
    seventh = dataclasses.replace(rows[0], trial_id="seed7", seed=7, model="mlp", augmentation="aug1")
    seventh = dataclasses.replace(seventh, settings=json.dumps(cell(trials, "mlp", "aug1")[0].settings))
    table = explain(frame([*rows, seventh]), choice, trials, MLP, "results")
    assert [r["in_mean"] for r in objects(table)] == ["yes"] * 3 + ["other settings"] * 4
    assert table.header[0].endswith("n = 3 of 3 planned")
    assert table.notes[:2] == (
        "3 trials of other settings: train.epochs 2 instead of 20, train.batch_size 16 instead of 32",
        "1 trial of other settings: another seed",
    )


def test_settings_that_were_added_since_are_no_differences(load: Load) -> None:
    """They had their default; a key that was left out since is a difference, and the others are then as stored."""
    choice, trials = load()
    settings = json.loads(json.dumps(cell(trials, "mlp", "aug1")[0].settings))
    del settings["train"]["cuda_graph"]
    epochs, gone = ({**settings, "train": {**settings["train"], **own}} for own in ({"epochs": 2}, {"amp": True}))
    made = row(cell(trials, "mlp", "aug1")[0], 0.5)
    others = [
        dataclasses.replace(made, trial_id=f"other{seed}", seed=seed, settings=json.dumps(stored))
        for seed, stored in enumerate((settings, epochs, gone), start=7)
    ]
    assert explain(frame([made, *others]), choice, trials, MLP, "results").notes[1:4] == (
        "1 trial of other settings: another seed",
        "1 trial of other settings: train.epochs 2 instead of 20",
        "1 trial of other settings: train.amp true instead of –, train.cuda_graph – instead of false",
    )


def test_weights_and_changes_that_are_in_no_commit(load: Load) -> None:
    choice, trials = load()
    rows = [row(trial, 0.5, weights_fingerprint="beef", git_dirty=True) for trial in trials]
    header = explain(frame(rows), choice, trials, MLP, "results").header
    assert "weights: fingerprint beef" in header
    assert "commit: c0ffee, with changes that are in no commit" in header
    rows = [row(trial, 0.5, git_commit=None, git_dirty=None) for trial in trials]
    assert "commit: none, not in a git checkout" in explain(frame(rows), choice, trials, MLP, "results").header


# ---------------------------------------------------------------------------------------------------------------------
# Searches


def won(trials: Sequence[Trial]) -> dict[str, Ended]:
    """Return how they ended where a learning rate of 0.1 won."""
    return {t.id: Ended("completed", float(t.settings["train"]["lr"] == 0.1), 4) for t in trials}


def test_points_that_lost_are_shown_and_in_no_number(load: Load) -> None:
    choice, search = load(SEARCH)
    trials = choice.trials(won(search))
    former = row(cell(trials, "mlp", "aug1")[0], 0.9, trial_id="former", stage="former", seed=2, lr=0.001)
    rows = [row(trial, 0.5 if trial.point == (0.1,) else 1.0) for trial in trials]
    table = explain(frame([*rows, former]), choice, trials, MLP, "results")
    assert table.title == "small: model=mlp, augmentation=aug1, lr=0.1"
    assert [(r["seed"], r["lr"], r["stage"], r["in_mean"]) for r in objects(table)] == [
        (0, 0.1, "confirm", "yes"),
        (1, 0.1, "confirm", "yes"),
        (2, 0.1, "confirm", "yes"),
        (0, 0.001, "search", "another point won"),
        (2, 0.001, "former", "former"),
    ]
    assert table.header[0] == "mean 0.5000, std 0.0000 (ddof=1), min 0.5000, max 0.5000, n = 3 of 3 planned"
    assert "search: 2 trials, 8 epochs" in table.header
    assert any(line.startswith("lr: in each cell the best of 2 points by val_accuracy") for line in table.header)


def test_a_search_that_goes_on_has_no_number_yet(load: Load) -> None:
    choice, trials = load(SEARCH)
    rows = [row(trial, 0.5) if trial.point == (0.1,) else row(trial, 0.5, status="pruned") for trial in trials]
    table = explain(frame(rows), choice, trials, MLP, "results")
    assert table.title == "small: model=mlp, augmentation=aug1"
    assert table.header[0] == "mean: none, n = 0 of 3 planned"
    assert [r["in_mean"] for r in objects(table)] == ["search", "pruned"]


def test_a_winner_that_another_seed_confirms(load: Load) -> None:
    """--only seed=1: the search is with seed 0 all the same."""
    choice, search = load(SEARCH, only={"seed": ["1"]})
    before = explain(frame([]), choice, search, MLP, "results")
    assert before.header[0] == "mean: none, n = 0 of 1 planned"
    summary = summarize(frame([]), choice.suite, search, seeds=choice.seeds())
    assert {(row["n"], row["planned"]) for row in objects(summary)} == {(0, 1)}
    assert {*find_cells(frame([]), choice.suite, search, choice.seeds()).planned} == {1}
    trials = choice.trials(won(search))
    table = explain(frame([row(trial, 0.5) for trial in trials]), choice, trials, MLP, "results")
    assert [(r["seed"], r["lr"], r["stage"], r["in_mean"]) for r in objects(table)] == [
        (1, 0.1, "confirm", "yes"),
        (0, 0.1, "search", "won; its seed is not chosen"),
        (0, 0.001, "search", "another point won"),
    ]
    assert table.header[0].endswith("n = 1 of 1 planned")
    assert "search: 2 trials, 8 epochs" in table.header
    assert (
        "lr: in each cell the best of 2 points by val_accuracy with seed 0, trained with seed 1; the other points are"
        " in no number"
    ) in table.header
    assert table.notes[-1] == "raybench run small.yaml --only model=mlp --only augmentation=aug1 --only seed=1"


def test_points_that_are_rows_of_their_own(load: Load) -> None:
    choice, trials = load(SEARCH + "confirm: none")
    rows = frame([row(trial, trial.settings["train"]["lr"]) for trial in trials])
    table = explain(rows, choice, trials, [*MLP, "lr=1e-1"], "results")
    assert [(r["lr"], r["in_mean"]) for r in objects(table)] == [(0.1, "yes")] * 3
    assert table.notes[-1] == "raybench run small.yaml --only model=mlp --only augmentation=aug1 --only lr=0.1"
    with pytest.raises(UserError, match=r"^model=mlp augmentation=aug1: names 2 cells: say also lr=0\.1\|0\.001$"):
        explain(rows, choice, trials, MLP, "results")


# ---------------------------------------------------------------------------------------------------------------------
# The command


def command(loaded: tuple[Choice, list[Trial]], words: Sequence[str] = MLP, results: str = "results") -> str:
    return explain(frame([]), *loaded, words, results).notes[-1].removeprefix("raybench run ")


def test_the_command_has_what_the_run_had(load: Load) -> None:
    sets = ("dataset.validation={size: 50}", "train.epochs=2")
    cell = "--only model=mlp --only augmentation=aug1"
    assert command(load(SUITE, *sets)) == (
        f"small.yaml --set 'dataset.validation={{size: 50}}' --set train.epochs=2 {cell}"
    )
    assert command(load(smoke=True)) == f"small.yaml --smoke {cell}"
    assert command(load(only={"seed": ["0", "2"]})) == f"small.yaml {cell} --only seed=0 --only seed=2"
    assert command(load(limit=6)) == f"small.yaml {cell} --only seed=0 --only seed=1"
    assert command(load(), results="s3://bucket/x") == f"small.yaml {cell} --results s3://bucket/x"
    assert command(load(SEARCH, only={"lr": ["1e-3"]})) == f"small.yaml {cell} --only lr=1e-3"


def test_the_command_runs_the_trials_that_are_shown(load: Load) -> None:
    choice, trials = load(SUITE, "train.epochs=2", only={"seed": ["0", "2"]})
    _, _, text, *only = command((choice, trials)).split()
    again = suites.load(Path("small.yaml"), [text])
    chosen: dict[str, list[str]] = {}
    for word in only[1::2]:
        axis, _, value = word.partition("=")
        chosen.setdefault(axis, []).append(value)
    assert [t.id for t in plan.expand(again, chosen)] == [t.id for t in cell(trials, "mlp", "aug1")]


def test_a_suite_that_ships_is_called_by_its_name() -> None:
    choice = Choice(suites.load(shipped_suites()["table1"]))
    words = ["model=model1", "augmentation=none"]
    assert command((choice, choice.trials({})), words) == "table1 --only model=model1 --only augmentation=none"


def test_without_axes_there_is_one_cell(load: Load) -> None:
    text = "name: small\ndataset: digits\nmodel: mlp\nrepeat: {seed: 2}\n"
    choice, trials = load(text)
    assert command((choice, trials), []) == "small.yaml"
    with pytest.raises(UserError, match=r"^model=mlp: model is no axis of the table of small$"):
        explain(frame([]), choice, trials, ["model=mlp"], "results")


# ---------------------------------------------------------------------------------------------------------------------
# Words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mlp"], "mlp: must be axis=value, with one of the axes model, augmentation"),
        (["modle=mlp"], "modle=mlp: modle is no axis of the table of small; did you mean 'model'?"),
        (["model=mpl"], "model=mpl: no such value of model; did you mean 'mlp'?"),
        (["lr=0.001"], "lr=0.001: lr is no axis of the table of small; known: model, augmentation"),
        (["seed=0"], "seed=0: seed is no axis of the table of small; known: model, augmentation"),
        (["model=mlp"], "model=mlp: names 2 cells: say also augmentation=none|aug1"),
        ([], "small: names 4 cells: say also model=mlp|small_cnn and augmentation=none|aug1"),
        (["model=mlp", "model=small_cnn"], "model=mlp model=small_cnn: no cell of small has all of these"),
    ],
)
def test_words_that_name_no_cell(words: list[str], message: str, load: Load) -> None:
    choice, trials = load()
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        explain(frame([]), choice, trials, words, "results")


def test_axes_with_one_value_need_not_be_said(load: Load) -> None:
    choice, trials = load(only={"augmentation": ["aug1"]})
    assert explain(frame([]), choice, trials, ["model = mlp"], "results").title == (
        "small: model=mlp, augmentation=aug1, lr=0.001"
    )
