"""The accelerators that a program can be compiled for, with their published figures.

TPUs: peak, memory and bandwidth per chip are from Google's pages on each version,
https://docs.cloud.google.com/tpu/docs/system-architecture-tpu-vm and the pages v4, v5e, v5p, v6e
and tpu7x. XLA models a kernel's time in cycles. The clock is the published peak divided by the
flops per cycle of the matrix units: 128 x 128 x 2 x 4 on v4 (per core) and v5e, twice that on v5p,
four times on v6e and TPU7x (per core).

GPUs: the description that XLA's compiler reads is from openxla/xla,
xla/backends/gpu/target_config/specs (a100_sxm_80, h100_sxm, h200 and b200); the peak is that of
dense bfloat16 products in NVIDIA's data sheets: A100 312, H100 SXM and H200 989, B200 2250 TFLOP/s.
"""

from typing import NamedTuple


class Device(NamedTuple):
    """One device of the compiler: a TPU chip or core, or a GPU.

    memory in bytes, peak in bfloat16 flops per second, bandwidth in bytes per second, clock in
    hertz. smallest: of a TPU, the smallest topology that the compiler accepts; description: of a
    GPU, what the compiler reads.
    """

    platform: str
    memory: float
    peak: float
    bandwidth: float
    clock: float
    smallest: str = ""
    description: str = ""


def _tpu(memory: float, peak: float, bandwidth: float, per_cycle: float, smallest: str) -> Device:
    """In GiB, TFLOP/s, GB/s, and multiples of 128 x 128 x 2 x 4 flops."""
    clock = peak * 1e12 / (per_cycle * 128 * 128 * 2 * 4)
    return Device("tpu", memory * 2**30, peak * 1e12, bandwidth * 1e9, clock, smallest)


_LIMITS = (
    "threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 "
    "threads_per_core_limit: 2048 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 "
    "block_dim_limit_z: 65535 registers_per_core_limit: 65536 registers_per_block_limit: 65536"
)
"""The part of XLA's descriptions that is the same for all these GPUs."""


def _gpu(name: str, peak: float, major: int, *figures: float) -> Device:
    """peak in TFLOP/s; major: of the compute capability; figures: cores, FPUs per core, bandwidth
    in GB/s, L2 cache in MiB, clock in GHz, memory in bytes, shared memory per block in KiB."""
    cores, fpus, bandwidth, cache, ghz, memory, shared = figures
    description = (
        f"gpu_device_info {{ {_LIMITS} core_count: {cores} fpus_per_core: {fpus} "
        f"memory_bandwidth: {round(bandwidth * 1e9)} l2_cache_size: {round(cache * 2**20)} "
        f"clock_rate_ghz: {ghz} device_memory_size: {memory} "
        f"shared_memory_per_block_optin: {shared * 1024} "
        f"shared_memory_per_core: {(shared + 1) * 1024} "
        f"cuda_compute_capability {{ major: {major} }} }}\n"
        f'platform_name: "CUDA"\ndnn_version_info {{ major: 9 minor: 8 }}\n'
        f"runtime_version {{ major: 12 minor: 9 patch: 0 }}\n"
        f'device_description_str: "{name}"\n'
    )
    return Device("cuda", memory, peak * 1e12, bandwidth * 1e9, ghz * 1e9, "", description)


DEVICES = {
    "TPU v4": _tpu(16, 137.5, 614, 1, "2x2x1"),
    "TPU v5e": _tpu(16, 197, 819, 1, "2x2"),
    "TPU v5p": _tpu(95, 459, 2765, 2, "2x2x1"),
    "TPU v6e": _tpu(32, 918, 1640, 4, "2x2"),
    "TPU7x": _tpu(96, 1153.5, 3690, 4, "2x2x1"),
    "A100": _gpu("NVIDIA A100-SXM4-80GB", 312, 8, 108, 64, 2039.04, 40, 1.41, 85100068864, 163),
    "H100": _gpu("NVIDIA H100 80GB HBM3", 989, 9, 132, 128, 3352.32, 50, 1.98, 84942979072, 227),
    "H200": _gpu("NVIDIA H200 141GB HBM3e", 989, 9, 132, 128, 4800, 50, 1.98, 151397597184, 227),
    "B200": _gpu("NVIDIA B200", 2250, 10, 148, 128, 7672.32, 126.5, 1.965, 191514411008, 227),
}
"""By name. A TPU v4 or TPU7x is a core, half a chip: the compiler calls that a device."""


class Target(NamedTuple):
    """A kind of device and their number: "TPU v5e:4x4" is 16 chips, "H100:8" 8 GPUs, "H100" one."""

    name: str
    kind: str
    device: Device
    topology: str

    @classmethod
    def parse(cls, target: str) -> "Target":
        """Raises ValueError for an unknown device or an invalid topology."""
        kind, _, topology = target.partition(":")
        if kind not in DEVICES:
            raise ValueError(f"target: expected one of {', '.join(DEVICES)}, got {target!r}")
        device = DEVICES[kind]
        sizes = topology.split("x") if topology else ["1"]
        dimensions = len(device.smallest.split("x")) if topology and device.smallest else 1
        if len(sizes) != dimensions or not all(size.isdecimal() and int(size) for size in sizes):
            form = f"{kind}:{device.smallest or 8}"
            raise ValueError(f"target: expected a topology as in {form!r}, got {target!r}")
        return cls(target, kind, device, topology)
