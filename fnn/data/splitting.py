"""Examples held out from training."""

import math

import numpy as np

from fnn import extras
from fnn.data.dataset import Dataset
from fnn.data.errors import DataError


def split(data: Dataset, test_fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """(examples to train on, examples held out).

    The source's own test part is held out where it has one; otherwise ceil(test_fraction * n)
    examples, drawn by the seed. Each class has the same share of both parts, as nearly as
    whole examples allow, and at least one example in each.

    Raises ValueError for a fraction outside (0, 1), DataError for too few examples or classes,
    and ModuleNotFoundError where scikit-learn is not installed.

    >>> data = Dataset("line", np.arange(10.0)[:, None], np.ones((10, 1)), ())
    >>> train, test = split(data, 0.2, seed=0)
    >>> len(train.x), len(test.x)
    (8, 2)
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"split: expected a test fraction between 0 and 1, got {test_fraction}")
    if len(data.classes) == 1:
        raise DataError(f"{data.name}: all examples are of one class, {data.classes[0]!r}")
    if data.test is not None:
        return data._replace(test=None), data.test
    n, k = len(data.x), len(data.classes)
    for label, count in enumerate(np.bincount(data.y, minlength=k) if k else []):
        if count < 2:
            hint = "; --task regression learns values" if data.classes[0].isdecimal() else ""
            hint += "; another column may be the target: --target NAME" if data.columns else ""
            raise DataError(
                f"{data.name}: class {data.classes[label]!r} has {count} example: "
                f"2 are needed, to train on and to hold out{hint}"
            )
    if n < 2:
        raise DataError(f"{data.name}: {n} example: 2 are needed, to train on and to hold out")
    with extras.needs("data"):
        from sklearn.model_selection import train_test_split
    held_out = min(max(math.ceil(test_fraction * n), k), n - max(k, 1))
    train, test = train_test_split(
        np.arange(n), test_size=held_out, random_state=seed, stratify=data.y if k else None
    )
    return (
        data._replace(x=data.x[train], y=data.y[train]),
        data._replace(x=data.x[test], y=data.y[test]),
    )
