"""What the cells of a column are: numbers, categories, dates or times of day."""

from typing import TYPE_CHECKING

import numpy as np

from fnn.data._dialect import BLANKS
from fnn.data._tables import Table
from fnn.data.dataset import CATEGORY, DATE, NUMBER, TIME, Column
from fnn.data.errors import DataError

if TYPE_CHECKING:
    import polars

FEW = 20
"""At most this many different values are taken as classes, or as categories beside numbers."""
DATES = [
    "%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y", "%d %b %Y",
    "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y",
]  # fmt: skip
TIMES = ["%H:%M:%S%.f", "%H:%M", "%I:%M %p", "%I:%M:%S %p"]
MOMENTS = [*DATES, *(f"{day}{gap}{time}" for day in DATES for gap in " T" for time in TIMES)]
MINUTE, DAY = 60_000_000, 86_400_000_000
"""Microseconds."""
OFFSET = r"(?:Z|([+-])(\d\d)(?::?(\d\d))?)$"
"""The offset from UTC after a time of day."""
POINTS, DECIMAL, GROUPED = FORMS = ("", "decimal commas", "commas between thousands")
"""How numbers are written: 1.5, 1,5 or 1,000.5."""
COMMAS = r"^[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?([eE][+-]?\d+)?$"
THOUSANDS = r"^[+-]?\d{1,3}(,\d{3})+(\.\d+)?$"


def parse_column(table: Table, at: int, like: Column | None = None) -> tuple[Column, np.ndarray]:
    """The column at an index of a table, and its cells (n,) float64.

    Text is read as numbers, with decimal commas or separated thousands too, as dates or as times
    where all cells that are not blank (see `BLANKS`) can be; otherwise as categories. Where `like`
    is given, nothing is guessed: text is read as that column's was.

    Raises DataError for a number that is infinite, for text in a column of numbers, where a
    twentieth of the cells at most is other text and the values are many, for cells that
    are lists or other structures, and for text that can't be read as `like` was.
    """
    import polars

    cells = table.frame.to_series(at)
    kind = cells.dtype
    if kind == polars.Boolean:
        return Column(CATEGORY, ("False", "True")), _floats(cells.cast(polars.Float64))
    if kind.is_numeric() or kind == polars.Null:
        return Column(NUMBER), _finite(table, at, cells.cast(polars.Float64))
    if kind == polars.Duration:
        days = cells.dt.total_microseconds().cast(polars.Float64) / DAY
        return Column(NUMBER), _floats(days)
    if kind == polars.Time:
        return Column(TIME), _fraction(cells)
    if kind.is_temporal():
        return Column(DATE), _days(cells)
    if kind != polars.String and kind not in (polars.Categorical, polars.Enum):
        raise DataError(f"{table.where(at)}: expected numbers, text or dates, got {kind}")
    text = stripped(cells)
    if like is not None:
        return _read_like(table, at, text, like)
    numbers, written = as_numbers(text, table.separator)
    strays = numbers.null_count() - text.null_count()
    if not strays:
        return Column(NUMBER, (), written), _finite(table, at, numbers)
    there = len(text) - text.null_count()
    rare = strays <= min(max(1, there // 20), there - strays)
    if rare and text.n_unique() > min(FEW, there // 2):
        row = int((numbers.is_null() & text.is_not_null()).arg_max() or 0)
        what = f"{text[row]!r} is not a number, as most cells of the column are"
        raise DataError(f"{table.where(at, row)}: {what}; correct it, or --drop the column")
    return _dated(text) or _categories(text)


def note(column: Column) -> str:
    """What was guessed of a column, in words, or ""."""
    if column.kind == NUMBER:
        return column.form
    orders = {"%m/%d/%Y": "month/day/year", "%d/%m/%Y": "day/month/year"}
    order = orders.get(column.form[:8])
    return f"dates as {order}" if order else ""


def stripped(cells: "polars.Series") -> "polars.Series":
    """Text without the spaces around it; null for what stands for no value."""
    import polars

    text = cells.cast(polars.String).str.strip_chars()
    blank = text.is_in(list(BLANKS))
    return text.set(blank.fill_null(True), None) if blank.any() else text


def as_numbers(text: "polars.Series", separator: str = ",") -> tuple["polars.Series", str]:
    """Text as numbers, null where it is none, and how they are written: one of `FORMS`.

    Where commas separate the cells, 1,234 is a thousand and more; beside another separator its
    comma is a decimal comma.
    """
    numbers = _numbers(text, POINTS)
    left = text.filter(numbers.is_null() & text.is_not_null())
    if not len(left) or not left.str.contains(",", literal=True).all():
        return numbers, POINTS
    grouped, decimal = _numbers(text, GROUPED), _numbers(text, DECIMAL)
    both = (GROUPED, grouped), (DECIMAL, decimal)
    for form, read in both if separator == "," else both[::-1]:
        if read.null_count() == text.null_count():
            return read, form
    return numbers, POINTS


def _numbers(text: "polars.Series", form: str) -> "polars.Series":
    """Text as numbers in this form, null where it is none."""
    import polars

    plain = text.cast(polars.Float64, strict=False)
    if form == POINTS:
        return plain
    marks, pattern = ((".", ","), COMMAS) if form == DECIMAL else ((",", "."), THOUSANDS)
    bare = text.str.replace_all(marks[0], "", literal=True).str.replace(marks[1], ".", literal=True)
    others = plain if form == GROUPED else plain.clear(len(plain))
    return bare.cast(polars.Float64, strict=False).zip_with(text.str.contains(pattern), others)


def _read_like(
    table: Table, at: int, text: "polars.Series", like: Column
) -> tuple[Column, np.ndarray]:
    """The column, its text read as that of `like`, and its cells."""
    if like.kind == CATEGORY:
        return _categories(text)
    if like.kind != NUMBER and not like.form:  # learned from dates, not from text
        if (dated := _dated(text)) and dated[0].kind == like.kind:
            return dated
        cells = text.clear(len(text))
    elif like.kind == NUMBER:
        cells = _numbers(text, like.form)
    else:
        cells = _in_form(text, like.kind, like.form)
    wrong = cells.is_null() & text.is_not_null()
    if wrong.any():
        row = int(wrong.arg_max() or 0)
        how = " written with " if like.kind == NUMBER else " written as "
        how = how + like.form if like.form else ""
        what = f"{text[row]!r} is not a {like.kind}{how}, as in training"
        raise DataError(f"{table.where(at, row)}: {what}")
    if like.kind == NUMBER:
        return like, _finite(table, at, cells)
    if not like.form:
        return like, np.full(len(text), np.nan)
    return like, _days(cells) if like.kind == DATE else _fraction(cells)


def _categories(text: "polars.Series") -> tuple[Column, np.ndarray]:
    """Text as categories."""
    import polars

    values = tuple(text.drop_nulls().unique().sort())
    codes = text.cast(polars.Enum(values)).to_physical().cast(polars.Float64)
    return Column(CATEGORY, values), _floats(codes)


def _finite(table: Table, at: int, numbers: "polars.Series") -> np.ndarray:
    """The numbers, NaN for a blank. Raises DataError for an infinite one."""
    found = _floats(numbers)
    if (infinite := np.isinf(found)).any():
        row = int(infinite.argmax())
        raise DataError(f"{table.where(at, row)}: expected a finite number, got {found[row]}")
    return found


def _floats(cells: "polars.Series") -> np.ndarray:
    """Float64 cells as an array, NaN for a null."""
    return cells.to_numpy()


def _dated(text: "polars.Series") -> tuple[Column, np.ndarray] | None:
    """The column and its cells where all text is dates, or times of day, in one form."""
    some = text.drop_nulls()
    for kind, forms, looks in ((DATE, MOMENTS, r"\d\d"), (TIME, TIMES, r"\d:\d\d")):
        if not len(some) or not some[:100].str.contains(looks).all():
            continue
        for form in forms:
            for part in (some.head(20), text):  # a few first, to be quick
                found = _in_form(part, kind, form)
                if found.null_count() > part.null_count():
                    break
            else:
                cells = _days(found) if kind == DATE else _fraction(found)
                return Column(kind, (), form), cells
    return None


def _in_form(text: "polars.Series", kind: str, form: str) -> "polars.Series":
    """Text in this form as points in time in UTC, or as times of day; null where it is another."""
    import polars

    if kind == TIME:
        return text.str.to_time(form, strict=False)
    plain = text.str.replace(OFFSET, "") if "%H" in form else text
    found = plain.str.to_datetime(form, strict=False, time_unit="us").cast(polars.Datetime("us"))
    if plain is text or found.null_count() == len(found):
        return found
    offset = text.str.extract_groups(OFFSET).struct
    sign, hours, minutes = (offset.field(part).fill_null("0") for part in "123")
    east = hours.cast(polars.Int64) * 60 + minutes.cast(polars.Int64)
    east = east.zip_with(sign != "-", -east)
    return (found.cast(polars.Int64) - east * MINUTE).cast(polars.Datetime("us"))


def _days(moments: "polars.Series") -> np.ndarray:
    """Days since 1970-01-01."""
    import polars

    since = moments.cast(polars.Datetime("us")).cast(polars.Int64)
    return _floats(since.cast(polars.Float64) / DAY)


def _fraction(times: "polars.Series") -> np.ndarray:
    """Fractions of a day."""
    import polars

    return _floats(times.cast(polars.Int64).cast(polars.Float64) / (1000 * DAY))
