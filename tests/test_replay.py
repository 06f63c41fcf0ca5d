"""Steps that a GPU is not made to wait for: nothing in an epoch asks for a value, and whole steps are replayed.

What CUDA itself does is not run here; test_gpu.py is for that.
"""

from __future__ import annotations

import contextlib
import gc
import re
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from raybench import feed as feeds
from raybench import models, replay
from raybench import train as train_module
from raybench import trial as trial_module
from raybench.checkpoint import Checkpoints
from raybench.data import Source, trial_data
from raybench.grid import Trial
from raybench.records import EpochRow, Outcome
from raybench.replay import WARM_UP, Replayed
from raybench.settings import Resources
from raybench.train import Training, World, as_made
from raybench.trial import fit_augmentation, fresh_process, run_trial

MakeTrial = Callable[..., Trial]


def finished(trial: Trial, source: Source) -> Outcome:
    outcome = run_trial(trial, trial_data(source, trial.typed().dataset))
    assert outcome.row.error is None
    return outcome


class Waiting(TorchDispatchMode):
    """Counts what makes a GPU's host wait: numbers that Python asks for, tensors whose size depends on values, and what
    is taken there from the host before it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"):
            self.names.append(func._schema.name)
        if func._schema.name == "aten::index" and any(i is not None and i.dtype is torch.bool for i in args[1]):
            self.names.append("aten::index by a mask")
        result = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::_to_copy", "aten::copy_"):
            there, here = result.device, (args[1] if func._schema.name == "aten::copy_" else args[0]).device
            if there != here and not (kwargs or {}).get("non_blocking"):
                self.names.append(f"{func._schema.name} from {here}")
        if func._schema.name in ("aten::index", "aten::index_put_"):
            places = {i.device for i in args[1] if i is not None} - {args[0].device}
            self.names.extend(f"{func._schema.name} by what lies on {place}" for place in places)
        return result


@pytest.mark.parametrize(
    "train",
    [
        {},
        {"loss": "bce", "label_smoothing": 0.1, "optimizer": {"name": "sgd", "momentum": 0.9, "decay": 1e-3}},
        {"l2": 1e-3, "elastic_net": {}, "precision": "bf16"},
        {"optimizer": "rmsprop"},
    ],
)
def test_an_epoch_waits_for_the_device_at_its_end_alone(
    make_trial: MakeTrial, source: Source, train: dict[str, Any]
) -> None:
    parts = [*("rotation", "shift", "zoom", "zoom_in", "flip", "crop", "cutout", "brightness", "noise"), "zca"]
    names = {}
    for size in (16, 60):
        settings = make_trial(model="small_cnn", augmentation=parts, dataset={"train_size": size}, **train).typed()
        data = trial_data(source, settings.dataset)
        with fresh_process(0, 1):
            statistics = fit_augmentation(settings, data)
            training = Training("waits", 0, settings, data, torch.device("cpu"), World(), statistics)
            training._begin(settings.train)
            training._train_epoch(1)
            with Waiting() as waiting:
                training._train_epoch(2)
        names[size] = waiting.names
    assert names[60] == names[16]  # four steps wait as often as one: for the epoch's loss and accuracy
    assert names[16] == ["aten::_local_scalar_dense"] * len(names[16]) and len(names[16]) <= 2


def test_a_mask_or_an_item_in_a_step_would_be_seen() -> None:
    values, there, at = torch.rand(4), torch.rand(4, device="meta"), torch.arange(2)
    with Waiting() as waiting:
        float(values[0])
        values[values > 0.5]
        values.nonzero()
    assert waiting.names == ["aten::_local_scalar_dense", "aten::index by a mask", "aten::nonzero"]
    with Waiting() as waiting:
        values.to("meta")
        values.to("meta", non_blocking=True)
        there.copy_(values)
        there[at]
        there[at] = 1.0
    assert waiting.names == [
        "aten::_to_copy from cpu",
        "aten::copy_ from cpu",
        "aten::index by what lies on cpu",
        "aten::index_put_ by what lies on cpu",
    ]


@pytest.mark.parametrize("free", [0, 10**9])
def test_batches_go_to_a_gpu_without_being_waited_for(
    make_trial: MakeTrial, source: Source, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    """Also where images do not fit on it. On a device that knows shapes and has no values, in the place of a GPU."""
    monkeypatch.setattr(feeds, "_on_device", {})
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch, "autocast", lambda *options, **more: contextlib.nullcontext())  # it knows no such device
    monkeypatch.setattr(train_module, "EVALUATION_BATCH", 8)
    settings = make_trial(model="small_cnn").typed()
    training = Training("there", 0, settings, trial_data(source, settings.dataset), torch.device("meta"), World(), {})
    feed = training.feeds["val"]
    assert len(feed) > 16 and (feed.pixels is None) == (free == 0)
    with Waiting() as waiting:
        logits = training._logits("val")
        for images, labels in feed.batches(torch.split(torch.arange(len(feed), device=feed.at), 8)):
            assert (images.device.type, labels.device.type, len(images)) == ("meta", "meta", len(labels))
    assert waiting.names == [] and logits.shape == (len(feed), 3)


@pytest.mark.parametrize("train", [{}, {"loss": "bce", "label_smoothing": 0.1}, {"l2": 1e-3, "elastic_net": {}}])
@pytest.mark.parametrize("prepared", ["zca", "standardize"])
def test_a_step_that_is_recorded_takes_nothing_from_the_host(
    make_trial: MakeTrial,
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
    train: dict[str, Any],
    prepared: str,
) -> None:
    """A graph would read again, in every launch, what was there at the recording."""
    parts = [*("rotation", "shift", "zoom", "zoom_in", "flip", "crop", "cutout", "brightness", "noise"), prepared]
    settings = make_trial(model="small_cnn", augmentation=parts, **train).typed()
    data = trial_data(source, settings.dataset)
    monkeypatch.setattr(feeds, "_on_device", {})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**9, 10**9))
    monkeypatch.setattr(torch, "autocast", lambda *options, **more: contextlib.nullcontext())  # it knows no such device
    made = lambda phase, network, replayed: torch.optim.SGD(network.parameters(), lr=0.1)  # noqa: E731
    monkeypatch.setattr(train_module, "make_optimizer", made)  # no optimizer of torch is fused there
    training = Training("there", 0, settings, data, torch.device("meta"), World(), fit_augmentation(settings, data))
    training._begin(settings.train)
    places = torch.arange(16, device="meta")
    with Waiting() as waiting:
        training._whole_step(places, torch.rand(16, training.augmentation.draws, device="meta"))
    assert waiting.names == []
    assert all(weights.grad is not None for weights in training.model.parameters())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", {"name": "sgd", "momentum": 0.9}, "rmsprop"])
def test_steps_that_are_replayed_train_as_others_do(
    make_trial: MakeTrial, source: Source, monkeypatch: pytest.MonkeyPatch, optimizer: Any
) -> None:
    """With a recorder in place of CUDA's: it runs the step on the tensors that it was given at the recording."""
    recorded: list[Sequence[Tensor]] = []

    def record(step: Callable[..., None], inputs: Sequence[Tensor]) -> Callable[[], None]:
        recorded.append(inputs)
        return lambda: step(*inputs)

    train = {"optimizer": optimizer, "lr": 0.01, "schedule": {"name": "step", "every": 1, "factor": 0.5}}
    trial = make_trial(model="small_cnn", augmentation=["shift", "flip"], cuda_graph=True, epochs=3, **train)
    eager = finished(trial, source)  # on the CPU there is nothing to be recorded
    assert not recorded
    monkeypatch.setattr(replay, "record", record)
    monkeypatch.setattr(replay, "on_a_side_stream", lambda work: work())
    monkeypatch.setattr(Training, "_replays", True)
    replayed = finished(trial, source)
    ((at, uniform),) = recorded  # once for three epochs of three whole batches and a remainder of twelve
    assert at.shape == (16,) and uniform.shape == (16, 4)
    # The learning rate is a tensor of float32 here, and a number of Python's there.
    for one, other in zip(replayed.epochs, eager.epochs, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.lr == other.lr, "the rate as it was meant, and not the tensor's"
    assert replayed.epochs[2].train_loss < replayed.epochs[0].train_loss


@pytest.mark.parametrize("fails", [False, True])
def test_a_network_goes_with_its_trial(
    make_trial: MakeTrial,
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
    add_model: Callable[[str, Any], None],
    fails: bool,
) -> None:
    """Before memory is given back, and though nobody looks for cycles; `gc.freeze` would keep the first for ever."""
    made: list[weakref.ref[nn.Module]] = []
    alive: list[bool] = []

    class Kept(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.steps = inner, 0
            made.append(weakref.ref(self))

        def forward(self, images: Tensor) -> Tensor:
            self.steps += self.training
            if fails and self.steps == 10:
                raise ValueError("its own")
            return self.inner(images)

    add_model("kept", lambda shape, classes: Kept(models.mlp(shape, classes)))
    monkeypatch.setattr(replay, "record", lambda step, inputs: lambda: step(*inputs))
    monkeypatch.setattr(replay, "on_a_side_stream", lambda work: work())
    monkeypatch.setattr(Training, "_replays", True)
    monkeypatch.setattr(trial_module, "_keep_what_is_there", lambda: alive.append(made[0]() is not None))
    monkeypatch.setattr(gc, "collect", lambda: 0)
    trial = make_trial(model="kept", cuda_graph=True)
    gc.disable()
    try:
        outcome = run_trial(trial, trial_data(source, trial.typed().dataset))
    finally:
        gc.enable()
    assert outcome.row.error == ("ValueError: its own" if fails else None)
    assert len(made) == 1 and alive == [False]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", {"name": "sgd", "momentum": 0.9}, "rmsprop"])
@pytest.mark.parametrize("replayed_first", [False, True])
def test_a_trial_goes_on_where_steps_are_replayed_and_were_not(
    make_trial: MakeTrial,
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    optimizer: Any,
    replayed_first: bool,
) -> None:
    """And the other way round: on a GPU that has less room, or on a CPU."""
    monkeypatch.setattr(replay, "record", lambda step, inputs: lambda: step(*inputs))
    monkeypatch.setattr(replay, "on_a_side_stream", lambda work: work())
    trial = make_trial(optimizer=optimizer, cuda_graph=True, epochs=3)
    data, checkpoints = trial_data(source, trial.typed().dataset), Checkpoints(str(tmp_path), seconds=0)
    whole = finished(trial, source)

    def stop(row: EpochRow) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Training, "_replays", replayed_first)
        run_trial(trial, data, report=stop, checkpoints=checkpoints)
    (file,) = tmp_path.iterdir()
    state = torch.load(file)
    for group in state["optimizer"]["param_groups"]:
        group.update({"capturable": replayed_first} if "capturable" in group else {})  # as on a GPU
    torch.save(state, file)
    monkeypatch.setattr(Training, "_replays", not replayed_first)
    rest = run_trial(trial, data, checkpoints=checkpoints)
    assert rest.row.error is None
    losses = [[epoch.train_loss for epoch in outcome.epochs] for outcome in (rest, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(("capturable", "kept"), [(True, False), (False, True)])
def test_an_optimizer_stays_as_it_was_made(capturable: bool, kept: bool) -> None:
    made = torch.optim.RMSprop([nn.Parameter(torch.ones(2))], lr=0.25, capturable=capturable)
    state = torch.optim.RMSprop([nn.Parameter(torch.ones(2))], lr=torch.tensor(0.5), capturable=kept).state_dict()
    (group,) = as_made(made, state)["param_groups"]
    assert (group["lr"], group["capturable"], group["alpha"], group["params"]) == (0.25, capturable, 0.99, [0])
    assert state["param_groups"][0]["capturable"] == kept, "what was kept stays as it is"


def test_the_calls_before_a_recording_share_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    used: list[Any] = []

    class Stream:
        def __init__(self, device: int) -> None:
            made.append(device)

        def wait_stream(self, other: Stream) -> None:
            pass

    def using(stream: Stream) -> contextlib.nullcontext[None]:
        used.append(stream)
        return contextlib.nullcontext()

    current = Stream(-1)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", using)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(replay, "record", lambda step, inputs: lambda: step(*inputs))
    replay._side_stream.cache_clear()
    try:
        replayed = Replayed(lambda values: None)
        for _ in range(WARM_UP + 1):
            replayed(torch.ones(1))
    finally:
        replay._side_stream.cache_clear()
    assert made == [-1, 3] and used == [used[0]] * WARM_UP


def test_every_call_does_the_step_once_on_its_own_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = 0

    def record(step: Callable[..., None], inputs: Sequence[Tensor]) -> Callable[[], None]:
        nonlocal recordings
        recordings += 1
        return lambda: step(*inputs)

    aside: list[int] = []
    monkeypatch.setattr(replay, "record", record)
    monkeypatch.setattr(replay, "on_a_side_stream", lambda work: (aside.append(1), work()))
    total, sizes = torch.zeros(1), []

    def step(values: Tensor) -> None:
        total.add_(values.sum())
        sizes.append(len(values))

    replayed = Replayed(step)
    given = [torch.full((4 if number % 5 else 2,), float(number)) for number in range(1, 21)]
    for values in given:
        before = values.clone()
        replayed(values)
        assert torch.equal(values, before)
    assert total.item() == sum(values.sum().item() for values in given)
    assert sizes == [len(values) for values in given]
    assert (recordings, len(aside)) == (1, WARM_UP)


@pytest.mark.parametrize("refuses", [False, True])
def test_what_a_step_raises_while_it_is_recorded_is_not_hidden(monkeypatch: pytest.MonkeyPatch, refuses: bool) -> None:
    """CUDA refuses the end of a recording in which something was not permitted, and says less than the step."""

    class Graph:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *error: object) -> None:
            if refuses:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def step(values: Tensor) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(replay, "spoilt", [])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: Graph())
    with pytest.raises(RuntimeError, match=r"^CUDA error: operation not permitted when stream is capturing$"):
        replay.record(step, [torch.ones(1)])
    previous = ["CUDA error: operation failed due to a previous error during capture"]
    assert replay.spoilt == (previous if refuses else [])
    if refuses:  # another thread's call may have been what was not permitted
        with pytest.raises(RuntimeError, match=f"^{previous[0]}$"):
            replay.record(lambda values: None, [torch.ones(1)])
        assert replay.spoilt == 2 * previous


def test_steps_are_replayed_on_a_gpu_alone_and_without_copies(make_trial: MakeTrial, source: Source) -> None:
    def replays(pixels: Tensor | None, **choices: Any) -> bool:
        settings = make_trial(**choices).typed()
        data = trial_data(source, settings.dataset)
        training = Training("x", 0, settings, data, torch.device("cpu"), World(), {})
        training.feeds["train"].pixels = pixels
        return training._replays

    there = torch.zeros(1)
    assert replays(there, cuda_graph=True)
    assert not replays(None, cuda_graph=True)
    assert not replays(there)
    assert not replays(there, cuda_graph=True, augmented_copies=1)
    assert replays(there, cuda_graph=True, augmentation=["shift", "flip"])
    for policy in ("torchvision:TrivialAugmentWide", "timm:rand-m9"):  # they take images to the CPU
        assert not replays(there, cuda_graph=True, augmentation=["shift", policy])


def test_a_group_of_processes_shares_no_gpu(make_trial: MakeTrial) -> None:
    words = "resources.gpus 0.5 is not right with 2 workers: each needs a GPU of its own, so 1, or 0 to train on CPUs"
    with pytest.raises(ValueError, match=re.escape(words)):
        make_trial(resources={"workers": 2, "gpus": 0.5})
    for resources in ({"workers": 2}, {"workers": 2, "gpus": 1}, {"gpus": 0.5}):
        make_trial(resources=resources)


def test_a_group_of_processes_records_nothing(make_trial: MakeTrial) -> None:
    with pytest.raises(ValueError, match=r"train\.cuda_graph is for one process, not for 2 workers"):
        make_trial(cuda_graph=True, resources=Resources(workers=2).model_dump())
