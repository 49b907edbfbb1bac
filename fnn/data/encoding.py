"""A table's columns as inputs of a network: decided by the training part, applied to any other."""

import math
import re
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from fnn.data.columns import FORMS, MOMENTS, TIMES
from fnn.data.dataset import CATEGORY, DATE, KINDS, NUMBER, TIME, Column, Dataset
from fnn.data.errors import DataError, nearest
from fnn.data.scaling import Scaling

MOST = 50
"""At most this many values of a category get an input each; the rest share one."""
ROWS = 20
"""In fewer rows, that all values differ says nothing about a column."""
LARGEST = 1e150
"""The squares of numbers beyond this overflow."""
FAR = 10
"""Standard deviations: a number farther from the training part's mean is treated as if it were
exactly this far. Most such numbers are data-entry errors, and a network extrapolates linearly."""
YEAR, WEEK, HOURS = CYCLES = ("year", "week", "day")
KNOWN = {DATE: CYCLES, TIME: (HOURS,)}
"""The cycles of a kind of column."""
ID = re.compile(
    r"(?i:unnamed.*|__index.*|index|idx|id|uuid|guid|no|nr|row|row.?(names?|ids?|numbers?))"
    r"|(?i:.*[_ ]id)|.*[a-z]I[dD]"
)
"""The names of columns that number the rows."""


class Feature(NamedTuple):
    """How one column becomes inputs of the network.

    name is the column's, "" without a header; kind as in `Column`. left_out says why the column
    is not used, and is "" where it is. Else:

        a number    is one input, standardised. A blank becomes `fill`, the median; with `flag`
                    another input is 1 for a blank, 0 otherwise
        a date      is so too, and for each of `cycles` the sine and cosine of its place in the
        or a time   year, in the week, in the day
        a category  is one input per entry of `values`, 1 for that value, 0 otherwise; with `flag`
                    another for blanks, with `rest` another for all other values

    form is how text was read, as in `Column`: what comes later is read so too.

    >>> Feature("kind", "category", values=("cat", "dog"), flag=True).width
    3
    """

    name: str
    kind: str
    left_out: str = ""
    fill: float = 0.0
    flag: bool = False
    cycles: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    rest: bool = False
    form: str = ""

    @property
    def column(self) -> Column:
        """The column, as it was read.

        >>> Feature("age", "number").column
        Column(kind='number', values=(), form='')
        """
        return Column(self.kind, self.values, self.form)

    @property
    def width(self) -> int:
        """The number of inputs.

        >>> Feature("age", "number").width
        1
        """
        if self.left_out:
            return 0
        one = len(self.values) + self.rest if self.kind == CATEGORY else 1
        return one + self.flag + 2 * len(self.cycles)

    def describe(self) -> str:
        """What becomes of the column, in words.

        >>> Feature("kind", "category", values=("cat", "dog"), flag=True).describe()
        'one-hot: 2 values and blank'
        """
        if self.left_out:
            return f"left out: {self.left_out}"
        if self.kind == CATEGORY:
            shown = f"one-hot: {len(self.values)} value{'s' * (len(self.values) != 1)}"
            more = ["the rest"] * self.rest + ["blank"] * self.flag
            return " and ".join([shown, *more]) if len(more) < 2 else f"{shown}, the rest and blank"
        days = {DATE: ", in days", TIME: ", in days"}.get(self.kind, "")
        places = " and ".join(", ".join(self.cycles).rsplit(", ", 1))
        cycles = f", place in the {places}" if self.cycles else ""
        flag = f", blanks as the median {self.fill:.4g} and a flag" if self.flag else ""
        return f"standardised{days}{cycles}{flag}"

    def inputs(self, cells: np.ndarray) -> np.ndarray:
        """The column's cells (n,), a category's as indices into `values`, as (n, width) float64.

        >>> Feature("age", "number", fill=3.0, flag=True).inputs(np.array([5, np.nan]))
        array([[5., 0.],
               [3., 1.]])
        """
        blank = np.isnan(cells)
        if self.kind == CATEGORY:
            every = [cells == i for i in range(len(self.values))] + [cells == -1] * self.rest
            return np.column_stack([*every, *[blank] * self.flag]).astype(np.float64)
        filled = np.where(blank, self.fill, cells)
        turns = [2 * np.pi * _place(filled, cycle) for cycle in self.cycles]
        waves = [wave(turn) for turn in turns for wave in (np.sin, np.cos)]
        return np.column_stack([filled, *waves, *[blank] * self.flag])


class Unseen(NamedTuple):
    """What n examples hold that training never saw, for each of the features that are used: the
    number of categories that are none of those learned, of blanks where there were none, and of
    numbers more than `FAR` standard deviations off.

    >>> pet = Feature("pet", "category", values=("dog",))
    >>> Unseen((pet,), 2, np.array([1]), np.array([0]), np.array([0])).lines()
    ["column 'pet': 1 of 2 values was never seen in training"]
    """

    features: tuple[Feature, ...]
    n: int
    new: np.ndarray
    blank: np.ndarray
    far: np.ndarray

    def lines(self) -> list[str]:
        """One line per column that holds any.

        >>> Unseen((), 2, *[np.empty(0)] * 3).lines()
        []
        """
        lines = []
        for i, (feature, new, blank, far) in enumerate(
            zip(self.features, self.new, self.blank, self.far, strict=True)
        ):
            column = f"column {feature.name!r}" if feature.name else f"input column {i + 1}"
            if new:
                was = "was" if new == 1 else "were"
                lines.append(f"{column}: {new} of {self.n} values {was} never seen in training")
            if blank:
                filled = "" if feature.kind == CATEGORY else f", filled with {feature.fill:.4g}"
                blanks = "blank" if blank == 1 else "blanks"
                lines.append(f"{column}: {blank} {blanks}, where training saw none{filled}")
            if far:
                values = "value" if far == 1 else "values"
                lines.append(
                    f"{column}: {far} {values} more than {FAR} standard deviations off, taken as "
                    f"{FAR}"
                )
        return lines


class Encoding(NamedTuple):
    """What turns the columns of a dataset into the inputs of a network.

    features has an entry for each column of the source, those left out too, and is () where the
    source was arrays: these are standardised alone. scaling has mean and scale (width,) of the
    inputs; of those that are 0 or 1, a mean of 0 and a scale of 1.

    `of` fits it to the training part, `aligned` brings any part into its columns, and `apply`
    makes these the inputs.

    >>> data = Dataset("a", np.array([[1.0], [3.0]]), np.ones((2, 1)), ())
    >>> Encoding.of(data).apply(data.x)
    array([[-1.],
           [ 1.]], dtype=float32)
    """

    features: tuple[Feature, ...]
    scaling: Scaling

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
        for name in keep:
            if name not in train.features:
                hint = nearest(name, train.features)
                raise DataError(f"{train.name}: no column is called {name!r}; {hint}")
        if not train.columns:
            return cls((), Scaling.of(train.x))
        kept = {train.features.index(name) for name in keep}
        features = _features(train, kept)
        if not any(f.width for f in features):  # rather what looks like row numbers than nothing
            features = _features(train, range(len(features)))
        if not any(f.width for f in features):
            whys = {f.left_out for f in features}
            raise DataError(f"{train.name}: no column can be used: {', '.join(sorted(whys))}")
        fitted = cls(tuple(features), Scaling(np.empty(0), np.empty(0)))
        plain = Scaling.of(fitted._inputs(fitted.aligned(train).x))
        binary = fitted._binary()
        mean, scale = np.where(binary, 0.0, plain.mean), np.where(binary, 1.0, plain.scale)
        return cls(fitted.features, Scaling(mean, scale))

    @property
    def used(self) -> tuple[Feature, ...]:
        """The features that are not left out.

        >>> Encoding((Feature("a", "number"), Feature("b", "number", "no values")), None).used[0][0]
        'a'
        """
        return tuple(feature for feature in self.features if not feature.left_out)

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
        return len(self.used) or self.width

    def aligned(self, part: Dataset) -> Dataset:
        """The same examples with the columns that are used, in this order and with these values.

        Columns are found by their names, or by their places where there are none. A category's
        cells become indices into this encoding's values, -1 for a value that is none of them.

        Raises DataError for a column that is missing or of another kind.

        >>> encoding = Encoding((Feature("pet", "category", values=("dog", "cat")),), None)
        >>> columns = Column("number"), Column("category", ("cat", "cow"))
        >>> x, y = np.array([[5.0, 0.0], [6.0, 1.0]]), np.ones((2, 1))
        >>> part = Dataset("a", x, y, (), ("age", "pet"), columns=columns)
        >>> encoding.aligned(part).x
        array([[ 1.],
               [-1.]])
        """
        if not self.features:
            return part
        names = tuple(feature.name for feature in self.used)
        places = self._places(part)
        columns = part.columns or (Column(NUMBER),) * part.x.shape[1]
        x = part.x[:, places]
        for i, (feature, place) in enumerate(zip(self.used, places, strict=True)):
            if (feature.kind, columns[place].kind) != (NUMBER, NUMBER):
                x[:, i] = _recoded(part, feature, columns[place], part.x[:, place])
        kept = tuple(feature.column for feature in self.used)
        return part._replace(x=x, features=names if part.features else (), columns=kept)

    def apply(self, x: np.ndarray, first: int = 0) -> np.ndarray:
        """The columns x (n, d_in) of an aligned part as inputs (n, width) float32. A table's inputs
        are between -`FAR` and `FAR`.

        Raises DataError as `Scaling.apply` does; `first` is the number of x's first example.

        >>> feature = Feature("a", "number", fill=3.0)
        >>> encoding = Encoding((feature,), Scaling(np.ones(1), np.ones(1)))
        >>> encoding.apply(np.array([[np.nan]]))
        array([[2.]], dtype=float32)
        """
        inputs = self._inputs(x)
        low, high = self._limits()
        if self.features and ((inputs < low) | (inputs > high)).any():  # most need no copy
            inputs = np.clip(inputs, low, high)
        return self.scaling.apply(inputs, first)

    def unseen(self, x: np.ndarray) -> list[str]:
        """What the columns x of an aligned part hold that training never saw, one line per column:
        categories that are none of those learned, blanks where there were none, and numbers more
        than `FAR` standard deviations off.

        >>> pet = Feature("pet", "category", values=("dog",))
        >>> encoding = Encoding((pet,), Scaling(np.zeros(1), np.ones(1)))
        >>> encoding.unseen(np.array([[0.0], [-1.0]]))
        ["column 'pet': 1 of 2 values was never seen in training"]
        """
        return self.count_unseen(x).lines()

    def count_unseen(self, x: np.ndarray, counted: Unseen | None = None) -> Unseen:
        """What `unseen` says of x, added to what is counted already.

        >>> pet = Feature("pet", "category", values=("dog",))
        >>> encoding = Encoding((pet,), Scaling(np.zeros(1), np.ones(1)))
        >>> encoding.count_unseen(np.array([[0.0], [-1.0]])).new
        array([1])
        """
        coded = np.array([f.kind == CATEGORY and not f.rest for f in self.used], bool)
        full = np.array([not f.flag for f in self.used], bool)
        new = np.where(coded, (x == -1).sum(0), 0) if self.used else np.empty(0, int)
        blank = np.where(full, np.isnan(x).sum(0), 0) if self.used else np.empty(0, int)
        far = self._far(x)
        if counted is None:
            return Unseen(self.used, len(x), new, blank, far)
        before = counted.new, counted.blank, counted.far
        sums = (a + b for a, b in zip(before, (new, blank, far), strict=True))
        return Unseen(self.used, counted.n + len(x), *sums)

    def _far(self, x: np.ndarray) -> np.ndarray:
        """How many numbers of x are more than `FAR` standard deviations off, for each column."""
        if not self.used:
            return np.empty(0, int)
        first = np.cumsum([0, *(f.width for f in self.used)])[:-1]
        low, high = (limit[first] for limit in self._limits())
        numbers = np.array([f.kind != CATEGORY for f in self.used], bool)
        return np.where(numbers, ((x < low) | (x > high)).sum(0), 0)

    def _limits(self) -> tuple[np.ndarray, np.ndarray]:
        """The inputs before standardisation that are `FAR` below and above the mean: (width,)."""
        mean, scale = self.scaling
        return mean - FAR * scale, mean + FAR * scale

    def left_out(self) -> list[str]:
        """Which columns are left out, and why: one line per reason.

        >>> Encoding((Feature("id", "number", "row numbers"),), None).left_out()
        ["left out: 'id' (row numbers)"]
        """
        whys: dict[str, list[str]] = {}
        for i, feature in enumerate(self.features):
            if feature.left_out:
                name = repr(feature.name) if feature.name else f"column {i + 1}"
                whys.setdefault(feature.left_out, []).append(name)
        return [f"left out: {', '.join(names)} ({why})" for why, names in whys.items()]

    def as_metadata(self) -> list[dict[str, Any]]:
        """The features as JSON can express them; see `features_of`.

        >>> Encoding((Feature("a", "number", fill=3.0),), None).as_metadata()
        [{'name': 'a', 'kind': 'number', 'fill': 3.0}]
        """
        defaults = Feature._field_defaults
        return [
            {k: v for k, v in f._asdict().items() if k not in defaults or v != defaults[k]}
            for f in self.features
        ]

    def _places(self, part: Dataset) -> list[int]:
        """The columns of the part that hold the features that are used."""
        if part.features and any(feature.name for feature in self.features):
            where = {name: i for i, name in enumerate(part.features)}
            for feature in self.used:
                if feature.name not in where:
                    hint = nearest(feature.name, part.features)
                    raise DataError(f"{part.name}: the feature {feature.name!r} is missing; {hint}")
            return [where[feature.name] for feature in self.used]
        if part.x.shape[1] != len(self.features):
            raise DataError(
                f"{part.name}: expected {len(self.features)} features, got {part.x.shape[1]}"
            )
        return [i for i, feature in enumerate(self.features) if not feature.left_out]

    def _inputs(self, x: np.ndarray) -> np.ndarray:
        """The inputs (n, width) float64 before they are standardised."""
        if not self.features:
            return x
        used = self.used
        widths = [feature.width for feature in used]
        ends = np.cumsum(widths)
        plain = [i for i, f in enumerate(used) if f.width == 1 and f.kind != CATEGORY]
        numbers = x if len(plain) == len(used) else x[:, plain]
        if (blank := np.isnan(numbers)).any():
            numbers = np.where(blank, [used[i].fill for i in plain], numbers)
        if len(plain) == len(used):
            return numbers
        found = np.empty((len(x), ends[-1]))
        found[:, ends[plain] - 1] = numbers
        for i in set(range(len(used))) - set(plain):
            found[:, ends[i] - widths[i] : ends[i]] = used[i].inputs(x[:, i])
        return found

    def _binary(self) -> np.ndarray:
        """Whether each input is 0 or 1, or a wave, and is not standardised."""
        return np.concatenate(
            [[f.kind == CATEGORY] + [True] * (f.width - 1) for f in self.used if f.width]
        ).astype(bool)


def features_of(metadata: list[dict[str, Any]]) -> tuple[Feature, ...]:
    """The features that `Encoding.as_metadata` described.

    Raises TypeError and ValueError for what it can't have written.

    >>> features_of([{"name": "a", "kind": "number", "fill": 3.0}])[0].fill
    3.0
    """
    every = []
    for entry in metadata:
        known = Feature("", NUMBER)._asdict() | entry
        if set(known) != set(Feature._fields) or not {"name", "kind"} <= set(entry):
            raise ValueError(f"a feature with {', '.join(sorted(entry))}")
        known["cycles"], known["values"] = tuple(known["cycles"]), tuple(known["values"])
        feature = Feature(*(known[field] for field in Feature._fields))
        texts = (feature.name, feature.left_out, feature.form, *feature.cycles, *feature.values)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a feature's text is of another type")
        if feature.kind not in KINDS or not set(feature.cycles) <= set(KNOWN.get(feature.kind, ())):
            raise ValueError(f"unknown kind {feature.kind!r} or cycles of {feature.name!r}")
        if feature.kind in (DATE, TIME) and not abs(feature.fill) < 2**31:
            raise ValueError(f"the median of {feature.name!r} is no date")
        if feature.form not in (*FORMS, *MOMENTS, *TIMES):
            raise ValueError(f"{feature.name!r} is written {feature.form!r}")
        if not math.isfinite(feature.fill):
            raise ValueError(f"the median of {feature.name!r} is not finite")
        every.append(feature._replace(flag=bool(feature.flag), rest=bool(feature.rest)))
    return tuple(every)


def _features(train: Dataset, kept: Collection[int]) -> list[Feature]:
    """How each column is used; those of the indices kept are left out for their look by none."""
    names = train.features or ("",) * len(train.columns)
    for large in np.flatnonzero(((train.x > LARGEST) | (train.x < -LARGEST)).any(0)):
        where = f"column {names[large]!r}" if names[large] else f"column {large + 1}"
        raise DataError(f"{train.name}: {where}: numbers too large to standardise")
    there = ~np.isnan(train.x)
    full = there.all(0)
    numbers = np.array([column.kind != CATEGORY for column in train.columns])
    medians = np.zeros(len(names))
    # A copy by columns: along the rows the median takes ten times as long.
    by_column = train.x[:, numbers & full].T.copy()
    medians[numbers & full] = np.median(by_column, axis=1, overwrite_input=True)
    features = []
    for i, (name, column) in enumerate(zip(names, train.columns, strict=True)):
        cells = train.x[:, i] if full[i] else train.x[there[:, i], i]
        if numbers[i] and not full[i] and len(cells):
            medians[i] = np.median(cells)
        features.append(_feature(name, column, cells, len(train.x), i, medians[i], i in kept))
    return features


def _feature(
    name: str, column: Column, cells: np.ndarray, n: int, at: int, median: float, kept: bool
) -> Feature:
    """How a column is used, from its n cells in the training part, of which `cells` not blank."""
    feature = Feature(name, column.kind, flag=len(cells) < n, form=column.form)
    if not len(cells):
        return feature._replace(left_out="no values", flag=False)
    if column.kind != CATEGORY:
        if not kept and column.kind == NUMBER and _counts_rows(name, cells, n, at):
            return feature._replace(left_out="row numbers", flag=False)
        cycles = _cycles(column.kind, cells)
        return feature._replace(fill=float(median), cycles=cycles)
    codes, counts = np.unique(cells.astype(int), return_counts=True)
    values = [column.values[code] for code in codes]
    if len(values) == 1 and not feature.flag:
        return feature._replace(left_out=f"always {values[0]!r}")
    if not kept and n >= ROWS and len(values) == len(cells):
        return feature._replace(left_out="a name or id per row", flag=False)
    if len(values) <= MOST:
        return feature._replace(values=tuple(values))
    if not kept and len(values) > len(cells) / 2:
        why = f"{len(values)} different texts in {len(cells)} rows"
        return feature._replace(left_out=why, flag=False)
    most = np.sort(np.argsort(-counts, kind="stable")[:MOST])
    return feature._replace(values=tuple(values[i] for i in most), rest=True)


def _counts_rows(name: str, cells: np.ndarray, n: int, at: int) -> bool:
    """Whether the numbers look like row numbers, or like ids of rows: whole, all different, and
    in the first column close together from 0 or 1, or called as ids are."""
    if n < ROWS or len(cells) < n or (cells[:ROWS] % 1).any():  # what most columns end with
        return False
    if (cells % 1).any() or len(np.unique(cells)) < n:
        return False
    close = at == 0 and cells.min() >= 0 and cells.max() <= 2 * n
    return close or (ID.fullmatch(name) is not None)


def _cycles(kind: str, cells: np.ndarray) -> tuple[str, ...]:
    """The cycles in which the dates, or the times of day, take more than one place."""
    return tuple(cycle for cycle in KNOWN.get(kind, ()) if np.ptp(_place(cells, cycle)) > 1e-9)


def _place(days: np.ndarray, cycle: str) -> np.ndarray:
    """The place in a cycle, from 0 to 1, of dates in days since 1970-01-01, a Thursday."""
    if cycle == HOURS:
        return days % 1
    if cycle == WEEK:
        return (np.floor(days) + 3) % 7 / 7
    dates = np.floor(days).astype("datetime64[D]")
    start = dates.astype("datetime64[Y]").astype("datetime64[D]")
    return (dates - start).astype(float) / 366


def _recoded(part: Dataset, feature: Feature, column: Column, cells: np.ndarray) -> np.ndarray:
    """The cells of a column as the feature has them."""
    if feature.kind == CATEGORY:
        values = column.values
        if column.kind != CATEGORY:  # numbers, where training saw categories
            blank = np.isnan(cells)
            distinct, codes = np.unique(cells, return_inverse=True)
            values = tuple(_written(number) for number in distinct.tolist())
            cells = np.where(blank, np.nan, codes)
        where = {value: i for i, value in enumerate(feature.values)}
        new = np.array([where.get(value, -1) for value in values] + [-1], float)
        there = ~np.isnan(cells)
        found = np.full(len(cells), np.nan)
        found[there] = new[cells[there].astype(int)]
        return found
    if column.kind != feature.kind and not np.isnan(cells).all():
        raise DataError(
            f"{part.name}: column {feature.name!r}: expected a {feature.kind}, got a {column.kind}"
        )
    return cells


def _written(number: float) -> str:
    return str(int(number)) if number == np.floor(number) and abs(number) < 1e15 else str(number)
