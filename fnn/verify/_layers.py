"""The first wrong layer of a network, counted from the output, where backpropagation begins.

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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.backprop import per_example_backward
from fnn.base import Array, Layer, Loss, Params
from fnn.reductions import Direct
from fnn.verify import _call as calls
from fnn.verify._call import attempt, differentiable, floats
from fnn.verify._leaf import FLOOR, NONE, Check, Leaf, joined, measure, same, unfit, values_at

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
            return first_wrong_layer(part, p, x, dy, here) or (
                f"first wrong layer, number {count} of {len(parts)} counted from the output: "
                f"{here} {kind}, {' and '.join(wrong)}"
            )
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
    rows = lambda factor, n: factor.rows(n)
    examples = jax.tree.leaves(x)[0].shape[:1]
    return per_example_backward(
        layer, params, residuals, calls.random_cotangent(key, y), rows, examples
    )


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
            return worst, (
                f"the gradient of {joined('params', name, by='.')} is not each example's own"
                f"{values}; hand it to `reduce` as a factor whose batch axes are the examples', "
                "such as fnn.Outer(dy, x), and return the result untouched"
            )
    return worst, ""
