"""`differentiable`: a layer as a function that JAX differentiates by the layer's own backward.

With J the layer's Jacobian at (params, x), the two modes of autodiff need

    forward mode   dy = J (dparams, dx)
    reverse mode   (dparams, dx) = J^T dy

and the layer defines the second. It is linear in dy, so the first is its transpose, which
`jax.linear_transpose` derives from the same hand-written backward: no second rule is needed.

`jax.custom_vjp` does not support forward mode, and `jax.custom_jvp` would transpose the transpose
of backward in reverse mode. So the JVP rule binds a primitive, `_tangent`, which is linear in the
tangents and whose transpose rule is the layer's backward: reverse mode runs `backward` itself.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from fnn.axes import cast, varying
from fnn.base import Array, Layer, Params, Residuals, Tree, check_layer

Linear = Callable[[list[Any], list[Any]], list[Array]]
"""f(residuals, arrays) -> arrays, linear in the second argument; all flat."""


def differentiable(layer: Layer) -> Callable[[Params, Any], Any]:
    """apply(params, x) -> y, a function that JAX can differentiate, for example inside models of
    Equinox or Flax: `jax.grad` and `jax.vjp` run the layer's own backward, and `jax.jvp` its
    transpose.

    Raises TypeError if layer is not a layer; the derivative raises ValueError for gradients whose
    shapes differ from those of the parameters and the input.

    >>> import fnn
    >>> apply = differentiable(fnn.relu)
    >>> jax.grad(lambda x: apply((), x).sum())(jnp.array([-1.0, 2.0]))
    Array([0., 1.], dtype=float32)
    >>> jax.jvp(lambda x: apply((), x), (jnp.array([-1.0, 2.0]),), (jnp.array([5.0, 5.0]),))[1]
    Array([0., 5.], dtype=float32)
    """
    check_layer("differentiable", layer)

    @jax.custom_jvp
    def apply(params: Params, x: Tree) -> Any:
        return layer.forward(params, x)[0]

    @apply.defjvp
    def rule(primals: tuple[Params, Any], tangents: tuple[Params, Any]) -> tuple[Any, Any]:
        params, x = primals
        y, residuals = layer.forward(params, x)
        return y, _pushed(layer, primals, residuals, y, tangents)

    return apply


def _pushed(
    layer: Layer, primals: tuple[Params, Any], residuals: Residuals, y: Tree, tangents: Any
) -> Any:
    """J (dparams, dx): a tangent of y. Integers, such as codes, have no tangent."""
    known, form = jax.tree.flatten((primals[0], residuals))
    # None leaves are not parameters; gradients and tangents have None there too.
    inputs = jax.tree.leaves_with_path(primals, is_leaf=_is_none)
    moving = [i for i, (_, a) in enumerate(inputs) if a is not None and _is_floating(a)]
    outputs, form_of_y = jax.tree.flatten(y)
    smooth = [i for i, a in enumerate(outputs) if _is_floating(a)]
    like = tuple(jax.typeof(outputs[i]) for i in smooth)
    none = [np.zeros(a.shape, jax.dtypes.float0) for a in outputs]

    def gradients(known: list[Any], cotangents: list[Any]) -> list[Array]:
        params, residuals = jax.tree.unflatten(form, known)
        dy = list(none)
        for i, cotangent in zip(smooth, cotangents, strict=True):
            dy[i] = cotangent
        grads = layer.backward(params, residuals, jax.tree.unflatten(form_of_y, dy))
        grads = jax.tree.broadcast(tuple(grads), primals, is_leaf=_is_none)
        found = jax.tree.leaves(grads, is_leaf=_is_none)
        return [_checked(*inputs[i], found[i]) for i in moving]

    # Autodiff sums a gradient that varies along a mesh axis over the devices, by transposing the
    # cast of its tangent. A gradient that backward has already summed does not vary: no cast.
    axes = [varying(inputs[i][1]) for i in moving]
    if jax.sharding.get_abstract_mesh().manual_axes:
        of_gradients = _axes_of(gradients, known, like)
        axes = [a | b for a, b in zip(axes, of_gradients, strict=True)]

    def pull(known: list[Any], cotangents: list[Any]) -> list[Array]:
        return list(map(cast, gradients(known, cotangents), axes))

    def push(known: list[Any], tangents: list[Any]) -> list[Array]:
        (dy,) = jax.linear_transpose(lambda dy: pull(known, dy), list(like))(tangents)
        return list(dy)

    given = jax.tree.leaves(tangents, is_leaf=_is_none)
    moved = map(cast, [given[i] for i in moving], axes)
    pushed = _tangent.bind(*known, *moved, rule=_Rule(push, pull, len(known), like))
    dy = list(none)
    for i, tangent in zip(smooth, pushed, strict=True):
        dy[i] = tangent
    return jax.tree.unflatten(form_of_y, dy)


def _axes_of(gradients: Linear, known: list[Any], like: tuple[Any, ...]) -> list[frozenset[str]]:
    """The mapped axes along which each gradient varies."""
    found: list[frozenset[str]] = []

    def traced(known: list[Any], cotangents: list[Any]) -> tuple[()]:
        found.extend(map(varying, gradients(known, cotangents)))
        return ()

    jax.eval_shape(traced, known, list(like))
    return found


def _is_floating(a: Any) -> bool:
    return bool(jnp.issubdtype(a.dtype, jnp.inexact))


def _is_none(a: Any) -> bool:
    return a is None


def _checked(path: Any, primal: Any, gradient: Any) -> Array:
    """The gradient. Raises ValueError if its shape or dtype differ from those of the primal."""
    expected, got = (None if a is None else f"{a.dtype}{list(a.shape)}" for a in (primal, gradient))
    if expected != got:
        name = ("params", "x")[path[0].idx] + jax.tree_util.keystr(path[1:])
        raise ValueError(f"backward: expected a gradient {expected} for {name}, got {got}")
    return jnp.asarray(gradient)


class _Rule(NamedTuple):
    """push(known, tangents) and its transpose pull(known, cotangents). The operands are the n
    arrays of known, then the tangents; like: the types of the results."""

    push: Linear
    pull: Linear
    n: int
    like: tuple[Any, ...]


_tangent = Primitive("layer_tangent")
_tangent.multiple_results = True


@_tangent.def_impl
def _of(*operands: Any, rule: _Rule) -> list[Array]:
    return rule.push(list(operands[: rule.n]), list(operands[rule.n :]))


_tangent.def_abstract_eval(lambda *operands, rule: list(rule.like))


def _jvp(
    primals: Sequence[Any], tangents: Sequence[Any], *, rule: _Rule
) -> tuple[list[Array], list[Array]]:
    """Linear in the tangents, so its derivative with respect to them is itself; with respect to
    `known`, the derivative is autodiff of push."""
    known, arrays = list(primals[: rule.n]), list(primals[rule.n :])
    out = _tangent.bind(*primals, rule=rule)
    dout = _tangent.bind(*known, *map(ad.instantiate_zeros, tangents[rule.n :]), rule=rule)
    moving = {i: t for i, t in enumerate(tangents[: rule.n]) if not isinstance(t, ad.Zero)}
    if moving:
        at = lambda moved: rule.push([moved.get(i, a) for i, a in enumerate(known)], arrays)
        by_known = jax.jvp(at, ({i: known[i] for i in moving},), (moving,))[1]
        dout = [a + b for a, b in zip(dout, by_known, strict=True)]
    return out, dout


def _transpose(cotangents: Sequence[Any], *operands: Any, rule: _Rule) -> list[Any]:
    """The layer's own backward."""
    dy = list(map(ad.instantiate_zeros, cotangents))
    return [None] * rule.n + rule.pull(list(operands[: rule.n]), dy)


def _batched(
    operands: Sequence[Any], axes: Sequence[Any], *, rule: _Rule
) -> tuple[list[Array], list[int]]:
    """The primitive with a leading batch axis. Tangents without one are broadcast, so that the
    transpose of the broadcast sums the cotangents."""
    pairs = list(zip(operands, axes, strict=True))
    (size,) = {a.shape[axis] for a, axis in pairs if axis is not None}
    front = [a if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in pairs]
    for i, axis in enumerate(axes[rule.n :], rule.n):
        if axis is None:
            front[i] = jnp.broadcast_to(front[i], (size, *front[i].shape))
    of_known = [None if axis is None else 0 for axis in axes[: rule.n]]
    over = lambda f: jax.vmap(f, (of_known, 0), axis_size=size)
    like = tuple(a.update(shape=(size, *a.shape)) for a in rule.like)
    out = _tangent.bind(*front, rule=_Rule(over(rule.push), over(rule.pull), rule.n, like))
    return out, [0] * len(out)


ad.primitive_jvps[_tangent] = _jvp
ad.primitive_transposes[_tangent] = _transpose
batching.primitive_batchers[_tangent] = _batched
mlir.register_lowering(_tangent, mlir.lower_fun(_of, multiple_results=True))
