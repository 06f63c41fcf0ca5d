"""What is stored of a trial: the row types, their meaning, and the version of the schema.

The classes below are the contract of ``results/``: each field is one Parquet column. Columns are only ever added, with
a default; anything else bumps `SCHEMA_VERSION`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

SCHEMA_VERSION = 1

Status = Literal["completed", "stopped_early", "pruned", "failed"]
STATUSES: tuple[Status, ...] = ("completed", "stopped_early", "pruned", "failed")
FINISHED: tuple[Status, ...] = ("completed", "stopped_early")
"""Trained as the suite asked: only these enter a mean."""
DONE: tuple[Status, ...] = (*FINISHED, "pruned")
"""Not run again by the same command; a failed trial is."""

OWN_COLUMN = ("dataset", "model", "augmentation", "seed", "lr")
"""Axes that have a column in every suite; the others are `TrialRow.axes`, a column each."""

_SPREAD = ("n", "mean", "std", "min", "max", "epochs")
_TESTED = ("letters", "interval_low", "interval_high", "p_value", "p_holm", "verdict")
_SIDES = (f"{side}_{name}" for side in ("first", "second") for name in ("n", "planned", "mean"))
_OF_CLASSES = ("class", "precision", "recall", "f1", "f1_std", "support")
_OUTSIDE = ("outside", "score", "layer", "kind", "threshold", "accuracy", "accuracy_std", "peek_accuracy")
STATISTICS = frozenset(
    {
        *(*_SPREAD, "planned", "difference", *(f"published_{name}" for name in _SPREAD), *_TESTED, *_SIDES),
        *("sigma", "best_val", "optimism", "softmax", "vote", "gain"),
        *(*_OF_CLASSES, *_OUTSIDE, "auroc", "fpr95", "in_mean"),
    }
)
"""Columns beside those of axes in any table, but for those of results; like those, no axis may be called so."""

Stage = Literal["grid", "search", "confirm", "former"]

ErrorClass = Literal["out_of_memory", "diverged", "data", "weights", "crashed", "node_lost", "error"]


def measured(default: Any = None) -> Any:
    """A field that depends on the machine or the moment and not on what was computed; equal trials may differ in it."""
    return field(default=default, metadata={"measured": True})


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRow:
    """The one row of a trial in ``trials/``. The suite's other axes are further columns, one each (`axes`)."""

    trial_id: str
    suite: str
    stage: Stage = "grid"
    """Which part of the suite the trial belongs to: ``grid``, or where points are searched ``search`` and ``confirm``.
    The search's trial of a point that won is one of those that confirm it. ``former``: of a search or a winner that the
    suite no longer has."""
    draw: int | None = None
    """The number of its point in the study that drew it, from 0."""
    dataset: str
    model: str
    augmentation: str
    seed: int
    lr: float
    """Learning rate at the first step."""
    axes: dict[str, Any] = field(default_factory=dict)
    """Labels of the axes that have no column of their own, in the suite's order."""
    status: Status
    epochs: int = 0
    """Epochs trained; of a pruned trial, those up to the one at which it lost."""
    best_epoch: int | None = None
    """The epoch (from 1) whose weights gave ``test_accuracy``: the first best one of ``selection``."""
    selection: str
    """The metric that chose ``best_epoch``, e.g. ``val_accuracy``."""
    validation: str
    """What the validation images were: ``size 5000``, ``fraction 0.1``, ``split``, or ``test`` (the test images)."""
    train_loss: float | None = None
    """Mean loss of ``best_epoch`` over the images as they were trained on, with any augmentation and dropout, as Keras
    has it."""
    train_accuracy: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None
    """Share of the test images, 0 to 1, right with the weights of ``best_epoch``."""
    train_images: int | None = None
    validation_images: int | None = None
    test_images: int | None = None
    parameters: int | None = None
    error_class: ErrorClass | None = None
    error: str | None = None
    """The exception in one line."""
    traceback: str | None = None
    settings: str
    """The resolved settings of the trial as JSON: with the seed, all that is needed to run it again."""
    schema_version: int = SCHEMA_VERSION

    dataset_fingerprint: str | None = None
    weights_fingerprint: str | None = None
    threads: int | None = None
    workers: int | None = None
    undecided: bool | None = measured()
    """A search may yet find that this trial had lost, once those it is compared with have got as far."""
    epochs_run: int | None = measured()
    """All epochs trained: of a pruned trial more than ``epochs``, where the trials it is compared with came later."""
    attempts: int | None = measured()
    """How often the run that stored the row had started the trial: more than once where a process or node was lost."""
    train_seconds: float | None = measured()
    """Seconds in training steps alone, without evaluation, summed over the epochs."""
    wall_seconds: float | None = measured()
    """Seconds from the trial's start to its row."""
    images_per_second: float | None = measured()
    """Training images per second of ``train_seconds``."""
    device: str | None = measured()
    host: str | None = measured()
    started_at: str | None = measured()
    """UTC, ISO 8601."""
    raybench_version: str | None = measured()
    python_version: str | None = measured()
    torch_version: str | None = measured()
    torchvision_version: str | None = measured()
    timm_version: str | None = measured()
    ray_version: str | None = measured()
    numpy_version: str | None = measured()
    git_commit: str | None = measured()
    """Commit of the directory the suite lies in, where that is a git checkout."""
    git_dirty: bool | None = measured()


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRow:
    """One epoch of a trial, in ``epochs/``."""

    trial_id: str
    epoch: int
    """From 1."""
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    test_loss: float | None = None
    """Known for every epoch with ``train.test_every_epoch``, else for the best and the last one."""
    test_accuracy: float | None = None
    lr: float
    """Learning rate at the epoch's last step."""
    seconds: float = measured(0.0)
    """Wall seconds of the epoch, evaluation included."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Predictions:
    """The n test images at the selected epoch, in ``predictions/``: one row per image, in the dataset's order."""

    index: np.ndarray
    """int32 [n]: row of the image in the dataset's test split."""
    label: np.ndarray
    """int16 [n]."""
    logits: np.ndarray
    """float16 [n, classes]; the prediction is the first largest of a row before it was rounded."""
    prediction: np.ndarray
    """int16 [n]."""


Score = Literal["mean_activation", "max_softmax", "energy"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionRow:
    """How well one score of one trial tells images from outside of the data, in ``ood/``.

    A score is larger for images that it takes for those of the data. The images are equally many from inside (the
    trial's test images) and from outside; half of each choose the threshold, the others are judged by it.
    """

    trial_id: str
    dataset: str
    """Name of the dataset outside, with its folder where it has one: ``imagefolder/other``."""
    score: Score
    """``mean_activation`` over all outputs of ``layer``; ``max_softmax``, the largest softmax of the logits;
    ``energy``, the logarithm of the sum of their exponentials (the negative energy at temperature 1)."""
    layer: str | None = None
    """Name of the module in the network; of scores of logits null."""
    kind: str | None = None
    """Class of that module, e.g. ``ReLU``."""
    threshold: float
    """An image is taken for one from outside if its score is smaller: the first of the values halfway between two
    neighbours that tells most of the choosing images rightly."""
    accuracy: float
    """Share of the judged images that the threshold tells rightly, 0 to 1; guessing gives 0.5."""
    peek_accuracy: float
    """The same with a threshold that the judged images chose themselves, as report 004 has it: too high."""
    auroc: float
    """Of the judged images: how often one from inside scores higher than one from outside, ties half."""
    fpr95: float
    """Share of the judged images from outside that are accepted by the largest threshold that accepts 95 % or more of
    those from inside."""
    n_in: int
    """Judged images from inside."""
    n_out: int
    """Judged images from outside."""
    n_choosing: int
    """Images that chose the threshold, inside and outside together."""
    out_fingerprint: str
    """Hash of the dataset outside, as ``dataset_fingerprint`` of the trial is of its own."""
    settings: str
    """The suite's ``ood`` as JSON, all defaults written out."""
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Activations:
    """The scores behind a `DetectionRow`, in ``activations/``: a row per image. ``score``, ``layer`` are as there."""

    score: Score
    layer: str | None
    outside: str
    """Name of the dataset outside, as ``dataset`` is there."""
    dataset: np.ndarray
    """Text [n]: ``in`` or ``out``."""
    index: np.ndarray
    """int32 [n]: row of the image in its dataset's test split."""
    judged: np.ndarray
    """Boolean [n]: false where the image helped to choose the threshold."""
    value: np.ndarray
    """float32 [n]: the score."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcome:
    """All that one trial leaves behind."""

    row: TrialRow
    epochs: tuple[EpochRow, ...] = ()
    predictions: Predictions | None = None
    weights: bytes | None = None
    """Of the selected epoch, as safetensors (`raybench.weights`), where the suite keeps them."""


def measured_columns(row: type[TrialRow | EpochRow] = TrialRow) -> list[str]:
    """Return the names of the fields in which equal trials may differ."""
    return [f.name for f in fields(row) if f.metadata.get("measured")]


def computed(row: TrialRow | EpochRow) -> dict[str, Any]:
    """Return the fields that the same trial must repeat bit for bit, wherever and whenever it runs."""
    left_out = measured_columns(type(row))
    return {f.name: getattr(row, f.name) for f in fields(row) if f.name not in left_out}
