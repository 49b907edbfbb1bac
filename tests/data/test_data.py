"""Every way in for data gives the same arrays, and every fault of a file a line that names it."""

import gzip
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
import zipfile

import hypothesis.strategies as st
import numpy as np
import pytest
import sources
from hypothesis import given, settings
from sklearn import preprocessing
from sources import written

from fnn import data
from fnn.data import DataError, _readers as readers
from fnn.data._columns import FEW


def inputs(source, d_in, features=()):
    """Examples without targets, for a network that was trained on arrays."""
    encoding = data.Encoding((), data.Scaling(np.zeros(d_in), np.ones(d_in)), features)
    return sources.inputs(source, encoding)


bounded = settings(max_examples=60, deadline=None, derandomize=True)

X = np.array([[1.5, -2.0], [0.25, 1e-3], [3.0, 4.0], [5.0, 6.5]])


def idx(array, code):
    dtype = np.dtype({0x08: "u1", 0x0B: ">i2", 0x0D: ">f4"}[code])
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return head + array.astype(dtype).tobytes()


IMAGES = np.arange(4 * 3 * 2, dtype=np.uint8).reshape(4, 3, 2)
LABELS = np.array([7, 2, 7, 2], np.uint8)


def idx_folder(folder, zipped, test=True):
    for part in ("train", "t10k")[: 2 if test else 1]:
        for kind, content in (("images-idx3", idx(IMAGES, 8)), ("labels-idx1", idx(LABELS, 8))):
            name = f"{part}-{kind}-ubyte" + (".gz" if zipped else "")
            written(folder / name, gzip.compress(content) if zipped else content)
    return folder


# Forms of data: what is read.


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("header", ["", "width{d}height{d}kind{n}"])
def test_csv_of_classes(tmp_path, delimiter, end, header):
    rows = [delimiter.join(map(str, [*row, label])) for row, label in zip(X, "bab ", strict=True)]
    rows[-1] += "a "
    text = header.format(d=delimiter, n=end) + end.join(rows) + end + end
    for name, content in (("a.csv", text.encode()), ("a.csv.gz", gzip.compress(text.encode()))):
        read = data.load(written(tmp_path / name, content))
        np.testing.assert_array_equal(read.x, X)
        assert read.classes == ("a", "b")
        np.testing.assert_array_equal(read.y, [1, 0, 1, 0])
        assert read.features == (("width", "height") if header else ())
        assert read.targets == (("kind",) if header else ())


def test_a_byte_order_mark_and_quotes_are_no_trouble(tmp_path):
    path = written(tmp_path / "a.csv", '\ufeff"a, b",c,t\n"1",2,"x, y"\n3,4,z\n')
    read = data.load(path)
    assert read.features == ("a, b", "c")
    assert read.classes == ("x, y", "z")


@pytest.mark.parametrize(
    ("target", "column"),
    [(None, 2), ("c", 2), ("a", 0), ("0", 0), (0, 0), (1, 1), ("-2", 1), (-3, 0)],
)
def test_the_target_column_by_name_or_index(tmp_path, target, column):
    table = np.array([[1.5, 2.5, 3.5], [4.5, 5.5, 6.5]])
    path = written(tmp_path / "a.csv", "a,b,c\n1.5,2.5,3.5\n4.5,5.5,6.5\n")
    read = data.load(path, target=target)
    np.testing.assert_array_equal(read.y, table[:, [column]])
    np.testing.assert_array_equal(read.x, np.delete(table, column, 1))
    assert read.targets == ("abc"[column],)


def test_whole_numbers_in_the_last_column_are_classes(tmp_path):
    table = "x,y\n" + "".join(f"{i},{i % 3}\n" for i in range(30))
    assert data.load(written(tmp_path / "b.csv", table)).classes == ("0", "1", "2")


def test_whole_numbers_are_classes_where_they_are_few(tmp_path):
    def table(labels):
        return written(tmp_path / "a.csv", "".join(f"{i},{v}\n" for i, v in enumerate(labels)))

    few = data.load(table([10, 9, 10, -2]))
    assert few.classes == ("-2", "9", "10")
    np.testing.assert_array_equal(few.y, [2, 1, 2, 0])
    many = table(range(FEW + 1))
    assert data.load(many).classes == ()
    assert len(data.load(many, task="classification").classes) == FEW + 1
    assert data.load(table([0.0, 1.0, 0.0])).classes == ("0", "1")
    assert data.load(table([1.0, 2.5, 3.0])).classes == ()
    values = data.load(table([3, 4, 3]), task="regression")
    np.testing.assert_array_equal(values.y, [[3.0], [4.0], [3.0]])
    assert data.load(table([0.5, 1.5]), task="classification").classes == ("0.5", "1.5")


@pytest.mark.parametrize(
    ("y", "classes", "values"),
    [
        (np.array([3, 1, 3, 1]), ("1", "3"), [1, 0, 1, 0]),
        (np.array([[3], [1], [3], [1]], np.uint8), ("1", "3"), [1, 0, 1, 0]),
        (np.array([True, False, True, True]), ("False", "True"), [1, 0, 1, 1]),
        (np.array(["b", "a", "b", "é"]), ("a", "b", "é"), [1, 0, 1, 2]),
        (np.array([b"b", b"a", b"b", b"b"]), ("a", "b"), [1, 0, 1, 1]),
        (np.array([0.5, 1, 2, 3]), (), [[0.5], [1], [2], [3]]),
        (X, (), X),
    ],
)
def test_numpy_files(tmp_path, y, classes, values):
    np.savez(tmp_path / "a.npz", x=X, y=y)
    np.savez_compressed(tmp_path / "b.npz", x=X, y=y, other=[1])
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", y)
    pair = (tmp_path / "x.npy", str(tmp_path / "y.npy"))
    for source in (tmp_path / "a.npz", str(tmp_path / "b.npz"), pair):
        read = data.load(source)
        np.testing.assert_array_equal(read.x, X)
        np.testing.assert_array_equal(read.y, values)
        assert read.classes == classes
        assert read.y.dtype == (np.int32 if classes else y.dtype)


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_folders_bring_their_own_test_examples(tmp_path, zipped):
    read = data.load(idx_folder(tmp_path, zipped))
    np.testing.assert_array_equal(read.x, IMAGES.reshape(4, 6))
    assert read.classes == ("2", "7")
    train, test = data.split(read, 0.2, 0)
    assert train.test is None
    for part in (train, test):
        np.testing.assert_array_equal(part.x, IMAGES.reshape(4, 6))
        np.testing.assert_array_equal(part.y, [1, 0, 1, 0])
    alone = data.load(idx_folder(tmp_path / "b", zipped, test=False))
    assert alone.test is None
    assert len(data.split(alone, 0.5, 0)[1].x) == 2


@pytest.mark.parametrize("code", [0x0B, 0x0D])
def test_wider_idx_types(tmp_path, code):
    folder = idx_folder(tmp_path, zipped=False, test=False)
    written(folder / "train-images-idx3-ubyte", idx(IMAGES.astype(float) - 300, code))
    np.testing.assert_array_equal(data.load(folder).x, IMAGES.reshape(4, 6) - 300.0)


def test_test_labels_keep_the_training_classes_order(tmp_path):
    folder = idx_folder(tmp_path, zipped=False)
    written(folder / "t10k-labels-idx1-ubyte", idx(np.full(4, 7), 8)[:8] + bytes([7, 7, 7, 2]))
    np.testing.assert_array_equal(data.load(folder).test.y, [1, 1, 1, 0])
    written(folder / "t10k-labels-idx1-ubyte", idx(np.array([7, 3, 2, 2]), 8))
    with pytest.raises(DataError, match="'3' is none of the classes"):
        data.load(folder)


@pytest.mark.parametrize("name", data.BUNDLED)
def test_bundled_sets(name):
    read = data.load(name)
    assert read.x.dtype == np.float32
    assert len(read.features) == read.x.shape[1]
    assert len(read.y) == len(read.x)
    assert read.y.shape == (len(read.x),) if read.classes else (len(read.x), 1)


def test_inputs_take_columns_by_name(tmp_path):
    path = written(tmp_path / "a.csv", "kind,b,a,note\n?,2,1,x\n,4,3,y\n")
    np.testing.assert_array_equal(inputs(path, 2, ("a", "b")), [[1, 2], [3, 4]])
    with pytest.raises(DataError, match="no column is called 'alpha'"):
        inputs(path, 2, ("alpha", "b"))
    bare = written(tmp_path / "b.csv", "1,2\n3,4\n")
    np.testing.assert_array_equal(inputs(bare, 2, ("a", "b")), [[1, 2], [3, 4]])
    with pytest.raises(DataError, match="expected 3 features, got 2"):
        inputs(bare, 3)


def test_inputs_of_the_other_forms(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "a.npz", x=X)
    folder = idx_folder(tmp_path / "idx", zipped=True)
    for source in (tmp_path / "x.npy", tmp_path / "a.npz"):
        np.testing.assert_array_equal(inputs(source, 2), X)
    for source in (folder, folder / "t10k-images-idx3-ubyte.gz"):
        np.testing.assert_array_equal(inputs(source, 6), IMAGES.reshape(4, 6))
    assert inputs("iris", 4).shape == (150, 4)
    with pytest.raises(DataError, match="iris: expected 3 features, got 4"):
        inputs("iris", 3)


# Faults: each is refused with the file's name and the place.

CSV_FAULTS = {
    "empty": ("", "a.csv: empty"),
    "blank": ("\n\n  \n", "a.csv: empty"),
    "header-only": ("a,b,c\n", "a header, but no examples"),
    "ragged short": ("a,b,c\n1,2,x\n1,x\n", "line 3: expected 3 columns, got 2"),
    "ragged long": ("1,2,x\n1,2,3,x\n", "line 2: expected 2 columns|expected 3 columns, got 4"),
    "text": ("a,b,c\n1,2,x\n1,two,y\n", "line 3, column 2 'b': 'two' is not a number"),
    "text without header": ("1,2,x\n1,two,y\n", "line 2, column 2: 'two' is not a number"),
    "underscore": ("1,1_0,x\n2,3,y\n", "line 1, column 2: '1_0' is not a number"),
    "no target": ("1,2,\n1,2,NA\n", "line 1, column 3: no value"),
    "infinity": ("1,2,x\n-inf,3,y\n", "line 2, column 1: expected a finite number, got -inf"),
    "too large": ("1e999,2,x\n", "line 1, column 1: expected a finite number, got inf"),
    "infinite target": ("1,2.5\n1,inf\n", "line 2, column 2: expected a finite number"),
    "text among values": ("1,2.5\n1,no\n", "line 2, column 2: 'no' is not a number.*--target"),
    "one column": ("1\n2\n", "one column"),
    "same names": ("a,a,b\n1,2,x\n", "two columns are called 'a'"),
    "quote left open": ('1,"2\n', "a.csv: line"),
    "binary": (bytes(range(256)), "line 1: binary, not text"),
    "not UTF-8": (bytes(range(1, 256)), r"not text in UTF-8: byte 0x80"),
    "binary text": (b"\0\1\2,\3\n1,2\n", "line 1: binary, not text"),
    "binary cell": (b"a,b\n1,2\n3,\0\n", "line 3: binary, not text"),
    "two encodings": (
        b"a,t\n" + b"1,2000000000000\n" * (1 << 20) + "1,é\n".encode("latin-1"),
        r"not text in UTF-8: byte 0xe9; --encoding NAME, such as cp1252, decides",
    ),
    "corrupt gzip": (b"\x1f\x8b" + b"\0" * 40, "can't be read"),
    "cut gzip": (gzip.compress(b"1,2.5\n" * 999)[:-9], "Compressed file ended before"),
    "pickle": (pickle.dumps({"x": 1}), "a pickle, which is never loaded"),
}


@pytest.mark.parametrize("name", CSV_FAULTS)
def test_csv_faults(tmp_path, name):
    content, message = CSV_FAULTS[name]
    with pytest.raises(DataError, match=message) as caught:
        data.load(written(tmp_path / "a.csv", content))
    assert "a.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_split_faults(tmp_path):
    one = data.load(written(tmp_path / "a.csv", "1,2.5\n"))
    with pytest.raises(DataError, match="1 example: 2 are needed"):
        data.split(one, 0.2, 0)
    alike = data.load(written(tmp_path / "a.csv", "1,x\n2,x\n"))
    with pytest.raises(DataError, match="all examples are of one class, 'x'"):
        data.split(alike, 0.2, 0)
    rare = data.load(written(tmp_path / "b.csv", "1,x\n2,x\n3,y\n"))
    kept = data.without_singles(rare)
    assert (kept.classes, kept.y.tolist(), len(kept.x)) == (("x",), [0, 0], 2)
    assert kept.notes[-1] == "left out, classes of one example: 'y'"
    each = data.load(written(tmp_path / "c.csv", "1,x\n2,y\n"))
    with pytest.raises(DataError, match="each of 2 classes has 1 example; another column"):
        data.without_singles(each)


@bounded
@given(counts=st.lists(st.integers(2, 5), min_size=2, max_size=6), seed=st.integers(0, 9))
def test_a_split_trains_on_every_class_and_loses_nothing(counts, seed):
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    x = np.arange(len(labels), dtype=float)[:, None]
    everything = data.Dataset("d", x, labels, tuple(map(str, range(len(counts)))))
    train, test = data.split(everything, 0.2, seed)
    assert set(train.y) == set(labels)
    assert len(test.x) >= len(counts)
    np.testing.assert_array_equal(np.sort(np.concatenate([train.x, test.x]), axis=0), x)
    np.testing.assert_array_equal(labels[train.x[:, 0].astype(int)], train.y)


TARGETS = [("tipe", "did you mean 'type'"), ("3", "from 0 to 2, got 3"), ("-4", "got -4")]


@pytest.mark.parametrize(("target", "message"), TARGETS)
def test_unknown_targets(tmp_path, target, message):
    with pytest.raises(DataError, match=message):
        data.load(written(tmp_path / "a.csv", "a,b,type\n1,2,x\n2,3,y\n"), target=target)
    with pytest.raises(DataError, match="only a table has a target column"):
        data.load("iris", target=target)


def test_unknown_sources(tmp_path):
    with pytest.raises(DataError, match="no such file.*did you mean 'digits'"):
        data.load("digitz")
    with pytest.raises(DataError, match="no such file"):
        data.load(tmp_path / "missing.csv")
    with pytest.raises(DataError, match=r"give two files, x\.npy and y\.npy"):
        data.load(tmp_path_with_x(tmp_path))
    with pytest.raises(DataError, match="expected one source"):
        data.load(("iris", "wine"))
    with pytest.raises(DataError, match="expected a task of classification or regression"):
        data.load("iris", task="clustering")
    for source in ({}, np.ones((3, 2)), None):
        with pytest.raises(TypeError, match="expected a name, a path.* got (dict|ndarray|None)"):
            data.load(source)


def tmp_path_with_x(folder):
    np.save(folder / "x.npy", X)
    return folder / "x.npy"


def test_an_unreadable_file_is_an_os_error(tmp_path, monkeypatch):
    path = written(tmp_path / "a.csv", "1,2\n")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError, match=r"a\.csv"):
        data.load(path)


NUMPY_FAULTS = {
    "no y": ({"x": X}, "expected an array 'y', the file has x"),
    "counts": ({"x": X, "y": np.arange(3)}, "x has 4 examples, but y has 3"),
    "text": ({"x": np.array([["a"]]), "y": [1]}, "expected x of real numbers"),
    "complex": ({"x": X + 1j, "y": LABELS}, "expected x of real numbers"),
    "one axis": ({"x": X[0], "y": [1, 2]}, r"expected x of shape \(n, d_in\), got \(2,\)"),
    "nothing": ({"x": X[:0], "y": LABELS[:0]}, "no examples"),
    "nan": ({"x": X * [[1], [1], [np.nan], [1]], "y": LABELS}, r"x\[2, 0\] is nan"),
    "infinity": ({"x": X, "y": [1.0, np.inf, 2, 3]}, r"y\[1\] is inf"),
    "axes": ({"x": X, "y": np.zeros((4, 1, 1))}, r"y of shape \(n,\) or \(n, k\)"),
    "pickled": ({"x": X, "y": np.array([1, "a", None, 2], object)}, "Python objects"),
}


@pytest.mark.parametrize("name", NUMPY_FAULTS)
def test_numpy_faults(tmp_path, name):
    arrays, message = NUMPY_FAULTS[name]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        data.load(tmp_path / "a.npz")


def test_a_pickle_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    objects = np.array([[Bomb()]], object)
    np.savez(tmp_path / "a.npz", x=objects, y=objects)
    np.save(tmp_path / "x.npy", objects)
    np.save(tmp_path / "y.npy", objects)
    written(tmp_path / "b.npz", pickle.dumps(Bomb()))
    written(tmp_path / "c.npy", pickle.dumps(Bomb()))
    pairs = [(tmp_path / "x.npy", tmp_path / "y.npy"), (tmp_path / "c.npy", tmp_path / "c.npy")]
    for source in (tmp_path / "a.npz", tmp_path / "b.npz", *pairs):
        with pytest.raises(DataError):
            data.load(source)
    assert not (tmp_path / "ran").exists()


IDX_FAULTS = {
    "empty": (b"", "not an IDX file"),
    "magic": (b"\1\2\3\4" * 9, "not an IDX file"),
    "type": (idx(IMAGES, 8)[:2] + b"\x0a" + idx(IMAGES, 8)[3:], "not an IDX file"),
    "no lengths": (idx(IMAGES, 8)[:9], "cut short"),
    "short": (idx(IMAGES, 8)[:-1], "cut short: 23 of 24 bytes"),
    "long": (idx(IMAGES, 8) + b"\0", "longer than the 24 bytes"),
    "huge": (struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3), "at most"),
    "large": (struct.pack(">BBBB2I", 0, 0, 8, 2, 4, 2**20), "cut short: 0 of 4194304 bytes"),
    "none": (idx(IMAGES[:0], 8), "no examples"),
    "counts": (idx(IMAGES[:3], 8), "x has 3 examples, but y has 4"),
    "nan": (idx(np.full((4, 1), np.nan), 0x0D), r"x\[0, 0\] is nan"),
    "gzip": (gzip.compress(idx(IMAGES, 8))[:-12], "Compressed file ended before"),
}


@pytest.mark.parametrize("name", IDX_FAULTS)
def test_idx_faults(tmp_path, name):
    content, message = IDX_FAULTS[name]
    folder = idx_folder(tmp_path, zipped=False, test=False)
    written(folder / "train-images-idx3-ubyte", content)
    with pytest.raises(DataError, match=message):
        data.load(folder)


def test_idx_folder_faults(tmp_path):
    with pytest.raises(DataError, match=r"expected an IDX file train-images"):
        data.load(tmp_path)
    folder = idx_folder(tmp_path / "a", zipped=False)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="expected an IDX file t10k-labels"):
        data.load(folder)
    folder = idx_folder(tmp_path / "b", zipped=False)
    written(folder / "t10k-images-idx3-ubyte", idx(IMAGES[:, :2], 8))
    with pytest.raises(DataError, match=r"\(t10k\): expected 6 features, got 4"):
        data.load(folder)
    written(folder / "emnist-train-images-idx3-ubyte", idx(IMAGES, 8))
    with pytest.raises(DataError, match="expected one file of train images"):
        data.load(folder)


# Fuzzing: whatever the bytes, the answer is arrays that fit together, or DataError.


def sound(read):
    assert not np.isinf(read.x).any()
    assert read.columns or not np.isnan(read.x).any()
    assert len(read.x) == len(read.y) > 0
    if read.classes:
        assert 0 <= read.y.min() <= read.y.max() < len(read.classes)
    else:
        assert np.isfinite(read.y).all()


def survives(source):
    try:
        read = data.load(source)
    except DataError:
        return
    sound(read)


CELL = st.sampled_from(["1", "-2.5", "1e400", "nan", "x", "", " ", '"', "é", "\0", "1_0", "٣", ","])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(rows=st.lists(st.lists(CELL, max_size=4), max_size=5), end=st.sampled_from(["\n", "\r", ""]))
@pytest.mark.long
def test_fuzzed_tables(tmp_path_factory, rows, end):
    text = "".join(",".join(row) + end for row in rows)
    survives(written(tmp_path_factory.mktemp("csv") / "a.csv", text))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(content=st.binary(max_size=120), name=st.sampled_from(["a.csv", "a.npz", "y.npy"]))
def test_fuzzed_bytes(tmp_path_factory, content, name):
    folder = tmp_path_factory.mktemp("bytes")
    path = written(folder / name, content)
    survives((path, path) if name == "y.npy" else path)
    written(folder / "idx" / "train-images-idx3-ubyte", content)
    written(folder / "idx" / "train-labels-idx1-ubyte", content)
    survives(folder / "idx")


def test_fuzzed_damage(tmp_path):
    """Good files of every form with bytes changed, cut out, doubled or cut off."""
    np.savez(tmp_path / "a.npz", x=X, y=LABELS)
    np.savez_compressed(tmp_path / "b.npz", x=X, y=LABELS)
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", LABELS)
    table = "a,b,kind\n" + "".join(f"{a},{b},{k}\n" for (a, b), k in zip(X, LABELS, strict=True))
    written(tmp_path / "a.csv", table)
    written(tmp_path / "b.csv", gzip.compress(table.encode()))
    folder = idx_folder(tmp_path / "idx", zipped=False)
    zipped = idx_folder(tmp_path / "gz", zipped=True)
    pair = (tmp_path / "x.npy", tmp_path / "y.npy")
    sources = [(path, path) for path in tmp_path.iterdir() if path.is_file() and path not in pair]
    sources += [(path, pair) for path in pair]
    sources += [(path, f) for f in (folder, zipped) for path in f.iterdir()]
    rng = random.Random(0)
    for path, source in sources:
        sound(data.load(source))
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            for _ in range(rng.choice([1, 1, 2, 5])):
                at = rng.randrange(len(damaged))
                match rng.randrange(4):
                    case 0:
                        damaged[at] ^= 1 << rng.randrange(8)
                    case 1:
                        damaged[at] = rng.choice(b"\x00\xff,\n0-'")
                    case 2:
                        del damaged[at : at + rng.randrange(1, 9)]
                    case 3:
                        damaged[at:at] = damaged[at : at + rng.randrange(1, 9)]
                damaged = damaged or bytearray(b"\0")
            path.write_bytes(damaged)
            survives(source)
        path.write_bytes(whole)


# Scaling.


def test_scaling_is_fitted_on_one_part_and_undone():
    train, test = data.split(data.load("diabetes"), 0.2, 0)
    scaling = data.Scaling.of(train.y)
    z = scaling.apply(train.y)
    assert z.dtype == np.float32
    np.testing.assert_allclose([z.mean(), z.std()], [0, 1], atol=1e-5)
    np.testing.assert_allclose(scaling.undo(scaling.apply(test.y)), test.y, rtol=1e-5)
    assert abs(scaling.apply(test.y).mean()) > 1e-3


def test_numbers_that_do_not_fit_are_named():
    with pytest.raises(DataError, match="column 2: numbers too large"):
        data.Scaling.of(np.array([[0, 1e200], [1, -1e200]]))
    scaling = data.Scaling.of(np.array([[0.0, 0.0], [1.0, 1.0]]))
    with pytest.raises(DataError, match=r"example 1, column 2: 1e\+40 is too far off"):
        scaling.apply(np.array([[0.0, 1e40]]))


@pytest.mark.parametrize("name", data.BUNDLED)
def test_scaling_is_scikit_learns_bit_for_bit(name):
    x = np.column_stack([data.load(name).x.astype(float), np.full(len(data.load(name).x), 0.1)])
    fitted = preprocessing.StandardScaler().fit(x)
    scaling = data.Scaling.of(x)
    np.testing.assert_array_equal(scaling.mean, fitted.mean_)
    np.testing.assert_array_equal(scaling.scale, fitted.scale_)
    assert scaling.scale[-1] == 1


# scikit-learn is needed for the bundled sets and for drawing a split, and for nothing else.

WITHOUT_SCIKIT_LEARN = """
import sys
sys.modules["sklearn"] = None
import numpy as np
from fnn import data
everything = data.load(sys.argv[1])
encoding = data.Encoding.of(everything)
encoding.apply(next(data.parts(sys.argv[2], encoding)).x)
data.split(everything, 0.5, 0)
try:
    data.load("iris")
except ModuleNotFoundError as error:
    print(error)
"""


def test_a_missing_scikit_learn_is_said_with_the_command(tmp_path):
    path = written(tmp_path / "a.csv", "1,2,3\n1,3,3\n2,3,4\n2,2,4\n")
    bare = written(tmp_path / "b.csv", "1,2\n")
    said = subprocess.check_output(
        [sys.executable, "-c", WITHOUT_SCIKIT_LEARN, path, bare], text=True
    )
    assert said == "sklearn is missing: python -m pip install 'fnn[data]'\n"


def test_importing_data_imports_neither_scikit_learn_nor_jax():
    program = "import sys, fnn.data; print([m for m in ('sklearn', 'jax') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"


# Labels and guesses.


def test_labels_in_bytes_must_be_utf8(tmp_path):
    """Two such labels could decode alike, and be two classes of one name."""
    np.savez(tmp_path / "a.npz", x=X, y=np.array([b"a", b"\xff", b"\xfe", "é".encode()]))
    with pytest.raises(DataError, match=r"a\.npz: the label '\\udcf[ef]' in y is not text"):
        data.load(tmp_path / "a.npz")


def test_targets_without_columns_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=np.zeros((4, 0)))
    with pytest.raises(DataError, match=r"y of shape \(n,\) or \(n, k\), got \(4, 0\)"):
        data.load(tmp_path / "a.npz")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("last", ["3", "kind"])
def test_numbers_that_count_the_columns_are_a_header(tmp_path, delimiter, last):
    """As pandas writes it for columns that have no names."""
    rows = [["0", "1", "2", last], ["0", "1", "2", "7"], ["5", "6", "7", "8"]]
    text = "".join(delimiter.join(row) + "\n" for row in rows)
    read = data.load(written(tmp_path / "a.csv", text))
    np.testing.assert_array_equal(read.x, [[0, 1, 2], [5, 6, 7]])
    assert read.features == ("0", "1", "2")
    assert read.classes == ("7", "8")


def test_few_numbers_that_count_the_columns_are_an_example(tmp_path):
    assert len(data.load(written(tmp_path / "a.csv", "0,1\n1,0\n")).x) == 2
    assert len(data.load(written(tmp_path / "a.csv", "0,1,x\n1,0,y\n")).x) == 2


@pytest.mark.parametrize(
    ("text", "x"),
    [
        ("1,5;0\n2,5;1\n", [1.5, 2.5]),
        ("2,5\t3\n1.002,5\t4\n", [2.5, 1002.5]),
        ("a;b\n0,5;1\n1;2\n", [0.5, 1]),
        ("a;b\n1,234;1\n2,345;2\n", [1.234, 2.345]),
        ('a,b\n"1,234",1\n"2,345",2\n', [1234, 2345]),
        ('a,b\n"1,234.5",1\n"2",2\n', [1234.5, 2]),
        ('a,b\n"0,25",1\n"2",2\n', [0.25, 2]),
    ],
)
def test_decimal_commas_and_thousands(tmp_path, text, x):
    read = data.load(written(tmp_path / "a.csv", text))
    np.testing.assert_array_equal(read.x[:, 0], x)
    assert any("commas" in note for note in read.notes)


def test_one_number_is_one_class_however_it_is_written(tmp_path):
    path = written(tmp_path / "a.csv", "1,1\n2,1.0\n3,+1\n4,-0.0\n5,2.50\n")
    read = data.load(path, task="classification")
    assert read.classes == ("0", "1", "2.5")
    np.testing.assert_array_equal(read.y, [1, 1, 1, 0, 2])
    text = data.load(written(tmp_path / "a.csv", "1,v1\n2,v1.0\n"))
    assert text.classes == ("v1", "v1.0")


def test_long_whole_numbers_stay_apart(tmp_path):
    ids = [10**17 + 1, 10**17 + 2, 10**25, 10**25 + 1, -(10**18)]
    path = written(tmp_path / "a.csv", "".join(f"{i},{v}\n" for i, v in enumerate(ids * 2)))
    read = data.load(path)
    assert read.classes == tuple(map(str, sorted(ids)))
    assert [read.classes[label] for label in read.y] == list(map(str, ids * 2))
    with pytest.raises(DataError, match=r"line 2, column 2: .*two whole numbers.*one float64"):
        data.load(path, task="regression")


# Members that are no arrays, pipes, and files that are larger than they look.


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY\7\7" + b"0" * 99])
def test_an_npz_member_that_is_no_array_is_refused(tmp_path, content):
    np.savez(tmp_path / "a.npz", y=LABELS)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("x", content)
    for read in (data.load, lambda path: inputs(path, 2)):
        with pytest.raises(DataError, match=r"a\.npz: x: not an array in NumPy's format"):
            read(tmp_path / "a.npz")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [">f8", "<f4", "i2"])
def test_numpys_arrays_in_every_order(tmp_path, order, dtype):
    a = np.arange(24).reshape(2, 3, 4).astype(dtype, order=order)
    np.save(tmp_path / "a.npy", a)
    read = readers.read_npy(tmp_path / "a.npy")
    np.testing.assert_array_equal(read, a)
    assert read.dtype == a.dtype


def piped(tmp_path, name, content):
    path = tmp_path / name
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=[content], daemon=True).start()
    return path


@pytest.mark.parametrize("zipped", [False, True])
def test_sources_may_be_pipes(tmp_path, zipped):
    table = b"1,2,x\n3,4,y\n"
    path = piped(tmp_path, "table", gzip.compress(table) if zipped else table)
    assert data.load(path).classes == ("x", "y")
    np.save(tmp_path / "x.npy", X)
    path = piped(tmp_path, "piped.npy", (tmp_path / "x.npy").read_bytes())
    np.testing.assert_array_equal(inputs(path, 2), X)


def test_sources_without_end_are_refused(tmp_path):
    with pytest.raises(DataError, match="/dev/zero: line 1: longer than 16777216 characters"):
        data.load("/dev/zero")
    (tmp_path / "x.npy").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="not an array in NumPy's format"):
        inputs(tmp_path / "x.npy", 2)
    bomb = gzip.compress(b"1,2\n" + b"1" * (1 << 25))
    with pytest.raises(DataError, match="line 2: longer than 16777216 characters"):
        data.load(written(tmp_path / "a.csv", bomb))


def huge_npy():
    head = io.BytesIO()
    form = {"descr": "|u1", "fortran_order": False, "shape": (1 << 30, 1 << 20)}
    np.lib.format.write_array_header_1_0(head, form)
    return head.getvalue()


def test_arrays_larger_than_the_memory_are_refused_by_their_header(tmp_path):
    path = written(tmp_path / "x.npy", huge_npy())
    os.truncate(path, 1 << 42)
    with pytest.raises(DataError, match="takes 1125899906842624 bytes; at most .* are read"):
        inputs(path, 2)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", huge_npy() + b"\0" * (1 << 20))
    with pytest.raises(DataError, match="takes 1125899906842624 bytes; at most .* are read"):
        inputs(tmp_path / "a.npz", 2)


def test_a_table_larger_than_the_memory_is_refused(tmp_path, monkeypatch):
    path = written(tmp_path / "a.csv", gzip.compress(b"1,2,x\n" * 1000))
    monkeypatch.setattr(readers, "LIMIT", 50_000)
    with pytest.raises(DataError, match="line 1000: .* at most 50000 bytes"):
        data.load(path)
