"""Datasets: every registered one is read in its real format, cached, checked and divided. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raybench import datasets as ours
from raybench.data import Source, cache_folder, digest, divide, load, trial_data
from raybench.datasets import Dataset, Images
from raybench.errors import DataError
from raybench.registry import DATASETS
from raybench.settings import DatasetSettings, HeldOut

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
REAL_CIFAR10 = Path(
    os.environ.get("RAYBENCH_TEST_CIFAR10") or Path(__file__).parents[2] / "shared" / "data" / "cifar10"
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path / "cache"))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def encoded(pixels: np.ndarray, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0]).save(file, format)
    return file.getvalue()


def write_image(path: Path, image: Image.Image | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.fromarray(noise(8, 8, 3))).save(path)


def write_folder(place: Path, splits: tuple[str, ...] = ("train", "test"), classes: str = "ab", count: int = 3) -> Path:
    for split, label, number in product(splits, classes, range(count)):
        write_image(place / split / label / f"{number}.png")
    return place


def write_parquet(
    path: Path, pixels: np.ndarray, labels: Any, image: str = "img", label: str = "label", names: Any = None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = pa.array([{"bytes": encoded(one), "path": None} for one in pixels])
    table = pa.table({image: images, label: pa.array(labels)})
    if names:
        features = {"features": {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": features})})
    pq.write_table(table, path)


def write_parquet_pair(place: Path, names: Any = ("no", "yes"), **columns: str) -> Path:
    for split in ("train", "test"):
        write_parquet(place / f"{split}.parquet", noise(4, 8, 8, 3), [0, 1, 1, 0], names=names, **columns)
    return place


# Torchvision's own formats, written as their authors' archives hold them; its checksums are those of our files.


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_pickles(place: Path, monkeypatch: pytest.MonkeyPatch, kind: str, key: str, classes: list[str]) -> None:
    from torchvision import datasets

    torchvision = getattr(datasets, kind)
    folder = place / torchvision.base_folder
    folder.mkdir(parents=True)
    for files in ("train_list", "test_list"):
        sums = []
        for name, _ in getattr(torchvision, files):
            batch = {"data": noise(len(classes), 3072), key: list(range(len(classes)))}
            (folder / name).write_bytes(pickle.dumps(batch))
            sums.append([name, md5(folder / name)])
        monkeypatch.setattr(torchvision, files, sums)
    meta = folder / torchvision.meta["filename"]
    meta.write_bytes(pickle.dumps({torchvision.meta["key"]: classes}))
    monkeypatch.setattr(torchvision, "meta", {**torchvision.meta, "md5": md5(meta)})


def write_cifar10(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pickles(place, monkeypatch, "CIFAR10", "labels", list(CIFAR10_CLASSES))


def write_cifar100(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pickles(place, monkeypatch, "CIFAR100", "fine_labels", list(ours.CIFAR100.classes))


def write_svhn(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision import datasets

    place.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        url, name, _ = datasets.SVHN.split_list[split]
        savemat(place / name, {"X": noise(32, 32, 3, 20), "y": np.arange(20)[:, None] % 10 + 1})
        monkeypatch.setitem(datasets.SVHN.split_list, split, [url, name, md5(place / name)])


def write_idx(place: Path, monkeypatch: pytest.MonkeyPatch, kind: str = "MNIST") -> None:
    raw = place / kind / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        header = bytes([0, 0, 8, 3]) + np.array([20, 28, 28], ">i4").tobytes()
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + noise(20, 28, 28).tobytes())
        header = bytes([0, 0, 8, 1]) + np.array([20], ">i4").tobytes()
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(header + bytes(range(10)) * 2)


WRITERS: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    "digits": lambda place, patch: None,
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "svhn": write_svhn,
    "mnist": write_idx,
    "fashion_mnist": lambda place, patch: write_idx(place, patch, "FashionMNIST"),
    "imagefolder": lambda place, patch: write_folder(place),
    "parquet": lambda place, patch: write_parquet_pair(place),
}


# --------------------------------------------------------------------------------------------------- every dataset


@pytest.mark.parametrize("name", DATASETS.names())
def test_every_dataset_loads_divides_and_stays_read_only(name, tmp_path, monkeypatch):
    WRITERS[name](tmp_path, monkeypatch)
    settings = DatasetSettings(name=name, validation={"size": 2})
    source = load(settings, tmp_path, download=False)
    for images in source.splits.values():
        assert images.pixels.dtype == np.uint8
        assert images.shape == source.shape
        assert images.labels.dtype == np.int64
        assert len(images.labels) == len(images.pixels)
        assert set(images.labels) <= set(range(len(source.classes)))
        assert not images.pixels.flags.writeable
        assert not images.labels.flags.writeable
    assert source.shape[0] == (1 if name in ("digits", "mnist", "fashion_mnist") else 3)
    trial = trial_data(source, settings)
    assert len(trial.validation()) == 2
    assert not set(trial.train().index) & set(trial.validation().index)
    assert load(settings, tmp_path, download=False).fingerprint == source.fingerprint
    small = load(settings.model_copy(update={"image_size": 5}), tmp_path, download=False)
    assert small.shape == (source.shape[0], 5, 5)
    assert small.fingerprint != source.fingerprint


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "mnist", "fashion_mnist"])
def test_named_datasets_lie_in_the_folder_or_below_it(name, tmp_path, monkeypatch):
    WRITERS[name](tmp_path / name, monkeypatch)
    assert load(DatasetSettings(name=name), tmp_path, download=False).classes == DATASETS.get(name).classes


def test_importing_is_quick():
    heavy = "{'torch', 'torchvision', 'pyarrow', 'sklearn', 'pandas', 'ray', 'scipy'}"
    code = f"import sys, raybench.data; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------------------------------------------- digits


def test_digits_end_to_end(tmp_path):
    source = load(DatasetSettings(name="digits"), tmp_path / "nowhere")
    train, test = source.splits["train"], source.splits["test"]
    assert (len(train.labels), len(test.labels)) == (1297, 500)
    assert np.bincount(test.labels).tolist() == [50] * 10
    assert source.shape == (1, 8, 8)
    assert source.classes == tuple("0123456789")
    assert sorted(np.unique(train.pixels))[:3] == [0, 16, 32]  # sixteenths of 255, rounded
    assert train.pixels.max() == 255
    assert source.fingerprint == "a584e13000eb5ccb"
    assert not cache_folder().exists()


# --------------------------------------------------------------------------------------------------------- parquet


def test_parquet_shards_are_read_in_order_with_validation_and_names(tmp_path):
    pixels = noise(10, 8, 8, 3)
    for shard, rows in enumerate((slice(0, 4), slice(4, 10))):
        labels = np.arange(10)[rows]
        write_parquet(
            tmp_path / "data" / f"train-0000{shard}-of-00002.parquet", pixels[rows], labels, names=CIFAR10_CLASSES
        )
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", pixels[:3], [0, 1, 2])
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", pixels[:2], [3, 4])
    source = load(DatasetSettings(name="parquet"), tmp_path)
    assert source.splits["train"].pixels.tolist() == pixels.tolist()
    assert source.splits["train"].labels.tolist() == list(range(10))
    assert source.splits["valid"].labels.tolist() == [0, 1, 2]
    assert source.splits["test"].labels.tolist() == [3, 4]
    assert source.classes == CIFAR10_CLASSES


def test_parquet_columns_and_names_of_other_hub_datasets(tmp_path):
    names = [f"class {number}" for number in range(100)]
    for split in ("train", "test"):
        write_parquet(tmp_path / "c" / f"{split}.parquet", noise(2, 4, 4, 3), [7, 99], "image", "fine_label", names)
        write_parquet(tmp_path / "plain" / f"{split}.parquet", noise(2, 4, 4, 3), [2, 0], "image", "labels")
        write_parquet(tmp_path / "grey" / f"{split}.parquet", noise(2, 28, 28, 1), [2, 0], "image")
    assert load(DatasetSettings(name="cifar100"), tmp_path / "c").classes == tuple(names)
    assert load(DatasetSettings(name="parquet", folder="plain"), tmp_path).classes == ("0", "1", "2")
    grey = load(DatasetSettings(name="mnist"), tmp_path / "grey")
    assert grey.classes == tuple("0123456789")
    assert grey.splits["test"].pixels.tolist() == noise(2, 28, 28, 1).tolist()
    assert load(DatasetSettings(name="parquet", folder="grey"), tmp_path).shape == (3, 28, 28)


def broken(path: Path, **columns: Any) -> None:
    pq.write_table(pa.table(columns), path)


def test_parquet_mistakes(tmp_path):
    settings = DatasetSettings(name="parquet")
    test = write_parquet_pair(tmp_path) / "test.parquet"
    image = pa.array([{"bytes": encoded(noise(8, 8, 3)), "path": None}])
    cases = {
        f"{test} needs a struct column with `bytes` (the image) and a column `label`": {"img": image},
        f"{test} does not read as Parquet with images and whole numbers as labels": {"img": image, "label": [0.5]},
        f"row 0 of {test} is not a readable image (UnidentifiedImageError)": {
            "img": pa.array([{"bytes": b"GIF?"}]),
            "label": [0],
        },
        f"no rows in {test}": {"img": image[:0], "label": pa.array([], pa.int64())},
        "test of parquet has labels from -1 to -1 for 2 classes": {"img": image, "label": [-1]},
    }
    for message, columns in cases.items():
        broken(test, **columns)
        with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
            load(settings, tmp_path)
    test.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="does not read as Parquet"):
        load(settings, tmp_path)
    test.unlink()
    message = f"no train*.parquet and test*.parquet in {tmp_path}: put them there, or set dataset.folder"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        load(settings, tmp_path)


def test_another_dataset_in_the_place_is_refused(tmp_path):
    write_parquet_pair(tmp_path)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path} has 2 classes where CIFAR10 has 10")):
        load(DatasetSettings(name="cifar10"), tmp_path)


# ----------------------------------------------------------------------------------------------------- torchvision


def test_torchvision_layouts_give_the_pixels_that_were_written(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    write_svhn(tmp_path, monkeypatch)
    write_idx(tmp_path, monkeypatch)
    cifar = load(DatasetSettings(name="cifar10"), tmp_path, download=False)
    planes = np.concatenate([noise(10, 3072)] * 5).reshape(-1, 3, 32, 32)
    assert (cifar.splits["train"].pixels == planes.transpose(0, 2, 3, 1)).all()
    svhn = load(DatasetSettings(name="svhn"), tmp_path, download=False)
    assert (svhn.splits["test"].pixels == noise(32, 32, 3, 20).transpose(3, 0, 1, 2)).all()
    assert svhn.splits["test"].labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    mnist = load(DatasetSettings(name="mnist"), tmp_path, download=False)
    assert (mnist.splits["train"].pixels[..., 0] == noise(20, 28, 28)).all()
    assert mnist.splits["train"].labels.tolist() == [*range(10), *range(10)]


def by_hand(name: str, place: Path) -> str:
    kind = DATASETS.get(name)
    return f"fetch {kind.url} and unpack it to have {', '.join(kind.members)} in {place / kind.folder}"


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "mnist", "fashion_mnist"])
def test_missing_files_say_what_to_fetch_and_where_to_put_it(name, tmp_path, monkeypatch):
    from torchvision.datasets import utils

    kind = DATASETS.get(name)
    first = tmp_path / kind.folder / kind.members[0]
    message = f"no {first} (nor train*.parquet and test*.parquet in {tmp_path}): {by_hand(name, tmp_path)}"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        load(DatasetSettings(name=name), tmp_path, download=False)

    def unreachable(url: str, max_hops: int) -> str:
        raise URLError("no route to host")

    monkeypatch.setattr(utils, "_get_redirect_url", unreachable)
    with pytest.raises(DataError) as failure:
        load(DatasetSettings(name=name), tmp_path)
    own = tmp_path / name
    assert re.fullmatch(
        rf"cannot fill {own} \(.*<urlopen error no route to host>.*\): {re.escape(by_hand(name, own))}",
        str(failure.value),
    )


def test_urls_and_names_are_those_of_torchvision():
    from torchvision import datasets

    assert ours.CIFAR10.url == datasets.CIFAR10.url
    assert ours.CIFAR100.url == datasets.CIFAR100.url
    assert ours.FashionMNIST.classes == tuple(datasets.FashionMNIST.classes)
    assert len(set(ours.CIFAR100.classes)) == 100
    assert list(ours.CIFAR100.classes) == sorted(ours.CIFAR100.classes)
    assert expanded(ours.SVHN.url) == {datasets.SVHN.split_list[split][0] for split in ("train", "test")}
    for mine, theirs in ((ours.MNIST, datasets.MNIST), (ours.FashionMNIST, datasets.FashionMNIST)):
        assert expanded(mine.url) == {theirs.mirrors[0] + name for name, _ in theirs.resources}


def expanded(url: str) -> set[str]:
    """Expand braces as a shell does."""
    parts = [part.split(",") for part in re.split(r"[{}]", url)]
    return {"".join(choice) for choice in product(*parts)}


@pytest.mark.parametrize(
    ("name", "member"), [("cifar10", "test_batch"), ("svhn", "test_32x32.mat"), ("mnist", "t10k-images-idx3-ubyte")]
)
def test_a_damaged_download_is_named(name, member, tmp_path, monkeypatch):
    WRITERS[name](tmp_path, monkeypatch)
    kind = DATASETS.get(name)
    file = tmp_path / kind.folder / member
    file.write_bytes(file.read_bytes()[:-100])
    message = f"{kind.__name__} in {tmp_path} is damaged: {by_hand(name, tmp_path)}"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        load(DatasetSettings(name=name), tmp_path)


def test_two_at_once_download_and_decode_once(tmp_path, monkeypatch):
    from torchvision import datasets
    from torchvision.datasets import utils

    write_cifar10(tmp_path / "server", monkeypatch)
    archive = tmp_path / "server" / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "server" / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive))
    fetched = []

    def retrieve(url: str, filename: str) -> None:
        fetched.append(url)
        shutil.copy(archive, filename)

    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr(utils, "_urlretrieve", retrieve)
    decoded = counted(monkeypatch, ours.CIFAR10)
    with ThreadPoolExecutor(3) as threads:
        sources = list(threads.map(lambda _: load(DatasetSettings(name="cifar10"), tmp_path / "data"), range(3)))
    assert fetched == [datasets.CIFAR10.url]
    assert len(decoded) == 1
    assert len({source.fingerprint for source in sources}) == 1
    assert (tmp_path / "data" / "cifar10" / "cifar-10-batches-py" / "test_batch").exists()


def test_a_data_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"^cannot fill .*/file/svhn \(.*Not a directory.*\): fetch http://ufldl"):
        load(DatasetSettings(name="svhn"), tmp_path / "file")


# ----------------------------------------------------------------------------------------------------- imagefolder


def test_imagefolder_as_cinic10_is_laid_out(tmp_path):
    write_folder(tmp_path / "cinic", ("train", "valid", "test"), "ba")
    (tmp_path / "cinic" / "README").touch()
    (tmp_path / "cinic" / "train" / "b" / ".hidden").touch()
    source = load(DatasetSettings(name="imagefolder", folder="cinic", validation="split"), tmp_path)
    assert source.classes == ("a", "b")
    assert list(source.splits) == ["train", "valid", "test"]
    assert source.splits["valid"].labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("name", ["val", "validation"])
def test_imagefolder_other_names_of_the_validation_folder(name, tmp_path):
    source = load(DatasetSettings(name="imagefolder"), write_folder(tmp_path, ("train", name, "test")))
    assert len(source.splits["valid"].labels) == 6


def test_imagefolder_every_kind_of_image_becomes_rgb(tmp_path):
    write_folder(tmp_path)
    colour = Image.fromarray(noise(8, 8, 3))
    for mode in ("L", "P", "RGBA", "LA", "1"):
        write_image(tmp_path / "test" / "a" / f"{mode}.png", colour.convert(mode))
    write_image(tmp_path / "test" / "a" / "CMYK.jpg", colour.convert("CMYK"))
    test = load(DatasetSettings(name="imagefolder"), tmp_path).splits["test"]
    assert test.pixels.shape == (11, 8, 8, 3)
    order = ["0", "1", "2", "CMYK", "L", "LA", "P", "RGBA"]
    grey = test.pixels[order.index("L")]
    assert (grey == np.asarray(colour.convert("L"))[..., None]).all()
    assert (test.pixels[order.index("RGBA")] == noise(8, 8, 3)).all()


def test_imagefolder_sizes_must_agree_or_be_brought_to_one(tmp_path):
    write_folder(tmp_path)
    wide = Image.fromarray(noise(20, 60, 3))
    write_image(tmp_path / "train" / "b" / "wide.png", wide)
    message = "the images differ in size (8x8 and 60x20 pixels): set dataset.image_size to bring them to one"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        load(DatasetSettings(name="imagefolder"), tmp_path)
    source = load(DatasetSettings(name="imagefolder", image_size=10), tmp_path)
    assert source.shape == (3, 10, 10)
    centre = wide.resize((30, 10), Image.Resampling.BILINEAR).crop((10, 0, 20, 10))
    assert (source.splits["train"].pixels[-1] == np.asarray(centre)).all()
    (tmp_path / "train" / "b" / "wide.png").unlink()
    for label, number in product("ab", range(3)):
        write_image(tmp_path / "test" / label / f"{number}.png", Image.fromarray(noise(9, 8, 3)))
    with pytest.raises(DataError, match=re.escape("(8x8 and 8x9 pixels)")):
        load(DatasetSettings(name="imagefolder"), tmp_path)


def test_imagefolder_mistakes(tmp_path):
    settings = DatasetSettings(name="imagefolder")

    def fails(message: str) -> None:
        with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
            load(settings, tmp_path)

    fails(f"no images in {tmp_path}/train: put a folder of them per class there, or set dataset.folder")
    write_folder(tmp_path, ("train",))
    fails(f"no images in {tmp_path}/test: put a folder of them per class there, or set dataset.folder")
    write_folder(tmp_path, ("test",), "abc")
    fails(f"train and test in {tmp_path} differ in their classes: one lacks c")
    shutil.rmtree(tmp_path / "test" / "c")
    file = tmp_path / "test" / "b" / "1.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    fails(f"{file} is not a readable image (OSError)")
    file.write_bytes(b"no image")
    fails(f"{file} is not a readable image (UnidentifiedImageError)")
    write_image(file, Image.fromarray(np.full((8, 8), 40_000, np.uint16)))
    fails(f"{file} has more than 8 bits per channel: convert it to 8")


# ---------------------------------------------------------------------------------------------------------- caching


def counted(monkeypatch: pytest.MonkeyPatch, dataset: type[Dataset]) -> list[Path]:
    """Return a list that gets an entry whenever ``dataset`` is decoded."""
    calls: list[Path] = []
    read = dataset.read

    def counting(self: Dataset, place: Path, image_size: int | None) -> Any:
        calls.append(place)
        return read(self, place, image_size)

    monkeypatch.setattr(dataset, "read", counting)
    return calls


def entries() -> list[Path]:
    return sorted(path for path in cache_folder().iterdir() if path.is_dir())


def is_mapped(array: np.ndarray | mmap.mmap | None) -> bool:
    return isinstance(array, mmap.mmap) or (array is not None and is_mapped(array.base))


def test_cache_second_load_maps_what_the_first_decoded(tmp_path, monkeypatch):
    decoded = counted(monkeypatch, ours.ImageFolder)
    settings = DatasetSettings(name="imagefolder")
    first, second = (load(settings, write_folder(tmp_path / "d")) for _ in "12")
    assert len(decoded) == 2  # the files were written anew
    third = load(settings, tmp_path / "d")
    assert len(decoded) == 2
    assert first.fingerprint == second.fingerprint == third.fingerprint
    pixels = third.splits["train"].pixels
    assert type(pixels) is np.ndarray
    assert is_mapped(pixels)
    assert (pixels == first.splits["train"].pixels).all()
    assert third.classes == first.classes
    load(settings, tmp_path / "d", tmp_path / "elsewhere")
    assert len(decoded) == 3


def test_cache_notices_a_changed_file_another_size_and_another_version(tmp_path, monkeypatch):
    decoded = counted(monkeypatch, ours.ImageFolder)
    settings = DatasetSettings(name="imagefolder")
    file = write_folder(tmp_path / "d") / "test" / "a" / "0.png"
    load(settings, tmp_path / "d")
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    load(settings, tmp_path / "d")
    assert len(decoded) == 2
    load(settings.model_copy(update={"image_size": 4}), tmp_path / "d")
    assert len(decoded) == 3
    monkeypatch.setattr(ours.ImageFolder, "version", 2)
    load(settings, tmp_path / "d")
    assert len(decoded) == 4
    load(settings.model_copy(update={"train_size": 2, "seed": 5}), tmp_path / "d")
    assert len(decoded) == 4


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "about", "empty"])
def test_cache_rebuilds_a_damaged_entry(damage, tmp_path, monkeypatch):
    settings = DatasetSettings(name="imagefolder")
    whole = load(settings, write_folder(tmp_path / "d"))
    (entry,) = entries()
    pixels = entry / "train-pixels.npy"
    content = pixels.read_bytes()
    if damage == "truncated":
        pixels.write_bytes(content[:-10])
    elif damage == "flipped":
        pixels.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        pixels.unlink()
    elif damage == "about":
        (entry / "source.json").write_text('["no"]')
    else:
        pixels.write_bytes(b"")
    decoded = counted(monkeypatch, ours.ImageFolder)
    for _ in range(2):
        again = load(settings, tmp_path / "d")
        assert (again.splits["train"].pixels == whole.splits["train"].pixels).all()
    assert len(decoded) == 1
    assert entries() == [entry]


def test_cache_survives_a_writer_that_was_killed(tmp_path, monkeypatch):
    settings = DatasetSettings(name="imagefolder")
    write_folder(tmp_path / "d")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda self, target: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            load(settings, tmp_path / "d")
    assert [entry.suffix for entry in entries()] == [".partial"]
    load(settings, tmp_path / "d")
    assert [entry.suffix for entry in entries()] == [""]


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=r"^cannot fill .*/file/c \(.*Not a directory.*\): set RAYBENCH_CACHE to a folder"
    ):
        load(DatasetSettings(name="imagefolder"), write_folder(tmp_path / "d"), tmp_path / "file" / "c")


def test_moving_the_folder_keeps_the_fingerprint(tmp_path):
    settings = DatasetSettings(name="imagefolder")
    before = load(settings, write_folder(tmp_path / "here"))
    shutil.copytree(tmp_path / "here", tmp_path / "deep" / "there" / "imagefolder", copy_function=shutil.copyfile)
    assert load(settings, tmp_path / "deep" / "there").fingerprint == before.fingerprint
    (tmp_path / "here" / "train" / "a").rename(tmp_path / "here" / "train" / "c")
    (tmp_path / "here" / "test" / "a").rename(tmp_path / "here" / "test" / "c")
    assert load(settings, tmp_path / "here").fingerprint != before.fingerprint


def test_the_cache_folder(monkeypatch):
    monkeypatch.setenv("RAYBENCH_CACHE", "~/kept")
    assert cache_folder() == Path.home() / "kept"
    monkeypatch.delenv("RAYBENCH_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "raybench"


# ------------------------------------------------------------------------------------------------ a user's own dataset


class Dots(Dataset):
    """What a module under ``imports`` could hold."""

    splits: dict[str, Images]

    def files(self, place: Path) -> list[Path]:
        return []

    def read(self, place: Path, image_size: int | None) -> tuple[dict[str, Images], tuple[str, ...]]:
        return self.splits, ("few", "many")


def test_a_users_dataset_is_resized_and_checked(tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS._entries, "dots", Dots)
    settings = DatasetSettings(name="dots", image_size=6)
    good = Images(noise(4, 12, 12, 3), np.array([0, 1, 0, 1], np.uint8))
    Dots.splits = {"train": good, "test": good}
    source = load(settings, tmp_path)
    assert source.shape == (3, 6, 6)
    assert source.splits["test"].labels.dtype == np.int64
    assert good.pixels.flags.writeable
    cases = {
        "dots has no test images": {"train": good},
        "train of dots must be uint8 [N,H,W,C] with N labels, and N at least 1": {
            "train": Images(good.pixels / 255, good.labels)
        },
        "test of dots must be uint8 [N,H,W,C] with N labels, and N at least 1": {
            "train": good,
            "test": Images(good.pixels, good.labels[1:]),
        },
        "test of dots has labels from 0 to 2 for 2 classes": {
            "train": good,
            "test": Images(good.pixels, good.labels * 2),
        },
    }
    for message, splits in cases.items():
        Dots.splits = splits
        with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
            load(settings, tmp_path)


# --------------------------------------------------------------------------------------------------------- dividing


def source_of(train: list[int], test: list[int], valid: list[int] | None = None) -> Source:
    """A dataset of one-pixel images with so many of every class."""
    counts = {"train": train, "test": test} | ({"valid": valid} if valid else {})
    splits = {}
    for split, of_class in counts.items():
        labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(of_class)), of_class))
        splits[split] = Images(np.zeros((len(labels), 1, 1, 1), np.uint8), labels)
    return Source(splits, tuple(str(label) for label in range(len(train))), "0" * 16)


def settings_of(validation: Any = "test", **values: Any) -> DatasetSettings:
    return DatasetSettings(name="toy", validation=validation, **values)


def per_class(source: Source, split: str, rows: np.ndarray) -> np.ndarray:
    return np.bincount(source.splits[split].labels[rows], minlength=len(source.classes))


counts = st.lists(st.integers(1, 30), min_size=2, max_size=6)


@given(classes=st.integers(2, 6), each=st.integers(2, 20), seed=st.integers(0, 99), part=st.data())
def test_balanced_classes_are_held_out_and_cut_to_within_one_image(classes, each, seed, part):
    source = source_of([each] * classes, [each] * classes)
    size = part.draw(st.integers(1, classes * each - 1))
    kept = part.draw(st.integers(1, classes * each - size))
    division = divide(source, settings_of({"size": size}, train_size=kept, test_size=kept, seed=seed))
    split, held_out = division.validation
    assert (split, len(held_out), len(division.train), len(division.test)) == ("train", size, kept, kept)
    assert not set(held_out) & set(division.train)
    assert np.ptp(per_class(source, "train", held_out)) <= 1
    assert np.ptp(per_class(source, "test", division.test)) <= 1
    for rows in (held_out, division.train, division.test):
        assert (np.diff(rows) > 0).all()


@given(train=counts, seed=st.integers(0, 99), part=st.data())
def test_unequal_classes(train, seed, part):
    source, total = source_of(train, train), sum(train)
    size = part.draw(st.integers(1, total - 1))
    division = divide(source, settings_of({"size": size}, test_size=size, seed=seed))
    share = np.array(train) * size / total
    assert (np.abs(per_class(source, "train", division.validation[1]) - share) < 1).all()
    cut = per_class(source, "test", division.test)
    lasting = cut < np.array(train)  # a class that is not used up has as many as any other, to within one
    assert not lasting.any() or cut.max() - cut[lasting].min() <= 1


@given(train=counts, seed=st.integers(0, 99), part=st.data())
def test_subsets_are_nested_and_leave_the_validation_images_alone(train, seed, part):
    source = source_of(train, train)
    sizes = sorted(part.draw(st.lists(st.integers(1, sum(train) - 1), min_size=2, max_size=2)))
    small, large = (
        divide(source, settings_of({"size": 1}, train_size=size, test_size=size, seed=seed)) for size in sizes
    )
    assert set(small.train) <= set(large.train)
    assert set(small.test) <= set(large.test)
    assert small.validation[1].tolist() == large.validation[1].tolist()


def test_division_depends_on_the_seed_alone():
    source = source_of([50] * 3, [20] * 3)
    one, same, other = (divide(source, settings_of({"fraction": 0.1}, seed=seed)) for seed in (0, 0, 1))
    assert len(one.validation[1]) == 15
    assert digest(one) == digest(same) != digest(other)
    assert digest(one) == "efb139940a82d2fa"  # the same on every machine


def test_kinds_of_validation():
    source = source_of([5] * 2, [6] * 2, [3] * 2)
    division = divide(source, settings_of("test", test_size=4))
    assert division.validation[0] == "test"
    assert division.validation[1].tolist() == division.test.tolist()
    assert len(division.test) == 4
    assert division.train.tolist() == list(range(10))
    division = divide(source, settings_of("split"))
    assert division.validation[0] == "valid"
    assert division.validation[1].tolist() == list(range(6))


def test_sizes_larger_than_what_there_is():
    source = source_of([5] * 2, [6] * 2)
    cases = {
        "dataset.train_size is 9, but toy leaves 8 train images": settings_of({"size": 2}, train_size=9),
        "dataset.test_size is 13, but toy leaves 12 test images": settings_of(test_size=13),
        "dataset.validation holds out 10 of the 10 training images of toy": settings_of({"size": 10}),
        "dataset.validation holds out 0 of the 10 training images of toy": settings_of({"fraction": 0.01}),
        "toy has no validation images of its own: set dataset.validation to {size: N}": settings_of("split"),
    }
    for message, settings in cases.items():
        with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
            divide(source, settings)


# ---------------------------------------------------------------------------------------------------- for one trial


def test_trial_data_gathers_copies_and_pickles_without_the_images(tmp_path):
    settings = DatasetSettings(name="imagefolder", validation=HeldOut(size=2, fraction=None), test_size=4)
    load(settings, write_folder(tmp_path, ("train", "valid", "test"), count=20))
    trial = trial_data(load(settings, tmp_path), settings)
    assert [len(part()) for part in (trial.train, trial.validation, trial.test)] == [38, 2, 4]
    assert list(trial.pools) == ["train", "test"]  # and no validation images that are not used
    assert trial.shape == (3, 8, 8)
    train = trial.train()
    pixels, labels = train.gather(np.array([3, 1]))
    assert (pixels == trial.pools["train"].pixels[train.index[[3, 1]]]).all()
    assert (labels == trial.pools["train"].labels[train.index[[3, 1]]]).all()
    pixels[:] = 0  # a copy: nobody can write into what all trials share
    assert len(train.gather(slice(0, 5))[1]) == 5

    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps(trial, protocol=5, buffer_callback=buffers.append)
    assert len(message) < 2000  # all arrays travel beside the message, where Ray shares them
    again = pickle.loads(message, buffers=buffers)
    assert (again.pools["train"].pixels == trial.pools["train"].pixels).all()
    assert again.fingerprint == trial.fingerprint


# ---------------------------------------------------------------------------------------------------- the real thing


@pytest.mark.skipif(not REAL_CIFAR10.is_dir(), reason=f"CIFAR-10 is not in {REAL_CIFAR10}: set RAYBENCH_TEST_CIFAR10")
def test_real_cifar10(tmp_path, monkeypatch):
    decoded = counted(monkeypatch, ours.CIFAR10)
    settings = DatasetSettings(name="cifar10")
    first, second = (load(settings, place, tmp_path) for place in (REAL_CIFAR10, REAL_CIFAR10.parent))
    assert len(decoded) == 1
    assert first.fingerprint == second.fingerprint
    assert first.classes == CIFAR10_CLASSES
    assert first.shape == (3, 32, 32)
    assert np.bincount(second.splits["train"].labels).tolist() == [5000] * 10
    assert np.bincount(second.splits["test"].labels).tolist() == [1000] * 10
    trial = trial_data(second, settings)
    assert (len(trial.train()), len(trial.validation()), len(trial.test())) == (45_000, 5_000, 10_000)
    assert np.bincount(trial.validation().gather(slice(None))[1]).tolist() == [500] * 10
