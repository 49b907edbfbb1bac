"""Evaluation after an epoch: whether training is finite, validation loss and metrics."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.backprop import weight_of
from fnn.base import Array, Layer, Params, Tree, at, at_least_float32, statistics
from fnn.parallel.examples import ShardedExamples
from fnn.training.checks import Data, examples
from fnn.training.faults import all_finite
from fnn.training.steps import State, Training

CHUNK = 2**14
"""The largest number of examples in a forward pass for evaluation: more are computed one chunk at a
time, because the activations of all might not fit in memory."""

Metric = Callable[[Any, Any], Any]


class Evaluation(NamedTuple):
    """The evaluation that `fit` does, with metrics={name: f(prediction, y)}."""

    training: Training
    metrics: Mapping[str, Metric]

    @classmethod
    def of(
        cls, training: Training, metrics: Mapping[str, Metric], validation: Data | None
    ) -> "Evaluation":
        """Raises ValueError for metrics with reserved names or that are not functions, and for
        metrics without validation."""
        taken = {"loss", "validation_loss", "record"} & set(metrics)
        if taken or not (isinstance(metrics, Mapping) and all(map(callable, metrics.values()))):
            names = "with other names than loss, validation_loss and record"
            got = f"got {sorted(taken) or metrics!r}"
            raise ValueError(f"fit: expected metrics={{name: f(prediction, y)}}, {names}, {got}")
        if metrics and validation is None:
            raise ValueError("fit: expected validation=(x, y) to measure the metrics on, got none")
        return cls(training, metrics)

    def numbers(self, state: State, value: Array, data: Data, validation: Data | None) -> Array:
        """One array: 1 if the state and the loss `value` are finite else 0, the loss, then the loss
        and the metrics on the validation data. Statistics are measured on `data`."""
        network, loss = self.training.network, self.training.loss
        found = [all_finite((state, value)), value]
        if validation is not None:
            x, measured = examples(data)[0], ()
            if network.varying is not None:
                measured = statistics(network, state.params, x)
            prediction = self._prediction(state.params, measured, validation)
            _, y, *weight = examples(validation)
            losses = loss.value(prediction, y)
            found.append((losses * weight_of(losses, *weight) if weight else losses).mean())
            measure = lambda name: _mean(name, self.metrics[name](prediction, y), *weight)
            found += [measure(name) for name in self.metrics]
        dtype = at_least_float32(value.dtype)
        return jnp.stack([jnp.asarray(number).astype(dtype) for number in found])

    def _prediction(self, params: Params, measured: Any, validation: Data) -> Any:
        """The network's prediction for validation data, which may be split over devices."""
        network, devices = self.training.network, self.training.devices
        here = lambda params, measured, x: predicted(at(network, None, measured), params, x)
        evaluated = here if devices is None else devices.forward(network, here)
        if isinstance(validation, ShardedExamples):
            return validation.examples(evaluated(params, measured, validation.arrays[0]))
        return evaluated(params, measured, validation[0])

    def entry(self, numbers: list[float], records: Any) -> dict[str, Any]:
        """The entry of a history, from what `numbers` returned, without its first."""
        names = ["loss", "validation_loss", *self.metrics]
        entry: dict[str, Any] = dict(zip(names, numbers, strict=False))
        if self.training.record is not None:
            # A random key can't be a NumPy array.
            is_key = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
            host = lambda a: a if is_key(a) else jax.device_get(a)
            entry["record"] = jax.tree.map(host, records)
        return entry


def _mean(name: str, measured: Any, weight: Tree = None) -> Array:
    """The mean of what a metric returned, weighted if that has one number per weight."""
    try:
        values = jnp.asarray(measured)
        numeric = not jnp.iscomplexobj(values)
    except (TypeError, ValueError):
        numeric = False
    if not numeric:
        expected = f"expected metrics[{name!r}] to return a number or an array of numbers"
        got = getattr(measured, "dtype", type(measured).__name__)
        raise TypeError(f"fit: {expected}, got {got}")
    if weight is None or values.shape[: jnp.ndim(weight)] != jnp.shape(weight):
        return values.mean()
    each = values.reshape(*jnp.shape(weight), -1).mean(-1)
    return (each * weight.astype(each.dtype)).sum() / weight.sum().astype(each.dtype)


def predicted(layer: Layer, params: Params, x: Tree) -> Any:
    """The layer's output for the examples x (n, ...), at most `CHUNK` of them at a time."""
    forward = lambda x: layer.forward(params, x)[0]
    n = len(jax.tree.leaves(x)[0])
    whole = n - n % CHUNK
    if n <= CHUNK:
        return forward(x)
    chunks = jax.tree.map(lambda a: a[:whole].reshape(-1, CHUNK, *a.shape[1:]), x)
    parts = [jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), jax.lax.map(forward, chunks))]
    if whole < n:
        parts.append(forward(jax.tree.map(lambda a: a[whole:], x)))
    return jax.tree.map(lambda *a: jnp.concatenate(a), *parts)
