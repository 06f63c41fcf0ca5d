"""A dataset as a trial sees it: found or downloaded, decoded once, cached, and divided.

    source = load(settings, data_dir)       # every image of the dataset, a file of the cache that is mapped into memory
    data = trial_data(source, settings)     # the same arrays and the rows that one trial uses: no image is copied
    pixels, labels = data.train().gather(rows)

The user's mistakes raise `DataError`: one line that says what is missing, what to fetch and where to put it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raybench.datasets import (
    Dataset,
    Files,
    Images,
    Labels,
    Pixels,
    Read,
    Rows,
    balanced,
    check_same_size,
    locked,
    seeded,
)
from raybench.errors import DataError, UserError
from raybench.machine import memory
from raybench.registry import DATASETS
from raybench.settings import DatasetSettings, HeldOut

CACHE_VERSION = 1  # raise it when raybench.datasets decodes the same files to other pixels
STREAMED_SHARE = 0.1
"""Images that take more than this share of the memory are streamed, unless the suite says otherwise."""


@dataclass(frozen=True)
class Source:
    """A whole dataset, read-only: ``splits`` are "train", "test" and, if it has validation images of its own, "valid".

    ``fingerprint`` is 16 hexadecimal digits over pixels, labels and class names: the same wherever the files lie.
    """

    splits: dict[str, Images]
    classes: tuple[str, ...]
    fingerprint: str
    stored: Stored | None = None
    """Where the files of a dataset lie that is streamed: they go to other processes by name, and never as images."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.splits["train"].shape

    def open(self) -> Source:
        """Return itself: only what was `Stored` must be opened."""
        return self


def load(settings: DatasetSettings, data_dir: Path, *, download: bool = True) -> Source:
    """Return the dataset that ``settings`` name, decoding its files only where the cache has not seen them yet.

    The files are looked for in ``data_dir`` (in its ``settings.folder`` if that is set), then in the folder below it
    that has the dataset's name; failing both, they are downloaded into the latter if ``download`` allows it.
    Raises `DataError` for files that are missing or do not decode.
    """
    dataset: Dataset = DATASETS.get(settings.name)()
    place, files = _locate(dataset, settings, data_dir, download)

    def read() -> Read:
        return _checked(settings, *dataset.read(place, settings.image_size))

    if not files:
        if settings.stream:
            raise DataError(f"dataset.stream: {settings.name} is made in memory, and has no files to be streamed")
        return _in_memory(settings, *read())
    stats = [(os.path.relpath(file, place), _stat(file)) for file in files]
    # Of two folders, files may have the same names, sizes and times: some archives write one time for all.
    key = _hash(
        [CACHE_VERSION, dataset.version, settings.name, settings.image_size, str(place.resolve())],
        [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats],
    )
    entry = cache_folder() / f"{settings.name}-{key}"
    source = _cached(entry, settings, read)
    stream = settings.stream
    if stream is None:
        stream = sum(images.pixels.nbytes for images in source.splits.values()) > STREAMED_SHARE * memory()
    stored = Stored(entry, source.fingerprint, settings, data_dir.absolute())
    return replace(source, stored=stored) if stream else source


@dataclass(frozen=True)
class Stored:
    """A dataset in the cache, by name: what a process needs to open it, or, on a node that lacks it, to make it."""

    entry: Path
    fingerprint: str
    settings: DatasetSettings
    data_dir: Path

    def open(self) -> Source:
        """Return the dataset, checked once per process.

        Raises `DataError` where it is not in the cache and cannot be made from the same files as the driver's.
        """
        return _opened(self)


@functools.cache
def _opened(stored: Stored) -> Source:
    source = _open(stored.entry)  # this machine's own, or that of a disk which the nodes share
    if source is None or source.fingerprint != stored.fingerprint:
        source = load(stored.settings, stored.data_dir)
    if source.fingerprint != stored.fingerprint:
        raise DataError(
            f"{stored.data_dir} has other {stored.settings.name} images on this node (fingerprint {source.fingerprint})"
            f" than where the run was started ({stored.fingerprint}): give every node the same files"
        )
    return replace(source, stored=stored)


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


def _stat(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:  # a link to what is gone
        raise DataError(f"{file} cannot be read ({error.strerror})") from error


def _checked(settings: DatasetSettings, splits: dict[str, Images | Files], classes: tuple[str, ...]) -> Read:
    """Return what a dataset's `read` returned, once all is checked that can be before images are decoded."""
    for split, images in splits.items():
        labels, pixels = images.labels, images.pixels if isinstance(images, Images) else None
        if not labels.size or (
            pixels is not None and (pixels.dtype != np.uint8 or pixels.ndim != 4 or labels.shape != pixels.shape[:1])
        ):
            raise DataError(f"{split} of {settings.name} must be uint8 [N,H,W,C] with N labels, and N at least 1")
        if not 0 <= labels.min() <= labels.max() < len(classes):
            seen = f"labels from {labels.min()} to {labels.max()}"
            raise DataError(f"{split} of {settings.name} has {seen} for {len(classes)} classes")
    for split in ("train", "test"):
        if split not in splits:
            raise DataError(f"{settings.name} has no {split} images")
    return splits, tuple(classes)


def _blocks(settings: DatasetSettings, splits: dict[str, Images | Files]) -> Iterator[tuple[str, Iterator[Pixels]]]:
    """Yield every split and its pixels, block by block, of the size asked for and all of one size."""
    first: Pixels | None = None

    def checked(split: str, images: Images | Files) -> Iterator[Pixels]:
        nonlocal first
        count = 0
        for block in images.blocks(settings.image_size):
            first = block[0] if first is None else first
            check_same_size(first, block[0])
            count += len(block)
            yield block
        if count != len(images.labels):
            raise DataError(f"{split} of {settings.name} has {count} images for {len(images.labels)} labels")

    for split, images in splits.items():
        yield split, checked(split, images)


def _in_memory(settings: DatasetSettings, splits: dict[str, Images | Files], classes: tuple[str, ...]) -> Source:
    ready = {}
    for split, blocks in _blocks(settings, splits):
        labels = _read_only(splits[split].labels.astype(np.int64))
        ready[split] = Images(_read_only(np.concatenate(list(blocks))), labels)
    return Source(ready, classes, _fingerprint(ready, classes))


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


def _cached(entry: Path, settings: DatasetSettings, read: Callable[[], Read]) -> Source:
    """Return what the folder ``entry`` holds, filling it first if it is absent or damaged."""
    if source := _open(entry):
        return source
    with filling(entry.parent):
        # Another process may have filled it while this one waited.
        return _open(entry) or _built(entry, settings, *read())


def _open(entry: Path) -> Source | None:
    """Map a cached dataset into memory; None where it is absent, or is not what was saved."""
    try:
        about = json.loads((entry / "source.json").read_text(encoding="utf-8"))
        source = _mapped(entry, about["splits"], about["classes"])
        # A tenth of a second for 150 MB, so that nobody trains on pixels that a crash or a full disk cut short.
        return source if source.fingerprint == about["fingerprint"] else None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _mapped(folder: Path, splits: Iterable[str], classes: Sequence[str]) -> Source:
    """Map the arrays of ``folder`` into memory and read them once, for their fingerprint."""
    # asarray: pickle would copy the bytes of an np.memmap, but Ray shares those of a plain array that lies over it.
    images = {
        split: Images(*(np.asarray(np.load(folder / f"{split}-{part}.npy", "r")) for part in ("pixels", "labels")))
        for split in splits
    }
    return Source(images, tuple(classes), _fingerprint(images, tuple(classes)))


def _built(
    entry: Path, settings: DatasetSettings, splits: dict[str, Images | Files], classes: tuple[str, ...]
) -> Source:
    """Write beside, block by block, then rename: whoever opens ``entry`` finds all of it or nothing."""
    beside = entry.with_name(f"{entry.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)  # left by a process that was killed
    beside.mkdir()
    for split, blocks in _blocks(settings, splits):
        labels = splits[split].labels.astype(np.int64)
        np.save(beside / f"{split}-labels.npy", labels)
        _write(beside / f"{split}-pixels.npy", len(labels), blocks)
    source = _mapped(beside, splits, classes)
    about = {"splits": list(splits), "classes": classes, "fingerprint": source.fingerprint}
    (beside / "source.json").write_text(json.dumps(about), encoding="utf-8")
    shutil.rmtree(entry, ignore_errors=True)  # there only if it is damaged
    beside.rename(entry)
    return source


def _write(path: Path, count: int, blocks: Iterator[Pixels]) -> None:
    """Write ``blocks``, which have ``count`` images together, as the one array that `np.save` would have written."""
    with open(path, "wb") as file:
        for number, block in enumerate(blocks):
            if number == 0:
                shape = (count, *block.shape[1:])
                header = {"descr": block.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(block).data)


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
    streamed: bool = False
    """Whether ``images`` are a file, read where they are needed, and not to be held in memory as a whole."""
    origin: tuple[str, str] | None = None
    """Fingerprint of the dataset and name of the split that ``images`` are: None where they were changed since."""

    def __len__(self) -> int:
        return len(self.index)

    def gather(self, rows: Rows | slice) -> tuple[Pixels, Labels]:
        """Return copies of the pixels [n,H,W,C] and labels [n] of the part's images number ``rows``."""
        index = self.index[rows]
        return self.images.pixels[index], self.images.labels[index]

    def __getitem__(self, rows: slice) -> Pixels:
        """Return copies of the pixels alone, which is what augmentations are fitted on."""
        return self.gather(rows)[0]


@dataclass(frozen=True)
class TrialData:
    """What one trial sees of a dataset. All trials share the ``pools`` (on Ray without copies), which are read-only."""

    pools: dict[str, Images]
    division: Division
    classes: tuple[str, ...]
    fingerprint: str
    streamed: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.pools["train"].shape

    def train(self) -> Part:
        return self._part("train", self.division.train)

    def validation(self) -> Part:
        return self._part(*self.division.validation)

    def test(self) -> Part:
        return self._part("test", self.division.test)

    def _part(self, split: str, index: Rows) -> Part:
        return Part(self.pools[split], index, self.streamed, (self.fingerprint, split))


def trial_data(source: Source, settings: DatasetSettings) -> TrialData:
    """Divide ``source`` for a trial, without copying an image. Raises `DataError` as `divide` does."""
    division = divide(source, settings)
    pools = {split: source.splits[split] for split in ("train", division.validation[0], "test")}
    return TrialData(pools, division, source.classes, source.fingerprint, source.stored is not None)


# ---------------------------------------------------------------------------------------------------------------------
# Images of another dataset, for a network that was trained on this one


def sized(outside: DatasetSettings, shape: tuple[int, int, int]) -> DatasetSettings:
    """Return the settings of the images from outside, brought to the size of the trial's own of ``shape`` (C, H, W)."""
    _, height, width = shape
    if outside.image_size or height != width:
        return outside
    return outside.model_copy(update={"image_size": height})


def in_shape(part: Part, shape: tuple[int, int, int]) -> Part:
    """Return images of another dataset with the channels of ``shape`` (C, H, W): grey ones repeated, colours weighted
    as television does (ITU-R 601-2). Their size must be that of ``shape`` already.

    Raises:
        UserError: if it is not.
    """
    channels, height, width = shape
    pixels, labels = part.gather(slice(None))
    if pixels.shape[1:3] != (height, width):
        raise UserError(
            f"ood.dataset: its images are {pixels.shape[2]}x{pixels.shape[1]} pixels, those of the trial"
            f" {width}x{height}: set ood.dataset.image_size"
        )
    return Part(Images(_with_channels(pixels, channels), labels), np.arange(len(labels)))


def _with_channels(pixels: Pixels, channels: int) -> Pixels:
    if pixels.shape[3] == channels:
        return pixels
    if channels == 1:
        weighted = pixels @ np.array([299, 587, 114])
        return ((weighted + 500) // 1000).astype(np.uint8)[..., None]
    return np.repeat(pixels, channels, axis=3)
