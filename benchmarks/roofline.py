"""Each network's share of its limit: what the hardware would take for the necessary work.

The limit of a step is the time of its matrix products, at the best rate measured here for
those very shapes, and of the optimizer's bytes at the bandwidth measured here. Necessary are
Z = X W^T and dW = dZ^T X of each layer, and dX = dZ W of each but the first. Adam reads theta,
m, v and the gradient, and writes theta, m and v.

A product alone would be timed with the cost of feeding it. So two are chained, each the
other's input, with nothing else in the loop: forward after dX, forward after dW, dX after
dW. The three of a layer take half the sum of the three chains; the first layer's two are one
chain. Each chain is timed with W as (d_out, d_in) and as (d_in, d_out), and the faster counts.
"""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.data import CASES, Case, clusters
from benchmarks.peers import with_fnn
from benchmarks.report import table
from benchmarks.timing import Samples, alternate

Chain = Callable[[jax.Array, jax.Array], jax.Array]
"""The carried matrix and a constant one -> the carried matrix, after two products."""

# By layout of W. A chain's constant has orthonormal rows or columns: what is carried stays
# of one size, for ever.
CHAINS: dict[str, list[Chain]] = {
    "forward, dX": [lambda x, w: (x @ w.T) @ w, lambda x, w: (x @ w) @ w.T],
    "dW, forward": [lambda z, x: x @ (z.T @ x).T, lambda z, x: x @ (x.T @ z)],
    "dW, dX": [lambda x, z: z @ (z.T @ x), lambda x, z: z @ (x.T @ z).T],
}


def run(quick: bool) -> dict:
    """The share of each network, and what its limit is made of."""
    result, rows = {}, []
    for case in CASES[:2] if quick else CASES:
        found = share(case, rounds=5 if quick else 20)
        result[case.name] = found
        rows.append(
            [
                f"{case.name}, batch {case.batch}",
                found["step"] * 1e6,
                found["products"] * 1e6,
                found["optimizer"] * 1e6,
                found["gflops"],
                found["gigabytes"],
                found["share"],
            ]
        )
    headings = ["", "step, us", "products, us", "optimizer, us", "GFLOP/s", "GB/s", "share"]
    print(table(headings, rows))
    return {"networks": result}


def share(case: Case, rounds: int) -> dict[str, float]:
    """The median over the rounds of limit / time of a step, and the parts of the limit."""
    x, y = clusters(case)
    products = _products(case)
    weights = sum((d_in + 1) * d_out for d_in, d_out in itertools.pairwise(case.sizes))
    passes = _calls(24 * weights / 100e9)
    update = repeated(lambda a: 0.999 * a + 0.001, passes, jnp.ones(3 * weights))
    contestants = {"run": with_fnn(case, x, y), "bytes": update}
    contestants |= {name: program for name, (program, _, _) in products.items()}
    samples = alternate(contestants, rounds=rounds, least=0.01)

    seconds = np.zeros(rounds)
    for _, group in itertools.groupby(products, lambda name: name[:2]):
        best = min(group, key=lambda name: samples[name].median)
        _, calls, weight = products[best]
        seconds += weight * np.array(samples[best].values) / calls
    # Adam's 7 arrays against the 6 that are read and written here.
    optimizer = np.array(samples["bytes"].values) / passes * 7 / 6
    steps = case.epochs * case.examples / case.batch
    step = np.array(samples["run"].values) / steps
    flops = sum(
        2 * case.batch * d_in * d_out * (3 if layer else 2)
        for layer, (d_in, d_out) in enumerate(itertools.pairwise(case.sizes))
    )
    shares = Samples([float(s) for s in (seconds + optimizer) / step])
    return {
        "step": float(np.median(step)),
        "products": float(np.median(seconds)),
        "optimizer": float(np.median(optimizer)),
        "gflops": flops / float(np.median(seconds)) / 1e9,
        "gigabytes": 28 * weights / float(np.median(optimizer)) / 1e9,
        "share": shares.median,
        "quartiles": shares.quartiles,
    }


def _products(case: Case) -> dict[tuple, tuple[Callable, int, float]]:
    """(layer, chain, layout) -> its program, how often that runs it, its weight in a step."""
    programs = {}
    for layer, (d_in, d_out) in enumerate(itertools.pairwise(case.sizes)):
        x, z = orthonormal(case.batch, d_in), orthonormal(case.batch, d_out)
        w = orthonormal(d_out, d_in)
        operands = {"forward, dX": (x, w), "dW, forward": (z, x), "dW, dX": (x, z)}
        for name in CHAINS if layer else ["dW, forward"]:
            for layout, chain in enumerate(CHAINS[name]):
                carried, constant = operands[name]
                if name == "forward, dX" and layout:
                    constant = constant.T.copy()
                calls = _calls(4 * case.batch * d_in * d_out / 100e9)
                program = repeated(chain, calls, carried, constant)
                programs[layer, name, layout] = program, calls, 0.5 if layer else 1.0
    return programs


def _calls(guess: float) -> int:
    """How often to repeat what may take `guess` seconds, for about 20 ms: often enough for the
    copy of what is carried, made when the program starts, not to count."""
    return max(10, int(20e-3 / (guess + 1e-6)))


def repeated(chain: Callable, calls: int, carried: jax.Array, *constants: jax.Array) -> Callable:
    """A program that runs chain(carried, *constants) -> carried so often."""

    @jax.jit
    def program(carried, *constants):
        return jax.lax.fori_loop(0, calls, lambda _, c: chain(c, *constants), carried)

    return partial(program, carried, *constants)


def orthonormal(rows: int, columns: int, dtype: Any = np.float32) -> jax.Array:
    """A random matrix with orthonormal rows or columns, whichever are fewer."""
    a = np.random.default_rng(0).normal(size=(max(rows, columns), min(rows, columns)))
    q = np.linalg.qr(a)[0]
    return jnp.asarray(q if rows >= columns else q.T, dtype)


def plot(result: dict, folder: Path) -> None:
    """Where a step's time goes: necessary products, the optimizer's bytes, the rest."""
    import matplotlib.pyplot as plt

    networks = result["networks"]
    figure, axis = plt.subplots(figsize=(6, 2.6), layout="constrained")
    names, left = list(networks)[::-1], np.zeros(len(networks))
    for part in ("products", "optimizer"):
        width = np.array([networks[n][part] / networks[n]["step"] for n in names])
        axis.barh(names, width, left=left, label=part)
        left += width
    axis.barh(names, np.maximum(1 - left, 0), left=left, color="0.85", label="the rest")
    axis.set_xlabel("share of a step's time")
    axis.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.savefig(folder / "roofline.png", dpi=150)
    plt.close(figure)
