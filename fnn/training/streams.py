"""Epochs of a stream: an iterable of batches, read ahead on a thread, so that its work and the
device's overlap."""

import contextvars
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fnn.base import Array, at_least_float32
from fnn.training.checks import Checks, Data, count, examples, is_pair
from fnn.training.evaluation import Evaluation
from fnn.training.steps import State, Training

GROUP_BYTES, GROUP_SIZE = 2**21, 16
"""Streamed batches go to the device together while they are no larger and no more than this: a
call takes as long as several steps of a small network."""
PREFETCH = 2
"""Groups of streamed batches that may be read before they are used."""

T = TypeVar("T")


class Stream:
    """Batches (x, y) in the order of an iterable, which is iterated anew in each epoch."""

    can_go_ahead = False

    def __init__(self, evaluation: Evaluation, source: Iterable[Any]) -> None:
        self.training, self.source = evaluation.training, source
        self.checks = self.training.checks("fit")
        self._advance = jax.jit(partial(_steps, self.training, self.checks), donate_argnums=0)
        self._numbers = jax.jit(evaluation.numbers)

    def epoch(
        self, state: State, validation: Data | None, key: Array, number: int
    ) -> tuple[State, Array, Any]:
        """(state, numbers, noted) after epoch `number` of a run with this key."""
        # The caller's state stays valid; the copy's memory is used again step after step.
        state = jax.tree.map(jnp.copy, state)
        _, step_key = self.training.epoch_keys(jax.random.fold_in(key, number))
        noted: list[Any] = []
        counts: list[int] = []
        with closing(_ahead(_groups(self._pairs()), PREFETCH)) as groups:
            for group in groups:
                for batch in group:
                    if isinstance(batch[1], np.ndarray):  # the device's would be waited for
                        self.checks.targets(batch[1])
                counts.append(len(group) * count(group[0]))
                # The call moves the batches while the device computes those before them. One call
                # may wait, so that the device never does; more of them would let a fast source
                # fill its memory with batches.
                jax.block_until_ready(noted[-2:-1])
                if self.training.devices is not None:
                    group = [self.training.devices.shares(batch) for batch in group]
                state, latest = self._advance(state, group, step_key)
                noted.append(latest)
        if not noted:
            raise ValueError(
                "fit: no batches came; each epoch iterates over the data anew, which an "
                "iterator or a generator allows once: give a list, or an object with __iter__"
            )
        losses = [entry.loss for entry, _ in noted]
        mean = sum(float(v.mean()) * n for v, n in zip(losses, counts, strict=True)) / sum(counts)
        # What was not looked at before is then found in the replay, by its batch.
        mean = mean if all(fit.all() for _, fit in noted) else np.nan
        value = jnp.asarray(mean, at_least_float32(losses[0].dtype))
        found = self._numbers(state, value, group[-1], validation)
        records = [entry.record for entry, _ in noted]
        return state, found, jax.tree.map(lambda *a: jnp.concatenate(a), *records)

    def batches(self, state: State, order_key: Array) -> Iterator[Data]:
        """The batches again, each checked before it is used."""
        for place, batch in enumerate(self._pairs(), 1):
            self.checks._replace(name=f"fit: batch {place}").examples(state.params, *batch)
            yield batch

    def _pairs(self) -> Generator[Data]:
        """The batches as pairs of arrays of NumPy's or JAX's. Raises TypeError for what is not a
        pair, ValueError for no examples and for whole numbers that JAX would wrap."""
        for batch in self.source:
            if not is_pair(batch):
                raise TypeError(f"fit: expected batches (x, y), got {type(batch).__name__}")
            pair = self.checks.pair(batch)
            if count(pair) == 0:
                raise ValueError("fit: expected at least one example in each batch, got none")
            yield pair


def _steps(
    training: Training, checks: Checks, state: State, group: list[Data], key: Array | None
) -> tuple[State, Any]:
    """A step for each batch of the group; what was noted, and whether the targets fit."""
    first, *later = group
    if not later:
        state, noted = training.step(state, first, key)
        noted = jax.tree.map(lambda a: a[None], noted)
    else:
        stacked = jax.tree.map(lambda *a: jnp.stack(a), *later)
        state, noted = training.steps(state, first, stacked, lambda batch: batch, key)
    found = noted, jnp.stack([checks.targets_fit(examples(batch)[1]) for batch in group])
    return state, found if training.devices is None else training.devices.whole(found)


def _groups(batches: Iterable[Data]) -> Generator[list[Data]]:
    """Group equal-shaped batches up to `GROUP_SIZE`; yield a shorter remainder one by one. So there
    are two programs for each shape, however many batches come."""
    group: list[Data] = []
    form: Any = None
    for batch in batches:
        arrays, structure = jax.tree.flatten(batch)
        if form != (form := (structure, [(a.shape, str(a.dtype)) for a in arrays])):
            yield from ([one] for one in group)
            group = []
        group.append(batch)
        together = GROUP_BYTES // max(1, sum(a.nbytes for a in arrays))
        if len(group) >= min(max(1, together), GROUP_SIZE):
            yield group
            group = []
    yield from ([one] for one in group)


def _ahead(items: Generator[T], depth: int) -> Generator[T]:
    """The items of a generator, read on a thread, at most `depth` beyond the one in use.

    An exception that reading raises is raised here, the same object. When this is closed, or its
    reader fails, the thread closes the items and ends before anything else happens. The thread
    can't be interrupted while it waits for an item, so that closing may take as long as one item.
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
