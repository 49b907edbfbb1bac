"""Types of the commands' parameters: what a word on the command line may be."""

from pathlib import Path
from typing import Any

import click

from fnn import data

COUNT = click.IntRange(min=1)
SEED = click.IntRange(0, 2**32 - 1)


class Place(click.Path):
    """A path; an empty word, such as a shell variable that is not set, is refused.

    >>> Place()("runs/a")
    PosixPath('runs/a')
    >>> Place()("")
    Traceback (most recent call last):
    click.exceptions.BadParameter: expected a path, got an empty word
    """

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(path_type=Path, file_okay=file_okay, dir_okay=dir_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path.

        >>> Place().convert("a.csv", None, None)
        PosixPath('a.csv')
        """
        if not str(value):
            self.fail("expected a path, got an empty word", param, ctx)
        return super().convert(value, param, ctx)


FILE = Place(dir_okay=False)
FOLDER = Place(file_okay=False)


class Name(click.Choice):
    """One of some names; for any other, the error suggests the closest.

    >>> Name(["sgd", "adam"])("adam")
    'adam'
    >>> Name(["sgd", "adam"])("adm")
    Traceback (most recent call last):
    click.exceptions.BadParameter: 'adm' is unknown: did you mean 'adam'?
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name.

        >>> Name(["sgd", "adam"]).convert("sgd", None, None)
        'sgd'
        """
        if value not in self.choices:
            self.fail(f"{value!r} is unknown: {data.nearest(value, self.choices)}", param, ctx)
        return str(value)


class Widths(click.ParamType):
    """Whole numbers of at least 1, separated by commas; an empty word for no hidden layer.

    >>> Widths()("64,32"), Widths()("")
    ((64, 32), ())
    """

    name = "widths"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The widths.

        >>> Widths().convert("64, x", None, None)
        Traceback (most recent call last):
        click.exceptions.BadParameter: '64, x' is not a list of widths such as 64,32
        """
        parts = [part.strip() for part in value.split(",")] if value.strip() else []
        if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a list of widths such as 64,32", param, ctx)
        return tuple(int(part) for part in parts)


class Rate(click.ParamType):
    """A finite number above 0.

    >>> Rate()("1e-3")
    0.001
    """

    name = "rate"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The rate.

        >>> Rate().convert("-1", None, None)
        Traceback (most recent call last):
        click.exceptions.BadParameter: '-1' is not a number above 0
        """
        try:
            rate = float(value)
        except ValueError:
            rate = float("nan")
        if not 0 < rate < float("inf"):
            self.fail(f"{value!r} is not a number above 0", param, ctx)
        return rate
