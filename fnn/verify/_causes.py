"""Likely causes of a wrong leaf, in words: patterns in how it differs from the reference.

Each hypothesis is a row of a table: what the leaf would be if it held, which numbers would relate
the two, or where it would be wrong and nowhere else. The first that holds is named.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fnn.verify._call import unit_roundoff
from fnn.verify._leaf import FLOOR, TOLERANCE, Leaf, joined, plainly

UNKNOWN = "cause unknown"
NARROW = ("float32", "float16", "bfloat16")


class Wrong(NamedTuple):
    """A wrong leaf and its reference; theta, the parameter; the lengths, above 1, of the axes that
    a wrong factor may come from; the arrays of integers that may choose its rows; and the dtypes
    that may have rounded it: where it is right in float64, or known to compute in less."""

    got: np.ndarray
    expected: np.ndarray
    theta: np.ndarray
    lengths: Sequence[int] = ()
    integers: Sequence[Any] = ()
    narrow: Sequence[str] = ()

    @property
    def entries(self) -> np.ndarray:
        """Which entries are wrong."""
        size = np.abs(self.expected)
        return np.abs(self.got - self.expected) > TOLERANCE * (size + FLOOR * size.max())


def likely_cause(wrong: Wrong) -> str:
    """The pattern in a wrong leaf, in words; `UNKNOWN` where none is seen."""
    if (bad := ~np.isfinite(wrong.got)).any():
        return f"{bad.sum()} of {bad.size} entries are NaN or infinite"
    if wrong.got.any() and not wrong.expected.any():
        return "the forward pass is piecewise constant in it, or does not use it"
    far = not _close(wrong.got, wrong.expected)
    instead = (name for name, a in INSTEAD.items() if far and _close(wrong.got, a(wrong)))
    fitted = (fit(wrong) for fit in (_factor, _factors, _penalty, _rounded))
    found = filter(None, (*instead, *fitted))
    return next(found, "") or _place(wrong) or _few_entries(wrong) or UNKNOWN


INSTEAD: dict[str, Callable[[Wrong], Any]] = {
    "every entry is zero: no gradient arrives here": lambda w: 0 * w.got,
    "its transpose matches": lambda w: w.expected.T,
    "it is stored in the order of its transpose": lambda w: w.expected.T.reshape(w.got.shape),
    "it is reversed along axis 0": lambda w: w.expected[::-1] if w.got.ndim else 0,
    "it is reversed along the last axis": lambda w: w.expected[..., ::-1] if w.got.ndim else 0,
    "its entries are right, in another order": lambda w: _in_order_of(w.got, w.expected),
    "only its diagonal is there": lambda w: _diagonal(w.got) * w.expected,
}
"""What a wrong leaf may be, instead of its reference."""
PLACES: dict[str, Callable[[Wrong], Any]] = {
    "where x == 0": lambda w: w.theta == 0,
    "where x == 1": lambda w: w.theta == 1,
    "where x < 0": lambda w: w.theta < 0,
    "where x > 0": lambda w: w.theta > 0,
    "where x <= 0": lambda w: w.theta <= 0,
    "where x >= 0": lambda w: w.theta >= 0,
    "in the rows that the integers name more than once": lambda w: _named_again(w),
    "on the diagonal": lambda w: _diagonal(w.got),
}
"""Where a leaf may be wrong: an array of booleans, of its shape or with a single column."""


def misshapen_cause(got: np.ndarray, expected: np.ndarray, others: Mapping[str, np.ndarray]) -> str:
    """Why a gradient may have another shape than its parameter; "" where no reason is seen.
    `others` are the references of the other leaves by name.
    """
    if found := _other_reference(got, others):
        return found
    ones = (1,) * (got.ndim - expected.ndim)
    for shape in (ones + expected.shape, expected.shape + ones):
        pairs = enumerate(zip(got.shape, shape, strict=False))
        axes = tuple(i for i, (n, wanted) in pairs if n != wanted == 1)
        if axes and _close(got.sum(axes, keepdims=True), expected.reshape(shape)):
            return f"its sum over axes {[*axes]} matches: the sum is missing"
    return "its transpose matches" if _close(got.T, expected) else ""


def swapped(leaf: Leaf, leaves: Sequence[Leaf]) -> Leaf:
    """The leaf; where it is wrong and matches another wrong leaf's reference, its note says so."""
    wrong = {other.name: other.expected for other in leaves if other.verdict == "fail"}
    if wrong.pop(leaf.name, None) is None:
        return leaf
    return replace(leaf, note=joined(leaf.note, _other_reference(leaf.got, wrong)))


def _other_reference(got: np.ndarray, others: Mapping[str, np.ndarray]) -> str:
    same = (name for name, a in others.items() if a.any() and _close(got, a))
    return next((f"it is the reference of {name}: swapped" for name in same), "")


def _close(a: np.ndarray, b: Any) -> bool:
    same = a.shape == np.shape(b)
    return same and bool(np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(b))


def _in_order_of(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The entries of the reference in the order that they have in the leaf."""
    ordered = np.empty(got.size)
    ordered[np.argsort(got, axis=None)] = np.sort(expected, axis=None)
    return ordered.reshape(got.shape)


def _diagonal(a: np.ndarray) -> np.ndarray:
    square = a.ndim > 1 and a.shape[-1] == a.shape[-2] > 1
    return np.broadcast_to(np.eye(a.shape[-1], dtype=bool), a.shape) if square else np.array(False)


def _named_again(wrong: Wrong) -> np.ndarray:
    rows = np.zeros((*wrong.got.shape[:1], *(1 for _ in wrong.got.shape[1:])), bool)
    for array in wrong.integers:
        named, count = np.unique(array, return_counts=True)
        again = named[(count > 1) & (named >= 0) & (named < len(rows))]
        rows[again] = True
    return rows


def _factor(wrong: Wrong) -> str:
    """One factor of all entries, with the reason for it where it is a known one."""
    (factor,), matches = _fitted(wrong, None)
    if not factor or abs(factor - 1) < 1e-6 or not matches:
        return ""
    known = {-1.0: "the sign", 2.0: "a 2 too many, or added twice", 0.5: "a 2 is missing"}
    for n in wrong.lengths:
        # setdefault: a batch of 2 explains a factor of 2 no better than the 2 itself.
        known.setdefault(1.0 * n, f"an axis has length {n}: 1/{n} is missing")
        known.setdefault(1 / n, f"an axis has length {n}: one factor 1/{n} too many")
        known.setdefault(1.0 * n * n, f"an axis has length {n}: 1/{n} is missing twice")
        known.setdefault(1 / (n * n), f"an axis has length {n}: two factors 1/{n} too many")
        known.setdefault(n / (n - 1), f"1/({n} - 1) in place of 1/{n}")
    near = min(known, key=lambda k: abs(k - factor))
    why = f": {known[near]}" if abs(near - factor) <= 1e-6 * abs(near) else ""
    named = f"every entry is {plainly(factor)} times the reference{why}"
    return named if why or wrong.got.size > 1 else ""


def _factors(wrong: Wrong) -> str:
    """A factor for each row, or each column, none of which is right."""
    for axis in range(wrong.got.ndim):
        factors, matches = _fitted(wrong, axis)
        if matches and wrong.got.size > len(factors) and (abs(factors - 1) > 1e-6).all():
            first = ", ".join(map(plainly, factors[:3]))
            return f"a factor for each index of axis {axis}: {first}, ..."
    return ""


def _fitted(wrong: Wrong, axis: int | None) -> tuple[np.ndarray, bool]:
    """The factor of the reference that is nearest to the leaf, or one for each index of an axis;
    and whether it is the leaf."""
    got, expected, *_ = wrong
    rest = tuple(i for i in range(got.ndim) if i != axis)
    square = (expected**2).sum(rest, keepdims=True)
    factors = (got * expected).sum(rest, keepdims=True) / np.where(square, square, 1)
    return factors.ravel(), _close(got, factors * expected)


def _penalty(wrong: Wrong) -> str:
    theta, difference = wrong.theta, wrong.got - wrong.expected
    square = np.vdot(theta, theta).real
    alpha = np.vdot(theta, difference).real / square if square else 0.0
    # A parameter of one value would explain any constant difference.
    if len(np.unique(theta[theta != 0])) < 2 or not _close(alpha * theta, difference):
        return ""
    what = "is in it alone" if alpha > 0 else "is missing from it"
    return f"the difference is {plainly(alpha)} times the parameter: an L2 term {what}"


def _rounded(wrong: Wrong) -> str:
    """Every difference within a roundoff, and of its size: the rule itself is right."""
    got, expected, *_ = wrong
    size = np.abs(expected)
    large = size > 0.1 * size.max()  # smaller entries have the error of what they cancel
    error = (np.abs(got - expected)[large] / size[large]).max()
    everywhere = got.size > 3 and (got != expected).mean() > 0.5
    for name in NARROW:
        roundoff = unit_roundoff(name)
        held = (got == np.asarray(jnp.asarray(got, name), np.float64)).all()
        if everywhere and roundoff / 64 < error <= 2 * roundoff and (name in wrong.narrow or held):
            return f"the differences are of {name}'s roundoff: a low-precision cast?"
    return ""


def _place(wrong: Wrong) -> str:
    """Where the leaf is wrong, and only there; or where all wrong entries are, with few others."""
    entries, few = wrong.entries, ""
    if entries.all() or not entries.any():
        return ""
    for name, place in PLACES.items():
        holds = np.asarray(place(wrong))
        if holds.ndim != entries.ndim or (holds.shape != entries.shape and "rows" not in name):
            continue
        rows: Any = tuple(np.flatnonzero(np.equal(holds.shape, 1)))
        there = entries.any(rows, keepdims=True)
        if (holds == there).all() and not holds.all():
            return f"all wrong entries are {name}, and no others"
        if name.startswith("where") and holds[there].all() and holds.sum() <= 2 * there.sum():
            few = few or f"all wrong entries are {name}"
    return _sizes_where(np.abs(wrong.theta), entries) or few


def _sizes_where(size: np.ndarray, wrong: np.ndarray) -> str:
    """The size above or below which all entries are wrong, and no others."""
    if size.shape != wrong.shape or (wrong.sum() == 1 and size[wrong].min() <= 3):
        return ""
    for sign, sizes, limits in ((1, ">", (30, 20, 10, 5, 3, 1)), (-1, "<", (1, 0.1, 0.01))):
        inside, outside = (sign * size[wrong]).min(), (sign * size[~wrong]).max()
        if outside < inside:
            limit = next((n for n in limits if outside <= sign * n < inside), abs(outside))
            return f"all wrong entries are where |x| {sizes} {plainly(limit)}, and no others"
    return ""


def _few_entries(wrong: Wrong) -> str:
    entries = wrong.entries
    if entries.all() or not entries.ndim:
        return ""
    axes = range(entries.ndim) if entries.ndim == 1 or entries.sum() > 1 else ()
    # The axis first of which the fewest indices are wrong.
    share = lambda axis: entries.any(tuple(a for a in range(entries.ndim) if a != axis)).mean()
    runs = (_run_along(axis, wrong.got, entries) for axis in sorted(axes, key=share))
    return next(filter(None, runs), f"{entries.sum()} of {entries.size} entries differ")


def _run_along(axis: int, got: np.ndarray, wrong: np.ndarray) -> str:
    """Where the wrong entries are, if that is a run of indices of this axis, not all of them."""
    lines = np.flatnonzero(wrong.any(tuple(a for a in range(got.ndim) if a != axis)))
    length, count = got.shape[axis], len(lines)
    first, last = lines[0], lines[-1]
    if count == length or count <= last - first:
        return ""
    zero = "" if np.take(got, lines, axis).any() else ", and zero there"
    if count == 1:
        only = f"wrong only at index {first} of axis {axis}{zero}"
        return only if got.ndim > 1 else ""
    block = 1 < count < length / 2 and not (length % count or first % count)
    head = f": block {first // count + 1} of {length // count}, a head or channel?" if block else ""
    if last == length - 1 and not block:
        return f"wrong from index {first} of axis {axis} on, the last {count} of {length}{zero}"
    found = f"wrong only at indices {first} to {last} of axis {axis}{zero}{head}"
    return found if count >= 4 or block else ""
