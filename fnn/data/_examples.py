"""The examples of a table: its rows as numbers, with their targets or without."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from fnn.data import _columns, _readers, _suspects, _tables, _targets
from fnn.data._reading import Reading
from fnn.data._tables import Table
from fnn.data.dataset import CATEGORY, NUMBER, Column, Dataset, Part, places
from fnn.data.encoding import Encoding
from fnn.data.errors import DataError


def of_table(
    source: Any,
    target: str | int | None,
    task: str | None,
    target_name: str | None,
    reading: Reading,
    like: Encoding | None,
) -> Dataset:
    """The examples of a table; the arguments are those of `load`."""
    (table,) = _read(source, reading, like)
    if table.frame.width < 2:
        what = "expected at least one feature and the target, got one column"
        raise DataError(f"{table.name}: {what}")
    at = _targets.index(table, target, target_name)
    kind = reading.kind_of(table.option(at))
    cells = _targets.text(table, at, kind)
    blank, gone = cells.is_null(), cells.null_count()
    if gone and (reading.missing == "error" or blank.all()):
        raise DataError(f"{table.where(at, blank.arg_max())}: no value")
    table = table.only(~blank) if gone else table
    y, classes, note = _targets.targets(table, at, cells.drop_nulls(), task, kind)
    groups, times = _apart(table, reading)
    beside = {at, *_indices(table, (*reading.id, *reading.group))}
    learned = table.at([i for i in range(table.frame.width) if i not in beside])
    x, found, more = _parsed(learned, reading, _like(learned, like))
    hints = () if like else _suspects.suspects(learned.called, x, found, y)
    left = [f"{gone} rows without a target left out"] if gone else []
    notes = (*table.notes, *left, *filter(None, [note]), *more, *hints)
    return Dataset(
        table.name, x, y, classes, learned.names, table.names[at : at + 1], None, found,
        notes, tuple(blank.arg_true()), groups, times, table.encoding,
    )  # fmt: skip


def _indices(table: Table, names: Collection[str]) -> list[int]:
    """The columns of these names, as far as they are there."""
    return [table.names.index(name) for name in names if name in table.names]


def _apart(table: Table, reading: Reading) -> tuple[np.ndarray | None, np.ndarray | None]:
    """What a split goes by: the group (n,) of each row, and its time (n,)."""
    groups = times = None
    if places := _indices(table, reading.group):
        rows = np.stack([_columns.parse_column(table, i, None, CATEGORY)[1] for i in places], 1)
        blank = np.isnan(rows).any(1)
        rows[blank] = -1 - np.arange(blank.sum())[:, None]  # each a group of its own
        groups = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
    for place in _indices(table, [reading.time or ""]):
        kind = reading.kind_of(table.option(place))
        column, times, _ = _columns.parse_column(table, place, None, kind)
        if column.kind == CATEGORY:
            raise DataError(f"{table.where(place)}: expected dates or numbers to split by")
        _refuse_blanks(table.at([place]), times[:, None], " to split by")
    return groups, times


def inputs(source: Any, encoding: Encoding, reading: Reading, size: int) -> Iterator[Part]:
    """The columns of a table that an encoding uses."""
    like: list[Column | None] = []
    for table in _read(source, reading, encoding, size):
        named = table.names and any(encoding.names)
        used = table.at(places(table.name, table.names, encoding.names)) if named else table
        like = like or _like(used, encoding)
        x, found, _ = _parsed(used, reading, like)
        # What training does not say of how later parts are read, the first part does.
        pairs = zip(like, found, strict=True)
        like = [one if one and (one.form or one.kind != now.kind) else now for one, now in pairs]
        ids = {name: table.frame[:, i] for name in reading.id for i in _indices(table, [name])}
        lost = tuple(note for note in table.notes if "left out" in note)
        if not encoding.features:
            _check_numbers(used, found, x)
        names = used.names if named else ()
        part = Dataset(table.name, x, np.empty(0), (), names, columns=found)
        yield Part(encoding.aligned(part).x, ids, lost)


def unlabelled(source: Any, reading: Reading) -> Dataset:
    """All columns of a table, as those of examples without _targets."""
    (table,) = _read(source, reading, None)
    x, found, notes = _parsed(table, reading, [None] * table.frame.width)
    y = np.empty((len(x), 0))
    return Dataset(table.name, x, y, (), table.names, columns=found, notes=(*table.notes, *notes))


def _check_numbers(table: Table, found: Sequence[Column], x: np.ndarray) -> None:
    """Raise DataError for what a network that was trained on arrays can't take."""
    for i, column in enumerate(found):
        if column.kind != NUMBER:
            raise DataError(f"{table.where(i)}: expected numbers, got a {column.kind}")
    _refuse_blanks(table, x)


def _refuse_blanks(table: Table, x: np.ndarray, hint: str = "") -> None:
    """Raise DataError for the first cell of x, of the columns of a table, that has no value."""
    for row, i in np.argwhere(np.isnan(x)):
        raise DataError(f"{table.where(i, int(row))}: no value{hint}")


def _like(table: Table, encoding: Encoding | None) -> list[Column | None]:
    """What the columns were when the encoding was fitted; None for those that it does not use."""
    features = encoding.features if encoding else ()
    known = [None if feature.left_out else feature.column for feature in features]
    if table.names and any(feature.name for feature in features):
        named = {feature.name: column for feature, column in zip(features, known, strict=True)}
        return [named.get(name) for name in table.names]
    return known if len(known) == table.frame.width else [None] * table.frame.width


def _read(source: Any, reading: Reading, like: Encoding | None, size: int = 0) -> Iterator[Table]:
    """The table in parts; in one without a size. It has a header if that of `like` had one."""
    if reading.skip is not None and (type(reading.skip) is not int or reading.skip < 0):
        raise ValueError(f"reading: expected a whole number of lines to skip, got {reading.skip!r}")
    features = like.features if like else ()
    known = {feature.name: feature.kind for feature in features if feature.name}
    if features and not known:
        reading = reading._replace(header=False)
    for table in _tables.parts(source, reading, size or _readers.LIMIT + 1, known):
        if like is None:
            _check_names(table, reading)
        yield _named(table, reading, like.names if like and size else ())


def _check_names(table: Table, reading: Reading) -> None:
    """Raise DataError where an option names a column that is not there."""
    named = {*reading.drop, *reading.id, *reading.group, reading.time}
    known = table.names or [at for at in table.frame.columns if at not in named]
    places(table.name, table.names, sorted(reading.columns() - set(known)))


def _named(table: Table, reading: Reading, only: Collection[str]) -> Table:
    """The table without the columns that are dropped, and without empty ones that lack a name.

    Others that lack a name get one as pandas gives it: "Unnamed: 0" for the first column.
    """
    gone = {i for i, name in enumerate(table.names) if name in reading.drop}
    if not any(only):  # else columns are found by their names, in each part alike
        nameless = (i for i, name in enumerate(table.names) if not name)
        gone |= {i for i in nameless if not _columns.stripped(table.frame[:, i]).count()}
    table = table.at([i for i in range(table.frame.width) if i not in gone]) if gone else table
    names = [name or f"Unnamed: {table.frame.columns[i]}" for i, name in enumerate(table.names)]
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise DataError(f"{table.name}: two columns are called {twice!r}")
    return table._replace(names=tuple(names))


def _parsed(
    table: Table, reading: Reading, like: Sequence[Column | None]
) -> tuple[np.ndarray, tuple[Column, ...], tuple[str, ...]]:
    """x (n, d) of a table's columns, what they hold, and what was guessed."""
    x = np.empty((len(table.frame), table.frame.width))
    found: list[Column] = []
    notes: dict[str, None] = {}
    for i, known in enumerate(like):
        kind = reading.kind_of(table.option(i))
        column, x[:, i], note = _columns.parse_column(table, i, known, kind)
        found.append(column)
        notes[note] = None
    if reading.missing == "error":
        _refuse_blanks(table, x, "; --missing fill fills it in")
    return x, tuple(found), tuple(filter(None, notes))
