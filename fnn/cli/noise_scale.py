"""`fnn noise-scale`: the gradient noise scale along a training run."""

from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp

from fnn import data, per_example
from fnn.cli import classifier, options, plots


@click.command("noise-scale")
@click.argument("source", type=click.Choice(data.CLASSIFICATION))
@click.option("--epochs", type=options.COUNT, default=10, help="Number of epochs to train.")
@click.option("--seed", type=options.SEED, default=0, help="As for train.")
@click.option(
    "--out",
    type=options.FILE,
    show_default="runs/SOURCE/noise_scale.png",
    help="File for the picture.",
)
def noise_scale(source: str, epochs: int, seed: int, out: Path | None) -> None:
    """Draw the gradient noise scale along a training run on SOURCE.

    It is the batch size at which noise and signal in the gradient are equal: far below it,
    doubling the batch size halves the noise of a step; far above it, that gains little. It is
    measured on all training examples after each epoch of Adam in batches of 32.
    """
    out = out or Path("runs") / source / "noise_scale.png"
    plots.make_room(out)
    learn, _ = data.split(data.load(source), 0.2, seed)
    x, y = jnp.asarray(data.Scaling.of(learn.x).apply(learn.x)), jnp.asarray(learn.y)
    network = classifier.network(learn)
    measure = jax.jit(per_example.gradient_noise_scale(network, classifier.LOSS))
    traces: list[float] = []
    squared_norms: list[float] = []

    def on_epoch(number: int, state: Any, entry: dict[str, Any]) -> None:
        trace, squared_norm, scale = (float(value) for value in measure(state.params, x, y))
        traces.append(trace)
        squared_norms.append(squared_norm)
        # Near a minimum of the training loss the mean gradient is small against its noise, and
        # the estimate of its squared norm can be negative.
        shown = f"{scale:.0f}" if squared_norm > 0 else "too large to measure"
        click.echo(
            f"epoch {number:{len(str(epochs))}}  loss {entry['loss']:.4f}  trace {trace:.3g}  "
            f"squared norm {squared_norm:.3g}  noise scale {shown}"
        )

    classifier.train(network, (x, y), epochs, seed, on_epoch)
    plots.noise_scale(traces, squared_norms, out, f"gradient noise scale, {source}")
    click.echo(f"saved {out}")
