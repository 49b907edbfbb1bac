"""Checks of an optimizer: its steps against the same update rule in numpy.

    rule(rate, t, theta, g, slots) -> (theta, slots)

is the update of one array, written a second time from its source: t counts from 1, slots is a
tuple of zeros at first and later what the rule returned. It sees all parameters as one flat
array, so that a global norm is a norm; with per_array, each array by itself.

Rules that agree in easy cases are told apart by a learning rate that falls at every step (inside
or outside of a velocity), by the first steps (bias correction), and by gradients near every eps
in use (inside or outside of a root). Steps are compared, not parameters, whose own size would
hide a small step.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.adapters.optax import from_optax
from fnn.base import Array, Optimizer, Params, at_least_float32
from fnn.verify._call import ROUNDOFF, coarsest_dtype, named_leaves, row_of, unit_roundoff, widened
from fnn.verify._causes import NARROW, Wrong, likely_cause
from fnn.verify._leaf import NONE, TOLERANCE, Leaf, compared, joined, measure, side_by_side, unfit
from fnn.verify._report import Report

Rule = Callable[..., tuple[Any, tuple[Any, ...]]]
Schedule = Callable[[Any], Any]

SCALES = (1.0, 1e-4, 1e-8)
"""Sizes of gradient and parameters: 1, and those at which an eps of 1e-8 matters, in a root
and outside of it."""
UPDATES = 6
MOVES = 2
"""How often the inputs of the rule are moved by a roundoff."""
SLOTS = 8


def check_optimizer(
    optimizer: Any,
    rule: Rule,
    params: Params,
    *,
    learning_rate: float | Schedule | None = None,
    per_array: bool = False,
) -> Report:
    """An optimizer, or better its constructor, such as `fnn.adam`, against the rule in numpy.

    An optax transformation, or a constructor of one such as `optax.adam`, is taken as well. A
    constructor learning_rate -> Optimizer is given the check's own falling schedule; other
    settings go into a function: lambda rate: fnn.adam(rate, b1=0.5). One that is made already
    needs the learning_rate, a number or a schedule, that it was made with; a constant one can't
    show whether it stands inside a velocity or outside.

    With per_array the rule is called for each array by itself, in its own shape: for rules that
    know a layer's norm, or that a weight is a matrix.

    The checks are in float64 and in the parameters' own dtype. The latter's bound is 8 times the
    roundoff, what the rule moves when theta and every g move by a roundoff, and the rule's own
    error in that dtype, together.

    Raises TypeError for an optimizer without its learning rate, or a constructor with one.

    >>> import fnn
    >>> rule = lambda rate, t, theta, g, slots: (theta - rate * g, ())
    >>> check_optimizer(fnn.sgd, rule, jnp.ones(2)).verdict
    'pass'
    """
    made = hasattr(optimizer, "init") and hasattr(optimizer, "update")
    if made == (learning_rate is None) or not (made or callable(optimizer)):
        such = "such as fnn.adam or lambda rate: fnn.adam(rate, b1=0.5)"
        wanted = f"a constructor learning_rate -> Optimizer, {such}; or an Optimizer with its"
        raise TypeError(f"check_optimizer: expected {wanted} learning_rate=")
    rate = falling if learning_rate is None else learning_rate
    schedule: Schedule = rate if callable(rate) else lambda step: rate
    optimizer = optimizer if made else optimizer(falling)
    optimizer = optimizer if isinstance(optimizer, Optimizer) else from_optax(optimizer)
    params = jax.tree.map(jnp.asarray, params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)] if per_array else [(-1,)]
    steps = partial(_by_rule, rule, schedule, shapes)
    dtype = coarsest_dtype(jax.tree.leaves(params))
    scales = [scale for scale in SCALES if scale > float(jnp.finfo(dtype).smallest_subnormal)]
    leaves = [leaf for scale in scales for leaf in _at_scale(optimizer, steps, params, scale)]
    return Report("check_optimizer", tuple(leaves), str(dtype))


def falling(step: Any) -> Array:
    """The learning rate of the check: 8/64, 7/64, 6/64, ..., exact in every dtype.

    >>> [float(falling(step)) for step in range(3)]
    [0.125, 0.109375, 0.09375]
    """
    return (8 - jnp.asarray(step).astype(float)) / 64


def _at_scale(optimizer: Any, steps: Any, params: Params, scale: float) -> list[Leaf]:
    """The leaves of the check with gradients and parameters of this size."""
    random = np.random.default_rng(0)
    start = jax.tree.map(lambda p: p * jnp.asarray(scale, p.dtype), params)
    sparse = lambda shape: random.standard_normal(shape) * (random.random(shape) < 0.9)
    gradient = lambda p: jnp.asarray(scale * sparse(p.shape), p.dtype)
    grads = [jax.tree.map(gradient, params) for _ in range(UPDATES)]
    native, misfits = _followed(optimizer, start, grads)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wide, _ = _followed(optimizer, widened(start), widened(grads))
    if misfits:
        return misfits
    theta, gs = row_of(start), np.stack([row_of(g) for g in grads])
    dtype = coarsest_dtype(jax.tree.leaves(params))
    unit = unit_roundoff(dtype)
    move = lambda a, u: a * (1 + u * random.choice((-1.0, 1.0), a.shape))
    moved = lambda u: steps(move(theta, u), move(gs, u), np.float64, np.float64)
    paths = [[wide], [native], [moved(0.0)], [steps(theta, gs, at_least_float32(dtype), dtype)]]
    paths += [[moved(u) for _ in range(MOVES)] for u in (ROUNDOFF, unit)]
    found, begin = [], 0
    for name, leaf in named_leaves(params).items():
        part = slice(begin, begin := begin + leaf.size)
        if leaf.size:
            name = f"{name or 'params'}, g ~ {scale:.0e}"
            moves = [[np.diff(path[:, part], axis=0) for path in same] for same in paths]
            found.append(_leaf(name, moves, theta[part], unit))
    return found


def _leaf(name: str, moves: list[list[np.ndarray]], theta: np.ndarray, unit: float) -> Leaf:
    """The leaf of the optimizer's moves in float64 and as they are; of the rule's in float64 and
    in the dtype of the parameters; and of the rule's at inputs moved by the roundoff of each."""
    (wide,), (native,), (expected,), (own,), *moved = moves
    sure, near = (max(measure(m, expected, 1)[0] for m in same) for same in moved)
    error, index = measure(wide, expected, 1)
    in_float64 = compared(error, max(TOLERANCE, 64 * sure))
    own_error, _ = measure(own, expected, 1)
    as_run = compared(measure(native, expected, 1)[0], 8 * (unit + near + own_error))
    if in_float64.verdict == as_run.verdict == "pass":
        still = "" if expected.any() else "the rule moves nothing: right and missing look alike"
        verdict = "inconclusive" if still else "pass"
        return Leaf(name, verdict, in_float64, as_run, NONE, index, still, wide, expected)
    failed = in_float64.verdict == "fail"
    got, bound = (wide, in_float64.bound) if failed else (native, as_run.bound)
    right = np.abs(got - expected).max(1) <= bound * np.abs(expected).max()
    t = index[0] if right.all() else int(np.argmin(right))
    i = measure(got[t], expected[t], 1)[1]
    values = side_by_side(expected[t][i], got[t][i])
    note = f"first wrong at update {t + 1}: the move of entry {list(i)}, {values}"
    # A step is along minus a gradient, which is what a cause is known of.
    narrow, theta = () if failed else NARROW, theta + expected[:t].sum(0)
    note = joined(note, likely_cause(Wrong(-got[t], -expected[t], {"x": theta}, narrow=narrow)))
    return Leaf(name, "fail", in_float64, as_run, NONE, (t, *i), note, wide, expected)


def _followed(optimizer: Any, params: Params, grads: list[Any]) -> tuple[np.ndarray, list[Leaf]]:
    """All parameters as a row, at the start and after each update; and what is malformed."""
    _, *states, state = accumulate(grads, optimizer.update, initial=optimizer.init(params))
    form = lambda tree: jax.tree.map(lambda a: f"{a.dtype}{a.shape}", tree)
    if form(state.params) != form(params):
        note = f"expected {form(params)}, got {form(state.params)}"
        return np.zeros(0), [unfit("params", note)]
    if int(getattr(state, "step", len(grads))) != len(grads):
        return np.zeros(0), [unfit("step", f"{int(state.step)} after {len(grads)} updates")]
    return np.stack([row_of(params), *(row_of(s.params) for s in (*states, state))]), []


def _by_rule(
    rule: Rule, schedule: Schedule, shapes: Any, theta: Any, grads: Any, dtype: Any, kept: Any
) -> np.ndarray:
    """The rule's theta, as rows, of each array in it by itself, in its own shape: computed in
    `dtype`, kept in `kept` between updates."""
    number, paths = np.dtype(dtype).type, []
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    parts = zip(np.split(theta, ends), np.split(grads, ends, 1), shapes, strict=True)
    for start, gs, shape in parts:
        theta, path = start.reshape(shape).astype(dtype), [start]
        slots = (np.zeros(theta.shape, dtype),) * SLOTS
        for t, g in enumerate(gs.astype(dtype)):
            with np.errstate(all="ignore"):
                g = g.reshape(theta.shape)
                theta, slots = rule(number(schedule(t)), number(t + 1), theta, g, slots)
            theta = theta.astype(kept).astype(dtype)
            path.append(theta.astype(np.float64).ravel())
        paths.append(np.stack(path))
    return np.concatenate(paths, 1)
