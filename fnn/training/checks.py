"""What is refused of data, before anything is trained on it."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn import losses
from fnn.backprop import weight_of
from fnn.base import Array, Layer, Loss, Params
from fnn.parallel.examples import ShardedExamples

Data = Any
"""(x, y), arrays or trees of arrays, with the examples along the first axis of all, or (x, y,
weight) with one weight per example; on a mesh also `fnn.parallel.ShardedExamples` of these."""
SIDES = ("x", "y", "weight")
BINARY = (losses.binary_cross_entropy, losses.sigmoid_binary_cross_entropy)
"""The losses whose targets are from 0 to 1."""


def pair(name: str, batch: Any, expected: str = "(x, y)") -> Data:
    """(x, y) or (x, y, weight). Raises TypeError, naming the caller, for what is neither."""
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise TypeError(f"{name}: expected {expected}, got {type(batch).__name__}")
    return tuple(batch)


def count(data: Data) -> int:
    """The number of examples, along the first axis of every array of x and y.

    Raises ValueError where the arrays differ in it.
    """
    if isinstance(data, ShardedExamples):
        return data.n
    sides = pair("data", data)
    if any(not getattr(a, "shape", ()) for a in jax.tree.leaves(data)):
        raise TypeError("data: expected arrays of examples, got single numbers; a list is no array")
    lengths = [[a.shape[0] for a in jax.tree.leaves(side)] for side in sides]
    if len({n for sizes in lengths for n in sizes}) != 1:
        shown = [sizes[0] if len(set(sizes)) == 1 else sizes for sizes in lengths]
        each = [f"{side} has {n}" for side, n in zip(SIDES, shown, strict=False)]
        raise ValueError(f"data: {each[0]} examples, but {', '.join(each[1:])}")
    return lengths[0][0]


def examples(data: Data) -> Any:
    """(x, y), of `ShardedExamples` too."""
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
    """The checks of what a network is trained on with a loss, or what neither of them takes;
    messages begin with `name`."""

    name: str
    network: Layer | None
    loss: Loss | None

    def pair(self, data: Any) -> Data:
        """(x, y) or (x, y, weight) as arrays of NumPy's or JAX's. Raises TypeError for what is
        neither and for what are no numbers, ValueError for whole numbers that JAX would wrap."""
        if not is_pair(data):
            raise TypeError(f"{self.name}: expected (x, y), arrays or trees of arrays")
        arrays = jax.tree.map(_array, tuple(data))
        jax.tree_util.tree_map_with_path(partial(_check_whole, self.name), arrays)
        return arrays

    def examples(self, params: Params, x: Any, y: Any, weight: Any = None) -> None:
        """Refuse examples that the network and the loss can't take.

        Raises ValueError for no examples, different numbers of x and of y, shapes that the network
        or the loss refuses, labels outside 0 to k-1, targets of the binary cross-entropies outside
        [0, 1], and entries that are NaN or infinite.
        """
        if self.network is not None and all(hasattr(a, "shape") for a in (x, y)):
            self._aligned(x, y)
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

    def _aligned(self, x: Any, y: Any) -> None:
        """Refuse arrays that are not one row per example, for the same examples."""
        if jnp.ndim(x) < 2 or jnp.ndim(y) < 1:
            raise ValueError(
                f"{self.name}: expected x (n, d_in) and y (n, ...), got {x.shape}, {y.shape}"
            )
        if len(x) != len(y):
            raise ValueError(f"{self.name}: x has {len(x)} examples, but y has {len(y)}")

    def _fit_together(
        self, network: Layer, loss: Loss, params: Params, x: Any, y: Any, weight: Any
    ) -> None:
        """Refuse what the network refuses, and targets and weights that the loss does."""
        prediction, _ = jax.eval_shape(network.forward, params, x)
        losses = jax.eval_shape(loss.value, prediction, y)
        if weight is not None:
            weight_of(losses, weight)
        form: Any = jax.tree.structure(prediction)
        if form == jax.tree.structure(y):
            jax.tree_util.tree_map_with_path(partial(_check_labels, self.name), y, prediction)
        self.targets(y)

    def targets(self, y: Any) -> None:
        """Refuse targets of a binary cross-entropy outside [0, 1]."""
        if self.loss in BINARY:
            _refuse(self.name, "y", y, (y < 0) | (y > 1), "targets from 0 to 1")

    def targets_fit(self, y: Any) -> Array:
        """Whether `targets` accepts them: a boolean scalar on the device."""
        return ((y >= 0) & (y <= 1)).all() if self.loss in BINARY else jnp.array(True)


def _array(a: Any) -> Any:
    """An array of another library as one of NumPy's, or, of a dtype that NumPy lacks or on a
    device, as one of JAX's."""
    if isinstance(a, np.ndarray | Array):
        return a
    try:
        return np.asarray(a)
    except TypeError:
        array = jnp.from_dlpack(a)
        on_host = {device.platform for device in array.devices()} == {"cpu"}
        return np.asarray(array) if on_host else array


def _check_whole(name: str, path: Any, a: Any) -> None:
    """Raise for NumPy's whole numbers that JAX's dtype doesn't hold, and for what is no number."""
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
