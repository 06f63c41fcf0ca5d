"""The axes of a suite's grid: read, checked against the settings that they change, and the points they make.

Every complaint names the place in the suite file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from pydantic import ValidationError

from raybench.dotted import SHORT, Assignments, assign, first_complaint, flatten, full_path, wrong_key
from raybench.errors import SuiteError, UserError, did_you_mean
from raybench.records import STATISTICS, TrialRow
from raybench.registry import DATASETS, check_augmentation_name, check_model_name
from raybench.search import Range
from raybench.settings import PARTIAL, DatasetSettings, TrainSettings, TrialSettings
from raybench.yamlfile import Complaints

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
TAKEN = frozenset({f.name for f in fields(TrialRow)} | STATISTICS | {"interactions"})
"""Names of columns, in the results or in a table, and of a row beside those of axes, that no axis may have."""
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
NO_MODEL = ""
"""Stands for the model while only the axes name one."""


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
        """Return the label that ``value`` names; on a range, any number in it."""
        if self.range is None:
            return find_label(self.labels, value)
        number, (low, high) = _number(value), self.range.ends
        if number is None or not low <= number <= high or (self.range.integer and not number.is_integer()):
            return None
        return int(number) if self.range.integer else number

    def assigned(self, label: Label) -> Assignments:
        """Return what a label changes in a trial's settings."""
        return {full_path(self.name): label} if self.range else self.assignments[self.labels.index(label)]


def check_names(settings: TrialSettings, complain: Complaints, value: Loc = ()) -> None:
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


def read_axis(
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
        if complain.names and not str(label).isprintable():  # what ran before this was refused can still be read
            raise complain.at((role, name), f"{label!r} is not right: must be one line, of characters to be printed")
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
    if complain.names and name in TAKEN:  # what ran before the name was taken can still be read
        raise complain.at(
            loc, "is the name of a column or row of tables: give the axis another name, such as `variant`"
        )
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
    check_names(settings, complain, loc)
    return settings


def _as_read(settings: TrialSettings, path: str, label: Label) -> Label:
    """Return the value at ``path`` where it is plain (``"1e-3"`` was read as 0.001), else ``label``."""
    value: Any = settings.model_dump()
    for key in path.split("."):
        value = value[key]
    return value if isinstance(value, Label) else label


def assigned_paths(axis: Axis) -> set[str]:
    """Return all that the axis sets."""
    drawn = {full_path(axis.name)} if axis.range else set()
    return drawn.union(*axis.assignments)


def check_axes(axes: Sequence[Axis], overrides: Assignments, complain: Complaints) -> None:
    """Refuse axes that hide each other, and overrides that hide an axis."""
    roles: dict[str, Role] = {}
    setters: dict[str, str] = {}
    for axis in axes:
        loc = (axis.role, axis.name)
        if axis.name in roles:
            raise complain.at(loc, f"is an axis of {roles[axis.name]} already")
        roles[axis.name] = axis.role
        for path in sorted(assigned_paths(axis)):
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


def check_zip(groups: Sequence[Sequence[str]], axes: Sequence[Axis], complain: Complaints) -> None:
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


def check_point(
    loc: Loc, point: dict[str, Any], axes: Sequence[Axis], complain: Complaints, others: Iterable[str] = ()
) -> None:
    """Refuse a point that names no axis, or what is none."""
    known = [axis.name for axis in axes]
    for name in point:
        if name not in known:
            raise complain.at((*loc, name), f"is no axis of compare or search{did_you_mean(name, [*known, *others])}")
    if not point:
        raise complain.at(loc, "names no axis")


def matching(loc: Loc, point: dict[str, Any], axes: Sequence[Axis], complain: Complaints) -> dict[str, Label]:
    """Read a partial point, such as an ``exclude`` entry or the axes of a reference row."""
    check_point(loc, point, axes, complain)
    by_name = {axis.name: axis for axis in axes}
    return {name: _label(by_name[name], value, complain, (*loc, name)) for name, value in point.items()}


def read_include(
    index: int, point: dict[str, Any], axes: Sequence[Axis], base: dict[str, Any], complain: Complaints
) -> tuple[dict[str, Label], Assignments]:
    """Read a point besides the grid: labels of the axes, or new plain values where the axis is a path."""
    check_point(("include", index), point, axes, complain)
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
