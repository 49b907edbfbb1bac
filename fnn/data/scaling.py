"""Standardisation: each feature to mean 0 and variance 1."""

from typing import NamedTuple

import numpy as np

from fnn.data.errors import DataError, not_finite


class Scaling(NamedTuple):
    """The standardisation z = (a - mean) / scale, per feature; mean and scale (d,) float64.

    `of` fits it to the training examples, `apply` transforms any examples by it, and `undo`
    is the inverse transform.

    >>> scaling = Scaling.of(np.array([[0.0, 5.0], [4.0, 5.0]]))
    >>> scaling
    Scaling(mean=array([2., 5.]), scale=array([2., 1.]))
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, a: np.ndarray) -> "Scaling":
        """Fit: the mean of each feature of a (n, d), and its standard deviation as the scale.

        A constant feature is only centred: its scale is 1. Constant means a variance within
        the rounding error of computing it, n eps var + (n eps mean)^2. The variance is by the
        corrected two-pass algorithm; Chan, Golub & LeVeque (1983), "Algorithms for Computing
        the Sample Variance".

        Raises DataError for numbers so large that their squares overflow.

        >>> Scaling.of(np.array([[1.0], [3.0]])).mean
        array([2.])
        """
        a = a.astype(np.float64)
        n, eps = len(a), np.finfo(np.float64).eps
        with np.errstate(over="ignore", invalid="ignore"):
            mean = a.sum(0) / n
            a -= mean
            rounding = a.sum(0)
            var = (np.square(a, out=a).sum(0) - rounding**2 / n) / n
            constant = var <= n * eps * var + (n * mean * eps) ** 2
        for (column,) in not_finite(mean + var):
            raise DataError(f"column {column + 1}: numbers too large to standardise")
        return cls(mean, np.where(constant, 1.0, np.sqrt(var)))

    def apply(self, a: np.ndarray, first: int = 0) -> np.ndarray:
        """Transform a (n, d), in its own units, to z (n, d) float32.

        Raises DataError for a number too far from the mean for float32, which it names, counting
        a's first example as number `first`.

        >>> Scaling(np.array([2.0]), np.array([4.0])).apply(np.array([[2.0], [10.0]]))
        array([[0.],
               [2.]], dtype=float32)
        """
        z = np.subtract(a, self.mean, dtype=np.float64)
        z /= self.scale
        with np.errstate(over="ignore"):
            z = z.astype(np.float32)
        for row, column in not_finite(z):
            where = f"example {first + row + 1}, column {column + 1}"
            raise DataError(f"{where}: {a[row, column]} is too far off")
        return z

    def undo(self, z: np.ndarray) -> np.ndarray:
        """Transform z (n, d) back to the features' own units: (n, d) float64.

        >>> Scaling(np.array([2.0]), np.array([4.0])).undo(np.array([[2.0]]))
        array([[10.]])
        """
        return z * self.scale + self.mean
