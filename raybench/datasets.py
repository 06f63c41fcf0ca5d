"""Where images come from: which files a dataset is made of, and how they become uint8 arrays."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, ImageOps

from raybench.errors import DataError

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
Rows = NDArray[np.int64]

T = TypeVar("T")

BLOCK = 64
"""Images that are decoded at a time: handing over every small one by itself would cost as much as decoding it."""
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

    def blocks(self, image_size: int | None) -> Iterator[Pixels]:
        """Yield the pixels some images at a time, brought to ``image_size`` if that is set."""
        if image_size is None or self.pixels.shape[1:3] == (image_size, image_size):
            return (self.pixels[start : start + BLOCK] for start in range(0, len(self.pixels), BLOCK))
        flat = self.pixels[..., 0] if self.pixels.shape[3] == 1 else self.pixels  # Pillow's grey has no channels' axis
        return _blocks(flat, lambda image: _sized(Image.fromarray(image), image_size))


@dataclass(frozen=True)
class Files:
    """Images that are still encoded: decoded block by block, for all of them may be more than memory holds."""

    encoded: Iterable[tuple[str, Path | BytesIO]]
    """Every image's file, under the name that a message gives it; gone through once."""
    labels: Labels
    mode: str
    """Pillow's name of what images become: "RGB", or "L" for grey."""

    def blocks(self, image_size: int | None) -> Iterator[Pixels]:
        return _blocks(self.encoded, lambda named: _decoded(*named, self.mode, image_size))


Read = tuple[dict[str, Images | Files], tuple[str, ...]]


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
    downloads = False
    """Whether `fetch` can get the files."""

    def files(self, place: Path) -> list[Path]:
        """Return the files in the folder ``place``, or [] for data that a package brings, which is not cached.

        Raises `DataError` where one is missing.
        """
        raise NotImplementedError

    def read(self, place: Path, image_size: int | None) -> Read:
        """Return the images of "train", "test" and perhaps "valid", and the names of the classes.

        ``image_size`` is for images that differ in size; equal ones may be left as they are, for `load` to resize.
        `Files`, not decoded yet, need no memory for all images at once.
        """
        raise NotImplementedError

    def fetch(self, place: Path) -> None:
        """Download the files into ``place``; asked only of a dataset that ``downloads``."""
        raise NotImplementedError


class Digits(Dataset):
    """scikit-learn's 1,797 handwritten digits of 8x8 grey pixels; nothing to download.

    They have no official test set: 500 images, 50 of each digit, are drawn here once and for all, and 1,297 train.
    """

    def files(self, place: Path) -> list[Path]:
        return []

    def read(self, place: Path, image_size: int | None) -> Read:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        drawn = balanced(digits.target, seeded(0, "digits"))
        rows = {"train": np.sort(drawn[500:]), "test": np.sort(drawn[:500])}
        return {split: Images(pixels[at], digits.target[at]) for split, at in rows.items()}, tuple("0123456789")


class ImageFolder(Dataset):
    """Your own image files: ``train/``, ``test/`` and perhaps ``valid/`` with a folder per class. They become RGB."""

    def files(self, place: Path) -> list[Path]:
        return [file for classes in self._tree(place).values() for files in classes.values() for file in files]

    def read(self, place: Path, image_size: int | None) -> Read:
        tree = self._tree(place)
        splits: dict[str, Images | Files] = {}
        for split, classes in tree.items():
            named = ((str(file), file) for file in chain.from_iterable(classes.values()))
            labels = np.repeat(np.arange(len(classes)), [len(files) for files in classes.values()])
            splits[split] = Files(named, labels, "RGB")
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

    def read(self, place: Path, image_size: int | None) -> Read:
        splits: dict[str, Images | Files] = {}
        told: dict[tuple[str, ...], Path] = {}
        for split, paths in self._shards(place).items():
            shards = [_parquet(path) for path in paths]
            labels = np.concatenate([shard.labels for shard in shards])
            if not labels.size:
                raise DataError(f"no rows in {paths[0]}")
            splits[split] = Files(chain.from_iterable(shard.images() for shard in shards), labels, self.mode)
            for shard in shards:
                if shard.names:
                    told.setdefault(shard.names, shard.path)
        count = max(int(images.labels.max()) for images in splits.values()) + 1
        if len(told) > 1:  # the same number would be another class
            files = " and ".join(map(str, told.values()))
            raise DataError(f"{files} differ in the names or the order of their classes")
        return splits, next(iter(told), self.classes) or tuple(str(label) for label in range(count))

    def _shards(self, place: Path) -> dict[str, list[Path]]:
        """Return the Parquet files of each split, in ``place`` or where the hub keeps them below it; {} if none."""
        for folder in (place, place / "data", place / "plain_text"):
            shards = {split: sorted(folder.glob(f"{names[0]}*.parquet")) for split, names in SPLITS.items()}
            if shards["train"] and shards["test"]:
                return {split: paths for split, paths in shards.items() if paths}
        return {}


@dataclass(frozen=True)
class _Shard:
    """A Parquet file with images: their column is read row group by row group, and only when it is asked for."""

    path: Path
    image: str
    labels: Labels
    names: tuple[str, ...]
    """Of the classes, if the file tells them."""

    def images(self) -> Iterator[tuple[str, BytesIO]]:
        with _reading(self.path) as file:
            row = 0
            for batch in file.iter_batches(BLOCK, columns=[self.image]):
                for image in batch[self.image].field("bytes"):
                    yield f"row {row} of {self.path}", BytesIO(image.as_py() or b"")
                    row += 1


def _parquet(path: Path) -> _Shard:
    import pyarrow as pa

    try:
        with _reading(path) as file:
            schema = file.schema_arrow
            structs = [field for field in schema if pa.types.is_struct(field.type)]
            image = next(field.name for field in structs if field.type.get_field_index("bytes") >= 0)
            label = next(name for name in ("label", "fine_label", "labels") if name in schema.names)
            labels = file.read(columns=[label])[label].to_numpy().astype(np.int64, casting="safe")
    except StopIteration:
        raise DataError(f"{path} needs a struct column with `bytes` (the image) and a column `label`") from None
    about = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        names = json.loads(about).get("info", {}).get("features", {}).get(label, {}).get("names")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} has metadata under `huggingface` that are not as the hub writes them") from error
    return _Shard(path, image, labels, tuple(names or ()))


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Open a Parquet file; whatever is wrong with it is a `DataError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, TypeError) as error:
        raise DataError(f"{path} does not read as Parquet with images and whole numbers as labels") from error


class Torchvision(ParquetImages):
    """A dataset that torchvision can download (to a class of the same name), or the same images as Parquet files.

    ``url``: where it comes from (braces as in a shell); ``folder`` and ``members``: the files that torchvision reads.
    """

    downloads = True
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

    def read(self, place: Path, image_size: int | None) -> Read:
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
        with locked(place, self._by_hand(place), OSError, RuntimeError, HTTPException):
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


class CINIC10(ParquetImages):
    """90,000 images each to train, validate and test: 32x32 pixels in colour, the 10 classes of CIFAR-10.

    As its archive or the Hugging Face hub has them. Nothing is downloaded: the archive has no address that lasts.
    """

    classes = CIFAR10.classes
    archive = "CINIC-10.tar.gz (687,544,992 bytes, MD5 6ee4d0c996905fe93221de577967a372)"
    per_split = 90_000

    def files(self, place: Path) -> list[Path]:
        if self._shards(place):
            return super().files(place)
        for split in SPLITS:
            if not (place / split).is_dir():
                parquet = f"nor train*.parquet and test*.parquet in {place}"
                raise DataError(f"no {place / split} ({parquet}): {self._by_hand(place)}")
        return ImageFolder().files(place)

    def read(self, place: Path, image_size: int | None) -> Read:
        read = super().read if self._shards(place) else ImageFolder().read
        splits, names = read(place, image_size)
        counts = {split: len(splits[split].labels) if split in splits else 0 for split in SPLITS}
        if len(names) != len(self.classes) or {*counts.values()} != {self.per_split}:
            found = f"{', '.join(f'{count:,} {split}' for split, count in counts.items())} images"
            whole = f"{self.per_split:,} each of {len(self.classes)}"
            raise DataError(f"{place} has {found} of {len(names)} classes, not {whole}: {self._by_hand(place)}")
        return splits, names

    def _by_hand(self, place: Path) -> str:
        source = "from the University of Edinburgh's DataShare, handle 10283/3192"
        return f"fetch {self.archive} {source}, and unpack it to have {', '.join(SPLITS)} in {place}"


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


def _decoded(name: str, file: Path | BytesIO, mode: str, image_size: int | None) -> Pixels:
    """Decode an image file; ``name`` is what a message calls it."""
    try:
        with Image.open(file) as image:
            image.load()
    except Exception as error:  # Pillow lets out whatever its decoders raise: OSError, SyntaxError, struct.error
        raise DataError(f"{name} is not a readable image ({type(error).__name__})") from error
    if image.mode[0] in "IF":  # Pillow would clip nearly every pixel to white
        raise DataError(f"{name} has more than 8 bits per channel: convert it to 8")
    return _sized(image.convert(mode), image_size)


def _sized(image: Image.Image, image_size: int | None) -> Pixels:
    """Return [H,W,C]: the centre square brought to ``image_size`` by an antialiased bilinear filter if that is set."""
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, -1)


def _blocks(items: Iterable[T], pixels_of: Callable[[T], Pixels]) -> Iterator[Pixels]:
    """Yield blocks of images in their order, worked out in threads (Pillow lets go of Python's lock), few ahead."""

    def block(some: list[T]) -> Pixels:
        images = [pixels_of(item) for item in some]
        for image in images:
            check_same_size(images[0], image)
        return np.stack(images)

    coming, ahead, threads = iter(items), deque[Future[Pixels]](), os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        while some := list(islice(coming, BLOCK)):
            ahead.append(pool.submit(block, some))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def check_same_size(one: Pixels, other: Pixels) -> None:
    if one.shape != other.shape:
        sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (one, other))
        raise DataError(f"the images differ in size ({sizes} pixels): set dataset.image_size to bring them to one")


@contextmanager
def locked(folder: Path, remedy: str, *failures: type[Exception]) -> Iterator[None]:
    """Let one process at a time fill ``folder``; the others wait, and should then look whether it is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            yield
    except failures as error:
        raise DataError(f"cannot fill {folder} ({' '.join(str(error).split())}): {remedy}") from error


def seeded(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng(int(hashlib.sha256(f"{seed}/{purpose}".encode()).hexdigest(), 16))


def balanced(labels: Labels, rng: np.random.Generator) -> Rows:
    """Return all rows in a drawn order: one of every class, then a second one of every class, while a class lasts."""
    drawn = rng.permutation(len(labels))
    turn = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        at = np.flatnonzero(labels[drawn] == label)
        turn[at] = np.arange(len(at))
    return drawn[np.argsort(turn, kind="stable")]
