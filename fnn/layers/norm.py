"""Normalisation layers."""

import jax
import jax.numpy as jnp

from fnn.base import Array, Grads, Layer, Params, Residuals, at_least_float32
from fnn.layers.shapes import check_input, check_widths
from fnn.reductions import Direct, Reduce, total


def layer_norm(d: int, *, eps: float = 1e-5) -> Layer:
    """Each example scaled to mean 0, variance 1, then y = gain * n + bias. Ba et al. 2016.

    params {"gain": (d,), "bias": (d,)}; x (..., d) -> (..., d). With r = 1/sqrt(var + eps):

        forward    n = (x - mean x) r,    y = gain * n + bias
        backward   dn = gain * dy,    dx = r (dn - mean dn - n mean(n dn)),
                   dgain = sum over the batch of n * dy,    dbias = sum of dy

    var is the biased variance; statistics are taken in at least float32.

    Raises ValueError for d below 1, eps not above 0, and x or params of another width;
    TypeError where x and the params differ in dtype.

    >>> layer = layer_norm(2)
    >>> y, _ = layer.forward(layer.init(jax.random.key(0)), jnp.array([[1.0, 3.0]]))
    >>> y.round(3)
    Array([[-1.,  1.]], dtype=float32)
    """
    name = f"layer_norm({d})"
    check_widths(name, d)
    if not eps > 0:
        raise ValueError(f"{name}: expected eps > 0, got {eps}")

    def init(key: Array) -> Params:
        return {"gain": jnp.ones(d), "bias": jnp.zeros(d)}

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        check_input(name, params, {"gain": (d,), "bias": (d,)}, x, d)
        wide = x.astype(at_least_float32(x.dtype))
        centred = wide - wide.mean(-1, keepdims=True)
        r = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + eps)
        n = centred * r
        return params["gain"] * n.astype(x.dtype) + params["bias"], (n, r)

    def backward(params: Params, residuals: Residuals, dy: Array, reduce: Reduce = total) -> Grads:
        n, r = residuals
        dparams = {
            "gain": reduce(Direct(n.astype(dy.dtype) * dy)),
            "bias": reduce(Direct(dy)),
        }
        dn = (params["gain"] * dy).astype(n.dtype)
        dx = r * (dn - dn.mean(-1, keepdims=True) - n * (n * dn).mean(-1, keepdims=True))
        return dparams, dx.astype(dy.dtype)

    return Layer(init, forward, backward)
