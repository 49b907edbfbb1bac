"""JAX as the commands set it, whatever the environment says."""

import os
from contextlib import suppress

import jax

from fnn import extras
from fnn.errors import Error

SETTINGS = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
}
"""What would decide a run's bits beside its settings and its data."""


def settle() -> None:
    """Set JAX as in `SETTINGS`."""
    for name, value in SETTINGS.items():
        jax.config.update(name, value)


def described() -> str:
    """JAX's version, and its devices or why there are none."""
    try:
        check_device()
    except Error as error:
        return f"JAX, version {jax.__version__}; {error}"
    devices = ", ".join(f"{device.platform}:{i}" for i, device in enumerate(jax.devices()))
    return f"JAX, version {jax.__version__}, on {devices} ({jax.devices()[0].device_kind})"


def offer_devices(count: int) -> None:
    """Make JAX divide the CPU into `count` devices, unless it has started already."""
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)


def check_device() -> None:
    """Raise Error, naming JAX_PLATFORMS, where JAX finds no device to compute on."""
    extras.quiet_tpu()
    try:
        jax.devices()
    except Exception as error:  # AssertionError, RuntimeError, ...: JAX raises many kinds
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Error(f"no device for JAX_PLATFORMS={asked!r}: {reason}") from error
