"""The judge: right gradients pass, planted wrong ones are refused."""

import jax
import jax.numpy as jnp
import pytest

import fnn
from fnn import verify

NETWORK = fnn.mlp((3, 4, 2), activation=fnn.tanh)
PARAMS = NETWORK.init(jax.random.key(0))
X = jax.random.normal(jax.random.key(1), (6, 3))
Y = jnp.array([0, 1, 1, 0, 1, 0])


def test_right_gradients_pass():
    loss = fnn.softmax_cross_entropy
    reports = [
        verify.check_layer(NETWORK, PARAMS, X),
        verify.check_vjp(NETWORK.forward, NETWORK.backward, PARAMS, X),
        verify.check_loss(loss, X, Y),
        verify.check_gradients(
            fnn.value_and_grad(NETWORK, loss), fnn.objective(NETWORK, loss), PARAMS, X, Y
        ),
    ]
    for report in reports:
        report.raise_for_verdict()
        assert report.verdict == "pass"
        assert report.worst < 1e-14


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("factor", [0.0, 1.0001, -1.0, float("nan")])
def test_a_wrong_leaf_is_refused_at_every_scale(factor, scale):
    loss = fnn.Loss(
        lambda p, t: scale * fnn.mse.value(p, t), lambda p, t: scale * fnn.mse.gradient(p, t)
    )
    right = fnn.value_and_grad(NETWORK, loss)

    def wrong(params, x, y):
        value, grads = right(params, x, y)
        return value, (grads[0] | {"b": grads[0]["b"] * factor}, *grads[1:])

    target = jnp.ones((6, 2))
    report = verify.check_gradients(wrong, fnn.objective(NETWORK, loss), PARAMS, X, target)
    assert report.verdict == "fail"
    assert [leaf.name for leaf in report.leaves if leaf.verdict == "fail"] == ["grads.0.b"]
    with pytest.raises(AssertionError, match="grads.0.b"):
        report.raise_for_verdict()


@pytest.mark.parametrize("x64", [False, True])
def test_the_configuration_is_left_alone(x64):
    def broken(params, residuals, dy, reduce=fnn.total):
        raise RuntimeError("broken")

    with jax.enable_x64(x64):
        before = jax.config.values.copy()
        with pytest.raises(RuntimeError):
            verify.check_layer(NETWORK._replace(backward=broken), PARAMS, X)
        assert verify.check_layer(NETWORK, PARAMS, X).verdict == "pass"
        assert jax.config.jax_enable_x64 is x64
        assert jax.config.values == before
