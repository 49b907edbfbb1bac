"""Checks of data before training."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn import losses
from fnn.backprop import weight_of
from fnn.base import Array, Layer, Loss, Params, Tree
from fnn.parallel.examples import ShardedExamples

Data = Any
"""(x, y), arrays or trees of arrays, with the examples along the first axis, or (x, y, weight) with
one weight per example; on a mesh also `fnn.parallel.ShardedExamples` of these."""
SIDES = ("x", "y", "weight")
BINARY = (losses.binary_cross_entropy, losses.sigmoid_binary_cross_entropy)
"""The losses whose targets are from 0 to 1."""


def pair(name: str, batch: Tree, expected: str = "(x, y)") -> Data:
    """(x, y) or (x, y, weight). Raises TypeError, naming the caller, for anything else."""
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise TypeError(f"{name}: expected {expected}, got {type(batch).__name__}")
    return tuple(batch)


def count(data: Data) -> int:
    """The number of examples, along the first axis of every array of x and y.

    Raises ValueError if the arrays differ in it.
    """
    if isinstance(data, ShardedExamples):
        return data.n
    sides = pair("data", data)
    if any(not getattr(a, "shape", ()) for a in jax.tree.leaves(data)):
        raise TypeError("data: expected arrays of examples, got numbers; a list is not an array")
    lengths = [[a.shape[0] for a in jax.tree.leaves(side)] for side in sides]
    if len({n for sizes in lengths for n in sizes}) != 1:
        shown = [sizes[0] if len(set(sizes)) == 1 else sizes for sizes in lengths]
        each = [f"{side} has {n}" for side, n in zip(SIDES, shown, strict=False)]
        raise ValueError(f"data: {each[0]} examples, but {', '.join(each[1:])}")
    return lengths[0][0]


def examples(data: Data) -> Any:
    """(x, y) of data, which may be `ShardedExamples`."""
    return data.examples(data.arrays) if isinstance(data, ShardedExamples) else data


def is_pair(data: Any) -> bool:
    """Whether data is (x, y), arrays or trees of arrays, or (x, y, weight)."""
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        return False
    if not all(hasattr(weight, "shape") for weight in data[2:]):
        return False
    try:
        sides = [jax.tree.leaves(side) for side in data]
    except (RecursionError, SystemError):  # lists in lists, a thousand deep
        return False
    return all(sides) and all(hasattr(a, "shape") for side in sides for a in side)


class Checks(NamedTuple):
    """The checks of examples for a network and a loss, or for any if these are None; messages begin
    with `name`."""

    name: str
    network: Layer | None
    loss: Loss | None

    def pair(self, data: Any) -> Data:
        """(x, y) or (x, y, weight) as NumPy or JAX arrays. Raises TypeError for anything else and
        for arrays without numbers, ValueError for integers that would overflow in JAX."""
        if not is_pair(data):
            raise TypeError(f"{self.name}: expected (x, y), arrays or trees of arrays")
        arrays = jax.tree.map(_array, tuple(data))
        jax.tree_util.tree_map_with_path(partial(_check_whole, self.name), arrays)
        return arrays

    def examples(self, params: Params, x: Tree, y: Tree, weight: Tree = None) -> None:
        """Raise for examples that the network or the loss can't take.

        Raises ValueError for no examples, different numbers of x and y, shapes for which the
        network or the loss raises, labels outside 0 to k-1, targets of a binary cross-entropy
        outside [0, 1], and entries that are NaN or infinite.
        """
        arrays = self.network is not None and all(hasattr(a, "shape") for a in (x, y))
        if arrays and (jnp.ndim(x) < 2 or jnp.ndim(y) < 1):
            got = f"got {x.shape}, {y.shape}"
            raise ValueError(f"{self.name}: expected x (n, d_in) and y (n, ...), {got}")
        if count((x, y) if weight is None else (x, y, weight)) == 0:
            raise ValueError(f"{self.name}: expected at least one example, got none")
        if self.network is not None and self.loss is not None:
            self._fit_together(self.network, self.loss, params, x, y, weight)
        for side, tree in zip(SIDES, (x, y, weight), strict=True):
            for path, a in jax.tree_util.tree_flatten_with_path(tree)[0]:
                if jnp.issubdtype(jnp.result_type(a), jnp.inexact):
                    place = side + jax.tree_util.keystr(path)
                    finite = (np if isinstance(a, np.ndarray) else jnp).isfinite(a)
                    _refuse(self.name, place, a, ~finite, "finite numbers")

    def _fit_together(
        self, network: Layer, loss: Loss, params: Params, x: Tree, y: Tree, weight: Tree
    ) -> None:
        """Raise for an x that the network can't take, and targets and weights the loss can't."""
        prediction, _ = jax.eval_shape(network.forward, params, x)
        losses = jax.eval_shape(loss.value, prediction, y)
        if weight is not None:
            weight_of(losses, weight)
        form: Any = jax.tree.structure(prediction)
        if form == jax.tree.structure(y):
            jax.tree_util.tree_map_with_path(partial(_check_labels, self.name), y, prediction)
        self.targets(y)

    def targets(self, y: Tree) -> None:
        """Raise ValueError for targets of a binary cross-entropy outside [0, 1]."""
        if self.loss in BINARY:
            _refuse(self.name, "y", y, (y < 0) | (y > 1), "targets from 0 to 1")

    def targets_fit(self, y: Tree) -> Array:
        """Whether `targets` accepts them: a boolean scalar on the device."""
        return ((y >= 0) & (y <= 1)).all() if self.loss in BINARY else jnp.array(True)


def _array(a: Any) -> Any:
    """An array of any library as a NumPy array, or as a JAX array if it is on a device."""
    if isinstance(a, np.ndarray | Array):
        return a
    try:
        return np.asarray(a)
    except TypeError:
        array = jnp.from_dlpack(a)
        on_host = {device.platform for device in array.devices()} == {"cpu"}
        return np.asarray(array) if on_host else array


def _check_whole(name: str, path: Any, a: Any) -> None:
    """Raise for a NumPy array whose integers overflow JAX's dtype, or that holds no numbers."""
    if isinstance(a, np.ndarray) and a.dtype.kind in "iuOUSMm":
        if a.dtype.kind in "OUSMm":
            raise TypeError(f"{name}: expected arrays of numbers, got {a.dtype}")
        kept = jnp.iinfo(jax.dtypes.canonicalize_dtype(a.dtype))
        if kept.bits < 8 * a.dtype.itemsize:
            place = SIDES[path[0].idx] + jax.tree_util.keystr(path[1:])
            _refuse(name, place, a, (a < kept.min) | (a > kept.max), f"numbers within {kept.dtype}")


def _check_labels(name: str, path: Any, y: Array, prediction: Array) -> None:
    if jnp.issubdtype(y.dtype, jnp.integer) and y.shape == prediction.shape[:-1]:
        k = prediction.shape[-1]
        place = "y" + jax.tree_util.keystr(path)
        _refuse(name, place, y, (y < 0) | (y >= k), f"labels from 0 to {k - 1}")


def _refuse(name: str, place: str, a: Any, wrong: Any, expected: str) -> None:
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(np.asarray(wrong))[0])
        raise ValueError(f"{name}: expected {expected}, {place}{list(index)} is {a[index]}")
