"""Files that someone has made to do harm: shards, tables, outputs at the place of inputs."""

import json
import os

import jax
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from jax.sharding import NamedSharding, PartitionSpec as P

from fnn import checkpoint, cli, data, runs
from fnn.checkpoint import CheckpointError, shards
from fnn.data import DataError
from fnn.data.encoding import features_of
from fnn.runs import files, training

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
    path.write_bytes(text.replace(shards.BLANK.encode(), shards._digest(text), 1))


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
    "a file elsewhere": (elsewhere, "no name of a file of shards"),
    "overlapping slices": (put("slices", "w", value=[[[0, 4]], [[0, 4]]]), "overlap"),
    "a slice too few": (put("slices", "w", value=[[[0, 4]]]), "the files have 0 of 4 entries"),
    "no slices": (put("slices", value=[]), "not an index of fnn"),
    "slices of text": (put("slices", "w", value=["04"]), "index|slice|expected|argument"),
    "no tree": (lambda index: index["metadata"]["fnn"].pop("tree"), "not an index of fnn"),
    "metadata of another type": (put("metadata", value=3), "not an index of fnn"),
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


def command(*args):
    result = CliRunner().invoke(cli.fnn, [str(a) for a in args])
    assert not result.exception or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "a.csv").write_text("a,y\n" + "".join(f"{i}.5,{i * 2}.25\n" for i in range(30)))
    settings = runs.Settings((), "relu", "sgd", 0.1, 8, 1, seed=0)
    files.save(folder, training.prepare(folder / "a.csv", settings)[0])
    return folder


@pytest.mark.parametrize(
    "line",
    [
        "predict . a.csv --out a.csv",
        "predict . a.csv --out link.csv",
        "predict . a.csv --out run.safetensors",
        "explain . a.csv --out a.csv",
        "explain . a.csv --out run.safetensors",
        "export . run.safetensors",
        "train history.csv --out . --overwrite",
        "train a.csv --out other",
    ],
)
def test_no_command_replaces_what_it_reads_or_what_belongs_to_no_run(line, trained, monkeypatch):
    monkeypatch.chdir(trained)
    if not os.path.exists("link.csv"):
        os.symlink("a.csv", "link.csv")
        os.mkdir("other")
    for name in ("history.csv", "other/history.csv"):
        (trained / name).write_text((trained / "a.csv").read_text())
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    result = command(*line.split())
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "would be replaced" in result.stderr or "does not belong to a run" in result.stderr
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_a_target_of_durations_is_refused_in_words():
    frame = pl.DataFrame({"a": [1.5, 2.5], "y": pl.Series([1, 2]).cast(pl.Duration("ns"))})
    with pytest.raises(DataError, match="column 2 'y': expected numbers or text, got Duration"):
        data.load(frame)


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "a", "kind": "category", "values": ["x"], "cycles": ["year"]},
        {"name": "a", "kind": "number", "cycles": ["day"]},
        {"name": "a", "kind": "date", "fill": 1e300},
        {"name": "a", "kind": "date", "form": "%Q"},
    ],
)
def test_a_crafted_column_of_a_run_is_refused(entry):
    with pytest.raises(ValueError, match="'a'"):
        features_of([entry])


def test_a_panic_in_rust_is_a_fault_of_the_file(tmp_path, monkeypatch):
    """As on a damaged Arrow file: it is no Exception."""

    def panic(*args):
        raise pl.exceptions.PanicException("range end index")

    path = tmp_path / "a.arrow"
    pl.DataFrame({"a": [1.5, 2.5], "y": [0.5, 1.5]}).write_ipc(path)
    monkeypatch.setattr(pl, "scan_ipc", panic)
    with pytest.raises(DataError, match="a.arrow: can't be read, damaged"):
        data.load(path)
