"""What the cells of a column are: numbers, categories, dates or times of day."""

from typing import TYPE_CHECKING

import numpy as np

from fnn.data.dataset import CATEGORY, DATE, NUMBER, TIME, Column
from fnn.data.dialect import BLANKS
from fnn.data.errors import DataError
from fnn.data.tables import Table

if TYPE_CHECKING:
    import polars

FEW = 20
"""At most this many different values are taken as classes, or as categories beside numbers."""
DATES = [
    "%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y", "%d %b %Y",
    "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y",
]  # fmt: skip
TIMES = ["%H:%M:%S%.f", "%H:%M", "%I:%M %p", "%I:%M:%S %p"]
DAY = 86_400_000_000
"""Microseconds."""
DECIMAL, GROUPED = "decimal commas", "commas between thousands"
COMMAS = r"^[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?([eE][+-]?\d+)?$"
THOUSANDS = r"^[+-]?\d{1,3}(,\d{3})+(\.\d+)?$"


def understood(table: Table, at: int, form: str = "") -> tuple[Column, np.ndarray]:
    """The column at an index of a table, and its cells (n,) float64.

    Text is read as numbers, with decimal commas or separated thousands too, as dates or as times
    where all cells that are not blank (see `BLANKS`) can be; otherwise as categories. Where two
    forms are possible, as for 1,234 and for 02/03/2024, `form` is preferred.

    Raises DataError for a number that is infinite, for text in a column of numbers, where a
    twentieth of the cells at most is other text and the values are many, and for cells that
    are lists or other structures.

    >>> import polars
    >>> frame = polars.DataFrame({"0": ["1,5", "?", "2,25"], "1": ["b", "a", "b"]})
    >>> table = Table("a", ("x", "y"), frame, "row {}".format, ())
    >>> understood(table, 0)
    (Column(kind='number', values=(), form='decimal commas'), array([1.5 ,  nan, 2.25]))
    >>> understood(table, 1)
    (Column(kind='category', values=('a', 'b'), form=''), array([1., 0., 1.]))
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
    numbers, written = as_numbers(text, table.separator, form)
    strays = numbers.null_count() - text.null_count()
    if not strays:
        return Column(NUMBER, (), written), _finite(table, at, numbers)
    there = len(text) - text.null_count()
    rare = strays <= min(max(1, there // 20), there - strays)
    if rare and text.n_unique() > min(FEW, there // 2):
        row = int((numbers.is_null() & text.is_not_null()).arg_max() or 0)
        what = f"{text[row]!r} is not a number, as most cells of the column are"
        raise DataError(f"{table.where(at, row)}: {what}; correct it, or --drop the column")
    if (moments := _dates(text, form)) is not None:
        return Column(DATE, (), moments[1]), _days(moments[0])
    if (times := _times(text)) is not None:
        return Column(TIME), _fraction(times)
    values = tuple(text.drop_nulls().unique().sort())
    codes = text.cast(polars.Enum(values)).to_physical().cast(polars.Float64)
    return Column(CATEGORY, values), _floats(codes)


def note(column: Column) -> str:
    """What was guessed of a column, in words, or "".

    >>> note(Column("number", (), "decimal commas")), note(Column("date", (), "%m/%d/%Y"))
    ('decimal commas', 'dates as month/day/year')
    """
    if column.kind == NUMBER:
        return column.form
    orders = {"%m/%d/%Y": "month/day/year", "%d/%m/%Y": "day/month/year"}
    order = orders.get(column.form[:8])
    return f"dates as {order}" if order else ""


def stripped(cells: "polars.Series") -> "polars.Series":
    """Text without the spaces around it; null for what stands for no value.

    >>> import polars
    >>> stripped(polars.Series([" a", "NA", None])).to_list()
    ['a', None, None]
    """
    import polars

    text = cells.cast(polars.String).str.strip_chars()
    blank = text.is_in(list(BLANKS))
    return text.set(blank.fill_null(True), None) if blank.any() else text


def as_numbers(
    text: "polars.Series", separator: str = ",", form: str = ""
) -> tuple["polars.Series", str]:
    """Text as numbers, null where it is none, and how they are written if not with points.

    Where commas separate the cells, 1,234 is a thousand and more; beside another separator its
    comma is a decimal comma. `form`, where given, decides between these two.

    >>> import polars
    >>> text = polars.Series(["1,234", "2"])
    >>> as_numbers(text)[0].to_list(), as_numbers(text, ";")[0].to_list()
    ([1234.0, 2.0], [1.234, 2.0])
    """
    import polars

    numbers = text.cast(polars.Float64, strict=False)
    left = text.filter(numbers.is_null() & text.is_not_null())
    if not len(left) or not left.str.contains(",", literal=True).all():
        return numbers, ""
    grouped = left.str.contains(THOUSANDS).all()
    decimal = text.drop_nulls().str.contains(COMMAS).all()
    if grouped and decimal:
        grouped = form == GROUPED or (form != DECIMAL and separator == ",")
    if grouped:
        plain = text.str.replace_all(",", "", literal=True)
        return plain.cast(polars.Float64, strict=False), GROUPED
    if decimal:
        plain = text.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
        return plain.cast(polars.Float64, strict=False), DECIMAL
    return numbers, ""


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


def _dates(text: "polars.Series", form: str) -> tuple["polars.Series", str] | None:
    """Text as points in time and their form, if all of it is in one form."""
    import polars

    some = text.drop_nulls()
    if not len(some) or not some[:100].str.contains(r"\d\d").all():
        return None
    moments = [f"{day}{gap}{time}" for day in DATES for gap in " T" for time in TIMES]
    for tried in (*([form] if "%" in form else []), *DATES, *moments):
        for cells in (some.head(20), text):  # a few first, to be quick
            if "%H" in tried:
                cells = cells.str.replace(r"(Z|[+-]00:?00)$", "")
            found = cells.str.to_datetime(tried, strict=False, time_unit="us")
            if found.null_count() > cells.null_count():
                break
        else:
            return found.cast(polars.Datetime("us")), tried
    return None


def _times(text: "polars.Series") -> "polars.Series | None":
    """Text as times of day, if all of it is in one form."""
    some = text.drop_nulls()
    if not len(some) or not some[:100].str.contains(r"\d:\d\d").all():
        return None
    for form in TIMES:
        found = text.str.to_time(form, strict=False)
        if found.null_count() == text.null_count():
            return found
    return None


def _days(moments: "polars.Series") -> np.ndarray:
    """Days since 1970-01-01."""
    import polars

    since = moments.cast(polars.Datetime("us")).cast(polars.Int64)
    return _floats(since.cast(polars.Float64) / DAY)


def _fraction(times: "polars.Series") -> np.ndarray:
    """Fractions of a day."""
    import polars

    return _floats(times.cast(polars.Int64).cast(polars.Float64) / (1000 * DAY))
