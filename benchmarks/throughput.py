"""Training on this device: TFLOP/s, GB/s, examples and joules, and the share of the device's peaks.

A network of three dense layers of one width (relu between them, mean squared error, Adam) trains
in runs of `make_epoch`, shuffling included. In dtypes of less than 32 bits it computes by
`compute_in`: parameters and optimizer stay in float32, as they do in mixed precision everywhere.

Counted are by formula, for batch B, width W and s bytes per number:

    products   Z = X W^T and dW = dZ^T X of each layer, dX = dZ W of each but the first: 8 in all,
               each of 2 B W^2 flops, and of (2 B W + W^2) s bytes, operands and result
    Adam       7 numbers per parameter: reads theta, m, v and the gradient, writes theta, m, v

XLA's own counts of a step stand beside them in the JSON file (`flops_xla`, `bytes_xla`).

The peaks are measured in the same rounds: this device's rate for products of those very shapes, as
`roofline` chains them, and the bandwidth of a pass over an array as large as theta, m and v. Small
ones stay in the caches, as the optimizer's arrays do, and a pass is then faster than memory.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from benchmarks import power
from benchmarks.report import table
from benchmarks.roofline import CHAINS, orthonormal, repeated
from benchmarks.timing import Samples, alternate

WIDTHS, BATCHES, DTYPES = (128, 512, 2048), (32, 256, 4096), ("float32", "bfloat16")
LAYERS, PRODUCTS = 3, 8
WEIGHTS = {"forward, dX": 1, "dW, forward": 2, "dW, dX": 1}
"""How often each chain of two counts, for three Z, three dW and two dX."""
PROGRAM = 20e-3
"""Seconds that a program takes or more, so that starting it costs little of its time."""
NUMBERS = 2**25
"""The most that x and y have of each; more steps are further epochs."""
CALLS = 2000
"""A chain runs no more often: in bfloat16 its constant is not quite orthonormal."""
METERED = 1.0
"""Seconds of training while the power is read."""


def run(
    quick: bool,
    widths: Sequence[int] | None = None,
    batches: Sequence[int] | None = None,
    dtypes: Sequence[str] = DTYPES,
) -> dict:
    """Every dtype, width and batch size; where none are given, quick leaves out the largest."""
    widths = widths or (WIDTHS[:-1] if quick else WIDTHS)
    batches = batches or (BATCHES[:-1] if quick else BATCHES)
    meter = power.meter(jax.devices()[0])
    cells = []
    for dtype, width, batch in itertools.product(dtypes, widths, batches):
        with jax.enable_x64(dtype == "float64"):
            cells.append(measured(width, batch, jnp.dtype(dtype), 3 if quick else 10, meter))
    headings = ["", "step, us", "examples/s", "TFLOP/s", "of products'", "GB/s", "of copies'"]
    rows = [
        [
            f"{c['dtype']}, {c['width']} wide, batch {c['batch']}",
            c["step"]["median"] * 1e6,
            c["examples_per_second"],
            c["tflops"],
            c["share_of_products"]["median"],
            c["gigabytes_per_second"],
            c["share_of_copies"]["median"],
        ]
        for c in cells
    ]
    if meter is not None:
        headings += ["W", "J per example"]
        for row, c in zip(rows, cells, strict=True):
            row += [_or_dash(c["watts"]), _or_dash(c["joules_per_example"])]
    print(table(headings, rows))
    if meter is None:
        print("power: neither nvidia-smi nor readable RAPL counters on this machine")
    return {"cells": cells, "threads": len(os.sched_getaffinity(0)), "power": meter is not None}


def measured(
    width: int, batch: int, dtype: np.dtype, rounds: int, meter: power.Meter | None
) -> dict[str, Any]:
    """One network's rates, the device's peaks beside them, and the samples of both."""
    x, w = orthonormal(batch, width, dtype), orthonormal(width, width, dtype)
    flops = PRODUCTS * 2 * batch * width**2
    two = _seconds(x, w)
    needed = max(1, round(PROGRAM / (PRODUCTS / 2 * two)))
    steps = min(needed, NUMBERS // (batch * width) + 1)
    epochs = -(-needed // steps)
    train, step = training(width, batch, dtype, steps, epochs)
    calls = int(np.clip(PROGRAM / two, 2, CALLS))
    kept = kept_in(dtype)
    array = LAYERS * (width + 1) * width * kept.itemsize
    passes = int(np.clip(PROGRAM * 50e9 / (6 * array), 2, CALLS))
    contestants: dict[Any, Callable] = {
        "train": train,
        "pass": repeated(
            lambda a: 0.999 * a + 0.001, passes, jnp.ones(3 * array // kept.itemsize, kept)
        ),
    }
    operands = {"forward, dX": (x, w), "dW, forward": (x, x), "dW, dX": (x, x)}
    for name, layouts in CHAINS.items():
        for layout, chain in enumerate(layouts):
            contestants[name, layout] = repeated(chain, calls, *operands[name])
    samples = alternate(contestants, rounds=rounds)

    seconds = np.array(samples["train"].values) / (steps * epochs)
    # The better layout of each chain.
    chains = [
        weight * np.array(min(samples[name, 0], samples[name, 1], key=lambda s: s.median).values)
        for name, weight in WEIGHTS.items()
    ]
    flops_peak = flops * calls / sum(chains)
    bytes_peak = 6 * array * passes / np.array(samples["pass"].values)
    moved = PRODUCTS * (2 * batch * width + width**2) * dtype.itemsize + 7 * array
    cost = step.cost_analysis() or {}
    median = float(np.median(seconds))
    drawn = power.watts(meter, train, METERED)
    return {
        "dtype": dtype.name,
        "width": width,
        "batch": batch,
        "step": _summary(seconds) | {"first_call": samples["train"].first},
        "examples_per_second": batch / median,
        "flops": flops,
        "bytes": moved,
        "flops_xla": cost.get("flops"),
        "bytes_xla": cost.get("bytes accessed"),
        "tflops": flops / median / 1e12,
        "gigabytes_per_second": moved / median / 1e9,
        "peak_tflops": _summary(flops_peak / 1e12),
        "peak_gigabytes_per_second": _summary(bytes_peak / 1e9),
        "share_of_products": _summary(flops / seconds / flops_peak),
        "share_of_copies": _summary(moved / seconds / bytes_peak),
        "watts": drawn,
        "joules_per_example": None if drawn is None else drawn * median / batch,
    }


def training(
    width: int, batch: int, dtype: np.dtype, steps: int, epochs: int
) -> tuple[Callable[[], Any], jax.stages.Compiled]:
    """A run of epochs of so many steps, from where the last one ended; and one step, compiled."""
    network, kept = fnn.mlp((width,) * (LAYERS + 1)), kept_in(dtype)
    if kept != dtype:
        network = fnn.compute_in(network, dtype)
    optimizer = fnn.adam(1e-3)
    x, y = jax.random.normal(jax.random.key(0), (2, steps * batch, width), kept)
    params = jax.tree.map(lambda p: p.astype(kept), network.init(jax.random.key(1)))
    state, key = optimizer.init(params), jax.random.key(2)
    step = jax.jit(fnn.make_step(network, fnn.mse, optimizer))
    epoch = fnn.make_epoch(network, fnn.mse, optimizer, batch)

    @partial(jax.jit, donate_argnums=0)
    def advance(state: Any, key: jax.Array, x: jax.Array, y: jax.Array) -> tuple:
        keys = jax.random.split(key, epochs + 1)
        state, losses = jax.lax.scan(lambda s, k: epoch(s, (x, y), k), state, keys[1:])
        return state, losses[-1], keys[0]

    def train() -> jax.Array:
        nonlocal state, key
        state, loss, key = advance(state, key, x, y)
        return loss

    return train, step.lower(state, (x[:batch], y[:batch])).compile()


def kept_in(dtype: np.dtype) -> np.dtype:
    """The dtype of parameters and optimizer where the network computes in this one."""
    return dtype if dtype.itemsize >= 4 else jnp.dtype("float32")


def _seconds(x: jax.Array, w: jax.Array) -> float:
    """Of a chain of two products, roughly: how often programs must repeat theirs."""
    calls = 4
    program = repeated(CHAINS["forward, dX"][0], calls, x, w)
    return alternate({"": program}, rounds=1)[""].median / calls


def _or_dash(value: float | None) -> float | str:
    return "-" if value is None else value


def _summary(values: np.ndarray) -> dict[str, Any]:
    """Quartiles, and the rounds themselves, which `compare` draws from."""
    samples = Samples([float(value) for value in values])
    return samples.summary() | {"values": samples.values}


def plot(result: dict, folder: Path) -> None:
    """Heat maps by width and batch: the share of the products' rate, and of the copies'."""
    import matplotlib.pyplot as plt

    cells = result["cells"]
    dtypes, widths, batches = (
        list(dict.fromkeys(cell[axis] for cell in cells)) for axis in ("dtype", "width", "batch")
    )
    size = (1 + 2.2 * len(batches), 0.9 + 1.1 * len(widths) * len(dtypes))
    figure, axes = plt.subplots(
        len(dtypes), 2, figsize=(2 * size[0], size[1]), layout="constrained", squeeze=False
    )
    kinds = {
        "share_of_products": ("tflops", "TFLOP/s", "the device's products"),
        "share_of_copies": ("gigabytes_per_second", "GB/s", "the device's copies"),
    }
    for row, dtype in zip(axes, dtypes, strict=True):
        found = {(c["width"], c["batch"]): c for c in cells if c["dtype"] == dtype}
        for axis, (share, (rate, unit, of)) in zip(row, kinds.items(), strict=True):
            shares = np.array([[found[w, b][share]["median"] for b in batches] for w in widths])
            image = axis.imshow(shares, vmin=0, vmax=1, origin="lower", aspect="auto")
            for (i, w), (j, b) in itertools.product(enumerate(widths), enumerate(batches)):
                text = f"{found[w, b][rate]:.3g} {unit}\n{shares[i, j]:.0%}"
                color = "black" if shares[i, j] > 0.6 else "white"
                axis.text(j, i, text, ha="center", va="center", color=color)
            axis.set_xticks(range(len(batches)), batches)
            axis.set_yticks(range(len(widths)), widths)
            axis.set(xlabel="batch", ylabel="width", title=f"{dtype}, share of {of}")
        figure.colorbar(image, ax=list(row))
    figure.savefig(folder / "throughput.png", dpi=120)
    plt.close(figure)
