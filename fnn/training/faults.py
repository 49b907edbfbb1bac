"""Find the first step, and the first array, at which training is no longer finite."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from fnn.base import Array, Tree
from fnn.training.steps import Data, State, Training


def all_finite(tree: Tree) -> Array:
    """Whether no floating-point entry of the tree is NaN or infinite: a boolean scalar."""
    is_inexact = lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    flags = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]
    return jnp.stack(flags).all() if flags else jnp.array(True)


def first_fault(
    training: Training, state: State, batches: Iterable[Data], key: Array | None = None
) -> tuple[int, float, str]:
    """Train from `state` on these batches until something is not finite: (step, loss, leaf).

    (0, NaN, "loss") where all stays finite.
    """
    gradient = lambda state, grads, value: grads
    step = jax.jit(training._replace(record=gradient).step)
    for number, batch in enumerate(batches, 1):
        state, (value, grads) = step(state, batch, key)
        for kind, tree in (("gradient", grads), ("updated", state), ("loss", value)):
            leaf = _first_not_finite(tree)
            if leaf is not None:
                return number, float(value), f"{kind} {leaf}".strip()
    return 0, float("nan"), "loss"


def _first_not_finite(tree: Tree) -> str | None:
    """The name of the first leaf, in the tree's order, with a NaN or an infinity in it."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        if not all_finite(leaf):
            return jax.tree_util.keystr(path, simple=True, separator=".")
    return None
