"""The results folder: weights, and Parquet files in ``trials/``, ``epochs/``, ``predictions/``, one per trial in each.

One process writes, the driver, and holds a lock while it does. A file appears whole or not at all: on a disk it is
written beside its place and renamed, in object storage that is how writing works. A trial's row in ``trials/`` comes
last, so that a trial which has a row has everything.
Every `COMPACT_AT` trials, the files of those that are done are merged into one, which names them in its footer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import UnionType
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import filelock
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from raybench.errors import UserError
from raybench.objects import Claim, Folder, Objects, StoreError
from raybench.prune import Decision
from raybench.records import (
    DONE,
    OWN_COLUMN,
    SCHEMA_VERSION,
    Activations,
    DetectionRow,
    EpochRow,
    Outcome,
    Predictions,
    Stage,
    TrialRow,
)
from raybench.search import Ended
from raybench.suite import Suite

Kind = Literal["trials", "epochs", "predictions", "ood", "activations"]
OF_A_TRIAL: tuple[Kind, ...] = ("trials", "epochs", "predictions")
"""What a trial leaves behind itself; the other kinds are computed from its weights later, if anybody asks."""
COMPUTED: tuple[Kind, ...] = ("ood", "activations")
WEIGHTS = "weights"
SAFETENSORS = ".safetensors"
SNAPSHOT = "suite.json"
PRUNING = "pruning.parquet"
COMPACT_AT = 250
"""Files of single trials before they are merged: opening 10,000 small files takes half a minute."""
MERGED = "merged-"
"""How the names of merged files begin; the others are called by their trial's id."""
PATIENCE = (1, 2, 4, 8, 16)
"""Seconds that a run waits before it asks object storage which has gone away once more, and then gives up."""

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")

_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _arrow_type(hint: Any) -> pa.DataType:
    """Return the column type of a field: ``str``, ``int``, ``float``, ``bool``, a literal, or one of them or None."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    return _ARROW[str if get_origin(hint) is Literal else hint]


def _schema(row: type) -> pa.Schema:
    hints = get_type_hints(row)
    columns = [(f.name, _arrow_type(hints[f.name])) for f in dataclasses.fields(row) if f.name != "axes"]
    return pa.schema(columns, metadata={"raybench_schema": str(SCHEMA_VERSION)})


TRIALS = _schema(TrialRow)
EPOCHS = _schema(EpochRow)
DECISIONS = _schema(Decision)
PREDICTIONS = pa.schema(
    [
        ("trial_id", pa.string()),
        ("index", pa.int32()),
        ("label", pa.int16()),
        ("prediction", pa.int16()),
        ("logits", pa.list_(pa.float16())),  # of no fixed length: a suite's datasets may differ in their classes
    ],
    metadata=TRIALS.metadata,
)
DETECTION = _schema(DetectionRow)
ACTIVATIONS = pa.schema(
    [
        ("trial_id", pa.string()),
        ("score", pa.string()),
        ("layer", pa.string()),
        ("dataset", pa.string()),
        ("index", pa.int32()),
        ("judged", pa.bool_()),
        ("value", pa.float32()),
    ],
    metadata=TRIALS.metadata,
)


def axis_types(suite: Suite) -> dict[str, pa.DataType]:
    """Return the type of each column that the suite's axes add: numbers where every label is one, else text."""
    types: dict[str, pa.DataType] = {}
    for axis in suite.axes:
        if axis.name not in OWN_COLUMN:
            labels = [*axis.labels, *(labels[axis.name] for labels, _ in suite.include)]
            if axis.range:
                labels = [axis.range.ends[0]]
            kinds = {type(label) for label in labels}
            kind = kinds.pop() if len(kinds) == 1 else float if kinds == {int, float} else str
            types[axis.name] = _ARROW[kind]
    return types


def _patient(method: Callable[Concatenate[Store, P], T]) -> Callable[Concatenate[Store, P], T]:
    """Let a method of an open store, which may be done twice, outlast object storage that is away for a moment."""

    @functools.wraps(method)
    def tried(store: Store, /, *args: P.args, **kwargs: P.kwargs) -> T:
        patience = store._patience
        for wait in patience:
            try:
                return method(store, *args, **kwargs)
            except StoreError:
                if not store._patience:  # a method that this one calls has waited
                    raise
                time.sleep(wait)
        store._patience = ()  # once is enough: if this fails too, what follows is the end of the run
        result = method(store, *args, **kwargs)
        store._patience = patience
        return result

    return tried


class Store:
    """The results of one suite, below ``root``."""

    def __init__(self, root: Folder, suite: Suite) -> None:
        self.folder: Folder = root / suite.name
        self._axes = axis_types(suite)
        trials = pa.schema([*TRIALS, *self._axes.items()], metadata=TRIALS.metadata)
        self._schemas: dict[Kind, pa.Schema] = {
            "trials": trials,
            "epochs": EPOCHS,
            "predictions": PREDICTIONS,
            "ood": DETECTION,
            "activations": ACTIVATIONS,
        }
        self._lock = (
            Claim(self.folder) if isinstance(self.folder, Objects) else filelock.FileLock(self.folder / ".lock", 0)
        )
        self._patience: tuple[int, ...] = ()
        self._merged: set[str] = set()
        """Trials whose rows lie in merged files, as far as this process knows."""
        self._weights: set[str] = set()
        """Trials whose weights lie here, as far as this process knows."""
        self._written = 0

    # -- writing ------------------------------------------------------------------------------------------------------

    def open(self, snapshot: Mapping[str, Any] | None = None) -> None:
        """Create the folders, take the lock, and `keep` the snapshot, if it is known yet.

        Raises:
            UserError: if another run writes here, or the folder cannot be written.
        """
        try:
            for kind in OF_A_TRIAL:
                (self.folder / kind).mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            if isinstance(self.folder, Path):
                for left in self.folder.rglob(".*.tmp"):  # of a driver that was killed while it wrote
                    left.unlink()
            for kind in get_args(Kind):  # or while it removed what it had merged
                merged = _merged_ids(self.folder / kind)
                for path in _singles(self.folder / kind):
                    if path.stem in merged:
                        path.unlink()
            self._merged = set().union(*(_merged_ids(self.folder / kind) for kind in OF_A_TRIAL))
            self._weights = self.kept_weights()
            if snapshot is not None:
                self.keep(snapshot)
            self._patience = PATIENCE
        except UserError:
            self.close()
            raise
        except filelock.Timeout:
            raise UserError(
                f"{self.folder}: another raybench run is writing here: wait for it, stop it, or choose another"
                " --results"
            ) from None
        except OSError as error:
            self.close()
            raise UserError(
                f"{self.folder}: cannot be written: {error.strerror or error}; choose another --results"
            ) from None

    def keep(self, snapshot: Mapping[str, Any]) -> None:
        """Keep the suite as it is about to run: what `raybench summarize` shows."""
        _replace(self.folder / SNAPSHOT, json.dumps(snapshot, indent=1, default=str).encode())

    def close(self) -> None:
        self._patience = ()
        self._lock.release()

    @_patient
    def write(self, outcome: Outcome) -> None:
        """Store a trial: its weights, predictions and epochs first, its row last. What an earlier attempt stored is
        replaced.

        Raises:
            OSError: if the disk is full or gone; what was stored before is intact.
            UserError: if object storage stays away, or another driver took over; so it is then.
        """
        if isinstance(self._lock, Claim):
            self._lock.check()
        if outcome.row.trial_id in self._merged:
            self._take_out(outcome.row.trial_id, OF_A_TRIAL)
            self._merged.discard(outcome.row.trial_id)
        if outcome.weights is not None:
            self._place(WEIGHTS, f"{outcome.row.trial_id}{SAFETENSORS}", outcome.weights)
            self._weights.add(outcome.row.trial_id)
        else:
            self.drop_weights({outcome.row.trial_id})
        values = dataclasses.asdict(outcome.row)
        axes = values.pop("axes")
        for name, kind in self._axes.items():
            values[name] = str(axes[name]) if kind == pa.string() else axes[name]
        tables: dict[Kind, pa.Table | None] = {
            "predictions": outcome.predictions and _predictions_table(outcome.row.trial_id, outcome.predictions),
            "epochs": pa.Table.from_pylist([dataclasses.asdict(row) for row in outcome.epochs], EPOCHS),
            "trials": pa.Table.from_pylist([values], self._schemas["trials"]),
        }
        for kind, table in tables.items():
            path = self.folder / kind / f"{outcome.row.trial_id}.parquet"
            if table:
                _replace(path, _parquet(table))
            else:
                path.unlink(missing_ok=True)
        self._written += 1
        if self._written % COMPACT_AT == 0:
            self.compact()

    def _place(self, folder: str, name: str, content: bytes | pa.Buffer) -> None:
        """Write a file of a kind that not every suite has."""
        (self.folder / folder).mkdir(parents=True, exist_ok=True)
        _replace(self.folder / folder / name, content)

    @_patient
    def drop_weights(self, trial_ids: Iterable[str]) -> None:
        """Remove the weights of some trials, where there are any."""
        for trial_id in self._weights & {*trial_ids}:
            (self.folder / WEIGHTS / f"{trial_id}{SAFETENSORS}").unlink(missing_ok=True)
            self._weights.discard(trial_id)

    @_patient
    def write_detection(self, trial_id: str, rows: Sequence[DetectionRow], activations: Sequence[Activations]) -> None:
        """Store what tells images from outside of the data by a trial, its rows last, in place of what was stored."""
        if isinstance(self._lock, Claim):
            self._lock.check()
        self._take_out(trial_id, COMPUTED)
        self._place("activations", f"{trial_id}.parquet", _parquet(_activations_table(trial_id, activations)))
        table = pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], DETECTION)
        self._place("ood", f"{trial_id}.parquet", _parquet(table))

    @_patient
    def set_stages(self, stages: Mapping[str, Stage]) -> None:
        """Make the stored rows say which stage their trials belong to: a search's winner comes to confirm itself.

        Rows of trials that belong to none, such as a winner of before, are ``former`` ones.
        """
        rows, _ = self.read("trials", ["trial_id", "stage"])
        stored = dict(zip(rows["trial_id"], rows["stage"], strict=True))
        wanted = {id_: stages.get(id_, "grid" if stage == "grid" else "former") for id_, stage in stored.items()}
        self._set("stage", {id_: stage for id_, stage in wanted.items() if stored[id_] != stage})

    @_patient
    def set_decided(self, trial_id: str) -> None:
        """Say of a stored trial that its search has not found it to have lost, and will not."""
        self._set("undecided", {trial_id: None})

    def _set(self, column: str, values: Mapping[str, Any]) -> None:
        """Change one column of the rows of some trials, wherever they lie."""
        folder = self.folder / "trials"
        files = [path for path in _singles(folder) if path.stem in values]
        files += [path for path in _merged(folder) if values.keys() & _ids_in(path)] if values else []
        for path in files:
            table = _content(path)
            at = table.schema.get_field_index(column)  # none in a file from before it was added
            ids, kind = table["trial_id"].to_pylist(), TRIALS.field(column).type
            before = [None] * len(ids) if at < 0 else table[column].to_pylist()
            now = pa.array([values.get(id_, was) for id_, was in zip(ids, before, strict=True)], kind)
            table = table.append_column(column, now) if at < 0 else table.set_column(at, column, now)
            _replace(path, _parquet(table))

    @_patient
    def write_decisions(self, decisions: Sequence[Decision]) -> None:
        """Keep what was decided at the rungs of a search, in place of what was kept before."""
        table = pa.Table.from_pylist([dataclasses.asdict(decision) for decision in decisions], DECISIONS)
        _replace(self.folder / PRUNING, _parquet(table))

    @_patient
    def compact(self) -> int:
        """Merge the files of the trials that are done; return how many trials were. What can be read stays the same.

        A failed trial keeps its own file, which a later attempt replaces; so does one whose file is damaged.
        """
        singles = _singles(self.folder / "trials")
        status = read_files(singles, self._schemas["trials"], ["trial_id", "status"])[0].to_pandas()
        done = sorted(status["trial_id"][status["status"].isin(DONE)])
        for start in range(0, len(done), COMPACT_AT):
            for kind in reversed(OF_A_TRIAL):
                self._merge([self.folder / kind / f"{id_}.parquet" for id_ in done[start : start + COMPACT_AT]])
        for kind in reversed(COMPUTED):
            singles = _singles(self.folder / kind)
            for start in range(0, len(singles), COMPACT_AT):
                self._merge(singles[start : start + COMPACT_AT])
        self._merged.update(done)
        return len(done)

    def _take_out(self, trial_id: str, kinds: Iterable[Kind]) -> None:
        """Remove a trial from the merged files, for rows of its own to take their place."""
        for kind in kinds:  # its row first: without the others it must not look whole
            for path in _merged(self.folder / kind):
                if trial_id in (ids := _ids_in(path)):
                    table = _content(path)
                    left = " ".join(sorted(ids - {trial_id})).encode()
                    rest = table.filter(pc.not_equal(table["trial_id"], trial_id))
                    _replace(path, _parquet(rest.replace_schema_metadata({**TRIALS.metadata, b"trials": left})))

    def _merge(self, files: Sequence[Folder]) -> None:
        """Bring the rows of ``files`` into one file for each schema among them: a suite's axes may have changed."""
        by_schema: dict[pa.Schema, list[tuple[Folder, pa.Table]]] = {}
        for path, table in zip(files, _each(_content_if_whole, files), strict=True):
            if table is not None:
                by_schema.setdefault(table.schema, []).append((path, table))
        for members in by_schema.values():
            ids = " ".join(path.stem for path, _ in members).encode()
            table = pa.concat_tables([table for _, table in members])
            name = f"{MERGED}{hashlib.sha256(ids).hexdigest()[:16]}.parquet"
            metadata = {**TRIALS.metadata, b"trials": ids}
            _replace(members[0][0].with_name(name), _parquet(table.replace_schema_metadata(metadata)))
            _each(_unlink, [path for path, _ in members])

    # -- reading ------------------------------------------------------------------------------------------------------

    @_patient
    def read(self, kind: Kind = "trials", columns: Sequence[str] | None = None) -> tuple[pd.DataFrame, list[str]]:
        """Return all rows of one kind, and a line for each file that cannot be read: its trial counts as not run."""
        table, damaged = read_folder(self.folder / kind, self._schemas[kind], columns)
        return table.to_pandas(), damaged

    @_patient
    def kept_weights(self) -> set[str]:
        """Return the trials whose weights lie here."""
        return {path.stem for path in (self.folder / WEIGHTS).glob(f"[!._]*{SAFETENSORS}")}

    def weights(self, trial_id: str) -> bytes:
        """Return the weights of a trial as safetensors.

        Raises:
            UserError: if they are not there.
        """
        path = self.folder / WEIGHTS / f"{trial_id}{SAFETENSORS}"
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise UserError(
                f"{path}: no such weights: a suite keeps them with `keep_weights: best`, from then on"
            ) from None

    @_patient
    def predictions(self, trial_ids: Iterable[str]) -> dict[str, Predictions]:
        """Return what is stored of some trials' test images, by id, in the order of ``index``; none of those without.

        Only their files are read. A trial takes images x (classes x 2 + 8) bytes: of thousands ask for some at a time.
        """
        wanted, folder = dict.fromkeys(trial_ids), self.folder / "predictions"
        merged = [path for path in _merged(folder) if wanted.keys() & _ids_in(path)]
        files = [folder / f"{trial_id}.parquet" for trial_id in wanted]
        found: dict[str, Predictions] = {}
        for table in filter(None, _each(_content_if_whole, [*merged, *files])):
            for trial_id in pc.unique(table["trial_id"]).to_pylist():
                if trial_id in wanted:
                    found[trial_id] = _predictions(table.filter(pc.equal(table["trial_id"], trial_id)))
        return {trial_id: found[trial_id] for trial_id in wanted if trial_id in found}

    def outcome(self, trial_id: str) -> Outcome:
        """Return what is stored of a trial, but for its predictions and weights."""
        found = (rows[rows["trial_id"] == trial_id] for rows in (self.read("trials")[0], self.read("epochs")[0]))
        trials, epochs = (rows.astype(object).where(rows.notna(), None).to_dict("records") for rows in found)
        row = {**trials[0], "axes": {name: trials[0].pop(name) for name in self._axes}}
        ordered = sorted(epochs, key=lambda epoch: epoch["epoch"])
        return Outcome(row=_row(TrialRow, row), epochs=tuple(_row(EpochRow, epoch) for epoch in ordered))

    def done(self) -> tuple[dict[str, str], list[str]]:
        """Return trial id -> status of the trials that need not run again, and a line for each damaged file."""
        rows, damaged = self.read("trials", ["trial_id", "status"])
        rows = rows[rows["status"].isin(DONE)]
        return dict(zip(rows["trial_id"], rows["status"], strict=True)), damaged

    def ended(self, *, failed: bool = False) -> dict[str, Ended]:
        """Return what `raybench.plan.expand` must know of the trials that are done, or that ``failed`` too."""
        metrics = ("val_accuracy", "val_loss", "train_accuracy", "train_loss")
        columns = ["trial_id", "status", "selection", "epochs", "draw", *OWN_COLUMN, *metrics, *self._axes]
        rows, _ = self.read("trials", list(dict.fromkeys(columns)))
        ended: dict[str, Ended] = {}
        for row in rows.astype(object).where(rows.notna(), None).to_dict("records"):
            if failed or row["status"] in DONE:
                labels = None if row["draw"] is None else {name: row[name] for name in (*OWN_COLUMN, *self._axes)}
                draw = None if row["draw"] is None else int(row["draw"])
                value = row[row["selection"]]
                ended[row["trial_id"]] = Ended(row["status"], value, int(row["epochs"]), draw, labels)
        return ended


def _row(kind: type, values: Mapping[Any, Any]) -> Any:
    """Return a row of what pandas read, which has no whole numbers beside missing ones."""
    hints = get_type_hints(kind)
    whole = {name for name, hint in hints.items() if name != "axes" and _arrow_type(hint) == pa.int64()}
    given = {f.name: values[f.name] for f in dataclasses.fields(kind)}
    return kind(**{name: int(v) if name in whole and v is not None else v for name, v in given.items()})


def read_folder(folder: Folder, schema: pa.Schema, columns: Sequence[str] | None = None) -> tuple[pa.Table, list[str]]:
    """Read every Parquet file of ``folder`` into one table, and return a line for each that is not readable.

    A column that a file lacks, because raybench or the suite got it later, is null there.
    """
    while True:
        # In this order, so that a file which a running sweep merges meanwhile is seen in one form at least.
        singles = _singles(folder)
        merged = _merged_ids(folder)
        files = [*_merged(folder), *(path for path in singles if path.stem not in merged)]
        table, damaged = read_files(files, schema, columns)
        if {*files} <= {*_singles(folder), *_merged(folder)}:
            return table, damaged


def read_files(
    files: Sequence[Folder], schema: pa.Schema, columns: Sequence[str] | None = None
) -> tuple[pa.Table, list[str]]:
    """Read ``files`` as `read_folder` does."""
    columns = columns or schema.names
    try:
        return _read(_dataset(files, schema), columns), []
    except (pa.ArrowException, OSError):  # find out which
        tables, damaged = [schema.empty_table().select(columns)], []
        for file in files:
            try:
                # Storage that is away raises here. What fails after that is the file, which is not to be confused: its
                # trial would be trained again.
                part = ds.ParquetFileFormat().make_fragment(pa.BufferReader(file.read_bytes()))
                tables.append(_read(ds.FileSystemDataset([part], schema, part.format), columns))
            except (pa.ArrowException, OSError) as error:
                reason = str(error).splitlines()[0].rpartition("<Buffer>': ")[2]
                damaged.append(f"{file}: not a readable result ({reason}); its trial is not counted")
        return pa.concat_tables(tables), damaged


def _singles(folder: Folder) -> list[Folder]:
    return sorted(path for path in folder.glob("[!._]*.parquet") if not path.name.startswith(MERGED))


def _merged(folder: Folder) -> list[Folder]:
    return sorted(folder.glob(f"{MERGED}*.parquet"))


def _merged_ids(folder: Folder) -> set[str]:
    """Return the trials whose rows lie in merged files; a damaged one says nothing here, and is reported when read."""
    return set().union(*_each(_ids_in, _merged(folder)))


def _ids_in(merged: Folder) -> set[str]:
    try:
        schema = _dataset([merged], None).schema
    except (pa.ArrowException, OSError):
        try:  # storage that is away raises here, see `read_files`
            schema = pq.read_schema(pa.BufferReader(merged.read_bytes()))
        except (pa.ArrowException, OSError):
            return set()
    return set((schema.metadata or {}).get(b"trials", b"").decode().split())


def _content(path: Folder) -> pa.Table:
    """Return every column of a file, also those of axes that the suite no longer has."""
    return pq.ParquetFile(pa.BufferReader(path.read_bytes())).read()


def _content_if_whole(path: Folder) -> pa.Table | None:
    with contextlib.suppress(FileNotFoundError, pa.ArrowException):  # not kept, or damaged: reported when read
        return _content(path).replace_schema_metadata()
    return None


def _unlink(path: Folder) -> None:
    path.unlink()


def _each(do: Callable[[T], U], items: Iterable[T]) -> list[U]:
    """Do something with every item, 16 at a time: object storage takes its time, but answers many at once."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(do, items))


def _dataset(files: Sequence[Folder], schema: pa.Schema | None) -> ds.Dataset:
    """Return the content of ``files``, which lie all on a disk or all in the same storage; by default as they are."""
    remote = [file for file in files if isinstance(file, Objects)]
    names = [file.path for file in remote] or [str(file) for file in files]
    return ds.dataset(names, schema=schema, format="parquet", filesystem=remote[0].system if remote else None)


def _read(content: ds.Dataset, columns: Sequence[str]) -> pa.Table:
    table = content.to_table([*dict.fromkeys(["trial_id", *columns])])
    if table["trial_id"].null_count:
        raise pa.ArrowInvalid("no trial_id in it")
    return table.select(columns)


def read_snapshot(folder: Folder) -> dict[str, Any]:
    """Return the suite as it was last run into ``folder``.

    Raises:
        UserError: if the folder holds no results.
    """
    try:
        return json.loads((folder / SNAPSHOT).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder}: no results here: run the suite first, or name its folder with --results") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / SNAPSHOT}: cannot be read: {error}") from None


def _predictions_table(trial_id: str, predictions: Predictions) -> pa.Table:
    n, classes = predictions.logits.shape
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * classes)
    logits = pa.ListArray.from_arrays(offsets, pa.array(predictions.logits.reshape(-1)))
    columns = [pa.repeat(trial_id, n), predictions.index, predictions.label, predictions.prediction, logits]
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=PREDICTIONS)


def _activations_table(trial_id: str, scores: Sequence[Activations]) -> pa.Table:
    tables = []
    for score in scores:
        n = len(score.value)
        named = [pa.repeat(pa.scalar(text, pa.string()), n) for text in (trial_id, score.score, score.layer)]
        columns = [*named, score.dataset.astype(str).tolist(), score.index, score.judged, score.value]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, ACTIVATIONS, strict=True)]
        tables.append(pa.Table.from_arrays(arrays, schema=ACTIVATIONS))
    return pa.concat_tables(tables)


def _predictions(table: pa.Table) -> Predictions:
    """Return the rows of one trial, as `_predictions_table` made them."""
    index, label, prediction = (table[name].to_numpy() for name in ("index", "label", "prediction"))
    logits = table["logits"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(index), -1)
    order = np.argsort(index, kind="stable")
    return Predictions(index=index[order], label=label[order], logits=logits[order], prediction=prediction[order])


def _parquet(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _replace(path: Folder, content: bytes | pa.Buffer) -> None:
    """Write ``content`` to ``path`` in one step: readers see the old file or the new one, even after a power cut."""
    if isinstance(path, Objects):
        path.write_bytes(content)
        return
    beside = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:  # a full disk: do not keep half a file on it
        beside.unlink(missing_ok=True)
        raise
