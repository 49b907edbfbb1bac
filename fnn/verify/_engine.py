"""The comparison behind every check of a gradient: the tree under test, leaf by leaf, beside
autodiff of the reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.verify import _arrays as arrays, _call as calls, _checks as checking
from fnn.verify._arrays import Function
from fnn.verify._call import Call, Inputs, attempt
from fnn.verify._causes import NARROW, Wrong, likely_cause, misshapen_cause, swapped
from fnn.verify._checks import Tested
from fnn.verify._leaf import FLOOR, Check, Checks, Leaf, joined, unfit
from fnn.verify._reference import Reference
from fnn.verify._report import Report, blind_spots
from fnn.verify._rounding import Pair

Task = tuple[Function, Any]
"""A rule of `Call`, and the user's function that it is given."""


def compare(name: str, objective: Task, gradient: Task, theta: Any, *args: Any) -> Report:
    """The tree that `gradient` gives, checked leaf by leaf against autodiff of `objective`, which
    gives a scalar and a list of arrays. The tree has the keys of theta, and may have another, for
    these arrays.

    Where a check fails and one of the two computes in less than float64, whatever it is given,
    the checks are repeated with bounds that follow the dtype inside.
    """
    call, inputs = calls.split(*objective, theta, args)
    tested_call = call.of(*gradient)
    dtype = arrays.coarsest_dtype(arrays.floats(inputs))
    with arrays.at_highest_precision():
        native = calls.run(calls.evaluate, tested_call, inputs)
        autodiff = attempt(calls.run, calls.differentiate, call, inputs)
    with calls.float64_section([call, tested_call], inputs):
        reference = _reference(call, inputs, arrays.unit_roundoff(dtype))
        wide, refusal = _in_float64(tested_call, reference)
        fitting, misfits = _fit(native, call.arguments(inputs)[0], call.kinds, reference)
        tested = [_tested(n, at, leaf, wide.get(n), refusal) for n, at, leaf in fitting]
        tested = [checking.judge(leaf, reference) for leaf in tested]
        own = autodiff and reference.closed(calls.listed(autodiff))
        leaves = Comparison(tested_call, inputs, reference, own, tested).leaves()
    leaves = [swapped(leaf, leaves) for leaf in leaves]
    return Report(name, (*leaves, *misfits), str(dtype), blind=blind_spots(inputs))


@dataclass(frozen=True)
class Comparison(Pair):
    """The leaves of the call under test at the user's inputs, beside their reference."""

    tested: list[Tested]

    def leaves(self) -> list[Leaf]:
        """Each leaf with its checks, its verdict and the likely cause of an error."""
        checks = self.checks()
        # Where the reference is confirmed, and matched in float64, nothing is left to explain.
        if all(c.float64.verdict == "pass" and c.differences.verdict != "fail" for c in checks):
            return self._decided(checks)
        custom = calls.custom_rules(self.reference.call, self.reference.inputs)
        narrow = self._narrowed()
        return narrow._decided(narrow.checks(), custom) if narrow else self._decided(checks, custom)

    def checks(self) -> list[Checks]:
        """The three checks of each leaf."""
        own = self.autodiff or [stack[0] for stack in self.reference.stacks]
        differences = checking.differences_checks(self.tested, self.reference)
        found = []
        for leaf, slope in zip(self.tested, differences, strict=True):
            float64 = checking.float64_check(leaf, self.reference)
            # What is right in float64 shows its own rounding at each entry.
            level = FLOOR if float64.verdict == "pass" else 1.0
            native = checking.native_check(leaf, self.reference, own[leaf.position], level)
            found.append(Checks(float64, native, slope))
        return found

    def _narrowed(self) -> "Comparison | None":
        """The comparison with bounds of the dtype inside, where that is less than both the
        inputs' and the reference's: there is a cast."""
        reference = self.reference
        own = calls.coarsest_roundoff(reference.call, reference.inputs)
        coarsest = max(own, calls.coarsest_roundoff(self.call, reference.inputs))
        if coarsest <= max(arrays.ROUNDOFF, reference.unit):
            return None
        roundoff, unit = max(reference.roundoff, own), max(reference.unit, own)
        inside = next((n for n in NARROW if arrays.unit_roundoff(n) == coarsest), "less")
        return replace(
            self,
            tested=[
                leaf._replace(wide=None, reason=f"computes in {inside}") for leaf in self.tested
            ],
            reference=Reference(reference.call, reference.inputs, roundoff, unit),
        )

    def _decided(self, checks: list[Checks], custom: Sequence[str] = ()) -> list[Leaf]:
        pairs = zip(self.tested, checks, strict=True)
        return [self._leaf(leaf, self.beside(leaf, found), custom) for leaf, found in pairs]

    def _leaf(self, tested: Tested, checks: Checks, custom: Sequence[str]) -> Leaf:
        """The leaf, decided."""
        expected = self.reference.stacks[tested.position][0]
        verdict, note, index = checking.decide(tested, self.reference, checks, custom)
        if verdict == "fail":
            inside = self.reference.inside(tested.position)
            theta = self.inputs.theta[tested.position - 1] if inside else 0.0
            right = checks.float64.verdict == "pass"
            wrong = Wrong(
                tested.best if checks.float64.verdict == "fail" else tested.native,
                expected,
                np.asarray(theta, np.float64),
                calls.axis_lengths(self.inputs),
                [a for a in self.inputs.rest if jnp.issubdtype(a.dtype, jnp.integer)],
                [n for n in NARROW if right or tested.reason.endswith(f" {n}")],
            )
            note = joined(note, likely_cause(wrong))
        if tested.opened.verdict == "fail":
            checks = checks._replace(float64=Check("fail", np.inf, 0.0))
        elif tested.opened.verdict:
            note = ""
        verdict, note = tested.opened.verdict or verdict, joined(tested.opened.note, note)
        index = tested.opened.at or index
        return Leaf(tested.name, verdict, *checks, index, note, tested.best, expected)


def _reference(call: Call, inputs: Inputs, roundoff: float) -> Reference:
    """The reference in float64; in the dtype of the inputs for a function that refuses float64,
    such as a loop that carries a float32 array."""
    if found := attempt(Reference, call, arrays.widened(inputs), roundoff):
        return found
    with jax.enable_x64(False):
        return Reference(call, inputs, roundoff, unit=roundoff)


def _in_float64(call: Call, reference: Reference) -> tuple[dict[str, np.ndarray], str]:
    """The leaves of the call under test in float64, by name; and why there are none."""
    if reference.unit > arrays.ROUNDOFF:
        return {}, "the reference raises"
    try:
        wide = arrays.named_leaves(calls.run(calls.evaluate, call, reference.inputs))
    except TimeoutError:
        raise
    except Exception as error:  # a kernel for float32 may raise anything
        return {}, f"raises {type(error).__name__}"
    return {name: np.asarray(leaf) for name, leaf in wide.items()}, "absent"


def _tested(name: str, position: int, native: np.ndarray, found: Any, refusal: str) -> Tested:
    """A leaf under test, with itself as `found` in float64, where that is of this dtype."""
    if found is not None:
        narrow = arrays.unit_roundoff(found.dtype) > arrays.ROUNDOFF
        refusal = f"gives {found.dtype}" if narrow or found.shape != native.shape else ""
    return Tested(name, position, native, None if refusal else found, refusal)


def _fit(tree: Any, theta: Any, kinds: Any, reference: Reference) -> tuple[list[Any], list[Leaf]]:
    """The leaves of the gradient `tree` that have their parameter's path, shape and dtype, as
    (name, position in the reference's stacks, array); and failed leaves for the others."""
    got, given = arrays.named_leaves(tree), arrays.named_leaves(theta)
    others = {name: leaf for name, leaf in got.items() if name.partition(".")[0] not in theta}
    positions, misfits = _positions(others, [*zip(given, kinds, strict=False)], reference)
    fitting: list[Any] = []
    for name, position in positions.items():
        if name not in got:
            misfits.append(unfit(name, "only the reference has it"))
            continue
        leaf = np.asarray(got[name])
        array, shape = np.asarray(leaf, np.float64), reference.centre[position].shape
        dtype = given[name].dtype if name in given else leaf.dtype
        if (leaf.shape, leaf.dtype) != (shape, dtype):
            note = f"expected {dtype}{shape}, got {leaf.dtype}{leaf.shape}"
            right = {n: reference.stacks[i][0] for n, i in positions.items()}
            cause = misshapen_cause(array, right.pop(name), right)
            misfits.append(unfit(name, joined(note, cause)))
        elif leaf.size:
            fitting.append((name, position, array))
    unknown = got.keys() - given.keys() - others.keys()
    misfits += [unfit(name, "only the gradient under test has it") for name in sorted(unknown)]
    return fitting, misfits or _other_trees(tree, theta)


def _positions(
    others: dict[str, Any], given: list[tuple[str, str]], reference: Reference
) -> tuple[dict[str, int], list[Leaf]]:
    """The position in the reference's stacks of each leaf that should be there, by its name: what
    is returned behind theta; and a failed leaf where that is of another number."""
    inside = [name for name, kind in given if kind == "theta"]
    first, outputs = 1 + len(inside), [n for n, a in others.items() if arrays.differentiable(a)]
    positions = {name: i for i, name in enumerate(inside, 1)}
    if not others or len(outputs) == (number := len(reference.stacks) - first):
        return {n: i for i, n in enumerate(outputs, first)} | positions, []
    name = next(iter(others)).partition(".")[0]
    return positions, [unfit(name, f"expected {number} arrays, got {len(outputs)}")]


def _other_trees(tree: Any, theta: Any) -> list[Leaf]:
    """The parts of theta that have another tree than the gradient. With integers among the
    parameters, whatever stands in their place is right."""
    form = lambda part: str(jax.tree.structure(part))
    real = lambda part: all(map(arrays.differentiable, jax.tree.leaves(part)))
    return [
        unfit(key, f"expected the tree {form(part)}, got {form(tree[key])}")
        for key, part in theta.items()
        if form(part) != form(tree[key]) and real(part)
    ]
