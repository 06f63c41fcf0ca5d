"""The results folder: weights, and Parquet files in ``trials/``, ``epochs/``, ``predictions/``, one per trial in each.

One process writes, the driver, and holds a lock while it does. A file appears whole or not at all: on a disk it is
written beside its place and renamed, in object storage that is how writing works. A trial's row in ``trials/`` comes
last, so that a trial which has a row has everything.
Every `COMPACT_AT` trials, the files of those that are done are merged into one.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, get_args

import filelock
import pandas as pd
import pyarrow as pa

from raybench import parquet
from raybench.errors import UserError
from raybench.objects import Claim, Folder, Objects, StoreError, write_whole
from raybench.parquet import ACTIVATIONS, DECISIONS, DETECTION, EPOCHS, PREDICTIONS, TRIALS, axis_types, typed_row
from raybench.prune import Decision
from raybench.records import (
    DONE,
    OWN_COLUMN,
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
PATIENCE = (1, 2, 4, 8, 16)
"""Seconds that a run waits before it asks object storage which has gone away once more, and then gives up."""

P = ParamSpec("P")
T = TypeVar("T")


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
    """The results of one suite: in the folder of ``root`` that is called as the suite, or in ``folder``."""

    def __init__(self, root: Folder, suite: Suite, folder: Folder | None = None) -> None:
        self.folder: Folder = root / suite.name if folder is None else folder
        self._axes = axis_types(suite)
        self._schemas: dict[Kind, pa.Schema] = {
            "trials": parquet.trials_schema(self._axes),
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
            merged = {kind: parquet.clear_merged(self.folder / kind) for kind in get_args(Kind)}
            self._merged = set().union(*(merged[kind] for kind in OF_A_TRIAL))
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
        write_whole(self.folder / SNAPSHOT, json.dumps(snapshot, indent=1, default=str).encode())

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
            write_whole(self._place(WEIGHTS, f"{outcome.row.trial_id}{SAFETENSORS}"), outcome.weights)
            self._weights.add(outcome.row.trial_id)
        else:
            self.drop_weights({outcome.row.trial_id})
        tables: dict[Kind, pa.Table | None] = {
            "predictions": outcome.predictions and parquet.predictions_table(outcome.row.trial_id, outcome.predictions),
            "epochs": parquet.rows_table(outcome.epochs, EPOCHS),
            "trials": parquet.trial_table(outcome.row, self._axes),
        }
        for kind, table in tables.items():
            path = self.folder / kind / f"{outcome.row.trial_id}.parquet"
            if table:
                parquet.write(path, table)
            else:
                path.unlink(missing_ok=True)
        self._written += 1
        if self._written % COMPACT_AT == 0:
            self.compact()

    def _place(self, folder: str, name: str) -> Folder:
        """Return where a file goes of a kind that not every suite has."""
        (self.folder / folder).mkdir(parents=True, exist_ok=True)
        return self.folder / folder / name

    @_patient
    def drop_weights(self, trial_ids: Iterable[str]) -> None:
        """Remove the weights of some trials, where there are any."""
        for trial_id in self._weights & {*trial_ids}:
            (self.folder / WEIGHTS / f"{trial_id}{SAFETENSORS}").unlink(missing_ok=True)
            self._weights.discard(trial_id)

    @_patient
    def write_detection(self, trial_id: str, rows: Sequence[DetectionRow], activations: Sequence[Activations]) -> None:
        """Store what tells the images of one dataset outside by a trial, its rows last, in place of what was stored of
        both; what is stored of other datasets stays."""
        if isinstance(self._lock, Claim):
            self._lock.check()
        outside = {row.dataset for row in rows}
        # Activations from before they had the column do not say what they are of.
        new: dict[Kind, tuple[str, pa.Table]] = {
            "activations": ("outside", parquet.activations_table(trial_id, activations)),
            "ood": ("dataset", parquet.rows_table(rows, DETECTION)),
        }
        whole = {
            kind: parquet.together([*parquet.others(self.folder / kind, trial_id, column, outside), table])
            for kind, (column, table) in new.items()
        }
        self._take_out(trial_id, COMPUTED)
        name = f"{trial_id}.parquet"
        for kind, table in whole.items():
            parquet.write(self._place(kind, name), table)

    @_patient
    def set_stages(self, stages: Mapping[str, Stage]) -> None:
        """Make the stored rows say which stage their trials belong to: a search's winner comes to confirm itself.

        Rows of trials that belong to none, such as a winner of before, are ``former`` ones.
        """
        rows, _ = self.read("trials", ["trial_id", "stage"])
        stored = dict(zip(rows["trial_id"], rows["stage"], strict=True))
        wanted = {id_: stages.get(id_, "grid" if stage == "grid" else "former") for id_, stage in stored.items()}
        changed = {id_: stage for id_, stage in wanted.items() if stored[id_] != stage}
        parquet.set_column(self.folder / "trials", TRIALS.field("stage"), changed)

    @_patient
    def set_decided(self, trial_id: str) -> None:
        """Say of a stored trial that its search has not found it to have lost, and will not."""
        parquet.set_column(self.folder / "trials", TRIALS.field("undecided"), {trial_id: None})

    @_patient
    def write_decisions(self, decisions: Sequence[Decision]) -> None:
        """Keep what was decided at the rungs of a search, in place of what was kept before."""
        parquet.write(self.folder / PRUNING, parquet.rows_table(decisions, DECISIONS))

    @_patient
    def compact(self) -> int:
        """Merge the files of the trials that are done; return how many trials were. What can be read stays the same.

        A failed trial keeps its own file, which a later attempt replaces; so does one whose file is damaged.
        """
        singles = parquet.singles(self.folder / "trials")
        status = parquet.read_files(singles, self._schemas["trials"], ["trial_id", "status"])[0].to_pandas()
        done = sorted(status["trial_id"][status["status"].isin(DONE)])
        for start in range(0, len(done), COMPACT_AT):
            for kind in reversed(OF_A_TRIAL):
                parquet.merge([self.folder / kind / f"{id_}.parquet" for id_ in done[start : start + COMPACT_AT]])
        for kind in reversed(COMPUTED):
            singles = parquet.singles(self.folder / kind)
            for start in range(0, len(singles), COMPACT_AT):
                parquet.merge(singles[start : start + COMPACT_AT])
        self._merged.update(done)
        return len(done)

    def _take_out(self, trial_id: str, kinds: Iterable[Kind]) -> None:
        """Remove a trial from the merged files, for rows of its own to take their place."""
        for kind in kinds:  # its row first: without the others it must not look whole
            parquet.take_out(self.folder / kind, trial_id)

    # -- reading ------------------------------------------------------------------------------------------------------

    @_patient
    def read(self, kind: Kind = "trials", columns: Sequence[str] | None = None) -> tuple[pd.DataFrame, list[str]]:
        """Return all rows of one kind, and a line for each file that cannot be read: its trial counts as not run."""
        table, damaged = parquet.read_folder(self.folder / kind, self._schemas[kind], columns)
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
    def predictions(self, trial_ids: Iterable[str], damaged: list[str] | None = None) -> dict[str, Predictions]:
        """Return what is stored of some trials' test images, by id, in the order of ``index``; none of those without.

        Only their files are read. A trial takes images x (classes x 2 + 8) bytes: of thousands ask for some at a time.

        Args:
            damaged: gets a line for each file that cannot be read, unless it has it.
        """
        return parquet.read_predictions(self.folder / "predictions", trial_ids, damaged)

    def outcome(self, trial_id: str) -> Outcome:
        """Return what is stored of a trial, but for its predictions and weights."""
        found = (rows[rows["trial_id"] == trial_id] for rows in (self.read("trials")[0], self.read("epochs")[0]))
        trials, epochs = (rows.astype(object).where(rows.notna(), None).to_dict("records") for rows in found)
        row = {**trials[0], "axes": {name: trials[0].pop(name) for name in self._axes}}
        ordered = sorted(epochs, key=lambda epoch: epoch["epoch"])
        return Outcome(row=typed_row(TrialRow, row), epochs=tuple(typed_row(EpochRow, epoch) for epoch in ordered))

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
