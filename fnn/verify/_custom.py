"""Functions with a derivative rule of their own, as JAX has them: `custom_vjp`, `custom_jvp`,
Pallas kernels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.base import Array
from fnn.verify import _call as calls
from fnn.verify._call import Call, Function, Inputs, attempt, custom_rules, differentiable
from fnn.verify._gradients import at_both_cotangents, product, shapes_of
from fnn.verify._leaf import measure, same, unfit
from fnn.verify._report import Report

SECOND = "the second derivative is not that of the first"
H = 1e-5
"""The step of the differences that the second derivative is compared with."""
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
    function returns the same whether it is differentiated or not, that it and its gradient are the
    same under `jit` and `vmap`, that the tangents of a `custom_jvp` are linear and agree with
    reverse mode, and, where the rule can be differentiated, that the second derivative is that of
    the first.

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
    plain = "the same function in plain operations"
    if reference is None:
        wanted = f"a jax.custom_vjp or jax.custom_jvp, or reference=, {plain}"
        raise TypeError(f"check_custom: expected {wanted}; got {f!r}")
    args = calls.as_arrays(args)
    static = getattr(f, "nondiff_argnums", ())
    theta = {"args": tuple(Static(a) if i in static else a for i, a in enumerate(args))}
    of_floats, floats = _of_floats(reference, theta["args"])
    dy = calls.random_cotangent(key, shapes_of(of_floats, *floats))
    objective = (_product_of_args, reference)
    call, inputs = calls.split(*objective, theta, (dy,))
    own = custom_rules(call.of(_product_of_args, f), inputs)
    known = [] if reference is primal else custom_rules(call, inputs)
    shared = [name for name in known if name in own]
    if f is reference or shared:
        ran = f"the rule under test, that of {', '.join(shared) or 'f'}"
        raise ValueError(f"check_custom: the reference runs {ran}; expected {plain}")
    within = max(LAW, 64 * calls.coarsest_roundoff(call.of(_product_of_args, f), inputs))
    with calls.float64_section([f], *args):
        broken = _broken(call, calls.widened(inputs), f, within)
    if broken not in ("", SECOND):
        return Report("check_custom", (unfit("y", broken),))
    report = at_both_cotangents("check_custom", objective, (_by_own_rule, f), theta, dy)
    if broken and report.verdict != "fail":
        report = replace(report, leaves=(*report.leaves, unfit("second derivative", broken)))
    return _as_declared(report, expected or {}, len(args))


@dataclass(frozen=True)
class Static:
    """An argument that is not differentiated, as a leaf of the tree of arguments."""

    value: Any


def _of_args(f: Function, args: Any) -> Any:
    return f(*(a.value if isinstance(a, Static) else a for a in args))


def _product_of_args(reference: Function, theta: Any, dy: Any) -> Any:
    return product(_of_args(reference, theta["args"]), dy)


def _of_floats(f: Function, args: Any) -> tuple[Function, list[Any]]:
    """f as a function of the floating-point leaves of args, and these leaves."""
    call, inputs = calls.split(_of_args, f, args, ())
    return lambda *moved: call(inputs._replace(theta=[*moved])), inputs.theta


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


# What JAX expects of any rule: law(f, pull, floats, dy) gives two trees that are the same where it
# holds. f takes floats, and so does pull, which gives f's floats and the vector-Jacobian product.


def _sides(law_and_f: tuple[Function, Function], theta: Any, dy: Any) -> Any:
    law, f = law_and_f
    of_floats, floats = _of_floats(f, theta["args"])

    def pull(*floats: Any) -> tuple[list[Any], list[Any]]:
        y, pull = jax.vjp(of_floats, *floats)
        return calls.floats(y), [*pull(_like(dy, y))]

    return law(of_floats, pull, floats, dy)


def _mapped(f: Function, pull: Function, floats: list[Any], dy: Any) -> Any:
    """A batch of two arguments, by themselves and under `vmap`."""
    ways = floats, [0.75 * a for a in floats]
    stack = lambda *a: jnp.stack(a)
    alone = jax.tree.map(stack, *(pull(*way) for way in ways))
    return alone, jax.vmap(pull)(*map(stack, *ways))


def _linear(f: Function, pull: Function, floats: list[Any], dy: Any) -> Any:
    u = calls.random_cotangent(None, floats)
    once, twice = (calls.floats(jax.jvp(f, floats, [c * a for a in u])[1]) for c in (1, -2))
    return [-2 * a for a in once], twice


def _transposed(f: Function, pull: Function, floats: list[Any], dy: Any) -> Any:
    """<dy, J v> and <J^T dy, v>, for v = J^T dy."""
    v = pull(*floats)[1]
    return _dot(dy, jax.jvp(f, floats, v)[1]), _dot(v, v)


def _second(f: Function, pull: Function, floats: list[Any], dy: Any) -> Any:
    """The second derivative along random tangents, and the nearest number that differences of the
    first allow: between those of both sides, up to how far these are apart."""
    tangents = calls.random_cotangent(None, floats)
    u = [v * abs(a).max() for a, v in zip(floats, tangents, strict=True)]
    along = lambda h: _dot(u, pull(*(a + h * v for a, v in zip(floats, u, strict=True)))[1])
    second, first = jax.grad(along)(0.0), along(0.0)
    left, right = (first - along(-H)) / H, (along(H) - first) / H
    slack = abs(left - right) + 1e-3 * (abs(left) + abs(right)) + 1e-8 * abs(first)
    near = jnp.clip(second, jnp.minimum(left, right) - slack, jnp.maximum(left, right) + slack)
    return second, jnp.where(jnp.isfinite(near), near, second)


def _dot(u: Any, v: Any) -> Any:
    return sum(map(jnp.vdot, calls.floats(u), calls.floats(v)), start=jnp.zeros(()))


FORWARD: dict[str, Function] = {
    "the tangents are not linear": _linear,
    "forward mode and reverse mode differ": _transposed,
}
"""Laws of a rule for forward mode."""
LAWS: dict[str, Function] = {
    "it gives something else under jit": lambda f, pull, floats, dy: pull(*floats),
    "it returns something else when it is differentiated": lambda f, pull, floats, dy: (
        calls.floats(f(*floats)), pull(*floats)[0]
    ),
    "it gives something else under vmap": _mapped,
    SECOND: _second,
}  # fmt: skip
"""Laws of any rule. The first has one side, which is run compiled and as it is."""


def _broken(call: Call, at: Inputs, f: Function, within: float) -> str:
    """The first law that does not hold, in words; or ""."""

    def sides(law: Function) -> Any:
        own = call.of(_sides, (law, f))
        found = calls.run(calls.evaluate, own, at)
        return (own(at), found) if law is next(iter(LAWS.values())) else found

    for words, law in ((FORWARD if isinstance(f, jax.custom_jvp) else {}) | LAWS).items():
        one, other = map(_parts, attempt(sides, law, otherwise=((), ())))
        if not all(same(a, b, within) for a, b in zip(one, other, strict=True)):
            return words
    return ""


def _parts(side: Any) -> list[np.ndarray]:
    """The values of a side, and its derivatives: each as one array, for what is rounding beside the
    derivative by another argument differs from run to run."""
    return [*map(calls.row_of, side if isinstance(side, tuple) else (side,))]


def _as_declared(report: Report, expected: Mapping[Any, Any], number: int) -> Report:
    """The report with the leaves of declared arguments by what is declared."""
    leaves = list(report.leaves)
    for which, declared in expected.items():
        none = declared == "no gradient"
        if which not in {"y", *range(number)} or not (none or isinstance(declared, float)):
            takes = "expected= takes 'no gradient' or a relative error, for \"y\" or an argument"
            got = {which: declared}
            raise ValueError(f"check_custom: {takes} by its number, of {number}; got {got}")
        name = which if which == "y" else f"args.{which}"
        what = "no gradient" if none else f"within {declared}"
        for i, leaf in enumerate(leaves):
            if leaf.got.size and f"{leaf.name}.".startswith(f"{name}."):
                error = 0.0 + leaf.got.any() if none else measure(leaf.got, leaf.expected, 1)[0]
                right = error <= (0.0 if none else declared)
                note = f"{what}, as declared" if right else f"expected {what}; {leaf.note}"
                leaves[i] = replace(leaf, verdict="pass" if right else "fail", note=note)
    return replace(report, leaves=tuple(leaves))
