"""The search finds inputs that ordinary ones hide, shrinks them, and refuses no right rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hidden_bugs import HIDDEN

from fnn import verify
from fnn.verify._search import CHANGES

X = jax.random.normal(jax.random.key(0), (6, 4))
V = jnp.array([0.3, -1.2, 0.7, 2.1])


def norm(x):
    return jnp.sqrt(jnp.square(x).sum(-1))


def elementwise(f, df):
    return lambda p, x: (f(x), x), lambda p, x, dy: ((), dy * df(x))


def affine(bias_axis):
    """gamma * x; the bug forgets gamma in dx, which gamma = 1 hides."""

    def backward(gamma, x, dy):
        return (dy * x).sum(0), dy * (gamma if bias_axis else 1)

    return lambda gamma, x: (gamma * x, x), backward


def take(at):
    forward = lambda table, i: (table[i], i)
    add = lambda table, i, dy: getattr(jnp.zeros_like(table).at[i], at)(dy)
    return forward, lambda table, i, dy: (add(table, i, dy), None)


def softplus_slope(x):
    e = jnp.exp(x)
    return e / (1 + e)


def clipped_slope(x):
    return jnp.where(jnp.abs(x) <= 20, jax.nn.sigmoid(x), 0)


TABLE = jnp.arange(12.0).reshape(6, 2) / 7
CODES = jnp.array([0, 3, 5])
RIGHT = {
    "relu": (*elementwise(jax.nn.relu, lambda x: (x > 0).astype(x.dtype)), (), X),
    "affine": (*affine(True), jnp.ones(4), X),
    "take": (*take("add"), TABLE, CODES),
    "sigmoid": (
        *elementwise(jax.nn.sigmoid, lambda x: jax.nn.sigmoid(x) * jax.nn.sigmoid(-x)), (), X,
    ),
    "tanh": (*elementwise(jnp.tanh, lambda x: 1 - jnp.tanh(x) ** 2), (), X),
    "softplus": (*elementwise(jax.nn.softplus, jax.nn.sigmoid), (), X),
    "gelu": (
        *elementwise(
            lambda x: jax.nn.gelu(x, approximate=False),
            lambda x: jax.scipy.stats.norm.cdf(x) + x * jax.scipy.stats.norm.pdf(x),
        ), (), X,
    ),
    "softmax": (
        lambda p, x: (jax.nn.softmax(x), jax.nn.softmax(x)),
        lambda p, y, dy: ((), y * (dy - (y * dy).sum(-1, keepdims=True))), (), X,
    ),
    "norm": (
        lambda p, x: (norm(x), x),
        lambda p, x, dy: ((), dy[:, None] * x / norm(x)[:, None]), (), X,
    ),
    "elu": (
        *elementwise(jax.nn.elu, lambda x: jnp.where(x > 0, 1, jnp.exp(jnp.minimum(x, 0)))), (), X,
    ),
}  # fmt: skip
WRONG = {
    "relu at 0": (*elementwise(jax.nn.relu, lambda x: (x >= 0).astype(x.dtype)), (), X),
    "gamma forgotten": (*affine(False), jnp.ones(4), X),
    "repeats overwritten": (*take("set"), TABLE, CODES),
    "softplus overflows": (*elementwise(jax.nn.softplus, softplus_slope), (), X),
    "softplus cut off": (*elementwise(jax.nn.softplus, clipped_slope), (), X),
    "abs of the slope": (*elementwise(jnp.square, lambda x: 2 * jnp.abs(x)), (), jnp.abs(X)),
}


def some(cases, *usual):
    """All of the cases; those that are not usual are long."""
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(case, id=name, marks=[] if name in usual else [pytest.mark.long])
            for name, case in cases.items()
        ],
    )


@pytest.mark.sampled(2)
@some(WRONG, "relu at 0", "gamma forgotten")
def test_a_bug_that_ordinary_inputs_hide_is_found(case):
    forward, backward, params, x = case
    assert verify.check_vjp(forward, backward, params, x).verdict == "pass"
    report = verify.search(forward, backward, params, x)
    assert report.verdict == "fail", str(report)
    assert verify.check_vjp(forward, backward, *report.inputs).verdict == "fail"
    assert "found at" in report.place


@pytest.mark.sampled(5)
@some(RIGHT, "relu", "take", "sigmoid", "tanh")
def test_a_right_rule_is_not_refused(case):
    report = verify.search(*case)
    assert report.verdict == "pass", str(report)
    assert report.inputs is None
    assert "inputs tried" in report.place


@pytest.mark.long
@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_bugs_are_found_and_their_right_rules_are_not_refused(name):
    case = HIDDEN[name]
    inputs = (case.params, case.x)
    assert verify.check_vjp(case.forward, case.wrong, *inputs).verdict == "pass"
    found = verify.search(case.forward, case.wrong, *inputs, make_inputs=case.make_inputs)
    assert found.verdict == "fail", str(found)
    right = verify.search(case.forward, case.right, *inputs, make_inputs=case.make_inputs)
    assert right.verdict == "pass", str(right)


def test_what_is_found_is_shrunk_and_can_be_pasted():
    forward, backward, params, x = WRONG["softplus cut off"]
    report = verify.search(forward, backward, params, x)
    found = np.asarray(report.inputs[1])
    assert found.shape == (1, 4)
    assert np.count_nonzero(found) <= 2
    assert (np.abs(found) > 20).any()
    line = next(row for row in str(report).splitlines() if row.strip().startswith("x = "))
    pasted = eval(line.split("=", 1)[1].strip(), {"jnp": jnp})
    assert np.array_equal(pasted, found)


@pytest.mark.long
def test_other_sizes_are_tried():
    """A kernel in blocks of 4 that forgets the rows behind the last full block."""

    def backward(p, x, dy):
        full = len(x) // 4 * 4
        return (), jnp.zeros_like(x).at[:full].set((2 * x * dy)[:full])

    forward = lambda p, x: (x**2, x)
    make = lambda key, batch=8: ((), jax.random.normal(key, (batch, 2)))
    x = make(jax.random.key(0))[1]
    assert verify.search(forward, lambda p, x, dy: ((), 2 * x * dy), (), x).verdict == "pass"
    assert verify.check_vjp(forward, backward, (), x).verdict == "pass"
    report = verify.search(forward, backward, (), x, make_inputs=make)
    assert report.verdict == "fail"
    assert len(report.inputs[1]) == 1
    with pytest.raises(ValueError, match="integer defaults"):
        verify.search(forward, backward, (), x, make_inputs=lambda key: ((), x))


def test_a_pass_says_what_its_inputs_cannot_show():
    forward, backward, params, x = RIGHT["affine"]
    report = verify.check_vjp(forward, backward, params, x)
    assert report.blind == ("an array of ones only", "no zeros", "only |values| < 3")
    assert "can't show: an array of ones only" in str(report)
    moved = verify.check_vjp(forward, backward, V, x.at[0, 0].set(0).at[1, 1].set(5.0))
    assert moved.blind == ("no ties",)


def entropy(scale):
    """x log x, NaN at negative inputs and at 0, where the rule may give any value."""
    slope = lambda x: jnp.where(x > 0, scale * (1 + jnp.log(jnp.abs(x))), 7)
    return elementwise(lambda x: jnp.where(x > 0, x * jnp.log(jnp.abs(x)), jnp.nan), slope)


def test_inputs_where_the_function_is_nan_are_not_tried():
    assert verify.search(*entropy(1), (), jnp.abs(X) + 0.1).inputs is None
    assert verify.search(*entropy(2), (), jnp.abs(X) + 0.1).verdict == "fail"


def test_a_domain_bounds_what_is_tried():
    forward, backward, params, x = WRONG["abs of the slope"]
    assert verify.search(forward, backward, params, x).verdict == "fail"
    positive = lambda params, x: (x > 0).all()
    assert verify.search(forward, backward, params, x, domain=positive).verdict == "pass"


def test_the_search_ends_in_time():
    report = verify.search(*RIGHT["sigmoid"], seconds=0)
    assert report.place == "no wrong gradient at 0 inputs tried"


@pytest.mark.parametrize("call", [0, 1])
def test_a_timeout_is_not_swallowed(call):
    """An alarm goes off once, at any call of the backward."""
    forward, backward, params, x = RIGHT["sigmoid"]
    calls = iter(range(10**6))

    def slow(params, x, dy):
        if next(calls) == call:
            raise TimeoutError
        return backward(params, x, dy)

    with pytest.raises(TimeoutError):
        verify.search(forward, slow, params, x)


def test_an_integer_without_axes_is_searched():
    forward = lambda table, i: (table[i], i)
    right = lambda table, i, dy: (jnp.zeros_like(table).at[i].add(dy), None)
    report = verify.search(forward, right, TABLE, jnp.array(2))
    assert report.verdict == "pass", str(report)
    wrong = lambda table, i, dy: (jnp.zeros_like(table).at[2].add(dy), None)
    assert verify.search(forward, wrong, TABLE, jnp.array(2)).verdict == "fail"


def custom(f, slope):
    rule = jax.custom_jvp(f)
    rule.defjvp(lambda p, t: (rule(*p), t[0] * slope(*p)))
    return rule


def naive(x):
    return jnp.exp(-x) / (1 + jnp.exp(-x)) ** 2


AT_INFINITY = {
    "sigmoid": (jax.nn.sigmoid, lambda x: jax.nn.sigmoid(x) * jax.nn.sigmoid(-x), "pass"),
    "NaN where 0 is right": (jax.nn.sigmoid, naive, "fail"),
    "NaN as autodiff's": (
        lambda x: jnp.exp(-x * x), lambda x: -2 * x * jnp.exp(-x * x), "pass"
    ),
    "an infinite value": (
        lambda x: jnp.where(x > 0, x, 0), lambda x: jnp.where(x > 0, 1.0, 0.0), "pass"
    ),
    "no limit": (lambda x: jnp.where(jnp.isinf(x), 0, x), jnp.ones_like, "pass"),
}  # fmt: skip


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("f", "slope", "verdict"), AT_INFINITY.values(), ids=AT_INFINITY)
def test_infinite_entries(f, slope, verdict, monkeypatch):
    changes = {name: change for name, change in CHANGES[jnp.floating].items() if "inf" in name}
    assert len(changes) == 2
    monkeypatch.setitem(CHANGES, jnp.floating, changes)
    report = verify.search_custom(custom(f, slope), V)
    assert report.verdict == verdict, str(report)
    assert ("an entry of -inf" in report.place) == (verdict == "fail")
