"""What the cells of a column are: numbers, categories, dates or times of day."""

import re

import numpy as np
import polars
from polars import Series

from fnn.data import _numbers
from fnn.data._forms import DATES, MOMENTS, STYLES, TIMES
from fnn.data._tables import Table
from fnn.data.dataset import CATEGORY, DATE, NUMBER, TIME, Column
from fnn.data.errors import DataError

Found = tuple[Column, np.ndarray, str]
"""A column, its cells, and what was guessed."""
FEW = 20
"""At most this many different values are taken as classes, or as categories beside numbers."""
PLAIN = ["%Y-%m-%d", "%Y/%m/%d", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y"]
"""Dates that can be read in one way only: cells of a column in another form may have these."""
SPELT = {
    "%Y-%m": (r"^(\d{4})-(\d\d)$", "$1-$2-01"),
    "%Y%m%d": (r"^((?:19|20)\d\d)(\d\d)(\d\d)$", "$1-$2-$3"),
    "%m%d%Y": (r"^(\d?\d)(\d\d)((?:19|20)\d\d)$", "$3-$1-$2"),
    "%d%m%Y": (r"^(\d?\d)(\d\d)((?:19|20)\d\d)$", "$3-$2-$1"),
}
"""Dates that are rewritten as year-month-day."""
MINUTE, DAY = 60_000_000, 86_400_000_000
"""Microseconds."""
OFFSET = r"(?:Z|([+-])(\d\d)(?::?(\d\d))?)$"
"""The offset from UTC after a time of day."""
BLANKS = [
    "", "NA", "N/A", "n/a", "na", "#N/A", "NaN", "nan", "NAN", "NULL", "null", "None",
    "?", "-", ".",
]  # fmt: skip
"""What people write where there is no value."""
NOTHING = (
    r"(?i)^(#[a-z/0]+[!?]?|[<>≤≥]=? ?[\d.,]+|n\.? ?[dav]\.?|k\.? ?a\.?|[*_.-]+|\(blank\)|unknown|"
    r"missing|none|nil|tbd|undefined|varies.*|not .*|no data|0000-00-00.*)$"
)
"""What people write beside numbers or dates where there is no value."""
LARGEST = str(2**53)
"""Not all whole numbers above this are float64."""


def parse_column(
    table: Table, at: int, like: Column | None = None, wanted: str | None = None
) -> Found:
    """The column at an index of a table, its cells (n,) float64, and what was guessed, in words.

    Text is read as numbers, also with units or in other notations, as dates or as times where all
    cells that are not blank (see `BLANKS` and `NOTHING`) can be, and otherwise as categories; whole
    numbers of which one begins with 0, or is not exact as float64, are codes, that is categories.
    Where `like` is given, text is read as that column was. A column `wanted` as numbers or dates
    is blank where it is neither.

    Raises DataError for a number that is infinite, for other text in at most a twentieth of the
    cells of a column of numbers or half of those of dates, for cells that are lists or other
    structures, and for text that can't be read as `like` was.
    """
    cells = table.frame.to_series(at)
    kind = cells.dtype
    if kind == polars.Boolean and wanted is None:
        column = like if like and like.kind == NUMBER else Column(CATEGORY, ("False", "True"))
        return column, cells.cast(polars.Float64).to_numpy(), ""
    if not _is_text(cells, like, wanted):
        if kind.is_temporal() and kind != polars.Duration:
            column = Column(TIME if kind == polars.Time else DATE)
            return column, _in_days(cells, column.kind), ""
        days = cells.dt.total_microseconds() / DAY if kind == polars.Duration else cells
        return Column(NUMBER), _finite(table, at, days.cast(polars.Float64)), ""
    if kind.is_nested() or kind in (polars.Binary, polars.Object):
        raise DataError(f"{table.where(at)}: expected numbers, text or dates, got {kind}")
    text = stripped(cells)
    if like is None:
        return _guessed(table, at, text, wanted)
    return _read_like(table, at, text, wanted, like)


def _is_text(cells: Series, like: Column | None, wanted: str | None) -> bool:
    """Whether cells are understood from their text, as whole numbers that may be dates or codes
    are."""
    kind = cells.dtype
    if kind.is_integer() and wanted != NUMBER:
        low, high = (int(str(limit or 0)) for limit in (cells.min(), cells.max()))
        dates = like.kind == DATE if like else low >= 10**6 and high < 10**8
        return dates or max(-low, high) > int(LARGEST) or wanted is not None
    return wanted == CATEGORY or not (
        kind.is_numeric() or kind.is_temporal() or kind == polars.Null
    )


def _guessed(table: Table, at: int, text: Series, wanted: str | None) -> Found:
    """`parse_column` of text, its kind and form guessed."""
    clean, words = without_words(text)
    only_words = wanted is None and not clean.count() and text.count()
    found = None if only_words or wanted == CATEGORY else _measured(table, at, clean, wanted)
    if found is None and wanted in (NUMBER, DATE):
        raise DataError(f"{table.where(at)}: no {wanted}s, but cells such as {clean.max()!r}")
    if found is None:
        column, cells, note = _categories(table, at, text)
        more = "" if wanted or only_words else _hint(table, at, clean)
    else:
        column, cells, note = found
        lost = clean.count() - int(np.isfinite(cells).sum())
        gone = " and ".join(filter(None, [words, f"{lost} other cells" * bool(lost)]))
        more = gone and f"{table.called(at)}: {gone} taken as no value"
    return column, cells, "; ".join(filter(None, [note, more]))


def _measured(table: Table, at: int, text: Series, wanted: str | None) -> Found | None:
    """Text as numbers, dates or times; None where it is none."""
    n = text.count()
    compact = text.str.contains(r"^\d{7,8}$").all() and text.n_unique() > 3
    dated = _dated(table, at, text, DATE, DATES[-3:], wanted) if compact else None
    if wanted != NUMBER and dated:
        return dated
    if wanted is None and are_codes(text):
        return None
    if (wanted != DATE or not n) and (found := _as_number(table, at, text, wanted)):
        return found
    some = text.drop_nulls().head(100)
    for kind, looks, forms in (
        (DATE, r"\d\d.*\d:\d\d", MOMENTS),
        (DATE, r"\d\d", DATES[:-3]),
        (TIME, r"\d:\d\d", TIMES),
    ):
        many = wanted or 10 * int(some.str.contains(looks).sum()) >= 8 * len(some)
        if many and len(some) and (dated := _dated(table, at, text, kind, forms, wanted)):
            return dated
    return None


def _as_number(table: Table, at: int, text: Series, wanted: str | None) -> Found | None:
    """Text as numbers; None where more than a twentieth, or much of few values, is none."""
    numbers, form = _numbers.as_numbers(text, table.separator)
    n, strays = text.count(), text.count() - numbers.count()
    rare = strays <= min(max(1, n // 20), n - strays)
    if strays and not wanted:
        if rare and text.n_unique() > min(FEW, n // 2):
            raise _stray(table, at, text, numbers, NUMBER)
        return None
    note = form if form in STYLES else f"{table.called(at)}: numbers, {form}"
    return Column(NUMBER, (), form), _finite(table, at, numbers), note


def without_words(text: Series) -> tuple[Series, str]:
    """Text with null for what people write where there is no number, and these words."""
    words = text.str.contains(NOTHING).fill_null(False)
    if not words.any():
        return text, ""
    some = text.filter(words).unique().sort()
    return text.set(words, None), ", ".join(map(repr, some[:3])) + ", ..." * (len(some) > 3)


def are_codes(text: Series) -> bool:
    """Whether these are whole numbers of which one begins with 0, or is not exact as float64."""
    long = text.str.len_bytes() >= len(LARGEST)
    large = long & ((text.str.len_bytes() > len(LARGEST)) | (text > LARGEST))
    codes = (text.str.contains(r"^0\d") | large).any()
    return bool(codes) and bool(text.str.contains(r"^\d+$").all())


def _hint(table: Table, at: int, text: Series) -> str:
    """The note for categories that are mostly numbers, or ""."""
    found, _ = _numbers.as_numbers(text, table.separator)
    there, n = found.count(), text.count()
    if are_codes(text) or 2 * there < n or found.n_unique() <= min(FEW, n // 2):
        return ""
    word = text.filter(found.is_null() & text.is_not_null())[0]
    way = f"--number {table.option(at)} takes such cells as no value"
    return f"{table.called(at)}: {there} of {n} cells are numbers, but {word!r}; categories; {way}"


def _stray(table: Table, at: int, text: Series, read: Series, kind: str) -> DataError:
    """The error for the first cell that can't be read as most of its column."""
    row = int((read.is_null() & text.is_not_null()).arg_max() or 0)
    what = f"{text[row]!r} is not a {kind}, as most cells of the column are"
    name = table.option(at)
    blank = f"--{kind} {name} takes such cells as no value, " if kind != TIME else ""
    ways = f"correct it, or {blank}--category {name} all as text"
    return DataError(f"{table.where(at, row)}: {what}; {ways}")


def _dated(
    table: Table, at: int, text: Series, kind: str, forms: list[str], wanted: str | None
) -> Found | None:
    """Text as dates, or times of day, in one of these forms; None where most is none.

    Cells in another form that can be read in one way only are read too. Raises DataError where
    some cells are no dates, unless dates are wanted.
    """
    there = text.count()
    head = text.drop_nulls().head(20)
    likely = [f for f in forms if 2 * _in_form(head, kind, f).count() >= len(head)]
    read = {form: _in_form(text, kind, form).count() for form in likely}
    best = max(likely, key=read.__getitem__, default="")
    if not best or there - read[best] > there // 2:
        return None
    found = _in_forms(text, kind, best)
    wrong = there - found.count()
    if wrong and not wanted:
        raise _stray(table, at, text, found, kind)
    note = _note(best, read[best] < there - wrong)
    return Column(kind, (), best), _in_days(found, kind), note


def _note(form: str, mixed: bool) -> str:
    """What was guessed of dates, in words, or ""."""
    names = {"%m": "month", "%d": "day", "%Y": "year", "%y": "year", "%b": "month"}
    gap = "" if form in DATES[-3:] else "/"
    order = gap.join(names[mark] for mark in re.findall("%[mdYyb]", form))
    notes = {
        f"dates as {order}": not gap or "%y" in form or form[:8] in ("%m/%d/%Y", "%d/%m/%Y"),
        "two-digit years from 1970 to 2069": "%y" in form,
        "dates in several forms": mixed,
    }
    return ", ".join(note for note, said in notes.items() if said)


def _in_forms(text: Series, kind: str, form: str) -> Series:
    """Text in this form, and dates in another that can be read in one way only."""
    found = _in_form(text, kind, form)
    if kind == DATE:
        for other in (*PLAIN, *(f"{PLAIN[0]}{gap}{time}" for gap in " T" for time in TIMES[:2])):
            if found.null_count() == text.null_count():
                break
            found = found.fill_null(_in_form(text.set(found.is_not_null(), None), kind, other))
    return found


def stripped(cells: Series) -> Series:
    """Text without the spaces around it; null for what stands for no value."""
    text = cells.cast(polars.String).str.strip_chars()
    blank = text.is_in(list(BLANKS))
    return text.set(blank.fill_null(True), None) if blank.any() else text


def _read_like(table: Table, at: int, text: Series, wanted: str | None, like: Column) -> Found:
    """The column, its text read as that of `like`, and its cells."""
    if like.kind == CATEGORY:
        return _categories(table, at, text)
    text, _ = without_words(text)
    if like.kind != NUMBER and not like.form:  # learned from dates, not from text
        column, read, _ = _guessed(table, at, text, wanted)
        if column.kind == like.kind:
            return column, read, ""
        cells = text.clear(len(text)).cast(polars.Int64)
    elif like.kind == NUMBER:
        cells, _ = _numbers.as_numbers(_as_bits(text), table.separator, like.form)
    else:
        cells = _in_forms(text, like.kind, like.form)
    wrong = cells.is_null() & text.is_not_null()
    if wrong.any() and not wanted:
        row = int(wrong.arg_max() or 0)
        how = like.form and f" written {'with' if like.kind == NUMBER else 'as'} {like.form}"
        what = f"{text[row]!r} is not a {like.kind}{how}, as in training"
        raise DataError(f"{table.where(at, row)}: {what}")
    if like.kind == NUMBER:
        return like, _finite(table, at, cells), ""
    return like, _in_days(cells, like.kind), ""


def _as_bits(text: Series) -> Series:
    """Text that is all true or false as 1 and 0."""
    lower = text.str.to_lowercase()
    if not lower.is_in(["true", "false"]).all():
        return text
    return (lower == "true").cast(polars.Int8).cast(polars.String)


def _categories(table: Table, at: int, text: Series) -> Found:
    """Text as categories."""
    text, same = one_spelling(text)
    values = tuple(text.drop_nulls().unique().sort())
    codes = text.cast(polars.Enum(values)).to_physical().cast(polars.Float64)
    return Column(CATEGORY, values), codes.to_numpy(), same and f"{table.called(at)}: {same}"


def one_spelling(text: Series) -> tuple[Series, str]:
    """Words that differ only in their capitals in the most frequent spelling, and which they are;
    single letters stay as they are."""
    counts = text.drop_nulls().value_counts(name="n").rename({text.name: "word"})
    words = counts.sort(["n", "word"], descending=[True, False])["word"].to_list()
    alike = [word.lower() if len(word) > 1 else word for word in words]
    if len(set(alike)) == len(words):
        return text, ""
    spelt = dict(zip(reversed(alike), reversed(words), strict=True))  # the most frequent is last
    to = [spelt[key] for key in alike]
    others = [pair for pair in zip(words, to, strict=True) if pair[0] != pair[1]]
    same = ", ".join(f"{word!r} taken as {one!r}" for word, one in others[:3])
    text = text.replace_strict(words, to, return_dtype=polars.String)
    return text, same + ", ..." * (len(others) > 3)


def _finite(table: Table, at: int, numbers: Series) -> np.ndarray:
    """The numbers, NaN for a blank. Raises DataError for an infinite one."""
    found = numbers.to_numpy()
    if (infinite := np.isinf(found)).any():
        row = int(infinite.argmax())
        raise DataError(f"{table.where(at, row)}: expected a finite number, got {found[row]}")
    return found


def _in_form(text: Series, kind: str, form: str) -> Series:
    """Text in this form as points in time in UTC, or as times of day; null where it is another."""
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


def _in_days(cells: Series, kind: str) -> np.ndarray:
    """Points in time as days since 1970-01-01, or times as fractions of a day."""
    since = cells if kind == TIME else cells.cast(polars.Datetime("us"))
    return (since.cast(polars.Int64) / (1000 * DAY if kind == TIME else DAY)).to_numpy()
