"""The one table of names: activations, layers, losses and optimizers, each with what checks it.

The command takes its names from here, `fnn verify` checks everything in here, and the tests run
over it: a new activation, layer, loss or optimizer is its definition and one line below.

    ACTIVATIONS   name -> a layer that keeps its input's shape
    LAYERS        name -> (layer, an input): layers with parameters, combinators, models
    LOSSES        name -> (loss, prediction, target)
    OPTIMIZERS    name -> (constructor, rule): update rules by themselves
    WRAPPERS      name -> (constructor, rule): update rules around another

Inputs are those at which a derivative can be seen: nothing symmetric, nothing saturated. A rule
is the update written a second time, in numpy and from its source: see `fnn.verify.optimizers`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn import (
    activations,
    combinators,
    layers,
    losses,
    memory,
    models,
    optimizers,
    precision,
    wrappers,
)
from fnn.base import Layer, Loss, Optimizer, at

_random = np.random.default_rng(0)
_ANY, _OTHER = _random.standard_normal((2, 6, 4)).astype(np.float32)
_UNIT = _random.uniform(0.1, 0.9, (6, 4)).astype(np.float32)
_SHARES = _UNIT / _UNIT.sum(-1, keepdims=True)
_LABELS = np.array([0, 3, 1, 1, 2, 0])
_MASK = np.array([[1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 0, 0]])


def _x(d: int) -> np.ndarray:
    """An input of d features."""
    return np.random.default_rng(d).standard_normal((7, d)).astype(np.float32)


ACTIVATIONS: dict[str, Layer] = {
    "elu": activations.elu(),
    "gelu": activations.gelu,
    "identity": activations.identity,
    "leaky_relu": activations.leaky_relu(),
    "relu": activations.relu,
    "selu": activations.selu,
    "sigmoid": activations.sigmoid,
    "silu": activations.silu,
    "softplus": activations.softplus,
    "tanh": activations.tanh,
}

LAYERS: dict[str, tuple[Layer, Any]] = {
    "dense": (layers.dense(5, 3), _x(5)),
    "layer_norm": (layers.layer_norm(6), _x(6)),
    "batch_norm": (layers.batch_norm(4), _x(4)),
    "batch_norm, training": (at(layers.batch_norm(4), jax.random.key(0)), _x(4)),
    "dropout": (layers.dropout(0.4), _x(4)),
    "dropout, training": (at(layers.dropout(0.4), jax.random.key(0)), _x(4)),
    "softmax": (activations.softmax, _x(4)),
    "elementwise": (activations.elementwise(jnp.sin, lambda x, y: jnp.cos(x)), _x(4)),
    "serial": (combinators.serial(layers.dense(5, 4), activations.tanh, layers.dense(4, 2)), _x(5)),
    "skip": (combinators.skip(layers.dense(4, 4)), _x(4)),
    "fork": (combinators.fork(layers.dense(4, 3), activations.tanh), _x(4)),
    "add": (combinators.add, (_x(3), _x(3) ** 2)),
    "concatenate": (combinators.concatenate, (_x(3), _x(2))),
    "masked": (combinators.masked(layers.dense(4, 3), {"W": _MASK, "b": _MASK[:, 0]}), _x(4)),
    "remat": (memory.remat(combinators.serial(layers.dense(4, 4), activations.tanh)), _x(4)),
    "compute_in": (precision.compute_in(layers.dense(4, 3), jnp.bfloat16), _x(4)),
    "reversible": (memory.reversible(layers.dense(2, 2), activations.tanh, 3), _x(4)),
    "repeat": (combinators.repeat(combinators.skip(layers.layer_norm(4)), 3), _x(4)),
    "mlp": (models.mlp((5, 6, 4, 3), activation=activations.gelu), _x(5)),
}

LOSSES: dict[str, tuple[Loss, Any, Any]] = {
    "mse": (losses.mse, _ANY, _OTHER),
    "mae": (losses.mae, _ANY, _OTHER),
    "huber": (losses.huber(), 2 * _ANY, _OTHER),
    "cross_entropy": (losses.cross_entropy, _SHARES, _LABELS),
    "softmax_cross_entropy": (losses.softmax_cross_entropy, _ANY, _LABELS),
    "binary_cross_entropy": (losses.binary_cross_entropy, _UNIT, _UNIT[::-1]),
    "sigmoid_binary_cross_entropy": (losses.sigmoid_binary_cross_entropy, _ANY, _UNIT),
}
Updated = tuple[Any, tuple[Any, ...]]
"""What a rule returns: theta and its slots."""


def _sgd(rate: Any, t: Any, theta: Any, g: Any, slots: Any) -> Updated:
    return theta - rate * g, ()


def _momentum(rate: Any, t: Any, theta: Any, g: Any, slots: Any) -> Updated:
    v = 0.9 * slots[0] + rate * g
    return theta - v, (v,)


def _rmsprop(rate: Any, t: Any, theta: Any, g: Any, slots: Any) -> Updated:
    e = 0.9 * slots[0] + 0.1 * g**2
    return theta - rate * g / np.sqrt(e + 1e-8), (e,)


def _adagrad(rate: Any, t: Any, theta: Any, g: Any, slots: Any) -> Updated:
    s = slots[0] + g**2
    return theta - rate * g / (np.sqrt(s) + 1e-8), (s,)


def _adam(rate: Any, t: Any, theta: Any, g: Any, slots: Any, decay: float = 0.0) -> Updated:
    m, v = 0.9 * slots[0] + 0.1 * g, 0.999 * slots[1] + 0.001 * g**2
    m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
    return theta - rate * (m_hat / (np.sqrt(v_hat) + 1e-8) + decay * theta), (m, v)


def _nadam(rate: Any, t: Any, theta: Any, g: Any, slots: Any) -> Updated:
    m, v = 0.9 * slots[0] + 0.1 * g, 0.999 * slots[1] + 0.001 * g**2
    ahead = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
    return theta - rate * ahead / (np.sqrt(v / (1 - 0.999**t)) + 1e-8), (m, v)


def _lion(rate: Any, t: Any, theta: Any, g: Any, slots: Any) -> Updated:
    return theta - rate * np.sign(0.9 * slots[0] + 0.1 * g), (0.99 * slots[0] + 0.01 * g,)


def _clipped_sgd(rate: Any, t: Any, theta: Any, g: Any, slots: Any) -> Updated:
    return theta - rate * g * np.minimum(1, 0.5 / np.linalg.norm(g)), ()


class Rule(NamedTuple):
    """An update rule: `make(learning_rate)` and the same rule in numpy.

    >>> OPTIMIZERS["sgd"].rule(0.5, 1, np.array([1.0]), np.array([1.0]), ())
    (array([0.5]), ())
    """

    make: Callable[[Any], Optimizer]
    rule: Callable[..., Updated]


OPTIMIZERS: dict[str, Rule] = {
    "adagrad": Rule(optimizers.adagrad, _adagrad),
    "adam": Rule(optimizers.adam, _adam),
    "adamw": Rule(optimizers.adamw, partial(_adam, decay=0.01)),
    "lion": Rule(optimizers.lion, _lion),
    "momentum": Rule(optimizers.momentum, _momentum),
    "nadam": Rule(optimizers.nadam, _nadam),
    "rmsprop": Rule(optimizers.rmsprop, _rmsprop),
    "sgd": Rule(optimizers.sgd, _sgd),
}

WRAPPERS: dict[str, Rule] = {
    "clip_by_global_norm": Rule(
        lambda rate: optimizers.clip_by_global_norm(optimizers.sgd(rate), 0.5), _clipped_sgd
    ),
    "accumulate": Rule(lambda rate: wrappers.accumulate(optimizers.adam(rate), 1), _adam),
    "average": Rule(lambda rate: wrappers.average(optimizers.adam(rate), 0.9), _adam),
    "partition": Rule(
        lambda rate: wrappers.partition(lambda params: "all", {"all": optimizers.adam(rate)}), _adam
    ),
    "scale_loss": Rule(lambda rate: wrappers.scale_loss(optimizers.adam(rate), 1.0), _adam),
    "add_l2": Rule(
        lambda rate: optimizers.add_l2(optimizers.adam(rate), 0.3),
        lambda rate, t, theta, g, slots: _adam(rate, t, theta, g + 0.3 * theta, slots),
    ),
}
