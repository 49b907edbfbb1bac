"""Types of the commands' parameters: what a word on the command line may be."""

import codecs
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jax

from fnn import data


class Whole(click.IntRange):
    """A whole number in digits, from `min` to `max`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        if "_" in str(value):  # Python's int takes 1_000
            self.fail(f"{value!r} is not a whole number", param, ctx)
        return super().convert(value, param, ctx)


class Number(click.FloatRange):
    """A finite number in a range, in digits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        number = super().convert(value, param, ctx)
        if "_" in str(value) or not math.isfinite(number):  # Python's float takes 1_000
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class Place(click.Path):
    """A path; an empty word, such as a shell variable that is not set, is refused."""

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(path_type=Path, file_okay=file_okay, dir_okay=dir_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        if not str(value):
            self.fail("expected a path, got an empty word", param, ctx)
        return super().convert(value, param, ctx)


COUNT = Whole(min=1)
SEED = Whole(min=0, max=2**32 - 1)
RATE = Number(min=0, min_open=True)
SHARE = Number(min=0)
FILE = Place(dir_okay=False)
FOLDER = Place(file_okay=False)


class Name(click.Choice):
    """One of some names; for any other, the error suggests the closest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name."""
        if value not in self.choices:
            self.fail(f"{value!r} is unknown: {data.nearest(value, self.choices)}", param, ctx)
        return str(value)


class Widths(click.ParamType):
    """Whole numbers from 1 to 999999999, separated by commas; an empty word for no hidden layer."""

    name = "widths"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The widths."""
        parts = [part.strip() for part in value.split(",")] if value.strip() else []
        digits = all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts)
        if not digits or not all(map(int, parts)):
            self.fail(f"{value!r} is not a list of widths such as 64,32", param, ctx)
        return tuple(int(part) for part in parts)


class Names(click.ParamType):
    """Names of columns, separated by commas."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """The names, each once."""
        parts = value if isinstance(value, tuple) else str(value).split(",")
        return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


class Separator(click.ParamType):
    """What stands between the cells of a table, as a character or by its name."""

    name = "separator"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The character."""
        named = {name.removesuffix("s"): mark for mark, name in data.SEPARATORS.items()}
        mark = named.get(value, value.replace("\\t", "\t"))
        if mark not in data.SEPARATORS:
            self.fail(f"{value!r} is none of , ; | {' '.join(named)}", param, ctx)
        return str(mark)


class Encoding(click.ParamType):
    """An encoding of text that Python knows."""

    name = "encoding"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Its name."""
        try:
            return codecs.lookup(value).name
        except LookupError:
            self.fail(f"{value!r} is no encoding that Python knows, as cp1252 is", param, ctx)


def of_table(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options for reading a table."""
    columns = (
        ("drop", "to leave out"),
        ("keep", "to use though they look like row numbers, names or free text"),
        ("category", "whose values are names, whatever they look like, as zip codes are"),
        ("number", "of numbers; what is none is taken as blank"),
        ("date", "of dates; what is none is taken as blank"),
        ("id", "that name the rows: predictions repeat them"),
        ("group", "whose equal values, such as a patient's, are not split: not learned from"),
    )
    named = [
        click.option(f"--{name}", type=Names(), default=(), help=f"Columns {what}: A,B.")
        for name, what in columns
    ]
    for option in reversed(
        (
            click.option(
                "--target",
                help="Target column of a table, by name or index from 0.  [default: the last]",
            ),
            click.option(
                "--task",
                type=Name(data.TASKS),
                help="Learn classes or values.  [default: by the target]",
            ),
            *named,
            click.option("--time", help="Column of times: the latest examples are held out."),
            click.option(
                "--missing",
                type=Name(data.MISSING),
                default="fill",
                help="Blank cells, and words such as n.d. beside numbers: fill them in, beside an "
                "input that says so, or refuse them.",
            ),
            click.option(
                "--separator",
                type=Separator(),
                help="Between a table's cells: comma, semicolon, tab or pipe.  [default: guessed]",
            ),
            click.option(
                "--header/--no-header",
                default=None,
                help="Whether a table's first line names its columns.  [default: guessed]",
            ),
            click.option(
                "--skip", type=Whole(min=0), help="Lines above the header.  [default: guessed]"
            ),
            click.option(
                "--encoding",
                type=Encoding(),
                help="Of text that is not UTF-8, such as cp1252.  [default: guessed]",
            ),
            click.option("--table", help="Sheet of a workbook, or table of a database."),
        )
    ):
        command = option(command)
    return command


class Device(click.ParamType):
    """A device that JAX has, such as cpu, gpu or gpu:1."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The device."""
        if not isinstance(value, str):
            return value
        kind, _, number = value.partition(":")
        try:
            found = {str(i): device for i, device in enumerate(jax.devices(kind))}
        except RuntimeError:
            found = {}
        if (number or "0") not in found:
            there = (f"{device.platform}:{i}" for i, device in enumerate(jax.devices()))
            self.fail(f"{value!r} is no device; there are {', '.join(there)}", param, ctx)
        return found[number or "0"]


def compute_on(ctx: click.Context, param: click.Parameter, chosen: Any) -> None:
    """Make the device JAX's default; None leaves the choice to JAX."""
    if chosen is not None:
        jax.config.update("jax_default_device", chosen)


DEVICE_HELP = "Where to compute: cpu, gpu, gpu:1, ...  [default: JAX's choice]"
device = click.option(
    "--device", type=Device(), expose_value=False, callback=compute_on, help=DEVICE_HELP
)
