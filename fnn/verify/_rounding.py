"""How far rounding inside a computation moves what it returns.

The computation is repeated with its inputs and every result of arithmetic inside it moved up or
down at random by a roundoff: Monte Carlo arithmetic (Parker, Pierce & Eggert, 2000). Cancellation
that the inputs alone do not show, as in s (1 - s) where s is nearly 1, shows here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import jax
import numpy as np

from fnn.verify._arrays import ROUNDOFF, at_highest_precision, differentiable, named_leaves
from fnn.verify._call import Call, Inputs, attempt, differentiate, evaluate
from fnn.verify._checks import CANCELS, LOSES, Tested, native_check, relative
from fnn.verify._leaf import TOLERANCE, Check, Checks, compared, measure
from fnn.verify._reference import MOVES, Reference, moved


@dataclass(frozen=True)
class Pair:
    """The call under test and its reference, and how far rounding inside each moves it; `autodiff`
    is the reference in the dtype that the user runs, or None.

    Where float64 alone refuses a leaf, autodiff may cancel, far out in a function's tail, or the
    rule may where autodiff does not. How much each does shows when every step of it is moved by a
    roundoff.
    """

    call: Call
    inputs: Inputs
    reference: Reference
    autodiff: list[np.ndarray] | None

    @cached_property
    def of(self) -> Callable[..., dict[str, np.ndarray]]:
        """`_of`, computed when first needed."""
        return cache(self._of)

    def _of(self, program: Callable[..., Any], native: bool = False) -> dict[str, np.ndarray]:
        """How far what the program gives moves, in float64 or in the dtype that the user runs."""
        call = self.reference.call if program is differentiate else self.call
        inputs = self.inputs if native else self.reference.inputs
        with jax.enable_x64(not native), at_highest_precision():
            return rounding_of(
                program, call, inputs, self.reference.roundoff if native else ROUNDOFF
            )

    def beside(self, leaf: Tested, checks: Checks) -> Checks:
        """The checks, with those that refused the leaf repeated beside this rounding."""
        float64, native, differences = checks
        if leaf.wide is None:
            return checks
        if float64.verdict == "fail" and (native.verdict == "pass" or self._in_doubt(leaf)):
            float64 = self._float64(leaf, float64)
        if float64.verdict != "fail" and native.verdict == "fail":
            native = self._native(leaf, native, float64)
        return Checks(float64, native, differences)

    def _in_doubt(self, leaf: Tested) -> bool:
        """Whether autodiff in the user's dtype misses the reference, or this is zero."""
        expected = self.reference.stacks[leaf.position][0]
        own = expected if self.autodiff is None else self.autodiff[leaf.position]
        return not (expected.any() and measure(own, expected, 1)[0] < 0.01)

    def _float64(self, leaf: Tested, check: Check) -> Check:
        expected = self.reference.stacks[leaf.position][0]
        by_position = [*self.of(differentiate).values()]
        away = np.zeros(expected.shape) + self.of(evaluate).get(leaf.name, 0.0)
        away += by_position[leaf.position] if by_position else 0.0
        error, bound = (relative(d, expected) for d in (leaf.best - expected, 64 * away))
        least = TOLERANCE if expected.any() else 0.0
        if not ((error <= np.maximum(least, bound)) & np.isfinite(error)).all():
            return check
        needed = float(bound[error > least].max(initial=0.0))
        if needed > 0.1 or not expected.any():
            return Check("skipped", reason=CANCELS)
        return compared(float(error.max()), max(check.bound, needed))

    def _native(self, leaf: Tested, check: Check, float64: Check) -> Check:
        expected = self.reference.stacks[leaf.position][0]
        error = np.abs(leaf.native - expected)
        bound = np.zeros(expected.shape) + self.of(evaluate, native=True).get(leaf.name, 0.0)
        whole = float64.verdict != "pass"
        bound = np.full(bound.shape, bound.max()) if whole else bound
        if not all(error[i] <= 64 * bound[i] < np.inf for i in check.entries):
            return Check("skipped", reason=CANCELS) if float64.reason == CANCELS else check
        if not whole:
            # Small entries may lose their digits, not the leaf as a whole.
            own = expected if self.autodiff is None else self.autodiff[leaf.position]
            found = native_check(leaf, self.reference, own, 1.0)
            if found.verdict != "fail" and self.reference.roundoff <= 2.0**-12:
                return found
        return Check("skipped", reason=LOSES)


ARITHMETIC = {
    "add", "add_any", "sub", "mul", "div", "pow", "integer_pow", "square", "sqrt", "rsqrt",
    "cbrt", "exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erfc",
    "erf_inv", "lgamma", "digamma", "sin", "cos", "tan", "asin", "acos", "atan", "sinh",
    "cosh", "asinh", "acosh", "atanh", "reduce_sum", "reduce_prod", "cumsum", "cumprod",
    "cumlogsumexp", "dot_general", "conv_general_dilated", "scatter-add"
}  # fmt: skip
"""The primitives that round. What only moves or selects numbers keeps ties as they are."""


def rounding_of(program: Any, call: Call, inputs: Inputs, u: float) -> dict[str, np.ndarray]:
    """For each array that program(call, inputs) returns, by its name in the tree, how far its
    entries move, at most, in `MOVES` runs with roundoff u. Empty where the program can't be traced.
    """
    trace = jax.make_jaxpr(lambda inputs: program(call, inputs), return_shape=True)
    traced, shapes = attempt(trace, inputs, otherwise=(None, None))
    if traced is None:
        return {}
    random = np.random.default_rng(0)

    def run(u: float) -> list[np.ndarray]:
        at = jax.tree.leaves(moved(inputs, u, random))
        results = _evaluate(traced.jaxpr, traced.consts, at, u, random)
        return [np.asarray(a, np.float64) if differentiable(a) else np.zeros(()) for a in results]

    centre = run(0.0)
    runs = [run(u) for _ in range(MOVES)]
    away = [np.max([np.abs(r[i] - c) for r in runs], 0) for i, c in enumerate(centre)]
    return named_leaves(jax.tree.unflatten(jax.tree.structure(shapes), away))


def _evaluate(
    jaxpr: Any, consts: list[Any], arrays: list[Any], u: float, random: np.random.Generator
) -> list[Any]:
    """The results of a jaxpr, with every result of arithmetic moved by u."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arrays], strict=True))
    read = lambda v: v.val if hasattr(v, "val") else values[v]
    for equation in jaxpr.eqns:
        operands = [read(v) for v in equation.invars]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if hasattr(inner, "consts") and equation.primitive.name not in ("scan", "while"):
            results = _evaluate(inner.jaxpr, inner.consts, operands, u, random)
        else:
            results = equation.primitive.bind(*operands, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
        if equation.primitive.name in ARITHMETIC and all(map(differentiable, results)):
            results = moved(Inputs(list(results), []), u, random).theta
        values.update(zip(equation.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]
