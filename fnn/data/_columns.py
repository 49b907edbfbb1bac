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
    "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y", "%m/%d/%y", "%d/%m/%y", "%d.%m.%y",
    "%d-%m-%y", "%d-%b-%y", "%d %b %y", "%Y-%m", "%Y%m%d", "%m%d%Y", "%d%m%Y",
]  # fmt: skip
PLAIN = ["%Y-%m-%d", "%Y/%m/%d", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y"]
"""Dates that can be read in one way only: cells of a column in another form may have these."""
SPELT = {
    "%Y-%m": (r"^(\d{4})-(\d\d)$", "$1-$2-01"),
    "%Y%m%d": (r"^((?:19|20)\d\d)(\d\d)(\d\d)$", "$1-$2-$3"),
    "%m%d%Y": (r"^(\d?\d)(\d\d)((?:19|20)\d\d)$", "$3-$1-$2"),
    "%d%m%Y": (r"^(\d?\d)(\d\d)((?:19|20)\d\d)$", "$3-$2-$1"),
}
"""Dates that are rewritten as year-month-day."""
TIMES = ["%H:%M:%S%.f", "%H:%M", "%I:%M %p", "%I:%M:%S %p"]
MOMENTS = [f"{day}{gap}{time}" for day in DATES[:17] for gap in " T" for time in TIMES]
MINUTE, DAY = 60_000_000, 86_400_000_000
"""Microseconds."""
OFFSET = r"(?:Z|([+-])(\d\d)(?::?(\d\d))?)$"
"""The offset from UTC after a time of day."""
POINTS, DECIMAL, GROUPED = "", "decimal commas", "commas between thousands"
"""How numbers are written: 1.5, 1,5 or 1,000.5."""
FORMS = (POINTS, DECIMAL, GROUPED, *DATES, *MOMENTS, *TIMES)
COMMAS = r"^[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?([eE][+-]?\d+)?$"
THOUSANDS = r"^[+-]?\d{1,3}(,\d{3})+(\.\d+)?$"


def parse_column(
    table: Table, at: int, like: Column | None = None
) -> tuple[Column, np.ndarray, str]:
    """The column at an index of a table, its cells (n,) float64, and what was guessed, in words.

    Text is read as numbers, also with decimal commas or separated thousands, as dates or as times
    where all cells that are not blank (see `BLANKS`) can be, and otherwise as categories; whole
    numbers of which one begins with 0 are codes, that is categories. Where `like` is given, text is
    read as that column was.

    Raises DataError for a number that is infinite, for other text in at most a twentieth of the
    cells of a column of numbers or dates, for cells that are lists or other structures, and for
    text that can't be read as `like` was.
    """
    import polars

    cells = table.frame.to_series(at)
    kind = cells.dtype
    whole = kind.is_integer() and (like.kind == DATE if like else _may_be_dates(cells))
    if kind == polars.Boolean:
        column = like if like and like.kind == NUMBER else Column(CATEGORY, ("False", "True"))
        return column, _floats(cells.cast(polars.Float64)), ""
    if (kind.is_numeric() or kind == polars.Null) and not whole:
        return Column(NUMBER), _finite(table, at, cells.cast(polars.Float64)), ""
    if kind == polars.Duration:
        days = cells.dt.total_microseconds().cast(polars.Float64) / DAY
        return Column(NUMBER), _floats(days), ""
    if kind == polars.Time:
        return Column(TIME), _fraction(cells), ""
    if kind.is_temporal():
        return Column(DATE), _days(cells), ""
    if not (whole or kind == polars.String or kind in (polars.Categorical, polars.Enum)):
        raise DataError(f"{table.where(at)}: expected numbers, text or dates, got {kind}")
    text = stripped(cells)
    return _guessed(table, at, text) if like is None else (*_read_like(table, at, text, like), "")


def _may_be_dates(cells: "polars.Series") -> bool:
    """Whether whole numbers have the digits of dates such as 20181014."""
    low, high = str(cells.min()), str(cells.max())
    return low.isdigit() and int(low) >= 10**6 and int(high) < 10**8


def _guessed(table: Table, at: int, text: "polars.Series") -> tuple[Column, np.ndarray, str]:
    """`parse_column` of text, its kind and form guessed."""
    n = len(text) - text.null_count()
    compact = n and text.str.contains(r"^\d{7,8}$").all() and text.n_unique() > 3
    if compact and (dated := _dated(table, at, text, DATE, DATES[-3:])):
        return dated
    digits = text.str.contains(r"^\d+$")
    if n and digits.all() and text.str.contains(r"^0\d").any():
        return (*_categories(text), "")
    numbers, written = as_numbers(text, table.separator)
    strays = numbers.null_count() - text.null_count()
    if not strays:
        return Column(NUMBER, (), written), _finite(table, at, numbers), written
    rare = strays <= min(max(1, n // 20), n - strays)
    if rare and text.n_unique() > min(FEW, n // 2):
        raise _stray(table, at, text, numbers, NUMBER)
    some = text.drop_nulls().head(100)
    for kind, looks, forms in (
        (DATE, r"\d\d.*\d:\d\d", MOMENTS),
        (DATE, r"\d\d", DATES[:-3]),
        (TIME, r"\d:\d\d", TIMES),
    ):
        many = 10 * int(some.str.contains(looks).sum()) >= 8 * len(some)
        if n and many and (dated := _dated(table, at, text, kind, forms)):
            return dated
    return (*_categories(text), "")


def _stray(
    table: Table, at: int, text: "polars.Series", read: "polars.Series", kind: str
) -> DataError:
    """The error for the first cell that can't be read as most of its column."""
    row = int((read.is_null() & text.is_not_null()).arg_max() or 0)
    what = f"{text[row]!r} is not a {kind}, as most cells of the column are"
    return DataError(f"{table.where(at, row)}: {what}; correct it, or --drop the column")


def _dated(
    table: Table, at: int, text: "polars.Series", kind: str, forms: list[str]
) -> tuple[Column, np.ndarray, str] | None:
    """Text as dates, or times of day, in one of these forms; None where most is none.

    Cells in another form that can be read in one way only are read too. Raises DataError where
    at most a twentieth of the cells are no dates.
    """
    there = len(text) - text.null_count()
    head = text.drop_nulls().head(20)
    likely = [f for f in forms if 2 * _in_form(head, kind, f).count() >= len(head)]
    best: tuple[int, str] | None = None
    for form in likely:
        read = _in_form(text, kind, form).count()
        if best is None or read > best[0]:
            best = read, form
        if read == there:
            break
    if best is None:
        return None
    found = _in_forms(text, kind, best[1])
    wrong = there - found.count()
    if wrong > there // 20 or there - best[0] > there // 2:
        return None
    if wrong:
        raise _stray(table, at, text, found, kind)
    cells = _days(found) if kind == DATE else _fraction(found)
    return Column(kind, (), best[1]), cells, _note(best[1], best[0] < there)


def _note(form: str, mixed: bool) -> str:
    """What was guessed of dates, in words, or ""."""
    day = form[:8]
    names = {"%m": "month", "%d": "day", "%Y": "year", "%y": "year", "%b": "month"}
    order = "/".join(names.get(form[i : i + 2], "") for i in range(0, 8, 3))
    said = []
    if day in ("%m/%d/%Y", "%d/%m/%Y") or "%y" in form:
        said.append(f"dates as {order}")
    if form in DATES[-3:]:
        said.append("dates as " + "".join(names[form[i : i + 2]] for i in range(0, 6, 2)))
    said += ["two-digit years from 1970 to 2069"] if "%y" in form else []
    return ", ".join([*said, "dates in several forms"] if mixed else said)


def _in_forms(text: "polars.Series", kind: str, form: str) -> "polars.Series":
    """Text in this form, and dates in another that can be read in one way only."""
    found = _in_form(text, kind, form)
    if kind == DATE:
        for other in (*PLAIN, *(f"{PLAIN[0]}{gap}{time}" for gap in " T" for time in TIMES[:2])):
            if found.null_count() == text.null_count():
                break
            found = found.fill_null(_in_form(text.set(found.is_not_null(), None), kind, other))
    return found


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
        column, read, _ = _guessed(table, at, text)
        if column.kind == like.kind:
            return column, read
        cells = text.clear(len(text))
    elif like.kind == NUMBER:
        cells = _numbers(_as_bits(text), like.form)
    else:
        cells = _in_forms(text, like.kind, like.form)
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


def _as_bits(text: "polars.Series") -> "polars.Series":
    """Text that is all true or false as 1 and 0."""
    import polars

    lower = text.str.to_lowercase()
    if not lower.is_in(["true", "false"]).all():
        return text
    return (lower == "true").cast(polars.Int8).cast(polars.String)


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


def _in_form(text: "polars.Series", kind: str, form: str) -> "polars.Series":
    """Text in this form as points in time in UTC, or as times of day; null where it is another."""
    import polars

    if kind == TIME:
        return text.str.to_time(form, strict=False)
    if form in SPELT:
        pattern, spelt = SPELT[form]
        text = text.set(~text.str.contains(pattern), None).str.replace(pattern, spelt)
        form = "%Y-%m-%d"
    plain = text.str.replace(OFFSET, "") if "%H" in form else text
    found = plain.str.to_datetime(form, strict=False, time_unit="us").cast(polars.Datetime("us"))
    found = found.set(found.dt.year() < 1000, None)  # 20 is no year
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
