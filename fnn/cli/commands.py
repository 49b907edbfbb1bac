"""The `fnn` command: train a network from the shell, and use it."""

import csv
import io
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
from click.core import ParameterSource
from tqdm import tqdm

from fnn import atomic, data, losses, optimizers, per_example, verify
from fnn.backprop import objective, value_and_grad
from fnn.base import Layer, Params
from fnn.catalog import ACTIVATIONS, OPTIMIZERS
from fnn.cli import plots, runs
from fnn.cli.runs import Run, Settings
from fnn.fitting import DivergedError, fit
from fnn.models import mlp
from fnn.verify import shipped


class Commands(click.Group):
    """A group whose commands answer every fault of their input with one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what the library raises for its input ends it with a message."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from error
        except (ValueError, TypeError, ArithmeticError, MemoryError) as error:
            raise click.ClickException(" ".join(str(error).split())) from error
        except jax.errors.JaxRuntimeError as error:
            raise click.ClickException(str(error).splitlines()[0]) from error


class Name(click.Choice):
    """One of some names; for another, the nearest is suggested."""

    def convert(self, value, param, ctx):
        """The name."""
        if value not in self.choices:
            self.fail(f"{value!r} is unknown: {data.nearest(value, self.choices)}", param, ctx)
        return value


class Widths(click.ParamType):
    """Whole numbers of at least 1, with commas between; nothing for no hidden layer."""

    name = "widths"

    def convert(self, value, param, ctx):
        """The widths as a tuple."""
        parts = [part.strip() for part in value.split(",")] if value.strip() else []
        if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a list of widths such as 64,32", param, ctx)
        return tuple(int(part) for part in parts)


class Rate(click.ParamType):
    """A finite number above 0."""

    name = "rate"

    def convert(self, value, param, ctx):
        """The rate as a float."""
        try:
            rate = float(value)
        except ValueError:
            rate = float("nan")
        if not 0 < rate < float("inf"):
            self.fail(f"{value!r} is not a number above 0", param, ctx)
        return rate


FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group(cls=Commands, context_settings={"show_default": True, "max_content_width": 100})
@click.version_option(package_name="fnn")
def fnn() -> None:
    """Feed-forward neural networks in JAX, with hand-written backpropagation."""


@fnn.command()
@click.argument("source", nargs=-1, required=True)
@click.option("--hidden", type=Widths(), default="256", help="Widths of the hidden layers.")
@click.option(
    "--activation",
    type=Name(list(ACTIVATIONS)),
    default="relu",
    help="Activation of the hidden layers.",
)
@click.option("--optimizer", type=Name(list(OPTIMIZERS)), default="adam", help="Update rule.")
@click.option("--learning-rate", type=Rate(), default="0.001", help="Step size of the update rule.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    help="Examples in a step: 1 is stochastic, all is full-batch gradient descent.",
)
@click.option(
    "--epochs", type=click.IntRange(min=1), default=40, help="How often each example is used."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    help="Decides the split, the first weights and the order of the examples.",
)
@click.option(
    "--patience",
    type=click.IntRange(min=1),
    help="Keep a fifth of the training part for validation, stop after so many epochs in a row "
    "that did not lower its loss, and keep the best epoch's network.",
)
@click.option(
    "--target", help="Target column of a CSV file, by name or index from 0.  [default: the last]"
)
@click.option(
    "--task", type=Name(data.TASKS), help="Learn classes or values.  [default: by the target]"
)
@click.option(
    "--out",
    type=FOLDER,
    show_default="runs/SOURCE",
    help="Folder for the run, the history and the picture.",
)
@click.option(
    "--resume", is_flag=True, help="Go on with the run in the folder, if there is one there."
)
@click.option(
    "--save-every",
    type=click.FloatRange(min=0),
    default=1.0,
    help="Seconds between saves while training; at 0, after each epoch.",
)
@click.pass_context
def train(
    ctx: click.Context,
    source: tuple[str, ...],
    out: Path | None,
    resume: bool,
    save_every: float,
    hidden: tuple[int, ...],
    activation: str,
    optimizer: str,
    learning_rate: float,
    batch_size: int,
    epochs: int,
    seed: int,
    patience: int | None,
    target: str | None,
    task: str | None,
) -> None:
    """Train a multi-layer perceptron on SOURCE and measure it on examples held out.

    SOURCE is a bundled set (digits, iris, wine, breast_cancer, diabetes), a CSV file, a .npz
    file with x and y, two files x.npy y.npy, or a folder of IDX files such as MNIST's.

    Classes are learned with softmax cross-entropy, values with the mean squared error. A fifth
    of the examples is held out, with each class's share, unless the source has a test part.
    Inputs, and values to predict, are standardised by the training part. The run is saved as it
    goes; Ctrl-C ends it at the epoch's end, and --resume goes on as if it had never stopped.
    """
    given = Settings(
        hidden,
        activation,
        optimizer,
        learning_rate,
        batch_size,
        epochs,
        seed,
        patience,
        target,
        task,
    )
    name = Path(source[0]).resolve().name.removesuffix(".gz")
    out = out or Path("runs") / Path(name).stem
    earlier = runs.load(out) if resume and (out / runs.FILE).exists() else None
    settings = given if earlier is None else _same_settings(ctx, given, earlier.settings, out)
    run, examples = runs.prepare(source, settings)
    if settings.batch_size > len(examples.train.x):
        raise click.UsageError(
            f"--batch-size {settings.batch_size} is larger than the {len(examples.train.x)} "
            "examples to train on"
        )
    if earlier is not None:
        if earlier.digest != run.digest:
            raise click.ClickException(f"{out} was trained on other data than {' '.join(source)}")
        run = earlier._replace(settings=settings)
    _show_plan(" ".join(source), run, examples)
    with atomic.owned(out):
        runs.check_room(out, run)
        run, times, stopped = _train(run, examples, out, save_every)
        if not run.progress.history:
            raise click.ClickException("stopped before the first epoch's end: nothing to save")
        runs.save(out, run)
        runs.report(out, run, f"{' '.join(source)}, {'-'.join(map(str, run.sizes))}")
    click.echo(f"saved     {out}: {runs.FILE}, history.csv, curves.png")
    if len(times) > 1:
        rate = len(examples.train.x) * (len(times) - 1) / (times[-1] - times[0])
        click.echo(f"examples per second {rate:.0f} (after the first epoch, evaluation included)")
    _show_metrics("test ", run, runs.evaluate(run, examples.test))
    if stopped:
        raise SystemExit(128 + stopped)


@fnn.command()
@click.argument("run", type=FOLDER)
@click.argument("source")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    show_default="standard output",
    help="CSV file for the predictions.",
)
def predict(run: Path, source: str, out: Path | None) -> None:
    """Predict with the network in folder RUN, and write a line of CSV for each example.

    For classes: the class and each class's probability; for values: the values, in their own
    units. SOURCE is as for training, without the targets: of a CSV file with a header, the
    columns that the network was trained on are taken.
    """
    trained = runs.load(run)
    x = data.inputs(source, len(trained.inputs.mean), trained.features)
    prediction = runs.predict(trained, x)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if trained.classes:
        writer.writerow(["class", *(f"probability {name}" for name in trained.classes)])
        likeliest = prediction.argmax(-1)
        writer.writerows(
            [trained.classes[i], *map(str, row)]
            for i, row in zip(likeliest, prediction, strict=True)
        )
    else:
        k = prediction.shape[-1]
        writer.writerow(
            trained.targets or (["value"] if k == 1 else [f"value {i}" for i in range(k)])
        )
        writer.writerows(map(str, row) for row in prediction)
    if out is None:
        click.echo(text.getvalue(), nl=False)
    else:
        atomic.write(out, text.getvalue().encode())


@fnn.command()
@click.argument("run", type=FOLDER)
@click.argument("source", nargs=-1, required=True)
def evaluate(run: Path, source: tuple[str, ...]) -> None:
    """Measure the network in folder RUN on SOURCE.

    Of the data that it was trained on, only the examples held out count; of data with a test
    part, only that part.
    """
    trained = runs.load(run)
    task = data.TASKS[trained.outputs is not None]
    target = trained.settings.target if data.is_csv(source[0]) else None
    everything = data.load(source, target=target, task=task)
    examples = runs.held_out(trained, everything)
    all_or_some = "all" if examples is everything else "the held-out"
    click.echo(f"data      {' '.join(source)}: {all_or_some} {len(examples.x)} examples")
    metrics = runs.evaluate(trained, examples)
    _show_metrics("", trained, metrics)
    if isinstance(metrics, runs.Classified):
        click.echo(_confusion_table(trained.classes, metrics.confusion))


@fnn.command("noise-scale")
@click.argument("source", type=click.Choice(data.CLASSIFICATION))
@click.option("--epochs", type=click.IntRange(min=1), default=10, help="How long to train.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="As for train.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    show_default="runs/SOURCE/noise_scale.png",
    help="The picture.",
)
def noise_scale(source: str, epochs: int, seed: int, out: Path | None) -> None:
    """Draw the gradient noise scale along a training run on SOURCE.

    It is the batch size at which noise and signal in the gradient are equal: far below it,
    doubling the batch halves the noise of a step; far above it, it buys little. Measured over
    all training examples after each epoch of Adam on batches of 32.
    """
    learn, _ = data.split(data.load(source), 0.2, seed)
    x, y = jnp.asarray(data.Scaling.of(learn.x).apply(learn.x)), jnp.asarray(learn.y)
    network, loss = _classifier(learn), losses.softmax_cross_entropy
    measure = jax.jit(per_example.gradient_noise_scale(network, loss))
    measured = []

    def on_epoch(number: int, state: Any, record: dict[str, float]) -> None:
        trace, squared_norm, scale = (float(value) for value in measure(state.params, x, y))
        measured.append((trace, squared_norm))
        # At a minimum of the training loss the mean gradient drowns, and with it the ratio.
        shown = f"{scale:.0f}" if squared_norm > 0 else "not to be told from infinity"
        click.echo(
            f"epoch {number:{len(str(epochs))}}  loss {record['loss']:.4f}  trace {trace:.3g}  "
            f"squared norm {squared_norm:.3g}  noise scale {shown}"
        )

    _learned(network, (x, y), epochs, seed, on_epoch)
    out = out or Path("runs") / source / "noise_scale.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    traces, squared_norms = zip(*measured, strict=True)
    plots.noise_scale(traces, squared_norms, out, f"gradient noise scale, {source}")
    click.echo(f"saved {out}")


@fnn.command()
@click.argument("source", type=click.Choice(["digits"]))
@click.option("--count", type=click.IntRange(min=1), default=30, help="How many to show.")
@click.option("--epochs", type=click.IntRange(min=1), default=10, help="How long to train.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="As for train.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    show_default="runs/SOURCE/hardest.png",
    help="The picture.",
)
def hardest(source: str, count: int, epochs: int, seed: int, out: Path | None) -> None:
    """Draw the images of SOURCE whose gradients are largest after training.

    An example's gradient norm says how far it alone would move the network: mislabelled,
    mutilated and ambiguous ones lead, and those that ink pixels which hardly any other does.
    Four fifths are trained on, all are ranked.
    """
    everything = data.load(source)
    learn, _ = data.split(everything, 0.2, seed)
    network, inputs = _classifier(learn), data.Scaling.of(learn.x)
    params = _learned(network, (inputs.apply(learn.x), learn.y), epochs, seed)
    x, y = jnp.asarray(inputs.apply(everything.x)), jnp.asarray(everything.y)
    norms = jax.jit(per_example.squared_norms(network, losses.softmax_cross_entropy))
    norm = np.sqrt(norms(params, x, y))
    read = np.asarray(network.forward(params, x)[0]).argmax(-1)
    worst = np.argsort(-norm)[:count]
    names = everything.classes
    captions = [f"{names[everything.y[i]]}, read as {names[read[i]]}\n{norm[i]:.3g}" for i in worst]
    out = out or Path("runs") / source / "hardest.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    title = f"the largest gradients of {source}: label, reading, gradient norm"
    plots.images(everything.x[worst].reshape(-1, 8, 8), captions, out, title)
    click.echo(
        f"norms: median {np.median(norm):.3g}, largest {norm.max():.3g}; of the {len(worst)} "
        f"largest {np.sum(read[worst] != everything.y[worst])} are misread\nsaved {out}"
    )


def _classifier(learn: data.Dataset) -> Layer:
    return mlp((learn.x.shape[-1], 128, len(learn.classes)))


def _learned(
    network: Layer,
    examples: tuple[Any, Any],
    epochs: int,
    seed: int,
    on_epoch: Callable[[int, Any, dict[str, float]], None] | None = None,
) -> Params:
    """The parameters after training the classifier by Adam on batches of 32."""
    state, _ = fit(
        network,
        losses.softmax_cross_entropy,
        optimizers.adam(1e-3),
        examples,
        key=jax.random.key(seed),
        epochs=epochs,
        batch_size=32,
        on_epoch=on_epoch,
    )
    return state.params


@fnn.command("verify")
@click.argument("path", required=False, metavar="[PACKAGE.MODULE:NAME]")
def verify_command(path: str | None) -> None:
    """Judge gradients against autodiff and finite differences, updates against their rules.

    Without an argument, everything that the library ships. With one, a layer, a loss or an
    optimizer's constructor of yours, at the inputs that its module gives as NAME_inputs: (params,
    x), (prediction, target), or (rule, params) with the rule in numpy. Exits with 0 if all pass,
    else with 1.
    """
    sys.path.insert(0, "")  # modules of the folder that the command runs in
    if path is not None:
        try:
            report = shipped.named(path)
        except (ImportError, TypeError, ValueError) as error:
            raise click.UsageError(str(error)) from error
        click.echo(f"{path}\n{report}")
        raise SystemExit(report.verdict != "pass")
    verdicts = []
    click.echo(f"{'':28}  {'verdict':12}  {'float64':>8}  {'native':>8}  {'differences':>11}")
    for name, report in shipped.shipped():
        errors = [f"{rung:.1e}" if rung is not None else "-" for rung in report.errors]
        click.echo(
            f"{name:28}  {report.verdict:12}  {errors[0]:>8}  {errors[1]:>8}  {errors[2]:>11}"
        )
        if report.verdict != "pass":
            click.echo(report)
        verdicts.append(report.verdict)
    click.echo(f"{verdicts.count('pass')} of {len(verdicts)} pass")
    raise SystemExit(set(verdicts) != {"pass"})


def _same_settings(ctx: click.Context, given: Settings, earlier: Settings, out: Path) -> Settings:
    """The earlier run's settings, with `epochs` as asked. Options that were left out are taken
    from that run; the others must be as they were there."""
    for name in Settings._fields:
        asked = ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
        if asked and name != "epochs" and getattr(given, name) != getattr(earlier, name):
            was, is_now = (
                ",".join(map(str, v)) if isinstance(v, tuple) else v
                for v in (getattr(earlier, name), getattr(given, name))
            )
            raise click.UsageError(
                f"--{name.replace('_', '-')} {is_now}: the run in {out} was trained with {was}"
            )
    asked = ctx.get_parameter_source("epochs") is not ParameterSource.DEFAULT
    return earlier._replace(epochs=given.epochs if asked else earlier.epochs)


def _show_plan(source: str, run: Run, examples: runs.Examples) -> None:
    """Say what is about to be trained, and judge its gradient on a real batch."""
    settings, learn, network, loss = run.settings, examples.train, run.network, run.loss
    parts = [f"{len(learn.x)} to train on", f"{len(examples.test.x)} held out"]
    if examples.validation is not None:
        parts.insert(1, f"{len(examples.validation.x)} to stop by")
    total = sum(len(part.x) for part in examples if part is not None)
    k = run.sizes[-1]
    outputs = f"{k} classes" if run.classes else "a value" if k == 1 else f"{k} values"
    outputs += "" if run.classes else " to predict"
    params = run.progress.state.params
    click.echo(
        f"data      {source}: {total} examples, {run.sizes[0]} features, {outputs}; "
        f"{', '.join(parts)}\n"
        f"network   {'-'.join(map(str, run.sizes))}, {settings.activation}, "
        f"{sum(leaf.size for leaf in jax.tree.leaves(params))} parameters\n"
        f"training  {settings.optimizer}({settings.learning_rate:g}), "
        f"batches of {settings.batch_size}, {settings.epochs} epochs"
    )
    if run.progress.history:
        click.echo(f"resumed   after epoch {len(run.progress.history)}")
    few = learn._replace(x=learn.x[: settings.batch_size], y=learn.y[: settings.batch_size])
    # Compiled, this takes a fraction of the second that each operation by itself would.
    gradient, value = jax.jit(value_and_grad(network, loss)), jax.jit(objective(network, loss))
    report = verify.check_gradients(gradient, value, params, *run.standardised(few))
    click.echo(
        f"gradient  {report.verdict}: worst relative difference from autodiff in float64 "
        f"{report.worst:.1e}"
    )
    if report.verdict == "fail":
        raise click.ClickException(str(report))


class _StoppedError(Exception):
    """Asked to stop, at the end of an epoch."""


def _train(
    run: Run, examples: runs.Examples, out: Path, save_every: float
) -> tuple[Run, list[float], int]:
    """Train and save as time passes: (the run, when each epoch ended, the signal that stopped
    it or 0). What diverged is saved as it last was, and raised."""
    times: list[float] = []
    saved = time.perf_counter()
    epochs = run.settings.epochs

    def on_epoch(newest: Run) -> None:
        nonlocal run, saved
        run = newest
        times.append(time.perf_counter())
        history = run.progress.history
        shown = "  ".join(f"{k.replace('_', ' ')} {v:.4f}" for k, v in history[-1].items())
        bar.write(f"epoch {len(history):{len(str(epochs))}}  {shown}")
        bar.update()
        if times[-1] - saved >= save_every:
            runs.save(out, run)
            saved = time.perf_counter()
        if signals:
            raise _StoppedError

    done = len(run.progress.history)
    with (
        _noted_signals() as signals,
        tqdm(total=epochs, initial=done, unit="epoch", leave=False) as bar,
    ):
        try:
            runs.train(run, examples, on_epoch)
        except _StoppedError:
            bar.write(f"interrupted after {len(run.progress.history)} of {epochs} epochs")
        except DivergedError as error:
            kept = "nothing is saved"
            if run.progress.history:
                runs.save(out, run)
                kept = f"{out} has the network after epoch {len(run.progress.history)}"
            raise click.ClickException(f"{error}; {kept}") from error
    return run, times, signals[0] if signals else 0


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """The SIGINT and SIGTERM received meanwhile. The first of each is only noted, so that an
    epoch can end; the second acts as ever."""
    noted: list[int] = []

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        signal.signal(number, before[number])

    before: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, note)
    try:
        yield noted
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)


def _show_metrics(part: str, run: Run, metrics: runs.Classified | runs.Predicted) -> None:
    if isinstance(metrics, runs.Classified):
        click.echo(f"{part}accuracy {metrics.accuracy:.4f}")
        return
    names = [f" {name}" for name in run.targets] if len(run.targets) > 1 else [""]
    if len(metrics.rmse) > 1:
        names = [f" value {i}" for i in range(len(metrics.rmse))]
    for i, name in enumerate(names):
        click.echo(
            f"{part}RMSE{name} {metrics.rmse[i]:.4g}, "
            f"where predicting the mean gives {metrics.rmse_of_mean[i]:.4g}"
        )
        click.echo(f"{part}R2{name} {metrics.r2[i]:.4f}")


def _confusion_table(classes: tuple[str, ...], confusion: np.ndarray) -> str:
    """Rows are the true classes, columns the predicted."""
    rows = [
        ["", *classes],
        *([name, *map(str, row)] for name, row in zip(classes, confusion, strict=True)),
    ]
    width = max(len(cell) for row in rows for cell in row)
    lines = ["  ".join(f"{cell:>{width}}" for cell in row) for row in rows]
    return "\n".join(["true class in rows, predicted class in columns", *lines])
