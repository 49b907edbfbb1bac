"""Pictures of a training run and of what its columns are worth."""

import base64
import errno
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

from fnn import atomic
from fnn.data import Dataset
from fnn.runs.importance import Importance
from fnn.runs.metrics import Classified
from fnn.runs.run import Run
from fnn.runs.text import printable
from fnn.training.fitting import epochs_since_best

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
    """Draw a run's `history` as a PNG. Raises OSError where the file can't be written; an older
    one is then as it was."""
    _write(history_of(history, title), path)


def history_of(history: list[dict[str, float]], title: str) -> Figure:
    """A run's history: losses on the left, held-out quality on the right.

    Each entry of the history is an epoch. It has `loss`, `test_loss`, perhaps `validation_loss`,
    and one more, the quality, whose key becomes its label. With validation, the best epoch is
    marked.
    """
    figure = _figure(3.4, title)
    left, right = figure.subplots(1, 2)
    epochs = range(1, len(history) + 1)
    named = {"loss": "training", "test_loss": "held out", "validation_loss": "validation"}
    shown = [key for key in named if key in history[0]]
    panels = [(left, key, named[key], f"C{i}") for i, key in enumerate(shown)]
    panels += [(right, key, "held out", "C1") for key in history[0] if key not in named]
    for axes, key, label, colour in panels:
        values = [entry[key] for entry in history]
        style = {"color": colour, "label": label, "marker": "." if len(values) <= 30 else ""}
        axes.plot(epochs, values, linewidth=1.5, **style)
        text, end = f"{values[-1]:.3g}", (len(values), values[-1])
        axes.annotate(text, end, **BESIDE, color=colour, fontsize="small")
    for axes, name in [(left, "loss"), (right, panels[-1][1].replace("_", " "))]:
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        if "validation_loss" in history[0]:
            best = len(history) - epochs_since_best(history)
            axes.axvline(best, color="0.6", linestyle=":", label=f"best epoch, {best}", zorder=0)
        _plain(axes)
    if min(entry[key] for entry in history for key in shown) > 0:
        left.set_yscale("log")
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        left.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        left.yaxis.set_minor_locator(NullLocator())
    left.legend(frameon=False)
    return figure


def importances(found: Importance, path: Path, title: str) -> None:
    """Draw `importance_of` as a PNG. Raises OSError where the file can't be written."""
    _write(importance_of(found, title), path)


def importance_of(found: Importance, title: str) -> Figure:
    """What each column is worth: a bar per name, its deviation as a whisker.

    Of more than `SHOWN` columns, the most important; by the first measure alone.
    """
    names = found.columns[:SHOWN]
    mean, deviation = found.mean[:SHOWN, 0], found.deviation[:SHOWN, 0]
    figure = _figure(1.2 + 0.28 * len(names), title)
    axes = figure.subplots()
    places = np.arange(len(names))[::-1]
    axes.barh(places, mean, xerr=deviation, color="C0", ecolor="0.4", height=0.7)
    axes.set_yticks(places, [_short(_drawable(name)) for name in names], parse_math=False)
    label = f"how much worse the {found.measures[0]} is when the column is shuffled"
    axes.set(xlabel=label, ylim=(-0.6, len(names) - 0.4), axisbelow=True)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def classified(found: Classified, labels: np.ndarray, chances: np.ndarray) -> Figure:
    """The confusion of at most `SHOWN` classes, the most frequent, and how often predictions of
    each probability are right."""
    figure = _figure(4, "")
    left, right = figure.subplots(1, 2)
    kept = np.sort(np.argsort(-found.examples, kind="stable")[:SHOWN])
    counts = found.confusion[np.ix_(kept, kept)]
    left.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts if len(kept) <= 10 else counts[:0]):
        dark = count > 0.6 * counts[i].sum()
        left.text(j, i, count, ha="center", va="center", color="white" if dark else "black")
    names = [_short(_drawable(found.classes[i])) for i in kept]
    left.set_xticks(range(len(names)), names, rotation=90 * (len(names) > 4), parse_math=False)
    left.set_yticks(range(len(names)), names, parse_math=False)
    left.set(xlabel="predicted class", ylabel="true class")
    sure = chances.max(1) if chances.shape[1] > 2 else chances[:, -1]
    right_ones = chances.argmax(1) == labels if chances.shape[1] > 2 else labels == 1
    bins = np.minimum((sure * 10).astype(int), 9)
    there = [bins == i for i in range(10) if (bins == i).any()]
    places = [[sure[i].mean() for i in there], [right_ones[i].mean() for i in there]]
    right.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    right.scatter(*places, s=[20 + 300 * i.mean() for i in there], alpha=0.7)
    what = "the predicted class" if chances.shape[1] > 2 else _short(_drawable(found.classes[1]))
    right.set_xlabel(f"probability of {what}", parse_math=False)
    right.set(ylabel="share that is right" if chances.shape[1] > 2 else "share of it")
    _plain(right)
    return figure


def predicted(names: Sequence[str], y: np.ndarray, guess: np.ndarray) -> Figure:
    """Predicted against true values, and the residuals; of several values, of the first."""
    figure = _figure(4, "")
    left, right = figure.subplots(1, 2)
    some = slice(2000)
    left.scatter(y[some, 0], guess[some, 0], s=8, alpha=0.5)
    ends = [min(y[:, 0].min(), guess[:, 0].min()), max(y[:, 0].max(), guess[:, 0].max())]
    left.plot(ends, ends, color="0.6", linewidth=0.8)
    right.hist(guess[:, 0] - y[:, 0], bins=30)
    for axes, words in ((left, ("true {}", "predicted {}")), (right, ("error of {}", "examples"))):
        for label, text in zip((axes.set_xlabel, axes.set_ylabel), words, strict=True):
            label(text.format(_short(_drawable(names[0]))), parse_math=False)
        _plain(axes)
    return figure


def dependence(run: Run, part: Dataset, columns: Sequence[str]) -> Figure:
    """The mean prediction for at most 200 examples, each with the same value in one column, for
    the first four of these columns: of two classes the probability of the second, of more those
    of the first five. Friedman 2001, section 8.2."""
    figure = _figure(2.6, "")
    names = part.features or tuple(f"column {i + 1}" for i in range(part.x.shape[1]))
    every = figure.subplots(1, min(4, len(names)), sharey=True, squeeze=False)[0]
    x = part.x[:200]
    classes = (run.classes[1:2] if len(run.classes) == 2 else run.classes[:5]) or run.values[:1]
    for axes, name in zip(every, columns, strict=False):
        i = names.index(name)
        values = part.columns[i].values if part.columns else ()
        cells = x[~np.isnan(x[:, i]), i]
        grid = (
            np.arange(min(len(values), 8)) if values else np.quantile(cells, np.linspace(0, 1, 15))
        )
        means = []
        for value in grid:
            moved = x.copy()
            moved[:, i] = value
            means.append(run.predict(moved).mean(0)[len(run.classes) == 2 :][: len(classes)])
        lines = axes.plot(grid, np.array(means), "o" if values else "-")
        axes.set_xlabel(_short(_drawable(name)), parse_math=False)
        if values:
            words = [_short(_drawable(value), 10) for value in values[: len(grid)]]
            axes.set_xticks(grid, words, rotation=90, parse_math=False)
        _plain(axes)
    label = f"probability of {classes[0]}" if len(run.classes) == 2 else "mean prediction"
    every[0].set_ylabel(_short(_drawable(label), 30), parse_math=False)
    if len(classes) > 1:
        every[-1].legend(lines, [_short(_drawable(name), 12) for name in classes], frameon=False)
    return figure


def embedded(figure: Figure) -> str:
    """The figure as a PNG in a URL that holds it."""
    return f"data:image/png;base64,{base64.b64encode(_image(figure)).decode()}"


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _short(text: str, most: int = 24) -> str:
    """The text, shortened in its middle."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def _figure(height: float, title: str) -> Figure:
    """An empty figure. The title is drawn as it is: `$` and `^` of a file's name are no formula,
    and bytes of it that are no text become question marks."""
    figure = Figure(figsize=(9, height), layout="constrained", dpi=150)
    if title:
        figure.suptitle(_drawable(title), fontsize="medium", parse_math=False)
    return figure


def _drawable(text: str) -> str:
    """The text with question marks for bytes of a file's name that are no text."""
    return printable(text.encode(errors="replace").decode())


def _write(figure: Figure, path: Path) -> None:
    atomic.write(path, _image(figure))


def _image(figure: Figure) -> bytes:
    image = io.BytesIO()
    figure.savefig(image)
    return image.getvalue()
