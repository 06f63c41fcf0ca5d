"""Telling images from outside of the data by one number each: thresholds, and how well they do. Arrays in, rows out.

Throughout, ``inside`` and ``outside`` are scores of images of the data and from outside of it, and are larger for
images that are taken for those of the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raybench.axes import Label
from raybench.cells import Cells, images_of, listed
from raybench.grid import counted
from raybench.metrics import selection
from raybench.records import Activations, DetectionRow, Score
from raybench.settings import DatasetSettings
from raybench.suite import OutOfDistribution
from raybench.table import Column, Table

Numbers = NDArray[np.floating[Any]]
Judged = NDArray[np.bool_]


def auroc(inside: Numbers, outside: Numbers) -> float:
    """Return the area under the ROC curve: how often an image from inside scores higher than one from outside, ties
    half (Mann and Whitney's U over the number of pairs)."""
    ordered = np.sort(outside)
    below = np.searchsorted(ordered, inside, "left")
    not_above = np.searchsorted(ordered, inside, "right")
    return float((below + not_above).sum() / (2 * len(inside) * len(outside)))


def fpr_at_tpr(inside: Numbers, outside: Numbers, tpr: float = 0.95) -> float:
    """Return the share of images from outside that are accepted by the largest threshold which accepts ``tpr`` or more
    of those from inside; an image is accepted if its score is not below the threshold."""
    needed = math.ceil(tpr * len(inside) - 1e-9)
    threshold = np.sort(inside)[len(inside) - needed]
    return float((outside >= threshold).mean())


def best_threshold(inside: Numbers, outside: Numbers) -> float:
    """Return the first threshold that tells most images rightly, of those halfway between two neighbouring scores, and
    of one that takes all or none for images from outside."""
    scores = np.concatenate([inside, outside]).astype(np.float64)
    order = np.argsort(scores, kind="stable")
    scores, is_in = scores[order], (order < len(inside)).astype(np.int64)
    # With a threshold after k scores, these count: those from outside among the k, those from inside among the rest.
    right = np.concatenate([[0], np.cumsum(1 - is_in)]) + np.concatenate([np.cumsum(is_in[::-1])[::-1], [0]])
    possible = np.concatenate([[True], scores[1:] > scores[:-1], [True]])
    k = int(np.argmax(np.where(possible, right, -1)))
    if k == 0:
        return float(scores[0])
    return float(np.nextafter(scores[-1], np.inf) if k == len(scores) else (scores[k - 1] + scores[k]) / 2)


def accuracy(inside: Numbers, outside: Numbers, threshold: float) -> float:
    """Return the share of images that ``threshold`` tells rightly: those below it are from outside."""
    limit = np.float64(threshold)  # numpy would round a plain number to float32, where it may be a neighbouring score
    return float(((inside >= limit).sum() + (outside < limit).sum()) / (len(inside) + len(outside)))


def judge(inside: Numbers, outside: Numbers, judged_in: Judged, judged_out: Judged) -> dict[str, Any]:
    """Return the numbers of a `DetectionRow`; images that are not judged choose the threshold."""
    seen_in, seen_out = inside[judged_in], outside[judged_out]
    threshold = best_threshold(inside[~judged_in], outside[~judged_out])
    return {
        "threshold": threshold,
        "accuracy": accuracy(seen_in, seen_out, threshold),
        "peek_accuracy": accuracy(seen_in, seen_out, best_threshold(seen_in, seen_out)),
        "auroc": auroc(seen_in, seen_out),
        "fpr95": fpr_at_tpr(seen_in, seen_out),
        "n_in": len(seen_in),
        "n_out": len(seen_out),
        "n_choosing": len(inside) + len(outside) - len(seen_in) - len(seen_out),
    }


def name_of(dataset: DatasetSettings) -> str:
    """Return what a dataset outside is called: its name, and its folder where it has one."""
    return f"{dataset.name}/{dataset.folder}" if dataset.folder else dataset.name


def settings_text(ood: OutOfDistribution) -> str:
    """Return what a `DetectionRow` says of the suite's ``ood``: another text is of other images or layers."""
    return json.dumps(ood.model_dump(), sort_keys=True)


def rows_of(
    trial_id: str,
    ood: OutOfDistribution,
    fingerprint: str,
    activations: Sequence[Activations],
    kinds: Mapping[str, str],
) -> list[DetectionRow]:
    """Return a row for each score of a trial.

    Args:
        fingerprint: of the dataset outside.
        kinds: class of each layer.
    """
    rows = []
    for score in activations:
        is_in = score.dataset == "in"
        numbers = judge(score.value[is_in], score.value[~is_in], score.judged[is_in], score.judged[~is_in])
        rows.append(
            DetectionRow(
                trial_id=trial_id,
                dataset=name_of(ood.dataset),
                score=score.score,
                layer=score.layer,
                kind=None if score.layer is None else kinds[score.layer],
                out_fingerprint=fingerprint,
                settings=settings_text(ood),
                **numbers,
            )
        )
    return rows


SAID = ("threshold", "accuracy", "out_fingerprint", "settings")


def frame(rows: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Return the judged images of ``activations/``, each with the score's name for people as ``name``, and `SAID`: what
    ``ood/`` says of its trial, score and dataset outside."""
    keys = ["trial_id", "score", "layer", "outside"]
    of = zip(*(_filled(rows)[column] for column in ("score", "layer", "kind")), strict=True)
    names = [f"layer {layer} ({kind})" if kind else NAMES[score] for score, layer, kind in of]
    known = rows.assign(outside=rows["dataset"], name=names)[[*keys, "name", *SAID]]
    judged = scores[scores["judged"]]
    if judged["outside"].isna().any():  # from files of before, which hold one dataset of each trial
        only = rows.drop_duplicates("trial_id", keep="last").set_index("trial_id")["dataset"]
        judged = judged.assign(outside=judged["outside"].fillna(judged["trial_id"].map(only)))
    return judged.merge(known, on=keys)  # pandas takes nulls for equal


def _filled(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(layer=rows["layer"].fillna(""), kind=rows["kind"].fillna(""))


# ---------------------------------------------------------------------------------------------------------------------
# The table

NAMES: dict[Score, str] = {"mean_activation": "mean activation", "max_softmax": "max softmax", "energy": "energy"}
COLUMNS = (
    Column("outside", "outside", align="left"),
    Column("score", "score", align="left"),
    Column("layer", "layer", align="left"),
    Column("kind", "kind", align="left"),
    Column("n", "n", of="planned"),
    Column("planned", "planned"),
    Column("threshold", "threshold", ".4g"),
    Column("accuracy", "accuracy", ".4f"),
    Column("accuracy_std", "std", ".4f"),
    Column("peek_accuracy", "peek", ".4f"),
    Column("auroc", "AUROC", ".4f"),
    Column("fpr95", "FPR95", ".4f"),
)
MEANS = ("threshold", "accuracy", "peek_accuracy", "auroc", "fpr95")


def table(rows: pd.DataFrame, cells: Cells, suite: str, asked: Sequence[OutOfDistribution]) -> Table:
    """Return means over the trials of each cell, for each dataset outside, score and layer.

    Args:
        rows: of ``ood/``; those of other trials or settings are left out, and a note says of which datasets.
        cells: what `raybench.cells.find_cells` found in a suite's results.
        suite: its name.
        asked: which datasets outside, in their order.
    """
    stored = rows[rows["trial_id"].isin(cells.finished["trial_id"])]
    parts = [stored[stored["settings"] == settings_text(ood)] for ood in asked]
    lines: list[tuple[Label | None, ...]] = []
    for labels, members, planned in zip(cells.labels, cells.members, cells.planned, strict=True):
        for part in parts:
            here = part[part["trial_id"].isin([trial.id for trial in members])]
            lines += ((*labels, *line) for line in _lines(here, planned))
    return Table(
        suite=suite,
        title=f"{suite}: images from outside of the data",
        header=(*_header(parts, asked, selection(cells.best)), *cells.header),
        warnings=cells.warnings,
        columns=(*(Column(axis, axis, align="left") for axis in cells.axes), *COLUMNS),
        rows=tuple(lines),
        notes=(*_notes(parts, cells), *_mixed(parts, cells, asked), *_others(stored, asked), *cells.notes),
    )


def _header(parts: Sequence[pd.DataFrame], asked: Sequence[OutOfDistribution], rule: str) -> Iterable[str]:
    names = [name_of(ood.dataset) for ood in asked]
    yield f"inside: the test images of each trial; outside: test images of {', '.join(names)}"
    yield "an image is taken for one from outside if its score is below the threshold"
    for name, rows in zip(names, parts, strict=True):
        of = f" of {name}" if len(names) > 1 else ""
        for n_in, n_out, choosing in sorted({*zip(rows["n_in"], rows["n_out"], rows["n_choosing"], strict=True)}):
            yield f"judged: {n_in:,} images from inside and {n_out:,} from outside{of}; {choosing:,} others choose it"
    yield "accuracy: share told rightly; peek: with a threshold that the judged images choose themselves (report 004)"
    yield "AUROC, and FPR95, the share from outside that is accepted where 95 % from inside are, need no threshold"
    yield "mean over n trials; std: of the accuracy, sample standard deviation (ddof=1)"
    yield rule


def _lines(rows: pd.DataFrame, planned: int) -> Iterable[tuple[Label | None, ...]]:
    """Yield the columns after those of the axes, layers in the order in which they were stored."""
    groups = _filled(rows).groupby(["score", "layer"], sort=False)
    for _, members in groups:
        first = members.iloc[0]
        values: dict[str, Label | None] = {name: float(members[name].mean()) for name in MEANS}
        values |= {
            "outside": first["dataset"],
            "score": NAMES[first["score"]],
            "layer": first["layer"] or None,
            "kind": first["kind"] or None,
            "n": len(members),
            "planned": planned,
            "accuracy_std": float(members["accuracy"].std()) if len(members) > 1 else None,
        }
        yield tuple(values[column.name] for column in COLUMNS)


def _notes(parts: Sequence[pd.DataFrame], cells: Cells) -> Iterable[str]:
    if lacking := len(cells.finished) - min(rows["trial_id"].nunique() for rows in parts):
        yield f"{counted(lacking, 'finished trial')} in no number: not asked, or without weights"


def _mixed(parts: Sequence[pd.DataFrame], cells: Cells, asked: Sequence[OutOfDistribution]) -> Iterable[str]:
    """Say where trials were asked about other images of one name, as after a folder got more of them."""
    images = {trial.id: images_of(trial) for members in cells.members for trial in members}  # also decide on the size
    for ood, rows in zip(asked, parts, strict=True):
        for _, prints in rows["out_fingerprint"].groupby(rows["trial_id"].map(images)):
            if prints.nunique() > 1:
                yield f"warning: images of {name_of(ood.dataset)} differ, fingerprints {listed(prints)}"


def _others(stored: pd.DataFrame, asked: Sequence[OutOfDistribution]) -> Iterable[str]:
    """Say of which other datasets scores lie beside those that are shown."""
    names = {name_of(ood.dataset) for ood in asked}
    if others := [name for name in dict.fromkeys(stored["dataset"]) if name not in names]:
        yield f"stored too, and shown where --dataset names them: {', '.join(others)}"
