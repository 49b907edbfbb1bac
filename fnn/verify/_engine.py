"""The comparison behind every check of a gradient: the tree under test, leaf by leaf, beside
autodiff of the reference.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.verify import _arrays as arrays, _call as calls, _checks as checking
from fnn.verify._arrays import Function
from fnn.verify._call import Call, Inputs, attempt
from fnn.verify._causes import likely_cause, misshapen_cause, swapped
from fnn.verify._checks import Tested
from fnn.verify._leaf import FLOOR, Check, Checks, Leaf, joined, measure, unfit
from fnn.verify._open import judge
from fnn.verify._reference import Reference
from fnn.verify._report import Report, blind_spots
from fnn.verify._rounding import Rounding

Task = tuple[Function, Any]
"""A rule of `Call`, and the user's function that it is given."""


def compare(name: str, objective: Task, gradient: Task, theta: Any, *args: Any) -> Report:
    """The tree that `gradient` gives, checked leaf by leaf against autodiff of `objective`.

    Where a check fails and one of the two computes in less than float64, whatever it is given,
    the checks are repeated with bounds that follow the dtype inside.
    """
    call, inputs = calls.split(*objective, theta, args)
    tested_call = call.of(*gradient)
    dtype = arrays.coarsest_dtype((*inputs.theta, *inputs.floats))
    with arrays.at_highest_precision():
        native = calls.run_gradient(tested_call, inputs)
        autodiff = _by_autodiff(call, inputs)
    with calls.float64_section([call, tested_call], inputs):
        reference = _reference(call, inputs, arrays.unit_roundoff(dtype))
        fitting, misfits = _fitting(native, call.arguments(inputs)[0], call.kinds, reference)
        tested = [judge(leaf, reference) for leaf in _with_float64(fitting, tested_call, reference)]
        autodiff = autodiff and reference.closed(autodiff)
        leaves = Comparison(tested_call, inputs, tested, reference, autodiff).leaves()
    leaves = [swapped(leaf, leaves) for leaf in leaves]
    return Report(name, (*leaves, *misfits), str(dtype), blind=blind_spots(inputs))


@dataclass(frozen=True)
class Comparison:
    """The leaves of the call under test at the user's inputs, beside their reference; `autodiff`
    is the reference in the dtype that the user runs, or None.
    """

    call: Call
    inputs: Inputs
    tested: list[Tested]
    reference: Reference
    autodiff: list[np.ndarray] | None

    def leaves(self) -> list[Leaf]:
        """Each leaf with its checks, its verdict and the likely cause of an error."""
        checks = self.checks()
        if not any(found.unsettled for found in checks):
            return self._decided(checks)
        custom = calls.custom_rules(self.reference.call, self.reference.inputs)
        if narrow := self._narrowed():
            return narrow._decided(narrow.checks(), custom)
        return self._decided(checks, custom)

    def checks(self) -> list[Checks]:
        """The three checks of each leaf."""
        own = self.autodiff or [stack[0] for stack in self.reference.stacks]
        differences = checking.differences_checks(self.tested, self.reference)
        found = []
        for leaf, slope in zip(self.tested, differences, strict=True):
            float64 = checking.float64_check(leaf, self.reference)
            native = checking.native_check(leaf, self.reference, own[leaf.position])
            if float64.verdict == "pass" and native.verdict != "fail":
                entry = checking.entry_check(leaf, self.reference, own[leaf.position])
                native = entry if entry.verdict == "fail" else native
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
        reason = f"computes in {_name_of(coarsest)}"
        return replace(
            self,
            tested=[leaf._replace(wide=None, reason=reason) for leaf in self.tested],
            reference=Reference(reference.call, reference.inputs, roundoff, unit),
        )

    def _decided(self, checks: list[Checks], custom: Sequence[str] = ()) -> list[Leaf]:
        rounding = Rounding(self.call, self.inputs, self.reference, self.autodiff)
        pairs = zip(self.tested, checks, strict=True)
        return [self._leaf(leaf, rounding.beside(leaf, found), custom) for leaf, found in pairs]

    def _leaf(self, tested: Tested, checks: Checks, custom: Sequence[str]) -> Leaf:
        """The leaf, decided."""
        expected = self.reference.stacks[tested.position][0]
        inside = 0 < tested.position <= len(self.inputs.theta)
        entries = checks.float64.entries or (measure(tested.best, expected, FLOOR)[1],)
        slopes = (
            (at, checking.entry_slope(tested, self.reference, at) if inside else None)
            for at in entries
        )
        verdict, note, index = checking.decide(tested, expected, checks, slopes, custom)
        if verdict == "fail":
            got = tested.best if checks.float64.verdict == "fail" else tested.native
            theta = self.inputs.theta[tested.position - 1] if inside else 0.0
            theta, lengths = np.asarray(theta, np.float64), calls.axis_lengths(self.inputs)
            integers = [a for a in self.inputs.others if jnp.issubdtype(a.dtype, jnp.integer)]
            cause = likely_cause(got, expected, theta, lengths, integers)
            note = joined(note, cause)
        if tested.opened:
            open = self.reference.open[tested.position]
            verdict, note, index = tested.opened.beside(verdict, note, index, open)
            if tested.opened.wrong:
                checks = checks._replace(float64=Check("fail", np.inf, 0.0))
        return Leaf(tested.name, verdict, *checks, index, note, tested.best, expected)


def _by_autodiff(call: Call, inputs: Inputs) -> list[np.ndarray] | None:
    """The value, the gradient and the outputs in the dtype that the user runs; None where
    autodiff can't take the call."""
    found = attempt(calls.run, calls.differentiate, call, inputs)
    return found and [np.asarray(a, np.float64) for a in (found[0], *found[1], *found[2])]


_latest: list[Reference] = []
"""The reference of the last check: the next one of the same function and inputs takes it again."""


def _reference(call: Call, inputs: Inputs, roundoff: float) -> Reference:
    """The reference in float64; in the dtype of the inputs for a function that refuses float64,
    such as a loop that carries a float32 array."""
    wide = arrays.widened(inputs)
    for known in _latest:
        same = (known.call, known.roundoff) == (call, roundoff) and calls.same_arrays(
            known.inputs, wide
        )
        if same and calls.traced(call, inputs):
            return known
    if found := attempt(Reference, call, wide, roundoff):
        _latest[:] = [found]
        return found
    with jax.enable_x64(False):
        return Reference(call, inputs, roundoff, unit=roundoff)


def _name_of(roundoff: float) -> str:
    names = ("float32", "float16", "bfloat16")
    return next((n for n in names if arrays.unit_roundoff(n) == roundoff), "less than float64")


def _with_float64(
    fitting: Mapping[str, tuple[int, np.ndarray]], call: Call, reference: Reference
) -> list[Tested]:
    """The leaves under test, each with itself computed in float64, where that is possible."""
    got: dict[str, Any] = {}
    refusal = "the reference raises"
    if reference.unit <= arrays.ROUNDOFF:
        try:
            got, refusal = arrays.named_leaves(calls.run_gradient(call, reference.inputs)), "absent"
        except TimeoutError:
            raise
        except Exception as error:  # a kernel for float32 may raise anything
            refusal = f"raises {type(error).__name__}"
    leaves = []
    for name, (position, native) in fitting.items():
        wide, reason = None, refusal
        if name in got:
            leaf = np.asarray(got[name])
            other = arrays.unit_roundoff(leaf.dtype) > arrays.ROUNDOFF or leaf.shape != native.shape
            wide, reason = (None, f"gives {leaf.dtype}") if other else (leaf, "")
        leaves.append(Tested(name, position, native, wide, reason))
    return leaves


def _positions(
    got: Mapping[str, Any], theta: Any, kinds: tuple[str, ...], reference: Reference
) -> dict[str, int]:
    """The position in the reference's stacks of each leaf that should be there, by its name: what
    is returned, then theta."""
    outputs = [name for name in got if _is_output(name) and arrays.differentiable(got[name])]
    behind = range(len(reference.inputs.theta) + 1, len(reference.stacks))
    positions = dict(zip(outputs, behind, strict=False)) | ({"value": 0} if "value" in got else {})
    given = zip(arrays.named_leaves(theta), kinds, strict=False)
    inside = [name for name, kind in given if kind == "theta"]
    return positions | {name: i for i, name in enumerate(inside, 1)}


def _is_output(name: str) -> bool:
    return name == "y" or name.startswith("y.")


def _fitting(
    tree: Any, theta: Any, kinds: tuple[str, ...], reference: Reference
) -> tuple[dict[str, tuple[int, np.ndarray]], list[Leaf]]:
    """The leaves of the gradient `tree` that have their parameter's path, shape and dtype, as
    (position in the reference's stacks, array) by name; and failed leaves for the others."""
    got, given = arrays.named_leaves(tree), arrays.named_leaves(theta)
    positions = _positions(got, theta, kinds, reference)
    fitting, misfits = {}, []
    expected = len(reference.stacks) - 1 - len(reference.inputs.theta)
    outputs = sum(_is_output(name) and arrays.differentiable(got[name]) for name in got)
    if "y" in tree and outputs != expected:
        misfits.append(unfit("y", f"expected {expected} arrays, got {outputs}"))
    for name, position in positions.items():
        if name not in got:
            misfits.append(unfit(name, "only the reference has it"))
            continue
        leaf = np.asarray(got[name])
        array = np.asarray(leaf, np.float64)
        shape = reference.stacks[position][0].shape
        dtype = given[name].dtype if name in given else leaf.dtype
        if (leaf.shape, leaf.dtype) != (shape, dtype):
            note = f"expected {dtype}{shape}, got {leaf.dtype}{leaf.shape}"
            right = {n: reference.stacks[i][0] for n, i in positions.items()}
            cause = misshapen_cause(array, right.pop(name), right)
            misfits.append(unfit(name, joined(note, cause)))
        elif leaf.size:
            fitting[name] = position, array
    for name in got:
        if name not in {**given, **positions} and not _is_output(name):
            misfits.append(unfit(name, "only the gradient under test has it"))
    return fitting, misfits or [*_other_trees(tree, theta)]


def _other_trees(tree: Any, theta: Any) -> Iterator[Leaf]:
    """The parts of theta that have another tree than the gradient. With integers among the
    parameters, whatever stands in their place is right."""
    for key, part in theta.items():
        wanted, found = str(jax.tree.structure(part)), str(jax.tree.structure(tree[key]))
        if wanted != found and all(map(arrays.differentiable, jax.tree.leaves(part))):
            yield unfit(key, f"expected the tree {wanted}, got {found}")
