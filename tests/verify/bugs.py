"""The registry of planted bugs: mistakes that people make by hand, in gradients and in updates.

A gradient bug replaces one step of a backpropagation that is written out below, in the order of
the textbook; an update bug is a rule with one mistake. Every one of them must fail the checker,
at every scale of the loss, and the same code without the mistake must pass.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fnn


class Steps(NamedTuple):
    """Backpropagation, one step per field; each field is right, and a bug replaces one."""

    mean: Callable = lambda m: 1 / m
    start: Callable | None = None  # (prediction, target) -> d loss / d prediction of each example
    slope: Callable | None = None  # (z, a, layer) -> s'(z)
    dw: Callable = lambda dz, z, a: dz.T @ a  # z and a of the layer before
    db: Callable = lambda dz: dz.sum(0)
    da: Callable = lambda dz, w: dz @ w
    dz: Callable = lambda dz: dz
    penalty: Callable = lambda params, alpha: [
        {"W": alpha * p["W"], "b": 0 * p["b"]} for p in params
    ]
    value: Callable = lambda losses: losses.mean()
    grads: Callable = lambda grads: grads


class Setting(NamedTuple):
    """A network, a loss and a batch for which f and its backpropagation are written out."""

    name: str
    sizes: tuple[int, ...]
    activation: Callable
    slope: Callable
    losses: Callable
    start: Callable
    alpha: float  # of the L2 penalty on weights

    def data(self, m=6):
        keys = jax.random.split(jax.random.key(len(self.name)), 2 * len(self.sizes) + 2)
        params = [
            {
                "W": jax.random.normal(keys[2 * i], (d_out, d_in)) / np.sqrt(d_in),
                "b": 0.3 * jax.random.normal(keys[2 * i + 1], (d_out,)),
            }
            for i, (d_in, d_out) in enumerate(zip(self.sizes, self.sizes[1:], strict=False))
        ]
        # An input of zeros and a unit without bias: a pre-activation exactly at relu's kink.
        x = jax.random.normal(keys[-1], (m, self.sizes[0])).at[2].set(0)
        params[0]["b"] = params[0]["b"].at[1].set(0)
        y = jax.random.randint(keys[-2], (m,), 0, self.sizes[-1])
        return params, x, y

    def forward(self, params, x):
        zs, activations = [], [x]
        for i, p in enumerate(params):
            zs.append(activations[-1] @ p["W"].T + p["b"])
            last = i == len(params) - 1
            activations.append(zs[-1] if last else self.activation(zs[-1]))
        return zs, activations

    def objective(self, params, x, y, scale):
        """scale (mean loss + alpha/2 ||W||^2)."""
        _, activations = self.forward(params, x)
        penalty = sum(jnp.sum(p["W"] ** 2) for p in params)
        return scale * (self.losses(activations[-1], y).mean() + self.alpha / 2 * penalty)

    def value_and_grad(self, steps: Steps):
        """By hand. f(params, x, y, scale) -> (value, grads), with the steps as they are."""
        slope = steps.slope or (lambda z, a, layer: self.slope(z, a))
        start = steps.start or self.start

        def f(params, x, y, scale):
            zs, activations = self.forward(params, x)
            penalty = sum(jnp.sum(p["W"] ** 2) for p in params)
            value = steps.value(self.losses(activations[-1], y)) + self.alpha / 2 * penalty
            dz = start(activations[-1], y) * steps.mean(len(x))
            grads = []
            for i in reversed(range(len(params))):
                dz = steps.dz(dz)
                before = zs[i - 1] if i else activations[0]
                grads.append({"W": steps.dw(dz, before, activations[i]), "b": steps.db(dz)})
                if i:
                    dz = steps.da(dz, params[i]["W"]) * slope(zs[i - 1], activations[i], i)
            decay = steps.penalty(params, self.alpha)
            add = lambda g, d: g if g.shape != d.shape else g + d
            grads = jax.tree.map(add, grads[::-1], decay)
            return scale * value, steps.grads(jax.tree.map(lambda g: scale * g, grads))

        return f


def _onehot(y, k, dtype):
    return (y[:, None] == jnp.arange(k)).astype(dtype)


def _cross_entropy(z, y):
    return jax.nn.logsumexp(z, -1) - jnp.take_along_axis(z, y[:, None], -1)[:, 0]


def _cross_entropy_start(z, y):
    return jax.nn.softmax(z) - _onehot(y, z.shape[-1], z.dtype)


def _squares(z, y):
    return ((z - _onehot(y, z.shape[-1], z.dtype)) ** 2).mean(-1)


def _squares_start(z, y):
    return 2 * (z - _onehot(y, z.shape[-1], z.dtype)) / z.shape[-1]


def _relu(z):
    return jnp.where(z > 0, z, 0)


SETTINGS = [
    Setting(
        "tanh, cross-entropy",
        (5, 4, 4, 3),
        jnp.tanh,
        lambda z, a: 1 - a * a,
        _cross_entropy,
        _cross_entropy_start,
        0.01,
    ),
    Setting(
        "relu, squares",
        (4, 4, 4, 4),
        _relu,
        lambda z, a: (z > 0).astype(z.dtype),
        _squares,
        _squares_start,
        0.0,
    ),
    Setting(
        "sigmoid, cross-entropy",
        (3, 5, 5, 4),
        jax.nn.sigmoid,
        lambda z, a: a * (1 - a),
        _cross_entropy,
        _cross_entropy_start,
        0.0,
    ),
]


class Bug(NamedTuple):
    kind: str
    steps: Steps
    where: str = ""  # in the settings whose name has this


def _with(leaf: str, layer: int, change: Callable) -> Callable:
    """Change one leaf of the gradient."""

    def grads(grads):
        grads = [dict(g) for g in grads]
        grads[layer][leaf] = change(grads[layer][leaf])
        return grads

    return Steps(grads=grads)


def _largest(g, factor):
    """The largest entry times a factor: a zero would not show it."""
    index = jnp.unravel_index(jnp.argmax(jnp.abs(g)), g.shape)
    return g.at[index].multiply(factor)


def _swap_leaves(grads):
    return [grads[0], grads[1] | {"W": grads[2]["W"]}, grads[2] | {"W": grads[1]["W"]}]


def _through_jacobian(z, y):
    a, d = jax.nn.softmax(z), _cross_entropy_start(z, y)
    return a * (d - (a * d).sum(-1, keepdims=True))


def _diagonal_only(z, y):
    a, t = jax.nn.softmax(z), _onehot(y, z.shape[-1], z.dtype)
    return a * (1 - a) * (-t / a)


def _rounded(dtype):
    return lambda g: g.astype(dtype).astype(g.dtype)


GRADIENT_BUGS = [
    Bug("1/m missing", Steps(mean=lambda m: 1.0)),
    Bug("1/(m - 1)", Steps(mean=lambda m: 1 / (m - 1))),
    Bug("1/m twice", Steps(mean=lambda m: 1 / m**2)),
    Bug("W untransposed", Steps(da=lambda dz, w: dz @ w.T if w.shape[0] == w.shape[1] else dz @ w)),
    Bug("A^T dZ swapped", Steps(dw=lambda dz, z, a: a.T @ dz)),
    Bug("bias sum missing", Steps(db=lambda dz: dz)),
    Bug("bias mean", Steps(db=lambda dz: dz.mean(0))),
    Bug("bias sum kept as a row", Steps(db=lambda dz: dz.sum(0, keepdims=True))),
    Bug("bias of the last example", Steps(db=lambda dz: dz[-1])),
    Bug("sign of one leaf", _with("W", 1, lambda g: -g)),
    Bug("one leaf zero", _with("b", 0, lambda g: 0 * g)),
    Bug("one column zero", _with("W", 1, lambda g: g.at[:, 2].set(0))),
    Bug("one row from its neighbour", _with("W", 0, lambda g: g.at[1].set(g[2]))),
    Bug("one element negated", _with("W", 2, lambda g: _largest(g, -1.0))),
    Bug("one element off by 1e-6", _with("W", 1, lambda g: _largest(g, 1 + 1e-6))),
    Bug("rows reversed", _with("W", 0, lambda g: g[::-1])),
    Bug("relu' at 0 is 1", Steps(slope=lambda z, a, i: (z >= 0).astype(z.dtype)), "relu"),
    Bug("slope left out", Steps(slope=lambda z, a, i: jnp.ones_like(z))),
    Bug(
        "slope of a leaky relu",
        Steps(slope=lambda z, a, i: jnp.where(z > 0, 1, 0.01).astype(z.dtype)),
        "relu",
    ),
    Bug("stale mask", Steps(slope=lambda z, a, i: (jnp.roll(z, 1, 0) > 0).astype(z.dtype)), "relu"),
    Bug("mask of a, shifted", Steps(slope=lambda z, a, i: (a > 0.1).astype(z.dtype)), "relu"),
    Bug("pre-activation in dW", Steps(dw=lambda dz, z, a: dz.T @ z)),
    Bug("tanh' as 1 - z^2", Steps(slope=lambda z, a, i: 1 - z * z), "tanh"),
    Bug("tanh' as 1 - a", Steps(slope=lambda z, a, i: 1 - a), "tanh"),
    Bug("sigmoid' as z (1 - z)", Steps(slope=lambda z, a, i: z * (1 - z)), "sigmoid"),
    Bug(
        "sigmoid' of a",
        Steps(slope=lambda z, a, i: jax.nn.sigmoid(a) * (1 - jax.nn.sigmoid(a))),
        "sigmoid",
    ),
    Bug(
        "slope in one layer only",
        Steps(slope=lambda z, a, i: jnp.ones_like(z) if i > 1 else (z > 0).astype(z.dtype)),
        "relu",
    ),
    Bug("softmax's diagonal only", Steps(start=_diagonal_only), "cross"),
    Bug("A - Y through the Jacobian", Steps(start=_through_jacobian), "cross"),
    Bug(
        "labels shifted by one",
        Steps(start=lambda z, y: _cross_entropy_start(z, (y + 1) % z.shape[-1])),
        "cross",
    ),
    Bug(
        "softmax over the batch",
        Steps(start=lambda z, y: jax.nn.softmax(z, 0) - _onehot(y, z.shape[-1], z.dtype)),
        "cross",
    ),
    Bug("last example dropped", Steps(dz=lambda dz: dz.at[-1].set(0))),
    Bug("squares without 2", Steps(start=lambda z, y: _squares_start(z, y) / 2), "squares"),
    Bug(
        "squares without 1/k",
        Steps(start=lambda z, y: _squares_start(z, y) * z.shape[-1]),
        "squares",
    ),
    Bug("L2 left out", Steps(penalty=lambda p, alpha: jax.tree.map(jnp.zeros_like, p)), "tanh"),
    Bug(
        "L2 on biases", Steps(penalty=lambda p, alpha: jax.tree.map(lambda a: alpha * a, p)), "tanh"
    ),
    Bug(
        "L2 without its half",
        Steps(penalty=lambda p, alpha: [{"W": 2 * alpha * q["W"], "b": 0 * q["b"]} for q in p]),
        "tanh",
    ),
    Bug("cast to bfloat16", Steps(dz=_rounded(jnp.bfloat16))),
    Bug("cast to float16", _with("W", 1, _rounded(jnp.float16))),
    Bug("no gradient beyond the last layer", Steps(da=lambda dz, w: 0 * (dz @ w))),
    Bug("cotangent clipped", Steps(dz=lambda dz: jnp.clip(dz, -0.002, 0.002))),
    Bug("value is the sum", Steps(value=lambda losses: losses.sum())),
    Bug("value of the first example", Steps(value=lambda losses: losses[0])),
    Bug("NaN in one entry", _with("W", 1, lambda g: g.at[0, 1].set(jnp.nan))),
    Bug("infinity in one entry", _with("b", 1, lambda g: g.at[0].set(jnp.inf))),
    Bug("all NaN", Steps(grads=lambda g: jax.tree.map(lambda a: a * jnp.nan, g))),
    Bug("dtype", _with("W", 1, lambda g: g.astype(jnp.bfloat16))),
    Bug("shape", _with("W", 1, lambda g: g.ravel())),
    Bug("leaf missing", Steps(grads=lambda g: [g[0], {"W": g[1]["W"]}, g[2]])),
    Bug("leaf too many", Steps(grads=lambda g: [g[0], g[1] | {"c": g[1]["b"]}, g[2]])),
    Bug("tuple for a list", Steps(grads=tuple)),
    Bug("leaves swapped", Steps(grads=_swap_leaves), "relu"),
]


class UpdateBug(NamedTuple):
    kind: str
    wrong: Callable  # (rate, t, theta, g, m, v) -> (theta, m, v), with the mistake
    rule: str  # the case of the registry that it means to be


def optimizer(rule: Callable, slot_dtype: Any = None) -> Callable:
    """learning_rate -> the Optimizer of a rule with two slots, written plainly."""

    class State(NamedTuple):
        params: Any
        step: Any
        m: Any
        v: Any

    def make(learning_rate):
        def init(params):
            zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, slot_dtype or p.dtype), params)
            return State(params, jnp.zeros((), jnp.int32), zeros, zeros)

        def update(state, grads):
            rate = learning_rate(state.step)
            t = (state.step + 1).astype(float)

            def one(p, g, m, v):
                new, m2, v2 = rule(
                    rate.astype(p.dtype),
                    t.astype(p.dtype),
                    p,
                    g,
                    m.astype(p.dtype),
                    v.astype(p.dtype),
                )
                return new, m2.astype(m.dtype), v2.astype(v.dtype)

            out = jax.tree.map(one, state.params, grads, state.m, state.v)
            form = jax.tree.structure((0, 0, 0))
            params, m, v = jax.tree.transpose(jax.tree.structure(state.params), form, out)
            return State(params, state.step + 1, m, v)

        return fnn.Optimizer(init, update)

    return make


def _adam(b1=0.9, b2=0.999, t_shift=0, correct=(True, True), square=True, inside=False, stale=False,
          swapped=False, decay=0.0, coupled=0.0, epsilon=1e-8):  # fmt: skip
    """Adam with a choice of mistakes."""

    def rule(rate, t, theta, g, m, v):
        t = t + t_shift
        g = g + coupled * theta
        m2 = b1 * m + (1 - b1) * g
        v2 = b2 * v + (1 - b2) * (g * g if square else g)
        first = m if stale else m2
        m_hat = first / (1 - b1**t) if correct[0] else first
        v_hat = v2 / (1 - b2**t) if correct[1] else v2
        if swapped:
            m_hat, v_hat = v_hat, m_hat * m_hat
        root = jnp.sqrt(v_hat + epsilon) if inside else jnp.sqrt(v_hat) + epsilon
        return theta - rate * (m_hat / root + decay * theta), m2, v2

    return rule


def _momentum(rate, t, theta, g, m, v):
    m = 0.9 * m + rate * g
    return theta - m, m, v


RIGHT_UPDATES = [UpdateBug("adam", _adam(), "adam"), UpdateBug("momentum", _momentum, "momentum")]

UPDATE_BUGS = [
    UpdateBug("sgd climbs", lambda r, t, p, g, m, v: (p + r * g, m, v), "sgd"),
    UpdateBug("sgd without its rate", lambda r, t, p, g, m, v: (p - g, m, v), "sgd"),
    UpdateBug(
        "momentum's sign", lambda r, t, p, g, m, v: (p + (n := 0.9 * m + r * g), n, v), "momentum"
    ),
    UpdateBug(
        "rate outside of the velocity",
        lambda r, t, p, g, m, v: (p - r * (n := 0.9 * m + g), n, v),
        "momentum",
    ),
    UpdateBug(
        "velocity dampened",
        lambda r, t, p, g, m, v: (p - (n := 0.9 * m + 0.1 * r * g), n, v),
        "momentum",
    ),
    UpdateBug(
        "old velocity used", lambda r, t, p, g, m, v: (p - m, 0.9 * m + r * g, v), "momentum"
    ),
    UpdateBug(
        "nesterov left out",
        lambda r, t, p, g, m, v: (p - (n := 0.59 * m + r * g), n, v),
        "momentum/other settings",
    ),
    UpdateBug(
        "rmsprop's eps outside",
        lambda r, t, p, g, m, v: (p - r * g / (jnp.sqrt(n := 0.9 * v + 0.1 * g * g) + 1e-8), m, n),
        "rmsprop",
    ),
    UpdateBug(
        "rmsprop reads the old square",
        lambda r, t, p, g, m, v: (p - r * g / jnp.sqrt(v + 1e-8), m, 0.9 * v + 0.1 * g * g),
        "rmsprop",
    ),
    UpdateBug(
        "adagrad forgets",
        lambda r, t, p, g, m, v: (p - r * g / (jnp.sqrt(n := 0.9 * v + g * g) + 1e-8), m, n),
        "adagrad",
    ),
    UpdateBug(
        "adagrad's eps inside",
        lambda r, t, p, g, m, v: (p - r * g / jnp.sqrt((n := v + g * g) + 1e-8), m, n),
        "adagrad",
    ),
    UpdateBug("adam's t from 0", _adam(t_shift=-1), "adam"),
    UpdateBug("adam's t from 2", _adam(t_shift=1), "adam"),
    UpdateBug("adam's eps inside", _adam(inside=True), "adam"),
    UpdateBug("adam's eps of 1e-7", _adam(epsilon=1e-7), "adam"),
    UpdateBug("adam's v from g", _adam(square=False), "adam"),
    UpdateBug("adam's m and v swapped", _adam(swapped=True), "adam"),
    UpdateBug("adam's decays swapped", _adam(0.999, 0.9), "adam"),
    UpdateBug("adam reads the old m", _adam(stale=True), "adam"),
    UpdateBug("adam without correction", _adam(correct=(False, False)), "adam"),
    UpdateBug("adam corrects m alone", _adam(correct=(True, False)), "adam"),
    UpdateBug("adamw's decay in the gradient", _adam(coupled=0.1), "adamw"),
    UpdateBug("adamw without decay", _adam(), "adamw"),
    UpdateBug(
        "adamw's decay without the rate",
        lambda r, t, p, g, m, v: (lambda q: (q[0] - 0.1 * p, *q[1:]))(_adam()(r, t, p, g, m, v)),
        "adamw",
    ),
    UpdateBug("nadam without looking ahead", _adam(), "nadam"),
    UpdateBug(
        "lion's decays swapped",
        lambda r, t, p, g, m, v: (p - r * jnp.sign(0.99 * m + 0.01 * g), 0.9 * m + 0.1 * g, v),
        "lion",
    ),
    UpdateBug(
        "lion without its sign",
        lambda r, t, p, g, m, v: (p - r * (0.9 * m + 0.1 * g), 0.99 * m + 0.01 * g, v),
        "lion",
    ),
    UpdateBug(
        "clipped by value",
        lambda r, t, p, g, m, v: (p - r * jnp.clip(g, -0.5, 0.5), m, v),
        "clip_by_global_norm",
    ),
    UpdateBug(
        "clipped leaf by leaf",
        lambda r, t, p, g, m, v: (p - r * g * jnp.minimum(1, 0.5 / jnp.linalg.norm(g)), m, v),
        "clip_by_global_norm",
    ),
    UpdateBug("L2 outside of adam", _adam(decay=0.3), "add_l2"),
]
