"""Layers that vary: at a key and at statistics every layer is three pure functions again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import per_example, verify

KEY = jax.random.key(3)

X = jax.random.normal(KEY, (8, 5))

NOISY = fnn.serial(
    fnn.dense(5, 6),
    fnn.dropout(0.3),
    fnn.repeat(fnn.skip(fnn.serial(fnn.dense(6, 6), fnn.tanh, fnn.dropout(0.5))), 4),
    fnn.fork(fnn.dense(6, 2), fnn.dropout(0.2)),
    fnn.concatenate,
)

PARAMS = NOISY.init(KEY)


def test_a_layer_that_does_not_vary_is_the_same_at_every_key():
    network = fnn.serial(fnn.dense(5, 4), fnn.repeat(fnn.skip(fnn.tanh), 3), fnn.fork(fnn.relu))
    assert network.varying is None
    assert fnn.at(network, KEY) is network
    assert fnn.statistics(network, network.init(KEY), X) == ()


def test_without_a_key_dropout_is_the_identity():
    y, _ = NOISY.forward(PARAMS, X)
    same, _ = fnn.at(NOISY).forward(PARAMS, X)
    np.testing.assert_array_equal(y, same)
    np.testing.assert_array_equal(fnn.dropout(0.9).forward((), X)[0], X)


def test_a_key_gives_the_same_function_again_and_another_key_another():
    runs = [fnn.at(NOISY, key).forward(PARAMS, X)[0] for key in (KEY, KEY, jax.random.key(4))]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_each_layer_and_each_copy_has_a_key_of_its_own():
    twice = fnn.at(fnn.serial(fnn.dropout(0.5), fnn.dropout(0.5)), KEY)
    copies = fnn.at(fnn.repeat(fnn.dropout(0.5), 2), KEY)
    heads = fnn.at(fnn.fork(fnn.dropout(0.5), fnn.dropout(0.5)), KEY)
    x = jnp.ones((100, 100))
    for layer, params in ((twice, ((), ())), (copies, ())):
        # With one mask for both, half would be left; with two, a quarter.
        assert abs(float((layer.forward(params, x)[0] != 0).mean()) - 0.25) < 0.03
    a, b = heads.forward(((), ()), x)[0]
    assert not np.array_equal(a, b)


def test_at_a_key_everything_sees_three_pure_functions():
    layer = fnn.at(NOISY, KEY)
    assert layer.varying is None
    verify.check_layer(layer, PARAMS, X).raise_for_verdict()
    y = jnp.zeros((8, 8))
    norms = jax.jit(per_example.squared_norms(layer, fnn.mse))(PARAMS, X, y)
    # One example's loss, with the whole batch's masks.
    losses = lambda params: fnn.mse.value(layer.forward(params, X)[0], y)
    each = jax.jit(jax.jacrev(losses))(PARAMS)
    expected = sum(jnp.square(g).reshape(8, -1).sum(1) for g in jax.tree.leaves(each))
    np.testing.assert_allclose(norms, expected, rtol=1e-5)


@pytest.mark.long
def test_a_wrong_backward_at_a_key_is_seen():
    def at(key, statistics):
        layer = fnn.dropout(0.5).varying.at(key, statistics)
        if key is None:
            return layer
        other = fnn.dropout(0.5).varying.at(jax.random.fold_in(key, 1), statistics)
        return layer._replace(backward=other.backward)  # a mask of its own

    wrong = fnn.dropout(0.5)
    wrong = wrong._replace(varying=wrong.varying._replace(at=at))
    network = fnn.repeat(fnn.serial(fnn.dense(5, 5), wrong), 2)
    report = verify.check_layer(fnn.at(network, KEY), network.init(KEY), X)
    assert report.verdict == "fail"


NORMED = fnn.serial(
    fnn.dense(5, 6),
    fnn.batch_norm(6),
    fnn.repeat(fnn.skip(fnn.serial(fnn.dropout(0.5), fnn.batch_norm(6))), 3),
    fnn.dense(6, 2),
)


def test_statistics_have_an_entry_for_each_layer_that_keeps_some():
    params = NORMED.init(KEY)
    s = fnn.statistics(NORMED, params, X)
    shapes = jax.tree.map(jnp.shape, s)
    assert shapes == ((), ((6,), (6,)), ((), ((3, 6), (3, 6))), ())


def test_at_the_batchs_own_statistics_evaluation_is_training():
    params = fnn.batch_norm(6).init(KEY)
    x = 3 + 2 * jax.random.normal(KEY, (50, 6))
    layer = fnn.batch_norm(6)
    s = fnn.statistics(layer, params, x)
    np.testing.assert_allclose(s[0], x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(s[1], x.var(0), rtol=1e-5)
    y, _ = fnn.at(layer, statistics=s).forward(params, x)
    trained, _ = fnn.at(layer, KEY).forward(params, x)
    np.testing.assert_allclose(y, trained, rtol=1e-6)
    np.testing.assert_allclose(y.mean(0), np.zeros(6), atol=1e-5)
    plain, _ = layer.forward(params, x)
    np.testing.assert_allclose(plain, x / np.sqrt(1 + 1e-5), rtol=1e-6)


def test_each_layer_is_measured_on_what_the_layers_before_it_give():
    params = NORMED.init(KEY)
    layer = fnn.at(NORMED, statistics=fnn.statistics(NORMED, params, X))
    inner = fnn.serial(*[fnn.dense(5, 6), fnn.batch_norm(6)])
    s = fnn.statistics(inner, params[:2], X)
    hidden, _ = fnn.at(inner, statistics=s).forward(params[:2], X)
    one = fnn.skip(fnn.serial(fnn.dropout(0.5), fnn.batch_norm(6)))
    for i in range(3):
        p = jax.tree.map(lambda a, i=i: a[i], params[2])
        t = fnn.statistics(one, p, hidden)
        hidden, _ = fnn.at(one, statistics=t).forward(p, hidden)
    y, _ = fnn.dense(6, 2).forward(params[3], hidden)
    np.testing.assert_allclose(layer.forward(params, X)[0], y, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_batch_norm_mixes_examples_in_training_and_not_in_evaluation():
    params, y = NORMED.init(KEY), jnp.zeros((8, 2))
    with pytest.raises(TypeError, match=r"batch_norm\(6\): its gradient exists for the whole"):
        per_example.squared_norms(fnn.at(NORMED, KEY), fnn.mse)(params, X, y)
    layer = fnn.at(NORMED, statistics=fnn.statistics(NORMED, params, X))
    verify.check_layer(layer, params, X).raise_for_verdict()
    # A bias in front of it has no effect in training, which no check can tell from an error.
    report = verify.check_layer(fnn.at(NORMED, KEY), params, X)
    assert {f.name for f in report.leaves if f.verdict != "pass"} == {"dparams.0.b"}
    norms = per_example.squared_norms(layer, fnn.mse)(params, X, y)
    assert norms.shape == (8,)
