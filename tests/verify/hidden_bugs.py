"""Bugs that ordinary inputs hide: each with its right rule and inputs at which both look alike.

What shows them: zeros, ties, repeated or unsorted integers, large or tiny numbers, parameters off
their initial values, empty masks, other sizes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Hidden(NamedTuple):
    """forward(params, x), a right and a wrong backward, inputs that show no difference, and a
    function that makes inputs of other sizes."""

    forward: Callable
    right: Callable
    wrong: Callable
    params: Any
    x: Any
    make_inputs: Callable | None = None


X = jax.random.normal(jax.random.key(0), (6, 4))
V = jnp.array([0.3, -1.2, 0.7, 2.1])
TABLE = jnp.arange(12.0).reshape(6, 2) / 7
CODES = jnp.array([1, 3, 5])
MASK = jnp.ones((6, 4), bool)


def elementwise(f, right, wrong, x=X):
    back = lambda df: lambda p, x, dy: ((), dy * df(x).astype(dy.dtype))
    return Hidden(lambda p, x: (f(x), x), back(right), back(wrong), (), x)


def onehots(x, axis=-1):
    return (x == x.max(axis, keepdims=True)).astype(x.dtype)


def first(x):
    return jax.nn.one_hot(x.argmax(-1), x.shape[-1], dtype=x.dtype)


def safe_norm(x):
    square = jnp.square(x).sum(-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def safe_direction(x):
    n = safe_norm(x)[:, None]
    return jnp.where(n > 0, x / jnp.where(n > 0, n, 1), 0)


def others(x):
    """The product of the other entries of each row."""
    return jnp.stack([jnp.delete(x, j, -1).prod(-1) for j in range(x.shape[-1])], -1)


def masked_softmax(x):
    m = x["mask"]
    e = jnp.where(m, jnp.exp(x["z"] - jax.lax.stop_gradient(x["z"].max(-1, keepdims=True))), 0)
    s = e.sum(-1, keepdims=True)
    return jnp.where(s > 0, e / jnp.where(s > 0, s, 1), 0)


def masked_softmax_back(guard):
    def backward(p, x, dy):
        e = jnp.where(x["mask"], jnp.exp(x["z"] - x["z"].max(-1, keepdims=True)), 0)
        s = e.sum(-1, keepdims=True)
        y = e / (jnp.where(s > 0, s, 1) if guard else s)
        return (), {"z": y * (dy - (y * dy).sum(-1, keepdims=True)), "mask": None}

    return backward


def masked_mean(x):
    m = x["mask"].astype(x["z"].dtype)
    return (x["z"] * m).sum(-1) / jnp.maximum(m.sum(-1), 1)


def masked_mean_back(count):
    def backward(p, x, dy):
        m = x["mask"].astype(dy.dtype)
        return (), {"z": dy[:, None] * m / jnp.maximum(count(m), 1), "mask": None}

    return backward


def dense(
    make_dw=lambda x, dy: x.T @ dy, make_db=lambda dy: dy.sum(0), make_dx=lambda dy, w: dy @ w.T
):
    def backward(p, x, dy):
        return {"w": make_dw(x, dy), "b": make_db(dy)}, make_dx(dy, p["w"])

    return backward


def dense_inputs(key, batch=6, d_in=4, d_out=4):
    keys = jax.random.split(key, 3)
    params = {
        "w": jax.random.normal(keys[0], (d_in, d_out)), "b": jax.random.normal(keys[1], (d_out,))
    }  # fmt: skip
    return params, jax.random.normal(keys[2], (batch, d_in))


def dense_bug(wrong):
    return Hidden(
        lambda p, x: (x @ p["w"] + p["b"], x), dense(), wrong, *dense_inputs(jax.random.key(1)),
        dense_inputs,
    )  # fmt: skip


def rows(key, batch=8):
    return (), jax.random.normal(key, (batch, 3))


def full_blocks(g, block=4):
    return jnp.zeros_like(g).at[: len(g) // block * block].set(g[: len(g) // block * block])


def average_pairs(x):
    padded = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2)))
    return padded.reshape(len(x), -1, 2).sum(-1) / 2


def pairs(key, length=6):
    return (), jax.random.normal(key, (3, length))


def first_of_sorted(x, dy):
    rank = jnp.searchsorted(jnp.sort(x), x)
    return dy[rank]


def by_rank(x, dy):
    return jnp.zeros_like(dy).at[jnp.argsort(x, stable=True)].set(dy)


def sorted_segments(i, dy):
    """Sums of equal codes as differences of a running sum: right for codes in order."""
    total = jnp.concatenate([jnp.zeros_like(dy[:1]), jnp.cumsum(dy, 0)])
    ends, starts = (jnp.searchsorted(i, jnp.arange(6), side=s) for s in ("right", "left"))
    return total[ends] - total[starts]


def sinc(x):
    near = jnp.abs(x) < 0.1
    safe = jnp.where(near, 1, x)
    return jnp.where(near, 1 - x**2 / 6 + x**4 / 120 - x**6 / 5040, jnp.sin(safe) / safe)


def sinc_slope(x):
    near = jnp.abs(x) < 0.1
    safe = jnp.where(near, 1, x)
    return jnp.where(
        near, -x / 3 + x**3 / 30 - x**5 / 840, (jnp.cos(safe) - jnp.sin(safe) / safe) / safe
    )


def layer_norm(p, x):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    xhat = (x - mean) / jnp.sqrt(var + 1e-5)
    return p["gamma"] * xhat + p["beta"], (x, xhat, var)


def layer_norm_back(dgamma, inner):
    def backward(p, r, dy):
        _, xhat, var = r
        g = inner(p, dy)
        dx = g - g.mean(-1, keepdims=True) - xhat * (g * xhat).mean(-1, keepdims=True)
        y = p["gamma"] * xhat + p["beta"]
        dparams = {"gamma": dgamma(p, xhat, y, dy).sum(0), "beta": dy.sum(0)}
        return dparams, dx / jnp.sqrt(var + 1e-5)

    return backward


LN = {"gamma": jnp.ones(4), "beta": jnp.zeros(4)}
LN_RIGHT = layer_norm_back(lambda p, h, y, dy: dy * h, lambda p, dy: p["gamma"] * dy)
SMALL, POSITIVE = X / 4, jnp.abs(X) + 0.1
AFFINE = lambda p, x: (p * x, x)

HIDDEN = {
    "relu at 0": elementwise(jax.nn.relu, lambda x: x > 0, lambda x: x >= 0),
    "abs at 0": elementwise(jnp.abs, jnp.sign, lambda x: jnp.where(x == 0, 1.5, jnp.sign(x))),
    "gamma forgotten": Hidden(
        AFFINE, lambda p, x, dy: ((dy * x).sum(0), dy * p), lambda p, x, dy: ((dy * x).sum(0), dy),
        jnp.ones(4), X,
    ),
    "layer norm without gamma": Hidden(
        layer_norm, LN_RIGHT, layer_norm_back(lambda p, h, y, dy: dy * h, lambda p, dy: dy), LN, X
    ),
    "layer norm from y": Hidden(
        layer_norm, LN_RIGHT,
        layer_norm_back(lambda p, h, y, dy: dy * y, lambda p, dy: p["gamma"] * dy), LN, X,
    ),
    "layer norm from y - beta over gamma": Hidden(
        layer_norm, LN_RIGHT,
        layer_norm_back(
            lambda p, h, y, dy: dy * (y - p["beta"]) / p["gamma"], lambda p, dy: p["gamma"] * dy
        ), LN, X,
    ),
    "branch of weight 0": Hidden(
        lambda a, x: (x + a * jnp.tanh(x), x),
        lambda a, x, dy: ((dy * jnp.tanh(x)).sum(), dy * (1 + a * (1 - jnp.tanh(x) ** 2))),
        lambda a, x, dy: ((dy * jnp.tanh(x)).sum(), dy), jnp.zeros(()), X,
    ),
    "repeats overwritten": Hidden(
        lambda t, i: (t[i], i), lambda t, i, dy: (jnp.zeros_like(t).at[i].add(dy), None),
        lambda t, i, dy: (jnp.zeros_like(t).at[i].set(dy), None), TABLE, CODES,
    ),
    "codes taken for sorted": Hidden(
        lambda t, i: (t[i], i), lambda t, i, dy: (jnp.zeros_like(t).at[i].add(dy), None),
        lambda t, i, dy: (sorted_segments(i, dy), None), TABLE, CODES,
    ),
    "code 0 taken for padding": Hidden(
        lambda t, i: (t[i], i), lambda t, i, dy: (jnp.zeros_like(t).at[i].add(dy), None),
        lambda t, i, dy: (jnp.zeros_like(t).at[i].add(dy).at[0].set(0), None), TABLE, CODES,
    ),
    "softplus overflows": elementwise(
        jax.nn.softplus, jax.nn.sigmoid, lambda x: jnp.exp(x) / (1 + jnp.exp(x))
    ),
    "softplus cut off": elementwise(
        jax.nn.softplus, jax.nn.sigmoid, lambda x: jnp.where(jnp.abs(x) <= 20, jax.nn.sigmoid(x), 0)
    ),
    "sigmoid overflows": elementwise(
        jax.nn.sigmoid, lambda x: jax.nn.sigmoid(x) * jax.nn.sigmoid(-x),
        lambda x: jnp.exp(-x) / (1 + jnp.exp(-x)) ** 2,
    ),
    "size for the value": elementwise(
        jnp.square, lambda x: 2 * x, lambda x: 2 * jnp.abs(x), POSITIVE
    ),
    "leaky below 0": elementwise(
        lambda x: jnp.where(x > 0, x, 0.01 * x), lambda x: jnp.where(x > 0, 1, 0.01),
        lambda x: jnp.where(x > 0, 1, 0.0), POSITIVE,
    ),
    "huber's tail": elementwise(
        lambda x: jnp.where(jnp.abs(x) < 1, x * x / 2, jnp.abs(x) - 0.5),
        lambda x: jnp.where(jnp.abs(x) < 1, x, jnp.sign(x)), lambda x: x, SMALL,
    ),
    "clip passes all": elementwise(
        lambda x: jnp.where(x > 6, 6, jnp.where(x < -6, -6, x)), lambda x: jnp.abs(x) < 6,
        jnp.ones_like,
    ),
    "power of a negative": elementwise(
        lambda x: x**3, lambda x: 3 * x**2, lambda x: 3 * jnp.exp(2 * jnp.log(x)), POSITIVE
    ),
    "sinc at 0": elementwise(sinc, sinc_slope, lambda x: (jnp.cos(x) - jnp.sin(x) / x) / x, X + 4),
    "norm of zeros": Hidden(
        lambda p, x: (safe_norm(x), x), lambda p, x, dy: ((), dy[:, None] * safe_direction(x)),
        lambda p, x, dy: ((), dy[:, None] * x / jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))),
        (), X,
    ),
    "product over zeros": Hidden(
        lambda p, x: (x.prod(-1), x), lambda p, x, dy: ((), dy[:, None] * others(x)),
        lambda p, x, dy: ((), dy[:, None] * x.prod(-1, keepdims=True) / x), (), X,
    ),
    "all of a tie": Hidden(
        lambda p, x: (jnp.take_along_axis(x, x.argmax(-1)[:, None], -1)[:, 0], x),
        lambda p, x, dy: ((), dy[:, None] * first(x)),
        lambda p, x, dy: ((), dy[:, None] * onehots(x)), (), X,
    ),
    "sort by value": Hidden(
        lambda p, x: (jnp.sort(x), x), lambda p, x, dy: ((), by_rank(x, dy)),
        lambda p, x, dy: ((), dy[jnp.searchsorted(jnp.sort(x), x)]), (), V,
    ),
    "empty rows of a mask": Hidden(
        lambda p, x: (masked_softmax(x), x), masked_softmax_back(True), masked_softmax_back(False),
        (), {"z": X, "mask": MASK},
    ),
    "mean over the masked too": Hidden(
        lambda p, x: (masked_mean(x), x), masked_mean_back(lambda m: m.sum(-1, keepdims=True)),
        masked_mean_back(lambda m: m.shape[-1] + 0 * m.sum(-1, keepdims=True)),
        (), {"z": X, "mask": MASK},
    ),
    "rows behind the last block": Hidden(
        lambda p, x: (x**2, x), lambda p, x, dy: ((), 2 * x * dy),
        lambda p, x, dy: ((), full_blocks(2 * x * dy)), *rows(jax.random.key(0)), rows,
    ),
    "odd lengths": Hidden(
        lambda p, x: (average_pairs(x), x),
        lambda p, x, dy: ((), jnp.repeat(dy, 2, 1)[:, : x.shape[1]] / 2),
        lambda p, x, dy: (
            (), jnp.zeros_like(x).at[:, : x.shape[1] // 2 * 2].set(
                jnp.repeat(dy, 2, 1)[:, : x.shape[1] // 2 * 2] / 2)
        ), *pairs(jax.random.key(0)), pairs,
    ),
    "right for square weights": dense_bug(
        dense(make_dx=lambda dy, w: dy @ w.T if w.shape[0] == w.shape[1] else 0 * (dy @ w.T))
    ),
    "one example": dense_bug(dense(make_db=lambda dy: dy.sum(0) if len(dy) > 1 else dy[0] / 2)),
    "4 for the width": dense_bug(dense(make_db=lambda dy: dy.sum(0) * (dy.shape[1] / 4))),
    "more than 128 rows": Hidden(
        lambda p, x: (jnp.sin(x), x), lambda p, x, dy: ((), dy * jnp.cos(x)),
        lambda p, x, dy: ((), (dy * jnp.cos(x)).at[128:].set(0)), *rows(jax.random.key(0)), rows,
    ),
    "tiny by a difference": elementwise(
        lambda x: jnp.cosh(x), jnp.sinh, lambda x: jnp.where(jnp.abs(x) < 1e-3, 0.0, jnp.sinh(x)),
        X + 3,
    ),
    "small log": elementwise(
        lambda x: jnp.log1p(x * x), lambda x: 2 * x / (1 + x * x),
        lambda x: 2 * x / jnp.maximum(x * x + 1, 1.001), X + 2,
    ),
}  # fmt: skip
