"""`fnn export`: a trained network as a file that runs without fnn."""

from collections.abc import Callable
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np

from fnn import atomic
from fnn.cli import options
from fnn.data import DataError, Encoding, Scaling
from fnn.data.dataset import CATEGORY, DATE, NUMBER, TIME
from fnn.data.encoding import FAR, HOURS, WEEK, Feature
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
    The numbers that stand for a text, a date or a blank are listed.
    """
    files.check_apart(file, run / files.FILE)
    trained = files.load(run)
    d_in = trained.inputs.d_in
    example = jax.ShapeDtypeStruct((1, d_in), jnp.float32)
    atomic.write(file, lowered(program(trained), example))
    outputs = trained.classes or trained.values
    click.echo(f"program   {file}, for {', '.join(PLATFORMS)}")
    click.echo(f"takes     (n, {d_in}) float32")
    plain = [Feature(name, NUMBER) for name in trained.features]  # of arrays, where they have names
    for i, feature in enumerate(trained.inputs.used or plain):
        click.echo(f"          x[:, {i}] is {feature.name or 'a column'}{_codes(feature)}")
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
        if feature.kind == DATE and HOURS in feature.cycles:
            raise DataError(
                f"export: column {feature.name!r} has dates with a time of day, which float32 "
                f"can't hold to the minute; train on the date and the time as two columns"
            )
    mean, rest, scale = _in_float32("input", run.inputs.scaling)
    outputs = None if run.outputs is None else _in_float32("value", run.outputs)
    params = run.progress.best.params
    far = FAR if run.inputs.features else np.inf

    def predicted(x: jax.Array) -> jax.Array:
        z = ((_inputs(run.inputs, x) - mean) - rest) / scale
        z = jnp.where(jnp.isinf(z), jnp.nan, jnp.clip(z, -far, far))
        y, _ = run.network.forward(params, z)
        return jax.nn.softmax(y) if outputs is None else y * outputs[2] + outputs[0]

    return predicted


def _inputs(encoding: Encoding, x: jax.Array) -> jax.Array:
    """`Encoding.apply` before the standardisation: columns (n, d_in) to inputs (n, width)."""
    if not encoding.features:
        return x
    columns = [part for i, f in enumerate(encoding.used) for part in _encoded(f, x[:, i])]
    return jnp.stack([column.astype(x.dtype) for column in columns], -1)


def _encoded(feature: Feature, cells: jax.Array) -> list[jax.Array]:
    """`Feature.inputs`: one array (n,) per input."""
    blank = jnp.isnan(cells)
    if feature.kind == CATEGORY:
        every = [cells == i for i in range(len(feature.values))] + [cells == -1] * feature.rest
        return every + [blank] * feature.flag
    filled = jnp.where(blank, jnp.asarray(feature.fill, cells.dtype), cells)
    turns = [2 * np.pi * _place(filled, cycle) for cycle in feature.cycles]
    waves = [wave(turn) for turn in turns for wave in (jnp.sin, jnp.cos)]
    return [filled, *waves] + [blank] * feature.flag


def _place(days: jax.Array, cycle: str) -> jax.Array:
    """The place in a cycle, from 0 to 1, of dates in days since 1970-01-01, a Thursday."""
    if cycle == HOURS:
        return days % 1
    day = jnp.floor(days).astype(jnp.int32)
    if cycle == WEEK:
        return ((day + 3) % 7).astype(days.dtype) / 7
    # The Gregorian calendar repeats itself after 400 years; in those that begin with March the
    # day of a leap year is the last. 0000-03-01 is 719468 days before 1970-01-01.
    era = (day + 719468) // 146097
    of_era = (day + 719468) % 146097
    year = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    of_march = of_era - (365 * year + year // 4 - year // 100)
    year = year + 400 * era
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    since_january = jnp.where(
        of_march >= 306, of_march - 306, of_march + 59 + leap.astype(day.dtype)
    )
    return since_january.astype(days.dtype) / 366


def _in_float32(kind: str, scaling: Scaling) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean, what float32 leaves of it, and the scale, (d,) float32 each."""
    limits = np.finfo(np.float32)
    fits = (scaling.scale >= limits.tiny) & (scaling.scale <= limits.max)
    for i in np.flatnonzero(~fits | (np.abs(scaling.mean) > limits.max)):
        raise DataError(
            f"export: float32 can't hold the mean or the scale of {kind} {i + 1}, "
            f"{scaling.mean[i]:.3g} and {scaling.scale[i]:.3g}"
        )
    mean = scaling.mean.astype(np.float32)
    return mean, (scaling.mean - mean).astype(np.float32), scaling.scale.astype(np.float32)


def _codes(feature: Feature) -> str:
    """What a number in the column stands for, where it is not itself."""
    codes = [f"{i} for {value}" for i, value in enumerate(feature.values)]
    codes += ["-1 for any other"] * (feature.kind == CATEGORY)
    codes += {DATE: ["in days since 1970-01-01"], TIME: ["as a fraction of the day"]}.get(
        feature.kind, []
    )
    codes += ["nan for a blank"] * feature.flag
    return ": " * bool(codes) + ", ".join(codes)
