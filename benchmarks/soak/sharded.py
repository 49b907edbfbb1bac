"""Random networks of `compose` on meshes of virtual devices: the same training steps as in NumPy?

Meshes of 2 to 8 devices, whose number mostly doesn't divide the batch; parameters whole, cut over
the devices, or of layers that are cut over an axis of their own.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import fnn
from benchmarks.soak import compose, nestings, twins
from benchmarks.soak.parts import Node
from benchmarks.soak.twins import Composition, Numbers

MESHES = ({"data": 2}, {"data": 3}, {"data": 4}, {"data": 6}, {"data": 8})
CUT = ({"data": 2, "model": 2}, {"data": 3, "model": 2}, {"data": 1, "model": 4})
DEVICES = 8


class Spread(NamedTuple):
    """A composition of m examples, the axes of the mesh, and how it is trained."""

    composition: Composition
    m: int
    mesh: dict[str, int]
    shard_params: bool
    rule: nestings.Spec


def sharded(folder: Path, wanted: int, seed: int) -> dict[str, int]:
    """Each random composition trains on a mesh as it does in NumPy; in a process of its own, for
    the number of devices can't change in this one."""
    command = [sys.executable, "-m", "benchmarks.soak.sharded", str(wanted), str(seed)]
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    *lines, counts = done.stdout.splitlines()
    print(*lines, sep="\n", end="\n" if lines else "", flush=True)
    found: dict[str, int] = json.loads(counts)
    return found


def compared(wanted: int, seed: int) -> dict[str, int]:
    """What `sharded` counts, in this process."""
    rng = random.Random(seed)
    counts = {"inputs": 0, "uneven": 0, "cut": 0, "differ": 0}
    with compose.little_optimization():
        for _ in range(wanted):
            spread = drawn(rng)
            counts["inputs"] += 1
            counts["uneven"] += spread.m % spread.mesh["data"] > 0
            counts["cut"] += spread.shard_params or "model" in spread.mesh
            found = difference(spread)
            if found:
                counts["differ"] += 1
                print("differs:", spread, found, flush=True)
                print("smallest:", *_shrunk(spread, found), flush=True)
    return counts


def drawn(rng: random.Random) -> Spread:
    """A random composition that trains on a mesh as on one device: no draws, no means over a
    batch, which are each device's own."""
    while True:
        composition = compose.drawn(rng)._replace(dtype="float64", mode="plain", checks=())
        alike = not composition.end.loss.mixes and not composition.varies
        if alike and not composition.narrow:
            break
    mesh = rng.choice(CUT if _has_model(composition.node) else MESHES)
    rule = nestings.nesting(rng, rng.choice([0, 1, 2]))
    shard_params = rng.random() < 0.5 and not _is_cut_by_copies(composition.node)
    return Spread(composition, rng.randrange(1, 12), mesh, shard_params, rule)


def _has_model(node: Node) -> bool:
    return node.setting == "model" or any(map(_has_model, node.inner))


def _is_cut_by_copies(node: Node) -> bool:
    """What `shard_params` refuses: around copies, whose own axes it may cut."""
    return bool(node.names() & {"repeat", "reversible"})


def difference(spread: Spread) -> str | None:
    """In what training on the mesh differs, or an error; None where in nothing."""
    try:
        with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
            return _compared(spread)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _compared(spread: Spread) -> str | None:
    composition, rule = spread.composition, nestings.optimizer(spread.rule)
    net = twins.network(composition)
    numbers = Numbers.of(composition, net, spread.m)
    params, x, y = twins.arrays(composition, (numbers.params, numbers.x, numbers.y))
    count = int(np.prod(list(spread.mesh.values())))
    mesh = jax.make_mesh(
        tuple(spread.mesh.values()), tuple(spread.mesh), devices=jax.devices()[:count]
    )
    step = jax.jit(
        fnn.make_step(net, composition.end.loss, rule, mesh=mesh, shard_params=spread.shard_params)
    )
    state, losses = rule.init(params), []
    for _ in range(2):
        state, loss = step(state, (x, y))
        losses.append(float(loss))
    expected, values, tied = twins.trained(composition, numbers, spread.rule, 2)
    if tied or not np.isfinite(expected).all():
        return None
    for name, got, theirs in (
        ("losses", np.array(losses), values),
        ("params", twins.flat(state.params), expected),
    ):
        error = np.abs(got - theirs).max(initial=0) / (1 + np.abs(theirs).max(initial=0))
        if not error <= 1e-7:
            return f"{name} by {error:.1e}"
    return None


def _shrunk(spread: Spread, found: str) -> tuple[Spread, str]:
    """The smallest in reach that differs still, and in what."""
    simpler = [spread._replace(rule=("sgd", 0.1, 0.5, 0.5, 0.5))] if spread.rule[0] != "sgd" else []
    for smaller in compose.smaller(spread.composition):
        simpler.append(spread._replace(composition=smaller))
    for each in simpler:
        still = difference(each)
        if still and still.split(" by ")[0] == found.split(" by ")[0]:
            return _shrunk(each, still)
    return spread, found


if __name__ == "__main__":
    print(json.dumps(compared(*map(int, sys.argv[1:]))))
