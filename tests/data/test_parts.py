"""Tables in parts, and text that is read as in training, whatever the file at hand leaves open."""

import gzip
import io
import resource
from functools import partial

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from sources import inputs, parts

from fnn import cli, data, runs
from fnn.data import DataError, Encoding, _readers as readers
from fnn.runs import files, training

WAYS = {
    "a code of digits": ("code", ["007", "A1", "1e3"], ["007", "1e3"], [0.0, 1.0]),
    "the day first": ("when", ["13/02/2020", "05/01/2020"], ["05/01/2020"], [18266.0]),
    "decimal commas": ("v", ["1,5", "2,25"], ["1,234"], [1.234]),
    "thousands": ("v", ["1,500.5", "2,250.0", "7"], ["1,234", "5"], [1234.0, 5.0]),
    "a time": ("at", ["1:30 PM", "2:00 AM"], ["1:30 AM"], [0.0625]),
}


@pytest.mark.parametrize("way", WAYS)
def test_text_is_read_as_in_training(way, tmp_path):
    """A file for prediction may leave open what it means, where the training's did not."""
    name, learned, cells, expected = WAYS[way]
    path = tmp_path / "a.csv"
    rows = [f'"{learned[i % len(learned)]}";{i % 7}.5;{i / 3}' for i in range(30)]
    path.write_text("\n".join([f"{name};w;y", *rows]))
    encoding = Encoding.of(data.load(path, task="regression"))
    path.write_text("\n".join([f"{name},w", *(f'"{cell}",1.5' for cell in cells)]))
    np.testing.assert_allclose(inputs(path, encoding)[:, 0], expected)
    path.write_text("\n".join([f"{name},w,y", *(f'"{cell}",1.5,2.5' for cell in cells)]))
    again = encoding.aligned(data.load(path, task="regression", like=encoding))
    np.testing.assert_allclose(again.x[:, 0], expected)
    path.write_text(f"{name},w\n{cells[0]!r},1.5\n2020.5,1.5\nsoon,1.5\n".replace("'", '"'))
    if way != "a code of digits":
        with pytest.raises(DataError, match="'(2020.5|soon)' is not a .*, as in training"):
            inputs(path, encoding)


def test_a_number_written_in_another_way_is_said_with_the_way(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("v;y\n1,5;1\n2,25;2\n3,5;1\n")
    encoding = Encoding.of(data.load(path))
    path.write_text("v;y\n1.5;1\n")
    with pytest.raises(DataError, match="'1.5' is not a number written with decimal commas, as in"):
        inputs(path, encoding)


def test_dates_that_can_be_read_in_two_ways_are_noted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("when,y\n05/01/2020,1.5\n06/01/2020,2.5\n")
    assert data.load(path, task="regression").notes == ("dates as month/day/year",)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "arrow", "parquet.gz"])
def test_parts_are_the_whole(kind, tmp_path):
    """Quotes, line ends in cells, blanks, categories and dates, cut anywhere."""
    n = 100
    frame = pl.DataFrame(
        {
            "a": [None if i % 9 == 0 else i / 7 for i in range(n)],
            "b": [f'{"u" * (i % 5)}"\n,é"{i % 3}' for i in range(n)],
            "c": [f"2020-01-{i % 28 + 1:02}" for i in range(n)],
            "y": [i / 3 for i in range(n)],
        }
    )
    path = tmp_path / f"a.{kind}"
    content = io.BytesIO()
    if "csv" in kind:
        frame.write_csv(content)
    elif kind == "arrow":
        frame.write_ipc(content)
    else:
        frame.write_parquet(content, row_group_size=7)
    path.write_bytes(gzip.compress(content.getvalue()) if "gz" in kind else content.getvalue())
    encoding = Encoding.of(data.load(path))
    whole = inputs(path, encoding)
    assert whole.shape == (n, 3)
    for size in (1, 31, 97, 700, 1 << 20):
        pieces = list(parts(path, encoding, size=size))
        assert len(pieces) > 1 or size == 1 << 20
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
        assert str(encoding.unseen(whole).lines()) == str(counted(encoding, pieces).lines())


def counted(encoding, pieces):
    seen = None
    for part in pieces:
        seen = encoding.unseen(part, seen)
    return seen


def test_a_fault_in_a_later_part_has_its_line(tmp_path):
    path = tmp_path / "a.csv"
    rows = [f"{i}.5,2\n" for i in range(50)]
    path.write_text("a,y\n" + "".join(rows))
    encoding = Encoding.of(data.load(path, task="regression"))
    path.write_text("a\n" + "".join(f"{i}.5\n" for i in range(50)) + '"\n",x\n')
    with pytest.raises(DataError, match="line 53"):
        list(parts(path, encoding, size=20))
    path.write_text("a\n" + "".join(f"{i}.5\n" for i in range(50)) + "x\n")
    with pytest.raises(DataError, match="line 52, column 1 'a': 'x' is not a number"):
        list(parts(path, encoding, size=20))


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    frame = pl.DataFrame({"a": [i / 7 for i in range(50)], "y": [i / 3 for i in range(50)]})
    frame.write_parquet(path)
    encoding = Encoding.of(data.load(path))
    pieces = parts(path, encoding, size=160)
    next(pieces)
    (frame * 2).write_parquet(path)
    with pytest.raises(DataError, match="another process has changed the file"):
        next(pieces)


def test_a_part_takes_a_parts_memory(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("a,y\n0.5,1.5\n1.5,2.5\n")
    encoding = Encoding.of(data.load(path))
    path.write_text("a\n" + "0.5\n" * 50_000)
    monkeypatch.setattr(readers, "LIMIT", 100_000)
    with pytest.raises(DataError, match="the table is too large"):
        inputs(path, encoding)
    sizes = [len(part) for part in parts(path, encoding, size=4000)]
    assert sum(sizes) == 50_000
    assert max(sizes) <= 2000


def test_predictions_in_parts(tmp_path, monkeypatch):
    """To a file, to standard output, as Parquet; with a fault in the middle, FILE is as it was."""
    rows = [f"{'uv'[i % 2]},{i % 7}.5,{i}.5\n" for i in range(40)]
    (tmp_path / "a.csv").write_text("pet,a,y\n" + "".join(rows))
    settings = runs.Settings((4,), "tanh", "sgd", 0.1, 32, 1, seed=0, members=1)
    files.save(tmp_path, training.prepare(tmp_path / "a.csv", settings)[0])

    def predict(*out):
        args = ["predict", tmp_path, tmp_path / "b.csv", *out]
        return CliRunner().invoke(cli.fnn, [str(a) for a in args])

    (tmp_path / "b.csv").write_text("pet,a\n" + "u,2.5\nw,3.5\n,1.5\n" * 30)
    whole = predict()
    in_parts = data.parts
    monkeypatch.setattr(data, "parts", partial(in_parts, size=30))
    parts = predict("--out", tmp_path / "p.csv")
    assert parts.stderr == whole.stderr
    assert "column 'pet': 30 of 90 values were never seen" in parts.stderr
    assert (tmp_path / "p.csv").read_text() == predict().stdout == whole.stdout
    assert len(whole.stdout.splitlines()) == 91
    assert predict("--out", tmp_path / "p.parquet").exit_code == 0
    assert pl.read_parquet(tmp_path / "p.parquet").write_csv() == whole.stdout
    with (tmp_path / "b.csv").open("a") as file:
        file.write("u,soon\n")
    for name in ("p.csv", "p.parquet"):
        before = (tmp_path / name).read_bytes()
        failed = predict("--out", tmp_path / name)
        assert (failed.exit_code, failed.stderr.count("\n")) == (1, 1)
        assert "b.csv: line 92, column 2 'a': 'soon' is not a number" in failed.stderr
        assert (tmp_path / name).read_bytes() == before
    assert not list(tmp_path.glob("*fnn-tmp"))
    (tmp_path / "b.csv").write_text("pet,a\n" + "".join(f"u,{i / 1500}\n" for i in range(9000)))
    monkeypatch.setattr(data, "parts", partial(in_parts, size=10_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name in ("p.csv", "p.parquet"):
        before = (tmp_path / name).read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
        try:
            failed = predict("--out", tmp_path / name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (failed.exit_code, failed.stderr.count("\n")) == (1, 1)
        assert "File too large" in failed.stderr
        assert (tmp_path / name).read_bytes() == before
    assert not list(tmp_path.glob("*fnn-tmp"))


def test_a_column_without_a_name_may_be_blank_in_a_part(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,,y\n" + "".join(f"{i}.5,{i % 3 / 2},{i / 3}\n" for i in range(20)))
    encoding = Encoding.of(data.load(path))
    path.write_text("a,\n" + "1.5,\n" * 20 + "1.5,0.5\n" * 20)
    whole = inputs(path, encoding)
    pieces = list(parts(path, encoding, size=20))
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_a_part_may_begin_with_a_blank_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b,y\n" + "".join(f"{i}.5,{i % 7}.25,{i / 3}\n" for i in range(20)))
    encoding = Encoding.of(data.load(path))
    path.write_text("a,b\n" + "1.5,2.5\n\n  \n" * 20 + "x,1.5\n")
    with pytest.raises(DataError, match="line 62, column 1 'a': 'x' is not a number"):
        list(parts(path, encoding, size=1))
    path.write_text("a,b\n" + "1.5,2.5\n\n  \n" * 20)
    assert [len(part) for part in parts(path, encoding, size=1)] == [1] * 20


@pytest.mark.parametrize("size", [1, 8, 43, 50, 1 << 20])
@pytest.mark.parametrize("end", ["", "\n", "\n\n \n"])
def test_a_total_in_the_last_of_several_parts_is_left_out(size, end, tmp_path):
    """Also where a part ends with the file (43), and where it is all that its part has (1, 8)."""
    path = tmp_path / "a.csv"
    path.write_text("pet,a,y\n" + "".join(f"{'uv'[i % 2]},{i}.5,{i / 3}\n" for i in range(20)))
    encoding = Encoding.of(data.load(path))
    path.write_text("pet,a\n" + "u,1.5\nv,2.5\n" * 10 + "Total,40" + end)
    read = list(data.parts(path, encoding, size=size))
    assert sum(len(part.x) for part in read) == 20
    assert [note for part in read for note in part.left_out] == ["the last row, 'Total', left out"]


def test_a_word_of_earlier_rows_is_no_total(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("pet,a,y\n" + "".join(f"{'uv'[i % 2]},{i}.5,{i / 3}\n" for i in range(20)))
    encoding = Encoding.of(data.load(path))
    path.write_text("pet,a\n" + "Total,1.5\nv,2.5\n" * 10 + '"",2.5\n' + "Total,40\n")
    for size in (1, 30, 1 << 20):
        assert sum(map(len, parts(path, encoding, size=size))) == 22
    path.write_text("pet,a\nTotal,1.5\n")
    assert inputs(path, encoding).shape == (1, 2)


def test_a_part_of_texts_has_fewer_rows(tmp_path):
    """What a text becomes takes more memory than the text."""
    path = tmp_path / "a.csv"
    rows = [f"good soup {i},{i % 7}.5,{i / 3}" for i in range(400)]
    path.write_text("\n".join(["said,w,y", *rows]))
    encoding = Encoding.of(data.load(path, task="regression"))
    found = [part.x for part in data.parts(path, encoding, size=2**17)]
    assert max(x.nbytes for x in found) < 2**19 < sum(x.nbytes for x in found)
    whole = encoding.aligned(data.load(path, task="regression", like=encoding)).x
    np.testing.assert_array_equal(np.concatenate(found), whole)
