"""What a gradient is compared with, in float64: autodiff, how sure it is, and slopes.

How sure autodiff is shows when all inputs are moved by a roundoff. Slopes by finite differences,

    (f(theta + h v) - f(theta - h v)) / 2h    along a direction v, h, h/2, h/4, ...,

are taken to h = 0 by Richardson's extrapolation (1911). They owe nothing to autodiff but the size
of f's rounding, u sum |df/dtheta||theta|.

How far rounding inside a computation moves what it returns.

The computation is repeated with its inputs and every result of arithmetic inside it moved up or
down at random by a roundoff: Monte Carlo arithmetic (Parker, Pierce & Eggert, 2000). Cancellation
that the inputs alone do not show, as in s (1 - s) where s is nearly 1, shows here.
"""

from collections.abc import Collection, Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from fnn.verify import _call as calls
from fnn.verify._call import ROUNDOFF, Call, Function, Inputs, differentiable

MOVES = 8
"""How often the inputs are moved by a roundoff before a check fails. To pass, once will do."""
FAR = 2.0**-40
"""The least roundoff of the third row: far enough from float64's to tell a jump from rounding."""
LEVELS = 3
"""The number of steps h, h/2, h/4, ... of an extrapolation."""


class Slope(NamedTuple):
    """A slope by finite differences: the central one with a bound of its error, those from the
    left and from the right, and whether these two differ.
    """

    value: float
    bound: float
    left: float
    right: float
    kink: bool


class Reference:
    """f and its gradient in float64, how sure they are, and the slopes of f.

    `stacks` has an array for the value of f and one for each array of theta, each with three
    rows: at the inputs themselves; at inputs moved by float64's roundoff; at inputs moved by
    `roundoff`, that of the dtype that the user runs, or by `FAR`. After these come the arrays
    that f returns beside its value, whose names are `outputs`. Entries that are not finite at the
    inputs themselves are `open`: zero in the stacks, and judged apart, by `centre`, which keeps
    them, or by slopes.
    `unit` is the roundoff of f itself: more than float64's where f computes in less, whatever it
    is given.
    """

    def __init__(self, call: Call, inputs: Inputs, roundoff: float, unit: float = ROUNDOFF) -> None:
        self.call, self.inputs, self.roundoff, self.unit = call, inputs, roundoff, unit
        self.norms = [norm(p) or 1.0 for p in inputs.theta]
        self._moved = lru_cache(self._at_moved_inputs)
        self.directions = lru_cache(self._directions)
        found = gradient_of(call, inputs)
        self.outputs, self.centre = sorted(found[2]), calls.listed(found)
        self.open = [~np.isfinite(a) for a in self.centre]
        self.stacks = self._moved(0)
        values, *grads = self.stacks[: len(inputs.theta) + 1]
        # The rounding of f: u sum |df/dtheta||theta|, and what rounding its inputs did to it.
        pairs = zip(grads, map(np.asarray, inputs.theta), strict=True)
        magnitude = sum(np.nansum(abs(g[0] * p)) for g, p in pairs)
        self.noise = float(unit * (magnitude + np.abs(values[0])) + np.abs(values[1] - values[0]))
        self.size = max((np.abs(g[0]).max(initial=0.0) for g in grads), default=0.0)

    def inside(self, position: int) -> bool:
        """Whether the array at this position is a gradient, of an array of theta."""
        return 0 < position <= len(self.inputs.theta)

    def closed(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """The arrays, by position, with zeros at the open entries."""
        return [np.where(o, 0.0, a) for o, a in zip(self.open, arrays, strict=True)]

    def _at_moved_inputs(self, seed: int) -> list[np.ndarray]:
        """The stacks, with every float moved up or down by signs drawn from the seed."""
        random = np.random.default_rng(seed)
        far = (self.unit, max(self.roundoff, FAR))
        again = (gradient_of(self.call, moved(self.inputs, u, random)) for u in far)
        rows = [self.centre, *map(calls.listed, again)]
        return self.closed([np.stack(leaves) for leaves in zip(*rows, strict=True)])

    def moved_stacks(self, position: int) -> Iterator[np.ndarray]:
        """An array of `stacks`, again and again with its inputs moved by other signs."""
        return (self._moved(seed)[position] for seed in range(MOVES))

    def _directions(self, tied: bool) -> list[np.ndarray]:
        """For each array of theta a direction of its length: half along the gradient, where a wrong
        factor shows most, half at random, where everything else does. `tied`: one that keeps
        entries of equal size so; zero where there are none."""
        random, directions = np.random.default_rng(1), []
        for j, length in enumerate(self.norms, 1):
            gradient = self.stacks[j][0]
            v = np.where(self.open[j], 0.0, random.standard_normal(gradient.shape))
            along = gradient / (norm(gradient) or 1.0)
            v *= 1 if (v * along).sum() >= 0 else -1  # they must not cancel
            v = v / (norm(v) or 1.0) + along
            v = together_where_tied(v, np.asarray(self.inputs.theta[j - 1])) if tied else v
            directions.append(length * v / (norm(v) or 1.0))
        return directions

    def along(self, positions: Collection[int], first: float, tied: bool) -> Slope:
        """The slope where the arrays at these positions move along their directions."""
        moving = [v if j in positions else 0 * v for j, v in enumerate(self.directions(tied), 1)]
        return self.slope(moving, first)

    def slope(self, directions: list[np.ndarray], first: float) -> Slope:
        """The slope of f along the directions, one per array of theta, from a step of `first`.

        Its error is at most four times the last correction, the gap between the slopes from the
        right and from the left, and how far their mean is from it (where f'' jumps, the central
        slope errs by O(h), the other two don't), and the rounding of f over h.
        """
        h = first * 0.5 ** np.arange(LEVELS)
        f = partial(calls.run, calls.evaluate, self.call)
        plus, minus = _on_both_sides(f, self.inputs, directions, h)
        centre, noise = float(self.centre[0]), self.noise + self.unit * np.abs(plus - minus).max()
        rounding = 8 * noise / h[-1]
        value, error = _extrapolate((plus - minus) / (2 * h), 2)
        right, right_error = _extrapolate((plus - centre) / h, 1)
        left, left_error = _extrapolate((centre - minus) / h, 1)
        # A kink within the last step moves every central slope alike; the two sides then differ.
        gap = abs(right - left)
        kink = not gap <= 8 * (rounding + right_error + left_error)
        skew = abs(value - (left + right) / 2)
        return Slope(value, 4 * (error + gap + skew) + rounding, left, right, kink)


def moved(arrays: Any, u: float, random: np.random.Generator) -> Any:
    """The tree of arrays, every float moved up or down by the roundoff u. Values of equal size move
    alike, so that no tie is broken.
    """
    if u == 0:
        return arrays
    odd = 2 * random.integers(1, 2**62, dtype=np.uint64) + np.uint64(1)

    def move(a: Any) -> np.ndarray:
        a = np.asarray(a)
        mixed = np.atleast_1d(np.abs(a.astype(np.float64))).view(np.uint64).reshape(a.shape) * odd
        up = (mixed >> np.uint64(60)) & np.uint64(1)
        return (np.where(up, 1 + u, 1 - u) * a).astype(a.dtype)

    return calls.map_floats(move, arrays)


def gradient_of(call: Call, inputs: Inputs) -> tuple[Any, list[Any], dict[str, Any]]:
    """What `differentiate` gives; by differences where autodiff can't take the call: NumPy's
    functions, callbacks, a loop of unknown length."""
    if found := calls.attempt(calls.run, calls.differentiate, call, inputs):
        return found
    traced, _ = calls.traced(calls.evaluate, call, inputs)
    f: Any = partial(calls.run, calls.evaluate, call) if traced else call
    value, outputs = f(inputs)
    slopes = [_entry_slopes(f, inputs, j) for j in range(len(inputs.theta))]
    return value, slopes, outputs


def _entry_slopes(f: Function, inputs: Inputs, j: int) -> np.ndarray:
    """The slopes of f along every entry of its array j."""
    theta = inputs.theta
    slopes = np.zeros(theta[j].shape)
    typical = norm(theta[j]) / max(slopes.size, 1) ** 0.5 or 1.0
    for index in np.ndindex(slopes.shape):
        h = 2.0**-7 * max(abs(float(theta[j][index])), typical) * 0.5 ** np.arange(LEVELS)
        plus, minus = _on_both_sides(f, inputs, along_entry(theta, j, index), h)
        slopes[index], _ = _extrapolate((plus - minus) / (2 * h), 2)
    return slopes


def _on_both_sides(f: Function, inputs: Inputs, directions: list[Any], steps: np.ndarray) -> Any:
    """f at the steps along the directions, and at their opposites."""

    def at(step: float) -> Any:
        pairs = zip(inputs.theta, directions, strict=True)
        theta = [(np.asarray(p) + step * v).astype(p.dtype) for p, v in pairs]
        return f(inputs._replace(theta=theta))[0]

    return np.array([[at(s) for s in steps], [at(-s) for s in steps]], np.float64)


def along_entry(theta: list[Any], j: int, index: tuple[int, ...]) -> list[np.ndarray]:
    """The direction along one entry of the array j of theta."""
    directions = [np.zeros(p.shape) for p in theta]
    directions[j][index] = 1.0
    return directions


def together_where_tied(direction: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """The direction, changed so that entries of theta that are of equal size stay so: each gets
    their mean. Zeros stay where they are. Zero where no entries are tied.
    """
    sign = np.sign(theta).ravel()
    _, group, count = np.unique(np.abs(theta), return_inverse=True, return_counts=True)
    sums = np.bincount(group.ravel(), sign * direction.ravel(), len(count))
    together = (sign * (sums / count)[group.ravel()]).reshape(theta.shape)
    return together if count.max(initial=0) > 1 or not sign.all() else 0 * together


def norm(a: Any) -> float:
    """The Euclidean norm of an array of any shape."""
    # Not by BLAS, whose threads take longer to wake than this takes.
    return float(np.sqrt(np.square(np.asarray(a)).sum()))


def _extrapolate(slopes: np.ndarray, order: int) -> tuple[float, float]:
    """Slopes at h, h/2, h/4, ..., whose error is a series in h^order, taken to h = 0; and the
    last correction."""
    last, factor = slopes, 1
    while len(slopes) > 1:
        factor *= 2**order
        last, slopes = slopes, slopes[1:] + (slopes[1:] - slopes[:-1]) / (factor - 1)
    return float(slopes[0]), float(abs(slopes[0] - last[-1]))


ARITHMETIC = {
    "add", "add_any", "sub", "mul", "div", "pow", "integer_pow", "square", "sqrt", "rsqrt",
    "cbrt", "exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erfc",
    "erf_inv", "lgamma", "digamma", "sin", "cos", "tan", "asin", "acos", "atan", "sinh",
    "cosh", "asinh", "acosh", "atanh", "reduce_sum", "reduce_prod", "cumsum", "cumprod",
    "cumlogsumexp", "dot_general", "conv_general_dilated", "scatter-add"
}  # fmt: skip
"""The primitives that round. What only moves or selects numbers keeps ties as they are."""


def rounding_of(program: Any, call: Call, inputs: Inputs, u: float) -> dict[str, np.ndarray]:
    """For each array that program(call, inputs) returns, by its name in the tree, how far its
    entries move, at most, in `MOVES` runs with roundoff u. Empty where the program can't be traced.
    """
    jaxpr, form = calls.traced(program, call, inputs)
    if jaxpr is None:
        return {}
    random = np.random.default_rng(0)

    def run(u: float) -> list[np.ndarray]:
        at = jax.tree.leaves(moved(inputs, u, random))
        results = calls.interpreted(jaxpr, at, partial(_rounded, u, random))
        return [np.asarray(a, np.float64) if differentiable(a) else np.zeros(()) for a in results]

    centre = run(0.0)
    runs = [run(u) for _ in range(MOVES)]
    away = [np.max([np.abs(r[i] - c) for r in runs], 0) for i, c in enumerate(centre)]
    return calls.named_leaves(jax.tree.unflatten(form, away))


def _rounded(u: float, random: np.random.Generator, equation: Any, operands: list[Any]) -> Any:
    """The results of an equation, moved by u where it rounds."""
    results = calls.bound(equation, operands)
    return moved(results, u, random) if equation.primitive.name in ARITHMETIC else results
