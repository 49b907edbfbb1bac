"""A loss, a gradient or a state that stops being finite: the step and the leaf are named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import DivergedError
from fnn.training.faults import _first_not_finite, all_finite, first_fault
from fnn.training.steps import Training

pytestmark = [pytest.mark.usefixtures("compiled_once"), pytest.mark.optimized]

KEY = jax.random.key(11)
NETWORK = fnn.mlp((3, 8, 2), activation=fnn.tanh)
RNG = np.random.default_rng(11)
X = RNG.normal(size=(30, 3)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(np.int32)


def fit(data=(X, Y), network=NETWORK, loss=fnn.softmax_cross_entropy, optimizer=None, **settings):
    settings = {"key": KEY, "epochs": 6, "batch_size": 7} | settings
    return fnn.fit(network, loss, optimizer or fnn.adam(0.01), data, **settings)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def planted(where, step):
    """A network and an optimizer with one fault, in `where`, in the update number `step`, from 1.

    The layer counts updates up to -1 in a parameter of its own, by a gradient of -1 and rate 1.
    """

    def fault(params, here, value):
        return jnp.where((params["count"] >= -1) & (where == here), value, 0)

    def forward(params, x):
        return x * params["w"] + fault(params, "loss", jnp.nan), x

    def backward(params, x, dy, reduce=fnn.total):
        dw = (x * dy).sum() + fault(params, "gradient", jnp.inf)
        return {"a": jnp.zeros(()), "count": -jnp.ones(()), "w": dw}, dy

    def init(key):
        return {"a": jnp.zeros(()), "count": jnp.float32(-step), "w": jnp.ones(())}

    rule = fnn.sgd(1.0)

    def update(state, grads):
        params = rule.update(state, grads).params
        params["a"] += fault(state.params, "updated", jnp.nan)
        return state._replace(params=params, step=state.step + 1)

    return fnn.Layer(init, forward, backward), fnn.Optimizer(rule.init, update)


SMALL = (np.ones((30, 1), np.float32), np.ones((30, 1), np.float32))


@pytest.mark.sampled(9)
@pytest.mark.parametrize(
    "step", [1, 5, *(pytest.param(step, marks=pytest.mark.long) for step in (2, 6, 13, 20))]
)
@pytest.mark.parametrize(
    ("where", "leaf"),
    [("loss", "gradient w"), ("gradient", "gradient w"), ("updated", "updated params.a")],
)
def test_the_step_and_the_leaf_are_found(where, leaf, step):
    """5 steps per epoch, the last one smaller: the fault is named where it was planted."""
    network, optimizer = planted(where, step)
    seen = []
    with pytest.raises(DivergedError, match=f"the {leaf}") as caught:
        fit(SMALL, network, fnn.mse, optimizer, on_epoch=lambda *args: seen.append(args))
    error = caught.value
    whole, within = divmod(step - 1, 5)
    assert (error.epoch, error.step) == (whole + 1, within + 1)
    assert error.leaf == leaf
    assert np.isnan(error.loss) == (where == "loss")
    assert len(error.history) == len(seen) == whole
    assert int(error.state.step) == 5 * whole
    assert all_finite((error.state, error.history))
    assert f"epoch {whole + 1}, step {within + 1}" in str(error)


def test_a_rate_that_is_too_high_ends_with_the_last_finite_state():
    data = (X * 10, X[:, :1] * 100)
    network = fnn.mlp((3, 1))
    with pytest.raises(DivergedError) as caught:
        fit(data, network, fnn.mse, fnn.sgd(0.02), epochs=100)
    error = caught.value
    assert error.history
    again, _ = fit(data, network, fnn.mse, fnn.sgd(0.02), epochs=len(error.history))
    assert bits(error.state) == bits(again)


def test_a_whole_run_shows_its_divergence_in_the_losses():
    train = fnn.make_train(fnn.mlp((3, 1)), fnn.mse, fnn.sgd(0.02), 7, 100)
    params = fnn.mlp((3, 1)).init(KEY)
    state, losses = jax.jit(train)(params, (X * 10, X[:, :1] * 100), KEY)
    assert not np.isfinite(losses[-1])
    assert _first_not_finite(state) == "params.0.W"


def test_what_is_not_finite_is_found_in_any_tree():
    tree = {"a": jnp.arange(3), "b": (jax.random.key(0), jnp.ones(2)), "c": np.float16(1)}
    assert all_finite(tree)
    assert _first_not_finite(tree) is None
    for bad in (np.nan, np.inf, -np.inf):
        tree["b"] = (jnp.array([1, bad], jnp.bfloat16), jnp.array(bad))
        assert not all_finite(tree)
        assert _first_not_finite(tree) == "b.0"
    assert all_finite(())


def test_a_fault_that_is_not_met_again_is_step_0():
    network, optimizer = planted("loss", 100)
    state = optimizer.init(network.init(KEY))
    step, loss, leaf = first_fault(Training(network, fnn.mse, optimizer), state, [SMALL] * 3)
    assert (step, leaf, np.isnan(loss)) == (0, "loss", True)
    assert "in epoch 7: the loss" in str(DivergedError(7, step, loss, leaf, state, []))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("size", ["largest", "smallest"])
def test_extreme_inputs_train_or_are_reported(dtype, size):
    """Inputs as large or small as the dtype holds: training ends finite or says it diverged."""
    dtype = jnp.dtype(dtype)
    scale = {"largest": jnp.finfo(dtype).max, "smallest": jnp.finfo(dtype).tiny}[size]
    x = jnp.asarray(np.sign(X), dtype) * jnp.asarray(scale, dtype)
    plain = fnn.mlp((3, 8, 2), activation=fnn.tanh)

    def init(key):
        return jax.tree.map(lambda p: p.astype(dtype), plain.init(key))

    network = plain._replace(init=init)
    try:
        state, history = fit((x, Y), network, optimizer=fnn.adam(0.01), epochs=3)
    except DivergedError as error:
        state, history = error.state, error.history
    assert all_finite((state, history))
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(state.params))
