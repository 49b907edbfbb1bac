"""Data parallelism: the examples, and perhaps the parameters, are split over devices."""

from functools import partial
from typing import Any

import jax
from jax.tree_util import DictKey

from fnn.axes import check_tracked, is_mapped, varying
from fnn.base import Array, Grads, Layer, Params, Residuals, Tree, check_layer, varying_with
from fnn.parallel.factors import Summed, is_summed, part_of
from fnn.reductions import Factor, Reduce, for_each_copy, total


def replicated(layer: Layer, axis: str) -> Layer:
    """The layer with replicated params; each device of the mesh axis has its own examples.

        forward    y, residuals = f(params, x)
        backward   dx = f's dx,    dparams = f's dparams, summed over the axis

    So dparams is the vector-Jacobian product over the examples of all devices. Outside
    `jax.shard_map` it equals the layer itself.

    Raises TypeError if layer is not a layer; ValueError inside a `jax.shard_map` that does not map
    the axis.

    >>> import fnn
    >>> layer = replicated(fnn.dense(2, 1), "data")
    >>> layer.forward(layer.init(jax.random.key(0)), jax.numpy.zeros((3, 2)))[0].shape
    (3, 1)
    """
    check_layer("replicated", layer)

    def forward(params: Params, x: Tree) -> tuple[Tree, Residuals]:
        is_mapped("replicated", axis)
        return layer.forward(params, x)

    def backward(params: Params, residuals: Residuals, dy: Tree, reduce: Reduce = total) -> Grads:
        if not is_mapped("replicated", axis):
            return layer.backward(params, residuals, dy, reduce)
        check_tracked("replicated", axis)
        once = lambda factor: factor if is_summed(factor, axis) else Summed(factor, axis, -1)
        return layer.backward(params, residuals, dy, lambda factor: reduce(once(factor)))

    varies = varying_with(lambda layer: replicated(layer, axis), layer)
    return Layer(layer.init, forward, backward, varies, lambda params: [(layer, params)])


def fully_sharded(layer: Layer, axis: str) -> Layer:
    """The layer with params split over the devices of the mesh axis; each device has its own
    examples. Rajbhandari et al. 2020, "ZeRO", stage 3.

        forward    y, residuals = f(gather(params), x)
        backward   dx = f's dx at gather(params),
                   dparams = this device's part of f's dparams, summed over the axis

    Each array is split along one dimension that is divisible by the number of devices, the first
    such one, so that each part is contiguous; leading axes from a `repeat` inside are tried last.
    An array without such a dimension is replicated. Params are gathered for the time of the layer's
    forward or backward pass. To gather one layer at a time, apply it to each layer:
    `repeat(fully_sharded(layer, axis), n)`.

    Outside `jax.shard_map` it equals the layer itself, and `init` returns the whole params; inside,
    `init` returns this device's part. `specs` returns the partition.

    Raises TypeError if layer is not a layer; ValueError inside a `jax.shard_map` that does not map
    the axis, and for params that are neither whole nor such a part.

    >>> import fnn
    >>> layer = fully_sharded(fnn.dense(2, 1), "data")
    >>> layer.forward(layer.init(jax.random.key(0)), jax.numpy.zeros((3, 2)))[0].shape
    (3, 1)
    """
    check_layer("fully_sharded", layer)

    def init(key: Array) -> Params:
        params = layer.init(key)
        if not is_mapped("fully_sharded", axis):
            return params
        n = jax.lax.axis_size(axis)

        def part(a: Array, copies: int) -> Array:
            rows_first = [*range(copies, a.ndim), *reversed(range(copies))]
            dim = next((dim for dim in rows_first if a.shape[dim] % n == 0), -1)
            return a if n == 1 or axis in varying(a) else part_of(a, axis, dim)

        return jax.tree.map(part, params, _copies(params))

    def gathered(params: Params) -> tuple[Params, Any]:
        """The whole params, and the dimension along which each was split, -1 for none."""
        whole = jax.eval_shape(lambda: layer.init(jax.random.key(0)))
        cut = partial(cut_dim, "fully_sharded", jax.lax.axis_size(axis))
        dims = jax.tree.map(lambda part, a: cut(a.shape, part.shape), params, whole)

        def gather(part: Array, dim: int) -> Array:
            return part if dim < 0 else jax.lax.all_gather(part, axis, axis=dim, tiled=True)

        return jax.tree.map(gather, params, dims), dims

    def forward(params: Params, x: Tree) -> tuple[Tree, Residuals]:
        whole = gathered(params)[0] if is_mapped("fully_sharded", axis) else params
        return layer.forward(whole, x)

    def backward(params: Params, residuals: Residuals, dy: Tree, reduce: Reduce = total) -> Grads:
        if not is_mapped("fully_sharded", axis):
            return layer.backward(params, residuals, dy, reduce)
        check_tracked("fully_sharded", axis)
        # Without the barrier XLA would keep the gathered params from forward to backward.
        whole, dims = gathered(jax.tree.map(jax.lax.optimization_barrier, params))
        factors, dx = layer.backward(whole, residuals, dy, lambda factor: factor)

        def one(part: Array, dim: int, factor: Factor) -> Any:
            copies = part.ndim - factor.ndim
            if 0 <= dim < copies:
                expected = "expected params that are not split along the copies of a repeat"
                got = f"got {part.shape}: write repeat(fully_sharded(layer, axis), n)"
                raise ValueError(f"fully_sharded: {expected}, {got}")
            is_own = lambda factor: dim < 0 and is_summed(factor, axis)
            summed = lambda factor: Summed(factor, axis, max(dim - copies, -1))
            of = lambda factor: reduce(factor if is_own(factor) else summed(factor))
            return for_each_copy(of, part.shape[:copies])(factor)

        return jax.tree.map(one, params, dims, factors), dx

    varies = varying_with(lambda layer: fully_sharded(layer, axis), layer)
    return Layer(init, forward, backward, varies, lambda params: [(layer, params)])


def _copies(params: Params) -> Any:
    """For each array, how many leading axes may be from a `repeat`: one fewer than the fewest axes
    of any array in the same dict, because most layers have a vector. For an array that is not in a
    dict, all axes but the last."""
    leaves, form = jax.tree.flatten_with_path(params)
    layer = lambda path: path[:-1] if path and isinstance(path[-1], DictKey) else path
    fewest: dict[Any, int] = {}
    for path, a in leaves:
        fewest[layer(path)] = min(a.ndim, fewest.get(layer(path), a.ndim))
    return jax.tree.unflatten(form, [max(0, fewest[layer(path)] - 1) for path, _ in leaves])


def cut_dim(name: str, n: int, whole: tuple[int, ...], part: tuple[int, ...]) -> int:
    """The dimension along which the shape part is 1/n of the shape whole; -1 if they are equal.

    Raises ValueError if they are neither.

    >>> cut_dim("fully_sharded", 8, (16, 3), (2, 3)), cut_dim("fully_sharded", 8, (3,), (3,))
    (0, -1)
    """
    if whole == part:
        return -1
    for dim, size in enumerate(part):
        if whole == (*part[:dim], n * size, *part[dim + 1 :]):
            return dim
    raise ValueError(f"{name}: expected {whole} or one of {n} equal parts of it, got {part}")
