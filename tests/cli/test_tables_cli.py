"""The commands on a table as people have it: options, ids, what a run keeps of the reading."""

import random

import polars as pl
import pytest
from click.testing import CliRunner

from fnn import cli, runs

pytestmark = pytest.mark.usefixtures("compiled_once", "undrawn")


def run(*args):
    return CliRunner().invoke(cli.fnn, [str(a) for a in args])


@pytest.fixture
def visits(tmp_path):
    """A table in Windows-1252 with a title, units, ids, patients, prices and a row of totals."""
    rng = random.Random(0)
    lines = ["Visites 2024", "", "name;patient;ville;prix;when;kind", ";;;;;"]
    for i in range(60):
        price = f"{rng.randrange(10, 90)},50 €" if i % 9 else "n.d."
        day = f"{i % 28 + 1:02}.{i % 12 + 1:02}.2024"
        city, kind = rng.choice(["Orléans", "Nîmes"]), rng.choice(["oui", "Oui", "non"])
        lines.append(f"{i:03};p{i // 3};{city};{price};{day};{kind}")
    lines[3:4] = []
    path = tmp_path / "visits.csv"
    path.write_bytes("\n".join([*lines, "Total;;;;;"]).encode("cp1252"))
    return path


def test_a_messy_table_from_describe_to_predictions(visits, tmp_path):
    options = ["--id", "name", "--group", "patient", "--hidden", "4", "--epochs", "2"]
    options += ["--members", "1"]
    shown = run("describe", visits, "--id", "name", "--group", "patient")
    assert shown.exit_code == 0, shown.output
    for line in (
        "text in cp1252, as it seems; --encoding NAME decides",
        "separated by semicolons",
        "lines above the header left out: 1",
        "the last row, 'Total', left out",
        "column 4 'prix': numbers, decimal commas, in €; column 4 'prix': 'n.d.' taken as no value",
        "'Oui' taken as 'oui'",
    ):
        assert line in shown.stdout
    folder = tmp_path / "run"
    trained = run("train", visits, *options, "--out", folder)
    assert trained.exit_code == 0, trained.output
    held = runs.load(folder)
    assert (held.settings.encoding, held.features) == ("cp1252", ("ville", "prix", "when"))
    measured = run("evaluate", folder, visits)
    assert "held-out" in measured.stdout, measured.output
    predicted = run("predict", folder, visits)
    assert predicted.exit_code == 0, predicted.output
    rows = pl.read_csv(predicted.stdout.encode(), infer_schema_length=0)
    assert rows.columns[:2] == ["name", "class"]
    assert rows["name"].to_list() == [f"{i:03}" for i in range(60)]
    assert "the last row, 'Total', left out" in predicted.stderr
    later = tmp_path / "later.csv"
    later.write_text("ville,prix,when,name\nOrléans,5,2024-05-01,a\nNîmes,6,2024-05-02,b\n")
    out = tmp_path / "out.parquet"
    assert run("predict", folder, later, "--out", out).stderr == ""
    assert pl.read_parquet(out)["name"].to_list() == ["a", "b"]
    again = run("train", visits, *options, "--epochs", "3", "--resume", "--out", folder)
    assert again.exit_code == 0, again.output


@pytest.mark.long
def test_options_that_decide(visits, tmp_path):
    wrong = run("describe", visits, "--encoding", "latin-99")
    assert "'latin-99' is no encoding that Python knows, as cp1252 is" in wrong.stderr
    wrong = run("describe", visits, "--category", "vile")
    assert "no column is called 'vile'; did you mean 'ville'?" in wrong.stderr
    kinds = run("describe", visits, "--category", "prix", "--date", "when", "--skip", "2")
    assert kinds.exit_code == 0, kinds.output
    rows = dict(row.split()[:2] for row in kinds.stdout.splitlines() if row[:4] in ("prix", "when"))
    assert rows == {"prix": "category", "when": "date"}
    args = ("--time", "when", "--epochs", 1, "--members", 1)
    late = run("train", visits, *args, "--out", tmp_path / "late")
    assert late.exit_code == 0, late.output


@pytest.mark.long
def test_a_class_of_one_example_is_counted_and_left_out(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "a,y\n" + "".join(f"{i * 7 % 11}.5,{'uv'[i % 2]}\n" for i in range(30)) + "1,w\n"
    )
    trained = run("train", path, "--epochs", 1, "--patience", 1, "--out", tmp_path / "run")
    assert trained.exit_code == 0, trained.output
    assert "left out, classes of one example: 'w'" in trained.stdout
    assert runs.load(tmp_path / "run").classes == ("u", "v")
    measured = run("evaluate", tmp_path / "run", path)
    assert "the held-out 6 examples" in measured.stdout, measured.output
