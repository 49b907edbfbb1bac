"""A search for inputs at which a rule is wrong: most bugs are invisible at ordinary inputs.

Each probe changes the inputs in one way: zeros, ties, repeated integers, large numbers, other
sizes. What fails is then shrunk: fewer examples, smaller sizes, fewest and roundest numbers.
"""

import inspect
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.base import Array, Params
from fnn.verify._arrays import as_arrays, differentiable
from fnn.verify._call import attempt
from fnn.verify._custom import check_custom
from fnn.verify._gradients import check_vjp
from fnn.verify._report import Report

PLAIN = 1e-6
"""The float64 error that counts here. At extreme inputs right rules may lose many digits."""
TRIES = 60
"""How many simpler inputs are tried before shrinking ends."""
SIZES = (1, 3, 7, 33, 130)
"""Sizes to try: one, small ones, and such as no block divides."""


class Probe(NamedTuple):
    """Inputs, and what is special about them."""

    name: str
    inputs: tuple[Any, ...]


def search(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    params: Params,
    x: Any,
    *,
    reference: Callable[..., Any] | None = None,
    make_inputs: Callable[..., tuple[Params, Any]] | None = None,
    domain: Callable[[Params, Any], Any] | None = None,
    seconds: float = math.inf,
    key: Array | None = None,
) -> Report:
    """Look for inputs at which `check_vjp` of this pair fails. The report's `inputs` are the
    simplest found, as (params, x), to paste into a test; None where no probe fails.

    Tried are params and x themselves and variants of them of the same shapes. With
    `make_inputs(key, batch=8, d=4) -> (params, x)`, sizes with integer defaults by any name, other
    sizes are tried too: 1, sizes that no block divides, sizes that differ from each other.

    Inputs outside of `domain`, a predicate of (params, x), are not tried, nor those where the
    function's own value is NaN. After `seconds` no further inputs are tried.

    Inputs that forward or backward refuses by an exception are skipped, but a TimeoutError is
    raised. A probe fails only by a plain error, of more than 1e-6 in float64, or by NaN where the
    reference is finite.

    >>> forward = lambda params, x: (jnp.where(x > 0, x, 0), x)
    >>> backward = lambda params, x, dy: ((), jnp.where(x >= 0, dy, 0))
    >>> report = search(forward, backward, (), jnp.array([[0.3, -1.2], [2.5, 0.7]]))
    >>> report.verdict, report.inputs
    ('fail', ((), Array([[0., 0.]], dtype=float32)))
    """
    key = jax.random.key(0) if key is None else key
    params, x = as_arrays((params, x))
    usual = jax.tree.map(lambda p: _off(p, key), params)
    value = reference or (lambda params, x: forward(params, x)[0])
    check = partial(check_vjp, forward, backward, reference=reference)
    tried = (*probes((params, x), (usual, x)), *_sized(make_inputs, key))
    return _first_wrong("search", check, value, domain, seconds, tried)


def search_custom(
    f: Callable[..., Any],
    *args: Any,
    reference: Callable[..., Any] | None = None,
    domain: Callable[..., Any] | None = None,
    seconds: float = math.inf,
) -> Report:
    """Look for arguments at which `check_custom` of f fails: `args` themselves, and variants of
    each of them. The report's `inputs` are the simplest found, a tuple. Everything else is as for
    `search`; `domain` takes the arguments.

    >>> @jax.custom_jvp
    ... def cube(x):
    ...     return x**3
    >>> cube.defjvp(lambda x, t: (x[0]**3, 3 * x[0] * abs(x[0]) * t[0]))
    >>> search_custom(cube, jnp.array([0.5, 2.0])).verdict
    'fail'
    """
    args = as_arrays(args)
    check = partial(check_custom, f, reference=reference)
    return _first_wrong("search_custom", check, reference or f, domain, seconds, probes(args, args))


def _first_wrong(
    name: str,
    check: Callable[..., Report],
    value: Callable[..., Any],
    domain: Callable[..., Any] | None,
    seconds: float,
    tried: Iterable[Probe],
) -> Report:
    """The report of the first probe at which the check fails, shrunk; or else of the first."""
    end = time.monotonic() + seconds

    def at(*inputs: Any) -> Report | None:
        if (domain and not domain(*inputs)) or _has_nan(value(*inputs)):
            return None
        return check(*inputs)

    def within_time(*inputs: Any) -> Report | None:
        return attempt(at, *inputs) if time.monotonic() <= end else None

    count, first, tried = 0, None, [*tried]
    for probe in tried:
        report = within_time(*probe.inputs)
        first = first or report
        count += report is not None
        if report is not None and _plainly_wrong(report):
            return replace(_shrunk(within_time, probe, report), name=name)
    first = first or check(*tried[0].inputs)  # it says why, or raises
    return replace(first, name=name, place=f"no wrong gradient at {count} inputs tried")


def probes(inputs: tuple[Any, ...], usual: tuple[Any, ...]) -> Iterator[Probe]:
    """The inputs themselves, and variants of the same shapes: one of them changed, the others as
    in `usual`."""
    yield Probe("as given", inputs)
    changes: dict[str, Callable[[Array], Array]] = {
        "zeros": jnp.zeros_like,
        "ones": jnp.ones_like,
        "a zero row": lambda a: a.at[:1].set(0) if a.ndim else a,
        "a zero column": lambda a: a.at[..., :1].set(0) if a.ndim else a,
        "ties": jnp.round,
        "all equal": lambda a: jnp.full_like(a, 0.75),
        "negated": lambda a: -a,
        "positive": jnp.abs,
        "negative": lambda a: -jnp.abs(a),
        "tiny": lambda a: a * jnp.asarray(1e-4, a.dtype),
        "large": lambda a: a * jnp.asarray(30, a.dtype),
        "saturated": lambda a: a * jnp.asarray(300, a.dtype),
    }
    for i, part in reversed([*enumerate(inputs)]):
        if any(map(differentiable, jax.tree.leaves(part))):
            for name, change in changes.items():
                changed = _floats(change, part)
                yield Probe(f"{name}, argument {i}", (*usual[:i], changed, *usual[i + 1 :]))
    yield Probe("parameters off their initial values", usual)
    codes: dict[str, Callable[[Array], Array]] = {
        "repeated integers": lambda a: jnp.full_like(a, a.ravel()[-1]),
        "reversed integers": lambda a: a[::-1] if a.ndim else a,
        "unsorted, repeated integers": lambda a: (
            jnp.roll(jnp.repeat(a, 2, 0)[: len(a)], 1, 0) if a.ndim else a
        ),
        "integers of 0": jnp.zeros_like,
    }
    masks: dict[str, Callable[[Array], Array]] = {
        "empty masks": jnp.zeros_like,
        "full masks": jnp.ones_like,
        "every other entry of the masks": lambda a: (jnp.arange(a.size) % 2 == 0).reshape(a.shape),
        "an empty row of the masks": lambda a: a.at[:1].set(False) if a.ndim else a,
    }
    for kind, variants in ((jnp.integer, codes), (jnp.bool_, masks)):
        if any(_is(kind, leaf) and leaf.size for leaf in jax.tree.leaves(inputs)):
            for name, change in variants.items():
                yield Probe(name, _where(kind, change, inputs))


def _sized(make_inputs: Callable[..., Any] | None, key: Array) -> Iterator[Probe]:
    """Inputs with other sizes: with one size changed, and with all sizes different."""
    if make_inputs is None:
        return
    sizes = _sizes_of(make_inputs)
    wanted = [{**sizes, name: n} for name in sizes for n in SIZES]
    wanted += [{name: SIZES[i % 3] for i, name in enumerate(sizes)}]
    wanted += [{name: SIZES[2 - i % 3] for i, name in enumerate(sizes)}]
    for chosen in (sizes, *wanted):
        if made := attempt(make_inputs, key, *chosen.values()):  # else they do not go together
            yield Probe(f"sizes {chosen}", as_arrays(tuple(made)))


def _sizes_of(make_inputs: Callable[..., Any]) -> dict[str, int]:
    """The arguments behind the key, and their defaults.

    Raises ValueError where there are none, or where they are no integers or not positional.
    """
    _, *given = inspect.signature(make_inputs).parameters.values()
    sizes = {p.name: p.default for p in given}
    positional = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in given)
    if not sizes or not positional or not all(type(n) is int for n in sizes.values()):
        raise ValueError(
            "search: expected make_inputs(key, sizes...) whose sizes have integer defaults, such "
            f"as make_inputs(key, batch=4, d=3); got {inspect.signature(make_inputs)}"
        )
    return sizes


def _has_nan(y: Any) -> bool:
    return any(np.isnan(a).any() for a in jax.tree.leaves(y) if differentiable(a))


def _plainly_wrong(report: Report) -> bool:
    return any(
        leaf.verdict == "fail" and (not leaf.float64.error <= PLAIN or leaf.native.error == np.inf)
        for leaf in report.leaves
    )


def _shrunk(check: Callable[..., Report | None], probe: Probe, report: Report) -> Report:
    """The report at the simplest inputs that still fail."""
    inputs, tries, found = probe.inputs, 0, True
    while found and tries < TRIES:
        found = False
        for simpler in _simpler(inputs):
            tries += 1
            got = check(*simpler)
            if got is not None and _plainly_wrong(got):
                inputs, report, found = simpler, got, True
                break
            if tries >= TRIES:
                break
    place = "; ".join(filter(None, (f"found at inputs: {probe.name}", report.place)))
    return replace(report, place=place, inputs=inputs)


def _simpler(inputs: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Inputs with fewer examples, in the last of them or in all, then with rounder numbers, most
    first."""
    for first in {len(inputs) - 1, 0}:
        for part in _parts(jax.tree.leaves(inputs[first:])):
            fewer = jax.tree.map(lambda a, part=part: a[part], inputs[first:])
            yield (*inputs[:first], *fewer)
    flat, form = jax.tree.flatten(inputs)
    places = [i for i, leaf in enumerate(flat) if differentiable(leaf)]
    rounder = (jnp.zeros_like, jnp.ones_like, jnp.round, lambda a: jnp.round(a, 1))
    candidates = [(i, change(flat[i])) for change in rounder for i in places]
    candidates += [
        (i, flat[i].at[j].set(value))
        for i in places
        if 1 < flat[i].size <= 16
        for j in np.ndindex(flat[i].shape)
        for value in (0, 1)
    ]
    for i, new in candidates:
        if _cost(new) < _cost(flat[i]):
            yield jax.tree.unflatten(form, [*flat[:i], new, *flat[i + 1 :]])


def _parts(leaves: list[Any]) -> list[slice]:
    """Parts of the axis that all leaves begin with: the first, the last, the halves."""
    lengths = {jnp.shape(leaf)[:1] for leaf in leaves}
    n = sum(*lengths) if len(lengths) == 1 else 0
    return [slice(1), slice(n - 1, n), slice(n // 2), slice(n // 2, n)] if n > 1 else []


def _cost(a: Array) -> int:
    """How many characters the entries take, zeros none."""
    return sum(len(f"{v:g}") for v in np.ravel(np.asarray(a, np.float64)) if v)


def _off(p: Any, key: Array) -> Any:
    """A parameter off ones and zeros."""
    return p + jax.random.normal(key, p.shape, p.dtype) / 2 if differentiable(p) else p


def _is(kind: Any, leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, kind)


def _where(kind: Any, change: Callable[[Array], Array], tree: Any) -> Any:
    return jax.tree.map(lambda a: change(a) if _is(kind, a) and a.size else a, tree)


def _floats(change: Callable[[Array], Array], tree: Any) -> Any:
    return _where(jnp.floating, change, tree)
