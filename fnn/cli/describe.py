"""`fnn describe`: how each column of a table would be used."""

from typing import Any

import click
import numpy as np

from fnn import data
from fnn.cli import options
from fnn.data.encoding import Feature
from fnn.runs.evaluation import HELD_OUT
from fnn.runs.text import aligned

BARS = " ▁▂▃▄▅▆▇█"
HEADINGS = ("column", *["kind", "values", "blanks", "least", "middle", "largest", "cells", "use"])


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
    names = examples.features or tuple(f"column {i + 1}" for i in range(examples.x.shape[1]))
    used = data.Encoding.of(train, settings.keep).features or map(Feature, names)
    for line in (f"{examples.name}: {len(examples.x)} examples", *examples.notes):
        click.echo(line)
    rows = [HEADINGS]
    for name, feature, cells in zip(names, used, examples.x.T, strict=True):
        rows.append((name, feature.kind, *_seen(cells, feature.kind), feature.describe()))
    kind, y = "classes" if examples.classes else "values", examples.y.reshape(len(examples.y), -1)
    for name, cells in zip(examples.targets or ("target",) * len(y.T), y.T, strict=True):
        rows.append((name, kind, *_seen(cells, kind), "to predict"))
    click.echo(aligned(rows, "<<>>>>><"))


def _seen(column: np.ndarray, kind: str) -> tuple[str, ...]:
    """How many values and blanks a column has; the least, the middle and the largest, nothing of
    categories; and a picture: how many cells there are in each eighth of the range, or of the
    commonest values."""
    cells = column[~np.isnan(column)]
    numbers = str(len(np.unique(cells))), str(len(column) - len(cells))
    if not len(cells):
        return *numbers, "", "", "", ""
    three, counts = ["", "", ""], np.sort(np.unique(cells, return_counts=True)[1])[:-9:-1]
    if kind not in ("category", "text", "classes"):
        counts = np.histogram(cells, 8)[0]
        some = np.sort(cells)[[0, (len(cells) - 1) // 2, -1]].tolist()
        three = [_shown(cell, kind) for cell in some]
    heights = np.ceil(counts / counts.max() * (len(BARS) - 1)).astype(int)
    return *numbers, *three, "".join(BARS[height] for height in heights)


def _shown(cell: float, kind: str) -> str:
    """A number, a date or a time as people read it."""
    if kind == "time":
        return "{:02}:{:02}".format(*divmod(round(cell * 1440), 60))
    return str(np.datetime64(int(cell // 1), "D")) if kind == "date" else f"{cell:.4g}"
