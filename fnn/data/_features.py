"""Features by kind: how one column of a table becomes inputs of a network."""

import math
import re
import zlib
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np

from fnn.data._forms import is_form
from fnn.data.dataset import CATEGORY, DATE, NUMBER, TIME, Column, matched
from fnn.data.errors import DataError

MOST = 50
"""At most this many values of a category get an input each; the rest share `GROUPS`."""
GROUPS = 16
"""So many inputs stand for the values of a category that have none: which one, its CRC-32 decides.
Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning"."""
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
    def fitted(
        cls, name: str, column: Column, cells: np.ndarray, n: int, at: int, kept: bool
    ) -> Self:
        """The feature of column `at`, of whose n cells in the training part `cells`, at least one,
        are not blank.

        Where `kept`, the column is used whatever it looks like.
        """
        if not kept and column.kind == NUMBER and _counts_rows(name, cells, n, at):
            return cls(name, "row numbers", form=column.form)
        known, fill = CYCLES.get(column.kind, ()), float(np.median(cells))
        cycles = tuple(c for c in known if np.ptp(_place(cells, c, np)) > 1e-9)
        flag = len(cells) < n
        return cls(name, "", fill, flag, cycles, form=column.form, kind=column.kind)

    @property
    def column(self) -> Column:
        """The column, as it was read."""
        return Column(self.kind, self.values, self.form)

    @property
    def width(self) -> int:
        """The number of inputs."""
        return 0 if self.left_out else 1 + self.flag + 2 * len(self.cycles)

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
        """One array (n,) per input, from the column's cells (n,), in the array module xp."""
        blank = xp.isnan(cells)
        filled = xp.where(blank, xp.asarray(self.fill, cells.dtype), cells)
        turns = [2 * np.pi * _place(filled, cycle, xp) for cycle in self.cycles]
        waves = [wave(turn) for turn in turns for wave in (xp.sin, xp.cos)]
        return [filled, *waves] + [blank] * self.flag

    def recoded(self, source: str, column: Column, cells: np.ndarray) -> np.ndarray:
        """Cells read as `column`, as this feature has them. Raises DataError for another kind."""
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
        if not 0 <= self.rest <= GROUPS or not set(self.cycles) <= set(known):
            raise ValueError(f"unknown cycles, or groups of the rest, of {self.name!r}")
        if not is_form(self.kind, self.form):
            raise ValueError(f"{self.name!r} is written {self.form!r}")
        if not abs(self.fill) < (2**31 if known else math.inf):
            raise ValueError(f"the median of {self.name!r} is not finite, or no date")


class Category(Feature):
    """A column of categories."""

    @classmethod
    def fitted(
        cls, name: str, column: Column, cells: np.ndarray, n: int, at: int, kept: bool
    ) -> Self:
        """As in `Feature`; the most frequent values where there are more than `MOST`."""
        codes, counts = np.unique(cells.astype(int), return_counts=True)
        values, flag, left_out = [column.values[code] for code in codes], len(cells) < n, ""
        if len(values) == 1 and not flag:
            left_out = f"always {values[0]!r}"
        elif not kept and n >= ROWS and len(values) == len(cells):
            left_out = "a name or id per row"
        elif not kept and len(values) > max(MOST, len(cells) / 2):
            left_out = f"{len(values)} different texts in {len(cells)} rows"
        if left_out:
            return cls(name, left_out, form=column.form, kind=CATEGORY)
        rest = GROUPS if len(values) > MOST else 0
        if rest:
            values = [values[i] for i in np.sort(np.argsort(-counts, kind="stable")[:MOST])]
        return cls(name, "", 0.0, flag, (), tuple(values), rest, column.form, CATEGORY)

    @property
    def width(self) -> int:
        """The number of inputs."""
        return 0 if self.left_out else len(self.values) + self.rest + self.flag

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
        there, values = ~np.isnan(cells), column.values
        if column.kind != CATEGORY:
            distinct, codes = np.unique(cells[there], return_inverse=True)
            values = tuple(str(number + 0.0).removesuffix(".0") for number in distinct.tolist())
        else:
            codes = cells[there].astype(int)
        found = np.full(len(cells), np.nan)
        at = matched(values, self.values)
        for i, value in enumerate(values):
            if at[i] < 0:
                at[i] = -1 - zlib.crc32(value.encode()) % max(1, self.rest)
        found[there] = np.array([*at, -1], float)[codes]
        return found


TYPES: dict[str, type] = {"cycles": tuple, "values": tuple, "flag": bool, "rest": int}
"""What JSON does not keep apart."""
KINDS: dict[str, type[Feature]] = dict.fromkeys((NUMBER, DATE, TIME), Feature)
KINDS[CATEGORY] = Category


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
    if n < ROWS or len(cells) < n or (cells[:ROWS] % 1).any():  # what most columns end with
        return False
    if (cells % 1).any() or len(np.unique(cells)) < n:
        return False
    close = at == 0 and cells.min() >= 0 and cells.max() <= 2 * n
    return close or (ID.fullmatch(name) is not None)


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
