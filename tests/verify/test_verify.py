"""The gradient checker: right gradients pass, planted wrong ones fail."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LAYERS, LOSSES, OPTIMIZERS

import fnn
from fnn import verify
from fnn.verify import _call as calls, _causes as causes

NETWORK = fnn.mlp((3, 4, 2), activation=fnn.tanh)
PARAMS = NETWORK.init(jax.random.key(0))
X = jax.random.normal(jax.random.key(1), (6, 3))
Y = jnp.array([0, 1, 1, 0, 1, 0])
USUAL = ("dense", "sigmoid", "softmax", "conv2d", "embedding", "fork", "repeat", "skip/serial")
HONEST = [(case, 1) for case in LAYERS if case.name in USUAL] + [
    pytest.param(case, 100, marks=pytest.mark.long) for case in LAYERS
]
SEEDS = pytest.mark.parametrize("seeds", [1, pytest.param(100, marks=pytest.mark.long)])


def test_right_gradients_pass():
    loss = fnn.softmax_cross_entropy
    reports = [
        verify.check_layer(NETWORK, PARAMS, X),
        verify.check_vjp(NETWORK.forward, NETWORK.backward, PARAMS, X),
        verify.check_loss(loss, X, Y),
        verify.check_gradients(
            fnn.value_and_grad(NETWORK, loss), fnn.objective(NETWORK, loss), PARAMS, X, Y
        ),
    ]
    for report in reports:
        report.raise_for_verdict()
        assert report.verdict == "pass"
        assert report.worst < 1e-13


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("factor", [0.0, 1.0001, -1.0, float("nan")])
def test_a_wrong_leaf_fails_at_every_scale(factor, scale):
    loss = fnn.Loss(
        lambda p, t: scale * fnn.mse.value(p, t), lambda p, t: scale * fnn.mse.gradient(p, t)
    )
    right = fnn.value_and_grad(NETWORK, loss)

    def wrong(params, x, y):
        value, grads = right(params, x, y)
        return value, (grads[0] | {"b": grads[0]["b"] * factor}, *grads[1:])

    target = jnp.ones((6, 2))
    report = verify.check_gradients(wrong, fnn.objective(NETWORK, loss), PARAMS, X, target)
    assert report.verdict == "fail"
    assert [leaf.name for leaf in report.leaves if leaf.verdict == "fail"] == ["grads.0.b"]
    with pytest.raises(AssertionError, match="grads.0.b"):
        report.raise_for_verdict()


@pytest.mark.parametrize("x64", [False, True])
def test_the_configuration_is_left_alone(x64):
    def broken(params, residuals, dy, reduce=fnn.total):
        raise RuntimeError("broken")

    with jax.enable_x64(x64):
        before = jax.config.values.copy()
        with pytest.raises(RuntimeError):
            verify.check_layer(NETWORK._replace(backward=broken), PARAMS, X)
        assert verify.check_layer(NETWORK, PARAMS, X).verdict == "pass"
        assert jax.config.jax_enable_x64 is x64
        assert jax.config.values == before
        assert jax.default_matmul_precision.value is None
        assert jax.numpy_dtype_promotion.value == "strict"


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("case", "seeds"), HONEST, ids=lambda value: getattr(value, "name", value))
def test_an_honest_layer_never_fails(case, seeds):
    params = jax.tree.map(np.asarray, case.layer.init(jax.random.key(0)))
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        draw = lambda shape, random=random: random.standard_normal(shape).astype(np.float32)
        moved = jax.tree.map(lambda p, draw=draw: p + 0.5 * draw(p.shape), params)
        never_fails(verify.check_layer(case.layer, moved, case.input(draw)))


@pytest.mark.parametrize("case", LOSSES, ids=lambda c: c.name)
@SEEDS
@pytest.mark.sampled(3)
def test_an_honest_loss_never_fails(case, seeds):
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        shift = np.exp(0.05 * random.standard_normal(case.prediction.shape))
        prediction = np.asarray(0.9 * shift * case.prediction, np.float32)
        probabilities = (case.prediction >= 0).all()
        prediction = np.minimum(prediction, 0.99) if probabilities else prediction
        never_fails(verify.check_loss(case.loss, prediction, case.target))


def never_fails(report):
    report.raise_for_verdict()
    checks = [check for leaf in report.leaves for check in (leaf.native, leaf.differences)]
    assert "fail" not in {check.verdict for check in checks}, str(report)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", OPTIMIZERS, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_honest_optimizer_never_fails(case, dtype):
    params = {"W": jax.random.normal(jax.random.key(0), (4, 3), dtype), "b": jnp.ones(3, dtype)}
    report = verify.check_optimizer(case.make, case.rule, params, per_array=case.per_array)
    report.raise_for_verdict()


def test_a_made_optimizer_is_checked_with_its_learning_rate():
    rule = next(case.rule for case in OPTIMIZERS if case.name == "adam")
    assert verify.check_optimizer(fnn.adam(0.1), rule, PARAMS, learning_rate=0.1).verdict == "pass"
    assert verify.check_optimizer(fnn.adam(0.1), rule, PARAMS, learning_rate=0.2).verdict == "fail"
    with pytest.raises(TypeError, match="constructor"):
        verify.check_optimizer(fnn.adam, rule, PARAMS, learning_rate=0.1)


def test_an_optimizer_in_place_of_its_constructor_is_named():
    with pytest.raises(TypeError, match="constructor"):
        verify.check_optimizer(fnn.adam(0.1), OPTIMIZERS[0].rule, PARAMS)


def cube(params, x, key, power):
    """An objective with an integer leaf, an integer argument, a key and a plain number."""
    del key
    return ((params["w"] ** power) * x.astype(params["w"].dtype)).sum()


def test_any_tree_and_any_function_is_taken():
    params = {"w": jnp.array([1.0, -2.0, 0.5]), "table": jnp.arange(4)}
    args = (jnp.array([1, 2, 3]), jax.random.key(0), 3)

    def by_numpy(params, x, key, power):
        w, x = np.asarray(params["w"]), np.asarray(x)
        return float((w**power * x).sum()), {"w": (power * w ** (power - 1) * x).astype(w.dtype)}

    def branching(params, x, key, power):
        return cube(params, x, key, power) if params["w"].sum() < 0 else None

    verify.check_gradients(by_numpy, cube, params, *args).raise_for_verdict()
    verify.check_gradients(by_numpy, branching, params, *args).raise_for_verdict()
    verify.check_gradients(lambda a: (a * a, 2 * a), lambda a: a * a, 3.0).raise_for_verdict()
    wrong = lambda *a: (by_numpy(*a)[0], {"w": -by_numpy(*a)[1]["w"]})
    assert verify.check_gradients(wrong, cube, params, *args).verdict == "fail"


def test_vjp_takes_trees_and_integers():
    def forward(table, tokens):
        return {"rows": table[tokens], "tokens": tokens}, (tokens, table.shape)

    def backward(table, residuals, dy):
        return jnp.zeros_like(table).at[residuals[0]].add(dy["rows"]), None

    def forgets_repeats(table, residuals, dy):
        return jnp.zeros_like(table).at[residuals[0]].set(dy["rows"]), None

    table, tokens = jnp.arange(8.0).reshape(4, 2), jnp.array([0, 2, 2])
    verify.check_vjp(forward, backward, table, tokens).raise_for_verdict()
    assert verify.check_vjp(forward, forgets_repeats, table, tokens).verdict == "fail"


def test_complex_parameters_are_named():
    f = lambda w: (jnp.abs(w).sum(), w)
    with pytest.raises(TypeError, match="complex64"):
        verify.check_gradients(f, lambda w: jnp.abs(w).sum(), jnp.ones(2, jnp.complex64))


def test_what_is_no_layer_or_no_forward_is_named():
    with pytest.raises(TypeError, match=r"^check_layer: expected a layer, .* check_custom takes"):
        verify.check_layer(jnp.tanh, (), X)
    backward = lambda w, x, dy: (x.T @ dy, dy @ w.T)
    with pytest.raises(TypeError, match=r"^check_vjp: expected forward to return \(y, residuals\)"):
        verify.check_vjp(lambda w, x: x @ w, backward, jnp.ones((X.shape[-1], 2)), X)


def test_a_zero_reference_is_no_pass():
    flat = lambda w: (w * 0).sum()
    report = verify.check_gradients(lambda w: (flat(w), 0 * w), flat, jnp.ones(3))
    assert report.verdict == "inconclusive"
    with pytest.raises(AssertionError, match="zero everywhere"):
        report.raise_for_verdict()
    wrong = verify.check_gradients(lambda w: (flat(w), 0 * w + 1e-20), flat, jnp.ones(3))
    assert wrong.verdict == "fail"
    assert verify.check_layer(fnn.serial(), (), jnp.zeros((0, 3))).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("f", "df", "verdict"),
    [
        (lambda x: jnp.where(x > 0, x, 0), lambda x, y: x > 0, "pass"),
        (lambda x: jnp.where(x > 0, x, 0), lambda x, y: x >= 0, "fail"),
        (lambda x: jnp.maximum(x, 0), lambda x, y: x > 0, "inconclusive"),
        (lambda x: jnp.maximum(x, 0), lambda x, y: x > -9, "fail"),
        (jnp.abs, lambda x, y: jnp.sign(x), "inconclusive"),
    ],
)
def test_a_kink_is_recognised(f, df, verdict):
    x = jnp.array([[0.0, 1.0, -1.0], [2.0, 0.0, -3.0]])
    report = verify.check_layer(fnn.elementwise(f, df), (), x)
    assert report.verdict == verdict, str(report)
    assert verdict == "fail" or report.leaves[0].differences.verdict != "fail"


def largest(share):
    """The maximum of each row, whose gradient is shared among ties by `share`."""

    def backward(p, x, dy):
        return (), dy[:, None] * share((x == x.max(-1, keepdims=True)).astype(x.dtype))

    return lambda p, x: (x.max(-1), x), backward


def clipped(slope):
    forward = lambda p, x: (jnp.clip(x, -1, 1), x)
    return forward, lambda p, x, dy: ((), dy * slope(x).astype(dy.dtype))


INSIDE = lambda x: jnp.abs(x) < 1


@pytest.mark.parametrize(
    ("pair", "verdict"),
    [
        (largest(lambda m: m / m.sum(-1, keepdims=True)), "pass"),
        (largest(lambda m: m * (jnp.cumsum(m, -1) == 1).astype(m.dtype)), "inconclusive"),
        (largest(lambda m: m), "fail"),
        (largest(lambda m: m / m.sum(-1, keepdims=True) ** 2), "fail"),
        (largest(lambda m: (m / m.sum(-1, keepdims=True)).at[1].multiply(-1)), "fail"),
        (clipped(INSIDE), "inconclusive"),
        (clipped(lambda x: jnp.abs(x) <= 1), "inconclusive"),
        (clipped(lambda x: jnp.where(x == 1, 2.0, INSIDE(x).astype(x.dtype))), "fail"),
        (clipped(lambda x: jnp.where(x == 0.5, -1.0, INSIDE(x).astype(x.dtype))), "fail"),
    ],
)
def test_ties_and_borders_are_named_and_hide_nothing_else(pair, verdict):
    x = jnp.array([[0.75, -1.25, 0.75], [0.5, 1.0, -0.375]])
    report = verify.check_vjp(*pair, (), x)
    assert report.verdict == verdict, str(report)
    if verdict == "inconclusive":
        assert "a tie or border" in report.leaves[0].note


def test_what_float32_alone_shows():
    """exp overflows in float32 at 100: right in float64, and NaN for who runs it."""

    def naive(z, t):
        e = jnp.exp(z)
        return e / e.sum(-1, keepdims=True) - jax.nn.one_hot(t, z.shape[-1], dtype=z.dtype)

    loss = fnn.softmax_cross_entropy._replace(gradient=naive)
    small, large = jnp.array([[1.0, 2.0, 0.5]]), jnp.array([[100.0, 2.0, 0.5]])
    verify.check_loss(loss, small, jnp.array([1])).raise_for_verdict()
    report = verify.check_loss(loss, large, jnp.array([1]))
    assert report.verdict == "fail"
    assert report.leaves[0].float64.verdict == "pass"
    assert report.leaves[0].native.verdict == "fail"
    assert "NaN" in report.leaves[0].note


def test_references_that_disagree_are_no_verdict():
    detached = lambda w: (w * jax.lax.stop_gradient(w)).sum()
    w = jnp.array([1.0, 2.0, 3.0])
    report = verify.check_gradients(lambda w: ((w * w).sum(), 2 * w), detached, w)
    assert report.verdict == "inconclusive"
    assert "finite differences agree with what is under test" in report.leaves[1].note
    report = verify.check_gradients(lambda w: ((w * w).sum(), w), detached, w)
    assert report.verdict == "inconclusive"
    assert report.leaves[1].float64.verdict == "pass"


def test_a_function_that_computes_in_float32_is_told_from_a_wrong_one():
    w = jax.random.normal(jax.random.key(0), (5,))
    narrow = lambda w: jnp.cos(w.astype(jnp.float32)).astype(w.dtype)
    objective = lambda w: jnp.sin(w).sum()
    report = verify.check_gradients(lambda w: (objective(w), narrow(w)), objective, w)
    assert report.verdict == "pass"
    assert report.leaves[1].float64.reason == "computes in float32"
    off = lambda w: (objective(w), narrow(w) * (1 + 1e-4))
    assert verify.check_gradients(off, objective, w).verdict == "fail"


def broken(layer, change):
    return layer._replace(
        backward=lambda p, r, dy, reduce=fnn.total: change(*layer.backward(p, r, dy, reduce))
    )


TWICE_DX = broken(fnn.tanh, lambda dp, dx: (dp, 2 * dx))
NO_BIAS = broken(fnn.dense(4, 4), lambda dp, dx: (dp | {"b": 0 * dp["b"]}, dx))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("network", "place"),
    [
        (fnn.serial(fnn.dense(3, 4), TWICE_DX, fnn.dense(4, 2)), ["number 2 of 3", "[1]", "dx"]),
        (
            fnn.serial(fnn.dense(3, 4), TWICE_DX, NO_BIAS),
            ["number 1 of 3", "[2] dense", "dparams.b"],
        ),
        (
            fnn.serial(fnn.dense(3, 4), fnn.repeat(fnn.serial(fnn.dense(4, 4), TWICE_DX), 2)),
            ["[1][1][1]"],
        ),
        (fnn.serial(fnn.dense(3, 4), fnn.skip(NO_BIAS), fnn.tanh), ["[1][0] dense"]),
    ],
)
def test_the_first_wrong_layer_from_the_output_is_named(network, place):
    report = verify.check_layer(network, network.init(jax.random.key(3)), X)
    assert report.verdict == "fail"
    for word in place:
        assert word in report.place, report.place
    assert report.place in " ".join(str(report).split())


def test_a_loss_and_a_joint_are_named():
    network = fnn.serial(fnn.dense(3, 2), broken(fnn.tanh, lambda dp, dx: (dp, 2 * dx)))
    gradient, objective = fnn.value_and_grad(network, fnn.mse), fnn.objective(network, fnn.mse)
    for f in (gradient, jax.jit(gradient)):
        params = network.init(jax.random.key(0))
        report = verify.check_gradients(f, objective, params, X, jnp.ones((6, 2)))
        assert "number 1 of 2" in report.place
    twice = fnn.mse._replace(gradient=lambda p, t: 2 * fnn.mse.gradient(p, t))
    report = verify.check_gradients(
        fnn.value_and_grad(NETWORK, twice),
        fnn.objective(NETWORK, twice),
        PARAMS,
        X,
        jnp.ones((6, 2)),
    )
    assert "loss" in report.place
    joined = fnn.serial(fnn.dense(3, 3), fnn.tanh)
    lost = broken(joined, lambda dp, dx: (dp, 0 * dx))
    report = verify.check_layer(lost, lost.init(jax.random.key(0)), X)
    assert "joined" in report.place


def planted(change):
    """The report on a network's gradient after a change of it."""
    network = fnn.mlp((4, 4, 4), activation=fnn.tanh)
    params = jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(jax.random.key(5), p.shape),
        network.init(jax.random.key(4)),
    )
    x = jax.random.normal(jax.random.key(1), (6, 4))
    right = fnn.value_and_grad(network, fnn.mse)

    def wrong(params, x, y):
        value, grads = right(params, x, y)
        return value, change(grads, params)

    return verify.check_gradients(wrong, fnn.objective(network, fnn.mse), params, x, x[::-1])


def on_w(change):
    return lambda g, p: (g[0] | {"W": change(g[0]["W"], p[0]["W"])}, *g[1:])


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (on_w(lambda g, w: -g), "-1 times the reference: the sign"),
        (on_w(lambda g, w: 2 * g), "2 times"),
        (on_w(lambda g, w: 6 * g), "1/6 is missing"),
        (on_w(lambda g, w: g / 6), "one factor 1/6 too many"),
        (on_w(lambda g, w: g * 6 / 5), "1/(6 - 1)"),
        (on_w(lambda g, w: g.T), "its transpose matches"),
        (on_w(lambda g, w: g + 0.01 * w), "an L2 term"),
        (on_w(lambda g, w: 0 * g), "every entry is zero"),
        (on_w(lambda g, w: g.at[:, 2].set(0)), "only at index 2 of axis 1, and zero there"),
        (on_w(lambda g, w: g.at[1, 2].add(1)), "1 of 16 entries differ"),
        (on_w(lambda g, w: g.at[2:].set(0)), "at indices 2 to 3 of axis 0, the last 2 of 4"),
        (on_w(lambda g, w: jnp.where(w < 0, 2 * g, g)), "all wrong entries are where x < 0"),
        (on_w(lambda g, w: jnp.where(abs(w) > 0.5, 0, g)), "all wrong entries are where |x| >"),
        (on_w(lambda g, w: g * (1 + 1e-8 * jnp.sign(w))), "cause unknown"),
        (on_w(lambda g, w: g[::-1]), "it is reversed along axis 0"),
        (on_w(lambda g, w: g[:, ::-1]), "it is reversed along the last axis"),
        (on_w(lambda g, w: jnp.roll(g, 1)), "its entries are right, in another order"),
        (on_w(lambda g, w: g * jnp.eye(4, dtype=g.dtype)), "only its diagonal is there"),
        (on_w(lambda g, w: g + jnp.eye(4, dtype=g.dtype)), "all wrong entries are on the diagonal"),
        (on_w(lambda g, w: g * jnp.eye(4, dtype=g.dtype)[::-1]), "12 of 16 entries differ"),
        (on_w(lambda g, w: g * (2 + jnp.arange(4.0)[:, None])), "each index of axis 0: 2, 3, 4"),
        (on_w(lambda g, w: g * (2 + jnp.arange(4.0))), "each index of axis 1: 2, 3, 4"),
        (on_w(lambda g, w: g + jnp.cos(g)), "cause unknown"),
        (on_w(lambda g, w: g * w**2), "every entry is the reference times x^2"),
        (on_w(lambda g, w: g.astype(jnp.bfloat16).astype(g.dtype)), "bfloat16's roundoff"),
        (on_w(lambda g, w: g * jnp.nan), "16 of 16 entries are NaN"),
        (lambda g, p: (g[2], (), g[0], ()), "it is the reference of grads.2.W: swapped"),
        (lambda g, p: (g[0] | {"b": g[0]["b"] + jnp.zeros((6, 1))}, *g[1:]), "got float32(6, 4)"),
        (
            lambda g, p: (g[0] | {"b": g[0]["b"] * jnp.ones((6, 1)) / 6}, *g[1:]),
            "its sum over axes [0] matches: the sum is missing",
        ),
        (
            lambda g, p: (g[0] | {"b": g[0]["b"][:, None] * jnp.ones(6) / 6}, *g[1:]),
            "its sum over axes [1] matches: the sum is missing",
        ),
        (lambda g, p: list(g), "expected the tree"),
    ],
)
def test_a_likely_cause_is_given(change, words):
    report = planted(change)
    assert report.verdict == "fail"
    assert words in " ".join(str(report).split()), str(report)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: g.at[2:4].set(0), "indices 2 to 3 of axis 0, and zero there: block 2 of 4"),
        (lambda g: 2 * g, "a 2 too many, or added twice"),
        (lambda g: g.T.reshape(g.shape), "it is stored in the order of its transpose"),
    ],
)
def test_a_head_a_shared_parameter_and_an_order_are_named(change, words):
    objective = lambda w: jnp.sin(w).sum()
    w = jax.random.normal(jax.random.key(0), (8, 3))
    wrong = lambda w: (objective(w), change(jnp.cos(w)))
    report = verify.check_gradients(wrong, objective, w)
    assert words in " ".join(str(report).split()), str(report)


@pytest.mark.parametrize(
    ("dx", "words"),
    [
        (lambda x, dy: dy, "every entry is dy"),
        (lambda x, dy: 3 * x**2 * dy**2, "the reference times dy; not linear in dy"),
        (lambda x, dy: 3 * x * dy, "every entry is 3 times x times dy"),
        (lambda x, dy: 3 * x**2 * dy + x * dy, "the difference is x times dy"),
        (
            lambda x, dy: 2 * dy - 3 * x**2 * dy,
            "every entry is -1 times the reference plus 2 times",
        ),
        (lambda x, dy: 3 * x**2 * dy * jnp.where(x < 0, 2, 1), "all wrong entries are where x < 0"),
        (lambda x, dy: jnp.where(x > 2, jnp.nan, 3 * x**2 * dy), "1 of 6 entries are NaN"),
    ],
)
def test_what_a_wrong_leaf_is_made_of_is_named(dx, words):
    x = jnp.array([[0.3, -1.2, 0.7], [1.4, -0.5, 2.2]])
    report = verify.check_vjp(lambda p, x: (x**3, x), lambda p, x, dy: ((), dx(x, dy)), (), x)
    assert words in " ".join(str(report).split()), str(report)


def test_a_rule_that_is_not_linear_in_its_cotangent_is_named():
    rule = jax.custom_vjp(jnp.sin)
    rule.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (jnp.cos(x) * jnp.sign(dy),))
    assert "not linear in dy" in verify.check_custom(rule, X[0]).leaves[1].note


def test_up_to_which_parameter_a_gradient_is_wrong():
    objective = lambda p: sum(jnp.sin(a).sum() for a in p)
    right = lambda p: (objective(p), [jnp.cos(a) for a in p])
    wrong = lambda p: (objective(p), [jnp.cos(a) * (1 if i > 1 else 2) for i, a in enumerate(p)])
    params = [0.1 * X[0] + i for i in range(4)]
    report = verify.check_gradients(wrong, objective, params)
    assert report.place == "wrong up to grads.1, right from grads.2 on"
    assert verify.check_gradients(right, objective, params).place == ""


def test_small_programs_run_operation_by_operation_from_the_third_on():
    """Theirs are the results of a compiled program, and a loop is always compiled."""
    programs = [lambda call, x, k=k: (k * jnp.tanh(x) @ x.T, {"a": x[0]}) for k in (2.0, 3.0, 4.0)]
    x = jax.random.normal(jax.random.key(0), (5, 7))
    for program, known in zip(programs, (False, False, True), strict=True):
        got, expected = calls.run(program, None, x), program(None, x)
        assert calls._known_operations(calls.traced(program, None, x)[0]) == known
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    loop = lambda call, x: jax.lax.fori_loop(0, 2, lambda i, x: x * x, x)
    for _ in range(3):
        np.testing.assert_array_equal(calls.run(loop, None, x), x**4)
    assert not calls._known_operations(calls.traced(loop, None, x)[0])


@pytest.mark.parametrize("seed", range(3))
def test_a_place_by_chance_is_not_named(seed):
    """Three wrong entries of six are on one side of some number, or in a row, all too often."""
    e, x, noise = np.random.default_rng(seed).normal(size=(3, 6))
    where = np.arange(6) % 2 == 0
    wrong = causes.Wrong(np.where(where, noise, e), e, {"x": np.abs(x) * np.where(where, 2, 1)})
    assert causes.likely_cause(wrong) == "3 of 6 entries differ"


def test_what_is_not_finite_in_few_rows_of_codes_is_named_by_the_codes():
    codes = jnp.array([1, 3, 3, 5])
    report = verify.check_vjp(
        lambda t, i: (t[i], i),
        lambda t, i, dy: (jnp.zeros_like(t).at[i].set(dy), None),
        jax.random.normal(jax.random.key(0), (6, 2)),
        codes,
    )
    assert "in the rows that the integers name more than once" in report.leaves[0].note


@pytest.mark.long
def test_the_verdict_does_not_move():
    """Not with the loss's scale, the batch's order, or jit: of a right gradient, of a wrong one."""
    y = jnp.sin(jnp.arange(12.0).reshape(6, 2))
    order = jnp.array([3, 0, 5, 1, 4, 2])
    for factor, verdict in ((1.0, "pass"), (1 + 1e-5, "fail")):
        for scale in (1e-4, 1.0, 1e4):
            loss = fnn.Loss(
                lambda p, t, s=scale: s * fnn.mse.value(p, t),
                lambda p, t, s=scale * factor: s * fnn.mse.gradient(p, t),
            )
            f, objective = fnn.value_and_grad(NETWORK, loss), fnn.objective(NETWORK, loss)
            for g in (f, jax.jit(f)):
                for rows in (slice(None), order):
                    report = verify.check_gradients(g, objective, PARAMS, X[rows], y[rows])
                    assert report.verdict == verdict


def test_power_is_what_the_check_does():
    """Five times the smallest error it states fails when it is planted, a fifth of it passes."""
    noise = jax.random.uniform(jax.random.key(7), (4, 4), minval=-1, maxval=1)
    noise = noise / jnp.abs(noise).max()
    report = planted(lambda g, p: g)
    power = report.power
    assert report.verdict == "pass"
    assert not power.missed
    assert len({name.split(" in grads")[0] for name in power.seen}) >= 10
    smallest = power.smallest["grads.0.W"]
    assert smallest < 1e-8
    assert (
        planted(on_w(lambda g, w: g + 5 * smallest * noise.astype(g.dtype) * g)).verdict == "fail"
    )
    assert (
        planted(on_w(lambda g, w: g + smallest / 5 * noise.astype(g.dtype) * g)).verdict == "pass"
    )
    assert max(map(len, str(power).splitlines())) <= 100


def test_power_admits_what_it_can_not_see():
    flat = lambda w: (w * 0).sum()
    report = verify.check_gradients(lambda w: (flat(w), 0 * w), flat, jnp.ones(3))
    assert report.power.smallest["grads"] == np.inf
    assert not any(name.endswith("in grads") for name in report.power.seen)


def per_example(report):
    """The leaf "per-example" of a report, or None."""
    return next((leaf for leaf in report.leaves if leaf.name == "per-example"), None)


@pytest.mark.long
@pytest.mark.parametrize("case", LAYERS, ids=lambda c: c.name)
def test_each_example_is_checked_where_there_are_parameters(case):
    params = jax.tree.map(lambda p: p + 0.1, case.layer.init(jax.random.key(0)))
    x = case.input(lambda shape: jax.random.normal(jax.random.key(1), shape))
    report = verify.check_layer(case.layer, params, x)
    report.raise_for_verdict()
    applies = bool(jax.tree.leaves(params)) and case.name != "batch_norm, training"
    assert (per_example(report) is not None) == applies, str(report)


MASK = jnp.array([[1.0, 0.0, 0.5], [2.0, 1.0, 0.0]])
MASKED = fnn.Layer(  # y = x (W * M)^T at every position of every example
    lambda key: {"W": jax.random.normal(key, (2, 3))},
    lambda params, x: (x @ (params["W"] * MASK.astype(x.dtype)).T, x),
    lambda params, x, dy, reduce=fnn.total: (
        {"W": reduce(fnn.Masked(fnn.Outer(dy, x), MASK.astype(x.dtype)))},
        dy @ (params["W"] * MASK.astype(x.dtype)),
    ),
)


def mask_after(params, x, dy, reduce=fnn.total):
    return {"W": reduce(fnn.Outer(dy, x)) * MASK.astype(x.dtype)}, MASKED.backward(params, x, dy)[1]


def mask_after_by_tree(params, x, dy, reduce=fnn.total):
    w = jax.tree.map(
        lambda g: g * 2, reduce(fnn.Masked(fnn.Outer(dy, x), MASK.astype(x.dtype) / 2))
    )
    return {"W": w}, MASKED.backward(params, x, dy)[1]


def no_reduce(params, x, dy, reduce=fnn.total):
    return MASKED.backward(params, x, dy)


def summed_before(params, x, dy, reduce=fnn.total):
    dparams, dx = MASKED.backward(params, x, dy)
    return {"W": reduce(fnn.Direct(dparams["W"], 2))}, dx


def the_mean_for_each(params, x, dy, reduce=fnn.total):
    dparams, dx = MASKED.backward(params, x, dy)
    rows = jnp.broadcast_to(dparams["W"] / len(x), (len(x), 2, 3))
    return {"W": reduce(fnn.Direct(rows, 2))}, dx


def another_order(params, x, dy, reduce=fnn.total):
    dparams, dx = MASKED.backward(params, x, dy, lambda factor: reduce(reverse(factor)))
    return dparams, dx


def reverse(factor):
    return fnn.Masked(fnn.Outer(factor.factor.left[::-1], factor.factor.right[::-1]), factor.mask)


def positions_as_examples(params, x, dy, reduce=fnn.total):
    flat = fnn.Outer(dy.reshape(-1, 2), x.reshape(-1, 3))
    dx = MASKED.backward(params, x, dy)[1]
    return {"W": reduce(fnn.Masked(flat, MASK.astype(x.dtype)))}, dx


def mean_over_positions(params, x, dy, reduce=fnn.total):
    return MASKED.backward(params, x, dy, lambda factor: reduce(mean(factor, dy.shape[1])))


def mean(factor, positions):
    return fnn.Masked(fnn.Outer(factor.factor.left / positions, factor.factor.right), factor.mask)


TIED = fnn.Layer(  # y = W^T tanh(W x)
    lambda key: {"W": jax.random.normal(key, (2, 3))},
    lambda params, x: (jnp.tanh(x @ params["W"].T) @ params["W"], x),
    lambda params, x, dy, reduce=fnn.total: tied(params, x, dy, lambda a, b: reduce(fnn.Sum(a, b))),
)


def tied(params, x, dy, reduce_both):
    h = jnp.tanh(x @ params["W"].T)
    dz = (dy @ params["W"].T) * (1 - h * h)
    return {"W": reduce_both(fnn.Outer(h, dy), fnn.Outer(dz, x))}, dz @ params["W"]


def tied_by_two_reductions(params, x, dy, reduce=fnn.total):
    return tied(params, x, dy, lambda a, b: reduce(a) + reduce(b))


def tied_by_tree(params, x, dy, reduce=fnn.total):
    return tied(params, x, dy, lambda a, b: jax.tree.map(jnp.add, reduce(a), reduce(b)))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("shape", [(6, 3), (6, 5, 3)])
@pytest.mark.parametrize("layer", [MASKED, TIED])
def test_factors_for_each_example_pass(layer, shape):
    x = jax.random.normal(jax.random.key(1), shape)
    report = verify.check_layer(layer, layer.init(jax.random.key(0)), x)
    report.raise_for_verdict()
    assert per_example(report).verdict == "pass"


@pytest.mark.parametrize(
    ("layer", "backward", "words"),
    [
        (MASKED, mask_after, "reduce(fnn.Masked(factor, array))"),
        (MASKED, mask_after_by_tree, "what `reduce` returned must be returned unchanged"),
        (MASKED, no_reduce, "params['W'] is not what `reduce` returned"),
        (MASKED, summed_before, "batch axes begin with the example axes"),
        (MASKED, the_mean_for_each, "the gradient of params.W is not each example's own"),
        (MASKED, another_order, "the gradient of params.W is not each example's own"),
        (TIED, tied_by_two_reductions, "reduce(fnn.Sum(a, b))"),
        (TIED, tied_by_tree, "what `reduce` returned must be returned unchanged"),
    ],
)
def test_right_as_a_sum_alone_fails(layer, backward, words):
    x = jax.random.normal(jax.random.key(1), (6, 3))
    report = verify.check_layer(layer._replace(backward=backward), layer.init(jax.random.key(0)), x)
    assert [leaf.name for leaf in report.leaves if leaf.verdict == "fail"] == ["per-example"]
    assert "right as a sum, but no per-example statistic" in per_example(report).note
    assert words in per_example(report).note, per_example(report).note


@pytest.mark.parametrize(
    ("backward", "leaf"),
    [(positions_as_examples, "per-example"), (mean_over_positions, "dparams.W")],
)
def test_wrong_positions_fail(backward, leaf):
    x = jax.random.normal(jax.random.key(1), (6, 5, 3))
    params = MASKED.init(jax.random.key(0))
    report = verify.check_layer(MASKED._replace(backward=backward), params, x)
    assert [found.name for found in report.leaves if found.verdict == "fail"] == [leaf]


SLOPE = fnn.Layer(  # y = a x for one example's features x (d,), with one number a
    lambda key: jnp.ones(()),
    lambda a, x: (a * x, x),
    lambda a, x, dy, reduce=fnn.total: (reduce(fnn.Direct((dy * x).sum(-1), 0)), a * dy),
)


def centred(reduce_w):
    """y = (x - its mean over the batch) W^T: a layer that mixes the examples."""
    return fnn.Layer(
        MASKED.init,
        lambda params, x: ((x - x.mean(0)) @ params["W"].T, x),
        lambda params, x, dy, reduce=fnn.total: (
            {"W": reduce_w(reduce, dy, x - x.mean(0))},
            (dy - dy.mean(0)) @ params["W"],
        ),
    )


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (centred(lambda reduce, dy, x: reduce(fnn.Outer(dy, x))), (6, 3)),
        (centred(lambda reduce, dy, x: dy.T @ x), (6, 3)),
        (centred(lambda reduce, dy, x: reduce(fnn.reductions.Whole(dy.T @ x, "centred"))), (6, 3)),
        (MASKED._replace(backward=lambda p, x, dy: MASKED.backward(p, x, dy)), (6, 3)),
        (MASKED._replace(backward=no_reduce), (1, 3)),
        (SLOPE, (3,)),
        (fnn.serial(fnn.tanh, fnn.sigmoid), (6, 3)),
    ],
    ids=["mixed", "mixed, no reduce", "whole", "takes no reduce", "one", "no batch", "no params"],
)
def test_examples_that_can_not_be_told_apart_are_not_checked(layer, shape):
    x = jax.random.normal(jax.random.key(1), shape)
    report = verify.check_layer(layer, layer.init(jax.random.key(0)), x)
    report.raise_for_verdict()
    assert per_example(report) is None


def test_a_whole_gradient_alone_is_not_checked():
    """A factor for the whole batch, of a layer whose forward treats the examples apart."""

    def backward(params, x, dy, reduce=fnn.total):
        dparams, dx = MASKED.backward(params, x, dy)
        return {"W": reduce(fnn.reductions.Whole(dparams["W"], "mine"))}, dx

    report = verify.check_layer(
        MASKED._replace(backward=backward), MASKED.init(jax.random.key(0)), jnp.ones((6, 3)) * X
    )
    report.raise_for_verdict()
    assert per_example(report) is None


def test_trees_of_inputs_and_outputs():
    """Two inputs, one of them integers; two heads. One head's gradient is wrong."""

    def forward(params, x):
        rows = params["table"][x["code"]] + x["number"]
        return {"sum": rows @ params["W"].T, "row": rows}, (rows, x["code"])

    def backward(params, residuals, dy, reduce=fnn.total):
        rows, code = residuals
        drows = dy["sum"] @ params["W"] + dy["row"]
        hot = (code[..., None] == jnp.arange(4)).astype(rows.dtype)
        dparams = {"W": reduce(fnn.Outer(dy["sum"], rows)), "table": reduce(fnn.Outer(hot, drows))}
        return dparams, {"code": None, "number": drows}

    def no_row(params, residuals, dy, reduce=fnn.total):
        return backward(params, residuals, dy | {"row": 0 * dy["row"]}, reduce)

    init = lambda key: {"W": jnp.ones((2, 3)), "table": jax.random.normal(key, (4, 3))}
    layer = fnn.Layer(init, forward, backward)
    x = {"code": jnp.array([0, 3, 1, 3, 2, 0]), "number": X}
    params = init(jax.random.key(0))
    report = verify.check_layer(layer, params, x)
    report.raise_for_verdict()
    assert {leaf.name for leaf in report.leaves} == {
        "dparams.W", "dparams.table", "dx.number", "per-example"
    }  # fmt: skip
    assert verify.check_layer(layer._replace(backward=no_row), params, x).verdict == "fail"


def both_heads(scale):
    """The sum of two heads' losses; the second head's gradient times `scale`."""
    return fnn.Loss(
        lambda p, t: fnn.mse.value(p[0], t[0]) + fnn.softmax_cross_entropy.value(p[1], t[1]),
        lambda p, t: (
            fnn.mse.gradient(p[0], t[0]),
            scale * fnn.softmax_cross_entropy.gradient(p[1], t[1]),
        ),
    )


@pytest.mark.long
def test_a_loss_of_two_heads():
    prediction, target = (X, X[:, :2]), (X[::-1], Y)
    verify.check_loss(both_heads(1), prediction, target).raise_for_verdict()
    report = verify.check_loss(both_heads(2), prediction, target)
    assert [leaf.name for leaf in report.leaves if leaf.verdict == "fail"] == ["gradient.1"]
    for change in (jnp.sum, lambda losses: losses[:, None]):
        loss = both_heads(1)
        other = loss._replace(value=lambda p, t, v=loss.value, change=change: change(v(p, t)))
        report = verify.check_loss(other, prediction, target)
        assert report.verdict == "fail"
        assert "one loss per example" in report.leaves[0].note


def contrastive(by_target):
    """The softmax cross-entropy of finding the own target among the batch's."""

    def value(p, t):
        scores = p @ t.T if by_target else t @ p.T
        return -jnp.diagonal(jax.nn.log_softmax(scores, -1))

    return fnn.Loss(value, lambda p, t: jax.grad(lambda p: value(p, t).sum())(p))


@pytest.mark.parametrize("by_target", [True, False])
def test_a_loss_that_mixes_examples_has_to_say_so(by_target):
    loss = contrastive(by_target)
    report = verify.check_loss(loss, X, X[::-1])
    assert report.verdict == "fail"
    assert "depends on other examples of the batch" in report.leaves[0].note
    assert [leaf.verdict for leaf in report.leaves[1:]] == ["pass"]
    verify.check_loss(loss._replace(mixes=True), X, X[::-1]).raise_for_verdict()
    centred = lambda p, t: ((p - p.mean(0) - t) ** 2).mean(-1)
    of_sum = lambda p, t: jax.grad(lambda p: centred(p, t).sum())(p)
    assert verify.check_loss(fnn.Loss(centred, of_sum), X, X[::-1]).verdict == "fail"


def test_a_loss_per_sequence_is_given_its_example_axes():
    value = lambda p, t: ((p - t) ** 2).mean((-2, -1))
    loss = fnn.Loss(value, lambda p, t: 2 * (p - t) / (p.shape[-1] * p.shape[-2]))
    p, t = jnp.sin(jnp.arange(24.0)).reshape(4, 3, 2), jnp.ones((4, 3, 2))
    verify.check_loss(loss, p, t, example_axes=1).raise_for_verdict()
    for axes in (None, 0, 2):
        report = verify.check_loss(loss, p, t, example_axes=axes)
        assert report.verdict == "fail"
        assert "expected one loss per example" in report.leaves[0].note
    mixed = loss._replace(value=lambda p, t: value(p, t) - value(p, t).mean() + 1)
    report = verify.check_loss(mixed, p, t, example_axes=1)
    assert "depends on other examples" in report.leaves[0].note


@pytest.mark.parametrize("scale", [1, 2])
def test_a_network_with_two_heads(scale):
    network = fnn.serial(fnn.dense(3, 4), fnn.fork(fnn.dense(4, 3), fnn.dense(4, 2)))
    params, loss = network.init(jax.random.key(0)), both_heads(scale)
    f, objective = fnn.value_and_grad(network, loss), fnn.objective(network, loss)
    report = verify.check_gradients(f, objective, params, X, (X[::-1], Y))
    assert report.verdict == ("pass" if scale == 1 else "fail")
    assert ("loss" in report.place) == (scale == 2)


@pytest.mark.long
def test_a_layer_that_varies_is_checked_at_a_key():
    network = fnn.serial(
        fnn.repeat(fnn.serial(fnn.dense(3, 3), fnn.tanh, fnn.dropout(0.25)), 3), fnn.dense(3, 2)
    )
    params, key = network.init(jax.random.key(0)), jax.random.key(1)
    trained = fnn.at(network, key)
    plain, dropped = (f.forward(params, X)[0] for f in (network, trained))
    assert not jnp.allclose(plain, dropped)
    for layer in (network, trained):
        verify.check_layer(layer, params, X).raise_for_verdict()
    y = X[:, :2]
    norms = fnn.per_example.squared_norms(trained, fnn.mse)(params, X, y)
    wide, _ = jax.flatten_util.ravel_pytree(
        jax.jacrev(lambda p: fnn.mse.value(trained.forward(p, X)[0], y))(params)
    )
    assert jnp.allclose(norms.sum(), jnp.square(wide).sum(), rtol=1e-4)


@pytest.mark.long
def test_a_wrong_layer_that_varies_is_refused_and_named():
    right = fnn.dropout(0.25)
    wrong = right._replace(
        varying=fnn.Varying(
            lambda key, s: broken(right.varying.at(key, s), lambda dp, dx: (dp, 2 * dx)),
            right.varying.measure,
        )
    )
    network = fnn.repeat(fnn.serial(fnn.dense(3, 3), fnn.tanh, wrong), 2)
    params = network.init(jax.random.key(0))
    report = verify.check_layer(fnn.at(network, jax.random.key(1)), params, X)
    assert report.verdict == "fail"
    assert "[1][2]" in report.place


@pytest.mark.parametrize(
    ("dx", "linear"),
    [
        (lambda y, dy: 1 - y * y, False),
        (lambda y, dy: (1 - y * y) * dy + 0.01 * y, False),
        (lambda y, dy: (1 - y * y) * jnp.clip(dy, -0.5, 0.5), False),
        (lambda y, dy: (1 + y * y) * dy, True),
        (lambda y, dy: ((1 + y * y) * dy + 1e9 * dy) - 1e9 * dy, True),
    ],
    ids=["no dy", "a penalty", "clipped", "linear", "linear, and cancels"],
)
def test_what_is_not_multiplied_by_the_cotangent_is_named(dx, linear):
    wrong = fnn.tanh._replace(backward=lambda p, r, dy, reduce=fnn.total: ((), dx(r[1], dy)))
    report = verify.check_layer(wrong, (), X)
    assert report.verdict == "fail"
    assert ("not multiplied by the cotangent" in report.leaves[0].note) != linear
