"""What a constructor checks of its numbers.

A number is Python's, NumPy's or JAX's, of any precision, without axes. A traced one has no value
yet, so that it passes. All raise TypeError for what is no number, True and False included, and
ValueError for one that is out of range or NaN; the message names the caller and the argument.
"""

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def positive(name: str, **values: Any) -> None:
    """Check for finite numbers above 0.

    >>> positive("adam", eps=np.float32(-1))
    Traceback (most recent call last):
    ValueError: adam: expected eps above 0, got -1.0
    """
    for key, value in values.items():
        if not 0 < _number(name, key, value, 1) < math.inf:
            raise ValueError(f"{name}: expected {key} above 0, got {value}")


def bound(name: str, **values: Any) -> None:
    """Check for numbers above 0, infinity included: no bound.

    >>> bound("huber", delta=float("nan"))
    Traceback (most recent call last):
    ValueError: huber: expected delta above 0, got nan
    """
    for key, value in values.items():
        if not _number(name, key, value, 1) > 0:
            raise ValueError(f"{name}: expected {key} above 0, got {value}")


def nonnegative(name: str, **values: Any) -> None:
    """Check for finite numbers of at least 0.

    >>> nonnegative("add_l2", alpha=-1)
    Traceback (most recent call last):
    ValueError: add_l2: expected alpha of at least 0, got -1
    """
    for key, value in values.items():
        if not 0 <= _number(name, key, value, 1) < math.inf:
            raise ValueError(f"{name}: expected {key} of at least 0, got {value}")


def fraction(name: str, **values: Any) -> None:
    """Check for numbers in [0, 1).

    >>> fraction("momentum", decay=1.0)
    Traceback (most recent call last):
    ValueError: momentum: expected decay in [0, 1), got 1.0
    """
    for key, value in values.items():
        if not 0 <= _number(name, key, value, 0) < 1:
            raise ValueError(f"{name}: expected {key} in [0, 1), got {value}")


def count(name: str, **values: Any) -> None:
    """Check for whole numbers of at least 1, which can't be traced.

    >>> count("repeat", n=0)
    Traceback (most recent call last):
    ValueError: repeat: expected n of at least 1, got 0
    """
    for key, value in values.items():
        try:
            whole = operator.index(value)
        except TypeError:  # what is traced has no index either
            whole = None
        if whole is None or np.asarray(value).dtype.kind == "b":
            raise TypeError(f"{name}: expected {key} to be a whole number, got {value!r}")
        if whole < 1:
            raise ValueError(f"{name}: expected {key} of at least 1, got {value}")


def finite(name: str, **values: Any) -> None:
    """Check for finite numbers.

    >>> finite("leaky_relu", slope=math.inf)
    Traceback (most recent call last):
    ValueError: leaky_relu: expected a finite slope, got inf
    """
    for key, value in values.items():
        if not math.isfinite(_number(name, key, value, 0)):
            raise ValueError(f"{name}: expected a finite {key}, got {value}")


def _number(name: str, key: str, value: Any, traced: float) -> float:
    """The value as a float; `traced` for one that is traced."""
    a = value if isinstance(value, jax.core.Tracer) else np.asarray(value)
    real = jnp.issubdtype(a.dtype, jnp.floating) or jnp.issubdtype(a.dtype, jnp.integer)
    if a.shape != () or not real:
        raise TypeError(f"{name}: expected {key} to be a number, got {value!r}")
    return traced if isinstance(a, jax.core.Tracer) else float(a)
