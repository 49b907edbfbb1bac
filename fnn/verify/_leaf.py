"""One leaf of a gradient, what the checks found about it, and the error that they measure:

    error = max_i |got_i - expected_i| / (|expected_i| + floor max|expected|)

It is relative for each entry, down to a floor: an entry far below the leaf's largest is measured
against the largest. Multiplying the loss by a constant changes nothing. NaN gives an infinite
error, and every comparison is written so that NaN fails it.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

TOLERANCE = 1e-9
"""Of the float64 check. Honest gradients differ by about 1e-15, careless ones by 1e-4."""
FLOOR = 1e-3
"""An entry a thousand times smaller than its leaf's largest is measured as if it were that large
a part of it."""
_EMPTY = partial(np.zeros, 0)


class Check(NamedTuple):
    """One comparison of one leaf: its verdict is "pass", "fail", or "skipped" for `reason`.

    `entries` are the indices out of bounds, worst first and a few at most; of a skipped check
    those that it can't judge.
    """

    verdict: str
    error: float = 0.0
    bound: float = 0.0
    reason: str = ""
    entries: tuple[tuple[int, ...], ...] = ()

    def __str__(self) -> str:
        """As a cell of the report's table."""
        if self.verdict == "skipped":
            return f"({self.reason})"
        sign = "<" if self.verdict == "pass" else ">"
        return f"{self.error:.1e} {sign} {self.bound:.0e}"


NONE = Check("skipped", reason="none")
"""A check that there is not for this leaf."""


def compared(error: float, bound: float) -> Check:
    """The check that passes where the error is within its bound, which NaN is not."""
    return Check("pass" if error <= bound else "fail", error, bound)


class Checks(NamedTuple):
    """The three checks of a leaf."""

    float64: Check
    native: Check
    differences: Check


@dataclass(frozen=True)
class Leaf:
    """One array of the gradient: the three checks, its verdict, its worst entry, what is wrong.

    float64       the gradient in float64, against autodiff in float64
    native        the gradient in the dtype that the user runs, against the same
    differences   the gradient along a direction, against finite differences
    index         of the worst entry
    """

    name: str
    verdict: str
    float64: Check
    native: Check
    differences: Check
    index: tuple[int, ...] = ()
    note: str = ""
    got: np.ndarray = field(default_factory=_EMPTY, repr=False, compare=False)
    expected: np.ndarray = field(default_factory=_EMPTY, repr=False, compare=False)

    @property
    def checks(self) -> Checks:
        """The three together."""
        return Checks(self.float64, self.native, self.differences)


def unfit(name: str, note: str) -> Leaf:
    """A failed leaf that can't even be compared."""
    return Leaf(name, "fail", Check("fail", np.inf, 0.0), NONE, NONE, (), note)


def scale(expected: np.ndarray, floor: float = FLOOR) -> np.ndarray:
    """What the difference of each entry is divided by."""
    size = np.abs(expected)
    return size + floor * size.max() if size.any() else np.ones(size.shape)


def relative(difference: np.ndarray, expected: np.ndarray, floor: float = FLOOR) -> np.ndarray:
    """The error of each entry, by its difference: infinite where this is not finite."""
    error = np.where(np.isfinite(difference), np.abs(difference), np.inf)
    return np.where(error == 0, 0.0, error / scale(expected, floor))


def measure(got: np.ndarray, expected: np.ndarray, floor: float) -> tuple[float, tuple[int, ...]]:
    """The error of `got`, and the index where it is. Absolute where expected is zero throughout;
    infinite for another shape."""
    if got.shape != expected.shape or not got.size:
        return (0.0 if got.shape == expected.shape else np.inf), ()
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        error = relative(got - expected, expected, floor)
    index = np.unravel_index(int(np.argmax(error)), error.shape)
    return float(error[index]), tuple(int(i) for i in index)


def same(expected: Any, got: Any, within: float, floor: float = 1) -> bool:
    """Whether two arrays agree, in their infinite and NaN entries too; the others up to an error of
    `within`."""
    a, b = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    known = np.isfinite(a)
    alike = a.shape == b.shape and np.array_equal(a[~known], b[~known], equal_nan=True)
    return alike and measure(b[known], a[known], floor)[0] <= within


def side_by_side(expected: Any, got: Any) -> str:
    """Two different numbers as a note shows them: with as many digits as tell them apart."""
    digits = next((n for n in (6, 12) if f"{expected:.{n}g}" != f"{got:.{n}g}"), 17)
    return f"expected {expected:.{digits}g}, got {got:.{digits}g}"


def values_at(index: tuple[int, ...], got: np.ndarray, expected: np.ndarray) -> str:
    """Both values of an entry as a note shows them, and where they are."""
    where = f"at {list(index)} " if index else ""
    return where + side_by_side(expected[index], got[index])


def joined(*notes: str, by: str = "; ") -> str:
    """Those of the notes that say something, as one."""
    return by.join(filter(None, notes))


def plainly(value: Any) -> str:
    """A number as a note shows it."""
    return f"{value:.6g}"
