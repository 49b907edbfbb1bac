"""The mapped axes of a mesh: inside `jax.shard_map`, a program runs once per device along them."""

from collections.abc import Callable

import jax

from fnn.base import Array


def is_mapped(name: str, axis: str) -> bool:
    """Whether the program runs once per device of the axis; False outside `jax.shard_map`, where
    arrays are whole.

    Raises ValueError inside a `jax.shard_map` without this axis, naming the layer and the axis.

    >>> is_mapped("copy_to", "data")
    False
    """
    mapped = jax.sharding.get_abstract_mesh().manual_axes
    if mapped and axis not in mapped:
        raise ValueError(f"{name}: expected a mapped axis {axis!r}, got {sorted(mapped)}")
    return bool(mapped)


def varying(a: Array) -> frozenset[str]:
    """The mapped axes along which devices may hold different values of the array.

    >>> varying(jax.numpy.ones(2))
    frozenset()
    """
    return jax.typeof(a).mat.varying


def cast(a: Array, axes: frozenset[str]) -> Array:
    """The same array, as one that may vary along these mapped axes too.

    >>> cast(jax.numpy.ones(2), frozenset())
    Array([1., 1.], dtype=float32)
    """
    missing = axes - varying(a)
    return jax.lax.pcast(a, tuple(missing), to="varying") if missing else a


def check_tracked(name: str, axis: str) -> None:
    """Raise ValueError, naming the layer, inside a `jax.shard_map` with `check_vma=False`: JAX then
    does not track whether a gradient is one device's or already the sum over all devices.

    >>> check = lambda: check_tracked("replicated", "data")
    >>> jax.shard_map(check, mesh=jax.make_mesh((1,), ("data",)), in_specs=(), out_specs=None)()
    """
    if axis not in varying(jax.lax.axis_index(axis)):
        reason = f"without it gradients cannot be summed over {axis!r} exactly once"
        raise ValueError(f"{name}: expected jax.shard_map with check_vma=True: {reason}")


def over_devices(collective: Callable[..., Array], a: Array) -> Array:
    """The collective, such as `jax.lax.psum`, of the array over the axes along which it varies. The
    array itself if no axis is mapped or it is equal on all devices.

    >>> over_devices(jax.lax.psum, jax.numpy.ones(2))
    Array([1., 1.], dtype=float32)
    """
    axes = tuple(sorted(varying(a)))
    return collective(a, axes) if axes else a
