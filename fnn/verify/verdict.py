"""What the checks of a leaf add up to.

"fail" where the float64 or the native check fails. "inconclusive" where that rests on no firm
reference: one that is zero or mere rounding; a tie or border where autodiff or the gradient under
test takes a slope between the two sides; a native check that could not tell; finite differences
that contradict autodiff. Else "pass".

A gradient that can't be had in float64 (a kernel for float32, say) passes by its native check,
against autodiff in float64.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from fnn.verify.checks import CANCELS, KINK, TIE, Tested
from fnn.verify.leaf import FLOOR, Check, measure, plainly, side_by_side
from fnn.verify.reference import Slope


def decide(
    tested: Tested,
    expected: np.ndarray,
    checks: tuple[Check, Check, Check],
    slopes: Iterable[tuple[tuple[int, ...], Slope | None]],
    custom: Sequence[str] = (),
) -> tuple[str, str, tuple[int, ...]]:
    """The verdict of a leaf, the reason, and the index of the worst entry.

    checks are float64, native and differences; slopes are those along the entries that the float64
    check refused, with their indices, worst first; custom are the functions with derivative rules
    of their own that autodiff has run.

    >>> tested = Tested("dx", 1, np.array([5.0]), np.array([5.0]), "")
    >>> failed, skipped = Check("fail", 0.2, 1e-9), Check("skipped", reason="none")
    >>> decide(tested, np.array([6.0]), (failed, skipped, skipped), [((0,), None)])
    ('fail', 'at [0] expected 6, got 5', (0,))
    """
    float64, native, differences = checks
    _, index = measure(tested.best, expected, FLOOR)
    if float64.verdict == "fail":
        doubts = []
        for at, slope in slopes:
            verdict, note = _against_slope(float(tested.best[at]), float(expected[at]), slope)
            contradicted = differences.verdict == "fail" and differences.reason != KINK
            if verdict == "inconclusive" and slope and slope.kink and contradicted:
                verdict, note = "fail", f"{note}; finite differences contradict it"
            if verdict == "fail":
                return verdict, _values(tested.best, expected, at) + note, at
            doubts.append((at, note))
        at, note = doubts[0]
        return "inconclusive", _values(tested.best, expected, at) + note, at
    if native.verdict == "fail":
        index = native.entries[0] if native.entries else measure(tested.native, expected, 1)[1]
        note = f"in the dtype that runs: {_values(tested.native, expected, index)}"
        return "fail", note, index
    if doubt := _doubt(tested, expected, checks, custom):
        return "inconclusive", doubt, index
    return "pass", "", index


def _values(got: np.ndarray, expected: np.ndarray, index: tuple[int, ...]) -> str:
    where = f"at {list(index)} " if index else ""
    return where + side_by_side(expected[index], got[index])


def _against_slope(got: float, wanted: float, slope: Slope | None) -> tuple[str, str]:
    """What the slope along an entry says of the difference between `got` and autodiff's."""
    if slope is not None and slope.kink:
        low, high = sorted((slope.left, slope.right))
        slack = 1e-6 * max(abs(low), abs(high))
        between = low - slack <= got <= high + slack
        # Autodiff on one side and this on the other contradict each other. Where either splits
        # the tie (a maximum's two arguments share it, |x| has 0 at 0), both are right.
        sided = [min(abs(d - low), abs(d - high)) <= slack for d in (wanted, got)]
        note = f"; a tie or border, with slopes {plainly(low)} and {plainly(high)}"
        return ("inconclusive" if between and not all(sided) else "fail"), note
    if slope and abs(slope.value - got) <= slope.bound < abs(slope.value - wanted):
        note = "; finite differences agree with what is under test, not with autodiff"
        return "inconclusive", note
    return "fail", ""


def _doubt(
    tested: Tested,
    expected: np.ndarray,
    checks: tuple[Check, Check, Check],
    custom: Sequence[str],
) -> str:
    """Why checks of which none found an error do not add up to a pass; "" where they do."""
    float64, native, differences = checks
    if differences.verdict == "fail":
        if custom:
            return (
                f"autodiff ran the rule of {', '.join(custom)}, and finite differences contradict "
                "it: if that is what is under test, it was checked against itself; hand in "
                "reference=, the function without the rule"
            )
        return "finite differences contradict autodiff: is a rule overridden?"
    if float64.verdict != "skipped":
        if native.verdict == "skipped" and native.reason in ("rounding", CANCELS):
            return (
                f"right in float64, but the native check is skipped: {native.reason}; at these "
                "inputs this dtype holds too few digits to tell"
            )
        return ""
    if float64.reason == TIE:
        values = _values(tested.best, expected, float64.entries[0])
        return f"{values}; a tie or border, where more than one value is right"
    if float64.reason == CANCELS:
        _, index = measure(tested.best, expected, FLOOR)
        return f"{_values(tested.best, expected, index)}; autodiff itself cancels here"
    if float64.reason == "zero":
        return "the reference is zero everywhere: right and missing look alike"
    if tested.wide is not None or float64.reason != tested.reason:
        return f"the float64 reference can't decide: {float64.reason}"
    if native.verdict == "skipped":
        return f"float64: {float64.reason}; the native check is skipped: {native.reason}"
    if custom and differences.verdict == "skipped" and differences.reason != "none":
        return (
            f"autodiff ran the rule of {', '.join(custom)}, and finite differences can't "
            f"confirm it: {differences.reason}"
        )
    return ""
