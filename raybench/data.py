"""A dataset as a trial sees it: found or downloaded, decoded once, cached, and divided.

    source = load(settings, data_dir)       # every image of the dataset, mapped into memory from the cache
    data = trial_data(source, settings)     # the same arrays and the rows that one trial uses: no image is copied
    pixels, labels = data.train().gather(rows)

The user's mistakes raise `DataError`: one line that says what is missing, what to fetch and where to put it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raybench.datasets import Dataset, Images, Labels, Pixels, Rows, balanced, check_same_size, locked, resized, seeded
from raybench.errors import DataError
from raybench.registry import DATASETS
from raybench.settings import DatasetSettings, HeldOut

CACHE_VERSION = 1  # raise it when raybench.datasets decodes the same files to other pixels


@dataclass(frozen=True)
class Source:
    """A whole dataset, read-only: ``splits`` are "train", "test" and, if it has validation images of its own, "valid".

    ``fingerprint`` is 16 hexadecimal digits over pixels, labels and class names: the same wherever the files lie.
    """

    splits: dict[str, Images]
    classes: tuple[str, ...]
    fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.splits["train"].shape


def load(settings: DatasetSettings, data_dir: Path, cache_dir: Path | None = None, download: bool = True) -> Source:
    """Return the dataset that ``settings`` name, decoding its files only where the cache has not seen them yet.

    The files are looked for in ``data_dir`` (in its ``settings.folder`` if that is set), then in the folder below it
    that has the dataset's name; failing both, they are downloaded into the latter if ``download`` allows it.
    ``cache_dir`` defaults to `cache_folder`. Raises `DataError` for files that are missing or do not decode.
    """
    dataset: Dataset = DATASETS.get(settings.name)()
    place, files = _locate(dataset, settings, data_dir, download)

    def decode() -> Source:
        return _source(settings, *dataset.read(place, settings.image_size))

    if not files:
        return decode()
    stats = [(os.path.relpath(file, place), file.stat()) for file in files]
    key = _hash(
        [CACHE_VERSION, dataset.version, settings.name, settings.image_size],
        [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
    )
    return _cached((cache_dir or cache_folder()) / f"{settings.name}-{key}", decode)


def cache_folder() -> Path:
    """Where decoded images are kept: ``$RAYBENCH_CACHE``, or ``~/.cache/raybench``."""
    return Path(os.environ.get("RAYBENCH_CACHE") or "~/.cache/raybench").expanduser()


def filling(folder: Path) -> AbstractContextManager[None]:
    """Let one process at a time fill ``folder``, which lies in the cache."""
    return locked(folder, "set RAYBENCH_CACHE to a folder that can be written and has room", OSError)


def _locate(dataset: Dataset, settings: DatasetSettings, data_dir: Path, download: bool) -> tuple[Path, list[Path]]:
    """Return the folder that holds the dataset, and its files."""
    root = data_dir / (settings.folder or "")
    own = root / settings.name
    missing = []
    for place in (root, own):
        try:
            return place, dataset.files(place)
        except DataError as error:
            missing.append(error)
    if not (download and dataset.downloads):
        raise missing[0]
    dataset.fetch(own)
    return own, dataset.files(own)


def _source(settings: DatasetSettings, splits: dict[str, Images], classes: tuple[str, ...]) -> Source:
    """Check what a dataset's `read` returned, bring it to the size asked for, and make it read-only."""
    ready: dict[str, Images] = {}
    for split, images in splits.items():
        pixels, labels = images.pixels, images.labels.astype(np.int64)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or labels.shape != pixels.shape[:1] or not labels.size:
            raise DataError(f"{split} of {settings.name} must be uint8 [N,H,W,C] with N labels, and N at least 1")
        if not 0 <= labels.min() <= labels.max() < len(classes):
            seen = f"labels from {labels.min()} to {labels.max()}"
            raise DataError(f"{split} of {settings.name} has {seen} for {len(classes)} classes")
        ready[split] = Images(_read_only(resized(pixels, settings.image_size)), _read_only(labels))
        check_same_size(next(iter(ready.values())).pixels[0], ready[split].pixels[0])
    for split in ("train", "test"):
        if split not in ready:
            raise DataError(f"{settings.name} has no {split} images")
    return Source(ready, tuple(classes), _fingerprint(ready, classes))


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array = np.ascontiguousarray(array).view()
    array.flags.writeable = False
    return array


def _fingerprint(splits: dict[str, Images], classes: tuple[str, ...]) -> str:
    parts: list[Any] = [classes]
    for split, images in sorted(splits.items()):
        parts += [split, images.pixels.shape, images.pixels, images.labels]
    return _hash(*parts)


def _hash(*parts: Any) -> str:
    """Return 16 hexadecimal digits that depend on nothing but the parts: arrays by their bytes, the rest as JSON."""
    sha = hashlib.sha256()
    for part in parts:
        is_array = isinstance(part, np.ndarray)
        sha.update(part.astype(part.dtype.newbyteorder("<"), copy=False) if is_array else json.dumps(part).encode())
    return sha.hexdigest()[:16]


def _cached(entry: Path, decode: Callable[[], Source]) -> Source:
    """Return what the folder ``entry`` holds, filling it first if it is absent or damaged."""
    if source := _open(entry):
        return source
    with filling(entry.parent):
        source = _open(entry)  # another process may have filled it while this one waited
        if source is None:
            source = decode()
            _save(entry, source)
        return source


def _open(entry: Path) -> Source | None:
    """Map a cached dataset into memory; None where it is absent, or is not what was saved."""
    try:
        about = json.loads((entry / "source.json").read_text(encoding="utf-8"))
        # asarray: pickle would copy the bytes of an np.memmap, but Ray shares those of a plain array that lies over it.
        splits = {
            split: Images(*(np.asarray(np.load(entry / f"{split}-{part}.npy", "r")) for part in ("pixels", "labels")))
            for split in about["splits"]
        }
        source = Source(splits, tuple(about["classes"]), about["fingerprint"])
        # A tenth of a second for 150 MB, so that nobody trains on pixels that a crash or a full disk cut short.
        return source if _fingerprint(splits, source.classes) == source.fingerprint else None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _save(entry: Path, source: Source) -> None:
    """Write beside, then rename: whoever opens ``entry`` finds all of it or nothing."""
    beside = entry.with_name(f"{entry.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)  # left by a process that was killed
    beside.mkdir()
    for split, images in source.splits.items():
        np.save(beside / f"{split}-pixels.npy", images.pixels)
        np.save(beside / f"{split}-labels.npy", images.labels)
    about = {"splits": list(source.splits), "classes": source.classes, "fingerprint": source.fingerprint}
    (beside / "source.json").write_text(json.dumps(about), encoding="utf-8")
    shutil.rmtree(entry, ignore_errors=True)  # there only if it is damaged
    beside.rename(entry)


@dataclass(frozen=True)
class Division:
    """Which rows a trial uses: of "train", of "test", and for validation the split that they lie in and the rows.

    Rows ascend, so that the order of training is decided by the trial alone.
    """

    train: Rows
    validation: tuple[str, Rows]
    test: Rows


def divide(source: Source, settings: DatasetSettings) -> Division:
    """Draw the rows that ``settings`` ask for, from ``settings.seed`` alone.

    Held-out validation images are the same share of every class, to within an image, and do not depend on
    ``train_size``. Subsets have the same number of every class, to within one while a class lasts, and a smaller one
    lies within a larger one. Raises `DataError` for more images than there are.
    """
    labels = {split: images.labels for split, images in source.splits.items()}

    def cut(split: str, rows: Rows, size: int | None) -> Rows:
        if size is None:
            return rows
        if size > len(rows):
            raise DataError(f"dataset.{split}_size is {size}, but {settings.name} leaves {len(rows)} {split} images")
        return np.sort(rows[balanced(labels[split][rows], seeded(settings.seed, split))[:size]])

    train, test = np.arange(len(labels["train"])), cut("test", np.arange(len(labels["test"])), settings.test_size)
    if isinstance(settings.validation, HeldOut):
        size = settings.validation.size or round((settings.validation.fraction or 0) * len(train))
        if not 0 < size < len(train):
            raise DataError(
                f"dataset.validation holds out {size} of the {len(train)} training images of {settings.name}"
            )
        held_out = _stratified(labels["train"], size, seeded(settings.seed, "validation"))
        train, validation = np.setdiff1d(train, held_out), ("train", held_out)
    elif settings.validation == "test":
        validation = "test", test
    elif "valid" in labels:
        validation = "valid", np.arange(len(labels["valid"]))
    else:
        raise DataError(f"{settings.name} has no validation images of its own: set dataset.validation to {{size: N}}")
    return Division(cut("train", train, settings.train_size), validation, test)


def digest(division: Division) -> str:
    """Return 16 hexadecimal digits for the training rows, to keep under it what is fitted on those images."""
    return _hash(division.train)


def _stratified(labels: Labels, size: int, rng: np.random.Generator) -> Rows:
    """Draw ``size`` rows with every class's share, rounded up or down: each N/size-th of the rows sorted by class."""
    drawn = rng.permutation(len(labels))
    by_class = drawn[np.argsort(labels[drawn], kind="stable")]
    return np.sort(by_class[(np.arange(size) * len(labels) + rng.integers(len(labels))) // size])


@dataclass(frozen=True)
class Part:
    """Some rows of a split: what a trial trains on, validates on or tests on."""

    images: Images
    index: Rows

    def __len__(self) -> int:
        return len(self.index)

    def gather(self, rows: Rows | slice) -> tuple[Pixels, Labels]:
        """Return copies of the pixels [n,H,W,C] and labels [n] of the part's images number ``rows``."""
        index = self.index[rows]
        return self.images.pixels[index], self.images.labels[index]


@dataclass(frozen=True)
class TrialData:
    """What one trial sees of a dataset. All trials share the ``pools`` (on Ray without copies), which are read-only."""

    pools: dict[str, Images]
    division: Division
    classes: tuple[str, ...]
    fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.pools["train"].shape

    def train(self) -> Part:
        return Part(self.pools["train"], self.division.train)

    def validation(self) -> Part:
        split, index = self.division.validation
        return Part(self.pools[split], index)

    def test(self) -> Part:
        return Part(self.pools["test"], self.division.test)


def trial_data(source: Source, settings: DatasetSettings) -> TrialData:
    """Divide ``source`` for a trial, without copying an image. Raises `DataError` as `divide` does."""
    division = divide(source, settings)
    pools = {split: source.splits[split] for split in ("train", division.validation[0], "test")}
    return TrialData(pools, division, source.classes, source.fingerprint)
