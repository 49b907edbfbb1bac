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

The entries of a leaf at which the reference is not finite are judged one by one. Of a gradient,
differences decide: autodiff is NaN at a zero row of a norm, where a rule of one's own is not. What
is returned must be infinite where the reference is. Where neither autodiff nor differences are
finite, an entry is not judged.

What the checks of a leaf add up to.

"fail" where the float64 or the native check fails. "inconclusive" where that rests on no firm
reference: one that is zero or mere rounding; a tie or border where autodiff or the gradient under
test takes a slope between the two sides; a native check that could not tell; finite differences
that contradict autodiff. Else "pass".

A gradient that can't be had in float64 (a kernel for float32, say) passes by its native check,
against autodiff in float64.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from fnn.verify import _leaf
from fnn.verify._call import ROUNDOFF, Function
from fnn.verify._leaf import FLOOR, NONE, TOLERANCE, Check, Checks, compared, measure, values_at
from fnn.verify._reference import Reference, Slope, along_entry

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
MOST = 64
"""How many entries are judged. The others count as unknown."""
TINY = float(np.finfo(float).tiny)
COARSE = 1e-2
"""A slope whose bound is more than this part of the leaf's size confirms nothing."""


def steps(unit: float) -> tuple[float, float]:
    """First steps of finite differences, relative to a leaf's norm, for a function of this
    roundoff: few kinks are within the first; the second is for where the first is lost in
    rounding.
    """
    return unit ** (17 / 53), unit ** (12 / 53)


Opened = tuple[str, str, tuple[int, ...]]
"""What is known of the entries of a leaf at which the reference is not finite: the verdict of the
leaf, where they decide it, a note, and the index of the first wrong one."""


class Tested(NamedTuple):
    """One leaf of the gradient under test.

    `position` is its place in the reference's stacks: 0 is the value, the arrays of theta follow.
    Positions behind theta's are arrays that the function returns. `native` is what the user runs,
    `expected` the reference in float64, `autodiff` the same in the dtype that the user runs. `wide`
    is the leaf computed in float64, or None, for the `reason`. `opened` is what is known of the
    entries at which the reference is not finite.
    """

    name: str
    position: int
    native: np.ndarray
    expected: np.ndarray
    autodiff: np.ndarray
    wide: np.ndarray | None
    reason: str
    opened: Opened = ("", "", ())

    @property
    def best(self) -> np.ndarray:
        """The leaf in float64, or else as the user runs it."""
        return self.native if self.wide is None else self.wide


def float64_check(tested: Tested, reference: Reference) -> Check:
    """The leaf in float64 against autodiff in float64."""
    expected = tested.expected
    if reference.open[tested.position].all():
        return Check("skipped", reason="not finite")
    if tested.wide is None:
        return Check("skipped", reason=tested.reason)
    if not expected.any():
        return _zero_check(tested, reference)
    error, slack = _leaf.relative(tested.wide - expected, expected), JUMP * _leaf.scale(expected)
    low = high = expected
    away, steady = np.zeros(expected.shape), np.ones(expected.shape, bool)
    # Whether rows of the stacks tell a jump from rounding.
    tells = reference.roundoff > 4 * reference.unit or reference.unit == ROUNDOFF
    for at, *rows in reference.moved_stacks(tested.position):
        # Where a moved row is not finite, a domain ends.
        moved, far = (np.where(np.isfinite(r), _leaf.relative(r - at, expected), 0.0) for r in rows)
        away = np.maximum(away, moved)
        steady &= ~(tells & (moved > JUMP) & (far <= 8 * moved))
        low, high = np.fmin(low, np.fmin(*rows)), np.fmax(high, np.fmax(*rows))
        bound = np.maximum(64 * away, away[steady].max(initial=0.0))
        bound = np.where(steady, np.maximum(TOLERANCE, bound), TOLERANCE)
        between = ~steady & (low - slack <= tested.wide) & (tested.wide <= high + slack)
        wrong = ~(between | (error <= bound))
        if not wrong.any():
            break
    if wrong.any():
        entries = _worst(np.where(wrong, error / bound, 0.0))
        return Check("fail", float(error[entries[0]]), float(bound[entries[0]]), "", entries)
    if steady.size > 1 and not steady.any():  # a gradient of nothing but rounding
        return Check("skipped", reason="rounding", entries=_worst(away)[:1])
    if (apart := ~steady & (error > TOLERANCE)).any():
        entries = _worst(np.where(apart, error, 0.0))
        # What jumps without a kink is rounding, such as that of 1 - y where y is nearly 1.
        slope = entry_slope(tested, reference, entries[0])
        kink = slope is None or slope.kink
        return Check("skipped", reason=TIE if kink else "rounding", entries=entries)
    # A reference of which less than four digits hold is rounding, and can confirm nothing.
    if bound.max() > 1e-4:
        return Check("skipped", reason="rounding", entries=_worst(bound)[:1])
    return Check("pass", float(error.max()), float(bound.max()))


def _zero_check(tested: Tested, reference: Reference) -> Check:
    """The float64 check where the reference is zero throughout."""
    stacks = reference.moved_stacks(tested.position)
    moves = max(np.abs(near - at).max() for at, near, _ in stacks)
    error = np.abs(tested.best).max() if np.isfinite(tested.best).all() else np.inf
    found = compared(float(error), float(64 * (moves + ROUNDOFF * reference.size)))
    zero = found.verdict == "pass" and reference.inside(tested.position)
    return Check("skipped", reason="zero") if zero else found


def _worst(excess: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """The indices of the largest entries, those above zero, at most `ENTRIES`."""
    order = np.argsort(-excess, axis=None)[:ENTRIES]
    found = (np.unravel_index(int(i), excess.shape) for i in order if excess.flat[i] > 0)
    return tuple(tuple(int(i) for i in index) for index in found)


def native_check(tested: Tested, reference: Reference, level: float) -> Check:
    """The leaf in the dtype that the user runs against autodiff in float64.

    Each entry has its own conditioning, and stands beside autodiff's own error in it, down to
    this part, `level`, of the largest: at 1 the leaf is measured as a whole, below it small
    entries do not drown among large ones.
    """
    expected, unit = tested.expected, reference.roundoff
    if unit <= ROUNDOFF:
        return Check("skipped", reason="as float64")
    if reference.open[tested.position].all():
        return Check("skipped", reason="not finite")
    native, autodiff = _in_range(tested, unit)
    whole = np.abs(expected).max() or reference.size or 1.0
    size, both = (np.maximum(np.abs(expected) + n * whole, TINY) for n in (level, 1))
    above = lambda a: np.maximum(a, level * (a / both).max() * both)
    error = np.where(np.isfinite(native), np.abs(native - expected), np.inf)
    own = np.abs(autodiff - expected)
    own = above(np.where(np.isfinite(own), own, 0.0))
    # With many digits, rounding within the computation adds up to more than its inputs' show.
    slack = 8 if level == 1 or unit > 2.0**-12 else 64
    # As wrong as autodiff itself is right; more than that within a grant that has a limit.
    known = slack * unit * size + np.minimum(slack * own, GRANT * unit * size)
    firm = strict = np.maximum(known, 2 * np.minimum(own, 0.05 * size))
    away = np.zeros(expected.shape)
    for moved in () if (error <= firm).all() else reference.moved_stacks(tested.position):
        away = np.fmax(away, np.abs(moved[2] - moved[0]))
        strict = known + slack * above(away)
        if (error <= np.maximum(strict, 2 * own)).all():
            break
    loose = np.maximum(strict, 2 * own)
    # Of the entries that need it, is there one whose own bound is too wide to tell?
    limit = max(0.1, 128 * unit) * both
    hidden = (error > firm) & (loose > limit)
    if (error <= loose).all() and (wide := np.where(hidden & (strict > limit), strict, 0)).any():
        cancels = (8 * own / size).max() > 0.1
        return Check("skipped", reason=CANCELS if cancels else "rounding", entries=_worst(wide))
    bound = np.where(hidden, strict, loose)
    at = (_worst(error / bound) or ((0,) * error.ndim,))[0]
    entries = _worst(np.where(error > bound, error / bound, 0.0))
    found = compared(float(error[at] / size[at]), float(bound[at] / size[at]))
    return found._replace(entries=entries)


def _in_range(tested: Tested, unit: float) -> Any:
    """The native leaf and autodiff's, with the expected value in place of an infinite or NaN one
    where the user's dtype can't hold it, or autodiff in that dtype has none either."""
    largest = float(np.finfo(np.float16 if unit == 2.0**-11 else np.float32).max)
    excused = (np.abs(tested.expected) > largest) | ~np.isfinite(tested.autodiff)
    put = lambda a: np.where(excused & ~np.isfinite(a), tested.expected, a)
    return put(tested.native), put(tested.autodiff)


def differences_checks(leaves: Sequence[Tested], reference: Reference) -> list[Check]:
    """Each leaf along a direction of its own, `Reference.directions`.

    First all leaves move at once, and the slope must be the sum of what each predicts: an error
    of one would have to be undone by another's. A leaf that this leaves open moves alone: from
    both first steps, unless the first decides; at a kink with its ties kept, where there are any.
    """
    known = lambda leaf: leaf.expected if leaf.wide is None else leaf.wide
    grads = {a.position: known(a) for a in leaves if reference.inside(a.position)}
    first, second = steps(reference.unit)

    def moved(positions: Collection[int], step: float, tied: bool = False) -> dict[int, Check]:
        slope, along = reference.along(positions, step, tied), reference.directions(tied)
        shares = {j: float((along[j - 1] * grads[j]).sum()) for j in positions}
        rest = slope.value - sum(shares.values())
        return {j: _differences_check(slope, rest, shares[j], reference.unit) for j in positions}

    found = moved(grads, first) if grads else {}
    for j in [j for j, check in found.items() if check.verdict != "pass"]:
        found |= moved([j], first)
        if found[j].verdict != "pass":
            kink = found[j].reason == KINK
            again = moved([j], first if kink else second, tied=kink)
            found |= again if again[j].verdict != "skipped" and again[j].reason != KINK else {}
    return [found.get(leaf.position, NONE) for leaf in leaves]


def _differences_check(slope: Slope, difference: float, share: float, unit: float) -> Check:
    """`difference` is how far the slope is from what is predicted, `share` the leaf's part, `unit`
    the roundoff of f."""
    size = max(abs(share), abs(share + difference))
    if size == 0 or not np.isfinite(slope.bound):
        return Check("skipped", reason="zero" if size == 0 else "not finite")
    error, bound = abs(difference) / size, slope.bound / size
    # A slope of which less than four digits hold confirms nothing; fewer, where f has few.
    if error <= bound > min(max(1e-4, 20 * unit ** (1 / 3)), 0.1):
        return Check("skipped", reason=KINK if slope.kink else "rounding")
    return compared(error, bound)._replace(reason=KINK if slope.kink else "")


def entry_slope(leaf: Tested, reference: Reference, at: Any, first: float = 0.0) -> Any:
    """The slope of f along one entry of the leaf alone; None of what is returned."""
    if not reference.inside(leaf.position):
        return None
    directions = along_entry(reference.inputs.theta, leaf.position - 1, at)
    first = first or steps(reference.unit)[0]
    return reference.slope(directions, first * reference.norms[leaf.position - 1])


def decide(tested: Tested, reference: Reference, checks: Checks, custom: Function) -> Any:
    """The verdict of a leaf, the reason, and the index of the worst entry; custom() are the
    functions with derivative rules of their own that autodiff has run.
    """
    float64, native, differences = checks
    expected = tested.expected
    _, index = measure(tested.best, expected, FLOOR)
    if float64.verdict == "fail":
        judged = []
        contradicted = differences.verdict == "fail" and differences.reason != KINK
        for at in float64.entries or (index,):
            slope = entry_slope(tested, reference, at)
            verdict, note = _against_slope(float(tested.best[at]), float(expected[at]), slope)
            if verdict == "inconclusive" and slope and slope.kink and contradicted:
                verdict, note = "fail", f"{note}; finite differences contradict it"
            judged.append((verdict, values_at(at, tested.best, expected) + note, at))
            if verdict == "fail":
                return judged[-1]
        return judged[0]
    if native.verdict == "fail":
        index = native.entries[0]
        note = f"in the dtype that runs: {values_at(index, tested.native, expected)}"
        return "fail", note, index
    doubt = _doubt(tested, checks, custom)
    return "inconclusive" if doubt else "pass", doubt, index


def _against_slope(got: float, wanted: float, slope: Slope | None) -> tuple[str, str]:
    """What the slope along an entry says of the difference between `got` and autodiff's."""
    if slope is not None and slope.kink:
        low, high = sorted((slope.left, slope.right))
        slack = 1e-6 * max(abs(low), abs(high))
        between = low - slack <= got <= high + slack
        # Autodiff on one side and this on the other contradict each other. Where either splits
        # the tie (a maximum's two arguments share it, |x| has 0 at 0), both are right.
        sided = [min(abs(d - low), abs(d - high)) <= slack for d in (wanted, got)]
        note = f"; a tie or border, with slopes {low:.6g} and {high:.6g}"
        return ("inconclusive" if between and not all(sided) else "fail"), note
    if slope and abs(slope.value - got) <= slope.bound < abs(slope.value - wanted):
        note = "; finite differences agree with what is under test, not with autodiff"
        return "inconclusive", note
    return "fail", ""


def _doubt(tested: Tested, checks: Checks, custom: Function) -> str:
    """Why checks of which none found an error do not add up to a pass; "" where they do."""
    float64, native, differences = checks
    why, narrow = float64.reason, tested.wide is None and float64.reason == tested.reason
    rule = lambda: f"autodiff ran the rule of {', '.join(custom())}, and finite differences"
    if differences.verdict == "fail":
        itself = "if that is what is under test, it was checked against itself; hand in reference="
        other = "finite differences contradict autodiff: is a rule overridden?"
        which = f"{rule()} contradict it: {itself}, the function without the rule"
        return which if custom() else other
    if float64.verdict != "skipped":
        few = "at these inputs this dtype holds too few digits to tell"
        note = f"right in float64, but the native check is skipped: {native.reason}; {few}"
        return note if native.reason in ("rounding", CANCELS, LOSES) else ""
    at = float64.entries[0] if float64.entries else measure(tested.best, tested.expected, FLOOR)[1]
    values = values_at(at, tested.best, tested.expected)
    known = {
        TIE: f"{values}; a tie or border, where more than one value is right",
        CANCELS: f"{values}; autodiff itself cancels here",
        "zero": "the reference is zero everywhere: right and missing look alike",
    }
    if why in known or not narrow:
        return known.get(why, f"the float64 reference can't decide: {why}")
    if native.verdict == "skipped":
        return f"float64: {why}; the native check is skipped: {native.reason}"
    told = differences.verdict != "skipped" or differences.reason == "none" or not custom()
    return "" if told else f"{rule()} can't confirm it: {differences.reason}"


# Entries at which the reference is not finite.


def judge(leaf: Tested, reference: Reference) -> Tested:
    """The leaf with what is known of its open entries, which become zero as in the reference."""
    open = reference.open[leaf.position]
    if not open.any():
        return leaf
    one = _by_slope if reference.inside(leaf.position) else _returned
    places = [tuple(map(int, at)) for at in np.argwhere(open)]
    found = {at: one(leaf, reference, at) for at in places[:MOST]}
    wide = None if leaf.wide is None else np.where(open, 0.0, leaf.wide)
    native = np.where(open, 0.0, leaf.native)
    return leaf._replace(native=native, wide=wide, opened=_opened(leaf, open, found))


def _opened(leaf: Tested, open: np.ndarray, found: dict[Any, tuple[str, str]]) -> Opened:
    """What the entries, judged one by one, say of the leaf."""
    for at, (verdict, expected) in found.items():
        if verdict == "wrong":
            got = leaf.best[at] if np.isfinite(leaf.native[at]) else leaf.native[at]
            where = f"at {list(at)} " * bool(at)
            return "fail", f"{where}expected {expected}, got {got:.6g}", at
    unknown = int(open.sum()) - [verdict for verdict, _ in found.values()].count("right")
    left = "entries are not judged: the reference and its differences are not finite there"
    note = f"{unknown} of {open.size} {left}" if unknown else ""
    telling = open.all() and (unknown or any(expected != "0" for _, expected in found.values()))
    whole = "inconclusive" if unknown == open.size else "pass"
    return whole if telling else "", note, ()


def _returned(leaf: Tested, reference: Reference, at: tuple[int, ...]) -> tuple[str, str]:
    expected = reference.centre[leaf.position][at]
    same = leaf.best[at] == leaf.native[at] == expected
    return "unknown" if np.isnan(expected) else "right" if same else "wrong", f"{expected:.6g}"


def _by_slope(leaf: Tested, reference: Reference, at: tuple[int, ...]) -> tuple[str, str]:
    """Wrong is what the differences from both first steps refute."""
    size = np.abs(leaf.expected).max()
    found = []
    for first in steps(reference.unit):
        slope = entry_slope(leaf, reference, at, first)
        low, high = sorted((slope.left, slope.right)) if slope.kink else (slope.value, slope.value)
        scale = max(abs(low), abs(high), size)
        bound = 1e-6 * scale if slope.kink else slope.bound
        known = (leaf.best[at], TOLERANCE), (leaf.native[at], 64 * reference.roundoff)
        far = [max(low - g, g - high) > bound + part * scale for g, part in known]
        bad = not np.isfinite([g for g, _ in known]).all()
        if not np.isfinite(slope.bound) or (slope.kink and bad):
            found.append(("unknown", ""))
        elif bad or any(far):
            found.append(("wrong", f"{low:.6g} by differences, where autodiff is not finite"))
        else:
            found.append(("unknown" if bound > COARSE * scale else "right", f"{low or high:.3g}"))
    return min(found, key=lambda one: ("right", "unknown", "wrong").index(one[0]))
