"""python -m benchmarks: run them, print their tables, keep tables, JSON and plots."""

import contextlib
import importlib
import io
import os
import sys
import time
from pathlib import Path

import click
import jax

from benchmarks import report

PARTS = [
    "peers",
    "autodiff",
    "roofline",
    "sweep",
    "compile",
    "growth",
    "watching",
    "memory",
    "lines",
    "libraries",
    "per_example",
    "convolution",
    "verify",
    "tables",
]
"""Each is a module of this package with run(quick) -> result, for `tables` run(quick, folder),
which prints its table and returns what goes into its JSON file, and where there is something to
see, plot(result, folder), which draws it into PNG files."""


class Tee(io.StringIO):
    """What is printed to it appears on the screen too."""

    def write(self, text: str) -> int:
        """To both."""
        sys.__stdout__.write(text)
        sys.__stdout__.flush()
        return super().write(text)


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--quick", is_flag=True, help="Fewer rounds and smaller cases: about 5 minutes.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent / "results",
    show_default="benchmarks/results",
    help="Where the tables, the JSON files and the plots go.",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Where the CSV files for `tables` are.",
)
def main(parts: tuple[str, ...], quick: bool, out: Path, folder: Path | None) -> None:
    """Run the benchmarks named by PARTS, or all of them."""
    # For `sweep`, which shards. A program of one device still has all the cores.
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    for name in parts or PARTS:
        part = importlib.import_module(f"benchmarks.{name}")
        click.secho(f"\n{name}: {part.__doc__.splitlines()[0]}", bold=True)
        start = time.perf_counter()
        printed = Tee()
        with contextlib.redirect_stdout(printed):
            result = part.run(quick, folder) if name == "tables" else part.run(quick)
        path = report.save(name, {"quick": quick, **result}, out)
        path.with_suffix(".txt").write_text(printed.getvalue().lstrip())
        if hasattr(part, "plot"):
            part.plot(result, out)
        click.echo(f"{time.perf_counter() - start:.0f} s; kept in {path}")


if __name__ == "__main__":
    main()
