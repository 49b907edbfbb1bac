"""Optimizers around optimizers: each is its definition, written in numpy."""

from itertools import pairwise

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnn
import fnn.catalog

KEY = jax.random.key(17)
PARAMS = {"W": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}
GRADS = [jax.tree.map(lambda p, i=i: jnp.cos(i + p), PARAMS) for i in range(7)]


def states(optimizer, grads=GRADS, params=PARAMS):
    found = [optimizer.init(params)]
    for g in grads:
        found.append(jax.jit(optimizer.update)(found[-1], g))
    return found


def test_accumulate_updates_once_for_the_mean_of_k():
    found = states(fnn.accumulate(fnn.adam(0.1), 3))
    mean = lambda some: jax.tree.map(lambda *g: sum(g) / len(g), *some)
    expected = states(fnn.adam(0.1), [mean(GRADS[:3]), mean(GRADS[3:6])])
    for i, state in enumerate(found):
        chex.assert_trees_all_close(state.params, expected[i // 3].params, rtol=1e-6)
        assert int(state.step) == i
        assert int(state.inner.step) == i // 3


def test_average_is_the_moving_average_from_the_start():
    found = states(fnn.average(fnn.sgd(0.1), 0.8))
    plain = states(fnn.sgd(0.1))
    average = np.asarray(PARAMS["W"])
    for state, same in zip(found[1:], plain[1:], strict=True):
        average = 0.8 * average + 0.2 * np.asarray(same.params["W"])
        chex.assert_trees_all_equal(state.params, same.params)
        np.testing.assert_allclose(state.average["W"], average, rtol=1e-6)


def test_partition_gives_each_label_its_optimizer_and_freezes_none():
    params = {"a": PARAMS, "b": {"W": jnp.ones(2)}, "c": ()}
    grads = [{"a": g, "b": {"W": g["W"]}, "c": ()} for g in GRADS]
    labels = {"a": {"W": "adam", "b": "none"}, "b": "sgd", "c": "none"}
    found = states(
        fnn.partition(labels, {"adam": fnn.adam(0.1), "sgd": fnn.sgd(0.1), "none": None}),
        grads, params,
    )  # fmt: skip
    adam = states(fnn.adam(0.1), [g["W"] for g in GRADS], PARAMS["W"])
    sgd = states(fnn.sgd(0.1), [g["W"] for g in GRADS], jnp.ones(2))
    for state, a, s in zip(found, adam, sgd, strict=True):
        expected = {"a": {"W": a.params, "b": PARAMS["b"]}, "b": {"W": s.params}, "c": ()}
        chex.assert_trees_all_equal(state.params, expected)
    by_function = fnn.partition(lambda params: "all", {"all": fnn.adam(0.1)})
    chex.assert_trees_all_equal(states(by_function)[-1].params, states(fnn.adam(0.1))[-1].params)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fnn.partition("x", {"y": fnn.sgd(1.0)}).init(PARAMS), ValueError, "label of 'y'"),
        (lambda: fnn.partition({"Q": "y"}, {"y": fnn.sgd(1.0)}).init(PARAMS), ValueError, "fit"),
        (lambda: fnn.partition("y", {"y": fnn.sgd}), TypeError, "'y': expected an Optimizer"),
        (lambda: fnn.accumulate(fnn.sgd(1.0), 0), ValueError, "k of at least 1"),
        (lambda: fnn.average(fnn.sgd(1.0), 1.0), ValueError, r"decay in \[0, 1\)"),
        (lambda: fnn.scale_loss(fnn.sgd(1.0), -1.0), ValueError, "above 0"),
        (lambda: fnn.average(fnn.sgd, 0.5), TypeError, "call it to make one"),
        (lambda: fnn.accumulate(optax.sgd(0.1), 2), TypeError, "fnn.from_optax"),
    ],
)
def test_bad_calls_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_clip_by_global_norm_counts_all_leaves():
    optimizer = fnn.clip_by_global_norm(fnn.sgd(1.0), 1.0)
    state = optimizer.init({"a": jnp.zeros(1), "b": jnp.zeros(1)})
    after = optimizer.update(state, {"a": jnp.array([3.0]), "b": jnp.array([4.0])}).params
    np.testing.assert_allclose([after["a"][0], after["b"][0]], [-0.6, -0.8], rtol=1e-6)
    zero = optimizer.update(state, {"a": jnp.zeros(1), "b": jnp.zeros(1)}).params
    np.testing.assert_array_equal(zero["a"], [0])


@pytest.mark.parametrize("size", [3e38, 1e20, 1e19, 1.0, 1e-19, 1e-25, 1e-30])
@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e30, float("inf")])
def test_the_global_norm_neither_overflows_nor_vanishes(size, max_norm):
    grads = {"a": np.array([3, -4], np.float32) / 10 * size, "b": np.full(3, size / 10, np.float32)}
    optimizer = fnn.clip_by_global_norm(fnn.sgd(1.0), max_norm)
    state = optimizer.init(jax.tree.map(jnp.zeros_like, grads))
    got = jax.tree.map(jnp.negative, jax.jit(optimizer.update)(state, grads).params)
    g = np.concatenate([grads["a"], grads["b"]]).astype(np.float64)
    expected = g * min(1, max_norm / np.linalg.norm(g))
    np.testing.assert_allclose(np.concatenate([got["a"], got["b"]]), expected, rtol=1e-6)


def test_a_tiny_norm_is_clipped_to_a_tinier_one():
    optimizer = fnn.clip_by_global_norm(fnn.sgd(1.0), 1e-32)
    got = optimizer.update(optimizer.init(jnp.zeros(2)), jnp.array([3e-30, 4e-30])).params
    np.testing.assert_allclose(got, [-6e-33, -8e-33], rtol=1e-6)
    assert (optimizer.update(optimizer.init(jnp.zeros(2)), jnp.zeros(2)).params == 0).all()
    bad = optimizer.update(optimizer.init(jnp.zeros(2)), jnp.array([1.0, jnp.inf])).params
    assert not np.isfinite(bad).all()


def test_scale_loss_halves_skips_and_grows():
    optimizer = fnn.scale_loss(fnn.adam(0.1), 8.0, growth_interval=2)
    scaled = lambda g: jax.tree.map(lambda a: 8.0 * a, g)
    state = optimizer.update(optimizer.init(PARAMS), scaled(GRADS[0]))
    chex.assert_trees_all_close(state.params, states(fnn.adam(0.1))[1].params, rtol=1e-6)
    bad = GRADS[1] | {"W": jnp.array([jnp.nan, 1.0])}
    skipped = optimizer.update(state, bad)
    chex.assert_trees_all_equal(skipped.inner, state.inner)
    assert (float(skipped.loss_scale), int(skipped.step)) == (4.0, 2)
    again = optimizer.update(optimizer.update(skipped, GRADS[0]), GRADS[1])
    assert float(again.loss_scale) == 8.0


def test_the_scale_grows_again_and_again_and_halves_down_to_its_floor():
    """Grows each time that enough gradients in a row were finite, and is never 0."""
    optimizer = fnn.scale_loss(fnn.sgd(0.1), 8.0, growth_interval=2)
    state, found = optimizer.init(jnp.ones(1)), []
    for _ in range(7):
        state = optimizer.update(state, jnp.ones(1))
        found.append(float(state.loss_scale))
    assert found == [8, 16, 16, 32, 32, 64, 64]
    for _ in range(200):
        state = optimizer.update(state, jnp.array([jnp.inf]))
    assert float(state.loss_scale) == jnp.finfo(jnp.float32).tiny
    assert np.isfinite(optimizer.update(state, jnp.zeros(1)).params).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_accumulate_divides_before_it_narrows(dtype):
    """In float16 a sum of four would overflow; in bfloat16 it would lose digits."""
    large, optimizer = jnp.asarray([6e4, 257.0], dtype), fnn.accumulate(fnn.sgd(1.0), 4)
    state = optimizer.init(jnp.zeros(2, dtype))
    for factor in (1, 1, 1, 0.5):
        state = optimizer.update(state, (large * jnp.asarray(factor, dtype)))
    mean = (large.astype(jnp.float32) * 3.5 / 4).astype(dtype)
    np.testing.assert_array_equal(-state.params, mean)


def test_a_step_scales_the_losss_gradient_and_not_its_value():
    network, loss, x = fnn.dense(2, 1), fnn.mse, jnp.ones((3, 2))
    params, batch = network.init(KEY), (x, jnp.zeros((3, 1)))
    plain, scaled = fnn.sgd(0.1), fnn.scale_loss(fnn.sgd(0.1), 1024.0)
    record = lambda state, grads, value: grads
    after, (value, grads) = fnn.make_step(network, loss, plain, record=record)(
        plain.init(params), batch
    )
    same, (loss_value, large) = fnn.make_step(network, loss, scaled, record=record)(
        scaled.init(params), batch
    )
    assert float(value) == float(loss_value)
    chex.assert_trees_all_close(jax.tree.map(lambda g: g / 1024, large), grads, rtol=1e-6)
    chex.assert_trees_all_close(same.params, after.params, rtol=1e-6)


SCALED = {
    "average": lambda of: fnn.average(of(fnn.adam(0.1)), 0.9),
    "accumulate": lambda of: fnn.accumulate(of(fnn.adam(0.1)), 2),
    "partition": lambda of: fnn.partition(
        {"W": "a", "b": "b"}, {"a": of(fnn.momentum(0.1)), "b": fnn.momentum(0.1)}
    ),
    "two of a partition": lambda of: fnn.partition(
        {"W": "a", "b": "b"}, {"a": of(of(fnn.adam(0.1))), "b": of(fnn.momentum(0.1))}
    ),
    "itself": lambda of: of(of(fnn.adam(0.1))),
    "clip_by_global_norm": lambda of: fnn.clip_by_global_norm(of(fnn.momentum(0.1)), 0.01),
    "add_l2": lambda of: fnn.add_l2(of(fnn.momentum(0.1)), 0.5),
    "around clip": lambda of: of(fnn.clip_by_global_norm(fnn.momentum(0.1), 0.01)),
    "several": lambda of: fnn.clip_by_global_norm(
        fnn.average(fnn.add_l2(fnn.accumulate(of(fnn.adam(0.1)), 2), 0.5), 0.9), 0.01
    ),
    "to_optax": lambda of: fnn.from_optax(fnn.to_optax(fnn.average(of(fnn.momentum(0.1)), 0.9))),
}  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SCALED)
def test_scale_loss_changes_nothing_wherever_it_stands(name):
    network, x = fnn.dense(2, 1), jnp.array([[1.0, -2.0], [0.5, 3.0], [2.0, 1.0]])
    params, batch = network.init(KEY), (x, jnp.array([[1.0], [-1.0], [4.0]]))
    found = []
    for of in (lambda optimizer: optimizer, lambda optimizer: fnn.scale_loss(optimizer, 512.0)):
        optimizer = SCALED[name](of)
        step, state = jax.jit(fnn.make_step(network, fnn.mse, optimizer)), optimizer.init(params)
        for _ in range(4):
            state, _ = step(state, batch)
        found.append(state.params)
    chex.assert_trees_all_close(*found, rtol=1e-6)
    assert not np.allclose(found[0]["W"], params["W"])


def test_a_scale_never_grows_to_infinity():
    """After which every update would be skipped."""
    optimizer = fnn.scale_loss(fnn.sgd(0.1), 2.0**120, growth_interval=1)
    state = optimizer.init(jnp.ones(1))
    for _ in range(20):
        state = optimizer.update(state, jnp.zeros(1))
    assert np.isfinite(state.loss_scale)
    state = optimizer.update(state, jnp.full(1, 1.0) * state.loss_scale)
    np.testing.assert_allclose(state.params, 0.9, rtol=1e-6)


def test_a_penalty_is_scaled_beyond_what_float16_holds():
    optimizer = fnn.add_l2(fnn.scale_loss(fnn.sgd(0.25), 2.0**15), 1.0)
    state = optimizer.update(optimizer.init(jnp.full(1, 8, jnp.float16)), jnp.zeros(1, jnp.float16))
    np.testing.assert_array_equal(state.params, [6])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_a_clipped_gradient_is_not_rounded_before_the_rule(dtype):
    g = jnp.array([3e4, 4e4], dtype)
    optimizer = fnn.clip_by_global_norm(fnn.momentum(1.0), 1e-9)
    velocity = optimizer.update(optimizer.init(jnp.zeros(2, dtype)), g).velocity
    exact = np.asarray(g, np.float64)
    np.testing.assert_allclose(velocity, 1e-9 * exact / np.linalg.norm(exact), rtol=1e-6)


WRAPPED = {
    "accumulate": lambda of: fnn.accumulate(of, 2),
    "average": lambda of: fnn.average(of, 0.9),
    "partition": lambda of: fnn.partition(lambda params: "all", {"all": of}),
    "scale_loss": fnn.scale_loss,
    "clip_by_global_norm": lambda of: fnn.clip_by_global_norm(of, 1.0),
    "add_l2": lambda of: fnn.add_l2(of, 0.1),
    "from_optax": lambda of: fnn.from_optax(optax.sgd(0.1)),
    "to_optax": lambda of: fnn.from_optax(fnn.to_optax(of)),
    "kfac": lambda of: fnn.curvature.kfac(0.1),
    "accumulate of kfac": lambda of: fnn.accumulate(fnn.curvature.kfac(0.1), 2),
    "frozen": lambda of: fnn.partition(lambda params: "none", {"all": of, "none": None}),
}


def test_every_wrapper_is_tested_with_what_it_should_refuse():
    assert set(fnn.catalog.WRAPPERS) <= set(WRAPPED)


@pytest.mark.parametrize("name", WRAPPED)
def test_a_gradient_of_another_form_is_refused_at_once(name):
    """Nothing is broadcast, and no imaginary part is lost."""
    optimizer = WRAPPED[name](fnn.sgd(0.1))
    state = optimizer.init({"W": jnp.ones((1, 2))})
    for shape in ((), (2,), (1, 1), (7, 1, 2)):
        with pytest.raises(ValueError, match=r"its parameter's shape .* for params\['W'\]"):
            optimizer.update(state, {"W": jnp.ones(shape)})
    for dtype in (jnp.complex64, jnp.int32):
        with pytest.raises((TypeError, ValueError), match="floating-point|inexact"):
            optimizer.update(state, {"W": jnp.ones((1, 2), dtype)})


def test_kfac_refuses_gradients_of_another_shape_for_a_dense_layer():
    optimizer = fnn.curvature.kfac(0.1)
    state = optimizer.init({"W": jnp.ones((1, 2)), "b": jnp.ones(1)})
    for shape in ((7, 1, 2), (1, 1), (2, 2)):
        with pytest.raises(ValueError, match=r"its parameter's shape .* for params\['W'\]"):
            optimizer.update(state, {"W": jnp.ones(shape), "b": jnp.ones(1)})
    with pytest.raises(TypeError, match="observe: expected a state of kfac, got _SGDState"):
        fnn.curvature.observe(fnn.sgd(0.1).init(state.params), state.factors)


def test_a_state_of_other_labels_is_refused():
    a, b = (fnn.partition(lambda params, of=of: of, {of: fnn.sgd(0.1)}) for of in "ab")
    with pytest.raises(TypeError, match=r"expected a state of \['a'\], got one of \['b'\]"):
        a.update(b.init(jnp.ones(2)), jnp.ones(2))


@pytest.mark.parametrize("name", WRAPPED)
def test_another_rules_state_is_refused(name):
    optimizer = WRAPPED[name](fnn.sgd(0.1))
    for other in (fnn.momentum(0.1), fnn.average(fnn.momentum(0.1), 0.5)):
        with pytest.raises(TypeError, match=r"^(update|with_params): "):
            optimizer.update(other.init({"W": jnp.ones(2)}), {"W": jnp.ones(2)})


@pytest.mark.parametrize("name", WRAPPED)
def test_an_optimizer_of_nothing_updates(name):
    optimizer = WRAPPED[name](fnn.sgd(0.1))
    state = optimizer.update(optimizer.init(()), ())
    assert (state.params, int(state.step)) == ((), 1)


@pytest.mark.parametrize("optimizer", [fnn.sgd(0.1), fnn.adam(0.1), fnn.lion(0.1)])
def test_empty_trees_and_empty_subtrees(optimizer):
    state = optimizer.update(optimizer.init(()), ())
    assert state.params == ()
    assert int(state.step) == 1
    some = {"a": (), "b": {"c": jnp.ones(2), "d": None}}
    state = optimizer.update(optimizer.init(some), some)
    assert state.params["a"] == ()
    assert not np.array_equal(state.params["b"]["c"], jnp.ones(2))


def test_wrappers_train_in_one_program_and_donate():
    x = jax.random.normal(KEY, (32, 3))
    data, network = (x, x[:, :1]), fnn.mlp((3, 8, 1))
    inner = fnn.clip_by_global_norm(fnn.adam(0.02), 1.0)
    for optimizer in (
        fnn.accumulate(inner, 2),
        fnn.average(inner, 0.9),
        fnn.partition(lambda p: ("a", "b", "a", "b"), {"a": inner, "b": fnn.sgd(0.01)}),
        fnn.scale_loss(inner),
        fnn.average(fnn.accumulate(inner, 2), 0.9),
    ):
        epoch = jax.jit(fnn.make_epoch(network, fnn.mse, optimizer, 8), donate_argnums=0)
        state = optimizer.init(network.init(KEY))
        first = None
        for i in range(15):
            state, value = epoch(state, data, jax.random.key(i))
            first = float(value) if first is None else first
        assert float(value) < 0.5 * first


# Optax.


@pytest.mark.long
@pytest.mark.parametrize(
    "transformation",
    [
        optax.adamw(0.1),
        optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(optax.cosine_decay_schedule(0.1, 5))),
        optax.MultiSteps(optax.adam(0.1), 2),
        optax.lamb(0.1),
    ],
    ids=["adamw", "chain", "MultiSteps", "lamb"],
)
def test_from_optax_updates_as_optax_does(transformation):
    found = states(fnn.from_optax(transformation))
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        params, slots = PARAMS, transformation.init(PARAMS)
        for state, g in zip(found[1:], GRADS, strict=True):
            updates, slots = transformation.update(g, slots, params)
            params = optax.apply_updates(params, updates)
            chex.assert_trees_all_close(state.params, params, rtol=1e-6)
    assert int(found[-1].step) == 7


def test_to_optax_gives_what_optax_applies():
    optimizer = fnn.average(fnn.adam(0.1), 0.9)
    there = optax.chain(optax.identity(), fnn.to_optax(optimizer))
    params, slots = PARAMS, there.init(PARAMS)
    for state, g in zip(states(optimizer)[1:], GRADS, strict=True):
        updates, slots = there.update(g, slots, params)
        params = optax.apply_updates(params, updates)
        chex.assert_trees_all_close(params, state.params, rtol=1e-5)
    parts = fnn.partition({"W": "a", "b": "b"}, {"a": fnn.average(fnn.adam(0.1), 0.9), "b": None})
    there, params = fnn.to_optax(parts), PARAMS
    slots = there.init(params)
    for state, g in zip(states(parts)[1:], GRADS, strict=True):
        updates, slots = there.update(g, slots, params)
        params = optax.apply_updates(params, updates)
        chex.assert_trees_all_close(params, state.params, rtol=1e-5)
    with pytest.raises(ValueError, match="got no params"):
        fnn.to_optax(fnn.sgd(0.1)).update(PARAMS, fnn.sgd(0.1).init(PARAMS))


def test_by_name_labels_by_the_innermost_name():
    params = {
        "head": ({"W": jnp.ones((2, 2)), "b": jnp.ones(2)},),
        "body": [{"b": jnp.ones(1)}, ()],
    }
    labels = fnn.by_name(W="w", head="h", default="rest")(params)
    assert labels == {"head": ({"W": "w", "b": "h"},), "body": [{"b": "rest"}, ()]}
    with pytest.raises(ValueError, match="no parameter is called 'w'"):
        fnn.by_name(w="w", default="rest")(params)


def test_muon_in_repeat_is_muon_of_each_copy():
    """And a stacked bias is no matrix."""
    network, copy = fnn.repeat(fnn.skip(fnn.dense(4, 4)), 3), fnn.skip(fnn.dense(4, 4))
    params = network.init(KEY)
    rules = {"matrix": fnn.muon(0.1), "rest": fnn.adam(0.1)}
    optimizer = fnn.partition(fnn.by_name(W="matrix", default="rest"), rules)
    grads = [jax.tree.map(lambda p, i=i: jnp.cos(i + 3 * p), params) for i in range(3)]
    state = states(optimizer, grads, params)[-1]
    for i in range(3):
        of = lambda tree, i=i: jax.tree.map(lambda a: a[i], tree)
        alone = states(optimizer, [of(g) for g in grads], of(params))[-1]
        chex.assert_trees_all_close(of(state.params), alone.params, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(copy.init(KEY)) == jax.tree.structure(params)


def test_a_step_of_muon_is_about_orthogonal():
    g = jnp.cos(jnp.arange(24.0).reshape(4, 6) ** 2)
    optimizer = fnn.muon(1.0)
    step = optimizer.update(optimizer.init(jnp.zeros((4, 6))), g).params
    singular = np.linalg.svd(np.asarray(step))[1]
    assert (singular > 0.6).all()
    assert (singular < 1.3).all()


def test_weight_decay_follows_its_schedule_and_its_mask():
    schedule = lambda step: 0.1 * (step.astype(jnp.float32) + 1)
    masked = fnn.adamw(0.1, weight_decay=schedule, mask=fnn.by_name(W=True, default=False))
    found = states(masked)
    adam = states(fnn.adam(0.1))
    chex.assert_trees_all_close(found[-1].params["b"], adam[-1].params["b"], rtol=1e-6)
    W = np.asarray(PARAMS["W"], np.float64)
    for i, (before, after) in enumerate(pairwise(adam)):
        step = np.asarray(after.params["W"], np.float64) - np.asarray(before.params["W"])
        W = W + step - 0.1 * 0.1 * (i + 1) * W
    np.testing.assert_allclose(found[-1].params["W"], W, rtol=1e-5)
    with pytest.raises(ValueError, match="mask: the labels don't fit"):
        fnn.adamw(0.1, mask={"Q": True}).update(masked.init(PARAMS), GRADS[0])


def test_an_average_with_a_schedule_can_be_the_plain_mean():
    found = states(fnn.average(fnn.sgd(0.1), lambda step: step / (step + 1)))
    mean = np.mean([np.asarray(state.params["W"]) for state in found[1:]], 0)
    np.testing.assert_allclose(found[-1].average["W"], mean, rtol=1e-5)


TO_OPTAX = {
    "accumulate": lambda: fnn.accumulate(fnn.adam(0.1), 2),
    "average": lambda: fnn.average(fnn.momentum(0.1), 0.9),
    "partition": lambda: fnn.partition(
        {"W": "a", "b": "b"}, {"a": fnn.average(fnn.adam(0.1), 0.9), "b": None}
    ),
    "scale_loss": lambda: fnn.scale_loss(fnn.adam(0.1), 8.0),
    "muon": lambda: fnn.muon(0.1),
}


@pytest.mark.parametrize("name", TO_OPTAX)
def test_a_stateful_wrapper_goes_through_optax(name):
    transformation = optax.chain(optax.identity(), fnn.to_optax(TO_OPTAX[name]()))
    found = states(fnn.from_optax(transformation))
    optimizer = TO_OPTAX[name]()
    scale = 8.0 if name == "scale_loss" else 1.0
    expected = states(optimizer, [jax.tree.map(lambda g: scale * g, of) for of in GRADS])
    chex.assert_trees_all_close(found[-1].params, expected[-1].params, rtol=1e-5, atol=1e-6)


def test_from_optax_hands_on_the_loss():
    network, loss = fnn.dense(2, 1), fnn.mse
    x = jax.random.normal(KEY, (20, 2))
    y = x @ jnp.array([[1.0], [-2.0]]) + 0.5
    objective = lambda params: fnn.objective(network, loss)(params, x, y)
    for transformation in (optax.lbfgs(), optax.polyak_sgd()):
        optimizer = fnn.from_optax(transformation, objective)
        step, state = jax.jit(fnn.make_step(network, loss, optimizer)), None
        state = optimizer.init(network.init(KEY))
        for _ in range(30):
            state, value = step(state, (x, y))
        assert float(value) < 1e-6
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
    optimizer = fnn.from_optax(optax.chain(optax.sgd(0.1), plateau), lambda params: jnp.ones(()))
    found = states(optimizer)
    assert float(found[-1].slots[1].scale) < 1
    with pytest.raises(TypeError, match="value"):
        fnn.from_optax(optax.chain(optax.sgd(0.1), plateau)).update(
            optimizer.init(PARAMS), GRADS[0]
        )
