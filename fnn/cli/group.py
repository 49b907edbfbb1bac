"""The group of commands, and its error handling.

A command's module is imported when the command is used, so that `fnn --help` imports neither
JAX nor scikit-learn.
"""

import sys
import tempfile
import traceback
from importlib import import_module
from typing import Any, NoReturn

import click

from fnn import __version__, extras
from fnn.cli import signals
from fnn.errors import Error

COMMANDS = {
    "describe": "Show how each column of SOURCE would be used, without training.",
    "train": "Train a network on SOURCE and measure it on held-out examples.",
    "plan": "Compile training on SOURCE for a GPU or a TPU that need not be there.",
    "predict": "Predict with the network in folder RUN and write one row per example.",
    "evaluate": "Measure the network in folder RUN on SOURCE.",
    "export": "Write the network in folder RUN to FILE, as a program for JAX that needs no fnn.",
    "explain": "Measure what each column of SOURCE is worth to the network in folder RUN.",
    "verify": "Check derivatives and update rules against independent references.",
}
"""Each command's name and summary. `train` is `train` in the module `train`."""
FAULT = 70
"""The exit code of a fault of fnn: EX_SOFTWARE of BSD."""
FLAG: Any = {"is_flag": True, "expose_value": False, "show_default": False}
remember = lambda ctx, param, on: ctx.meta.update({param.name: on})
TRACEBACK = "Print the traceback of a fault of fnn."
DEBUG = click.Option(["--debug"], **FLAG, callback=remember, help=TRACEBACK)
VERSION = "Show the versions of fnn and JAX, and JAX's devices."


class Group(click.Group):
    """A group that lists its commands without importing them, and reports each error in a line.

    An error of the user's input or of the machine ends the command with exit code 1; anything
    else is a fault of fnn, which ends it with `FAULT`.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names; nothing is imported."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command, its module imported and JAX set for it; None for an unknown name. Raises
        Error where JAX has no device."""
        if name not in COMMANDS:
            return super().get_command(ctx, name)
        command: click.Command = getattr(import_module(f"fnn.cli.{name}"), name)
        if DEBUG not in command.params:
            command.params.append(DEBUG)
        environment = import_module("fnn.cli.environment")
        environment.settle()
        if type(command) is click.Command:  # a Spread says first what devices there are
            environment.check_device()
        signals.end_by_exception()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help page's list of commands, from `COMMANDS` only."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that the user named."""
        try:
            with extras.needs("cli"):
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.echo("Aborted!", err=True)
            raise SystemExit(signals.INTERRUPTED) from None
        except Exception as error:
            if (line := _explained(error)) is None:
                _report_fault(error, ctx.meta.get(DEBUG.name, False))
            raise click.ClickException(line) from error


def _explained(error: Exception) -> str | None:
    """What to say of an error of the user's input or of the machine; None for a fault of fnn."""
    if isinstance(error, Error):
        return " ".join(str(error).split())
    if isinstance(error, OSError):
        return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
    if isinstance(error, MemoryError):
        return f"out of memory: {error}".removesuffix(": ")
    if type(error).__name__ == "JaxRuntimeError":  # without importing JAX
        return str(error).splitlines()[0]
    return None


def _report_fault(error: Exception, debug: bool) -> NoReturn:
    """Say that this is a fault of fnn, write its traceback to a file or with debug print it, and
    end the command."""
    text = "".join(traceback.format_exception(error))
    where = "here is its traceback; please report it"
    try:
        if not debug:
            handle, path = tempfile.mkstemp(".txt", "fnn-fault-")
            with open(handle, "w", errors="backslashreplace") as file:
                file.write(f"fnn {__version__}: {' '.join(sys.argv)}\n{text}")
            where = f"its traceback is in {path}; please report it, --debug prints it"
    except OSError:
        debug = True
    name = type(error).__name__ + "".join(f" ({line})" for line in str(error).splitlines()[:1])
    click.echo(f"{text * debug}Error: a fault of fnn, {name}: {where}", err=True)
    raise SystemExit(FAULT) from error


def _show_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    """Print the versions and the devices, and end the command."""
    if wanted:
        click.echo(f"fnn, version {__version__}")
        click.echo(import_module("fnn.cli.environment").described())
        ctx.exit()


@click.group(cls=Group, context_settings={"show_default": True, "max_content_width": 100})
@click.option("--version", **FLAG, is_eager=True, callback=_show_version, help=VERSION)
def fnn() -> None:
    """Feed-forward neural networks in JAX, with hand-written backpropagation."""
