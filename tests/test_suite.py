from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raybench.errors import SuiteError, UserError
from raybench.plan import expand
from raybench.registry import MODELS
from raybench.suite import Suite, build, find_dataset, find_suite, load, shipped_suites
from raybench.yamlfile import Complaints

BASE = {
    "name": "s",
    "dataset": "{name: digits}",
    "compare": "{model: [mlp, small_cnn]}",
    "repeat": "{seed: 2}",
}
"""Lines 1 to 4 of every suite here; further keys follow on line 5."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Suites are files of the current folder, so that messages name them as ``s.yaml``."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str) -> Path:
    Path("s.yaml").write_text(text, encoding="utf-8")
    return Path("s.yaml")


def suite(*sets: str, smoke: bool = False, **keys: str | None) -> Suite:
    """Load a suite of `BASE` and ``keys``; None leaves a key out."""
    document = {**BASE, **keys}
    text = "".join(f"{key}: {value}\n" for key, value in document.items() if value is not None)
    return load(write(text), sets, smoke=smoke)


def complaint(*sets: str, **keys: str | None) -> str:
    with pytest.raises(SuiteError) as error:
        expand(suite(*sets, **keys))
    assert "\n" not in str(error.value)
    return str(error.value)


def names(*sets: str, **keys: str | None) -> list[str]:
    return [trial.name for trial in expand(suite(*sets, **keys))]


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_a_suite_is_found_by_path_or_by_shipped_name(here: Path) -> None:
    assert find_suite("quickstart") == shipped_suites()["quickstart"]
    write("name: s\n")
    assert find_suite("s.yaml") == Path("s.yaml")
    assert find_suite(str(here / "s.yaml")) == here / "s.yaml"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("quikstart", "; did you mean 'quickstart'?"),
        ("suites/quikstart.yaml", "; did you mean 'quickstart'?"),
        (".", f"; known: {', '.join(shipped_suites())}"),
    ],
)
def test_a_missing_file_gets_a_suggestion(name: str, hint: str) -> None:
    with pytest.raises(SuiteError) as error:
        find_suite(name)
    assert str(error.value) == f"{name}: no such suite file{hint}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "s.yaml:1:1: a suite is a mapping with name, dataset, compare, ..."),
        (b"# later\n", "s.yaml:1:1: a suite is a mapping with name, dataset, compare, ..."),
        (b"- name: s\n", "s.yaml:1:1: a suite is a mapping with name, dataset, compare, ..."),
        (b"quickstart", "s.yaml:1:1: a suite is a mapping with name, dataset, compare, ..."),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "s.yaml: cannot be read: not a text file (UTF-8)"),
        (
            b"\x00\x01\x02",
            "s.yaml:1:1: not valid YAML: unacceptable character #x0000: special characters are not allowed in"
            ' "<unicode string>", position 0',
        ),
        (
            b"name: s\nname: t\n",
            's.yaml:2:1: not valid YAML: found duplicate key "name" with value "t" (original value: "s")',
        ),
        (b"name: [s\ndataset: {\n", "s.yaml:2:8: not valid YAML: expected ',' or ']', but got ':'"),
    ],
)
def test_what_is_no_suite_is_refused(content: bytes, message: str) -> None:
    Path("s.yaml").write_bytes(content)
    with pytest.raises(SuiteError) as error:
        load(Path("s.yaml"))
    assert str(error.value) == message


def test_a_file_that_cannot_be_read() -> None:
    with pytest.raises(SuiteError) as error:
        load(Path("nowhere.yaml"))
    assert str(error.value) == "nowhere.yaml: cannot be read: No such file or directory"


# ---------------------------------------------------------------------------------------------------------------------
# What the file says


def test_what_it_is_about_is_one_line() -> None:
    assert suite(about="|\n  two\n  lines").about == "two lines"
    assert suite(about='"\\e[31mred\\a"').about == "[31mred"


def test_values_are_read_as_yaml_1_2() -> None:
    read = suite(
        compare="{augmentation: {off: none, no: flip}, train.best: [val_loss, val_accuracy]}",
        model="mlp",
        search='{lr: [1e-3, "1e-2", 1]}',
        about="12:30",
    )
    assert read.about == "12:30"
    assert read.axis("augmentation").labels == ("off", "no")
    assert read.axis("lr").labels == (0.001, 0.01, 1.0)
    assert [type(label) for label in read.axis("lr").labels] == [float] * 3


def test_an_empty_value_of_a_section_changes_nothing() -> None:
    read = suite(compare="{dataset: {all: {}, few: {train_size: 100}}}", model="mlp")
    assert [trial.settings["dataset"]["train_size"] for trial in expand(read)] == [None, 100] * 2
    variants = suite(compare="{v: {a: {train: {}}, b: {train.early_stopping: {}}}}", model="mlp")
    assert [trial.typed().train.early_stopping is None for trial in expand(variants)] == [True, False] * 2


def test_a_dataset_may_be_its_name() -> None:
    assert names("dataset=digits") == names(dataset="digits") == names()
    assert names(compare="{dataset: [digits, mnist]}", model="mlp") == [
        "digits/s0",
        "mnist/s0",
        "digits/s1",
        "mnist/s1",
    ]


def test_points_may_need_other_resources() -> None:
    read = suite(compare="{v: {a: {}, b: {resources.cpus: 2}}}", model="mlp", repeat="{seed: 1}")
    assert [trial.typed().resources.cpus for trial in expand(read)] == [1, 2]


def test_a_number_is_a_label_of_overrides() -> None:
    read = suite(compare="{model: [mlp], width: {8: {model.hidden: [8]}, 16: {model.hidden: [16]}}}")
    assert read.axis("width").labels == ("8", "16")
    assert read.axis("width").assignments == ({"model.hidden": [8]}, {"model.hidden": [16]})


def test_base_augmentations_have_every_spelling() -> None:
    flip, shift = {"name": "flip"}, {"name": "shift", "value": 0.1}
    assert suite(augmentation="[flip, {shift: 0.1}]").base["augmentation"] == [flip, shift]
    assert suite(augmentation="{shift: 0.1}").base["augmentation"] == [shift]
    assert suite(augmentation="null").base == suite().base


def test_axes_have_a_role_and_an_order() -> None:
    read = suite(search="{lr: [1, 2], batch_size: [8]}", repeat="{seed: [3, 1]}")
    assert [(axis.name, axis.role) for axis in read.axes] == (
        [("model", "compare"), ("lr", "search"), ("batch_size", "search"), ("seed", "repeat")]
    )
    assert read.names("compare", "repeat") == ["model", "seed"]
    assert read.axis("seed").labels == (3, 1)


@pytest.mark.parametrize(
    ("repeat", "seeds"), [(None, [0]), ("{}", [0]), ("{seed: 3}", [0, 1, 2]), ("{seed: [7]}", [7])]
)
def test_seeds(repeat: str | None, seeds: list[int]) -> None:
    assert list(suite(repeat=repeat).axis("seed").labels) == seeds


def test_dotted_and_nested_overrides_are_one() -> None:
    dotted = suite(
        compare="{model: [mlp], v: {a: {}, b: {train.epochs: 3, optimizer.momentum: 0.9, optimizer.name: sgd}}}"
    )
    nested = suite(
        compare="{model: [mlp], v: {a: , b: {train: {epochs: 3, optimizer: {momentum: 0.9}}, optimizer.name: sgd}}}"
    )
    assert dotted.axis("v").assignments == nested.axis("v").assignments
    assert dotted.axis("v").assignments == (
        ({}, {"train.epochs": 3, "train.optimizer.momentum": 0.9, "train.optimizer.name": "sgd"})
    )


# ---------------------------------------------------------------------------------------------------------------------
# Extending another file

PARENT = """\
name: parent
about: of the parent
trials: 4
dataset: {name: digits, train_size: 500}
compare:
  model: {narrow: {name: mlp, hidden: [32], dropout: 0.1}, wide: {name: mlp, hidden: [256]}}
search: {lr: [1e-3, 1e-2]}
train: &train {epochs: 30, optimizer: {name: sgd, momentum: 0.9}, early_stopping: {patience: 5}}
reference:
  - {model: narrow, mean: 0.95}
"""


def extending(text: str, *sets: str, **others: str) -> Suite:
    """Load a suite of ``text`` that stands beside parent.yaml and further files."""
    for name, content in {"parent": PARENT, **others}.items():
        Path(f"{name}.yaml").write_text(content, encoding="utf-8")
    return load(write(text), sets)


def test_a_file_changes_what_it_extends() -> None:
    read = extending(
        "extends: parent.yaml\nname: s\ncompare: {model: {narrow: {name: mlp}, third: small_cnn}}\n"
        "search: {lr: [1]}\ntrain: {optimizer: adam, early_stopping: {metric: val_loss}, batch_size: 8}\n"
    )
    assert read.document == {
        "name": "s",
        "dataset": {"name": "digits", "train_size": 500},
        "compare": {
            "model": {"narrow": {"name": "mlp"}, "wide": {"name": "mlp", "hidden": [256]}, "third": "small_cnn"}
        },
        "search": {"lr": [1]},
        "train": {
            "epochs": 30,
            "optimizer": "adam",
            "early_stopping": {"patience": 5, "metric": "val_loss"},
            "batch_size": 8,
        },
        "reference": [{"model": "narrow", "mean": 0.95}],
    }
    assert (read.name, read.about, read.trials) == ("s", "", None)


def test_what_two_places_share_is_changed_in_one() -> None:
    shared = "dataset: {name: digits}\nmodel: mlp\ncompare: {v: {a: {train: &t {epochs: 1}}, b: {train: *t, lr: 1}}}\n"
    read = extending("extends: p.yaml\nname: s\ncompare: {v: {b: {train: {epochs: 2}}}}\n", p=shared)
    assert read.axis("v").assignments == ({"train.epochs": 1}, {"train.epochs": 2, "train.lr": 1})


def test_of_several_files_the_later_win_and_published_rows_are_joined() -> None:
    text = "extends: [parent.yaml, sub/other.yaml]\nname: s\n"
    Path("sub").mkdir()
    other = "extends: ../parent.yaml\nsearch: {lr: [5]}\nreference:\n  - {model: wide, mean: 0.5}\n"
    Path("sub/other.yaml").write_text(other)
    read = extending(text)
    assert read.axis("lr").labels == (5.0,)
    assert read.reference == ({"model": "narrow", "mean": 0.95}, {"model": "wide", "mean": 0.5})
    assert extending(text + "reference: []\n").reference == ()


def test_a_merged_document_loads_again_without_the_files() -> None:
    read = extending("extends: parent.yaml\nname: s\n", "train.epochs=2")
    again = build(read.document, Complaints("suite.json"), Path("nowhere"), read.sets, trusted=True)
    assert [trial.id for trial in expand(again)] == [trial.id for trial in expand(read)]


def test_the_parts_of_an_extended_suite_have_the_trials_of_the_whole() -> None:
    whole = {trial.id for trial in expand(extending(PARENT))}
    part = {trial.id for trial in expand(extending("extends: parent.yaml\nname: s\nsearch: {lr: [1e-2]}\n"))}
    assert part < whole


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: parent.yaml\n", "s.yaml:1:1: name: is missing"),
        ("extends: parnt.yaml\n", "s.yaml:1:1: extends: no suite file parnt.yaml; did you mean 'parent.yaml'?"),
        (
            "extends: [parent.yaml, gone/x.yaml]\n",
            "s.yaml:1:24: extends.1: no suite file gone/x.yaml",
        ),
        (
            "extends: 5\n",
            "s.yaml:1:1: extends: 5 is not right: must be the name of a suite file, or a list of them",
        ),
        ("extends: s.yaml\n", "s.yaml:1:1: extends: goes in a circle: s.yaml -> s.yaml"),
        ("extends: a.yaml\n", "b.yaml:2:11: extends.0: goes in a circle: s.yaml -> a.yaml -> b.yaml -> a.yaml"),
        ("extends: list.yaml\n", "list.yaml:1:1: a suite is a mapping with name, dataset, compare, ..."),
        ("extends: bad.yaml\nname: s\n", "bad.yaml:1:9: train.epoch: unknown key; did you mean 'epochs'?"),
        (
            "extends: parent.yaml\nname: s\ntrain: {epoch: 5}\n",
            "s.yaml:3:9: train.epoch: unknown key; did you mean 'epochs'?",
        ),
        (
            "extends: parent.yaml\nname: s\ntrain: {optimizer: {name: adam, momentum: 0.9}}\n",
            "s.yaml:3:9: train.optimizer: adam has no momentum: use sgd or rmsprop",
        ),
        (
            "extends: parent.yaml\nname: s\ncompare: {model: [small_cnn]}\n",
            "parent.yaml:10:6: reference.0.model: 'narrow' is no value of model; known: small_cnn",
        ),
        (
            "extends: [parent.yaml, more.yaml]\nname: s\n",
            "more.yaml:2:6: reference.1.model: 'thin' is no value of model; known: narrow, wide",
        ),
        (
            "extends: [parent.yaml, five.yaml]\nname: s\n",
            "five.yaml:1:1: reference: 5 is not right: must be a list",
        ),
        (
            "extends: [five.yaml, parent.yaml]\nname: s\ncompare: {model: [small_cnn]}\n",
            "parent.yaml:10:6: reference.0.model: 'narrow' is no value of model; known: small_cnn",
        ),
    ],
)
def test_a_mistake_in_what_is_extended(text: str, message: str) -> None:
    others = {
        "a": "extends: b.yaml\n",
        "b": "name: b\nextends: [a.yaml]\n",
        "list": "- name: s\n",
        "bad": "train: {epoch: 5}\n",
        "more": "reference:\n  - {model: thin, mean: 0.5}\n",
        "five": "reference: 5\n",
    }
    with pytest.raises(SuiteError) as error:
        extending(text, **others)
    assert str(error.value) == message


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes in a key

FORM = "(an axis of named overrides is written {label: {path: value}})"
SEEDS = "must be a number of seeds, or a list of different seeds from 0 up"
KEYS = (
    "extends, name, about, trials, imports, dataset, model, augmentation, train, resources, compare, search, draw,"
    " prune, confirm, repeat, zip, include, exclude, reference, keep_weights, ood, track"
)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"trian": "{}"}, "5:1: trian: unknown key; did you mean 'train'?"),
        ({"xyz": "1"}, f"5:1: xyz: unknown key; known: {KEYS}"),
        ({"5": "1"}, f"5:1: 5: unknown key; known: {KEYS}"),
        ({"train": "{epoch: 3}"}, "5:9: train.epoch: unknown key; did you mean 'epochs'?"),
        (
            {"train": "\n  optimizer: {name: sgd,\n    momentun: 0.9}"},
            "7:5: train.optimizer.momentun: unknown key; did you mean 'momentum'?",
        ),
        ({"name": None}, "1:1: name: is missing"),
        ({"name": None, "nmae": "s"}, "4:1: nmae: unknown key; did you mean 'name'?"),
        (
            {"name": "a/b"},
            "1:1: name: 'a/b' is not right: must be letters, digits, '_' and '-', the first a letter or a digit",
        ),
        ({"name": "5"}, "1:1: name: 5 is not right: must be text"),
        ({"dataset": None}, "1:1: dataset: is missing"),
        ({"dataset": ""}, "2:1: dataset: None is not right: must be a name or a mapping"),
        ({"dataset": "{validation: test}"}, "2:1: dataset.name: is missing"),
        ({"dataset": "{name: digts}"}, "2:11: dataset.name: unknown dataset 'digts'; did you mean 'digits'?"),
        (
            {"dataset": "{name: digits, validation: train}"},
            "2:25: dataset.validation: 'train' is not right: must be `test`, `split`, `{size: N}` or `{fraction: F}`"
            " with F between 0 and 1",
        ),
        (
            {"dataset": "{name: digits, train_size: 0}"},
            "2:25: dataset.train_size: 0 is not right: must be greater than or equal to 1",
        ),
        (
            {"dataset": "{name: imagefolder, folder: ../pets}"},
            "2:30: dataset.folder: '../pets' is not right: must be a relative folder below --data-dir, such as"
            " 'pets/train'; give the place itself with --data-dir",
        ),
        (
            {"compare": None},
            "1:1: model: is missing: name one under `model:` or several under `compare: {model: [...]}`",
        ),
        (
            {"compare": "{model.hidden: {a: [8], b: [9]}}"},
            "1:1: model: is missing: name one under `model:` or several under `compare: {model: [...]}`",
        ),
        ({"compare": None, "model": "mpl"}, "4:1: model.name: unknown model 'mpl'; did you mean 'mlp'?"),
        ({"compare": None, "model": "{name: mpl}"}, "4:9: model.name: unknown model 'mpl'; did you mean 'mlp'?"),
        ({"compare": None, "model": "{width: 8}"}, "4:1: model.name: is missing"),
        ({"augmentation": "flop"}, "5:1: augmentation: unknown augmentation 'flop'; did you mean 'flip'?"),
        (
            {"augmentation": "[flip, {shft: 0.1}]"},
            "5:1: augmentation: unknown augmentation 'shft'; did you mean 'shift'?",
        ),
        ({"train": "{epochs: many}"}, "5:9: train.epochs: 'many' is not right: must be a whole number"),
        ({"train": "{loss: mse}"}, "5:9: train.loss: 'mse' is not right: must be 'cross_entropy' or 'bce'"),
        (
            {"train": "{optimizer: {momentum: 0.9}}"},
            "5:9: train.optimizer: adam has no momentum: use sgd or rmsprop",
        ),
        ({"train": "fast"}, "5:1: train: 'fast' is not right: must be a mapping"),
        ({"trials": "0"}, "5:1: trials: 0 is not right: must be greater than or equal to 1"),
        ({"repeat": "{sed: 2}"}, "4:10: repeat.sed: unknown key; did you mean 'seed'?"),
        ({"repeat": "5"}, "4:1: repeat: 5 is not right: must be a mapping"),
        ({"repeat": "{seed: 0}"}, f"4:10: repeat.seed: 0 is not right: {SEEDS}"),
        ({"repeat": "{seed: []}"}, f"4:10: repeat.seed: [] is not right: {SEEDS}"),
        ({"repeat": "{seed: [1, 1]}"}, f"4:10: repeat.seed: [1, 1] is not right: {SEEDS}"),
        ({"repeat": "{seed: [0, -1]}"}, f"4:10: repeat.seed: [0, -1] is not right: {SEEDS}"),
        ({"repeat": "{seed: true}"}, f"4:10: repeat.seed: True is not right: {SEEDS}"),
        ({"repeat": f"{{seed: {10**25}}}"}, f"4:10: repeat.seed: {10**25} is not right: {SEEDS}"),
    ],
    ids=str,
)
def test_a_mistake_in_a_key(keys: dict[str, str | None], message: str) -> None:
    assert complaint(**keys) == f"s.yaml:{message}"


# ---------------------------------------------------------------------------------------------------------------------
# Imports


@pytest.fixture
def module(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module beside the suite; what it does to Python and to the registry is undone."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))
    yield "raybench_test_module"
    sys.modules.pop("raybench_test_module", None)


def test_imported_modules_add_names(module: str) -> None:
    Path(f"{module}.py").write_text("from raybench.registry import MODELS\n@MODELS.register('mine')\ndef mine(): ...\n")
    assert names(imports=f"[{module}]", compare="{model: [mlp, mine]}") == ["mlp/s0", "mine/s0", "mlp/s1", "mine/s1"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (None, "ModuleNotFoundError: No module named 'raybench_test_module'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("def (", "SyntaxError: invalid syntax (raybench_test_module.py, line 1)"),
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        (
            "from raybench.registry import MODELS\n@MODELS.register('mlp')\ndef mine(): ...",
            "model 'mlp' is registered already: choose another name",
        ),
    ],
)
def test_a_module_that_cannot_be_imported(module: str, code: str | None, reason: str) -> None:
    if code is not None:
        Path(f"{module}.py").write_text(code)
    assert complaint(imports=f"[json, {module}]") == f"s.yaml:5:17: imports.1: cannot import '{module}': {reason}"


def test_a_module_that_goes_elsewhere_leaves_the_command_where_it_is(module: str) -> None:
    here = Path.cwd()
    Path(f"{module}.py").write_text("import os\nos.chdir('/')\n")
    suite(imports=f"[{module}]")
    assert Path.cwd() == here


def test_a_trusted_document_needs_neither_its_modules_nor_its_names() -> None:
    document = {
        "name": "s",
        "dataset": {"name": "gone"},
        "imports": ["nowhere_at_all"],
        "compare": {"model": ["lost"], "augmentation": ["missing"]},
    }
    read = build(document, Complaints("suite.json"), Path(), trusted=True)
    assert [trial.name for trial in expand(read)] == ["lost/missing/s0"]
    with pytest.raises(SuiteError, match="cannot import 'nowhere_at_all'"):
        build(document, Complaints("suite.json"), Path())


# ---------------------------------------------------------------------------------------------------------------------
# --set and --smoke


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.epochs", "must be key.path=value, e.g. train.epochs=2"),
        ("=5", "must be key.path=value, e.g. train.epochs=2"),
        ("trian.epochs=3", "unknown key 'trian'; did you mean 'train'?"),
        ("learning_rate=3", f"unknown key 'learning_rate'; known: {KEYS}, lr, batch_size, optimizer"),
        ("train.epoch=3", "train.epoch: unknown key; did you mean 'epochs'?"),
        ("train.optimizer.nam=sgd", "train.optimizer.nam: unknown key; did you mean 'name'?"),
        ("train.optimiser.name=sgd", "train.optimiser.name: unknown key 'optimiser'; did you mean 'optimizer'?"),
        ("train={epoch: 3}", "train.epoch: unknown key; did you mean 'epochs'?"),
        ("train.epochs.x=3", "train.epochs.x: train.epochs is given as a whole, not key by key"),
        ("extends=x.yaml", "only a file can say which files it extends"),
        ("name.x=3", "name.x: name is given as a whole, not key by key"),
        ("augmentation.name=flip", "augmentation.name: augmentation is given as a whole, not key by key"),
        (
            "dataset.validation.size=5",
            "dataset.validation.size: dataset.validation is given as a whole, not key by key",
        ),
        ("train.epochs=many", "train.epochs: 'many' is not right: must be a whole number"),
        ("train.epochs=", "train.epochs: None is not right: must be a whole number"),
        ("lr=fast", "train.lr: 'fast' is not right: must be a number"),
        ("train=5", "train: 5 is not right: must be a mapping"),
        ("train.optimizer.momentum=0.9", "train.optimizer: adam has no momentum: use sgd or rmsprop"),
        ("dataset.name=digts", "dataset.name: unknown dataset 'digts'; did you mean 'digits'?"),
        ("augmentation=[flop]", "augmentation: unknown augmentation 'flop'; did you mean 'flip'?"),
        ("compare.model=[mpl]", "compare.model.0: unknown model 'mpl'; did you mean 'mlp'?"),
        ("compare.modle=[mlp]", f"compare.modle: unknown axis; did you mean 'model'? {FORM}"),
        ("repeat.sed=5", "repeat.sed: unknown key; did you mean 'seed'?"),
        ("repeat.seed=0", f"repeat.seed: 0 is not right: {SEEDS}"),
        ("exclude=[{model: mpl}]", "exclude.0.model: 'mpl' is no value of model; did you mean 'mlp'?"),
    ],
)
def test_a_mistake_in_an_override(text: str, message: str) -> None:
    assert complaint(text) == f"--set {text}: {message}"


def test_an_override_that_is_not_yaml() -> None:
    assert complaint("train={epochs: 3") == (
        "--set train={epochs: 3:1:11: not valid YAML: expected ',' or '}', but got '<stream end>'"
    )


@pytest.mark.parametrize(
    ("axis", "text", "path"),
    [
        ("lr", "lr=1", "train.lr"),
        ("lr", "train.lr=1", "train.lr"),
        ("train.lr", "train={lr: 1}", "train.lr"),
        ("train.optimizer.momentum", "optimizer=sgd", "train.optimizer"),
        ("optimizer", "optimizer.name=sgd", "train.optimizer.name"),
    ],
)
def test_an_override_never_hides_an_axis(axis: str, text: str, path: str) -> None:
    values = {"optimizer": "[adam, sgd]"}.get(axis, "[0.5, 0.25]")
    assert complaint(text, search=f"{{{axis}: {values}}}") == (
        f"--set {path}: would hide the axis {axis}: choose among its values with --only {axis}=..., or replace them"
        f" with --set 'search.{axis}=[...]'"
    )


@pytest.mark.parametrize(
    ("sets", "path", "value"),
    [
        (["train.epochs=3"], "train.epochs", 3),
        ([" train.epochs = 3"], "train.epochs", 3),
        (["train.epochs=3", "train.epochs=4"], "train.epochs", 4),
        (["lr=1e-2"], "train.lr", 0.01),
        (["optimizer=sgd"], "train.optimizer.name", "sgd"),
        (["optimizer.name=sgd", "optimizer.momentum=0.9"], "train.optimizer.momentum", 0.9),
        (["train={epochs: 3}"], "train.batch_size", 64),
        (["train.early_stopping.patience=3"], "train.early_stopping.patience", 3),
        (["train.early_stopping=null"], "train.early_stopping", None),
        (["dataset.validation={size: 5}"], "dataset.validation.size", 5),
        (["dataset.validation=test"], "dataset.validation", "test"),
        (["augmentation=[flip, {shift: 0.1}]"], "augmentation.1.name", "shift"),
        (["model.hidden=[4]"], "model.hidden", [4]),
        (["resources.cpus=2"], "resources.cpus", 2),
    ],
)
def test_overrides_reach_every_trial(sets: list[str], path: str, value: Any) -> None:
    train = "{batch_size: 64, lr: 1e-3, early_stopping: {patience: 9}}"
    for trial in expand(suite(*sets, train=train)):
        found: Any = trial.settings
        for key in path.split("."):
            found = found[int(key) if key.isdigit() else key]
        assert found == value


def test_an_override_has_the_last_word_over_a_variant() -> None:
    plain = {"compare": "{model: [mlp], variant: {a: {}, b: {train: {epochs: 3, batch_size: 8}}}}"}
    assert [t.settings["train"]["epochs"] for t in expand(suite("train.epochs=7", **plain))] == [7] * 4
    assert [t.settings["train"]["batch_size"] for t in expand(suite("train.epochs=7", **plain))] == [32, 8] * 2


def test_an_axis_can_be_replaced_or_added() -> None:
    assert names("compare.model=[mlp]", "repeat.seed=1", trials="4") == ["mlp/s0"]
    assert names("compare.model={a: mlp, b: {name: mlp, hidden: [3]}}", "repeat.seed=[5]") == ["a/s5", "b/s5"]
    assert names("search.train.epochs=[1, 2]", "repeat.seed=1") == [
        "mlp/1/s0",
        "mlp/2/s0",
        "small_cnn/1/s0",
        "small_cnn/2/s0",
    ]


def test_the_number_of_trials_counts_unless_an_override_changes_the_grid() -> None:
    assert complaint("train.epochs=3", trials="5").endswith("trials: says 5, but the axes give 4 (model 2 x seed 2)")
    assert len(names("exclude=[{model: mlp}]", trials="4")) == 2
    assert len(names("trials=4", trials="5")) == 4


def test_the_document_with_overrides_loads_again_as_it_ran() -> None:
    sets = ["compare.model=[mlp]", "train={epochs: 3}", "model.hidden=[4]", "repeat.seed=[3]"]
    first = suite(*sets)
    again = build(first.document, Complaints("suite.json"), Path(), sets, trusted=True)
    assert [trial.id for trial in expand(again)] == [trial.id for trial in expand(first)]


def test_smoke_runs_are_apart() -> None:
    plain, smoke = suite(), suite(smoke=True)
    assert (plain.name, smoke.name) == ("s", "s-smoke")
    assert not {trial.id for trial in expand(plain)} & {trial.id for trial in expand(smoke)}
    assert all(trial.settings["train"]["smoke"] for trial in expand(smoke))
    assert suite("train.smoke=true").name == "s-smoke"


@pytest.mark.parametrize(
    ("word", "name", "folder"),
    [("digits", "digits", None), ("imagefolder/a/b", "imagefolder", "a/b"), ("parquet/./a/", "parquet", "a")],
)
def test_a_dataset_is_named_as_tables_name_it(word: str, name: str, folder: str | None) -> None:
    found = find_dataset(word)
    assert (found.name, found.folder) == (name, folder)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("svhn/test", "--dataset svhn/test: only imagefolder and parquet take a folder: give svhn alone"),
        ("digitz", "unknown dataset 'digitz'; did you mean 'digits'?"),
    ],
)
def test_a_dataset_that_cannot_be_named_so(word: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        find_dataset(word)
    assert str(error.value).startswith(message)
