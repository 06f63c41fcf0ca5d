"""Trials that are over, asked by their weights: Grad-CAM pictures, images from outside, and the commands for both."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made import Raybench
from PIL import Image

from raybench import ood, revisit
from raybench.errors import DataError, UserError
from raybench.grid import Trial
from raybench.job import prepare
from raybench.plan import Choice, snapshot
from raybench.registry import DATASETS
from raybench.revisit import Images, detect, finished, look, network_of
from raybench.store import Store
from raybench.suite import Suite, load

SUITE = """
name: seen
dataset: {name: digits, train_size: 100, test_size: 60}
compare: {model: [small_cnn, mlp]}
repeat: {seed: 2}
train: {epochs: 1}
keep_weights: best
ood: {dataset: {name: imagefolder, folder: other}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``seen.yaml``, ``results`` of three of its trials, and in ``data`` noise in colour."""
    folder = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, count in (("dots", 30), ("dashes", 10)):
            place = folder / "data" / "other" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(place / f"{number:02}.png")
    (folder / "seen.yaml").write_text(SUITE, encoding="utf-8")
    choice = Choice(load(folder / "seen.yaml"))
    trials = choice.trials({})
    job = prepare(choice.suite, trials, folder / "data")
    store = Store(folder / "results", choice.suite)
    store.open(snapshot(choice))
    for trial in trials[:3]:
        store.write(job.run(trial))
    store.close()
    return folder


@pytest.fixture
def suite(home: Path) -> Suite:
    return load(home / "seen.yaml")


@pytest.fixture
def trials(suite: Suite) -> list[Trial]:
    return Choice(suite).trials({})


@pytest.fixture
def store(home: Path, suite: Suite) -> Store:
    return Store(home / "results", suite)


@pytest.fixture
def images(home: Path) -> Images:
    return Images(home / "data")


@pytest.fixture
def raybench(raybench: Raybench, home: Path, monkeypatch: pytest.MonkeyPatch) -> Raybench:
    monkeypatch.chdir(home)
    return raybench


# ---------------------------------------------------------------------------------------------------------------------
# Images from outside


def test_finished_trials_with_weights_are_asked_once(
    store: Store, suite: Suite, trials: list[Trial], images: Images
) -> None:
    assert suite.ood
    said: list[str] = []
    store.open()
    try:
        assert detect(suite.ood, trials, store, images, said.append) == 3
        assert detect(suite.ood, trials, store, Images(Path("nowhere"))) == 0, "no image is read again"
    finally:
        store.close()
    assert said == ["small_cnn/s0 (1 of 3)", "mlp/s0 (2 of 3)", "small_cnn/s1 (3 of 3)"]
    (store.folder / "activations" / f"{trials[0].id}.parquet").write_bytes(b"torn")
    store.open()
    try:
        assert detect(suite.ood, trials, store, images) == 1, "what cannot be read is made again"
    finally:
        store.close()
    rows, scores = store.read("ood")[0], store.read("activations")[0]
    one = rows[rows["trial_id"] == trials[0].id]
    assert one["layer"].fillna("–").tolist() == ["1", "4", "7", "–", "–"]
    assert one["kind"].fillna("–").tolist() == ["ReLU"] * 3 + ["–", "–"]
    assert one["score"].tolist() == ["mean_activation"] * 3 + ["max_softmax", "energy"]
    # 40 images from outside, so 40 of the 60 test images; half of each choose the threshold.
    assert {*zip(one["n_in"], one["n_out"], one["n_choosing"], strict=True)} == {(20, 20, 40)}
    assert len(scores) == 80 * (5 + 3 + 5)
    same = [group["index"].tolist() for _, group in scores.groupby(["trial_id", "score", "layer"], dropna=False)]
    assert all(index == same[0] for index in same), "every trial and score is of the same images"


def test_what_is_stored_follows_from_the_network(
    store: Store, suite: Suite, trials: list[Trial], images: Images
) -> None:
    """The mean of a layer's output, the softmax and the energy, by plain torch; and no image twice."""
    assert suite.ood
    with network_of(trials[0], finished(store)[trials[0].id], store, images) as network:
        layers = network.layers(["1"])
        found = {(score.score, score.layer): score for score in revisit.scores(network, suite.ood, images)}
        energy = found["energy", None]
        inside = energy.dataset == "in"
        assert len({*energy.index[inside]}) == inside.sum() == 40
        assert {*energy.index[inside]} <= {*network.data.test().index}
        pixels = network.data.pools["test"].pixels[energy.index[inside]]
        first = network.network[:2]  # type: ignore[index]
        with torch.inference_mode():
            batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
            logits, maps = network.network(batch), first(batch)
    assert layers["1"] is first[1]
    for key, expected in {
        ("energy", None): logits.exp().sum(1).log(),
        ("max_softmax", None): torch.softmax(logits, 1).max(1).values,
        ("mean_activation", "1"): maps.mean((1, 2, 3)),
    }.items():
        np.testing.assert_allclose(found[key].value[inside], expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["relu"], "no layer 'relu' in the network; known: 0 (Conv2d), 1 (ReLU), 2 (Conv2d), 3 (BatchNorm2d), "),
        (["1", "11"], "no layer '11' in the network; known: "),
    ],
)
def test_layers_that_are_not_there(
    layers: list[str], message: str, store: Store, suite: Suite, trials: list[Trial], images: Images
) -> None:
    assert suite.ood
    asked = suite.ood.model_copy(update={"layers": layers})
    with (
        network_of(trials[0], finished(store)[trials[0].id], store, images) as network,
        pytest.raises(UserError) as failed,
    ):
        revisit.scores(network, asked, images)
    assert str(failed.value).startswith(message)


def test_other_images_than_those_of_the_trial(store: Store, trials: list[Trial], images: Images) -> None:
    with pytest.raises(DataError) as failed:
        network_of(trials[0], "0123456789abcdef", store, images)
    assert str(failed.value).startswith(
        f"{trials[0].id} was trained on other digits images (fingerprint 0123456789abcdef) than those at hand ("
    )


# ---------------------------------------------------------------------------------------------------------------------
# Grad-CAM


@pytest.mark.parametrize("which", ["any", "right", "wrong"])
def test_images_are_those_of_the_predictions(
    which: revisit.Which, store: Store, trials: list[Trial], images: Images
) -> None:
    pytest.importorskip("captum", reason="no captum: pip install 'raybench[explain]'")
    stored = store.read("predictions")[0]
    stored = stored[stored["trial_id"] == trials[0].id].sort_values("index")
    if which != "any":
        stored = stored[(stored["label"] == stored["prediction"]) == (which == "right")]
    found = look(trials[0], store, images, count=4, which=which)
    assert found.index.tolist() == stored["index"].tolist()[:4]
    assert found.true.tolist() == stored["label"].tolist()[:4]
    assert found.predicted.tolist() == stored["prediction"].tolist()[:4]
    assert found.images.shape == (4, 8, 8, 1) and found.maps.shape == (4, 8, 8)
    source = images.source(trials[0].typed().dataset)
    assert (found.images == source.splits["test"].pixels[found.index]).all()
    assert (found.layer, found.classes) == ("6", source.classes)


# ---------------------------------------------------------------------------------------------------------------------
# Commands


def test_the_command_prints_and_draws(raybench: Raybench, home: Path, store: Store) -> None:
    status, out, _ = raybench("ood", "seen", "--format", "json", "--plot", "h.png", "--samples", "s.svg")
    assert status == 0
    found = json.loads(out)
    assert [(row["model"], row["n"], row["planned"]) for row in found["rows"]] == [("small_cnn", 2, 2)] * 5 + [
        ("mlp", 1, 2)
    ] * 3
    assert found["notes"] == ["1 trial not run yet"]
    assert (home / "h.png").stat().st_size > 10_000
    drawn = (home / "s.svg").read_text(encoding="utf-8")
    assert "told rightly: " in drawn and "from outside (imagefolder/other)" in drawn and "of the data (digits)" in drawn
    shares = store.read("ood")[0].query("layer == '4'")["accuracy"]
    (row,) = (row for row in found["rows"] if row["layer"] == "4")
    assert row["accuracy"] == pytest.approx(shares.mean())


def test_judged_images_with_their_thresholds(store: Store) -> None:
    rows, scores = store.read("ood")[0], store.read("activations")[0]
    found = ood.frame(rows, scores)
    assert len(found) == scores["judged"].sum() and found["threshold"].notna().all()
    assert {*found["name"]} >= {"layer 4 (ReLU)", "max softmax", "energy"}
    told = found.assign(right=(found["value"].astype(float) >= found["threshold"]) == (found["dataset"] == "in"))
    shares = told.groupby(["trial_id", "score", "layer"], dropna=False)["right"].mean()
    expected = rows.set_index(["trial_id", "score", "layer"])["accuracy"]
    pd.testing.assert_series_equal(shares.sort_index(), expected.sort_index(), check_names=False)


def test_other_images_by_option_stand_beside_the_suites(raybench: Raybench, store: Store, suite: Suite) -> None:
    assert suite.ood
    assert raybench("ood", "seen", "--format", "csv")[0] == 0
    status, out, _ = raybench("ood", "seen", "--dataset", "digits", "--layer", "1", "--format", "json")
    found = json.loads(out)
    assert status == 0
    assert found["header"][0] == "inside: the test images of each trial; outside: test images of digits"
    assert [(row["outside"], row["layer"]) for row in found["rows"]] == [
        ("digits", "1"),
        ("digits", None),
        ("digits", None),
    ] * 2
    assert found["notes"] == [
        "stored too, and shown where --dataset names them: imagefolder/other",
        "1 trial not run yet",
    ]
    rows = store.read("ood")[0]
    own = ood.settings_text(suite.ood)
    assert {json.loads(text)["dataset"]["name"] for text in {*rows["settings"]} - {own}} == {"digits"}
    assert (rows["settings"] == own).sum() == 5 + 5 + 3, "what the suite asked stays"

    both = ("--dataset", "imagefolder/other", "--dataset", "digits", "--layer", "1", "--format", "json")
    found = json.loads(raybench("ood", "seen", *both)[1])
    assert [row["outside"] for row in found["rows"] if row["score"] == "energy"] == ["imagefolder/other", "digits"] * 2
    assert raybench("ood", "seen", *both, "--samples", "s.svg") == (
        2,
        "",
        "raybench: --samples: draws images of one dataset: give --dataset once\n",
    )


@pytest.fixture
def snapshot_of(home: Path) -> Iterator[Callable[..., None]]:
    """``snapshot_of(**keys)`` changes keys of the stored suite, None leaves one out, until the test is over."""
    path = home / "results" / "seen" / "suite.json"
    kept = path.read_text(encoding="utf-8")

    def change(**keys: object) -> None:
        snapshot = json.loads(kept)
        document = {**snapshot["document"], **keys}
        snapshot["document"] = {key: value for key, value in document.items() if value is not None}
        path.write_text(json.dumps(snapshot), encoding="utf-8")

    yield change
    path.write_text(kept, encoding="utf-8")


def test_the_folder_of_a_dataset_is_named_as_the_table_names_it(
    raybench: Raybench, store: Store, snapshot_of: Callable[..., None]
) -> None:
    """What the suite asked is shown again where the suite no longer asks it, and nothing is asked anew."""
    assert raybench("ood", "seen", "--format", "csv")[0] == 0
    before = len(store.read("ood")[0])
    snapshot_of(ood=None)
    status, out, _ = raybench("ood", "seen", "--dataset", "imagefolder/other", "--format", "json")
    assert status == 0
    assert {row["outside"] for row in json.loads(out)["rows"]} == {"imagefolder/other"}
    assert len(store.read("ood")[0]) == before


def test_datasets_that_the_suite_registers_can_be_named(
    raybench: Raybench,
    home: Path,
    snapshot_of: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))
    (home / "striped.py").write_text(
        "from raybench.datasets import Digits\nfrom raybench.registry import DATASETS\n\n\n"
        '@DATASETS.register("striped")\nclass Striped(Digits):\n    pass\n',
        encoding="utf-8",
    )
    snapshot_of(imports=["striped"])
    status, out, said = raybench("ood", "seen", "--dataset", "striped", "--format", "json")
    assert status == 0, said
    assert {row["outside"] for row in json.loads(out)["rows"]} == {"striped"}


def test_stored_scores_are_drawn_of_the_dataset_that_is_named(raybench: Raybench, home: Path) -> None:
    assert raybench("ood", "seen", "--format", "csv")[0] == 0
    assert raybench("ood", "seen", "--dataset", "digits", "--samples", "own.svg", "--plot", "h.svg")[0] == 0
    for kind, own in (("outside", "own.svg"), ("activations", "h.svg")):
        assert raybench("plot", kind, "seen", "--dataset", "digits", "-o", "again.svg")[:2] == (0, "again.svg\n")
        assert (home / "again.svg").read_bytes() == (home / own).read_bytes()
        assert raybench("plot", kind, "seen", "-o", "suites.svg")[0] == 0
        assert "imagefolder/other" in (home / "suites.svg").read_text(encoding="utf-8"), "the suite's by default"
        assert raybench("plot", kind, "seen", "--dataset", "digitz") == (
            2,
            "",
            "raybench: --dataset digitz: no scores of such images are stored, `raybench ood --dataset` stores them;"
            " did you mean 'digits'?\n",
        )
    assert raybench("report", "seen", "-o", "r.html")[0] == 0
    assert '<figure id="figure-outside">' in (home / "r.html").read_text(encoding="utf-8")


def test_images_from_outside_that_are_not_those_of_the_scores(raybench: Raybench, home: Path, tmp_path: Path) -> None:
    assert raybench("ood", "seen", "--format", "csv")[0] == 0
    elsewhere = ("--data-dir", str(tmp_path))
    status, _, said = raybench("plot", "outside", "seen", *elsewhere)
    assert status == 2 and said.count("\n") == 1 and str(tmp_path) in said, "asks for the folder"
    for place in (home / "data" / "other").rglob("*.png"):
        there = tmp_path / place.relative_to(home / "data")
        there.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(there)
    status, _, said = raybench("plot", "outside", "seen", *elsewhere)
    assert status == 2
    assert said.startswith(f"raybench: {tmp_path}: has other imagefolder images (fingerprint ")
    assert said.endswith("): name their folder with --data-dir\n") and " small_cnn/s0 was asked about (" in said
    assert raybench("report", "seen", *elsewhere, "-o", "r.html")[0] == 0
    assert "small_cnn/s0 was asked about" in (home / "r.html").read_text(encoding="utf-8"), "the rest is drawn"


def test_gradcam_draws_a_picture(raybench: Raybench, home: Path) -> None:
    pytest.importorskip("captum", reason="no captum: pip install 'raybench[explain]'")
    assert raybench("gradcam", "seen", "model=small_cnn", "--count", "2", "--layer", "2", "-o", "cam.svg")[:2] == (
        0,
        "cam.svg\n",
    )
    drawn = (home / "cam.svg").read_text(encoding="utf-8")
    assert "seen: Grad-CAM" in drawn and "layer 2" in drawn
    assert raybench("gradcam", "seen", "--count", "1", "--right")[:2] == (0, "seen-gradcam.png\n")


def test_gradcam_as_a_kind_of_figure_and_in_the_report(raybench: Raybench, home: Path) -> None:
    pytest.importorskip("captum", reason="no captum: pip install 'raybench[explain]'")
    assert raybench("gradcam", "seen", "--count", "2", "-o", "own.svg")[0] == 0
    assert raybench("plot", "gradcam", "seen", "--count", "2", "-o", "kind.svg")[:2] == (0, "kind.svg\n")
    assert (home / "kind.svg").read_bytes() == (home / "own.svg").read_bytes()
    shown = {}
    for name, options in {"with": ["--gradcam"], "without": []}.items():
        assert raybench("report", "seen", *options, "-o", f"{name}.html")[:2] == (0, f"{name}.html\n")
        shown[name] = '<figure id="figure-gradcam">' in (home / f"{name}.html").read_text(encoding="utf-8")
    assert shown == {"with": True, "without": False}


@pytest.mark.parametrize(
    ("command", "downloads"),
    [(("gradcam", "seen"), False), (("plot", "gradcam", "seen"), False), (("ood", "seen", "--dataset", "svhn"), True)],
)
def test_only_who_asks_for_other_images_has_them_downloaded(
    command: tuple[str, ...],
    downloads: bool,
    raybench: Raybench,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A picture of stored results asks for the folder of their images, as `plot gallery` does."""
    asked = []

    def load(settings: object, data_dir: Path, *, download: bool) -> None:
        asked.append(download)
        raise DataError("no images here")

    monkeypatch.setattr(revisit, "load", load)
    status, _, said = raybench(*command)
    assert (status, asked) == (2, [downloads]) and said.endswith("raybench: no images here\n")


@pytest.mark.parametrize("command", [("gradcam", "seen"), ("plot", "gradcam", "seen"), ("ood", "seen")])
def test_networks_cannot_be_asked_without_torch(
    raybench: Raybench, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    message = "this asks trained networks, and needs PyTorch: pip install torch torchvision"
    assert raybench(*command) == (2, "", f"raybench: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ood", "seen", "--layer", "1"), "--layer: goes with --dataset; the suite names its own under ood.layers"),
        (
            ("plot", "gradcam", "seen", "--seed", "3"),
            "--seed: is no option of gradcam, which has --trial and --count",
        ),
        (("ood", "seen", "--dataset", "svnh"), "unknown dataset 'svnh'; did you mean 'svhn'?"),
        (("ood", "seen", "--dataset", "imagefoldr/a"), "unknown dataset 'imagefoldr'; did you mean 'imagefolder'?"),
        (
            ("ood", "seen", "--dataset", "imagefolder/../a"),
            "--dataset imagefolder/../a: '../a' is not right: must be a relative folder below --data-dir, such as"
            " 'pets/train'; give the place itself with --data-dir",
        ),
        (
            ("gradcam", "seen", "model=mlp"),
            "the network has no convolution: name a layer whose output is maps with --layer",
        ),
        (
            ("gradcam", "seen", "model=mlp", "seed=1"),
            "results/seen: no finished trial has its weights: a suite keeps them with `keep_weights: best`, from then"
            " on",
        ),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], message: str, raybench: Raybench) -> None:
    assert raybench(*arguments) == (2, "", f"raybench: {message}\n")


def test_a_suite_that_says_nothing_of_other_images(raybench: Raybench, snapshot_of: Callable[..., None]) -> None:
    snapshot_of(ood=None)
    assert raybench("ood", "results/seen") == (
        2,
        "",
        "raybench: seen: its last run had no `ood`: name the images with --dataset, or add `ood: {dataset: svhn}`"
        " to the suite and run it again, which trains nothing again\n",
    )
