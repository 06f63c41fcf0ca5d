"""Figures of single images, and of what a network makes of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from raybench.errors import UserError
from raybench.figures.classes import find_trial
from raybench.figures.results import Results, doubts, finished
from raybench.figures.style import PAGE, finish, sheet
from raybench.grid import Trial

IN_ROW = 8
"""Images side by side in a gallery."""


def pick(predictions: pd.DataFrame, count: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw ``count`` test images (or all, if they are fewer) that a trial got right, and as many that it got wrong.

    The draw depends on ``seed`` and the predictions alone; both come in the order of ``index``.
    """
    rng = np.random.default_rng(seed)
    right = predictions["label"] == predictions["prediction"]
    drawn = []
    for part in (predictions[right], predictions[~right]):
        part = part.sort_values("index")
        drawn.append(part.iloc[np.sort(rng.permutation(len(part))[:count])])
    return drawn[0], drawn[1]


def looked_at(results: Results, trial: str = "") -> tuple[Trial, pd.DataFrame] | None:
    """Return the trial that ``trial`` names, or the first of the table whose predictions can be read, and them."""
    for one in [find_trial(results, trial)] if trial else finished(results):
        if len(stored := results.predictions([one.id])):
            return one, stored
    return None


def gallery(results: Results, *, trial: str = "", count: int = 16, seed: int = 0) -> Figure:
    """Gallery of test images that a trial got right and wrong, with the true and the predicted class.

    Args:
        trial: its id, or the beginning of it, or its name; by default the first that has predictions.
        count: how many of each.
        seed: of the draw.
    """
    if count < 1:
        raise UserError(f"--count {count}: must be 1 or more")
    found = looked_at(results, trial)
    if found is None:
        raise UserError(f"{results.suite.name}: needs predictions of {trial}, and none that can be read are stored")
    one, stored = found
    classes = results.classes(one)
    assert results.images is not None
    groups = []
    for name, drawn in zip(("right", "wrong"), pick(stored, count, seed), strict=True):
        of = int(((stored["label"] == stored["prediction"]) == (name == "right")).sum())
        pixels = results.images(one, drawn["index"].to_numpy()) if len(drawn) else np.zeros((0, 1, 1, 1), np.uint8)
        groups.append((f"{name}: {len(drawn)} of {of:,}", pixels, drawn))
    figure, every = stacked([len(drawn) for _, _, drawn in groups], 0.22)
    for number, ((name, pixels, drawn), panels) in enumerate(zip(groups, every, strict=True)):
        # Below other images, it stands a line away from their classes.
        panels[0].set_title(f"\n{name}" if number else name, loc="left", weight="bold", pad=4)
        for panel, image, (label, prediction) in zip(
            panels, pixels, drawn[["label", "prediction"]].itertuples(index=False), strict=False
        ):
            panel.set_visible(True)
            show(panel, image)
            true, predicted = classes[label], classes[prediction]
            panel.set_xlabel(true if label == prediction else f"{true}\n→ {predicted}", fontsize=6, labelpad=2)
    said = f"trial {one.name} ({one.id}); drawn at random with seed {seed}; wrong ones: true → predicted class"
    title = f"{results.suite.name}: test images, right and wrong"
    return finish(figure, title, [said, *doubts(results)])


def gradcam(
    results: Results,
    *,
    images: NDArray[np.uint8],
    maps: NDArray[np.floating[Any]],
    true: Sequence[str],
    predicted: Sequence[str],
    caption: Sequence[str] = (),
) -> Figure:
    """Grad-CAM: test images, and what in them spoke for the predicted class.

    Args:
        images: uint8 [n, H, W, C].
        maps: [n, H, W], from 0 up; each is shown relative to its own largest value.
        true, predicted: names of the classes, n each.
        caption: what else must be said, such as the layer and the trial.
    """
    pairs = 4
    rows = -(-len(images) // pairs)
    side = PAGE / (2 * pairs)
    figure, grid = sheet(rows * 2 * pairs, columns=2 * pairs, width=PAGE, height=side + 0.3)
    for panel in grid:
        bare(panel)
    for number, (image, heat) in enumerate(zip(images, maps, strict=True)):
        plain, overlaid = grid[2 * number : 2 * number + 2]
        show(plain, image)
        show(overlaid, image)
        top = float(np.max(heat))
        share = np.asarray(heat, float) / top if top > 0 else np.zeros(heat.shape)
        overlaid.imshow(share, cmap="inferno", vmin=0, vmax=1, alpha=0.75 * share**0.5, interpolation="none")
        plain.set_xlabel(true[number], fontsize=6, labelpad=2)
        mark = "✓" if true[number] == predicted[number] else "✗"
        overlaid.set_xlabel(f"{mark} {predicted[number]}", fontsize=6, labelpad=2)
    for spare in grid[2 * len(images) :]:
        spare.remove()
    said = "each image with its true class; beside it the map of the predicted class: bright where it speaks for it"
    title = f"{results.suite.name}: Grad-CAM"
    return finish(figure, title, [said, *caption, *doubts(results)])


def stacked(counts: Sequence[int], between: float) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure and, for groups of so many images, the rows of panels that each takes, with ``between`` inches
    below every image. The first panel of a group bears its title; the others are not seen until they are told."""
    depths = [max(1, -(-count // IN_ROW)) for count in counts]
    figure, grid = sheet(sum(depths) * IN_ROW, columns=IN_ROW, width=PAGE, height=PAGE / IN_ROW + between)
    for panel in grid:
        bare(panel)
        panel.set_visible(False)
    panels = iter(grid)
    groups = [list(itertools.islice(panels, depth * IN_ROW)) for depth in depths]
    for group in groups:
        group[0].set_visible(True)
    return figure, groups


def bare(panel: Axes) -> None:
    panel.set_xticks([])
    panel.set_yticks([])
    panel.grid(visible=False)
    panel.spines[:].set_visible(False)


def show(panel: Axes, image: NDArray[np.uint8]) -> None:
    """Show an image [H, W, C] as it is, one square per pixel."""
    pixels = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    panel.imshow(pixels, interpolation="none")
