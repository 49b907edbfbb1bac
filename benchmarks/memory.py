"""Depth and its memory: `repeat`, `remat` and `reversible` beside autodiff and `jax.checkpoint`.

Copies of dense-relu, width 64, batch 128, as a scan. Temporary memory is what XLA states of the
compiled gradient, in arrays of one activation per copy (128 x 64 float32); time is relative to
the plain `repeat`, in alternating calls. Then the error that `reversible` makes by recovering
its inputs: the gradient's relative difference from the one computed with all inputs kept, in
float64, by depth and dtype.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import fnn
from benchmarks.report import table
from benchmarks.timing import alternate, ratio

WIDTH, BATCH = 64, 128
DEPTHS = (2, 8, 32, 128, 512, 2048, 4096)


def block(d: int = WIDTH) -> fnn.Layer:
    """One copy: dense, relu."""
    return fnn.serial(fnn.dense(d, d), fnn.relu)


def cut(n: int) -> tuple[int, int]:
    """n = a b with a and b as near to the root of n as powers of two can be."""
    a = 2 ** (n.bit_length() // 2)
    return a, n // a


def ours(n: int) -> dict[str, fnn.Layer]:
    """The networks of depth n."""
    a, b = cut(n)
    return {
        "repeat": fnn.repeat(block(), n),
        "repeat of remat": fnn.repeat(fnn.remat(fnn.repeat(block(), a)), b),
        "reversible": fnn.reversible(block(WIDTH // 2), block(WIDTH // 2), n),
    }


def by_autodiff(n: int) -> dict[str, Callable[[Any, Any], Any]]:
    """The same forward passes, as functions of params and x for autodiff."""

    def scanned(params: Any, x: Any) -> Any:
        return jax.lax.scan(lambda x, p: (block().forward(p, x)[0], None), x, params)[0]

    @jax.checkpoint
    def group(x: Any, params: Any) -> Any:
        return scanned(params, x)

    def checkpointed(params: Any, x: Any) -> Any:
        return jax.lax.scan(lambda x, p: (group(x, p), None), x, params)[0]

    networks = ours(n)
    return {
        "scan": scanned,
        "scan of jax.checkpoint": checkpointed,
        "reversible by autodiff": lambda p, x: networks["reversible"].forward(p, x)[0],
    }


def programs(n: int) -> dict[str, Any]:
    """The compiled gradients of depth n, with their arguments."""
    key = jax.random.key(0)
    x = jax.random.normal(key, (BATCH, WIDTH))
    found = {}
    networks = ours(n)
    theirs = dict(zip(networks, by_autodiff(n).items(), strict=True))
    for name, network in networks.items():
        params = jax.tree.map(lambda p: p / 4, network.init(key))
        gradient = jax.jit(fnn.value_and_grad(network, fnn.mse))
        found[name] = partial(gradient.lower(params, x, x).compile(), params, x, x)
        other, forward = theirs[name]

        def mean(params: Any, x: Any, y: Any, forward: Callable = forward) -> Any:
            return fnn.mse.value(forward(params, x), y).mean()

        gradient = jax.jit(jax.value_and_grad(mean))
        found[other] = partial(gradient.lower(params, x, x).compile(), params, x, x)
    return found


def run(quick: bool) -> dict:
    """Memory and time by depth, and the error of `reversible`."""
    depths = DEPTHS[:4] if quick else DEPTHS
    memory, times = {}, {}
    for n in depths:
        found = programs(n)
        memory[n] = {
            name: p.func.memory_analysis().temp_size_in_bytes / (n * BATCH * WIDTH * 4)
            for name, p in found.items()
        }
        samples = alternate(found, rounds=3 if quick or n > 512 else 9)
        times[n] = {name: ratio(s, samples["repeat"]).median for name, s in samples.items()}
    names = list(memory[depths[0]])
    print("Temporary memory, in arrays of one activation per copy")
    print(table(["depth", *names], [[n, *memory[n].values()] for n in depths]))
    print("\nTime over that of repeat")
    print(table(["depth", *names], [[n, *[times[n][name] for name in names]] for n in depths]))
    dtypes = ("float32", "bfloat16")
    errors = {n: {d: error(n, d) for d in dtypes} for n in depths if n <= 512}
    print("\nRelative error of reversible's gradient, and of autodiff's of the same blocks")
    headings = ["depth", *[f"{d}, {who}" for d in dtypes for who in ("ours", "autodiff")]]
    print(table(headings, [[n, *[e for d in dtypes for e in r[d]]] for n, r in errors.items()]))
    return {"memory": memory, "time": times, "error": errors}


def error(n: int, dtype: str) -> tuple[float, float]:
    """The relative error of the gradient in a dtype, ours and autodiff's, against float64."""
    with jax.enable_x64(True):
        d = WIDTH // 2
        layer = fnn.reversible(block(d), block(d), n)
        key = jax.random.key(0)
        params = jax.tree.map(lambda p: p.astype(jnp.float64) / max(1, n) ** 0.5, layer.init(key))
        x = jax.random.normal(key, (BATCH, WIDTH), jnp.float64)

        def by_autodiff(params: Any, x: Any) -> Any:
            return jax.grad(lambda p: fnn.mse.value(layer.forward(p, x)[0], x).mean())(params)

        def by_hand(params: Any, x: Any) -> Any:
            return fnn.value_and_grad(layer, fnn.mse)(params, x, x)[1]

        exact = jax.jit(by_autodiff)(params, x)
        narrow = jax.tree.map(lambda a: a.astype(dtype), (params, x))

        def relative(gradient: Callable) -> float:
            got = jax.jit(gradient)(*narrow)
            pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True))
            off = sum(float(jnp.square(g.astype(jnp.float64) - e).sum()) for g, e in pairs)
            return (off / sum(float(jnp.square(e).sum()) for _, e in pairs)) ** 0.5

        return relative(by_hand), relative(by_autodiff)


def plot(result: dict, folder: Path) -> None:
    """Memory on the left, time on the right, by depth."""
    import matplotlib.pyplot as plt

    depths = list(result["memory"])
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, which, label in zip(
        axes, ("memory", "time"), ("temporary memory, activations", "time over repeat"), strict=True
    ):
        for i, name in enumerate(result[which][depths[0]]):
            values = [result[which][n][name] * (n if which == "memory" else 1) for n in depths]
            style = "-o" if i % 2 == 0 else "--x"
            axis.plot(depths, values, style, color=f"C{i // 2}", label=name, markersize=4)
        axis.set(xscale="log", yscale="log", xlabel="depth", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False, fontsize="small")
    figure.savefig(folder / "memory.png", dpi=150)
    plt.close(figure)
