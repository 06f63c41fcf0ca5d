"""Numbers that cannot be: rows of a table, published or measured, that no experiment can have given, and why.

A printed number stands for an interval (`raybench.printed`); a row is named only if no accuracies whatsoever would
print it. That is the reasoning of GRIM (Brown and Heathers, Soc. Psychol. Personal. Sci. 8, 2017: the mean of n counts
is a multiple of 1 / n), of GRIMMER (Anaya, PeerJ Preprints 4:e2400, 2016: the same for standard deviations) and of
SPRITE (Heathers and others, PeerJ Preprints 6:e26968, 2018: the samples behind statistics). Only `sameness` is a matter
of chance. `check_suite` and `check_trials` are what a command needs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import pandas as pd

from raybench.printed import ANY, Finding, Number, Row, count_of, decimals_of, not_a_share, not_whole, read, spelled
from raybench.records import FINISHED, OWN_COLUMN, TrialRow
from raybench.suite import Reference, Suite

EXACT = 6
"""Decimals to which measured numbers are read, more than tables show."""
DENOMINATORS = (0, 1)
"""What may be subtracted from n under a published std: few tables say it."""
IMAGES = 10_000
"""Test images, where nothing says how many there were."""
DISAGREEMENT = 0.02
"""Share of the test images, at least, that one of two different training runs has right and the other wrong."""
RARE = 1e-3
"""Equal accuracies are named where chance gives them less often."""
SHARES = ("min", "mean", "max")


# ---------------------------------------------------------------------------------------------------------------------
# A row of statistics


def check_row(
    row: Row,
    *,
    decimals: Mapping[str, int] | None = None,
    test_size: int | None = None,
    ddof: Sequence[int] = DENOMINATORS,
) -> list[str]:
    """Return why ``row`` cannot be, one line per reason; nothing if it can.

    Args:
        row: ``n``, ``mean``, ``std``, ``min``, ``max`` (accuracies, 0 to 1) and ``epochs`` (their mean), as numbers or
            as printed; any may be missing, other keys are ignored.
        decimals: to which the numbers of a column were printed; else as many as the number needs.
        test_size: test images; accuracies are then whole numbers of them.
        ddof: what may be subtracted from n under the std, which must be possible with one of them.
    """
    places = decimals or {}
    given = {key: read(row.get(key), key, places.get(key)) for key in (*SHARES, "std", "epochs")}
    shares = {key: number for key in SHARES if (number := given[key])}
    n = count_of(row.get("n"), "n")
    if outside := [reason for key, number in shares.items() for reason in not_a_share(key, number)]:
        return outside  # percent, perhaps: all else would follow from that
    reasons = _order(n, shares) or _spread(n, shares, given["std"], ddof)
    if test_size:
        for key, number in shares.items():
            reasons += not_whole(key, number, test_size, runs=n if key == "mean" else 1)
    epochs = given["epochs"]
    if n and epochs and not epochs.whole(n):
        reasons.append(f"epochs {epochs} cannot be: in {spelled(n, 'run')} {epochs.beside(n, 'epochs')}")
    return reasons


def _order(n: int | None, shares: Mapping[str, Number]) -> list[str]:
    """Say which of min <= mean <= max does not hold; of one value all three are the same."""
    pairs = [(a, b) for a, b in (("min", "mean"), ("mean", "max"), ("min", "max")) if a in shares and b in shares]
    above = [f"{a} {shares[a]} is above {b} {shares[b]}" for a, b in pairs if shares[a].low > shares[b].high]
    if above or n != 1:
        return above
    apart = [(a, b) for a, b in pairs if shares[b].low > shares[a].high]
    return [f"{a} {shares[a]} and {b} {shares[b]} cannot both be: n is 1, and one value is both" for a, b in apart]


def _spread(n: int | None, shares: Mapping[str, Number], std: Number | None, ddof: Sequence[int]) -> list[str]:
    """Say if ``n`` values with these extremes cannot have this mean, or with it not this standard deviation."""
    low, mean, high = (shares.get(key, ANY) for key in SHARES)
    if std and std.high < 0:
        return [f"std {std} cannot be: it is never negative"]
    if n == 1 and std and std.low > 0:
        return [f"std {std} cannot be: n is 1, and one value has no spread"]
    if n is None and std and std.low > (most := max(0.0, high.high - low.low) / math.sqrt(2)):  # two values, ddof=1
        return [f"std {std} cannot be: {_values(n, shares)} have one of at most {std.format(most)}"]
    if n is None or n < 2:
        return []
    means = mean_bounds(n, low, high)
    if mean.low > means[1] or mean.high < means[0]:
        extremes = {key: number for key, number in shares.items() if key != "mean"}
        return [f"mean {mean} cannot be: {_values(n, extremes)} have one of {mean.format(*means)}"]
    return _std(n, shares, std, squares_bounds(n, low, high, mean), ddof) if std else []


def _std(
    n: int, shares: Mapping[str, Number], std: Number, squares: tuple[float, float], ddof: Sequence[int]
) -> list[str]:
    bounds = [[math.sqrt(end / (n - less)) for end in squares] for less in ddof]
    if any(least <= std.high and std.low <= most for least, most in bounds):
        return []
    if all(std.high < least for least, _ in bounds):
        limit, ends = "at least ", [[least] for least, _ in bounds]
    elif all(std.low > most for _, most in bounds):
        limit, ends = "at most ", [[most] for _, most in bounds]
    else:
        limit, ends = "", bounds
    names = [f"n-{less}" if less else "n" for less in ddof]
    names[0] += " in the denominator"
    possible = " or ".join(f"{std.format(*end)} ({name})" for end, name in zip(ends, names, strict=True))
    return [f"std {std} cannot be: {_values(n, shares)} have a standard deviation of {limit}{possible}"]


def mean_bounds(n: int, low: Number, high: Number) -> tuple[float, float]:
    """Return the smallest and the largest mean of ``n`` values that touch both extremes: all but one at one end."""
    most_min, least_max = min(low.high, high.high), max(high.low, low.low)
    return ((n - 1) * low.low + least_max) / n, ((n - 1) * high.high + most_min) / n


def squares_bounds(n: int, low: Number, high: Number, mean: Number) -> tuple[float, float]:
    """Return the smallest and the largest sum of squared deviations that ``n`` values can have from their mean.

    Their minimum a lies in ``low``, their maximum b in ``high``, their mean c in ``mean``, which must reach into
    `mean_bounds`. Some real numbers reach either bound; that accuracies are multiples of 1 / N is left aside.

    Smallest: the n - 2 values between the extremes are equal, by convexity, at what keeps the mean. With d = b - a and
    e = c - (a + b) / 2 the sum is ``d**2 / 2 + 2 * n / (n - 2) * e**2``. That is d**2 / 2 of the smallest d (a bound
    of Szokefalvi-Nagy, 1918) where the mean can be midway then; else see `_off_middle`.

    Largest: more room is better, so a = ``low.low`` and b = ``high.high``, and all values but one are at an end. With
    u = n * (c - a) / d, whose whole part counts the values at b and whose fraction f places the odd one, the sum is
    ``d**2 * (u * (n - u) / n - f * (1 - f))``: the bound of Bhatia and Davis (Am. Math. Mon. 107, 2000), less what the
    odd one costs. Between whole u it is convex, so the largest is at a whole u or at an end of what c allows.
    """
    means = mean_bounds(n, low, high)
    c = max(mean.low, means[0]), min(mean.high, means[1])
    most_min, least_max = min(low.high, high.high), max(high.low, low.low)
    middle = [(most_min + least_max) / 2] * 2 if most_min < least_max else [least_max, most_min]  # all may be equal
    if c[0] > middle[1]:
        smallest = _off_middle(n, most_min, (max(least_max, most_min), high.high), c[0])
    elif c[1] < middle[0]:
        smallest = _off_middle(n, -least_max, (-min(least_max, most_min), -low.low), -c[1])
    else:
        smallest = max(0.0, least_max - most_min) ** 2 / 2

    d = high.high - low.low
    ends = [min(max(n * (mean - low.low) / d, 0.0), n) for mean in c]
    whole = min(max(n // 2, math.ceil(ends[0])), math.floor(ends[1]))  # below the first end where none is between
    largest = d**2 * max(u * (n - u) / n - (u % 1) * (1 - u % 1) for u in (*ends, max(whole, ends[0])))
    return smallest, max(smallest, largest)


def _off_middle(n: int, a: float, maxima: tuple[float, float], c: float) -> float:
    """Return the smallest sum of squared deviations where the mean ``c`` is above the middle of the extremes.

    The minimum is then at ``a``, the largest it can be, which shrinks d and e both. A larger maximum b shrinks e and
    widens d: the sum is a parabola in b, above the b that puts the other values at b too.
    """
    weight = 2 * n / (n - 2) if n > 2 else 0.0  # of two values, a and c leave one b
    lowest = (a * (1 - weight / 2) + weight * c) / (1 + weight / 2)
    b = min(max(lowest, maxima[0], (n * c - a) / (n - 1)), maxima[1])
    return (b - a) ** 2 / 2 + weight * (c - (a + b) / 2) ** 2


def _values(n: int | None, shares: Mapping[str, Number]) -> str:
    """Say what is known of the values: ``five values from 0.634 to 0.686 with mean 0.653``."""
    words = (("from", "min"), ("to" if "min" in shares else "up to", "max"), ("with mean", "mean"))
    known = [f"{word} {shares[key]}" for word, key in words if key in shares]
    return " ".join([spelled(n, "value") if n else "values", *known])


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def check_rows(
    rows: Sequence[Row],
    *,
    decimals: Mapping[str, int] | None = None,
    test_size: int | None = None,
    ddof: Sequence[int] = DENOMINATORS,
) -> list[Finding]:
    """Return what `check_row` says of each row, and what `sameness` says of those of single runs.

    Keys that are no statistic are the row's labels; ``decimals``, if not given, are `decimals_of` the rows.
    """
    decimals = decimals_of(rows, [*SHARES, "std", "epochs"]) if decimals is None else decimals
    findings, single = [], []
    for row in rows:
        where = {name: label for name, label in row.items() if name not in Reference.model_fields}
        reasons = check_row(row, decimals=decimals, test_size=test_size, ddof=ddof)
        findings += [Finding(where, reason) for reason in reasons]
        accuracy = read(row.get("mean"), "mean", decimals.get("mean"))
        n = count_of(row.get("n"), "n")
        if accuracy and (n == 1 or (n is None and pd.isna(row.get("std")))):
            single.append((where, accuracy))
    if reason := sameness([accuracy for _, accuracy in single], test_size):
        first = single[0][0]
        shared = {name: label for name, label in first.items() if all(where.get(name) == label for where, _ in single)}
        findings.append(Finding(shared, reason))
    return findings


def check_suite(suite: Suite, test_size: int | None = None) -> list[Finding]:
    """Return what is wrong with the published rows of ``suite``; ``test_size`` is that of the publication."""
    return check_rows(suite.reference, test_size=test_size)


def check_trials(rows: pd.DataFrame) -> list[Finding]:
    """Return what is wrong with stored trials, columns as in `records.TrialRow`: each by itself, and all together.

    A trial is wrong if an accuracy is no share of the images it was measured on, if it trained longer than planned, or
    if it finished without an accuracy.
    """
    known = {f.name for f in fields(TrialRow)}
    columns = [*OWN_COLUMN, *(name for name in rows.columns if name not in known)]
    columns = [name for name in columns if rows[name].nunique() > 1]
    findings, accuracies, sizes = [], [], set()
    for row in rows.to_dict("records"):
        where = {str(name): row[name] for name in (*columns, "trial_id")}
        train = json.loads(row["settings"]).get("train", {})
        findings += [Finding(where, reason) for reason in _trial(row, train.get("epochs"))]
        accuracy = read(row["test_accuracy"], "test_accuracy", EXACT)
        if accuracy and row["status"] in FINISHED and not train.get("smoke"):
            accuracies.append(accuracy)
            sizes.add(count_of(row["test_images"], "test_images"))
    if reason := sameness(accuracies, sizes.pop() if len(sizes) == 1 else None):
        findings.append(Finding({}, reason))
    return findings


def _trial(row: Mapping[Any, Any], planned: int | None) -> list[str]:
    """Say what is wrong with one stored trial."""
    reasons = []
    for name, images in (
        ("train_accuracy", ""),
        ("val_accuracy", "validation_images"),
        ("test_accuracy", "test_images"),
    ):
        if accuracy := read(row[name], name, EXACT):
            size = count_of(row[images], images) if images else None
            reasons += not_a_share(name, accuracy) or (not_whole(name, accuracy, size) if size else [])
    epochs = int(row["epochs"])
    if planned is not None and epochs > planned:
        reasons.append(f"trained {spelled(epochs, 'epoch')} where {planned} were planned")
    if not pd.isna(row["best_epoch"]) and not 1 <= row["best_epoch"] <= epochs:
        reasons.append(f"best_epoch {row['best_epoch']:.0f} cannot be: it trained {spelled(epochs, 'epoch')}")
    if row["status"] in FINISHED and pd.isna(row["test_accuracy"]):
        reasons.append(f"{row['status']}, but has no test_accuracy")
    return reasons


def sameness(accuracies: Sequence[Number], test_size: int | None = None) -> str | None:
    """Return a reason to doubt accuracies of different runs that are all the same, or None.

    Two runs that differ in seed or settings disagree about some images, and chance has its part in who is right: if a
    share `DISAGREEMENT` of N images is right in one of them only, an accuracy scatters by sqrt(`DISAGREEMENT` / 2 / N)
    (by less only near 0 and 1). That k accuracies then fall into one unit of their last decimal, or of 1 / N, has the
    chance ``(unit / (sqrt(2 * pi) * scatter)) ** (k - 1) / sqrt(k)``. With four decimals and 10,000 images that is 3 %
    for two rows, which happens, and 0.09 % for three; with two decimals any number of rows may agree. So: all rows
    equal, at least three, and a chance below `RARE`. A few that are equal among others mean nothing: a table has many
    pairs.
    """
    k, size = len(accuracies), test_size or IMAGES
    if k < 3 or len({accuracy.text for accuracy in accuracies}) > 1:
        return None
    value = float(accuracies[0].text)
    scatter = math.sqrt(max(0.0, min(DISAGREEMENT / 2, value, 1 - value)) / size)
    unit = max(10.0 ** -accuracies[0].decimals, 1 / size)
    if unit >= math.sqrt(2 * math.pi) * scatter:
        return None
    if (unit / (math.sqrt(2 * math.pi) * scatter)) ** (k - 1) / math.sqrt(k) > RARE:
        return None
    return (
        f"accuracy {accuracies[0]} in all {spelled(k, 'row')}: runs that differ agree so in fewer than one of"
        f" {1 / RARE:,.0f} tables; what was measured may never have changed"
    )
