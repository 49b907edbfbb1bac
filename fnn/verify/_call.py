"""One call of a user's function on trees, as a function of flat lists of arrays.

In this form a call can be compiled, differentiated, widened to float64 and repeated at moved
inputs, whatever trees the user's function takes.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.base import Array
from fnn.verify._arrays import Function, as_arrays, differentiable, in_float64, unit_roundoff


class Inputs(NamedTuple):
    """The arrays of a call: those it is differentiated in, other floats, and all other arrays."""

    theta: list[Any]
    floats: list[Any]
    others: list[Any]


class Call(NamedTuple):
    """rule(function, theta, *rest) as a function of `Inputs`.

    `kinds` says of each leaf of (theta, rest) which list it is in: "theta", "floats", "others",
    or "fixed" for a value that the user's function gets as it is. Equal calls share one
    compilation; `rules` are the function's derivative rules, which may be defined anew.
    """

    rule: Function
    function: Any
    form: Any
    kinds: tuple[str, ...]
    fixed: tuple[Any, ...]
    rules: tuple[Any, ...]

    def of(self, rule: Function, function: Any) -> "Call":
        """The same call of another rule and function."""
        return self._replace(rule=rule, function=function, rules=_rules_of(function))

    def arguments(self, inputs: Inputs) -> tuple[Any, tuple[Any, ...]]:
        """The trees theta and rest."""
        lists = {**inputs._asdict(), "fixed": self.fixed}
        sources = {kind: iter(leaves) for kind, leaves in lists.items()}
        return jax.tree.unflatten(self.form, [next(sources[kind]) for kind in self.kinds])

    def __call__(self, inputs: Inputs) -> Any:
        """rule(function, theta, *rest) at these inputs."""
        theta, rest = self.arguments(inputs)
        return self.rule(self.function, theta, *rest)


def split(rule: Function, function: Any, theta: Any, rest: tuple[Any, ...]) -> tuple[Call, Inputs]:
    """The call rule(function, theta, *rest) and its inputs.

    Raises TypeError for complex numbers in theta.
    """
    theta = jax.tree.map(lambda a: jnp.asarray(a) if isinstance(a, float) else a, theta)
    leaves, form = jax.tree.flatten(as_arrays((theta, rest)))
    inside = len(jax.tree.leaves(theta))
    lists: dict[str, list[Any]] = {"theta": [], "floats": [], "others": [], "fixed": []}
    kinds = []
    for i, leaf in enumerate(leaves):
        if differentiable(leaf):
            kind = "theta" if i < inside else "floats"
        elif i < inside and hasattr(leaf, "dtype") and jnp.iscomplexobj(leaf):
            raise TypeError(f"verify: expected real parameters, got {leaf.dtype}{leaf.shape}")
        else:
            kind = "others" if isinstance(leaf, jax.Array | np.ndarray) else "fixed"
        kinds.append(kind)
        lists[kind].append(leaf)
    fixed = tuple(lists.pop("fixed"))
    return Call(rule, function, form, tuple(kinds), fixed, _rules_of(function)), Inputs(**lists)


def _rules_of(function: Any) -> tuple[Any, ...]:
    functions = function if isinstance(function, tuple) else (function,)
    return tuple(getattr(f, rule, None) for f in functions for rule in ("jvp", "fwd", "bwd"))


# What is run of a call. Each takes the call first, then arrays.


def evaluate(call: Call, inputs: Inputs) -> Any:
    """The call's result."""
    return call(inputs)


def differentiate(call: Call, inputs: Inputs) -> tuple[Array, list[Array], list[Array]]:
    """For a call that returns a scalar and a list of arrays: the scalar, its gradient with
    respect to theta by autodiff, and the arrays.
    """

    def f(theta: list[Any]) -> tuple[Array, list[Array]]:
        value, outputs = call(inputs._replace(theta=theta))
        return value, outputs

    (value, outputs), grads = jax.value_and_grad(f, has_aux=True)(inputs.theta)
    return value, grads, outputs


def evaluate_moved(call: Call, inputs: Inputs, directions: list[Any], steps: Any) -> Any:
    """The scalars of such a call where each array of theta is moved along its direction, for each
    of the steps.
    """

    def one(step: Any) -> Any:
        pairs = zip(inputs.theta, directions, strict=True)
        value, _ = call(inputs._replace(theta=[(p + step * v).astype(p.dtype) for p, v in pairs]))
        return value

    # One by one, for a function that can't be traced.
    return jax.lax.map(one, steps) if isinstance(steps, jax.core.Tracer) else [*map(one, steps)]


def attempt(f: Function, *args: Any, otherwise: Any = None) -> Any:
    """f(*args), or `otherwise` where f raises: another library's functions may raise anything at
    a tracer, in float64, or on a single example. A TimeoutError is a user's alarm, and passes.
    """
    try:
        return f(*args)
    except TimeoutError:
        raise
    except Exception:
        return otherwise


@lru_cache
def _compiled(program: Function) -> Function:
    """The program, jitted with little optimization: each runs a few times only."""
    fast: Any = {"xla_backend_optimization_level": 0}
    return jax.jit(program, static_argnums=0, compiler_options=fast)


def run(program: Function, call: Any, *arrays: Any) -> Any:
    """program(call, *arrays), compiled; or as it is, where the user's function can't be traced,
    for it branches on values or is NumPy's.
    """
    got = attempt(_compiled(program), call, *arrays, otherwise=run)
    return program(call, *arrays) if got is run else got


JAX = os.path.dirname(jax.__file__)
COMPILED = 3
"""How many functions of the same form and shapes are compiled before others run as they are."""


def run_gradient(call: Call, inputs: Inputs) -> Any:
    """call(inputs), compiled; where `COMPILED` other functions of the same form were, as it is:
    its operations are known by then, and to compile the next one takes longer than to run it.
    """
    shapes = tuple((a.shape, str(a.dtype)) for a in jax.tree.leaves(inputs))
    try:
        compiled = _compiled_calls(call.rule, call.form, call.kinds, shapes)
        if call not in compiled and len(compiled) >= COMPILED:
            return call(inputs)
        compiled.add(call)
    except TypeError:  # a function that has no hash
        pass
    return run(evaluate, call, inputs)


@lru_cache(maxsize=256)
def _compiled_calls(*form: Any) -> set[Call]:
    """The calls of this form and these shapes that were compiled: a set to add to."""
    return set()


@contextmanager
def float64_section(functions: Sequence[Any], *inputs: Any) -> Iterator[None]:
    """`in_float64`, for functions of these inputs that may close over NumPy arrays.

    JAX keeps a closed-over NumPy array in the dtype of the first trace for as long as a compiled
    program holds it, whether x64 is on or not. So where a function has such a constant, JAX's
    caches are cleared on both sides of the section.
    """
    held = any(_has_numpy_constant(traced(f, *inputs)) for f in functions)
    if held:
        _clear_caches()
    try:
        with in_float64():
            yield
    finally:
        if held:
            _clear_caches()


def _clear_caches() -> None:
    """Let go of every program that holds an array of NumPy's, ours included."""
    _traced.cache_clear()
    jax.clear_caches()


def same_arrays(one: Inputs, other: Inputs) -> bool:
    """Whether two inputs have the same arrays, by shape, dtype and every entry."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=False)
    same = lambda a, b: a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())
    same_form = [*map(len, one)] == [*map(len, other)]
    return same_form and all(a is b or same(a, b) for a, b in pairs)


def traced(function: Any, *inputs: Any) -> Any:
    """The function's jaxpr at inputs of these shapes; None where it can't be traced."""
    leaves, form = jax.tree.flatten(inputs)

    def trace() -> Any:
        try:
            shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
            return _traced(function, form, shapes, bool(jax.enable_x64.value))
        except (AttributeError, TypeError):  # a leaf that is no array, a function without a hash
            return jax.make_jaxpr(function)(*inputs)

    return attempt(trace)


@lru_cache(maxsize=256)
def _traced(function: Function, form: Any, shapes: tuple[Any, ...], x64: bool) -> Any:
    flat = lambda *leaves: function(*jax.tree.unflatten(form, leaves))
    return jax.make_jaxpr(flat)(*shapes)


def _has_numpy_constant(program: Any) -> bool:
    constants = (c for inner in _programs(program) for c in getattr(inner, "consts", ()))
    return any(np.ndim(c) and not isinstance(c, jax.Array) for c in constants)


def coarsest_roundoff(call: Call, inputs: Inputs) -> float:
    """The largest unit roundoff of a floating-point value that the call computes from floats and
    that reaches its result; 0 if unknown.
    """
    if not (program := traced(call, inputs)):
        return 0.0
    used = [differentiable(v.aval) for v in program.jaxpr.invars]
    return _coarsest(program, used, [True] * len(program.jaxpr.outvars))


def _coarsest(program: Any, used: Sequence[bool], wanted: Sequence[bool]) -> float:
    """The same of a jaxpr; `used` says which of its inputs count, `wanted` which results."""
    inner = getattr(program, "jaxpr", program)
    counted = {v for v, counts in zip(inner.invars, used, strict=True) if counts}
    found = 0.0
    needed = _needed(inner, wanted)
    for equation in inner.eqns:
        used = [not hasattr(v, "val") and v in counted for v in equation.invars]
        if not any(used) or not needed.intersection(equation.outvars):
            continue
        floats = [v for v in equation.outvars if differentiable(v.aval)]
        counted.update(floats)
        roundoffs = (unit_roundoff(v.aval.dtype) for v in floats)
        parts = (_of_part(part, equation, used, needed) for part in _inner(equation))
        found = max([found, *roundoffs, *parts])
    return found


def _of_part(part: Any, equation: Any, used: Sequence[bool], needed: set[Any]) -> float:
    """`_coarsest` of a jaxpr inside an equation."""
    inner = getattr(part, "jaxpr", part)
    n = len(inner.invars)
    # The operands of most loops and calls are the inputs of what is inside, the last n.
    inputs = used[len(used) - n :] if n <= len(used) else [True] * n
    wanted = [v in needed for v in equation.outvars]
    # What a loop carries feeds its other results.
    if equation.primitive.name in ("scan", "while") or len(inner.outvars) != len(wanted):
        wanted = [True] * len(inner.outvars)
    return _coarsest(part, inputs, wanted)


def _needed(inner: Any, wanted: Sequence[bool]) -> set[Any]:
    """The variables of a jaxpr that its wanted results are computed from, and these."""
    pairs = zip(inner.outvars, wanted, strict=True)
    needed = {v for v, counts in pairs if counts and not hasattr(v, "val")}
    for equation in reversed(inner.eqns):
        if needed.intersection(equation.outvars):
            needed.update(v for v in equation.invars if not hasattr(v, "val"))
    return needed


def custom_rules(call: Call, inputs: Inputs) -> list[str]:
    """The names of the functions in the call that have a derivative rule of their own, JAX's
    apart.
    """
    found = {}
    for equation in chain.from_iterable(map(_equations, _programs(traced(call, inputs)))):
        if equation.primitive.name.startswith("custom_") and "call_jaxpr" in equation.params:
            body = getattr(equation.params["call_jaxpr"], "jaxpr", None)
            source = str(getattr(getattr(body, "debug_info", None), "func_src_info", ""))
            name, _, file = source.partition(" at ")
            if not file.startswith(JAX):
                found[name or "a function"] = True
    return [*found]


def _programs(program: Any) -> Iterator[Any]:
    """A jaxpr and all that are inside it; none for None."""
    if program:
        yield program
        for part in chain.from_iterable(map(_inner, _equations(program))):
            yield from _programs(part)


def _equations(program: Any) -> Sequence[Any]:
    return getattr(program, "jaxpr", program).eqns


def _inner(equation: Any) -> list[Any]:
    is_jaxpr = lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
    params = jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr)
    return [p for p in params if is_jaxpr(p)]


def axis_lengths(inputs: Inputs) -> Sequence[int]:
    """Batch sizes and axis lengths above 1: where a wrong constant factor may come from."""
    shapes = [a.shape for a in (*inputs.floats, *inputs.others, *inputs.theta) if a.ndim]
    batches = [int(np.prod(shape[:-1])) for shape in shapes]
    return [n for n in dict.fromkeys([*batches, *sum(shapes, ())]) if n > 1]
