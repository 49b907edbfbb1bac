"""python -m benchmarks: run them, print their tables, keep tables, JSON and plots."""

import contextlib
import importlib
import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jax

from benchmarks import report
from benchmarks.compare import compare
from benchmarks.throughput import BATCHES, DTYPES, WIDTHS

PARTS = [
    "peers",
    "autodiff",
    "roofline",
    "throughput",
    "sweep",
    "compile",
    "growth",
    "watching",
    "streaming",
    "interconnect",
    "memory",
    "scale",
    "targets",
    "pods",
    "lines",
    "libraries",
    "per_example",
    "convolution",
    "attention",
    "verify",
    "tables",
    "ranks",
]
"""Each is a module of this package with run(quick) -> result, which prints its table and
returns what goes into its JSON file, and where there is something to see,
plot(result, folder), which draws it into PNG files."""


class Tee(io.StringIO):
    """What is printed to it appears on the screen too."""

    def write(self, text: str) -> int:
        """To both."""
        sys.__stdout__.write(text)
        sys.__stdout__.flush()
        return super().write(text)


class Sizes(click.ParamType):
    """Positive integers between commas, such as 128,512."""

    name = "n,n,..."

    def convert(self, value: Any, param: Any, context: Any) -> Any:
        """A tuple of them."""
        if isinstance(value, tuple):
            return value
        if not all(part.isdecimal() and int(part) for part in value.split(",")):
            self.fail(f"expected positive integers between commas, got {value!r}", param, context)
        return tuple(map(int, value.split(",")))


class Floats(click.ParamType):
    """Floating-point dtypes between commas."""

    name = "dtype,..."

    def convert(self, value: Any, param: Any, context: Any) -> Any:
        """A tuple of their names."""
        known = ("float16", "bfloat16", "float32", "float64")
        names = value if isinstance(value, tuple) else tuple(value.split(","))
        if not set(names) <= set(known):
            self.fail(f"expected some of {', '.join(known)}, got {value!r}", param, context)
        return names


def shown(sizes: tuple[int, ...]) -> str:
    """As they are given on the command line."""
    return ",".join(map(str, sizes))


def settings(command: Callable) -> Callable:
    """The options of all parts."""
    command = click.option(
        "--quick", is_flag=True, help="Fewer rounds and smaller cases: about 5 minutes for all."
    )(command)
    return click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path(__file__).parent / "results",
        show_default="benchmarks/results",
        help="Where the tables, the JSON files and the plots go.",
    )(command)


@click.group(chain=True, invoke_without_command=True)
@settings
@click.pass_context
def main(context: click.Context, quick: bool, out: Path) -> None:
    """Run the benchmarks that are named, or all of them; or compare what two runs have left."""
    # For `sweep`, which shards. A program of one device still has all the cores.
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    context.default_map = {name: {"quick": quick, "out": out} for name in PARTS}
    if context.invoked_subcommand is None:
        for name in PARTS:
            measure(name, quick, out)


def measure(name: str, quick: bool, out: Path, **sizes: Any) -> None:
    """Run one part, and keep what it printed and returned. sizes are the part's own."""
    part = importlib.import_module(f"benchmarks.{name}")
    click.secho(f"\n{name}: {part.__doc__.splitlines()[0]}", bold=True)
    start = time.perf_counter()
    printed = Tee()
    with contextlib.redirect_stdout(printed):
        result = part.run(quick, **sizes)
    path = report.save(name, {"quick": quick, **result}, out)
    path.with_suffix(".txt").write_text(printed.getvalue().lstrip())
    if hasattr(part, "plot"):
        part.plot(result, out)
    click.echo(f"{time.perf_counter() - start:.0f} s; kept in {path}")


@main.command("throughput")
@settings
@click.option("--widths", type=Sizes(), help=f"Of the layers; {shown(WIDTHS)} if not given.")
@click.option("--batches", type=Sizes(), help=f"Examples per step; {shown(BATCHES)} if not given.")
@click.option("--dtypes", type=Floats(), default=DTYPES, help="That the network computes in.")
def throughput(
    quick: bool,
    out: Path,
    widths: tuple[int, ...] | None,
    batches: tuple[int, ...] | None,
    dtypes: tuple[str, ...],
) -> None:
    """Train on this device, at these sizes."""
    measure("throughput", quick, out, widths=widths, batches=batches, dtypes=dtypes)


@main.command("tables")
@settings
@click.option(
    "--folder",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Where the CSV files of public tables are; without it, only bundled ones.",
)
def tables(quick: bool, out: Path, folder: Path | None) -> None:
    """Train on public tables, and beside it with scikit-learn."""
    measure("tables", quick, out, folder=folder)


def command(name: str) -> click.Command:
    """The command that runs this part, which has no options of its own."""

    @settings
    def run(quick: bool, out: Path) -> None:
        measure(name, quick, out)

    return click.command(name)(run)


for part in PARTS:
    if part not in main.commands:
        main.add_command(command(part))


@main.command("compare")
@click.argument("a", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("b", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def compare_files(a: Path, b: Path) -> None:
    """Set two JSON files of `throughput` side by side: machines, or versions."""
    try:
        click.echo(compare(a, b))
    except ValueError as error:
        raise click.UsageError(str(error)) from None


if __name__ == "__main__":
    main()
