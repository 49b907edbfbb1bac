"""What a mesh of devices holds and moves, read from compiled programs; and two devices against one.

Counts: one step of Adam of 784-1024-1024-1024-10, whole batch 512, on 1 to 64 virtual devices:
what a device keeps (arguments and temporaries), its collectives, and the bytes that each device
sends per step if they go around a ring. Nothing is run, so nothing depends on the machine.

Throughput: epochs on two CPU devices of this machine against one device, which may use all cores.

Each number of devices is a process of its own: JAX fixes it when it starts.
"""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fnn
from benchmarks.data import CASES, Case, clusters
from benchmarks.report import table
from benchmarks.timing import alternate, ratio

BYTES = {"pred": 1, "s32": 4, "u32": 4, "f32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
HEADINGS = ["method", "devices", "arguments, MB", "temporary, MB", "collectives", "sent, MB"]


def run(quick: bool) -> dict[str, Any]:
    """The counts for each method and number of devices, and the rates on two devices."""
    numbers = (1, 8) if quick else (1, 2, 4, 8, 16, 32, 64)
    found = [row for n in numbers for row in alone("scale.counts", n)]
    rows = sorted(found, key=lambda row: list(METHODS).index(row["method"]))
    print(table(HEADINGS, [_shown(row) for row in rows]))
    rates = alone("scale.rates", 2, quick)
    print("\nThroughput of two devices over that of one")
    methods = ["replicated", "fully sharded"]
    shown = [[r["case"], r["batch"], *(r[m]["median"] for m in methods)] for r in rates]
    print(table(["", "batch", *methods], shown))
    return {"counts": rows, "two devices over one": rates}


def alone(function: str, devices: int, quick: bool = False) -> Any:
    """What a function of a part, such as "scale.rates", returns in a process with so many
    devices."""
    part, _, name = function.partition(".")
    program = (
        f"import jax, json; jax.config.update('jax_num_cpu_devices', {devices}); "
        f"jax.config.update('jax_platforms', 'cpu'); from benchmarks import {part}; "
        f"print(json.dumps({part}.{name}({quick})))"
    )
    command = [sys.executable, "-c", program]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _replicated(case: Case, n: int) -> tuple[fnn.Layer, Mesh, bool]:
    return fnn.mlp(case.sizes), on_mesh(n, 1), False


def _fully_sharded(case: Case, n: int) -> tuple[fnn.Layer, Mesh, bool]:
    return fnn.mlp(case.sizes), on_mesh(n, 1), True


def _tensor(case: Case, n: int) -> tuple[fnn.Layer, Mesh, bool]:
    return fnn.parallel.mlp(case.sizes, "model"), on_mesh(1, n), False


def on_mesh(data: int, model: int) -> Mesh:
    """The devices of this process, as so many for the data by so many for the model."""
    return Mesh(jax.make_mesh((data, model), ("data", "model")).devices, ("data", "model"))


METHODS: dict[str, Callable[[Case, int], tuple[fnn.Layer, Mesh, bool]]] = {
    "replicated": _replicated,
    "fully sharded": _fully_sharded,
    "tensor": _tensor,
}


def counts(quick: bool) -> list[dict[str, Any]]:
    """For each method: bytes kept and sent by a device in a step, and its collectives."""
    n = jax.device_count()
    return [{"method": name, "devices": n} | count(CASES[3], name, n) for name in METHODS]


def count(case: Case, method: str, n: int) -> dict[str, Any]:
    """The memory and the collectives of one device in one step, from the compiled program."""
    network, mesh, shard_params = METHODS[method](case, n)
    compiled = lowered(network, case, mesh, shard_params).compile()
    memory, found = compiled.memory_analysis(), collectives(compiled.as_text())
    return {
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "collectives": {kind: [k for k, _ in found].count(kind) for kind, _ in found},
        "sent": sum(sent for _, sent in found),
    }


def lowered(network: fnn.Layer, case: Case, mesh: Mesh, shard_params: bool) -> Any:
    """A step of Adam on the mesh, as `jax.stages.Lowered`: arguments split, nothing computed."""
    optimizer = fnn.adam(1e-3)
    step = fnn.make_step(
        network, fnn.softmax_cross_entropy, optimizer, mesh=mesh, shard_params=shard_params
    )
    cut = fnn.parallel.fully_sharded(network, "data") if shard_params else network
    split = fnn.parallel.shardings(lambda key: optimizer.init(cut.init(key)), mesh)
    state = jax.eval_shape(lambda key: optimizer.init(network.init(key)), jax.random.key(0))
    like = lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where)
    batch = (case.batch, case.sizes[0]), (case.batch,)
    of_batch = NamedSharding(mesh, PartitionSpec("data"))
    arrays = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=of_batch)
        for shape, dtype in zip(batch, (jnp.float32, jnp.int32), strict=True)
    ]
    return jax.jit(step, donate_argnums=0).lower(jax.tree.map(like, state, split), tuple(arrays))


def collectives(program: str) -> list[tuple[str, float]]:
    """(kind, bytes that each device sends) for each collective among more than one device.

    Around a ring of g devices, with b the bytes of the result: 2 (g - 1) / g b for an
    all-reduce, (g - 1) / g b for an all-gather and an all-to-all, (g - 1) b for a reduce-scatter.
    """
    kinds = "|".join(COLLECTIVES)
    found = []
    for line in program.splitlines():
        match = re.search(rf"= (.*?) ({kinds})(?:-start)?\(", line)
        if match is None:
            continue
        result, kind = match.groups()
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", result)
        size = sum(
            BYTES[dtype] * math.prod(map(int, filter(None, dims.split(","))))
            for dtype, dims in shapes
        )
        g = group_size(line)
        share = {"all-reduce": 2 * (g - 1) / g, "reduce-scatter": g - 1, "collective-permute": 1}
        if g > 1:
            found.append((kind, share.get(kind, (g - 1) / g) * size))
    return found


def group_size(line: str) -> int:
    """How many devices take part in each group of a collective."""
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):  # after jax 0.10
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    match = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    return len(match[1].split(",")) if match else jax.device_count()


def rates(quick: bool) -> list[dict[str, Any]]:
    """One device's time per epoch over that of two devices: by network and batch."""
    found = []
    for case in (CASES[2], CASES[2]._replace(batch=512, examples=5120), CASES[3]):
        network, optimizer = fnn.mlp(case.sizes), fnn.adam(1e-3)
        data = tuple(map(jnp.asarray, clusters(case)))
        epochs = {}
        for name, options in {
            "one": {},
            "replicated": {"mesh": on_mesh(2, 1)},
            "fully sharded": {"mesh": on_mesh(2, 1), "shard_params": True},
        }.items():
            train = fnn.make_train(
                network,
                fnn.softmax_cross_entropy,
                optimizer,
                case.batch,
                1,
                mesh=options.get("mesh"),
                shard_params=name == "fully sharded",
            )
            split = fnn.parallel.ShardedExamples.of(data, options["mesh"]) if options else data
            params = network.init(jax.random.key(0))
            epochs[name] = partial(jax.jit(train), params, split, jax.random.key(1))
        samples = alternate(epochs, rounds=3 if quick else 10, least=0.1)
        rate = {name: ratio(samples["one"], samples[name]).summary() for name in samples}
        found.append({"case": case.name, "batch": case.batch} | rate)
    return found


def _shown(row: dict[str, Any]) -> list[Any]:
    kinds = ", ".join(f"{number} {kind}" for kind, number in row["collectives"].items())
    sizes = [row[name] / 1e6 for name in ("arguments", "temporary")]
    return [row["method"], row["devices"], *sizes, kinds or "none", row["sent"] / 1e6]
