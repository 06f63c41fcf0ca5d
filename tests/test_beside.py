"""A context beside the work of this thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from raybench.beside import beside

said: list[tuple[str, threading.Thread]] = []


@pytest.fixture(autouse=True)
def _nothing_said() -> None:
    said.clear()


def note(what: str) -> None:
    said.append((what, threading.current_thread()))


@contextmanager
def noted(wait: threading.Event | None = None) -> Iterator[int]:
    assert wait is None or wait.wait(60)
    note("entered")
    try:
        yield 7
    finally:
        note("left")


def test_one_other_thread_makes_enters_and_leaves() -> None:
    go_on = threading.Event()

    def make() -> object:
        note("made")
        return noted(go_on)

    with beside(make) as entered:  # type: ignore[arg-type]
        note("here")
        go_on.set()
        assert entered.result() == entered.result() == 7
        assert [what for what, _ in said if what != "here"] == ["made", "entered"]
    assert [what for what, _ in said if what != "here"] == ["made", "entered", "left"]
    (other,) = {thread for what, thread in said if what != "here"}
    assert other is not threading.current_thread() and not other.is_alive()


def test_an_error_here_waits_until_what_was_entered_is_left() -> None:
    with pytest.raises(KeyError, match="mine"), beside(noted):
        raise KeyError("mine")
    assert [what for what, _ in said] == ["entered", "left"]


def test_an_error_of_entering_comes_where_it_is_waited_for() -> None:
    def make() -> object:
        raise ValueError("no")

    with beside(make) as entered, pytest.raises(ValueError, match="no"):  # type: ignore[arg-type]
        entered.result()
    with pytest.raises(KeyError, match="mine"), beside(make):  # type: ignore[arg-type]
        raise KeyError("mine")


def test_an_error_of_leaving_is_not_lost() -> None:
    @contextmanager
    def failing() -> Iterator[int]:
        yield 1
        raise OSError("late")

    with pytest.raises(OSError, match="late"), beside(failing) as entered:
        entered.result()
