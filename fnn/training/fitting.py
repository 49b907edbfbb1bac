"""Training on the host, an epoch at a time, for people who watch: `fit`.

Around the compiled epoch of `fnn.training` it checks the data once, measures validation loss and
metrics, keeps the history, stops by patience, and finds the step at which a run diverged.

While one epoch's numbers are read and reported, the next is already being computed, as long as
epochs take less than `AHEAD` seconds: the host's work then costs no time.
"""

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fnn import losses
from fnn.base import Array, Layer, Loss, Optimizer, Params, at, at_least_float32, split, statistics
from fnn.errors import Error
from fnn.numbers import count as check_count
from fnn.parallel.examples import ShardedExamples
from fnn.parallel.partition import untyped
from fnn.training.mesh import Devices
from fnn.training.prefetch import ahead
from fnn.training.steps import (
    Augment,
    Data,
    Record,
    State,
    Training,
    count,
    in_batches,
)

AHEAD = 0.1
"""Seconds: an epoch that takes longer is not computed ahead, for it may not be wanted."""
GROUP_BYTES, GROUP_SIZE = 2**21, 16
"""Streamed batches go to the device together while they are no larger and no more than this: a
call takes as long as several steps of a small network."""
PREFETCH = 2
"""Groups of streamed batches that may be read before they are used."""

BINARY = (losses.binary_cross_entropy, losses.sigmoid_binary_cross_entropy)
"""The losses whose targets are from 0 to 1."""
CHUNK = 2**14
"""The most examples of one forward pass without a backward: more are taken one chunk after another,
for the activations of all at once may not fit into memory."""

Metric = Callable[[Any, Any], Any]
OnEpoch = Callable[[int, State, dict[str, Any]], Any]


class Progress(NamedTuple):
    """Where a run stands: what `fit` needs to go on as if it had never stopped.

    state is the newest; best the one with the lowest validation loss of the history, which has
    one entry per epoch.

    >>> Progress(None, [], None).history
    []
    """

    state: State
    history: list[dict[str, Any]]
    best: State


class DivergedError(Error, FloatingPointError):
    """A loss, a gradient or a state that is no longer finite.

    epoch and step (from 1; step 0 where it was not found again) say when. leaf is the first
    array affected, such as `gradient 0.W`, and loss the step's. state and history are those of
    the last epoch whose end was finite.

    >>> print(DivergedError(2, 7, float("inf"), "gradient 0.W", None, []))  # doctest: +ELLIPSIS
    training diverged in epoch 2, step 7: the loss is inf, and the first array that is not ...
    """

    def __init__(
        self, epoch: int, step: int, loss: float, leaf: str, state: Any, history: list[Any]
    ) -> None:
        where = f"epoch {epoch}" + (f", step {step}" if step else "")
        super().__init__(
            f"training diverged in {where}: the loss is {loss:.4g}, and the first array that is "
            f"not finite is the {leaf}; a lower learning rate may help"
        )
        self.epoch, self.step, self.loss, self.leaf = epoch, step, loss, leaf
        self.state, self.history = state, history


class _Epoch(NamedTuple):
    """An epoch under way: the state after it, whether all is finite (1 or 0) with the epoch's
    numbers, and what `record` noted. The arrays may still be in the making."""

    number: int
    state: State
    numbers: Array
    noted: Any


def fit(
    network: Layer,
    loss: Loss,
    optimizer: Optimizer,
    data: Any,
    *,
    key: Array,
    epochs: int,
    batch_size: int | None = None,
    validation: Data | None = None,
    patience: int | None = None,
    start: Progress | None = None,
    on_epoch: OnEpoch | None = None,
    metrics: Mapping[str, Metric] | None = None,
    augment: Augment | None = None,
    record: Record | None = None,
    mesh: Mesh | None = None,
    shard_params: bool = False,
) -> tuple[State, list[dict[str, Any]]]:
    """Train an epoch at a time, from fresh parameters or from `start`, and keep a history.

    data is (x, y), kept on the device and shuffled there; or, for more than the device
    holds, an iterable of batches (x, y), such as a Grain, PyTorch or tf.data loader, taken in its
    order and iterated anew in each epoch. Then no batch_size is given. The iterable is read on a
    thread, at most `PREFETCH` groups of batches ahead and never beyond the epoch, and a batch
    moves to the device while those before it are computed; the iterable must not change the
    arrays that it has given. x and y are arrays or trees of arrays; those of another library are
    taken without a copy where their memory is the host's.

    Returns the final state and the history: for each epoch its `loss`, and with
    validation=(x, y) its `validation_loss` after the epoch and each of
    metrics={name: f(prediction, y)}, the mean of what f returns on the validation data, under
    its own name. After each epoch on_epoch(epoch, state, entry) is called, epoch from 1, entry
    the history's newest; the state it gets stays valid for good. Training ends where it
    returns True. A network with statistics, such as batch normalisation's, is measured on the
    training data (of a stream, on its last batch) before it is evaluated.

    With `patience` training ends when so many epochs in a row have not lowered the validation
    loss, and the state returned is the best epoch's. epochs counts those in `start` too: with
    the same other arguments, a run that goes on is bit for bit one that never stopped.

    `augment` and `record` are those of `fnn.training`; what record notes is in each entry, under
    `record`, the steps along its leading axis.

    `mesh` and `shard_params` too are those of `fnn.training`: data and validation are split over
    the devices of the mesh, each of which holds its part of the state. data and validation may
    be `fnn.parallel.ShardedExamples`, whose entries are not checked.

    Raises as `make_epoch` does; ValueError for epochs or patience below 1, patience or metrics
    without validation, arrays that `check_data` refuses, a batch_size with batches or without
    it for arrays, and an iterable that is exhausted; DivergedError, with the last finite state,
    when a loss, a gradient or the state stops being finite.

    >>> import fnn
    >>> x = jax.random.normal(jax.random.key(0), (64, 2))
    >>> state, history = fit(
    ...     fnn.mlp((2, 8, 1)), fnn.mse, fnn.adam(0.01), (x, x[:, :1]),
    ...     key=jax.random.key(1), epochs=3, batch_size=16,
    ... )
    >>> len(history), int(state.step)
    (3, 12)
    """
    check_count("fit", epochs=epochs)
    if patience is not None:
        check_count("fit", patience=patience)
        if validation is None:
            raise ValueError("fit: expected validation=(x, y) for patience, got none")
    taken = {"loss", "validation_loss", "record"} & set(metrics or {})
    if taken or not isinstance(metrics or {}, Mapping):
        raise ValueError(
            f"fit: expected metrics={{name: f(prediction, y)}} with names of their own, "
            f"got {sorted(taken) or type(metrics).__name__}"
        )
    if metrics and validation is None:
        raise ValueError("fit: expected validation=(x, y) to measure the metrics on, got none")
    training = Training.of("fit", network, loss, optimizer, augment, record, mesh, shard_params)
    devices = training.devices
    arrays = isinstance(data, tuple) and all(hasattr(a, "shape") for a in data)
    arrays = arrays or isinstance(data, ShardedExamples)
    if arrays if batch_size is None else not (isinstance(data, ShardedExamples) or _is_pair(data)):
        raise ValueError(f"fit: expected a batch_size with arrays (x, y) alone, got {batch_size}")
    if start is not None and not isinstance(start, Progress):
        raise TypeError(f"fit: expected start=Progress(...), got {type(start).__name__}")
    earlier = [] if start is None else start.history
    if patience is not None and not all("validation_loss" in entry for entry in earlier):
        raise ValueError("fit: expected a start with validation losses for patience, got none")
    init_key, shuffle_key = split(key, 2)
    if start is None:
        fresh = _fresh(training, init_key)
        start = Progress(fresh, [], fresh)
    state, history, best = start.state, list(start.history), start.best
    if validation is not None:
        validation = _placed("fit: validation", network, loss, state, validation, devices)
    names = ["loss", *([] if validation is None else ["validation_loss", *(metrics or {})])]
    numbers = _make_numbers(training, metrics or {})
    if batch_size is None:
        epoch = _make_streamed_epoch(training, numbers)
    else:
        check_count("make_epoch", batch_size=batch_size)
        data = _placed("fit", network, loss, state, data, devices)
        epoch = _make_watched_epoch(training, numbers, batch_size)

    def begin(number: int, state: State) -> _Epoch:
        return _Epoch(number, *epoch(state, data, validation, shuffle_key, number))

    def is_over() -> bool:
        return patience is not None and epochs_since_best(history) >= patience

    last = len(history) if is_over() else epochs
    # Several processes must begin everything in the same order, whatever the time of each.
    may_wait = batch_size is not None and jax.process_count() == 1
    for now in _in_turn(begin, len(history) + 1, last, state, ahead=may_wait):
        finite, *values = np.asarray(now.numbers).tolist()
        if not finite:
            epoch_key = jax.random.fold_in(shuffle_key, now.number)
            order_key, step_key = training.epoch_keys(epoch_key)
            again = _pairs(data)
            if batch_size is not None:
                again = _batches(data, batch_size, order_key, devices)
            for place, batch in enumerate(_pairs(data) if batch_size is None else [], 1):
                check_data(f"fit: batch {place}", network, loss, state.params, *batch)
            step, value, leaf = first_fault(training, state, again, step_key)
            raise DivergedError(now.number, step, value, leaf, state, history)
        state = now.state
        history.append(entry := dict(zip(names, values, strict=True)))
        if record is not None:
            entry["record"] = jax.tree.map(np.asarray, now.noted)
        if patience is not None and epochs_since_best(history) == 0:
            best = state
        answer = None if on_epoch is None else on_epoch(now.number, state, entry)
        if answer is not None and np.dtype(bool) != getattr(answer, "dtype", type(answer)):
            raise TypeError(f"fit: expected on_epoch to return True, False or None, got {answer!r}")
        if answer or is_over():
            break
    return state if patience is None else best, history


def _in_turn(
    begin: Callable[[int, State], _Epoch], first: int, last: int, state: State, ahead: bool
) -> Iterator[_Epoch]:
    """The epochs from first to last. Where that is quick and `ahead` allows it, the next has
    begun when one is yielded."""
    waiting = begin(first, state) if first <= last else None
    quick = False
    while waiting is not None:
        now, start = waiting, time.perf_counter()
        waiting = begin(now.number + 1, now.state) if quick and now.number < last else None
        yield now
        if waiting is None and now.number < last:
            quick = ahead and time.perf_counter() - start < AHEAD
            waiting = begin(now.number + 1, now.state)


def epochs_since_best(history: list[dict[str, Any]]) -> int:
    """How many epochs ago the validation loss was lowest for the first time; 0 for none yet.

    >>> epochs_since_best([{"validation_loss": loss} for loss in (3.0, 1.0, 2.0)])
    1
    """
    losses = [entry["validation_loss"] for entry in history]
    ranked = [math.inf if math.isnan(value) else value for value in losses]
    return len(ranked) - 1 - ranked.index(min(ranked)) if ranked else 0


def _make_numbers(training: Training, metrics: Mapping[str, Metric]) -> Callable:
    """numbers(state, mean loss, data, validation) -> one array: whether loss and state are finite,
    the loss, and on the validation data the loss and the metrics."""
    network, loss, devices = training.network, training.loss, training.devices

    def here(params: Params, statistics: Any, x: Any) -> Any:
        return predicted(at(network, None, statistics), params, x)

    evaluated = here if devices is None else devices.forward(network, here)

    def numbers(state: State, value: Array, data: Data, validation: Data | None) -> Array:
        found = [all_finite((state, value)), value]
        if validation is not None:
            measured = statistics(network, state.params, examples(data)[0])
            inputs, _ = validation.arrays if isinstance(validation, ShardedExamples) else validation
            prediction = evaluated(state.params, measured, inputs)
            if isinstance(validation, ShardedExamples):
                prediction = validation.examples(prediction)
            _, y = examples(validation)
            found.append(loss.value(prediction, y).mean())
            found += [jnp.mean(metric(prediction, y)) for metric in metrics.values()]
        dtype = at_least_float32(value.dtype)
        return jnp.stack([jnp.asarray(number).astype(dtype) for number in found])

    return numbers


def predicted(layer: Layer, params: Params, x: Any) -> Any:
    """The layer's output for the examples x (n, ...), at most `CHUNK` of them at a time.

    >>> import fnn
    >>> predicted(fnn.relu, (), jnp.array([[-1.0], [1.0]]))
    Array([[0.],
           [1.]], dtype=float32)
    """
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


def _make_watched_epoch(
    training: Training, numbers: Callable[..., Array], batch_size: int
) -> Callable[..., tuple[State, Array, Any]]:
    """epoch(state, data, validation, key, number) -> (state, numbers, noted): one program."""
    record, devices = training.record, training.devices

    @jax.jit
    def watched(
        state: State, data: Data, validation: Data | None, key: Array, number: Any
    ) -> tuple[State, Array, Any]:
        state, noted = training.epoch(batch_size, state, data, jax.random.fold_in(key, number))
        found = numbers(state, training.loss_of(noted), data, validation)
        noted = None if record is None else noted[1]
        return state, *((found, noted) if devices is None else devices.whole((found, noted)))

    return watched


def _make_streamed_epoch(
    training: Training, numbers: Callable[..., Array]
) -> Callable[..., tuple[State, Array, Any]]:
    """epoch(state, batches, validation, key, number) -> (state, numbers, noted): each batch a
    step, in their order."""
    loss, record, devices = training.loss, training.record, training.devices
    numbers = jax.jit(numbers)

    @partial(jax.jit, donate_argnums=0)
    def advance(state: State, group: list[Data], key: Array | None) -> tuple[State, Any]:
        first, *later = group
        if not later:
            state, noted = training.step(state, first, key)
            noted = jax.tree.map(lambda a: a[None], noted)
        else:
            stacked = jax.tree.map(lambda *a: jnp.stack(a), *later)
            state, noted = training.steps(state, first, stacked, lambda batch: batch, key)
        noted = noted, jnp.stack([_targets_fit(loss, examples(batch)[1]) for batch in group])
        return state, noted if devices is None else devices.whole(noted)

    def epoch(
        state: State, batches: Iterable[Data], validation: Data | None, key: Array, number: int
    ) -> tuple[State, Array, Any]:
        # The caller's state stays valid; the copy's memory is used again step after step.
        state = jax.tree.map(jnp.copy, state)
        _, step_key = training.epoch_keys(jax.random.fold_in(key, number))
        noted: list[Any] = []
        counts: list[int] = []
        with closing(ahead(_groups(batches), PREFETCH)) as groups:
            for group in groups:
                for _, y in group:
                    if isinstance(y, np.ndarray):  # to look at the device's would wait for it
                        _check_targets("fit", loss, y)
                counts.append(len(group) * count(group[0]))
                # The call moves the batches while the device computes those before them. One call
                # may wait, so that the device never does; more of them would let a fast source
                # fill its memory with batches.
                jax.block_until_ready(noted[-2:-1])
                group = group if devices is None else [devices.shares(batch) for batch in group]
                state, latest = advance(state, group, step_key)
                noted.append(latest)
        if not noted:
            raise ValueError(
                "fit: no batches came; each epoch iterates over the data anew, which an "
                "iterator or a generator allows once: give a list, or an object with __iter__"
            )
        noted, fit = ([entry[i] for entry in noted] for i in range(2))
        values = [training.loss_of(entry) for entry in noted]
        mean = sum(float(v.mean()) * n for v, n in zip(values, counts, strict=True)) / sum(counts)
        # What was not looked at before is then found in the replay, by its batch.
        mean = mean if all(batch.all() for batch in fit) else np.nan
        value = jnp.asarray(mean, at_least_float32(values[0].dtype))
        found = numbers(state, value, group[-1], validation)
        if record is None:
            return state, found, None
        return state, found, jax.tree.map(lambda *a: jnp.concatenate(a), *(n[1] for n in noted))

    return epoch


def _groups(batches: Iterable[Data]) -> Generator[list[Data]]:
    """Consecutive batches of one form, as many as may go together or, where fewer are left, one
    by one: for each form two programs, however many batches come."""
    group: list[Data] = []
    form: Any = None
    for batch in _pairs(batches):
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


def _pairs(batches: Iterable[Any]) -> Iterator[Data]:
    """The batches as pairs of arrays of NumPy's or JAX's. Raises TypeError for what is no pair,
    ValueError for no examples and for whole numbers that JAX would wrap."""
    for batch in batches:
        if not _is_pair(batch):
            raise TypeError(f"fit: expected batches (x, y), got {type(batch).__name__}")
        pair = jax.tree.map(_array, tuple(batch))
        if count(pair) == 0:
            raise ValueError("fit: expected at least one example in each batch, got none")
        jax.tree_util.tree_map_with_path(partial(_check_whole, "fit"), pair)
        yield pair


def _array(a: Any) -> Any:
    """An array of another library as one of NumPy's, or, of a dtype that NumPy lacks or on a
    device, as one of JAX's."""
    if isinstance(a, np.ndarray | Array):
        return a
    try:
        return np.asarray(a)
    except TypeError:
        array = jnp.from_dlpack(a)
        on_host = {device.platform for device in array.devices()} == {"cpu"}
        return np.asarray(array) if on_host else array


def _batches(data: Data, batch_size: int, key: Array, devices: Devices | None) -> Iterator[Data]:
    """The batches of the epoch whose order has this key, one after another."""

    @jax.jit
    def ordered(data: Data, key: Array) -> tuple[Array, Array]:
        return in_batches(key, data, batch_size, devices)[:2]

    @partial(jax.jit, static_argnums=2)
    def batch(data: Data, rows: Array, size: int) -> Data:
        return in_batches(key, data, batch_size, devices)[2](rows, size)

    batches, rest = ordered(data, key)
    for rows in batches:
        yield batch(data, rows, batch_size)
    if rest.size:
        yield batch(data, rest, count(data) % batch_size)


def _fresh(training: Training, key: Array) -> State:
    """The state before training, each device making its part."""
    fresh = lambda key: training.optimizer.init(training.network.init(key))
    return (fresh if training.devices is None else jax.jit(fresh))(key)


def _placed(
    name: str, network: Layer, loss: Loss, state: State, data: Any, devices: Devices | None
) -> Data:
    """Data, checked, on the device or as shares on the devices."""
    if isinstance(data, ShardedExamples):
        return data
    if devices is None:
        data = _on_device(name, data)
    else:
        data = jax.tree.map(untyped, _checked(name, data))
    check_data(name, network, loss, state.params, *data)
    return data if devices is None else devices.shares(data)


def examples(data: Data) -> Any:
    """(x, y), of `ShardedExamples` too.

    >>> examples((1, 2))
    (1, 2)
    """
    return data.examples(data.arrays) if isinstance(data, ShardedExamples) else data


def _is_pair(data: Any) -> bool:
    """Whether data is (x, y), arrays or trees of arrays."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    try:
        sides = [jax.tree.leaves(side) for side in data]
    except (RecursionError, SystemError):  # lists in lists, a thousand deep
        return False
    return all(sides) and all(hasattr(a, "shape") for side in sides for a in side)


def _on_device(name: str, data: Any) -> Data:
    """(x, y) as JAX's arrays. Raises as `_checked` does."""
    x, y = jax.tree.map(jnp.asarray, _checked(name, data))
    return x, y


def _checked(name: str, data: Any) -> Data:
    """(x, y). Raises TypeError for what is no such pair, ValueError for whole numbers that JAX
    would wrap."""
    if not _is_pair(data):
        raise TypeError(f"{name}: expected (x, y), arrays or trees of arrays")
    pair = jax.tree.map(_array, tuple(data))
    jax.tree_util.tree_map_with_path(partial(_check_whole, name), pair)
    return pair


def _check_whole(name: str, path: Any, a: Any) -> None:
    """Raise for NumPy's whole numbers that JAX's dtype doesn't hold, and for what is no number."""
    if isinstance(a, np.ndarray) and a.dtype.kind in "iuOUSMm":
        if a.dtype.kind in "OUSMm":
            raise TypeError(f"{name}: expected arrays of numbers, got {a.dtype}")
        kept = jnp.iinfo(jax.dtypes.canonicalize_dtype(a.dtype))
        if kept.bits < 8 * a.dtype.itemsize:
            place = "xy"[path[0].idx] + jax.tree_util.keystr(path[1:])
            _refuse(name, place, a, (a < kept.min) | (a > kept.max), f"numbers within {kept.dtype}")


def all_finite(tree: Any) -> Array:
    """Whether no floating-point entry of the tree is NaN or infinite: a boolean scalar.

    >>> bool(all_finite({"a": jnp.ones(2), "b": jnp.array([jnp.nan])}))
    False
    """
    flags = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree) if _is_floating(leaf)]
    return jnp.stack(flags).all() if flags else jnp.array(True)


def first_not_finite(tree: Any) -> str | None:
    """The name of the first leaf, in the tree's order, with a NaN or an infinity in it.

    >>> first_not_finite({"a": jnp.ones(2), "b": jnp.array([jnp.nan])})
    'b'
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    for path, leaf in leaves:
        if _is_floating(leaf) and not all_finite(leaf):
            return jax.tree_util.keystr(path, simple=True, separator=".")
    return None


def first_fault(
    training: Training, state: State, batches: Iterable[Data], key: Array | None = None
) -> tuple[int, float, str]:
    """Train from `state` on these batches until something is not finite: (step, loss, leaf).

    (0, NaN, loss) where all stays finite.

    >>> import fnn
    >>> optimizer, params = fnn.sgd(1e30), {"W": jnp.ones((1, 1)), "b": jnp.ones(1)}
    >>> batches = [(jnp.ones((1, 1)), jnp.zeros((1, 1)))] * 5
    >>> training = Training.of("fit", fnn.dense(1, 1), fnn.mse, optimizer)
    >>> first_fault(training, optimizer.init(params), batches)
    (2, inf, 'updated params.W')
    """
    gradient = lambda state, grads, value: grads
    step = jax.jit(training._replace(record=gradient).step)
    for number, batch in enumerate(batches, 1):
        state, (value, grads) = step(state, batch, key)
        for kind, tree in (("gradient", grads), ("updated", state), ("loss", value)):
            leaf = first_not_finite(tree)
            if leaf is not None:
                return number, float(value), f"{kind} {leaf}".strip()
    return 0, float("nan"), "loss"


def check_data(name: str, network: Layer, loss: Loss, params: Params, x: Any, y: Any) -> None:
    """Refuse examples that the network and the loss can't take.

    Raises ValueError for no examples, another number of x than of y, shapes that the network
    or the loss refuses, labels outside 0 to k-1, targets of the binary cross-entropies outside
    [0, 1], and entries that are NaN or infinite.

    >>> import fnn
    >>> x, y = jnp.ones((2, 3)), jnp.array([0, 5])
    >>> network = fnn.dense(3, 2)
    >>> params = network.init(jax.random.key(0))
    >>> check_data("fit", network, fnn.softmax_cross_entropy, params, x, y)
    Traceback (most recent call last):
    ValueError: fit: expected labels from 0 to 1, y[1] is 5
    """
    single = all(hasattr(a, "shape") for a in (x, y))
    if single and (jnp.ndim(x) < 2 or jnp.ndim(y) < 1):
        raise ValueError(f"{name}: expected x (n, d_in) and y (n, ...), got {x.shape}, {y.shape}")
    n = count((x, y)) if not single or len(x) == len(y) else None
    if n is None:
        raise ValueError(f"{name}: x has {len(x)} examples, but y has {len(y)}")
    if n == 0:
        raise ValueError(f"{name}: expected at least one example, got none")
    prediction, _ = jax.eval_shape(network.forward, params, x)
    jax.eval_shape(loss.value, prediction, y)
    form: Any = jax.tree.structure(prediction)
    if form == jax.tree.structure(y):
        jax.tree_util.tree_map_with_path(partial(_check_labels, name), y, prediction)
    _check_targets(name, loss, y)
    for side, tree in (("x", x), ("y", y)):
        for path, a in jax.tree_util.tree_flatten_with_path(tree)[0]:
            if _is_floating(a):
                place = side + jax.tree_util.keystr(path)
                finite = (np if isinstance(a, np.ndarray) else jnp).isfinite(a)
                _refuse(name, place, a, ~finite, "finite numbers")


def _check_targets(name: str, loss: Loss, y: Any) -> None:
    if loss in BINARY:
        _refuse(name, "y", y, (y < 0) | (y > 1), "targets from 0 to 1")


def _targets_fit(loss: Loss, y: Any) -> Array:
    """Whether `_check_targets` takes them: a boolean scalar on the device."""
    return ((y >= 0) & (y <= 1)).all() if loss in BINARY else jnp.array(True)


def _check_labels(name: str, path: Any, y: Array, prediction: Array) -> None:
    if jnp.issubdtype(y.dtype, jnp.integer) and y.shape == prediction.shape[:-1]:
        k = prediction.shape[-1]
        place = "y" + jax.tree_util.keystr(path)
        _refuse(name, place, y, (y < 0) | (y >= k), f"labels from 0 to {k - 1}")


def _refuse(name: str, place: str, a: Any, wrong: Any, expected: str) -> None:
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(np.asarray(wrong))[0])
        raise ValueError(f"{name}: expected {expected}, {place}{list(index)} is {a[index]}")


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
