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

    def epoch(
        self, state: State, validation: Data | None, key: Array, number: int
    ) -> tuple[State, Array, Any]:
        """(state, numbers, records) after epoch `number` of a run with this key."""
        return self._epoch(state, self.data, validation, key, number)

    def batches(self, state: State, order_key: Array) -> Iterator[Data]:
        """The batches of the epoch whose order has this key, one after another."""

        @jax.jit
        def ordered(data: Data, key: Array) -> tuple[Array, Array]:
            return self.training.batches(self.batch_size, data, key)[:2]

        @partial(jax.jit, static_argnums=2)
        def batch(data: Data, rows: Array, size: int) -> Data:
            return self.training.batches(self.batch_size, data, order_key)[2](rows, size)

        batches, rest = ordered(self.data, order_key)
        for rows in batches:
            yield batch(self.data, rows, self.batch_size)
        if rest.size:
            yield batch(self.data, rest, count(self.data) % self.batch_size)
