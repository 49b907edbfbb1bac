"""Tensor parallelism: layers split over several devices, all with the same examples.
Shoeybi et al. 2019, "Megatron-LM".

`copy_to` comes before the layers that are split and `sum_over` after them; the backward pass of
each is the forward pass of the other.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fnn.activations import identity, relu
from fnn.axes import cast, check_tracked, is_mapped, varying
from fnn.base import Array, Grads, Layer, Params, Residuals, Tree, at, check_layer, measured
from fnn.layers.dense import dense
from fnn.models import perceptron
from fnn.parallel.data import cut_dim
from fnn.parallel.factors import Shard, part_of
from fnn.reductions import Factor, Reduce, for_each_copy, total


def copy_to(axis: str) -> Layer:
    """Replicate x over the devices of the axis; backward sums dx.

        forward    y  = x
        backward   dx = dy, summed over the axis

    Outside `jax.shard_map` it is the identity. Raises ValueError inside a `jax.shard_map`
    that does not map the axis. This is f in Shoeybi et al. 2019.

    >>> copy_to("model").forward((), jnp.ones(2))[0]
    Array([1., 1.], dtype=float32)
    """

    def forward(params: Params, x: Tree) -> tuple[Tree, Residuals]:
        if is_mapped("copy_to", axis) and jax.lax.axis_size(axis) > 1:
            x = jax.tree.map(lambda a: cast(a, frozenset({axis})), x)
        return x, ()

    def backward(params: Params, residuals: Residuals, dy: Tree, reduce: Reduce = total) -> Grads:
        return (), jax.lax.psum(dy, axis) if is_mapped("copy_to", axis) else dy

    return Layer(lambda key: (), forward, backward)


def sum_over(axis: str) -> Layer:
    """Sum x over the devices of the axis; every device gets the sum.

        forward    y  = x, summed over the axis
        backward   dx = dy

    Outside `jax.shard_map` it is the identity. Raises ValueError inside a `jax.shard_map`
    that does not map the axis. This is g in Shoeybi et al. 2019.

    >>> sum_over("model").forward((), jnp.ones(2))[0]
    Array([1., 1.], dtype=float32)
    """

    def forward(params: Params, x: Tree) -> tuple[Tree, Residuals]:
        return jax.lax.psum(x, axis) if is_mapped("sum_over", axis) else x, ()

    def backward(params: Params, residuals: Residuals, dy: Tree, reduce: Reduce = total) -> Grads:
        is_mapped("sum_over", axis)
        return (), dy

    return Layer(lambda key: (), forward, backward)


def sharded(make: Callable[[int], Layer], axis: str) -> Layer:
    """A layer split into n equal parts, one per device of the axis: make(n) is one part, make(1)
    the whole layer.

    make(n) is the same layer with one of its widths divided by n, such as make = lambda n:
    dense(64, 256 // n). A parameter that is smaller in make(n) than in make(1) is split along that
    dimension; the others are replicated and must have the same gradient on all devices.

    Outside `jax.shard_map` it equals make(1), and `init` returns the whole params; inside, `init`
    returns this device's part.

    Raises TypeError if make does not return layers; ValueError inside a `jax.shard_map` that does
    not map the axis, for params that are not divisible by n, and for a replicated parameter whose
    gradient differs between devices.

    >>> import fnn
    >>> hidden = sharded(lambda n: fnn.dense(4, 8 // n), "model")
    >>> block = fnn.serial(copy_to("model"), hidden, fnn.relu)
    >>> block.forward(block.init(jax.random.key(0)), jnp.ones((3, 4)))[0].shape
    (3, 8)
    """
    whole = make(1)
    check_layer("sharded: make(1)", whole)

    def here() -> Layer:
        if not is_mapped("sharded", axis):
            return whole
        layer = make(jax.lax.axis_size(axis))
        check_layer("sharded: make(n)", layer)
        return layer

    def dims(part: Layer) -> Any:
        """The dimension along which each parameter is split, -1 for none."""
        sizes = [jax.eval_shape(layer.init, jax.random.key(0)) for layer in (whole, part)]
        cut = partial(cut_dim, "sharded", jax.lax.axis_size(axis))
        return jax.tree.map(lambda a, b: cut(a.shape, b.shape), *sizes)

    def init(key: Array) -> Params:
        params = whole.init(key)
        if not is_mapped("sharded", axis):
            return params
        return jax.tree.map(lambda a, dim: part_of(a, axis, dim), params, dims(here()))

    def forward(params: Params, x: Tree) -> tuple[Tree, Residuals]:
        return here().forward(params, x)

    def backward(params: Params, residuals: Residuals, dy: Tree, reduce: Reduce = total) -> Grads:
        layer = here()
        if not is_mapped("sharded", axis):
            return layer.backward(params, residuals, dy, reduce)
        check_tracked("sharded", axis)
        factors, dx = layer.backward(params, residuals, dy, lambda factor: factor)

        def one(part: Array, dim: int, factor: Factor) -> Any:
            if dim < 0 and any(axis in varying(a) for a in jax.tree.leaves(factor)):
                where = f"params {part.shape} are replicated over {axis!r}"
                raise ValueError(f"sharded: {where}, but their gradient differs between devices")
            of = lambda factor: reduce(factor if dim < 0 else Shard(factor, axis))
            return for_each_copy(of, part.shape[: part.ndim - factor.ndim])(factor)

        return jax.tree.map(one, params, dims(layer), factors), dx

    layer_at = lambda key, statistics: sharded(lambda n: at(make(n), key, statistics), axis)
    measure = lambda params, x, key: measured(here(), params, x, key)
    varies = whole.varying and whole.varying._replace(at=layer_at, measure=measure)
    return Layer(init, forward, backward, varies)


def _part(name: str, width: int, n: int, axis: str) -> int:
    if width % n:
        reason = f"expected a width divisible by the {n} devices of {axis!r}, got {width}"
        raise ValueError(f"{name}: {reason}")
    return width // n


def column_dense(d_in: int, d_out: int, axis: str) -> Layer:
    """A dense layer whose outputs are split over the devices of the axis: each computes a part of
    y.

    params are those of `dense`; W and b are split along their first dimension. On device i:

        forward    Z_i = X W_i^T + b_i
        backward   dX = sum_i dZ_i W_i,    dW_i = dZ_i^T X,    db_i = sum over the batch of dZ_i

    Raises ValueError as `dense`, and for a d_out that is not divisible by the number of devices.

    >>> layer = column_dense(4, 8, "model")
    >>> layer.forward(layer.init(jax.random.key(0)), jnp.ones((3, 4)))[0].shape
    (3, 8)
    """
    name = f"column_dense({d_in}, {d_out})"
    part = lambda n: dense(d_in, _part(name, d_out, n, axis))
    copy, layer = copy_to(axis), sharded(part, axis)

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        return layer.forward(params, copy.forward((), x)[0])

    def backward(params: Params, x: Array, dy: Array, reduce: Reduce = total) -> Grads:
        dparams, dx = layer.backward(params, x, dy, reduce)
        return dparams, copy.backward((), (), dx)[1]

    return Layer(layer.init, forward, backward)


def row_dense(d_in: int, d_out: int, axis: str) -> Layer:
    """A dense layer whose inputs are split over the devices of the axis: each has a part of x.

    params are those of `dense`; W is split along its second dimension, b is replicated and added
    once, after the sum. On device i:

        forward    Z = sum_i X_i W_i^T + b
        backward   dX_i = dZ W_i,    dW_i = dZ^T X_i,    db = sum over the batch of dZ

    Raises ValueError as `dense`, and for a d_in that is not divisible by the number of devices.

    >>> layer = row_dense(8, 4, "model")
    >>> layer.forward(layer.init(jax.random.key(0)), jnp.ones((3, 8)))[0].shape
    (3, 4)
    """
    name = f"row_dense({d_in}, {d_out})"
    cut = lambda n: dense(_part(name, d_in, n, axis), d_out)
    layer, add = sharded(cut, axis), sum_over(axis)

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        part, residuals = layer.forward({**params, "b": jnp.zeros_like(params["b"])}, x)
        return add.forward((), part)[0] + params["b"], residuals

    return Layer(layer.init, forward, layer.backward)


def mlp(
    sizes: Sequence[int], axis: str, activation: Layer = relu, output: Layer = identity
) -> Layer:
    """`fnn.mlp` with hidden layers split over the devices of the axis, and the same params.

    Each pair of dense layers is a `column_dense` and a `row_dense`, which communicates once in
    forward and once in backward. If the number of dense layers is odd, the last is replicated.
    `activation` must act on each feature independently.

    Raises as `fnn.mlp` does; inside a `jax.shard_map`, ValueError for a width inside a pair that is
    not divisible by the number of devices.

    >>> network = mlp((784, 512, 256, 10), "model")
    >>> network.forward(network.init(jax.random.key(0)), jnp.ones((3, 784)))[0].shape
    (3, 10)
    """
    paired = len(sizes) - 1 - (len(sizes) - 1) % 2

    def linear(i: int, d_in: int, d_out: int) -> Layer:
        if i >= paired:
            return dense(d_in, d_out)
        return (row_dense if i % 2 else column_dense)(d_in, d_out, axis)

    return perceptron(sizes, linear, activation, output)
