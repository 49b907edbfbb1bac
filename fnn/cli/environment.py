"""JAX as the commands set it, whatever the environment says."""

import os
import warnings
from contextlib import suppress
from pathlib import Path

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
    """Set JAX as in `SETTINGS`, and keep compiled programs in the user's cache folder, if that can
    be written and no other folder is set."""
    for name, value in SETTINGS.items():
        jax.config.update(name, value)
    # What a full disk or a kill left of a program there is compiled anew.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        with suppress(OSError, RuntimeError):
            cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            folder = Path(cache, "fnn", "programs")
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                jax.config.update("jax_compilation_cache_dir", str(folder))
                jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def described() -> str:
    """JAX's version, and its devices or why there are none."""
    try:
        check_device()
    except Error as error:
        return f"JAX, version {jax.__version__}; {error}"
    devices = ", ".join(f"{device.platform}:{i}" for i, device in enumerate(jax.devices()))
    return f"JAX, version {jax.__version__}, on {devices} ({jax.devices()[0].device_kind})"


def check_device() -> None:
    """Raise Error, naming JAX_PLATFORMS, where JAX finds no device to compute on."""
    extras.quiet_tpu()
    try:
        jax.devices()
    except Exception as error:  # AssertionError, RuntimeError, ...: JAX raises many kinds
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Error(f"no device for JAX_PLATFORMS={asked!r}: {reason}") from error
