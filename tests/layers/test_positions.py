"""Learned positions: numpy as oracle, per-example statistics, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import per_example

KEY = jax.random.key(6)


def test_each_token_gets_its_places_row():
    layer = fnn.positions(5, 2)
    params, x = layer.init(KEY), jax.random.normal(KEY, (4, 3, 2))
    y, residuals = layer.forward(params, x)
    np.testing.assert_array_equal(y, x + np.asarray(params["table"])[:3])
    grads, dx = layer.backward(params, residuals, x)
    np.testing.assert_array_equal(dx, x)
    expected = np.concatenate([np.asarray(x).sum(0), np.zeros((2, 2))])
    np.testing.assert_allclose(grads["table"], expected, rtol=1e-6)


def test_each_texts_gradient_is_exact():
    layer = fnn.serial(fnn.positions(5, 2), fnn.tanh)
    params, x = layer.init(KEY), jax.random.normal(KEY, (4, 3, 2))
    each = jax.vmap(jax.grad(fnn.objective(layer, fnn.mse)), (None, 0, 0))(params, x, -x)
    rows = each[0]["table"].reshape(4, -1)
    got = per_example.gram(layer, fnn.mse, example_axes=1)(params, x, -x)
    np.testing.assert_allclose(got, rows @ rows.T, rtol=1e-5)


def test_too_many_tokens_are_refused():
    layer = fnn.positions(2, 3)
    with pytest.raises(ValueError, match=r"positions\(2, 3\): expected at most 2 tokens"):
        layer.forward(layer.init(KEY), jnp.ones((4, 3, 3)))
