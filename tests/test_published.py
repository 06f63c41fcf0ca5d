from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from scipy import stats

from raybench import plan
from raybench import suite as suites
from raybench.plan import restore, snapshot
from raybench.published import Protocol, published_row, said_of, verdict
from raybench.settings import Named

# ---------------------------------------------------------------------------------------------------------------------
# Verdicts


def test_verdicts_by_hand() -> None:
    # 0.02 / sqrt(0.01^2 / 4 + 0.01^2 / 4) = 0.02 / 0.0070711; t(0.975, 6) = 2.447
    assert verdict(4, 0.82, 0.01, {"mean": 0.80, "std": 0.01, "n": 4}) == (
        pytest.approx(2.828427),
        "differs by 2.8 sigma",
    )
    assert verdict(4, 0.78, 0.01, {"mean": 0.80, "std": 0.01, "n": 4})[1] == "differs by 2.8 sigma"
    # Two each leave two degrees of freedom: t(0.975, 2) = 4.303, and 0.04 / 0.01 = 4 is not enough.
    assert verdict(2, 0.84, 0.01, {"mean": 0.80, "std": 0.01, "n": 2}) == (pytest.approx(4.0), "consistent")
    # Without a published n its std is that of a single result: 0.02 / sqrt(0.01^2 / 4 + 0.01^2)
    assert verdict(4, 0.82, 0.01, {"mean": 0.80, "std": 0.01}) == (pytest.approx(1.788854), "consistent")
    assert verdict(4, 0.80, 0.01, {"mean": 0.80, "std": 0.01, "n": 4}) == (0.0, "consistent")


@given(st.integers(2, 20), st.integers(2, 20), st.floats(0.001, 0.1), st.floats(0.001, 0.1), st.floats(-0.2, 0.2))
def test_consistent_is_what_welchs_t_test_keeps(n: int, m: int, s: float, t: float, difference: float) -> None:
    sigma, said = verdict(n, 0.5 + difference, s, {"mean": 0.5, "std": t, "n": m})
    test = stats.ttest_ind_from_stats(0.5 + difference, s, n, 0.5, t, m, equal_var=False)
    assert sigma == pytest.approx(abs(test.statistic))
    if abs(test.pvalue - 0.05) > 1e-9:
        assert (said == "consistent") == (test.pvalue > 0.05)


def test_a_spread_of_zero_on_one_side() -> None:
    # Measured without spread, and no published n: the normal distribution, 1.96 sigma.
    published = {"mean": 0.5, "std": 0.1}
    assert verdict(3, 0.5 + 0.195, 0.0, published)[1] == "consistent"
    assert verdict(3, 0.5 + 0.197, 0.0, published)[1] == "differs by 2.0 sigma"
    assert verdict(3, 0.75, 0.25, {"mean": 0.5, "std": 0.0, "n": 5})[0] == pytest.approx(math.sqrt(3))


@pytest.mark.parametrize(
    ("measured", "published", "why_not", "said"),
    [
        ((1, 0.8, None), {"mean": 0.7, "std": 0.01, "n": 5}, "", "no verdict: n = 1, so the spread is not known"),
        ((5, 0.8, 0.01), {"mean": 0.7, "n": 1}, "", "no verdict: no std was published"),
        ((5, 0.8, 0.0), {"mean": 0.7, "std": 0.0, "n": 5}, "", "no verdict: neither varies"),
        ((5, 0.8, 0.01), {"mean": 0.8, "std": 0.01}, "rule last", "not comparable: rule last"),
        ((0, None, None), {"mean": 0.7}, "rule last", None),
        ((5, 0.8, 0.01), {}, "rule last", None),
        ((5, 0.8, 0.01), {"epochs": 20.0}, "", None),
    ],
)
def test_where_there_is_no_verdict_it_says_why(
    measured: tuple[Any, ...], published: dict[str, Any], why_not: str, said: str | None
) -> None:
    assert verdict(*measured, published, why_not) == (None, said)


def test_the_header_says_what_an_unknown_n_means() -> None:
    known, unknown = ({"mean": 0.5, "std": 0.1, "n": 3}, {"mean": 0.5, "std": 0.1})
    assert said_of([known]) == (
        "verdict: sigma is the standard error of the difference, sqrt(std²/n + published std²/n);"
        " consistent: within Welch's t interval at 95 %, each row on its own"
    )
    assert "(a published std without n as it is);" in said_of([known, unknown])


# ---------------------------------------------------------------------------------------------------------------------
# Protocols

SUITE = """
name: small
dataset: {name: digits, validation: {size: 100}}
compare: {model: [mlp, {wide}], augmentation: [none, aug1]}
search: {lr: [1e-3]}
repeat: {seed: 2}
train: {epochs: 10}
reference:
  - {model: mlp, augmentation: none, mean: 0.9}
  - {model: mlp, mean: 0.8}
""".replace("[mlp, {wide}]", "{mlp: mlp, wide: {name: mlp, hidden: [512]}}")

Changed = Callable[..., dict[str, str]]


@pytest.fixture
def changed(tmp_path: Path) -> Changed:
    """``changed("train.epochs=2")`` returns what it makes different, by the model of the cell; kept once as JSON."""

    def read(*sets: str, text: str = SUITE, smoke: bool = False, old: bool = False) -> dict[str, str]:
        (tmp_path / "s.yaml").write_text(text)
        kept = snapshot(plan.Choice(suites.load(tmp_path / "s.yaml", sets, smoke=smoke)))
        if old:
            del kept["written"]
        suite = restore(kept, "suite.json").suite
        protocol = Protocol(suite)
        return {str(trial.labels["model"]): protocol.changed(trial) for trial in plan.expand(suite)}

    return read


def test_the_first_row_whose_labels_a_cell_has(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SUITE)
    suite = suites.load(tmp_path / "s.yaml")
    assert published_row(suite, {"model": "mlp", "augmentation": "none", "lr": 0.001})["mean"] == 0.9
    assert published_row(suite, {"model": "mlp", "augmentation": "aug1", "lr": 0.001})["mean"] == 0.8
    assert published_row(suite, {"model": "wide", "augmentation": "none"}) == {}
    assert published_row(suite, {"augmentation": "none"}) == {}, "pooled over models"


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ((), ""),
        (("train.epochs=10",), ""),
        (("repeat.seed=9",), ""),
        (("train.test_every_epoch=true", "resources.cpus=4", "dataset.stream=true", "dataset.seed=7"), ""),
        (("train.epochs=2",), "train.epochs 2 instead of 10"),
        (
            ("dataset.train_size=50", "dataset.validation=test"),
            'dataset.validation test instead of {"size": 100, "fraction": null}, dataset.train_size 50 instead of null',
        ),
        (("dataset.name=mnist",), "dataset.name mnist instead of digits"),
        (("search.lr=[1e-2]",), "search.lr [0.01] instead of [0.001]"),
        (("search.lr=[1e-3, 1e-2]", "prune=asha"), "search.lr [0.001, 0.01] instead of [0.001], another prune"),
        (
            ("search.lr={range: [1e-4, 1e-2]}", "draw.points=3"),
            "search.lr 0.0001 to 0.01 instead of [0.001], another draw",
        ),
    ],
    ids=str,
)
def test_what_set_makes_of_a_protocol(sets: tuple[str, ...], said: str, changed: Changed) -> None:
    assert set(changed(*sets).values()) == {said}


def test_a_smoke_run_is_another_protocol(changed: Changed) -> None:
    assert set(changed(smoke=True).values()) == {"train.smoke true instead of false"}


def test_cells_differ_each_on_its_own(changed: Changed) -> None:
    wider = changed("compare.model={mlp: mlp, wide: {name: mlp, hidden: [1024]}, cnn: small_cnn}")
    assert wider == {
        "mlp": "",
        "wide": "model.hidden [1024] instead of [512]",
        "cnn": "the suite file has no such cell",
    }


def test_a_file_that_needs_set_to_be_a_suite(changed: Changed) -> None:
    text = SUITE.replace("{name: digits, validation: {size: 100}}", "{validation: {size: 100}}")
    assert set(changed("dataset.name=digits", "repeat.seed=1", text=text).values()) == {"--set dataset.name=digits"}


def test_results_of_before_the_suites_own_settings_were_kept(changed: Changed) -> None:
    assert set(changed("train.epochs=2", "repeat.seed=1", old=True).values()) == {"--set train.epochs=2"}
    assert set(changed(old=True).values()) == set(changed("repeat.seed=1", old=True).values()) == {""}


# ---------------------------------------------------------------------------------------------------------------------
# Every key has a side

PROTOCOL = {
    *("extends", "imports", "model", "augmentation", "compare", "search", "confirm", "zip", "include", "exclude"),
    *(f"dataset.{key}" for key in ("name", "folder", "image_size", "train_size", "test_size")),
    *("dataset.validation.size", "dataset.validation.fraction"),
    *("draw.points", "draw.at_once", "prune.name", "prune.first", "prune.factor"),
    *(f"train.{key}" for key in ("epochs", "batch_size", "lr", "loss", "label_smoothing", "l2", "phases")),
    *(f"train.{key}" for key in ("augmented_copies", "best", "precision", "cuda_graph", "smoke", "trainable.last")),
    *(f"train.optimizer.{key}" for key in ("name", "momentum", "nesterov", "weight_decay", "decay")),
    *(f"train.elastic_net.{key}" for key in ("lambda", "alpha", "layers")),
    *(f"train.schedule.{key}" for key in ("name", "factor", "every", "metric", "patience", "min_delta", "min_lr")),
    *(f"train.early_stopping.{key}" for key in ("metric", "patience", "min_delta")),
}
"""With another value of one of these, a trial is not compared with what was published."""
NOISE = {
    *("dataset.stream", "dataset.seed", "train.test_every_epoch", "repeat.seed"),
    *(f"resources.{key}" for key in ("cpus", "gpus", "workers", "custom", "labels")),
    *("name", "about", "trials", "reference", "keep_weights", "ood.dataset", "ood.layers", "track"),
}
"""With another value of one of these it is."""


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the keys of a suite that have none below them; a list, and what has options, is one."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        below = [] if key == "ood.dataset" else [*sections(field.annotation)]
        yield from [end for one in below for end in keys(one, f"{key}.")] if below else [key]


def sections(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel) and not issubclass(kind, Named):
        yield kind
    elif get_origin(kind) in (Union, UnionType, Annotated):
        for part in get_args(kind):
            yield from sections(part)


def test_a_new_key_must_be_put_on_one_side() -> None:
    """Else it would be part of the protocol, or not, without anybody having thought of it."""
    assert not PROTOCOL & NOISE
    assert {*keys(suites.SuiteFile)} == PROTOCOL | NOISE, "say above, and in NO_PROTOCOL, whether numbers depend on it"


@pytest.mark.parametrize("key", sorted(PROTOCOL | NOISE))
def test_what_set_says_of_each_key(key: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SUITE)
    suite = suites.load(tmp_path / "s.yaml")
    said = replace(suite, written=None, sets=(f"{key}=x",))  # as of results that do not have the file's own settings
    assert Protocol(said).changed(plan.expand(suite)[0]) == (f"--set {key}=x" if key in PROTOCOL else "")
