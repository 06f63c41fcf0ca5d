"""Networks made again from weights: what reaches them, what their layers say of images, and how layers are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raybench import augment, models, trained
from raybench.data import Source, trial_data
from raybench.errors import UserError, WeightsError
from raybench.grid import Trial
from raybench.trained import Trained, again, module_called
from raybench.weights import packed

MakeTrial = Callable[..., Trial]
Make = Callable[..., Trained]


@pytest.fixture
def make(make_trial: MakeTrial, source: Source) -> Make:
    """``make(network, **trial)`` returns a network as if it were trained, on the made-up images."""

    def make(network: nn.Module, **trial: Any) -> Trained:
        settings = make_trial(**trial).typed()
        augmentation = augment.build(settings.augmentation)
        return Trained(
            settings, network.eval(), augmentation, trial_data(source, settings.dataset), torch.device("cpu")
        )

    return make


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


class Odd(nn.Module):
    """A layer that runs twice, one whose output is a number for the whole batch, and one that gives a pair."""

    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean()

    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.mean, self.pair, self.unused = nn.ReLU(), self.Mean(), self.Pair(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.twice(x.flatten(1) - 0.5)
        self.mean(flat)
        first, _ = self.pair(self.twice(flat - 0.25))
        return first[:, :3]


# ---------------------------------------------------------------------------------------------------------------------
# What reaches the network, and what it says


def test_images_reach_the_network_as_test_images_do(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 0 to 1, never augmented, in order, and as many at a time as in an evaluation."""
    monkeypatch.setattr(trained, "EVALUATION_BATCH", 16)
    network = make(small(), augmentation=[{"noise": 0.5}, "flip"])
    batches = list(network.inputs(network.data.test()))
    assert [len(batch) for batch in batches] == [16, 16, 8]
    pixels = network.data.test()[:].transpose(0, 3, 1, 2).astype(np.float32)
    np.testing.assert_allclose(torch.cat(batches).numpy(), pixels / 255, rtol=1e-6)


def test_logits_are_those_of_the_network_a_batch_at_a_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    network = make(small())
    whole = network.logits(network.data.test())
    assert whole.shape == (40, 3) and not whole.requires_grad
    with torch.inference_mode():
        expected = network.network(torch.cat([*network.inputs(network.data.test())]))
    assert torch.equal(whole, expected)
    monkeypatch.setattr(trained, "EVALUATION_BATCH", 7)
    torch.testing.assert_close(network.logits(network.data.test()), whole)


def test_a_trial_in_bf16_is_asked_in_bf16_and_answers_in_float32(make: Make) -> None:
    plain, half = make(small()), make(small(), precision="bf16")
    logits = half.logits(half.data.test())
    assert logits.dtype == torch.float32 and torch.equal(logits, logits.bfloat16().float())
    assert not torch.equal(logits, plain.logits(plain.data.test()))


def test_scores_are_means_of_layers_and_two_of_the_logits(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "EVALUATION_BATCH", 16)
    network = make(small())
    part = network.data.test()
    scores = network.scores(part, network.layers("activations"))
    assert [*scores] == [("mean_activation", "1"), ("max_softmax", None), ("energy", None)]
    with torch.inference_mode():
        images = torch.cat([*network.inputs(part)])
        maps, logits = network.network[:2](images), network.network(images)  # type: ignore[index]
    for key, expected in {
        ("mean_activation", "1"): maps.mean((1, 2, 3)),
        ("max_softmax", None): logits.softmax(1).max(1).values,
        ("energy", None): logits.exp().sum(1).log(),
    }.items():
        assert scores[key].dtype == np.float32 and scores[key].shape == (40,)  # type: ignore[index]
        np.testing.assert_allclose(scores[key], expected.numpy(), rtol=1e-5)  # type: ignore[index]


def test_layers_that_run_twice_or_give_no_number_for_each_image(make: Make) -> None:
    network = make(Odd())
    scores = network.scores(network.data.test(), network.layers("all"))
    assert [layer for score, layer in scores if score == "mean_activation"] == ["twice"]
    flat = torch.cat([*network.inputs(network.data.test())]).flatten(1)
    second = ((flat - 0.5).relu() - 0.25).relu()
    np.testing.assert_allclose(scores["mean_activation", "twice"], second.mean(1).numpy(), rtol=1e-5)


def test_nothing_watches_a_network_that_was_asked(make: Make) -> None:
    network = make(small())
    network.scores(network.data.test(), network.layers("all"))
    assert not any(module._forward_hooks for module in network.network.modules())
    with pytest.raises(RuntimeError):
        make(nn.Sequential(nn.ReLU(), nn.Linear(5, 3))).scores(network.data.test(), network.layers("all"))
    assert not any(module._forward_hooks for module in network.network.modules())


# ---------------------------------------------------------------------------------------------------------------------
# Names of layers


def test_layers_by_kind_and_by_name(make: Make) -> None:
    block = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU())
    network = make(nn.Sequential(block, nn.Flatten(), nn.Linear(72, 3), nn.Softmax(1)))
    assert [*network.layers("activations")] == ["0.1", "3"]
    assert [*network.layers("all")] == ["0.0", "0.1", "1", "2", "3"], "those that contain no other"
    assert network.layers(["0", "2"]) == {"0": block, "2": network.network[2]}  # type: ignore[index]


def test_a_network_without_activation_functions(make: Make) -> None:
    with pytest.raises(UserError) as failed:
        make(nn.Sequential(nn.Flatten(), nn.Linear(64, 3))).layers("activations")
    assert str(failed.value) == "model 'mlp' has no module that is an activation function: name other layers"


def test_a_name_that_is_not_there_is_answered_with_those_that_are(make: Make) -> None:
    with pytest.raises(UserError) as failed:
        make(small()).layers(["1", "relu"])
    assert str(failed.value) == ("no layer 'relu' in the network; known: 0 (Conv2d), 1 (ReLU), 2 (Flatten), 3 (Linear)")
    many = nn.Sequential(*(nn.ReLU() for _ in range(trained.LISTED)), nn.ModuleDict({"last": nn.ReLU()}))
    with pytest.raises(UserError) as failed:
        module_called(many, "40.lost")
    assert str(failed.value) == "no layer '40.lost' in the network; did you mean '40.last'?", "of so many the nearest"
    assert isinstance(module_called(many, "40.last"), nn.ReLU)


# ---------------------------------------------------------------------------------------------------------------------
# Made again


def test_a_network_comes_back_with_what_was_fitted_for_it(make_trial: MakeTrial, source: Source) -> None:
    trial = make_trial(3, model="small_cnn", augmentation="standardize")
    settings, data = trial.typed(), trial_data(source, trial.typed().dataset)
    first = models.build(settings.model, data.shape, len(data.classes))
    with again(settings, trial.seed, packed(trial.id, first.state_dict()), data, "cpu") as network:
        assert not network.network.training
        state = network.network.state_dict()
        assert all(torch.equal(state[name], value) for name, value in first.state_dict().items())
        train = torch.cat([*network.inputs(data.train())])
        assert train.mean() == pytest.approx(0, abs=1e-5) and train.std() == pytest.approx(1, abs=1e-3)
        drawn = torch.rand(3)
    with again(settings, trial.seed, packed(trial.id, first.state_dict()), data, "cpu"):
        pass
    with again(settings, trial.seed, packed(trial.id, first.state_dict()), data, "cpu"):
        assert torch.get_num_threads() == settings.resources.cpus
        assert torch.equal(torch.rand(3), drawn), "the process is as new each time"


def test_weights_of_another_network_make_none(make_trial: MakeTrial, source: Source) -> None:
    settings = make_trial(model="small_cnn").typed()
    data = trial_data(source, settings.dataset)
    with (
        pytest.raises(WeightsError, match=r"^the stored weights do not fit model 'small_cnn' as it is built today: "),
        again(settings, 0, packed("t0", small().state_dict()), data, "cpu"),
    ):
        pass
