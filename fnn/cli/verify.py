"""`fnn verify`: derivatives and update rules, checked."""

import sys

import click
import jax

from fnn.verify import cases


@click.command()
@click.argument("path", required=False, metavar="[PACKAGE.MODULE:NAME]")
def verify(path: str | None) -> None:
    """Check derivatives and update rules against independent references.

    Gradients are compared with autodiff in float64 and with finite differences, optimizers with
    the same rule in NumPy. Without an argument, everything that the library ships is checked.
    With one, it is a layer, a loss or an optimizer's constructor of yours, at the inputs that
    its module gives as NAME_inputs: (params, x), (prediction, target), or (rule, params). Exits
    with 0 if all pass, otherwise with 1. On a machine with a TPU, which has no float64, all of it
    runs on the CPU.
    """
    sys.path.insert(0, "")  # modules in the working directory
    if lacks_float64 := jax.default_backend() == "tpu":
        click.echo("on the CPU: a TPU has no float64")
    with jax.default_device(jax.devices("cpu")[0] if lacks_float64 else None):
        if path is not None:
            try:
                report = cases.named(path)
            except (ImportError, TypeError, ValueError) as error:
                raise click.UsageError(str(error)) from error
            click.echo(f"{path}\n{report}")
            raise SystemExit(report.verdict != "pass")
        verdicts = []
        row = "{:28}  {:12}  {:>8}  {:>8}  {:>11}".format
        click.echo(row("", "verdict", "float64", "native", "differences"))
        for name, report in cases.shipped():
            errors = ["-" if error is None else f"{error:.1e}" for error in report.errors]
            click.echo(row(name, report.verdict, *errors))
            if report.verdict != "pass":
                click.echo(report)
            verdicts.append(report.verdict)
    click.echo(f"{verdicts.count('pass')} of {len(verdicts)} pass")
    raise SystemExit(set(verdicts) != {"pass"})
