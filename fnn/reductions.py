"""Per-example gradients in factored form: the classes of factors and their reductions.

A layer's `backward` does not sum its parameters' gradients. It describes each by a factor,

    Outer(left, right)        example n has the gradient left_n right_n^T
    Direct(value)             example n has the gradient value_n
    Rows(index, value, size)  example n has the gradient value_n in row index_n, 0 elsewhere
    Masked(factor, mask)      the factor's gradients times a constant array, entry by entry
    Sum(a, b)                 the sum of two factors' gradients, for a parameter used twice
    Zero(shape, batch)        gradients of 0, for a frozen parameter
    Widened(factor, dtype)    the factor's gradients, summed and returned in a wider dtype
    Whole(value, name)        a gradient that exists for the whole batch only

and returns `reduce(factor)`. A factor's methods are its reductions; `Factor` documents them. One
of them, `total`, is backpropagation. The others use the same factors and need no further
derivative rule. A gradient is linear in dy, so one of left and right is linear in dy and the
other does not depend on it.

A new factor is a subclass of `Factor` that defines `total` and `rows`, and any other reduction
that it can compute without forming one gradient per example. A new reduction is a function of a
factor, which can call `rows` where there is no cheaper way.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from fnn.base import Array, at_least_float32, is_floating, pytree


class Factor:
    """Per-example gradients g_n of one parameter, and their reductions.

    `batch` is the shape of the batch axes: first example axes, then position axes. Positions are
    places within one example, such as the pixels of an image or the tokens of a text, over which
    its gradient is a sum: g_n = sum_p g_np. `ndim` is the number of axes of the parameter.

    In every method `examples` is the number of example axes; None means all batch axes. Squares,
    products and rows are computed in at least float32.

    >>> import fnn
    >>> class Scaled(Factor):  # example n has the gradient weight_n * direction
    ...     ndim = 1
    ...     def __init__(self, weight, direction):
    ...         self.weight, self.direction, self.batch = weight, direction, weight.shape
    ...     def total(self):
    ...         return self.weight.sum() * self.direction
    ...     def rows(self, examples=None):
    ...         return fnn.Direct(self.weight[:, None] * self.direction)
    >>> Scaled(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])).squared_norm()
    Array([ 25., 100.], dtype=float32)
    """

    batch: tuple[int, ...]
    ndim: int

    def total(self) -> Array:
        """sum_n g_n, with the shape of the parameter."""
        raise NotImplementedError

    def rows(self, examples: int | None = None) -> "Direct":
        """g_n, one gradient per example, as a Direct without positions: value
        (*examples, *shape of the parameter). By default the other reductions use it."""
        raise NotImplementedError

    def squared_norm(self, examples: int | None = None) -> Array:
        """||g_n||^2, (*examples). Goodfellow 2015; with positions Rochette et al. 2019."""
        return self.rows(examples).squared_norm()

    def norm(self, examples: int | None = None) -> Array:
        """||g_n||, (*examples)."""
        return jnp.sqrt(self.squared_norm(examples))

    def products(self, examples: int | None = None, other: "Factor | None" = None) -> Array:
        """<g_n, h_k> for each example n of this factor and k of `other`, by default this factor:
        (*examples, *examples of other)."""
        return self.rows(examples).products(None, other and other.rows(examples))

    def squared(self, examples: int | None = None) -> "Factor":
        """The factor of g_n * g_n, entry by entry."""
        return self.rows(examples).squared()

    def weighted(self, weight: Array) -> "Factor":
        """The factor of weight_n g_n, for weight (*examples): one number per example."""
        dtype = jax.eval_shape(self.total).dtype
        return self.rows(weight.ndim)._in(dtype).weighted(weight)


Reduce = Callable[[Factor], Any]
"""What `backward` calls on each parameter's factor."""


@pytree()
class Outer(Factor):
    """Per-example gradients of a matrix (d_left, d_right), each a sum of outer products.

    left (..., d_left), right (..., d_right). For a dense layer's W: left = dy, right = x.

    >>> factor = Outer(jnp.array([[3.0, 4.0]]), jnp.array([[2.0]]))
    >>> factor.squared_norm()
    Array([100.], dtype=float32)
    """

    left: Array
    right: Array
    ndim = 2

    @property
    def batch(self) -> tuple[int, ...]:  # type: ignore[override]
        """The leading axes, which left and right share."""
        if self.left.shape[:-1] != self.right.shape[:-1]:
            got = f"got {self.left.shape} and {self.right.shape}"
            raise ValueError(f"Outer: expected left and right with the same batch axes, {got}")
        return self.left.shape[:-1]

    def total(self) -> Array:
        """left^T right: one matrix product that contracts all batch axes."""
        return _outer_total(self, None)

    def rows(self, examples: int | None = None) -> "Direct":
        left, right = (_with_positions(a, examples, 1) for a in (self.left, self.right))
        wide = at_least_float32(left.dtype)
        product = jnp.einsum("...pi,...pj->...ij", left, right, preferred_element_type=wide)
        return Direct(product, 2)

    def squared_norm(self, examples: int | None = None) -> Array:
        """||left_n||^2 ||right_n||^2; with positions sum_pq <left_np, left_nq>
        <right_np, right_nq>, or the square of the gradient itself where that is cheaper."""
        if not _has_positions(self, examples):
            return _square(self.left).sum(-1) * _square(self.right).sum(-1)
        left, right = (_with_positions(a, examples, 1) for a in (self.left, self.right))
        if 2 * left.shape[-2] ** 2 > left.shape[-1] * right.shape[-1]:
            return self.rows(examples).squared_norm()
        between = lambda a: jnp.einsum("...pi,...qi->...pq", _widened(a), _widened(a))
        return (between(left) * between(right)).sum((-2, -1))

    def norm(self, examples: int | None = None) -> Array:
        """||left_n|| ||right_n||, without overflow of the squares."""
        if _has_positions(self, examples):
            return super().norm(examples)
        return safe_norm(self.left, (-1,)) * safe_norm(self.right, (-1,))

    def products(self, examples: int | None = None, other: Factor | None = None) -> Array:
        """<left_n, left_k> <right_n, right_k>."""
        other = self if other is None else other
        if isinstance(other, Direct) and len(other.batch) == 1:
            left, right = (_with_positions(a, examples, 1) for a in (self.left, self.right))
            each = (_widened(a) for a in (left, other.value, right))
            return jnp.einsum("...pi,kij,...pj->...k", *each)
        if not isinstance(other, Outer) or any(_has_positions(f, examples) for f in (self, other)):
            return super().products(examples, other)
        left = Direct(self.left).products(None, Direct(other.left))
        return left * Direct(self.right).products(None, Direct(other.right))

    def squared(self, examples: int | None = None) -> Factor:
        """The outer product of the squares."""
        if _has_positions(self, examples):
            return super().squared(examples)
        return Outer(_square(self.left), _square(self.right))

    def weighted(self, weight: Array) -> Factor:
        return Outer(self.left * expand_like(weight, self.left), self.right)


@pytree("ndim")
class Direct(Factor):
    """Per-example gradients themselves: value (..., *shape of the parameter).

    ndim is the number of axes of the parameter: 1 for a bias, 0 for a scalar.

    >>> Direct(jnp.array([[1.0], [2.0]])).products()
    Array([[1., 2.],
           [2., 4.]], dtype=float32)
    """

    value: Array
    ndim: int = 1

    @property
    def batch(self) -> tuple[int, ...]:  # type: ignore[override]
        """The leading axes."""
        return self.value.shape[: self.value.ndim - self.ndim]

    def _in(self, dtype: Any) -> "Direct":
        """The same gradients in this dtype."""
        return Direct(self.value.astype(dtype), self.ndim)

    def total(self) -> Array:
        return self.value.sum(tuple(range(self.value.ndim - self.ndim)))

    def rows(self, examples: int | None = None) -> "Direct":
        value = _widened(_with_positions(self.value, examples, self.ndim))
        return Direct(value.sum(-1 - self.ndim), self.ndim)

    def squared_norm(self, examples: int | None = None) -> Array:
        return _square(self._each(examples)).sum(_last(self.ndim))

    def norm(self, examples: int | None = None) -> Array:
        return safe_norm(self._each(examples), _last(self.ndim))

    def products(self, examples: int | None = None, other: Factor | None = None) -> Array:
        wide, axes = _widened(self._each(examples)), _last(self.ndim)
        others = wide if other is None else other.rows(examples).value
        return jnp.tensordot(wide, others, axes=(axes, axes))

    def squared(self, examples: int | None = None) -> Factor:
        return Direct(_square(self._each(examples)), self.ndim)

    def weighted(self, weight: Array) -> Factor:
        return Direct(self.value * expand_like(weight, self.value), self.ndim)

    def _each(self, examples: int | None) -> Array:
        """One gradient per example."""
        return self.rows(examples).value if _has_positions(self, examples) else self.value


@pytree("size")
class Rows(Factor):
    """Per-example gradients of a matrix (size, d) that are 0 outside one row per position.

    index (...), integers from 0 to size - 1; value (..., d). For an embedding's table: the codes
    and dy. An example's values with the same index are added.

    >>> Rows(jnp.array([2, 0, 2]), jnp.ones((3, 1)), size=3).total()
    Array([[1.],
           [0.],
           [2.]], dtype=float32)
    """

    index: Array
    value: Array
    size: int
    ndim = 2

    @property
    def batch(self) -> tuple[int, ...]:  # type: ignore[override]
        """The axes of the index."""
        return self.index.shape

    def total(self) -> Array:
        index, value = self.index.ravel(), self.value.reshape(-1, self.value.shape[-1])
        sums = jax.ops.segment_sum(_widened(value), index, self.size)
        return sums.astype(value.dtype)

    def rows(self, examples: int | None = None) -> "Direct":
        one = lambda index, value: Rows(index, _widened(value), self.size).total()
        return Direct(_for_each_example(one, self, examples), 2)

    def squared_norm(self, examples: int | None = None) -> Array:
        """sum_pq [index_np == index_nq] <value_np, value_nq>."""
        return Direct(_distinct(self, examples).value, 2).squared_norm()

    def products(self, examples: int | None = None, other: Factor | None = None) -> Array:
        """sum_pq [index_np == index_kq] <value_np, value_kq>, over the rows that the batch uses."""
        if other is not None:
            return super().products(examples, other)
        used = min(self.index.size, self.size)
        _, place = jnp.unique(self.index, return_inverse=True, size=used)
        place = place.reshape(self.index.shape)
        return Rows(place, self.value, used).rows(examples).products()

    def squared(self, examples: int | None = None) -> Factor:
        distinct = _distinct(self, examples)
        return Rows(distinct.index, _square(distinct.value), self.size)

    def weighted(self, weight: Array) -> Factor:
        return Rows(self.index, self.value * expand_like(weight, self.value), self.size)


class _Around(Factor):
    """A factor made of another."""

    factor: Factor

    @property
    def batch(self) -> tuple[int, ...]:  # type: ignore[override]
        """The factor's."""
        return self.factor.batch

    @property
    def ndim(self) -> int:  # type: ignore[override]
        """The factor's."""
        return self.factor.ndim


class Wrapped(_Around):
    """Base class of a factor with the per-example gradients of `factor` and a different `total`."""

    def rows(self, examples: int | None = None) -> "Direct":
        return self.factor.rows(examples)

    def squared_norm(self, examples: int | None = None) -> Array:
        return self.factor.squared_norm(examples)

    def norm(self, examples: int | None = None) -> Array:
        return self.factor.norm(examples)

    def products(self, examples: int | None = None, other: Factor | None = None) -> Array:
        other = other.factor if isinstance(other, Wrapped) else other
        return self.factor.products(examples, other)

    def squared(self, examples: int | None = None) -> Factor:
        return replace(self, factor=self.factor.squared(examples))  # type: ignore[type-var]

    def weighted(self, weight: Array) -> Factor:
        return replace(self, factor=self.factor.weighted(weight))  # type: ignore[type-var]


@pytree()
class Masked(_Around):
    """The gradients of a factor, each multiplied by one array of the parameter's shape.

    >>> mask = jnp.array([[1.0, 0.0]])
    >>> Masked(Outer(jnp.ones((5, 1)), jnp.ones((5, 2))), mask).total()
    Array([[5., 0.]], dtype=float32)
    """

    factor: Factor
    mask: Array

    def total(self) -> Array:
        return self.factor.total() * self.mask

    def rows(self, examples: int | None = None) -> "Direct":
        value = self.factor.rows(examples).value
        return Direct(value * self.mask.astype(value.dtype), self.ndim)

    def squared_norm(self, examples: int | None = None) -> Array:
        """||(l r^T) * M||^2 = sum_ij l_i^2 M_ij^2 r_j^2."""
        inner = self.factor.factor if isinstance(self.factor, Widened) else self.factor
        if not isinstance(inner, Outer) or _has_positions(inner, examples):
            return super().squared_norm(examples)
        return ((_square(inner.left) @ _square(self.mask)) * _square(inner.right)).sum(-1)

    def squared(self, examples: int | None = None) -> Factor:
        return Masked(self.factor.squared(examples), _square(self.mask))

    def weighted(self, weight: Array) -> Factor:
        return Masked(self.factor.weighted(weight), self.mask)


@pytree()
class Sum(Factor):
    """The sum of two factors of one parameter, for a parameter that is used twice.

    >>> Sum(Direct(jnp.array([[3.0]])), Direct(jnp.array([[1.0]]))).squared_norm()
    Array([16.], dtype=float32)
    """

    a: Factor
    b: Factor

    @property
    def batch(self) -> tuple[int, ...]:  # type: ignore[override]
        """The axes that both have."""
        pairs = zip(self.a.batch, self.b.batch, strict=False)
        return tuple(m for m, n in pairs if m == n)

    @property
    def ndim(self) -> int:  # type: ignore[override]
        """That of both."""
        return self.a.ndim

    def total(self) -> Array:
        return self.a.total() + self.b.total()

    def rows(self, examples: int | None = None) -> "Direct":
        return Direct(self.a.rows(examples).value + self.b.rows(examples).value, self.ndim)

    def squared_norm(self, examples: int | None = None) -> Array:
        """||a_n||^2 + 2 <a_n, b_n> + ||b_n||^2, as the squared norm of one Outer if both are."""
        count = len(self.batch) if examples is None else examples
        joined = _joined(self, count)
        return (self.rows(count) if joined is None else joined).squared_norm(count)

    def weighted(self, weight: Array) -> Factor:
        return Sum(self.a.weighted(weight), self.b.weighted(weight))


@pytree("shape", "batch", "dtype")
class Zero(Factor):
    """Gradients that are 0 throughout, for a parameter of `shape`."""

    shape: tuple[int, ...]
    batch: tuple[int, ...]
    dtype: Any

    @classmethod
    def like(cls, factor: Factor) -> Factor:
        """Zeros in place of the factor's gradients."""
        parameter = jax.eval_shape(factor.total)
        is_whole = lambda part: isinstance(part, Whole)
        for part in filter(is_whole, jax.tree.leaves(factor, is_leaf=is_whole)):
            return Whole(jnp.zeros(parameter.shape, parameter.dtype), part.name)
        return cls(parameter.shape, factor.batch, parameter.dtype)

    @property
    def ndim(self) -> int:  # type: ignore[override]
        """The number of axes of the parameter."""
        return len(self.shape)

    def total(self) -> Array:
        return jnp.zeros(self.shape, self.dtype)

    def rows(self, examples: int | None = None) -> "Direct":
        wide = at_least_float32(self.dtype)
        return Direct(jnp.zeros((*self.batch[:examples], *self.shape), wide), self.ndim)

    def squared_norm(self, examples: int | None = None) -> Array:
        return jnp.zeros(self.batch[:examples], at_least_float32(self.dtype))

    def weighted(self, weight: Array) -> Factor:
        return self


@pytree("dtype")
class Widened(Wrapped):
    """The gradients of a factor that was computed in a narrow dtype: products run in that dtype,
    sums over the batch and the result are in `dtype`."""

    factor: Factor
    dtype: Any

    def total(self) -> Array:
        wide = at_least_float32(self.dtype)
        if isinstance(self.factor, Outer):
            return _outer_total(self.factor, wide).astype(self.dtype)
        return _in_dtype(self.factor, wide).total().astype(self.dtype)

    def rows(self, examples: int | None = None) -> "Direct":
        return self.factor.rows(examples)._in(at_least_float32(self.dtype))

    def products(self, examples: int | None = None, other: Factor | None = None) -> Array:
        if other is None or isinstance(other, Wrapped):
            return super().products(examples, other)
        return self.wide().products(examples, other)

    def squared(self, examples: int | None = None) -> Factor:
        return Widened(self.factor.squared(examples), at_least_float32(self.dtype))

    def weighted(self, weight: Array) -> Factor:
        """The weights are applied in `dtype`: a narrower dtype would round them, perhaps to 0."""
        return Widened(self.wide().weighted(weight), self.dtype)

    def wide(self) -> Factor:
        """The factor itself, in `dtype`."""
        return _in_dtype(self.factor, self.dtype)


@pytree("name")
class Whole(Factor):
    """A gradient that exists only as the sum over the batch, because the layer mixes the examples,
    as batch normalisation does in training. Every reduction except `total` raises TypeError with
    `name`, the layer's.

    >>> Whole(jnp.ones(2), "batch_norm(2)").squared_norm()
    Traceback (most recent call last):
    TypeError: batch_norm(2): its gradient exists for the whole batch only, not per example
    """

    value: Array
    name: str

    @property
    def batch(self) -> tuple[int, ...]:  # type: ignore[override]
        """None: raises TypeError."""
        return self.rows().batch

    @property
    def ndim(self) -> int:  # type: ignore[override]
        """The parameter's."""
        return self.value.ndim

    def total(self) -> Array:
        return self.value

    def rows(self, examples: int | None = None) -> "Direct":
        reason = "its gradient exists for the whole batch only, not per example"
        raise TypeError(f"{self.name}: {reason}")


def total(factor: Factor) -> Array:
    """Sum over the batch: sum_n left_n right_n^T, or sum_n value_n. Shape of the parameter.

    With dZ = left and A = right this is the dW = dZ^T A of backpropagation. Raises TypeError if
    factor is not a `Factor`.

    >>> total(Outer(jnp.ones((5, 2)), jnp.ones((5, 1))))
    Array([[5.],
           [5.]], dtype=float32)
    """
    if not isinstance(factor, Factor):
        raise TypeError(
            f"reduce: expected a factor such as Outer or Direct, got {type(factor).__name__}"
        )
    return factor.total()


def safe_norm(a: Array, axes: tuple[int, ...]) -> Array:
    """The Euclidean norm over these axes, in at least float32. Numbers whose squares would overflow
    or underflow are divided by a power of two first. The derivative at 0 is 0."""
    a = _widened(a)
    if not axes:
        return jnp.abs(a)
    exponents = jnp.finfo(a.dtype).maxexp
    largest = jnp.abs(a).max(axes, keepdims=True, initial=0)
    limit, power = 2.0 ** (15 * exponents // 32), 2.0 ** (3 * exponents // 4)
    large, small = largest > limit, largest < 1 / limit
    # Not a product: XLA turns (a s)^2 of a constant a into a^2 s^2, which is 0 times infinity.
    unit = jnp.where(large, power, jnp.where(small, 1 / power, 1.0)).astype(a.dtype)
    squares = _square(a / unit).sum(axes)
    root = jnp.sqrt(jnp.where(squares > 0, squares, 1))
    return jnp.where(squares > 0, root * unit.reshape(root.shape), squares)


def _outer_total(factor: Outer, dtype: Any) -> Array:
    """The factor's total, in dtype. On a mesh with explicit axes, its rows are split as left's
    features and its columns as right's, and the sum over the batch is over all devices."""
    batch = tuple(range(factor.left.ndim - 1))
    split = [jax.typeof(a).sharding for a in (factor.left, factor.right)]
    over = None
    if split[0].mesh.explicit_axes:
        over = NamedSharding(split[0].mesh, PartitionSpec(*(s.spec[-1] for s in split)))
    return jnp.tensordot(
        factor.left, factor.right, (batch, batch), preferred_element_type=dtype, out_sharding=over
    )


def _in_dtype(factor: Factor, dtype: Any) -> Factor:
    """The factor with its floating-point arrays in dtype; a `Widened` inside is unwrapped."""

    def one(part: Any) -> Any:
        if isinstance(part, Zero):
            return replace(part, dtype=dtype)
        if isinstance(part, Widened):
            return _in_dtype(part.factor, dtype)
        return part.astype(dtype) if is_floating(part) else part

    return jax.tree.map(one, factor, is_leaf=lambda part: isinstance(part, Widened | Zero))


def _joined(factor: Factor, examples: int) -> Outer | None:
    """A sum of Outers as one Outer with their positions concatenated; None for other factors."""
    if isinstance(factor, Outer):
        return factor
    if not isinstance(factor, Sum):
        return None
    a, b = (_joined(side, examples) for side in (factor.a, factor.b))
    if a is None or b is None:
        return None
    left, right = (
        jnp.concatenate([_with_positions(side, examples, 1) for side in sides], -2)
        for sides in ((a.left, b.left), (a.right, b.right))
    )
    return Outer(left, right)


def _distinct(factor: Rows, examples: int | None) -> Rows:
    """The same gradients with distinct indices per example; unused positions have values of 0."""

    def one(index: Array, value: Array) -> tuple[Array, Array]:
        distinct, place = jnp.unique(index, return_inverse=True, size=index.size)
        return distinct, jax.ops.segment_sum(_widened(value), place, index.size)

    index, value = _for_each_example(one, factor, examples)
    return Rows(index, value, factor.size)


def _for_each_example(f: Callable[..., Any], factor: Rows, examples: int | None) -> Any:
    """f(index (p,), value (p, d)) for each example, with p its number of positions."""
    index = _with_positions(factor.index, examples, 0)
    for _ in index.shape[:-1]:
        f = jax.vmap(f)
    return f(index, _with_positions(factor.value, examples, 1))


def _has_positions(factor: Factor, examples: int | None) -> bool:
    return examples is not None and len(factor.batch) > examples


def _with_positions(a: Array, examples: int | None, ndim: int) -> Array:
    """(*examples, *positions, *shape) -> (*examples, p, *shape): one position axis, of length 1
    if there are no positions."""
    batch, shape = a.shape[: a.ndim - ndim], a.shape[a.ndim - ndim :]
    count = len(batch) if examples is None else examples
    return a.reshape(*batch[:count], math.prod(batch[count:]), *shape)


def for_each_copy(f: Callable[..., Any], copies: Sequence[int], out: int = 0) -> Any:
    """f mapped over the axes of the copies in a `repeat`, of these lengths: leading axes of every
    array of its arguments. The results have these axes at `out`."""
    for n in reversed(copies):
        f = jax.vmap(f, axis_size=n, out_axes=out)
    return f


def expand_like(weight: Array, a: Array) -> Array:
    """The weight (*examples) in the dtype of a (*examples, ...), with axes of length 1 added at the
    end, so that it broadcasts against a."""
    return weight.reshape(weight.shape + (1,) * (a.ndim - weight.ndim)).astype(a.dtype)


def _widened(x: Array) -> Array:
    return x.astype(at_least_float32(x.dtype))


def _square(x: Array) -> Array:
    wide = _widened(x)
    return wide * wide


def _last(ndim: int) -> tuple[int, ...]:
    return tuple(range(-ndim, 0))
