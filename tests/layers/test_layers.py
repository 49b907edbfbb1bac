"""Every layer of the registry: its backward against autodiff, and the laws of a vjp."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import EXACT as LAYERS, layer_inputs, on_floats
from jax.flatten_util import ravel_pytree

import fnn
from fnn.backprop import per_example_backward

DTYPES = [pytest.param(jnp.float32, 1e-5, marks=pytest.mark.long), (jnp.bfloat16, 6e-2)]
every_layer = pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)


def relative(got, expected):
    """The largest relative difference of any leaf of two trees of one structure; absolute where
    what is expected is zero, as a batch of one example's gradient in batch normalisation."""
    chex.assert_trees_all_equal_shapes_and_dtypes(got, expected)
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    norms = [(float(jnp.linalg.norm(g - e)), float(jnp.linalg.norm(e))) for g, e in pairs]
    return max(error / size if size > 1e-6 else error for error, size in norms)


def without_float0(tree):
    """JAX's gradients of integers are of dtype float0; ours are None."""
    return jax.tree.map(lambda a: None if a.dtype == jax.dtypes.float0 else a, tree)


def dot(a, b):
    a, b = jax.tree.leaves(without_float0(a)), jax.tree.leaves(without_float0(b))
    return sum((u * v).sum() for u, v in zip(a, b, strict=True))


def wave(shape, dtype, shift=1.0):
    """Numbers between -1 and 1 without symmetry, the same at each call."""
    return jnp.cos(jnp.arange(np.prod(shape), dtype=dtype) + shift).reshape(shape)


def tangent(a):
    if jnp.issubdtype(a.dtype, jnp.integer):
        return np.zeros(a.shape, jax.dtypes.float0)
    return wave(a.shape, a.dtype)


@every_layer
@pytest.mark.parametrize("batch", [(), (2, 3)], ids=str)
def test_backward_is_the_vjp_of_forward(case, batch):
    @jax.jit
    def both(params, x, dy):
        y, pull, residuals = jax.vjp(case.layer.forward, params, x, has_aux=True)
        return y, case.layer.backward(params, residuals, dy), without_float0(pull(dy))

    with jax.enable_x64(True):
        params, x, dy = layer_inputs(case, jnp.float64, batch)
        y, got, expected = both(params, x, dy)
        chex.assert_trees_all_equal_shapes(y, dy)
        assert relative(got, expected) < 1e-12


WITH_PARAMS = [
    case
    for case in LAYERS
    if case.name != "batch_norm, training"  # mixes the examples
    and jax.tree.leaves(jax.eval_shape(case.layer.init, jax.random.key(0)))
]


@pytest.mark.parametrize("case", WITH_PARAMS, ids=lambda case: case.name)
@pytest.mark.parametrize("batch", [pytest.param((3,), marks=pytest.mark.long), (3, 2)], ids=str)
def test_every_reduction_is_that_of_each_examples_vjp(case, batch):
    """Of three examples, with two positions each beside those that a layer has by itself, and
    without, where some reductions have a shorter way."""

    def everything(factor, examples):
        return {
            "rows": factor.rows(examples).value,
            "squared_norm": factor.squared_norm(examples),
            "norm": factor.norm(examples),
            "products": factor.products(examples),
            "squared": factor.squared(examples).total(),
            "weighted": factor.weighted(jnp.array([2.0, -1.0, 0.5])).total(),
            "total": factor.total(),
        }

    @jax.jit
    def both(params, x, dy):
        one = lambda x, dy: jax.vjp(lambda p: case.layer.forward(p, x)[0], params)[1](dy)[0]
        _, residuals = case.layer.forward(params, x)
        got = per_example_backward(case.layer, params, residuals, dy, everything, (3,))
        return got, jax.vmap(one)(x, dy)

    with jax.enable_x64(True):
        got, each = both(*layer_inputs(case, jnp.float64, batch))
    form = jax.tree.structure(each)
    for reduced, g in zip(form.flatten_up_to(got), form.flatten_up_to(each), strict=True):
        # The axes of a repeat's copies are in front of all that is reduced.
        rows, copies = np.asarray(reduced["rows"]), np.ndim(reduced["norm"]) - 1
        rows, g = np.moveaxis(rows, copies, 0), np.asarray(g)
        expected = {
            "rows": g,
            "squared": (g**2).sum(0),
            "weighted": np.tensordot([2.0, -1.0, 0.5], g, 1),
            "total": g.sum(0),
        }
        squares = (g**2).sum(tuple(range(1 + copies, g.ndim)))
        expected["squared_norm"] = np.moveaxis(squares, 0, -1)
        expected["norm"] = np.sqrt(expected["squared_norm"])
        flat = g.reshape(*g.shape[: 1 + copies], -1)
        expected["products"] = np.einsum("n...i,k...i->...nk", flat, flat)
        for name, right in expected.items():
            left = rows if name == "rows" else reduced[name]
            np.testing.assert_allclose(left, right, rtol=1e-8, atol=1e-9, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize(
    "case",
    [case for case in LAYERS if case.name != "attention, padded"],  # a mask has no tangent
    ids=lambda case: case.name,
)
def test_backward_is_linear_and_the_adjoint_of_forward(case):
    """J^T (3u + w) = 3 J^T u + J^T w; <J v, u> = <v, J^T u> with J v by forward mode; and
    without any autodiff, J v as a central difference."""

    @jax.jit
    def all_three(primal, v, u, w, h):
        forward, params = case.layer.forward, primal[0]
        _, pushed, residuals = jax.jvp(forward, primal, v, has_aux=True)
        ahead, _ = forward(*on_floats(lambda a, da: a + h * da, primal, v))
        behind, _ = forward(*on_floats(lambda a, da: a - h * da, primal, v))
        pulled = [
            case.layer.backward(params, residuals, d)
            for d in (u, w, jax.tree.map(lambda a, b: 3 * a + b, u, w))
        ]
        slope = jax.tree.map(lambda a, b: (a - b) / (2 * h), ahead, behind)
        return pushed, slope, pulled

    with jax.enable_x64(True):
        params, x, u = layer_inputs(case, jnp.float64)
        v = jax.tree.map(tangent, (params, x))
        w = jax.tree.map(lambda a: wave(a.shape, a.dtype, shift=2.0), u)
        pushed, difference, (of_u, of_w, of_sum) = all_three((params, x), v, u, w, 1e-6)
        assert relative(of_sum, jax.tree.map(lambda a, b: 3 * a + b, of_u, of_w)) < 1e-12
        np.testing.assert_allclose(dot(pushed, u), dot(v, of_u), rtol=1e-11)
        np.testing.assert_allclose(dot(difference, u), dot(v, of_u), rtol=1e-6)


@every_layer
@pytest.mark.sampled(4)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_narrow_dtypes_are_kept(case, dtype, tolerance):
    @jax.jit
    def both(params, x, dy):
        y, residuals = case.layer.forward(params, x)
        return y, case.layer.backward(params, residuals, dy)

    inputs = layer_inputs(case, dtype)
    got = both(*inputs)
    assert {a.dtype for a in jax.tree.leaves(got) if a.dtype != bool} == {jnp.dtype(dtype)}
    with jax.enable_x64(True):
        expected = both(*on_floats(lambda a: a.astype(jnp.float64), inputs))
        wide = lambda tree: ravel_pytree(jax.tree.map(lambda a: a.astype(jnp.float64), tree))[0]
        assert relative(wide(got), wide(expected)) < tolerance


@every_layer
@pytest.mark.sampled(4)
def test_jit_equals_eager_and_compiles_once(case):
    params, x, dy = layer_inputs(case, jnp.float32)
    traced = 0

    def both(params, x, dy):
        nonlocal traced
        traced += 1
        y, residuals = case.layer.forward(params, x)
        return y, case.layer.backward(params, residuals, dy)

    expected = both(params, x, dy)
    compiled = jax.jit(both)
    chex.assert_trees_all_close(compiled(params, x, dy), expected, rtol=2e-5, atol=2e-6)
    compiled(*on_floats(lambda a: 2 * a, (params, x)), dy)
    assert traced == 2  # once eagerly, once by jit


@every_layer
@pytest.mark.sampled(4)
def test_vmap_equals_a_loop(case):
    """Over models and inputs at once, the residuals handed from one vmap to the next."""
    layer = case.layer
    inputs = layer_inputs(case, jnp.float32)
    copies = [on_floats(lambda a, c=c: c * a, inputs) for c in (1, 0.5, -1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *copies)

    def one(params, x, dy):
        y, residuals = layer.forward(params, x)
        return y, layer.backward(params, residuals, dy)

    @jax.jit
    def at_once(params, x, dy):
        y, residuals = jax.vmap(layer.forward)(params, x)
        return y, jax.vmap(lambda p, r, d: layer.backward(p, r, d))(params, residuals, dy)

    loop = jax.jit(lambda stacked: jax.lax.map(lambda inputs: one(*inputs), stacked))
    chex.assert_trees_all_close(at_once(*stacked), loop(stacked), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("case", LAYERS[::8], ids=lambda case: case.name)
def test_differentiable_runs_the_own_backward(case):
    """Through jax.grad, with the layer's backward scaled to tell it from autodiff's."""

    def thrice(params, residuals, dy, reduce=fnn.total):
        return jax.tree.map(lambda a: 3 * a, case.layer.backward(params, residuals, dy, reduce))

    apply = fnn.differentiable(case.layer._replace(backward=thrice))

    @jax.jit
    def both(params, x, dy):
        value = lambda p, x: dot(apply(p, x), dy)
        got = jax.grad(value, argnums=(0, 1), allow_int=True)(params, x)
        return without_float0(got), thrice(params, case.layer.forward(params, x)[1], dy)

    got, expected = both(*layer_inputs(case, jnp.float32))
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


def test_a_neuron_is_a_weighted_sum_and_a_bias():
    params = {"W": jnp.array([[1.0, 2.0, 3.0], [0.0, -1.0, 0.5]]), "b": jnp.array([0.25, -4.0])}
    z, _ = fnn.dense(3, 2).forward(params, jnp.array([2.0, -1.0, 1.0]))
    np.testing.assert_array_equal(z, [1 * 2 + 2 * -1 + 3 * 1 + 0.25, 1 + 0.5 - 4])


def test_dense_initializers_get_the_key_and_the_shape():
    layer = fnn.dense(3, 2, weight_init=jax.random.uniform, bias_init=jax.random.normal)
    params = layer.init(jax.random.key(0))
    assert params["W"].shape == (2, 3)
    assert float(params["W"].min()) >= 0
    assert float(jnp.abs(params["b"]).max()) > 0
    other = layer.init(jax.random.key(1))
    assert not np.array_equal(params["W"], other["W"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_relu_at_zero_has_the_derivative_zero(dtype):
    x = jnp.array([-1.0, -0.0, 0.0, 1.0, jnp.nan], dtype)
    y, residuals = fnn.relu.forward((), x)
    np.testing.assert_array_equal(np.asarray(y, np.float32), [0, 0, 0, 1, np.nan])
    _, dx = fnn.relu.backward((), residuals, jnp.ones(4 + 1, dtype))
    np.testing.assert_array_equal(np.asarray(dx, np.float32)[:4], [0, 0, 0, 1])


@pytest.mark.parametrize(
    "layer",
    [
        fnn.sigmoid,
        fnn.tanh,
        fnn.relu,
        fnn.softmax,
        fnn.elu(),
        fnn.selu,
        fnn.gelu,
        fnn.silu,
        fnn.softplus,
        fnn.leaky_relu(),
    ],
)
def test_activations_are_finite_far_from_zero(layer):
    x = jnp.array([-1e4, -50.0, 0.0, 50.0, 1e4])
    y, residuals = layer.forward((), x)
    _, dx = layer.backward((), residuals, jnp.ones(5))
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()


def test_layer_norm_gives_mean_zero_and_variance_one():
    layer = fnn.layer_norm(50, eps=1e-12)
    x = 1e3 + 5 * jax.random.normal(jax.random.key(0), (4, 50))
    y, _ = layer.forward(layer.init(jax.random.key(1)), x)
    np.testing.assert_allclose(y.mean(-1), np.zeros(4), atol=1e-4)
    np.testing.assert_allclose(y.std(-1), np.ones(4), rtol=1e-4)


def test_the_weights_of_an_mlp_are_drawn_as_it_is_told():
    params = fnn.mlp((3, 4, 2), weight_init=fnn.initializers.ones).init(jax.random.key(0))
    for i in (0, 2):
        assert (params[i]["W"] == 1).all()
        assert (params[i]["b"] == 0).all()


def bad_calls():
    dense, x = fnn.dense(3, 2), jnp.ones((4, 3))
    params = dense.init(jax.random.key(0))
    net = fnn.mlp((3, 4, 2))
    yield (
        ValueError,
        r"dense\(3, 2\).*\(\.\.\., 3\).*\(4, 5\)",
        dense.forward,
        params,
        jnp.ones((4, 5)),
    )
    yield (
        ValueError,
        r"dense\(3, 2\).*\(2, 3\).*\(3, 2\)",
        dense.forward,
        {"W": params["W"].T, "b": params["b"]},
        x,
    )
    yield ValueError, r"dense\(3, 2\).*params", dense.forward, (), x
    yield ValueError, r"dense\(3, 2\).*got \(\)", dense.forward, params, jnp.ones(())
    yield TypeError, r"dense\(3, 2\).*int32.*float32", dense.forward, params, jnp.ones((4, 3), int)
    yield TypeError, "bfloat16", dense.forward, params, x.astype(jnp.bfloat16)
    yield ValueError, r"dense\(0, 2\)", fnn.dense, 0, 2
    yield ValueError, "elu: expected alpha above 0, got -1", fnn.elu, -1
    yield ValueError, r"dense\(3, -1\)", fnn.dense, 3, -1
    yield ValueError, r"dense\(3, 2.5\)", fnn.dense, 3, 2.5
    yield ValueError, "layer_norm.*eps", lambda: fnn.layer_norm(3, eps=float("nan"))
    yield (
        ValueError,
        r"layer_norm\(3\).*\(4, 2\)",
        fnn.layer_norm(3).forward,
        {"gain": jnp.ones(3), "bias": jnp.ones(3)},
        jnp.ones((4, 2)),
    )
    yield ValueError, "serial.*4 layers, got 2", net.forward, net.init(jax.random.key(0))[:2], x
    yield TypeError, "serial: argument 1.*call it", fnn.serial, fnn.relu, fnn.elu
    yield TypeError, "skip.*Layer.*3", fnn.skip, 3
    yield TypeError, "repeat.*Layer", fnn.repeat, [fnn.relu], 3
    yield ValueError, "repeat.*at least 1, got 0", fnn.repeat, fnn.relu, 0
    yield ValueError, "skip.*keeps shape", fnn.skip(dense).forward, params, x
    yield (
        ValueError,
        "repeat.*keeps shape",
        fnn.repeat(dense, 1).forward,
        jax.tree.map(lambda a: a[None], params),
        x,
    )
    yield (
        ValueError,
        "repeat.*leading axis of 2.*3",
        fnn.repeat(fnn.dense(3, 3), 2).forward,
        (fnn.repeat(fnn.dense(3, 3), 3).init(jax.random.key(0))),
        x,
    )
    yield ValueError, "mlp.*at least an input", fnn.mlp, (3,)
    yield TypeError, "reduce.*Outer.*int", fnn.total, 3


@pytest.mark.parametrize("call", list(bad_calls()), ids=lambda call: call[1])
def test_bad_calls_are_named(call):
    error, message, f, *args = call
    with pytest.raises(error, match=message):
        f(*args)
