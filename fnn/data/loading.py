"""Which source is read how: bundled sets, tables, NumPy's files, folders of IDX files."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fnn.data import columns, readers, tables, targets
from fnn.data.bundled import BUNDLED, bundled
from fnn.data.dataset import (
    CATEGORY,
    NUMBER,
    TASKS,
    Column,
    Dataset,
    as_inputs,
    from_arrays,
    relabelled,
)
from fnn.data.encoding import Encoding
from fnn.data.errors import DataError, explained, nearest
from fnn.data.rows import Rows
from fnn.data.tables import Table

Source = Any
"""A name, a path, two paths x.npy and y.npy, or a data frame."""
MISSING = ("fill", "error")


class Reading(NamedTuple):
    """How a table is read, where that is not guessed.

    separator stands between the cells of a text file, and header says whether it has one; None
    guesses. With missing "error" a blank cell is an error, with "fill" NaN. drop names columns
    that are not read.

    >>> Reading(drop=("name",)).missing
    'fill'
    """

    separator: str | None = None
    header: bool | None = None
    missing: str = "fill"
    drop: tuple[str, ...] = ()


GUESS = Reading()


def load(
    source: Source,
    *,
    target: str | int | None = None,
    task: str | None = None,
    called: str | None = None,
    reading: Reading = GUESS,
    like: Encoding | None = None,
) -> Dataset:
    """Read examples and their targets. `source` is one of

        a name          of one of scikit-learn's bundled sets: see `BUNDLED`
        a table         a CSV file or its kin, gzipped or not, a Parquet or an Arrow file, or a
                        data frame of Polars, pandas or another library that Arrow knows;
                        `target` is the target column's name or its index from 0 (negative from
                        the end), by default the last; where the columns have names and `called`
                        is given, the column of that name. `reading` says how it is read
        a `.npz` file   with arrays x and y
        two files       x.npy and y.npy
        a folder        of IDX files named as MNIST's: train-images..., train-labels... and, for
                        a test part, t10k-images..., t10k-labels..., gzipped or not

    x of more than two axes is flattened to (n, d_in). Text and integers become classes, which
    keep their names; other numbers are values to predict. In a table whole numbers are classes
    if there are at most `columns.FEW` different ones. `task`, "classification" or "regression",
    overrides this. Of a table, x holds numbers for text and dates, and NaN for a blank, as
    `columns` and `Encoding` say; rows without a target are left out, and `notes` says so. A pipe
    is read as the file that it stands for, except for `.npz`. An array or a table may take at
    most `readers.LIMIT` bytes of memory. With the encoding `like`, text in the columns that it
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
    if tables.is_frame(source):
        return _examples(source, target, task, called, reading, like)
    if isinstance(source, str | Path):
        return _load_one(source, target, task, called, reading, like)
    if not isinstance(source, tuple | list):
        what = "a name, a path, two paths x.npy and y.npy, or a data frame"
        raise TypeError(f"load: expected {what}, got {type(source).__name__}")
    if len(source) == 1:
        return load(source[0], target=target, task=task, called=called, reading=reading, like=like)
    if len(source) != 2 or not all(str(path).endswith(".npy") for path in source):
        raise DataError(
            f"expected one source, or x.npy and y.npy, got {' '.join(map(str, source))}"
        )
    _refuse_options(target, reading, source[0])
    x, y = (readers.read_npy(_path(path)) for path in source)
    return from_arrays(f"{source[0]}, {source[1]}", x, y, task)


def is_mapped(source: Source) -> bool:
    """Whether `mapped` reads this source: two files x.npy and y.npy.

    >>> is_mapped(("x.npy", "y.npy")), is_mapped("iris")
    (True, False)
    """
    several = not isinstance(source, str | Path) and not tables.is_frame(source)
    return several and len(source) == 2 and all(str(path).endswith(".npy") for path in source)


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
    x_path, y_path = (_path(path) for path in source)
    y = readers.read_npy(y_path)
    with explained(x_path):
        x = np.load(x_path, mmap_mode="r", allow_pickle=False)
    if x.ndim < 2 or len(x) != len(y):
        raise DataError(f"{x_path}: expected x of {len(y)} examples, got the shape {x.shape}")
    examples = from_arrays(f"{x_path}, {y_path}", np.zeros((len(y), 1)), y, task)
    rows: Any = Rows(x.reshape(len(x), -1))
    return examples._replace(x=rows)


def inputs(
    source: Source, encoding: Encoding, features: tuple[str, ...] = (), reading: Reading = GUESS
) -> np.ndarray:
    """Read examples without their targets: x (n, d_in), as `encoding.apply` takes it.

    See `parts`, which these are all of.

    >>> import tempfile
    >>> from fnn.data.scaling import Scaling
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "x.npy")
    ...     np.save(path, np.ones((3, 2)))
    ...     inputs(path, Encoding((), Scaling(np.zeros(2), np.ones(2)))).shape
    (3, 2)
    """
    (x,) = parts(source, encoding, features, reading, readers.LIMIT + 1)
    return x


def parts(
    source: Source,
    encoding: Encoding,
    features: tuple[str, ...] = (),
    reading: Reading = GUESS,
    size: int = tables.PART,
) -> Iterator[np.ndarray]:
    """Read examples without their targets, in parts x (n, d_in), as `encoding.apply` takes them.
    Of a table a part has about `size` bytes, as `tables.parts` says; all else is one part.

    `source` is as for `load`, except that a folder needs no labels, a `.npz` file no y, and
    one `.npy` or IDX file is enough. Of a table whose columns have names, those that the encoding
    uses are taken by name, or those of `features` where it has none, whatever their order and
    whatever other columns there are; otherwise it must have the columns that were learned from.
    Raises as `load` does.

    >>> import tempfile
    >>> from fnn.data.scaling import Scaling
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "x.npy")
    ...     np.save(path, np.ones((3, 2)))
    ...     [part.shape for part in parts(path, Encoding((), Scaling(np.zeros(2), np.ones(2))))]
    [(3, 2)]
    """
    if is_table(source):
        if not tables.is_frame(source) and not _path(source).exists():
            raise _unknown(source)
        yield from _inputs(source, encoding, features, reading, size)
    else:
        yield _array_inputs(source, encoding)


def _array_inputs(source: Source, encoding: Encoding) -> np.ndarray:
    """The inputs of a source that is no table."""
    path = _path(source)
    if str(source) in BUNDLED:
        data = bundled(str(source))
        if encoding.features:
            return encoding.aligned(data).x
        x = data.x
    elif path.is_dir():
        x = readers.read_idx(_idx_file(path, "t10k", "images") or _train_file(path, "images"))
    elif path.suffix == ".npy":
        x = readers.read_npy(path)
    elif path.suffix == ".npz":
        (x,) = readers.read_npz(path, "x")
    else:
        x = readers.read_idx(path)
    x = as_inputs(str(source), x)
    if x.shape[1] != encoding.d_in:
        raise DataError(f"{source}: expected {encoding.d_in} features, got {x.shape[1]}")
    return encoding.aligned(Dataset(str(source), x, np.empty(0), ())).x


def is_table(source: Source) -> bool:
    """Whether this source is read as a table: a data frame or a file of one.

    Everything is but bundled sets, `.npy` and `.npz` files, IDX files and folders.

    >>> is_table("a.txt"), is_table("iris"), is_table("a.npz")
    (True, False, False)
    """
    if tables.is_frame(source):
        return True
    path = Path(source)
    other = path.suffix in (".npy", ".npz") or "ubyte" in path.name or path.is_dir()
    return not (str(source) in BUNDLED or other)


def _load_one(
    source: str | Path,
    target: str | int | None,
    task: str | None,
    called: str | None,
    reading: Reading,
    like: Encoding | None,
) -> Dataset:
    path = _path(source)
    if not is_table(source):
        _refuse_options(target, reading, source)
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
    return _examples(path, target, task, called, reading, like)


def _path(source: str | Path) -> Path:
    """The source as a path; the empty text, which would be the working directory, is refused."""
    if not str(source):
        raise DataError("expected a source, got an empty name")
    return Path(source)


def _unknown(source: str | Path) -> DataError:
    hint = nearest(str(source), BUNDLED)
    return DataError(f"{source}: no such file, and no bundled set of that name; {hint}")


def _refuse_options(target: str | int | None, reading: Reading, source: str | Path) -> None:
    if target is not None:
        raise DataError(f"{source}: a target column can be chosen of a table only")
    if reading != GUESS:
        raise DataError(f"{source}: how a table is read can be said of a table only")


def _examples(
    source: Source,
    target: str | int | None,
    task: str | None,
    called: str | None,
    reading: Reading,
    like: Encoding | None,
) -> Dataset:
    """The examples of a table."""
    wanted = "-1" if target is None else str(target)
    (table,) = _tables(source, reading, [wanted, called or wanted, *_texts(like)])
    if table.frame.width < 2:
        what = "expected at least one feature and the target, got one column"
        raise DataError(f"{table.name}: {what}")
    at = targets.index(table, target, called)
    notes = list(table.notes)
    blank = targets.text(table, at).is_null()
    if blank.any():
        if reading.missing == "error" or blank.all():
            raise DataError(f"{table.where(at, int(blank.arg_max() or 0))}: no value")
        table = table.only(~blank)
        notes.append(f"{blank.sum()} rows without a target left out")
    skipped = tuple(blank.arg_true())
    y, classes = targets.targets(table, at, task)
    learned = [i for i in range(table.frame.width) if i != at]
    x, found, more = _columns(table, learned, reading, _like(table, learned, like))
    names = tuple(table.names[i] for i in learned if table.names)
    called_so = (table.names[at],) if table.names else ()
    said = (*notes, *more)
    return Dataset(table.name, x, y, classes, names, called_so, None, found, said, skipped)


def _inputs(
    source: Source, encoding: Encoding, features: tuple[str, ...], reading: Reading, size: int
) -> Iterator[np.ndarray]:
    """The columns of a table that an encoding uses, or that have the names of features."""
    wanted = tuple(feature.name for feature in encoding.used) or features
    every = len(encoding.features) or encoding.d_in
    like: list[Column | None] = []
    for table in _tables(source, reading, _texts(encoding), wanted, size):
        names = table.names if any(wanted) else ()
        places = list(range(every))
        if names:
            for name in sorted(set(wanted) - set(names)):
                hint = nearest(name, names)
                raise DataError(f"{table.name}: the column {name!r} is missing; {hint}")
            where = {name: i for i, name in enumerate(names)}
            places = [where[name] for name in wanted]
        elif table.frame.width != every:
            raise DataError(
                f"{table.name}: expected {every} columns, the features, got {table.frame.width}"
            )
        like = like or _like(table, places, encoding)
        x, found, _ = _columns(table, places, reading, like)
        like = [_decided(old, new) for old, new in zip(like, found, strict=True)]
        if encoding.features:
            part = Dataset(table.name, x, np.empty(0), (), wanted if names else (), columns=found)
            yield encoding.aligned(part).x
            continue
        for column, place in zip(found, places, strict=True):
            if column.kind != NUMBER:
                raise DataError(f"{table.where(place)}: expected numbers, got a {column.kind}")
        if (blank := np.isnan(x)).any():
            row, i = np.argwhere(blank)[0]
            raise DataError(f"{table.where(places[i], int(row))}: no value")
        yield x


def _decided(like: Column | None, found: Column) -> Column | None:
    """How the next part of a table is read: what training does not say, the first part does."""
    if like is None:
        return found
    return found if found.kind == like.kind and not like.form else like


def _texts(encoding: Encoding | None) -> list[str]:
    """The names, or the indices, of the columns that are to be read as the text that they are."""
    texts = [f.name for f in encoding.used if f.kind == CATEGORY or f.form] if encoding else []
    if encoding and not all(texts):  # by their places, which a target among them moves
        return [str(i) for i in range(len(encoding.features) + 1)]
    return texts


def _like(table: Table, places: Sequence[int], encoding: Encoding | None) -> list[Column | None]:
    """What the columns at these places were when the encoding was fitted; None for those that it
    does not use."""
    features = encoding.features if encoding else ()
    known = [None if feature.left_out else feature.column for feature in features]
    if table.names and any(feature.name for feature in features):
        named = {feature.name: column for feature, column in zip(features, known, strict=True)}
        return [named.get(table.names[place]) for place in places]
    return known if len(known) == len(places) else [None] * len(places)


def _tables(
    source: Source,
    reading: Reading,
    texts: Collection[str],
    only: Collection[str] = (),
    size: int | None = None,
) -> Iterator[Table]:
    """The table in parts; in one without a size."""
    for table in tables.parts(
        source if tables.is_frame(source) else _path(source),
        separator=reading.separator,
        header=reading.header,
        text=texts,
        size=size or readers.LIMIT + 1,
    ):
        yield _named(table, reading, only)


def _named(table: Table, reading: Reading, only: Collection[str]) -> Table:
    """The table without the columns that are dropped, and without empty ones that lack a name.

    Others that lack a name get one as pandas gives it: "Unnamed: 0" for the first column.
    """
    names = table.names
    for name in reading.drop if not only else ():
        if name not in names:
            hint = nearest(name, names) if names else "it has no header"
            raise DataError(f"{table.name}: no column is called {name!r}; {hint}")
    n = len(table.frame)
    nameless = [i for i, name in enumerate(names) if not name]
    if any(only):  # found by their names, in each part alike
        nameless = []
    empty = {i for i in nameless if table.frame[:, i].null_count() == n}
    table = table.without(empty | {i for i, name in enumerate(names) if name in reading.drop})
    places = table.frame.columns
    named = (name or f"Unnamed: {i}" for i, name in zip(places, table.names, strict=False))
    table = table._replace(names=tuple(named))
    seen: set[str] = set()
    for name in table.names:
        if name in seen:
            raise DataError(f"{table.name}: two columns are called {name!r}")
        seen.add(name)
    return table


def _columns(
    table: Table, places: Sequence[int], reading: Reading, like: Sequence[Column | None]
) -> tuple[np.ndarray, tuple[Column, ...], tuple[str, ...]]:
    """x (n, d) of the columns at these places, what they hold, and what was guessed."""
    x = np.empty((len(table.frame), len(places)))
    found: list[Column] = []
    notes: dict[str, None] = {}
    for i, place in enumerate(places):
        column, x[:, i] = columns.understood(table, place, like[i])
        found.append(column)
        if note := columns.note(column):
            notes[note] = None
    if reading.missing == "error" and (blank := np.isnan(x)).any():
        row, i = np.argwhere(blank)[0]
        raise DataError(f"{table.where(places[i], int(row))}: no value; --missing fill fills it in")
    return x, tuple(found), tuple(notes)


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
