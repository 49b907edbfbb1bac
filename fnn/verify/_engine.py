"""The comparison behind every check of a gradient: the tree under test, leaf by leaf, beside
autodiff of the reference.
"""

import inspect
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import repeat
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.verify import _call as calls, _checks as checking, _leaf
from fnn.verify._call import Call, Function, Inputs, attempt, outcome
from fnn.verify._causes import NARROW, UNKNOWN, Wrong, likely_cause, misshapen_cause, swapped
from fnn.verify._checks import Tested
from fnn.verify._leaf import FLOOR, TOLERANCE, Check, Checks, Leaf, compared, joined, same, unfit
from fnn.verify._reference import Reference, rounding_of
from fnn.verify._report import Report, blind_spots

LINEAR = 1e-6
"""Relative. What is not multiplied by the cotangent differs by about its own size."""
Task = tuple[Function, Any]
"""A rule of `Call`, and the user's function that it is given."""


def compare(name: str, objective: Task, gradient: Task, theta: Any, *args: Any) -> Report:
    """The tree that `gradient` gives, checked leaf by leaf against autodiff of `objective`, which
    gives a scalar and arrays by their names. The tree has the keys of theta, and these arrays too
    where there are any.

    Where a check fails and one of the two computes in less than float64, whatever it is given,
    the checks are repeated with bounds that follow the dtype inside.
    """
    call, inputs = calls.split(*objective, theta, args)
    tested_call = call.of(*gradient)
    dtype = calls.coarsest_dtype(calls.floats(inputs))
    with calls.at_highest_precision():
        native = calls.run(calls.evaluate, tested_call, inputs)
        autodiff = attempt(calls.run, calls.differentiate, call, inputs)
    with calls.float64_section([call, tested_call], inputs):
        wide = calls.unit_roundoff(dtype) > calls.ROUNDOFF
        call, tested_call = (c._replace(wide=wide) for c in (call, tested_call))
        reference = _reference(call, inputs, calls.unit_roundoff(dtype))
        fitting, misfits = _fit(native, call.arguments(inputs)[0], call.kinds, reference)
        own = reference.closed(calls.listed(autodiff) if autodiff else reference.centre)
        tested = _with_float64(fitting, tested_call, reference, own)
        leaves = Comparison(tested_call, inputs, reference, tested).leaves()
    leaves = [swapped(leaf, leaves) for leaf in leaves]
    place = _up_to([a for a, t in zip(leaves, tested, strict=True) if reference.inside(t.position)])
    return Report(name, (*leaves, *misfits), str(dtype), place, blind=blind_spots(inputs))


def _up_to(leaves: list[Leaf]) -> str:
    """Where the wrong ones of several gradients end, if all that follow are right."""
    wrong = [leaf.verdict == "fail" for leaf in leaves]
    n = wrong.count(True)
    told = 1 < n < len(leaves) - 1 and all(wrong[:n])
    return f"wrong up to {leaves[n - 1].name}, right from {leaves[n].name} on" if told else ""


@dataclass(frozen=True, eq=False)
class Comparison:
    """The call under test at the user's inputs, beside its reference, and how far rounding inside
    each moves it.

    Where float64 alone refuses a leaf, autodiff may cancel, far out in a function's tail, or the
    rule may where autodiff does not. How much each does shows when every step of it is moved by a
    roundoff.
    """

    call: Call
    inputs: Inputs
    reference: Reference
    tested: list[Tested]

    def leaves(self) -> list[Leaf]:
        """Each leaf with its checks, its verdict and the likely cause of an error."""
        at, checks = self, self.checks()
        # Where the reference is confirmed, and matched in float64, nothing is left to explain.
        if any(c.float64.verdict != "pass" or c.differences.verdict == "fail" for c in checks):
            at = self._narrowed()
            checks = checks if at is self else at.checks()
        pairs = zip(at.tested, checks, strict=True)
        return [at._leaf(leaf, at.beside(leaf, found)) for leaf, found in pairs]

    def checks(self) -> list[Checks]:
        """The three checks of each leaf."""
        tested, reference = self.tested, self.reference
        float64 = [checking.float64_check(leaf, reference) for leaf in tested]
        # What is right in float64 shows its own rounding at each entry.
        levels = [FLOOR if check.verdict == "pass" else 1.0 for check in float64]
        native = map(checking.native_check, tested, repeat(reference), levels)
        return [*map(Checks, float64, native, checking.differences_checks(tested, reference))]

    def _narrowed(self) -> "Comparison":
        """The comparison, with bounds of the dtype inside where that is less than both the inputs'
        and the reference's: there is a cast."""
        reference = self.reference
        own = calls.coarsest_roundoff(reference.call, reference.inputs)
        coarsest = max(own, calls.coarsest_roundoff(self.call, reference.inputs))
        if coarsest <= max(calls.ROUNDOFF, reference.unit):
            return self
        roundoff, unit = max(reference.roundoff, own), max(reference.unit, own)
        inside = next((n for n in NARROW if calls.unit_roundoff(n) == coarsest), "less")
        reason = f"computes in {inside}"
        narrower = Reference(reference.call, reference.inputs, roundoff, unit)
        tested = [leaf._replace(wide=None, reason=reason) for leaf in self.tested]
        return replace(self, tested=tested, reference=narrower)

    def _leaf(self, tested: Tested, checks: Checks) -> Leaf:
        """The leaf, decided."""
        custom = partial(calls.custom_rules, self.reference.call, self.reference.inputs)
        verdict, note, index = checking.decide(tested, self.reference, checks, custom)
        if verdict == "fail":
            right = checks.float64.verdict == "pass"
            got = tested.best if checks.float64.verdict == "fail" else tested.native
            beside, lengths = self._beside(tested), calls.axis_lengths(self.inputs)
            integers = [a for a in self.inputs.rest if jnp.issubdtype(a.dtype, jnp.integer)]
            narrow = [n for n in NARROW if right or tested.reason.endswith(f" {n}")]
            wrong = Wrong(got, tested.expected, beside, lengths, integers, narrow)
            cause, why = likely_cause(wrong), self._not_linear(tested)
            note = joined(note, cause.replace(UNKNOWN, "") if why else cause, why)
        opened, why, at = tested.opened
        if opened == "fail":
            checks = checks._replace(float64=Check("fail", np.inf, 0.0))
        note = joined(why, "" if opened and verdict != "fail" else note)
        verdict, index = opened or verdict, at or index
        return Leaf(tested.name, verdict, *checks, index, note, tested.best, tested.expected)

    @property
    def _by(self) -> str:
        """What the call is given beside theta: "dy", "target" or "args"."""
        return [*inspect.signature(self.reference.call.rule).parameters][2]

    def _beside(self, leaf: Tested) -> dict[str, np.ndarray]:
        """What the leaf's entries may be made of, by name."""
        rest, own = calls.floats(self.inputs.rest), self.reference.inside(leaf.position)
        found = {f"{self._by}[{i}]" if i else self._by: a for i, a in enumerate(rest[:4])}
        found = {"x": self.inputs.theta[leaf.position - 1], **found} if own else found
        fits = {n: attempt(np.broadcast_to, a, leaf.native.shape) for n, a in found.items()}
        return {n: np.asarray(a, np.float64) for n, a in fits.items() if a is not None}

    def _not_linear(self, leaf: Tested) -> str:
        """Words for a leaf that is no multiple of the cotangent, where there is one."""
        inputs = self.reference.inputs
        if self._by != "dy" or leaf.wide is None or not self.reference.inside(leaf.position):
            return ""
        # Whatever cancels in it, -2 dy rounds as dy does.
        doubled = inputs._replace(rest=calls.map_floats(lambda a: -2 * a, inputs.rest))
        got = calls.named_leaves(attempt(calls.run, calls.evaluate, self.call, doubled))
        words = "not linear in dy: something in it is not multiplied by the cotangent"
        return "" if same(-2 * leaf.wide, got.get(leaf.name, -2 * leaf.wide), LINEAR) else words

    @lru_cache(maxsize=8)  # noqa: B019
    def of(self, program: Function, native: bool = False) -> dict[str, np.ndarray]:
        """How far what the program gives moves, in float64 or in the dtype that the user runs."""
        call = self.reference.call if program is calls.differentiate else self.call
        inputs = self.inputs if native else self.reference.inputs
        unit = self.reference.roundoff if native else calls.ROUNDOFF
        with jax.enable_x64(not native), calls.at_highest_precision():
            return rounding_of(program, call, inputs, unit)

    def beside(self, leaf: Tested, checks: Checks) -> Checks:
        """The checks, with those that refused the leaf repeated beside this rounding."""
        float64, native, differences = checks
        if leaf.wide is None:
            return checks
        # Whether autodiff in the user's dtype hits the reference, and this is not zero.
        near = leaf.expected.any() and same(leaf.expected, leaf.autodiff, 0.01)
        if float64.verdict == "fail" and (native.verdict == "pass" or not near):
            float64 = self._float64(leaf, float64)
        if float64.verdict != "fail" and native.verdict == "fail":
            native = self._native(leaf, native, float64)
        return Checks(float64, native, differences)

    def _float64(self, leaf: Tested, check: Check) -> Check:
        expected = leaf.expected
        by_position = [*self.of(calls.differentiate).values()]
        away = np.zeros(expected.shape) + self.of(calls.evaluate).get(leaf.name, 0.0)
        away += by_position[leaf.position] if by_position else 0.0
        error, bound = (_leaf.relative(d, expected) for d in (leaf.best - expected, 64 * away))
        least = TOLERANCE if expected.any() else 0.0
        if not ((error <= np.maximum(least, bound)) & np.isfinite(error)).all():
            return check
        needed = float(bound[error > least].max(initial=0.0))
        if needed > 0.1 or not expected.any():
            return Check("skipped", reason=checking.CANCELS)
        return compared(float(error.max()), max(check.bound, needed))

    def _native(self, leaf: Tested, check: Check, float64: Check) -> Check:
        error = np.abs(leaf.native - leaf.expected)
        bound = np.zeros(error.shape) + self.of(calls.evaluate, native=True).get(leaf.name, 0.0)
        # The largest of some moves, eightfold, leaves nothing to chance. A sum that stops growing
        # errs by more: each of its steps by a roundoff, and all to one side.
        if not all(error[i] <= 8 * bound[i] < np.inf for i in check.entries):
            cancels = float64.reason == checking.CANCELS
            return Check("skipped", reason=checking.CANCELS) if cancels else check
        # With many digits, few are lost: the leaf as a whole decides.
        found = checking.native_check(leaf, self.reference, 1.0)
        passes = found.verdict != "fail" and self.reference.roundoff <= 2.0**-12
        return found if passes else Check("skipped", reason=checking.LOSES)


def _reference(call: Call, inputs: Inputs, roundoff: float) -> Reference:
    """The reference in float64; in the dtype of the inputs for a function that refuses float64,
    such as a loop that carries a float32 array."""
    if found := attempt(Reference, call, calls.widened(inputs), roundoff):
        return found
    with jax.enable_x64(False):
        return Reference(call, inputs, roundoff, unit=roundoff)


def _with_float64(
    fitting: list[Any], call: Call, reference: Reference, autodiff: list[np.ndarray]
) -> list[Tested]:
    """The leaves under test, each with itself computed in float64, where that is possible."""
    known = reference.unit <= calls.ROUNDOFF
    got = outcome(calls.run, calls.evaluate, call, reference.inputs) if known else {}
    refusal = "absent" if known else "the reference raises"
    if isinstance(got, Exception):
        got, refusal = {}, f"raises {type(got).__name__}"
    wide = calls.named_leaves(got)
    tested = []
    for name, position, native in fitting:
        leaf, reason = np.asarray(wide.get(name, np.nan)), refusal
        if name in wide:
            fits = leaf.dtype == np.float64 and leaf.shape == native.shape
            reason = "" if fits else f"gives {leaf.dtype}"
        beside = reference.stacks[position][0], autodiff[position]
        one = Tested(name, position, native, *beside, None if reason else leaf, reason)
        tested.append(checking.judge(one, reference))
    return tested


def _fit(tree: Any, theta: Any, kinds: Any, reference: Reference) -> tuple[list[Any], list[Leaf]]:
    """The leaves of the gradient `tree` that have their parameter's path, shape and dtype, as
    (name, position in the reference's stacks, array); and failed leaves for the others."""
    got, given = calls.named_leaves(tree), calls.named_leaves(theta)
    inside = [name for name, kind in zip(given, kinds, strict=False) if kind == "theta"]
    names = [*inside, *reference.outputs]
    right = dict(zip(names, (stack[0] for stack in reference.stacks[1:]), strict=True))
    fitting: list[Any] = []
    misfits = []
    outputs = reference.outputs if tree.keys() - theta.keys() else []
    for name in [*outputs, *inside]:
        if name not in got:
            misfits.append(unfit(name, "only the reference has it"))
            continue
        leaf, shape = np.asarray(got[name]), right[name].shape
        array = np.asarray(leaf, np.float64)
        dtype = given[name].dtype if name in given else leaf.dtype
        if (leaf.shape, leaf.dtype) != (shape, dtype):
            others = {**right}
            cause = misshapen_cause(array, others.pop(name), others)
            note = f"expected {dtype}{shape}, got {leaf.dtype}{leaf.shape}"
            misfits.append(unfit(name, joined(note, cause)))
        elif leaf.size:
            fitting.append((name, 1 + names.index(name), array))
    extra = sorted(got.keys() - given.keys() - {*names})
    foreign = [name for name in extra if calls.differentiable(got[name])]
    misfits += [unfit(name, "only the gradient under test has it") for name in foreign]
    return fitting, misfits or _other_trees(tree, theta)


def _other_trees(tree: Any, theta: Any) -> list[Leaf]:
    """The parts of theta that have another tree than the gradient. With integers among the
    parameters, whatever stands in their place is right."""
    form = lambda part: str(jax.tree.structure(part))
    real = lambda part: all(map(calls.differentiable, jax.tree.leaves(part)))
    odd = [key for key, part in theta.items() if form(part) != form(tree[key]) and real(part)]
    return [unfit(k, f"expected the tree {form(theta[k])}, got {form(tree[k])}") for k in odd]
