"""The settings of one trial, section by section: what a suite may say under ``dataset``, ``model``, ``train``, ...

Every field has its default here and nowhere else. Unknown keys are refused. The JSON Schema that editors use is made
from these classes.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    field_validator,
    model_validator,
)

Metric = Literal["val_accuracy", "val_loss", "train_accuracy", "train_loss"]

PARTIAL = {"partial": True}
"""The validation context of settings that further axes complete: rules over several keys are not applied yet."""


class Section(BaseModel):
    """A block of a suite: read-only, and a typo is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ByName(BaseModel):
    """A block that may be written as its ``name`` alone."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if not isinstance(value, str | dict | ByName):
            raise ValueError(f"{value!r} is not right: must be a name or a mapping")
        return {"name": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler(core)]}


class Named(ByName):
    """A block that names a registered thing and passes every other key on to it as an option."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    name: str = Field(description="The registered name; all other keys are options of what it names.")

    @property
    def options(self) -> dict[str, Any]:
        """The keys besides ``name``."""
        return dict(self.__pydantic_extra__ or {})


class ModelSettings(Named):
    """``model: model1``, ``model: {name: mlp, hidden: [64]}`` or ``model: {name: "timm:resnet18", stem: small}``."""


class HeldOut(Section):
    """How many training images become the validation set: ``{size: 5000}`` or ``{fraction: 0.1}``."""

    size: int | None = Field(None, ge=1, description="This many images, the same share of every class.")
    fraction: float | None = Field(None, gt=0, lt=1, description="This share of the training images.")

    @model_validator(mode="after")
    def _exactly_one(self) -> HeldOut:
        if (self.size is None) == (self.fraction is None):
            raise ValueError("give either size or fraction")
        return self


class DatasetSettings(Section, ByName):
    """Which images, and how they are divided. The place they lie at is ``--data-dir``, never part of a suite."""

    name: str = Field(description="A registered dataset: `raybench list datasets`.")
    folder: str | None = Field(
        None, description="Folder below --data-dir that holds the images (`imagefolder`, `parquet`); relative."
    )
    image_size: int | None = Field(None, ge=1, description="Bring every image to this many pixels square.")
    validation: Literal["test", "split"] | HeldOut = Field(
        HeldOut(fraction=0.1, size=None),
        description="`{size: N}` or `{fraction: F}` of the training images, `split` for the dataset's own validation"
        " images, or `test` for the test images themselves (every table is then marked).",
    )
    train_size: int | None = Field(None, ge=1, description="Train on a class-balanced subset of this many images.")
    test_size: int | None = Field(None, ge=1, description="Test on a class-balanced subset of this many images.")
    seed: int = Field(0, ge=0, description="Draws the validation images and the subsets; the same for every trial.")
    stream: bool | None = Field(
        None,
        description="Read every batch from the decoded file instead of holding all images in memory; changes no"
        " number. Left out: where they take more than a tenth of the memory.",
    )

    @field_validator("folder")
    @classmethod
    def _below_data_dir(cls, value: str | None) -> str | None:
        if value is not None and (value.startswith(("/", "~")) or ".." in value.split("/") or {*value} & {*":\\"}):
            raise ValueError(
                f"{value!r} is not right: must be a relative folder below --data-dir, such as 'pets/train';"
                " give the place itself with --data-dir"
            )
        return value

    @field_validator("validation", mode="wrap")
    @classmethod
    def _one_of_four(cls, value: Any, validated: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validated(value)
        except ValidationError:
            raise ValueError(
                f"{value!r} is not right: must be `test`, `split`, `{{size: N}}` or `{{fraction: F}}` with F between"
                " 0 and 1"
            ) from None


class EarlyStopping(Section):
    """Stop when ``metric`` has not improved by more than ``min_delta`` for ``patience`` epochs (as Keras counts)."""

    metric: Metric = "val_accuracy"
    patience: int = Field(10, ge=1)
    min_delta: float = Field(0.0, ge=0)


class Optimizer(Section, ByName):
    """The optimizer; ``optimizer: sgd`` is short for ``optimizer: {name: sgd}``."""

    name: Literal["adam", "adamw", "sgd", "rmsprop"] = Field(
        "adam",
        description="Torch's, with its defaults: its epsilon is 1e-8, where Keras has 1e-7. RMSprop's alpha is 0.9, as"
        " Keras' rho.",
    )
    momentum: float = Field(0.0, ge=0, lt=1, description="For sgd and rmsprop.")
    nesterov: bool = Field(False, description="For sgd.")
    weight_decay: float = Field(0.0, ge=0)
    decay: float = Field(0.0, ge=0, description="Inverse-time decay per step, Keras' `decay`: lr / (1 + decay * step).")

    @model_validator(mode="after")
    def _fits(self, info: ValidationInfo) -> Optimizer:
        if info.context == PARTIAL:
            return self
        if self.momentum and self.name not in ("sgd", "rmsprop"):
            raise ValueError(f"{self.name} has no momentum: use sgd or rmsprop")
        if self.nesterov and (self.name != "sgd" or not self.momentum):
            raise ValueError("nesterov needs sgd with momentum")
        return self


class Schedule(Section, ByName):
    """How the learning rate falls from epoch to epoch; ``schedule: plateau`` is short for a mapping."""

    name: Literal["step", "plateau"] = Field(
        description="`step`: times `factor` after every `every` epochs. `plateau`: times `factor` after `patience`"
        " epochs in a row without an improvement, as Keras' ReduceLROnPlateau."
    )
    factor: float = Field(0.1, gt=0, lt=1, description="What the learning rate is multiplied by.")
    every: int = Field(16, ge=1, description="For step: epochs.")
    metric: Metric = Field("val_loss", description="For plateau: what must improve.")
    patience: int = Field(5, ge=1, description="For plateau: epochs without an improvement before a fall.")
    min_delta: float = Field(1e-4, ge=0, description="For plateau: a smaller change is no improvement.")
    min_lr: float = Field(0.0, ge=0, description="For plateau: the learning rate falls no further.")

    @model_validator(mode="after")
    def _fits(self, info: ValidationInfo) -> Schedule:
        of = {"step": ("every",), "plateau": ("metric", "patience", "min_delta", "min_lr")}
        other = "plateau" if self.name == "step" else "step"
        for key in of[other] if info.context != PARTIAL else ():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{self.name} has no {key}: it belongs to {other}")
        return self


class _ElasticNet(Section):
    alpha: float = Field(0.5, ge=0, le=1, description="Share of the absolute values; the rest is of the squares.")
    layers: Literal["output", "all"] = Field(
        "output", description="The last layer alone, or every convolution and dense layer."
    )


_LAMBDA: dict[str, Any] = {"lambda": (float, Field(0.01, ge=0, description="What the sum is multiplied by."))}
ElasticNet = create_model(  # lambda is a word of Python's own
    "ElasticNet",
    __base__=_ElasticNet,
    __doc__="Formula 1 of report 002: lambda * (alpha * sum of abs(w) + (1 - alpha) * sum of w^2) over the kernels.",
    **_LAMBDA,
)


class LastLayers(Section):
    """``{last: 3}``"""

    last: int = Field(ge=1, description="The head and this many layers with weights before it.")


def _trainable(value: Any, validated: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validated(value)
    except ValidationError:
        raise ValueError(f"{value!r} is not right: must be all, head or {{last: n}} with n from 1") from None


Trainable = Annotated[Literal["all", "head"] | LastLayers, WrapValidator(_trainable)]


class Phase(Section):
    """A part of training with an optimizer of its own; what it leaves out is as in ``train``."""

    epochs: int = Field(ge=1)
    lr: float | None = Field(None, gt=0)
    trainable: Trainable | None = None
    optimizer: Optimizer | None = None
    schedule: Schedule | None = None
    early_stopping: EarlyStopping | None = None


class TrainSettings(Section):
    """How the network is trained, and which epoch's weights are judged on the test images."""

    epochs: int = Field(
        20, ge=1, description="At most this many passes over the training images. With `phases`, their sum."
    )
    batch_size: int = Field(32, ge=1, description="Images per step, over all workers of the trial together.")
    lr: float = Field(1e-3, gt=0, description="Learning rate at the first step.")
    optimizer: Optimizer = Optimizer()  # type: ignore[call-arg]
    loss: Literal["cross_entropy", "bce"] = Field(
        "cross_entropy", description="`bce`: binary cross-entropy of each class's sigmoid against the one-hot label."
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Keras' `label_smoothing`: one-hot labels become (1 - s) * label + s / classes, with bce + s / 2."
        " Validation and test losses are smoothed alike.",
    )
    l2: float = Field(
        0.0,
        ge=0,
        description="Adds l2 * sum of w^2 over the kernels of all convolutions and dense layers that are trained to"
        " the loss (Keras' `kernel_regularizer`). Reported losses are without it.",
    )
    elastic_net: ElasticNet | None = Field(  # type: ignore[valid-type]
        None,
        description="Adds lambda * (alpha * sum of abs(w) + (1 - alpha) * sum of w^2) over kernels to the loss"
        " (formula 1 of report 002). Reported losses are without it. A mapping.",
    )
    schedule: Schedule | None = Field(
        None, description="How the learning rate falls from epoch to epoch; times `optimizer.decay`."
    )
    trainable: Trainable = Field(
        "all",
        description="The part of the network that is trained: `all`, `head` (of a network without one, the last"
        " layer), or `{last: N}`. The rest keeps every bit, batch norm's averages too.",
    )
    phases: list[Phase] = Field(
        [],
        description="Train in phases, each `{epochs, lr, trainable, optimizer, schedule, early_stopping}`; all but"
        " `epochs` may be left out and are then as in `train`. Each begins with the last weights of the one before,"
        " and with a new optimizer, schedule and early stopping; the best epoch is that of all phases.",
    )
    augmented_copies: int = Field(
        0,
        ge=0,
        description="An epoch has every image as it is and this many augmented copies of it; with 0 it has every image"
        " once, augmented.",
    )
    early_stopping: EarlyStopping | None = None
    best: Metric = Field("val_accuracy", description="The metric whose best epoch gives the reported test result.")
    precision: Literal["float32", "tf32", "bf16"] = Field(
        "float32",
        description="`bf16`: autocast in the forward pass. `tf32`: convolutions and dense layers with 10 bits of"
        " mantissa, on GPUs that have it; elsewhere as float32.",
    )
    cuda_graph: bool = Field(
        False,
        description="On a GPU: record a training step and launch it as a whole, which small networks gain from. Its"
        " numbers may differ in the last digits. Elsewhere, for images that are streamed, with `augmented_copies` and"
        " with policies of torchvision and timm, which need the CPU, it changes nothing.",
    )
    test_every_epoch: bool = Field(False, description="Also test after every epoch, for curves.")
    smoke: bool = Field(
        False, description="One epoch of two batches (in each phase), to see that everything runs (`--smoke`)."
    )

    @model_validator(mode="after")
    def _sum_of_phases(self, info: ValidationInfo) -> TrainSettings:
        if self.phases and info.context != PARTIAL:
            total = sum(phase.epochs for phase in self.phases)
            if self.epochs not in (total, type(self).model_fields["epochs"].default):
                raise ValueError(
                    f"epochs is {self.epochs}, but the phases have {total} together: leave it out, or say {total}"
                )
            object.__setattr__(self, "epochs", total)  # read-only from here on
        return self

    @property
    def planned_epochs(self) -> int:
        """The number of epochs of a training that is not stopped early."""
        return max(1, len(self.phases)) if self.smoke else self.epochs

    def in_phases(self) -> list[TrainSettings]:
        """Return the settings of each phase, as of a training of its own; without phases, these."""
        own = [{name: value for name, value in phase if value is not None} for phase in self.phases]
        return [self.model_copy(update={**keys, "phases": []}) for keys in own] or [self]


SELECTOR = re.compile(r"(!?)(?:in\(([\w.-]+(?:, ?[\w.-]+)*)\)|([\w.-]+))")
"""What Ray takes as the value of a label selector: whether not, and one of several values, or one."""


class Resources(Section):
    """What one trial asks of the cluster."""

    cpus: int = Field(1, ge=1, description="CPU cores, and threads, of each worker of a trial.")
    gpus: float = Field(
        0.0, ge=0, description="GPUs of each worker; below 1, trials of one worker share one. Unused where none is."
    )
    workers: int = Field(1, ge=1, description="Processes that train one trial together (DistributedDataParallel).")
    custom: dict[str, float] = Field(
        {},
        description="Custom resources of each worker, as the nodes were started with: `{a100: 1}`. A mapping.",
    )
    labels: dict[str, str] = Field(
        {},
        description="Labels that a node must have: `{ray.io/accelerator-type: A100}`; a value may also be `!A100` or"
        " `in(A100, H100)`. A mapping.",
    )

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @field_validator("custom")
    @classmethod
    def _not_rays_own(cls, value: dict[str, float]) -> dict[str, float]:
        for name, amount in value.items():
            if not name or name in ("CPU", "GPU", "memory", "object_store_memory"):
                raise ValueError(f"{name!r} is not right: must be a custom resource; CPUs and GPUs are `cpus`, `gpus`")
            if amount <= 0 or (amount > 1 and amount != int(amount)):
                raise ValueError(f"{name}: {amount:g} is not right: must be a fraction below 1 or a whole number")
        return value

    @field_validator("labels")
    @classmethod
    def _selectors(cls, value: dict[str, str]) -> dict[str, str]:
        for name, wanted in value.items():
            if not SELECTOR.fullmatch(wanted):
                raise ValueError(
                    f"{name}: {wanted!r} is not right: must be a label such as A100, !A100 or in(A100, H100)"
                )
        return value

    @field_validator("gpus")
    @classmethod
    def _fraction_or_whole(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError("must be a fraction below 1 or a whole number")
        return value


def augmentation_parts(value: Any) -> Any:
    """Bring every spelling to a list of ``{name, **options}``.

    ``aug1`` | ``[aug1, {shift: 0.1}, {zoom: {range: 0.2}}, {name: flip, vertical: true}]``; a bare value, as in
    ``{shift: 0.1}``, is the part's main parameter, kept under the key ``value``.
    """
    parts = value if isinstance(value, list) else [value]
    full: list[Any] = []
    for part in parts:
        if isinstance(part, dict) and "name" not in part and len(part) == 1:
            ((name, options),) = part.items()
            if not isinstance(options, dict):
                options = {} if options is None else {"value": options}
            full.append({"name": name, **options})
        elif part is None:
            full.append({"name": "none"})
        else:
            full.append(part)
    return full


AugmentationSpec = Annotated[
    list[Named],
    BeforeValidator(
        augmentation_parts, json_schema_input_type=str | dict[str, Any] | list[str | dict[str, Any] | None] | None
    ),
    Field(description="One name, or a list of parts applied in order."),
]


class TrialSettings(Section):
    """Everything that decides what one trial computes, but its seed."""

    dataset: DatasetSettings
    model: ModelSettings
    augmentation: AugmentationSpec = [Named(name="none")]
    train: TrainSettings = TrainSettings()  # type: ignore[call-arg]
    resources: Resources = Resources()  # type: ignore[call-arg]

    @model_validator(mode="after")
    def _two_images_for_every_worker(self, info: ValidationInfo) -> TrialSettings:
        if info.context == PARTIAL:
            return self
        workers, batch = self.resources.workers, self.train.batch_size
        if workers > 1 and batch < 2 * workers:
            raise ValueError(
                f"batch_size {batch} is for all {workers} workers together: each needs two images or more, so at least"
                f" {2 * workers}"
            )
        if workers > 1 and self.train.cuda_graph:
            raise ValueError(f"train.cuda_graph is for one process, not for {workers} workers")
        if workers > 1 and 0 < self.resources.gpus < 1:
            raise ValueError(
                f"resources.gpus {self.resources.gpus:g} is not right with {workers} workers: each needs a GPU of its"
                " own, so 1, or 0 to train on CPUs"
            )
        return self
