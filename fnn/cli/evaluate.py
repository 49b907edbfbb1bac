"""`fnn evaluate`: a trained network, measured on examples with known targets."""

from pathlib import Path

import click

from fnn.cli import options, runs
from fnn.cli.metrics import Classified


@click.command()
@click.argument("run", type=options.FOLDER)
@click.argument("source", nargs=-1, required=True)
def evaluate(run: Path, source: tuple[str, ...]) -> None:
    """Measure the network in folder RUN on SOURCE.

    If SOURCE is the data that it was trained on, only the held-out examples are used; if SOURCE
    has a test part, only that part; of other data, the examples that are equal to none that it
    was trained on. The target of a CSV file with a header is found by its name.
    """
    trained = runs.load(run)
    examples, which = runs.held_out(trained, runs.read(trained, source))
    click.echo(f"data      {' '.join(source)}: {which}")
    for line in trained.inputs.unseen(examples.x):
        click.echo(f"Warning: {line}", err=True)
    metrics = runs.evaluate(trained, examples)
    for line in metrics.lines():
        click.echo(line)
    if isinstance(metrics, Classified):
        click.echo(metrics.table())
