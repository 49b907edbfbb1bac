"""No row is lost and no cell misread without a word: stray quotes, headers, dates, booleans, files
of other kinds."""

import io
import random
import zipfile

import numpy as np
import polars as pl
import pytest
from sources import inputs, parts, written

from fnn import data
from fnn.data import DataError, Encoding

# Stray quotes.

ROWS = [f"{i}.5,{i % 3},{'xyz'[i % 3]}" for i in range(10)]


def with_cells(cells, rows=(2, 6)):
    """Ten rows whose last cell is, in these rows, one of `cells`."""
    lines = list(ROWS)
    for row, cell in zip(rows, cells * len(rows), strict=False):
        lines[row] = lines[row][:-1] + cell
    return "a,b,k\n" + "\n".join(lines) + "\n"


READ_RIGHT = {
    "doubled": ('"6"" r"', '6" r'),
    "a backslash": (r'"6\" r"', '6" r'),
    "within an unquoted cell": ('6" r', '6" r'),
    "at the end of an unquoted cell": ('6"', '6"'),
    "two in an unquoted cell": ('6" by 4"', '6" by 4"'),
    "quoted after a space": (' "x, y"', "x, y"),
}


@pytest.mark.parametrize("name", READ_RIGHT)
@pytest.mark.parametrize("every", [False, True])
def test_quotes_that_are_read_as_meant(load, name, every):
    cell, meant = READ_RIGHT[name]
    read = load(with_cells([cell], range(10) if every else (2, 6)), target="a")
    assert len(read.x) == 10
    assert meant in read.columns[1].values


@pytest.mark.parametrize("cell", ['"6" r"', '"6"" r', '"6', '"x" y', '"x"y"'])
@pytest.mark.parametrize("rows", [(2, 6), (4,), range(10), (8, 9)])
def test_quotes_that_leave_the_rows_in_doubt_are_refused_with_the_line(load, cell, rows):
    with pytest.raises(DataError, match=rf"a\.csv: line {rows[0] + 2}: a quote opens a cell"):
        load(with_cells([cell], rows), target="a")


def test_two_stray_quotes_with_rows_between_them_are_no_cell(load):
    text = "a,b,k\n" + "\n".join(ROWS).replace("3.5,0,x", '3.5,0,"x').replace("6.5,0,x", '6.5,0,x"')
    with pytest.raises(DataError, match="line 5: a quote opens a cell that ends on line 8"):
        load(text, target="a")
    note = '3.5,0,"two lines,\nwith commas, too"'
    read = load("a,b,k\n" + "\n".join(ROWS).replace("3.5,0,x", note), target="a")
    assert len(read.x) == 10


def test_a_stray_quote_in_the_header_takes_no_row(load):
    for head in ('a,"b,k', '"a,b,k', 'a,b,"k'):
        with pytest.raises(DataError, match="line 1: a quote opens a cell"):
            load(head + "\n" + "\n".join(ROWS) + '\n1.5,2,x"\n')
    read = load('a,6" b,k\n' + "\n".join(ROWS))
    assert (len(read.x), read.features) == (10, ("a", '6" b'))


def test_what_polars_reads_is_counted(load, monkeypatch):
    whole = pl.read_csv
    monkeypatch.setattr(pl, "read_csv", lambda *args, **kwargs: whole(*args, **kwargs)[1:])
    with pytest.raises(DataError, match=r"a\.csv: 10 rows, of which Polars reads 9"):
        load("a,b,k\n" + "\n".join(ROWS))


FAULTS = [
    "",
    '"',
    '""',
    '6" r',
    '"6" r',
    '"6',
    '6"',
    '"6" r"',
    r'"6\" r"',
    r'"6\"',
    '"a\nb"',
    ' "q"',
]
FAULTS += ['"a,b"', 'a""b', '"""', "'x'", '"x" ', '"a""', '"a\nb']


@pytest.mark.long
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(i, marks=pytest.mark.long) for i in range(1, 5))]
)
def test_no_table_with_faulty_quotes_loses_a_row_without_a_word(tmp_path, seed):
    """100 tables per seed: the rows that were written, or a line that names the fault."""
    rng = random.Random(seed)
    outcomes, messages = {"read": 0, "refused": 0}, set()
    for _ in range(100):
        n, mark = rng.randrange(4, 30), rng.choice(",;\t")
        share = rng.choice([0.02, 0.1, 0.5])
        rows = []
        for i in range(n):
            cells = [f"{i}.25", rng.choice(["x", "y", "z"]), f"{i % 4}.5"]
            if rng.random() < 0.4:
                cells = [f'"{cell}"' for cell in cells]
            if rng.random() < share:
                fault = rng.choice(FAULTS).replace(",", mark)
                cells[rng.randrange(3)] = fault
            rows.append(mark.join(cells))
        end = rng.choice(["\n", "\r\n"])
        text = end.join([mark.join(["i", "word", "y"]), *rows]) + rng.choice([end, ""])
        path = written(tmp_path / "a.csv", text)
        try:
            read = data.load(path, target="i", task="regression")
        except DataError as error:
            outcomes["refused"] += 1
            messages.add("a.csv: line " in str(error))
            continue
        outcomes["read"] += 1
        assert len(read.x) + len(read.skipped) == n, text
        np.testing.assert_array_equal(np.floor(read.y[:, 0]), np.delete(np.arange(n), read.skipped))
        encoding = Encoding.of(read)
        for size in (1, 60, 1 << 20):
            try:
                pieces = list(parts(path, encoding, size=size))
            except DataError as error:
                assert "a.csv: line " in str(error), error  # noqa: PT017
                continue
            assert sum(map(len, pieces)) == n
    assert min(outcomes.values()) > 5, outcomes
    assert messages == {True}


# What training read, every later reading takes from the run.


def test_a_later_file_has_no_header_where_training_had_none(load, tmp_path):
    rows = "".join(f"{'pe'[i % 2]},{'xyz'[i % 3]},{i}.5\n" for i in range(12))
    encoding = Encoding.of(load(rows))
    new = written(tmp_path / "b.csv", "p,x\ne,y\np,z\n")
    assert inputs(new, encoding).shape == (3, 2)
    again = data.load(written(tmp_path / "c.csv", "p,x,1.5\ne,y,2.5\np,z,3.5\n"), like=encoding)
    assert again.x.shape == (3, 2)


def test_a_later_file_with_the_names_of_training_has_a_header(load, tmp_path):
    encoding = Encoding.of(
        load("p,q,y\n" + "".join(f"{'pe'[i % 2]},{i},{i}.5\n" for i in range(9)))
    )
    new = written(tmp_path / "b.csv", "p,q\np,1\np,2\ne,1\n")
    assert inputs(new, encoding).shape == (3, 2)
    text = "cap,stalk\np,x\ne,x\np,y\n"
    cap = Encoding.of(
        load("cap,stalk,y\n" + "".join(f"pe,{'xy'[i % 2]},{i}.5\n" for i in range(9)))
    )
    new = written(tmp_path / "b.csv", "stalk,cap\nx,stalk\nx,stalk\ny,stalk\n")
    assert len(text)
    assert inputs(new, cap).shape == (3, 1)


def test_a_separator_after_each_row_moves_no_name(load):
    read = load("a,b,k\n1.5,2,x,\n3.5,4,y,\n5.5,6,x,\n")
    assert (read.features, read.targets, read.classes) == (("a", "b"), ("k",), ("x", "y"))
    np.testing.assert_array_equal(read.x, [[1.5, 2], [3.5, 4], [5.5, 6]])
    quoted = load('"a","b","k"\n"p","02","x",""\n"q","4","y",""\n"p","06","x",""\n')
    assert (quoted.features, quoted.classes) == (("a", "b"), ("x", "y"))
    named = load("a,b,k\nu,1.5,2,x\nv,3.5,4,y\n")
    assert (named.features, named.targets) == (("Unnamed: 0", "a", "b"), ("k",))
    with pytest.raises(DataError, match="line 302: expected 3 columns, got 4"):
        load("a,b,k\n" + "1.5,2,x,\n" * 300 + "1.5,2,x,y\n")


# Dates.


@pytest.mark.parametrize(
    ("cells", "first", "note"),
    [
        (["12/31/99", "01/01/01", "02/29/00"], "1999-12-31", "two-digit years from 1970 to 2069"),
        (["31.12.99", "01.01.01"], "1999-12-31", "two-digit years from 1970 to 2069"),
        (["10142018", "01052019", "12312018", "2282019"], "2018-10-14", "dates as monthdayyear"),
        (["20181014", "20190105", "20181231", "20190228"], "2018-10-14", "dates as yearmonthday"),
        (["2024-05", "2024-06", "2023-12"], "2024-05-01", ""),
        (["05/13/2024", "2024-05-14", "05/15/2024", "05/16/2024"], "2024-05-13", "several forms"),
    ],
)
def test_dates_as_people_write_them(load, cells, first, note):
    rows = [f"{cells[i % len(cells)]},{i}.5" for i in range(24)]
    read = load("when,y\n" + "\n".join(rows))
    assert read.columns[0].kind == "date"
    assert read.x[0, 0] == np.datetime64(first).astype(int)
    assert any(note in said for said in (*read.notes, ""))


def test_twenty_is_no_year_and_iso_is_read_beside_another_form(load, tmp_path):
    rows = [f"{i % 28 + 1:02}/01/2020,{i}.5" for i in range(30)]
    encoding = Encoding.of(load("when,y\n" + "\n".join(rows)))
    new = written(tmp_path / "b.csv", "when\n13/01/20\n")
    with pytest.raises(DataError, match="'13/01/20' is not a date written as %d/%m/%Y, as in trai"):
        inputs(new, encoding)
    new = written(tmp_path / "b.csv", "when\n13/01/2020\n2020-01-14\n")
    assert np.diff(inputs(new, encoding)[:, 0]) == 1


def test_one_bad_date_is_an_error_and_never_makes_names_of_the_column(load):
    days = [f"2020-{i % 12 + 1:02}-{i % 28 + 1:02},{i}.5" for i in range(200)]
    days[77] = "2020-13-45,77.5"
    with pytest.raises(DataError, match="line 79, column 1 'when': '2020-13-45' is not a date"):
        load("when,y\n" + "\n".join(days))


def test_whole_numbers_that_are_no_dates_stay_numbers(load):
    read = load("number,y\n" + "".join(f"{10000007 + 7919 * i},{i}.5\n" for i in range(40)))
    assert read.columns[0].kind == "number"
    frame = pl.DataFrame({"when": [20181014, 20190105, 20181231, 20190228], "y": [0.5, 1, 2, 3]})
    assert data.load(frame).columns[0].kind == "date"


def test_codes_that_begin_with_zero_are_categories(load):
    codes = ["0870", "1200", "0005", "1200"]
    read = load("code,y\n" + "".join(f"{codes[i % 4]},{i}.5\n" for i in range(300)))
    assert read.columns[0].values == ("0005", "0870", "1200")
    late = "code,y\n" + "".join(f"{1000 + i % 5},{i}.5\n" for i in range(300)) + "0870,1.5\n"
    assert "0870" in load(late).columns[0].values


# Booleans.

TRUE = [["True", "False"], ["true", "false"], ["TRUE", "FALSE"], ["1", "0"]]


@pytest.mark.parametrize("learned", TRUE)
@pytest.mark.parametrize("later", [*TRUE, None])
def test_booleans_are_the_same_however_they_are_written(tmp_path, learned, later):
    bits = [1, 0, 1, 1, 0, 0, 1, 0]
    words = lambda pair: [pair[1 - bit] for bit in bits]
    rows = "".join(f"{w},{i}.5,{w}\n" for i, w in enumerate(words(learned)))
    train = data.load(written(tmp_path / "a.csv", "flag,a,y\n" + rows))
    encoding = Encoding.of(train)
    if later:
        rows = "".join(f"{w},{i}.5,{w}\n" for i, w in enumerate(words(later)))
        path = written(tmp_path / "b.csv", "flag,a,y\n" + rows)
    else:
        path = tmp_path / "b.parquet"
        flags = [bool(bit) for bit in bits]
        frame = pl.DataFrame({"flag": flags, "a": [i + 0.5 for i in range(8)], "y": flags})
        frame.write_parquet(path)
    x = inputs(path, encoding)
    np.testing.assert_array_equal(x, encoding.aligned(train).x)
    assert encoding.unseen(x).lines() == []
    again = data.load(path, task="classification", like=encoding)
    relabelled = data.relabelled(encoding.aligned(again), train.classes)
    np.testing.assert_array_equal(relabelled.x, encoding.aligned(train).x)
    np.testing.assert_array_equal(relabelled.y, train.y)


# Files of other kinds.


def zipped(*names):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, "content")
    return content.getvalue()


OTHERS = {
    "zip": (zipped("a.csv", "b.csv"), "a zip archive of several files; unpack it"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    "html": (b"\n<!DOCTYPE html>\n<html><body>404, not found</body></html>", "a web page or XML"),
    "json rows": (b"[[1, 2], [3, 4]]", "JSON without names; give an object per row"),
    "json": (b'{"a": 1, "y"', "can't be read: Unterminated|can't be read: Expecting"),
    "sqlite": (b"SQLite format 3\0" + b"\0" * 99, "can't be read: file is not a database"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3", "a PDF document"),
    "bzip2": (b"BZh91AY&SY" + b"\0" * 40, "can't be read: Invalid data stream"),
    "xz": (b"\xfd7zXZ\0" + b"\0" * 40, "can't be read: Corrupt input data"),
    "zstd": (b"\x28\xb5\x2f\xfd" + b"\0" * 40, "compressed by zstd; unpack it"),
    "png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "an image"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_kinds_are_told_what_they_are(load, name):
    content, message = OTHERS[name]
    with pytest.raises(DataError, match=rf"a\.csv: .*{message}") as caught:
        load(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mark", [";", ",", "\t"])
def test_excels_line_of_the_separator_is_no_row(load, mark):
    read = load(f"sep={mark}\r\na{mark}k\r\n1.5{mark}x\r\n2.5{mark}y\r\n")
    assert (read.features, read.classes, len(read.x)) == (("a",), ("x", "y"), 2)
    with pytest.raises(DataError, match="line 4, column 1 'a'"):
        load(f"sep={mark}\na{mark}k\n1.5{mark}x\ninf{mark}y\n")


def test_rows_that_begin_with_a_number_sign_are_rows(load):
    rows = "#1,2.5,0.5\n#2,3.5,1.5\nx,4.5,2.5\ny,1.5,3.5\n"
    assert len(load(rows).x) == 4
