"""`fnn predict`: a trained network's predictions as CSV."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np

from fnn import atomic
from fnn.cli import options, runs


@click.command()
@click.argument("run", type=options.FOLDER)
@click.argument("source")
@click.option(
    "--out",
    type=options.FILE,
    show_default="standard output",
    help="CSV file for the predictions.",
)
def predict(run: Path, source: str, out: Path | None) -> None:
    """Predict with the network in folder RUN and write one CSV row per example.

    For classes, a row holds the predicted class and each class's probability; for values, the
    values in their own units. SOURCE is as for training, without the targets. Of a CSV file
    with a header, the columns that the network was trained on are used.
    """
    trained = runs.load(run)
    x = runs.inputs(trained, source)
    for line in trained.inputs.unseen(x):
        click.echo(f"Warning: {line}", err=True)
    rows = _rows(trained, runs.predictions(trained, x))
    if out is None:
        for text in rows:
            click.echo(text, nl=False)
    else:
        atomic.stream(out, (text.encode() for text in rows))


def _rows(trained: runs.Run, predictions: Iterator[np.ndarray]) -> Iterator[str]:
    """The header and the rows as CSV, in pieces."""
    names = [f"probability {name}" for name in trained.classes]
    yield _csv([["class", *names] if trained.classes else trained.values])
    for piece in predictions:
        rows = [list(map(str, row)) for row in piece]
        if trained.classes:
            best = piece.argmax(-1)
            rows = [[trained.classes[i], *row] for i, row in zip(best, rows, strict=True)]
        yield _csv(rows)


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
