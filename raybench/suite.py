"""A suite file: read, checked to the last key, and every complaint with its file, line and column.

The file's own shape is `SuiteFile`; what the rest of raybench works with is `Suite`, whose axes carry resolved values.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pydantic import BaseModel, Field, ValidationError

from raybench.errors import SuiteError, UserError, did_you_mean
from raybench.records import TrialRow
from raybench.registry import AUGMENTATIONS, DATASETS, check_model_name
from raybench.settings import (
    AugmentationSpec,
    DatasetSettings,
    ModelSettings,
    Named,
    Resources,
    Section,
    TrainSettings,
    TrialSettings,
)
from raybench.yamlfile import Complaints, parse_yaml

Label = str | int | float | bool
Role = Literal["compare", "search", "repeat"]
T = TypeVar("T", bound=BaseModel)
Assignments = dict[str, Any]
"""Dotted path in a trial's settings -> value."""

SECTIONS = ("dataset", "model", "augmentation", "train", "resources")
SHORT = {"lr": "train.lr", "batch_size": "train.batch_size", "optimizer": "train.optimizer"}
"""Axes that are so common that they need no dotted path."""
RESULT_COLUMNS = frozenset(f.name for f in fields(TrialRow))
NO_MODEL = ""
"""Stands for the model while only the axes name one."""


class Reference(BaseModel):
    """A published row: the axis values it belongs to, and the numbers that were printed (accuracies as 0 to 1)."""

    model_config = {"extra": "allow", "frozen": True}

    mean: float | None = None
    std: float | None = Field(None, ge=0)
    min: float | None = None
    max: float | None = None
    epochs: float | None = Field(None, description="Mean number of epochs.")
    n: int | None = Field(None, ge=1)


class SuiteFile(Section):
    """The keys of a suite file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="Also the folder below --results.")
    about: str = Field("", description="One line for people.")
    trials: int | None = Field(None, ge=1, description="What the axes must multiply to.")
    imports: list[str] = Field([], description="Modules, beside the suite file or installed, that register more names.")
    dataset: DatasetSettings
    model: ModelSettings | None = Field(None, description="Where it is no axis.")
    augmentation: AugmentationSpec | Named | None = Field(None, description="Where it is no axis.")
    train: TrainSettings = TrainSettings()  # type: ignore[call-arg]
    resources: Resources = Resources()  # type: ignore[call-arg]
    compare: dict[str, list[Any] | dict[str, Any]] = Field({}, description="Axes that become rows of the table.")
    search: dict[str, list[Any] | dict[str, Any]] = Field({}, description="Axes that are tuned, such as lr.")
    repeat: dict[Literal["seed"], int | list[int]] = Field(
        {"seed": 1}, description="`{seed: 5}` for seeds 0 to 4, or an explicit list."
    )
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A suite that was checked. ``document`` is the file's content after ``--set``, enough to load it again."""

    name: str
    about: str
    source: str
    document: dict[str, Any]
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
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: cannot be read: {error}") from None
    document, root = parse_yaml(text, str(path))
    if not isinstance(document, dict):
        raise SuiteError(f"{path}:1:1: a suite is a mapping with name, dataset, compare, ...")
    return build(document, Complaints(str(path), root), path.parent, [*sets, *(["train.smoke=true"] if smoke else [])])


def build(
    document: dict[str, Any], complain: Complaints, folder: Path, sets: Sequence[str] = (), *, trusted: bool = False
) -> Suite:
    """Check a parsed document and resolve its axes (see `load`).

    A ``trusted`` document was checked when it ran: its modules are not imported and its names not looked up again, so
    that tables can be made where neither they nor torch are installed.
    """
    overrides = _apply_sets(document, sets, complain)
    file = _validated(SuiteFile, document, complain)
    if trusted:
        complain.names = False
    else:
        _import_modules(file.imports, folder, complain)
    axes = [
        _axis(name, cast(Role, role), values, complain)
        for role in ("compare", "search", "repeat")
        for name, values in getattr(file, role).items()
    ]
    _check_axes(axes, file, overrides, complain)
    base = _base_settings(document, axes, complain)
    axes = [_resolved(axis, base, complain) for axis in axes]
    suite = Suite(
        name=file.name + ("-smoke" if base["train"]["smoke"] else ""),
        about=file.about,
        source=complain.source,
        document=document,
        folder=folder,
        imports=tuple(file.imports),
        base=base,
        axes=tuple(axes),
        zip=tuple(tuple(group) for group in file.zip),
        include=tuple(_include(i, point, axes, base, complain) for i, point in enumerate(file.include)),
        exclude=tuple(_matching("exclude", i, point, axes, complain) for i, point in enumerate(file.exclude)),
        overrides={path: read(base, path) for path in overrides},
        trials=None if any(_root(text) in ("compare", "search", "repeat") for text in sets) else file.trials,
        reference=tuple(_reference(i, row, axes, complain) for i, row in enumerate(file.reference)),
    )
    return suite


def _root(text: str) -> str:
    return text.partition("=")[0].split(".")[0].strip()


# ---------------------------------------------------------------------------------------------------------------------
# Checking


def _validated(cls: type[T], document: Any, complain: Complaints, loc: tuple[Any, ...] = ()) -> T:
    """Validate ``document`` as ``cls``; the first complaint of pydantic becomes ours, with its place."""
    try:
        return cls.model_validate(document)
    except ValidationError as failed:
        # Of a union's branches pydantic reports each; the deepest complaint is about the branch that was meant.
        error = max(failed.errors(), key=lambda e: len(_plain_loc(e["loc"], document)))
        place = _plain_loc(error["loc"], document)
        raise complain.at((*loc, *place), _in_words(error, cls, place)) from None


def _plain_loc(loc: Sequence[Any], document: Any) -> tuple[Any, ...]:
    """Drop what pydantic adds to a location for its unions: keep the keys that the document has, and the last one."""
    plain: list[Any] = []
    for index, part in enumerate(loc):
        if (isinstance(document, Mapping) and part in document) or (
            isinstance(document, list) and isinstance(part, int) and part < len(document)
        ):
            plain.append(part)
            document = document[part]
        elif index == len(loc) - 1 and isinstance(document, Mapping) and isinstance(part, str) and part.isidentifier():
            plain.append(part)
    return tuple(plain)


def _in_words(error: Any, cls: type[BaseModel], place: tuple[Any, ...]) -> str:
    """Say what is wrong and what would be right."""
    if place[:2] == ("dataset", "validation") or place == ("validation",):
        return "must be `test`, `split`, `{size: N}` or `{fraction: F}` with F between 0 and 1"
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(str(place[-1]), _fields_at(cls, place[:-1]))}"
    if kind == "missing":
        return "is missing"
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if kind == "string_pattern_mismatch":
        return f"{error['input']!r}: letters, digits, '_' and '-' only, the first a letter or digit"
    if kind == "value_error":
        return message
    return f"{error['input']!r} is not right: must be {message}"


def _fields_at(cls: type[BaseModel], place: Sequence[Any]) -> list[str]:
    """Return the keys allowed in the section at ``place``."""
    for part in place:
        info = cls.model_fields.get(str(part))
        found = [c for c in _classes(info.annotation) if issubclass(c, BaseModel)] if info else []
        if not found:
            return []
        cls = found[0]
    return list(cls.model_fields)


def _classes(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _classes(inner)


def _import_modules(modules: Sequence[str], folder: Path, complain: Complaints) -> None:
    """Import the user's modules; those beside the suite file are found first."""
    if modules and str(folder.resolve()) not in sys.path:
        sys.path.insert(0, str(folder.resolve()))
    for index, module in enumerate(modules):
        try:
            importlib.import_module(module)
        except UserError:
            raise
        except Exception as error:  # the user's own code may raise anything
            raise complain.at(
                ("imports", index), f"cannot import {module!r}: {type(error).__name__}: {error}"
            ) from None


def _check_names(settings: TrialSettings, complain: Complaints, loc: tuple[Any, ...]) -> None:
    """Check every registered name of ``settings``; ``loc`` is the axis value to blame, if it is one."""

    def check(section: str, call: Any, name: str) -> None:
        if not complain.names:
            return
        try:
            call(name)
        except UserError as error:
            raise complain.at(loc or (section,), str(error)) from None

    check("dataset", DATASETS.check, settings.dataset.name)
    if settings.model.name != NO_MODEL:
        check("model", check_model_name, settings.model.name)
    for part in settings.augmentation:
        check("augmentation", AUGMENTATIONS.check, part.name)


# ---------------------------------------------------------------------------------------------------------------------
# Overrides from the command line


def _apply_sets(document: dict[str, Any], sets: Sequence[str], complain: Complaints) -> Assignments:
    """Write each ``key.path=value`` into ``document``; return those that every trial must end up with."""
    overrides: Assignments = {}
    for text in sets:
        path, equals, value_text = text.partition("=")
        path = path.strip()
        if not equals or not path:
            raise SuiteError(f"--set {text}: must be key.path=value, e.g. train.epochs=2")
        path = SHORT.get(path, path)
        value, _ = parse_yaml(value_text, f"--set {text}")
        root, _, rest = path.partition(".")
        if root not in SuiteFile.model_fields:
            raise SuiteError(f"--set {text}: unknown key {root!r}{did_you_mean(root, SuiteFile.model_fields)}")
        # An axis may itself be called `model.blocks`, so below compare, search and repeat the rest is one key.
        keys = [root, rest] if root in ("compare", "search", "repeat") and rest else path.split(".")
        _put(document, keys, value)
        complain.said_by[tuple(keys)] = text
        if root in SECTIONS:
            overrides.update(assignments_of(path, value))
    return overrides


def _put(tree: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set ``tree[k1][k2]... = value``; a name on the way (``model: model1``) becomes ``{name: model1}``."""
    for key in keys[:-1]:
        below = tree.get(key)
        if isinstance(below, str):
            below = {"name": below}
        tree[key] = dict(below) if isinstance(below, dict) else {}
        tree = tree[key]
    tree[keys[-1]] = value


def assignments_of(path: str, value: Any) -> Assignments:
    """Flatten nested overrides into dotted paths. A mapping with a ``name`` replaces what is there as a whole."""
    if isinstance(value, dict) and "name" not in value and (value or not path) and _root(path) != "augmentation":
        merged: Assignments = {}
        for key, below in value.items():
            merged.update(assignments_of(f"{path}.{key}" if path else SHORT.get(key, key), below))
        return merged
    return {path: value}


def assign(settings: dict[str, Any], assignments: Assignments) -> dict[str, Any]:
    """Return ``settings`` with ``assignments`` made, shallow paths first; nothing in the argument is changed."""
    result = dict(settings)
    for path in sorted(assignments, key=lambda path: path.count(".")):
        _put(result, path.split("."), assignments[path])
    return result


def read(settings: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted ``path`` of resolved settings."""
    value: Any = settings
    for key in path.split("."):
        value = value[key]
    return value


# ---------------------------------------------------------------------------------------------------------------------
# Axes


def _axis(name: str, role: Role, values: Any, complain: Complaints) -> Axis:
    """Read one axis: a list of plain values, or ``label: value`` where a value is more than a word or a number."""
    loc = (role, name)
    if name == "seed":
        if role != "repeat":
            raise complain.at(loc, "seeds are repetitions: write repeat: {seed: 5}")
        seeds = range(values) if isinstance(values, int) else tuple(values)
        if len(seeds) == 0 or min(seeds[0], seeds[-1], *(() if isinstance(seeds, range) else seeds)) < 0:
            raise complain.at(loc, "must be a number of seeds (1 or more) or a list of seeds (0 or more)")
        if not isinstance(seeds, range) and len(set(seeds)) != len(seeds):
            raise complain.at(loc, "a seed is listed twice")
        return Axis(name, role, seeds, ())
    if isinstance(values, dict):
        labels: list[Any] = list(values)
        contents = list(values.values())
    else:
        labels = contents = list(values)
    if not labels:
        raise complain.at(loc, "has no values")
    for index, label in enumerate(labels):
        if not isinstance(label, Label):
            raise complain.at(
                (*loc, index), "give values that are not a word or a number a label: `{label: value, ...}`"
            )
        if label in labels[:index]:
            raise complain.at((*loc, index), f"{label!r} is listed twice")
    path = SHORT.get(name, name)
    if path.split(".")[0] in SECTIONS:
        return Axis(name, role, tuple(labels), tuple(assignments_of(path, content) for content in contents))
    if not isinstance(values, dict):
        known = [*SHORT, "model", "augmentation", "train.", "dataset.", "model."]
        raise complain.at(
            loc,
            f"unknown axis{did_you_mean(name, known)} (an axis of named overrides is written {{label: {{path: value}}}})",
        )
    if name in RESULT_COLUMNS:
        raise complain.at(loc, "is the name of a result column: give the axis another name, such as `variant`")
    for label, content in values.items():
        if not isinstance(content, dict | None):
            raise complain.at((*loc, label), "must be a mapping of overrides, such as {train.epochs: 20}")
    return Axis(name, role, tuple(labels), tuple(assignments_of("", content or {}) for content in contents))


def _check_axes(axes: Sequence[Axis], file: SuiteFile, overrides: Assignments, complain: Complaints) -> None:
    """Refuse axes that hide each other, and zip groups that cannot go in step."""
    by_name: dict[str, Axis] = {}
    for axis in axes:
        if axis.name in by_name:
            raise complain.at((axis.role, axis.name), f"is an axis of {by_name[axis.name].role} already")
        by_name[axis.name] = axis
        for path in overrides:
            if SHORT.get(axis.name, axis.name) == path:
                raise SuiteError(
                    f"--set {path}: is an axis of this suite: choose among its values with --only {axis.name}=..., or"
                    f" replace them with --set '{axis.role}.{axis.name}=[...]'"
                )
        if axis.name.split(".")[0] == "resources":
            raise complain.at((axis.role, axis.name), "resources decide where a trial runs, not what it computes")
    used: set[str] = set()
    for index, group in enumerate(file.zip):
        for name in group:
            if name not in by_name:
                raise complain.at(("zip", index), f"{name!r} is no axis{did_you_mean(name, by_name)}")
            if by_name[name].role == "repeat" or name in used:
                raise complain.at(("zip", index), f"{name!r} cannot be in this group: each axis once, and no seeds")
            used.add(name)
        lengths = {name: len(by_name[name].labels) for name in group}
        if len(set(lengths.values())) != 1:
            sizes = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise complain.at(("zip", index), f"axes that go in step need equally many values: {sizes}")
        if len({by_name[name].role for name in group}) != 1:
            raise complain.at(("zip", index), "axes that go in step must all be in compare or all in search")


def _base_settings(document: dict[str, Any], axes: Sequence[Axis], complain: Complaints) -> dict[str, Any]:
    """Return the settings that the axes are laid over, defaults filled in; the model's name may still be empty."""
    sections = {key: document[key] for key in SECTIONS if document.get(key) is not None}
    given = {"dataset": sections["dataset"], "model": sections.get("model", NO_MODEL)}
    bare = TrialSettings.model_validate(given).model_dump()
    tree = assign(bare, assignments_of("", {k: v for k, v in sections.items() if k not in given}))
    settings = _validated(TrialSettings, tree, complain)
    _check_names(settings, complain, ())
    if settings.model.name == NO_MODEL:
        setting = [axis for axis in axes if any("model" in a or "model.name" in a for a in axis.assignments)]
        if not setting:
            raise complain.at(
                (), "model: is missing: name one under `model:` or several under `compare: {model: [...]}`"
            )
        for axis in setting:
            for index, assignments in enumerate(axis.assignments):
                if not any(path in ("model", "model.name") for path in assignments) and len(setting) == 1:
                    raise complain.at((axis.role, axis.name, *_key(axis, index, complain)), "names no model")
    return settings.model_dump()


def _resolved(axis: Axis, base: dict[str, Any], complain: Complaints) -> Axis:
    """Return ``axis`` with every value validated against ``base`` and brought to its final form (``"1e-3"`` -> 0.001)."""
    return Axis(
        axis.name,
        axis.role,
        axis.labels,
        tuple(
            _resolved_value(assignments, base, complain, (axis.role, axis.name, *_key(axis, index, complain)))
            for index, assignments in enumerate(axis.assignments)
        ),
    )


def _key(axis: Axis, index: int, complain: Complaints) -> tuple[Any, ...]:
    """Return how the document addresses a value: by its label in a mapping, else by its position."""
    label = axis.labels[index]
    return (label,) if (axis.role, axis.name, label) in complain.marks else (index,)


def _resolved_value(
    assignments: Assignments, base: dict[str, Any], complain: Complaints, loc: tuple[Any, ...]
) -> Assignments:
    tree = assign(base, assignments)
    try:
        settings = TrialSettings.model_validate(tree)
    except ValidationError as failed:
        error = max(failed.errors(), key=lambda e: len(_plain_loc(e["loc"], tree)))
        place = _plain_loc(error["loc"], tree)
        path = ".".join(str(part) for part in place)
        inside = next((key for key in assignments if path.startswith(key)), None)
        message = _in_words(error, TrialSettings, place)
        raise complain.at(
            (*loc, *([inside] if inside else [])), message if inside == path else f"{path}: {message}"
        ) from None
    _check_names(settings, complain, loc)
    resolved = settings.model_dump()
    return {path: read(resolved, path) for path in assignments}


def _label(axis: Axis, value: Any, complain: Complaints, loc: tuple[Any, ...]) -> Label:
    """Return the label of ``axis`` that ``value`` names; ``0.001`` and ``1e-3`` are one."""
    for label in axis.labels:
        if value == label or str(value) == str(label):
            return label
    shown = [str(label) for label in itertools.islice(axis.labels, 50)]
    raise complain.at(loc, f"{value!r} is no value of {axis.name}{did_you_mean(str(value), shown)}")


def _matching(
    key: str, index: int, point: dict[str, Any], axes: Sequence[Axis], complain: Complaints
) -> dict[str, Label]:
    """Read a partial point, such as an ``exclude`` entry or the axes of a reference row."""
    by_name = {axis.name: axis for axis in axes}
    for name in point:
        if name not in by_name:
            raise complain.at((key, index, name), f"is no axis{did_you_mean(name, by_name)}")
    if not point:
        raise complain.at((key, index), "names no axis")
    return {name: _label(by_name[name], value, complain, (key, index, name)) for name, value in point.items()}


def _include(
    index: int, point: dict[str, Any], axes: Sequence[Axis], base: dict[str, Any], complain: Complaints
) -> tuple[dict[str, Label], Assignments]:
    """Read a point besides the grid: labels of the axes, or new plain values where the axis is a path."""
    by_name = {axis.name: axis for axis in axes if axis.role != "repeat"}
    for name in point:
        if name not in by_name:
            raise complain.at(("include", index, name), f"is no axis{did_you_mean(name, by_name)}")
    labels: dict[str, Label] = {}
    assignments: Assignments = {}
    for name, axis in by_name.items():
        if name not in point:
            raise complain.at(("include", index), f"needs a value for {name}")
        loc = ("include", index, name)
        value = point[name]
        path = SHORT.get(name, name)
        if value not in axis.labels and path.split(".")[0] in SECTIONS and isinstance(value, Label):
            labels[name] = value
            assignments.update(_resolved_value({path: value}, base, complain, loc))
        else:
            labels[name] = _label(axis, value, complain, loc)
            assignments.update(axis.assignments[list(axis.labels).index(labels[name])])
    return labels, assignments


def _reference(index: int, row: Reference, axes: Sequence[Axis], complain: Complaints) -> dict[str, Any]:
    point = _matching("reference", index, dict(row.__pydantic_extra__ or {}), axes, complain)
    return {**point, **{name: value for name, value in row if value is not None and name not in point}}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of suite files, for editors."""
    schema = SuiteFile.model_json_schema()
    schema["title"] = "raybench suite"
    return schema
