"""What a run leaves for people: its history as a table and as a picture."""

import csv
import errno
import io
import os
from pathlib import Path

from fnn import atomic
from fnn.runs import plots

HISTORY = "history.csv"
PICTURE = "curves.png"


def check(folder: Path) -> None:
    """Raise IsADirectoryError where a folder stands at the place of one of the files."""
    for path in (folder / HISTORY, folder / PICTURE):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def write(folder: Path, history: list[dict[str, float]], title: str) -> list[str]:
    """Write history.csv, one row per epoch, and curves.png.

    Returns what could not be written and why: the run is whole without either file. An older
    file is then unchanged.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, ["epoch", *history[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"epoch": i} | entry for i, entry in enumerate(history, 1))
    problems = []
    for path, write_file in (
        (folder / HISTORY, lambda path: atomic.write(path, text.getvalue().encode())),
        (folder / PICTURE, lambda path: plots.curves(history, path, title)),
    ):
        try:
            write_file(path)
        except Exception as error:  # drawing may fail in any way
            reason = (getattr(error, "strerror", None) or str(error)).splitlines() or ["failed"]
            problems.append(f"{path} is not written: {reason[0]}")
    return problems
