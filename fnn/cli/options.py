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


OF_TABLE: tuple[tuple[str, Any, Any, str], ...] = (
    ("target", None, None, "Target column, by name or index from 0.  [default: the last]"),
    ("task", Name(data.TASKS), None, "Learn classes or values.  [default: by the target]"),
    ("drop", Names(), (), "Columns to leave out: A,B."),
    ("keep", Names(), (), "Columns to use though they look like row numbers, names or free text."),
    ("category", Names(), (), "Columns whose values are names, as zip codes are."),
    ("number", Names(), (), "Columns of numbers; other cells are taken as blank."),
    ("date", Names(), (), "Columns of dates; other cells are taken as blank."),
    ("id", Names(), (), "Columns that name the rows: not learned from, repeated by predictions."),
    ("group", Names(), (), "Columns, as of patients, whose equal values stay in one part."),
    ("time", None, None, "Column of times: the latest examples are held out."),
    (
        "missing", Name(data.MISSING), "fill",
        "Blank cells, and words such as n.d. beside numbers: fill them in, beside an input that "
        "says so, or refuse them.",
    ),
    ("separator", Separator(), None, "Comma, semicolon, tab or pipe.  [default: guessed]"),
    ("header/--no-header", None, None, "Whether there are names.  [default: guessed]"),
    ("skip", Whole(min=0), None, "Lines above a table's header.  [default: guessed]"),
    ("encoding", Encoding(), None, "Of text that is not UTF-8: cp1252.  [default: guessed]"),
    ("table", None, None, "Sheet of a workbook, or table of a database."),
)  # fmt: skip
"""The options for reading a table: name, type, default, help."""


def of_table(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options for reading a table."""
    for name, kind, default, words in reversed(OF_TABLE):
        command = click.option(f"--{name}", type=kind, default=default, help=words)(command)
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
