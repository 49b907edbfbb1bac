"""Examples held out from training."""

import math

import numpy as np

from fnn import extras
from fnn.data.dataset import Dataset
from fnn.data.errors import DataError


def without_singles(data: Dataset) -> Dataset:
    """The examples without those that are the only one of their class, and a note of how many.

    >>> data = Dataset("a", np.ones((3, 1)), np.array([0, 0, 1], np.int32), ("cat", "dog"))
    >>> without_singles(data).classes, without_singles(data).notes
    (('cat',), ("left out: the only example of class 'dog'",))
    """
    counts = np.bincount(data.y, minlength=len(data.classes)) if data.classes else np.empty(0)
    if data.test is not None or not (counts == 1).any():
        return data
    if (counts == 1).all():
        hint = "; another column may be the target: --target NAME" if data.columns else ""
        raise DataError(f"{data.name}: each of {len(counts)} classes has 1 example{hint}")
    names = [repr(name) for name, count in zip(data.classes, counts, strict=True) if count == 1]
    several = f"the only examples of {len(names)} classes: {', '.join(names[:5])}"
    what = f"the only example of class {names[0]}" if len(names) == 1 else several
    hint = "; --task regression learns values" if names[0][1:-1].isdecimal() else ""
    place = np.cumsum(counts != 1) - 1
    kept = _rows(data, np.flatnonzero(counts[data.y] != 1))
    return kept._replace(
        y=place[kept.y].astype(np.int32),
        classes=tuple(name for name, c in zip(data.classes, counts, strict=True) if c != 1),
        notes=(*data.notes, f"left out: {what}{', ...' * (len(names) > 5)}{hint}"),
    )


def split(data: Dataset, test_fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """(examples to train on, examples held out).

    The source's own test part is held out where it has one; otherwise ceil(test_fraction * n)
    examples, drawn by the seed. Each class has the same share of both parts, as nearly as
    whole examples allow, and at least one example in each, or one in the first where that is all.
    Where the data has times, the last examples are held out, those of one time together; where it
    has groups, a share of these.

    Raises ValueError for a fraction outside (0, 1), DataError for too few examples, groups or
    classes, and ModuleNotFoundError where scikit-learn is not installed.

    >>> data = Dataset("line", np.arange(10.0)[:, None], np.ones((10, 1)), ())
    >>> train, test = split(data, 0.2, seed=0)
    >>> len(train.x), len(test.x)
    (8, 2)
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"split: expected a test fraction between 0 and 1, got {test_fraction}")
    n, hint = (
        len(data.x),
        "; another column may be the target: --target NAME" if data.columns else "",
    )
    if len(data.classes) == 1:
        raise DataError(f"{data.name}: all examples are of one class, {data.classes[0]!r}")
    if data.test is not None:
        return data._replace(test=None), data.test
    if n < 2:
        raise DataError(
            f"{data.name}: {n} example: 2 are needed, to train on and to hold out{hint}"
        )
    train, test = _chosen(data, test_fraction, seed)
    if not len(train):
        raise DataError(f"{data.name}: all examples are of one time or group, or the last are")
    return _rows(data, train), _rows(data, test)


def _chosen(data: Dataset, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The indices of both parts."""
    n, k = len(data.x), len(data.classes)
    single = np.bincount(data.y, minlength=k)[data.y] < 2 if k else np.zeros(n, bool)
    several = np.flatnonzero(~single)
    there = len(np.unique(data.y[several])) if k else 1
    held_out = min(max(math.ceil(fraction * len(several)), there), len(several) - max(there, 1))
    if data.times is not None:
        late = data.times >= np.sort(data.times)[-math.ceil(fraction * n)]
        return np.flatnonzero(~late), np.flatnonzero(late)
    with extras.needs("data"):
        from sklearn.model_selection import GroupShuffleSplit, train_test_split
    if data.groups is not None:
        if len(np.unique(data.groups)) < 2:
            raise DataError(f"{data.name}: all examples are of one group")
        splitter = GroupShuffleSplit(1, test_size=fraction, random_state=seed)
        train, test = next(splitter.split(data.x, groups=data.groups))
        return train, test
    stratify = data.y[several] if k else None
    train, test = train_test_split(
        several, test_size=held_out, random_state=seed, stratify=stratify
    )
    return np.concatenate([train, np.flatnonzero(single)]) if single.any() else train, test


def _rows(data: Dataset, rows: np.ndarray) -> Dataset:
    """The examples of these indices."""
    groups, times = (None if a is None else a[rows] for a in (data.groups, data.times))
    return data._replace(x=data.x[rows], y=data.y[rows], groups=groups, times=times)
