"""What each added example, layer and model costs; and data that come in batches.

Growth: the time of an epoch of 64-32-10 (batch 32, Adam) by the number of examples, and with
1,437 of them by the number of models under `vmap`; the time of a step of Adam (width 64, batch
128) by the number of hidden layers under `repeat`. A straight line is fitted to each.

Streaming: epochs of `fit` on (x, y) in memory, against `fit` on an iterable of batches, cut
from an array in order (a fast source) or gathered in a fresh random order each epoch.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from benchmarks.data import CASES, Case, clusters
from benchmarks.report import table
from benchmarks.timing import Samples, alternate


def run(quick: bool) -> dict:
    """The lines, and the rate of streaming over that of data in memory."""
    rounds = 3 if quick else 15
    lines = {
        "examples": line(examples, (1000, 2000, 4000, 8000, 16_000, 32_000), rounds),
        "layers": line(layers, (8, 16, 32, 64, 128, 256), rounds),
        "models": line(models, (8, 16, 32, 64, 128, 256)[: 4 if quick else 6], rounds),
    }
    headings = ["", "each more, us", "before the first, us", "r^2", "worst point off the line"]
    print(table(headings, [[name, *list(found.values())[:4]] for name, found in lines.items()]))

    streams = {
        case.name: streaming(case, 2 if quick else 6) for case in CASES[1 : 2 if quick else 3]
    }
    print("\nExamples a second, streaming over in memory")
    print(
        table(
            ["", "in order", "gathered"],
            [[name, rate["in order"], rate["gathered"]] for name, rate in streams.items()],
        )
    )
    return {"lines": lines, "streaming": streams}


def examples(n: int) -> Callable:
    """An epoch of n examples."""
    case = CASES[0]._replace(examples=n)
    x, y = map(jnp.asarray, clusters(case))
    network, optimizer = fnn.mlp(case.sizes), fnn.adam(1e-3)
    epoch = jax.jit(fnn.make_epoch(network, fnn.softmax_cross_entropy, optimizer, case.batch))
    state = optimizer.init(network.init(jax.random.key(0)))
    return partial(epoch, state, (x, y), jax.random.key(1))


def layers(n: int) -> Callable:
    """A step through n hidden layers."""
    hidden = fnn.repeat(fnn.serial(fnn.dense(64, 64), fnn.relu), n)
    network, optimizer = fnn.serial(hidden, fnn.dense(64, 10)), fnn.adam(1e-3)
    step = jax.jit(fnn.make_step(network, fnn.softmax_cross_entropy, optimizer))
    state = optimizer.init(network.init(jax.random.key(0)))
    return partial(step, state, (jnp.ones((128, 64)), jnp.zeros(128, jnp.int32)))


def models(n: int) -> Callable:
    """An epoch of n models at once."""
    case = CASES[0]
    data = tuple(map(jnp.asarray, clusters(case)))
    network, optimizer = fnn.mlp(case.sizes), fnn.adam(1e-3)
    epoch = fnn.make_epoch(network, fnn.softmax_cross_entropy, optimizer, case.batch)
    keys = jax.random.split(jax.random.key(0), n)
    states = jax.vmap(lambda key: optimizer.init(network.init(key)))(keys)
    return partial(jax.jit(jax.vmap(epoch, in_axes=(0, None, 0))), states, data, keys)


def line(make: Callable[[int], Callable], sizes: tuple[int, ...], rounds: int) -> dict:
    """time = before + each * size, by least squares of relative errors."""
    samples = alternate({str(n): make(n) for n in sizes}, rounds=rounds, least=0.005)
    seconds = np.array([samples[str(n)].median for n in sizes])
    design = np.stack([np.ones(len(sizes)), sizes], axis=1)
    (before, each), *_ = np.linalg.lstsq(design / seconds[:, None], np.ones(len(sizes)), rcond=None)
    fitted = design @ (before, each)
    residual, spread = ((seconds - fitted) ** 2).sum(), ((seconds - seconds.mean()) ** 2).sum()
    return {
        "each": each * 1e6,
        "before": before * 1e6,
        "r2": 1 - residual / spread,
        "worst": float(np.abs(fitted / seconds - 1).max()),
        "sizes": list(sizes),
        "seconds": seconds.tolist(),
    }


class Source:
    """Batches of (x, y), anew each time it is iterated over."""

    def __init__(self, case: Case, x: np.ndarray, y: np.ndarray, shuffled: bool):
        self.case, self.x, self.y, self.shuffled = case, x, y, shuffled
        self.rng = np.random.default_rng(0)

    def __iter__(self):
        """The smaller last batch included."""
        order = self.rng.permutation(self.case.examples) if self.shuffled else None
        for start in range(0, self.case.examples, self.case.batch):
            rows = slice(start, start + self.case.batch)
            rows = rows if order is None else order[rows]
            yield self.x[rows], self.y[rows]


def streaming(case: Case, repetitions: int) -> dict[str, float]:
    """How many times as fast as from memory; medians of epochs of fits in turn."""
    x, y = clusters(case)
    sources = {
        "in memory": ((x, y), case.batch),
        "in order": (Source(case, x, y, shuffled=False), None),
        "gathered": (Source(case, x, y, shuffled=True), None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(repetitions):
        for name, (data, batch) in sources.items():
            seconds[name] += epoch_seconds(case, data, batch)
    medians = {name: Samples(values).median for name, values in seconds.items()}
    return {name: medians["in memory"] / median for name, median in medians.items()}


def epoch_seconds(case: Case, data, batch_size: int | None, epochs: int = 6) -> list[float]:
    """The seconds of each epoch of a fit but the first, which compiles."""
    ends = []
    fnn.fit(
        fnn.mlp(case.sizes),
        fnn.softmax_cross_entropy,
        fnn.adam(1e-3),
        data,
        key=jax.random.key(0),
        epochs=epochs,
        batch_size=batch_size,
        on_epoch=lambda *_: ends.append(time.perf_counter()),
    )
    return np.diff(ends).tolist()


def plot(result: dict, folder: Path) -> None:
    """A panel each for examples, layers and models: the points and their line."""
    import matplotlib.pyplot as plt

    lines = result["lines"]
    figure, axes = plt.subplots(1, len(lines), figsize=(4 * len(lines), 3.2), layout="constrained")
    for axis, (name, found) in zip(axes, lines.items(), strict=True):
        sizes = np.array(found["sizes"])
        axis.plot(sizes, np.array(found["seconds"]) * 1e3, "o")
        axis.plot(sizes, (found["before"] + found["each"] * sizes) / 1e3, color="0.5", zorder=0)
        axis.set(xlabel=name, ylabel="milliseconds")
        axis.set_title(f"{found['each']:.3g} us each, r^2 {found['r2']:.4f}", fontsize=10)
        axis.set_ylim(bottom=0)
        axis.set_xlim(left=0)
    figure.savefig(folder / "growth.png", dpi=150)
    plt.close(figure)
