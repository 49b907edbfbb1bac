"""Every optimizer of the registry: against its equation in numpy, and against optax."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import OPTIMIZERS

import fnn
from fnn import catalog, schedules

every_optimizer = pytest.mark.parametrize("case", OPTIMIZERS, ids=lambda case: case.name)
STEPS = 6


def changing(step):
    """A learning rate that is another at every step."""
    return 0.1 / (1 + jnp.asarray(step, jnp.float32)) ** 2


def gradients(shape):
    """Gradients of all sizes, near eps and exactly 0 among them."""
    rng = np.random.default_rng(0)
    g = rng.normal(size=(STEPS, *shape)) * 10.0 ** rng.integers(-9, 2, size=shape)
    return np.where(rng.uniform(size=g.shape) < 0.1, 0, g)


@every_optimizer
@pytest.mark.parametrize("rate", [0.03, changing], ids=["constant", "changing"])
def test_the_rule_is_the_equation(case, rate):
    """In float64, from step 1 on, with a learning rate that changes."""
    with jax.enable_x64(True):
        theta = np.random.default_rng(1).normal(size=(3, 5))
        optimizer = case.make(rate)
        state, slots = optimizer.init(jnp.asarray(theta)), [np.zeros((3, 5))] * 2
        update = jax.jit(optimizer.update)
        for t, g in enumerate(gradients((3, 5)), 1):
            state = update(state, jnp.asarray(g))
            now = float(rate(t - 1)) if callable(rate) else rate
            theta, slots = case.rule(now, t, theta, g, slots)
            np.testing.assert_allclose(state.params, theta, rtol=1e-9, atol=1e-15)
            assert int(state.step) == t


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", [c for c in OPTIMIZERS if c.optax], ids=lambda case: case.name)
@pytest.mark.parametrize("rate", [0.03, changing], ids=["constant", "changing"])
def test_optax_agrees(case, rate):
    params = {"a": jnp.ones((3, 5)), "b": (jnp.full(2, -0.5),)}
    optimizer, oracle = case.make(rate), case.optax(rate)
    state, theirs, slots = optimizer.init(params), params, oracle.init(params)
    for g, h in zip(gradients((3, 5)), gradients((2,)), strict=True):
        grads = {"a": jnp.asarray(g, jnp.float32), "b": (jnp.asarray(h, jnp.float32),)}
        state = optimizer.update(state, grads)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
            updates, slots = oracle.update(grads, slots, theirs)
            theirs = optax.apply_updates(theirs, updates)
    for ours, other in zip(jax.tree.leaves(state.params), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(ours, other, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (fnn.momentum(0.05, 0.9), optax.sgd(0.05, 0.9)),
        (fnn.momentum(0.05, 0.9, nesterov=True), optax.sgd(0.05, 0.9, nesterov=True)),
        (fnn.adagrad(0.05, eps=1e-30), optax.adagrad(0.05, 0.0, eps=0.0)),
    ],
    ids=["momentum", "nesterov", "adagrad"],
)
def test_optax_agrees_where_the_two_rules_meet(ours, theirs):
    """Momentum while the rate is constant; Adagrad where eps, which stands elsewhere, is none."""
    state, params = ours.init(jnp.ones(4)), jnp.ones(4)
    slots = theirs.init(params)
    for g in jnp.asarray(gradients((4,)), jnp.float32):
        state = ours.update(state, g)
        updates, slots = theirs.update(g, slots)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(state.params, params, rtol=1e-5)


def test_momentum_keeps_the_rate_a_step_was_taken_with():
    state = fnn.momentum(lambda step: jnp.where(step == 0, 1.0, 0.0), 0.5).init(jnp.zeros(()))
    optimizer = fnn.momentum(lambda step: jnp.where(step == 0, 1.0, 0.0), 0.5)
    for expected in (-1.0, -1.5, -1.75):
        state = optimizer.update(state, jnp.ones(()))
        assert float(state.params) == expected


@every_optimizer
@pytest.mark.sampled(4)
def test_state_keeps_its_form_and_accumulates_in_float32(case):
    params = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": (jnp.ones(4), ())}
    optimizer = case.make(0.01)
    state = optimizer.init(params)
    assert state.step.dtype == jnp.int32
    update = jax.jit(optimizer.update)
    after = update(update(state, params), params)
    described = jax.tree.map(lambda a: (a.shape, a.dtype), state)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == described
    assert after.params["a"].dtype == jnp.bfloat16
    # Of all the state's arrays, the parameter alone is narrow.
    narrow = [leaf for leaf in jax.tree.leaves(after) if leaf.dtype == jnp.bfloat16]
    assert len(narrow) == 1
    assert update._cache_size() == 1


@every_optimizer
@pytest.mark.sampled(4)
def test_vmap_over_learning_rates_equals_a_loop(case):
    rates, g = jnp.array([0.1, 0.01, 0.003]), jnp.array([[0.3, -2.0], [1e-4, 5.0]])

    def two_steps(rate):
        optimizer = case.make(rate)
        state = optimizer.init(jnp.ones(2))
        return optimizer.update(optimizer.update(state, g[0]), g[1]).params

    got = jax.jit(jax.vmap(two_steps))(rates)
    np.testing.assert_allclose(got, [two_steps(float(r)) for r in rates], rtol=1e-5)


@every_optimizer
def test_it_descends(case):
    optimizer = case.make(0.02)
    state = optimizer.init(jnp.array([1.0, -2.0]))

    def step(state, _):
        return optimizer.update(state, jnp.array([1.0, 9.0]) * state.params), None

    state, _ = jax.lax.scan(step, state, None, length=300)
    assert float(jnp.linalg.norm(state.params)) < 1.6


def test_a_buffer_is_no_slot_of_two():
    """A state can be donated: no two of its leaves share memory."""
    optimizer = fnn.adam(0.1)
    state = optimizer.init(jnp.ones(3))
    after = jax.jit(optimizer.update, donate_argnums=0)(state, jnp.ones(3))
    np.testing.assert_allclose(after.params, 0.9 * np.ones(3), rtol=1e-5)


SCHEDULES = {
    "constant": (schedules.constant(0.3), lambda t: optax.constant_schedule(0.3)(t)),
    "exponential_decay": (
        schedules.exponential_decay(0.3, 0.5, 10),
        optax.exponential_decay(0.3, 10, 0.5),
    ),
    "step_decay": (
        schedules.step_decay(0.3, 0.5, 10),
        optax.exponential_decay(0.3, 10, 0.5, staircase=True),
    ),
    "cosine_decay": (
        schedules.cosine_decay(0.3, 40, final=0.03),
        optax.cosine_decay_schedule(0.3, 40, alpha=0.1),
    ),
    "linear_warmup": (schedules.linear_warmup(0.3, 8), optax.linear_schedule(0.0, 0.3, 8)),
    "warmup_stable_decay": (
        schedules.warmup_stable_decay(0.3, 8, 20, 15, final=0.03),
        optax.join_schedules(
            [
                optax.linear_schedule(0.0, 0.3, 8),
                optax.constant_schedule(0.3),
                optax.linear_schedule(0.3, 0.03, 15),
            ],
            [8, 28],
        ),
    ),
    "warmup, then cosine": (
        schedules.linear_warmup(0.3, 8, then=schedules.cosine_decay(0.3, 20)),
        optax.join_schedules(
            [optax.linear_schedule(0.0, 0.3, 8), optax.cosine_decay_schedule(0.3, 20)], [8]
        ),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_optaxs(name):
    ours, theirs = SCHEDULES[name]
    steps = jnp.arange(60)
    got = jax.jit(jax.vmap(ours))(steps)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, [float(theirs(int(t))) for t in steps], rtol=1e-5, atol=1e-8)


RULES = dict(catalog.OPTIMIZERS)
WRONG = {
    "learning_rate": ("above 0", [0.0, -1.0, float("nan"), float("inf")]),
    "eps": ("above 0", [0.0, -1.0, float("nan"), float("inf")]),
    "decay": (r"in \[0, 1\)", [1.0, -0.1, float("nan")]),
    "weight_decay": ("of at least 0", [-0.1, float("nan"), float("inf")]),
}
WRONG |= dict.fromkeys(("b1", "b2"), WRONG["decay"])


def settings(make):
    """The names of the numbers that a rule is made with."""
    parameters = inspect.signature(make).parameters.values()
    return [p.name for p in parameters if p.default is p.empty or isinstance(p.default, float)]


@pytest.mark.parametrize(
    ("name", "setting"), [(name, s) for name, make in RULES.items() for s in settings(make)]
)
def test_every_rule_refuses_a_wrong_number(name, setting):
    expected, wrong = WRONG[setting]
    for bad in wrong:
        with pytest.raises(ValueError, match=f"{name}: expected {setting} {expected}, got {bad}"):
            RULES[name](**{"learning_rate": 0.1, setting: bad})


@pytest.mark.parametrize("returned", [jnp.ones((5, 1, 1)), jnp.ones(1), 1j, np.True_])
def test_a_schedule_returns_one_number(returned):
    """Anything else would change the parameters' shape, or lose its imaginary part."""
    for make in RULES.values():
        optimizer = make(lambda step: returned)
        state = optimizer.init(jnp.ones((2, 2)))
        with pytest.raises(ValueError, match="expected a schedule that returns a number, got"):
            optimizer.update(state, jnp.ones((2, 2)))
    assert int(fnn.sgd(lambda step: 1).update(fnn.sgd(1).init(jnp.ones(1)), jnp.ones(1)).step) == 1


def test_integer_parameters_are_refused():
    with pytest.raises(TypeError, match=r"int32.*\(3,\)"):
        fnn.adam(0.1).init({"a": jnp.arange(3)})


def test_gradients_of_another_tree_are_refused():
    optimizer = fnn.adam(0.1)
    state = optimizer.init({"a": jnp.ones(3)})
    with pytest.raises(ValueError, match="b"):
        optimizer.update(state, {"b": jnp.ones(3)})


@pytest.mark.parametrize("make", [fnn.sgd, fnn.adam, lambda rate: fnn.add_l2(fnn.sgd(rate), 0.1)])
@pytest.mark.parametrize("jitted", [False, True])
def test_a_gradient_of_another_form_is_refused(make, jitted):
    """Nothing is broadcast, and no imaginary part is lost."""
    optimizer = make(0.1)
    state = optimizer.init({"w": jnp.ones((3, 1))})
    update = jax.jit(optimizer.update) if jitted else optimizer.update
    for shape in ((), (1,), (3,), (1, 1), (3, 3), (2, 3, 1)):
        with pytest.raises(ValueError, match=r"its parameter's shape \(3, 1\), got"):
            update(state, {"w": jnp.ones(shape)})
    for dtype in (jnp.complex64, jnp.int32, jnp.bool_):
        with pytest.raises(TypeError, match=f"floating-point gradients, got {jnp.dtype(dtype)}"):
            update(state, {"w": jnp.ones((3, 1), dtype)})


def test_no_rule_takes_anothers_state():
    states = [make(0.1).init(jnp.ones((2, 2))) for make in RULES.values()]
    for make in RULES.values():
        expected = type(make(0.1).init(jnp.ones((2, 2))))
        others = [state for state in states if type(state) is not expected]
        assert len(others) >= 4
        for state in others:
            with pytest.raises(TypeError, match=expected.__name__):
                make(0.1).update(state, jnp.ones((2, 2)))
