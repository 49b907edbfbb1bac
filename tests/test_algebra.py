"""What is done to a network is a network: masked, frozen, remat, reversible, compute_in."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import per_example, verify

KEY = jax.random.key(13)
X = jax.random.normal(KEY, (6, 4))
BLOCK = fnn.serial(fnn.dense(4, 4), fnn.tanh)


def run(layer, params, x, dy, **reduce):
    y, residuals = layer.forward(params, x)
    return y, *layer.backward(params, residuals, dy, **reduce)


def bits(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.uniform(size=p.shape) < 0.6, jnp.float32), tree)


# Masks.


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


# What does not learn.


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


# Memory.


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


# Precision.


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


# All of them, in one network, at a key.


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
