"""The power that a device draws while it works, where its driver tells.

A GPU's is what `nvidia-smi` reads, ten times per second. A CPU's is that of its packages, by the
energy counters (RAPL) that Linux shows under /sys/class/powercap to those who may read them.
"""

import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

POWERCAP = Path("/sys/class/powercap")
Meter = Callable[[], Callable[[], float | None]]
"""meter() starts to measure and returns a function that ends it: the mean power since, in W, or
None where the driver has shown no number."""


def meter(device: jax.Device) -> Meter | None:
    """The one for this device; None where nothing tells."""
    if device.platform == "gpu" and shutil.which("nvidia-smi"):
        return nvidia(device.local_hardware_id)
    return rapl() if device.platform == "cpu" else None


def watts(found: Meter | None, work: Callable[[], Any], seconds: float) -> float | None:
    """The mean power while the work is done again and again for so long."""
    if found is None:
        return None
    end = time.perf_counter() + seconds
    stop = found()
    while time.perf_counter() < end:
        jax.block_until_ready(work())
    return stop()


def rapl(folder: Path = POWERCAP) -> Meter | None:
    """Of all packages together, by counters of microjoules that start again at a maximum."""
    zones = sorted(folder.glob("intel-rapl:?"))

    def read() -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in zones]

    try:
        ranges = [int((zone / "max_energy_range_uj").read_text()) + 1 for zone in zones]
        read()
    except OSError:
        return None

    def start() -> Callable[[], float]:
        before, began = read(), time.perf_counter()

        def stop() -> float:
            used = [
                (after - earlier) % full
                for after, earlier, full in zip(read(), before, ranges, strict=True)
            ]
            return sum(used) / 1e6 / (time.perf_counter() - began)

        return stop

    return start if zones else None


def nvidia(index: int) -> Meter:
    """Of the GPU of this index."""
    query = ["nvidia-smi", f"--id={index}", "--query-gpu=power.draw", "--loop-ms=100"]

    def start() -> Callable[[], float | None]:
        command = [*query, "--format=csv,noheader,nounits"]
        reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

        def stop() -> float | None:
            reader.terminate()
            printed, _ = reader.communicate()
            numbers = re.findall(r"^ *(\d+\.?\d*) *$", printed, re.MULTILINE)
            return statistics.mean(map(float, numbers)) if numbers else None

        return stop

    return start
