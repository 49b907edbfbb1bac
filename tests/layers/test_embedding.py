"""The embedding: PyTorch as an oracle, its memory, codes out of range, per-example statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import per_example

KEY = jax.random.key(7)
CODES = np.array([[3, 0, 3, 4], [1, 1, 1, 0], [2, 4, 0, 4]])


def mean_of_positions():
    """(..., p, d) -> (..., d)."""
    return fnn.Layer(
        lambda key: (),
        lambda params, x: (x.mean(-2), jnp.zeros((0, x.shape[-2]))),
        lambda params, like, dy, reduce=fnn.total: (
            (),
            jnp.repeat(dy[..., None, :], like.shape[-1], -2) / like.shape[-1],
        ),
    )


def test_pytorch_gives_the_same():
    torch = pytest.importorskip("torch")
    layer = fnn.embedding(5, 3)
    params = layer.init(KEY)
    dy = np.asarray(jax.random.normal(KEY, (3, 4, 3)))
    y, residuals = layer.forward(params, jnp.asarray(CODES))
    dparams, dx = layer.backward(params, residuals, jnp.asarray(dy))
    table = torch.tensor(np.asarray(params["table"]), requires_grad=True)
    expected = torch.nn.functional.embedding(torch.tensor(CODES), table)
    expected.backward(torch.tensor(dy))
    np.testing.assert_array_equal(y, expected.detach().numpy())
    np.testing.assert_allclose(dparams["table"], table.grad.numpy(), rtol=1e-6)
    assert dx is None


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int32])
def test_a_code_out_of_range_gives_nan(dtype):
    layer = fnn.embedding(300 if dtype == jnp.int8 else 200, 2)
    params, x = layer.init(KEY), jnp.array([[1], [0]], dtype)
    y, _ = layer.forward(params, x)
    np.testing.assert_array_equal(y, params["table"][jnp.array([[1], [0]])])
    wrong = jnp.array([[-1 if dtype != jnp.uint8 else 255], [1]]).astype(dtype)
    y, residuals = layer.forward(params, wrong)
    np.testing.assert_array_equal(np.isnan(y), [[[True, True]], [[False, False]]])
    dparams, _ = layer.backward(params, residuals, jnp.ones((2, 1, 2)))
    assert np.isnan(dparams["table"]).any()
    network = fnn.serial(layer, mean_of_positions())
    norms = per_example.squared_norms(network, fnn.mse)((params, ()), wrong, jnp.ones((2, 2)))
    np.testing.assert_array_equal(np.isnan(norms), [True, False])


def test_nothing_of_a_gradient_is_one_hot():
    """A million codes: one-hot rows of the batch would hold 4 GB, a gradient per example 8 GB."""
    network = fnn.serial(fnn.embedding(1_000_000, 2), mean_of_positions())
    shapes = jax.eval_shape(network.init, KEY)
    x = jax.ShapeDtypeStruct((250, 4), jnp.int32)
    y = jax.ShapeDtypeStruct((250, 2), jnp.float32)
    for f in (
        fnn.value_and_grad(network, fnn.mse),
        per_example.squared_norms(network, fnn.mse),
        per_example.gram(network, fnn.mse),
        per_example.second_moment(network, fnn.mse),
        per_example.clipped_value_and_grad(network, fnn.mse, 1.0),
        fnn.curvature.ggn_diagonal(network, fnn.mse),
    ):
        memory = jax.jit(f).lower(shapes, x, y).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 30e6  # the table itself is 8 MB


def test_a_network_of_codes_trains_and_serial_and_fork_pass_codes_on():
    network = fnn.serial(
        fnn.fork(fnn.embedding(5, 3), fnn.embedding(5, 3)), fnn.add, mean_of_positions(),
        fnn.dense(3, 2),
    )  # fmt: skip
    x, y = jnp.asarray(CODES), jnp.array([0, 1, 0])
    step = fnn.make_step(network, fnn.softmax_cross_entropy, fnn.adam(0.1))
    state = fnn.adam(0.1).init(network.init(KEY))
    values = []
    for _ in range(20):
        state, value = step(state, (x, y))
        values.append(float(value))
    assert values[-1] < 0.2 * values[0]


def test_in_another_precision_codes_stay_codes():
    layer = fnn.compute_in(fnn.embedding(300, 2), jnp.bfloat16)
    params, x = layer.init(KEY), jnp.array([299, 257, 299])
    y, residuals = layer.forward(params, x)
    np.testing.assert_allclose(y, params["table"][x], rtol=1e-2)
    dparams, _ = layer.backward(params, residuals, jnp.ones((3, 2)))
    np.testing.assert_array_equal(dparams["table"][jnp.array([299, 257, 256])][:, 0], [2, 1, 0])


@pytest.mark.long
def test_statistics_are_exact_where_codes_repeat():
    network = fnn.serial(fnn.embedding(5, 3), fnn.tanh, mean_of_positions(), fnn.dense(3, 2))
    loss, x, y = fnn.softmax_cross_entropy, jnp.asarray(CODES), jnp.array([0, 1, 0])
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64), network.init(KEY))
        one = jax.grad(lambda p, x, y: loss.value(network.forward(p, x)[0], y))
        each = jax.vmap(one, (None, 0, 0))(params, x, y)
        flat = jnp.concatenate([g.reshape(3, -1) for g in jax.tree.leaves(each)], 1)
        norms = per_example.squared_norms(network, loss)(params, x, y)
        np.testing.assert_allclose(norms, (flat**2).sum(1), rtol=1e-12)
        gram = per_example.gram(network, loss)(params, x, y)
        np.testing.assert_allclose(gram, flat @ flat.T, rtol=1e-11, atol=1e-15)
        moment = per_example.second_moment(network, loss)(params, x, y)[0]["table"]
        np.testing.assert_allclose(moment, (each[0]["table"] ** 2).mean(0), rtol=1e-11)
        prediction = lambda p, x: network.forward(p, x)[0]
        J = jax.vmap(jax.jacobian(prediction), (None, 0))(params, x)[0]["table"]  # (n, k, 5, 3)
        columns = loss.root(prediction(params, x), y)  # (c, n, k)
        expected = (jnp.einsum("cnk,nkij->cnij", columns, J) ** 2).sum((0, 1)) / 3
        diagonal = fnn.curvature.ggn_diagonal(network, loss)(params, x, y)[0]["table"]
        np.testing.assert_allclose(diagonal, expected, rtol=1e-11)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, r"embedding\(0, 2\): expected widths", lambda: fnn.embedding(0, 2)),
        (
            TypeError,
            r"embedding\(5, 3\): expected integer codes, got float32",
            lambda: fnn.embedding(5, 3).forward({"table": jnp.ones((5, 3))}, jnp.ones(2)),
        ),
        (
            ValueError,
            r"embedding\(5, 3\): expected params of shapes .*\(5, 3\).*\(3, 5\)",
            lambda: fnn.embedding(5, 3).forward({"table": jnp.ones((3, 5))}, jnp.array([1])),
        ),
        (
            TypeError,
            r"embedding\(5, 3\): expected x to be an array, got list",
            lambda: fnn.embedding(5, 3).forward({"table": jnp.ones((5, 3))}, [1]),
        ),
    ],
)
def test_what_it_refuses(error, message, call):
    with pytest.raises(error, match=message):
        call()
