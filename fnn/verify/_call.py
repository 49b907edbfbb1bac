"""One call of a user's function on trees, as a function of flat lists of arrays.

In this form a call can be compiled, differentiated, widened to float64 and repeated at moved
inputs, whatever trees the user's function takes.

Trees of arrays, as users hand them over: which leaves have a derivative, their names; computing in
float64, whatever JAX's configuration is, and leaving the configuration alone.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import chain
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from fnn.base import ONCE, Array

Function = Callable[..., Any]


def differentiable(leaf: Any) -> bool:
    """Whether a leaf is a floating-point array. Only such leaves are differentiated."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def floats(tree: Any) -> list[Any]:
    """The floating-point leaves of a tree."""
    return [leaf for leaf in jax.tree.leaves(tree) if differentiable(leaf)]


def as_arrays(tree: Any) -> Any:
    """The tree with NumPy's arrays as JAX's, in the dtype that JAX gives them here."""
    none = jax.dtypes.float0
    numpy = lambda leaf: isinstance(leaf, np.ndarray | np.generic) and leaf.dtype != none
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if numpy(leaf) else leaf, tree)


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves by their paths, joined with dots."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in flat}


def random_cotangent(key: Array | None, y: Any) -> Any:
    """A random cotangent for the tree y, each leaf drawn in its own dtype. Without a key it is
    the same at each call.
    """
    leaves, form = jax.tree.flatten(y)
    keys = jax.random.split(jax.random.key(0) if key is None else key, max(len(leaves), 1))
    normal = lambda a, key: jax.random.normal(key, a.shape, a.dtype)
    none = lambda a: np.zeros(a.shape, jax.dtypes.float0)
    drawn = map(lambda a, key: normal(a, key) if differentiable(a) else none(a), leaves, keys)
    return jax.tree.unflatten(form, drawn)


ROUNDOFF = 2.0**-53
"""The unit roundoff of float64."""


def unit_roundoff(dtype: Any) -> float:
    """The largest relative error of rounding a number to a floating-point dtype."""
    return float(jnp.finfo(dtype).eps) / 2


def coarsest_dtype(arrays: Iterable[Any]) -> Any:
    """The floating-point dtype of the arrays that rounds most; float64 for none."""
    return max((a.dtype for a in arrays), key=unit_roundoff, default=jnp.dtype(float))


def map_floats(f: Function, tree: Any, *others: Any) -> Any:
    """`jax.tree.map` of f over the floating-point arrays of the tree; all else as it is."""
    return jax.tree.map(lambda a, *b: f(a, *b) if differentiable(a) else a, tree, *others)


def widened(tree: Any) -> Any:
    """The tree with its floating-point arrays in float64; everything else as it is."""
    return map_floats(lambda a: jnp.asarray(np.asarray(a, np.float64)), tree)


at_highest_precision = partial(jax.default_matmul_precision, "highest")
"""A context: matrix products in the full precision of their dtype."""


class Inputs(NamedTuple):
    """The arrays of a call: those it is differentiated in, and all others."""

    theta: list[Any]
    rest: list[Any]


class Call(NamedTuple):
    """rule(function, theta, *rest) as a function of `Inputs`.

    `kinds` says of each leaf of (theta, rest) which list it is in: "theta", "rest", or
    "fixed" for a value that the user's function gets as it is. Equal calls share one
    compilation; `rules` are the function's derivative rules, which may be defined anew. `wide`:
    with float64 for what it computes from float32 arrays that it closes over.
    """

    rule: Function
    function: Any
    form: Any
    kinds: tuple[str, ...]
    fixed: tuple[Any, ...]
    rules: tuple[Any, ...]
    wide: bool = False

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

    def kind(i: int, leaf: Any) -> str:
        array = isinstance(leaf, jax.Array | np.ndarray)
        if i < inside and array and jnp.iscomplexobj(leaf):
            raise TypeError(f"verify: expected real parameters, got {leaf.dtype}{leaf.shape}")
        return "theta" if i < inside and differentiable(leaf) else "rest" if array else "fixed"

    kinds = tuple(map(kind, range(len(leaves)), leaves))
    of = lambda kind: [leaf for leaf, its in zip(leaves, kinds, strict=True) if its == kind]
    call = Call(rule, function, form, kinds, tuple(of("fixed")), _rules_of(function))
    return call, Inputs(of("theta"), of("rest"))


def _rules_of(function: Any) -> tuple[Any, ...]:
    functions = function if isinstance(function, tuple) else (function,)
    return tuple(getattr(f, rule, None) for f in functions for rule in ("jvp", "fwd", "bwd"))


# What is run of a call. Each takes the call first, then arrays.


def evaluate(call: Function, *inputs: Any) -> Any:
    """The call's result."""
    return call(*inputs)


def differentiate(call: Call, inputs: Inputs) -> tuple[Array, list[Array], dict[str, Array]]:
    """For a call that returns a scalar and arrays by name: the scalar, its gradient with respect
    to theta by autodiff, and the arrays.
    """
    f = lambda theta: call(inputs._replace(theta=theta))
    (value, outputs), grads = jax.value_and_grad(f, has_aux=True)(inputs.theta)
    return value, grads, outputs


def listed(tree: Any) -> list[np.ndarray]:
    """The leaves of a tree, such as what `differentiate` gives, in float64."""
    return [np.asarray(a, np.float64) for a in jax.tree.leaves(tree)]


def row_of(tree: Any) -> np.ndarray:
    """All entries of a tree's arrays as one, in float64."""
    return np.concatenate([np.zeros(0), *map(np.ravel, listed(tree))])


def outcome(f: Function, *args: Any) -> Any:
    """f(*args), or the exception that it raises: another library's functions may raise anything at
    a tracer, in float64, or on a single example. A TimeoutError is a user's alarm, and passes.
    """
    try:
        return f(*args)
    except TimeoutError:
        raise
    except Exception as error:
        return error


def attempt(f: Function, *args: Any, otherwise: Any = None) -> Any:
    """f(*args), or `otherwise` where f raises."""
    found = outcome(f, *args)
    return otherwise if isinstance(found, Exception) else found


_jitted = lru_cache(partial(jax.jit, static_argnums=0))


def traced(program: Function, call: Any, *arrays: Any) -> Any:
    """The program's jaxpr at these arrays, from JAX's cache where it has one, and the tree of what
    it returns. None, twice, where the user's function can't be traced, for it branches on values
    or is NumPy's.
    """
    if (trace := attempt(_jitted(program).trace, call, *arrays)) is None:
        return None, None
    wide = getattr(call, "wide", False) and jax.config.read("jax_enable_x64")
    return _widened_inside(trace.jaxpr) if wide else trace.jaxpr, trace.out_tree


@lru_cache(maxsize=256)
def _widened_inside(program: Any) -> Any:
    """The jaxpr with its constants in float64, and what it computes from them alone."""
    if coarsest_dtype(floats(_constants(program))) == jnp.float64:
        return program
    again = jax.make_jaxpr(lambda *a: interpreted(program, [*a], _widening, widened))
    return attempt(again, *program.in_avals, otherwise=program)


def _widening(equation: Any, operands: list[Any]) -> Any:
    """The result in float64 where all floats among the operands are, whatever was traced."""
    pairs = [*zip(operands, equation.invars, strict=True)]
    given = floats([o for o, v in pairs if not hasattr(v, "val")])
    wide = given and not _inner(equation) and coarsest_dtype(given) == jnp.float64
    double = np.dtype(np.float64)
    of = lambda dtype: double if wide and jnp.issubdtype(dtype, jnp.floating) else dtype
    cast = [jax.lax.convert_element_type(o, of(v.aval.dtype)) for o, v in pairs]
    params = {k: of(v) if isinstance(v, np.dtype) else v for k, v in equation.params.items()}
    return equation.primitive.bind(*cast, **params)


def run(program: Function, call: Any, *arrays: Any) -> Any:
    """program(call, *arrays), compiled or operation by operation, whichever is faster; or as it is,
    where it can't be traced.
    """
    jaxpr, form = traced(program, call, *arrays)
    known = attempt(_known_operations, jaxpr)  # parameters may not be hashable
    way = partial(interpreted, apply=applied) if known else _compiled
    results = attempt(way, jaxpr, jax.tree.leaves(arrays)) if jaxpr else None
    return program(call, *arrays) if results is None else jax.tree.unflatten(form, results)


CALLS = {"jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint"}
"""The primitives that do nothing but call the program inside."""


def bound(equation: Any, operands: list[Any]) -> Any:
    """What an equation's primitive makes of these operands."""
    return equation.primitive.bind(*operands, **equation.params)


def interpreted(
    program: Any, arrays: list[Any], apply: Function = bound, constants: Function = list
) -> list[Any]:
    """The results of a jaxpr, by apply(equation, operands), one equation after the other; with
    constants(what it holds)."""
    inner = getattr(program, "jaxpr", program)
    held = constants(getattr(program, "consts", ()))
    values = dict(zip([*inner.constvars, *inner.invars], [*held, *arrays], strict=True))
    read = lambda v: v.val if hasattr(v, "val") else values[v]
    for equation in inner.eqns:
        operands = [*map(read, equation.invars)]
        if equation.primitive.name in CALLS:
            results = interpreted(_inner(equation)[0], operands, apply, constants)
        else:
            results = apply(equation, operands)
            results = results if equation.primitive.multiple_results else [results]
        values.update(zip(equation.outvars, results, strict=True))
    return [*map(read, inner.outvars)]


# With little optimization: each program runs a few times only.
_fast: Function = partial(jax.jit, compiler_options=ONCE)
_compiled = _fast(interpreted, static_argnums=0)


@lru_cache(maxsize=4096)
def _operation(primitive: Any, *params: Any) -> Function:
    """A primitive with its parameters, jitted once for all equations that have them."""
    return _fast(partial(primitive.bind, **dict(params)))


def applied(equation: Any, operands: list[Any]) -> Any:
    """The same as `bound`, jitted."""
    return _operation(equation.primitive, *equation.params.items())(*operands)


_met: Counter[Any] = Counter()
"""How many programs had an operation. It is compiled once for all; the third waits for that."""


@lru_cache(maxsize=256)
def _known_operations(program: Any) -> bool:
    """Whether to run a jaxpr operation by operation: it is small, without loops and narrow dtypes,
    whose rounding compilers change, and few of its operations are new here.
    """
    equations = [e for e in _equations(program) if e.primitive.name not in CALLS]
    results = [v.aval for e in equations for v in e.outvars]
    narrow = unit_roundoff(coarsest_dtype(filter(differentiable, results))) > 1e-6
    loops = any(_inner(e) and "scatter" not in e.primitive.name for e in equations)
    kinds = lambda e: tuple((v.aval.shape, v.aval.dtype) for v in e.invars)
    operations = {(e.primitive, *e.params.items(), kinds(e)) for e in equations if not loops}
    new = sum(_met[operation] < 2 for operation in operations)
    _met.update(operations)
    return not (loops or narrow or new > 3 or sum(a.size for a in results) > 10**7)


@contextmanager
def float64_section(functions: Sequence[Any], *inputs: Any) -> Iterator[None]:
    """x64 on, matrix products at the highest precision, and no warnings from NumPy; for functions
    of these inputs that may close over NumPy arrays.

    Dtypes are promoted by JAX's standard rules: next to float64, a constant that the user's
    function holds in float32 is no mistake.

    JAX keeps a closed-over NumPy array in the dtype of the first trace for as long as a compiled
    program holds it, whether x64 is on or not. So where a function has such a constant, JAX's
    caches are cleared on both sides of the section.
    """
    caches = _met.clear, _known_operations.cache_clear, _widened_inside.cache_clear
    clear = (*caches, jax.clear_caches) if _hold_numpy(functions, inputs) else ()
    promoting = jax.numpy_dtype_promotion("standard")
    try:
        [f() for f in clear]
        with jax.enable_x64(True), promoting, at_highest_precision(), np.errstate(all="ignore"):
            yield
    finally:
        [f() for f in clear]


def _hold_numpy(functions: Sequence[Any], inputs: Any) -> bool:
    # In a function of its own: no program that holds one may live on in the section.
    with at_highest_precision():
        held = (c for f in functions for c in _constants(traced(evaluate, f, *inputs)[0]))
        return any(np.ndim(c) and not isinstance(c, jax.Array) for c in held)


def _constants(program: Any) -> list[Any]:
    """What a jaxpr, and those inside it, hold."""
    return [c for part in _programs(program) for c in getattr(part, "consts", ())]


def coarsest_roundoff(call: Call, inputs: Inputs) -> float:
    """The largest unit roundoff of a floating-point value that the call computes from floats and
    that reaches its result; 0 if unknown.
    """
    if not (program := traced(evaluate, call, inputs)[0]):
        return 0.0
    inner, found = program.jaxpr, [0.0]
    needed, _ = dce_jaxpr(inner, [True] * len(inner.outvars), instantiate=True)

    def from_floats(equation: Any, used: list[Any]) -> Any:
        counts = any(one is True for one in used)
        values = [v.aval for e in (equation, *_equations(*_inner(equation))) for v in e.outvars]
        found.extend(unit_roundoff(a.dtype) for a in values if counts and differentiable(a))
        results = [counts and differentiable(v.aval) for v in equation.outvars]
        return results if equation.primitive.multiple_results else results[0]

    used = [differentiable(v.aval) for v in needed.invars]
    interpreted(program.replace(jaxpr=needed), used, from_floats)
    return max(found)


JAX = os.path.dirname(jax.__file__)


def custom_rules(call: Call, inputs: Inputs) -> list[str]:
    """The names of the functions in the call that have a derivative rule of their own, JAX's
    apart.
    """
    found = {}
    for equation in _equations(traced(evaluate, call, inputs)[0]):
        body = equation.params.get("call_jaxpr")
        if equation.primitive.name.startswith("custom_") and body is not None:
            source = getattr(getattr(body, "jaxpr", body).debug_info, "func_src_info", "")
            name, _, file = str(source).partition(" at ")
            if not file.startswith(JAX):
                found[name or "a function"] = True
    return [*found]


def _programs(*programs: Any) -> Iterator[Any]:
    """The jaxprs and all that are inside them; none for None."""
    for program in filter(None, programs):
        yield program
        yield from _programs(*chain.from_iterable(map(_inner, program.eqns)))


def _equations(*programs: Any) -> list[Any]:
    return [equation for program in _programs(*programs) for equation in program.eqns]


def _inner(equation: Any) -> list[Any]:
    is_jaxpr = lambda x: hasattr(x, "eqns")
    params = jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr)
    return [p for p in params if is_jaxpr(p)]


def axis_lengths(inputs: Inputs) -> Sequence[int]:
    """Batch sizes and axis lengths above 1: where a wrong constant factor may come from."""
    shapes = [a.shape for a in (*inputs.rest, *inputs.theta) if a.ndim]
    batches = [int(np.prod(shape[:-1])) for shape in shapes]
    return [n for n in dict.fromkeys([*batches, *sum(shapes, ())]) if n > 1]
