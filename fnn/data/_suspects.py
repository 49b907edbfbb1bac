"""What a careful reader would ask about: columns that give the target away, and odd numbers."""

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from fnn.data.dataset import NAMED, NUMBER, Column

ROWS = 30
"""In fewer rows, one column may well fit the target."""


def suspects(
    called: Callable[[int], str], x: np.ndarray, columns: Sequence[Column], y: np.ndarray
) -> Iterable[str]:
    """One line per column of x (n, d) that decides the target alone, or has numbers such as -999
    where others have none."""
    some = slice(None, None, -(-len(y) // 2000))
    for i, (cells, column) in enumerate(zip(x.T, columns, strict=True)):
        name, there, names = called(i), ~np.isnan(cells), column.kind in NAMED
        enough = len(y) >= ROWS and there.all() and _tells(cells[some], names, y[some])
        if enough and _tells(cells, names, y):
            yield f"{name} alone gives the target away; --drop it if new examples lack it"
        if column.kind == NUMBER and (odd := _sentinel(cells[there])):
            yield f"{name}: {odd[1]} times {odd[0]:g}, far from the rest: no value, perhaps"


def _tells(cells: np.ndarray, names: bool, y: np.ndarray) -> bool:
    """Whether the cells (n,) decide the target: each of names one class, numbers by few cuts; or
    the value to predict, as a straight line."""
    if y.ndim == 2:
        spread = np.ptp(cells) > 0 and np.ptp(y) > 0 and not names
        return bool(spread and abs(np.corrcoef(cells, y[:, 0])[0, 1]) > 1 - 1e-9)
    order = np.lexsort((y, cells))
    new, turns = np.diff(cells[order]) != 0, np.diff(y[order]) != 0
    if (turns & ~new).any():  # a value of two classes
        return False
    most = len(y) // 10 if names else len(np.unique(y)) - 1
    return bool(0 < (new if names else turns).sum() <= most)


def _sentinel(cells: np.ndarray) -> tuple[float, int] | None:
    """A least or largest number of nines, several times and far from all others, and how often."""
    for value in (cells.min(), cells.max()) if len(cells) else ():
        rest = cells[cells != value]
        several = len(cells) > len(rest) + 1 > 3 and re.fullmatch("-?9{2,}", f"{value:.0f}")
        if several and np.abs(rest - value).min() > np.ptp(rest) > 0:
            return value, len(cells) - len(rest)
    return None
