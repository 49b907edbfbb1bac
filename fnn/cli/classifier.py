"""The small classifier that `noise-scale` and `hardest` train and then look at."""

from typing import Any

import jax

from fnn import losses, optimizers
from fnn.base import Layer, Params
from fnn.cli import environment
from fnn.data import Dataset
from fnn.fitting import OnEpoch, fit
from fnn.models import mlp

environment.settle()

LOSS = losses.softmax_cross_entropy


def network(examples: Dataset) -> Layer:
    """One hidden layer of 128, from the examples' features to logits of their classes.

    >>> from fnn import data
    >>> layer = network(data.load("iris"))
    >>> jax.eval_shape(layer.init, jax.random.key(0))[0]["W"].shape
    (128, 4)
    """
    return mlp((examples.x.shape[-1], 128, len(examples.classes)))


def train(
    network: Layer, examples: tuple[Any, Any], epochs: int, seed: int, on_epoch: OnEpoch | None
) -> Params:
    """The parameters after training on (x, y) with Adam, in batches of 32.

    on_epoch is that of `fnn.fit`, which also says what is raised.

    >>> import fnn, numpy as np
    >>> x, y = np.eye(32, dtype=np.float32), np.arange(32) % 3
    >>> params = train(fnn.dense(32, 3), (x, y), epochs=1, seed=0, on_epoch=None)
    >>> params["W"].shape
    (3, 32)
    """
    state, _ = fit(
        network,
        LOSS,
        optimizers.adam(1e-3),
        examples,
        key=jax.random.key(seed),
        epochs=epochs,
        batch_size=32,
        on_epoch=on_epoch,
    )
    return state.params
