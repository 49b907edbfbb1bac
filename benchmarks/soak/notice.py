"""The time of an epoch with and without its flag of finiteness."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fnn
from fnn.training.faults import all_finite
from fnn.training.steps import make_epoch


def notice(rounds: int) -> dict[str, Any]:
    """Medians of alternating epochs, in milliseconds: as it is, and with its flag."""
    results = {}
    print("notice   network, batch, examples     plain ms  watched ms  ratio")
    for sizes, batch, n in (
        ((64, 32, 10), 32, 1437),
        ((64, 32, 10), 1437, 1437),
        ((784, 512, 256, 10), 128, 2560),
    ):
        network, optimizer = fnn.mlp(sizes), fnn.adam(1e-3)
        epoch = make_epoch(network, fnn.softmax_cross_entropy, optimizer, batch)
        state = optimizer.init(network.init(jax.random.key(0)))
        x = jax.random.normal(jax.random.key(1), (n, sizes[0]))
        y = jnp.arange(n) % 10

        def watched(state: Any, examples: Any, key: Any, epoch: Callable = epoch) -> Any:
            state, value = epoch(state, examples, key)
            return state, value, all_finite((state, value))

        kinds = {"plain": jax.jit(epoch), "watched": jax.jit(watched)}
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for i in range(rounds + 2):
            for name, f in kinds.items():
                start = time.perf_counter()
                out = jax.block_until_ready(f(state, (x, y), jax.random.key(i)))
                if name == "watched":
                    bool(out[2])
                if i > 1:
                    times[name].append(1e3 * (time.perf_counter() - start))
        plain, flagged = (statistics.median(times[name]) for name in ("plain", "watched"))
        name = f"{'-'.join(map(str, sizes))}, {batch}, {n}"
        results[name] = {"plain_ms": plain, "watched_ms": flagged, "ratio": flagged / plain}
        print(f"         {name:28} {plain:9.3f}  {flagged:10.3f}  {flagged / plain:5.3f}")
    return results
