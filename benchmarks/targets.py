"""Training compiled for GPUs and TPUs that are not there: kernels, modelled time, memory.

One epoch of the peers' networks and of an 8192-wide one, fnn beside optax with autodiff as one
scan, by the compilers of H100, B200 and TPUs, where these are installed. Nothing is run and no
number is measured: kernels and bytes are those of the compiled program, times are XLA's model
without the time to start a kernel. "step" is one turn of the epoch's loop.

In environments with one of the compilers each, JAX_PLATFORMS=cpu, a run adds its targets to
those that the result has already.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import fnn
from benchmarks.data import CASES, Case
from benchmarks.peers import RATE, optax_epoch
from benchmarks.report import table
from fnn import targets

NAMES = ("H100", "B200", "TPU v5e", "TPU v5p", "TPU v6e")
WIDE = Case((8192, 8192, 8192, 8192, 10), 8192, 32768, 1)
HEADINGS = ["", "network", "kernels per step", "us per step, modelled", "kernels per epoch",
            "temporary, MB"]  # fmt: skip
KEPT = Path(__file__).parent / "results" / "targets.json"


def run(quick: bool) -> dict[str, Any]:
    """A row per target, network and contestant."""
    kept = json.loads(KEPT.read_text())["programs"] if KEPT.exists() else []
    installed = [name for name in NAMES if targets.targets()[name]]
    rows = [row for row in kept if row["target"] not in installed]
    for name in installed:
        for case in CASES[:2] if quick else [*CASES, WIDE]:
            for contestant, (epoch, state) in contestants(case).items():
                found = read(name, case, contestant, epoch, state)
                rows.append(found)
                print(found, flush=True)
    shown = [
        [f"{r['target']}, {r['contestant']}", r["network"], r["kernels"], r["microseconds"],
         r["kernels_per_epoch"], (r["temporary"] or 0) / 1e6]
        for r in rows
    ]  # fmt: skip
    print(table(HEADINGS, shown))
    return {"programs": rows}


def contestants(case: Case) -> dict[str, tuple[Any, Any]]:
    """{name: (epoch(state, data, key), shapes of its state)}."""
    key, found = jax.random.key(0), {}
    for name, dtype in (("fnn", None), ("fnn, bfloat16", jnp.bfloat16)):
        network, optimizer = fnn.mlp(case.sizes), fnn.adam(RATE)
        network = network if dtype is None else fnn.compute_in(network, dtype)
        epoch = fnn.make_epoch(network, fnn.softmax_cross_entropy, optimizer, case.batch)
        init = lambda key, network=network, optimizer=optimizer: optimizer.init(network.init(key))
        found[name] = epoch, jax.eval_shape(init, key)
    try:
        state = jax.eval_shape(lambda key: optax_epoch(case, RATE, key)[0], key)
    except ModuleNotFoundError:
        return found
    return found | {"optax scan": (lambda *args: _optax(case, *args), state)}


def _optax(case: Case, state: Any, data: Any, key: Any) -> Any:
    """The peer's epoch, whose own initial state the compiler drops."""
    return optax_epoch(case, RATE, jax.random.key(0))[1](state, data, key)


def read(target: str, case: Case, contestant: str, epoch: Any, state: Any) -> dict[str, Any]:
    """What the target's compiler makes of one epoch."""
    n, shape = case.examples, jax.ShapeDtypeStruct
    data = shape((n, case.sizes[0]), jnp.float32), shape((n,), jnp.int32)
    jitted = jax.jit(epoch, donate_argnums=0)
    report = targets.compile_for(target, jitted, state, data, jax.random.key(1))
    loops = [loop for loop in report.loops if loop.trips is None or loop.seconds]
    step = max(loops, key=lambda loop: loop.seconds or 0, default=None)
    launched = sum(report.kernels.values())
    launched += sum(sum(loop.kernels.values()) * (loop.trips or 1) for loop in report.loops)
    return {
        "target": target,
        "network": case.name,
        "batch": case.batch,
        "contestant": contestant,
        "fits": report.fits,
        "kernels": step and sum(step.kernels.values()),
        "kinds": step and step.kernels,
        "trips": step and step.trips,
        "microseconds": step and step.seconds and step.seconds * 1e6,
        "kernels_per_epoch": launched,
        "loops": len(report.loops),
        "temporary": report.temp_bytes,
        "modelled_seconds": report.seconds,
        "modelled_share_of_peak": report.share,
    }
