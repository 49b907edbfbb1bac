"""What random layers and layers with statistics need of training: keys, and measured statistics."""

import chex
import jax
import jax.numpy as jnp
import pytest

import fnn

KEY = jax.random.key(3)
X = jax.random.normal(KEY, (8, 5))
NOISY = fnn.serial(
    fnn.dense(5, 6),
    fnn.dropout(0.3),
    fnn.repeat(fnn.skip(fnn.serial(fnn.dense(6, 6), fnn.tanh, fnn.dropout(0.5))), 4),
    fnn.fork(fnn.dense(6, 2), fnn.dropout(0.2)),
    fnn.concatenate,
)
PARAMS = NOISY.init(KEY)


@pytest.mark.long
def test_a_step_needs_a_key_and_draws_from_the_step_number():
    optimizer = fnn.sgd(0.1)
    step = fnn.make_step(NOISY, fnn.mse, optimizer)
    state, batch = optimizer.init(PARAMS), (X, jnp.zeros((8, 8)))
    with pytest.raises(TypeError, match="expected a key"):
        step(state, batch)
    after, value = step(state, batch, KEY)
    again, same = step(state, batch, KEY)
    chex.assert_trees_all_equal((after, value), (again, same))
    _, later = step(state._replace(step=state.step + 1), batch, KEY)
    assert float(later) != float(value)


@pytest.mark.long
def test_a_resumed_run_draws_the_same_numbers():
    data = (X, jnp.zeros((8, 8)))
    settings = {"key": KEY, "batch_size": 3}
    whole, history = fnn.fit(NOISY, fnn.mse, fnn.adam(0.01), data, epochs=4, **settings)
    half, first = fnn.fit(NOISY, fnn.mse, fnn.adam(0.01), data, epochs=2, **settings)
    rest, second = fnn.fit(
        NOISY, fnn.mse, fnn.adam(0.01), data, epochs=4,
        start=fnn.Progress(half, first, half), **settings,
    )  # fmt: skip
    chex.assert_trees_all_equal(whole, rest)
    assert history == second


def test_fit_measures_statistics_before_it_validates():
    x = 5 + 3 * jax.random.normal(KEY, (64, 5))
    y = (x[:, :2] - 5) / 3
    _, history = fnn.fit(
        fnn.serial(fnn.batch_norm(5), fnn.dense(5, 2)), fnn.mse, fnn.adam(0.05), (x, y),
        key=KEY, epochs=30, batch_size=16, validation=(x, y),
    )  # fmt: skip
    # Without statistics the inputs would be off by 5, and the loss of the order of 10.
    assert history[-1]["validation_loss"] < 0.01


def test_statistics_are_those_of_the_training_data():
    """Validation data elsewhere: normalised by its own statistics its loss would be 0."""
    x, y = jnp.array([[-1.0], [1.0]] * 4), jnp.array([[-1.0], [1.0]] * 4)
    optimizer = fnn.sgd(1e-9)
    for data, size in (((x, y), 8), ([(x, y)], None)):
        _, history = fnn.fit(
            fnn.batch_norm(1), fnn.mse, optimizer, data, key=KEY, epochs=1, batch_size=size,
            validation=(10 + x, y),
        )  # fmt: skip
        # At the training data's mean of 0 and variance of 1 each prediction is off by 10.
        assert abs(history[0]["validation_loss"] - 100) < 0.1
