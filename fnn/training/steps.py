"""Training as pure functions: a step, an epoch, a whole run.

    step     one update of the parameters, from one batch
    epoch    every example once, in a new random order: one `lax.scan` over the batches
    train    all epochs: one `lax.scan` over the epochs, for one XLA program per run

The batch size makes it stochastic (1), mini-batch (m) or full-batch (n) gradient descent.

`fit`, in `fnn.training.fitting`, is the loop on the host around these.

Random layers and `augment`. In training, update t draws from fold_in(k, t), where t is the `.step`
of the optimizer's state and k the key of `make_step`, or a key that `make_epoch`, `make_train` and
`fit` derive from theirs for each epoch. No random state is carried from step to step, and a run
that is resumed or replayed draws the same numbers.

Research. `augment(key, (x, y)) -> (x, y)` transforms each batch before its step.
`record(state, grads, value) -> tree` returns what to record of each step: `value` is the batch's
mean loss and `grads` its gradient, both at the parameters in `state`. The second result of a step
is then the pair (loss, record) instead of the loss.
`gradient(params, (x, y), key) -> (value, grads)` replaces the gradient of the network and the
loss: see `fnn.gradients`. The network is then used only for initial parameters and evaluation.
The key is different in each update.

Weights. The data may be (x, y, weight), with one weight per example: the mean loss of a batch is
then (1/m) sum_n weight_n loss_n, as in `fnn.value_and_grad`. `augment` gets (x, y) only.

Devices. `mesh` (see `fnn.parallel`) has an axis "data", over which the examples of each batch are
split, and optionally an axis "model", over which the network's own layers are split. With
shard_params the parameters and the optimizer's state are split over "data" too. batch_size is the
size of the whole batch. Each device shuffles its own share of the data, and draws its own numbers
for random layers and `augment`; batch normalisation is over the device's share. `record` and
`gradient` get whole arrays, and so does `augment` if there is a `gradient`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fnn import gradients, numbers
from fnn.backprop import value_and_grad
from fnn.base import Array, Layer, Loss, Optimizer, Params, Tree, check_key, check_optimizer, split
from fnn.gradients import Gradient
from fnn.parallel.examples import ShardedExamples
from fnn.parallel.partition import untyped
from fnn.reductions import expand_like
from fnn.training.checks import Checks, Data, count, examples, pair
from fnn.training.mesh import Devices
from fnn.training.shuffle import permutation

State = Any
"""An optimizer's state."""
Augment = Callable[[Array, Data], Data]
Record = Callable[[State, Params, Array], Any]


def make_step(
    network: Layer,
    loss: Loss,
    optimizer: Optimizer,
    *,
    gradient: Gradient | None = None,
    augment: Augment | None = None,
    record: Record | None = None,
    mesh: Mesh | None = None,
    shard_params: bool = False,
) -> Callable[..., tuple[State, Any]]:
    """step(state, (x, y), key=None) -> (state, mean loss before the update).

    key is that of the run, the same at each step; random layers, `augment` and `gradient` need one.
    With `record` the second result is (loss, record).

    Raises TypeError if network is not a layer, loss not a loss or optimizer not an optimizer; step
    raises TypeError if a key is needed and missing.

    >>> import fnn
    >>> optimizer = fnn.sgd(0.25)
    >>> step = make_step(fnn.dense(1, 1), fnn.mse, optimizer)
    >>> state = optimizer.init({"W": jnp.ones((1, 1)), "b": jnp.zeros(1)})
    >>> state, value = step(state, (jnp.array([[1.0]]), jnp.array([[0.0]])))
    >>> float(value), float(state.params["W"][0, 0])
    (1.0, 0.5)
    """
    training = Training(network, loss, optimizer, gradient, augment, record)
    training = training.checked("make_step", mesh, shard_params)

    def step(state: State, batch: Data, key: Array | None = None) -> tuple[State, Any]:
        batch = pair("step", batch, "(state, (x, y), key=None) with a batch (x, y)")
        state, logs = training.step(state, batch, key)
        return state, training.result(logs)

    return step


def make_epoch(
    network: Layer,
    loss: Loss,
    optimizer: Optimizer,
    batch_size: int,
    *,
    gradient: Gradient | None = None,
    augment: Augment | None = None,
    record: Record | None = None,
    mesh: Mesh | None = None,
    shard_params: bool = False,
) -> Callable[[State, Data, Array], tuple[State, Any]]:
    """epoch(state, (x, y), key) -> (state, mean loss over the examples, each before its update).

    Every example is used exactly once: if batch_size does not divide n, the remainder is a smaller
    last batch. The order is drawn from the key, on the device. With `record` the second result is
    (loss, records), with the steps along the leading axis of the records.

    Raises ValueError for a batch_size below 1 or above n, and if x and y differ in n; TypeError as
    `make_step`.

    >>> import fnn
    >>> network, optimizer = fnn.mlp((2, 8, 1)), fnn.adam(0.01)
    >>> epoch = make_epoch(network, fnn.mse, optimizer, batch_size=32)
    >>> state = optimizer.init(network.init(jax.random.key(0)))
    >>> data = jnp.ones((100, 2)), jnp.ones((100, 1))
    >>> int(epoch(state, data, jax.random.key(1))[0].step)
    4
    """
    batch_size = numbers.count("make_epoch", batch_size=batch_size)
    training = Training(network, loss, optimizer, gradient, augment, record)
    training = training.checked("make_epoch", mesh, shard_params)

    def epoch(state: State, data: Data, key: Array) -> tuple[State, Any]:
        state, logs = training.epoch(batch_size, state, data, key)
        return state, training.result(logs)

    return epoch


def make_train(
    network: Layer,
    loss: Loss,
    optimizer: Optimizer,
    batch_size: int,
    epochs: int,
    *,
    gradient: Gradient | None = None,
    augment: Augment | None = None,
    record: Record | None = None,
    mesh: Mesh | None = None,
    shard_params: bool = False,
) -> Callable[[Params, Data, Array], tuple[State, Any]]:
    """train(params, (x, y), key) -> (state, losses), with losses of shape (epochs,).

    A whole run as one pure function: `jax.jit` it, and `jax.vmap` it over keys, data,
    parameters, or learning rates (build it inside the mapped function). It can't raise an error
    when a run diverges: losses and state are then NaN or infinite. With `record` the second result
    is (losses, records), with leading axes (epochs, steps) on the records.

    Raises ValueError for epochs below 1, and as `make_epoch` does.

    >>> import fnn
    >>> network = fnn.mlp((2, 8, 1))
    >>> train = make_train(network, fnn.mse, fnn.adam(0.01), batch_size=32, epochs=5)
    >>> key, data = jax.random.key(0), (jnp.ones((100, 2)), jnp.ones((100, 1)))
    >>> jax.jit(train)(network.init(key), data, key)[1].shape
    (5,)
    """
    epochs, batch_size = numbers.count("make_train", epochs=epochs, batch_size=batch_size)
    training = Training(network, loss, optimizer, gradient, augment, record)
    training = training.checked("make_train", mesh, shard_params)

    def train(params: Params, data: Data, key: Array) -> tuple[State, Any]:
        count(data)  # raises TypeError if data is not (x, y)
        data = data if training.devices is None else training.devices.sharded(data)
        epoch = lambda state, key: training.epoch(batch_size, state, data, key)
        if hasattr(params, "params") and hasattr(params, "step"):
            raise TypeError("train: expected (params, (x, y), key), got an optimizer's state")
        state = training.optimizer.init(params)
        state, logs = jax.lax.scan(epoch, state, split(key, epochs))
        return state, training.result(logs)

    return train


class _Logs(NamedTuple):
    """The mean loss of a step, or of each of several, and what `record` returned, None without."""

    loss: Array
    record: Any


class Training(NamedTuple):
    """A network, a loss, an optimizer and the options of training. `make_step`, `make_epoch`,
    `make_train` and `fit` are made from it, `checked`."""

    network: Layer
    loss: Loss
    optimizer: Optimizer
    gradient: Gradient | None = None
    augment: Augment | None = None
    record: Record | None = None
    devices: Devices | None = None

    def checked(
        self, name: str, mesh: Mesh | None = None, shard_params: bool = False
    ) -> "Training":
        """The same, placed on the mesh. Raises as `make_step` does; messages begin with `name`."""
        value_and_grad(self.network, self.loss)  # raises TypeError if one is not a layer or a loss
        check_optimizer(name, self.optimizer)
        if self.gradient is not None:
            gradients.check(name, self.gradient)
        devices = Devices.of(name, mesh, shard_params)
        if devices is None:
            return self
        network, optimizer = devices.place(self.network, self.optimizer)
        return self._replace(network=network, optimizer=optimizer, devices=devices)

    @property
    def _draws(self) -> bool:
        """Whether a step draws random numbers."""
        return self.network.varying is not None or bool(self.augment or self.gradient)

    def fresh(self, key: Array, params: Params | None = None) -> State:
        """The initial state, of these params or of new ones; each device creates its own part."""
        drawn = lambda key: self.optimizer.init(self.network.init(key))
        fresh, given = (drawn, key) if params is None else (self.optimizer.init, params)
        state = (fresh if self.devices is None else jax.jit(fresh))(given)
        _check_state("fit", state)
        return state

    def checks(self, name: str, evaluated: bool = False) -> Checks:
        """The checks of examples to train on or, if `evaluated`, to evaluate on. With a `gradient`,
        training examples need not fit the network and the loss."""
        by_both = evaluated or self.gradient is None
        return Checks(name, self.network, self.loss) if by_both else Checks(name, None, None)

    def placed(self, name: str, params: Params, data: Any, evaluated: bool = False) -> Data:
        """Data, checked, on the device or split over the devices."""
        if isinstance(data, ShardedExamples):
            return data
        check = self.checks(name, evaluated)
        data = jax.tree.map(jnp.asarray if self.devices is None else untyped, check.pair(data))
        check.examples(params, *data)
        return data if self.devices is None else self.devices.sharded(data)

    def epoch_keys(self, key: Array) -> tuple[Array, Array | None]:
        """(key of the epoch's order, key of its steps or None if they draw no random numbers)."""
        check_key(key)
        order_key, step_key = split(key, 2) if self._draws else (key, None)
        return order_key, step_key

    def result(self, logs: _Logs) -> Any:
        """The second result of a user's step, epoch or run: the loss, or (loss, record)."""
        return logs.loss if self.record is None else tuple(logs)

    def _of_batch(
        self, params: Params, batch: Data, keys: Array | None, scale: Any, weights: Tree
    ) -> tuple[Array, Params]:
        """(value, grads), with random layers and augmentation at their keys."""
        batch, key = examples(batch), None
        if keys is not None:
            key, augment_key = keys
            if self.augment is not None:  # weights are not augmented
                augmented = self.augment(augment_key, batch[:2])
                batch = *pair("augment", augmented, "it to return (x, y)"), *batch[2:]
        if self.gradient is None:
            loss = _weighted(self.loss, weights, scale)
            return gradients.of(self.network, loss)(params, batch, key)
        value, grads = self.gradient(params, batch, key)
        if jnp.shape(value) != ():
            got = jnp.shape(value)
            raise ValueError(f"gradient: expected (value, grads) with a scalar value, got {got}")
        return jnp.asarray(value), jax.tree.map(partial(_times, scale), grads)

    def step(self, state: State, batch: Data, key: Array | None = None) -> tuple[State, _Logs]:
        """One update."""
        _check_state("step", state)
        keys = None
        if self._draws:
            if key is None:
                reason = "expected a key, which random layers, augment and gradient need, got none"
                raise TypeError(f"step: {reason}")
            keys = split(jax.random.fold_in(key, state.step), 2)
        scale = getattr(state, "loss_scale", None)
        of_batch: Callable[..., Any] = self._of_batch
        if self.devices is not None and self.gradient is None:
            of_batch = self.devices.gradient(self.network, of_batch)
        value, grads = of_batch(state.params, batch, keys, scale, None)
        record = None if self.record is None else self.record(state, grads, value)
        logs = _Logs(value, jax.tree.map(_array, record))
        return self.optimizer.update(state, grads), logs

    def steps(
        self, state: State, batches: Tree, batch_of: Callable[[Any], Data], key: Array | None = None
    ) -> tuple[State, _Logs]:
        """A step for each batch; the logs are stacked along a leading axis.

        batch_of(rows) builds a batch; `batches` is a stack of batches' rows.
        """
        step = lambda state, batch: self.step(state, batch_of(batch), key)
        return jax.lax.scan(step, state, batches)

    def epoch(self, batch_size: int, state: State, data: Data, key: Array) -> tuple[State, _Logs]:
        """Every example once, with the mean loss over all; see `make_epoch`."""
        n = count(data)
        if batch_size > n:
            raise ValueError(f"make_epoch: expected batch_size at most {n}, got {batch_size}")
        order_key, step_key = self.epoch_keys(key)
        batches, rest, batch_of = self.batches(batch_size, data, order_key)
        state, logs = self.steps(state, batches, batch_of, step_key)
        sum_of_losses = logs.loss.sum() * batch_size
        if rest.size:
            state, last = self.step(state, batch_of(rest, n % batch_size), step_key)
            sum_of_losses += last.loss * (n % batch_size)
            logs = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), logs, last)
        return state, logs._replace(loss=sum_of_losses / n)

    def batches(
        self, batch_size: int, data: Data, key: Array
    ) -> tuple[Array, Array, Callable[..., Data]]:
        """(rows of the full batches (n // batch_size, batch_size), rows of the last, smaller batch
        (n % batch_size,), batch_of(rows, size=batch_size) -> a batch of `size` examples).

        Raises ValueError for a batch_size, other than n, that is not divisible by the devices.
        """
        n, devices = count(data), self.devices
        if devices is None:
            arrays = jax.tree.map(jnp.asarray, data)
            take = lambda rows, size=0: jax.tree.map(lambda a: a[rows], arrays)
            order, full = permutation(key, n), n - n % batch_size
            return order[:full].reshape(-1, batch_size), order[full:], take
        if batch_size % devices.number and batch_size != n:
            fits = f"the number of devices, {devices.number}, or equal to that of examples, {n}"
            raise ValueError(
                f"make_epoch: expected a batch_size divisible by {fits}, got {batch_size}"
            )
        shares = devices.sharded(data)
        share = lambda rows, size=batch_size: devices.batch(shares, rows, size)
        return *devices.shuffled(key, shares, batch_size), share


def _check_state(name: str, state: Any) -> None:
    if not (hasattr(state, "params") and hasattr(state, "step")):
        expected = "an optimizer's state with .params and .step, such as optimizer.init(params)"
        raise TypeError(f"{name}: expected {expected}, got {type(state).__name__}")


def _array(leaf: Any) -> Array:
    """A leaf of what `record` returned, as an array."""
    if not isinstance(leaf, Array | np.ndarray | np.generic | bool | int | float | complex):
        raise TypeError(f"record: expected a tree of arrays, got {type(leaf).__name__}")
    return jnp.asarray(leaf)


def _weighted(loss: Loss, weights: Array | None, scale: Array | None) -> Loss:
    """The loss with each example multiplied by its weight, (rows,) or a scalar, and the gradient
    also by the loss scale."""
    each = partial(_times, weights)
    scaled = lambda g: _times(scale, each(g))
    return loss._replace(
        value=lambda prediction, target: each(loss.value(prediction, target)),
        gradient=lambda prediction, target: jax.tree.map(scaled, loss.gradient(prediction, target)),
    )


def _times(factor: Array | None, a: Array) -> Array:
    return a if factor is None else a * expand_like(factor, a)
