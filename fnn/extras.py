"""Optional dependencies, which are installed as extras."""

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager

from fnn.errors import Error

_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class _MissingError(Error, ModuleNotFoundError):
    """A package is not installed; the message has the command that installs it."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Imports inside the block need `fnn[extra]`; a missing package is reported in one line.

    Raises ModuleNotFoundError with the command that installs the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        command = f"python -m pip install 'fnn[{extra}]'"
        raise _MissingError(f"{package} is missing: {command}", name=package) from None


def quiet_tpu() -> None:
    """On a machine without a TPU, stop the package of the extra `tpu` from querying the cloud's
    metadata server and printing warnings. Must be called before JAX looks for devices.
    """
    if not (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")):
        os.environ.update({**_NO_TPU, **os.environ})
