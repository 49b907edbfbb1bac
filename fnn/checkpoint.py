"""Trees of arrays to files and back, in the safetensors format: plain data, never code."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from fnn.base import Params


class CheckpointError(ValueError):
    """A file that is not the checkpoint that was asked for; the message says how it differs."""


def save(path: str | Path, tree: Params, metadata: dict[str, Any] | None = None) -> None:
    """Write the tree's leaves, named by their paths in it, and metadata that JSON can hold."""
    arrays = {name: np.asarray(leaf) for name, leaf in _named(tree).items()}
    text = {"fnn": json.dumps(metadata or {})}
    safetensors.numpy.save_file(arrays, path, metadata=text)


def load(path: str | Path, like: Params) -> Params:
    """Read a tree of the structure, shapes and dtypes of `like`.

    Raises CheckpointError where the file differs from it, or is no checkpoint.
    """
    try:
        arrays = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: not a checkpoint: {error}") from error
    expected = {n: (str(a.dtype), a.shape) for n, a in _named(like).items()}
    got = {n: (str(a.dtype), a.shape) for n, a in arrays.items()}
    if got != expected:
        differ = sorted(n for n in expected.keys() | got.keys() if expected.get(n) != got.get(n))
        name = differ[0]
        raise CheckpointError(f"{path}: {name}: expected {expected.get(name)}, got {got.get(name)}")
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[n] for n in _named(like)])


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata given to `save`. Raises CheckpointError where the file is no checkpoint."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return json.loads(file.metadata()["fnn"])
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a checkpoint: {error}") from error


def _named(tree: Params) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
