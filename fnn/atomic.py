"""Files that are there whole or not at all, whatever happens while they are written."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".fnn-tmp"
"""How the names of files end that are being written, or that a kill left behind."""


def write(path: str | Path, *pieces: bytes | memoryview) -> None:
    """Make `path` a file of these bytes, one piece after another.

    They go to a new file in the same folder, are flushed to the disk, and take the name by
    one rename; then the folder is flushed. A reader, or a crash at any instant, meets the old
    file or the new one. Writers at the same time do not mix: the last rename wins.

    Raises OSError, naming `path`, where the folder can't be written or the disk is full; the
    older file is then as it was.
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
    """Make the folder where it is missing, and keep other owners out of it meanwhile.

    The files that a killed owner left unfinished are removed. The lock ends with the process,
    however that ends. Raises BlockingIOError where another process owns the folder.
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
