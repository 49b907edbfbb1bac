"""Dropout: in training, random entries are set to 0."""

import jax
import jax.numpy as jnp

from fnn import numbers
from fnn.activations import identity
from fnn.base import Array, Layer, Varying, check_array
from fnn.reductions import total


def dropout(rate: float) -> Layer:
    """Each entry of x is 0 with probability `rate`, else x / (1 - rate). Srivastava et al. 2014.

    x (...) -> (...), without parameters. `fnn.at(layer, key)` drops entries; without a key the
    layer is the identity, which is the mean of y.

        forward    y  = mask * x / (1 - rate)
        backward   dx = mask * dy / (1 - rate)

    The mask is drawn from 32 random bits per entry, so it does not depend on the dtype. Backward
    draws it again, so it is not kept.

    Raises ValueError for a rate outside [0, 1).

    >>> import fnn
    >>> layer = fnn.at(dropout(0.5), jax.random.key(0))
    >>> layer.forward((), jnp.ones(6))[0]
    Array([2., 2., 0., 0., 2., 0.], dtype=float32)
    """
    rate = numbers.fraction("dropout", rate=rate)

    def at(key: Array | None, statistics: object) -> Layer:
        if key is None:
            return identity

        def masked(x: Array) -> Array:
            check_array("dropout", x)
            kept = jax.random.bits(key, x.shape, jnp.uint32) >= jnp.uint32(rate * 2.0**32)
            return jnp.where(kept, x / jnp.asarray(1 - rate, x.dtype), 0)

        return identity._replace(
            forward=lambda params, x: (masked(x), ()),
            backward=lambda params, residuals, dy, reduce=total: ((), masked(dy)),
        )

    measure = lambda params, x, key: (at(key, None).forward(params, x)[0], ())
    return identity._replace(varying=Varying(at, measure))
