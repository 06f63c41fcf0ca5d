"""A suite file: read, checked to the last key, and every complaint with its file, line and column.

The file's own shape is `SuiteFile`; what the rest of raybench works with is `Suite`, whose axes say what each of their
values changes in a trial's settings.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from raybench.axes import (
    NAME,
    NO_MODEL,
    SECTIONS,
    Axis,
    Label,
    Role,
    assigned_paths,
    check_axes,
    check_names,
    check_point,
    check_zip,
    matching,
    read_axis,
    read_include,
)
from raybench.dotted import SHORT, Assignments, first_complaint, flatten, full_path, put, wrong_key
from raybench.errors import SuiteError, UserError, did_you_mean
from raybench.prune import Prune
from raybench.registry import DATASETS
from raybench.search import Confirm, Draw, Range, size
from raybench.settings import (
    PARTIAL,
    AugmentationSpec,
    DatasetSettings,
    ModelSettings,
    Named,
    Resources,
    Section,
    TrainSettings,
    TrialSettings,
)
from raybench.yamlfile import Complaints, parse_yaml, read_file

GRID = ("compare", "search", "repeat", "zip", "include", "exclude", "draw", "confirm")
"""Keys that decide how many trials there are."""


def _axis_values(value: Any) -> Any:
    if not isinstance(value, list | dict):
        raise ValueError(f"{value!r} is not right: must be a list of values, or a mapping of labels to values")
    if not value:
        raise ValueError("has no values")
    return value


def _seeds(value: Any) -> Any:
    whole = [type(seed) is int and 0 <= seed < 2**63 for seed in (value if isinstance(value, list) else [value])]
    if not all(whole) or not value or (isinstance(value, list) and len(set(value)) < len(value)):
        raise ValueError(f"{value!r} is not right: must be a number of seeds, or a list of different seeds from 0 up")
    return value


AxisValues = Annotated[
    list[Any] | dict[str, Any], PlainValidator(_axis_values, json_schema_input_type=list[Any] | dict[str, Any])
]
SearchValues = Annotated[
    list[Any] | dict[str, Any], PlainValidator(_axis_values, json_schema_input_type=list[Any] | Range | dict[str, Any])
]
Seeds = Annotated[
    int | list[int], PlainValidator(_seeds, json_schema_input_type=Annotated[int, Field(ge=1)] | list[int])
]


class Repeat(Section):
    """What is repeated to see the spread."""

    seed: Seeds = Field(default=1, description="`5` for seeds 0 to 4, or an explicit list.")

    @property
    def seeds(self) -> Sequence[int]:
        return range(self.seed) if isinstance(self.seed, int) else tuple(self.seed)


KeepWeights = Literal["none", "best", "all"]
SMOKE = "train.smoke=true"
"""The text of ``--set`` that ``--smoke`` stands for."""


class OutOfDistribution(Section):
    """Which images a trained network is to tell from the test images, and by what (`raybench ood`)."""

    dataset: DatasetSettings = Field(
        description="The images from outside of the data: the test images of a dataset, with the keys of `dataset`;"
        " brought to the size and the channels of the images that the network was trained on."
    )
    layers: Literal["activations", "all"] | list[str] = Field(
        "activations",
        description="Whose mean activation is looked at: every activation function, every layer, or a list of names of"
        " modules.",
    )


class Reference(BaseModel):
    """A published row: the axis values it belongs to, and the numbers that were printed (accuracies as 0 to 1)."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    mean: float | None = Field(None, ge=0, le=1)
    std: float | None = Field(None, ge=0, le=1)
    min: float | None = Field(None, ge=0, le=1)
    max: float | None = Field(None, ge=0, le=1)
    epochs: float | None = Field(None, ge=0, description="Mean number of epochs.")
    n: int | None = Field(None, ge=1)


class SuiteFile(Section):
    """The keys of a suite file."""

    extends: str | list[str] = Field(
        [], description="A suite file, or several, that this one changes; relative to this file."
    )
    name: str = Field(pattern=NAME, description="Also the folder below --results.")
    about: str = Field("", description="One line for people.")
    trials: int | None = Field(None, ge=1, description="What the axes must multiply to.")
    imports: list[str] = Field([], description="Modules, beside the suite file or installed, that register more names.")
    dataset: DatasetSettings
    model: ModelSettings | None = Field(None, description="Where it is no axis.")
    augmentation: AugmentationSpec = Field([Named(name="none")])
    train: TrainSettings = TrainSettings()  # type: ignore[call-arg]
    resources: Resources = Resources()  # type: ignore[call-arg]
    compare: dict[str, AxisValues] = Field({}, description="Axes that become rows of the table.")
    search: dict[str, SearchValues] = Field({}, description="Axes that are tuned, such as lr.")
    draw: Draw | None = Field(
        None, description="Let Optuna draw the points of `search` instead of trying all. A mapping."
    )
    prune: Prune | None = Field(
        None,
        description="Stop weak trials of the search early: `asha`, `median`, or a mapping. Not those that confirm.",
    )
    confirm: Confirm = Field(
        "winner",
        description="Where `search` has several points: `winner` searches with the first seed, and trains each cell's"
        " best point with all of them; `none` searches with all seeds and reports every point.",
    )
    repeat: Repeat = Repeat()
    zip: list[list[str]] = Field([], description="Groups of axes that go in step instead of being multiplied.")
    include: list[dict[str, Any]] = Field([], description="Points besides the grid: a value for every axis.")
    exclude: list[dict[str, Any]] = Field([], description="Points to leave out: values of some axes.")
    reference: list[Reference] = Field([], description="Published rows, shown beside the measured ones.")
    keep_weights: KeepWeights = Field(
        "none",
        description="Keep the weights that were tested, as safetensors: `best` of every finished trial in the table (a"
        " search's until it is known who won), `all` of every finished trial. Changes no number and no id.",
    )
    ood: OutOfDistribution | None = Field(
        None, description="What `raybench ood` computes from the kept weights. A mapping. Changes no number and no id."
    )
    track: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(
        [], description="Also send every trial's curves to these trackers. Changes no number and no trial's id."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A suite that was checked. ``document`` is the content of its file, and of those it extends, after ``--set``:
    enough to load it again."""

    name: str
    about: str
    source: str
    document: dict[str, Any]
    sets: tuple[str, ...] = ()
    """The ``--set`` texts that are in ``document`` already."""
    written: dict[str, Any] | None = None
    """``document`` before them: published numbers belong to it. None if a run of before did not keep it."""
    folder: Path
    imports: tuple[str, ...] = ()
    base: dict[str, Any]
    axes: tuple[Axis, ...]
    zip: tuple[tuple[str, ...], ...] = ()
    include: tuple[tuple[dict[str, Label], Assignments], ...] = ()
    exclude: tuple[dict[str, Label], ...] = ()
    overrides: Assignments = field(default_factory=dict)
    trials: int | None = None
    reference: tuple[dict[str, Any], ...] = ()
    draw: Draw | None = None
    prune: Prune | None = None
    confirm: Confirm = "winner"
    keep_weights: KeepWeights = "none"
    ood: OutOfDistribution | None = None
    track: tuple[str, ...] = ()

    @property
    def searches(self) -> bool:
        """Whether there are several points to choose from."""
        return self.draw is not None or any(axis.role == "search" and len(axis.labels) > 1 for axis in self.axes)

    @property
    def confirms(self) -> bool:
        """Whether each cell shows the winner of its search, trained with every seed."""
        return self.searches and self.confirm == "winner"

    def axis(self, name: str) -> Axis:
        return next(axis for axis in self.axes if axis.name == name)

    def names(self, *roles: Role) -> list[str]:
        """Return the names of the axes with one of ``roles``, in the suite's order."""
        return [axis.name for axis in self.axes if axis.role in roles]


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def shipped_suites() -> dict[str, Path]:
    """Return the suites that come with raybench, by name."""
    package = Path(__file__).parent
    folder = package / "suites" if (package / "suites").is_dir() else package.parent / "suites"
    return {path.stem: path for path in sorted(folder.rglob("*.yaml"))}


def command(suite: Suite, only: Iterable[tuple[str, Any]] = (), *more: str) -> str:
    """Return the line that runs a suite as it was run: its file, or its name if it ships with raybench, and its sets.

    Args:
        only: axes, each with a value to keep of it.
        more: words to end with.
    """
    shipped = shipped_suites().get(Path(suite.source).stem)
    is_shipped = shipped is not None and shipped.resolve() == Path(suite.source).resolve()
    words = ["raybench", "run", Path(suite.source).stem if is_shipped else suite.source]
    for text in suite.sets:
        words += ["--smoke"] if text == SMOKE else ["--set", text]
    for axis, value in only:
        words += ["--only", f"{axis}={value}"]
    return shlex.join([*words, *more])


def results_words(root: str) -> list[str]:
    """Return the words that have a command look for results in ``root``: none where it does by itself."""
    return [] if root == "results" else ["--results", root]


def report_of(suite: Suite) -> str:
    """Return the number of the report that a suite is from, which its ``about`` names, or nothing."""
    found = re.search(r"\(report (\d+)", suite.about)
    return found[1] if found else ""


def find_suite(name: str) -> Path:
    """Return the file called ``name``: a path, or the name of a suite that ships with raybench."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_suites()
    if name in shipped:
        return shipped[name]
    raise SuiteError(f"{name}: no such suite file{did_you_mean(path.stem, shipped)}")


def load(path: Path, sets: Sequence[str] = (), *, smoke: bool = False) -> Suite:
    """Read and check the suite at ``path``; ``sets`` are ``key.path=value`` overrides, the last word on their key.

    Raises:
        SuiteError: naming file, line, column, the key, and what would have been right.
    """
    document, marks = read_file(path)
    return build(document, Complaints(str(path), marks), path.parent, [*sets, *([SMOKE] if smoke else [])])


def build(
    document: dict[str, Any], complain: Complaints, folder: Path, sets: Sequence[str] = (), *, trusted: bool = False
) -> Suite:
    """Check a parsed document and read its axes (see `load`).

    A ``trusted`` document was checked when it ran: its modules are not imported and its names not looked up again, so
    that tables can be made where neither they nor torch are installed.
    """
    complain.names = not trusted
    written = copy.deepcopy(document) if sets else document
    overrides = _apply_sets(document, sets, complain)
    try:
        file = SuiteFile.model_validate(document)
    except ValidationError as failed:
        raise complain.at(*first_complaint(failed, SuiteFile)) from None
    if not trusted:
        _import_modules(file.imports, folder, complain)
    sections = {
        "dataset": file.dataset,
        "model": file.model or ModelSettings(name=NO_MODEL),
        "augmentation": file.augmentation,
        "train": file.train,
        "resources": file.resources,
    }
    settings = TrialSettings.model_validate(sections, context=PARTIAL)  # whether they go together is asked of points
    check_names(settings, complain)
    if file.ood and not trusted:
        try:
            DATASETS.check(file.ood.dataset.name)
        except UserError as error:
            raise complain.at(("ood", "dataset", "name"), str(error)) from None
    base = settings.model_dump()
    grid = [
        *(read_axis(name, "compare", values, base, complain) for name, values in file.compare.items()),
        *(read_axis(name, "search", values, base, complain) for name, values in file.search.items()),
    ]
    check_axes(grid, overrides, complain)
    _check_search(file, grid, complain)
    check_zip(file.zip, grid, complain)
    if settings.model.name == NO_MODEL and not any({"model", "model.name"} & assigned_paths(axis) for axis in grid):
        raise complain.at(["model"], "is missing: name one under `model:` or several under `compare: {model: [...]}`")
    return Suite(
        name=file.name + ("-smoke" if file.train.smoke else ""),
        about=" ".join("".join(sign if sign.isprintable() else " " for sign in file.about).split()),
        source=complain.source,
        document=document,
        sets=tuple(sets),
        written=written,
        folder=folder,
        imports=tuple(file.imports),
        base=base,
        axes=(*grid, Axis("seed", "repeat", file.repeat.seeds, ())),
        zip=tuple(tuple(group) for group in file.zip),
        include=tuple(read_include(i, point, grid, base, complain) for i, point in enumerate(file.include)),
        exclude=tuple(matching(("exclude", i), point, grid, complain) for i, point in enumerate(file.exclude)),
        overrides=overrides,
        trials=None if any(text.split("=")[0].split(".")[0].strip() in GRID for text in sets) else file.trials,
        reference=tuple(_reference(i, row, grid, complain) for i, row in enumerate(file.reference)),
        draw=file.draw,
        prune=file.prune,
        confirm=file.confirm,
        keep_weights=file.keep_weights,
        ood=file.ood,
        track=tuple(dict.fromkeys(file.track)),
    )


IN_FOLDERS = ("imagefolder", "parquet")
"""Datasets that are whatever a folder holds."""


def find_dataset(word: str) -> DatasetSettings:
    """Return the images that ``--dataset`` names: of a dataset, or as ``imagefolder/folder`` those in a folder.

    Raises:
        UserError: if there is no such dataset, with what was meant, or the folder is none below ``--data-dir``.
    """
    name, _, folder = (word, "", "") if word in DATASETS.names() else word.partition("/")
    DATASETS.check(name)
    if folder and name not in IN_FOLDERS:
        raise UserError(f"--dataset {word}: only {' and '.join(IN_FOLDERS)} take a folder: give {name} alone")
    folder = str(PurePosixPath(folder)) if folder else ""  # as the suite's own `ood` would be called
    try:
        return DatasetSettings.model_validate({"name": name, "folder": folder or None})
    except ValidationError as failed:
        raise UserError(f"--dataset {word}: {first_complaint(failed, DatasetSettings)[1]}") from None


def import_modules(suite: Suite) -> None:
    """Import the modules that a suite names, which `build` does not do for a trusted document.

    Raises:
        SuiteError: if one cannot be imported.
    """
    _import_modules(suite.imports, Path(suite.source).parent, Complaints(suite.source, None))


def _import_modules(modules: Sequence[str], folder: Path, complain: Complaints) -> None:
    """Import the user's modules; those beside the suite file are found first."""
    if modules and str(folder.resolve()) not in sys.path:
        sys.path.insert(0, str(folder.resolve()))
    for index, module in enumerate(modules):
        try:
            with contextlib.chdir("."):  # a module that goes elsewhere would take results with it
                importlib.import_module(module)
        except (Exception, SystemExit) as error:  # the user's own code may raise anything
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            reason = " ".join(f"{kind}{error}".split())
            raise complain.at(("imports", index), f"cannot import {module!r}: {reason}") from None


def _check_search(file: SuiteFile, axes: Sequence[Axis], complain: Complaints) -> None:
    """Refuse drawing and pruning that have nothing to choose from, or choose in two ways."""
    search = [axis for axis in axes if axis.role == "search"]
    for axis in search:
        if axis.range and file.draw is None:
            raise complain.at(("search", axis.name), "a range is drawn from: say how often, as in draw: {points: 10}")
    if file.draw:
        if not search:
            raise complain.at(("draw",), "there is nothing to draw: name axes under search")
        there = size({axis.name: axis.range or axis.labels for axis in search})
        if file.draw.points > there:
            raise complain.at(("draw", "points"), f"there are only {there:.0f} different points to draw")
        for i, group in enumerate(file.zip):
            if any(axis.name in group for axis in search):
                raise complain.at(("zip", i), "axes of search are drawn one by one: they cannot go in step")
        for key, points in (("include", file.include), ("exclude", file.exclude)):
            for i, point in enumerate(points):
                if key == "include" or any(axis.name in point for axis in search):
                    raise complain.at((key, i), "the points of search are drawn: none can be listed")
    if file.prune and not any(axis.range or len(axis.labels) > 1 for axis in search):
        raise complain.at(
            ("prune",), "there is nothing to prune: only trials that differ in an axis of search compete, and none does"
        )


def _apply_sets(document: dict[str, Any], sets: Sequence[str], complain: Complaints) -> Assignments:
    """Write each ``key.path=value`` into ``document``; return those that every trial must end up with."""
    overrides: Assignments = {}
    for text in sets:
        path, equals, value_text = text.partition("=")
        root, _, rest = (path := full_path(path.strip())).partition(".")
        if not equals or not path:
            raise SuiteError(f"--set {text}: must be key.path=value, e.g. train.epochs=2")
        if root not in SuiteFile.model_fields:
            raise SuiteError(
                f"--set {text}: unknown key {root!r}{did_you_mean(root, [*SuiteFile.model_fields, *SHORT])}"
            )
        if root == "extends":
            raise SuiteError(f"--set {text}: only a file can say which files it extends")
        value, _ = parse_yaml(value_text, f"--set {text}")
        # An axis may itself be called `model.blocks`, so below compare and search the rest is one key.
        axis = root in ("compare", "search") and rest
        if not axis and (wrong := wrong_key(SuiteFile, path)):
            raise SuiteError(f"--set {text}: {path}: {wrong}")
        changes = flatten(path, value) if root in SECTIONS else {path: value}
        for key, new in changes.items():
            if key.startswith("model.") and document.get("model") is None:
                document["model"] = NO_MODEL
            put(document, [root, rest] if axis else key.split("."), new)
            complain.said_by[key] = text
        if root in SECTIONS:
            overrides.update(changes)
    return overrides


def _reference(index: int, row: Reference, axes: Sequence[Axis], complain: Complaints) -> dict[str, Any]:
    numbers = {key: getattr(row, key) for key in Reference.model_fields}
    loc, point = ("reference", index), row.model_extra or {}
    check_point(loc, point, axes, complain, numbers)
    labels = matching(loc, point, axes, complain)
    return {**labels, **{key: number for key, number in numbers.items() if number is not None}}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of suite files, for editors."""
    schema = SuiteFile.model_json_schema()
    schema["title"] = "raybench suite"
    # What a file needs may come from one that it extends.
    schema["required"].remove("dataset")
    del schema["$defs"]["DatasetSettings"]["anyOf"][1]["required"]
    whole = {"required": ["dataset"], "properties": {"dataset": {"required": ["name"]}}}
    return {**schema, "anyOf": [whole, {"required": ["extends"]}]}
