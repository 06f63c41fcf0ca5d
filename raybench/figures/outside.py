"""Figures of images of the data and from outside of it, as a score tells them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from raybench.errors import UserError, did_you_mean
from raybench.figures.classes import find_trial
from raybench.figures.images import show, stacked
from raybench.figures.results import Results, doubts, finished
from raybench.figures.style import COLORS, COLUMN, PAGE, finish, heading, sheet
from raybench.grid import Trial
from raybench.ood import NAMES, name_of

BINS = 40
"""Of a histogram."""


def _scores(results: Results, trial: str, dataset: str) -> tuple[Trial, pd.DataFrame]:
    """Return a trial, and what its scores say of the judged images of the data and from one dataset outside.

    Raises:
        UserError: if the trial that is named has none, or none of that dataset.
    """
    every = results.detections()
    one = find_trial(results, trial) if trial else None
    among = [one.id] if one else [each.id for each in finished(results)]
    found = every[every["trial_id"].isin(among)]
    known = list(dict.fromkeys(found["outside"]))
    if not known:
        raise UserError(f"--trial {trial}: has no scores of images from outside: `raybench ood` stores them")
    if dataset and dataset not in known:
        raise UserError(
            f"--dataset {dataset}: no scores of such images are stored, `raybench ood --dataset` stores them"
            f"{did_you_mean(dataset, known)}"
        )
    own = results.suite.ood and name_of(results.suite.ood.dataset)
    found = found[found["outside"] == (dataset or (own if own in known else known[0]))]
    one = one or next(each for each in finished(results) if each.id in set(found["trial_id"]))
    return one, found[found["trial_id"] == one.id]


def activations(results: Results, *, trial: str = "", dataset: str = "") -> Figure:
    """Histograms of what scores say of images of the data and from outside, with the threshold between them.

    A panel per score of one trial.

    Args:
        trial: id or name; by default the first one of the table that has any.
        dataset: of which images from outside; by default the suite's own, or else those asked about first.
    """
    one, scores = _scores(results, trial, dataset)
    groups = list(scores.groupby("name", sort=False))
    columns = min(3, len(groups))
    width = {1: COLUMN * 1.1, 2: PAGE * 0.8}.get(columns, PAGE)
    figure, grid = sheet(len(groups), columns=columns, width=width, height=1.9)
    for number, (panel, (name, group)) in enumerate(zip(grid, groups, strict=True)):
        edges = list(np.histogram_bin_edges(group["value"], BINS))
        for index, part in enumerate(("in", "out")):
            panel.hist(
                group["value"][group["dataset"] == part], edges, density=True, histtype="stepfilled", **_bars(index)
            )
        panel.axvline(float(group["threshold"].iloc[0]), color="black", linestyle="--", linewidth=1)
        heading(panel, str(name), (width - 0.5) / columns)
        panel.set_xlabel("value of the score" if number >= len(groups) - columns else "")
        panel.set_ylabel("density" if number % columns == 0 else "")
        panel.xaxis.set_major_locator(MaxNLocator(4))  # small numbers have long labels
        panel.tick_params(labelleft=False, left=False)
        panel.grid(visible=False)
    sizes = groups[0][1]["dataset"].value_counts()
    handles: list[Artist] = [
        Patch(**_bars(index), label=f"{name} (n = {int(sizes.get(part, 0)):,})")
        for index, (part, name) in enumerate({"in": "images of the data", "out": "images from outside"}.items())
    ]
    handles.append(Line2D([], [], color="black", linestyle="--", linewidth=1, label="threshold"))
    title = f"{results.suite.name}: scores of images of the data and from outside"
    return finish(
        figure,
        title,
        [f"trial {one.name} ({one.id}); images from outside: {scores['outside'].iloc[0]}", *doubts(results)],
        handles,
    )


def _bars(index: int) -> dict[str, Any]:
    """Return how the bars of images of the data (0) or from outside (1) are drawn: told apart in grey too."""
    color = COLORS[index]
    face = (*(int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)), 0.35)
    return {"facecolor": face, "edgecolor": color, "hatch": ("", "////")[index], "linewidth": 0.8}


def groups_of(results: Results, one: Trial, scores: pd.DataFrame, count: int) -> list[tuple[str, NDArray[np.uint8]]]:
    """Return the first ``count`` judged images from outside and of the data that one score told rightly, and wrongly:
    what they are and how many of how many, and the images [n, H, W, C] as the network sees them."""
    assert results.images is not None and results.foreign is not None
    accepted = scores["value"].astype(float) >= scores["threshold"]
    text, fingerprint, outside = scores.iloc[0][["settings", "out_fingerprint", "outside"]]
    names = {"out": f"from outside ({outside})", "in": f"of the data ({one.settings['dataset']['name']})"}
    groups = []
    for kind, name in names.items():
        here = scores["dataset"] == kind
        for right in (True, False):
            index = scores["index"][here & ((accepted == (kind == "in")) == right)].to_numpy()
            first = index[:count]
            of_it = results.images(one, first) if kind == "in" else results.foreign(one, text, fingerprint, first)
            groups.append((f"{name}, told {'rightly' if right else 'wrongly'}: {len(index)} of {here.sum()}", of_it))
    return groups


def outside(results: Results, *, trial: str = "", dataset: str = "", count: int = 8) -> Figure:
    """Images from outside and of the data, that a score told rightly and wrongly (report 004, Figure 9).

    Of the trial's scores, the one whose accuracy is best.

    Args:
        trial: id or name; by default the first one of the table that has scores.
        dataset: of which images from outside; by default the suite's own, or else those asked about first.
        count: how many of each.
    """
    one, every = _scores(results, trial, dataset)
    best = every[every["name"] == every["name"].iloc[int(every["accuracy"].argmax())]]
    groups = groups_of(results, one, best, count)
    figure, panels = stacked([len(images) for _, images in groups], 0.25)
    for (words, images), here in zip(groups, panels, strict=True):
        # A title would widen the first column: the layout makes room for its middle.
        text = here[0].text(0, 1.05, words, transform=here[0].transAxes, weight="bold", va="bottom")
        text.set_in_layout(False)
        for panel, image in zip(here, images, strict=False):
            panel.set_visible(True)
            show(panel, image)
    title = f"{results.suite.name}: images from outside and of the data"
    score, layer, threshold = best.iloc[0][["score", "layer", "threshold"]]
    by = NAMES[score] + (f" of layer {layer}" if isinstance(layer, str) else "")
    said = f"trial {one.name} ({one.id}), by {by}: from outside if below {threshold:.4g}"
    return finish(figure, title, [said, *doubts(results)])
