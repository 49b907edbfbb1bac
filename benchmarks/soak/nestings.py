"""Random nestings of optimizers and their wrappers beside NumPy: do parameters move alike?

A nesting is a tree of tuples, such as ("clip", ("sgd", 0.1), 0.5), from which both the optimizer
and its twin in NumPy are built.
"""

import random
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fnn

Spec = tuple[Any, ...]


def nestings(folder: Path, wanted: int, seed: int) -> dict[str, int]:
    """Each random nesting of wrappers around a rule moves parameters as its twin in NumPy does."""
    rng = random.Random(seed)
    counts = {"inputs": 0, "differ": 0}
    with jax.enable_x64(True):
        for _ in range(wanted):
            spec = nesting(rng, rng.choice([0, 1, 2, 3, 4]))
            counts["inputs"] += 1
            found = _moves_differently(spec, rng.randrange(10**6))
            if found:
                counts["differ"] += 1
                print("differs:", spec, found)
    return counts


RULES = ("sgd", "momentum", "nesterov", "rmsprop", "adagrad", "adam", "adamw", "nadam", "lion",
         "muon")  # fmt: skip
COVERS = (
    "sgd momentum rmsprop adagrad adam adamw nadam lion muon"
    " clip_by_global_norm add_l2 accumulate average partition scale_loss"
)
"""The public names in nestings."""
WRAPPERS = ("clip", "l2", "accumulate", "average", "partition", "scale")


def nesting(rng: random.Random, depth: int) -> Spec:
    """A random rule in this many wrappers."""
    number = lambda low, high: round(rng.uniform(low, high), 3)
    if depth == 0:
        return (rng.choice(RULES), number(0.001, 0.3), number(0.1, 0.9), number(0.5, 0.99),
                number(0.01, 0.5))  # fmt: skip
    kind, inner = rng.choice(WRAPPERS), nesting(rng, depth - 1)
    match kind:
        case "clip":
            return (kind, inner, number(0.1, 3))
        case "l2" | "average":
            return (kind, inner, number(0.01, 0.9))
        case "accumulate":
            return (kind, inner, rng.choice([1, 2, 3]))
        case "partition":
            return (kind, inner, rng.choice([None, nesting(rng, depth - 1)]))
        case _:
            return (kind, inner, 2.0 ** rng.randrange(0, 5))


def optimizer(spec: Spec) -> fnn.Optimizer:
    """The nesting in fnn."""
    kind, first, *rest = spec
    match kind:
        case "sgd":
            return fnn.sgd(first)
        case "momentum" | "nesterov":
            return fnn.momentum(first, rest[0], nesterov=kind == "nesterov")
        case "muon":
            return fnn.muon(first, rest[0], weight_decay=rest[2])
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
    inner = optimizer(first)
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
    other = None if rest[0] is None else optimizer(rest[0])
    return fnn.partition(_alternating, {"a": inner, "b": other})


def _alternating(params: Any) -> Any:
    """The label a for the first array, b for the second, and so on."""
    leaves, form = jax.tree.flatten(params)
    return jax.tree.unflatten(form, ["ab"[i % 2] for i in range(len(leaves))])


Arrays = dict[str, np.ndarray]


class Twin:
    """The same nesting in NumPy: `params` are what `update(grads)` moves."""

    def __init__(self, spec: Spec, params: Arrays) -> None:
        self.kind, self.first, *self.rest = spec
        self.own = dict(params)
        self.t = 0
        self.ties = False
        """Whether a sign was taken of what is 0 up to rounding."""
        self.slots = {name: [np.zeros_like(p), np.zeros_like(p)] for name, p in params.items()}
        self.inner: list[Twin] = []
        if self.kind == "partition":
            for i, inner in enumerate((self.first, *self.rest)):
                if inner is not None:
                    part = {name: params[name] for name in sorted(params)[i::2]}
                    self.inner.append(Twin(inner, part))
        elif self.kind in WRAPPERS:
            self.inner = [Twin(self.first, params)]
        self.sum = {name: np.zeros_like(p) for name, p in params.items()}

    @property
    def params(self) -> Arrays:
        found = dict(self.own)
        for inner in self.inner:
            found |= inner.params
        return found

    @property
    def tied(self) -> bool:
        """Whether it, or what it wraps, took such a sign."""
        return self.ties or any(inner.tied for inner in self.inner)

    def update(self, grads: Arrays) -> None:
        """Move the parameters by the gradient of the loss itself."""
        self.t += 1
        match self.kind:
            case "partition":
                for inner in self.inner:
                    inner.update({name: grads[name] for name in inner.params})
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
                direction = a * slots[0] + (1 - a) * g
                self.ties |= bool((np.abs(direction) < 1e-9).any())
                slots[0] = b * slots[0] + (1 - b) * g
                return theta - rate * np.sign(direction)
            case "muon":
                slots[0] = a * slots[0] + g
                u = np.atleast_2d(g + a * slots[0])
                step = max(1, u.shape[-2] / u.shape[-1]) ** 0.5 * _orthogonal(u)
                return theta - rate * (step.reshape(theta.shape) + decay * theta)
        slots[0] = a * slots[0] + (1 - a) * g
        slots[1] = b * slots[1] + (1 - b) * g**2
        m = slots[0] / (1 - a**t)
        if self.kind == "nadam":
            m = a * slots[0] / (1 - a ** (t + 1)) + (1 - a) * g / (1 - a**t)
        step = m / (np.sqrt(slots[1] / (1 - b**t)) + 1e-8)
        return theta - rate * (step + (decay * theta if self.kind == "adamw" else 0))


def _orthogonal(u: np.ndarray) -> np.ndarray:
    """Five steps of `muon`'s iteration for each matrix of the last two axes."""
    x = u / (np.linalg.norm(u, axis=(-2, -1), keepdims=True) + 1e-8)
    for _ in range(5):
        gram = x @ x.swapaxes(-1, -2)
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.775 * gram) @ x
    return x


def _moves_differently(spec: Spec, seed: int) -> str | None:
    rng = np.random.default_rng(seed)
    params = {"W": rng.normal(size=(2, 3)), "b": rng.normal(size=2)}
    try:
        rule, twin = optimizer(spec), Twin(spec, params)
        state = rule.init(jax.tree.map(jnp.asarray, params))
        for step in range(5):
            grads = {name: rng.normal(size=p.shape) for name, p in params.items()}
            twin.update(grads)
            scale = _scale(state)
            state = rule.update(state, {n: jnp.asarray(g * scale) for n, g in grads.items()})
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
