"""`fnn noise-scale`: the gradient noise scale along a training run."""

from pathlib import Path

import click
import jax

from fnn import per_example
from fnn.cli import options
from fnn.runs import plots, run as runs
from fnn.runs.run import Run


@click.command("noise-scale")
@click.argument("source")
@options.target
@click.option("--epochs", type=options.COUNT, default=10, help="Number of epochs to train.")
@click.option("--seed", type=options.SEED, default=0, help="As for train.")
@click.option(
    "--out",
    type=options.FILE,
    show_default="runs/SOURCE/noise_scale.png",
    help="File for the picture.",
)
def noise_scale(source: str, target: str | None, epochs: int, seed: int, out: Path | None) -> None:
    """Draw the gradient noise scale along a training run on SOURCE.

    It is the batch size at which noise and signal in the gradient are equal: far below it,
    doubling the batch size halves the noise of a step; far above it, that gains little. It is
    measured on all training examples after each epoch of Adam in batches of 32.
    """
    out = out or runs.folder(source) / "noise_scale.png"
    runs.check_apart(out, source)
    plots.make_room(out)
    settings = runs.Settings((128,), "relu", "adam", 1e-3, 32, epochs, seed, target=target)
    run, examples = runs.prepare(source, settings)
    x, y = jax.tree.map(jax.numpy.asarray, run.standardised(examples.train))
    measure = jax.jit(per_example.gradient_noise_scale(run.network, run.loss))
    traces: list[float] = []
    squared_norms: list[float] = []

    def on_epoch(newest: Run) -> None:
        params, history = newest.progress.state.params, newest.progress.history
        trace, squared_norm, scale = (float(value) for value in measure(params, x, y))
        traces.append(trace)
        squared_norms.append(squared_norm)
        # Near a minimum of the training loss the mean gradient is small against its noise, and
        # the estimate of its squared norm can be negative.
        shown = f"{scale:.0f}" if squared_norm > 0 else "too large to measure"
        click.echo(
            f"epoch {len(history):{len(str(epochs))}}  loss {history[-1]['loss']:#.4g}  "
            f"trace {trace:.3g}  squared norm {squared_norm:.3g}  noise scale {shown}"
        )

    runs.train(run, examples, on_epoch)
    plots.noise_scale(traces, squared_norms, out, f"gradient noise scale, {source}")
    click.echo(f"saved {out}")
