"""Images as uint8 arrays: found or downloaded, decoded once, and divided into training, validation and test images.

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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, ImageOps

from raybench.errors import DataError
from raybench.registry import DATASETS
from raybench.settings import DatasetSettings, HeldOut

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
Rows = NDArray[np.int64]

CACHE_VERSION = 1  # raise it when the code below decodes the same files to other pixels
SPLITS = {"train": ("train",), "valid": ("val", "valid", "validation"), "test": ("test",)}  # and how folders call them


@dataclass(frozen=True)
class Images:
    """``pixels`` uint8 [N,H,W,C] (three channels, or one if grey) and ``labels`` int64 [N], indices of class names."""

    pixels: Pixels
    labels: Labels

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, height, width, channels = self.pixels.shape
        return channels, height, width


Decoded = tuple[dict[str, Images], tuple[str, ...]]


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
    if not (download and isinstance(dataset, Torchvision)):
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
        ready[split] = Images(_read_only(_resized(pixels, settings.image_size)), _read_only(labels))
        _check_same_size(next(iter(ready.values())).pixels[0], ready[split].pixels[0])
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
    with _locked(entry.parent, "set RAYBENCH_CACHE to a folder with room for the decoded images", OSError):
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


@contextmanager
def _locked(folder: Path, remedy: str, *failures: type[Exception]) -> Iterator[None]:
    """Let one process at a time fill ``folder``; the others wait, and should then look whether it is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            yield
    except failures as error:
        raise DataError(f"cannot fill {folder} ({' '.join(str(error).split())}): {remedy}") from error


class Dataset:
    """Which files a dataset is made of, and how they become arrays. A module named under ``imports`` can add one:

    @DATASETS.register("dots")
    class Dots(Dataset):
        def files(self, place):
            if not (place / "dots.npz").exists():
                raise DataError(f"no dots.npz in {place}: get it from https://example.org/dots.npz")
            return [place / "dots.npz"]

        def read(self, place, image_size):
            with np.load(place / "dots.npz") as dots:
                return {s: Images(dots[s], dots[s + "_labels"]) for s in ("train", "test")}, ("few", "many")

    Whoever changes ``read`` should raise ``version``, so that what was cached before is read again.
    """

    version = 1

    def files(self, place: Path) -> list[Path]:
        """Return the files in the folder ``place``, or [] for data that a package brings, which is not cached.

        Raises `DataError` where one is missing.
        """
        raise NotImplementedError

    def read(self, place: Path, image_size: int | None) -> Decoded:
        """Decode the files to images for "train", "test" and perhaps "valid", and the names of the classes.

        ``image_size`` is for images that differ in size; equal ones may be left as they are, for `load` to resize.
        """
        raise NotImplementedError


class Digits(Dataset):
    """scikit-learn's 1,797 handwritten digits of 8x8 grey pixels; nothing to download.

    They have no official test set: 500 images, 50 of each digit, are drawn here once and for all, and 1,297 train.
    """

    def files(self, place: Path) -> list[Path]:
        return []

    def read(self, place: Path, image_size: int | None) -> Decoded:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        drawn = _balanced(digits.target, _rng(0, "digits"))
        rows = {"train": np.sort(drawn[500:]), "test": np.sort(drawn[:500])}
        return {split: Images(pixels[at], digits.target[at]) for split, at in rows.items()}, tuple("0123456789")


class ImageFolder(Dataset):
    """Your own image files: ``train/``, ``test/`` and perhaps ``valid/`` with a folder per class. They become RGB."""

    def files(self, place: Path) -> list[Path]:
        return [file for classes in self._tree(place).values() for files in classes.values() for file in files]

    def read(self, place: Path, image_size: int | None) -> Decoded:
        tree, splits = self._tree(place), {}
        for split, classes in tree.items():
            encoded = {str(file): file for files in classes.values() for file in files}
            labels = np.repeat(np.arange(len(classes)), [len(files) for files in classes.values()])
            splits[split] = Images(_decoded(encoded, "RGB", image_size), labels)
        return splits, tuple(tree["train"])

    def _tree(self, place: Path) -> dict[str, dict[str, list[Path]]]:
        """Return split -> class -> image files, all in the order of their names."""
        tree = {}
        for split, names in SPLITS.items():
            folder = next((place / name for name in names if (place / name).is_dir()), None)
            classes = {path.name: _visible(path) for path in _visible(folder) if path.is_dir()} if folder else {}
            if any(classes.values()):
                tree[split] = classes
            elif split != "valid":
                raise DataError(
                    f"no images in {place / split}: put a folder of them per class there, or set dataset.folder"
                )
        for split, classes in tree.items():
            if differing := sorted(tree["train"].keys() ^ classes.keys()):
                raise DataError(
                    f"train and {split} in {place} differ in their classes: one lacks {', '.join(differing)}"
                )
        return tree


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


class ParquetImages(Dataset):
    """Your own ``train*.parquet``, ``test*.parquet`` and perhaps ``valid*.parquet``, as the Hugging Face hub has them.

    Columns: a struct with the encoded image in ``bytes``, and whole numbers called ``label``. Images become RGB.
    """

    mode = "RGB"
    classes: tuple[str, ...] = ()

    def files(self, place: Path) -> list[Path]:
        if shards := self._shards(place):
            return [path for paths in shards.values() for path in paths]
        raise DataError(f"no train*.parquet and test*.parquet in {place}: put them there, or set dataset.folder")

    def read(self, place: Path, image_size: int | None) -> Decoded:
        splits: dict[str, Images] = {}
        names: tuple[str, ...] = ()
        for split, paths in self._shards(place).items():
            encoded: dict[str, BytesIO] = {}
            labels = []
            for path in paths:
                images, numbers, names_here = _parquet(path)
                encoded |= {f"row {row} of {path}": BytesIO(image or b"") for row, image in enumerate(images)}
                labels.append(numbers)
                names = names or names_here
            if not encoded:
                raise DataError(f"no rows in {paths[0]}")
            splits[split] = Images(_decoded(encoded, self.mode, image_size), np.concatenate(labels))
        count = max(int(images.labels.max()) for images in splits.values()) + 1
        return splits, names or self.classes or tuple(str(label) for label in range(count))

    def _shards(self, place: Path) -> dict[str, list[Path]]:
        """Return the Parquet files of each split, in ``place`` or where the hub keeps them below it; {} if none."""
        for folder in (place, place / "data", place / "plain_text"):
            shards = {split: sorted(folder.glob(f"{names[0]}*.parquet")) for split, names in SPLITS.items()}
            if shards["train"] and shards["test"]:
                return {split: paths for split, paths in shards.items() if paths}
        return {}


def _parquet(path: Path) -> tuple[list[bytes | None], Labels, tuple[str, ...]]:
    """Return the encoded images of a Parquet file, their labels, and the names of the classes if it tells them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        structs = [field for field in schema if pa.types.is_struct(field.type)]
        image = next(field.name for field in structs if field.type.get_field_index("bytes") >= 0)
        label = next(name for name in ("label", "fine_label", "labels") if name in schema.names)
        table = file.read(columns=[image, label])
        labels = table[label].to_numpy().astype(np.int64, casting="safe")
    except StopIteration:
        raise DataError(f"{path} needs a struct column with `bytes` (the image) and a column `label`") from None
    except (pa.ArrowException, OSError, TypeError) as error:
        raise DataError(f"{path} does not read as Parquet with images and whole numbers as labels") from error
    images = [row for chunk in table[image].chunks for row in chunk.field("bytes").to_pylist()]
    about = json.loads((schema.metadata or {}).get(b"huggingface", "{}"))
    names = about.get("info", {}).get("features", {}).get(label, {}).get("names")
    return images, labels, tuple(names or ())


class Torchvision(ParquetImages):
    """A dataset that torchvision can download (to a class of the same name), or the same images as Parquet files.

    ``url``: where it comes from (braces as in a shell); ``folder`` and ``members``: the files that torchvision reads.
    """

    url: str
    folder: str
    members: tuple[str, ...]

    def files(self, place: Path) -> list[Path]:
        if self._shards(place):
            return super().files(place)
        files = [place / self.folder / name for name in self.members]
        for file in files:
            if not file.exists():
                raise DataError(f"no {file} (nor train*.parquet and test*.parquet in {place}): {self._by_hand(place)}")
        return files

    def read(self, place: Path, image_size: int | None) -> Decoded:
        if self._shards(place):
            splits, names = super().read(place, image_size)
            if len(names) != len(self.classes):
                raise DataError(f"{place} has {len(names)} classes where {type(self).__name__} has {len(self.classes)}")
            return splits, names
        try:
            return {split: self._split(place, split) for split in ("train", "test")}, self.classes
        except (OSError, RuntimeError, ValueError, TypeError, LookupError, AssertionError) as error:
            raise DataError(f"{type(self).__name__} in {place} is damaged: {self._by_hand(place)}") from error

    def fetch(self, place: Path) -> None:
        """Download into ``place``, checked by torchvision's checksums; one of several processes does it for all."""
        with _locked(place, self._by_hand(place), OSError, RuntimeError, HTTPException):
            if not all((place / self.folder / name).exists() for name in self.members):
                for split in ("train", "test"):
                    self._split(place, split, download=True)

    def _by_hand(self, place: Path) -> str:
        return f"fetch {self.url} and unpack it to have {', '.join(self.members)} in {place / self.folder}"

    def _split(self, place: Path, split: str, download: bool = False) -> Images:
        from torchvision import datasets

        part = getattr(datasets, type(self).__name__)(place, train=split == "train", download=download)
        pixels = np.asarray(part.data)
        return Images(pixels.reshape(*pixels.shape[:3], -1), np.asarray(part.targets))


class CIFAR10(Torchvision):
    """50,000 + 10,000 colour photographs of 32x32 pixels, 10 classes."""

    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    folder = "cifar-10-batches-py"
    members = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")


_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""


class CIFAR100(Torchvision):
    """50,000 + 10,000 colour photographs of 32x32 pixels, 100 classes."""

    classes = tuple(_CIFAR100.split())
    url = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    folder = "cifar-100-python"
    members = ("train", "test", "meta")


class SVHN(Torchvision):
    """73,257 + 26,032 colour photographs of house numbers, 32x32 pixels, 10 digits in unequal numbers."""

    classes = tuple("0123456789")
    url = "http://ufldl.stanford.edu/housenumbers/{train,test}_32x32.mat"
    folder = ""
    members = ("train_32x32.mat", "test_32x32.mat")

    def _split(self, place: Path, split: str, download: bool = False) -> Images:
        from torchvision import datasets

        part = datasets.SVHN(place, split=split, download=download)
        return Images(part.data.transpose(0, 2, 3, 1), part.labels)


class MNIST(Torchvision):
    """60,000 + 10,000 handwritten digits of 28x28 grey pixels."""

    mode = "L"
    classes = tuple("0123456789")
    url = "https://ossci-datasets.s3.amazonaws.com/mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz"
    folder = "MNIST/raw"
    members = tuple(f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


class FashionMNIST(MNIST):
    """60,000 + 10,000 pieces of clothing, 28x28 grey pixels, 10 classes."""

    classes = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    url = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz"
    folder = "FashionMNIST/raw"


def _decoded(encoded: Mapping[str, Path | BytesIO], mode: str, image_size: int | None) -> Pixels:
    """Decode image files, each under the name that a message gives it, into one array."""
    names, files = list(encoded), list(encoded.values())

    def decode(row: int) -> Pixels:
        try:
            with Image.open(files[row]) as image:
                image.load()
        except Exception as error:  # Pillow lets out whatever its decoders raise: OSError, SyntaxError, struct.error
            raise DataError(f"{names[row]} is not a readable image ({type(error).__name__})") from error
        if image.mode[0] in "IF":  # Pillow would clip nearly every pixel to white
            raise DataError(f"{names[row]} has more than 8 bits per channel: convert it to 8")
        return _sized(image.convert(mode), image_size)

    return _stacked(len(files), decode)


def _resized(pixels: Pixels, image_size: int | None) -> Pixels:
    if image_size is None or pixels.shape[1:3] == (image_size, image_size):
        return pixels
    flat = pixels[..., 0] if pixels.shape[3] == 1 else pixels  # Pillow's grey images have no axis of channels
    return _stacked(len(flat), lambda row: _sized(Image.fromarray(flat[row]), image_size))


def _sized(image: Image.Image, image_size: int | None) -> Pixels:
    """Return [H,W,C]: the centre square brought to ``image_size`` by an antialiased bilinear filter if that is set."""
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, -1)


def _stacked(count: int, decode: Callable[[int], Pixels]) -> Pixels:
    """Return ``decode(row)`` of every row as one array, worked out in threads (Pillow lets go of Python's lock)."""
    first = decode(0)
    pixels = np.empty((count, *first.shape), np.uint8)
    pixels[0] = first

    def fill(start: int) -> None:
        for row in range(start, min(start + block, count)):
            image = decode(row)
            _check_same_size(first, image)
            pixels[row] = image

    block = 100  # handing over every small image by itself would cost as much as decoding it
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(fill, range(1, count, block)):
            pass
    return pixels


def _check_same_size(one: Pixels, other: Pixels) -> None:
    if one.shape != other.shape:
        sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (one, other))
        raise DataError(f"the images differ in size ({sizes} pixels): set dataset.image_size to bring them to one")


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
        return np.sort(rows[_balanced(labels[split][rows], _rng(settings.seed, split))[:size]])

    train, test = np.arange(len(labels["train"])), cut("test", np.arange(len(labels["test"])), settings.test_size)
    if isinstance(settings.validation, HeldOut):
        size = settings.validation.size or round((settings.validation.fraction or 0) * len(train))
        if not 0 < size < len(train):
            raise DataError(
                f"dataset.validation holds out {size} of the {len(train)} training images of {settings.name}"
            )
        held_out = _stratified(labels["train"], size, _rng(settings.seed, "validation"))
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


def _rng(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng(int(hashlib.sha256(f"{seed}/{purpose}".encode()).hexdigest(), 16))


def _stratified(labels: Labels, size: int, rng: np.random.Generator) -> Rows:
    """Draw ``size`` rows with every class's share, rounded up or down: each N/size-th of the rows sorted by class."""
    drawn = rng.permutation(len(labels))
    by_class = drawn[np.argsort(labels[drawn], kind="stable")]
    return np.sort(by_class[(np.arange(size) * len(labels) + rng.integers(len(labels))) // size])


def _balanced(labels: Labels, rng: np.random.Generator) -> Rows:
    """Return all rows in a drawn order: one of every class, then a second one of every class, while a class lasts."""
    drawn = rng.permutation(len(labels))
    turn = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        at = np.flatnonzero(labels[drawn] == label)
        turn[at] = np.arange(len(at))
    return drawn[np.argsort(turn, kind="stable")]


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
