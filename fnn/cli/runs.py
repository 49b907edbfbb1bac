"""A run: a network with all that its training decided, in a folder of its own.

    run.safetensors   the state, the scaling, the settings and the history: all of the run
    history.csv       the history, for people
    curves.png        a picture of it

One file holds everything, so that a crash leaves the run as it was at one epoch's end.
"""

import csv
import errno
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn import atomic, checkpoint, data, losses
from fnn.base import Layer, Loss, Optimizer
from fnn.catalog import ACTIVATIONS, OPTIMIZERS
from fnn.checkpoint import CheckpointError
from fnn.cli import plots
from fnn.data import DataError, Dataset, Scaling
from fnn.fitting import Progress, epochs_since_best, fit
from fnn.models import mlp

FILE = "run.safetensors"
HELD_OUT = 0.2


class Settings(NamedTuple):
    """What a run is asked to do. With the data, it decides every bit of the result."""

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


class Examples(NamedTuple):
    """The parts of the data: to train on, to stop by (with patience), and to measure on."""

    train: Dataset
    validation: Dataset | None
    test: Dataset


class Run(NamedTuple):
    """A network, trained so far, and what is needed to go on or to use it.

    digest is of the data it was trained on. features, classes and targets are their names, ()
    where there are none. outputs is the scaling of the values to predict, None for classes.
    """

    settings: Settings
    digest: str
    features: tuple[str, ...]
    classes: tuple[str, ...]
    targets: tuple[str, ...]
    inputs: Scaling
    outputs: Scaling | None
    progress: Progress

    @property
    def sizes(self) -> tuple[int, ...]:
        """The widths of the network, from input to output."""
        k = len(self.classes) if self.outputs is None else len(self.outputs.mean)
        return (len(self.inputs.mean), *self.settings.hidden, k)

    @property
    def network(self) -> Layer:
        """The multi-layer perceptron of these sizes; for classes its outputs are logits."""
        return mlp(self.sizes, ACTIVATIONS[self.settings.activation])

    @property
    def loss(self) -> Loss:
        """Softmax cross-entropy for classes, the mean squared error for values."""
        return losses.mse if self.outputs else losses.softmax_cross_entropy

    @property
    def optimizer(self) -> Optimizer:
        """The update rule, at the run's learning rate."""
        return OPTIMIZERS[self.settings.optimizer].make(self.settings.learning_rate)

    def standardised(self, part: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """x and y as the network sees them: float32, values to predict in standard units."""
        y = self.outputs.apply(part.y) if self.outputs else part.y
        return self.inputs.apply(part.x), y


class Classified(NamedTuple):
    """How often examples of each class (rows) were taken for each class (columns): (k, k)."""

    confusion: np.ndarray

    @property
    def accuracy(self) -> float:
        """The share of examples whose class was predicted."""
        return float(np.trace(self.confusion) / self.confusion.sum())


class Predicted(NamedTuple):
    """How far n predictions are from the values, each (k,), in the values' units: the root of
    the mean square, the same for predicting the training part's mean, and R2 = 1 - the mean
    square over the variance (NaN where nothing varies)."""

    n: int
    rmse: np.ndarray
    rmse_of_mean: np.ndarray
    r2: np.ndarray


def prepare(source: data.Source, settings: Settings) -> tuple[Run, Examples]:
    """Read and split the data; a run of no epochs yet, with fresh parameters.

    Raises DataError for data that can't be used.
    """
    everything = data.load(source, target=settings.target, task=settings.task)
    train, test = data.split(everything, HELD_OUT, settings.seed)
    validation = None
    if settings.patience is not None:
        train, validation = data.split(train, HELD_OUT, settings.seed)
    outputs = None if train.classes else Scaling.of(train.y)
    run = Run(
        settings,
        _digest(everything),
        train.features,
        train.classes,
        train.targets,
        Scaling.of(train.x),
        outputs,
        Progress(None, [], None),
    )
    state = _fresh(run)
    return run._replace(progress=Progress(state, [], state)), Examples(train, validation, test)


def train(run: Run, examples: Examples, on_epoch: Callable[[Run], None]) -> Run:
    """Train on from where the run stands to its number of epochs, or until patience ends.

    Returns the run at its end. After each epoch on_epoch gets the run as it is then, its
    history a list that grows on; what it raises ends the training. Raises as `fit` does.
    """
    measure = jax.jit(_measure(run))
    test = run.standardised(examples.test)
    quality = "test_RMSE" if run.outputs else "test_accuracy"
    history = list(run.progress.history)
    best = run.progress.best

    def told(number: int, state: Any, record: dict[str, float]) -> None:
        nonlocal run, best
        test_loss, test_quality = measure(state.params, *test)
        history.append(record | {"test_loss": float(test_loss), quality: float(test_quality)})
        if examples.validation is None or epochs_since_best(history) == 0:
            best = state
        run = run._replace(progress=Progress(state, history, best))
        on_epoch(run)

    fit(
        run.network,
        run.loss,
        run.optimizer,
        run.standardised(examples.train),
        key=jax.random.key(run.settings.seed),
        epochs=run.settings.epochs,
        batch_size=run.settings.batch_size,
        validation=examples.validation and run.standardised(examples.validation),
        patience=run.settings.patience,
        start=run.progress,
        on_epoch=told,
    )
    return run


def predict(run: Run, x: np.ndarray) -> np.ndarray:
    """x (n, d_in) in its own units -> probabilities (n, classes), or values in theirs (n, k).

    Raises DataError for another number of features.
    """
    if x.shape[-1] != len(run.inputs.mean):
        raise DataError(f"expected {len(run.inputs.mean)} features, got {x.shape[-1]}")
    finish = jax.nn.softmax if run.outputs is None else lambda values: values
    forward = jax.jit(lambda params, x: finish(run.network.forward(params, x)[0]))
    prediction = np.asarray(forward(run.progress.best.params, run.inputs.apply(x)))
    return run.outputs.undo(prediction) if run.outputs else prediction


def evaluate(run: Run, examples: Dataset) -> Classified | Predicted:
    """The run's predictions for examples with known targets, measured.

    Raises DataError for examples of other features, classes or values than the run's.
    """
    examples = data.relabelled(data.reordered(examples, run.features), run.classes)
    prediction = predict(run, examples.x)
    if run.outputs is None:
        confusion = np.zeros((len(run.classes),) * 2, int)
        np.add.at(confusion, (examples.y, prediction.argmax(-1)), 1)
        return Classified(confusion)
    if examples.y.shape != prediction.shape:
        k = prediction.shape[-1]
        raise DataError(f"{examples.name}: expected y (n, {k}), got {examples.y.shape}")
    y = examples.y.astype(np.float64)
    square, of_mean, spread = (
        np.square(y - guess).mean(0) for guess in (prediction, run.outputs.mean, y.mean(0))
    )
    r2 = 1 - np.divide(square, spread, out=np.full_like(square, np.nan), where=spread > 0)
    return Predicted(len(y), np.sqrt(square), np.sqrt(of_mean), r2)


def held_out(run: Run, examples: Dataset) -> Dataset:
    """Of the data the run was trained on, and of data with a test part, the test part alone;
    of other data, all."""
    if examples.test is None and _digest(examples) != run.digest:
        return examples
    return data.split(examples, HELD_OUT, run.settings.seed)[1]


def save(folder: Path, run: Run) -> None:
    """Write the run, at once and whole. Raises OSError where that can't be done."""
    metadata = {
        "settings": run.settings._asdict(),
        "digest": run.digest,
        "features": run.features,
        "classes": run.classes,
        "targets": run.targets,
        "sizes": run.sizes,
        "history": run.progress.history,
    }
    checkpoint.save(folder / FILE, _tree(run), metadata)


def check_room(folder: Path, run: Run) -> None:
    """Raise OSError if a run of this size can't be written to the folder now."""
    probe = folder / f"probe{atomic.UNFINISHED}"
    try:
        checkpoint.save(probe, _tree(run))
    finally:
        probe.unlink(missing_ok=True)


def load(folder: Path) -> Run:
    """Read a run back, bit for bit.

    Raises FileNotFoundError where there is none, and CheckpointError for a damaged file or one
    that holds something else.
    """
    path = Path(folder) / FILE
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "there is no trained run", str(path))
    held = checkpoint.read_metadata(path)
    try:
        asked = held["settings"] | {"hidden": tuple(held["settings"]["hidden"])}
        settings = Settings(*(asked[name] for name in Settings._fields))
        features, classes, targets = (tuple(held[n]) for n in ("features", "classes", "targets"))
        d_in, *_, k = held["sizes"]
        inputs, outputs = (Scaling(np.zeros(d), np.ones(d)) for d in (d_in, k))
        run = Run(
            settings,
            held["digest"],
            features,
            classes,
            targets,
            inputs,
            None if classes else outputs,
            Progress(None, held["history"], None),
        )
        state = jax.eval_shape(lambda: _fresh(run))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: a checkpoint, but of no run: {error!r}") from error
    run = run._replace(progress=Progress(state, held["history"], state))
    tree = checkpoint.load(path, _tree(run))
    return run._replace(
        inputs=tree["inputs"],
        outputs=tree["outputs"],
        progress=Progress(tree["state"], held["history"], tree.get("best", tree["state"])),
    )


def report(folder: Path, run: Run, title: str) -> None:
    """Write history.csv and curves.png. Raises OSError where that can't be done."""
    history = run.progress.history
    text = io.StringIO()
    writer = csv.DictWriter(text, ["epoch", *history[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"epoch": i} | record for i, record in enumerate(history, 1))
    atomic.write(folder / "history.csv", text.getvalue().encode())
    plots.curves(history, folder / "curves.png", title)


def _fresh(run: Run) -> Any:
    """The optimizer's state before the first step: as `fit` would draw it."""

    def state(key: jax.Array) -> Any:
        init_key, _ = jax.random.split(key)
        return run.optimizer.init(run.network.init(init_key))

    return jax.jit(state)(jax.random.key(run.settings.seed))


def _tree(run: Run) -> dict[str, Any]:
    """The run's arrays. The best state is the newest one, where there is no patience."""
    best = {} if run.settings.patience is None else {"best": run.progress.best}
    return {
        "state": run.progress.state,
        "inputs": run.inputs,
        "outputs": run.outputs,
        **best,
    }


def _measure(run: Run) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """measure(params, x, y) -> (mean loss, accuracy or RMSE in the values' units)."""
    network, loss = run.network, run.loss
    scale = None if run.outputs is None else jnp.asarray(run.outputs.scale, jnp.float32)

    def measure(params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        prediction, _ = network.forward(params, x)
        if scale is None:
            quality = (prediction.argmax(-1) == y).mean()
        else:
            quality = jnp.sqrt(jnp.square((prediction - y) * scale).mean())
        return loss.value(prediction, y).mean(), quality

    return measure


def _digest(examples: Dataset) -> str:
    """SHA-256 of everything that training reads of the data."""
    content = hashlib.sha256(repr((examples.classes, examples.features)).encode())
    for part in (examples, examples.test):
        for a in () if part is None else (part.x, part.y):
            content.update(f"{a.dtype}{a.shape}".encode())
            content.update(np.ascontiguousarray(a).reshape(-1).data)
    return content.hexdigest()
