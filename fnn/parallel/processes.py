"""The processes of one program, each with devices of its own, by `jax.distributed`.

All of them run the same program. An array may be sharded over the devices of all; each process can
read only the parts on its own devices.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fnn.parallel.partition import automatic

CONNECT = 60
"""Seconds for which the processes wait for one another at the start."""
HEARTBEAT = 20
"""Seconds without a heartbeat after which a process is considered dead and the others exit."""


def start(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Join the `count` processes of a program as number `index`.

    coordinator is the HOST:PORT on which process 0 listens. Without arguments all three are
    found by `jax.distributed` on a cluster that it knows: SLURM, Open MPI, Kubernetes, TPU pods. On
    others, and if JAX has already run a computation, there is only this process. CPUs communicate
    by Gloo.

    Raises ValueError for an index that is not below count; RuntimeError if no connection is made
    or, with a coordinator, if JAX has already run a computation.

    >>> start("localhost:1234", count=1, index=1)
    Traceback (most recent call last):
    ValueError: start: expected a process from 0 to 0, got 1
    """
    if count is not None and index is not None and not 0 <= index < count:
        raise ValueError(f"start: expected a process from 0 to {count - 1}, got {index}")
    try:
        with warnings.catch_warnings():  # about clusters that could be detected
            warnings.simplefilter("ignore")
            how: Any = {"cluster_detection_method": None if coordinator is None else "deactivate"}
            how |= {"initialization_timeout": CONNECT, "heartbeat_timeout_seconds": HEARTBEAT}
            jax.distributed.initialize(coordinator, count, index, **how)
    except (ValueError, RuntimeError) as error:
        single = "coordinator_address should be" in str(error) or "called before" in str(error)
        if coordinator is not None or not single:
            raise
    else:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")


def is_first() -> bool:
    """Whether this is process 0, which prints and writes.

    >>> is_first()
    True
    """
    return jax.process_index() == 0


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process; all processes must call it at the same point.

    >>> any_of(False), any_of(True)
    (False, True)
    """
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def from_first(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The values of process 0; all must call it with arrays of the same shapes and dtypes.

    >>> from_first([np.ones(2)])
    [array([1., 1.])]
    """
    # As bytes: JAX would turn float64 into float32.
    sent = [np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in values]
    received = multihost_utils.broadcast_one_to_all(sent)
    both = zip(received, values, strict=True)
    return [np.asarray(bits).view(a.dtype).reshape(a.shape) for bits, a in both]


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """Arrays that are equal in every process, as arrays replicated over the devices of the mesh.

    >>> everywhere(np.ones(2), jax.make_mesh((1,), ("data",))).is_fully_replicated
    True
    """
    whole = NamedSharding(automatic(mesh), PartitionSpec())

    def put(a: Any) -> jax.Array:
        held = np.asarray(a)
        return jax.make_array_from_callback(held.shape, whole, lambda index: held[index])

    return jax.tree.map(put, tree)


def here(tree: Any) -> Any:
    """Replicated arrays as arrays on one device of this process.

    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> here(everywhere(np.ones(2), mesh))
    Array([1., 1.], dtype=float32)
    """
    return jax.tree.map(lambda a: a.addressable_data(0), tree)
