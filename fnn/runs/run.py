"""A run: a network with everything that its training decided."""

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fnn import data, losses
from fnn.base import Layer, Loss, Optimizer
from fnn.catalog import ACTIVATIONS, OPTIMIZERS
from fnn.combinators import serial
from fnn.data import DataError, Dataset, Encoding, Scaling
from fnn.gradients import Gradient
from fnn.layers.flatten import unflatten
from fnn.models import cnn, mlp
from fnn.runs import _members, evaluation
from fnn.runs._bins import Bins
from fnn.runs.importance import Importance, measured
from fnn.runs.metrics import Classified, Predicted
from fnn.runs.settings import Settings
from fnn.training.fitting import Progress

NONE = Bins((), np.zeros((0, 1), np.float32))


class Run(NamedTuple):
    """A network, trained so far, and what is needed to continue its training or to use it.

    digest identifies the data it was trained on, and seen each example of it that was not held
    out: (n,) uint64, as `fnn.runs.digests` gives them, empty above `SEEN` examples. learned is the
    number of examples per epoch. features, classes and targets are their names, () where there are
    none; features are those of the columns that are used. inputs makes the columns the network's
    inputs, and outputs is the scaling of the values to predict, None for classes. settings are
    completed, and bins are of the inputs. margins say, for each value, how far from its prediction
    90% of the values lie at most, in its units, by the members' errors on the folds that they left
    out; () for classes, for one network, and before the end of training. weights say, for each
    class, what the loss of its examples was multiplied by; () where there was no `class_weight`.

    >>> import fnn
    >>> run = fnn.runs.train("iris", fnn.runs.Settings(hidden=(8,), epochs=1))
    >>> run.classes, run.sizes
    (('setosa', 'versicolor', 'virginica'), (4, 8, 3))
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
    bins: Bins = NONE
    margins: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()

    def predict(self, source: data.Source) -> np.ndarray:
        """Probabilities (n, classes), or values (n, k) in their own units, one row per example.

        source is as for training, without the targets, or an array x (n, d_in) of the columns
        that the run uses. Raises DataError for a source that can't be used, OSError for a file
        that can't be opened.

        >>> import fnn
        >>> run = fnn.runs.train("iris", fnn.runs.Settings(hidden=(8,), epochs=1))
        >>> run.predict("iris").shape
        (150, 3)
        """
        plain = isinstance(source, np.ndarray) and source.dtype.names is None
        parts = [source] if plain else (part.x for part in self.parts(source))
        return np.concatenate(list(evaluation.predictions(self, parts)))

    def evaluate(self, source: data.Source) -> Classified | Predicted:
        """Metrics on the examples of a source, with their targets, that training did not see:
        see `fnn.runs.evaluation.held_out`. Raises as `predict` does.

        >>> import fnn
        >>> run = fnn.runs.train("iris", fnn.runs.Settings(hidden=(8,), epochs=1))
        >>> int(run.evaluate("iris").confusion.sum())
        30
        """
        return evaluation.evaluate(self, evaluation.held_out(self, self.read(source))[0])

    def explain(self, source: data.Source, repeats: int = 5, seed: int = 0) -> Importance:
        """What each column is worth to the network, on the examples that `evaluate` measures:
        see `fnn.runs.importance`. Raises as `predict` does.

        >>> import fnn
        >>> run = fnn.runs.train("iris", fnn.runs.Settings(hidden=(8,), epochs=1))
        >>> run.explain("iris", repeats=1).measures
        ('log loss', 'accuracy')
        """
        examples, _ = evaluation.held_out(self, self.read(source))
        return measured(self, examples, repeats, seed)

    def report(self, folder: str | Path, title: str = "") -> list[str]:
        """Write the history as history.csv and as curves.png.

        Returns what could not be written and why: see `fnn.runs.report`.

        >>> import fnn, tempfile
        >>> run = fnn.runs.train("iris", fnn.runs.Settings(hidden=(8,), epochs=1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run.report(folder), sorted(path.name for path in Path(folder).iterdir())
        ([], ['curves.png', 'history.csv'])
        """
        from fnn.runs import report

        return report.write(Path(folder), self.progress.history, title)

    def save(self, folder: str | Path) -> None:
        """Write the run's file, run.safetensors, into this folder, which is made where there is
        none. At every instant the file is the old one or the new one, whole. Raises OSError where
        it can't be written.

        >>> import fnn, tempfile
        >>> run = fnn.runs.train("iris", fnn.runs.Settings(hidden=(8,), epochs=1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run.save(folder)
        ...     fnn.runs.load(folder).settings == run.settings
        True
        """
        from fnn.runs import files

        files.save(Path(folder), self)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The widths of the network, from input to output."""
        k = len(self.classes) if self.outputs is None else len(self.outputs.mean)
        return (self.inputs.width, *(self.settings.hidden or ()), k)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns that are used, made up where the data has none."""
        return self.features or tuple(f"column {i + 1}" for i in range(len(self.inputs.columns)))

    @property
    def values(self) -> tuple[str, ...]:
        """The names of the values to predict, made up where the data has none; () for classes."""
        k = 0 if self.outputs is None else len(self.outputs.mean)
        return self.targets or (("value",) if k == 1 else tuple(f"value {i}" for i in range(k)))

    @property
    def members(self) -> int:
        """The number of networks whose mean the run predicts."""
        return self.settings.members or 1  # files from before there were members have none

    @property
    def described(self) -> str:
        """The network in words, such as "8 members of 4-128-128-3" or "cnn 64-16-32-10"."""
        several = f"{self.members} members of " if self.members > 1 else ""
        kind = "" if self.settings.network == "mlp" else f"{self.settings.network} "
        return several + kind + "-".join(map(str, self.sizes))

    @property
    def network(self) -> Layer:
        """What predicts: the member, or the ensemble of several."""
        return self._layers[1]

    @property
    def member(self) -> Layer:
        """The network of these sizes, a perceptron or a convolutional network, whose hidden sizes
        are channels and whose input is a square image; for classes its outputs are logits.

        Raises DataError where the columns are no square image.
        """
        return self._layers[0]

    @property
    def _layers(self) -> tuple[Layer, Layer]:
        bins = self.bins.columns, self.bins.edges.tobytes()
        kind = self.settings.network, self.settings.activation, self.outputs is None
        return _layers(*kind, self.sizes, self.members, *bins)

    @property
    def loss(self) -> Loss:
        """Softmax cross-entropy for classes, the mean squared error for values."""
        return losses.softmax_cross_entropy if self.outputs is None else losses.mse

    @property
    def gradient(self) -> Gradient | None:
        """What trains the members; None for one network, which knows its own."""
        return None if self.members == 1 else _members.gradient(self.member, self.loss)

    @property
    def optimizer(self) -> Optimizer:
        """The update rule, at the run's learning rate, for each member.

        The weight decay is the share of itself that a parameter loses per epoch, not per step:
        the more examples there are, the less each of them has to be held back by.
        """
        rate, decay = self.settings.learning_rate, self.settings.weight_decay
        steps = -(-self.learned // (self.settings.batch_size or self.learned))
        how = {} if decay is None else {"weight_decay": decay / (steps * rate)}
        rule = OPTIMIZERS[self.settings.optimizer](rate, **how)
        return rule if self.members == 1 else _members.each(rule)

    def standardised(self, part: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """x and y of aligned examples as the network sees them: float32, and values to predict in
        standard units."""
        y = part.y if self.outputs is None else self.outputs.apply(part.y)
        return self.inputs.apply(np.asarray(part.x)), y

    def aligned(self, examples: Dataset) -> Dataset:
        """Examples as they were read with the run's columns and its labels.

        Raises DataError for other features or classes than the run's.
        """
        return data.relabelled(self.inputs.aligned(examples), self.classes)

    def read(self, source: data.Source) -> Dataset:
        """The examples of a source, with their targets, as they are written there.

        The target of a table whose columns have names is found by its name. Raises as `data.load`.
        """
        table = data.is_table(source[0] if isinstance(source, tuple | list) else source)
        task = data.TASKS[self.outputs is not None]
        name = self.targets[0] if len(self.targets) == 1 else None
        how: Any = {"task": task, "target_name": name, "like": self.inputs}
        if table:
            how |= {"target": self.settings.target, "reading": self.settings.reading}
        return data.load(source, **how)

    def parts(self, source: data.Source) -> Iterator[data.Part]:
        """The aligned x (n, d_in) of a source without targets, a table in parts, and what names its
        rows. Raises as `data.parts`."""
        return data.parts(source, self.inputs, self.settings.reading)


@functools.lru_cache(maxsize=8)  # a program is compiled once per layer
def _layers(
    kind: str, activation: str, classifies: bool, sizes: tuple[int, ...], k: int, *bins: Any
) -> tuple[Layer, Layer]:
    """The member, and what predicts: k of them."""
    function, (columns, edges), (d_in, *hidden, d_out) = ACTIVATIONS[activation], bins, sizes
    if kind == "cnn":
        side, least = math.isqrt(d_in), 2 ** len(hidden)
        if side**2 != d_in or side < least:
            expected = f"square images of at least {least} by {least} pixels, one column per pixel"
            raise DataError(f"network cnn: expected {expected}, got {d_in} columns")
        member = serial(unflatten(side, side, 1), cnn((side, side, 1), hidden, d_out, function))
    elif columns:
        binned = Bins(columns, np.frombuffer(edges, np.float32).reshape(len(columns), -1))
        d_in += binned.edges[:, 1:].size
        member = serial(binned.layer, mlp((d_in, *hidden, d_out), function))
    else:
        member = mlp(sizes, function)
    return member, member if k == 1 else _members.ensemble(member, k, classifies)
