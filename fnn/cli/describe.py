"""`fnn describe`: how each column of a table would be used."""

from typing import Any

import click
import numpy as np

from fnn import data
from fnn.cli import options
from fnn.runs.evaluation import HELD_OUT
from fnn.runs.text import aligned

BARS = " ▁▂▃▄▅▆▇█"


@click.command()
@click.argument("source")
@options.of_table
@click.option("--seed", type=options.SEED, default=0, help="As for train.")
def describe(source: str, **given: Any) -> None:
    """Show how each column of SOURCE would be used, without training.

    SOURCE and the options are as for train. Values and blanks are counted in all rows; least,
    middle and largest are those of numbers, dates and times, and the bars show how many cells are
    in each eighth of the range, or have each of the commonest values. What becomes of a column is
    decided by the rows that train would learn from.
    """
    settings = options.settings_of(given)
    examples = data.without_singles(settings.load(source))
    train, _ = data.split(examples, HELD_OUT, settings.seed)
    features = data.Encoding.of(train, settings.keep).features
    click.echo(f"{examples.name}: {len(examples.x)} examples")
    for note in examples.notes:
        click.echo(note)
    rows: list[tuple[str, ...]] = [
        ("column", "kind", "values", "blanks", "least", "middle", "largest", "cells", "use")
    ]
    names = examples.features or tuple(f"column {i + 1}" for i in range(examples.x.shape[1]))
    for i, name in enumerate(names):
        there = examples.x[~np.isnan(examples.x[:, i]), i]
        kind = features[i].kind if features else "number"
        use = features[i].describe() if features else "standardised"
        blanks = len(examples.x) - len(there)
        rows.append((name, kind, str(len(np.unique(there))), str(blanks), *_seen(there, kind), use))
    for j, name in enumerate(examples.targets or ("target",) * examples.y[:1].size):
        y = examples.y.reshape(len(examples.y), -1)[:, j]
        kind = "classes" if examples.classes else "values"
        rows.append((name, kind, str(len(np.unique(y))), "0", *_seen(y, kind), "to predict"))
    click.echo(aligned(rows, "<<>>>>><"))


def _seen(cells: np.ndarray, kind: str) -> tuple[str, ...]:
    """The least, the middle and the largest of cells without blanks, nothing of categories; and a
    picture: how many cells there are in each eighth of the range, or of the commonest values."""
    if not len(cells):
        return "", "", "", ""
    three, counts = ["", "", ""], np.sort(np.bincount(np.unique(cells, return_inverse=True)[1]))
    counts = counts[:-9:-1]
    if kind not in ("category", "classes"):
        counts = np.histogram(cells, 8)[0]
        some = np.sort(cells)[[0, (len(cells) - 1) // 2, -1]].tolist()
        three = [_shown(cell, kind) for cell in some]
    heights = np.ceil(counts / counts.max() * (len(BARS) - 1)).astype(int)
    return *three, "".join(BARS[height] for height in heights)


def _shown(cell: float, kind: str) -> str:
    """A number, a date or a time as people read it."""
    if kind == "time":
        return "{:02}:{:02}".format(*divmod(round(cell * 1440), 60))
    return str(np.datetime64(int(cell // 1), "D")) if kind == "date" else f"{cell:.4g}"
