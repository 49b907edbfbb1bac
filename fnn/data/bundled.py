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
    x = np.asarray(bunch.data, np.float32)
    features = tuple(str(feature) for feature in bunch.feature_names)
    if name == "diabetes":
        return Dataset(name, x, np.asarray(bunch.target, np.float32)[:, None], (), features)
    classes = tuple(str(label) for label in bunch.target_names)
    return Dataset(name, x, np.asarray(bunch.target, np.int32), classes, features)
