"""A trial's network as its weights make it again, and what its layers and logits say of images. No training here.

with again(settings, seed, weights, data, device) as trained:
    logits = trained.logits(data.test())      # those of the trial, bit for bit where it ran likewise
    scores = trained.scores(part, trained.layers("activations"))
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raybench import augment
from raybench.augment import Augmentation
from raybench.data import Part, TrialData
from raybench.errors import UserError, did_you_mean
from raybench.feed import Feed
from raybench.records import Score
from raybench.settings import TrialSettings
from raybench.train import EVALUATION_BATCH, set_precision
from raybench.trial import fit_augmentation, fresh_process
from raybench.weights import restored

LISTED = 40
"""Modules up to which a message lists all of them."""
Scores = dict[tuple[Score, str | None], NDArray[np.float32]]
"""By the score's name and its layer, one number per image."""


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A trained network in eval mode, and what its images go through before they reach it."""

    settings: TrialSettings
    network: nn.Module
    augmentation: Augmentation
    data: TrialData
    device: torch.device

    def inputs(self, part: Part) -> Iterator[Tensor]:
        """Yield the images of ``part`` as the network takes them, float [n, C, H, W], a batch at a time."""
        feed = Feed(part, self.device)
        for images, _ in feed.batches(torch.split(torch.arange(len(feed), device=feed.at), EVALUATION_BATCH)):
            yield self.augmentation.evaluate(images)

    def _forward(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.train.precision == "bf16"):
            logits: Tensor = self.network(images)
        return logits.float()

    @torch.inference_mode()
    def logits(self, part: Part) -> Tensor:
        """Return the logits [n, classes] of the images of ``part``."""
        return torch.cat([self._forward(images) for images in self.inputs(part)])

    @torch.inference_mode()
    def scores(self, part: Part, layers: Mapping[str, nn.Module]) -> Scores:
        """Return the scores of `raybench.records.DetectionRow` of the images of ``part``: the mean over all outputs of
        each of ``layers``, and those of the logits.

        A layer that runs several times counts with its last; one that gives no numbers for each image is left out.
        """
        means: dict[str, Tensor] = {}
        batches: list[dict[tuple[Score, str | None], Tensor]] = []

        def watch(name: str) -> Any:
            def keep(module: nn.Module, inputs: Any, output: Any) -> None:
                if isinstance(output, Tensor) and output.ndim > 1:
                    means[name] = output.float().flatten(1).mean(1)

            return keep

        with contextlib.ExitStack() as stack:
            for name, module in layers.items():
                stack.callback(module.register_forward_hook(watch(name)).remove)
            for images in self.inputs(part):
                means.clear()
                logits = self._forward(images)
                batch: dict[tuple[Score, str | None], Tensor] = {
                    ("mean_activation", name): means[name]
                    for name in layers
                    if name in means and len(means[name]) == len(images)
                }
                batches.append(
                    batch | {("max_softmax", None): logits.softmax(1).amax(1), ("energy", None): logits.logsumexp(1)}
                )
        return {key: torch.cat([batch[key] for batch in batches]).cpu().numpy() for key in batches[0]}

    def layers(self, which: str | Sequence[str]) -> dict[str, nn.Module]:
        """Return modules by name: ``activations``, those that are activation functions, ``all`` that contain no other,
        or those named.

        Raises:
            UserError: if there is none, or none called so.
        """
        ends = {name: module for name, module in self.network.named_modules() if not [*module.children()]}
        if which == "all":
            return ends
        if which == "activations":
            found = {name: m for name, m in ends.items() if "activation" in type(m).__module__}
            if not found:
                raise UserError(
                    f"model {self.settings.model.name!r} has no module that is an activation function:"
                    " name other layers"
                )
            return found
        return {name: module_called(self.network, name) for name in which}


def module_called(network: nn.Module, name: str) -> nn.Module:
    """Return the module of ``network`` called ``name``; raise `UserError` with a suggestion if there is none."""
    modules = {key: module for key, module in network.named_modules() if key}
    if name not in modules:
        listed = [f"{key} ({type(module).__name__})" for key, module in modules.items()]
        hint = f"; known: {', '.join(listed)}" if len(listed) <= LISTED else did_you_mean(name, modules)[:200]
        raise UserError(f"no layer {name!r} in the network{hint}")
    return modules[name]


@contextlib.contextmanager
def again(settings: TrialSettings, seed: int, weights: bytes, data: TrialData, device: str) -> Iterator[Trained]:
    """Make a trial's network again, for the ``with`` block, in the state of process that it was trained in.

    Raises:
        WeightsError: if the weights are damaged, or the network is not built today as it was.
    """
    with fresh_process(seed, settings.resources.cpus):
        set_precision(settings.train, torch.device(device))
        augmentation = augment.build(settings.augmentation)
        augmentation.load(fit_augmentation(settings, data), torch.device(device))
        network = restored(settings.model, weights, data.shape, len(data.classes))
        network = network.to(device).to(memory_format=torch.channels_last)
        yield Trained(settings, network, augmentation, data, torch.device(device))
