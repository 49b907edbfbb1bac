"""What each column is worth to a trained network, by permutation."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fnn import numbers
from fnn.data import Dataset
from fnn.runs.evaluation import evaluate
from fnn.runs.text import aligned
from fnn.training.evaluation import CHUNK

if TYPE_CHECKING:
    from fnn.runs.run import Run

SIGNS = {"log loss": 1, "accuracy": -1, "RMSE": 1, "R2": -1, "mean R2": -1}
"""What importance is measured in, and whether less is better."""


class Importance(NamedTuple):
    """How much worse predictions are when one column's cells are shuffled among the examples.

    columns are the d names, the most important first; measures the m names of what is measured;
    mean and deviation (d, m) are over the shuffles. An accuracy that falls from 0.8 to 0.7 is
    worse by 0.1, and so is an RMSE that rises from 0.8 to 0.9.

    >>> found = Importance(("age",), ("RMSE",), np.array([[0.5]]), np.array([[0.25]]))
    >>> print(found.table())
    column             RMSE
    age     0.5000 ± 0.2500
    """

    columns: tuple[str, ...]
    measures: tuple[str, ...]
    mean: np.ndarray
    deviation: np.ndarray

    def table(self) -> str:
        """A row per column, for people; the largest mean has four digits."""
        places = [3 - np.floor(np.log10(most or 1)) for most in np.abs(self.mean).max(0)]
        digits = np.clip(places, 0, 9).astype(int)
        rows = [["column", *self.measures]]
        for name, means, deviations in zip(self.columns, self.mean, self.deviation, strict=True):
            cells = zip(means, deviations, digits, strict=True)
            rows.append([name, *(f"{m:.{d}f} ± {spread:.{d}f}" for m, spread, d in cells)])
        return aligned(rows, "<>")


def measured(run: "Run", examples: Dataset, repeats: int, seed: int) -> Importance:
    """The permutation importance of each column that the run uses, on aligned examples.

    For classes it is measured in log loss and in accuracy; for a value in RMSE and in R2; for
    several values in the mean of their R2. Of more than `CHUNK` examples, `CHUNK` are drawn.
    Breiman 2001, section 10; Fisher, Rudin & Dominici 2019.

    Raises DataError as `evaluate` does.
    """
    numbers.count("explain", repeats=repeats)
    rng = np.random.default_rng(numbers.count("explain", 0, seed=seed))
    if len(examples.x) > CHUNK:
        rows = rng.permutation(len(examples.x))[:CHUNK]
        examples = examples._replace(x=examples.x[rows], y=examples.y[rows])

    def cost(x: np.ndarray) -> dict[str, float]:
        """What a better prediction has less of."""
        found = evaluate(run, examples._replace(x=x))
        by_name = found.measures() | dict([found.chief])
        return {name: sign * by_name[name] for name, sign in SIGNS.items() if name in by_name}

    def shuffled(column: slice) -> np.ndarray:
        x = examples.x.copy()
        x[:, column] = rng.permutation(x[:, column])
        return x

    before = cost(examples.x)
    columns = run.inputs.columns
    costs = [[list(cost(shuffled(at)).values()) for _ in range(repeats)] for at in columns]
    worse = np.array(costs) - list(before.values())
    mean, deviation = worse.mean(1), worse.std(1)
    order = np.argsort(-mean[:, 0], kind="stable")
    names = tuple(run.names[i] for i in order)
    return Importance(names, tuple(before), mean[order], deviation[order])
