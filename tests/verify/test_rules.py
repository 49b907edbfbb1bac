"""Rules as JAX has them, without a reference: values, derivatives, forward mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import verify

X = jax.random.normal(jax.random.key(0), (5, 3))


def vjp_rule(f, backward, **how):
    g = jax.custom_vjp(f, **how)
    g.defvjp(lambda x: (f(x), x), backward)
    return g


def jvp_rule(f, jvp):
    g = jax.custom_jvp(f)
    g.defjvp(jvp)
    return g


def test_the_function_itself_is_the_reference():
    for factor, verdict in ((1.0, "pass"), (1.001, "fail")):
        sine = vjp_rule(jnp.sin, lambda x, dy, c=factor: (c * dy * jnp.cos(x),))
        report = verify.check_custom(sine, X)
        assert report.verdict == verdict, str(report)
    with pytest.raises(TypeError, match="reference="):
        verify.check_custom(jnp.sin, X)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["loop", "callback"])
def test_differences_are_the_reference_where_autodiff_has_none(kind):
    def root(x):
        """The cube root by Newton's method."""
        if kind == "callback":
            shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
            return jax.pure_callback(lambda a: a ** (1 / 3), shape, x)
        step = lambda y: (2 * y + x / y**2) / 3
        return jax.lax.while_loop(lambda y: jnp.abs(y**3 - x).max() > 1e-6, step, 1 + 0 * x)

    x = 1 + jnp.arange(3.0)
    for factor, verdict in ((1.0, "pass"), (1.01, "fail")):
        backward = lambda x, dy, c=factor: (c * dy / (3 * jnp.cbrt(x) ** 2),)
        report = verify.check_custom(vjp_rule(root, backward), x)
        assert report.verdict != "pass" if verdict == "fail" else report.verdict == "pass", report


def test_a_rule_that_is_defined_anew_is_checked_anew():
    sine = vjp_rule(jnp.sin, lambda x, dy: (dy * jnp.cos(x),))
    assert verify.check_custom(sine, X).verdict == "pass"
    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (2 * dy * jnp.cos(x),))
    assert verify.check_custom(sine, X).verdict == "fail"


def test_the_value_must_not_change_under_differentiation():
    f = jax.custom_vjp(lambda x: jnp.sin(x))
    f.defvjp(lambda x: (jnp.sin(x) + 1e-3, x), lambda x, dy: (dy * jnp.cos(x),))
    report = verify.check_custom(f, X)
    assert report.verdict == "fail"
    assert "when it is differentiated" in report.leaves[0].note


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("jvp", "words"),
    [
        (lambda p, t: (jnp.sin(*p), jnp.cos(*p) * t[0]), ""),
        (lambda p, t: (jnp.sin(*p), jnp.cos(*p) * abs(t[0])), "not linear"),
        (lambda p, t: (jnp.sin(*p), jnp.cos(*p) * t[0] + 1e-3), "not linear"),
        (lambda p, t: (jnp.sin(*p), jnp.where(p[0] > 0, jnp.nan, 1) * t[0]), "NaN"),
    ],
    ids=["right", "absolute", "constant", "not finite"],
)
def test_forward_mode(jvp, words):
    report = verify.check_custom(jvp_rule(jnp.sin, jvp), X)
    assert report.verdict == ("fail" if words else "pass"), str(report)
    assert words in str(report)


def test_a_rule_is_the_same_under_jit_and_vmap():
    def of(rule):
        f = jax.custom_vjp(lambda x: jnp.sin(x))
        f.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (dy * rule(x),))
        return verify.check_custom(f, X)

    concrete = lambda x: jnp.cos(x) * (2 if isinstance(x, jax.core.Tracer) else 1)
    assert "under jit" in of(concrete).leaves[0].note
    batch = jax.custom_batching.custom_vmap(jnp.cos)
    batch.def_vmap(lambda size, batched, x: (jnp.cos(x) + 1e-3, True))
    assert "under vmap" in of(batch).leaves[0].note
    assert of(jnp.cos).verdict == "pass"


def test_the_second_derivative_is_checked_where_there_is_one():
    def of(slope):
        f = jax.custom_vjp(lambda x: jnp.sin(x))
        f.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (dy * slope(x),))
        return verify.check_custom(f, X)

    assert of(jnp.cos).verdict == "pass"
    report = of(lambda x: jax.lax.stop_gradient(jnp.cos(x)))
    assert report.verdict == "fail"
    assert report.leaves[-1].name == "second derivative"
    by_callback = lambda x: jax.pure_callback(lambda x: np.cos(x), x, x)
    assert of(by_callback).verdict == "pass"


def test_static_arguments_are_not_differentiated():
    power = jax.custom_vjp(lambda x, n, s: s * x**n, nondiff_argnums=(1,))
    power.defvjp(
        lambda x, n, s: (s * x**n, (x, s)),
        lambda n, r, dy: (n * dy * r[1] * r[0] ** (n - 1), (dy * r[0] ** n).sum()),
    )
    assert verify.check_custom(power, X, 3, 0.5).verdict == "pass"
    power.defvjp(
        lambda x, n, s: (s * x**n, (x, s)),
        lambda n, r, dy: (dy * r[1] * r[0] ** (n - 1), (dy * r[0] ** n).sum()),
    )
    assert verify.check_custom(power, X, 3, 0.5).verdict == "fail"


def test_what_a_rule_means_to_do_otherwise_is_declared():
    half = jax.custom_vjp(lambda x, w: jnp.sin(x) * w)
    half.defvjp(
        lambda x, w: (jnp.sin(x) * w, (x, w)),
        lambda r, dy: (1.001 * dy * jnp.cos(r[0]) * r[1], 0 * dy),
    )
    args = X, X + 2
    assert verify.check_custom(half, *args).verdict == "fail"
    declared = {0: 1e-2, 1: "no gradient"}
    report = verify.check_custom(half, *args, expected=declared)
    assert report.verdict == "pass", str(report)
    assert "no gradient, as declared" in str(report)
    assert verify.check_custom(half, *args, expected={0: 1e-4, 1: "no gradient"}).verdict == "fail"
    assert verify.check_custom(half, *args, expected={0: "no gradient"}).verdict == "fail"
    for bad in ({2: 1e-3}, {0: "none"}):
        with pytest.raises(ValueError, match="expected="):
            verify.check_custom(half, *args, expected=bad)


@pytest.mark.long
def test_a_function_is_searched_with_its_arguments():
    wrong = jax.custom_jvp(lambda x: jnp.where(x > 0, x, 0))
    wrong.defjvp(lambda p, t: (jnp.where(p[0] > 0, *p, 0), jnp.where(p[0] >= 0, *t, 0)))
    right = jax.custom_jvp(lambda x: jnp.where(x > 0, x, 0))
    right.defjvp(lambda p, t: (jnp.where(p[0] > 0, *p, 0), jnp.where(p[0] > 0, *t, 0)))
    assert verify.search_custom(right, X, seconds=5).verdict == "pass"
    report = verify.search_custom(wrong, X)
    assert report.verdict == "fail", str(report)
    assert not report.inputs[0].any()
    assert "args.0 = jnp.array" in str(report)
    positive = lambda x: (x > 0).all()
    assert verify.search_custom(wrong, jnp.abs(X), domain=positive, seconds=5).verdict == "pass"


def rounded(scale):
    """A straight-through estimator: it rounds, and its gradient is the identity's, or is not."""
    return fnn.Layer(
        lambda key: (),
        lambda params, x: (jnp.round(x), None),
        lambda params, residuals, dy, reduce=fnn.total: ((), scale * dy),
    )


def test_a_straight_through_estimator_is_checked_against_what_it_means():
    identity = lambda params, x: x
    assert verify.check_layer(rounded(1), (), X, reference=identity).verdict == "pass"
    assert verify.check_layer(rounded(2), (), X, reference=identity).verdict == "fail"
    assert "piecewise constant" in str(verify.check_layer(rounded(1), (), X))
    reversed_ = rounded(-0.5)
    report = verify.check_layer(reversed_, (), X, reference=lambda params, x: -0.5 * x)
    assert report.verdict == "pass"


@pytest.mark.parametrize("scale", [1, 2])
def test_a_loss_of_whole_sequences(scale):
    loss = fnn.Loss(lambda p, t: jnp.square(p - t).sum((-1, -2)), lambda p, t: scale * 2 * (p - t))
    prediction, target = X.reshape(1, 5, 3), jnp.ones((1, 5, 3))
    report = verify.check_loss(loss, prediction, target, example_axes=1)
    assert report.verdict == ("pass" if scale == 1 else "fail"), str(report)
    assert "one loss per example" in str(verify.check_loss(loss, prediction, target))


def test_a_rule_in_a_folder_named_jax_is_seen():
    source = """
@jax.custom_jvp
def theirs(x):
    return jnp.sin(x)
theirs.defjvp(lambda p, t: (jnp.sin(*p), 2 * jnp.cos(*p) * t[0]))
"""
    names = {"jax": jax, "jnp": jnp}
    exec(compile(source, "/home/me/jax/theirs.py", "exec"), names)
    theirs = names["theirs"]
    with pytest.raises(ValueError, match="runs the rule under test"):
        verify.check_custom(theirs, X, reference=lambda x: theirs(x) * 1)


BORDERS = {
    "huber": (
        lambda x: jnp.where(jnp.abs(x) <= 1, x * x / 2, jnp.abs(x) - 0.5),
        lambda x: jnp.clip(x, -1, 1),
    ),
    "squared hinge": (
        lambda x: jnp.where(x < 1, (1 - x) ** 2, 0),
        lambda x: jnp.where(x < 1, -2 * (1 - x), 0),
    ),
}


@pytest.mark.parametrize(("f", "slope"), BORDERS.values(), ids=BORDERS)
def test_where_the_second_derivative_jumps(f, slope):
    x = jnp.array([1.0, -1.0, 1.0])
    for factor, verdict in ((1, "pass"), (1.001, "fail")):
        pair = (lambda p, x: (f(x), x), lambda p, x, dy, c=factor: ((), c * dy * slope(x)))
        report = verify.check_vjp(*pair, (), x)
        assert report.verdict == verdict, str(report)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_forward_pass_that_rounds_otherwise_is_no_other_value(dtype):
    """Undifferentiated a sum from the left, differentiated one from the right."""
    add = lambda x: jax.lax.scan(lambda c, a: (c + a, None), jnp.zeros((), dtype), x)[0]
    total = jax.custom_vjp(lambda x: add(x.astype(dtype)).astype(x.dtype))
    total.defvjp(
        lambda x: (add(x.astype(dtype)[::-1]).astype(x.dtype), x),
        lambda x, dy: (jnp.full_like(x, dy),),
    )
    report = verify.check_custom(total, jnp.abs(X[0]), reference=jnp.sum)
    assert "when it is differentiated" not in str(report)
    assert report.verdict == "pass" or dtype == jnp.bfloat16, str(report)


@pytest.mark.long
def test_a_derivative_of_nothing_but_rounding_breaks_no_law():
    """numpyro's inverse of a power law: at alpha = -1 its derivative by alpha cancels to 1e-10, and
    rounds otherwise under jit."""

    def by_alpha(q, e):
        high = jnp.power(2.0, e)
        inside = 1.0 + q * (high - 1.0)
        slope = q * high * jnp.log(2.0) / (e * inside)
        return jnp.power(inside, 1 / e) * (slope - jnp.log(inside) / jnp.square(e))

    @jax.custom_jvp
    def inverse(q, alpha):
        other = 1.0 + jnp.where(alpha == -1, 0.0, alpha)
        inside = 1.0 + q * (jnp.power(2.0, other) - 1.0)
        return jnp.where(alpha == -1, jnp.power(2.0, q), jnp.power(inside, 1 / other))

    @inverse.defjvp
    def _jvp(primals, tangents):
        q, alpha = primals
        along = (by_alpha(q, alpha + 1 - 1e-3) + by_alpha(q, alpha + 1 + 1e-3)) / 2
        y = inverse(q, alpha)
        return y, y * jnp.log(2.0) * tangents[0] + along * tangents[1]

    report = verify.check_custom(inverse, jnp.array(1.0), jnp.array(-1.0))
    assert report.verdict != "fail", str(report)
