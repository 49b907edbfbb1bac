"""Layers that keep fewer residuals for backward and compute the others again.

repeat(layer, n)        keeps the residuals of each copy
remat(layer)            keeps only its input, and runs forward twice (Chen et al. 2016)
repeat(remat(repeat(layer, a)), b)
                        a b copies; keeps b inputs, and during backward the residuals of a
                        copies: memory sublinear in depth for one more forward pass
reversible(f, g, n)     keeps only its output, at any depth (Gomez et al. 2017)
"""

from typing import Any

import jax
import jax.numpy as jnp

from fnn import numbers
from fnn.base import (
    Array,
    Grads,
    Layer,
    Params,
    Residuals,
    Tree,
    Varying,
    at,
    check_array,
    check_layer,
    measured,
    split,
)
from fnn.reductions import Reduce, total


def remat(layer: Layer) -> Layer:
    """The same layer, keeping only its input: backward runs forward again.

        forward    y = f(x), residuals x
        backward   y, residuals = f(x) once more, then f's own backward

    params and dparams are the layer's. This is `jax.checkpoint` for layers (Chen et al. 2016). XLA
    for the CPU removes the barrier that prevents it from reusing the first forward pass; there,
    `remat` and `jax.checkpoint` save memory only inside a loop, such as that of `repeat`.

    Raises TypeError for an argument that is not a layer.

    >>> import fnn
    >>> layer = remat(fnn.serial(fnn.dense(3, 50), fnn.tanh, fnn.dense(50, 3)))
    >>> y, residuals = layer.forward(layer.init(jax.random.key(0)), jnp.ones((5, 3)))
    >>> residuals.shape
    (5, 3)
    """
    check_layer("remat", layer)

    def forward(params: Params, x: Tree) -> tuple[Tree, Residuals]:
        return layer.forward(params, x)[0], x

    def backward(params: Params, x: Residuals, dy: Tree, reduce: Reduce = total) -> Grads:
        # Without the barrier XLA would merge the two forward passes and keep the residuals.
        params, x = _barrier((params, x))
        _, residuals = layer.forward(params, x)
        return layer.backward(params, residuals, dy, reduce)

    at_key = lambda key, statistics: remat(at(layer, key, statistics))
    varying = layer.varying and Varying(at_key, layer.varying.measure)
    return Layer(layer.init, forward, backward, varying, lambda params: [(layer, params)])


def reversible(f: Layer, g: Layer, n: int) -> Layer:
    """n reversible blocks in sequence, of which only the final output is kept.

    With x1, x2 the halves of the features of x, each block computes

        forward    y1 = x1 + f(x2),    y2 = x2 + g(y1)
        backward   x2 = y2 - g(y1),    x1 = y1 - f(x2),
                   dy1 <- dy1 + (g's dx of dy2 at y1),    dx1 = dy1,
                   dx2 = dy2 + (f's dx of dy1 at x2)

    params and dparams are a pair (f's, g's), with a leading axis of length n on every leaf.
    Gomez et al. 2017. Backward recovers each block's input by subtraction, which adds a rounding
    error in every block: `docs/memory.md` says how the gradient's error grows with depth.

    Raises TypeError for an argument that is not a layer; ValueError for n below 1, an odd
    number of features, and an f or g that changes its input's shape or dtype.

    >>> import fnn
    >>> layer = reversible(fnn.dense(2, 2), fnn.dense(2, 2), 100)
    >>> y, residuals = layer.forward(layer.init(jax.random.key(0)), jnp.ones((5, 4)))
    >>> residuals.shape
    (5, 4)
    """
    for name, layer in (("f", f), ("g", g)):
        check_layer(f"reversible: {name}", layer)
    n = numbers.count("reversible", n=n)

    def init(key: Array) -> Params:
        pairs = zip((f, g), keys_of(key), strict=True)
        return tuple(jax.vmap(layer.init)(keys) for layer, keys in pairs)

    def blocks(keys: Any, statistics: Tree) -> Layer:
        """The n blocks, each at its keys and its statistics."""

        def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
            def one(halves: tuple[Array, Array], block: Any) -> tuple[tuple[Array, Array], None]:
                x1, x2 = halves
                (pf, pg), (f, g) = block[0], _pair_at(*block[1:])
                y1 = x1 + _same(f.forward(pf, x2)[0], x2)
                return (y1, x2 + _same(g.forward(pg, y1)[0], y1)), None

            halves, _ = jax.lax.scan(one, _halves(x), (params, keys, statistics), length=n)
            y = jnp.concatenate(halves, -1)
            return y, y

        def backward(params: Params, y: Residuals, dy: Array, reduce: Reduce = total) -> Grads:
            def one(later: Tree, block: Any) -> tuple[Tree, Params]:
                (y1, y2), (dy1, dy2) = later
                (pf, pg), (f, g) = block[0], _pair_at(*block[1:])
                gy, saved = g.forward(pg, y1)
                dpg, d = g.backward(pg, saved, dy2, reduce)
                x2, dy1 = y2 - gy, dy1 + d
                fx, saved = f.forward(pf, x2)
                dpf, d = f.backward(pf, saved, dy1, reduce)
                return ((y1 - fx, x2), (dy1, dy2 + d)), (dpf, dpg)

            later, each = (_halves(y), _halves(dy)), (params, keys, statistics)
            (_, dx), dparams = jax.lax.scan(one, later, each, length=n, reverse=True)
            return dparams, jnp.concatenate(dx, -1)

        return Layer(init, forward, backward)

    def _pair_at(keys: Any, statistics: Tree) -> tuple[Layer, ...]:
        pairs = zip((f, g), keys or (None, None), statistics or (None, None), strict=True)
        return tuple(at(layer, k, s) for layer, k, s in pairs)

    def keys_of(key: Array | None) -> Any:
        return None if key is None else tuple(split(k, n) for k in split(key, 2))

    def measure(params: Params, x: Array, key: Array | None) -> tuple[Array, Any]:
        def one(halves: tuple[Array, Array], block: Any) -> tuple[tuple[Array, Array], Any]:
            (x1, x2), ((pf, pg), keys) = halves, block
            kf, kg = keys or (None, None)
            fx, of_f = measured(f, pf, x2, kf)
            gy, of_g = measured(g, pg, x1 + fx, kg)
            return (x1 + fx, x2 + gy), (of_f, of_g)

        y, statistics = jax.lax.scan(one, _halves(x), (params, keys_of(key)), length=n)
        return jnp.concatenate(y, -1), statistics

    varies = f.varying or g.varying
    varying = varies and Varying(lambda key, s: blocks(keys_of(key), s), measure)
    return blocks(None, None)._replace(varying=varying)


def _barrier(tree: Tree) -> Any:
    """`jax.lax.optimization_barrier`, once per group of arrays that vary along the same mesh axes:
    inside `jax.shard_map`, a single one would make all arrays vary along the axes of any."""
    leaves, form = jax.tree.flatten(tree)
    axes = [jax.typeof(leaf).mat.varying for leaf in leaves]
    for same in dict.fromkeys(axes):
        places = [i for i, one in enumerate(axes) if one == same]
        behind = jax.lax.optimization_barrier([leaves[i] for i in places])
        for i, leaf in zip(places, behind, strict=True):
            leaves[i] = leaf
    return jax.tree.unflatten(form, leaves)


def _halves(x: Array) -> Any:
    check_array("reversible", x)
    if x.shape[-1] % 2:
        raise ValueError(f"reversible: expected an even number of features, got {x.shape}")
    return tuple(jnp.split(x, 2, -1))


def _same(y: Array, x: Array) -> Array:
    if (y.shape, y.dtype) != (x.shape, x.dtype):
        got = f"got {x.dtype}{x.shape} -> {y.dtype}{y.shape}"
        raise ValueError(f"reversible: expected f and g to keep shape and dtype, {got}")
    return y
