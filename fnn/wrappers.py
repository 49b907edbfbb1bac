"""Optimizers around optimizers: each takes an optimizer and returns one.

    add_l2               the gradient of the loss + (alpha/2) ||theta||^2
    clip_by_global_norm  gradients of at most this norm
    accumulate           one update for the mean of k gradients
    average              the exponential moving average of the parameters beside them
    partition            another optimizer for each part of the parameters, none for what is frozen
    scale_loss           gradients of a scaled loss, for float16

The first two change only the gradients, and their state is the wrapped optimizer's. The states of
the others hold that one as `inner`, and read `.params` and `.step` from it.

A state says by `.loss_scale`, None or a number, what the loss's gradient is to be multiplied by;
wrappers hand it on, so that `scale_loss` can stand anywhere among them. They measure and add to
gradients as if these were not multiplied.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fnn import numbers
from fnn.axes import over_devices
from fnn.base import Array, Optimizer, Params, at_least_float32, check_optimizer
from fnn.optimizers import Rate, check_gradients, check_state, for_each, number_at


def add_l2(optimizer: Optimizer, alpha: float) -> Optimizer:
    """The optimizer, fed g + alpha theta: the gradient of loss + (alpha/2) ||theta||^2.

    Every parameter counts, biases too. With Adam this is not weight decay: see `adamw`.

    Raises TypeError for what is not an optimizer, ValueError for a negative alpha.

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
            # Wide: a scaled penalty may be larger than float16 holds.
            wide = theta.astype(at_least_float32(theta.dtype))
            return g.astype(wide.dtype) + alpha * _scaled(wide, _loss_scale(state))

        check_gradients(state.params, grads)
        return optimizer.update(state, jax.tree.map(penalised, grads, state.params))

    return Optimizer(optimizer.init, update)


def clip_by_global_norm(optimizer: Optimizer, max_norm: float) -> Optimizer:
    """The optimizer, fed g min(1, max_norm / ||g||), ||g|| over all leaves together, those parts
    included that other devices hold. Pascanu et al. 2013.

    Raises TypeError for what is not an optimizer, ValueError for a max_norm that is not above 0.

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
        # Squares of what is divided by the largest entry neither overflow nor vanish.
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
    """What the state of any optimizer wants the loss's gradient to be multiplied by."""
    return getattr(state, "loss_scale", None)


def with_params(state: Any, params: Params) -> Any:
    """The state of any optimizer with these params in the place of its own."""
    if "params" in getattr(state, "_fields", ()):
        return state._replace(params=params)
    if isinstance(state, _PartitionState):
        parts = {
            label: with_params(of, _part(of.params, params)) for label, of in state.inner.items()
        }
        frozen = {label: _part(part, params) for label, part in state.frozen.items()}
        return state._replace(inner=parts, frozen=frozen)
    if "inner" in getattr(state, "_fields", ()):
        return state._replace(inner=with_params(state.inner, params))
    raise TypeError(f"with_params: {type(state).__name__} has neither params nor inner")


def _part(like: Params, params: Params) -> Params:
    """The params where `like` has some, and its `_Elsewhere` for all others."""
    pick = lambda old, new: old if _is_elsewhere(old) else new
    return jax.tree.map(pick, like, params, is_leaf=_is_elsewhere)


def scaled_gradients(state: Any, grads: Params) -> Params:
    """The gradients of a loss as the optimizer with this state expects them."""
    scale = _loss_scale(state)
    if scale is None:
        return grads
    return jax.tree.map(lambda g: _scaled(g.astype(at_least_float32(g.dtype)), scale), grads)


def _scaled(a: Array, scale: Array | None) -> Array:
    return a if scale is None else a * scale.astype(a.dtype)


class _AccumulateState(NamedTuple):
    """`sum` is of the gradients since the last update of `inner`; `step` counts all of them."""

    inner: Any
    step: Array
    sum: Params

    @property
    def params(self) -> Params:
        """The parameters."""
        return self.inner.params

    @property
    def loss_scale(self) -> Array | None:
        """Handed on."""
        return _loss_scale(self.inner)


def accumulate(optimizer: Optimizer, k: int) -> Optimizer:
    """One update of the optimizer for each k gradients, with their mean.

    After gradients g_1, ..., g_k: state <- update(state, (g_1 + ... + g_k) / k). Between them the
    parameters stay as they are. Sums are kept in at least float32. `state.step` counts the
    gradients; a schedule sees the optimizer's own count, that of its updates.

    Raises TypeError for what is not an optimizer, ValueError for k below 1.

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
        return _AccumulateState(
            inner, state.step + 1, jax.tree.map(lambda s: jnp.where(due, 0, s), total)
        )

    return Optimizer(init, update)


class _AverageState(NamedTuple):
    """`average` is the moving average of `params`, in at least float32."""

    inner: Any
    average: Params

    @property
    def params(self) -> Params:
        """The parameters."""
        return self.inner.params

    @property
    def loss_scale(self) -> Array | None:
        """Handed on."""
        return _loss_scale(self.inner)

    @property
    def step(self) -> Array:
        """The number of updates done."""
        return self.inner.step


def average(optimizer: Optimizer, decay: Rate) -> Optimizer:
    """The optimizer, and the exponential moving average of its parameters: `state.average`.

    average <- decay average + (1 - decay) theta after each update, from the initial parameters
    on. Training goes on from theta; the average is for evaluation. Polyak & Juditsky 1992. decay is
    a number, or a schedule of the number of updates already done: step / (step + 1) averages all
    parameters alike.

    Raises TypeError for what is not an optimizer, ValueError for a decay outside [0, 1).

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
    """`inner` has each label's state, of the parameters that have this label; `frozen` has the
    parameters without an optimizer. `form` is the tree that they make together.
    """

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
        """The smallest of those that the labels want: one gradient is computed for all."""
        scales = [
            scale for state in self.inner.values() if (scale := _loss_scale(state)) is not None
        ]
        return reduce(jnp.minimum, scales) if scales else None


class _Elsewhere:
    """Stands in a part for a parameter of another label."""


def _is_elsewhere(node: Any) -> bool:
    return isinstance(node, _Elsewhere)


jax.tree_util.register_pytree_node(_Elsewhere, lambda node: ((), None), lambda *_: _Elsewhere())


def partition(labels: Any, optimizers: Mapping[str, Optimizer | None]) -> Optimizer:
    """A part of the parameters to each optimizer, by label; those of None are frozen.

    labels is a tree like the params, or like the top of it, with a label for each parameter or
    for each part; or a function params -> such a tree, such as `by_name` makes. Each optimizer sees
    the parameters and gradients of its label alone, so that a global norm is that part's.

    Raises TypeError for what is not an optimizer; `init` raises ValueError for a label without
    an optimizer, and for labels that don't fit the params.

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
        """The params of each label, with `_Elsewhere` for all others."""
        each = for_each("partition", labels, params)
        unknown = [label for label in jax.tree.leaves(each) if label not in optimizers]
        if unknown:
            known = ", ".join(map(repr, optimizers))
            raise ValueError(f"partition: expected a label of {known}, got {unknown[0]!r}")

        def part(label: str) -> Any:
            return jax.tree.map(lambda of, p: p if of == label else _Elsewhere(), each, params)

        return {label: part(label) for label in optimizers}

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
        factor = 1 / common if own is None else own / common
        wide = lambda g: g.astype(at_least_float32(g.dtype))
        return jax.tree.map(lambda g: _scaled(wide(g), factor), part)

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

    A parameter's names are the dict keys on its path; where several have a label, the innermost
    counts. For `partition`, and with True and False for the mask of `adamw`. What a name stands for
    is the same inside a `repeat`, where each array has one more axis.

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
"""A scale far above it would be infinite in float32, and stay so."""


class _ScaleLossState(NamedTuple):
    """`scale` is what update divides the gradients by, `finite` how many in a row were finite."""

    inner: Any
    step: Array
    scale: Array
    finite: Array

    @property
    def params(self) -> Params:
        """The parameters."""
        return self.inner.params

    @property
    def loss_scale(self) -> Array:
        """What the loss's gradient is multiplied by: for a `scale_loss` inside of it too."""
        return _scaled(self.scale, _loss_scale(self.inner))


def scale_loss(
    optimizer: Optimizer, initial: float = 2.0**15, *, growth_interval: int = 2000
) -> Optimizer:
    """The optimizer, fed gradients of a loss that was multiplied by `state.loss_scale`.

    `fnn.make_step` and all that is built on it multiply the loss's gradient by the state's
    `loss_scale`, so that what is small does not become 0 in float16. update divides the
    gradients by it. Where one is not finite, the scale is halved and the update is skipped;
    after growth_interval finite gradients in a row it is doubled, up to 2^126. `state.step` counts
    the gradients, skipped ones too. Micikevicius et al. 2018.

    It may stand anywhere among wrappers. In `partition` the updates that are skipped are those of
    its own label, and other labels get the gradients without the scale.

    Raises TypeError for what is not an optimizer; ValueError for an initial scale not above 0
    and a growth_interval below 1.

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
            wide = at_least_float32(g.dtype)
            return g.astype(wide) / state.scale.astype(wide)

        flags = [over_devices(jax.lax.pmin, jnp.isfinite(g).all()) for g in jax.tree.leaves(grads)]
        finite = jnp.stack(flags).all() if flags else jnp.array(True)
        inner = _where(
            finite, optimizer.update(state.inner, jax.tree.map(unscaled, grads)), state.inner
        )
        in_a_row = jnp.where(finite, state.finite + 1, 0)
        grow = in_a_row == growth_interval
        factor = jnp.where(finite, jnp.where(grow, 2.0, 1.0), 0.5)
        return _ScaleLossState(
            inner,
            state.step + 1,
            jnp.clip(state.scale * factor, 1 / _LARGEST, _LARGEST),
            jnp.where(grow, 0, in_a_row),
        )

    return Optimizer(init, update)


def _where(condition: Array, a: Any, b: Any) -> Any:
    # A select: a carry that goes through `lax.cond` in a scan is copied.
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def _first(*leaves: Any) -> Any:
    return next((leaf for leaf in leaves if not _is_elsewhere(leaf)), leaves[0])
