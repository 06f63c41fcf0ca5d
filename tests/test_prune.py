"""Which trials of a search are stopped: against Ray's own rules, and the same in any order of events."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raybench.dotted import first_complaint
from raybench.prune import WORST, Bracket, Decision, Prune, Pruner

ASHA = Prune(name="asha")
MEDIAN = Prune(name="median")


def test_rungs() -> None:
    assert ASHA.rungs(27) == [1, 3, 9] and ASHA.rungs(28) == [1, 3, 9, 27]
    assert Prune(name="asha", first=4, factor=2).rungs(20) == [4, 8, 16]
    assert MEDIAN.rungs(4) == [1, 2, 3] and Prune(name="median", first=3).rungs(5) == [3, 4]
    assert ASHA.rungs(1) == MEDIAN.rungs(1) == [], "never after the last epoch"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("hyperband", "'hyperband' is not right: must be 'asha' or 'median'"),
        ({"name": "asha", "factor": 1}, "1 is not right: must be greater than or equal to 2"),
        ({"name": "asha", "first": 0}, "0 is not right: must be greater than or equal to 1"),
        ({"name": "median", "factor": 4}, "median has no factor: it belongs to asha"),
        ({"name": "asha", "grace": 3}, "unknown key; known: name, first, factor"),
        (["asha"], "['asha'] is not right: must be a name or a mapping"),
    ],
)
def test_a_rule_that_is_none(given: Any, complaint: str) -> None:
    with pytest.raises(ValidationError) as failed:
        Prune.model_validate(given)
    assert first_complaint(failed.value, Prune)[1] == complaint


def one_after_another(
    rule: Prune, curves: Sequence[Sequence[float]], maximise: bool = True
) -> tuple[list[Decision], list[int]]:
    """Run the trials in their order, each until it ends or is stopped; return all decisions and the epochs trained."""
    ids = [str(i) for i in range(len(curves))]
    bracket = Bracket(rule, [(i, len(curve)) for i, curve in zip(ids, curves, strict=True)], maximise=maximise)
    made, trained = [], []
    for i, curve in zip(ids, curves, strict=True):
        epoch = 0
        for epoch, value in enumerate(curve, 1):
            bracket.report(i, epoch, value)
            made += bracket.decide()
            if i in bracket.stopped:
                break
        bracket.ended.add(i)
        made += bracket.decide()
        trained.append(epoch)
    return made, trained


def test_asha_by_hand() -> None:
    curves = [[0.5, 0.6, 0.7, 0.8], [0.4] * 4, [0.7, 0.7, 0.6, 0.6], [0.65, 0.7, 0.9, 0.9]]
    made, trained = one_after_another(ASHA, curves)
    assert made == [
        Decision("0", 1, 0.5, None, 0, False),
        Decision("0", 3, 0.7, None, 0, False),
        Decision("1", 1, 0.4, 0.5, 1, True),
        Decision("2", 1, 0.7, pytest.approx(0.4 + 0.1 * 2 / 3), 2, False),
        Decision("2", 3, 0.6, 0.7, 1, True),
        Decision("3", 1, 0.65, pytest.approx(0.5 + 0.2 / 3), 3, False),
        Decision("3", 3, 0.9, pytest.approx(0.6 + 0.1 * 2 / 3), 2, False),
    ]
    assert trained == [4, 1, 3, 4]


def test_median_by_hand() -> None:
    """The best value so far against the median of the running means of those before."""
    curves = [[0.4, 0.6, 0.8], [0.5, 0.1, 0.1], [0.3, 0.9, 0.9]]
    made, trained = one_after_another(MEDIAN, curves)
    assert made == [
        Decision("0", 1, 0.4, None, 0, False),
        Decision("0", 2, 0.6, None, 0, False),
        Decision("1", 1, 0.5, 0.4, 1, False),
        Decision("1", 2, 0.5, 0.5, 1, False),
        Decision("2", 1, 0.3, pytest.approx(0.45), 2, True),
    ]
    assert trained == [3, 3, 1]


def test_less_of_a_loss_is_better_and_is_shown_as_it_is() -> None:
    made, trained = one_after_another(ASHA, [[1.0, 0.5], [2.0, 0.1], [0.5, 0.5]], maximise=False)
    assert trained == [2, 1, 2]
    assert made[1] == Decision("1", 1, 2.0, 1.0, 1, True)


@pytest.mark.parametrize("maximise", [True, False])
@pytest.mark.parametrize("rule", [ASHA, MEDIAN])
def test_what_is_not_finite_is_the_worst_and_spoils_nothing(rule: Prune, maximise: bool) -> None:
    """At the second epoch the median is compared with means of two values."""
    good, bad = (0.9, 0.8) if maximise else (0.5, 0.6)
    curves = [[math.inf, math.inf, good], [good] * 3, [math.nan] * 3, [bad] * 3, [-math.inf] * 3, [good] * 3]
    made, trained = one_after_another(rule, curves, maximise)
    assert trained[:2] == [3, 3] and trained[2] == trained[4] == 1 and trained[5] == 3
    assert all(math.isfinite(number) for one in made for number in (one.value, one.cutoff or 0.0))
    worst = WORST if maximise else -WORST
    assert made[0] == Decision("0", 1, worst, None, 0, False)
    assert next(one for one in made if one.trial_id == "2").value == worst


def random_curves(draw: random.Random, trials: int, epochs: int) -> list[list[float]]:
    return [[draw.random() for _ in range(epochs)] for _ in range(trials)]


@pytest.mark.ray
@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("maximise", [True, False])
def test_asha_decides_as_rays_does_on_trials_one_after_another(factor: int, maximise: bool) -> None:
    from ray.tune.experiment import Trial
    from ray.tune.schedulers import AsyncHyperBandScheduler

    rule, epochs = Prune(name="asha", factor=factor, first=2), 17
    for seed in range(20):
        curves = random_curves(random.Random(seed), 12, epochs)
        _, trained = one_after_another(rule, curves, maximise)
        scheduler = AsyncHyperBandScheduler(
            time_attr="t", max_t=10**9, grace_period=2, reduction_factor=factor, stop_last_trials=False
        )
        scheduler.set_search_properties("v", "max" if maximise else "min")
        theirs = []
        for i, curve in enumerate(curves):
            trial: Any = Trial("x", trial_id=str(i), stub=True)
            scheduler.on_trial_add(None, trial)
            for epoch, value in enumerate(curve, 1):
                if scheduler.on_trial_result(None, trial, {"t": epoch, "v": value}) == "STOP" and epoch < epochs:
                    break
            theirs.append(epoch)
        assert trained == theirs


def shuffled_events(draw: random.Random, curves: Sequence[Sequence[float]], slots: int) -> Iterator[tuple[int, int]]:
    """Yield (trial, epoch) as ``slots`` workers of changing speed would bring them, trials started in any order."""
    waiting = list(range(len(curves)))
    draw.shuffle(waiting)
    running: dict[int, int] = {}
    while waiting or running:
        while waiting and len(running) < slots:
            running[waiting.pop()] = 0
        trial = draw.choice(list(running))
        running[trial] += 1
        yield trial, running[trial]
        if running[trial] == len(curves[trial]):
            del running[trial]


@pytest.mark.parametrize("rule", [ASHA, MEDIAN, Prune(name="asha", factor=2, first=2)], ids=str)
@given(seed=st.integers(0, 10**6), slots=st.integers(1, 6))
def test_the_same_trials_are_stopped_in_any_order(rule: Prune, seed: int, slots: int) -> None:
    draw = random.Random(seed)
    curves = random_curves(draw, 8, 10)
    expected, _ = one_after_another(rule, curves)
    bracket = Bracket(rule, [(str(i), len(curve)) for i, curve in enumerate(curves)], maximise=True)
    made: list[Decision] = []
    for trial, epoch in shuffled_events(draw, curves, slots):
        if str(trial) in bracket.stopped or str(trial) in bracket.ended:
            bracket.ended.add(str(trial))
        else:
            bracket.report(str(trial), epoch, curves[trial][epoch - 1])
            if epoch == len(curves[trial]):
                bracket.ended.add(str(trial))
        made += bracket.decide()
    assert not any(bracket.pending(str(i)) for i in range(len(curves)))

    def order(decision: Decision) -> tuple[str, int]:
        return decision.trial_id, decision.epoch

    assert sorted(made, key=order) == sorted(expected, key=order)
    assert "0" not in bracket.stopped, "the first of a bracket always ends"


def test_a_trial_that_has_finished_waits_for_those_before_it() -> None:
    bracket = Bracket(ASHA, [("a", 4), ("b", 4)], maximise=True)
    for epoch in range(1, 5):
        bracket.report("b", epoch, 0.1)
    bracket.ended.add("b")
    assert bracket.decide() == [] and bracket.pending("b") and not bracket.pending("a")
    bracket.report("a", 1, 0.5)
    assert [(d.trial_id, d.epoch, d.stop) for d in bracket.decide()] == [("a", 1, False), ("b", 1, True)]
    assert not bracket.pending("b")


def test_a_failed_trial_keeps_nobody_waiting() -> None:
    bracket = Bracket(ASHA, [("a", 4), ("b", 4)], maximise=True)
    bracket.report("b", 1, 0.1)
    assert bracket.decide() == []
    bracket.ended.add("a")
    assert bracket.decide() == [Decision("b", 1, 0.1, None, 0, False)]


def test_a_trial_that_starts_again_tells_its_epochs_again() -> None:
    bracket = Bracket(ASHA, [("a", 9)], maximise=True)
    for epoch in (1, 2, 1, 2, 3):
        bracket.report("a", epoch, epoch / 10)
    assert bracket.curves["a"] == [0.1, 0.2, 0.3]


def test_trials_of_different_lengths_have_rungs_of_their_own() -> None:
    bracket = Bracket(ASHA, [("a", 9), ("b", 3)], maximise=True)
    for epoch in range(1, 10):
        bracket.report("a", epoch, 0.9)
    for epoch in range(1, 4):
        bracket.report("b", epoch, 0.9)
    assert [(d.trial_id, d.epoch) for d in bracket.decide()] == [("a", 1), ("b", 1), ("a", 3)]
    assert not bracket.pending("b"), "epoch 3 is its last"


def test_a_pruner_knows_the_bracket_of_each_trial() -> None:
    pruner = Pruner([Bracket(ASHA, [(f"{name}{i}", 4) for i in range(2)], maximise=True) for name in "ab"])
    for trial_id, value in (("a0", 0.5), ("a1", 0.1), ("b0", 0.01), ("c", 0.0)):
        pruner.report(trial_id, 1, value)
    lost = pruner.stopped("a1")
    assert lost == Decision("a1", 1, 0.1, 0.5, 1, True)
    assert [pruner.stopped(trial_id) for trial_id in ("a0", "b0", "b1", "c")] == [None] * 4
    assert [decision.trial_id for decision in pruner.decisions] == ["a0", "a1", "b0"]
    pruner.end("c")
    assert not pruner.pending("c")


def test_cutoffs_are_numpys_quantiles() -> None:
    values = sorted(np.random.default_rng(0).random(7).tolist())
    bracket = Bracket(Prune(name="asha", factor=4), [(str(i), 2) for i in range(8)], maximise=True)
    for i, value in enumerate([*values, 1.0]):
        bracket.report(str(i), 1, value)
    assert bracket.decide()[-1].cutoff == pytest.approx(np.quantile(values, 0.75))
