"""Time to the first step by depth: tracing, lowering, compiling and running it once.

A step of Adam on a network with hidden layers of 64 neurons, batch 128: unrolled by `serial`
and scanned by `repeat`, with the hand-written gradient and with autodiff's.
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from benchmarks.report import table

DEPTHS = (2, 8, 32, 128, 512)
UNROLLED = 128
"""The deepest network that is unrolled; what it costs is plain by then."""


def run(quick: bool) -> dict:
    """Seconds to the first step; the least of a few, for compiling is done once."""
    run_once = {"hand-written": fnn.value_and_grad, "autodiff": _autodiff}
    result: dict[str, dict[str, float]] = {}
    for depth in DEPTHS[:3] if quick else DEPTHS:
        kinds = ["repeat", "serial"] if depth <= UNROLLED else ["repeat"]
        cases = [(kind, name) for kind in kinds for name in run_once]
        seconds: dict[str, list[float]] = {f"{kind}, {name}": [] for kind, name in cases}
        for _ in range(1 if quick else 3):
            for kind, name in cases:
                seconds[f"{kind}, {name}"].append(first_step(kind, depth, run_once[name]))
        result[str(depth)] = {name: min(values) for name, values in seconds.items()}
    names = list(result[str(DEPTHS[0])])
    print("Seconds")
    print(
        table(["depth", *names], [[d, *(r.get(n, "") for n in names)] for d, r in result.items()])
    )
    return {"seconds": result}


def first_step(kind: str, depth: int, value_and_grad) -> float:
    """From a network that was never run to its parameters after one step."""
    layer = fnn.serial(fnn.dense(64, 64), fnn.relu)
    hidden = fnn.repeat(layer, depth) if kind == "repeat" else fnn.serial(*[layer] * depth)
    network, optimizer = fnn.serial(hidden, fnn.dense(64, 10)), fnn.adam(1e-3)
    gradient = value_and_grad(network, fnn.softmax_cross_entropy)
    # Parameters without `init`: drawing them would compile programs of its own.
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    state = optimizer.init(jax.tree.map(lambda s: np.full(s.shape, 0.01, s.dtype), shapes))
    x, y = jnp.ones((128, 64)), jnp.zeros(128, jnp.int32)
    jax.block_until_ready((state, x, y))

    def step(state, x, y):
        value, grads = gradient(state.params, x, y)
        return optimizer.update(state, grads), value

    start = time.perf_counter()
    jax.block_until_ready(jax.jit(step)(state, x, y))
    return time.perf_counter() - start


def _autodiff(network, loss):
    return jax.value_and_grad(fnn.objective(network, loss))


def plot(result: dict, folder: Path) -> None:
    """Seconds to the first step over the depth."""
    import matplotlib.pyplot as plt

    seconds = result["seconds"]
    figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for name in next(iter(seconds.values())):
        depths = [depth for depth in seconds if name in seconds[depth]]
        axis.plot(
            [int(depth) for depth in depths],
            [seconds[depth][name] for depth in depths],
            marker="o",
            color="C0" if "hand" in name else "C1",
            linestyle="-" if "repeat" in name else "--",
            label=name,
        )
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set(xlabel="hidden layers", ylabel="seconds to the first step", ylim=(0, None))
    axis.legend()
    figure.savefig(folder / "compile.png", dpi=150)
    plt.close(figure)
