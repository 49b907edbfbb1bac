"""The entries of a leaf at which the reference is not finite, one by one.

Of a gradient, differences decide: autodiff is NaN at a zero row of a norm, where a rule of one's
own is not. What is returned must be infinite where the reference is. Where neither autodiff nor
differences are finite, an entry is not judged.
"""

from typing import Any, NamedTuple

import numpy as np

from fnn.verify._checks import Tested, entry_slope, steps
from fnn.verify._leaf import TOLERANCE, joined, plainly
from fnn.verify._reference import Reference

MOST = 64
"""How many entries are judged. The others count as unknown."""
COARSE = 1e-2
"""A slope whose bound is more than this part of the leaf's size confirms nothing."""


class Opened(NamedTuple):
    """What is known of a leaf's open entries: the first wrong one, in words, and its index; how
    many can't be judged, and whether a judged one is other than zero."""

    wrong: str = ""
    at: tuple[int, ...] = ()
    unknown: int = 0
    nonzero: bool = False

    def beside(self, verdict: str, note: str, index: tuple[int, ...], open: np.ndarray) -> Any:
        """The verdict of the other entries, its note and index, with these."""
        if self.wrong:
            return "fail", joined(self.wrong, note), self.at
        left = f"{self.unknown} of {open.size} entries are not judged: the reference and its "
        left = f"{left}differences are not finite there" if self.unknown else ""
        if open.all() and (self.nonzero or self.unknown):
            return "inconclusive" if self.unknown == open.size else "pass", left, index
        return verdict, joined(note, left), index


def judge(leaf: Tested, reference: Reference) -> Tested:
    """The leaf with what is known of its open entries, which become zero as in the reference."""
    if not (open := reference.open[leaf.position]).any():
        return leaf
    wide = None if leaf.wide is None else np.where(open, 0.0, leaf.wide)
    closed = leaf._replace(native=np.where(open, 0.0, leaf.native), wide=wide)
    return closed._replace(opened=_judged(leaf, reference))


def _judged(leaf: Tested, reference: Reference) -> Opened:
    """The leaf's open entries, up to `MOST` of them."""
    places = [tuple(map(int, at)) for at in np.argwhere(reference.open[leaf.position])]
    found = Opened(unknown=max(len(places) - MOST, 0))
    inside = 0 < leaf.position <= len(reference.inputs.theta)
    for at in places[:MOST]:
        verdict, expected = (_by_slope if inside else _returned)(leaf, reference, at)
        if verdict == "wrong":
            got = leaf.best[at] if np.isfinite(leaf.native[at]) else leaf.native[at]
            where = f"at {list(at)} " if at else ""
            return found._replace(wrong=f"{where}expected {expected}, got {plainly(got)}", at=at)
        found = found._replace(
            unknown=found.unknown + (verdict == "unknown"),
            nonzero=found.nonzero or (verdict == "right" and expected != "0"),
        )
    return found


def _returned(leaf: Tested, reference: Reference, at: tuple[int, ...]) -> tuple[str, str]:
    expected = reference.centre[leaf.position][at]
    same = leaf.best[at] == leaf.native[at] == expected
    return "unknown" if np.isnan(expected) else "right" if same else "wrong", plainly(expected)


def _by_slope(leaf: Tested, reference: Reference, at: tuple[int, ...]) -> tuple[str, str]:
    """Wrong is what the differences from both first steps refute."""
    size = np.abs(reference.stacks[leaf.position][0]).max()
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
            found.append(("wrong", f"{plainly(low)} by differences, where autodiff is not finite"))
        else:
            found.append(("unknown" if bound > COARSE * scale else "right", f"{low or high:.3g}"))
    return min(found, key=lambda one: ("right", "unknown", "wrong").index(one[0]))
