"""Results in object storage: an S3 on this machine, which is missing, refuses, goes away, and has two drivers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made import Raybench

from raybench import objects, parquet
from raybench import store as stores
from raybench.errors import UserError
from raybench.objects import CLAIM, LEASE, Claim, Objects, StoreError, place, write_whole
from raybench.records import Outcome, TrialRow
from raybench.store import Store
from raybench.suite import Suite

SUITE = """
name: remote
dataset: {name: digits, train_size: 200, test_size: 100}
model: mlp
repeat: {seed: 3}
train: {epochs: 1}
"""
ME = f"process {os.getpid()} on {socket.gethostname()}"


@pytest.fixture
def suite(load_suite: Callable[..., Any]) -> Suite:
    return load_suite(SUITE)[0]


def outcome(trial_id: str) -> Outcome:
    given = {"suite": "remote", "dataset": "digits", "model": "mlp", "augmentation": "none", "seed": 0, "lr": 0.1}
    ended = {"status": "completed", "test_accuracy": 0.5, "selection": "val_loss", "validation": "test"}
    return Outcome(row=TrialRow(trial_id=trial_id, settings="{}", **given, **ended))


def refused(results: str) -> str:
    with pytest.raises(StoreError) as caught:
        place(results)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Where


def test_paths_stay_paths(tmp_path: Path) -> None:
    assert place("results") == place(Path("results")) == Path("results")
    assert place(f"file://{tmp_path}/a%20b") == tmp_path / "a b"


def test_what_the_store_needs_of_a_path(bucket: str, tmp_path: Path) -> None:
    """The same answers as on a disk."""
    answers = []
    for root in (place(f"{bucket}/results"), tmp_path / "results"):
        folder = root / "suite" / "trials"
        assert list(folder.glob("*")) == [] and not root.is_dir() and not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("b.parquet", "a.parquet", ".c.parquet", "merged-1.parquet"):
            (folder / name).write_bytes(name.encode())
        (folder / "b.parquet").write_bytes(b"again")
        (folder / "a.parquet").unlink()
        (folder / "a.parquet").unlink(missing_ok=True)
        for act in (Path.unlink, Path.read_bytes):
            with pytest.raises(FileNotFoundError):
                getattr(folder / "a.parquet", act.__name__)()
        found = sorted(folder.glob("[!._]*.parquet"))
        assert [str(path) for path in found] == [f"{folder}/b.parquet", f"{folder}/merged-1.parquet"]
        assert found[0].parent == folder and found[0].with_name("c") == folder / "c"
        answers.append([(path.name, path.stem, path.read_bytes(), path.exists(), path.is_dir()) for path in found])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("remote", [False, True])
def test_a_file_is_written_in_one_step(remote: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = place(request.getfixturevalue("bucket")) if remote else tmp_path
    for content in (b"old", b"new"):
        write_whole(folder / "a", content)
        assert (folder / "a").read_bytes() == content and [path.name for path in folder.glob("*")] == ["a"]


def test_a_file_that_cannot_be_renamed_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(beside: Path, path: Path) -> None:
        assert beside.read_bytes() == b"new", "all of it, before"
        raise OSError("no")

    write_whole(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match=r"^no$"):
        write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_an_uri_is_shown_without_credentials_and_options(bucket: str, storage: Any) -> None:
    name = bucket.removeprefix("s3://")
    options = f"region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{storage.port}"
    folder = place(f"s3://key:secret@{name}/a/b/?{options}")
    assert str(folder) == f"s3://{name}/a/b"
    (folder / "c").write_bytes(b"d")
    assert (place(bucket) / "a" / "b" / "c").read_bytes() == b"d"


def test_what_fsspec_knows() -> None:
    folder = place("fsspec+memory://results")
    (folder / "a.parquet").write_bytes(b"a")
    assert [str(path) for path in folder.glob("*")] == ["fsspec+memory://results/a.parquet"]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ("s4://b/a", "s4://b/a: cannot be reached: Unrecognized filesystem type in URI: s4://b/a"),
        (
            "s3://bucket/a?b=c",
            "s3://bucket/a: cannot be reached: Unexpected query parameter in S3 URI: 'b'",
        ),
    ],
)
def test_uris_that_mean_nothing(results: str, message: str, storage: Any) -> None:
    assert refused(results) == message


def test_a_missing_bucket(storage: Any) -> None:
    assert refused("s3://nowhere/a") == "s3://nowhere/a: no such bucket: create it, or choose another --results"


def test_wrong_credentials(bucket: str, storage: Any) -> None:
    def allow(requests: str) -> None:
        url = f"{storage.endpoint}/moto-api/reset-auth"
        urllib.request.urlopen(urllib.request.Request(url, requests.encode(), {"Content-Type": "text/plain"})).close()

    allow("0")
    try:
        assert refused(f"{bucket}/a").startswith(f"{bucket}/a: cannot be reached: ACCESS_DENIED during HeadBucket")
    finally:
        allow("1000000000")


def test_nobody_answers(storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    assert refused("s3://bucket/a").startswith("s3://bucket/a: cannot be reached: NETWORK_CONNECTION during HeadBucket")


# ---------------------------------------------------------------------------------------------------------------------
# Storage that goes away


def test_storage_that_comes_back_is_waited_for(bucket: str, storage: Any, suite: Suite) -> None:
    store = Store(place(bucket), suite)
    store.open({})
    store.write(outcome("before"))
    storage.off()
    back = threading.Timer(1, storage.on)
    back.start()
    try:
        store.write(outcome("after"))
    finally:
        back.join()
    assert set(store.done()[0]) == {"before", "after"}
    store.close()


def test_storage_that_stays_away_ends_the_run(
    bucket: str, storage: Any, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "PATIENCE", (0, 0))
    monkeypatch.setattr(objects, "ATTEMPTS", 1)
    store = Store(place(bucket), suite)
    store.open({})
    for number in range(3):
        store.write(outcome(f"t{number}"))
    store.compact()
    store.write(outcome("t3"))
    trials = store._schemas["trials"]
    files = [*(store.folder / "trials").glob("*.parquet")]
    storage.off()
    try:
        writes = (lambda: store.write(outcome("t4")), lambda: store.write_decisions([]))
        for action in (*writes, store.read, store.compact):
            with pytest.raises(StoreError) as caught:
                action()
            assert str(caught.value).startswith(f"{bucket}/remote") and "NETWORK_CONNECTION" in str(caught.value)
        # Files that were listed just before are not taken for damaged ones: their trials would be trained again.
        folder = store.folder / "trials"
        for read in (lambda: parquet.read_files(files, trials), lambda: parquet.clear_merged(folder)):
            with pytest.raises(StoreError):
                read()
        store.close()
    finally:
        storage.on()
    done, damaged = Store(place(bucket), suite).done()
    assert set(done) == {"t0", "t1", "t2", "t3"} and damaged == []


# ---------------------------------------------------------------------------------------------------------------------
# Two drivers


def claims(store: Store) -> list[str]:
    return [path.name for path in store.folder.glob(f"{CLAIM}*")]


def test_one_writer_at_a_time(bucket: str, suite: Suite) -> None:
    first, second = Store(place(bucket), suite), Store(place(bucket), suite)
    first.open({})
    first.write(outcome("t0"))
    with pytest.raises(UserError) as caught:
        second.open({})
    assert str(caught.value) == (
        f"{bucket}/remote: another raybench run is writing here ({ME}): wait for it, stop it, or choose another"
        f" --results; if it was killed, its claim ends {LEASE} s after that"
    )
    assert len(claims(first)) == 1
    assert second.done() == ({"t0": "completed"}, [])  # reading needs no claim
    first.close()
    second.open({})
    second.close()
    assert claims(second) == []


def test_a_killed_driver_is_taken_over(bucket: str, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    killed, next_ = Store(place(bucket), suite), Store(place(bucket), suite)
    killed.open({})
    monkeypatch.setattr(objects, "LEASE", -1)  # as if it had been silent for long
    next_.open({})
    assert len(claims(next_)) == 1
    next_.write(outcome("t0"))
    # It was asleep, and wakes up.
    with pytest.raises(UserError) as caught:
        killed.write(outcome("t1"))
    assert str(caught.value) == (
        f"{bucket}/remote: another raybench run took over, for this one had been silent for -1 s"
    )
    killed.close()
    assert next_.done() == ({"t0": "completed"}, []) and len(claims(next_)) == 1
    next_.close()


def test_a_claim_is_renewed(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "BEAT", 0.01)
    folder = place(bucket)
    assert isinstance(folder, Objects)
    claim = Claim(folder)
    claim.acquire()
    first = claim.mine.info().mtime
    until = time.monotonic() + 30
    while claim.mine.info().mtime == first:  # whole seconds
        assert time.monotonic() < until
        time.sleep(0.05)
    claim.release()
    claim._over.clear()
    claim._renew()  # taken over: it is not written again, and no longer renewed
    assert not claim.mine.exists()


def test_a_claim_that_comes_back_is_removed_again(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place(bucket)
    assert isinstance(folder, Objects)
    dead, heir = Claim(folder), Claim(folder)
    dead.acquire()
    monkeypatch.setattr(objects, "LEASE", -1)
    monkeypatch.setattr(objects, "BEAT", 0.01)
    heir.acquire()
    dead._write()  # what was on its way when its driver was cut off
    until = time.monotonic() + 60
    while dead.mine.exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    for claim in (dead, heir):
        claim.release()


def test_of_drivers_that_start_at_once_one_goes_on_at_most(bucket: str) -> None:
    folder = place(bucket)
    assert isinstance(folder, Objects)
    for _ in range(3):
        rivals = [Claim(folder) for _ in range(4)]
        together = threading.Barrier(len(rivals))
        holding: list[Claim] = []

        def claim(rival: Claim, together: threading.Barrier = together, holding: list[Claim] = holding) -> None:
            together.wait()
            try:
                rival.acquire()
            except UserError:
                return
            holding.append(rival)

        threads = [threading.Thread(target=claim, args=(rival,)) for rival in rivals]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(holding) <= 1
        assert len(list(folder.glob(f"{CLAIM}*"))) == len(holding)
        for held in holding:
            held.release()


# ---------------------------------------------------------------------------------------------------------------------
# The command line


@pytest.fixture
def raybench(raybench: Raybench, tmp_path: Path) -> Iterator[Raybench]:
    Path("remote.yaml").write_text(SUITE)
    yield raybench
    assert {path.suffix for path in tmp_path.iterdir()} == {".yaml"}  # nothing called s3: lies here


COMMANDS = [("plan", "remote.yaml"), ("run", "remote.yaml"), ("summarize", "remote"), ("compact", "remote")]


@pytest.mark.parametrize("command", [*COMMANDS, ("check", "remote.yaml")], ids=" ".join)
def test_a_missing_bucket_is_one_line(command: tuple[str, ...], raybench: Any, storage: Any) -> None:
    status, _, err = raybench(*command, "--results", "s3://nowhere/a")
    assert (status, err) == (2, "raybench: s3://nowhere/a: no such bucket: create it, or choose another --results\n")


def test_commands_read_a_uri(raybench: Any, bucket: str, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    from raybench.plan import expand

    assert raybench("summarize", bucket)[1:] == (
        "",
        f"raybench: {bucket}: no results here: run the suite first, or name its folder with --results\n",
    )
    store = Store(place(f"{bucket}/results"), suite)
    store.open({"document": suite.document, "source": suite.source, "sets": [], "only": {}, "limit": None})
    for trial in expand(suite)[:2]:
        store.write(outcome(trial.id))
    store.close()
    monkeypatch.setenv("RAYBENCH_RESULTS", f"{bucket}/results")
    assert len(pd.read_parquet(f"{bucket}/results/remote/trials")) == 2
    assert "2 done, 1 to run" in raybench("plan", "remote.yaml")[1]
    assert "\nremote: 2 stored trials\n" in raybench("check", "remote.yaml")[1]
    status, table, err = raybench("summarize", "remote", "--format", "csv")
    assert status == 0 and err.startswith("WARNING: ") and "\n2,3,0.5,0.0,0.5,0.5," in table
    assert raybench("summarize", f"{bucket}/results/remote", "--format", "csv") == (0, table, err)
    assert raybench("compact", "remote") == (0, f"{bucket}/results/remote: 2 trials merged\n", "")
    assert raybench("summarize", "remote", "--format", "csv") == (0, table, err)


def start(folder: Path, results: str, *arguments: str) -> subprocess.Popen[str]:
    """Run the suite in a process of its own, with little patience."""
    code = "from raybench import cli, store; store.PATIENCE = (0.1,); cli.main()"
    command = [sys.executable, "-c", code, "run", "remote.yaml", "--results", results, "--format", "json", *arguments]
    return subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(driver: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return driver.communicate(timeout=600)
    finally:
        driver.kill()


@pytest.mark.ray
def test_a_run_into_storage_that_goes_away_and_comes_back(
    tmp_path: Path, bucket: str, storage: Any, suite: Suite
) -> None:
    (tmp_path / "remote.yaml").write_text(SUITE)
    store = Store(place(f"{bucket}/results"), suite)
    driver = start(tmp_path, f"{bucket}/results", "--max-concurrent", "1", "--set", "repeat.seed=50")
    while not (done := store.done()[0]) and driver.poll() is None:
        time.sleep(0.05)
    storage.off()
    try:
        out, err = ended(driver)
    finally:
        storage.on()
    assert (driver.returncode, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith(f"raybench: {bucket}/results/remote/") and "NETWORK_CONNECTION" in last
    assert last.endswith(": rows stored so far are whole; run again") and "Traceback" not in err
    kept, damaged = store.done()
    assert kept.items() >= done.items() and damaged == []

    for claim in store.folder.glob(f"{CLAIM}*"):  # it could not be withdrawn, and ends by itself in a minute
        claim.unlink()
    driver = start(tmp_path, f"{bucket}/results", "--limit", "2")
    out, err = ended(driver)
    assert driver.returncode == 0, err
    assert f"stored in {bucket}/results/remote: trials, epochs, predictions\n" in err
    assert [row["n"] for row in json.loads(out)["rows"]] == [2]
    assert len(store.done()[0]) >= 2 and claims(store) == []
