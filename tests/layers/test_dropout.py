"""What dropout drops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn

KEY = jax.random.key(3)


def test_dropout_drops_its_rate_and_keeps_the_mean():
    layer, x = fnn.at(fnn.dropout(0.3), KEY), jnp.ones((400, 500))
    y, residuals = layer.forward((), x)
    assert jax.tree.leaves(residuals) == []  # no mask is kept
    assert abs(float((y == 0).mean()) - 0.3) < 5 * (0.3 * 0.7 / x.size) ** 0.5
    np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-6)
    # The same entries, whatever the dtype.
    narrow, _ = layer.forward((), x.astype(jnp.bfloat16))
    np.testing.assert_array_equal(narrow == 0, y == 0)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_wrong_rate_is_refused(rate):
    with pytest.raises(ValueError, match=r"dropout: expected rate in \[0, 1\)"):
        fnn.dropout(rate)
