"""Layers made of layers. `backward` is `forward` read from right to left.

A combinator of layers that vary also varies (see `Varying`): at a key, it is the same combinator
of its layers, each at a key of its own.
"""

from collections.abc import Callable
from functools import partial, reduce as fold
from itertools import accumulate
from operator import index, itemgetter
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
    check_layer,
    is_floating,
    measured,
    measuring,
    pytree,
    split,
    varying_with,
)
from fnn.initializers import lecun_normal
from fnn.reductions import (
    Direct,
    Factor,
    Masked,
    Outer,
    Reduce,
    Rows,
    Widened,
    Zero,
    for_each_copy,
    total,
)


def serial(*layers: Layer) -> Layer:
    """Function composition: A(0) = x, A(l) = layer_l(A(l-1)), y = A(L).

    params, residuals and dparams are tuples with one entry per layer. `serial()` is the
    identity, and serial(f, serial(g, h)) computes the same as serial(serial(f, g), h).

    Raises TypeError for an argument that is not a layer, or whose backward takes no
    `reduce`; ValueError for params with a different number of entries.

    >>> import fnn
    >>> network = serial(fnn.dense(3, 2), fnn.tanh)
    >>> network.forward(network.init(jax.random.key(0)), jnp.ones((5, 3)))[0].shape
    (5, 2)
    """
    _check_layers("serial", layers)
    parts = partial(_paired, "serial", layers)

    def forward(params: Params, x: Tree) -> tuple[Tree, Residuals]:
        residuals = []
        for layer, p in parts(params):
            x, saved = layer.forward(p, x)
            residuals.append(saved)
        return x, tuple(residuals)

    def backward(params: Params, residuals: Residuals, dy: Tree, reduce: Reduce = total) -> Grads:
        dparams = []
        for (layer, p), saved in reversed(list(zip(parts(params), residuals, strict=True))):
            dp, dy = layer.backward(p, saved, dy, reduce)
            dparams.append(dp)
        return tuple(reversed(dparams)), dy

    return Layer(partial(_init, layers), forward, backward, _varying(serial, layers), parts)


def fork(*layers: Layer) -> Layer:
    """The same input to each layer: y = (layer_1(x), ..., layer_K(x)), a tuple.

    params, residuals and dparams are tuples with one entry per layer; dx is the sum of the
    layers' dx. `add` and `concatenate` merge such a tuple; as a network's output it is one
    prediction per head.

    Raises TypeError for an argument that is not a layer; ValueError for no layers and for
    params with a different number of entries.

    >>> import fnn
    >>> heads = fork(fnn.dense(3, 2), fnn.dense(3, 1))
    >>> y, _ = heads.forward(heads.init(jax.random.key(0)), jnp.ones((5, 3)))
    >>> [head.shape for head in y]
    [(5, 2), (5, 1)]
    """
    _check_layers("fork", layers)
    if not layers:
        raise ValueError("fork: expected at least one layer")
    parts = partial(_paired, "fork", layers)

    def forward(params: Params, x: Tree) -> tuple[Tree, Residuals]:
        y, residuals = zip(*(layer.forward(p, x) for layer, p in parts(params)), strict=True)
        return y, residuals

    def backward(params: Params, residuals: Residuals, dy: Tree, reduce: Reduce = total) -> Grads:
        entries = zip(parts(params), residuals, dy, strict=True)
        grads = [layer.backward(p, saved, d, reduce) for (layer, p), saved, d in entries]
        dparams, dxs = zip(*grads, strict=True)
        return dparams, fold(partial(jax.tree.map, jnp.add), dxs)

    return Layer(partial(_init, layers), forward, backward, _varying(fork, layers))


def gated(layer: Layer, gate: Layer) -> Layer:
    """y = f(x) * g(x), entry by entry: the gated linear unit of a layer f and a gate g.
    Dauphin et al. 2017.

    dx is the sum of f's dx for the cotangent dy * g(x) and g's dx for dy * f(x). params and dparams
    are pairs (f's, g's). `gated(dense(n, m), serial(dense(n, m), silu))` is the first half of
    SwiGLU (Shazeer 2020).

    Raises TypeError for an argument that is not a layer; ValueError for params with a different
    number of entries, and if f(x) and g(x) differ in shape or dtype.

    >>> import fnn
    >>> layer = gated(fnn.identity, fnn.relu)
    >>> layer.forward(((), ()), jnp.array([-1.0, 3.0]))[0]
    Array([-0.,  9.], dtype=float32)
    """
    _check_layers("gated", (layer, gate))
    both = fork(layer, gate)

    def forward(params: Params, x: Tree) -> tuple[Array, Residuals]:
        (a, b), residuals = both.forward(params, x)
        _check_same("gated", a, b)
        return a * b, (a, b, residuals)

    def backward(params: Params, residuals: Residuals, dy: Tree, reduce: Reduce = total) -> Grads:
        a, b, of_layers = residuals
        return both.backward(params, of_layers, (dy * b, dy * a), reduce)

    varying = _varying(gated, (layer, gate), itemgetter(2))
    return Layer(both.init, forward, backward, varying)


def skip(layer: Layer) -> Layer:
    """y = x + f(x), dx = dy + (the layer's dx). He et al. 2016.

    x and f(x) may be trees; of arrays that are not floating-point, such as a mask, y has those of
    f(x). params, residuals and dparams are the layer's.

    Raises TypeError for an argument that is not a layer; ValueError if f(x) and x differ in shape
    or dtype.

    >>> import fnn
    >>> skip(fnn.relu).forward((), jnp.array([-1.0, 2.0]))[0]
    Array([-1.,  4.], dtype=float32)
    """
    check_layer("skip", layer)

    def forward(params: Params, x: Tree) -> tuple[Tree, Residuals]:
        y, residuals = layer.forward(params, x)
        _check_same("skip", x, y)
        return jax.tree.map(lambda a, b: a + b if is_floating(a) else b, x, y), residuals

    def backward(params: Params, residuals: Residuals, dy: Tree, reduce: Reduce = total) -> Grads:
        dparams, dx = layer.backward(params, residuals, dy, reduce)
        return dparams, jax.tree.map(jnp.add, dy, dx)

    parts = lambda params: [(layer, params)]
    return Layer(layer.init, forward, backward, varying_with(skip, layer), parts)


def on(i: int, layer: Layer) -> Layer:
    """The layer applied to part i of a tuple: y_i = f(x_i), and y_j = x_j for the other parts.

    params, residuals and dparams are the layer's; dx_i is the layer's dx, and dx_j = dy_j.

    Raises TypeError for an argument that is not a layer and an i that is not a whole number;
    ValueError for i below 0 and for an x that is not a tuple of more than i parts.

    >>> import fnn
    >>> on(1, fnn.relu).forward((), (jnp.array([-1.0]), jnp.array([-1.0])))[0]
    (Array([-1.], dtype=float32), Array([0.], dtype=float32))
    """
    check_layer(f"on: part {i}", layer)
    numbers.nonnegative("on", i=index(i))

    def forward(params: Params, x: Tree) -> tuple[Tree, Residuals]:
        if not isinstance(x, tuple) or len(x) <= i:
            got = f"{len(x)} parts" if isinstance(x, tuple) else type(x).__name__
            raise ValueError(f"on({i}): expected a tuple of more than {i} parts, got {got}")
        y, residuals = layer.forward(params, x[i])
        return (*x[:i], y, *x[i + 1 :]), residuals

    def backward(params: Params, residuals: Residuals, dy: Tree, reduce: Reduce = total) -> Grads:
        dparams, dx = layer.backward(params, residuals, dy[i], reduce)
        return dparams, (*dy[:i], dx, *dy[i + 1 :])

    return Layer(layer.init, forward, backward, varying_with(partial(on, i), layer))


def repeat(layer: Layer, n: int) -> Layer:
    """n copies of one layer after another, each with parameters of its own.

    Computes the same as serial(layer, ..., layer), by one `lax.scan` in forward and one in
    backward: the compile time does not depend on n. params and dparams are the layer's, with a
    leading axis of length n on every leaf. In training each copy has a key of its own.

    Raises TypeError for an argument that is not a layer; ValueError for n below 1, for params
    whose leading axis is not n, and if the layer changes its input's shape or dtype.

    >>> import fnn
    >>> deep = repeat(fnn.serial(fnn.dense(4, 4), fnn.tanh), 100)
    >>> deep.init(jax.random.key(0))[0]["W"].shape
    (100, 4, 4)
    """
    check_layer("repeat", layer)
    n = numbers.count("repeat", n=n)

    init = lambda key: jax.vmap(layer.init)(split(key, n))
    each = lambda key: None if key is None else split(key, n)

    def copies(keys: Array | None, statistics: Tree) -> Layer:
        """The n copies, each at its key and its statistics."""

        def forward(params: Params, x: Tree) -> tuple[Tree, Residuals]:
            _check_depth(n, params)

            def one(x: Tree, copy: Any) -> tuple[Any, _Kept]:
                p, k, s = copy
                y, residuals = at(layer, k, s).forward(p, x)
                _check_same("repeat", x, y)
                return y, _Kept.of(residuals, x, y)

            y, kept = jax.lax.scan(one, x, (params, keys, statistics), length=n)
            return y, (kept, y)

        def backward(
            params: Params, residuals: Residuals, dy: Tree, reduce: Reduce = total
        ) -> Grads:
            _check_depth(n, params)
            kept, y = residuals

            def one(later: Tree, copy: Any) -> tuple[Tree, Params]:
                (dy, y), (p, k, s, kept) = later, copy
                dp, dx = at(layer, k, s).backward(p, kept.residuals(y), dy, reduce)
                return (dx, kept.x), dp

            entries = (params, keys, statistics, kept)
            (dx, _), dparams = jax.lax.scan(one, (dy, y), entries, length=n, reverse=True)
            return dparams, dx

        def parts(params: Params) -> list[tuple[Layer, Params]]:
            entries = [jax.tree.map(itemgetter(i), (keys, statistics, params)) for i in range(n)]
            return [(at(layer, k, s), p) for k, s, p in entries]

        return Layer(init, forward, backward, None, parts)

    def measure(params: Params, x: Tree, key: Array | None) -> tuple[Any, Any]:
        one = lambda x, copy: measured(layer, copy[0], x, copy[1])
        return jax.lax.scan(one, x, (params, each(key)), length=n)

    varying = layer.varying and Varying(lambda key, s: copies(each(key), s), measure)
    return copies(None, None)._replace(varying=varying)


def masked(layer: Layer, mask: Params) -> Layer:
    """The layer with parameters params * mask: weights are 0 where mask is 0.

    mask is a tree like params of constant arrays, numbers or booleans. dparams is the layer's
    times mask, so masked entries get a gradient of 0. residuals and dx are the layer's, at
    params * mask. Pruning: Frankle & Carbin 2019.

    Raises TypeError for an argument that is not a layer; ValueError if the structure or the
    shapes of mask differ from those of params.

    >>> import fnn
    >>> layer = masked(fnn.dense(2, 1), {"W": jnp.array([[1, 0]]), "b": jnp.array([1])})
    >>> params = {"W": jnp.array([[2.0, 3.0]]), "b": jnp.zeros(1)}
    >>> layer.forward(params, jnp.array([1.0, 1.0]))[0]
    Array([2.], dtype=float32)
    """
    check_layer("masked", layer)

    def kept(params: Params) -> Params:
        masks = jax.tree.map(jnp.asarray, mask)
        expected, got = (jax.tree.map(jnp.shape, tree) for tree in (params, masks))
        if got != expected:
            raise ValueError(f"masked: expected a mask of shapes {expected}, got {got}")
        return jax.tree.map(lambda p, m: p * m.astype(p.dtype), params, masks)

    def forward(params: Params, x: Tree) -> tuple[Tree, Residuals]:
        return layer.forward(kept(params), x)

    def backward(params: Params, residuals: Residuals, dy: Tree, reduce: Reduce = total) -> Grads:
        factors, dx = layer.backward(kept(params), residuals, dy, lambda factor: factor)

        def one(p: Array, m: Array, factor: Factor) -> Any:
            of = lambda factor, m: reduce(Masked(factor, m.astype(p.dtype)))
            return for_each_copy(of, m.shape[: m.ndim - factor.ndim])(factor, m)

        return jax.tree.map(one, params, jax.tree.map(jnp.asarray, mask), factors), dx

    varying = varying_with(lambda layer: masked(layer, mask), layer)
    return Layer(layer.init, forward, backward, varying, lambda params: [(layer, kept(params))])


def frozen(layer: Layer) -> Layer:
    """The layer with constant parameters: dparams = 0, and dx is the layer's. Second derivatives by
    the parameters are 0 too.

    The weight gradients are not computed. An optimizer that changes a parameter whose gradient is
    0, as `adamw` does by weight decay, needs `partition` to leave it unchanged.

    Raises TypeError for an argument that is not a layer.

    >>> import fnn
    >>> layer, x = frozen(fnn.dense(2, 1)), jnp.ones((3, 2))
    >>> params = layer.init(jax.random.key(0))
    >>> layer.backward(params, x, jnp.ones((3, 1)))[0]["b"]
    Array([0.], dtype=float32)
    """
    check_layer("frozen", layer)

    def forward(params: Params, x: Tree) -> tuple[Tree, Residuals]:
        return layer.forward(jax.lax.stop_gradient(params), x)

    def backward(params: Params, residuals: Residuals, dy: Tree, reduce: Reduce = total) -> Grads:
        params = jax.lax.stop_gradient(params)
        return layer.backward(params, residuals, dy, lambda factor: reduce(Zero.like(factor)))

    return Layer(layer.init, forward, backward, varying_with(frozen, layer))


def lora(layer: Layer, rank: int) -> Layer:
    """The layer with frozen parameters, and a learned matrix of low rank added to each parameter
    that is a matrix: W + B A. Hu et al. 2022.

    params {"frozen": the layer's, "learned": (..., {"A": (rank, d_in), "B": (d_out, rank)}, ...)},
    with an entry of "learned" for each leaf of the layer's params, () if that is not a matrix. A
    has variance 1/d_in and B is 0, so initially the output is the layer's. To adapt a trained
    layer, replace "frozen" by its params. With dW the layer's gradient at W + B A:

        dA = B^T dW,    dB = dW A^T,    and 0 for "frozen"

    dW is not computed: if its factor is an `Outer` or `Rows`, so are those of dA and dB. To use it
    in a `repeat`, write repeat(lora(layer, rank), n).

    Raises TypeError for an argument that is not a layer, and in backward for a matrix whose
    gradient's factor is not an `Outer`, a `Rows` or a `Direct`; ValueError for a rank below 1, a
    layer without matrices, and params with a different number of entries.

    >>> import fnn
    >>> params = lora(fnn.dense(64, 32), 2).init(jax.random.key(0))
    >>> jax.tree.map(jnp.shape, params["learned"][0])
    {'A': (2, 64), 'B': (32, 2)}
    """
    check_layer("lora", layer)
    rank = numbers.count("lora", rank=rank)

    def init(key: Array) -> Params:
        key, layer_key = split(key)
        frozen = layer.init(layer_key)
        leaves = jax.tree.leaves(frozen)
        if all(p.ndim != 2 for p in leaves):
            raise ValueError(f"lora: expected a layer with matrices, got {layer}")

        def pair(key: Array, p: Array) -> Params:
            A = lecun_normal(key, (rank, p.shape[1]), p.dtype)
            return {"A": A, "B": jnp.zeros((p.shape[0], rank), p.dtype)}

        keys = zip(split(key, len(leaves)), leaves, strict=True)
        return {
            "frozen": frozen,
            "learned": tuple(pair(k, p) if p.ndim == 2 else () for k, p in keys),
        }

    def adapted(params: Params) -> Params:
        leaves = jax.tree.leaves(params["frozen"])
        if len(leaves) != len(params["learned"]):
            got = len(params["learned"])
            raise ValueError(f"lora: expected {len(leaves)} entries of learned, got {got}")
        pairs = zip(jax.lax.stop_gradient(leaves), params["learned"], strict=True)
        new = [p + of["B"] @ of["A"] if of else p for p, of in pairs]
        return jax.tree.unflatten(jax.tree.structure(params["frozen"]), new)

    def forward(params: Params, x: Tree) -> tuple[Tree, Residuals]:
        return layer.forward(adapted(params), x)

    def backward(params: Params, residuals: Residuals, dy: Tree, reduce: Reduce = total) -> Grads:
        both = lambda factor: (reduce(Zero.like(factor)), factor)
        found, dx = layer.backward(adapted(params), residuals, dy, both)
        form: Any = jax.tree.structure(params["frozen"])
        zeros, factors = zip(*form.flatten_up_to(found), strict=True)
        learned = [
            {leaf: reduce(of) for leaf, of in _low_rank(factor, **pair).items()} if pair else ()
            for factor, pair in zip(factors, params["learned"], strict=True)
        ]
        return {"frozen": form.unflatten(zeros), "learned": tuple(learned)}, dx

    varying = varying_with(lambda layer: lora(layer, rank), layer)
    return Layer(init, forward, backward, varying, lambda params: [(layer, adapted(params))])


def _low_rank(factor: Factor, A: Array, B: Array) -> dict[str, Factor]:
    """The factors of A and B in W + B A, from the factor of W."""
    match factor:
        case Outer(left, right):
            return {"A": Outer(left @ B, right), "B": Outer(left, right @ A.T)}
        case Rows(index, value, size):
            return {"A": Outer(B[index], value), "B": Rows(index, value @ A.T, size)}
        case Direct(value, 2):
            return {"A": Direct(B.T @ value, 2), "B": Direct(value @ A.T, 2)}
        case Widened():
            return _low_rank(factor.wide(), A, B)
    got = type(factor).__name__
    raise TypeError(f"lora: expected a matrix whose gradient is an Outer or Rows, got {got}")


def _stop_backward(params: Params, residuals: Residuals, dy: Tree, reduce: Reduce = total) -> Grads:
    return (), jax.tree.map(jnp.zeros_like, dy)


stop_gradient = Layer(
    lambda key: (), lambda params, x: (jax.lax.stop_gradient(x), ()), _stop_backward
)
"""y = x, dx = 0: no gradient reaches the layers before it.

>>> stop_gradient.backward((), (), jnp.ones(2))[1]
Array([0., 0.], dtype=float32)
"""


def _add_forward(params: Params, xs: tuple[Array, ...]) -> tuple[Array, Residuals]:
    for x in xs[1:]:
        _check_same("add", xs[0], x)
    return fold(jnp.add, xs), ((),) * len(xs)  # backward needs only the number of arrays


def _add_backward(params: Params, residuals: Residuals, dy: Array, reduce: Reduce = total) -> Grads:
    return (), (dy,) * len(residuals)


add = Layer(lambda key: (), _add_forward, _add_backward)
"""y = x_1 + ... + x_K, for a tuple x of arrays with the same shape and dtype; dx_k = dy.

>>> add.forward((), (jnp.ones(2), jnp.ones(2)))[0]
Array([2., 2.], dtype=float32)
"""


def _concatenate_forward(params: Params, xs: tuple[Array, ...]) -> tuple[Array, Residuals]:
    for x in xs[1:]:
        if (x.shape[:-1], x.dtype) != (xs[0].shape[:-1], xs[0].dtype):
            got = [f"{x.dtype}{x.shape}" for x in xs]
            expected = "expected arrays that differ only in their last axis"
            raise ValueError(f"concatenate: {expected}, got {got}")
    # Empty arrays keep the widths as shapes, which are static.
    return jnp.concatenate(xs, -1), tuple(jnp.zeros((0, x.shape[-1]), x.dtype) for x in xs)


def _concatenate_backward(
    params: Params, residuals: Residuals, dy: Array, reduce: Reduce = total
) -> Grads:
    ends = list(accumulate(empty.shape[-1] for empty in residuals))
    return (), tuple(jnp.split(dy, ends[:-1], -1))


concatenate = Layer(lambda key: (), _concatenate_forward, _concatenate_backward)
"""y = (x_1, ..., x_K) side by side along the last axis, for a tuple x; dx_k is dy's part k.

>>> concatenate.forward((), (jnp.ones(2), jnp.zeros(1)))[0]
Array([1., 1., 0.], dtype=float32)
"""


@pytree("places", "form")
class _Kept:
    """One copy's residuals without duplicates.

    A residual that is an array of the copy's input x, of its output y (the next copy's input) or
    another residual is not kept a second time. `places` has the index of each residual in
    (*x, *y, *others).
    """

    x: Tree
    others: list[Array]
    places: tuple[int, ...]
    form: Any

    @classmethod
    def of(cls, residuals: Residuals, x: Tree, y: Tree) -> "_Kept":
        leaves, form = jax.tree.flatten(residuals)
        kept = known = jax.tree.leaves((x, y))
        for leaf in leaves:
            if not any(leaf is array for array in kept):
                kept = [*kept, leaf]
        # By identity; list.index would compare arrays by value.
        places = tuple(next(i for i, a in enumerate(kept) if a is leaf) for leaf in leaves)
        return cls(x, kept[len(known) :], places, form)

    def residuals(self, y: Tree) -> Residuals:
        kept = [*jax.tree.leaves((self.x, y)), *self.others]
        return jax.tree.unflatten(self.form, [kept[i] for i in self.places])


def _varying(
    combine: Callable[..., Layer],
    layers: tuple[Layer, ...],
    of_layers: Callable[[Residuals], Any] = lambda residuals: residuals,
) -> Varying | None:
    """The `varying` of a combinator of several layers, as `varying_with`; of_layers(residuals) is a
    tuple with one entry per layer."""
    if all(layer.varying is None for layer in layers):
        return None

    def each_at(key: Array | None, statistics: Tree) -> Layer:
        entries = (None,) * len(layers) if statistics is None else statistics
        return combine(*map(at, layers, _keys(key, layers), entries))

    def measure(params: Params, x: Tree, key: Array | None) -> tuple[Any, Any]:
        y, residuals = combine(*map(measuring, layers, _keys(key, layers))).forward(params, x)
        return y, of_layers(residuals)

    return Varying(each_at, measure)


def _keys(key: Array | None, layers: tuple[Layer, ...]) -> Any:
    """A key for each layer, or None for each."""
    return (None,) * len(layers) if key is None else split(key, len(layers)) if layers else ()


def _check_layers(name: str, layers: tuple[Layer, ...]) -> None:
    for i, layer in enumerate(layers):
        check_layer(f"{name}: argument {i}", layer)


def _init(layers: tuple[Layer, ...], key: Array) -> Params:
    return tuple(layer.init(k) for layer, k in zip(layers, _keys(key, layers), strict=True))


def _paired(name: str, layers: tuple[Layer, ...], params: Params) -> list[tuple[Layer, Params]]:
    """Each layer with its params."""
    if not isinstance(params, tuple | list) or len(params) != len(layers):
        got = len(params) if isinstance(params, tuple | list) else type(params).__name__
        raise ValueError(f"{name}: expected params for {len(layers)} layers, got {got}")
    return list(zip(layers, params, strict=True))


def _check_depth(n: int, params: Params) -> None:
    for leaf in jax.tree.leaves(params):
        if leaf.ndim == 0 or leaf.shape[0] != n:
            got = f"got {leaf.shape}"
            raise ValueError(f"repeat: expected params with a leading axis of {n}, {got}")


def _check_same(name: str, x: Tree, y: Tree) -> None:
    form = lambda tree: jax.tree.map(lambda a: f"{a.dtype}{a.shape}", tree)
    if form(x) != form(y):
        got = f"got {form(x)} -> {form(y)}"
        raise ValueError(f"{name}: expected a layer that keeps shape and dtype, {got}")
