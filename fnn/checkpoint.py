"""Trees of arrays in files of the safetensors format: plain data, never code.

Any safetensors library can read the arrays. The header's metadata has one key, `fnn`, whose
value is a JSON object of what that format can't express:

    sha256     of the whole file, with these 64 digits replaced by zeros
    version    of this layout
    tree       name -> type and static fields of each container, dtype and shape of each leaf
    keys       name -> random generator of each leaf that is a PRNG key
    metadata   the caller's own

The digest covers every byte. A file that was cut, extended or changed in a single bit is
refused before its content is used.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fnn import atomic, extras
from fnn.base import Params

with extras.needs("data"):
    import safetensors
    import safetensors.numpy

VERSION = 1
HEADER_LIMIT = 100_000_000
"""The most bytes of a header: the limit of the safetensors format."""
_BLANK = b"0" * 64


class CheckpointError(ValueError):
    """A file that is no checkpoint, is damaged or holds another tree; the message says which.

    >>> raise CheckpointError("run.safetensors: not a checkpoint of fnn, or damaged")
    Traceback (most recent call last):
    fnn.checkpoint.CheckpointError: run.safetensors: not a checkpoint of fnn, or damaged
    """


def save(path: str | Path, tree: Params, metadata: dict[str, Any] | None = None) -> None:
    """Write a tree of arrays, and metadata that JSON can express, to one file.

    Leaves are named by their paths in the tree, such as `params.0.W`. Every dtype that
    safetensors has is kept, bfloat16 included, and so are PRNG keys. The file is replaced in
    one step: see `atomic.write`.

    Raises TypeError for a leaf that is not an array or whose dtype safetensors lacks, and for
    metadata that JSON can't express, or of keys that it would turn into text; OSError where
    the file can't be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder, "c"), {"w": jnp.ones(2)}, {"epoch": 3})
    ...     read_metadata(Path(folder, "c"))
    {'epoch': 3}
    """
    _check_metadata(metadata)
    nodes = _nodes(tree)
    leaves = {name: node for name, node in nodes.items() if not isinstance(node, _Container)}
    described = {
        "sha256": _BLANK.decode(),
        "version": VERSION,
        "tree": {name: _describe(name, node) for name, node in nodes.items()},
        "keys": {name: jax.random.key_impl(k) for name, k in leaves.items() if _is_key(k)},
        "metadata": metadata or {},
    }
    arrays = {
        name: np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C")
        for name, leaf in leaves.items()
    }
    try:
        data = safetensors.numpy.save(arrays, {"fnn": json.dumps(described)})
    except safetensors.SafetensorError as error:
        raise TypeError(f"{path}: {error}") from error
    except UnicodeEncodeError as error:
        raise TypeError(f"{path}: a leaf's name is not text: {error.object!r}") from error
    before, after = _around(data, _BLANK)
    atomic.write(path, before, _digest(before, after), after)


def load(path: str | Path, like: Params) -> Params:
    """Read a tree of the structure, static fields, shapes and dtypes of `like`.

    `like` is such a tree, or what `jax.eval_shape` returns for one. A leaf is a NumPy array
    where that of `like` is one, otherwise a JAX array, with the sharding of that of `like` if
    that is committed to one.

    Raises CheckpointError for a file that is damaged or no checkpoint, and for one that holds
    another tree: it names the leaves that are missing, unexpected or different. Raises OSError
    where the file can't be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder, "c"), {"w": jnp.ones(2)})
    ...     load(Path(folder, "c"), like={"w": jnp.zeros(2)})
    {'w': Array([1., 1.], dtype=float32)}
    """
    data, described = _read(path)
    nodes = _nodes(like)
    try:
        _check_same(described["tree"], {name: _describe(name, n) for name, n in nodes.items()})
        tensors = dict(safetensors.deserialize(data))
        leaves = [
            _restore(name, tensors[name], node, described["keys"])
            for name, node in nodes.items()
            if not isinstance(node, _Container)
        ]
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata that `save` was given, {} if none.

    Raises CheckpointError for a file that is damaged or no checkpoint, and OSError where it
    can't be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder, "c"), (), {"layers": [3, 4]})
    ...     read_metadata(Path(folder, "c"))["layers"]
    [3, 4]
    """
    return _read(path)[1]["metadata"]


def _read(path: str | Path) -> tuple[bytes, dict[str, Any]]:
    """The file's bytes, with their digest verified, and the JSON object under `fnn`.

    The header is read first, and then no more than the size that it states.
    """
    with open(path, "rb") as file:
        try:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if length > HEADER_LIMIT:
                raise ValueError(f"a header of {length} bytes, of at most {HEADER_LIMIT}")
            start += file.read(length)
            header = json.loads(start[8:])
            described = json.loads(header.pop("__metadata__")["fnn"])
            version, claimed = described["version"], described["sha256"].encode("ascii")
            complete = described.keys() >= {"tree", "keys", "metadata"}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path}: not a checkpoint of fnn, or damaged") from error
        if version != VERSION:
            raise CheckpointError(f"{path}: expected layout version {VERSION}, got {version!r}")
        try:
            size = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_size != len(start) + size:
                raise ValueError(f"expected {len(start) + size} bytes, got {status.st_size}")
            data = start + file.read(size + 1)
        except (ValueError, KeyError, TypeError, IndexError, OverflowError, MemoryError) as error:
            raise CheckpointError(f"{path}: damaged: its size is not the header's") from error
    if not complete or _digest(*_around(data, claimed)) != claimed:
        raise CheckpointError(f"{path}: damaged: its content does not match its SHA-256")
    return data, described


def _around(data: bytes, digest: bytes) -> tuple[memoryview, memoryview]:
    """The bytes before and after the digest.

    The first occurrence is the digest's own place, because safetensors writes the metadata
    first, and `save` puts the digest first in it.
    """
    at = data.find(digest)
    return memoryview(data)[:at], memoryview(data)[at + len(_BLANK) :]


def _digest(before: memoryview, after: memoryview) -> bytes:
    content = hashlib.sha256(before)
    content.update(_BLANK)
    content.update(after)
    return content.hexdigest().encode()


class _Container(str):
    """The name of a container's type."""


def _nodes(tree: Params) -> dict[str, Any]:
    """The tree's leaves and containers by their paths, in the tree's order.

    Paths are written `0.W`, or, where two of them would read the same, `[0]['W']`.
    """

    def walk(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
        children, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda n: n is not node)
        is_leaf = any(not key for key, _ in children)
        yield path, node if is_leaf else _Container(type(node).__name__ + _static(node))
        for key, child in () if is_leaf else children:
            yield from walk(child, path + key)

    found = list(walk(tree, ()))
    for simple in (True, False):
        separator = "." if simple else ""
        named = {
            jax.tree_util.keystr(path, simple=simple, separator=separator): node
            for path, node in found
        }
        if len(named) == len(found) and "__metadata__" not in named:
            return named
    raise ValueError("checkpoint: two leaves of the tree have the same path")


def _static(container: Any) -> str:
    """What a registered container holds beside its leaves, such as a dataclass's static fields.

    Numbers and text by value, anything else by its type.
    """
    structure: Any = jax.tree.structure(container, is_leaf=lambda n: n is not container)
    found = structure.node_data()
    held = None if found is None or isinstance(container, dict) else found[1]

    def shown(value: Any) -> str:
        if isinstance(value, tuple):
            return f"({', '.join(map(shown, value))})"
        plain = isinstance(value, bool | int | float | complex | str | bytes) or value is None
        return repr(value) if plain else type(value).__name__

    fields = held if isinstance(held, tuple) else (held,)
    return "" if held is None or not fields else shown(fields)


def _check_metadata(metadata: Any) -> None:
    """JSON turns keys into text, so that 1 and "1" would be one key."""
    try:
        if isinstance(metadata, dict):
            for key, value in metadata.items():
                if not isinstance(key, str):
                    raise TypeError(f"checkpoint: metadata: expected keys of text, got {key!r}")
                _check_metadata(value)
        elif isinstance(metadata, list | tuple):
            for value in metadata:
                _check_metadata(value)
    except RecursionError:
        raise TypeError("checkpoint: metadata: nested too deeply") from None


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(name: str, node: Any) -> str:
    if isinstance(node, _Container):
        return node
    if not hasattr(node, "dtype") or not hasattr(node, "shape"):
        raise TypeError(f"checkpoint: {name}: expected an array, got {type(node).__name__}")
    dtype = node.dtype if _is_key(node) else np.dtype(node.dtype).newbyteorder("=")
    return f"{dtype}{node.shape}"


def _check_same(got: dict[str, str], expected: dict[str, str]) -> None:
    faults = []
    for name in expected | got:
        if name not in got:
            faults.append(f"{name} is missing")
        elif name not in expected:
            faults.append(f"{name} was not expected")
        elif got[name] != expected[name]:
            faults.append(f"{name or 'the tree'}: expected {expected[name]}, got {got[name]}")
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"{'; '.join(faults[:3])}{more}")


def _restore(name: str, tensor: dict[str, Any], like: Any, keys: dict[str, str]) -> Any:
    """The leaf of these bytes, of the type and at the place of `like`."""
    if _is_key(like):
        raw = np.frombuffer(tensor["data"], np.uint32).reshape(tensor["shape"])
        return _placed(jax.random.wrap_key_data(jnp.asarray(raw), impl=keys[name]), like)
    dtype = np.dtype(like.dtype).newbyteorder("=")
    array = np.frombuffer(tensor["data"], dtype).reshape(like.shape)
    if isinstance(like, np.ndarray | np.generic):
        return array
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"{name} is {dtype}: turn jax_enable_x64 on to load it")
    return _placed(array, like)


def _placed(array: Any, like: Any) -> jax.Array:
    """The array with the sharding of `like`, or uncommitted where `like` has none of its own."""
    sharding = getattr(like, "sharding", None) if getattr(like, "committed", True) else None
    return (
        jnp.array(array) if sharding is None else jax.device_put(array, sharding, may_alias=False)
    )
