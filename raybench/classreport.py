"""Class reports, of precision, recall and F1 as scikit-learn prints them, that no predictions can have given.

As in `raybench.check`, a number is named only if no predictions whatsoever would print it. `read_class_report` and
`check_class_report` are what a command needs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from raybench.errors import UserError
from raybench.printed import ANY, Finding, Number, Row, count_of, decimals_of, not_a_share, not_whole, read, spelled

METRICS = ("precision", "recall", "f1")
AVERAGES = ("micro avg", "macro avg", "weighted avg", "samples avg")
OF_SOME = {"micro avg", "samples avg"}
"""Averages that scikit-learn prints where a report is of some of the classes, or images have several."""
OTHERS = 10**9
"""Images of other classes, at most, where a report is of some of the classes: it does not say how many there were."""
Ranges = dict[str, tuple[float, float]]
"""Of a class: what each metric can be, and how many images can be ``called`` so."""


def read_class_report(text: str, source: str) -> list[dict[str, Any]]:
    """Return the rows of a class report as `check_class_report` takes them, from what scikit-learn prints.

    Where not one image is right, it prints the support as 36.0.

    Raises:
        UserError: with ``source``, for a line that is no row of one.
    """
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if row := re.fullmatch(r"\s*(\S.*?)\s+(\S+)\s+(\S+)\s+(\S+)\s+(\d+(?:\.0+)?)\s*", line):
            rows.append(dict(zip(("class", *METRICS, "support"), row.groups(), strict=True)))
        elif len(words) == 3 and words[0] == "accuracy":
            rows.append({"class": "accuracy", "f1": words[1], "support": words[2]})
        elif words and words != ["precision", "recall", "f1-score", "support"]:
            raise UserError(f"{source}, line {number}: must be a class with precision, recall, F1 and support")
    if not rows:
        raise UserError(f"{source}: no class report in it, as scikit-learn's classification_report prints one")
    return rows


def check_class_report(rows: Sequence[Row]) -> list[Finding]:
    """Return what is wrong with a report of precision, recall and f1 per class, such as scikit-learn prints.

    Each class must have whole numbers of right answers and of predictions that give its three numbers, f1 being
    2 * precision * recall / (precision + recall). Together these must make the accuracy and the averages, and as many
    predictions as there are images. scikit-learn has ``micro avg`` in place of the accuracy where it was asked for some
    of the classes, or where images have several: then other images can be taken for these too, and predictions are any
    number. Nothing but an image's own answers says what ``samples avg`` can be.

    Args:
        rows: a row per class: ``class``, ``precision``, ``recall``, ``f1`` (numbers or printed texts, None where not
            legible) and ``support``; then, where given, the rows whose ``class`` is ``accuracy`` (its number stands
            under ``f1``, as it is printed) and `AVERAGES`.
    """
    places = decimals_of(rows, METRICS)
    report = {str(row["class"]): {key: read(row.get(key), key, places.get(key)) for key in METRICS} for row in rows}
    supports = {str(row["class"]): count_of(row.get("support"), "support") for row in rows}
    classes = {}
    for name in report:
        if name not in ("accuracy", *AVERAGES):
            if (support := supports[name]) is None:
                raise UserError(f"class report: class {name} has no support")
            classes[name] = support
    images = sum(classes.values())
    judged = OTHERS if OF_SOME & report.keys() else images
    outside = [
        Finding({"class": name}, reason)
        for name, numbers in report.items()
        for key, number in numbers.items()
        if number
        for reason in not_a_share(key, number)
    ]
    if outside:
        return outside

    findings, possible = [], []
    for name, support in classes.items():
        given = {key: number or ANY for key, number in report[name].items()}
        ranges = _class_ranges(judged, support, **given)
        if not ranges:
            findings.append(Finding({"class": name}, _class_reason(judged, support, **given)))
            ranges = {key: (number.low, number.high) for key, number in given.items()} | {"called": (0, judged)}
        possible.append((support, ranges))
    for name in report:
        if name not in classes and (support := supports[name]) not in (None, images):
            findings.append(Finding({}, f"{name} support {support:,} cannot be: the classes have {images:,} images"))
    return findings + [Finding({}, reason) for reason in _totals(report, possible)]


def _class_ranges(images: int, support: int, precision: Number, recall: Number, f1: Number) -> Ranges:
    """Return what a class of ``support`` images can have that is printed so; nothing if it cannot be.

    Of the predictions, a whole number, ``right`` are right; 0 / 0 is 0, as scikit-learn has it.
    """
    found: dict[str, list[float]] = {key: [] for key in (*METRICS, "called")}
    for right in range(max(0, math.ceil(recall.low * support)), min(support, math.floor(recall.high * support)) + 1):
        least, most = float(right), float(right + images - support)
        if right:
            least = max(least, right / precision.high, 2 * right / f1.high - support)
            most = min(most, right / precision.low) if precision.low > 0 else most
            most = min(most, 2 * right / f1.low - support) if f1.low > 0 else most
        elif precision.low > 0 or f1.low > 0:
            continue
        if math.ceil(least) <= math.floor(most):
            for called in (math.ceil(least), math.floor(most)):
                found["called"].append(called)
                found["precision"].append(right / max(1, called))
                found["recall"].append(right / max(1, support))
                found["f1"].append(2 * right / max(1, called + support))
    return {key: (min(values), max(values)) for key, values in found.items() if values}


def _class_reason(images: int, support: int, precision: Number, recall: Number, f1: Number) -> str:
    """Say which number of an impossible class contradicts those before it."""
    if not _class_ranges(images, support, ANY, recall, ANY):
        return not_whole("recall", recall, support)[0]
    ranges = _class_ranges(images, support, precision, recall, ANY)
    if not ranges:
        return f"precision {precision} cannot be: with recall {recall} no whole number of predictions gives it"
    return f"f1 {f1} cannot be: precision {precision} and recall {recall} give {f1.format(*ranges['f1'])}"


def _totals(report: Mapping[str, Mapping[str, Number | None]], classes: Sequence[tuple[int, Ranges]]) -> list[str]:
    """Say which of accuracy, averages and number of predictions the classes cannot give."""
    images = sum(support for support, _ in classes)
    least, most = (sum(ranges["called"][end] for _, ranges in classes) for end in (0, 1))
    fewest, right = (sum(support * ranges["recall"][end] for support, ranges in classes) for end in (0, 1))
    pooled = {  # of all classes together; their recall is weighted by support
        "precision": (fewest / max(1, most), min(1.0, right / max(1, least))),
        "f1": (2 * fewest / max(1, most + images), min(1.0, 2 * right / max(1, least + images))),
    }
    averages = [(name, key, key) for name in AVERAGES if name != "samples avg" for key in METRICS]
    reasons = []
    for name, column, metric in (("accuracy", "f1", "recall"), *averages):
        weights = [1 if name == "macro avg" else support for support, _ in classes]
        ends = [
            sum(w * ranges[metric][end] for w, (_, ranges) in zip(weights, classes, strict=True)) / max(1, sum(weights))
            for end in (0, 1)
        ]
        if name == "micro avg":
            ends = [*pooled.get(metric, ends)]
        number = report.get(name, {}).get(column)
        if number and (ends[1] < number.low or ends[0] > number.high):
            what = name if name == "accuracy" else f"{name} {column}"
            reasons.append(f"{what} {number} cannot be: the {metric} of the classes gives {number.format(*ends)}")
    if not OF_SOME & report.keys() and not least <= images <= most:
        made = " to ".join(dict.fromkeys((f"{least:,.0f}", f"{most:,.0f}"))) + " predictions"
        reasons.append(f"precision and recall cannot all be: they make {made} for {spelled(images, 'image')}")
    return reasons
