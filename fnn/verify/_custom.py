"""Functions with a derivative rule of their own, as JAX has them: `custom_vjp`, `custom_jvp`,
Pallas kernels.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.base import Array
from fnn.verify._arrays import Function, as_arrays, differentiable, random_cotangent, widened
from fnn.verify._call import attempt, coarsest_roundoff, custom_rules, float64_section, split
from fnn.verify._gradients import at_both_cotangents, product, shapes_of
from fnn.verify._leaf import measure, plainly, unfit
from fnn.verify._report import Report

LAW = 1e-6
"""What two sides of a law of derivatives may differ by, relative to the largest entry; more where
f computes in a narrow dtype."""


def check_custom(
    f: Function,
    *args: Any,
    reference: Function | None = None,
    expected: Mapping[int | str, str | float] | None = None,
    key: Array | None = None,
) -> Report:
    """A function with a derivative rule of its own (`jax.custom_vjp`, `jax.custom_jvp`, a Pallas
    kernel) against autodiff of `reference`, the same function in plain operations: what it
    returns, and the vector-Jacobian product with a cotangent drawn from `key`.

    Without a reference, it is the function that was decorated, differentiated without its rule;
    by differences, where autodiff can't take it (a while loop, a callback). Checked too is that the
    function returns the same whether it is differentiated or not, and that the tangents of a
    `custom_jvp` are finite, linear, and agree with reverse mode.

    The arguments and what is returned may be any trees. Of the arguments, floating-point arrays
    are differentiated, but for a rule's own `nondiff_argnums`; to leave one out, close over it.

    `expected` declares what a rule means to do otherwise, by argument (or "y"): "no gradient", or
    the relative error of an approximation, as in {1: "no gradient", "y": 1e-3}.

    Raises ValueError where the reference runs the rule under test: it would check itself; and for
    an argument that is not there. Raises TypeError for f without a rule and without a reference.

    >>> @jax.custom_vjp
    ... def square(x):
    ...     return x * x
    >>> square.defvjp(lambda x: (x * x, x), lambda x, dy: (dy * x,))
    >>> report = check_custom(square, jnp.array([1.0, 2.0]))
    >>> [(leaf.name, leaf.verdict) for leaf in report.leaves]
    [('y', 'pass'), ('args.0', 'fail')]
    """
    primal = getattr(f, "fun", None)
    reference = reference or primal
    if reference is None:
        raise TypeError(
            f"check_custom: expected a jax.custom_vjp or jax.custom_jvp, or reference=, the same "
            f"function in plain operations; got {f!r}"
        )
    static = getattr(f, "nondiff_argnums", ())
    args = as_arrays(args)
    theta = {"args": tuple(Static(a) if i in static else a for i, a in enumerate(args))}
    of_floats, floats = _of_floats(reference, theta["args"])
    dy = random_cotangent(key, shapes_of(of_floats, *floats))
    objective = (_product_of_args, reference)
    call, arrays = split(*objective, theta, (dy,))
    own = custom_rules(call.of(_product_of_args, f), arrays)
    same = [name for name in custom_rules(call, arrays) if name in own and reference is not primal]
    if f is reference or same:
        raise ValueError(
            f"check_custom: the reference runs the rule under test, that of "
            f"{', '.join(same) or 'f'}; expected the same function in plain operations"
        )
    within = max(LAW, 64 * coarsest_roundoff(call.of(_product_of_args, f), arrays))
    with float64_section([f], *args):
        law = attempt(_broken_law, f, *widened((theta["args"], dy)), within, otherwise="")
    if law:
        return Report("check_custom", (unfit("y", law),))
    report = at_both_cotangents("check_custom", objective, (_by_own_rule, f), theta, dy)
    return _as_declared(report, expected or {}, len(args))


class Static:
    """An argument that is not differentiated, as a leaf of the tree of arguments."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _plain(args: Any) -> Any:
    return [a.value if isinstance(a, Static) else a for a in args]


def _product_of_args(reference: Function, theta: Any, dy: Any) -> Any:
    return product(reference(*_plain(theta["args"])), dy)


def _of_floats(f: Function, args: Any) -> tuple[Function, list[Any]]:
    """f as a function of the floating-point leaves of args, and these leaves."""
    leaves, form = jax.tree.flatten(args)
    floats = [leaf for leaf in leaves if differentiable(leaf)]

    def of_floats(*moved: Any) -> Any:
        at = iter(moved)
        put = [next(at) if differentiable(leaf) else leaf for leaf in leaves]
        return f(*_plain(jax.tree.unflatten(form, put)))

    return of_floats, floats


def _by_own_rule(f: Function, theta: Any, dy: Any) -> Any:
    of_floats, floats = _of_floats(f, theta["args"])
    y, pull = jax.vjp(of_floats, *floats)
    pulled = iter(pull(_like(dy, y)))
    grads = jax.tree.map(lambda a: next(pulled) if differentiable(a) else 0, theta["args"])
    return {"y": y, "args": grads}


def _like(dy: Any, y: Any) -> Any:
    """The cotangent in y's dtypes: a kernel may return less than float64."""
    cast = lambda d, a: d.astype(a.dtype) if differentiable(a) else d
    return jax.tree.map(cast, dy, y)


def _broken_law(f: Function, args: Any, dy: Any, within: float) -> str:
    """What JAX expects of any rule and does not hold here, in words; or ""."""
    of_floats, floats = _of_floats(f, args)
    flat = lambda tree: [a for a in jax.tree.leaves(tree) if differentiable(a)]
    forward = isinstance(f, jax.custom_jvp)
    if forward:
        u, v = (random_cotangent(jax.random.key(seed), floats) for seed in (1, 2))
        tangents = (u, v, [*map(jnp.add, u, v)])
        du, dv, both = (flat(jax.jvp(of_floats, floats, t)[1]) for t in tangents)
        if not all(_same(a + b, c, within) for a, b, c in zip(du, dv, both, strict=True)):
            return "the tangents are not linear: f'(u + v) is not f'(u) + f'(v)"
    y, pull = jax.vjp(of_floats, *floats)
    pairs = zip(flat(of_floats(*floats)), flat(y), strict=True)
    if not all(_same(*pair, within) for pair in pairs):
        return "it returns something else when it is differentiated"
    if forward:
        pulled = pull(_like(dy, y))
        left = sum(map(np.vdot, flat(dy), du))
        right = sum(map(np.vdot, pulled, u))
        size = sum(np.abs(a * b).sum() for a, b in zip(pulled, u, strict=True))
        if np.isfinite(right) and not abs(left - right) <= within * size:
            return f"forward mode gives {plainly(left)} where reverse mode gives {plainly(right)}"
    return ""


def _same(expected: Any, got: Any, within: float) -> bool:
    """Whether two arrays agree, in their infinite and NaN entries too."""
    a, b = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    known = np.isfinite(a)
    if a.shape != b.shape or not np.array_equal(a[~known], b[~known], equal_nan=True):
        return False
    return not known.any() or measure(b[known], a[known], 1)[0] <= within


def _as_declared(report: Report, expected: Mapping[Any, Any], number: int) -> Report:
    """The report with the leaves of declared arguments by what is declared."""
    leaves = list(report.leaves)
    for which, declared in expected.items():
        if which not in {"y", *range(number)}:
            raise ValueError(f"check_custom: expected= names argument {which!r} of {number}")
        none = declared == "no gradient"
        if not (none or isinstance(declared, float)):
            raise ValueError(
                f"check_custom: expected= takes 'no gradient' or a relative error, got {declared!r}"
            )
        name = which if which == "y" else f"args.{which}"
        what = "no gradient" if none else f"within {declared}"
        for i, leaf in enumerate(leaves):
            if leaf.got.size and f"{leaf.name}.".startswith(f"{name}."):
                error = 0.0 + leaf.got.any() if none else measure(leaf.got, leaf.expected, 1)[0]
                right = error <= (0.0 if none else declared)
                note = f"{what}, as declared" if right else f"expected {what}; {leaf.note}"
                leaves[i] = replace(leaf, verdict="pass" if right else "fail", note=note)
    return replace(report, leaves=tuple(leaves))
