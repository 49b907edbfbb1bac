"""The laws of composition, and what `repeat` keeps in memory."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import per_example, verify
from fnn.verify import cases

F, G, H = fnn.dense(4, 5), fnn.tanh, fnn.dense(5, 3)
KEYS = jax.random.split(jax.random.key(7), 4)
KEY = KEYS[0]
X = jax.random.normal(KEYS[3], (6, 4))
BLOCK = fnn.serial(fnn.dense(4, 4), fnn.tanh)


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


@pytest.mark.sampled(6)
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


def bits(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.uniform(size=p.shape) < 0.6, jnp.float32), tree)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "layer",
    [
        fnn.dense(4, 3),
        fnn.mlp((4, 5, 3)),
        fnn.serial(fnn.repeat(fnn.skip(BLOCK), 3), fnn.dense(4, 3)),
        fnn.serial(fnn.repeat(fnn.repeat(BLOCK, 2), 2), fnn.dense(4, 3)),
    ],
)
def test_masked_is_the_layer_at_masked_params(layer):
    params = layer.init(KEY)
    mask = bits(params)
    network, loss, y = fnn.masked(layer, mask), fnn.mse, jnp.ones((6, 3))

    @jax.jit
    def everything(params):
        one = jax.grad(lambda p, x, y: loss.value(network.forward(p, x)[0], y))
        return (
            fnn.value_and_grad(network, loss)(params, X, y),
            jax.value_and_grad(fnn.objective(network, loss))(params, X, y),
            jax.vmap(one, (None, 0, 0))(params, X, y),
            per_example.squared_norms(network, loss)(params, X, y),
            per_example.gram(network, loss)(params, X, y),
            per_example.clipped_value_and_grad(network, loss, 0.5)(params, X, y)[1],
            fnn.curvature.ggn_diagonal(network, loss)(params, X, y),
        )

    got, expected, each, norms, gram, clipped, diagonal = everything(params)
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)
    flat = np.concatenate([np.reshape(g, (6, -1)) for g in jax.tree.leaves(each)], 1)
    squares = np.square(flat).sum(1)
    np.testing.assert_allclose(norms, squares, rtol=1e-4)
    np.testing.assert_allclose(gram, flat @ flat.T, rtol=1e-3, atol=1e-4)
    scale = np.minimum(1, 0.5 / np.sqrt(squares)) / 6
    by_hand = jax.tree.map(lambda g: np.tensordot(scale, g, 1), each)
    chex.assert_trees_all_close(clipped, by_hand, rtol=1e-4, atol=1e-6)
    zipped = zip(*map(jax.tree.leaves, (got[1], diagonal, mask)), strict=True)
    for g, d, m in zipped:
        assert not np.asarray(g)[np.asarray(m) == 0].any()
        assert not np.asarray(d)[np.asarray(m) == 0].any()


def test_the_checker_passes_masks():
    layer = fnn.serial(fnn.repeat(fnn.skip(BLOCK), 3), fnn.dense(4, 3))
    params = layer.init(KEY)
    verify.check_layer(fnn.masked(layer, bits(params)), params, X).raise_for_verdict()


def test_a_mask_that_does_not_fit_is_refused():
    layer = fnn.masked(fnn.dense(4, 3), {"W": jnp.ones((3, 4)), "b": jnp.ones(4)})
    with pytest.raises(ValueError, match=r"masked: expected a mask of shapes .*\(3,\).*\(4,\)"):
        layer.forward(fnn.dense(4, 3).init(KEY), X)


def test_pruned_weights_stay_pruned_in_training():
    layer = fnn.mlp((4, 8, 1))
    params = layer.init(KEY)
    mask = bits(params)
    start = jax.tree.map(jnp.multiply, params, mask)
    train = fnn.make_train(fnn.masked(layer, mask), fnn.mse, fnn.adam(0.05), 3, 20)
    state, losses = jax.jit(train)(start, (X, X[:, :1]), KEY)
    assert losses[-1] < losses[0]
    for p, m in zip(jax.tree.leaves(state.params), jax.tree.leaves(mask), strict=True):
        assert not np.asarray(p)[np.asarray(m) == 0].any()


def test_frozen_parameters_have_no_gradient_and_what_is_before_them_has_its_own():
    network = fnn.serial(
        fnn.dense(4, 4), fnn.frozen(fnn.repeat(fnn.skip(BLOCK), 2)), fnn.dense(4, 3)
    )
    plain = fnn.serial(fnn.dense(4, 4), fnn.repeat(fnn.skip(BLOCK), 2), fnn.dense(4, 3))
    params, y = network.init(KEY), jnp.ones((6, 3))

    @jax.jit
    def everything(params):
        return (
            fnn.value_and_grad(network, fnn.mse)(params, X, y),
            fnn.value_and_grad(plain, fnn.mse)(params, X, y),
            jax.value_and_grad(fnn.objective(network, fnn.mse))(params, X, y),
            per_example.squared_norms(network, fnn.mse)(params, X, y),
            per_example.squared_norms(plain, fnn.mse)(params, X, y),
            per_example.clipped_value_and_grad(network, fnn.mse, 1e9)(params, X, y)[1],
            per_example.second_moment(network, fnn.mse)(params, X, y),
        )

    (value, grads), (same, full), twin, norms, all_norms, clipped, second = everything(params)
    expected = (same, full[0], full[2])
    chex.assert_trees_all_close((value, grads[0], grads[2]), expected, rtol=1e-6)
    assert not any(np.any(g) for g in jax.tree.leaves((grads[1], second[1])))
    chex.assert_trees_all_close((value, grads), twin, rtol=1e-5, atol=1e-6)
    assert (norms < all_norms).all()
    chex.assert_trees_all_close(clipped, grads, rtol=1e-5, atol=1e-7)


FROZEN = fnn.frozen(fnn.serial(fnn.dense(4, 4), fnn.tanh))


@pytest.mark.parametrize(
    "middle",
    [
        FROZEN,
        fnn.repeat(FROZEN, 2),
        fnn.remat(FROZEN),
        fnn.frozen(fnn.repeat(fnn.serial(fnn.dense(4, 4), fnn.layer_norm(4)), 2)),
        fnn.serial(fnn.fork(FROZEN, fnn.gated(FROZEN, FROZEN)), fnn.add),
        fnn.frozen(fnn.reversible(fnn.dense(2, 2), fnn.serial(fnn.dense(2, 2), fnn.tanh), 2)),
        fnn.compute_in(FROZEN, jnp.float64),
    ],
    ids=repr,
)
def test_frozen_parameters_are_constants_for_second_derivatives_too(middle):
    with jax.enable_x64(True):
        network, loss = fnn.serial(fnn.dense(3, 4), middle, fnn.dense(4, 2)), fnn.mse
        rng = np.random.default_rng(5)
        draw = lambda: jax.tree.map(
            lambda a: jnp.asarray(rng.normal(size=a.shape)), jax.eval_shape(network.init, KEY)
        )
        params, u, v = draw(), draw(), draw()
        x, y = jnp.asarray(rng.normal(size=(5, 3))), jnp.asarray(rng.normal(size=(5, 2)))

        def of_constants(params):
            kept = (params[0], jax.lax.stop_gradient(params[1]), params[2])
            return fnn.objective(network, loss)(kept, x, y)

        @jax.jit
        def both(v):
            ours = lambda params: fnn.value_and_grad(network, loss)(params, x, y)[1]
            product = lambda f: jax.jvp(f, (params,), (v,))[1]
            return product(ours), product(jax.grad(of_constants))

        ours, theirs = both(v)
        chex.assert_trees_all_close(ours, theirs, rtol=1e-9, atol=1e-12)
        dot = lambda a, b: sum(map(jnp.vdot, jax.tree.leaves(a), jax.tree.leaves(b)))
        np.testing.assert_allclose(dot(u, ours), dot(v, both(u)[0]), rtol=1e-9)


def scaled(d):
    """One weight per feature, with autodiff's derivative."""
    init = lambda key: {"w": jax.random.normal(key, (d,))}
    return fnn.from_single(init, lambda params, x: jnp.tanh(params["w"] * x))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("m", [2, 3])
@pytest.mark.parametrize(
    "layer",
    [
        fnn.repeat(scaled(4), 3),
        fnn.repeat(fnn.repeat(scaled(4), 2), 3),
        fnn.repeat(fnn.serial(fnn.frozen(fnn.dense(4, 4)), scaled(4)), 3),
        fnn.repeat(fnn.compute_in(fnn.serial(fnn.dense(4, 4), scaled(4)), jnp.float64), 3),
        fnn.reversible(scaled(2), fnn.dense(2, 2), 3),
        fnn.reversible(scaled(2), fnn.repeat(scaled(2), 2), 3),
    ],
    ids=repr,
)
def test_masks_of_copies_whatever_their_factors(layer, m):
    """m, the number of examples, may be that of the copies."""
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        mask = jax.tree.map(lambda a: rng.random(a.shape) < 0.6, jax.eval_shape(layer.init, KEY))
        network = fnn.masked(layer, mask)
        params = jax.tree.map(lambda p: p.astype(jnp.float64), network.init(KEY))
        x, y = jnp.asarray(rng.normal(size=(m, 4))), jnp.asarray(rng.normal(size=(m, 4)))
        one = jax.jit(jax.grad(fnn.objective(network, fnn.mse)))
        each = [one(params, x[n : n + 1], y[n : n + 1]) for n in range(m)]
        each = [jax.tree.leaves(jax.device_get(gradients)) for gradients in each]
        norms = jax.jit(fnn.per_example.squared_norms(network, fnn.mse))(params, x, y)
        moment = jax.jit(fnn.per_example.second_moment(network, fnn.mse))(params, x, y)
    np.testing.assert_allclose(norms, [sum((g**2).sum() for g in of) for of in each], rtol=1e-9)
    for got, *of in zip(jax.tree.leaves(moment), *each, strict=True):
        np.testing.assert_allclose(got, sum(g**2 for g in of) / m, rtol=1e-9, atol=1e-14)


@pytest.mark.optimized
@pytest.mark.parametrize("wrap", [lambda f: f, fnn.remat, lambda f: fnn.compute_in(f, "bfloat16")])
@pytest.mark.parametrize(
    "layer",
    [
        fnn.at(fnn.batch_norm(4), KEY),
        fnn.from_function(fnn.dense(4, 4).init, partial(fnn.apply, fnn.dense(4, 4))),
    ],
    ids=["batch_norm", "from_function"],
)
def test_what_has_no_gradient_per_example_can_be_frozen(layer, wrap):
    network, free = (fnn.serial(fnn.dense(4, 4), f) for f in (fnn.frozen(wrap(layer)), wrap(layer)))
    params, x, y = network.init(KEY), *jax.random.normal(KEY, (2, 6, 4))
    value, grads = fnn.value_and_grad(network, fnn.mse)(params, x, y)
    expected_value, expected = fnn.value_and_grad(free, fnn.mse)(params, x, y)
    assert value == expected_value
    chex.assert_trees_all_equal(grads[0], expected[0])
    chex.assert_trees_all_equal(grads[1], jax.tree.map(jnp.zeros_like, expected[1]))
    with pytest.raises(TypeError, match="its gradient exists for the whole batch only"):
        fnn.per_example.squared_norms(network, fnn.mse)(params, x, y)


def test_frozen_weight_gradients_are_not_computed():
    """The flops of the compiled gradient: those of dX are there, those of dW are not."""
    m, d = 64, 128
    x = jax.ShapeDtypeStruct((m, d), jnp.float32)

    def flops(layer):
        network = fnn.serial(fnn.dense(d, d), layer)
        params = jax.eval_shape(network.init, KEY)
        step = jax.jit(fnn.value_and_grad(network, fnn.mse)).lower(params, x, x)
        return step.compile().cost_analysis()["flops"]

    saved = flops(fnn.dense(d, d)) - flops(fnn.frozen(fnn.dense(d, d)))
    assert abs(saved - 2 * m * d * d) < 0.05 * 2 * m * d * d


def test_nothing_flows_back_through_stop_gradient():
    network = fnn.serial(fnn.dense(4, 4), fnn.stop_gradient, fnn.dense(4, 3))
    params, y = network.init(KEY), jnp.ones((6, 3))
    got = fnn.value_and_grad(network, fnn.mse)(params, X, y)
    chex.assert_trees_all_close(
        got, jax.value_and_grad(fnn.objective(network, fnn.mse))(params, X, y), rtol=1e-5
    )
    assert not any(np.any(g) for g in jax.tree.leaves(got[1][0]))
    assert np.any(got[1][2]["W"])


@pytest.mark.long
def test_they_nest_at_a_key():
    inner = fnn.serial(fnn.dense(4, 4), fnn.dropout(0.3), fnn.tanh)
    network = fnn.serial(
        fnn.remat(fnn.repeat(fnn.skip(inner), 2)),
        fnn.masked(inner, bits(inner.init(KEY))),
        fnn.reversible(fnn.serial(fnn.dense(2, 2), fnn.dropout(0.5)), fnn.dropout(0.1), 2),
        fnn.fork(fnn.frozen(inner), fnn.identity),
        fnn.concatenate,
        fnn.dense(8, 3),
    )
    params, y = network.init(KEY), jnp.ones((6, 3))
    layer = fnn.at(network, KEY)
    got = jax.jit(fnn.value_and_grad(layer, fnn.mse))(params, X, y)
    expected = jax.jit(jax.value_and_grad(fnn.objective(layer, fnn.mse)))(params, X, y)
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-6)
    output = jax.jit(lambda key: fnn.at(network, key).forward(params, X)[0])
    assert not np.allclose(output(KEY), output(jax.random.key(1)))
    norms = jax.jit(per_example.squared_norms(layer, fnn.mse))(params, X, y)
    assert np.isfinite(norms).all()
    statistics = jax.jit(lambda params: fnn.statistics(network, params, X))(params)
    assert statistics[1] == ((), (), ())
    losses = jax.jit(fnn.make_train(network, fnn.mse, fnn.adam(0.01), 2, 5))(params, (X, y), KEY)[1]
    assert losses.shape == (5,)


# What every combinator of the catalogue owes its layers, and those that it can't list.
COMBINATORS = {name: of for name, (of, _) in cases.COMBINATORS.items()} | {
    "frozen": fnn.frozen,
    "on": lambda f: fnn.serial(fnn.fork(fnn.identity, fnn.identity), fnn.on(1, f), fnn.add),
}
every_combinator = pytest.mark.parametrize("of", COMBINATORS.values(), ids=COMBINATORS)


def input_of(network):
    """An input of the width that the combinator takes: 4, or what it doubles or begins with."""
    for width in (4, 5, 8):
        x = jax.random.normal(KEY, (6, width))
        try:
            network.forward(network.init(KEY), x)
        except (ValueError, TypeError):
            continue
        return x
    raise AssertionError("no width fits")


@every_combinator
def test_every_combinator_hands_keys_on(of):
    network = of(fnn.serial(fnn.dense(4, 4), fnn.dropout(0.5)))
    x, params = input_of(network), network.init(KEY)
    run = jax.jit(lambda key: fnn.at(network, key).forward(params, x)[0])
    first, again, other = run(KEY), run(KEY), run(jax.random.key(9))
    chex.assert_trees_all_equal(first, again)
    plain = jax.jit(lambda: network.forward(params, x)[0])()
    for different in (other, plain):
        pairs = zip(jax.tree.leaves(first), jax.tree.leaves(different), strict=True)
        assert any(not np.allclose(a, b) for a, b in pairs)


ONE_LAYER = {"skip", "masked", "on", "remat", "compute_in", "frozen"}
"""Combinators that use their layer once; the others of the catalogue use it more than once."""


TWINS = {
    "gated twins": lambda f: fnn.gated(f, f),
    "reversible twins": lambda f: fnn.reversible(f, f, 2),
    "fork twins": lambda f: fnn.fork(f, f),
}
"""Equal branches: in different ones, keys that are split further differ even if one is shared."""


@pytest.mark.parametrize("name", COMBINATORS | TWINS)
def test_every_use_of_a_random_layer_has_a_key_of_its_own(name):
    """And backward draws with the keys of forward."""
    seen = {"forward": [], "backward": []}

    def at(key, statistics):
        if key is None:
            return fnn.identity

        def note(when):
            seen[when].append(tuple(np.ravel(jax.random.key_data(key)).tolist()))

        return fnn.identity._replace(
            forward=lambda params, x: (note("forward") or x, ()),
            backward=lambda params, residuals, dy, reduce=fnn.total: ((), note("backward") or dy),
        )

    def noting(params, x, key):
        return x, ()

    random = fnn.identity._replace(varying=fnn.Varying(at, noting))
    of = (COMBINATORS | TWINS)[name]
    network = of(fnn.serial(fnn.dense(4, 4), random))
    params, x = network.init(KEY), input_of(network)
    with jax.disable_jit():  # so that keys in a scan have values
        y, residuals = fnn.at(network, KEY).forward(params, x)
        forward = seen["forward"][:]
        seen["forward"].clear()
        fnn.at(network, KEY).backward(params, residuals, y)
    assert len(forward) > 1 or name in ONE_LAYER
    assert len(set(forward)) == len(forward)
    assert sorted(seen["backward"]) == sorted(forward)
    assert set(seen["forward"]) <= set(forward)


@every_combinator
def test_every_combinator_hands_statistics_on(of):
    network = of(fnn.serial(fnn.dense(4, 4), fnn.batch_norm(4)))
    x, params = 3 + input_of(network), network.init(KEY)

    @jax.jit
    def run(x):
        s = fnn.statistics(network, params, x)
        return s, fnn.at(network, statistics=s).forward(params, x)[0]

    s, y = run(x)
    assert {leaf.shape[-1] for leaf in jax.tree.leaves(s)} == {4}
    plain, _ = network.forward(params, x)
    pairs = zip(jax.tree.leaves(y), jax.tree.leaves(plain), strict=True)
    assert any(not np.allclose(a, b, atol=1e-3) for a, b in pairs)
