"""Every rule of a package: recorded with the arguments that its own tests call it with, and
checked at these and at special values of each.
"""

import inspect
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.verify._call import attempt
from fnn.verify._leaf import joined
from fnn.verify._report import Report
from fnn.verify._search import search_custom

MOST = 3
"""How many calls of one rule are recorded, no two of the same shapes, dtypes and statics."""
LARGEST = 10_000
"""The most entries that an argument may have, to be checked."""
Recorded = tuple[Callable[..., Any], tuple[Any, ...]]
"""A call of a rule: the function, and its arguments by position."""
KINDS: tuple[Any, ...] = (jax.custom_vjp, jax.custom_jvp)


class Row(NamedTuple):
    """What was found of one rule: "pass", "fail", "inconclusive" or "skipped"."""

    name: str
    verdict: str
    note: str
    report: Report | None = None


@dataclass(frozen=True)
class Rules:
    """What was found of the rules of a package; `str` is a table with a line per rule."""

    rows: tuple[Row, ...]

    @property
    def verdict(self) -> str:
        """ "fail" where a rule fails; "inconclusive" where none passes; else "pass"."""
        found = {row.verdict for row in self.rows}
        return next((v for v in ("fail", "pass") if v in found), "inconclusive")

    def raise_for_verdict(self) -> None:
        """Raise AssertionError, with the table and the reports, where a rule fails."""
        wrong = [row for row in self.rows if row.verdict == "fail"]
        assert not wrong, "\n".join([str(self), *(str(row.report) for row in wrong)])

    def to_json(self) -> str:
        """The rows, for continuous integration."""
        rows = [row._asdict() | {"report": str(row.report or "")} for row in self.rows]
        return json.dumps({"verdict": self.verdict, "rules": rows}, indent=1)

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=0)
        return "\n".join(f"{r.name:{width}}  {r.verdict:12}  {r.note}" for r in self.rows)


def check_rules(module: Any, inputs: Mapping[str, Any], *, seconds: float = 60) -> Rules:
    """Check the `jax.custom_vjp` and `jax.custom_jvp` functions of a module, each at its arguments
    in `inputs`, a tuple by the function's name, and at special values of these, as `search_custom`
    does. A function without inputs is skipped. The time is shared among the rules.

    >>> import types
    >>> module = types.SimpleNamespace(double=jax.custom_jvp(lambda x: 2 * x))
    >>> rule = module.double.defjvp(lambda x, t: (2 * x[0], t[0]))
    >>> print(check_rules(module, {"double": (np.ones(2, np.float32),)}))  # doctest: +ELLIPSIS
    double  fail ...
    """
    rules = {name: rule for name, rule in vars(module).items() if isinstance(rule, KINDS)}
    calls = {name: [(rule, inputs[name])] if name in inputs else [] for name, rule in rules.items()}
    return checked(calls, seconds)


def checked(calls: Mapping[str, list[Recorded]], seconds: float) -> Rules:
    """The rules by their names, at their recorded calls; the time is shared among them."""
    end, rows = time.monotonic() + seconds, []
    for left, (name, recorded) in zip(range(len(calls), 0, -1), calls.items(), strict=True):
        now = time.monotonic()
        rows.append(
            _row(name, recorded, now + (end - now) / left)
            if now < end
            else Row(name, "skipped", "no time is left")
        )
    return Rules(tuple(rows))


def _row(name: str, calls: Iterable[Recorded], end: float) -> Row:
    """The worst of a rule's calls."""
    rows = [Row(name, "skipped", "it was not called")]
    for rule, args in calls:
        if any(np.size(a) > LARGEST for a in jax.tree.leaves(args)):
            rows.append(Row(name, "skipped", f"an argument has more than {LARGEST} entries"))
            continue
        seconds = max(end - time.monotonic(), 0.0)
        try:
            report = search_custom(rule, *args, seconds=seconds)
        except TimeoutError:
            raise
        except Exception as error:
            rows.append(Row(name, "skipped", f"{type(error).__name__}: {error}".split("\n")[0]))
            continue
        notes = [leaf.note for leaf in report.leaves if leaf.verdict == report.verdict]
        rows.append(Row(name, report.verdict, joined(report.place, *notes[:1]), report))
    order = ("fail", "inconclusive", "pass", "skipped")
    return min(rows[1:] or rows, key=lambda row: order.index(row.verdict))


@contextmanager
def recording(package: str) -> Iterator[dict[str, list[Recorded]]]:
    """The calls of the package's rules while this is open, by the rules' names; also of those
    inside of jit, grad, vmap and scan, where a callback sees the values."""
    calls: dict[str, list[Recorded]] = {}
    own = {kind: kind.__call__ for kind in KINDS}
    for kind, original in own.items():
        kind.__call__ = _recorded(original, package, calls)
    try:
        yield calls
    finally:
        for kind, original in own.items():
            kind.__call__ = original


def _recorded(original: Any, package: str, calls: dict[str, list[Recorded]]) -> Any:
    seen: set[Any] = set()

    def call(self: Any, *args: Any, **named: Any) -> Any:
        if named:
            args = inspect.signature(self.fun).bind(*args, **{**named}).args
        module = getattr(self.fun, "__module__", None) or ""
        if f"{module}.".startswith(f"{package}."):
            name = f"{module}.{getattr(self.fun, '__qualname__', 'rule')}"
            attempt(_record, self, args, calls.setdefault(name, []), seen)
        return original(self, *args)

    return call


def _record(rule: Any, args: Any, calls: list[Recorded], seen: set[Any]) -> None:
    """Keep the call, once its values are known."""
    leaves, form = jax.tree.flatten(args)
    arrays = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]
    forms = [(a.shape, str(a.dtype)) if hasattr(a, "dtype") else repr(a) for a in leaves]
    if len(calls) >= MOST or (key := (id(calls), form, str(forms))) in seen:
        return
    seen.add(key)

    def keep(*values: Any) -> None:
        if len(calls) >= MOST:  # a loop calls this at each of its steps
            return
        at = dict(zip(arrays, map(np.asarray, values), strict=True))
        kept = [at.get(i, leaf) for i, leaf in enumerate(leaves)]
        calls.append((rule, jax.tree.unflatten(form, kept)))

    jax.debug.callback(keep, *(leaves[i] for i in arrays))
