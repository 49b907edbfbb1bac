"""Examples held out from training."""

import math

import numpy as np

from fnn.data.dataset import Dataset
from fnn.data.errors import DataError

Parts = tuple[np.ndarray, np.ndarray]
"""The indices of the examples to train on, and of those held out."""


def without_singles(data: Dataset) -> Dataset:
    """The examples without those that are the only one of their class, and a note of how many.

    >>> data = Dataset("a", np.ones((3, 1)), np.array([0, 0, 1], np.int32), ("cat", "dog"))
    >>> without_singles(data).classes, without_singles(data).notes
    (('cat',), ("left out, classes of one example: 'dog'",))
    """
    counts = np.bincount(data.y, minlength=len(data.classes)) if data.classes else np.empty(0)
    single = np.flatnonzero(counts == 1)
    if data.test is not None or not len(single):
        return data
    if len(single) == len(counts):
        hint = "; another column may be the target: --target NAME" if data.columns else ""
        raise DataError(f"{data.name}: each of {len(counts)} classes has 1 example{hint}")
    names = ", ".join(repr(data.classes[i]) for i in single[:5]) + ", ..." * (len(single) > 5)
    hint = "; --task regression learns values" if data.classes[single[0]].isdecimal() else ""
    left = np.flatnonzero(counts != 1)
    kept = _rows(data, np.flatnonzero(np.isin(data.y, left)))
    y, classes = np.searchsorted(left, kept.y), tuple(data.classes[i] for i in left)
    notes = (*data.notes, f"left out, classes of one example: {names}{hint}")
    return kept._replace(y=y.astype(np.int32), classes=classes, notes=notes)


def split(data: Dataset, test_fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """(examples to train on, examples held out).

    The source's own test part is held out where it has one; otherwise ceil(test_fraction * n)
    examples, drawn by the seed. Each class has the same share of both parts, as nearly as
    whole examples allow, and at least one example in each, or one in the first where that is all.
    Where the data has times, the last examples are held out, those of one time together; where it
    has groups, a share of these.

    Raises ValueError for a fraction outside (0, 1), DataError for too few examples, groups or
    classes.

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
    if len(data.x) < 2:
        raise DataError(f"{data.name}: 1 example: 2 are needed, to train on and to hold out")
    train, test = _chosen(data, test_fraction, np.random.RandomState(seed))
    if not len(train):
        raise DataError(f"{data.name}: all examples are of one time or group, or the last are")
    return _rows(data, train), _rows(data, test)


def _chosen(data: Dataset, fraction: float, random: np.random.RandomState) -> Parts:
    """The indices of both parts."""
    held = None
    if data.times is not None:
        held = data.times >= np.sort(data.times)[-math.ceil(fraction * len(data.x))]
    elif data.groups is not None:
        groups = random.permutation(np.unique(data.groups))
        held = np.isin(data.groups, groups[: math.ceil(fraction * len(groups))])
    if held is not None:
        return np.flatnonzero(~held), np.flatnonzero(held)
    labels = data.y if data.classes else np.zeros(len(data.x), int)
    single = np.bincount(labels)[labels] < 2
    several = np.flatnonzero(~single)
    least = len(np.unique(labels[several]))
    size = min(max(math.ceil(fraction * len(several)), least), len(several) - least)
    train, test = _drawn(labels[several], size, random)
    return np.concatenate([several[train], np.flatnonzero(single)]), several[test]


def _drawn(labels: np.ndarray, size: int, random: np.random.RandomState) -> Parts:
    """The indices of all labels (n,) but `size`, and of these: the same that scikit-learn's
    `train_test_split` draws, stratified where there are several labels."""
    n = len(labels)
    codes, counts = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    if len(counts) == 1:
        order = random.permutation(n)
        return order[size:], order[:size]
    learned = _shares(counts, n - size, random)
    _shares(counts - learned, size, random)  # all that is left, but scikit-learn draws here
    places = np.split(np.argsort(codes, kind="stable"), np.cumsum(counts)[:-1])
    cut = [np.split(random.permutation(a), [k]) for a, k in zip(places, learned, strict=True)]
    train, test = (random.permutation(np.concatenate(part)) for part in zip(*cut, strict=True))
    return train, test


def _shares(counts: np.ndarray, size: int, random: np.random.RandomState) -> np.ndarray:
    """How many of `size` draws go to each class: the mode of the multivariate hypergeometric
    distribution, nearly, ties drawn."""
    exact = counts / counts.sum() * size
    found = np.floor(exact)
    rest = exact - found
    while (left := int(size - found.sum())) > 0:
        tied = np.flatnonzero(rest == rest.max())
        found[random.choice(tied, size=min(len(tied), left), replace=False)] += 1
        rest[tied] = -1
    return found.astype(int)


def _rows(data: Dataset, rows: np.ndarray) -> Dataset:
    """The examples of these indices."""
    groups, times = (None if a is None else a[rows] for a in (data.groups, data.times))
    return data._replace(x=data.x[rows], y=data.y[rows], groups=groups, times=times)
