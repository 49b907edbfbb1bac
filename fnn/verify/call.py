"""One call of a user's function on trees, as a function of flat lists of arrays.

In this form a call can be compiled, differentiated, widened to float64 and repeated at moved
inputs, whatever trees the user's function takes.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.base import Array
from fnn.verify.float64 import unit_roundoff
from fnn.verify.trees import as_arrays, differentiable


class Inputs(NamedTuple):
    """The arrays of a call: those it is differentiated in, other floats, and all other arrays.

    >>> Inputs([jnp.ones(2)], [], []).theta
    [Array([1., 1.], dtype=float32)]
    """

    theta: list[Any]
    floats: list[Any]
    others: list[Any]


class Call(NamedTuple):
    """rule(function, theta, *rest) as a function of `Inputs`.

    `kinds` says of each leaf of (theta, rest) which list it is in: "theta", "floats", "others",
    or "fixed" for a value that the user's function gets as it is. Equal calls share one
    compilation.

    >>> call, inputs = split(lambda f, theta, n: f(theta, n), pow, jnp.array(3.0), (2,))
    >>> call.kinds, float(call(inputs))
    (('theta', 'fixed'), 9.0)
    """

    rule: Callable[..., Any]
    function: Any
    form: Any
    kinds: tuple[str, ...]
    fixed: tuple[Any, ...]

    def arguments(self, inputs: Inputs) -> tuple[Any, tuple[Any, ...]]:
        """The trees theta and rest.

        >>> call, inputs = split(lambda f, theta: f(theta), sum, {"w": jnp.array(3.0)}, ())
        >>> call.arguments(inputs)[0]["w"] is inputs.theta[0]
        True
        """
        lists = {**inputs._asdict(), "fixed": self.fixed}
        sources = {kind: iter(leaves) for kind, leaves in lists.items()}
        return jax.tree.unflatten(self.form, [next(sources[kind]) for kind in self.kinds])

    def __call__(self, inputs: Inputs) -> Any:
        """rule(function, theta, *rest) at these inputs."""
        theta, rest = self.arguments(inputs)
        return self.rule(self.function, theta, *rest)


def split(
    rule: Callable[..., Any], function: Any, theta: Any, rest: tuple[Any, ...]
) -> tuple[Call, Inputs]:
    """The call rule(function, theta, *rest) and its inputs.

    Raises TypeError for complex numbers in theta.

    >>> call, inputs = split(lambda f, theta, x: f(theta, x), max, jnp.ones(2), (jnp.arange(2),))
    >>> [len(arrays) for arrays in inputs]
    [1, 0, 1]
    """
    theta = jax.tree.map(lambda a: jnp.asarray(a) if isinstance(a, float) else a, theta)
    leaves, form = jax.tree.flatten(as_arrays((theta, rest)))
    inside = len(jax.tree.leaves(theta))
    lists: dict[str, list[Any]] = {"theta": [], "floats": [], "others": [], "fixed": []}
    kinds = []
    for i, leaf in enumerate(leaves):
        if differentiable(leaf):
            kind = "theta" if i < inside else "floats"
        elif i < inside and jnp.iscomplexobj(leaf):
            raise TypeError(f"verify: expected real parameters, got {leaf.dtype}{leaf.shape}")
        else:
            kind = "others" if isinstance(leaf, jax.Array | np.ndarray) else "fixed"
        kinds.append(kind)
        lists[kind].append(leaf)
    call = Call(rule, function, form, tuple(kinds), tuple(lists["fixed"]))
    return call, Inputs(lists["theta"], lists["floats"], lists["others"])


# What is run of a call. Each takes the call first, then arrays.


def evaluate(call: Call, inputs: Inputs) -> Any:
    """The call's result.

    >>> call, inputs = split(lambda f, theta: f(theta), jnp.sin, jnp.array(0.0), ())
    >>> float(evaluate(call, inputs))
    0.0
    """
    return call(inputs)


def differentiate(call: Call, inputs: Inputs) -> tuple[Array, list[Array]]:
    """The value of a scalar call and its gradient with respect to theta, by autodiff.

    >>> call, inputs = split(lambda f, theta: f(theta), jnp.square, jnp.array(3.0), ())
    >>> differentiate(call, inputs)[1]
    [Array(6., dtype=float32, weak_type=True)]
    """
    return jax.value_and_grad(lambda theta: call(inputs._replace(theta=theta)))(inputs.theta)


def evaluate_moved(call: Call, inputs: Inputs, directions: list[Any], step: Any) -> Any:
    """The call's result where each array of theta is moved by `step` along its direction.

    >>> call, inputs = split(lambda f, theta: f(theta), jnp.square, jnp.array(3.0), ())
    >>> float(evaluate_moved(call, inputs, [2.0], 0.5))
    16.0
    """
    theta = [p + step * v for p, v in zip(inputs.theta, directions, strict=True)]
    return call(inputs._replace(theta=theta))


@lru_cache
def _compiled(program: Callable[..., Any]) -> Callable[..., Any]:
    """The program, jitted with little optimization: each runs a few times only."""
    fast: Any = {"xla_backend_optimization_level": 0}
    return jax.jit(program, static_argnums=0, compiler_options=fast)


def run(program: Callable[..., Any], call: Any, *arrays: Any) -> Any:
    """program(call, *arrays), compiled; or as it is, where the user's function can't be traced,
    for it branches on values or is NumPy's.

    >>> call, inputs = split(lambda f, theta: f(theta), float, jnp.array(3.0), ())
    >>> run(evaluate, call, inputs)
    3.0
    """
    try:
        return _compiled(program)(call, *arrays)
    except (TypeError, ValueError, IndexError):
        return program(call, *arrays)


def coarsest_roundoff(call: Call, inputs: Inputs) -> float:
    """The largest unit roundoff of a floating-point value inside the call; 0 if unknown.

    >>> call, inputs = split(lambda f, theta: f(theta), jnp.sin, jnp.array(0.0), ())
    >>> coarsest_roundoff(call, inputs) == unit_roundoff(jnp.float32)
    True
    """
    try:
        found = list(_values(jax.make_jaxpr(call.__call__)(inputs).jaxpr))
    except (jax.errors.JAXTypeError, TypeError):
        return 0.0
    return max((unit_roundoff(a.dtype) for a in found if differentiable(a)), default=0.0)


def _values(jaxpr: Any) -> Iterator[Any]:
    """The abstract values of all operations, those of inner programs too."""
    for equation in jaxpr.eqns:
        yield from (v.aval for v in equation.outvars)
        for param in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(param):
                yield from _values(getattr(param, "jaxpr", param))


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


def axis_lengths(inputs: Inputs) -> Sequence[int]:
    """Batch sizes and axis lengths above 1: where a wrong constant factor may come from.

    >>> axis_lengths(Inputs([jnp.ones((2, 3))], [jnp.ones((8, 3))], []))
    [8, 2, 3]
    """
    shapes = [a.shape for a in (*inputs.floats, *inputs.others, *inputs.theta) if a.ndim]
    batches = [int(np.prod(shape[:-1])) for shape in shapes]
    return [n for n in dict.fromkeys([*batches, *sum(shapes, ())]) if n > 1]
