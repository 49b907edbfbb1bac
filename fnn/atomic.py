"""Atomic writes: files are written completely or not at all, whatever interrupts the writing."""

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNFINISHED = ".fnn-tmp"
"""The suffix of a file that is being written, or whose writer was killed."""


def write(path: str | Path, *pieces: bytes | memoryview) -> None:
    """Write these bytes to the file `path`, as `stream` does.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder, "a.txt"), b"two ", b"pieces")
    ...     Path(folder, "a.txt").read_text()
    'two pieces'
    """
    stream(path, pieces)


def stream(path: str | Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write these bytes to the file `path`, one piece after another.

    The bytes are written to a new file in the same folder, which is flushed to the disk and then
    renamed to `path`; last, the folder is flushed. So readers find the old file or the new one,
    never a part, even after a crash. Of concurrent writers the last one to rename wins.

    The new file has the old one's mode and, if the system permits it, its owner. Symbolic links are
    followed. A pipe or a device is written to directly. Other hard links to the old file keep the
    old content.

    Raises OSError, naming `path`, if the folder can't be written or the disk is full, and
    PermissionError for a read-only file. Then, and if `pieces` raises, the old file is unchanged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     stream(Path(folder, "a.txt"), (word for word in (b"two ", b"pieces")))
    ...     Path(folder, "a.txt").read_text()
    'two pieces'
    """
    try:
        old = None
        with suppress(FileNotFoundError):
            old = os.stat(path)
        if old is None or stat.S_ISREG(old.st_mode):
            _replace(Path(os.path.realpath(path)), old, pieces)
        else:
            with open(path, "wb") as file:
                file.writelines(pieces)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Lock the folder inside the block: no other process can lock it at the same time.

    The folder is created if it is missing, and unfinished files of a killed process are removed.
    The lock is advisory (`flock`) and ends with the block or the process. Raises BlockingIOError if
    another process holds it.

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
            what = "another process is writing to this folder"
            raise BlockingIOError(error.errno, what, str(folder)) from error
        for unfinished in folder.glob(f"*{UNFINISHED}"):
            unfinished.unlink()
        yield
    finally:
        os.close(handle)


def _replace(path: Path, old: os.stat_result | None, pieces: Iterable[bytes | memoryview]) -> None:
    """Write these bytes to a new file and rename it to `path`, which is not a link and whose status
    was `old`."""
    if old is not None and not (old.st_mode & 0o222 and os.access(path, os.W_OK)):
        raise PermissionError(errno.EACCES, "the file is read-only")
    unfinished = path.parent / f".{secrets.token_hex(16)}{UNFINISHED}"
    try:
        with open(unfinished, "xb") as file:
            if old is not None:
                _take_over(unfinished, old)
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _take_over(new: Path, old: os.stat_result) -> None:
    """Give a file the old one's owner and mode; the owner first, because setting it resets mode
    bits."""
    status = os.stat(new)
    if (status.st_uid, status.st_gid) != (old.st_uid, old.st_gid):
        with suppress(PermissionError):
            os.chown(new, old.st_uid, old.st_gid)
    os.chmod(new, stat.S_IMODE(old.st_mode))


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # folders can't be opened there, and need not be flushed
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
