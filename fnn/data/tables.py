"""CSV files, gzipped or not: tables with commas, semicolons or tabs, with a header or none.

Rows are read by Python's csv module, because it knows the line of every fault. A table of 50
million cells takes under half a minute.
"""

import csv
import io
import itertools
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from fnn.data import readers
from fnn.data.dataset import Dataset
from fnn.data.errors import DataError, explained, nearest, not_finite

FEW = 20
"""At most this many different whole numbers in the target column are taken as classes."""

LINE_LIMIT = 1 << 24
"""The most characters of one line."""
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


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

    The first line is a header if none of its cells is a number, or if three or more are and
    each is the index of its own column: 0, 1, 2, as pandas names columns without names. The
    features must be finite numbers; the target column stays text. A missing cell is an error,
    blank lines are skipped. A line may have at most `LINE_LIMIT` characters, and the table may
    take at most `readers.LIMIT` bytes of memory.

    Raises DataError with the line and the column, OSError where the file can't be opened.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.csv")
    ...     size = path.write_text("width,kind\\n1.5,x\\n")
    ...     table = read_table(path, lambda names, width: ([0], 1))
    >>> table.names, table.numbers, table.texts
    (('width', 'kind'), array([[1.5]]), ['x'])
    """
    with readers.opened(path) as file, explained(path):
        rows = _rows(path, file)
        first_line, first = next(rows, (0, []))
        if not first:
            raise DataError(f"{path}: empty")
        has_header = _is_header(first)
        names = tuple(cell.strip() for cell in first) if has_header else ()
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"{path}: two columns are called {name!r}")
        features, target = choose(names, len(first))
        most = readers.LIMIT // (8 * len(features) + 72)  # a cell of text takes about 64 bytes
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
                        what = _not_a_number(cells[i]) if cells[i].strip() else "no value"
                        raise DataError(
                            f"{path}: line {line}, {_column(i, names)}: {what}"
                        ) from None
                numbers.extend([float(cells[i]) for i in features])
            if len(lines) >= most:
                what = f"the table is too large: at most {readers.LIMIT} bytes are read"
                raise DataError(f"{path}: line {line}: {what}")
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


def read_examples(
    path: Path, target: str | int | None, task: str | None, called: str | None = None
) -> Dataset:
    """Read a table whose columns are features, but for the target column.

    `target` is the target column's name, or its index from 0 (negative from the end); None is
    the last column. Where the file has a header and `called` is given, it is the column of that
    name instead. With task None, the target column holds classes if it is all text, or all
    whole numbers of which at most `FEW` differ; otherwise values. Numbers that are equal are
    one class, however they are written.

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
        at = _target_index(path, called if names and called else target, names, width)
        return [i for i in range(width) if i != at], at

    names, x, texts, lines = read_table(path, choose)

    def fault(row: int, what: str) -> DataError:
        return DataError(f"{path}: line {lines[row]}, {_column(at, names)}: {what}")

    features = tuple(name for i, name in enumerate(names) if i != at)
    data = Dataset(str(path), x, np.empty(0), (), features, (names[at],) if names else ())
    numbers = [number for text in texts if (number := _number(text)) is not None]
    if len(numbers) < len(texts):
        some_numbers = numbers or all(map(DECIMAL_COMMA.fullmatch, texts))
        if task == "regression" or (task is None and some_numbers):
            row = next(row for row, text in enumerate(texts) if _number(text) is None)
            hint = "; if these are classes, say that the task is classification"
            raise fault(row, _not_a_number(texts[row]) + hint)
        return _labelled(data, texts)
    for (row,) in not_finite(np.array(numbers)):
        raise fault(row, "expected a finite number")
    exact = [int(t) if _is_whole(t) else n for t, n in zip(texts, numbers, strict=True)]
    different = len(set(exact))
    if task is None:
        few = different <= FEW and all(map(_is_whole, texts))
        task = "classification" if few else "regression"
    if task == "classification":
        return _labelled(data, exact)
    if different > len(set(numbers)):
        first: dict[float, float] = {}
        row = next(i for i, n in enumerate(numbers) if first.setdefault(n, exact[i]) != exact[i])
        same = f"{first[numbers[row]]} and {texts[row]}"
        raise fault(row, f"{same} are two whole numbers, but one float64")
    return data._replace(y=np.array(numbers)[:, None])


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
        bounded = _bounded(path, text)
        start = next(bounded, "")
        lines = csv.reader(
            itertools.chain([start], bounded), delimiter=_delimiter(start), strict=True
        )
        try:
            for cells in lines:
                content = "".join(cells)
                if "\0" in content:
                    raise DataError(f"{path}: line {lines.line_num}: binary, not text")
                if content.strip() or len(cells) > 1:
                    yield lines.line_num, cells
        except csv.Error as error:
            raise DataError(f"{path}: line {lines.line_num}: {error}") from error


def _labelled(data: Dataset, y: Sequence[Any]) -> Dataset:
    """The data with a class for each different value of y, in ascending order."""
    values = sorted(set(y))
    label = {value: i for i, value in enumerate(values)}
    classes = tuple(map(_class_name, values))
    return data._replace(y=np.array([label[v] for v in y], np.int32), classes=classes)


def _class_name(value: int | float | str) -> str:
    """One name for equal numbers: 1 for 1.0, 0 for -0.0."""
    return str(value if isinstance(value, str) or value != int(value) else int(value))


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


def _bounded(path: Path, text: IO[str]) -> Iterator[str]:
    """The lines of a text, none of them longer than `LINE_LIMIT`."""
    for number, line in enumerate(iter(lambda: text.readline(LINE_LIMIT + 1), ""), 1):
        if len(line) > LINE_LIMIT:
            raise DataError(f"{path}: line {number}: longer than {LINE_LIMIT} characters")
        yield line


def _delimiter(line: str) -> str:
    """The most frequent of comma, semicolon and tab.

    Beside a semicolon or a tab, a comma between two digits is a decimal comma, which is not
    counted.
    """
    separated = re.sub(r"(?<=\d),(?=\d)", "", line) if re.search("[;\t]", line) else line
    return max(",;\t", key=separated.count)


def _is_header(cells: list[str]) -> bool:
    numbers = [i for i, cell in enumerate(cells) if _number(cell.replace(",", ".")) is not None]
    return len(numbers) not in (1, 2) and all(cells[i].strip() == str(i) for i in numbers)


def _is_whole(text: str) -> bool:
    return text.lstrip("+-").isdecimal()


def _not_a_number(cell: str) -> str:
    comma = DECIMAL_COMMA.fullmatch(cell.strip())
    return f"{cell!r} is not a number" + ("; write a decimal point" if comma else "")


def _number(cell: str) -> float | None:
    try:
        return float(cell) if "_" not in cell else None
    except ValueError:
        return None


def _column(index: int, names: tuple[str, ...]) -> str:
    return f"column {index + 1}" + (f" {names[index]!r}" if names else "")
