"""How compositions end: in a head, which makes predictions of two numbers, and a loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import fnn
from benchmarks.soak import duals
from benchmarks.soak.duals import Array, Dual
from benchmarks.soak.parts import FEATURES, PIXELS, TOKENS, _linear

M, K = 3, 2
"""Examples in a batch, and numbers in a prediction."""


class Head(NamedTuple):
    """layer(d) and plain(p, x) -> predictions; per_token where each token has a prediction."""

    covers: str
    axes: tuple[int, ...]
    layer: Callable[[int], fnn.Layer]
    plain: Callable[[Any, Dual], Any]
    smooth: bool = True
    per_token: bool = False


def _flat(p: Any, x: Dual) -> Dual:
    return _linear(p[1], x.reshape(len(x.v), -1))


def _pooled(best: bool) -> Callable[[Any, Dual], Dual]:
    def of(p: Any, x: Dual) -> Dual:
        pixels = x.reshape(len(x.v), 6, -1)
        pooled = _largest(pixels) if best else pixels.mean((-2,))
        return _linear(p[2], pooled.reshape(len(x.v), -1))

    return of


def _largest(entries: Dual) -> Dual:
    """The first largest entry along the last axis but one."""
    best = entries[:, 0]
    for i in range(1, entries.shape[1]):
        best = duals.chosen(entries.v[:, i].real > best.v.real, entries[:, i], best)
    return best


def _cnn(p: Any, x: Dual) -> Dual:
    """A convolution of 3 by 3, tanh, the largest of the first 2 by 2, a dense layer."""
    m, _, _, d = x.shape
    row = duals.concatenated(
        [duals.constant(np.zeros((m, 1, 3, d))), x, duals.constant(np.zeros((m, 1, 3, d)))], -3
    )
    column = duals.constant(np.zeros((m, 4, 1, d)))
    wide = duals.concatenated([column, row, column], -2)
    y = p[0]["b"]
    for i in range(3):
        for j in range(3):
            y = wide[:, i : i + 2, j : j + 3] @ p[0]["W"][:, i, j].swap() + y
    y = duals.tanh(y)[:, :, :2]
    return _linear(p[4], _largest(y.reshape(m, 4, -1)))


HEADS: dict[str, Head] = {
    "dense": Head(
        "dense", FEATURES, lambda d: fnn.serial(fnn.dense(d, K)), lambda p, x: _linear(p[0], x)
    ),
    "two": Head(
        "fork heads",
        FEATURES,
        lambda d: fnn.fork(fnn.dense(d, K), fnn.dense(d, K)),
        lambda p, x: (_linear(p[0], x), _linear(p[1], x)),
    ),
    "flatten": Head(
        "flatten", TOKENS, lambda d: fnn.serial(fnn.flatten(2), fnn.dense(2 * d, K)), _flat
    ),
    "tokens": Head(
        "dense",
        TOKENS,
        lambda d: fnn.serial(fnn.dense(d, K)),
        lambda p, x: _linear(p[0], x),
        per_token=True,
    ),
    "pixels": Head(
        "flatten", PIXELS, lambda d: fnn.serial(fnn.flatten(3), fnn.dense(6 * d, K)), _flat
    ),
    "mean_pool": Head(
        "mean_pool",
        PIXELS,
        lambda d: fnn.serial(fnn.mean_pool((2, 3)), fnn.flatten(3), fnn.dense(d, K)),
        _pooled(False),
    ),
    "max_pool": Head(
        "max_pool",
        PIXELS,
        lambda d: fnn.serial(fnn.max_pool((2, 3)), fnn.flatten(3), fnn.dense(d, K)),
        _pooled(True),
        smooth=False,
    ),
    "cnn": Head("cnn", PIXELS, lambda d: fnn.cnn((2, 3, d), (2,), K, fnn.tanh), _cnn, smooth=False),
}


class End(NamedTuple):
    """A loss, the layer in front of it, its targets and its twin: plain(prediction, target) -> one
    loss per example, where the target's labels are distributions."""

    loss: fnn.Loss
    targets: str
    plain: Callable[[Any, Any], Dual]
    output: fnn.Layer = fnn.identity
    of_output: Callable[[Dual], Dual] = lambda z: z
    smooth: bool = True


def target(kind: str, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Random targets for predictions of this shape."""
    match kind:
        case "labels":
            return rng.integers(0, K, shape[:-1]).astype(np.int32)
        case "shares":
            return rng.dirichlet(np.ones(K), shape[:-1])
        case "weights":  # which don't sum to one
            return rng.uniform(0.1, 2, shape)
        case "unit":
            return rng.uniform(0.1, 0.9, shape)
        case "counts":
            return rng.integers(0, 5, shape).astype(np.int32)
        case "half":
            return rng.normal(size=(*shape[:-1], K // 2))
        case "two":
            return tuple(target(each, rng, shape) for each in ("any", "labels"))
    return rng.normal(size=shape)


def distribution(y: Array, k: int = K) -> Array:
    """Labels as one-hot rows."""
    return np.eye(k)[y] if y.dtype.kind == "i" else y


def _mean(f: Callable[[Dual, Array], Dual]) -> Callable[[Dual, Array], Dual]:
    return lambda p, t: f(p, t).mean()[..., 0]


def _total(f: Callable[[Dual, Array], Dual]) -> Callable[[Dual, Array], Dual]:
    return lambda p, t: f(p, distribution(t)).sum()[..., 0]


def _huber(p: Dual, t: Array, delta: float = 0.8) -> Dual:
    e = p - t
    size = duals.chosen(duals.above(e), e, -e)
    return duals.chosen(size.v.real <= delta, 0.5 * e * e, delta * (size - delta / 2))


def _size(e: Dual) -> Dual:
    return duals.chosen(duals.above(e), e, -e)


def _pinball(p: Dual, t: Array, q: float = 0.7) -> Dual:
    e = p - t
    return duals.chosen(duals.above(e), (1 - q) * e, -q * e)


def _gaussian(p: Dual, t: Array) -> Dual:
    mean, log_variance = p[..., :1], p[..., 1:]
    return 0.5 * (log_variance + (mean - t) * (mean - t) * duals.exp(-log_variance))


def _focal(p: Dual, t: Array, gamma: float = 2.0) -> Dual:
    log_p = duals.log_softmax(p)
    rest = 1 - duals.exp(log_p)
    return -(t * rest * rest * log_p)


def _binary(p: Dual, t: Array) -> Dual:
    return -(t * duals.log(p) + (1 - t) * duals.log(1 - p))


def _unit(p: Any) -> Dual:
    p = duals.constant(p)
    return p / duals.sqrt((p * p).sum())


def _info_nce(p: Dual, t: Array) -> Dual:
    log_p = duals.log_softmax(_unit(p) @ _unit(t).swap() * (1 / 0.5))
    each = np.arange(len(t))
    return -log_p[each, each]


def _smoothed(p: Dual, t: Array) -> Dual:
    return -((0.8 * t + 0.2 * t.mean(-1, keepdims=True)) * duals.log_softmax(p))


_softmax = _total(lambda p, t: -(t * duals.log_softmax(p)))
_mse = _mean(lambda p, t: (p - t) * (p - t))

ENDS: dict[str, list[End]] = {
    "mse": [End(fnn.mse, "any", _mse)] * 2,
    "mae": [End(fnn.mae, "any", _mean(lambda p, t: _size(p - t)), smooth=False)],
    "huber": [End(fnn.huber(0.8), "any", _mean(_huber), smooth=False)],
    "quantile": [End(fnn.quantile(0.7), "any", _mean(_pinball), smooth=False)],
    "poisson_nll": [End(fnn.poisson_nll, "counts", _mean(lambda p, t: duals.exp(p) - t * p))],
    "gaussian_nll": [End(fnn.gaussian_nll, "half", _mean(_gaussian))],
    "softmax_cross_entropy": [
        End(fnn.softmax_cross_entropy, kind, _softmax) for kind in ("labels", "shares", "weights")
    ],
    "smoothed_cross_entropy": [End(fnn.smoothed_cross_entropy(0.2), "labels", _total(_smoothed))],
    "focal": [End(fnn.focal(2.0), kind, _total(_focal)) for kind in ("labels", "shares")],
    "cross_entropy": [
        End(
            fnn.cross_entropy,
            kind,
            _total(lambda p, t: -(t * duals.log(p))),
            fnn.softmax,
            duals.softmax,
        )
        for kind in ("labels", "shares")
    ],
    "binary_cross_entropy": [
        End(fnn.binary_cross_entropy, "unit", _mean(_binary), fnn.sigmoid, duals.sigmoid)
    ],
    "sigmoid_binary_cross_entropy": [
        End(fnn.sigmoid_binary_cross_entropy, "unit", _mean(lambda z, t: duals.softplus(z) - t * z))
    ],
    "cosine": [End(fnn.cosine, "any", lambda p, t: 1 - (_unit(p) * _unit(t)).sum()[..., 0])],
    "info_nce": [End(fnn.info_nce(0.5), "any", _info_nce)],
    "from_loss": [
        End(
            fnn.from_loss(lambda p, t: ((p - t) ** 4).sum(-1)),
            "any",
            lambda p, t: duals.power(p - t, 4).sum()[..., 0],
        )
    ],
    "heads": [
        End(
            fnn.heads((fnn.mse, fnn.softmax_cross_entropy), (0.3, 2.0)),
            "two",
            lambda p, t: 0.3 * _mse(p[0], t[0]) + 2.0 * _softmax(p[1], t[1]),
        )
    ],
}


def fits(head: str, loss: str) -> bool:
    """Whether the loss takes the head's predictions."""
    if (head == "two") != (loss == "heads"):
        return False
    return not (HEADS[head].per_token and loss == "info_nce")
