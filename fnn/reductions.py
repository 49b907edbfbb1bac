"""Per-example gradients in factored form, and the ways to put them together over a batch.

A layer's `backward` never sums its parameters' gradients itself. It states each as a factor,

    Outer(left, right)    example n has the gradient left_n right_n^T
    Direct(value)         example n has the gradient value_n

and hands it to `reduce`. Backpropagation is one such reduction, `total`. Others read the
same factors and need no other derivative rule.
"""

from typing import NamedTuple

import jax.numpy as jnp

from fnn.base import Array


class Outer(NamedTuple):
    """Per-example gradients of a matrix (d_left, d_right), each of rank one.

    left (..., d_left), right (..., d_right). For a dense layer's W: left = dy, right = x.
    """

    left: Array
    right: Array


class Direct(NamedTuple):
    """Per-example gradients as they are: value (..., *shape of the parameter).

    ndim is the rank of the parameter: 1 for a bias, 0 for a scalar.
    """

    value: Array
    ndim: int = 1


def total(factor: Outer | Direct) -> Array:
    """Sum over the batch: sum_n left_n right_n^T, or sum_n value_n. Shape of the parameter.

    With dZ = left and A = right this is the dW = dZ^T A of backpropagation: one matrix
    product that contracts all batch axes.
    """
    match factor:
        case Outer(left, right):
            batch = tuple(range(left.ndim - 1))
            return jnp.tensordot(left, right, axes=(batch, batch))
        case Direct(value, ndim):
            return value.sum(tuple(range(value.ndim - ndim)))
    raise TypeError(f"total: expected an Outer or a Direct, got {type(factor).__name__}")
