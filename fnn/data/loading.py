"""Which source is read how: bundled sets, tables, NumPy's files, folders of IDX files."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fnn.data import (
    _arrays as arrays,
    _columns as columns,
    _readers as readers,
    _suspects,
    _tables as tables,
    _targets as targets,
)
from fnn.data._reading import GUESS, Reading
from fnn.data._rows import Rows
from fnn.data._tables import Table
from fnn.data.bundled import BUNDLED, bundled
from fnn.data.dataset import CATEGORY, NUMBER, TASKS, Column, Dataset
from fnn.data.encoding import Encoding
from fnn.data.errors import DataError, explained, nearest

Source = Any
"""A name, a path, two paths x.npy and y.npy, or a data frame."""
MISSING = ("fill", "error")


class Part(NamedTuple):
    """Consecutive rows of a source without targets: x (n, d_in) as `Encoding.apply` takes it, the
    cells (n,) of the columns that name the rows, and notes of what is left out.

    >>> Part(np.ones((2, 1)), {}, ()).x.shape
    (2, 1)
    """

    x: np.ndarray
    ids: dict[str, Any]
    left_out: tuple[str, ...]


class _Wanted(NamedTuple):
    """What is asked of a source: the arguments of `load`."""

    target: str | int | None = None
    task: str | None = None
    target_name: str | None = None
    reading: Reading = GUESS
    like: Encoding | None = None

    def refuse_options(self, source: Source) -> None:
        """Raise DataError where something is asked that only a table can answer."""
        if self.target is not None:
            raise DataError(f"{source}: only a table has a target column to choose")
        if self.reading != GUESS:
            raise DataError(f"{source}: options about reading apply only to a table")


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
    wanted = _Wanted(target, task, target_name, reading, like)
    if isinstance(source, tuple | list) and len(source) == 1:
        source = source[0]
    if is_mapped(source):
        wanted.refuse_options(source[0])
        x, y = (readers.read_npy(_path(path)) for path in source)
        return arrays.from_arrays(f"{source[0]}, {source[1]}", x, y, task)
    if isinstance(source, tuple | list):
        got = " ".join(map(str, source))
        raise DataError(f"expected one source, or x.npy and y.npy, got {got}")
    if not isinstance(source, str | Path) and not tables.is_frame(source):
        what = "a name, a path, two paths x.npy and y.npy, or a data frame"
        raise TypeError(f"load: expected {what}, got {type(source).__name__}")
    return _of_table(source, wanted) if is_table(source) else _of_arrays(source, wanted)


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
    x_path, y_path = (_path(path) for path in source)
    y = readers.read_npy(y_path)
    with explained(x_path):
        x = np.load(x_path, mmap_mode="r", allow_pickle=False)
    if x.ndim < 2 or len(x) != len(y):
        raise DataError(f"{x_path}: expected x of {len(y)} examples, got the shape {x.shape}")
    examples = arrays.from_arrays(f"{x_path}, {y_path}", np.zeros((len(y), 1)), y, task)
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
    for part in named_parts(source, encoding, features, reading, size):
        yield part.x


def named_parts(
    source: Source,
    encoding: Encoding,
    features: tuple[str, ...] = (),
    reading: Reading = GUESS,
    size: int = tables.PART,
) -> Iterator[Part]:
    """As `parts`, with the columns that name the rows (`Reading.id`) and what was left out.

    >>> encoding = Encoding((), Scaling(np.zeros(4), np.ones(4)))
    >>> [part.ids for part in named_parts("iris", encoding)]
    [{}]
    """
    if is_table(source):
        yield from _table_inputs(source, encoding, features, reading, size)
    else:
        yield Part(_array_inputs(source, encoding), {}, ())


def _array_inputs(source: Source, encoding: Encoding) -> np.ndarray:
    """The inputs of a source that is no table."""
    path = _path(source)
    if str(source) in BUNDLED:
        data = bundled(str(source))
        if encoding.features:
            return encoding.aligned(data).x
        x = data.x
    elif path.is_dir():
        x = arrays.idx_images(path)
    elif path.suffix == ".npz":
        (x,) = readers.read_npz(path, "x")
    else:
        x = (readers.read_npy if path.suffix == ".npy" else readers.read_idx)(path)
    x = arrays.as_inputs(str(source), x)
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


def _of_arrays(source: str | Path, wanted: _Wanted) -> Dataset:
    """The examples of a bundled set, a folder or a file of arrays."""
    wanted.refuse_options(source)
    path, task = _path(source), wanted.task
    if str(source) in BUNDLED:
        data = bundled(str(source))
        if task not in (None, TASKS[not data.classes]):
            raise DataError(f"{source}: its task is {TASKS[not data.classes]}, not {task}")
        return data
    if not path.exists():
        raise _unknown(source)
    if path.is_dir():
        return arrays.idx_folder(path, task)
    if path.suffix == ".npz":
        x, y = readers.read_npz(path, "x", "y")
        return arrays.from_arrays(str(path), x, y, task)
    hint = "give two files, x.npy and y.npy" if path.suffix == ".npy" else "give the folder"
    raise DataError(f"{path}: the targets are missing: {hint}")


def _path(source: str | Path) -> Path:
    """The source as a path; the empty text, which would be the working directory, is refused."""
    if not str(source):
        raise DataError("expected a source, got an empty name")
    return Path(source)


def _unknown(source: str | Path) -> DataError:
    hint = nearest(str(source), BUNDLED)
    return DataError(f"{source}: no such file, and no bundled set of that name; {hint}")


def _of_table(source: Source, wanted: _Wanted) -> Dataset:
    """The examples of a table."""
    reading, like = wanted.reading, wanted.like
    (table,) = _tables(source, reading, like)
    if table.frame.width < 2:
        what = "expected at least one feature and the target, got one column"
        raise DataError(f"{table.name}: {what}")
    at = targets.index(table, wanted.target, wanted.target_name)
    notes, kind = list(table.notes), reading.kind_of(table.option(at))
    blank = targets.text(table, at, kind).is_null()
    if blank.any():
        if reading.missing == "error" or blank.all():
            raise DataError(f"{table.where(at, int(blank.arg_max() or 0))}: no value")
        table = table.only(~blank)
        notes.append(f"{blank.sum()} rows without a target left out")
    y, classes, note = targets.targets(table, at, wanted.task, kind)
    groups, times = _apart(table, reading)
    beside = {at, *_indices(table, (*reading.id, *reading.group))}
    learned = [i for i in range(table.frame.width) if i not in beside]
    x, found, more = _parsed(table, learned, reading, _like(table, learned, like))
    names = tuple(table.names[i] for i in learned if table.names)
    hints = () if like else _suspects.suspects([table.called(i) for i in learned], x, found, y)
    notes += [*filter(None, [note]), *more, *hints]
    return Dataset(
        table.name, x, y, classes, names, table.names[at : at + 1], None, found,
        tuple(notes), tuple(blank.arg_true()), groups, times, table.encoding,
    )  # fmt: skip


def _indices(table: Table, names: Collection[str]) -> list[int]:
    """The columns of these names, as far as they are there."""
    return [table.names.index(name) for name in names if name in table.names]


def _apart(table: Table, reading: Reading) -> tuple[np.ndarray | None, np.ndarray | None]:
    """What a split goes by: the group (n,) of each row, and its time (n,)."""
    groups = times = None
    if places := _indices(table, reading.group):
        codes = [columns.parse_column(table, i, None, CATEGORY)[1] for i in places]
        rows = np.stack(codes, 1)
        blank = np.isnan(rows).any(1)
        rows[blank] = -1 - np.arange(blank.sum())[:, None]  # each a group of its own
        groups = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
    for place in _indices(table, [reading.time or ""]):
        kind = reading.kind_of(table.option(place))
        column, times, _ = columns.parse_column(table, place, None, kind)
        if column.kind == CATEGORY:
            raise DataError(f"{table.where(place)}: expected dates or numbers to split by")
        _refuse_blanks(table, [place], times[:, None], " to split by")
    return groups, times


def _table_inputs(
    source: Source, encoding: Encoding, features: tuple[str, ...], reading: Reading, size: int
) -> Iterator[Part]:
    """The columns of a table that an encoding uses, or that have the names of features."""
    wanted = tuple(feature.name for feature in encoding.used) or features
    like: list[Column | None] = []
    for table in _tables(source, reading, encoding, wanted, size):
        places = _places(table, wanted, len(encoding.features) or encoding.d_in)
        like = like or _like(table, places, encoding)
        x, found, _ = _parsed(table, places, reading, like)
        like = [_decided(old, new) for old, new in zip(like, found, strict=True)]
        ids = {name: table.frame[:, i] for name in reading.id for i in _indices(table, [name])}
        lost = tuple(note for note in table.notes if "left out" in note)
        if encoding.features:
            names = wanted if table.names and any(wanted) else ()
            part = Dataset(table.name, x, np.empty(0), (), names, columns=found)
            x = encoding.aligned(part).x
        else:
            _check_numbers(table, places, found, x)
        yield Part(x, ids, lost)


def _places(table: Table, wanted: tuple[str, ...], every: int) -> list[int]:
    """The columns of the wanted names, or all where the table or the run has no names."""
    if table.names and any(wanted):
        for name in sorted(set(wanted) - set(table.names)):
            hint = nearest(name, table.names)
            raise DataError(f"{table.name}: the column {name!r} is missing; {hint}")
        where = {name: i for i, name in enumerate(table.names)}
        return [where[name] for name in wanted]
    if table.frame.width != every:
        got = table.frame.width
        raise DataError(f"{table.name}: expected {every} columns, the features, got {got}")
    return list(range(every))


def _check_numbers(
    table: Table, places: list[int], found: tuple[Column, ...], x: np.ndarray
) -> None:
    """Raise DataError for what a network that was trained on arrays can't take."""
    for column, place in zip(found, places, strict=True):
        if column.kind != NUMBER:
            raise DataError(f"{table.where(place)}: expected numbers, got a {column.kind}")
    _refuse_blanks(table, places, x, "")


def _refuse_blanks(table: Table, places: Sequence[int], x: np.ndarray, hint: str) -> None:
    if (blank := np.isnan(x)).any():
        row, i = np.argwhere(blank)[0]
        raise DataError(f"{table.where(places[i], int(row))}: no value{hint}")


def _decided(like: Column | None, found: Column) -> Column | None:
    """How the next part of a table is read: what training does not say, the first part does."""
    if like is None:
        return found
    return found if found.kind == like.kind and not like.form else like


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
    like: Encoding | None = None,
    only: Collection[str] = (),
    size: int | None = None,
) -> Iterator[Table]:
    """The table in parts; in one without a size. It has a header if that of `like` had one."""
    names = [feature.name for feature in like.features] if like and like.features else None
    if not tables.is_frame(source) and not _path(source).exists():
        raise _unknown(source)
    for table in tables.parts(
        source,
        reading=reading if names is None or any(names) else reading._replace(header=False),
        size=size or readers.LIMIT + 1,
        known=tuple(filter(None, names or ())),
    ):
        if like is None:
            _check_names(table, reading)
        yield _named(table, reading, only)


def _check_names(table: Table, reading: Reading) -> None:
    """Raise DataError where an option names a column that is not there."""
    named = {*reading.drop, *reading.id, *reading.group, reading.time}
    known = table.names or [at for at in table.frame.columns if at not in named]
    for name in sorted(reading.columns() - set(known)):
        hint = nearest(name, table.names) if table.names else "it has no header"
        raise DataError(f"{table.name}: no column is called {name!r}; {hint}")


def _named(table: Table, reading: Reading, only: Collection[str]) -> Table:
    """The table without the columns that are dropped, and without empty ones that lack a name.

    Others that lack a name get one as pandas gives it: "Unnamed: 0" for the first column.
    """
    gone = {i for i, name in enumerate(table.names) if name in reading.drop}
    if not any(only):  # else columns are found by their names, in each part alike
        nameless = (i for i, name in enumerate(table.names) if not name)
        gone |= {i for i in nameless if not columns.stripped(table.frame[:, i]).count()}
    table = table.without(gone)
    named = zip(table.frame.columns, table.names, strict=False)
    names = tuple(name or f"Unnamed: {i}" for i, name in named)
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise DataError(f"{table.name}: two columns are called {twice!r}")
    return table._replace(names=names)


def _parsed(
    table: Table, places: Sequence[int], reading: Reading, like: Sequence[Column | None]
) -> tuple[np.ndarray, tuple[Column, ...], tuple[str, ...]]:
    """x (n, d) of the columns at these places, what they hold, and what was guessed."""
    x = np.empty((len(table.frame), len(places)))
    found: list[Column] = []
    notes: list[str] = []
    for i, place in enumerate(places):
        kind = reading.kind_of(table.option(place))
        column, x[:, i], note = columns.parse_column(table, place, like[i], kind)
        found.append(column)
        notes.append(note)
    if reading.missing == "error":
        _refuse_blanks(table, places, x, "; --missing fill fills it in")
    return x, tuple(found), tuple(dict.fromkeys(filter(None, notes)))
