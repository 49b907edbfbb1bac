"""The judge: hand-written gradients against autodiff, in float64.

Autodiff is called in this file alone. A check casts its inputs to float64, runs both sides at
the highest matrix-product precision and compares leaf by leaf:

    ||difference|| <= 1e-9 ||reference||,  and the largest |difference| <= 1e-9 max |reference|

Honest gradients differ by about 1e-16, the smallest bugs people plant by 1e-4. Both sides are
relative, so that scaling the loss can't hide a fault, and NaN fails. A reference that is zero
everywhere can't tell a right gradient from a missing one: that is inconclusive.

A check leaves JAX's configuration as it was, and works whether x64 is on or off.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn.base import Array, Layer, Loss, Params

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Leaf:
    """One array of the gradient: its worst entry, and what is to be said of it."""

    name: str
    verdict: str
    relative: float
    index: tuple[Any, ...]
    note: str


@dataclass(frozen=True)
class Report:
    """What a check found. `str(report)` is a table with a line a leaf."""

    subject: str
    leaves: tuple[Leaf, ...]

    @property
    def verdict(self) -> str:
        """ "fail" if a leaf fails, else "inconclusive" if one is, or if there is none."""
        found = {leaf.verdict for leaf in self.leaves} or {"inconclusive"}
        return next(v for v in ("fail", "inconclusive", "pass") if v in found)

    @property
    def worst(self) -> float:
        """The largest relative difference of all leaves."""
        return max((leaf.relative for leaf in self.leaves), default=0.0)

    def raise_for_verdict(self) -> None:
        """Raise AssertionError, with the table, unless the verdict is "pass"."""
        if self.verdict != "pass":
            raise AssertionError(str(self))

    def __str__(self) -> str:
        width = max([len(leaf.name) for leaf in self.leaves] + [4])
        rows = [
            f"  {leaf.name:{width}}  {leaf.relative:9.1e}  {leaf.verdict:12}  {leaf.note}".rstrip()
            for leaf in self.leaves
        ]
        head = f"  {'leaf':{width}}  relative   verdict"
        return "\n".join([f"{self.subject}: {self.verdict}", head, *rows])


def check_layer(layer: Layer, params: Params, x: Array, *, key: Array | None = None) -> Report:
    """A layer's backward against `jax.vjp` of its forward: dparams and dx.

    The cotangent is drawn from `key`: every output counts, none by the same weight.
    """
    return check_vjp(layer.forward, layer.backward, params, x, key=key)


def check_vjp(
    forward: Callable, backward: Callable, params: Params, x: Array, *, key: Array | None = None
) -> Report:
    """forward(params, x) -> (y, residuals) and backward(params, residuals, dy) -> (dparams, dx)
    against `jax.vjp` of the forward."""
    with _judging():
        params, x = _wide(params), _wide(x)
        y, pull, residuals = jax.vjp(forward, params, x, has_aux=True)
        dy = jax.random.normal(jax.random.key(0) if key is None else key, y.shape, y.dtype)
        expected, got = pull(dy), backward(params, residuals, dy)
        return Report("check_vjp", _compare(("dparams", "dx"), got, expected))


def check_loss(loss: Loss, prediction: Array, target: Array) -> Report:
    """A loss's gradient against `jax.grad` of its values, an example at a time."""
    with _judging():
        prediction, target = _wide(prediction), _wide(target)
        expected = jax.grad(lambda p: loss.value(p, target).sum())(prediction)
        got = loss.gradient(prediction, target)
        return Report("check_loss", _compare(("gradient",), (got,), (expected,)))


def check_gradients(
    value_and_grad_fn: Callable, objective_fn: Callable, params: Params, *args: Any
) -> Report:
    """value_and_grad_fn(params, *args) -> (value, grads) against `jax.value_and_grad` of
    objective_fn(params, *args) -> value. The value is checked too."""
    with _judging():
        params, args = _wide(params), _wide(args)
        expected = jax.value_and_grad(objective_fn)(params, *args)
        got = value_and_grad_fn(params, *args)
        return Report("check_gradients", _compare(("value", "grads"), got, expected))


@contextmanager
def _judging():
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        yield


def _wide(tree: Any) -> Any:
    """The tree with its floating-point leaves in float64; integers, booleans and keys as is."""

    def widen(leaf):
        floating = jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating)
        return jnp.asarray(np.asarray(leaf), jnp.float64) if floating else leaf

    return jax.tree.map(widen, tree)


def _compare(names: tuple[str, ...], got: Any, expected: Any) -> tuple[Leaf, ...]:
    def leaves(tree):
        named = dict(zip(names, tree, strict=True))
        flat, _ = jax.tree_util.tree_flatten_with_path(named)
        return {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in flat}

    got, expected = leaves(got), leaves(expected)
    missing = [
        Leaf(name, "fail", np.inf, (), f"only the {side} has it")
        for name in expected.keys() ^ got.keys()
        for side in [("reference" if name in expected else "gradient under test")]
    ]
    both = [_judge(name, got[name], expected[name]) for name in expected if name in got]
    return tuple(both + missing)


def _judge(name: str, got: Any, expected: Any) -> Leaf:
    if jnp.shape(got) != expected.shape or got.dtype != expected.dtype:
        note = f"expected {expected.dtype}{expected.shape}, got {got.dtype}{jnp.shape(got)}"
        return Leaf(name, "fail", np.inf, (), note)
    got, expected = np.asarray(got), np.asarray(expected)
    if expected.size == 0:
        return Leaf(name, "pass", 0.0, (), "empty")
    difference = np.abs(got - expected)
    index = np.unravel_index(np.argmax(difference), difference.shape)
    if not difference.any() and not expected.any():
        return Leaf(name, "inconclusive", 0.0, index, "the reference is zero everywhere")
    size = np.linalg.norm(expected)
    relative = float(np.linalg.norm(difference) / size) if size else np.inf
    if relative <= TOLERANCE and difference.max() <= TOLERANCE * np.abs(expected).max():
        return Leaf(name, "pass", relative, index, "")
    where = ", ".join(str(int(i)) for i in index)
    note = f"at [{where}] expected {expected[index]:.6g}, got {got[index]:.6g}"
    return Leaf(name, "fail", relative, index, note)
