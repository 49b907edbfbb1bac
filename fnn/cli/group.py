"""The group of commands, and its answer to faults.

A command's module is imported when the command is used, so that `fnn --help` imports neither
JAX nor scikit-learn.
"""

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import click

from fnn import __version__, extras
from fnn.cli import signals

COMMANDS = {
    "describe": "Show how each column of SOURCE would be used, without training.",
    "train": "Train a network on SOURCE and measure it on held-out examples.",
    "predict": "Predict with the network in folder RUN and write one row per example.",
    "evaluate": "Measure the network in folder RUN on SOURCE.",
    "export": "Write the network in folder RUN to FILE, as a program for JAX that needs no fnn.",
    "explain": "Measure what each column of SOURCE is worth to the network in folder RUN.",
    "noise-scale": "Draw the gradient noise scale along a training run on SOURCE.",
    "hardest": "Show the examples of SOURCE whose gradients are largest after training.",
    "verify": "Check derivatives and update rules against independent references.",
}
"""Each command's name and summary. `noise-scale` is `noise_scale` in the module `noise_scale`."""


class Imported(Mapping[str, click.Command]):
    """The commands of these names; the lookup of one imports its module.

    >>> commands = Imported(["train", "verify"])
    >>> list(commands), "predict" in commands
    (['train', 'verify'], False)
    >>> commands["verify"].name
    'verify'
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __getitem__(self, name: str) -> click.Command:
        """The command. Raises KeyError for an unknown name, ValueError where JAX has no device."""
        if name not in self.names:
            raise KeyError(name)
        module = name.replace("-", "_")
        command: click.Command = getattr(import_module(f"fnn.cli.{module}"), module)
        if type(command) is click.Command:  # a Spread says first what devices there are
            import_module("fnn.cli.environment").check_device()
        signals.end_by_exception()
        return command

    def __contains__(self, name: object) -> bool:
        """Whether there is a command of this name; nothing is imported."""
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        """The names; nothing is imported."""
        return iter(self.names)

    def __len__(self) -> int:
        """The number of commands."""
        return len(self.names)


class Group(click.Group):
    """A group that lists its commands without importing them, and reports a fault in one line.

    >>> from click.testing import CliRunner
    >>> result = CliRunner().invoke(fnn, ["tran"])
    >>> result.exit_code, "Error: No such command 'tran'." in result.stderr
    (2, True)
    """

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help page's list of commands, from `COMMANDS` alone.

        >>> from click.testing import CliRunner
        >>> "  evaluate     Measure" in CliRunner().invoke(fnn, ["--help"]).output
        True
        """
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that the user named.

        An error that the library raises for the user's input, and a library that is not
        installed, end it with one line and exit code 1.

        >>> from click.testing import CliRunner
        >>> result = CliRunner().invoke(fnn, ["predict", "no/such/folder", "iris"])
        >>> result.exit_code, result.stderr
        (1, 'Error: no/such/folder/run.safetensors: there is no trained run\\n')
        """
        try:
            with extras.needs("cli"):
                return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:
            click.echo("Aborted!", err=True)
            raise SystemExit(signals.INTERRUPTED) from None
        except ModuleNotFoundError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from error
        except (ValueError, TypeError, ArithmeticError, MemoryError) as error:
            raise click.ClickException(" ".join(str(error).split())) from error
        except RuntimeError as error:
            jax = sys.modules.get("jax")
            if jax is None or not isinstance(error, jax.errors.JaxRuntimeError):
                raise
            raise click.ClickException(str(error).splitlines()[0]) from error


def _show_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    """Print the versions and the devices, and end the command."""
    if wanted:
        click.echo(f"fnn, version {__version__}")
        click.echo(import_module("fnn.cli.environment").described())
        ctx.exit()


@click.group(
    cls=Group,
    commands=Imported(list(COMMANDS)),
    context_settings={"show_default": True, "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the versions of fnn and JAX, and JAX's devices.",
)
def fnn() -> None:
    """Feed-forward neural networks in JAX, with hand-written backpropagation."""
