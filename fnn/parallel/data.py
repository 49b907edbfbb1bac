"""Data parallelism: layers whose examples are split over devices, with whole or cut parameters."""

from functools import partial
from typing import Any

import jax
from jax.tree_util import DictKey

from fnn.axes import check_tracked, is_mapped, varying
from fnn.base import Array, Grads, Layer, Params, Residuals, check_layer, measured, varying_with
from fnn.parallel.factors import Scattered, Summed, is_over
from fnn.reductions import Factor, Reduce, for_each_copy, total


def replicated(layer: Layer, axis: str) -> Layer:
    """The layer on every device of a mesh's axis: whole params, the device's own examples.

        forward    y, residuals = f(params, x)
        backward   dx = f's dx,    dparams = f's dparams, summed over the axis

    So dparams is the vector-Jacobian product over all devices' examples. Outside `jax.shard_map`
    it is the layer itself.

    Raises TypeError for an argument that is not a layer; inside a `jax.shard_map` that does not
    map the axis, ValueError.

    >>> import fnn
    >>> layer = replicated(fnn.dense(2, 1), "data")
    >>> layer.forward(layer.init(jax.random.key(0)), jax.numpy.zeros((3, 2)))[0].shape
    (3, 1)
    """
    check_layer("replicated", layer)

    def forward(params: Params, x: Any) -> tuple[Any, Residuals]:
        is_mapped("replicated", axis)
        return layer.forward(params, x)

    def backward(params: Params, residuals: Residuals, dy: Any, reduce: Reduce = total) -> Grads:
        if not is_mapped("replicated", axis):
            return layer.backward(params, residuals, dy, reduce)
        check_tracked("replicated", axis)

        def summed(factor: Factor) -> Any:
            return reduce(factor if is_over(factor, axis) else Summed(factor, axis))

        return layer.backward(params, residuals, dy, summed)

    varies = varying_with(layer, lambda layer: replicated(layer, axis), partial(measured, layer))
    return Layer(layer.init, forward, backward, varies, lambda params: [(layer, params)])


def fully_sharded(layer: Layer, axis: str) -> Layer:
    """The layer on every device of a mesh's axis: a part of the params, the device's own examples.
    Rajbhandari et al. 2020, "ZeRO", stage 3.

        forward    y, residuals = f(gather(params), x)
        backward   dx = f's dx at gather(params),
                   dparams = f's dparams, summed over the axis, this device's part

    Each array is cut along a dimension that the number of devices divides; one without such a
    dimension stays whole. Rows come first, so that each part is contiguous, and the axes that a
    `repeat` inside may have put in front come last. Parameters are gathered only while the
    layer's own forward or backward pass runs. So put it around each layer, as in
    `repeat(fully_sharded(layer, axis), n)`: then one layer's params are whole at a time.

    Outside `jax.shard_map` it is the layer itself, and `init` returns the whole params; inside,
    `init` returns this device's part. `specs` gives the partition.

    Raises TypeError for an argument that is not a layer; inside a `jax.shard_map` that does not
    map the axis, and for params that are neither whole nor such a part, ValueError.

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
            dims = [dim for dim in rows_first if a.shape[dim] % n == 0]
            if n == 1 or not dims or axis in varying(a):
                return a
            size = a.shape[dims[0]] // n
            return jax.lax.dynamic_slice_in_dim(a, jax.lax.axis_index(axis) * size, size, dims[0])

        return jax.tree.map(part, params, _copies(params))

    def gathered(params: Params) -> tuple[Params, Any]:
        """The whole params, and the dimension along which each was cut, -1 for none."""
        whole = jax.eval_shape(lambda: layer.init(jax.random.key(0)))
        cut = partial(cut_dim, "fully_sharded", jax.lax.axis_size(axis))
        dims = jax.tree.map(lambda part, a: cut(a.shape, part.shape), params, whole)

        def gather(part: Array, dim: int) -> Array:
            return part if dim < 0 else jax.lax.all_gather(part, axis, axis=dim, tiled=True)

        return jax.tree.map(gather, params, dims), dims

    def forward(params: Params, x: Any) -> tuple[Any, Residuals]:
        if not is_mapped("fully_sharded", axis):
            return layer.forward(params, x)
        return layer.forward(gathered(params)[0], x)

    def backward(params: Params, residuals: Residuals, dy: Any, reduce: Reduce = total) -> Grads:
        if not is_mapped("fully_sharded", axis):
            return layer.backward(params, residuals, dy, reduce)
        check_tracked("fully_sharded", axis)
        # Without the barrier XLA would keep the whole params from forward to backward.
        whole, dims = gathered(jax.tree.map(jax.lax.optimization_barrier, params))
        factors, dx = layer.backward(whole, residuals, dy, lambda factor: factor)

        def one(part: Array, dim: int, factor: Factor) -> Any:
            copies = part.ndim - factor.ndim
            if 0 <= dim < copies and not is_over(factor, axis):
                raise ValueError(
                    f"fully_sharded: params {part.shape} are cut along the copies of a repeat; "
                    f"put fully_sharded inside: repeat(fully_sharded(layer, axis), n)"
                )

            def of(factor: Factor) -> Any:
                if is_over(factor, axis):
                    return reduce(factor)
                cut = dim >= 0
                return reduce(
                    Scattered(factor, axis, dim - copies) if cut else Summed(factor, axis)
                )

            return for_each_copy(of, part.shape[:copies])(factor)

        return jax.tree.map(one, params, dims, factors), dx

    def measure(params: Params, x: Any, key: Array | None) -> tuple[Any, Any]:
        mapped = is_mapped("fully_sharded", axis)
        return measured(layer, gathered(params)[0] if mapped else params, x, key)

    varies = varying_with(layer, lambda layer: fully_sharded(layer, axis), measure)
    return Layer(init, forward, backward, varies, lambda params: [(layer, params)])


def _copies(params: Params) -> Any:
    """For each array, how many of its first axes a `repeat` may have put in front: one fewer than
    the fewest axes of any array in the same dict, for most layers have a vector. Of an array that
    is in no dict nothing is known, and all axes but the last may be such."""
    leaves, form = jax.tree.flatten_with_path(params)
    layer = lambda path: path[:-1] if path and isinstance(path[-1], DictKey) else path
    fewest: dict[Any, int] = {}
    for path, a in leaves:
        fewest[layer(path)] = min(a.ndim, fewest.get(layer(path), a.ndim))
    return jax.tree.unflatten(form, [max(0, fewest[layer(path)] - 1) for path, _ in leaves])


def cut_dim(name: str, n: int, whole: tuple[int, ...], part: tuple[int, ...]) -> int:
    """The dimension along which part is one of n parts of whole; -1 where it is all of it.

    Raises ValueError where it is neither.

    >>> cut_dim("fully_sharded", 8, (16, 3), (2, 3)), cut_dim("fully_sharded", 8, (3,), (3,))
    (0, -1)
    """
    if whole == part:
        return -1
    different = [dim for dim, (a, b) in enumerate(zip(whole, part, strict=False)) if a != b]
    if len(whole) == len(part) and len(different) == 1:
        (dim,) = different
        if whole[dim] == n * part[dim]:
            return dim
    raise ValueError(f"{name}: expected {whole} or one of {n} equal parts of it, got {part}")
