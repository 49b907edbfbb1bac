"""What a stream costs: an epoch of `fit` on batches from a loader beside one on arrays in memory.

All train the same network on the same examples in the same number of steps, in turn. The sources:

    list      the batches, as NumPy arrays that are there already
    torch     a PyTorch DataLoader that fetches a batch of its tensors at once
    Grain     a Grain MapDataset of the batches, read on its own threads
    slow      the list, with a pause before each batch that makes the source take twice as long as
              the training

The first three are measured against `fit` on arrays: how much of its rate is kept. The slow one is
measured against the source alone: what its epoch takes beyond the time that the source takes.

Where the device is the CPU that reads too, and training keeps all cores busy, what a source
computes itself cannot be hidden: the table says how long each takes without training.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

import fnn
from benchmarks.data import Case, clusters
from benchmarks.report import table
from benchmarks.timing import in_turn, ratio

CASE = Case((784, 512, 256, 10), 128, 12_800, 1)
FIRST = 2
"""Epochs that are not measured: they compile, and find out how long an epoch takes."""
Batches = list[tuple[np.ndarray, np.ndarray]]


class Slow:
    """The batches, each after a pause of so many seconds."""

    def __init__(self, batches: Batches, pause: float) -> None:
        self.batches, self.pause = batches, pause

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One epoch."""
        for batch in self.batches:
            time.sleep(self.pause)
            yield batch


def run(quick: bool) -> dict:
    """The share of the in-memory rate that each source keeps, and what a slow one costs."""
    x, y = (np.asarray(a) for a in clusters(CASE))
    slices = [slice(i, i + CASE.batch) for i in range(0, len(x), CASE.batch)]
    batches = [(x[rows], y[rows]) for rows in slices]
    epochs, rounds = (2, 3) if quick else (4, 11)
    sources: dict[str, Any] = {
        "in memory": (x, y),
        "list": batches,
        "torch": torch_loader(x, y),
        "Grain": grain_loader(batches),
    }
    contestants = {name: epoch_of(source, epochs) for name, source in sources.items()}
    pause = 2 * contestants["in memory"]() / len(batches)
    slow = Slow(batches, pause)
    contestants |= {"slow": epoch_of(slow, epochs), "slow alone": lambda: read(slow)}
    samples = in_turn(contestants, rounds)
    against = dict.fromkeys(("list", "torch", "Grain"), "in memory") | {"slow": "slow alone"}
    alone = {name: min(read(sources.get(name, slow)) for _ in range(rounds)) for name in against}
    ratios = {
        name: ratio(samples[other], samples[name]).summary() for name, other in against.items()
    }
    headings = [
        "source",
        "measured against",
        "rate kept",
        "quartile 1",
        "quartile 3",
        "ms per epoch",
        "alone, ms",
    ]
    rows = [
        [name, against[name], r["median"], r["quartile_1"], r["quartile_3"],
         1e3 * samples[name].median, 1e3 * alone[name]]
        for name, r in ratios.items()
    ]  # fmt: skip
    print(f"{CASE.name}, {len(x)} examples in batches of {CASE.batch}\n")
    print(table(headings, rows))
    seconds = {name: s.summary() for name, s in samples.items()}
    return {"seconds": seconds, "rate_kept": ratios, "alone": alone}


def epoch_of(source: Any, epochs: int) -> Callable[[], float]:
    """Seconds per epoch of `fit`, between its own reports."""
    network, optimizer, key = fnn.mlp(CASE.sizes), fnn.adam(1e-3), jax.random.key(1)
    size = CASE.batch if isinstance(source, tuple) else None

    def timed() -> float:
        reports: list[float] = []
        fnn.fit(
            network, fnn.softmax_cross_entropy, optimizer, source,
            key=key, epochs=FIRST + epochs, batch_size=size,
            on_epoch=lambda *report: reports.append(time.perf_counter()),
        )  # fmt: skip
        return (reports[-1] - reports[FIRST - 1]) / epochs

    return timed


def read(source: Iterable[Any]) -> float:
    """Seconds that an epoch of the source takes by itself."""
    start = time.perf_counter()
    for _ in source:
        pass
    return time.perf_counter() - start


def torch_loader(x: np.ndarray, y: np.ndarray) -> Any:
    """Batches by index lists, so that each is one indexing of the tensors, in a fresh order; on one
    thread, as in PyTorch's own worker processes, for its idle ones would spin on XLA's cores."""
    import torch
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

    torch.set_num_threads(1)
    examples = TensorDataset(torch.from_numpy(x.copy()), torch.from_numpy(y.copy()))
    sampler = BatchSampler(RandomSampler(examples), CASE.batch, drop_last=False)
    return DataLoader(examples, sampler=sampler, batch_size=None)


def grain_loader(batches: Batches) -> Any:
    """The batches in one order, prefetched by Grain."""
    import grain

    return grain.MapDataset.source(batches)
