"""Files that are written whole or not at all, whatever interrupts the writing."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".fnn-tmp"
"""The suffix of a file that is being written, or whose writer was killed."""


def write(path: str | Path, *pieces: bytes | memoryview) -> None:
    """Make `path` a file of these bytes, one piece after another.

    The bytes go to a new file in the same folder, which is flushed to the disk and then
    renamed to `path`; last, the folder is flushed. So a reader finds the old file or the new
    one, never a part, and so does everybody after a crash. Of concurrent writers the last one
    to rename wins.

    Raises OSError, naming `path`, where the folder can't be written or the disk is full; the
    old file is then unchanged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder, "a.txt"), b"two ", b"pieces")
    ...     Path(folder, "a.txt").read_text()
    'two pieces'
    """
    path = Path(path)
    unfinished = path.parent / f".{path.name}.{secrets.token_hex(8)}{UNFINISHED}"
    try:
        try:
            with open(unfinished, "xb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Own the folder inside the block: no other process can own it at the same time.

    The folder is made if it is missing, and unfinished files of a killed owner are removed.
    Ownership is an advisory lock (`flock`), which ends with the block or the process. Raises
    BlockingIOError where another process owns the folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent, owned(Path(parent, "run")):
    ...     Path(parent, "run").is_dir()
    True
    """
    import fcntl  # not on Windows, where the rest of this file works

    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                error.errno, "another process is writing to this folder", str(folder)
            ) from error
        for unfinished in folder.glob(f"*{UNFINISHED}"):
            unfinished.unlink()
        yield
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # folders can't be opened there, and need not be flushed
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
