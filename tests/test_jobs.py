"""Suites as jobs: what travels, what is said of jobs, and a real cluster with a token."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("ray")
from kill import environment
from ray.exceptions import AuthenticationError

from raybench import jobs
from raybench.cli import app
from raybench.connect import connect
from raybench.errors import UserError
from raybench.gauges import METRICS, exported
from raybench.jobs import Jobs, check_place, pack
from raybench.localcluster import STORE_BYTES, Node, free_port, head_options
from raybench.plan import expand
from raybench.registry import MODELS
from raybench.shipping import GIT_STATE, git_state
from raybench.store import Store
from raybench.suite import load

MODULE = """
import time
from torch import nn
from raybench.models import mlp
from raybench.registry import MODELS
import sent_helper

class Slow(nn.Module):
    def __init__(self, inner, seconds):
        super().__init__()
        self.inner, self.seconds = inner, seconds
    def forward(self, x):
        if self.training:
            time.sleep(self.seconds)
        return self.inner(x)

@MODELS.register("sent")
def sent(shape, classes, *, seconds=0.1):
    return Slow(mlp(shape, classes), seconds)
"""
BASE = """
name: base
dataset: {name: digits, train_size: 100, test_size: 50}
train: {epochs: 8, batch_size: 20}
"""
SUITE = """
name: sent
extends: base.yaml
imports: [sent_module]
compare: {model: [mlp, sent]}
repeat: {seed: 2}
track: [tensorboard]
"""


@pytest.fixture
def suite_file(tmp_path: Path) -> Iterator[Path]:
    before, path = set(sys.modules), list(sys.path)
    for name, text in {"sent_module.py": MODULE, "sent_helper.py": "", "base.yaml": BASE, "sent.yaml": SUITE}.items():
        (tmp_path / name).write_text(text)
    yield tmp_path / "sent.yaml"
    sys.path[:] = path
    for name in {"sent_module", "sent_helper"} & (set(sys.modules) - before):
        del sys.modules[name]
    MODELS._entries.pop("sent", None)


# ---------------------------------------------------------------------------------------------------------------------
# What travels


def test_a_packed_suite_plans_the_same_trials_without_what_it_came_from(suite_file: Path, tmp_path: Path) -> None:
    suite = load(suite_file, ["train.epochs=9"])
    (tmp_path / "there").mkdir()
    assert pack(suite, tmp_path / "there") == "sent.yaml"
    names = {path.name for path in (tmp_path / "there").iterdir()}
    assert names == {"sent.yaml", "sent_module.py", "sent_helper.py", GIT_STATE}
    sent = load(tmp_path / "there" / "sent.yaml", ["train.epochs=9"])
    assert [trial.id for trial in expand(sent)] == [trial.id for trial in expand(suite)]
    assert sent.document == suite.document


def test_the_commit_travels_along(suite_file: Path, tmp_path: Path) -> None:
    (tmp_path / GIT_STATE).write_text('{"git_commit": "abc", "git_dirty": false}')
    assert git_state(tmp_path) == {"git_commit": "abc", "git_dirty": False}


def test_raybench_itself_travels_if_it_is_to(suite_file: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    pack(load(suite_file), tmp_path / "there", ship=True)
    assert (tmp_path / "there" / "raybench" / "cli" / "running.py").is_file()
    assert not list((tmp_path / "there").rglob("*.pyc"))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (
            "results",
            "{} results: is a place on the head of the cluster: give its full path there, or a URI such as"
            " s3://bucket/prefix",
        ),
        (
            "s3://key:secret@bucket/x",
            "{}: a job is shown in the dashboard: leave the password to the head's environment",
        ),
    ],
)
@pytest.mark.parametrize("option", ["--results", "--storage"])
def test_a_place_that_the_head_cannot_find_or_all_could_read(
    option: str, place: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        check_place(option, place)
    assert str(refused.value) == said.format(option)
    check_place(option, "/data/results")
    check_place(option, "gs://anonymous@bucket/prefix")
    asked = CliRunner().invoke(app, ["submit", str(tmp_path / "no.yaml"), option, place])
    assert str(asked.exception) == said.format(option), "before anything else is looked at"


@pytest.mark.parametrize("place", ["data", "s3://bucket/images"])
def test_images_lie_in_a_folder_of_the_head(place: str, tmp_path: Path) -> None:
    asked = CliRunner().invoke(app, ["submit", str(tmp_path / "no.yaml"), "--data-dir", place])
    said = f"--data-dir {place}: is a place on the head of the cluster: give its full path there"
    assert isinstance(asked.exception, UserError) and str(asked.exception) == said
    check_place("--data-dir", "/data", uri=False)


# ---------------------------------------------------------------------------------------------------------------------
# A cluster that is not there


class Client:
    """Stands in for Ray's client."""

    listed: list[Any]
    asked: dict[str, Any]
    error: Exception | None
    log: list[list[str]]
    """What each call of `tail_job_logs` yields; a connection that is cut ends with an empty text."""

    def __init__(self, address: str) -> None:
        if self.error:
            raise self.error

    def submit_job(self, **asked: Any) -> str:
        type(self).asked = asked
        asked["files"] = sorted(path.name for path in Path(asked["runtime_env"]["working_dir"]).iterdir())
        return asked["submission_id"]

    def list_jobs(self) -> list[Any]:
        return self.listed

    def stop_job(self, job_id: str) -> None:
        self.listed[0].status, self.listed[0].driver_exit_code = "STOPPED", None

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for text in self.log.pop(0):
            if not text:
                raise RuntimeError("cut")
            yield text


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    fake = type("Fake", (Client,), {"listed": [], "asked": {}, "error": None, "log": []})
    monkeypatch.setattr(jobs, "JobSubmissionClient", fake)
    monkeypatch.setattr(jobs, "_knock", lambda address: None)
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: None)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return fake


def details(name: str | None = "raybench-s-1", status: str = "RUNNING", code: int | None = None, **more: Any) -> Any:
    about = {"raybench": "1", "suite": "s", "submitted_by": "me@here", "results": "/r"}
    known = {"message": "why\nat length", "start_time": 1000, "end_time": None, "driver_info": None, "job_id": "01"}
    return SimpleNamespace(
        submission_id=name, status=status, driver_exit_code=code, metadata=about, **{**known, **more}
    )


def test_a_command_that_is_submitted(client: type[Client], suite_file: Path) -> None:
    words = ["--set", "train.epochs=9", "--only", "seed=0", "--only", "model=sent", "--budget", "1h", "--smoke"]
    words += ["--results", "/data/results", "--data-dir", "/data/images", "--address", "http://head:8265"]
    done = CliRunner().invoke(app, ["submit", str(suite_file), *words], catch_exceptions=False)
    job_id = client.asked["submission_id"]
    assert done.stdout == f"{job_id}\n" and re.fullmatch("raybench-sent-smoke-[0-9a-f]{6}", job_id)
    assert client.asked["entrypoint"] == (
        "exec python -m raybench.cli run sent.yaml --address auto --results /data/results --data-dir /data/images"
        " --set train.epochs=9 --only seed=0 --only model=sent --smoke --budget 1h"
    )
    assert client.asked["files"] == [GIT_STATE, "sent.yaml", "sent_helper.py", "sent_module.py"]
    assert client.asked["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
    CliRunner().invoke(app, ["submit", str(suite_file), "--address", "http://head:8265"], catch_exceptions=False)
    assert client.asked["entrypoint"] == (
        'export RAYBENCH_RESULTS="${RAYBENCH_RESULTS:-$HOME/results}" RAYBENCH_DATA="${RAYBENCH_DATA:-$HOME/data}";'
        " exec python -m raybench.cli run sent.yaml --address auto"
    )


def test_what_is_said_of_a_job_beside_its_state(client: type[Client], suite_file: Path) -> None:
    Jobs("http://head:8265").submit(load(suite_file), [], results="/data/results")
    about = client.asked["metadata"]
    assert about["suite"] == "sent" and about["results"] == "/data/results" and "@" in about["submitted_by"]


@pytest.mark.parametrize(
    ("status", "code", "state", "exit_status"),
    [
        ("PENDING", None, "pending", 1),
        ("RUNNING", None, "running", 1),
        ("SUCCEEDED", 0, "finished", 0),
        ("FAILED", 1, "some trials failed", 1),
        ("FAILED", 2, "refused", 2),
        ("FAILED", 3, "budget spent", 3),
        ("FAILED", 130, "interrupted", 130),
        ("FAILED", -9, "failed with exit status -9", 137),
        ("FAILED", None, "failed: why", 1),
        ("STOPPED", None, "stopped", 130),
    ],
)
def test_what_is_said_of_a_job(
    client: type[Client], status: str, code: int | None, state: str, exit_status: int
) -> None:
    client.listed[:] = [details(status=status, code=code)]
    job = Jobs("http://head:8265").find("raybench-s-1")
    assert (job.state, job.code) == (state, exit_status)


def test_jobs_of_others_are_not_listed_and_a_drivers_own_entry_neither(client: type[Client]) -> None:
    own = details("raybench-s-1", driver_info=SimpleNamespace(id="02"), start_time=1000)
    driver_of_it = details(None, job_id="02")
    joined = details(None, job_id="03", start_time=5000)
    other = details("theirs")
    other.metadata = {}
    client.listed[:] = [own, driver_of_it, joined, other]
    cluster = Jobs("http://head:8265")
    assert [job.id for job in cluster.all()] == ["03", "raybench-s-1"]
    with pytest.raises(UserError, match=r"^03: was not submitted, but is a raybench run of me@here: see there$"):
        cluster.stop("03")
    with pytest.raises(UserError) as refused:
        cluster.find("raybench-s-2")
    assert str(refused.value) == (
        "raybench-s-2: no such job at http://head:8265; did you mean 'raybench-s-1'?"
    )  # fmt: skip
    assert cluster.stop("raybench-s-1").state == "stopped"


def test_a_log_is_followed_over_a_cut_and_nothing_is_said_twice(client: type[Client]) -> None:
    client.listed[:] = [details(status="FAILED", code=3)]
    client.log[:] = [["one\ntw", ""], ["one\n", "two\nthr", ""], ["one\ntwo\nthree\n"]]
    said: list[str] = []
    assert Jobs("http://head:8265").follow("raybench-s-1", said.append) == 3
    assert "".join(said) == "one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("address", "error", "said"),
    [
        ("head:6379", None, "must be the URL of a cluster's dashboard, such as http://head:8265, or auto"),
        ("http://h", ConnectionError("Failed to\nconnect"), "no Ray dashboard answers there: Failed to connect"),
        ("http://h", RuntimeError("status code 500"), "the cluster refuses: status code 500"),
        (
            "http://h",
            AuthenticationError("Authentication required: x"),
            "refused, no token: the cluster wants its token: put it into ~/.ray/auth_token, or name its file in"
            " RAY_AUTH_TOKEN_PATH, and set RAY_AUTH_MODE=token",
        ),
        (
            "http://h",
            AuthenticationError("Authentication failed: x"),
            "refused, another token than the cluster's: the cluster wants its token: put it into ~/.ray/auth_token, or"
            " name its file in RAY_AUTH_TOKEN_PATH, and set RAY_AUTH_MODE=token",
        ),
        (
            "auto",
            AuthenticationError("InvalidAuthToken: Authentication token is missing or incorrect. x"),
            "refused, no token, or another than the cluster's: the cluster wants its token: put it into"
            " ~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH, and set RAY_AUTH_MODE=token",
        ),
    ],
)
def test_a_cluster_that_does_not_let_us_in(
    client: type[Client], address: str, error: Exception | None, said: str
) -> None:
    client.error = error
    with pytest.raises(UserError) as refused:
        Jobs(address)
    assert str(refused.value) == f"--address {address}: {said}"


def test_a_token_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would end the process."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    for problem in (f"{tmp_path}/token: No such file or directory", f"{tmp_path}/token is empty"):
        with pytest.raises(UserError) as refused:
            Jobs("auto")
        assert str(refused.value) == f"--address auto: no token: {problem}"
        with pytest.raises(UserError) as refused, connect("auto"):
            pass
        assert str(refused.value) == f"--address auto: no token: {problem}"
        (tmp_path / "token").write_text("\n")


def test_nobody_listens() -> None:
    with pytest.raises(UserError) as refused:
        Jobs("http://127.0.0.1:1")
    assert str(refused.value) == (
        "--address http://127.0.0.1:1: no Ray dashboard answers there: Connection refused"
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# A cluster that is there

TOKEN = "5ec4e7" * 12


class Head:
    """A head with a token, its dashboard and its metrics."""

    def __init__(self, place: Path) -> None:
        (place / "token").write_text(TOKEN)
        python = Path(sys.executable).parent
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(place / "token"),
            "RAY_metrics_report_interval_ms": "1000",
            "PYTHONPATH": str(Path.cwd()),
            "PATH": f"{python}:{os.environ['PATH']}",
            "RAYBENCH_CACHE": str(place / "cache"),
        }
        self.port, self.dashboard, self.exports = (free_port() for _ in range(3))
        self.url, self.logs = f"http://127.0.0.1:{self.dashboard}", place / "ray" / "session_latest" / "logs"
        options = head_options(self.port, place / "ray", self.dashboard)
        options += [f"--metrics-export-port={self.exports}", f"--object-store-memory={STORE_BYTES}"]
        self.node = Node(options, place / "log", environment(**self.environment), cpus=2)
        self.node.start()

    def command(self, folder: Path, *words: str, **env: str) -> subprocess.Popen[str]:
        known = environment(**{**self.environment, **env})
        del known["RAY_AUTH_MODE"]  # raybench finds the token by itself
        return subprocess.Popen(
            [sys.executable, "-m", "raybench.cli", *words],
            cwd=folder, env=known, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, folder: Path, *words: str, **env: str) -> tuple[int, str, str]:
        process = self.command(folder, *words, **env)
        out, err = process.communicate(timeout=400)
        return process.returncode, out, err

    def metrics(self) -> dict[str, set[tuple[str, ...]]]:
        """Return the values of raybench's tags by name, as Prometheus would see them now."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.exports}/metrics") as answer:
            lines = [line for line in answer.read().decode().splitlines() if line.startswith("ray_raybench")]
        found: dict[str, set[tuple[str, ...]]] = {}
        names = {exported(name): metric.tags for name, metric in METRICS.items()}
        for line in lines:
            name, _, rest = line.partition("{")
            tags = dict(re.findall(r'(\w+)="([^"]*)"', rest))
            found.setdefault(name, set()).add(tuple(tags[tag] for tag in names[name]))
        return found

    def shown(self, kind: str, column: str) -> set[str]:
        """Return a column of what the dashboard lists."""
        request = urllib.request.Request(f"{self.url}/api/v0/{kind}?detail=1&limit=1000")
        request.add_header("Authorization", f"Bearer {TOKEN}")
        with urllib.request.urlopen(request) as answer:
            return {row[column] for row in json.load(answer)["data"]["result"]["result"]}


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    if not Path("/proc/self/stat").exists():
        pytest.skip("a node is found and ended by /proc")
    place = Path(tempfile.mkdtemp(prefix="rb"))  # short, for sockets lie below it
    head = Head(place)
    yield head
    head.node.kill()
    shutil.rmtree(place, ignore_errors=True)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    until = time.monotonic() + 240
    while not (met := condition()):
        assert time.monotonic() < until
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.3)
    return met


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_a_suite_is_submitted_followed_measured_and_found_again(head: Head, suite_file: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    words = ["submit", "sent.yaml", "--address", head.url, "--results", str(results), "--follow"]
    process = head.command(tmp_path, *words)
    gauges = {exported(name) for name, metric in METRICS.items() if not metric.counter}
    seen: dict[str, set[tuple[str, ...]]] = {}

    def all_are_there() -> bool:
        for name, tags in head.metrics().items():
            seen.setdefault(name, set()).update(tags)
        return gauges <= seen.keys()

    wait_for(all_are_there, process)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    job_id = out.strip()
    assert re.fullmatch("raybench-sent-[0-9a-f]{6}", job_id)
    assert "Ray: 1 node, 2 CPUs, 0 GPUs, dashboard http://" in err and "[4/4] " in err
    assert "stored in" in err and "Traceback" not in err

    assert {("sent", "running"), ("sent", "waiting")} <= seen["ray_raybench_trials"]
    assert seen["ray_raybench_val_accuracy"] <= {("sent", "mlp"), ("sent", "sent")}
    assert seen["ray_raybench_images_per_second"] <= {("sent", "mlp"), ("sent", "sent")}
    assert seen["ray_raybench_device_memory_bytes"] == {("sent", "cpu")}
    wait_for(lambda: not head.metrics())  # they end with the run

    assert {"RaybenchTrial.train[sent/sent/s0]", "RaybenchTrial.train[sent/mlp/s1]"} <= head.shown("tasks", "name")
    assert {"raybench/sent/1", "raybench/sent/2"} <= head.shown("placement_groups", "name")
    assert "RaybenchTrial" in head.shown("actors", "class_name")
    assert "raybench sent" in head.shown("actors", "repr_name")

    rows, _ = Store(results, load(suite_file)).read()
    assert set(rows["status"]) <= {"completed", "stopped_early"} and len(rows) == 4
    assert len(list((results / "sent" / "tensorboard").rglob("events.out.*"))) == 4
    files = [path for path in [*results.rglob("*"), *head.logs.rglob("*")] if path.is_file()]
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()], "no secret in files or logs"

    status, out, _ = head.run(tmp_path, "status", job_id, "--address", head.url)
    (titles, line) = out.splitlines()
    assert status == 0 and titles.split()[:3] == ["job", "suite", "state"]
    assert line.split()[:3] == [job_id, "sent", "finished"] and line.split()[-1] == str(results)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_a_job_is_stopped_and_run_goes_on_where_it_was(head: Head, suite_file: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    store = Store(results, load(suite_file))
    slow = ["--set", "compare.model={mlp: mlp, sent: {name: sent, seconds: 0.7}}"]
    _, out, _ = head.run(
        tmp_path, "submit", "sent.yaml", "--address", head.url, "--results", str(results), *slow
    )  # fmt: skip
    job_id = out.strip()
    wait_for(lambda: store.folder.is_dir() and len(store.done()[0]) > 0)
    status, _, err = head.run(tmp_path, "stop", job_id, "--address", head.url)
    assert (status, err) == (0, f"{job_id}: stopped\n")
    status, _, err = head.run(tmp_path, "status", job_id, "--follow", "--address", head.url)
    assert status == 130 and "the same command goes on from here" in err
    done, damaged = store.done()
    assert 0 < len(done) < 4 and damaged == []

    address = f"127.0.0.1:{head.port}"
    quick = ["--set", "compare.model={mlp: mlp, sent: {name: sent, seconds: 0}}", "--ship"]
    status, _, err = head.run(tmp_path, "run", "sent.yaml", "--address", address, "--results", str(results), *quick)
    assert status == 0, err
    assert len(store.done()[0]) >= 4


@pytest.mark.ray
def test_a_wrong_token_is_one_line(head: Head, suite_file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("0" * 64)
    other = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "other")}
    status, out, err = head.run(tmp_path, "status", "--address", head.url, **other)
    assert (status, out) == (2, "")
    assert err.startswith(f"raybench: --address {head.url}: refused, another token than the cluster's: ")
    assert len(err.splitlines()) == 1
