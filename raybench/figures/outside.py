"""Figures of images of the data and from outside of it, as a score tells them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from raybench.figures.images import IN_ROW, _bare, _image
from raybench.figures.results import Results, doubts
from raybench.figures.style import PAGE, finish, sheet


def outside(
    results: Results, *, groups: Sequence[tuple[str, NDArray[np.uint8]]], caption: Sequence[str] = ()
) -> Figure:
    """Images from outside and of the data, that a score told rightly and wrongly (report 004, Figure 9).

    Args:
        groups: a heading, and images uint8 [n, H, W, C] of any n.
        caption: what must be said, such as the trial and the layer.
    """
    depths = [max(1, -(-len(images) // IN_ROW)) for _, images in groups]
    figure, grid = sheet(sum(depths) * IN_ROW, columns=IN_ROW, width=PAGE, height=PAGE / IN_ROW + 0.25, share=False)
    panels: list[Any] = list(grid)
    for panel in panels:
        _bare(panel)
        panel.set_visible(False)
    start = 0
    for (heading, images), depth in zip(groups, depths, strict=True):
        here = panels[start * IN_ROW : (start + depth) * IN_ROW]
        start += depth
        here[0].set_visible(True)
        # A title would widen the first column: the layout makes room for its middle.
        text = here[0].text(0, 1.05, heading, transform=here[0].transAxes, weight="bold", va="bottom")
        text.set_in_layout(False)
        for panel, image in zip(here, images, strict=False):
            panel.set_visible(True)
            _image(panel, image)
    title = f"{results.suite.name}: images from outside and of the data"
    return finish(figure, title, [*caption, *doubts(results)])
