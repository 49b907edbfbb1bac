"""What compositions are made of: each part as a layer of fnn, and as a function of duals.

A part keeps the shape of its input, (3, d), (3, 2, d) or (3, 2, 3, d): rows of features, texts of
two tokens or images of two by three pixels. So few shapes occur, and JAX compiles little.
"""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from benchmarks.soak import duals
from benchmarks.soak.duals import Dual

FEATURES, TOKENS, PIXELS = (), (2,), (2, 3)
"""The axes between the examples' and the features'."""


class Node(NamedTuple):
    """A composition: the name of a part, its setting and the compositions inside."""

    name: str
    setting: Any = None
    inner: tuple["Node", ...] = ()

    def __repr__(self) -> str:
        setting = [] if self.setting is None else [repr(self.setting)]
        inside = ", ".join([*map(repr, self.inner), *setting])
        return f"{self.name}({inside})" if inside else self.name

    def names(self) -> set[str]:
        """Those of all its parts."""
        return {self.name}.union(*(node.names() for node in self.inner))


class Where(NamedTuple):
    """The shape of one example: (*axes, d)."""

    axes: tuple[int, ...]
    d: int


class When(NamedTuple):
    """How a layer that varies acts: "plain", in "training" with a key, or in "evaluation" with
    the statistics of the same examples."""

    mode: str
    key: Any = None

    def split(self, n: int) -> list["When"]:
        """One for each of n parts, with keys of their own."""
        if self.key is None:
            return [self] * n
        return [self._replace(key=key) for key in jax.random.split(self.key, n)]


class Part(NamedTuple):
    """layer(node, where) and plain(node, where, p, x, when) -> y are the same function.

    covers: the public names in it. inside: how many compositions it holds, a choice. settings: of
    these one is drawn. fits(where): whether it can stand there. smooth: it has no kinks, at which
    rounding decides. rows: False where there is no gradient per example; in_training, only then.
    """

    covers: str
    layer: Callable[[Node, Where], fnn.Layer]
    plain: Callable[[Node, Where, Any, Dual, When], Dual]
    inside: tuple[int, ...] = ()
    settings: tuple[Any, ...] = (None,)
    fits: Callable[[Where], bool] = lambda where: True
    smooth: bool = True
    rows: bool = True
    varies: bool = False


def layer(node: Node, where: Where) -> fnn.Layer:
    """The composition in fnn."""
    return PARTS[node.name].layer(node, where)


def plain(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    """The composition in NumPy, at the layer's params."""
    return PARTS[node.name].plain(node, where, p, x, when)


def drawn(rng: random.Random, where: Where, depth: int, allowed: Callable[[str], bool]) -> Node:
    """A random composition of this depth."""
    while True:
        name = rng.choice(LEAVES if depth == 0 else NESTS)
        part = PARTS[name]
        if not allowed(name) or not part.fits(where):
            continue
        count = rng.choice(part.inside) if part.inside else 0
        inner_at = where._replace(d=where.d // 2) if name == "reversible" else where
        depths = [depth - 1, *(rng.randrange(depth) for _ in range(count - 1))][:count]
        inner = tuple(drawn(rng, inner_at, each, allowed) for each in depths)
        if name == "lora" and not _has_factors(inner[0]):
            continue
        return Node(name, rng.choice(part.settings), inner)


# Leaves.


def _linear(p: Any, x: Dual) -> Dual:
    y = x @ p["W"].swap()
    return y + p["b"] if "b" in p else y


def _activation(name: str, made: fnn.Layer, f: Callable[[Dual], Dual], smooth: bool = True) -> Part:
    return Part(name, lambda node, where: made, lambda n, w, p, x, when: f(x), smooth=smooth)


def _elu(x: Dual, scale: float, alpha: float) -> Dual:
    negative = duals.chosen(duals.above(x), 0 * x, x)
    return scale * duals.chosen(duals.above(x), x, alpha * (duals.exp(negative) - 1))


def _normal(x: Dual, p: Any, axes: tuple[int, ...] = (-1,), still: bool = False) -> Dual:
    """Scaled to mean 0 and variance 1 over the axes, which are constants where `still`."""
    mean = x.mean(axes)
    variance = ((x - mean) * (x - mean)).mean(axes)
    if still:
        mean, variance = duals.stopped(mean), duals.stopped(variance)
    return (x - mean) / duals.sqrt(variance + 1e-5) * p["gain"] + p["bias"]


def _batch_norm(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    if when.mode == "plain":
        return x * float(1 / np.sqrt(1 + 1e-5)) * p["gain"] + p["bias"]
    over = tuple(range(-x.v.ndim, -1))
    return _normal(x, p, over, still=when.mode == "evaluation")


def _rms_norm(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    return x / duals.sqrt((x * x).mean() + 1e-5) * p["gain"]


def _groups(where: Where) -> int:
    return max(1, where.d // 2)


def _group_norm(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    width = where.d // _groups(where)
    one = {"gain": duals.constant(1.0), "bias": duals.constant(0.0)}
    parts = [x[..., i : i + width] for i in range(0, where.d, width)]
    return (
        duals.concatenated([_normal(part, one, (-3, -2, -1)) for part in parts]) * p["gain"]
        + p["bias"]
    )


def _attention(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    causal, rotary = node.setting
    heads = []
    for i in range(0, where.d, 2):  # two features to each head
        q, k, v = (x @ p[leaf][i : i + 2].swap() for leaf in "QKV")
        if rotary:
            q, k = _turned(q), _turned(k)
        scores = q @ k.swap() * float(1 / np.sqrt(2))
        if causal:
            scores = scores + np.array([[0, -1e9], [0, 0]])
        heads.append(duals.softmax(scores) @ v)
    return duals.concatenated(heads) @ p["O"].swap()


def _turned(a: Dual) -> Dual:
    """Token p rotated by the angle p: of two features the rate is 1."""
    places = np.arange(2.0)[:, None]
    first, second = a[..., :1], a[..., 1:]
    cos, sin = np.cos(places), np.sin(places)
    return duals.concatenated([first * cos - second * sin, first * sin + second * cos])


def _positions(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    return x + p["table"][: where.axes[0]]


def _shifted(x: Dual, axis: int) -> Dual:
    """What the next entry along the axis (from the last) holds, 0 behind the last."""
    ends = [slice(None)] * x.v.ndim
    ends[axis] = slice(1, None)
    first = [slice(None)] * x.v.ndim
    first[axis] = slice(0, 1)
    return duals.concatenated([x[tuple(ends)], 0 * x[tuple(first)]], axis)


def _conv(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    """A window of two along each axis, zeros behind the last: each entry and the next."""
    rows = [x] if node.name == "conv1d" else [x, _shifted(x, -3)]
    y = p["b"]
    for i, row in enumerate(rows):
        for j, entry in enumerate([row, _shifted(row, -2)]):
            y = entry @ p["W"][:, i, j].swap() + y
    return y


def _pooled_layer(node: Node, where: Where) -> fnn.Layer:
    width = 3 * where.d
    dense = fnn.dense(width, 2 * width)
    pool = getattr(fnn, node.name)((2, 1))
    return fnn.serial(pool, fnn.flatten(3), dense, fnn.unflatten(2, 3, where.d))


def _pooled(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    lead = x.shape[:-3]
    over, under = x[..., 0, :, :], x[..., 1, :, :]
    if node.name == "mean_pool":
        pooled = 0.5 * (over + under)
    else:
        pooled = duals.chosen(under.v.real > over.v.real, under, over)
    return _linear(p[2], pooled.reshape(*lead, -1)).reshape(*lead, 2, 3, where.d)


def _dropout(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    if when.mode != "training":
        return x
    bits = np.asarray(jax.random.bits(when.key, x.shape, jnp.uint32))
    kept = bits >= np.uint32(node.setting * 2.0**32)
    return x * (kept / (1 - node.setting))


def _mlp_layer(node: Node, where: Where) -> fnn.Layer:
    sizes = (where.d, 4, where.d)
    if node.setting == "model":
        return fnn.parallel.mlp(sizes, "model", fnn.tanh)
    return fnn.mlp(sizes, fnn.tanh, fnn.sigmoid)


def _mlp(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    y = _linear(p[2], duals.tanh(_linear(p[0], x)))
    return y if node.setting == "model" else duals.sigmoid(y)


def _constant(of: Callable[[Any], Any]) -> Callable[[Node, Where], fnn.Layer]:
    """The layer that `of` makes of the width."""
    return lambda node, where: of(where.d)


LINEAR: dict[str, Part] = {
    "dense": Part(
        "dense",
        lambda node, where: fnn.dense(where.d, where.d, bias=node.setting),
        lambda node, where, p, x, when: _linear(p, x),
        settings=(True, True, False),
    ),
    "layer_norm": Part(
        "layer_norm", _constant(fnn.layer_norm), lambda n, w, p, x, when: _normal(x, p)
    ),
    "rms_norm": Part("rms_norm", _constant(fnn.rms_norm), _rms_norm),
    "group_norm": Part(
        "group_norm",
        lambda node, where: fnn.group_norm(where.d, _groups(where)),
        _group_norm,
        fits=lambda where: where.axes == PIXELS,
    ),
    "batch_norm": Part(
        "batch_norm at statistics", _constant(fnn.batch_norm), _batch_norm, varies=True
    ),
    "attention": Part(
        "attention",
        lambda node, where: fnn.attention(
            where.d, where.d // 2, node.setting[0], rotary=node.setting[1]
        ),
        _attention,
        settings=tuple((causal, rotary) for causal in (False, True) for rotary in (False, True)),
        fits=lambda where: where.axes == TOKENS,
    ),
    "positions": Part(
        "positions",
        lambda node, where: fnn.positions(3, where.d),
        _positions,
        fits=lambda where: where.axes == TOKENS,
    ),
    "conv1d": Part(
        "conv1d",
        lambda node, where: fnn.conv1d(where.d, where.d, 2),
        _conv,
        fits=lambda where: where.axes == TOKENS,
    ),
    "conv2d": Part(
        "conv2d",
        lambda node, where: fnn.conv2d(where.d, where.d, (2, 2)),
        _conv,
        fits=lambda where: where.axes == PIXELS,
    ),
    "mean_pool": Part(
        "mean_pool flatten unflatten",
        _pooled_layer,
        _pooled,
        fits=lambda where: where.axes == PIXELS,
    ),
    "max_pool": Part(
        "max_pool flatten unflatten",
        _pooled_layer,
        _pooled,
        fits=lambda where: where.axes == PIXELS,
        smooth=False,
    ),
    "mlp": Part("mlp parallel.mlp", _mlp_layer, _mlp, settings=(None, "model")),
    "dropout": Part(
        "dropout at",
        lambda node, where: fnn.dropout(node.setting),
        _dropout,
        settings=(0.0, 0.4),
        varies=True,
    ),
    "stop_gradient": Part(
        "stop_gradient",
        lambda node, where: fnn.stop_gradient,
        lambda n, w, p, x, when: duals.stopped(x),
    ),
}

_ACTIVATIONS: dict[str, tuple[fnn.Layer, Callable[[Dual], Dual], bool]] = {
    "identity": (fnn.identity, lambda x: x, True),
    "tanh": (fnn.tanh, duals.tanh, True),
    "sigmoid": (fnn.sigmoid, duals.sigmoid, True),
    "softplus": (fnn.softplus, duals.softplus, True),
    "silu": (fnn.silu, lambda x: x * duals.sigmoid(x), True),
    "gelu": (fnn.gelu, lambda x: x * 0.5 * (1 + duals.erf(x * float(1 / np.sqrt(2)))), True),
    "softmax": (fnn.softmax, duals.softmax, True),
    "elementwise": (fnn.elementwise(jnp.sin, lambda x, y: jnp.cos(x)), duals.sin, True),
    "elu": (fnn.elu(0.7), lambda x: _elu(x, 1, 0.7), False),
    "selu": (fnn.selu, lambda x: _elu(x, 1.0507009873554805, 1.6732632423543772), False),
    "relu": (fnn.relu, lambda x: duals.chosen(duals.above(x), x, 0 * x), False),
    "leaky_relu": (fnn.leaky_relu(0.2), lambda x: duals.chosen(duals.above(x), x, 0.2 * x), False),
}
SMALL = {name: _activation(name, *of) for name, of in _ACTIVATIONS.items()}


# What holds others.


def _inner(i: int, node: Node, where: Where) -> fnn.Layer:
    return layer(node.inner[i], where)


def _all(node: Node, where: Where) -> list[fnn.Layer]:
    return [layer(each, where) for each in node.inner]


def _forked(node: Node, where: Where, p: Any, x: Dual, when: When) -> list[Dual]:
    whens = when.split(len(node.inner))
    each = zip(node.inner, p, whens, strict=True)
    return [plain(of, where, q, x, at) for of, q, at in each]


def _serial(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    for of, q, at in zip(node.inner, p, when.split(len(node.inner)), strict=True):
        x = plain(of, where, q, x, at)
    return x


def _add(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    return sum(_forked(node, where, p[0], x, when.split(2)[0]), start=duals.constant(0.0))


def _joined_layer(node: Node, where: Where) -> fnn.Layer:
    forked = fnn.fork(*_all(node, where))
    return fnn.serial(forked, fnn.concatenate, fnn.dense(where.d * len(node.inner), where.d))


def _joined(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    parts = _forked(node, where, p[0], x, when.split(3)[0])
    return _linear(p[2], duals.concatenated(parts))


def _on_layer(node: Node, where: Where) -> fnn.Layer:
    first, second, third = _all(node, where)
    return fnn.serial(fnn.fork(first, second), fnn.on(node.setting, third), fnn.add)


def _on(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    whens = when.split(3)
    parts = _forked(node._replace(inner=node.inner[:2]), where, p[0], x, whens[0])
    i = node.setting
    return plain(node.inner[2], where, p[1], parts[i], whens[1]) + parts[1 - i]


def _gated(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    a, b = _forked(node, where, p, x, when)
    return a * b


def _alone(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    return plain(node.inner[0], where, p, x, when)


def _copy(p: Any, i: int) -> Any:
    return duals.mapped(lambda a: a[i], p)


def _repeat(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    for i, at in enumerate(when.split(node.setting)):
        x = plain(node.inner[0], where, _copy(p, i), x, at)
    return x


def _reversible(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    f, g = node.inner
    half = where._replace(d=where.d // 2)
    x1, x2 = x[..., : half.d], x[..., half.d :]
    of_f, of_g = (at.split(node.setting) for at in when.split(2))
    for i in range(node.setting):
        x1 = x1 + plain(f, half, _copy(p[0], i), x2, of_f[i])
        x2 = x2 + plain(g, half, _copy(p[1], i), x1, of_g[i])
    return duals.concatenated([x1, x2])


def _mask(shapes: list[tuple[int, ...]], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random(shape) < 0.7 for shape in shapes]


def _masked_layer(node: Node, where: Where) -> fnn.Layer:
    inner = _inner(0, node, where)
    leaves, form = jax.tree.flatten(jax.eval_shape(inner.init, jax.random.key(0)))
    mask = jax.tree.unflatten(form, _mask([a.shape for a in leaves], node.setting))
    return fnn.masked(inner, mask)


def _masked(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    masks = iter(_mask([a.shape for a in duals.leaves(p)], node.setting))
    return _alone(node, where, duals.mapped(lambda a: a * next(masks), p), x, when)


def _frozen(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    return _alone(node, where, duals.mapped(duals.stopped, p), x, when)


def _lora(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    pairs = iter(p["learned"])

    def adapted(a: Dual) -> Dual:
        pair, a = next(pairs), duals.stopped(a)
        return a + pair["B"] @ pair["A"] if pair else a

    return _alone(node, where, duals.mapped(adapted, p["frozen"]), x, when)


def _compute_in(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    same = lambda a: a.each(lambda a: a)
    with duals.rounded_to(node.setting):
        y = _alone(node, where, duals.mapped(same, p), same(x), when)
    return same(y)


def _from_single_layer(node: Node, where: Where) -> fnn.Layer:
    inner = _inner(0, node, where)
    return fnn.from_single(inner.init, lambda p, x: fnn.apply(inner, p, x), len(where.axes) + 1)


def _from_function_layer(node: Node, where: Where) -> fnn.Layer:
    inner = _inner(0, node, where)
    apply = fnn.differentiable(inner) if node.setting else lambda p, x: fnn.apply(inner, p, x)
    return fnn.from_function(inner.init, apply)


def _unvarying(node: Node, where: Where, p: Any, x: Dual, when: When) -> Dual:
    return _alone(node, where, p, x, When("plain"))


def _has_factors(node: Node) -> bool:
    """Whether `lora` can take the composition: it has matrices, all stated by factors."""
    without = {"masked", "frozen", "lora", "repeat", "reversible", "from_single", "from_function"}
    matrices = {"dense", "attention", "positions", "mlp", "mean_pool", "max_pool", "concatenate"}
    return not node.names() & without and bool(node.names() & matrices)


def _named(name: str, *arguments: str) -> Callable[[Node, Where], fnn.Layer]:
    """The combinator of this name, of one composition."""
    module = fnn.parallel if hasattr(fnn.parallel, name) else fnn
    return lambda node, where: getattr(module, name)(_inner(0, node, where), *arguments)


COMBINATORS: dict[str, Part] = {
    "serial": Part(
        "serial", lambda node, where: fnn.serial(*_all(node, where)), _serial, inside=(2, 2, 3)
    ),
    "add": Part(
        "fork add",
        lambda node, where: fnn.serial(fnn.fork(*_all(node, where)), fnn.add),
        _add,
        inside=(2, 3),
    ),
    "concatenate": Part("fork concatenate", _joined_layer, _joined, inside=(2,)),
    "on": Part("on fork add", _on_layer, _on, inside=(3,), settings=(0, 1)),
    "gated": Part("gated", lambda node, where: fnn.gated(*_all(node, where)), _gated, inside=(2,)),
    "skip": Part(
        "skip",
        _named("skip"),
        lambda node, where, p, x, when: x + _alone(node, where, p, x, when),
        inside=(1,),
    ),
    "repeat": Part(
        "repeat",
        lambda node, where: fnn.repeat(_inner(0, node, where), node.setting),
        _repeat,
        inside=(1,),
        settings=(1, 2, 3),
    ),
    "reversible": Part(
        "reversible",
        lambda node, where: fnn.reversible(
            *_all(node, where._replace(d=where.d // 2)), node.setting
        ),
        _reversible,
        inside=(2,),
        settings=(1, 2),
        fits=lambda where: where.d == 4,
    ),
    "masked": Part("masked", _masked_layer, _masked, inside=(1,), settings=tuple(range(100))),
    "frozen": Part("frozen", _named("frozen"), _frozen, inside=(1,)),
    "lora": Part("lora", lambda n, w: fnn.lora(_inner(0, n, w), 2), _lora, inside=(1,)),
    "remat": Part("remat", _named("remat"), _alone, inside=(1,)),
    "compute_in": Part(
        "compute_in",
        lambda node, where: fnn.compute_in(_inner(0, node, where), node.setting),
        _compute_in,
        inside=(1,),
        settings=("float32", "bfloat16"),
    ),
    "from_single": Part("from_single apply", _from_single_layer, _unvarying, inside=(1,)),
    "from_function": Part(
        "from_function differentiable",
        _from_function_layer,
        _unvarying,
        inside=(1,),
        settings=(False, True),
        rows=False,
    ),
    "replicated": Part("parallel.replicated", _named("replicated", "data"), _alone, inside=(1,)),
    "fully_sharded": Part(
        "parallel.fully_sharded", _named("fully_sharded", "data"), _alone, inside=(1,)
    ),
}

PARTS = LINEAR | SMALL | COMBINATORS
LEAVES = [*LINEAR] * 2 + ["dense"] * 4 + [*SMALL]
NESTS = [*COMBINATORS] + ["serial", "repeat", "compute_in"] * 2
