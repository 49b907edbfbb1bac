"""SIGINT and SIGTERM: held back until an epoch has ended, and Ctrl-C at all other times.

An exception that is raised while a compiled library is imported, or in a callback of the garbage
collector, may be replaced or only printed, and the program goes on.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

INTERRUPTED = 128 + signal.SIGINT
"""The exit code."""


def end_at_once() -> None:
    """Let Ctrl-C end the process with a line, as long as nothing can be lost: during imports."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def end_by_exception() -> None:
    """Let Ctrl-C raise KeyboardInterrupt after `end_at_once`, so that what was begun is tidied."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = _raise_again


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"Aborted!\n")
    os._exit(INTERRUPTED)


def _raise_again(ignored: Any) -> None:
    """Send SIGINT again, a moment later, where Python would only print its exception. Sent to the
    main thread, it also ends whatever that waits for."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        again = signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)
        threading.Timer(0.01, *again).start()
    else:
        sys.__unraisablehook__(ignored)


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Collect the SIGINT and SIGTERM that arrive within the block, in the list that it gets.

    The first of each is only collected; the second acts as it would outside the block. Call it
    in the main thread: Python raises ValueError in any other.
    """
    received: list[int] = []

    def collect(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[number])

    before: dict[int, Any] = {}
    for caught in (signal.SIGINT, signal.SIGTERM):
        before[caught] = signal.signal(caught, collect)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
