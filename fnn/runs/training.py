"""How a run comes to be: its data read and split, its network trained."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fnn import data
from fnn.base import ONCE
from fnn.data import DataError, Dataset, Encoding, Scaling
from fnn.data.dataset import TEXT
from fnn.parallel import ShardedExamples, processes
from fnn.runs import _members, digests, evaluation
from fnn.runs._bins import BINS, WIDE, Bins
from fnn.runs.metrics import Classified
from fnn.runs.run import Run
from fnn.runs.settings import Settings
from fnn.training.evaluation import predicted
from fnn.training.fitting import Progress, epochs_since_best, fit

DEFAULTS, UNKNOWN = Settings(), "0" * 64
OnEpoch = Callable[[Run], bool | None]
"""on_epoch(newest) -> whether to stop."""


class Examples(NamedTuple):
    """The parts of the data: for training, for validation (with patience), and held out, if any;
    folds says which fold each example to train on is in, where there are several members."""

    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    folds: np.ndarray | None = None


def train(
    source: data.Source, settings: Settings = DEFAULTS, on_epoch: OnEpoch = lambda newest: None
) -> Run:
    """Train a network on a source, as `fnn train` does, and return it.

    source is as for `fnn.data.load`: a name, a file, a data frame. After each epoch on_epoch is
    called with the run as it is then; training ends early where it returns True.

    Raises ValueError or TypeError for settings without a meaning; DataError for data that can't be
    used; DivergedError where the training diverges.

    >>> import fnn
    >>> run = fnn.runs.train("iris", fnn.runs.Settings(hidden=(16,), epochs=20, batch_size=8))
    >>> run.evaluate("iris").accuracy > 0.8
    True
    """
    return advance(*prepare(source, settings), on_epoch)


def prepare(source: data.Source, settings: Settings) -> tuple[Run, Examples]:
    """Read and split the data, and make a run of no epochs yet, with fresh parameters.

    Each process reads the whole source, except .npy pairs: process 0 reads them, the others
    memory-map their shard.

    Raises DataError for data that can't be used, and for more examples per batch than there are.
    """
    settings.checked()
    mapped = data.is_mapped(source) and not processes.is_first()
    everything = data.mapped(source, task=settings.task) if mapped else settings.load(source)
    # What was guessed holds for later files.
    settings = settings._replace(encoding=everything.encoding or settings.encoding)
    parts = data.split(data.without_singles(everything), evaluation.HELD_OUT, settings.seed)
    digest = UNKNOWN if mapped else digests.of_data(everything)
    return begin(*parts, settings, digest, data.is_mapped(source))


def begin(
    train: Dataset,
    test: Dataset | None,
    settings: Settings,
    digest: str = UNKNOWN,
    is_shared: bool = False,
) -> tuple[Run, Examples]:
    """A run of no epochs yet for examples that are split already. test may be None.

    With is_shared, several processes hold the examples, and the first measures them. Raises as
    `prepare` does.
    """
    measures = not is_shared or processes.is_first()
    few = measures and len(train.x) <= digests.SEEN
    settings, train, validation = _settled(settings, train, is_shared)
    unknown = lambda a: Scaling(np.zeros(a.shape[1]), np.ones(a.shape[1]))  # see `_from_first`
    inputs = Encoding.of(train, settings.keep) if measures else Encoding((), unknown(train.x))
    outputs = None if train.classes else (Scaling.of if measures else unknown)(train.y)
    train = inputs.aligned(train)
    validation, test = (part and inputs.aligned(part) for part in (validation, test))
    seen = [digests.of_examples(part) for part in (train, validation) if few and part]
    k = settings.members or 1
    folds = None if k == 1 else _members.folds(train, k, settings.seed)
    known = settings, digest, np.concatenate([np.empty(0, np.uint64), *seen]), len(train.x)
    names = train.features, train.classes, train.targets
    run = Run(*known, *names, inputs, outputs, Progress(None, [], None))
    run = run._replace(weights=_weights(settings, train))
    run = _from_first(run) if is_shared else _binned(run, train, folds)
    state = jax.jit(partial(initial_state, run), compiler_options=ONCE)()
    run = run._replace(progress=Progress(state, [], state))
    return run, Examples(train, validation, test, folds)


def _settled(settings: Settings, train: Dataset, is_shared: bool) -> tuple[Settings, Dataset, Any]:
    """The settings completed, and the parts to train on and, for the patience of one network, to
    validate on. Members are for one process's examples only."""
    default = 1 if is_shared else settings.completed(len(train.x)).members
    members, validation = settings.members or default or 1, None
    if is_shared and members > 1:
        raise DataError(f"{train.name}: several processes train --members 1")
    if settings.patience is not None and members == 1:
        train, validation = data.split(train, evaluation.HELD_OUT, settings.seed)
    if settings.batch_size is not None and settings.batch_size > len(train.x):
        size = f"the batch size {settings.batch_size}"
        raise DataError(f"{size} is larger than the {len(train.x)} examples to train on")
    return settings._replace(members=members).completed(len(train.x)), train, validation


def _weights(settings: Settings, train: Dataset) -> tuple[float, ...]:
    """The weight of each class, n / (k n_i) where they are balanced; () for none. King & Zeng 2001.

    Raises DataError for values to predict, and for another number of weights than of classes.
    """
    given: Any = settings.class_weight
    k = len(train.classes)
    if given and not k:
        raise DataError(f"{train.name}: class weights apply to classes, and the target is values")
    if given == "balanced":
        given = len(train.y) / k / np.bincount(train.y, minlength=k).clip(1)
    if given is not None and len(given) != k:
        raise DataError(f"{train.name}: expected {k} class weights, got {len(given)}")
    return () if given is None else tuple(map(float, given))


def _binned(run: Run, train: Dataset, folds: np.ndarray | None) -> Run:
    """The run with bins: as many as its settings say; by default, if they help."""
    settings, default = run.settings, 0 if folds is None else BINS
    count = default if settings.bins is None else settings.bins
    if settings.network != "mlp" or not count:
        return run._replace(settings=settings._replace(bins=0))
    x, y = run.standardised(train)
    text = [f.kind == TEXT for f in run.inputs.used for _ in range(f.width)] or False
    found = Bins.of(np.where(text, 0, x), count)
    if settings.bins is None and folds is not None:
        target = np.eye(len(run.classes))[y] if run.classes else y
        if not (0 < len(found.columns) <= WIDE and found.help(x, target, folds)):
            found, count = run.bins, 0
    return run._replace(bins=found, settings=settings._replace(bins=count))


def arrays(run: Run, part: Dataset, folds: np.ndarray | None, rows: Any = ...) -> Any:
    """These rows as `Run.gradient` takes them: (x, y) or, of members, (x, (y, fold))."""
    x, y = run.standardised(part._replace(x=part.x[rows], y=part.y[rows]))
    if run.weights:  # the loss for w times a class is w times that for the class
        y = np.diag(np.array(run.weights, np.float32))[y]
    return (x, y) if folds is None else (x, (y, folds[rows]))


def _from_first(run: Run) -> Run:
    """The run with what the first process has measured: the digest and the scalings."""
    digest = np.frombuffer(run.digest.encode(), np.uint8)
    values, form = jax.tree.flatten((digest, run.inputs.scaling, run.outputs))
    digest, scaling, outputs = jax.tree.unflatten(form, processes.from_first(values))
    inputs = run.inputs._replace(scaling=scaling)
    return run._replace(digest=digest.tobytes().decode(), inputs=inputs, outputs=outputs)


def initial_state(run: Run) -> Any:
    """The optimizer's state before the first step, the same that `fit` starts from."""
    init_key, _ = jax.random.split(jax.random.key(run.settings.seed))
    return run.optimizer.init(run.network.init(init_key))


def advance(
    run: Run, examples: Examples, on_epoch: OnEpoch = lambda newest: None, mesh: Mesh | None = None
) -> Run:
    """Train from where the run stands to its number of epochs, or until its patience ends, on the
    devices of the mesh if there is one.

    After each epoch on_epoch is called with the run as it is then; all of them share one history
    list, which grows. Training ends early where on_epoch returns True. Returns the run at its
    end. Raises as `fnn.fit` does.
    """
    measure = _measure(run, examples.test if processes.is_first() else None)
    start, patience, fold = run.progress, run.settings.patience, examples.folds
    history, best = list(start.history), start.best
    keep = None if fold is None else _keeping(run, examples.train, fold, best if history else None)
    if mesh is not None:
        start = processes.everywhere(start._replace(history=[]), mesh)._replace(history=history)

    def placed(part: Dataset, folds: np.ndarray | None = None) -> Any:
        read = lambda rows=...: arrays(run, part, folds, rows)
        return read() if mesh is None else ShardedExamples.read(read, len(part.x), mesh)

    def is_over() -> bool:
        return keep is not None and patience is not None and epochs_since_best(history) >= patience

    def note(number: int, state: Any, entry: dict[str, Any]) -> bool | None:
        nonlocal run, best
        state = state if mesh is None else processes.here(state)
        if keep is not None:
            best, loss = keep(state, best)
            entry = entry | {"validation_loss": loss}
        history.append(entry | measure((state if keep is None else best).params))
        if keep is None and (examples.validation is None or epochs_since_best(history) == 0):
            best = state
        run = run._replace(progress=Progress(state, history, best))
        return on_epoch(run) or is_over()

    what = run.network, run.loss, run.optimizer, placed(examples.train, fold)
    how: Any = {"batch_size": run.settings.batch_size, "gradient": run.gradient, "mesh": mesh}
    if keep is None:
        validation = examples.validation and placed(examples.validation)
        how |= {"validation": validation, "patience": patience}
    epochs, key = len(history) if is_over() else run.settings.epochs, run.settings.seed
    fit(*what, key=jax.random.key(key), epochs=epochs, start=start, on_epoch=note, **how)
    if fold is None or run.outputs is None:
        return run
    return run._replace(margins=_margins(run, run.outputs, examples.train, fold))


def _margins(run: Run, outputs: Scaling, train: Dataset, fold: np.ndarray) -> tuple[float, ...]:
    """See `Run`: from each member's errors on the fold that it left out."""
    x, y = run.standardised(train)
    every = jax.vmap(lambda params: predicted(run.member, params, x))
    z = jax.jit(every, compiler_options=ONCE)(run.progress.best.params)
    errors = np.abs(np.asarray(z, np.float64)[fold, np.arange(len(y))] - y)
    both = zip(_members.margins(errors), outputs.scale, strict=False)  # there may be no margins
    return tuple(float(margin * scale) for margin, scale in both)


def _keeping(
    run: Run, train: Dataset, fold: np.ndarray, best: Any
) -> Callable[[Any, Any], tuple[Any, float]]:
    """keep(state, best) -> (the state with each member's parameters of its best epoch so far, the
    mean of the members' losses on their folds after this one). best is where a run goes on."""
    rows = _members.places(fold, run.members)
    x, y = (a[rows] for a in arrays(run, train, None))

    @jax.jit
    def chosen(state: Any, best: Any, least: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        of_one = lambda p, x, y: run.loss.value(predicted(run.member, p, x), y).mean()
        now = jax.vmap(of_one)(state.params, x, y)
        better = lambda a: jnp.expand_dims(now < least, tuple(range(1, a.ndim)))
        params = jax.tree.map(lambda a, b: jnp.where(better(a), a, b), state.params, best.params)
        return state._replace(params=params), jnp.minimum(now, least), now.mean()

    none = jnp.full(run.members, jnp.inf, jnp.float32)
    least = none if best is None else chosen(best, best, none)[1]

    def keep(state: Any, best: Any) -> tuple[Any, float]:
        nonlocal least
        best, least, loss = chosen(state, best, least)
        return best, float(loss)

    return keep


def _measure(run: Run, test: Dataset | None) -> Callable[[Any], dict[str, float]]:
    """measure(params) -> the mean loss on the held-out part, if there is one, and the accuracy or
    the RMSE in the values' units there."""
    if test is None:
        return lambda params: {}
    x = jnp.asarray(run.inputs.apply(test.x))

    def measure(params: Any) -> dict[str, float]:
        found = evaluation.compared(run, test.y, evaluation.forward(run, params, x))
        if isinstance(found, Classified):
            return {"test_loss": found.log_loss, "test_accuracy": found.accuracy}
        # By hypot: the values' units may be of any size.
        rmse = np.hypot.reduce(found.rmse) / np.sqrt(len(found.rmse))
        loss = np.square(found.rmse / run.outputs.scale).mean()  # type: ignore[union-attr]
        return {"test_loss": float(loss), "test_RMSE": float(rmse)}

    return measure
