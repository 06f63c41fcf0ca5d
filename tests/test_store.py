"""The results folder: whole files or none, one writer, and rows that read back as they were, by raybench and others."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from made import MANY_AXES as AXES

from raybench import objects
from raybench.errors import UserError
from raybench.grid import Trial
from raybench.objects import place
from raybench.parquet import EPOCHS, PREDICTIONS, TRIALS
from raybench.prune import Decision
from raybench.records import SCHEMA_VERSION, Activations, DetectionRow, EpochRow, Outcome, Predictions, TrialRow
from raybench.search import Ended
from raybench.store import PRUNING, Kind, Store, read_snapshot
from raybench.suite import Suite

GOLDEN = Path(__file__).parent / "golden"
LoadSuite = Callable[..., tuple[Suite, list[Trial]]]
AXES_OF_A_TRIAL = {"train.batch_size": 16, "train.optimizer.decay": 0.5, "train.smoke": True, "variant": "2"}


def row(trial_id: str = "t0", **columns: Any) -> TrialRow:
    given = {
        "trial_id": trial_id,
        "suite": "stored",
        "dataset": "digits",
        "model": "mlp",
        "augmentation": "none",
        "seed": 1,
        "lr": 0.001,
        "axes": AXES_OF_A_TRIAL,
        "status": "completed",
        "selection": "val_accuracy",
        "validation": "test",
        "settings": '{"train": {}}',
        "epochs": 2,
        "test_accuracy": 0.75,
    }
    return TrialRow(**{**given, **columns})


def epochs(trial_id: str = "t0", count: int = 2) -> tuple[EpochRow, ...]:
    return tuple(
        EpochRow(
            trial_id=trial_id,
            epoch=number,
            train_loss=1 / number,
            train_accuracy=0.1 * number,
            val_loss=float("inf"),
            val_accuracy=0.25,
            test_accuracy=0.5 if number == count else None,
            lr=0.1,
            seconds=1.5,
        )
        for number in range(1, count + 1)
    )


def predictions(n: int = 4, classes: int = 3) -> Predictions:
    logits = np.linspace(-60000, 60000, n * classes).reshape(n, classes).astype(np.float16)
    return Predictions(
        index=np.arange(n, dtype=np.int32) * 70_000,
        label=np.zeros(n, np.int16),
        prediction=logits.argmax(1).astype(np.int16),
        logits=logits,
    )


def full(trial_id: str = "t0", **columns: Any) -> Outcome:
    return Outcome(row=row(trial_id, **columns), epochs=epochs(trial_id), predictions=predictions())


@pytest.fixture
def suite(load_suite: LoadSuite) -> Suite:
    return load_suite(AXES)[0]


@pytest.fixture
def store(request: pytest.FixtureRequest, suite: Suite, tmp_path: Path) -> Iterator[Store]:
    remote = getattr(request, "param", "disk") == "s3"
    root = place(f"{request.getfixturevalue('bucket')}/results") if remote else tmp_path / "results"
    made = Store(root, suite)
    made.open({"document": {}})
    yield made
    made.close()


everywhere = pytest.mark.parametrize("store", ["disk", "s3"], indirect=True)


def files(store: Store) -> list[str]:
    return sorted(str(path.relative_to(store.folder)) for path in store.folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------------------------------------------------------------
# Round trips


def value_for(name: str, kind: pa.DataType) -> Any:
    return {"string": f"ä {name}\n'", "int64": 2**40, "double": 0.1, "bool": True}[str(kind)]


@everywhere
def test_every_column_comes_back(store: Store) -> None:
    full_columns = {field.name: value_for(field.name, field.type) for field in TRIALS if field.name != "trial_id"}
    everything = TrialRow(**{**full_columns, "trial_id": "all", "status": "completed", "axes": AXES_OF_A_TRIAL})
    needed = (
        "suite",
        "dataset",
        "model",
        "augmentation",
        "seed",
        "lr",
        "status",
        "selection",
        "validation",
        "settings",
    )
    bare = TrialRow(**{name: getattr(row(), name) for name in needed}, trial_id="bare", axes=AXES_OF_A_TRIAL)
    for each in (everything, bare):
        store.write(Outcome(row=each))
    rows, damaged = store.read()
    assert damaged == []
    assert list(rows.columns) == [*TRIALS.names, *AXES_OF_A_TRIAL]
    for found, each in zip(rows.to_dict("records"), (everything, bare), strict=True):
        expected = {**dataclasses.asdict(each), **AXES_OF_A_TRIAL}
        del expected["axes"]
        assert {name: None if pd.isna(value) else value for name, value in found.items()} == expected
    assert rows["trial_id"].tolist() == ["all", "bare"]
    assert pd.isna(rows["test_accuracy"][1]) and rows["epochs"].tolist() == [2**40, 0]


@everywhere
def test_epochs_come_back(store: Store) -> None:
    store.write(full("b"))
    store.write(full("a"))
    rows, damaged = store.read("epochs")
    assert damaged == [] and list(rows.columns) == EPOCHS.names
    expected = [dataclasses.asdict(epoch) for trial_id in "ab" for epoch in epochs(trial_id)]
    found = [{k: None if pd.isna(v) else v for k, v in each.items()} for each in rows.to_dict("records")]
    assert found == expected


@everywhere
def test_predictions_come_back(store: Store) -> None:
    store.write(full("a"))
    store.write(Outcome(row=row("b"), predictions=predictions(2, classes=5)))  # of a dataset with other classes
    rows, damaged = store.read("predictions")
    assert damaged == [] and list(rows.columns) == PREDICTIONS.names
    assert rows["trial_id"].tolist() == ["a"] * 4 + ["b"] * 2
    for trial_id, expected in (("a", predictions()), ("b", predictions(2, classes=5))):
        found = rows[rows["trial_id"] == trial_id]
        logits = np.stack(list(found["logits"]))
        assert logits.dtype == np.float16 and np.array_equal(logits, expected.logits)
        assert (found["prediction"].to_numpy() == logits.argmax(1)).all()
        for name in ("index", "label", "prediction"):
            assert np.array_equal(found[name], getattr(expected, name))
            assert found[name].dtype == getattr(expected, name).dtype


@everywhere
@pytest.mark.parametrize("merged", [False, True])
def test_predictions_of_some_trials(merged: bool, store: Store) -> None:
    for trial_id in ("t0", "t1", "t2"):
        store.write(full(trial_id))
    store.write(Outcome(row=row("t3", status="failed", test_accuracy=None)))
    if merged:
        store.compact()
        store.write(full("t4"))
    there = ["t4", "t2", "t0"] if merged else ["t2", "t0"]
    found = store.predictions([*there, "t3", "t5"])
    assert list(found) == there
    for trial in found.values():
        for name in ("index", "label", "prediction", "logits"):
            stored, written = getattr(trial, name), getattr(predictions(), name)
            assert stored.dtype == written.dtype and np.array_equal(stored, written), name


def test_files_of_predictions_that_cannot_be_read_are_named(store: Store) -> None:
    store.write(full("t0"))
    store.write(full("t1"))
    (store.folder / "predictions" / "t0.parquet").write_bytes(b"torn")
    damaged: list[str] = []
    assert list(store.predictions(["t0", "t1", "t2"], damaged)) == ["t1"]
    assert len(damaged) == 1
    assert damaged[0].startswith(f"{store.folder / 'predictions' / 't0.parquet'}: not a readable result (")


@everywhere
def test_some_columns(store: Store) -> None:
    store.write(full())
    rows, _ = store.read("trials", ["status", "variant"])
    assert rows.to_dict("list") == {"status": ["completed"], "variant": ["2"]}
    with pytest.raises(KeyError):
        store.read("trials", ["nonsense"])


@pytest.mark.parametrize("opened", [True, False])
def test_an_empty_folder(opened: bool, suite: Suite, tmp_path: Path) -> None:
    store = Store(tmp_path, suite)
    if opened:
        store.open({})
    rows, damaged = store.read()
    assert len(rows) == 0 and damaged == [] and list(rows.columns) == [*TRIALS.names, *AXES_OF_A_TRIAL]
    assert list(store.read("epochs")[0].columns) == EPOCHS.names
    assert list(store.read("predictions")[0].columns) == PREDICTIONS.names
    assert store.done() == ({}, [])
    store.close()


def test_two_thousand_rows(store: Store) -> None:
    store.write(full())
    for number in range(1, 2000):
        table = pa.table({"trial_id": [f"t{number}"], "status": ["completed"], "test_accuracy": [0.75]})
        pq.write_table(table, store.folder / "trials" / f"t{number}.parquet")
    done, damaged = store.done()
    assert damaged == [] and done == {f"t{number}": "completed" for number in range(2000)}
    rows, _ = store.read()
    assert rows["trial_id"].nunique() == 2000 and rows["test_accuracy"].eq(0.75).all()


# ---------------------------------------------------------------------------------------------------------------------
# What counts as done


@everywhere
@pytest.mark.parametrize(
    ("status", "counts"), [("completed", True), ("stopped_early", True), ("pruned", True), ("failed", False)]
)
def test_what_is_not_run_again(status: str, counts: bool, store: Store) -> None:
    store.write(Outcome(row=row(status=status)))
    assert store.done() == ({"t0": status} if counts else {}, [])


@everywhere
def test_a_failed_row_gives_way_to_a_finished_one(store: Store) -> None:
    store.write(Outcome(row=row(status="failed", error="E: no", test_accuracy=None), epochs=epochs(count=3)))
    assert store.done() == ({}, [])
    store.write(full())
    assert store.done() == ({"t0": "completed"}, [])
    rows, _ = store.read()
    assert rows["test_accuracy"].tolist() == [0.75] and rows["error"].isna().all()
    assert store.read("epochs")[0]["epoch"].tolist() == [1, 2]


def test_nothing_is_left_of_an_earlier_attempt(store: Store) -> None:
    store.write(full())
    store.write(Outcome(row=row(status="failed", epochs=0)))
    assert files(store) == [".lock", "suite.json", "trials/t0.parquet"]


# ---------------------------------------------------------------------------------------------------------------------
# Damage


@pytest.fixture
def holed(store: Store) -> Store:
    """A store of three trials, of which the third one's file is about to be damaged."""
    for trial_id in ("good", "bad", "other"):
        store.write(full(trial_id))
    return store


@everywhere
def test_a_trial_whose_file_is_damaged_runs_again(holed: Store) -> None:
    path = holed.folder / "trials" / "bad.parquet"
    path.write_bytes(path.read_bytes()[:100])
    done, damaged = holed.done()
    assert done == {"good": "completed", "other": "completed"} and damaged == holed.read()[1]
    assert len(damaged) == 1 and damaged[0].startswith(f"{path}: not a readable result (Parquet magic bytes not found")
    assert holed.read("epochs")[1] == []
    holed.write(full("bad"))
    assert holed.done() == (dict.fromkeys(("good", "bad", "other"), "completed"), [])


def test_a_folder_in_the_way(holed: Store) -> None:
    path = holed.folder / "trials" / "bad.parquet"
    path.unlink()
    path.mkdir()
    done, (line,) = holed.done()
    assert done == {"good": "completed", "other": "completed"} and line.startswith(f"{path}: not a readable result (")


@everywhere
def test_all_files_damaged(holed: Store) -> None:
    for kind in get_args(Kind):
        for path in (holed.folder / kind).glob("*.parquet"):
            path.write_bytes(b"")
    for kind, columns in (("trials", [*TRIALS.names, *AXES_OF_A_TRIAL]), ("epochs", EPOCHS.names)):
        rows, damaged = holed.read(kind)
        assert len(rows) == 0 and list(rows.columns) == columns and len(damaged) == 3


# ---------------------------------------------------------------------------------------------------------------------
# One writer, whole files


class FullDisk:
    """A disk that takes ``room`` bytes and no more."""

    def __init__(self, room: int) -> None:
        self.room = room

    def open(self, path: Path, mode: str) -> BinaryIO:
        disk = self

        class File(io.FileIO):
            def write(self, content: Any) -> int:
                data = bytes(content)
                super().write(data[: disk.room])
                disk.room -= len(data)
                if disk.room < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return len(data)

        return File(path, mode.replace("b", ""))


@pytest.mark.parametrize("room", [0, 100, 4000, 8000])
def test_a_full_disk_leaves_what_was_there(room: int, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(full("before"))
    store.write(Outcome(row=row("again", status="failed"), epochs=epochs("again", 1)))
    before = {path: (store.folder / path).read_bytes() for path in files(store)}
    with monkeypatch.context() as patch:
        patch.setattr(objects, "open", FullDisk(room).open, raising=False)
        for trial_id in ("again", "new"):
            with pytest.raises(OSError, match="No space left on device"):
                store.write(full(trial_id))
    assert [path for path in files(store) if ".tmp" in path] == []
    for path, content in before.items():
        if path.startswith("trials"):
            assert (store.folder / path).read_bytes() == content
    assert store.done() == ({"before": "completed"}, [])
    for kind in ("epochs", "predictions"):
        assert store.read(kind)[1] == []
    for trial_id in ("again", "new"):
        store.write(full(trial_id))
    assert len(store.done()[0]) == 3


def test_a_rename_that_fails(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(full("before"))
    before = files(store)

    def refuse(*paths: Any) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="quota"):
            store.write(full("new"))
    assert files(store) == before


def test_a_row_comes_last(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is killed between two files leaves a trial that is not done."""
    order: list[str] = []
    replace = os.replace

    def watching(beside: Any, path: Any) -> None:
        order.append(Path(path).parent.name)
        replace(beside, path)

    monkeypatch.setattr(os, "replace", watching)
    store.write(full())
    assert order == ["predictions", "epochs", "trials"]


def test_leftovers_of_a_killed_writer(suite: Suite, tmp_path: Path) -> None:
    store = Store(tmp_path, suite)
    store.open({})
    store.write(full())
    expected = files(store)
    store.close()
    for left in ("trials/.t1.parquet.7.tmp", "epochs/.t1.parquet.7.tmp", ".suite.json.7.tmp"):
        (store.folder / left).write_bytes(b"PAR1 half a file")
    assert store.done() == ({"t0": "completed"}, [])
    assert len(pd.read_parquet(store.folder / "trials")) == 1
    again = Store(tmp_path, suite)
    again.open({})
    assert files(store) == expected
    again.close()


def test_one_writer_at_a_time(suite: Suite, tmp_path: Path) -> None:
    first, second = Store(tmp_path, suite), Store(tmp_path, suite)
    remedy = "wait for it, stop it, or choose another --results"
    message = f"{tmp_path / 'stored'}: another raybench run is writing here: {remedy}"
    first.open({"run": 1})
    first.write(full())
    (first.folder / "trials" / ".t9.parquet.7.tmp").write_bytes(b"the first writer is about to rename this")
    with pytest.raises(UserError) as caught:
        second.open({"run": 2})
    assert str(caught.value) == message
    assert read_snapshot(first.folder) == {"run": 1} and ".tmp" in " ".join(files(first))
    assert second.done() == ({"t0": "completed"}, [])  # reading needs no lock

    code = (
        "import sys; from pathlib import Path; from raybench import suite; from raybench.store import Store\n"
        "from raybench.errors import UserError\n"
        "try: Store(Path(sys.argv[1]), suite.load(Path(sys.argv[2]))).open({'run': 3})\n"
        "except UserError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "suite.yaml")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == message + "\n"
    first.close()
    second.open({"run": 4})
    assert read_snapshot(first.folder) == {"run": 4}
    second.close()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""
    first.open({"run": 5})  # the process that held the lock has ended
    first.close()


def test_a_folder_that_cannot_be_written(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        Store(tmp_path / "file", suite).open({})
    folder = tmp_path / "file" / "stored"
    assert str(caught.value) == f"{folder}: cannot be written: Not a directory; choose another --results"

    store = Store(tmp_path, suite)
    with monkeypatch.context() as patch:
        patch.setattr(objects, "open", FullDisk(0).open, raising=False)
        with pytest.raises(UserError) as caught:
            store.open({})
    assert str(caught.value) == (
        f"{store.folder}: cannot be written: No space left on device; choose another --results"
    )
    other = Store(tmp_path, suite)
    other.open({})  # the lock was let go
    other.close()


# ---------------------------------------------------------------------------------------------------------------------
# The snapshot


def test_the_snapshot_comes_back(suite: Suite, tmp_path: Path) -> None:
    store = Store(tmp_path, suite)
    snapshot = {"document": suite.document, "source": "ä.yaml", "sets": ["a=1"], "only": {}, "limit": None}
    store.open(snapshot)
    assert read_snapshot(store.folder) == snapshot == json.loads((store.folder / "suite.json").read_bytes())
    store.close()
    store.open({"limit": Path("a")})
    assert read_snapshot(store.folder) == {"limit": "a"}
    store.close()


def test_a_missing_or_torn_snapshot(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_snapshot(tmp_path / "none")
    assert str(caught.value) == (
        f"{tmp_path / 'none'}: no results here: run the suite first, or name its folder with --results"
    )
    (tmp_path / "suite.json").write_text("{")
    with pytest.raises(UserError) as caught:
        read_snapshot(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'suite.json'}: cannot be read: Expecting property name")


# ---------------------------------------------------------------------------------------------------------------------
# Others read it too


def test_pandas_and_pyarrow_read_the_folders_as_they_are(store: Store) -> None:
    for trial_id in ("a", "b"):
        store.write(full(trial_id))
    store.write(Outcome(row=row("c"), predictions=predictions(2, classes=5)))
    (store.folder / "trials" / ".d.parquet.7.tmp").write_bytes(b"PAR1 half a file")
    expected = {"trials": 3, "epochs": 4, "predictions": 10}
    for kind, count in expected.items():
        assert len(pd.read_parquet(store.folder / kind)) == count
        assert ds.dataset(store.folder / kind).count_rows() == count
    ours, _ = store.read()
    pd.testing.assert_frame_equal(pd.read_parquet(store.folder / "trials"), ours)
    footer = pq.read_schema(store.folder / "trials" / "a.parquet").metadata
    assert footer[b"raybench_schema"] == str(SCHEMA_VERSION).encode()


def test_rows_of_schema_version_1_still_read(load_suite: LoadSuite, tmp_path: Path) -> None:
    """The file was written when this test was, and is never written again."""
    suite, _ = load_suite(
        "{name: v1, dataset: {name: digits}, model: mlp,"
        " compare: {train.batch_size: [16, 32], train.optimizer.decay: [0, 0.5], variant: {a: {}, b: {lr: 1}}}}"
    )
    store = Store(tmp_path, suite)
    store.open({})
    (store.folder / "trials" / "0123456789abcdef.parquet").write_bytes((GOLDEN / "trials_v1.parquet").read_bytes())
    assert store.done() == ({"0123456789abcdef": "stopped_early"}, [])
    rows, damaged = store.read()
    assert damaged == []
    (found,) = rows.to_dict("records")
    expected = json.loads((GOLDEN / "trials_v1.json").read_text(encoding="utf-8"))
    assert {name: None if pd.isna(found[name]) else found[name] for name in expected} == expected
    store.close()


# ---------------------------------------------------------------------------------------------------------------------
# Merged files


def everything(store: Store) -> dict[str, list[dict[str, Any]]]:
    """Return all rows of every kind, in an order that does not depend on files."""
    found = {}
    for kind in get_args(Kind):
        rows, damaged = store.read(kind)
        assert damaged == []
        order = [name for name in ("trial_id", "epoch", "index") if name in rows]
        found[kind] = rows.sort_values(order).astype(str).to_dict("records")
    return found


@everywhere
def test_merging_changes_no_row_and_bounds_the_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raybench.store.COMPACT_AT", 4)
    for number in range(11):
        store.write(full(f"t{number:02}", status="failed" if number in (1, 6) else "completed"))
    # After 4 trials and after 8 what was done was merged; the two failures and the last three keep their own files.
    names = sorted(path.name for path in (store.folder / "trials").glob("*"))
    assert [name for name in names if not name.startswith("merged-")] == [
        *("t01.parquet", "t06.parquet", "t08.parquet", "t09.parquet", "t10.parquet")
    ]
    assert len(names) == 5 + 2
    before = everything(store)
    assert [len(before[kind]) for kind in get_args(Kind)] == [11, 22, 44, 0, 0]
    assert store.compact() == 3
    assert everything(store) == before
    assert store.compact() == 0
    assert set(store.done()[0]) == {f"t{number:02}" for number in range(11)} - {"t01", "t06"}
    # The failed ones run again.
    store.write(full("t01"))
    store.compact()
    assert len(store.done()[0]) == 10 and len(everything(store)["epochs"]) == 22


@everywhere
def test_a_driver_killed_while_it_merged_doubles_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        store.write(full(f"t{number}"))
    before = everything(store)
    kept = {path: path.read_bytes() for kind in get_args(Kind) for path in (store.folder / kind).glob("t?.parquet")}
    store.compact()
    for path, content in list(kept.items())[::2]:  # as if half of them had not been removed yet
        path.write_bytes(content)
    assert everything(store) == before
    store.close()
    store.open({"document": {}})
    assert not [path for kind in get_args(Kind) for path in (store.folder / kind).glob("t?.parquet")]
    assert everything(store) == before


# ---------------------------------------------------------------------------------------------------------------------
# What a search needs


@everywhere
def test_an_outcome_comes_back_as_it_was_written(store: Store) -> None:
    written = full("t0", draw=3, best_epoch=2, parameters=7, git_dirty=False)
    for outcome in (written, full("t1")):
        store.write(outcome)
    back = store.outcome("t0")
    assert (back.row, back.epochs, back.predictions) == (written.row, written.epochs, None)
    assert type(back.row.draw) is int and type(back.epochs[0].epoch) is int


@everywhere
def test_a_trial_in_a_merged_file_can_be_written_again(store: Store) -> None:
    for number in range(3):
        store.write(full(f"t{number}"))
    store.compact()
    store.write(Outcome(row=row("t1", status="pruned", epochs=1), epochs=epochs("t1", 1)))
    trials, damaged = store.read()
    assert not damaged and dict(zip(trials["trial_id"], trials["status"], strict=True)) == {
        "t0": "completed",
        "t1": "pruned",
        "t2": "completed",
    }
    assert sorted(store.read("epochs")[0]["trial_id"]) == ["t0", "t0", "t1", "t2", "t2"]
    assert set(store.read("predictions")[0]["trial_id"]) == {"t0", "t2"}
    store.close()
    store.open({})
    assert len(store.read()[0]) == 3 and store.compact() == 1 and len(store.read()[0]) == 3


@everywhere
@pytest.mark.parametrize("merged", [False, True])
def test_stages_follow_the_plan(store: Store, merged: bool) -> None:
    for number in range(3):
        store.write(full(f"t{number}", stage="search"))
    store.write(full("t3"))
    if merged:
        store.compact()
    before = {name: store.read(name)[0] for name in ("epochs", "predictions")}
    store.set_stages({"t0": "search", "t1": "confirm", "unknown": "confirm"})
    trials = store.read()[0].sort_values("trial_id")
    assert list(trials["stage"]) == ["search", "confirm", "former", "grid"]
    assert list(trials["status"]) == ["completed"] * 4
    store.set_stages({"t1": "search", "t2": "grid"})
    assert list(store.read()[0].sort_values("trial_id")["stage"]) == ["former", "search", "grid", "grid"]
    assert all(store.read(name)[0].equals(rows) for name, rows in before.items())


@pytest.mark.parametrize("merged", [False, True])
def test_columns_that_are_younger_than_a_file(store: Store, merged: bool) -> None:
    store.write(full("t0"))
    path = store.folder / "trials" / "t0.parquet"
    table = pq.read_table(pa.BufferReader(path.read_bytes())).drop_columns(["stage", "undecided"])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    path.write_bytes(sink.getvalue())
    if merged:
        store.compact()
    store.set_stages({"t0": "confirm"})
    store.set_decided("t0")
    rows, damaged = store.read()
    assert not damaged and list(rows["stage"]) == ["confirm"] and rows["undecided"].isna().all()


def test_doubts_end(store: Store) -> None:
    store.write(full("t0", undecided=True))
    assert list(store.read()[0]["undecided"]) == [True]
    store.set_decided("t0")
    assert store.outcome("t0").row.undecided is None


@everywhere
def test_what_ended(store: Store) -> None:
    store.write(full("done", draw=2, val_accuracy=0.5, selection="val_accuracy", lr=0.01))
    store.write(full("listed", selection="val_loss", val_loss=0.25))
    store.write(full("failed", status="failed", val_accuracy=None))
    done = store.ended()
    assert set(done) == {"done", "listed"} and set(store.ended(failed=True)) == {"done", "listed", "failed"}
    assert done["listed"] == Ended("completed", 0.25, 2)
    assert (done["done"].value, done["done"].draw, type(done["done"].draw)) == (0.5, 2, int)
    labels = {"dataset": "digits", "model": "mlp", "augmentation": "none", "seed": 1, "lr": 0.01}
    assert done["done"].labels == {**labels, **AXES_OF_A_TRIAL}
    assert store.ended(failed=True)["failed"].value is None


def test_decisions_are_kept(store: Store) -> None:
    decisions = [Decision("t0", 1, 0.5, None, 0, False), Decision("t1", 1, 0.25, 0.5, 1, True)]
    for kept in (decisions[:1], decisions):
        store.write_decisions(kept)
        assert pq.read_table(store.folder / PRUNING).to_pylist() == [dataclasses.asdict(decision) for decision in kept]
    store.write_decisions([])
    assert pq.read_table(store.folder / PRUNING).num_rows == 0


# ---------------------------------------------------------------------------------------------------------------------
# Weights, and what is computed from them


def weighed(trial_id: str = "t0", content: bytes = b"weights", **columns: Any) -> Outcome:
    return dataclasses.replace(full(trial_id, **columns), weights=content)


@everywhere
def test_weights_are_found_by_id_and_go_with_their_trial(store: Store) -> None:
    store.write(weighed("t0"))
    store.write(weighed("t1", b"others"))
    store.write(full("t2"))
    assert store.kept_weights() == {"t0", "t1"}
    assert (store.weights("t0"), store.weights("t1")) == (b"weights", b"others")
    store.write(weighed("t1", b"again"))
    assert store.weights("t1") == b"again"
    store.write(full("t1", status="pruned"))
    store.drop_weights(["t2", "of no trial"])
    assert store.kept_weights() == {"t0"}
    store.drop_weights(["t0"])
    assert store.kept_weights() == set()
    assert store.read()[0]["trial_id"].tolist() == ["t0", "t1", "t2"], "no row goes with them"


@everywhere
def test_no_weights(store: Store) -> None:
    store.write(full("t2"))
    assert store.kept_weights() == set()
    with pytest.raises(UserError) as failed:
        store.weights("t2")
    assert str(failed.value) == (
        f"{store.folder}/weights/t2.safetensors: no such weights: a suite keeps them with `keep_weights: best`, from"
        " then on"
    )


def test_weights_of_an_earlier_run_are_replaced_too(suite: Suite, tmp_path: Path) -> None:
    for outcome in (weighed(), full(status="pruned")):
        later = Store(tmp_path, suite)
        later.open({})
        later.write(outcome)
        later.close()
    assert later.kept_weights() == set()


def test_weights_come_before_the_row(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def watching(path: Any, content: Any) -> None:
        written.append(path.parent.name)
        objects.write_whole(path, content)

    for writer in ("store", "parquet"):
        monkeypatch.setattr(f"raybench.{writer}.write_whole", watching)
    store.write(weighed())
    assert written == ["weights", "predictions", "epochs", "trials"]
    for writer in ("store", "parquet"):
        monkeypatch.setattr(f"raybench.{writer}.write_whole", no_room)
    with pytest.raises(OSError, match="No space left on device"):
        store.write(weighed("t1"))
    assert store.kept_weights() == {"t0"} and len(store.read()[0]) == 1


def no_room(path: Any, content: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def detection(trial_id: str, accuracy: float = 0.75, settings: str = "{}", outside: str = "svhn") -> DetectionRow:
    return DetectionRow(
        trial_id=trial_id,
        dataset=outside,
        score="energy",
        threshold=0.5,
        accuracy=accuracy,
        peek_accuracy=1.0,
        auroc=0.9,
        fpr95=0.1,
        n_in=1,
        n_out=1,
        n_choosing=2,
        out_fingerprint="fedc",
        settings=settings,
    )


def foreign(value: float = 0.25, outside: str = "svhn") -> list[Activations]:
    return [
        Activations(
            score=score,
            layer=layer,
            outside=outside,
            dataset=np.array(["in", "in", "out", "out"]),
            index=np.array([3, 1, 70_000, 2], np.int32),
            judged=np.array([False, True, False, True]),
            value=np.array([value, 1e-30, 3, 4], np.float32),
        )
        for score, layer in (("mean_activation", "2"), ("energy", None))
    ]


@everywhere
def test_what_tells_foreign_images_comes_back(store: Store) -> None:
    store.write_detection("t0", [detection("t0")], foreign())
    rows, damaged = store.read("ood")
    assert damaged == []
    (row_,) = rows.to_dict("records")
    assert DetectionRow(**{**row_, "layer": None, "kind": None}) == detection("t0")
    assert pd.isna(row_["layer"]) and pd.isna(row_["kind"])
    values, _ = store.read("activations")
    assert [str(kind) for kind in values.dtypes] == ["str"] * 5 + ["int32", "bool", "float32"]
    assert values["layer"].fillna("–").tolist() == ["2"] * 4 + ["–"] * 4
    assert values["index"].tolist() == [3, 1, 70_000, 2] * 2
    assert values["dataset"].tolist() == ["in", "in", "out", "out"] * 2
    assert values["judged"].tolist() == [False, True] * 4
    assert values["value"].tolist() == [0.25, float(np.float32(1e-30)), 3.0, 4.0] * 2
    assert set(values["trial_id"]) == {"t0"}


@everywhere
def test_what_tells_foreign_images_is_merged_and_replaced(store: Store) -> None:
    """Also of trials whose own files were merged long before."""
    for trial_id in ("t0", "t1", "t2"):
        store.write(weighed(trial_id))
    store.compact()
    for trial_id in ("t0", "t1", "t2"):
        store.write_detection(trial_id, [detection(trial_id)], foreign())
    before = [store.read(kind)[0] for kind in ("ood", "activations")]
    assert store.compact() == 0
    assert [len(list((store.folder / kind).glob("*.parquet"))) for kind in ("ood", "activations")] == [1, 1]
    for kind, table in zip(("ood", "activations"), before, strict=True):
        pd.testing.assert_frame_equal(store.read(kind)[0], table)
    store.write_detection("t1", [detection("t1", accuracy=0.25, settings="{1}")], foreign(9.0)[:1])
    rows, values = store.read("ood")[0], store.read("activations")[0]
    assert dict(zip(rows["trial_id"], rows["accuracy"], strict=True)) == {"t0": 0.75, "t1": 0.25, "t2": 0.75}
    assert values.groupby("trial_id").size().to_dict() == {"t0": 8, "t1": 4, "t2": 8}
    store.write(weighed("t0", b"again"))
    assert len(store.read("ood")[0]) == 3 and store.kept_weights() == {"t0", "t1", "t2"}


@everywhere
def test_several_datasets_outside_lie_beside_each_other(store: Store) -> None:
    """Only what is of the same trial and dataset is replaced, also where it was merged."""

    def stored() -> dict[tuple[str, str], tuple[float, list[float]]]:
        values = store.read("activations")[0].groupby(["trial_id", "outside"])["value"].apply(list)
        return {
            (row.trial_id, row.dataset): (row.accuracy, values[row.trial_id, row.dataset][::4])
            for row in store.read("ood")[0].itertuples()
        }

    for trial_id, outside, value in (("t0", "svhn", 1.0), ("t0", "digits", 2.0), ("t1", "svhn", 3.0)):
        store.write_detection(trial_id, [detection(trial_id, outside=outside)], foreign(value, outside))
    first = {
        ("t0", "svhn"): (0.75, [1.0, 1.0]),
        ("t0", "digits"): (0.75, [2.0, 2.0]),
        ("t1", "svhn"): (0.75, [3.0, 3.0]),
    }
    assert stored() == first
    store.compact()
    assert stored() == first
    store.write_detection("t0", [detection("t0", 0.25)], foreign(4.0))
    assert stored() == {**first, ("t0", "svhn"): (0.25, [4.0, 4.0])}
    store.write_detection("t0", [detection("t0", 0.5, outside="digits")], foreign(5.0, "digits"))
    assert stored() == {**first, ("t0", "svhn"): (0.25, [4.0, 4.0]), ("t0", "digits"): (0.5, [5.0, 5.0])}


def test_a_suite_that_asks_for_none_of_it_gets_no_folders(store: Store) -> None:
    store.write(full())
    store.compact()
    assert sorted(path.name for path in store.folder.iterdir() if path.is_dir()) == ["epochs", "predictions", "trials"]
