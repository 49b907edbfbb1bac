"""Per-example gradients in factored form, and the ways to put them together over a batch.

A layer's `backward` never sums its parameters' gradients itself. It states each as a factor,

    Outer(left, right)    example n has the gradient left_n right_n^T
    Direct(value)         example n has the gradient value_n

and returns what `reduce` makes of it. Backpropagation is one such reduction, `total`. Others
read the same factors and need no other derivative rule. Since a gradient is linear in dy, one
of left and right holds dy and the other does not depend on it.

    total          sum_n g_n            (*shape of the parameter)
    squared_norm   ||g_n||^2            (...)
    products       <g_n, g_k>           (..., ...)
    squared        the factor of g_n * g_n, entry by entry
    weighted       the factor of weight_n g_n

The last two give factors again: total(squared(f)) is a second moment, total(weighted(f, w)) a
weighted sum. No reduction ever holds one gradient an example of an Outer. Squares and products
are kept in at least float32. All raise TypeError for what is not a factor.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fnn.base import Array, at_least_float32


@partial(jax.tree_util.register_dataclass, data_fields=["left", "right"], meta_fields=[])
@dataclass(frozen=True)
class Outer:
    """Per-example gradients of a matrix (d_left, d_right), each of rank one.

    left (..., d_left), right (..., d_right). For a dense layer's W: left = dy, right = x.
    """

    left: Array
    right: Array


@partial(jax.tree_util.register_dataclass, data_fields=["value"], meta_fields=["ndim"])
@dataclass(frozen=True)
class Direct:
    """Per-example gradients as they are: value (..., *shape of the parameter).

    ndim is the rank of the parameter: 1 for a bias, 0 for a scalar.
    """

    value: Array
    ndim: int = 1


Factor = Outer | Direct


def total(factor: Factor) -> Array:
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
    raise _unknown("total", factor)


def squared_norm(factor: Factor) -> Array:
    """||g_n||^2 for each example: ||left_n||^2 ||right_n||^2, or ||value_n||^2. Goodfellow 2015."""
    match factor:
        case Outer(left, right):
            return squared_norm(Direct(left)) * squared_norm(Direct(right))
        case Direct(value, ndim):
            return _square(value).sum(_last(ndim))
    raise _unknown("squared_norm", factor)


def products(factor: Factor) -> Array:
    """<g_n, g_k> for each two examples: <left_n, left_k> <right_n, right_k>, or
    <value_n, value_k>; the batch axes once for n, then once for k."""
    match factor:
        case Outer(left, right):
            return products(Direct(left)) * products(Direct(right))
        case Direct(value, ndim):
            wide = value.astype(at_least_float32(value.dtype))
            return jnp.tensordot(wide, wide, axes=(_last(ndim), _last(ndim)))
    raise _unknown("products", factor)


def squared(factor: Factor) -> Factor:
    """The factor of the squared entries: the square of left_n right_n^T, entry by entry, is
    the outer product of the squares."""
    match factor:
        case Outer(left, right):
            return Outer(_square(left), _square(right))
        case Direct(value, ndim):
            return Direct(_square(value), ndim)
    raise _unknown("squared", factor)


def weighted(factor: Factor, weight: Array) -> Factor:
    """The factor of weight_n g_n, for weight (...): one number an example."""
    match factor:
        case Outer(left, right):
            return Outer(left * weight[..., None].astype(left.dtype), right)
        case Direct(value, ndim):
            return Direct(
                value * weight.reshape(weight.shape + (1,) * ndim).astype(value.dtype), ndim
            )
    raise _unknown("weighted", factor)


def _square(x: Array) -> Array:
    wide = x.astype(at_least_float32(x.dtype))
    return wide * wide


def _last(ndim: int) -> tuple[int, ...]:
    return tuple(range(-ndim, 0))


def _unknown(name: str, factor: Any) -> TypeError:
    return TypeError(f"{name}: expected an Outer or a Direct, got {type(factor).__name__}")
