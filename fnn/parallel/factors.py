"""Factors of gradients whose examples, or whose parameter, are split over several devices.

    Summed(factor, axis)          the total is summed over the devices of the axis, which have
                                  different examples
    Scattered(factor, axis, dim)  as Summed, but each device keeps its part of the total along dim
    Sliced(factor, axis, dim)     the same part of a total that is already summed
    Shard(factor, axis)           the parameter is this device's part, of a layer split over axis

Per-example results stay on the device that has the example. So per-example weights, as in clipping,
are applied before the sum over the devices.
"""

from dataclasses import fields

import jax
import jax.numpy as jnp

from fnn.axes import varying
from fnn.base import Array, pytree
from fnn.reductions import Factor, Wrapped


@pytree("axis")
class Summed(Wrapped):
    """The gradients of a parameter that is replicated over the axis.

    A total that is already equal on all devices is not summed again.
    """

    factor: Factor
    axis: str

    def total(self) -> Array:
        value = self.factor.total()
        return jax.lax.psum(value, self.axis) if self.axis in varying(value) else value


@pytree("axis", "dim")
class Scattered(Wrapped):
    """The gradients of a parameter that is split over the axis along `dim`."""

    factor: Factor
    axis: str
    dim: int

    def total(self) -> Array:
        value = self.factor.total()
        return jax.lax.psum_scatter(value, self.axis, scatter_dimension=self.dim, tiled=True)


@pytree("axis", "dim")
class Sliced(Wrapped):
    """The gradients of a parameter that is split over the axis along `dim`, of a layer that sums
    them over the axis itself."""

    factor: Factor
    axis: str
    dim: int

    def total(self) -> Array:
        value = self.factor.total()
        size = value.shape[self.dim] // jax.lax.axis_size(self.axis)
        start = jax.lax.axis_index(self.axis) * size
        return jax.lax.dynamic_slice_in_dim(value, start, size, self.dim)


@pytree("axis")
class Shard(Wrapped):
    """The gradients of a part of a parameter; the other devices of the axis have the other parts,
    for the same examples. Norms and products are those of the whole parameter."""

    factor: Factor
    axis: str

    def total(self) -> Array:
        return self.factor.total()

    def squared_norm(self, examples: int | None = None) -> Array:
        return jax.lax.psum(self.factor.squared_norm(examples), self.axis)

    def products(self, examples: int | None = None, other: Factor | None = None) -> Array:
        return jax.lax.psum(super().products(examples, other), self.axis)

    def norm(self, examples: int | None = None) -> Array:
        return jnp.sqrt(self.squared_norm(examples))


def is_summed(factor: Factor, axis: str) -> bool:
    """Whether the factor's total is already summed over the axis."""
    if isinstance(factor, Summed | Scattered) and factor.axis == axis:
        return True
    inner = [value for f in fields(factor) if isinstance(value := getattr(factor, f.name), Factor)]  # type: ignore[arg-type]
    return bool(inner) and all(is_summed(one, axis) for one in inner)
