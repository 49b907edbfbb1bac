"""The `fnn` command: train a network from the shell."""

import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fnn import (
    activations,
    checkpoint,
    data,
    losses,
    optimizers,
    per_example,
    plots,
    selfcheck,
    verify,
)
from fnn.backprop import objective, value_and_grad
from fnn.base import Layer, Loss, Optimizer, Params
from fnn.models import mlp
from fnn.training import fit

ACTIVATIONS: dict[str, Layer] = {
    "elu": activations.elu(),
    "gelu": activations.gelu,
    "identity": activations.identity,
    "leaky_relu": activations.leaky_relu(),
    "relu": activations.relu,
    "selu": activations.selu,
    "sigmoid": activations.sigmoid,
    "silu": activations.silu,
    "softplus": activations.softplus,
    "tanh": activations.tanh,
}
OPTIMIZERS: dict[str, Callable[[float], Optimizer]] = {
    name: getattr(optimizers, name)
    for name in ("adagrad", "adam", "adamw", "lion", "momentum", "nadam", "rmsprop", "sgd")
}


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


@click.group(context_settings={"show_default": True, "max_content_width": 100})
@click.version_option(package_name="fnn")
def fnn() -> None:
    """Feed-forward neural networks in JAX, with hand-written backpropagation."""


@fnn.command()
@click.argument("source", type=click.Choice(data.BUNDLED))
@click.option("--hidden", type=Widths(), default="256", help="Widths of the hidden layers.")
@click.option(
    "--activation",
    type=click.Choice(list(ACTIVATIONS)),
    default="relu",
    help="Activation of the hidden layers.",
)
@click.option(
    "--optimizer", type=click.Choice(list(OPTIMIZERS)), default="adam", help="Update rule."
)
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
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    show_default="runs/SOURCE",
    help="Folder for the parameters, the history and the picture.",
)
def train(
    source: str,
    hidden: tuple[int, ...],
    activation: str,
    optimizer: str,
    learning_rate: float,
    batch_size: int,
    epochs: int,
    seed: int,
    out: Path | None,
) -> None:
    """Train a multi-layer perceptron on SOURCE and measure it on examples held out.

    Classes are learned with softmax cross-entropy, values with the mean squared error. A fifth
    of the examples is held out, with each class's share. Inputs, and values to predict, are
    standardised by the training part. Ctrl-C keeps what the last whole epoch had learned.
    """
    out = out or Path("runs") / source
    everything = data.load(source)
    learn, test = data.split(everything, 0.2, seed)
    if batch_size > len(learn.x):
        raise click.UsageError(
            f"--batch-size {batch_size} is larger than the {len(learn.x)} examples to train on"
        )
    out.mkdir(parents=True, exist_ok=True)
    inputs = data.Scaling.of(learn.x)
    targets = None if learn.classes else data.Scaling.of(learn.y)
    (x, y), held_out = (_standardised(part, inputs, targets) for part in (learn, test))

    outputs = f"{len(learn.classes)} classes" if learn.classes else "a value to predict"
    sizes = (x.shape[-1], *hidden, len(learn.classes) or y.shape[-1])
    network = mlp(sizes, ACTIVATIONS[activation])
    loss = losses.softmax_cross_entropy if learn.classes else losses.mse
    key = jax.random.key(seed)
    params = network.init(key)
    click.echo(
        f"data      {source}: {len(everything.x)} examples, {sizes[0]} features, {outputs}; "
        f"{len(x)} to train on, {len(test.x)} held out\n"
        f"network   {'-'.join(map(str, sizes))}, {activation}, "
        f"{sum(leaf.size for leaf in jax.tree.leaves(params))} parameters\n"
        f"training  {optimizer}({learning_rate:g}), batches of {batch_size}, {epochs} epochs"
    )
    _check_gradient(network, loss, params, x[:batch_size], y[:batch_size])

    named = "test_accuracy" if targets is None else "test_RMSE"
    quality = _accuracy if targets is None else _rmse_in_units_of(targets)
    evaluate = jax.jit(_evaluation(network, loss, quality))
    history: list[dict[str, float]] = []
    learned: Params = None
    times = []

    def on_epoch(number: int, state: Any, record: dict[str, float]) -> None:
        nonlocal learned
        test_loss, score = evaluate(state.params, *held_out)
        history.append(record | {"test_loss": float(test_loss), named: float(score)})
        learned = state.params
        times.append(time.perf_counter())
        shown = "  ".join(f"{k.replace('_', ' ')} {v:.4f}" for k, v in history[-1].items())
        bar.write(f"epoch {number:{len(str(epochs))}}  {shown}")
        bar.update()

    rule = OPTIMIZERS[optimizer](learning_rate)
    with tqdm(total=epochs, unit="epoch", leave=False) as bar:
        try:
            fit(
                network,
                loss,
                rule,
                (x, y),
                key=key,
                epochs=epochs,
                batch_size=batch_size,
                on_epoch=on_epoch,
            )
        except KeyboardInterrupt:
            bar.write(f"interrupted after {len(history)} of {epochs} epochs")
    if not history:
        raise click.ClickException("interrupted before the first epoch's end: nothing to save")

    _save(out, learned, inputs, targets, history)
    plots.curves(history, out / "curves.png", f"{source}, {'-'.join(map(str, sizes))}")
    click.echo(f"saved     {out}: parameters, history.csv, curves.png")
    if len(times) > 1:
        rate = len(x) * (len(times) - 1) / (times[-1] - times[0])
        click.echo(f"examples per second {rate:.0f} (after the first epoch, evaluation included)")
    if targets is None:
        click.echo(f"test accuracy {history[-1][named]:.4f}")
    else:
        rmse, spread = history[-1][named], np.std(test.y)
        by_mean = np.sqrt(np.mean((test.y - learn.y.mean(0)) ** 2))
        click.echo(f"test RMSE {rmse:.4g}, where predicting the mean gives {by_mean:.4g}")
        click.echo(f"test R2 {1 - (rmse / spread) ** 2:.4f}")
    if len(history) < epochs:
        raise SystemExit(130)


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
            report = selfcheck.named(path)
        except (ImportError, TypeError, ValueError) as error:
            raise click.UsageError(str(error)) from error
        click.echo(f"{path}\n{report}")
        raise SystemExit(report.verdict != "pass")
    verdicts = []
    click.echo(f"{'':28}  {'verdict':12}  {'float64':>8}  {'native':>8}  {'differences':>11}")
    for name, report in selfcheck.shipped():
        errors = [f"{rung:.1e}" if rung is not None else "-" for rung in report.errors]
        click.echo(
            f"{name:28}  {report.verdict:12}  {errors[0]:>8}  {errors[1]:>8}  {errors[2]:>11}"
        )
        if report.verdict != "pass":
            click.echo(report)
        verdicts.append(report.verdict)
    click.echo(f"{verdicts.count('pass')} of {len(verdicts)} pass")
    raise SystemExit(set(verdicts) != {"pass"})


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


def _standardised(
    part: data.Dataset, inputs: data.Scaling, targets: data.Scaling | None
) -> tuple[np.ndarray, np.ndarray]:
    return inputs.apply(part.x), part.y if targets is None else targets.apply(part.y)


def _check_gradient(network: Layer, loss: Loss, params: Params, x: Any, y: Any) -> None:
    """Judge the network's own gradient on a real batch, and stop where it is wrong."""
    report = verify.check_gradients(
        value_and_grad(network, loss), objective(network, loss), params, x, y
    )
    click.echo(
        f"gradient  {report.verdict}: worst relative difference from autodiff in float64 "
        f"{report.worst:.1e}"
    )
    if report.verdict == "fail":
        raise click.ClickException(str(report))


Quality = Callable[[jax.Array, jax.Array], jax.Array]
"""quality(predictions, targets) -> how well they agree."""


def _accuracy(prediction: jax.Array, labels: jax.Array) -> jax.Array:
    return (prediction.argmax(-1) == labels).mean()


def _rmse_in_units_of(targets: data.Scaling) -> Quality:
    scale = jnp.asarray(targets.scale, jnp.float32)
    return lambda prediction, values: jnp.sqrt(jnp.square((prediction - values) * scale).mean())


def _evaluation(network: Layer, loss: Loss, quality: Quality) -> Callable[..., Any]:
    """evaluate(params, x, y) -> (mean loss, quality)."""

    def evaluate(params: Params, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        prediction, _ = network.forward(params, x)
        return loss.value(prediction, y).mean(), quality(prediction, y)

    return evaluate


def _save(
    out: Path,
    params: Params,
    inputs: data.Scaling,
    targets: data.Scaling | None,
    history: list[dict[str, float]],
) -> None:
    checkpoint.save(
        out / "params.safetensors", {"params": params, "inputs": inputs, "targets": targets}
    )
    with open(out / "history.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["epoch", *history[0]])
        writer.writeheader()
        writer.writerows({"epoch": i} | record for i, record in enumerate(history, 1))
