"""Results as Parquet files: their columns, tables of rows, and folders in which each trial has a file of its own.

There may be many thousands of trials, and opening a small file takes its time: files are merged, and a merged file
names its trials in its footer. Whoever reads a folder sees the rows of each trial once, however its files lie; a file
that is damaged is said, and costs no other file anything.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from raybench.objects import Folder, Objects, write_whole
from raybench.prune import Decision
from raybench.records import (
    OWN_COLUMN,
    SCHEMA_VERSION,
    Activations,
    DetectionRow,
    EpochRow,
    Predictions,
    TrialRow,
)
from raybench.suite import Suite

MERGED = "merged-"
"""How the names of merged files begin; the others are called by their trial's id."""

T = TypeVar("T")
U = TypeVar("U")
Row = TypeVar("Row", TrialRow, EpochRow)

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
        ("outside", pa.string()),
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


def trials_schema(axes: Mapping[str, pa.DataType]) -> pa.Schema:
    """Return the columns of trials with those of a suite's axes (`axis_types`)."""
    return pa.schema([*TRIALS, *axes.items()], metadata=TRIALS.metadata)


def trial_table(row: TrialRow, axes: Mapping[str, pa.DataType]) -> pa.Table:
    """Return the row of a trial, with a column for each axis."""
    values = dataclasses.asdict(row)
    labels = values.pop("axes")
    for name, kind in axes.items():
        values[name] = str(labels[name]) if kind == pa.string() else labels[name]
    return pa.Table.from_pylist([values], trials_schema(axes))


def rows_table(rows: Iterable[EpochRow | DetectionRow | Decision], schema: pa.Schema) -> pa.Table:
    """Return other rows, whose fields are the columns of ``schema``."""
    return pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema)


def predictions_table(trial_id: str, predictions: Predictions) -> pa.Table:
    """Return a row for each test image; `read_predictions` undoes it."""
    n, classes = predictions.logits.shape
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * classes)
    logits = pa.ListArray.from_arrays(offsets, pa.array(predictions.logits.reshape(-1)))
    columns = [pa.repeat(trial_id, n), predictions.index, predictions.label, predictions.prediction, logits]
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=PREDICTIONS)


def activations_table(trial_id: str, scores: Sequence[Activations]) -> pa.Table:
    """Return a row for each score of each image."""
    tables = []
    for score in scores:
        n = len(score.value)
        texts = (trial_id, score.score, score.layer, score.outside)
        named = [pa.repeat(pa.scalar(text, pa.string()), n) for text in texts]
        columns = [*named, score.dataset.astype(str).tolist(), score.index, score.judged, score.value]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, ACTIVATIONS, strict=True)]
        tables.append(pa.Table.from_arrays(arrays, schema=ACTIVATIONS))
    return pa.concat_tables(tables)


def together(tables: Sequence[pa.Table]) -> pa.Table:
    """Return all rows of tables; of a column that some lack, nulls."""
    return pa.concat_tables(tables, promote_options="default").replace_schema_metadata(TRIALS.metadata)


def typed_row(kind: type[Row], values: Mapping[Any, Any]) -> Row:
    """Return a row of what pandas read, which has no whole numbers beside missing ones."""
    hints = get_type_hints(kind)
    whole = {name for name, hint in hints.items() if name != "axes" and _arrow_type(hint) == pa.int64()}
    given = ((f.name, values[f.name]) for f in dataclasses.fields(kind))
    fitting: dict[str, Any] = {name: int(v) if name in whole and v is not None else v for name, v in given}
    return kind(**fitting)


# ---------------------------------------------------------------------------------------------------------------------
# Folders of files


def write(path: Folder, table: pa.Table) -> None:
    """Write a file in one step."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_whole(path, sink.getvalue())


def singles(folder: Folder) -> list[Folder]:
    """Return the files of single trials, each called by its trial's id."""
    return sorted(path for path in folder.glob("[!._]*.parquet") if not path.name.startswith(MERGED))


def merge(files: Sequence[Folder]) -> None:
    """Bring the rows of ``files`` into one file for each schema among them: a suite's axes may have changed.

    Files that are missing or damaged are left out; a damaged one stays, and is reported when read.
    """
    by_schema: dict[pa.Schema, list[tuple[Folder, pa.Table]]] = {}
    for path, table in zip(files, _each(_content_if_whole, files), strict=True):
        if table is not None:
            by_schema.setdefault(table.schema, []).append((path, table))
    for members in by_schema.values():
        ids = " ".join(path.stem for path, _ in members).encode()
        table = pa.concat_tables([table for _, table in members])
        name = f"{MERGED}{hashlib.sha256(ids).hexdigest()[:16]}.parquet"
        write(members[0][0].with_name(name), table.replace_schema_metadata({**TRIALS.metadata, b"trials": ids}))
        _each(_unlink, [path for path, _ in members])


def clear_merged(folder: Folder) -> set[str]:
    """Remove the files of single trials that are merged: a driver was killed before it did. Return all such trials."""
    merged = _merged_ids(folder)
    for path in singles(folder):
        if path.stem in merged:
            path.unlink()
    return merged


def take_out(folder: Folder, trial_id: str) -> None:
    """Remove a trial from the merged files, for a file of its own to take their place."""
    for path in _merged(folder):
        if trial_id in (ids := _ids_in(path)):
            table = _content(path)
            left = " ".join(sorted(ids - {trial_id})).encode()
            rest = table.filter(pc.not_equal(table["trial_id"], trial_id))
            write(path, rest.replace_schema_metadata({**TRIALS.metadata, b"trials": left}))


def others(folder: Folder, trial_id: str, column: str, values: Iterable[str]) -> Iterator[pa.Table]:
    """Yield what is stored of a trial with other ``values`` of a column; nothing of files without the column."""
    files = [*(path for path in _merged(folder) if trial_id in _ids_in(path)), folder / f"{trial_id}.parquet"]
    for table in filter(None, _each(_content_if_whole, files)):
        if column in table.column_names:
            other = pc.invert(pc.is_in(table[column], pa.array([*values])))
            yield table.filter(pc.and_(pc.equal(table["trial_id"], trial_id), other))


def set_column(folder: Folder, column: pa.Field, values: Mapping[str, Any]) -> None:
    """Change one column of the rows of some trials, wherever they lie."""
    files = [path for path in singles(folder) if path.stem in values]
    files += [path for path in _merged(folder) if values.keys() & _ids_in(path)] if values else []
    for path in files:
        table = _content(path)
        at = table.schema.get_field_index(column.name)  # none in a file from before it was added
        ids = table["trial_id"].to_pylist()
        before = [None] * len(ids) if at < 0 else table[column.name].to_pylist()
        now = pa.array([values.get(id_, was) for id_, was in zip(ids, before, strict=True)], column.type)
        write(path, table.append_column(column.name, now) if at < 0 else table.set_column(at, column.name, now))


def read_predictions(
    folder: Folder, trial_ids: Iterable[str], damaged: list[str] | None = None
) -> dict[str, Predictions]:
    """Return what is stored of some trials' test images, by id, in the order of ``index``; none of those without.

    Only their files are read.

    Args:
        damaged: gets a line for each file that cannot be read, unless it has it.
    """
    wanted = dict.fromkeys(trial_ids)
    # A damaged file does not say whose rows lie in it: they may be wanted.
    merged = [path for path in _merged(folder) if not (ids := _ids_in(path)) or wanted.keys() & ids]
    files = [*merged, *(folder / f"{trial_id}.parquet" for trial_id in wanted)]
    found: dict[str, Predictions] = {}
    for table in _each(_content_or_damage, files):
        if isinstance(table, str) and damaged is not None and table not in damaged:
            damaged.append(table)
        if table is None or isinstance(table, str):
            continue
        for trial_id in pc.unique(table["trial_id"]).to_pylist():
            if trial_id in wanted:
                found[trial_id] = _predictions(table.filter(pc.equal(table["trial_id"], trial_id)))
    return {trial_id: found[trial_id] for trial_id in wanted if trial_id in found}


def _predictions(table: pa.Table) -> Predictions:
    """Return the rows of one trial, as `predictions_table` made them."""
    index, label, prediction = (table[name].to_numpy() for name in ("index", "label", "prediction"))
    logits = table["logits"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(index), -1)
    order = np.argsort(index, kind="stable")
    return Predictions(index=index[order], label=label[order], logits=logits[order], prediction=prediction[order])


def read_folder(folder: Folder, schema: pa.Schema, columns: Sequence[str] | None = None) -> tuple[pa.Table, list[str]]:
    """Read every Parquet file of ``folder`` into one table, and return a line for each that is not readable.

    A column that a file lacks, because raybench or the suite got it later, is null there.
    """
    while True:
        # In this order, so that a file which a running sweep merges meanwhile is seen in one form at least.
        own = singles(folder)
        merged = _merged_ids(folder)
        files = [*_merged(folder), *(path for path in own if path.stem not in merged)]
        table, damaged = read_files(files, schema, columns)
        if {*files} <= {*singles(folder), *_merged(folder)}:
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
                damaged.append(_damage(file, error))
        return pa.concat_tables(tables), damaged


def _damage(file: Folder, error: Exception) -> str:
    reason = str(error).splitlines()[0].rpartition("<Buffer>': ")[2]
    return f"{file}: not a readable result ({reason}); its trial is not counted"


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


def _content_or_damage(path: Folder) -> pa.Table | str | None:
    """Return what a file holds, or a line that says why it cannot be read; nothing where there is none."""
    try:
        content = path.read_bytes()  # storage that is away raises here, see `read_files`
    except FileNotFoundError:
        return None
    try:
        return pq.ParquetFile(pa.BufferReader(content)).read().replace_schema_metadata()
    except (pa.ArrowException, OSError) as error:
        return _damage(path, error)


def _content_if_whole(path: Folder) -> pa.Table | None:
    content = _content_or_damage(path)
    return None if isinstance(content, str) else content  # damaged: reported when read


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
