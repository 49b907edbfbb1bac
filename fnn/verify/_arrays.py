"""Trees of arrays, as users hand them over: which leaves have a derivative, their names.

Computing in float64, whatever JAX's configuration is, and leaving the configuration alone.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.base import Array

Function = Callable[..., Any]


def differentiable(leaf: Any) -> bool:
    """Whether a leaf is a floating-point array. Only such leaves are differentiated."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def floats(tree: Any) -> list[Any]:
    """The floating-point leaves of a tree."""
    return [leaf for leaf in jax.tree.leaves(tree) if differentiable(leaf)]


def as_arrays(tree: Any) -> Any:
    """The tree with NumPy's arrays as JAX's, in the dtype that JAX gives them here."""

    def convert(leaf: Any) -> Any:
        numpy = isinstance(leaf, np.ndarray | np.generic) and leaf.dtype != jax.dtypes.float0
        return jnp.asarray(leaf) if numpy else leaf

    return jax.tree.map(convert, tree)


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves by their paths, joined with dots."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in flat}


def random_cotangent(key: Array | None, y: Any) -> Any:
    """A random cotangent for the tree y, each leaf drawn in its own dtype. Without a key it is
    the same at each call.
    """
    leaves, form = jax.tree.flatten(y)
    keys = jax.random.split(jax.random.key(0) if key is None else key, max(len(leaves), 1))
    drawn = [
        jax.random.normal(k, a.shape, a.dtype)
        if differentiable(a)
        else np.zeros(a.shape, jax.dtypes.float0)
        for k, a in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(form, drawn)


ROUNDOFF = 2.0**-53
"""The unit roundoff of float64."""


def unit_roundoff(dtype: Any) -> float:
    """The largest relative error of rounding a number to a floating-point dtype."""
    return float(jnp.finfo(dtype).eps) / 2


def coarsest_dtype(arrays: Iterable[Any]) -> Any:
    """The floating-point dtype of the arrays that rounds most; float64 for none."""
    return max((a.dtype for a in arrays), key=unit_roundoff, default=jnp.dtype(float))


def map_floats(f: Function, tree: Any, *others: Any) -> Any:
    """`jax.tree.map` of f over the floating-point arrays of the tree; all else as it is."""
    return jax.tree.map(lambda a, *b: f(a, *b) if differentiable(a) else a, tree, *others)


def widened(tree: Any) -> Any:
    """The tree with its floating-point arrays in float64; everything else as it is."""
    return map_floats(lambda a: a.astype(jnp.float64), tree)


at_highest_precision = partial(jax.default_matmul_precision, "highest")
"""A context: matrix products in the full precision of their dtype."""


@contextmanager
def in_float64() -> Iterator[None]:
    """x64 on, matrix products at the highest precision, and no warnings from NumPy.

    Dtypes are promoted by JAX's standard rules: next to float64, a constant that the user's
    function holds in float32 is no mistake.
    """
    promoting = jax.numpy_dtype_promotion("standard")
    with jax.enable_x64(True), promoting, at_highest_precision(), np.errstate(all="ignore"):
        yield
