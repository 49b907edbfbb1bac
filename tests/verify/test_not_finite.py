"""References that are NaN or infinite: each entry is judged by itself, by differences where
autodiff is not finite."""

import jax
import jax.numpy as jnp
import pytest

from fnn import verify

X = jax.random.normal(jax.random.key(0), (35, 3)).at[4].set(0)


def norm(x):
    return jnp.sqrt(jnp.square(x).sum(-1))


def rule(slope, forward=norm):
    """A pair whose backward is dy times slope(x)."""
    return lambda p, x: (forward(x), x), lambda p, x, dy: ((), dy[..., None] * slope(x))


def direction(x, at_zero=0.0):
    n = norm(x)[:, None]
    return jnp.where(n > 0, x / jnp.where(n > 0, n, 1), at_zero)


def test_a_row_where_autodiff_is_nan_hides_no_other():
    right = verify.check_vjp(*rule(direction), (), X)
    assert right.verdict == "pass", str(right)
    for wrong in (
        lambda x: 1.001 * direction(x),
        lambda x: direction(x).at[7].multiply(-1),
        lambda x: direction(x, at_zero=1.5),
    ):
        report = verify.check_vjp(*rule(wrong), (), X)
        assert report.verdict == "fail", str(report)
    assert "autodiff is not finite" in report.leaves[0].note


def power(x):
    """|x|^3 of each row, by a norm whose derivative at 0 is NaN in autodiff."""
    return norm(x) ** 3


@pytest.mark.sampled(2)
@pytest.mark.parametrize("rows", [slice(None), slice(4, 5)], ids=["some", "all"])
def test_differences_decide_where_autodiff_is_nan(rows):
    x = X[rows]
    slope = lambda x: 3 * norm(x)[:, None] * x
    report = verify.check_vjp(*rule(slope, power), (), x)
    assert report.verdict == ("pass" if len(x) > 1 else "inconclusive"), str(report)
    for bad in (1e-2, jnp.nan, jnp.inf):
        wrong = lambda x, bad=bad: slope(x) + jnp.where(norm(x)[:, None] == 0, bad, 0)
        report = verify.check_vjp(*rule(wrong, power), (), x)
        assert report.verdict == "fail", (bad, str(report))


def test_a_slope_that_is_known_by_differences_alone():
    """sin x + 0 |x|: autodiff is NaN at 0, the derivative is 1."""
    x = jnp.zeros((2, 3))
    smooth = lambda x: jnp.sin(x) + 0 * jnp.sqrt(x * x)
    for factor, verdict in ((1.0, "pass"), (1.01, "fail"), (jnp.nan, "fail")):
        pair = (lambda p, x: (smooth(x), x), lambda p, x, dy, c=factor: ((), c * dy * jnp.cos(x)))
        report = verify.check_vjp(*pair, (), x)
        assert report.verdict == verdict, str(report)


def test_what_can_not_be_judged_is_counted_and_the_rest_is_judged():
    x = jnp.array([0.0, 1.0, 4.0])
    root = lambda c: (lambda p, x: (jnp.sqrt(x), x), lambda p, x, dy: ((), dy * c / jnp.sqrt(x)))
    report = verify.check_vjp(*root(0.5), (), x)
    assert report.verdict == "pass", str(report)
    assert "1 of 3 entries are not judged" in report.leaves[0].note
    assert verify.check_vjp(*root(0.501), (), x).verdict == "fail"
    only = verify.check_vjp(*root(0.5), (), x[:1])
    assert only.verdict == "inconclusive"


def test_a_rule_that_is_nan_where_the_gradient_is_zero_fails():
    """The rule cancels inf - inf, so that its own rounding is NaN."""
    f = lambda x: jnp.where(x > 90, 1.0, 1.0) + 0 * x
    x = jnp.full(3, 1000.0)
    report = verify.check_vjp(
        lambda p, x: (f(x), x), lambda p, x, dy: ((), dy * (jnp.exp(x) - jnp.exp(x))), (), x
    )
    assert report.verdict == "fail", str(report)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("value", [jnp.inf, -jnp.inf])
def test_what_is_infinite_must_be_returned_so(value):
    reference = lambda x: jnp.where(x > 0, jnp.log(jnp.abs(x)), value)
    x = jnp.array([-1.0, 0.5, 2.0])

    def make(outside):
        @jax.custom_jvp
        def f(x):
            return jnp.where(x > 0, jnp.log(jnp.abs(x)), outside)

        f.defjvp(lambda p, t: (f(*p), jnp.where(p[0] > 0, t[0] / p[0], 0)))
        return f

    right = verify.check_custom(make(value), x, reference=reference)
    assert right.verdict == "pass", str(right)
    for outside in (0.0, -value, jnp.nan):
        report = verify.check_custom(make(outside), x, reference=reference)
        assert report.verdict == "fail", str(report)


@pytest.mark.long
def test_a_search_finds_a_rule_that_is_nan_where_the_gradient_is_not():
    slope = lambda x: 3 * norm(x)[:, None] ** 2 * x / norm(x)[:, None]
    inputs = (), X[:4]
    assert verify.check_vjp(*rule(slope, power), *inputs).verdict == "pass"
    report = verify.search(*rule(slope, power), *inputs)
    assert report.verdict == "fail", str(report)
    assert not report.inputs[1].all()


def test_an_infinite_input_makes_no_kink_of_the_others():
    """A weight of 0 switches autodiff off, and differences confirm the rule."""
    f = jax.custom_jvp(lambda x, w: jnp.where(w != 0, jnp.exp(x) * w, 0))
    f.defjvp(lambda p, t: (f(*p), jnp.exp(p[0]) * (p[1] * t[0] + t[1])))
    report = verify.check_custom(f, jnp.array([-jnp.inf, 0.3]), jnp.array([0.7, 0.0]))
    assert report.verdict == "inconclusive", str(report)
    assert "differences agree with what is under test" in str(report)
