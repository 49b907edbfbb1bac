"""`fnn evaluate`: a trained network, measured on examples with known targets."""

import json
from pathlib import Path

import click

from fnn.cli import options
from fnn.runs import evaluation, files
from fnn.runs.metrics import SHOWN, Classified, Predicted


@click.command()
@click.argument("run", type=options.FOLDER)
@click.argument("source", nargs=-1, required=True)
@options.threshold
@options.as_json
@options.device
def evaluate(run: Path, source: tuple[str, ...], threshold: float | None, as_json: bool) -> None:
    """Measure the network in folder RUN on SOURCE.

    If SOURCE is the data that it was trained on, only the held-out examples are used; if SOURCE
    has a test part, only that part; of other data, the examples that are equal to none that it
    was trained on. The target of a CSV file with a header is found by its name.
    """
    trained = files.load(run)
    how = None if threshold is None else options.by_threshold(trained.classes, threshold)
    examples, which = evaluation.held_out(trained, trained.read(source))
    options.warn(*trained.inputs.unseen(examples.x).lines())
    found = evaluation.evaluate(trained, examples, threshold)
    if as_json:
        told = {"measured_on": which} | ({"threshold": threshold} if how else {}) | found.numbers()
        return click.echo(json.dumps(told, allow_nan=False))
    click.echo(f"data      {' '.join(source)}: {which}")
    if how:
        click.echo(f"threshold {how}")
    show(found)
    if isinstance(found, Classified) and len(found.classes) <= SHOWN:
        click.echo(found.table())


def show(found: Classified | Predicted, part: str = "") -> None:
    """Print the metrics, each line after the name of the part of the data; a warning goes to
    stderr."""
    for line in found.lines():
        click.echo(f"{part}{line}")
    if isinstance(found, Classified):
        click.echo(found.per_class())
        if warning := found.warning():
            options.warn(warning)
