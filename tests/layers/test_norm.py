"""Normalisation at the ends of a dtype's range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.training.faults import all_finite

pytestmark = pytest.mark.optimized

KEY = jax.random.key(11)
RNG = np.random.default_rng(11)


def test_a_variance_that_overflows_is_not_an_output_of_0():
    x = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
    batch_norm = fnn.at(fnn.batch_norm(3), KEY)
    params = batch_norm.init(KEY)
    assert (batch_norm.forward(params, x * 1e15)[0] != 0).any()
    assert jnp.isnan(batch_norm.forward(params, x * 1e20)[0]).all()
    layer, scale = fnn.layer_norm(3), 2.0**66  # 7e19
    (y, small), (same, large) = (layer.forward(params, x * s) for s in (2.0**20, scale))
    np.testing.assert_allclose(same, y, rtol=1e-5)
    dx, expected = (
        layer.backward(params, residuals, x)[1] * s
        for residuals, s in ((large, scale), (small, 2.0**20))
    )
    np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-6)
    derivative = jax.jvp(lambda x: layer.forward(params, x)[0], (x,), (x,))[1]
    assert all_finite(derivative)
