"""Training that notices, and calls that are refused: at once, by name, before anything is lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.training.faults import all_finite

pytestmark = [pytest.mark.usefixtures("compiled_once"), pytest.mark.optimized]

KEY = jax.random.key(11)
NETWORK = fnn.mlp((3, 8, 2), activation=fnn.tanh)
RNG = np.random.default_rng(11)
X = RNG.normal(size=(30, 3)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(np.int32)


def fit(data=(X, Y), network=NETWORK, loss=fnn.softmax_cross_entropy, optimizer=None, **settings):
    settings = {"key": KEY, "epochs": 6, "batch_size": 7} | settings
    return fnn.fit(network, loss, optimizer or fnn.adam(0.01), data, **settings)


# Calls that are refused.


REFUSED = {
    "params of another": (
        lambda: NETWORK.forward(fnn.mlp((3, 5, 2)).init(KEY), X),
        r"dense\(3, 8\): expected params of shapes",
    ),
    "params of another depth": (
        lambda: NETWORK.forward(fnn.mlp((3, 2)).init(KEY), X),
        "expected params for 4 layers, got 2",
    ),
    "width 0": (lambda: fnn.mlp((3, 0, 2)), "whole numbers of at least 1"),
    "width -1": (lambda: fnn.dense(3, -1), "whole numbers of at least 1"),
    "width 2.5": (lambda: fnn.dense(3, 2.5), "whole numbers of at least 1"),
    "width True": (lambda: fnn.dense(True, 3), "whole numbers of at least 1"),
    "width of an axis": (lambda: fnn.dense(jnp.ones(1), 3), "whole numbers of at least 1"),
    "width as array": (lambda: fnn.dense(np.ones(2), 3), "whole numbers of at least 1"),
    "one size": (lambda: fnn.mlp((3,)), "at least an input and an output size"),
    "depth 0": (lambda: fnn.repeat(fnn.tanh, 0), "n of at least 1, got 0"),
    "huber": (lambda: fnn.huber(np.nan), "delta above 0, got nan"),
    "norm": (lambda: fnn.clip_by_global_norm(fnn.sgd(1), np.nan), "max_norm above 0, got nan"),
    "l2": (lambda: fnn.add_l2(fnn.sgd(1), np.nan), "alpha of at least 0, got nan"),
    "layer_norm": (lambda: fnn.layer_norm(3, eps=np.nan), "eps above 0, got nan"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_calls_are_refused_by_name(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_wrong_dtypes_are_a_type_error():
    with pytest.raises(TypeError, match="expected a Layer, got"):
        fnn.serial(fnn.leaky_relu)
    with pytest.raises(TypeError, match="expected floating-point parameters"):
        fnn.sgd(0.1).init({"w": jnp.arange(3)})


# Numbers at the ends of their ranges.


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", ["softmax_cross_entropy", "sigmoid_binary_cross_entropy"])
def test_losses_on_logits_are_finite_at_every_finite_logit(name, dtype):
    loss, dtype = getattr(fnn, name), jnp.dtype(dtype)
    largest = jnp.finfo(dtype).max
    edge = np.array([largest / 4, 1, 0, -0.0, -1, -largest / 4], np.float64)
    logits = jnp.asarray(np.stack(np.meshgrid(edge, edge), -1).reshape(-1, 2), dtype)
    target = jnp.asarray(RNG.integers(0, 2, logits.shape), dtype)
    if name == "softmax_cross_entropy":
        target = target[:, 0].astype(jnp.int32)
    assert all_finite(loss.value(logits, target))
    gradient = loss.gradient(logits, target)
    assert all_finite(gradient)
    assert (jnp.abs(gradient) <= 1).all()


def test_a_variance_that_overflows_is_not_an_output_of_0():
    x = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
    batch_norm = fnn.at(fnn.batch_norm(3), KEY)
    params = batch_norm.init(KEY)
    assert (batch_norm.forward(params, x * 1e15)[0] != 0).any()
    assert jnp.isnan(batch_norm.forward(params, x * 1e20)[0]).all()
    layer, scale = fnn.layer_norm(3), 2.0**66  # 7e19
    (y, small), (same, large) = (layer.forward(params, x * s) for s in (2.0**20, scale))
    np.testing.assert_allclose(same, y, rtol=1e-5)
    dx, expected = (
        layer.backward(params, residuals, x)[1] * s
        for residuals, s in ((large, scale), (small, 2.0**20))
    )
    np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-6)
    derivative = jax.jvp(lambda x: layer.forward(params, x)[0], (x,), (x,))[1]
    assert all_finite(derivative)
