"""Training as pure functions: a step, an epoch, a whole run; and a loop for people who watch.

    step     one update of the parameters, from one batch
    epoch    every example once, in a fresh random order: one `lax.scan` over the batches
    train    all epochs: one `lax.scan` over the epochs, for one XLA program a run

The batch size chooses the kind of gradient descent: 1 is stochastic, m mini-batch, n full.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.backprop import objective, value_and_grad
from fnn.base import Array, Layer, Loss, Optimizer, Params
from fnn.faults import DivergedError as DivergedError, all_finite, check_data, first_fault
from fnn.permutations import permutation

Data = tuple[Any, Any]
"""Arrays x (n, d_in) and y, with the examples along the first axis of both."""
State = Any
"""An optimizer's state."""


def make_step(
    network: Layer, loss: Loss, optimizer: Optimizer
) -> Callable[[State, Data], tuple[State, Array]]:
    """step(state, (x, y)) -> (state, mean loss before the update)."""
    gradient = value_and_grad(network, loss)

    def step(state: State, batch: Data) -> tuple[State, Array]:
        value, grads = gradient(state.params, *batch)
        return optimizer.update(state, grads), value

    return step


def make_epoch(
    network: Layer, loss: Loss, optimizer: Optimizer, batch_size: int
) -> Callable[[State, Data, Array], tuple[State, Array]]:
    """epoch(state, (x, y), key) -> (state, mean loss over the examples as each was met).

    Every example is used exactly once: where batch_size does not divide n, the smaller
    rest is a step of its own. The order is drawn from the key, on the device.

    Raises ValueError for a batch_size below 1 or above n, and where x and y differ in n.
    """
    if batch_size < 1:
        raise ValueError(f"make_epoch: expected batch_size of at least 1, got {batch_size}")
    step, steps = make_step(network, loss, optimizer), _make_steps(network, loss, optimizer)

    def epoch(state: State, data: Data, key: Array) -> tuple[State, Array]:
        n = _count(data)
        if batch_size > n:
            raise ValueError(f"make_epoch: batch_size {batch_size} is larger than the data: {n}")
        batches, rest = _shuffled(key, n, batch_size)
        batch_of = lambda rows: jax.tree.map(lambda a: a[rows], data)  # noqa: E731
        state, losses = steps(state, batches[0], batches[1:], batch_of)
        sum_of_losses = losses.sum() * batch_size
        if rest.size:
            state, last = step(state, batch_of(rest))
            sum_of_losses += last * rest.size
        return state, sum_of_losses / n

    return epoch


def make_train(
    network: Layer, loss: Loss, optimizer: Optimizer, batch_size: int, epochs: int
) -> Callable[[Params, Data, Array], tuple[State, Array]]:
    """train(params, (x, y), key) -> (state, losses), with losses of shape (epochs,).

    A whole run as one pure function: `jax.jit` it, and `jax.vmap` it over keys, data,
    parameters, or learning rates (build it inside the mapped function). A pure function can't
    raise: where a run diverges, its losses or its state are NaN or infinite.

    Raises ValueError for epochs below 1, and as `make_epoch` does.
    """
    if epochs < 1:
        raise ValueError(f"make_train: expected epochs of at least 1, got {epochs}")
    epoch = make_epoch(network, loss, optimizer, batch_size)

    def train(params: Params, data: Data, key: Array) -> tuple[State, Array]:
        keys = jax.random.split(key, epochs)
        return jax.lax.scan(lambda s, k: epoch(s, data, k), optimizer.init(params), keys)

    return train


def _make_steps(
    network: Layer, loss: Loss, optimizer: Optimizer
) -> Callable[..., tuple[State, Array]]:
    """steps(state, first, later, batch_of) -> (state, losses): a step for each batch, in order.

    batch_of makes a batch of first, and of each entry along the leading axis of later.

    Each step is cut in two, and the scan's body ends the one before and begins its own. So all
    that read the parameters come after the update, which XLA then does in place; with the
    update last it copies each W that the backward pass may still be reading.
    """
    gradient = value_and_grad(network, loss)

    def steps(
        state: State, first: Any, later: Any, batch_of: Callable[[Any], Data]
    ) -> tuple[State, Array]:
        def step(begun: tuple[State, Params], batch: Any) -> tuple[Any, Array]:
            state = optimizer.update(*begun)
            value, grads = gradient(state.params, *batch_of(batch))
            return (state, grads), value

        value, grads = gradient(state.params, *batch_of(first))
        begun, values = jax.lax.scan(step, (state, grads), later)
        return optimizer.update(*begun), jnp.append(value, values)

    return steps


class Progress(NamedTuple):
    """Where a run stands: what `fit` needs to go on as if it had never stopped.

    state is the newest; best the one with the lowest validation loss of the history, which has
    an entry an epoch.
    """

    state: State
    history: list[dict[str, float]]
    best: State


def fit(
    network: Layer,
    loss: Loss,
    optimizer: Optimizer,
    data: Data | Iterable[Data],
    *,
    key: Array,
    epochs: int,
    batch_size: int | None = None,
    validation: Data | None = None,
    patience: int | None = None,
    start: Progress | None = None,
    on_epoch: Callable[[int, State, dict[str, float]], None] | None = None,
) -> tuple[State, list[dict[str, float]]]:
    """Train an epoch at a time, from fresh parameters or from `start`, and say how it goes.

    data is (x, y), kept on the device and shuffled there, or for more than the device
    holds an iterable of batches (x, y), taken as they come, once an epoch. Then batch_size
    is theirs, the order too, and a batch moves to the device while those before it are
    computed; the iterable must not change the arrays that it has given.

    Returns the final state and the history: for each epoch its `loss`, and with
    validation=(x, y) its `validation_loss` after the epoch. After each epoch
    on_epoch(epoch, state, record) is called, epoch from 1, record the history's newest
    entry; the state it gets stays valid for good.

    With `patience` training ends when so many epochs in a row have not lowered the validation
    loss, and the state returned is the best epoch's. epochs counts those in `start` too: with
    the same other arguments, a run that goes on is bit for bit one that never stopped.

    Raises as `make_epoch` does; ValueError for epochs or patience below 1, patience without
    validation, arrays that `faults.check_data` refuses, a batch_size with batches or without
    it for arrays, and an iterable that is exhausted; DivergedError, with the last finite state,
    when a loss, a gradient or the state stops being finite.
    """
    if epochs < 1:
        raise ValueError(f"fit: expected epochs of at least 1, got {epochs}")
    if patience is not None and (patience < 1 or validation is None):
        raise ValueError(f"fit: expected patience of at least 1, and validation, got {patience}")
    if _is_pair(data) != (batch_size is not None):
        raise ValueError(f"fit: expected a batch_size with arrays (x, y) alone, got {batch_size}")
    validation = jax.tree.map(jnp.asarray, validation)
    init_key, shuffle_key = jax.random.split(key)
    if start is None:
        fresh = optimizer.init(network.init(init_key))
        start = Progress(fresh, [], fresh)
    state, history, best = start.state, list(start.history), start.best
    if validation is not None:
        check_data("fit: validation", network, loss, state.params, *validation)
    epoch: Any
    batches_of: Callable[[Array], Iterable[Data]]
    if batch_size is None:
        epoch = _watched(_make_streamed_epoch(network, loss, optimizer))
        batches_of = lambda key: data  # noqa: E731
    else:
        x, y = data = jax.tree.map(jnp.asarray, data)
        check_data("fit", network, loss, state.params, x, y)
        epoch = jax.jit(_watched(make_epoch(network, loss, optimizer, batch_size)))
        batches_of = partial(_batches, (x, y), batch_size)
    evaluate = jax.jit(objective(network, loss))
    for number in range(len(history) + 1, epochs + 1):
        if patience is not None and epochs_since_best(history) >= patience:
            break
        epoch_key = jax.random.fold_in(shuffle_key, number)
        after, value, finite = epoch(state, data, epoch_key)
        if not finite:
            again = batches_of(epoch_key)
            step, last, leaf = first_fault(network, loss, optimizer, state, again)
            raise DivergedError(number, step, last, leaf, state, history)
        state = after
        record = {"loss": float(value)}
        if validation is not None:
            record["validation_loss"] = float(evaluate(state.params, *validation))
        history.append(record)
        if patience is not None and epochs_since_best(history) == 0:
            best = state
        if on_epoch is not None:
            on_epoch(number, state, record)
    return state if patience is None else best, history


def epochs_since_best(history: list[dict[str, float]]) -> int:
    """How many epochs ago the validation loss was lowest for the first time; 0 for none yet."""
    losses = [record["validation_loss"] for record in history]
    ranked = [math.inf if math.isnan(value) else value for value in losses]
    return len(ranked) - 1 - ranked.index(min(ranked)) if ranked else 0


def _watched(epoch: Callable) -> Callable[[State, Data, Array], tuple[State, Array, Array]]:
    """The epoch, and whether its loss and the state after it are finite."""

    def watched(state: State, data: Data, key: Array) -> tuple[State, Array, Array]:
        state, value = epoch(state, data, key)
        return state, value, all_finite((state, value))

    return watched


def _shuffled(key: Array, n: int, batch_size: int) -> tuple[Array, Array]:
    """An epoch's batches, as rows of the data: (n // batch_size, batch_size), and the rest."""
    order = permutation(key, n)
    full = n - n % batch_size
    return order[:full].reshape(-1, batch_size), order[full:]


def _batches(data: Data, batch_size: int, key: Array) -> Iterator[Data]:
    """The batches of the epoch that has this key, one after another."""
    batches, rest = _shuffled(key, _count(data), batch_size)
    for rows in (*batches, rest) if rest.size else batches:
        yield jax.tree.map(lambda a, rows=rows: a[rows], data)


def _make_streamed_epoch(
    network: Layer, loss: Loss, optimizer: Optimizer
) -> Callable[[State, Iterable[Data], Array], tuple[State, float]]:
    """epoch(state, batches, key) -> (state, mean loss): each batch a step, in their order."""
    step, steps = make_step(network, loss, optimizer), _make_steps(network, loss, optimizer)

    @partial(jax.jit, donate_argnums=0)
    def advance(state: State, group: list[Data]) -> tuple[State, Array]:
        first, *later = group
        if not later:
            return step(state, first)
        stacked = jax.tree.map(lambda *a: jnp.stack(a), *later)
        return steps(state, first, stacked, lambda batch: batch)

    def epoch(state: State, batches: Iterable[Data], key: Array) -> tuple[State, float]:
        # The caller's state stays valid; the copy's memory is used again step after step.
        state = jax.tree.map(jnp.copy, state)
        losses: list[Array] = []
        counts: list[int] = []
        for group in _groups(batches):
            counts.append(len(group) * _count(group[0]))
            # The call moves the batches while the device computes those before them. One call
            # may wait, so that the device never does; more of them would let a fast source
            # fill its memory with batches.
            jax.block_until_ready(losses[-2:-1])
            state, values = advance(state, group)
            losses.append(values)
        if not losses:
            raise ValueError(
                "fit: no batches came; each epoch iterates over the data anew, which an "
                "iterator or a generator allows once: give a list, or an object with __iter__"
            )
        total = sum(float(v.mean()) * count for v, count in zip(losses, counts, strict=True))
        return state, total / sum(counts)

    return epoch


GROUP_BYTES, GROUP_SIZE = 2**21, 16
"""Streamed batches go to the device together while they are no larger and no more than this: a
call takes as long as several steps of a small network."""


def _groups(batches: Iterable[Data]) -> Iterator[list[Data]]:
    """Consecutive batches of one form, as many as may go together or, where fewer are left, one
    by one: for each form two programs, however many batches come."""
    group: list[Data] = []
    form = None
    for batch in batches:
        if not _is_pair(batch):
            raise TypeError(f"fit: expected batches (x, y), got {type(batch).__name__}")
        _count(batch)
        if form != (form := [(a.shape, str(a.dtype)) for a in batch]):
            yield from ([one] for one in group)
            group = []
        group.append(batch)
        together = GROUP_BYTES // max(1, sum(a.nbytes for a in batch))
        if len(group) >= min(max(1, together), GROUP_SIZE):
            yield group
            group = []
    yield from ([one] for one in group)


def _is_pair(data: Any) -> bool:
    """Is it (x, y)? Rather than an iterable of such pairs."""
    return (
        isinstance(data, tuple | list) and len(data) == 2 and all(hasattr(a, "shape") for a in data)
    )


def _count(data: Data) -> int:
    x, y = data
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"data: x has {x.shape[0]} examples, but y has {y.shape[0]}")
    return x.shape[0]
