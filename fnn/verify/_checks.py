"""The three checks of a leaf.

float64       The gradient in float64, at the highest matrix-product precision, against autodiff.
              An entry may differ by 1e-9 of its size; where the reference is less sure than that,
              by 64 times what the entry moves when every input moves by a roundoff. At a tie or a
              border, where it jumps, any value is admitted between those it jumps to.
native dtype  The gradient as the user runs it, against autodiff in float64. With u the dtype's
              unit roundoff, the bound is 8 u and 8 times the error of autodiff in the same dtype,
              though at most 16 u; where that is too little, also 8 times what the reference moves
              when every input moves by u, which is u times the running magnitude
              sum |dg/dv||v|. What errs no more than twice as much as autodiff is admitted.
              Overflow and cancellation show here.
differences   The gradient along one unit direction per leaf, against a slope by finite
              differences. A gradient that can't be had in float64 would show nothing but its
              rounding: autodiff's takes its place, and the native check holds the two together.

At a kink the direction is changed: entries of equal size move together, zeros not at all.
A check is skipped where it can't tell: next to a kink, where rounding is as large as what is
measured, and where the reference is zero or not finite.

What the checks of a leaf add up to.

"fail" where the float64 or the native check fails. "inconclusive" where that rests on no firm
reference: one that is zero or mere rounding; a tie or border where autodiff or the gradient under
test takes a slope between the two sides; a native check that could not tell; finite differences
that contradict autodiff. Else "pass".

A gradient that can't be had in float64 (a kernel for float32, say) passes by its native check,
against autodiff in float64.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fnn.verify._arrays import ROUNDOFF
from fnn.verify._leaf import FLOOR, NONE, TOLERANCE, Check, compared, measure, plainly, side_by_side
from fnn.verify._reference import Reference, Slope, along_entry

ENTRY = "entry"
"""The reason of a native check that failed at an entry by its own conditioning."""
TIE = "tie or border"
"""Why the float64 check is skipped where the gradient jumps as the inputs move by a roundoff, and
the leaf and autodiff take different values among those it has around."""
JUMP = 1e-6
"""Relative: what an entry moves by, or more, where it jumps."""
ENTRIES = 8
"""How many entries of a leaf are looked at one by one."""
KINK = "kink"
"""Why the differences tell nothing, or little where they fail."""
GRANT = 16
"""What is granted for autodiff's own error, eightfold, is at most this many roundoffs."""
CANCELS = "autodiff cancels"
"""Why the native check is skipped where autodiff itself is left with hardly a digit there."""

LOSES = "loses digits that autodiff keeps"
"""Why the native check is skipped where the gradient is right but for its own rounding."""


def steps(unit: float) -> tuple[float, float]:
    """First steps of finite differences, relative to a leaf's norm, for a function of this
    roundoff: few kinks are within the first; the second is for where the first is lost in
    rounding.
    """
    return unit ** (17 / 53), unit ** (12 / 53)


class Tested(NamedTuple):
    """One leaf of the gradient under test.

    `position` is its place in the reference's stacks: 0 is the value, the arrays of theta follow.
    `native` is what the user runs. `wide` is the same computed in float64, or None, for the
    `reason`. Positions behind theta's are arrays that the function returns. `opened`
    is what `_open` knows of entries at which the reference is not finite.
    """

    name: str
    position: int
    native: np.ndarray
    wide: np.ndarray | None
    reason: str
    opened: Any = None

    @property
    def best(self) -> np.ndarray:
        """The leaf in float64, or else as the user runs it."""
        return self.native if self.wide is None else self.wide


def float64_check(tested: Tested, reference: Reference) -> Check:
    """The leaf in float64 against autodiff in float64."""
    expected = reference.stacks[tested.position][0]
    if reference.open[tested.position].all():
        return Check("skipped", reason="not finite")
    if tested.wide is None:
        return Check("skipped", reason=tested.reason)
    if not expected.any():
        return _zero_check(tested, reference)
    spread = Spread(tested.wide, expected)
    for at, near, far in reference.moved_stacks(tested.position):
        tells = reference.roundoff > 4 * reference.unit or reference.unit == ROUNDOFF
        spread.include(at, near, far, tells)
        if spread.right.all():
            break
    return spread.check(tested, reference)


class Spread:
    """A leaf beside what its reference moves to when every input moves by a roundoff: `away`, by
    how much at most; `steady`, which entries do not jump; `low` and `high`, between which the
    others do."""

    def __init__(self, got: np.ndarray, expected: np.ndarray) -> None:
        self.got, self.expected = got, expected
        self.error = relative(got - expected, expected)
        self.low = self.high = expected
        self.away, self.steady = np.zeros(expected.shape), np.ones(expected.shape, bool)

    def include(self, at: np.ndarray, near: np.ndarray, far: np.ndarray, tells: bool) -> None:
        """Rows of the reference's stacks; whether the last two tell a jump from rounding."""
        # Where a moved row is not finite, a domain ends.
        moved, moved_far = (
            np.where(np.isfinite(row), relative(row - at, self.expected), 0.0)
            for row in (near, far)
        )
        self.away = np.maximum(self.away, moved)
        if tells:
            self.steady &= ~((moved > JUMP) & (moved_far <= 8 * moved))
        self.low = np.fmin(self.low, np.fmin(near, far))
        self.high = np.fmax(self.high, np.fmax(near, far))

    @property
    def bound(self) -> np.ndarray:
        """Of each entry's error."""
        bound = np.maximum(64 * self.away, self.away[self.steady].max(initial=0.0))
        return np.where(self.steady, np.maximum(TOLERANCE, bound), TOLERANCE)

    @property
    def right(self) -> np.ndarray:
        """The entries within their bound, or among the values around their jump."""
        slack = JUMP * (np.abs(self.expected) + FLOOR * np.abs(self.expected).max())
        between = (self.low - slack <= self.got) & (self.got <= self.high + slack)
        return (self.error <= self.bound) | (~self.steady & between)

    def check(self, tested: Tested, reference: Reference) -> Check:
        """The float64 check that follows."""
        bound, wrong = self.bound, ~self.right
        if wrong.any():
            entries = _worst(np.where(wrong, self.error / bound, 0.0))
            at = entries[0]
            return Check("fail", float(self.error[at]), float(bound[at]), "", entries)
        if self.steady.size > 1 and not self.steady.any():  # a gradient of nothing but rounding
            return Check("skipped", reason="rounding", entries=_worst(self.away)[:1])
        if (apart := ~self.steady & (self.error > TOLERANCE)).any():
            entries = _worst(np.where(apart, self.error, 0.0))
            # What jumps without a kink is rounding, such as that of 1 - y where y is nearly 1.
            inside = 0 < tested.position <= len(reference.inputs.theta)
            kink = not inside or entry_slope(tested, reference, entries[0]).kink
            return Check("skipped", reason=TIE if kink else "rounding", entries=entries)
        # A reference of which less than four digits hold is rounding, and can confirm nothing.
        if bound.max() > 1e-4:
            return Check("skipped", reason="rounding", entries=_worst(bound)[:1])
        return Check("pass", float(self.error.max()), float(bound.max()))


def _zero_check(tested: Tested, reference: Reference) -> Check:
    """The float64 check where the reference is zero throughout."""
    error, _ = measure(tested.best, reference.stacks[tested.position][0], FLOOR)
    moves = reference.moves(tested.position, 1, FLOOR)
    found = _within(error, (64 * (m + ROUNDOFF * reference.size) for m in moves))
    zero = found.verdict == "pass" and 0 < tested.position <= len(reference.inputs.theta)
    return Check("skipped", reason="zero") if zero else found


def relative(difference: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Each entry of a difference as `measure` has it: relative, infinite where not finite."""
    size = np.abs(expected) + FLOOR * np.abs(expected).max()
    size = size if size.any() else 1.0
    return np.where(np.isfinite(difference), np.abs(difference) / size, np.inf)


def _worst(excess: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """The indices of the largest entries, those above zero, at most `ENTRIES`."""
    order = np.argsort(-excess, axis=None)[:ENTRIES]
    found = (np.unravel_index(int(i), excess.shape) for i in order if excess.flat[i] > 0)
    return tuple(tuple(int(i) for i in index) for index in found)


def native_check(tested: Tested, reference: Reference, autodiff: np.ndarray) -> Check:
    """The leaf in the dtype that the user runs against autodiff in float64; `autodiff` is the
    leaf by autodiff in the user's dtype.
    """
    expected = reference.stacks[tested.position][0]
    if reference.roundoff <= ROUNDOFF:
        return Check("skipped", reason="as float64")
    if reference.open[tested.position].all():
        return Check("skipped", reason="not finite")
    native, autodiff = _in_range(tested, reference, autodiff)
    error, _ = measure(native, expected, 1)
    own, _ = measure(autodiff, expected, 1)
    unit = reference.roundoff * (1 if expected.any() else reference.size)
    own = own if np.isfinite(own) else 0.0
    # As wrong as autodiff itself is right; more than that within a grant that has a limit.
    known = 8 * unit + min(8 * own, GRANT * unit)
    firm = compared(error, max(known, 2 * min(own, 0.05)))
    if firm.verdict == "pass":
        return firm
    moves = reference.moves(tested.position, 2, 1)
    found = _within(error, (max(known + 8 * m, 2 * own) for m in moves))
    wide = max(0.1, 128 * reference.roundoff)
    if found.verdict == "fail" or found.bound <= wide:
        return found
    # Of the entries that need it, is there one whose own bound is too wide to tell?
    away = np.max([np.abs(s[2] - s[0]) for s in reference.moved_stacks(tested.position)], 0)
    size = np.abs(expected).max() or 1.0
    bound = known + 8 * away / size
    needed = np.abs(native - expected) / size > firm.bound
    if not (bound[needed] <= wide).all():
        entries = _worst(np.where(needed, bound, 0.0))
        return Check("skipped", reason=CANCELS if 8 * own > 0.1 else "rounding", entries=entries)
    return compared(error, float(bound[needed].max()))


def _in_range(
    tested: Tested, reference: Reference, autodiff: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The native leaf and autodiff's, with the expected value in place of an infinite or NaN one
    where the user's dtype can't hold it, or autodiff in that dtype has none either.
    """
    expected = reference.stacks[tested.position][0]
    largest = np.finfo(np.float16 if reference.roundoff == 2.0**-11 else np.float32).max
    excused = (np.abs(expected) > float(largest)) | ~np.isfinite(autodiff)
    put = lambda a: np.where(excused & ~np.isfinite(a), expected, a)
    return put(tested.native), put(autodiff)


def _within(error: float, bounds: Iterator[float]) -> Check:
    """The error against the largest bound. The next bound is computed only while the check
    fails: a unit within a roundoff of its kink shows in some moves of the inputs alone."""
    found = compared(error, next(bounds))
    while found.verdict == "fail" and (bound := next(bounds, None)) is not None:
        found = compared(error, max(found.bound, bound))
    return found


def entry_check(tested: Tested, reference: Reference, autodiff: np.ndarray) -> Check:
    """Each entry of the native gradient by its own conditioning, and beside autodiff's own error
    in that entry: small entries do not drown among large ones. Down to the floor of the float64
    check. It fails with the error of the worst entry, and is skipped where it finds none.
    """
    stack = reference.stacks[tested.position]
    if reference.roundoff <= ROUNDOFF or not stack[0].any():
        return NONE
    native, autodiff = _in_range(tested, reference, autodiff)
    size = np.abs(stack[0]) + FLOOR * np.abs(stack[0]).max()
    own = np.abs(autodiff - stack[0])
    error = np.abs(native - stack[0])
    own = np.where(np.isfinite(own), own, 0.0)
    # With many digits, rounding within the computation adds up to more than its inputs' show.
    slack = 8 if reference.roundoff > 2.0**-12 else 64
    known = slack * reference.roundoff * size
    known += np.minimum(slack * own, GRANT * reference.roundoff * size)
    away = np.zeros(stack[0].shape)
    for moved in reference.moved_stacks(tested.position):
        away = np.fmax(away, np.abs(moved[2] - moved[0]))
        with np.errstate(invalid="ignore"):
            allowed = np.maximum(known + slack * away, 2 * own)
            excess = error / allowed
        if not excess.max() > 1:
            return NONE
    entries = _worst(np.where(excess > 1, excess, 0.0))
    i = entries[0]
    return Check("fail", float(error[i] / size[i]), float(allowed[i] / size[i]), ENTRY, entries)


def differences_checks(leaves: Sequence[Tested], reference: Reference) -> list[Check]:
    """Each leaf along a direction of its own, `Reference.directions`.

    First all leaves move at once, and the slope must be the sum of what each predicts: an error
    of one would have to be undone by another's. A leaf that this leaves open moves alone.
    """
    inside = [leaf for leaf in leaves if 0 < leaf.position <= len(reference.inputs.theta)]
    grads = {
        leaf.position: reference.stacks[leaf.position][0] if leaf.wide is None else leaf.wide
        for leaf in inside
    }
    predicted = Predicted(reference, grads)
    first = predicted.moved(tuple(grads), steps(reference.unit)[0]) if grads else {}
    found = {
        j: check if check.verdict == "pass" else predicted.alone(j) for j, check in first.items()
    }
    return [found.get(leaf.position, NONE) for leaf in leaves]


class Predicted(NamedTuple):
    """The gradients that predict the slopes of f, by their positions."""

    reference: Reference
    grads: dict[int, np.ndarray]

    def moved(
        self, positions: tuple[int, ...], first: float, tied: bool = False
    ) -> dict[int, Check]:
        """The check of each of these leaves where they move together, from a step of `first`."""
        # A slope of which less than four digits hold confirms nothing; fewer, where f has few.
        firm = min(max(1e-4, 20 * self.reference.unit ** (1 / 3)), 0.1)
        slope = self.reference.along(positions, first, tied)
        along = self.reference.directions(tied)
        shares = {j: float((along[j - 1] * self.grads[j]).sum()) for j in positions}
        rest = slope.value - sum(shares.values())
        return {j: _differences_check(slope, rest, shares[j], firm) for j in positions}

    def alone(self, j: int) -> Check:
        """The check where one leaf moves alone: from both first steps, unless the first decides;
        at a kink with its ties kept, where there are any."""
        found = NONE
        for first in steps(self.reference.unit):
            check = self.moved((j,), first)[j]
            if found.verdict == "skipped" or check.verdict == "pass":
                found = check
            if check.verdict == "pass" or check.reason == KINK:
                break
        if found.reason == KINK and self.reference.directions(True)[j - 1].any():
            tied = self.moved((j,), steps(self.reference.unit)[0], tied=True)[j]
            found = tied if tied.reason != KINK else found
        return found


def _differences_check(slope: Slope, difference: float, share: float, firm: float) -> Check:
    """`difference` is how far the slope is from what is predicted, `share` the leaf's part; a
    bound above `firm` is too wide to tell."""
    size = max(abs(share), abs(share + difference))
    if size == 0 or not np.isfinite(slope.bound):
        return Check("skipped", reason="zero" if size == 0 else "not finite")
    error, bound = abs(difference) / size, slope.bound / size
    reason = KINK if slope.kink else "rounding"
    if error <= bound and bound > firm:
        return Check("skipped", reason=reason)
    return compared(error, bound)._replace(reason=KINK if slope.kink else "")


def entry_slope(
    tested: Tested, reference: Reference, index: tuple[int, ...], first: float | None = None
) -> Slope:
    """The slope of f along one entry of the leaf alone."""
    directions = along_entry(reference.inputs.theta, tested.position - 1, index)
    first = steps(reference.unit)[0] if first is None else first
    return reference.slope(directions, first * reference.norms[tested.position - 1])


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
            doubts.append((_values(tested.best, expected, at) + note, at))
        return "inconclusive", *doubts[0]
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
    tested: Tested, expected: np.ndarray, checks: tuple[Check, Check, Check], custom: Sequence[str]
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
        if native.verdict == "skipped" and native.reason in ("rounding", CANCELS, LOSES):
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
