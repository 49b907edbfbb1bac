"""Many runs at once by vmap, against the same runs one by one.

A run is two epochs of 64-32-10 at batch 32 with Adam from fresh parameters, each with its own
key and learning rate. `vmap` is one program for all, on one device; `vmap, sharded` has a part
of the runs on each device, where each of the CPU's cores is a device (`jax_num_cpu_devices`).
`one by one` calls the compiled program of a single run in a Python loop, as does `optax, one by
one` with the strongest peer's. Runs one by one are independent, so a few are timed and the
throughput stands for all.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

import fnn
from benchmarks.data import CASES, clusters
from benchmarks.peers import optax_epoch
from benchmarks.report import table
from benchmarks.timing import alternate, ratio

EPOCHS = 2
LOOPED = 8
"""How many of the runs one by one are timed."""


def run(quick: bool) -> dict:
    """Throughput by the number of networks, and how often the programs were compiled."""
    case = CASES[0]
    x, y = map(jnp.asarray, clusters(case))
    network = fnn.mlp(case.sizes)
    traces = {"vmap": 0}

    def one(rate, key, x, y):
        traces["vmap"] += 1
        init_key, key = jax.random.split(key)
        train = fnn.make_train(
            network, fnn.softmax_cross_entropy, fnn.adam(rate), case.batch, EPOCHS
        )
        return train(network.init(init_key), (x, y), key)[1]

    def optax_one(rate, key, x, y):
        init_key, key = jax.random.split(key)
        state, epoch = optax_epoch(case, rate, init_key)
        keys = jax.random.split(key, EPOCHS)
        return jax.lax.scan(lambda s, k: epoch(s, (x, y), k), state, keys)[1]

    single, peer = jax.jit(one), jax.jit(optax_one)
    result, rows = {}, []
    for models in (1, 16, 64) if quick else (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
        rates = jnp.logspace(-4, -2, models)
        keys = jax.random.split(jax.random.key(0), models)
        batched = jax.vmap(one, in_axes=(0, 0, None, None))
        many, spread = jax.jit(batched), sharded(batched, models)
        looped = min(models, LOOPED)

        def loop(program, rates=rates, keys=keys, looped=looped):
            return [program(rates[i], keys[i], x, y) for i in range(looped)]

        samples = alternate(
            {
                "vmap": partial(many, rates, keys, x, y),
                "vmap, sharded": partial(spread, rates, keys, x, y),
                "one by one": lambda loop=loop: loop(single),
                "optax, one by one": lambda loop=loop: loop(peer),
            },
            rounds=3 if quick else (20 if models <= 64 else 5),
            least=0,
        )
        traces["vmap"] = 0
        jax.block_until_ready((many(rates / 2, keys, x, y), spread(rates / 2, keys, x, y)))
        steps = EPOCHS * case.steps
        share = {name: looped if "one by one" in name else models for name in samples}
        gain = {
            f"{name} over {other}": ratio(samples[other], samples[name]).median * models / looped
            for name in ("vmap", "vmap, sharded")
            for other in ("one by one", "optax, one by one")
        }
        result[str(models)] = {
            "seconds per run": {name: s.median / share[name] for name, s in samples.items()},
            "throughput": gain,
            "compilations for other rates": traces["vmap"],
            "first call": samples["vmap"].first,
        }
        rows.append(
            [
                str(models),
                *(s.median / share[name] / steps * 1e6 for name, s in samples.items()),
                *gain.values(),
                traces["vmap"],
            ]
        )
    headings = [
        "networks",
        *("vmap, us", "sharded, us", "one by one, us", "optax, us"),
        *("vmap / one", "vmap / optax", "sharded / one", "sharded / optax"),
        "compiled again",
    ]
    print(f"Microseconds a step and network, and throughputs, on {len(jax.devices())} devices")
    print(table(headings, rows))
    return {"networks": result, "devices": len(jax.devices())}


def sharded(batched: Callable, models: int) -> Callable:
    """batched(rates, keys, x, y) with the same number of the models on each device."""
    devices = max(d for d in range(1, len(jax.devices()) + 1) if models % d == 0)
    mesh = jax.sharding.Mesh(jax.devices()[:devices], ("runs",))
    runs, everywhere = jax.P("runs"), jax.P()
    # What starts as zeros is alike on all devices, and differs once it is trained.
    spread = jax.shard_map(
        batched,
        mesh=mesh,
        in_specs=(runs, runs, everywhere, everywhere),
        out_specs=runs,
        check_vma=False,
    )
    return jax.jit(spread)


def plot(result: dict, folder: Path) -> None:
    """Throughput over the number of networks."""
    import matplotlib.pyplot as plt

    networks = result["networks"]
    figure, axis = plt.subplots(figsize=(5, 3.8), layout="constrained")
    for name in ("vmap", "vmap, sharded", "one by one", "optax, one by one"):
        axis.plot(
            [int(models) for models in networks],
            [1 / networks[models]["seconds per run"][name] for models in networks],
            marker="o",
            label=name,
        )
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set(xlabel="networks trained at once", ylabel="runs a second")
    axis.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=2)
    figure.savefig(folder / "sweep.png", dpi=150)
    plt.close(figure)
