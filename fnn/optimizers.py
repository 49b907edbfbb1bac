"""Update rules, each with its equation and its source: pure functions (state, grads) -> state.

Each update rule is for one array: (theta, gradient g, slots) -> (new theta, new slots), where slots
are what the rule keeps per parameter. `_optimizer` maps the rule over a tree of parameters.

    theta   parameters         g    their gradient           eta   learning rate
    t       the number of this update, from 1

learning_rate is a number, a traced scalar, or a schedule step -> rate, called with the
number of updates already done (0 at the first). Slots start at 0. Slots and updates are computed in
at least float32; theta keeps its dtype.

All raise ValueError for a learning rate or an eps that is not above 0 and for a decay outside
[0, 1); `init` raises TypeError for parameters that are not floating-point. `update` raises
ValueError for a gradient whose shape differs from its parameter's, and TypeError for one that is
not floating-point and for the state of another optimizer.
"""

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fnn import numbers
from fnn.base import Array, Optimizer, Params, at_least_float32, is_floating
from fnn.reductions import safe_norm
from fnn.schedules import Schedule

Rate = float | Array | Schedule
Updated = tuple[Array, ...]
"""What a rule returns: theta and its slots."""


def _optimizer(
    state_type: Any, learning_rate: Rate, rule: Callable[..., Updated], mask: Any = None
) -> Optimizer:
    """The optimizer that applies rule(eta, t, theta, g, *slots) -> (theta, *slots) to each leaf.

    state_type is a namedtuple (params, step, *slots), each slot a tree like params. With a mask,
    the rule gets each leaf's entry of the mask as last argument.
    """
    slot_names = state_type._fields[2:]

    def init(params: Params) -> Any:
        params = jax.tree.map(jnp.asarray, params)
        jax.tree.map(_wide, params)  # raises TypeError for parameters that are not floating-point
        # A separate array for each slot: a buffer can be donated only once.
        slots = [jax.tree.map(lambda p: jnp.zeros(p.shape, _wide(p)), params) for _ in slot_names]
        return state_type(params, jnp.zeros((), jnp.int32), *slots)

    def update(state: Any, grads: Params) -> Any:
        check_state(state, state_type)
        params, step, *slots = state
        check_gradients(params, grads)
        eta = number_at(learning_rate, step)

        def apply(theta: Array, g: Array, *slots: Array) -> Updated:
            inputs = (jnp.asarray(x).astype(_wide(theta)) for x in (eta, step + 1, theta, g))
            new, *changed = rule(*inputs, *slots)
            return new.astype(theta.dtype), *changed

        masks = () if mask is None else (for_each("update: mask", mask, params),)
        updated = jax.tree.map(apply, params, grads, *slots, *masks)
        column = lambda i: jax.tree.map(lambda _, new: new[i], params, updated)
        return state_type(column(0), step + 1, *map(column, range(1, 1 + len(slot_names))))

    return Optimizer(init, update)


_SGDState = namedtuple("_SGDState", "params step")
"""No slots."""


def sgd(learning_rate: Rate) -> Optimizer:
    """Gradient descent: theta <- theta - eta g. The batch size makes it stochastic, mini-batch or
    full-batch. Robbins & Monro 1951.

    >>> optimizer = sgd(0.5)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([1.0]))
    >>> state.params
    Array([0.5], dtype=float32)
    """
    (learning_rate,) = _check("sgd", learning_rate)
    return _optimizer(_SGDState, learning_rate, lambda eta, t, theta, g: (theta - eta * g,))


_MomentumState = namedtuple("_MomentumState", "params step velocity")
"""`velocity` is v."""


def momentum(learning_rate: Rate, decay: float = 0.9, nesterov: bool = False) -> Optimizer:
    """Gradient descent with momentum: v <- decay v + eta g, theta <- theta - v. Polyak 1964.

    With nesterov: theta <- theta - (decay v + eta g), with the new v. Sutskever et al. 2013.

    eta is inside the velocity: each gradient keeps the learning rate of its own step. PyTorch and
    optax multiply the velocity by the current learning rate instead; the two agree while the rate
    is constant.

    >>> optimizer = momentum(0.5)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([1.0]))
    >>> optimizer.update(state, jnp.array([0.0])).velocity
    Array([0.45], dtype=float32)
    """
    learning_rate, decay = _check("momentum", learning_rate, decay=decay)

    def rule(eta: Array, t: Array, theta: Array, g: Array, v: Array) -> Updated:
        v = decay * v + eta * g
        return theta - (decay * v + eta * g if nesterov else v), v

    return _optimizer(_MomentumState, learning_rate, rule)


_RMSPropState = namedtuple("_RMSPropState", "params step mean_square")
"""`mean_square` is E."""


def rmsprop(learning_rate: Rate, decay: float = 0.9, eps: float = 1e-8) -> Optimizer:
    """E <- decay E + (1 - decay) g^2, theta <- theta - eta g / sqrt(E + eps): eps is inside
    the root. Tieleman & Hinton 2012.

    >>> optimizer = rmsprop(0.1, decay=0.75)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([2.0]))
    >>> state.params
    Array([0.8], dtype=float32)
    """
    learning_rate, eps, decay = _check("rmsprop", learning_rate, eps=eps, decay=decay)

    def rule(eta: Array, t: Array, theta: Array, g: Array, mean_square: Array) -> Updated:
        mean_square = decay * mean_square + (1 - decay) * g * g
        return theta - eta * g / jnp.sqrt(mean_square + eps), mean_square

    return _optimizer(_RMSPropState, learning_rate, rule)


_AdagradState = namedtuple("_AdagradState", "params step sum_square")
"""`sum_square` is G."""


def adagrad(learning_rate: Rate, eps: float = 1e-8) -> Optimizer:
    """G <- G + g^2, theta <- theta - eta g / (sqrt(G) + eps). Duchi et al. 2011.

    >>> optimizer = adagrad(0.25)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([2.0]))
    >>> state.params
    Array([0.75], dtype=float32)
    """
    learning_rate, eps = _check("adagrad", learning_rate, eps=eps)

    def rule(eta: Array, t: Array, theta: Array, g: Array, sum_square: Array) -> Updated:
        sum_square = sum_square + g * g
        return theta - eta * g / (jnp.sqrt(sum_square) + eps), sum_square

    return _optimizer(_AdagradState, learning_rate, rule)


_AdamState = namedtuple("_AdamState", "params step m v")
"""`m` and `v` are the moments without bias correction."""


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
    learning_rate, eps, b1, b2 = _check("adam", learning_rate, eps=eps, b1=b1, b2=b2)

    def rule(eta: Array, t: Array, theta: Array, g: Array, m: Array, v: Array) -> Updated:
        m, v = _moments(g, m, v, b1, b2)
        return theta - eta * _adam_direction(t, m, v, b1, b2, eps), m, v

    return _optimizer(_AdamState, learning_rate, rule)


def adamw(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: Rate = 1e-2,
    *,
    mask: Any = None,
) -> Optimizer:
    """Adam with decoupled weight decay: Adam's step, and theta <- theta - eta weight_decay theta.
    Loshchilov & Hutter 2019, algorithm 2.

    weight_decay is a number or a schedule. All parameters decay, biases too, or with a mask only
    those where it is True. mask is a tree of booleans like params, or a function params -> such a
    tree, such as `fnn.by_name(W=True, default=False)`. `update` raises ValueError for a mask that
    doesn't fit the params.

    >>> optimizer = adamw(0.25, weight_decay=0.2)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([2.0]))
    >>> state.params.round(4)
    Array([0.7], dtype=float32)
    """
    learning_rate, eps, weight_decay, b1, b2 = _check(
        "adamw", learning_rate, eps=eps, weight_decay=weight_decay, b1=b1, b2=b2
    )

    def rule(
        eta: Array, t: Array, theta: Array, g: Array, m: Array, v: Array, decays: Any = True
    ) -> Updated:
        m, v = _moments(g, m, v, b1, b2)
        direction = _adam_direction(t, m, v, b1, b2, eps)
        rate = jnp.asarray(number_at(weight_decay, t.astype(jnp.int32) - 1), theta.dtype)
        return theta - eta * (direction + jnp.where(decays, rate, 0) * theta), m, v

    return _optimizer(_AdamState, learning_rate, rule, mask)


def nadam(learning_rate: Rate, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Adam with Nesterov momentum: Adam's m_hat becomes
    b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t). Dozat 2016, with b1 constant.

    >>> optimizer = nadam(0.25)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([2.0]))
    >>> int(state.step)
    1
    """
    learning_rate, eps, b1, b2 = _check("nadam", learning_rate, eps=eps, b1=b1, b2=b2)

    def rule(eta: Array, t: Array, theta: Array, g: Array, m: Array, v: Array) -> Updated:
        m, v = _moments(g, m, v, b1, b2)
        ahead = b1 * m / _correction(b1, t + 1) + (1 - b1) * g / _correction(b1, t)
        return theta - eta * ahead / (jnp.sqrt(v / _correction(b2, t)) + eps), m, v

    return _optimizer(_AdamState, learning_rate, rule)


def _moments(g: Array, m: Array, v: Array, b1: float, b2: float) -> tuple[Array, Array]:
    return b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g


def _adam_direction(t: Array, m: Array, v: Array, b1: float, b2: float, eps: float) -> Array:
    return m / _correction(b1, t) / (jnp.sqrt(v / _correction(b2, t)) + eps)


def _correction(decay: float, t: Array) -> Array:
    """1 - decay^t, without cancellation for decay near 1."""
    return -jnp.expm1(t * jnp.log(jnp.asarray(decay, t.dtype)))


_LionState = namedtuple("_LionState", "params step m")
"""`m` is the moving average."""


def lion(
    learning_rate: Rate, b1: float = 0.9, b2: float = 0.99, weight_decay: float = 0.0
) -> Optimizer:
    """The sign of a moving average: theta <- theta - eta (sign(b1 m + (1 - b1) g)
    + weight_decay theta), then m <- b2 m + (1 - b2) g. Chen et al. 2023, algorithm 2.

    >>> optimizer = lion(0.25)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([7.0]))
    >>> state.params
    Array([0.75], dtype=float32)
    """
    learning_rate, weight_decay, b1, b2 = _check(
        "lion", learning_rate, weight_decay=weight_decay, b1=b1, b2=b2
    )

    def rule(eta: Array, t: Array, theta: Array, g: Array, m: Array) -> Updated:
        direction = jnp.sign(b1 * m + (1 - b1) * g)
        return theta - eta * (direction + weight_decay * theta), b2 * m + (1 - b2) * g

    return _optimizer(_LionState, learning_rate, rule)


def for_each(name: str, labels: Any, params: Params) -> Any:
    """A label for each parameter, from a tree that is params or a prefix of it, or a function
    params -> such a tree. Raises ValueError for labels that don't fit the params."""
    given = labels(params) if callable(labels) else labels
    try:
        return jax.tree.map(lambda label, part: jax.tree.map(lambda _: label, part), given, params)
    except ValueError as error:
        raise ValueError(f"{name}: the labels don't fit the parameters: {error}") from None


def muon(
    learning_rate: Rate,
    decay: float = 0.95,
    nesterov: bool = True,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Momentum with an orthogonalised step, for matrices (d_out, d_in). Jordan et al. 2024.

    v <- decay v + g,    u = g + decay v with nesterov, v without,
    theta <- theta - eta (sqrt(max(1, d_out / d_in)) O(u) + weight_decay theta).

    O(u) approximates U V^T of the singular value decomposition u = U S V^T, with singular values
    between about 0.7 and 1.2: five steps of X <- 3.4445 X - 4.775 X X^T X + 2.0315 (X X^T)^2 X from
    X = u / (||u|| + eps). An array's last two axes are a matrix; leading axes are copies, as in
    `repeat`, each orthogonalised separately; a vector is a matrix with one row.

    Use another optimizer for biases, gains and embedding tables, by `partition` and `by_name`,
    which works by name because a stacked bias has the shape of a matrix.

    >>> optimizer = muon(0.25)
    >>> state = optimizer.update(optimizer.init(jnp.zeros((2, 2))), jnp.diag(jnp.array([3.0, 2])))
    >>> jnp.diag(state.params).round(2)
    Array([-0.28, -0.17], dtype=float32)
    """
    learning_rate, decay, eps, weight_decay = _check(
        "muon", learning_rate, decay=decay, eps=eps, weight_decay=weight_decay
    )

    def rule(eta: Array, t: Array, theta: Array, g: Array, v: Array) -> Updated:
        v = decay * v + g
        u = jnp.atleast_2d(g + decay * v if nesterov else v)
        scale = max(1, u.shape[-2] / u.shape[-1]) ** 0.5
        direction = (scale * _orthogonal(u, eps)).reshape(theta.shape)
        return theta - eta * (direction + weight_decay * theta), v

    return _optimizer(_MomentumState, learning_rate, rule)


def _orthogonal(u: Array, eps: float) -> Array:
    """O(u) of `muon`, from the smaller of u u^T and u^T u."""
    if u.shape[-2] > u.shape[-1]:
        return _orthogonal(u.mT, eps).mT
    x = u / (safe_norm(u, (-2, -1))[..., None, None] + eps)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.775 * gram) @ x
    return x


def number_at(number: Rate, step: Array) -> Any:
    """The number, or what the schedule returns for the step. Raises ValueError if that is not a
    scalar, which would change theta's shape."""
    value = number(step) if callable(number) else number
    dtype = jnp.result_type(value)
    if jnp.shape(value) != () or not (
        jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    ):
        got = f"got {dtype}{jnp.shape(value)}"
        raise ValueError(f"update: expected a schedule that returns a number, {got}")
    return value


def check_state(state: Any, expected: type) -> None:
    """Raise TypeError if state is not of the expected type."""
    if type(state) is not expected:
        got = f"got {type(state).__name__}; optax takes the two in the opposite order"
        raise TypeError(f"update: expected (state, grads) with a {expected.__name__}, {got}")


def check_gradients(params: Params, grads: Params) -> None:
    """Raise, naming the parameter, where a gradient would be broadcast or lose its imaginary
    part."""

    def check(path: Any, theta: Array, g: Any) -> None:
        name = f"params{jax.tree_util.keystr(path)}"
        if jnp.shape(g) != theta.shape:
            expected = f"expected a gradient with its parameter's shape {theta.shape}"
            raise ValueError(f"update: {expected}, got {jnp.shape(g)} for {name}")
        if not is_floating(g):
            got = jnp.result_type(g)
            raise TypeError(f"update: expected floating-point gradients, got {got} for {name}")

    jax.tree.map_with_path(check, params, grads)


def _wide(p: Array) -> Any:
    """The dtype in which p is updated: its own, or float32 if its own is narrower."""
    if not is_floating(p):
        raise TypeError(f"optimizer: expected floating-point parameters, got {p.dtype}{p.shape}")
    return at_least_float32(p.dtype)


_RANGES = {
    "learning_rate": numbers.positive,
    "eps": numbers.positive,
    "weight_decay": numbers.nonnegative,
}
"""The check of each setting; all others are decays, in [0, 1)."""


def _check(name: str, learning_rate: Rate, **settings: Any) -> tuple[Any, ...]:
    """The learning rate and the settings, checked, as Python numbers; callables are not checked."""
    settings = {"learning_rate": learning_rate, **settings}
    check = lambda key: _RANGES.get(key, numbers.fraction)(name, **{key: settings[key]})
    return tuple(value if callable(value) else check(key) for key, value in settings.items())
