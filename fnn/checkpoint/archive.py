"""Trees of arrays in files of the safetensors format: plain data, never code.

A tree is one file or, if its arrays are sharded over devices, a folder with a file per process: see
`_shards.py`. Any safetensors library can read the arrays. The metadata in the file's header has one
key, `fnn`, whose value is a JSON object with what the format can't express:

    sha256     of the whole file, with these 64 digits replaced by zeros
    version    of this layout
    tree       name -> type and static fields of each container, dtype and shape of each leaf
    keys       name -> PRNG implementation of each leaf that is a PRNG key
    metadata   that of the caller

The digest covers every byte. Loading a file that was truncated, extended or changed in a single bit
raises an error before its content is used.
"""

import json
import logging
import os
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn import atomic, extras
from fnn.base import Params
from fnn.checkpoint import _leaves as leaves, _shards as shards
from fnn.checkpoint._leaves import Container, is_key
from fnn.checkpoint._shards import Index, Shape
from fnn.errors import Error

with extras.needs("data"):
    import safetensors
    import safetensors.numpy

LOG = logging.getLogger(__name__)
VERSION = 1
HEADER_LIMIT = 100_000_000
"""The most bytes of a header: the limit of the safetensors format."""
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError,
             RecursionError)  # fmt: skip
"""What reading a header with a different structure raises."""


class CheckpointError(Error, ValueError):
    """A file that is not a checkpoint, is damaged, or holds a different tree; the message says
    which.

    >>> raise CheckpointError("run.safetensors: not a checkpoint of fnn, or damaged")
    Traceback (most recent call last):
    fnn.checkpoint.archive.CheckpointError: run.safetensors: not a checkpoint of fnn, or damaged
    """


def save(path: str | Path, tree: Params, metadata: dict[str, Any] | None = None) -> None:
    """Write a tree of arrays, and metadata that JSON can express, to one file.

    Leaves are named by their paths in the tree, such as `params.0.W`. All dtypes of safetensors are
    supported, including bfloat16, and so are PRNG keys. The file is replaced atomically: see
    `atomic.write`.

    A tree with a sharded array, of which devices hold different slices, is written to a folder
    instead, in which each process writes the slices that it owns: see `_shards.py`. All processes
    must call `save` with the same tree and metadata, and with a path on a shared file system. If
    one process fails, the older folder is unchanged and all raise.

    Raises TypeError for a leaf that is not an array or whose dtype safetensors lacks, and for
    metadata that JSON can't express or whose keys are not strings; OSError if the file or the
    folder can't be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder, "c"), {"w": jnp.ones(2)}, {"epoch": 3})
    ...     read_metadata(Path(folder, "c"))
    {'epoch': 3}
    """
    nodes = leaves.nodes(tree)
    arrays = {name: node for name, node in nodes.items() if not isinstance(node, Container)}
    described = {
        "version": VERSION,
        "tree": {name: leaves.describe(name, node) for name, node in nodes.items()},
        "keys": {name: jax.random.key_impl(k) for name, k in arrays.items() if is_key(k)},
        "metadata": metadata or {},
    }
    arrays = {name: jax.random.key_data(a) if is_key(a) else a for name, a in arrays.items()}
    try:
        _check_metadata(metadata)
        if any(map(shards.is_sharded, arrays.values())):
            shards.write(Path(path), arrays, described)
            return
        arrays = {name: np.asarray(a, order="C") for name, a in arrays.items()}
        held = json.dumps({"sha256": shards.BLANK, **described})
        data = safetensors.numpy.save(arrays, {"fnn": held})
    except (safetensors.SafetensorError, UnicodeEncodeError) as error:
        raise TypeError(f"{path}: {error}") from error
    except RecursionError:
        raise TypeError("checkpoint: metadata: nested too deeply") from None
    # safetensors writes the metadata first, and the digest is the first of it
    at, view = data.find(shards.BLANK.encode()), memoryview(data)
    atomic.write(path, view[:at], shards.digest(data), view[at + len(shards.BLANK) :])
    LOG.info("saved %s", path)


def load(path: str | Path, like: Params) -> Params:
    """Read a tree with the structure, static fields, shapes and dtypes of `like`.

    `like` is such a tree, or what `jax.eval_shape` returns for one. A leaf is a NumPy array if that
    of `like` is, otherwise a JAX array; it has the sharding of the leaf of `like`, if that is
    committed or a `jax.ShapeDtypeStruct` with a sharding. A tree can be loaded onto other devices
    than it was saved from. From a folder each process reads only the blocks that its devices need.

    Raises CheckpointError for a damaged file, a file that is not a checkpoint, a folder in which a
    file is missing, and a different tree, naming the leaves that are missing, unexpected or
    different; OSError if the file can't be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder, "c"), {"w": jnp.ones(2)})
    ...     load(Path(folder, "c"), like={"w": jnp.zeros(2)})
    {'w': Array([1., 1.], dtype=float32)}
    """
    while True:
        opened = _opened(path)
        try:
            return _restored(path, like, opened.described, opened.read)
        except CheckpointError:
            if opened.is_current():  # otherwise a new save has removed files meanwhile
                raise


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata passed to `save`; {} without.

    Raises CheckpointError for a file that is damaged or not a checkpoint, and OSError if it can't
    be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder, "c"), (), {"layers": [3, 4]})
    ...     read_metadata(Path(folder, "c"))["layers"]
    [3, 4]
    """
    return _opened(path).described["metadata"]


Read = Callable[[str, np.dtype, Shape, Index], np.ndarray]
"""read(name, dtype, shape, index) -> a copy of the part `index` of the array with this name, dtype
and shape."""


def _restored(path: str | Path, like: Params, described: dict[str, Any], read: Read) -> Params:
    """A tree like `like`, with arrays from `read`."""
    nodes = leaves.nodes(like)
    try:
        expected = {name: leaves.describe(name, node) for name, node in nodes.items()}
        leaves.check_same(described["tree"], expected)
        restored = [
            _restore(name, read, node, described["keys"])
            for name, node in nodes.items()
            if not isinstance(node, Container)
        ]
    except (*MALFORMED, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return jax.tree.unflatten(jax.tree.structure(like), restored)


class _File:
    """One file written by `save`, with its digest verified.

    described is the JSON object under `fnn`. The header is read first, then as much as it states,
    and a byte more where there is one. Raises ValueError if the file is damaged or not from fnn.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            with open(path, "rb") as file:
                start = file.read(8)
                length = int.from_bytes(start, "little")
                if length > HEADER_LIMIT:
                    raise ValueError(f"a header of {length} bytes, of at most {HEADER_LIMIT}")
                start += file.read(length)
                header = json.loads(start[8:])
                self.described = json.loads(header.pop("__metadata__")["fnn"])
                claimed = self.described["sha256"].encode("ascii")
                size = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
                self._data = start + file.read(size + 1)
        except MALFORMED as error:
            raise ValueError("not a checkpoint of fnn, or damaged") from error
        if shards.digest(self._data, claimed) != claimed:
            raise ValueError("damaged: its content does not match its SHA-256")

    def is_current(self) -> bool:
        """Whether all of it is read already."""
        return True

    @cached_property
    def _tensors(self) -> dict[str, Any]:
        return dict(safetensors.deserialize(self._data))

    def read(self, name: str, dtype: np.dtype, shape: Shape, index: Index) -> np.ndarray:
        """As `shards.Folder.read`."""
        return np.array(np.frombuffer(self._tensors[name]["data"], dtype).reshape(shape)[index])


def _opened(path: str | Path) -> _File | shards.Folder:
    """The file, or the folder's index. Raises CheckpointError if it is missing, damaged or another
    version."""
    try:
        opened = shards.Folder(Path(path)) if os.path.isdir(path) else _File(path)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if (got := opened.described.get("version")) != VERSION:
        raise CheckpointError(f"{path}: expected layout version {VERSION}, got {got!r}")
    for entry in ("tree", "keys", "metadata"):
        if not isinstance(opened.described.get(entry), dict):
            raise CheckpointError(f"{path}: damaged: no {entry}")
    return opened


def _check_metadata(metadata: Any) -> None:
    """Refuse keys that are not text: JSON would make 1 and "1" the same key."""
    for key in metadata if isinstance(metadata, dict) else ():
        if not isinstance(key, str):
            raise TypeError(f"checkpoint: metadata: expected keys of text, got {key!r}")
    values = metadata.values() if isinstance(metadata, dict) else metadata
    for value in values if isinstance(metadata, dict | list | tuple) else ():
        _check_metadata(value)


def _restore(name: str, read: Read, like: Any, keys: dict[str, str]) -> Any:
    """The leaf with this name, with the type and the sharding of `like`."""
    sharding = getattr(like, "sharding", None) if getattr(like, "committed", True) else None
    if is_key(like):
        shape = jax.eval_shape(jax.random.key_data, like).shape
        raw = _restore(name, read, jax.ShapeDtypeStruct(shape, np.uint32), keys)
        key = jax.random.wrap_key_data(raw, impl=keys[name])
        return key if sharding is None else jax.device_put(key, sharding, may_alias=False)
    dtype = np.dtype(like.dtype).newbyteorder("=")
    part = partial(read, name, dtype, like.shape)
    whole = tuple(map(slice, like.shape))
    if isinstance(like, np.ndarray | np.generic):
        return part(whole)
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"{name} is {dtype}: turn jax_enable_x64 on to load it")
    if sharding is None:
        return jnp.asarray(part(whole))
    return jax.make_array_from_callback(like.shape, sharding, part)
