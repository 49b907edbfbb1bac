"""Per-example gradients in factored form, and the ways to reduce them over a batch.

A layer's `backward` never sums its parameters' gradients itself. It states each as a factor,

    Outer(left, right)      example n has the gradient left_n right_n^T
    Direct(value)           example n has the gradient value_n
    Rows(index, value, size)  example n has the gradient value_n in row index_n, 0 elsewhere
    Masked(factor, mask)    the factor's gradients times a constant array, entry by entry
    Sum(a, b)               the sum of two factors' gradients, for a parameter used twice
    Zero(shape, batch)      no gradient, for a parameter that is frozen
    Widened(factor, dtype)  the factor's gradients, summed and returned in a wider dtype
    Whole(value, name)      a gradient that exists for the whole batch only

and returns what `reduce` makes of it. Backpropagation is one such reduction, `total`. Others
read the same factors and need no other derivative rule. Since a gradient is linear in dy, one
of left and right holds dy and the other does not depend on it.

    total          sum_n g_n            (*shape of the parameter)
    rows           g_n                  as a Direct (*examples, *shape of the parameter)
    squared_norm   ||g_n||^2            (*examples)
    norm           ||g_n||, where its square overflows too
    products       <g_n, g_k>           (*examples, *examples)
    squared        the factor of g_n * g_n, entry by entry
    weighted       the factor of weight_n g_n

Examples and positions. A factor's batch axes begin with the axes of the examples. Those that are
left are positions within one example, such as the pixels of an image or the tokens of a text,
over which its gradient is a sum: g_n = sum_p left_np right_np^T. `examples` is the number of
axes of the examples; None means that all batch axes are.

Each reduction is a `functools.singledispatch` over the factor's type, so that a new factor
registers what it can do. What it does not register goes through `rows`, which holds one gradient
per example; an `Outer` without positions needs that for none of them. Squares and products are
kept in at least float32. All raise TypeError for what is not a factor, and for a factor that
exists for the whole batch only.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from fnn.base import Array, at_least_float32, is_floating


class Factor:
    """Per-example gradients of one parameter. `batch` has the lengths of its batch axes: first
    the examples', then the positions'. `ndim` is the rank of the parameter.

    >>> isinstance(Direct(jnp.ones((3, 2))), Factor)
    True
    """

    batch: tuple[int, ...]
    ndim: int

    def total(self) -> Array:
        raise NotImplementedError

    def rows(self, examples: int | None = None) -> "Direct":
        raise NotImplementedError

    def squared_norm(self, examples: int | None = None) -> Array:
        return self.rows(examples).squared_norm()

    def norm(self, examples: int | None = None) -> Array:
        return jnp.sqrt(self.squared_norm(examples))

    def products(self, examples: int | None = None) -> Array:
        return self.rows(examples).products()

    def squared(self, examples: int | None = None) -> "Factor":
        return self.rows(examples).squared()

    def weighted(self, weight: Array) -> "Factor":
        return self.rows(weight.ndim).weighted(weight)


Reduce = Callable[[Factor], Any]
"""What `backward` hands each parameter's factor to."""


@partial(jax.tree_util.register_dataclass, data_fields=["left", "right"], meta_fields=[])
@dataclass(frozen=True)
class Outer(Factor):
    """Per-example gradients of a matrix (d_left, d_right), each a sum of outer products.

    left (..., d_left), right (..., d_right). For a dense layer's W: left = dy, right = x.

    >>> Outer(jnp.ones((5, 2)), jnp.ones((5, 3))).batch
    (5,)
    """

    left: Array
    right: Array
    ndim = 2

    @property
    def batch(self) -> tuple[int, ...]:  # type: ignore[override]
        """The leading axes, which left and right share."""
        if self.left.shape[:-1] != self.right.shape[:-1]:
            raise ValueError(
                f"Outer: expected left and right of one batch, "
                f"got {self.left.shape} and {self.right.shape}"
            )
        return self.left.shape[:-1]

    def total(self) -> Array:
        return _outer_total(self, None)

    def rows(self, examples: int | None = None) -> "Direct":
        left, right = (_with_positions(a, examples, 1) for a in (self.left, self.right))
        return Direct(jnp.einsum("...pi,...pj->...ij", left, right), 2)

    def squared_norm(self, examples: int | None = None) -> Array:
        if not _has_positions(self, examples):
            return _square(self.left).sum(-1) * _square(self.right).sum(-1)
        left, right = (_with_positions(a, examples, 1) for a in (self.left, self.right))
        if 2 * left.shape[-2] ** 2 > left.shape[-1] * right.shape[-1]:
            return squared_norm(rows(self, examples))
        between = lambda a: jnp.einsum("...pi,...qi->...pq", _widened(a), _widened(a))
        return (between(left) * between(right)).sum((-2, -1))

    def norm(self, examples: int | None = None) -> Array:
        if _has_positions(self, examples):
            return jnp.sqrt(squared_norm(self, examples))
        return length(self.left, (-1,)) * length(self.right, (-1,))

    def products(self, examples: int | None = None) -> Array:
        if _has_positions(self, examples):
            return products(rows(self, examples))
        return products(Direct(self.left)) * products(Direct(self.right))

    def squared(self, examples: int | None = None) -> Factor:
        if _has_positions(self, examples):
            return squared(rows(self, examples))
        return Outer(_square(self.left), _square(self.right))

    def weighted(self, weight: Array) -> Factor:
        return Outer(self.left * beside(weight, self.left), self.right)


@partial(jax.tree_util.register_dataclass, data_fields=["value"], meta_fields=["ndim"])
@dataclass(frozen=True)
class Direct(Factor):
    """Per-example gradients as they are: value (..., *shape of the parameter).

    ndim is the rank of the parameter: 1 for a bias, 0 for a scalar.

    >>> Direct(jnp.ones((5, 2))).batch
    (5,)
    """

    value: Array
    ndim: int = 1

    @property
    def batch(self) -> tuple[int, ...]:  # type: ignore[override]
        """The leading axes."""
        return self.value.shape[: self.value.ndim - self.ndim]

    def total(self) -> Array:
        return self.value.sum(tuple(range(self.value.ndim - self.ndim)))

    def rows(self, examples: int | None = None) -> "Direct":
        value = _with_positions(self.value, examples, self.ndim)
        return Direct(value.sum(-1 - self.ndim), self.ndim)

    def squared_norm(self, examples: int | None = None) -> Array:
        if _has_positions(self, examples):
            self = rows(self, examples)
        return _square(self.value).sum(_last(self.ndim))

    def norm(self, examples: int | None = None) -> Array:
        if _has_positions(self, examples):
            self = rows(self, examples)
        return length(self.value, _last(self.ndim))

    def products(self, examples: int | None = None) -> Array:
        if _has_positions(self, examples):
            self = rows(self, examples)
        wide = _widened(self.value)
        return jnp.tensordot(wide, wide, axes=(_last(self.ndim), _last(self.ndim)))

    def squared(self, examples: int | None = None) -> Factor:
        if _has_positions(self, examples):
            self = rows(self, examples)
        return Direct(_square(self.value), self.ndim)

    def weighted(self, weight: Array) -> Factor:
        return Direct(self.value * beside(weight, self.value), self.ndim)


@partial(jax.tree_util.register_dataclass, data_fields=["index", "value"], meta_fields=["size"])
@dataclass(frozen=True)
class Rows(Factor):
    """Per-example gradients of a matrix (size, d) that are 0 outside one row per position.

    index (...), integers from 0 to size - 1; value (..., d). For an embedding's table: the codes
    and dy. Rows of one example with the same index add up.

    >>> total(Rows(jnp.array([2, 0, 2]), jnp.ones((3, 1)), size=3))
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
        one = lambda index, value: total(Rows(index, value, self.size))
        return Direct(_for_each_example(one, self, examples), 2)

    def squared_norm(self, examples: int | None = None) -> Array:
        """sum_pq [index_np == index_nq] <value_np, value_nq>."""
        return squared_norm(Direct(_distinct(self, examples).value, 2))

    def products(self, examples: int | None = None) -> Array:
        """sum_pq [index_np == index_kq] <value_np, value_kq>, over the rows that the batch uses."""
        used = min(self.index.size, self.size)
        _, place = jnp.unique(self.index, return_inverse=True, size=used)
        place = place.reshape(self.index.shape)
        return products(rows(Rows(place, self.value, used), examples))

    def squared(self, examples: int | None = None) -> Factor:
        distinct = _distinct(self, examples)
        return Rows(distinct.index, _square(distinct.value), self.size)

    def weighted(self, weight: Array) -> Factor:
        return Rows(self.index, self.value * beside(weight, self.value), self.size)


class Changed(Factor):
    """What is done to a `factor` leaves its batch and its parameter's rank as they are.

    >>> Masked(Direct(jnp.ones((5, 2))), jnp.ones(2)).batch
    (5,)
    """

    factor: Factor

    @property
    def batch(self) -> tuple[int, ...]:  # type: ignore[override]
        """The factor's."""
        return self.factor.batch

    @property
    def ndim(self) -> int:  # type: ignore[override]
        """The factor's."""
        return self.factor.ndim


class SamePerExample(Changed):
    """Each example's gradient is that of `factor`; only the sum over the batch differs."""

    def rows(self, examples: int | None = None) -> "Direct":
        return rows(self.factor, examples)

    def squared_norm(self, examples: int | None = None) -> Array:
        return squared_norm(self.factor, examples)

    def norm(self, examples: int | None = None) -> Array:
        return norm(self.factor, examples)

    def products(self, examples: int | None = None) -> Array:
        return products(self.factor, examples)

    def squared(self, examples: int | None = None) -> Factor:
        return replace(self, factor=squared(self.factor, examples))  # type: ignore[type-var]

    def weighted(self, weight: Array) -> Factor:
        return replace(self, factor=weighted(self.factor, weight))  # type: ignore[type-var]


@partial(jax.tree_util.register_dataclass, data_fields=["factor", "mask"], meta_fields=[])
@dataclass(frozen=True)
class Masked(Changed):
    """The gradients of a factor, each multiplied by one array of the parameter's shape.

    >>> mask = jnp.array([[1.0, 0.0]])
    >>> total(Masked(Outer(jnp.ones((5, 1)), jnp.ones((5, 2))), mask))
    Array([[5., 0.]], dtype=float32)
    """

    factor: Factor
    mask: Array

    def total(self) -> Array:
        return total(self.factor) * self.mask

    def rows(self, examples: int | None = None) -> "Direct":
        inner = rows(self.factor, examples)
        return Direct(inner.value * self.mask, inner.ndim)

    def squared_norm(self, examples: int | None = None) -> Array:
        """||(l r^T) * M||^2 = sum_ij l_i^2 M_ij^2 r_j^2."""
        inner = self.factor.factor if isinstance(self.factor, Widened) else self.factor
        if not isinstance(inner, Outer) or _has_positions(inner, examples):
            return squared_norm(rows(self, examples))
        return ((_square(inner.left) @ _square(self.mask)) * _square(inner.right)).sum(-1)

    def squared(self, examples: int | None = None) -> Factor:
        return Masked(squared(self.factor, examples), _square(self.mask))

    def weighted(self, weight: Array) -> Factor:
        return Masked(weighted(self.factor, weight), self.mask)


@partial(jax.tree_util.register_dataclass, data_fields=["a", "b"], meta_fields=[])
@dataclass(frozen=True)
class Sum(Factor):
    """The sum of two factors of one parameter, for a parameter that is used twice.

    >>> squared_norm(Sum(Direct(jnp.array([[3.0]])), Direct(jnp.array([[1.0]]))))
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
        return total(self.a) + total(self.b)

    def rows(self, examples: int | None = None) -> "Direct":
        a, b = rows(self.a, examples), rows(self.b, examples)
        return Direct(a.value + b.value, a.ndim)

    def squared_norm(self, examples: int | None = None) -> Array:
        count = len(self.batch) if examples is None else examples
        return squared_norm(_joined(self, count), count)

    def weighted(self, weight: Array) -> Factor:
        return Sum(weighted(self.a, weight), weighted(self.b, weight))


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["shape", "batch", "dtype"])
@dataclass(frozen=True)
class Zero(Factor):
    """Gradients that are 0 throughout, for a parameter of `shape`.

    >>> total(Zero.like(Direct(jnp.ones((5, 2)))))
    Array([0., 0.], dtype=float32)
    """

    shape: tuple[int, ...]
    batch: tuple[int, ...]
    dtype: Any

    @classmethod
    def like(cls, factor: Factor) -> "Zero":
        """Zeros in place of the factor's gradients.

        >>> Zero.like(Outer(jnp.ones((5, 2)), jnp.ones((5, 3)))).shape
        (2, 3)
        """
        parameter = jax.eval_shape(total, factor)
        return cls(parameter.shape, factor.batch, parameter.dtype)

    @property
    def ndim(self) -> int:  # type: ignore[override]
        """The rank of the parameter."""
        return len(self.shape)

    def total(self) -> Array:
        return jnp.zeros(self.shape, self.dtype)

    def rows(self, examples: int | None = None) -> "Direct":
        batch = self.batch[:examples]
        return Direct(jnp.zeros((*batch, *self.shape), self.dtype), self.ndim)

    def squared_norm(self, examples: int | None = None) -> Array:
        return jnp.zeros(self.batch[:examples], at_least_float32(self.dtype))

    def weighted(self, weight: Array) -> Factor:
        return self


@partial(jax.tree_util.register_dataclass, data_fields=["factor"], meta_fields=["dtype"])
@dataclass(frozen=True)
class Widened(SamePerExample):
    """The gradients of a factor that was computed in a narrow dtype: products run in that dtype,
    sums over the batch and the result are in `dtype`.

    >>> narrow = Direct(jnp.ones((1000, 1), jnp.bfloat16))
    >>> total(Widened(narrow, jnp.dtype("float32")))
    Array([1000.], dtype=float32)
    """

    factor: Factor
    dtype: Any

    def total(self) -> Array:
        inner = self.factor
        if isinstance(inner, Outer):
            return _outer_total(inner, self.dtype)
        widened = lambda a: a.astype(self.dtype) if is_floating(a) else a
        return total(jax.tree.map(widened, inner))

    def rows(self, examples: int | None = None) -> "Direct":
        inner = rows(self.factor, examples)
        return Direct(inner.value.astype(self.dtype), inner.ndim)


@partial(jax.tree_util.register_dataclass, data_fields=["value"], meta_fields=["name"])
@dataclass(frozen=True)
class Whole(Factor):
    """A gradient that is already summed, for there is none per example: in training, batch
    normalisation mixes the examples. Every reduction but `total` refuses it by its layer's name.

    >>> squared_norm(Whole(jnp.ones(2), "batch_norm(2)"))
    Traceback (most recent call last):
    TypeError: batch_norm(2): its gradient exists for the whole batch only, not per example
    """

    value: Array
    name: str

    @property
    def batch(self) -> tuple[int, ...]:  # type: ignore[override]
        """None: raises TypeError."""
        return rows(self).batch

    @property
    def ndim(self) -> int:  # type: ignore[override]
        """The parameter's."""
        return self.value.ndim

    def total(self) -> Array:
        return self.value

    def rows(self, examples: int | None = None) -> "Direct":
        raise TypeError(
            f"{self.name}: its gradient exists for the whole batch only, not per example"
        )


def total(factor: Factor) -> Array:
    """Sum over the batch: sum_n left_n right_n^T, or sum_n value_n. Shape of the parameter.

    With dZ = left and A = right this is the dW = dZ^T A of backpropagation: one matrix
    product that contracts all batch axes.

    >>> total(Outer(jnp.ones((5, 2)), jnp.ones((5, 1))))
    Array([[5.],
           [5.]], dtype=float32)
    """
    return _known(factor).total()


def rows(factor: Factor, examples: int | None = None) -> Direct:
    """One gradient per example, as a Direct without positions: the general form to fall back on.

    >>> rows(Outer(jnp.ones((2, 1)), jnp.array([[1.0, 2.0], [3.0, 4.0]]))).value.shape
    (2, 1, 2)
    """
    return _known(factor).rows(examples)


def squared_norm(factor: Factor, examples: int | None = None) -> Array:
    """||g_n||^2 for each example: ||left_n||^2 ||right_n||^2, or ||value_n||^2. Goodfellow 2015.

    With positions p, q of an Outer it is sum_pq <left_np, left_nq> <right_np, right_nq>, or the
    square of the gradient itself where that is smaller. Rochette et al. 2019.

    >>> squared_norm(Outer(jnp.array([[3.0, 4.0]]), jnp.array([[2.0]])))
    Array([100.], dtype=float32)
    """
    return _known(factor).squared_norm(examples)


def norm(factor: Factor, examples: int | None = None) -> Array:
    """||g_n|| for each example: ||left_n|| ||right_n||, or ||value_n||, each by `length`. Of other
    factors, and of positions of an Outer, it is the square root of `squared_norm`.

    >>> norm(Outer(jnp.array([[3.0, 4.0]]), jnp.array([[1e30]])))
    Array([5.e+30], dtype=float32)
    """
    return _known(factor).norm(examples)


def length(a: Array, axes: tuple[int, ...]) -> Array:
    """The Euclidean norm over these axes, in at least float32. Numbers whose squares would overflow
    or vanish are multiplied by a power of two first. The derivative at 0 is 0.

    >>> length(jnp.array([[3e30, 4e30], [0.0, 0.0]]), (-1,))
    Array([5.e+30, 0.e+00], dtype=float32)
    """
    a = _widened(a)
    if not axes:
        return jnp.abs(a)
    exponents = jnp.finfo(a.dtype).maxexp
    largest = jnp.abs(a).max(axes, keepdims=True, initial=0)
    limit, power = 2.0 ** (15 * exponents // 32), 2.0 ** (3 * exponents // 4)
    large, small = largest > limit, largest < 1 / limit
    factor = jnp.where(large, 1 / power, jnp.where(small, power, 1.0)).astype(a.dtype)
    undo = jnp.where(large, power, jnp.where(small, 1 / power, 1.0)).astype(a.dtype)
    squares = _square(a * factor).sum(axes)
    root = jnp.sqrt(jnp.where(squares > 0, squares, 1))
    return jnp.where(squares > 0, root * undo.reshape(root.shape), squares)


def products(factor: Factor, examples: int | None = None) -> Array:
    """<g_n, g_k> for each two examples: <left_n, left_k> <right_n, right_k>, or
    <value_n, value_k>; the axes of the examples once for n, then once for k.

    >>> products(Direct(jnp.array([[1.0], [2.0]])))
    Array([[1., 2.],
           [2., 4.]], dtype=float32)
    """
    return _known(factor).products(examples)


def squared(factor: Factor, examples: int | None = None) -> Factor:
    """The factor of the squared entries: without positions, the square of left_n right_n^T,
    entry by entry, is the outer product of the squares.

    >>> total(squared(Outer(jnp.array([[3.0], [1.0]]), jnp.array([[2.0], [1.0]]))))
    Array([[37.]], dtype=float32)
    """
    return _known(factor).squared(examples)


def weighted(factor: Factor, weight: Array) -> Factor:
    """The factor of weight_n g_n, for weight (*examples): one number per example.

    >>> total(weighted(Direct(jnp.array([[1.0], [2.0]])), jnp.array([1.0, 0.5])))
    Array([2.], dtype=float32)
    """
    return _known(factor).weighted(weight)


def _outer_total(factor: Outer, dtype: Any) -> Array:
    """Its total, in dtype. On a mesh with explicit axes its dimensions are split as left's and
    right's are, and the sum over the batch is over all devices."""
    batch = tuple(range(factor.left.ndim - 1))
    split = [jax.typeof(a).sharding for a in (factor.left, factor.right)]
    over = None
    if split[0].mesh.explicit_axes:
        over = NamedSharding(split[0].mesh, PartitionSpec(*(s.spec[-1] for s in split)))
    return jnp.tensordot(
        factor.left,
        factor.right,
        (batch, batch),
        preferred_element_type=dtype,
        out_sharding=over,
    )


def _joined(factor: Factor, examples: int) -> Factor:
    """A sum of Outers as one Outer, their positions side by side; other sums as rows."""
    if not isinstance(factor, Sum):
        return factor
    a, b = (_joined(side, examples) for side in (factor.a, factor.b))
    if not (isinstance(a, Outer) and isinstance(b, Outer)):
        return rows(factor, examples)
    left, right = (
        jnp.concatenate([_with_positions(side, examples, 1) for side in sides], -2)
        for sides in ((a.left, b.left), (a.right, b.right))
    )
    return Outer(left, right)


def _distinct(factor: Rows, examples: int | None) -> Rows:
    """The same gradients, each example's indices distinct. Places left over have values of 0."""

    def one(index: Array, value: Array) -> tuple[Array, Array]:
        distinct, place = jnp.unique(index, return_inverse=True, size=index.size)
        return distinct, jax.ops.segment_sum(_widened(value), place, index.size)

    index, value = _for_each_example(one, factor, examples)
    return Rows(index, value, factor.size)


def _for_each_example(f: Callable[..., Any], factor: Rows, examples: int | None) -> Any:
    """f(index (p,), value (p, d)) for each example, p being all of its positions."""
    index = _with_positions(factor.index, examples, 0)
    for _ in index.shape[:-1]:
        f = jax.vmap(f)
    return f(index, _with_positions(factor.value, examples, 1))


def _has_positions(factor: Factor, examples: int | None) -> bool:
    return examples is not None and len(factor.batch) > examples


def _with_positions(a: Array, examples: int | None, ndim: int) -> Array:
    """(*examples, *positions, *shape) -> (*examples, p, *shape): one axis of positions, of
    length 1 where there are none."""
    batch, shape = a.shape[: a.ndim - ndim], a.shape[a.ndim - ndim :]
    count = len(batch) if examples is None else examples
    return a.reshape(*batch[:count], math.prod(batch[count:]), *shape)


def beside(weight: Array, a: Array) -> Array:
    """The weight (*examples) of each example in the dtype of a (*examples, ...), with as many axes.

    >>> beside(jnp.ones(5), jnp.ones((5, 2, 3))).shape
    (5, 1, 1)
    """
    return weight.reshape(weight.shape + (1,) * (a.ndim - weight.ndim)).astype(a.dtype)


def _widened(x: Array) -> Array:
    return x.astype(at_least_float32(x.dtype))


def _square(x: Array) -> Array:
    wide = _widened(x)
    return wide * wide


def _last(ndim: int) -> tuple[int, ...]:
    return tuple(range(-ndim, 0))


def _known(factor: Any) -> Factor:
    if not isinstance(factor, Factor):
        raise TypeError(
            f"reduce: expected a factor such as Outer or Direct, got {type(factor).__name__}"
        )
    return factor
