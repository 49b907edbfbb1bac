"""`fnn predict`: a trained network's predictions as CSV or Parquet."""

import errno
import itertools
import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import click
import numpy as np
import polars
from polars.io.plugins import register_io_source

from fnn import atomic
from fnn.cli import options
from fnn.runs import evaluation, files
from fnn.runs.metrics import guessed
from fnn.runs.run import Run

PIECE = 1 << 22
"""Bytes that are copied at a time."""
OUT = "File for the predictions: Parquet where its name ends in .parquet, else CSV."


@click.command()
@click.argument("run", type=options.FOLDER)
@click.argument("source")
@options.device
@options.threshold
@click.option("--out", type=options.FILE, show_default="standard output", help=OUT)
def predict(run: Path, source: str, threshold: float | None, out: Path | None) -> None:
    """Predict with the network in folder RUN and write one row per example.

    For classes, a row holds the predicted class and each class's probability; for values, the
    values in their own units, after the columns that --id named, and where several members were
    trained, the ends of intervals that hold 90% of such values. SOURCE is as for training, without
    the targets. Of a CSV file
    with a header, the columns that the network was trained on are used. A table may be larger
    than the memory: it is read, predicted and written in parts. Where a later part has a fault,
    standard output has the rows before it, and FILE is as it was.
    """
    if out is not None:
        files.check_apart(out, source, run / files.FILE)
    trained = files.load(run)
    if threshold is not None:
        click.echo(options.by_threshold(trained.classes, threshold), err=True)
    ids = _ids(trained)
    unseen, notes = None, dict[str, None]()
    waiting: list[polars.DataFrame] = []  # the ids of rows that are read and not yet predicted

    def parts() -> Iterator[np.ndarray]:
        nonlocal unseen
        for part in trained.parts(source):
            unseen = trained.inputs.unseen(part.x, unseen)
            notes.update(dict.fromkeys(part.left_out))
            waiting.append(polars.DataFrame(part.ids).rename(ids, strict=False))
            yield part.x

    def frames() -> Iterator[polars.DataFrame]:
        for piece in evaluation.predictions(trained, parts()):
            rows = polars.concat(waiting, how="vertical_relaxed")
            waiting[:] = [rows[len(piece) :]]
            every = rows[: len(piece)], _frame(trained, piece, threshold)
            yield polars.concat(every, how="horizontal")

    texts = (frame.write_csv(include_header=i == 0) for i, frame in enumerate(frames()))
    if out is None:
        for text in texts:
            click.echo(text, nl=False)
    elif out.suffix.lower() == ".parquet":
        with closing(_parquet(frames(), out.parent)) as pieces:
            atomic.stream(out, pieces)
    else:
        atomic.stream(out, (text.encode() for text in texts))
    options.warn(*notes, *(unseen.lines() if unseen else ()))


def _ids(trained: Run) -> dict[str, str]:
    """What the columns that --id named are called in the output: one with the name of a column of
    predictions gets another, which is reported."""
    k = len(trained.classes or trained.values)
    taken, found = set(_frame(trained, np.empty((0, k))).columns), dict[str, str]()
    for name in trained.settings.id:
        found[name] = name
        while found[name] in taken:
            found[name] += " (id)"
        taken.add(found[name])
        if found[name] != name:
            options.warn(f"the id {name!r} is written as {found[name]!r}: the name is taken")
    return found


def _frame(run: Run, predictions: np.ndarray, threshold: float | None = None) -> polars.DataFrame:
    """Predictions with the names of their columns, and of classes the predicted one."""
    if not run.classes:
        columns = dict(zip(run.values, predictions.T, strict=True))
        ends: dict[str, np.ndarray] = {}
        for (name, values), margin in zip(columns.items(), run.margins, strict=False):
            ends |= {f"{name} lower": values - margin, f"{name} upper": values + margin}
        return polars.DataFrame(columns | ends | columns)  # a value may be called "price lower"
    names = [f"probability {name}" for name in run.classes]
    best = polars.Series("class", np.array(run.classes)[guessed(predictions, threshold)])
    return polars.DataFrame(predictions, schema=names).insert_column(0, best)


def _parquet(frames: Iterator[polars.DataFrame], folder: Path) -> Generator[bytes, None, None]:
    """The bytes of a Parquet file of the rows, which is in the folder meanwhile. Raises OSError
    where it can't be written."""
    first = next(frames)
    every = lambda columns, predicate, n_rows, batch_size: itertools.chain([first], frames)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=atomic.UNFINISHED) as file:
        try:
            register_io_source(every, schema=first.schema).sink_parquet(file.name)
        except polars.exceptions.PolarsError as error:  # whatever a full disk leads to
            raise OSError(errno.EIO, f"can't be written: {error}", str(folder)) from error
        yield from iter(partial(file.read, PIECE), b"")
