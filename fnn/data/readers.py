"""Files of arrays: NumPy's .npy and .npz, and IDX, gzipped or not.

Reading never executes anything: pickled objects are refused. Every fault of a file raises
DataError with the file's name; a file that can't be opened raises OSError.
"""

import gzip
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, cast

import numpy as np

from fnn.data.errors import DataError, explained

IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's content as bytes, decompressed where it is gzipped.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.gz")
    ...     size = path.write_bytes(gzip.compress(b"content"))
    ...     with opened(path) as file:
    ...         file.read()
    b'content'
    """
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        with gzip.open(file) if zipped else nullcontext(file) as inside:
            yield cast(IO[bytes], inside)


def read_npz(path: Path, *names: str) -> list[np.ndarray]:
    """The arrays of these names in a .npz file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.npz")
    ...     np.savez(path, x=np.ones(2), y=np.zeros(3))
    ...     read_npz(path, "y")
    [array([0., 0., 0.])]
    """
    with open(path, "rb") as file, explained(path):
        if not zipfile.is_zipfile(file):
            raise DataError(f"{path}: not a .npz file, or damaged")
        arrays = np.load(file, allow_pickle=False)
        missing = [name for name in names if name not in arrays]
        if missing:
            has = ", ".join(arrays.files) or "nothing"
            raise DataError(f"{path}: expected an array {missing[0]!r}, the file has {has}")
        return [arrays[name] for name in names]


def read_npy(path: Path) -> np.ndarray:
    """The array of a .npy file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "x.npy")
    ...     np.save(path, np.arange(3))
    ...     read_npy(path)
    array([0, 1, 2])
    """
    with explained(path), open(path, "rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file, gzipped or not.

    The format: two zero bytes, a type, the number of axes, their lengths as big-endian 32-bit
    numbers, then the entries, last axis fastest. LeCun's MNIST page, 1998.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "labels-idx1-ubyte")
    ...     size = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2]) + bytes([7, 3]))
    ...     read_idx(path)
    array([7, 3], dtype=uint8)
    """
    with opened(path) as file, explained(path):
        magic = file.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_TYPES or not magic[3]:
            raise DataError(f"{path}: not an IDX file")
        header = file.read(4 * magic[3])
        shape = tuple(int(d) for d in np.frombuffer(header[: len(header) // 4 * 4], ">u4"))
        dtype = np.dtype(IDX_TYPES[magic[2]])
        size = math.prod(shape) * dtype.itemsize
        content = _at_most(size + 1, file) if len(header) == 4 * magic[3] else b""
        if len(header) < 4 * magic[3] or len(content) < size:
            raise DataError(f"{path}: cut short: {len(content)} of {size} bytes for {shape}")
        if len(content) > size:
            raise DataError(f"{path}: longer than the {size} bytes that {shape} takes")
        return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _at_most(size: int, file: IO[bytes]) -> bytes:
    """Up to `size` bytes; memory is taken for those that are there, not for `size`."""
    content = bytearray()
    while len(content) < size and (piece := file.read(min(size - len(content), 1 << 22))):
        content += piece
    return bytes(content)
