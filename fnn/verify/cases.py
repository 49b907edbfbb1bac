"""What `fnn verify` checks: everything that the library ships, or what a user's module names.

Each name of `fnn.catalog` has inputs here, or an update rule in numpy; the tests run over them.

    ACTIVATIONS   name -> (layer, an input)
    LAYERS        name -> (layer, an input): layers, models, and each combinator of a dense layer
    COMBINATORS   name -> (what makes a layer from a layer 4 -> 4, an input)
    LOSSES        name -> (loss, prediction, target)
    OPTIMIZERS    name -> Rule: update rules by themselves
    WRAPPERS      name -> Rule: update rules around another

Inputs are those at which a derivative can be seen: nothing symmetric, nothing saturated. A rule
is the update written a second time, in numpy and from its source: see `fnn.verify.optimizers`.
"""

# mypy: allow-untyped-defs

import importlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from fnn import catalog
from fnn.base import Layer, Loss, Optimizer, at
from fnn.verify._gradients import check_layer, check_loss
from fnn.verify._report import Report
from fnn.verify.optimizers import check_optimizer

_random = np.random.default_rng(0)
_ANY, _OTHER = _random.standard_normal((2, 6, 4)).astype(np.float32)
_UNIT = _random.uniform(0.1, 0.9, (6, 4)).astype(np.float32)
_SHARES = _UNIT / _UNIT.sum(-1, keepdims=True)
_LABELS = np.array([0, 3, 1, 1, 2, 0])
_KEY: Any = np.zeros(2, np.uint32)
"""A key of `jax.random` in NumPy's array: importing this must not start JAX's devices, for the
command chooses them later."""


def _x(*shape: int) -> np.ndarray:
    """An input of seven examples: of d features, or of images (height, width, channels)."""
    return np.random.default_rng(shape[-1]).standard_normal((7, *shape)).astype(np.float32)


def _mask(layer: Layer) -> Any:
    """A mask for the layer's params, with a third of zeros."""
    params = jax.eval_shape(lambda: layer.init(jax.random.key(0)))
    return jax.tree.map(lambda p: np.arange(p.size).reshape(p.shape) % 3 > 0, params)


ACTIVATIONS: dict[str, tuple[Layer, Any]] = {
    name: (layer, _x(4)) for name, layer in catalog.ACTIVATIONS.items()
}

LAYERS: dict[str, tuple[Layer, Any]] = {
    "dense": (fnn.dense(5, 3), _x(5)),
    "dense, without bias": (fnn.dense(5, 3, bias=False), _x(5)),
    "layer_norm": (fnn.layer_norm(6), _x(6)),
    "rms_norm": (fnn.rms_norm(6), _x(6)),
    "group_norm": (fnn.group_norm(6, 3), _x(2, 3, 6)),
    "batch_norm": (fnn.batch_norm(4), _x(4)),
    "batch_norm, training": (at(fnn.batch_norm(4), _KEY), _x(4)),
    "dropout": (fnn.dropout(0.4), _x(4)),
    "dropout, training": (at(fnn.dropout(0.4), _KEY), _x(4)),
    "embedding": (fnn.embedding(5, 3), np.array([3, 0, 3, 4, 1, 1, 0])),
    "attention": (fnn.attention(4, 2), _x(3, 4)),
    "attention, causal": (fnn.attention(6, 3, causal=True), _x(4, 6)),
    "attention, rotary": (fnn.attention(8, 2, rotary=True), _x(3, 8)),
    "attention, padded": (fnn.attention(4, 2), (_x(3, 4), _x(3) > 0)),
    "positions": (fnn.positions(5, 2), _x(3, 2)),
    "conv1d": (fnn.conv1d(2, 3), _x(5, 2)),
    "conv1d, strided": (fnn.conv1d(2, 3, 4, 2, "VALID"), _x(9, 2)),
    "conv2d": (fnn.conv2d(2, 3), _x(4, 5, 2)),
    "conv2d, strided": (fnn.conv2d(2, 3, (3, 2), (2, 3)), _x(6, 7, 2)),
    "conv2d, valid": (fnn.conv2d(1, 2, (2, 3), (2, 1), "VALID"), _x(5, 4, 1)),
    "max_pool": (fnn.max_pool((2, 2)), _x(4, 5, 2)),
    "mean_pool": (fnn.mean_pool((2, 2)), _x(5, 4, 2)),
    "flatten": (fnn.flatten(3), _x(2, 3, 2)),
    "unflatten": (fnn.unflatten(2, 3), _x(6)),
    "softmax": (fnn.softmax, _x(4)),
    "elementwise": (fnn.elementwise(jnp.sin, lambda x, y: jnp.cos(x)), _x(4)),
    "add": (fnn.add, (_x(3), _x(3) ** 2)),
    "concatenate": (fnn.concatenate, (_x(3), _x(2))),
    "mlp": (fnn.mlp((5, 6, 4, 3), activation=fnn.gelu), _x(5)),
    "parallel.mlp": (fnn.parallel.mlp((5, 6, 4), "model", fnn.gelu), _x(5)),
    "cnn": (fnn.cnn((4, 4, 1), (2,), 3, fnn.gelu), _x(4, 4, 1)),
}

COMBINATORS: dict[str, tuple[Callable[[Layer], Layer], Any]] = {
    "serial": (lambda f: fnn.serial(fnn.dense(5, 4), f, fnn.tanh, f), _x(5)),
    "fork": (lambda f: fnn.fork(f, fnn.tanh, f), _x(4)),
    "gated": (lambda f: fnn.gated(f, fnn.serial(f, fnn.sigmoid)), _x(4)),
    "skip": (fnn.skip, _x(4)),
    "repeat": (lambda f: fnn.repeat(fnn.skip(f), 3), _x(4)),
    "on": (lambda f: fnn.on(1, f), (_x(3), _x(4))),
    "masked": (lambda f: fnn.masked(f, _mask(f)), _x(4)),
    "remat": (fnn.remat, _x(4)),
    "compute_in": (lambda f: fnn.compute_in(f, jnp.bfloat16), _x(4)),
    "reversible": (lambda f: fnn.reversible(f, fnn.serial(f, fnn.tanh), 3), _x(8)),
}

LAYERS |= {name: (of(fnn.dense(4, 4)), x) for name, (of, x) in COMBINATORS.items()}

LOSSES: dict[str, tuple[Loss, Any, Any]] = {
    "mse": (fnn.mse, _ANY, _OTHER),
    "mae": (fnn.mae, _ANY, _OTHER),
    "huber": (fnn.huber(), 2 * _ANY, _OTHER),
    "cross_entropy": (fnn.cross_entropy, _SHARES, _LABELS),
    "softmax_cross_entropy": (fnn.softmax_cross_entropy, _ANY, _LABELS),
    "smoothed_cross_entropy": (fnn.smoothed_cross_entropy(0.2), _ANY, _LABELS),
    "binary_cross_entropy": (fnn.binary_cross_entropy, _UNIT, _UNIT[::-1]),
    "sigmoid_binary_cross_entropy": (fnn.sigmoid_binary_cross_entropy, _ANY, _UNIT),
    "focal": (fnn.focal(), _ANY, _LABELS),
    "quantile": (fnn.quantile(0.8), _ANY, _OTHER),
    "gaussian_nll": (fnn.gaussian_nll, _ANY, _OTHER[:, :2]),
    "poisson_nll": (fnn.poisson_nll, _ANY, _LABELS[:, None] + np.arange(4)),
    "cosine": (fnn.cosine, _ANY, _OTHER),
    "info_nce": (fnn.info_nce(0.5), _ANY, _OTHER),
    "heads": (fnn.heads((fnn.mse, fnn.focal()), (0.3, 2.0)), (_ANY, _OTHER), (_UNIT, _LABELS)),
}

UNCHECKED = ("frozen", "lora", "stop_gradient")
"""Names without a case: a gradient of theirs is zero by definition, which no check can tell from
one that is missing."""


class Rule(NamedTuple):
    """An update rule: `make(learning_rate, **settings)`, and the same rule in numpy, which takes
    the same settings by name.

    The rule sees all parameters as one flat array; with `per_array`, each array by itself.
    """

    make: Callable[..., Optimizer]
    rule: Callable[..., tuple[Any, tuple[Any, ...]]]
    per_array: bool = False

    def changed(self) -> "Rule | None":
        """The rule with another value for each setting that has a default, so that a setting which
        is not used, or not as the source says, is seen; None where there are no settings."""
        others = {
            name: not value if isinstance(value, bool) else 0.6 * value + 0.05
            for name, parameter in inspect.signature(self.make).parameters.items()
            if isinstance(value := parameter.default, bool | float)
        }
        make: Any = partial(self.make, **others)
        rule: Any = partial(self.rule, **others)
        return Rule(make, rule, self.per_array) if others else None


def _sgd(rate, t, theta, g, slots):
    return theta - rate * g, ()


def _momentum(rate, t, theta, g, slots, decay=0.9, nesterov=False):
    v = decay * slots[0] + rate * g
    return theta - (decay * v + rate * g if nesterov else v), (v,)


def _rmsprop(rate, t, theta, g, slots, decay=0.9, eps=1e-8):
    e = decay * slots[0] + (1 - decay) * g**2
    return theta - rate * g / np.sqrt(e + eps), (e,)


def _adagrad(rate, t, theta, g, slots, eps=1e-8):
    s = slots[0] + g**2
    return theta - rate * g / (np.sqrt(s) + eps), (s,)


def _moments(g, slots, b1, b2):
    return b1 * slots[0] + (1 - b1) * g, b2 * slots[1] + (1 - b2) * g**2


def _adam(rate, t, theta, g, slots, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0):
    m, v = _moments(g, slots, b1, b2)
    step = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
    return theta - rate * (step + weight_decay * theta), (m, v)


def _nadam(rate, t, theta, g, slots, b1=0.9, b2=0.999, eps=1e-8):
    m, v = _moments(g, slots, b1, b2)
    ahead = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
    return theta - rate * ahead / (np.sqrt(v / (1 - b2**t)) + eps), (m, v)


def _lion(rate, t, theta, g, slots, b1=0.9, b2=0.99, weight_decay=0.0):
    direction = np.sign(b1 * slots[0] + (1 - b1) * g) + weight_decay * theta
    return theta - rate * direction, (b2 * slots[0] + (1 - b2) * g,)


def _muon(rate, t, theta, g, slots, decay=0.95, nesterov=True, eps=1e-8, weight_decay=0.0):
    v = decay * slots[0] + g
    x = np.atleast_2d(g + decay * v if nesterov else v)
    scale = np.sqrt(max(1, x.shape[0] / x.shape[1]))
    x = x / (np.linalg.norm(x) + eps)
    for _ in range(5):
        x = 3.4445 * x - 4.775 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    return theta - rate * (scale * x.reshape(theta.shape) + weight_decay * theta), (v,)


def _clipped_sgd(rate, t, theta, g, slots):
    return theta - rate * g * np.minimum(1, 0.5 / np.linalg.norm(g)), ()


def _adam_with_l2(rate, t, theta, g, slots):
    return _adam(rate, t, theta, g + 0.3 * theta, slots)


OPTIMIZERS: dict[str, Rule] = {
    "adagrad": Rule(fnn.adagrad, _adagrad),
    "adam": Rule(fnn.adam, _adam),
    "adamw": Rule(fnn.adamw, partial(_adam, weight_decay=0.01)),
    "lion": Rule(fnn.lion, _lion),
    "momentum": Rule(fnn.momentum, _momentum),
    "muon": Rule(fnn.muon, _muon, per_array=True),
    "nadam": Rule(fnn.nadam, _nadam),
    "rmsprop": Rule(fnn.rmsprop, _rmsprop),
    "sgd": Rule(fnn.sgd, _sgd),
}

WRAPPERS: dict[str, Rule] = {
    "accumulate": Rule(lambda lr: fnn.accumulate(fnn.adam(lr), 1), _adam),
    "add_l2": Rule(lambda lr: fnn.add_l2(fnn.adam(lr), 0.3), _adam_with_l2),
    "average": Rule(lambda lr: fnn.average(fnn.adam(lr), 0.9), _adam),
    "clip_by_global_norm": Rule(lambda lr: fnn.clip_by_global_norm(fnn.sgd(lr), 0.5), _clipped_sgd),
    "partition": Rule(lambda lr: fnn.partition(lambda p: "all", {"all": fnn.adam(lr)}), _adam),
    "scale_loss": Rule(lambda lr: fnn.scale_loss(fnn.adam(lr), 1.0), _adam),
}


def shipped() -> Iterator[tuple[str, Report]]:
    """The name of each layer, loss and optimizer of the library, and a report on it.

    An optimizer with settings is also checked with others than its defaults.
    """
    init_key, noise_key = jax.random.split(jax.random.key(0))
    for name, (layer, x) in (LAYERS | ACTIVATIONS).items():
        # Moved off its initial zeros and ones, so that no parameter is without effect.
        params = jax.tree.map(
            lambda p: p + 0.1 * jax.random.normal(noise_key, p.shape), layer.init(init_key)
        )
        yield name, check_layer(layer, params, x)
    for name, (loss, prediction, target) in LOSSES.items():
        yield name, check_loss(loss, prediction, target)
    weight_key, bias_key = jax.random.split(noise_key)
    params = {"W": jax.random.normal(weight_key, (6, 4)), "b": jax.random.normal(bias_key, (4,))}
    for name, rule in (OPTIMIZERS | WRAPPERS).items():
        for title, one in ((name, rule), (f"{name}, other settings", rule.changed())):
            if one:
                yield title, check_optimizer(one.make, one.rule, params, per_array=one.per_array)


def named(path: str) -> Report:
    """A report on the layer, loss or optimizer constructor at "package.module:name".

    It is checked at the inputs that its module gives as `name_inputs`, a tuple or a function
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
    checked, inputs = getattr(module, name), getattr(module, f"{name}_inputs")
    inputs = inputs() if callable(inputs) else inputs
    match checked:
        case Layer():
            return check_layer(checked, *inputs)
        case Loss():
            return check_loss(checked, *inputs)
        case _ if callable(checked):
            return check_optimizer(checked, *inputs)
    raise TypeError(f"{path}: expected a Layer, a Loss or an optimizer's constructor")
