"""SIGINT and SIGTERM, held back until an epoch has ended."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Collect the SIGINT and SIGTERM that arrive within the block, in the list that it gets.

    The first of each is only collected; the second acts as it would outside the block. Call it
    in the main thread: Python raises ValueError in any other.

    >>> with held_back() as received:
    ...     signal.raise_signal(signal.SIGTERM)
    >>> received == [signal.SIGTERM]
    True
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
