"""Pictures of a training run and of what its columns are worth."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from fnn.data import Dataset
from fnn.runs.importance import Importance
from fnn.runs.metrics import Classified
from fnn.runs.run import Run
from fnn.runs.text import printable
from fnn.training.fitting import epochs_since_best

STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "figure.figsize": (9, 4),
    "grid.alpha": 0.3,
    "text.parse_math": False,  # `$` and `^` of a file's name are no formula
}
KINDS = {"loss": ("training", "C0"), "validation_loss": ("validation", "C2")}
"""The label and the colour of each loss but the one on the held-out part."""
SHOWN = 20
"""The most columns in a picture."""


def image(draw: Callable[..., None], *args: Any) -> bytes:
    """What draw(figure, *args) draws, as a PNG in the style of all pictures."""
    written = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        draw(figure := Figure(), *args)
        figure.savefig(written)
    return written.getvalue()


def curves(figure: Figure, history: list[dict[str, float]], title: str = "") -> None:
    """A run's history: losses on the left, held-out quality on the right.

    Each entry of the history is an epoch. It has `loss`, `test_loss`, perhaps `validation_loss`,
    and one more, the quality, whose key becomes its label. With validation, the best epoch is
    marked.
    """
    figure.set_figheight(3.4)
    figure.suptitle(short(title, 120))
    left, right = figure.subplots(1, 2)
    for key in history[0]:
        values = [entry[key] for entry in history]
        label, colour = KINDS.get(key, ("held out", "C1"))
        axes = left if key.endswith("loss") else right
        marker = "." if len(values) <= 30 else ""
        axes.plot(range(1, len(values) + 1), values, marker=marker, color=colour, label=label)
        axes.set(xlabel="epoch", ylabel=key.replace("_", " ") if axes is right else "loss")
        beside = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "size": "small"}
        axes.annotate(f"{values[-1]:.3g}", (len(values), values[-1]), **beside, color=colour)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        if "validation_loss" in history[0]:
            best = len(history) - epochs_since_best(history)
            axes.axvline(best, color="0.6", linestyle=":", label=f"best epoch, {best}", zorder=0)
    if min(entry[key] for entry in history for key in entry if key.endswith("loss")) > 0:
        left.set_yscale("log")
        ticks = {"major_locator": LogLocator(subs=(1, 2, 3, 5)), "minor_locator": NullLocator()}
        left.yaxis.set(**ticks, major_formatter="{x:g}")
    left.legend()


def importance(figure: Figure, found: Importance, title: str = "") -> None:
    """What each column is worth: a bar per name, its deviation as a whisker.

    Of more than `SHOWN` columns, the most important; by the first measure alone.
    """
    names = [short(name) for name in found.columns[:SHOWN]][::-1]
    mean, deviation = (a[: len(names), 0][::-1] for a in (found.mean, found.deviation))
    figure.set_figheight(1.2 + 0.28 * len(names))
    figure.suptitle(short(title, 120))
    axes = figure.subplots()
    axes.barh(range(len(names)), mean, xerr=deviation, ecolor="0.4", height=0.7, tick_label=names)
    axes.axvline(0, color="0.4", linewidth=0.8)
    label = f"how much worse the {found.measures[0]} is when the column is shuffled"
    axes.set(xlabel=label, ylim=(-0.6, len(names) - 0.4))


def classified(figure: Figure, found: Classified, labels: np.ndarray, chances: np.ndarray) -> None:
    """The confusion of at most `SHOWN` classes, the most frequent, and how often predictions of
    each probability are right."""
    from sklearn.calibration import CalibrationDisplay
    from sklearn.metrics import ConfusionMatrixDisplay

    left, right = figure.subplots(1, 2)
    kept = np.sort(np.argsort(-found.examples, kind="stable")[:SHOWN])
    names = [short(found.classes[i]) for i in kept]
    style = {"cmap": "Blues", "colorbar": False, "include_values": len(kept) <= 10}
    confusion = ConfusionMatrixDisplay(found.confusion[np.ix_(kept, kept)], display_labels=names)
    confusion.plot(ax=left, **style, xticks_rotation=90 * (len(names) > 4))
    left.grid(False)
    sure, right_ones, words = chances[:, 1], labels == 1, (short(found.classes[1]), "of it")
    if len(found.classes) > 2:
        sure, right_ones = chances.max(1), chances.argmax(1) == labels
        words = "the predicted class", "that is right"
    style = {"n_bins": 10, "strategy": "quantile", "ax": right}
    CalibrationDisplay.from_predictions(right_ones, np.minimum(sure, 1), **style)
    right.set(xlabel=f"probability of {words[0]}", ylabel=f"share {words[1]}")
    right.legend_.remove()


def predicted(figure: Figure, names: Sequence[str], y: np.ndarray, guess: np.ndarray) -> None:
    """Predicted against true values, and the residuals; of several values, of the first."""
    from sklearn.metrics import PredictionErrorDisplay

    figure.suptitle(short(names[0]))
    kinds = "actual_vs_predicted", "residual_vs_predicted"
    for axes, kind in zip(figure.subplots(1, 2), kinds, strict=True):
        style = {"ax": axes, "subsample": 2000, "random_state": 0, "scatter_kwargs": {"s": 8}}
        PredictionErrorDisplay.from_predictions(y[:, 0], guess[:, 0], kind=kind, **style)


def dependence(figure: Figure, run: Run, part: Dataset, columns: Sequence[str]) -> None:
    """The mean prediction for at most 200 examples, each with the same value in one column, for
    the first four of these columns: of two classes the probability of the second, of more those
    of the first five. Friedman 2001, section 8.2."""
    figure.set_figheight(2.6)
    x, two = part.x[:200], len(run.classes) == 2
    every = figure.subplots(1, min(4, len(columns)), sharey=True, squeeze=False)[0]
    shown = run.classes[two:][:5] or run.values[:1]
    for axes, name in zip(every, columns, strict=False):
        i = run.names.index(name)
        at = run.inputs.columns[i]
        values = part.columns[i].values[:8] if part.columns else ()
        grid = np.arange(len(values)) if values else np.nanquantile(x[:, at], np.linspace(0, 1, 15))
        means = []
        for value in grid:
            moved = x.copy()
            moved[:, at] = value
            means.append(run.predict(moved).mean(0)[two:][: len(shown)])
        lines = axes.plot(grid, np.array(means), "o" if values else "-")
        axes.set_xlabel(short(name))
        if values:
            axes.set_xticks(grid, [short(value, 10) for value in values], rotation=90)
    every[0].set_ylabel(f"probability of {short(shown[0], 16)}" if two else "mean prediction")
    if len(shown) > 1:
        every[-1].legend(lines, [short(name, 12) for name in shown])


def short(text: str, most: int = 24) -> str:
    """The text, shortened in its middle; bytes of a file's name that are no text become question
    marks."""
    text, half = printable(text.encode(errors="replace").decode()), (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"
