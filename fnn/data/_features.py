"""Features by kind: how one column of a table becomes inputs of a network."""

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from fnn.data._forms import is_form
from fnn.data.dataset import CATEGORY, DATE, NAMED, NUMBER, TEXT, TIME, Column, matched
from fnn.data.errors import DataError

MOST = 50
"""At most this many values of a category get an input each; the rest share `GROUPS`."""
GROUPS = 16
"""So many inputs stand for the values of a category that have none: which one, its CRC-32 decides.
Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning"."""
BUCKETS, WIDEST = 256, 2**16
"""So many inputs stand for a text; at most so many may."""
HASHING: dict[str, Any] = {"analyzer": "char_wb", "ngram_range": (3, 3)}
"""What is hashed of a text, for scikit-learn's `HashingVectorizer`: three characters in a row, in a
word with the spaces around it."""
WORDS = re.compile(r"[^\W\d_]{2}\S*\s(.*\s)?[^\w\s]*[^\W\d_]{2}", re.DOTALL)
"""A text of several words."""
ROWS = 20
"""In fewer rows, that all values differ says nothing about a column."""
YEAR, WEEK, HOURS = "year", "week", "day"
CYCLES = {DATE: (YEAR, WEEK, HOURS), TIME: (HOURS,)}
"""The cycles in which a date or a time may have a place."""
ID = re.compile(
    r"(?i:unnamed.*|__index.*|index|idx|id|uuid|guid|no|nr|row|row.?(names?|ids?|numbers?))"
    r"|(?i:.*[_ ]id)|.*[a-z]I[dD]"
)
"""The names of columns that number the rows."""


@dataclass(frozen=True)
class Feature:
    """How one column becomes inputs of the network: here, a column of numbers.

    name is the column's, "" without a header. left_out says why the column is not used, and is
    "" where it is. Else, by `kind`:

        a number    is one input, standardised. A blank becomes `fill`, the median; with `flag`
                    another input is 1 for a blank, 0 otherwise
        a date      is encoded as a number, and for each of `cycles` has the sine and cosine of
        or a time   its place in the year, in the week, in the day
        a category  is one input per entry of `values`, 1 for that value, 0 otherwise; with `flag`
                    another for blanks, and `rest` others for groups of all other values

        a text      is `rest` inputs: its n-grams, hashed

    form is how text was read, as in `Column`: later text is read in the same form.
    """

    name: str = ""
    left_out: str = ""
    fill: float = 0.0
    flag: bool = False
    cycles: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    rest: int = 0
    form: str = ""
    kind: str = NUMBER

    @classmethod
    def fitted(cls, name: str, column: Column, cells: np.ndarray, at: int, kept: bool) -> "Feature":
        """The feature of column `at`, of its cells (n,) in the training part; not all are blank.

        Where `kept`, the column is used whatever it looks like.
        """
        n, cells = len(cells), cells[~np.isnan(cells)]
        if not kept and column.kind == NUMBER and _counts_rows(name, cells, n, at):
            return cls(name, "row numbers", form=column.form)
        known, fill = CYCLES.get(column.kind, ()), float(np.median(cells))
        cycles = tuple(c for c in known if np.ptp(_place(cells, c, np)) > 1e-9)
        return cls(name, "", fill, len(cells) < n, cycles, form=column.form, kind=column.kind)

    @property
    def column(self) -> Column:
        """The column, as it was read."""
        return Column(self.kind, self.values, self.form)

    @property
    def width(self) -> int:
        """The number of inputs."""
        several = len(self.values) + self.rest + self.flag + 2 * len(self.cycles)
        return 0 if self.left_out else several + (self.kind not in NAMED)

    def describe(self) -> str:
        """What becomes of the column, in words."""
        return f"left out: {self.left_out}" if self.left_out else self._use()

    def _use(self) -> str:
        days = ", in days" if self.kind != NUMBER else ""
        places = " and ".join(", ".join(self.cycles).rsplit(", ", 1))
        cycles = f", place in the {places}" if self.cycles else ""
        flag = f", blanks as the median {self.fill:.4g} and a flag" if self.flag else ""
        return f"standardised{days}{cycles}{flag}"

    def inputs(self, cells: Any, xp: Any = np) -> list[Any]:
        """Arrays (n, inputs) from cells as `recoded` has them, in the array module xp."""
        blank = xp.isnan(cells)
        filled = xp.where(blank, xp.asarray(self.fill, cells.dtype), cells)
        turns = [2 * np.pi * _place(filled, cycle, xp) for cycle in self.cycles]
        waves = [wave(turn) for turn in turns for wave in (xp.sin, xp.cos)]
        return [filled, *waves] + [blank] * self.flag

    def recoded(self, source: str, column: Column, cells: np.ndarray) -> np.ndarray:
        """Cells (n, 1) read as `column`, as this feature has them: (n, 1).

        Raises DataError for another kind.
        """
        if column.kind != self.kind and not np.isnan(cells).all():
            got = f"expected a {self.kind}, got a {column.kind}"
            raise DataError(f"{source}: column {self.name!r}: {got}")
        return cells

    def check(self) -> None:
        """Raise TypeError or ValueError for what no fitted feature holds."""
        texts = (self.name, self.left_out, self.form, *self.cycles, *self.values)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a feature's text is of another type")
        known = CYCLES.get(self.kind, ())
        most = {CATEGORY: GROUPS, TEXT: WIDEST}.get(self.kind, 0)
        least = self.kind == TEXT and not self.left_out
        if (self.values and self.kind != CATEGORY) or (self.flag and self.kind == TEXT):
            raise ValueError(f"{self.name!r} is a {self.kind} with values, or blanks")
        if not least <= self.rest <= most or not set(self.cycles) <= set(known):
            raise ValueError(f"unknown cycles, or groups of the rest, of {self.name!r}")
        if not is_form(self.kind, self.form):
            raise ValueError(f"{self.name!r} is written {self.form!r}")
        if not abs(self.fill) < (2**31 if known else math.inf):
            raise ValueError(f"the median of {self.name!r} is not finite, or no date")


class Category(Feature):
    """A column of categories."""

    @classmethod
    def fitted(cls, name: str, column: Column, cells: np.ndarray, at: int, kept: bool) -> "Feature":
        """As in `Feature`; the most frequent values where there are more than `MOST`."""
        n, cells = len(cells), cells[~np.isnan(cells)]
        codes, counts = np.unique(cells.astype(int), return_counts=True)
        values, flag = [column.values[code] for code in codes], len(cells) < n
        many = len(values) > max(MOST, len(cells) / 2)
        unique = n >= ROWS and len(values) == len(cells)
        if column.kind == TEXT or ((many or unique) and _are_words(values)):
            return Text(name, rest=BUCKETS, kind=TEXT)
        whys = {
            f"always {values[0]!r}": len(values) == 1 and not flag,
            "a name or id per row": unique and not kept,
            f"{len(values)} different texts in {len(cells)} rows": many and not kept,
        }
        if left_out := next((why for why, holds in whys.items() if holds), ""):
            return cls(name, left_out, form=column.form, kind=CATEGORY)
        if rest := GROUPS * (len(values) > MOST):
            values = [values[i] for i in np.sort(np.argsort(-counts, kind="stable")[:MOST])]
        return cls(name, "", 0.0, flag, (), tuple(values), rest, column.form, CATEGORY)

    def _use(self) -> str:
        shown = f"one-hot: {len(self.values)} value{'s' * (len(self.values) != 1)}"
        groups = f"the rest in {self.rest} groups" if self.rest > 1 else "the rest" * self.rest
        *more, last = filter(None, [shown, groups, "blank" * self.flag])
        return f"{', '.join(more)} and {last}" if more else last

    def inputs(self, cells: Any, xp: Any = np) -> list[Any]:
        """As in `Feature`; the cells are indices into `values`, below 0 for any other value."""
        every = [cells == i for i in (*range(len(self.values)), *range(-1, -1 - self.rest, -1))]
        return every + [xp.isnan(cells)] * self.flag

    def recoded(self, source: str, column: Column, cells: np.ndarray) -> np.ndarray:
        """Cells as indices into `values`, numbers too: for a value that is none of them -1 minus
        its group."""
        there, codes, values = _as_text(column, cells)
        found = np.full(cells.shape, np.nan)
        at, groups = matched(values, self.values), max(1, self.rest)
        others = [-1 - zlib.crc32(value.encode()) % groups for value in values]
        found[there] = np.append(np.where(np.less(at, 0), others, at), -1.0)[codes]
        return found


class Text(Category):
    """A column of free text, whose n-grams are hashed: see `HASHING`."""

    def _use(self) -> str:
        return f"text: hashed into {self.rest} inputs"

    def inputs(self, cells: Any, xp: Any = np) -> list[Any]:
        """As in `Feature`."""
        return [cells]

    def recoded(self, source: str, column: Column, cells: np.ndarray) -> np.ndarray:
        """Texts as vectors (n, rest) of length 1; blanks are zeros."""
        from sklearn.feature_extraction.text import HashingVectorizer

        there, codes, values = _as_text(column, cells)
        found = np.zeros((len(cells), self.rest))
        if len(codes):
            hashed = HashingVectorizer(n_features=self.rest, **HASHING).transform(values)
            found[there[:, 0]] = hashed.toarray()[codes]
        return found


def _as_text(column: Column, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Which cells are not blank, their codes, and the text, numbers too, that each code is for."""
    there, values = ~np.isnan(cells), column.values
    if column.kind in NAMED:
        return there, cells[there].astype(int), values
    distinct, codes = np.unique(cells[there], return_inverse=True)
    texts = (str(number + 0.0).removesuffix(".0") for number in distinct.tolist())
    return there, codes, tuple(texts)


def _are_words(values: Sequence[str]) -> bool:
    """Whether most of these texts are several words."""
    return 2 * sum(WORDS.search(value) is not None for value in values) > len(values)


TYPES: dict[str, type] = {"cycles": tuple, "values": tuple, "flag": bool, "rest": int}
"""What JSON does not keep apart."""
KINDS = {NUMBER: Feature, DATE: Feature, TIME: Feature, CATEGORY: Category, TEXT: Text}


def metadata_of(feature: Feature) -> dict[str, Any]:
    """The feature as JSON can express it, without what is as by default."""
    held = {k: v for k, v in asdict(feature).items() if v != getattr(Feature, k)}
    return {"name": feature.name, "kind": feature.kind} | held


def features_of(metadata: list[dict[str, Any]]) -> tuple[Feature, ...]:
    """The features that `metadata_of` described.

    Raises TypeError and ValueError for what it can't have written.
    """
    every = []
    for entry in metadata:
        if not {"name", "kind"} <= set(entry) <= {field.name for field in fields(Feature)}:
            raise ValueError(f"a feature with {', '.join(sorted(entry))}")
        if entry["kind"] not in KINDS:
            raise ValueError(f"unknown kind {entry['kind']!r} of {entry['name']!r}")
        held = {k: TYPES[k](v) if k in TYPES else v for k, v in entry.items()}
        every.append(KINDS[entry["kind"]](**held))
        every[-1].check()
    return tuple(every)


def _counts_rows(name: str, cells: np.ndarray, n: int, at: int) -> bool:
    """Whether the numbers look like row numbers, or like ids of rows: whole, all different, and
    in the first column close together from 0 or 1, or called as ids are."""
    if ID.fullmatch(name) is None and (at or cells.min() < 0 or cells.max() > 2 * n):
        return False
    return ROWS <= n == len(cells) and not (cells % 1).any() and len(np.unique(cells)) == n


def _place(days: Any, cycle: str, xp: Any) -> Any:
    """The place in a cycle, from 0 to 1, of dates in days since 1970-01-01, a Thursday."""
    if cycle == HOURS:
        return days % 1
    day = xp.floor(days).astype(np.int64 if days.dtype == np.float64 else np.int32)
    if cycle == WEEK:
        return ((day + 3) % 7).astype(days.dtype) / 7
    # The Gregorian calendar repeats itself after 400 years; in those that begin with March the
    # day of a leap year is the last. 0000-03-01 is 719468 days before 1970-01-01.
    era = (day + 719468) // 146097
    of_era = (day + 719468) % 146097
    year = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    of_march = of_era - (365 * year + year // 4 - year // 100)
    year = year + 400 * era
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    of_january = xp.where(of_march >= 306, of_march - 306, of_march + 59 + leap.astype(day.dtype))
    return of_january.astype(days.dtype) / 366
