"""A network looked into: `apply`, `layer_outputs`, `summary`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (5, 4))
BLOCK = fnn.skip(fnn.serial(fnn.dense(8, 8), fnn.tanh))
DEEP = fnn.serial(fnn.dense(4, 8), fnn.repeat(BLOCK, 3), fnn.fork(fnn.dense(8, 2), fnn.dense(8, 1)))


def test_apply_is_the_prediction_at_a_key_and_statistics():
    network = fnn.serial(fnn.batch_norm(4), fnn.dropout(0.5), fnn.dense(4, 2))
    params = network.init(KEY)
    measured = fnn.statistics(network, params, 3 + X)
    for key, found in ((None, None), (KEY, None), (None, measured)):
        expected, _ = fnn.at(network, key, found).forward(params, X)
        np.testing.assert_array_equal(fnn.apply(network, params, X, key, found), expected)
    assert jnp.abs(fnn.apply(network, params, X) - fnn.apply(network, params, X, KEY)).max() > 0
    with pytest.raises(TypeError, match="apply: expected a Layer"):
        fnn.apply(params, network, X)


def test_layer_outputs_end_with_the_prediction():
    params = DEEP.init(KEY)
    first, second, last = fnn.layer_outputs(DEEP, params, X)
    np.testing.assert_array_equal(first, fnn.apply(fnn.dense(4, 8), params[0], X))
    np.testing.assert_allclose(second, fnn.apply(fnn.repeat(BLOCK, 3), params[1], first), rtol=1e-6)
    for got, expected in zip(last, fnn.apply(DEEP, params, X), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    (only,) = fnn.layer_outputs(fnn.tanh, (), X)
    np.testing.assert_array_equal(only, jnp.tanh(X))
    with pytest.raises(TypeError, match="layer_outputs: expected a Layer"):
        fnn.layer_outputs(params, DEEP, X)


def test_a_summary_counts_what_the_network_has():
    rows = fnn.summary(DEEP, X).rows
    params = DEEP.init(KEY)
    _, residuals = DEEP.forward(params, X)
    assert rows[0][3] == sum(p.size for p in jax.tree.leaves(params))
    assert rows[0][5] == sum(a.nbytes for a in jax.tree.leaves(residuals))
    assert rows[0][4] == 2 * 5 * (4 * 8 + 3 * 8 * 8 + 8 * 3)
    assert rows[0][:3] == (0, "serial", "(5, 2), (5, 1)")
    assert [row[:2] for row in rows[1:]] == [
        (1, "dense"), (1, "repeat"), (2, "3 x skip"), (3, "serial"), (4, "dense"), (4, "tanh"),
        (1, "fork"),
    ]  # fmt: skip
    # Only shapes and dtypes count.
    assert fnn.summary(DEEP, jax.ShapeDtypeStruct((5, 4), jnp.float32)).rows == rows


def test_a_summary_is_a_table_for_a_terminal_and_for_a_notebook():
    table = fnn.summary(DEEP, X)
    lines = str(table).splitlines()
    assert lines[0].split() == ["layer", "output", "parameters", "flops", "bytes", "kept"]
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == len(table.rows) + 1
    assert table._repr_html_().count("<tr>") == len(lines)
    assert "3 x skip" in table._repr_html_()
    with pytest.raises(ValueError, match=r"dense\(4, 8\)"):
        fnn.summary(DEEP, jnp.ones((5, 3)))
    with pytest.raises(TypeError, match="summary: expected a Layer"):
        fnn.summary(X, DEEP)
