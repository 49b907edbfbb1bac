"""What JAX traces, evaluated in NumPy: for functions that are called once, compiling would take a
hundred times as long as computing.

Operations in less than 32 bits are done in float32 and rounded, as XLA does them. What occurs
seldom has no rule here, and is left to JAX.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from scipy import special

Array = np.ndarray
Params = dict[str, Any]


def evaluated(f: Callable[..., Any], *arguments: Any) -> Any:
    """f(*arguments), with NumPy's arrays for JAX's."""
    traced, shapes = jax.make_jaxpr(f, return_shape=True)(*arguments)
    with np.errstate(all="ignore"):
        found = _run(traced.jaxpr, traced.consts, [_array(a) for a in jax.tree.leaves(arguments)])
    return jax.tree.unflatten(jax.tree.structure(shapes), found)


def _run(jaxpr: Any, consts: Any, arguments: list[Any]) -> list[Any]:
    held: dict[Any, Any] = dict(zip(jaxpr.constvars, map(_array, consts), strict=True))
    held |= zip(jaxpr.invars, arguments, strict=True)

    def read(v: Any) -> Any:
        return np.asarray(v.val, v.aval.dtype) if isinstance(v, core.Literal) else held[v]

    for equation in jaxpr.eqns:
        operands = [read(v) for v in equation.invars]
        found = _applied(equation, operands)
        held |= zip(equation.outvars, found, strict=True)
    return [read(v) for v in jaxpr.outvars]


def _array(a: Any) -> Any:
    """NumPy's array; a key stays JAX's."""
    return a if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else np.asarray(a)


def _applied(equation: Any, operands: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if name in SEVERAL:
        return SEVERAL[name](operands, params)
    if name == "layer_tangent":  # of `fnn.differentiable`: a function of JAX's own operations
        traced = jax.make_jaxpr(partial(equation.primitive.impl, **params))(*operands)
        return _run(traced.jaxpr, traced.consts, operands)
    if any(isinstance(a, jax.Array) for a in operands):
        return _by_jax(equation, operands)
    out = equation.outvars[0].aval
    if name in EACH and jnp.issubdtype(out.dtype, jnp.inexact):
        return [np.asarray(EACH[name](*map(_wide, operands)), out.dtype)]
    if name in EACH and name in LOGICAL:
        return [np.asarray(EACH[name](*operands), out.dtype)]
    if name in ONE:
        found = ONE[name](*operands, **params)
        if found is not None:
            return [np.asarray(found, out.dtype)]
    return _by_jax(equation, operands)


def _by_jax(equation: Any, operands: list[Any]) -> list[Any]:
    found = equation.primitive.bind(*map(jax.device_put, operands), **equation.params)
    return list(map(_array, found if equation.primitive.multiple_results else [found]))


def _wide(a: Array) -> Array:
    return a.astype(np.float32) if a.dtype.itemsize < 4 and a.dtype.kind not in "biu" else a


def _floats(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """f in the array's dtype, which is at least float32."""
    return lambda a: np.asarray(f(a.astype(np.float64)), a.dtype)


LOGICAL = {"add", "add_any", "sub", "mul", "neg", "max", "min", "abs", "sign", "and", "or", "not",
           "eq", "ne", "lt", "le", "gt", "ge"}  # fmt: skip
EACH: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "max": np.maximum,
    "min": np.minimum,
    "pow": np.power,
    "abs": np.abs,
    "sign": np.sign,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "not": np.invert,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "square": np.square,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "logistic": special.expit,
    "erfc": _floats(special.erfc),
    "erf_inv": _floats(special.erfinv),
    "stop_gradient": lambda a: a,
    "copy": lambda a: a,
    "copy_p": lambda a: a,
}


def _broadcast(a: Array, *_: Any, shape: Any, broadcast_dimensions: Any, **__: Any) -> Array:
    sizes = [1] * len(shape)
    for axis, length in zip(broadcast_dimensions, a.shape, strict=True):
        sizes[axis] = length
    return np.broadcast_to(a.reshape(sizes), shape)


def _dot(a: Array, b: Array, dimension_numbers: Any, **_: Any) -> Array:
    (over_a, over_b), (batch_a, batch_b) = dimension_numbers
    free_a = [i for i in range(a.ndim) if i not in (*over_a, *batch_a)]
    free_b = [i for i in range(b.ndim) if i not in (*over_b, *batch_b)]
    shape = [a.shape[i] for i in (*batch_a, *free_a)] + [b.shape[i] for i in free_b]
    lead, inner = [a.shape[i] for i in batch_a], [a.shape[i] for i in over_a]
    count = int(np.prod(inner))
    left = _wide(a).transpose(*batch_a, *free_a, *over_a).reshape(*lead, -1 if count else 0, count)
    right = _wide(b).transpose(*batch_b, *over_b, *free_b).reshape(*lead, count, -1 if count else 0)
    return (left @ right).reshape(shape)


def _reduced(f: Callable[..., Array]) -> Callable[..., Array]:
    return lambda a, axes, **_: f(_wide(a), axis=tuple(axes))


def _padded(a: Array, by: Array, padding_config: Any) -> Array | None:
    if any(low < 0 or high < 0 for low, high, _ in padding_config):
        return None
    sizes = [
        low + high + length + max(0, length - 1) * between
        for length, (low, high, between) in zip(a.shape, padding_config, strict=True)
    ]
    out = np.full(sizes, by, a.dtype)
    out[
        tuple(
            slice(low, low + max(0, (length - 1) * (between + 1) + 1), between + 1)
            if length
            else slice(0, 0)
            for length, (low, _, between) in zip(a.shape, padding_config, strict=True)
        )
    ] = a
    return out


def _convolved(
    x: Array,
    kernel: Array,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any,
    rhs_dilation: Any,
    dimension_numbers: Any,
    feature_group_count: int,
    batch_group_count: int,
    **_: Any,
) -> Array | None:
    lows = [low for pair in padding for low in pair]
    if (feature_group_count, batch_group_count) != (1, 1) or min(lows) < 0:
        return None
    x = _wide(x).transpose(dimension_numbers.lhs_spec)
    kernel = _wide(kernel).transpose(dimension_numbers.rhs_spec)
    spatial = [(low, high, d - 1) for (low, high), d in zip(padding, lhs_dilation, strict=True)]
    x = _padded(x, np.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *spatial])
    assert x is not None
    sizes = [
        (n - (k - 1) * d - 1) // s + 1
        for n, k, d, s in zip(
            x.shape[2:], kernel.shape[2:], rhs_dilation, window_strides, strict=True
        )
    ]
    y: Any = 0
    for place in np.ndindex(*kernel.shape[2:]):
        seen = tuple(
            slice(i * d, i * d + (n - 1) * s + 1, s)
            for i, d, n, s in zip(place, rhs_dilation, sizes, window_strides, strict=True)
        )
        weights = kernel[(slice(None), slice(None), *place)]
        y = y + np.moveaxis(
            np.tensordot(weights, x[(slice(None), slice(None), *seen)], (1, 1)), 0, 1
        )
    back = np.argsort(dimension_numbers.out_spec)
    return y.transpose(back)


def _sliced(a: Array, start_indices: Any, limit_indices: Any, strides: Any) -> Array:
    strides = strides or [1] * a.ndim
    return a[tuple(map(slice, start_indices, limit_indices, strides))]


def _gathered(a: Array, indices: Array, dimension_numbers: Any, slice_sizes: Any, **_: Any) -> Any:
    """Rows of a matrix; None for other gathers."""
    trailing = tuple(range(indices.ndim - 1, indices.ndim - 2 + a.ndim))
    plain = (trailing, (0,), (), (), (0,))
    if tuple(dimension_numbers)[:5] != plain or tuple(slice_sizes) != (1, *a.shape[1:]):
        return None
    rows = indices[..., 0]
    within = (rows >= 0) & (rows < len(a))
    return a[rows] if within.all() else None


def _scattered(a: Array, indices: Array, updates: Array, dimension_numbers: Any, **_: Any) -> Any:
    """Rows added to those of a matrix; None for other scatters."""
    trailing = tuple(range(indices.ndim - 1, indices.ndim - 2 + a.ndim))
    if tuple(dimension_numbers)[:5] != (trailing, (0,), (0,), (), ()):
        return None
    sums = _wide(a).copy()
    rows = indices[..., 0]
    within = (rows >= 0) & (rows < len(a))
    np.add.at(sums, rows[within], _wide(updates)[within])
    return sums


ONE: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast,
    "convert_element_type": lambda a, **_: a,
    "select_n": lambda which, *cases: (
        np.where(which, cases[1], cases[0]) if len(cases) == 2 else None
    ),
    "dot_general": _dot,
    "conv_general_dilated": _convolved,
    "reduce_sum": _reduced(np.sum),
    "reduce_max": _reduced(np.max),
    "reduce_min": _reduced(np.min),
    "reduce_or": _reduced(np.any),
    "reduce_and": _reduced(np.all),
    "reshape": lambda a, new_sizes, dimensions, **_: (
        a if dimensions is None else a.transpose(dimensions)
    ).reshape(new_sizes),
    "squeeze": lambda a, dimensions: a.squeeze(tuple(dimensions)),
    "transpose": lambda a, permutation: a.transpose(permutation),
    "rev": lambda a, dimensions: np.flip(a, dimensions),
    "slice": _sliced,
    "pad": _padded,
    "concatenate": lambda *parts, dimension: np.concatenate(parts, dimension),
    "stack": lambda *parts, axis: np.stack(parts, axis),
    "integer_pow": lambda a, y: _wide(a) ** y,
    "gather": _gathered,
    "scatter-add": _scattered,
    "iota": lambda *_, dtype, shape, dimension, **__: np.broadcast_to(
        np.arange(shape[dimension], dtype=dtype).reshape(
            [-1 if axis == dimension else 1 for axis in range(len(shape))]
        ),
        shape,
    ),
    "cumsum": lambda a, axis, reverse: None if reverse else np.cumsum(_wide(a), axis),
}


def _scan(operands: list[Any], params: Params) -> list[Any]:
    body = params["jaxpr"]
    if "num_consts" in params:
        consts, carried = params["num_consts"], params["num_carry"]
    else:  # after jax 0.10
        consts, carried, _ = map(len, params["ft_in"].unpack())
    fixed, carry = operands[:consts], operands[consts : consts + carried]
    each, length = operands[consts + carried :], params["length"]
    rows: list[list[Any]] = []
    for i in reversed(range(length)) if params["reverse"] else range(length):
        found = _run(body.jaxpr, body.consts, [*fixed, *carry, *(a[i] for a in each)])
        carry, noted = found[:carried], found[carried:]
        rows.append(noted)
    rows = rows[::-1] if params["reverse"] else rows
    return [*carry, *(_stacked(column) for column in zip(*rows, strict=True))]


def _stacked(column: Any) -> Any:
    return jnp.stack(column) if isinstance(column[0], jax.Array) else np.stack(column)


def _cond(operands: list[Any], params: Params) -> list[Any]:
    branch = params["branches"][int(operands[0])]
    return _run(branch.jaxpr, branch.consts, operands[1:])


def _call(name: str) -> Callable[[list[Any], Params], list[Any]]:
    return lambda operands, params: _run(params[name].jaxpr, params[name].consts, operands)


SEVERAL: dict[str, Callable[[list[Any], Params], list[Any]]] = {
    "jit": _call("jaxpr"),
    "pjit": _call("jaxpr"),
    "closed_call": _call("call_jaxpr"),
    "custom_jvp_call": _call("call_jaxpr"),
    "scan": _scan,
    "cond": _cond,
    "optimization_barrier": lambda operands, params: operands,
    "split": lambda operands, params: np.split(
        operands[0], np.cumsum(params["sizes"])[:-1], params["axis"]
    ),
}
