"""The commands' options, and types of parameters: what a word on the command line may be."""

import codecs
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import jax

from fnn import data
from fnn.runs.settings import Settings


def checked(kind: Any, fits: Callable[[str, Any], bool], words: str) -> Any:
    """A type of parameter that also refuses a word, and what it becomes, if it does not fit."""

    class Checked(kind):
        """The type."""

        def convert(self, value: Any, param: Any, ctx: click.Context | None) -> Any:
            """What the word becomes."""
            found = super().convert(value, param, ctx)
            return found if fits(str(value), found) else self.fail(words.format(value), param, ctx)

    return Checked


plain = lambda word, x: "_" not in word and math.isfinite(x)  # Python takes 1_000
Whole = checked(click.IntRange, plain, "{!r} is not a whole number")
Number = checked(click.FloatRange, plain, "{!r} is not a finite number")
Place = checked(click.Path, lambda word, path: bool(word), "expected a path, got an empty word")
COUNT = Whole(min=1)
SEED = Whole(min=0, max=2**32 - 1)
RATE = Number(min=0, min_open=True)
SHARE = Number(min=0)
FILE = Place(dir_okay=False, path_type=Path)
FOLDER = Place(file_okay=False, path_type=Path)


class Name(click.Choice):
    """One of some names; for any other, the error suggests the closest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name."""
        if value not in self.choices:
            self.fail(f"{value!r} is unknown: {data.nearest(value, self.choices)}", param, ctx)
        return str(value)


def widths(value: str) -> tuple[int, ...]:
    """Whole numbers from 1 to 999999999, separated by commas; an empty word for no hidden layer."""
    parts = [part.strip() for part in value.split(",")] if value.strip() else []
    digits = all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts)
    if not digits or not all(map(int, parts)):
        raise click.BadParameter(f"{value!r} is not a list of widths such as 64,32")
    return tuple(int(part) for part in parts)


def names(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """Names of columns, separated by commas, each once."""
    parts = value if isinstance(value, tuple) else value.split(",")
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def separator(value: str) -> str:
    """What stands between the cells of a table, as a character or by its name."""
    named = {name.removesuffix("s"): mark for mark, name in data.SEPARATORS.items()}
    if (mark := named.get(value, value.replace("\\t", "\t"))) not in data.SEPARATORS:
        raise click.BadParameter(f"{value!r} is none of , ; | {' '.join(named)}")
    return mark


def encoding(value: str) -> str:
    """The name of an encoding of text that Python knows."""
    try:
        return codecs.lookup(value).name
    except LookupError:
        reason = f"{value!r} is no encoding that Python knows, as cp1252 is"
        raise click.BadParameter(reason) from None


def of_settings(rows: Sequence[tuple[str, Any, str | None, str]]) -> Callable[..., Any]:
    """What gives a command the options of a table: name, type, default in words, help. Their
    defaults are those of `Settings`."""

    def give(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, kind, shown, words in reversed(rows):
            default = Settings._field_defaults[name.partition("/")[0].replace("-", "_")]
            option = {"type": kind, "default": default, "show_default": shown, "help": words}
            command = click.option(f"--{name}", **option)(command)
        return command

    return give


of_table = of_settings((
    ("target", None, None, "Target column, by name or index from 0.  [default: the last]"),
    ("task", Name(data.TASKS), None, "Learn classes or values.  [default: by the target]"),
    ("drop", names, None, "Columns to leave out: A,B."),
    ("keep", names, None, "Columns to use though they look like row numbers, names or free text."),
    ("category", names, None, "Columns whose values are names, as zip codes are."),
    ("number", names, None, "Columns of numbers; other cells are taken as blank."),
    ("date", names, None, "Columns of dates; other cells are taken as blank."),
    ("text", names, None, "Columns of free text, of which words count."),
    ("id", names, None, "Columns that name the rows: not learned from, repeated by predictions."),
    ("group", names, None, "Columns, as of patients, whose equal values stay in one part."),
    ("time", None, None, "Column of times: the latest examples are held out."),
    ("missing", Name(data.MISSING), None, "Blank cells, and words such as n.d. beside numbers: "
     "fill them in, beside an input that says so, or refuse them."),
    ("separator", separator, None, "Comma, semicolon, tab or pipe.  [default: guessed]"),
    ("header/--no-header", None, None, "Whether there are names.  [default: guessed]"),
    ("skip", Whole(min=0), None, "Lines above a table's header.  [default: guessed]"),
    ("encoding", encoding, None, "Of text that is not UTF-8: cp1252.  [default: guessed]"),
    ("table", None, None, "Sheet of a workbook, or table or SELECT statement of a database."),
))  # fmt: skip
"""The options for reading a table."""


def settings_of(given: dict[str, Any]) -> Settings:
    """The settings that options give. Raises UsageError for those that contradict others."""
    settings = Settings(**given)
    rule = settings.optimizer
    if settings.weight_decay is not None and rule != "adamw":
        raise click.UsageError(f"--weight-decay applies only to --optimizer adamw, not to {rule}")
    return settings


def compute_on(ctx: click.Context, param: click.Parameter, chosen: str | None) -> None:
    """Make a device that JAX has, such as cpu, gpu or gpu:1, its default; None leaves the choice
    to JAX."""
    if chosen is None:
        return
    kind, _, number = chosen.partition(":")
    found = {}
    with suppress(RuntimeError):
        found = {str(i): device for i, device in enumerate(jax.devices(kind))}
    if (number or "0") not in found:
        there = ", ".join(f"{device.platform}:{i}" for i, device in enumerate(jax.devices()))
        raise click.BadParameter(f"{chosen!r} is no device; there are {there}", ctx, param)
    jax.config.update("jax_default_device", found[number or "0"])


DEVICE_HELP = "Where to compute: cpu, gpu, gpu:1, ...  [default: JAX's choice]"
device = click.option(
    "--device", metavar="DEVICE", expose_value=False, callback=compute_on, help=DEVICE_HELP
)


THRESHOLD = "Of two classes, predict the second where its probability is at least this."
chance = Number(min=0, max=1, min_open=True, max_open=True)
threshold = click.option("--threshold", type=chance, help=THRESHOLD)


def by_threshold(classes: Sequence[str], threshold: float) -> str:
    """What a threshold does, in words. Raises UsageError for other than two classes."""
    if len(classes) != 2:
        got = f"{len(classes)} classes" if classes else "values"
        raise click.UsageError(f"--threshold applies to a run of two classes, this one has {got}")
    return f"{classes[1]!r} is predicted where its probability is at least {threshold:g}"


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")


def warn(*lines: str) -> None:
    """Print warnings to stderr."""
    for line in lines:
        click.echo(f"Warning: {line}", err=True)
