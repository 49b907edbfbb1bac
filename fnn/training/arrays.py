"""Epochs of arrays that are kept on the device, or split over the devices of a mesh."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax

from fnn.base import Array
from fnn.training.checks import Data, count
from fnn.training.evaluation import Evaluation
from fnn.training.steps import State


class Arrays:
    """(x, y), shuffled on the device in each epoch; an epoch is one program."""

    def __init__(self, evaluation: Evaluation, data: Data, batch_size: int) -> None:
        training = evaluation.training
        self.training, self.data, self.batch_size = training, data, batch_size
        # Several processes must dispatch programs in the same order.
        self.can_run_ahead = jax.process_count() == 1

        @jax.jit
        def epoch(state: State, data: Data, validation: Any, key: Array, number: Any) -> Any:
            key = jax.random.fold_in(key, number)
            state, logs = training.epoch(batch_size, state, data, key)
            found = evaluation.numbers(state, logs.loss, data, validation), logs.record
            return state, *(found if training.devices is None else training.devices.whole(found))

        self._epoch = epoch

    def epoch(self, state: State, validation: Data, key: Array, n: int) -> tuple[State, Array, Any]:
        """(state, numbers, records) after epoch n of a run with this key."""
        return self._epoch(state, self.data, validation, key, n)

    def batches(self, state: State, order_key: Array) -> Iterator[Data]:
        """The batches of the epoch whose order has this key, one after another."""

        split = partial(self.training.batches, self.batch_size)
        batches, rest = jax.jit(lambda data: split(data, order_key)[:2])(self.data)
        of_rows = lambda data, rows, size: split(data, order_key)[2](rows, size)
        batch = jax.jit(of_rows, static_argnums=2)
        for rows in batches:
            yield batch(self.data, rows, self.batch_size)
        if rest.size:
            yield batch(self.data, rest, count(self.data) % self.batch_size)
