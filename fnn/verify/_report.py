"""What a check would have refused: bugs planted into the gradient that it was given.

What a checker found, as a table.

What the inputs of a check can't show, in words.
"""

import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn import _html
from fnn.verify._call import Inputs, named_leaves, row_of
from fnn.verify._leaf import FLOOR, Check, Leaf, measure


@dataclass(frozen=True)
class Power:
    """What a check can see: the planted bugs that it refuses, and those that it misses. `smallest`
    has for each leaf the least relative error it refuses: of all entries at once, each by its own
    amount.
    """

    seen: tuple[str, ...]
    missed: tuple[str, ...]
    smallest: dict[str, float]

    def __str__(self) -> str:
        """The bugs that are missed, and a line per leaf."""
        number = len(self.seen) + len(self.missed)
        lines = [f"power: {len(self.seen)} of {number} planted bugs seen"]
        lines += _wrap(f"  missed: {', '.join(self.missed)}") if self.missed else []
        rows = [f"  {name:32} {error:.1e}" for name, error in self.smallest.items()]
        return "\n".join([*lines, "smallest relative error seen", *rows])


BUGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sign": lambda g: -g,
    "zero": lambda g: 0 * g,
    "twice": lambda g: 2 * g,
    "half": lambda g: g / 2,
    "NaN in one entry": lambda g: np.where(_largest(g), np.nan, g),
    "rounded to bfloat16": lambda g: np.asarray(jnp.asarray(g, jnp.bfloat16), g.dtype),
    "rounded to float32": lambda g: g.astype(np.float32).astype(g.dtype),
    "largest entry negated": lambda g: np.where(_largest(g), -g, g),
    "shifted by one entry": lambda g: np.roll(g, 1),
    "last row zero": lambda g: np.concatenate([g[:-1], 0 * g[-1:]]) if g.ndim > 1 else g,
    "last column zero": lambda g: (
        np.concatenate([g[..., :-1], 0 * g[..., -1:]], -1) if g.ndim > 1 else g
    ),
    "transposed": lambda g: g.T if g.T.shape == g.shape else g,
}
"""What a gradient is with a bug in it; itself where it can't have this one."""


def _largest(g: np.ndarray) -> Any:
    return np.abs(g) == np.abs(g).max()


def power_of(leaves: Sequence[Leaf]) -> Power:
    """The power of the float64 check of these leaves: bugs are planted into each finite leaf.
    Where that check was skipped, nothing is seen.
    """
    random = np.random.default_rng(0)
    tried = [leaf for leaf in leaves if leaf.got.size]
    planted: dict[bool, list[str]] = {True: [], False: []}
    smallest = {}
    for leaf in tried:
        got, expected = leaf.got, leaf.expected
        known = np.isfinite(got).all() and np.isfinite(expected).all()
        bound = leaf.float64.bound if known and leaf.float64.verdict != "skipped" else np.inf
        swaps = {f"swapped with {o.name}": o.got for o in tried if o.got.shape == got.shape}
        for bug, g in ({name: plant(got) for name, plant in BUGS.items()} | swaps).items():
            if known and not np.array_equal(g, got):
                seen = not measure(g, expected, FLOOR)[0] <= bound
                planted[seen].append(f"{bug} in {leaf.name}")
        noise = random.uniform(-1, 1, expected.shape)
        error, _ = measure(expected * (1 + noise / np.abs(noise).max()), expected, FLOOR)
        smallest[leaf.name] = bound / error if error > bound else np.inf
    return Power(tuple(planted[True]), tuple(planted[False]), smallest)


_wrap = partial(textwrap.wrap, width=100, subsequent_indent="    ")


@dataclass(frozen=True)
class Report:
    """What a checker found. `str(report)` is a table with a line per leaf.

    name      of the checker, such as "check_layer"
    leaves    from input to output; backpropagation reaches the last one first
    dtype     what the user runs, and the native check ran
    place     for fnn's networks, the first wrong layer counted from the output
    inputs    (params, x), or the arguments, where a search found a wrong gradient
    blind     what the inputs can't show

    >>> import fnn, jax.numpy as jnp
    >>> from fnn import verify
    >>> print(verify.check_layer(fnn.tanh, (), jnp.array([[0.5, 1.0]])))  # doctest: +ELLIPSIS
    check_layer: pass
      leaf  float64            float32            differences        verdict
      dx    ... < 1e-09    ... < ...    ... < ...    pass
      these inputs can't show: no zeros, no ties, only |values| < 3
    """

    name: str
    leaves: tuple[Leaf, ...]
    dtype: str = "float32"
    place: str = ""
    inputs: tuple[Any, ...] | None = None
    blind: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The leaves' verdicts together: "fail" if one fails, else "inconclusive" if one is, or
        if there is no leaf, else "pass".

        >>> Report("check_layer", ()).verdict
        'inconclusive'
        """
        found = {leaf.verdict for leaf in self.leaves} or {"inconclusive"}
        return next(v for v in ("fail", "inconclusive", "pass") if v in found)

    @property
    def worst(self) -> float:
        """The largest relative float64 difference of all leaves.

        >>> Report("check_layer", ()).worst
        0.0
        """
        return max((leaf.float64.error for leaf in self.leaves), default=0.0)

    @property
    def errors(self) -> tuple[float | None, ...]:
        """The largest error of each check: float64, native, differences. None for a check that
        was skipped at every leaf.

        >>> import fnn, jax.numpy as jnp
        >>> from fnn import verify
        >>> [e < 1e-5 for e in verify.check_layer(fnn.tanh, (), jnp.array([[0.5, 1.0]])).errors]
        [True, True, True]
        """
        ran = lambda i: (leaf.checks[i] for leaf in self.leaves)
        errors = ([c.error for c in ran(i) if c.verdict != "skipped"] for i in range(3))
        return tuple(max(found, default=None) for found in errors)

    @cached_property
    def power(self) -> Power:
        """What this check would have seen: bugs planted into the gradient under test.

        >>> import fnn, jax.numpy as jnp
        >>> from fnn import verify
        >>> report = verify.check_layer(fnn.tanh, (), jnp.array([[0.5, 1.0]]))
        >>> report.power.smallest["dx"] < 1e-8
        True
        """
        return power_of(self.leaves)

    def raise_for_verdict(self) -> None:
        """Raise AssertionError, with the table, unless the verdict is "pass".

        >>> import fnn, jax.numpy as jnp
        >>> from fnn import verify
        >>> verify.check_layer(fnn.tanh, (), jnp.array([[0.5, 1.0]])).raise_for_verdict()
        """
        if self.verdict != "pass":
            raise AssertionError("\n" + str(self))

    def to_json(self) -> str:
        """The verdict and the leaves as JSON, for continuous integration. A check that was skipped
        has no error; infinite numbers are null.

        >>> json.loads(Report("check_layer", ()).to_json())["verdict"]
        'inconclusive'
        """
        of = lambda what, *names: {name: getattr(what, name) for name in names}
        checks = lambda leaf: {n: _as_dict(check) for n, check in leaf.checks._asdict().items()}
        leaves = [of(a, "name", "verdict", "note", "index") | checks(a) for a in self.leaves]
        own = of(self, "name", "verdict", "dtype", "place", "blind")
        return json.dumps(own | {"leaves": leaves})

    def _repr_html_(self) -> str:
        """The table in a notebook."""
        heads = ("leaf", "float64", self.dtype, "differences", "verdict", "")
        rows = [(leaf.name, *leaf.checks, leaf.verdict, leaf.note) for leaf in self.leaves]
        blind = f"these inputs can't show {', '.join(self.blind)}" if self.blind else ""
        more = blind if self.verdict == "pass" else self.place
        title = ": ".join(filter(None, (self.name, self.verdict, more)))
        return _html.table(title, heads, *rows)

    def __str__(self) -> str:
        """The table."""
        width = min(max([len(leaf.name) for leaf in self.leaves] + [4]), 28)
        row = lambda *cells: "  {:{w}}  {:17}  {:17}  {:17}  {}".format(*map(str, cells), w=width)
        lines = [f"{self.name}: {self.verdict}"]
        lines += _wrap(f"  {self.place}") if self.place else []
        lines.append(row("leaf", "float64", self.dtype, "differences", "verdict"))
        for leaf in self.leaves:
            name = leaf.name if len(leaf.name) <= width else ".." + leaf.name[2 - width :]
            lines += [row(name, *leaf.checks, leaf.verdict), *_wrap(f"    {leaf.note}")]
        if self.inputs is not None:
            lines.append("  inputs")
            pair = dict(zip(("params", "x"), self.inputs, strict=False))
            named = pair if self.name == "search" else {"args": self.inputs}
            lines += [f"    {name} = {pasted(a)}" for name, a in named_leaves(named).items()]
        if self.blind and self.verdict == "pass":
            lines += _wrap(f"  these inputs can't show: {', '.join(self.blind)}")
        return "\n".join(lines)


def _as_dict(check: Check) -> dict[str, Any]:
    if check.verdict == "skipped":
        return {"verdict": "skipped", "reason": check.reason}
    finite = lambda number: float(number) if np.isfinite(number) else None
    return {"verdict": check.verdict, "error": finite(check.error), "bound": finite(check.bound)}


def pasted(leaf: Any) -> str:
    """An array as Python source."""
    if not hasattr(leaf, "dtype"):
        return repr(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return f"jax.random.wrap_key_data({np.asarray(jax.random.key_data(leaf)).tolist()})"
    return f"jnp.array({np.asarray(leaf).tolist()}, jnp.{leaf.dtype})"


def blind_spots(inputs: Inputs) -> tuple[str, ...]:
    """What a bug may hide behind at these inputs. `fnn.verify.search` looks there."""
    theta = [np.asarray(a, np.float64) for a in inputs.theta if a.size]
    values = row_of(theta)
    sizes = [n for a in theta for n in a.shape]
    only = lambda value: any(a.size > 1 and (a == value).all() for a in theta)
    found = {
        "an array of ones only": only(1),
        "an array of zeros only": only(0),
        "no zeros": (values != 0).all(),
        "no ties": len(np.unique(values)) == len(values) > 1,
        "only |values| < 3": (np.abs(values) < 3).all(),
        "all sizes equal": len(sizes) > 1 and len(set(sizes)) == 1,
    }
    return tuple(name for name, holds in found.items() if holds)
