"""Pooling layers: one number for each window of an image."""

from functools import reduce as fold

import jax.numpy as jnp
import numpy as np

from fnn.base import Array, Grads, Layer, Params, Residuals, at_least_float32
from fnn.layers.shapes import check_array
from fnn.layers.windows import Pair, check_fits, check_geometry, spread, windows
from fnn.reductions import Reduce, total


def max_pool(window: Pair, stride: Pair | None = None) -> Layer:
    """The largest entry of each window, for each channel. The stride is the window by default.

    x (..., height, width, c) -> (..., rows, columns, c), without parameters; rows =
    (height - window) // stride + 1, likewise columns: the remainder at an edge is dropped.

        forward    y_p  = max of x_q over q in the window at p
        backward   dx_q = sum of dy_p over the windows p whose maximum is at q

    Of equal entries the first, in row-major order, is the maximum: at a tie dx is a one-sided
    derivative. The maximum of a window with NaN is NaN. One small integer per output is kept, the
    position of the maximum in its window.

    Raises ValueError for a window or stride that is not a pair of whole numbers of at least 1,
    and for x with fewer axes or smaller than the window.

    >>> layer = max_pool((1, 2))
    >>> layer.forward((), jnp.array([[[1.0], [3.0], [2.0], [2.0]]]))[0].ravel()
    Array([3., 2.], dtype=float32)
    """
    name, stride = f"max_pool({window})", window if stride is None else stride
    window, stride = check_geometry(name, window, stride)
    places = window[0] * window[1]
    dtype = np.min_scalar_type(places)

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        _check_image(name, x, window)
        y, *others = windows(x, window, stride)
        winner = jnp.zeros(y.shape, dtype)
        for place, a in enumerate(others, 1):
            larger = (a > y) | jnp.isnan(a)
            y, winner = jnp.where(larger, a, y), jnp.where(larger, place, winner)
        return y, (winner, _size_of(x))

    def backward(params: Params, residuals: Residuals, dy: Array, reduce: Reduce = total) -> Grads:
        winner, like = residuals
        won = [jnp.where(winner == place, dy, 0) for place in range(places)]
        return (), spread(won, like.shape[-2:], window, stride)

    return Layer(lambda key: (), forward, backward)


def mean_pool(window: Pair, stride: Pair | None = None) -> Layer:
    """The mean of each window, for each channel. The stride is the window by default.

    x (..., height, width, c) -> (..., rows, columns, c), without parameters; rows =
    (height - window) // stride + 1, likewise columns: the remainder at an edge is dropped. With k
    entries in a window:

        forward    y_p  = (1/k) sum of x_q over q in the window at p
        backward   dx_q = (1/k) sum of dy_p over the windows p that contain q

    Sums are computed in at least float32. Raises as `max_pool` does.

    >>> layer = mean_pool((1, 2))
    >>> layer.forward((), jnp.array([[[1.0], [3.0], [2.0], [2.0]]]))[0].ravel()
    Array([2., 2.], dtype=float32)
    """
    name, stride = f"mean_pool({window})", window if stride is None else stride
    window, stride = check_geometry(name, window, stride)
    places = window[0] * window[1]

    def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
        _check_image(name, x, window)
        wide = x.astype(at_least_float32(x.dtype))
        y = fold(jnp.add, windows(wide, window, stride)) / places
        return y.astype(x.dtype), _size_of(x)

    def backward(params: Params, like: Residuals, dy: Array, reduce: Reduce = total) -> Grads:
        wide = dy.astype(at_least_float32(dy.dtype)) / places
        return (), spread([wide] * places, like.shape[-2:], window, stride).astype(dy.dtype)

    return Layer(lambda key: (), forward, backward)


def _size_of(x: Array) -> Array:
    """An empty array whose shape keeps height and width, which must be static."""
    return jnp.zeros((0, *x.shape[-3:-1]), x.dtype)


def _check_image(name: str, x: Array, window: Pair) -> None:
    check_array(name, x, "height", "width", "channels")
    check_fits(name, x.shape[-3:-1], window)
