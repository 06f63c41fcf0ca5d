"""YAML files with positions, also one on top of another: every complaint names file, line and column."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from raybench.errors import SuiteError, did_you_mean

Marks = Mapping[str, str]
"""Dotted path of a key -> where it stands, as ``file:line:column``. ``a.b: 1`` and ``a: {b: 1}`` are one path."""


class Complaints:
    """Turns a key's path in the document into ``file:line:column: key``."""

    def __init__(self, source: str, marks: Marks | None = None) -> None:
        self.source = source
        self.marks = marks or {}
        self.said_by: dict[str, str] = {}
        """Dotted paths that came from ``--set`` and not from the file -> the text given there."""
        self.names = True
        """Whether a registered name that is not known is worth a complaint, or that of an axis that tables need."""

    def at(self, path: Iterable[str | int], message: str) -> SuiteError:
        """Return the error for the key at ``path``, at the place of the nearest key that the document has."""
        key = ".".join(str(part) for part in path)
        above = list(_above(key))
        said = [
            *(path for path in above if path in self.said_by),
            *(p for p in self.said_by if p.startswith(f"{key}.")),
        ]
        if said:
            return SuiteError(f"--set {self.said_by[said[0]]}: {key}: {message}")
        place = next((self.marks[path] for path in above if path in self.marks), f"{self.source}:1:1")
        return SuiteError(f"{place}: {key}: {message}")


def _above(key: str) -> Iterator[str]:
    """Yield a dotted path, its parent, its parent's parent, ... and the root, which is empty."""
    while key:
        yield key
        key = key.rpartition(".")[0]
    yield ""


class _Constructor(SafeConstructor):
    """Keys are words, whatever they look like (``8: ...``), and so are dates, which YAML 1.2 does not know."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def parse_yaml(text: str, source: str) -> tuple[Any, Marks]:
    """Return the YAML 1.2 document (``1e-3`` is a number, ``off`` a word), and where its keys stand.

    Raises:
        SuiteError: if it is not YAML.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    where, problem = "1:1", ""
    try:
        root = yaml.compose(text)
        if root is None:
            return None, {}
        return yaml.constructor.construct_document(root), dict(_marks(root, source))
    except MarkedYAMLError as error:
        if mark := error.problem_mark or error.context_mark:
            where = f"{mark.line + 1}:{mark.column + 1}"
        problem = str(error.problem or error.context)
        if problem.startswith("but "):
            problem = f"{error.context} {problem}"
    except (YAMLError, ValueError, KeyError) as error:  # the last two: a tag such as !!int before what is none
        problem = str(error)
    except RecursionError:
        problem = "nested without end"
    raise SuiteError(f"{source}:{where}: not valid YAML: {' '.join(problem.split())}")


def write_yaml(document: Any) -> str:
    """Return plain data as YAML, which `parse_yaml` reads as the same data: keys in their order, lists in a line."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    # YAML takes these for ends of lines, unless they are escaped; then all that is not ASCII is.
    yaml.allow_unicode = not {"\x85", "\u2028", "\u2029"} & {*json.dumps(document, ensure_ascii=False, default=str)}
    yaml.width = 110
    text = io.StringIO()
    yaml.dump(document, text)
    return text.getvalue()


def _marks(node: Node, source: str, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted path, ``file:line:column``) of everything in ``node``."""
    yield path, _place(node, source)
    if isinstance(node, MappingNode):
        for key, value in node.value:
            below = f"{path}.{key.value}".lstrip(".")
            yield from _marks(value, source, below)
            yield below, _place(key, source)
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            yield from _marks(value, source, f"{path}.{index}")


def _place(node: Node, source: str) -> str:
    return f"{source}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


# ---------------------------------------------------------------------------------------------------------------------
# One file on top of another

OWN = ("name", "about", "trials")
"""Keys that say what a file itself is: one that extends it does not have them from it."""


def read_file(path: Path, extending: tuple[Path, ...] = ()) -> tuple[dict[str, Any], Marks]:
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
        theirs, where = read_file(below, chain)
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
        loc: tuple[str | int, ...] = ("extends", index) if several else ("extends",)
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
