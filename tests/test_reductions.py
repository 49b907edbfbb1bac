"""Factors and reductions: each reduction of each factor against the gradients held one by one."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import curvature, per_example, reductions
from fnn.backprop import per_example_backward
from fnn.reductions import Direct, Masked, Outer, Rows, Sum, Whole

RNG = np.random.default_rng(5)
KEY = jax.random.key(5)
MASK = RNG.uniform(size=(3, 2))


def draw(*shape):
    return RNG.normal(size=shape)


def outer(*batch):
    return Outer(draw(*batch, 3), draw(*batch, 2))


def rows_of(*batch):
    return Rows(RNG.integers(3, size=batch), draw(*batch, 2), 3)


# name -> (the factor, its number of example axes, the gradient (examples, 3, 2) by hand)
def explicit(factor, examples):
    """One gradient per example, by loops over examples and positions."""
    if isinstance(factor, Masked):
        return explicit(factor.factor, examples) * factor.mask
    if isinstance(factor, Sum):
        return explicit(factor.a, examples) + explicit(factor.b, examples)
    n = int(np.prod(factor.batch[:examples]))
    if isinstance(factor, Outer):
        left, right = (a.reshape(n, -1, a.shape[-1]) for a in (factor.left, factor.right))
        return np.stack(
            [
                sum(np.outer(u, v) for u, v in zip(*pair, strict=True))
                for pair in zip(left, right, strict=True)
            ]
        )
    if isinstance(factor, Rows):
        one_hot = np.eye(3)[factor.index]
        return explicit(Outer(one_hot, factor.value), examples)
    value = factor.value.reshape(n, -1, 3, 2)
    return np.stack([sum(g) for g in value])


FACTORS = {
    "outer": (outer(4), 1),
    "outer, two example axes": (outer(2, 3), 2),
    "outer, a few positions": (outer(4, 1, 1), 1),
    "outer, many positions": (outer(4, 5, 2), 1),
    "direct": (Direct(draw(4, 3, 2), 2), 1),
    "direct, positions": (Direct(draw(4, 5, 3, 2), 2), 1),
    "rows": (rows_of(4), 1),
    "rows, two example axes": (rows_of(2, 3), 2),
    "rows, repeated in positions": (rows_of(4, 5, 2), 1),
    "rows, masked": (Masked(rows_of(4, 5), MASK), 1),
    "rows, and an outer": (Sum(rows_of(4, 5), outer(4)), 1),
    "masked": (Masked(outer(4), MASK), 1),
    "masked, positions": (Masked(outer(4, 3), MASK), 1),
    "masked direct": (Masked(Direct(draw(4, 3, 2), 2), MASK), 1),
    "masked twice": (Masked(Masked(outer(4), MASK), MASK - 0.5), 1),
    "sum": (Sum(outer(4), outer(4)), 1),
    "sum, other positions": (Sum(outer(4, 3), outer(4, 2, 2)), 1),
    "sum of three": (Sum(outer(4), Sum(outer(4), outer(4, 2))), 1),
    "sum, masked": (Sum(Masked(outer(4), MASK), outer(4)), 1),
    "masked sum": (Masked(Sum(outer(4), outer(4)), MASK), 1),
}
every_factor = pytest.mark.parametrize(
    ("factor", "examples"), list(FACTORS.values()), ids=list(FACTORS)
)


@every_factor
@pytest.mark.sampled(4)
def test_every_reduction_is_that_of_the_gradients_one_by_one(factor, examples):
    g = explicit(factor, examples)
    batch = factor.batch[:examples]
    weight = RNG.uniform(size=batch)
    with jax.enable_x64(True):
        factor = jax.tree.map(jnp.asarray, factor)
        total, rows = factor.total(), factor.rows(examples)
        norms, lengths = factor.squared_norm(examples), factor.norm(examples)
        inner = factor.products(examples)
        squares = factor.squared(examples).total()
        weighted = factor.weighted(jnp.asarray(weight)).total()
    np.testing.assert_allclose(total, g.sum(0), rtol=1e-12)
    np.testing.assert_allclose(rows.value, g.reshape(*batch, 3, 2), rtol=1e-12)
    np.testing.assert_allclose(norms, (g**2).sum((1, 2)).reshape(batch), rtol=1e-12)
    np.testing.assert_allclose(lengths, np.sqrt((g**2).sum((1, 2)).reshape(batch)), rtol=1e-12)
    expected = np.einsum("nij,kij->nk", g, g).reshape(*batch, *batch)
    np.testing.assert_allclose(inner, expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(squares, (g**2).sum(0), rtol=1e-12)
    by_hand = (weight.reshape(-1, 1, 1) * g).sum(0)
    np.testing.assert_allclose(weighted, by_hand, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    "reduce",
    [
        lambda factor: factor.rows(),
        lambda factor: factor.squared_norm(),
        lambda factor: factor.norm(),
        lambda factor: factor.products(),
        lambda factor: factor.squared(),
        lambda factor: factor.weighted(jnp.ones(3)),
    ],
)
def test_a_gradient_of_the_whole_batch_is_refused_by_name(reduce):
    whole = Whole(jnp.ones(2), "batch_norm(2)")
    np.testing.assert_array_equal(whole.total(), [1, 1])
    with pytest.raises(TypeError, match=r"batch_norm\(2\): its gradient exists for the whole"):
        reduce(whole)
    with pytest.raises(TypeError, match=r"batch_norm\(2\)"):
        reduce(Sum(whole, whole))


class Scaled(reductions.Factor):
    """A user's own factor: example n has the gradient weight_n * direction."""

    ndim = 1

    def __init__(self, weight, direction):
        self.weight, self.direction, self.batch = weight, direction, weight.shape

    def total(self):
        return self.weight.sum() * self.direction

    def rows(self, examples=None):
        return Direct(self.weight[:, None] * self.direction)


def test_a_new_factor_needs_total_and_rows_only():
    factor = Scaled(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]))
    np.testing.assert_array_equal(factor.squared_norm(), [25, 100])
    np.testing.assert_array_equal(factor.norm(), [5, 10])
    np.testing.assert_array_equal(factor.products(), [[25, 50], [50, 100]])
    np.testing.assert_array_equal(factor.squared().total(), [45, 80])
    np.testing.assert_array_equal(factor.weighted(jnp.array([2.0, 0.5])).total(), [9, 12])
    with pytest.raises(NotImplementedError):
        reductions.Factor().total()


def test_all_statistics_of_a_layer_with_a_factor_of_its_own():
    """y = x * exp(a)^T c, with the gradient of a stated by `Scaled`'s two methods."""
    direction = jnp.array([1.0, -2.0, 0.5])

    def forward(params, x):
        return x * (params["a"] @ direction), x

    def backward(params, x, dy, reduce=fnn.total):
        along = (dy * x).sum(-1)
        return {"a": reduce(Scaled(along, direction))}, dy * (params["a"] @ direction)

    layer = fnn.Layer(lambda key: {"a": jax.random.normal(key, (3,))}, forward, backward)
    params, x, y = layer.init(KEY), jnp.asarray(draw(4, 2), "float32"), jnp.ones((4, 2))
    each = jax.vmap(jax.grad(fnn.objective(layer, fnn.mse)), (None, 0, 0))(params, x, y)["a"]
    norms = per_example.squared_norms(layer, fnn.mse)(params, x, y)
    np.testing.assert_allclose(norms, (each**2).sum(1), rtol=1e-5)
    gram = per_example.gram(layer, fnn.mse)(params, x, y)
    np.testing.assert_allclose(gram, each @ each.T, rtol=1e-4, atol=1e-5)
    _, clipped = per_example.clipped_value_and_grad(layer, fnn.mse, 0.1)(params, x, y)
    scale = np.minimum(1, 0.1 / np.sqrt((each**2).sum(1)))
    np.testing.assert_allclose(clipped["a"], (scale[:, None] * each).mean(0), rtol=1e-4)


# Layers that use what factors can do.


def tied(d):
    """y = tanh(x W^T) W: one parameter used twice."""

    def forward(params, x):
        a = jnp.tanh(x @ params["W"].T)
        return a @ params["W"], (x, a)

    def backward(params, residuals, dy, reduce=fnn.total):
        x, a = residuals
        dz = (dy @ params["W"].T) * (1 - a * a)
        both = Sum(Outer(a, dy), Outer(dz, x))
        return {"W": reduce(both)}, dz @ params["W"]

    return fnn.Layer(lambda key: {"W": jax.random.normal(key, (4, d))}, forward, backward)


def sparse(d_in, d_out):
    """A dense layer without a bias, half of whose weights do not exist."""
    mask = jnp.asarray(np.random.default_rng(0).uniform(size=(d_out, d_in)) < 0.5, jnp.float32)

    def backward(params, x, dy, reduce=fnn.total):
        dW = reduce(Masked(Outer(dy, x), mask.astype(x.dtype)))
        return {"W": dW}, dy @ (params["W"] * mask.astype(x.dtype))

    return fnn.Layer(
        lambda key: {"W": jax.random.normal(key, (d_out, d_in))},
        lambda params, x: (x @ (params["W"] * mask.astype(x.dtype)).T, x),
        backward,
    )


def pixels(c):
    """A dense layer at each of an image's pixels, and their mean."""
    dense = fnn.dense(c, 3)
    mean = fnn.Layer(
        lambda key: (),
        lambda params, x: (x.mean((-3, -2)), jnp.zeros((*x.shape, 0))),
        lambda params, like, dy, reduce=fnn.total: (
            (),
            jnp.broadcast_to(dy[..., None, None, :], like.shape[:-1])
            / (like.shape[-4] * like.shape[-3]),
        ),
    )
    return fnn.serial(dense, fnn.tanh, mean)


def summed(tree, axes):
    return sum(jnp.square(leaf).sum(axes(leaf)) for leaf in jax.tree.leaves(tree))


PROBLEMS = {
    "a parameter used twice": (fnn.serial(tied(5), fnn.dense(5, 3)), (6, 5)),
    "masked": (fnn.serial(sparse(5, 4), fnn.tanh, fnn.dense(4, 3)), (6, 5)),
    "positions": (fnn.serial(pixels(2)), (6, 4, 5, 2)),
    "positions in copies": (
        fnn.serial(fnn.repeat(fnn.skip(fnn.serial(fnn.dense(2, 2), fnn.tanh)), 3), pixels(2)),
        (6, 4, 5, 2),
    ),
    "tied in copies": (fnn.serial(fnn.repeat(fnn.skip(tied(5)), 2), fnn.dense(5, 3)), (6, 5)),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("network", "shape"), list(PROBLEMS.values()), ids=list(PROBLEMS))
def test_every_statistic_through_such_layers(network, shape):
    loss = fnn.softmax_cross_entropy
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64), network.init(KEY))
        x, y = jnp.asarray(draw(*shape)), jnp.arange(6) % 3
        one = jax.grad(lambda p, x, y: loss.value(network.forward(p, x)[0], y))

        @jax.jit
        def everything(params, x):
            return (
                jax.vmap(one, (None, 0, 0))(params, x, y),
                per_example.squared_norms(network, loss)(params, x, y),
                per_example.gram(network, loss)(params, x, y),
                per_example.second_moment(network, loss)(params, x, y),
                per_example.clipped_value_and_grad(network, loss, 0.3)(params, x, y)[1],
                per_example.gradient_noise_scale(network, loss)(params, x, y),
                curvature.ggn_diagonal(network, loss, root=gradient)(params, x, y),
                per_example.gradients(network, loss)(params, x, y),
                per_example.cross_gram(network, loss)(params, x, y, x[:2], y[:2]),
                per_example.cosines(network, loss)(params, x, y),
            )

        gradient = lambda p, t: loss.gradient(p, t)[None]
        each, norms, gram, moment, clipped, noise, diagonal, *more = everything(params, x)
    flat = np.concatenate([np.reshape(g, (6, -1)) for g in jax.tree.leaves(each)], 1)
    squares = (flat**2).sum(1)
    np.testing.assert_allclose(norms, squares, rtol=1e-10)
    np.testing.assert_allclose(gram, flat @ flat.T, rtol=1e-9, atol=1e-12)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13)
    jax.tree.map(close, moment, jax.tree.map(lambda g: np.square(g).mean(0), each))
    scale = np.minimum(1, 0.3 / np.sqrt(squares))
    jax.tree.map(close, clipped, jax.tree.map(lambda g: np.tensordot(scale, g, 1) / 6, each))
    trace = np.var(flat, 0, ddof=1).sum()
    squared_norm = (flat.mean(0) ** 2).sum() - trace / 6
    np.testing.assert_allclose(noise, (trace, squared_norm, trace / squared_norm), rtol=1e-7)
    # With the loss's own gradient as root, G is the second moment.
    jax.tree.map(close, diagonal, moment)
    own, cross, cosines = more
    jax.tree.map(close, own, each)
    close(cross, flat @ flat[:2].T)
    mean = flat.mean(0)
    close(cosines, flat @ mean / np.sqrt(squares * (mean**2).sum()))


def test_no_statistic_goes_without_a_network_with_positions_and_a_masked_one():
    """What stands in `test_every_statistic_through_such_layers`."""
    statistics = {
        name
        for module in (per_example, curvature)
        for name, f in vars(module).items()
        if callable(f) and getattr(f, "__module__", "") == module.__name__ and name[0] != "_"
        if list(inspect.signature(f).parameters)[:2] == ["network", "loss"]
    }
    elsewhere = {  # no positions; no factors
        "kronecker_factors", "gauss_newton_vector_product", "hessian_vector_product",
    }  # fmt: skip
    text = inspect.getsource(test_every_statistic_through_such_layers)
    assert statistics - elsewhere == {name for name in statistics if f".{name}(" in text}


def mixing(tokens, d):
    """Mixes the tokens of a text (..., tokens, d) by fixed weights."""
    A = jnp.asarray(np.random.default_rng(1).normal(size=(tokens, tokens)))
    mixed = lambda a, x: jnp.einsum("ts,...sd->...td", a.astype(x.dtype), x)
    return fnn.Layer(
        lambda key: (),
        lambda params, x: (mixed(A, x), ()),
        lambda params, residuals, dy, reduce=fnn.total: ((), mixed(A.T, dy)),
    )


@pytest.mark.long
def test_the_caller_says_which_axes_of_the_losses_are_examples():
    """Losses per token after the tokens were mixed: (6, 4) losses, but 6 examples."""
    network, loss = fnn.serial(fnn.dense(3, 3), mixing(4, 3), fnn.dense(3, 2)), fnn.mse
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64), network.init(KEY))
        x, y = jnp.asarray(draw(6, 4, 3)), jnp.asarray(draw(6, 4, 2))
        one = jax.grad(lambda p, x, y: loss.value(network.forward(p, x)[0], y).mean())
        clipped = per_example.clipped_value_and_grad(network, loss, 1e9, example_axes=1)

        @jax.jit
        def everything(params):
            return (
                jax.vmap(one, (None, 0, 0))(params, x, y),
                per_example.squared_norms(network, loss, example_axes=1)(params, x, y),
                clipped(params, x, y),
                fnn.value_and_grad(network, loss)(params, x, y),
                fnn.curvature.ggn_diagonal(network, loss, example_axes=1)(params, x, y),
                jax.hessian(lambda p: fnn.objective(network, loss)(p, x, y))(params),
            )

        each, norms, (value, grads), (same, plain), diagonal, hessian = everything(params)
        expected = summed(each, lambda g: tuple(range(1, g.ndim)))
        np.testing.assert_allclose(norms, expected, rtol=1e-10)
        np.testing.assert_allclose(value, same, rtol=1e-12)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), grads, plain)
        # By default each token is taken for an example, whose gradient is then another.
        assert per_example.squared_norms(network, loss)(params, x, y).shape == (6, 4)
        exact = jnp.diag(hessian[0]["W"][0]["W"].reshape(9, 9)).reshape(3, 3)
        np.testing.assert_allclose(diagonal[0]["W"], exact, rtol=1e-9)
        with pytest.raises(ValueError, match="example_axes: expected 0 to 2"):
            per_example.squared_norms(network, loss, example_axes=3)(params, x, y)


@pytest.mark.parametrize("change", [
    lambda g: g * jnp.ones((3, 5)),
    lambda g: jnp.ones((3, 5)) * g,
    lambda g: g + g,
    lambda g: -g,
    lambda g: g / 2,
    lambda g: jnp.where(True, g, 0),
    lambda g: g.T if hasattr(g, "T") else g @ jnp.eye(5),
])  # fmt: skip
def test_changing_what_reduce_returned_is_refused_with_what_to_write_instead(change):
    dense = fnn.dense(5, 3)

    def backward(params, x, dy, reduce=fnn.total):
        dparams, dx = dense.backward(params, x, dy, reduce)
        return dparams | {"W": change(dparams["W"])}, dx

    layer = dense._replace(backward=backward)
    params, x = layer.init(KEY), jnp.ones((6, 5))
    with pytest.raises(TypeError, match=r"must be returned unchanged.*fnn\.Masked.*fnn\.Sum"):
        per_example.squared_norms(layer, fnn.mse)(params, x, jnp.ones((6, 3)))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("wrap", [fnn.serial, lambda layer: fnn.repeat(layer, 2), fnn.remat])
@pytest.mark.parametrize("change", [
    lambda grads: jax.tree.map(lambda g: -0.5 * g, grads),
    lambda grads: jax.tree.map(jnp.add, grads, grads),
    lambda grads: jax.tree.map(lambda g: g.astype(jnp.float16), grads),
    lambda grads: {name: jax.tree.map(jnp.sin, g) for name, g in grads.items()},
])  # fmt: skip
@pytest.mark.parametrize("jitted", [True, False])
def test_a_tree_map_of_what_reduce_returned_is_refused(change, wrap, jitted):
    dense = fnn.dense(5, 5)

    def backward(params, x, dy, reduce=fnn.total):
        dparams, dx = dense.backward(params, x, dy, reduce)
        return change(dparams), dx

    layer = wrap(dense._replace(backward=backward))
    params, x = layer.init(KEY), jnp.ones((6, 5))
    with jax.disable_jit(not jitted), pytest.raises(TypeError, match="must be returned unchanged"):
        per_example.squared_norms(layer, fnn.mse)(params, x, x)


def test_programs_within_a_backward_leave_what_reduce_returned_untouched():
    """jit, scan, cond and vmap make other arrays of what passes through them; so does no change."""
    dense = fnn.dense(5, 5)

    def of(through):
        def backward(params, x, dy, reduce=fnn.total):
            return through(lambda params, x, dy: dense.backward(params, x, dy, reduce))(
                params, x, dy
            )

        return dense._replace(backward=backward)

    layers = [
        of(jax.jit),
        of(lambda f: lambda *args: jax.lax.cond(True, f, f, *args)),
        of(lambda f: lambda *args: jax.tree.map(lambda g: g, f(*args))),
        of(jax.checkpoint),
    ]
    params, x = dense.init(KEY), jnp.asarray(draw(6, 5), jnp.float32)
    expected = per_example.squared_norms(dense, fnn.mse)(params, x, 0 * x)
    for layer in layers:
        for turn in range(2):  # the second time what was traced is found again
            norms = per_example.squared_norms(layer, fnn.mse)(params, x, 0 * x)
            np.testing.assert_allclose(norms, expected, rtol=1e-6, err_msg=str(turn))
        copies = fnn.repeat(layer, 2)
        stacked = copies.init(KEY)
        for off in (True, False):
            with jax.disable_jit(off):
                assert per_example.squared_norms(copies, fnn.mse)(stacked, x, x).shape == (6,)


def test_a_factor_of_another_shape_than_its_parameter_is_refused():
    dense = fnn.dense(5, 3)

    def backward(params, x, dy, reduce=fnn.total):
        return {"W": reduce(Outer(x, dy)), "b": reduce(Direct(dy))}, dy @ params["W"]

    layer = dense._replace(backward=backward)
    params, x, y = layer.init(KEY), jnp.ones((6, 5)), jnp.ones((6, 3))
    with pytest.raises(ValueError, match=r"params\['W'\].*shape \(3, 5\), got \(5, 3\)"):
        per_example.squared_norms(layer, fnn.mse)(params, x, y)


def test_value_and_grad_takes_another_reduction():
    """Squared norms of the parameters' gradients, with the 1/m of the mean in each."""
    network, x, y = fnn.mlp((5, 4, 3)), jnp.asarray(draw(6, 5), "float32"), jnp.ones((6, 3))
    params = network.init(KEY)
    value, norms = fnn.value_and_grad(network, fnn.mse, lambda factor: factor.squared_norm())(
        params, x, y
    )
    expected = per_example.squared_norms(network, fnn.mse)(params, x, y) / 36
    np.testing.assert_allclose(sum(jax.tree.leaves(norms)), expected, rtol=1e-5)
    np.testing.assert_allclose(value, fnn.objective(network, fnn.mse)(params, x, y))


def test_the_per_example_backward_names_what_no_factor_was_given_for():
    layer = fnn.dense(2, 1)._replace(backward=lambda params, x, dy, reduce=fnn.total: (params, dy))
    params, x = layer.init(KEY), jnp.ones((4, 2))
    with pytest.raises(ValueError, match=r"params\['W'\] is not what `reduce` returned"):
        per_example_backward(layer, params, x, jnp.ones((4, 1)), reductions.Factor.rows, (4,))
