"""A generator read ahead on a thread, so that its work and the reader's overlap."""

import contextvars
import queue
import threading
from collections.abc import Generator
from contextlib import closing
from typing import Any, TypeVar

T = TypeVar("T")


def ahead(items: Generator[T], depth: int) -> Generator[T]:
    """The items of a generator, read on a thread, at most `depth` beyond the one in use.

    An exception that reading raises is raised here, the same object. When this is closed, or its
    reader fails, the thread closes the items and ends before anything else happens. The thread
    can't be interrupted while it waits for an item, so that closing may take as long as one item.

    >>> list(ahead((letter for letter in "abc"), depth=2))
    ['a', 'b', 'c']
    """
    ready: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    room = threading.Semaphore(depth - 1)
    closed = False

    def read() -> None:
        try:
            with closing(items):
                for item in items:
                    ready.put((True, item))
                    del item  # or this thread would hold it while it waits
                    room.acquire()
                    if closed:
                        return
            ready.put((False, None))
        except BaseException as error:
            ready.put((False, error))

    # In the caller's context: NumPy's error state, for one, is a context variable.
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(read,), name="fnn.prefetch", daemon=True)
    try:
        thread.start()  # here too may Ctrl-C arrive
        while True:
            more, item = ready.get()
            if not more:
                if item is not None:
                    raise item
                return
            room.release()
            yield item
            del item
    finally:
        closed = True
        room.release()
        if thread.is_alive():
            thread.join()
