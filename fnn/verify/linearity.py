"""A law that needs no reference: a vector-Jacobian product is linear in its cotangent."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fnn.base import Params
from fnn.verify.leaf import FLOOR, measure
from fnn.verify.trees import differentiable, named_leaves, random_cotangent

TOLERANCE = 1e-6
"""Relative. What is not multiplied by the cotangent differs by about its own size."""


def nonlinear_leaves(
    forward: Callable[..., Any], backward: Callable[..., Any], params: Params, x: Any, dy: Any
) -> set[str]:
    """The leaves of (dparams, dx) where backward(u + v) is not backward(u) + backward(v), for
    u = dy and another cotangent v. Empty where they can't be compared.

    >>> import jax.numpy as jnp
    >>> forward = lambda params, x: (jnp.sin(x), x)
    >>> backward = lambda params, x, dy: ((), dy * jnp.cos(x) + 0.1 * x)
    >>> nonlinear_leaves(forward, backward, (), jnp.ones(2), jnp.ones(2))
    {'dx'}
    """
    other = random_cotangent(jax.random.key(1), dy)
    both = jax.tree.map(lambda u, v: u + v if differentiable(u) else u, dy, other)
    try:
        _, residuals = forward(params, x)
        once, again, together = (
            named_leaves(dict(zip(("dparams", "dx"), backward(params, residuals, d), strict=True)))
            for d in (dy, other, both)
        )
    except Exception:  # a kernel that does not take float64 may raise anything
        return set()
    return {
        name
        for name, leaf in together.items()
        if differentiable(leaf) and leaf.size and not _added(once[name], again[name], leaf)
    }


def _added(u: Any, v: Any, together: Any) -> bool:
    """Whether together = u + v. Where that is not finite, nothing is known."""
    total, got = np.asarray(u) + np.asarray(v), np.asarray(together)
    if total.shape != got.shape or not (np.isfinite(total).all() and np.isfinite(got).all()):
        return True
    return measure(got, total, FLOOR)[0] <= TOLERANCE
