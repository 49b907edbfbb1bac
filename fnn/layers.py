"""Layers with parameters. Each states its per-example gradients and lets `reduce` sum them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fnn import initializers
from fnn.base import Array, Layer, Params, Residuals, at_least_float32
from fnn.reductions import Direct, Outer, total


def dense(
    d_in: int,
    d_out: int,
    *,
    weight_init: Callable[..., Array] = initializers.glorot_uniform,
    bias_init: Callable[..., Array] = initializers.zeros,
) -> Layer:
    """A layer of d_out neurons: z_j = sum_i W_ji x_i + b_j, for a batch Z = X W^T + b.

    params {"W": (d_out, d_in), "b": (d_out,)}; x (..., d_in) -> (..., d_out).

        forward    Z  = X W^T + b
        backward   dX = dZ W,    dW = dZ^T X,    db = sum over the batch of dZ

    weight_init and bias_init are called as init(key, shape).

    Raises ValueError for widths below 1 and for x or params of other widths; TypeError
    where x and W differ in dtype.

    >>> layer = dense(3, 2)
    >>> y, residuals = layer.forward(layer.init(jax.random.key(0)), jnp.ones((5, 3)))
    >>> y.shape
    (5, 2)
    """
    name = f"dense({d_in}, {d_out})"
    _check_widths(name, d_in, d_out)

    def init(key: Array) -> Params:
        weight_key, bias_key = jax.random.split(key)
        return {"W": weight_init(weight_key, (d_out, d_in)), "b": bias_init(bias_key, (d_out,))}

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        _check_input(name, params, {"W": (d_out, d_in), "b": (d_out,)}, x, d_in)
        return jnp.tensordot(x, params["W"], axes=(-1, -1)) + params["b"], x

    def backward(params, x, dy, reduce=total):
        dparams = {"W": reduce(Outer(dy, x)), "b": reduce(Direct(dy))}
        return dparams, jnp.tensordot(dy, params["W"], axes=(-1, 0))

    return Layer(init, forward, backward)


def layer_norm(d: int, *, eps: float = 1e-5) -> Layer:
    """Each example scaled to mean 0, variance 1, then y = gain * n + bias. Ba et al. 2016.

    params {"gain": (d,), "bias": (d,)}; x (..., d) -> (..., d). With r = 1/sqrt(var + eps):

        forward    n = (x - mean x) r,    y = gain * n + bias
        backward   dn = gain * dy,    dx = r (dn - mean dn - n mean(n dn)),
                   dgain = sum over the batch of n * dy,    dbias = sum of dy

    var is the biased variance; statistics are taken in at least float32.

    Raises ValueError for d below 1, eps not above 0, and x or params of another width;
    TypeError where x and the params differ in dtype.
    """
    name = f"layer_norm({d})"
    _check_widths(name, d)
    if not eps > 0:
        raise ValueError(f"{name}: expected eps > 0, got {eps}")

    def init(key: Array) -> Params:
        return {"gain": jnp.ones(d), "bias": jnp.zeros(d)}

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        _check_input(name, params, {"gain": (d,), "bias": (d,)}, x, d)
        wide = x.astype(at_least_float32(x.dtype))
        centred = wide - wide.mean(-1, keepdims=True)
        r = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + eps)
        n = centred * r
        return params["gain"] * n.astype(x.dtype) + params["bias"], (n, r)

    def backward(params, residuals, dy, reduce=total):
        n, r = residuals
        dparams = {
            "gain": reduce(Direct(n.astype(dy.dtype) * dy)),
            "bias": reduce(Direct(dy)),
        }
        dn = (params["gain"] * dy).astype(n.dtype)
        dx = r * (dn - dn.mean(-1, keepdims=True) - n * (n * dn).mean(-1, keepdims=True))
        return dparams, dx.astype(dy.dtype)

    return Layer(init, forward, backward)


def _check_widths(name: str, *widths: int) -> None:
    if any(isinstance(d, bool) or not hasattr(d, "__index__") or d < 1 for d in widths):
        raise ValueError(f"{name}: expected widths that are whole numbers of at least 1")


def _check_input(
    name: str, params: Params, shapes: dict[str, tuple[int, ...]], x: Array, d_in: int
) -> None:
    """Refuse x or params that the layer `name`, with parameters of `shapes`, can't take."""
    got = {k: jnp.shape(v) for k, v in params.items()} if isinstance(params, dict) else params
    if got != shapes:
        raise ValueError(f"{name}: expected params of shapes {shapes}, got {got}")
    if jnp.ndim(x) == 0 or x.shape[-1] != d_in:
        raise ValueError(f"{name}: expected x of shape (..., {d_in}), got {jnp.shape(x)}")
    for leaf, value in params.items():
        if value.dtype != x.dtype:
            raise TypeError(f"{name}: x is {x.dtype}, but params[{leaf!r}] is {value.dtype}")
