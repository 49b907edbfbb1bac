"""Activation functions, each with its derivative. Each is a `Layer`.

A = s(Z), dZ = dA * s'(Z). An elementwise activation is defined by s and s'. s' is a function of the
input and the output, because it is often cheapest to compute from the output, which is then all
that is kept. Only `softmax` mixes entries: it has a full Jacobian.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fnn import numbers
from fnn.base import Array, Grads, Layer, Params, Residuals, check_array
from fnn.reductions import Reduce, total


def elementwise(f: Callable[[Array], Array], df: Callable[[Array, Array], Array]) -> Layer:
    """The layer y = f(x), entry by entry: dx = dy * f'(x).

    f(x) -> y and df(x, y) -> f'(x), all with the same shape. df may return booleans if the
    derivative is 0 or 1. Under `jax.jit` an argument that df does not use is not kept.

    >>> square = elementwise(lambda x: x * x, lambda x, y: 2 * x)
    >>> y, residuals = square.forward((), jnp.array([3.0]))
    >>> square.backward((), residuals, jnp.array([1.0]))
    ((), Array([6.], dtype=float32))
    """

    name = getattr(f, "__name__", "elementwise").replace("<lambda>", "elementwise")

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        check_array(name, x)
        y = f(x)
        return y, (x, y)

    def backward(params: Params, residuals: Residuals, dy: Array, reduce: Reduce = total) -> Grads:
        slope = df(*residuals)
        return (), jnp.where(slope, dy, 0) if slope.dtype == bool else dy * slope

    return Layer(lambda key: (), forward, backward)


identity = Layer(
    init=lambda key: (),
    forward=lambda params, x: (x, ()),
    backward=lambda params, residuals, dy, reduce=total: ((), dy),
)
"""y = x; for the outputs of regression, and for logits.

>>> identity.forward((), jnp.array([-1.0, 2.0]))[0]
Array([-1.,  2.], dtype=float32)
"""

sigmoid = elementwise(jax.nn.sigmoid, lambda x, y: y * (1 - y))
"""y = 1 / (1 + e^-x), in (0, 1); y' = y (1 - y).

>>> sigmoid.forward((), jnp.array([0.0]))[0]
Array([0.5], dtype=float32)
"""

tanh = elementwise(jnp.tanh, lambda x, y: (1 - y) * (1 + y))
"""y = (e^x - e^-x) / (e^x + e^-x), in (-1, 1); y' = 1 - y^2.

>>> tanh.forward((), jnp.array([0.0]))[0]
Array([0.], dtype=float32)
"""

# With x <= 0, NaN stays NaN; with x > 0 it would become 0. By jnp.maximum, autodiff's derivative
# at 0 would be 1/2.
relu = elementwise(lambda x: jnp.where(x <= 0, jnp.zeros_like(x), x), lambda x, y: y > 0)
"""y = max(0, x); y' = 1 where x > 0, else 0: at x = 0 it is 0.

>>> relu.forward((), jnp.array([-1.0, 2.0]))[0]
Array([0., 2.], dtype=float32)
"""


def leaky_relu(slope: float = 0.01) -> Layer:
    """y = x where x > 0, else slope x; y' = 1 or slope (slope at x = 0). Maas et al. 2013.

    >>> leaky_relu(0.5).forward((), jnp.array([-2.0, 2.0]))[0]
    Array([-1.,  2.], dtype=float32)
    """
    slope = numbers.finite("leaky_relu", slope=slope)
    return elementwise(
        lambda x: jnp.where(x > 0, x, slope * x),
        lambda x, y: jnp.where(x > 0, jnp.ones_like(x), slope),
    )


def elu(alpha: float = 1.0) -> Layer:
    """y = x where x > 0, else alpha (e^x - 1); y' = 1 or alpha e^x = y + alpha.
    Clevert et al. 2016. Raises ValueError for alpha not above 0.

    >>> elu().forward((), jnp.array([-100.0, 2.0]))[0]
    Array([-1.,  2.], dtype=float32)
    """
    alpha = numbers.positive("elu", alpha=alpha)
    return _scaled_elu(1.0, alpha)


def _scaled_elu(scale: float, alpha: float) -> Layer:
    # min(x, 0): the branch that is not selected must be finite, or its derivative is inf * 0.
    return elementwise(
        lambda x: scale * jnp.where(x > 0, x, alpha * jnp.expm1(jnp.minimum(x, 0))),
        lambda x, y: jnp.where(y > 0, scale, y + scale * alpha),
    )


selu = _scaled_elu(1.0507009873554805, 1.6732632423543772)
"""y = scale elu(x, alpha), which keeps mean 0 and variance 1. Klambauer et al. 2017.

>>> selu.forward((), jnp.array([0.0]))[0]
Array([0.], dtype=float32)
"""

gelu = elementwise(
    lambda x: x * _normal_cdf(x),
    lambda x, y: _normal_cdf(x) + x * jnp.exp(-x * x / 2) / math.sqrt(2 * math.pi),
)
"""y = x P(x), P the standard normal distribution (exact, by erfc); y' = P + x p.
Hendrycks & Gimpel 2016.

>>> gelu.forward((), jnp.array([-100.0, 100.0]))[0]
Array([ -0., 100.], dtype=float32)
"""


def _silu_derivative(x: Array, y: Array) -> Array:
    s = jax.nn.sigmoid(x)
    return s + y * (1 - s)


silu = elementwise(lambda x: x * jax.nn.sigmoid(x), _silu_derivative)
"""y = x s(x), s the sigmoid; y' = s + y (1 - s). Elfwing et al. 2017.

>>> silu.forward((), jnp.array([0.0, 100.0]))[0]
Array([  0., 100.], dtype=float32)
"""

softplus = elementwise(lambda x: jnp.logaddexp(x, 0), lambda x, y: -jnp.expm1(-y))
"""y = log(1 + e^x), a smooth relu; y' = 1 / (1 + e^-x) = 1 - e^-y.

>>> softplus.forward((), jnp.array([100.0]))[0]
Array([100.], dtype=float32)
"""


def _normal_cdf(x: Array) -> Array:
    # erfc is accurate far left of 0, where 1 + erf cancels.
    return jax.lax.erfc(-x / math.sqrt(2)) / 2


def _softmax_forward(params: Params, x: Array) -> tuple[Array, Residuals]:
    check_array("softmax", x)
    y = jax.nn.softmax(x)
    return y, y


def _softmax_backward(params: Params, y: Residuals, dy: Array, reduce: Reduce = total) -> Grads:
    return (), y * (dy - (y * dy).sum(-1, keepdims=True))


softmax = Layer(lambda key: (), _softmax_forward, _softmax_backward)
"""y_j = e^x_j / sum_k e^x_k over the last axis; dy_i/dx_j = y_i (delta_ij - y_j), so
dx = y * (dy - sum_j y_j dy_j). With the gradient of `cross_entropy` as dy this is A - Y. For
training, leave the softmax out and use `softmax_cross_entropy` on the logits, which avoids log 0.

>>> softmax.forward((), jnp.array([1.0, 1.0]))[0]
Array([0.5, 0.5], dtype=float32)
"""
