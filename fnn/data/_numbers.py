"""Numbers as people write them: with decimal commas, separated thousands, currencies and units."""

import polars
from polars import DataFrame, Series, col

from fnn.data import _forms as forms
from fnn.data._forms import DECIMAL, GROUPED, MARKS, PLUS, POINTS, STYLES

COMMAS = r"^[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?([eE][+-]?\d+)?$"
THOUSANDS = r"^[+-]?\d{1,3}(,\d{3})+(\.\d+)?$"
CODES = "EUR|USD|GBP|CHF|JPY|CNY|INR|CAD|AUD|NZD|SEK|NOK|DKK|PLN|CZK|BRL|MXN|ZAR"
CURRENCY = rf"(?:[A-Z]{{0,3}}\p{{Sc}}|{CODES})"
UNIT = r"[%‰°\p{L}][%°\p{L}/.]{0,11}[23²³]?"
WRITTEN = (
    rf"^(?<open>\()?(?<sign>[+-])?(?<before>{CURRENCY})?\s*(?<minus>[+-])?"
    r"(?<digits>\d{1,3}(?:[ ']\d{3})+(?:[.,]\d+)?|[\d.,]+(?:[eE][+-]?\d+)?)"
    rf"\s*(?:(?<power>[KkMB])|(?<after>{CURRENCY}|{UNIT}))?(?<plus>\+)?(?<close>\))?$"
)


def as_numbers(text: Series, separator: str = ",", form: str | None = None) -> tuple[Series, str]:
    """Text as numbers, null where it is none, and their form: how they are written, in words.

    Where commas separate the cells, and in $1,234 and 1,234+, 1,234 is a thousand and more; beside
    another separator its comma is a decimal comma. A unit, or a + after numbers, belongs to the
    form if at least half of the numbers have it. Where a form is given, cells written in another
    are null.
    """
    plain = text.cast(polars.Float64, strict=False)
    if not form and plain.null_count() == text.null_count():
        return plain, POINTS
    parts = _parts(text)
    bare = parts["bare"].fill_null(text)
    if form is None:
        counts = parts[PLUS].any() or parts["unit"].is_in(["in $", "in £"]).any()
        styles = (POINTS, GROUPED, DECIMAL) if counts or separator == "," else STYLES
        style = max(styles, key=lambda style: _numbers(bare, style).count())
        known = _known(parts.filter(_numbers(bare, style).is_not_null()))
        form = ", ".join([style] * bool(style) + known)
    known = form.split(", ")
    style = next((style for style in STYLES[1:] if style in known), POINTS)
    numbers = _numbers(bare, style) * parts["factor"]
    for mark in (forms.PARENTHESES, forms.POWERS, PLUS):
        numbers = numbers if mark in known else numbers.set(parts[mark], None)
    numbers = numbers.set(~parts["unit"].fill_null("").is_in([*known, ""]), None)
    return numbers, form


def _known(parts: DataFrame) -> list[str]:
    """What the numbers of a column have in common, besides their style."""
    shares = {mark: parts[mark].sum() / max(1, len(parts)) for mark in MARKS}
    found = [mark for mark, share in shares.items() if share >= (0.5 if mark == PLUS else 1e-9)]
    units = parts["unit"].drop_nulls()
    return [*found, units.mode().sort()[0]] if 2 * len(units) >= max(1, len(parts)) else found


def _parts(text: Series) -> DataFrame:
    """Of each cell the digits, with their sign (bare), a factor, a unit and what else is written;
    bare is null for what is no number."""
    plain = text.str.replace_all("\u2212", "-").str.replace_all("[\u00a0\u202f\u2009]", " ")
    frame = plain.str.replace_all("\u2019", "'").str.extract_groups(WRITTEN).struct.unnest()
    open, close, power = (col(name).is_not_null() for name in ("open", "close", "power"))
    sign = polars.when(open).then(polars.lit("-")).otherwise(col("sign").fill_null(col("minus")))
    bare = sign.fill_null("") + col("digits").str.replace_all("[ ']", "")
    bare = polars.when(open == close).then(bare)
    unit = "in " + col("before").fill_null(col("after")).str.replace(r"^(.{2,})s$", "$1")
    factor = col("power").replace_strict({"K": 1e3, "k": 1e3, "M": 1e6, "B": 1e9}, default=1.0)
    marks: dict[str, polars.Expr | Series] = {
        forms.GAPS: col("digits").str.contains("[ ']").fill_null(False),
        forms.MINUS: text.str.contains("\u2212").fill_null(False),
        forms.PARENTHESES: open,
        forms.POWERS: power,
        PLUS: col("plus").is_not_null(),
    }
    return frame.select(bare=bare, unit=unit, factor=factor, **marks)


def _numbers(text: Series, style: str) -> Series:
    """Text as numbers in this style, null where it is none."""
    plain = text.cast(polars.Float64, strict=False)
    if style == POINTS:
        return plain
    marks, pattern = ((".", ","), COMMAS) if style == DECIMAL else ((",", "."), THOUSANDS)
    bare = text.str.replace_all(marks[0], "", literal=True).str.replace(marks[1], ".", literal=True)
    others = plain if style == GROUPED else plain.clear(len(plain))
    return bare.cast(polars.Float64, strict=False).zip_with(text.str.contains(pattern), others)
