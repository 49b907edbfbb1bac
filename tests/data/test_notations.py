"""Cells as people write them: what each notation means, what is said, and which option decides."""

import gzip
import io
import json
import lzma
import sqlite3
import zipfile

import numpy as np
import polars as pl
import pytest
from sources import inputs, written

from fnn import data
from fnn.data import DataError, Encoding, Reading


def column(cells, rows=40):
    """A table of these cells, quoted, and numbers to predict."""
    every = (f'"{cells[i % len(cells)]}",{i}.5\n' for i in range(rows))
    return "a,y\n" + "".join(every)


NOTATIONS = {
    "dollars": (["$1,500", "$20", "$0.5"], [1500, 20, 0.5], "in $"),
    "euros and decimal commas": (["€ 12,50", "€ 3"], [12.5, 3], "decimal commas, in €"),
    "percent": (["12.5%", "7 %"], [12.5, 7], "in %"),
    "parentheses": (["(300)", "25", "1,000"], [-300, 25, 1000], "parentheses as minus"),
    "apostrophes": (["1'234.50", "7"], [1234.5, 7], "gaps between thousands"),
    "curly apostrophes": (["1\u2019234.50", "7"], [1234.5, 7], "gaps between thousands"),
    "spaces": (["1 234", "12 345 678"], [1234, 12345678], "gaps between thousands"),
    "hard spaces": (["1\u00a0234,5", "7"], [1234.5, 7], "decimal commas, gaps between thousands"),
    "minus": (["\u22125", "3.25"], [-5, 3.25], "U+2212 as minus"),
    "at least": (["10,000+", "500+", "0"], [10000, 500, 0], "+ after numbers left out"),
    "powers": (["19M", "201k", "1.5B"], [19e6, 201e3, 1.5e9], "K/M/B as powers of 1000"),
    "dollars and powers": (["$1.5M", "$20k"], [1.5e6, 2e4], "K/M/B as powers of 1000, in $"),
    "units": (["12 km", "3.5km", "4"], [12, 3.5, 4], "in km"),
    "units per": (["3 kg/m3", "4.5 kg/m3"], [3, 4.5], "in kg/m3"),
    "days and a day": (["5 days", "1 day"], [5, 1], "in day"),
    "degrees": (["19.5 °C", "20 °C"], [19.5, 20], "in °C"),
    "a code of a currency": (["USD 5", "7.25 USD"], [5, 7.25], "in USD"),
    "minus and dollars": (["-$5", "$-6"], [-5, -6], "in $"),
}


@pytest.mark.parametrize("name", NOTATIONS)
def test_numbers_in_their_notations_are_read_and_told(load, tmp_path, name):
    cells, values, form = NOTATIONS[name]
    read = load(column(cells))
    assert read.columns[0].kind == "number"
    np.testing.assert_allclose(read.x[: len(cells), 0], values)
    assert any(note.startswith("column 1 'a': numbers, ") and form in note for note in read.notes)
    # A later file is read as that, whatever it alone would suggest.
    encoding = Encoding.of(read)
    later = written(tmp_path / "b.csv", f'a\n"{cells[0]}"\n')
    np.testing.assert_allclose(inputs(later, encoding), [values[:1]])
    with pytest.raises(DataError, match="'7 miles' is not a number written with .*as in training"):
        inputs(written(tmp_path / "b.csv", "a\n7 miles\n"), encoding)


NO_NUMBERS = [
    ["A12", "B13"], ["1st", "2nd", "3rd", "4th"], ["1.2.3", "4.5.6"], ["10-20", "20-30"],
    ["5'11", "6'2"], ["12A", "7C", "9F"], ["3 dogs", "4 cats", "5 birds"], ["0", "0+", "1", "2"],
]  # fmt: skip


@pytest.mark.parametrize("cells", NO_NUMBERS)
def test_what_only_looks_like_numbers_is_a_category(load, cells):
    assert load(column(cells)).columns[0].values == tuple(sorted(cells))


def test_a_target_in_a_notation(load):
    text = "a,price\n" + "".join(f'{i}.5,"${i + 1},500"\n' for i in range(40))
    read = load(text)
    np.testing.assert_array_equal(read.y[:2], [[1500], [2500]])
    assert "column 2 'price': numbers, commas between thousands, in $" in read.notes


WORDS = ["#DIV/0!", "<0.5", "n.d.", "unknown", "Not available", "*", "#N/A", "ND"]


@pytest.mark.parametrize("word", WORDS)
def test_words_for_nothing_are_blanks_that_are_named_and_decided_by_missing(load, word):
    text = "a,y\n" + "".join(f"{word if i % 10 == 3 else i},{i}.5\n" for i in range(60))
    read = load(text)
    assert np.isnan(read.x[:, 0]).sum() == 6
    assert word == "#N/A" or f"column 1 'a': {word!r} taken as no value" in read.notes
    with pytest.raises(DataError, match="line 5, column 1 'a': no value; --missing fill"):
        load(text, reading=Reading(missing="error"))
    kept = load(text.replace("0,", "x,").replace("1,", "u,"), reading=Reading(category=("a",)))
    assert word == "#N/A" or word in kept.columns[0].values


def test_numbers_among_text_are_told_with_the_option_that_decides(load):
    text = "a,y\n" + "".join(f"{'many' if i % 10 == 3 else i},{i}.5\n" for i in range(60))
    read = load(text)
    assert read.columns[0].kind == "category"
    (note,) = read.notes
    assert note.startswith(
        "column 1 'a': 54 of 60 cells are numbers, but 'many'; categories; --num"
    )
    number = load(text, reading=Reading(number=("a",)))
    assert (number.columns[0].kind, np.isnan(number.x).sum()) == ("number", 6)
    assert number.notes == ("column 1 'a': 6 other cells taken as no value",)
    one = "a,y\n" + "".join(f"{'many' if i == 3 else i},{i}.5\n" for i in range(60))
    with pytest.raises(DataError, match="line 5, .*; correct it, or --number a takes such cells"):
        load(one)
    assert np.isnan(load(one, reading=Reading(number=("a",))).x).sum() == 1
    assert load(one, reading=Reading(category=("a",))).columns[0].kind == "category"


def test_dates_among_words_and_other_text(load):
    days = [f"2020-{i % 12 + 1:02}-{i % 28 + 1:02}" for i in range(40)]
    days[3], days[9] = "unknown", "0000-00-00"
    table = lambda: "when,y\n" + "".join(f"{day},{i}.5\n" for i, day in enumerate(days))
    read = load(table())
    assert (read.columns[0].kind, np.isnan(read.x).sum()) == ("date", 2)
    assert read.notes == ("column 1 'when': '0000-00-00', 'unknown' taken as no value",)
    days[5:9] = ["soon"] * 4
    with pytest.raises(DataError, match="line 7, .*'soon' is not a date.*--date when takes such"):
        load(table())
    assert np.isnan(load(table(), reading=Reading(date=("when",))).x).sum() == 6
    with pytest.raises(DataError, match="column 1 'a': no dates, but cells such as"):
        load(column(["x", "y"]), reading=Reading(date=("a",)))


def test_codes_and_large_ids_keep_their_digits(load):
    big = [str(2**53 + i) for i in range(1, 5)]
    read = load(column(big))
    assert read.columns[0].values == tuple(big)
    frame = pl.DataFrame({"a": [int(v) for v in big] * 5, "y": [i + 0.5 for i in range(20)]})
    assert data.load(frame).columns[0].values == tuple(big)
    late = "a,y\n" + "".join(f"{1000 + i},{i}.5\n" for i in range(300)) + f"{2**53 + 1},1.5\n"
    assert str(2**53 + 1) in load(late).columns[0].values
    zips = load("y,zip\n" + "".join(f"{i}.5,{['0870', '1200'][i % 2]}\n" for i in range(9)))
    assert zips.classes == ("0870", "1200")
    whole = load("zip,y\n" + "".join(f"{1000 + i % 3},{i}.5\n" for i in range(9)), reading=Reading(
        category=("zip",)
    ))  # fmt: skip
    assert whole.columns[0].values == ("1000", "1001", "1002")


def test_spellings_are_one_value_and_said(load, tmp_path):
    words = ["yes", "Yes", "yes", "NO ", "no", "no"]
    read = load("a,y\n" + "".join(f"{words[i % 6]},{words[i % 6]}\n" for i in range(30)))
    assert read.columns[0].values == read.classes == ("no", "yes")
    assert "column 1 'a': 'NO' taken as 'no', 'Yes' taken as 'yes'" in read.notes
    later = written(tmp_path / "b.csv", "a\nYES\nnO\n")
    encoding = Encoding.of(read)
    np.testing.assert_array_equal(inputs(later, encoding), [[1], [0]])
    letters = load(column(["a", "A", "b"]))
    assert letters.columns[0].values == ("A", "a", "b")


# Rows that are no examples.


def test_a_title_and_units_and_a_total_are_left_out_and_told(load, tmp_path):
    rows = "".join(f"{'xyz'[i % 3]},{i},{i}.5,{i * 2}.25\n" for i in range(9))
    text = "Sales 2024\n\nname,weight,height,y\n,kg,m,$\n" + rows + "Total,36,40.5,74.25\n"
    read = load(text)
    assert read.features == ("name", "weight", "height")
    assert len(read.x) == 9
    assert read.notes == (
        "lines above the header left out: 1",
        "the line of units left out: kg m $",
        "the last row, 'Total', left out",
    )
    encoding = Encoding.of(read)
    later = written(tmp_path / "b.csv", text)
    (part,) = data.parts(later, encoding)
    assert (len(part.x), len(part.left_out)) == (9, 3)
    with pytest.raises(DataError, match="line 13, column 2 'weight': expected a finite number"):
        load(text.replace("z,8,", "z,inf,"))


def test_units_in_a_short_later_file_and_beside_a_separator_after_each_row(load, tmp_path):
    """What training read as numbers may have a unit below its name; a category never has."""
    rows = "".join(f"{'x1'[i % 2]},{i},{i}.5\n" for i in range(9))
    encoding = Encoding.of(load("name,weight,y\n,kg,$\n" + rows))
    later = written(tmp_path / "b.csv", "name,weight\n,kg\nx,7\n")
    np.testing.assert_array_equal(inputs(later, encoding), [[1, 7]])
    for first in ("x", "undefined"):
        later = written(tmp_path / "b.csv", f"name,weight\n{first},\n1,7\n")
        np.testing.assert_array_equal(inputs(later, encoding)[:, 1], [np.nan, 7])
    read = load("name,weight,y\n,kg,$\n" + rows.replace("\n", ",\n"))
    assert (read.features, len(read.x)) == (("name", "weight"), 9)


def test_decimal_commas_below_a_title_are_no_separators(load):
    """Though they cut all rows into as many cells as the pipes cut the header."""
    rows = "".join(f"{i},155+|{i}{i},92|97{i}.2|\n" for i in range(1, 10))
    read = load("Report\n\na|b|y\n" + rows)
    assert (read.features, read.targets) == (("a", "b"), ("y",))
    np.testing.assert_array_equal(read.x[0], [1155, 11.92])


def test_readings_of_another_type_are_refused(load):
    """A word would be taken for its letters, -1 for the last line."""
    for reading in (Reading(drop="a"), Reading(id="ay")):
        with pytest.raises(TypeError, match="reading: expected tuples of names, got Reading"):
            load("a,y\n1,2.5\n", reading=reading)
    for skip in (-1, 1.5):
        with pytest.raises(ValueError, match=f"a whole number of lines to skip, got {skip}"):
            load("a,y\n1,2.5\n", reading=Reading(skip=skip))


def test_skip_decides(load):
    rows = "".join(f"{i},{i}.5\n" for i in range(9))
    assert load("made, by hand\na,y\n" + rows, reading=Reading(skip=1)).features == ("a",)
    kept = load("u,v,w\nx,1,2\ny,3,4\nTotal,5,6.5\nz,7,8\nTotal,5,6.5\n")
    assert (len(kept.x), kept.notes) == (5, ())


# Encodings and formats.

TEXT = "ville,prix\n" + "Orléans,1.5\nBesançon,2.5\nNîmes,3.5\nÉvry,5.5\n" * 3


@pytest.mark.parametrize("name", ["latin-1", "cp1252", "mac_roman", "utf-16", "utf-16-le"])
def test_encodings_are_guessed_told_and_given(load, name):
    pytest.importorskip("charset_normalizer")
    read = load(TEXT.encode(name))
    assert read.columns[0].values == ("Besançon", "Nîmes", "Orléans", "Évry")
    guessed = {"latin-1": "cp1252"}.get(name, name)
    assert read.encoding == (None if "utf" in name else guessed)  # UTF-16 shows in each file
    assert any("text in" in note for note in read.notes)
    again = load(TEXT.encode(name), reading=Reading(encoding=guessed))
    assert not any("--encoding" in note for note in again.notes)
    plain = load(TEXT, reading=Reading(encoding=guessed))  # as a run reads a later file
    assert plain.columns == read.columns


def test_a_late_byte_is_read_in_the_encoding_that_is_given(load):
    text = b"a,t\n" + b"1,2000000000000\n" * (1 << 20) + "é,3\n".encode("cp1252")
    assert load(text, reading=Reading(encoding="cp1252", category=("a",))).columns[0].values == (
        "1", "é",
    )  # fmt: skip


def test_a_parquet_file_that_is_compressed(tmp_path):
    out = io.BytesIO()
    FRAME.write_parquet(out)
    path = written(tmp_path / "a.parquet.xz", lzma.compress(out.getvalue()))
    np.testing.assert_array_equal(data.load(path).x, data.load(FRAME).x)


def test_names_need_a_header(load):
    for reading in (Reading(id=("0",)), Reading(group=("0",)), Reading(time="0")):
        with pytest.raises(DataError, match="no column is called '0'; it has no header"):
            load("1,2.5\n3,4.5\n", reading=reading)
    assert load("1,2.5\n3,4.5\n", reading=Reading(category=("0",))).columns[0].values == ("1", "3")


def test_an_encoding_that_cannot_be_is_told(load):
    with pytest.raises(DataError, match="not text in (CHARMAP|CP1252): byte 0x81; --encoding NAME"):
        load(b"a,y\n\x81,1.5\n\x81,2.5\n", reading=Reading(encoding="cp1252"))


FRAME = pl.DataFrame(
    {"name": ["u", "v", "u"] * 3, "size": [1.5, 2.5, -3.0] * 3, "y": ["p", "q", "p"] * 3}
)


def packed(name):
    """The table in a format of this name."""
    csv, out = FRAME.write_csv().encode(), io.BytesIO()
    if name == "zip":
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("a.csv", csv)
    elif name == "xlsx":
        pytest.importorskip("fastexcel")
        book = pytest.importorskip("xlsxwriter").Workbook(out)
        sheet = book.add_worksheet("sizes")
        book.add_worksheet("empty")
        sheet.write_row(0, 0, ["Sizes, 2024"])
        for i, row in enumerate([FRAME.columns, *FRAME.rows()]):
            sheet.write_row(i + 2, 0, row)
        book.close()
    else:
        return {
            "gzip": lambda: gzip.compress(csv),
            "xz": lambda: lzma.compress(csv),
            "json lines": lambda: FRAME.write_ndjson().encode(),
            "json": lambda: FRAME.write_json().encode(),
            "json columns": lambda: json.dumps(FRAME.to_dict(as_series=False)).encode(),
        }[name]()
    return out.getvalue()


FORMATS = ["gzip", "xz", "zip", "xlsx", "json lines", "json", "json columns"]


@pytest.mark.parametrize("name", FORMATS)
def test_one_table_in_every_format(load, name):
    read, expected = load(packed(name)), data.load(FRAME)
    assert (read.features, read.columns) == (expected.features, expected.columns)
    np.testing.assert_array_equal(read.x, expected.x)
    np.testing.assert_array_equal(read.y, expected.y)


def test_a_table_of_a_database(tmp_path):
    path = tmp_path / "a.db"
    database(path, sqlite3.connect(path))
    with pytest.raises(DataError, match="has the tables sizes, others; --table NAME chooses one"):
        data.load(path)
    with pytest.raises(DataError, match="has the tables sizes, others; not size"):
        data.load(path, reading=Reading(table="size"))
    read = data.load(path, reading=Reading(table="sizes"))
    np.testing.assert_array_equal(read.x, data.load(FRAME).x)


def database(path, connection):
    """A database with FRAME as a table, and another table."""
    for table in ("sizes", "others"):
        connection.execute(f"create table {table} (name text, size real, y text)")
        connection.executemany(f"insert into {table} values (?, ?, ?)", FRAME.rows())
    connection.commit()
    connection.close()
    return path


@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
def test_what_a_statement_selects_of_a_database(tmp_path, kind):
    connect = (sqlite3 if kind == "sqlite" else pytest.importorskip("duckdb")).connect
    path = database(tmp_path / "a.db", connect(tmp_path / "a.db"))
    with pytest.raises(DataError, match="--table NAME chooses one"):
        data.load(path)
    whole = data.load(path, reading=Reading(table="sizes"))
    np.testing.assert_array_equal(whole.x, data.load(FRAME).x)
    statement = "select a.size * 2 as twice, a.y from sizes a where a.name = 'u'"
    read = data.load(path, reading=Reading(table=statement))
    assert read.features == ("twice",)
    np.testing.assert_array_equal(read.x[:2, 0], [3, -6])
    for wrong in ("select nothing from sizes", "select * from sizes where 1 = 0", "select"):
        with pytest.raises(DataError, match=r"a\.db: ") as caught:
            data.load(path, reading=Reading(table=wrong))
        assert "\n" not in str(caught.value)
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"a\.db: "):
        data.load(path, reading=Reading(table="with a as (select 1) delete from sizes"))
    assert path.read_bytes() == before


def test_frames_of_every_kind():
    columns = FRAME.to_dict(as_series=False)
    record = np.rec.fromarrays([np.array(c) for c in columns.values()], names=list(columns))
    for source in (FRAME.lazy(), columns, record):
        read = data.load(source)
        assert read.features == ("name", "size")
        np.testing.assert_array_equal(read.x, data.load(FRAME).x)


def test_a_frame_of_pandas_without_arrow(monkeypatch):
    """Whose stream needs pyarrow."""
    pandas = pytest.importorskip("pandas")

    def refuse(self, requested_schema=None):
        raise ImportError("pyarrow")

    frame = pandas.DataFrame(
        FRAME.to_dict(as_series=False) | {"when": pandas.Timestamp("2020-01-01")}
    )
    frame.loc[0, "name"], frame.loc[1, "when"] = None, None
    monkeypatch.setattr(pandas.DataFrame, "__arrow_c_stream__", refuse, raising=False)
    read = data.load(frame, target="y")
    assert [c.kind for c in read.columns] == ["category", "number", "date"]
    assert np.isnan(read.x).sum() == 2


# Splits that don't leak, ids, and what is pointed out.


def test_groups_stay_together_and_times_in_order(load):
    n = 60
    rows = [f"p{i // 4},{2000 + i // 2}-01-01,{i * 7 % 13},{'uv'[i % 2]}\n" for i in range(n)]
    text = "patient,when,size,y\n" + "".join(rows)
    grouped = load(text, reading=Reading(group=("patient",)))
    assert grouped.features == ("when", "size")
    train, test = data.split(grouped, 0.2, 0)
    assert not set(train.groups) & set(test.groups)
    assert len(train.x) + len(test.x) == n
    again, validation = data.split(train, 0.2, 0)
    assert not set(again.groups) & set(validation.groups)
    timed = load(text, reading=Reading(time="when"))
    train, test = data.split(timed, 0.21, 0)
    assert train.times.max() < test.times.min()
    assert len(test.x) == 14
    with pytest.raises(DataError, match="column 4 'y': expected dates or numbers to split by"):
        load(text, target="size", reading=Reading(time="y"))
    with pytest.raises(DataError, match="no column is called 'patent'; did you mean 'patient'"):
        load(text, reading=Reading(group=("patent",)))
    with pytest.raises(DataError, match="all examples are of one time or group"):
        data.split(grouped._replace(groups=np.zeros(n)), 0.2, 0)


def test_ids_are_read_beside_the_inputs(load, tmp_path):
    rows = "".join(f"00{i},{i * 7 % 13},{i}.5\n" for i in range(30))
    read = load("name,size,y\n" + rows, reading=Reading(id=("name",)))
    assert read.features == ("size",)
    later = written(tmp_path / "b.csv", "size,name\n5,007\n6,008\n")
    reading = Reading(id=("name",))
    parts = list(data.parts(later, Encoding.of(read), reading=reading, size=1))
    assert [name for part in parts for name in part.ids["name"]] == ["007", "008"]


def test_classes_of_one_example_are_left_out(load):
    labels = ["u", "v"] * 10 + ["w"]
    read = load("a,y\n" + "".join(f"{i},{label}\n" for i, label in enumerate(labels)))
    kept = data.without_singles(read)
    assert (kept.classes, len(kept.x), kept.y.max()) == (("u", "v"), 20, 1)
    train, test = data.split(read, 0.2, 0)  # a class that can't be held out is trained on
    assert "w" in {train.classes[i] for i in train.y} - {test.classes[i] for i in test.y}


def test_what_gives_the_target_away_and_sentinels_are_pointed_out(load):
    rng = np.random.default_rng(0)
    rows = [(int(rng.integers(1000)), "xy"[i % 2], rng.normal()) for i in range(50)]
    leak = lambda a, kind: f"{a},{'left' if kind == 'x' else 'stays'},{kind}\n"
    read = load("a,reason,y\n" + "".join(leak(a, kind) for a, kind, _ in rows))
    assert read.notes == (
        "column 2 'reason' alone gives the target away; --drop it if new examples lack it",
    )
    line = load("a,twice,y\n" + "".join(f"{a},{2 * b},{b}\n" for a, _, b in rows))
    assert line.notes[0].startswith("column 2 'twice' alone gives the target away")
    cut = load("a,b,y\n" + "".join(f"{a},{-9 + (k == 'x') * 20 + b},{k}\n" for a, k, b in rows))
    assert cut.notes[0].startswith("column 2 'b' alone gives the target away")
    odd = load(
        "a,y\n" + "".join(f"{-999 if i % 9 == 2 else i},{b}\n" for i, (*_, b) in enumerate(rows))
    )
    assert odd.notes == ("column 1 'a': 6 times -999, far from the rest: no value, perhaps",)
    assert load("a,y\n" + "".join(f"{i},{b}\n" for i, (*_, b) in enumerate(rows))).notes == ()
