"""Factors of gradients whose examples, or whose parameter, lie on several devices.

    Summed(factor, axis)          the total is summed over the devices of the axis, which hold
                                  different examples
    Scattered(factor, axis, dim)  the same; each device keeps its part of it along dim
    Shard(factor, axis)           the parameter itself is a part, of a layer that is cut over axis

What is per example stays with the device that has the example. So a reduction that weighs the
examples, such as clipping, sums what it weighed over all devices.
"""

from dataclasses import dataclass, fields, replace
from functools import partial

import jax

from fnn.base import Array
from fnn.parallel.axes import varying
from fnn.reductions import (
    Changed,
    Direct,
    Factor,
    norm,
    products,
    rows,
    squared,
    squared_norm,
    total,
    weighted,
)


@partial(jax.tree_util.register_dataclass, data_fields=["factor"], meta_fields=["axis"])
@dataclass(frozen=True)
class Summed(Changed):
    """The gradients of a parameter that every device of the axis holds.

    Where the total is the same on all devices, for all have the same cotangents, it is that.

    >>> import jax.numpy as jnp
    >>> squared_norm(Summed(Direct(jnp.array([[3.0, 4.0]])), "data"))
    Array([25.], dtype=float32)
    """

    factor: Factor
    axis: str


@partial(jax.tree_util.register_dataclass, data_fields=["factor"], meta_fields=["axis", "dim"])
@dataclass(frozen=True)
class Scattered(Changed):
    """The gradients of a parameter of which each device of the axis keeps a part along `dim`.

    >>> import jax.numpy as jnp
    >>> squared_norm(Scattered(Direct(jnp.array([[3.0, 4.0]])), "data", 0))
    Array([25.], dtype=float32)
    """

    factor: Factor
    axis: str
    dim: int


@partial(jax.tree_util.register_dataclass, data_fields=["factor"], meta_fields=["axis"])
@dataclass(frozen=True)
class Shard(Changed):
    """The gradients of a part of a parameter; the other parts' are on the other devices of the
    axis, for the same examples. Norms and products are those of the whole parameter.

    >>> import jax.numpy as jnp
    >>> total(Shard(Direct(jnp.ones((3, 2))), "model"))
    Array([3., 3.], dtype=float32)
    """

    factor: Factor
    axis: str


def is_over(factor: Factor, axis: str) -> bool:
    """Whether the factor's total is already summed over the axis.

    >>> import jax.numpy as jnp
    >>> is_over(Summed(Direct(jnp.ones((3, 2))), "data"), "data")
    True
    """
    if isinstance(factor, Summed | Scattered) and factor.axis == axis:
        return True
    inner = [value for f in fields(factor) if isinstance(value := getattr(factor, f.name), Factor)]  # type: ignore[arg-type]
    return bool(inner) and all(is_over(one, axis) for one in inner)


@total.register
def _(factor: Summed) -> Array:
    value = total(factor.factor)
    return jax.lax.psum(value, factor.axis) if factor.axis in varying(value) else value


@total.register
def _(factor: Scattered) -> Array:
    value = total(factor.factor)
    return jax.lax.psum_scatter(value, factor.axis, scatter_dimension=factor.dim, tiled=True)


@total.register
def _(factor: Shard) -> Array:
    return total(factor.factor)


@rows.register(Summed | Scattered | Shard)
def _(factor: Changed, examples: int | None = None) -> Direct:
    return rows(factor.factor, examples)


@squared_norm.register(Summed | Scattered)
def _(factor: Changed, examples: int | None = None) -> Array:
    return squared_norm(factor.factor, examples)


@norm.register(Summed | Scattered)
def _(factor: Changed, examples: int | None = None) -> Array:
    return norm(factor.factor, examples)


@squared_norm.register
def _(factor: Shard, examples: int | None = None) -> Array:
    return jax.lax.psum(squared_norm(factor.factor, examples), factor.axis)


@products.register(Summed | Scattered)
def _(factor: Changed, examples: int | None = None) -> Array:
    return products(factor.factor, examples)


@products.register
def _(factor: Shard, examples: int | None = None) -> Array:
    return jax.lax.psum(products(factor.factor, examples), factor.axis)


@squared.register(Summed | Scattered | Shard)
def _(factor: Summed, examples: int | None = None) -> Factor:
    return replace(factor, factor=squared(factor.factor, examples))


@weighted.register(Summed | Scattered | Shard)
def _(factor: Summed, weight: Array) -> Factor:
    return replace(factor, factor=weighted(factor.factor, weight))
