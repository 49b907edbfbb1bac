"""What watching costs: an epoch of `fit` beside one of `make_train`, the same training.

`fit` reports after each epoch; `make_train` is one program for all of them. Both train the same
network for the same number of epochs, in turn. `fit` compiles its epoch anew in each call, so that
its time per epoch is taken between its own reports, from the third epoch on.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

import fnn
from benchmarks.data import CASES, Case, clusters
from benchmarks.report import table
from benchmarks.timing import in_turn, ratio

FIRST = 3
"""Epochs of `fit` that are not measured: they compile, and find out how long an epoch takes."""


def run(quick: bool) -> dict:
    """The ratio of `fit` to `make_train` for the smaller cases."""
    result = {case.name: compare(case, 3 if quick else 15) for case in CASES[: 2 if quick else 3]}
    headings = ["fit over make_train", "median", "quartile 1", "quartile 3", "us per epoch, fit"]
    rows = [
        [name, r["ratio"]["median"], r["ratio"]["quartile_1"], r["ratio"]["quartile_3"],
         1e6 * r["fit"]["median"]]
        for name, r in result.items()
    ]  # fmt: skip
    print(table(headings, rows))
    return {"cases": result}


def compare(case: Case, rounds: int) -> dict:
    """Seconds per epoch of both, and their ratio."""
    x, y = map(jnp.asarray, clusters(case))
    network, optimizer, key = fnn.mlp(case.sizes), fnn.adam(1e-3), jax.random.key(1)
    epochs = max(6, 6 * case.epochs)
    params = network.init(key)
    train = jax.jit(
        fnn.make_train(network, fnn.softmax_cross_entropy, optimizer, case.batch, epochs)
    )

    def trained() -> float:
        start = time.perf_counter()
        jax.block_until_ready(train(params, (x, y), key))
        return (time.perf_counter() - start) / epochs

    def watched() -> float:
        reports: list[float] = []
        fnn.fit(
            network, fnn.softmax_cross_entropy, optimizer, (x, y),
            key=key, epochs=FIRST + epochs, batch_size=case.batch,
            on_epoch=lambda *report: reports.append(time.perf_counter()),
        )  # fmt: skip
        return (reports[-1] - reports[FIRST - 1]) / epochs

    contestants: dict[str, Callable[[], float]] = {"fit": watched, "make_train": trained}
    samples = in_turn(contestants, rounds)
    return {name: s.summary() for name, s in samples.items()} | {
        "ratio": ratio(samples["fit"], samples["make_train"]).summary()
    }
