"""The settings of one trial, section by section: what a suite may say under ``dataset``, ``model``, ``train``, ...

Every field has its default here and nowhere else. Unknown keys are refused. The JSON Schema that editors use is made
from these classes.
"""

from __future__ import annotations

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


class DatasetSettings(Section):
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

    name: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
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


class TrainSettings(Section):
    """How the network is trained, and which epoch's weights are judged on the test images."""

    epochs: int = Field(20, ge=1, description="At most this many passes over the training images.")
    batch_size: int = Field(32, ge=1, description="Images per step, over all workers of the trial together.")
    lr: float = Field(1e-3, gt=0, description="Learning rate at the first step.")
    optimizer: Optimizer = Optimizer()  # type: ignore[call-arg]
    loss: Literal["cross_entropy", "bce"] = Field(
        "cross_entropy", description="`bce`: binary cross-entropy of each class's sigmoid against the one-hot label."
    )
    early_stopping: EarlyStopping | None = None
    best: Metric = Field("val_accuracy", description="The metric whose best epoch gives the reported test result.")
    precision: Literal["float32", "bf16"] = Field("float32", description="bf16: autocast in the forward pass.")
    test_every_epoch: bool = Field(False, description="Also test after every epoch (for curves and the rule `peek`).")
    smoke: bool = Field(False, description="One epoch of two batches, to see that everything runs (`--smoke`).")


class Resources(Section):
    """What one trial asks of the cluster."""

    cpus: int = Field(1, ge=1, description="CPU cores, and threads, of each worker of a trial.")
    gpus: float = Field(0.0, ge=0, description="GPUs of each worker; below 1, trials share one. Unused where none is.")
    workers: int = Field(1, ge=1, description="Processes that train one trial together (DistributedDataParallel).")

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
