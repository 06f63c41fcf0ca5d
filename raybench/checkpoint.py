"""The state of trials that are not over, so that one that is started again goes on and ends with the same numbers."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pyarrow import fs

from raybench.errors import UserError

State = dict[str, Any]
"""Tensors, numbers, texts, and lists, tuples and dicts of them: what is loaded without running code."""
SECONDS = 300
"""How long a trial trains at least between two checkpoints: one that is shorter leaves none."""


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """A folder, or a place in object storage (``s3://bucket/path``), that all nodes reach."""

    uri: str
    """A folder becomes absolute: a process on another node, or in a folder of its own, is to find the same one."""
    seconds: float = SECONDS

    def __post_init__(self) -> None:
        if "://" not in self.uri:
            object.__setattr__(self, "uri", str(Path(self.uri).absolute()))

    def check(self) -> None:
        """Raise `UserError` if nothing can be written there."""
        try:
            files, folder = self._place()
            if isinstance(files, fs.LocalFileSystem):
                files.create_dir(folder)
            self.save("probe", 0, {})
            self.drop("probe")
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"--storage {self.uri}: cannot be written: {reason}") from None

    def save(self, trial_id: str, rank: int, state: State) -> None:
        """Keep the state of one process of a trial in place of what was kept before, in one step."""
        content = io.BytesIO()
        torch.save(state, content)
        files, path = self._file(trial_id, rank)
        local = isinstance(files, fs.LocalFileSystem)  # in object storage, a file appears whole by itself
        beside = f"{path}.{os.getpid()}.tmp" if local else path
        try:
            with files.open_output_stream(beside) as file:
                file.write(content.getbuffer())
            if local:
                files.move(beside, path)
        except OSError:
            with contextlib.suppress(OSError):  # half a file takes room on a share that is full
                if local:
                    files.delete_file(beside)
            raise

    def load(self, trial_id: str, rank: int, device: torch.device) -> State | None:
        """Return what is kept of one process of a trial; nothing if there is none, or it is damaged."""
        files, path = self._file(trial_id, rank)
        try:
            with files.open_input_file(path) as file:
                content = file.read()
        except FileNotFoundError:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is refused in any case
                return torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):  # half a file, or none of ours
            return None

    def drop(self, trial_id: str, processes: int = 1) -> None:
        """Remove what is kept of a trial, if anything is."""
        for rank in range(processes):
            files, path = self._file(trial_id, rank)
            if files.get_file_info(path).type == fs.FileType.File:
                files.delete_file(path)

    def _place(self) -> tuple[fs.FileSystem, str]:
        return fs.FileSystem.from_uri(self.uri if "://" in self.uri else Path(self.uri).as_uri())

    def _file(self, trial_id: str, rank: int) -> tuple[fs.FileSystem, str]:
        files, folder = self._place()
        return files, f"{folder}/{trial_id}-{rank}.pt"


class Keeper:
    """Keeps the state of one process of one trial while it trains.

    A storage that fails is no reason for a trial to fail: ``warn`` is told once, and the trial trains on.
    """

    def __init__(
        self, checkpoints: Checkpoints, trial_id: str, rank: int, fingerprint: str, warn: Callable[[str], None]
    ) -> None:
        """``fingerprint`` is that of the images: a state that was trained on others is not taken up."""
        self.checkpoints, self.file, self.fingerprint, self.warn = checkpoints, (trial_id, rank), fingerprint, warn
        self.kept_at = time.monotonic()
        self.has_warned = False

    def is_due(self) -> bool:
        """Return whether it is time for the next checkpoint."""
        return time.monotonic() - self.kept_at >= self.checkpoints.seconds

    def save(self, state: State) -> None:
        try:
            self.checkpoints.save(*self.file, {**state, "fingerprint": self.fingerprint})
        except Exception as error:  # whatever a storage raises
            self._warn("is not kept", error)
        self.kept_at = time.monotonic()

    def load(self, device: torch.device) -> State | None:
        try:
            state = self.checkpoints.load(*self.file, device)
        except OSError as error:
            self._warn("cannot be read, and the trial starts again", error)
            return None
        return state if state and state["fingerprint"] == self.fingerprint else None

    def _warn(self, what: str, error: Exception) -> None:
        if not self.has_warned:
            self.has_warned = True
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            reason = reason.replace(self.file[0], "TRIAL")  # what a storage says of many trials is one warning
            self.warn(f"its checkpoint in {self.checkpoints.uri} {what}: {reason}")
