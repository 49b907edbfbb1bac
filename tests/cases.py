"""The registry of cases. What is listed here gets every test that its kind has.

A new layer, loss or optimizer is added once, below; `test_layers.py`, `test_losses.py` and
`test_optimizers.py` run over these lists, and `test_source.py` fails for a public constructor
that is not listed.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fnn

KEY = jax.random.key(2026)


class LayerCase(NamedTuple):
    name: str  # constructor, then what is special
    layer: fnn.Layer
    d_in: int


class LossCase(NamedTuple):
    name: str
    loss: fnn.Loss
    prediction: np.ndarray  # (m, k), float64
    target: np.ndarray


class OptimizerCase(NamedTuple):
    name: str
    make: Callable  # learning_rate -> Optimizer
    optax: Callable | None  # learning_rate -> GradientTransformation
    rule: Callable  # (rate, t, theta, g, slots) -> (theta, slots), numpy, one array
    slots: int


LAYERS = [
    LayerCase("dense", fnn.dense(5, 3), 5),
    LayerCase("dense/square", fnn.dense(4, 4), 4),
    LayerCase("dense/one", fnn.dense(1, 1), 1),
    LayerCase("layer_norm", fnn.layer_norm(6), 6),
    LayerCase("identity", fnn.identity, 4),
    LayerCase("sigmoid", fnn.sigmoid, 4),
    LayerCase("tanh", fnn.tanh, 4),
    LayerCase("relu", fnn.relu, 4),
    LayerCase("softmax", fnn.softmax, 4),
    LayerCase("leaky_relu", fnn.leaky_relu(), 4),
    LayerCase("leaky_relu/steep", fnn.leaky_relu(1.5), 4),
    LayerCase("elu", fnn.elu(), 4),
    LayerCase("elu/alpha", fnn.elu(0.3), 4),
    LayerCase("selu", fnn.selu, 4),
    LayerCase("gelu", fnn.gelu, 4),
    LayerCase("silu", fnn.silu, 4),
    LayerCase("softplus", fnn.softplus, 4),
    LayerCase("elementwise", fnn.elementwise(jnp.sin, lambda x, y: jnp.cos(x)), 4),
    LayerCase("serial", fnn.serial(fnn.dense(5, 4), fnn.tanh, fnn.dense(4, 2)), 5),
    LayerCase("serial/empty", fnn.serial(), 3),
    LayerCase("skip", fnn.skip(fnn.serial(fnn.dense(4, 4), fnn.softplus)), 4),
    LayerCase("repeat", fnn.repeat(fnn.serial(fnn.dense(4, 4), fnn.tanh), 3), 4),
    LayerCase("repeat/one", fnn.repeat(fnn.serial(fnn.layer_norm(4), fnn.silu), 1), 4),
    LayerCase("repeat/no params", fnn.repeat(fnn.tanh, 3), 4),
    LayerCase(
        "repeat/nested",
        fnn.repeat(
            fnn.serial(fnn.repeat(fnn.skip(fnn.dense(3, 3)), 2), fnn.sigmoid, fnn.layer_norm(3)), 2
        ),
        3,
    ),
    LayerCase("mlp", fnn.mlp((5, 6, 4, 3), activation=fnn.gelu), 5),
    LayerCase("mlp/softmax", fnn.mlp((5, 8, 3), output=fnn.softmax), 5),
]


def layer_inputs(case: LayerCase, dtype, batch=(7,)):
    """params, x, dy of the case: no zero biases, no symmetry, the same at each call."""
    rng = np.random.default_rng(2026)

    def draw(like):
        return jnp.asarray(rng.normal(size=like.shape), dtype)

    params = jax.tree.map(
        lambda p: draw(p) / p.shape[-1] ** 0.5, jax.eval_shape(case.layer.init, KEY)
    )
    x = draw(jax.ShapeDtypeStruct((*batch, case.d_in), dtype))
    return params, x, draw(jax.eval_shape(case.layer.forward, params, x)[0])


def _chain(cases):
    """One network through the layers of all cases, 5 -> 3, with dense layers where widths
    change."""
    layers, width = [], 5
    for case in cases:
        y, _ = jax.eval_shape(
            case.layer.forward, jax.eval_shape(case.layer.init, KEY), jnp.zeros((1, case.d_in))
        )
        layers += [case.layer] if width == case.d_in else [fnn.dense(width, case.d_in), case.layer]
        width = y.shape[-1]
    return fnn.serial(*layers, fnn.dense(width, 3))


# Every layer in a network, in few enough of them to compile quickly.
NETWORKS = [_chain(LAYERS[i::3]) for i in range(3)]


_rng = np.random.default_rng(2026)
_LOGITS = _rng.normal(size=(6, 4))
_PROBABILITIES = _rng.dirichlet(np.ones(4), 6)
_LABELS = np.array([0, 3, 1, 1, 2, 0])
_WEIGHTED = _rng.uniform(0.1, 2, size=(6, 4))  # distributions that do not sum to one
_ANY = _rng.normal(size=(6, 4))
_UNIT = _rng.uniform(0.05, 0.95, size=(6, 4))
_BITS = (_rng.uniform(size=(6, 4)) < 0.5).astype(np.int32)

LOSSES = [
    LossCase("mse", fnn.mse, _LOGITS, _ANY),
    LossCase("mae", fnn.mae, _LOGITS, _ANY),
    LossCase("huber", fnn.huber(), 2 * _LOGITS, _ANY),
    LossCase("huber/delta", fnn.huber(0.3), _LOGITS, _ANY),
    LossCase("cross_entropy/labels", fnn.cross_entropy, _PROBABILITIES, _LABELS),
    LossCase("cross_entropy", fnn.cross_entropy, _PROBABILITIES, _WEIGHTED),
    LossCase("softmax_cross_entropy/labels", fnn.softmax_cross_entropy, _LOGITS, _LABELS),
    LossCase("softmax_cross_entropy", fnn.softmax_cross_entropy, _LOGITS, _WEIGHTED),
    LossCase("binary_cross_entropy", fnn.binary_cross_entropy, _UNIT, _UNIT[::-1]),
    LossCase("binary_cross_entropy/bits", fnn.binary_cross_entropy, _UNIT, _BITS),
    LossCase("sigmoid_binary_cross_entropy", fnn.sigmoid_binary_cross_entropy, _LOGITS, _UNIT),
    LossCase(
        "sigmoid_binary_cross_entropy/bits", fnn.sigmoid_binary_cross_entropy, 9 * _LOGITS, _BITS
    ),
]


def _sgd(rate, t, theta, g, slots):
    return theta - rate * g, ()


def _momentum(rate, t, theta, g, slots):
    v = 0.9 * slots[0] + rate * g
    return theta - v, (v,)


def _nesterov(rate, t, theta, g, slots):
    v = 0.8 * slots[0] + rate * g
    return theta - (0.8 * v + rate * g), (v,)


def _rmsprop(rate, t, theta, g, slots):
    e = 0.9 * slots[0] + 0.1 * g**2
    return theta - rate * g / np.sqrt(e + 1e-8), (e,)


def _adagrad(rate, t, theta, g, slots):
    s = slots[0] + g**2
    return theta - rate * g / (np.sqrt(s) + 1e-8), (s,)


def _adam(rate, t, theta, g, slots, decay=0.0):
    m, v = 0.9 * slots[0] + 0.1 * g, 0.999 * slots[1] + 0.001 * g**2
    m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
    return theta - rate * (m_hat / (np.sqrt(v_hat) + 1e-8) + decay * theta), (m, v)


def _nadam(rate, t, theta, g, slots):
    m, v = 0.9 * slots[0] + 0.1 * g, 0.999 * slots[1] + 0.001 * g**2
    ahead = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
    return theta - rate * ahead / (np.sqrt(v / (1 - 0.999**t)) + 1e-8), (m, v)


def _lion(rate, t, theta, g, slots):
    step = np.sign(0.9 * slots[0] + 0.1 * g)
    return theta - rate * step, (0.99 * slots[0] + 0.01 * g,)


def _clipped_sgd(rate, t, theta, g, slots):
    return theta - rate * g * min(1, 0.5 / np.linalg.norm(g)), ()


# optax puts today's rate outside the momentum: it is an oracle there at a constant rate alone.
OPTIMIZERS = [
    OptimizerCase("sgd", fnn.sgd, optax.sgd, _sgd, 0),
    OptimizerCase("momentum", fnn.momentum, None, _momentum, 1),
    OptimizerCase(
        "momentum/nesterov", lambda r: fnn.momentum(r, 0.8, nesterov=True), None, _nesterov, 1
    ),
    OptimizerCase(
        "rmsprop",
        fnn.rmsprop,
        lambda r: optax.rmsprop(r, decay=0.9, eps=1e-8, eps_in_sqrt=True),
        _rmsprop,
        1,
    ),
    OptimizerCase("adagrad", fnn.adagrad, None, _adagrad, 1),
    OptimizerCase("adam", fnn.adam, optax.adam, _adam, 2),
    OptimizerCase(
        "adamw",
        lambda r: fnn.adamw(r, weight_decay=0.1),
        lambda r: optax.adamw(r, weight_decay=0.1),
        lambda *a: _adam(*a, decay=0.1),
        2,
    ),
    OptimizerCase("nadam", fnn.nadam, optax.nadam, _nadam, 2),
    OptimizerCase("lion", fnn.lion, lambda r: optax.lion(r, weight_decay=0.0), _lion, 1),
    OptimizerCase(
        "clip_by_global_norm",
        lambda r: fnn.clip_by_global_norm(fnn.sgd(r), 0.5),
        lambda r: optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(r)),
        _clipped_sgd,
        0,
    ),
    OptimizerCase(
        "add_l2",
        lambda r: fnn.add_l2(fnn.adam(r), 0.3),
        lambda r: optax.chain(optax.add_decayed_weights(0.3), optax.adam(r)),
        lambda rate, t, theta, g, slots: _adam(rate, t, theta, g + 0.3 * theta, slots),
        2,
    ),
]
