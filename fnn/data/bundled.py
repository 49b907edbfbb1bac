"""The data sets that scikit-learn brings with it."""

import numpy as np

from fnn import extras
from fnn.data.dataset import Dataset

BUNDLED = ("digits", "iris", "wine", "breast_cancer", "diabetes")


def bundled(name: str) -> Dataset:
    """One of the sets of `BUNDLED`: x (n, d_in) float32; class labels, or y (n, 1) float32.

    Raises ModuleNotFoundError where scikit-learn is not installed.
    """
    with extras.needs("data"):
        from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    classes = tuple(map(str, bunch.get("target_names", ())))
    y = bunch.target.astype(np.int32) if classes else bunch.target.astype(np.float32)[:, None]
    features = tuple(map(str, bunch.feature_names))
    return Dataset(name, bunch.data.astype(np.float32), y, classes, features)
