"""The cases that the tests run over: all of `fnn.verify.cases`, and variants of it.

What stands there gets every test that its kind has: `test_layers.py`,
`test_losses.py` and `test_optimizers.py` run over these lists. Variants that the command and
`fnn verify` need not know are added here, as "name/what is special".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fnn
from fnn.verify import cases

KEY = jax.random.key(2026)


class LayerCase(NamedTuple):
    name: str
    layer: fnn.Layer
    x: Any  # an input of some examples: an array, or a tree of arrays

    @property
    def d_in(self):
        """The width of an input that is one array of features; None for codes, images, trees."""
        features = isinstance(self.x, np.ndarray) and self.x.ndim == 2
        return self.x.shape[-1] if features and self.x.dtype.kind == "f" else None

    def input(self, draw):
        """An input like x: draw(shape) for each array of floats, x's own codes for integers."""

        def one(a):
            drawn = draw(a.shape)
            return drawn if a.dtype.kind == "f" else jnp.asarray(np.resize(a, drawn.shape))

        return jax.tree.map(one, self.x)


class LossCase(NamedTuple):
    name: str
    loss: fnn.Loss
    prediction: np.ndarray  # (m, k), float64
    target: np.ndarray


class OptimizerCase(NamedTuple):
    name: str
    make: Callable  # learning_rate -> Optimizer
    rule: Callable  # (rate, t, theta, g, slots) -> (theta, slots), numpy, one array
    optax: Callable | None  # learning_rate -> GradientTransformation
    per_array: bool = False


def on_floats(f, tree, *others):
    """f of the floating-point arrays of trees; of others, which have no gradient, the first."""
    one = lambda a, *rest: f(a, *rest) if jnp.issubdtype(a.dtype, jnp.floating) else a
    return jax.tree.map(one, tree, *others)


def _x(d):
    return np.ones((7, d), np.float32)


LAYERS = [
    LayerCase(name, layer, x) for name, (layer, x) in (cases.ACTIVATIONS | cases.LAYERS).items()
]
LAYERS += [
    LayerCase("dense/square", fnn.dense(4, 4), _x(4)),
    LayerCase("dense/one", fnn.dense(1, 1), _x(1)),
    LayerCase("max_pool/overlapping", fnn.max_pool((3, 2), (2, 1)), np.ones((7, 5, 4, 2), "f")),
    LayerCase("mean_pool/overlapping", fnn.mean_pool((3, 2), (1, 3)), np.ones((7, 5, 6, 2), "f")),
    LayerCase("leaky_relu/steep", fnn.leaky_relu(1.5), _x(4)),
    LayerCase("elu/alpha", fnn.elu(0.3), _x(4)),
    LayerCase("serial/empty", fnn.serial(), _x(3)),
    LayerCase("skip/serial", fnn.skip(fnn.serial(fnn.dense(4, 4), fnn.softplus)), _x(4)),
    LayerCase("repeat/one", fnn.repeat(fnn.serial(fnn.layer_norm(4), fnn.silu), 1), _x(4)),
    LayerCase("repeat/no params", fnn.repeat(fnn.tanh, 3), _x(4)),
    LayerCase(
        "repeat/nested",
        fnn.repeat(
            fnn.serial(fnn.repeat(fnn.skip(fnn.dense(3, 3)), 2), fnn.sigmoid, fnn.layer_norm(3)), 2
        ),
        _x(3),
    ),
    LayerCase(
        "fork/merged",
        fnn.serial(
            fnn.fork(fnn.serial(fnn.dense(4, 3), fnn.tanh), fnn.identity),
            fnn.concatenate,
            fnn.fork(fnn.dense(7, 2), fnn.dense(7, 2)),
            fnn.add,
        ),
        _x(4),
    ),
    LayerCase("mlp/softmax", fnn.mlp((5, 8, 3), output=fnn.softmax), _x(5)),
]


def layer_inputs(case: LayerCase, dtype, batch=(7,)):
    """params, x, dy of the case: no zero biases, no symmetry, the same at each call."""
    rng = np.random.default_rng(2026)

    def draw(shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    params = jax.tree.map(
        lambda p: draw(p.shape) / p.shape[-1] ** 0.5, jax.eval_shape(case.layer.init, KEY)
    )
    x = case.input(lambda shape: draw((*batch, *shape[1:])))
    y, _ = jax.eval_shape(case.layer.forward, params, x)
    return params, x, jax.tree.map(lambda a: draw(a.shape), y)


def _chain(cases):
    """One network through the layers of all cases from an array to an array, 5 -> 3, with dense
    layers where widths change."""
    layers, width = [], 5
    for case in cases:
        params = jax.eval_shape(case.layer.init, KEY)
        y, _ = jax.eval_shape(case.layer.forward, params, case.x)
        if case.d_in is None or jnp.ndim(case.x) != getattr(y, "ndim", None):
            continue
        layers += [case.layer] if width == case.d_in else [fnn.dense(width, case.d_in), case.layer]
        width = y.shape[-1]
    return fnn.serial(*layers, fnn.dense(width, 3))


# Those that compute in the dtype that they are given.
EXACT = [case for case in LAYERS if case.name != "compute_in"]

# Every layer in a network, in few enough of them to compile quickly.
# Without what mixes the examples of a batch, draws by their place in it, or has no Outer for its W.
_ALONE = [case for case in EXACT if "training" not in case.name and case.name != "masked"]
NETWORKS = [_chain(_ALONE[::-1][i::3]) for i in range(3)]


_rng = np.random.default_rng(2026)
_LOGITS = _rng.normal(size=(6, 4))
_PROBABILITIES = _rng.dirichlet(np.ones(4), 6)
_WEIGHTED = _rng.uniform(0.1, 2, size=(6, 4))  # distributions that do not sum to one
_ANY = _rng.normal(size=(6, 4))
_UNIT = _rng.uniform(0.05, 0.95, size=(6, 4))
_BITS = (_rng.uniform(size=(6, 4)) < 0.5).astype(np.int32)

LOSSES = [
    LossCase(name, loss, np.asarray(prediction, np.float64), target)
    for name, (loss, prediction, target) in cases.LOSSES.items()
    if isinstance(prediction, np.ndarray)
]
TREE_LOSSES = [
    LossCase(name, *case)
    for name, case in cases.LOSSES.items()
    if not isinstance(case[1], np.ndarray)
]
"""Of predictions that are trees: `test_losses.py` has tests of their own for them."""
LOSSES += [
    LossCase("focal/weighted", fnn.focal(0.5), _LOGITS, _WEIGHTED),
    LossCase("focal/none", fnn.focal(0.0), _LOGITS, np.array([0, 1, 2, 3, 0, 1])),
    LossCase("huber/delta", fnn.huber(0.3), _LOGITS, _ANY),
    LossCase("cross_entropy/weighted", fnn.cross_entropy, _PROBABILITIES, _WEIGHTED),
    LossCase("softmax_cross_entropy/weighted", fnn.softmax_cross_entropy, _LOGITS, _WEIGHTED),
    LossCase("binary_cross_entropy/bits", fnn.binary_cross_entropy, _UNIT, _BITS),
    LossCase(
        "sigmoid_binary_cross_entropy/bits", fnn.sigmoid_binary_cross_entropy, 9 * _LOGITS, _BITS
    ),
]


# optax puts today's rate outside the momentum: it is an oracle there at a constant rate alone.
_OPTAX = {
    "sgd": optax.sgd,
    "rmsprop": lambda r: optax.rmsprop(r, decay=0.9, eps=1e-8, eps_in_sqrt=True),
    "adam": optax.adam,
    "adamw": lambda r: optax.adamw(r, weight_decay=0.01),
    "nadam": optax.nadam,
    "lion": lambda r: optax.lion(r, weight_decay=0.0),
    "clip_by_global_norm": lambda r: optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(r)),
    "add_l2": lambda r: optax.chain(optax.add_decayed_weights(0.3), optax.adam(r)),
}

OPTIMIZERS = []
for name, of in (cases.OPTIMIZERS | cases.WRAPPERS).items():
    OPTIMIZERS += [OptimizerCase(name, *of[:2], _OPTAX.get(name), of.per_array)]
    if changed := of.changed():
        OPTIMIZERS += [OptimizerCase(f"{name}/other settings", *changed[:2], None, of.per_array)]
OPTIMIZERS += [
    OptimizerCase(
        "adamw/decay",
        lambda r: fnn.adamw(r, weight_decay=0.1),
        lambda *arguments: cases.OPTIMIZERS["adamw"].rule(*arguments, weight_decay=0.1),
        lambda r: optax.adamw(r, weight_decay=0.1),
    )
]
