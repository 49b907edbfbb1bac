"""Training on the devices of a mesh.

Forward and backward run inside `jax.shard_map`, each device on its share of a batch. Everything
else, such as optimizers and `record`, is outside and sees whole arrays, of which each device holds
its part: a norm taken there is that of the whole array, and XLA adds the communication.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fnn.base import Array, Layer, Optimizer, Params, Tree
from fnn.parallel.data import fully_sharded, replicated
from fnn.parallel.examples import ShardedExamples
from fnn.parallel.partition import automatic, shardings, specs
from fnn.training.shuffle import permutation

WHOLE, SPLIT = PartitionSpec(), PartitionSpec("data")


class Devices(NamedTuple):
    """A mesh with an axis "data", over which examples and, with shard_params, parameters are
    split, and optionally an axis "model"."""

    mesh: Mesh
    shard_params: bool

    @classmethod
    def of(cls, name: str, mesh: Mesh | None, shard_params: bool) -> "Devices | None":
        """The devices of the mesh; None without a mesh.

        Raises TypeError if mesh is not a `Mesh`; ValueError for other axes, for shard_params
        without a mesh, and inside `jax.set_mesh` of a mesh with explicit axes.
        """
        if mesh is None:
            if shard_params:
                raise ValueError(f"{name}: expected a mesh with shard_params=True, got none")
            return None
        if not isinstance(mesh, Mesh):
            raise TypeError(f"{name}: expected a jax.sharding.Mesh, got {type(mesh).__name__}")
        if "data" not in mesh.axis_names or not set(mesh.axis_names) <= {"data", "model"}:
            expected = "expected a mesh with the axes 'data' and, if any, 'model'"
            raise ValueError(f"{name}: {expected}, got {mesh.axis_names}")
        if explicit := jax.sharding.get_abstract_mesh().explicit_axes:
            expected = "expected mesh= without jax.set_mesh of a mesh with explicit axes"
            raise ValueError(f"{name}: {expected}, got the explicit axes {explicit}")
        return cls(automatic(mesh), shard_params)

    @property
    def number(self) -> int:
        """The number of devices over which examples are split."""
        return self.mesh.shape["data"]

    def _network(self, network: Layer) -> Layer:
        """The network `replicated` over "data". With shard_params it is `fully_sharded` first,
        unless parts of it already are.
        """
        if self.shard_params:
            parts = jax.tree.leaves(specs(network.init, self.mesh))
            if not any("data" in jax.tree.leaves(tuple(part)) for part in parts):
                network = fully_sharded(network, "data")
        return replicated(network, "data")

    def place(self, network: Layer, optimizer: Optimizer) -> tuple[Layer, Optimizer]:
        """(network, optimizer) on these devices, each of which holds its part of the params and of
        the optimizer's state."""
        network = self._network(network)
        parts = shardings(lambda key: optimizer.init(network.init(key)), self.mesh)
        pin = lambda state: jax.lax.with_sharding_constraint(state, parts)
        return network, Optimizer(
            lambda params: pin(optimizer.init(params)),
            lambda state, grads: pin(optimizer.update(state, grads)),
        )

    def sharded(self, data: Any) -> ShardedExamples:
        """The examples split over the devices, if they are not yet."""
        return data if isinstance(data, ShardedExamples) else ShardedExamples.of(data, self.mesh)

    def gradient(self, network: Layer, gradient: Callable[..., Any]) -> Callable[..., Any]:
        """f(params, batch, keys, scale, weights) -> (value, grads) of the mean over the batch, from
        such a function of a batch, called on each device with its share."""
        parts = specs(network.init, self.mesh)

        def spread(params: Params, batch: Tree, keys: Any, scale: Any, weights: None) -> Any:
            shares = self.sharded(batch)

            def on_device(params: Params, batch: Tree, keys: Array | None, scale: Any) -> Any:
                device = jax.lax.axis_index("data")
                if keys is not None:
                    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, device)
                weights = shares.weights(device)
                value, grads = gradient(params, batch, keys, scale, weights)
                return jax.lax.psum(value, "data"), grads

            ins, outs = (parts, SPLIT, WHOLE, WHOLE), (WHOLE, parts)
            each = jax.shard_map(on_device, mesh=self.mesh, in_specs=ins, out_specs=outs)
            return each(params, shares.arrays, keys, scale)

        return spread

    def forward(self, network: Layer, f: Callable[..., Any]) -> Callable[..., Any]:
        """f(params, statistics, x) with params and x split over the devices."""
        parts = specs(network.init, self.mesh)
        return jax.shard_map(f, mesh=self.mesh, in_specs=(parts, WHOLE, SPLIT), out_specs=SPLIT)

    def whole(self, tree: Tree) -> Any:
        """The arrays, replicated on each device."""
        return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, WHOLE))

    def shuffled(self, key: Array, data: ShardedExamples, batch_size: int) -> tuple[Array, Array]:
        """An epoch's batches, as rows of each device's share, in a different order on each:
        (n // batch_size, rows per batch), and the remaining rows. Repeated examples are last.
        """
        rows, full = -(-batch_size // self.number), data.n // batch_size

        def on_device(key: Array) -> tuple[Array, Array]:
            device = jax.lax.axis_index("data")
            order = permutation(jax.random.fold_in(key, device), data.rows)
            to_the_end = jnp.where(order == data.rows - 1, order[-1], order)
            to_the_end = to_the_end.at[-1].set(data.rows - 1)
            order = jnp.where(data.repeats(device), to_the_end, order)
            return order[: full * rows].reshape(full, rows), order[full * rows :]

        out_specs = (PartitionSpec(None, "data"), SPLIT)
        return jax.shard_map(on_device, mesh=self.mesh, in_specs=WHOLE, out_specs=out_specs)(key)

    def batch(self, data: ShardedExamples, rows: Array, n: int) -> ShardedExamples:
        """The batch of n examples in these rows of each device's share."""
        take = lambda arrays, rows: jax.tree.map(lambda a: a[rows], arrays)
        spread = jax.shard_map(take, mesh=self.mesh, in_specs=(SPLIT, SPLIT), out_specs=SPLIT)
        return ShardedExamples(spread(data.arrays, rows), n, self.number)
