"""Growth on paper: the time of a training step on up to thousands of devices, by a model.

A message of V bytes takes alpha + V / beta (the latency-bandwidth model). Collectives take what
their bandwidth-optimal algorithms take: Thakur, Rabenseifner & Gropp 2005, "Optimization of
Collective Communication Operations in MPICH". Over n devices in groups of g with a fast link each,
an array of V bytes in

    all-gather or reduce-scatter   log2(g) alpha + (g-1)/g V/beta within the groups, and between
                                   them log2(n/g) alpha' + (n/g-1)/(n/g) (V/g)/beta'
    all-reduce                     one after the other: twice that

Nothing is computed meanwhile: what XLA overlaps makes a step shorter than this, never longer. The
network is `layers` products of width x width. A step of m examples per device has 6 m width^2
operations per layer, at half of the published peak. Parameters, gradients and what is gathered
are float32, so that Adam keeps 12 bytes per parameter, and its gradient 4.

    >>> step(H100, "replicated", 8, MODELS["small"], 1024).share > 0.5
    True

Beside the model stand the collectives and the bytes of the programs themselves.
"""

from math import log2
from typing import Any, NamedTuple

import jax

import fnn
from benchmarks.data import Case
from benchmarks.report import table
from benchmarks.scale import alone, collectives, lowered, on_mesh

METHODS = ("replicated", "fully sharded", "tensor")
DEVICES = (8, 64, 512, 4096)
UTILIZATION = 0.5
"""Of the peak, what products of matrices reach."""
BESIDE = ("model", "lowered", "compiled")
LEAST = 2**16
"""Bytes: the collectives of biases and of the loss, which the model leaves out, send less."""


class Link(NamedTuple):
    """Seconds per message, and bytes per second in each direction."""

    alpha: float
    beta: float


class Machine(NamedTuple):
    """Devices of `peak` operations per second and `memory` bytes, in groups of `group` with links
    of `inner`, the groups joined by those of `outer`."""

    name: str
    peak: float
    memory: float
    group: int
    inner: Link
    outer: Link


class Model(NamedTuple):
    """`layers` layers of width to width."""

    layers: int
    width: int

    @property
    def params(self) -> int:
        """Their number."""
        return self.layers * self.width**2


class Step(NamedTuple):
    """Per device: collectives, bytes sent, the seconds of both kinds, and bytes held."""

    collectives: int
    sent: float
    computing: float
    communicating: float
    held: float

    @property
    def share(self) -> float:
        """Of the step's time, what is computing: the efficiency."""
        return self.computing / (self.computing + self.communicating)


H100 = Machine("H100", 989e12, 80e9, 8, Link(0.6e-6, 450e9), Link(2.7e-6, 50e9))
"""NVIDIA's data sheets of the H100 SXM: 989 TFLOP/s in bfloat16, 80 GB, NVLink of 900 GB/s in both
directions together; of the DGX H100, one NDR InfiniBand port of 400 Gb/s per GPU. Latencies are
those of a ring's hop in NCCL's own cost model (hwLat, protocol LL)."""
V5P = Machine("TPU v5p", 459e12, 95 * 2**30, 8960, Link(1e-6, 600e9), Link(1e-6, 600e9))
"""Google's "TPU v5p" page: 459 TFLOP/s in bfloat16, 95 GiB, ICI of 1200 GB/s in both directions
together, 8960 chips in a pod. About 1 us per hop: Austin et al. 2025, "How to Scale Your Model"."""
MACHINES = (H100, V5P)
MODELS = {"small": Model(4, 1024), "large": Model(48, 8192)}


def collective(machine: Machine, devices: int, size: float) -> tuple[float, float]:
    """(seconds, bytes sent per device) of an all-gather or a reduce-scatter of `size` bytes."""
    inner = min(devices, machine.group)
    outer = devices // inner
    fast, slow = size * (inner - 1) / inner, size / inner * (outer - 1) / outer
    seconds = log2(inner) * machine.inner.alpha + fast / machine.inner.beta
    seconds += log2(outer) * machine.outer.alpha + slow / machine.outer.beta
    return seconds, fast + slow


def step(machine: Machine, method: str, devices: int, model: Model, examples: int) -> Step:
    """A step of `examples` examples in all, over `devices` devices.

    replicated      one all-reduce of each layer's gradient
    fully sharded   per layer an all-gather for each pass, and a reduce-scatter
    tensor          per two layers one all-reduce of the activations, and one of their cotangents
    """
    layer = 4 * model.width**2
    if method == "tensor":
        calls, parts, size = 2 * (model.layers // 2), 2, 4 * examples * model.width
        held = 16 * model.params / devices + 4 * examples * model.width * model.layers
    else:
        calls, parts, size = (
            (model.layers, 2, layer) if method == "replicated" else (3 * model.layers, 1, layer)
        )
        shares = 1 if method == "replicated" else devices
        whole = 2 * layer if method == "fully sharded" and devices > 1 else 0
        activations = 4 * examples / devices * model.width * model.layers
        held = 16 * model.params / shares + whole + activations
    seconds, sent = collective(machine, devices, size)
    computing = 6 * examples * model.params / devices / (UTILIZATION * machine.peak)
    on = calls if devices > 1 else 0
    return Step(on, on * parts * sent, computing, on * parts * seconds, held)


def pays(machine: Machine, method: str, model: Model, examples: int) -> int:
    """The most devices, a power of two up to 8192, of which at least half of the time is computing;
    0 where they don't hold what they must."""
    fits = [
        n
        for n in (2**i for i in range(14))
        if (found := step(machine, method, n, model, examples)).share >= 0.5
        and found.held <= machine.memory
    ]
    return max(fits, default=0)


def run(quick: bool) -> dict:
    """Steps of one batch, split over more and more devices."""
    result = {}
    for name, examples in (("small", 65_536), ("large", 1_048_576), ("large", 2_048)):
        model, rows = MODELS[name], []
        for machine in MACHINES:
            for method in METHODS:
                steps = {n: step(machine, method, n, model, examples) for n in DEVICES}
                key = f"{name}, {examples}, {machine.name}, {method}"
                result |= {f"{key}, {n}": one._asdict() for n, one in steps.items()}
                rows.append(
                    [f"{machine.name}, {method}", steps[64].collectives,
                     round(steps[64].sent / 1e6), 1e3 * steps[64].communicating,
                     *(f"{one.share:.2f}" for one in steps.values()),
                     pays(machine, method, model, examples) or "-"]
                )  # fmt: skip
        print(f"{model.layers} layers of {model.width}, {examples} examples per step\n")
        headings = ["efficiency on", "collectives", "MB sent", "ms", *DEVICES, "half up to"]
        print(table(headings, rows), end="\n\n")
    print("Collectives, megabytes and milliseconds of communicating are those of 64 devices.\n")
    found = [row for n in ((8,) if quick else (8, 64)) for row in alone("interconnect.counted", n)]
    print("The model beside the programs of 4 layers of 1024, 65536 examples per step\n")
    headings = ["method", "devices"]
    headings += [f"{what}, {of}" for what in ("collectives", "MB") for of in BESIDE]
    rows = [
        [row["method"], row["devices"],
         *(row[of]["collectives"] for of in BESIDE), *(row[of]["sent"] / 1e6 for of in BESIDE)]
        for row in found
    ]  # fmt: skip
    print(table(headings, rows))
    return {"steps": result, "programs": found}


def counted(quick: bool) -> list[dict[str, Any]]:
    """For each method, on the devices of this process: the model's collectives per step and bytes
    sent per device, those of the program that fnn hands to XLA, and of what XLA makes of it."""
    n, model, examples = jax.device_count(), MODELS["small"], 65_536
    case = Case((model.width,) * (model.layers + 1), examples, examples, 1)
    layers = [fnn.dense(model.width, model.width), fnn.tanh] * model.layers
    split = [fnn.parallel.fully_sharded(layer, "data") for layer in layers]
    networks = {
        "replicated": (fnn.serial(*layers), on_mesh(n, 1)),
        "fully sharded": (fnn.serial(*split), on_mesh(n, 1)),
        "tensor": (fnn.parallel.mlp(case.sizes, "model", fnn.tanh), on_mesh(1, n)),
    }
    found = []
    for method, (network, mesh) in networks.items():
        program = lowered(network, case, mesh, shard_params=False)
        texts = program.as_text(dialect="hlo"), program.compile().as_text()
        expected = step(H100, method, n, model, examples)
        beside = {"model": {"collectives": expected.collectives, "sent": expected.sent}}
        for of, text in zip(BESIDE[1:], texts, strict=True):
            sent = [size for _, size in collectives(text) if size > LEAST]
            beside[of] = {"collectives": len(sent), "sent": sum(sent)}
        found.append({"method": method, "devices": n} | beside)
    return found
