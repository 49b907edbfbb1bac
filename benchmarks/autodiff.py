"""The hand-written gradient against autodiff's: the same forward pass, the same program.

`value_and_grad(network, loss)` and `jax.value_and_grad(objective(network, loss))`, each by
itself under `jax.jit`. Every number is ours over autodiff's: below 1 is better. flops, bytes
and temporary memory are what XLA states of the compiled programs. `run` is the time of some
steps of gradient descent in one program, the same around both; `call` that of the gradient
called by itself, where the program's first operations decide which threads of the CPU's runtime
share the rest.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

import fnn
from benchmarks.report import table
from benchmarks.timing import Samples, alternate, ratio

STEPS, RATE = 8, 1e-3


class Comparison(NamedTuple):
    """A network on a batch; classes are its last width."""

    name: str
    network: fnn.Layer
    d_in: int
    classes: int
    batch: int


def _mlp(sizes: tuple[int, ...], batch: int, activation: str = "relu") -> Comparison:
    layer = ACTIVATIONS[activation]
    name = f"{'-'.join(map(str, sizes))} {activation}, batch {batch}"
    return Comparison(name, fnn.mlp(sizes, activation=layer), sizes[0], sizes[-1], batch)


def _deep(depth: int, repeated: bool, activation: str = "relu") -> Comparison:
    """`depth` hidden layers of 64 neurons, unrolled or as a scan."""
    layer = fnn.serial(fnn.dense(64, 64), ACTIVATIONS[activation])
    hidden = fnn.repeat(layer, depth) if repeated else fnn.serial(*[layer] * depth)
    kind = "repeat" if repeated else "serial"
    network = fnn.serial(hidden, fnn.dense(64, 10))
    return Comparison(f"{kind}, depth {depth}, {activation}", network, 64, 10, 128)


ACTIVATIONS = {
    "relu": fnn.relu,
    "tanh": fnn.tanh,
    "sigmoid": fnn.sigmoid,
    "gelu": fnn.gelu,
    "silu": fnn.silu,
    "elu": fnn.elu(),
    "softplus": fnn.softplus,
}

QUICK = [
    _mlp((64, 32, 10), 32),
    _mlp((784, 128, 10), 128),
    *[_deep(depth, False) for depth in (2, 32)],
    *[_deep(depth, True) for depth in (2, 64)],
]
FULL = [
    _mlp((64, 32, 10), 32),
    _mlp((784, 128, 10), 128),
    _mlp((784, 512, 256, 10), 128),
    _mlp((784, 1024, 1024, 1024, 10), 512),
    *[_mlp((784, 128, 10), batch) for batch in (1, 4096)],
    *[_mlp((784, 256, 256, 10), 128, name) for name in ACTIVATIONS],
    *[_deep(depth, False) for depth in (2, 8, 32, 128, 512)],
    *[_deep(depth, False, name) for depth in (32,) for name in ("tanh", "gelu")],
    *[_deep(depth, True) for depth in (2, 8, 32, 64, 128, 512)],
    *[_deep(64, True, name) for name in ("tanh", "gelu")],
]


def run(quick: bool) -> dict:
    """Every comparison: what XLA states, then times."""
    result = {}
    for case in QUICK if quick else FULL:
        result[case.name] = compare(case, rounds=5 if quick or "depth 512" in case.name else 20)
    headings = ["ours / autodiff", *COLUMNS]
    print(table(headings, [[name, *map(r.get, COLUMNS)] for name, r in result.items()]))
    return {"ratios": result}


COLUMNS = ["flops", "bytes", "temporary memory", "trace and lower", "compile", "run", "call"]


def compare(case: Comparison, rounds: int) -> dict[str, float]:
    """The ratios of one case, and the seconds and bytes behind them."""
    key = jax.random.key(0)
    params = case.network.init(key)
    x = jax.random.normal(key, (case.batch, case.d_in))
    y = jax.random.randint(key, (case.batch,), 0, case.classes)
    pair = case.network, fnn.softmax_cross_entropy
    make: dict[str, Callable[[], Callable]] = {
        "ours": lambda: fnn.value_and_grad(*pair),
        "autodiff": lambda: jax.value_and_grad(fnn.objective(*pair)),
    }

    def lower(name: str) -> Any:
        return jax.jit(make[name]()).lower(params, x, y)

    lowering = alternate(
        {name: partial(lower, name) for name in make},
        rounds=rounds,
        least=0,
        clock=time.thread_time,
    )
    compiled: dict[str, Any] = {}
    compiling: dict[str, list[float]] = {name: [] for name in make}
    for name in [*make, *make]:
        lowered = lower(name)
        start = time.perf_counter()
        compiled[name] = lowered.compile()
        compiling[name].append(time.perf_counter() - start)
    running = alternate(
        {name: partial(descent(make[name]()), params, x, y) for name in make},
        rounds=rounds,
        least=0.02,
    )
    calling = alternate(
        {name: partial(program, params, x, y) for name, program in compiled.items()},
        rounds=rounds,
        least=0.02,
    )
    cost = {name: program.cost_analysis() for name, program in compiled.items()}
    memory = {
        name: program.memory_analysis().temp_size_in_bytes for name, program in compiled.items()
    }

    def over(values: dict[str, float]) -> float:
        return values["ours"] / values["autodiff"]

    def times(samples: dict[str, Samples]) -> float:
        return ratio(samples["ours"], samples["autodiff"]).median

    return {
        "flops": over({name: c["flops"] for name, c in cost.items()}),
        "bytes": over({name: c["bytes accessed"] for name, c in cost.items()}),
        "temporary memory": over(memory),
        "trace and lower": times(lowering),
        "compile": over({name: min(seconds) for name, seconds in compiling.items()}),
        "run": times(running),
        "call": times(calling),
        "seconds": {
            "trace and lower": {name: s.summary() for name, s in lowering.items()},
            "run": {name: s.summary() for name, s in running.items()},
            "call": {name: s.summary() for name, s in calling.items()},
            "compile": {name: min(seconds) for name, seconds in compiling.items()},
        },
        "temporary bytes": memory,
    }


def descent(gradient: Callable) -> Callable:
    """Steps of gradient descent, compiled."""

    def step(params, x, y):
        value, grads = gradient(params, x, y)
        return jax.tree.map(lambda p, g: p - RATE * g, params, grads), value

    @jax.jit
    def steps(params, x, y):
        return jax.lax.scan(lambda p, _: step(p, x, y), params, length=STEPS)

    return steps


def plot(result: dict, folder: Path) -> None:
    """A row a comparison, a mark for each of its ratios."""
    import matplotlib.pyplot as plt

    ratios = result["ratios"]
    names = list(ratios)[::-1]
    figure, axis = plt.subplots(figsize=(8, 1 + 0.24 * len(names)), layout="constrained")
    for column, marker in zip(COLUMNS, "os^Dvx+", strict=True):
        axis.plot([ratios[n][column] for n in names], names, marker, label=column, alpha=0.8)
    axis.axvline(1, color="0.5", linewidth=0.8)
    axis.grid(axis="y", color="0.9")
    axis.set(xlabel="hand-written over autodiff", xlim=(0, None))
    axis.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.savefig(folder / "autodiff.png", dpi=150)
    plt.close(figure)
