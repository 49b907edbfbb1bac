"""What layers with parameters check of their widths and inputs."""

import jax.numpy as jnp

from fnn.base import Array, Params


def check_widths(name: str, *widths: int) -> None:
    """Raise ValueError, naming the layer, for widths that are not whole numbers of at least 1.

    >>> check_widths("dense(0, 2)", 0, 2)
    Traceback (most recent call last):
    ValueError: dense(0, 2): expected widths that are whole numbers of at least 1
    """
    if any(isinstance(d, bool) or not hasattr(d, "__index__") or d < 1 for d in widths):
        raise ValueError(f"{name}: expected widths that are whole numbers of at least 1")


def check_input(
    name: str, params: Params, shapes: dict[str, tuple[int, ...]], x: Array, d_in: int
) -> None:
    """Refuse x or params that the layer `name`, with parameters of `shapes`, can't take.

    Raises ValueError for other shapes, TypeError for x that is not an array and where x and
    params differ in dtype.

    >>> check_input("dense(3, 1)", {"b": jnp.ones(1)}, {"b": (1,)}, jnp.ones((5, 2)), 3)
    Traceback (most recent call last):
    ValueError: dense(3, 1): expected x of shape (..., 3), got (5, 2)
    """
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(f"{name}: expected x to be an array, got {type(x).__name__}")
    got = {k: jnp.shape(v) for k, v in params.items()} if isinstance(params, dict) else params
    if got != shapes:
        raise ValueError(f"{name}: expected params of shapes {shapes}, got {got}")
    if jnp.ndim(x) == 0 or x.shape[-1] != d_in:
        raise ValueError(f"{name}: expected x of shape (..., {d_in}), got {jnp.shape(x)}")
    for leaf, value in params.items():
        if value.dtype != x.dtype:
            raise TypeError(f"{name}: x is {x.dtype}, but params[{leaf!r}] is {value.dtype}")
