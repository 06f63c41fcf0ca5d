"""Suites as jobs of a Ray cluster, through its dashboard: sent there, followed, found again, stopped.

A job is ``raybench run SUITE --address auto`` on the cluster's head. The suite travels as one file, with what it
extends merged in, and the modules of its ``imports`` beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import secrets
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raybench import __version__, rayenv, shipping  # isort: skip  # sets what Ray reads when it is imported

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from raybench.connect import silent, whoami
from raybench.errors import UserError, did_you_mean
from raybench.shipping import GIT_STATE, git_state
from raybench.suite import Suite
from raybench.yamlfile import read_file

STOP_SECONDS = 60
"""How long a job that is to stop may take until it is killed; Ray's own 3 s are too few for trials to let go."""
ENDS = {0: "finished", 1: "some trials failed", 2: "refused", 3: "budget spent", 130: "interrupted"}
"""What the exit status of ``raybench run`` means."""
PLACES = 'export RAYBENCH_RESULTS="${RAYBENCH_RESULTS:-$HOME/results}" RAYBENCH_DATA="${RAYBENCH_DATA:-$HOME/data}"; '
"""Where a job's results and images lie, if nothing else is said: its own folder goes with it."""
OVER = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True, slots=True)
class Submitted:
    """A run of raybench that a cluster knows: a job that was submitted, or a driver that joined."""

    id: str
    suite: str
    submitted_by: str
    results: str
    status: str
    """Ray's word."""
    exit_status: int | None
    message: str
    began: float | None
    """Seconds since 1970, as all times here."""
    ended: float | None
    is_job: bool
    """Whether it can be stopped and followed from here: not a driver that runs elsewhere."""

    @property
    def over(self) -> bool:
        return self.status in OVER

    @property
    def state(self) -> str:
        """Say how the job is, for people."""
        if self.status == "STOPPED":
            return "stopped"
        if self.over and self.is_job and self.exit_status is not None:
            return ENDS.get(self.exit_status, f"failed with exit status {self.exit_status}")
        if self.status == "FAILED":
            return f"failed: {self.message}"
        return "over" if self.over else self.status.lower()

    @property
    def code(self) -> int:
        """Return the exit status of a job that is over; 130 for one that was stopped."""
        if self.exit_status is None:
            return {"SUCCEEDED": 0, "STOPPED": 130}.get(self.status, 1)
        return self.exit_status if self.exit_status >= 0 else 128 - self.exit_status


class Jobs:
    """The jobs of the cluster whose dashboard is at ``address``.

    Raises:
        UserError: by every method, if nobody listens there, the token is wrong, or the cluster refuses.
    """

    def __init__(self, address: str) -> None:
        if address != "auto" and not address.startswith(("http://", "https://")):
            raise UserError(
                f"--address {address}: must be the URL of a cluster's dashboard, such as http://head:8265, or auto"
            )
        self.address = address
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # to Ray they count more than what it is told
            os.environ.pop(name, None)
        logging.getLogger("ray").setLevel(logging.ERROR)
        if address == "auto" and (wrong := rayenv.wrong_token()):
            raise UserError(f"--address {address}: no token: {wrong}")
        with self._asking(), silent() if address == "auto" else contextlib.nullcontext():
            if address != "auto":
                _knock(address)
            self._client = JobSubmissionClient(address)
        for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            said = str(error).lower()
            what = "no token, or another than the cluster's"  # where it does not say which
            if "missing or incorrect" not in said:
                what = "another token than the cluster's" if "authentication failed" in said else "no token"
            raise UserError(f"--address {self.address}: refused, {what}: {rayenv.TOKENS}") from None
        except (OSError, RuntimeError, ValueError, requests.RequestException, aiohttp.ClientError) as error:
            missing = isinstance(error, ConnectionError | requests.ConnectionError | OSError)
            what = "no Ray dashboard answers there" if missing else "the cluster refuses"
            reason = " ".join(str(error).split())[:500] or type(error).__name__
            raise UserError(f"--address {self.address}: {what}: {reason}") from None

    def submit(
        self,
        suite: Suite,
        options: Sequence[str],
        *,
        results: str | None = None,
        data_dir: str | None = None,
        ship: bool = False,
    ) -> str:
        """Send ``suite`` off, to be run with ``options`` of ``raybench run``, and return the job's id.

        ``results`` and ``data_dir`` are places on the head, by default those of `PLACES`.
        """
        job_id = f"raybench-{suite.name}-{secrets.token_hex(3)}"
        about = {"raybench": __version__, "suite": suite.name, "job_name": f"raybench {suite.name}"}
        about |= {"submitted_by": whoami(), "results": results or "$RAYBENCH_RESULTS or ~/results"}
        places = {"--results": results, "--data-dir": data_dir}
        given = [word for option, place in places.items() if place for word in (option, place)]
        with tempfile.TemporaryDirectory(prefix="raybench-job-") as folder:
            file = pack(suite, Path(folder), ship=ship)
            # A shell that stays in between would not be stopped gently.
            command = ["exec", "python", "-m", "raybench.cli", "run", file, "--address", "auto", *given, *options]
            with self._asking():
                return self._client.submit_job(
                    entrypoint=f"{'' if all(places.values()) else PLACES}{shlex.join(command)}",
                    submission_id=job_id,
                    metadata=about,
                    runtime_env={
                        "working_dir": folder,
                        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
                    },
                )

    def all(self) -> list[Submitted]:
        """Return what raybench runs or ran on this cluster, the latest first."""
        with self._asking():
            listed = self._client.list_jobs()
        found = [_submitted(details) for details in listed if "raybench" in (details.metadata or {})]
        jobs = {job.id for job in found if job.is_job}
        own = [details.driver_info.id for details in listed if details.submission_id in jobs and details.driver_info]
        return sorted((job for job in found if job.id not in own), key=lambda job: -(job.began or 0))

    def find(self, job_id: str) -> Submitted:
        """Return the job called ``job_id``.

        Raises:
            UserError: if there is none.
        """
        known = {job.id: job for job in self.all()}
        if job_id not in known:
            raise UserError(f"{job_id}: no such job at {self.address}{did_you_mean(job_id, list(known)[:20])}")
        return known[job_id]

    def stop(self, job_id: str) -> Submitted:
        """Stop a job, as Ctrl-C does where it runs, wait until it is over, and return it."""
        job = self._own(job_id)
        with self._asking():
            if not job.over:
                self._client.stop_job(job_id)
        return self._when_over(job_id, STOP_SECONDS + 30)

    def follow(self, job_id: str, write: Callable[[str], None]) -> int:
        """Hand all that a job prints to ``write``, until it is over; return its exit status."""
        self._own(job_id)
        seen = 0

        async def tail() -> None:
            nonlocal seen
            begun = 0
            async for text in self._client.tail_job_logs(job_id):
                new = text[max(0, seen - begun) :]  # after a pause, the log comes from its beginning again
                begun += len(text)
                seen = max(seen, begun)
                write(new)

        failures = 0
        while True:
            before = seen
            try:
                asyncio.run(tail())
                if self.find(job_id).over:
                    break
            except (OSError, RuntimeError, aiohttp.ClientError, UserError):  # the network went away, or the head
                failures = 0 if seen > before else failures + 1
                if failures > 10:
                    raise UserError(f"{self.address}: cannot follow {job_id} any longer; it may go on") from None
            time.sleep(1)
        return self._when_over(job_id, 30).code

    def _own(self, job_id: str) -> Submitted:
        job = self.find(job_id)
        if not job.is_job:
            raise UserError(f"{job_id}: was not submitted, but is a raybench run of {job.submitted_by}: see there")
        return job

    def _when_over(self, job_id: str, seconds: float) -> Submitted:
        until = time.monotonic() + seconds
        while not (job := self.find(job_id)).over and time.monotonic() < until:
            time.sleep(0.5)
        return job


def check_place(option: str, place: str, *, uri: bool = True) -> None:
    """Raise `UserError` unless the head of a cluster finds ``place`` too, and it may be shown to everybody there; it
    may be a ``uri`` or not."""
    if uri and "://" in place:
        if urlsplit(place).password:
            raise UserError(f"{option}: a job is shown in the dashboard: leave the password to the head's environment")
    elif not place.startswith("/"):
        raise UserError(
            f"{option} {place}: is a place on the head of the cluster: give its full path there"
            + (", or a URI such as s3://bucket/prefix" if uri else "")
        )


def pack(suite: Suite, folder: Path, *, ship: bool = False) -> str:
    """Write what a job needs into ``folder``; return the name of the suite's file there."""
    document, _ = read_file(Path(suite.source))
    file = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', Path(suite.source).stem)}.yaml"
    file.write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / GIT_STATE).write_text(json.dumps(git_state(suite.folder)), encoding="utf-8")
    for path in [*shipping.modules(suite), *([shipping.package()] if ship else [])]:
        if path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".git"))
        else:
            shutil.copy(path, folder)
    return file.name


def _knock(address: str) -> None:
    """Raise `OSError` where nobody listens; Ray's client would wait for minutes."""
    url = urlsplit(address)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname or "", port), timeout=5).close()
    except OSError as error:
        raise OSError(error.strerror or str(error)) from None


def _submitted(details: Any) -> Submitted:
    about = details.metadata
    return Submitted(
        id=details.submission_id or details.job_id,
        suite=about.get("suite", ""),
        submitted_by=about.get("submitted_by", ""),
        results=about.get("results", ""),
        status=getattr(details.status, "value", details.status),
        exit_status=details.driver_exit_code,
        message=(details.message or "").strip().splitlines()[0] if (details.message or "").strip() else "",
        began=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        is_job=bool(details.submission_id),
    )
