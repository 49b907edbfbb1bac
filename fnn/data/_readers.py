"""Files of arrays: NumPy's .npy and .npz, and IDX, gzipped or not.

Reading never executes anything: pickled objects are refused. Every fault of a file raises
DataError with the file's name; a file that can't be opened raises OSError. An array's header
is read first; an array larger than `LIMIT` is refused by it.
"""

import bz2
import gzip
import lzma
import math
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from fnn.data.errors import DataError, explained

LIMIT = (
    os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if os.name != "nt" else 1 << 34
)
"""The most bytes that one array may take: half of the machine's memory."""
VERSIONS = {
    b"\x93NUMPY\1\0": np.lib.format.read_array_header_1_0,
    b"\x93NUMPY\2\0": np.lib.format.read_array_header_2_0,
}
IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's content as bytes, decompressed where it is gzip, bzip2, xz or a zip of one
    file."""
    with open(path, "rb") as file:
        start = file.peek(4)
        unpack = next((UNPACK[mark] for mark in UNPACK if start.startswith(mark)), nullcontext)
        with unpack(file) as inside:
            yield cast(IO[bytes], inside)


def _unzip(file: IO[bytes]) -> AbstractContextManager[Any]:
    """The only file of a zip archive; the archive itself where there are others."""
    if file.seekable() and zipfile.is_zipfile(file):
        archive = zipfile.ZipFile(file)
        if len(archive.namelist()) == 1:
            return archive.open(archive.namelist()[0])
        file.seek(0)
    return nullcontext(file)


UNPACK: dict[bytes, Callable[[Any], AbstractContextManager[Any]]] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zX": lzma.open, b"PK\x03\x04": _unzip,
}  # fmt: skip
"""Compressed files by their first bytes."""


def read_npz(path: Path, *names: str) -> list[np.ndarray]:
    """The arrays of these names in a .npz file."""
    with explained(path), zipfile.ZipFile(path) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist()}
        for name in names:
            if name not in members:
                has = ", ".join(members) or "nothing"
                raise DataError(f"expected an array {name!r}, the file has {has}")
        return [_array(archive.open(members[name]), f"{name}: ") for name in names]


def read_npy(path: Path) -> np.ndarray:
    """The array of a .npy file."""
    with explained(path), open(path, "rb") as file:
        return _array(file)


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file, gzipped or not.

    The format: two zero bytes, a type, the number of axes, their lengths as big-endian 32-bit
    numbers, then the entries, last axis fastest. LeCun's MNIST page, 1998.
    """
    with opened(path) as file, explained(path):
        magic = file.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_TYPES or not magic[3]:
            raise DataError("not an IDX file")
        header = file.read(4 * magic[3])
        shape = tuple(int(d) for d in np.frombuffer(header[: len(header) // 4 * 4], ">u4"))
        dtype = np.dtype(IDX_TYPES[magic[2]])
        if len(header) < 4 * magic[3]:
            raise DataError(f"cut short: {len(header)} of {4 * magic[3]} bytes of lengths")
        return _entries(file, dtype, shape).reshape(shape).astype(dtype.newbyteorder("="))


def _array(file: IO[bytes], name: str = "") -> np.ndarray:
    """The array of a file in the format of NumPy's `save`."""
    if (start := file.read(8)) not in VERSIONS:
        raise DataError(f"{name}not an array in NumPy's format")
    shape, by_columns, dtype = VERSIONS[start](file)
    if dtype.hasobject:
        raise DataError(f"{name}it holds Python objects, which are not loaded")
    entries = _entries(file, dtype, shape, name)
    return entries.reshape(shape[::-1]).T if by_columns else entries.reshape(shape)


def _entries(file: Any, dtype: np.dtype, shape: tuple[int, ...], name: str = "") -> np.ndarray:
    """The rest of the file as the entries of an array of this dtype and shape, in one axis."""
    if (size := math.prod(shape) * dtype.itemsize) > LIMIT:
        raise DataError(f"{name}{shape} takes {size} bytes; at most {LIMIT} are read")
    content = np.empty(size, np.uint8)
    if (got := file.readinto(content)) < size:
        raise DataError(f"{name}cut short: {got} of {size} bytes for {shape}")
    if file.read(1):
        raise DataError(f"{name}longer than the {size} bytes that {shape} takes")
    return content.view(dtype)
