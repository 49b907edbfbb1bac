"""`fit`: the training loop on the host, one epoch at a time.

Around the compiled epoch of `fnn.training` it checks the data once, measures validation loss and
metrics, keeps the history, stops early by patience, and finds the step at which a run diverged.

If epochs take less than `AHEAD` seconds, the device computes the next epoch while the host reads
and reports the current one.
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
    """The progress of a run, from which `fit` resumes it.

    state: after the last epoch; history: one entry per epoch; best: the state after the epoch with
    the lowest validation loss.

    >>> Progress(None, [], None).history
    []
    """

    state: State
    history: list[dict[str, Any]]
    best: State


class DivergedError(Error, FloatingPointError):
    """A loss, a gradient or a state is no longer finite.

    epoch and step (from 1; step is 0 if replaying the epoch did not find it) are when it happened,
    leaf the first array that is not finite, such as `gradient 0.W`, and loss that of the step.
    state and history are those after the last epoch that ended with a finite state.

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
    """A dispatched epoch, whose arrays may still be being computed: the state after it, `numbers`
    (1 if all is finite else 0, then the losses and metrics), and what `record` returned."""

    number: int
    state: State
    numbers: Array
    records: Any


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
    """Train one epoch at a time, from new parameters or from `start`, and keep a history.

    data is (x, y), kept on the device and shuffled there; or, for data that does not fit there, an
    iterable of batches (x, y), such as a Grain, PyTorch or tf.data loader, which is iterated in its
    own order once per epoch, without batch_size. A thread reads it, at most `PREFETCH` groups of
    batches ahead and never beyond the epoch, and a batch moves to the device while earlier ones are
    computed; the iterable must not change the arrays that it has returned. x and y are arrays or
    trees of arrays; those of other libraries are not copied if their memory is on the host.

    Returns the final state and the history: an entry per epoch with its `loss` and, with
    validation=(x, y), the `validation_loss` after the epoch and, for metrics={name: f(prediction,
    y)}, under each name the mean of what f returns on the validation data. `print(history)` and
    notebooks show it as a table. After each epoch on_epoch(epoch, state, entry) is called, with
    epoch from 1; the state stays valid. If it returns True, training ends. Statistics, such as
    those of batch normalisation, are measured on the training data (of a stream, on its last batch)
    before validation.

    With `patience`, training ends after that many epochs in a row without a lower validation loss,
    and the state of the best epoch is returned. `epochs` includes those in `start`: with the same
    other arguments, a resumed run equals an uninterrupted one bit for bit.

    `params` are initial parameters instead of new ones, for fine-tuning. `folder` is where the run
    is saved: after each epoch `last.safetensors` has the state and, as metadata, the history
    without its records; with validation, `best.safetensors` has the state with the lowest
    validation loss. If the folder already holds a run, training resumes from it, as from `start`.
    `fnn.checkpoint.load(path, like=state)` reads both files.

    `gradient`, `augment` and `record` are those of `fnn.training`; what `record` returns is in each
    entry under "record", with the steps along its leading axis. Data, batches and validation may
    have weights, (x, y, weight): a metric with one number per example is then the weighted mean,
    sum_n weight_n f_n / sum_n weight_n.

    The caller's `jax.transfer_guard` does not apply inside `fit`, which moves arrays between host
    and device.

    `mesh` and `shard_params` are those of `fnn.training`: data and validation are split over the
    devices of the mesh, each of which holds its part of the state. data and validation may be
    `fnn.parallel.ShardedExamples`, whose entries are not checked.

    Raises as `make_epoch` does; ValueError for epochs or patience below 1, patience or metrics
    without validation, start together with params or folder, examples that don't fit the network or
    the loss or are not finite, arrays without batch_size, batches with it, and an iterable without
    batches; DivergedError, with the last finite state, if a loss, a gradient or the state is no
    longer finite; CheckpointError for a folder that holds something else.

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
    training = Training(network, loss, optimizer, gradient, augment, record)
    training = training.checked("fit", mesh, shard_params)
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

    begin = lambda n, state: _Epoch(n, *source.epoch(state, validation, shuffle_key, n))
    out_of_patience = lambda: patience is not None and epochs_since_best(history) >= patience
    last = len(history) if out_of_patience() else epochs
    for now in _epochs(begin, len(history) + 1, last, state, source.can_run_ahead):
        finite, *numbers = jax.device_get(now.numbers).tolist()
        if not finite:
            keys = training.epoch_keys(jax.random.fold_in(shuffle_key, now.number))
            fault = first_fault(training, state, source.batches(state, keys[0]), keys[1])
            raise DivergedError(now.number, *fault, state, history)
        state = now.state
        history.append(entry := evaluation.entry(numbers, now.records))
        LOG.info("epoch %d of %d: %s", now.number, epochs, _numbers(entry))
        is_best = validation is not None and epochs_since_best(history) == 0
        if is_best and (patience is not None or folder is not None):
            best = state
        _save(folder, state, history, is_best)
        if _stopped(on_epoch, now.number, state, entry) or out_of_patience():
            break
    return state if patience is None else best, history


def _check_settings(epochs: int, patience: Any, validation: Any, start: Any) -> None:
    """Raise for invalid settings of `fit`, whatever the data."""
    count("fit", epochs=epochs)
    if patience is not None:
        count("fit", patience=patience)
        if validation is None:
            raise ValueError("fit: expected validation=(x, y) with patience, got none")
    if start is not None and not isinstance(start, Progress):
        raise TypeError(f"fit: expected start=Progress(...), got {type(start).__name__}")
    earlier = [] if start is None else start.history
    if patience is not None and not all("validation_loss" in entry for entry in earlier):
        raise ValueError("fit: expected validation losses in start.history with patience, got none")


def _first(
    training: Training, key: Array, params: Params, start: Progress | None, folder: Any
) -> Progress:
    """The initial progress: `start`, that of the run in the folder, or a new one."""
    if start is not None:
        if params is not None or folder is not None:
            raise ValueError("fit: expected either start or params and folder, got both")
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


def _save(folder: str | Path | None, state: State, history: History, is_best: bool) -> None:
    """Write the state and the history to the folder, if there is one. The best state is written
    first: a run that is killed in between resumes from the previous epoch and writes it again."""
    if folder is None:
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if is_best:
        checkpoint.save(folder / BEST, state)
    checkpoint.save(folder / LAST, state, {"history": list(map(_numbers, history))})


def _checked_batch_size(data: Any, batch_size: int | None) -> int | None:
    """The batch_size as a Python int. Raises ValueError for batches with it or arrays without."""
    sharded = isinstance(data, ShardedExamples)
    if batch_size is None:
        wrong = sharded or (isinstance(data, tuple) and all(hasattr(a, "shape") for a in data))
    else:
        wrong = not (sharded or is_pair(data))
    if wrong:
        raise ValueError(f"fit: expected batch_size for arrays, none for batches, got {batch_size}")
    return None if batch_size is None else int(count("make_epoch", batch_size=batch_size))


def _stopped(on_epoch: OnEpoch | None, number: int, state: State, entry: dict[str, Any]) -> bool:
    """Call on_epoch, if there is one; whether it ended training."""
    answer = None if on_epoch is None else on_epoch(number, state, entry)
    if answer is not None and np.dtype(bool) != getattr(answer, "dtype", type(answer)):
        raise TypeError(f"fit: expected on_epoch to return True, False or None, got {answer!r}")
    return bool(answer)


def _epochs(
    begin: Callable[[int, State], _Epoch], first: int, last: int, state: State, ahead: bool
) -> Iterator[_Epoch]:
    """The epochs from first to last. If epochs are short and `ahead` allows it, the next one is
    dispatched before one is yielded."""
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
    """How many epochs ago the lowest validation loss was first reached; 0 before any epoch."""
    losses = [entry.get("validation_loss", math.inf) for entry in history]
    ranked = [math.inf if math.isnan(value) else value for value in losses]
    return len(ranked) - 1 - ranked.index(min(ranked)) if ranked else 0
