"""Likely causes of a wrong leaf, in words: patterns in how it differs from the reference."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fnn.verify._arrays import unit_roundoff
from fnn.verify._leaf import FLOOR, TOLERANCE, Leaf, joined, plainly

UNKNOWN = "cause unknown"


def likely_cause(
    got: np.ndarray,
    expected: np.ndarray,
    theta: np.ndarray,
    lengths: Sequence[int],
    integers: Sequence[Any] = (),
) -> str:
    """The pattern in a wrong leaf, in words; `UNKNOWN` where none is seen.

    theta is the parameter; lengths, above 1, are of the axes that a wrong factor may come from;
    integers are the arrays that may choose its rows.
    """
    return (
        _degenerate(got, expected)
        or _factor(got, expected, lengths)
        or _transposed(got, expected)
        or _penalty(got, expected, theta)
        or _rounded(got, expected)
        or _repeated_rows(got, expected, integers)
        or _where(got, expected, theta)
        or _few_entries(got, expected)
        or UNKNOWN
    )


def misshapen_cause(got: np.ndarray, expected: np.ndarray, others: Mapping[str, np.ndarray]) -> str:
    """Why a gradient may have another shape than its parameter; "" where no reason is seen.
    `others` are the references of the other leaves by name.
    """
    if found := _other_reference(got, others):
        return found
    extra = got.ndim - expected.ndim
    if extra > 0 and got.shape[extra:] == expected.shape:
        summed = got.sum(tuple(range(extra)))
        if _close(summed, expected):
            return "its sum over the batch matches: the sum is missing"
    return _transposed(got, expected)


def swapped(leaf: Leaf, leaves: Sequence[Leaf]) -> Leaf:
    """The leaf; where it is wrong and matches another wrong leaf's reference, its note says so."""
    wrong = {other.name: other.expected for other in leaves if other.verdict == "fail"}
    if wrong.pop(leaf.name, None) is None:
        return leaf
    return replace(leaf, note=joined(leaf.note, _other_reference(leaf.got, wrong)))


def _other_reference(got: np.ndarray, others: Mapping[str, np.ndarray]) -> str:
    same = (name for name, a in others.items() if got.shape == a.shape and _close(got, a))
    return next((f"it is the reference of {name}: swapped" for name in same), "")


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(b))


def _degenerate(got: np.ndarray, expected: np.ndarray) -> str:
    """A gradient that is not finite or zero, or one whose reference is zero."""
    bad = ~np.isfinite(got)
    if bad.any():
        return f"{bad.sum()} of {got.size} entries are NaN or infinite"
    if not got.any():
        return "every entry is zero: no gradient arrives here"
    piecewise = "the forward pass is piecewise constant in it, or does not use it"
    return "" if expected.any() else piecewise


def _factor(got: np.ndarray, expected: np.ndarray, lengths: Sequence[int]) -> str:
    square = np.vdot(expected, expected).real
    factor = np.vdot(expected, got).real / square if square else 0.0
    if not factor or abs(factor - 1) < 1e-6 or not _close(got, factor * expected):
        return ""
    known = {-1.0: "the sign", 2.0: "a 2 too many", 0.5: "a 2 is missing"}
    for n in lengths:
        # setdefault: a batch of 2 explains a factor of 2 no better than the 2 itself.
        known.setdefault(1.0 * n, f"an axis has length {n}: 1/{n} is missing")
        known.setdefault(1 / n, f"an axis has length {n}: one factor 1/{n} too many")
        known.setdefault(1.0 * n * n, f"an axis has length {n}: 1/{n} is missing twice")
        known.setdefault(1 / (n * n), f"an axis has length {n}: two factors 1/{n} too many")
        known.setdefault(n / (n - 1), f"1/({n} - 1) in place of 1/{n}")
    near = min(known, key=lambda k: abs(k - factor))
    why = f": {known[near]}" if abs(near - factor) <= 1e-6 * abs(near) else ""
    if got.size == 1 and not why:
        return ""
    return f"every entry is {plainly(factor)} times the reference{why}"


def _transposed(got: np.ndarray, expected: np.ndarray) -> str:
    fits = got.ndim > 1 and got.shape == expected.shape[::-1]
    return "its transpose matches" if fits and _close(got.T, expected) else ""


def _penalty(got: np.ndarray, expected: np.ndarray, theta: np.ndarray) -> str:
    square = np.vdot(theta, theta).real
    alpha = np.vdot(theta, got - expected).real / square if square else 0.0
    # A parameter of one value would explain any constant difference.
    if len(np.unique(theta[theta != 0])) < 2 or not _close(alpha * theta, got - expected):
        return ""
    what = "is in it alone" if alpha > 0 else "is missing from it"
    return f"the difference is {plainly(alpha)} times the parameter: an L2 term {what}"


def _rounded(got: np.ndarray, expected: np.ndarray) -> str:
    """Every difference within a roundoff, and of its size: the rule itself is right."""
    size = np.abs(expected)
    large = size > 0.1 * size.max()  # smaller entries have the error of what they cancel
    error = (np.abs(got - expected)[large] / size[large]).max()
    everywhere = got.size > 3 and (got != expected).mean() > 0.5
    for name in ("float32", "float16", "bfloat16"):
        roundoff = unit_roundoff(name)
        if everywhere and roundoff / 64 < error <= 2 * roundoff:
            return f"the differences are of {name}'s roundoff: a low-precision cast?"
    return ""


def _wrong(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.abs(got - expected) > TOLERANCE * (np.abs(expected) + FLOOR * np.abs(expected).max())


def _repeated_rows(got: np.ndarray, expected: np.ndarray, integers: Sequence[Any]) -> str:
    wrong = _wrong(got, expected)
    rows = set(np.flatnonzero(wrong.any(tuple(range(1, wrong.ndim))))) if wrong.ndim else set()
    for array in integers:
        named, count = np.unique(array, return_counts=True)
        if rows and rows == set(named[count > 1]) and len(rows) < len(wrong):
            return "all wrong rows are those that the integers name more than once"
    return ""


def _where(got: np.ndarray, expected: np.ndarray, theta: np.ndarray) -> str:
    """What the parameter's entries have in common where the gradient is wrong, and only there."""
    wrong = _wrong(got, expected)
    if theta.shape != wrong.shape or wrong.all() or not wrong.any():
        return ""
    conditions = {"== 0": theta == 0, "== 1": theta == 1, "< 0": theta < 0, "> 0": theta > 0}
    more = {"<= 0": theta <= 0, ">= 0": theta >= 0}
    for name, holds in (conditions | more).items():
        if (holds == wrong).all():
            return f"all wrong entries are where x {name}, and no others"
    if size := _sizes_where(np.abs(theta), wrong):
        return size
    for name, holds in conditions.items():
        if holds[wrong].all() and 0 < holds.sum() <= 2 * wrong.sum() and not holds.all():
            return f"all wrong entries are where x {name}"
    return ""


def _sizes_where(size: np.ndarray, wrong: np.ndarray) -> str:
    """The size above or below which all entries are wrong, and no others."""
    if wrong.sum() == 1 and size[wrong].min() <= 3:
        return ""
    least, most = size[wrong].min(), size[wrong].max()
    if least > (right := size[~wrong].max()):
        limit = next((n for n in (30, 20, 10, 5, 3, 1) if right <= n < least), right)
        return f"all wrong entries are where |x| > {plainly(limit)}, and no others"
    if most < (right := size[~wrong].min()):
        limit = next((n for n in (1, 0.1, 1e-2) if most < n <= right), right)
        return f"all wrong entries are where |x| < {plainly(limit)}, and no others"
    return ""


def _few_entries(got: np.ndarray, expected: np.ndarray) -> str:
    wrong = _wrong(got, expected)
    if wrong.all() or got.ndim == 0:
        return ""
    axes = range(got.ndim) if got.ndim == 1 or wrong.sum() > 1 else ()
    runs = (_run_along(axis, got, wrong) for axis in axes)
    return next(filter(None, runs), f"{wrong.sum()} of {got.size} entries differ")


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
    if last == length - 1:
        return f"wrong from index {first} of axis {axis} on, the last {count} of {length}{zero}"
    return f"wrong only at indices {first} to {last} of axis {axis}{zero}" if count >= 4 else ""
