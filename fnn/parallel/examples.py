"""Examples split over the devices of a mesh's axis "data"."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fnn.base import Array, Tree, pytree
from fnn.parallel.partition import automatic, untyped


@pytree("n", "devices")
class ShardedExamples:
    """n examples, split over the devices: arrays is (x, y), or any tree of arrays whose first axis
    is the concatenation of each device's part, all with the same length `rows`.

    If n is not divisible by the number of devices, the first n % devices parts have one example
    more; the last row of the others repeats an example of another device and has weight 0.

    >>> shares = ShardedExamples.of(jnp.arange(5), jax.make_mesh((1,), ("data",)))
    >>> shares.n, shares.rows, shares.arrays
    (5, 5, Array([0, 1, 2, 3, 4], dtype=int32))
    """

    arrays: Any
    n: int
    devices: int

    @classmethod
    def of(cls, data: Any, mesh: Mesh) -> "ShardedExamples":
        """Split the examples in the arrays of `data`; of NumPy arrays, each process moves only the
        parts of its own devices.

        >>> ShardedExamples.of(np.ones((4, 2)), jax.make_mesh((1,), ("data",))).arrays.shape
        (4, 2)
        """
        n, devices = len(jax.tree.leaves(data)[0]), mesh.shape["data"]
        sharding = NamedSharding(automatic(mesh), PartitionSpec("data"))

        def split(a: Any) -> Array:
            a = untyped(a)[_places(n, devices)] if n % devices else untyped(a)
            if isinstance(a, np.ndarray):
                return jax.make_array_from_callback(a.shape, sharding, lambda index: a[index])
            traced = isinstance(a, jax.core.Tracer)
            return (jax.lax.with_sharding_constraint if traced else jax.device_put)(a, sharding)

        return cls(jax.tree.map(split, data), n, devices)

    @classmethod
    def read(cls, rows: Callable[[np.ndarray], Any], n: int, mesh: Mesh) -> "ShardedExamples":
        """Split n examples, of which each process reads those of its own devices by
        rows(places) -> NumPy arrays of the examples at these indices, from 0 to n - 1.

        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> shares = ShardedExamples.read(lambda places: 2 * places, 5, mesh)
        >>> shares.n, shares.arrays
        (5, Array([0, 2, 4, 6, 8], dtype=int32))
        """
        devices = mesh.shape["data"]
        sharding = NamedSharding(automatic(mesh), PartitionSpec("data"))
        places = _places(n, devices)
        parts: Any = sharding.addressable_devices_indices_map((len(places),)).values()
        own = {part.start: part for (part,) in parts}  # with "model", several devices hold the same
        read = {start: rows(places[part]) for start, part in own.items()}

        def joined(*parts: np.ndarray) -> Array:
            held = dict(zip(read, parts, strict=True))
            shape = (len(places), *parts[0].shape[1:])
            part_of = lambda index: held[index[0].start]
            return jax.make_array_from_callback(shape, sharding, part_of)

        return cls(jax.tree.map(joined, *read.values()), n, devices)

    @property
    def rows(self) -> int:
        """The number of rows on each device, of which the last may repeat an example."""
        return -(-self.n // self.devices)

    def repeats(self, device: Array) -> Any:
        """Whether the last row of the device's part repeats an example of another device.

        >>> bool(ShardedExamples(jnp.arange(6), n=5, devices=2).repeats(1))
        True
        """
        return device >= self.n % self.devices if self.n % self.devices else False

    def weights(self, device: Array) -> Array:
        """The weights (rows,) or () of the device's examples: the sum over the devices of the means
        of weighted losses is the mean over all n examples.

        >>> ShardedExamples(jnp.arange(6), n=5, devices=2).weights(1)
        Array([0.6, 0.6, 0. ], dtype=float32)
        """
        dtype = jax.dtypes.canonicalize_dtype(float)  # float32 would be too coarse for float64
        if self.n % self.devices == 0:
            return jnp.asarray(1 / self.devices, dtype)
        last = jnp.arange(self.rows) == self.rows - 1
        return jnp.where(last & self.repeats(device), 0, self.rows / self.n).astype(dtype)

    def examples(self, tree: Tree) -> Any:
        """The n examples, in their original order and without repeated ones, of a tree of arrays
        split in the same way.

        >>> shares = ShardedExamples.of(jnp.arange(5), jax.make_mesh((1,), ("data",)))
        >>> shares.examples(shares.arrays)
        Array([0, 1, 2, 3, 4], dtype=int32)
        """
        if self.n % self.devices == 0:
            return tree
        device, row = np.divmod(np.arange(self.devices * self.rows), self.rows)
        first = row < self.rows - 1
        kept = np.flatnonzero(first | (device < self.n % self.devices))
        return jax.tree.map(lambda a: a[kept], tree)


def _places(n: int, devices: int) -> np.ndarray:
    """The index of the example in each row, (devices * rows,)"""
    rows, device = -(-n // devices), np.arange(devices)
    starts = device * (n // devices) + np.minimum(device, n % devices)
    return np.minimum(starts[:, None] + np.arange(rows), n - 1).ravel()
