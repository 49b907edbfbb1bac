"""Training steps of a deep network compiled for whole pods of TPUs that are not there.

One step of Adam of 16 layers of 4096, 16384 examples in all, by the TPU's own compiler: what a chip
holds, what it sends beside what the model of `interconnect` says, and how many of its collectives
are started before other kernels and awaited after them. Nothing is run.

Needs the extra `tpu`, JAX_PLATFORMS=cpu. Biases and the loss are in the programs, not in the model.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

import fnn
from benchmarks.interconnect import V5P, Model, step
from benchmarks.report import table
from fnn import targets
from fnn.parallel import fully_sharded

MODEL, EXAMPLES = Model(16, 4096), 16_384
TARGETS = ("TPU v5e:4x4", "TPU v5e:16x16", "TPU v5p:8x8x16", "TPU v5p:16x16x16")
KEPT = Path(__file__).parent / "results" / "pods.json"
HEADINGS = ["", "target", "arguments, MB", "temporary, MB", "sent, MB", "model, MB", "collectives",
            "beside kernels", "us, modelled"]  # fmt: skip


def run(quick: bool) -> dict[str, Any]:
    """A row per target and method; without the compiler, the rows that the result has already."""
    if targets.targets()["TPU v5e"]:
        pairs = [(target, name) for target in TARGETS for name in WIDE]
        pairs += [(TARGETS[0], name) for name in ONCE]
        rows = [read(*pair) for pair in (pairs[: len(WIDE)] if quick else pairs)]
    else:
        rows = json.loads(KEPT.read_text())["programs"]
    print(table(HEADINGS, [shown(row) for row in rows]))
    return {"programs": rows}


def shown(row: dict[str, Any]) -> list[Any]:
    """A row of the table."""
    kinds = [f"{n} {kind}" for kind, (n, _) in row["collectives"].items()]
    beside = [f"{n} {kind}" for kind, n in row["overlapped"].items() if n]
    seconds = row["modelled_seconds"]
    return [
        row["method"], row["target"], row["arguments"] / 1e6, (row["temporary"] or 0) / 1e6,
        sum(sent for _, sent in row["collectives"].values()) / 1e6, row["model"] / 1e6,
        ", ".join(kinds), ", ".join(beside) or "none", seconds and seconds * 1e6,
    ]  # fmt: skip


def block() -> fnn.Layer:
    """One of the layers."""
    return fnn.serial(fnn.dense(MODEL.width, MODEL.width), fnn.relu)


def _replicated(dtype: Any) -> fnn.Layer:
    return fnn.repeat(fnn.compute_in(block(), dtype), MODEL.layers)


def _fully_sharded(dtype: Any) -> fnn.Layer:
    return fnn.repeat(fnn.compute_in(fully_sharded(block(), "data"), dtype), MODEL.layers)


def _serial(dtype: Any) -> fnn.Layer:
    layer = fnn.compute_in(fully_sharded(block(), "data"), dtype)
    return fnn.serial(*[layer] * MODEL.layers)


def _tensor(dtype: Any) -> fnn.Layer:
    pair = fnn.parallel.mlp((MODEL.width,) * 3, "model", fnn.relu, fnn.relu)
    return fnn.repeat(fnn.compute_in(pair, dtype), MODEL.layers // 2)


class Method(NamedTuple):
    """make(dtype) -> network; is_tensor: cut over all devices; options: of the compiler."""

    make: Callable[[Any], fnn.Layer]
    dtype: Any = jnp.float32
    is_tensor: bool = False
    options: dict[str, Any] | None = None


PIPELINED = {"xla_tpu_enable_ici_ag_pipelining": True}
WIDE = {
    "replicated": Method(_replicated),
    "fully sharded": Method(_fully_sharded),
    "fully sharded, pipelined": Method(_fully_sharded, options=PIPELINED),
    "tensor": Method(_tensor, is_tensor=True),
}
ONCE = {"fully sharded, serial": Method(_serial)}
ONCE |= {f"{name}, bfloat16": one._replace(dtype=jnp.bfloat16) for name, one in WIDE.items()}
METHODS = WIDE | ONCE


def read(target: str, name: str) -> dict[str, Any]:
    """What the compiler makes of one step."""
    found = compiled(target, METHODS[name])
    expected = step(V5P, name.split(",")[0], found.devices, MODEL, EXAMPLES)
    return {
        "target": target,
        "method": name,
        "fits": found.fits,
        "arguments": found.argument_bytes,
        "temporary": found.temp_bytes,
        "collectives": found.collectives,
        "overlapped": found.overlapped,
        "model": expected.sent,
        "modelled_seconds": found.seconds,
        "modelled_share_of_peak": found.share,
    }


def compiled(target: str, method: Method) -> targets.Report:
    """A step of Adam on all devices of the target."""
    number = targets.mesh(target).size
    shape = (1, number) if method.is_tensor else (number, 1)
    mesh = targets.mesh(target, shape, ("data", "model"))
    network, optimizer = method.make(method.dtype), fnn.adam(1e-3)
    update = fnn.make_step(network, fnn.mse, optimizer, mesh=mesh)
    init = lambda key: optimizer.init(network.init(key))
    like = lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where)
    split = fnn.parallel.shardings(init, mesh)
    state = jax.tree.map(like, jax.eval_shape(init, jax.random.key(0)), split)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((EXAMPLES, MODEL.width), jnp.float32, sharding=rows)
    jitted = jax.jit(update, donate_argnums=0, compiler_options=method.options)
    return targets.compile_for(target, jitted, state, (x, x))
