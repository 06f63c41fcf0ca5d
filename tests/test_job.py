"""What a sweep's trials share: images loaded once, options checked before training, statistics fitted once, git."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from raybench import job
from raybench.data import Images, Source, trial_data
from raybench.errors import DataError, SuiteError, UserError, WeightsError
from raybench.grid import Trial
from raybench.job import check_options, divided, git_state, prepare, source_key, statistics_key
from raybench.records import computed
from raybench.settings import DatasetSettings
from raybench.suite import Suite
from raybench.train import World

LoadSuite = Callable[..., tuple[Suite, list[Trial]]]


def suite_text(model: str = "[mlp]", augmentation: str = "[none]", more: str = "") -> str:
    return f"""
name: grid
dataset: {{name: digits, validation: {{size: 30}}}}
compare:
  model: {model}
  augmentation: {augmentation}
{more}
repeat: {{seed: 2}}
train: {{epochs: 1, batch_size: 16}}
"""


@pytest.fixture
def loads(source: Source, monkeypatch: pytest.MonkeyPatch) -> list[DatasetSettings]:
    """The settings of every load; each gives the made-up images."""
    seen: list[DatasetSettings] = []

    def load(settings: DatasetSettings, data_dir: Path) -> Source:
        seen.append(settings)
        return source

    monkeypatch.setattr(job, "load", load)
    return seen


def test_every_source_is_loaded_once(load_suite: LoadSuite, loads: list[DatasetSettings], tmp_path: Path) -> None:
    more = "  dataset.train_size: [20, 40]\n  dataset.image_size: [4, 8]\n  train.batch_size: [8, 16]"
    suite, trials = load_suite(suite_text(more=more))
    said: list[str] = []
    made = prepare(suite, trials, tmp_path, said.append)
    assert len(trials) == 16
    assert [settings.image_size for settings in loads] == [4, 8]
    assert said == ["reading digits"] * 2
    assert list(made.sources) == ['["digits", null, 4]', '["digits", null, 8]']
    assert made.trials == {trial.id: trial for trial in trials}
    assert made.statistics == {"": {}}
    assert {source_key(trial.typed()) for trial in trials} == set(made.sources)

    later = [trial for trial in trials if trial.typed().dataset.image_size == 8]
    after = prepare(suite, later, tmp_path, said.append, known=prepare(suite, later[:1], tmp_path))
    assert len(loads) == 3 and len(said) == 2, "what was read for trials before is not read again"
    assert after.trials == {trial.id: trial for trial in later}


def test_statistics_are_fitted_once(
    load_suite: LoadSuite, loads: list[DatasetSettings], fits: list[int], tmp_path: Path
) -> None:
    augmentation = "{none: none, white: zca, moved: [shift, zca], weak: {zca: 0.1}}"
    suite, trials = load_suite(suite_text("[mlp, small_cnn]", augmentation, "  dataset.train_size: [50, 60]"))
    said: list[str] = []
    made = prepare(suite, trials, tmp_path, said.append)
    assert sorted(fits) == [50, 50, 60, 60]
    assert said[0] == "reading digits"
    assert sorted(said[1:]) == [
        "fitting zca-0.1 on 50 training images",
        "fitting zca-0.1 on 60 training images",
        "fitting zca-1e-06 on 50 training images",
        "fitting zca-1e-06 on 60 training images",
    ]
    keys = [statistics_key(trial.typed()) for trial in trials]
    assert set(keys) == set(made.statistics) and len(set(keys)) == 5
    assert made.statistics[""] == {}

    again = prepare(suite, trials, tmp_path)
    assert len(fits) == 4  # kept on disk
    after = prepare(suite, trials, tmp_path, said.append, known=made)
    assert len(said) == 5 and all(after.statistics[key] is made.statistics[key] for key in keys)
    for key, statistics in again.statistics.items():
        assert all(np.array_equal(array, made.statistics[key][name]) for name, array in statistics.items())


def test_a_prepared_trial_runs(
    load_suite: LoadSuite, loads: list[DatasetSettings], fits: list[int], tmp_path: Path
) -> None:
    suite, trials = load_suite(suite_text(augmentation="[none, zca]"))
    made = prepare(suite, trials, tmp_path)
    told: list[int] = []
    outcomes = [made.run(trial, report=lambda row: told.append(row.epoch)) for trial in trials]
    assert [outcome.row.status for outcome in outcomes] == ["completed"] * 4
    assert told == [1] * 4 and fits == [60]
    backwards = [made.run(trial, world=World()) for trial in reversed(trials)]
    for one, other in zip(outcomes, reversed(backwards), strict=True):
        assert computed(one.row) == computed(other.row)
        assert [computed(epoch) for epoch in one.epochs] == [computed(epoch) for epoch in other.epochs]


@pytest.mark.parametrize(
    ("model", "augmentation", "message"),
    [
        (
            "{plain: mlp, bad: {name: mlp, hiden: [8]}}",
            "[none]",
            "model 'mlp' has no option 'hiden'; did you mean 'hidden'?",
        ),
        (
            "{bad: {name: mlp, hidden: 8}}",
            "[none]",
            "model 'mlp' (hidden=8) for images of 8x8: hidden must be a list of layer widths such as [128, 64], not 8",
        ),
        (
            "[model1]",
            "[none]",
            "model 'model1' for images of 2x2: they are too small, its layers leave nothing of them",
        ),
        ("[mlp]", "{bad: {shift: 2}}", "augmentation 'shift': x must be a number from 0 to 1, not 2"),
        (
            "[mlp]",
            "{none: none, bad: [flip, {zoom: {rnge: 0.1}}]}",
            "augmentation 'zoom' has no option 'rnge'; did you mean 'range'?",
        ),
        ("[mlp]", "{bad: [zca, zca]}", "augmentation 'zca' cannot follow 'zca': one of them is enough"),
        (
            "[mlp]",
            "{bad: {name: standardize, mean: [0.5, 0.5], std: 0.2}}",
            "standardize has 2 numbers for mean, but images of 1 channels",
        ),
    ],
)
def test_wrong_options_are_found_before_training(
    model: str,
    augmentation: str,
    message: str,
    load_suite: LoadSuite,
    loads: list[DatasetSettings],
    source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suite, trials = load_suite(suite_text(model, augmentation))
    if "2x2" in message:
        small = {
            split: Images(np.ascontiguousarray(i.pixels[:, :2, :2]), i.labels) for split, i in source.splits.items()
        }
        monkeypatch.setattr(job, "load", lambda settings, data_dir: Source(small, source.classes, "2" * 16))
    with pytest.raises(SuiteError) as caught:
        prepare(suite, trials, tmp_path)
    assert str(caught.value) == f"{suite.source}: {message}"


@pytest.mark.parametrize(
    ("model", "train", "message"),
    [
        ("mlp", "trainable: {last: 2}", "last: 2 is too many: 1 layers with weights stand before the head"),
        (
            "mlp",
            "phases: [{epochs: 1}, {epochs: 1, trainable: {last: 7}}]",
            "last: 7 is too many: 1 layers with weights stand before the head",
        ),
        ("norms", "l2: 0.1", "l2 and elastic_net need a convolution or a dense layer that is trained"),
        ("norms", "elastic_net: {}", "l2 and elastic_net need a convolution or a dense layer that is trained"),
        ("norms", "trainable: head", "the network has no layer with weights of which a part could be trained"),
    ],
)
def test_what_cannot_be_trained_is_found_before_training(
    model: str,
    train: str,
    message: str,
    load_suite: LoadSuite,
    loads: list[DatasetSettings],
    add_model: Callable[[str, Any], None],
    tmp_path: Path,
) -> None:
    add_model("norms", lambda shape, classes: nn.Sequential(nn.AvgPool2d(shape[1]), nn.Flatten(), Norms(classes)))
    suite, trials = load_suite(suite_text(f"[{model}]").replace("epochs: 1, batch_size: 16", train))
    for find in (lambda: prepare(suite, trials, tmp_path), lambda: check_options(suite, trials)):
        with pytest.raises(SuiteError) as caught:
            find()
        assert str(caught.value) == f"{suite.source}: model '{model}': {message}"


class Norms(nn.Module):
    """Logits without a layer that has a matrix."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :1] * self.scale


# ---------------------------------------------------------------------------------------------------------------------
# Weights

BACKBONES = "{random: 'timm:resnet10t', given: {name: 'timm:resnet10t', pretrained: true, cache_dir: nowhere}}"


def test_weights_that_cannot_be_had_are_missed_before_a_cluster_is_asked(
    load_suite: LoadSuite, loads: list[DatasetSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    suite, trials = load_suite(suite_text(BACKBONES))
    said: list[str] = []
    with pytest.raises(WeightsError) as caught:
        prepare(suite, trials, tmp_path, said.append)
    assert str(caught.value) == (
        "the pretrained weights of timm:resnet10t are neither in the hub's cache nor could they be downloaded: run once"
        " where the hub can be reached, name a file (weights: path/to/file.safetensors), or say pretrained: false"
    )
    assert said == ["reading digits", "loading the weights of timm:resnet10t"]
    check_options(suite, trials)  # downloads nothing


def test_weights_are_got_once_and_notes_collected(
    load_suite: LoadSuite, loads: list[DatasetSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = timm.create_model("resnet10t", in_chans=1)
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("layer1.0.conv")}
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(state))
    suite, trials = load_suite(suite_text(BACKBONES, "[none, flip]", "  lr: [0.1, 0.2]"))
    said: list[str] = []
    made = prepare(suite, trials, tmp_path, said.append)
    assert said == ["reading digits", "loading the weights of timm:resnet10t"]
    assert made.notes == (
        "timm:resnet10t: random weights (pretrained: true for those of the hub, pretrained: false if that is meant)",
        "timm:resnet10t: the images are not normalised as for its pretrained weights (normalize: true does it)",
        "timm:resnet10t: the weights fit only partly: layer1.0.conv1.weight, layer1.0.conv2.weight start at random",
    )


def test_options_are_checked_without_images(load_suite: LoadSuite, loads: list[DatasetSettings]) -> None:
    suite, trials = load_suite(suite_text("{good: mlp, bad: {name: mlp, hidden: [-1]}}", "[none, aug1, aug2]"))
    with pytest.raises(SuiteError) as caught:
        check_options(suite, trials)
    assert str(caught.value) == (
        f"{suite.source}: model 'mlp' (hidden=[-1]) for images of 32x32: hidden must be a list of layer widths such as"
        " [128, 64], not [-1]"
    )
    suite, trials = load_suite(suite_text("[model1, model2, model3, mlp]", "[none, aug1, aug2]"))
    check_options(suite, trials)
    assert loads == []


def test_missing_data_is_the_users_to_mend(load_suite: LoadSuite, tmp_path: Path) -> None:
    suite, trials = load_suite(suite_text(), "dataset.name=imagefolder")
    with pytest.raises(DataError) as caught:
        prepare(suite, trials, tmp_path)
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)


def test_too_many_validation_images(load_suite: LoadSuite, loads: list[DatasetSettings], tmp_path: Path) -> None:
    suite, trials = load_suite(suite_text(), "dataset.validation={size: 90}")
    with pytest.raises(DataError, match=r"^dataset.validation holds out 90 of the 90 training images of digits$"):
        prepare(suite, trials, tmp_path)


def test_a_division_is_drawn_once_and_copies_no_image(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def counting(source: Source, settings: DatasetSettings) -> Any:
        drawn.append(settings.seed)
        return trial_data(source, settings)

    monkeypatch.setattr(job, "trial_data", counting)
    monkeypatch.setattr(job, "_divisions", {})
    settings = [DatasetSettings(name="digits", seed=seed) for seed in (1, 2, 1, 1)]
    data = [divided(source, each) for each in settings]
    assert drawn == [1, 2]
    assert data[0] is data[2] is data[3] is not data[1]
    assert data[0].train().images.pixels is source.splits["train"].pixels
    assert not np.array_equal(data[0].division.train, data[1].division.train)
    other = Source(source.splits, source.classes, "f" * 16)
    assert divided(other, settings[0]) is not data[0]
    assert drawn == [1, 2, 1]


def test_what_arrays_a_trial_reads_and_what_it_fits(load_suite: LoadSuite) -> None:
    _, trials = load_suite(suite_text(augmentation="[none, zca]", more="  dataset.train_size: [20, 40]"))
    assert {source_key(trial.typed()) for trial in trials} == {json.dumps(["digits", None, None])}
    keys = {(t.cell[1], t.cell[2]): statistics_key(t.typed()) for t in trials}
    assert keys["none", 20] == keys["none", 40] == ""
    assert keys["zca", 20] != keys["zca", 40]


# ---------------------------------------------------------------------------------------------------------------------
# Git


def test_the_commit_of_the_suites_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) == {}
    assert git_state(tmp_path / "nowhere") == {}

    def git(*arguments: str) -> str:
        person = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        command = ["git", *person, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert git_state(tmp_path) == {}  # no commit yet
    folder = tmp_path / "suites"
    folder.mkdir()
    (folder / "a.yaml").write_text("one")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    clean = {"git_commit": git("rev-parse", "HEAD"), "git_dirty": False}
    assert len(clean["git_commit"]) == 40
    assert git_state(folder) == clean
    (folder / "untracked.yaml").write_text("new")
    assert git_state(folder) == clean
    (folder / "a.yaml").write_text("two")
    assert git_state(folder) == {**clean, "git_dirty": True}
    git("add", "suites/a.yaml")
    assert git_state(folder) == {**clean, "git_dirty": True}
    monkeypatch.chdir(folder)
    assert git_state(Path()) == {**clean, "git_dirty": True}


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(Path(__file__).parent) == {}
