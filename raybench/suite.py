"""A suite file: read, checked to the last key, and every complaint with its file, line and column.

The file's own shape is `SuiteFile`; what the rest of raybench works with is `Suite`, whose axes say what each of their
values changes in a trial's settings.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from raybench.errors import SuiteError, UserError, did_you_mean
from raybench.prune import Prune
from raybench.records import STATISTICS, TrialRow
from raybench.registry import DATASETS, check_augmentation_name, check_model_name
from raybench.search import Confirm, Draw, Range
from raybench.settings import (
    PARTIAL,
    SHORT,
    Assignments,
    AugmentationSpec,
    DatasetSettings,
    ModelSettings,
    Named,
    Resources,
    Section,
    TrainSettings,
    TrialSettings,
    assign,
    first_complaint,
    flatten,
    full_path,
    put,
    wrong_key,
)
from raybench.yamlfile import Complaints, Marks, parse_yaml

Label = str | int | float | bool
Role = Literal["compare", "search", "repeat"]
Loc = tuple[str | int, ...]
"""Keys that lead to a place in the document."""

SECTIONS = ("dataset", "model", "augmentation", "train", "resources")
PATHS = [
    *SHORT,
    "model",
    "augmentation",
    *(f"train.{key}" for key in TrainSettings.model_fields),
    *(f"dataset.{key}" for key in DatasetSettings.model_fields),
]
"""What an axis can set, but for the options of models."""
GRID = ("compare", "search", "repeat", "zip", "include", "exclude", "draw", "confirm")
"""Keys that decide how many trials there are."""
OWN = ("name", "about", "trials")
"""Keys that say what a file itself is: one that extends it does not have them from it."""
TAKEN = frozenset({f.name for f in fields(TrialRow)} | STATISTICS)
"""Names of columns, in the results or in a table, that no axis may have."""
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
NO_MODEL = ""
"""Stands for the model while only the axes name one."""


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


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension of the grid: its labels as tables show them, and what each assigns to a trial's settings."""

    name: str
    role: Role
    labels: Sequence[Label]
    assignments: Sequence[Assignments]
    range: Range | None = None
    """What its values are drawn from, where they are not listed."""

    def find(self, value: Any) -> Label | None:
        """Return the label that ``value`` names; on a range, any number."""
        if self.range is None:
            return find_label(self.labels, value)
        number = _number(value)
        return int(number) if number is not None and number.is_integer() and self.range.integer else number

    def assigned(self, label: Label) -> Assignments:
        """Return what a label changes in a trial's settings."""
        return {full_path(self.name): label} if self.range else self.assignments[self.labels.index(label)]


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

    @property
    def searches(self) -> bool:
        """Whether there are several points to choose from."""
        return self.draw is not None or any(axis.role == "search" and len(axis.labels) > 1 for axis in self.axes)

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
    document, marks = _read(path, ())
    return build(document, Complaints(str(path), marks), path.parent, [*sets, *(["train.smoke=true"] if smoke else [])])


def _read(path: Path, extending: tuple[Path, ...]) -> tuple[dict[str, Any], Marks]:
    """Return what the file at ``path`` says, on top of what those say that it extends, and where each key stands.

    ``extending`` are the files that led here, each extending the next. Published numbers come from all files that are
    extended, unless this one gives its own.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SuiteError(f"{path}: cannot be read: not a text file (UTF-8)") from None
    except OSError as error:
        raise SuiteError(f"{path}: cannot be read: {error.strerror or error}") from None
    own, marks = parse_yaml(text, str(path))
    if not isinstance(own, dict):
        raise SuiteError(f"{path}:1:1: a suite is a mapping with name, dataset, compare, ...")
    chain = (*extending, path)
    document: dict[str, Any] = {}
    places: dict[str, str] = {}
    for below in _extended(own.pop("extends", []), chain, Complaints(str(path), marks)):
        theirs, where = _read(below, chain)
        rows = document.get("reference")
        shift = len(rows) if isinstance(rows, list) else 0
        document = _merged(document, {key: value for key, value in theirs.items() if key not in OWN}, places)
        places |= {_behind(key, shift): place for key, place in where.items() if key not in OWN}
    if "reference" in own:
        document.pop("reference", None)
    return _merged(document, own, places), {**places, **marks}


def _extended(named: Any, chain: tuple[Path, ...], complain: Complaints) -> Iterable[Path]:
    """Yield the files that the last file of ``chain`` extends; each file of the chain extends the next."""
    several = isinstance(named, list)
    for index, name in enumerate(named if several else [named]):
        loc: Loc = ("extends", index) if several else ("extends",)
        if not isinstance(name, str):
            raise complain.at(loc, f"{name!r} is not right: must be the name of a suite file, or a list of them")
        file = chain[-1].parent / name
        if not file.is_file():
            beside = [other.name for other in file.parent.glob("*.yaml")]
            raise complain.at(loc, f"no suite file {file}{did_you_mean(file.name, beside)}")
        if any(file.samefile(above) for above in chain):
            raise complain.at(loc, f"goes in a circle: {' -> '.join(str(above) for above in (*chain, file))}")
        yield file


def _merged(below: dict[str, Any], over: dict[str, Any], places: dict[str, str], path: str = "") -> dict[str, Any]:
    """Return ``below`` with what ``over`` says; ``places`` loses the keys that are replaced.

    As in an axis (see `flatten`), a mapping without a ``name`` changes the keys it lists; anything else replaces what
    was there, but for rows of ``reference``, which are added.
    """
    result = dict(below)
    for key, value in over.items():
        there, at = result.get(key), f"{path}.{key}".lstrip(".")
        if isinstance(there, dict) and isinstance(value, dict) and "name" not in value:
            result[key] = _merged(there, value, places, at)
        elif at == "reference" and isinstance(there, list) and isinstance(value, list):
            result[key] = [*there, *value]
        else:
            result[key] = value
            for gone in [known for known in places if f"{known}.".startswith(f"{at}.")]:
                del places[gone]
    return result


def _behind(key: str, rows: int) -> str:
    """Return the path of a key of ``reference`` that has moved behind so many other rows."""
    return re.sub(r"^reference\.(\d+)", lambda row: f"reference.{int(row[1]) + rows}", key)


def build(
    document: dict[str, Any], complain: Complaints, folder: Path, sets: Sequence[str] = (), *, trusted: bool = False
) -> Suite:
    """Check a parsed document and read its axes (see `load`).

    A ``trusted`` document was checked when it ran: its modules are not imported and its names not looked up again, so
    that tables can be made where neither they nor torch are installed.
    """
    complain.names = not trusted
    overrides = _apply_sets(document, sets, complain)
    try:
        file = SuiteFile.model_validate(document)
    except ValidationError as failed:
        raise complain.at(*first_complaint(failed, SuiteFile)) from None
    if not trusted:
        _import_modules(file.imports, folder, complain)
    settings = TrialSettings(
        dataset=file.dataset,
        model=file.model or ModelSettings(name=NO_MODEL),
        augmentation=file.augmentation,
        train=file.train,
        resources=file.resources,
    )
    _check_names(settings, complain)
    base = settings.model_dump()
    grid = [
        *(_axis(name, "compare", values, base, complain) for name, values in file.compare.items()),
        *(_axis(name, "search", values, base, complain) for name, values in file.search.items()),
    ]
    _check_axes(grid, overrides, complain)
    _check_search(file, grid, complain)
    _check_zip(file.zip, grid, complain)
    if settings.model.name == NO_MODEL and not any({"model", "model.name"} & _paths(axis) for axis in grid):
        raise complain.at(["model"], "is missing: name one under `model:` or several under `compare: {model: [...]}`")
    return Suite(
        name=file.name + ("-smoke" if file.train.smoke else ""),
        about=file.about,
        source=complain.source,
        document=document,
        sets=tuple(sets),
        folder=folder,
        imports=tuple(file.imports),
        base=base,
        axes=(*grid, Axis("seed", "repeat", file.repeat.seeds, ())),
        zip=tuple(tuple(group) for group in file.zip),
        include=tuple(_include(i, point, grid, base, complain) for i, point in enumerate(file.include)),
        exclude=tuple(_matching(("exclude", i), point, grid, complain) for i, point in enumerate(file.exclude)),
        overrides=overrides,
        trials=None if any(text.split("=")[0].split(".")[0].strip() in GRID for text in sets) else file.trials,
        reference=tuple(_reference(i, row, grid, complain) for i, row in enumerate(file.reference)),
        draw=file.draw,
        prune=file.prune,
        confirm=file.confirm,
    )


def _import_modules(modules: Sequence[str], folder: Path, complain: Complaints) -> None:
    """Import the user's modules; those beside the suite file are found first."""
    if modules and str(folder.resolve()) not in sys.path:
        sys.path.insert(0, str(folder.resolve()))
    for index, module in enumerate(modules):
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # the user's own code may raise anything
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            reason = " ".join(f"{kind}{error}".split())
            raise complain.at(("imports", index), f"cannot import {module!r}: {reason}") from None


# ---------------------------------------------------------------------------------------------------------------------
# Checking


def _check_names(settings: TrialSettings, complain: Complaints, value: Loc = ()) -> None:
    """Check every registered name in ``settings``; ``value`` is the axis value to blame, if it is one."""

    def check(known: Callable[[str], None], key: str, name: str) -> None:
        try:
            known(name)
        except UserError as error:
            raise complain.at(value or (key,), str(error)) from None

    if complain.names:
        check(DATASETS.check, "dataset.name", settings.dataset.name)
        if settings.model.name != NO_MODEL:
            check(check_model_name, "model.name", settings.model.name)
        for part in settings.augmentation:
            check(check_augmentation_name, "augmentation", part.name)


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


# ---------------------------------------------------------------------------------------------------------------------
# Axes


def _axis(
    name: str, role: Role, values: list[Any] | dict[str, Any], base: dict[str, Any], complain: Complaints
) -> Axis:
    """Read one axis: a list of plain values, or ``label: value`` where a value is more than a word or a number.

    The values are those of the settings at the path ``name``, or else mappings of overrides.
    """
    labelled = isinstance(values, dict)
    path = _axis_path(name, role, labelled, complain)
    if role == "search" and path and isinstance(values, dict) and "range" in values:
        return _range_axis(name, path, values, base, complain)
    labels: list[Label] = []
    assigned: list[Assignments] = []
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        loc, label = (role, name, key), key if labelled else value
        if not isinstance(label, Label):
            raise complain.at(loc, "give values that are not a word or a number a label: `{label: value, ...}`")
        if path:
            assignments = flatten(path, value)
        elif isinstance(value, dict | None):
            assignments = {p: v for k, new in (value or {}).items() for p, v in flatten(full_path(k), new).items()}
        else:
            raise complain.at(loc, "must be a mapping of overrides, such as {train.epochs: 20}")
        settings = _checked(assignments, base, complain, loc, path)
        if not labelled:
            label = _as_read(settings, path, label)
        if label in labels:
            raise complain.at(loc, f"{label!r} is listed twice")
        labels.append(label)
        assigned.append(assignments)
    return Axis(name, role, tuple(labels), tuple(assigned))


def _range_axis(name: str, path: str, values: dict[str, Any], base: dict[str, Any], complain: Complaints) -> Axis:
    """Read an axis whose values are drawn."""
    loc = ("search", name)
    try:
        drawn = Range.model_validate(values)
    except ValidationError as failed:
        at, message = first_complaint(failed, Range)
        raise complain.at((*loc, *at), message) from None
    for end in drawn.ends:
        _checked({path: end}, base, complain, (*loc, "range"), path)
    return Axis(name, "search", (), (), drawn)


def _axis_path(name: str, role: Role, labelled: bool, complain: Complaints) -> str:
    """Return the path in the settings that the axis sets, or nothing for an axis of named overrides."""
    loc, path = (role, name), full_path(name)
    root = path.split(".")[0]
    if name == "seed":
        raise complain.at(loc, "seeds are repetitions: write repeat: {seed: 5}")
    if root == "resources":
        raise complain.at(
            loc, "resources are what a trial needs and not what is compared: give points that need more a named variant"
        )
    if root in SECTIONS:
        if wrong := wrong_key(TrialSettings, path):
            raise complain.at(loc, wrong)
        return path
    if not labelled:
        form = "an axis of named overrides is written {label: {path: value}}"
        raise complain.at(loc, f"unknown axis{did_you_mean(name, PATHS)} ({form})")
    if not re.match(NAME, name):
        raise complain.at(loc, "the name of an axis is made of letters, digits, '_' and '-'")
    if name in TAKEN:
        raise complain.at(loc, "is the name of a result column: give the axis another name, such as `variant`")
    return ""


def _checked(
    assignments: Assignments, base: dict[str, Any], complain: Complaints, loc: Loc, path: str = ""
) -> TrialSettings:
    """Return ``base`` with the assignments of one axis value, which stands at ``loc`` and belongs to ``path``."""

    def inside(place: str) -> Loc:
        rest = place.removeprefix(path).strip(".")
        return (*loc, rest) if rest else loc

    for place in assignments:
        if wrong := wrong_key(TrialSettings, place):
            raise complain.at(inside(place), wrong)
    try:
        settings = TrialSettings.model_validate(assign(base, assignments), context=PARTIAL)
    except ValidationError as failed:
        at, message = first_complaint(failed, TrialSettings)
        raise complain.at(inside(".".join(str(key) for key in at)), message) from None
    _check_names(settings, complain, loc)
    return settings


def _as_read(settings: TrialSettings, path: str, label: Label) -> Label:
    """Return the value at ``path`` where it is plain (``"1e-3"`` was read as 0.001), else ``label``."""
    value: Any = settings.model_dump()
    for key in path.split("."):
        value = value[key]
    return value if isinstance(value, Label) else label


def _paths(axis: Axis) -> set[str]:
    """Return all that the axis sets."""
    return {path for assignments in axis.assignments for path in assignments}


def _check_axes(axes: Sequence[Axis], overrides: Assignments, complain: Complaints) -> None:
    """Refuse axes that hide each other, and overrides that hide an axis."""
    roles: dict[str, Role] = {}
    setters: dict[str, str] = {}
    for axis in axes:
        loc = (axis.role, axis.name)
        if axis.name in roles:
            raise complain.at(loc, f"is an axis of {roles[axis.name]} already")
        roles[axis.name] = axis.role
        for path in sorted(_paths(axis)):
            if path in setters:
                raise complain.at(loc, f"sets {path}, which the axis {setters[path]} sets too")
            setters[path] = axis.name
        own = full_path(axis.name)
        for path in overrides:
            if own in (path, path.removesuffix(".name")) or own.startswith(f"{path}."):
                raise SuiteError(
                    f"--set {path}: would hide the axis {axis.name}: choose among its values with --only"
                    f" {axis.name}=..., or replace them with --set '{axis.role}.{axis.name}=[...]'"
                )


def _check_zip(groups: Sequence[Sequence[str]], axes: Sequence[Axis], complain: Complaints) -> None:
    """Refuse groups of axes that cannot go in step."""
    by_name = {axis.name: axis for axis in axes}
    used: set[str] = set()
    for index, group in enumerate(groups):
        loc = ("zip", index)
        for name in group:
            if name == "seed":
                raise complain.at(loc, "seeds go in step with nothing: every point is run with each")
            if name not in by_name:
                raise complain.at(loc, f"{name!r} is no axis{did_you_mean(name, by_name)}")
            if name in used:
                raise complain.at(loc, f"{name!r} is in a group already")
            used.add(name)
        if len(group) < 2:
            raise complain.at(loc, "name two axes or more that go in step")
        lengths = {name: len(by_name[name].labels) for name in group}
        if len(set(lengths.values())) != 1:
            sizes = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise complain.at(loc, f"axes that go in step need equally many values: {sizes}")
        if len({by_name[name].role for name in group}) != 1:
            raise complain.at(loc, "axes that go in step must all be in compare or all in search")


def _check_search(file: SuiteFile, axes: Sequence[Axis], complain: Complaints) -> None:
    """Refuse drawing and pruning that have nothing to choose from, or choose in two ways."""
    search = [axis for axis in axes if axis.role == "search"]
    for axis in search:
        if axis.range and file.draw is None:
            raise complain.at(("search", axis.name), "a range is drawn from: say how often, as in draw: {points: 10}")
    if file.draw:
        if not search:
            raise complain.at(("draw",), "there is nothing to draw: name axes under search")
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


# ---------------------------------------------------------------------------------------------------------------------
# Points of the grid


def find_label(labels: Iterable[Label], value: Any) -> Label | None:
    """Return the label that ``value`` names: 0.001 and ``"1e-3"`` are one, and so are True and ``"true"``."""
    word, number = str(value), _number(value)

    def named(label: Label) -> bool:
        if isinstance(label, bool):
            return word in (str(label), str(label).lower())
        return str(label) == word or (number is not None and _number(label) == number)

    return next((label for label in labels if named(label)), None)


def _number(value: Any) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


def _label(axis: Axis, value: Any, complain: Complaints, loc: Loc) -> Label:
    label = axis.find(value)
    if label is None:
        raise complain.at(loc, f"{value!r} is no value of {axis.name}{did_you_mean(value, axis.labels[:50])}")
    return label


def _check_point(
    loc: Loc, point: dict[str, Any], axes: Sequence[Axis], complain: Complaints, others: Iterable[str] = ()
) -> None:
    """Refuse a point that names no axis, or what is none."""
    known = [axis.name for axis in axes]
    for name in point:
        if name not in known:
            raise complain.at((*loc, name), f"is no axis of compare or search{did_you_mean(name, [*known, *others])}")
    if not point:
        raise complain.at(loc, "names no axis")


def _matching(loc: Loc, point: dict[str, Any], axes: Sequence[Axis], complain: Complaints) -> dict[str, Label]:
    """Read a partial point, such as an ``exclude`` entry or the axes of a reference row."""
    _check_point(loc, point, axes, complain)
    by_name = {axis.name: axis for axis in axes}
    return {name: _label(by_name[name], value, complain, (*loc, name)) for name, value in point.items()}


def _include(
    index: int, point: dict[str, Any], axes: Sequence[Axis], base: dict[str, Any], complain: Complaints
) -> tuple[dict[str, Label], Assignments]:
    """Read a point besides the grid: labels of the axes, or new plain values where the axis is a path."""
    _check_point(("include", index), point, axes, complain)
    labels: dict[str, Label] = {}
    assignments: Assignments = {}
    for axis in axes:
        name, loc, path = axis.name, ("include", index, axis.name), full_path(axis.name)
        if name not in point:
            raise complain.at(("include", index), f"needs a value for {name}")
        value = point[name]
        known = find_label(axis.labels, value)
        if known is None and path.split(".")[0] in SECTIONS and isinstance(value, Label):
            labels[name] = _as_read(_checked({path: value}, base, complain, loc, path), path, value)
            assignments[path] = value
        else:
            labels[name] = _label(axis, value, complain, loc)
            assignments |= axis.assignments[list(axis.labels).index(labels[name])]
    return labels, assignments


def _reference(index: int, row: Reference, axes: Sequence[Axis], complain: Complaints) -> dict[str, Any]:
    numbers = {key: getattr(row, key) for key in Reference.model_fields}
    loc, point = ("reference", index), row.model_extra or {}
    _check_point(loc, point, axes, complain, numbers)
    labels = _matching(loc, point, axes, complain)
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
