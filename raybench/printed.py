"""Printed numbers: each stands for all the values that print so, half a unit of its last decimal to either side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import pandas as pd

from raybench.errors import UserError

SLACK = 1e-7
"""Beyond half a unit: what a share loses as a 32-bit float before it is printed."""
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

Row = Mapping[str, Any]
"""A row of a table: labels, and numbers or their printed texts."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a row, or with several together."""

    where: dict[str, Any]
    """The labels of the row, or those that the rows share."""
    reason: str

    def __str__(self) -> str:
        labels = ", ".join(f"{name}={label}" for name, label in self.where.items())
        return f"{labels}: {self.reason}" if labels else self.reason


@dataclass(frozen=True, slots=True)
class Number:
    """A printed number, and the interval of the values that print so."""

    text: str
    low: float
    high: float
    decimals: int = 0

    def __str__(self) -> str:
        return self.text

    def format(self, *values: float) -> str:
        """Return a value, or a range of values, with as many decimals as this number has."""
        return " to ".join(dict.fromkeys(f"{value:.{self.decimals}f}" for value in values))

    def whole(self, of: int) -> bool:
        """Return whether a multiple of ``1 / of`` is printed so."""
        return math.ceil(self.low * of) <= math.floor(self.high * of)

    def beside(self, of: int, what: str) -> str:
        """Return the multiples of ``1 / of`` next to this number: ``30 right are 0.83 and 31 right are 0.86``."""
        below = math.floor(float(self.text) * of)
        return " and ".join(f"{k:,} {what} are {self.format(k / of)}" for k in (below, below + 1))


ANY = Number("any", 0.0, 1.0)
"""A share that is not given."""


def read(value: Any, name: str, decimals: int | None = None) -> Number | None:
    """Return the printed number ``value``: a text says its decimals itself; None and NaN are no number."""
    if value is None or value is pd.NA or value != value:
        return None
    if isinstance(value, str) or decimals is None:
        decimals = _decimals(value, name)
    half = 0.5 * 10.0**-decimals + SLACK
    return Number(f"{float(value):.{decimals}f}", float(value) - half, float(value) + half, decimals)


def count_of(value: Any, name: str) -> int | None:
    """Return the count ``value``: none if it is missing, as in `read`."""
    number = read(value, name)
    if number and float(value) % 1:
        raise UserError(f"{name}: {value!r} is not a whole number")
    return int(float(value)) if number else None


def _decimals(value: Any, name: str) -> int:
    """Return the decimals of a printed text, or the fewest that write the number ``value``."""
    try:
        exact = Decimal(value) if isinstance(value, str) else Decimal(repr(float(value))).normalize()
        return max(0, -int(exact.as_tuple().exponent))
    except (InvalidOperation, ValueError, TypeError):
        raise UserError(f"{name}: {value!r} is not a number") from None


def decimals_of(rows: Sequence[Row], columns: Iterable[str]) -> dict[str, int]:
    """Return the decimals to which each column was printed: the most that any of its numbers needs.

    A suite file holds numbers, not texts, and 0.690 is the number 0.69. Tables have one format per column, so 0.69
    among numbers of three decimals was printed 0.690. Where all numbers end in 0 a decimal is missed, which only widens
    the intervals; where one column holds rows of different tables, some are read as more precise than they were.
    """
    needed = {name: [_decimals(row[name], name) for row in rows if read(row.get(name), name)] for name in columns}
    return {name: max(found) for name, found in needed.items() if found}


def not_a_share(name: str, number: Number) -> list[str]:
    """Say if nothing between 0 and 1 is printed so."""
    inside = number.low <= 1 and number.high >= 0
    return [] if inside else [f"{name} {number} cannot be: it is a share, between 0 and 1"]


def not_whole(name: str, number: Number, images: int, runs: int | None = 1) -> list[str]:
    """Say if no whole number of right answers, in all ``runs`` together, gives the accuracy."""
    if not runs or number.whole(of := runs * images):
        return []
    answers = spelled(images, "image") if runs == 1 else f"{runs} x {spelled(images, 'image')}"
    return [f"{name} {number} cannot be: of {answers} {number.beside(of, 'right')}"]


def spelled(number: int, noun: str) -> str:
    """Return ``one image`` or ``10,000 images``."""
    return f"{WORDS[number] if number < len(WORDS) else f'{number:,}'} {noun}{'' if number == 1 else 's'}"
