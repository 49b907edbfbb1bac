"""Checks of numeric arguments.

A number is a scalar of Python, NumPy or JAX, with any precision. A traced one is not checked, since
it has no value yet. All functions raise TypeError for anything else, including True and False, and
ValueError for a number that is out of range or NaN; the message names the caller and the argument.

Each returns the number, or a tuple of several, as Python numbers: a NumPy scalar would round
results in its narrow dtype (1 - rate), overflow (16 * 16 in int8), or widen other arrays. Traced
numbers are returned unchanged.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def positive(name: str, **values: Any) -> Any:
    """Finite numbers above 0.

    >>> positive("adam", eps=np.float32(-1))
    Traceback (most recent call last):
    ValueError: adam: expected eps above 0, got -1.0
    """
    return _checked(name, values, lambda v: 0 < v < math.inf, "{} above 0")


def bound(name: str, **values: Any) -> Any:
    """Numbers above 0, including infinity, which means no bound."""
    return _checked(name, values, lambda v: v > 0, "{} above 0")


def nonnegative(name: str, **values: Any) -> Any:
    """Finite numbers of at least 0."""
    return _checked(name, values, lambda v: 0 <= v < math.inf, "{} of at least 0")


def fraction(name: str, **values: Any) -> Any:
    """Numbers in [0, 1)."""
    return _checked(name, values, lambda v: 0 <= v < 1, "{} in [0, 1)")


def finite(name: str, **values: Any) -> Any:
    """Finite numbers."""
    return _checked(name, values, math.isfinite, "a finite {}")


def count(name: str, least: int = 1, **values: Any) -> Any:
    """Whole numbers of at least `least`, which can't be traced."""
    found = []
    for key, value in values.items():
        try:
            whole = operator.index(value)
        except TypeError:  # also for traced values
            whole = None
        if whole is None or np.asarray(value).dtype.kind == "b":
            raise TypeError(f"{name}: expected {key} to be a whole number, got {value!r}")
        if whole < least:
            raise ValueError(f"{name}: expected {key} of at least {least}, got {value}")
        found.append(whole)
    return found[0] if len(found) == 1 else tuple(found)


def _checked(
    name: str, values: dict[str, Any], fits: Callable[[float], bool], expected: str
) -> Any:
    """The values as Python numbers."""
    found: list[Any] = []
    for key, value in values.items():
        a = value if isinstance(value, jax.core.Tracer) else np.asarray(value)
        real = jnp.issubdtype(a.dtype, jnp.floating) or jnp.issubdtype(a.dtype, jnp.integer)
        if a.shape != () or not real:
            raise TypeError(f"{name}: expected {key} to be a number, got {value!r}")
        found.append(a if isinstance(a, jax.core.Tracer) else float(a))
        if not isinstance(a, jax.core.Tracer) and not fits(found[-1]):
            raise ValueError(f"{name}: expected {expected.format(key)}, got {value}")
    return found[0] if len(found) == 1 else tuple(found)
