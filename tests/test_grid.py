"""The grid: what each point becomes, and the ids and random streams that never change."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from made import GRID as SMALL
from made import ONE_MODEL as HEAD
from made import plan, suite

from raybench.errors import SuiteError
from raybench.grid import MAX_TRIALS, cells, changes, count, identity, sizes, stream
from raybench.plan import expand
from raybench.settings import TrialSettings
from raybench.suite import build
from raybench.yamlfile import Complaints


def names(text: str, *sets: str) -> list[str]:
    return [trial.name for trial in plan(text, *sets)]


def ids(text: str, *sets: str) -> set[str]:
    return {trial.id for trial in plan(text, *sets)}


# ---------------------------------------------------------------------------------------------------------------------
# Identity

GOLDEN = """\
db9f8f757b511f23 mlp/none/0.001/s0
27397c5429c68957 mlp/none/0.01/s0
59257c9b49186380 mlp/mild/0.001/s0
59fa84129b40b77b mlp/mild/0.01/s0
0ebad0b58ff8e1ed small_cnn/none/0.001/s0
e5ec39db67a1e640 small_cnn/none/0.01/s0
d1f976f83d6be169 small_cnn/mild/0.001/s0
355d410734a8be02 small_cnn/mild/0.01/s0
781529ed09b4063c mlp/none/0.001/s1
2325876f350ad9ef mlp/none/0.01/s1
ed5bfd01a892759a mlp/mild/0.001/s1
7c172ce1985a8d72 mlp/mild/0.01/s1
1d78269f6e5e09bd small_cnn/none/0.001/s1
6068fe2f95d43a00 small_cnn/none/0.01/s1
aee1f1ae25976647 small_cnn/mild/0.001/s1
07b599295930c817 small_cnn/mild/0.01/s1
"""


def test_golden_ids() -> None:
    """These never change: results on people's disks are found by them. Whoever must, bumps `IDENTITY_VERSION`."""
    assert [f"{trial.id} {trial.name}" for trial in plan(SMALL)] == GOLDEN.splitlines()


def test_golden_id_of_phases() -> None:
    phases = [{"epochs": 1, "trainable": "head"}, {"epochs": 2, "lr": 0.1, "optimizer": "sgd"}]
    settings = {"dataset": {"name": "digits"}, "model": {"name": "mlp"}, "train": {"phases": phases}}
    assert identity(settings, 0) == "64763e391e690e67"


def test_golden_streams() -> None:
    """These never change either: they are the initial weights, the order of the images, and the augmentations."""
    assert stream(0, "weights") == 5223795711731633112
    assert stream(0, "order/1") == 2625346372602289897
    assert stream(1, "weights") == 1700817522892632946
    assert stream(1, "order/1") == 942682751652934763


def test_a_stream_depends_on_seed_and_purpose_alone() -> None:
    drawn = [stream(seed, purpose) for seed in range(50) for purpose in ("init", "order", "augment", "dropout")]
    assert len(set(drawn)) == len(drawn)
    assert all(0 <= seed < 2**63 for seed in drawn)
    assert stream(1, "2/x") != stream(1, "2") != stream(12, "x")


def test_an_id_is_that_of_the_settings_and_the_seed() -> None:
    for trial in plan(SMALL):
        assert trial.id == identity(trial.settings, trial.seed)
        assert trial.typed().model_dump() == trial.settings
        assert json.loads(json.dumps(trial.settings)) == trial.settings


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("name: small", "name: other"),
        ("name: small", "name: small\nabout: words"),
        ("model: [mlp, small_cnn]", "model: [small_cnn, mlp]"),
        ("model: [mlp, small_cnn]", "model: {a: mlp, b: {name: small_cnn}}"),
        ("{none: none, mild: [flip, {shift: 0.1}]}", "{b: [flip, shift: {value: 0.1}], a: [none]}"),
        ("lr: [1e-3, 1e-2]", "train.lr: ['0.01', 0.001]"),
        ("search: {lr: [1e-3, 1e-2]}", "search: {v: {slow: {lr: 1e-3}, fast: {train: {lr: 1e-2}}}}"),
        ("seed: 2", "seed: [1, 0]"),
        ("optimizer: sgd", "optimizer: {name: sgd, momentum: 0}"),
        ("epochs: 5", "epochs: 5, batch_size: 32, loss: cross_entropy, precision: float32, early_stopping: null"),
        ("validation: {size: 100}", "validation: {size: 100, fraction: null}, seed: 0, train_size: null"),
        ("train:", "resources: {cpus: 1, workers: 1, gpus: 0.25}\ntrain:"),
        ("train:", "resources: {gpus: 2}\ntrain:"),
        ("validation: {size: 100}", "validation: {size: 100}, stream: true"),
        ("validation: {size: 100}", "validation: {size: 100}, stream: false"),
    ],
)
def test_what_is_shown_or_shared_or_default_is_no_part_of_an_id(before: str, after: str) -> None:
    assert before in SMALL
    assert ids(SMALL.replace(before, after)) == ids(SMALL)


@pytest.mark.parametrize(
    "change",
    [
        "lr=0.5",
        "train.epochs=6",
        "train.batch_size=16",
        "train.optimizer.momentum=0.5",
        "train.loss=bce",
        "train.early_stopping={}",
        "train.smoke=true",
        "resources.cpus=2",
        "resources.workers=2",
        "dataset.name=mnist",
        "dataset.validation={size: 101}",
        "dataset.train_size=500",
        "dataset.test_size=500",
        "dataset.image_size=16",
        "dataset.seed=1",
        "augmentation=flip",
        "model.hidden=[8]",
        "repeat.seed=[2, 3]",
    ],
)
def test_all_that_can_change_a_result_changes_every_id(change: str) -> None:
    text = SMALL.replace("  augmentation: {none: none, mild: [flip, {shift: 0.1}]}\n", "").replace("search:", "#")
    assert len(ids(text)) == len(ids(text, change)) == 4
    assert not ids(text) & ids(text, change)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(
    rates=st.lists(st.floats(1e-6, 1, exclude_min=True), min_size=1, max_size=4, unique=True),
    seeds=st.lists(st.integers(0, 100), min_size=1, max_size=4, unique=True),
    models=st.lists(st.sampled_from(["mlp", "small_cnn", "model1", "timm:resnet18"]), min_size=1, unique=True),
    more=st.sampled_from(
        ["search.batch_size=[32, 64]", "compare.augmentation=[none, flip]", "compare.v={a: {}, b: {train.epochs: 3}}"]
    ),
)
def test_a_larger_grid_keeps_the_ids_of_the_smaller(
    rates: list[float], seeds: list[int], models: list[str], more: str
) -> None:
    text = f"{HEAD}compare: {{model: {json.dumps(models)}}}\nsearch: {{lr: {rates}}}\nrepeat: {{seed: {seeds}}}\n"
    smaller, larger = plan(text), plan(text, more)
    assert len({trial.id for trial in larger}) == len(larger) == 2 * len(smaller)
    assert {trial.id for trial in smaller} < {trial.id for trial in larger}
    kept = [trial.id for trial in larger if trial.id in {trial.id for trial in smaller}]
    assert kept == [trial.id for trial in smaller], "and their order"


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(st.permutations(["model", "lr", "batch_size", "augmentation"]), st.randoms(use_true_random=False))
def test_the_order_of_axes_and_values_is_no_part_of_an_id(order: list[str], random: Any) -> None:
    values = {
        "model": ["mlp", "small_cnn"],
        "lr": [0.001, 0.01],
        "batch_size": [8, 16],
        "augmentation": ["none", "flip", "aug1"],
    }
    for list_ in values.values():
        random.shuffle(list_)
    axes = json.dumps({name: values[name] for name in order})
    plain = "{model: [mlp, small_cnn], lr: [1e-3, 1e-2], batch_size: [8, 16], augmentation: [none, flip, aug1]}"
    assert ids(f"{HEAD}compare: {axes}") == ids(f"{HEAD}compare: {plain}")


# ---------------------------------------------------------------------------------------------------------------------
# Expansion


def test_a_product_is_ordered_by_seed_and_then_as_it_is_written() -> None:
    text = HEAD + "compare: {model: [small_cnn, mlp]}\nsearch: {lr: [1, 0.5]}\nrepeat: {seed: [5, 3]}"
    assert names(text) == [
        *("small_cnn/1.0/s5", "small_cnn/0.5/s5", "mlp/1.0/s5", "mlp/0.5/s5"),
        *("small_cnn/1.0/s3", "small_cnn/0.5/s3", "mlp/1.0/s3", "mlp/0.5/s3"),
    ]


def test_a_trial_knows_its_place() -> None:
    trial = plan(SMALL)[-1]
    assert (trial.suite, trial.seed) == ("small", 1)
    assert trial.labels == {"model": "small_cnn", "augmentation": "mild", "lr": 0.01, "seed": 1}
    assert (trial.cell, trial.point) == (("small_cnn", "mild"), (0.01,))
    assert trial.settings["augmentation"] == [{"name": "flip"}, {"name": "shift", "value": 0.1}]
    assert isinstance(trial.typed(), TrialSettings)


def test_stopping_anywhere_leaves_about_equal_n() -> None:
    trials = plan(SMALL, "repeat.seed=4")
    for stop in range(len(trials) + 1):
        n = Counter((trial.cell, trial.point) for trial in trials[:stop])
        n.update({(trial.cell, trial.point): 0 for trial in trials})
        assert max(n.values()) - min(n.values()) <= 1


def test_cells_come_in_the_order_of_the_suite() -> None:
    found = [(cell, point, [trial.seed for trial in members]) for cell, point, members in cells(plan(SMALL))]
    assert [cell for cell, point, _ in found if point == (0.001,)] == (
        [("mlp", "none"), ("mlp", "mild"), ("small_cnn", "none"), ("small_cnn", "mild")]
    )
    assert all(seeds == [0, 1] for _, _, seeds in found)


def test_a_suite_without_axes_is_one_trial() -> None:
    assert names(HEAD) == ["s0"]


def test_axes_in_step() -> None:
    text = HEAD + "search: {lr: [1, 2], train.epochs: [5, 6], batch_size: [8, 16]}\nzip: [[lr, batch_size]]"
    assert names(text) == ["1.0/5/8/s0", "1.0/6/8/s0", "2.0/5/16/s0", "2.0/6/16/s0"]
    assert sizes(suite(text)) == "lr 2 x train.epochs 2 x batch_size 2 x seed 1"
    assert count(suite(text)) == 4


def test_points_besides_the_grid() -> None:
    text = HEAD + (
        "compare: {model: [mlp], v: {a: {}, b: {train.epochs: 3}}}\n"
        "search: {lr: [1]}\n"
        "include: [{v: b, model: small_cnn, lr: '0.5'}, {v: a, model: mlp, lr: 2}]\n"
        "repeat: {seed: 2}\n"
        "trials: 8\n"
    )
    trials = plan(text)
    assert [trial.name for trial in trials[:4]] == [
        "mlp/a/1.0/s0",
        "mlp/b/1.0/s0",
        "small_cnn/b/0.5/s0",
        "mlp/a/2.0/s0",
    ]
    assert trials[2].labels == {"model": "small_cnn", "v": "b", "lr": 0.5, "seed": 0}
    assert (trials[2].settings["train"]["epochs"], trials[2].settings["train"]["lr"]) == (3, 0.5)


def test_points_left_out() -> None:
    text = HEAD + "compare: {model: [mlp, small_cnn]}\nsearch: {lr: [1, 2], batch_size: [8, 16]}\n"
    assert names(text + "exclude: [{model: mlp, lr: '1'}, {batch_size: 16}]\ntrials: 3") == (
        ["mlp/2.0/8/s0", "small_cnn/1.0/8/s0", "small_cnn/2.0/8/s0"]
    )


VARIANTS = (
    HEAD
    + """
train: {epochs: 9, optimizer: {name: sgd, momentum: 0.5}, early_stopping: {metric: val_loss, patience: 7}}
compare:
  v:
    plain: {}
    nested: {train: {optimizer: {momentum: 0.9}, early_stopping: {patience: 3}}, model: {hidden: [8]}}
    dotted: {train.optimizer.momentum: 0.9, train.early_stopping.patience: 3, model.hidden: [8]}
    whole: {optimizer: {name: rmsprop}, model: {name: small_cnn}}
    bare: {optimizer: rmsprop, model: small_cnn}
    both: {model: small_cnn, model.width: 4, train.early_stopping: null}
"""
)


def variants() -> Iterator[tuple[str, dict[str, Any]]]:
    read = suite(VARIANTS)
    for label, assignments in zip(read.axis("v").labels, read.axis("v").assignments, strict=True):
        keep = {"compare": {"v": {str(label): assignments}}}
        yield str(label), expand(build({**read.document, **keep}, Complaints("s.yaml"), Path()))[0].settings


def test_variants_override_and_do_not_leak() -> None:
    found = dict(variants())
    assert found["plain"]["train"]["optimizer"]["momentum"] == 0.5
    assert found["plain"]["train"]["early_stopping"] == {"metric": "val_loss", "patience": 7, "min_delta": 0.0}
    assert found["plain"]["model"] == {"name": "mlp"}
    assert found["nested"] == found["dotted"]
    assert found["nested"]["train"]["optimizer"] == {**found["plain"]["train"]["optimizer"], "momentum": 0.9}
    assert found["nested"]["train"]["early_stopping"] == {"metric": "val_loss", "patience": 3, "min_delta": 0.0}
    assert found["nested"]["model"] == {"name": "mlp", "hidden": [8]}
    assert found["nested"]["train"]["epochs"] == 9


def test_a_mapping_with_a_name_replaces_as_a_whole() -> None:
    found = dict(variants())
    assert found["whole"] == found["bare"]
    assert found["whole"]["train"]["optimizer"]["momentum"] == 0.0
    assert found["whole"]["model"] == {"name": "small_cnn"}
    assert found["both"]["model"] == {"name": "small_cnn", "width": 4}
    assert found["both"]["train"]["early_stopping"] is None


def test_variants_that_are_the_same_are_refused() -> None:
    with pytest.raises(SuiteError, match="v=nested and v=dotted are the same trial: no setting differs"):
        plan(VARIANTS)


def test_settings_are_whole_though_a_variant_names_one_key() -> None:
    text = HEAD + "compare: {v: {off: {}, on: {train.early_stopping.patience: 3}, off2: {train.epochs: 2}}}"
    assert [trial.settings["train"]["early_stopping"] for trial in plan(text)] == (
        [None, {"metric": "val_accuracy", "patience": 3, "min_delta": 0.0}, None]
    )


def test_validation_is_replaced_as_a_whole() -> None:
    text = HEAD.replace("digits", "digits, validation: test") + (
        "compare: {v: {a: {}, b: {dataset: {validation: {size: 5}}}, c: {dataset.validation: {fraction: 0.5}}}}"
    )
    assert [trial.settings["dataset"]["validation"] for trial in plan(text)] == (
        ["test", {"size": 5, "fraction": None}, {"size": None, "fraction": 0.5}]
    )


def test_axes_may_fit_only_together() -> None:
    text = HEAD + "compare: {optimizer: [sgd, rmsprop], optimizer.momentum: [0.5, 0.9]}"
    assert names(text) == ["sgd/0.5/s0", "sgd/0.9/s0", "rmsprop/0.5/s0", "rmsprop/0.9/s0"]
    with pytest.raises(SuiteError) as error:
        plan(text, "compare.optimizer=[sgd, adam]")
    assert str(error.value) == (
        "s.yaml: optimizer=adam, optimizer.momentum=0.5: train.optimizer: adam has no momentum: use sgd or rmsprop"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            "resources: {workers: 2, gpus: 0.5}",
            "s.yaml: resources.gpus 0.5 is not right with 2 workers: each needs a GPU of its own, so 1, or 0 to train"
            " on CPUs",
        ),
        (
            "resources: {workers: 4}\ntrain: {batch_size: 4}",
            "s.yaml: batch_size 4 is for all 4 workers together: each needs two images or more, so at least 8",
        ),
        (
            "resources: {workers: 4}\ncompare: {train.cuda_graph: [false, true]}",
            "s.yaml: train.cuda_graph=True: train.cuda_graph is for one process, not for 4 workers",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(settings: str, message: str) -> None:
    with pytest.raises(SuiteError) as error:
        plan(f"{HEAD}{settings}\n")
    assert str(error.value) == message


def test_an_axis_may_make_settings_go_together() -> None:
    (trial,) = plan(f"{HEAD}resources: {{workers: 4}}\ntrain: {{batch_size: 4}}\ncompare: {{train.batch_size: [8]}}\n")
    assert trial.typed().train.batch_size == 8


# ---------------------------------------------------------------------------------------------------------------------
# Size


def test_a_billion_seeds_are_counted_and_refused() -> None:
    text = SMALL.replace("seed: 2", "seed: 1000000000")
    assert count(suite(text)) == 8 * 10**9
    with pytest.raises(SuiteError) as error:
        plan(text)
    assert str(error.value) == (
        "s.yaml: the axes give 8,000,000,000 trials (model 2 x augmentation 2 x lr 2 x seed 1000000000); raybench plans"
        " at most 100,000: make an axis shorter"
    )


def test_a_billion_points_are_counted_and_refused() -> None:
    axes = ", ".join(f"model.option{i}: {list(range(1000))}" for i in range(3))
    read = suite(f"{HEAD}search: {{{axes}}}")
    assert count(read) == 10**9
    with pytest.raises(SuiteError, match=r"the axes give 1,000,000,000 trials \(model.option0 1000 x "):
        expand(read)


def test_many_trials_are_planned() -> None:
    trials = plan(HEAD + f"search: {{model.width: {list(range(500))}}}\nrepeat: {{seed: 20}}")
    assert len({trial.id for trial in trials}) == 10_000 < MAX_TRIALS
    assert trials[-1].name == "499/s19"


# ---------------------------------------------------------------------------------------------------------------------
# Changes


def test_changes_from_cell_to_cell() -> None:
    text = HEAD + (
        "compare:\n  v:\n    a: {model: mlp}\n    b: {model: {name: mlp, hidden: [8, 4]}, train: {lr: 0.01}}\n"
        "    c: {model: small_cnn, train: {early_stopping: {patience: 3}}, augmentation: [flip]}\n"
        "search: {batch_size: [32, 8]}\nrepeat: {seed: 2}\n"
    )
    found = [((*trial.cell, *trial.point), changed) for trial, changed in changes(plan(text))]
    assert found == [
        (("a", 32), []),
        (("a", 8), [("train.batch_size", "32", "8")]),
        (
            ("b", 32),
            [("model.hidden", "–", "[8, 4]"), ("train.batch_size", "8", "32"), ("train.lr", "0.001", "0.01")],
        ),
        (("b", 8), [("train.batch_size", "32", "8")]),
        (
            ("c", 32),
            [
                ("model.name", "mlp", "small_cnn"),
                ("model.hidden", "[8, 4]", "–"),
                ("augmentation", '[{"name": "none"}]', '[{"name": "flip"}]'),
                ("train.batch_size", "8", "32"),
                ("train.lr", "0.01", "0.001"),
                ("train.early_stopping", "null", '{"metric": "val_accuracy", "patience": 3, "min_delta": 0.0}'),
            ],
        ),
        (("c", 8), [("train.batch_size", "32", "8")]),
    ]
