"""What `remat` and `reversible` compute and keep."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import per_example

KEY = jax.random.key(13)

X = jax.random.normal(KEY, (6, 4))

BLOCK = fnn.serial(fnn.dense(4, 4), fnn.tanh)


def run(layer, params, x, dy, **reduce):
    y, residuals = layer.forward(params, x)
    return y, *layer.backward(params, residuals, dy, **reduce)


def temporary(network, m=128, d=32):
    """Temporary memory of the compiled gradient, in arrays of one activation."""
    params = jax.eval_shape(network.init, KEY)
    x = jax.ShapeDtypeStruct((m, d), jnp.float32)
    step = jax.jit(fnn.value_and_grad(network, fnn.mse))
    return step.lower(params, x, x).compile().memory_analysis().temp_size_in_bytes / (m * d * 4)


def block(d=32):
    return fnn.serial(fnn.dense(d, d), fnn.relu)


@pytest.mark.parametrize("layer", [BLOCK, fnn.repeat(fnn.skip(BLOCK), 3)])
def test_remat_computes_what_the_layer_does(layer):
    params, dy = layer.init(KEY), jnp.cos(X)
    got = jax.jit(partial(run, fnn.remat(layer)))(params, X, dy)
    chex.assert_trees_all_close(got, jax.jit(partial(run, layer))(params, X, dy), rtol=1e-5)
    assert fnn.remat(layer).forward(params, X)[1] is X


@pytest.mark.optimized
def test_remat_keeps_one_array_per_block():
    n = 8
    plain = temporary(fnn.repeat(block(), n * n))
    nested = temporary(fnn.repeat(fnn.remat(fnn.repeat(block(), n)), n))
    assert plain > n * n
    assert nested < 3 * n + 8


@pytest.mark.optimized
def test_reversible_keeps_nothing_but_its_output_at_any_depth():
    make = lambda n: fnn.reversible(block(16), block(16), n)
    shallow, deep = temporary(make(4)), temporary(make(64))
    assert deep < shallow + 2


def test_reversible_computes_its_equations():
    f, g = fnn.serial(fnn.dense(2, 2), fnn.tanh), fnn.dense(2, 2)
    layer = fnn.reversible(f, g, 3)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64), layer.init(KEY))
        x = X.astype(jnp.float64)

        def forward(params, x):
            x1, x2 = x[:, :2], x[:, 2:]
            for i in range(3):
                pf, pg = jax.tree.map(lambda p, i=i: p[i], params)
                x1 = x1 + f.forward(pf, x2)[0]
                x2 = x2 + g.forward(pg, x1)[0]
            return jnp.concatenate([x1, x2], -1)

        one = jax.grad(lambda p, x, y: fnn.mse.value(forward(p, x[None]), y[None])[0])

        @jax.jit
        def everything(params, x):
            y, pull = jax.vjp(forward, params, x)
            norms = per_example.squared_norms(layer, fnn.mse)(params, x, x)
            each = jax.vmap(one, (None, 0, 0))(params, x, x)
            return run(layer, params, x, jnp.cos(x)), (y, *pull(jnp.cos(x))), norms, each

        got, expected, norms, each = everything(params, x)
        chex.assert_trees_all_close(got, expected, rtol=1e-11)
        expected = sum(jnp.square(g).reshape(6, -1).sum(1) for g in jax.tree.leaves(each))
        np.testing.assert_allclose(norms, expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fnn.reversible(BLOCK, BLOCK, 0), "reversible: expected n of at least 1"),
        (lambda: run(fnn.reversible(BLOCK, BLOCK, 2), (BLOCK.init(KEY),) * 2, X[:, :3], X),
         "even number of features"),
        (lambda: fnn.reversible(fnn.dense(2, 1), fnn.identity, 1).forward(
            fnn.reversible(fnn.dense(2, 1), fnn.identity, 1).init(KEY), X),
         "reversible: expected f and g to keep shape"),
    ],
)  # fmt: skip
def test_bad_reversible_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
