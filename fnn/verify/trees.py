"""Trees of arrays, as users hand them over: which leaves have a derivative, their names."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.base import Array


def differentiable(leaf: Any) -> bool:
    """Whether a leaf is a floating-point array. Only such leaves are differentiated.

    >>> differentiable(jnp.ones(2)), differentiable(jnp.arange(2)), differentiable(3.0)
    (True, False, False)
    """
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def as_arrays(tree: Any) -> Any:
    """The tree with NumPy's arrays as JAX's, in the dtype that JAX gives them here.

    >>> as_arrays({"w": np.ones(2), "n": 3})
    {'n': 3, 'w': Array([1., 1.], dtype=float32)}
    """

    def convert(leaf: Any) -> Any:
        numpy = isinstance(leaf, np.ndarray | np.generic) and leaf.dtype != jax.dtypes.float0
        return jnp.asarray(leaf) if numpy else leaf

    return jax.tree.map(convert, tree)


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves by their paths, joined with dots.

    >>> named_leaves({"dparams": ({"W": 1, "b": 2}, ()), "dx": 3})
    {'dparams.0.W': 1, 'dparams.0.b': 2, 'dx': 3}
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in flat}


def random_cotangent(key: Array | None, y: Any) -> Any:
    """A random cotangent for the tree y, each leaf drawn in its own dtype. Without a key it is
    the same at each call.

    >>> random_cotangent(None, jnp.ones((2, 3))).shape
    (2, 3)
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
