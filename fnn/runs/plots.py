"""Pictures of a training run and of what its columns are worth."""

import errno
import io
import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fnn import atomic
from fnn.runs.importance import Importance
from fnn.runs.text import printable

BESIDE = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
"""Where a text stands from the end of its line."""
SHOWN = 20
"""The most columns in a picture."""


def make_room(path: Path) -> None:
    """Make the folder of a picture. Raises OSError where that fails or nothing can be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent))


def curves(history: list[dict[str, float]], path: Path, title: str) -> None:
    """Draw a run's history as a PNG: losses on the left, held-out quality on the right.

    Each entry of the history is an epoch. It has `loss`, `test_loss`, perhaps `validation_loss`,
    and one more, the quality, whose key becomes its label. Raises OSError where the file can't
    be written; an older one is then as it was.
    """
    figure = _figure(3.4, title)
    left, right = figure.subplots(1, 2)
    epochs = range(1, len(history) + 1)
    named = {"loss": "training", "test_loss": "held out", "validation_loss": "validation"}
    quality = next(key for key in history[0] if key not in named)
    shown = [key for key in named if key in history[0]]
    panels = [(left, key, named[key], f"C{i}") for i, key in enumerate(shown)]
    for axes, key, label, colour in [*panels, (right, quality, "held out", "C1")]:
        values = [entry[key] for entry in history]
        axes.plot(epochs, values, color=colour, label=label, linewidth=1.5, marker=".")
        text, end = f"{values[-1]:.3g}", (len(values), values[-1])
        axes.annotate(text, end, **BESIDE, color=colour, fontsize="small")
    for axes, name in [(left, "loss"), (right, quality.replace("_", " "))]:
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if min(entry[key] for entry in history for key in shown) > 0:
        left.set_yscale("log")
    left.legend(frameon=False)
    _write(figure, path)


def importances(found: Importance, path: Path, title: str) -> None:
    """Draw what each column is worth as a PNG: a bar per name, its deviation as a whisker.

    Of more than `SHOWN` columns, the most important; by the first measure alone. Raises OSError
    where the file can't be written.
    """
    names = found.columns[:SHOWN]
    mean, deviation = found.mean[:SHOWN, 0], found.deviation[:SHOWN, 0]
    figure = _figure(1.2 + 0.28 * len(names), title)
    axes = figure.subplots()
    places = np.arange(len(names))[::-1]
    axes.barh(places, mean, xerr=deviation, color="C0", ecolor="0.4", height=0.7)
    axes.set_yticks(places, [_drawable(name) for name in names], parse_math=False)
    label = f"how much worse the {found.measures[0]} is when the column is shuffled"
    axes.set(xlabel=label, ylim=(-0.6, len(names) - 0.4), axisbelow=True)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _write(figure, path)


def _figure(height: float, title: str) -> Figure:
    """An empty figure. The title is drawn as it is: `$` and `^` of a file's name are no formula,
    and bytes of it that are no text become question marks."""
    figure = Figure(figsize=(9, height), layout="constrained", dpi=150)
    figure.suptitle(_drawable(title), fontsize="medium", parse_math=False)
    return figure


def _drawable(text: str) -> str:
    """The text with question marks for bytes of a file's name that are no text."""
    return printable(text.encode(errors="replace").decode())


def _write(figure: Figure, path: Path) -> None:
    image = io.BytesIO()
    figure.savefig(image)
    atomic.write(path, image.getvalue())
