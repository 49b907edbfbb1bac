"""Attention: JAX's own and numpy as oracles, causality, per-example statistics, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import per_example, targets
from fnn.layers import attention, kernels

KEY = jax.random.key(5)


def problem(heads, d=6, **options):
    layer = fnn.attention(d, heads, **options)
    return layer, layer.init(KEY), jax.random.normal(KEY, (2, 5, d))


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_it_agrees_with_jaxs_own_attention(heads, causal):
    layer, params, x = problem(heads, causal=causal)
    q, k, v = ((x @ params[leaf].T).reshape(2, 5, heads, -1) for leaf in "QKV")
    expected = jax.nn.dot_product_attention(q, k, v, is_causal=causal).reshape(x.shape)
    y, _ = layer.forward(params, x)
    np.testing.assert_allclose(y, expected @ params["O"].T, rtol=1e-5, atol=1e-6)


def test_a_causal_mask_lets_each_token_attend_to_itself_and_the_earlier_ones():
    layer, params, x = problem(2, causal=True)
    y, _ = layer.forward(params, x)
    changed, _ = layer.forward(params, x.at[:, 3].add(1.0))
    same = (y == changed).all((0, 2))
    assert same.tolist() == [True, True, True, False, False]


def test_rotary_scores_are_those_of_complex_rotation():
    """Entries i and i + e/2 as one complex number, times e^(i p rate)."""
    layer, params, x = problem(1, 4, rotary=True)
    turn = np.exp(1j * np.arange(5)[:, None] * 10000.0 ** (-np.arange(2) / 2))
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    for row, got in zip(np.asarray(x, np.float64), layer.forward(params, x)[0], strict=True):
        q, k, v = (row @ p[leaf].T for leaf in "QKV")
        q, k = ((a[:, :2] + 1j * a[:, 2:]) * turn for a in (q, k))
        scores = (q @ k.conj().T).real / 2
        a = np.exp(scores - scores.max(1, keepdims=True))
        expected = (a / a.sum(1, keepdims=True)) @ v @ p["O"].T
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("options", [{"causal": True}, {"rotary": True}])
def test_each_texts_gradient_is_exact(options):
    with jax.enable_x64(True):
        layer, params, x = problem(3, **options)
        x = x.astype(jnp.float64)
        params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
        y = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
        each = jax.vmap(jax.grad(fnn.objective(layer, fnn.mse)), (None, 0, 0))(params, x, y)
        rows = np.concatenate([g.reshape(2, -1) for g in jax.tree.leaves(each)], 1)
        got = per_example.gram(layer, fnn.mse, example_axes=1)(params, x, y)
        np.testing.assert_allclose(got, rows @ rows.T, rtol=1e-10)


def test_only_the_input_and_one_number_per_query_are_kept():
    layer, params, x = problem(2)
    kept = jax.tree.leaves(layer.forward(params, x)[1])
    assert sum(a.size for a in kept) == x.size + 2 * 2 * 5


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"attention\(6, 4\): .* divisible by the number of heads"):
        fnn.attention(6, 4)
    with pytest.raises(ValueError, match=r"expected an even width per head with rotary, got 3"):
        fnn.attention(6, 2, rotary=True)
    layer, params, _ = problem(2)
    with pytest.raises(ValueError, match=r"attention\(6, 2\): expected x of shape .*tokens, 6"):
        layer.forward(params, jnp.ones(6))


def test_padding_changes_nothing_at_the_other_tokens():
    """The text with padding is at its tokens what it is alone, and so is its gradient."""
    layer, params, x = problem(2)
    mask = jnp.arange(5) < jnp.array([[3], [5]])
    (y, same), residuals = layer.forward(params, (x, mask))
    alone, short = layer.forward(params, x[:1, :3])
    assert same is mask
    np.testing.assert_allclose(y[:1, :3], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y[1], layer.forward(params, x[1])[0], rtol=1e-5, atol=1e-6)
    dy = jnp.where(mask[..., None], jnp.cos(x), 0).at[1].set(0)
    got, (dx, none) = layer.backward(params, residuals, (dy, None))
    expected, dx_alone = layer.backward(params, short, dy[:1, :3])
    assert none is None
    np.testing.assert_allclose(dx[:1, :3], dx_alone, rtol=1e-4, atol=1e-6)
    for leaf in "QKVO":
        np.testing.assert_allclose(got[leaf], expected[leaf], rtol=1e-4, atol=1e-6)


def test_an_empty_text_stays_finite():
    layer, params, x = problem(2, causal=True)
    (y, _), residuals = layer.forward(params, (x, jnp.zeros((2, 5), bool)))
    grads, (dx, _) = layer.backward(params, residuals, (jnp.ones_like(y), None))
    assert all(np.isfinite(a).all() for a in (y, dx, *jax.tree.leaves(grads)))


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (jnp.ones((2, 5)), TypeError, "a boolean mask, got float32"),
        (jnp.ones(5, bool), ValueError, r"a mask of shape \(2, 5\), got \(5,\)"),
    ],
)
def test_a_wrong_mask_is_refused(mask, error, message):
    layer, params, x = problem(2)
    with pytest.raises(error, match=message):
        layer.forward(params, (x, mask))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("options", [{}, {"causal": True, "rotary": True}])
@pytest.mark.parametrize("masked", [False, True])
def test_blocks_of_queries_give_what_all_queries_give(dtype, options, masked, monkeypatch):
    layer, params, _ = problem(3, **options)
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    x = jax.random.normal(KEY, (2, 12, 6), dtype)
    inputs = (x, jnp.arange(12) < jnp.array([[5], [12]])) if masked else x

    def both(block):
        monkeypatch.setattr(attention, "BLOCK", block)
        y, residuals = layer.forward(params, inputs)
        dy = (jnp.cos(y[0]), None) if masked else jnp.cos(y)
        dparams, dx = layer.backward(params, residuals, dy)
        kept = str(jax.make_jaxpr(lambda *a: layer.backward(*a))(params, residuals, dy))
        return jax.tree.leaves((y, dparams, dx)), "12,12" in kept

    (whole, squares), (parts, smaller) = both(12), both(4)
    assert squares
    assert not smaller  # the scores of all queries are nowhere held
    for one, other in zip(whole, parts, strict=True):
        close = {jnp.float32: 1e-5, jnp.bfloat16: 0.03}[dtype]
        np.testing.assert_allclose(one.astype(float), other.astype(float), rtol=close, atol=close)


@pytest.mark.parametrize(("dtype", "close"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("causal", [False, True])
def test_the_kernel_gives_what_plain_operations_give(dtype, close, causal):
    q, k, v = jax.random.normal(KEY, (3, 256, 16), dtype)
    got = kernels._kernel(causal, None, q, k, v, interpret=True)
    for one, other in zip(got, numpys(q, k, v, causal), strict=True):
        np.testing.assert_allclose(np.asarray(one, float), other, atol=close)


def numpys(q, k, v, causal):
    q, k, v = (np.asarray(a, float) for a in (q, k, v))
    scores = q @ k.T / 4
    scores[np.triu_indices(len(q), 1 if causal else len(q))] = -np.inf
    peak = scores.max(-1, keepdims=True)
    a = np.exp(scores - peak)
    return a / a.sum(-1, keepdims=True) @ v, peak


@pytest.mark.parametrize("causal", [False, True])
def test_a_layer_with_the_kernel_is_differentiated_as_one_without(causal):
    layer = fnn.attention(32, 2, causal=causal, attend=kernels.attend)
    params, x = layer.init(KEY), jax.random.normal(KEY, (1, 128, 32))
    assert "pallas_call" in str(jax.make_jaxpr(layer.forward)(params, x))
    assert fnn.verify.check_layer(layer, params, x)


@pytest.mark.parametrize(("tokens", "masked"), [(128, False), (256, False), (100, False), (128, 1)])
@pytest.mark.parametrize("target", ["TPU v5e", "H100"])
def test_the_kernel_is_compiled_where_it_can_be(target, tokens, masked):
    if not targets.targets()[target]:
        pytest.skip(f"the compiler of {target} is not installed")
    layer = fnn.attention(32, 2, causal=True, attend=kernels.attend)
    x = jax.ShapeDtypeStruct((2, tokens, 32), jnp.float32)
    x = (x, jax.ShapeDtypeStruct((2, tokens), bool)) if masked else x
    forward = lambda params, x: layer.forward(params, x)[0]
    report = targets.compile_for(target, forward, jax.eval_shape(layer.init, KEY), x)
    assert ("pallas_call" in report.text) == (tokens != 100 and not masked)
