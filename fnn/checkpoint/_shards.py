"""Arrays that are sharded over devices, in a folder of safetensors files.

    model.safetensors.index.json            which tensor is in which file
    model-00001-of-00002-8c1f...safetensors   what the first of two processes wrote

Each process writes the slices that it owns; a slice held by several devices is owned by the first.
The index has Hugging Face's format: `weight_map` maps a tensor's name to its file. An array that is
not sliced is a tensor with the array's name, so a folder without slices is like any other model to
those libraries. A slice is a tensor named by the array and its ranges, such as
`params.0.W[0:128,0:784]`; any safetensors library reads it as an array.

Replacing the index commits the save. It lists the files of one save, whose names contain digests of
their content, and is replaced atomically after all processes have written theirs. Until then the
older index and its files are kept; afterwards they are removed.

The index has a SHA-256 of itself and of each file's header, and each header has one for every
`BLOCK` bytes of each tensor. So a reader reads only the blocks that it needs, and verifies all of
them.
"""

import errno
import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fnn import atomic, extras

with extras.needs("data"):
    import safetensors.numpy

INDEX = "model.safetensors.index.json"
NAME = re.compile(r"model-\d{5}-of-\d{5}-[0-9a-f]{16}\.safetensors")
"""The names of fnn's files; those of other libraries have no digest."""
BLOCK = 2**22
"""The number of bytes of a tensor per digest."""
LIMIT = 2**30
"""The maximum size of an index in bytes."""
BLANK = "0" * 64
Ranges = tuple[tuple[int, int], ...]
"""A slice of an array: (start, stop) along each axis."""
Shape = tuple[int, ...]
Index = tuple[slice, ...]


def is_sharded(leaf: Any) -> bool:
    """Whether the leaf's devices hold different slices of it."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_replicated


def write(folder: Path, leaves: dict[str, Any], described: dict[str, Any]) -> None:
    """Write the arrays and their description to the folder; all processes must call it.

    The save is committed completely or not at all. If one process fails, it raises its own error
    and the others OSError. Raises ValueError if a slice would have the name of a whole array.
    """
    slices = {name: _slices(leaf) for name, leaf in leaves.items()}
    pieces = [
        (_key(name, ranges, leaves[name].shape), process, data)
        for name, owned in slices.items()
        for ranges, (process, data) in owned.items()
    ]
    if len({key for key, *_ in pieces}) != len(pieces):
        raise ValueError("checkpoint: a slice of one array has the name of another")

    def write_own() -> bytes:
        _check_free(folder)
        me = jax.process_index()
        arrays = {key: np.asarray(a, order="C") for key, owner, a in pieces if owner == me}
        blocks = {key: _digests(array) for key, array in arrays.items()}
        data = safetensors.numpy.save(arrays, {"fnn": json.dumps({"blocks": blocks})})
        digest = hashlib.sha256(data[: _header_end(data)]).digest()
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write(folder / _file(me, digest), data)
        return digest + len(data).to_bytes(8, "little")

    def write_index() -> bytes:
        if jax.process_index():
            return b""
        sizes = {
            _file(process, row[:32]): [row[:32].hex(), int.from_bytes(row[32:40], "little")]
            for process, row in enumerate(written)
        }
        cut = {name: list(s) for name, s in slices.items() if [*s] != [_whole(leaves[name].shape)]}
        index = {
            "metadata": {
                "fnn": {"sha256": BLANK, **described, "files": sizes, "slices": cut},
                "total_size": sum(leaf.nbytes for leaf in leaves.values()),
            },
            "weight_map": {key: [*sizes][process] for key, process, _ in pieces},
        }
        text = json.dumps(index, indent=1).encode()
        atomic.write(folder / INDEX, text.replace(BLANK.encode(), digest(text), 1))
        for path in folder.iterdir():
            old = NAME.fullmatch(path.name) and path.name not in sizes
            if old or (path.name.startswith(".") and path.name.endswith(atomic.UNFINISHED)):
                path.unlink(missing_ok=True)
        return b""

    written = _together(folder, write_own)
    _together(folder, write_index)


def _check_free(folder: Path) -> None:
    """Raise FileExistsError if the folder's index was written by another library."""
    index = folder / INDEX
    text = index.read_bytes() if index.is_file() else b""
    if b'"weight_map"' in text and b'"fnn": {' not in text:
        raise FileExistsError(errno.EEXIST, "the index of another library's files", str(folder))


class Folder:
    """A folder written by `write`, to read from.

    described is what was passed to `write`. Raises ValueError if there is no index, and if it is
    damaged or not from fnn.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path / INDEX, "rb") as file:
                self._text = file.read(LIMIT)
            index = json.loads(self._text)
            self.described = index["metadata"]["fnn"]
            claimed = self.described["sha256"].encode("ascii")
            self._weight_map = index["weight_map"]
            held = [self.described[key] for key in ("files", "slices")]
            if not all(isinstance(entry, dict) for entry in (*held, self._weight_map)):
                raise TypeError("an entry of another type")
        except FileNotFoundError as error:
            raise ValueError("a folder without a checkpoint of fnn") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{INDEX}: not an index of fnn, or damaged") from error
        if digest(self._text, claimed) != claimed:
            raise ValueError(f"{INDEX}: damaged: its content does not match its SHA-256")
        self._files: dict[str, _File] = {}

    def is_current(self) -> bool:
        """Whether the folder's index has not been replaced since this object read it."""
        try:
            return (self.path / INDEX).read_bytes() == self._text
        except FileNotFoundError:
            return True

    def read(self, name: str, dtype: np.dtype, shape: Shape, index: Index) -> np.ndarray:
        """A copy of the part `index` of the array with this name, dtype and shape.

        Only the blocks that hold a part of it are read. Raises ValueError if a file is missing or
        damaged, or the files don't have all of it.
        """
        wanted = _ranges(index, shape)
        part = np.empty([stop - start for start, stop in wanted], dtype)
        taken: list[Ranges] = []
        for ranges in self.described["slices"].get(name, [_whole(shape)]):
            common = _common(ranges, wanted)
            if any(start >= stop for start, stop in common):
                continue
            if any(all(a < b for a, b in _common(common, other)) for other in taken):
                raise ValueError(f"{name}: two of its slices overlap")
            taken.append(common)
            key = _key(name, ranges, shape)
            file = self._file(str(self._weight_map[key]))
            size = tuple(stop - start for start, stop in ranges)
            part[_within(common, wanted)] = file.read(key, dtype, size, _within(common, ranges))
        found = sum(math.prod(b - a for a, b in common) for common in taken)
        if found != part.size:
            raise ValueError(f"{name}: the files have {found} of {part.size} entries")
        return part

    def _file(self, name: str) -> "_File":
        if not NAME.fullmatch(name):
            raise ValueError(f"{name} is not the name of a file of shards")
        if name not in self._files:
            digest, size = self.described["files"][name]
            self._files[name] = _File(self.path / name, digest, size)
        return self._files[name]


class _File:
    """A memory-mapped file of shards; a block is verified before it is first used."""

    def __init__(self, path: Path, digest: str, size: int) -> None:
        self.name = path.name
        if not path.is_file():
            raise ValueError(f"{self.name} is missing")
        if path.stat().st_size != size:
            raise ValueError(f"{self.name}: expected {size} bytes, got {path.stat().st_size}")
        self.content = np.memmap(path, np.uint8, "r")
        self.end = _header_end(self.content[:8].tobytes())
        start = self.content[: self.end].tobytes()
        if hashlib.sha256(start).hexdigest() != digest:
            raise ValueError(f"{self.name}: damaged: its header does not match its SHA-256")
        try:
            self.header = json.loads(start[8:])
            self.blocks = json.loads(self.header["__metadata__"]["fnn"])["blocks"]
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{self.name}: not a file of fnn's shards") from error
        self.verified: set[tuple[str, int]] = set()

    def read(self, key: str, dtype: np.dtype, shape: Shape, index: Index) -> np.ndarray:
        """The part `index`, which is not empty, of the tensor `key` with this dtype and shape."""
        first, last = self.header[key]["data_offsets"]
        tensor = self.content[self.end + first : self.end + last]
        corners = zip(*((part.start, part.stop - 1) for part in index), strict=True)
        low, high = (int(np.ravel_multi_index(c, shape)) for c in corners) if shape else (0, 0)
        size = dtype.itemsize
        for block in range(low * size // BLOCK, ((high + 1) * size - 1) // BLOCK + 1):
            if (key, block) not in self.verified:
                content = tensor[block * BLOCK : (block + 1) * BLOCK]
                if hashlib.sha256(content.data).hexdigest() != self.blocks[key][block]:
                    raise ValueError(f"{self.name}: damaged: {key} does not match its SHA-256")
                self.verified.add((key, block))
        return tensor.view(dtype).reshape(shape)[index]


def _together(folder: Path, work: Callable[[], bytes]) -> list[bytes]:
    """What `work` returns in each process, at most 40 bytes each; a barrier for all processes."""
    failure = None
    try:
        mine = b"\1" + work()
    except Exception as error:
        failure, mine = error, b"\0"
    row = np.frombuffer(mine.ljust(41, b"\0"), np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(row)).reshape(-1, 41)
    if failure is not None:
        raise failure
    if not rows[:, 0].all():
        process = int(rows[:, 0].argmin())
        raise OSError(errno.EIO, f"process {process} could not write its shards", str(folder))
    return [other[1:].tobytes() for other in rows]


def _slices(leaf: Any) -> dict[Ranges, tuple[int, Any]]:
    """The slices of the leaf, the process that writes each, and there its entries."""
    if not is_sharded(leaf):
        return {_whole(leaf.shape): (0, leaf)}
    return {
        _ranges(shard.index, leaf.shape): (shard.device.process_index, shard.data)
        for shard in leaf.global_shards
        if shard.replica_id == 0
    }


def _whole(shape: Shape) -> Ranges:
    return tuple((0, n) for n in shape)


def _ranges(index: Index, shape: Shape) -> Ranges:
    starts = [part.indices(n) for part, n in zip(index, shape, strict=True)]
    return tuple((start, stop) for start, stop, _ in starts)


def _common(one: Any, other: Any) -> Ranges:
    """The intersection of two slices of an array; empty if a stop is not above its start."""
    return tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))


def _within(ranges: Ranges, outer: Any) -> Index:
    """A slice of an array as a slice of the slice `outer` of it."""
    return tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(ranges, outer, strict=True))


def _key(name: str, ranges: Ranges, shape: Shape) -> str:
    if tuple(map(tuple, ranges)) == _whole(shape):
        return name
    return f"{name}[{','.join(f'{start}:{stop}' for start, stop in ranges)}]"


def _file(process: int, digest: bytes) -> str:
    return f"model-{process + 1:05}-of-{jax.process_count():05}-{digest.hex()[:16]}.safetensors"


def _header_end(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def _digests(array: np.ndarray) -> list[str]:
    """A SHA-256 for each `BLOCK` bytes of the array."""
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    starts = range(0, len(content), BLOCK)
    return [hashlib.sha256(content[i : i + BLOCK].data).hexdigest() for i in starts]


def digest(content: bytes, held: bytes = BLANK.encode()) -> bytes:
    """The SHA-256 of the content, with the first occurrence of the digest that it holds replaced by
    `BLANK`."""
    at, view = content.find(held), memoryview(content)
    found = hashlib.sha256(view[:at])
    found.update(BLANK.encode())
    found.update(view[at + len(BLANK) :])
    return found.hexdigest().encode()
