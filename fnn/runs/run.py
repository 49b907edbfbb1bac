"""A run: a network with everything that its training decided, in a folder of its own.

    run.safetensors   the state, the scaling, the settings and the history: the whole run
    history.csv       the history as a table, see `report`
    curves.png        the history as a picture

Everything that a run needs is in one file, so that a crash leaves the run as it was after some
epoch. With the data, a run's settings decide every bit of its result.
"""

import errno
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fnn import atomic, checkpoint, data, losses, numbers
from fnn.base import Layer, Loss, Optimizer
from fnn.catalog import ACTIVATIONS, OPTIMIZERS
from fnn.checkpoint import CheckpointError
from fnn.cli import environment
from fnn.combinators import serial
from fnn.data import DataError, Dataset, Encoding, Reading, Scaling
from fnn.data.encoding import features_of
from fnn.layers.flatten import unflatten
from fnn.models import cnn, mlp
from fnn.optimizers import adamw
from fnn.parallel import ShardedExamples, processes
from fnn.runs.metrics import Classified, Predicted
from fnn.training.evaluation import CHUNK, predicted
from fnn.training.fitting import Progress, epochs_since_best, fit

environment.settle()

FILE = "run.safetensors"
SEEN = 2**20
"""The most examples whose digests are kept, at 8 bytes each."""
HELD_OUT = 0.2
"""The share of the data that is held out, and of the training part that patience validates on."""


NETWORKS = {"mlp": (256,), "cnn": (16, 32)}
"""The kinds of networks, each with its hidden widths by default."""


class Settings(NamedTuple):
    """What a run is asked to do; the fields are the options of `fnn train`.

    A setting with a default may be missing from a run's file, as in files older than the
    setting: its default is what training did before there was a choice.

    >>> Settings((64,), "relu", "adam", 0.001, 32, epochs=40, seed=0).patience is None
    True
    """

    hidden: tuple[int, ...]
    activation: str
    optimizer: str
    learning_rate: float
    batch_size: int
    epochs: int
    seed: int
    patience: int | None = None
    target: str | None = None
    task: str | None = None
    separator: str | None = None
    header: bool | None = None
    missing: str = "fill"
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    weight_decay: float | None = None
    network: str = "mlp"

    @property
    def reading(self) -> Reading:
        """How a table is read.

        >>> Settings((), "relu", "sgd", 0.1, 32, 1, seed=0, drop=("name",)).reading.drop
        ('name',)
        """
        return Reading(self.separator, self.header, self.missing, self.drop)


class Examples(NamedTuple):
    """The parts of the data: for training, for validation (with patience), and held out.

    >>> _, examples = prepare("iris", Settings((), "relu", "sgd", 0.1, 32, 1, seed=0))
    >>> len(examples.train.x), examples.validation, len(examples.test.x)
    (120, None, 30)
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset


class Run(NamedTuple):
    """A network, trained so far, and what is needed to continue its training or to use it.

    digest identifies the data it was trained on, and seen each example of it that was not held
    out: (n,) uint64, as `digests` gives them, empty above `SEEN` examples. learned is the number
    of examples per epoch. features, classes and
    targets are their names, () where there are none; features are those of the columns that are
    used. inputs makes the columns the network's inputs, and outputs is the scaling of the values
    to predict, None for classes. The examples that a run takes are aligned: their columns are
    those that inputs takes.

    >>> run, _ = prepare("iris", Settings((8,), "relu", "sgd", 0.1, 32, 1, seed=0))
    >>> run.classes
    ('setosa', 'versicolor', 'virginica')
    """

    settings: Settings
    digest: str
    seen: np.ndarray
    learned: int
    features: tuple[str, ...]
    classes: tuple[str, ...]
    targets: tuple[str, ...]
    inputs: Encoding
    outputs: Scaling | None
    progress: Progress

    @property
    def sizes(self) -> tuple[int, ...]:
        """The widths of the network, from input to output.

        >>> prepare("iris", Settings((8,), "relu", "sgd", 0.1, 32, 1, seed=0))[0].sizes
        (4, 8, 3)
        """
        k = len(self.classes) if self.outputs is None else len(self.outputs.mean)
        return (self.inputs.width, *self.settings.hidden, k)

    @property
    def values(self) -> tuple[str, ...]:
        """The names of the values to predict, made up where the data has none; () for classes.

        >>> prepare("diabetes", Settings((), "relu", "sgd", 0.1, 32, 1, seed=0))[0].values
        ('value',)
        """
        k = 0 if self.outputs is None else len(self.outputs.mean)
        return self.targets or (("value",) if k == 1 else tuple(f"value {i}" for i in range(k)))

    @property
    def network(self) -> Layer:
        """The network of these sizes, a perceptron or a convolutional network, whose hidden sizes
        are channels and whose input is a square image; for classes its outputs are logits.

        >>> run, _ = prepare("iris", Settings((8,), "relu", "sgd", 0.1, 32, 1, seed=0))
        >>> run.network.forward(run.progress.state.params, jnp.ones((2, 4)))[0].shape
        (2, 3)
        """
        activation = ACTIVATIONS[self.settings.activation]
        if self.settings.network == "mlp":
            return mlp(self.sizes, activation)
        d_in, *channels, k = self.sizes
        side = math.isqrt(d_in)
        if side**2 != d_in or side < 2 ** len(channels):
            raise DataError(
                f"network cnn: expected square images of at least {2 ** len(channels)} by "
                f"{2 ** len(channels)} pixels, one column per pixel, got {d_in} columns"
            )
        return serial(unflatten(side, side, 1), cnn((side, side, 1), channels, k, activation))

    @property
    def loss(self) -> Loss:
        """Softmax cross-entropy for classes, the mean squared error for values.

        >>> run, _ = prepare("diabetes", Settings((), "relu", "sgd", 0.1, 32, 1, seed=0))
        >>> run.loss is losses.mse
        True
        """
        return losses.softmax_cross_entropy if self.outputs is None else losses.mse

    @property
    def optimizer(self) -> Optimizer:
        """The update rule, at the run's learning rate.

        The weight decay is the share of itself that a parameter loses per epoch, not per step:
        the more examples there are, the less each of them has to be held back by.

        >>> run, _ = prepare("iris", Settings((), "relu", "sgd", 0.1, 32, 1, seed=0))
        >>> int(run.optimizer.init(run.progress.state.params).step)
        0
        """
        rate, decay = self.settings.learning_rate, self.settings.weight_decay
        if decay is None:
            return OPTIMIZERS[self.settings.optimizer](rate)
        steps = -(-self.learned // self.settings.batch_size)
        return adamw(rate, weight_decay=decay / (steps * rate))

    def standardised(self, part: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """x and y as the network sees them: float32, and values to predict in standard units.

        >>> run, examples = prepare("iris", Settings((), "relu", "sgd", 0.1, 32, 1, seed=0))
        >>> x, y = run.standardised(examples.train)
        >>> x.dtype, x.shape, bool(abs(x.mean()) < 1e-6)
        (dtype('float32'), (120, 4), True)
        """
        y = part.y if self.outputs is None else self.outputs.apply(part.y)
        return self.inputs.apply(np.asarray(part.x)), y


def prepare(source: data.Source, settings: Settings) -> tuple[Run, Examples]:
    """Read and split the data, and make a run of no epochs yet, with fresh parameters.

    Of several processes, all read a source whole but two .npy files: those the first reads and
    measures, and the others map into memory, to read their shares of when they train.

    Raises DataError for data that can't be used.

    >>> run, examples = prepare("iris", Settings((), "relu", "sgd", 0.1, 32, 1, seed=0))
    >>> run.progress.history, int(run.progress.state.step)
    ([], 0)
    """
    told = data.is_mapped(source) and not processes.is_first()
    if told:
        everything = data.mapped(source, task=settings.task)
    else:
        everything = data.load(
            source, target=settings.target, task=settings.task, reading=settings.reading
        )
    train, test = data.split(everything, HELD_OUT, settings.seed)
    validation = None
    if settings.patience is not None:
        train, validation = data.split(train, HELD_OUT, settings.seed)
    inputs = Encoding((), _unknown(train.x)) if told else Encoding.of(train, settings.keep)
    outputs = None if train.classes else (_unknown if told else Scaling.of)(train.y)
    train, test = inputs.aligned(train), inputs.aligned(test)
    validation = validation and inputs.aligned(validation)
    learned = (train,) if validation is None else (train, validation)
    few = not told and sum(len(part.x) for part in learned) <= SEEN
    run = Run(
        settings,
        "0" * 64 if told else _digest(everything),
        np.concatenate([digests(part) for part in learned if few] or [np.empty(0, np.uint64)]),
        len(train.x),
        train.features,
        train.classes,
        train.targets,
        inputs,
        outputs,
        Progress(None, [], None),
    )
    if data.is_mapped(source):
        run = _told(run)
    state = _fresh(run)
    return run._replace(progress=Progress(state, [], state)), Examples(train, validation, test)


def folder(source: str | Path) -> Path:
    """Where a source's run is kept unless told otherwise.

    >>> folder("data/iris.csv.gz")
    PosixPath('runs/iris')
    """
    return Path("runs") / Path(Path(source).resolve().name.removesuffix(".gz")).stem


def _unknown(a: Any) -> Scaling:
    """The scaling of a's columns before the first process has told it."""
    return Scaling(np.zeros(a.shape[1]), np.ones(a.shape[1]))


def _told(run: Run) -> Run:
    """The run with what the first process has measured: the digest and the scalings."""
    digest = np.frombuffer(run.digest.encode(), np.uint8)
    scalings = (run.inputs.scaling, run.outputs)
    values, form = jax.tree.flatten((digest, scalings))
    digest, (inputs, outputs) = jax.tree.unflatten(form, processes.from_first(values))
    return run._replace(
        digest=digest.tobytes().decode(),
        inputs=run.inputs._replace(scaling=inputs),
        outputs=outputs,
    )


def digests(examples: Dataset) -> np.ndarray:
    """A number for each example, from its features and its target: (n,) uint64.

    Equal for equal examples, whatever their order; for others it differs, but for a chance of
    about 2^-64. Multilinear hashing; Lemire & Kaser 2014.

    >>> examples = Dataset("a", np.array([[1.0], [2.0], [1.0]]), np.ones((3, 1)), ())
    >>> [int(number) for number in np.unique(digests(examples), return_counts=True)[1]]
    [1, 2]
    """
    n, width = (
        len(examples.x),
        examples.x.shape[1] + examples.y.reshape(len(examples.y), -1).shape[1],
    )
    keys = np.random.PCG64(0).random_raw(width) | np.uint64(1)
    found = np.empty(n, np.uint64)
    for rows in _chunks(n):
        y = examples.y[rows].reshape(-1, width - examples.x.shape[1])
        row = np.concatenate([examples.x[rows], y], 1, dtype=np.float64) + 0.0  # -0 is 0
        bits = row.view(np.uint64)
        found[rows] = ((bits ^ (bits >> np.uint64(32))) * keys).sum(1)
    return found


def _chunks(n: int) -> list[slice]:
    return [slice(i, min(i + CHUNK, n)) for i in range(0, n, CHUNK)]


def train(
    run: Run,
    examples: Examples,
    on_epoch: Callable[[Run], bool | None],
    mesh: Mesh | None = None,
) -> Run:
    """Train from where the run stands to its number of epochs, or until its patience ends, on the
    devices of the mesh if there is one.

    After each epoch on_epoch is called with the run as it is then; all of them share one history
    list, which grows. Training ends early where on_epoch returns True. Returns the run at its
    end. Raises as `fnn.fit` does.

    >>> run, examples = prepare("iris", Settings((), "relu", "sgd", 0.1, 32, 1, seed=0))
    >>> run = train(run, examples, lambda newest: None)
    >>> list(run.progress.history[0]), int(run.progress.state.step)
    (['loss', 'test_loss', 'test_accuracy'], 4)
    """
    measure = _measure(run)
    speaks = processes.is_first()
    test = jax.tree.map(jnp.asarray, run.standardised(examples.test)) if speaks else None
    quality = "test_accuracy" if run.outputs is None else "test_RMSE"
    history = list(run.progress.history)
    best = run.progress.best

    start = run.progress
    if mesh is not None:
        everywhere = processes.everywhere((start.state, start.best), mesh)
        start = Progress(everywhere[0], start.history, everywhere[1])

    def placed(part: Dataset) -> Any:
        if mesh is None:
            return run.standardised(part)
        rows = lambda i: run.standardised(part._replace(x=part.x[i], y=part.y[i]))
        return ShardedExamples.read(rows, len(part.x), mesh)

    def note(number: int, state: Any, entry: dict[str, Any]) -> bool | None:
        nonlocal run, best
        state = state if mesh is None else processes.here(state)
        if test is not None:
            test_loss, test_quality = measure(state.params, *test)
            entry = entry | {"test_loss": test_loss, quality: test_quality}
        history.append(entry)
        if examples.validation is None or epochs_since_best(history) == 0:
            best = state
        run = run._replace(progress=Progress(state, history, best))
        return on_epoch(run)

    fit(
        run.network,
        run.loss,
        run.optimizer,
        placed(examples.train),
        key=jax.random.key(run.settings.seed),
        epochs=run.settings.epochs,
        batch_size=run.settings.batch_size,
        validation=examples.validation and placed(examples.validation),
        patience=run.settings.patience,
        start=start,
        on_epoch=note,
        mesh=mesh,
    )
    return run


def predict(run: Run, x: np.ndarray) -> np.ndarray:
    """Aligned x (n, d_in) -> probabilities (n, classes), or values (n, k) in their own units.

    Raises DataError for another number of features.

    >>> run, examples = prepare("iris", Settings((), "relu", "sgd", 0.1, 32, 1, seed=0))
    >>> predict(run, examples.test.x).shape
    (30, 3)
    """
    return np.concatenate(list(predictions(run, [x])))


def predictions(run: Run, parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """What `predict` returns for parts of x, one after another, in pieces of `CHUNK` examples and
    a last one of those that are left. Raises as `predict` does, where it comes to the fault.

    >>> run, examples = prepare("iris", Settings((), "relu", "sgd", 0.1, 32, 1, seed=0))
    >>> [piece.shape for piece in predictions(run, [examples.test.x, examples.train.x])]
    [(150, 3)]
    """
    finish = jax.nn.softmax if run.outputs is None else lambda values: values
    forward = jax.jit(lambda params, x: finish(run.network.forward(params, x)[0]))

    def of(x: np.ndarray, first: int) -> np.ndarray:
        piece = np.asarray(forward(run.progress.best.params, run.inputs.apply(x, first)))
        return piece if run.outputs is None else run.outputs.undo(piece)

    done, left = 0, np.empty((0, run.inputs.d_in))
    for x in parts:
        if x.shape[-1] != run.inputs.d_in:
            raise DataError(f"expected {run.inputs.d_in} features, got {x.shape[-1]}")
        left = np.concatenate([left, x]) if len(left) else x
        while len(left) >= CHUNK:
            yield of(left[:CHUNK], done)
            done, left = done + CHUNK, left[CHUNK:]
    if len(left):
        yield of(left, done)


def evaluate(run: Run, examples: Dataset) -> Classified | Predicted:
    """Measure the run's predictions for aligned examples with known targets.

    Raises DataError for examples of other features or values than the run's.

    >>> run, examples = prepare("iris", Settings((), "relu", "sgd", 0.1, 32, 1, seed=0))
    >>> int(evaluate(run, examples.test).confusion.sum())
    30
    """
    prediction = predict(run, examples.x)
    if run.outputs is None:
        return Classified.of(run.classes, examples.y, prediction)
    if examples.y.shape != prediction.shape:
        k = prediction.shape[-1]
        raise DataError(f"{examples.name}: expected y (n, {k}), got {examples.y.shape}")
    return Predicted.of(run.values, examples.y, prediction, run.outputs.mean)


def held_out(run: Run, examples: Dataset) -> tuple[Dataset, str]:
    """The examples that may measure the run, aligned, of `examples` as they were read, and a word
    which they are.

    If the run was trained on this data, or if the data has a test part, that is the test part; the
    word says how many of these are equal to examples that the run was trained on.
    Otherwise it is the examples that are equal to none that the run was trained on; all of them
    where each is equal to one, or where the run keeps no digests.

    Raises DataError for examples of other features, classes or values than the run's.

    >>> run, _ = prepare("iris", Settings((), "relu", "sgd", 0.1, 32, 1, seed=0))
    >>> iris = data.load("iris")
    >>> held_out(run, iris)[1], held_out(run, iris._replace(x=iris.x + 1))[1]
    ('the held-out 30 examples, 1 of them also trained on', 'all 150 examples')
    """
    if examples.test is not None or _digest(examples) == run.digest:
        test = aligned(run, data.split(examples, HELD_OUT, run.settings.seed)[1])
        again = int(np.isin(digests(test), run.seen).sum())
        twice = f", {again} of them also trained on" if again else ""
        return test, f"the held-out {len(test.x)} examples{twice}"
    examples, n = aligned(run, examples), len(examples.x)
    if not len(run.seen):
        return examples, f"all {n} examples, some of which may have been trained on"
    unseen = ~np.isin(digests(examples), run.seen)
    if unseen.all():
        return examples, f"all {n} examples"
    if not unseen.any():
        return examples, f"all {n} examples, each of them trained on"
    left = examples._replace(x=examples.x[unseen], y=examples.y[unseen])
    return left, f"the {unseen.sum()} of {n} examples that were not trained on"


def aligned(run: Run, examples: Dataset) -> Dataset:
    """Examples as they were read with the run's columns and its labels.

    Raises DataError for other features or classes than the run's.

    >>> run, _ = prepare("iris", Settings((), "relu", "sgd", 0.1, 32, 1, seed=0))
    >>> aligned(run, data.load("iris")).x.shape
    (150, 4)
    """
    part = run.inputs.aligned(data.reordered(examples, () if run.inputs.features else run.features))
    return data.relabelled(part, run.classes)


def read(run: Run, source: data.Source) -> Dataset:
    """The examples of a source, with their targets, as they are written there: see `held_out`.

    The target of a table whose columns have names is found by its name. Raises as `data.load`.

    >>> run, _ = prepare("iris", Settings((), "relu", "sgd", 0.1, 32, 1, seed=0))
    >>> read(run, "iris").x.shape
    (150, 4)
    """
    first = source[0] if isinstance(source, tuple | list) else source
    table = data.is_table(first)
    return data.load(
        source,
        target=run.settings.target if table else None,
        task=data.TASKS[run.outputs is not None],
        target_name=run.targets[0] if len(run.targets) == 1 else None,
        reading=run.settings.reading if table else Reading(),
        like=run.inputs,
    )


def inputs(run: Run, source: data.Source) -> np.ndarray:
    """The aligned x (n, d_in) of a source without targets. Raises as `data.inputs`.

    >>> run, _ = prepare("iris", Settings((), "relu", "sgd", 0.1, 32, 1, seed=0))
    >>> inputs(run, "iris").shape
    (150, 4)
    """
    return data.inputs(source, run.inputs, run.features, run.settings.reading)


def parts(run: Run, source: data.Source) -> Iterator[np.ndarray]:
    """What `inputs` returns, a table in parts. Raises as `data.parts`.

    >>> run, _ = prepare("iris", Settings((), "relu", "sgd", 0.1, 32, 1, seed=0))
    >>> [x.shape for x in parts(run, "iris")]
    [(150, 4)]
    """
    return data.parts(source, run.inputs, run.features, run.settings.reading)


def save(folder: Path, run: Run) -> None:
    """Write the run's file; at every instant it is the old one or the new one, whole.

    Raises OSError where it can't be written.

    >>> import tempfile
    >>> run, _ = prepare("iris", Settings((), "relu", "sgd", 0.1, 32, 1, seed=0))
    >>> with tempfile.TemporaryDirectory() as name:
    ...     save(Path(name), run)
    ...     load(Path(name)).settings == run.settings
    True
    """
    metadata = {
        "settings": run.settings._asdict(),
        "digest": run.digest,
        "learned": run.learned,
        "features": run.features,
        "classes": run.classes,
        "targets": run.targets,
        "sizes": run.sizes,
        "seen": len(run.seen),
        "columns": run.inputs.as_metadata(),
        "history": run.progress.history,
    }
    checkpoint.save(folder / FILE, _tree(run), metadata)


def check_apart(out: Path, *read: str | Path) -> None:
    """Raise DataError where a file that is about to be written is one of those that are read.

    >>> check_apart(Path("no/such/file"), "iris")
    """
    for path in read:
        if os.path.isfile(out) and os.path.isfile(path) and os.path.samefile(out, path):
            raise DataError(f"{out}: the file is read, and would be replaced")


def version(folder: Path) -> tuple[int, ...] | None:
    """What changes with each `save` to the folder; None where it holds no run.

    >>> version(Path("no/such/folder")) is None
    True
    """
    try:
        status = os.stat(folder / FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def check_writable(folder: Path, run: Run) -> None:
    """Write a file of the run's size to the folder, and remove it. Raises OSError if that fails.

    >>> run, _ = prepare("iris", Settings((), "relu", "sgd", 0.1, 32, 1, seed=0))
    >>> check_writable(Path("no/such/folder"), run)
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] No such file or directory: 'no/such/folder/probe.fnn-tmp'
    """
    probe = folder / f"probe{atomic.UNFINISHED}"
    try:
        checkpoint.save(probe, _tree(run))
    finally:
        probe.unlink(missing_ok=True)


def load(folder: Path) -> Run:
    """Read a run back, bit for bit.

    Settings that the file lacks, because they did not exist when it was written, have their
    defaults.

    Raises FileNotFoundError where there is no run; CheckpointError for a damaged file, for one
    that holds something else or numbers that are not finite, and for settings that this version
    does not know.

    >>> load(Path("no/such/folder"))
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] there is no trained run: 'no/such/folder/run.safetensors'
    """
    path = Path(folder) / FILE
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "there is no trained run", str(path))
    held = checkpoint.read_metadata(path)
    try:
        _check_held(held)
        settings = _settings(held["settings"])
        features, classes, targets = (tuple(held[n]) for n in ("features", "classes", "targets"))
        d_in, *_, k = held["sizes"]
        inputs, outputs = (Scaling(_empty(d), _empty(d)) for d in (d_in, k))
        encoding = Encoding(features_of(held.get("columns", [])), inputs)
        if encoding.features and sum(f.width for f in encoding.used) != d_in:
            raise ValueError("its columns are not those of its inputs")
        run = Run(
            settings,
            held["digest"],
            _empty(held.get("seen", 0), np.uint64),
            held.get("learned", 0),
            features,
            classes,
            targets,
            encoding,
            None if classes else outputs,
            Progress(None, held["history"], None),
        )
        if settings.weight_decay is not None:
            numbers.count("run", learned=run.learned)
        if len(set(classes)) < len(classes) or run.sizes != tuple(held["sizes"]):
            raise ValueError("its sizes are not those of its classes and layers")
        state = jax.eval_shape(lambda: _fresh(run))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        problem = f"{error} not found" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{path}: not a run that this version of fnn can read: {problem}"
        ) from error
    run = run._replace(progress=Progress(state, held["history"], state))
    tree = checkpoint.load(path, _tree(run))
    for place, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not np.isfinite(leaf).all():
            where = jax.tree_util.keystr(place, simple=True, separator=".")
            raise CheckpointError(f"{path}: {where} is not finite")
    return run._replace(
        seen=tree.get("seen", run.seen),
        inputs=run.inputs._replace(scaling=tree["inputs"]),
        outputs=tree["outputs"],
        progress=Progress(tree["state"], held["history"], tree.get("best", tree["state"])),
    )


def _empty(length: int, dtype: Any = np.float64) -> np.ndarray:
    """Zeros that take no memory, for a length that only a file says."""
    return np.broadcast_to(np.zeros((), dtype), (length,))


def _settings(saved: dict[str, Any]) -> Settings:
    """The settings as they were saved; defaults for those that are missing.

    Raises ValueError for unknown settings, and KeyError for a missing one without a default.
    """
    unknown = sorted(saved.keys() - set(Settings._fields))
    if unknown:
        raise ValueError(f"unknown settings {', '.join(unknown)}")
    every = Settings._field_defaults | saved
    for name in ("hidden", "drop", "keep"):
        every[name] = tuple(every[name])
    settings = Settings(*(every[name] for name in Settings._fields))
    for width in settings.hidden:
        numbers.count("settings", hidden=width)
    numbers.count("settings", batch_size=settings.batch_size, epochs=settings.epochs)
    numbers.count("settings", patience=1 if settings.patience is None else settings.patience)
    numbers.nonnegative("settings", seed=settings.seed)
    numbers.positive("settings", learning_rate=settings.learning_rate)
    if settings.weight_decay is not None:
        numbers.nonnegative("settings", weight_decay=settings.weight_decay)
        if settings.optimizer != "adamw":
            raise ValueError(f"weight decay with {settings.optimizer}")
    for name, known in (
        ("activation", ACTIVATIONS),
        ("optimizer", OPTIMIZERS),
        ("task", (None, *data.TASKS)),
        ("separator", (None, *data.SEPARATORS)),
        ("header", (None, False, True)),
        ("missing", data.MISSING),
        ("network", NETWORKS),
    ):
        if every[name] not in known:
            raise ValueError(f"unknown {name} {every[name]!r}")
    if not all(isinstance(name, str) for name in (*settings.drop, *settings.keep)):
        raise ValueError(f"the columns {settings.drop} and {settings.keep}")
    if settings.seed >= 2**32 or not isinstance(settings.target, str | None):
        raise ValueError(f"the seed {settings.seed}, the target {settings.target!r}")
    return settings


def _check_held(held: dict[str, Any]) -> None:
    """Raise TypeError for metadata of other types than `save` writes, KeyError for missing ones."""
    text, number = (lambda v: isinstance(v, str)), (lambda v: isinstance(v, int | float))
    entries = {"features": text, "classes": text, "targets": text, "sizes": number}
    entries["history"] = lambda v: isinstance(v, dict) and all(map(number, v.values()))
    for name, is_right in entries.items():
        if not isinstance(held[name], list) or not all(map(is_right, held[name])):
            raise TypeError(f"{name} is of another type")
    if not isinstance(held["settings"], dict) or not isinstance(held["digest"], str):
        raise TypeError("settings or digest are of another type")


def _fresh(run: Run) -> Any:
    """The optimizer's state before the first step, the same that `fit` starts from."""

    def state(key: jax.Array) -> Any:
        init_key, _ = jax.random.split(key)
        return run.optimizer.init(run.network.init(init_key))

    return jax.jit(state)(jax.random.key(run.settings.seed))


def _tree(run: Run) -> dict[str, Any]:
    """The run's arrays. Without patience, the best state is the newest and is not repeated."""
    best = {} if run.settings.patience is None else {"best": run.progress.best}
    seen = {"seen": run.seen} if len(run.seen) else {}
    return {
        "state": run.progress.state,
        "inputs": run.inputs.scaling,
        "outputs": run.outputs,
        **best,
        **seen,
    }


def _measure(run: Run) -> Callable[..., tuple[float, float]]:
    """measure(params, x, y) -> (mean loss, accuracy or RMSE in the values' units)."""

    @jax.jit
    def measured(params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The mean loss, and the accuracy or each value's RMSE in standard units."""
        prediction = predicted(run.network, params, x)
        if run.outputs is None:
            quality = (prediction.argmax(-1) == y).mean()
        else:
            quality = jnp.sqrt(jnp.square(prediction - y).mean(0))
        return run.loss.value(prediction, y).mean(), quality

    def measure(params: Any, x: jax.Array, y: jax.Array) -> tuple[float, float]:
        loss, quality = measured(params, x, y)
        if run.outputs is None:
            return float(loss), float(quality)
        # In float64 and by hypot: the values' units may be of any size.
        rmse = np.hypot.reduce(np.asarray(quality, np.float64) * run.outputs.scale)
        return float(loss), float(rmse / np.sqrt(quality.size))

    return measure


def _digest(examples: Dataset) -> str:
    """SHA-256 of everything that training reads of the data."""
    names = (examples.classes, examples.features)
    coded = [column for column in examples.columns if column.kind != "number"]
    content = hashlib.sha256(repr((*names, examples.columns) if coded else names).encode())
    for part in (examples, examples.test):
        for a in () if part is None else (part.x, part.y):
            content.update(f"{a.dtype}{a.shape}".encode())
            content.update(np.ascontiguousarray(a).reshape(-1).data)
    return content.hexdigest()
