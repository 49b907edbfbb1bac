"""The error for data that can't be used, and what its messages need."""

import difflib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fnn.errors import Error


class DataError(Error, ValueError):
    """Data that can't be used; the message says where and why.

    >>> raise DataError("a.csv: line 3, column 2: no value")
    Traceback (most recent call last):
    fnn.data.errors.DataError: a.csv: line 3, column 2: no value
    """


@contextmanager
def explained(path: Path | str) -> Iterator[None]:
    """Any error inside the block becomes a DataError that names the file, as a DataError does.

    An OSError that names a file itself passes unchanged: the file can't be opened. NumPy's
    parser raises, and warns of, whatever damaged input leads it to, so that nothing narrower
    than Exception is enough here, and a panic of Polars' Rust code is not even that.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnicodeDecodeError as error:
        what = f"not text in {error.encoding.upper()}: byte 0x{error.object[error.start]:02x}"
        raise DataError(f"{path}: {what}; --encoding NAME, such as cp1252, decides") from error
    except BaseException as error:
        named = isinstance(error, OSError) and error.filename is not None
        if named or not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
            raise
        what = "" if isinstance(error, DataError) else "can't be read: "
        raise DataError(f"{path}: {what}{first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error says first, or its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def not_finite(a: np.ndarray) -> Iterator[tuple[int, ...]]:
    """The indices of the entries that are NaN or infinite, in order."""
    if a.dtype.kind == "f" and not np.isfinite(a).all():
        yield from (tuple(int(i) for i in index) for index in np.argwhere(~np.isfinite(a)))


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint for an unknown name: the closest known name, or the first twenty known ones.

    >>> nearest("digitz", ("digits", "iris"))
    "did you mean 'digits'?"
    >>> nearest("mnist", ("wine", "iris"))
    'known are wine, iris'
    """
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known[:20])}"
