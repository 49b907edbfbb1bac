"""Every layer's and every loss's forward against a second formula, in NumPy and from its source.

The checker compares a backward with its own forward, so that it passes a wrong function with the
right derivative. What is added to the catalogue needs a formula here.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LAYERS, LOSSES

import fnn
from fnn.verify import cases

erf = np.vectorize(math.erf, otypes=[float])
ACTIVATIONS = {
    "elu": lambda x: np.where(x > 0, x, np.exp(x) - 1),
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "identity": lambda x: x,
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "relu": lambda x: x * (x > 0),
    "selu": lambda x: 1.0507009873554805
    * np.where(x > 0, x, 1.6732632423543772 * (np.exp(x) - 1)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softplus": lambda x: np.log(1 + np.exp(x)),
    "tanh": lambda x: 1 - 2 / (np.exp(2 * x) + 1),
}  # fmt: skip
sigmoid, gelu, tanh = (ACTIVATIONS[name] for name in ("sigmoid", "gelu", "tanh"))


def dense(p, x):
    return np.einsum("ji,...i->...j", p["W"], x) + p["b"]


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def normed(x, axes, mean=True):
    centred = x - x.mean(axes, keepdims=True) if mean else x
    return centred / np.sqrt((centred**2).mean(axes, keepdims=True) + 1e-5)


def group_norm(p, x):
    groups = x.reshape(*x.shape[:-1], 3, 2)
    return p["gain"] * normed(groups, (1, 2, 4)).reshape(x.shape) + p["bias"]


def embedding(p, x):
    return np.array([p["table"][code] for code in x])


def attention(heads, causal=False, rotary=False):
    def of(p, x):
        if isinstance(x, tuple):
            return padded(p, *x)
        y = np.zeros_like(x)
        e = x.shape[-1] // heads
        for n, text in enumerate(x):
            outputs = []
            for h in range(heads):
                rows = slice(h * e, (h + 1) * e)
                q, k, v = (text @ p[leaf][rows].T for leaf in "QKV")
                if rotary:
                    q, k = rotated(q), rotated(k)
                tokens = np.zeros((len(text), e))
                for t in range(len(text)):
                    seen = range(t + 1) if causal else range(len(text))
                    a = softmax(np.array([q[t] @ k[s] / math.sqrt(e) for s in seen]))
                    tokens[t] = sum(weight * v[s] for weight, s in zip(a, seen, strict=True))
                outputs.append(tokens)
            y[n] = np.concatenate(outputs, -1) @ p["O"].T
        return y

    def padded(p, x, mask):
        """Each token with those that are not padding, one at a time: the last row of its text."""
        rows = []
        for text, kept in zip(x, mask, strict=True):
            for t in range(len(text)):
                others = [s for s in range(len(text)) if kept[s] and s != t]
                rows.append(of(p, text[[*others, t]][None])[0, -1])
        return np.array(rows).reshape(x.shape), mask

    return of


def rotated(a):
    half = a.shape[-1] // 2
    turn = np.exp(1j * np.outer(np.arange(len(a)), 10000.0 ** (-np.arange(half) / half)))
    turned = (a[:, :half] + 1j * a[:, half:]) * turn
    return np.concatenate([turned.real, turned.imag], -1)


def conv(window, stride, padding="SAME"):
    def of(p, x):
        ends = [(0, 0)]
        for size, w, s in zip(x.shape[1:-1], window, stride, strict=True):
            zeros = max((math.ceil(size / s) - 1) * s + w - size, 0) if padding == "SAME" else 0
            ends.append((zeros // 2, zeros - zeros // 2))
        x = np.pad(x, [*ends, (0, 0)])
        places = [(n - w) // s + 1 for n, w, s in zip(x.shape[1:-1], window, stride, strict=True)]
        y = np.zeros((len(x), *places, len(p["b"])))
        for place in np.ndindex(*places):
            at = [slice(i * s, i * s + w) for i, s, w in zip(place, stride, window, strict=True)]
            seen = x[(slice(None), *at)].reshape(len(x), -1)
            y[(slice(None), *place)] = seen @ p["W"].reshape(len(p["b"]), -1).T + p["b"]
        return y

    return of


def pooled(reduction, window, stride):
    def of(p, x):
        rows, columns = (
            (n - w) // s + 1 for n, w, s in zip(x.shape[1:3], window, stride, strict=True)
        )
        y = np.zeros((len(x), rows, columns, x.shape[-1]))
        for i, j in np.ndindex(rows, columns):
            at = x[:, i * stride[0] :, j * stride[1] :][:, : window[0], : window[1]]
            y[:, i, j] = reduction(at, (1, 2))
        return y

    return of


def mlp(activation, output=lambda x: x):
    def of(p, x):
        linear = [entry for entry in p if entry]
        for entry in linear[:-1]:
            x = activation(dense(entry, x))
        return output(dense(linear[-1], x))

    return of


def cnn(p, x):
    images = pooled(np.max, (2, 2), (2, 2))((), gelu(conv((3, 3), (1, 1))(p[0], x)))
    return dense(p[-1], images.reshape(len(x), -1))


def entry(p, i):
    return jax.tree.map(lambda a: a[i], p)


def repeated(p, x):
    for i in range(3):
        x = x + dense(entry(p, i), x)
    return x


def masked(p, x):
    keep = {name: np.arange(a.size).reshape(a.shape) % 3 > 0 for name, a in p.items()}
    return dense({name: a * keep[name] for name, a in p.items()}, x)


def reversible(p, x):
    x1, x2 = x[..., :4], x[..., 4:]
    for i in range(3):
        x1 = x1 + dense(entry(p[0], i), x2)
        x2 = x2 + np.tanh(dense(entry(p[1][0], i), x1))
    return np.concatenate([x1, x2], -1)


FORMULAS = {name: lambda p, x, f=f: f(x) for name, f in ACTIVATIONS.items()} | {
    "dense": dense,
    "dense, without bias": lambda p, x: dense({**p, "b": 0}, x),
    "layer_norm": lambda p, x: p["gain"] * normed(x, -1) + p["bias"],
    "rms_norm": lambda p, x: p["gain"] * normed(x, -1, mean=False),
    "group_norm": group_norm,
    "batch_norm": lambda p, x: p["gain"] * x / np.sqrt(1 + 1e-5) + p["bias"],
    "batch_norm, training": lambda p, x: p["gain"] * normed(x, 0) + p["bias"],
    "dropout": lambda p, x: x,
    "embedding": embedding,
    "attention": attention(2),
    "attention, causal": attention(3, causal=True),
    "attention, rotary": attention(2, rotary=True),
    "attention, padded": attention(2),
    "positions": lambda p, x: np.array([text + p["table"][: len(text)] for text in x]),
    "conv1d": conv((3,), (1,)),
    "conv1d, strided": conv((4,), (2,), "VALID"),
    "conv2d": conv((3, 3), (1, 1)),
    "conv2d, strided": conv((3, 2), (2, 3)),
    "conv2d, valid": conv((2, 3), (2, 1), "VALID"),
    "max_pool": pooled(np.max, (2, 2), (2, 2)),
    "mean_pool": pooled(np.mean, (2, 2), (2, 2)),
    "max_pool/overlapping": pooled(np.max, (3, 2), (2, 1)),
    "mean_pool/overlapping": pooled(np.mean, (3, 2), (1, 3)),
    "flatten": lambda p, x: np.array([[*image.flat] for image in x]),
    "unflatten": lambda p, x: np.array([[row[:3], row[3:]] for row in x]),
    "softmax": lambda p, x: softmax(x),
    "elementwise": lambda p, x: np.sin(x),
    "add": lambda p, x: x[0] + x[1],
    "concatenate": lambda p, x: np.array([[*a, *b] for a, b in zip(*x, strict=True)]),
    "mlp": mlp(gelu),
    "parallel.mlp": mlp(gelu),
    "cnn": cnn,
    "serial": lambda p, x: dense(p[3], tanh(dense(p[1], dense(p[0], x)))),
    "fork": lambda p, x: (dense(p[0], x), tanh(x), dense(p[2], x)),
    "gated": lambda p, x: dense(p[0], x) * sigmoid(dense(p[1][0], x)),
    "skip": lambda p, x: x + dense(p, x),
    "on": lambda p, x: (x[0], dense(p, x[1])),
    "repeat": repeated,
    "masked": masked,
    "remat": dense,
    "compute_in": dense,
    "reversible": reversible,
    "leaky_relu/steep": lambda p, x: np.where(x > 0, x, 1.5 * x),
    "elu/alpha": lambda p, x: np.where(x > 0, x, 0.3 * (np.exp(x) - 1)),
    "mlp/softmax": mlp(lambda x: x * (x > 0), softmax),
}
DRAWN = {"dropout, training"}
"""Tested in `layers/test_dropout.py`."""


def distributions(prediction, target):
    if target.dtype.kind != "i" or target.ndim == prediction.ndim:
        return np.asarray(target, np.float64)
    return np.array([[float(i == label) for i in range(prediction.shape[-1])] for label in target])


def cross_entropy(p, t):
    return -(distributions(p, t) * np.log(p)).sum(-1)


def smoothed(z, t):
    t = distributions(z, t)
    return cross_entropy(softmax(z), 0.8 * t + 0.2 * t.sum(-1, keepdims=True) / t.shape[-1])


def huber(delta):
    def one(e):
        return e**2 / 2 if abs(e) <= delta else delta * (abs(e) - delta / 2)

    return lambda p, t: np.vectorize(one)(p - t).mean(-1)


def binary(a, t):
    return -(t * np.log(a) + (1 - t) * np.log(1 - a)).mean(-1)


def focal(z, t, gamma=2):
    p = softmax(z)
    return -(distributions(z, t) * (1 - p) ** gamma * np.log(p)).sum(-1)


def gaussian(p, t):
    mean, log_variance = p[:, :2], p[:, 2:]
    return (log_variance + (t - mean) ** 2 / np.exp(log_variance)).mean(-1) / 2


def unit(a):
    return a / np.sqrt((a**2).sum(-1, keepdims=True))


VALUES = {
    "mse": lambda p, t: ((p - t) ** 2).mean(-1),
    "mae": lambda p, t: np.abs(p - t).mean(-1),
    "huber": huber(1),
    "huber/delta": huber(0.3),
    "cross_entropy": cross_entropy,
    "softmax_cross_entropy": lambda z, t: cross_entropy(softmax(z), t),
    "smoothed_cross_entropy": smoothed,
    "binary_cross_entropy": binary,
    "sigmoid_binary_cross_entropy": lambda z, t: binary(sigmoid(z), t),
    "focal": focal,
    "focal/weighted": lambda z, t: focal(z, t, 0.5),
    "focal/none": lambda z, t: focal(z, t, 0),
    "quantile": lambda p, t: np.maximum(0.8 * (t - p), 0.2 * (p - t)).mean(-1),
    "gaussian_nll": gaussian,
    "poisson_nll": lambda p, t: (np.exp(p) - t * p).mean(-1),
    "cosine": lambda p, t: ((unit(p) - unit(t)) ** 2).sum(-1) / 2,
    "info_nce": lambda p, t: -np.log(np.diag(softmax(unit(p) @ unit(t).T / 0.5))),
    "heads": lambda p, t: 0.3 * ((p[0] - t[0]) ** 2).mean(-1) + 2 * focal(p[1], t[1]),
}


def test_everything_has_a_formula():
    layers = {*cases.ACTIVATIONS, *cases.LAYERS} - set(FORMULAS) - DRAWN
    assert not layers, f"add their formulas to FORMULAS: {layers}"
    losses = set(cases.LOSSES) - set(VALUES)
    assert not losses, f"add their formulas to VALUES: {losses}"


@pytest.mark.parametrize(
    "case", [case for case in LAYERS if case.name in FORMULAS], ids=lambda case: case.name
)
def test_a_layers_forward_is_its_formula(case):
    with jax.enable_x64(True):
        rng = np.random.default_rng(7)
        shapes = jax.eval_shape(case.layer.init, jax.random.key(0))
        params = jax.tree.map(lambda a: rng.normal(size=a.shape), shapes)
        wide = lambda a: np.asarray(a, np.float64) if a.dtype.kind == "f" else a
        x = jax.tree.map(lambda a: wide(np.array(a) + 0.1 * rng.normal(size=a.shape))
                         if a.dtype.kind == "f" else a, case.x)  # fmt: skip
        y, _ = jax.jit(case.layer.forward)(*jax.tree.map(jnp.asarray, (params, x)))
    tolerance = 0.05 if case.name == "compute_in" else 1e-10
    expected = FORMULAS[case.name](params, x)
    for got, right in zip(jax.tree.leaves(y), jax.tree.leaves(expected), strict=True):
        assert got.shape == right.shape
        np.testing.assert_allclose(got, right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "case", [c for c in LOSSES if c.name.split("/")[0] in VALUES], ids=lambda case: case.name
)
def test_a_losss_value_is_its_formula(case):
    of = VALUES.get(case.name, VALUES[case.name.split("/")[0]])
    wide = lambda a: np.asarray(a, np.float64) if a.dtype.kind == "f" else np.asarray(a)
    prediction, target = jax.tree.map(wide, (case.prediction, case.target))
    with jax.enable_x64(True):
        got = case.loss.value(*jax.tree.map(jnp.asarray, (prediction, target)))
    np.testing.assert_allclose(got, of(prediction, target), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_dropout_keeps_or_drops_and_scales(rate):
    x = np.random.default_rng(7).normal(size=(200, 100)).astype("f")
    y, _ = fnn.at(fnn.dropout(rate), jax.random.key(1)).forward((), jnp.asarray(x))
    dropped = np.asarray(y) == 0
    np.testing.assert_allclose(y, np.where(dropped, 0, x / (1 - rate)), rtol=1e-6)
    assert abs(dropped.mean() - rate) < 0.01
