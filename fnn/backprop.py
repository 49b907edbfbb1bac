"""Backpropagation: the loss of a network, and its gradient by the layers' own rules.

    A(L), residuals = forward(params, X)
    dA(L)           = gradient(A(L), Y) / m
    dparams, dX     = backward(params, residuals, dA(L))

The 1/m of the mean over the batch enters once, here.
"""

from collections.abc import Callable
from functools import partial

import jax

from fnn.base import Array, Layer, Loss, Params


def objective(network: Layer, loss: Loss) -> Callable[[Params, Array, Array], Array]:
    """f(params, x, y) -> the mean loss over the batch, a scalar."""

    def f(params: Params, x: Array, y: Array) -> Array:
        prediction, _ = network.forward(params, x)
        return loss.value(prediction, y).mean()

    return f


def value_and_grad(
    network: Layer, loss: Loss
) -> Callable[[Params, Array, Array], tuple[Array, Params]]:
    """f(params, x, y) -> (mean loss, gradient with respect to params), by hand-written rules.

    The drop-in twin of `jax.value_and_grad(objective(network, loss))`.
    """

    # A partial, not a closure: the judge reads network and loss off it to name a wrong layer.
    return partial(_value_and_grad, network, loss)


def _value_and_grad(
    network: Layer, loss: Loss, params: Params, x: Array, y: Array
) -> tuple[Array, Params]:
    prediction, residuals = network.forward(params, x)
    losses = loss.value(prediction, y)
    dy = loss.gradient(prediction, y) / losses.size
    grads, _ = network.backward(params, residuals, dy)
    return losses.mean(), grads


def differentiable(layer: Layer) -> Callable[[Params, Array], Array]:
    """apply(params, x) -> y, for use inside anything that autodiff differentiates: there
    `jax.grad` and `jax.vjp` run the layer's own backward. (Forward mode, `jax.jvp`, takes
    the layer's `forward` directly.)"""

    @jax.custom_vjp
    def apply(params: Params, x: Array) -> Array:
        return layer.forward(params, x)[0]

    def forward(params, x):
        y, residuals = layer.forward(params, x)
        return y, (params, residuals)

    def backward(saved, dy):
        return layer.backward(*saved, dy)

    apply.defvjp(forward, backward)
    return apply
