"""Training on the devices of a mesh: what `fnn.training` and `fnn.training.fitting` do there.

Forward and backward run inside of `jax.shard_map`, each device on its share of a batch. What
stands outside sees whole arrays, of which each device holds its part: an optimizer or a `record`
that takes a norm takes that of everything, and XLA adds the communication.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fnn.base import Array, Layer, Optimizer, Params
from fnn.parallel.data import fully_sharded, replicated
from fnn.parallel.examples import ShardedExamples
from fnn.parallel.partition import automatic, shardings, specs
from fnn.training.shuffle import permutation

WHOLE, SPLIT = PartitionSpec(), PartitionSpec("data")


class Devices(NamedTuple):
    """A mesh with an axis "data", over which examples are split and, with shard_params,
    parameters too, and at most one other axis, "model"."""

    mesh: Mesh
    shard_params: bool

    @classmethod
    def of(cls, name: str, mesh: Mesh | None, shard_params: bool) -> "Devices | None":
        """The devices of the mesh; None without a mesh.

        Raises TypeError for what is not a mesh; ValueError for other axes, for shard_params
        without a mesh, and inside of `jax.set_mesh` of a mesh with explicit axes.
        """
        if mesh is None:
            if shard_params:
                raise ValueError(f"{name}: expected a mesh with shard_params=True, got none")
            return None
        if not isinstance(mesh, Mesh):
            raise TypeError(f"{name}: expected a jax.sharding.Mesh, got {type(mesh).__name__}")
        if "data" not in mesh.axis_names or not set(mesh.axis_names) <= {"data", "model"}:
            raise ValueError(
                f"{name}: expected a mesh with the axes 'data' and, if any, 'model', "
                f"got {mesh.axis_names}"
            )
        if explicit := jax.sharding.get_abstract_mesh().explicit_axes:
            raise ValueError(
                f"{name}: expected no jax.set_mesh with the explicit axes {explicit} beside mesh=, "
                f"which splits the arrays itself"
            )
        return cls(automatic(mesh), shard_params)

    @property
    def number(self) -> int:
        """The number of devices over which examples are split."""
        return self.mesh.shape["data"]

    def _network(self, network: Layer) -> Layer:
        """The network on these devices. With shard_params it is `fully_sharded`, unless parts of
        it are cut over "data" already.
        """
        if self.shard_params:
            parts = jax.tree.leaves(specs(network.init, self.mesh))
            if not any("data" in jax.tree.leaves(tuple(part)) for part in parts):
                network = fully_sharded(network, "data")
        return replicated(network, "data")

    def place(self, network: Layer, optimizer: Optimizer) -> tuple[Layer, Optimizer]:
        """Both on these devices, each of which holds its part of the params and of the
        optimizer's state."""
        network = self._network(network)
        parts = shardings(lambda key: optimizer.init(network.init(key)), self.mesh)
        pin = lambda state: jax.lax.with_sharding_constraint(state, parts)
        return network, Optimizer(
            lambda params: pin(optimizer.init(params)),
            lambda state, grads: pin(optimizer.update(state, grads)),
        )

    def shares(self, data: Any) -> ShardedExamples:
        """The examples split over the devices, unless they are."""
        return data if isinstance(data, ShardedExamples) else ShardedExamples.of(data, self.mesh)

    def gradient(
        self, network: Layer, gradient: Callable[..., tuple[Array, Params]]
    ) -> Callable[..., tuple[Array, Params]]:
        """gradient(params, batch, keys, scale, weights) -> (value, grads), each device on its
        share of the batch: the value and the gradient of the mean over all of it."""
        parts = specs(network.init, self.mesh)

        def spread(
            params: Params, batch: Any, keys: Array | None, scale: Any, weights: None
        ) -> tuple[Array, Params]:
            shares = self.shares(batch)

            def on_device(params: Params, batch: Any, keys: Array | None, scale: Any) -> Any:
                device = jax.lax.axis_index("data")
                if keys is not None:
                    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, device)
                weights = shares.weights(device)
                value, grads = gradient(params, batch, keys, scale, weights)
                return jax.lax.psum(value, "data"), grads

            return jax.shard_map(
                on_device,
                mesh=self.mesh,
                in_specs=(parts, SPLIT, WHOLE, WHOLE),
                out_specs=(WHOLE, parts),
            )(params, shares.arrays, keys, scale)

        return spread

    def forward(
        self, network: Layer, predicted: Callable[[Params, Any, Any], Any]
    ) -> Callable[[Params, Any, Any], Any]:
        """predicted(params, statistics, x) with the network on these devices, each of which
        takes its part of x.
        """
        parts = specs(network.init, self.mesh)
        return jax.shard_map(
            predicted, mesh=self.mesh, in_specs=(parts, WHOLE, SPLIT), out_specs=SPLIT
        )

    def whole(self, tree: Any) -> Any:
        """The arrays, whole on each device."""
        return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, WHOLE))

    def shuffled(self, key: Array, data: ShardedExamples, batch_size: int) -> tuple[Array, Array]:
        """An epoch's batches, as rows of each device's own share in an order of its own:
        (n // batch_size, rows of a batch), and the rest. Repeated examples come last.
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
