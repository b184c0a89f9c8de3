"""Ctrl-C, and the SIGTERM of a batch system: noted, so that the step in hand can end."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruption_noted() -> Iterator[Callable[[], bool]]:
    """Inside, the first of these signals is only noted; a second one interrupts at once.

    Yields:
        A function that tells whether one came.
    """
    noted = threading.Event()

    def note(_signal: int, _frame: Any) -> None:
        if noted.is_set():
            raise KeyboardInterrupt
        noted.set()

    if threading.current_thread() is not threading.main_thread():
        yield noted.is_set
        return
    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield noted.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
