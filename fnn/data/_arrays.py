"""Arrays as examples, and folders of IDX files."""

from pathlib import Path

import numpy as np

from fnn.data import _readers as readers
from fnn.data.dataset import Dataset, relabelled
from fnn.data.errors import DataError, not_finite


def from_arrays(name: str, x: np.ndarray, y: np.ndarray, task: str | None = None) -> Dataset:
    """A Dataset of x (n, ...) and y (n,) or (n, k).

    With task None, text, integers and booleans in y become classes, and other numbers values
    to predict. Raises DataError where x and y are not finite real numbers of these shapes, y
    labels apart, or don't fit the task.
    """
    x = as_inputs(name, x)
    _check_targets(name, y, len(x))
    single = y.ndim == 1 or y.shape[1] == 1
    if task is None:
        task = "classification" if y.dtype.kind in "biuUS" and single else "regression"
    if task == "regression":
        if y.dtype.kind in "US":
            raise DataError(f"{name}: expected y of numbers, got text")
        return Dataset(name, x, y.reshape(len(y), -1), ())
    if not single:
        raise DataError(f"{name}: expected one label per example, y of shape (n,), got {y.shape}")
    y = y.reshape(-1)
    if y.dtype.kind == "S":  # bytes that are not text stay apart, as surrogates
        y = np.char.decode(y, "utf-8", "surrogateescape")
    values, labels = np.unique(y, return_inverse=True)
    classes = tuple(str(value.item()) for value in values)
    for label in classes:
        if any("\ud800" <= character <= "\udfff" for character in label):
            raise DataError(f"{name}: the label {label!r} in y is not text")
    return Dataset(name, x, labels.astype(np.int32), classes)


def as_inputs(name: str, x: np.ndarray) -> np.ndarray:
    """x (n, ...) flattened to (n, d_in).

    Raises DataError for what is empty, has no feature axis or holds other than finite real
    numbers.
    """
    if x.dtype.kind not in "biuf":
        raise DataError(f"{name}: expected x of real numbers, got {x.dtype}")
    if x.ndim < 2:
        raise DataError(f"{name}: expected x of shape (n, d_in), got {x.shape}")
    if x.size == 0:
        raise DataError(f"{name}: no examples: x has the shape {x.shape}")
    x = x.reshape(len(x), -1)
    for row, column in not_finite(x):
        raise DataError(f"{name}: x[{row}, {column}] is {x[row, column]}, expected a finite number")
    return x


def idx_folder(folder: Path, task: str | None) -> Dataset:
    """The examples of a folder of IDX files, with its t10k part as the test part."""
    train = _idx_part(str(folder), folder, "train", task)
    if not any(idx_file(folder, "t10k", kind) for kind in ("images", "labels")):
        return train
    test = _idx_part(f"{folder} (t10k)", folder, "t10k", task)
    if test.x.shape[1] != train.x.shape[1]:
        raise DataError(f"{test.name}: expected {train.x.shape[1]} features, got {test.x.shape[1]}")
    return train._replace(test=relabelled(test, train.classes))


def _idx_part(name: str, folder: Path, part: str, task: str | None) -> Dataset:
    return from_arrays(name, _idx(folder, part, "images"), _idx(folder, part, "labels"), task)


def idx_images(folder: Path) -> np.ndarray:
    """The images of the folder's test part, or of its training part where it has no other."""
    return _idx(folder, "t10k" if idx_file(folder, "t10k", "images") else "train", "images")


def idx_file(folder: Path, part: str, kind: str) -> Path | None:
    """The folder's file of this part and kind, the plain one rather than the gzipped one."""
    found = sorted(folder.glob(f"*{part}*{kind}*"))
    plain = {path.name.removesuffix(".gz"): path for path in reversed(found)}
    if len(plain) > 1:
        raise DataError(f"{folder}: expected one file of {part} {kind}, got {', '.join(plain)}")
    return next(iter(plain.values()), None)


def _idx(folder: Path, part: str, kind: str) -> np.ndarray:
    if (path := idx_file(folder, part, kind)) is None:
        raise DataError(f"{folder}: expected an IDX file {part}-{kind}..., there is none")
    return readers.read_idx(path)


def _check_targets(name: str, y: np.ndarray, n: int) -> None:
    """Raise DataError for what can't be n targets."""
    if y.dtype.kind not in "biufUS":
        raise DataError(f"{name}: expected y of numbers or text, got {y.dtype}")
    if y.ndim not in (1, 2) or y.shape[1:] == (0,):
        raise DataError(f"{name}: expected y of shape (n,) or (n, k), got {y.shape}")
    if n != len(y):
        raise DataError(f"{name}: x has {n} examples, but y has {len(y)}")
    for index in not_finite(y):
        raise DataError(f"{name}: y{list(index)} is {y[index]}, expected a finite number")
