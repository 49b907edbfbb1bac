"""Types of the commands' parameters: what a word on the command line may be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jax

from fnn import data


class Whole(click.IntRange):
    """A whole number in digits, from `min` to `max`.

    >>> Whole(min=1)("12")
    12
    >>> Whole(min=1)("1_2")
    Traceback (most recent call last):
    click.exceptions.BadParameter: '1_2' is not a whole number
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number.

        >>> Whole(min=1).convert("7", None, None)
        7
        """
        if "_" in str(value):  # Python's int takes 1_000
            self.fail(f"{value!r} is not a whole number", param, ctx)
        return super().convert(value, param, ctx)


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


COUNT = Whole(min=1)
SEED = Whole(min=0, max=2**32 - 1)
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
    """Whole numbers of at least 1 and at most nine digits, separated by commas; an empty word for
    no hidden layer.

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
        digits = all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts)
        if not digits or not all(map(int, parts)):
            self.fail(f"{value!r} is not a list of widths such as 64,32", param, ctx)
        return tuple(int(part) for part in parts)


class Names(click.ParamType):
    """Names of columns, separated by commas.

    >>> Names()("name, age")
    ('name', 'age')
    """

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """The names, each once.

        >>> Names().convert("age,,age", None, None)
        ('age',)
        """
        parts = value if isinstance(value, tuple) else str(value).split(",")
        return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


class Separator(click.ParamType):
    """What stands between the cells of a table, as a character or by its name.

    >>> Separator()("tab"), Separator()(";")
    ('\\t', ';')
    >>> Separator()("x")
    Traceback (most recent call last):
    click.exceptions.BadParameter: 'x' is none of , ; | comma semicolon tab pipe
    """

    name = "separator"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The character.

        >>> Separator().convert("pipe", None, None)
        '|'
        """
        named = {name.removesuffix("s"): mark for mark, name in data.SEPARATORS.items()}
        mark = named.get(value, value.replace("\\t", "\t"))
        if mark not in data.SEPARATORS:
            self.fail(f"{value!r} is none of , ; | {' '.join(named)}", param, ctx)
        return str(mark)


target = click.option(
    "--target", help="Target column of a table, by name or index from 0.  [default: the last]"
)


def of_table(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with the options that say how a table is read.

    >>> show = click.command("show")(of_table(lambda missing, **others: click.echo(missing)))
    >>> show.main(["--missing", "error"], standalone_mode=False)
    error
    """
    for option in reversed(
        (
            target,
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
    """A device that JAX has, such as cpu, gpu or gpu:1.

    >>> Device()("cpu").platform
    'cpu'
    """

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The device.

        >>> Device().convert("abacus", None, None)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        click.exceptions.BadParameter: 'abacus' is no device; there are cpu:0...
        """
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
    """Make this device JAX's default; None leaves the choice to JAX.

    >>> compute_on(click.Context(click.Command("train")), click.Option(["--device"]), None)
    """
    if chosen is not None:
        jax.config.update("jax_default_device", chosen)


DEVICE_HELP = "Where to compute: cpu, gpu, gpu:1, ...  [default: JAX's choice]"
device = click.option(
    "--device", type=Device(), expose_value=False, callback=compute_on, help=DEVICE_HELP
)


class Number(click.ParamType):
    """A finite number above 0, or with `zero` of at least 0.

    >>> Number()("1e-3"), Number(zero=True)("0")
    (0.001, 0.0)
    """

    name = "number"

    def __init__(self, *, zero: bool = False) -> None:
        self.zero = zero

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number.

        >>> Number().convert("-1", None, None)
        Traceback (most recent call last):
        click.exceptions.BadParameter: '-1' is not a number above 0
        """
        try:
            number = float("nan" if "_" in str(value) else value)  # Python's float takes 1_000
        except ValueError:
            number = float("nan")
        if not (0 < number < float("inf") or (self.zero and number == 0)):
            self.fail(f"{value!r} is not a number {self.range}", param, ctx)
        return number

    @property
    def range(self) -> str:
        """The numbers that are taken, in words.

        >>> Number(zero=True).range
        'of at least 0'
        """
        return "of at least 0" if self.zero else "above 0"
