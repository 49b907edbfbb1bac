"""Checks of hand-written gradients: of a layer, a vector-Jacobian product, a loss, any function.

Each leaf of a gradient goes through three checks, explained in `fnn.verify._checks`: in float64
against autodiff, in the dtype that the user runs, and against finite differences. The verdict
that follows from them is decided there too.

All measures are relative, so scaling the loss hides nothing. Integers, booleans and keys are
passed on and not differentiated. A check leaves JAX's configuration as it was, and works whether
x64 is on or off. The user's functions are compiled; those that can't be, for they branch on
values or are NumPy's, run as they are.

A law that needs no reference: a vector-Jacobian product is linear in its cotangent.

The first wrong layer of a network, counted from the output, where backpropagation begins.

Each layer is compared with autodiff by itself, in float64, and gets the true cotangent of its
output: one wrong layer is not taken for many. The layers of a network are its `Layer.parts`.

Whether a layer keeps `Layer`'s contract with `reduce`, which per-example statistics need.

A backward that hands `reduce` other factors than the examples' own can be right as a sum over the
batch: `total` is linear, so that plain backpropagation shows no difference. Another reduction does:
`rows`, one gradient per example, is compared with autodiff of the layer on each example alone. A
backward that changes what `reduce` returned is refused by `per_example_backward`.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.backprop import per_example_backward
from fnn.base import Array, Layer, Loss, Params, check_loss as expect_loss
from fnn.reductions import Direct
from fnn.verify import _call as calls
from fnn.verify._call import Function, attempt, differentiable, floats
from fnn.verify._engine import Task, compare
from fnn.verify._leaf import FLOOR, NONE, Check, Leaf, joined, measure, same, unfit, values_at
from fnn.verify._report import Report

HALF = ("float16", "bfloat16")


def check_layer(
    layer: Layer,
    params: Params,
    x: Any,
    *,
    reference: Function | None = None,
    key: Array | None = None,
) -> Report:
    """A layer's backward against autodiff of its forward: dparams and dx.

    The cotangent is drawn from `key`, so that every output counts, no two by the same weight.
    In a network that fnn's combinators made, the report names the first wrong layer. x and y may
    be trees.

    Where dparams is right, a further leaf, "per-example", says whether each example's own
    gradient is right too: whether `backward` hands every parameter's per-example gradients to
    `reduce` and returns the result untouched. It is left out for a layer without parameters,
    one whose backward takes no `reduce`, and one whose examples can't be told apart.

    `reference(params, x) -> y` is the function whose derivative `backward` means to give, where
    that is not forward's: a straight-through estimator's identity, -x for reversed gradients.

    A layer that varies is checked as it is without key and statistics. To check it as it is in
    training, check `fnn.at(layer, key)`.

    Raises TypeError for what has no forward and backward.

    >>> import fnn
    >>> layer = fnn.elementwise(lambda x: x**3, lambda x, y: 2 * x**2)
    >>> report = check_layer(layer, (), jnp.array([[0.5, 1.0, 1.5]]))
    >>> report.verdict, report.leaves[0].name
    ('fail', 'dx')
    """
    if not (hasattr(layer, "forward") and hasattr(layer, "backward")):
        hint = "check_custom takes a function with a derivative of its own"
        raise TypeError(f"check_layer: expected a layer, got {layer!r}; {hint}")
    report = check_vjp(layer.forward, layer.backward, params, x, reference=reference, key=key)
    leaves = tuple(leaf for leaf in report.leaves if leaf.name.startswith("d"))
    report = replace(report, name="check_layer", leaves=leaves)
    if reference is not None:
        return report

    def both(params: Params, x: Any) -> Any:
        y, residuals = layer.forward(params, x)
        return layer.backward(params, residuals, calls.random_cotangent(key, y))

    inputs = calls.as_arrays((params, x))
    with calls.float64_section([both], *inputs):
        params, x = calls.widened(inputs)
        if report.verdict == "fail":
            dy = calls.random_cotangent(key, layer.forward(params, x)[0])
            return replace(report, place=first_wrong_layer(layer, params, x, dy))
        leaf = per_example_leaf(layer, params, x, key, report.leaves)
    return replace(report, leaves=(*report.leaves, leaf)) if leaf else report


def check_vjp(
    forward: Function,
    backward: Function,
    params: Params,
    x: Any,
    *,
    reference: Function | None = None,
    key: Array | None = None,
) -> Report:
    """forward(params, x) -> (y, residuals) and backward(params, residuals, dy) -> (dparams, dx)
    against autodiff of the forward. params, x and y may be any trees.

    The cotangent dy is drawn from `key`. Of a wrong leaf that is not linear in dy the note says
    so: something in it is not multiplied by the cotangent.

    With `reference(params, x) -> y`, the same function in plain operations, autodiff of that is
    the reference, and the forward's y is checked too. So a kernel is checked that autodiff can't
    take, or that computes in float32 whatever it is given; the functions may be another library's
    and take and return NumPy's arrays.

    Raises TypeError for a forward that does not return a pair.

    >>> forward = lambda w, x: (jnp.sin(w * x), x)
    >>> backward = lambda w, x, dy: ((dy * x * jnp.cos(w * x)).sum(), dy * w * jnp.cos(w * x))
    >>> check_vjp(forward, backward, jnp.array(0.5), jnp.array([1.0, 2.0])).verdict
    'pass'
    """
    inputs = calls.as_arrays((params, x))

    def y_of(params: Any, x: Any) -> Any:
        result = forward(params, x)
        if not (isinstance(result, tuple | list) and len(result) == 2):
            got = type(result).__name__
            raise TypeError(f"check_vjp: expected forward to return (y, residuals), got {got}")
        return result[0]

    dy = calls.random_cotangent(key, shapes_of(reference or y_of, *inputs))
    objective = (_product, (forward, reference))
    gradient = (_by_backward, (forward, backward, reference))
    theta = {"dparams": params, "dx": x}
    return at_both_cotangents("check_vjp", objective, gradient, theta, dy)


def at_both_cotangents(name: str, objective: Task, gradient: Task, theta: Any, dy: Any) -> Report:
    """`compare` with the cotangent dy; in half precision also with `_one_sided`, for a sum that
    overflows, or stops growing, shows only where its terms are of one sign."""
    report = compare(name, objective, gradient, theta, dy)
    if report.verdict == "fail" or report.dtype not in HALF:
        return report
    again = compare(name, objective, gradient, theta, _one_sided(objective, theta, dy))
    return again if again.verdict == "fail" else report


def _one_sided(objective: Task, theta: Any, dy: Any) -> Any:
    """The cotangent with the signs of J v, where v moves the smallest arrays most: most terms of a
    sum over the batch are then of one sign."""
    call, inputs = calls.split(*objective, theta, (dy,))
    with calls.float64_section([call], inputs):
        at = calls.widened(inputs)
        steps = zip(at.theta, calls.random_cotangent(None, at.theta), strict=True)
        moved = [a + 1e-3 * v * (abs(a).max() or 1.0) / a.size if a.size else a for a, v in steps]
        y, changed = (call(at._replace(theta=theta))[1].values() for theta in (at.theta, moved))
        signs = iter([np.where(b < a, -1, 1) for a, b in zip(y, changed, strict=True)])
    return calls.map_floats(lambda d: abs(d) * next(signs).astype(d.dtype), dy)


def shapes_of(f: Function, *inputs: Any) -> Any:
    """What f returns: its shapes and dtypes, or the arrays where f can't be traced."""
    found = attempt(jax.eval_shape, f, *inputs, otherwise=f)
    return calls.as_arrays(f(*inputs)) if found is f else found


def check_loss(
    loss: Loss, prediction: Any, target: Any, *, example_axes: int | None = None
) -> Report:
    """A loss's gradient against autodiff of its values, which are one per example.

    The prediction may be a tree of arrays that share the examples' axes: by default all but the
    last of an array, those of the value of a tree. `example_axes` is their number, such as 1 for a
    loss per sequence (..., tokens, k). A value that depends on other examples fails, unless the
    loss says `mixes=True`.

    Raises TypeError for what is not a loss.

    >>> import fnn
    >>> half = fnn.mse._replace(value=lambda p, t: fnn.mse.value(p, t) / 2)
    >>> check_loss(half, jnp.array([[1.0, 3.0]]), jnp.zeros((1, 2))).verdict
    'fail'
    """
    expect_loss("check_loss", loss)
    objective, gradient = (_sum_of_losses, loss.value), (_by_rule, loss.gradient)
    report = compare("check_loss", objective, gradient, {"gradient": prediction}, target)
    inputs = calls.as_arrays((prediction, target))
    shape = jax.eval_shape(loss.value, *inputs).shape
    note = _not_one_per_example(inputs[0], shape, example_axes)
    if not note and not loss.mixes and _mixes(loss.value, inputs[0], inputs[1], len(shape)):
        note = "the loss of an example depends on other examples of the batch: say mixes=True"
    return replace(report, leaves=(unfit("value", note), *report.leaves)) if note else report


def check_gradients(
    value_and_grad_fn: Function, objective_fn: Function, params: Params, *args: Any
) -> Report:
    """value_and_grad_fn(params, *args) -> (value, grads) against autodiff of
    objective_fn(params, *args) -> value. The value is checked too.

    For `fnn.value_and_grad(network, loss)`, jitted or not, the report names the first wrong
    layer.

    >>> objective = lambda w: jnp.sum(w**2)
    >>> report = check_gradients(lambda w: (objective(w), w), objective, jnp.array([1.0, 2.0]))
    >>> report.verdict, [leaf.name for leaf in report.leaves if leaf.verdict == "fail"]
    ('fail', ['grads'])
    """
    objective, gradient = (_value, objective_fn), (_value_and_grads, value_and_grad_fn)
    report = compare("check_gradients", objective, gradient, {"grads": params}, *args)
    inner = inspect.unwrap(value_and_grad_fn)
    if report.verdict == "fail" and isinstance(inner, partial):
        match inner.args, args:
            case (Layer() as network, Loss() as loss, *_), (x, y, *_):
                with calls.float64_section([network.forward], *calls.as_arrays((params, x))):
                    inputs = calls.widened(calls.as_arrays((params, x, y)))
                    return replace(report, place=first_wrong_part(network, loss, *inputs))
    return report


# For each kind of check, the scalar f(theta, rest) that autodiff and finite differences take;
# and beside it the tree under test.


def _value(objective_fn: Function, theta: Any, *args: Any) -> tuple[Any, dict[str, Any]]:
    value = objective_fn(theta["grads"], *args)
    return value, {"value": value}


def _value_and_grads(value_and_grad_fn: Function, theta: Any, *args: Any) -> Any:
    value, grads = value_and_grad_fn(theta["grads"], *args)
    return {"value": jnp.asarray(value), "grads": grads}


def _sum_of_losses(value: Function, theta: Any, target: Any) -> tuple[Any, dict[str, Any]]:
    return value(theta["gradient"], target).sum(), {}


def _by_rule(gradient: Function, theta: Any, target: Any) -> Any:
    return {"gradient": gradient(theta["gradient"], target)}


def _product(functions: tuple[Function, Function | None], theta: Any, dy: Any) -> Any:
    forward, reference = functions
    at = theta["dparams"], theta["dx"]
    return product(reference(*at) if reference else forward(*at)[0], dy)


def product(y: Any, dy: Any) -> tuple[Any, dict[str, Any]]:
    """<dy, y>, whose gradient is the vector-Jacobian product with dy; and the arrays of y."""
    outputs = {n: a for n, a in calls.named_leaves({"y": y}).items() if differentiable(a)}
    pairs = zip(outputs.values(), floats(dy), strict=True)
    return sum(jnp.sum(a * b) for a, b in pairs), outputs


def _by_backward(functions: tuple[Any, ...], theta: Any, dy: Any) -> Any:
    forward, backward, reference = functions
    y, residuals = forward(theta["dparams"], theta["dx"])
    dparams, dx = backward(theta["dparams"], residuals, dy)
    return {"dparams": dparams, "dx": dx} | ({"y": y} if reference else {})


def _mixes(value: Function, prediction: Any, target: Any, axes: int) -> bool:
    """Whether an example's loss is a different one when the example is alone."""
    with calls.float64_section([value], prediction, target):
        batch = calls.widened((prediction, target))
        alone = lambda p, t: value(*jax.tree.map(lambda a: a[None], (p, t)))[0]
        for _ in range(axes):
            alone = jax.vmap(alone)
        one, other = attempt(lambda: (value(*batch), alone(*batch)), otherwise=(0.0, 0.0))
    return not same(one, other, 1e-4)


def _not_one_per_example(prediction: Any, shape: tuple[int, ...], axes: int | None) -> str:
    """What is wrong with a loss's value of this shape; "" where it is one per example: for an
    array (..., k) of shape (...), for a tree over leading axes that all its arrays share."""
    leaves = jax.tree.leaves(prediction)
    if axes is not None or jax.tree_util.treedef_is_leaf(jax.tree.structure(prediction)):
        expected = leaves[0].shape[: -1 if axes is None else axes]
        fits, wanted = shape == expected, f"of shape {expected}"
    else:
        fits = len(shape) > 0 and all(leaf.shape[: len(shape)] == shape for leaf in leaves)
        wanted = f"over the leading axes of {[leaf.shape for leaf in leaves]}"
    return "" if fits else f"expected one loss per example, {wanted}, got {shape}"


WITHIN = 1e-7
"""What a gradient in float64 may differ by here, at least."""


def first_wrong_part(network: Layer, loss: Loss, params: Params, x: Any, y: Any) -> str:
    """Where the gradient of network and loss is wrong first: at the loss, or in a layer."""
    prediction, _ = network.forward(params, x)
    expected = jax.grad(lambda p: loss.value(p, y).sum(), allow_int=True)(prediction)
    if _wrong_leaves(loss.gradient(prediction, y), expected):
        return "first wrong from the output: the loss's gradient"
    return first_wrong_layer(network, params, x, expected)


def first_wrong_layer(layer: Layer, params: Params, x: Any, dy: Any, path: str = "") -> str:
    """The layer of a network that is wrong by itself and nearest to the output; "" for a layer
    that is not made of layers.

    dy is the cotangent of the output, path the layer's own place in a larger network.
    """
    if layer.parts is None:
        return ""
    parts = layer.parts(params)
    passed = []
    for part, p in parts:
        y, pull, residuals = jax.vjp(part.forward, p, x, has_aux=True)
        passed.append((part, p, x, residuals, pull))
        x = y
    for count, (part, p, x, residuals, pull) in enumerate(reversed(passed), 1):
        here = f"{path}[{len(parts) - count}]"
        expected = dict(zip(("dparams", "dx"), pull(dy), strict=True))
        got = dict(zip(("dparams", "dx"), part.backward(p, residuals, dy), strict=True))
        if wrong := _wrong_leaves(got, expected):
            kind = getattr(part.forward, "__qualname__", "layer").split(".")[0]
            place = f"number {count} of {len(parts)} counted from the output: {here} {kind}"
            own = f"first wrong layer, {place}, {' and '.join(wrong)}"
            return first_wrong_layer(part, p, x, dy, here) or own
        dy = expected["dx"]
    return f"at {path or 'the top'} each layer is right by itself, but not how they are joined"


def _wrong_leaves(got: Any, expected: Any) -> list[str]:
    """The names of the leaves that differ."""
    found, right = calls.named_leaves(got), calls.named_leaves(expected)
    differs = lambda name, leaf: not same(leaf, found.get(name, ()), WITHIN, FLOOR)
    return [name for name, leaf in right.items() if differentiable(leaf) and differs(name, leaf)]


def per_example_leaf(
    layer: Layer, params: Params, x: Any, key: Array | None, leaves: Sequence[Leaf]
) -> Leaf | None:
    """The leaf "per-example" for a layer with these leaves; None where it does not apply:

    - a dparams that is not known to be right;
    - no parameters, or parameters that are not floating-point; a backward without `reduce`;
    - x without an axis of at least two examples in front (floating-point features need another
      axis behind it);
    - a layer that mixes the examples, or does not run on a single one;
    - a gradient that exists for the whole batch only (`fnn.reductions.Whole`).

    The cotangent is drawn from `key`. An entry may differ by the bound of dparams, of its
    parameter's largest per-example gradient, or by 1e-7 of it.
    """
    found = [leaf for leaf in leaves if leaf.name.startswith("dparams")]
    if not (found and _applies(layer, params, x, found)):
        return None
    if not (alone := attempt(calls.run, _alone, layer, params, x, key)):
        return None
    y, y_alone, expected = alone
    ran = [f.native if f.float64.verdict == "skipped" else f.float64 for f in found]
    bound = max(WITHIN, *(check.bound for check in ran))
    if not all(same(b, a, bound) for a, b in zip(y, y_alone, strict=True)):
        return None
    try:
        worst, wrong = _compare(expected, calls.run(_rows, layer, params, x, key), bound)
    except (TypeError, ValueError) as error:
        worst, wrong = np.inf, str(error)
    if "whole batch only" in wrong:  # `Whole` says so
        return None
    note = f"right as a sum, but no per-example statistic can use it: {wrong}"
    check = Check("pass", worst, bound)
    return unfit("per-example", note) if wrong else Leaf("per-example", "pass", check, NONE, NONE)


def _applies(layer: Layer, params: Params, x: Any, found: Sequence[Leaf]) -> bool:
    """Whether the parameters' gradients are right, a backward with `reduce` can be asked, and x has
    an axis of examples."""
    right = all(leaf.verdict == "pass" for leaf in found)
    real = all(map(differentiable, jax.tree.leaves(params)))
    takes_reduce = attempt(inspect.signature(layer.backward).bind, 0, 0, 0, 0)
    leaves = jax.tree.leaves(x)
    deep = all(jnp.ndim(leaf) > differentiable(leaf) and len(leaf) > 1 for leaf in leaves)
    same_length = len({jnp.shape(leaf)[:1] for leaf in leaves}) == 1
    return bool(right and real and takes_reduce and deep and same_length)


def _alone(layer: Layer, params: Params, x: Any, key: Array | None) -> tuple[Any, Any, Any]:
    """The floating-point outputs for the batch; those of each example alone, and autodiff's
    gradient for it. The cotangent is the same."""
    y, _ = layer.forward(params, x)
    dy = floats(calls.random_cotangent(key, y))

    def one(x: Any, dy: list[Array]) -> tuple[Params, list[Array]]:
        batch = jax.tree.map(lambda a: a[None], x)

        def product(params: Params) -> tuple[Array, list[Array]]:
            y = [leaf[0] for leaf in floats(layer.forward(params, batch)[0])]
            return sum(map(jnp.vdot, dy, y), start=jnp.zeros(())), y

        return jax.grad(product, has_aux=True)(params)

    gradients, y_alone = jax.vmap(one)(x, dy)
    return floats(y), y_alone, gradients


def _rows(layer: Layer, params: Params, x: Any, key: Array | None) -> Any:
    """What the layer's backward makes of `rows`."""
    y, residuals = layer.forward(params, x)
    dy, examples = calls.random_cotangent(key, y), jax.tree.leaves(x)[0].shape[:1]
    rows = lambda factor, n: factor.rows(n)
    return per_example_backward(layer, params, residuals, dy, rows, examples)


def _compare(expected: Any, rows: Any, bound: float) -> tuple[float, str]:
    """The largest error of a gradient, and what is wrong in the first wrong parameter."""
    each = jax.tree.leaves(rows, is_leaf=lambda part: isinstance(part, Direct))
    worst = 0.0
    for (name, right), direct in zip(calls.named_leaves(expected).items(), each, strict=True):
        # `repeat` stacks the copies' results in front of the examples.
        got = np.moveaxis(np.asarray(direct.value), right.ndim - 1 - direct.ndim, 0)
        right = np.asarray(right)
        error, at = measure(got, right, 1)
        worst = max(worst, error)
        if not worst <= bound:
            values = f" (example {at[0]}: {values_at(at, got, right)})" if at else ""
            what = f"the gradient of {joined('params', name, by='.')} is not each example's own"
            hand = "hand it to `reduce` as a factor whose batch axes are the examples'"
            how = f"{hand}, such as fnn.Outer(dy, x), and return the result untouched"
            return worst, f"{what}{values}; {how}"
    return worst, ""
