"""Axes and the points they make, through the suites that name them: every complaint has its place."""

from __future__ import annotations

from typing import Any

import pytest
from test_suite import FORM, complaint, here, suite

from raybench.axes import find_label

__all__ = ["here"]  # the fixture: suites are files of the current folder


def variant(b: str, a: str = "{}") -> dict[str, str | None]:
    return {"compare": f"\n  model: [mlp]\n  variant:\n    a: {a}\n    b: {b}"}


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes in an axis

LABELS = "give values that are not a word or a number a label: `{label: value, ...}`"
COLUMN = "is the name of a column or row of tables: give the axis another name, such as `variant`"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"compare": "{model: [mlp, smal_cnn]}"},
            "3:24: compare.model.1: unknown model 'smal_cnn'; did you mean 'small_cnn'?",
        ),
        (
            {"compare": "{model: {a: mlp, b: {name: smal_cnn}}}"},
            "3:27: compare.model.b: unknown model 'smal_cnn'; did you mean 'small_cnn'?",
        ),
        (
            variant("{model: smal_cnn}") | {"compare": "{v: {a: {model: mlp}, b: {model: smal_cnn}}}"},
            "3:32: compare.v.b: unknown model 'smal_cnn'; did you mean 'small_cnn'?",
        ),
        (
            {"search": "{dataset.name: [digits, cifar11]}"},
            "5:33: search.dataset.name.1: unknown dataset 'cifar11'; did you mean 'cifar10'?",
        ),
        (
            {"search": "{augmentation: [none, aug3]}"},
            "5:31: search.augmentation.1: unknown augmentation 'aug3'; did you mean 'aug2'?",
        ),
        (
            {"search": "{augmentation: {a: none, b: [flip, {shft: 1}]}}"},
            "5:34: search.augmentation.b: unknown augmentation 'shft'; did you mean 'shift'?",
        ),
        (variant("{augmentation: flop}"), "7:5: compare.variant.b: unknown augmentation 'flop'; did you mean 'flip'?"),
        ({"compare": "{model: []}"}, "3:11: compare.model: has no values"),
        ({"compare": "{model: {}}"}, "3:11: compare.model: has no values"),
        (
            {"compare": "{model: mlp}"},
            "3:11: compare.model: 'mlp' is not right: must be a list of values, or a mapping of labels to values",
        ),
        ({"compare": "[model]"}, "3:1: compare: ['model'] is not right: must be a mapping"),
        (
            {"compare": '{model: {a: mlp, "b\\nc": small_cnn}}'},
            r"3:11: compare.model: 'b\nc' is not right: must be one line, of characters to be printed",
        ),
        ({"compare": "{model: [mlp, small_cnn, mlp]}"}, "3:35: compare.model.2: 'mlp' is listed twice"),
        ({"search": "{lr: [0.001, 1e-3]}"}, "5:22: search.lr.1: 0.001 is listed twice"),
        ({"search": "{lr: [0.001, '1e-3']}"}, "5:22: search.lr.1: 0.001 is listed twice"),
        ({"search": "{lr: [1, 0]}"}, "5:18: search.lr.1: 0 is not right: must be greater than 0"),
        ({"search": "{lr: [1, fast]}"}, "5:18: search.lr.1: 'fast' is not right: must be a number"),
        ({"compare": "{model: [mlp, {name: mlp, hidden: [3]}]}"}, f"3:24: compare.model.1: {LABELS}"),
        ({"search": "{augmentation: [none, [flip]]}"}, f"5:31: search.augmentation.1: {LABELS}"),
        ({"search": "{model.hidden: [[8], [9]]}"}, f"5:25: search.model.hidden.0: {LABELS}"),
        ({"search": "{augmentation: [null]}"}, f"5:25: search.augmentation.0: {LABELS}"),
        ({"search": "{modle: [mlp]}"}, f"5:10: search.modle: unknown axis; did you mean 'model'? {FORM}"),
        ({"search": "{epochs: [1, 2]}"}, f"5:10: search.epochs: unknown axis; did you mean 'train.epochs'? {FORM}"),
        ({"search": "{optimiser: [sgd]}"}, f"5:10: search.optimiser: unknown axis; did you mean 'optimizer'? {FORM}"),
        ({"search": "{train.epoch: [1, 2]}"}, "5:10: search.train.epoch: unknown key; did you mean 'epochs'?"),
        (
            {"search": "{optimiser.momentum: {a: {}}}"},
            "5:10: search.optimiser.momentum: the name of an axis is made of letters, digits, '_' and '-'",
        ),
        (
            {"search": "{optimizer: [adam, sdg]}"},
            "5:28: search.optimizer.1.name: 'sdg' is not right: must be 'adam', 'adamw', 'sgd' or 'rmsprop'",
        ),
        (
            {"search": "{augmentation.shift: [0.1, 0.2]}"},
            "5:10: search.augmentation.shift: augmentation is given as a whole, not key by key",
        ),
        ({"search": "{model: [mlp]}"}, "5:10: search.model: is an axis of compare already"),
        (
            {"search": "{lr: [1], train.lr: [2]}"},
            "5:19: search.train.lr: sets train.lr, which the axis lr sets too",
        ),
        (
            {**variant("{lr: 1, train.epochs: 3}"), "search": "{lr: [1e-3]}"},
            "9:10: search.lr: sets train.lr, which the axis variant sets too",
        ),
        (
            {"compare": "{model: [mlp], seed: [1, 2]}"},
            "3:25: compare.seed: seeds are repetitions: write repeat: {seed: 5}",
        ),
        (
            {"search": "{resources.cpus: [1, 2]}"},
            "5:10: search.resources.cpus: resources are what a trial needs and not what is compared: give"
            " points that need more a named variant",
        ),
        (variant("5"), "7:5: compare.variant.b: must be a mapping of overrides, such as {train.epochs: 20}"),
        (variant("{train.epoch: 5}"), "7:9: compare.variant.b.train.epoch: unknown key; did you mean 'epochs'?"),
        (variant("{train: {epoch: 5}}"), "7:17: compare.variant.b.train.epoch: unknown key; did you mean 'epochs'?"),
        (variant("{trian: {epochs: 5}}"), "7:9: compare.variant.b.trian: unknown key; did you mean 'train'?"),
        (
            variant("{train: {epochs: x}}"),
            "7:17: compare.variant.b.train.epochs: 'x' is not right: must be a whole number",
        ),
        (
            variant("{seed: 5}"),
            "7:9: compare.variant.b.seed: unknown key; known: dataset, model, augmentation, train, resources",
        ),
        (
            variant("{name: b}"),
            "7:9: compare.variant.b.name: unknown key; known: dataset, model, augmentation, train, resources",
        ),
        ({"compare": "{v: {a: {model: mlp}, b: {train.epochs: 2}}}"}, " v=b: names no model"),
    ],
    ids=str,
)
def test_a_mistake_in_an_axis(keys: dict[str, str | None], message: str) -> None:
    assert complaint(**keys) == f"s.yaml:{message}"


@pytest.mark.parametrize(
    "name",
    [
        *("status", "trial_id", "epochs", "test_accuracy", "settings", "suite"),
        *("n", "mean", "std", "min", "max", "planned", "difference", "published_mean"),
        *("class", "precision", "recall", "f1", "f1_std", "support"),
        *("outside", "score", "layer", "kind", "threshold", "accuracy", "accuracy_std", "peek_accuracy", "auroc"),
        *("fpr95", "in_mean", "interactions"),
    ],
)
def test_an_axis_is_never_called_as_a_column(name: str) -> None:
    assert complaint(search=f"{{{name}: {{a: {{}}, b: {{lr: 1}}}}}}") == f"s.yaml:5:10: search.{name}: {COLUMN}"


@pytest.mark.parametrize("name", ["train.precision", "cell", "value", "first", "cells"])
def test_an_axis_may_be_called_as_no_column_is(name: str) -> None:
    """``train.precision`` is another name than ``precision``, and nothing shows ``cells`` beside axes."""
    values = "[float32, tf32]" if "." in name else "{a: {}, b: {lr: 1}}"
    assert suite(compare=f"{{model: [mlp], {name}: {values}}}").names("compare") == ["model", name]


@pytest.mark.parametrize("name", ["''", "'a b'", "a/b", "_a", "a=b"])
def test_an_axis_has_a_plain_name(name: str) -> None:
    assert complaint(search=f"{{{name}: {{a: {{}}, b: {{lr: 1}}}}}}").endswith(
        ": the name of an axis is made of letters, digits, '_' and '-'"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Zip, include, exclude, reference, trials

GRID = {"compare": "{model: [mlp, small_cnn]}", "search": "{lr: [1e-3, 1e-2], batch_size: [8, 16]}"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"zip": "[[lr, batchsize]]"}, "6:7: zip.0: 'batchsize' is no axis; did you mean 'batch_size'?"),
        ({"zip": "[[lr, batch_size], [model, lr]]"}, "6:25: zip.1: 'lr' is in a group already"),
        ({"zip": "[[lr, lr]]"}, "6:7: zip.0: 'lr' is in a group already"),
        ({"zip": "[[lr]]"}, "6:7: zip.0: name two axes or more that go in step"),
        ({"zip": "[[]]"}, "6:7: zip.0: name two axes or more that go in step"),
        ({"zip": "[[lr, model]]"}, "6:7: zip.0: axes that go in step must all be in compare or all in search"),
        ({"zip": "[[lr, seed]]"}, "6:7: zip.0: seeds go in step with nothing: every point is run with each"),
        (
            {"search": "{lr: [1, 2, 3], batch_size: [8]}", "zip": "[[lr, batch_size]]"},
            "6:7: zip.0: axes that go in step need equally many values: lr has 3, batch_size has 1",
        ),
        ({"zip": "[lr, batch_size]"}, "6:7: zip.0: 'lr' is not right: must be a list"),
        ({"include": "[{model: mlp, lr: 1e-3}]"}, "6:11: include.0: needs a value for batch_size"),
        (
            {"include": "[{model: mlp, lr: 1, batch: 8}]"},
            "6:31: include.0.batch: is no axis of compare or search; did you mean 'batch_size'?",
        ),
        (
            {"include": "[{model: mlp, lr: 1, batch_size: 8, seed: 1}]"},
            "6:46: include.0.seed: is no axis of compare or search; known: model, lr, batch_size",
        ),
        (
            {"include": "[{model: mlpp, lr: 1, batch_size: 8}]"},
            "6:12: include.0.model: unknown model 'mlpp'; did you mean 'mlp'?",
        ),
        (
            {"include": "[{model: mlp, lr: fast, batch_size: 8}]"},
            "6:24: include.0.lr: 'fast' is not right: must be a number",
        ),
        (
            {"include": "[{model: {name: mlp}, lr: 1, batch_size: 8}]"},
            "6:12: include.0.model: {'name': 'mlp'} is no value of model; known: mlp, small_cnn",
        ),
        (
            {"include": "[{model: mlp, lr: 0.001, batch_size: 8}]"},
            " model=mlp, lr=0.001, batch_size=8 is listed twice",
        ),
        (
            {"include": "[{model: mlp, lr: 5, batch_size: 8}, {model: mlp, lr: '5', batch_size: 8}]"},
            " model=mlp, lr=5.0, batch_size=8 is listed twice",
        ),
        (
            {"search": "{v: {small: {}, large: {batch_size: 8}}}", "include": "[{model: mlp, v: smal}]"},
            "6:24: include.0.v: 'smal' is no value of v; did you mean 'small'?",
        ),
        ({"include": "[5]"}, "6:11: include.0: 5 is not right: must be a mapping"),
        ({"include": "[{}]"}, "6:11: include.0: names no axis"),
        (
            {"exclude": "[{modle: mlp}]"},
            "6:12: exclude.0.modle: is no axis of compare or search; did you mean 'model'?",
        ),
        ({"exclude": "[{model: mpl}]"}, "6:12: exclude.0.model: 'mpl' is no value of model; did you mean 'mlp'?"),
        ({"exclude": "[{lr: [1e-3]}]"}, "6:12: exclude.0.lr: [0.001] is no value of lr; did you mean '0.001'?"),
        ({"exclude": "[{}]"}, "6:11: exclude.0: names no axis"),
        (
            {"exclude": "[{seed: 0}]"},
            "6:12: exclude.0.seed: is no axis of compare or search; known: model, lr, batch_size",
        ),
        (
            {"zip": "[[lr, batch_size]]", "exclude": "[{lr: 1e-3}, {lr: 1e-3, batch_size: 16}]"},
            " exclude: entry 2 ({'lr': 0.001, 'batch_size': 16}) matches no point",
        ),
        ({"exclude": "[{model: mlp}, {model: small_cnn}]"}, " no point of the grid is left by exclude"),
        (
            {"reference": "[{modle: mlp, mean: 1}]"},
            "6:14: reference.0.modle: is no axis of compare or search; did you mean 'model'?",
        ),
        (
            {"reference": "[{model: mlp, meam: 1}]"},
            "6:26: reference.0.meam: is no axis of compare or search; did you mean 'mean'?",
        ),
        (
            {"reference": "[{model: mpl, mean: 1}]"},
            "6:14: reference.0.model: 'mpl' is no value of model; did you mean 'mlp'?",
        ),
        ({"reference": "[{mean: 1}]"}, "6:13: reference.0: names no axis"),
        ({"reference": "[{model: mlp, mean: high}]"}, "6:26: reference.0.mean: 'high' is not right: must be a number"),
        (
            {"reference": "[{model: mlp, mean: 79.9}]"},
            "6:26: reference.0.mean: 79.9 is not right: must be less than or equal to 1",
        ),
        (
            {"reference": "[{model: mlp, std: .nan}]"},
            "6:26: reference.0.std: nan is not right: must be a finite number",
        ),
        (
            {"trials": "5"},
            " trials: says 5, but the axes give 10 (model 2 x lr 2 x batch_size 2 searched with one"
            " seed, each winner with"
            " seed 2)",
        ),
        (
            {"search": "{v: {a: {}, b: {lr: 1e-3}}}"},
            " model=mlp, v=a and model=mlp, v=b are the same trial: no setting differs",
        ),
        (
            {"search": "{train.optimizer.momentum: [0.5], optimizer.name: [sgd, adam]}"},
            " model=mlp, train.optimizer.momentum=0.5, optimizer.name=adam: train.optimizer: adam has no momentum:"
            " use sgd or rmsprop",
        ),
    ],
    ids=str,
)
def test_a_mistake_in_the_grid(keys: dict[str, str], message: str) -> None:
    assert complaint(**{**GRID, **keys}) == f"s.yaml:{message}"


def test_a_reference_is_read_with_the_labels_of_its_axes() -> None:
    read = suite(**GRID, reference="[{model: mlp, lr: '1e-3', mean: 0.5, n: 3}, {model: small_cnn, std: 0.1}]")
    assert read.reference == ({"model": "mlp", "lr": 0.001, "mean": 0.5, "n": 3}, {"model": "small_cnn", "std": 0.1})


@pytest.mark.parametrize(
    ("value", "label"),
    [
        *((0.001, 0.001), ("1e-3", 0.001), ("0.001", 0.001)),
        *((True, True), ("True", True), ("true", True), ("a", "a")),
        *((8, 8), ("8", 8), (8.0, 8), (16, "16"), ("16", "16")),
        *((1, None), ("A", None), ([8], None), (None, None)),
    ],
)
def test_a_label_is_found_however_it_is_written(value: Any, label: Any) -> None:
    found = find_label([0.001, "a", True, 8, "16"], value)
    assert found == label
    assert type(found) is type(label)
