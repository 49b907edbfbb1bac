"""What a check found: rungs, leaves, the verdict, its likely cause, and the check's own power.

Everything here is numpy on arrays that `verify` has computed. The one measure is

    error = max_i |got_i - expected_i| / (|expected_i| + floor max|expected|)

relative elementwise, down to a floor below which an entry counts with the leaf's largest. Loss
scale cancels. NaN gives infinity, and every comparison is written so that NaN fails it.
"""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

TOLERANCE = 1e-9
"""Of the float64 rung. Honest gradients differ by about 1e-15, careless ones by 1e-4."""
FLOOR = 1e-3
"""An entry a thousand times smaller than its leaf's largest counts as that large."""
WIDTH = 100
NOTHING = partial(np.zeros, 0)


class Rung(NamedTuple):
    """One comparison of one leaf: "pass", "fail", or "silent" with the reason in `note`."""

    verdict: str
    error: float = 0.0
    bound: float = 0.0
    note: str = ""

    def __str__(self) -> str:
        if self.verdict == "silent":
            return f"({self.note})"
        sign = "<" if self.verdict == "pass" else ">"
        return f"{self.error:.1e} {sign} {self.bound:.0e}"


@dataclass(frozen=True)
class Leaf:
    """One array of the gradient: what each rung says, its worst entry, and what is wrong."""

    name: str
    verdict: str
    float64: Rung
    native: Rung
    differences: Rung
    index: tuple[int, ...] = ()
    note: str = ""
    got: np.ndarray = field(default_factory=NOTHING, repr=False, compare=False)
    expected: np.ndarray = field(default_factory=NOTHING, repr=False, compare=False)

    @property
    def relative(self) -> float:
        """The float64 rung's error: the largest relative difference of an entry."""
        return self.float64.error


NONE = Rung("silent", note="none")


def rung(error: float, bound: float) -> Rung:
    """The rung that passes where the error keeps its bound, which NaN does not."""
    return Rung("pass" if error <= bound else "fail", error, bound)


def refused(name: str, note: str) -> Leaf:
    """A leaf that can't even be compared."""
    return Leaf(name, "fail", Rung("fail", np.inf, 0.0), NONE, NONE, (), note)


@dataclass(frozen=True)
class Report:
    """What a check found. `str(report)` is a table with a line a leaf, 100 columns at most.

    verdict   "fail" if a leaf fails, else "inconclusive" if one is, or if there is none
    leaves    from input to output; backpropagation reaches the last one first
    dtype     what the user runs, and the second rung ran
    place     for fnn's networks, the first wrong layer counted from the output
    """

    subject: str
    leaves: tuple[Leaf, ...]
    dtype: str = "float32"
    place: str = ""

    @property
    def verdict(self) -> str:
        """The leaves' verdicts together."""
        found = {leaf.verdict for leaf in self.leaves} or {"inconclusive"}
        return next(v for v in ("fail", "inconclusive", "pass") if v in found)

    @property
    def worst(self) -> float:
        """The largest relative float64 difference of all leaves."""
        return max((leaf.relative for leaf in self.leaves), default=0.0)

    @property
    def errors(self) -> tuple[float | None, ...]:
        """The largest error at each rung; None where the rung spoke for no leaf."""
        columns = zip(*((f.float64, f.native, f.differences) for f in self.leaves), strict=True)
        spoke = [[rung.error for rung in c if rung.verdict != "silent"] for c in columns]
        return tuple(max(errors, default=None) for errors in spoke)

    @cached_property
    def power(self) -> "Power":
        """What this check would have seen: bugs planted into the gradient under test."""
        return _power(self.leaves)

    def raise_for_verdict(self) -> None:
        """Raise AssertionError, with the table, unless the verdict is "pass"."""
        if self.verdict != "pass":
            raise AssertionError("\n" + str(self))

    def __str__(self) -> str:
        width = min(max([len(leaf.name) for leaf in self.leaves] + [4]), 28)
        lines = [f"{self.subject}: {self.verdict}"]
        if self.place:
            lines += textwrap.wrap(f"  {self.place}", WIDTH, subsequent_indent="    ")
        heads = ("float64", self.dtype, "differences")
        lines.append(f"  {'leaf':{width}}  {heads[0]:17}  {heads[1]:17}  {heads[2]:17}  verdict")
        for leaf in self.leaves:
            name = leaf.name if len(leaf.name) <= width else ".." + leaf.name[2 - width :]
            cells = "  ".join(
                f"{rung!s:17}" for rung in (leaf.float64, leaf.native, leaf.differences)
            )
            lines.append(f"  {name:{width}}  {cells}  {leaf.verdict}")
            lines += textwrap.wrap(
                leaf.note, WIDTH, initial_indent="    ", subsequent_indent="    "
            )
        return "\n".join(lines)


def measure(got: np.ndarray, expected: np.ndarray, floor: float) -> tuple[float, tuple[int, ...]]:
    """The error of `got`, and the index where it is. Absolute where expected is zero throughout."""
    size = np.abs(expected)
    scale = size + floor * size.max()
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        difference = np.abs(got - expected)
        error = np.where(np.isfinite(difference), difference, np.inf)
        error = np.where(error == 0, 0.0, error / (scale if size.max() else 1.0))
    index = np.unravel_index(int(np.argmax(error)), error.shape)
    return float(error[index]), tuple(int(i) for i in index)


def plainly(value: Any) -> str:
    """A number as a table shows it."""
    return f"{value:.6g}"


def likely_cause(
    got: np.ndarray, expected: np.ndarray, theta: np.ndarray, sizes: Sequence[int]
) -> str:
    """The pattern in a wrong leaf, in words; "" where none is seen.

    theta is the parameter, sizes are the axes' lengths that a wrong factor may come from.
    """
    for pattern in (_not_finite, _no_gradient, _factor, _transposed, _penalty, _rounded, _sparse):
        found = pattern(got, expected, theta, sizes)
        if found:
            return found
    return ""


def misshapen_cause(got: np.ndarray, expected: np.ndarray) -> str:
    """Why a gradient may have another shape than its parameter."""
    extra = got.ndim - expected.ndim
    if extra > 0 and got.shape[extra:] == expected.shape:
        summed = got.sum(tuple(range(extra)))
        if _close(summed, expected):
            return "its sum over the batch matches: the sum is missing"
    if got.shape == expected.shape[::-1] and _close(got.T, expected):
        return "its transpose matches"
    return ""


def _close(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-6) -> bool:
    return bool(np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b))


def _not_finite(got, expected, theta, sizes):
    bad = ~np.isfinite(got)
    return bad.any() and f"{bad.sum()} of {got.size} entries are NaN or infinite"


def _no_gradient(got, expected, theta, sizes):
    return not got.any() and "every entry is zero: no gradient arrives here"


def _factor(got, expected, theta, sizes):
    square = np.vdot(expected, expected).real
    factor = np.vdot(expected, got).real / square if square else 0.0
    if not factor or abs(factor - 1) < 1e-6 or not _close(got, factor * expected):
        return ""
    known = {-1.0: "the sign", 2.0: "a 2 too many", 0.5: "a 2 is missing"}
    for n in sizes:
        # setdefault: a batch of 2 explains a factor of 2 no better than the 2 itself.
        known.setdefault(1.0 * n, f"an axis has length {n}: 1/{n} is missing")
        known.setdefault(1 / n, f"an axis has length {n}: 1/{n} too often")
        known.setdefault(1.0 * n * n, f"an axis has length {n}: 1/{n} is missing twice")
        known.setdefault(1 / (n * n), f"an axis has length {n}: 1/{n} twice too often")
        known.setdefault(n / (n - 1) if n > 1 else 1.0, f"1/({n} - 1) in place of 1/{n}")
    near = min(known, key=lambda k: abs(k - factor))
    why = f": {known[near]}" if abs(near - factor) <= 1e-6 * abs(near) else ""
    if got.size == 1 and not why:
        return ""
    return f"every entry is {plainly(factor)} times the reference{why}"


def _transposed(got, expected, theta, sizes):
    square = got.ndim == 2 and got.shape[0] == got.shape[1]
    return square and _close(got.T, expected) and "its transpose matches"


def _penalty(got, expected, theta, sizes):
    square = np.vdot(theta, theta).real
    alpha = np.vdot(theta, got - expected).real / square if square else 0.0
    # A parameter that is the same throughout would explain any constant difference.
    if theta.size < 2 or not np.ptp(theta) or not _close(alpha * theta, got - expected):
        return ""
    what = "is in the gradient alone" if alpha > 0 else "is missing from the gradient"
    return f"the difference is {plainly(alpha)} times the parameter: an L2 term {what}"


def _rounded(got, expected, theta, sizes):
    """Every difference within a roundoff, and of its size: not a fault of the rule."""
    if not expected.any():
        return ""
    size = np.abs(expected)
    large = size > 0.1 * size.max()  # smaller entries have the error of what they cancel
    error = (np.abs(got - expected)[large] / size[large]).max()
    everywhere = got.size > 3 and (got != expected).mean() > 0.5
    for name in ("float32", "float16", "bfloat16"):
        roundoff = float(jnp.finfo(name).eps) / 2
        if everywhere and roundoff / 64 < error <= 2 * roundoff:
            return f"the differences are of {name}'s roundoff: a low-precision cast?"
    return ""


def _sparse(got, expected, theta, sizes):
    wrong = np.abs(got - expected) > TOLERANCE * (np.abs(expected) + FLOOR * np.abs(expected).max())
    if wrong.all() or got.ndim == 0:
        return ""
    for axis in range(got.ndim):
        others = tuple(a for a in range(got.ndim) if a != axis)
        lines = np.flatnonzero(wrong.any(others))
        if len(lines) == 1 and got.ndim > 1 and wrong.sum() > 1:
            line = np.take(got, lines[0], axis)
            zero = "" if line.any() else ", and zero there"
            return f"wrong at index {lines[0]} of axis {axis} alone{zero}"
    return f"{wrong.sum()} of {got.size} entries differ"


class Planted(NamedTuple):
    """One bug planted into one leaf, and whether the check would have refused it."""

    bug: str
    leaf: str
    seen: bool


@dataclass(frozen=True)
class Power:
    """What a check can see. `smallest` has for each leaf the least relative error it refuses:
    of all entries at once, each by its own amount."""

    planted: tuple[Planted, ...]
    smallest: dict[str, float]

    def __str__(self) -> str:
        seen = sum(p.seen for p in self.planted)
        lines = [f"power: {seen} of {len(self.planted)} planted bugs seen"]
        for bug in dict.fromkeys(p.bug for p in self.planted):
            tried = [p for p in self.planted if p.bug == bug]
            missed = [p.leaf for p in tried if not p.seen]
            what = f"missed in {', '.join(missed)}" if missed else "seen"
            text = f"{bug:32} {len(tried):3} leaves  {what}"
            lines += textwrap.wrap(text, WIDTH - 2, initial_indent="  ", subsequent_indent="    ")
        lines.append("smallest relative error seen")
        lines += [f"  {name:32} {error:.1e}" for name, error in self.smallest.items()]
        return "\n".join(lines)


def _bugs(g: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Bugs for a gradient g: the name, and g with the bug in it."""
    yield "sign", -g
    yield "zero", 0 * g
    yield "twice", 2 * g
    yield "half", g / 2
    yield "NaN in one entry", _with_entry(g, np.nan)
    yield "rounded to bfloat16", np.asarray(jnp.asarray(g, jnp.bfloat16), g.dtype)
    yield "rounded to float32", g.astype(np.float32).astype(g.dtype)
    if g.size > 1:
        yield "largest entry negated", _with_entry(g, -g.flat[np.abs(g).argmax()])
        yield "shifted by one entry", np.roll(g.ravel(), 1).reshape(g.shape)
    if g.ndim > 1:
        yield "last row zero", np.concatenate([g[:-1], 0 * g[-1:]])
        yield "last column zero", np.concatenate([g[..., :-1], 0 * g[..., -1:]], -1)
    if g.ndim == 2 and g.shape[0] == g.shape[1] > 1:
        yield "transposed", g.T


def _with_entry(g: np.ndarray, value: Any) -> np.ndarray:
    g = g.copy()
    g.flat[np.abs(g).argmax()] = value
    return g


def _power(leaves: Sequence[Leaf]) -> Power:
    """Plant into each finite leaf; where the float64 rung is silent, nothing is seen."""
    tried = [leaf for leaf in leaves if leaf.got.size]
    planted, smallest = [], {}
    for leaf in tried:
        got, expected = leaf.got, leaf.expected
        if not (np.isfinite(got).all() and np.isfinite(expected).all()):
            smallest[leaf.name] = np.inf
            continue

        def seen(g: np.ndarray, leaf: Leaf = leaf, expected: np.ndarray = expected) -> bool:
            speaks = leaf.float64.verdict != "silent"
            return speaks and not measure(g, expected, FLOOR)[0] <= leaf.float64.bound

        for bug, g in _bugs(got):
            if not np.array_equal(g, got):
                planted.append(Planted(bug, leaf.name, seen(g)))
        for other in tried:
            if other is not leaf and other.got.shape == got.shape:
                planted.append(Planted(f"swapped with {other.name}", leaf.name, seen(other.got)))
        smallest[leaf.name] = _smallest(seen, expected)
    return Power(tuple(planted), smallest)


def _smallest(seen: Callable[[np.ndarray], bool], expected: np.ndarray) -> float:
    """The least relative error refused, by bisection of its exponent between 1e-16 and 1."""
    noise = np.random.default_rng(0).uniform(-1, 1, expected.shape)
    noise = expected * noise / np.abs(noise).max()
    low, high = -16.0, 0.0
    if not seen(expected + noise):
        return np.inf
    while high - low > 0.05:
        middle = (low + high) / 2
        low, high = (low, middle) if seen(expected + 10**middle * noise) else (middle, high)
    return float(10**high)
