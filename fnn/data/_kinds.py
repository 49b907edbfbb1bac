"""Files that are no tables in text, by their first bytes: what each is, and what to do."""

import re
from pathlib import Path

from fnn.data.errors import DataError

IMAGE = "an image, not a table; give images as a folder of IDX files or as x.npy and y.npy"
KINDS = {
    rb"PK\x03\x04|PK\x05\x06": "a zip archive of several files; unpack it and give the table in it",
    rb"version https://git-lfs\.github\.com/spec/": (
        "a Git LFS pointer in place of the file itself; `git lfs pull` fetches it"
    ),
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
    rb"(?:\xef\xbb\xbf)?\s*\[\s*\[": "JSON without names; give an object per row, or CSV",
}


def refuse(path: Path, start: bytes) -> None:
    """Raise DataError for a file whose first bytes are another format's."""
    for pattern, what in KINDS.items():
        if re.match(pattern, start[:4096]):
            raise DataError(f"{path}: this is {what}")
