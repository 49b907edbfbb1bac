"""`fit`: early stopping, the best epoch, and going on as if it had never stopped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.training.fitting import Progress, epochs_since_best

pytestmark = [pytest.mark.usefixtures("compiled_once"), pytest.mark.optimized]

KEY = jax.random.key(11)
NETWORK = fnn.mlp((3, 8, 2), activation=fnn.tanh)
RNG = np.random.default_rng(11)
X = RNG.normal(size=(30, 3)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(np.int32)


def fit(data=(X, Y), network=NETWORK, loss=fnn.softmax_cross_entropy, optimizer=None, **settings):
    settings = {"key": KEY, "epochs": 6, "batch_size": 7} | settings
    return fnn.fit(network, loss, optimizer or fnn.adam(0.01), data, **settings)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_patience_keeps_the_best_state():
    data, validation = (X[:20], Y[:20]), (X[20:], 1 - Y[20:])  # what helps there, harms here
    seen = {}
    state, history = fit(
        data,
        optimizer=fnn.adam(0.1),
        epochs=60,
        validation=validation,
        patience=3,
        on_epoch=lambda number, state, record: seen.update({number: state}),
    )
    losses = [record["validation_loss"] for record in history]
    best = int(np.argmin(losses)) + 1
    assert len(history) == best + 3 < 60
    assert bits(state) == bits(seen[best]) != bits(seen[len(history)])


def test_of_equal_epochs_the_first_is_the_best():
    """What is validated doesn't change while the training goes on."""
    network = fnn.fork(fnn.frozen(fnn.dense(3, 2)), fnn.dense(3, 2))
    first = lambda f: lambda prediction, y: f(prediction[0], y)
    loss = fnn.Loss(
        first(fnn.softmax_cross_entropy.value),
        lambda p, y: (fnn.softmax_cross_entropy.gradient(p[0], y), jnp.ones_like(p[1])),
    )
    seen = {}
    state, history = fit(
        network=network, loss=loss, optimizer=fnn.sgd(0.1), epochs=9, validation=(X, Y), patience=3,
        on_epoch=lambda number, state, record: seen.update({number: state}),
    )  # fmt: skip
    assert len({entry["validation_loss"] for entry in history}) == 1
    assert len(history) == 4
    assert bits(state) == bits(seen[1]) != bits(seen[4])


def test_epochs_since_best():
    def since(*losses):
        return epochs_since_best([{"validation_loss": value} for value in losses])

    assert [since(), since(1.0), since(2.0, 1.0), since(1.0, 2.0, 3.0)] == [0, 0, 0, 2]
    assert since(1.0, 1.0, 1.0) == 2  # as low is not lower
    assert since(np.nan, 2.0, np.nan) == 1
    assert since(np.nan, np.nan) == 1


@pytest.mark.sampled(4)
@pytest.mark.parametrize("patience", [None, 2])
@pytest.mark.parametrize("stop", [1, 4])
def test_going_on_is_bit_for_bit_never_having_stopped(stop, patience):
    settings = {"optimizer": fnn.adam(0.05), "validation": (X, Y), "patience": patience}
    kept = {}

    def keep(number, state, record):
        kept[number] = state

    whole = fit(epochs=9, **settings)
    _, history = fit(epochs=stop, **settings, on_epoch=keep)
    best = kept[1 + int(np.argmin([record["validation_loss"] for record in history]))]
    start = Progress(kept[stop], history, best)
    state, on = fit(epochs=9, **settings, start=start)
    assert on == whole[1]
    assert bits(state) == bits(whole[0])
    assert len(history) == stop  # the caller's own list is left as it was
    assert bits(fit(epochs=stop, **settings, start=start)[0]) == bits(
        kept[stop] if patience is None else best
    )
