"""Mixed precision: a layer computed in bfloat16 or float16, with parameters in float32."""

from typing import Any

import jax
import jax.numpy as jnp

from fnn.base import Grads, Layer, Params, Residuals, Tree, check_layer, is_floating, varying_with
from fnn.reductions import Reduce, Widened, total


def compute_in(layer: Layer, dtype: Any) -> Layer:
    """The layer computed in `dtype`; params, input, output and gradients keep their dtypes.

        forward    y = f(params in dtype, x in dtype), converted to x's dtype
        backward   f's backward with params and dy in dtype; the per-example gradients are summed
                   over the batch in the params' dtype, and dx is converted to dy's dtype

    Residuals are kept in `dtype`, which halves their memory. Applied to a whole network, only its
    input and output are converted; the loss is computed in float32. Micikevicius et al. 2018. In
    float16 small gradients underflow: use `scale_loss`.

    Raises TypeError if layer is not a layer or dtype is not floating-point.

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

    def forward(params: Params, x: Tree) -> tuple[Tree, Residuals]:
        y, residuals = layer.forward(_cast(params, dtype), _cast(x, dtype))
        return _cast(y, _dtype_of(x, params)), residuals

    def backward(params: Params, residuals: Residuals, dy: Tree, reduce: Reduce = total) -> Grads:
        of_params = _dtype_of(params, dy)
        widened = lambda factor: reduce(Widened(factor, of_params))
        dparams, dx = layer.backward(_cast(params, dtype), residuals, _cast(dy, dtype), widened)
        return dparams, _cast(dx, _dtype_of(dy, params))

    varying = varying_with(lambda layer: compute_in(layer, dtype), layer)
    return Layer(layer.init, forward, backward, varying)


def _cast(tree: Tree, dtype: Any) -> Any:
    """The tree with its floating-point arrays in dtype."""
    return jax.tree.map(lambda a: a.astype(dtype) if is_floating(a) else a, tree)


def _dtype_of(*trees: Any) -> Any:
    """The dtype of the first floating-point array in the trees; float32 if there is none."""
    dtypes = [a.dtype for a in jax.tree.leaves(trees) if is_floating(a)]
    return dtypes[0] if dtypes else jnp.dtype(jnp.float32)
