"""Examples with their targets, as arrays of one fixed form."""

from typing import NamedTuple

import numpy as np

from fnn.data.errors import DataError, nearest, not_finite

TASKS = ("classification", "regression")
NUMBER, CATEGORY, DATE, TIME = KINDS = ("number", "category", "date", "time")


class Column(NamedTuple):
    """What a column of a table holds: the cells as float64, NaN for a blank.

    kind is one of `KINDS`: of a number the number; of a category the index into `values`, or -1
    for a value that is not in them; of a date the days since 1970-01-01, with the time of day as
    a fraction; of a time of day the fraction of a day. form is how text was read, such as
    "decimal commas" or "%d/%m/%Y", or "" where there was no choice.

    >>> Column("category", ("cat", "dog")).values[1]
    'dog'
    """

    kind: str
    values: tuple[str, ...] = ()
    form: str = ""


class Dataset(NamedTuple):
    """Examples to learn from.

    x (n, d_in) holds real numbers in the source's own units and dtype. y holds class labels,
    (n,) int32 from 0 to len(classes) - 1, or, where classes is (), values (n, k) in their own
    units. All are finite. features and targets name the columns of x and y, or are ().
    Where the source has a test part of its own, `test` holds it; otherwise `test` is None.

    Of a table, `columns` says what each column of x holds, and x may have blanks: NaN. Of arrays
    it is (). notes say what reading the source has guessed, and skipped holds the indices of the
    source's rows that are left out because they have no target.

    >>> data = Dataset("pets", np.ones((2, 3)), np.array([1, 0], np.int32), ("cat", "dog"))
    >>> [data.classes[label] for label in data.y]
    ['dog', 'cat']
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...]
    features: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    test: "Dataset | None" = None
    columns: tuple[Column, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: tuple[int, ...] = ()


def from_arrays(name: str, x: np.ndarray, y: np.ndarray, task: str | None = None) -> Dataset:
    """A Dataset of x (n, ...) and y (n,) or (n, k).

    With task None, text, integers and booleans in y become classes, and other numbers values
    to predict. Raises DataError where x and y are not finite real numbers of these shapes, y
    labels apart, or don't fit the task.

    >>> data = from_arrays("pets", np.ones((3, 2)), np.array(["dog", "cat", "dog"]))
    >>> data.classes, data.y
    (('cat', 'dog'), array([1, 0, 1], dtype=int32))
    >>> from_arrays("values", np.ones((2, 2)), np.array([0.5, 1.5])).y.shape
    (2, 1)
    """
    x = as_inputs(name, x)
    if y.dtype.kind not in "biufUS":
        raise DataError(f"{name}: expected y of numbers or text, got {y.dtype}")
    if y.ndim not in (1, 2) or y.shape[1:] == (0,):
        raise DataError(f"{name}: expected y of shape (n,) or (n, k), got {y.shape}")
    if len(x) != len(y):
        raise DataError(f"{name}: x has {len(x)} examples, but y has {len(y)}")
    for index in not_finite(y):
        raise DataError(f"{name}: y{list(index)} is {y[index]}, expected a finite number")
    single = y.ndim == 1 or y.shape[1] == 1
    if task is None:
        task = "classification" if y.dtype.kind in "biuUS" and single else "regression"
    if task == "regression":
        if y.dtype.kind in "US":
            raise DataError(f"{name}: expected y of numbers, got text")
        return Dataset(name, x, y.reshape(len(y), -1), ())
    if not single:
        raise DataError(f"{name}: expected one label per example, y of shape (n,), got {y.shape}")
    if y.dtype.kind == "S":
        y = _decoded(name, y)
    values, labels = np.unique(y.reshape(-1), return_inverse=True)
    classes = tuple(str(value.item()) for value in values)
    for label in classes:
        if any("\ud800" <= character <= "\udfff" for character in label):
            raise DataError(f"{name}: the label {label!r} in y is not text")
    return Dataset(name, x, labels.astype(np.int32), classes)


def as_inputs(name: str, x: np.ndarray) -> np.ndarray:
    """x (n, ...) flattened to (n, d_in).

    Raises DataError for what is empty, has no feature axis or holds other than finite real
    numbers.

    >>> as_inputs("images", np.zeros((5, 8, 8))).shape
    (5, 64)
    """
    if x.dtype.kind not in "biuf":
        raise DataError(f"{name}: expected x of real numbers, got {x.dtype}")
    if x.ndim < 2:
        raise DataError(f"{name}: expected x of shape (n, d_in), got {x.shape}")
    if x.size == 0:
        raise DataError(f"{name}: no examples: x has the shape {x.shape}")
    x = x.reshape(len(x), -1)
    for row, column in not_finite(x):
        raise DataError(f"{name}: x[{row}, {column}] is {x[row, column]}, expected a finite number")
    return x


def relabelled(data: Dataset, classes: tuple[str, ...]) -> Dataset:
    """The same examples, their labels as indices into `classes`.

    Raises DataError for an example of a class that is not in `classes`, and where only one of
    the two has classes.

    >>> data = from_arrays("pets", np.ones((2, 1)), np.array(["cat", "dog"]))
    >>> relabelled(data, ("bird", "dog", "cat")).y
    array([2, 1], dtype=int32)
    """
    if bool(classes) != bool(data.classes):
        kinds = [f"{len(c)} classes" if c else "values to predict" for c in (classes, data.classes)]
        raise DataError(f"{data.name}: expected {kinds[0]}, got {kinds[1]}")
    for name in data.classes:
        if name not in classes:
            hint = nearest(name, classes)
            raise DataError(f"{data.name}: {name!r} is none of the classes learned; {hint}")
    if not classes:
        return data
    places = np.array([classes.index(name) for name in data.classes], np.int32)
    return data._replace(y=places[data.y], classes=classes)


def reordered(data: Dataset, features: tuple[str, ...]) -> Dataset:
    """The same examples with their features in the order of these names.

    Where `features` or the data's own feature names are (), the data comes back unchanged.
    Raises DataError for a feature that is missing.

    >>> data = Dataset("sizes", np.array([[1.0, 2.0]]), np.ones((1, 1)), (), ("a", "b"))
    >>> reordered(data, ("b", "a")).x
    array([[2., 1.]])
    """
    if not features or not data.features or data.features == features:
        return data
    for name in features:
        if name not in data.features:
            hint = nearest(name, data.features)
            raise DataError(f"{data.name}: the feature {name!r} is missing; {hint}")
    columns = [data.features.index(name) for name in features]
    return data._replace(x=data.x[:, columns], features=features)


def _decoded(name: str, y: np.ndarray) -> np.ndarray:
    """Labels in bytes as text; two labels that differ stay different."""
    texts = []
    for index, label in np.ndenumerate(y):
        try:
            texts.append(label.decode())
        except UnicodeDecodeError as error:
            place = ", ".join(map(str, index))
            raise DataError(
                f"{name}: y[{place}] is {bytes(label)!r}, expected text in UTF-8"
            ) from error
    return np.array(texts).reshape(y.shape)
