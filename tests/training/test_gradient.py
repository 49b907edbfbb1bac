"""A gradient of one's own, and weights, in a step, an epoch, a run and `fit`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import gradients

KEY = jax.random.key(8)
X = jax.random.normal(KEY, (50, 4))
Y = (X[:, 0] > 0).astype(jnp.int32)
NETWORK, LOSS = fnn.mlp((4, 8, 2)), fnn.softmax_cross_entropy
PARAMS = NETWORK.init(KEY)
OWN = gradients.of(NETWORK, LOSS)
WEIGHT = jnp.linspace(0.0, 2.0, 50)


def twice(params, batch, key):
    value, grads = OWN(params, batch, key)
    return 2 * value, jax.tree.map(lambda g: 2 * g, grads)


def test_a_step_descends_by_the_given_gradient():
    optimizer = fnn.sgd(0.1)
    state = optimizer.init(PARAMS)
    step = fnn.make_step(NETWORK, LOSS, optimizer, gradient=twice)
    got, value = step(state, (X, Y), KEY)
    expected, once = fnn.make_step(NETWORK, LOSS, fnn.sgd(0.2))(state, (X, Y))
    chex.assert_trees_all_close(got.params, expected.params, rtol=1e-6)
    np.testing.assert_allclose(value, 2 * once, rtol=1e-6)
    with pytest.raises(TypeError, match="expected a key, which random layers, augment"):
        step(state, (X, Y))


def test_it_gets_each_update_another_key_augmented_batches_and_is_recorded():
    seen = []

    def spy(params, batch, key):
        value, grads = OWN(params, batch, None)
        return value, jax.tree.map(lambda g: g + jax.random.normal(key, g.shape), grads)

    def dark(key, batch):
        seen.append(key)
        return 0 * batch[0], batch[1]

    noted = lambda state, grads, value: (grads[0]["b"], value)
    research = {"gradient": spy, "record": noted, "augment": dark}
    step = fnn.make_step(NETWORK, LOSS, fnn.sgd(0.0001), **research)
    state, (value, (g, recorded)) = step(fnn.sgd(0.0001).init(PARAMS), (X, Y), KEY)
    expected = fnn.objective(NETWORK, LOSS)(PARAMS, 0 * X, Y)
    np.testing.assert_allclose([value, recorded], [expected, expected], rtol=1e-6)
    _, (_, (other, _)) = step(state, (X, Y), KEY)
    assert float(jnp.abs(g - other).max()) > 0.1
    assert seen[0] != seen[1]


@pytest.mark.long
def test_the_default_gradient_given_trains_the_same():
    """With dropout, so that both draw keys for their steps."""
    network = fnn.serial(fnn.dense(4, 8), fnn.relu, fnn.dropout(0.3), fnn.dense(8, 2))
    params, own = network.init(KEY), gradients.of(network, LOSS)
    train = lambda **given: jax.jit(fnn.make_train(network, LOSS, fnn.adam(0.01), 16, 3, **given))
    got, expected = (train(**given)(params, (X, Y), KEY) for given in ({"gradient": own}, {}))
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("stream", [False, True])
def test_fit_trains_resumes_and_diverges_with_it(stream):
    data, size = ([(X[:25], Y[:25]), (X[25:], Y[25:])], None) if stream else ((X, Y), 25)
    keyed = gradients.noisy(gradients.sam(OWN, 0.1), 0.01)
    plain = {"key": KEY, "batch_size": size, "gradient": keyed}
    fit = lambda **given: fnn.fit(NETWORK, LOSS, fnn.adam(0.01), data, **plain | given)
    state, history = fit(epochs=4)
    first, earlier = fit(epochs=2)
    resumed, same = fit(epochs=4, start=fnn.Progress(first, earlier, first))
    chex.assert_trees_all_equal(resumed, state)
    assert same == history
    late = lambda params, batch, key: (jnp.where(params[0]["W"].sum() > -1e9, jnp.nan, 0.0), params)
    with pytest.raises(fnn.DivergedError, match="epoch 1, step 1.*is the loss"):
        fit(epochs=2, gradient=late)


def test_beside_a_gradient_the_examples_need_not_fit_the_network():
    """Points of a physics loss: x has no features' axis. The validation data does fit."""
    x = jnp.linspace(-1, 1, 12)
    network = fnn.mlp((1, 8, 1), fnn.tanh)

    def objective(params, batch, key):
        return jnp.square(network.forward(params, batch[0][:, None])[0][:, 0] - batch[1]).mean()

    held_out = (x[:, None], x[:, None])
    _, history = fnn.fit(
        network, fnn.mse, fnn.adam(0.02), (x, x), key=KEY, epochs=60, batch_size=12,
        gradient=jax.value_and_grad(objective), validation=held_out,
    )  # fmt: skip
    assert history[-1]["validation_loss"] < 0.1 * history[0]["loss"]
    with pytest.raises(ValueError, match=r"expected x \(n, d_in\)"):
        fnn.fit(network, fnn.mse, fnn.adam(0.02), (x, x), key=KEY, epochs=1, batch_size=12)
    with pytest.raises(ValueError, match="fit: validation"):
        fnn.fit(network, fnn.mse, fnn.adam(0.02), (x, x), key=KEY, epochs=1, batch_size=12,
                gradient=jax.value_and_grad(objective), validation=(x, x))  # fmt: skip


def test_a_scaled_loss_scales_a_given_gradient_too():
    optimizer = fnn.scale_loss(fnn.sgd(0.1), 8.0)
    noted = lambda state, grads, value: grads[0]["b"]
    step = lambda **given: fnn.make_step(NETWORK, LOSS, optimizer, record=noted, **given)
    state = optimizer.init(PARAMS)
    (got, one), (expected, two) = (
        step(gradient=OWN)(state, (X, Y), KEY), step()(state, (X, Y))
    )  # fmt: skip
    chex.assert_trees_all_close((got.params, one), (expected.params, two), rtol=1e-5, atol=1e-7)


def test_a_value_that_is_no_scalar_is_refused():
    wrong = lambda params, batch, key: (jnp.ones(3), params)
    step = fnn.make_step(NETWORK, LOSS, fnn.sgd(0.1), gradient=wrong)
    with pytest.raises(ValueError, match=r"scalar value, got \(3,\)"):
        step(fnn.sgd(0.1).init(PARAMS), (X, Y), KEY)


# Weights: the third of the data.


def test_weighted_examples_have_the_weighted_gradient():
    state, value = fnn.make_step(NETWORK, LOSS, fnn.sgd(0.1))(
        fnn.sgd(0.1).init(PARAMS), (X, Y, WEIGHT)
    )
    expected, grads = fnn.value_and_grad(NETWORK, LOSS)(PARAMS, X, Y, WEIGHT)
    chex.assert_trees_all_close(
        state.params, jax.tree.map(lambda p, g: p - 0.1 * g, PARAMS, grads), rtol=1e-6
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("stream", [False, True])
def test_weights_follow_their_examples(stream):
    """Weights of 0 and 1: the labels of the others are wrong, and make no difference."""
    right = jnp.arange(50) % 2
    labels = jnp.where(right, Y, 1 - Y)
    cut = lambda a: [a[:20], a[20:40], a[40:]]
    data = (X, labels, right.astype(float))
    data, size = (list(zip(*map(cut, data), strict=True)), None) if stream else (data, 16)
    state, history = fnn.fit(
        NETWORK, LOSS, fnn.adam(0.05), data, key=KEY, epochs=60, batch_size=size
    )
    assert history[-1]["loss"] < 0.05
    prediction = NETWORK.forward(state.params, X)[0].argmax(-1)
    assert float((prediction == Y).mean()) > 0.85


def test_validation_and_metrics_are_weighted():
    per_example = lambda p, y: p.argmax(-1) == y
    state, history = fnn.fit(
        NETWORK, LOSS, fnn.sgd(0.1), (X, Y), key=KEY, epochs=1, batch_size=50,
        validation=(X, Y, WEIGHT),
        metrics={"right": per_example, "all": lambda p, y: per_example(p, y).mean()},
    )  # fmt: skip
    prediction, _ = NETWORK.forward(state.params, X)
    right = np.asarray(per_example(prediction, Y), float)
    losses, (entry,) = LOSS.value(prediction, Y), history
    np.testing.assert_allclose(entry["validation_loss"], (losses * WEIGHT).mean(), rtol=1e-5)
    np.testing.assert_allclose(entry["right"], np.average(right, weights=WEIGHT), rtol=1e-5)
    np.testing.assert_allclose(entry["all"], right.mean(), rtol=1e-5)


def test_augment_sees_examples_without_their_weights_and_may_weigh_them():
    state, settings = fnn.sgd(0.1).init(PARAMS), {"optimizer": fnn.sgd(0.1), "network": NETWORK}
    step = lambda augment: fnn.make_step(**settings, loss=LOSS, augment=augment)
    plain = fnn.make_step(**settings, loss=LOSS)(state, (X, Y, WEIGHT))
    same = step(lambda key, batch: batch)(state, (X, Y, WEIGHT), KEY)
    weighed = step(lambda key, batch: (*batch, WEIGHT))(state, (X, Y), KEY)
    chex.assert_trees_all_close(same, plain, rtol=1e-6)
    chex.assert_trees_all_close(weighed, plain, rtol=1e-6)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (jnp.ones(3), "x has 50 examples, but y has 50, weight has 3"),
        (jnp.ones((50, 2)), r"one number per example, \(50,\), got \(50, 2\)"),
        (jnp.ones(50).at[4].set(jnp.nan), r"finite numbers, weight\[4\] is nan"),
    ],
)
def test_wrong_weights_are_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        fnn.fit(NETWORK, LOSS, fnn.sgd(0.1), (X, Y, weight), key=KEY, epochs=1, batch_size=5)
