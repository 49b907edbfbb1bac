"""Losses, each with its gradient.

`value(prediction, target)` is one loss per example, (..., k) -> (...); `gradient` is
d value / d prediction, (..., k). Targets are converted to the prediction's dtype:

    regression       target (..., k), as the prediction
    classification   labels: integers (...) from 0 to k-1; or distributions (..., k)

The cross-entropies and `focal` sum over the classes; `cosine` and `info_nce` compare directions;
the others are a mean over the k outputs. For a label outside 0 to k-1, value and gradient are NaN.

All raise ValueError for a target with a different shape, which is never broadcast, and TypeError
for predictions that are not floating-point.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fnn import numbers
from fnn.base import Array, Loss, Tree, check_array, check_loss
from fnn.reductions import expand_like, safe_norm

Root = Callable[[Array, Array], Array]
"""root(prediction, target) -> the columns (c, ..., k) of a root of the Hessian."""


def _elementwise(name: str, f: Root, df: Root, curvature: Root | None = None) -> Loss:
    """value = the outputs' mean of f(p, t), gradient = df(p, t) / k, H = diag(curvature) / k."""

    def value(prediction: Array, target: Array) -> Array:
        return f(prediction, _like(name, prediction, target)).mean(-1)

    def gradient(prediction: Array, target: Array) -> Array:
        return df(prediction, _like(name, prediction, target)) / prediction.shape[-1]

    if curvature is None:
        return Loss(value, gradient)
    return Loss(value, gradient, lambda p, t: _diagonal_root(curvature(p, t) / p.shape[-1]))


def _diagonal_root(diagonal: Array) -> Array:
    """The columns sqrt(h_c) e_c of H = diag(h), h (..., k)."""
    k = diagonal.shape[-1]
    return jnp.moveaxis(jnp.sqrt(diagonal)[..., None] * jnp.eye(k, dtype=diagonal.dtype), -2, 0)


mse = _elementwise(
    "mse",
    lambda p, t: jnp.square(p - t),
    lambda p, t: 2 * (p - t),
    lambda p, t: jnp.full_like(p, 2),
)
"""Mean squared error: (1/k) sum_i (p_i - t_i)^2; gradient 2 (p - t) / k, H = (2/k) I.

>>> mse.value(jnp.array([[1.0, 3.0]]), jnp.zeros((1, 2)))
Array([5.], dtype=float32)
"""

mae = _elementwise("mae", lambda p, t: jnp.abs(p - t), lambda p, t: jnp.sign(p - t))
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

    near = lambda p, t: jnp.clip(p - t, -delta, delta)
    f = lambda p, t: near(p, t) * (p - t - near(p, t) / 2)
    return _elementwise("huber", f, near)


def quantile(q: float = 0.5) -> Loss:
    """The pinball loss, minimised by the target's q-quantile. Koenker & Bassett 1978.

    (1/k) sum_i of (1 - q) e where e = p - t > 0, else -q e; gradient (1 - q) / k above the
    target, -q / k below, and their mean at e = 0. Raises ValueError for q outside (0, 1).

    >>> quantile(0.75).value(jnp.array([[1.0], [-1.0]]), jnp.zeros((2, 1)))
    Array([0.25, 0.75], dtype=float32)
    """
    q = numbers.fraction("quantile", q=numbers.positive("quantile", q=q))
    slope = lambda p, t: (jnp.sign(p - t) + (1 - 2 * q)) / 2
    return _elementwise("quantile", lambda p, t: slope(p, t) * (p - t), slope)


poisson_nll = _elementwise(
    "poisson_nll",
    lambda z, t: jnp.exp(z) - t * z,
    lambda z, t: jnp.exp(z) - t,
    lambda z, t: jnp.exp(z),
)
"""Negative log-likelihood of counts t with log rates z, without the constant log t!:
(1/k) sum_i e^z_i - t_i z_i; gradient (e^z - t) / k, H = diag(e^z) / k.

>>> poisson_nll.value(jnp.array([[0.0]]), jnp.array([[3]]))
Array([1.], dtype=float32)
"""


def _standardised(prediction: Array, target: Array) -> tuple[Array, Array, Array]:
    """(s, e^(-s/2), (mu - t) e^(-s/2)) of predictions (mu, s)."""
    if _floating("gaussian_nll", prediction).shape[-1] % 2:
        raise ValueError(f"gaussian_nll: expected (..., 2k) predictions, got {prediction.shape}")
    mean, log_variance = jnp.split(prediction, 2, -1)
    inverse = jnp.exp(-log_variance / 2)
    return log_variance, inverse, (mean - _like("gaussian_nll", mean, target)) * inverse


def _gaussian_nll_value(prediction: Array, target: Array) -> Array:
    log_variance, _, z = _standardised(prediction, target)
    return ((log_variance + z * z) / 2).mean(-1)


def _gaussian_nll_gradient(prediction: Array, target: Array) -> Array:
    _, inverse, z = _standardised(prediction, target)
    return jnp.concatenate([z * inverse, (1 - z * z) / 2], -1) / z.shape[-1]


gaussian_nll = Loss(_gaussian_nll_value, _gaussian_nll_gradient)
"""Negative log-likelihood of t (..., k) under normal distributions, without log(2 pi) / 2;
predictions (..., 2k) are k means mu, then k log variances s. Nix & Weigend 1994.

(1/k) sum_i (s_i + z_i^2) / 2 with z = (mu - t) e^(-s/2); gradient z e^(-s/2) / k for mu and
(1 - z^2) / 2k for s. Its Hessian has no root: it is indefinite.

>>> gaussian_nll.value(jnp.array([[1.0, 0.0]]), jnp.array([[3.0]]))
Array([2.], dtype=float32)
"""


def _cross_entropy_value(prediction: Array, target: Array) -> Array:
    t = _distribution("cross_entropy", prediction, target)
    return -_times(t, jnp.log(prediction)).sum(-1)


def _cross_entropy_gradient(prediction: Array, target: Array) -> Array:
    t = _distribution("cross_entropy", prediction, target)
    return -_times(t, 1 / prediction)


cross_entropy = Loss(_cross_entropy_value, _cross_entropy_gradient)
"""On probabilities A: -sum_i t_i log a_i; gradient dL/dA = -t / A.

The A - Y of textbooks is dL/dZ, before the softmax: the `softmax` layer's backward computes it from
this gradient. The loss is infinite if a_i = 0 < t_i; probabilities are not clipped.

>>> cross_entropy.value(jnp.array([[1.0, 0.0]]), jnp.array([0]))
Array([-0.], dtype=float32)
"""


def _softmax_cross_entropy_value(prediction: Array, target: Array) -> Array:
    t = _distribution("softmax_cross_entropy", prediction, target)
    return -_times(t, jax.nn.log_softmax(prediction)).sum(-1)


def _softmax_cross_entropy_gradient(prediction: Array, target: Array) -> Array:
    t = _distribution("softmax_cross_entropy", prediction, target)
    a = jax.nn.softmax(prediction)
    # One-hot rows of labels sum to one.
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
    """`softmax_cross_entropy` with smoothed targets, u = (1 - smoothing) t + smoothing sum(t) / k.
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

    value = lambda p, t: _softmax_cross_entropy_value(p, smoothed(p, t))
    gradient = lambda p, t: _softmax_cross_entropy_gradient(p, smoothed(p, t))
    return Loss(value, gradient, _softmax_cross_entropy_root)


def focal(gamma: float = 2.0) -> Loss:
    """`softmax_cross_entropy` with less weight on well-classified examples. Lin et al. 2017.

    On logits Z: -sum_i t_i (1 - p_i)^gamma log p_i, p the softmax; with
    g_i = t_i (1 - p_i)^gamma (gamma p_i log(p_i) / (1 - p_i) - 1) the gradient is g - p sum(g).
    gamma = 0 is `softmax_cross_entropy`. Its Hessian has no root: it is indefinite. Raises
    ValueError for a negative gamma.

    >>> focal(2.0).value(jnp.array([[0.0, 0.0]]), jnp.array([1])).round(4)
    Array([0.1733], dtype=float32)
    """
    gamma = numbers.nonnegative("focal", gamma=gamma)

    def parts(prediction: Array, target: Array) -> tuple[Array, Array, Array]:
        """(log p, 1 - p, t (1 - p)^gamma)"""
        t, log_p = _distribution("focal", prediction, target), jax.nn.log_softmax(prediction)
        return log_p, -jnp.expm1(log_p), t * (-jnp.expm1(log_p)) ** gamma

    def value(prediction: Array, target: Array) -> Array:
        log_p, _, weight = parts(prediction, target)
        return -_times(weight, log_p).sum(-1)

    def gradient(prediction: Array, target: Array) -> Array:
        log_p, rest, weight = parts(prediction, target)
        ratio = jnp.where(rest > 0, log_p / jnp.where(rest > 0, rest, 1), -1)  # its limit at p = 1
        p = jnp.exp(log_p)
        g = weight * (gamma * p * ratio - 1)
        return g - p * g.sum(-1, keepdims=True)

    return Loss(value, gradient)


binary_cross_entropy = _elementwise(
    "binary_cross_entropy",
    lambda p, t: -(_times(t, jnp.log(p)) + _times(1 - t, jnp.log1p(-p))),
    lambda p, t: _times(1 - t, 1 / (1 - p)) - _times(t, 1 / p),
)
"""On probabilities a of k binary outputs: -(1/k) sum_i t_i log a_i + (1 - t_i) log(1 - a_i);
gradient ((1 - t) / (1 - a) - t / a) / k. Targets (..., k) in [0, 1].

>>> binary_cross_entropy.gradient(jnp.array([[0.5]]), jnp.array([[1.0]]))
Array([[-2.]], dtype=float32)
"""


# log(1 + e^z) - t z would subtract two large numbers, sigmoid(z) - t would cancel in the tails.
sigmoid_binary_cross_entropy = _elementwise(
    "sigmoid_binary_cross_entropy",
    lambda z, t: t * jnp.logaddexp(-z, 0) + (1 - t) * jnp.logaddexp(z, 0),
    lambda z, t: (1 - t) * jax.nn.sigmoid(z) - t * jax.nn.sigmoid(-z),
    lambda z, t: jax.nn.sigmoid(z) * jax.nn.sigmoid(-z),
)
"""On logits z of k binary outputs: (1/k) sum_i t_i log(1 + e^-z_i) + (1 - t_i) log(1 + e^z_i);
gradient (sigmoid(z) - t) / k, by (1 - t) sigmoid(z) - t sigmoid(-z); H = diag(a (1 - a)) / k,
a the sigmoid. Finite for logits of any size. Targets (..., k) in [0, 1].

>>> sigmoid_binary_cross_entropy.gradient(jnp.array([[0.0]]), jnp.array([[1.0]]))
Array([[-0.5]], dtype=float32)
"""


def _directions(name: str, prediction: Array, target: Array) -> tuple[Array, Array, Array]:
    """(p / ||p||, 1 / ||p||, t / ||t||), 0 if the norm is 0."""
    t = _like(name, prediction, target)
    norms = [safe_norm(a, (-1,))[..., None].astype(t.dtype) for a in (prediction, t)]
    inverses = [1 / jnp.where(norm > 0, norm, jnp.inf) for norm in norms]
    return prediction * inverses[0], inverses[0], t * inverses[1]


def _through_unit(unit: Array, inverse: Array, du: Array) -> Array:
    """The cotangent of p, from that of p / ||p||."""
    return (du - (unit * du).sum(-1, keepdims=True) * unit) * inverse


def _cosine_value(prediction: Array, target: Array) -> Array:
    unit, _, v = _directions("cosine", prediction, target)
    return 1 - (unit * v).sum(-1)


def _cosine_gradient(prediction: Array, target: Array) -> Array:
    unit, inverse, v = _directions("cosine", prediction, target)
    return _through_unit(unit, inverse, -v)


cosine = Loss(_cosine_value, _cosine_gradient)
"""1 - cos(p, t) = 1 - u . v with u = p / ||p||, v = t / ||t||; gradient ((u . v) u - v) / ||p||.
If p or t is 0, the loss is 1 and the gradient 0.

>>> cosine.value(jnp.array([[2.0, 0.0], [0.0, 3.0]]), jnp.array([[1.0, 0.0], [0.0, -1.0]]))
Array([0., 2.], dtype=float32)
"""


def info_nce(temperature: float = 0.1) -> Loss:
    """Contrastive loss: classify which of the batch's targets belongs to a prediction. van den Oord
    et al. 2018.

    Predictions and targets (..., m, k) are m embeddings each. With u_n and v_n the embeddings
    divided by their norms, and P_nj = softmax_j(u_n . v_j / temperature), the loss of example n is
    -log P_nn. The gradient, of the sum over n and with respect to the predictions only, follows by
    the chain rule from du_n = sum_j (P_nj - [n = j]) v_j / temperature. Examples mix: per-example
    statistics raise TypeError, and on a mesh each device compares only the examples of its own
    share.

    Raises ValueError for a temperature not above 0 and for predictions with fewer than two axes.

    >>> info_nce(1.0).value(jnp.ones((2, 1)), jnp.ones((2, 1)))  # log 2: it can't tell
    Array([0.6931472, 0.6931472], dtype=float32)
    """
    temperature = numbers.positive("info_nce", temperature=temperature)

    def similar(prediction: Array, target: Array) -> tuple[Array, ...]:
        """(u, 1 / ||p||, v, logits)"""
        if jnp.ndim(_floating("info_nce", prediction)) < 2:
            raise ValueError(f"info_nce: expected (..., m, k), got {jnp.shape(prediction)}")
        unit, inverse, v = _directions("info_nce", prediction, target)
        return unit, inverse, v, unit @ v.swapaxes(-1, -2) / temperature

    def value(prediction: Array, target: Array) -> Array:
        *_, logits = similar(prediction, target)
        return -jnp.diagonal(jax.nn.log_softmax(logits), axis1=-2, axis2=-1)

    def gradient(prediction: Array, target: Array) -> Array:
        unit, inverse, v, logits = similar(prediction, target)
        dz = jax.nn.softmax(logits) - jnp.eye(logits.shape[-1], dtype=logits.dtype)
        return _through_unit(unit, inverse, dz @ v / temperature)

    return Loss(value, gradient, mixes=True)


def heads(losses: Any, weights: Tree = None) -> Loss:
    """The sum of one loss per part of the prediction; losses and prediction are both tuples or both
    dicts.

    The loss of part i is losses[i] of prediction[i] and target[i]; the target may have more parts.
    weights has a number for each part, or is a function of the whole target that returns for each
    part a number or one weight per example. A loss with weight 0 is ignored, even if it is NaN: so
    a further part of the target can mark missing labels.

    Raises TypeError if an entry of losses is not a loss.

    >>> import fnn
    >>> loss = heads((fnn.mse, fnn.mae), weights=lambda target: (1.0, target[2]))
    >>> y, seen = jnp.ones((2, 1)), jnp.array([True, False])
    >>> loss.value((2 * y, 3 * y), (y, y, seen))
    Array([3., 1.], dtype=float32)
    """
    names = list(losses) if isinstance(losses, dict) else range(len(losses))
    for name in names:
        check_loss(f"heads: {name!r}", losses[name])

    def each(field: int, prediction: Tree, target: Tree) -> dict[Any, Any]:
        """The value (0) or the gradient (1) of each part, weighted."""
        given = weights(target) if callable(weights) else weights

        def part(name: Any) -> Any:
            weight = jnp.asarray(1.0 if given is None else given[name])
            found = losses[name][field](prediction[name], target[name])
            return jax.tree.map(lambda a: _times(expand_like(weight, a), a), found)

        return {name: part(name) for name in names}

    def value(prediction: Tree, target: Tree) -> Array:
        return jax.tree.reduce(jnp.add, each(0, prediction, target))

    def gradient(prediction: Tree, target: Tree) -> Any:
        parts = each(1, prediction, target)
        return parts if isinstance(losses, dict) else tuple(parts.values())

    return Loss(value, gradient, mixes=any(losses[name].mixes for name in names))


def _times(t: Array, x: Array) -> Array:
    """t x, and 0 where t is 0, even if x is infinite or NaN."""
    return jnp.where(t == 0, 0, t * x)


def _like(name: str, prediction: Array, target: Array) -> Array:
    """The target in the prediction's dtype, if it has the prediction's shape."""
    prediction, target = _floating(name, prediction), jnp.asarray(target)
    if target.shape != prediction.shape:
        expected = f"expected a target of the prediction's shape {prediction.shape}"
        raise ValueError(f"{name}: {expected}, got {target.shape}")
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
        labels = f"integer labels of shape {tuple(batch)} for a prediction of {prediction.shape}"
        raise ValueError(f"{name}: expected {labels}, got {target.shape}")
    return _one_hot(target, k, prediction.dtype)


# Value and gradient both call it; under jit it is traced and lowered once.
@partial(jax.jit, static_argnums=(1, 2))
def _one_hot(labels: Array, k: int, dtype: Any) -> Array:
    """(...) -> (..., k), a row of NaN for a label outside 0 to k-1."""
    # The maximum does not change the result. With it, XLA's CPU executor has a second operation to
    # start with; otherwise a gradient alone runs on the caller's thread, which competes with the
    # workers and takes 1.1 to 1.3 times as long.
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)  # in 8 bits, k = 256 would wrap to 0
    all_below = labels.max(initial=0) < k
    labels = labels[..., None]
    known = (labels >= 0) & ((labels < k) | all_below)
    return jnp.where(known, (labels == jnp.arange(k, dtype=labels.dtype)).astype(dtype), jnp.nan)


def _floating(name: str, prediction: Tree) -> Array:
    check_array(name, prediction, "one array as prediction")
    prediction = jnp.asarray(prediction)
    if not jnp.issubdtype(prediction.dtype, jnp.floating):
        raise TypeError(f"{name}: expected floating-point predictions, got {prediction.dtype}")
    if prediction.ndim == 0:
        raise ValueError(f"{name}: expected a prediction of shape (..., k), got a scalar")
    return prediction
