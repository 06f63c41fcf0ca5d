from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from raybench.dotted import first_complaint
from raybench.settings import PARTIAL, EarlyStopping, Optimizer, Resources, TrainSettings, TrialSettings
from raybench.suite import json_schema
from raybench.yamlfile import parse_yaml

SCHEMA = Path(__file__).parent.parent / "suites" / "raybench.schema.json"


def settings(**sections: Any) -> TrialSettings:
    return TrialSettings.model_validate({"dataset": {"name": "digits"}, "model": "mlp", **sections})


def complaint(**sections: Any) -> str:
    with pytest.raises(ValidationError) as error:
        settings(**sections)
    place, message = first_complaint(error.value, TrialSettings)
    return f"{'.'.join(map(str, place))}: {message}"


# ---------------------------------------------------------------------------------------------------------------------
# Spellings


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("aug1", [{"name": "aug1"}]),
        ("none", [{"name": "none"}]),
        (None, [{"name": "none"}]),
        ([], []),
        (["flip"], [{"name": "flip"}]),
        ({"shift": 0.1}, [{"name": "shift", "value": 0.1}]),
        ({"shift": {"x": 0.1, "y": 0.2}}, [{"name": "shift", "x": 0.1, "y": 0.2}]),
        ({"flip": None}, [{"name": "flip"}]),
        ({"zoom": [0.9, 1.1]}, [{"name": "zoom", "value": [0.9, 1.1]}]),
        ({"name": "shift"}, [{"name": "shift"}]),
        ({"name": "shift", "x": 0.1}, [{"name": "shift", "x": 0.1}]),
        (
            ["aug1", {"shift": 0.1}, {"zoom": {"range": 0.2}}, {"name": "flip", "vertical": True}, None],
            [
                {"name": "aug1"},
                {"name": "shift", "value": 0.1},
                {"name": "zoom", "range": 0.2},
                {"name": "flip", "vertical": True},
                {"name": "none"},
            ],
        ),
    ],
)
def test_every_spelling_of_an_augmentation(written: Any, parts: list[dict[str, Any]]) -> None:
    read = settings(augmentation=written)
    assert read.model_dump()["augmentation"] == parts
    assert settings(augmentation=parts) == read


def test_a_name_alone_is_a_dataset_a_model_or_an_optimizer() -> None:
    assert settings(dataset="digits") == settings(dataset={"name": "digits"})
    read = settings(model="mlp", train={"optimizer": "sgd"})
    assert read == settings(model={"name": "mlp"}, train={"optimizer": {"name": "sgd"}})
    assert read.model.options == {}
    assert settings(model={"name": "mlp", "hidden": [64]}).model.options == {"hidden": [64]}


def test_quoted_numbers_are_numbers() -> None:
    assert settings(train={"lr": "1e-3", "epochs": "7"}).train == TrainSettings(lr=0.001, epochs=7)


def test_the_defaults() -> None:
    assert settings().model_dump() == {
        "dataset": {
            "name": "digits",
            "folder": None,
            "image_size": None,
            "validation": {"size": None, "fraction": 0.1},
            "train_size": None,
            "test_size": None,
            "seed": 0,
            "stream": None,
        },
        "model": {"name": "mlp"},
        "augmentation": [{"name": "none"}],
        "train": {
            "epochs": 20,
            "batch_size": 32,
            "lr": 0.001,
            "optimizer": {"name": "adam", "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "decay": 0.0},
            "loss": "cross_entropy",
            "label_smoothing": 0.0,
            "l2": 0.0,
            "elastic_net": None,
            "schedule": None,
            "trainable": "all",
            "phases": [],
            "augmented_copies": 0,
            "early_stopping": None,
            "best": "val_accuracy",
            "precision": "float32",
            "cuda_graph": False,
            "test_every_epoch": False,
            "smoke": False,
        },
        "resources": {"cpus": 1, "gpus": 0.0, "workers": 1, "custom": {}, "labels": {}},
    }


def test_settings_survive_json() -> None:
    read = settings(augmentation=[{"shift": 0.1}], dataset={"name": "digits", "validation": {"size": 10}})
    assert TrialSettings.model_validate_json(read.model_dump_json()) == read


# ---------------------------------------------------------------------------------------------------------------------
# Checks

VALIDATION = "must be `test`, `split`, `{size: N}` or `{fraction: F}` with F between 0 and 1"
FOLDER = "must be a relative folder below --data-dir, such as 'pets/train'; give the place itself with --data-dir"
OPTIMIZERS = "must be 'adam', 'adamw', 'sgd' or 'rmsprop'"


TRAINABLE = "must be all, head or {last: n} with n from 1"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"epochs": 0}}, "train.epochs: 0 is not right: must be greater than or equal to 1"),
        ({"train": {"epochs": 1.5}}, "train.epochs: 1.5 is not right: must be a whole number"),
        ({"train": {"epochs": "many"}}, "train.epochs: 'many' is not right: must be a whole number"),
        ({"train": {"lr": "fast"}}, "train.lr: 'fast' is not right: must be a number"),
        ({"train": {"lr": 0}}, "train.lr: 0 is not right: must be greater than 0"),
        ({"train": {"lr": float("nan")}}, "train.lr: nan is not right: must be a finite number"),
        ({"train": {"lr": float("inf")}}, "train.lr: inf is not right: must be a finite number"),
        ({"train": {"loss": "mse"}}, "train.loss: 'mse' is not right: must be 'cross_entropy' or 'bce'"),
        ({"train": {"smoke": "perhaps"}}, "train.smoke: 'perhaps' is not right: must be true or false"),
        ({"train": [1]}, "train: [1] is not right: must be a mapping"),
        ({"train": {"optimizer": "sdg"}}, f"train.optimizer.name: 'sdg' is not right: {OPTIMIZERS}"),
        ({"train": {"optimizer": ["sgd"]}}, "train.optimizer: ['sgd'] is not right: must be a name or a mapping"),
        (
            {"train": {"optimizer": {"name": "adam", "momentum": 0.9}}},
            "train.optimizer: adam has no momentum: use sgd or rmsprop",
        ),
        (
            {"train": {"optimizer": {"name": "sgd", "nesterov": True}}},
            "train.optimizer: nesterov needs sgd with momentum",
        ),
        (
            {"train": {"optimizer": {"name": "rmsprop", "momentum": 0.9, "nesterov": True}}},
            "train.optimizer: nesterov needs sgd with momentum",
        ),
        (
            {"train": {"early_stopping": {"patience": 0}}},
            "train.early_stopping.patience: 0 is not right: must be greater than or equal to 1",
        ),
        (
            {"train": {"early_stopping": {"patiense": 3}}},
            "train.early_stopping.patiense: unknown key; did you mean 'patience'?",
        ),
        ({"train": {"early_stopping": True}}, "train.early_stopping: True is not right: must be a mapping"),
        (
            {"train": {"early_stopping": {"metric": "test_accuracy"}}},
            "train.early_stopping.metric: 'test_accuracy' is not right: must be 'val_accuracy', 'val_loss',"
            " 'train_accuracy' or 'train_loss'",
        ),
        (
            {"train": {"label_smoothing": 1}},
            "train.label_smoothing: 1 is not right: must be less than 1",
        ),
        ({"train": {"l2": -1}}, "train.l2: -1 is not right: must be greater than or equal to 0"),
        (
            {"train": {"elastic_net": {"alpha": 2}}},
            "train.elastic_net.alpha: 2 is not right: must be less than or equal to 1",
        ),
        (
            {"train": {"elastic_net": {"lambda": -1}}},
            "train.elastic_net.lambda: -1 is not right: must be greater than or equal to 0",
        ),
        (
            {"train": {"elastic_net": {"lamda": 1}}},
            "train.elastic_net.lamda: unknown key; did you mean 'lambda'?",
        ),
        (
            {"train": {"elastic_net": {"layers": "last"}}},
            "train.elastic_net.layers: 'last' is not right: must be 'output' or 'all'",
        ),
        ({"train": {"schedule": "cosine"}}, "train.schedule.name: 'cosine' is not right: must be 'step' or 'plateau'"),
        ({"train": {"schedule": {"every": 3}}}, "train.schedule.name: is missing"),
        (
            {"train": {"schedule": {"name": "step", "factor": 1}}},
            "train.schedule.factor: 1 is not right: must be less than 1",
        ),
        (
            {"train": {"schedule": {"name": "step", "patience": 3}}},
            "train.schedule: step has no patience: it belongs to plateau",
        ),
        (
            {"train": {"schedule": {"name": "plateau", "every": 3}}},
            "train.schedule: plateau has no every: it belongs to step",
        ),
        ({"train": {"trainable": "heads"}}, f"train.trainable: 'heads' is not right: {TRAINABLE}"),
        ({"train": {"trainable": {"last": 0}}}, f"train.trainable: {{'last': 0}} is not right: {TRAINABLE}"),
        ({"train": {"trainable": {"first": 1}}}, f"train.trainable: {{'first': 1}} is not right: {TRAINABLE}"),
        ({"train": {"phases": [{"lr": 1}]}}, "train.phases.0.epochs: is missing"),
        ({"train": {"phases": {"epochs": 1}}}, "train.phases: {'epochs': 1} is not right: must be a list"),
        (
            {"train": {"phases": [{"epochs": 1, "trainable": 3}]}},
            f"train.phases.0.trainable: 3 is not right: {TRAINABLE}",
        ),
        (
            {"train": {"epochs": 5, "phases": [{"epochs": 1}, {"epochs": 2}]}},
            "train: epochs is 5, but the phases have 3 together: leave it out, or say 3",
        ),
        (
            {"train": {"augmented_copies": -1}},
            "train.augmented_copies: -1 is not right: must be greater than or equal to 0",
        ),
        ({"dataset": {}}, "dataset.name: is missing"),
        ({"dataset": {"nmae": "digits"}}, "dataset.nmae: unknown key; did you mean 'name'?"),
        ({"dataset": 5}, "dataset: 5 is not right: must be a name or a mapping"),
        (
            {"dataset": {"name": "digits", "train_size": 0}},
            "dataset.train_size: 0 is not right: must be greater than or equal to 1",
        ),
        ({"dataset": {"name": "x", "folder": "/a"}}, f"dataset.folder: '/a' is not right: {FOLDER}"),
        ({"dataset": {"name": "x", "folder": "~/a"}}, f"dataset.folder: '~/a' is not right: {FOLDER}"),
        ({"dataset": {"name": "x", "folder": "a/../../b"}}, f"dataset.folder: 'a/../../b' is not right: {FOLDER}"),
        ({"dataset": {"name": "x", "folder": "C:x"}}, f"dataset.folder: 'C:x' is not right: {FOLDER}"),
        ({"dataset": {"name": "x", "folder": "a\\b"}}, f"dataset.folder: 'a\\\\b' is not right: {FOLDER}"),
        ({"dataset": {"name": "x", "folder": "s3://a"}}, f"dataset.folder: 's3://a' is not right: {FOLDER}"),
        ({"model": {"width": 8}}, "model.name: is missing"),
        ({"model": ["mlp"]}, "model: ['mlp'] is not right: must be a name or a mapping"),
        ({"augmentation": 5}, "augmentation.0: 5 is not right: must be a name or a mapping"),
        ({"augmentation": ["flip", ["zoom"]]}, "augmentation.1: ['zoom'] is not right: must be a name or a mapping"),
        ({"augmentation": {"flip": 1, "zoom": 2}}, "augmentation.0.name: is missing"),
        ({"resources": {"cpus": 0}}, "resources.cpus: 0 is not right: must be greater than or equal to 1"),
        ({"resources": {"gpus": 1.5}}, "resources.gpus: must be a fraction below 1 or a whole number"),
        ({"trian": {}}, "trian: unknown key; did you mean 'train'?"),
    ],
)
def test_what_is_wrong_is_said_in_words(sections: dict[str, Any], message: str) -> None:
    assert complaint(**sections) == message


@pytest.mark.parametrize(
    "value",
    [
        "train",
        5,
        None,
        [1],
        {},
        {"size": 0},
        {"siz": 5},
        {"fraction": 1},
        {"fraction": 0},
        {"size": 5, "fraction": 0.5},
    ],
)
def test_validation_images_are_one_of_four(value: Any) -> None:
    message = complaint(dataset={"name": "digits", "validation": value})
    assert message == f"dataset.validation: {value!r} is not right: {VALIDATION}"


@pytest.mark.parametrize("value", ["test", "split", {"size": 1}, {"fraction": 0.999}])
def test_the_four_are_taken(value: Any) -> None:
    assert settings(dataset={"name": "digits", "validation": value}).model_dump(exclude_none=True)["dataset"][
        "validation"
    ] == (value)


@pytest.mark.parametrize("folder", ["pets", "pets/train", "a..b", "."])
def test_relative_folders_are_taken(folder: str) -> None:
    assert settings(dataset={"name": "imagefolder", "folder": folder}).dataset.folder == folder


def test_optimizers_that_fit() -> None:
    for name in ("sgd", "rmsprop"):
        assert Optimizer(name=name, momentum=0.9).momentum == 0.9
    assert Optimizer(name="sgd", momentum=0.9, nesterov=True).nesterov
    assert EarlyStopping() == EarlyStopping(metric="val_accuracy", patience=10, min_delta=0.0)
    assert [Resources(gpus=gpus).gpus for gpus in (0, 0.25, 1, 2)] == [0, 0.25, 1, 2]


def test_the_epochs_of_phases_add_up() -> None:
    written = {"lr": 0.1, "trainable": "head", "phases": [{"epochs": 2}, {"epochs": 3, "lr": 0.2, "trainable": "all"}]}
    read = TrainSettings.model_validate(written)
    assert read.epochs == 5
    assert (
        TrainSettings.model_validate(read.model_dump())
        == read
        == TrainSettings.model_validate({**written, "epochs": 5})
    )
    assert read.planned_epochs == 5
    assert read.model_copy(update={"smoke": True}).planned_epochs == 2
    first, second = read.in_phases()
    assert first == TrainSettings(epochs=2, lr=0.1, trainable="head")
    assert second == TrainSettings(epochs=3, lr=0.2, trainable="all")
    assert TrainSettings.model_validate(written, context=PARTIAL).epochs == 20
    assert TrainSettings().in_phases() == [TrainSettings()]


def test_a_phase_has_a_schedule_and_a_patience_of_its_own() -> None:
    written = {
        "schedule": "plateau",
        "phases": [{"epochs": 2, "schedule": "step"}, {"epochs": 3, "early_stopping": {"patience": 2}}],
    }
    first, second = TrainSettings.model_validate(written).in_phases()
    assert first == TrainSettings(epochs=2, schedule="step")
    assert second == TrainSettings(epochs=3, schedule="plateau", early_stopping={"patience": 2})


def test_a_schedule_may_be_its_name() -> None:
    assert settings(train={"schedule": "step"}) == settings(train={"schedule": {"name": "step", "every": 16}})
    assert settings(train={"elastic_net": {}}).train.elastic_net.model_dump() == {
        "alpha": 0.5,
        "layers": "output",
        "lambda": 0.01,
    }


def test_rules_over_several_keys_wait_for_the_other_axes() -> None:
    half = {"optimizer": {"name": "adam", "momentum": 0.9}}
    with pytest.raises(ValidationError):
        TrainSettings.model_validate(half)
    assert TrainSettings.model_validate(half, context=PARTIAL).optimizer.momentum == 0.9
    with pytest.raises(ValidationError):
        TrainSettings.model_validate({"optimizer": {"name": "adam", "momentum": 2}}, context=PARTIAL)


def test_settings_are_read_only() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        settings().train.lr = 1.0  # type: ignore[misc]


# ---------------------------------------------------------------------------------------------------------------------
# The JSON Schema


def read(path: Path) -> Any:
    return parse_yaml(path.read_text(encoding="utf-8"), path.name)[0]


def valid(document: Any) -> bool:
    return jsonschema.Draft202012Validator(json_schema()).is_valid(document)


def test_the_schema_beside_the_suites_is_up_to_date() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == json.dumps(json_schema(), indent=1) + "\n", (
        "run: raybench schema > suites/raybench.schema.json"
    )
    jsonschema.Draft202012Validator.check_schema(json_schema())


SUITE = {"name": "s", "dataset": {"name": "digits"}}


@pytest.mark.parametrize(
    "keys",
    [
        {"model": "mlp", "augmentation": "flip", "train": {"optimizer": "sgd"}},
        {"dataset": "digits", "compare": {"dataset": {"all": {}, "few": {"train_size": 100}}}},
        {"model": {"name": "mlp", "hidden": [8]}, "augmentation": ["flip", {"shift": 0.1}], "repeat": {"seed": [1, 2]}},
        {"compare": {"model": ["mlp"], "v": {"a": {}, "b": {"train.lr": 1}}}, "reference": [{"model": "mlp", "n": 5}]},
    ],
)
def test_the_schema_takes_every_spelling(keys: dict[str, Any]) -> None:
    assert valid({**SUITE, **keys})


def test_a_file_that_extends_another_needs_no_dataset_of_its_own() -> None:
    assert valid({"name": "s", "extends": "table1.yaml"})
    assert valid({"name": "s", "extends": ["table1.yaml"], "dataset": {"train_size": 500}})
    assert not valid({"name": "s"})
    assert not valid({"name": "s", "dataset": {"train_size": 500}})


@pytest.mark.parametrize(
    "keys",
    [
        {"trian": {}},
        {"train": {"epoch": 3}},
        {"train": {"loss": "mse"}},
        {"name": "a/b"},
        {"compare": {"model": "mlp"}},
        {"repeat": {"seed": 0}},
        {"repeat": {"sed": 1}},
        {"reference": [{"mean": 79.9}]},
    ],
)
def test_the_schema_refuses_mistakes(keys: dict[str, Any]) -> None:
    assert not valid({**SUITE, **keys})
