"""The forms in which the cells of a column are written."""

import re

from fnn.data.dataset import NUMBER

POINTS, DECIMAL, GROUPED = STYLES = "", "decimal commas", "commas between thousands"
"""How numbers are written: 1.5, 1,5 or 1,000.5."""
GAPS, MINUS, PARENTHESES, POWERS, PLUS = MARKS = (
    "gaps between thousands", "U+2212 as minus", "parentheses as minus",
    "K/M/B as powers of 1000", "+ after numbers left out",
)  # fmt: skip
"""What else may be written beside digits; the first two can't be misread."""
DATES = [
    "%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y", "%d %b %Y",
    "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y", "%m/%d/%y", "%d/%m/%y", "%d.%m.%y",
    "%d-%m-%y", "%d-%b-%y", "%d %b %y", "%Y-%m", "%Y%m%d", "%m%d%Y", "%d%m%Y",
]  # fmt: skip
TIMES = ["%H:%M:%S%.f", "%H:%M", "%I:%M %p", "%I:%M:%S %p"]
MOMENTS = [f"{day}{gap}{time}" for day in DATES[:17] for gap in " T" for time in TIMES]


def is_form(kind: str, form: str) -> bool:
    """Whether a column of this kind may be written in this form."""
    if kind != NUMBER:
        return form in ("", *DATES, *MOMENTS, *TIMES)
    known = (*STYLES, *MARKS)
    return all(each in known or re.fullmatch(r"in [^\s,]{1,16}", each) for each in form.split(", "))
