"""The column of a table that is learned: classes, or values to predict."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars
from polars import Series

from fnn.data import _columns as columns
from fnn.data._columns import FEW
from fnn.data._numbers import as_numbers
from fnn.data._tables import Table
from fnn.data.dataset import NUMBER, TASKS, places
from fnn.data.errors import DataError

WHOLE = r"^[+-]?\d+$"


def target_hint(names: Sequence[str]) -> str:
    """A hint that another column, of these names, may be the target."""
    some = ", ".join(name for name in names[:12] if name)
    more = ", ..." if len(names) > 12 else ""
    of = f", one of {some}{more}" if some else ""
    return f"another column may be the target: --target NAME{of}"


def index(table: Table, target: str | int | None, target_name: str | None = None) -> int:
    """The index of the target column, given by its name or its index; by default the last.

    Where the table has names and `target_name` is given, it is the column of that name instead.
    Raises DataError for a column that is not there.
    """
    names, width = table.names, table.frame.width
    target = target_name if names and target_name else target
    if target in names:
        return names.index(str(target))
    try:
        at = -1 if target is None else int(target)
    except ValueError:
        (at,) = places(table.name, names, [str(target)])
    if not -width <= at < width:
        raise DataError(f"{table.name}: expected a target column from 0 to {width - 1}, got {at}")
    return at % width


def text(table: Table, at: int, wanted: str | None) -> Series:
    """The cells of the column at an index as text, null where there is none.

    Beside numbers, what people write for nothing is null, and where numbers are wanted all else.
    Raises DataError for cells that are lists or other structures.
    """
    cells = table.frame.to_series(at)
    if cells.dtype == polars.Boolean:
        cells = cells.cast(polars.Int8).replace_strict([0, 1], ["False", "True"])
    if cells.dtype.is_nested() or cells.dtype in (polars.Binary, polars.Object, polars.Duration):
        what = f"expected numbers or text, got {cells.dtype}; {target_hint(table.names)}"
        raise DataError(f"{table.where(at)}: {what}")
    cells = columns.stripped(cells)
    clean, words = columns.without_words(cells)
    if not words and wanted != NUMBER:
        return cells
    numbers, _ = as_numbers(clean, table.separator)
    if wanted == NUMBER:
        return clean.set(numbers.is_null(), None)
    return clean if numbers.n_unique() > FEW and 2 * numbers.count() > clean.count() else cells


def targets(
    table: Table, at: int, cells: Series, task: str | None, wanted: str | None
) -> tuple[np.ndarray, tuple[str, ...], str]:
    """(y, classes, note) of the column at an index, of which `cells` are the text.

    y is labels (n,) int32, or, with classes (), values (n, 1) float64. With task None, the
    column holds classes if it is all text, or all whole numbers of which at most `FEW` differ;
    otherwise values. Numbers that are equal are one class, however they are written, but codes such
    as 0870 are text. The note says what was guessed.
    """
    task = task or (wanted and TASKS[wanted == NUMBER])
    numbers, form = as_numbers(cells, table.separator)
    few = numbers.n_unique() <= FEW
    codes = columns.are_codes(cells) and (few if task is None else task == TASKS[0])
    if codes or numbers.is_null().any():
        _check_text(table, at, TASKS[0] if codes else task, cells, numbers.is_null())
        cells, note = columns.one_spelling(cells)
        words = cells.unique()
        return *_labelled(table, at, task, cells, dict(zip(words, words, strict=True))), note
    note = f"{table.called(at)}: numbers, {form}" if form else ""
    values = columns.finite(table, at, numbers)
    task = task or TASKS[not (few and (numbers % 1 == 0).all())]
    if task == TASKS[1]:
        _check_apart(table, at, cells, numbers)
        return values[:, None].copy(), (), note
    pairs = polars.DataFrame({"text": cells, "number": numbers}).unique("text")
    exact = {word: _exact(word, number) for word, number in pairs.rows()}
    return *_labelled(table, at, task, cells, exact), note


def _check_text(table: Table, at: int, task: str | None, cells: Series, strays: Series) -> None:
    """Raise DataError where cells that are no numbers can't be classes."""
    if task == "regression" or (task is None and not strays.all()):
        row = int(strays.arg_max() or 0)
        hint = "" if task else "if these are classes, say --task classification; "
        what = f"{cells[row]!r} is not a number; {hint}{target_hint(table.names)}"
        raise DataError(f"{table.where(at, row)}: {what}")


def _labelled(
    table: Table, at: int, task: str | None, cells: Series, values: dict[str, Any]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels and classes in ascending order of the values that the words stand for."""
    ascending = sorted(set(values.values()))
    if task is None and len(ascending) > max(FEW, len(cells) / 2):
        what = f"{len(ascending)} classes in {len(cells)} examples"
        raise DataError(f"{table.where(at)}: {what}; {target_hint(table.names)}")
    place = {value: i for i, value in enumerate(ascending)}
    labels = {word: place[value] for word, value in values.items()}
    y = cells.replace_strict(labels, return_dtype=polars.Int32)
    return y.to_numpy().copy(), tuple(map(str, ascending))


def _exact(word: str, number: float) -> int | float:
    """The number as it is written, whole where it is whole: 1 for 1.0, 0 for -0.0."""
    if word.lstrip("+-").isdecimal():
        return int(word)
    return int(number) if number == int(number) else number


def _check_apart(table: Table, at: int, cells: Series, numbers: Series) -> None:
    """Raise DataError where two whole numbers are one float64."""
    large = cells.str.contains(WHOLE) & (numbers.abs() >= 2.0**53)
    first: dict[float, str] = {}
    for row in large.arg_true():
        one = first.setdefault(numbers[row], cells[row])
        if int(one) != int(cells[row]):
            what = f"{one} and {cells[row]} are two whole numbers, but one float64"
            raise DataError(f"{table.where(at, row)}: {what}")
