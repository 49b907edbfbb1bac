"""The embedding layer: a row of a table for each code."""

from collections.abc import Callable

import jax.numpy as jnp

from fnn import initializers
from fnn.base import Array, Grads, Layer, Params, Residuals
from fnn.layers.shapes import check_array, check_params, named_widths
from fnn.reductions import Reduce, Rows, total

_standard_normal = initializers.normal(1.0)


def embedding(n: int, d: int, *, weight_init: Callable[..., Array] = _standard_normal) -> Layer:
    """A learned row of d numbers for each of n codes: y = table[x].

    params {"table": (n, d)}; x (...), integers from 0 to n - 1 -> (..., d).

        forward    y = table[x]
        backward   dtable_j = sum of dy over the batch where x = j

    It equals a dense layer without bias on one-hot rows, without forming these. Codes have no
    gradient: dx is None, an empty pytree, which `serial` and `fork` pass on. A code outside 0 to
    n - 1 gives a row of NaN, and a gradient of NaN in the nearest row of the table.

    weight_init is called as init(key, shape).

    Raises ValueError for n or d below 1 and for params with a different shape; TypeError for codes
    that are not integers.

    >>> layer = embedding(3, 2)
    >>> layer.forward({"table": jnp.array([[0.0, 1], [2, 3], [4, 5]])}, jnp.array([2, 0]))[0]
    Array([[4., 5.],
           [0., 1.]], dtype=float32)
    """
    name, n, d = named_widths("embedding", n, d)
    init = lambda key: {"table": weight_init(key, (n, d))}

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        check_params(name, params, {"table": (n, d)})
        check_array(name, x)
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"{name}: expected integer codes, got {x.dtype}")
        nearest, known = _in_table(x)
        return jnp.where(known, params["table"][nearest], jnp.nan), x

    def backward(params: Params, x: Array, dy: Array, reduce: Reduce = total) -> Grads:
        nearest, known = _in_table(x)
        return {"table": reduce(Rows(nearest, jnp.where(known, dy, jnp.nan), n))}, None

    def _in_table(x: Array) -> tuple[Array, Array]:
        """x clipped to 0, ..., n - 1 (...), and whether that is x (..., 1)."""
        x = x.astype(jnp.int32) if x.dtype.itemsize < 4 else x  # n - 1 may overflow in 8 bits
        nearest = jnp.clip(x, 0, n - 1)
        return nearest, (x == nearest)[..., None]

    return Layer(init, forward, backward)
