"""Ahead-of-time compilation for GPUs and TPUs that need not be present.

The program is compiled in this process, by `jax.experimental.topologies`. The options of the GPU
compiler are arguments of the call; those of the TPU compiler are environment variables that must be
set before it is loaded, and are set only if there is no TPU. Compiling in a subprocess would need f
as serialised StableHLO, and internals of JAX to compile that for a topology.
"""

import math
import os
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module, util
from typing import Any

import jax
import numpy as np
from jax.experimental.topologies import get_topology_desc
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from fnn import extras
from fnn.targets.devices import DEVICES, Target
from fnn.targets.flops import products
from fnn.targets.program import Program
from fnn.targets.report import Report

_PACKAGES = {"tpu": ("libtpu",), "cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin")}
_OPTIONS = {"cuda": {"xla_gpu_autotune_level": 0, "xla_gpu_collect_cost_model_stats": True}}


def targets() -> dict[str, bool]:
    """The known devices, and whether the compiler for each is installed.

    >>> sorted(targets())[:3]
    ['A100', 'B200', 'H100']
    """
    return {name: _installed(device.platform) for name, device in DEVICES.items()}


def mesh(
    target: str, shape: tuple[int, ...] | None = None, axes: tuple[str, ...] = ("data",)
) -> Mesh:
    """The target's devices as a mesh with this shape, by default with all along one axis.

    Raises ValueError for an unknown target and a shape for a different number of devices;
    ModuleNotFoundError, with the command that installs it, if its compiler is missing.

    >>> mesh("TPU v9")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: target: expected one of TPU v4, ..., got 'TPU v9'
    """
    devices = np.array(_devices(Target.parse(target)))
    shape = (devices.size,) if shape is None else shape
    if math.prod(shape) != devices.size:
        raise ValueError(f"mesh: expected a shape for {devices.size} devices, got {shape}")
    return Mesh(devices.reshape(shape), axes)


def compile_for(target: str, f: Callable, *args: Any) -> Report:
    """f(*args) compiled for a target such as "H100", "H100:8" or "TPU v5e:4x4".

    args are trees of arrays or `jax.ShapeDtypeStruct`s: nothing is computed. For a target with
    several devices, arguments may have shardings over `mesh(target)`; those without are replicated.
    f may be jitted, with donated arguments.

    Raises ValueError for an unknown target and an argument that is sharded over other devices;
    ModuleNotFoundError, with the command that installs it, if its compiler is missing.

    >>> compile_for("H100:2x2", abs, 1.0)
    Traceback (most recent call last):
    ValueError: target: expected a topology as in 'H100:8', got 'H100:2x2'
    """
    chosen = Target.parse(target)
    devices = _devices(chosen)
    placed = jax.tree.map(lambda a: _placed(a, devices), args)
    jitted: Any = f if hasattr(f, "trace") else jax.jit(f)
    traced = jitted.trace(*placed)
    held = lambda a: math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize
    arguments = sum(map(held, jax.tree.leaves(placed)))
    flops = products(traced.jaxpr, len(devices))
    lowered = traced.lower(lowering_platforms=(chosen.device.platform,))
    try:
        compiled = lowered.compile(compiler_options=_OPTIONS.get(chosen.device.platform))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _too_large(chosen, len(devices), arguments, flops, str(error))
    return _report(chosen, len(devices), flops, compiled)


def _report(target: Target, number: int, flops: float, compiled: Any) -> Report:
    memory, text = compiled.memory_analysis(), compiled.as_text()
    program = Program(text, target.device)
    sizes = (memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.output_size_in_bytes)
    fits = sum(sizes) - memory.alias_size_in_bytes <= target.device.memory
    asked = (target.name, number, fits, *sizes, target.device.memory, flops)
    kernels, seconds = program.kernels(program.entry), program.seconds(program.entry)
    share = flops / seconds / target.device.peak if seconds else None
    found = kernels, tuple(program.loops), program.collectives, program.overlapped
    return Report(*asked, *found, seconds, share, text)


def _too_large(target: Target, number: int, arguments: int, flops: float, error: str) -> Report:
    """The report of a program that does not fit, with the size of the temporaries if the error has
    it."""
    found = re.search(r"temporaries \(([\d.]+)([KMG])\)", error)
    size = int(float(found[1]) * 1024 ** ("KMG".index(found[2]) + 1)) if found else None
    asked = (target.name, number, False, arguments, size, None, target.device.memory, flops)
    return Report(*asked, {}, (), {}, {}, None, None, error)


def _installed(platform: str) -> bool:
    return any(util.find_spec(package) for package in _PACKAGES[platform])


def _devices(target: Target) -> list[Any]:
    """The devices of the target; one if it has no topology.

    Raises ModuleNotFoundError, with the command that installs it, if the compiler is missing.
    """
    if not _installed(target.device.platform):
        command = f"python -m pip install 'fnn[{target.device.platform}]'"
        message = f"the compiler for {target.kind} is missing: {command}"
        raise ModuleNotFoundError(message, name=_PACKAGES[target.device.platform][0])
    devices = _topology(target)
    return devices if target.topology else devices[:1]


@cache
def _topology(target: Target) -> list[Any]:
    if target.device.platform == "cuda":
        _register_cuda()
        config, topology = target.device.description, f"1x1x{target.topology or 1}"
        return list(get_topology_desc("", "cuda", target_config=config, topology=topology).devices)
    extras.quiet_tpu()
    name = f"{target.kind.removeprefix('TPU ')}:{target.topology or target.device.smallest}"
    try:
        return list(get_topology_desc(name, "tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"target: {target.name!r}: {error}") from None


def _register_cuda() -> None:
    """Register the CUDA plugin, which JAX does not do if it finds no GPU."""
    jax.devices()
    try:
        get_topology_desc("", "cuda", topology="1x1x1")
    except NotImplementedError:
        package = next(name for name in _PACKAGES["cuda"] if util.find_spec(name))
        plugin = import_module(f"jax_plugins.xla_{package.split('_')[1]}")
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
        try:
            plugin.initialize()
        finally:
            del os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"]
    except jax.errors.JaxRuntimeError:
        pass  # The plugin is registered: it raised because of the missing description.


def _placed(a: Any, devices: list[Any]) -> jax.ShapeDtypeStruct:
    """The argument's shape and dtype, with a sharding on the target."""
    sharding, value = getattr(a, "sharding", None), jax.typeof(a) if not hasattr(a, "dtype") else a
    if sharding is None or sharding.device_set.isdisjoint(devices):
        if sharding is not None and len(sharding.device_set) > 1:
            expected = "arguments sharded over fnn.targets.mesh(target)"
            raise ValueError(f"compile_for: expected {expected}, got other devices")
        everywhere = NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec())
        sharding = SingleDeviceSharding(devices[0]) if len(devices) == 1 else everywhere
    weak = getattr(value, "weak_type", False)
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding, weak_type=weak)
