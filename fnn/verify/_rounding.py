"""How far rounding inside a computation moves what it returns.

The computation is repeated with its inputs and every result of arithmetic inside it moved up or
down at random by a roundoff: Monte Carlo arithmetic (Parker, Pierce & Eggert, 2000). Cancellation
that the inputs alone do not show, as in s (1 - s) where s is nearly 1, shows here.
"""

from typing import Any

import jax
import numpy as np

from fnn.verify._arrays import differentiable, named_leaves
from fnn.verify._call import Call, Inputs, attempt
from fnn.verify._reference import MOVES, moved

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
