"""Tables as people have them: how they are read, and what becomes of each column."""

import datetime as dt
import gzip
import importlib
import importlib.util
import json
import os
import threading
import zlib

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from sklearn.feature_extraction.text import HashingVectorizer
from sources import inputs, written

from fnn import data
from fnn.data import DataError, Encoding, Reading, _dialect as dialect, _readers as readers
from fnn.data.dataset import Column
from fnn.data.encoding import features_of

# Dialects: what is guessed of a text file.


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff", "# a remark; with, marks\n# another\n"])
def test_separators_line_ends_and_remarks(load, mark, end, start):
    rows = [["name", "size", "kind"], ["x y", "1.5", "a"], ["z", "2.5", "b"], ["z", "-1", "a"]]
    read = load((start + "".join(mark.join(row) + "\n" for row in rows)).replace("\n", end))
    assert read.features == ("name", "size")
    assert read.columns[0] == Column("category", ("x y", "z"))
    np.testing.assert_array_equal(read.x, [[0, 1.5], [1, 2.5], [1, -1]])
    assert read.classes == ("a", "b")
    noted = {",": (), ";": ("separated by semicolons",), "\t": ("separated by tabs",)}
    assert read.notes == noted.get(mark, ("separated by pipes",))


HEADERS = {
    "names above numbers": ("a,b\n1,2\n3,4\n", ("a", "b")),
    "numbers": ("1,2\n3,4\n", ()),
    "names above text": ("cap,stalk\np,x\ne,x\np,y\n", ("cap", "stalk")),
    "text alone": ("p,x\ne,x\np,y\ne,y\n", ()),
    "counted columns": ("0,1,2\n5,6,7\n", ("0", "1", "2")),
    "counted columns, an index": (",0,1,2\n0,5,6,7\n1,5,6,8\n", ("", "0", "1", "2")),
    "a name less": ("a,b\nx,1,2\ny,3,4\n", ("", "a", "b")),
    "quoted": ('"a, b","c\nd"\n1,2\n', ("a, b", "c\nd")),
    "numpy's": ("# a,b\n1,2\n", ("# a", "b")),
    "one example": ("1,2,x\n", ()),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(name):
    text, names = HEADERS[name]
    assert dialect.guess(text.encode()).names == names


def test_what_is_given_is_not_guessed(load):
    text = "a,b;c\nd,e;f\n"
    assert load(text, reading=Reading(separator=";", header=False)).x.shape == (2, 1)
    assert load(text, reading=Reading(separator=",", header=True)).features == ("a",)
    assert load("1,2\n3,4\n", reading=Reading(header=True)).features == ("1",)


def test_blank_lines_and_lines_without_values_are_told_apart(tmp_path):
    """A line of separators alone is an example whose cells are all blank."""
    learned = data.load(written(tmp_path / "a.csv", "a,b,y\n1,2,0\n\n3,4,1\n\n\n5,7,0\n"))
    assert len(learned.x) == 3
    encoding = Encoding.of(learned)
    new = written(tmp_path / "b.csv", "a,b\n\n1,2\n\n,\n3,4\n\n")
    np.testing.assert_array_equal(inputs(new, encoding), [[1, 2], [np.nan, np.nan], [3, 4]])


def test_columns_without_a_name_and_without_values_are_not_there(load):
    read = load("a,b,,y,\n1,2,,x,\n3,4,,y,\n", target="y")
    assert read.features == ("a", "b")
    with pytest.raises(DataError, match="line 3, column 4 'y': expected a finite number, got inf"):
        load("a,b,,y,\n1,2,,1.5,\n3,4,,inf,\n", target="y")


# Kinds of columns.

CELLS = {
    "numbers": (["1", " 2.5", "-3e2"], "number", [1, 2.5, -300]),
    "blanks": (["1", "NA", "3"], "number", [1, np.nan, 3]),
    "question marks": (["?", "2", "."], "number", [np.nan, 2, np.nan]),
    "thousands": (['"1,200"', "3", '"1,000,000"'], "number", [1200, 3, 1e6]),
    "booleans": (["True", "False", "True"], "category", [1, 0, 1]),
    "categories": (["b", "", "a"], "category", [1, np.nan, 0]),
    "dates": (["1970-01-02", "", "1971-01-01"], "date", [1, np.nan, 365]),
    "moments": (["1970-01-02 12:00", "1970-01-01 06:00"] * 2, "date", [1.5, 0.25] * 2),
    "moments with a zone": (["1970-01-02T12:00:00Z"] * 3, "date", [1.5] * 3),
    "moments with offsets": (
        [f"1970-01-02T12:00:00{zone}" for zone in ("+02:00", "-0030", "Z", "", "+06")],
        "date",
        [1 + hour / 24 for hour in (10, 12.5, 12, 12, 6)],
    ),
    "days before months": (["31.01.1970", "01.02.1970", "02.02.1970"], "date", [30, 31, 32]),
    "days first": (["31/01/1970", "01/02/1970", "02/02/1970"], "date", [30, 31, 32]),
    "times": (["06:00", "18:00", ""], "time", [0.25, 0.75, np.nan]),
    "nothing": (["", "NA", "null"], "number", [np.nan] * 3),
}


@pytest.mark.parametrize("name", CELLS)
def test_kinds_of_columns(load, name):
    cells, kind, values = CELLS[name]
    read = load("a,y\n" + "".join(f"{cell},{i}.5\n" for i, cell in enumerate(cells)))
    assert read.columns[0].kind == kind
    np.testing.assert_allclose(read.x[:, 0], values)


def test_a_stray_text_among_numbers_is_said_and_few_values_are_categories(load):
    numbers = [f"{i}.25,{i}.5\n" for i in range(50)]
    numbers[30] = "none today,30.5\n"
    with pytest.raises(DataError, match=r"line 32, column 1 'a': 'none today' is not a number"):
        load("a,y\n" + "".join(numbers))
    steps = load(
        "a,y\n" + "".join(f"{'012'[i % 3]}{'+' * (i % 17 == 2)},{i}.5\n" for i in range(50))
    )
    assert steps.columns[0].values == ("0", "0+", "1", "1+", "2", "2+")
    tickets = load("a,y\n" + "".join(f"{'PC ' * (i % 5 == 0)}{i},{i}.5\n" for i in range(50)))
    assert tickets.columns[0].kind == "category"


FRAME = {
    "number": [1, None, 3],
    "price": [0.5, float("nan"), 2.5],
    "flag": [True, None, False],
    "day": [dt.date(1970, 1, 2), None, dt.date(1970, 1, 4)],
    "at": [dt.datetime(1970, 1, 1, 12), None, dt.datetime(1970, 1, 2)],
    "text": ["a", None, "b"],
    "y": ["u", "v", "u"],
}


class Exported:
    """What any library's data frame offers: a stream of Arrow's C interface."""

    def __init__(self, frame):
        self.frame = frame

    def __arrow_c_stream__(self, requested_schema=None):
        return self.frame.__arrow_c_stream__(requested_schema)


def frames(folder):
    """A data frame, as each library has it and as each file holds it."""
    frame = pl.DataFrame(FRAME)
    frame.write_parquet(folder / "a.parquet")
    frame.write_ipc(folder / "a.feather")
    frame.write_csv(folder / "a.tsv", separator="\t")
    written(folder / "a.csv.gz", gzip.compress((folder / "a.tsv").read_bytes()))
    others = {"another library's": Exported(frame)}
    if importlib.util.find_spec("pyarrow") and importlib.util.find_spec("pandas"):
        pandas = importlib.import_module("pandas")
        others |= {"pandas": pandas.DataFrame(FRAME, index=[7, 7, 9]), "arrow": frame.to_arrow()}
    return {
        "polars": frame,
        "categorical": frame.with_columns(pl.col("text", "y").cast(pl.Categorical)),
        **others,
        **{name: folder / name for name in ("a.parquet", "a.feather", "a.tsv", "a.csv.gz")},
    }


def test_one_table_in_every_form(tmp_path):
    nan = np.nan
    x = [[1, 0.5, 1, 1, 0.5, 0], [nan] * 6, [3, 2.5, 0, 3, 1, 1]]
    kinds = ["number", "number", "category", "date", "date", "category"]
    for name, source in frames(tmp_path).items():
        read = data.load(source)
        np.testing.assert_array_equal(read.x, x, err_msg=name)
        assert [column.kind for column in read.columns] == kinds, name
        assert (read.classes, list(read.y)) == (("u", "v"), [0, 1, 0]), name
        assert (read.features, read.targets) == (tuple(FRAME)[:-1], ("y",)), name
        bare = source.drop(columns="y") if name == "pandas" else source
        encoding = Encoding.of(read)
        found = encoding.apply(inputs(bare, encoding))
        np.testing.assert_array_equal(found, encoding.apply(encoding.aligned(read).x), name)


def test_faults_of_frames_name_the_row(tmp_path):
    frame = pl.DataFrame({"a": [1.0, float("inf")], "y": [0.5, 1.5]})
    frame.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: row 2, column 1 'a': .* got inf"):
        data.load(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column 1 'a': expected numbers, text or dates, got List"):
        data.load(pl.DataFrame({"a": [[1], [2]], "y": [0.5, 1.5]}))
    with pytest.raises(
        DataError, match="column 2 'y': expected numbers or text, got List.*--target"
    ):
        data.load(pl.DataFrame({"a": [1, 2], "y": [[1], [2]]}))
    with pytest.raises(DataError, match="no examples"):
        data.load(pl.DataFrame({"a": [], "y": []}))


@pytest.mark.parametrize("form", ["parquet", "feather"])
def test_a_stored_frame_larger_than_the_memory_is_refused_by_its_size(tmp_path, monkeypatch, form):
    frame = pl.DataFrame({"a": np.zeros(10**6), "y": np.zeros(10**6)})
    path = tmp_path / f"a.{form}"
    frame.write_parquet(path) if form == "parquet" else frame.write_ipc(path, compression="zstd")
    assert path.stat().st_size < 10**6
    monkeypatch.setattr(readers, "LIMIT", 10**6)
    monkeypatch.setattr(pl, "read_parquet", None)
    monkeypatch.setattr(pl, "read_ipc", None)
    with pytest.raises(DataError, match="the table is too large: at most 1000000 bytes are read"):
        data.load(path)


@pytest.mark.parametrize("magic", [b"PAR1", b"ARROW1"])
def test_damaged_frames_are_one_line(tmp_path, magic):
    for rest in (b"", b"\0" * 100, magic, bytes(range(256)) + magic):
        with pytest.raises(DataError, match=r"a\.bin: ") as caught:
            data.load(written(tmp_path / "a.bin", magic + rest))
        assert "\n" not in str(caught.value)


# Targets.


def test_a_text_target_is_classes_and_a_wrong_one_hints_at_target(load):
    rows = "".join(f"{i},{i % 2}.5,{'no' if i % 3 else 'yes'},name {i}\n" for i in range(40))
    text = "a,b,sold,who\n" + rows
    assert load(text, target="sold").classes == ("no", "yes")
    with pytest.raises(
        DataError, match="column 4 'who': 40 classes in 40 examples; .*--target NAME"
    ):
        load(text)
    assert len(load(text, task="classification").classes) == 40
    with pytest.raises(
        DataError, match="line 2, column 3 'sold': 'yes' is not a number; .*--target"
    ):
        load(text, target="sold", task="regression")


def test_rows_without_a_target_are_left_out_and_counted(load):
    text = "a,y\n1,x\n2,\n3,y\n4,NA\n"
    read = load(text)
    np.testing.assert_array_equal(read.x, [[1], [3]])
    assert read.notes == ("2 rows without a target left out",)
    with pytest.raises(DataError, match="line 3, column 2 'y': no value"):
        load(text, reading=Reading(missing="error"))
    later = "a,b,y\n1,1,x\n2,2,\n3,inf,y\n"
    with pytest.raises(DataError, match="line 4, column 2 'b': expected a finite number"):
        load(later)


def test_columns_are_dropped_and_blanks_refused(load):
    text = "a,b,c,y\n1,x,,u\n2,y,3,v\n"
    assert load(text, reading=Reading(drop=("b", "c"))).features == ("a",)
    with pytest.raises(DataError, match="no column is called 'd'; known are a, b, c, y"):
        load(text, reading=Reading(drop=("d",)))
    with pytest.raises(DataError, match="line 2, column 3 'c': no value; --missing fill"):
        load(text, reading=Reading(missing="error"))


# Encodings.


def table(**columns):
    """A dataset of these columns of cells: numbers, or text for categories."""
    frame = pl.DataFrame({**columns, "y": np.arange(len(next(iter(columns.values())))) + 0.5})
    return data.load(frame)


def features(part, keep=()):
    return {f.name: f for f in Encoding.of(part, keep).features}


def test_blanks_are_the_training_parts_median_and_a_flag():
    train = table(a=[1.0, None, 4.0, 7.0], b=[1.0, 2.0, 3.0, 6.0], c=["u", None, "v", "u"])
    encoding = Encoding.of(train)
    z = encoding.apply(encoding.aligned(train).x)
    filled = np.array([1, 4, 4, 7])
    np.testing.assert_allclose(z[:, 0], (filled - 4) / filled.std(), rtol=1e-6)
    np.testing.assert_array_equal(z[:, 1], [0, 1, 0, 0])
    np.testing.assert_allclose(z[:, 2].std(), 1, rtol=1e-6)
    np.testing.assert_array_equal(z[:, 3:], [[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])
    other = encoding.aligned(table(a=[None, 9.0], b=[None, 2.5], c=["w", None]))
    z = encoding.apply(other.x)
    np.testing.assert_allclose(z[0, 2], 0.5 * (2.5 - 3) / 0.5 / np.std([1, 2, 3, 6]), rtol=1e-6)
    np.testing.assert_array_equal(z[0, 3:], [0, 0, 0])
    assert encoding.unseen(other.x).lines() == [
        "column 'b': 1 blank, where training saw none, filled with 2.5",
        "column 'c': 1 of 2 values was never seen in training",
    ]


def test_nothing_but_the_training_part_decides():
    rng = np.random.default_rng(0)
    n = 200
    part = table(
        a=[None if rng.random() < 0.2 else rng.normal() for _ in range(n)],
        b=[f"v{i}" for i in rng.integers(0, 80, n)],
        c=["only"] * (n - 1) + ["other"],
    )
    rows = np.arange(n) < 100
    train = part._replace(x=part.x[rows], y=part.y[rows])
    changed = part.x.copy()
    changed[~rows] = changed[~rows][::-1] * 0
    again = part._replace(x=changed)
    again = again._replace(x=again.x[rows], y=again.y[rows])
    assert Encoding.of(train).features == Encoding.of(again).features
    assert features(train)["c"].left_out == "always 'only'"
    values = features(train)["b"].values
    assert set(values) <= {part.columns[1].values[int(code)] for code in train.x[:, 1]}


def test_what_looks_like_rows_is_left_out_and_kept_on_demand():
    n = 40
    rng = np.random.default_rng(1)
    columns = {
        "no": np.arange(1, n + 1),
        "customer_id": rng.permutation(10**6)[:n],
        "who": [f"person {i}" for i in range(n)],
        "note": [f"text {i % 30}" for i in range(n)],
        "year": 1950 + np.arange(n),
        "size": rng.normal(size=n),
        "empty": [None] * n,
    }
    columns["note"] = [f"text {min(i, 35)}" for i in range(n)]
    left = {name: f.left_out for name, f in features(table(**columns)).items()}
    assert left == {
        "no": "row numbers",
        "customer_id": "row numbers",
        "who": "a name or id per row",
        "note": "",
        "year": "",
        "size": "",
        "empty": "no values",
    }
    kept = features(table(**columns), ("no", "who"))
    assert (kept["no"].left_out, kept["who"].left_out) == ("", "")
    with pytest.raises(DataError, match="no column is called 'nobody'"):
        features(table(**columns), ("nobody",))
    assert features(table(no=np.arange(n)))["no"].left_out == ""  # rather than nothing
    with pytest.raises(DataError, match="no column can be used: no values"):
        features(table(a=[None] * n))


def test_numbers_that_are_too_large_are_said_with_the_columns_name():
    with pytest.raises(DataError, match="the table: column 'b': numbers too large to standardise"):
        features(table(a=["u", "v"] * 2, b=[1e308, -1e308, 1e308, 0.0]))


def test_an_index_without_a_name_is_left_out(load):
    rows = "".join(f"{i * i + 7},{i % 5},{i % 3}.5\n" for i in range(30))
    read = load(",a,y\n" + rows)
    assert read.features == ("Unnamed: 0", "a")
    encoding = Encoding.of(read)
    assert encoding.left_out() == ["left out: 'Unnamed: 0' (row numbers)"]
    assert Encoding.of(read, ("Unnamed: 0",)).d_in == 2
    np.testing.assert_array_equal(inputs(pl.DataFrame({"a": [1, 2]}), encoding), [[1], [2]])


def test_many_categories_share_inputs_by_groups_and_free_text_is_left_out():
    n = 400
    many = [f"v{i % 5 if i % 2 else i % 120}" for i in range(n)]
    free = [f"text {i % 300}" for i in range(n)]
    train = table(many=many, free=free, size=np.arange(n) * 0.5)
    found = features(train)
    assert found["many"].width == 66
    assert found["many"].describe() == "one-hot: 50 values and the rest in 16 groups"
    assert {"v1", "v3"} <= set(found["many"].values)
    assert found["free"].left_out == "300 different texts in 400 rows"
    encoding = Encoding.of(train)
    z = encoding.apply(encoding.aligned(train).x)
    np.testing.assert_array_equal(z[:, :66].sum(1), np.ones(n))
    assert (z[:, 50:66].sum(0) > 0).sum() > 8  # the 51st value is not lost among all others
    new = encoding.aligned(table(many=["v1", "never"], free=["", ""], size=[1.0, 2.0]))
    assert encoding.apply(new.x)[1, 50 + zlib.crc32(b"never") % 16] == 1
    held = encoding.as_metadata()
    assert features_of(held) == encoding.features
    held[0]["rest"] = True  # as older runs have it
    old = Encoding(features_of(held), encoding.scaling)
    assert old.aligned(table(many=["v1", "never"], size=[1.0, 2.0])).x[1, 0] == -1
    assert encoding.unseen(new.x).lines() == []


WORDS = ["good soup", "a cold tea", "bad soup again", "Überraschend gut", "no salt at all"]


def reviews(n=60):
    """A table with free text, with ids and codes that are none, and with a column of one word."""
    rng = np.random.default_rng(0)
    made = ["".join(letters) for letters in rng.choice(list("abcdefghij"), (n, 50))]
    said = [f"{WORDS[i % 5]}, {word} {i}" for i, word in enumerate(made)]
    said[7] = None
    return table(
        said=said,
        id=[f"AB-{i:04}" for i in range(n)],
        code=[f"PC {i} {i * i}" for i in range(n)],
        link=[f"https://a.example/some/page-{i}" for i in range(n)],
        few=[WORDS[i % 5] for i in range(n)],
        size=np.arange(n) * 0.5,
    )


def test_free_text_becomes_hashed_trigrams_and_names_of_rows_do_not():
    train = reviews()
    encoding = Encoding.of(train)
    found = dict(zip(train.features, encoding.features, strict=True))
    assert found["said"].describe() == "text: hashed into 256 inputs"
    for name in ("id", "code", "link"):
        assert found[name].left_out == "a name or id per row"
    assert found["few"].describe() == "one-hot: 5 values"
    assert (encoding.d_in, encoding.width) == (258, 262)
    assert encoding.names == ("said", "few", "size")
    assert encoding.columns == (slice(0, 256), slice(256, 257), slice(257, 258))
    assert "soup" not in json.dumps(encoding.as_metadata()[0])  # no text is held
    assert features_of(encoding.as_metadata()) == encoding.features
    new = table(size=[1.0, 2.0, 3.0], few=["", "", ""], said=["GOOD Soup", "unseen words", None])
    part = encoding.aligned(new)
    z = encoding.apply(part.x)
    hashing = HashingVectorizer(n_features=256, analyzer="char_wb", ngram_range=(3, 3))
    expected = hashing.transform(["good soup", "unseen words", ""]).toarray()
    np.testing.assert_array_equal(z[:, :256], expected.astype(np.float32))
    assert encoding.unseen(part.x).lines() == ["column 'few': 3 blanks, where training saw none"]
    again = encoding.aligned(table(said=[3.5, 4.0], few=["", ""], size=[1.0, 2.0]))
    expected = hashing.transform(["3.5", "4"]).toarray()
    np.testing.assert_array_equal(again.x[:, :256], expected)


def test_columns_of_text_by_hand(load):
    rows = "".join(f"{['x1', 'X1', 'y2'][i % 3]},{i * i % 7}.5\n" for i in range(30))
    read = load("code,y\n" + rows, reading=Reading(text=("code",)))
    assert read.columns == (Column("text", ("X1", "x1", "y2")),)
    assert not read.notes
    encoding = Encoding.of(read)
    assert encoding.features[0].kind == "text"
    later = load("code,y\n1,2.5\n2,3.5\n", like=encoding)
    assert later.columns == (Column("category", ("1", "2")),)
    assert encoding.aligned(later).x.shape == (2, 256)
    assert (
        features(reviews(), ("code",))["code"].describe()
        == "one-hot: 50 values and the rest in 16 groups"
    )


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"kind": "text"}, "groups of the rest"),
        ({"kind": "text", "rest": -1}, "groups of the rest"),
        ({"kind": "text", "rest": 2**16 + 1}, "groups of the rest"),
        ({"kind": "text", "rest": 8, "values": ["x"]}, "a text with values"),
        ({"kind": "text", "rest": 8, "flag": True}, "a text with values, or blanks"),
        ({"kind": "number", "values": ["x"]}, "a number with values"),
        ({"kind": "number", "rest": 2}, "groups of the rest"),
    ],
)
def test_crafted_features_are_refused(entry, reason):
    with pytest.raises(ValueError, match=reason):
        features_of([{"name": "a"} | entry])


def test_dates_become_days_and_places_in_cycles():
    days = [dt.datetime(2024, 1, 1, 6) + dt.timedelta(hours=30 * i) for i in range(300)]
    train = table(at=days, day=[d.date().replace(year=2020, month=1, day=6) for d in days])
    encoding = Encoding.of(train)
    at, day = encoding.features
    assert (at.cycles, day.cycles) == (("year", "week", "day"), ())
    assert at.describe() == "standardised, in days, place in the year, week and day"
    assert day.describe() == "standardised, in days"
    z = encoding.apply(encoding.aligned(train).x)
    np.testing.assert_allclose(
        z[:, 0], (np.arange(300) - 149.5) / np.std(np.arange(300)), rtol=1e-4
    )
    turn = 2 * np.pi * np.array([[d.hour / 24, d.weekday() / 7] for d in days])
    np.testing.assert_allclose(
        z[:, [5, 6]], np.transpose([np.sin(turn[:, 0]), np.cos(turn[:, 0])]), atol=1e-4
    )
    np.testing.assert_allclose(
        z[:, [3, 4]], np.transpose([np.sin(turn[:, 1]), np.cos(turn[:, 1])]), atol=1e-4
    )
    year = [(d.timetuple().tm_yday - 1) / 366 for d in days]
    np.testing.assert_allclose(z[:, 1], np.sin(2 * np.pi * np.array(year)), atol=1e-4)


def test_the_same_day_of_each_year_has_no_place_in_the_year():
    years = [dt.date(1990 + i, 1, 1) for i in range(30)]
    (feature,) = Encoding.of(table(day=years)).features
    assert feature.cycles == ("week",)


def test_columns_come_back_from_json_as_they_were():
    train = table(a=[1.0, None, 4.0, 7.1], b=["u", None, "v", "u"], c=[0.1, 0.2, 0.3, 0.7])
    encoding = Encoding.of(train)
    metadata = encoding.as_metadata()
    assert data.encoding.features_of(json.loads(json.dumps(metadata))) == encoding.features
    for wrong in (
        {"name": "a"},
        {"name": "a", "kind": "colour"},
        {"name": 5, "kind": "number"},
        {"name": "a", "kind": "number", "fill": float("nan")},
        {"name": "a", "kind": "date", "cycles": ["moon"]},
        {"name": "a", "kind": "number", "more": 1},
    ):
        with pytest.raises((TypeError, ValueError)):
            data.encoding.features_of([wrong])


def test_columns_are_found_by_name_and_by_place():
    train = data.load(pl.DataFrame({"a": [1.0, 2.5], "b": ["u", "v"], "y": [0.5, 1.5]}))
    encoding = Encoding.of(train)
    turned = pl.DataFrame({"note": ["?", "!"], "b": ["v", "u"], "a": [2.5, 1.0]})
    np.testing.assert_array_equal(inputs(turned, encoding), [[2.5, 1], [1, 0]])
    with pytest.raises(DataError, match="no column is called 'b'; known are a, c"):
        inputs(pl.DataFrame({"a": [1.0], "c": ["u"]}), encoding)
    with pytest.raises(DataError, match="row 1, column 1 'a': 'x' is not a number"):
        inputs(pl.DataFrame({"a": ["x", "y"], "b": ["u", "v"]}), encoding)
    numbers = inputs(pl.DataFrame({"a": [1.0], "b": [7]}), encoding)
    assert encoding.unseen(numbers).lines() == [
        "column 'b': 1 of 1 values was never seen in training"
    ]


def test_text_of_two_meanings_is_read_as_in_training(tmp_path):
    text = 'day,price,y\n13/02/2024,"0,25",0.5\n01/03/2024,"12,5",1.5\n'
    train = data.load(written(tmp_path / "a.csv", text))
    assert train.notes == ("dates as day/month/year", "decimal commas")
    encoding = Encoding.of(train)
    encoding = encoding._replace(features=data.encoding.features_of(encoding.as_metadata()))
    new = written(tmp_path / "b.csv", 'day,price\n05/02/2024,"1,234"\n')
    found = inputs(new, encoding)
    np.testing.assert_allclose(found - train.x[0], [[-8, 1.234 - 0.25]])
    alone = data.load(written(tmp_path / "c.csv", 'day,price,y\n05/02/2024,"1,234",1.5\n'))
    assert alone.x[0, 1] == 1234
    assert alone.notes == ("dates as month/day/year", "commas between thousands")


def test_codes_that_are_numbers_in_a_later_file_are_still_codes():
    encoding = Encoding.of(table(a=["1", "2", "2b", "1"] * 2, b=np.arange(8) * 0.5))
    new = inputs(pl.DataFrame({"a": [2, 1], "b": [1.0, 1.0]}), encoding)
    np.testing.assert_array_equal(new[:, 0], [1, 0])


# Lines: where a fault is, whatever comes before it.


@pytest.mark.parametrize("before", ["", "\n\n", "x,,0.5\n", '"two\nlines",1,0.5\n'])
def test_the_line_of_a_fault(load, before):
    text = "a,b,y\n" + before
    good = "x,2,0.5\n" * 30
    with pytest.raises(DataError) as caught:
        load(text + good + "x,inf,1.5\n")
    line = (text + good).count("\n") + 1
    assert f"a.csv: line {line}, column 2 'b': expected a finite number, got inf" in str(
        caught.value
    )
    with pytest.raises(DataError, match=f"line {line}: expected 3 columns, got 2"):
        load(text + good + "x,5\n")
    with pytest.raises(DataError, match=f"line {line}: expected 3 columns, got 4"):
        load(text + good + "x,5,6,7\n")
    with pytest.raises(DataError, match=f"line {line}: "):
        load(text + good + 'x,"5"6,7\n')


def test_a_table_in_a_pipe(tmp_path):
    content = pl.DataFrame(FRAME).write_csv().encode()
    path = tmp_path / "pipe"
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=[gzip.compress(content)], daemon=True).start()
    assert data.load(path).x.shape == (3, 6)


# Fuzzing: whatever the table, the answer is a dataset that fits together, or one line.

CELL = st.one_of(
    st.sampled_from(["", "NA", "?", "x", "Yes", "no", "a b", "1", "-2.5", "1e3", "1,5", "1.234,5"]),
    st.sampled_from(["2020-02-29", "29.02.2020", "12:30", "2020-01-01 10:00", "nan", "inf", "3+"]),
    st.sampled_from(['"', "é", "\ud7ff", "#", "True", "FALSE", "$5", "5%", "\0", "\uff10"]),
    st.integers(-3, 9).map(str),
    st.floats(-5, 5).map(str),
    st.text(alphabet=st.characters(codec="utf-8"), max_size=3),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    columns=st.lists(st.lists(CELL, min_size=8, max_size=8), min_size=1, max_size=5),
    header=st.booleans(),
    mark=st.sampled_from([",", ";", "\t", "|"]),
    quoted=st.booleans(),
    keep=st.integers(1, 8),
)
@pytest.mark.long
def test_fuzzed_columns(tmp_path_factory, columns, header, mark, quoted, keep):
    """Trained on and applied to itself and to each other half: arrays that are finite."""
    rows = [*zip(*columns, strict=True)][:keep] * (1 + (keep > 4))
    if header:
        rows = [tuple(f"c{i}" for i in range(len(columns))), *rows]
    if quoted:
        rows = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in rows]
    text = "".join(mark.join(row) + "\n" for row in rows)
    path = tmp_path_factory.mktemp("fuzz") / "a.csv"
    path.write_bytes(text.encode(errors="replace"))
    try:
        read = data.load(path)
        train, test = data.split(read, 0.4, 0)
        encoding = Encoding.of(train)
        for part in (train, test):
            aligned = encoding.aligned(part)
            z = encoding.apply(aligned.x)
            assert z.shape == (len(part.x), encoding.width)
            assert np.isfinite(z).all()
            encoding.unseen(aligned.x).lines()
        assert data.encoding.features_of(encoding.as_metadata()) == encoding.features
        if read.features:
            bare = inputs(path, encoding)
            whole = encoding.aligned(read).x
            assert bare.shape[1] == whole.shape[1]
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_an_error_of_entry_is_no_distance(tmp_path):
    """A height of 31800 among heights of about 1.7: nothing learned there can be meant."""
    rng = np.random.default_rng(0)
    rows = [f"{1.7 + 0.1 * rng.normal():.3f},{i % 3},{'no' if i % 2 else 'yes'}" for i in range(99)]
    (tmp_path / "train.csv").write_text("\n".join(["height,class,answer", *rows]) + "\n")
    train = data.load(str(tmp_path / "train.csv"))
    encoding = data.Encoding.of(train)
    x = encoding.aligned(train).x.copy()
    assert np.abs(encoding.apply(x)).max() < 5
    x[3, 0], x[4, 0], x[5, 0] = 31800.0, -1e300, np.nan
    before = x.copy()
    z = encoding.apply(x)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_allclose(z[3:5, 0], (10, -10), rtol=1e-6)
    assert encoding.unseen(x).lines() == [
        "column 'height': 1 blank, where training saw none, filled with 1.709",
        "column 'height': 2 values more than 10 standard deviations off, taken as 10",
    ]
    arrays = data.Encoding((), data.Scaling(np.zeros(1), np.ones(1)))
    assert arrays.apply(np.array([[31800.0]])) == 31800


def test_ids_with_blanks_are_no_row_numbers(tmp_path):
    """A blank id says something; a column of ids without one does not."""
    for blanks, left_out in ((0, "row numbers"), (1, "")):
        ids = ["" if i < blanks else str(i) for i in range(40)]
        rows = [f"{i},{n % 7}.5,{n / 3}" for n, i in enumerate(ids)]
        (tmp_path / "a.csv").write_text("\n".join(["id,v,y", *rows]))
        encoding = Encoding.of(data.load(tmp_path / "a.csv"))
        assert encoding.features[0].left_out == left_out
