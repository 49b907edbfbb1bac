"""Optimizers from optax and to optax."""

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fnn.base import Array, Optimizer, Params, check_optimizer
from fnn.optimizers import check_gradients, check_state
from fnn.wrappers import scaled_gradients, with_params

_OptaxState = namedtuple("_OptaxState", "params step slots")
"""`slots` is the optax transformation's own state."""


def from_optax(
    transformation: Any, objective: Callable[[Params], Array] | None = None
) -> Optimizer:
    """An `Optimizer` of any optax transformation: theta <- theta + updates.

    It runs under JAX's standard dtype promotion, because optax mixes dtypes.

    The update of an `Optimizer` does not get the loss. For transformations that need it, such as
    optax.lbfgs, optax.polyak_sgd and optax.contrib.reduce_on_plateau, pass objective(params) -> the
    loss over examples of your choice: all training data, or held-out data. It is computed in each
    update and passed on as value, grad (the gradient given to update) and value_fn.

    Raises TypeError if transformation has no init or update, or is already an `Optimizer`.

    >>> class Descent:  # as optax.sgd(0.5)
    ...     init = staticmethod(lambda params: ())
    ...     update = staticmethod(lambda grads, slots, params: (-0.5 * grads, slots))
    >>> optimizer = from_optax(Descent)
    >>> optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([1.0])).params
    Array([0.5], dtype=float32)
    """
    if not (hasattr(transformation, "init") and hasattr(transformation, "update")):
        raise TypeError(f"from_optax: expected init and update, got {transformation!r}")

    if isinstance(transformation, Optimizer):
        raise TypeError("from_optax: expected an optax transformation, got an Optimizer of fnn")

    def init(params: Params) -> _OptaxState:
        params = jax.tree.map(jnp.asarray, params)
        return _OptaxState(params, jnp.zeros((), jnp.int32), transformation.init(params))

    def update(state: _OptaxState, grads: Params) -> _OptaxState:
        check_state(state, _OptaxState)
        params, step, slots = state
        check_gradients(params, grads)
        with jax.numpy_dtype_promotion("standard"):
            loss: Any = {}
            if objective is not None:
                loss = {"value": objective(params), "grad": grads, "value_fn": objective}
            updates, slots = transformation.update(grads, slots, params, **loss)
            # Updates, like gradients, must not be broadcast or lose an imaginary part.
            check_gradients(params, updates)
            params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)
        return _OptaxState(params, step + 1, slots)

    return Optimizer(init, update)


_Transformation = namedtuple("_Transformation", "init update")
"""init and update with optax's order of arguments; optax accepts it as a transformation."""


def to_optax(optimizer: Optimizer) -> Any:
    """An optax transformation of any `Optimizer`: updates = new params - params.

    Its state is the optimizer's, which includes a copy of the params; `update` replaces that by the
    params that it gets. Pass unscaled gradients: with `scale_loss`, they are multiplied by its
    scale here.

    Raises TypeError if optimizer is not an `Optimizer`; update raises ValueError without params.

    >>> import fnn
    >>> to_optax(fnn.adam(0.1)).init(jnp.array([1.0])).m
    Array([0.], dtype=float32)
    """
    check_optimizer("to_optax", optimizer)

    def update(grads: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        if params is None:
            raise ValueError("to_optax: expected update(grads, state, params), got no params")
        state = with_params(state, params)
        state = optimizer.update(state, scaled_gradients(state, grads))
        return jax.tree.map(jnp.subtract, state.params, params), state

    return _Transformation(optimizer.init, update)
