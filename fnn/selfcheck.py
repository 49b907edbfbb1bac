"""What `fnn verify` judges: all that the library ships, or what a user's module names.

The tables have each public layer, loss and optimizer once, at inputs where its derivative can be
seen: nothing symmetric, nothing saturated. Each optimizer's rule stands here a second time, in
numpy, from its source: see `fnn.trajectory`.
"""

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn import activations, combinators, layers, losses, models, optimizers, verify
from fnn.base import Layer, Loss, Optimizer
from fnn.report import Report

LAYERS: dict[str, tuple[Layer, int]] = {
    "dense": (layers.dense(5, 3), 5),
    "layer_norm": (layers.layer_norm(6), 6),
    "identity": (activations.identity, 4),
    "sigmoid": (activations.sigmoid, 4),
    "tanh": (activations.tanh, 4),
    "relu": (activations.relu, 4),
    "softmax": (activations.softmax, 4),
    "leaky_relu": (activations.leaky_relu(), 4),
    "elu": (activations.elu(), 4),
    "selu": (activations.selu, 4),
    "gelu": (activations.gelu, 4),
    "silu": (activations.silu, 4),
    "softplus": (activations.softplus, 4),
    "elementwise": (activations.elementwise(jnp.sin, lambda x, y: jnp.cos(x)), 4),
    "serial": (combinators.serial(layers.dense(5, 4), activations.tanh, layers.dense(4, 2)), 5),
    "skip": (combinators.skip(layers.dense(4, 4)), 4),
    "repeat": (combinators.repeat(combinators.skip(layers.layer_norm(4)), 3), 4),
    "mlp": (models.mlp((5, 6, 4, 3), activation=activations.gelu), 5),
}
"""The layer, and the width of its input."""

_random = np.random.default_rng(0)
_ANY, _OTHER = _random.standard_normal((2, 6, 4)).astype(np.float32)
_UNIT = _random.uniform(0.1, 0.9, (6, 4)).astype(np.float32)
_SHARES = _UNIT / _UNIT.sum(-1, keepdims=True)
_LABELS = np.array([0, 3, 1, 1, 2, 0])

LOSSES: dict[str, tuple[Loss, Any, Any]] = {
    "mse": (losses.mse, _ANY, _OTHER),
    "mae": (losses.mae, _ANY, _OTHER),
    "huber": (losses.huber(), 2 * _ANY, _OTHER),
    "cross_entropy": (losses.cross_entropy, _SHARES, _LABELS),
    "softmax_cross_entropy": (losses.softmax_cross_entropy, _ANY, _LABELS),
    "binary_cross_entropy": (losses.binary_cross_entropy, _UNIT, _UNIT[::-1]),
    "sigmoid_binary_cross_entropy": (losses.sigmoid_binary_cross_entropy, _ANY, _UNIT),
}
"""The loss, predictions and targets."""


def _sgd(rate, t, theta, g, slots):
    return theta - rate * g, ()


def _momentum(rate, t, theta, g, slots):
    v = 0.9 * slots[0] + rate * g
    return theta - v, (v,)


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
    return theta - rate * np.sign(0.9 * slots[0] + 0.1 * g), (0.99 * slots[0] + 0.01 * g,)


def _clipped_sgd(rate, t, theta, g, slots):
    return theta - rate * g * np.minimum(1, 0.5 / np.linalg.norm(g)), ()


OPTIMIZERS: dict[str, tuple[Callable[[Any], Optimizer], Callable]] = {
    "sgd": (optimizers.sgd, _sgd),
    "momentum": (optimizers.momentum, _momentum),
    "rmsprop": (optimizers.rmsprop, _rmsprop),
    "adagrad": (optimizers.adagrad, _adagrad),
    "adam": (optimizers.adam, _adam),
    "adamw": (optimizers.adamw, partial(_adam, decay=0.01)),
    "nadam": (optimizers.nadam, _nadam),
    "lion": (optimizers.lion, _lion),
    "clip_by_global_norm": (
        lambda rate: optimizers.clip_by_global_norm(optimizers.sgd(rate), 0.5),
        _clipped_sgd,
    ),
    "add_l2": (
        lambda rate: optimizers.add_l2(optimizers.adam(rate), 0.3),
        lambda rate, t, theta, g, slots: _adam(rate, t, theta, g + 0.3 * theta, slots),
    ),
}
"""The constructor, and its rule."""


def shipped() -> Iterator[tuple[str, Report]]:
    """A report on each layer, loss and optimizer of the library."""
    init_key, noise_key, x_key = jax.random.split(jax.random.key(0), 3)
    for name, (layer, d_in) in LAYERS.items():
        # Moved off its initial zeros and ones, so that no parameter is without effect.
        params = jax.tree.map(
            lambda p: p + 0.1 * jax.random.normal(noise_key, p.shape), layer.init(init_key)
        )
        yield name, verify.check_layer(layer, params, jax.random.normal(x_key, (7, d_in)))
    for name, (loss, prediction, target) in LOSSES.items():
        yield name, verify.check_loss(loss, prediction, target)
    params = {"W": _ANY, "b": _OTHER[0]}
    for name, (make, rule) in OPTIMIZERS.items():
        yield name, verify.check_optimizer(make, rule, params)


def named(path: str) -> Report:
    """A report on the layer, loss or optimizer constructor at "package.module:name".

    It is judged at the inputs that its module gives as `name_inputs`, a tuple or a function
    that returns one:

        layer                   (params, x)
        loss                    (prediction, target)
        optimizer constructor   (rule, params), as for `verify.check_optimizer`

    Raises ValueError for another form of path or a name or inputs that the module lacks,
    TypeError for anything else under that name; ImportError where there is no such module.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name.isidentifier():
        raise ValueError(f"expected package.module:name, got {path!r}")
    module = importlib.import_module(module_name)
    for needed in (name, f"{name}_inputs"):
        if not hasattr(module, needed):
            raise ValueError(f"{module_name} has no {needed}")
    subject, inputs = getattr(module, name), getattr(module, f"{name}_inputs")
    inputs = inputs() if callable(inputs) else inputs
    match subject:
        case Layer():
            return verify.check_layer(subject, *inputs)
        case Loss():
            return verify.check_loss(subject, *inputs)
        case _ if callable(subject):
            return verify.check_optimizer(subject, *inputs)
    raise TypeError(f"{path}: expected a Layer, a Loss or an optimizer's constructor")
