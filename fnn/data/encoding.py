"""A table's columns as inputs of a network: decided by the training part, applied to any other."""

import itertools
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np

from fnn.data._features import KINDS, Feature, features_of as features_of, metadata_of
from fnn.data.dataset import CATEGORY, NAMED, NUMBER, TEXT, Column, Dataset, places
from fnn.data.errors import DataError
from fnn.data.scaling import Scaling

LARGEST = 1e150
"""The squares of numbers beyond this overflow."""
FAR = 10
"""Standard deviations: a number farther from the training part's mean is treated as if it were
exactly this far. Most such numbers are data-entry errors, and a network extrapolates linearly."""


class _Unseen(NamedTuple):
    """What n examples hold that training never saw: counts (3, d) has, for each of the d features
    that are used, the number of categories that are none of those learned, of blanks where there
    were none, and of numbers more than `FAR` standard deviations off.
    """

    features: tuple[Feature, ...]
    n: int
    counts: np.ndarray

    def lines(self) -> list[str]:
        """One line per column and kind that holds any."""
        lines = []
        for i, feature in enumerate(self.features):
            column = f"column {feature.name!r}" if feature.name else f"input column {i + 1}"
            filled = "" if feature.kind == CATEGORY else f", filled with {feature.fill:.4g}"
            (new, blank, far), n = self.counts[:, i].tolist(), self.n
            off = f"more than {FAR} standard deviations off, taken as {FAR}"
            said = {
                f"{new} of {n} values {'was' if new == 1 else 'were'} never seen in training": new,
                f"{blank} blank{'s' * (blank != 1)}, where training saw none{filled}": blank,
                f"{far} value{'s' * (far != 1)} {off}": far,
            }
            lines += [f"{column}: {words}" for words, count in said.items() if count]
        return lines


class Encoding(NamedTuple):
    """What turns the columns of a dataset into the inputs of a network.

    features has an entry for each column of the source, those left out too, and is () where the
    source was arrays: these are standardised alone, and plain has the names of their columns, if
    any. scaling has mean and scale (width,) of the inputs; of those that are 0 or 1, a mean of 0
    and a scale of 1.

    `of` fits it to the training part, `aligned` brings any part into its columns, and `apply`
    makes these the inputs.

    >>> data = Dataset("a", np.array([[1.0], [3.0]]), np.ones((2, 1)), ())
    >>> Encoding.of(data).apply(data.x)
    array([[-1.],
           [ 1.]], dtype=float32)
    """

    features: tuple[Feature, ...]
    scaling: Scaling
    plain: tuple[str, ...] = ()

    @classmethod
    def of(cls, train: Dataset, keep: Collection[str] = ()) -> "Encoding":
        """Fit to the training part. keep names columns that are not to be left out.

        A column is left out if it has no values, if it is a category of one value, if it looks
        like row numbers or like names or ids of rows, and if it is text of more than `MOST`
        values, and of more than half as many as there are rows.

        Raises DataError for a name in keep that no column has, for numbers beyond `LARGEST`, and
        where no column is left.

        >>> train = Dataset("a", np.array([[0.0], [1.0], [np.nan]]), np.ones((3, 1)), (),
        ...                 ("pet",), columns=(Column("category", ("cat", "dog")),))
        >>> Encoding.of(train).features[0].describe()
        'one-hot: 2 values and blank'
        """
        kept = places(train.name, train.features, keep)
        if not train.columns:
            return cls((), Scaling.of(train.x), train.features)
        features = tuple(_features(train, kept))
        if not any(f.width for f in features):  # rather what looks like row numbers than nothing
            features = tuple(_features(train, range(len(features))))
        if not any(f.width for f in features):
            whys = {f.left_out for f in features}
            raise DataError(f"{train.name}: no column can be used: {', '.join(sorted(whys))}")
        fitted = cls(features, Scaling(np.empty(0), np.empty(0)))
        plain = Scaling.of(fitted.inputs(fitted.aligned(train).x))
        # The first input of a number is neither 0 or 1, nor a wave, nor of a text.
        number = [i == 0 and f.kind not in NAMED for f in fitted.used for i in range(f.width)]
        mean, scale = np.where(number, plain.mean, 0.0), np.where(number, plain.scale, 1.0)
        return cls(fitted.features, Scaling(mean, scale))

    @property
    def used(self) -> tuple[Feature, ...]:
        """The features that are not left out.

        >>> Encoding((Feature("a"), Feature("b", "no values")), None).used[0].name
        'a'
        """
        return tuple(feature for feature in self.features if not feature.left_out)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns that are used, "" or () without a header.

        >>> Encoding((Feature("a"), Feature("b", "no values")), None).names
        ('a',)
        """
        return tuple(feature.name for feature in self.used) or self.plain

    @property
    def width(self) -> int:
        """The number of inputs of the network.

        >>> Encoding((), Scaling(np.zeros(3), np.ones(3))).width
        3
        """
        return len(self.scaling.mean)

    @property
    def d_in(self) -> int:
        """The number of columns that `apply` takes.

        >>> Encoding((), Scaling(np.zeros(3), np.ones(3))).d_in
        3
        """
        return self.columns[-1].stop

    @property
    def columns(self) -> tuple[slice, ...]:
        """Where each feature is among the columns that `apply` takes: text has several.

        >>> Encoding((Feature("a"), Feature("b")), None).columns
        (slice(0, 1, None), slice(1, 2, None))
        """
        counts = [f.rest if f.kind == TEXT else 1 for f in self.used] or [1] * self.width
        ends = zip(itertools.accumulate(counts), counts, strict=True)
        return tuple(slice(end - count, end) for end, count in ends)

    def aligned(self, part: Dataset) -> Dataset:
        """The same examples with the columns that are used, in this order and with these values.

        Columns are found by their names, or by their places where there are none. A category's
        cells become indices into this encoding's values, -1 for a value that is none of them.

        Raises DataError for a column that is missing or of another kind.

        >>> encoding = Encoding((Feature("age"),), None)
        >>> x, columns = np.array([[5.0, 0.0], [6.0, 1.0]]), (Column("number"),) * 2
        >>> part = Dataset("a", x, np.ones((2, 1)), (), ("size", "age"), columns=columns)
        >>> encoding.aligned(part).x
        array([[0.],
               [1.]])
        """
        at = self._places(part)
        if not self.features:
            named = part.features and self.names
            return part._replace(x=part.x[:, at], features=self.names) if named else part
        columns = part.columns or (Column(NUMBER),) * part.x.shape[1]
        x = np.empty((len(part.x), self.d_in))
        for feature, place, column in zip(self.used, at, self.columns, strict=True):
            x[:, column] = feature.recoded(part.name, columns[place], part.x[:, [place]])
        kept = tuple(feature.column for feature in self.used)
        return part._replace(x=x, features=self.names if part.features else (), columns=kept)

    def _places(self, part: Dataset) -> list[int]:
        """The columns of the part that are used; of arrays without names, all, as no places."""
        if part.features and any(self.names):
            return places(part.name, part.features, self.names)
        expected, got = len(self.features) or self.width, part.x.shape[1]
        if expected != got:
            raise DataError(f"{part.name}: expected {expected} features, got {got}")
        return [i for i, feature in enumerate(self.features) if not feature.left_out]

    def apply(self, x: np.ndarray, first: int = 0) -> np.ndarray:
        """The columns x (n, d_in) of an aligned part as inputs (n, width) float32. A table's inputs
        are between -`FAR` and `FAR`.

        Raises DataError as `Scaling.apply` does; `first` is the number of x's first example.

        >>> feature = Feature("a", fill=3.0)
        >>> encoding = Encoding((feature,), Scaling(np.ones(1), np.ones(1)))
        >>> encoding.apply(np.array([[np.nan]]))
        array([[2.]], dtype=float32)
        """
        inputs = self.inputs(x)
        low, high = self._limits()
        if self.features and ((inputs < low) | (inputs > high)).any():  # most need no copy
            inputs = np.clip(inputs, low, high)
        return self.scaling.apply(inputs, first)

    def unseen(self, x: np.ndarray, counted: _Unseen | None = None) -> _Unseen:
        """What the columns x of an aligned part hold that training never saw, added to what is
        counted already: categories that are none of those learned, blanks where there were none,
        and numbers more than `FAR` standard deviations off. Its `lines()` say so, one per column.

        >>> encoding = Encoding((Feature("size"),), Scaling(np.zeros(1), np.ones(1)))
        >>> encoding.unseen(np.array([[0.5], [12.0]])).lines()
        ["column 'size': 1 value more than 10 standard deviations off, taken as 10"]
        """
        used = self.used
        x = x[:, [at.start for at in self.columns]] if used else np.empty((0, 0))
        kinds = [(f.kind == CATEGORY and not f.rest, not f.flag, f.kind != CATEGORY) for f in used]
        first = np.cumsum([0, *(f.width for f in used)])[:-1]
        low, high = (limit[first] for limit in self._limits())
        found = (x == -1).sum(0), np.isnan(x).sum(0), ((x < low) | (x > high)).sum(0)
        counts = np.where(np.array(kinds, bool).reshape(-1, 3).T, found, 0)
        n, before = (counted.n, counted.counts) if counted else (0, 0)
        return _Unseen(used, n + len(x), before + counts)

    def _limits(self) -> tuple[np.ndarray, np.ndarray]:
        """The inputs before standardisation that are `FAR` below and above the mean: (width,)."""
        mean, scale = self.scaling
        return mean - FAR * scale, mean + FAR * scale

    def left_out(self) -> list[str]:
        """Which columns are left out, and why: one line per reason.

        >>> Encoding((Feature("id", "row numbers"),), None).left_out()
        ["left out: 'id' (row numbers)"]
        """
        whys: dict[str, list[str]] = {feature.left_out: [] for feature in self.features}
        for i, feature in enumerate(self.features):
            whys[feature.left_out].append(repr(feature.name) if feature.name else f"column {i + 1}")
        whys.pop("", None)
        return [f"left out: {', '.join(names)} ({why})" for why, names in whys.items()]

    def as_metadata(self) -> list[dict[str, Any]]:
        """The features as JSON can express them; see `features_of`.

        >>> Encoding((Feature("a", fill=3.0),), None).as_metadata()
        [{'name': 'a', 'kind': 'number', 'fill': 3.0}]
        """
        return [metadata_of(feature) for feature in self.features]

    def inputs(self, x: Any, xp: Any = np) -> Any:
        """The inputs (n, width) before they are standardised, of columns x (n, d_in), in the array
        module xp: numpy, or jax.numpy inside a program.

        >>> encoding = Encoding((Feature("a", fill=3.0, flag=True),), None)
        >>> encoding.inputs(np.array([[5.0], [np.nan]]))
        array([[5., 0.],
               [3., 1.]])
        """
        if not self.features:
            return x
        used = self.used
        if all(f.width == 1 and f.kind != CATEGORY for f in used):
            fills = xp.asarray([f.fill for f in used], x.dtype)
            blank = xp.isnan(x)
            return x if xp is np and not blank.any() else xp.where(blank, fills, x)
        each = zip(used, self.columns, strict=True)
        parts = [part for f, at in each for part in f.inputs(x[:, at], xp)]
        return xp.concatenate([part.astype(x.dtype) for part in parts], -1)


def _features(train: Dataset, kept: Collection[int]) -> Iterator[Feature]:
    """How each column is used. Columns in `kept` are never left out."""
    names = train.features or ("",) * len(train.columns)
    for large in np.flatnonzero(((train.x > LARGEST) | (train.x < -LARGEST)).any(0)):
        where = f"column {names[large]!r}" if names[large] else f"column {large + 1}"
        raise DataError(f"{train.name}: {where}: numbers too large to standardise")
    for i, (name, column) in enumerate(zip(names, train.columns, strict=True)):
        kind, cells = KINDS[column.kind], train.x[:, i]
        if np.isnan(cells).all():
            yield kind(name, "no values", form=column.form, kind=column.kind)
        else:
            yield kind.fitted(name, column, cells, i, i in kept)
