"""Likely causes of a wrong leaf, in words: patterns in how it differs from the reference.

Each hypothesis is a row of a table, or one general form: what the leaf would be if it held, a
product of powers that would give it, or where it would be wrong and nowhere else. The first that
holds is named.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from math import comb
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fnn.verify._call import unit_roundoff
from fnn.verify._leaf import TOLERANCE, Leaf, joined, plainly, relative

UNKNOWN = "cause unknown"
NARROW = ("float32", "float16", "bfloat16")
_ordered = partial(np.sort, axis=None)


class Wrong(NamedTuple):
    """A wrong leaf and its reference; what else its entries may be made of, by name: "x", the
    parameter, "dy" and others of shapes that spread to the leaf's; the lengths, above 1, of the
    axes that a wrong factor may come from; the arrays of integers that may choose its rows; and the
    dtypes that may have rounded it: where it is right in float64, or known to compute in less.
    """

    got: np.ndarray
    expected: np.ndarray
    beside: Mapping[str, np.ndarray]
    lengths: Sequence[int] = ()
    integers: Sequence[Any] = ()
    narrow: Sequence[str] = ()

    @property
    def entries(self) -> np.ndarray:
        """Which entries are wrong."""
        return ~(relative(self.got - self.expected, self.expected) <= TOLERANCE)

    @property
    def right(self) -> np.ndarray:
        """Which are right, and not zero by chance."""
        return ~self.entries & (self.expected != 0)


def likely_cause(wrong: Wrong) -> str:
    """The pattern in a wrong leaf, in words; `UNKNOWN` where none is seen."""
    if (bad := ~np.isfinite(wrong.got)).any():
        return joined(f"{bad.sum()} of {bad.size} entries are NaN or infinite", _place(wrong))
    if wrong.got.any() and not wrong.expected.any():
        return "the forward pass is piecewise constant in it, or does not use it"
    far = not _close(wrong.got, wrong.expected)
    instead = (name for name, a in INSTEAD.items() if far and _close(wrong.got, a(wrong)))
    ways = _product, _factors, _rounded, *((_place, _lines) if wrong.entries.any() else ())
    few = "" if wrong.entries.all() else f"{wrong.entries.sum()} of {wrong.got.size} entries differ"
    found = itertools.chain(instead, (way(wrong) for way in ways), (few,))
    return next(filter(None, found), UNKNOWN)


INSTEAD: dict[str, Callable[[Wrong], Any]] = {
    "every entry is zero: no gradient arrives here": lambda w: 0 * w.got,
    "its transpose matches": lambda w: w.expected.T,
    "it is stored in the order of its transpose": lambda w: w.expected.T.reshape(w.got.shape),
    "it is reversed along axis 0": lambda w: w.expected[::-1] if w.got.ndim else 0,
    "it is reversed along the last axis": lambda w: w.expected[..., ::-1] if w.got.ndim else 0,
    "its entries are right, in another order": lambda w: w.got * _close(*map(_ordered, w[:2])),
    "only its diagonal is there": lambda w: _diagonal(w.got) * w.expected,
}
"""What a wrong leaf may be, instead of its reference."""
SIGNS = {"==": np.equal, "<": np.less, ">": np.greater, "<=": np.less_equal, ">=": np.greater_equal}
PLACES = ("==", 0), ("==", 1), ("<", 0), (">", 0), ("<=", 0), (">=", 0)
"""Where a leaf may be wrong, by the values of what is beside it."""


def misshapen_cause(got: np.ndarray, expected: np.ndarray, others: Mapping[str, np.ndarray]) -> str:
    """Why a gradient may have another shape than its parameter; "" where no reason is seen.
    `others` are the references of the other leaves by name.
    """
    if found := _other_reference(got, others):
        return found
    some = (itertools.combinations(range(got.ndim), n) for n in range(1, got.ndim + 1))
    for axes in itertools.chain.from_iterable(some):
        total = got.sum(axes)
        if total.size == expected.size and _close(total.reshape(expected.shape), expected):
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


def _diagonal(a: np.ndarray) -> np.ndarray:
    square = a.ndim > 1 and a.shape[-1] == a.shape[-2] > 1
    return np.broadcast_to(np.eye(a.shape[-1], dtype=bool) if square else False, a.shape)


@lru_cache
def _powers(number: int, most: int) -> list[tuple[int, ...]]:
    """Small powers of so many quantities, the simplest first."""
    cost = lambda powers: sum(map(abs, powers))
    simple = [p for p in itertools.product((0, 1, -1, 2), repeat=number) if 0 < cost(p) <= most]
    return sorted(simple, key=lambda p: (cost(p), -p[0] * (cost(p) == 1), -min(p)))


def _product(wrong: Wrong) -> str:
    """The leaf as a multiple of the reference, and of a product of powers of what there is."""
    known = {"the reference": wrong.expected, **wrong.beside}
    for powers in _powers(len(known), 3 if wrong.got.size < 5000 else 1):
        parts = {name: float(k) for name, k in zip(known, powers, strict=True) if k}
        with np.errstate(all="ignore"):
            term = np.prod([known[name] ** k for name, k in parts.items()], 0)
        whole = parts == {"the reference": 1}
        kept, factor = _fitted(wrong, (not whole) * wrong.expected, term)
        why = _why(factor, wrong.lengths) if whole else ""
        # A few numbers are explained by anything.
        if factor and (why or len(np.unique(term)) > (1 if whole else 4)):
            return _formula(kept, factor, parts) + why
    return ""


def _fitted(wrong: Wrong, *terms: np.ndarray) -> np.ndarray:
    """The factors with which the terms add up to the leaf, as far as it is wrong; or zeros."""
    columns, got = np.stack([a.ravel() for a in terms], 1), wrong.got.ravel()
    if not np.isfinite(columns).all():
        return np.zeros(len(terms))
    factors = np.linalg.lstsq(columns, got)[0]
    left = np.linalg.norm(columns @ factors - got)
    matches = left <= 1e-6 * np.linalg.norm(wrong.got - wrong.expected)
    return np.where(np.abs(factors) < 1e-9, 0.0, factors) * matches


def _formula(kept: float, factor: float, parts: Mapping[str, float]) -> str:
    terms = [f"{name}^{k:g}" if k != 1 else name for name, k in parts.items()]
    product = " times ".join([plainly(factor), *terms]).removeprefix("1 times ")
    if abs(kept - 1) > 1e-6:
        plus = f" {plainly(kept)} times the reference plus" if kept else ""
        return f"every entry is{plus} {product}"
    why = f": an L2 term is {'in it alone' if factor > 0 else 'missing from it'}"
    return f"the difference is {product}{why * (parts == {'x': 1})}"


def _why(factor: float, lengths: Sequence[int]) -> str:
    """The reason for a factor of the reference, where it is a known one."""
    # A batch of 2 explains a factor of 2 no better than the 2 itself.
    known = {-1.0: "the sign", 2.0: "a 2 too many, or added twice", 0.5: "a 2 is missing"}
    for n in lengths:
        powers = {
            n: f"1/{n} is missing", 1 / n: f"one factor 1/{n} too many",
            n * n: f"1/{n} is missing twice", 1 / (n * n): f"two factors 1/{n} too many",
        }  # fmt: skip
        why = {k: f"an axis has length {n}: {words}" for k, words in powers.items()}
        known = {**why, n / (n - 1): f"1/({n} - 1) in place of 1/{n}", **known}
    near = min(known, key=lambda k: abs(k - factor))
    return f": {known[near]}" if abs(near - factor) <= 1e-6 * abs(near) else ""


def _factors(wrong: Wrong) -> str:
    """A factor for each row, or each column, none of which is right."""
    got, expected = wrong.got, wrong.expected
    for axis in range(got.ndim):
        rest = tuple(i for i in range(got.ndim) if i != axis)
        square = (expected**2).sum(rest, keepdims=True)
        factors = (got * expected).sum(rest, keepdims=True) / np.where(square, square, 1)
        matches = got.size > factors.size and (abs(factors - 1) > 1e-6).all()
        if matches and _close(got, factors * expected):
            first = ", ".join(map(plainly, factors.ravel()[:3]))
            return f"a factor for each index of axis {axis}: {first}, ..."
    return ""


def _rounded(wrong: Wrong) -> str:
    """Every difference within a roundoff, and of its size: the rule itself is right."""
    got, size, difference = wrong.got, np.abs(wrong.expected), np.abs(wrong.got - wrong.expected)
    large = size > 0.1 * size.max()  # smaller entries have the error of what they cancel
    error = (difference[large] / size[large]).max()
    everywhere = got.size > 3 and (difference > 0).mean() > 0.5
    everywhere &= difference.max() <= 2 * error * size.max()
    for name in NARROW:
        roundoff = unit_roundoff(name)
        held = (got == np.asarray(jnp.asarray(got, name), np.float64)).all()
        if everywhere and roundoff / 64 < error <= 2 * roundoff and (name in wrong.narrow or held):
            return f"the differences are of {name}'s roundoff: a low-precision cast?"
    return ""


def _place(wrong: Wrong) -> str:
    """Where the leaf is wrong, and only there, which is not by chance: three entries in six may be
    anywhere."""
    entries, right = wrong.entries, wrong.right
    if not right.any():
        return ""
    chance = 1 / comb(int((entries | right).sum()), int(entries.sum()))
    values = {
        f"where {name} {sign} {n}": SIGNS[sign](a, n)
        for (sign, n), (name, a) in itertools.product(PLACES, wrong.beside.items())
        if chance < 0.07 or sign == "=="
    }
    again = {"in the rows that the integers name more than once": _named_again(wrong)}
    for words, holds in {**again, **values, "on the diagonal": _diagonal(wrong.got)}.items():
        if (holds >= entries).all() and not (holds & right).any():
            return f"all wrong entries are {words}, and no others"
    size = np.abs(wrong.beside.get("x", np.zeros(entries.shape)))
    inside, outside = size[entries].min(), size[right].max()
    if outside < inside and chance < 0.01:
        return f"all wrong entries are where |x| > {plainly(outside)}, and no others"
    return ""


def _named_again(wrong: Wrong) -> np.ndarray:
    """The entries in rows that integers name more than once."""
    rows = np.zeros(wrong.got.shape, bool)
    for array in wrong.integers if rows.ndim else ():
        named, count = np.unique(array, return_counts=True)
        rows[named[(count > 1) & (named >= 0) & (named < len(rows))]] = True
    return rows


def _lines(wrong: Wrong) -> str:
    """The axis along which the wrong entries are a run of indices; that with the fewest first."""
    axes = range(wrong.got.ndim) if wrong.got.ndim == 1 or wrong.entries.sum() > 1 else ()
    found = filter(None, (_run_along(axis, wrong) for axis in axes))
    return min(found, default=(0, ""))[1]


def _run_along(axis: int, wrong: Wrong) -> tuple[float, str] | None:
    """How much of this axis is wrong, and where, if that is a run of its indices."""
    rest = tuple(i for i in range(wrong.got.ndim) if i != axis)
    lines, length = wrong.entries.any(rest), wrong.got.shape[axis]
    first, last, count = (at := np.flatnonzero(lines))[0], at[-1], len(at)
    if count <= last - first or not (wrong.right.any(rest) & ~lines).any():
        return None
    zero = "" if wrong.got[wrong.entries].any() else ", and zero there"
    if count == 1:
        return 1 / length, f"wrong only at index {first} of axis {axis}{zero}"
    block = count < length / 2 and not (length % count or first % count)
    head = f": block {first // count + 1} of {length // count}, a head or channel?"
    end = f", the last {count} of {length}" if last == length - 1 and not block else ""
    found = f"wrong only at indices {first} to {last} of axis {axis}{end}{zero}{head * bool(block)}"
    return (count / length, found) if count >= 4 or block or end else None
