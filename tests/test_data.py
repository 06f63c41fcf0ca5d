"""Datasets as trials see them: cached, checked, divided."""

from __future__ import annotations

import dataclasses
import mmap
import os
import pickle
import re
import shutil
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from raybench import augment, data, machine
from raybench import datasets as ours
from raybench.data import Part, Source, cache_folder, digest, divide, in_shape, load, sized, trial_data
from raybench.datasets import Dataset, Images
from raybench.errors import DataError, UserError
from raybench.registry import DATASETS
from raybench.settings import DatasetSettings, HeldOut, Named

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
REAL_CIFAR10 = Path(
    os.environ.get("RAYBENCH_TEST_CIFAR10") or Path(__file__).parents[2] / "shared" / "data" / "cifar10"
)


pytestmark = pytest.mark.usefixtures("own_cache")


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def write_folder(place: Path, splits: tuple[str, ...] = ("train", "test"), count: int = 3) -> Path:
    """Write so many images of each of two classes, as the dataset `imagefolder` wants them."""
    for split, label, number in product(splits, "ab", range(count)):
        (place / split / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(8, 8, 3)).save(place / split / label / f"{number}.png")
    return place


def test_importing_is_quick():
    heavy = "{'torch', 'torchvision', 'pyarrow', 'sklearn', 'pandas', 'ray', 'scipy'}"
    code = f"import sys, raybench.data; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


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
    monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path / "elsewhere"))
    load(settings, tmp_path / "d")
    assert len(decoded) == 3


def test_three_at_once_decode_once(tmp_path, monkeypatch):
    decoded = counted(monkeypatch, ours.ImageFolder)
    settings, place = DatasetSettings(name="imagefolder"), write_folder(tmp_path / "d")
    with ThreadPoolExecutor(3) as threads:
        sources = list(threads.map(lambda _: load(settings, place), range(3)))
    assert len(decoded) == 1
    assert len({source.fingerprint for source in sources}) == 1


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


def test_cache_tells_folders_apart_whose_files_have_the_same_names_sizes_and_times(tmp_path):
    """Bitmaps of one size, from an archive that writes one time for all."""
    means = []
    for value in (10, 200):
        for split in ("train", "test"):
            for label in "ab":
                folder = tmp_path / str(value) / split / label
                folder.mkdir(parents=True)
                Image.new("RGB", (4, 4), (value, value, value)).save(folder / "0.bmp")
                os.utime(folder / "0.bmp", (0, 0))
        source = load(DatasetSettings(name="imagefolder"), tmp_path / str(value))
        means.append(float(source.splits["train"].pixels.mean()))
    assert means == [10.0, 200.0]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "about", "empty"])
def test_cache_rebuilds_a_damaged_entry(damage, tmp_path, monkeypatch):
    settings = DatasetSettings(name="imagefolder")
    whole = load(settings, write_folder(tmp_path / "d")).splits["train"].pixels.copy()
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
        assert (again.splits["train"].pixels == whole).all()
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


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path / "file" / "c"))
    with pytest.raises(
        DataError, match=r"^cannot fill .*/file/c \(.*Not a directory.*\): set RAYBENCH_CACHE to a folder"
    ):
        load(DatasetSettings(name="imagefolder"), write_folder(tmp_path / "d"))


def test_the_file_is_what_decoding_all_at_once_would_give(tmp_path, monkeypatch):
    settings = DatasetSettings(name="imagefolder", image_size=5)
    splits, _ = DATASETS.get("imagefolder")().read(write_folder(tmp_path / "d", count=7), 5)
    fingerprints = set()
    for block in (1, 3, 64):
        monkeypatch.setattr(ours, "BLOCK", block)
        monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path / f"cache-{block}"))
        source = load(settings, tmp_path / "d")
        files = sorted((tmp_path / "d" / "train").rglob("*.png"))
        whole = np.stack([np.asarray(ImageOps.fit(Image.open(f), (5, 5), Image.Resampling.BILINEAR)) for f in files])
        np.save(tmp_path / "whole.npy", whole)
        (saved,) = (tmp_path / f"cache-{block}").glob("*/train-pixels.npy")
        assert saved.read_bytes() == (tmp_path / "whole.npy").read_bytes()
        assert source.splits["train"].labels.tolist() == splits["train"].labels.tolist()
        fingerprints.add(source.fingerprint)
    assert len(fingerprints) == 1


class ManyFiles(Dataset):
    """6,000 times one file of 48x48 pixels: 41 MB, decoded."""

    def files(self, place: Path) -> list[Path]:
        return [place / "one.png"]

    def read(self, place: Path, image_size: int | None) -> Any:
        def split(count: int) -> ours.Files:
            return ours.Files(((f"{row}", place / "one.png") for row in range(count)), np.arange(count) % 2, "RGB")

        return {"train": split(6000), "test": split(10)}, ("a", "b")


def test_building_fitting_and_reading_need_memory_for_some_images_and_never_for_all(tmp_path, monkeypatch):
    Image.fromarray(noise(48, 48, 3)).save(tmp_path / "one.png")
    monkeypatch.setitem(DATASETS._entries, "many_files", ManyFiles)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)  # as many blocks are decoded ahead
    settings = DatasetSettings(name="many_files", stream=True)
    tracemalloc.start()  # counts every array of numpy, and no mapped file
    try:
        for _ in range(2):
            train = trial_data(load(settings, tmp_path), settings).train()
        augment.build([Named(name="standardize")]).fit(train)
        train.gather(np.arange(64))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(train) == 5400
    assert peak < 20e6  # of it, 14 MB are two blocks of 1,024 images that statistics are fitted on


def test_two_processes_at_once_decode_once(tmp_path):
    write_folder(tmp_path / "d")
    code = (
        "import sys; from pathlib import Path; from raybench import data, datasets\n"
        "from raybench.settings import DatasetSettings\n"
        "read = datasets.ImageFolder.read\n"
        "def counting(*a): print('decoded', flush=True); return read(*a)\n"
        "datasets.ImageFolder.read = counting\n"
        "sys.stdin.read(); print(data.load(DatasetSettings(name='imagefolder'), Path(sys.argv[1])).fingerprint)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "d")]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in "12"]
    for process in both:
        assert process.stdin is not None
        process.stdin.close()  # both begin
    lines = []
    for process in both:
        assert process.stdout is not None
        lines += process.stdout.read().split()
        process.stdout.close()
        assert process.wait() == 0
    assert lines.count("decoded") == 1
    assert len(set(lines)) == 2


def test_files_and_labels_that_differ_in_number(tmp_path, monkeypatch):
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "one.png")

    class Short(ManyFiles):
        def read(self, place: Path, image_size: int | None) -> Any:
            files = [("one", place / "one.png")]
            return {split: ours.Files(files, np.array([0, 1]), "RGB") for split in ("train", "test")}, ("a", "b")

    monkeypatch.setitem(DATASETS._entries, "short", Short)
    with pytest.raises(DataError, match=r"^train of short has 1 images for 2 labels$"):
        load(DatasetSettings(name="short"), tmp_path)


# ------------------------------------------------------------------------------------------------------- streaming


def test_streamed_by_the_suites_word_or_by_size(tmp_path, monkeypatch):
    settings = DatasetSettings(name="imagefolder")
    write_folder(tmp_path / "d", count=50)  # 200 images of 192 bytes: 38,400

    def is_streamed(stream: bool | None) -> bool:
        source = load(settings.model_copy(update={"stream": stream}), tmp_path / "d")
        return trial_data(source, settings).train().streamed

    assert [is_streamed(stream) for stream in (None, True, False)] == [False, True, False]
    monkeypatch.setattr(data, "memory", lambda: 384_000)
    assert not is_streamed(None)
    monkeypatch.setattr(data, "memory", lambda: 383_000)
    assert [is_streamed(stream) for stream in (None, True, False)] == [True, True, False]


def test_images_without_files_cannot_be_streamed(tmp_path):
    message = "dataset.stream: digits is made in memory, and has no files to be streamed"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        load(DatasetSettings(name="digits", stream=True), tmp_path)


def test_a_streamed_source_travels_by_name_and_is_made_where_it_is_missing(tmp_path, monkeypatch):
    settings = DatasetSettings(name="imagefolder", stream=True)
    source = load(settings, write_folder(tmp_path / "d"))
    assert source.open() is source
    sent = pickle.dumps(source.stored)
    assert len(sent) < 2000
    decoded = counted(monkeypatch, ours.ImageFolder)

    def opened() -> Source:
        data._opened.cache_clear()  # another process
        return pickle.loads(sent).open()

    assert opened().fingerprint == source.fingerprint
    assert opened().stored == source.stored
    assert is_mapped(opened().splits["train"].pixels)
    assert len(decoded) == 0
    shutil.rmtree(cache_folder())  # another node
    assert opened().fingerprint == source.fingerprint
    assert len(decoded) == 1
    shutil.rmtree(cache_folder())
    file = tmp_path / "d" / "test" / "a" / "0.png"
    Image.fromarray(noise(8, 8, 3) // 2).save(file)
    with pytest.raises(DataError) as failure:
        opened()
    assert re.fullmatch(
        rf"{tmp_path}/d has other imagefolder images on this node \(fingerprint [0-9a-f]{{16}}\) than where the run was"
        rf" started \({source.fingerprint}\): give every node the same files",
        str(failure.value),
    )
    shutil.rmtree(tmp_path / "d" / "test")
    with pytest.raises(DataError, match=r"^no images in .*/test: put a folder"):
        opened()


def test_the_memory_is_that_of_the_container(monkeypatch):
    whole = machine.memory()
    monkeypatch.setattr(Path, "read_text", lambda self: "1048576\n")
    assert machine.memory() == 1 << 20
    monkeypatch.setattr(Path, "read_text", lambda self: "max\n")
    assert machine.memory() >= whole > 1 << 28


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


# -------------------------------------------------------------------------------------------- images of another dataset


def test_colours_and_sizes_of_images_from_outside():
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    pixels[0] = (255, 0, 0)
    pixels[1, 0, 0] = (10, 200, 90)
    part = Part(Images(pixels, np.zeros(2, np.int64)), np.array([1, 0]))
    outside = dataclasses.replace(part, origin=("fingerprint", "test"))
    assert in_shape(outside, (1, 4, 4)).origin is None, "those are other images"
    grey = in_shape(part, (1, 4, 4))[:]
    assert grey.shape == (2, 4, 4, 1)
    assert [grey[0, 0, 0, 0], grey[1, 0, 0, 0]] == [131, 76], "as Pillow's L"
    assert [Image.fromarray(pixels[i]).convert("L").getpixel((0, 0)) for i in (1, 0)] == [131, 76]
    assert in_shape(part, (3, 4, 4))[:].tolist() == pixels[[1, 0]].tolist()
    back = in_shape(Part(Images(grey, np.zeros(2, np.int64)), np.arange(2)), (3, 4, 4))[:]
    assert (back == grey).all() and back.shape == (2, 4, 4, 3)
    with pytest.raises(UserError) as failed:
        in_shape(part, (3, 8, 4))
    assert str(failed.value) == (
        "ood.dataset: its images are 4x4 pixels, those of the trial 4x8: set ood.dataset.image_size"
    )


def test_images_from_outside_are_brought_to_the_size_of_square_ones():
    settings = DatasetSettings(name="svhn")
    assert sized(settings, (1, 8, 8)) == DatasetSettings(name="svhn", image_size=8)
    assert sized(settings, (1, 8, 6)) == settings, "which has no size for those: in_shape asks for one"
    assert sized(DatasetSettings(name="svhn", image_size=4), (1, 8, 8)).image_size == 4


# ---------------------------------------------------------------------------------------------------- the real thing


@pytest.mark.skipif(not REAL_CIFAR10.is_dir(), reason=f"CIFAR-10 is not in {REAL_CIFAR10}: set RAYBENCH_TEST_CIFAR10")
def test_real_cifar10(tmp_path, monkeypatch):
    decoded = counted(monkeypatch, ours.CIFAR10)
    settings = DatasetSettings(name="cifar10")
    first, second = (load(settings, place) for place in (REAL_CIFAR10, REAL_CIFAR10.parent))
    assert len(decoded) == 1
    assert first.fingerprint == second.fingerprint
    assert first.classes == CIFAR10_CLASSES
    assert first.shape == (3, 32, 32)
    assert np.bincount(second.splits["train"].labels).tolist() == [5000] * 10
    assert np.bincount(second.splits["test"].labels).tolist() == [1000] * 10
    trial = trial_data(second, settings)
    assert (len(trial.train()), len(trial.validation()), len(trial.test())) == (45_000, 5_000, 10_000)
    assert np.bincount(trial.validation().gather(slice(None))[1]).tolist() == [500] * 10
