"""The flops of the matrix products in a traced function."""

import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def products(jaxpr: Any, devices: int) -> float:
    """The flops per device, 2 per multiply-add. The body of a `while_loop` counts once, of a
    conditional the most expensive branch; outside `shard_map`, work is split over all devices."""
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum(_equation(equation, devices) for equation in jaxpr.eqns)


def _equation(equation: Any, devices: int) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return 2 * math.prod(result) * math.prod(left[i] for i in contracted) / devices
    if name == "conv_general_dilated":
        kernel, result = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(result) * math.prod(kernel) / features / devices
    inner = [
        products(value, 1 if name == "shard_map" else devices)
        for param in params.values()
        for value in (param if isinstance(param, tuple | list) else [param])
        if isinstance(value, Jaxpr | ClosedJaxpr)
    ]
    times = params["length"] if name == "scan" else 1
    return times * (max(inner, default=0) if name == "cond" else sum(inner))
