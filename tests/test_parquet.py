"""Results as Parquet files: columns of every kind, files that are damaged, older or younger, and files that are merged.

What the store makes of them is tested in test_store.py.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import MANY_AXES as AXES

from raybench.grid import Trial
from raybench.objects import Folder, place
from raybench.parquet import (
    EPOCHS,
    PREDICTIONS,
    TRIALS,
    axis_types,
    clear_merged,
    merge,
    predictions_table,
    read_files,
    read_folder,
    read_predictions,
    rows_table,
    set_column,
    singles,
    take_out,
    trial_table,
    trials_schema,
    typed_row,
    write,
)
from raybench.records import EpochRow, Predictions, TrialRow
from raybench.suite import Suite

LoadSuite = Callable[..., tuple[Suite, list[Trial]]]
ONE_AXIS = "{name: s, dataset: {name: digits}, model: mlp, compare: {model.width: %s}}"
TORN = "Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file."


def row(trial_id: str = "t0", axes: dict[str, Any] | None = None, **columns: Any) -> TrialRow:
    given = {"suite": "s", "dataset": "digits", "model": "mlp", "augmentation": "none", "seed": 1, "lr": 0.001}
    ended = {"status": "completed", "selection": "val_accuracy", "validation": "test", "test_accuracy": 0.75}
    return TrialRow(**{"trial_id": trial_id, "settings": "{}", "axes": axes or {}, **given, **ended, **columns})


def store(folder: Folder, *rows: TrialRow, axes: dict[str, pa.DataType] | None = None) -> None:
    """Give each row a file of its own."""
    for each in rows:
        write(folder / f"{each.trial_id}.parquet", trial_table(each, axes or {}))


def values(folder: Folder, column: str) -> dict[str, Any]:
    """Return a column of trials by id."""
    table, damaged = read_folder(folder, TRIALS, ["trial_id", column])
    assert damaged == [] and len(set(table["trial_id"].to_pylist())) == len(table)
    return dict(zip(table["trial_id"].to_pylist(), table[column].to_pylist(), strict=True))


def predictions(n: int = 4, classes: int = 3) -> Predictions:
    logits = np.linspace(-60000, 60000, n * classes).reshape(n, classes).astype(np.float16)
    return Predictions(
        index=np.arange(n, dtype=np.int32)[::-1].copy(),
        label=np.arange(n, dtype=np.int16),
        prediction=logits.argmax(1).astype(np.int16),
        logits=logits,
    )


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    remote = getattr(request, "param", "disk") == "s3"
    made = (place(request.getfixturevalue("bucket")) if remote else tmp_path) / "trials"
    made.mkdir()
    return made


everywhere = pytest.mark.parametrize("folder", ["disk", "s3"], indirect=True)


# ---------------------------------------------------------------------------------------------------------------------
# Columns and rows


def test_axes_are_typed_by_their_labels(load_suite: LoadSuite) -> None:
    assert axis_types(load_suite(AXES)[0]) == {
        "train.batch_size": pa.int64(),
        "train.optimizer.decay": pa.float64(),
        "train.smoke": pa.bool_(),
        "variant": pa.string(),
    }


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ("[a, b]", pa.string()),
        ("[1, 2]", pa.int64()),
        ("[1, 0.5]", pa.float64()),
        ("[0.5, 1.5]", pa.float64()),
        ("[1, b]", pa.string()),
        ("[true, false]", pa.bool_()),
        ("[true, 2]", pa.string()),
    ],
)
def test_labels_of_every_kind(labels: str, kind: pa.DataType, load_suite: LoadSuite, folder: Folder) -> None:
    suite, trials = load_suite(ONE_AXIS % labels)
    axes = axis_types(suite)
    assert axes == {"model.width": kind}
    store(folder, *(row(t.id, {"model.width": t.labels["model.width"]}) for t in trials), axes=axes)
    texts = kind == pa.string()
    expected = {t.id: str(t.labels["model.width"]) if texts else t.labels["model.width"] for t in trials}
    table, damaged = read_folder(folder, trials_schema(axes))
    assert damaged == [] and table.schema.equals(trials_schema(axes))
    assert dict(zip(table["trial_id"].to_pylist(), table["model.width"].to_pylist(), strict=True)) == expected


def test_labels_of_included_points_count(load_suite: LoadSuite) -> None:
    text = "{name: s, dataset: {name: digits}, model: mlp, compare: {train.batch_size: [8]}, include: [%s]}"
    assert axis_types(load_suite(text % "{train.batch_size: 16}")[0]) == {"train.batch_size": pa.int64()}
    text = text.replace("train.batch_size", "train.optimizer.decay").replace("[8]", "[0]")
    assert axis_types(load_suite(text % "{train.optimizer.decay: 0.5}")[0]) == {"train.optimizer.decay": pa.float64()}


def test_drawn_axes_have_columns_of_numbers(load_suite: LoadSuite) -> None:
    text = "{name: s, dataset: digits, model: mlp, search: {%s}, draw: {points: 1}}"
    axes = "model.width: {range: [1, 8], integer: true}, train.l2: {range: [0, 1]}, train.loss: [bce, cross_entropy]"
    assert {name: str(kind) for name, kind in axis_types(load_suite(text % axes)[0]).items()} == {
        "model.width": "int64",
        "train.l2": "double",
        "train.loss": "string",
    }


@pytest.mark.parametrize(
    ("before", "after", "seen"),
    [
        ("[1]", "[1, 0.5]", 1.0),
        ("[1]", "[1, big]", "1"),
        ("[0.5]", "[0.5, big]", "0.5"),
        ("[1, big]", "[1]", 1),
        ("[1, 0.5]", "[1]", 1),
    ],
)
def test_an_axis_whose_labels_changed_kind(
    before: str, after: str, seen: Any, load_suite: LoadSuite, folder: Folder
) -> None:
    suite, trials = load_suite(ONE_AXIS % before)
    store(folder, row("old", {"model.width": trials[0].labels["model.width"]}), axes=axis_types(suite))
    table, damaged = read_folder(folder, trials_schema(axis_types(load_suite(ONE_AXIS % after)[0])))
    assert damaged == [] and table["model.width"].to_pylist() == [seen]


def test_a_row_with_a_label_that_is_gone_is_not_counted(load_suite: LoadSuite, folder: Folder) -> None:
    suite, trials = load_suite(ONE_AXIS % "[1, big]")
    rows = (row(trial.id, {"model.width": trial.labels["model.width"]}) for trial in trials)
    store(folder, *rows, axes=axis_types(suite))
    shorter = trials_schema(axis_types(load_suite(ONE_AXIS % "[1]")[0]))
    table, damaged = read_folder(folder, shorter)
    assert table["trial_id"].to_pylist() == [trials[0].id]
    assert damaged == [
        f"{folder / trials[1].id}.parquet: not a readable result (Failed to parse string: 'big' as a"
        " scalar of type int64); its trial is not counted"
    ]
    assert len(read_folder(folder, shorter, ["trial_id", "status"])[0]) == 2


def test_an_axis_that_came_later_is_empty_before(folder: Folder) -> None:
    early: dict[str, pa.DataType] = {"train.batch_size": pa.int64()}
    late = {**early, "variant": pa.string()}
    store(folder, row("old", {"train.batch_size": 8}), axes=early)
    assert read_folder(folder, trials_schema(late))[0]["variant"].to_pylist() == [None]
    store(folder, row("new", {"train.batch_size": 8, "variant": "a"}), axes=late)
    table, damaged = read_folder(folder, trials_schema(late), ["trial_id", "variant"])
    assert damaged == [] and table.to_pylist() == [
        {"trial_id": "new", "variant": "a"},
        {"trial_id": "old", "variant": None},
    ]
    table, damaged = read_folder(folder, trials_schema(early))
    assert damaged == [] and len(table) == 2 and "variant" not in table.column_names


def test_a_row_that_pandas_read_has_its_whole_numbers_again() -> None:
    written = row("t0", {"variant": "a"}, draw=3, epochs=2, git_dirty=False)
    found = {**dataclasses.asdict(written), "draw": 3.0, "best_epoch": None, "more": 1}
    back = typed_row(TrialRow, found)
    assert back == written and type(back.draw) is int and back.best_epoch is None


def test_logits_that_are_a_view_of_other_numbers() -> None:
    wide = np.arange(24, dtype=np.float16).reshape(4, 6)
    table = predictions_table("t0", dataclasses.replace(predictions(), logits=wide[:, ::2]))
    assert table.schema.equals(PREDICTIONS) and np.array_equal(np.stack(table["logits"].to_numpy()), wide[:, ::2])


@everywhere
@pytest.mark.parametrize("merged", [False, True])
def test_predictions_come_back_in_the_order_of_the_images(merged: bool, folder: Folder) -> None:
    for trial_id, classes in (("t0", 3), ("t1", 5), ("t2", 3)):
        write(folder / f"{trial_id}.parquet", predictions_table(trial_id, predictions(classes=classes)))
    if merged:
        merge(singles(folder))
    found = read_predictions(folder, ["t1", "t0", "none"])
    assert list(found) == ["t1", "t0"]
    for trial_id, classes in (("t0", 3), ("t1", 5)):
        for name in ("index", "label", "prediction", "logits"):
            stored, written = getattr(found[trial_id], name), getattr(predictions(classes=classes), name)
            assert stored.dtype == written.dtype and np.array_equal(stored, written[::-1]), name


def test_predictions_of_a_damaged_file_are_none(folder: Folder) -> None:
    for trial_id in ("t0", "t1"):
        write(folder / f"{trial_id}.parquet", predictions_table(trial_id, predictions()))
    (folder / "t0.parquet").write_bytes(b"torn")
    assert list(read_predictions(folder, ["t0", "t1"])) == ["t1"]
    damaged: list[str] = []
    for _ in range(2):  # each is named once
        assert list(read_predictions(folder, ["t0", "t1", "t2"], damaged)) == ["t1"]
    assert len(damaged) == 1 and damaged[0].startswith(f"{folder / 't0.parquet'}: not a readable result (")


@pytest.mark.parametrize("end", [False, True])
def test_predictions_of_a_damaged_merged_file_are_none(folder: Path, end: bool) -> None:
    """Whether its end, which says whose rows it has, can be read or not."""
    for trial_id in ("t0", "t1"):
        write(folder / f"{trial_id}.parquet", predictions_table(trial_id, predictions()))
    merge([folder / "t0.parquet"])
    (merged,) = folder.glob("merged-*.parquet")
    content = merged.read_bytes()
    merged.write_bytes(content[:4] + bytes(100) + content[104:] if end else content[:50])
    damaged: list[str] = []
    assert list(read_predictions(folder, ["t0", "t1"], damaged)) == ["t1"]
    assert len(damaged) == 1 and damaged[0].startswith(f"{merged}: not a readable result (")


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def damage(folder: Folder, content: bytes, reason: str) -> None:
    path = folder / "bad.parquet"
    path.write_bytes(content)
    line = f"{path}: not a readable result ({reason}); its trial is not counted"
    for columns in (None, ["status"], ["trial_id"], ["trial_id", "status"]):
        table, damaged = read_folder(folder, TRIALS, columns)
        assert table.column_names == (columns or TRIALS.names) and len(table) == 2 and damaged == [line]


@pytest.fixture
def holed(folder: Folder) -> Folder:
    """A folder of three trials, of which the third one's file is about to be damaged."""
    store(folder, *map(row, ("good", "bad", "other")))
    return folder


@everywhere
def test_a_torn_file_is_reported_and_not_counted(holed: Folder) -> None:
    whole = (holed / "bad.parquet").read_bytes()
    for length in (8, 12, 100, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        damage(holed, whole[:length], TORN)
    damage(holed, b"", "Parquet file size is 0 bytes")
    damage(holed, whole[:5], "Parquet file size is 5 bytes, smaller than the minimum file footer (8 bytes)")
    store(holed, row("bad"))
    assert values(holed, "status") == dict.fromkeys(("bad", "good", "other"), "completed")


def test_foreign_files_are_reported_and_not_counted(holed: Path) -> None:
    damage(holed, b"trial_id,status\nbad,completed\n", TORN)
    foreign = io.BytesIO()
    pq.write_table(pa.table({"status": ["completed"], "price": [3]}), foreign)
    damage(holed, foreign.getvalue(), "no trial_id in it")
    (holed / "notes.txt").write_text("not looked at")
    (holed / "_notes.parquet").write_text("not looked at")
    damage(holed, foreign.getvalue(), "no trial_id in it")


@everywhere
def test_files_that_are_all_damaged(holed: Folder) -> None:
    for path in singles(holed):
        path.write_bytes(b"")
    table, damaged = read_files(singles(holed), TRIALS)
    assert len(table) == 0 and table.schema.names == TRIALS.names and len(damaged) == 3


def test_a_file_that_lacks_newer_columns(folder: Folder) -> None:
    axes = {"variant": pa.string()}
    store(folder, row("old", {"variant": "a"}), row("new", {"variant": "a"}), axes=axes)
    path, younger = folder / "old.parquet", ["test_loss", "ray_version", "variant", "git_dirty"]
    pq.write_table(pq.ParquetFile(path).read().drop_columns(younger), path)
    table, damaged = read_folder(folder, trials_schema(axes))
    assert damaged == [] and table.column_names == [*TRIALS.names, "variant"]
    (old,) = (each for each in table.to_pylist() if each["trial_id"] == "old")
    assert [old[name] for name in younger] == [None] * 4 and old["test_accuracy"] == 0.75
    assert values(folder, "status") == {"old": "completed", "new": "completed"}


def test_a_file_with_columns_of_the_future(folder: Folder) -> None:
    store(folder, row("old"), row("new"))
    path = folder / "new.parquet"
    pq.write_table(pq.ParquetFile(path).read().append_column("invented", pa.array([1])), path)
    table, damaged = read_folder(folder, TRIALS)
    assert damaged == [] and len(table) == 2 and "invented" not in table.column_names


# ---------------------------------------------------------------------------------------------------------------------
# Merged files


@everywhere
def test_merged_files_read_as_before(folder: Folder) -> None:
    store(folder, *(row(f"t{number}", test_accuracy=number / 8) for number in range(5)))
    before = values(folder, "test_accuracy")
    for files in ([0, 1], [2, 3], [7]):  # the last is not there
        merge([folder / f"t{number}.parquet" for number in files])
    assert values(folder, "test_accuracy") == before
    assert [path.name for path in singles(folder)] == ["t4.parquet"] and len(list(folder.glob("merged-*"))) == 2


@everywhere
def test_what_is_merged_and_still_has_its_own_file_counts_once(folder: Folder) -> None:
    store(folder, row("t0"), row("t1"), row("t2"))
    kept = (folder / "t1.parquet").read_bytes()
    merge([folder / "t0.parquet", folder / "t1.parquet"])
    (folder / "t1.parquet").write_bytes(kept)  # as if the driver had been killed before it removed it
    assert set(values(folder, "status")) == {"t0", "t1", "t2"}
    assert clear_merged(folder) == {"t0", "t1"}
    assert [path.stem for path in singles(folder)] == ["t2"] and len(values(folder, "status")) == 3
    assert clear_merged(folder / "none") == set()


@everywhere
def test_a_trial_is_taken_out_of_what_is_merged(folder: Folder) -> None:
    store(folder, row("t0"), row("t1"), row("t2"))
    merge(singles(folder)[:2])
    for trial_id in ("t1", "t2", "unknown"):
        take_out(folder, trial_id)
        assert set(values(folder, "status")) == {"t0", "t2"}
    store(folder, row("t1", status="pruned"))
    assert values(folder, "status") == {"t0": "completed", "t1": "pruned", "t2": "completed"}
    assert clear_merged(folder) == {"t0"}


@everywhere
def test_a_column_is_changed_wherever_the_rows_lie(folder: Folder) -> None:
    store(folder, *(row(f"t{number}", stage="search") for number in range(4)))
    younger = folder / "t3.parquet"  # than the column is
    content = pq.read_table(pa.BufferReader(younger.read_bytes())).drop_columns(["stage"])
    write(younger, content)
    merge(singles(folder)[:2])
    set_column(folder, TRIALS.field("stage"), {"t0": "confirm", "t3": "former", "unknown": "grid"})
    assert values(folder, "stage") == {"t0": "confirm", "t1": "search", "t2": "search", "t3": "former"}
    set_column(folder, TRIALS.field("stage"), {})
    assert clear_merged(folder) == {"t0", "t1"}


@everywhere
def test_a_damaged_file_is_not_merged_and_still_reported(folder: Folder) -> None:
    numbers = {"train_loss": 0.5, "train_accuracy": 0.5, "val_loss": 0.5, "val_accuracy": 0.5, "lr": 0.1}
    for trial_id in ("t0", "t1", "t2"):
        write(folder / f"{trial_id}.parquet", rows_table([EpochRow(trial_id=trial_id, epoch=1, **numbers)], EPOCHS))
    torn = folder / "t1.parquet"
    torn.write_bytes(torn.read_bytes()[:100])
    merge(singles(folder))
    assert singles(folder) == [torn]
    table, damaged = read_folder(folder, EPOCHS)
    assert sorted(table["trial_id"].to_pylist()) == ["t0", "t2"]
    assert damaged == [f"{torn}: not a readable result ({TORN}); its trial is not counted"]


@everywhere
def test_a_damaged_merged_file_is_reported(folder: Folder) -> None:
    store(folder, row("t0"))
    merge(singles(folder))
    (merged,) = folder.glob("merged-*.parquet")
    merged.write_bytes(merged.read_bytes()[:50])
    assert clear_merged(folder) == set()
    table, damaged = read_folder(folder, TRIALS)
    assert len(table) == 0 and damaged == [f"{merged}: not a readable result ({TORN}); its trial is not counted"]


def test_merging_keeps_columns_of_axes_that_the_suite_no_longer_has(folder: Folder) -> None:
    wide = {"model.width": pa.int64()}
    store(folder, row("t0", {"model.width": 2}), axes=wide)
    store(folder, row("t1"))
    merge(singles(folder))
    assert singles(folder) == []
    table, damaged = read_folder(folder, trials_schema(wide), ["trial_id", "model.width"])
    assert damaged == []
    assert dict(zip(table["trial_id"].to_pylist(), table["model.width"].to_pylist(), strict=True))["t0"] == 2
