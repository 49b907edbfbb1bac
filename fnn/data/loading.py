"""Which source is read how: bundled sets, tables, NumPy's files, folders of IDX files."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fnn import extras
from fnn.data import _arrays as arrays, _readers as readers
from fnn.data._reading import GUESS, Reading
from fnn.data._rows import Rows
from fnn.data.bundled import BUNDLED, bundled
from fnn.data.dataset import TASKS, Dataset, Part
from fnn.data.encoding import Encoding
from fnn.data.errors import DataError, explained, nearest

Source = Any
"""A name, a path, two paths x.npy and y.npy, or a data frame."""
MISSING = ("fill", "error")
PART = 1 << 24
"""Bytes of a part of a table, about: of its text, or of its numbers."""


def load(
    source: Source,
    *,
    target: str | int | None = None,
    task: str | None = None,
    target_name: str | None = None,
    reading: Reading = GUESS,
    like: Encoding | None = None,
) -> Dataset:
    """Read examples and their targets. `source` is one of

        a name          of one of scikit-learn's bundled sets: see `BUNDLED`
        a table         a CSV file or its kin, a Parquet or an Arrow file, JSON, an Excel or ODS
                        workbook or an SQLite database, compressed or not; or a data frame of
                        Polars, pandas or another library that Arrow knows, a dict of columns or
                        a record array;
                        `target` is the target column's name or its index from 0 (negative from
                        the end), by default the last; where the columns have names and
                        `target_name` is given, the column of that name. `reading` says how it
                        is read
        a `.npz` file   with arrays x and y
        two files       x.npy and y.npy
        a folder        of IDX files named as MNIST's: train-images..., train-labels... and, for
                        a test part, t10k-images..., t10k-labels..., gzipped or not

    x of more than two axes is flattened to (n, d_in). Text and integers become classes, which
    keep their names; other numbers are values to predict. In a table whole numbers are classes
    if there are at most 20 different ones. `task`, "classification" or "regression",
    overrides this. Of a table, x holds numbers for text and dates, and NaN for a blank, as
    `columns` and `Encoding` say; rows without a target are left out, and `notes` says so. A pipe
    is read as the file that it stands for, except for `.npz`. An array or a table may take at
    most half of the machine's memory. With the encoding `like`, text in the columns that it
    uses is read as the text that it was fitted to, and not guessed anew.

    Raises DataError for an unknown name and for any fault of a file, and says where it is;
    OSError for a file that can't be opened; TypeError for what is no source; ModuleNotFoundError
    for a bundled set or a table where scikit-learn or Polars is not installed.

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
    if isinstance(source, tuple | list) and len(source) == 1:
        source = source[0]
    if is_table(source):
        return _examples(source).of_table(source, target, task, target_name, reading, like)
    first = source[0] if is_mapped(source) else source
    if target is not None:
        raise DataError(f"{first}: only a table has a target column to choose")
    if reading != GUESS:
        raise DataError(f"{first}: options about reading apply only to a table")
    return _of_arrays(source, task)


def is_mapped(source: Source) -> bool:
    """Whether `mapped` reads this source: two files x.npy and y.npy.

    >>> is_mapped(("x.npy", "y.npy")), is_mapped("iris")
    (True, False)
    """
    several = isinstance(source, tuple | list) and len(source) == 2
    return several and all(str(path).endswith(".npy") for path in source)


def mapped(source: Source, *, task: str | None = None) -> Dataset:
    """The examples of two files x.npy and y.npy, x as `Rows`, which are read when they are used.

    For a process that needs some of them only. What `load` refuses in x is not looked for; y is
    read whole. Raises as `load` does.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     x, y = Path(folder, "x.npy"), Path(folder, "y.npy")
    ...     np.save(x, np.arange(12.0).reshape(3, 2, 2)), np.save(y, np.array([1, 0, 1]))
    ...     np.asarray(mapped((x, y)).x[1:2])
    (None, None)
    array([[4., 5., 6., 7.]])
    """
    x_path, y_path = map(Path, source)
    y = readers.read_npy(y_path)
    with explained(x_path):
        x = np.load(x_path, mmap_mode="r", allow_pickle=False)
    if x.ndim < 2 or len(x) != len(y):
        raise DataError(f"{x_path}: expected x of {len(y)} examples, got the shape {x.shape}")
    examples = arrays.from_arrays(f"{x_path}, {y_path}", np.zeros((len(y), 1)), y, task)
    rows: Any = Rows(x.reshape(len(x), -1))
    return examples._replace(x=rows)


def parts(
    source: Source, encoding: Encoding, reading: Reading = GUESS, size: int = PART
) -> Iterator[Part]:
    """Read examples without their targets, in parts, x (n, d_in) as `encoding.apply` takes it. Of a
    table a part has about `size` bytes, as `tables.parts` says; all else is one part.

    `source` is as for `load`, except that a folder needs no labels, a `.npz` file no y, and
    one `.npy` or IDX file is enough. Of a table whose columns have names, those that the encoding
    uses are taken by name, whatever their order and whatever other columns there are; otherwise it
    must have the columns that were learned from.
    Raises as `load` does.

    >>> import tempfile
    >>> from fnn.data.scaling import Scaling
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "x.npy")
    ...     np.save(path, np.ones((3, 2)))
    ...     [part.x.shape for part in parts(path, Encoding((), Scaling(np.zeros(2), np.ones(2))))]
    [(3, 2)]
    """
    if is_table(source):
        size = max(1, size * len(encoding.columns) // encoding.d_in)  # text has many numbers
        yield from _examples(source).inputs(source, encoding, reading, size)
    else:
        yield Part(_array_inputs(source, encoding), {}, ())


def unlabelled(source: Source, reading: Reading = GUESS) -> Dataset:
    """The examples of a table that has no target: y is (n, 0). Raises as `load` does.

    >>> import polars
    >>> unlabelled(polars.DataFrame({"size": [1.0, 2.0], "pet": ["cat", "dog"]})).x
    array([[1., 0.],
           [2., 1.]])
    """
    return _examples(source).unlabelled(source, reading)


def _array_inputs(source: Source, encoding: Encoding) -> np.ndarray:
    """The inputs of a source that is no table."""
    path = Path(source)
    if str(source) in BUNDLED:
        return encoding.aligned(bundled(str(source))).x
    if path.is_dir():
        x = arrays.idx_images(path)
    elif path.suffix == ".npz":
        (x,) = readers.read_npz(path, "x")
    else:
        x = (readers.read_npy if path.suffix == ".npy" else readers.read_idx)(path)
    x = arrays.as_inputs(str(source), x)
    return encoding.aligned(Dataset(str(source), x, np.empty(0), ())).x


def is_table(source: Source) -> bool:
    """Whether this source is read as a table: a data frame or a file of one.

    Everything is but bundled sets, `.npy` and `.npz` files, IDX files and folders. Raises
    DataError and TypeError for what is no source.

    >>> is_table("a.txt"), is_table("iris"), is_table("a.npz")
    (True, False, False)
    """
    if _is_frame(source) or is_mapped(source):
        return not is_mapped(source)
    if isinstance(source, tuple | list) or not str(source):
        got = " ".join(map(str, source)) or "an empty name"
        raise DataError(f"expected one source, or x.npy and y.npy, got {got}")
    if not isinstance(source, str | Path):
        what = "a name, a path, two paths x.npy and y.npy, or a data frame"
        raise TypeError(f"load: expected {what}, got {type(source).__name__}")
    path = Path(source)
    other = path.suffix in (".npy", ".npz") or "ubyte" in path.name or path.is_dir()
    return not (str(source) in BUNDLED or other)


def _is_frame(source: object) -> bool:
    """Whether this is a data frame: Polars', pandas', another that Arrow can read, a dict of
    columns or a record array of NumPy."""
    if isinstance(source, dict | np.ndarray):
        return bool(source if isinstance(source, dict) else source.dtype.names)
    return any(hasattr(source, name) for name in ("__arrow_c_stream__", "collect_schema"))


def _examples(source: Source) -> ModuleType:
    """The module that reads tables, of which this is one. It needs Polars."""
    if not _is_frame(source):
        _existing(source)
    with extras.needs("data"):
        from fnn.data import _examples
    return _examples


def _of_arrays(source: Source, task: str | None) -> Dataset:
    """The examples of a bundled set, a folder or files of arrays."""
    if is_mapped(source):
        x, y = map(readers.read_npy, map(Path, source))
        return arrays.from_arrays(f"{source[0]}, {source[1]}", x, y, task)
    path = Path(source)
    if str(source) in BUNDLED:
        data = bundled(str(source))
        if task not in (None, TASKS[not data.classes]):
            raise DataError(f"{source}: its task is {TASKS[not data.classes]}, not {task}")
        return data
    if _existing(source).is_dir():
        return arrays.idx_folder(path, task)
    if path.suffix == ".npz":
        x, y = readers.read_npz(path, "x", "y")
        return arrays.from_arrays(str(path), x, y, task)
    hint = "give two files, x.npy and y.npy" if path.suffix == ".npy" else "give the folder"
    raise DataError(f"{path}: the targets are missing: {hint}")


def _existing(source: str | Path) -> Path:
    """The path of a file or a folder that is there."""
    if not (path := Path(source)).exists():
        what = "no such file, and no bundled set of that name"
        raise DataError(f"{source}: {what}; {nearest(str(source), BUNDLED)}")
    return path
