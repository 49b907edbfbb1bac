"""The first wrong layer of a network, counted from the output, where backpropagation begins.

Each layer is compared with autodiff by itself, in float64, and gets the true cotangent of its
output: one wrong layer is not taken for many. The layers of a network are its `Layer.parts`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.base import Layer, Loss, Params
from fnn.verify.leaf import FLOOR, TOLERANCE, measure
from fnn.verify.trees import differentiable, named_leaves


def first_wrong_part(network: Layer, loss: Loss, params: Params, x: Any, y: Any) -> str:
    """Where the gradient of network and loss is wrong first: at the loss, or in a layer.

    >>> import fnn
    >>> wrong = fnn.mse._replace(gradient=lambda p, t: p - t)
    >>> first_wrong_part(fnn.serial(), wrong, (), jnp.ones((2, 1)), jnp.zeros((2, 1)))
    "first wrong from the output: the loss's gradient"
    """
    prediction, _ = network.forward(params, x)
    expected = jax.grad(lambda p: loss.value(p, y).sum(), allow_int=True)(prediction)
    if _wrong_leaves(loss.gradient(prediction, y), expected):
        return "first wrong from the output: the loss's gradient"
    return first_wrong_layer(network, params, x, expected)


def first_wrong_layer(layer: Layer, params: Params, x: Any, dy: Any, path: str = "") -> str:
    """The layer of a network that is wrong by itself and nearest to the output; "" for a layer
    that is not made of layers.

    dy is the cotangent of the output, path the layer's own place in a larger network.

    >>> import fnn
    >>> wrong = fnn.tanh._replace(backward=lambda params, y, dy, reduce=None: ((), dy))
    >>> network = fnn.serial(fnn.sigmoid, wrong)
    >>> first_wrong_layer(network, ((), ()), jnp.ones(2), jnp.ones(2))
    'first wrong layer, number 1 of 2 counted from the output: [1] elementwise, dx'
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
    found, right = named_leaves(got), named_leaves(expected)
    return [name for name, leaf in right.items() if not _agree(found.get(name), leaf)]


def _agree(got: Any, expected: Any) -> bool:
    if not differentiable(expected) or expected.size == 0:
        return True
    same = got is not None and jnp.shape(got) == expected.shape
    return same and measure(np.asarray(got), np.asarray(expected), FLOOR)[0] <= 100 * TOLERANCE
