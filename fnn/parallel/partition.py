"""Which part of an array each device of the mesh holds, as `jax.sharding.PartitionSpec`s."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from fnn.base import Array
from fnn.parallel.data import cut_dim


def specs(init: Callable[[Array], Any], mesh: Mesh) -> Any:
    """The partition of what init(key) returns: a tree of `PartitionSpec`s.

    init is a network's, or lambda key: optimizer.init(network.init(key)) for an optimizer's state,
    which is split as the parameters are. Nothing is computed: the shapes that init returns outside
    `jax.shard_map` are compared with those inside, where it returns one device's part. If an array
    is split over several axes, the last axis of the mesh splits it first, so the combinator of the
    first one, such as `fully_sharded` over "data", must be the outermost.

    Raises ValueError for shapes that are not equal parts; TypeError if mesh is not a mesh.

    >>> import fnn
    >>> mesh = jax.make_mesh((1, 1), ("data", "model"))
    >>> specs(fnn.parallel.fully_sharded(fnn.dense(4, 2), "data").init, mesh)["W"]
    P()
    """
    _check_mesh("specs", mesh)
    sizes = dict.fromkeys(mesh.axis_names, 1)
    before, form = jax.tree.flatten(_shapes(init, sizes))
    cut: list[list[list[str]]] = [[[] for _ in a.shape] for a in before]
    for axis in reversed(mesh.axis_names):
        sizes[axis] = mesh.shape[axis]
        after = jax.tree.leaves(_shapes(init, sizes))
        for axes, a, b in zip(cut, before, after, strict=True):
            dim = cut_dim("specs", mesh.shape[axis], a.shape, b.shape)
            if dim >= 0:
                axes[dim].append(axis)
        before = after
    return jax.tree.unflatten(form, [_spec(axes) for axes in cut])


def _check_mesh(name: str, mesh: Any) -> None:
    if not isinstance(mesh, Mesh | AbstractMesh):
        got = type(mesh).__name__
        raise TypeError(f"{name}: expected (init, mesh, ...) with a jax.sharding.Mesh, got {got}")


def _spec(axes: list[list[str]]) -> PartitionSpec:
    while axes and not axes[-1]:
        axes = axes[:-1]
    return PartitionSpec(*(tuple(names) if len(names) > 1 else (*names, None)[0] for names in axes))


def _shapes(init: Callable[[Array], Any], sizes: dict[str, int]) -> Any:
    """The shapes that init returns on one device of a mesh with these axis sizes."""
    made = []

    def on_device() -> tuple[()]:
        made.append(jax.tree.map(jax.typeof, init(jax.random.key(0))))
        return ()

    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):  # whatever `jax.set_mesh` has set
        jax.eval_shape(jax.shard_map(on_device, mesh=mesh, in_specs=(), out_specs=()))
    return made[0]


def automatic(mesh: Mesh) -> Mesh:
    """The same mesh with axes of type Auto, over which XLA partitions computations outside
    `jax.shard_map`.

    >>> automatic(jax.make_mesh((1,), ("data",))).axis_types
    (Auto,)
    """
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def untyped(a: Any) -> Any:
    """Drop explicit sharding from the array's type; its placement is unchanged.

    >>> untyped(jax.numpy.ones(2))
    Array([1., 1.], dtype=float32)
    """
    split: Any = getattr(a, "sharding", None)
    is_placed = isinstance(split, NamedSharding) and isinstance(split.mesh, Mesh)
    if not (is_placed and split.mesh.explicit_axes):
        return a
    return jax.device_put(a, NamedSharding(automatic(split.mesh), split.spec))


def shardings(init: Callable[[Array], Any], mesh: Mesh) -> Any:
    """`specs` as a tree of `NamedSharding`s, for `jax.device_put` and `jax.jit`.

    >>> import fnn
    >>> shardings(fnn.dense(4, 2).init, jax.make_mesh((1,), ("data",)))["W"].spec
    P()
    """
    mesh = automatic(mesh)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(init, mesh))


def create(init: Callable[[Array], Any], mesh: Mesh, key: Array) -> Any:
    """Run init(key) so that each device creates its own part; no device holds the whole arrays.

    Raises as `specs` does.

    >>> import fnn
    >>> create(fnn.dense(4, 2).init, jax.make_mesh((1,), ("data",)), jax.random.key(0))["W"].shape
    (2, 4)
    """
    _check_mesh("create", mesh)
    return jax.jit(init, out_shardings=shardings(init, mesh))(key)
