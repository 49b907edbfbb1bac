"""What a run predicts, how good that is, and which examples may measure it."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from fnn import data
from fnn.base import Layer, Params
from fnn.data import DataError, Dataset
from fnn.runs import digests
from fnn.runs.metrics import Classified, Predicted
from fnn.training.evaluation import CHUNK, predicted

if TYPE_CHECKING:
    from fnn.runs.run import Run

HELD_OUT = 0.2
"""The share of the data that is held out, and of the training part that patience validates on."""


def predictions(run: "Run", parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """What `Run.predict` returns for parts of x, one after another, in pieces of `CHUNK` examples
    and a last one of those that are left.

    Raises DataError for another number of features, where it comes to the fault.
    """
    of = lambda x, first: forward(run, run.progress.best.params, run.inputs.apply(x, first))
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


def forward(run: "Run", params: Params, x: Any) -> np.ndarray:
    """Probabilities, or values in their own units, of inputs x (n, width) at these params."""
    y = np.asarray(_forward(run.network, run.outputs is None, params, x))
    return y if run.outputs is None else run.outputs.undo(y)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(network: Layer, classifies: bool, params: Params, x: jax.Array) -> jax.Array:
    y = predicted(network, params, x)
    return jax.nn.softmax(y) if classifies else y


def evaluate(
    run: "Run", examples: Dataset, threshold: float | None = None
) -> Classified | Predicted:
    """Measure the run's predictions for aligned examples with known targets; of two classes by this
    threshold, if any.

    Raises DataError for examples of other features or values than the run's.
    """
    if run.outputs is not None and examples.y.shape[1:] != run.outputs.mean.shape:
        k = len(run.outputs.mean)
        raise DataError(f"{examples.name}: expected y (n, {k}), got {examples.y.shape}")
    return compared(run, examples.y, run.predict(examples.x), run.margins, threshold)


def compared(
    run: "Run",
    y: np.ndarray,
    prediction: np.ndarray,
    margins: Sequence[float] = (),
    threshold: float | None = None,
) -> Classified | Predicted:
    """Compare targets with a prediction of the run's classes, (n, classes), or values: classes by
    the threshold, if any, values with the ends of intervals."""
    if run.outputs is None:
        return Classified.of(run.classes, y, prediction, threshold)
    return Predicted.of(run.values, y, prediction, run.outputs.mean, margins)


def held_out(run: "Run", examples: Dataset) -> tuple[Dataset, str]:
    """The examples to evaluate on, aligned, and a phrase describing them.

    examples are as they were read. If the run was trained on this data, or if the data has a test
    part, that is the test part, and the phrase counts those of it that are equal to examples that
    the run was trained on. Otherwise it is the examples that are equal to none that the run was
    trained on; all of them where each is equal to one, or where the run keeps no digests.

    Raises DataError for examples of other features, classes or values than the run's.
    """
    if examples.test is not None or digests.of_data(examples) == run.digest:
        examples = data.without_singles(examples)
        test = run.aligned(data.split(examples, HELD_OUT, run.settings.seed)[1])
        again = int(np.isin(digests.of_examples(test), run.seen).sum())
        twice = f", {again} of them also trained on" if again else ""
        return test, f"the held-out {len(test.x)} examples{twice}"
    examples, n = run.aligned(examples), len(examples.x)
    if not len(run.seen):
        return examples, f"all {n} examples, some of which may have been trained on"
    unseen = ~np.isin(digests.of_examples(examples), run.seen)
    every = {n: f"all {n} examples", 0: f"all {n} examples, each of them trained on"}
    if (count := int(unseen.sum())) in every:
        return examples, every[count]
    left = examples._replace(x=examples.x[unseen], y=examples.y[unseen])
    return left, f"the {count} of {n} examples that were not trained on"
