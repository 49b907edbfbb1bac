"""`fnn train`: train a network, save it as it goes, measure it."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
from jax.sharding import Mesh
from tqdm.auto import tqdm

from fnn import atomic, catalog, checkpoint, verify
from fnn.backprop import objective, value_and_grad
from fnn.cli import options, signals
from fnn.cli.evaluate import show
from fnn.cli.spread import Spread
from fnn.parallel import processes
from fnn.runs import files, report, training
from fnn.runs._bins import BINS
from fnn.runs.run import Run
from fnn.runs.settings import FEWEST, MEMBERS, MOST, NETWORKS, Settings
from fnn.runs.training import Examples
from fnn.training.fitting import DivergedError, epochs_since_best

OUT = "Folder for the run, the history and the picture."
OVERWRITE = "Replace a run of other data or settings in the folder."
SAVE_EVERY = "Seconds between saves while training; 0 saves after each epoch."
WAYS = "--overwrite replaces it, --out chooses another folder"

# The defaults did best on 17 public tables of 263 to 10,000 rows (see benchmarks/README.md):
#   hidden 128,128   one layer of 256 learns fewer interactions, two of 256 take twice the time
#   batches of 64    and a rate of 0.002 in 40 epochs are as good as 32, 0.001 and 100
#   members, bins    without them the log of the loss is larger by 0.07 and 0.10 in the mean


of_training = options.of_settings((
    ("network", options.Name(list(NETWORKS)), None, "A perceptron; cnn is for square images."),
    ("hidden", options.widths, "128,128; 16,32 of cnn", "Widths of hidden layers, or channels."),
    ("activation", options.Name(list(catalog.ACTIVATIONS)), None, "Activation of hidden layers."),
    ("optimizer", options.Name(list(catalog.OPTIMIZERS)), None, "Update rule."),
    ("learning-rate", options.RATE, None, "Step size of the update rule."),
    ("batch-size", options.COUNT, "64, or all where there are fewer",
     "Examples per step: 1 is stochastic, all is full-batch gradient descent."),
    ("epochs", options.COUNT, None, "Passes over the training part."),
    ("weight-decay", options.SHARE, "0.01", "Share that parameters lose per epoch, with adamw."),
    ("members", options.COUNT,
     f"{MEMBERS} of mlp; 1 for fewer than {FEWEST} examples, or more than {MOST}",
     "Networks whose mean is predicted: each leaves out a fold of the training part, and keeps its "
     "best epoch there."),
    ("bins", options.Whole(min=0), f"{BINS} where they help a linear model",
     "Further inputs per number: its place between as many quantiles."),
    ("class-weight", options.Name(["balanced"]), None,
     "Balanced: each class counts the same in training, however few its examples are."),
    ("seed", options.SEED, None, "Decides the split, initial parameters and order of examples."),
    ("patience", options.COUNT, None,
     "Stop after this many epochs in a row that did not lower the loss on the members' folds; of "
     "one network, on a fifth of the training part, and keep its best epoch."),
))  # fmt: skip


@click.command(cls=Spread)
@click.argument("source", nargs=-1, required=True)
@of_training
@options.of_table
@click.option("--out", type=options.FOLDER, show_default="runs/SOURCE", help=OUT)
@click.option("--resume", is_flag=True, help="Continue the run in the folder, if there is one.")
@click.option("--overwrite", is_flag=True, help=OVERWRITE)
@click.option("--save-every", type=options.SHARE, default=1.0, help=SAVE_EVERY)
def train(
    source: tuple[str, ...], out: Path | None, resume: bool, overwrite: bool, **given: Any
) -> None:
    """Train a network on SOURCE and measure it on held-out examples.

    SOURCE is a bundled data set (digits, iris, wine, breast_cancer, diabetes), a table (CSV and its
    kin, Parquet, Arrow, Excel or ODS workbooks, JSON, SQLite; compressed or not), a .npz file
    with x and y, two files x.npy y.npy, or a folder of IDX files such as MNIST's.

    Classes are learned with softmax cross-entropy, values with the mean squared error. A fifth
    of the examples is held out, stratified by class, unless the source has a test part; --group and
    --time hold out whole groups or the latest examples. Numbers
    are standardised by the training part; `fnn describe` shows what becomes of a table's columns.
    The run is saved as it goes; Ctrl-C ends it after the current epoch, and --resume continues it
    as if it had never stopped. A run of other data or other settings in the folder is replaced
    only with --overwrite.
    """
    if resume and overwrite:
        raise click.UsageError("--resume continues the run in the folder, --overwrite replaces it")
    when = given.pop("save_every"), click.get_current_context().obj
    settings = options.settings_of(given)
    out = out or Path("runs") / Path(Path(source[0]).resolve().name.removesuffix(".gz")).stem
    version, earlier = _found(out, source, overwrite)
    if resume and earlier is not None:
        settings = _continued(settings, earlier, out)
    run, examples = training.prepare(source, settings)
    name = " ".join(source)
    if earlier is not None:
        _check_same(earlier, run, name, out, resume)
        run = earlier._replace(settings=settings) if resume else run
    _show_plan(name, run, examples)
    _check_gradient(run, examples)
    if not processes.is_first():
        *_, stopped = _train(run, examples, None, *when)
        raise SystemExit(stopped)
    with atomic.owned(out):
        if files.version(out) != version:
            raise click.ClickException(f"another process has just changed the run in {out}")
        files.check_writable(out, run)
        run, times, stopped = _train(run, examples, out, *when)
        if not run.progress.history:
            raise click.ClickException("stopped before the end of the first epoch: nothing to save")
        run.save(out)
        _report(run, examples, out, Path(source[0]).name, times)
    if stopped:
        raise SystemExit(stopped)


def _found(out: Path, source: tuple[str, ...], overwrite: bool) -> tuple[Any, Run | None]:
    """The version of the run in the folder, and this run, unless it is to be replaced. Raises
    ClickException where it can't be read, and where something of another kind would be replaced."""
    version = files.version(out)
    for name in (files.FILE, *report.FILES):
        files.check_apart(out / name, *source)
        if (out / name).is_dir():
            raise click.ClickException(f"{out / name}: Is a directory")
        if version is None and not overwrite and (out / name).is_file():
            raise click.ClickException(f"{out / name} does not belong to a run; {WAYS}")
    try:
        return version, None if version is None or overwrite else files.load(out)
    except checkpoint.CheckpointError as error:
        raise click.ClickException(f"{error}; --overwrite replaces it") from error


def _changed(earlier: Settings, now: Settings) -> Iterator[tuple[str, ...]]:
    """The name, the option and both values of each setting that differs."""
    for name, *values in zip(Settings._fields, earlier, now, strict=True):
        if values[0] != values[1]:
            shown = (",".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in values)
            yield name, f"--{name.replace('_', '-')}", *shown


def _check_same(earlier: Run, run: Run, source: str, out: Path, resume: bool) -> None:
    """Raise ClickException where the folder's run is not this one, which would replace it."""
    if earlier.digest != run.digest:
        trained = f"the run in {out} was trained on other data than {source}"
        raise click.ClickException(trained if resume else f"{trained}; {WAYS}")
    for _, option, was, _ in () if resume else _changed(earlier.settings, run.settings):
        reason = f"the run in {out} has other settings: {option} was {was}"
        raise click.ClickException(f"{reason}; --resume continues it, --overwrite replaces it")


def _continued(given: Settings, earlier: Run, out: Path) -> Settings:
    """The earlier run's settings, with the number of epochs if that is given.

    Raises UsageError for any other option that is given and differs from the earlier run's.
    """
    source = click.get_current_context().get_parameter_source
    kept = earlier.settings
    for name, option, was, now in _changed(kept, given):
        if source(name) is not click.core.ParameterSource.DEFAULT:
            if name != "epochs":
                raise click.UsageError(f"{option} {now}: the run in {out} was trained with {was}")
            kept = kept._replace(epochs=given.epochs)
    return kept


def _show_plan(source: str, run: Run, examples: Examples) -> None:
    """Print what is about to be trained, and on what."""
    settings, decay, bins = run.settings, run.settings.weight_decay, run.bins.columns
    parts = zip(examples[:3], ("for training", "for validation", "held out"), strict=True)
    counts = {name: len(part.x) for part, name in parts if part is not None}
    outputs = _counted(run.sizes[-1], "class" if run.classes else "value")
    count, width = len(run.inputs.columns), run.sizes[0]
    features = _counted(count, "feature") + f" as {width} inputs" * (width != count)
    far = run.inputs.unseen(examples.train.x).lines()
    counted = ", ".join(f"{count} {name}" for name, count in counts.items())
    n = sum(counts.values())
    click.echo(f"data      {source}: {n} examples, {features}, {outputs}; {counted}")
    for note in (*examples.train.notes, *run.inputs.left_out(), *far):
        click.echo(f"          {note}")
    decayed = "" if decay is None else f"weight decay {decay:g} per epoch, "
    size = sum(leaf.size for leaf in jax.tree.leaves(run.progress.state.params))
    binned = f"{_counted(len(bins), 'input')} in {settings.bins} bins too, " if bins else ""
    click.echo(
        f"network   {run.described}, {settings.activation}, {binned}"
        f"{size} parameters\ntraining  {settings.optimizer}({settings.learning_rate:g}), "
        f"{decayed}batches of {settings.batch_size}, {settings.epochs} epochs"
    )
    if run.progress.history:
        click.echo(f"resumed   after epoch {len(run.progress.history)}{_end(run)}")


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "es" if noun.endswith("s") else "s")


def _end(run: Run) -> str:
    """Why a run that was trained before has nothing left to do; empty where it has."""
    history, patience = run.progress.history, run.settings.patience
    if len(history) >= run.settings.epochs:
        return ": nothing to do, these are all; a larger --epochs goes on"
    if patience is not None and epochs_since_best(history) >= patience:
        return f": nothing to do, its patience of {patience} epochs has ended"
    return ""


def _check_gradient(run: Run, examples: Examples) -> None:
    """Check the network's gradient on a batch of the data. Raises ClickException if it fails."""
    x, y = training.arrays(run, examples.train, None, slice(run.settings.batch_size))
    # Compiled, these take much less time than operation by operation.
    compiled = [jax.jit(f(run.member, run.loss)) for f in (value_and_grad, objective)]
    params = run.progress.state.params
    params = jax.tree.map(lambda a: np.asarray(a)[0], params) if run.members > 1 else params
    found = verify.check_gradients(*compiled, params, x, y)
    worst = f"worst relative difference from autodiff in float64 {found.worst:.1e}"
    click.echo(f"gradient  {found.verdict}: {worst}")
    if found.verdict == "fail":
        raise click.ClickException(str(found))


def _train(
    run: Run, examples: Examples, out: Path | None, save_every: float, mesh: Mesh | None
) -> tuple[Run, list[float], int]:
    """Train, and save at intervals of save_every seconds, unless out is None.

    Returns the run, the time at the end of each epoch, and the exit code, which tells the signal
    that ended the training. A run that diverges is saved as it was after the last finite epoch, and
    raised as a ClickException.
    """
    times, saved = list[float](), time.perf_counter()

    def on_epoch(newest: Run) -> bool:
        nonlocal run, saved
        run = newest
        times.append(time.perf_counter())
        bar.update()
        bar.set_postfix(test_loss=run.progress.history[-1].get("test_loss"), refresh=False)
        if out is not None and times[-1] - saved >= save_every:
            run.save(out)
            saved = time.perf_counter()
        return processes.any_of(bool(received))

    done, epochs = len(run.progress.history), run.settings.epochs
    how: Any = {"unit": "epoch", "leave": False, "disable": None}
    with signals.held_back() as received, tqdm(total=epochs, initial=done, **how) as bar:
        try:
            run = training.advance(run, examples, on_epoch, mesh)
        except DivergedError as error:
            kept = "nothing is saved"
            if out is not None and run.progress.history:
                run.save(out)
                kept = f"{out} has the network after epoch {len(run.progress.history)}"
            raise click.ClickException(f"{error}; {kept}") from error
        if received:
            bar.write(f"interrupted after {len(run.progress.history)} of {epochs} epochs")
    return run, times, 128 + received[0] if received else 0


def _report(run: Run, examples: Examples, out: Path, name: str, times: list[float]) -> None:
    """Write and print how training went, and the metrics on the held-out examples."""
    title, history, (train, _, test, _) = f"{name}, {run.described}", run.progress.history, examples
    assert test is not None  # of a source, some examples always are
    scores = report.Scores.of(run, train, test)
    page = partial(report.page, run, train, test, scores, title)
    problems = report.write(out, history, title, page)
    number = len(train.x) * (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None
    rate = f", {number:.0f} examples per second" if number else ""
    last = ", ".join(f"{key.replace('_', ' ')} {value:#.4g}" for key, value in history[-1].items())
    click.echo(f"trained   {_counted(len(history), 'epoch')}{rate}: {last}")
    click.echo(f"saved     {out}: {', '.join((files.FILE, *report.FILES))}")
    options.warn(*problems)
    show(scores.network, "test ")
    click.echo(scores.summary())
