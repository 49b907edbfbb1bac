"""`fnn hardest`: the examples with the largest gradients."""

from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np

from fnn import data, per_example
from fnn.cli import classifier, options, plots


@click.command()
@click.argument("source", type=click.Choice(["digits"]))
@click.option("--count", type=options.COUNT, default=30, help="Number of images to draw.")
@click.option("--epochs", type=options.COUNT, default=10, help="Number of epochs to train.")
@click.option("--seed", type=options.SEED, default=0, help="As for train.")
@click.option(
    "--out",
    type=options.FILE,
    show_default="runs/SOURCE/hardest.png",
    help="File for the picture.",
)
def hardest(source: str, count: int, epochs: int, seed: int, out: Path | None) -> None:
    """Draw the images of SOURCE whose gradients are largest after training.

    The norm of an example's gradient says how far that example alone would move the network.
    It is large for mislabelled, damaged and ambiguous images, and for those with ink where
    hardly any other has it. The network is trained on four fifths of SOURCE; all are ranked.
    """
    out = out or Path("runs") / source / "hardest.png"
    plots.make_room(out)
    everything = data.load(source)
    learn, _ = data.split(everything, 0.2, seed)
    network, inputs = classifier.network(learn), data.Scaling.of(learn.x)
    params = classifier.train(network, (inputs.apply(learn.x), learn.y), epochs, seed, None)
    x, y = jnp.asarray(inputs.apply(everything.x)), jnp.asarray(everything.y)
    squared_norms = jax.jit(per_example.squared_norms(network, classifier.LOSS))
    norms = np.sqrt(squared_norms(params, x, y))
    predicted = np.asarray(network.forward(params, x)[0]).argmax(-1)
    largest = np.argsort(-norms)[:count]
    names = everything.classes
    captions = [
        f"{names[everything.y[i]]}, predicted {names[predicted[i]]}\n{norms[i]:.3g}"
        for i in largest
    ]
    title = f"the largest gradients of {source}: label, prediction, gradient norm"
    plots.images(everything.x[largest].reshape(-1, 8, 8), captions, out, title)
    wrong = np.sum(predicted[largest] != everything.y[largest])
    click.echo(
        f"gradient norms: median {np.median(norms):.3g}, largest {norms.max():.3g}\n"
        f"misclassified: {wrong} of the {len(largest)} with the largest\n"
        f"saved {out}"
    )
