"""Examples with their targets, as arrays of one fixed form."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from fnn.data.errors import DataError, nearest

TASKS = ("classification", "regression")
NUMBER, CATEGORY, DATE, TIME, TEXT = "number", "category", "date", "time", "text"
NAMED = (CATEGORY, TEXT)
"""The kinds of which a cell is one of the column's values."""

TRUTH = {"false": "0", "true": "1", "0": "0", "1": "1", "0.0": "0", "1.0": "1"}


class Column(NamedTuple):
    """What a column of a table holds: the cells as float64, NaN for a blank.

    kind says which: of a number the number; of a category or a text the index into `values`, or -1
    for a value that is not in them; of a date the days since 1970-01-01, with the time of day as
    a fraction; of a time of day the fraction of a day. form is how text was read, such as
    "decimal commas" or "%d/%m/%Y", or "" where there was no choice.

    >>> Column("category", ("cat", "dog")).values[1]
    'dog'
    """

    kind: str
    values: tuple[str, ...] = ()
    form: str = ""


class Dataset(NamedTuple):
    """Examples to learn from.

    x (n, d_in) holds real numbers in the source's own units and dtype. y holds class labels,
    (n,) int32 from 0 to len(classes) - 1, or, where classes is (), values (n, k) in their own
    units. All are finite. features and targets name the columns of x and y, or are ().
    Where the source has a test part of its own, `test` holds it; otherwise `test` is None.

    Of a table, `columns` says what each column of x holds, and x may have blanks: NaN. Of arrays
    it is (). notes say what reading the source has guessed, and skipped holds the indices of the
    source's rows that are left out because they have no target. groups and times, (n,) or None, are
    what a split goes by; encoding is that of a text file that is not in UTF-8.

    >>> data = Dataset("pets", np.ones((2, 3)), np.array([1, 0], np.int32), ("cat", "dog"))
    >>> [data.classes[label] for label in data.y]
    ['dog', 'cat']
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...]
    features: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    test: "Dataset | None" = None
    columns: tuple[Column, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: tuple[int, ...] = ()
    groups: np.ndarray | None = None
    times: np.ndarray | None = None
    encoding: str | None = None


class Part(NamedTuple):
    """Consecutive rows of a source without targets: x (n, d_in) as `Encoding.apply` takes it, the
    cells (n,) of the columns that name the rows, and notes of what is left out.

    >>> Part(np.ones((2, 1)), {}, ()).x.shape
    (2, 1)
    """

    x: np.ndarray
    ids: dict[str, Any]
    left_out: tuple[str, ...]


def relabelled(data: Dataset, classes: tuple[str, ...]) -> Dataset:
    """The same examples, their labels as indices into `classes`.

    Raises DataError for an example of a class that is not in `classes`, and where only one of
    the two has classes.

    >>> data = Dataset("pets", np.ones((2, 1)), np.array([0, 1]), ("cat", "dog"))
    >>> relabelled(data, ("bird", "dog", "cat")).y
    array([2, 1], dtype=int32)
    """
    if bool(classes) != bool(data.classes):
        kinds = [f"{len(c)} classes" if c else "values to predict" for c in (classes, data.classes)]
        raise DataError(f"{data.name}: expected {kinds[0]}, got {kinds[1]}")
    places = np.array(matched(data.classes, classes), np.int32)
    if (places < 0).any():
        name = data.classes[int(places.argmin())]
        hint = nearest(name, classes)
        raise DataError(f"{data.name}: {name!r} is none of the classes learned; {hint}")
    return data._replace(y=places[data.y], classes=classes) if classes else data


def matched(values: Sequence[str], known: Sequence[str]) -> list[int]:
    """The index of each value in `known`, -1 where it is not there.

    Where `known` are booleans, or 0 and 1 and the values booleans, true, True and 1 are the same.
    A word that is not there is the known one that differs only in its capitals.
    """
    lower = [value.lower() for value in (*values, *known)]
    if {k.lower() for k in known} <= TRUTH.keys() and not {"true", "false"}.isdisjoint(lower):
        values, known = ([TRUTH.get(v.lower(), v) for v in each] for each in (values, known))
    where = {value.lower(): i for i, value in enumerate(known) if len(value) > 1}
    where |= {value: i for i, value in enumerate(known)}
    alike = [value.lower() if len(value) > 1 else value for value in values]
    return [where.get(v, where.get(low, -1)) for v, low in zip(values, alike, strict=True)]


def places(source: str, known: Sequence[str], wanted: Collection[str]) -> list[int]:
    """The index in `known` of each name that is wanted. Raises DataError for a missing one."""
    where = {name: i for i, name in enumerate(known)}
    for name in wanted:
        if name not in where:
            hint = nearest(name, known) if known else "it has no header"
            raise DataError(f"{source}: no column is called {name!r}; {hint}")
    return [where[name] for name in wanted]
