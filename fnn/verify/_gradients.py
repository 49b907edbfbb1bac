"""Checks of hand-written gradients: of a layer, a vector-Jacobian product, a loss, any function.

Each leaf of a gradient goes through three checks, explained in `fnn.verify._checks`: in float64
against autodiff, in the dtype that the user runs, and against finite differences. The verdict
that follows from them is decided there too.

All measures are relative, so scaling the loss hides nothing. Integers, booleans and keys are
passed on and not differentiated. A check leaves JAX's configuration as it was, and works whether
x64 is on or off. The user's functions are compiled; those that can't be, for they branch on
values or are NumPy's, run as they are.

A law that needs no reference: a vector-Jacobian product is linear in its cotangent.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.base import Array, Layer, Loss, Params, check_loss as expect_loss
from fnn.verify._arrays import (
    ROUNDOFF,
    as_arrays,
    at_highest_precision,
    differentiable,
    named_leaves,
    random_cotangent,
    unit_roundoff,
    widened,
)
from fnn.verify._call import (
    Call,
    Inputs,
    axis_lengths,
    can_be_traced,
    coarsest_roundoff,
    custom_rules,
    differentiate,
    evaluate,
    float64_section,
    run,
    run_gradient,
    same_arrays,
    split,
)
from fnn.verify._causes import UNKNOWN, likely_cause, misshapen_cause, swapped
from fnn.verify._checks import (
    CANCELS,
    ENTRY,
    Tested,
    decide,
    differences_checks,
    entry_check,
    entry_slope,
    float64_check,
    native_check,
    relative,
)
from fnn.verify._layers import first_wrong_layer, first_wrong_part, per_example_leaf
from fnn.verify._leaf import FLOOR, TOLERANCE, Check, Leaf, compared, measure, unfit
from fnn.verify._programs import rounding_of
from fnn.verify._reference import Reference
from fnn.verify._report import Report, blind_spots


def check_layer(layer: Layer, params: Params, x: Any, *, key: Array | None = None) -> Report:
    """A layer's backward against autodiff of its forward: dparams and dx.

    The cotangent is drawn from `key`, so that every output counts, no two by the same weight.
    In a network that fnn's combinators made, the report names the first wrong layer. x and y may
    be trees.

    Where dparams is right, a further leaf, "per-example", says whether each example's own
    gradient is right too: whether `backward` hands every parameter's per-example gradients to
    `reduce` and returns the result untouched. It is left out for a layer without parameters,
    one whose backward takes no `reduce`, and one whose examples can't be told apart.

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
        raise TypeError(
            f"check_layer: expected a layer, got {layer!r}; check_custom takes a function with a "
            f"derivative of its own"
        )
    inputs = as_arrays((params, x))

    def both(params: Params, x: Any) -> Any:
        y, residuals = layer.forward(params, x)
        return layer.backward(params, residuals, random_cotangent(key, y))

    report = replace(
        check_vjp(layer.forward, layer.backward, params, x, key=key), name="check_layer"
    )
    if report.verdict == "fail":
        with float64_section([both], *inputs):
            params, x = widened(inputs)
            y, _ = layer.forward(params, x)
            place = first_wrong_layer(layer, params, x, random_cotangent(key, y))
        return replace(report, place=place)
    of_params = [leaf for leaf in report.leaves if leaf.name.startswith("dparams")]
    if of_params and all(leaf.verdict == "pass" for leaf in of_params):
        ran = [f.native if f.float64.verdict == "skipped" else f.float64 for f in of_params]
        bound = max(check.bound for check in ran)
        with float64_section([both], *inputs):
            params, x = widened(inputs)
            leaf = per_example_leaf(layer, params, x, key, bound)
        report = replace(report, leaves=(*report.leaves, *([leaf] if leaf else [])))
    return report


def check_vjp(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    params: Params,
    x: Any,
    *,
    reference: Callable[..., Any] | None = None,
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
    inputs = as_arrays((params, x))

    def y_of(params: Any, x: Any) -> Any:
        result = forward(params, x)
        if not (isinstance(result, tuple | list) and len(result) == 2):
            got = type(result).__name__
            raise TypeError(f"check_vjp: expected forward to return (y, residuals), got {got}")
        return result[0]

    dy = random_cotangent(key, _shapes_of(reference or y_of, *inputs))
    functions = (forward, backward)
    theta = {"dparams": params, "dx": x}
    objective: tuple[Callable[..., Any], Any]
    if reference is None:
        objective, gradient = (_product, forward), (_by_backward, functions)
    else:
        objective, gradient = (_reference_product, reference), (_y_and_by_backward, functions)
    report = _at_both_cotangents("check_vjp", objective, gradient, theta, dy)
    if report.verdict != "fail":
        return report

    def both(*inputs: Any) -> Any:
        return backward(inputs[0], forward(*inputs)[1], dy)

    with float64_section([both], *inputs):
        nonlinear = nonlinear_leaves(*functions, *widened((*inputs, dy)))
    cause = "not linear in dy: something in it is not multiplied by the cotangent"
    leaves = [
        replace(leaf, note=f"{leaf.note.removesuffix(f'; {UNKNOWN}')}; {cause}")
        if leaf.verdict == "fail" and leaf.name in nonlinear
        else leaf
        for leaf in report.leaves
    ]
    return replace(report, leaves=tuple(leaves))


def check_custom(
    f: Callable[..., Any],
    *args: Any,
    reference: Callable[..., Any],
    key: Array | None = None,
) -> Report:
    """A function with a derivative rule of its own (`jax.custom_vjp`, `jax.custom_jvp`, a Pallas
    kernel) against autodiff of `reference`, the same function in plain operations: what it
    returns, and the vector-Jacobian product with a cotangent drawn from `key`.

    The arguments and what is returned may be any trees. Of the arguments, floating-point arrays
    are differentiated; to leave one out, close over it.

    Raises ValueError where the reference runs the rule under test: it would check itself.

    >>> @jax.custom_vjp
    ... def square(x):
    ...     return x * x
    >>> square.defvjp(lambda x: (x * x, x), lambda x, dy: (dy * x,))
    >>> report = check_custom(square, jnp.array([1.0, 2.0]), reference=jnp.square)
    >>> [(leaf.name, leaf.verdict) for leaf in report.leaves]
    [('y', 'pass'), ('args.0', 'fail')]
    """
    inputs = as_arrays(args)
    theta = {"args": args}
    dy = random_cotangent(key, _shapes_of(reference, *inputs))
    objective = (_reference_of_args, reference)
    call, arrays = split(*objective, theta, (dy,))
    same = [
        name
        for name in custom_rules(call, arrays)
        if name in custom_rules(call._replace(rule=_reference_of_args, function=f), arrays)
    ]
    if f is reference or same:
        raise ValueError(
            f"check_custom: the reference runs the rule under test, that of "
            f"{', '.join(same) or 'f'}; expected the same function in plain operations"
        )
    return _at_both_cotangents("check_custom", objective, (_by_own_rule, f), theta, dy)


def _at_both_cotangents(
    name: str,
    objective: tuple[Callable[..., Any], Any],
    gradient: tuple[Callable[..., Any], Any],
    theta: Any,
    dy: Any,
) -> Report:
    """`_check` with the cotangent dy; in half precision also with |dy|, for a sum that overflows,
    or stops growing, shows only where its terms are of one sign."""
    report = _check(name, objective, gradient, theta, dy)
    if report.verdict == "fail" or report.dtype not in ("float16", "bfloat16"):
        return report
    again = _check(name, objective, gradient, theta, jax.tree.map(_magnitude, dy))
    return again if again.verdict == "fail" else report


def _magnitude(leaf: Any) -> Any:
    return abs(leaf) if differentiable(leaf) else leaf


def _shapes_of(f: Callable[..., Any], *inputs: Any) -> Any:
    """What f returns: its shapes and dtypes, or the arrays where f can't be traced."""
    try:
        return jax.eval_shape(f, *inputs)
    except TimeoutError:
        raise
    except Exception:  # another library's functions may raise anything at a tracer
        return as_arrays(f(*inputs))


def check_loss(loss: Loss, prediction: Any, target: Any) -> Report:
    """A loss's gradient against autodiff of its values, which are one per example.

    The prediction may be a tree of arrays that share the examples' axes.

    Raises TypeError for what is not a loss.

    >>> import fnn
    >>> half = fnn.mse._replace(value=lambda p, t: fnn.mse.value(p, t) / 2)
    >>> check_loss(half, jnp.array([[1.0, 3.0]]), jnp.zeros((1, 2))).verdict
    'fail'
    """
    expect_loss("check_loss", loss)
    theta = {"gradient": prediction}
    report = _check(
        "check_loss", (_sum_of_losses, loss.value), (_by_rule, loss.gradient), theta, target
    )
    inputs = as_arrays((prediction, target))
    note = _not_one_per_example(inputs[0], jax.eval_shape(loss.value, *inputs).shape)
    return replace(report, leaves=(unfit("value", note), *report.leaves)) if note else report


def check_gradients(
    value_and_grad_fn: Callable[..., Any],
    objective_fn: Callable[..., Any],
    params: Params,
    *args: Any,
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
    report = _check(
        "check_gradients",
        (_value, objective_fn),
        (_value_and_grads, value_and_grad_fn),
        {"grads": params},
        *args,
    )
    inner = inspect.unwrap(value_and_grad_fn)
    if report.verdict == "fail" and isinstance(inner, partial):
        match inner.args, args:
            case (Layer() as network, Loss() as loss, *_), (x, y, *_):
                with float64_section([network.forward], *as_arrays((params, x))):
                    inputs = widened(as_arrays((params, x, y)))
                    return replace(report, place=first_wrong_part(network, loss, *inputs))
    return report


# For each kind of check, the scalar f(theta, rest) that autodiff and finite differences take;
# and beside it the tree under test.


def _value(objective_fn: Callable[..., Any], theta: Any, *args: Any) -> tuple[Any, list[Any]]:
    return objective_fn(theta["grads"], *args), []


def _value_and_grads(value_and_grad_fn: Callable[..., Any], theta: Any, *args: Any) -> Any:
    value, grads = value_and_grad_fn(theta["grads"], *args)
    return {"value": value, "grads": grads}


def _sum_of_losses(value: Callable[..., Any], theta: Any, target: Any) -> tuple[Any, list[Any]]:
    return value(theta["gradient"], target).sum(), []


def _by_rule(gradient: Callable[..., Any], theta: Any, target: Any) -> Any:
    return {"gradient": gradient(theta["gradient"], target)}


def _product(forward: Callable[..., Any], theta: Any, dy: Any) -> tuple[Any, list[Any]]:
    """<dy, y>: its gradient is the vector-Jacobian product with dy."""
    y, _ = forward(theta["dparams"], theta["dx"])
    return _dot(y, dy), []


def _reference_product(reference: Callable[..., Any], theta: Any, dy: Any) -> Any:
    """<dy, y>, and the arrays of y."""
    y = reference(theta["dparams"], theta["dx"])
    return _dot(y, dy), [a for a in jax.tree.leaves(y) if differentiable(a)]


def _dot(y: Any, dy: Any) -> Any:
    pairs = zip(jax.tree.leaves(y), jax.tree.leaves(dy), strict=True)
    return sum(jnp.sum(a * b) for a, b in pairs if differentiable(a))


def _by_backward(functions: tuple[Callable[..., Any], ...], theta: Any, dy: Any) -> Any:
    forward, backward = functions
    _, residuals = forward(theta["dparams"], theta["dx"])
    dparams, dx = backward(theta["dparams"], residuals, dy)
    return {"dparams": dparams, "dx": dx}


def _y_and_by_backward(functions: tuple[Callable[..., Any], ...], theta: Any, dy: Any) -> Any:
    forward, backward = functions
    y, residuals = forward(theta["dparams"], theta["dx"])
    dparams, dx = backward(theta["dparams"], residuals, dy)
    return {"y": y, "dparams": dparams, "dx": dx}


def _reference_of_args(reference: Callable[..., Any], theta: Any, dy: Any) -> Any:
    y = reference(*theta["args"])
    return _dot(y, dy), [a for a in jax.tree.leaves(y) if differentiable(a)]


def _by_own_rule(f: Callable[..., Any], theta: Any, dy: Any) -> Any:
    leaves, form = jax.tree.flatten(theta["args"])
    floats = [i for i, leaf in enumerate(leaves) if differentiable(leaf)]

    def of_floats(*moved: Any) -> Any:
        at = dict(zip(floats, moved, strict=True))
        return f(*jax.tree.unflatten(form, [at.get(i, leaf) for i, leaf in enumerate(leaves)]))

    y, pull = jax.vjp(of_floats, *(leaves[i] for i in floats))
    pulled = dict(zip(floats, pull(_like(dy, y)), strict=True))
    grads = [pulled.get(i, leaf) for i, leaf in enumerate(leaves)]
    return {"y": y, "args": jax.tree.unflatten(form, grads)}


def _like(dy: Any, y: Any) -> Any:
    """The cotangent in y's dtypes: a kernel may return less than float64."""
    cast = lambda d, a: d.astype(a.dtype) if differentiable(a) else d
    return jax.tree.map(cast, dy, y)


def _check(
    name: str,
    objective: tuple[Callable[..., Any], Any],
    gradient: tuple[Callable[..., Any], Any],
    theta: Any,
    *args: Any,
) -> Report:
    """The tree that `gradient` gives, checked leaf by leaf against autodiff of `objective`. Both
    are a rule, from the list above, and the user's function.

    Where a check fails and one of the two computes in less than float64, whatever it is given,
    the checks are repeated with bounds that follow the dtype inside.
    """
    call, inputs = split(*objective, theta, args)
    tested_call = call._replace(rule=gradient[0], function=gradient[1])
    floats = (*inputs.theta, *inputs.floats)
    dtype = max((a.dtype for a in floats), key=unit_roundoff, default=np.dtype(float))
    with at_highest_precision():
        native = run_gradient(tested_call, inputs)
        autodiff = _by_autodiff(call, inputs)
    with float64_section([call, tested_call], inputs):
        reference = _reference(call, inputs, unit_roundoff(dtype))
        fitting, misfits = _fitting(native, call.arguments(inputs)[0], call.kinds, reference)
        tested = _with_float64(fitting, tested_call, reference)
        checks = _checks(tested, reference, autodiff)
        custom: list[str] = []
        if any("fail" in (a.verdict, c.verdict) or a.verdict == "skipped" for a, _, c in checks):
            custom = custom_rules(call, reference.inputs)
            own = coarsest_roundoff(call, reference.inputs)
            coarsest = max(own, coarsest_roundoff(tested_call, reference.inputs))
            # What computes in less than both its inputs' dtype and the reference has a cast.
            if coarsest > max(ROUNDOFF, reference.unit):
                reference = Reference(
                    call,
                    reference.inputs,
                    max(reference.roundoff, own),
                    max(reference.unit, own),
                )
                reason = f"computes in {_name_of(coarsest)}"
                narrow = [leaf._replace(wide=None, reason=reason) for leaf in tested]
                repeated = _checks(narrow, reference, autodiff)
                tested, checks = narrow, repeated
        rounded: set[str] = set()
        if any("fail" in (a.verdict, b.verdict) for a, b, _ in checks):
            checks, rounded = _beside_rounding(
                tested, checks, tested_call, reference, inputs, autodiff
            )
        leaves = []
        for leaf, found in zip(tested, checks, strict=True):
            failed = found[0].verdict == "fail"
            in_theta = 0 < leaf.position <= len(inputs.theta)
            expected = reference.stacks[leaf.position][0]
            entries = found[0].entries or (measure(leaf.best, expected, FLOOR)[1],)
            slopes = (
                (at, entry_slope(leaf, reference, at) if in_theta else None) for at in entries
            )
            verdict, note, index = decide(leaf, expected, found, slopes, custom)
            if leaf.name in rounded:
                verdict = "inconclusive"
                note += "; right in float64, but it loses digits in this dtype that autodiff keeps"
            if verdict == "fail":
                parameter = inputs.theta[leaf.position - 1] if in_theta else np.zeros(())
                wrong = leaf.best if failed else leaf.native
                parameter = np.asarray(parameter, np.float64)
                integers = [np.asarray(a) for a in inputs.others if _are_integers(a)]
                cause = likely_cause(wrong, expected, parameter, axis_lengths(inputs), integers)
                note = "; ".join(filter(None, (note, cause)))
            leaves.append(Leaf(leaf.name, verdict, *found, index, note, leaf.best, expected))
    leaves = [swapped(leaf, leaves) for leaf in leaves]
    return Report(name, (*leaves, *misfits), str(dtype), blind=blind_spots(inputs))


def _are_integers(a: Any) -> bool:
    return bool(jnp.issubdtype(a.dtype, jnp.integer))


def _checks(
    tested: list[Tested], reference: Reference, autodiff: list[np.ndarray] | None
) -> list[tuple[Check, Check, Check]]:
    """The three checks of each leaf."""
    own = autodiff or [stack[0] for stack in reference.stacks]
    differences = differences_checks(tested, reference)
    found = []
    for leaf, slope in zip(tested, differences, strict=True):
        float64 = float64_check(leaf, reference)
        native = native_check(leaf, reference, own[leaf.position])
        if float64.verdict == "pass" and native.verdict != "fail":
            entry = entry_check(leaf, reference, own[leaf.position])
            native = entry if entry.verdict == "fail" else native
        found.append((float64, native, slope))
    return found


def _beside_rounding(
    tested: list[Tested],
    checks: list[tuple[Check, Check, Check]],
    call: Call,
    reference: Reference,
    inputs: Inputs,
    autodiff: list[np.ndarray] | None,
) -> tuple[list[tuple[Check, Check, Check]], set[str]]:
    """The checks, where the float64 or the native check refused a leaf, beside what rounding inside
    the computation explains; and the leaves that are right but for their rounding in the native
    dtype.

    Where float64 alone refuses, autodiff may cancel, far out in a function's tail, or the rule may
    where autodiff does not. How much each does shows when every step of it is moved by a roundoff.
    """

    @cache
    def by_autodiff() -> list[np.ndarray]:
        autodiff = rounding_of(differentiate, reference.call, reference.inputs, ROUNDOFF)
        return [*autodiff.values()]

    found, rounded = [], set()
    for leaf, (float64, native, differences) in zip(tested, checks, strict=True):
        expected = reference.stacks[leaf.position][0]
        cancels = (
            autodiff is not None and not measure(autodiff[leaf.position], expected, 1)[0] < 0.01
        )
        unsure = native.verdict == "pass" or cancels or not expected.any()
        if float64.verdict == "fail" and unsure and leaf.wide is not None:
            away = np.zeros(expected.shape)
            away += rounding_of(evaluate, call, reference.inputs, ROUNDOFF).get(leaf.name, 0.0)
            away += by_autodiff()[leaf.position] if by_autodiff() else 0.0
            error, bound = (relative(d, expected) for d in (leaf.wide - expected, 64 * away))
            least = TOLERANCE if expected.any() else 0.0
            if (error <= np.maximum(least, bound)).all():
                needed = float(bound[error > least].max(initial=0.0))
                float64 = compared(float(error.max()), max(float64.bound, needed))
                if needed > 0.1 or not expected.any():
                    float64 = Check("skipped", reason=CANCELS)
        if native.verdict == "fail" and leaf.wide is not None and float64.verdict != "fail":
            with jax.enable_x64(False), at_highest_precision():
                of_leaf = rounding_of(evaluate, call, inputs, reference.roundoff).get(
                    leaf.name, 0.0
                )
            error, away = np.abs(leaf.native - expected), of_leaf + np.zeros(expected.shape)
            wrong = native.entries or np.ndindex(error.shape)
            bound = away if native.reason == ENTRY else np.full(away.shape, away.max())
            if all(error[i] <= 64 * bound[i] < np.inf for i in wrong):
                if native.reason == ENTRY and reference.roundoff <= 2.0**-12:
                    # With many digits few are lost; the leaf as a whole decides.
                    own = expected if autodiff is None else autodiff[leaf.position]
                    native = native_check(leaf, reference, own)
                else:
                    rounded.add(leaf.name)
            elif float64.reason == CANCELS:
                native = Check("skipped", reason=CANCELS)
        found.append((float64, native, differences))
    return found, rounded


def _by_autodiff(call: Call, inputs: Inputs) -> list[np.ndarray] | None:
    """The value, the gradient and the outputs in the dtype that the user runs; None where
    autodiff can't take the call."""
    try:
        value, grads, outputs = run(differentiate, call, inputs)
    except jax.errors.JAXTypeError:
        return None
    return [np.asarray(a, np.float64) for a in (value, *grads, *outputs)]


_latest: list[Reference] = []
"""The reference of the last check: the next one of the same function and inputs takes it again."""


def _reference(call: Call, inputs: Inputs, roundoff: float) -> Reference:
    """The reference in float64; in the dtype of the inputs for a function that refuses float64,
    such as a loop that carries a float32 array."""
    wide = widened(inputs)
    for known in _latest:
        same = (known.call, known.roundoff) == (call, roundoff) and same_arrays(known.inputs, wide)
        if same and can_be_traced(call, inputs):
            return known
    try:
        _latest[:] = [Reference(call, wide, roundoff)]
        return _latest[0]
    except TimeoutError:
        raise
    except Exception:
        with jax.enable_x64(False):
            return Reference(call, inputs, roundoff, unit=roundoff)


def _name_of(roundoff: float) -> str:
    names = ("float32", "float16", "bfloat16")
    return next((n for n in names if unit_roundoff(n) == roundoff), "less than float64")


def _with_float64(
    fitting: list[tuple[str, int, np.ndarray]], call: Call, reference: Reference
) -> list[Tested]:
    """The leaves under test, each with itself computed in float64, where that is possible."""
    got: dict[str, Any] = {}
    try:
        if reference.unit > ROUNDOFF:
            refusal = "the reference raises"
        else:
            got, refusal = named_leaves(run_gradient(call, reference.inputs)), "absent"
    except TimeoutError:
        raise
    except Exception as error:  # a kernel for float32 may raise anything
        refusal = f"raises {type(error).__name__}"
    tested = []
    for name, position, native in fitting:
        if name not in got:
            tested.append(Tested(name, position, native, None, refusal))
            continue
        leaf = np.asarray(got[name])
        if unit_roundoff(leaf.dtype) > ROUNDOFF or leaf.shape != native.shape:
            tested.append(Tested(name, position, native, None, f"gives {leaf.dtype}"))
        else:
            tested.append(Tested(name, position, native, leaf, ""))
    return tested


def _fitting(
    tree: Any, theta: Any, kinds: tuple[str, ...], reference: Reference
) -> tuple[list[tuple[str, int, np.ndarray]], list[Leaf]]:
    """The leaves of the gradient `tree` that have their parameter's path, shape and dtype, as
    (name, position in the reference's stacks, array); and failed leaves for the others."""
    got, given = named_leaves(tree), named_leaves(theta)
    names = [name for name, kind in zip(given, kinds, strict=False) if kind == "theta"]
    positions = {name: i for i, name in enumerate(names, 1)}
    forms = {name: (given[name].shape, given[name].dtype) for name in names}
    if "value" in got:
        positions = {"value": 0, **positions}
        forms["value"] = ((), got["value"].dtype if hasattr(got["value"], "dtype") else None)
    outputs = [name for name in got if name == "y" or name.startswith("y.")]
    outputs = [name for name in outputs if differentiable(got[name])]
    after = len(reference.inputs.theta) + 1
    ys = dict(zip(outputs, range(after, len(reference.stacks)), strict=False))
    positions = ys | positions
    fitting, misfits = [], []
    if "y" in tree and len(outputs) != len(reference.stacks) - after:
        expected = len(reference.stacks) - after
        misfits.append(unfit("y", f"expected {expected} arrays, got {len(outputs)}"))
    for name, position in positions.items():
        expected = reference.stacks[position][0]
        if name not in got:
            misfits.append(unfit(name, "only the reference has it"))
            continue
        leaf = np.asarray(got[name])
        shape, dtype = forms.get(name, (expected.shape, leaf.dtype))
        if (leaf.shape, leaf.dtype) != (shape, dtype or leaf.dtype):
            note = f"expected {dtype}{shape}, got {leaf.dtype}{leaf.shape}"
            others = {n: reference.stacks[i][0] for n, i in positions.items() if n != name}
            cause = misshapen_cause(np.asarray(leaf, np.float64), expected, others)
            misfits.append(unfit(name, "; ".join(filter(None, (note, cause)))))
        elif leaf.size:
            fitting.append((name, position, np.asarray(leaf, np.float64)))
    known = {*given, *forms, *ys}
    misfits += [
        unfit(n, "only the gradient under test has it")
        for n in got
        if n not in known and not (n == "y" or n.startswith("y."))
    ]
    for key, part in theta.items():
        wanted, found = str(jax.tree.structure(part)), str(jax.tree.structure(tree[key]))
        # With integers among the parameters, whatever stands in their place is right.
        if not misfits and wanted != found and all(map(differentiable, jax.tree.leaves(part))):
            misfits.append(unfit(key, f"expected the tree {wanted}, got {found}"))
    return fitting, misfits


def _not_one_per_example(prediction: Any, shape: tuple[int, ...]) -> str:
    """What is wrong with a loss's value of this shape; "" where it is one per example: for an
    array (..., k) of shape (...), for a tree over leading axes that all its arrays share."""
    leaves = jax.tree.leaves(prediction)
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(prediction)):
        expected = leaves[0].shape[:-1]
        fits, wanted = shape == expected, f"of shape {expected}"
    else:
        fits = len(shape) > 0 and all(leaf.shape[: len(shape)] == shape for leaf in leaves)
        wanted = f"over the leading axes of {[leaf.shape for leaf in leaves]}"
    return "" if fits else f"expected one loss per example, {wanted}, got {shape}"


LINEAR = 1e-6
"""Relative. What is not multiplied by the cotangent differs by about its own size."""


def nonlinear_leaves(
    forward: Callable[..., Any], backward: Callable[..., Any], params: Params, x: Any, dy: Any
) -> set[str]:
    """The leaves of (dparams, dx) where backward(u + v) is not backward(u) + backward(v), for
    u = dy and another cotangent v. Empty where they can't be compared.
    """
    other = random_cotangent(jax.random.key(1), dy)
    both = jax.tree.map(lambda u, v: u + v if differentiable(u) else u, dy, other)
    try:
        _, residuals = forward(params, x)
        once, again, together = (
            named_leaves(dict(zip(("dparams", "dx"), backward(params, residuals, d), strict=True)))
            for d in (dy, other, both)
        )
    except TimeoutError:
        raise
    except Exception:  # a kernel that does not take float64 may raise anything
        return set()
    return {
        name
        for name, leaf in together.items()
        if differentiable(leaf) and leaf.size and not _added(once[name], again[name], leaf)
    }


def _added(u: Any, v: Any, together: Any) -> bool:
    """Whether together = u + v. Where that is not finite, nothing is known."""
    total, got = np.asarray(u) + np.asarray(v), np.asarray(together)
    if total.shape != got.shape or not (np.isfinite(total).all() and np.isfinite(got).all()):
        return True
    return measure(got, total, FLOOR)[0] <= LINEAR
