"""Factors of gradients whose examples, or whose parameter, lie on several devices.

    Summed(factor, axis)          the total is summed over the devices of the axis, which hold
                                  different examples
    Scattered(factor, axis, dim)  the same; each device keeps its part of it along dim
    Shard(factor, axis)           the parameter itself is a part, of a layer that is cut over axis

What is per example stays with the device that has the example. So a reduction that weighs the
examples, such as clipping, sums what it weighed over all devices.
"""

from dataclasses import dataclass, fields
from functools import partial

import jax
import jax.numpy as jnp

from fnn.axes import varying
from fnn.base import Array
from fnn.reductions import Factor, SamePerExample, products, squared_norm, total


@partial(jax.tree_util.register_dataclass, data_fields=["factor"], meta_fields=["axis"])
@dataclass(frozen=True)
class Summed(SamePerExample):
    """The gradients of a parameter that every device of the axis holds.

    Where the total is the same on all devices, for all have the same cotangents, it is that.

    >>> import jax.numpy as jnp
    >>> squared_norm(Summed(Direct(jnp.array([[3.0, 4.0]])), "data"))
    Array([25.], dtype=float32)
    """

    factor: Factor
    axis: str

    def total(self) -> Array:
        value = total(self.factor)
        return jax.lax.psum(value, self.axis) if self.axis in varying(value) else value


@partial(jax.tree_util.register_dataclass, data_fields=["factor"], meta_fields=["axis", "dim"])
@dataclass(frozen=True)
class Scattered(SamePerExample):
    """The gradients of a parameter of which each device of the axis keeps a part along `dim`.

    >>> import jax.numpy as jnp
    >>> squared_norm(Scattered(Direct(jnp.array([[3.0, 4.0]])), "data", 0))
    Array([25.], dtype=float32)
    """

    factor: Factor
    axis: str
    dim: int

    def total(self) -> Array:
        value = total(self.factor)
        return jax.lax.psum_scatter(value, self.axis, scatter_dimension=self.dim, tiled=True)


@partial(jax.tree_util.register_dataclass, data_fields=["factor"], meta_fields=["axis"])
@dataclass(frozen=True)
class Shard(SamePerExample):
    """The gradients of a part of a parameter; the other parts' are on the other devices of the
    axis, for the same examples. Norms and products are those of the whole parameter.

    >>> import jax.numpy as jnp
    >>> total(Shard(Direct(jnp.ones((3, 2))), "model"))
    Array([3., 3.], dtype=float32)
    """

    factor: Factor
    axis: str

    def total(self) -> Array:
        return total(self.factor)

    def squared_norm(self, examples: int | None = None) -> Array:
        return jax.lax.psum(squared_norm(self.factor, examples), self.axis)

    def products(self, examples: int | None = None) -> Array:
        return jax.lax.psum(products(self.factor, examples), self.axis)

    def norm(self, examples: int | None = None) -> Array:
        return jnp.sqrt(self.squared_norm(examples))


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
