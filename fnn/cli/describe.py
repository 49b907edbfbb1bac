"""`fnn describe`: how each column of a table would be used."""

from typing import Any

import click
import numpy as np

from fnn import data
from fnn.cli import options
from fnn.runs.evaluation import HELD_OUT
from fnn.runs.text import aligned


@click.command()
@click.argument("source")
@options.of_table
@click.option("--seed", type=options.SEED, default=0, help="As for train.")
def describe(source: str, **given: Any) -> None:
    """Show how each column of SOURCE would be used, without training.

    SOURCE and the options are as for train. Values and blanks are counted in all rows; what
    becomes of a column is decided by the part of them that train would learn from.
    """
    settings = options.settings_of(given)
    examples = data.without_singles(settings.load(source))
    train, _ = data.split(examples, HELD_OUT, settings.seed)
    features = data.Encoding.of(train, settings.keep).features
    click.echo(f"{examples.name}: {len(examples.x)} examples")
    for note in examples.notes:
        click.echo(note)
    rows = [("column", "kind", "values", "blanks", "use")]
    names = examples.features or tuple(f"column {i + 1}" for i in range(examples.x.shape[1]))
    for i, name in enumerate(names):
        there = examples.x[~np.isnan(examples.x[:, i]), i]
        kind = features[i].kind if features else "number"
        use = features[i].describe() if features else "standardised"
        blanks = len(examples.x) - len(there)
        rows.append((name, kind, str(len(np.unique(there))), str(blanks), use))
    for j, name in enumerate(examples.targets or ("target",) * examples.y[:1].size):
        y = examples.y.reshape(len(examples.y), -1)[:, j]
        kind = "classes" if examples.classes else "values"
        rows.append((name, kind, str(len(np.unique(y))), "0", "to predict"))
    click.echo(aligned(rows, "<<>><"))
