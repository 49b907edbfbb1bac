"""Data to learn from: out of files or scikit-learn's bundled sets, split and standardised."""

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn import datasets, model_selection, preprocessing

from fnn.data import readers
from fnn.data.readers import DataError as DataError

CLASSIFICATION = ("digits", "iris", "wine", "breast_cancer")
REGRESSION = ("diabetes",)
BUNDLED = CLASSIFICATION + REGRESSION
TASKS = ("classification", "regression")
FEW = 20
"""Up to so many different whole numbers in a CSV file's target column are taken as classes."""

Source = str | Path | Sequence[str | Path]


class Dataset(NamedTuple):
    """Examples to learn from.

    x (n, d_in), real numbers in the source's own units and dtype. y (n,) int32 labels from 0 to
    len(classes) - 1; or, where there are no classes, (n, k) values in their own units. All are
    finite. features and targets name the columns of x and y, or are (). Where the source has
    examples to test on, they are in `test`, which has no `test` of its own.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...]
    features: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    test: "Dataset | None" = None


class Scaling(NamedTuple):
    """z = (a - mean) / scale, feature by feature; mean and scale (d,) float64."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, a: np.ndarray) -> "Scaling":
        """The scaling that gives the features of a (n, d) mean 0 and variance 1.

        A feature that never changes is only centred. Raises DataError for numbers so large
        that their squares overflow.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            fitted = preprocessing.StandardScaler().fit(a.astype(np.float64))
        for (column,) in readers.not_finite(fitted.mean_ + fitted.var_):
            raise DataError(f"column {column + 1}: numbers too large to standardise")
        return cls(fitted.mean_, fitted.scale_)

    def apply(self, a: np.ndarray) -> np.ndarray:
        """(n, d) in its own units -> (n, d) float32, standardised.

        Raises DataError for a number so far from the others that float32 can't hold it.
        """
        z = np.subtract(a, self.mean, dtype=np.float64)
        z /= self.scale
        with np.errstate(over="ignore"):
            z = z.astype(np.float32)
        for row, column in readers.not_finite(z):
            raise DataError(
                f"example {row + 1}, column {column + 1}: {a[row, column]} is too far off"
            )
        return z

    def undo(self, z: np.ndarray) -> np.ndarray:
        """(n, d) standardised -> (n, d) float64, in the features' own units."""
        return z * self.scale + self.mean


def load(source: Source, *, target: str | int | None = None, task: str | None = None) -> Dataset:
    """Read examples with what is to be learned of them. `source` is one of

        a name          of scikit-learn's bundled sets: one of `BUNDLED`
        a CSV file      with a header or none, gzipped or not; `target` is the target column's
                        name or its index from 0 (negative from the end), by default the last
        a `.npz` file   with arrays x and y
        two files       x.npy and y.npy
        a folder        of IDX files as MNIST's: train-images..., train-labels... and, to test
                        on, t10k-images..., t10k-labels..., gzipped or not

    x of more than two axes is flattened to (n, d_in). Text and integers become classes, which
    keep their names; other numbers are values to predict. In a CSV file whole numbers are
    classes if there are at most `FEW` different ones. `task`, "classification" or "regression",
    decides instead.

    Raises DataError for an unknown name and for any fault of a file, and says where it is;
    OSError for a file that can't be opened.
    """
    if task is not None and task not in TASKS:
        raise DataError(f"expected a task of {' or '.join(TASKS)}, got {task!r}")
    if isinstance(source, str | Path):
        return _load_one(source, target, task)
    if len(source) == 1:
        return _load_one(source[0], target, task)
    if len(source) != 2 or not all(str(path).endswith(".npy") for path in source):
        raise DataError(
            f"expected one source, or x.npy and y.npy, got {' '.join(map(str, source))}"
        )
    _refuse_target(target, source[0])
    x, y = (readers.read_npy(Path(path)) for path in source)
    return _dataset(f"{source[0]}, {source[1]}", x, y, task)


def inputs(source: str | Path, d_in: int, features: tuple[str, ...] = ()) -> np.ndarray:
    """Read examples without their targets: x (n, d_in).

    As `load`, but y and y.npy are not read, nor labels. Where the CSV file has a header and
    `features` are known, those columns are taken, whatever their order and whatever others
    there are; otherwise there must be d_in columns.
    """
    path = Path(source)
    if str(source) in BUNDLED:
        x = load(source).x
    elif not path.exists():
        raise _unknown(source)
    elif path.is_dir():
        x = readers.read_idx(_idx_file(path, "t10k", "images") or _train_file(path, "images"))
    elif path.suffix == ".npy":
        x = readers.read_npy(path)
    elif path.suffix == ".npz":
        (x,) = readers.read_npz(path, "x")
    elif "ubyte" in path.name:
        x = readers.read_idx(path)
    else:
        x = readers.read_csv(path, _named_columns(path, d_in, features)).numbers
    x = _features(str(source), x)
    if x.shape[1] != d_in:
        raise DataError(f"{source}: expected {d_in} features, got {x.shape[1]}")
    return x


def split(data: Dataset, test_fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Examples to train on and examples held out: the source's own, or drawn by the seed.

    Classes keep their shares in both parts, as nearly as whole examples can. Raises ValueError
    for a fraction outside (0, 1), and DataError for too few examples or classes.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"split: expected a test fraction between 0 and 1, got {test_fraction}")
    if len(data.classes) == 1:
        raise DataError(f"{data.name}: all examples are of one class, {data.classes[0]!r}")
    if data.test is not None:
        return data._replace(test=None), data.test
    n, k = len(data.x), len(data.classes)
    for label, count in enumerate(np.bincount(data.y, minlength=k) if k else []):
        if count < 2:
            raise DataError(
                f"{data.name}: class {data.classes[label]!r} has {count} example: "
                "2 are needed, to train on and to hold out"
            )
    if n < 2:
        raise DataError(f"{data.name}: {n} example: 2 are needed, to train on and to hold out")
    held_out = min(max(math.ceil(test_fraction * n), k), n - max(k, 1))
    train, test = model_selection.train_test_split(
        np.arange(n), test_size=held_out, random_state=seed, stratify=data.y if k else None
    )
    parts = (data._replace(x=data.x[rows], y=data.y[rows]) for rows in (train, test))
    return next(parts), next(parts)


def is_csv(source: str | Path) -> bool:
    """Whether `load` reads this source as a CSV file: what is nothing else."""
    path = Path(source)
    return not (str(source) in BUNDLED or path.suffix in (".npy", ".npz") or path.is_dir())


def _load_one(source: str | Path, target: str | int | None, task: str | None) -> Dataset:
    path = Path(source)
    if not is_csv(source):
        _refuse_target(target, source)
    if str(source) in BUNDLED:
        bundled = _bundled(str(source))
        if task not in (None, TASKS[not bundled.classes]):
            raise DataError(f"{source}: its task is {TASKS[not bundled.classes]}, not {task}")
        return bundled
    if not path.exists():
        raise _unknown(source)
    if path.is_dir():
        return _idx_folder(path, task)
    if path.suffix == ".npy":
        raise DataError(f"{path}: the targets are missing: give two files, x.npy and y.npy")
    if path.suffix == ".npz":
        x, y = readers.read_npz(path, "x", "y")
        return _dataset(str(path), x, y, task)
    return _csv(path, target, task)


def _unknown(source: str | Path) -> DataError:
    hint = nearest(str(source), BUNDLED)
    return DataError(f"{source}: no such file, and no bundled set of that name; {hint}")


def _refuse_target(target: str | int | None, source: str | Path) -> None:
    if target is not None:
        raise DataError(f"{source}: a target column can be chosen of a CSV file only")


def _bundled(name: str) -> Dataset:
    bunch = getattr(datasets, f"load_{name}")()
    x = np.asarray(bunch.data, np.float32)
    features = tuple(str(feature) for feature in bunch.feature_names)
    if name in REGRESSION:
        return Dataset(name, x, np.asarray(bunch.target, np.float32)[:, None], (), features)
    classes = tuple(str(label) for label in bunch.target_names)
    return Dataset(name, x, np.asarray(bunch.target, np.int32), classes, features)


def _csv(path: Path, target: str | int | None, task: str | None) -> Dataset:
    at = -1

    def choose(names: tuple[str, ...], width: int) -> tuple[list[int], int]:
        nonlocal at
        if width < 2:
            raise DataError(f"{path}: expected at least one feature and the target, got one column")
        at = _column(path, target, names, width)
        return [i for i in range(width) if i != at], at

    names, x, texts, lines = readers.read_csv(path, choose)
    numbers = [_number(text) for text in texts]
    where = f"column {at + 1}" + (f" {names[at]!r}" if names else "")
    texts_found = [i for i, number in enumerate(numbers) if number is None]
    if texts_found and (task == "regression" or (task is None and len(texts_found) < len(texts))):
        raise DataError(
            f"{path}: line {lines[texts_found[0]]}, {where}: {texts[texts_found[0]]!r} is not a "
            "number; if these are classes, say that the task is classification"
        )
    whole = not texts_found and all(
        text.lstrip("+-").isdecimal() and len(text) < 18 for text in texts
    )
    if task is None:
        few = texts_found or (whole and len(set(numbers)) <= FEW)
        task = "classification" if few else "regression"
    y = np.array(numbers if not texts_found and (whole or task == "regression") else texts)
    for index in readers.not_finite(y):
        raise DataError(f"{path}: line {lines[index[0]]}, {where}: expected a finite number")
    if whole and task == "classification":
        y = np.array([int(text) for text in texts])
    features = tuple(name for i, name in enumerate(names) if i != at)
    return _dataset(str(path), x, y, task)._replace(
        features=features, targets=(names[at],) if names else ()
    )


def _number(text: str) -> float | None:
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None


def _column(path: Path, target: str | int | None, names: tuple[str, ...], width: int) -> int:
    """The index of the target column, given by its name, or its index, or the last."""
    if target in names:
        return names.index(str(target))
    try:
        at = -1 if target is None else int(target)
    except ValueError:
        hint = nearest(str(target), names) if names else "it has no header"
        raise DataError(f"{path}: no column is called {target!r}; {hint}") from None
    if not -width <= at < width:
        raise DataError(f"{path}: expected a target column from 0 to {width - 1}, got {at}")
    return at % width


def _named_columns(path: Path, d_in: int, features: tuple[str, ...]) -> readers.Choice:
    def choose(names: tuple[str, ...], width: int) -> tuple[list[int], None]:
        if names and features:
            for feature in features:
                if feature not in names:
                    hint = nearest(feature, names)
                    raise DataError(f"{path}: the column {feature!r} is missing; {hint}")
            return [names.index(feature) for feature in features], None
        if width != d_in:
            raise DataError(f"{path}: expected {d_in} columns, the features, got {width}")
        return list(range(width)), None

    return choose


def _idx_folder(folder: Path, task: str | None) -> Dataset:
    images, labels = (readers.read_idx(_train_file(folder, kind)) for kind in ("images", "labels"))
    train = _dataset(str(folder), images, labels, task)
    test_images, test_labels = (_idx_file(folder, "t10k", kind) for kind in ("images", "labels"))
    if test_images is None and test_labels is None:
        return train
    if test_images is None or test_labels is None:
        raise DataError(f"{folder}: of the t10k images and labels, only one is there")
    name = f"{folder} (t10k)"
    test = _dataset(name, readers.read_idx(test_images), readers.read_idx(test_labels), task)
    if test.x.shape[1] != train.x.shape[1]:
        raise DataError(f"{name}: expected {train.x.shape[1]} features, got {test.x.shape[1]}")
    return train._replace(test=relabelled(test, train.classes))


def _train_file(folder: Path, kind: str) -> Path:
    path = _idx_file(folder, "train", kind)
    if path is None:
        raise DataError(f"{folder}: expected an IDX file train-{kind}..., there is none")
    return path


def _idx_file(folder: Path, part: str, kind: str) -> Path | None:
    found = sorted(folder.glob(f"*{part}*{kind}*"))
    plain = {path.name.removesuffix(".gz"): path for path in reversed(found)}
    if len(plain) > 1:
        raise DataError(f"{folder}: expected one file of {part} {kind}, got {', '.join(plain)}")
    return next(iter(plain.values()), None)


def relabelled(data: Dataset, classes: tuple[str, ...]) -> Dataset:
    """The same examples with their labels counted in `classes`.

    Raises DataError for an example of a class that is not among them, and where one has
    classes and the other values.
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
    """The same examples with their named features in this order, where both are named.

    Raises DataError for a feature that is missing.
    """
    if not features or not data.features or data.features == features:
        return data
    for name in features:
        if name not in data.features:
            hint = nearest(name, data.features)
            raise DataError(f"{data.name}: the feature {name!r} is missing; {hint}")
    columns = [data.features.index(name) for name in features]
    return data._replace(x=data.x[:, columns], features=features)


def nearest(name: str, known: Sequence[str]) -> str:
    """What to say of a name that is not known: the closest one, or the first twenty."""
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known[:20])}"


def _dataset(name: str, x: np.ndarray, y: np.ndarray, task: str | None) -> Dataset:
    x = _features(name, x)
    if y.dtype.kind not in "biufUS":
        raise DataError(f"{name}: expected y of numbers or text, got {y.dtype}")
    if y.ndim == 0 or y.ndim > 2:
        raise DataError(f"{name}: expected y of shape (n,) or (n, k), got {y.shape}")
    if len(x) != len(y):
        raise DataError(f"{name}: x has {len(x)} examples, but y has {len(y)}")
    for index in readers.not_finite(y):
        raise DataError(f"{name}: y{list(index)} is {y[index]}, expected a finite number")
    single = y.ndim == 1 or y.shape[1] == 1
    if task is None:
        task = "classification" if y.dtype.kind in "biuUS" and single else "regression"
    if task == "regression":
        if y.dtype.kind in "US":
            raise DataError(f"{name}: expected y of numbers, got text")
        return Dataset(name, x, y.reshape(len(y), -1), ())
    if not single:
        raise DataError(f"{name}: expected one label an example, y of shape (n,), got {y.shape}")
    values, labels = np.unique(y.reshape(-1), return_inverse=True)
    return Dataset(name, x, labels.astype(np.int32), tuple(map(_class_name, values)))


def _class_name(value: np.generic) -> str:
    plain = value.item()
    return plain.decode("utf-8", "replace") if isinstance(plain, bytes) else str(plain)


def _features(name: str, x: np.ndarray) -> np.ndarray:
    """x as (n, d_in), of finite real numbers."""
    if x.dtype.kind not in "biuf":
        raise DataError(f"{name}: expected x of real numbers, got {x.dtype}")
    if x.ndim < 2:
        raise DataError(f"{name}: expected x of shape (n, d_in), got {x.shape}")
    if x.size == 0:
        raise DataError(f"{name}: no examples: x has the shape {x.shape}")
    x = x.reshape(len(x), -1)
    for row, column in readers.not_finite(x):
        raise DataError(f"{name}: x[{row}, {column}] is {x[row, column]}, expected a finite number")
    return x
