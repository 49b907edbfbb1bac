"""CSV files, gzipped or not: tables with commas, semicolons or tabs, with a header or none.

Rows are read by Python's csv module, because it knows the line of every fault. A table of 50
million cells takes under half a minute.
"""

import csv
import io
import itertools
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from fnn.data.dataset import Dataset, from_arrays
from fnn.data.errors import DataError, explained, nearest, not_finite
from fnn.data.readers import opened

FEW = 20
"""At most this many different whole numbers in the target column are taken as classes."""


class Table(NamedTuple):
    """The chosen columns of a CSV file.

    names: the names of all columns, () without a header. numbers (n, d) float64: the columns
    chosen as features. texts: the n cells of the column chosen as target, [] where none was.
    lines: the n lines on which the examples end.

    >>> Table(("a", "b"), np.array([[1.5]]), ["x"], array("q", [2])).texts
    ['x']
    """

    names: tuple[str, ...]
    numbers: np.ndarray
    texts: list[str]
    lines: array


Choice = Callable[[tuple[str, ...], int], tuple[list[int], int | None]]
"""choose(names, number of columns) -> (indices of the features, index of the target)."""


def read_table(path: Path, choose: Choice) -> Table:
    """Read the columns that `choose` picks.

    The first line is a header if none of its cells is a number. The features must be finite
    numbers; the target column stays text. A missing cell is an error, blank lines are skipped.
    Raises DataError with the line and the column, OSError where the file can't be opened.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.csv")
    ...     size = path.write_text("width,kind\\n1.5,x\\n")
    ...     table = read_table(path, lambda names, width: ([0], 1))
    >>> table.names, table.numbers, table.texts
    (('width', 'kind'), array([[1.5]]), ['x'])
    """
    with opened(path) as file, explained(path):
        rows = _rows(path, file)
        first_line, first = next(rows, (0, []))
        if not first:
            raise DataError(f"{path}: empty")
        has_header = all(_number(cell) is None for cell in first)
        names = tuple(cell.strip() for cell in first) if has_header else ()
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"{path}: two columns are called {name!r}")
        features, target = choose(names, len(first))
        numbers, texts, lines = array("d"), list[str](), array("q")
        for line, cells in rows if has_header else itertools.chain([(first_line, first)], rows):
            if len(cells) != len(first):
                raise DataError(
                    f"{path}: line {line}: expected {len(first)} columns, got {len(cells)}"
                )
            try:
                if "_" in "".join(cells):  # Python's float takes 1_000
                    raise ValueError
                numbers.extend([float(cells[i]) for i in features])
            except ValueError:
                for i in features:
                    if _number(cells[i]) is None:
                        what = f"{cells[i]!r} is not a number" if cells[i].strip() else "no value"
                        raise DataError(
                            f"{path}: line {line}, {_column(i, names)}: {what}"
                        ) from None
                numbers.extend([float(cells[i]) for i in features])
            if target is not None:
                if not cells[target].strip():
                    raise DataError(f"{path}: line {line}, {_column(target, names)}: no value")
                texts.append(cells[target].strip())
            lines.append(line)
    if not lines:
        raise DataError(f"{path}: a header, but no examples")
    x = np.frombuffer(numbers, np.float64).reshape(len(lines), len(features))
    for row, i in not_finite(x):
        place = f"line {lines[row]}, {_column(features[i], names)}"
        raise DataError(f"{path}: {place}: expected a finite number, got {x[row, i]}")
    return Table(names, x, texts, lines)


def read_examples(path: Path, target: str | int | None, task: str | None) -> Dataset:
    """Read a table whose columns are features, but for the target column.

    `target` is the target column's name, or its index from 0 (negative from the end); None is
    the last column. With task None, the target column holds classes if it is all text, or all
    whole numbers of which at most `FEW` differ; otherwise values.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.csv")
    ...     size = path.write_text("kind,width\\nx,1.5\\ny,2.5\\n")
    ...     data = read_examples(path, "kind", None)
    >>> data.features, data.classes, data.y
    (('width',), ('x', 'y'), array([0, 1], dtype=int32))
    """
    at = -1

    def choose(names: tuple[str, ...], width: int) -> tuple[list[int], int]:
        nonlocal at
        if width < 2:
            raise DataError(f"{path}: expected at least one feature and the target, got one column")
        at = _target_index(path, target, names, width)
        return [i for i in range(width) if i != at], at

    names, x, texts, lines = read_table(path, choose)
    numbers = [_number(text) for text in texts]
    where = _column(at, names)
    not_numbers = [i for i, number in enumerate(numbers) if number is None]
    if not_numbers and (task == "regression" or (task is None and len(not_numbers) < len(texts))):
        raise DataError(
            f"{path}: line {lines[not_numbers[0]]}, {where}: {texts[not_numbers[0]]!r} is not a "
            "number; if these are classes, say that the task is classification"
        )
    whole = not not_numbers and all(
        text.lstrip("+-").isdecimal() and len(text) < 18 for text in texts
    )
    if task is None:
        few = not_numbers or (whole and len(set(numbers)) <= FEW)
        task = "classification" if few else "regression"
    y = np.array(numbers if not not_numbers and (whole or task == "regression") else texts)
    for index in not_finite(y):
        raise DataError(f"{path}: line {lines[index[0]]}, {where}: expected a finite number")
    if whole and task == "classification":
        y = np.array([int(text) for text in texts])
    features = tuple(name for i, name in enumerate(names) if i != at)
    return from_arrays(str(path), x, y, task)._replace(
        features=features, targets=(names[at],) if names else ()
    )


def read_features(path: Path, d_in: int, features: tuple[str, ...] = ()) -> np.ndarray:
    """Read a table without targets: x (n, d_in).

    Where the file has a header and `features` are given, those columns are taken by name,
    whatever their order and whatever other columns there are. Otherwise the table must have
    d_in columns.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.csv")
    ...     size = path.write_text("b,note,a\\n1.5,x,2.5\\n")
    ...     read_features(path, 2, ("a", "b"))
    array([[2.5, 1.5]])
    """

    def choose(names: tuple[str, ...], width: int) -> tuple[list[int], None]:
        if names and features:
            for feature in features:
                if feature not in names:
                    hint = nearest(feature, names)
                    raise DataError(f"{path}: the column {feature!r} is missing; {hint}")
            return [names.index(feature) for feature in features], None
        if width != d_in:
            raise DataError(f"{path}: expected {d_in} columns, the features, got {width}")
        return list(range(width)), None

    return read_table(path, choose).numbers


def _rows(path: Path, file: IO[bytes]) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each line that is not blank."""
    with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        start = text.readline()
        delimiter = max(",;\t", key=start.count)
        lines = csv.reader(itertools.chain([start], text), delimiter=delimiter, strict=True)
        try:
            for cells in lines:
                content = "".join(cells)
                if "\0" in content:
                    raise DataError(f"{path}: line {lines.line_num}: binary, not text")
                if content.strip() or len(cells) > 1:
                    yield lines.line_num, cells
        except csv.Error as error:
            raise DataError(f"{path}: line {lines.line_num}: {error}") from error


def _target_index(path: Path, target: str | int | None, names: tuple[str, ...], width: int) -> int:
    """The index of the target column, given by its name or its index; by default the last."""
    if target in names:
        return names.index(str(target))
    try:
        at = -1 if target is None else int(target)
    except ValueError:
        hint = nearest(str(target), names) if names else "it has no header"
        raise DataError(f"{path}: no column is called {target!r}; {hint}") from None
    if not -width <= at < width:
        raise DataError(f"{path}: expected a target column from 0 to {width - 1}, got {at}")
    return at % width


def _number(cell: str) -> float | None:
    try:
        return float(cell) if "_" not in cell else None
    except ValueError:
        return None


def _column(index: int, names: tuple[str, ...]) -> str:
    return f"column {index + 1}" + (f" {names[index]!r}" if names else "")
