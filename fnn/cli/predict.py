"""`fnn predict`: a trained network's predictions as CSV or Parquet."""

import io
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import polars

from fnn import atomic
from fnn.cli import options, runs


@click.command()
@click.argument("run", type=options.FOLDER)
@click.argument("source")
@options.device
@click.option(
    "--out",
    type=options.FILE,
    show_default="standard output",
    help="File for the predictions: Parquet where its name ends in .parquet, else CSV.",
)
def predict(run: Path, source: str, out: Path | None) -> None:
    """Predict with the network in folder RUN and write one row per example.

    For classes, a row holds the predicted class and each class's probability; for values, the
    values in their own units. SOURCE is as for training, without the targets. Of a CSV file
    with a header, the columns that the network was trained on are used.
    """
    trained = runs.load(run)
    x = runs.inputs(trained, source)
    for line in trained.inputs.unseen(x):
        click.echo(f"Warning: {line}", err=True)
    frames = (_frame(trained, piece) for piece in runs.predictions(trained, x))
    if out is None:
        for text in _csv(frames):
            click.echo(text, nl=False)
    elif out.suffix.lower() == ".parquet":
        table = io.BytesIO()
        polars.concat(frames).write_parquet(table)
        atomic.write(out, table.getbuffer())
    else:
        atomic.stream(out, (text.encode() for text in _csv(frames)))


def _frame(trained: runs.Run, predictions: np.ndarray) -> polars.DataFrame:
    """Predictions with the names of their columns, and of classes the predicted one."""
    if not trained.classes:
        return polars.DataFrame(predictions, schema=list(trained.values))
    names = [f"probability {name}" for name in trained.classes]
    best = polars.Series("class", np.array(trained.classes)[predictions.argmax(-1)])
    return polars.DataFrame(predictions, schema=names).insert_column(0, best)


def _csv(frames: Iterator[polars.DataFrame]) -> Iterator[str]:
    """The header and the rows, in pieces."""
    for i, frame in enumerate(frames):
        yield frame.write_csv(include_header=i == 0)
