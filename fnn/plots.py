"""Pictures of a training run."""

import io
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fnn import files


def curves(history: list[dict[str, float]], path: str | Path, title: str) -> None:
    """Draw a run's history as a PNG: losses on the left, held-out quality on the right.

    Each record of the history is an epoch: `loss`, `test_loss`, perhaps `validation_loss`, and
    one more, the quality, whose key becomes its label. Raises OSError where the file can't be
    written; an older one is then as it was.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained", dpi=150)
    figure.suptitle(title, fontsize="medium")
    left, right = figure.subplots(1, 2)
    epochs = range(1, len(history) + 1)
    named = {"loss": "training", "test_loss": "held out", "validation_loss": "validation"}
    quality = next(key for key in history[0] if key not in named)
    shown = [key for key in named if key in history[0]]
    panels = [(left, key, named[key], f"C{i}") for i, key in enumerate(shown)]
    for axes, key, label, colour in [*panels, (right, quality, "held out", "C1")]:
        values = [record[key] for record in history]
        axes.plot(epochs, values, color=colour, label=label, linewidth=1.5, marker=".")
        axes.annotate(
            f"{values[-1]:.3g}",
            (len(values), values[-1]),
            color=colour,
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
        )
    for axes, name in [(left, "loss"), (right, quality.replace("_", " "))]:
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if min(record[key] for record in history for key in shown) > 0:
        left.set_yscale("log")
    left.legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image)
    files.write(path, image.getvalue())
