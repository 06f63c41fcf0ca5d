"""A context that is entered in a thread of its own, while this one does something else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def beside(make: Callable[[], AbstractContextManager[T]]) -> Iterator[Future[T]]:
    """Make a context and enter it in a thread; give the future of what it gives.

    The same thread holds the context until the ``with`` block ends and leaves it then: Linux ends the processes that
    Ray has started together with the thread that started them. So a block that fails waits until the context has been
    entered, and left.

    ``make`` runs in the thread too, so that it may import what takes long.

    Raises:
        Exception: what ``make`` or entering raises, when the future is asked for its result; what leaving raises, at
            the end of the block.
    """
    entered: Future[T] = Future()
    over = threading.Event()
    failed: list[BaseException] = []

    def hold() -> None:
        try:
            with make() as given:
                entered.set_result(given)
                over.wait()
        except BaseException as error:
            if entered.done():
                failed.append(error)
            else:
                entered.set_exception(error)

    thread = threading.Thread(target=hold, name="beside")
    thread.start()
    try:
        yield entered
    finally:
        over.set()
        thread.join()
    if failed:
        raise failed[0]
