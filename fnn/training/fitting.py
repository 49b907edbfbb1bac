"""Training on the host, an epoch at a time, for people who watch: `fit`.

Around the compiled epoch of `fnn.training` it checks the data once, measures validation loss and
metrics, keeps the history, stops by patience, and finds the step at which a run diverged.

While one epoch's numbers are read and reported, the next is already being computed, as long as
epochs take less than `AHEAD` seconds: the host's work then costs no time.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fnn import checkpoint
from fnn.base import Array, Layer, Loss, Optimizer, Params, split
from fnn.errors import Error
from fnn.gradients import Gradient
from fnn.numbers import count
from fnn.parallel.examples import ShardedExamples
from fnn.training.arrays import Arrays
from fnn.training.checks import Data, is_pair
from fnn.training.evaluation import Evaluation, Metric
from fnn.training.faults import first_fault
from fnn.training.history import History
from fnn.training.steps import Augment, Record, State, Training
from fnn.training.streams import Stream

LOG = logging.getLogger(__name__)
LAST, BEST = "last.safetensors", "best.safetensors"
"""The files of `fit(..., folder=)`."""
AHEAD = 0.1
"""Seconds. Epochs longer than this are not started ahead."""

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


@jax.transfer_guard("allow")
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
    params: Params | None = None,
    start: Progress | None = None,
    folder: str | Path | None = None,
    on_epoch: OnEpoch | None = None,
    metrics: Mapping[str, Metric] | None = None,
    gradient: Gradient | None = None,
    augment: Augment | None = None,
    record: Record | None = None,
    mesh: Mesh | None = None,
    shard_params: bool = False,
) -> tuple[State, History]:
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
    its own name. `print(history)` shows it as a table, and so does a notebook. After each epoch
    on_epoch(epoch, state, entry) is called, epoch from 1, entry the history's newest; the state
    it gets stays valid for good. Training ends where it returns True. A network with statistics,
    such as batch normalisation's, is measured on the training data (of a stream, on its last
    batch) before it is evaluated.

    With `patience` training ends when so many epochs in a row have not lowered the validation
    loss, and the state returned is the best epoch's. epochs counts those in `start` too: with
    the same other arguments, a run that goes on is bit for bit one that never stopped.

    `params` are those to start from, in the place of fresh ones: for fine-tuning. `folder` is
    where the run is kept, and gone on with: after each epoch `last.safetensors` has the state and,
    as metadata, the history without its records; with validation, `best.safetensors` has the
    state of the lowest validation loss. Where the folder holds a run, training resumes from it,
    as from `start`. Both are read by `fnn.checkpoint.load(path, like=state)`.

    `gradient`, `augment` and `record` are those of `fnn.training`; what record notes is in each
    entry, under `record`, the steps along its leading axis. Data, batches and validation may have
    weights, (x, y, weight): a metric with one number per example is then their weighted mean,
    sum_n weight_n f_n / sum_n weight_n.

    Arrays are moved between host and device as needed: `jax.transfer_guard` of the caller is lifted
    inside.

    `mesh` and `shard_params` too are those of `fnn.training`: data and validation are split over
    the devices of the mesh, each of which holds its part of the state. data and validation may
    be `fnn.parallel.ShardedExamples`, whose entries are not checked.

    Raises as `make_epoch` does; ValueError for epochs or patience below 1, patience or metrics
    without validation, start beside params or folder, arrays that `Checks` refuses, a batch_size
    with batches or without it for arrays, and an iterable that is exhausted; DivergedError, with
    the last finite state, when a loss, a gradient or the state stops being finite; CheckpointError
    for a folder that holds something else.

    >>> import fnn
    >>> x = jax.random.normal(jax.random.key(0), (64, 2))
    >>> state, history = fit(
    ...     fnn.mlp((2, 8, 1)), fnn.mse, fnn.adam(0.01), (x, x[:, :1]),
    ...     key=jax.random.key(1), epochs=3, batch_size=16,
    ... )
    >>> len(history), int(state.step)
    (3, 12)
    """
    _check_settings(epochs, patience, validation, start)
    training = Training.of(
        "fit", network, loss, optimizer, gradient, augment, record, mesh, shard_params
    )
    evaluation = Evaluation.of(training, metrics or {}, validation)
    batch_size = _checked_batch_size(data, batch_size)
    init_key, shuffle_key = split(key, 2)
    start = _first(training, init_key, params, start, folder)
    state, history, best = start.state, History(start.history), start.best
    if validation is not None:
        validation = training.placed("fit: validation", state.params, validation, True)
    source: Arrays | Stream
    if batch_size is None:
        source = Stream(evaluation, data)
    else:
        source = Arrays(evaluation, training.placed("fit", state.params, data), batch_size)

    def begin(number: int, state: State) -> _Epoch:
        return _Epoch(number, *source.epoch(state, validation, shuffle_key, number))

    def is_over() -> bool:
        return patience is not None and epochs_since_best(history) >= patience

    last = len(history) if is_over() else epochs
    for now in _in_turn(begin, len(history) + 1, last, state, source.can_go_ahead):
        finite, *numbers = jax.device_get(now.numbers).tolist()
        if not finite:
            keys = training.epoch_keys(jax.random.fold_in(shuffle_key, now.number))
            fault = first_fault(training, state, source.batches(state, keys[0]), keys[1])
            raise DivergedError(now.number, *fault, state, history)
        state = now.state
        history.append(entry := evaluation.entry(numbers, now.noted))
        LOG.info("epoch %d of %d: %s", now.number, epochs, _numbers(entry))
        is_best = validation is not None and epochs_since_best(history) == 0
        if is_best and (patience is not None or folder is not None):
            best = state
        _keep(folder, state, history, is_best)
        if _is_ended(on_epoch, now.number, state, entry) or is_over():
            break
    return state if patience is None else best, history


def _check_settings(epochs: int, patience: Any, validation: Any, start: Any) -> None:
    """Refuse settings of `fit` that are wrong, whatever the data are."""
    count("fit", epochs=epochs)
    if patience is not None:
        count("fit", patience=patience)
        if validation is None:
            raise ValueError("fit: expected validation=(x, y) for patience, got none")
    if start is not None and not isinstance(start, Progress):
        raise TypeError(f"fit: expected start=Progress(...), got {type(start).__name__}")
    earlier = [] if start is None else start.history
    if patience is not None and not all("validation_loss" in entry for entry in earlier):
        raise ValueError("fit: expected a start with validation losses for patience, got none")


def _first(
    training: Training, key: Array, params: Params, start: Progress | None, folder: Any
) -> Progress:
    """Where training begins: at `start`, where the run in the folder ended, or afresh."""
    if start is not None:
        if params is not None or folder is not None:
            raise ValueError("fit: expected start alone, or params and folder without it")
        return start
    state = training.fresh(key, params)
    if folder is None or not (last := Path(folder) / LAST).exists():
        return Progress(state, [], state)
    state, best = checkpoint.load(last, state), Path(folder) / BEST
    history = checkpoint.read_metadata(last)["history"]
    return Progress(state, history, checkpoint.load(best, state) if best.exists() else state)


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    """A history's entry without its record."""
    return {name: value for name, value in entry.items() if name != "record"}


def _keep(folder: str | Path | None, state: State, history: History, is_best: bool) -> None:
    """Write the state and the history to the folder, if there is one. The best comes first: a run
    that is killed in between goes on from the epoch before, and makes the same best again."""
    if folder is None:
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if is_best:
        checkpoint.save(folder / BEST, state)
    checkpoint.save(folder / LAST, state, {"history": list(map(_numbers, history))})


def _checked_batch_size(data: Any, batch_size: int | None) -> int | None:
    """The batch_size as Python's; refused with batches, and missing with arrays."""
    sharded = isinstance(data, ShardedExamples)
    if batch_size is None:
        wrong = sharded or (isinstance(data, tuple) and all(hasattr(a, "shape") for a in data))
    else:
        wrong = not (sharded or is_pair(data))
    if wrong:
        raise ValueError(f"fit: expected a batch_size with arrays (x, y) only, got {batch_size}")
    return None if batch_size is None else int(count("make_epoch", batch_size=batch_size))


def _is_ended(on_epoch: OnEpoch | None, number: int, state: State, entry: dict[str, Any]) -> bool:
    """Report the epoch. Whether training is to end after it."""
    answer = None if on_epoch is None else on_epoch(number, state, entry)
    if answer is not None and np.dtype(bool) != getattr(answer, "dtype", type(answer)):
        raise TypeError(f"fit: expected on_epoch to return True, False or None, got {answer!r}")
    return bool(answer)


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
    """How many epochs ago the validation loss was lowest for the first time; 0 for none yet."""
    losses = [entry.get("validation_loss", math.inf) for entry in history]
    ranked = [math.inf if math.isnan(value) else value for value in losses]
    return len(ranked) - 1 - ranked.index(min(ranked)) if ranked else 0
