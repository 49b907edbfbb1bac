"""The judge: right gradients pass, planted wrong ones are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LAYERS, LOSSES, OPTIMIZERS

import fnn
from fnn import verify

NETWORK = fnn.mlp((3, 4, 2), activation=fnn.tanh)
PARAMS = NETWORK.init(jax.random.key(0))
X = jax.random.normal(jax.random.key(1), (6, 3))
Y = jnp.array([0, 1, 1, 0, 1, 0])
SEEDS = 100


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
        assert report.worst < 1e-14


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("factor", [0.0, 1.0001, -1.0, float("nan")])
def test_a_wrong_leaf_is_refused_at_every_scale(factor, scale):
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


@pytest.mark.parametrize("case", LAYERS, ids=lambda c: c.name)
def test_an_honest_layer_is_never_refused(case):
    params = jax.tree.map(np.asarray, case.layer.init(jax.random.key(0)))
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        draw = lambda shape, random=random: random.standard_normal(shape).astype(np.float32)
        moved = jax.tree.map(lambda p, draw=draw: p + 0.5 * draw(p.shape), params)
        never_refused(verify.check_layer(case.layer, moved, draw((7, case.d_in))))


@pytest.mark.parametrize("case", LOSSES, ids=lambda c: c.name)
def test_an_honest_loss_is_never_refused(case):
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        shift = np.exp(0.05 * random.standard_normal(case.prediction.shape))
        prediction = np.asarray(0.9 * shift * case.prediction, np.float32)
        probabilities = (case.prediction >= 0).all()
        prediction = np.minimum(prediction, 0.99) if probabilities else prediction
        never_refused(verify.check_loss(case.loss, prediction, case.target))


def never_refused(report):
    report.raise_for_verdict()
    rungs = [r for leaf in report.leaves for r in (leaf.native, leaf.differences)]
    assert "fail" not in {rung.verdict for rung in rungs}, str(report)


@pytest.mark.parametrize("case", OPTIMIZERS, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_honest_optimizer_is_never_refused(case, dtype):
    params = {"W": jax.random.normal(jax.random.key(0), (4, 3), dtype), "b": jnp.ones(3, dtype)}
    verify.check_optimizer(case.make, case.rule, params).raise_for_verdict()


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
    assert report.leaves[0].differences.verdict in ("skipped", "fail")


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
    assert report.verdict == "inconclusive"
    assert "less than float64" in report.leaves[1].note
    off = lambda w: (objective(w), narrow(w) * (1 + 1e-4))
    assert verify.check_gradients(off, objective, w).verdict == "fail"


def broken(layer, change):
    return layer._replace(
        backward=lambda p, r, dy, reduce=fnn.total: change(*layer.backward(p, r, dy, reduce))
    )


TWICE_DX = broken(fnn.tanh, lambda dp, dx: (dp, 2 * dx))
NO_BIAS = broken(fnn.dense(4, 4), lambda dp, dx: (dp | {"b": 0 * dp["b"]}, dx))


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
        (on_w(lambda g, w: g.at[:, 2].set(0)), "index 2 of axis 1 alone, and zero there"),
        (on_w(lambda g, w: g.at[1, 2].add(1)), "1 of 16 entries differ"),
        (on_w(lambda g, w: g.astype(jnp.bfloat16).astype(g.dtype)), "bfloat16's roundoff"),
        (on_w(lambda g, w: g * jnp.nan), "16 of 16 entries are NaN"),
        (lambda g, p: (g[2], (), g[0], ()), "it is the reference of grads.2.W: swapped"),
        (lambda g, p: (g[0] | {"b": g[0]["b"] + jnp.zeros((6, 1))}, *g[1:]), "got float32(6, 4)"),
        (
            lambda g, p: (g[0] | {"b": g[0]["b"] * jnp.ones((6, 1)) / 6}, *g[1:]),
            "the sum is missing",
        ),
        (lambda g, p: list(g), "expected the tree"),
    ],
)
def test_a_likely_cause_is_given(change, words):
    report = planted(change)
    assert report.verdict == "fail"
    assert words in " ".join(str(report).split()), str(report)


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
    """The smallest error it states is refused when it is really planted, a fifth of it is not."""
    noise = jax.random.uniform(jax.random.key(7), (4, 4), minval=-1, maxval=1)
    noise = noise / jnp.abs(noise).max()
    report = planted(lambda g, p: g)
    power = report.power
    assert report.verdict == "pass"
    assert all(p.seen for p in power.planted)
    assert len({p.bug for p in power.planted}) >= 10
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
    assert not any(p.seen for p in report.power.planted if p.leaf == "grads")
