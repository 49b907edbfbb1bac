"""Kernels and functions with rules of their own, and what the checker makes of float32 in them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

import fnn
from fnn import verify

X = jax.random.normal(jax.random.key(0), (5, 4))
W = jax.random.normal(jax.random.key(1), (4,))
ORDER = np.array([2, 0, 3, 1])
SCALE = np.array([0.5, 1.5, 2.0, -1.0])


def swish(x):
    return x * jax.nn.sigmoid(x)


def swish_slope(x):
    s = jax.nn.sigmoid(x)
    return s + x * s * (1 - s)


def narrow(f):
    """f in float32, whatever it is given, in the input's dtype again."""
    return lambda x: f(x.astype(jnp.float32)).astype(x.dtype)


def only_float32(f):
    """f as a kernel that was compiled for float32 alone."""

    def kernel(x):
        if x.dtype != jnp.float32:
            raise RuntimeError("unsupported dtype")
        return f(x)

    return kernel


def pallas(f):
    def kernel(x_ref, y_ref):
        y_ref[...] = f(x_ref[...])

    return lambda x: pl.pallas_call(
        kernel, out_shape=jax.ShapeDtypeStruct(x.shape, jnp.float32), interpret=True
    )(x)


KERNELS = {"narrow": narrow, "only float32": only_float32, "pallas": pallas}


def with_vjp(forward, slope):
    @jax.custom_vjp
    def fused(x):
        return forward(x)

    fused.defvjp(lambda x: (forward(x), x), lambda x, dy: (dy * slope(x).astype(dy.dtype),))
    return fused


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_a_kernel_passes_and_a_wrong_one_fails(kernel):
    right = with_vjp(kernel(swish), kernel(swish_slope))
    report = verify.check_custom(right, X, reference=swish)
    assert report.verdict == "pass", str(report)
    assert [leaf.name for leaf in report.leaves] == ["y", "args.0"]
    for wrong in (lambda x: 1.0001 * swish_slope(x), lambda x: jax.nn.sigmoid(x)):
        report = verify.check_custom(with_vjp(kernel(swish), kernel(wrong)), X, reference=swish)
        assert [leaf.verdict for leaf in report.leaves] == ["pass", "fail"], str(report)
    off = with_vjp(kernel(lambda x: 1.0001 * swish(x)), kernel(swish_slope))
    report = verify.check_custom(off, X, reference=swish)
    assert [leaf.verdict for leaf in report.leaves] == ["fail", "pass"], str(report)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_a_pair_with_a_reference(kernel):
    def check(factor):
        return verify.check_vjp(
            lambda p, x: (kernel(swish)(x), x),
            lambda p, x, dy: ((), factor * dy * kernel(swish_slope)(x)),
            (),
            X,
            reference=lambda p, x: swish(x),
        )

    check(1.0).raise_for_verdict()
    assert [leaf.name for leaf in check(1.0).leaves] == ["y", "dx"]
    assert check(1.001).verdict == "fail"


def test_a_rule_for_forward_mode():
    for factor, verdict in ((0.5, "pass"), (2.0, "fail")):
        root = jax.custom_jvp(lambda x: jnp.sqrt(x))
        root.defjvp(lambda p, t, c=factor: (jnp.sqrt(*p), c * t[0] / jnp.sqrt(*p)))
        report = verify.check_custom(root, jnp.abs(X), reference=jnp.sqrt)
        assert report.verdict == verdict, str(report)


def test_trees_and_integers_are_arguments():
    @jax.custom_vjp
    def take(tree, i):
        return {"rows": tree["w"][i], "i": i}

    take.defvjp(
        lambda tree, i: (take(tree, i), (tree["w"].shape, i)),
        lambda r, dy: ({"w": jnp.zeros(r[0], dy["rows"].dtype).at[r[1]].add(dy["rows"])}, None),
    )
    plain = lambda tree, i: {"rows": jnp.take(tree["w"], i), "i": i}
    report = verify.check_custom(take, {"w": W}, jnp.array([1, 1, 3]), reference=plain)
    assert report.verdict == "pass", str(report)
    assert [leaf.name for leaf in report.leaves] == ["y.rows", "args.0.w"]


def test_a_function_checked_against_itself_is_named():
    wrong = with_vjp(swish, lambda x: 2 * swish_slope(x))
    for reference in (wrong, lambda x: wrong(x) * 1.0):
        with pytest.raises(ValueError, match="the reference runs the rule under test"):
            verify.check_custom(wrong, X, reference=reference)
    report = verify.check_vjp(
        lambda p, x: (wrong(x), x), lambda p, x, dy: ((), 2 * dy * swish_slope(x)), (), X
    )
    assert report.verdict == "inconclusive"
    assert "checked against itself" in report.leaves[0].note
    assert "fused" in report.leaves[0].note


def test_another_library_through_arrays():
    torch = pytest.importorskip("torch")

    def forward(p, x):
        x = torch.from_numpy(np.array(x, np.float32))
        return torch.nn.functional.silu(x).numpy(), x

    def backward(p, x, dy, factor=1.0):
        x = x.clone().requires_grad_()
        torch.nn.functional.silu(x).backward(torch.from_numpy(np.array(dy, np.float32)))
        return (), factor * x.grad.numpy()

    reference = lambda p, x: swish(x)
    verify.check_vjp(forward, backward, (), X, reference=reference).raise_for_verdict()
    wrong = lambda p, x, dy: backward(p, x, dy, 1.001)
    assert verify.check_vjp(forward, wrong, (), X, reference=reference).verdict == "fail"


@pytest.mark.long
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_layer_that_computes_in_another_dtype(dtype):
    network = fnn.compute_in(fnn.mlp((4, 6, 3), activation=fnn.tanh), dtype)
    params = network.init(jax.random.key(2))
    report = verify.check_layer(network, params, X)
    assert report.verdict == "pass", str(report)
    bounds = [leaf.native.bound for leaf in report.leaves if leaf.native.verdict == "pass"]
    assert max(bounds) > float(jnp.finfo(dtype).eps)

    def wrong(p, r, dy, reduce=fnn.total):
        dparams, dx = network.backward(p, r, dy, reduce)
        return dparams, 1.5 * dx

    assert verify.check_layer(network._replace(backward=wrong), params, X).verdict == "fail"


CLOSED_OVER = {
    "index": lambda x: x[ORDER] * W,
    "take": lambda x: jnp.take(x, ORDER) * W,
    "product": lambda x: x * SCALE,
    "jitted": jax.jit(lambda x: x[ORDER] * SCALE),
}


@pytest.mark.long
@pytest.mark.parametrize("f", CLOSED_OVER.values(), ids=CLOSED_OVER)
def test_numpy_arrays_that_a_function_closes_over(f):
    objective = lambda x: jnp.sin(f(x)).sum()
    x = jnp.array([1.0, 2.0, 3.0, 4.0])
    before = jax.jit(objective)(x)
    verify.check_gradients(jax.value_and_grad(objective), objective, x).raise_for_verdict()
    verify.check_vjp(
        lambda p, x: (f(x), x), lambda p, x, dy: ((), jax.vjp(f, x)[1](dy)[0]), (), x
    ).raise_for_verdict()
    assert jax.jit(objective)(x) == before == objective(x)
    assert jax.grad(objective)(x).dtype == jnp.float32


def test_a_loop_that_carries_a_float32_array():
    def objective(x):
        step = lambda i, carry: carry * x
        return jax.lax.fori_loop(0, 3, step, W).sum()

    right = lambda x: (objective(x), 3 * W * x**2)
    report = verify.check_gradients(right, objective, X[0])
    assert report.verdict == "pass", str(report)
    wrong = lambda x: (objective(x), 3.01 * W * x**2)
    assert verify.check_gradients(wrong, objective, X[0]).verdict == "fail"


def test_an_objective_in_numpy():
    objective = lambda x: (np.asarray(x) ** 3).sum()
    right = lambda x: (objective(x), 3 * np.asarray(x) ** 2)
    verify.check_gradients(right, objective, X[0]).raise_for_verdict()
    wrong = lambda x: (objective(x), 2.999 * np.asarray(x) ** 2)
    assert verify.check_gradients(wrong, objective, X[0]).verdict == "fail"


@pytest.mark.long
@pytest.mark.parametrize("scale", [1, 10, 20, 40, 100, 300])
def test_a_right_attention_does_not_fail_at_saturated_logits(scale):
    logits = scale * jax.random.normal(jax.random.key(0), (4, 6))
    values = jax.random.normal(jax.random.key(1), (6, 3))

    def forward(v, z):
        return jax.nn.softmax(z) @ v, (z, jax.nn.logsumexp(z, -1, keepdims=True))

    def backward(v, residuals, dy, sign=1):
        p = jnp.exp(residuals[0] - residuals[1])
        delta = (dy * (p @ v)).sum(-1, keepdims=True)
        return p.T @ dy, p * (dy @ v.T - sign * delta)

    assert verify.check_vjp(forward, backward, values, logits).verdict != "fail"
    wrong = lambda v, r, dy: backward(v, r, dy, -1)
    assert verify.check_vjp(forward, wrong, values, logits).verdict == "fail"


@pytest.mark.sampled(4)
@pytest.mark.parametrize("scale", [1, 10, 30, 60])
def test_a_right_rule_does_not_fail_in_a_tail_where_autodiff_cancels(scale):
    z = scale * jnp.array([[0.5, 1.0, -1.0, 0.8]])
    slope = lambda x, y: jax.nn.sigmoid(x) * jax.nn.sigmoid(-x)
    report = verify.check_layer(fnn.elementwise(jax.nn.sigmoid, slope), (), z)
    assert report.verdict == ("pass" if scale < 60 else "inconclusive"), str(report)
    twice = fnn.elementwise(jax.nn.sigmoid, lambda x, y: 2 * slope(x, y))
    assert verify.check_layer(twice, (), z).verdict == "fail"


def test_a_reference_that_is_nan_is_no_bound_for_the_value():
    norm = lambda x: jnp.linalg.norm(x) ** 2
    report = verify.check_gradients(lambda x: ((x * x).sum(), 2 * x), norm, jnp.zeros(3))
    assert [leaf.verdict for leaf in report.leaves] == ["pass", "inconclusive"]


def test_small_entries_do_not_drown_in_a_narrow_dtype():
    """1 - y y with y saved in the input's dtype, computed in float32: bfloat16 leaves few digits of
    the small entries, autodiff of the same float32 computation keeps them."""
    x = jnp.array([[0.1, 0.5, 2.8, 3.1, 3.3]], jnp.bfloat16)
    up = lambda a: a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a
    tanh = lambda p, x: (jnp.tanh(up(x)).astype(x.dtype), (x, jnp.tanh(up(x)).astype(x.dtype)))

    def from_y(p, residuals, dy):
        _, y = residuals
        return (), ((1 - up(y) ** 2) * up(dy)).astype(y.dtype)

    def from_x(p, residuals, dy):
        x, _ = residuals
        return (), ((1 - jnp.tanh(up(x)) ** 2) * up(dy)).astype(x.dtype)

    verify.check_vjp(tanh, from_x, (), x).raise_for_verdict()
    report = verify.check_vjp(tanh, from_y, (), x)
    assert report.verdict != "pass"
    assert report.leaves[0].float64.verdict == "pass"
    assert "loses digits" in report.leaves[0].note


def layer_norm(save):
    """Layer normalisation whose backward reads the mean and the standard deviation as saved."""

    def forward(p, x):
        mean = x.mean(-1, keepdims=True)
        rate = 1 / jnp.sqrt(jnp.square(x - mean).mean(-1, keepdims=True) + 1e-5)
        return (x - mean) * rate, (x, save(mean), save(rate))

    def backward(p, residuals, dy):
        x, mean, rate = residuals[0], *(a.astype(dy.dtype) for a in residuals[1:])
        xhat = (x - mean) * rate
        inner = dy - dy.mean(-1, keepdims=True) - xhat * (dy * xhat).mean(-1, keepdims=True)
        return (), rate * inner

    return forward, backward


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("shift", [0, 100])
def test_statistics_saved_in_half_precision_are_refused(dtype, shift):
    report = verify.check_vjp(*layer_norm(lambda a: a), (), X + shift)
    assert report.verdict == "pass", str(report)
    if dtype != jnp.float32:
        report = verify.check_vjp(*layer_norm(lambda a: a.astype(dtype)), (), X + shift)
        assert report.verdict == "fail", str(report)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("right", [True, False])
def test_a_sum_that_stops_growing_is_refused(right):
    """In float16 one by one, 5000 + 0.5 is 5000: with terms of both signs it stays small."""

    def backward(p, x, dy):
        one_by_one = jax.lax.scan(lambda total, row: (total + row, None), 0 * p, dy * x)[0]
        return (dy * x).sum(0) if right else one_by_one, dy * p

    x = 0.5 + jnp.abs(jax.random.normal(jax.random.key(1), (5000, 3), jnp.float16))
    p = jnp.full(3, 1.5, jnp.float16)
    report = verify.check_vjp(lambda p, x: (x * p, x), backward, p, x)
    assert report.verdict == ("pass" if right else "fail"), str(report)


def weights(total):
    """A matrix product whose weight gradient is `total` of the examples' outer products."""

    def backward(w, x, dy):
        return total(x[:, :, None] * dy[:, None, :]), dy @ w.T

    return lambda w, x: (x @ w, x), backward


TOTALS = {
    "right": lambda rows: rows.sum(0),
    "wrong": lambda rows: jax.lax.scan(lambda t, row: (t + row, None), 0 * rows[0], rows)[0],
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", TOTALS)
def test_weight_gradients_summed_in_half_precision_are_refused(name, dtype):
    """Terms of both signs hide it: the sum stays small. A cotangent with the signs of J v shows."""
    x = jax.random.normal(jax.random.key(0), (3000, 16), dtype)
    w = jax.random.normal(jax.random.key(1), (16, 4), dtype) / 4
    report = verify.check_vjp(*weights(TOTALS[name]), w, x)
    assert report.verdict == ("fail" if name == "wrong" else "pass"), str(report)


TAILS = {
    "expm1 + 1": (lambda x: jnp.expm1(-x) + 1, lambda x: -jnp.exp(-x)),
    "s(1 - s)": (jax.nn.sigmoid, lambda x: jax.nn.sigmoid(x) * (1 - jax.nn.sigmoid(x))),
    "sech^2": (jnp.tanh, lambda x: 1 / jnp.cosh(x) ** 2),
    "1 - y^2": (jnp.tanh, lambda x: 1 - jnp.tanh(x) ** 2),
}


@pytest.mark.long
@pytest.mark.parametrize("scale", [1, 10, 30, 60])
@pytest.mark.parametrize(("f", "slope"), TAILS.values(), ids=TAILS)
def test_a_right_rule_never_fails_far_out(f, slope, scale):
    z = scale * jnp.array([[0.5, 1.0, -1.0, 0.8]])
    check = lambda c: verify.check_layer(fnn.elementwise(f, lambda x, y: c * slope(x)), (), z)
    report = check(1)
    assert report.verdict in (("pass",) if scale == 1 else ("pass", "inconclusive")), str(report)
    assert check(1.5).verdict == "fail" or not report.leaves[0].expected.any()


def test_a_report_as_json_and_in_a_notebook():
    report = verify.check_layer(fnn.elementwise(jnp.sin, lambda x, y: jnp.inf * x), (), X)
    got = json.loads(report.to_json())
    assert got["verdict"] == "fail"
    assert got["leaves"][0]["float64"] == {"verdict": "fail", "error": None, "bound": 1e-9}
    shown = report._repr_html_()
    assert "<td>dx</td>" in shown
    assert "&gt;" in shown
    passed = verify.check_layer(fnn.tanh, (), jnp.array([[0.5, 1.0]]))._repr_html_()
    assert "<caption>check_layer: pass: these inputs can&#x27;t show no zeros" in passed


@pytest.mark.sampled(4)
@pytest.mark.parametrize("seed", range(4))
def test_a_rule_that_continues_a_zero_branch_is_in_doubt_not_wrong(seed):
    """optax's `weighted_logsoftmax` at weights of 0: its rule is right, `where`'s autodiff is 0."""

    @jax.custom_jvp
    def weighted(x, w):
        return jnp.where(w != 0, w * jax.nn.log_softmax(x), 0.0)

    @weighted.defjvp
    def _jvp(primals, tangents):
        (x, w), (dx, dw) = primals, tangents
        inner = dx - jnp.sum(jax.nn.softmax(x) * dx, -1, keepdims=True)
        return weighted(x, w), dw * jax.nn.log_softmax(x) + w * inner

    x = jax.random.normal(jax.random.key(seed), (2, 5))
    report = verify.check_custom(weighted, x, jnp.zeros((2, 5)))
    weights = next(leaf for leaf in report.leaves if leaf.name == "args.1")
    assert weights.verdict == "inconclusive", str(report)
    assert "finite differences agree with what is under test" in weights.note


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
@pytest.mark.parametrize(("factor", "verdict"), [(1, "pass"), (1 + 1e-6, "fail")])
def test_float32_arrays_that_a_rule_closes_over(wrap, factor, verdict):
    """What is computed from them alone is in float64 in the float64 check."""
    a = jax.random.uniform(jax.random.key(0), (3, 3), minval=1.0, maxval=2.0)

    @jax.custom_vjp
    def f(x):
        return wrap(lambda x: x / a + x @ jnp.exp(a).T @ a)(x)

    pull = wrap(lambda dy: factor * dy * (1 / a) + dy @ (a.T @ jnp.exp(a)))
    f.defvjp(lambda x: (f.fun(x), None), lambda _, dy: (pull(dy),))
    report = verify.check_custom(f, jax.random.normal(jax.random.key(1), (3, 3)))
    assert report.verdict == verdict, str(report)
    assert a.dtype == f(a).dtype == jnp.float32
