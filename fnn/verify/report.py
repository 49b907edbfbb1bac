"""What a checker found, as a table."""

import html
import json
import textwrap
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.verify.leaf import Check, Leaf
from fnn.verify.power import Power, power_of
from fnn.verify.trees import named_leaves

WIDTH = 100
"""Columns of the table, at most."""


@dataclass(frozen=True)
class Report:
    """What a checker found. `str(report)` is a table with a line per leaf.

    name      of the checker, such as "check_layer"
    leaves    from input to output; backpropagation reaches the last one first
    dtype     what the user runs, and the native check ran
    place     for fnn's networks, the first wrong layer counted from the output
    inputs    (params, x) where `search` found a wrong gradient
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
    inputs: tuple[Any, Any] | None = None
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
        return max((leaf.relative for leaf in self.leaves), default=0.0)

    @property
    def errors(self) -> tuple[float | None, ...]:
        """The largest error of each check: float64, native, differences. None for a check that
        was skipped at every leaf.

        >>> import fnn, jax.numpy as jnp
        >>> from fnn import verify
        >>> [e < 1e-5 for e in verify.check_layer(fnn.tanh, (), jnp.array([[0.5, 1.0]])).errors]
        [True, True, True]
        """
        if not self.leaves:
            return (None, None, None)
        columns = zip(*((f.float64, f.native, f.differences) for f in self.leaves), strict=True)
        ran = [[check.error for check in c if check.verdict != "skipped"] for c in columns]
        return tuple(max(errors, default=None) for errors in ran)

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
        leaves = [
            {
                "name": leaf.name,
                "verdict": leaf.verdict,
                "note": leaf.note,
                "index": list(leaf.index),
                "float64": _as_dict(leaf.float64),
                "native": _as_dict(leaf.native),
                "differences": _as_dict(leaf.differences),
            }
            for leaf in self.leaves
        ]
        return json.dumps(
            {
                "name": self.name,
                "verdict": self.verdict,
                "dtype": self.dtype,
                "place": self.place,
                "blind": list(self.blind),
                "leaves": leaves,
            }
        )

    def _repr_html_(self) -> str:
        """The table in a notebook."""
        heads = ("leaf", "float64", self.dtype, "differences", "verdict", "")
        rows = [
            (leaf.name, leaf.float64, leaf.native, leaf.differences, leaf.verdict, leaf.note)
            for leaf in self.leaves
        ]
        cells = "".join(
            f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>"
            for row in rows
        )
        head = "".join(f"<th>{html.escape(h)}</th>" for h in heads)
        title = html.escape(": ".join(filter(None, (self.name, self.verdict, self.place))))
        return f"<table><caption>{title}</caption><tr>{head}</tr>{cells}</table>"

    def __str__(self) -> str:
        """The table."""
        width = min(max([len(leaf.name) for leaf in self.leaves] + [4]), 28)
        lines = [f"{self.name}: {self.verdict}"]
        if self.place:
            lines += textwrap.wrap(f"  {self.place}", WIDTH, subsequent_indent="    ")
        heads = ("float64", self.dtype, "differences")
        lines.append(f"  {'leaf':{width}}  {heads[0]:17}  {heads[1]:17}  {heads[2]:17}  verdict")
        for leaf in self.leaves:
            name = leaf.name if len(leaf.name) <= width else ".." + leaf.name[2 - width :]
            checks = (leaf.float64, leaf.native, leaf.differences)
            cells = "  ".join(f"{check!s:17}" for check in checks)
            lines.append(f"  {name:{width}}  {cells}  {leaf.verdict}")
            lines += textwrap.wrap(
                leaf.note, WIDTH, initial_indent="    ", subsequent_indent="    "
            )
        if self.inputs is not None:
            lines.append("  inputs")
            params, x = self.inputs
            for name, leaf in named_leaves({"params": params, "x": x}).items():
                lines.append(f"    {name} = {_pasted(leaf)}")
        if self.blind and self.verdict == "pass":
            text = f"these inputs can't show: {', '.join(self.blind)}"
            lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
        return "\n".join(lines)


def _as_dict(check: Check) -> dict[str, Any]:
    if check.verdict == "skipped":
        return {"verdict": "skipped", "reason": check.reason}
    numbers = {"error": check.error, "bound": check.bound}
    return {
        "verdict": check.verdict,
        **{k: float(v) if np.isfinite(v) else None for k, v in numbers.items()},
    }


def _pasted(leaf: Any) -> str:
    """An array as Python source."""
    if not hasattr(leaf, "dtype"):
        return repr(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return f"jax.random.wrap_key_data({np.asarray(jax.random.key_data(leaf)).tolist()})"
    return f"jnp.array({np.asarray(leaf).tolist()}, jnp.{leaf.dtype})"
