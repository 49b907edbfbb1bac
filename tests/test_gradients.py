"""Gradients of one's own: functions from a gradient to a gradient, and the training functions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import gradients
from fnn.reductions import safe_norm

KEY = jax.random.key(5)
X = jax.random.normal(KEY, (10, 3))
Y = jnp.sin(X[:, :1])
NETWORK = fnn.mlp((3, 8, 1), fnn.tanh)
PARAMS = NETWORK.init(KEY)
OWN = gradients.of(NETWORK, fnn.mse)


def test_of_is_the_networks_and_the_losss_own():
    got = OWN(PARAMS, (X, Y), None)
    chex.assert_trees_all_equal(got, fnn.value_and_grad(NETWORK, fnn.mse)(PARAMS, X, Y))
    weight = jnp.arange(10.0)
    got = OWN(PARAMS, (X, Y, weight), None)
    chex.assert_trees_all_equal(got, fnn.value_and_grad(NETWORK, fnn.mse)(PARAMS, X, Y, weight))
    network = fnn.serial(fnn.dropout(0.5), fnn.dense(3, 1))
    params = network.init(KEY)
    got, _ = gradients.of(network, fnn.mse)(params, (X, Y), KEY)
    assert got == fnn.objective(fnn.at(network, KEY), fnn.mse)(params, X, Y)
    with pytest.raises(TypeError, match="expected a Loss"):
        gradients.of(NETWORK, jnp.square)


def test_sam_is_the_gradient_at_the_worst_point_nearby():
    value, grads = gradients.sam(OWN, 0.3)(PARAMS, (X, Y), None)
    first, g = OWN(PARAMS, (X, Y), None)
    norm = np.sqrt(sum(np.square(a).sum() for a in jax.tree.leaves(g)))
    there = jax.tree.map(lambda p, a: p + 0.3 * a / norm, PARAMS, g)
    assert value == first
    chex.assert_trees_all_close(grads, OWN(there, (X, Y), None)[1], rtol=1e-5, atol=1e-6)
    zero = lambda params, batch, key: (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(gradients.sam(zero)(PARAMS, X, KEY)))


@pytest.mark.parametrize("n", [1, 2, 4, 7, 10, 12])
def test_microbatches_have_the_mean_of_the_whole_batch(n):
    """10 examples in parts of 10, 5, 3, 2 and 1, the last part smaller where n divides none."""
    got = jax.jit(gradients.microbatches(OWN, n))(PARAMS, (X, Y), KEY)
    chex.assert_trees_all_close(got, OWN(PARAMS, (X, Y), None), rtol=1e-5, atol=1e-6)


def test_microbatches_sum_in_float32_and_draw_by_keys_of_their_own():
    seen = []

    def spy(params, batch, key):
        seen.append(batch.shape)
        return batch.mean(), jax.random.uniform(key, dtype=jnp.bfloat16)

    value, g = gradients.microbatches(spy, 4)(None, jnp.full(10, 2.0, jnp.bfloat16), KEY)
    keys = jax.random.split(KEY, 4)  # 3, 3, 3 and 1 of the 10
    drawn = [float(jax.random.uniform(key, dtype=jnp.bfloat16)) for key in keys]
    expected = np.array([0.3, 0.3, 0.3, 0.1]) @ drawn
    assert (value.dtype, g.dtype) == (jnp.bfloat16, jnp.bfloat16)
    np.testing.assert_allclose(float(g), expected, rtol=4e-3)
    assert set(seen) == {(3,), (1,)}


def test_clipped_bounds_each_parts_gradient():
    bound = 0.05
    _, whole = OWN(PARAMS, (X, Y), None)
    _, got = gradients.clipped(OWN, bound)(PARAMS, (X, Y), None)
    norm = np.sqrt(sum(np.square(a).sum() for a in jax.tree.leaves(whole)))
    assert norm > bound
    expected = jax.tree.map(lambda g: g * bound / norm, whole)
    chex.assert_trees_all_close(got, expected, rtol=1e-5)
    same = gradients.clipped(OWN, 10.0)(PARAMS, (X, Y), None)[1]
    chex.assert_trees_all_close(same, whole, rtol=1e-6)
    each = gradients.microbatches(gradients.clipped(OWN, bound), len(X))(PARAMS, (X, Y), KEY)
    private = fnn.per_example.clipped_value_and_grad(NETWORK, fnn.mse, bound)(PARAMS, X, Y)
    chex.assert_trees_all_close(each, private, rtol=1e-4, atol=1e-6)


def test_noisy_adds_noise_by_a_key_that_the_gradient_does_not_get():
    keys = []

    def spy(params, batch, key):
        keys.append(key)
        return OWN(params, batch, None)

    _, got = gradients.noisy(spy, 2.0)(PARAMS, (X, Y), KEY)
    key, noise_key = jax.random.split(KEY)
    assert keys == [key]
    expected = fnn.per_example.add_noise(OWN(PARAMS, (X, Y), None)[1], noise_key, 2.0)
    chex.assert_trees_all_equal(got, expected)


@pytest.mark.parametrize("make", [
    lambda g: gradients.sam(g), lambda g: gradients.microbatches(g, 2),
    lambda g: gradients.clipped(g, 1.0), lambda g: gradients.noisy(g, 1.0),
    lambda g: fnn.make_step(NETWORK, fnn.mse, fnn.sgd(0.1), gradient=g),
])  # fmt: skip
@pytest.mark.parametrize("wrong", [0.1, NETWORK, fnn.mse])
def test_what_is_no_gradient_is_refused_by_name(make, wrong):
    with pytest.raises(TypeError, match=r"(sam|micro|clip|noisy|make_step).*gradient\(params"):
        make(wrong)


@pytest.mark.parametrize("make", [
    lambda: gradients.sam(OWN, 0.0), lambda: gradients.microbatches(OWN, 0),
    lambda: gradients.clipped(OWN, -1.0), lambda: gradients.noisy(OWN, -1.0)(PARAMS, (X, Y), KEY),
])  # fmt: skip
def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()


@pytest.mark.parametrize("of", [gradients.clipped, gradients.sam])
@pytest.mark.parametrize("wrap", [fnn.frozen, lambda layer: fnn.lora(layer, 1)])
def test_gradients_that_are_zero_when_compiled_are_not_nan(wrap, of):
    """XLA reorders the products of constants: the square of the power of two that `safe_norm`
    multiplied zeros by was infinite."""
    network = fnn.serial(wrap(fnn.dense(2, 2)), fnn.dense(2, 1))
    params, batch = network.init(jax.random.key(0)), (jnp.ones((3, 2)), jnp.ones((3, 1)))
    f = of(gradients.of(network, fnn.mse), 0.1)
    for ours, expected in zip(
        *(jax.tree.leaves(each(params, batch, None)) for each in (jax.jit(f), f)), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e30])
def test_the_norm_of_constants_is_what_it_is_of_arguments(size):
    found = jax.jit(lambda: safe_norm(jnp.full((4, 4), size), (0, 1)))()
    np.testing.assert_allclose(found, np.float32(4 * size), rtol=1e-6)
