"""Trackers: what is read back from event files, a real MLflow server and W&B's offline files."""

from __future__ import annotations

import glob
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raybench import track
from raybench.errors import UserError
from raybench.grid import Trial
from raybench.records import EpochRow, Outcome
from raybench.rows import planned_row
from raybench.suite import load
from raybench.track import Tracking, flat, open_trackers


@pytest.fixture
def trials(make_trial: Any) -> list[Trial]:
    return [replace(make_trial(seed), suite="s", cell=("a b", "none"), labels={"model": "a b", "seed": seed})
            for seed in (0, 1, 2)]  # fmt: skip


def epoch(trial: Trial, number: int, val: float) -> EpochRow:
    return EpochRow(
        trial_id=trial.id, epoch=number, train_loss=1 / number, train_accuracy=0.5, val_loss=1.5, val_accuracy=val,
        lr=0.1, seconds=2.0,
    )  # fmt: skip


def sweep(tracking: Tracking, trials: list[Trial]) -> None:
    """One trial ends well, one fails, and one is interrupted, after a loss and a second start."""
    good, bad, cut = trials
    begun = planned_row(good)
    for trial in trials:
        tracking.started(trial)
    for number, val in ((1, 0.25), (2, 0.75)):
        tracking.epoch(good, epoch(good, number, val), begun)
    tracking.epoch(cut, epoch(cut, 1, 0.5), begun)
    tracking.lost(cut, "its node is gone")
    tracking.started(cut)
    row = replace(begun, status="completed", best_epoch=2, val_accuracy=0.75, test_accuracy=0.5, test_loss=2.0)
    tracking.ended(good, Outcome(row=row))
    tracking.ended(bad, Outcome(row=replace(begun, status="failed")))
    tracking.close()


CURVE = {"train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "seconds"}
END = {"best_epoch": 2.0, "best_val_accuracy": 0.75, "test_accuracy": 0.5, "test_loss": 2.0}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the event files of a trial back, record by record."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    (path,) = folder.glob("events.out.tfevents.*")
    data, at = path.read_bytes(), 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + length])
        at += 8 + 4 + length + 4  # the length, its checksum, the event, its checksum
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found[value.tag].append((event.step, value.simple_value))
            else:
                found[value.tag] = []
    return found


def test_tensorboard_has_a_folder_for_every_trial(trials: list[Trial], tmp_path: Path) -> None:
    sweep(open_trackers(["tensorboard"], "s", tmp_path, pytest.fail), trials)
    place = tmp_path / "tensorboard" / "a_b" / "none"
    assert sorted(path.name for path in place.iterdir()) == ["s0", "s1", "s2"]
    good = scalars(place / "s0")
    assert good["val_accuracy"] == [(1, 0.25), (2, 0.75)] and good["train_loss"] == [(1, 1.0), (2, 0.5)]
    assert {name: points[0][1] for name, points in good.items() if name.startswith("end/")} == {
        f"end/{name}": value for name, value in END.items()
    }
    assert CURVE | {"settings/text_summary", "_hparams_/experiment"} <= set(good)
    bad = scalars(place / "s1")
    assert not [name for name in bad if name.startswith("end/")], "a failed trial has no result"
    assert scalars(place / "s2")["val_accuracy"] == [(1, 0.5)]
    for _ in range(2):
        tracking = open_trackers(["tensorboard"], "s", tmp_path, pytest.fail)
        tracking.started(trials[2])
        tracking.epoch(trials[2], epoch(trials[2], 1, 0.75), planned_row(trials[2]))
        tracking.close()
    assert sorted(path.name for path in place.iterdir()) == ["s0", "s1", "s2", "s2.2", "s2.3"]
    assert scalars(place / "s2")["val_accuracy"] == [(1, 0.5)], "a run that goes on has no second beginning"
    assert scalars(place / "s2.2")["val_accuracy"] == scalars(place / "s2.3")["val_accuracy"] == [(1, 0.75)]


@pytest.fixture
def mlflow_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("mlflow", reason="no MLflow: pip install 'raybench[mlflow]'")
    server = next(filter(Path.is_file, (Path(path) / "mlflow" for path in sys_paths())), None)
    if server is None:
        pytest.skip("no MLflow server: pip install mlflow")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(server), "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", str(tmp_path)]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 180
    while True:
        try:
            urllib.request.urlopen(f"{url}/health").close()
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.5)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    yield url
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def sys_paths() -> list[str]:
    return [str(Path(sys.executable).parent), *os.environ["PATH"].split(os.pathsep)]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_a_run_for_every_trial(trials: list[Trial], tmp_path: Path, mlflow_server: str) -> None:
    from mlflow import MlflowClient

    sweep(open_trackers(["mlflow"], "s", tmp_path, pytest.fail), trials)
    client = MlflowClient()
    experiment = client.get_experiment_by_name("s")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "a b/none/s0": "FINISHED",
        "a b/none/s1": "FAILED",
        "a b/none/s2": "KILLED",
    }
    good = runs["a b/none/s0"]
    curve = client.get_metric_history(good.info.run_id, "val_accuracy")
    assert [(point.step, point.value) for point in curve] == [(1, 0.25), (2, 0.75)]
    assert {name.removeprefix("end."): value for name, value in good.data.metrics.items() if "end." in name} == END
    assert good.data.params["train.epochs"] == "3" and good.data.params["seed"] == "0"
    assert good.data.params["trial_id"] == trials[0].id and good.data.tags["raybench.model"] == "a b"
    assert good.data.tags["raybench.status"] == "completed"
    sweep(open_trackers(["mlflow"], "s", tmp_path, pytest.fail), trials)
    assert len(client.search_runs([experiment.experiment_id])) == 6, "another sweep adds to the experiment"


@pytest.mark.filterwarnings("ignore")
def test_wandb_has_a_run_for_every_trial(trials: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="no W&B: pip install 'raybench[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    sweep(open_trackers(["wandb"], "s", tmp_path, pytest.fail), trials)
    files = glob.glob(str(tmp_path / "wandb" / "offline-run-*" / "*.wandb"))
    assert len(files) == 3
    content = b"".join(Path(file).read_bytes() for file in files)
    for text in (b"a b/none/s0", b"a b/none/s1", b"a b/none/s2", b"val_accuracy", b"train.epochs", b"test_accuracy"):
        assert text in content
    wandb.teardown()


def test_a_library_that_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, library in track.LIBRARIES.items():
        with pytest.raises(UserError) as refused:
            open_trackers([name], "s", tmp_path, pytest.fail)
        assert str(refused.value) == f"track: {name} needs {library}: pip install 'raybench[{name}]'"


def test_event_files_are_for_disks() -> None:
    with pytest.raises(UserError) as refused:
        open_trackers(["tensorboard"], "s", "s3://bucket/s", pytest.fail)
    assert str(refused.value) == (
        "track: tensorboard writes files on a disk, and --results is s3://bucket/s: leave it out"
    )


def test_a_tracker_that_goes_away_harms_no_run_and_no_other_tracker(trials: list[Trial]) -> None:
    class Run:
        def __init__(self, fails: bool) -> None:
            self.fails, self.heard = fails, []  # type: ignore[var-annotated]

        def log(self, number: int, values: dict[str, float]) -> None:
            if self.fails:
                raise ConnectionError("server away\nfor long")
            self.heard.append(number)

        def end(self, status: str, summary: dict[str, float]) -> None:
            self.heard.append(status)

    class Tracker:
        def __init__(self, fails: bool) -> None:
            self.fails, self.runs = fails, []  # type: ignore[var-annotated]

        def start(self, *_: Any) -> Run:
            self.runs.append(Run(self.fails))
            return self.runs[-1]

    well, ill, said = Tracker(False), Tracker(True), []
    sweep(Tracking({"mlflow": ill, "wandb": well}, said.append), trials)
    assert said == ["mlflow: server away: nothing more is sent there; results are stored all the same"]
    assert [run.heard for run in well.runs] == [[1, 2, "completed"], ["failed"], [1, "interrupted"]]
    assert [run.heard for run in ill.runs] == [[], [], []]


def test_settings_by_dotted_path() -> None:
    assert flat({"a": {"b": 1, "c": {"d": None}}, "e": [1, {"f": 2}], "g": {}}) == {
        "a.b": 1, "a.c.d": None, "e": '[1, {"f": 2}]', "g": "{}",
    }  # fmt: skip


def test_a_suite_names_its_trackers_and_no_id_changes(tmp_path: Path) -> None:
    from raybench.errors import SuiteError
    from raybench.plan import expand

    text = "name: s\ndataset: digits\nmodel: mlp\n"
    (tmp_path / "plain.yaml").write_text(text)
    (tmp_path / "tracked.yaml").write_text(f"{text}track: [mlflow, tensorboard, mlflow]\n")
    plain, tracked = load(tmp_path / "plain.yaml"), load(tmp_path / "tracked.yaml")
    assert (plain.track, tracked.track) == ((), ("mlflow", "tensorboard"))
    assert [trial.id for trial in expand(plain)] == [trial.id for trial in expand(tracked)]
    (tmp_path / "wrong.yaml").write_text(f"{text}track: [tensorbord]\n")
    with pytest.raises(SuiteError) as refused:
        load(tmp_path / "wrong.yaml")
    assert str(refused.value) == (
        f"{tmp_path}/wrong.yaml:4:9: track.0: 'tensorbord' is not right: must be 'tensorboard', 'mlflow' or 'wandb'"
    )
