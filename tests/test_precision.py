"""What `compute_in` computes in which dtype."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import per_example

KEY = jax.random.key(13)

X = jax.random.normal(KEY, (6, 4))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_compute_in_keeps_dtypes_outside_and_is_narrow_inside(dtype):
    network = fnn.mlp((4, 8, 3), activation=fnn.tanh)
    inside = fnn.compute_in(network, dtype)
    params, y = inside.init(KEY), jnp.ones((6, 3))
    value, grads = jax.jit(fnn.value_and_grad(inside, fnn.mse))(params, X, y)
    assert {g.dtype.name for g in jax.tree.leaves((value, grads))} == {"float32"}
    _, residuals = inside.forward(params, X)
    assert {r.dtype for r in jax.tree.leaves(residuals)} == {jnp.dtype(dtype)}
    expected = fnn.value_and_grad(network, fnn.mse)(params, X, y)
    chex.assert_trees_all_close((value, grads), expected, rtol=0.1, atol=0.02)
    assert not np.array_equal(grads[0]["W"], expected[1][0]["W"])
    text = jax.jit(inside.forward).lower(params, X).as_text()
    assert text.count("dot_general") == 2
    assert not any("f32" in line for line in text.splitlines() if "dot_general" in line)
    norms = per_example.squared_norms(inside, fnn.mse)(params, X, y)
    np.testing.assert_allclose(
        norms, per_example.squared_norms(network, fnn.mse)(params, X, y), rtol=0.1
    )


def test_sums_over_the_batch_are_wide():
    """10,000 gradients of 1: in bfloat16 their sum would stop at 256."""
    layer = fnn.compute_in(fnn.dense(1, 1), jnp.bfloat16)
    params, x = layer.init(KEY), jnp.ones((10_000, 1))
    _, residuals = layer.forward(params, x)
    dparams, _ = layer.backward(params, residuals, jnp.ones((10_000, 1)))
    assert float(dparams["b"][0]) == 10_000
    assert float(dparams["W"][0, 0]) == 10_000


MASK = {"W": jnp.ones((1, 1)), "b": jnp.ones(1)}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("layer", "ones"),
    [
        (fnn.dense(1, 1), jnp.ones((10**5, 1))),
        (fnn.serial(fnn.frozen(fnn.dense(1, 1)), fnn.dense(1, 1)), jnp.ones((10**5, 1))),
        (fnn.repeat(fnn.dense(1, 1), 2), jnp.ones((10**5, 1))),
        (fnn.masked(fnn.dense(1, 1), MASK), jnp.ones((10**5, 1))),
        (fnn.embedding(2, 1), jnp.zeros(10**5, jnp.int32)),
        (fnn.compute_in(fnn.dense(1, 1), jnp.bfloat16), jnp.ones((10**5, 1))),
    ],
    ids=["dense", "frozen", "repeat", "masked", "embedding", "compute_in"],
)  # fmt: skip
def test_sums_are_in_the_params_dtype_whatever_the_inputs(layer, ones):
    """100,000 ones add up to more than float16 holds, and than bfloat16 can count."""
    network = fnn.compute_in(layer, jnp.float16)
    params = jax.tree.map(jnp.ones_like, network.init(KEY))
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        x = ones if jnp.issubdtype(ones.dtype, jnp.integer) else ones.astype(dtype)
        y, residuals = network.forward(params, x)
        dy = jnp.ones(y.shape, dtype)
        dparams, _ = network.backward(params, residuals, dy)
        assert {a.dtype for a in jax.tree.leaves(dparams)} == {jnp.dtype(jnp.float32)}
        last = jax.tree.leaves(dparams)[-1]
        assert 1e5 in np.asarray(last), (dtype, dparams)
        squares = network.backward(params, residuals, dy, lambda f: f.squared().total())[0]
        assert all(
            np.isfinite(a).all() and a.dtype == jnp.float32 for a in jax.tree.leaves(squares)
        )


def test_the_sums_of_batch_norm_are_in_the_params_dtype():
    layer = fnn.compute_in(fnn.at(fnn.batch_norm(1), KEY), jnp.float16)
    params, x = layer.init(KEY), jnp.ones((10**5, 1), jnp.float16)
    y, residuals = layer.forward(params, x)
    dparams, _ = layer.backward(params, residuals, jnp.ones_like(y))
    assert (dparams["bias"].dtype, float(dparams["bias"][0])) == (jnp.float32, 1e5)
    with pytest.raises(
        TypeError, match=r"batch_norm\(1\): its gradient exists for the whole batch"
    ):
        per_example.squared_norms(layer, fnn.mse)(params, x, x)


def test_compute_in_refuses_what_is_no_float():
    with pytest.raises(TypeError, match="compute_in: expected a floating-point dtype"):
        fnn.compute_in(fnn.relu, jnp.int32)


def test_float16_trains_with_a_scaled_loss_where_it_does_not_without():
    """Targets so small that the gradient of the mean is below float16's smallest number."""
    network = fnn.compute_in(fnn.dense(4, 1), jnp.float16)
    y = 1e-5 * X[:, :1]
    start = jax.tree.map(jnp.zeros_like, network.init(KEY))

    def trained(optimizer):
        train = fnn.make_train(network, fnn.mse, optimizer, 6, 200)
        state, losses = jax.jit(train)(start, (X, y), KEY)
        return state, losses

    _, plain = trained(fnn.sgd(0.1))
    state, scaled = trained(fnn.scale_loss(fnn.sgd(0.1)))
    assert scaled[-1] < 0.2 * scaled[0]
    assert scaled[-1] < 0.5 * plain[-1]
    assert np.isfinite(float(state.loss_scale))
