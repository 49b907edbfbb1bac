"""What is saved comes back bit for bit; what differs from it in any way is refused."""

import dataclasses
import errno
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import threading
from collections import OrderedDict
from functools import partial
from typing import Any

import chex
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings

import fnn
from fnn import atomic, checkpoint
from fnn.checkpoint import CheckpointError

bounded = settings(max_examples=60, deadline=None, derandomize=True)


def same(a, b):
    """One structure, and leaves of one type, dtype, shape and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            assert x.dtype == y.dtype
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert isinstance(x, jax.Array) == isinstance(y, jax.Array)
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def network_state(optimizer=None):
    params = fnn.mlp((3, 4, 2)).init(jax.random.key(0))
    return (optimizer or fnn.adam(0.1)).init(params)


SMALL = {"w": jnp.arange(3, dtype=jnp.float32), "key": jax.random.key(7)}

DTYPES = ["bool", "int8", "uint8", "int16", "int32", "uint32", "float16", "bfloat16", "float32"]
NUMPY_DTYPES = ["float64", "int64", "uint64", ">f4", "complex64"]


@st.composite
def arrays(draw):
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    as_jax = draw(st.booleans())
    dtype = np.dtype(draw(st.sampled_from(DTYPES if as_jax else DTYPES + NUMPY_DTYPES)))
    content = draw(st.binary(min_size=8, max_size=64))
    count = int(np.prod(shape)) * dtype.itemsize
    raw = (content * (count // len(content) + 1))[:count]
    if dtype.kind == "b":
        raw = bytes(b % 2 for b in raw)
    array = np.frombuffer(raw, dtype).reshape(shape)
    return jnp.asarray(array) if as_jax else array.astype(dtype.newbyteorder("="))


def keys():
    impls = st.sampled_from(["threefry2x32", "rbg", "unsafe_rbg"])
    return st.builds(lambda seed, impl: jax.random.key(seed, impl=impl), st.integers(0, 99), impls)


def trees():
    names = st.text(st.characters(codec="utf-8"), max_size=4) | st.sampled_from(
        ["a", "b", "a.b", "__metadata__", "0", "sha256"]
    )
    return st.recursive(
        arrays() | keys() | st.just(()) | st.none(),
        lambda child: (
            st.lists(child, max_size=3)
            | st.tuples(child, child)
            | st.dictionaries(names, child, max_size=3)
            | st.dictionaries(names, child, max_size=2).map(OrderedDict)
        ),
        max_leaves=8,
    )


@bounded
@given(tree=trees(), metadata=st.dictionaries(st.text(), st.integers() | st.text(), max_size=3))
@pytest.mark.long
def test_any_tree_comes_back_bit_for_bit(tmp_path_factory, tree, metadata):
    path = tmp_path_factory.mktemp("trees") / "tree"
    checkpoint.save(path, tree, metadata)
    same(checkpoint.load(path, tree), tree)
    assert checkpoint.read_metadata(path) == metadata


@pytest.mark.long
@bounded
@given(tree=trees(), other=trees())
def test_another_tree_is_refused(tmp_path_factory, tree, other):
    path = tmp_path_factory.mktemp("trees") / "tree"
    checkpoint.save(path, tree)
    forms = [
        [(str(a.dtype), a.shape) for a in jax.tree.leaves(t)] + [jax.tree.structure(t)]
        for t in (tree, other)
    ]
    if forms[0] == forms[1]:
        checkpoint.load(path, other)
    else:
        with pytest.raises(CheckpointError, match=r"expected|missing"):
            checkpoint.load(path, other)


def test_shapes_alone_are_enough_to_load(tmp_path):
    tree = {"state": network_state(), "key": jax.random.split(jax.random.key(1, impl="rbg"), 3)}
    checkpoint.save(tmp_path / "c", tree)
    same(checkpoint.load(tmp_path / "c", jax.eval_shape(lambda: tree)), tree)


def test_loaded_keys_draw_the_same_numbers(tmp_path):
    checkpoint.save(tmp_path / "c", SMALL)
    key = checkpoint.load(tmp_path / "c", SMALL)["key"]
    chex.assert_trees_all_equal(jax.random.normal(key, 5), jax.random.normal(SMALL["key"], 5))


def test_the_ordinary_library_reads_the_file(tmp_path):
    state = network_state()
    checkpoint.save(tmp_path / "c", state)
    arrays = safetensors.numpy.load_file(tmp_path / "c")
    assert arrays["params.0.W"].tobytes() == np.asarray(state.params[0]["W"]).tobytes()
    assert set(arrays) >= {"params.2.b", "step", "m.0.W", "v.2.b"}


def test_the_bytes_depend_on_the_content_alone(tmp_path):
    checkpoint.save(tmp_path / "a", SMALL, {"x": 1})
    checkpoint.save(tmp_path / "b", SMALL, {"x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def refused(path, data):
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=str(path)):
        checkpoint.load(path, SMALL)


def test_every_flipped_bit_is_refused(tmp_path):
    path = tmp_path / "c"
    checkpoint.save(path, SMALL, {"a": [1, "text"]})
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            refused(path, bytes(damaged))


def test_every_truncation_and_any_trailing_byte_is_refused(tmp_path):
    path = tmp_path / "c"
    checkpoint.save(path, SMALL)
    whole = path.read_bytes()
    for length in range(len(whole)):
        refused(path, whole[:length])
        with pytest.raises(CheckpointError):
            checkpoint.read_metadata(path)
    for last in range(256):
        refused(path, whole + bytes([last]))
    refused(path, whole + whole)


@bounded
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(tmp_path_factory, data):
    refused(tmp_path_factory.mktemp("bytes") / "c", data)


def test_damaged_structure_is_refused_even_with_a_right_digest(tmp_path):
    """Parts of the header replaced by other JSON, and the digest made right again."""
    path = tmp_path / "c"
    checkpoint.save(path, SMALL)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    described = json.loads(header["__metadata__"]["fnn"])
    rng = random.Random(0)
    strange = [None, 0, -1, "", "x", [], {}, [[]], 10**30, "\ud800", {"": None}]

    def written(header, described):
        header = header | {"__metadata__": {"fnn": json.dumps({**described, "sha256": "0" * 64})}}
        text = json.dumps(header).encode()
        data = len(text).to_bytes(8, "little") + text + body
        digest = hashlib.sha256(data).hexdigest().encode()
        return data.replace(b"0" * 64, digest, 1)

    path.write_bytes(written(header, described))
    checkpoint.load(path, SMALL)
    for _ in range(300):
        new_header, new_described = json.loads(json.dumps(header)), dict(described)
        if rng.random() < 0.5:
            tensor = new_header[rng.choice(["w", "key"])]
            tensor[rng.choice(list(tensor))] = rng.choice(strange)
        else:
            new_described[rng.choice(["version", "tree", "keys"])] = rng.choice(strange)
        path.write_bytes(written(new_header, new_described))
        with pytest.raises(CheckpointError):
            checkpoint.load(path, SMALL)


DIFFERENT = {
    "optimizer": (network_state(fnn.momentum(0.1)), "expected _MomentumState, got _AdamState"),
    "width": (
        fnn.adam(0.1).init(fnn.mlp((3, 5, 2)).init(jax.random.key(0))),
        r"params\.0\.W: expected float32\(5, 3\), got float32\(4, 3\)",
    ),
    "depth": (
        fnn.adam(0.1).init(fnn.mlp((3, 4, 4, 2)).init(jax.random.key(0))),
        r"params\.4 is missing",
    ),
    "dtype": (
        jax.tree.map(lambda a: a.astype(jnp.float16), network_state()),
        r"params\.0\.W: expected float16\(4, 3\), got float32\(4, 3\)",
    ),
    "missing": (network_state()._replace(m=()), r"m\.0\.W was not expected"),
    "extra": ({"state": network_state()}, "expected dict, got _AdamState"),
    "renamed": (
        network_state()._replace(step={"count": jnp.int32(0)}),
        r"step: expected dict, got int32\(\); step\.count is missing",
    ),
    "containers": (
        network_state()._replace(params=list(network_state().params)),
        "params: expected list, got tuple",
    ),
    "key": (SMALL, "expected dict"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_refusal_says_what_differs(tmp_path, name):
    like, message = DIFFERENT[name]
    checkpoint.save(tmp_path / "c", network_state())
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path / "c", like)


def test_another_kind_of_key_is_refused(tmp_path):
    checkpoint.save(tmp_path / "c", SMALL)
    with pytest.raises(CheckpointError, match=r"key: expected key<rbg>\(\), got key<fry>\(\)"):
        checkpoint.load(tmp_path / "c", SMALL | {"key": jax.random.key(0, impl="rbg")})


def test_float64_is_not_cut_to_float32(tmp_path):
    with jax.enable_x64(True):
        tree = jnp.asarray(np.pi, jnp.float64)
        checkpoint.save(tmp_path / "c", tree)
        same(checkpoint.load(tmp_path / "c", tree), tree)
    with pytest.raises(CheckpointError, match="jax_enable_x64"):
        checkpoint.load(tmp_path / "c", jax.ShapeDtypeStruct((), np.float64))


@pytest.mark.parametrize("leaf", ["text", 1.5, object(), np.array(["a"]), np.array([None])])
def test_what_is_no_array_is_refused_when_saving(tmp_path, leaf):
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "c", {"a": leaf})
    assert not list(tmp_path.iterdir())


def test_metadata_that_json_lacks_is_refused_when_saving(tmp_path):
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "c", {}, {"a": object()})
    assert not list(tmp_path.iterdir())


FAULTS = [(os, "replace"), (os, "fsync"), (atomic, "open")]


@pytest.mark.parametrize(("module", "name"), FAULTS, ids=[f[1] for f in FAULTS])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_failing_disk_leaves_the_older_file(tmp_path, monkeypatch, module, name, code):
    path = tmp_path / "c"
    checkpoint.save(path, SMALL)
    older = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module, name, fail, raising=False)
    with pytest.raises(OSError, match=str(path)) as caught:
        checkpoint.save(path, network_state())
    assert caught.value.errno == code
    assert path.read_bytes() == older
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_full_disk_leaves_the_older_file(tmp_path):
    path = tmp_path / "c"
    checkpoint.save(path, SMALL)
    older = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(older) + 100, hard))
        with pytest.raises(OSError, match=str(path)):
            checkpoint.save(path, {"w": np.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == older
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_writers_at_once_do_not_mix(tmp_path):
    path = tmp_path / "c"
    trees = [{"w": np.full(20_000, i)} for i in range(4)]
    checkpoint.save(path, trees[0])
    done = threading.Event()

    def write(tree):
        for _ in range(20):
            checkpoint.save(path, tree)

    def read(seen):
        while not done.is_set():
            seen.append(set(checkpoint.load(path, trees[0])["w"]))

    seen: list = []
    reader = threading.Thread(target=read, args=(seen,))
    writers = [threading.Thread(target=write, args=(tree,)) for tree in trees]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert seen
    assert all(len(values) == 1 for values in seen)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


KILLED = """
import sys, numpy as np
from fnn import checkpoint
print("ready", flush=True)
for i in range(10**9):
    checkpoint.save(sys.argv[1], {"w": np.full(200_000, i % 2)})
"""


@pytest.mark.long
def test_a_kill_leaves_a_whole_file(tmp_path):
    path = tmp_path / "c"
    rng = random.Random(1)
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=-1, text=True) as child:
            child.stdout.readline()
            while not path.exists():
                pass
            threading.Event().wait(rng.uniform(0, 0.05))
            child.kill()
        assert len(set(checkpoint.load(path, {"w": np.zeros(200_000, int)})["w"])) == 1
    with atomic.owned(tmp_path):
        assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_folder_has_one_owner_at_a_time(tmp_path):
    folder = tmp_path / "new" / "folder"
    with (
        atomic.owned(folder),
        pytest.raises(BlockingIOError, match="another process"),
        atomic.owned(folder),
    ):
        pass
    (folder / f".c.0{atomic.UNFINISHED}").write_text("left by a kill")
    (folder / "kept").write_text("")
    with atomic.owned(folder):
        assert [path.name for path in folder.iterdir()] == ["kept"]


# What stands at the path already.


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    for link, target in (("link", "target"), ("dangling", "new")):
        atomic.write(tmp_path / link, b"new")
        assert (tmp_path / link).is_symlink()
        assert (tmp_path / target).read_bytes() == b"new"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        atomic.write(tmp_path / "loop", b"new")
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755, 0o200])
def test_the_old_files_mode_is_kept(tmp_path, mode):
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(mode)
    atomic.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o7777 == mode


def test_content_is_never_readable_to_more_people_than_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(0o600)
    modes = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (modes.append(os.fstat(handle).st_mode), fsync(handle))
    )
    atomic.write(path, b"secret")
    assert modes[0] & 0o777 == 0o600


def test_a_read_only_file_is_refused(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match="read-only"):
        atomic.write(path, b"new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_is_not_a_regular_file_is_written_through(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("pipe", "link"):
        atomic.write(tmp_path / name, b"two ", memoryview(b"pieces"))
        assert os.read(reader, 99) == b"two pieces"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "pipe"]
    with pytest.raises(IsADirectoryError):
        atomic.write(tmp_path, b"new")


def test_the_longest_name_can_be_written(tmp_path):
    path = tmp_path / ("a" * 255)
    atomic.write(path, b"new")
    assert path.read_bytes() == b"new"


# Metadata, devices and hostile sizes.


@pytest.mark.parametrize("metadata", [{1: "a", "1": "b"}, {"a": [{None: 1}]}, {"a": ({2.5: 1},)}])
def test_metadata_keys_that_json_would_change_are_refused(tmp_path, metadata):
    with pytest.raises(TypeError, match="metadata: expected keys of text, got"):
        checkpoint.save(tmp_path / "c", {}, metadata)
    assert not list(tmp_path.iterdir())


def test_endless_metadata_is_refused(tmp_path):
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TypeError, match="metadata: nested too deeply"):
        checkpoint.save(tmp_path / "c", {}, {"a": deep})
    round_trip: dict = {}
    round_trip["itself"] = round_trip
    with pytest.raises(TypeError, match="metadata: nested too deeply"):
        checkpoint.save(tmp_path / "c", {}, round_trip)


def test_a_name_that_is_not_text_is_refused(tmp_path):
    with pytest.raises(TypeError, match="surrogates not allowed"):
        checkpoint.save(tmp_path / "c", {"\ud800": np.ones(2)})


def test_leaves_come_back_where_like_has_them(tmp_path):
    mesh = jax.make_mesh((2,), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    tree = {
        "rows": jax.device_put(jnp.arange(4.0), rows),
        "second": jax.device_put(jnp.ones(3), jax.devices()[1]),
        "anywhere": jnp.ones(2),
        "key": jax.device_put(jax.random.split(jax.random.key(0), 2), rows),
    }
    checkpoint.save(tmp_path / "c", tree)
    shapes = {
        name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding if a.committed else None)
        for name, a in tree.items()
    }
    for like in (tree, shapes):
        loaded = checkpoint.load(tmp_path / "c", like)
        same(loaded, tree)
        for name, leaf in loaded.items():
            assert leaf.sharding == tree[name].sharding
            assert leaf.committed == (name != "anywhere")


def test_no_more_is_read_than_the_header_asks_for(tmp_path):
    """/dev/zero never ends, and the sparse files are larger than the memory."""
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.load("/dev/zero", SMALL)
    path = tmp_path / "c"
    checkpoint.save(path, SMALL)
    os.truncate(path, 1 << 42)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path, SMALL)
    path.write_bytes((1 << 41).to_bytes(8, "little"))
    os.truncate(path, 1 << 42)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.read_metadata(path)


def test_a_checkpoint_is_read_from_a_pipe(tmp_path):
    checkpoint.save(tmp_path / "c", SMALL)
    os.mkfifo(tmp_path / "pipe")
    whole = (tmp_path / "c").read_bytes()
    threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[whole], daemon=True).start()
    same(checkpoint.load(tmp_path / "pipe", SMALL), SMALL)


@partial(jax.tree_util.register_dataclass, data_fields=["w"], meta_fields=["heads", "f"])
@dataclasses.dataclass
class Attention:
    w: jax.Array
    heads: int
    f: Any = None


def test_static_fields_are_the_trees_too(tmp_path):
    """They are not arrays, so that a file has nothing to put in their place."""
    checkpoint.save(tmp_path / "c", {"a": Attention(jnp.ones(2), 4)})
    assert checkpoint.load(tmp_path / "c", {"a": Attention(jnp.zeros(2), 4)})["a"].heads == 4
    with pytest.raises(CheckpointError, match=r"a: expected Attention\(8, None\), got .*\(4, None"):
        checkpoint.load(tmp_path / "c", {"a": Attention(jnp.zeros(2), 8)})
    checkpoint.save(tmp_path / "c", Attention(jnp.ones(2), 4, lambda x: x))
    assert checkpoint.load(tmp_path / "c", Attention(jnp.ones(2), 4, lambda x: x + 1)).heads == 4
    with pytest.raises(
        CheckpointError, match=r"expected Attention\(4, None\), got Attention\(4, function\)"
    ):
        checkpoint.load(tmp_path / "c", Attention(jnp.ones(2), 4))
