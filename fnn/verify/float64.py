"""Computing in float64, whatever JAX's configuration is, and leaving the configuration alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.verify.trees import differentiable

ROUNDOFF = 2.0**-53
"""The unit roundoff of float64."""


def unit_roundoff(dtype: Any) -> float:
    """The largest relative error of rounding a number to a floating-point dtype.

    >>> unit_roundoff(jnp.float64) == ROUNDOFF, unit_roundoff(jnp.float32) == 2.0**-24
    (True, True)
    """
    return float(jnp.finfo(dtype).eps) / 2


def widened(tree: Any) -> Any:
    """The tree with its floating-point arrays in float64; everything else as it is.

    >>> with in_float64():
    ...     str(widened(jnp.ones(2)).dtype), str(widened(jnp.ones(2, jnp.int32)).dtype)
    ('float64', 'int32')
    """
    return jax.tree.map(lambda a: a.astype(jnp.float64) if differentiable(a) else a, tree)


@contextmanager
def at_highest_precision() -> Iterator[None]:
    """Matrix products in the full precision of their dtype.

    >>> with at_highest_precision():
    ...     jax.config.jax_default_matmul_precision
    'highest'
    """
    with jax.default_matmul_precision("highest"):
        yield


@contextmanager
def in_float64() -> Iterator[None]:
    """x64 on, matrix products at the highest precision, and no warnings from NumPy.

    Dtypes are promoted by JAX's standard rules: next to float64, a constant that the user's
    function holds in float32 is no mistake.

    >>> with in_float64():
    ...     str((jnp.float32(1) + jnp.ones(())).dtype)
    'float64'
    """
    promoting = jax.numpy_dtype_promotion("standard")
    with jax.enable_x64(True), promoting, at_highest_precision(), np.errstate(all="ignore"):
        yield
