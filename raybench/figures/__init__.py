"""Figures from stored rows, by kind: each is a function ``(results, **options) -> Figure`` in `PLOTS`.

What is drawn is computed first, as plain data (`values`, `curves.band`, `classes.counts`, ...), and drawn from that.

    results = collect(store, choice)
    save(draw("curves", results), Path("curves.pdf"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from raybench.errors import UserError
from raybench.figures.results import Results, check_metric, collect, described, finished, listed_axes, lr_axis, values
from raybench.figures.style import save, styled, svg
from raybench.registry import PLOTS

__all__ = ["PLOTS", "Results", "available", "check", "collect", "draw", "save", "svg"]


def draw(kind: str, results: Results, **options: Any) -> Figure:
    """Return a figure of ``kind``, a name in `PLOTS`.

    Raises:
        UserError: for an unknown kind or option, or if the results do not hold what it needs.
    """
    check(kind, results, options)
    PLOTS.check_options(kind, options)
    with styled():
        return PLOTS.get(kind)(results, **options)


def check(kind: str, results: Results, options: Mapping[str, Any]) -> None:
    """Raise `UserError` for an unknown kind, or if the results do not hold what it needs."""
    PLOTS.check(kind)
    reason = None if options.keys() & GIVEN else _lacking(kind, results, options)
    if reason:
        raise UserError(f"{results.suite.name}: cannot draw {kind}: {reason}")


def available(kind: str, results: Results) -> str | None:
    """Return why a figure of ``kind`` cannot be drawn from ``results`` alone, in one line; None if it can."""
    PLOTS.check(kind)
    return _lacking(kind, results, {})


def _lacking(kind: str, results: Results, options: Mapping[str, Any]) -> str | None:
    for need in NEEDS.get(kind, (_finished,)):
        if reason := need(results):
            return reason
    if kind in OF_TRIALS:
        metric = check_metric(options.get("metric") or "test_accuracy")
        if values(results, metric, every_point=kind == "lr").empty:
            return f"no finished trial has a {described(metric)}"
    named = [options[name] for name in AXES.get(kind, ()) if options.get(name)]
    free = [axis for axis in listed_axes(results) if axis not in named]
    count = len(AXES.get(kind, ())) - len(named)
    if len(free) >= count:
        return None
    return (
        f"needs {_count(count)} with several values{' more' if named else ''}; the plan has {', '.join(free) or 'none'}"
    )


def _count(axes: int) -> str:
    return "an axis" if axes == 1 else f"{axes} axes"


def _finished(results: Results) -> str | None:
    return None if finished(results) else "no planned trial has finished"


def _epochs(results: Results) -> str | None:
    stored = set(results.epochs["trial_id"])
    some = any(trial.id in stored for trial in finished(results))
    return None if some else "no epochs that can be read are stored"


def _lr(results: Results) -> str | None:
    return None if lr_axis(results) else "needs an axis lr with several values"


def _predictions(results: Results) -> str | None:
    some = any(results.classes(trial) for trial in finished(results))
    return None if some else "needs predictions, and none that can be read are stored"


def _images(results: Results) -> str | None:
    return None if results.images else "needs the test images: name their folder with --data-dir"


def _detections(results: Results) -> str | None:
    scored = set(results.detections()["trial_id"])
    some = any(trial.id in scored for trial in finished(results))
    return None if some else "needs scores of images from outside: `raybench ood` stores them"


def _weights(results: Results) -> str | None:
    return "is made from a trial's weights: `raybench gradcam` does it"


AXES = {"box": ("axis",), "heatmap": ("rows", "columns"), "grid": ("rows", "columns", "panels")}
"""Options of kinds that name axes; for each that is not given there must be one with several values."""
OF_TRIALS = {"box", "heatmap", "grid", "ranking", "lr"}
"""Kinds that draw one number of each trial, by their option ``metric``."""
GIVEN = {"maps"}
"""Options with which a figure is drawn from what it is given, whatever the results hold."""
NEEDS: dict[str, tuple[Callable[[Results], str | None], ...]] = {
    "curves": (_finished, _epochs),
    "lr": (_finished, _lr),
    "curves_by_lr": (_finished, _epochs, _lr),
    "confusion": (_finished, _predictions),
    "class_report": (_finished, _predictions),
    "gallery": (_finished, _predictions, _images),
    "gradcam": (_weights,),
    "activations": (_finished, _detections),
    "outside": (_finished, _detections, _images),
}
"""What `Results` must hold for a kind; the others need a finished trial."""
