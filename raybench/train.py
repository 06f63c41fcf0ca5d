"""Training and testing one network: the loop, and nothing of where it runs.

    history = Training(settings, seed, data, ...).finish()

No Ray here: the same code runs in a debugger, in a Tune actor, and in each process of a worker group.
"""

from __future__ import annotations

import dataclasses
import math
import random
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from raybench import augment, backbones, models
from raybench.checkpoint import Keeper, State
from raybench.data import TrialData
from raybench.feed import Feed
from raybench.grid import stream
from raybench.losses import Penalty, loss_sum
from raybench.rates import Patience, Rate, is_better
from raybench.records import EpochRow
from raybench.replay import Replayed
from raybench.settings import LastLayers, TrainSettings, TrialSettings

EVALUATION_BATCH = 500
Report = Callable[[EpochRow], None]
Statistics = Mapping[str, np.ndarray]


class Diverged(Exception):
    """The training loss is no longer a finite number."""


@dataclass(frozen=True, slots=True)
class World:
    """The processes that train one trial together; each takes every ``size``-th image of a batch, from ``rank`` on."""

    rank: int = 0
    size: int = 1

    @property
    def mine(self) -> slice:
        return slice(self.rank, None, self.size)


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """What training left behind."""

    epochs: tuple[EpochRow, ...]
    best: EpochRow
    """The epoch whose weights were tested."""
    stopped_early: bool
    logits: Tensor
    """[test images, classes], of the best epoch's weights."""
    labels: Tensor
    """[test images]"""
    train_seconds: float
    images_per_second: float
    weights: dict[str, Tensor]
    """The network's state at the best epoch; empty where nobody needed it again."""


class Training:
    """One network on its way from first weights to a tested epoch."""

    def __init__(
        self,
        trial_id: str,
        seed: int,
        settings: TrialSettings,
        data: TrialData,
        device: torch.device,
        world: World,
        statistics: Statistics,
        keep_weights: bool = False,
    ) -> None:
        """
        Args:
            statistics: what the augmentation fitted on the training images, empty if it fits nothing.
            keep_weights: whether the best epoch's weights are wanted once it has been tested.
        """
        self.trial_id, self.seed, self.train = trial_id, seed, settings.train
        self.device, self.world, self.keep_weights = device, world, keep_weights
        limit = 2 * self.train.batch_size if self.train.smoke else None
        parts = {"train": data.train(), "val": data.validation(), "test": data.test()}
        self.feeds = {name: Feed(part, device, limit) for name, part in parts.items()}
        self.validates_on_test = settings.dataset.validation == "test"
        self.classes = len(data.classes)
        self.augmentation = augment.build(settings.augmentation)
        self.augmentation.load(statistics, device)
        set_precision(self.train, device)

        torch.manual_seed(stream(seed, "weights"))
        # A smoke run's numbers mean nothing: it needs no download.
        chosen = backbones.without_pretrained(settings.model) if self.train.smoke else settings.model
        model = models.build(chosen, data.shape, self.classes)
        self.weights_fingerprint = models.weights_fingerprint(chosen, model)
        self.model = model.to(device).to(memory_format=torch.channels_last)
        # Dropout draws from torch's own stream; every process of a group needs another one.
        torch.manual_seed(stream(seed, f"dropout/{world.rank}"))

    def finish(self, report: Report, keeper: Keeper | None = None) -> History:
        """Train to the end, telling ``report`` of each epoch, and test the weights of the best one.

        With ``keeper``, training goes on from the state that it has kept of this trial, if it has, and ends with the
        same numbers as if it had not been interrupted; epochs trained before are reported again.
        """
        self.replayed: Replayed | None = None
        self.epochs: list[EpochRow] = []
        self.best = _Best(self.train.best, self.keep_weights)
        self.train_seconds = 0.0
        self.keeper, self.kept = keeper, self._agreed_state(keeper)
        for phase in self.train.in_phases():
            self._train_phase(phase, report)

        epochs, best = self.epochs, self.best
        if epochs[-1].test_accuracy is None and best.epoch < len(epochs):  # the last epoch is a selection rule too
            epochs[-1] = self._tested(epochs[-1], self._logits("test"))
        if best.logits is None:
            self.model.load_state_dict(best.weights)
            best.logits = self._logits("test")
        epochs[best.epoch - 1] = self._tested(epochs[best.epoch - 1], best.logits)
        return History(
            epochs=tuple(epochs),
            best=epochs[best.epoch - 1],
            stopped_early=len(epochs) < self.train.planned_epochs,
            logits=best.logits,
            labels=self.feeds["test"].labels,
            train_seconds=self.train_seconds,
            images_per_second=len(epochs) * self._images_per_epoch() / self.train_seconds,
            weights=best.weights,
        )

    def _train_phase(self, phase: TrainSettings, report: Report) -> None:
        """Train one phase from the weights that are there."""
        self._begin(phase)
        patience = Patience(phase.early_stopping) if phase.early_stopping else None
        end = len(self.epochs) + phase.planned_epochs
        exhausted = False
        while len(self.epochs) < end and not exhausted:
            if self.kept is not None:
                row, logits = EpochRow(**self.kept["epochs"][len(self.epochs)]), None
            else:
                row, logits = self._epoch(len(self.epochs) + 1)
            self.epochs.append(row)
            self.rate.end_epoch(row)
            self.best.see(row, self.model, logits)
            exhausted = patience is not None and patience.is_exhausted_by(row)
            if self.kept is None:
                self._keep()
            elif len(self.epochs) == len(self.kept["epochs"]):
                self._take_up(self.kept)
            report(row)

    def _epoch(self, epoch: int) -> tuple[EpochRow, Tensor | None]:
        """Train and evaluate; return the epoch's row, and the logits of the test images where they validate."""
        begun = time.perf_counter()
        train_loss, train_accuracy = self._train_epoch(epoch)
        self.train_seconds += time.perf_counter() - begun
        logits = self._logits("val")
        val_loss, val_accuracy = self._score(logits, "val")
        test: tuple[float | None, float | None] = (None, None)
        if self.validates_on_test:
            test = val_loss, val_accuracy
        elif self.train.test_every_epoch:
            test = self._score(self._logits("test"), "test")
        row = EpochRow(
            trial_id=self.trial_id,
            epoch=epoch,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            test_loss=test[0],
            test_accuracy=test[1],
            lr=self.rate.last,  # the optimizer's own may be a tensor of float32
            seconds=time.perf_counter() - begun,
        )
        return row, logits if self.validates_on_test else None

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Save all that the next epoch begins with, if it is time; rank 0 says so for all processes."""
        if self.keeper is None:
            return
        due = torch.tensor(float(self.keeper.is_due()), device=self.device)
        if self.world.size > 1:
            dist.broadcast(due, 0)
        if not due.item():
            return
        words, numbers, *rest = np.random.get_state(legacy=True)
        cuda = self.device.type == "cuda"
        self.keeper.save(
            {
                "epochs": [dataclasses.asdict(row) for row in self.epochs],
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "steps": self.rate.steps,
                "best_weights": self.best.weights,
                "best_logits": self.best.logits,
                "train_seconds": self.train_seconds,
                "torch_random": torch.get_rng_state(),
                "cuda_random": torch.cuda.get_rng_state(self.device) if cuda else None,
                "python_random": random.getstate(),
                "numpy_random": [words, np.asarray(numbers).tolist(), *rest],
            }
        )

    def _agreed_state(self, keeper: Keeper | None) -> State | None:
        """Return the state to go on from: none unless every process has one of the same epoch."""
        if keeper is None:
            return None
        state = keeper.load(self.device)
        if state and self.keep_weights and not state["best_weights"]:  # of a run that wanted none
            state = None
        if self.world.size > 1:
            least = torch.tensor(float(len(state["epochs"]) if state else 0), device=self.device)
            most = least.clone()
            dist.all_reduce(least, dist.ReduceOp.MIN)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            if least.item() != most.item():
                return None
        return state

    def _take_up(self, state: State) -> None:
        """Go on where ``state`` was saved; what follows from the epochs' rows alone has been counted again."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(as_made(self.optimizer, state["optimizer"]))
        self._record_anew()  # what was recorded reads the tensors that were replaced
        self.rate.steps = state["steps"]
        self.best.weights, self.best.logits = state["best_weights"], state["best_logits"]
        self.train_seconds = state["train_seconds"]
        torch.set_rng_state(state["torch_random"].cpu())
        if state["cuda_random"] is not None:
            torch.cuda.set_rng_state(state["cuda_random"].cpu(), self.device)
        random.setstate(state["python_random"])
        words, numbers, *rest = state["numpy_random"]
        np.random.set_state((words, np.array(numbers, np.uint32), *rest))
        self.kept = None

    def _begin(self, phase: TrainSettings) -> None:
        """Choose what is trained, and make the optimizer and all that counts from the first step of a phase."""
        self.penalty = choose_trained(self.train, phase, self.model)
        self.step_model: nn.Module = self.model
        if self.world.size > 1:
            self.step_model = nn.parallel.DistributedDataParallel(self.model)
        self.optimizer = make_optimizer(phase, self.model, replayed=self._replays)
        self.rate = Rate(phase)
        self.totals = torch.zeros(2, device=self.device)
        self._record_anew()

    def _record_anew(self) -> None:
        me = weakref.proxy(self)  # a cycle would keep the network, and a graph's memory, until they are looked for
        self.replayed = Replayed(lambda *inputs: me._whole_step(*inputs)) if self._replays else None

    @property
    def _replays(self) -> bool:
        """Whether steps are launched as CUDA graphs: all of them must be alike, and happen on the GPU alone."""
        on_gpu = self.feeds["train"].pixels is not None and self.augmentation.recordable
        return self.train.cuda_graph and on_gpu and not self.train.augmented_copies

    def _train_epoch(self, epoch: int) -> tuple[float, float]:
        """Train on every training image once; return mean loss and accuracy of the images as they were trained on.

        With ``augmented_copies``, position p stands for image p modulo the number of images; those from there on are
        the copies. Until its end an epoch waits for the device nowhere.
        """
        backbones.train_mode(self.step_model)
        feed, batch, mine = self.feeds["train"], self.train.batch_size, self.world.mine
        order = np.random.default_rng(stream(self.seed, f"order/{epoch}")).permutation(self._images_per_epoch())
        places = torch.split(torch.from_numpy(order), batch)
        if len(places) > 1 and len(places[-1]) < min(batch, 2 * self.world.size):
            places = places[:-1]  # a remainder in which batch norm would not find two images in every process
        generator = torch.Generator(self.device).manual_seed(stream(self.seed, f"augment/{epoch}"))
        self.totals.zero_()
        steps = torch.split(torch.cat(places).to(feed.at), batch)
        if self.replayed is not None:
            for chosen in steps:
                self._set_rate()
                self.replayed(chosen, self.augmentation.draw(len(chosen), generator, self.device))
        else:
            batches = feed.batches(chosen[mine] % len(feed) for chosen in steps)
            for place, (images, labels) in zip(places, batches, strict=True):
                uniform = self.augmentation.draw(len(place), generator, self.device)[mine]
                if self.train.augmented_copies:
                    images = self._with_originals(images, uniform, place[mine] < len(feed))
                else:
                    images = self.augmentation.train(images, uniform)
                self._set_rate()
                self._learn(images, labels, len(place))
        if self.world.size > 1:
            dist.all_reduce(self.totals)
        count = sum(len(place) for place in places)
        mean_loss, accuracy = (self.totals.double() / count).tolist()  # the epoch's one wait for the device
        if not math.isfinite(mean_loss):
            raise Diverged(f"the training loss is {mean_loss} in epoch {epoch}: a smaller learning rate may help")
        return mean_loss, accuracy

    def _whole_step(self, chosen: Tensor, uniform: Tensor) -> None:
        """Learn from the images at ``chosen``, which lie on the device, augmented by the numbers ``uniform``."""
        images, labels = self.feeds["train"].take(chosen)
        self._learn(self.augmentation.train(images, uniform), labels, len(chosen))

    def _learn(self, images: Tensor, labels: Tensor, batch: int) -> None:
        """Make a step by this process's images of a ``batch`` of so many, and add its loss and hits to the totals."""
        with self._autocast():
            logits = self.step_model(images)
        loss = loss_sum(self.train.loss, logits.float(), labels, self.train.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        # DistributedDataParallel averages over processes: scaled so, the step is that of the whole batch's mean.
        mean = loss * (self.world.size / batch)
        # The penalty is the same in all of them.
        (mean + self.penalty() if self.penalty else mean).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.totals += torch.stack([loss.detach(), (logits.argmax(1) == labels).sum()])

    def _set_rate(self) -> None:
        """Give the optimizer the next step's learning rate, in the tensor that a graph reads it from if it has one."""
        rate = self.rate.next_step()
        for group in self.optimizer.param_groups:
            if self.replayed is None:
                group["lr"] = rate
            else:
                group["lr"].fill_(rate)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.train.precision == "bf16")

    def _images_per_epoch(self) -> int:
        return (1 + self.train.augmented_copies) * len(self.feeds["train"])

    def _with_originals(self, images: Tensor, uniform: Tensor, original: Tensor) -> Tensor:
        """Return the images augmented, but for those that ``original``, which lies on the CPU, marks."""
        at = original.nonzero().flatten().to(self.device, non_blocking=True)  # a mask on a GPU would be waited for
        unchanged = self.augmentation.evaluate(images[at])
        images = self.augmentation.train(images, uniform)
        images[at] = unchanged
        return images

    @torch.inference_mode()
    def _logits(self, name: str) -> Tensor:
        """Return the logits [n, classes] of all images of one split, in its order, the same in every process."""
        self.model.eval()
        feed = self.feeds[name]
        if self.world.size > 1:
            for buffer in self.model.buffers():  # batch norm's averages differ from process to process
                dist.broadcast(buffer, 0)
        full = torch.zeros(len(feed), self.classes, device=self.device)
        positions = torch.arange(len(feed), device=feed.at)[self.world.mine]
        steps = torch.split(positions, EVALUATION_BATCH)
        # Places by number, and not by `positions`: where those lie on the CPU a GPU's host would wait at each batch.
        places = torch.split(full[self.world.mine], EVALUATION_BATCH)
        for place, (images, _) in zip(places, feed.batches(steps), strict=True):
            with self._autocast():
                logits = self.model(self.augmentation.evaluate(images))
            place.copy_(logits)
        if self.world.size > 1:
            dist.all_reduce(full)
        return full

    def _score(self, logits: Tensor, name: str) -> tuple[float, float]:
        """Return mean loss and accuracy of ``logits`` for one split."""
        labels = self.feeds[name].labels
        with torch.inference_mode():
            loss = loss_sum(self.train.loss, logits, labels, self.train.label_smoothing).double() / len(labels)
            accuracy = (logits.argmax(1) == labels).double().mean()
        return float(loss), float(accuracy)

    def _tested(self, row: EpochRow, logits: Tensor) -> EpochRow:
        loss, accuracy = self._score(logits, "test")
        return dataclasses.replace(row, test_loss=loss, test_accuracy=accuracy)


def set_precision(train: TrainSettings, device: torch.device) -> None:
    """Let a GPU multiply with as few digits as ``train`` allows, in a process that is fresh; a CPU keeps all of them.

    What autocast does is not among it.
    """
    if train.precision == "tf32" and device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # some CPUs would hear of it too
        torch.backends.cudnn.allow_tf32 = True


class _Best:
    """The first epoch with the best value of a metric: its weights, or its logits if those are of the test images.

    With ``keep_weights`` its weights in any case.
    """

    def __init__(self, metric: str, keep_weights: bool = False) -> None:
        self.metric, self.epoch, self.value, self.keep_weights = metric, 0, math.nan, keep_weights
        self.weights: dict[str, Tensor] = {}
        self.logits: Tensor | None = None

    def see(self, row: EpochRow, model: nn.Module, logits: Tensor | None) -> None:
        value = getattr(row, self.metric)
        if self.epoch == 0 or is_better(self.metric, value, self.value):
            self.epoch, self.value, self.logits = row.epoch, value, logits
            if logits is None or self.keep_weights:
                self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}


def choose_trained(train: TrainSettings, phase: TrainSettings, network: nn.Module) -> Penalty:
    """Choose the part of a network that ``phase`` of ``train`` changes, and return the penalty on it.

    Raises:
        UserError: the network has no such part, or nothing in it that a penalty falls on.
    """
    if train.phases or phase.trainable != "all":  # else a model's own choice stays
        which = phase.trainable
        backbones.set_trainable(network, which.model_dump() if isinstance(which, LastLayers) else which)
    return Penalty(phase, network)


def make_optimizer(train: TrainSettings, model: nn.Module, *, replayed: bool = False) -> torch.optim.Optimizer:
    """Return the optimizer over the parameters that are to be trained, fused where torch has a fused kernel.

    With ``replayed`` it can be recorded in a CUDA graph: it keeps what changes from step to step in tensors.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    settings = train.optimizer
    lr = torch.tensor(train.lr, device=parameters[0].device) if replayed else train.lr
    common: dict[str, Any] = {"lr": lr, "weight_decay": settings.weight_decay}
    capturable = replayed and parameters[0].is_cuda
    match settings.name:
        case "adam":
            return torch.optim.Adam(parameters, fused=True, capturable=capturable, **common)
        case "adamw":
            return torch.optim.AdamW(parameters, fused=True, capturable=capturable, **common)
        case "sgd":
            return torch.optim.SGD(
                parameters, momentum=settings.momentum, nesterov=settings.nesterov, fused=True, **common
            )
        case "rmsprop":  # Keras' alpha; torch's default is 0.99
            return torch.optim.RMSprop(
                parameters, alpha=0.9, momentum=settings.momentum, capturable=capturable, **common
            )


def as_made(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return a ``state`` for ``optimizer`` in which it stays what it was made to be, recorded in a CUDA graph or not.

    The run before may have had another device, or less room on it.
    """
    groups = zip(state["param_groups"], optimizer.param_groups, strict=True)
    as_now = [{**kept, **{key: made[key] for key in ("lr", "capturable") if key in made}} for kept, made in groups]
    return {**state, "param_groups": as_now}
