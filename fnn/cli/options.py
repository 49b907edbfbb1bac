"""Types of the commands' parameters: what a word on the command line may be."""

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


def of_table(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options for reading a table."""
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
            click.option("--drop", type=Names(), default=(), help="Columns to leave out: A,B."),
            click.option(
                "--keep",
                type=Names(),
                default=(),
                help="Columns to use though they look like row numbers, names or free text: A,B.",
            ),
            click.option(
                "--missing",
                type=Name(data.MISSING),
                default="fill",
                help="Blank cells: fill them in, beside an input that says so, or refuse them.",
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
