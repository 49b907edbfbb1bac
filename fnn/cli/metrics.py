"""How good predictions are: of classes, and of values."""

from typing import NamedTuple

import numpy as np


class Classified(NamedTuple):
    """How often examples of each class (rows) were predicted as each class (columns).

    classes are the k names, confusion the counts (k, k).

    >>> found = Classified.of(("cat", "dog"), np.array([0, 1, 1]), np.array([0, 1, 0]))
    >>> found.confusion.tolist()
    [[1, 0], [1, 1]]
    """

    classes: tuple[str, ...]
    confusion: np.ndarray

    @classmethod
    def of(
        cls, classes: tuple[str, ...], labels: np.ndarray, predicted: np.ndarray
    ) -> "Classified":
        """Compare labels with predicted labels, both (n,) indices into classes.

        >>> Classified.of(("cat", "dog"), np.array([0, 0]), np.array([0, 1])).accuracy
        0.5
        """
        confusion = np.zeros((len(classes), len(classes)), int)
        np.add.at(confusion, (labels, predicted), 1)
        return cls(classes, confusion)

    @property
    def accuracy(self) -> float:
        """The share of examples whose class was predicted.

        >>> Classified(("cat", "dog"), np.array([[3, 0], [1, 0]])).accuracy
        0.75
        """
        return float(np.trace(self.confusion) / self.confusion.sum())

    def lines(self) -> list[str]:
        """The metrics for people, one per line.

        >>> Classified(("cat", "dog"), np.array([[3, 0], [1, 0]])).lines()
        ['accuracy 0.7500']
        """
        return [f"accuracy {self.accuracy:.4f}"]

    def table(self) -> str:
        """The confusion matrix with its names.

        >>> print(Classified(("cat", "dog"), np.array([[3, 0], [1, 0]])).table())
        true class in rows, predicted class in columns
             cat  dog
        cat    3    0
        dog    1    0
        """
        rows = [
            ["", *self.classes],
            *(
                [name, *map(str, row)]
                for name, row in zip(self.classes, self.confusion, strict=True)
            ),
        ]
        width = max(len(cell) for row in rows for cell in row)
        lines = ["  ".join(f"{cell:>{width}}" for cell in row) for row in rows]
        return "\n".join(["true class in rows, predicted class in columns", *lines])


class Predicted(NamedTuple):
    """How far predictions are from the true values, for each of k values, in its own units.

    names are the values' names. rmse (k,) is the root of the mean squared error; rmse_of_mean
    that of always predicting the training part's mean; r2 = 1 - mean squared error / variance,
    NaN where the values do not vary.

    >>> y = np.array([[1.0], [3.0]])
    >>> Predicted.of(("price",), y, y + 1, np.array([4.0])).rmse
    array([1.])
    """

    names: tuple[str, ...]
    rmse: np.ndarray
    rmse_of_mean: np.ndarray
    r2: np.ndarray

    @classmethod
    def of(
        cls, names: tuple[str, ...], y: np.ndarray, prediction: np.ndarray, mean: np.ndarray
    ) -> "Predicted":
        """Compare the true values y (n, k) with a prediction (n, k) and with a mean (k,).

        >>> y = np.array([[1.0], [3.0]])
        >>> Predicted.of(("price",), y, y, np.array([2.0])).r2
        array([1.])
        """
        y = y.astype(np.float64)
        square, of_mean, variance = (
            np.square(y - guess).mean(0) for guess in (prediction, mean, y.mean(0))
        )
        share = np.divide(square, variance, out=np.full_like(square, np.nan), where=variance > 0)
        return cls(names, np.sqrt(square), np.sqrt(of_mean), 1 - share)

    def lines(self) -> list[str]:
        """The metrics for people, two lines per value.

        >>> y = np.array([[1.0], [3.0]])
        >>> print("\\n".join(Predicted.of(("price",), y, y, np.array([2.0])).lines()))
        RMSE 0, compared with 1 for predicting the mean
        R2 1.0000
        """
        lines = []
        for i, name in enumerate(self.names):
            of = f" {name}" if len(self.names) > 1 else ""
            lines += [
                f"RMSE{of} {self.rmse[i]:.4g}, "
                f"compared with {self.rmse_of_mean[i]:.4g} for predicting the mean",
                f"R2{of} {self.r2[i]:.4f}",
            ]
        return lines
