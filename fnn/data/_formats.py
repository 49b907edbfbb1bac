"""Files that are not text in UTF-8: workbooks, databases, JSON, other encodings, and no tables."""

import json
import re
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars

from fnn import extras
from fnn.data.errors import DataError

WIDE = re.compile(rb"(\xff\xfe|\xfe\xff)|((?:[\t\n\r -~]\0){8})|((?:\0[\t\n\r -~]){8})")
"""Text in UTF-16: with its mark, or without by the order of its bytes."""
MAC = re.compile(
    rb"[\x81\x8d\x8f\x90\x9d]|[a-z][\x83\x86-\x8a\x8c\x8e\x98\x9f]|[a-z][\x91\x93-\x97][a-z]"
)
"""Letters of Mac Roman, which in Windows-1252 are nothing, or signs that stand elsewhere."""
IMAGE = "an image, not a table; give images as a folder of IDX files or as x.npy and y.npy"
OTHERS = {
    rb"PK\x03\x04|PK\x05\x06": "a zip archive of several files; unpack it and give the table in it",
    rb"version https://git-lfs": "a Git LFS pointer, not the file; `git lfs pull` fetches it",
    rb"(?i:\s*<(!doctype\s+html|html|head|body|\?xml|!--))": (
        "a web page or XML, not a table; download the file itself (on GitHub, by Raw)"
    ),
    rb"\x80[\x02-\x05][c\x95}\]q(]": "a pickle, which is never loaded; save the table as CSV",
    rb"%PDF-": "a PDF document; save its table as CSV",
    rb"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it, or compress it by gzip",
    rb"7z\xbc\xaf\x27\x1c": "compressed by 7-Zip; unpack it, or compress it by gzip",
    rb"\x89PNG|\xff\xd8\xff|GIF8": IMAGE,
    rb"\x89HDF\r\n\x1a\n": "an HDF5 file; save its arrays as x.npy and y.npy, or a table as CSV",
    rb"\x93NUMPY": "an array of NumPy without the ending .npy; rename it",
    rb"\s*\[\s*\[": "JSON without names; give an object per row, or CSV",
}
"""What is no table, by its first bytes, and what to do."""


def reader(start: bytes) -> Callable[[Path, bytes, str | None], Any] | None:
    """What reads a file of these first bytes: (path, content, table) to a frame, or to the bytes of
    a CSV file; None for text and for anything else."""
    return next((read for pattern, read in READERS.items() if re.match(pattern, start)), None)


def _workbook(path: Path, content: bytes, table: str | None) -> bytes:
    """A sheet as CSV: its titles, header and numbers are understood as those of a text file."""
    with extras.needs("files"):
        import fastexcel
    book = fastexcel.read_excel(content)
    read = partial(book.load_sheet, header_row=None, dtypes="string")
    full = [name for name in book.sheet_names if read(name).height]
    frame = read(_chosen("sheet", full, table)).to_polars()
    return frame.write_csv(include_header=False).encode()


def _sqlite(path: Path, content: bytes, table: str | None) -> polars.DataFrame:
    with sqlite3.connect(":memory:") as connection:
        connection.deserialize(content)
        known = "select name from sqlite_master where type in ('table', 'view')"
        return _selected(connection, known, table)


def _duckdb(path: Path, content: bytes, table: str | None) -> polars.DataFrame:
    with extras.needs("duckdb"):
        import duckdb
    closed = {"enable_external_access": "false"}  # a statement reads nothing but this file
    with duckdb.connect(path, read_only=True, config=closed) as connection:
        return _selected(connection, "select table_name from information_schema.tables", table)


def _selected(connection: Any, known: str, table: str | None) -> polars.DataFrame:
    """The table of this name, the only one without a name, or what a SELECT statement gives."""
    if not re.match(r"(?i)\s*(select|with)\s", table or ""):
        names = [name for (name,) in connection.execute(known).fetchall()]
        names = [name for name in names if not name.startswith("sqlite_")]
        quoted = _chosen("table", names, table).replace('"', '""')
        table = f'select * from "{quoted}"'
    return polars.read_database(table, connection, infer_schema_length=None)


def _json(path: Path, content: bytes, table: str | None) -> polars.DataFrame:
    """One object per line, a list of objects, or an object of columns."""
    several = re.sub(r"\}\s*\n\s*\{", "}, {", content.decode())
    first, *others = json.loads(f"[{several}]")
    return polars.DataFrame([first, *others] if others else first, infer_schema_length=None)


READERS: dict[bytes, Callable[[Path, bytes, str | None], Any]] = {
    rb"PK\x03\x04(?s:.*)(xl/|\[Content_Types\]\.xml|opendocument\.spreadsheet)": _workbook,
    rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": _workbook,
    rb"SQLite format 3\0": _sqlite,
    rb"(?s:.{8})DUCK": _duckdb,
    rb"\s*(\{\s*\"|\[\s*\{)": _json,
}


def _chosen(what: str, names: Sequence[str], wanted: str | None) -> str:
    """The name of the sheet or the table that is read."""
    if wanted in names or (wanted is None and len(names) == 1):
        return wanted or names[0]
    has = f"the {what}s {', '.join(names)}" if names else f"no {what}"
    hint = f"; not {wanted}" if wanted else "; --table NAME chooses one"
    raise DataError(f"has {has}{hint}")


def encoding(start: bytes, given: str | None) -> tuple[str | None, str]:
    """The encoding of a text that starts with these bytes, None for UTF-8, and what was guessed."""
    if wide := WIDE.match(start):
        name = ("utf-16", "utf-16-le", "utf-16-be")[(wide.lastindex or 1) - 1]
        return name, f"text in {name.upper()}"
    try:
        start[: start.rfind(b"\n") + 1 or None].decode()
    except UnicodeDecodeError:
        if given or b"\0" in start:
            return given, ""
        name = _guessed(start[: 1 << 16])
        return name, f"text in {name}, as it seems; --encoding NAME decides"
    return None, ""


def _guessed(content: bytes) -> str:
    """The likely encoding of text that is not UTF-8: in Western ones most letters are ASCII."""
    others = re.findall(rb"[\x80-\xff]+", content)
    if 2 * sum(len(run) == 1 for run in others) >= sum(map(len, others)):
        return "mac_roman" if MAC.search(content) else "cp1252"
    with extras.needs("files"):
        from charset_normalizer import from_bytes
    best = from_bytes(content, cp_isolation=["cp1251", "cp932", "gb18030", "cp949"]).best()
    return best.encoding if best else "cp1252"


def refuse(start: bytes) -> None:
    """Raise DataError for a file whose first bytes are another format's."""
    for pattern, what in OTHERS.items():
        if re.match(pattern, start[:4096]):
            raise DataError(f"this is {what}")
