"""What `fit` measures on the validation data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.training import evaluation

pytestmark = [pytest.mark.usefixtures("compiled_once"), pytest.mark.optimized]

KEY = jax.random.key(11)
NETWORK = fnn.mlp((3, 8, 2), activation=fnn.tanh)
X = np.random.default_rng(11).normal(size=(30, 3)).astype(np.float32)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 11])
def test_chunks_change_no_prediction(n, monkeypatch):
    monkeypatch.setattr(evaluation, "CHUNK", 4)
    network = fnn.fork(NETWORK, fnn.tanh)
    params = network.init(KEY)
    x = jnp.asarray(X[:n])
    expected, _ = network.forward(params, x)
    got = jax.jit(lambda p, x: evaluation.predicted(network, p, x))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)


def test_validation_takes_the_memory_of_a_chunk():
    """Of a million examples the activations at once would be 4 GB."""
    network = fnn.mlp((4, 1024, 1))
    params = jax.eval_shape(network.init, KEY)
    x = jax.ShapeDtypeStruct((2**20, 4), jnp.float32)
    program = jax.jit(lambda p, x: evaluation.predicted(network, p, x)).lower(params, x).compile()
    assert program.memory_analysis().temp_size_in_bytes < 2**28
