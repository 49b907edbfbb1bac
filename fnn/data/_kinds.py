"""Files that are no tables in text, by their first bytes: what each is, and what to do."""

import re
from pathlib import Path

from fnn.data.errors import DataError

PACKED = "compressed by {}; unpack it, or compress it by gzip"
IMAGE = "an image, not a table; give images as a folder of IDX files or as x.npy and y.npy"
KINDS = {
    rb"PK\x03\x04(?s:.{26})mimetypeapplication/vnd\.oasis\.opendocument\.spreadsheet": (
        "a spreadsheet (ODS); save its sheet as CSV"
    ),
    rb"PK\x03\x04(?s:.*)(xl/|\[Content_Types\]\.xml)": "an Excel workbook; save its sheet as CSV",
    rb"PK\x03\x04|PK\x05\x06": "a zip archive; unpack it and give the table in it",
    rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Excel workbook (.xls); save its sheet as CSV",
    rb"version https://git-lfs\.github\.com/spec/": (
        "a Git LFS pointer in place of the file itself; `git lfs pull` fetches it"
    ),
    rb"(?i:\s*<(!doctype\s+html|html|head|body|\?xml|!--))": (
        "a web page or XML, not a table; download the file itself (on GitHub, by Raw)"
    ),
    rb"SQLite format 3\0": "an SQLite database; export the table, as by `sqlite3 -header -csv`",
    rb"\x80[\x02-\x05][c\x95}\]q(]": "a pickle, which is never loaded; save the table as CSV",
    rb"%PDF-": "a PDF document; save its table as CSV",
    rb"BZh[1-9]1AY": PACKED.format("bzip2"),
    rb"\xfd7zXZ\0": PACKED.format("xz"),
    rb"\x28\xb5\x2f\xfd": PACKED.format("zstd"),
    rb"7z\xbc\xaf\x27\x1c": PACKED.format("7-Zip"),
    rb"\x89PNG|\xff\xd8\xff|GIF8": IMAGE,
    rb"\x89HDF\r\n\x1a\n": "an HDF5 file; save its arrays as x.npy and y.npy, or a table as CSV",
    rb"\x93NUMPY": "an array of NumPy without the ending .npy; rename it",
    rb"\xff\xfe|\xfe\xff": "text in UTF-16; save it as UTF-8, as by `iconv -f UTF-16 -t UTF-8`",
    rb"(?:[\t\n\r -~]\0){8}|(?:\0[\t\n\r -~]){8}": (
        "text in UTF-16 without its mark; save it as UTF-8, as by `iconv -f UTF-16LE -t UTF-8`"
    ),
    rb"(?:\xef\xbb\xbf)?\s*(\{\s*\"|\[\s*[\[{])": (
        "JSON, not a table; convert it, as by `polars.read_ndjson` (a line per row) or "
        "`polars.read_json`, and write_csv"
    ),
}


def refuse(path: Path, start: bytes) -> None:
    """Raise DataError for a file whose first bytes are another format's."""
    for pattern, what in KINDS.items():
        if re.match(pattern, start[:4096]):
            raise DataError(f"{path}: this is {what}")
