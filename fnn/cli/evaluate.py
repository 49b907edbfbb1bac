"""`fnn evaluate`: a trained network, measured on examples with known targets."""

from pathlib import Path

import click

from fnn import data
from fnn.cli import options, runs
from fnn.cli.metrics import Classified


@click.command()
@click.argument("run", type=options.FOLDER)
@click.argument("source", nargs=-1, required=True)
def evaluate(run: Path, source: tuple[str, ...]) -> None:
    """Measure the network in folder RUN on SOURCE.

    If SOURCE is the data that it was trained on, only the held-out examples are used; if SOURCE
    has a test part, only that part.
    """
    trained = runs.load(run)
    task = data.TASKS[trained.outputs is not None]
    target = trained.settings.target if data.is_csv(source[0]) else None
    everything = data.load(source, target=target, task=task)
    examples = runs.held_out(trained, everything)
    which = "all" if examples is everything else "the held-out"
    click.echo(f"data      {' '.join(source)}: {which} {len(examples.x)} examples")
    metrics = runs.evaluate(trained, examples)
    for line in metrics.lines():
        click.echo(line)
    if isinstance(metrics, Classified):
        click.echo(metrics.table())
