"""Optimizers around optimizers: each takes an optimizer and returns one.

    add_l2               adds (alpha/2) ||theta||^2 to the loss
    clip_by_global_norm  scales gradients down to at most this norm
    accumulate           makes one update with the mean of k gradients
    average              keeps an exponential moving average of the parameters
    partition            uses a different optimizer, or none, for each part of the parameters
    scale_loss           scales the loss, for float16

The first two change only the gradients; their state is the wrapped optimizer's. The states of the
others contain that state as `inner`, and `.params` is read from it.

`state.loss_scale`, None or a number, is the factor by which the loss's gradient must be multiplied
before `update`. Wrappers pass it on, so `scale_loss` may be inside or outside of the others, whose
max_norm and alpha refer to the unscaled gradient.
"""

from collections import namedtuple
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn import numbers
from fnn.axes import over_devices
from fnn.base import Array, Optimizer, Params, at_least_float32, check_optimizer, is_floating
from fnn.optimizers import Rate, check_gradients, check_state, for_each, number_at


def add_l2(optimizer: Optimizer, alpha: float) -> Optimizer:
    """The optimizer with the gradient g + alpha theta of loss + (alpha/2) ||theta||^2.

    The penalty includes all parameters, biases too. With Adam this is not weight decay: see
    `adamw`.

    Raises TypeError if optimizer is not an `Optimizer`, ValueError for a negative alpha.

    >>> import fnn
    >>> optimizer = add_l2(fnn.sgd(1.0), 0.25)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([0.0]))
    >>> state.params
    Array([0.75], dtype=float32)
    """
    check_optimizer("add_l2", optimizer)
    alpha = numbers.nonnegative("add_l2", alpha=alpha)

    def update(state: Any, grads: Params) -> Any:
        def penalised(g: Array, theta: Array) -> Array:
            # In float32, because a scaled penalty may overflow in float16.
            wide = theta.astype(at_least_float32(theta.dtype))
            return g.astype(wide.dtype) + alpha * _scaled(wide, _loss_scale(state))

        check_gradients(state.params, grads)
        return optimizer.update(state, jax.tree.map(penalised, grads, state.params))

    return Optimizer(optimizer.init, update)


def clip_by_global_norm(optimizer: Optimizer, max_norm: float) -> Optimizer:
    """The optimizer with the gradient g min(1, max_norm / ||g||), where ||g|| is the norm of all
    leaves together, including the parts on other devices. Pascanu et al. 2013.

    Raises TypeError if optimizer is not an `Optimizer`, ValueError for a max_norm that is not above
    0.

    >>> import fnn
    >>> optimizer = clip_by_global_norm(fnn.sgd(1.0), 0.5)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([7.0]))
    >>> state.params
    Array([0.5], dtype=float32)
    """
    check_optimizer("clip_by_global_norm", optimizer)
    max_norm = numbers.bound("clip_by_global_norm", max_norm=max_norm)

    def update(state: Any, grads: Params) -> Any:
        check_gradients(state.params, grads)
        wide = jax.tree.map(lambda g: g.astype(at_least_float32(g.dtype)), grads)
        leaves = jax.tree.leaves(wide)
        # Divided by the largest entry, squares neither overflow nor underflow.
        each = [over_devices(jax.lax.pmax, jnp.abs(g).max(initial=0)) for g in leaves]
        largest = jnp.stack(each).max() if each else jnp.zeros(())
        unit = jnp.where(largest > 0, largest, 1)
        squares = (over_devices(jax.lax.psum, jnp.sum(jnp.square(g / unit))) for g in leaves)
        norm = jnp.sqrt(jnp.maximum(sum(squares), 1))
        bound = _scaled(jnp.asarray(max_norm, norm.dtype), _loss_scale(state))
        above = norm > bound / unit
        divisor, scale = jnp.where(above, unit, 1), jnp.where(above, bound / norm, 1)
        return optimizer.update(state, jax.tree.map(lambda g: g / divisor * scale, wide))

    return Optimizer(optimizer.init, update)


def _loss_scale(state: Any) -> Array | None:
    """The factor by which the loss's gradient must be multiplied, None for optimizers without."""
    return getattr(state, "loss_scale", None)


def with_params(state: Any, params: Params) -> Any:
    """The state of any optimizer with its params replaced."""
    if "params" in getattr(state, "_fields", ()):
        return state._replace(params=params)
    if isinstance(state, _PartitionState):
        part = lambda of: with_params(of, _part(of.params, params))
        parts = {label: part(of) for label, of in state.inner.items()}
        frozen = {label: _part(part, params) for label, part in state.frozen.items()}
        return state._replace(inner=parts, frozen=frozen)
    if "inner" in getattr(state, "_fields", ()):
        return state._replace(inner=with_params(state.inner, params))
    raise TypeError(f"with_params: {type(state).__name__} has neither params nor inner")


def _part(like: Params, params: Params) -> Params:
    """The params of the same label as `like`, with its placeholders for the others."""
    pick = lambda old, new: old if _is_elsewhere(old) else new
    return jax.tree.map(pick, like, params, is_leaf=_is_elsewhere)


def scaled_gradients(state: Any, grads: Params) -> Params:
    """The gradients multiplied by the loss scale of this state, if it has one."""
    scale = _loss_scale(state)
    return grads if scale is None else _multiplied(grads, scale)


def _multiplied(grads: Params, factor: Array) -> Params:
    return jax.tree.map(lambda g: _scaled(g.astype(at_least_float32(g.dtype)), factor), grads)


def _scaled(a: Array, scale: Array | None) -> Array:
    return a if scale is None else a * scale.astype(a.dtype)


class _Around:
    """What the state of an optimizer around another hands on from that optimizer's, `inner`."""

    inner: Any

    @property
    def params(self) -> Params:
        """The parameters."""
        return self.inner.params

    @property
    def step(self) -> Array:
        """The number of updates done."""
        return self.inner.step

    @property
    def loss_scale(self) -> Array | None:
        """None without one."""
        return _loss_scale(self.inner)


class _AccumulateState(namedtuple("_AccumulateState", "inner step sum"), _Around):
    """`sum`: of the gradients since the last update of `inner`; `step`: the number of gradients."""


def accumulate(optimizer: Optimizer, k: int) -> Optimizer:
    """One update of the optimizer with the mean of every k gradients.

    After gradients g_1, ..., g_k: state <- update(state, (g_1 + ... + g_k) / k). The parameters do
    not change in between. The sum is kept in at least float32. `state.step` counts the gradients;
    a schedule gets the wrapped optimizer's count, the number of updates.

    Raises TypeError if optimizer is not an `Optimizer`, ValueError for k below 1.

    >>> import fnn
    >>> optimizer = accumulate(fnn.sgd(1.0), 2)
    >>> state = optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([0.5]))
    >>> state.params, optimizer.update(state, jnp.array([1.5])).params
    (Array([1.], dtype=float32), Array([0.], dtype=float32))
    """
    check_optimizer("accumulate", optimizer)
    k = numbers.count("accumulate", k=k)

    def init(params: Params) -> _AccumulateState:
        inner = optimizer.init(params)
        zeros = lambda p: jnp.zeros(p.shape, at_least_float32(p.dtype))
        return _AccumulateState(inner, jnp.zeros((), jnp.int32), jax.tree.map(zeros, inner.params))

    def update(state: _AccumulateState, grads: Params) -> _AccumulateState:
        check_state(state, _AccumulateState)
        check_gradients(state.sum, grads)
        total = jax.tree.map(lambda s, g: s + g.astype(s.dtype), state.sum, grads)
        mean = jax.tree.map(lambda s, g: (s / k).astype(g.dtype), total, grads)
        due = (state.step + 1) % k == 0
        inner = _where(due, optimizer.update(state.inner, mean), state.inner)
        rest = jax.tree.map(lambda s: jnp.where(due, 0, s), total)
        return _AccumulateState(inner, state.step + 1, rest)

    return Optimizer(init, update)


class _AverageState(namedtuple("_AverageState", "inner average"), _Around):
    """`average` is the moving average of `params`, in at least float32."""


def average(optimizer: Optimizer, decay: Rate) -> Optimizer:
    """The optimizer, and the exponential moving average of its parameters: `state.average`.

    average <- decay average + (1 - decay) theta after each update, starting from the initial
    parameters. Training continues from theta; the average is for evaluation. Polyak & Juditsky
    1992. decay is a number, or a schedule of the number of updates already done; with
    lambda step: step / (step + 1), it is the mean of the parameters after each update.

    Raises TypeError if optimizer is not an `Optimizer`, ValueError for a decay outside [0, 1).

    >>> import fnn
    >>> optimizer = average(fnn.sgd(1.0), 0.75)
    >>> optimizer.update(optimizer.init(jnp.array([1.0])), jnp.array([1.0])).average
    Array([0.75], dtype=float32)
    """
    check_optimizer("average", optimizer)
    decay = decay if callable(decay) else numbers.fraction("average", decay=decay)

    def init(params: Params) -> _AverageState:
        inner = optimizer.init(params)
        # A copy: a buffer can be donated only once.
        wide = lambda p: jnp.array(p, at_least_float32(p.dtype))
        return _AverageState(inner, jax.tree.map(wide, inner.params))

    def update(state: _AverageState, grads: Params) -> _AverageState:
        check_state(state, _AverageState)
        inner = optimizer.update(state.inner, grads)

        def moved(a: Array, theta: Array) -> Array:
            rate = jnp.asarray(1 - number_at(decay, state.step), a.dtype)
            return a + rate * (theta.astype(a.dtype) - a)

        return _AverageState(inner, jax.tree.map(moved, state.average, inner.params))

    return Optimizer(init, update)


class _PartitionState(NamedTuple):
    """`inner`: the state of each label's optimizer, with that label's parameters; `frozen`: the
    parameters of each label without an optimizer."""

    inner: dict[str, Any]
    frozen: dict[str, Any]
    step: Array

    @property
    def params(self) -> Params:
        """The parameters of all labels, put together."""
        parts = [state.params for state in self.inner.values()] + list(self.frozen.values())
        return jax.tree.map(_first, *parts, is_leaf=_is_elsewhere)

    @property
    def loss_scale(self) -> Array | None:
        """The smallest of the labels' scales: one gradient is computed for all."""
        scales = [scale for scale in map(_loss_scale, self.inner.values()) if scale is not None]
        return reduce(jnp.minimum, scales) if scales else None


class _Elsewhere:
    """A placeholder, without leaves, for a parameter with a different label."""


def _is_elsewhere(node: Any) -> bool:
    return isinstance(node, _Elsewhere)


jax.tree_util.register_pytree_node(_Elsewhere, lambda node: ((), None), lambda *_: _Elsewhere())


def partition(labels: Any, optimizers: Mapping[str, Optimizer | None]) -> Optimizer:
    """A different optimizer for the parameters of each label; with None they are frozen.

    labels is a tree like params, or a prefix of it, of labels; or a function params -> such a tree,
    such as `by_name` returns. Each optimizer gets only the parameters and gradients with its label,
    so a global norm is over these.

    Raises TypeError if an optimizer is neither an `Optimizer` nor None; `init` raises ValueError
    for a label without an optimizer, and for labels that don't fit the params.

    >>> import fnn
    >>> rates = {"slow": fnn.sgd(0.25), "fast": fnn.sgd(1.0)}
    >>> optimizer = partition({"W": "slow", "b": "fast"}, rates)
    >>> params = {"W": jnp.array([1.0]), "b": jnp.array([1.0])}
    >>> optimizer.update(optimizer.init(params), params).params
    {'W': Array([0.75], dtype=float32), 'b': Array([0.], dtype=float32)}
    """
    if not hasattr(optimizers, "items"):
        got = type(optimizers).__name__
        raise TypeError(f"partition: expected {{label: optimizer}} after the labels, got {got}")
    for label, optimizer in optimizers.items():
        if optimizer is not None:
            check_optimizer(f"partition: {label!r}", optimizer)

    def split(params: Params) -> dict[str, Any]:
        """The params of each label, with placeholders for the others."""
        each = for_each("partition", labels, params)
        unknown = [label for label in jax.tree.leaves(each) if label not in optimizers]
        if unknown:
            known = ", ".join(map(repr, optimizers))
            raise ValueError(f"partition: expected a label of {known}, got {unknown[0]!r}")

        part = lambda label, of, p: p if of == label else _Elsewhere()
        return {label: jax.tree.map(partial(part, label), each, params) for label in optimizers}

    def init(params: Params) -> _PartitionState:
        params = jax.tree.map(jnp.asarray, params)
        parts = split(params)
        inner = {label: o.init(parts[label]) for label, o in optimizers.items() if o is not None}
        frozen = {label: parts[label] for label, o in optimizers.items() if o is None}
        return _PartitionState(inner, frozen, jnp.zeros((), jnp.int32))

    def rescaled(state: _PartitionState, label: str, part: Params) -> Params:
        """The gradients of a label, scaled as its optimizer expects them."""
        common, own = state.loss_scale, _loss_scale(state.inner[label])
        if common is None:
            return part
        return _multiplied(part, 1 / common if own is None else own / common)

    def update(state: _PartitionState, grads: Params) -> _PartitionState:
        check_state(state, _PartitionState)
        if state.inner.keys() | state.frozen.keys() != optimizers.keys():
            labels = [*state.inner, *state.frozen]
            raise TypeError(f"update: expected a state of {[*optimizers]}, got one of {labels}")
        check_gradients(state.params, grads)
        parts = split(grads)
        inner = {
            label: optimizer.update(state.inner[label], rescaled(state, label, parts[label]))
            for label, optimizer in optimizers.items()
            if optimizer is not None
        }
        return _PartitionState(inner, state.frozen, state.step + 1)

    return Optimizer(init, update)


def by_name(*, default: Any, **labels: Any) -> Callable[[Params], Any]:
    """f(params) -> a tree like params: for each parameter the label of its name, or the default.

    A parameter's names are the dict keys on its path; if several have a label, the innermost
    one's is used. For the labels of `partition`, and, with True and False, for the mask of `adamw`.
    Unlike a rule by shape, it also works inside a `repeat`, which adds an axis to each array.

    f raises ValueError for a name that no parameter has.

    >>> by_name(W="muon", default="adam")(({"W": jnp.ones((1, 1)), "b": jnp.ones(1)}, ()))
    ({'W': 'muon', 'b': 'adam'}, ())
    """

    def f(params: Params) -> Any:
        paths, form = jax.tree.flatten_with_path(params)
        names = [[getattr(entry, "key", None) for entry in reversed(path)] for path, _ in paths]
        if unknown := labels.keys() - {name for path in names for name in path}:
            raise ValueError(f"by_name: no parameter is called {min(unknown)!r}")
        found = [next((labels[n] for n in path if n in labels), default) for path in names]
        return jax.tree.unflatten(form, found)

    return f


_LARGEST = 2.0**126
"""The largest loss scale: doubled a few times more, it would overflow in float32."""


class _ScaleLossState(namedtuple("_ScaleLossState", "inner step scale finite"), _Around):
    """`scale`: what `update` divides the gradients by; `finite`: how many in a row were finite."""

    @property
    def loss_scale(self) -> Array:
        """The product of this scale and that of a `scale_loss` inside."""
        return _scaled(self.scale, _loss_scale(self.inner))


def scale_loss(
    optimizer: Optimizer, initial: float = 2.0**15, *, growth_interval: int = 2000
) -> Optimizer:
    """The optimizer with dynamic loss scaling, for float16. Micikevicius et al. 2018.

    `fnn.make_step`, `make_epoch`, `make_train` and `fit` multiply the loss's gradient by
    `state.loss_scale`, so that small gradients do not underflow to 0. `update` divides the
    gradients by it. If a gradient is not finite, the scale is halved and the update skipped; after
    growth_interval finite gradients in a row the scale is doubled, up to 2^126. `state.step` counts
    all gradients, skipped ones too.

    It may be inside or outside of other wrappers. In `partition`, only the updates of its own label
    are skipped, and other labels get unscaled gradients.

    Raises TypeError if optimizer is not an `Optimizer`; ValueError for an initial scale that is not
    above 0 and a growth_interval below 1.

    >>> import fnn
    >>> optimizer = scale_loss(fnn.sgd(1.0), 8.0)
    >>> state = optimizer.init(jnp.array([1.0]))
    >>> optimizer.update(state, jnp.array([4.0])).params
    Array([0.5], dtype=float32)
    >>> skipped = optimizer.update(state, jnp.array([jnp.inf]))
    >>> skipped.params, float(skipped.loss_scale)
    (Array([1.], dtype=float32), 4.0)
    """
    check_optimizer("scale_loss", optimizer)
    initial = numbers.positive("scale_loss", initial=initial)
    growth_interval = numbers.count("scale_loss", growth_interval=growth_interval)

    def init(params: Params) -> _ScaleLossState:
        zero = jnp.zeros((), jnp.int32)
        scale = jnp.asarray(initial, jnp.float32)
        return _ScaleLossState(optimizer.init(params), zero, scale, jnp.copy(zero))

    def update(state: _ScaleLossState, grads: Params) -> _ScaleLossState:
        check_state(state, _ScaleLossState)

        def unscaled(g: Array) -> Array:
            if not is_floating(g):  # the optimizer refuses it by name
                return g
            wide = at_least_float32(g.dtype)
            return g.astype(wide) / state.scale.astype(wide)

        flags = [over_devices(jax.lax.pmin, jnp.isfinite(g).all()) for g in jax.tree.leaves(grads)]
        finite = jnp.stack(flags).all() if flags else jnp.array(True)
        updated = optimizer.update(state.inner, jax.tree.map(unscaled, grads))
        in_a_row = jnp.where(finite, state.finite + 1, 0)
        grow = in_a_row == growth_interval
        factor = jnp.where(finite, jnp.where(grow, 2.0, 1.0), 0.5)
        scale = jnp.clip(state.scale * factor, 1 / _LARGEST, _LARGEST)
        inner, waiting = _where(finite, updated, state.inner), jnp.where(grow, 0, in_a_row)
        return _ScaleLossState(inner, state.step + 1, scale, waiting)

    return Optimizer(init, update)


def _where(condition: Array, a: Any, b: Any) -> Any:
    # Not `lax.cond`, which copies a scan's carry.
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def _first(*leaves: Any) -> Any:
    return next((leaf for leaf in leaves if not _is_elsewhere(leaf)), leaves[0])
