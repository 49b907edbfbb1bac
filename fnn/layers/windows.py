"""Windows that slide over images (..., height, width, channels), for convolution and pooling.

A window of (height, width) moves by a stride of (height, width), from the top left corner to the
last place where it fits: rows = (height - window) // stride + 1 places, likewise columns.
"""

from collections.abc import Sequence
from functools import reduce as fold

import jax
import jax.numpy as jnp

from fnn.base import Array
from fnn.layers.shapes import check_widths

Pair = tuple[int, int]
"""(height, width)."""


def windows(x: Array, window: Pair, stride: Pair) -> list[Array]:
    """For each entry of the window, in row-major order, the values of x at all window places.

    x (..., height, width, c); one array (..., rows, columns, c) for each entry.

    >>> [a.ravel().tolist() for a in windows(jnp.arange(5.0).reshape(1, 5, 1), (1, 2), (1, 2))]
    [[0.0, 2.0], [1.0, 3.0]]
    """

    def seen(entry: Pair) -> Array:
        a = x
        for axis, first, k, s in zip((-3, -2), entry, window, stride, strict=True):
            last = first + x.shape[axis] - k
            a = jax.lax.slice_in_dim(a, first, last + 1, s, axis)
        return a

    return [seen(entry) for entry in _entries(window)]


def spread(parts: Sequence[Array], size: tuple[int, ...], window: Pair, stride: Pair) -> Array:
    """The transpose of `windows`: adds each part to the places of x that its entry reads.

    parts: one (..., rows, columns, c) for each entry of the window; size: (height, width) of the
    result (..., height, width, c).

    >>> parts = [jnp.ones((1, 2, 1)), jnp.full((1, 2, 1), 2.0)]
    >>> spread(parts, (1, 5), (1, 2), (1, 2)).ravel().tolist()
    [1.0, 2.0, 1.0, 2.0, 0.0]
    """
    if window == stride:  # windows don't overlap: one transposition, without sums
        *batch, rows, columns, c = parts[0].shape
        x = jnp.stack(parts, -2).reshape(*batch, rows, columns, *window, c)
        x = jnp.swapaxes(x, -4, -3).reshape(*batch, rows * window[0], columns * window[1], c)
        rest = [(0, length - got) for length, got in zip(size, x.shape[-3:-1], strict=True)]
        return jnp.pad(x, [*[(0, 0)] * len(batch), *rest, (0, 0)])

    def placed(part: Array, entry: Pair) -> Array:
        none = [(0, 0, 0)] * (part.ndim - 3)
        axes = [
            (first, length - first - (count - 1) * s - 1, s - 1)
            for first, length, count, s in zip(entry, size, part.shape[-3:-1], stride, strict=True)
        ]
        return jax.lax.pad(part, jnp.zeros((), part.dtype), [*none, *axes, (0, 0, 0)])

    return fold(jnp.add, map(placed, parts, _entries(window)))


def _entries(window: Pair) -> list[Pair]:
    """In row-major order."""
    return [(i, j) for i in range(window[0]) for j in range(window[1])]


def check_geometry(name: str, window: Pair, stride: Pair) -> tuple[Pair, Pair]:
    """Window and stride as pairs of Python ints.

    Raises ValueError, naming the layer, for a window or a stride that is not a pair of whole
    numbers of at least 1.

    >>> check_geometry("max_pool(2)", 2, (2, 2))
    Traceback (most recent call last):
    ValueError: max_pool(2): expected window and stride as pairs (height, width), got 2 and (2, 2)
    """
    if not all(isinstance(p, tuple | list) and len(p) == 2 for p in (window, stride)):
        got = f"got {window} and {stride}"
        raise ValueError(f"{name}: expected window and stride as pairs (height, width), {got}")
    height, width, down, right = check_widths(name, *window, *stride)
    return (height, width), (down, right)


def check_fits(name: str, size: tuple[int, ...], window: Pair) -> None:
    """Raise ValueError, naming the layer, for images of `size` smaller than the window.

    >>> check_fits("max_pool((2, 2))", (1, 8), (2, 2))
    Traceback (most recent call last):
    ValueError: max_pool((2, 2)): expected images of at least the window (2, 2), got (1, 8)
    """
    if size[0] < window[0] or size[1] < window[1]:
        raise ValueError(f"{name}: expected images of at least the window {window}, got {size}")
