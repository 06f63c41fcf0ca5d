"""Settings by their dotted paths, ``train.optimizer.momentum``: which there are, and how to set them.

And what was wrong with a setting, in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from raybench.errors import did_you_mean
from raybench.settings import Named, TrialSettings

Assignments = dict[str, Any]
"""Dotted path in a trial's settings -> value."""

SHORT = {"lr": "train.lr", "batch_size": "train.batch_size", "optimizer": "train.optimizer"}
"""Keys that are so common that they need no dotted path."""


def full_path(name: str) -> str:
    """Return the path that a short name stands for: ``lr`` is ``train.lr``."""
    root, dot, rest = name.partition(".")
    return SHORT.get(root, root) + dot + rest


def wrong_key(cls: type[BaseModel], path: str) -> str:
    """Return what is wrong with ``path`` in ``cls``, or nothing."""
    keys = path.split(".")
    for depth, key in enumerate(keys):
        section = _section(cls, keys[:depth])
        if section is None:
            return f"{'.'.join(keys[:depth])} is given as a whole, not key by key"
        if issubclass(section, Named):
            return ""  # options are known to the code that takes them
        if key not in section.model_fields:
            return (
                f"unknown key{'' if depth == len(keys) - 1 else f' {key!r}'}{did_you_mean(key, section.model_fields)}"
            )
    return ""


def _section(cls: type[BaseModel], keys: Iterable[str | int]) -> type[BaseModel] | None:
    """Return the section of ``cls`` below ``keys``; None where there is none, or a value that is given as a whole."""
    section: type[BaseModel] | None = cls
    for key in keys:
        known = section.model_fields.get(str(key)) if section else None
        kind: Any = known.annotation if known else None
        if get_origin(kind) in (Union, UnionType):
            kinds = [option for option in get_args(kind) if option is not type(None)]
            kind = kinds[0] if len(kinds) == 1 else None
        section = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    return section


def flatten(path: str, value: Any) -> Assignments:
    """Turn nested overrides into dotted ones. A mapping with a ``name`` replaces what is there as a whole.

    An empty mapping changes nothing, but where a section is off by default it switches it on.
    """
    *above, key = path.split(".")
    if not isinstance(value, dict) or "name" in value or not _section(TrialSettings, [*above, key]):
        return {path: value}
    parent = _section(TrialSettings, above)
    if not value and parent and parent.model_fields[key].default is None:
        return {path: value}
    return {below: new for key, part in value.items() for below, new in flatten(f"{path}.{key}", part).items()}


def assign(settings: dict[str, Any], assignments: Assignments) -> dict[str, Any]:
    """Return ``settings`` with ``assignments`` made, shallow paths first; nothing in the argument is changed."""
    result = dict(settings)
    for path in sorted(assignments, key=lambda path: path.count(".")):
        put(result, path.split("."), assignments[path])
    return result


def put(tree: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set ``tree[k1][k2]... = value``; a name on the way (``model: model1``) becomes ``{name: model1}``."""
    for key in keys[:-1]:
        below = tree.get(key)
        if isinstance(below, str):
            below = {"name": below}
        tree[key] = dict(below) if isinstance(below, dict) else {}
        tree = tree[key]
    tree[keys[-1]] = value


# ---------------------------------------------------------------------------------------------------------------------
# What was wrong, in words

WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "dict": "a mapping",
    "model": "a mapping",
}
"""First word of pydantic's name for an error -> what would have been right."""


def first_complaint(failed: ValidationError, cls: type[BaseModel]) -> tuple[tuple[str | int, ...], str]:
    """Return where ``cls`` was not satisfied, and in words: what is wrong, and what would be right."""
    # An unknown key comes first: where it is a typo, it explains what else is amiss.
    error = min(failed.errors(), key=lambda error: error["type"] != "extra_forbidden")
    place, kind = error["loc"], error["type"]
    if kind == "extra_forbidden":
        section = _section(cls, place[:-1])
        return place, f"unknown key{did_you_mean(str(place[-1]), section.model_fields if section else ())}"
    if kind == "missing":
        return place, "is missing"
    if kind == "value_error":
        return place, str(error["ctx"]["error"])
    first, _, problem = kind.partition("_")
    if problem in ("type", "parsing", "parsing_size", "from_float"):
        wanted = WANTED[first]
    elif kind == "string_pattern_mismatch":
        wanted = "letters, digits, '_' and '-', the first a letter or a digit"
    else:
        wanted = error["msg"].removeprefix("Input should be ")
    return place, f"{error['input']!r} is not right: must be {wanted}"
