"""Files of numbers to NumPy arrays: CSV, NumPy's own formats, IDX; text and IDX gzipped or not.

Reading never executes anything: pickled objects are refused. Every fault of a file raises
DataError with the file and, where there is one, the line and column; a file that can't be
opened raises OSError.

CSV goes through Python's csv module, for it knows the line of every fault; a table of 50
million cells takes it under half a minute.
"""

import csv
import gzip
import io
import itertools
import math
import warnings
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np


class DataError(ValueError):
    """Data that can't be used; the message says where and why."""


class Table(NamedTuple):
    """A CSV file: `names` of its columns, () without a header; `numbers` (n, d) float64 of the
    columns chosen as features; `texts`, the n cells of the column chosen as target; `lines`,
    where in the file each example ends."""

    names: tuple[str, ...]
    numbers: np.ndarray
    texts: list[str]
    lines: array


Choice = Callable[[tuple[str, ...], int], tuple[list[int], int | None]]
"""choose(names, number of columns) -> (indices of the features, index of the target)."""


def read_csv(path: Path, choose: Choice) -> Table:
    """Read the columns that `choose` takes of a table with commas, semicolons or tabs.

    The first line is a header if none of its cells is a number. Features must be numbers, all
    finite, none missing; the target column is left as text, none missing. Blank lines count
    for nothing.
    """
    with _opened(path) as file, _explained(path):
        rows = _rows(path, file)
        line, first = next(rows, (0, []))
        if not first:
            raise DataError(f"{path}: empty")
        has_header = not any(_is_number(cell) for cell in first)
        names = tuple(cell.strip() for cell in first) if has_header else ()
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"{path}: two columns are called {name!r}")
        features, target = choose(names, len(first))
        numbers, texts, lines = array("d"), [], array("q")

        def add(line: int, cells: list[str]) -> None:
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
                    if not _is_number(cells[i]):
                        what = f"{cells[i]!r} is not a number" if cells[i].strip() else "no value"
                        raise DataError(f"{path}: {_place(line, i, names)}: {what}") from None
                numbers.extend([float(cells[i]) for i in features])
            if target is not None:
                if not cells[target].strip():
                    raise DataError(f"{path}: {_place(line, target, names)}: no value")
                texts.append(cells[target].strip())
            lines.append(line)

        if not has_header:
            add(line, first)
        for line, cells in rows:
            add(line, cells)
    if not lines:
        raise DataError(f"{path}: a header, but no examples")
    x = np.frombuffer(numbers, np.float64).reshape(len(lines), len(features))
    for row, column in not_finite(x):
        place = _place(lines[row], features[column], names)
        raise DataError(f"{path}: {place}: expected a finite number, got {x[row, column]}")
    return Table(names, x, texts, lines)


def read_npz(path: Path, *names: str) -> list[np.ndarray]:
    """The arrays of these names in a `.npz` file."""
    with open(path, "rb") as file, _explained(path):
        if not zipfile.is_zipfile(file):
            raise DataError(f"{path}: not a .npz file, or damaged")
        arrays = np.load(file, allow_pickle=False)
        missing = [name for name in names if name not in arrays]
        if missing:
            has = ", ".join(arrays.files) or "nothing"
            raise DataError(f"{path}: expected an array {missing[0]!r}, the file has {has}")
        return [arrays[name] for name in names]


def read_npy(path: Path) -> np.ndarray:
    """The array of a `.npy` file."""
    with _explained(path), open(path, "rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file: two zero bytes, a type, the number of axes, their lengths as
    big-endian 32-bit numbers, then the entries, last axis fastest. LeCun's MNIST page, 1998."""
    with _opened(path) as file, _explained(path):
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
    """Up to `size` bytes, without believing that there are so many."""
    content = bytearray()
    while len(content) < size and (piece := file.read(min(size - len(content), 1 << 22))):
        content += piece
    return bytes(content)


def not_finite(a: np.ndarray) -> Iterator[tuple[int, ...]]:
    """The indices of the entries that are NaN or infinite, in order."""
    if a.dtype.kind == "f" and not np.isfinite(a).all():
        yield from (tuple(int(i) for i in index) for index in np.argwhere(~np.isfinite(a)))


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        with gzip.open(file) if zipped else nullcontext(file) as inside:
            yield cast(IO[bytes], inside)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Faults that the libraries below find, as DataError with the file's name.

    NumPy's parser raises, and warns of, whatever its damaged input makes it stumble over, so
    that nothing narrower than Exception is enough here.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(f"{path}: not text in UTF-8: byte 0x{byte:02x}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged or cut short: {error}") from error
    except OSError as error:
        if error.filename is not None:
            raise
        raise DataError(f"{path}: can't be read: {error}") from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "pickle" in reason:
            reason = "it holds Python objects, which are not loaded"
        raise DataError(f"{path}: can't be read: {reason}") from error


def _rows(path: Path, file: IO[bytes]) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not blank, with their numbers."""
    with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        start = text.readline()
        delimiter = max(",;\t", key=start.count)
        lines = csv.reader(itertools.chain([start], text), delimiter=delimiter, strict=True)
        try:
            for cells in lines:
                content = "".join(cells)
                if "\0" in content:
                    raise DataError(f"{path}: line {lines.line_num}: binary, not text")
                if content.strip() or len(cells) > 1:
                    yield lines.line_num, cells
        except csv.Error as error:
            raise DataError(f"{path}: line {lines.line_num}: {error}") from error


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _place(line: int, column: int, names: tuple[str, ...]) -> str:
    return f"line {line}, column {column + 1}" + (f" {names[column]!r}" if names else "")
