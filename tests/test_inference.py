from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import SLASHES, objects

from raybench import plan, stats
from raybench.cells import find_cells
from raybench.errors import UserError
from raybench.grid import Trial
from raybench.inference import MOST_PAIRS, tables
from raybench.question import Question
from raybench.records import STATISTICS
from raybench.table import Table, render

SUITE = """
name: small
dataset: {name: digits}
compare: {model: [mlp, small_cnn], augmentation: {none: none, mild: [{shift: 0.1}]}}
repeat: {seed: 3}
"""
VALUES = {
    ("mlp", "none"): (0.50, 0.52, 0.54),
    ("mlp", "mild"): (0.51, 0.53, 0.55),
    ("small_cnn", "none"): (0.70, 0.72, 0.74),
    ("small_cnn", "mild"): (0.80, 0.82, 0.84),
}

Made = dict[str, Table]
Make = Callable[..., Made]


def values(trial: Trial) -> float:
    return VALUES[trial.cell][trial.seed]  # type: ignore[index]


@pytest.fixture
def make(tmp_path: Path, store_results: Callable[..., Any]) -> Make:
    """``make(of, text, pairs=..., **question)`` returns the tables of made-up results."""

    def tables_of(of: Callable[[Trial], Any] = values, text: str = SUITE, *, pairs: Any = (), **asked: Any) -> Made:
        others = {"validation": asked.pop("validation", "fraction 0.1")}
        store, suite, _ = store_results(tmp_path / asked.pop("folder", ""), text, of, **others)
        trials = plan.expand(suite, ended=store.ended())
        predictions = store.read("predictions")[0] if asked.get("over", "seeds") != "seeds" else None
        cells = find_cells(store.read()[0], suite, trials)
        return tables(cells, suite.name, Question(**asked), pairs=pairs, predictions=predictions)

    return tables_of


def column(table: Table, name: str) -> list[Any]:
    return [row[name] for row in objects(table)]


# ---------------------------------------------------------------------------------------------------------------------
# Cells


def test_cells_by_hand(make: Make) -> None:
    """All stds are 0.02, t(0.975, 2) = 4.303: the intervals are the means -+ 4.303 * 0.02 / sqrt(3) = 0.0497."""
    table = make()["cells"]
    assert [column.name for column in table.columns[:2]] == ["model", "augmentation"]
    assert objects(table)[0] == {
        "model": "mlp",
        "augmentation": "none",
        "n": 3,
        "planned": 3,
        "mean": pytest.approx(0.52),
        "std": pytest.approx(0.02),
        "interval_low": pytest.approx(0.52 - 0.0497, abs=1e-4),
        "interval_high": pytest.approx(0.52 + 0.0497, abs=1e-4),
        "letters": "c",
    }
    assert column(table, "letters") == ["c", "c", "b", "a"], "a has the highest mean"
    assert table.title == "small: accuracy of the cells"
    assert table.header[:4] == (
        "accuracy: share of the test images, 0 to 1; selection rule: the weights of the epoch with the best"
        " val_accuracy",
        "std: sample standard deviation over the seeds (ddof=1); n: finished trials, of those planned where some are"
        " missing",
        "interval: 95 %, Student's t over the seeds",
        "letters: cells that share one are not told apart (Welch's t test over the seeds; Holm over 6 comparisons,"
        " level 5 %)",
    )
    # t(0.975, 4) = 2.776 and t(1 - 0.05 / 12, 4) = 4.851, each times sqrt(2 / 3)
    assert table.notes == (
        "3 seeds can show a difference of 2.3 standard deviations or more between two cells, of 4.0 as the first of 6"
        " comparisons",
    )


def test_only_what_finished_is_in_a_number(make: Make) -> None:
    def of(trial: Trial) -> Any:
        if trial.name == "mlp/none/s0":
            return {"status": "failed", "error_class": "diverged", "error": "nan", "test_accuracy": None}
        if trial.name == "mlp/none/s1":
            return {"status": "pruned", "test_accuracy": 0.99}
        return None if trial.name == "mlp/mild/s2" else values(trial)

    table = make(of)["cells"]
    assert [(row["n"], row["planned"]) for row in objects(table)] == [(1, 3), (2, 3), (3, 3), (3, 3)]
    alone = objects(table)[0]
    assert (alone["mean"], alone["std"], alone["interval_low"]) == (0.54, None, None)
    assert table.notes == (
        "a cell has fewer than two seeds: its differences cannot be told from chance",
        "3 of 6 pairs not tested: 1 cell of theirs without a letter",
        "1 trial failed, diverged: mlp/none/s0 with nan",
        "1 trial pruned",
        "1 trial not run yet",
    )


def test_tests_over_few_seeds_and_images_are_too_narrow_as_well(make: Make) -> None:
    narrow = "a bootstrap over 3 seeds is too narrow: Student's t over them holds its level"
    for over in ("seeds", "images", "both"):
        made = make(right, folder=over, over=over, interval="bootstrap")
        assert (narrow in made["cells"].notes) == (over != "images")
        assert (narrow in made["pairs"].notes) == (over == "both"), "over seeds it is Welch's test"


def test_an_interval_beyond_what_can_be_is_said(make: Make) -> None:
    """One of two seeds has 1.0, the other 0.98: 0.99 -+ 12.71 * 0.0141 / sqrt(2) = 0.127."""
    made = make(lambda trial: (0.98, 1.0, None)[trial.seed] if trial.cell == ("mlp", "none") else values(trial))[
        "cells"
    ]
    assert (column(made, "interval_high")[0], column(made, "n")[0]) == (pytest.approx(1.117, abs=1e-3), 2)
    assert made.notes[1] == "1 interval beyond 0 or 1, where no accuracy is: Student's t knows no limits"
    losses = make(lambda trial: {"test_loss": trial.seed / 10}, folder="loss", metric="loss")["cells"]
    assert column(losses, "interval_low")[0] < 0
    assert not any("beyond" in note for note in losses.notes)


def test_a_cell_that_was_tested_with_no_other_has_no_letter(make: Make) -> None:
    """mlp/mild with one seed is far below mlp/none, but nothing was tested: it shares no letter with it."""
    made = make(lambda trial: values(trial) if trial.cell != ("mlp", "mild") else None if trial.seed else 0.1)["cells"]
    assert column(made, "letters") == ["c", None, "b", "a"]
    assert made.notes[1] == "3 of 6 pairs not tested: 1 cell of theirs without a letter"


def test_cells_of_a_pair_that_was_not_tested_have_no_letter(make: Make) -> None:
    """Neither cell of mlp varies: each was tested with those of small_cnn, but not with the other."""
    made = make(lambda trial: values(trial) if trial.cell[0] == "small_cnn" else 0.1 + 0.1 * (trial.cell[1] == "mild"))
    assert column(made["cells"], "letters") == [None, None, "b", "a"]
    assert made["cells"].notes[1] == "1 of 6 pairs not tested: 2 cells of theirs without a letter"
    few = make(
        lambda trial: values(trial) if trial.cell == ("small_cnn", "none") else 0.1 * len(trial.cell[1]), folder="few"
    )["cells"]
    assert "letters" not in [column.name for column in few.columns]
    assert few.notes[1] == "3 of 6 pairs not tested"


def test_a_search_is_in_no_number(make: Make) -> None:
    """Seed 0 has searched, 0.01 has won and is still to be trained with seeds 1 and 2: 0.001 is in no number."""
    text = SUITE.replace("repeat", "search: {lr: [1e-3, 1e-2]}\nrepeat")

    def of(trial: Trial) -> Any:
        lr = trial.settings["train"]["lr"]
        return {"test_accuracy": values(trial) if lr == 0.01 else 0.99, "val_accuracy": lr}

    cells = make(of, text)["cells"]
    numbers = [(row["lr"], row["n"], row["planned"], row["mean"]) for row in objects(cells)]
    assert numbers == [(0.01, 1, 3, values[0]) for values in VALUES.values()]
    open_ = make(lambda trial: None if trial.cell == ("mlp", "none") else of(trial), text, folder="open")["cells"]
    assert [(row["lr"], row["n"], row["planned"]) for row in objects(open_)] == [(None, 0, 3)] * 4
    assert "search: no winner is known yet" in open_.notes


def test_every_table_says_the_rule_the_data_and_what_is_missing(make: Make) -> None:
    made = make(lambda trial: None if trial.name == "mlp/none/s0" else values(trial))
    for table in made.values():
        assert {
            "accuracy: share of the test images, 0 to 1; selection rule: the weights of the epoch with the best"
            " val_accuracy",
            "dataset: digits, 900 training images, 100 validation images, 500 test images, fingerprint"
            " 0123456789abcdef",
            "validation images: fraction 0.1",
        } <= {*table.header}
        assert table.notes[-1] == "1 trial not run yet"


def test_a_table_is_marked_as_the_summary_is(make: Make) -> None:
    warning = "validation images = TEST images: the epoch was chosen on the test set, accuracies are optimistic"
    assert [table.warnings for table in make(validation="test").values()] == [(warning,)] * 3


def test_other_metrics(make: Make) -> None:
    table = make(lambda trial: {"val_loss": 1.0 + trial.seed}, metric="val_loss")["cells"]
    assert column(table, "mean") == [2.0] * 4
    assert table.title == "small: val_loss of the cells"
    assert table.header[0] == (
        "val_loss: mean loss over the validation images; selection rule: the weights of the epoch with the best"
        " val_accuracy"
    )
    missing = make(folder="missing", of=lambda trial: {"val_loss": 1.0 if trial.seed else None}, metric="val_loss")[
        "cells"
    ]
    assert column(missing, "n") == [2] * 4
    assert "val_loss is not stored for 4 finished trials" in missing.notes


def test_a_loss_that_is_not_finite_is_in_no_number(make: Make) -> None:
    made = make(lambda t: {"test_loss": np.inf if t.name == "mlp/none/s0" else 1.0 + values(t)}, metric="loss")
    assert column(made["cells"], "n") == [2, 3, 3, 3]
    for table in made.values():
        assert "loss is not finite in 1 finished trial, which are in no number here" in table.notes
        assert json.loads(render(table, "json"))["rows"], "no number is nan"
    assert made["effects"].notes[0] == "over the 2 seeds that all cells have (1, 2), of 3"


@pytest.mark.parametrize(("interval", "confidence"), [("t", 0.9), ("bootstrap", 0.95)])
def test_intervals(make: Make, interval: str, confidence: float) -> None:
    table = make(interval=interval, confidence=confidence, seed=4)["cells"]
    row, numbers = objects(table)[3], VALUES["small_cnn", "mild"]
    expected = {
        "t": stats.mean_interval(numbers, confidence),
        "bootstrap": stats.bootstrap_interval(numbers, confidence, seed=4),
    }[interval]
    assert (row["interval_low"], row["interval_high"]) == expected
    assert table.columns[-2].group == f"{100 * confidence:g} % interval"
    warned = "a bootstrap over 3 seeds is too narrow: Student's t over them holds its level" in table.notes
    assert warned == (interval == "bootstrap")


# ---------------------------------------------------------------------------------------------------------------------
# Pairs


def test_pairs_by_hand(make: Make) -> None:
    """mlp/none to mlp/mild: 0.01 apart with a standard error of 0.02 * sqrt(2 / 3), so t = 0.612 at 4 degrees."""
    table = make()["pairs"]
    first = objects(table)[0]
    assert (first["first"], first["second"], first["first_n"], first["second_n"]) == ("mlp/none", "mlp/mild", 3, 3)
    assert first["difference"] == pytest.approx(0.01)
    half = 2.776 * 0.02 * (2 / 3) ** 0.5
    assert (first["interval_low"], first["interval_high"]) == pytest.approx((0.01 - half, 0.01 + half), abs=1e-4)
    assert first["p_value"] == pytest.approx(0.573, abs=1e-3)
    assert column(table, "p_holm") == pytest.approx(stats.holm(column(table, "p_value")))
    assert column(table, "verdict") == ["not told apart", *["second higher"] * 5]
    assert table.header[0] == (
        "difference: mean of the second cell minus that of the first; test: Welch's t test over the seeds; Holm over 6"
        " comparisons, level 5 %"
    )


def test_chosen_pairs_are_corrected_for_their_own_number(make: Make) -> None:
    made = make(pairs=[("small_cnn/mild", "mlp/none")])
    (row,) = objects(made["pairs"])
    assert (row["p_holm"], row["verdict"]) == (row["p_value"], "first higher")
    assert "letters" not in [column.name for column in made["cells"].columns]


def test_a_pair_of_no_cell(make: Make) -> None:
    with pytest.raises(UserError, match=r"^--pairs mlp/nune: is no cell; did you mean 'mlp/none'\?$"):
        make(pairs=[("mlp/nune", "mlp/mild")])


def test_a_pair_that_is_named_again_counts_once(make: Make) -> None:
    one, two = ("mlp/none", "mlp/mild"), ("small_cnn/none", "mlp/none")
    made = make(pairs=[one, two, one, (one[1], one[0])])["pairs"]
    assert [(row["first"], row["second"]) for row in objects(made)] == [one, two]
    assert made.rows == make(pairs=[one, two], folder="once")["pairs"].rows
    assert "Holm over 2 comparisons" in made.header[0]


def test_a_cell_is_not_compared_with_itself(make: Make) -> None:
    with pytest.raises(UserError, match=r"^--pairs mlp/none mlp/none: is one cell: name two$"):
        make(pairs=[("mlp/none", "mlp/none")])


def of_slashes(trial: Trial) -> float:
    return 0.2 * len(trial.cell[0]) + 0.02 * len(trial.cell[1]) + trial.seed / 100  # type: ignore[arg-type]


def test_cells_that_are_called_the_same_are_all_compared(make: Make) -> None:
    made = make(of_slashes, SLASHES)
    assert [(row["first"], row["second"]) for row in objects(made["pairs"])] == [
        ("v=x/y,w=z", "x/y/y/z"),
        ("v=x/y,w=z", "x/z"),
        ("v=x/y,w=z", "v=x,w=y/z"),
        ("x/y/y/z", "x/z"),
        ("x/y/y/z", "v=x,w=y/z"),
        ("x/z", "v=x,w=y/z"),
    ]
    assert "Holm over 6 comparisons" in made["pairs"].header[0]
    assert column(made["cells"], "letters") == ["b", "a", "d", "c"]
    some = make(of_slashes, SLASHES, folder="some", pairs=[("v=x/y,w=z", "v=x,w=y/z")])["pairs"]
    assert [row[:2] for row in some.rows] == [("v=x/y,w=z", "v=x,w=y/z")]


def test_a_pair_that_may_be_another(make: Make) -> None:
    with pytest.raises(UserError) as error:
        make(of_slashes, SLASHES, pairs=[("x/y/z", "x/z")])
    assert str(error.value) == "--pairs x/y/z: is the name of 2 cells: name one with its axes, such as v=x/y,w=z"


def test_a_cell_with_its_axes_is_the_one_without(make: Make) -> None:
    with pytest.raises(UserError, match=r"^--pairs mlp/none model=mlp,augmentation=none: is one cell: name two$"):
        make(pairs=[("mlp/none", "model=mlp,augmentation=none")])


def test_a_paired_test_uses_the_seeds_that_both_have(make: Make) -> None:
    def of(trial: Trial) -> float | None:
        return (
            None if trial.name == "mlp/none/s1" else values(trial) + 0.001 * trial.seed**2 * (trial.cell[1] == "mild")
        )

    row = objects(make(of, test="paired")["pairs"])[0]
    assert (row["first_n"], row["second_n"]) == (2, 3)
    assert row["difference"] == pytest.approx((0.01 + 0.014) / 2)  # with seeds 0 and 2
    assert row["p_value"] == pytest.approx(stats.paired_t([0.50, 0.54], [0.51, 0.554]).p)


def test_three_seeds_are_too_few_for_sign_flips(make: Make) -> None:
    made = make(test="sign-flip")
    assert set(column(made["pairs"], "verdict")) == {"cannot tell: 3 shared seeds differ: no p below 0.25"}
    assert {*column(made["pairs"], "p_value"), *column(made["pairs"], "p_holm")} == {None}
    assert "letters" not in [column.name for column in made["cells"].columns]


def test_a_correction_that_leaves_no_chance_says_so(make: Make) -> None:
    """Seven seeds: no p below 2 / 128, after Holm over six comparisons none below 0.094."""
    made = make(
        lambda trial: values_of(trial) + 0.01 * trial.seed, SUITE.replace("seed: 3", "seed: 7"), test="sign-flip"
    )
    table = made["pairs"]
    assert {*column(table, "p_value")} == {2 / 128}
    assert {*column(table, "p_holm")} == {None}
    assert {*column(table, "verdict")} == {"cannot tell: 6 comparisons"}
    assert table.notes[0] == (
        "after Holm's correction for 6 comparisons this test has no p below 0.094: compare fewer cells, or use more"
        " seeds"
    )
    assert "letters" not in [column.name for column in made["cells"].columns]


def values_of(trial: Trial) -> float:
    return VALUES[trial.cell][0]  # type: ignore[index]


def test_too_many_pairs_are_not_made(make: Make) -> None:
    cells = 64
    assert cells * (cells - 1) // 2 > MOST_PAIRS
    text = (
        SUITE.replace("[mlp, small_cnn]", "[mlp]")
        .replace("seed: 3", "seed: 1")
        .replace(
            "none: none, mild: [{shift: 0.1}]", ", ".join(f"a{n}: [{{shift: {n / 100}}}]" for n in range(1, cells + 1))
        )
    )
    made = make(lambda trial: 0.5 + trial.seed / 10, text)
    line = f"not compared: 64 cells have 2,016 pairs, more than {MOST_PAIRS:,}: name some with --pairs A B"
    assert made["pairs"].rows == ()
    assert made["pairs"].notes == (line,)
    assert line in made["cells"].notes
    assert "letters" not in [column.name for column in made["cells"].columns]


# ---------------------------------------------------------------------------------------------------------------------
# Over images


def right(trial: Trial) -> np.ndarray:
    rng = np.random.default_rng([trial.seed, list(VALUES).index(trial.cell)])  # type: ignore[arg-type]
    return rng.uniform(size=200) < values(trial)


def test_over_images(make: Make) -> None:
    made = make(right, over="images", interval="bootstrap", seed=2)
    cells = {
        cell: np.stack(
            [right(Trial(id="", suite="", labels={}, cell=cell, point=(), seed=s, settings={})) for s in range(3)]
        )
        for cell in VALUES
    }
    row = objects(made["cells"])[0]
    expected = stats.accuracy_interval(cells["mlp", "none"], seed=2)
    assert (row["interval_low"], row["interval_high"]) == expected
    pair = objects(made["pairs"])[5]
    found = stats.paired_bootstrap(cells["small_cnn", "none"], cells["small_cnn", "mild"], seed=2, shared=True)
    assert (pair["interval_low"], pair["interval_high"], pair["p_value"]) == (found.low, found.high, found.p)
    assert made["cells"].header[2] == (
        "interval: 95 %, percentile bootstrap over the test images, the trials as they are, 9,999 resamples, seed 2"
    )
    both = objects(make(right, folder="both", over="both", interval="bootstrap", seed=2)["cells"])[0]
    assert (both["interval_low"], both["interval_high"]) == stats.accuracy_interval(
        cells["mlp", "none"], seed=2, seeds_too=True
    )


def test_two_trials_over_images_are_mcnemars(make: Make) -> None:
    made = make(right, SUITE.replace("seed: 3", "seed: 1"), over="images", interval="bootstrap")
    trials = [
        right(Trial(id="", suite="", labels={}, cell=cell, point=(), seed=0, settings={}))
        for cell in (("mlp", "none"), ("small_cnn", "mild"))
    ]
    row = objects(made["pairs"])[2]
    assert row["p_value"] == stats.mcnemar(*trials).p
    assert row["interval_low"] == pytest.approx(stats.paired_bootstrap(trials[0][None], trials[1][None], seed=0).low)
    assert "exact McNemar test where both cells have one trial; Holm" in made["pairs"].header[0]


def test_what_is_missing_from_the_predictions_is_said(make: Make) -> None:
    def of(trial: Trial) -> Any:
        if trial.cell == ("mlp", "none"):
            return values(trial)  # no predictions
        if trial.cell == ("mlp", "mild"):
            return right(trial)[:100]
        return right(trial)[: 50 + 150 * (trial.seed > 0)] if trial.cell == ("small_cnn", "none") else right(trial)

    made = make(of, over="images", interval="bootstrap")
    assert column(made["cells"], "n") == [0, 3, 3, 3]
    assert "no predictions are stored of 3 finished trials, which are in no number here" in made["cells"].notes
    assert "small_cnn/none: its trials were tested on different images" in made["cells"].notes
    assert column(made["pairs"], "verdict") == [
        *["cannot tell: no predictions"] * 3,
        *["cannot tell: different test images"] * 3,
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Effects


def test_effects_by_hand(make: Make) -> None:
    """Cell means .52 .53 .72 .82: model .1225 from the mean, augmentation .0275, interactions .0225; std .02 within.

    Sums of squares: 12 * .1225^2 = .180075, 12 * .0275^2 = .009075, 12 * .0225^2 = .006075, 4 * 2 * .02^2 = .0032.
    """
    table = make()["effects"]
    total = 0.180075 + 0.009075 + 0.006075 + 0.0032
    assert [(row["source"], row["values"]) for row in objects(table)] == [
        ("model", 2),
        ("augmentation", 2),
        ("interactions", None),
        ("seed", 3),
    ]
    assert column(table, "eta") == pytest.approx([ss / total for ss in (0.180075, 0.009075, 0.006075, 0.0032)])
    assert column(table, "omega") == [
        *(pytest.approx((ss - 0.0004) / (total + 0.0004)) for ss in (0.180075, 0.009075, 0.006075)),
        None,
    ]


def test_effects_are_of_the_seeds_that_all_cells_have(make: Make) -> None:
    whole = make(text=SUITE.replace("seed: 3", "seed: 2"))["effects"]
    partly = make(folder="partly", of=lambda trial: None if trial.name == "mlp/none/s2" else values(trial))["effects"]
    assert partly.rows == whole.rows
    assert partly.notes == ("over the 2 seeds that all cells have (0, 1), of 3", "1 trial not run yet")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            SUITE.replace("repeat", "exclude: [{model: mlp, augmentation: mild}]\nrepeat"),
            "the cells are not the full grid of model x augmentation",
        ),
        (SUITE.replace("[mlp, small_cnn]", "[mlp]").replace(", mild: [{shift: 0.1}]", ""), "no axis has two values"),
        (SUITE.replace(", mild: [{shift: 0.1}]", "").replace("seed: 3", "seed: 1"), "1 seed that all cells have"),
    ],
)
def test_effects_that_cannot_be_told(make: Make, text: str, why: str) -> None:
    table = make(text=text)["effects"]
    assert table.rows == ()
    assert table.notes == (f"not computed: {why}",)


def test_effects_of_winners_are_those_of_the_axes_that_are_compared(make: Make) -> None:
    """0.01 wins for mlp, 0.001 for small_cnn: lr was chosen in each cell and is no axis of the grid."""
    text = SUITE.replace("repeat", "search: {lr: [1e-3, 1e-2]}\nrepeat").replace("seed: 3", "seed: 1")

    def of(trial: Trial) -> Any:
        wins = (trial.settings["train"]["lr"] == 0.01) == (trial.cell[0] == "mlp")
        return {"test_accuracy": values(trial) if wins else 0.99, "val_accuracy": float(wins)}

    made = make(of, text)
    assert column(made["cells"], "lr") == [0.01, 0.01, 0.001, 0.001]
    assert made["effects"].rows == make(text=SUITE.replace("seed: 3", "seed: 1"), folder="without")["effects"].rows


def test_effects_with_one_seed(make: Make) -> None:
    table = make(text=SUITE.replace("seed: 3", "seed: 1"))["effects"]
    assert column(table, "source") == ["model", "augmentation", "interactions and seed"]
    assert column(table, "omega") == [None] * 3


def test_effects_of_equal_values(make: Make) -> None:
    table = make(lambda trial: 0.1)["effects"]
    assert (table.rows, table.notes) == ((), ("not computed: all values are equal",))


def test_no_axis_can_be_called_as_a_column(make: Make) -> None:
    names = {column.name for column in make()["cells"].columns}
    assert names - {"model", "augmentation"} <= STATISTICS
