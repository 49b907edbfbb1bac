"""What a run leaves for people: its history as a table and as a picture, and a page about it."""

import base64
import errno
import os
from collections.abc import Callable, Iterator
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from fnn import _html, atomic
from fnn.data import Dataset
from fnn.runs import _plots, importance
from fnn.runs._baselines import Baselines
from fnn.runs.metrics import Classified, Predicted
from fnn.runs.run import Run
from fnn.runs.text import printable

HISTORY = "history.csv"
PICTURE = "curves.png"
PAGE = "report.html"
FILES = (HISTORY, PICTURE, PAGE)
ROWS, COLUMNS, WORST = 1000, 100, 10
"""The most examples and columns that importance is measured with; how many rows are shown."""


def check(folder: Path) -> None:
    """Raise IsADirectoryError where a folder stands at the place of one of the files."""
    for path in (folder / name for name in FILES):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def write(folder: Path, history: list[dict[str, float]], title: str) -> list[str]:
    """Write history.csv, one row per epoch, and curves.png.

    Returns what could not be written and why: the run is whole without either file. An older
    file is then unchanged.
    """
    rows = [["epoch", *history[0]]]
    rows += [[str(i), *map(str, entry.values())] for i, entry in enumerate(history, 1)]
    text = "".join(",".join(row) + "\n" for row in rows)
    return [
        *_attempt(folder / HISTORY, text.encode),
        *_attempt(folder / PICTURE, lambda: _plots.image(_plots.curves, history, title)),
    ]


def page(
    folder: Path, run: Run, train: Dataset, test: Dataset, found: Any, base: Baselines, title: str
) -> list[str]:
    """Write report.html: what was read, the metrics `found` on the held-out part beside `base`, and
    pictures of both, in one file that needs no others. Returns as `write` does."""

    def text() -> bytes:
        fields = {
            "title": escape(printable(title)),
            "summary": escape(summary(found, base)),
            "read": "".join(f"<li>{escape(printable(line))}</li>" for line in _read(run, train)),
            "scores": _scores(found, base),
            "sections": "".join(_sections(run, test, found)),
        }
        template = Template(files("fnn.runs").joinpath(PAGE).read_text("utf-8"))
        return template.substitute(fields).encode(errors="replace")

    return _attempt(folder / PAGE, text)


def summary(found: Classified | Predicted, base: Baselines) -> str:
    """The measure that matters most, beside that of a linear model and of the mean."""
    linear, mean = (each.chief[1] for each in base)
    name, ours = found.chief
    return f"test {name} {ours:.4g} (linear model {linear:.4g}, always the mean {mean:.4g})"


def _attempt(path: Path, content: Callable[[], bytes]) -> list[str]:
    """Write a file. Returns a line about it if that fails, as drawing may in any way."""
    try:
        atomic.write(path, content())
    except Exception as error:
        reason = (getattr(error, "strerror", None) or str(error)).splitlines() or ["failed"]
        return [f"{path} is not written: {reason[0]}"]
    return []


def _read(run: Run, train: Dataset) -> Iterator[str]:
    """What was read, one line per note."""
    yield f"{len(train.x)} examples to train on, {run.inputs.d_in} columns as {run.sizes[0]} inputs"
    yield f"to predict: {', '.join(run.targets or run.values or ('the class',))}"
    yield from train.notes
    yield from run.inputs.left_out()


def _scores(found: Any, base: Baselines) -> str:
    """A row per metric, a column per model."""
    models = [each.measures() for each in (found, *base)]
    rows = [[name, *(f"{model[name]:.4g}" for model in models)] for name in models[0]]
    return _html.table("", ["", "network", "linear model", "always the mean"], *rows)


def _sections(run: Run, test: Dataset, found: Any) -> Iterator[str]:
    """The pictures, and the examples with the worst predictions."""
    drawn = np.random.default_rng(0).permutation(len(test.x))[:ROWS]
    some = test._replace(x=test.x[drawn], y=test.y[drawn])
    guess = run.predict(test.x)
    yield _section("Training", _plots.curves, run.progress.history)
    if isinstance(found, Classified):
        yield _section("Confusion and calibration", _plots.classified, found, test.y, guess)
        costs = -np.log(np.maximum(guess[np.arange(len(guess)), test.y], 1e-30))
    else:
        yield _section("Predictions and residuals", _plots.predicted, found.names, test.y, guess)
        costs = np.abs((guess - test.y) / run.outputs.scale).max(1)  # type: ignore[union-attr]
    if test.x.shape[1] <= COLUMNS:
        worth = importance.measured(run, some, 1, 0)
        yield _section("Importance of the columns", _plots.importance, worth)
        yield _section("Partial dependence", _plots.dependence, run, some, worth.columns)
    worst = np.argsort(-costs, kind="stable")[:WORST]
    names = test.features or tuple(f"column {i + 1}" for i in range(test.x.shape[1]))
    shown = range(min(len(names), 20))
    rows = [
        [_told(run, test.y[i]), _told(run, guess[i]), *(_cell(test, i, j) for j in shown)]
        for i in worst
    ]
    table = _html.table("", ["true", "predicted", *(names[j] for j in shown)], *rows)
    yield f'<h2>The rows most wrong</h2><div class="wide">{table}</div>'


def _told(run: Run, y: Any) -> str:
    """A target, or a prediction, in words."""
    if run.outputs is not None:
        return ", ".join(f"{value:.4g}" for value in y)
    return f"{run.classes[y.argmax()]} ({y.max():.0%})" if np.ndim(y) else run.classes[y]


def _cell(part: Dataset, row: int, column: int) -> str:
    """A cell as it was read."""
    value = part.x[row, column]
    values = part.columns[column].values if part.columns else ()
    if np.isnan(value) or (values and value < 0):
        return "-"
    return printable(values[int(value)]) if values else f"{value:.5g}"


def _section(title: str, *drawn: Any) -> str:
    image = base64.b64encode(_plots.image(*drawn)).decode()
    picture = f'<img alt="{title}" src="data:image/png;base64,{image}">'
    return f'<h2>{title}</h2><div class="wide">{picture}</div>'
