"""Published numbers beside measured ones: which belong together, and whether they say the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from raybench.axes import Axis, Label, assigned_paths
from raybench.dotted import full_path
from raybench.errors import SuiteError
from raybench.grid import Trial, cell_settings, differences
from raybench.suite import Reference, Suite, build
from raybench.yamlfile import Complaints

CONFIDENCE = 0.95
NO_PROTOCOL = (
    *("resources", "dataset.stream", "dataset.seed", "train.test_every_epoch", "repeat"),
    *("name", "about", "trials", "reference", "keep_weights", "ood", "track"),
)
"""Keys of a suite, each with all below it, that its numbers do not depend on, but for their noise: with other values of
these, trials are compared with what was published. Every other key is protocol."""


def said_of(references: Iterable[Mapping[str, Any]]) -> str:
    """Return what verdicts mean, for the header of their table."""
    without_n = any("std" in reference and "n" not in reference for reference in references)
    unknown = " (a published std without n as it is)" if without_n else ""
    return (
        f"verdict: sigma is the standard error of the difference, sqrt(std²/n + published std²/n){unknown};"
        " consistent: within Welch's t interval at 95 %, each row on its own"
    )


def published_row(suite: Suite, labels: Mapping[str, Label | None]) -> dict[str, Any]:
    """Return the first reference row whose axes all have the cell's labels, or an empty one."""
    for reference in suite.reference:
        if all(labels.get(axis) == label for axis, label in reference.items() if axis not in Reference.model_fields):
            return reference
    return {}


def verdict(
    n: int, mean: float | None, std: float | None, published: Mapping[str, Any], why_not: str = ""
) -> tuple[float | None, str | None]:
    """Return by how many standard errors a measured and a published mean differ, and what that says.

    The standard error of the difference is ``sqrt(std²/n + published std²/published n)``. Where no n was published,
    the published std is taken as it is, as that of a single result. The two are ``consistent`` if the difference is
    no larger than ``t(0.975, df)`` of it, as in Welch's t test (Biometrika 34, 1947), with the Welch-Satterthwaite
    ``df``; an unknown n adds nothing to these. One difference in twenty is called one by chance.

    Args:
        n, mean, std: of the trials; std with n - 1 in the denominator.
        published: the keys ``mean``, ``std``, ``n`` of a reference row, or some of them.
        why_not: what differs in the protocol; then nothing is compared.

    Returns:
        sigma (None where it cannot be known), and one of ``consistent``, ``differs by 3.1 sigma``,
        ``not comparable: <why>``, ``no verdict: <why>``; None where there is nothing to compare.
    """
    if mean is None or published.get("mean") is None:
        return None, None
    if why_not:
        return None, f"not comparable: {why_not}"
    if std is None:
        return None, "no verdict: n = 1, so the spread is not known"
    if published.get("std") is None:
        return None, "no verdict: no std was published"
    ours, theirs = std**2 / n, published["std"] ** 2 / (published.get("n") or 1)
    if ours + theirs == 0:
        return None, "no verdict: neither varies"
    sigma = abs(mean - published["mean"]) / math.sqrt(ours + theirs)
    degrees = ours**2 / (n - 1)
    if (published.get("n") or 1) > 1:
        degrees += theirs**2 / (published["n"] - 1)
    from scipy.special import stdtrit  # scipy.stats, which has the same number, takes most of a second to import

    df = (ours + theirs) ** 2 / degrees if degrees else math.inf
    if sigma <= float(stdtrit(df, (1 + CONFIDENCE) / 2)):
        return sigma, "consistent"
    return sigma, f"differs by {sigma:.1f} sigma"


class Protocol:
    """What the trials of a run differ in from those of the suite as its file has it, to which published rows belong."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.own: Suite | None = None
        """The suite without ``--set``; None where it is not known, or is none without them."""
        if suite.written is not None and suite.written != suite.document:
            try:
                written = copy.deepcopy(suite.written)
                self.own = build(written, Complaints(suite.source), suite.folder, trusted=True)
                self._cells = cell_settings(self.own)
            except SuiteError:
                self.own = None

    def changed(self, trial: Trial) -> str:
        """Return what differs for a trial's cell, as ``train.epochs 8 instead of 100, ...``, or nothing."""
        if self.suite.written == self.suite.document:
            return ""
        if self.own is None:
            return ", ".join(f"--set {text}" for text in self.suite.sets if not _harmless(text.partition("=")[0]))
        if trial.cell not in self._cells:
            return "the suite file has no such cell"
        return ", ".join([*self._search(self.own), *self._settings(self._cells[trial.cell], trial)])

    def _settings(self, own: Mapping[str, Any], trial: Trial) -> Iterator[str]:
        searched = {path for axis in self.suite.axes if axis.role == "search" for path in assigned_paths(axis)}
        for path, before, now in differences(own, trial.settings):
            if not _harmless(path) and not any(f"{path}.".startswith(f"{one}.") for one in searched):
                yield f"{path} {now} instead of {before}"

    def _search(self, own: Suite) -> Iterator[str]:
        """Yield what differs in the points that are tried, and in what becomes of them."""
        searches = [{axis.name: axis for axis in suite.axes if axis.role == "search"} for suite in (own, self.suite)]
        for name in dict.fromkeys([*searches[0], *searches[1]]):
            before, now = (search.get(name) for search in searches)
            if before != now:
                yield f"search.{name} {_values(now)} instead of {_values(before)}"
        for key in ("draw", "prune", "confirm") if self.suite.searches else ():
            if getattr(own, key) != getattr(self.suite, key):
                yield f"another {key}"


def _harmless(path: str) -> bool:
    return any(f"{full_path(path.strip())}.".startswith(f"{key}.") for key in NO_PROTOCOL)


def _values(axis: Axis | None) -> str:
    if axis is None:
        return "none"
    return "{} to {}".format(*axis.range.ends) if axis.range else f"[{', '.join(map(str, axis.labels))}]"
