"""Folders of shards that someone has made to do harm."""

import json
import os

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from fnn import checkpoint
from fnn.checkpoint import CheckpointError, _shards as shards

ROWS = NamedSharding(jax.make_mesh((2,), ("data",), devices=jax.devices()[:2]), P("data"))
TREE = {"w": jax.device_put(np.arange(8.0, dtype=np.float32), ROWS)}


def crafted(folder, change):
    """Save TREE, change the index, and give it a digest that is right."""
    checkpoint.save(folder, TREE)
    path = folder / shards.INDEX
    index = json.loads(path.read_text())
    change(index)
    index["metadata"]["fnn"]["sha256"] = shards.BLANK
    text = json.dumps(index).encode()
    path.write_bytes(text.replace(shards.BLANK.encode(), shards.digest(text), 1))


def elsewhere(index):
    (name, entry), *_ = index["metadata"]["fnn"]["files"].items()
    os.rename(name, f"../{name}")
    index["metadata"]["fnn"]["files"] = {f"../{name}": entry}
    index["weight_map"] = dict.fromkeys(index["weight_map"], f"../{name}")


def put(*path, value):
    def change(index):
        place = index["metadata"]["fnn"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


CRAFTED = {
    "a file elsewhere": (elsewhere, "is not the name of a file of shards"),
    "overlapping slices": (put("slices", "w", value=[[[0, 4]], [[0, 4]]]), "overlap"),
    "a slice too few": (put("slices", "w", value=[[[0, 4]]]), "the files have 0 of 4 entries"),
    "no slices": (put("slices", value=[]), "not an index of fnn"),
    "slices of text": (put("slices", "w", value=["04"]), "index|slice|expected|argument"),
    "no tree": (lambda index: index["metadata"]["fnn"].pop("tree"), "damaged: no tree"),
    "metadata of another type": (put("metadata", value=3), "damaged: no metadata"),
    "another shape": (put("slices", "w", value=[[[0, 10**12]]]), "w"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_index_is_refused(name, tmp_path, monkeypatch):
    change, message = CRAFTED[name]
    (tmp_path / "c").mkdir()
    monkeypatch.chdir(tmp_path / "c")
    crafted(tmp_path / "c", change)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path / "c", TREE)


def test_another_librarys_model_is_left_alone(tmp_path):
    """Its index is not replaced, and files with the names of its shards are not removed."""
    theirs = tmp_path / "model-00001-of-00002.safetensors"
    theirs.write_bytes(b"weights")
    checkpoint.save(tmp_path, TREE)
    checkpoint.save(tmp_path, TREE)
    assert theirs.read_bytes() == b"weights"
    index = tmp_path / shards.INDEX
    index.write_text(json.dumps({"metadata": {"total_size": 7}, "weight_map": {}}))
    with pytest.raises(FileExistsError, match="another library's files"):
        checkpoint.save(tmp_path, TREE)
    assert "total_size" in index.read_text()
