"""The three protocols that carry the library: `Layer`, `Loss`, `Optimizer`.

A network is a value that knows its own derivative. Each protocol is a `NamedTuple` of
pure functions, so whatever `jax.jit`, `jax.vmap` and `jax.lax.scan` do to functions they
do to networks.

Shapes, in every docstring of the package:

    ...     any number of leading batch axes, the same for all arguments of one call
    d_in    features of a layer's input         d_out   features of its output
    k       outputs of the network: classes, or values to predict
    m       examples in a batch: the product of the batch axes
    n       examples in the data
    l, L    a layer, the number of layers

    x       (..., d_in)   input                 dx      cotangent of x, shape of x
    y       (..., d_out)  output                dy      cotangent of y, shape of y
    params  a pytree of arrays                  dparams cotangent of params
    W       (d_out, d_in) weights; row j belongs to neuron j
    b       (d_out,)      biases
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Params = Any
"""A pytree of floating-point arrays; `()` where there is nothing to learn."""
Residuals = Any
"""A pytree of what `forward` saves for `backward`."""


class Layer(NamedTuple):
    """A differentiable function with parameters, and its derivative beside it.

    `init(key) -> params`

    `forward(params, x) -> (y, residuals)`; the residuals hold only what `backward` needs
    and the caller does not already hold.

    `backward(params, residuals, dy, reduce=total) -> (dparams, dx)` is the vector-Jacobian
    product. A layer with parameters states the per-example gradients of each in factored
    form (`Outer`, `Direct`) and returns what `reduce` makes of them; with the default,
    `total`, that is the gradient summed over the batch: plain backpropagation. A layer
    without parameters ignores `reduce`; a layer made of layers passes it on.
    """

    init: Callable[[Array], Params]
    forward: Callable[[Params, Array], tuple[Array, Residuals]]
    backward: Callable[..., tuple[Params, Array]]


class Loss(NamedTuple):
    """What one prediction costs, and the derivative of that cost.

    `value(prediction, target)` gives one loss an example: `(..., k) -> (...)`.

    `gradient(prediction, target)` gives d value / d prediction, `(..., k)`, for each
    example by itself: the 1/m of the mean over a batch is not in it.
    """

    value: Callable[[Array, Array], Array]
    gradient: Callable[[Array, Array], Array]


class Optimizer(NamedTuple):
    """A pure update rule.

    `init(params) -> state`: a `NamedTuple` with `.params`, `.step` (int32, the number of
    updates done) and the rule's own slots.

    `update(state, grads) -> state`
    """

    init: Callable[[Params], Any]
    update: Callable[[Any, Params], Any]


def at_least_float32(dtype: Any) -> Any:
    """The dtype in which sums over many terms are kept: narrower ones lose the small terms."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def check_layer(name: str, layer: Any) -> None:
    """Raise TypeError, in the words of the caller `name`, for what is not a `Layer`, or is one
    whose backward can't be given `reduce`."""
    if not isinstance(layer, Layer):
        hint = "; call it to make one" if callable(layer) else ""
        raise TypeError(f"{name}: expected a Layer, got {layer!r}{hint}")
    try:
        inspect.signature(layer.backward).bind("params", "residuals", "dy", "reduce")
    except ValueError:
        return  # a callable that has no signature to read
    except TypeError:
        raise TypeError(
            f"{name}: expected a layer with backward(params, residuals, dy, reduce=total), "
            f"got backward{inspect.signature(layer.backward)}"
        ) from None
