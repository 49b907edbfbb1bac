"""Optimizers: from optax, and to it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn.base import Array, Optimizer, Params, check_optimizer


class _OptaxState(NamedTuple):
    """`slots` is the optax transformation's own state.

    >>> _OptaxState(jnp.ones(1), jnp.zeros((), jnp.int32), ()).slots
    ()
    """

    params: Params
    step: Array
    slots: Any


def from_optax(transformation: Any) -> Optimizer:
    """An `Optimizer` of any optax transformation: theta <- theta + updates.

    It computes under JAX's standard dtype promotion, for optax mixes dtypes.

    Raises TypeError for what has no init and update, and for what is an `Optimizer` already.

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
        params, step, slots = state
        with jax.numpy_dtype_promotion("standard"):
            updates, slots = transformation.update(grads, slots, params)
        moved = lambda p, u: (p + u).astype(p.dtype)
        return _OptaxState(jax.tree.map(moved, params, updates), step + 1, slots)

    return Optimizer(init, update)


class _Transformation(NamedTuple):
    """init and update in optax's order of arguments; optax takes it for one of its own.

    >>> import fnn
    >>> updates, _ = to_optax(fnn.sgd(0.5)).update(
    ...     jnp.array([1.0]), fnn.sgd(0.5).init(jnp.array([1.0])), jnp.array([1.0])
    ... )
    >>> updates
    Array([-0.5], dtype=float32)
    """

    init: Any
    update: Any


def to_optax(optimizer: Optimizer) -> _Transformation:
    """An optax transformation of any `Optimizer`: updates = the new params - the params.

    Its state is the optimizer's own, so that params are kept there too; those that `update` is
    given take their place.

    Raises TypeError for what is not an optimizer; update raises ValueError without params.

    >>> import fnn
    >>> to_optax(fnn.adam(0.1)).init(jnp.array([1.0])).m
    Array([0.], dtype=float32)
    """
    check_optimizer("to_optax", optimizer)

    def update(grads: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        if params is None:
            raise ValueError("to_optax: expected update(grads, state, params), got no params")
        state = optimizer.update(_with_params(state, params), grads)
        return jax.tree.map(jnp.subtract, state.params, params), state

    return _Transformation(optimizer.init, update)


def _with_params(state: Any, params: Params) -> Any:
    """The state with these params, also where a wrapper keeps them in `inner`."""
    if "params" in state._fields:
        return state._replace(params=params)
    if hasattr(state.inner, "_fields"):
        return state._replace(inner=_with_params(state.inner, params))
    raise TypeError(f"to_optax: {type(state).__name__} keeps its parameters in parts")
