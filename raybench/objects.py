"""Results in object storage: what the store needs of `pathlib.Path`, below URIs such as ``s3://bucket/prefix``.

pyarrow does the work: it is here anyway, with S3, Google Cloud Storage and Azure built in. fsspec, which Ray brings
along, would need one more library for each of them; what only fsspec knows can be named as ``fsspec+<scheme>://``.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import posixpath
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from raybench.errors import UserError

LEASE = 60
"""Seconds after which a claim that is not renewed is void: its driver was killed."""
BEAT = 15
"""Seconds between renewals: three may fail."""
CLAIM = ".claim-"
RETRY_SECONDS = 10
"""How long pyarrow's client for Google may retry one request: by default a quarter of an hour."""
ATTEMPTS = 3
"""How often that for S3 may try one: by default 30 times, of up to 3 s each."""


class StoreError(UserError):
    """Object storage that cannot be reached, or refuses."""


@dataclass(frozen=True, order=True)
class Objects:
    """A folder or a file in object storage, with those of `pathlib.Path`'s methods that the store uses.

    Raises:
        StoreError: by every method that asks the storage, if that cannot be reached or refuses.
    """

    uri: str
    """For people: without credentials or options."""
    path: str
    """For the file system."""
    system: fs.FileSystem = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> Objects:
        return replace(self, uri=f"{self.uri}/{name}", path=f"{self.path}/{name}")

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    @property
    def stem(self) -> str:
        return posixpath.splitext(self.name)[0]

    @property
    def parent(self) -> Objects:
        return replace(self, uri=posixpath.dirname(self.uri), path=posixpath.dirname(self.path))

    def with_name(self, name: str) -> Objects:
        return self.parent / name

    def info(self) -> fs.FileInfo:
        with self._doing("reached"):
            return self.system.get_file_info(self.path)

    def is_dir(self) -> bool:
        return self.info().type == fs.FileType.Directory

    def exists(self) -> bool:
        return self.info().type != fs.FileType.NotFound

    def glob(self, pattern: str) -> list[Objects]:
        with self._doing("listed"):
            found = self.system.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return [self / info.base_name for info in found if fnmatch.fnmatchcase(info.base_name, pattern)]

    def mkdir(self, **options: bool) -> None:
        with self._doing("written"):
            self.system.create_dir(self.path)

    def read_bytes(self) -> bytes:
        with self._doing("read"), self.system.open_input_file(self.path) as file:
            return file.read()

    def write_bytes(self, content: bytes | pa.Buffer) -> None:
        """Write in one step, which is what object storage does: an object is there when all of it has arrived."""
        with self._doing("written"), self.system.open_output_stream(self.path) as stream:
            stream.write(content)

    def unlink(self, *, missing_ok: bool = False) -> None:
        with contextlib.suppress(*[FileNotFoundError] * missing_ok), self._doing("removed"):
            self.system.delete_file(self.path)

    @contextlib.contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{self}: cannot be {what}: {_reason(error)}") from None


Folder = Path | Objects


def write_whole(path: Folder, content: bytes | pa.Buffer) -> None:
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


def _reason(error: BaseException) -> str:
    """Return an error of pyarrow in one line, from where it says what is wrong."""
    return " ".join(str(error).split()).rpartition("AWS Error ")[2]


def place(results: str | Path) -> Folder:
    """Return the folder that ``--results`` names: a path, or a URI of a bucket that is there.

    Raises:
        StoreError: if no such storage is known or can be reached, or the bucket does not exist.
    """
    if isinstance(results, Path) or "://" not in results:
        return Path(results)
    parts = urlsplit(results)
    # Credentials may stand before the host, options behind the path. Neither is to be printed.
    uri = f"{parts.scheme}://{parts.netloc.rpartition('@')[2] if parts.password else parts.netloc}{parts.path}"
    if parts.scheme in ("gs", "gcs") and "retry_limit_seconds" not in parts.query:
        results += f"{'&' if parts.query else '?'}retry_limit_seconds={RETRY_SECONDS}"
    try:
        system, path = fs.FileSystem.from_uri(results)
    except (OSError, ValueError, ImportError) as error:
        raise StoreError(f"{uri}: cannot be reached: {_reason(error)}") from None
    if system.type_name == "local":
        return Path(path)
    if system.type_name == "s3":  # a URI cannot say how often to try; this is how pyarrow copies a file system
        copy, (options,) = system.__reduce__()
        attempts = fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
        # Without delayed open every small file would be an upload in parts: three requests, not one.
        system = copy({**options, "retry_strategy": attempts, "allow_delayed_open": True})
    folder = Objects(uri.rstrip("/"), path, system)
    if system.type_name in ("s3", "gcs", "abfs") and not replace(folder, path=path.partition("/")[0]).exists():
        raise StoreError(f"{folder}: no such bucket: create it, or choose another --results")
    return folder


class Claim:
    """What stands for a lock in object storage, which has none: an object of each driver's own, renewed as it runs.

    A driver writes its claim, then looks for others, and withdraws if there is one that has been renewed within
    `LEASE`. As storage lists an object from the moment it is written, of two drivers at least one sees the other: never
    do both go on, though both may be refused where they start in the same moment. Ages are differences between times
    that the storage itself noted, so that no clock of a driver matters.
    """

    def __init__(self, folder: Objects) -> None:
        self.folder = folder
        self.mine = folder / f"{CLAIM}{uuid.uuid4().hex[:16]}"
        self._over = threading.Event()
        self._renewing: threading.Thread | None = None
        self._held = False
        self._void: list[Objects] = []
        """Claims of drivers that were taken for dead."""

    def acquire(self) -> None:
        """Claim the folder.

        Raises:
            UserError: if another driver has a claim.
        """
        self._held = True
        try:
            self._write()
            now = self.mine.info().mtime
            for other in self.folder.glob(f"{CLAIM}*"):
                then = other.info().mtime
                if other == self.mine or then is None:  # withdrawn meanwhile
                    continue
                if (now - then).total_seconds() < LEASE:
                    raise UserError(
                        f"{self.folder}: another raybench run is writing here ({_driver(other)}): wait for it, stop it,"
                        f" or choose another --results; if it was killed, its claim ends {LEASE} s after that"
                    )
                self._void.append(other)
                other.unlink(missing_ok=True)
        except BaseException:
            self.release()
            raise
        self._over.clear()
        self._renewing = threading.Thread(target=self._renew, name="raybench-claim", daemon=True)
        self._renewing.start()

    def check(self) -> None:
        """Make sure that the claim stands.

        Raises:
            UserError: if another driver has taken over.
        """
        if not self.mine.exists():
            raise UserError(
                f"{self.folder}: another raybench run took over, for this one had been silent for {LEASE} s"
            )

    def release(self) -> None:
        self._over.set()
        if self._renewing:
            self._renewing.join()
            self._renewing = None
        if self._held:
            self._held = False
            with contextlib.suppress(StoreError):  # out of reach: the claim ends by itself
                self.mine.unlink(missing_ok=True)

    def _write(self) -> None:
        self.mine.write_bytes(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())

    def _renew(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(StoreError):  # perhaps the next time
                if not self.mine.exists():
                    return
                self._write()
                for void in self._void:  # one that was cut off while it renewed its claim would go on with it
                    void.unlink(missing_ok=True)


def _driver(claim: Objects) -> str:
    """Return whose claim it is, for people."""
    try:
        driver = json.loads(claim.read_bytes())
        return f"process {driver['pid']} on {driver['host']}"
    except (FileNotFoundError, ValueError):
        return "which is just ending"
