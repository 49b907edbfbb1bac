"""`fnn plan`: what a compiler would make of a network's training on a device that isn't there."""

import json
from typing import Any

import click
import jax

from fnn import targets
from fnn.cli import options
from fnn.cli.train import train
from fnn.parallel import ShardedExamples, fully_sharded, shardings
from fnn.runs import training
from fnn.runs.run import Run
from fnn.runs.settings import Settings
from fnn.runs.text import aligned
from fnn.training.steps import make_epoch

NOTE = """

Nothing was run. Memory is that of the compiled program. Times are XLA's model, without the time
to start a kernel and mostly without that of communicating."""
OPTIONS = {"source", *Settings._fields} - {"target"}
HEADINGS = ("", "fits", "MB per device", "examples/s, modelled", "ms per epoch, modelled")


@click.command(params=[param for param in train.params if param.name in OPTIONS])
@click.option("--target", "device", required=True, help="H100, H100:8, TPU v5e:4x4, ...")
@click.option("--target-column", "target", help="As --target of train.")
@options.as_json
def plan(source: tuple[str, ...], device: str, as_json: bool, **given: Any) -> None:
    """Compile training on SOURCE for a GPU or a TPU that need not be there.

    SOURCE and the options are as for train, but --target is the device. Its compiler says whether
    an epoch fits into its memory, and models the time; nothing is run. For several devices there
    are two answers with --members 1: each holds all parameters, or a part of them.
    """
    try:
        number = targets.mesh(device).size
    except (ModuleNotFoundError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    run, examples = training.prepare(source, options.settings_of(given))
    batch, n = run.settings.batch_size or run.learned, run.learned
    if batch % number and batch != n:
        raise click.UsageError(f"--batch-size {batch}: expected one that {number} devices divide")
    data = training.arrays(run, examples.train, examples.folds)
    told: dict[str, Any] = {"network": "-".join(map(str, run.sizes)), "members": run.members}
    told |= {"batch_size": batch, "examples": n, "epoch": {}}
    rows = [HEADINGS]
    shown = lambda number, form: "-" if number is None else format(number, form)
    for method in ("replicated", "fully sharded")[: number if run.members == 1 else 1]:
        found = _compiled(run, data, device, method == "fully sharded")
        speed, time = found.seconds and n / found.seconds, found.seconds and 1e3 * found.seconds
        held = None if found.temp_bytes is None else (found.argument_bytes + found.temp_bytes) / 1e6
        fits = "yes" if found.fits else "no"
        rows.append((method, fits, shown(held, ",.1f"), shown(speed, ",.0f"), shown(time, ",.3f")))
        report = json.loads(found.to_json())
        told["epoch"][method] = {"modelled_examples_per_second": speed} | report
    if as_json:
        return click.echo(json.dumps(told, allow_nan=False))
    click.echo(f"{run.described} on {device}: {n} examples per epoch, in batches of {batch}\n")
    click.echo(aligned(rows, "<<>") + NOTE)


def _compiled(run: Run, data: Any, device: str, shard_params: bool) -> targets.Report:
    """An epoch of the run on all devices of the target."""
    mesh, network, optimizer, n = targets.mesh(device), run.network, run.optimizer, run.learned
    on = mesh if mesh.size > 1 else None
    batch = run.settings.batch_size or n
    how: dict[str, Any] = {"mesh": on, "gradient": run.gradient, "shard_params": shard_params}
    epoch = jax.jit(make_epoch(network, run.loss, optimizer, batch, **how), donate_argnums=0)

    def placed(a: Any, where: jax.NamedSharding, *first: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*first, *a.shape[len(first) :]), a.dtype, sharding=where)

    held = fully_sharded(network, "data") if shard_params else network
    parts = shardings(lambda key: optimizer.init(held.init(key)), mesh)
    state = jax.tree.map(placed, run.progress.state, parts)
    rows, split = mesh.size * -(-n // mesh.size), jax.NamedSharding(mesh, jax.P("data"))
    xy = jax.tree.map(lambda a: placed(a, split, rows), data)
    examples = xy if on is None else ShardedExamples(xy, n, mesh.size)
    return targets.compile_for(device, epoch, state, examples, jax.random.key(0))
