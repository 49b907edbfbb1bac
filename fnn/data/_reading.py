"""How a table is read, where that is not guessed."""

from typing import NamedTuple

from fnn.data.dataset import CATEGORY, DATE, NUMBER, TEXT


class Reading(NamedTuple):
    """How a table is read, where that is not guessed.

    separator stands between the cells of a text file, and header says whether it has one; None
    guesses. With missing "error" a blank cell is an error, with "fill" NaN. encoding is that of a
    text file, skip the number of lines above its header or its first row, and table names a sheet
    of a workbook or a table of a database, or is a SELECT statement for this.

    The others name columns. drop are not read. category, number, date and text are read as that;
    what is no number, or no date, is a blank. id name the rows: predictions repeat them, and
    nothing is learned from them. Nor is it from group, whose equal values `split` keeps on one
    side; time is what it cuts the examples by, the later ones held out.

    >>> Reading(drop=("name",)).missing
    'fill'
    """

    separator: str | None = None
    header: bool | None = None
    missing: str = "fill"
    drop: tuple[str, ...] = ()
    encoding: str | None = None
    skip: int | None = None
    table: str | None = None
    category: tuple[str, ...] = ()
    number: tuple[str, ...] = ()
    date: tuple[str, ...] = ()
    id: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    time: str | None = None
    text: tuple[str, ...] = ()

    def kind_of(self, name: str) -> str | None:
        """The kind that a column is to be read as; None where that is guessed.

        >>> Reading(category=("zip",)).kind_of("zip")
        'category'
        """
        kinds = {CATEGORY: self.category, NUMBER: self.number, DATE: self.date, TEXT: self.text}
        return next((kind for kind, names in kinds.items() if name in names), None)

    def columns(self) -> set[str]:
        """The columns that are named. Raises TypeError for a word in place of a tuple.

        >>> sorted(Reading(drop=("name",), time="when").columns())
        ['name', 'when']
        """
        named = [names for field, names in self._asdict().items() if field in COLUMNS]
        if any(isinstance(names, str) for names in named):
            raise TypeError(f"reading: expected tuples of names, got {self}")
        return {name for names in named for name in names} | {self.time or ""} - {""}


COLUMNS = ("drop", "category", "number", "date", "text", "id", "group")
"""The fields that name several columns."""
GUESS = Reading()
