"""Convolutional layers, and the factor of their weight gradients."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from fnn import initializers
from fnn.base import Array, Grads, Layer, Params, Residuals, pytree, split
from fnn.layers.shapes import check_input, check_widths
from fnn.layers.windows import Pair, check_fits, check_geometry, windows
from fnn.reductions import Direct, Factor, Outer, Reduce, expand_like, total


def conv2d(
    c_in: int,
    c_out: int,
    window: Pair = (3, 3),
    stride: Pair = (1, 1),
    padding: str = "SAME",
    *,
    weight_init: Callable[..., Array] = initializers.glorot_uniform,
    bias_init: Callable[..., Array] = initializers.zeros,
) -> Layer:
    """2D convolution: a dense layer of c_out neurons applied to each window of an image.

    params {"W": (c_out, *window, c_in), "b": (c_out,)};
    x (..., height, width, c_in) -> (..., rows, columns, c_out). With p the place of a window,
    q that of an entry in it, and s the stride:

        forward    z_p     = sum_q W_q x_(s p + q) + b
        backward   dx_r    = sum of W_q^T dz_p over s p + q = r,
                   dW_q    = sum over batch and p of dz_p x_(s p + q)^T,
                   db      = sum over batch and p of dz_p

    Both are convolutions too: dx of dz, with stride - 1 zeros between its entries, and the
    flipped W; dW of x and dz. With padding "VALID" windows are inside the image, rows =
    (height - window) // stride + 1; with "SAME" the image is padded with zeros, rows =
    height / stride, rounded up, with an odd zero at the bottom and the right.

    weight_init is called as init(key, (c_out, window[0] * window[1] * c_in)), bias_init as
    init(key, (c_out,)).

    Raises ValueError for widths, windows and strides below 1, another padding, x or params with
    other shapes and images smaller than a window; TypeError if x and params differ in dtype.

    >>> layer = conv2d(3, 8, stride=(2, 2))
    >>> y, residuals = layer.forward(layer.init(jax.random.key(0)), jnp.ones((5, 9, 6, 3)))
    >>> y.shape
    (5, 5, 3, 8)
    """
    name = f"conv2d({c_in}, {c_out}, {window})"
    c_in, c_out = check_widths(name, c_in, c_out)
    window, stride = check_geometry(name, window, stride)
    if padding not in ("SAME", "VALID"):
        raise ValueError(f"{name}: expected padding 'SAME' or 'VALID', got {padding!r}")
    shape = (c_out, *window, c_in)
    zeros_around = lambda x: tuple(jax.lax.padtype_to_pads(x.shape[-3:-1], window, stride, padding))

    def init(key: Array) -> Params:
        weight_key, bias_key = split(key, 2)
        W = weight_init(weight_key, (c_out, window[0] * window[1] * c_in))
        return {"W": W.reshape(shape), "b": bias_init(bias_key, (c_out,))}

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        check_input(name, params, {"W": shape, "b": (c_out,)}, x, "height", "width", c_in)
        if padding == "VALID":
            check_fits(name, x.shape[-3:-1], window)
        # HWIO: the layout that XLA uses on the CPU and that converters to ONNX support.
        kernel = params["W"].transpose(1, 2, 3, 0)
        z = _convolution(_images(x), kernel, "NHWC,HWIO,NHWC", stride, zeros_around(x))
        return z.reshape(*x.shape[:-3], *z.shape[1:]) + params["b"], x

    def backward(params: Params, x: Array, dy: Array, reduce: Reduce = total) -> Grads:
        zeros = zeros_around(x)
        back = [
            (k - 1 - low, length + low - (count - 1) * s - 1)
            for k, (low, _), length, count, s in zip(
                window, zeros, x.shape[-3:-1], dy.shape[-3:-1], stride, strict=True
            )
        ]
        flipped = jnp.flip(params["W"], (1, 2))
        dx = _convolution(_images(dy), flipped, "NHWC,IHWO,NHWC", (1, 1), back, stride)
        dparams = {"W": reduce(_Conv(x, dy, window, stride, zeros)), "b": reduce(Direct(dy))}
        return dparams, dx.reshape(x.shape)

    return Layer(init, forward, backward)


def conv1d(
    c_in: int,
    c_out: int,
    window: int = 3,
    stride: int = 1,
    padding: str = "SAME",
    *,
    weight_init: Callable[..., Array] = initializers.glorot_uniform,
    bias_init: Callable[..., Array] = initializers.zeros,
) -> Layer:
    """1D convolution over a sequence: `conv2d` on images of one row.

    params {"W": (c_out, 1, window, c_in), "b": (c_out,)};
    x (..., length, c_in) -> (..., places, c_out), with as many places as `conv2d` has columns, and
    the same equations.

    Raises ValueError for widths, windows and strides below 1, another padding, x or params with
    other shapes and sequences shorter than a window; TypeError if x and params differ in dtype.

    >>> layer = conv1d(3, 8, stride=2)
    >>> y, residuals = layer.forward(layer.init(jax.random.key(0)), jnp.ones((5, 9, 3)))
    >>> y.shape
    (5, 5, 8)
    """
    name = f"conv1d({c_in}, {c_out}, {window})"
    c_in, c_out, window, stride = check_widths(name, c_in, c_out, window, stride)
    inner = conv2d(
        c_in, c_out, (1, window), (1, stride), padding, weight_init=weight_init, bias_init=bias_init
    )
    shapes = {"W": (c_out, 1, window, c_in), "b": (c_out,)}

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        check_input(name, params, shapes, x, "length", c_in)
        y, residuals = inner.forward(params, jnp.expand_dims(x, -3))
        return y.squeeze(-3), residuals

    def backward(params: Params, residuals: Residuals, dy: Array, reduce: Reduce = total) -> Grads:
        dparams, dx = inner.backward(params, residuals, jnp.expand_dims(dy, -3), reduce)
        return dparams, dx.squeeze(-3)

    return Layer(inner.init, forward, backward)


@pytree("window", "stride", "zeros")
class _Conv(Factor):
    """Per-example gradients of a convolution's W (c_out, *window, c_in).

    x (..., height, width, c_in), dy (..., rows, columns, c_out); zeros is the padding of x,
    ((top, bottom), (left, right)). The sum over the batch is a convolution. The per-example
    gradients are those of a dense layer on patches (the entries of each window, concatenated) with
    rows * columns positions: norms and rows are computed from its `Outer`.
    """

    x: Array
    dy: Array
    window: Pair
    stride: Pair
    zeros: tuple[Pair, ...]
    ndim = 4

    @property
    def batch(self) -> tuple[int, ...]:  # type: ignore[override]
        """The leading axes, then rows and columns."""
        return self.dy.shape[:-1]

    def outer(self) -> Outer:
        """The gradients of W as (c_out, entries of a window), from dy and patches."""
        none = [(0, 0)] * (self.x.ndim - 3)
        x = jnp.pad(self.x, [*none, *self.zeros, (0, 0)])
        return Outer(self.dy, jnp.concatenate(windows(x, self.window, self.stride), -1))

    def total(self) -> Array:
        x, dy = _images(self.x), _images(self.dy)
        zeros = [
            (low, k - 1 + (count - 1) * s + 1 - length - low)
            for k, (low, _), length, count, s in zip(
                self.window, self.zeros, x.shape[1:3], dy.shape[1:3], self.stride, strict=True
            )
        ]
        return _convolution(x, dy, "CHWN,IHWO,CHWN", (1, 1), zeros, (1, 1), self.stride)

    def rows(self, examples: int | None = None) -> Direct:
        value = _for_each_example(lambda one: one.outer().rows(0).value, self, examples)
        shape = (self.dy.shape[-1], *self.window, self.x.shape[-1])
        return Direct(value.reshape(*value.shape[:-2], *shape), 4)

    def squared_norm(self, examples: int | None = None) -> Array:
        return _for_each_example(lambda one: one.outer().squared_norm(0), self, examples)

    def weighted(self, weight: Array) -> Factor:
        return replace(self, dy=self.dy * expand_like(weight, self.dy))


def _for_each_example(f: Callable[[_Conv], Array], factor: _Conv, examples: int | None) -> Array:
    """f of each example's own factor, 16 at a time: patches are as many times larger than the
    images as a window has entries, and those of 16 images fit in the processor's cache."""
    batch = factor.batch[: len(factor.batch) if examples is None else examples]
    one = lambda pair: f(replace(factor, x=pair[0], dy=pair[1]))
    flat = (a.reshape(-1, *a.shape[len(batch) :]) for a in (factor.x, factor.dy))
    each = jax.lax.map(one, tuple(flat), batch_size=16)
    return each.reshape(*batch, *each.shape[1:])


def _images(x: Array) -> Array:
    """x with its batch axes reshaped into one."""
    return x.reshape(-1, *x.shape[-3:])


def _convolution(x: Array, kernel: Array, axes: str, *settings: Any) -> Array:
    """`lax.conv_general_dilated`. axes: the layouts of x, the kernel and the result; settings: the
    stride, the padding, and the dilations of x and of the kernel."""
    convolution: Any = jax.lax.conv_general_dilated
    return convolution(x, kernel, *settings, dimension_numbers=tuple(axes.split(",")))
