"""What a run leaves for people: its history as a table and as a picture, and a page about it."""

import base64
import functools
import warnings
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np

from fnn import _html, atomic
from fnn.data import Dataset
from fnn.runs import _plots, evaluation, importance
from fnn.runs.run import Run
from fnn.runs.text import printable
from fnn.training.evaluation import CHUNK

HISTORY = "history.csv"
PICTURE = "curves.png"
PAGE = "report.html"
FILES = (HISTORY, PICTURE, PAGE)
ROWS, COLUMNS, WORST = 1000, 100, 10
"""The most examples and columns that importance is measured with; how many rows are shown."""


def write(
    folder: Path,
    history: list[dict[str, float]],
    title: str,
    page: Callable[[bytes], bytes] | None = None,
) -> list[str]:
    """Write history.csv, one row per epoch, curves.png, and report.html if there is a page: what
    it returns of the bytes of curves.png.

    Returns what could not be written and why: the run is whole without these files. An older
    file is then unchanged.
    """
    curves = functools.cache(lambda: _plots.image(_plots.curves, history, title))
    rows = [("epoch", *history[0]), *((i, *entry.values()) for i, entry in enumerate(history, 1))]
    text = "".join(",".join(map(str, row)) + "\n" for row in rows)
    return [
        *_attempt(folder / HISTORY, text.encode),
        *_attempt(folder / PICTURE, curves),
        *(_attempt(folder / PAGE, lambda: page(curves())) if page else []),
    ]


class Scores(NamedTuple):
    """The metrics of a run on its held-out part, beside those of a linear model of its inputs, and
    of always predicting the training part's mean or its shares of the classes."""

    network: Any
    linear: Any
    mean: Any

    @classmethod
    def of(cls, run: Run, train: Dataset, test: Dataset) -> "Scores":
        """Measure all three on the test part. The linear model is scikit-learn's ridge or logistic
        regression, with its defaults, of at most `CHUNK` examples; the parts are aligned."""
        from sklearn.linear_model import LogisticRegression, Ridge

        rows = np.random.default_rng(0).permutation(len(train.x))[:CHUNK]
        x, y = run.standardised(train._replace(x=train.x[rows], y=train.y[rows]))
        others = run.inputs.apply(test.x)
        if run.outputs is None:
            always = np.bincount(train.y, minlength=len(run.classes)) / len(train.y)
            linear = np.tile(always, (len(others), 1))
            if len(np.unique(y)) > 1:
                with warnings.catch_warnings(action="ignore"):  # that it has not converged
                    weight = dict(enumerate(run.weights)) or None
                    model = LogisticRegression(class_weight=weight).fit(x.astype(np.float64), y)
                linear[:, model.classes_] = model.predict_proba(others)
        else:
            always, model = run.outputs.mean, Ridge().fit(x.astype(np.float64), y)
            linear = run.outputs.undo(model.predict(others).reshape(test.y.shape))
        guesses = linear, np.broadcast_to(always, linear.shape)
        both = (evaluation.compared(run, test.y, guess) for guess in guesses)
        return cls(evaluation.evaluate(run, test), *both)

    def summary(self) -> str:
        """The measure that matters most, of all three."""
        ours, linear, mean = (f"{each.chief[1]:.4g}" for each in self)
        others = f"linear model {linear}, always the mean {mean}"
        return f"test {self.network.chief[0]} {ours} ({others})"

    def table(self) -> str:
        """A row of HTML per metric, a column per model."""
        models = [each.measures() for each in self]
        rows = [[name, *(f"{model[name]:.4g}" for model in models)] for name in models[0]]
        return _html.table("", ["", "network", "linear model", "always the mean"], *rows)


def page(
    run: Run, train: Dataset, test: Dataset, scores: Scores, title: str, curves: bytes
) -> bytes:
    """report.html: what was read, the scores, and pictures of both, in one file that needs no
    others. curves is the picture of the history."""
    sizes = f"{len(run.inputs.columns)} columns as {run.sizes[0]} inputs"
    read = [f"{len(train.x)} examples to train on, {sizes}", *train.notes]
    read.insert(1, f"to predict: {', '.join(run.targets or run.values or ('the class',))}")
    read += run.inputs.left_out()
    fields = {
        "title": escape(printable(title)),
        "summary": escape(scores.summary()),
        "read": "".join(f"<li>{escape(printable(line))}</li>" for line in read),
        "scores": scores.table(),
        "sections": _section("Training", curves) + "".join(_sections(run, test, scores.network)),
    }
    template = Template(Path(__file__).with_name(PAGE).read_text("utf-8"))
    return template.substitute(fields).encode(errors="replace")


def _attempt(path: Path, content: Callable[[], bytes]) -> list[str]:
    """Write a file. Returns a line about it if that fails, as drawing may in any way."""
    try:
        atomic.write(path, content())
    except Exception as error:
        reason = (getattr(error, "strerror", None) or str(error)).splitlines() or ["failed"]
        return [f"{path} is not written: {reason[0]}"]
    return []


def _sections(run: Run, test: Dataset, found: Any) -> Iterator[str]:
    """Pictures of the predictions, and the examples with the worst."""
    drawn = np.random.default_rng(0).permutation(len(test.x))[:ROWS]
    some = test._replace(x=test.x[drawn], y=test.y[drawn])
    guess = run.predict(test.x)
    if run.outputs is None:
        yield _drawn("Confusion and calibration", _plots.classified, found, test.y, guess)
        costs = -np.log(np.maximum(guess[np.arange(len(guess)), test.y], 1e-30))
    else:
        yield _drawn("Predictions and residuals", _plots.predicted, found.names, test.y, guess)
        costs = np.abs((guess - test.y) / run.outputs.scale).max(1)
    names, at = run.names, run.inputs.columns
    plain = [i for i, each in enumerate(at) if each.stop - each.start == 1]  # all but texts
    if len(names) <= COLUMNS:
        worth = importance.measured(run, some, 1, 0)
        yield _drawn("Importance of the columns", _plots.importance, worth)
        if moved := [name for name in worth.columns if names.index(name) in plain]:
            yield _drawn("Partial dependence", _plots.dependence, run, some, moved)
    worst = np.argsort(-costs, kind="stable")[:WORST]
    shown = plain[:20]
    cells = lambda i: [_cell(test, i, j, at[j].start) for j in shown]
    rows = [[_told(run, test.y[i]), _told(run, guess[i]), *cells(i)] for i in worst]
    table = _html.table("", ["true", "predicted", *(names[j] for j in shown)], *rows)
    yield f'<h2>The rows most wrong</h2><div class="wide">{table}</div>'


def _told(run: Run, y: Any) -> str:
    """A target, or a prediction, in words."""
    if run.outputs is not None:
        return ", ".join(f"{value:.4g}" for value in y)
    return f"{run.classes[y.argmax()]} ({y.max():.0%})" if np.ndim(y) else run.classes[y]


def _cell(part: Dataset, row: int, column: int, at: int) -> str:
    """A cell as it was read."""
    value = part.x[row, at]
    values = part.columns[column].values if part.columns else ()
    if np.isnan(value) or (values and value < 0):
        return "-"
    return printable(values[int(value)]) if values else f"{value:.5g}"


def _drawn(title: str, *drawn: Any) -> str:
    return _section(title, _plots.image(*drawn))


def _section(title: str, image: bytes) -> str:
    picture = f'<img alt="{title}" src="data:image/png;base64,{base64.b64encode(image).decode()}">'
    return f'<h2>{title}</h2><div class="wide">{picture}</div>'
