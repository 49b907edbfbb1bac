"""What a run is compared with: a linear model, and always the same prediction."""

import warnings
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
        """scikit-learn's ridge or logistic regression, with its defaults, of at most `CHUNK`
        examples; the parts are aligned."""
        from sklearn.linear_model import LogisticRegression, Ridge

        rows = np.random.default_rng(0).permutation(len(train.x))[:CHUNK]
        x, y = run.standardised(train._replace(x=train.x[rows], y=train.y[rows]))
        others = run.inputs.apply(test.x)
        if run.outputs is None:
            shares = np.bincount(train.y, minlength=len(run.classes)) / len(train.y)
            always = np.broadcast_to(shares, (len(others), len(shares)))
            chances = always.copy()
            if len(np.unique(y)) > 1:
                with warnings.catch_warnings(action="ignore"):  # that it has not converged
                    model = LogisticRegression().fit(x.astype(np.float64), y)
                chances[:, model.classes_] = model.predict_proba(others)
            return cls(*(Classified.of(run.classes, test.y, p) for p in (chances, always)))
        mean, model = run.outputs.mean, Ridge().fit(x, y)
        guess = run.outputs.undo(model.predict(others).reshape(test.y.shape))
        found = guess, np.broadcast_to(mean, test.y.shape)
        return cls(*(Predicted.of(run.values, test.y, p, mean) for p in found))
