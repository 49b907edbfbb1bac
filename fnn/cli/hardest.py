"""`fnn hardest`: the examples with the largest gradients."""

import math
from pathlib import Path

import click
import jax
import numpy as np

from fnn import per_example
from fnn.cli import options
from fnn.data import Dataset
from fnn.runs import plots, run as runs
from fnn.runs.run import Run
from fnn.runs.text import printable


@click.command()
@click.argument("source")
@options.target
@click.option("--count", type=options.COUNT, default=30, help="Number of examples to show.")
@click.option("--epochs", type=options.COUNT, default=10, help="Number of epochs to train.")
@click.option("--seed", type=options.SEED, default=0, help="As for train.")
@click.option(
    "--out",
    type=options.FILE,
    show_default="runs/SOURCE/hardest.png",
    help="File for the picture, where the examples are square images.",
)
def hardest(
    source: str, target: str | None, count: int, epochs: int, seed: int, out: Path | None
) -> None:
    """Show the examples of SOURCE whose gradients are largest after training.

    The norm of an example's gradient says how far that example alone would move the network.
    It is large for mislabelled, damaged and ambiguous examples, and for those unlike any other.
    The network is trained on four fifths of SOURCE; all are ranked, and numbered from 1 in the
    order of SOURCE. Square images are drawn, other examples are printed.
    """
    out = out or runs.folder(source) / "hardest.png"
    runs.check_apart(out, source)
    plots.make_room(out)
    settings = runs.Settings((128,), "relu", "adam", 1e-3, 32, epochs, seed, target=target)
    run, examples = runs.prepare(source, settings)
    run = runs.train(run, examples, lambda newest: None)
    every = runs.aligned(run, runs.read(run, source))
    x, y = run.standardised(every)
    squared_norms = jax.jit(per_example.squared_norms(run.network, run.loss))
    norms = np.sqrt(squared_norms(run.progress.best.params, x, y))
    prediction = runs.predict(run, every.x)
    largest = np.argsort(-norms)[:count]
    whole = np.arange(len(norms) + len(every.skipped))
    numbers = 1 + np.setdiff1d(whole, every.skipped)
    captions = [_caption(run, every, prediction, i) for i in largest]
    click.echo(f"gradient norms: median {np.median(norms):.3g}, largest {norms.max():.3g}")
    if run.classes:
        wrong = np.sum(prediction.argmax(-1)[largest] != every.y[largest])
        click.echo(f"misclassified: {wrong} of the {len(largest)} with the largest")
    side = math.isqrt(every.x.shape[1])
    if every.columns or side < 8 or side * side != every.x.shape[1]:
        for i, caption in zip(largest, captions, strict=True):
            number = f"{numbers[i]:{len(str(len(whole)))}}"
            click.echo(f"example {number}  {norms[i]:#.3g}  {printable(caption)}")
        return
    title = f"the largest gradients of {source}: label, prediction, gradient norm"
    named = [f"{caption}\n{norms[i]:.3g}" for i, caption in zip(largest, captions, strict=True)]
    plots.images(every.x[largest].reshape(-1, side, side), named, out, title)
    click.echo(f"saved {out}")


def _caption(run: Run, examples: Dataset, prediction: np.ndarray, i: int) -> str:
    """The target of example i beside its prediction."""
    if run.classes:
        return f"{run.classes[examples.y[i]]}, predicted {run.classes[prediction[i].argmax()]}"
    values = [", ".join(f"{value:.4g}" for value in row) for row in (examples.y[i], prediction[i])]
    return f"{values[0]}, predicted {values[1]}"
