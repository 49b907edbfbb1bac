"""Losses, each with its gradient beside it.

`value(prediction, target)` is one loss per example, (..., k) -> (...); `gradient` is
d value / d prediction, (..., k). Targets are taken in the prediction's dtype. Of the two
kinds,

    regression       target (..., k), as the prediction
    classification   labels: integers (...) from 0 to k-1; or distributions (..., k)

Cross-entropy sums over the classes; the others are a mean over the k outputs. A label
outside 0 to k-1 makes value and gradient NaN, rather than count for nothing.

All raise ValueError for a target with a different shape, and TypeError for predictions that are
not floating-point: nothing is ever broadcast.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fnn import numbers
from fnn.base import Array, Loss, check_array

Root = Callable[[Array, Array], Array]
"""root(prediction, target) -> the columns (c, ..., k) of a root of the Hessian."""


def _regression(
    name: str, f: Callable[[Array], Array], df: Callable[[Array], Array], root: Root | None = None
) -> Loss:
    """value = mean over the outputs of f(e), gradient = f'(e) / k, e = prediction - target."""

    def value(prediction: Array, target: Array) -> Array:
        return f(prediction - _like(name, prediction, target)).mean(-1)

    def gradient(prediction: Array, target: Array) -> Array:
        return df(prediction - _like(name, prediction, target)) / prediction.shape[-1]

    return Loss(value, gradient, root)


def _diagonal_root(diagonal: Array) -> Array:
    """The columns sqrt(h_c) e_c of H = diag(h), h (..., k)."""
    k = diagonal.shape[-1]
    return jnp.moveaxis(jnp.sqrt(diagonal)[..., None] * jnp.eye(k, dtype=diagonal.dtype), -2, 0)


def _mse_root(prediction: Array, target: Array) -> Array:
    return _diagonal_root(jnp.full_like(prediction, 2 / prediction.shape[-1]))


mse = _regression("mse", lambda e: e * e, lambda e: 2 * e, _mse_root)
"""Mean squared error: (1/k) sum_i (p_i - t_i)^2; gradient 2 (p - t) / k, H = (2/k) I.

>>> mse.value(jnp.array([[1.0, 3.0]]), jnp.zeros((1, 2)))
Array([5.], dtype=float32)
"""

mae = _regression("mae", jnp.abs, jnp.sign)
"""Mean absolute error: (1/k) sum_i |p_i - t_i|; gradient sign(p - t) / k, 0 at p = t.

>>> mae.value(jnp.array([[1.0, -3.0]]), jnp.zeros((1, 2)))
Array([2.], dtype=float32)
"""


def huber(delta: float = 1.0) -> Loss:
    """Quadratic for errors up to delta, linear beyond. Huber 1964.

    (1/k) sum_i of e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2); gradient e / k
    with e clipped to [-delta, delta]. Raises ValueError for delta not above 0.

    >>> huber(1.0).value(jnp.array([[0.5], [3.0]]), jnp.zeros((2, 1)))
    Array([0.125, 2.5  ], dtype=float32)
    """
    delta = numbers.bound("huber", delta=delta)

    def f(e: Array) -> Array:
        near = jnp.clip(e, -delta, delta)
        return near * (e - near / 2)

    return _regression("huber", f, lambda e: jnp.clip(e, -delta, delta))


def _cross_entropy_value(prediction: Array, target: Array) -> Array:
    t = _distribution("cross_entropy", prediction, target)
    return -_times(t, jnp.log(prediction)).sum(-1)


def _cross_entropy_gradient(prediction: Array, target: Array) -> Array:
    t = _distribution("cross_entropy", prediction, target)
    return -_times(t, 1 / prediction)


cross_entropy = Loss(_cross_entropy_value, _cross_entropy_gradient)
"""On probabilities A: -sum_i t_i log a_i; gradient dL/dA = -t / A.

The A - Y of the textbooks is dL/dZ, before the softmax: the `softmax` layer's backward
makes it of this gradient. Infinite where a_i = 0 < t_i; nothing is clipped to hide it.

>>> cross_entropy.value(jnp.array([[1.0, 0.0]]), jnp.array([0]))
Array([-0.], dtype=float32)
"""


def _softmax_cross_entropy_value(prediction: Array, target: Array) -> Array:
    t = _distribution("softmax_cross_entropy", prediction, target)
    return -_times(t, jax.nn.log_softmax(prediction)).sum(-1)


def _softmax_cross_entropy_gradient(prediction: Array, target: Array) -> Array:
    t = _distribution("softmax_cross_entropy", prediction, target)
    a = jax.nn.softmax(prediction)
    # Labels are distributions that sum to one: no need to add them up.
    return (a * t.sum(-1, keepdims=True) if jnp.ndim(target) == t.ndim else a) - t


def _softmax_cross_entropy_root(prediction: Array, target: Array) -> Array:
    """s_c = sqrt(w p_c) (e_c - p)."""
    p, target = jax.nn.softmax(prediction), jnp.asarray(target)
    labels = jnp.issubdtype(target.dtype, jnp.integer)
    weight = 1 if labels else target.astype(p.dtype).sum(-1, keepdims=True)
    columns = jnp.eye(p.shape[-1], dtype=p.dtype) - p[..., None, :]
    return jnp.moveaxis(jnp.sqrt(weight * p)[..., None] * columns, -2, 0)


softmax_cross_entropy = Loss(
    _softmax_cross_entropy_value, _softmax_cross_entropy_gradient, _softmax_cross_entropy_root
)
"""On logits Z: -sum_i t_i log softmax(z)_i, by log-sum-exp; gradient dL/dZ = A sum(t) - t,
which is A - Y for targets that sum to one. H = w (diag p - p p^T), p the softmax and w the sum
of the target. Finite for logits of any size.

>>> softmax_cross_entropy.value(jnp.array([[1000.0, 0.0]]), jnp.array([1]))
Array([1000.], dtype=float32)
"""


def smoothed_cross_entropy(smoothing: float = 0.1) -> Loss:
    """`softmax_cross_entropy` of smoothed targets, u = (1 - smoothing) t + smoothing sum(t) / k.
    Szegedy et al. 2016.

    On logits Z: -sum_i u_i log softmax(z)_i; gradient A sum(t) - u. H is that of
    `softmax_cross_entropy`: it depends on the target only through its sum. Raises ValueError for
    smoothing outside [0, 1).

    >>> smoothed_cross_entropy(0.5).gradient(jnp.zeros((1, 2)), jnp.array([1]))
    Array([[ 0.25, -0.25]], dtype=float32)
    """
    smoothing = numbers.fraction("smoothed_cross_entropy", smoothing=smoothing)

    def smoothed(prediction: Array, target: Array) -> Array:
        t = _distribution("smoothed_cross_entropy", prediction, target)
        return (1 - smoothing) * t + smoothing * t.mean(-1, keepdims=True)

    def value(prediction: Array, target: Array) -> Array:
        return _softmax_cross_entropy_value(prediction, smoothed(prediction, target))

    def gradient(prediction: Array, target: Array) -> Array:
        return _softmax_cross_entropy_gradient(prediction, smoothed(prediction, target))

    return Loss(value, gradient, _softmax_cross_entropy_root)


def _binary_cross_entropy_value(prediction: Array, target: Array) -> Array:
    t = _like("binary_cross_entropy", prediction, target)
    return -(_times(t, jnp.log(prediction)) + _times(1 - t, jnp.log1p(-prediction))).mean(-1)


def _binary_cross_entropy_gradient(prediction: Array, target: Array) -> Array:
    t = _like("binary_cross_entropy", prediction, target)
    return (_times(1 - t, 1 / (1 - prediction)) - _times(t, 1 / prediction)) / t.shape[-1]


binary_cross_entropy = Loss(_binary_cross_entropy_value, _binary_cross_entropy_gradient)
"""On probabilities a of k yes-or-no outputs: -(1/k) sum_i t_i log a_i + (1 - t_i) log(1 - a_i);
gradient ((1 - t) / (1 - a) - t / a) / k. Targets (..., k) in [0, 1].

>>> binary_cross_entropy.gradient(jnp.array([[0.5]]), jnp.array([[1.0]]))
Array([[-2.]], dtype=float32)
"""


def _sigmoid_binary_cross_entropy_value(prediction: Array, target: Array) -> Array:
    t = _like("sigmoid_binary_cross_entropy", prediction, target)
    # log(1 + e^z) - t z would subtract two large numbers; these terms are both positive.
    return (t * jnp.logaddexp(-prediction, 0) + (1 - t) * jnp.logaddexp(prediction, 0)).mean(-1)


def _sigmoid_binary_cross_entropy_gradient(prediction: Array, target: Array) -> Array:
    t = _like("sigmoid_binary_cross_entropy", prediction, target)
    # sigmoid(z) - t would cancel in the tails.
    upper, lower = jax.nn.sigmoid(prediction), jax.nn.sigmoid(-prediction)
    return ((1 - t) * upper - t * lower) / t.shape[-1]


def _sigmoid_binary_cross_entropy_root(prediction: Array, target: Array) -> Array:
    slope = jax.nn.sigmoid(prediction) * jax.nn.sigmoid(-prediction)
    return _diagonal_root(slope / prediction.shape[-1])


sigmoid_binary_cross_entropy = Loss(
    _sigmoid_binary_cross_entropy_value,
    _sigmoid_binary_cross_entropy_gradient,
    _sigmoid_binary_cross_entropy_root,
)
"""On logits z of k yes-or-no outputs: (1/k) sum_i t_i log(1 + e^-z_i) + (1 - t_i) log(1 + e^z_i);
gradient (sigmoid(z) - t) / k, by (1 - t) sigmoid(z) - t sigmoid(-z); H = diag(a (1 - a)) / k,
a the sigmoid. Finite for logits of any size. Targets (..., k) in [0, 1].

>>> sigmoid_binary_cross_entropy.gradient(jnp.array([[0.0]]), jnp.array([[1.0]]))
Array([[-0.5]], dtype=float32)
"""


def _times(t: Array, x: Array) -> Array:
    """t x, with 0 times infinity = 0: what has no weight does not count."""
    return jnp.where(t == 0, 0, t * x)


def _like(name: str, prediction: Array, target: Array) -> Array:
    """The target in the prediction's dtype, if it has the prediction's shape."""
    prediction, target = _floating(name, prediction), jnp.asarray(target)
    if target.shape != prediction.shape:
        raise ValueError(
            f"{name}: expected a target of the prediction's shape {prediction.shape}, "
            f"got {target.shape}"
        )
    return target.astype(prediction.dtype)


def _distribution(name: str, prediction: Array, target: Array) -> Array:
    """Targets as distributions (..., k): labels become one-hot rows."""
    prediction, target = _floating(name, prediction), jnp.asarray(target)
    *batch, k = prediction.shape
    if not jnp.issubdtype(target.dtype, jnp.integer):
        if target.shape == tuple(batch):
            raise TypeError(f"{name}: expected labels to be integers, got {target.dtype}")
        return _like(name, prediction, target)
    if target.shape != tuple(batch):
        raise ValueError(
            f"{name}: expected integer labels of shape {tuple(batch)} for a prediction of "
            f"shape {prediction.shape}, got {target.shape}"
        )
    return _one_hot(target, k, prediction.dtype)


# Value and gradient both ask for it; jit has it traced and lowered once.
@partial(jax.jit, static_argnums=(1, 2))
def _one_hot(labels: Array, k: int, dtype: Any) -> Array:
    """(...) -> (..., k), a row of NaN for a label outside 0 to k-1."""
    # The maximum changes no result. It gives XLA's CPU executor a second operation to begin a
    # program with: a gradient that is called by itself would else run on the caller's thread,
    # which competes with the workers, in 1.1 to 1.3 times the time.
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)  # in 8 bits, k = 256 would wrap to 0
    all_below = labels.max(initial=0) < k
    labels = labels[..., None]
    known = (labels >= 0) & ((labels < k) | all_below)
    return jnp.where(known, (labels == jnp.arange(k, dtype=labels.dtype)).astype(dtype), jnp.nan)


def _floating(name: str, prediction: Any) -> Array:
    check_array(name, prediction, "one array as prediction")
    prediction = jnp.asarray(prediction)
    if not jnp.issubdtype(prediction.dtype, jnp.floating):
        raise TypeError(f"{name}: expected floating-point predictions, got {prediction.dtype}")
    if prediction.ndim == 0:
        raise ValueError(f"{name}: expected a prediction of shape (..., k), got a scalar")
    return prediction
