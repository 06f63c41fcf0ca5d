from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from raybench.errors import SuiteError
from raybench.plan import (
    MAX_TRIALS,
    Choice,
    Trial,
    cells,
    changes,
    count,
    expand,
    identity,
    is_done,
    pruner,
    restore,
    sizes,
    snapshot,
    start_order,
    stream,
)
from raybench.search import Ended
from raybench.settings import TrialSettings
from raybench.suite import Suite, build
from raybench.yamlfile import Complaints, parse_yaml


def suite(text: str, *sets: str) -> Suite:
    document, marks = parse_yaml(text, "s.yaml")
    return build(document, Complaints("s.yaml", marks), Path(), sets)


def plan(text: str, *sets: str, only: dict[str, list[str]] | None = None, limit: int | None = None) -> list[Trial]:
    return expand(suite(text, *sets), only, limit)


def names(text: str, *sets: str, **options: Any) -> list[str]:
    return [trial.name for trial in plan(text, *sets, **options)]


def ids(text: str, *sets: str) -> set[str]:
    return {trial.id for trial in plan(text, *sets)}


HEAD = """
name: s
dataset: {name: digits}
model: mlp
confirm: none
"""

SMALL = """
name: small
dataset: {name: digits, validation: {size: 100}}
compare:
  model: [mlp, {label}]
  augmentation: {none: none, mild: [flip, {shift: 0.1}]}
search: {lr: [1e-3, 1e-2]}
confirm: none
repeat: {seed: 2}
train: {epochs: 5, optimizer: sgd}
""".replace("{label}", "small_cnn")

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


# ---------------------------------------------------------------------------------------------------------------------
# --only and --limit


@pytest.mark.parametrize(
    ("only", "left"),
    [
        ({"lr": ["1e-3"]}, ["mlp/0.001/s0", "small_cnn/0.001/s0", "mlp/0.001/s1", "small_cnn/0.001/s1"]),
        ({"lr": ["0.001"], "seed": ["1"]}, ["mlp/0.001/s1", "small_cnn/0.001/s1"]),
        ({"model": ["mlp"], "lr": ["0.01"], "seed": ["1.0"]}, ["mlp/0.01/s1"]),
        ({"model": ["mlp", "small_cnn"], "lr": ["0.01"], "seed": ["0"]}, ["mlp/0.01/s0", "small_cnn/0.01/s0"]),
    ],
)
def test_only_some_values(only: dict[str, list[str]], left: list[str]) -> None:
    text = HEAD + "compare: {model: [mlp, small_cnn]}\nsearch: {lr: [1e-3, '1e-2']}\nrepeat: {seed: 2}\ntrials: 8"
    assert names(text, only=only) == left
    whole = {trial.name: trial.id for trial in plan(text)}
    assert all(whole[trial.name] == trial.id for trial in plan(text, only=only))


def test_only_reaches_truth_values_and_included_points() -> None:
    text = HEAD + "search: {train.test_every_epoch: [true, false], lr: [1]}\n"
    text += "include: [{train.test_every_epoch: true, lr: 7}]"
    assert names(text, only={"train.test_every_epoch": ["true"]}) == ["True/1.0/s0", "True/7.0/s0"]
    assert names(text, only={"lr": ["7"]}) == ["True/7.0/s0"]


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ({"modle": ["mlp"]}, "--only modle: is no axis of s; did you mean 'model'?"),
        ({"model": ["mpl"]}, "--only model=mpl: no such value; did you mean 'mlp'?"),
        ({"lr": ["0.1"]}, "--only lr=0.1: no such value; did you mean '0.01'?"),
        ({"seed": ["7"]}, "--only seed=7: no such value; known: 0, 1"),
        ({"model": ["mlp"], "lr": ["0.001"]}, "s.yaml: no point of the grid is left by --only"),
    ],
)
def test_only_refuses_what_is_not_there(only: dict[str, list[str]], message: str) -> None:
    text = HEAD + "compare: {model: [mlp, small_cnn]}\nsearch: {lr: [1e-3, 1e-2]}\nrepeat: {seed: 2}\n"
    with pytest.raises(SuiteError) as error:
        plan(text + "exclude: [{model: mlp, lr: 1e-3}]", only=only)
    assert str(error.value) == message


def test_a_limit_cuts_the_end() -> None:
    everything = names(SMALL)
    assert [names(SMALL, limit=limit) for limit in (1, 5, 99)] == [everything[:1], everything[:5], everything]
    assert names(SMALL, only={"seed": ["1"]}, limit=1) == ["mlp/none/0.001/s1"]


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
# Search, then confirm

SEARCH = """
name: s
dataset: {name: digits}
compare: {model: [mlp, small_cnn]}
search: {lr: [1, 0.1, 0.01]}
repeat: {seed: [7, 3, 5]}
train: {epochs: 9}
"""
DRAWN = """
name: s
dataset: {name: digits}
compare: {model: [mlp, small_cnn]}
search: {lr: {range: [1e-5, 1], log: true}, optimizer: [adam, sgd]}
draw: {points: 7, at_once: 3}
repeat: {seed: 2}
train: {epochs: 9}
"""


def told(trials: list[Trial], values: dict[str, float | None] | None = None) -> dict[str, Ended]:
    """All trials have ended: with the value of their name, with none as failed, else with 0.5."""
    ended = {}
    for trial in trials:
        value = (values or {}).get(trial.name, 0.5)
        ended[trial.id] = Ended("failed" if value is None else "completed", value, 9, trial.draw, trial.labels)
    return ended


def stages(trials: list[Trial]) -> list[str]:
    return [f"{trial.stage} {trial.name}" for trial in trials]


def test_a_search_is_made_with_the_first_seed_and_its_winners_with_all() -> None:
    read = suite(SEARCH)
    first = expand(read)
    assert stages(first) == [f"search {m}/{lr}/s7" for m in ("mlp", "small_cnn") for lr in (1.0, 0.1, 0.01)]
    assert expand(read, ended=told(first[:-1])) == first, "as long as one is open, there is no winner"
    ended = told(first, {"mlp/0.1/s7": 0.9, "small_cnn/0.01/s7": 0.6})
    both = expand(read, ended=ended)
    assert stages(both) == [
        *("search mlp/1.0/s7", "confirm mlp/0.1/s7", "search mlp/0.01/s7"),
        *("search small_cnn/1.0/s7", "search small_cnn/0.1/s7", "confirm small_cnn/0.01/s7"),
        *("confirm mlp/0.1/s3", "confirm small_cnn/0.01/s3", "confirm mlp/0.1/s5", "confirm small_cnn/0.01/s5"),
    ]
    assert {trial.id for trial in first} < {trial.id for trial in both}, "the search's trial is one of the winner's"
    assert {trial.id for trial in both} < ids(SEARCH + "confirm: none"), "the stage is no part of an id"
    assert Choice(read).planned() == len(both) == 10
    assert sizes(read) == "model 2 x lr 3 searched with one seed, each winner with seed 3"


def test_losses_are_won_by_less_and_a_cell_without_a_finished_trial_has_no_winner() -> None:
    read = suite(SEARCH, "train.best=val_loss")
    values = {"mlp/0.1/s7": 0.4, "small_cnn/1.0/s7": None, "small_cnn/0.1/s7": None, "small_cnn/0.01/s7": None}
    both = expand(read, ended=told(expand(read), values))
    assert [name for name in stages(both) if name.startswith("confirm")] == [f"confirm mlp/0.1/s{s}" for s in (7, 3, 5)]


def test_a_pruned_trial_wins_nothing() -> None:
    read = suite(SEARCH + "prune: asha")
    ended = told(expand(read), {"mlp/1.0/s7": 0.9})
    lost = next(trial.id for trial in expand(read) if trial.name == "mlp/1.0/s7")
    ended[lost] = Ended("pruned", 0.9, 1)
    assert "confirm mlp/0.1/s7" in stages(expand(read, ended=ended)), "of equals the first"


def test_a_search_of_one_point_is_none() -> None:
    assert {trial.stage for trial in plan(SEARCH, "search.lr=[1]")} == {"grid"}
    assert sizes(suite(SEARCH, "search.lr=[1]")) == "model 2 x lr 1 x seed 3"


def test_without_confirmation_the_search_has_all_seeds() -> None:
    trials = plan(SEARCH + "confirm: none")
    assert len(trials) == 18 and {trial.stage for trial in trials} == {"search"}


def test_a_search_can_be_cut() -> None:
    read = suite(SEARCH)
    chosen = Choice(read, {"model": ["mlp"], "seed": ["3", "5"]})
    first = chosen.trials({})
    assert stages(first) == ["search mlp/1.0/s7", "search mlp/0.1/s7", "search mlp/0.01/s7"], "whatever is chosen"
    assert stages(chosen.trials(told(first)))[3:] == ["confirm mlp/1.0/s3", "confirm mlp/1.0/s5"]
    assert chosen.planned() == 5 and chosen.seeds() == [3, 5]
    assert Choice(read, limit=4).planned() == len(Choice(read, limit=4).trials({})) == 4
    again = restore(json.loads(json.dumps(snapshot(chosen))), "suite.json")
    assert again.trials({}) == chosen.trials({}) and again.planned() == 5


def finish(text: str, value: Any, *sets: str) -> tuple[list[Trial], dict[str, Ended], int]:
    """End all trials with the values of their labels; return them, what is known of them, and the number of rounds."""
    read, ended, rounds = suite(text, *sets), {}, 0
    while todo := [trial for trial in expand(read, ended=ended) if trial.id not in ended]:
        ended |= told(todo, {trial.name: value(trial.labels) for trial in todo})
        rounds += 1
    return expand(read, ended=ended), ended, rounds


def near(labels: dict[str, Any]) -> float:
    return -abs(labels["lr"] - 0.01)


def test_points_are_drawn_round_by_round() -> None:
    read = suite(DRAWN)
    first = expand(read)
    assert [(trial.cell, trial.draw, trial.stage) for trial in first] == [
        ((model,), number, "search") for number in range(3) for model in ("mlp", "small_cnn")
    ]
    assert expand(read) == first
    assert len({(trial.labels["lr"], trial.labels["optimizer"]) for trial in first}) == 6, "cells have their own points"
    half = expand(read, ended=told([trial for trial in first if trial.cell == ("mlp",)]))
    assert Counter(trial.cell for trial in half) == {("mlp",): 6, ("small_cnn",): 3}
    trials, _, rounds = finish(DRAWN, near)
    assert rounds == 4, "three of points and one that confirms"
    assert Counter(trial.stage for trial in trials) == {"search": 12, "confirm": 4}
    assert Choice(read).planned() == len(trials) == 16
    for model in ("mlp", "small_cnn"):
        mine = [trial for trial in trials if trial.cell == (model,)]
        best = max(mine, key=lambda trial: near(trial.labels))
        assert {trial.point for trial in mine if trial.stage == "confirm"} == {best.point}
        assert sorted(trial.draw for trial in mine if trial.draw is not None and trial.seed == 0) == list(range(7))


def test_a_study_goes_on_from_what_is_stored() -> None:
    trials, ended, _ = finish(DRAWN, near)
    search = [trial for trial in trials if trial.seed == 0]
    for kept in range(len(search) + 1):
        part = {trial.id: ended[trial.id] for trial in search[:kept]}
        again, whole = expand(suite(DRAWN), ended=part), {trial.id for trial in trials}
        assert {trial.id for trial in again} <= whole


def test_stored_points_count_even_if_another_sampler_would_draw_others(monkeypatch: pytest.MonkeyPatch) -> None:
    trials, ended, _ = finish(DRAWN, near)
    monkeypatch.setattr("raybench.plan.draw", lambda *args, **options: pytest.fail("all were drawn already"))
    assert expand(suite(DRAWN), ended=ended) == trials


def test_more_points_go_on_with_a_study_and_other_settings_begin_one() -> None:
    trials, ended, _ = finish(DRAWN, near)
    drawn = [trial.id for trial in trials if trial.draw is not None]
    more = expand(suite(DRAWN, "draw.points=9"), ended=ended)
    assert set(drawn) < {trial.id for trial in more} and len(more) == 2 * 9
    other = expand(suite(DRAWN, "train.epochs=8"), ended=ended)
    assert len(other) == 6 and not {trial.id for trial in other} & set(ended)


def test_a_study_ends_where_its_space_does() -> None:
    text = DRAWN.replace("{range: [1e-5, 1], log: true}", "{range: [1, 1.0002]}").replace("[adam, sgd]", "[adam]")
    trials, _, _ = finish(text, lambda labels: 0.5)
    assert Counter(trial.stage for trial in trials)["confirm"] == 4
    assert len({trial.id for trial in trials}) == len(trials) < 16, "1 and 1.0002 are all that four digits tell apart"


def test_a_stored_point_is_not_drawn_twice() -> None:
    """Also where another `at_once` made other rounds."""
    text = DRAWN.replace("{range: [1e-5, 1], log: true}", "[1, 2, 3, 4]").replace("points: 7", "points: 3")
    _, ended, _ = finish(text, lambda labels: 0.5)
    read = suite(text, "draw.points=8", "draw.at_once=2")
    while todo := [trial for trial in expand(read, ended=ended) if trial.id not in ended]:
        ended |= told(todo)
    search = [trial for trial in expand(read, ended=ended) if trial.seed == 0]
    assert len({trial.id for trial in search}) == len(search) == 16


def test_points_outside_a_narrower_range_are_of_another_study() -> None:
    _, ended, _ = finish(DRAWN, near)
    trials = expand(suite(DRAWN, "search.lr={range: [0.01, 0.02], log: true}"), ended=ended)
    assert all(0.01 <= float(trial.labels["lr"]) <= 0.02 for trial in trials)


def test_pruned_trials_are_done_only_where_they_prune() -> None:
    read = suite(SEARCH + "prune: asha")
    trials = expand(read)
    ended = told(trials) | {trials[0].id: Ended("pruned", 0.1, 1)}
    assert is_done(read, trials[0], ended) and not is_done(suite(SEARCH), trials[0], ended)
    assert not is_done(read, replace(trials[0], stage="confirm"), ended) and not is_done(read, trials[0], {})


@pytest.mark.parametrize("text", [SEARCH + "prune: asha", DRAWN + "prune: asha"])
def test_brackets_keep_their_order_when_winners_are_known(text: str) -> None:
    read = suite(text)
    trials, _, _ = finish(text, near)
    search = [replace(trial, stage="search") for trial in trials if trial.seed == int(read.axis("seed").labels[0])]
    before = {bracket.order[0]: bracket.order for bracket in pruner(read, search).brackets}
    after = {bracket.order[0]: bracket.order for bracket in pruner(read, trials).brackets}
    assert {first: order for first, order in after.items() if len(order) > 1} == before


def test_a_failed_point_is_drawn_again_by_its_number() -> None:
    read = suite(DRAWN)
    first = expand(read)
    done = told(first[1:])
    assert expand(read, ended=done)[:1] == first[:1], "an open trial of the round is the same as before"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("draw: {points: 7, at_once: 3}", ""),
            "4:10: search.lr: a range is drawn from: say how often, as in draw: {points: 10}",
        ),
        (("points: 7", "points: 0"), "5:8: draw.points: 0 is not right: must be greater than or equal to 1"),
        (
            ("1e-5, 1]", "1e-5, -1]"),
            "4:10: search.lr: range must go from a smaller to a larger number, not from 1e-05 to -1",
        ),
        (("[1e-5, 1], log: true", "[-1, 1]"), "4:15: search.lr.range: -1.0 is not right: must be greater than 0"),
        (
            ("train: {epochs: 9}", "zip: [[lr, optimizer]]"),
            "7:7: zip.0: axes of search are drawn one by one: they cannot go in step",
        ),
        (
            ("train: {epochs: 9}", "include: [{model: mlp, lr: 1, optimizer: adam}]"),
            "7:11: include.0: the points of search are drawn: none can be listed",
        ),
        (
            ("train: {epochs: 9}", "exclude: [{optimizer: adam}]"),
            "7:11: exclude.0: the points of search are drawn: none can be listed",
        ),
        (
            ("search: {lr: {range: [1e-5, 1], log: true}, optimizer: [adam, sgd]}", "prune: asha"),
            "5:1: draw: there is nothing to draw: name axes under search",
        ),
        (
            (
                "search: {lr: {range: [1e-5, 1], log: true}, optimizer: [adam, sgd]}\ndraw: {points: 7, at_once: 3}",
                "prune: asha\nsearch: {lr: [1]}",
            ),
            "4:1: prune: there is nothing to prune: only trials that differ in an axis of search"
            " compete, and none does",
        ),
        (
            ("train: {epochs: 9}", "trials: 14"),
            " trials: says 14, but the axes give 16 (model 2 x 7 drawn points searched with one seed,"
            " each winner with seed 2)",
        ),
        (
            ("search: {lr: {range: [1e-5, 1], log: true}, optimizer: [adam, sgd]}", "search: {optimizer: [adam, sgd]}"),
            "5:8: draw.points: there are only 2 different points to draw",
        ),
        (
            ("compare: {model: [mlp, small_cnn]}", "compare: {model: [mlp], v: {a: {lr: 1}, b: {lr: 2}}}"),
            "4:10: search.lr: sets train.lr, which the axis v sets too",
        ),
        (
            ("optimizer: [adam, sgd]", "v: {a: {train.best: val_loss}, b: {}}"),
            " search: points of one cell must be judged by one measure, not by val_accuracy and val_loss of",
        ),
        (("points: 7", "points: 7, first: 1"), "5:19: draw.first: unknown key; known: points, at_once"),
        (
            ("train: {epochs: 9}", "prune: {name: asha, first: 20}"),
            " prune: first: 20 leaves no epoch to decide after: mlp/",
        ),
    ],
)
def test_a_mistake_in_a_search(change: tuple[str, str], message: str) -> None:
    with pytest.raises(SuiteError) as refused:
        expand(suite(DRAWN.strip().replace(*change)))
    assert str(refused.value).removeprefix("s.yaml:").startswith(message)


def test_drawn_values_are_not_chosen() -> None:
    with pytest.raises(SuiteError, match=r"^--only lr=1: the values of lr are drawn, not chosen$"):
        plan(DRAWN, only={"lr": ["1"]})


def test_trials_that_prune_each_other_start_in_an_order_of_their_own() -> None:
    read = suite(SEARCH + "prune: asha\nconfirm: none")
    trials = expand(read)
    order = start_order(read, trials)
    assert sorted(order, key=lambda t: t.id) == sorted(trials, key=lambda t: t.id) and order != trials
    assert [trial.seed for trial in order] == [7] * 6 + [3] * 6 + [5] * 6
    assert [trial.cell[0] for trial in order[:6]] == ["mlp", "small_cnn"] * 3, "cells take turns"
    assert start_order(read, trials[::-1])[::6] != [] and [t.id for t in start_order(read, trials[:6])] == [
        t.id for t in order[:6]
    ]
    brackets = pruner(read, trials).brackets
    assert len(brackets) == 6 and all(bracket.order == sorted(bracket.order) for bracket in brackets)
    assert start_order(suite(SEARCH), expand(suite(SEARCH))) == expand(suite(SEARCH))


def test_nothing_is_pruned_without_a_rule_nor_in_a_smoke_run() -> None:
    assert pruner(suite(SEARCH), plan(SEARCH)).brackets == ()
    text = SEARCH + "prune: asha"
    assert pruner(suite(text, "train.smoke=true"), plan(text, "train.smoke=true")).brackets == ()


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
