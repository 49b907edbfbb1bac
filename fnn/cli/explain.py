"""`fnn explain`: what each column is worth to a trained network."""

from pathlib import Path

import click

from fnn import atomic
from fnn.cli import options
from fnn.runs import _plots, evaluation, files, importance

PICTURE = "importance.png"


@click.command()
@click.argument("run", type=options.FOLDER)
@click.argument("source", nargs=-1, required=True)
@click.option("--repeats", type=options.COUNT, default=5, help="Shuffles per column.")
@click.option("--seed", type=options.SEED, default=0, help="Decides the shuffles.")
@click.option("--out", type=options.FILE, show_default=f"RUN/{PICTURE}", help="PNG file to draw.")
@options.device
def explain(run: Path, source: tuple[str, ...], repeats: int, seed: int, out: Path | None) -> None:
    """Measure what each column of SOURCE is worth to the network in folder RUN.

    A column's importance is how much worse predictions are when its cells are shuffled among the
    examples, the network as it is: for classes in log loss and accuracy, for values in R2 and
    RMSE. Where two columns say the same, each can replace the other, and neither seems to matter.
    The examples are those that `fnn evaluate` measures.
    """
    trained = files.load(run)
    picture = out or run / PICTURE
    files.check_apart(picture, *source, run / files.FILE)
    files.check_writable(picture.parent, trained)
    examples, which = evaluation.held_out(trained, trained.read(source))
    click.echo(f"data      {' '.join(source)}: {which}")
    click.echo("\n".join(evaluation.evaluate(trained, examples).lines()))
    found = importance.measured(trained, examples, repeats, seed)
    click.echo(f"worse by, when a column is shuffled (mean ± deviation of {repeats} shuffles):")
    click.echo(found.table())
    atomic.write(picture, _plots.image(_plots.importance, found, f"{' '.join(source)}: {which}"))
    click.echo(f"drawn     {picture}")
