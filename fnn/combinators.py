"""Layers made of layers. `backward` is `forward` read from right to left."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import jax

from fnn.base import Array, Layer, Params, Residuals, check_layer
from fnn.reductions import total


class Network(Layer):
    """A layer that remembers which layers it was made of; otherwise a `Layer` like any other.

    parts(params) gives, from input to output, each layer with its own params. What
    `_replace` makes has no parts: nobody knows any more that it is made of them.
    """

    parts: Callable[[Params], list[tuple[Layer, Params]]] = staticmethod(lambda params: [])

    @classmethod
    def of(cls, layer: Layer, parts: Callable[[Params], list[tuple[Layer, Params]]]) -> "Network":
        """The layer, remembering its parts."""
        network = cls(*layer)
        network.parts = parts
        return network


def serial(*layers: Layer) -> Layer:
    """Function composition: A(0) = x, A(l) = layer_l(A(l-1)), y = A(L).

    params, residuals and dparams are tuples with one entry a layer. `serial()` is the
    identity, and serial(f, serial(g, h)) computes what serial(serial(f, g), h) does.

    Raises TypeError for an argument that is not a layer, or whose backward takes no
    `reduce`; ValueError for params with another number of entries.
    """
    for i, layer in enumerate(layers):
        check_layer(f"serial: argument {i}", layer)

    def init(key: Array) -> Params:
        keys = jax.random.split(key, len(layers)) if layers else ()
        return tuple(layer.init(k) for layer, k in zip(layers, keys, strict=True))

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        _check_entries(params)
        residuals = []
        for layer, p in zip(layers, params, strict=True):
            x, saved = layer.forward(p, x)
            residuals.append(saved)
        return x, tuple(residuals)

    def backward(params, residuals, dy, reduce=total):
        _check_entries(params)
        dparams = []
        for layer, p, saved in reversed(list(zip(layers, params, residuals, strict=True))):
            dp, dy = layer.backward(p, saved, dy, reduce)
            dparams.append(dp)
        return tuple(reversed(dparams)), dy

    def _check_entries(params: Params) -> None:
        if not isinstance(params, tuple | list) or len(params) != len(layers):
            got = len(params) if isinstance(params, tuple | list) else type(params).__name__
            raise ValueError(f"serial: expected params for {len(layers)} layers, got {got}")

    parts = lambda params: list(zip(layers, params, strict=True))  # noqa: E731
    return Network.of(Layer(init, forward, backward), parts)


def skip(layer: Layer) -> Layer:
    """y = x + f(x), dx = dy + (the layer's own dx). He et al. 2016.

    params, residuals and dparams are the layer's. Raises TypeError for an argument that
    is not a layer; ValueError where f(x) has another shape than x.
    """
    check_layer("skip", layer)

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        y, residuals = layer.forward(params, x)
        _check_same("skip", x, y)
        return x + y, residuals

    def backward(params, residuals, dy, reduce=total):
        dparams, dx = layer.backward(params, residuals, dy, reduce)
        return dparams, dy + dx

    return Network.of(Layer(layer.init, forward, backward), lambda params: [(layer, params)])


def repeat(layer: Layer, n: int) -> Layer:
    """n copies of one layer after another, each with parameters of its own.

    Computes what serial(layer, ..., layer) does, by one `lax.scan` each way: it compiles
    in the same time at any depth. params and dparams are the layer's, with an axis of
    length n put in front of every leaf.

    Raises TypeError for an argument that is not a layer; ValueError for n below 1, for
    params of another depth, and where the layer changes its input's shape or dtype.
    """
    check_layer("repeat", layer)
    if n < 1:
        raise ValueError(f"repeat: expected n of at least 1, got {n}")

    def init(key: Array) -> Params:
        return jax.vmap(layer.init)(jax.random.split(key, n))

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        _check_depth(params)

        def one(x, p):
            y, residuals = layer.forward(p, x)
            _check_same("repeat", x, y)
            return y, _Kept.of(residuals, x, y)

        y, kept = jax.lax.scan(one, x, params, length=n)
        return y, (kept, y)

    def backward(params, residuals, dy, reduce=total):
        _check_depth(params)
        kept, y = residuals

        def one(later, earlier):
            (dy, y), (p, kept) = later, earlier
            dp, dx = layer.backward(p, kept.residuals(y), dy, reduce)
            return (dx, kept.x), dp

        (dx, _), dparams = jax.lax.scan(one, (dy, y), (params, kept), length=n, reverse=True)
        return dparams, dx

    def _check_depth(params: Params) -> None:
        for leaf in jax.tree.leaves(params):
            if leaf.ndim == 0 or leaf.shape[0] != n:
                raise ValueError(
                    f"repeat: expected params with a leading axis of {n}, got {leaf.shape}"
                )

    def parts(params: Params) -> list[tuple[Layer, Params]]:
        return [(layer, jax.tree.map(itemgetter(i), params)) for i in range(n)]

    return Network.of(Layer(init, forward, backward), parts)


@partial(
    jax.tree_util.register_dataclass, data_fields=["x", "others"], meta_fields=["places", "form"]
)
@dataclass(frozen=True)
class _Kept:
    """One copy's residuals with each array once: its output is the next copy's input.

    A residual that is the copy's input x or output y, or another residual, is not kept
    beside it. `places` has for each residual its place in (x, y, *others).
    """

    x: Array
    others: list[Array]
    places: tuple[int, ...]
    form: Any

    @classmethod
    def of(cls, residuals: Residuals, x: Array, y: Array) -> "_Kept":
        leaves, form = jax.tree.flatten(residuals)
        kept = [x, y]
        for leaf in leaves:
            if not any(leaf is array for array in kept):
                kept.append(leaf)
        # list.index would compare arrays by value; these are the same objects or not.
        places = tuple(next(i for i, a in enumerate(kept) if a is leaf) for leaf in leaves)
        return cls(x, kept[2:], places, form)

    def residuals(self, y: Array) -> Residuals:
        kept = [self.x, y, *self.others]
        return jax.tree.unflatten(self.form, [kept[i] for i in self.places])


def _check_same(name: str, x: Array, y: Array) -> None:
    if (x.shape, x.dtype) != (y.shape, y.dtype):
        raise ValueError(
            f"{name}: expected a layer that keeps shape and dtype, "
            f"got {x.dtype}{x.shape} -> {y.dtype}{y.shape}"
        )
