"""Whole networks: the gradient of the loss, by our rules and by autodiff."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LOSSES
from hypothesis import given, settings, strategies as st

import fnn

ACTIVATIONS = [
    fnn.sigmoid,
    fnn.tanh,
    fnn.relu,
    fnn.softmax,
    fnn.gelu,
    fnn.silu,
    fnn.softplus,
    fnn.selu,
    fnn.elu(0.7),
    fnn.leaky_relu(0.2),
    fnn.identity,
]


def blocks(width):
    """Layers width -> width, nested at random."""
    leaf = st.one_of(
        st.sampled_from(ACTIVATIONS),
        st.just(fnn.dense(width, width)),
        st.just(fnn.layer_norm(width)),
    )
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3).map(lambda layers: fnn.serial(*layers)),
            inner.map(fnn.skip),
            st.tuples(inner, st.integers(1, 3)).map(lambda pair: fnn.repeat(*pair)),
        ),
        max_leaves=5,
    )


@st.composite
def problems(draw):
    """A network of random architecture with a loss, and inputs for both, by a seed."""
    d_in, width, k = (draw(st.integers(1, 5)) for _ in range(3))
    middle = draw(st.lists(blocks(width), max_size=2))
    network = fnn.serial(fnn.dense(d_in, width), *middle, fnn.dense(width, k))
    loss = draw(
        st.sampled_from(
            [fnn.mse, fnn.huber(), fnn.softmax_cross_entropy, fnn.sigmoid_binary_cross_entropy]
        )
    )
    batch = draw(st.sampled_from([(), (1,), (4,), (2, 3)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    return network, loss, rng.normal(size=(*batch, d_in)), rng.uniform(size=(*batch, k))


@given(problems())
@settings(max_examples=10, deadline=None, derandomize=True)
@pytest.mark.long
def test_random_architectures_agree_with_autodiff(problem):
    network, loss, x, y = problem
    ours = fnn.value_and_grad(network, loss)
    theirs = jax.value_and_grad(fnn.objective(network, loss))
    with jax.enable_x64(True):
        params = network.init(jax.random.key(3))
        both = jax.jit(lambda *args: (ours(*args), theirs(*args)))
        (value, grads), (oracle, expected) = both(params, jnp.asarray(x), jnp.asarray(y))
        np.testing.assert_allclose(value, oracle, rtol=1e-13)
        chex.assert_trees_all_equal_shapes_and_dtypes(grads, expected)
        error, size = (
            jnp.sqrt(sum((a * a).sum() for a in jax.tree.leaves(t)) + 0.0)
            for t in (jax.tree.map(jnp.subtract, grads, expected), expected)
        )
        assert float(error) <= 1e-12 * float(size) + 1e-300


def test_the_output_error_and_the_hidden_error_by_hand():
    """Section 5.4: delta(L) = dL/dA s'(Z(L)), delta(l) = W(l+1)^T delta(l+1) s'(Z(l)),
    dL/dW(l) = delta(l) A(l-1)^T and dL/db(l) = delta(l), each written out in numpy."""
    network = fnn.mlp((3, 4, 4, 2), activation=fnn.tanh, output=fnn.sigmoid)
    with jax.enable_x64(True):
        params = network.init(jax.random.key(0))
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(5, 3)), rng.uniform(size=(5, 2))
        value, grads = fnn.value_and_grad(network, fnn.mse)(params, jnp.asarray(x), jnp.asarray(y))
        (W1, b1), _, (W2, b2), _, (W3, b3), _ = (
            (np.asarray(p["W"]), np.asarray(p["b"])) if p else () for p in params
        )
        A1 = np.tanh(x @ W1.T + b1)
        A2 = np.tanh(A1 @ W2.T + b2)
        A3 = 1 / (1 + np.exp(-(A2 @ W3.T + b3)))
        np.testing.assert_allclose(value, np.mean((A3 - y) ** 2), rtol=1e-14)
        delta3 = 2 * (A3 - y) / y.size * A3 * (1 - A3)
        delta2 = delta3 @ W3 * (1 - A2**2)
        delta1 = delta2 @ W2 * (1 - A1**2)
        for i, (delta, A) in {0: (delta1, x), 2: (delta2, A1), 4: (delta3, A2)}.items():
            np.testing.assert_allclose(grads[i]["W"], delta.T @ A, rtol=1e-12, atol=1e-15)
            np.testing.assert_allclose(grads[i]["b"], delta.sum(0), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.name)
def test_value_and_grad_is_the_twin_of_jaxs(case):
    k = case.prediction.shape[-1]
    output = fnn.identity
    if case.name.startswith("cross_entropy"):
        output = fnn.softmax
    if case.name.startswith("binary"):
        output = fnn.sigmoid
    network = fnn.mlp((3, 5, k), activation=fnn.silu, output=output)
    with jax.enable_x64(True):
        params = network.init(jax.random.key(0))
        x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))
        target = jnp.asarray(case.target)
        got = jax.jit(fnn.value_and_grad(network, case.loss))(params, x, target)
        expected = jax.jit(jax.value_and_grad(fnn.objective(network, case.loss)))(params, x, target)
        chex.assert_trees_all_close(got, expected, rtol=1e-11, atol=1e-16)


@pytest.mark.optimized
def test_the_first_layers_dx_is_not_computed():
    """No matrix product in the compiled gradient is for an input that nobody asked for."""
    d, h, m = 50, 7, 9
    network = fnn.mlp((d, h, 3))
    step = jax.jit(fnn.value_and_grad(network, fnn.softmax_cross_entropy))
    params = jax.eval_shape(network.init, jax.random.key(0))
    x, y = jax.ShapeDtypeStruct((m, d), jnp.float32), jax.ShapeDtypeStruct((m,), jnp.int32)
    flops = step.lower(params, x, y).compile().cost_analysis()["flops"]
    products = 2 * m * (2 * d * h + 3 * h * 3)
    assert products <= flops < products + 2 * m * d * h
