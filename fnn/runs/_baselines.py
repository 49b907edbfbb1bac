"""What a run is compared with: a linear model, and always the same prediction."""

from typing import NamedTuple

import numpy as np

from fnn.data import Dataset
from fnn.runs.metrics import Classified, Predicted
from fnn.runs.run import Run
from fnn.training.evaluation import CHUNK


class Baselines(NamedTuple):
    """The metrics of a linear model of the run's inputs, and of the training part's mean or shares
    of the classes."""

    linear: Classified | Predicted
    mean: Classified | Predicted

    @classmethod
    def of(cls, run: Run, train: Dataset, test: Dataset) -> "Baselines":
        """Ridge or logistic regression with a penalty of 1/2 ||W||^2, of at most `CHUNK` examples;
        the parts are aligned."""
        rows = np.random.default_rng(0).permutation(len(train.x))[:CHUNK]
        x, y = run.standardised(train._replace(x=train.x[rows], y=train.y[rows]))
        x, others = (np.column_stack([np.ones(len(a)), a]) for a in (x, run.inputs.apply(test.x)))
        if run.outputs is None:
            shares = np.bincount(train.y, minlength=len(run.classes)) / len(train.y)
            logits = others @ _logistic(x, y, len(run.classes))
            chances = np.exp(logits - logits.max(1, keepdims=True))
            chances /= chances.sum(1, keepdims=True)
            always = np.broadcast_to(shares, chances.shape)
            return cls(*(Classified.of(run.classes, test.y, p) for p in (chances, always)))
        penalty = np.eye(x.shape[1]) * (np.arange(x.shape[1]) > 0)
        weights = np.linalg.lstsq(x.T @ x + penalty, x.T @ y)[0]
        mean = run.outputs.mean
        found = run.outputs.undo(others @ weights), np.broadcast_to(mean, test.y.shape)
        return cls(*(Predicted.of(run.values, test.y, p, mean) for p in found))


def _logistic(x: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """The weights (d, k) of a logistic regression of x (n, d), whose first column is 1."""
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    target = np.eye(k)[labels]

    def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(-1, k)
        z = x @ w
        z -= z.max(1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        kept = np.vstack([np.zeros(k), w[1:]])
        gradient = x.T @ (np.exp(log_p) - target) + kept
        return float((kept**2).sum() / 2 - (log_p * target).sum()), gradient.ravel()

    start = np.zeros(x.shape[1] * k)
    found = minimize(cost, start, jac=True, method="L-BFGS-B", options={"maxiter": 100})
    return found.x.reshape(-1, k)
