"""Reshaping: the last axes into one, and the last axis into several."""

import math

import jax
import jax.numpy as jnp

from fnn.base import Array, Grads, Layer, Params, Residuals
from fnn.layers.shapes import check_array, check_widths
from fnn.reductions import Reduce, total


def flatten(ndim: int) -> Layer:
    """Reshape the last ndim axes into one: flatten(3) turns images (..., height, width, c) to rows.

    x (..., d_1, ..., d_ndim) -> (..., d_1 * ... * d_ndim), without parameters.

        forward    y  = x, in one axis
        backward   dx = dy, in x's axes

    Raises ValueError for ndim below 1 and for x with fewer axes.

    >>> flatten(2).forward((), jnp.ones((5, 2, 3)))[0].shape
    (5, 6)
    """
    name = f"flatten({ndim})"
    ndim = check_widths(name, ndim)

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        check_array(name, x, *("d",) * ndim)
        lead = x.ndim - ndim
        like = jnp.zeros((0, *x.shape[lead:]), x.dtype)  # empty: it keeps a shape
        return x.reshape(*x.shape[:lead], math.prod(x.shape[lead:])), like

    def backward(params: Params, like: Residuals, dy: Array, reduce: Reduce = total) -> Grads:
        # tree.map, because the cotangent of codes is None.
        return (), jax.tree.map(lambda d: d.reshape(*d.shape[:-1], *like.shape[-ndim:]), dy)

    return Layer(lambda key: (), forward, backward)


def unflatten(*shape: int) -> Layer:
    """Reshape the last axis into axes of these lengths: unflatten(28, 28, 1) turns rows to images.

    x (..., d_1 * ... * d_ndim) -> (..., d_1, ..., d_ndim), without parameters; `flatten` undoes it.

        forward    y  = x, in these axes
        backward   dx = dy, in one axis

    Raises ValueError for no lengths, lengths below 1, and x with a different width.

    >>> unflatten(2, 3).forward((), jnp.ones((5, 6)))[0].shape
    (5, 2, 3)
    """
    if not shape:
        raise ValueError("unflatten: expected at least one length, got none")
    _, *shape = check_widths(f"unflatten{shape}", 1, *shape)
    name = f"unflatten{tuple(shape)}"

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        check_array(name, x, math.prod(shape))
        return x.reshape(*x.shape[:-1], *shape), ()

    def backward(params: Params, residuals: Residuals, dy: Array, reduce: Reduce = total) -> Grads:
        lead = dy.ndim - len(shape)
        return (), dy.reshape(*dy.shape[:lead], math.prod(shape))

    return Layer(lambda key: (), forward, backward)
