"""The driver is killed at random moments: no finished trial is lost, none runs twice, no file is torn."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raybench.plan import expand
from raybench.store import Store
from raybench.suite import load

SUITE = """
name: killed
dataset: {name: digits, train_size: 300, test_size: 100}
compare: {model: [mlp, small_cnn]}
repeat: {seed: 20}
train: {epochs: 3}
"""
KILLS = 3


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "raybench.cli", "run", "suite.yaml", "--format", "json"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def stored(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return what lies in ``trials/``: when each file was written, and its bytes."""
    files = (folder / "results" / "killed" / "trials").glob("[!.]*.parquet")
    return {path.stem: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.ray
def test_sigkill_at_random_moments_loses_and_repeats_nothing(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    suite = load(tmp_path / "suite.yaml")
    planned = {trial.id for trial in expand(suite)}
    moments = random.Random(time.time_ns())
    before: dict[str, tuple[int, bytes]] = {}
    for _ in range(KILLS):
        driver = start(tmp_path)
        until = time.monotonic() + 120
        while len(stored(tmp_path)) == len(before) and driver.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 1.5))
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
        after = stored(tmp_path)
        assert {id_: after[id_] for id_ in before} == before, "a finished trial was lost or ran again"
        for id_ in after:
            for kind in ("trials", "epochs", "predictions"):
                assert pq.read_table(tmp_path / "results" / "killed" / kind / f"{id_}.parquet").num_rows > 0
        before = after
        done, damaged = Store(tmp_path / "results", suite).done()
        assert set(done) == set(after) and damaged == []
        if len(after) == len(planned):
            break

    driver = start(tmp_path)
    out, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err.decode()
    after = stored(tmp_path)
    assert set(after) == planned
    assert {id_: after[id_] for id_ in before} == before
    assert [row["n"] for row in json.loads(out)["rows"]] == [20, 20]
    assert not list((tmp_path / "results").rglob(".*.tmp"))
