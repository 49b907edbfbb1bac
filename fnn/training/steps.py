"""Training as pure functions: a step, an epoch, a whole run.

    step     one update of the parameters, from one batch
    epoch    every example once, in a fresh random order: one `lax.scan` over the batches
    train    all epochs: one `lax.scan` over the epochs, for one XLA program per run

The batch size chooses the kind of gradient descent: 1 is stochastic, m mini-batch, n full.

`fnn.training.fitting` has the host's loop around these, for people who watch.

Random layers and `augment`. In training, update t draws from fold_in(k, t), t being the `.step` of
the optimizer's state and k the key of `make_step`, or one that `make_epoch`, `make_train` and
`fit` derive from theirs for each epoch. Nothing more is carried from step to step, and a run that
is resumed or replayed draws the same numbers. A network without random layers draws none.

Research. `augment(key, (x, y)) -> (x, y)` transforms each batch before its step.
`record(state, grads, value) -> tree` is what each step notes down: state holds the parameters
at which the batch's mean loss `value` and its gradient `grads` were taken. What a step returns
beside the state is then the pair (loss, noted) in the place of the loss.

On a mesh of devices, `mesh` (see `fnn.parallel`), the same training: with axes "data", over
which the examples of each batch are split, and perhaps "model", over which the network's own
layers are cut. With shard_params the parameters and the optimizer's state are split over "data"
too. batch_size stays that of the whole batch. Each device shuffles its own share of the data, and
draws its own numbers for random layers and `augment`; normalisation over a batch is over the
device's share. What `record` sees are whole arrays.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fnn import numbers
from fnn.backprop import value_and_grad
from fnn.base import Array, Layer, Loss, Optimizer, Params, at, check_optimizer, split
from fnn.parallel.examples import ShardedExamples
from fnn.training.mesh import Devices, weighted
from fnn.training.shuffle import permutation

Data = Any
"""(x, y), arrays or trees of arrays, with the examples along the first axis of all; on a mesh also
`fnn.parallel.ShardedExamples` of such a pair."""
State = Any
"""An optimizer's state."""
Augment = Callable[[Array, Data], Data]
Record = Callable[[State, Params, Array], Any]


def make_step(
    network: Layer,
    loss: Loss,
    optimizer: Optimizer,
    *,
    augment: Augment | None = None,
    record: Record | None = None,
    mesh: Mesh | None = None,
    shard_params: bool = False,
) -> Callable[..., tuple[State, Any]]:
    """step(state, (x, y), key=None) -> (state, mean loss before the update).

    key is the run's, the same at each step; it is needed for a network with random layers and
    for `augment`. With `record` the second result is (loss, what was noted).

    Raises TypeError for what is not a layer, a loss or an optimizer; step raises TypeError
    where a key is needed and missing.

    >>> import fnn
    >>> optimizer = fnn.sgd(0.25)
    >>> step = make_step(fnn.dense(1, 1), fnn.mse, optimizer)
    >>> state = optimizer.init({"W": jnp.ones((1, 1)), "b": jnp.zeros(1)})
    >>> state, value = step(state, (jnp.array([[1.0]]), jnp.array([[0.0]])))
    >>> float(value), float(state.params["W"][0, 0])
    (1.0, 0.5)
    """
    return Training.of(
        "make_step", network, loss, optimizer, augment, record, mesh, shard_params
    ).step


def make_epoch(
    network: Layer,
    loss: Loss,
    optimizer: Optimizer,
    batch_size: int,
    *,
    augment: Augment | None = None,
    record: Record | None = None,
    mesh: Mesh | None = None,
    shard_params: bool = False,
) -> Callable[[State, Data, Array], tuple[State, Any]]:
    """epoch(state, (x, y), key) -> (state, mean loss over the examples as each was met).

    Every example is used exactly once: where batch_size does not divide n, the smaller
    rest is a step of its own. The order is drawn from the key, on the device. With `record` the
    second result is (loss, noted), the steps along the leading axis of what was noted.

    Raises ValueError for a batch_size below 1 or above n, and where x and y differ in n;
    TypeError as `make_step`.

    >>> import fnn
    >>> network, optimizer = fnn.mlp((2, 8, 1)), fnn.adam(0.01)
    >>> epoch = make_epoch(network, fnn.mse, optimizer, batch_size=32)
    >>> state = optimizer.init(network.init(jax.random.key(0)))
    >>> data = jnp.ones((100, 2)), jnp.ones((100, 1))
    >>> int(epoch(state, data, jax.random.key(1))[0].step)
    4
    """
    numbers.count("make_epoch", batch_size=batch_size)
    training = Training.of(
        "make_epoch", network, loss, optimizer, augment, record, mesh, shard_params
    )
    return partial(training.epoch, batch_size)


def make_train(
    network: Layer,
    loss: Loss,
    optimizer: Optimizer,
    batch_size: int,
    epochs: int,
    *,
    augment: Augment | None = None,
    record: Record | None = None,
    mesh: Mesh | None = None,
    shard_params: bool = False,
) -> Callable[[Params, Data, Array], tuple[State, Any]]:
    """train(params, (x, y), key) -> (state, losses), with losses of shape (epochs,).

    A whole run as one pure function: `jax.jit` it, and `jax.vmap` it over keys, data,
    parameters, or learning rates (build it inside the mapped function). A pure function can't
    raise: where a run diverges, its losses or its state are NaN or infinite. With `record` the
    second result is (losses, noted), what was noted with leading axes (epochs, steps).

    Raises ValueError for epochs below 1, and as `make_epoch` does.

    >>> import fnn
    >>> network = fnn.mlp((2, 8, 1))
    >>> train = make_train(network, fnn.mse, fnn.adam(0.01), batch_size=32, epochs=5)
    >>> key, data = jax.random.key(0), (jnp.ones((100, 2)), jnp.ones((100, 1)))
    >>> jax.jit(train)(network.init(key), data, key)[1].shape
    (5,)
    """
    numbers.count("make_train", epochs=epochs, batch_size=batch_size)
    training = Training.of(
        "make_train", network, loss, optimizer, augment, record, mesh, shard_params
    )

    def train(params: Params, data: Data, key: Array) -> tuple[State, Any]:
        data = data if training.devices is None else training.devices.shares(data)
        epoch = lambda state, key: training.epoch(batch_size, state, data, key)
        return jax.lax.scan(epoch, training.optimizer.init(params), split(key, epochs))

    return train


class Training(NamedTuple):
    """What `make_step`, `make_epoch`, `make_train` and `fit` were asked for, checked, the network
    and the optimizer on the devices of the mesh if there is one."""

    network: Layer
    loss: Loss
    optimizer: Optimizer
    augment: Augment | None
    record: Record | None
    devices: Devices | None
    gradient: Callable[..., tuple[Array, Params]]

    @classmethod
    def of(
        cls,
        name: str,
        network: Layer,
        loss: Loss,
        optimizer: Optimizer,
        augment: Augment | None = None,
        record: Record | None = None,
        mesh: Mesh | None = None,
        shard_params: bool = False,
    ) -> "Training":
        """Raises as `make_step` does, in the caller's name."""
        value_and_grad(network, loss)  # refuses what is not a layer or a loss
        check_optimizer(name, optimizer)
        devices = Devices.of(name, mesh, shard_params)
        if devices is not None:
            network, optimizer = devices.take(network, optimizer)
        gradient: Callable[..., Any] = partial(_gradient, network, loss, augment)
        if devices is not None:
            gradient = devices.gradient(network, gradient)
        return cls(network, loss, optimizer, augment, record, devices, gradient)

    @property
    def draws(self) -> bool:
        """Whether a step draws random numbers."""
        return self.network.varying is not None or self.augment is not None

    def epoch_keys(self, key: Array) -> tuple[Array, Array | None]:
        """An epoch's key as those of its order and of its steps, None where they need none."""
        order_key, step_key = split(key, 2) if self.draws else (key, None)
        return order_key, step_key

    def loss_of(self, noted: Any) -> Array:
        """The loss, or losses, in what a step returns beside the state."""
        return noted if self.record is None else noted[0]

    def begin(self, state: State, batch: Data, key: Array | None) -> tuple[Params, Any]:
        """(grads, noted): the first half of a step, of which optimizer.update(state, grads) is
        the second."""
        keys = None
        if self.draws:
            if key is None:
                raise TypeError("step: expected a key, for random layers or augment, got none")
            keys = split(jax.random.fold_in(key, state.step), 2)
        scale = getattr(state, "loss_scale", None)
        value, grads = self.gradient(state.params, batch, keys, scale, None)
        noted = value if self.record is None else (value, self.record(state, grads, value))
        return grads, noted

    def step(self, state: State, batch: Data, key: Array | None = None) -> tuple[State, Any]:
        """One update."""
        grads, noted = self.begin(state, batch, key)
        return self.optimizer.update(state, grads), noted

    def steps(
        self,
        state: State,
        first: Any,
        later: Any,
        batch_of: Callable[[Any], Data],
        key: Array | None = None,
    ) -> tuple[State, Any]:
        """A step for each batch, what each returns beside the state along a leading axis.

        batch_of makes a batch of first, and of each entry along the leading axis of later.

        Each step is cut in two, and the scan's body ends the one before and begins its own. So all
        that read the parameters come after the update, which XLA then does in place; with the
        update last it copies each W that the backward pass may still be reading.
        """

        def step(begun: tuple[State, Params], batch: Any) -> tuple[Any, Any]:
            state = self.optimizer.update(*begun)
            grads, noted = self.begin(state, batch_of(batch), key)
            return (state, grads), noted

        grads, noted = self.begin(state, batch_of(first), key)
        begun, others = jax.lax.scan(step, (state, grads), later)
        return self.optimizer.update(*begun), jax.tree.map(_prepended, noted, others)

    def epoch(self, batch_size: int, state: State, data: Data, key: Array) -> tuple[State, Any]:
        """Every example once; see `make_epoch`."""
        n = count(data)
        if batch_size > n:
            raise ValueError(f"make_epoch: batch_size {batch_size} is larger than the data: {n}")
        order_key, step_key = self.epoch_keys(key)
        batches, rest, batch_of = in_batches(order_key, data, batch_size, self.devices)
        state, noted = self.steps(state, batches[0], batches[1:], batch_of, step_key)
        sum_of_losses = self.loss_of(noted).sum() * batch_size
        if rest.size:
            state, last = self.step(state, batch_of(rest, n % batch_size), step_key)
            sum_of_losses += self.loss_of(last) * (n % batch_size)
            noted = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), noted, last)
        mean = sum_of_losses / n
        return state, mean if self.record is None else (mean, noted[1])


def _gradient(
    network: Layer,
    loss: Loss,
    augment: Augment | None,
    params: Params,
    batch: Data,
    keys: Array | None,
    scale: Array | None,
    weights: Array | None,
) -> tuple[Array, Params]:
    """(mean loss, grads) of a batch, with its random layers and its augmentation at their keys."""
    if keys is not None:
        layer_key, augment_key = keys
        network = at(network, layer_key)
        batch = batch if augment is None else _pair("augment", augment(augment_key, batch))
    weighed = loss if weights is None else weighted(loss, weights)
    return value_and_grad(network, _scaled(weighed, scale))(params, *batch)


def _pair(name: str, batch: Any) -> Data:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TypeError(f"{name}: expected it to return (x, y), got {type(batch).__name__}")
    return batch[0], batch[1]


def _scaled(loss: Loss, scale: Array | None) -> Loss:
    """The loss, its gradient multiplied by the scale that the state of `scale_loss` holds."""
    if scale is None:
        return loss
    scaled = lambda g: g * scale.astype(g.dtype)
    return loss._replace(gradient=lambda p, t: jax.tree.map(scaled, loss.gradient(p, t)))


def shuffled(key: Array, n: int, batch_size: int) -> tuple[Array, Array]:
    """An epoch's batches, as rows of the data: (n // batch_size, batch_size), and the rest.

    >>> batches, rest = shuffled(jax.random.key(0), 10, 4)
    >>> batches.shape, rest.shape
    ((2, 4), (2,))
    """
    order = permutation(key, n)
    full = n - n % batch_size
    return order[:full].reshape(-1, batch_size), order[full:]


def in_batches(
    key: Array, data: Data, batch_size: int, devices: Devices | None
) -> tuple[Array, Array, Callable[..., Data]]:
    """An epoch's batches, and the rest, as rows; and batch_of(rows, size=batch_size), which makes
    a batch of `size` examples of them.

    Raises ValueError for a batch_size that the devices don't divide, unless it is n.

    >>> batches, rest, batch_of = in_batches(jax.random.key(0), (jnp.ones(10),) * 2, 4, None)
    >>> batch_of(rest, 2)
    (Array([1., 1.], dtype=float32), Array([1., 1.], dtype=float32))
    """
    n = count(data)
    if devices is None:
        arrays = jax.tree.map(jnp.asarray, data)
        take = lambda rows, size=0: jax.tree.map(lambda a: a[rows], arrays)
        return *shuffled(key, n, batch_size), take
    if batch_size % devices.number and batch_size != n:
        raise ValueError(
            f"make_epoch: expected a batch_size that {devices.number} devices divide, or all {n} "
            f"examples, got {batch_size}"
        )
    shares = devices.shares(data)
    share = lambda rows, size=batch_size: devices.batch(shares, rows, size)
    return *devices.shuffled(key, shares, batch_size), share


def count(data: Data) -> int:
    """The number of examples, along the first axis of every array of x and y.

    Raises ValueError where it is not the same in all.

    >>> count((jnp.ones((5, 2)), {"class": jnp.ones(5), "value": jnp.ones((5, 1))}))
    5
    """
    if isinstance(data, ShardedExamples):
        return data.n
    x, y = _pair("data", data)
    if any(not getattr(a, "shape", ()) for a in jax.tree.leaves(data)):
        raise TypeError("data: expected arrays of examples, got single numbers; a list is no array")
    lengths = [[a.shape[0] for a in jax.tree.leaves(side)] for side in (x, y)]
    if len(set(lengths[0] + lengths[1])) != 1:
        shown = [sizes[0] if len(set(sizes)) == 1 else sizes for sizes in lengths]
        raise ValueError(f"data: x has {shown[0]} examples, but y has {shown[1]}")
    return lengths[0][0]


def _prepended(first: Array, others: Array) -> Array:
    return jnp.concatenate([first[None], others])
