"""Derivatives in NumPy, without JAX and without compiling: numbers with tangents.

A `Dual` holds a value (*shape) and its derivatives along T directions (T, *shape). What is
computed of duals has its Jacobian beside it. For second derivatives the values may be complex:
the imaginary part of f(x + i h v), divided by h, is the derivative of f along v.
Squire & Trapp 1998.

Inside `rounded_to(dtype)` every result is rounded to that dtype, to see how far rounding carries.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from scipy import special

Array = np.ndarray
_PRECISION: list[str] = ["float64"]


@contextmanager
def rounded_to(dtype: str) -> Iterator[None]:
    """Every result inside has this dtype's precision."""
    _PRECISION.append(dtype)
    try:
        yield
    finally:
        _PRECISION.pop()


def rounded(a: Array, dtype: str) -> Array:
    """The entries of a, float64 still, rounded to as many bits as dtype has. Dekker 1971."""
    if dtype == "float64":
        return a
    if a.dtype.kind == "c":
        return rounded(a.real, dtype) + 1j * STEP * rounded(a.imag / STEP, dtype)
    far = a * (2.0 ** (53 - BITS[dtype]) + 1)
    return far - (far - a)


BITS = {"float32": 24, "bfloat16": 8}
STEP = 1e-60
"""How far along a direction the imaginary parts go."""


class Dual:
    """A value and its tangents, whose first axis is that of the directions."""

    __array_priority__ = 1

    def __init__(self, v: Array, t: Array) -> None:
        self.v, self.t = rounded(v, _PRECISION[-1]), rounded(t, _PRECISION[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        return self.v.shape

    def _raised(self, ndim: int) -> Array:
        """The tangents, with axes of length 1 between the directions and fewer than ndim axes."""
        return self.t.reshape(len(self.t), *(1,) * (ndim - self.v.ndim), *self.v.shape)

    def __add__(self, other: Any) -> "Dual":
        other = constant(other)
        ndim = max(self.v.ndim, other.v.ndim)
        return Dual(self.v + other.v, self._raised(ndim) + other._raised(ndim))

    def __mul__(self, other: Any) -> "Dual":
        other = constant(other)
        ndim = max(self.v.ndim, other.v.ndim)
        v = self.v * other.v
        return Dual(v, self._raised(ndim) * other.v + self.v * other._raised(ndim))

    def __matmul__(self, other: "Dual") -> "Dual":
        ndim = max(self.v.ndim, other.v.ndim)
        t = self._raised(ndim) @ other.v + self.v @ other._raised(ndim)
        return Dual(self.v @ other.v, t)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> "Dual":
        return Dual(-self.v, -self.t)

    def __sub__(self, other: Any) -> "Dual":
        return self + -constant(other)

    def __rsub__(self, other: Any) -> "Dual":
        return constant(other) + -self

    def __truediv__(self, other: Any) -> "Dual":
        return self * reciprocal(constant(other))

    def __rtruediv__(self, other: Any) -> "Dual":
        return constant(other) * reciprocal(self)

    def __getitem__(self, index: Any) -> "Dual":
        index = index if isinstance(index, tuple) else (index,)
        return Dual(self.v[index], self.t[(slice(None), *index)])

    def each(self, f: Callable[[Array], Array]) -> "Dual":
        """f, which is linear and leaves leading axes alone, of the value and of each tangent."""
        return Dual(f(self.v), f(self.t))

    def sum(self, axes: tuple[int, ...] = (-1,)) -> "Dual":
        return self.each(lambda a: a.sum(axes, keepdims=True))

    def mean(self, axes: tuple[int, ...] = (-1,)) -> "Dual":
        return self.each(lambda a: a.mean(axes, keepdims=True))

    def reshape(self, *shape: int) -> "Dual":
        shape = self.v.reshape(shape).shape
        return Dual(self.v.reshape(shape), self.t.reshape(len(self.t), *shape))

    def swap(self, i: int = -1, j: int = -2) -> "Dual":
        """Two axes, counted from the last, swapped."""
        return self.each(lambda a: a.swapaxes(i, j))


def constant(a: Any) -> Dual:
    """A number or an array, without tangents."""
    if isinstance(a, Dual):
        return a
    return Dual(np.asarray(a), np.zeros((1, *np.shape(a))))


def stopped(a: Dual) -> Dual:
    """The value, a constant to first and second derivatives."""
    return constant(a.v.real)


def concatenated(parts: Sequence[Dual], axis: int = -1) -> Dual:
    """Side by side along an axis, counted from the last."""
    directions = max(len(part.t) for part in parts)
    full = [np.broadcast_to(part.t, (directions, *part.shape)) for part in parts]
    return Dual(np.concatenate([part.v for part in parts], axis), np.concatenate(full, axis))


def chosen(condition: Array, a: Dual, b: Dual) -> Dual:
    """a where the condition holds, else b; of one shape."""
    return Dual(np.where(condition, a.v, b.v), np.where(condition, a.t, b.t))


def function(f: Callable[[Array], Array], df: Callable[[Array, Array], Array]) -> Any:
    """The function of duals with value y = f(x) and derivative df(x, y), entry by entry."""

    def of(a: Dual) -> Dual:
        y = f(a.v)
        return Dual(y, a.t * df(a.v, y))

    return of


reciprocal = function(lambda x: 1 / x, lambda x, y: -y * y)
exp = function(np.exp, lambda x, y: y)
log = function(np.log, lambda x, y: 1 / x)
sqrt = function(np.sqrt, lambda x, y: 1 / (2 * y))
sin = function(np.sin, lambda x, y: np.cos(x))
tanh = function(np.tanh, lambda x, y: 1 - y * y)
erf = function(special.erf, lambda x, y: 2 / np.sqrt(np.pi) * np.exp(-x * x))


def power(a: Dual, exponent: float) -> Dual:
    """a^exponent."""
    return function(lambda x: x**exponent, lambda x, y: exponent * x ** (exponent - 1))(a)


def above(a: Dual) -> Array:
    """Where a is above 0."""
    return a.v.real > 0


def sigmoid(a: Dual) -> Dual:
    """1 / (1 + e^-x)."""
    return 1 / (1 + exp(-a))


def softplus(a: Dual) -> Dual:
    """log(1 + e^x), without overflow."""
    positive = chosen(above(a), a, 0 * a)
    return positive + log(1 + exp(a - 2 * positive))


def softmax(a: Dual) -> Dual:
    """Over the last axis."""
    e = exp(a - stopped(a).v.max(-1, keepdims=True))
    return e / e.sum()


def log_softmax(a: Dual) -> Dual:
    """Over the last axis."""
    shifted = a - stopped(a).v.max(-1, keepdims=True)
    return shifted - log(exp(shifted).sum())


def leaves(tree: Any) -> list[Any]:
    """The leaves of a tree in JAX's order."""
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]
    if isinstance(tree, tuple | list):
        return [leaf for part in tree for leaf in leaves(part)]
    return [] if tree is None else [tree]


def rebuilt(tree: Any, new: Iterator[Any]) -> Any:
    """The tree with new leaves."""
    if isinstance(tree, dict):
        made = {key: rebuilt(tree[key], new) for key in sorted(tree)}
        return {key: made[key] for key in tree}
    if isinstance(tree, tuple | list):
        return tuple(rebuilt(part, new) for part in tree)
    return None if tree is None else next(new)


def mapped(f: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """f of each leaf, and of those of others like it."""
    return rebuilt(tree, (f(*each) for each in zip(*map(leaves, (tree, *others)), strict=True)))


def variables(tree: Any, direction: Any = None) -> Any:
    """The tree's arrays as duals, one direction for each entry of all of them together; where a
    direction like the tree is given, moved along it by the imaginary `STEP`."""
    arrays = [np.asarray(leaf, np.float64) for leaf in leaves(tree)]
    total, place, made = sum(a.size for a in arrays), 0, []
    moves = leaves(direction) if direction is not None else [None] * len(arrays)
    for a, move in zip(arrays, moves, strict=True):
        t = np.zeros((total, a.size))
        t[np.arange(place, place + a.size), np.arange(a.size)] = 1
        place += a.size
        v = a if move is None else a + 1j * STEP * np.asarray(move, np.float64)
        made.append(Dual(v, t.reshape(total, *a.shape)))
    return rebuilt(tree, iter(made))
