"""Backpropagation: the loss of a network, and its gradient by the layers' own rules.

    A(L), residuals = forward(params, X)
    dA(L)           = gradient(A(L), Y) / m
    dparams, dX     = backward(params, residuals, dA(L))

The 1/m of the mean over the batch enters once, here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fnn.base import Array, Layer, Loss, Params, Residuals
from fnn.reductions import Direct, Factor, Outer


def objective(network: Layer, loss: Loss) -> Callable[..., Array]:
    """f(params, x, y, weight=None) -> the mean loss over the batch, a scalar.

    With weight (...), one number an example, it is (1/m) sum_n weight_n loss_n. The sum is
    divided by the number of examples, not by that of the weights: for examples drawn with
    probabilities q_n in place of p_n, weight_n = p_n / q_n keeps the mean unbiased.

    Raises ValueError for a weight of another shape than the losses, (...).
    """

    def f(params: Params, x: Array, y: Array, weight: Array | None = None) -> Array:
        prediction, _ = network.forward(params, x)
        losses = loss.value(prediction, y)
        return (losses if weight is None else losses * _weight_of(losses, weight)).mean()

    return f


def value_and_grad(network: Layer, loss: Loss) -> Callable[..., tuple[Array, Params]]:
    """f(params, x, y, weight=None) -> (mean loss, gradient with respect to params), by
    hand-written rules.

    The drop-in twin of `jax.value_and_grad(objective(network, loss))`, weight included.
    """

    # A partial, not a closure: the judge reads network and loss off it to name a wrong layer.
    return partial(_value_and_grad, network, loss)


def _value_and_grad(
    network: Layer, loss: Loss, params: Params, x: Array, y: Array, weight: Array | None = None
) -> tuple[Array, Params]:
    prediction, residuals = network.forward(params, x)
    losses = loss.value(prediction, y)
    dy = loss.gradient(prediction, y) / losses.size
    if weight is not None:
        weight = _weight_of(losses, weight)
        losses, dy = losses * weight, dy * weight[..., None]
    grads, _ = network.backward(params, residuals, dy)
    return losses.mean(), grads


def _weight_of(losses: Array, weight: Array) -> Array:
    weight = jnp.asarray(weight)
    if weight.shape != losses.shape:
        raise ValueError(
            f"weight: expected one number an example, {losses.shape}, got {weight.shape}"
        )
    return weight.astype(losses.dtype)


@partial(jax.tree_util.register_dataclass, data_fields=["value"], meta_fields=[])
@dataclass(frozen=True)
class _Reduced:
    """The mark of what came out of `reduce`, and not past it."""

    value: Any


def sweep(
    network: Layer,
    params: Params,
    residuals: Residuals,
    dy: Array,
    reduce: Callable[[Factor], Any],
) -> Any:
    """What `reduce` makes of each parameter's per-example gradients, in one backward sweep.

    A tree like params, with reduce's results for leaves. Under `repeat` the copies' axes stand
    in front of everything that reduce returns.

    Raises TypeError for a layer that hands `reduce` what is not a factor; ValueError for a
    factor of another batch than dy, (...), and for a parameter whose gradient is not what
    `reduce` returned.
    """

    def marked(factor: Factor) -> _Reduced:
        match factor:
            case Outer(left, right):
                batches = [left.shape[:-1], right.shape[:-1]]
            case Direct(value, ndim):
                batches = [value.shape[: value.ndim - ndim]]
            case _:
                raise TypeError(
                    f"reduce: expected an Outer or a Direct, got {type(factor).__name__}"
                )
        if any(batch != dy.shape[:-1] for batch in batches):
            shapes = jax.tree.map(jnp.shape, factor)
            raise ValueError(f"reduce: expected factors of batch {dy.shape[:-1]}, got {shapes}")
        return _Reduced(reduce(factor))

    dparams, _ = network.backward(params, residuals, dy, marked)
    reduced = jax.tree.leaves(dparams, is_leaf=lambda leaf: isinstance(leaf, _Reduced))
    paths, form = jax.tree.flatten_with_path(params)
    if len(reduced) != len(paths):
        raise ValueError(f"backward: {len(paths)} parameters, but {len(reduced)} gradients")
    for (path, _), leaf in zip(paths, reduced, strict=True):
        if not isinstance(leaf, _Reduced):
            raise ValueError(
                f"backward: the gradient of params{jax.tree_util.keystr(path)} is not what "
                f"`reduce` returned: hand each parameter's per-example gradients to reduce, as "
                f"an Outer or a Direct, and return the result untouched"
            )
    return jax.tree.unflatten(form, [leaf.value for leaf in reduced])


def differentiable(layer: Layer) -> Callable[[Params, Array], Array]:
    """apply(params, x) -> y, for use inside anything that autodiff differentiates: there
    `jax.grad` and `jax.vjp` run the layer's own backward. (Forward mode, `jax.jvp`, takes
    the layer's `forward` directly.)"""

    @jax.custom_vjp
    def apply(params: Params, x: Array) -> Array:
        return layer.forward(params, x)[0]

    def forward(params, x):
        y, residuals = layer.forward(params, x)
        return y, (params, residuals)

    def backward(saved, dy):
        return layer.backward(*saved, dy)

    apply.defvjp(forward, backward)
    return apply
