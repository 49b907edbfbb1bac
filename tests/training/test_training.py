"""Steps, epochs and runs: what is used, in which order, and what compiles."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn

KEY = jax.random.key(5)
NETWORK = fnn.mlp((3, 8, 2), activation=fnn.tanh)
X = jax.random.normal(KEY, (23, 3))
Y = (X[:, 0] * X[:, 1] > 0).astype(jnp.int32)
LOSS = fnn.softmax_cross_entropy
PARAMS = NETWORK.init(KEY)


def test_a_step_is_the_four_steps_of_training():
    """Section 6: forward propagation, loss, backpropagation, gradient descent."""
    optimizer = fnn.sgd(0.5)
    state, value = fnn.make_step(NETWORK, LOSS, optimizer)(optimizer.init(PARAMS), (X, Y))
    prediction, residuals = NETWORK.forward(PARAMS, X)
    np.testing.assert_allclose(value, LOSS.value(prediction, Y).mean(), rtol=1e-6)
    grads, _ = NETWORK.backward(PARAMS, residuals, LOSS.gradient(prediction, Y) / 23)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, PARAMS, grads)
    chex.assert_trees_all_close(state.params, expected, rtol=1e-6)
    assert int(state.step) == 1


class Log(NamedTuple):
    params: dict
    step: jax.Array
    log: jax.Array


def recorder():
    """A model whose one step writes down which examples it saw: x is the example's number,
    and params count how often each was used and at which step it was last used."""
    n = 23

    def forward(params, x):
        return x, x

    def backward(params, x, dy, reduce=fnn.total):
        seen = jax.nn.one_hot(x[:, 0].astype(jnp.int32), n)
        return {"seen": seen.sum(0), "size": jnp.ones(1) * x.shape[0]}, dy

    layer = fnn.Layer(lambda key: {"seen": jnp.zeros(n), "size": jnp.zeros(1)}, forward, backward)

    def update(state, grads):
        params, step, log = state
        row = jnp.concatenate([grads["size"], grads["seen"]])
        added = jax.tree.map(jnp.add, params, grads)
        return type(state)(added, step + 1, log.at[step].set(row))

    def init(params):
        return Log(params, jnp.zeros((), jnp.int32), jnp.zeros((64, n + 1)))

    loss = fnn.Loss(lambda p, t: p[:, 0] * 1.0, lambda p, t: jnp.zeros_like(p))
    return layer, loss, fnn.Optimizer(init, update)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("batch_size", [1, 4, 5, 8, 22, 23])
def test_every_example_is_used_once_per_epoch(batch_size):
    layer, loss, optimizer = recorder()
    data = (jnp.arange(23.0)[:, None], jnp.zeros(23))
    epoch = jax.jit(fnn.make_epoch(layer, loss, optimizer, batch_size))
    state, mean = epoch(optimizer.init(layer.init(KEY)), data, KEY)
    np.testing.assert_array_equal(state.params["seen"], np.ones(23))
    np.testing.assert_allclose(mean, 11.0, rtol=1e-6)  # the mean of 0 to 22, rest included
    steps = -(-23 // batch_size)
    assert int(state.step) == steps
    sizes = [batch_size] * (23 // batch_size) + [23 % batch_size] * (23 % batch_size > 0)
    np.testing.assert_array_equal(state.log[:steps, 0], sizes)


def test_the_order_is_fresh_each_epoch_and_the_keys():
    layer, loss, optimizer = recorder()
    data = (jnp.arange(23.0)[:, None], jnp.zeros(23))
    train = jax.jit(fnn.make_train(layer, loss, optimizer, 1, 2))
    orders = []
    for key in (KEY, KEY, jax.random.key(6)):
        state, _ = train(layer.init(KEY), data, key)
        orders.append(np.asarray(state.log[:46, 1:]).argmax(-1).reshape(2, 23))
    first, again, other = orders
    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).any()
    assert (first[0] != other[0]).any()
    assert (first[0] != np.arange(23)).any()


def test_full_batch_training_needs_no_order():
    """batch_size n: each epoch is one step of plain gradient descent on everything."""
    optimizer = fnn.sgd(0.3)
    train = jax.jit(fnn.make_train(NETWORK, LOSS, optimizer, 23, 4))
    state, losses = train(PARAMS, (X, Y), KEY)
    step, expected = fnn.make_step(NETWORK, LOSS, optimizer), optimizer.init(PARAMS)
    values = []
    for _ in range(4):
        expected, value = step(expected, (X, Y))
        values.append(value)
    chex.assert_trees_all_close(state, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(losses, values, rtol=1e-5)


def test_train_learns():
    train = jax.jit(fnn.make_train(NETWORK, LOSS, fnn.adam(0.03), 5, 200))
    state, losses = train(PARAMS, (X, Y), KEY)
    assert losses.shape == (200,)
    assert losses[-1] < 0.1 * losses[0]
    accuracy = (NETWORK.forward(state.params, X)[0].argmax(-1) == Y).mean()
    assert accuracy == 1.0


def test_one_program_trains_many_keys_and_rates():
    """vmap over keys and learning rates equals runs one by one, and compiles once."""
    rates, keys = jnp.array([0.1, 0.03, 0.01]), jax.random.split(KEY, 3)
    traced = 0

    def run(rate, key):
        nonlocal traced
        traced += 1
        train = fnn.make_train(NETWORK, LOSS, fnn.adam(rate), 5, 3)
        return train(NETWORK.init(key), (X, Y), key)

    runs = jax.jit(jax.vmap(run))
    states, losses = runs(rates, keys)
    assert losses.shape == (3, 3)
    runs(rates / 2, keys)
    assert traced == 1
    for i in range(3):
        state, expected = jax.jit(run)(rates[i], keys[i])
        np.testing.assert_allclose(losses[i], expected, rtol=1e-4)
        one = [leaf[i] for leaf in jax.tree.leaves(states.params)]
        chex.assert_trees_all_close(one, jax.tree.leaves(state.params), rtol=1e-3, atol=1e-5)


@pytest.mark.long
def test_runs_spread_over_devices():
    """Half of the runs on each of two devices equals all of them on one."""
    rates, keys = jnp.array([0.1, 0.03, 0.01, 0.003]), jax.random.split(KEY, 4)

    def run(rate, key):
        train = fnn.make_train(NETWORK, LOSS, fnn.adam(rate), 5, 3)
        return train(NETWORK.init(key), (X, Y), key)

    many = jax.vmap(run)
    mesh, runs = jax.sharding.Mesh(jax.devices()[:2], ("runs",)), jax.P("runs")
    spread = jax.shard_map(many, mesh=mesh, in_specs=runs, out_specs=runs, check_vma=False)
    state, losses = jax.jit(spread)(rates, keys)
    expected, expected_losses = jax.jit(many)(rates, keys)
    assert len(losses.sharding.device_set) == 2
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    chex.assert_trees_all_close(state.params, expected.params, rtol=1e-3, atol=1e-5)


def test_a_second_epoch_does_not_compile_again():
    optimizer = fnn.adam(0.1)
    epoch = jax.jit(fnn.make_epoch(NETWORK, LOSS, optimizer, 5))
    state, _ = epoch(optimizer.init(PARAMS), (X, Y), KEY)
    epoch(state, (X, Y), jax.random.key(1))
    assert epoch._cache_size() == 1


def test_fit_tells_each_epoch_and_keeps_states_valid():
    seen = []
    state, history = fnn.fit(
        NETWORK,
        LOSS,
        fnn.adam(0.03),
        (np.asarray(X), np.asarray(Y)),
        key=KEY,
        epochs=5,
        batch_size=8,
        validation=(X, Y),
        on_epoch=lambda *args: seen.append(args),
    )
    assert [number for number, _, _ in seen] == [1, 2, 3, 4, 5]
    assert [record for _, _, record in seen] == history
    assert all(np.isfinite(list(record.values())).all() for record in history)
    assert history[-1]["loss"] < history[0]["loss"]
    for number, kept, record in seen:  # each state is still there, and what it was
        assert int(kept.step) == 3 * number
        value = fnn.objective(NETWORK, LOSS)(kept.params, X, Y)
        np.testing.assert_allclose(value, record["validation_loss"], rtol=1e-5)
    chex.assert_trees_all_equal(seen[-1][1], state)


def test_fit_draws_a_fresh_order_each_epoch():
    layer, loss, optimizer = recorder()
    data = (jnp.arange(23.0)[:, None], jnp.zeros(23))
    state, _ = fnn.fit(layer, loss, optimizer, data, key=KEY, epochs=2, batch_size=1)
    first, second = np.asarray(state.log[:46, 1:]).argmax(-1).reshape(2, 23)
    assert sorted(first) == sorted(second) == list(range(23))
    assert (first != second).any()


@pytest.mark.long
@pytest.mark.optimized
def test_fit_again_gives_the_same_bits():
    settings = {"key": KEY, "epochs": 3, "batch_size": 4}
    one, two = (fnn.fit(NETWORK, LOSS, fnn.adam(0.1), (X, Y), **settings) for _ in range(2))
    chex.assert_trees_all_equal(one, two)


class Batches:
    """Batches of 4 in a fixed order, by a new iterator each time, as numpy arrays."""

    def __iter__(self):
        return ((np.asarray(X[i : i + 4]), np.asarray(Y[i : i + 4])) for i in range(0, 23, 4))


@pytest.mark.parametrize("batches", [Batches(), list(Batches())], ids=["iterable", "list"])
def test_fit_takes_batches_as_they_come(batches):
    """fit does one step per batch, from the parameters of the same key."""
    optimizer = fnn.adam(0.03)
    seen = []
    state, history = fnn.fit(
        NETWORK,
        LOSS,
        optimizer,
        batches,
        key=KEY,
        epochs=3,
        on_epoch=lambda number, state, record: seen.append(state),
    )
    assert [int(kept.step) for kept in seen] == [6, 12, 18]  # each is still there
    expected = optimizer.init(NETWORK.init(jax.random.split(KEY)[0]))
    step = jax.jit(fnn.make_step(NETWORK, LOSS, optimizer))
    for record in history:
        total = 0.0
        for x, y in Batches():
            expected, value = step(expected, (x, y))
            total += float(value) * len(x)
        np.testing.assert_allclose(record["loss"], total / 23, rtol=1e-6)
    chex.assert_trees_all_equal(state, expected)


def test_streamed_batches_that_go_to_the_device_together_are_each_a_step():
    """20 of one example: 16 go together, 4 alone; then one of two; then 17 of one again."""
    layer, loss, optimizer = recorder()
    batches, met = [], []
    for size in [1] * 20 + [2] + [1] * 17:
        x = (np.arange(size) + len(met)) % 23
        met.append(x)
        batches.append((x[:, None].astype(np.float32), np.zeros(size, np.float32)))
    state, history = fnn.fit(layer, loss, optimizer, batches, key=KEY, epochs=1)
    assert int(state.step) == 38
    np.testing.assert_array_equal(state.log[:38, 0], [len(x) for x in met])
    for row, x in zip(np.asarray(state.log[:38, 1:]), met, strict=True):
        np.testing.assert_array_equal(np.flatnonzero(row), np.sort(x))
    np.testing.assert_allclose(history[0]["loss"], np.concatenate(met).mean(), rtol=1e-6)


@pytest.mark.long
def test_fit_keeps_the_device_busy_but_not_swamped():
    """A batch is asked for while one step computes and one waits, and never more than one."""
    x, y = np.ones((600, 800), np.float32), np.zeros(600, np.int32)
    pending = []

    def batches():
        for _ in range(8):
            scalars = [a for a in jax.live_arrays() if a.shape == (1,) and a.dtype == jnp.float32]
            pending.append(sum(not a.is_ready() for a in scalars))
            yield x, y

    network = fnn.serial(fnn.dense(800, 800), *[fnn.dense(800, 800)] * 5)
    fnn.fit(network, LOSS, fnn.sgd(0.1), batches(), key=KEY, epochs=1)
    assert max(pending) == 2


@pytest.mark.parametrize(
    ("error", "message", "data", "batch_size"),
    [
        (ValueError, "expected batches in every epoch, got none", iter(Batches()), None),
        (ValueError, "expected batches in every epoch, got none", [], None),
        (ValueError, "batch_size for arrays, none for batches, got 4", Batches(), 4),
        (ValueError, "batch_size for arrays, none for batches, got None", (X, Y), None),
        (ValueError, "x has 23 examples, but y has 22", [(X, Y[1:])], None),
        (TypeError, r"batches \(x, y\), got ndarray", [np.zeros((2, 3))] * 3, None),
    ],
)
def test_fit_names_what_is_wrong_with_the_data(error, message, data, batch_size):
    with pytest.raises(error, match=message):
        fnn.fit(NETWORK, LOSS, fnn.sgd(1), data, key=KEY, epochs=2, batch_size=batch_size)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("batch_size of at least 1, got 0", lambda: fnn.make_epoch(NETWORK, LOSS, fnn.sgd(1), 0)),
        ("epochs of at least 1, got 0", lambda: fnn.make_train(NETWORK, LOSS, fnn.sgd(1), 1, 0)),
        (
            "expected batch_size at most 23, got 24",
            lambda: fnn.make_train(NETWORK, LOSS, fnn.sgd(1), 24, 1)(PARAMS, (X, Y), KEY),
        ),
        (
            "x has 23 examples, but y has 22",
            lambda: fnn.make_train(NETWORK, LOSS, fnn.sgd(1), 4, 1)(PARAMS, (X, Y[1:]), KEY),
        ),
        (
            "epochs of at least 1, got -1",
            lambda: fnn.fit(NETWORK, LOSS, fnn.sgd(1), (X, Y), key=KEY, epochs=-1, batch_size=4),
        ),
    ],
)
def test_bad_settings_are_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ({"a": X, "b": X[1:]}, Y),
        ((X, X, X[:-1]), Y),
        (X, {"a": Y, "b": Y[1:]}),
        (X[1:], (Y[1:], Y)),
    ],
)
def test_every_array_has_as_many_examples_as_the_first(x, y):
    with pytest.raises(ValueError, match="data: x has .* examples, but y has"):
        fnn.make_train(NETWORK, LOSS, fnn.sgd(1), 4, 1)(PARAMS, (x, y), KEY)
