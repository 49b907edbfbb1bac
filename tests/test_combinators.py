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
KEY = KEYS[0]
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


def test_skip_adds_each_floating_part_of_a_tree():
    x, mask = jnp.array([1.0, -2.0]), jnp.array([True, False])
    layer = fnn.skip(fnn.on(0, fnn.dense(2, 2)))
    params = layer.init(KEY)
    (y, same), residuals = layer.forward(params, (x, mask))
    np.testing.assert_allclose(y, x + params["W"] @ x, rtol=1e-6)
    assert same is mask
    _, (dx, none) = layer.backward(params, residuals, (x, None))
    np.testing.assert_allclose(dx, x + x @ params["W"], rtol=1e-6)
    assert none is None


def test_on_is_the_layer_for_its_part_alone():
    x = (jnp.ones((3, 2)), jnp.arange(12.0).reshape(3, 4))
    layer, dense = fnn.on(1, fnn.dense(4, 5)), fnn.dense(4, 5)
    params = layer.init(KEY)
    y, residuals = layer.forward(params, x)
    assert y[0] is x[0]
    np.testing.assert_array_equal(y[1], dense.forward(params, x[1])[0])
    grads, dx = layer.backward(params, residuals, y)
    expected, dx_1 = dense.backward(params, x[1], y[1])
    assert dx[0] is y[0]
    np.testing.assert_array_equal(dx[1], dx_1)
    np.testing.assert_array_equal(grads["W"], expected["W"])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fnn.on(-1, fnn.tanh), ValueError, "i of at least 0"),
        (lambda: fnn.on(0.5, fnn.tanh), TypeError, "integer"),
        (lambda: fnn.on(0, jnp.tanh), TypeError, "on: part 0: expected a Layer"),
        (lambda: fnn.on(1, fnn.tanh).forward((), (jnp.ones(1),)), ValueError, "got 1 parts"),
        (lambda: fnn.on(0, fnn.tanh).forward((), jnp.ones(1)), ValueError, "expected a tuple"),
        (lambda: fnn.lora(fnn.tanh, 2).init(KEY), ValueError, "a layer with matrices"),
        (lambda: fnn.lora(fnn.dense(2, 2), 0), ValueError, "rank of at least 1"),
    ],
)
def test_what_on_and_lora_refuse(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_lora_starts_as_the_layer_and_learns_w_plus_ba():
    layer, x = fnn.dense(5, 3), jax.random.normal(KEY, (4, 5))
    adapted = fnn.lora(layer, 2)
    params = adapted.init(KEY)
    np.testing.assert_array_equal(
        adapted.forward(params, x)[0], layer.forward(params["frozen"], x)[0]
    )
    pair = params["learned"][0]
    assert params["learned"][1] == ()
    pair["B"] = jax.random.normal(KEY, (3, 2))
    y, residuals = adapted.forward(params, x)
    W, b, A, B, x64, dy = (
        np.asarray(a, np.float64)
        for a in (params["frozen"]["W"], params["frozen"]["b"], pair["A"], pair["B"], x, y)
    )
    np.testing.assert_allclose(y, x64 @ (W + B @ A).T + b, rtol=1e-5, atol=1e-6)
    grads, dx = adapted.backward(params, residuals, y)
    np.testing.assert_allclose(grads["learned"][0]["A"], B.T @ dy.T @ x64, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grads["learned"][0]["B"], dy.T @ x64 @ A.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, dy @ (W + B @ A), rtol=1e-5, atol=1e-5)
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads["frozen"]))


LORA = {
    "dense": (fnn.dense(4, 3), jnp.cos(jnp.arange(24.0).reshape(6, 4))),
    "embedding": (fnn.embedding(5, 4), jnp.array([[0, 3], [3, 3], [1, 2], [4, 0], [2, 2], [0, 0]])),
    "attention": (fnn.attention(4, 2), jnp.cos(jnp.arange(48.0).reshape(6, 2, 4))),
    "positions": (fnn.positions(3, 4), jnp.cos(jnp.arange(48.0).reshape(6, 2, 4))),
    "compute_in": (fnn.compute_in(fnn.dense(4, 3), jnp.float32), jnp.ones((6, 4)) / 3),
    "batch_norm": (fnn.serial(fnn.dense(4, 3), fnn.batch_norm(3)), jnp.ones((6, 4)) / 3),
}


@pytest.mark.parametrize("name", LORA)
def test_each_examples_gradient_through_lora_is_exact(name):
    layer, x = LORA[name]
    layer = fnn.repeat(fnn.lora(layer, 2), 1) if name == "attention" else fnn.lora(layer, 2)
    draw = lambda p: jnp.sin(9 * p + jnp.arange(p.size, dtype=p.dtype).reshape(p.shape))
    params = jax.tree.map(draw, layer.init(KEY))
    target = jnp.zeros_like(layer.forward(params, x)[0])
    each = jax.vmap(jax.grad(fnn.objective(layer, fnn.mse)), (None, 0, 0))(params, x, target)
    learned = [e.reshape(6, -1) for e in jax.tree.leaves(each["learned"])]
    rows = np.concatenate(learned, 1)
    got = fnn.per_example.gram(layer, fnn.mse, example_axes=1)
    if target.ndim == 2:
        got = fnn.per_example.gram(layer, fnn.mse)
    np.testing.assert_allclose(got(params, x, target), rows @ rows.T, rtol=2e-4, atol=1e-4)
    norms = fnn.per_example.squared_norms(layer, fnn.mse, example_axes=1)(params, x, target)
    np.testing.assert_allclose(norms, (rows * rows).sum(1), rtol=2e-4)


def test_lora_inside_out_is_refused_by_name():
    layer = fnn.lora(fnn.repeat(fnn.skip(fnn.dense(3, 3)), 2), 2)
    params, x = layer.init(KEY), jnp.ones((4, 3))
    with pytest.raises(TypeError, match=r"lora: expected .* got Direct"):
        layer.backward(params, layer.forward(params, x)[1], x)


def test_what_lora_learns_passes_the_checker_and_what_is_frozen_has_no_gradient():
    layer = fnn.lora(fnn.serial(fnn.dense(4, 3), fnn.tanh, fnn.dense(3, 2)), 2)
    x = jnp.cos(jnp.arange(20.0).reshape(5, 4))
    given = jax.tree.map(lambda p: p + 0.3, layer.init(KEY))
    whole = lambda learned: {"frozen": given["frozen"], "learned": learned}

    def backward(learned, residuals, dy, reduce=fnn.total):
        dparams, dx = layer.backward(whole(learned), residuals, dy, reduce)
        return dparams["learned"], dx

    learner = fnn.Layer(
        lambda key: given["learned"], lambda p, x: layer.forward(whole(p), x), backward
    )
    fnn.verify.check_layer(learner, given["learned"], x).raise_for_verdict()
    by_autodiff = jax.grad(lambda params: layer.forward(params, x)[0].sum())(given)
    assert not any(leaf.any() for leaf in jax.tree.leaves(by_autodiff["frozen"]))
