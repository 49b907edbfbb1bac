"""Calls that are refused by name: wrong sizes, settings, parameters and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn

KEY = jax.random.key(11)
NETWORK = fnn.mlp((3, 8, 2), activation=fnn.tanh)
X = np.ones((30, 3), np.float32)

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
