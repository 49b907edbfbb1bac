"""Tables in files and in memory, read by Polars: CSV and its kin, Parquet, Arrow, data frames.

Polars is fast but says little about a fault. Where it fails, and wherever a message needs a line,
a second, slower look by Python's csv module finds it.
"""

import codecs
import csv
import functools
import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars

from fnn.data import _dialect, _formats, _quotes, _readers as readers
from fnn.data._dialect import Dialect
from fnn.data._reading import Reading
from fnn.data.errors import DataError, explained

PIECE = 1 << 24
"""Bytes that are read at a time; no line has more."""
TOTAL = r"(?i)^(((grand|sub)[ -]?)?totals?|sum|summe|gesamt(summe)?|somme|totaal):?$"
"""The first text of a row that sums up those above it."""


class Table(NamedTuple):
    """The columns of a table, as they are written.

    name is the file's. names are the columns', () without a header. frame holds the cells, text
    that is still to be understood or of a type that the source gives them; its columns are called
    by their places in the source, "0", "1", .... place(row) says where a row stands, such as
    "line 3". notes say what was guessed.
    """

    name: str
    names: tuple[str, ...]
    frame: polars.DataFrame
    place: Callable[[int], str]
    notes: tuple[str, ...]
    separator: str = ","
    encoding: str | None = None

    def only(self, rows: polars.Series) -> "Table":
        """The table of these rows, given as booleans."""
        kept = rows.arg_true()
        return self._replace(frame=self.frame.filter(rows), place=lambda i: self.place(kept[i]))

    def at(self, columns: Sequence[int]) -> "Table":
        """The table of these columns."""
        names = tuple(self.names[i] for i in columns if self.names)
        return self._replace(names=names, frame=self.frame[:, list(columns)])

    def where(self, column: int, row: int | None = None) -> str:
        """The words for a cell, or for a column."""
        with explained(self.name):
            line = "" if row is None else f"{self.place(row)}, "
        return f"{self.name}: {line}{self.called(column)}"

    def called(self, column: int) -> str:
        """The words for a column within its table."""
        name = f" {self.names[column]!r}" if self.names else ""
        return f"column {int(self.frame.columns[column]) + 1}{name}"

    def option(self, column: int) -> str:
        """A column as an option has it: its name, or its place where it has none."""
        return self.names[column] if self.names else self.frame.columns[column]


def parts(source: Any, reading: Reading, size: int, known: Mapping[str, str]) -> Iterator[Table]:
    """The table of a file, or of a data frame, in parts of consecutive rows, each of about `size`
    bytes of text, or of numbers. Only a part is in memory; all of a file in another format or
    encoding than CSV, Parquet and Arrow, and of a Parquet or Arrow file that is compressed or a
    pipe.

    Each format is recognised by its first bytes; anything else is text. Either may be compressed.
    `reading` and `known` decide what is guessed otherwise: see `_dialect.guess`. A line may have at
    most `PIECE` characters, and a table may take at most `readers.LIMIT` bytes of memory.

    Raises, where it comes to the fault, DataError with the line, and for a Parquet or Arrow file
    that another process has changed meanwhile; OSError where the file can't be opened;
    ModuleNotFoundError where Polars, or the package for a format, is not installed.
    """
    if not isinstance(source, str | Path):
        with explained("the table"):
            yield _of_frame("the table", _frame(source))
        return
    path = Path(source)
    with readers.opened(path) as file, explained(path):
        pieces = iter(lambda: file.read(PIECE), b"")
        start = next(pieces, b"").removeprefix(codecs.BOM_UTF8)
        if start.startswith((b"PAR1", b"ARROW1")):
            plain = path.is_file() and isinstance(file, io.BufferedReader)
            yield from _stored(path, start, path if plain else _whole(start, pieces), size)
            return
        if read := _formats.reader(start):
            found = read(path, _whole(start, pieces), reading.table)
            if not isinstance(found, bytes):
                yield _of_frame(str(path), found)
                return
            start, reading = found, reading._replace(separator=",")
        if reading.encoding:  # holds where the text is not UTF-8, maybe only at its end
            start = _whole(start, pieces)
        encoding, note = _formats.encoding(start, reading.encoding)
        if encoding:
            start = _whole(start, pieces).decode(encoding).removeprefix("\ufeff").encode()
        _formats.refuse(start)
        lasting = None if note.startswith("text in UTF-16") else encoding
        for table in _of_text(path, itertools.chain([start], pieces), reading, known, size):
            yield table._replace(notes=(*filter(None, [note]), *table.notes), encoding=lasting)


def _of_frame(name: str, frame: polars.DataFrame, before: int = 0) -> Table:
    """The table of a frame that `before` rows come before."""
    names = tuple(frame.columns)
    if not names or not len(frame):
        raise DataError("no examples")
    frame = frame.rename({old: str(i) for i, old in enumerate(names)})
    return Table(name, names, frame, lambda row: f"row {before + row + 1}", ())


def _frame(source: Any) -> polars.DataFrame:
    """Any data frame as Polars'."""
    if isinstance(source, polars.LazyFrame):
        return source.collect()
    if isinstance(source, np.ndarray):
        source = {name: source[name] for name in source.dtype.names}
    try:
        return polars.DataFrame(source, strict=False)
    except ImportError:  # pandas without pyarrow
        return polars.DataFrame({str(n): source[n].tolist() for n in source}, strict=False)


def _stored(path: Path, start: bytes, content: Any, size: int) -> Iterator[Table]:
    """The parts of a Parquet or Arrow file, whose number of rows is read before its content, which
    is the path itself or bytes."""
    before = _version(path)
    lazy = (polars.scan_parquet if start.startswith(b"PAR1") else polars.scan_ipc)(content)
    rows, width = lazy.select(polars.len()).collect().item(), len(lazy.collect_schema())
    many = max(1, size // (8 * max(1, width)))
    if size > readers.LIMIT and rows > many:
        raise _too_large()
    for at in range(0, max(1, rows), many):
        try:
            frame = lazy.slice(at, many).collect()
        finally:
            if content is path and _version(path) != before:
                raise DataError("another process has changed the file while it was read")
        yield _of_frame(str(path), frame, at)


def _version(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _of_text(
    path: Path, pieces: Iterator[bytes], reading: Reading, known: Mapping[str, str], size: int
) -> Iterator[Table]:
    """The parts of a text file of which these are the bytes."""
    start = next(pieces)
    head = start[:PIECE]
    if len(head) == PIECE and b"\n" not in head and b"\r" not in head:
        raise DataError(f"line 1: longer than {PIECE} characters")
    found = _dialect.guess(head[: head.rfind(b"\n") + 1 or None], reading, known)
    _quotes.check_header(found)
    lines, rows, totals = found.lines, 0, Counter[str | None]()
    parts = _in_rows(itertools.chain([start[found.skip :]], pieces), found, size)
    for content, after in itertools.pairwise(itertools.chain(parts, [b""])):
        frame, place = _parsed(content, found._replace(lines=lines))
        lines, rows = lines + content.count(found.end.encode()), rows + len(frame)
        cells, notes = polars.nth(range(min(4, found.width))), found.notes
        words = polars.coalesce(polars.when(cells != "").then(cells))
        first = frame.select(words.str.strip_chars()).to_series()
        totals.update(first.filter(first.str.contains(TOTAL)))
        if len(frame) and not after.strip() and rows > 1 and totals[first[-1]] == 1:
            frame, notes = frame[:-1], (*notes, f"the last row, {first[-1]!r}, left out")
        if len(frame) or notes != found.notes:
            yield Table(str(path), found.names, frame, place, notes, found.separator)
    if not rows:
        raise DataError("a header, but no examples")


def _in_rows(pieces: Iterator[bytes], found: Dialect, size: int) -> Iterator[bytes]:
    """A text file in parts of about `size` bytes that end where a row does."""
    end, lines, before = found.end.encode(), found.lines, found.lines
    content, enough, step = bytearray(), size, min(PIECE, size)
    for piece in (read[i : i + step] for read in pieces for i in range(0, len(read), step)):
        lines += piece.count(end)
        content += piece
        if len(content) - content.rfind(end) - 1 > PIECE:
            raise DataError(f"line {lines + 1}: longer than {PIECE} characters")
        if len(content) + 24 * found.width * (lines - before) > readers.LIMIT:
            raise _too_large(f"line {lines}: ")
        if len(content) >= enough:
            ends, within = _quotes.line_ends(content, found.end)
            enough = 2 * len(content)
            if not within.all():
                cut = int(ends[~within][-1]) + 1
                yield bytes(content[:cut])
                del content[:cut]
                before, enough = lines, size
    yield bytes(content)


def _whole(start: bytes, pieces: Iterator[bytes]) -> bytes:
    """The content of a file that begins with `start`; at most `readers.LIMIT` bytes."""
    content = bytearray(start)
    for piece in pieces:
        content += piece
        if len(content) > readers.LIMIT:
            raise _too_large()
    return bytes(content)


def _parsed(content: bytes, found: Dialect) -> tuple[polars.DataFrame, Callable[[int], str]]:
    """The frame of the lines after the header, and the place of each of its rows."""
    before, binary, _ = content.partition(b"\0")
    if binary or any("\0" in name for name in found.names):
        line = found.lines + (before.count(found.end.encode()) + 1 if binary else 0)
        raise DataError(f"line {line}: binary, not text")
    content, n = _quotes.checked(content, found)
    lines = functools.cache(lambda: polars.Series(_lines(content, found), dtype=polars.Int64))
    names = (found.separator.join(map(str, range(found.width))) + found.end).encode()
    try:  # the first line tells Polars the number of columns
        frame = polars.read_csv(
            names + content, separator=found.separator, eol_char=found.end, infer_schema=False
        )
    except Exception:
        lines()
        raise
    if len(frame) != n:
        raise DataError(f"{n} rows, of which Polars reads {len(frame)}")
    if frame[:, -1].null_count() and len(lines()) == n:  # a short or blank line, or a blank cell
        frame = frame.filter(lines() > 0)
    place = lambda row: f"line {lines().filter(lines() > 0)[row]}"
    if found.trailing and not (last := frame[:, -1].fill_null("") == "").all():
        row, width = int(last.arg_min() or 0), found.width - 1
        raise DataError(f"{place(row)}: expected {width} columns, got {width + 1}")
    return frame, place


def _lines(content: bytes, found: Dialect) -> Iterator[int]:
    """The line on which each row ends, 0 for a blank line. Raises DataError for a fault."""
    with io.TextIOWrapper(io.BytesIO(content), "utf-8", newline="") as text:
        reader = csv.reader(text, delimiter=found.separator, strict=True)
        try:
            for cells in reader:
                blank = len(cells) <= 1 and not "".join(cells).strip()
                if not blank and len(cells) != found.width:
                    raise csv.Error(f"expected {found.width} columns, got {len(cells)}")
                yield 0 if blank else found.lines + reader.line_num
        except csv.Error as error:
            raise DataError(f"line {found.lines + reader.line_num}: {error}") from error


def _too_large(where: str = "") -> DataError:
    return DataError(f"{where}the table is too large: at most {readers.LIMIT} bytes are read")
