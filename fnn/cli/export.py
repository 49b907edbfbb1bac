"""`fnn export`: a trained network as a file that runs without fnn."""

from collections.abc import Callable
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np

from fnn import atomic
from fnn.cli import options, runs
from fnn.data import Scaling
from fnn.export import PLATFORMS, lowered


@click.command()
@click.argument("run", type=options.FOLDER)
@click.argument("file", type=options.FILE)
def export(run: Path, file: Path) -> None:
    """Write the network in folder RUN to FILE, as a program for JAX that needs no fnn.

    The program takes what the network was trained on, in its own units, (n, columns) float32, and
    returns what `fnn predict` writes: each class's probability, or the values in their units.
    """
    trained = runs.load(run)
    d_in = len(trained.inputs.mean)
    example = jax.ShapeDtypeStruct((1, d_in), jnp.float32)
    atomic.write(file, lowered(program(trained), example))
    columns = f": {', '.join(trained.features)}" if trained.features else ""
    outputs = trained.classes or trained.values
    click.echo(f"program   {file}, for {', '.join(PLATFORMS)}")
    click.echo(f"takes     (n, {d_in}) float32{columns}")
    click.echo(f"returns   (n, {len(outputs)}) float32: {', '.join(outputs)}")
    click.echo(f'call      jax.export.deserialize(open("{file}", "rb").read()).call(x)')


def program(run: runs.Run) -> Callable[[jax.Array], jax.Array]:
    """f(x): x (n, columns) in its own units to probabilities (n, classes), or values in theirs.

    In float32 throughout: what `runs.predict` computes in float64 before and after the network
    differs by rounding. The mean is taken off in two parts, so that numbers close to each other
    and far from 0 keep their differences.

    Raises ValueError for a column whose mean or scale has no place in float32.

    >>> run, examples = runs.prepare("iris", runs.Settings((), "relu", "sgd", 0.1, 32, 1, seed=0))
    >>> x = examples.test.x[:2]
    >>> bool(jnp.allclose(program(run)(jnp.float32(x)), runs.predict(run, x), atol=1e-5))
    True
    """
    mean, rest, scale = _in_float32("input", run.inputs)
    params = run.progress.best.params
    outputs = None if run.outputs is None else _in_float32("value", run.outputs)

    def predicted(x: jax.Array) -> jax.Array:
        y, _ = run.network.forward(params, ((x - mean) - rest) / scale)
        return jax.nn.softmax(y) if outputs is None else y * outputs[2] + outputs[0]

    return predicted


def _in_float32(kind: str, scaling: Scaling) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean, what float32 leaves of it, and the scale, (d,) float32 each."""
    limits = np.finfo(np.float32)
    fits = (scaling.scale >= limits.tiny) & (scaling.scale <= limits.max)
    for i in np.flatnonzero(~fits | (np.abs(scaling.mean) > limits.max)):
        raise ValueError(
            f"export: float32 can't hold the mean or the scale of {kind} {i + 1}, "
            f"{scaling.mean[i]:.3g} and {scaling.scale[i]:.3g}"
        )
    mean = scaling.mean.astype(np.float32)
    return mean, (scaling.mean - mean).astype(np.float32), scaling.scale.astype(np.float32)
