"""The dense layer: a weighted sum plus a bias for each neuron."""

from collections.abc import Callable

import jax.numpy as jnp

from fnn import initializers
from fnn.base import Array, Grads, Layer, Params, Residuals, split
from fnn.layers.shapes import check_input, named_widths
from fnn.reductions import Direct, Outer, Reduce, total


def dense(
    d_in: int,
    d_out: int,
    *,
    bias: bool = True,
    weight_init: Callable[..., Array] = initializers.glorot_uniform,
    bias_init: Callable[..., Array] = initializers.zeros,
) -> Layer:
    """A layer of d_out neurons: z_j = sum_i W_ji x_i + b_j, for a batch Z = X W^T + b.

    params {"W": (d_out, d_in), "b": (d_out,)}; x (..., d_in) -> (..., d_out).

        forward    Z  = X W^T + b
        backward   dX = dZ W,    dW = dZ^T X,    db = sum over the batch of dZ

    Without bias z_j = sum_i W_ji x_i, and params is {"W": (d_out, d_in)}. weight_init and
    bias_init are called as init(key, shape).

    Raises ValueError for widths below 1 and for x or params with other widths; TypeError if x and
    params differ in dtype.

    >>> import jax
    >>> layer = dense(3, 2)
    >>> y, residuals = layer.forward(layer.init(jax.random.key(0)), jnp.ones((5, 3)))
    >>> y.shape
    (5, 2)
    """
    name, d_in, d_out = named_widths("dense", d_in, d_out)
    shapes = {"W": (d_out, d_in)} | ({"b": (d_out,)} if bias else {})
    inits = {"W": weight_init, "b": bias_init}
    init = lambda key: {p: inits[p](k, shapes[p]) for p, k in zip(shapes, split(key), strict=False)}

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        check_input(name, params, shapes, x, d_in)
        return jnp.tensordot(x, params["W"], axes=(-1, -1)) + params.get("b", 0), x

    def backward(params: Params, x: Array, dy: Array, reduce: Reduce = total) -> Grads:
        factors = {"W": Outer(dy, x), "b": Direct(dy)}
        return {p: reduce(factors[p]) for p in shapes}, jnp.tensordot(dy, params["W"], axes=1)

    return Layer(init, forward, backward)
