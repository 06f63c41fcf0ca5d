"""How figures look, and how they are written: the same bytes from the same results."""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.textpath import text_to_path

from raybench.errors import UserError

COLUMN, PAGE = 3.5, 7.1
"""Inches: the width of a column of a paper, and of a page's text (A4 with margins of 15 mm)."""
TALLEST = 10.2
"""Inches: what A4 has between such margins."""
SMALL, TITLE = 6.5, 9.0
"""Points."""
EDGE = 0.05
"""Inches that are free at the left and the right."""
HINTED = 0.95
"""Share of a line that is filled by the measure of its font: fitted to pixels, letters come out wider."""
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31", "#7F7F7F")
"""The palette of Okabe and Ito (2008), which people who confuse colours tell apart, and two more."""
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
MARKERS = "osD^vPX*<>"
HEAT = "cividis"
"""Its lightness rises evenly: it is itself in grey, and to people who confuse colours."""
SHARES = "Blues"
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Source Han Sans SC", "PingFang SC", "Hiragino Sans", "Microsoft YaHei")
"""The first that is there and has a sign draws it. The first one comes with matplotlib, and has none of East Asia's."""

STYLE = {
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.88",
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "figure.dpi": 200,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw and save by raybench's style alone, whatever matplotlibrc a machine has."""
    here = set(font_manager.fontManager.get_font_names())
    fonts = {"font.family": [name for name in FONTS if name in here]}
    with matplotlib.style.context(["default", STYLE, fonts]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # `finish` says so
        yield


def _boxes(figure: Figure, *more: str) -> list[str]:
    """Say which signs no font has: boxes stand for them."""
    texts = [text.get_text() for text in figure.findobj(Text)]
    signs = {sign for text in (*texts, *more) for sign in text if not sign.isspace()}
    for name in matplotlib.rcParams["font.family"]:
        font = font_manager.get_font(font_manager.findfont(name))
        signs = {sign for sign in signs if not font.get_char_index(ord(sign))}
    names = sorted(f"U+{ord(sign):04X}" for sign in signs)
    others = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return [f"no font here has {', '.join(names[:8])}{others}: install Noto Sans CJK, for instance"] if names else []


def look(index: int) -> dict[str, Any]:
    """Return colour, dashes and marker of line number ``index``: each alone would tell six from each other."""
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


# ---------------------------------------------------------------------------------------------------------------------
# Panels, titles, captions


def side_by_side(count: int) -> int:
    """Return how many of ``count`` panels stand in a row."""
    return 2 if count == 4 else min(3, count)


def sheet(count: int, *, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure ``width`` inches wide and ``count`` panels in it, of ``height`` inches each, row by row."""
    columns = max(1, min(columns, count))
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width, rows * height), layout="constrained")
    every = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in every[count:]:
        spare.remove()
    return figure, every[:count]


def finish(figure: Figure, title: str, caption: Sequence[str], handles: Sequence[Artist] = ()) -> Figure:
    """Write a title above the panels, and below them a legend and a caption. The figure grows, the panels do not."""
    width, height = figure.get_size_inches()
    line, title_line = SMALL * 1.35 / 72, TITLE * 1.35 / 72
    caption = [*caption, *_boxes(figure, title, *caption)]
    wrapped = [part for text in caption for part in _lines(text, FontProperties(size=SMALL), width - 0.1)]
    headed = _lines(title, FontProperties(size=TITLE, weight="bold"), width - 0.1)
    above, below = len(headed) * title_line + 0.05, len(wrapped) * line + 0.08
    legend = None
    if handles:
        longest = max(len(str(handle.get_label())) for handle in handles) * 7 * 0.58 / 72 + 0.6
        columns = max(1, min(len(handles), int(width / longest)))
        legend = figure.legend(handles=list(handles), loc="lower center", ncols=columns)
        legend.set_in_layout(False)
        below += _height(legend, figure) / figure.dpi
    total = height + above + below
    figure.set_size_inches(width, total)
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(EDGE / width, below / total, 1 - 2 * EDGE / width, 1 - (above + below) / total))  # type: ignore[call-arg]
    if legend:
        legend.set_bbox_to_anchor((0, (len(wrapped) * line + 0.04) / total, 1, 1), figure.transFigure)
    for number, text in enumerate(headed):
        y = 1 - (number + 0.15) * title_line / total
        figure.text(EDGE / width, y, text, fontsize=TITLE, weight="bold", va="top")
    for number, text in enumerate(reversed(wrapped)):
        figure.text(EDGE / width, (0.03 + number * line) / total, text, fontsize=SMALL, color="0.3", va="bottom")
    return _settled(figure)


def _settled(figure: Figure) -> Figure:
    """Lay ``figure`` out, once and for all: the solver's last digits differ from time to time."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(number, 5) for number in axes.get_position(original=True).bounds)
        axes.set_position((left, bottom, width, height))
    return figure


def _lines(text: str, font: FontProperties, width: float) -> list[str]:
    """Break ``text`` into lines that are at most ``width`` inches long in ``font``."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_to_path.get_text_width_height_descent(longer, font, ismath=False)[0] <= width * 72 * HINTED:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _height(legend: Legend, figure: Figure) -> float:
    """Return the pixels that a legend takes."""
    return float(legend.get_window_extent(FigureCanvasAgg(figure).get_renderer()).height)  # type: ignore[no-untyped-call]


def heading(axes: Axes, text: str, room: float) -> None:
    """Write the title of a panel that is ``room`` inches wide, in as many lines as it needs."""
    axes.set_title(broken(text, max(8, int(room * 72 / (7.5 * 0.56)))))


def ticks(axes: Axes, labels: Sequence[str], room: float, at: Sequence[float]) -> None:
    """Label the x axis with words, which have ``room`` inches each: broken, or upright, where they need more."""
    lines, _ = _words(labels, room)
    axes.set_xticks(list(at), lines or labels, rotation=0 if lines else 90)


def below(labels: Sequence[str], room: float) -> float:
    """Return the inches that `ticks` take in height."""
    return _words(labels, room)[1]


def _words(labels: Sequence[str], room: float) -> tuple[list[str], float]:
    """Return the labels in lines that have room, or none if they must stand upright; and their height in inches."""
    size = 7 * 0.6 / 72  # of a character, in inches
    lines = [broken(label, max(4, int(room * 0.92 / size))) for label in labels]
    deep = max(text.count("\n") for text in lines) + 1
    if max(len(line) for text in lines for line in text.split("\n")) * size <= room * 0.95 and deep <= 3:
        return lines, deep * 0.12
    return [], max(map(len, labels)) * size


def broken(text: str, width: int) -> str:
    """Break ``text`` into lines of ``width`` characters or, where none of `` _/.-`` comes, more; never in a number."""
    lines = [""]
    for piece in re.findall(r"(?:[^\s_/.-]|\.(?=\d))*[\s_/.-]?", text):
        if len(lines[-1]) + len(piece.rstrip()) > width and lines[-1]:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.strip() for line in lines if line.strip())


def on(color: Sequence[float]) -> str:
    """Return black or white, whichever is read better on ``color`` (relative luminance, WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    return "black" if float(np.dot(linear, (0.2126, 0.7152, 0.0722))) > 0.179 else "white"


# ---------------------------------------------------------------------------------------------------------------------
# Files


def svg(figure: Figure) -> str:
    """Return ``figure`` as an ``<svg>`` element.

    The same figure gives the same text, and its ids are its own: several can stand in one page of HTML.
    """
    buffer = io.StringIO()
    with styled(), matplotlib.rc_context({"svg.hashsalt": "raybench"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    ids = re.findall(r'\bid="([^"]+)"', text)
    number = {id_: index for index, id_ in enumerate(dict.fromkeys(ids))}
    seen: Counter[str] = Counter()

    def defined(found: re.Match[str]) -> str:
        seen[found[1]] += 1  # equal images have one id, to which nothing refers
        return f'id="OWN-{number[found[1]]}{"x" * (seen[found[1]] - 1)}"'

    text = re.sub(r'\bid="([^"]+)"', defined, text)
    text = re.sub(r'(url\(|href=")#([^")]+)', lambda found: f"{found[1]}#OWN-{number[found[2]]}", text)
    return text.replace("OWN-", f"f{hashlib.sha256(text.encode()).hexdigest()[:8]}-")


def _svg_file(figure: Figure, path: Path) -> None:
    path.write_text(f'<?xml version="1.0" encoding="utf-8" standalone="no"?>\n{svg(figure)}', encoding="utf-8")


def _png(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", metadata={"Software": None})


def _pdf(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="pdf", metadata={"CreationDate": None, "Producer": None, "Creator": "raybench"})


SUFFIXES: dict[str, Callable[[Figure, Path], None]] = {".png": _png, ".svg": _svg_file, ".pdf": _pdf}


def check_suffix(path: Path) -> None:
    """Raise `UserError` unless `save` knows the kind of file."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: a figure's file ends in {', '.join(SUFFIXES)}")


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path``, as PNG, SVG or PDF by its suffix; the same figure gives the same bytes.

    Raises:
        UserError: for another suffix, or a file that cannot be written.
    """
    check_suffix(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with styled():
            SUFFIXES[path.suffix.lower()](figure, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
