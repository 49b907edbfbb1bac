"""Which source is read how: bundled sets, CSV files, NumPy's files, folders of IDX files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fnn.data import readers, tables
from fnn.data.bundled import BUNDLED, bundled
from fnn.data.dataset import TASKS, Dataset, as_inputs, from_arrays, relabelled
from fnn.data.errors import DataError, nearest

Source = str | Path | Sequence[str | Path]


def load(
    source: Source,
    *,
    target: str | int | None = None,
    task: str | None = None,
    called: str | None = None,
) -> Dataset:
    """Read examples and their targets. `source` is one of

        a name          of one of scikit-learn's bundled sets: see `BUNDLED`
        a CSV file      with a header or none, gzipped or not; `target` is the target column's
                        name or its index from 0 (negative from the end), by default the last;
                        where there is a header and `called` is given, the column of that name
        a `.npz` file   with arrays x and y
        two files       x.npy and y.npy
        a folder        of IDX files named as MNIST's: train-images..., train-labels... and, for
                        a test part, t10k-images..., t10k-labels..., gzipped or not

    x of more than two axes is flattened to (n, d_in). Text and integers become classes, which
    keep their names; other numbers are values to predict. In a CSV file whole numbers are
    classes if there are at most `tables.FEW` different ones. `task`, "classification" or
    "regression", overrides this. A pipe is read as the file that it stands for, except for
    `.npz`. An array or a table may take at most `readers.LIMIT` bytes of memory.

    Raises DataError for an unknown name and for any fault of a file, and says where it is;
    OSError for a file that can't be opened; ModuleNotFoundError for a bundled set where
    scikit-learn is not installed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.npz")
    ...     np.savez(path, x=np.ones((3, 2)), y=np.array(["dog", "cat", "dog"]))
    ...     data = load(path)
    >>> data.x.shape, data.classes, data.y
    ((3, 2), ('cat', 'dog'), array([1, 0, 1], dtype=int32))
    """
    if task is not None and task not in TASKS:
        raise DataError(f"expected a task of {' or '.join(TASKS)}, got {task!r}")
    if isinstance(source, str | Path):
        return _load_one(source, target, task, called)
    if len(source) == 1:
        return _load_one(source[0], target, task, called)
    if len(source) != 2 or not all(str(path).endswith(".npy") for path in source):
        raise DataError(
            f"expected one source, or x.npy and y.npy, got {' '.join(map(str, source))}"
        )
    _refuse_target(target, source[0])
    x, y = (readers.read_npy(_path(path)) for path in source)
    return from_arrays(f"{source[0]}, {source[1]}", x, y, task)


def inputs(source: str | Path, d_in: int, features: tuple[str, ...] = ()) -> np.ndarray:
    """Read examples without their targets: x (n, d_in).

    `source` is as for `load`, except that a folder needs no labels, a `.npz` file no y, and
    one `.npy` or IDX file is enough. Where a CSV file has a header and `features` are given,
    those columns are taken by name, whatever their order and whatever other columns there
    are; otherwise it must have d_in columns. Raises as `load` does.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "x.npy")
    ...     np.save(path, np.ones((3, 2)))
    ...     inputs(path, 2).shape
    (3, 2)
    """
    path = _path(source)
    if str(source) in BUNDLED:
        x = bundled(str(source)).x
    elif not path.exists():
        raise _unknown(source)
    elif path.is_dir():
        x = readers.read_idx(_idx_file(path, "t10k", "images") or _train_file(path, "images"))
    elif path.suffix == ".npy":
        x = readers.read_npy(path)
    elif path.suffix == ".npz":
        (x,) = readers.read_npz(path, "x")
    elif "ubyte" in path.name:
        x = readers.read_idx(path)
    else:
        x = tables.read_features(path, d_in, features)
    x = as_inputs(str(source), x)
    if x.shape[1] != d_in:
        raise DataError(f"{source}: expected {d_in} features, got {x.shape[1]}")
    return x


def is_csv(source: str | Path) -> bool:
    """Whether `load` reads this source as a CSV file.

    It does so with everything but bundled sets, `.npy` and `.npz` files, and folders.

    >>> is_csv("a.txt"), is_csv("iris"), is_csv("a.npz")
    (True, False, False)
    """
    path = Path(source)
    return not (str(source) in BUNDLED or path.suffix in (".npy", ".npz") or path.is_dir())


def _load_one(
    source: str | Path, target: str | int | None, task: str | None, called: str | None
) -> Dataset:
    path = _path(source)
    if not is_csv(source):
        _refuse_target(target, source)
    if str(source) in BUNDLED:
        data = bundled(str(source))
        if task not in (None, TASKS[not data.classes]):
            raise DataError(f"{source}: its task is {TASKS[not data.classes]}, not {task}")
        return data
    if not path.exists():
        raise _unknown(source)
    if path.is_dir():
        return _idx_folder(path, task)
    if path.suffix == ".npy":
        raise DataError(f"{path}: the targets are missing: give two files, x.npy and y.npy")
    if path.suffix == ".npz":
        x, y = readers.read_npz(path, "x", "y")
        return from_arrays(str(path), x, y, task)
    return tables.read_examples(path, target, task, called)


def _path(source: str | Path) -> Path:
    """The source as a path; the empty text, which would be the working directory, is refused."""
    if not str(source):
        raise DataError("expected a source, got an empty name")
    return Path(source)


def _unknown(source: str | Path) -> DataError:
    hint = nearest(str(source), BUNDLED)
    return DataError(f"{source}: no such file, and no bundled set of that name; {hint}")


def _refuse_target(target: str | int | None, source: str | Path) -> None:
    if target is not None:
        raise DataError(f"{source}: a target column can be chosen of a CSV file only")


def _idx_folder(folder: Path, task: str | None) -> Dataset:
    images, labels = (readers.read_idx(_train_file(folder, kind)) for kind in ("images", "labels"))
    train = from_arrays(str(folder), images, labels, task)
    test_images, test_labels = (_idx_file(folder, "t10k", kind) for kind in ("images", "labels"))
    if test_images is None and test_labels is None:
        return train
    if test_images is None or test_labels is None:
        raise DataError(f"{folder}: of the t10k images and labels, only one is there")
    name = f"{folder} (t10k)"
    test = from_arrays(name, readers.read_idx(test_images), readers.read_idx(test_labels), task)
    if test.x.shape[1] != train.x.shape[1]:
        raise DataError(f"{name}: expected {train.x.shape[1]} features, got {test.x.shape[1]}")
    return train._replace(test=relabelled(test, train.classes))


def _train_file(folder: Path, kind: str) -> Path:
    path = _idx_file(folder, "train", kind)
    if path is None:
        raise DataError(f"{folder}: expected an IDX file train-{kind}..., there is none")
    return path


def _idx_file(folder: Path, part: str, kind: str) -> Path | None:
    """The folder's file of this part and kind, the plain one rather than the gzipped one."""
    found = sorted(folder.glob(f"*{part}*{kind}*"))
    plain = {path.name.removesuffix(".gz"): path for path in reversed(found)}
    if len(plain) > 1:
        raise DataError(f"{folder}: expected one file of {part} {kind}, got {', '.join(plain)}")
    return next(iter(plain.values()), None)
