"""Checks of the widths, inputs and params of layers."""

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from fnn import base
from fnn.base import Array, Params


def check_widths(name: str, *widths: int) -> Any:
    """The width, or a tuple of several, as Python ints, whose products don't overflow.

    Raises ValueError, naming the layer, for widths that are not whole numbers of at least 1.

    >>> check_widths("dense(0, 2)", 0, 2)
    Traceback (most recent call last):
    ValueError: dense(0, 2): expected widths that are whole numbers of at least 1
    """
    try:
        found = tuple(map(operator.index, widths))
    except TypeError:  # also for traced values
        found = (0,)
    if min(found) < 1 or any(np.asarray(d).dtype.kind == "b" for d in widths):
        raise ValueError(f"{name}: expected widths that are whole numbers of at least 1")
    return found[0] if len(found) == 1 else found


def named_widths(layer: str, *widths: int) -> Any:
    """The layer's name with its widths, for messages, and the widths from `check_widths`.

    >>> named_widths("dense", 3, 2)
    ('dense(3, 2)', 3, 2)
    """
    name = f"{layer}({', '.join(map(str, widths))})"
    return name, *(int(d) for d in np.atleast_1d(check_widths(name, *widths)))


def check_params(name: str, params: Params, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError, naming the layer, for params with different shapes.

    >>> check_params("embedding(3, 1)", (), {"table": (3, 1)})
    Traceback (most recent call last):
    ValueError: embedding(3, 1): expected params of shapes {'table': (3, 1)}, got ()
    """
    got = {k: np.shape(v) for k, v in params.items()} if isinstance(params, dict) else params
    if got != shapes:
        raise ValueError(f"{name}: expected params of shapes {shapes}, got {got}")


def check_array(name: str, x: Array, *last: int | str) -> None:
    """Raise TypeError, naming the layer, if x is not an array; ValueError if the shape of its last
    axes is not `last`, in which a word matches any length.

    >>> check_array("conv2d(3, 8)", np.ones((8, 8, 1)), "height", "width", 3)
    Traceback (most recent call last):
    ValueError: conv2d(3, 8): expected x of shape (..., height, width, 3), got (8, 8, 1)
    """
    base.check_array(name, x)
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(f"{name}: expected x to be an array, got {type(x).__name__}")
    got = x.shape[max(0, x.ndim - len(last)) :]
    same = len(got) == len(last) and all(
        isinstance(length, str) or length == d for length, d in zip(last, got, strict=True)
    )
    if not same:
        expected = ", ".join(map(str, ("...", *last)))
        raise ValueError(f"{name}: expected x of shape ({expected}), got {x.shape}")


def check_input(
    name: str, params: Params, shapes: Mapping[str, tuple[int, ...]], x: Array, *last: int | str
) -> None:
    """Raise for x or params that do not fit the layer `name`, with parameters of `shapes`.

    Raises as `check_params` and `check_array` do, and TypeError if x and params differ in dtype.

    >>> check_input("dense(3, 1)", {"b": np.ones(1)}, {"b": (1,)}, np.ones((5, 2)), 3)
    Traceback (most recent call last):
    ValueError: dense(3, 1): expected x of shape (..., 3), got (5, 2)
    """
    check_array(name, x)
    check_params(name, params, shapes)
    check_array(name, x, *last)
    for leaf, value in params.items():
        if value.dtype != x.dtype:
            raise TypeError(f"{name}: x is {x.dtype}, but params[{leaf!r}] is {value.dtype}")
