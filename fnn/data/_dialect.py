"""How a text file writes a table: its separator, its header, its line ends."""

import csv
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from fnn.data._reading import GUESS, Reading
from fnn.data.errors import DataError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|infinity|nan)", re.I | re.A)
UNIT = re.compile(
    r"(?!(?i:n\W?[adv]\.?|nan|null?|unknown|missing|none|nil|tbd|undefined|varies|not|inf|yes|no"
    r"|true|false|.?blank.?)$)"
    r"[(\[]?([^\W\d]|[%$€£°#])[^\s\d]{0,11}[23²³]?[)\]]?"
)
"""A cell of a line of units, which stands between a header and numbers."""
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

    def numbers(self) -> list[int]:
        """The columns that are numbers in the sample, those of one line at least."""
        columns = zip(*(row for row in self.sample if len(row) == self.width), strict=True)
        lines = [[cell for cell in cells if "\n" not in cell and cell] for cells in columns]
        return [i for i, cells in enumerate(lines) if cells and _are_numbers(cells)]


def guess(content: bytes, reading: Reading = GUESS, known: Mapping[str, str] = {}) -> Dialect:
    """The dialect of a file that starts with these bytes, text in UTF-8.

    The separator is the one of `SEPARATORS` that cuts the first lines into the most columns, the
    same number in each; beside another separator, a comma between two digits is a decimal comma.
    The first line is a header if none of its cells is a number, unless every column is text and
    the first line's cells come again below it; or if its cells count the columns, 0, 1, 2, as
    pandas names columns without names. A header may lack the first column's name, as R writes
    it. A line that has one of the names in `known`, {name: kind}, is a header. Lines of one cell
    above a header of three or more are titles, and a row of units may stand below it. The
    separator, the header and the number of lines above are not guessed where `reading` gives them.
    A first line `sep=;`, as Excel writes it, decides the separator.

    Raises DataError where there is no line, UnicodeDecodeError for other text than UTF-8.
    """
    header, skip = reading.header, reading.skip
    text = content.decode()
    lines = list(io.StringIO(text, newline=""))
    above = _remarks(lines) if skip is None else skip
    told = EXCEL.fullmatch("".join(lines[:above]))
    guessed = reading.separator is None and not told
    separator = reading.separator or (told[1] if told else _separator(lines[above:]))
    titles = _titles(lines[above:], separator, header) if skip is None else 0
    above += titles
    rows, ends = _rows(lines[above:], separator)
    if not rows:
        raise DataError("empty")
    names, taken, trailing = _header(rows, header, known)
    start, below = (above + [0, *ends][count] for count in (taken, min(taken, 1)))
    notes = {
        f"separated by {SEPARATORS[separator]}": guessed and separator != ",",
        f"lines above the header left out: {titles}": titles,
        "no header": not taken and header is None,
        f"the line of units left out: {' '.join(filter(None, sum(rows[1:taken], ())))}": taken == 2,
    }
    end = "\r" if "\r" in text and "\n" not in text else "\n"
    skipped, head = "".join(lines[:start]).encode(), "".join(lines[above:below])
    return Dialect(
        separator, end, names, len(skipped), start, tuple(rows[taken:]), trailing, head, above,
        tuple(note for note, said in notes.items() if said),
    )  # fmt: skip


def _header(
    rows: Sequence[tuple[str, ...]], header: bool | None, known: Mapping[str, str]
) -> tuple[tuple[str, ...], int, bool]:
    """The names, how many rows they and the units take, and whether rows end with a separator that
    the header lacks."""
    first = rows[0]
    if header is None:
        header = not known.keys().isdisjoint(first) or _is_header(first, rows[1:])
    if not header:
        return (), 0, False
    taken = 1 + _are_units(rows, known)
    if len(rows) == taken or any(len(row) != len(first) + 1 for row in rows[taken:]):
        return first, taken, False
    trailing = not any(row[-1] for row in rows[taken:])
    return (*first, "") if trailing else ("", *first), taken, trailing


def _titles(lines: Sequence[str], separator: str, header: bool | None) -> int:
    """The number of lines above a header of three or more names that have one cell."""
    rows, ends = _rows(lines, separator)
    at = next((i for i, row in enumerate(rows) if sum(map(bool, row)) > 1), 0)
    width = len(rows[at]) if at else 0
    titles = width > 2 and all(len(row) in (1, width) for row in rows[:at])
    return ends[at - 1] if titles and (header or _is_header(rows[at], rows[at + 1 :])) else 0


def _are_units(rows: Sequence[Sequence[str]], known: Mapping[str, str]) -> bool:
    """Whether the row below the header has units, and those below it numbers, as far as it is not
    known what they are; each may end with a separator that the header lacks."""
    n = len(rows[1]) if len(rows) > (2 if known else 4) else 0
    same = [row[:n] for row in rows[2:] if len(row) == n or (len(row) == n + 1 and not row[-1])]
    cells: dict[bool, list[str]] = {True: [], False: []}
    columns = zip(rows[0], rows[1], zip(*same, strict=True), strict=False) if n else ()
    for name, cell, below in columns:
        numbers = any(below) and _are_numbers(below)
        cells[known[name] == "number" if name in known else numbers] += [cell] if cell else []
    brackets = all(cell[0] in "([" for cell in cells[False])
    return bool(cells[True]) and brackets and all(map(UNIT.fullmatch, cells[True]))


def is_number(cell: str) -> bool:
    """Whether a cell is a number, with a decimal point."""
    return NUMBER.fullmatch(cell.strip()) is not None


def _rows(lines: Sequence[str], separator: str) -> tuple[list[tuple[str, ...]], list[int]]:
    """The first rows that are not blank, as far as they can be read, and the lines they end on."""
    rows: list[tuple[str, ...]] = []
    ends: list[int] = []
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=separator != "\t")
    with suppress(csv.Error):
        for cells in reader:
            if len(cells) > 1 or "".join(cells).strip():
                rows.append(tuple(cell.strip() for cell in cells))
                ends.append(reader.line_num)
            if len(rows) > ROWS:
                break
    return rows, ends


def _remarks(lines: Sequence[str]) -> int:
    """The number of lines before the table that begin with #; those right before it that are cut
    into as many cells belong to it."""
    if lines and EXCEL.fullmatch(lines[0]):
        return 1
    count = next((i for i, line in enumerate(lines) if not line.startswith("#")), 0)
    then = lines[count] if lines else ""
    alike = lambda line: any(line.count(mark) == then.count(mark) > 0 for mark in SEPARATORS)
    while count and alike(lines[count - 1]):
        count -= 1
    return count


def _separator(lines: Sequence[str]) -> str:
    """The separator that cuts the most of these lines, all but titles, into as many columns; and
    into the most, where several do."""
    some = [line for line in lines[: ROWS + 1] if line.strip()]
    others = re.search(r"[;\t|]", "".join(some[:1]))
    found: dict[str, tuple[int, int]] = {}
    for mark in SEPARATORS:
        cut = some
        if mark == "," and others:
            cut = [re.sub(r"(?<=\d),(?=\d)", "", line) for line in some]
        widths = [len(row) for row in _rows(cut, mark)[0]]
        below = list(itertools.dropwhile((1).__ge__, widths))
        widths = below if 2 * len(below) > len(widths) else widths
        most = max(widths, default=1)
        same = most > 1 and all(width == most for width in widths[1:] or widths)
        fits = same and widths[0] in (most, most - 1)
        found[mark] = (len(widths) if fits else 0, widths[0] if widths else 1)
    return max(found, key=lambda mark: found[mark])


def _is_header(first: Sequence[str], sample: Sequence[Sequence[str]]) -> bool:
    # Numbers are a header only if they count the columns.
    if numbers := [i for i, cell in enumerate(first) if is_number(cell.replace(",", "."))]:
        named = numbers if first[0] else [i - 1 for i in numbers]
        counts = all(first[i] == str(j) for i, j in zip(numbers, named, strict=True))
        return counts and len(numbers) > 2
    columns = list(zip(*(row for row in sample if len(row) == len(first)), strict=True))
    again = sum(cell in column for cell, column in zip(first, columns, strict=False) if cell)
    return any(map(_are_numbers, columns)) or again < len(first) / 2


def _are_numbers(cells: Sequence[str]) -> bool:
    """Whether all cells that are not empty are numbers."""
    return all(is_number(cell.replace(",", ".")) for cell in cells if cell)
