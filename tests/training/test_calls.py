"""Calls that are answered by what is wrong with them, and what training takes that looks odd."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.training.fitting import epochs_since_best
from fnn.verify import cases

KEY = jax.random.key(2)
X = jax.random.normal(KEY, (12, 3))
Y = (X[:, 0] > 0).astype(jnp.int32)
NETWORK, LOSS = fnn.mlp((3, 4, 2)), fnn.softmax_cross_entropy
PARAMS = NETWORK.init(KEY)
STATE = fnn.sgd(0.1).init(PARAMS)
MEAN = LOSS._replace(value=lambda prediction, y: LOSS.value(prediction, y).mean())
BARE = fnn.Optimizer(lambda params: {"theta": params}, lambda state, grads: state)


def fit(network=NETWORK, loss=LOSS, optimizer=None, data=(X, Y), **settings):
    settings = {"key": KEY, "epochs": 2, "batch_size": 4} | settings
    return fnn.fit(network, loss, optimizer or fnn.sgd(0.1), data, **settings)


def step(*arguments, optimizer=None):
    return fnn.make_step(NETWORK, LOSS, optimizer or fnn.sgd(0.1))(*arguments)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("step: expected an optimizer's state .* got tuple", lambda: step(PARAMS, (X, Y))),
        (
            "step: expected an optimizer's state .* got dict",
            lambda: step(BARE.init(PARAMS), (X, Y), optimizer=BARE),
        ),
        (r"step: expected \(state, \(x, y\), key=None\)", lambda: step(STATE, X, Y)),
        (r"step: expected \(state, \(x, y\), key=None\)", lambda: step(STATE, X[:2], Y[:2])),
        (
            "step: expected an optimizer's state .* got tuple",
            lambda: fnn.make_epoch(NETWORK, LOSS, fnn.sgd(0.1), 4)(PARAMS, (X, Y), KEY),
        ),
        (
            r"train: expected \(params, \(x, y\), key\), got an optimizer's state",
            lambda: fnn.make_train(NETWORK, LOSS, fnn.sgd(0.1), 4, 1)(STATE, (X, Y), KEY),
        ),
        (
            r"expected metrics\['m'\] to return a number or an array of numbers, got NoneType",
            lambda: fit(validation=(X, Y), metrics={"m": lambda p, y: None}),
        ),
        (
            r"expected metrics\['m'\] to return a number or an array of numbers, got str",
            lambda: fit(validation=(X, Y), metrics={"m": lambda p, y: "good"}),
        ),
        (
            r"expected metrics\['m'\] to return a number or an array of numbers, got complex64",
            lambda: fit(validation=(X, Y), metrics={"m": lambda p, y: jnp.complex64(1)}),
        ),
        ("fit: expected an optimizer's state .* got dict", lambda: fit(optimizer=BARE)),
        (
            r"data: expected \(x, y\), got ArrayImpl",
            lambda: fnn.make_train(NETWORK, LOSS, fnn.sgd(0.1), 4, 1)(PARAMS, X, Y),
        ),
        (
            "expected a key such as jax.random.key",
            lambda: fnn.make_epoch(NETWORK, LOSS, fnn.sgd(0.1), 4)(STATE, (X, Y), 0),
        ),
        (
            r"record: expected a tree of arrays, got str",
            lambda: fit(record=lambda state, grads, value: {"a": "text"}),
        ),
    ],
)
def test_a_wrong_call_is_told_what_was_expected(message, call):
    with pytest.raises(TypeError, match=message):
        call()


PAIR = fnn.dense(4, 4).forward({"W": jnp.eye(4), "b": jnp.ones(4)}, jnp.ones((2, 4)))
IMAGES = fnn.conv2d(2, 2).forward(fnn.conv2d(2, 2).init(KEY), jnp.ones((1, 3, 3, 2)))
PAIRED = {
    name: (layer, IMAGES if np.ndim(x) == 4 else PAIR)
    for name, (layer, x) in (cases.ACTIVATIONS | cases.LAYERS).items()
    if hasattr(x, "shape") and name.split(",")[0] not in ("identity", "dropout", "attention")
}


@pytest.mark.parametrize("second", [jnp.ones((2, 3)), ()])
def test_the_pair_of_attention_is_its_input_and_a_boolean_mask(second):
    layer = fnn.attention(4, 2)
    with pytest.raises(TypeError, match="expected a boolean mask, got (float32|no array)"):
        layer.forward(layer.init(KEY), (jnp.ones((2, 3, 4)), second))


@pytest.mark.parametrize("name", PAIRED)
def test_the_pair_that_forward_returns_is_no_input(name):
    layer, given = PAIRED[name]
    with pytest.raises(TypeError, match=r"got tuple; forward returns \(y, residuals\)"):
        layer.forward(layer.init(KEY), given)


@pytest.mark.parametrize("name", [name for name in cases.LOSSES if name != "heads"])
def test_the_pair_that_forward_returns_is_no_prediction(name):
    loss, prediction, target = cases.LOSSES[name]
    for f in (loss.value, loss.gradient):
        with pytest.raises(TypeError, match=r"got tuple; forward returns \(y, residuals\)"):
            f((jnp.asarray(prediction), ()), target)


def test_metrics_are_functions():
    with pytest.raises(ValueError, match=r"fit: expected metrics=\{name: f\(prediction, y\)\}"):
        fit(validation=(X, Y), metrics={"m": 3})


@pytest.mark.parametrize(
    "call",
    [
        lambda: fnn.make_step(NETWORK, MEAN, fnn.sgd(0.1))(STATE, (X, Y)),
        lambda: fnn.make_train(NETWORK, MEAN, fnn.sgd(0.1), 4, 1)(PARAMS, (X, Y), KEY),
        lambda: fit(loss=MEAN),
        lambda: fnn.value_and_grad(NETWORK, MEAN)(PARAMS, X, Y),
        lambda: fnn.objective(NETWORK, MEAN)(PARAMS, X, Y),
    ],
)
def test_a_loss_that_takes_the_mean_is_refused(call):
    """Its gradient, per example, would be m times too large."""
    with pytest.raises(ValueError, match="expected one loss per example"):
        call()


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "record", [lambda *noted: 3, lambda *noted: KEY, lambda *noted: {"a": 1.5, "b": True}]
)
def test_record_may_return_numbers_and_keys(record):
    for data, size in (((X, Y), 5), ([(X, Y)] * 3, None)):
        _, history = fit(data=data, batch_size=size, record=record)
        expected = jax.tree.map(lambda a: jnp.stack([jnp.asarray(a)] * 3), record())
        chex.assert_trees_all_equal(
            *(jax.tree.map(bits, tree) for tree in (history[0]["record"], expected))
        )


def bits(a):
    return jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a


def test_an_epoch_without_a_validation_loss_is_never_the_best():
    history = [{"loss": 1.0}, {"loss": 0.5, "validation_loss": 2.0}, {"loss": 0.4}]
    assert epochs_since_best(history) == 1
    assert epochs_since_best(history[:1]) == 0
    _, first = fit(epochs=1)
    _, second = fit(start=fnn.Progress(STATE, first, STATE), validation=(X, Y))
    assert [set(entry) for entry in second] == [{"loss"}, {"loss", "validation_loss"}]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("data", [(X, Y), (np.asarray(X), np.asarray(Y)), [(X, Y)] * 2])
def test_fit_runs_where_transfers_are_disallowed(data):
    size = 5 if isinstance(data, tuple) else None
    settings = {"batch_size": size, "validation": (np.asarray(X), np.asarray(Y))}
    _, expected = fit(data=data, **settings)
    with jax.transfer_guard("disallow"):
        _, history = fit(data=data, **settings)
        assert jax.config.jax_transfer_guard == "disallow"
    assert history == expected


def test_random_layers_without_params_are_validated():
    network = fnn.serial(fnn.dense(3, 2), fnn.repeat(fnn.dropout(0.5), 2))
    _, history = fit(network, validation=(X, Y))
    assert np.isfinite(history[-1]["validation_loss"])
