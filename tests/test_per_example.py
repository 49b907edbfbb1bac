"""Per-example instruments against `jax.vmap(jax.grad)`, their identities, and what they hold."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import KEY, NETWORKS

import fnn
from fnn import per_example

LOSSES = [fnn.mse, fnn.softmax_cross_entropy, fnn.sigmoid_binary_cross_entropy]
PROBLEMS = [
    pytest.param(*problem, marks=[pytest.mark.long] if i else [])
    for i, problem in enumerate(zip(NETWORKS, LOSSES, strict=True))
]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def problem(network, loss, batch=(6,)):
    """params, x, y of a 5 -> 3 network in float64, none of them symmetric."""
    rng = np.random.default_rng(2026)
    params = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape) / 2), jax.eval_shape(network.init, KEY)
    )
    x = jnp.asarray(rng.normal(size=(*batch, 5)))
    if loss is fnn.softmax_cross_entropy:
        return params, x, jnp.asarray(rng.integers(0, 3, batch))
    return params, x, jnp.asarray(rng.uniform(size=(*batch, 3)))


def quick(f, *args):
    """f(*args), compiled without what makes programs fast to run and slow to compile."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(f).lower(*args).compile(compiler_options=options)(*args)


def gradients(network, loss, params, x, y):
    """The reference: each example's gradient, held whole, (m, ...) in each leaf."""

    def one(params, x, y):
        return fnn.objective(network, loss)(params, x[None], y[None])

    return jax.vmap(jax.grad(one), (None, 0, 0))(params, x, y)


def gradients_by_autodiff(network, loss, params, x, y):
    grads = quick(lambda *args: gradients(network, loss, *args), params, x, y)
    return jax.tree.map(np.asarray, grads)


def flat(grads, m):
    return np.concatenate([g.reshape(m, -1) for g in jax.tree.leaves(grads)], 1)


def clipped(grads, norms, max_norm):
    scale = np.minimum(1, max_norm / np.sqrt(norms))
    assert 0 < (scale < 1).sum() < len(scale)
    return jax.tree.map(lambda g: np.tensordot(scale, g, 1) / len(scale), grads)


def assert_close(got, expected, tolerance=1e-9):
    """Leaf by leaf, relative to the leaf's own norm."""
    paths, form = jax.tree.flatten_with_path(expected)
    assert jax.tree.structure(got) == form
    for (path, e), g in zip(paths, jax.tree.leaves(got), strict=True):
        assert g.shape == e.shape
        assert g.dtype == e.dtype
        error, size = np.linalg.norm(g - e), np.linalg.norm(e)
        assert size > 0, f"{path}: the reference is zero"
        assert error <= tolerance * size, f"{path}: relative difference {error / size:.1e}"


@pytest.mark.parametrize(("network", "loss"), PROBLEMS)
def test_every_instrument_against_each_examples_gradient(network, loss):
    params, x, y = problem(network, loss)
    m = len(x)

    def instruments(params, x, y):
        norms = per_example.squared_norms(network, loss)(params, x, y)
        clip = per_example.clipped_value_and_grad(network, loss, jnp.sqrt(jnp.median(norms)))
        return {
            "squared_norms": norms,
            "gram": per_example.gram(network, loss)(params, x, y),
            "second_moment": per_example.second_moment(network, loss)(params, x, y),
            "clipped": clip(params, x, y),
            "noise": per_example.gradient_noise_scale(network, loss)(params, x, y),
            "cosines": per_example.cosines(network, loss)(params, x, y),
            "cross_gram": per_example.cross_gram(network, loss)(params, x, y, x[1:4], y[1:4]),
            "gradients": per_example.gradients(network, loss)(params, x, y),
        }

    value = quick(fnn.objective(network, loss), params, x, y)
    grads = gradients_by_autodiff(network, loss, params, x, y)
    rows = flat(grads, m)
    norms = (rows * rows).sum(1)
    q, s = norms.mean(), (rows.mean(0) ** 2).sum()
    trace, norm = m * (q - s) / (m - 1), (m * s - q) / (m - 1)
    expected = {
        "squared_norms": norms,
        "gram": rows @ rows.T,
        "second_moment": jax.tree.map(lambda g: (g * g).mean(0), grads),
        "clipped": (value, clipped(grads, norms, np.sqrt(np.median(norms)))),
        "noise": per_example.NoiseScale(trace, norm, trace / norm),
        "cosines": rows @ rows.mean(0) / np.sqrt(norms * s),
        "cross_gram": rows @ rows[1:4].T,
        "gradients": grads,
    }
    found = quick(instruments, params, x, y)
    assert_close(found, expected)
    trace = jnp.trace(found["gram"])
    moments = sum(leaf.sum() for leaf in jax.tree.leaves(found["second_moment"]))
    np.testing.assert_allclose(trace, found["squared_norms"].sum(), rtol=1e-12)
    np.testing.assert_allclose(trace, moments * m, rtol=1e-12)


REPEATED = fnn.serial(
    fnn.dense(5, 4), fnn.repeat(fnn.serial(fnn.skip(fnn.dense(4, 4)), fnn.layer_norm(4)), 3),
    fnn.dense(4, 3),
)  # fmt: skip


def test_every_leading_axis_is_a_batch_axis():
    params, x, y = problem(REPEATED, fnn.mse, (2, 3))
    rows = (params, x.reshape(6, 5), y.reshape(6, 3))

    def instruments(*args):
        return (
            per_example.squared_norms(REPEATED, fnn.mse)(*args),
            per_example.gram(REPEATED, fnn.mse)(*args),
            per_example.second_moment(REPEATED, fnn.mse)(*args),
            per_example.gradient_noise_scale(REPEATED, fnn.mse)(*args),
            per_example.clipped_value_and_grad(REPEATED, fnn.mse, 0.3)(*args),
        )

    norms, gram, *others = quick(instruments, params, x, y)
    flat_norms, flat_gram, *flat_others = quick(instruments, *rows)
    assert_close(norms, flat_norms.reshape(2, 3), 1e-12)
    assert_close(gram, flat_gram.reshape(2, 3, 2, 3), 1e-12)
    assert_close(others, flat_others, 1e-11)


def test_clipping_at_infinity_is_the_plain_gradient():
    params, x, y = problem(REPEATED, fnn.mse)
    plain = fnn.value_and_grad(REPEATED, fnn.mse)
    clip = per_example.clipped_value_and_grad(REPEATED, fnn.mse, float("inf"))
    assert_close(quick(clip, params, x, y), quick(plain, params, x, y), 1e-14)


def test_clipping_bounds_each_example_and_takes_one_without_a_gradient():
    params, x, y = problem(REPEATED, fnn.mse, (1,))
    clip = jax.jit(per_example.clipped_value_and_grad(REPEATED, fnn.mse, 1e-3))
    norm = jnp.sqrt(sum((g * g).sum() for g in jax.tree.leaves(clip(params, x, y)[1])))
    np.testing.assert_allclose(norm, 1e-3, rtol=1e-12)
    perfect, _ = REPEATED.forward(params, x)
    along = jax.jit(lambda *a: jax.jvp(lambda p: clip(p, *a[1:]), a[:1], a[:1]))
    for leaf in jax.tree.leaves(along(params, x, perfect)):
        assert jnp.isfinite(leaf).all()
    left = jax.tree.leaves(clip(params, x, perfect)[1])  # XLA may round one program otherwise
    assert all(jnp.abs(g).max() < 1e-14 for g in left)


def test_a_gradient_that_is_not_a_number_is_not_clipped_away():
    params, x, y = problem(REPEATED, fnn.mse)
    clip = jax.jit(per_example.clipped_value_and_grad(REPEATED, fnn.mse, 1.0))
    _, grads = clip(params, x, y.at[2, 0].set(jnp.nan))
    assert all(jnp.isnan(g).any() for g in jax.tree.leaves(grads))


def _own_forward(params, x):
    return params["scale"] * (x @ params["K"]), x


def _own_backward(params, x, dy, reduce=fnn.total):
    dk = reduce(fnn.Outer(x, params["scale"] * dy))
    ds = reduce(fnn.Direct((dy * (x @ params["K"])).sum(-1), 0))
    return {"K": dk, "scale": ds}, params["scale"] * (dy @ params["K"].T)


def _own_init(key):
    return {"K": jax.random.normal(key, (4, 4)), "scale": jnp.ones(())}


# A user's layer: y = scale x K, with K (d_in, d_out), so that dy is the right factor, not the left.
own_layer = fnn.Layer(_own_init, _own_forward, _own_backward)


def test_a_layer_of_ones_own_takes_part_in_either_orientation():
    network = fnn.serial(fnn.dense(5, 4), fnn.repeat(own_layer, 2), own_layer, fnn.dense(4, 3))
    params, x, y = problem(network, fnn.mse)

    def instruments(params, x, y):
        return (
            per_example.gram(network, fnn.mse)(params, x, y),
            per_example.second_moment(network, fnn.mse)(params, x, y),
            per_example.clipped_value_and_grad(network, fnn.mse, 0.9)(params, x, y)[1],
        )

    grads = gradients_by_autodiff(network, fnn.mse, params, x, y)
    rows = flat(grads, 6)
    moments = jax.tree.map(lambda g: (g * g).mean(0), grads)
    expected = rows @ rows.T, moments, clipped(grads, (rows * rows).sum(1), 0.9)
    assert_close(quick(instruments, params, x, y), expected)


def _dense_with(backward):
    dense = fnn.dense(5, 3)
    return fnn.Layer(dense.init, dense.forward, backward)


@pytest.mark.parametrize("wrap", [lambda layer: layer, fnn.serial])
@pytest.mark.parametrize(
    ("backward", "message"),
    [
        (lambda params, x, dy: ({"W": dy.T @ x, "b": dy.sum(0)}, dy), "reduce=total"),
        (
            lambda params, x, dy, reduce=fnn.total: ({"W": reduce(dy), "b": dy.sum(0)}, dy),
            "expected a factor such as Outer or Direct",
        ),
        (
            lambda params, x, dy, reduce=fnn.total: (
                {"W": reduce(fnn.Outer(dy, x)), "b": dy.sum(0)},
                dy,
            ),
            r"params.*\['b'\] is not what `reduce` returned",
        ),
        (
            lambda params, x, dy, reduce=fnn.total: ({"W": reduce(fnn.Outer(dy, x))}, dy),
            "2 parameters, but 1",
        ),
        (
            lambda params, x, dy, reduce=fnn.total: (
                {"W": reduce(fnn.Outer(dy, x)), "b": reduce(fnn.Direct(dy, 0))},
                dy,
            ),
            r"factor for params\[.*\]\[?.*shape \(3,\), got \(\)",
        ),
        (
            lambda params, x, dy, reduce=fnn.total: (
                {"W": reduce(fnn.Outer(dy.T, x.T)), "b": reduce(fnn.Direct(dy))},
                dy,
            ),
            r"Outer: expected left and right with the same batch axes",
        ),
    ],
)
def test_a_layer_that_does_not_state_its_gradients_is_refused(backward, message, wrap):
    x, y = jnp.ones((6, 5)), jnp.ones((6, 3))

    def norms():
        network = wrap(_dense_with(backward))
        return per_example.squared_norms(network, fnn.mse)(network.init(KEY), x, y)

    with pytest.raises((TypeError, ValueError), match=message):
        norms()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("size", [1e15, 3e19, 1e35])
def test_a_norm_whose_square_overflows_is_clipped_as_any_other(size):
    """Beside an ordinary example, which keeps its own norm."""
    layer = fnn.serial(fnn.dense(2, 1), fnn.repeat(fnn.dense(1, 1), 2))
    params = jax.tree.map(lambda a: jnp.ones(a.shape, jnp.float32), layer.init(KEY))
    x = jnp.array([[size, 2 * size], [1e-3, 2e-3]], jnp.float32)
    y = jnp.full((2, 1), 9, jnp.float32)
    clip = jax.jit(per_example.clipped_value_and_grad(layer, fnn.mae, 4.0))
    each = [clip(params, x[i : i + 1], y[i : i + 1])[1] for i in range(2)]
    plain = fnn.value_and_grad(layer, fnn.mae)(params, x[1:], y[1:])[1]
    norm = lambda tree: np.linalg.norm([np.linalg.norm(g.astype(float)) for g in tree])
    first, second = map(jax.tree.leaves, each)
    np.testing.assert_allclose(norm(first), 4.0, rtol=1e-5)
    assert norm(second) < 4
    assert_close(second, jax.tree.leaves(plain), 1e-6)
    assert_close(
        jax.tree.leaves(clip(params, x, y)[1]),
        [(a + b) / 2 for a, b in zip(first, second, strict=True)],
        1e-6,
    )


@pytest.mark.parametrize(("n", "wide"), [(1, 1), (1, 1000), (1000, 1), (100_000, 1)])
def test_a_clipped_gradient_has_its_norm_or_is_nan(n, wide):
    """One large example among n: no bound is broken, and no example is left out without a word."""
    layer = fnn.dense(wide, 1)
    params = {"W": jnp.zeros((1, wide), jnp.float32), "b": jnp.zeros(1, jnp.float32)}
    y = jnp.zeros((n, 1), jnp.float32).at[0].set(1)
    clip = jax.jit(per_example.clipped_value_and_grad(layer, fnn.mae, 100.0))
    for size in (1e30, 1e33, 1e35, 9e37, 1e38):
        x = jnp.zeros((n, wide), jnp.float32).at[0].set(size)
        whole = n * np.linalg.norm(np.asarray(clip(params, x, y)[1]["W"], float))
        assert np.isnan(whole) or abs(whole - 100) < 1e-3
        assert not np.isnan(whole) or size * n * wide > 1e38


def test_a_clipped_gradient_has_a_derivative():
    """By x, in both modes, within the bound and beyond it, where its direction alone changes."""
    layer = fnn.dense(2, 2)
    params = jax.tree.map(lambda p: p.astype(jnp.float32), layer.init(KEY))
    x, v = (jnp.array(a, jnp.float32) for a in ([[1.0, -2.0]], [[0.3, 0.7]]))
    y = jnp.zeros((1, 2), jnp.float32)

    def clipped(x, params, y):
        grads = per_example.clipped_value_and_grad(layer, fnn.mse, 1.0)(params, x, y)[1]
        return grads["W"][0, 0] + 2 * grads["W"][1, 1]

    @jax.jit
    def both(x, v, params, y):
        along = jax.jvp(lambda x: clipped(x, params, y), (x,), (v,))[1]
        return jnp.stack([along, (jax.grad(clipped)(x, params, y) * v).sum()])

    for size in (0.0, 1e-30, 1e-25, 1e-20, 1e-15, 1.0, 1e6, 1e9, 1e12):
        got = np.asarray(both(jnp.float32(size) * x, v, params, y), float)
        wide = jax.tree.map(lambda a: a.astype(jnp.float64), (size * x, v, params, y))
        large = max(size, 1)
        np.testing.assert_allclose(got * large, both(*wide) * large, rtol=1e-3, atol=1e-5)


def test_bad_arguments_are_refused():
    network = fnn.dense(5, 3)
    x, y = jnp.ones((1, 5), "float32"), jnp.ones((1, 3), "float32")
    params = jax.tree.map(lambda p: p.astype("float32"), network.init(KEY))
    with pytest.raises(ValueError, match="max_norm above 0, got 0"):
        per_example.clipped_value_and_grad(network, fnn.mse, 0)
    with pytest.raises(ValueError, match="stddev of at least 0, got -1"):
        per_example.add_noise(params, KEY, -1)
    with pytest.raises(ValueError, match="at least 2 examples, got 1"):
        per_example.gradient_noise_scale(network, fnn.mse)(params, x, y)
    with pytest.raises(TypeError, match=r"expected a Layer.*call it to make one"):
        per_example.squared_norms(fnn.dense, fnn.mse)
    with pytest.raises(ValueError, match=r"one number per example, \(1,\), got \(\)"):
        fnn.value_and_grad(network, fnn.mse)(params, x, y, 1.0)


def test_noise_scale_against_a_distribution_whose_truth_is_known():
    """g = 2 e [x; 1], with e ~ N(mu, s^2) and x ~ N(c, I) independent:
    E ||g||^2 = 4 (mu^2 + s^2) (||c||^2 + d + 1) and ||E g||^2 = 4 mu^2 (||c||^2 + 1)."""
    d, m, batches, mu, s, c = 3, 8, 4000, 0.5, 1.5, np.array([1.0, -2.0, 0.5])
    rng = np.random.default_rng(2026)
    x = c + rng.normal(size=(batches, m, d))
    e = mu + s * rng.normal(size=(batches, m, 1))
    params = {"W": jnp.zeros((1, d)), "b": jnp.zeros(1)}
    estimate = jax.vmap(per_example.gradient_noise_scale(fnn.dense(d, 1), fnn.mse), (None, 0, 0))(
        params, x, -e
    )
    norm = 4 * mu**2 * (c @ c + 1)
    trace = 4 * (mu**2 + s**2) * (c @ c + d + 1) - norm
    for found, truth in ((estimate.trace, trace), (estimate.squared_norm, norm)):
        assert abs(found.mean() - truth) <= 4 * found.std() / batches**0.5
        # Without its correction either would be off by trace / m.
        assert 4 * found.std() / batches**0.5 < 0.5 * trace / m
    np.testing.assert_array_equal(estimate.scale, estimate.trace / estimate.squared_norm)


def test_noise_is_seeded_of_the_stated_size_and_different_in_each_leaf():
    zeros = jnp.zeros((50, 100))
    grads = {"a": zeros + 3, "b": zeros, "c": zeros.astype("float32")}
    noisy = per_example.add_noise(grads, KEY, 0.1)
    again = per_example.add_noise(grads, KEY, 0.1)
    jax.tree.map(np.testing.assert_array_equal, noisy, again)
    noise = jax.tree.map(lambda n, g: (n - g).astype("float64").ravel(), noisy, grads)
    assert [leaf.dtype.name for leaf in noisy.values()] == ["float64", "float64", "float32"]
    for leaf in noise.values():
        assert abs(leaf.std() - 0.1) < 0.005
        assert abs(leaf.mean()) < 0.005
    assert abs(jnp.corrcoef(noise["a"], noise["b"])[0, 1]) < 0.05
    other = per_example.add_noise(grads, jax.random.key(1), 0.1)
    assert not jnp.array_equal(other["a"], noisy["a"])


def test_weighted_gradient_is_the_twin_of_the_weighted_objective():
    params, x, y = problem(REPEATED, fnn.mse)
    weight = jax.random.uniform(KEY, (6,), "float32", 0.0, 3.0)
    weighted = jax.jit(fnn.value_and_grad(REPEATED, fnn.mse))
    expected = jax.jit(jax.value_and_grad(fnn.objective(REPEATED, fnn.mse)))
    got = weighted(params, x, y, weight)
    assert_close(got, expected(params, x, y, weight))
    each = gradients_by_autodiff(REPEATED, fnn.mse, params, x, y)
    by_hand = jax.tree.map(lambda g: jnp.tensordot(weight.astype("float64"), g, 1) / 6, each)
    assert_close(got[1], by_hand)
    assert_close(weighted(params, x, y, jnp.ones(6, "int32")), weighted(params, x, y), 1e-14)


def test_weights_multiply_clipped_gradients_and_losses():
    params, x, y = problem(REPEATED, fnn.mse)
    weight = jnp.array([0, 4, 0, 4, 1, 0], "float32")
    clip = jax.jit(per_example.clipped_value_and_grad(REPEATED, fnn.mse, 0.5))
    each = [clip(params, x[n : n + 1], y[n : n + 1]) for n in range(6)]
    wide = weight.astype("float64")
    expected = jax.tree.map(lambda *g: jnp.tensordot(wide, jnp.stack(g), 1) / 6, *each)
    assert_close(clip(params, x, y, weight), expected)
    with pytest.raises(ValueError, match=r"weight: expected one number per example, \(6,\)"):
        clip(params, x, y, weight[:5])


WIDE = fnn.serial(
    fnn.dense(32, 48), fnn.relu, fnn.repeat(fnn.skip(fnn.dense(48, 48)), 3), fnn.dense(48, 5)
)
MANY, MANY_TIMES_WEIGHTS = 64, 64 * 48 * 5  # examples; of WIDE, its smallest weight matrix


def largest_array(f, m):
    """The most entries of any array in the compiled program, for a batch of m."""
    x, y = jax.ShapeDtypeStruct((m, 32), "float32"), jax.ShapeDtypeStruct((m,), "int32")
    params = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, "float32"), jax.eval_shape(WIDE.init, KEY)
    )
    text = jax.jit(f).lower(params, x, y).compile().as_text()
    shapes = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", text)
    return max(int(np.prod([int(d) for d in shape.split(",")])) for shape in shapes)


@pytest.mark.sampled(4)
@pytest.mark.optimized
@pytest.mark.parametrize(
    "make",
    [
        per_example.squared_norms,
        per_example.gram,
        per_example.second_moment,
        per_example.gradient_noise_scale,
        lambda *a: per_example.clipped_value_and_grad(*a, 1.0),
    ],
)
def test_no_array_of_batch_times_parameters_exists(make):
    assert largest_array(make(WIDE, fnn.softmax_cross_entropy), MANY) < MANY_TIMES_WEIGHTS


@pytest.mark.optimized
def test_the_reader_of_programs_sees_an_array_of_batch_times_parameters():
    def norms(params, x, y):
        grads = gradients(WIDE, fnn.softmax_cross_entropy, params, x, y)
        return sum((g * g).reshape(len(x), -1).sum(1) for g in jax.tree.leaves(grads))

    assert largest_array(norms, MANY) >= MANY_TIMES_WEIGHTS


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_norms_and_moments_of_narrow_gradients_are_float32(dtype):
    params, x, y = problem(REPEATED, fnn.mse)
    narrow = jax.tree.map(lambda a: a.astype(dtype), (params, x, y))

    @jax.jit
    def run(*args):
        norms = per_example.squared_norms(REPEATED, fnn.mse)(*args)
        moments = per_example.second_moment(REPEATED, fnn.mse)(*args)
        _, grads = per_example.clipped_value_and_grad(REPEATED, fnn.mse, 1.0)(*args)
        return norms, moments, grads

    norms, moments, grads = run(*narrow)
    wide, _, _ = run(params, x, y)
    np.testing.assert_allclose(norms, wide, rtol=0.2 if dtype == "bfloat16" else 1e-4)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((norms, moments))} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(grads)} == {dtype}


NARROW = {
    "float16": (fnn.mlp((4, 8, 2)), jnp.float16),
    "bfloat16": (fnn.mlp((4, 8, 2)), jnp.bfloat16),
    "inside float16": (fnn.compute_in(fnn.mlp((4, 8, 2)), jnp.float16), jnp.float32),
    "inside bfloat16": (fnn.compute_in(fnn.mlp((4, 8, 2)), jnp.bfloat16), jnp.float32),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("max_norm", [1e-3, 1.0])
@pytest.mark.parametrize(("network", "dtype"), list(NARROW.values()), ids=list(NARROW))
def test_clipping_in_narrow_dtypes_drops_no_example_and_keeps_the_bound(network, dtype, max_norm):
    """256 equal examples: the clipped mean is the clipped gradient of one of them."""
    params = jax.tree.map(lambda p: p.astype(dtype), network.init(KEY))
    x = jnp.full((256, 4), 3.0, dtype)
    y = jnp.full((256, 2), -5.0, dtype)
    clip = per_example.clipped_value_and_grad(network, fnn.mse, max_norm)
    _, grads = clip(params, x, y)
    leaves = [np.asarray(g, np.float64).ravel() for g in jax.tree.leaves(grads)]
    norm = np.sqrt(np.square(np.concatenate(leaves)).sum())
    assert max_norm * (1 - 2e-2) < norm <= max_norm * (1 + 1e-5)  # float32's sums


OF_ALL_PARAMETERS = {
    "squared_norms": per_example.squared_norms,
    "gram": per_example.gram,
    "cosines": per_example.cosines,
    "noise": per_example.gradient_noise_scale,
    "clipped": lambda network, loss: per_example.clipped_value_and_grad(network, loss, 0.5),
}


@pytest.mark.sampled(20)
@pytest.mark.parametrize("statistic", OF_ALL_PARAMETERS.values(), ids=OF_ALL_PARAMETERS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize(
    "layer", [fnn.lora(fnn.dense(4, 4), 2), fnn.conv1d(4, 4)], ids=["lora", "conv1d"]
)
def test_statistics_over_parameters_of_more_than_one_dtype(layer, dtype, statistic):
    """In float64 some are computed in float32; the products of all of them are added up. And in
    bfloat16 they are added up in float32."""
    with jax.enable_x64(dtype == "float64"):
        narrow, plain = (
            fnn.serial(inner, fnn.flatten(2), fnn.dense(8, 2))
            for inner in (fnn.compute_in(layer, jnp.float32), layer)
        )
        rng = np.random.default_rng(0)
        draw = lambda a: rng.normal(size=a.shape)
        params = jax.tree.map(draw, jax.eval_shape(plain.init, KEY))
        case = params, rng.normal(size=(3, 2, 4)), rng.normal(size=(3, 2))
        found = statistic(narrow, fnn.mse)(*jax.tree.map(lambda a: jnp.asarray(a, dtype), case))
        of = lambda a: jnp.asarray(a, jnp.float64 if dtype == "float64" else jnp.float32)
        expected = statistic(plain, fnn.mse)(*jax.tree.map(of, case))
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        rtol = 1e-4 if dtype == "float64" else 0.1
        np.testing.assert_allclose(a.astype(float), b, rtol=rtol, atol=rtol * np.abs(b).max())


def test_squared_norms_in_float16_with_positions_do_not_overflow():
    def norms(dtype):
        network = fnn.dense(2, 2)
        params = {"W": jnp.ones((2, 2), dtype), "b": jnp.zeros(2, dtype)}
        x, y = jnp.full((3, 50, 2), 200.0, dtype), jnp.zeros((3, 50, 2), dtype)
        # One loss per example, of which all positions are a sum: gradients far above 65504.
        loss = fnn.Loss(lambda p, t: (p - t).sum((-1, -2)), lambda p, t: jnp.full_like(p, 100))
        return per_example.squared_norms(network, loss)(params, x, y)

    wide = norms(jnp.float32)
    assert wide.min() > 1e12
    np.testing.assert_allclose(norms(jnp.float16), wide, rtol=1e-2)


def test_clipping_an_empty_batch():
    network = fnn.mlp((4, 8, 2))
    params = network.init(KEY)
    clip = per_example.clipped_value_and_grad(network, fnn.mse, 1.0)
    value, grads = clip(params, jnp.ones((0, 4)), jnp.ones((0, 2)))
    assert value.shape == ()
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)


def info_nce():
    """A loss whose value for one example depends on the others."""

    def value(p, t):
        return jax.nn.logsumexp(p @ t.T, -1) - (p * t).sum(-1)

    def gradient(p, t):
        return jax.nn.softmax(p @ t.T) @ t - t

    return fnn.Loss(value, gradient, mixes=True)


STATISTICS = [
    per_example.squared_norms,
    per_example.gram,
    per_example.second_moment,
    per_example.gradient_noise_scale,
    lambda network, loss: per_example.clipped_value_and_grad(network, loss, 1.0),
    lambda network, loss: fnn.curvature.ggn_diagonal(network, loss, root=fnn.mse.root),
    lambda network, loss: fnn.curvature.kronecker_factors(network, loss, root=fnn.mse.root),
]


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_loss_that_mixes_examples_is_refused_by_name(statistic):
    with pytest.raises(TypeError, match="info_nce mixes the examples of a batch"):
        statistic(fnn.dense(4, 2), info_nce())
    statistic(fnn.dense(4, 2), info_nce()._replace(mixes=False))  # nothing else is refused


def test_gradients_in_chunks_and_over_two_axes_are_the_same():
    params, x, y = problem(REPEATED, fnn.mse, (2, 3))
    rows = (params, x.reshape(6, 5), y.reshape(6, 3))
    whole = quick(per_example.gradients(REPEATED, fnn.mse), *rows)
    chunks = quick(per_example.gradients(REPEATED, fnn.mse, chunk=4), *rows)
    assert_close(chunks, whole, 1e-12)
    both = quick(per_example.gradients(REPEATED, fnn.mse), params, x, y)
    assert_close(both, jax.tree.map(lambda g: g.reshape(2, 3, *g.shape[1:]), whole), 1e-12)


@pytest.mark.long
def test_products_between_texts_and_with_the_mean():
    """With positions, of which the gradient is a sum."""
    network = fnn.serial(fnn.embedding(5, 4), fnn.attention(4, 2, causal=True), fnn.dense(4, 3))
    params = jax.tree.map(lambda p: p.astype(jnp.float64), network.init(KEY))
    x = jnp.arange(24).reshape(6, 4) ** 2 % 5
    y = x % 3
    loss, options = fnn.softmax_cross_entropy, {"example_axes": 1}

    def one(params, x, y):
        return fnn.objective(network, loss)(params, x, y)

    rows = flat(jax.vmap(jax.grad(one), (None, 0, 0))(params, x, y), 6)
    found = per_example.cross_gram(network, loss, **options)(params, x, y, x[2:4], y[2:4])
    assert_close(found, rows @ rows[2:4].T)
    mean = rows.mean(0)
    cosine = rows @ mean / np.linalg.norm(mean) / np.linalg.norm(rows, axis=1)
    assert_close(per_example.cosines(network, loss, **options)(params, x, y), cosine)
