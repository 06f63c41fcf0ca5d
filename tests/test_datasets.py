"""Datasets: every registered one is read in its real format. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import shutil
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
from PIL import Image

from raybench import datasets as ours
from raybench.data import cache_folder, load, trial_data
from raybench.errors import DataError
from raybench.registry import DATASETS
from raybench.settings import DatasetSettings

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


pytestmark = pytest.mark.usefixtures("own_cache")


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0]).save(file, "PNG")
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


def write_parquet_pair(place: Path) -> Path:
    for split in ("train", "test"):
        write_parquet(place / f"{split}.parquet", noise(4, 8, 8, 3), [0, 1, 1, 0], names=("no", "yes"))
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


def write_cinic10(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, label, number in product(("train", "valid", "test"), CIFAR10_CLASSES, range(2)):
        write_image(place / split / label / f"{number}.png")
    monkeypatch.setattr(ours.CINIC10, "per_split", 20)


WRITERS: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    "digits": lambda place, patch: None,
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "cinic10": write_cinic10,
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


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "cinic10", "svhn", "mnist", "fashion_mnist"])
def test_named_datasets_lie_in_the_folder_or_below_it(name, tmp_path, monkeypatch):
    WRITERS[name](tmp_path / name, monkeypatch)
    assert load(DatasetSettings(name=name), tmp_path, download=False).classes == DATASETS.get(name).classes


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
    write_parquet(test, noise(2, 8, 8, 3), [0, 1], names=("yes", "no"))
    message = f"{tmp_path}/train.parquet and {test} differ in the names or the order of their classes"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        load(settings, tmp_path)
    pq.write_table(pq.read_table(test).replace_schema_metadata({"huggingface": "null"}), test)
    with pytest.raises(DataError, match=f"^{re.escape(str(test))} has metadata under `huggingface` that are not as"):
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


def test_three_at_once_download_once(tmp_path, monkeypatch):
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
    with ThreadPoolExecutor(3) as threads:
        sources = list(threads.map(lambda _: load(DatasetSettings(name="cifar10"), tmp_path / "data"), range(3)))
    assert fetched == [datasets.CIFAR10.url]
    assert len({source.fingerprint for source in sources}) == 1
    assert (tmp_path / "data" / "cifar10" / "cifar-10-batches-py" / "test_batch").exists()


def test_a_data_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"^cannot fill .*/file/svhn \(.*Not a directory.*\): fetch http://ufldl"):
        load(DatasetSettings(name="svhn"), tmp_path / "file")


# ----------------------------------------------------------------------------------------------------- imagefolder


def test_imagefolder_with_validation_images_and_other_files(tmp_path):
    write_folder(tmp_path / "pets", ("train", "valid", "test"), "ba")
    (tmp_path / "pets" / "README").touch()
    (tmp_path / "pets" / "train" / "b" / ".hidden").touch()
    source = load(DatasetSettings(name="imagefolder", folder="pets", validation="split"), tmp_path)
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
    file.unlink()
    file.symlink_to("gone.png")
    fails(f"{file} cannot be read (No such file or directory)")


# --------------------------------------------------------------------------------------------------------- cinic10

CINIC10_BY_HAND = (
    "fetch CINIC-10.tar.gz (687,544,992 bytes, MD5 6ee4d0c996905fe93221de577967a372) from the University of"
    " Edinburgh's DataShare, handle 10283/3192, and unpack it to have train, valid, test in "
)


def test_cinic10_from_its_archive_and_from_the_hub(tmp_path, monkeypatch):
    write_cinic10(tmp_path / "archive" / "cinic10", monkeypatch)
    (tmp_path / "archive" / "cinic10" / "README.md").touch()
    for split in ("train", "validation", "test"):
        file = tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet"
        write_parquet(file, np.stack([noise(8, 8, 3)] * 20), np.arange(20) // 2, "image", names=CIFAR10_CLASSES)
    settings = DatasetSettings(name="cinic10", validation="split")
    archive, hub = (load(settings, tmp_path / place) for place in ("archive", "hub"))
    assert archive.classes == CIFAR10_CLASSES
    assert list(archive.splits) == ["train", "valid", "test"]
    assert archive.splits["valid"].labels.tolist() == sorted([*range(10)] * 2)
    assert archive.fingerprint == hub.fingerprint


def test_cinic10_missing_or_not_whole(tmp_path, monkeypatch):
    settings = DatasetSettings(name="cinic10")

    def fails(message: str) -> None:
        with pytest.raises(DataError, match=f"^{re.escape(message + CINIC10_BY_HAND)}{tmp_path}$"):
            load(settings, tmp_path)

    fails(f"no {tmp_path}/train (nor train*.parquet and test*.parquet in {tmp_path}): ")
    write_cinic10(tmp_path, monkeypatch)
    shutil.rmtree(tmp_path / "valid")
    fails(f"no {tmp_path}/valid (nor train*.parquet and test*.parquet in {tmp_path}): ")
    write_cinic10(tmp_path, monkeypatch)
    (tmp_path / "test" / "cat" / "0.png").unlink()
    fails(f"{tmp_path} has 20 train, 20 valid, 19 test images of 10 classes, not 20 each of 10: ")
    for split in ("train", "valid", "test"):
        shutil.rmtree(tmp_path / split / "cat")
    fails(f"{tmp_path} has 18 train, 18 valid, 18 test images of 9 classes, not 20 each of 10: ")
    write_parquet_pair(tmp_path)
    fails(f"{tmp_path} has 4 train, 0 valid, 4 test images of 2 classes, not 20 each of 10: ")
