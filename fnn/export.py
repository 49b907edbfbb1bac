"""Export a network to a file that runs without fnn: StableHLO, by `jax.export`.

One file runs on CPU, CUDA, ROCm and TPU, for any number of examples. Another program

    import jax
    network = jax.export.deserialize(open("network.bin", "rb").read())
    y = network.call(x)

needs only jax and flatbuffers. Files stay readable for at least six months of JAX's releases:
see https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from fnn import atomic, extras
from fnn.base import Layer, Params, check_layer, measured

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""The platforms that an exported program runs on."""


def save(network: Layer, params: Params, example: Any, path: str | Path) -> None:
    """Write the network with these params as a function of x, for any number of examples.

    example is an input (n, ...) with any n, or a tree of these, or their shapes; the function takes
    the same dtypes. The network is exported for evaluation: dropout is the identity; for batch
    normalisation pass `fnn.at(network, statistics=fnn.statistics(network, params, x))`.

    Raises TypeError if network is not a layer; ValueError for a network without its statistics and
    an example without a batch axis; OSError if the file can't be written; ModuleNotFoundError if
    flatbuffers, of `fnn[export]`, is not installed.

    >>> import tempfile, fnn
    >>> params = {"W": jnp.full((1, 1), 2.0), "b": jnp.ones(1)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "network.bin")
    ...     save(fnn.dense(1, 1), params, jnp.ones((1, 1)), path)
    ...     jax.export.deserialize(path.read_bytes()).call(jnp.array([[1.0], [2.0]]))
    Array([[3.],
           [5.]], dtype=float32)
    """
    check_layer("save", network)
    measure = lambda params, x: measured(network, params, x, None)[1]
    if jax.tree.leaves(jax.eval_shape(measure, params, example)):
        reason = "fnn.at(network, statistics=fnn.statistics(network, params, x))"
        raise ValueError(f"save: expected a network with its statistics, {reason}")
    params = jax.tree.map(jnp.asarray, jax.device_get(params))
    atomic.write(path, lowered(lambda x: network.forward(params, x)[0], example))


def lowered(f: Callable[[Any], Any], example: Any) -> bytes:
    """f(x) as serialized StableHLO for all `PLATFORMS` and any number of examples: the content of
    the file that `save` writes, with an example as there.

    Raises ValueError and ModuleNotFoundError as `save` does.

    >>> program = lowered(lambda x: 2 * x, jnp.ones((1, 3)))
    >>> jax.export.deserialize(program).call(jnp.ones((2, 3))).shape
    (2, 3)
    """
    with extras.needs("export"):
        import_module("flatbuffers")

    shapes = jax.eval_shape(lambda x: x, example)
    if not all(a.ndim for a in jax.tree.leaves(shapes)):
        raise ValueError("export: expected an example with a batch axis, got a scalar")
    free = export.symbolic_args_specs(shapes, "n, ...")
    return bytes(export.export(jax.jit(f), platforms=PLATFORMS)(free).serialize())
