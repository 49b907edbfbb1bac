"""Backpropagation: the loss of a network, and its gradient by the layers' backward passes.

    A(L), residuals = forward(params, X)
    dA(L)           = gradient(A(L), Y) / m
    dparams, dX     = backward(params, residuals, dA(L))

The 1/m of the mean over the batch enters once, here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state

from fnn.base import Array, Layer, Loss, Params, Residuals, Tree, check_layer, check_loss
from fnn.reductions import Factor, Reduce, expand_like, total


def objective(network: Layer, loss: Loss) -> Callable[..., Array]:
    """f(params, x, y, weight=None) -> the mean loss over the batch, a scalar.

    With weight (...), one number per example, it is (1/m) sum_n weight_n loss_n. The sum is
    divided by the number of examples, not by the sum of the weights: for examples drawn with
    probabilities q_n instead of p_n, weight_n = p_n / q_n keeps the mean unbiased.

    Raises TypeError if network is not a layer or loss not a loss; f raises ValueError for weights
    whose shape differs from that of the losses, (...).

    >>> import fnn
    >>> objective(fnn.identity, fnn.mse)((), jnp.array([[1.0], [2.0]]), jnp.zeros((2, 1)))
    Array(2.5, dtype=float32)
    """
    check_layer("objective", network)
    check_loss("objective", loss)

    def f(params: Params, x: Tree, y: Tree, weight: Array | None = None) -> Array:
        prediction, _ = network.forward(params, x)
        losses = _losses(loss, prediction, y)
        return (losses if weight is None else losses * weight_of(losses, weight)).mean()

    return f


def value_and_grad(
    network: Layer, loss: Loss, reduce: Reduce = total
) -> Callable[..., tuple[Array, Params]]:
    """f(params, x, y, weight=None) -> (mean loss, gradient with respect to params), by the
    hand-written backward passes.

    A drop-in replacement for `jax.value_and_grad(objective(network, loss))`, weight included.
    `reduce` is called with the factor of each parameter's per-example gradients, which include
    the 1/m of the mean loss; a tree of what it returns takes the place of the gradient.

    Raises as `objective` does.

    >>> import fnn
    >>> network = fnn.serial(fnn.dense(1, 1))
    >>> params = ({"W": jnp.ones((1, 1)), "b": jnp.zeros(1)},)
    >>> x, y = jnp.array([[1.0], [2.0]]), jnp.zeros((2, 1))
    >>> value_and_grad(network, fnn.mse)(params, x, y)[1][0]["W"]
    Array([[5.]], dtype=float32)
    """
    check_layer("value_and_grad", network)
    check_loss("value_and_grad", loss)
    # A partial, not a closure: the gradient checker reads network and loss from it to name the
    # first wrong layer.
    return partial(_value_and_grad, network, loss, reduce)


def _value_and_grad(
    network: Layer,
    loss: Loss,
    reduce: Reduce,
    params: Params,
    x: Tree,
    y: Tree,
    weight: Array | None = None,
) -> tuple[Array, Params]:
    prediction, residuals = network.forward(params, x)
    losses = _losses(loss, prediction, y)
    dy = jax.tree.map(lambda g: g / losses.size, loss.gradient(prediction, y))
    if weight is not None:
        weight = weight_of(losses, weight)
        losses, dy = losses * weight, jax.tree.map(lambda g: g * expand_like(weight, g), dy)
    grads, _ = network.backward(params, residuals, dy, reduce)
    return losses.mean(), grads


def _losses(loss: Loss, prediction: Tree, y: Tree) -> Array:
    """One loss per example. Raises ValueError for a single loss of a whole batch: m would be 1."""
    losses = loss.value(prediction, y)
    if losses.shape == () and any(a.ndim > 1 for a in jax.tree.leaves(prediction)):
        shapes = jax.tree.map(jnp.shape, prediction)
        expected = f"expected one loss per example for predictions of shape {shapes}"
        raise ValueError(f"loss: {expected}, got a number; fnn computes the mean over the batch")
    return losses


def weight_of(losses: Array, weight: Array) -> Array:
    """The weights in the losses' dtype. Raises ValueError where their shapes differ.

    >>> weight_of(jnp.ones(2), jnp.array([0, 1]))
    Array([0., 1.], dtype=float32)
    """
    weight = jnp.asarray(weight)
    if weight.shape != losses.shape:
        got = f"got {weight.shape}"
        raise ValueError(f"weight: expected one number per example, {losses.shape}, {got}")
    return weight.astype(losses.dtype)


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class _Reduced:
    """Wraps what `reduce` returned, to detect a layer that returns something else.

    like is an empty array (*shape of the parameter, 0): it takes no memory, and `repeat` adds a
    leading axis to it as it does to the parameter.
    """

    value: Tree
    like: Array

    def tree_flatten(self) -> tuple[tuple[Any, Array], "_Seal"]:
        return (self.value, self.like), _Seal(self)

    @classmethod
    def tree_unflatten(cls, seal: "_Seal", children: tuple[Any, Array]) -> "_Reduced":
        mark = cls(*children)
        if seal.is_broken(_Seal(mark)):
            mark._refuse()
        return mark

    def _refuse(self, *others: Any) -> NoReturn:
        raise TypeError(
            "backward: what `reduce` returned must be returned unchanged. Change the factor: "
            "reduce(fnn.Masked(factor, array)) multiplies a parameter's gradient by a constant "
            "array, and reduce(fnn.Sum(a, b)) adds the gradients of a parameter used twice"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __neg__ = __pow__ = _refuse
    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __matmul__ = __rmatmul__ = _refuse
    __getitem__ = __array__ = __jax_array__ = _refuse


class _Seal:
    """The arrays of a `_Reduced`, and the shape and trace in which they were made. Different arrays
    with the same shape in the same trace mean that a layer changed them; `scan` and `jit` also
    replace the arrays, but with another shape or in another trace."""

    def __init__(self, mark: _Reduced) -> None:
        self.arrays = list(map(id, jax.tree.leaves((mark.value, mark.like))))
        self.place = getattr(mark.like, "shape", None), get_opaque_trace_state(convention="flax")

    def is_broken(self, now: "_Seal") -> bool:
        return self.arrays != now.arrays and self.place == now.place

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Seal)

    def __hash__(self) -> int:
        return hash(_Seal)


def per_example_backward(
    network: Layer,
    params: Params,
    residuals: Residuals,
    dy: Tree,
    reduce: Callable[[Factor, int], Any],
    examples: tuple[int, ...],
) -> Any:
    """Reduce each parameter's per-example gradients, in one backward pass.

    dy holds each example's own cotangent; `examples` is the shape of the example axes, with which
    the shape of every array of dy begins. reduce is called with a factor and the number of example
    axes. Returns a tree like params, whose leaves are what reduce returned. `repeat` adds a leading
    axis to every array of these.

    Raises TypeError for a layer that calls `reduce` with anything but a factor, that changes what
    `reduce` returned, or whose gradient exists for the whole batch only; ValueError for a factor
    whose example axes differ from dy's or whose shape differs from its parameter's, and for a
    parameter whose gradient is not what `reduce` returned.
    """

    def marked(factor: Factor) -> _Reduced:
        batch = getattr(factor, "batch", ())
        shape = jax.eval_shape(lambda: total(factor)).shape  # TypeError for what is not a factor
        if batch[: len(examples)] != examples:
            expected = f"factors whose batch axes begin with the example axes {examples}"
            got = f"got {jax.tree.map(jnp.shape, factor)}"
            raise ValueError(f"reduce: expected {expected}, {got}")
        return _Reduced(reduce(factor, len(examples)), jnp.zeros((*shape, 0)))

    dparams, _ = network.backward(params, residuals, dy, marked)
    reduced = jax.tree.leaves(dparams, is_leaf=lambda leaf: isinstance(leaf, _Reduced))
    paths, form = jax.tree.flatten_with_path(params)
    if len(reduced) != len(paths):
        raise ValueError(f"backward: {len(paths)} parameters, but {len(reduced)} gradients")
    for (path, param), leaf in zip(paths, reduced, strict=True):
        if not isinstance(leaf, _Reduced):
            raise ValueError(
                f"backward: the gradient of params{jax.tree_util.keystr(path)} is not what "
                f"`reduce` returned: call reduce on a factor, such as Outer or Direct, of the "
                f"parameter's per-example gradients, and return the result unchanged"
            )
        if leaf.like.shape[:-1] != param.shape:
            expected = f"expected a factor for params{jax.tree_util.keystr(path)} of gradients"
            got = f"got {leaf.like.shape[:-1]}"
            raise ValueError(f"backward: {expected} with its shape {param.shape}, {got}")
    return jax.tree.unflatten(form, [leaf.value for leaf in reduced])


def example_shape(losses: Array, example_axes: int | None) -> tuple[int, ...]:
    """The shape of the example axes: the first `example_axes` axes of the losses, by default all.

    Raises ValueError if example_axes is below 0 or above the number of axes of the losses.

    >>> example_shape(jnp.ones((8, 5)), 1)
    (8,)
    """
    if example_axes is not None and not 0 <= example_axes <= losses.ndim:
        expected = f"expected 0 to {losses.ndim} for losses of shape {losses.shape}"
        raise ValueError(f"example_axes: {expected}, got {example_axes}")
    return losses.shape if example_axes is None else losses.shape[:example_axes]
