"""Learned position embeddings."""

from collections.abc import Callable

import jax.numpy as jnp

from fnn import initializers
from fnn.base import Array, Grads, Layer, Params, Residuals
from fnn.layers.shapes import check_input, named_widths
from fnn.reductions import Direct, Reduce, total

_small_normal = initializers.normal(0.02)


def positions(n: int, d: int, *, weight_init: Callable[..., Array] = _small_normal) -> Layer:
    """Learned position embeddings for up to n tokens: y_p = x_p + table_p. Gehring et al. 2017.

    params {"table": (n, d)}; x (..., tokens, d), tokens up to n -> the same shape.

        forward    y_p = x_p + table_p
        backward   dx = dy,    dtable_p = sum over the batch of dy_p, 0 after the last token

    Each text is an example, as in `attention`. weight_init is called as init(key, (n, d)).

    Raises ValueError for n or d below 1, for x with more than n tokens or a different width, and
    for params with other shapes; TypeError if x and the table differ in dtype.

    >>> layer = positions(3, 1)
    >>> layer.forward({"table": jnp.array([[1.0], [2.0], [3.0]])}, jnp.zeros((2, 1)))[0]
    Array([[1.],
           [2.]], dtype=float32)
    """
    name, n, d = named_widths("positions", n, d)
    init = lambda key: {"table": weight_init(key, (n, d))}

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        check_input(name, params, {"table": (n, d)}, x, "tokens", d)
        if x.shape[-2] > n:
            raise ValueError(f"{name}: expected at most {n} tokens, got x of shape {x.shape}")
        return x + params["table"][: x.shape[-2]], ()

    def backward(params: Params, _: Residuals, dy: Array, reduce: Reduce = total) -> Grads:
        rest = [(0, 0)] * (dy.ndim - 2) + [(0, n - dy.shape[-2]), (0, 0)]
        return {"table": reduce(Direct(jnp.pad(dy, rest), 2))}, dy

    return Layer(init, forward, backward)
