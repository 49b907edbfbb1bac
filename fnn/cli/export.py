"""`fnn export`: a trained network as a file that runs without fnn."""

from collections.abc import Callable
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np

from fnn import atomic
from fnn.cli import options
from fnn.data import DataError, Scaling
from fnn.data._features import HASHING
from fnn.data.encoding import FAR, Feature
from fnn.export import PLATFORMS, lowered
from fnn.runs import files
from fnn.runs.run import Run


@click.command()
@click.argument("run", type=options.FOLDER)
@click.argument("file", type=options.FILE)
def export(run: Path, file: Path) -> None:
    """Write the network in folder RUN to FILE, as a program for JAX that needs no fnn.

    The program takes what the network was trained on, in its own units, (n, columns) float32, and
    returns what `fnn predict` writes: each class's probability, or the values in their units.
    It prints which number stands for a text, a date or a blank.
    """
    files.check_apart(file, run / files.FILE)
    trained = files.load(run)
    d_in = trained.inputs.d_in
    atomic.write(file, lowered(program(trained), jax.ShapeDtypeStruct((1, d_in), jnp.float32)))
    outputs = trained.classes or trained.values
    click.echo(f"program   {file}, for {', '.join(PLATFORMS)}")
    click.echo(f"takes     (n, {d_in}) float32")
    features = trained.inputs.used or map(Feature, trained.features)
    for feature, at in zip(features, trained.inputs.columns, strict=False):
        place = at.start if feature.kind != "text" else f"{at.start}:{at.stop}"
        click.echo(f"          x[:, {place}] is {feature.name or 'a column'}{_codes(feature)}")
    click.echo(f"returns   (n, {len(outputs)}) float32: {', '.join(outputs)}")
    click.echo(f'call      jax.export.deserialize(open("{file}", "rb").read()).call(x)')


def program(run: Run) -> Callable[[jax.Array], jax.Array]:
    """f(x): x (n, columns) as `Run.parts` reads them, to probabilities (n, classes), or values
    (n, k) in their units.

    In float32 throughout: what `Run.predict` computes in float64 before and after the network
    differs by rounding. The mean is taken off in two parts, so that numbers close to each other
    and far from 0 keep their differences.

    Raises DataError for a column whose mean or scale has no place in float32, and for one of
    dates with a time of day.
    """
    for feature in run.inputs.used:
        if feature.kind == "date" and "day" in feature.cycles:
            reason = "dates with a time of day, which float32 can't hold to the minute"
            advice = "train on the date and the time as two columns"
            raise DataError(f"export: column {feature.name!r} has {reason}; {advice}")
    mean, rest, scale = _in_float32("input", run.inputs.scaling)
    outputs = None if run.outputs is None else _in_float32("value", run.outputs)
    params = run.progress.best.params
    far = FAR if run.inputs.features else np.inf

    def predicted(x: jax.Array) -> jax.Array:
        z = ((run.inputs.inputs(x, jnp) - mean) - rest) / scale
        z = jnp.where(jnp.isinf(z), jnp.nan, jnp.clip(z, -far, far))
        y, _ = run.network.forward(params, z)
        return jax.nn.softmax(y) if outputs is None else y * outputs[2] + outputs[0]

    return predicted


def _in_float32(kind: str, scaling: Scaling) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean, what float32 leaves of it, and the scale, (d,) float32 each."""
    limits = np.finfo(np.float32)
    fits = (scaling.scale >= limits.tiny) & (scaling.scale <= limits.max)
    for i in np.flatnonzero(~fits | (np.abs(scaling.mean) > limits.max)):
        both = f"the mean or the scale of {kind} {i + 1}"
        got = f"{scaling.mean[i]:.3g} and {scaling.scale[i]:.3g}"
        raise DataError(f"export: float32 can't hold {both}, {got}")
    mean = scaling.mean.astype(np.float32)
    return mean, (scaling.mean - mean).astype(np.float32), scaling.scale.astype(np.float32)


def _codes(feature: Feature) -> str:
    """What a number in the column stands for, where it is not itself."""
    if feature.kind == "text":
        made = f"HashingVectorizer(n_features={feature.rest}, **{HASHING})"
        return f": what scikit-learn's {made} makes of the text"
    units = {"date": ["in days since 1970-01-01"], "time": ["as a fraction of the day"]}
    codes = [f"{i} for {value}" for i, value in enumerate(feature.values)]
    rest = f"-1 - crc32(text) % {feature.rest}" if feature.rest > 1 else "-1"
    codes += [f"{rest} for any other"] * (feature.kind == "category")
    codes += units.get(feature.kind, []) + ["nan for a blank"] * feature.flag
    return ": " * bool(codes) + ", ".join(codes)
