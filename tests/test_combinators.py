"""The laws of composition, and what `repeat` keeps in memory."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn

F, G, H = fnn.dense(4, 5), fnn.tanh, fnn.dense(5, 3)
KEYS = jax.random.split(jax.random.key(7), 4)
X = jax.random.normal(KEYS[3], (6, 4))


def entry(tree, i):
    return jax.tree.map(lambda a: a[i], tree)


def run(layer, params, x, dy):
    y, residuals = layer.forward(params, x)
    return y, *layer.backward(params, residuals, dy)


def test_serial_is_associative():
    pf, pg, ph = F.init(KEYS[0]), G.init(KEYS[1]), H.init(KEYS[2])
    dy = jnp.ones((6, 3))
    y, (df, dg, dh), dx = run(fnn.serial(F, G, H), (pf, pg, ph), X, dy)
    left = run(fnn.serial(fnn.serial(F, G), H), ((pf, pg), ph), X, dy)
    right = run(fnn.serial(F, fnn.serial(G, H)), (pf, (pg, ph)), X, dy)
    chex.assert_trees_all_equal(left, (y, ((df, dg), dh), dx))
    chex.assert_trees_all_equal(right, (y, (df, (dg, dh)), dx))


def test_identity_is_the_unit_of_serial():
    params, dy = F.init(KEYS[0]), jnp.ones((6, 5))
    y, dparams, dx = run(F, params, X, dy)
    for layer, p, dp in [
        (fnn.serial(F), (params,), (dparams,)),
        (fnn.serial(fnn.identity, F), ((), params), ((), dparams)),
        (fnn.serial(F, fnn.identity), (params, ()), (dparams, ())),
        (fnn.serial(fnn.serial(), F), ((), params), ((), dparams)),
    ]:
        chex.assert_trees_all_equal(run(layer, p, X, dy), (y, dp, dx))


def test_skip_adds_the_identity():
    layer = fnn.serial(fnn.dense(4, 4), fnn.tanh)
    params, dy = layer.init(KEYS[0]), jnp.cos(jnp.arange(24.0)).reshape(6, 4)
    y, dparams, dx = run(layer, params, X, dy)
    chex.assert_trees_all_equal(run(fnn.skip(layer), params, X, dy), (X + y, dparams, dy + dx))


@pytest.mark.parametrize("activation", [fnn.relu, fnn.tanh, fnn.gelu, fnn.skip(fnn.silu)])
def test_repeat_is_serial_with_stacked_params(activation):
    layer, n = fnn.serial(fnn.layer_norm(4), fnn.dense(4, 4), activation), 5
    with jax.enable_x64(True):
        stacked = fnn.repeat(layer, n).init(KEYS[0])
        copies = tuple(entry(stacked, i) for i in range(n))
        assert len({float(p[1]["W"][0, 0]) for p in copies}) == n  # each copy drawn by itself
        x, dy = X.astype(jnp.float64), jnp.sin(jnp.arange(24.0)).reshape(6, 4)
        y, dcopies, dx = jax.jit(partial(run, fnn.serial(*[layer] * n)))(copies, x, dy)
        dstacked = jax.tree.map(lambda *a: jnp.stack(a), *dcopies)
        got = jax.jit(partial(run, fnn.repeat(layer, n)))(stacked, x, dy)
        chex.assert_trees_all_close(got, (y, dstacked, dx), rtol=1e-11, atol=1e-14)


@pytest.mark.optimized
@pytest.mark.parametrize("activation", [fnn.relu, fnn.tanh, fnn.sigmoid, fnn.softmax])
def test_repeat_keeps_each_activation_once(activation):
    """Temporary memory of the compiled gradient, in arrays of one activation per copy."""
    n, m, d = 64, 128, 32
    network = fnn.repeat(fnn.serial(fnn.dense(d, d), activation), n)
    params = jax.eval_shape(network.init, KEYS[0])
    x = jax.ShapeDtypeStruct((m, d), jnp.float32)
    step = jax.jit(fnn.value_and_grad(network, fnn.mse))
    memory = step.lower(params, x, x).compile().memory_analysis().temp_size_in_bytes
    assert memory / (n * m * d * 4) < 1.25


def test_a_wrong_reduction_reaches_every_layer():
    """Combinators pass `reduce` on: what it makes of the factors is what comes back."""
    network = fnn.serial(fnn.skip(fnn.dense(4, 4)), fnn.repeat(fnn.layer_norm(4), 2))
    params = network.init(KEYS[0])
    _, residuals = network.forward(params, X)
    dparams, _ = network.backward(params, residuals, X, lambda factor: jnp.float32(42))
    assert jax.tree.structure(dparams) == jax.tree.structure(params)
    assert {float(v) for a in jax.tree.leaves(dparams) for v in np.ravel(a)} == {42.0}


@pytest.mark.parametrize(
    ("merge", "other"),
    [
        (fnn.concatenate, jnp.ones((6, 4), jnp.bfloat16)),
        (fnn.concatenate, jnp.ones((6, 4), jnp.int32)),
        (fnn.concatenate, jnp.ones((5, 4))),
        (fnn.add, jnp.ones((6, 4), jnp.bfloat16)),
        (fnn.add, jnp.ones((6, 1))),
    ],
)
def test_merges_refuse_arrays_that_do_not_go_together(merge, other):
    """Under standard promotion, as most people have it, JAX would widen one of them."""
    refused = pytest.raises(ValueError, match="concatenate: expected arrays|add: expected")
    with jax.numpy_dtype_promotion("standard"), refused:
        merge.forward((), (X, other))
