"""Data from scikit-learn's bundled sets: arrays to learn from, split and standardised."""

from typing import NamedTuple

import numpy as np
from sklearn import datasets, model_selection, preprocessing

CLASSIFICATION = ("digits", "iris", "wine", "breast_cancer")
REGRESSION = ("diabetes",)
BUNDLED = CLASSIFICATION + REGRESSION


class Dataset(NamedTuple):
    """Examples to learn from.

    x (n, d_in) float32. y (n,) int32 labels from 0 to len(classes) - 1; or, where there are
    no classes, (n, k) float32 values, in units of their own.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...]


class Scaling(NamedTuple):
    """z = (a - mean) / scale, feature by feature; mean and scale (d,)."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, a: np.ndarray) -> "Scaling":
        """The scaling that gives the features of a (n, d) mean 0 and variance 1.

        A feature that never changes is only centred.
        """
        fitted = preprocessing.StandardScaler().fit(a.astype(np.float64))
        return cls(fitted.mean_, fitted.scale_)

    def apply(self, a: np.ndarray) -> np.ndarray:
        """(n, d) in its own units -> (n, d) float32, standardised."""
        return ((a - self.mean) / self.scale).astype(np.float32)

    def undo(self, z: np.ndarray) -> np.ndarray:
        """(n, d) standardised -> (n, d) float32, in the features' own units."""
        return (z * self.scale + self.mean).astype(np.float32)


def load(source: str) -> Dataset:
    """A bundled set by name: one of `BUNDLED`. Raises ValueError for any other."""
    if source not in BUNDLED:
        raise ValueError(f"unknown data {source!r}: expected one of {', '.join(BUNDLED)}")
    bunch = getattr(datasets, f"load_{source}")()
    x = np.asarray(bunch.data, np.float32)
    if source in REGRESSION:
        return Dataset(source, x, np.asarray(bunch.target, np.float32)[:, None], ())
    classes = tuple(str(name) for name in bunch.target_names)
    return Dataset(source, x, np.asarray(bunch.target, np.int32), classes)


def split(data: Dataset, test_fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Examples to train on and examples held out, drawn by the seed.

    Classes keep their shares in both parts. Raises ValueError for a fraction outside (0, 1),
    and where a part would be left without an example of some class.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"split: expected a test fraction between 0 and 1, got {test_fraction}")
    train_x, test_x, train_y, test_y = model_selection.train_test_split(
        data.x,
        data.y,
        test_size=test_fraction,
        random_state=seed,
        stratify=data.y if data.classes else None,
    )
    return data._replace(x=train_x, y=train_y), data._replace(x=test_x, y=test_y)
