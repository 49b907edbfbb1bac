"""What research needs of a step: augment, record, metrics, trees of data; the same everywhere."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn

KEY = jax.random.key(8)
X = jax.random.normal(KEY, (50, 4))
Y = (X[:, 0] > 0).astype(jnp.int32)
NETWORK, LOSS = fnn.mlp((4, 8, 2)), fnn.softmax_cross_entropy
PARAMS = NETWORK.init(KEY)


def noted(state, grads, value):
    return {"step": state.step, "norm": jnp.sqrt(jnp.square(grads[0]["W"]).sum()), "value": value}


def jitter(key, batch):
    x, y = batch
    return x + 0.1 * jax.random.normal(key, x.shape), y


def test_a_step_records_the_state_gradient_and_loss_it_computed():
    optimizer = fnn.adam(0.1)
    state = optimizer.init(PARAMS)
    plain = fnn.make_step(NETWORK, LOSS, optimizer)(state, (X, Y))
    after, (value, record) = fnn.make_step(NETWORK, LOSS, optimizer, record=noted)(state, (X, Y))
    chex.assert_trees_all_equal((after, value), plain)
    expected, grads = fnn.value_and_grad(NETWORK, LOSS)(PARAMS, X, Y)
    assert int(record["step"]) == 0
    assert float(record["value"]) == float(expected)
    np.testing.assert_array_equal(record["norm"], jnp.sqrt(jnp.square(grads[0]["W"]).sum()))


def test_epochs_and_runs_record_every_step_in_order():
    optimizer, data = fnn.adam(0.01), (X, Y)
    epoch = jax.jit(fnn.make_epoch(NETWORK, LOSS, optimizer, 16, record=noted))
    plain = jax.jit(fnn.make_epoch(NETWORK, LOSS, optimizer, 16))
    state, (value, record) = epoch(optimizer.init(PARAMS), data, KEY)
    same, expected = plain(optimizer.init(PARAMS), data, KEY)
    chex.assert_trees_all_close((state, value), (same, expected), rtol=1e-6)
    np.testing.assert_array_equal(record["step"], [0, 1, 2, 3])  # the rest of 2 is a step too
    np.testing.assert_allclose(
        record["value"] @ np.array([16, 16, 16, 2], "float32") / 50, value, rtol=1e-6
    )
    train = jax.jit(fnn.make_train(NETWORK, LOSS, optimizer, 16, 3, record=noted))
    _, (losses, record) = train(PARAMS, data, KEY)
    assert losses.shape == (3,)
    np.testing.assert_array_equal(record["step"], np.arange(12).reshape(3, 4))


@pytest.mark.parametrize("stream", [False, True])
def test_fit_keeps_what_was_recorded_in_the_history(stream):
    data, size = ((X, Y), 16) if not stream else ([(X[:16], Y[:16])] * 3 + [(X[:2], Y[:2])], None)
    _, history = fnn.fit(
        NETWORK, LOSS, fnn.adam(0.01), data, key=KEY, epochs=2, batch_size=size, record=noted
    )
    steps = [entry["record"]["step"] for entry in history]
    np.testing.assert_array_equal(steps, np.arange(8).reshape(2, 4))
    assert set(history[0]) == {"loss", "record"}


def test_augment_transforms_each_batch_by_a_key_of_its_own():
    optimizer, seen = fnn.sgd(0.1), []

    def spy(key, batch):
        seen.append(jax.random.key_data(key))
        return jitter(key, batch)

    state = optimizer.init(PARAMS)
    step = fnn.make_step(NETWORK, LOSS, optimizer, augment=spy)
    state, value = step(state, (X, Y), KEY)
    expected = fnn.objective(NETWORK, LOSS)(
        PARAMS, *jitter(jax.random.wrap_key_data(seen[0]), (X, Y))
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    step(state, (X, Y), KEY)
    assert not np.array_equal(seen[0], seen[1])
    with pytest.raises(TypeError, match="expected a key"):
        step(state, (X, Y))


def test_augment_is_the_same_in_a_run_an_epoch_and_fit():
    """To labels of one class: then the loss goes to 0, whatever the labels were."""
    first = lambda key, batch: (batch[0], jnp.zeros_like(batch[1]))
    optimizer = fnn.adam(0.1)
    _, losses = fnn.make_train(NETWORK, LOSS, optimizer, 16, 10, augment=first)(PARAMS, (X, Y), KEY)
    _, history = fnn.fit(
        NETWORK, LOSS, optimizer, (X, Y), key=KEY, epochs=10, batch_size=16, augment=first
    )
    assert float(losses[-1]) < 0.01
    assert history[-1]["loss"] < 0.01


def test_metrics_are_measured_on_the_validation_data_after_each_epoch():
    def accuracy(prediction, y):
        return prediction.argmax(-1) == y

    state, history = fnn.fit(
        NETWORK, LOSS, fnn.adam(0.05), (X, Y), key=KEY, epochs=5, batch_size=16,
        validation=(X[:20], Y[:20]), metrics={"accuracy": accuracy, "first": lambda p, y: p[0, 0]},
    )  # fmt: skip
    assert list(history[-1]) == ["loss", "validation_loss", "accuracy", "first"]
    prediction, _ = NETWORK.forward(state.params, X[:20])
    np.testing.assert_allclose(history[-1]["accuracy"], accuracy(prediction, Y[:20]).mean())
    np.testing.assert_allclose(history[-1]["first"], prediction[0, 0], rtol=1e-5)
    with pytest.raises(ValueError, match="validation=.*metrics"):
        fnn.fit(NETWORK, LOSS, fnn.sgd(1.0), (X, Y), key=KEY, epochs=1, batch_size=16,
                metrics={"accuracy": accuracy})  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize("stream", [False, True])
def test_on_epoch_ends_training_by_returning_true(stream):
    calls, states = [], []

    def on_epoch(number, state, entry):
        calls.append((number, entry["loss"]))
        states.append(state)
        return number == 3

    data, size = ((X, Y), 16) if not stream else ([(X[:16], Y[:16])] * 3, None)
    settings = {"key": KEY, "batch_size": size}
    state, history = fnn.fit(
        NETWORK, LOSS, fnn.adam(0.01), data, epochs=50, on_epoch=on_epoch, **settings
    )
    assert [number for number, _ in calls] == [1, 2, 3]
    assert len(history) == 3
    shorter, same = fnn.fit(NETWORK, LOSS, fnn.adam(0.01), data, epochs=3, **settings)
    assert history == same
    chex.assert_trees_all_equal(state, shorter)
    chex.assert_trees_all_equal(state, states[-1])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("answer", [True, np.bool_(True), jnp.array(True)])
def test_on_epoch_may_answer_with_any_boolean(answer):
    settings = {"key": KEY, "epochs": 9, "batch_size": 25}
    _, history = fnn.fit(
        NETWORK, LOSS, fnn.sgd(0.1), (X, Y), on_epoch=lambda *_: answer, **settings
    )
    assert len(history) == 1
    with pytest.raises(TypeError, match="on_epoch to return True, False or None, got 'stop'"):
        fnn.fit(NETWORK, LOSS, fnn.sgd(0.1), (X, Y), on_epoch=lambda *_: "stop", **settings)


@pytest.mark.parametrize("metrics", [{"loss": None}, {"validation_loss": None}, [None]])
def test_a_metric_has_a_name_of_its_own(metrics):
    with pytest.raises(ValueError, match="with other names than loss"):
        fnn.fit(NETWORK, LOSS, fnn.sgd(0.1), (X, Y), key=KEY, epochs=1, batch_size=25,
                validation=(X, Y), metrics=metrics)  # fmt: skip


@pytest.mark.long
def test_runs_take_numpy_arrays_without_jit():
    data = (np.asarray(X), np.asarray(Y))
    train = fnn.make_train(NETWORK, LOSS, fnn.sgd(0.1), 25, 2)
    _, losses = train(PARAMS, data, KEY)
    np.testing.assert_allclose(losses, train(PARAMS, (X, Y), KEY)[1], rtol=1e-6)


# Trees of inputs, predictions and targets.


def two_headed(d):
    """Two inputs to two predictions: classes and a value."""
    table = fnn.Layer(
        lambda key: (),
        lambda params, x: ((x["numbers"], x["more"]), ()),
        lambda params, residuals, dy, reduce=fnn.total: ((), {"numbers": dy[0], "more": dy[1]}),
    )
    return fnn.serial(
        table,
        fnn.concatenate,
        fnn.dense(d, 8),
        fnn.tanh,
        fnn.fork(fnn.dense(8, 2), fnn.dense(8, 1)),
    )


def both(first, second):
    """The sum of two losses, of the two heads."""
    return fnn.Loss(
        lambda p, t: first.value(p[0], t["class"]) + second.value(p[1], t["value"]),
        lambda p, t: (first.gradient(p[0], t["class"]), second.gradient(p[1], t["value"])),
    )


TREE = ({"numbers": X[:, :3], "more": X[:, 3:]}, {"class": Y, "value": X[:, :1] * X[:, 1:2]})


def test_gradients_of_trees_are_autodiffs():
    network, loss = two_headed(4), both(fnn.softmax_cross_entropy, fnn.mse)
    params = network.init(KEY)
    ours = jax.jit(fnn.value_and_grad(network, loss))
    theirs = jax.jit(jax.value_and_grad(fnn.objective(network, loss)))
    chex.assert_trees_all_close(ours(params, *TREE), theirs(params, *TREE), rtol=1e-5, atol=1e-7)
    weighted = (params, *TREE, jnp.arange(50.0))
    chex.assert_trees_all_close(ours(*weighted), theirs(*weighted), rtol=1e-5, atol=1e-5)
    norms = jax.jit(fnn.per_example.squared_norms(network, loss))(params, *TREE)
    assert norms.shape == (50,)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("stream", [False, True])
def test_fit_trains_on_trees(stream):
    network, loss = two_headed(4), both(fnn.softmax_cross_entropy, fnn.mse)
    cut = lambda i: jax.tree.map(lambda a: np.asarray(a[i : i + 16]), TREE)
    data, size = ([cut(0), cut(16), cut(32)], None) if stream else (TREE, 16)
    _, history = fnn.fit(
        network, loss, fnn.adam(0.02), data, key=KEY, epochs=40, batch_size=size, validation=TREE
    )
    assert history[-1]["validation_loss"] < 0.3 * history[0]["validation_loss"]


def test_wrong_trees_are_refused_by_name():
    network, loss = two_headed(4), both(fnn.softmax_cross_entropy, fnn.mse)
    settings = {"key": KEY, "epochs": 1, "batch_size": 16}
    short = ({"numbers": X[:, :3], "more": X[:10, 3:]}, TREE[1])
    with pytest.raises(ValueError, match=r"x has \[10, 50\] examples, but y has 50"):
        fnn.fit(network, loss, fnn.sgd(0.1), short, **settings)
    bad = (TREE[0] | {"more": X[:, 3:].at[7, 0].set(jnp.nan)}, TREE[1])
    with pytest.raises(ValueError, match=r"expected finite numbers, x\['more'\]\[7, 0\] is nan"):
        fnn.fit(network, loss, fnn.sgd(0.1), bad, **settings)


# The mistakes that people make first.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fnn.mlp((4, 2), activation=jax.nn.relu), r"mlp: activation.*elementwise"),
        (lambda: fnn.serial(fnn.dense), "serial: argument 0.*call it to make one"),
        (lambda: fnn.make_step(NETWORK, jnp.square, fnn.sgd(0.1)), r"expected a Loss\(value"),
        (lambda: fnn.make_step(NETWORK, fnn.huber, fnn.sgd(0.1)), "Loss.*call it to make one"),
        (lambda: fnn.make_step(NETWORK, LOSS, fnn.sgd), "Optimizer.*call it to make one"),
        (lambda: fnn.sgd(0.1).update(PARAMS, fnn.sgd(0.1).init(PARAMS)), "optax.*opposite order"),
        (lambda: LOSS(X, Y), "a Loss is not a function"),
        (lambda: LOSS.value((X, X), Y), "expected one array as prediction, got tuple"),
        (lambda: fnn.serial([fnn.relu]), r"got <class 'list'>; pass the layers one by one"),
        (lambda: fnn.statistics(PARAMS, NETWORK, X), "statistics: expected a Layer"),
        (lambda: fnn.clip_by_global_norm(1.0, fnn.sgd(1.0)), "expected an Optimizer"),
        (lambda: fnn.partition({"a": fnn.sgd(1.0)}, "a"), "expected {label: optimizer} after"),
        (lambda: fnn.adam("0.1"), "adam: expected learning_rate to be a number, got '0.1'"),
        (
            lambda: fnn.make_epoch(NETWORK, LOSS, fnn.sgd(1.0), 2)(
                fnn.sgd(1.0).init(PARAMS), ([1.0], [2.0]), KEY
            ),
            "a list is not an array",
        ),
        (
            lambda: fnn.make_step(NETWORK, LOSS, fnn.sgd(1.0), augment=lambda key, batch: X)(
                fnn.sgd(1.0).init(PARAMS), (X, Y), KEY
            ),
            r"augment: expected it to return \(x, y\)",
        ),
        (lambda: NETWORK(PARAMS, X), r"not a function: layer.forward\(params, x\)"),
        (lambda: NETWORK.init(0), r"expected a key such as jax.random.key\(0\), got 0"),
        (lambda: NETWORK.forward(PARAMS, [[1.0] * 4]), "expected x to be an array, got list"),
        (lambda: LOSS.value(jnp.ones((3, 2)), jnp.ones(3)), "labels to be integers, got float32"),
    ],
)
def test_a_mistakes_message_names_the_mistake(call, message):
    with pytest.raises(TypeError, match=message):
        call()
