"""The commands on a table as people have it: options, ids, what a run keeps of the reading."""

import json
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


@pytest.mark.long
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


@pytest.fixture
def reviews(tmp_path):
    """A table of free text, with an id whose name is that of a column of predictions."""
    rng = random.Random(0)
    rows = [["class", "probability yes", "review", "stars", "again"]]
    for i in range(120):
        good = rng.random() < 0.3
        said = rng.choices(["the soup", "a tea", "it was", "we had"], k=3)
        said.append(rng.choice(["lovely", "superb"] if good else ["awful", "stale"]))
        rows.append([f"c{i}", i, " ".join(said), rng.randrange(1, 6), "yes" if good else "no"])
    path = tmp_path / "reviews.csv"
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


def test_free_text_from_describe_to_an_explanation(reviews, tmp_path):
    folder, ids = tmp_path / "run", ("--id", "class,probability yes")
    shown = run("describe", reviews, *ids)
    assert "review  text " in shown.stdout, shown.output
    assert "text: hashed into 256 inputs" in shown.stdout
    options = ("--hidden", 8, "--epochs", 20, "--members", 2, "--bins", 3, "--text", "review")
    trained = run("train", reviews, *options, *ids, "--out", folder)
    assert trained.exit_code == 0, trained.output
    assert "2 features as 257 inputs, 2 classes" in trained.stdout
    page = (folder / "report.html").read_text()
    assert "2 columns as 257 inputs" in page
    assert "Partial dependence" in page
    rows = page.partition("The rows most wrong")[2]
    assert ("review" in rows, "stars" in rows) == (False, True)  # a text is no number
    assert runs.load(folder).bins.columns == (256,)
    assert b"lovely" not in (folder / "run.safetensors").read_bytes()
    assert "the held-out 24 examples" in run("evaluate", folder, reviews).stdout
    worth = run("explain", folder, reviews, "--repeats", 1)
    assert worth.exit_code == 0, worth.output
    assert [line.split()[0] for line in worth.stdout.splitlines()[-3:-1]] == ["review", "stars"]
    predicted = run("predict", folder, reviews)
    assert predicted.stderr.splitlines() == [
        "Warning: the id 'class' is written as 'class (id)': the name is taken",
        "Warning: the id 'probability yes' is written as 'probability yes (id)': the name is taken",
    ]
    rows = pl.read_csv(predicted.stdout.encode())
    kept = ["class (id)", "probability yes (id)", "class", "probability no", "probability yes"]
    assert rows.columns == kept
    assert rows["class (id)"].to_list() == [f"c{i}" for i in range(120)]
    wrong = run("describe", reviews, "--text", "rewiev")
    assert "no column is called 'rewiev'; did you mean 'review'?" in wrong.stderr


@pytest.mark.long
def test_an_id_is_called_as_no_end_of_an_interval(tmp_path):
    path, folder = tmp_path / "a.csv", tmp_path / "run"
    lines = [f"n{i},{i},{i % 7},{i}.5" for i in range(60)]
    path.write_text("\n".join(["price lower,price lower (id),size,price", *lines]))
    ids = ("--id", "price lower,price lower (id)")
    trained = run("train", path, *ids, "--epochs", 1, "--members", 2, "--out", folder)
    assert trained.exit_code == 0, trained.output
    header, first = run("predict", folder, path).stdout.splitlines()[:2]
    names = "price lower (id),price lower (id) (id),price,price lower,price upper"
    assert (header, first[:5]) == (names, "n0,0,")


def test_a_threshold_decides_between_two_classes(reviews, tmp_path):
    folder = tmp_path / "run"
    options = ("--drop", "review,class,probability yes", "--epochs", 1, "--members", 1)
    assert run("train", reviews, *options, "--out", folder).exit_code == 0
    chances = pl.read_csv(run("predict", folder, reviews).stdout.encode())["probability yes"]
    middle = float(chances.median())
    predicted = run("predict", folder, reviews, "--threshold", middle)
    words = f"'yes' is predicted where its probability is at least {middle:g}"
    assert predicted.stderr == f"{words}\n"
    rows = pl.read_csv(predicted.stdout.encode())
    assert ((rows["class"] == "yes") == (rows["probability yes"] >= middle)).all()
    assert 0 < (rows["class"] == "yes").sum() < len(rows)
    measured = run("evaluate", folder, reviews, "--threshold", 1e-6)
    assert (
        "threshold 'yes' is predicted where its probability is at least 1e-06\n" in measured.stdout
    )
    told = json.loads(run("evaluate", folder, reviews, "--threshold", 1e-6, "--json").stdout)
    assert (told["threshold"], told["classes"]["yes"]["recall"]) == (1e-6, 1.0)
    assert [row[0] for row in told["confusion"]] == [0, 0]
    assert "threshold" not in json.loads(run("evaluate", folder, reviews, "--json").stdout)
    for wrong in (0, 1, "nan", -0.1):
        refused = run("predict", folder, reviews, "--threshold", wrong)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "Invalid value for '--threshold'" in refused.stderr


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("target", "got"), [("again", "values"), ("stars", "5 classes")])
def test_a_threshold_is_for_two_classes(reviews, tmp_path, target, got):
    folder = tmp_path / "run"
    table = pl.read_csv(reviews).with_columns(again=pl.int_range(pl.len()) + 0.5)
    table.write_csv(reviews)
    options = ("--target", target, "--drop", "review,class", "--epochs", 1, "--members", 1)
    assert run("train", reviews, *options, "--out", folder).exit_code == 0
    for command in ("predict", "evaluate"):
        refused = run(command, folder, reviews, "--threshold", 0.3)
        reason = f"--threshold applies to a run of two classes, this one has {got}"
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert refused.stderr.endswith(f"Error: {reason}\n")
