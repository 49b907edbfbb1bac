"""Factors of gradients whose examples, or whose parameter, are split over several devices.

    Summed(factor, axis, dim)  the total is summed over the devices of the axis, which have
                               different examples; each device keeps its part along dim
    Shard(factor, axis)        the parameter is this device's part, of a layer split over axis

Per-example results stay on the device that has the example. So per-example weights, as in clipping,
are applied before the sum over the devices.
"""

from dataclasses import fields

import jax

from fnn.axes import varying
from fnn.base import Array, pytree
from fnn.reductions import Factor, Wrapped


def part_of(a: Array, axis: str, dim: int) -> Array:
    """This device's part of an array that is split over the axis along dim; all of it for -1.

    >>> part_of(jax.numpy.ones(2), "data", -1)
    Array([1., 1.], dtype=float32)
    """
    if dim < 0:
        return a
    size = a.shape[dim] // jax.lax.axis_size(axis)
    return jax.lax.dynamic_slice_in_dim(a, jax.lax.axis_index(axis) * size, size, dim)


@pytree("axis", "dim")
class Summed(Wrapped):
    """The gradients of a parameter that is split over the axis along `dim`, or replicated for -1.

    A total that is already equal on all devices is not summed again.
    """

    factor: Factor
    axis: str
    dim: int

    def total(self) -> Array:
        value = self.factor.total()
        if self.axis not in varying(value):
            return part_of(value, self.axis, self.dim)
        if self.dim < 0:
            return jax.lax.psum(value, self.axis)
        return jax.lax.psum_scatter(value, self.axis, scatter_dimension=self.dim, tiled=True)


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

    norm = Factor.norm


def is_summed(factor: Factor, axis: str) -> bool:
    """Whether the factor's total is already summed over the axis."""
    if isinstance(factor, Summed) and factor.axis == axis:
        return True
    inner = [value for f in fields(factor) if isinstance(value := getattr(factor, f.name), Factor)]  # type: ignore[arg-type]
    return bool(inner) and all(is_summed(one, axis) for one in inner)
