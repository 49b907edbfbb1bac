"""What the cells of a column are: numbers, categories, dates or times of day."""

import re

import numpy as np
import polars
from polars import Series

from fnn.data import _numbers
from fnn.data._forms import DATES, MOMENTS, STYLES, TIMES
from fnn.data._tables import Table
from fnn.data.dataset import CATEGORY, DATE, NAMED, NUMBER, TEXT, TIME, Column
from fnn.data.errors import DataError

Found = tuple[Column, np.ndarray, str]
"""A column, its cells, and what was guessed."""
FEW = 20
"""At most this many different values are taken as classes, or as categories beside numbers."""
PLAIN = ["%Y-%m-%d", "%Y/%m/%d", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y"]
"""Dates that can be read in one way only: cells of a column in another form may have these."""
SPELT = {
    "%Y%m%d": (r"^((?:19|20)\d\d)(\d\d)(\d\d)$", "$1-$2-$3"),
    "%m%d%Y": (r"^(\d?\d)(\d\d)((?:19|20)\d\d)$", "$3-$1-$2"),
    "%d%m%Y": (r"^(\d?\d)(\d\d)((?:19|20)\d\d)$", "$3-$2-$1"),
}
"""Dates that are rewritten as year-month-day."""
LOOKS = (DATE, r"\d\d.*\d:\d\d", MOMENTS), (DATE, r"\d\d", DATES[:-3]), (TIME, r"\d:\d\d", TIMES)
"""What most cells of dates or times look like, and the forms to try on them, in order."""
DAY = 86_400_000_000
"""Microseconds."""
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


def parse_column(table: Table, at: int, like: Column | None, wanted: str | None) -> Found:
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
        return Column(NUMBER), finite(table, at, days.cast(polars.Float64)), ""
    if kind.is_nested() or kind in (polars.Binary, polars.Object):
        raise DataError(f"{table.where(at)}: expected numbers, text or dates, got {kind}")
    return _of_text(table, at, stripped(cells), like, wanted)


def _is_text(cells: Series, like: Column | None, wanted: str | None) -> bool:
    """Whether cells are understood from their text, as whole numbers that may be dates or codes
    are."""
    kind = cells.dtype
    if kind.is_integer() and wanted != NUMBER:
        low, high = (int(str(limit or 0)) for limit in (cells.min(), cells.max()))
        dates = like.kind == DATE if like else low >= 10**6 and high < 10**8
        return dates or max(-low, high) > int(LARGEST) or wanted is not None
    return wanted in NAMED or not (kind.is_numeric() or kind.is_temporal() or kind == polars.Null)


def _of_text(table: Table, at: int, text: Series, like: Column | None, wanted: str | None) -> Found:
    """`parse_column` of text."""
    clean, words = without_words(text)
    column, note = _decided(table, at, clean, bool(words), like, wanted)
    if column.kind in NAMED:
        if wanted == DATE and clean.count():
            raise DataError(f"{table.where(at)}: no dates, but cells such as {clean.max()!r}")
        hint = "" if like or wanted else _hint(table, at, clean)
        column, codes, note = _categories(table, at, text, TEXT if wanted == TEXT else CATEGORY)
        return column, codes, "; ".join(filter(None, [note, hint]))
    read, mixed = _read(table, clean, column)
    wrong = read.is_null() & clean.is_not_null()
    if (strays := int(wrong.sum())) and not wanted:
        raise _stray(table, at, clean, wrong, column, like)
    cells = finite(table, at, read) if column.kind == NUMBER else _in_days(read, column.kind)
    gone = " and ".join(filter(None, [words, f"{strays} other cells" * bool(strays)]))
    lost = gone and f"{table.called(at)}: {gone} taken as no value"
    return column, cells, "; ".join(filter(None, [", ".join(filter(None, [note, mixed])), lost]))


def _decided(
    table: Table, at: int, text: Series, words: bool, like: Column | None, wanted: str | None
) -> tuple[Column, str]:
    """What the column is and how it is written: as that of `like`, if that says so; else a guess,
    and what was guessed. words says whether there are any beside the text."""
    only_words = words and not text.count() and wanted is None
    known = like and (like.form or like.kind in (NUMBER, *NAMED))
    if known or only_words or wanted in NAMED:
        return like or Column(wanted or CATEGORY), ""
    column, note = _guess(table, at, text, wanted)
    return (like, "") if like and column.kind != like.kind else (column, note)


def _guess(table: Table, at: int, text: Series, wanted: str | None) -> tuple[Column, str]:
    """The kind and the form of text without words for nothing, and what was guessed of them."""
    compact = text.str.contains(r"^\d{7,8}$").all() and text.n_unique() > 3
    if compact and wanted != NUMBER and (form := _form(text, DATE, DATES[-3:])):
        return Column(DATE, (), form), _note(form)
    if wanted is None and are_codes(text):
        return Column(CATEGORY), ""
    numbers, form = _numbers.as_numbers(text, table.separator)
    if wanted == NUMBER or (not wanted and _are_numbers(text, numbers)):
        note = form if form in STYLES else f"{table.called(at)}: numbers, {form}"
        return Column(NUMBER, (), form), note
    some = text.drop_nulls().head(100)
    for kind, looks, forms in LOOKS:
        many = wanted or 10 * int(some.str.contains(looks).sum()) >= 8 * len(some)
        if many and (form := _form(text, kind, forms)):
            return Column(kind, (), form), _note(form)
    return Column(CATEGORY), ""


def _read(table: Table, text: Series, column: Column) -> tuple[Series, str]:
    """Text as numbers, or as dates or times: in the column's form, or in another that can be read
    in one way only; and a note of these."""
    if column.kind == NUMBER:
        return _numbers.as_numbers(_as_bits(text), table.separator, column.form)[0], ""
    found = first = _in_form(text, column.kind, column.form or DATES[0])
    others = (*PLAIN, *(f"{PLAIN[0]}{gap}{time}" for gap in " T" for time in TIMES[:2]))
    for other in others if column.kind == DATE and column.form else ():
        found = found.fill_null(_in_form(text.set(found.is_not_null(), None), DATE, other))
    return found, "dates in several forms" * (found.null_count() < first.null_count())


def _are_numbers(text: Series, numbers: Series) -> bool:
    """Whether text is numbers but for a twentieth at most, unless its values are few."""
    n, strays = text.count(), text.count() - numbers.count()
    rare = strays <= min(max(1, n // 20), n - strays)
    return not strays or (rare and text.n_unique() > min(FEW, n // 2))


def without_words(text: Series) -> tuple[Series, str]:
    """Text with null for what people write where there is no number, and these words."""
    if not (words := text.str.contains(NOTHING).fill_null(False)).any():
        return text, ""
    some = [repr(word) for word in text.filter(words).unique().sort()]
    return text.set(words, None), ", ".join(some[:3] + ["..."] * (len(some) > 3))


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
    if not n or are_codes(text) or 2 * there < n or found.n_unique() <= min(FEW, n // 2):
        return ""
    word = text.filter(found.is_null() & text.is_not_null())[0]
    way = f"--number {table.option(at)} takes such cells as no value"
    return f"{table.called(at)}: {there} of {n} cells are numbers, but {word!r}; categories; {way}"


def _stray(
    table: Table, at: int, text: Series, wrong: Series, column: Column, like: Column | None
) -> DataError:
    """The error for the first cell that can't be read as most of its column, or as in training."""
    row, kind, name = int(wrong.arg_max() or 0), column.kind, table.option(at)
    blank = f"--{kind} {name} takes such cells as no value, " if kind != TIME else ""
    why = f", as most cells of the column are; correct it, or {blank}--category {name} all as text"
    if like:
        form = like.form and f" written {'with' if kind == NUMBER else 'as'} {like.form}"
        why = f"{form}, as in training"
    return DataError(f"{table.where(at, row)}: {text[row]!r} is not a {kind}{why}")


def _form(text: Series, kind: str, forms: list[str]) -> str:
    """The one of these forms in which most of text is, as dates or times of day; "" for none."""
    head = text.drop_nulls().head(20)
    likely = [f for f in forms if 2 * _in_form(head, kind, f).count() >= len(head) > 0]
    read = {form: _in_form(text, kind, form).count() for form in likely}
    best = max(likely, key=read.__getitem__, default="")
    return best if best and text.count() - read[best] <= text.count() // 2 else ""


def _note(form: str) -> str:
    """What was guessed of dates, in words, or ""."""
    names = {"%m": "month", "%d": "day", "%Y": "year", "%y": "year", "%b": "month"}
    gap = "" if form in DATES[-3:] else "/"
    order = gap.join(names[mark] for mark in re.findall("%[mdYyb]", form))
    notes = {
        f"dates as {order}": not gap or "%y" in form or form[:8] in ("%m/%d/%Y", "%d/%m/%Y"),
        "two-digit years from 1970 to 2069": "%y" in form,
    }
    return ", ".join(note for note, said in notes.items() if said)


def stripped(cells: Series) -> Series:
    """Text without the spaces around it; null for what stands for no value."""
    text = cells.cast(polars.String).str.strip_chars()
    blank = text.is_in(list(BLANKS))
    return text.set(blank.fill_null(True), None) if blank.any() else text


def _as_bits(text: Series) -> Series:
    """Text that is all true or false as 1 and 0."""
    bits, lower = {"true": "1", "false": "0"}, text.str.to_lowercase()
    return lower.replace(bits) if lower.is_in(list(bits)).all() else text


def _categories(table: Table, at: int, text: Series, kind: str) -> Found:
    """Text as categories, or as free text."""
    text, same = (text, "") if kind == TEXT else one_spelling(text)
    values = tuple(text.drop_nulls().unique().sort())
    codes = text.cast(polars.Enum(values)).to_physical().cast(polars.Float64)
    return Column(kind, values), codes.to_numpy(), same and f"{table.called(at)}: {same}"


def one_spelling(text: Series) -> tuple[Series, str]:
    """Words that differ only in their capitals in the most frequent spelling, and which they are;
    single letters stay as they are."""
    counts = text.drop_nulls().value_counts(name="n")
    words = counts.sort("n", text.name, descending=[True, False])[text.name]
    pairs = [(word.lower() if len(word) > 1 else word, word) for word in words]
    spelt = dict(reversed(pairs))
    others = {word: spelt[lower] for lower, word in pairs if spelt[lower] != word}
    said = [f"{word!r} taken as {one!r}" for word, one in others.items()]
    return text.replace(others), ", ".join(said[:3] + ["..."] * (len(said) > 3))


def finite(table: Table, at: int, numbers: Series) -> np.ndarray:
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
    if "%H" in form:  # with an offset from UTC, or in UTC
        plain = text.str.replace("Z$", "")
        text = plain.zip_with(plain.str.contains(r":\d\d.*[+-]\d\d(:?\d\d)?$"), plain + "+00:00")
        form += "%#z"
    read = text.str.to_datetime(form, strict=False, time_unit="us", time_zone="UTC")
    found = read.dt.replace_time_zone(None)
    return found.set(found.dt.year() < 1000, None)  # 20 is no year


def _in_days(cells: Series, kind: str) -> np.ndarray:
    """Points in time as days since 1970-01-01, or times as fractions of a day."""
    since = cells if kind == TIME else cells.cast(polars.Datetime("us"))
    return (since.cast(polars.Int64) / (1000 * DAY if kind == TIME else DAY)).to_numpy()
