"""The dense layer: a weighted sum and a bias for each neuron."""

from collections.abc import Callable

import jax.numpy as jnp

from fnn import initializers
from fnn.base import Array, Grads, Layer, Params, Residuals, split
from fnn.layers.shapes import check_input, check_widths
from fnn.reductions import Direct, Outer, Reduce, total


def dense(
    d_in: int,
    d_out: int,
    *,
    weight_init: Callable[..., Array] = initializers.glorot_uniform,
    bias_init: Callable[..., Array] = initializers.zeros,
) -> Layer:
    """A layer of d_out neurons: z_j = sum_i W_ji x_i + b_j, for a batch Z = X W^T + b.

    params {"W": (d_out, d_in), "b": (d_out,)}; x (..., d_in) -> (..., d_out).

        forward    Z  = X W^T + b
        backward   dX = dZ W,    dW = dZ^T X,    db = sum over the batch of dZ

    weight_init and bias_init are called as init(key, shape).

    Raises ValueError for widths below 1 and for x or params of other widths; TypeError
    where x and W differ in dtype.

    >>> import jax
    >>> layer = dense(3, 2)
    >>> y, residuals = layer.forward(layer.init(jax.random.key(0)), jnp.ones((5, 3)))
    >>> y.shape
    (5, 2)
    """
    name = f"dense({d_in}, {d_out})"
    d_in, d_out = check_widths(name, d_in, d_out)

    def init(key: Array) -> Params:
        weight_key, bias_key = split(key, 2)
        return {"W": weight_init(weight_key, (d_out, d_in)), "b": bias_init(bias_key, (d_out,))}

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        check_input(name, params, {"W": (d_out, d_in), "b": (d_out,)}, x, d_in)
        return jnp.tensordot(x, params["W"], axes=(-1, -1)) + params["b"], x

    def backward(params: Params, x: Array, dy: Array, reduce: Reduce = total) -> Grads:
        dparams = {"W": reduce(Outer(dy, x)), "b": reduce(Direct(dy))}
        return dparams, jnp.tensordot(dy, params["W"], axes=(-1, 0))

    return Layer(init, forward, backward)
