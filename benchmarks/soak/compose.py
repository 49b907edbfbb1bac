"""Random networks of everything public beside plain JAX: the same values, gradients, statistics,
second derivatives and training steps? A composition that differs is shrunk to the smallest one.

A composition is a tree of tuples, such as ("skip", ("dense",)), from which both the network and
the same function in plain JAX are built. Every part keeps the number of features.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from fnn import per_example

Spec = tuple[Any, ...]
M = 3
"""Examples in a batch."""

ACTIVATIONS: dict[str, tuple[fnn.Layer, Any]] = {
    "tanh": (fnn.tanh, jnp.tanh),
    "sigmoid": (fnn.sigmoid, lambda z: 1 / (1 + jnp.exp(-z))),
    "softplus": (fnn.softplus, lambda z: jnp.log1p(jnp.exp(z))),
    "silu": (fnn.silu, lambda z: z / (1 + jnp.exp(-z))),
    "gelu": (fnn.gelu, lambda z: z * (1 + jax.scipy.special.erf(z / np.sqrt(2))) / 2),
    "elu": (fnn.elu(0.7), lambda z: jnp.where(z > 0, z, 0.7 * jnp.expm1(jnp.minimum(z, 0)))),
    "leaky_relu": (fnn.leaky_relu(0.2), lambda z: jnp.where(z > 0, z, 0.2 * z)),
    "relu": (fnn.relu, lambda z: jnp.where(z > 0, z, 0)),
    "softmax": (fnn.softmax, lambda z: jnp.exp(z) / jnp.exp(z).sum(-1, keepdims=True)),
    "identity": (fnn.identity, lambda z: z),
}
LEAVES = ("dense", "activation", "layer_norm", "conv2d", "stop_gradient")
NESTS = ("serial", "skip", "repeat", "add", "concatenate", "masked", "frozen", "remat",
         "reversible", "compute_in")  # fmt: skip


def compositions(folder: Path, wanted: int, seed: int) -> dict[str, int]:
    """Each random composition is the same function as its twin in plain JAX."""
    rng = random.Random(seed)
    counts = dict.fromkeys(("inputs", "statistics", "second derivatives", "runs", "differ"), 0)
    # Without jit a scan is a loop of operations that are compiled once for all compositions.
    with jax.enable_x64(True), jax.disable_jit(), _little_optimization():
        for number in range(wanted):
            spec, images = _spec(rng, 4, rng.choice([1, 2, 3])), rng.random() < 0.3
            what = ["values"]
            what += ["statistics"] if rng.random() < 0.5 else []
            what += ["second derivatives"] if rng.random() < 0.2 else []
            what += ["runs"] if number % 100 == 0 else []
            counts["inputs"] += 1
            for each in what[1:]:
                counts[each] += 1
            found = _difference(spec, images, what)
            if found:
                counts["differ"] += 1
                print("differs:", *_shrunk(spec, images, what, found))
    return counts


@contextmanager
def _little_optimization() -> Iterator[None]:
    """Most time goes into compiling single operations for shapes that no composition had yet."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def _spec(rng: random.Random, d: int, depth: int) -> Spec:
    """A random composition of this depth, d features to d."""
    if depth == 0:
        kind = rng.choice((*LEAVES, "dense", "activation"))
        return (kind, rng.choice(list(ACTIVATIONS))) if kind == "activation" else (kind,)
    kind = rng.choice([name for name in NESTS if name != "reversible" or d % 2 == 0])
    inner = lambda d=d: _spec(rng, d, depth - 1)
    match kind:
        case "serial" | "add" | "concatenate":
            return (kind, *(inner() for _ in range(rng.choice([2, 2, 3]))))
        case "repeat":
            return (kind, inner(), rng.choice([1, 2, 3]))
        case "reversible":
            return (kind, inner(d // 2), inner(d // 2), rng.choice([1, 2]))
        case "masked":
            return (kind, inner(), rng.randrange(1000))
        case _:
            return (kind, inner())


def network(spec: Spec, d: int) -> fnn.Layer:
    """The composition in fnn."""
    kind, *parts = spec
    below = lambda i, d=d: network(parts[i], d)
    match kind:
        case "dense":
            return fnn.dense(d, d)
        case "activation":
            return ACTIVATIONS[parts[0]][0]
        case "layer_norm":
            return fnn.layer_norm(d)
        case "conv2d":
            return fnn.conv2d(d, d, (2, 1))
        case "stop_gradient":
            return fnn.stop_gradient
        case "serial":
            return fnn.serial(*map(below, range(len(parts))))
        case "skip" | "frozen" | "remat":
            return getattr(fnn, kind)(below(0))
        case "repeat":
            return fnn.repeat(below(0), parts[1])
        case "add":
            return fnn.serial(fnn.fork(*map(below, range(len(parts)))), fnn.add)
        case "concatenate":
            forked = fnn.fork(*map(below, range(len(parts))))
            return fnn.serial(forked, fnn.concatenate, fnn.dense(d * len(parts), d))
        case "masked":
            return fnn.masked(below(0), _mask(below(0), parts[1]))
        case "reversible":
            return fnn.reversible(below(0, d // 2), below(1, d // 2), parts[2])
        case "compute_in":
            return fnn.compute_in(below(0), jnp.float32)
    raise ValueError(kind)


def _mask(layer: fnn.Layer, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(layer.init, jax.random.key(0))
    return jax.tree.map(lambda a: rng.random(a.shape) < 0.7, shapes)


def plain(spec: Spec, d: int, p: Any, x: Any) -> Any:
    """The composition in plain JAX, at the network's params."""
    kind, *parts = spec
    below = lambda i, p, x, d=d: plain(parts[i], d, p, x)
    match kind:
        case "dense":
            return x @ p["W"].T + p["b"]
        case "activation":
            return ACTIVATIONS[parts[0]][1](x)
        case "layer_norm":
            centred = x - x.mean(-1, keepdims=True)
            variance = (centred**2).mean(-1, keepdims=True)
            return p["gain"] * centred / jnp.sqrt(variance + 1e-5) + p["bias"]
        case "conv2d":  # (2, 1) with zeros below: each pixel and the one under it
            under = jnp.concatenate([x[..., 1:, :, :], jnp.zeros_like(x[..., :1, :, :])], -3)
            return x @ p["W"][:, 0, 0].T + under @ p["W"][:, 1, 0].T + p["b"]
        case "stop_gradient":
            return jax.lax.stop_gradient(x)
        case "serial":
            for i in range(len(parts)):
                x = below(i, p[i], x)
            return x
        case "skip":
            return x + below(0, p, x)
        case "remat":
            return below(0, p, x)
        case "frozen":
            return below(0, jax.lax.stop_gradient(p), x)
        case "repeat":
            for i in range(parts[1]):
                x = below(0, jax.tree.map(lambda a, i=i: a[i], p), x)
            return x
        case "add":
            return sum(below(i, p[0][i], x) for i in range(len(parts)))
        case "concatenate":
            each = [below(i, p[0][i], x) for i in range(len(parts))]
            return jnp.concatenate(each, -1) @ p[2]["W"].T + p[2]["b"]
        case "masked":
            mask = _mask(network(parts[0], d), parts[1])
            return below(0, jax.tree.map(lambda a, m: a * m, p, mask), x)
        case "reversible":
            x1, x2 = jnp.split(x, 2, -1)
            for i in range(parts[2]):
                pf, pg = jax.tree.map(lambda a, i=i: a[i], p)
                x1 = x1 + below(0, pf, x2, d // 2)
                x2 = x2 + below(1, pg, x1, d // 2)
            return jnp.concatenate([x1, x2], -1)
        case "compute_in":
            narrow = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float32), tree)
            return below(0, narrow(p), narrow(x)).astype(x.dtype)
    raise ValueError(kind)


def _difference(spec: Spec, images: bool, what: list[str]) -> str | None:
    """The first thing in which network and twin differ, or an error; None where there is none."""
    images = images or "conv2d" in str(spec)
    try:
        return _compared(spec, images, what)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _compared(spec: Spec, images: bool, what: list[str]) -> str | None:
    rng = np.random.default_rng(len(str(spec)))
    pixels = (2, 2) if images else ()
    head = fnn.serial(fnn.flatten(3), fnn.dense(16, 2)) if images else fnn.dense(4, 2)
    net = fnn.serial(network(spec, 4), head)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.6), shapes)
    x, y = jnp.asarray(rng.normal(size=(M, *pixels, 4))), jnp.asarray(rng.normal(size=(M, 2)))

    def twin(params: Any, x: Any) -> Any:
        features = plain(spec, 4, params[0], x)
        last = params[1][1] if images else params[1]
        return features.reshape(len(x), -1) @ last["W"].T + last["b"]

    def loss(params: Any, x: Any, y: Any) -> Any:
        return ((twin(params, x) - y) ** 2).mean()

    def loss_of_one(params: Any, x: Any, y: Any) -> Any:
        return loss(params, x[None], y[None])

    far = 3e-3 if "compute_in" in str(spec) else 1e-8
    size = sum(leaf.size for leaf in jax.tree.leaves(params))

    def differ(name: str, ours: Any, theirs: Any) -> str | None:
        a, b = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)
            for tree in (ours, theirs)
        )
        if not np.isfinite(b).all() and not np.isfinite(a).all():
            return None  # a run of both that diverged
        error = np.abs(a - b).max() / (1 + np.abs(b).max())
        return None if error <= far else f"{name} by {error:.1e}"

    value_and_grad = fnn.value_and_grad(net, fnn.mse)
    found = differ("forward", net.forward(params, x)[0], twin(params, x))
    value, grads = value_and_grad(params, x, y)
    found = found or differ("value", value, loss(params, x, y))
    expected = jax.grad(loss)(params, x, y)
    found = found or differ("gradient", grads, expected)
    found = found or differ(
        "dx",
        net.backward(params, net.forward(params, x)[1], jnp.ones((M, 2)))[1],
        jax.grad(lambda x: twin(params, x).sum())(x),
    )
    if "statistics" in what and not found:
        each = jax.vmap(jax.grad(loss_of_one), (None, 0, 0))(params, x, y)
        rows = jnp.concatenate([leaf.reshape(M, -1) for leaf in jax.tree.leaves(each)], 1)
        assert rows.shape == (M, size)
        norms = (rows**2).sum(1)
        bound = float(jnp.sqrt(norms).mean())
        clipped = rows * jnp.minimum(1, bound / jnp.sqrt(norms))[:, None]
        of = lambda f, *more: f(net, fnn.mse, *more)(params, x, y)
        flat = lambda tree: jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
        far *= float(1 + norms.max())
        found = differ("squared_norms", of(per_example.squared_norms), norms)
        found = found or differ("gram", of(per_example.gram), rows @ rows.T)
        moment = flat(of(per_example.second_moment))
        found = found or differ("second_moment", moment, (rows**2).mean(0))
        ours = flat(of(per_example.clipped_value_and_grad, bound)[1])
        found = found or differ("clipped", ours, clipped.mean(0))
    if "second derivatives" in what and not found:
        v = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
        ours = jax.jvp(lambda p: value_and_grad(p, x, y)[1], (params,), (v,))[1]
        theirs = jax.jvp(lambda p: jax.grad(loss)(p, x, y), (params,), (v,))[1]
        found = differ("hessian-vector product", ours, theirs)
    if "runs" in what and not found:
        train = fnn.make_train(net, fnn.mse, fnn.sgd(0.01), batch_size=M, epochs=3)
        with jax.disable_jit(False):
            state, _ = jax.jit(train)(params, (x, y), jax.random.key(0))
        for _ in range(3):
            step = jax.grad(loss)(params, x, y)
            params = jax.tree.map(lambda p, g: p - 0.01 * g, params, step)
        found = differ("run", state.params, params)
    return found


def _shrunk(spec: Spec, images: bool, what: list[str], found: str) -> tuple[Spec, str]:
    """The smallest composition in reach that differs still, and in what."""
    for smaller in _smaller(spec):
        try:
            network(smaller, 4)
        except (ValueError, TypeError):
            continue
        if still := _difference(smaller, images, what):
            return _shrunk(smaller, images, what, still)
    return spec, found


def _smaller(spec: Spec) -> list[Spec]:
    """The compositions one part smaller: a part in the whole's place, or a smaller part."""
    kind, *parts = spec
    inner = [i for i, part in enumerate(parts) if isinstance(part, tuple)]
    found = [parts[i] for i in inner]
    if kind in ("serial", "add", "concatenate") and len(parts) > 1:
        found += [(kind, *parts[:i], *parts[i + 1 :]) for i in inner]
    if kind in ("repeat", "reversible") and parts[-1] > 1:
        found.append((kind, *parts[:-1], 1))
    for i in inner:
        found += [(kind, *parts[:i], part, *parts[i + 1 :]) for part in _smaller(parts[i])]
    return found


# Optimizers.


def nestings(folder: Path, wanted: int, seed: int) -> dict[str, int]:
    """Each random nesting of wrappers around a rule moves parameters as its twin in NumPy does."""
    rng = random.Random(seed)
    counts = {"inputs": 0, "differ": 0}
    with jax.enable_x64(True):
        for _ in range(wanted):
            spec = _nesting(rng, rng.choice([0, 1, 2, 3, 4]))
            counts["inputs"] += 1
            found = _moves_differently(spec, rng.randrange(10**6))
            if found:
                counts["differ"] += 1
                print("differs:", spec, found)
    return counts


RULES = ("sgd", "momentum", "nesterov", "rmsprop", "adagrad", "adam", "adamw", "nadam", "lion")
WRAPPERS = ("clip", "l2", "accumulate", "average", "partition", "scale")


def _nesting(rng: random.Random, depth: int) -> Spec:
    number = lambda low, high: round(rng.uniform(low, high), 3)
    if depth == 0:
        return (rng.choice(RULES), number(0.001, 0.3), number(0.1, 0.9), number(0.5, 0.99),
                number(0.01, 0.5))  # fmt: skip
    kind, inner = rng.choice(WRAPPERS), _nesting(rng, depth - 1)
    match kind:
        case "clip":
            return (kind, inner, number(0.1, 3))
        case "l2" | "average":
            return (kind, inner, number(0.01, 0.9))
        case "accumulate":
            return (kind, inner, rng.choice([1, 2, 3]))
        case "partition":
            return (kind, inner, rng.choice([None, _nesting(rng, depth - 1)]))
        case _:
            return (kind, inner, 2.0 ** rng.randrange(0, 5))


def _optimizer(spec: Spec) -> fnn.Optimizer:
    kind, first, *rest = spec
    match kind:
        case "sgd":
            return fnn.sgd(first)
        case "momentum" | "nesterov":
            return fnn.momentum(first, rest[0], nesterov=kind == "nesterov")
        case "rmsprop":
            return fnn.rmsprop(first, rest[0])
        case "adagrad":
            return fnn.adagrad(first)
        case "adam" | "nadam":
            return getattr(fnn, kind)(first, rest[0], rest[1])
        case "lion":
            return fnn.lion(first, rest[0], rest[1])
        case "adamw":
            return fnn.adamw(first, rest[0], rest[1], weight_decay=rest[2])
    inner = _optimizer(first)
    match kind:
        case "clip":
            return fnn.clip_by_global_norm(inner, rest[0])
        case "l2":
            return fnn.add_l2(inner, rest[0])
        case "accumulate":
            return fnn.accumulate(inner, rest[0])
        case "average":
            return fnn.average(inner, rest[0])
        case "scale":
            return fnn.scale_loss(inner, rest[0], growth_interval=10**6)
    other = None if rest[0] is None else _optimizer(rest[0])
    return fnn.partition({"W": "a", "b": "b"}, {"a": inner, "b": other})


Arrays = dict[str, np.ndarray]


class Twin:
    """The same nesting in NumPy: `params` are what `update(grads)` moves."""

    def __init__(self, spec: Spec, params: Arrays) -> None:
        self.kind, self.first, *self.rest = spec
        self.own = dict(params)
        self.t = 0
        self.slots = {name: [np.zeros_like(p), np.zeros_like(p)] for name, p in params.items()}
        self.inner: list[Twin] = []
        if self.kind == "partition":
            a = {name: p for name, p in params.items() if name == "W"}
            self.inner = [Twin(self.first, a)]
            if self.rest[0] is not None:
                b = {name: p for name, p in params.items() if name == "b"}
                self.inner.append(Twin(self.rest[0], b))
        elif self.kind in WRAPPERS:
            self.inner = [Twin(self.first, params)]
        self.sum = {name: np.zeros_like(p) for name, p in params.items()}

    @property
    def params(self) -> Arrays:
        found = dict(self.own)
        for inner in self.inner:
            found |= inner.params
        return found

    def update(self, grads: Arrays) -> None:
        """Move the parameters by the gradient of the loss itself."""
        self.t += 1
        match self.kind:
            case "partition":
                for inner, name in zip(self.inner, "Wb", strict=False):
                    if name in grads:
                        inner.update({name: grads[name]})
            case "clip":
                norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
                scale = min(1.0, self.rest[0] / norm) if norm else 1.0
                self.inner[0].update({name: g * scale for name, g in grads.items()})
            case "l2":
                params = self.params
                self.inner[0].update({n: g + self.rest[0] * params[n] for n, g in grads.items()})
            case "accumulate":
                self.sum = {name: self.sum[name] + g for name, g in grads.items()}
                if self.t % self.rest[0] == 0:
                    self.inner[0].update({n: s / self.rest[0] for n, s in self.sum.items()})
                    self.sum = {name: np.zeros_like(s) for name, s in self.sum.items()}
            case "average" | "scale":
                self.inner[0].update(grads)
            case _:
                for name, g in grads.items():
                    self.own[name] = self.moved(self.own[name], g, self.slots[name])

    def moved(self, theta: np.ndarray, g: np.ndarray, slots: list[np.ndarray]) -> np.ndarray:
        rate, (a, b, decay), t = self.first, self.rest, self.t
        match self.kind:
            case "sgd":
                return theta - rate * g
            case "momentum" | "nesterov":
                slots[0] = a * slots[0] + rate * g
                return theta - (slots[0] if self.kind == "momentum" else a * slots[0] + rate * g)
            case "rmsprop":
                slots[0] = a * slots[0] + (1 - a) * g**2
                return theta - rate * g / np.sqrt(slots[0] + 1e-8)
            case "adagrad":
                slots[0] = slots[0] + g**2
                return theta - rate * g / (np.sqrt(slots[0]) + 1e-8)
            case "lion":
                step = np.sign(a * slots[0] + (1 - a) * g)
                slots[0] = b * slots[0] + (1 - b) * g
                return theta - rate * step
        slots[0] = a * slots[0] + (1 - a) * g
        slots[1] = b * slots[1] + (1 - b) * g**2
        m = slots[0] / (1 - a**t)
        if self.kind == "nadam":
            m = a * slots[0] / (1 - a ** (t + 1)) + (1 - a) * g / (1 - a**t)
        step = m / (np.sqrt(slots[1] / (1 - b**t)) + 1e-8)
        return theta - rate * (step + (decay * theta if self.kind == "adamw" else 0))


def _moves_differently(spec: Spec, seed: int) -> str | None:
    rng = np.random.default_rng(seed)
    params = {"W": rng.normal(size=(2, 3)), "b": rng.normal(size=2)}
    try:
        optimizer, twin = _optimizer(spec), Twin(spec, params)
        state = optimizer.init(jax.tree.map(jnp.asarray, params))
        for step in range(5):
            grads = {name: rng.normal(size=p.shape) for name, p in params.items()}
            twin.update(grads)
            scale = _scale(state)
            state = optimizer.update(state, {n: jnp.asarray(g * scale) for n, g in grads.items()})
            for name, p in twin.params.items():
                error = np.abs(np.asarray(state.params[name]) - p).max() / (1 + np.abs(p).max())
                if not error <= 1e-6:
                    return f"{name} after {step + 1} updates by {error:.1e}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _scale(state: Any) -> float:
    """What a state wants the loss multiplied by."""
    scale = getattr(state, "loss_scale", None)
    return 1.0 if scale is None else float(scale)
