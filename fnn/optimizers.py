"""Update rules, each with its equation and its source: pure functions (state, grads) -> state.

An optimizer is a rule for one array: theta, its gradient g and the rule's own slots go in,
theta and the slots come out. `_optimizer` maps the rule over a tree of parameters.

    theta   parameters         g    their gradient           eta   learning rate
    t       the number of this update, from 1

learning_rate is a number, a traced scalar, or a schedule step -> rate, called with the
number of updates already done (0 at the first). Slots start at 0 and are kept in at least
float32, in which the rule is computed too; theta keeps its own dtype.

All raise ValueError for a rate, an eps or a norm that is not above 0 and for a decay outside
[0, 1); `init` raises TypeError for parameters that are not floating-point. `update` raises
ValueError for a gradient of another shape than its parameter, and TypeError for one that is not
floating-point and for another rule's state.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn import numbers
from fnn.axes import over_devices
from fnn.base import Array, Optimizer, Params, at_least_float32, check_optimizer
from fnn.schedules import Schedule

Rate = float | Array | Schedule
Updated = tuple[Array, ...]
"""What a rule returns: theta and its slots."""


def _optimizer(state_type: Any, learning_rate: Rate, rule: Callable[..., Updated]) -> Optimizer:
    """The optimizer that applies rule(eta, t, theta, g, *slots) -> (theta, *slots) to each leaf.

    state_type is a NamedTuple (params, step, *slots), each slot a tree like params.
    """
    slot_names = state_type._fields[2:]

    def init(params: Params) -> Any:
        params = jax.tree.map(jnp.asarray, params)
        jax.tree.map(_wide, params)  # slots or not, parameters must be floating-point
        # Arrays of their own for each slot: a buffer can be donated only once.
        slots = [jax.tree.map(lambda p: jnp.zeros(p.shape, _wide(p)), params) for _ in slot_names]
        return state_type(params, jnp.zeros((), jnp.int32), *slots)

    def update(state: Any, grads: Params) -> Any:
        if type(state) is not state_type:
            raise TypeError(
                f"update: expected (state, grads) with a {state_type.__name__}, "
                f"got {type(state).__name__}; optax has these two the other way round"
            )
        params, step, *slots = state
        eta = learning_rate(step) if callable(learning_rate) else learning_rate

        def apply(theta: Array, g: Array, *slots: Array) -> Updated:
            _check_gradient(theta, g)
            inputs = (jnp.asarray(x).astype(_wide(theta)) for x in (eta, step + 1, theta, g))
            new, *changed = rule(*inputs, *slots)
            return new.astype(theta.dtype), *changed

        form: Any = jax.tree.structure(params)
        columns = [form.flatten_up_to(tree) for tree in (params, grads, *slots)]
        updated = [apply(*leaf) for leaf in zip(*columns, strict=True)]
        trees = [form.unflatten(column) for column in zip(*updated, strict=True)]
        params, *slots = trees or (params, *slots)
        return state_type(params, step + 1, *slots)

    return Optimizer(init, update)


class SGDState(NamedTuple):
    """No slots: plain gradient descent remembers nothing.

    >>> sgd(0.1).init(jnp.array([1.0]))._fields
    ('params', 'step')
    """

    params: Params
    step: Array


def sgd(learning_rate: Rate) -> Optimizer:
    """Gradient descent: theta <- theta - eta g. Stochastic, mini-batch or full-batch is the
    batch size's choice. Robbins & Monro 1951.

    >>> optimizer = sgd(0.5)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([1.0]))
    >>> state.params
    Array([0.5], dtype=float32)
    """
    _check("sgd", learning_rate)
    return _optimizer(SGDState, learning_rate, lambda eta, t, theta, g: (theta - eta * g,))


class MomentumState(NamedTuple):
    """`velocity` is v.

    >>> momentum(0.1).init(jnp.array([1.0])).velocity
    Array([0.], dtype=float32)
    """

    params: Params
    step: Array
    velocity: Params


def momentum(learning_rate: Rate, decay: float = 0.9, nesterov: bool = False) -> Optimizer:
    """Heavy ball: v <- decay v + eta g, theta <- theta - v. Polyak 1964.

    With nesterov, the gradient is as if taken one step ahead: theta <- theta - (decay v + eta g),
    v the new velocity. Sutskever et al. 2013.

    eta is inside the velocity, so that a step already under way keeps the rate it was taken
    with; PyTorch and optax multiply the velocity by today's rate. The two agree while the
    rate is constant.

    >>> optimizer = momentum(0.5)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([1.0]))
    >>> optimizer.update(state, jnp.array([0.0])).velocity
    Array([0.45], dtype=float32)
    """
    _check("momentum", learning_rate, decay=decay)

    def rule(eta: Array, t: Array, theta: Array, g: Array, v: Array) -> Updated:
        v = decay * v + eta * g
        return theta - (decay * v + eta * g if nesterov else v), v

    return _optimizer(MomentumState, learning_rate, rule)


class RMSPropState(NamedTuple):
    """`mean_square` is E.

    >>> rmsprop(0.1).init(jnp.array([1.0])).mean_square
    Array([0.], dtype=float32)
    """

    params: Params
    step: Array
    mean_square: Params


def rmsprop(learning_rate: Rate, decay: float = 0.9, eps: float = 1e-8) -> Optimizer:
    """E <- decay E + (1 - decay) g^2, theta <- theta - eta g / sqrt(E + eps): eps is inside
    the root. Tieleman & Hinton 2012.

    >>> optimizer = rmsprop(0.1, decay=0.75)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([2.0]))
    >>> state.params
    Array([0.8], dtype=float32)
    """
    _check("rmsprop", learning_rate, eps=eps, decay=decay)

    def rule(eta: Array, t: Array, theta: Array, g: Array, mean_square: Array) -> Updated:
        mean_square = decay * mean_square + (1 - decay) * g * g
        return theta - eta * g / jnp.sqrt(mean_square + eps), mean_square

    return _optimizer(RMSPropState, learning_rate, rule)


class AdagradState(NamedTuple):
    """`sum_square` is G.

    >>> adagrad(0.1).init(jnp.array([1.0])).sum_square
    Array([0.], dtype=float32)
    """

    params: Params
    step: Array
    sum_square: Params


def adagrad(learning_rate: Rate, eps: float = 1e-8) -> Optimizer:
    """G <- G + g^2, theta <- theta - eta g / (sqrt(G) + eps). Duchi et al. 2011.

    >>> optimizer = adagrad(0.25)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([2.0]))
    >>> state.params
    Array([0.75], dtype=float32)
    """
    _check("adagrad", learning_rate, eps=eps)

    def rule(eta: Array, t: Array, theta: Array, g: Array, sum_square: Array) -> Updated:
        sum_square = sum_square + g * g
        return theta - eta * g / (jnp.sqrt(sum_square) + eps), sum_square

    return _optimizer(AdagradState, learning_rate, rule)


class AdamState(NamedTuple):
    """`m` and `v` are the moments before bias correction.

    >>> adam(0.1).init(jnp.array([1.0])).m
    Array([0.], dtype=float32)
    """

    params: Params
    step: Array
    m: Params
    v: Params


def adam(learning_rate: Rate, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Adaptive moments. Kingma & Ba 2015, algorithm 1.

    m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2,
    theta <- theta - eta m_hat / (sqrt(v_hat) + eps): eps is outside the root,
    m_hat = m / (1 - b1^t),    v_hat = v / (1 - b2^t).

    >>> optimizer = adam(0.25)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([2.0]))
    >>> state.params.round(4)
    Array([0.75], dtype=float32)
    """
    _check("adam", learning_rate, eps=eps, b1=b1, b2=b2)

    def rule(eta: Array, t: Array, theta: Array, g: Array, m: Array, v: Array) -> Updated:
        m, v = _moments(g, m, v, b1, b2)
        return theta - eta * _adam_direction(t, m, v, b1, b2, eps), m, v

    return _optimizer(AdamState, learning_rate, rule)


class AdamWState(AdamState):
    """Adam's, for `adamw` alone.

    >>> adamw(0.1).init(jnp.array([1.0])).m
    Array([0.], dtype=float32)
    """

    __slots__ = ()


def adamw(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
) -> Optimizer:
    """Adam with decoupled weight decay: Adam's step, and theta <- theta - eta weight_decay theta.

    Every parameter decays, biases too. Loshchilov & Hutter 2019, algorithm 2.

    >>> optimizer = adamw(0.25, weight_decay=0.2)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([2.0]))
    >>> state.params.round(4)
    Array([0.7], dtype=float32)
    """
    _check("adamw", learning_rate, eps=eps, weight_decay=weight_decay, b1=b1, b2=b2)

    def rule(eta: Array, t: Array, theta: Array, g: Array, m: Array, v: Array) -> Updated:
        m, v = _moments(g, m, v, b1, b2)
        direction = _adam_direction(t, m, v, b1, b2, eps)
        return theta - eta * (direction + weight_decay * theta), m, v

    return _optimizer(AdamWState, learning_rate, rule)


class NadamState(AdamState):
    """Adam's, for `nadam` alone.

    >>> nadam(0.1).init(jnp.array([1.0])).m
    Array([0.], dtype=float32)
    """

    __slots__ = ()


def nadam(learning_rate: Rate, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Adam with Nesterov's look ahead: Adam's m_hat becomes
    b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t). Dozat 2016, with b1 constant.

    >>> optimizer = nadam(0.25)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([2.0]))
    >>> int(state.step)
    1
    """
    _check("nadam", learning_rate, eps=eps, b1=b1, b2=b2)

    def rule(eta: Array, t: Array, theta: Array, g: Array, m: Array, v: Array) -> Updated:
        m, v = _moments(g, m, v, b1, b2)
        ahead = b1 * m / _correction(b1, t + 1) + (1 - b1) * g / _correction(b1, t)
        return theta - eta * ahead / (jnp.sqrt(v / _correction(b2, t)) + eps), m, v

    return _optimizer(NadamState, learning_rate, rule)


def _moments(g: Array, m: Array, v: Array, b1: float, b2: float) -> tuple[Array, Array]:
    return b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g


def _adam_direction(t: Array, m: Array, v: Array, b1: float, b2: float, eps: float) -> Array:
    return m / _correction(b1, t) / (jnp.sqrt(v / _correction(b2, t)) + eps)


def _correction(decay: float, t: Array) -> Array:
    """1 - decay^t without the cancellation that the power would bring for decay near 1."""
    return -jnp.expm1(t * jnp.log(jnp.asarray(decay, t.dtype)))


class LionState(NamedTuple):
    """`m` is the moving average.

    >>> lion(0.1).init(jnp.array([1.0])).m
    Array([0.], dtype=float32)
    """

    params: Params
    step: Array
    m: Params


def lion(
    learning_rate: Rate, b1: float = 0.9, b2: float = 0.99, weight_decay: float = 0.0
) -> Optimizer:
    """Only the sign of a moving average: theta <- theta - eta (sign(b1 m + (1 - b1) g)
    + weight_decay theta), then m <- b2 m + (1 - b2) g. Chen et al. 2023, algorithm 2.

    >>> optimizer = lion(0.25)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([7.0]))
    >>> state.params
    Array([0.75], dtype=float32)
    """
    _check("lion", learning_rate, weight_decay=weight_decay, b1=b1, b2=b2)

    def rule(eta: Array, t: Array, theta: Array, g: Array, m: Array) -> Updated:
        direction = jnp.sign(b1 * m + (1 - b1) * g)
        return theta - eta * (direction + weight_decay * theta), b2 * m + (1 - b2) * g

    return _optimizer(LionState, learning_rate, rule)


def clip_by_global_norm(optimizer: Optimizer, max_norm: float) -> Optimizer:
    """The optimizer, fed g min(1, max_norm / ||g||), ||g|| over all leaves together, those parts
    included that other devices hold. Pascanu et al. 2013.

    >>> optimizer = clip_by_global_norm(sgd(1.0), 0.5)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([7.0]))
    >>> state.params
    Array([0.5], dtype=float32)
    """
    check_optimizer("clip_by_global_norm", optimizer)
    numbers.bound("clip_by_global_norm", max_norm=max_norm)

    def update(state: Any, grads: Params) -> Any:
        wide = [g.astype(_wide(g)) for g in jax.tree.leaves(grads)]
        # Squares of what is divided by the largest entry neither overflow nor vanish.
        each = [over_devices(jax.lax.pmax, jnp.abs(g).max(initial=0)) for g in wide]
        largest = reduce(jnp.maximum, each)
        unit = jnp.where(largest > 0, largest, 1)
        squares = (over_devices(jax.lax.psum, jnp.sum(jnp.square(g / unit))) for g in wide)
        norm = jnp.sqrt(jnp.maximum(sum(squares), 1))
        above = norm > max_norm / unit
        divisor, scale = jnp.where(above, unit, 1), jnp.where(above, max_norm / norm, 1)
        clip = lambda g: (g.astype(_wide(g)) / divisor * scale).astype(g.dtype)
        return optimizer.update(state, jax.tree.map(clip, grads))

    return Optimizer(optimizer.init, update)


def add_l2(optimizer: Optimizer, alpha: float) -> Optimizer:
    """The optimizer, fed g + alpha theta: the gradient of loss + (alpha/2) ||theta||^2.

    Every parameter counts, biases too. With Adam this is not weight decay: see `adamw`.

    >>> optimizer = add_l2(sgd(1.0), 0.25)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([0.0]))
    >>> state.params
    Array([0.75], dtype=float32)
    """
    check_optimizer("add_l2", optimizer)
    numbers.nonnegative("add_l2", alpha=alpha)

    def update(state: Any, grads: Params) -> Any:
        def penalised(g: Array, theta: Array) -> Array:
            _check_gradient(theta, g)
            return g + alpha * theta

        return optimizer.update(state, jax.tree.map(penalised, grads, state.params))

    return Optimizer(optimizer.init, update)


def _check_gradient(theta: Array, g: Any) -> None:
    """Raise where g would be broadcast against theta, or lose its imaginary part."""
    if jnp.shape(g) != theta.shape:
        raise ValueError(
            f"update: expected a gradient of its parameter's shape {theta.shape}, "
            f"got {jnp.shape(g)}"
        )
    if not jnp.issubdtype(jnp.result_type(g), jnp.floating):
        raise TypeError(f"update: expected floating-point gradients, got {jnp.result_type(g)}")


def _wide(p: Array) -> Any:
    """The dtype in which p is updated: its own, or float32 where that is narrower."""
    if not jnp.issubdtype(p.dtype, jnp.floating):
        raise TypeError(f"optimizer: expected floating-point parameters, got {p.dtype}{p.shape}")
    return at_least_float32(p.dtype)


def _check(
    name: str,
    learning_rate: Rate,
    eps: float = 1.0,
    weight_decay: float = 0.0,
    decay: float = 0.0,
    b1: float = 0.0,
    b2: float = 0.0,
) -> None:
    if not callable(learning_rate):
        numbers.positive(name, learning_rate=learning_rate)
    numbers.positive(name, eps=eps)
    numbers.nonnegative(name, weight_decay=weight_decay)
    numbers.fraction(name, decay=decay, b1=b1, b2=b2)
