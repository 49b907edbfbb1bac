"""Bins: numbers beside their places between quantiles of the training part.

With b_0 < ... < b_T the quantiles of a column, part t of its encoding is

    (x - b_{t-1}) / (b_t - b_{t-1}), clipped to between 0 and 1, minus 1/2.

Gorishniy, Rubachev & Babenko 2022, "On Embeddings for Numerical Features in Tabular Deep Learning".
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.base import ONCE, Array, Grads, Layer, Params, Residuals
from fnn.reductions import Reduce, total

BINS, WIDE = 10, 40
"""The number of bins by default; no bins by default for more columns than this, as images have."""
RIDGE = 10.0


class Bins(NamedTuple):
    """The columns that have bins, and their edges (columns, bins + 1)."""

    columns: tuple[int, ...]
    edges: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, count: int) -> "Bins":
        """`count` bins for each column of x (n, d) that has more different values than that."""
        places = np.linspace(0, 1, count + 1)
        found = {}
        for i, column in enumerate(x.T if count else ()):
            if len(np.unique(column)) > count:
                edges = np.unique(np.quantile(column, places))  # equal ones are spread
                found[i] = np.interp(places, np.linspace(0, 1, len(edges)), edges)
        edges = np.array(list(found.values()), np.float32).reshape(-1, count + 1)
        wide = (np.diff(edges) > 0).all(1)  # in float32
        return cls(tuple(np.array([*found], int)[wide].tolist()), edges[wide])

    @property
    def layer(self) -> Layer:
        """x (..., d) -> (..., d + columns * bins)."""
        low, width = self.edges[:, :-1], np.diff(self.edges)
        columns = np.array(self.columns, np.int32)  # as JAX has them, in float64 too

        def places(x: Array) -> Array:
            return (x[..., columns, None] - low.astype(x.dtype)) / width.astype(x.dtype)

        def forward(params: Params, x: Array) -> tuple[Array, Residuals]:
            z = jnp.clip(places(x), 0, 1) - jnp.asarray(0.5, x.dtype)
            return jnp.concatenate([x, z.reshape(*x.shape[:-1], -1)], -1), x

        def backward(params: Params, x: Array, dy: Array, reduce: Reduce = total) -> Grads:
            z, d = places(x), x.shape[-1]
            inside = jnp.where((z > 0) & (z < 1), 1 / width.astype(x.dtype), 0)
            dz = (dy[..., d:].reshape(z.shape) * inside).sum(-1)
            return (), dy[..., :d].at[..., columns].add(dz)

        return Layer(lambda key: (), forward, backward)

    def help(self, x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> bool:
        """Whether a linear model has a lower squared error on folds that it leaves out when it gets
        the bins of x (n, d) too; y (n, k)."""
        with_bins = np.asarray(jax.jit(self.layer.forward, compiler_options=ONCE)((), x)[0])
        return _squared_error(with_bins, y, fold) < _squared_error(x, y, fold)


def _squared_error(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> float:
    """The sum over the folds, by ridge regression: Hoerl & Kennard 1970."""
    x = np.column_stack([np.ones(len(x)), x.astype(np.float64)])
    both: Any = (x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)
    error = 0.0
    for i in range(fold.max() + 1):
        own, target = x[fold == i], y[fold == i]
        weights = np.linalg.solve(both[0] - own.T @ own, both[1] - own.T @ target)
        error += float(np.square(own @ weights - target).sum())
    return error
