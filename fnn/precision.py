"""Another dtype inside: products in bfloat16 or float16, everything else as it was."""

from typing import Any

import jax
import jax.numpy as jnp

from fnn.base import (
    Array,
    Grads,
    Layer,
    Params,
    Residuals,
    check_layer,
    is_floating,
    measured,
    varying_with,
)
from fnn.reductions import Factor, Reduce, Widened, total


def compute_in(layer: Layer, dtype: Any) -> Layer:
    """The layer computed in `dtype`, with params, input, output and gradients in their own.

        forward    y = f(params in dtype, x in dtype), in x's dtype again
        backward   f's own backward of dy in dtype; the per-example gradients are summed over
                   the batch in the params' dtype, dx is in dy's

    Residuals are kept in `dtype`, which halves their memory. Around a whole network only its
    input and its output change dtype; the loss stays in float32. Micikevicius et al. 2018.
    With float16 small gradients are lost: `scale_loss` keeps them.

    Raises TypeError for what is not a layer, and for a dtype that is not floating-point.

    >>> import fnn
    >>> layer = compute_in(fnn.mlp((4, 8, 2)), jnp.bfloat16)
    >>> params = layer.init(jax.random.key(0))
    >>> y, residuals = layer.forward(params, jnp.ones((5, 4)))
    >>> y.dtype.name, residuals[0].dtype.name
    ('float32', 'bfloat16')
    """
    check_layer("compute_in", layer)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"compute_in: expected a floating-point dtype, got {dtype!r}")

    def forward(params: Params, x: Any) -> tuple[Any, Residuals]:
        y, residuals = layer.forward(_cast(params, dtype), _cast(x, dtype))
        return _cast(y, _dtype_of(x, params)), residuals

    def backward(params: Params, residuals: Residuals, dy: Any, reduce: Reduce = total) -> Grads:
        of_params = _dtype_of(params, dy)

        def widened(factor: Factor) -> Any:
            return reduce(Widened(factor, of_params))

        dparams, dx = layer.backward(_cast(params, dtype), residuals, _cast(dy, dtype), widened)
        return dparams, _cast(dx, _dtype_of(dy, params))

    def measure(params: Params, x: Any, key: Array | None) -> tuple[Any, Any]:
        y, statistics = measured(layer, _cast(params, dtype), _cast(x, dtype), key)
        return _cast(y, _dtype_of(x, params)), statistics

    varying = varying_with(layer, lambda layer: compute_in(layer, dtype), measure)
    return Layer(layer.init, forward, backward, varying)


def _cast(tree: Any, dtype: Any) -> Any:
    """The tree with its floating-point arrays in dtype."""
    return jax.tree.map(lambda a: a.astype(dtype) if is_floating(a) else a, tree)


def _dtype_of(*trees: Any) -> Any:
    """The dtype of the first floating-point array: an input of codes has none."""
    dtypes = [a.dtype for a in jax.tree.leaves(trees) if is_floating(a)]
    return dtypes[0] if dtypes else jnp.dtype(jnp.float32)
