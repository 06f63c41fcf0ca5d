"""YAML with positions: every complaint about a suite names file, line and column."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from raybench.errors import SuiteError

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
        """Whether a registered name that is not known is worth a complaint."""

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
