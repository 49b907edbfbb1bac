"""scikit-learn's interface to the runs of `fnn.runs`: `Classifier` and `Regressor`.

    model = fnn.estimators.Classifier().fit(x, y)
    model.predict_proba(x)

x is an array of numbers, or a data frame with text, dates and blanks, which become inputs as those
of a table do. Both work wherever scikit-learn's own estimators do: in pipelines, cross-validation
and searches. This module imports scikit-learn.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from fnn import data, extras
from fnn.data import Dataset
from fnn.runs import training
from fnn.runs.settings import Settings

with extras.needs("data"):
    from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
    from sklearn.utils import check_random_state, compute_class_weight
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data


@dataclass(eq=False, repr=False)
class _Network(BaseEstimator):
    """A network that is trained on arrays or data frames; the arguments are the fields of
    `fnn.runs.Settings` that do not say how a file is read."""

    hidden: tuple[int, ...] | None = None
    activation: str = "relu"
    optimizer: str = "adamw"
    learning_rate: float = 0.002
    batch_size: int | None = None
    epochs: int = 40
    patience: int | None = None
    weight_decay: float | None = None
    members: int | None = None
    bins: int | None = None
    random_state: Any = 0

    def _trained(self, examples: Dataset, **more: Any) -> Self:
        """Train on examples whose targets are set, with more settings than the arguments."""
        given = self.get_params() | more
        random = given.pop("random_state")
        if not isinstance(random, int | np.integer):
            random = check_random_state(random).randint(2**31)
        hidden = None if self.hidden is None else tuple(self.hidden)
        settings = Settings(**(given | {"hidden": hidden, "seed": int(random)}))
        self.run_ = training.advance(*training.begin(examples, None, settings.checked()))
        self.n_iter_ = len(self.run_.progress.history)
        return self

    def _checked(self, x: Any, *, reset: bool) -> Any:
        """x as an array, or the data frame that it is; with reset, its number and names of columns
        are those that later ones must have."""
        is_frame = hasattr(x, "columns") and data.is_table(x)
        return validate_data(self, x, reset=reset, skip_check_array=is_frame)

    def _examples(self, x: Any, y: np.ndarray, classes: tuple[str, ...] = ()) -> Dataset:
        x = self._checked(x, reset=True)
        check_consistent_length(x, y)
        if isinstance(x, np.ndarray):
            return Dataset("X", x, y, classes)
        return data.unlabelled(x)._replace(y=y, classes=classes)

    def _predicted(self, x: Any) -> np.ndarray:
        check_is_fitted(self)
        return self.run_.predict(self._checked(x, reset=False)).astype(np.float64)


@dataclass(eq=False, repr=False)
class Classifier(ClassifierMixin, _Network):
    """Classes, learned with softmax cross-entropy. The arguments are those of `fnn.runs.Settings`;
    random_state, a number, a NumPy RandomState or None, decides what its seed does. class_weight is
    None, "balanced" or a dict of the weight of each class, 1 where it is not there.

    After `fit`, classes_ are the classes, run_ is the `fnn.runs.Run`, and n_iter_ the number of its
    epochs.

    >>> import numpy as np
    >>> x = np.repeat([[0.0], [1.0]], 20, 0)
    >>> model = Classifier(hidden=(8,), epochs=50).fit(x, np.repeat(["no", "yes"], 20))
    >>> model.predict([[0.0], [1.0]])
    array(['no', 'yes'], dtype='<U3')
    """

    class_weight: Any = None

    def fit(self, X: Any, y: Any) -> Self:
        """Train on X (n, d), an array or a data frame, and the classes y (n,).

        Raises ValueError for what scikit-learn's estimators refuse, and `fnn.data.DataError`, which
        is one, for columns that can't be used.

        >>> Classifier(epochs=1).fit([[0.0], [1.0]], [0, 1]).classes_
        array([0, 1])
        """
        y = validate_data(self, y=y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        names = tuple(f"{i}: {name}" for i, name in enumerate(self.classes_))
        weights = compute_class_weight(self.class_weight, classes=self.classes_, y=y).tolist()
        given = {"class_weight": None if self.class_weight is None else tuple(weights)}
        return self._trained(self._examples(X, labels.astype(np.int32), names), **given)

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, (n, k), in the order of classes_.

        >>> Classifier(epochs=1).fit([[0.0], [1.0]], [0, 1]).predict_proba([[0.5]]).shape
        (1, 2)
        """
        return self._predicted(X)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each example, (n,).

        >>> Classifier(epochs=1).fit([[0.0], [1.0]], [0, 1]).predict([[0.5]]).shape
        (1,)
        """
        chances = self._predicted(X)  # which checks that there are classes
        return self.classes_[chances.argmax(1)]


class Regressor(MultiOutputMixin, RegressorMixin, _Network):
    """Values, one or several, learned with the mean squared error. The arguments are as those of
    `Classifier`; after `fit`, so are run_ and n_iter_.

    >>> import numpy as np
    >>> x = np.linspace(0, 1, 50)[:, None]
    >>> y = 3 * x[:, 0]
    >>> Regressor(hidden=(16,), learning_rate=0.01).fit(x, y).score(x, y) > 0.9
    True
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Train on X (n, d), an array or a data frame, and the values y, (n,) or (n, k).

        Raises as `Classifier.fit`.

        >>> Regressor(epochs=1).fit([[0.0], [1.0]], [0.5, 1.0]).n_iter_
        1
        """
        y = np.asarray(validate_data(self, y=y, multi_output=True), np.float64)
        self._shape = y.shape[1:]
        return self._trained(self._examples(X, y.reshape(len(y), -1)))

    def predict(self, X: Any) -> np.ndarray:
        """The value of each example, (n,) or (n, k) as y was.

        >>> Regressor(epochs=1).fit([[0.0], [1.0]], [0.5, 1.0]).predict([[0.5]]).shape
        (1,)
        """
        return self._predicted(X).reshape(-1, *self._shape)
