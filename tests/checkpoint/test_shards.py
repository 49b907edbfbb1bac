"""A sharded tree comes back bit for bit on any mesh; a save that fails changes nothing."""

import json
import random
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import together
from jax.sharding import NamedSharding, PartitionSpec as P

from fnn import atomic, checkpoint
from fnn.checkpoint import CheckpointError, _shards as shards
from fnn.parallel import ShardedExamples

ROWS = NamedSharding(jax.make_mesh((2,), ("data",), devices=jax.devices()[:2]), P("data"))
WHOLE = NamedSharding(ROWS.mesh, P())


def tree(number):
    """Two slices of w, which differ from save to save, and an array of its own name."""
    w = np.arange(32, dtype=np.float32).reshape(8, 4) + 100 * number
    return {
        "w": jax.device_put(w, ROWS),
        "keys": jax.device_put(jax.random.split(jax.random.key(number), 2), ROWS),
        "b": jax.device_put(jnp.full(3, number, jnp.bfloat16), WHOLE),
        "step": np.int32(number),
    }


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


ANYWHERE = """
import itertools, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P, SingleDeviceSharding
from fnn import checkpoint
from fnn.checkpoint import _shards as shards

shards.BLOCK = 256
W, B = np.random.default_rng(0).normal(size=(16, 24)).astype("f4"), np.arange(8.0, dtype="f4")
def mesh(*shape):
    return jax.make_mesh(shape, ("data", "model"))
places = [
    (NamedSharding(m, w), NamedSharding(m, b))
    for m in (mesh(8, 1), mesh(2, 4))
    for w, b in [(P("data", "model"), P("model")), (P(None, ("model", "data")), P()),
                 (P(("data", "model")), P(("data", "model")))]
]
places.append((NamedSharding(mesh(4, 2), P()),) * 2)  # replicated: one ordinary file
places.append((SingleDeviceSharding(jax.devices()[3]),) * 2)
for i, there in enumerate(places):
    tree = {"W": jax.device_put(W, there[0]), "b": jax.device_put(B, there[1])}
    checkpoint.save(f"{sys.argv[1]}/{i}", tree, {"i": i})
for i, here in itertools.product(range(len(places)), places):
    like = {"W": jax.ShapeDtypeStruct(W.shape, W.dtype, sharding=here[0]),
            "b": jax.ShapeDtypeStruct(B.shape, B.dtype, sharding=here[1])}
    loaded = checkpoint.load(f"{sys.argv[1]}/{i}", like)
    for got, expected, sharding in zip(loaded.values(), (W, B), here):
        assert got.sharding == sharding and got.committed
        np.testing.assert_array_equal(got, expected)
    assert checkpoint.read_metadata(f"{sys.argv[1]}/{i}") == {"i": i}
uncommitted = checkpoint.load(f"{sys.argv[1]}/0", {"W": W, "b": jax.numpy.zeros(8)})
np.testing.assert_array_equal(uncommitted["W"], W)
assert isinstance(uncommitted["W"], np.ndarray) and not uncommitted["b"].committed
"""


def test_any_mesh_of_eight_devices_loads_what_any_other_saved(tmp_path):
    subprocess.run([sys.executable, "-c", ANYWHERE, tmp_path], check=True, timeout=120)
    kinds = [(tmp_path / str(i)).is_dir() for i in range(8)]
    assert kinds == [True] * 6 + [False] * 2


def test_a_tree_with_keys_bfloat16_and_numpy_arrays_comes_back(tmp_path):
    checkpoint.save(tmp_path / "c", tree(1), {"epoch": 3})
    loaded = checkpoint.load(tmp_path / "c", tree(0))
    same(loaded, tree(1))
    assert all(loaded[name].sharding == tree(0)[name].sharding for name in ("w", "keys", "b"))
    assert checkpoint.read_metadata(tmp_path / "c") == {"epoch": 3}


def test_other_libraries_read_the_index_and_its_files(tmp_path):
    """As Hugging Face's libraries do: each tensor from the file that weight_map names."""
    checkpoint.save(tmp_path, tree(1))
    index = json.loads((tmp_path / shards.INDEX).read_text())
    weight_map = index["weight_map"]
    found = {
        key: safetensors.numpy.load_file(tmp_path / file)[key] for key, file in weight_map.items()
    }
    assert {"b", "step", "w[0:4,0:4]", "w[4:8,0:4]"} < set(found)
    np.testing.assert_array_equal(found["w[4:8,0:4]"], np.asarray(tree(1)["w"])[4:])
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in found.values())


def test_a_new_save_replaces_the_older_files(tmp_path):
    for number in (1, 2, 2):
        checkpoint.save(tmp_path, tree(number))
        same(checkpoint.load(tmp_path, tree(0)), tree(number))
        assert len(list(tmp_path.iterdir())) == 2


def test_a_reader_overtaken_by_a_save_reads_the_new_one(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, tree(1))
    older = shards.Folder(tmp_path)
    checkpoint.save(tmp_path, tree(2))
    folders = iter([older, shards.Folder(tmp_path)])
    monkeypatch.setattr(shards, "Folder", lambda path: next(folders))
    same(checkpoint.load(tmp_path, tree(0)), tree(2))


def test_only_the_blocks_that_are_needed_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK", 16)  # a row of w
    checkpoint.save(tmp_path, tree(1))
    (file,) = tmp_path.glob("model-*.safetensors")
    content = file.read_bytes()
    row = np.asarray(tree(1)["w"])[6].tobytes()
    assert content.count(row) == 1
    file.write_bytes(content.replace(row, bytes(16)))
    read = shards.Folder(tmp_path).read
    for rows in (slice(0, 6), slice(7, 8)):
        part = read("w", np.dtype("f4"), (8, 4), (rows, slice(1, 3)))
        np.testing.assert_array_equal(part, np.asarray(tree(1)["w"])[rows, 1:3])
    with pytest.raises(ValueError, match=r"w\[4:8,0:4\] does not match its SHA-256"):
        read("w", np.dtype("f4"), (8, 4), np.s_[5:7, 1:3])


def test_every_damaged_byte_is_refused(tmp_path):
    checkpoint.save(tmp_path, tree(1))
    rng = random.Random(0)
    for path in tmp_path.iterdir():
        whole = path.read_bytes()
        for at in rng.sample(range(len(whole)), 100):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=str(tmp_path)) as caught:
                checkpoint.load(tmp_path, tree(0))
            assert "\n" not in str(caught.value)
        for other in (whole[:-1], whole[: len(whole) // 2], b"", whole + b"\0"):
            path.write_bytes(other)
            with pytest.raises(CheckpointError):
                checkpoint.load(tmp_path, tree(0))
        path.write_bytes(whole)
    same(checkpoint.load(tmp_path, tree(0)), tree(1))


def test_shards_of_another_run_are_refused_by_name(tmp_path):
    """A shard of A under the name of B's, in its place, or with B's index."""
    a, b = tmp_path / "a", tmp_path / "b"
    checkpoint.save(a, tree(1))
    checkpoint.save(b, tree(2))
    (of_a,), (of_b,) = (folder.glob("model-*.safetensors") for folder in (a, b))
    whole = of_b.read_bytes()
    of_b.write_bytes(of_a.read_bytes())
    with pytest.raises(CheckpointError, match=f"{of_b.name}: damaged: its header does not match"):
        checkpoint.load(b, tree(0))
    of_b.unlink()
    (b / of_a.name).write_bytes(of_a.read_bytes())
    with pytest.raises(CheckpointError, match=f"{of_b.name} is missing"):
        checkpoint.load(b, tree(0))
    of_b.write_bytes(whole)
    same(checkpoint.load(b, tree(0)), tree(2))
    (a / shards.INDEX).write_bytes((b / shards.INDEX).read_bytes())
    with pytest.raises(CheckpointError, match=f"{of_b.name} is missing"):
        checkpoint.load(a, tree(0))


def test_missing_files_and_another_tree_are_refused_in_words(tmp_path):
    with pytest.raises(CheckpointError, match="without a checkpoint"):
        checkpoint.load(tmp_path, tree(0))
    checkpoint.save(tmp_path, tree(1))
    with pytest.raises(CheckpointError, match=r"w: expected float32\(2,\), got float32\(8, 4\)"):
        checkpoint.load(tmp_path, tree(0) | {"w": jnp.ones(2)})
    (file,) = tmp_path.glob("model-*.safetensors")
    file.unlink()
    with pytest.raises(CheckpointError, match=f"{file.name} is missing"):
        checkpoint.load(tmp_path, tree(0))


@pytest.mark.parametrize("change", ["slices", "files", "weight_map"])
def test_an_inconsistent_index_is_refused_even_with_a_right_digest(tmp_path, change):
    checkpoint.save(tmp_path, tree(1))
    index = json.loads((tmp_path / shards.INDEX).read_text())
    held = index["metadata"]["fnn"]
    if change == "slices":
        held["slices"]["w"].pop()
    elif change == "files":
        held["files"] = {}
    else:
        index["weight_map"].pop("w[0:4,0:4]")
    held["sha256"] = shards.BLANK
    text = json.dumps(index).encode()
    text = text.replace(shards.BLANK.encode(), shards.digest(text), 1)
    (tmp_path / shards.INDEX).write_bytes(text)
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path, tree(0))


def test_names_that_would_mix_are_refused(tmp_path):
    mixed = {"w": tree(0)["w"], "w[0:4,0:4]": jnp.ones(2)}
    with pytest.raises(ValueError, match="name of another"):
        checkpoint.save(tmp_path / "c", mixed)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("number", range(8))
def test_a_save_that_fails_anywhere_leaves_the_older_one(tmp_path, monkeypatch, number):
    """The disk fails at the first file operation, at the second, ..."""
    checkpoint.save(tmp_path, tree(1))
    calls = iter(range(number))

    def failing(f):
        def call(*args, **kwargs):
            if next(calls, None) is None:
                raise OSError(28, "No space left on device")
            return f(*args, **kwargs)

        return call

    for module, name in ((atomic.os, "replace"), (atomic.os, "fsync"), (atomic, "open")):
        f = getattr(module, name, open)
        monkeypatch.setattr(module, name, failing(f), raising=False)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, tree(2))
    monkeypatch.undo()
    # The last operation flushes the folder, when the index is already replaced.
    same(checkpoint.load(tmp_path, tree(0)), tree(2 if number == 7 else 1))
    checkpoint.save(tmp_path, tree(3))
    assert len(list(tmp_path.iterdir())) == 2


KILLED = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 2)
import numpy as np
from fnn import checkpoint
rows = jax.NamedSharding(jax.make_mesh((2,), ("data",)), jax.P("data"))
trees = [{"w": jax.device_put(np.full(200_000, i, np.float32), rows)} for i in range(2)]
checkpoint.save(sys.argv[1], trees[0])
print("ready", flush=True)
for i in range(1, 10**9):
    checkpoint.save(sys.argv[1], trees[i % 2])
"""


@pytest.mark.long
@pytest.mark.parametrize("kills", [2, pytest.param(25, marks=pytest.mark.long)])
def test_a_kill_leaves_a_whole_checkpoint(tmp_path, kills):
    rng = random.Random(kills)
    for _ in range(kills):
        command = [sys.executable, "-c", KILLED, tmp_path]
        with subprocess.Popen(command, stdout=-1, text=True) as child:
            child.stdout.readline()
            threading.Event().wait(rng.uniform(0, 0.1))
            child.kill()
        assert len(set(checkpoint.load(tmp_path, {"w": np.zeros(200_000, "f4")})["w"])) == 1


TOGETHER = """
import numpy as np
from fnn import atomic, checkpoint
rows = jax.NamedSharding(jax.make_mesh((2,), ("data",)), jax.P("data"))
columns = jax.NamedSharding(rows.mesh, jax.P(None, "data"))
w = np.arange(16, dtype=np.float32).reshape(4, 4)
made = lambda a, place: jax.make_array_from_callback(a.shape, place, lambda i: a[i])
path, me = sys.argv[1], jax.process_index()
checkpoint.save(path, {"w": made(w, rows), "b": np.ones(2)})
like = lambda place: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=place)
for place in (rows, columns):
    part = checkpoint.load(path, {"w": like(place), "b": np.ones(2)})["w"].addressable_shards[0]
    np.testing.assert_array_equal(part.data, w[part.index])
if me:
    def full(*args):
        raise OSError(28, "No space left on device", "disk")
    atomic.write = full
try:
    checkpoint.save(path, {"w": made(w + 1, rows), "b": np.ones(2)})
except OSError as error:
    print(error.strerror)
"""


def test_two_processes_write_one_checkpoint_or_none(tmp_path):
    """The second save fails in one process, and so in both; one device loads the first."""
    said = together.run(TOGETHER, 2, tmp_path)
    assert said == ["process 1 could not write its shards\n", "No space left on device\n"]
    loaded = checkpoint.load(tmp_path, {"w": jnp.zeros((4, 4)), "b": np.ones(2)})
    np.testing.assert_array_equal(loaded["w"], np.arange(16).reshape(4, 4))
    weight_map = json.loads((tmp_path / shards.INDEX).read_text())["weight_map"]
    assert len(set(weight_map.values())) == 2


def test_shares_are_read_by_those_who_hold_them():
    """Five examples on two devices: three and two, and one that is repeated."""
    asked = []

    def rows(places):
        asked.append(places.tolist())
        return {"x": np.float32([[i, i] for i in places]), "y": places}

    shares = ShardedExamples.read(rows, 5, ROWS.mesh)
    assert asked == [[0, 1, 2], [3, 4, 4]]
    whole = ShardedExamples.of(
        {"x": np.float32([[i, i] for i in range(5)]), "y": np.arange(5)}, ROWS.mesh
    )
    same(shares.arrays, whole.arrays)
    assert (shares.n, shares.devices) == (whole.n, whole.devices)
    assert [a.sharding for a in shares.arrays.values()] == [
        a.sharding for a in whole.arrays.values()
    ]
