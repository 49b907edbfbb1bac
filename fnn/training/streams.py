"""Epochs of a stream: an iterable of batches, prefetched on a thread."""

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
"""The largest group of batches that one call trains on: calling takes as long as several steps of a
small network."""
PREFETCH = 2
"""The number of groups of batches that are read ahead."""

T = TypeVar("T")


class Stream:
    """Batches (x, y) in the order of an iterable, which is iterated once per epoch."""

    can_run_ahead = False

    def __init__(self, evaluation: Evaluation, source: Iterable[Any]) -> None:
        self.training, self.source = evaluation.training, source
        self.checks = self.training.checks("fit")
        self._advance = jax.jit(partial(_steps, self.training, self.checks), donate_argnums=0)
        self._numbers = jax.jit(evaluation.numbers)

    def epoch(self, state: State, validation: Data, key: Array, n: int) -> tuple[State, Array, Any]:
        """(state, numbers, records) after epoch n of a run with this key."""
        # A copy, so that the caller's state stays valid when steps donate this one.
        state = jax.tree.map(jnp.copy, state)
        _, step_key = self.training.epoch_keys(jax.random.fold_in(key, n))
        logs: list[Any] = []
        counts: list[int] = []
        with closing(_prefetched(_groups(self._pairs()), PREFETCH)) as groups:
            for group in groups:
                for batch in group:
                    if isinstance(batch[1], np.ndarray):  # a device array would have to be awaited
                        self.checks.targets(batch[1])
                counts.append(len(group) * count(group[0]))
                # The call moves batches while the device computes earlier ones. One call may be
                # pending, so that the device never waits; with more, a fast source would fill the
                # device's memory with batches.
                jax.block_until_ready(logs[-2:-1])
                if self.training.devices is not None:
                    group = [self.training.devices.sharded(batch) for batch in group]
                state, latest = self._advance(state, group, step_key)
                logs.append(latest)
        if not logs:
            raise ValueError(
                "fit: expected batches in every epoch, got none; an iterator or a generator can be "
                "iterated only once: pass a list, or an object whose __iter__ starts again"
            )
        losses = [entry.loss for entry, _ in logs]
        mean = sum(float(v.mean()) * m for v, m in zip(losses, counts, strict=True)) / sum(counts)
        # NaN for wrong targets on the device: the replay then finds and names their batch.
        mean = mean if all(fit.all() for _, fit in logs) else np.nan
        value = jnp.asarray(mean, at_least_float32(losses[0].dtype))
        found = self._numbers(state, value, group[-1], validation)
        records = [entry.record for entry, _ in logs]
        return state, found, jax.tree.map(lambda *a: jnp.concatenate(a), *records)

    def batches(self, state: State, order_key: Array) -> Iterator[Data]:
        """The batches again, each checked before it is used."""
        for place, batch in enumerate(self._pairs(), 1):
            self.checks._replace(name=f"fit: batch {place}").examples(state.params, *batch)
            yield batch

    def _pairs(self) -> Generator[Data]:
        """The batches as pairs of NumPy or JAX arrays. Raises TypeError for a batch that is not a
        pair, ValueError for one without examples and for integers that would overflow in JAX."""
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
    """A step for each batch of the group: (state, (logs, whether each batch's targets fit))."""
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *group)
    state, logs = training.steps(state, stacked, lambda batch: batch, key)
    found = logs, jnp.stack([checks.targets_fit(examples(batch)[1]) for batch in group])
    return state, found if training.devices is None else training.devices.whole(found)


def _groups(batches: Iterable[Data]) -> Generator[list[Data]]:
    """Group batches of equal shape up to `GROUP_SIZE`; yield a shorter remainder one by one. So at
    most two programs are compiled per shape, for any number of batches."""
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


def _prefetched(items: Generator[T], depth: int) -> Generator[T]:
    """The items of a generator, read on a thread, at most `depth` beyond the one in use.

    An exception raised while reading is raised here, unchanged. Closing this generator closes the
    items and waits for the thread to end. The thread can't be interrupted while it waits for an
    item, so closing may take as long as reading one item.
    """
    ready: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    room = threading.Semaphore(depth - 1)
    closed = False

    def read() -> None:
        try:
            with closing(items):
                for item in items:
                    ready.put((True, item))
                    del item  # release it while waiting
                    room.acquire()
                    if closed:
                        return
            ready.put((False, None))
        except BaseException as error:
            ready.put((False, error))

    # In the caller's context, which has context variables such as NumPy's error state.
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(read,), name="fnn.prefetch", daemon=True)
    try:
        thread.start()  # inside of try, because Ctrl-C may arrive here too
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
