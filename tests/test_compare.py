from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made import objects

from raybench import plan
from raybench.compare import OUTCOMES, Comparison, Side, compare
from raybench.errors import UserError
from raybench.grid import Trial
from raybench.question import Question
from raybench.records import STATISTICS
from raybench.stats import welch

SUITE = """
name: small
dataset: {name: digits}
compare: {model: [mlp, small_cnn], augmentation: [none]}
repeat: {seed: 3}
"""

Make = Callable[..., Side]


def accuracy(trial: Trial) -> float:
    return 0.5 + 0.01 * trial.seed + 0.2 * (trial.cell[0] == "small_cnn")


@pytest.fixture
def make(tmp_path: Path, store_results: Callable[..., Any]) -> Make:
    """``make("before", of, text, **columns)`` returns one side of made-up results."""

    def side(name: str, of: Callable[[Trial], Any] = accuracy, text: str = SUITE, **columns: Any) -> Side:
        store, suite, _ = store_results(tmp_path / name, text, of, **columns)
        return Side(name, suite, store.read()[0], plan.expand(suite, ended=store.ended(failed=True)))

    return side


def verdicts(comparison: Comparison) -> list[str]:
    return [row["verdict"] for row in objects(comparison.tables["cells"])]


# ---------------------------------------------------------------------------------------------------------------------
# What differs


def test_the_same_results_are_identical(make: Make) -> None:
    comparison = compare(make("before"), make("after"), Question())
    assert not comparison.differs
    cells = comparison.tables["cells"]
    assert verdicts(comparison) == ["identical", "identical"]
    assert {row["difference"] for row in objects(cells)} == {0.0}
    assert cells.header[0] == "no cell had to be tested"
    assert cells.notes == ("cells: 2 identical", "6 of 6 shared trials are identical to the last bit")
    assert comparison.tables["changes"].rows == ()
    assert comparison.tables["changes"].notes == (
        "nothing that is stored of code, data, versions, devices and settings changed",
    )


def test_trials_in_no_number_are_counted_for_each_side(make: Make) -> None:
    def lost(seeds: int) -> Callable[[Trial], Any]:
        return lambda trial: {"test_accuracy": 0.5, "test_loss": float("inf" if trial.seed < seeds else trial.seed)}

    notes = compare(make("before", lost(1)), make("after", lost(2)), Question(metric="loss")).tables["cells"].notes
    end = "which are in no number here"
    assert f"first: loss is not finite in 2 finished trials, {end}" in notes
    assert f"second: loss is not finite in 4 finished trials, {end}" in notes


def test_what_equal_trials_need_not_repeat_is_compared_all_the_same(make: Make) -> None:
    """The same bits, 21 images per second slower."""

    def at(speed: float) -> Callable[[Trial], Any]:
        return lambda trial: {"test_accuracy": accuracy(trial), "images_per_second": speed + trial.seed}

    comparison = compare(make("before", at(36.0)), make("after", at(15.0)), Question(metric="images_per_second"))
    assert comparison.differs
    cells = comparison.tables["cells"]
    assert [(row["difference"], row["verdict"]) for row in objects(cells)] == [(-21.0, "lower")] * 2
    assert cells.notes == ("cells: 2 lower", "6 of 6 shared trials are identical to the last bit")
    assert cells.header[1:3] == (
        "difference: mean of the second minus that of the first; higher, lower: beyond noise",
        "images_per_second: training images per second of training steps",
    )


def test_a_difference_beyond_noise_by_hand(make: Make) -> None:
    """mlp is 0.1 better with std 0.01 on both sides: t = 0.1 / (0.01 * sqrt(2 / 3)) = 12.2 at 4 degrees of freedom."""
    after = make("after", lambda trial: accuracy(trial) + 0.1 * (trial.cell[0] == "mlp"))
    comparison = compare(make("before"), after, Question())
    assert comparison.differs
    mlp, small_cnn = objects(comparison.tables["cells"])
    half = 2.776 * 0.01 * (2 / 3) ** 0.5
    assert mlp == {
        "model": "mlp",
        "augmentation": "none",
        "first_n": 3,
        "first_planned": 3,
        "first_mean": pytest.approx(0.51),
        "second_n": 3,
        "second_planned": 3,
        "second_mean": pytest.approx(0.61),
        "difference": pytest.approx(0.1),
        "interval_low": pytest.approx(0.1 - half, abs=1e-5),
        "interval_high": pytest.approx(0.1 + half, abs=1e-5),
        "p_value": pytest.approx(welch([0.5, 0.51, 0.52], [0.6, 0.61, 0.62]).p),
        "p_holm": mlp["p_value"],
        "verdict": "higher",
    }
    assert small_cnn["verdict"] == "identical"
    assert comparison.tables["cells"].notes == (
        "cells: 1 higher, 1 identical",
        "3 of 6 shared trials are identical to the last bit; the others differ in test_accuracy, the first mlp/none/s0",
    )


def test_holm_counts_the_cells_that_are_tested(make: Make) -> None:
    after = make("after", lambda trial: accuracy(trial) + 0.04)
    comparison = compare(make("before"), after, Question())
    rows = objects(comparison.tables["cells"])
    assert [row["p_holm"] for row in rows] == pytest.approx([2 * row["p_value"] for row in rows])
    assert comparison.tables["cells"].header[0] == (
        "test: Welch's t test over the seeds; Holm over 2 comparisons, level 5 %"
    )


def test_a_difference_within_noise_is_none(make: Make) -> None:
    after = make("after", lambda trial: accuracy(trial) + 0.001)
    comparison = compare(make("before"), after, Question())
    assert (verdicts(comparison), comparison.differs) == (["not told apart"] * 2, False)


def test_the_paired_test_sees_what_the_seeds_share(make: Make) -> None:
    after = make("after", lambda trial: accuracy(trial) - 0.001 - 1e-5 * trial.seed)
    comparison = compare(make("before"), after, Question(test="paired"))
    assert (verdicts(comparison), comparison.differs) == (["lower"] * 2, True)


def test_one_seed_cannot_tell(make: Make) -> None:
    text = SUITE.replace("seed: 3", "seed: 1")
    comparison = compare(make("before", text=text), make("after", lambda _: 0.9, text), Question())
    assert verdicts(comparison) == ["cannot tell: one seed shows no spread"] * 2
    assert not comparison.differs
    assert comparison.tables["cells"].notes[0] == "cells: 2 cannot tell"


def test_a_cell_is_identical_only_if_all_its_trials_are_on_both_sides(make: Make) -> None:
    after = make("after", lambda trial: None if trial.name == "mlp/none/s2" else accuracy(trial))
    comparison = compare(make("before"), after, Question())
    assert verdicts(comparison) == ["not told apart", "identical"]
    notes = comparison.tables["cells"].notes
    assert "5 of 5 shared trials are identical to the last bit" in notes
    assert "second: 1 trial not run yet" in notes


def test_cells_on_one_side_alone(make: Make) -> None:
    before = make("before", text=SUITE.replace("[mlp, small_cnn]", "[mlp, model1]"))
    comparison = compare(before, make("after"), Question())
    rows = objects(comparison.tables["cells"])
    assert [(row["model"], row["verdict"]) for row in rows] == [
        ("mlp", "identical"),
        ("model1", "only in the first"),
        ("small_cnn", "only in the second"),
    ]
    assert (rows[1]["second_n"], rows[1]["second_mean"], rows[1]["difference"]) == (None, None, None)
    assert not comparison.differs


def test_nothing_in_common(make: Make) -> None:
    before = make("before", text=SUITE.replace("[mlp, small_cnn]", "[model1, model2]"))
    said = "before and after have no cell in common: one has model1/none, for example, the other mlp/none"
    with pytest.raises(UserError, match=f"^{said}$"):
        compare(before, make("after"), Question())


def test_an_axis_of_one_side_alone(make: Make) -> None:
    one = SUITE.replace("augmentation: [none]", "train.epochs: [10]")
    assert verdicts(compare(make("before"), make("one", text=one), Question())) == ["not told apart"] * 2
    two = SUITE.replace("augmentation: [none]", "train.epochs: [10, 20]")
    with pytest.raises(
        UserError, match=r"^two: its cells differ in train.epochs, which is no axis of the other results$"
    ):
        compare(make("before"), make("two", text=two), Question())


def test_winners_of_a_search_are_compared_whatever_won(make: Make) -> None:
    text = SUITE.replace("repeat", "search: {lr: [1e-3, 1e-2]}\nrepeat")
    sides = [
        make(
            name,
            lambda trial, best=best: {
                "test_accuracy": 0.5,
                "val_accuracy": float(trial.settings["train"]["lr"] == best),
            },
            text,
        )
        for name, best in (("before", 0.001), ("after", 0.01))
    ]
    comparison = compare(*sides, Question())
    (lr,) = objects(comparison.tables["changes"])
    assert lr == {"what": "train.lr", "first": "0.001", "second": "0.01", "cells": 2}
    assert [column.name for column in comparison.tables["cells"].columns[:3]] == ["model", "augmentation", "first_n"]
    assert verdicts(comparison) == ["cannot tell: one seed shows no spread"] * 2


def test_what_was_pruned_or_failed_is_not_compared(make: Make) -> None:
    def of(trial: Trial) -> Any:
        return {"status": "failed", "error_class": "error", "error": "x"} if trial.seed == 0 else accuracy(trial)

    comparison = compare(make("before", of), make("after", of), Question())
    assert "4 of 4 shared trials are identical to the last bit" in comparison.tables["cells"].notes
    assert "2 trials failed, error: mlp/none/s0 with x" in comparison.tables["cells"].notes, "said once for both"


# ---------------------------------------------------------------------------------------------------------------------
# What changed


def test_code_data_versions_and_devices(make: Make) -> None:
    before = make("before", git_commit="aaa", torch_version="2.13.0", device="cpu", host=None)
    after = make(
        "after",
        lambda trial: {
            "test_accuracy": accuracy(trial),
            "torch_version": "2.13.0" if trial.seed else "2.14.0",
            "git_dirty": True,
            "git_commit": "bbb",
        },
        dataset_fingerprint="ffff",
    )
    table = compare(before, after, Question()).tables["changes"]
    assert [(row["what"], row["first"], row["second"], row["cells"]) for row in objects(table)] == [
        ("git_commit", "aaa", "bbb", None),
        ("git_dirty", None, "True", None),
        ("dataset_fingerprint", "0123456789abcdef", "ffff", None),
        ("torch_version", "2.13.0", "2.13.0 / 2.14.0", None),
    ]
    assert table.header == ("the same on both sides: raybench_version 0.5.0, device cpu",)
    assert table.notes == ("git_dirty: files differed from the commit, so equal commits need not be equal code",)


def test_settings(make: Make) -> None:
    after = SUITE.replace("repeat", "train: {epochs: 5, lr: 0.1}\nrepeat").replace(
        "[mlp, small_cnn]", "{mlp: {name: mlp, hidden: [9]}, small_cnn: small_cnn}"
    )
    table = compare(make("before"), make("after", text=after), Question()).tables["changes"]
    epochs = plan.expand(make("default").suite)[0].settings["train"]["epochs"]
    assert {row["what"]: (row["first"], row["second"], row["cells"]) for row in objects(table)} == {
        "model.hidden": ("–", "[9]", 1),
        "train.epochs": (str(epochs), "5", 2),
        "train.lr": ("0.001", "0.1", 2),
    }


def test_warnings_name_their_side(make: Make) -> None:
    line = "validation images = TEST images: the epoch was chosen on the test set, accuracies are optimistic"
    one = compare(make("before", validation="test"), make("after"), Question())
    assert {table.warnings for table in one.tables.values()} == {(f"first: {line}",)}
    both = compare(make("before", validation="test"), make("after", validation="test"), Question())
    assert {table.warnings for table in both.tables.values()} == {(line,)}


def test_columns() -> None:
    assert {"test_accuracy", "test_loss", "best_epoch", "status", "parameters"} < {*OUTCOMES}
    assert not {"trial_id", "settings", "seed", "torch_version", "wall_seconds", "device"} & {*OUTCOMES}


def test_no_axis_can_be_called_as_a_column(make: Make) -> None:
    side = make("before")
    names = {column.name for column in compare(side, side, Question()).tables["cells"].columns}
    assert names - {"model", "augmentation"} <= STATISTICS
