"""YAML with positions: every complaint about a suite names file, line and column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from raybench.errors import SuiteError


class Complaints:
    """Turns a key's path in the document into ``file:line:column: key``."""

    def __init__(self, source: str, root: Node | None) -> None:
        self.source = source
        self.marks: dict[tuple[Any, ...], tuple[int, int]] = dict(_marks(root)) if root is not None else {}
        self.said_by: dict[tuple[Any, ...], str] = {}
        """Keys that came from ``--set`` and not from the file."""
        self.names = True
        """Whether a registered name that is not known is worth a complaint."""

    def at(self, loc: Sequence[Any], message: str) -> SuiteError:
        """Return the error for the key at ``loc``, or at its nearest parent that the document has."""
        key = ".".join(str(part) for part in loc)
        prefixes = [tuple(loc[:length]) for length in range(len(loc), -1, -1)]
        for prefix in prefixes:
            if prefix in self.said_by:
                return SuiteError(f"--set {self.said_by[prefix]}: {key}: {message}")
        line, column = next((self.marks[prefix] for prefix in prefixes if prefix in self.marks), (1, 1))
        return SuiteError(f"{self.source}:{line}:{column}: {key + ': ' if key else ''}{message}")


def _marks(node: Node, loc: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], tuple[int, int]]]:
    """Yield (path of a key, (line, column)) for everything below ``node``, counted from 1."""
    yield loc, (node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, MappingNode):
        for key, value in node.value:
            below = (*loc, key.value)
            yield from _marks(value, below)
            yield below, (key.start_mark.line + 1, key.start_mark.column + 1)
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            yield from _marks(value, (*loc, index))


def parse_yaml(text: str, source: str) -> tuple[Any, Node | None]:
    """Return the YAML 1.2 document (``1e-3`` is a number, ``off`` a word) and its tree of positions."""
    yaml = YAML(typ="safe", pure=True)
    try:
        return yaml.load(text), yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
        problem = " ".join(str(error.problem or error.context).split())
        raise SuiteError(f"{source}:{where}: not valid YAML: {problem}") from None
    except YAMLError as error:
        raise SuiteError(f"{source}:1:1: not valid YAML: {' '.join(str(error).split())}") from None
