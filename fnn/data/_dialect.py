"""How a text file writes a table: its separator, its header, its line ends."""

import csv
import io
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from fnn.data.errors import DataError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}
BLANKS = [
    "", "NA", "N/A", "n/a", "na", "#N/A", "NaN", "nan", "NAN", "NULL", "null", "None",
    "?", "-", ".",
]  # fmt: skip
"""What people write where there is no value."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|infinity|nan)", re.I | re.A)
CODE = re.compile(rb"[,;\t|\n\r\"]0\d")
"""Bytes that a cell such as 0870 has in front."""
CODES, COMPACT = re.compile(r"0\d+"), re.compile(r"\d{7,8}")
"""Cells that are a code, not a number, and that may be a date without separators."""
EXCEL = re.compile(r"sep=([,;\t|])\s*")
ROWS = 200
"""The most rows that a guess looks at."""


class Dialect(NamedTuple):
    """How a table is written.

    separator stands between cells, end after each line. names are the header's, () without one;
    the examples begin after `skip` bytes, which are `lines` lines. sample holds the first rows
    of them. With `trailing`, each line of them ends with a separator that the header lacks.
    head is the header as it is written, after `above` lines. notes say what was guessed and is not
    what most files have.
    """

    separator: str
    end: str
    names: tuple[str, ...]
    skip: int
    lines: int
    sample: tuple[tuple[str, ...], ...]
    trailing: bool = False
    head: str = ""
    above: int = 0
    notes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """The number of columns."""
        return len(self.names or self.sample[0])

    def columns(self) -> list[tuple[str, ...]]:
        """The cells of each column in the sample."""
        return list(zip(*(row for row in self.sample if len(row) == self.width), strict=True))

    def numbers(self) -> list[int]:
        """The columns that are numbers in the sample, those of one line at least."""
        lines = [[c for c in cells if "\n" not in c and c] for cells in self.columns()]
        found = [bool(cells) and _are_numbers(cells) for cells in lines]
        return [i for i, is_one in enumerate(found) if is_one]


def guess(
    content: bytes,
    separator: str | None = None,
    header: bool | None = None,
    known: Collection[str] = (),
) -> Dialect:
    """The dialect of a file that starts with these bytes, text in UTF-8.

    The separator is the one of `SEPARATORS` that cuts the first lines into the most columns, the
    same number in each; beside another separator, a comma between two digits is a decimal comma.
    The first line is a header if none of its cells is a number, unless every column is text and
    the first line's cells come again below it; or if its cells count the columns, 0, 1, 2, as
    pandas names columns without names. A header may lack the first column's name, as R writes
    it. A line that has one of the names `known` is a header. separator and header, where given,
    are not guessed. A first line `sep=;`, as Excel writes it, decides the separator.

    Raises DataError where there is no line, UnicodeDecodeError for other text than UTF-8.
    """
    mark = 3 if content.startswith(b"\xef\xbb\xbf") else 0
    text = content[mark:].decode()
    lines = list(io.StringIO(text, newline=""))
    before = _remarks(lines)
    if lines and (told := EXCEL.fullmatch(lines[0])):
        separator, before = separator or told[1], 1
    lines, remarks = lines[before:], "".join(lines[:before])
    guessed, separator = separator is None, separator or _separator(lines)
    rows, ends = _rows(lines, separator)
    if not rows:
        raise DataError("empty")
    end = "\r" if "\r" in text and "\n" not in text else "\n"
    first, sample = rows[0], tuple(rows[1:])
    named = header
    if header is None:
        named = not set(known).isdisjoint(first) or _is_header(first, sample)
    start = ends[0] if named else 0
    while start < len(lines) and not lines[start].strip("\r\n "):
        start += 1
    skip = mark + len((remarks + "".join(lines[:start])).encode())
    notes = [f"separated by {SEPARATORS[separator]}"] if guessed and separator != "," else []
    if not named:
        notes += ["no header"] if header is None else []
        return Dialect(separator, end, (), skip, before + start, tuple(rows), notes=tuple(notes))
    more = bool(sample) and all(len(row) == len(first) + 1 for row in sample)
    trailing = more and not any(row[-1] for row in sample)
    if more:
        first = (*first, "") if trailing else ("", *first)
    head = "".join(lines[: ends[0]])
    return Dialect(
        separator, end, first, skip, before + start, sample, trailing, head, before, tuple(notes)
    )


def is_number(cell: str) -> bool:
    """Whether a cell is a number, with a decimal point."""
    return NUMBER.fullmatch(cell.strip()) is not None


def are_plain(cells: Sequence[str]) -> bool:
    """Whether the cells of a column are numbers, or blank, and nothing else that digits mean."""
    there = [cell for cell in cells if cell not in BLANKS]
    if any(map(CODES.fullmatch, there)) or (there and all(map(COMPACT.fullmatch, there))):
        return False
    return all(map(is_number, there))


def _rows(lines: Sequence[str], separator: str) -> tuple[list[tuple[str, ...]], list[int]]:
    """The first rows that are not blank, as far as they can be read, and the lines they end on."""
    rows: list[tuple[str, ...]] = []
    ends: list[int] = []
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=separator != "\t")
    try:
        for cells in reader:
            if len(cells) > 1 or "".join(cells).strip():
                rows.append(tuple(cell.strip() for cell in cells))
                ends.append(reader.line_num)
            if len(rows) > ROWS:
                break
    except csv.Error:
        pass
    return rows, ends


def _remarks(lines: Sequence[str]) -> int:
    """The number of lines before the table that begin with #; those right before it that are cut
    into as many cells belong to it."""
    count = next((i for i, line in enumerate(lines) if not line.startswith("#")), 0)
    if not count:
        return 0
    then = lines[count]
    alike = lambda line: any(line.count(mark) == then.count(mark) > 0 for mark in SEPARATORS)
    while count and alike(lines[count - 1]):
        count -= 1
    return count


def _separator(lines: Sequence[str]) -> str:
    """The separator that cuts these lines into the most columns, if all into as many."""
    some = [line for line in lines[: ROWS + 1] if line.strip()]
    others = any(mark in line for line in some[:1] for mark in ";\t|")
    found: dict[str, tuple[bool, int]] = {}
    for mark in SEPARATORS:
        cut = some
        if mark == "," and others:
            cut = [re.sub(r"(?<=\d),(?=\d)", "", line) for line in some]
        widths = [len(row) for row in _rows(cut, mark)[0]]
        most = max(widths, default=1)
        same = most > 1 and all(width == most for width in widths[1:] or widths)
        found[mark] = (same and widths[0] in (most, most - 1), widths[0] if widths else 1)
    return max(found, key=lambda mark: found[mark])


def _is_header(first: Sequence[str], sample: Sequence[Sequence[str]]) -> bool:
    numbers = [i for i, cell in enumerate(first) if is_number(cell.replace(",", "."))]
    if numbers:  # a header only if they count the columns
        named = numbers if first[0] else [i - 1 for i in numbers]
        counts = all(first[i] == str(j) for i, j in zip(numbers, named, strict=True))
        return counts and len(numbers) > 2
    columns = list(zip(*(row for row in sample if len(row) == len(first)), strict=True))
    if any(map(_are_numbers, columns)):
        return True
    again = sum(cell in column for cell, column in zip(first, columns, strict=False) if cell)
    return again == 0 or again < len(first) / 2


def _are_numbers(cells: Sequence[str]) -> bool:
    """Whether all cells that are not empty are numbers."""
    return all(is_number(cell.replace(",", ".")) for cell in cells if cell)
