"""What is asked of trials that are over, by their weights: where a network looks, and what is foreign to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from raybench import gradcam
from raybench.data import Part, Source, in_shape, load, sized, trial_data
from raybench.datasets import Pixels, balanced, seeded
from raybench.errors import DataError, UserError
from raybench.grid import Trial
from raybench.job import divided
from raybench.ood import name_of, rows_of, settings_text
from raybench.records import FINISHED, Activations
from raybench.settings import DatasetSettings
from raybench.store import Store
from raybench.suite import OutOfDistribution
from raybench.trained import Trained, again

Which = Literal["any", "right", "wrong"]


class Images:
    """The datasets that networks were trained on and are asked about, each read once.

    A missing one is downloaded if ``download`` says so; else its folder is asked for, in one line.
    """

    def __init__(self, data_dir: Path, *, download: bool = False) -> None:
        self.data_dir, self.download = data_dir, download
        self._sources: dict[Any, Source] = {}

    def source(self, settings: DatasetSettings) -> Source:
        key = settings.name, settings.folder, settings.image_size
        if key not in self._sources:
            self._sources[key] = load(settings, self.data_dir, download=self.download)
        return self._sources[key]


def finished(store: Store) -> dict[str, str]:
    """Return the trials that finished, and for each the fingerprint of the images that it was trained on."""
    rows, _ = store.read("trials", ["trial_id", "status", "dataset_fingerprint"])
    rows = rows[rows["status"].isin(FINISHED)]
    return dict(zip(rows["trial_id"], rows["dataset_fingerprint"], strict=True))


def network_of(trial: Trial, fingerprint: str, store: Store, images: Images) -> AbstractContextManager[Trained]:
    """Return the network of a stored trial, for a ``with`` block; on the GPU where there is one.

    Raises:
        UserError: if the images at hand have another ``fingerprint``, or there are no weights.
    """
    settings = trial.typed()
    source = images.source(settings.dataset)
    if source.fingerprint != fingerprint:
        raise DataError(
            f"{trial.id} was trained on other {settings.dataset.name} images (fingerprint {fingerprint}) than those at"
            f" hand ({source.fingerprint}): name their folder with --data-dir"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return again(settings, trial.seed, store.weights(trial.id), divided(source, settings.dataset), device)


# ---------------------------------------------------------------------------------------------------------------------
# Grad-CAM


@dataclass(frozen=True, slots=True, eq=False)
class Looks:
    """Some test images, and where a network looks to say what it says of them."""

    layer: str
    classes: tuple[str, ...]
    index: NDArray[np.int32]
    """[n]: rows of the images in the test split."""
    images: Pixels
    """uint8 [n,H,W,C]"""
    maps: NDArray[np.float32]
    """[n,H,W]: not below 0, larger where the image speaks more for ``predicted``."""
    true: NDArray[np.int16]
    predicted: NDArray[np.int16]


def look(
    trial: Trial, store: Store, images: Images, *, count: int, which: Which = "any", layer: str | None = None
) -> Looks:
    """Return the first ``count`` test images that the trial got right or wrong, and the Grad-CAM of what it predicted.

    Args:
        trial: one that has finished.

    Raises:
        UserError: if it has no weights, or no such images; or for an unknown layer.
    """
    rows, _ = store.read("predictions")
    rows = rows[rows["trial_id"] == trial.id].sort_values("index")
    if which != "any":
        rows = rows[(rows["label"] == rows["prediction"]) == (which == "right")]
    rows = rows.head(count)
    if rows.empty:
        raise UserError(f"{store.folder}: trial {trial.id} ({trial.name}) got no test image {which}")
    index, predicted = rows["index"].to_numpy(), rows["prediction"].to_numpy()
    with network_of(trial, finished(store)[trial.id], store, images) as network:
        part = Part(network.data.pools["test"], index)
        name, module = gradcam.layer(network.network, layer)
        return Looks(
            layer=name,
            classes=network.data.classes,
            index=index,
            images=part[:],
            maps=gradcam.maps(network, part, predicted, module),
            true=rows["label"].to_numpy(),
            predicted=predicted,
        )


# ---------------------------------------------------------------------------------------------------------------------
# Images from outside of the data


def detect(
    ood: OutOfDistribution,
    trials: Sequence[Trial],
    store: Store,
    images: Images,
    say: Callable[[str], None] = lambda line: None,
) -> int:
    """Compute and store, for finished trials whose weights are kept, what is not stored yet; return of how many.

    Args:
        store: open.

    Raises:
        UserError: if the images are not those that a trial was trained on, or a layer is not there.
    """
    ended = finished(store)
    stored, _ = store.read("ood", ["trial_id", "settings"])
    done = {*stored["trial_id"][stored["settings"] == settings_text(ood)]}
    scored, _ = store.read("activations", ["trial_id", "outside"])  # a damaged file has none
    of_these = scored["outside"].isna() | (scored["outside"] == name_of(ood.dataset))  # files of before do not say
    done &= {*scored["trial_id"][of_these]}
    here = (store.kept_weights() & ended.keys()) - done
    todo = [trial for trial in trials if trial.id in here]
    for number, trial in enumerate(todo, start=1):
        say(f"{trial.name} ({number} of {len(todo)})")
        with network_of(trial, ended[trial.id], store, images) as network:
            rows = scores(network, ood, images)
            fingerprint = images.source(sized(ood.dataset, network.data.shape)).fingerprint
            kinds = {name: type(module).__name__ for name, module in network.network.named_modules()}
        store.write_detection(trial.id, rows_of(trial.id, ood, fingerprint, rows, kinds), rows)
    return len(todo)


def scores(network: Trained, ood: OutOfDistribution, images: Images) -> list[Activations]:
    """Return every score of as many test images of the trial as of images from outside: of every class equally many,
    while a class lasts, drawn by ``ood.dataset.seed`` alone. The first half of each chooses the threshold."""
    settings = sized(ood.dataset, network.data.shape)
    source = images.source(settings)
    outside = trial_data(source, settings).test()
    parts = {"in": network.data.test(), "out": outside}
    count = min(map(len, parts.values()))
    if count < 2:
        raise UserError("ood: needs two test images or more, of the trial's dataset and of ood.dataset")
    parts = {name: _drawn(part, count, ood.dataset.seed, name) for name, part in parts.items()}
    layers = network.layers(ood.layers)
    inside = network.scores(parts["in"], layers)
    out = network.scores(in_shape(parts["out"], network.data.shape), layers)
    if isinstance(ood.layers, list):
        for name in ood.layers:
            if ("mean_activation", name) not in inside:
                kind = type(layers[name]).__name__
                raise UserError(f"ood.layers: {name} ({kind}) gives no numbers for each image: leave it out")
    judged = np.arange(count) >= count // 2
    return [
        Activations(
            score=score,
            layer=layer,
            outside=name_of(ood.dataset),
            dataset=np.repeat(["in", "out"], count),
            index=np.concatenate([part.index for part in parts.values()]).astype(np.int32),
            judged=np.concatenate([judged, judged]),
            value=np.concatenate([values, out[score, layer]]),
        )
        for (score, layer), values in inside.items()
    ]


def _drawn(part: Part, count: int, seed: int, name: str) -> Part:
    rows = balanced(part.images.labels[part.index], seeded(seed, f"ood/{name}"))[:count]
    return replace(part, index=part.index[rows])
