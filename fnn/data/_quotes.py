"""The rows of a text table by its quotes: their number is known before any parser is asked."""

import re

import numpy as np

from fnn.data._dialect import Dialect, is_number
from fnn.data.errors import DataError

QUOTE = ord('"')
FAULT = 'a quote opens a cell and is not closed at its end; write a quote in a quoted cell as ""'


def checked(content: bytes, found: Dialect) -> tuple[bytes, int]:
    """The lines after the header with cells quoted as RFC 4180 has it, and their number of rows,
    blank ones too.

    A quote in a cell that does not begin with one is a character like any other; in one that does,
    it is doubled or follows a backslash. Raises DataError with the line for any other quote, and
    for a quoted cell whose lines look like rows: those are rows between two stray quotes.
    """
    if b'"' in content and not _is_strict(content, found):
        content = _rewritten(content, found)
    ends, within = line_ends(content, found.end)
    if within.any():
        _check_lines(content, found, ends, within)
    return content, int((~within).sum()) + (content[-1:] not in (b"\n", b"\r", b""))


def check_header(found: Dialect) -> None:
    """Raise DataError where a stray quote makes rows a part of the header."""
    if '"' not in found.head:
        return
    head = found.head.strip("\r\n")
    above = found.above + found.head[: found.head.index(head)].count(found.end)
    _rewritten(head.encode(), found._replace(lines=above))
    first, *below = (line.count(found.separator) for line in head.splitlines())
    if below and first and all(count == first for count in below):
        raise DataError(f"line {above + 1}: {FAULT}")


def _is_strict(content: bytes, found: Dialect) -> bool:
    """Whether quotes open a cell at its start, close it at its end, and are doubled between."""
    other = f"[^{re.escape(found.separator + found.end)}\r]"
    rows = rf'(?:[^"]++|(?<!{other})"(?:[^"]++|"")*+"(?!{other}))*+'
    return re.fullmatch(rows.encode(), content) is not None


def line_ends(content: bytes | bytearray, end: str) -> tuple[np.ndarray, np.ndarray]:
    """Where the line ends are, and whether each is in a quoted cell, and so ends no row."""
    ends = _positions(content, ord(end))
    return ends, np.searchsorted(_positions(content, QUOTE), ends) % 2 == 1


def _positions(content: bytes | bytearray, byte: int) -> np.ndarray:
    return np.flatnonzero(np.frombuffer(content, np.uint8) == byte)


def _check_lines(content: bytes, found: Dialect, ends: np.ndarray, within: np.ndarray) -> None:
    """Raise DataError for a row of several lines of which each could be a row."""
    cuts = np.searchsorted(_positions(content, ord(found.separator)), [*ends, len(content)])
    whole = np.diff(cuts, prepend=0) == found.width - 1
    first = np.flatnonzero(np.concatenate([[True], ~within]))
    alike = np.logical_and.reduceat(whole, first)
    last = np.append(first[1:], len(whole))
    numbers = found.numbers()
    for start, stop in zip(first[alike], last[alike], strict=True):
        begin = ends[start - 1] + 1 if start else 0
        row = content[begin : ends[stop - 1] if stop <= len(ends) else None].decode()
        lines = [line.split(found.separator) for line in row.split(found.end)]
        cells = (line[i].strip(' "\r') for line in lines for i in numbers)
        if stop - start > 1 and all(not cell or is_number(cell) for cell in cells):
            one = (
                f"a quote opens a cell that ends on line {found.lines + stop}, and each line of it"
            )
            hint = "remove the quotes or write each twice inside a quoted cell"
            raise DataError(f"line {found.lines + start + 1}: {one} could be a row; {hint}")


def _rewritten(content: bytes, found: Dialect) -> bytes:
    """The same cells, quoted so that every parser reads them alike; each on its line as before."""
    mark, end = re.escape(found.separator), found.end
    gap = " *" if found.separator != "\t" else ""
    quoted = rf'{gap}"((?:[^"]|"")*+)"{gap}'
    escaped = rf'{gap}"((?:[^"\\]|\\[^\r\n]|"")*+)"{gap}'
    plain = rf"({gap}(?!\s*\")[^{mark}\r\n]*)"
    cell = re.compile(rf"(?:{quoted}|{escaped}|{plain})({mark}|\r?{end}|\r?\Z)")
    text, at, line, pieces = content.decode(), 0, found.lines, []
    while match := cell.match(text, at):
        value, with_escapes, bare, stop = match.groups()
        if with_escapes is not None:
            bare = re.sub(r"\\([\"\\])", r"\1", with_escapes.replace('""', '"'))
        if value is None:
            value = bare.replace('"', '""')
        pieces += [f'"{value}"' if '"' in value or match[3] is None else value, stop]
        line += match[0].count(end)
        at = match.end()
        if at == len(text) and stop != found.separator:
            return "".join(pieces).encode()
    raise DataError(f"line {line + 1}: {FAULT}")
