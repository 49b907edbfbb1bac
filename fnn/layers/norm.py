"""Normalisation layers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fnn import numbers
from fnn.base import Array, Grads, Layer, Params, Residuals, Tree, Varying, at_least_float32
from fnn.layers.shapes import check_input, named_widths
from fnn.reductions import Direct, Reduce, Whole, Widened, total


def layer_norm(d: int, *, eps: float = 1e-5) -> Layer:
    """Scale each example to mean 0 and variance 1, then y = gain * n + bias. Ba et al. 2016.

    params {"gain": (d,), "bias": (d,)}; x (..., d) -> (..., d). With r = 1/sqrt(var + eps):

        forward    n = (x - mean x) r,    y = gain * n + bias
        backward   dn = gain * dy,    dx = r (dn - mean dn - n mean(n dn)),
                   dgain = sum over the batch of n * dy,    dbias = sum of dy

    var is the biased variance; statistics are computed in at least float32. If var would overflow,
    for x above about 1e19 in float32, it is computed from x / 2^64, with the same result.

    Raises ValueError for d below 1, eps not above 0, and x or params with a different width;
    TypeError if x and params differ in dtype.

    >>> layer = layer_norm(2)
    >>> y, _ = layer.forward(layer.init(jax.random.key(0)), jnp.array([[1.0, 3.0]]))
    >>> y.round(3)
    Array([[-1.,  1.]], dtype=float32)
    """
    name, d = named_widths("layer_norm", d)
    same = lambda a, *shape: a
    return _standardised(name, eps, (d,), same, same)


def rms_norm(d: int, *, eps: float = 1e-5) -> Layer:
    """Divide each example by its root mean square, then y = gain * n. Zhang & Sennrich 2019.

    params {"gain": (d,)}; x (..., d) -> (..., d). With r = 1/sqrt(mean x^2 + eps):

        forward    n = x r,    y = gain * n
        backward   dn = gain * dy,    dx = r (dn - n mean(n dn)),
                   dgain = sum over the batch of n * dy

    The mean is computed in at least float32. If it would overflow, for x above about 1e19 in
    float32, it is computed from x / 2^64, with the same result.

    Raises ValueError for d below 1, eps not above 0, and x or params with a different width;
    TypeError if x and params differ in dtype.

    >>> layer = rms_norm(2)
    >>> y, _ = layer.forward(layer.init(jax.random.key(0)), jnp.array([[3.0, -3.0]]))
    >>> y.round(3)
    Array([[ 1., -1.]], dtype=float32)
    """
    name, d = named_widths("rms_norm", d)
    eps = numbers.positive(name, eps=eps)
    init = lambda key: {"gain": jnp.ones(d)}

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        check_input(name, params, {"gain": (d,)}, x, d)
        wide = x.astype(at_least_float32(x.dtype))
        r = _inverse_deviation(wide, eps)
        n = wide * r
        return params["gain"] * n.astype(x.dtype), (n, r)

    def backward(params: Params, residuals: Residuals, dy: Array, reduce: Reduce = total) -> Grads:
        n, r = residuals
        dn = (params["gain"] * dy).astype(n.dtype)
        dx = r * (dn - n * (n * dn).mean(-1, keepdims=True))
        return {"gain": reduce(Direct(n.astype(dy.dtype) * dy))}, dx.astype(dy.dtype)

    return Layer(init, forward, backward)


def group_norm(d: int, groups: int, *, eps: float = 1e-5) -> Layer:
    """Scale each group of channels of each image to mean 0 and variance 1 over the channels and the
    pixels, then y = gain * n + bias. Wu & He 2018.

    params {"gain": (d,), "bias": (d,)}; x (..., height, width, d) -> the same shape. With
    r = 1/sqrt(var + eps) for each image and each group of d / groups adjacent channels:

        forward    n = (x - mean x) r,    y = gain * n + bias
        backward   dn = gain * dy,    dx = r (dn - mean dn - n mean(n dn)),
                   dgain = sum over batch and pixels of n * dy,    dbias = sum of dy

    var is the biased variance; statistics are computed in at least float32, as in `layer_norm`.

    Raises ValueError for d or groups below 1, d that is not divisible by groups, eps not above 0,
    and x or params with a different shape; TypeError if x and params differ in dtype.

    >>> layer = group_norm(2, 2)
    >>> x = jnp.array([[[1.0, 5.0], [3.0, 9.0]]])
    >>> y, _ = layer.forward(layer.init(jax.random.key(0)), x)
    >>> y.round(3)
    Array([[[-1., -1.],
            [ 1.,  1.]]], dtype=float32)
    """
    name, d, groups = named_widths("group_norm", d, groups)
    if d % groups:
        raise ValueError(f"{name}: expected a width divisible by the number of groups")

    def grouped(x: Array) -> Array:
        """(..., height, width, d) -> (..., groups, entries)."""
        pixels = x.reshape(*x.shape[:-3], -1, groups, d // groups)
        entries = jnp.swapaxes(pixels, -3, -2)
        return entries.reshape(*entries.shape[:-2], -1)

    def ungrouped(a: Array, shape: tuple[int, ...]) -> Array:
        entries = a.reshape(*a.shape[:-1], -1, d // groups)
        return jnp.swapaxes(entries, -3, -2).reshape(shape)

    return _standardised(name, eps, ("height", "width", d), grouped, ungrouped)


def batch_norm(d: int, *, eps: float = 1e-5) -> Layer:
    """Scale each feature to mean 0 and variance 1 over the examples, then y = gain * n + bias.
    Ioffe & Szegedy 2015.

    params {"gain": (d,), "bias": (d,)}; x (..., d) -> (..., d). With r = 1/sqrt(var + eps):

        forward    n = (x - mean) r,    y = gain * n + bias
        backward   in training, with mean and var of the batch,
                   dx = gain r (dy - mean dy - n mean(n dy)), means over the batch,
                   in evaluation, with given mean and var, dx = gain r dy;
                   dgain = sum over the batch of n * dy,    dbias = sum of dy

    `fnn.at(layer, key)` is the layer in training. `fnn.at(layer, statistics=s)` is the layer in
    evaluation, with s = `fnn.statistics(network, params, x)`: the mean and the biased variance of
    given examples. No running averages are kept (Wu & Johnson 2021). Without statistics, mean is 0
    and var is 1. In training there are no per-example gradients, because the batch is mixed; every
    reduction except `total` raises TypeError.

    var is the biased variance; statistics are computed in at least float32. If var overflows, for x
    above about 1e19 in float32, y is NaN.

    Raises ValueError for d below 1, eps not above 0, and x or params with a different width;
    TypeError if x and params differ in dtype.

    >>> import fnn
    >>> layer, x = batch_norm(1), jnp.array([[1.0], [3.0]])
    >>> params = layer.init(jax.random.key(0))
    >>> fnn.at(layer, statistics=fnn.statistics(layer, params, x)).forward(params, x)[0].round(3)
    Array([[-1.],
           [ 1.]], dtype=float32)
    """
    name, d = named_widths("batch_norm", d)
    eps = numbers.positive(name, eps=eps)

    def normalised(params: Params, x: Array, statistics: Tree) -> tuple[Array, Residuals]:
        mean, variance = statistics
        # NaN for a variance that overflowed, for which the root would be 0.
        r = jax.lax.rsqrt(jnp.where(variance < jnp.inf, variance, jnp.nan) + eps)
        n = (x.astype(r.dtype) - mean) * r
        return params["gain"] * n.astype(x.dtype) + params["bias"], (n, r)

    def of_batch(x: Array) -> tuple[Array, Array]:
        wide, examples = x.astype(at_least_float32(x.dtype)), tuple(range(x.ndim - 1))
        mean = wide.mean(examples)
        return mean, jnp.square(wide - mean).mean(examples)

    def evaluation(statistics: Tree) -> Layer:
        def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
            check_input(name, params, {"gain": (d,), "bias": (d,)}, x, d)
            wide = at_least_float32(x.dtype)
            given = (jnp.zeros(d, wide), jnp.ones(d, wide)) if statistics is None else statistics
            return normalised(params, x, jax.tree.map(lambda s: s.astype(wide), given))

        def backward(
            params: Params, residuals: Residuals, dy: Array, reduce: Reduce = total
        ) -> Grads:
            n, r = residuals
            dparams = {"gain": reduce(Direct(n.astype(dy.dtype) * dy)), "bias": reduce(Direct(dy))}
            return dparams, params["gain"] * r.astype(dy.dtype) * dy

        return Layer(partial(_init, d), forward, backward)

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        check_input(name, params, {"gain": (d,), "bias": (d,)}, x, d)
        return normalised(params, x, of_batch(x))

    def backward(params: Params, residuals: Residuals, dy: Array, reduce: Reduce = total) -> Grads:
        n, r = residuals
        wide, examples = dy.astype(n.dtype), tuple(range(dy.ndim - 1))
        dgain, dbias = (n * wide).sum(examples), wide.sum(examples)
        dparams = {
            "gain": reduce(Widened(Whole(dgain, name), dy.dtype)),
            "bias": reduce(Widened(Whole(dbias, name), dy.dtype)),
        }
        m = max(1, dy.size // d)
        dx = params["gain"].astype(n.dtype) * r * (wide - dbias / m - n * dgain / m)
        return dparams, dx.astype(dy.dtype)

    training = Layer(partial(_init, d), forward, backward)

    def at(key: Array | None, statistics: Tree) -> Layer:
        return evaluation(statistics) if key is None else training

    def measure(params: Params, x: Array, key: Array | None) -> tuple[Array, Any]:
        statistics = of_batch(x)
        return normalised(params, x, statistics)[0], statistics

    return evaluation(None)._replace(varying=Varying(at, measure))


def _init(d: int, key: Array) -> Params:
    return {"gain": jnp.ones(d), "bias": jnp.zeros(d)}


def _standardised(
    name: str,
    eps: float,
    axes: tuple[Any, ...],
    grouped: Callable[[Array], Array],
    ungrouped: Callable[..., Array],
) -> Layer:
    """A layer that scales each group of entries to mean 0 and variance 1. axes: the last of x;
    grouped(x): the groups, (..., entries); ungrouped(grouped(x), x.shape) is x."""
    eps, d = numbers.positive(name, eps=eps), axes[-1]

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        check_input(name, params, {"gain": (d,), "bias": (d,)}, x, *axes)
        wide = grouped(x.astype(at_least_float32(x.dtype)))
        centred = wide - wide.mean(-1, keepdims=True)
        r = _inverse_deviation(centred, eps)
        n = ungrouped(centred * r, x.shape)
        return params["gain"] * n.astype(x.dtype) + params["bias"], (n, r)

    def backward(params: Params, residuals: Residuals, dy: Array, reduce: Reduce = total) -> Grads:
        n, r = residuals
        dparams = {"gain": reduce(Direct(n.astype(dy.dtype) * dy)), "bias": reduce(Direct(dy))}
        dn, n = grouped((params["gain"] * dy).astype(n.dtype)), grouped(n)
        dx = r * (dn - dn.mean(-1, keepdims=True) - n * (n * dn).mean(-1, keepdims=True))
        return dparams, ungrouped(dx, dy.shape).astype(dy.dtype)

    forward.__qualname__ = name.partition("(")[0]
    return Layer(partial(_init, d), forward, backward)


def _inverse_deviation(centred: Array, eps: float) -> Array:
    """1 / sqrt(mean of centred^2 + eps) over the last axis, without overflow."""
    small = 2.0 ** -(jnp.finfo(centred.dtype).maxexp // 2)
    variance, of_small = (jnp.square(a).mean(-1, keepdims=True) for a in (centred, centred * small))
    fits = variance < jnp.inf
    r = jax.lax.rsqrt(jnp.where(fits, variance, 1) + eps)
    return jnp.where(fits, r, jax.lax.rsqrt(jnp.where(fits, 1, of_small)) * small)
