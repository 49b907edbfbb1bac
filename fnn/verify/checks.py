"""The judge: hand-written gradients against autodiff and against finite differences.

Autodiff is called in this file alone. Three rungs judge each leaf of a gradient, apart:

float64       Both sides in float64 at the highest matrix-product precision. An entry may differ
              by 1e-9 of its size. Where the reference itself is less sure than that, by 64 times
              what it moves when every input moves by a roundoff.
native dtype  As the user runs it, against the float64 reference. With u the dtype's unit
              roundoff, the bound is 8 times the sum of: what the reference moves when every input
              moves by u, which is u times the running magnitude sum |dg/dv||v|; the error of
              autodiff in the same dtype; and u. Overflow and cancellation show here.
differences   (f(theta + h v) - f(theta - h v)) / 2h along one unit direction a leaf, taken to
              h = 0 by Richardson's extrapolation. Its error is the last correction, the gap
              between the slopes from the right and from the left, and the rounding of f over h.
              At a kink, and where rounding drowns it, it stays silent. Of autodiff only the size
              of that rounding is taken, u sum |df/dtheta||theta|.

The verdict of a leaf is "fail" where the float64 or the native rung fails. It is "inconclusive"
where that rests on no firm reference: one that is zero or mere rounding; a kink where autodiff or
the gradient under test splits the tie; finite differences that contradict autodiff; a function
that computes in less than float64 whatever it is given, and agrees as far as that goes.

All measures are relative, so scaling the loss hides nothing. Integers, booleans and keys are
passed on and not differentiated. A check leaves JAX's configuration as it was, and works whether
x64 is on or off. The user's functions are compiled; those that can't be, for they branch on
values or are NumPy's, run as they are.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.base import Array, Layer, Loss, Params
from fnn.verify.report import (
    FLOOR,
    NONE,
    TOLERANCE,
    Leaf,
    Report,
    Rung,
    likely_cause,
    measure,
    misshapen_cause,
    plainly,
    refused,
    rung,
)

DITHERS = 8
"""How often the inputs are moved by a roundoff before a rung refuses. To pass, once will do."""
LEVELS = 3
"""Steps h, h/2, h/4, ... of an extrapolation."""
STEPS = (2.0**-17, 2.0**-12)
"""First steps relative to a leaf's norm: few kinks are within the first; where rounding drowns
it, the second."""
ROUNDOFF = 2.0**-53
"""Of float64."""


def check_layer(layer: Layer, params: Params, x: Array, *, key: Array | None = None) -> Report:
    """A layer's backward against autodiff of its forward: dparams and dx.

    The cotangent is drawn from `key`: every output counts, none by the same weight. In a
    network that fnn's combinators made, the report names the first wrong layer.
    """
    report = check_vjp(layer.forward, layer.backward, params, x, key=key)
    place = ""
    if report.verdict == "fail":
        with _judging():
            params, x = _wide(_arrays((params, x)))
            y, _ = layer.forward(params, x)
            place = _first_wrong(layer, params, x, _cotangent(key, y))
    return replace(report, subject="check_layer", place=place)


def check_vjp(
    forward: Callable, backward: Callable, params: Params, x: Array, *, key: Array | None = None
) -> Report:
    """forward(params, x) -> (y, residuals) and backward(params, residuals, dy) -> (dparams, dx)
    against autodiff of the forward. params, x and y may be any trees."""
    theta = {"dparams": params, "dx": x}
    inputs = _arrays((params, x))
    try:
        y, _ = jax.eval_shape(forward, *inputs)
    except TypeError:  # it can't be traced
        y, _ = forward(*inputs)
    dy = _cotangent(key, y)
    return _check("check_vjp", (_paired, forward), (_pulled, (forward, backward)), theta, (dy,))


def check_loss(loss: Loss, prediction: Array, target: Array) -> Report:
    """A loss's gradient against autodiff of its values, which are one an example."""
    theta = {"gradient": prediction}
    report = _check(
        "check_loss", (_summed, loss.value), (_by_rule, loss.gradient), theta, (target,)
    )
    shape = jax.eval_shape(loss.value, *_arrays((prediction, target))).shape
    if shape != jnp.shape(prediction)[:-1]:
        note = f"expected one value an example, {jnp.shape(prediction)[:-1]}, got {shape}"
        report = replace(report, leaves=(refused("value", note), *report.leaves))
    return report


def check_gradients(
    value_and_grad_fn: Callable, objective_fn: Callable, params: Params, *args: Any
) -> Report:
    """value_and_grad_fn(params, *args) -> (value, grads) against autodiff of
    objective_fn(params, *args) -> value. The value is checked too.

    For `fnn.value_and_grad(network, loss)`, jitted or not, the report names the first wrong
    layer.
    """
    report = _check(
        "check_gradients",
        (_valued, objective_fn),
        (_value_and_grads, value_and_grad_fn),
        {"grads": params},
        args,
    )
    inner = inspect.unwrap(value_and_grad_fn)
    if report.verdict == "fail" and isinstance(inner, partial):
        match inner.args, args:
            case (Layer() as network, Loss() as loss, *_), (x, y, *_):
                return replace(report, place=_blame(network, loss, params, x, y))
    return report


# The scalar f(theta, rest) that autodiff and finite differences take, for each kind of check;
# and beside it the tree that is under test.


def _valued(objective_fn, theta, *args):
    return objective_fn(theta["grads"], *args)


def _value_and_grads(value_and_grad_fn, theta, *args):
    value, grads = value_and_grad_fn(theta["grads"], *args)
    return {"value": value, "grads": grads}


def _summed(value, theta, target):
    return value(theta["gradient"], target).sum()


def _by_rule(gradient, theta, target):
    return {"gradient": gradient(theta["gradient"], target)}


def _paired(forward, theta, dy):
    """<dy, y>: its gradient is the vector-Jacobian product with dy."""
    y, _ = forward(theta["dparams"], theta["dx"])
    pairs = zip(jax.tree.leaves(y), jax.tree.leaves(dy), strict=True)
    return sum(jnp.sum(a * b) for a, b in pairs if _differentiable(a))


def _pulled(functions, theta, dy):
    forward, backward = functions
    _, residuals = forward(theta["dparams"], theta["dx"])
    dparams, dx = backward(theta["dparams"], residuals, dy)
    return {"dparams": dparams, "dx": dx}


class _Call(NamedTuple):
    """rule(function, theta, *rest) as a function of flat lists of arrays.

    Its leaves are "theta" (to differentiate), "float" or "other" arrays, or "fixed" values that
    the user's function sees as they are. Equal calls share one compilation.
    """

    rule: Callable
    function: Any
    form: Any
    kinds: tuple[str, ...]
    fixed: tuple[Any, ...]

    def arguments(self, theta, floats, others):
        """The trees theta and rest."""
        lists = {"theta": theta, "float": floats, "other": others, "fixed": self.fixed}
        sources = {kind: iter(leaves) for kind, leaves in lists.items()}
        return jax.tree.unflatten(self.form, [next(sources[kind]) for kind in self.kinds])

    def __call__(self, theta, floats, others):
        inputs, rest = self.arguments(theta, floats, others)
        return self.rule(self.function, inputs, *rest)


def _evaluated(call, theta, floats, others):
    return call(theta, floats, others)


def _autodiff(call, theta, floats, others):
    return jax.value_and_grad(call)(theta, floats, others)


def _moved(call, theta, floats, others, directions, step):
    """f where each leaf of theta is moved by a step along its direction."""
    theta = [p + step * v for p, v in zip(theta, directions, strict=True)]
    return call(theta, floats, others)


@lru_cache
def _compiled(program: Callable) -> Callable:
    """The program, jitted with little optimization: each runs a few times only."""
    fast = {"xla_backend_optimization_level": 0}
    return jax.jit(program, static_argnums=0, compiler_options=fast)


def _run(program: Callable, *args: Any) -> Any:
    """program(*args), compiled; or as it is, where the user's function can't be traced."""
    try:
        return _compiled(program)(*args)
    except (TypeError, ValueError, IndexError):
        return program(*args)


class _Reference:
    """What the judge knows by itself, in float64: f and its gradient, how sure they are, and
    the slopes of f by finite differences."""

    def __init__(self, call: _Call, theta: list, floats: list, others: list, roundoff: float):
        self.inputs = (call, theta, floats, others)
        self.roundoff = roundoff
        self.norms = [_norm(p) or 1.0 for p in theta]
        self.again = lru_cache(self.dithered)
        self.stacks = self.again(0)
        values, *grads = self.stacks
        # The rounding of f: u sum |df/dtheta||theta|, and what rounding its inputs did to it.
        magnitude = sum(np.abs(g[0] * p).sum() for g, p in zip(grads, theta, strict=True))
        moved = np.abs(values[1] - values[0])
        self.noise = float(ROUNDOFF * (magnitude + np.abs(values[0])) + moved)
        self.size = max((np.abs(g[0]).max(initial=0.0) for g in grads), default=0.0)

    def dithered(self, seed: int) -> list[np.ndarray]:
        """For the value and each gradient a stack: at the inputs, with every float moved up or
        down by float64's roundoff, and by the user's."""
        random = np.random.default_rng(seed)
        call, theta, floats, others = self.inputs

        def moved(a, u):
            return np.where(random.integers(0, 2, a.shape, np.int8), 1 + u, 1 - u) * a if u else a

        runs = []
        for u in (0.0, ROUNDOFF, self.roundoff):
            at = [[moved(np.asarray(a), u) for a in leaves] for leaves in (theta, floats)]
            value, grads = _run(_autodiff, call, *at, others)
            runs.append([np.asarray(value), *map(np.asarray, grads)])
        return [np.stack(leaves) for leaves in zip(*runs, strict=True)]

    def moves(self, place: int, which: int, floor: float) -> Iterator[float]:
        """How far a leaf moves when every input moves by a roundoff (1: float64's, 2: the
        user's): time and again, by other signs."""
        for seed in range(DITHERS):
            stack = self.again(seed)[place]
            yield measure(stack[which], stack[0], floor)[0]

    def slope(self, directions: list[np.ndarray], first: float) -> "_Slope":
        """The slope of f along the directions, all leaves at once, from a step of `first`."""
        h = first * 0.5 ** np.arange(LEVELS)
        f = [_run(_moved, *self.inputs, directions, step) for step in (*h, *-h)]
        plus, minus = np.array(f, np.float64).reshape(2, LEVELS)
        return _slope(float(self.stacks[0][0]), plus, minus, h, 8 * self.noise / h[-1])


class _Slope(NamedTuple):
    value: float
    bound: float
    left: float
    right: float
    kink: bool


def _slope(centre, plus, minus, h, rounding) -> _Slope:
    """The central slope and a bound of its error, from f at theta, theta + h v, theta - h v."""
    value, error = _extrapolate((plus - minus) / (2 * h), 2)
    right, right_error = _extrapolate((plus - centre) / h, 1)
    left, left_error = _extrapolate((centre - minus) / h, 1)
    # A kink within the last step moves every central slope alike; the two sides then differ.
    gap = abs(right - left)
    kink = not gap <= 8 * (rounding + right_error + left_error)
    return _Slope(value, 4 * (error + gap) + rounding, left, right, kink)


def _extrapolate(slopes: np.ndarray, order: int) -> tuple[float, float]:
    """Slopes at h, h/2, h/4, ..., whose error is a series in h^order, taken to h = 0; and the
    last correction. Richardson 1911."""
    last, factor = slopes, 1
    while len(slopes) > 1:
        factor *= 2**order
        last, slopes = slopes, slopes[1:] + (slopes[1:] - slopes[:-1]) / (factor - 1)
    return float(slopes[0]), float(abs(slopes[0] - last[-1]))


class _Subject(NamedTuple):
    """One leaf of the gradient under test, and what the judge knows about it."""

    name: str
    place: int  # in the reference's stacks: 0 is the value, the leaves of theta follow
    native: np.ndarray  # what the user runs
    wide: np.ndarray | None  # the same in float64; None where there is none, for this reason:
    why: str

    @property
    def best(self) -> np.ndarray:
        return self.native if self.wide is None else self.wide


def _check(
    subject: str,
    objective: tuple[Callable, Any],
    gradient: tuple[Callable, Any],
    theta: Any,
    args: tuple[Any, ...],
) -> Report:
    """The tree that `gradient` gives, judged leaf by leaf. Both are a rule and its function."""
    call, theta, floats, others = _apart(*objective, theta, args)
    tested = call._replace(rule=gradient[0], function=gradient[1])
    dtype = max((a.dtype for a in (*theta, *floats)), key=_roundoff, default=np.dtype(float))
    with _highest():
        native = _run(_evaluated, tested, theta, floats, others)
        value, grads = _run(_autodiff, call, theta, floats, others)
        autodiff = [np.asarray(a, np.float64) for a in (value, *grads)]
    with _judging():
        wide = (_wide(theta), _wide(floats), others)
        reference = _Reference(call, *wide, _roundoff(dtype))
        try:
            got, refusal = _named(_run(_evaluated, tested, *wide)), ""
        except (TypeError, ValueError, NotImplementedError) as error:
            got, refusal = {}, f"raises {type(error).__name__}"
        inputs, _ = call.arguments(theta, floats, others)
        fitting, misfits = _fitting(native, inputs, call.kinds, reference)
        subjects = [
            _Subject(name, place, leaf, *_full_width(got.get(name), leaf, refusal))
            for name, place, leaf in fitting
        ]
        firsts = [_float64_rung(s, reference) for s in subjects]
        seconds = [_native_rung(s, reference, autodiff[s.place]) for s in subjects]
        thirds = _differences_rungs(subjects, reference)
        probes = [
            _probe(s, reference) if first.verdict == "fail" and s.place else None
            for s, first in zip(subjects, firsts, strict=True)
        ]
        narrowest = 0.0
        if "fail" in {first.verdict for first in firsts}:
            narrowest = max(_narrowest(tested, *wide), _narrowest(call, *wide))
        sizes = _sizes(*floats, *others, *theta)
        leaves = []
        for s, first, second, third, probe in zip(
            subjects, firsts, seconds, thirds, probes, strict=True
        ):
            expected = reference.stacks[s.place][0]
            near = measure(s.best, expected, 1)[0] <= second.bound
            narrow = narrowest > ROUNDOFF and near
            rungs = first, second, third
            verdict, note, index = _verdict(s, expected, rungs, probe, narrow)
            if verdict == "fail":
                parameter = np.asarray(theta[s.place - 1], np.float64) if s.place else np.zeros(())
                blamed = s.best if first.verdict == "fail" else s.native
                cause = likely_cause(blamed, expected, parameter, sizes)
                note = "; ".join(filter(None, (note, cause)))
            leaves.append(Leaf(s.name, verdict, *rungs, index, note, s.best, expected))
    leaves = [_swapped(leaf, leaves) for leaf in leaves]
    return Report(subject, (*leaves, *misfits), str(dtype))


def _fitting(
    tree: Any, inputs: Any, kinds: Sequence[str], reference: "_Reference"
) -> tuple[list[tuple[str, int, np.ndarray]], list[Leaf]]:
    """The leaves of the gradient `tree` that have their parameter's place, shape and dtype, and
    reports on those that have not."""
    got, given = _named(tree), _named(inputs)
    names = [name for name, kind in zip(given, kinds, strict=False) if kind == "theta"]
    fitting, misfits = [], []
    if "value" in got:
        names, given = ["value", *names], given | {"value": jnp.zeros_like(got["value"], shape=())}
    for name in names:
        place = 0 if name == "value" else names.index(name) + ("value" not in got)
        expected = reference.stacks[place][0]
        if name not in got:
            misfits.append(refused(name, "only the reference has it"))
            continue
        shape, dtype = given[name].shape, given[name].dtype
        leaf = np.asarray(got[name])
        if (leaf.shape, leaf.dtype) != (shape, dtype):
            note = f"expected {dtype}{shape}, got {leaf.dtype}{leaf.shape}"
            cause = misshapen_cause(np.asarray(leaf, np.float64), expected)
            misfits.append(refused(name, "; ".join(filter(None, (note, cause)))))
        elif leaf.size:
            fitting.append((name, place, np.asarray(leaf, np.float64)))
    misfits += [refused(n, "only the gradient under test has it") for n in got if n not in given]
    for key, part in inputs.items():
        wanted, found = str(jax.tree.structure(part)), str(jax.tree.structure(tree[key]))
        # With integers among the parameters, whatever stands in their place is right.
        if not misfits and wanted != found and all(map(_differentiable, jax.tree.leaves(part))):
            misfits.append(refused(key, f"expected the tree {wanted}, got {found}"))
    return fitting, misfits


def _full_width(leaf: Any, native: np.ndarray, refusal: str) -> tuple[np.ndarray | None, str]:
    """The leaf if it is float64 throughout, or None and why the float64 rung can't speak."""
    if leaf is None:
        return None, refusal or "absent"
    leaf = np.asarray(leaf)
    if _roundoff(leaf.dtype) > ROUNDOFF or leaf.shape != native.shape:
        return None, f"gives {leaf.dtype}"
    return leaf, ""


def _float64_rung(s: _Subject, reference: _Reference) -> Rung:
    expected = reference.stacks[s.place][0]
    if not np.isfinite(expected).all():
        return Rung("silent", note="not finite")
    if s.wide is None:
        return Rung("silent", note=s.why)
    error, _ = measure(s.wide, expected, FLOOR)
    moves = reference.moves(s.place, 1, FLOOR)
    if not expected.any():
        found = _settled(error, (64 * (m + ROUNDOFF * reference.size) for m in moves))
        silent = found.verdict == "pass" and s.place > 0
        return Rung("silent", note="zero") if silent else found
    found = _settled(error, (max(TOLERANCE, 64 * m) for m in moves))
    # A reference of which less than four digits hold is rounding, and can confirm nothing.
    silent = found.verdict == "pass" and found.bound > 1e-4
    return Rung("silent", note="rounding") if silent else found


def _native_rung(s: _Subject, reference: _Reference, autodiff: np.ndarray) -> Rung:
    expected = reference.stacks[s.place][0]
    if reference.roundoff <= ROUNDOFF:
        return Rung("silent", note="as float64")
    if not np.isfinite(expected).all():
        return Rung("silent", note="not finite")
    error, _ = measure(s.native, expected, 1)
    own, _ = measure(autodiff, expected, 1)
    unit = reference.roundoff * (1 if expected.any() else reference.size)
    known = unit + (own if np.isfinite(own) else 0.0)
    found = _settled(error, (8 * (known + m) for m in reference.moves(s.place, 2, 1)))
    silent = found.verdict == "pass" and found.bound > 0.1
    return Rung("silent", note="rounding") if silent else found


def _settled(error: float, bounds: Iterator[float]) -> Rung:
    """The error against the largest bound, asking for the next one only while it is refused: a
    unit within a roundoff of its kink shows in some moves of the inputs alone."""
    found = rung(error, next(bounds))
    while found.verdict == "fail" and (bound := next(bounds, None)) is not None:
        found = rung(error, max(found.bound, bound))
    return found


def _differences_rungs(subjects: list[_Subject], reference: _Reference) -> list[Rung]:
    """Each leaf along a unit direction of its own: half along the gradient under test, where a
    wrong factor shows most, half at random, where everything else does.

    First all leaves move at once, and the slope must be the sum of what each predicts: an error
    of one would have to be undone by another's. A leaf that this leaves open moves alone.
    """
    random = np.random.default_rng(1)
    directions = [np.zeros(p.shape) for p in reference.inputs[1]]
    shares = {}
    for s in subjects:
        if s.place:
            j, size, v = s.place - 1, _norm(s.best), random.standard_normal(s.best.shape)
            along = s.best / size if 0 < size < np.inf else np.zeros(v.shape)
            v *= 1 if (v * along).sum() >= 0 else -1  # they must not cancel
            v = v / _norm(v) + along
            directions[j] = reference.norms[j] * v / _norm(v)
            shares[s.place] = float((directions[j] * s.best).sum())
    rungs: dict[int, Rung] = {}

    def move(places: list[int], first: float) -> dict[int, Rung]:
        chosen = [v if j in places else np.zeros(v.shape) for j, v in enumerate(directions, 1)]
        slope = reference.slope(chosen, first)
        rest = slope.value - sum(shares[place] for place in places)
        return {place: _differences_rung(slope, rest, shares[place]) for place in places}

    if shares:
        together = move(list(shares), STEPS[0])
        rungs = {place: r for place, r in together.items() if r.verdict == "pass"}
    for place in shares.keys() - rungs.keys():
        rungs[place] = NONE
        for first in STEPS:
            found = move([place], first)[place]
            if rungs[place].verdict == "silent" or found.verdict == "pass":
                rungs[place] = found
            if found.verdict == "pass":
                break
    return [rungs.get(s.place, NONE) for s in subjects]


def _differences_rung(slope: _Slope, difference: float, share: float) -> Rung:
    """`difference` is how far the slope is from what is predicted, `share` the leaf's part."""
    size = max(abs(share), abs(share + difference))
    if size == 0 or not np.isfinite(slope.bound):
        return Rung("silent", note="zero" if size == 0 else "not finite")
    error, bound = abs(difference) / size, slope.bound / size
    if error <= bound and bound > 1e-4:
        return Rung("silent", note="kink" if slope.kink else "rounding")
    return rung(error, bound)


def _probe(s: _Subject, reference: _Reference) -> _Slope:
    """The slope of f along the leaf's worst entry."""
    directions = [np.zeros(p.shape) for p in reference.inputs[1]]
    _, index = measure(s.best, reference.stacks[s.place][0], FLOOR)
    directions[s.place - 1][index] = 1.0
    return reference.slope(directions, STEPS[0] * reference.norms[s.place - 1])


def _verdict(
    s: _Subject,
    expected: np.ndarray,
    rungs: tuple[Rung, Rung, Rung],
    probe: _Slope | None,
    narrow: bool,
) -> tuple[str, str, tuple[int, ...]]:
    """What the rungs add up to, why, and the worst index."""
    first, second, third = rungs
    _, index = measure(s.best, expected, FLOOR)
    got, wanted = float(s.best[index]), float(expected[index])
    values = f"at {list(index)} " if index else ""
    values += f"expected {plainly(wanted)}, got {plainly(got)}"
    if first.verdict == "fail" and narrow:
        note = f"{values}: it computes in less than float64, and agrees as far as that goes"
        return "inconclusive", note, index
    if first.verdict == "fail" and probe is not None and probe.kink:
        sides = sorted((probe.left, probe.right))
        note = f"{values}; a kink, with slopes {plainly(sides[0])} and {plainly(sides[1])}"
        slack = 1e-6 * max(map(abs, sides))
        between = sides[0] - slack <= got <= sides[1] + slack
        # Autodiff on one side and this on the other contradict each other. Where either splits
        # the tie (a maximum's two arguments share it, |x| has 0 at 0), both are right.
        sided = [min(abs(d - side) for side in sides) <= slack for d in (wanted, got)]
        return ("inconclusive" if between and not all(sided) else "fail"), note, index
    if first.verdict == "fail":
        if probe and abs(probe.value - got) <= probe.bound < abs(probe.value - wanted):
            note = f"{values}; finite differences agree with what is under test, not with autodiff"
            return "inconclusive", note, index
        return "fail", values, index
    if second.verdict == "fail":
        _, index = measure(s.native, expected, 1)
        values = (
            f"expected {plainly(float(expected[index]))}, got {plainly(float(s.native[index]))}"
        )
        return "fail", f"in the dtype that runs: at {list(index)} {values}", index
    if third.verdict == "fail":
        return "inconclusive", "finite differences agree with neither: is a rule overridden?", index
    if first.note == "zero":
        return (
            "inconclusive",
            "the reference is zero everywhere: right and missing look alike",
            index,
        )
    if first.verdict == "silent" and not first.note.startswith("raises"):
        return "inconclusive", f"the float64 reference can't decide: {first.note}", index
    if first.verdict == "silent" and "silent" in (second.verdict, third.verdict):
        return "inconclusive", f"float64 {first.note}, and another rung is silent", index
    return "pass", "", index


def _swapped(leaf: Leaf, leaves: Sequence[Leaf]) -> Leaf:
    """The leaf, with a word on another whose reference its gradient matches."""
    for other in leaves:
        if leaf.verdict == "fail" and other.name != leaf.name and other.verdict == "fail":
            same = leaf.got.shape == other.expected.shape
            if same and measure(leaf.got, other.expected, 1)[0] <= 1e-6:
                return replace(
                    leaf, note=f"{leaf.note}; it is the reference of {other.name}: swapped"
                )
    return leaf


def _sizes(*arrays: Any) -> list[int]:
    """Axis lengths and batch sizes: where a wrong constant factor may come from."""
    shapes = [a.shape for a in arrays if a.ndim]
    batches = [int(np.prod(shape[:-1])) for shape in shapes]
    return [n for n in dict.fromkeys([*batches, *sum(shapes, ())]) if n > 1]


def _narrowest(call: _Call, *args: Any) -> float:
    """The coarsest roundoff of a floating-point value inside call(*args); 0 if unknown."""

    def values(jaxpr: Any) -> Iterator[Any]:
        for equation in jaxpr.eqns:
            yield from (v.aval for v in equation.outvars)
            for param in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
                if _is_jaxpr(param):
                    yield from values(getattr(param, "jaxpr", param))

    try:
        found = values(jax.make_jaxpr(call.__call__)(*args).jaxpr)
    except (jax.errors.JAXTypeError, TypeError):
        return 0.0
    return max((_roundoff(a.dtype) for a in found if _differentiable(a)), default=0.0)


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


# Where in a network the first fault is.


def _blame(network: Layer, loss: Loss, params: Params, x: Array, y: Array) -> str:
    with _judging():
        params, x, y = _wide(_arrays((params, x, y)))
        prediction, _ = network.forward(params, x)
        expected = jax.grad(lambda p: loss.value(p, y).sum())(prediction)
        if not _agree(loss.gradient(prediction, y), expected):
            return "first wrong from the output: the loss's gradient"
        return _first_wrong(network, params, x, expected)


def _first_wrong(layer: Layer, params: Params, x: Array, dy: Any, path: str = "") -> str:
    """The part of a network that is wrong by itself and nearest to the output.

    Each part gets the true cotangent of its output, so that one fault is not taken for many.
    """
    parts = [] if layer.parts is None else layer.parts(params)
    passed = []
    for part, p in parts:
        y, pull, residuals = jax.vjp(part.forward, p, x, has_aux=True)
        passed.append((part, p, x, residuals, pull))
        x = y
    for count, (part, p, x, residuals, pull) in enumerate(reversed(passed), 1):
        here = f"{path}[{len(parts) - count}]"
        expected = pull(dy)
        got = _named(dict(zip(("dparams", "dx"), part.backward(p, residuals, dy), strict=True)))
        right = _named(dict(zip(("dparams", "dx"), expected, strict=True)))
        wrong = [n for n, leaf in right.items() if n not in got or not _agree(got[n], leaf)]
        if wrong:
            kind = getattr(part.forward, "__qualname__", "layer").split(".")[0]
            return _first_wrong(part, p, x, dy, here) or (
                f"first wrong layer, number {count} of {len(parts)} counted from the output: "
                f"{here} {kind}, {' and '.join(wrong)}"
            )
        dy = expected[1]
    joint = f"at {path or 'the top'} each layer is right by itself, but not how they are joined"
    return joint if parts else ""


def _agree(got: Any, expected: Any) -> bool:
    if not _differentiable(expected) or expected.size == 0:
        return True
    same = jnp.shape(got) == expected.shape
    return same and measure(np.asarray(got), np.asarray(expected), FLOOR)[0] <= 100 * TOLERANCE


# Trees and dtypes.


def _apart(
    rule: Callable, function: Callable, theta: Any, args: Any
) -> tuple[_Call, list[Any], list[Any], list[Any]]:
    """f(theta, *args) as a `_Call`, with what it is to be called on."""
    theta = jax.tree.map(lambda a: jnp.asarray(a) if isinstance(a, float) else a, theta)
    leaves, form = jax.tree.flatten(_arrays((theta, args)))
    inside = len(jax.tree.leaves(theta))
    lists: dict[str, list[Any]] = {"theta": [], "float": [], "other": [], "fixed": []}
    kinds = []
    for i, leaf in enumerate(leaves):
        if _differentiable(leaf):
            kind = "theta" if i < inside else "float"
        elif i < inside and jnp.iscomplexobj(leaf):
            raise TypeError(f"verify: expected real parameters, got {leaf.dtype}{leaf.shape}")
        else:
            kind = "other" if isinstance(leaf, jax.Array | np.ndarray) else "fixed"
        kinds.append(kind)
        lists[kind].append(leaf)
    call = _Call(rule, function, form, tuple(kinds), tuple(lists["fixed"]))
    return call, lists["theta"], lists["float"], lists["other"]


def _arrays(tree: Any) -> Any:
    """The tree with NumPy's arrays as JAX's, in the dtype that JAX gives them here."""

    def convert(leaf):
        numpy = isinstance(leaf, np.ndarray | np.generic) and leaf.dtype != jax.dtypes.float0
        return jnp.asarray(leaf) if numpy else leaf

    return jax.tree.map(convert, tree)


def _wide(tree: Any) -> Any:
    """The tree with its floating-point arrays in float64; all else as it is."""
    return jax.tree.map(lambda a: a.astype(jnp.float64) if _differentiable(a) else a, tree)


def _differentiable(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _norm(a: Any) -> float:
    # Not by BLAS, whose threads take longer to wake than this takes.
    return float(np.sqrt(np.square(np.asarray(a)).sum()))


def _roundoff(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps) / 2


def _named(tree: Any) -> dict[str, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in flat}


def _cotangent(key: Array | None, y: Any) -> Any:
    """A random cotangent for the tree y: each leaf drawn in its own dtype."""
    leaves, form = jax.tree.flatten(y)
    keys = jax.random.split(jax.random.key(0) if key is None else key, max(len(leaves), 1))
    drawn = [
        jax.random.normal(k, a.shape, a.dtype)
        if _differentiable(a)
        else np.zeros(a.shape, jax.dtypes.float0)
        for k, a in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(form, drawn)


@contextmanager
def _highest():
    with jax.default_matmul_precision("highest"):
        yield


@contextmanager
def _judging():
    # Standard promotion: next to float64, a constant of the user's in float32 is no mistake.
    promoting = jax.numpy_dtype_promotion("standard")
    with jax.enable_x64(True), promoting, _highest(), np.errstate(all="ignore"):
        yield
