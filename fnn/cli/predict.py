"""`fnn predict`: a trained network's predictions as CSV."""

import csv
import io
from pathlib import Path

import click

from fnn import atomic, data
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
    x = data.inputs(source, len(trained.inputs.mean), trained.features)
    prediction = runs.predict(trained, x)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if trained.classes:
        writer.writerow(["class", *(f"probability {name}" for name in trained.classes)])
        for row in prediction:
            writer.writerow([trained.classes[row.argmax()], *map(str, row)])
    else:
        writer.writerow(trained.values)
        writer.writerows(map(str, row) for row in prediction)
    if out is None:
        click.echo(text.getvalue(), nl=False)
    else:
        atomic.write(out, text.getvalue().encode())
