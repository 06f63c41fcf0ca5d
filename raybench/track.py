"""Trackers: every trial's curves in TensorBoard, MLflow or Weights & Biases, as the driver hears of them.

Tune's own callbacks for the three see the reports that workers send to Tune, and ours hold pickled rows; so the
libraries themselves are called, with the rows that are stored. One run per trial, called after its cell and seed, in
the experiment (MLflow), group (W&B) or folder (TensorBoard) of the suite.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from raybench.errors import UserError
from raybench.grid import Trial
from raybench.records import FINISHED, EpochRow, Outcome, TrialRow

LIBRARIES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
"""What each tracker needs to be installed."""


class Run(Protocol):
    """One trial in one tracker."""

    def log(self, epoch: int, values: dict[str, float]) -> None: ...
    def end(self, status: str, summary: dict[str, float]) -> None:
        """``status`` is that of the stored row, or ``interrupted``."""


class Tracker(Protocol):
    """Where runs are sent."""

    def start(self, name: str, labels: dict[str, Any], settings: dict[str, Any]) -> Run: ...


class Tracking:
    """Follows a sweep (`raybench.run.Follower`). A tracker that fails is left out from then on."""

    def __init__(self, trackers: dict[str, Tracker], say: Callable[[str], None]) -> None:
        self.trackers, self.say = dict(trackers), say
        self.runs: dict[str, dict[str, Run]] = {}
        """By trial and tracker."""

    def started(self, trial: Trial) -> None:
        if trial.id in self.runs:  # lost before, and goes on as the same run
            return
        self.runs[trial.id] = {}
        settings = flat({**trial.settings, "seed": trial.seed, "trial_id": trial.id})
        for name, tracker in list(self.trackers.items()):
            if run := self._try(name, tracker.start, trial.name, trial.labels, settings):
                self.runs[trial.id][name] = run

    def epoch(self, trial: Trial, row: EpochRow, begun: TrialRow) -> None:
        values = {key: float(value) for key, value in asdict(row).items() if isinstance(value, int | float)}
        del values["epoch"]
        for name, run in self.runs.get(trial.id, {}).items():
            self._try(name, run.log, row.epoch, values)

    def lost(self, trial: Trial, reason: str) -> None:
        pass

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        row = outcome.row
        summary = {"best_epoch": row.best_epoch, "test_accuracy": row.test_accuracy, "test_loss": row.test_loss}
        summary |= {"best_val_accuracy": row.val_accuracy}
        if row.status not in FINISHED:
            summary = {}
        for name, run in self.runs.pop(trial.id, {}).items():
            known = {key: float(value) for key, value in summary.items() if value is not None}
            self._try(name, run.end, row.status, known)

    def close(self) -> None:
        """End the runs of trials that were interrupted."""
        for runs in self.runs.values():
            for name, run in runs.items():
                self._try(name, run.end, "interrupted", {})
        self.runs.clear()

    def _try(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        if name not in self.trackers:
            return None
        try:
            return call(*arguments)
        except Exception as error:  # whatever three libraries raise when a server is away
            del self.trackers[name]
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.say(f"{name}: {reason}: nothing more is sent there; results are stored all the same")
            return None


def open_trackers(names: Sequence[str], suite: str, folder: object, say: Callable[[str], None]) -> Tracking:
    """Return what sends trials of ``suite`` to the trackers called ``names``; ``folder`` holds the suite's results.

    Raises:
        UserError: if a library is missing, or a tracker refuses, before anything has run.
    """
    for name in names:
        if importlib.util.find_spec(LIBRARIES[name]) is None:
            raise UserError(f"track: {name} needs {LIBRARIES[name]}: pip install 'raybench[{name}]'")
    makers: dict[str, Callable[[str, object], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
    trackers: dict[str, Tracker] = {}
    for name in names:
        try:
            trackers[name] = makers[name](suite, folder)
        except UserError:
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"track: {name}: {reason}") from None
    return Tracking(trackers, say)


def flat(settings: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested settings by dotted path; a list is one value, as JSON."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        at = f"{path}.{key}".lstrip(".")
        if isinstance(value, dict) and value:
            found |= flat(value, at)
        else:
            found[at] = json.dumps(value) if isinstance(value, list | dict) else value
    return found


class TensorBoard:
    """Event files in ``tensorboard/`` beside the suite's results: a folder for each trial, and one more each time it is
    trained again."""

    def __init__(self, suite: str, folder: object) -> None:
        if not isinstance(folder, Path):
            raise UserError(f"track: tensorboard writes files on a disk, and --results is {folder}: leave it out")
        self.folder = folder / "tensorboard"

    def start(self, name: str, labels: dict[str, Any], settings: dict[str, Any]) -> Run:
        from tensorboardX import SummaryWriter

        parts = [re.sub(r"[^\w.,=-]+", "_", part).strip(".") or "_" for part in name.split("/")]
        *above, last = parts
        names = itertools.chain([last], (f"{last}.{number}" for number in itertools.count(2)))
        folders = (self.folder.joinpath(*above, name) for name in names)
        writer = SummaryWriter(str(next(folder for folder in folders if not folder.exists())))
        table = "\n".join(f"| {key} | {value} |" for key, value in settings.items())
        writer.add_text("settings", f"| setting | value |\n|---|---|\n{table}")
        return _TensorBoardRun(writer, {key: _plain(value) for key, value in labels.items()})


class _TensorBoardRun:
    def __init__(self, writer: Any, labels: dict[str, Any]) -> None:
        self.writer, self.labels = writer, labels

    def log(self, epoch: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def end(self, status: str, summary: dict[str, float]) -> None:
        from tensorboardX.summary import hparams

        if summary:
            for part in hparams(self.labels, {f"end/{name}": value for name, value in summary.items()}):
                self.writer.file_writer.add_summary(part)
            for name, value in summary.items():
                self.writer.add_scalar(f"end/{name}", value)
        self.writer.add_text("status", status)
        self.writer.close()


class MLflow:
    """The experiment of the suite's name, on the server of ``$MLFLOW_TRACKING_URI``."""

    def __init__(self, suite: str, folder: object) -> None:
        from mlflow import MlflowClient

        self.suite, self.client = suite, MlflowClient()
        known = self.client.get_experiment_by_name(suite)
        self.experiment = known.experiment_id if known else self.client.create_experiment(suite)

    def start(self, name: str, labels: dict[str, Any], settings: dict[str, Any]) -> Run:
        from mlflow.entities import Param

        tags = {"raybench.suite": self.suite, **{f"raybench.{key}": str(value) for key, value in labels.items()}}
        run = self.client.create_run(self.experiment, run_name=name, tags=tags)
        params = [Param(_key(key), str(value)[:6000]) for key, value in settings.items()]
        for first in range(0, len(params), 100):  # as many as the server takes at once
            self.client.log_batch(run.info.run_id, params=params[first : first + 100])
        return _MLflowRun(self.client, run.info.run_id)


class _MLflowRun:
    def __init__(self, client: Any, run_id: str) -> None:
        self.client, self.run_id = client, run_id

    def log(self, epoch: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        self.client.log_batch(self.run_id, metrics=[Metric(name, value, now, epoch) for name, value in values.items()])

    def end(self, status: str, summary: dict[str, float]) -> None:
        if summary:
            self.log(0, {f"end.{name}": value for name, value in summary.items()})
        self.client.set_tag(self.run_id, "raybench.status", status)
        ends = {"failed": "FAILED", "interrupted": "KILLED"}
        self.client.set_terminated(self.run_id, ends.get(status, "FINISHED"))


class WandB:
    """The group of the suite's name in the project ``$WANDB_PROJECT``, or ``raybench``."""

    def __init__(self, suite: str, folder: object) -> None:
        import wandb

        self.suite, self.library = suite, wandb
        self.options = {"dir": str(folder)} if isinstance(folder, Path) else {}

    def start(self, name: str, labels: dict[str, Any], settings: dict[str, Any]) -> Run:
        run = self.library.init(
            project=os.environ.get("WANDB_PROJECT") or "raybench",
            group=self.suite,
            name=name,
            config={**settings, "labels": labels},
            reinit="create_new",
            settings=self.library.Settings(console="off", silent=True),
            **self.options,
        )
        run.define_metric("*", step_metric="epoch")
        return _WandBRun(run)


class _WandBRun:
    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, epoch: int, values: dict[str, float]) -> None:
        self.run.log({"epoch": epoch, **values})

    def end(self, status: str, summary: dict[str, float]) -> None:
        self.run.summary.update({**{f"end/{name}": value for name, value in summary.items()}, "status": status})
        self.run.finish(exit_code=int(status in ("failed", "interrupted")))


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool) else str(value)


def _key(name: str) -> str:
    """Return a name as MLflow takes it."""
    return re.sub(r"[^\w./ -]", "_", name)
