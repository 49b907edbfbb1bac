"""What goes wrong in training, and where: data that don't fit, numbers that stop being finite.

Data are checked once, on the host. Finiteness is one flag a compiled epoch; only when it falls
is that epoch gone through again, step by step, from the last finite state.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.backprop import value_and_grad
from fnn.base import Array, Layer, Loss, Optimizer, Params


class DivergedError(FloatingPointError):
    """A loss, a gradient or a state that is no longer finite.

    epoch and step (from 1; step 0 where it was not found again) say when. leaf is the first
    array affected, such as `gradient 0.W`, and loss the step's. state and history are those of
    the last epoch whose end was finite.
    """

    def __init__(
        self, epoch: int, step: int, loss: float, leaf: str, state: Any, history: list
    ) -> None:
        at = f"epoch {epoch}" + (f", step {step}" if step else "")
        super().__init__(
            f"training diverged in {at}: the loss is {loss:.4g}, and the first array that is "
            f"not finite is the {leaf}; a lower learning rate may help"
        )
        self.epoch, self.step, self.loss, self.leaf = epoch, step, loss, leaf
        self.state, self.history = state, history


def all_finite(tree: Any) -> Array:
    """Whether no floating-point entry of the tree is NaN or infinite: a boolean scalar."""
    flags = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree) if _is_floating(leaf)]
    return jnp.stack(flags).all() if flags else jnp.array(True)


def first_not_finite(tree: Any) -> str | None:
    """The name of the first leaf, in the tree's order, with a NaN or an infinity in it."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    for path, leaf in leaves:
        if _is_floating(leaf) and not all_finite(leaf):
            return jax.tree_util.keystr(path, simple=True, separator=".")
    return None


def first_fault(
    network: Layer,
    loss: Loss,
    optimizer: Optimizer,
    state: Any,
    batches: Iterable[tuple[Array, Array]],
) -> tuple[int, float, str]:
    """Train from `state` on these batches until something is not finite: (step, loss, leaf).

    (0, NaN, loss) where all stays finite.
    """
    gradient, update = jax.jit(value_and_grad(network, loss)), jax.jit(optimizer.update)
    for step, batch in enumerate(batches, 1):
        value, grads = gradient(state.params, *batch)
        state = update(state, grads)
        for kind, tree in (("gradient", grads), ("updated", state), ("loss", value)):
            leaf = first_not_finite(tree)
            if leaf is not None:
                return step, float(value), f"{kind} {leaf}".strip()
    return 0, float("nan"), "loss"


def check_data(name: str, network: Layer, loss: Loss, params: Params, x: Array, y: Array) -> None:
    """Refuse examples that the network and the loss can't take.

    Raises ValueError for no examples, another number of x than of y, shapes that the network
    or the loss refuses, labels outside 0 to k-1, and entries that are NaN or infinite.
    """
    if jnp.ndim(x) < 2 or jnp.ndim(y) < 1:
        raise ValueError(f"{name}: expected x (n, d_in) and y (n, ...), got {x.shape}, {y.shape}")
    if len(x) != len(y):
        raise ValueError(f"{name}: x has {len(x)} examples, but y has {len(y)}")
    if len(x) == 0:
        raise ValueError(f"{name}: expected at least one example, got none")
    prediction, _ = jax.eval_shape(network.forward, params, x)
    jax.eval_shape(loss.value, prediction, y)
    if jnp.issubdtype(y.dtype, jnp.integer) and y.shape == prediction.shape[:-1]:
        k = prediction.shape[-1]
        _refuse(name, "y", y, (y < 0) | (y >= k), f"labels from 0 to {k - 1}")
    for which, a in (("x", x), ("y", y)):
        if _is_floating(a):
            _refuse(name, which, a, ~jnp.isfinite(a), "finite numbers")


def _refuse(name: str, which: str, a: Array, wrong: Array, expected: str) -> None:
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(np.asarray(wrong))[0])
        raise ValueError(f"{name}: expected {expected}, {which}{list(index)} is {a[index]}")


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
