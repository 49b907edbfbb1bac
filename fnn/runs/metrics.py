"""How good predictions are, by scikit-learn's metrics: of classes, and of values."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from fnn.runs.text import aligned

RARELY = 0.1
"""A class of whose examples fewer than this share are found is worth a warning."""
SHOWN = 20
"""The most classes that a table shows."""


class Classified(NamedTuple):
    """How well n examples of k classes were predicted.

    classes are the k names; confusion (k, k) counts the examples of each class (rows) that were
    predicted as each class (columns). precision and recall are per class, (k,): NaN for a class
    that was never predicted, or has no example. balanced_accuracy is the mean recall of the
    classes that have examples. roc_auc is NaN but for two classes that both have examples.

    >>> chances = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    >>> found = Classified.of(("cat", "dog"), np.array([0, 0, 1]), chances)
    >>> found.confusion.tolist(), found.recall.tolist(), found.roc_auc
    ([[1, 1], [0, 1]], [0.5, 1.0], 1.0)
    """

    classes: tuple[str, ...]
    confusion: np.ndarray
    accuracy: float
    balanced_accuracy: float
    precision: np.ndarray
    recall: np.ndarray
    log_loss: float
    roc_auc: float

    @classmethod
    def of(
        cls,
        classes: tuple[str, ...],
        labels: np.ndarray,
        probabilities: np.ndarray,
        threshold: float | None = None,
    ) -> Self:
        """Compare labels (n,), indices into classes, with predicted probabilities (n, k), of which
        `guessed` makes the predicted classes."""
        k, guesses = len(classes), guessed(probabilities, threshold)
        confusion = np.bincount(k * labels + guesses, minlength=k * k).reshape(k, k)
        right = np.diag(confusion)
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
            precision, recall = right / confusion.sum(0), right / confusion.sum(1)
        # In float64 the rounding of float32 keeps a row from adding up to one.
        chances = probabilities.astype(np.float64)
        chances /= chances.sum(-1, keepdims=True)
        likelihood = np.maximum(chances[np.arange(len(labels)), labels], np.finfo(np.float64).eps)
        accuracies = float(right.sum() / len(labels)), float(np.nanmean(recall))
        area = _area(*(chances[labels == i, 1] for i in range(2))) if k == 2 else math.nan
        costs = float(-np.log(likelihood).mean()), area
        return cls(classes, confusion, *accuracies, precision, recall, *costs)

    @property
    def chief(self) -> tuple[str, float]:
        """The measure that matters most, and its name."""
        return "log loss", self.log_loss

    def measures(self) -> dict[str, float]:
        """Each metric of all classes together, by name."""
        found = {"accuracy": self.accuracy, "balanced accuracy": self.balanced_accuracy}
        area = {"ROC AUC": self.roc_auc} if len(self.classes) == 2 else {}
        return found | {"log loss": self.log_loss} | area

    @property
    def examples(self) -> np.ndarray:
        """The number of examples of each class, (k,)."""
        return self.confusion.sum(1)

    @property
    def largest(self) -> float:
        """The share of the largest class: the accuracy of always predicting it."""
        return float(self.examples.max() / self.examples.sum())

    def numbers(self) -> dict[str, Any]:
        """The metrics for programs, as JSON has them: numbers are finite or None."""
        shares = (map(_finite, each) for each in (self.precision, self.recall))
        rows = zip(self.classes, self.examples.tolist(), *shares, strict=True)
        each = {name: {"examples": n, "precision": p, "recall": r} for name, n, p, r in rows}
        whole = {"examples": int(self.examples.sum()), "largest_class": self.largest}
        shared = {n.lower().replace(" ", "_"): _finite(x) for n, x in self.measures().items()}
        return whole | shared | {"classes": each, "confusion": self.confusion.tolist()}

    def lines(self) -> list[str]:
        """The metrics for people, one per line."""
        alone = {"accuracy": f" (the largest class alone: {self.largest:.4f})"}
        there = {name: x for name, x in self.measures().items() if not math.isnan(x)}
        return [f"{name} {number:.4f}{alone.get(name, '')}" for name, number in there.items()]

    def per_class(self) -> str:
        """A row per class: its examples, its precision and its recall. Of more than `SHOWN`
        classes, those with the lowest recall.
        """
        rows = [["class", "examples", "precision", "recall"]]
        many = len(self.classes) > SHOWN
        worst = np.argsort(self.recall, kind="stable")[:SHOWN]  # NaN comes last
        for i in worst if many else range(len(self.classes)):
            both = (self.precision[i], self.recall[i])
            cells = ["-" if math.isnan(share) else f"{share:.4f}" for share in both]
            rows.append([self.classes[i], str(self.examples[i]), *cells])
        last = f"\nthe {SHOWN} of {len(self.classes)} classes with the lowest recall"
        return aligned(rows, ">") + last * many

    def table(self) -> str:
        """The confusion matrix with its names."""
        counts = zip(self.classes, self.confusion, strict=True)
        rows = [["", *self.classes], *([name, *map(str, row)] for name, row in counts)]
        width = max(len(cell) for row in rows for cell in row)
        rows = [[cell.rjust(width) for cell in row] for row in rows]
        return f"true class in rows, predicted class in columns\n{aligned(rows, '>')}"

    def warning(self) -> str | None:
        """The classes that are hardly ever found, in one line; None where there is none."""
        right = np.diag(self.confusion)
        missed = [
            f"class {self.classes[i]!r}, {right[i]} of its {self.examples[i]} examples"
            for i in np.flatnonzero(right < RARELY * self.examples)
        ]
        more = [f"and {len(missed) - 3} more classes"] if len(missed) > 3 else []
        return f"hardly ever found: {'; '.join([*missed[:3], *more])}" if missed else None


def guessed(probabilities: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """The most probable class of each example, (n,); with a threshold, of two classes the second,
    the positive one, where its probability is at least this.

    >>> guessed(np.array([[0.6, 0.4]])), guessed(np.array([[0.6, 0.4]]), 0.3)
    (array([0]), array([1]))
    """
    return probabilities.argmax(-1) if threshold is None else 1 * (probabilities[:, 1] >= threshold)


class Predicted(NamedTuple):
    """How far predictions are from the true values, for each of k values, in its own units.

    names are the values' names. rmse (k,) is the root of the mean squared error, mae (k,) the
    mean absolute error; rmse_of_mean and mae_of_mean are those of always predicting the training
    part's mean. r2 = 1 - mean squared error / variance, NaN where the values do not vary. covered
    (k,) is the share of the values within the run's margins of the prediction, NaN without any.

    >>> y = np.array([[1.0], [3.0]])
    >>> Predicted.of(("price",), y, y + 1, np.array([4.0])).rmse
    array([1.])
    """

    names: tuple[str, ...]
    rmse: np.ndarray
    rmse_of_mean: np.ndarray
    mae: np.ndarray
    mae_of_mean: np.ndarray
    r2: np.ndarray
    covered: np.ndarray
    examples: int

    @classmethod
    def of(
        cls,
        names: tuple[str, ...],
        y: np.ndarray,
        prediction: np.ndarray,
        mean: np.ndarray,
        margins: Sequence[float] = (),
    ) -> "Predicted":
        """Compare the true values y (n, k) with a prediction (n, k) and with a mean (k,), and count
        those within the margins (k,) of the prediction."""
        within = np.abs(y - prediction) <= (np.array(margins) if margins else np.inf)
        covered = np.where(len(margins) > 0, within.mean(0), np.nan)
        # In units of its largest magnitude: the squares of values of any size are then finite.
        unit = np.abs([y.max(0), y.min(0), prediction.max(0), prediction.min(0), mean]).max(0)
        unit = np.where(unit > 0, unit, 1).astype(np.float64)
        y, prediction = y / unit, prediction / unit
        errors = [np.abs(y - prediction), np.abs(y - mean / unit)]
        rmse, rmse_of_mean = (unit * np.sqrt(np.square(error).mean(0)) for error in errors)
        mae, mae_of_mean = (unit * error.mean(0) for error in errors)
        variance = np.where(y.min(0) < y.max(0), y.var(0), np.nan)
        r2 = 1 - np.square(errors[0]).mean(0) / variance
        return cls(names, rmse, rmse_of_mean, mae, mae_of_mean, r2, covered, len(y))

    @property
    def chief(self) -> tuple[str, float]:
        """The measure that matters most, and its name: the RMSE, of several values the mean R2."""
        several = len(self.names) > 1
        return ("mean R2", float(self.r2.mean())) if several else ("RMSE", float(self.rmse[0]))

    def measures(self) -> dict[str, float]:
        """Each metric of each value, by name."""
        return self._named(RMSE=self.rmse, MAE=self.mae, R2=self.r2)

    def _named(self, **metrics: np.ndarray) -> dict[str, float]:
        """Numbers by the metric and, of several values, the value's name."""
        ends = [f" {name}" for name in self.names] if len(self.names) > 1 else [""]
        each = ((i, *metric) for i in range(len(ends)) for metric in metrics.items())
        return {metric + ends[i]: float(found[i]) for i, metric, found in each}

    def numbers(self) -> dict[str, Any]:
        """The metrics for programs, as JSON has them: numbers are finite or None. Of several
        values each metric has one number per name.
        """
        found = self._asdict()
        for metric in ("rmse", "rmse_of_mean", "mae", "mae_of_mean", "r2", "covered"):
            each = dict(zip(self.names, map(_finite, found[metric]), strict=True))
            found[metric] = each if len(each) > 1 else each.popitem()[1]
        del found["names"]
        return found

    def lines(self) -> list[str]:
        """The metrics for people, three lines per value, and one of its interval."""
        always = self._named(RMSE=self.rmse_of_mean, MAE=self.mae_of_mean)
        beside = "compared with {:.4g} for predicting the mean".format
        told = lambda n, x: f"{x:.4g}, {beside(always[n])}" if n in always else f"{x:.4f}"
        lines = [f"{name} {told(name, number)}" for name, number in self.measures().items()]
        shares = zip(self.names, self.covered, strict=True)
        known = (f"{name}: {share:.1%}" for name, share in shares if math.isfinite(share))
        return lines + [f"{share} of the values are within their 90% intervals" for share in known]


def _area(others: np.ndarray, positive: np.ndarray) -> float:
    """The area under the ROC curve: how often a positive example has the higher score than another,
    ties counting half; NaN where there are none of either. Mann & Whitney 1947."""
    below = (np.searchsorted(np.sort(others), positive, side) for side in ("left", "right"))
    pairs = len(others) * len(positive)
    return float(sum(map(np.sum, below)) / (2 * pairs)) if pairs else math.nan


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None
