"""What a run leaves for people: its history as a table and as a picture."""

import csv
import io
from pathlib import Path

from fnn import atomic
from fnn.cli import plots

HISTORY = "history.csv"
PICTURE = "curves.png"


def write(folder: Path, history: list[dict[str, float]], title: str) -> None:
    """Write history.csv, one row per epoch, and curves.png.

    Raises OSError where a file can't be written; an older one is then as it was.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     entry = {"loss": 1.0, "test_loss": 1.5, "test_accuracy": 0.5}
    ...     write(Path(name), [entry], "one epoch")
    ...     print((Path(name) / HISTORY).read_text(), end="")
    epoch,loss,test_loss,test_accuracy
    1,1.0,1.5,0.5
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, ["epoch", *history[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"epoch": i} | entry for i, entry in enumerate(history, 1))
    atomic.write(folder / HISTORY, text.getvalue().encode())
    plots.curves(history, folder / PICTURE, title)
