"""Bugs from public issue threads, written again in a few lines, with the right rule beside each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Wild(NamedTuple):
    """Where it was reported, forward(params, x), the right and the wrong backward, and inputs that
    show it. `cause` are words of the report."""

    address: str
    forward: Callable
    right: Callable
    wrong: Callable
    params: Any
    x: Any
    cause: str = ""


X = jax.random.normal(jax.random.key(0), (4, 4))
ROW = jnp.array([[2.0, 0.0, 3.0, 4.0], [0.5, -1.0, 2.0, 1.5]])


def elementwise(address, f, right, wrong, x, cause=""):
    back = lambda df: lambda p, x, dy: ((), dy * df(x))
    return Wild(address, lambda p, x: (f(x), x), back(right), back(wrong), (), x, cause)


def rms_norm(p, x):
    rate = 1 / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
    return p * x * rate, (x, rate)


def rms_norm_back(correction):
    def backward(p, residuals, dy):
        x, rate = residuals
        g = p * dy
        row = (g * x).mean(-1)
        dx = rate * g - rate**3 * x * correction(row)
        return (dy * x * rate).sum(0), dx

    return backward


def two_sums(p, x):
    """Two inputs, each times its rows' scale, added."""
    return x["scale"][0] * x["x"] + x["scale"][1] * x["x1"], x


def two_sums_back(second):
    def backward(p, x, dy):
        scale = x["scale"]
        dscale = jnp.stack([
            (dy * x["x"]).sum(-1, keepdims=True), (dy * x["x1"]).sum(-1, keepdims=True)
        ])  # fmt: skip
        return (), {"x": scale[0] * dy, "x1": second(scale, dy), "scale": dscale}

    return backward


def soft_cross_entropy(target, z):
    return -(target * z).sum(-1) + jax.nn.logsumexp(z, -1) * target.sum(-1), (target, z)


def soft_cross_entropy_back(weight):
    def backward(target, residuals, dy):
        _, z = residuals
        dz = weight(target) * jax.nn.softmax(z) - target
        dtarget = jax.nn.logsumexp(z, -1, keepdims=True) - z
        return dy[:, None] * dtarget, dy[:, None] * dz

    return backward


def side_by_side(p, x):
    """What a kernel returns as two arrays, one beside the other."""
    return jnp.concatenate([jnp.sin(x), jnp.cos(x)], 1), x


def own_strides(dy, n):
    """The first array's cotangent, read as if it were stored without the second."""
    return dy.ravel()[: n * len(dy)].reshape(len(dy), n)


def prod_of_others(x):
    return jnp.stack([jnp.delete(x, j, -1).prod(-1) for j in range(x.shape[-1])], -1)


def cumprod_back(p, x, dy):
    _, pull = jax.vjp(lambda x: jax.lax.associative_scan(jnp.multiply, x, axis=-1), x)
    return (), pull(dy)[0]


def shared_among_ties(x, dy, dtype):
    """The cotangent of a maximum by the number of its ties, counted in this dtype."""
    ties = (x == x.max(-1, keepdims=True)).astype(dtype)
    count = ties.astype(jnp.float32).sum(-1, keepdims=True)
    if dtype == jnp.float16:  # what it overflows to, where sums are kept in float16
        count = jnp.where(count > 65504, jnp.inf, count)
    return (dy[:, None].astype(jnp.float32) * ties.astype(jnp.float32) / count).astype(dy.dtype)


def causal(p, x):
    """Attention of one head, q = k = x, v = p, without a causal mask."""
    a = jax.nn.softmax(x @ x.T / 2)
    return a @ p, (x, a)


def causal_back(start):
    """The weights' gradient by rows; `start` masks what the loop over queries leaves out."""

    def backward(p, residuals, dy):
        x, a = residuals
        seen = start(a)
        da = dy @ p.T
        ds = a * (da - (a * da).sum(-1, keepdims=True)) * seen / 2
        return (a * seen).T @ dy, ds @ x + ds.T @ x

    return backward


HALF = jnp.ones((1, 70000), jnp.float16)

WILD = {
    "max over many ties in half": Wild(
        "https://github.com/tinygrad/tinygrad/issues/12296",
        lambda p, x: (x.max(-1), x),
        lambda p, x, dy: ((), shared_among_ties(x, dy, jnp.float32)),
        lambda p, x, dy: ((), shared_among_ties(x, dy, dy.dtype)), (), HALF,
    ),
    "rows broadcast over columns": Wild(
        "https://github.com/BobMcDear/attorch/issues/17", rms_norm,
        rms_norm_back(lambda row: row[:, None]), rms_norm_back(lambda row: row), jnp.ones(4), X,
    ),
    "second input without its row scale": Wild(
        "https://github.com/state-spaces/mamba/pull/1023", two_sums,
        two_sums_back(lambda scale, dy: scale[1] * dy), two_sums_back(lambda scale, dy: dy), (),
        {"x": X, "x1": X[::-1], "scale": jnp.array([[[0.5]] * 4, [[1.5]] * 4])},
        "times the reference",
    ),
    "targets taken to sum to 1": Wild(
        "https://github.com/NVIDIA-NeMo/Automodel/pull/2428", soft_cross_entropy,
        soft_cross_entropy_back(lambda t: t.sum(-1, keepdims=True)),
        soft_cross_entropy_back(lambda t: 1), jnp.abs(X[::-1]), X,
    ),
    "softplus at 0": elementwise(
        "https://github.com/jax-ml/jax/issues/2107", jax.nn.softplus, jax.nn.sigmoid,
        lambda x: jnp.where(x == 0, 0, jax.nn.sigmoid(x)), ROW, "where x == 0",
    ),
    "tanh by exponentials": elementwise(
        "https://github.com/jax-ml/jax/issues/764", jnp.tanh, lambda x: 1 - jnp.tanh(x) ** 2,
        lambda x: 4 * jnp.exp(2 * x) / jnp.square(jnp.exp(2 * x) + 1),
        jnp.array([[0.5, 50.0, 200.0]]),
        "NaN",
    ),
    "squared difference without its cotangent": Wild(
        "https://github.com/SciSharp/TensorFlow.NET/issues/787",
        lambda y, x: ((x - y) ** 2, (x, y)),
        lambda y, r, dy: (-2 * (r[0] - y) * dy, 2 * (r[0] - y) * dy), lambda y, r, dy: (y, r[0]),
        X[::-1], X, "not multiplied by the cotangent",
    ),
    "strides of another array": Wild(
        "https://github.com/pytorch/pytorch/issues/194719", side_by_side,
        lambda p, x, dy: ((), dy[:, :4] * jnp.cos(x) - dy[:, 4:] * jnp.sin(x)),
        lambda p, x, dy: ((), own_strides(dy, 4) * jnp.cos(x) - dy[:, 4:] * jnp.sin(x)), (), X,
        "only at indices 1 to 3 of axis 0",
    ),
    "power 0 at 0": elementwise(
        "https://github.com/jax-ml/jax/issues/18450", lambda x: x**2 + x**0, lambda x: 2 * x,
        lambda x: 2 * x + 0 * jnp.power(x, -1), ROW, "NaN",
    ),
    "prod over zeros": Wild(
        "https://github.com/pytorch/pytorch/issues/773", lambda p, x: (x.prod(-1), x),
        lambda p, x, dy: ((), dy[:, None] * prod_of_others(x)),
        lambda p, x, dy: ((), dy[:, None] * x.prod(-1, keepdims=True) / x), (), ROW, "NaN",
    ),
    "cumprod over zeros": Wild(
        "https://github.com/tensorflow/tensorflow/issues/3862",
        lambda p, x: (jax.lax.associative_scan(jnp.multiply, x, axis=-1), x), cumprod_back,
        lambda p, x, dy: (
            (), jnp.cumsum((dy * jnp.cumprod(x, -1))[:, ::-1], -1)[:, ::-1] / x
        ), (), ROW, "NaN",
    ),
    "causal loop without a causal mask": Wild(
        "https://github.com/triton-lang/triton/issues/5660", causal, causal_back(jnp.ones_like),
        causal_back(jnp.tril), X[::-1], X,
    ),
}  # fmt: skip
