"""What a check would have refused: bugs planted into the gradient that it was given."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fnn.verify.leaf import FLOOR, Leaf, measure

WIDTH = 98
"""Columns of a line, at most."""


class Planted(NamedTuple):
    """One bug planted into one leaf, and whether the check would have refused it.

    >>> Planted("sign", "dx", seen=True).bug
    'sign'
    """

    bug: str
    leaf: str
    seen: bool


@dataclass(frozen=True)
class Power:
    """What a check can see. `smallest` has for each leaf the least relative error it refuses:
    of all entries at once, each by its own amount.

    >>> print(Power((Planted("sign", "dx", True),), {"dx": 1e-9}))
    power: 1 of 1 planted bugs seen
      sign                               1 leaves  seen
    smallest relative error seen
      dx                               1.0e-09
    """

    planted: tuple[Planted, ...]
    smallest: dict[str, float]

    def __str__(self) -> str:
        """A line per kind of bug and per leaf."""
        seen = sum(p.seen for p in self.planted)
        lines = [f"power: {seen} of {len(self.planted)} planted bugs seen"]
        for bug in dict.fromkeys(p.bug for p in self.planted):
            tried = [p for p in self.planted if p.bug == bug]
            missed = [p.leaf for p in tried if not p.seen]
            what = f"missed in {', '.join(missed)}" if missed else "seen"
            text = f"{bug:32} {len(tried):3} leaves  {what}"
            lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
        lines.append("smallest relative error seen")
        lines += [f"  {name:32} {error:.1e}" for name, error in self.smallest.items()]
        return "\n".join(lines)


def planted_bugs(g: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Bugs for a gradient g: the name, and g with the bug in it.

    >>> dict(planted_bugs(np.array([1.0, 2.0])))["sign"]
    array([-1., -2.])
    """
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


def power_of(leaves: Sequence[Leaf]) -> Power:
    """The power of the float64 check of these leaves: bugs are planted into each finite leaf.
    Where that check was skipped, nothing is seen.

    >>> from fnn.verify.leaf import NONE, compared
    >>> g = np.array([1.0, 2.0])
    >>> leaf = Leaf("dx", "pass", compared(0.0, 1e-9), NONE, NONE, got=g, expected=g)
    >>> all(planted.seen for planted in power_of([leaf]).planted if "float32" not in planted.bug)
    True
    """
    tried = [leaf for leaf in leaves if leaf.got.size]
    planted, smallest = [], {}
    for leaf in tried:
        got, expected = leaf.got, leaf.expected
        if not (np.isfinite(got).all() and np.isfinite(expected).all()):
            smallest[leaf.name] = np.inf
            continue

        def seen(g: np.ndarray, leaf: Leaf = leaf, expected: np.ndarray = expected) -> bool:
            ran = leaf.float64.verdict != "skipped"
            return ran and not measure(g, expected, FLOOR)[0] <= leaf.float64.bound

        for bug, g in planted_bugs(got):
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
