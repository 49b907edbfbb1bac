"""Pictures of a training run."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def curves(history: list[dict[str, float]], path: str | Path, title: str) -> None:
    """Draw a run's history as a PNG: losses on the left, held-out quality on the right.

    Each record of the history is an epoch: `loss` and `test_loss`, and one more, the quality,
    whose key becomes its label.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained", dpi=150)
    figure.suptitle(title, fontsize="medium")
    left, right = figure.subplots(1, 2)
    epochs = range(1, len(history) + 1)
    quality = next(key for key in history[0] if key not in ("loss", "test_loss"))
    panels = [(left, "loss", "training", "C0"), (left, "test_loss", "held out", "C1")]
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
    if min(record[key] for record in history for key in ("loss", "test_loss")) > 0:
        left.set_yscale("log")
    left.legend(frameon=False)
    figure.savefig(path)
