"""The command: what it prints, what it leaves on disk, and what it refuses."""

import csv
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from click.testing import CliRunner

from fnn import cli, data
from fnn.runs import files

pytestmark = pytest.mark.usefixtures("compiled_once", "undrawn")


def run(*args):
    return CliRunner().invoke(cli.fnn, [str(a) for a in args])


@pytest.mark.usefixtures("drawn")
def test_train_digits_end_to_end(tmp_path):
    result = run("train", "digits", "--epochs", 8, "--members", 1, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    accuracy = float(result.stdout.split("test accuracy ")[-1].split()[0])
    assert accuracy >= 0.95
    assert "gradient  pass: worst relative difference" in result.stdout
    with open(tmp_path / "run" / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [str(i) for i in range(1, 9)]
    assert float(rows[-1]["test_accuracy"]) == pytest.approx(accuracy, abs=1e-4)
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "run" / "run.safetensors").stat().st_size > 4 * 64 * 256


@pytest.mark.long
def test_a_convolutional_network_on_the_digits(tmp_path):
    args = ("--network", "cnn", "--learning-rate", 0.003, "--epochs", 15, "--out", tmp_path)
    result = run("train", "digits", *args)
    assert result.exit_code == 0, result.output
    assert "network   cnn 64-16-32-10, relu, 6090 parameters" in result.stdout
    assert float(result.stdout.split("test accuracy ")[-1].split()[0]) >= 0.975
    again = run("evaluate", tmp_path, "digits")
    assert again.exit_code == 0, again.output


def test_a_convolutional_network_needs_square_images(tmp_path):
    result = run("train", "wine", "--network", "cnn", "--out", tmp_path / "run")
    assert result.exit_code != 0
    assert "expected square images of at least 4 by 4 pixels" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.parametrize("source", ["iris", "wine", "breast_cancer"])
def test_other_classes(source, tmp_path):
    args = ("--epochs", 25, "--learning-rate", 0.005, "--members", 1, "--out", tmp_path)
    result = run("train", source, *args)
    assert result.exit_code == 0, result.output
    assert float(result.stdout.split("test accuracy ")[-1].split()[0]) >= 0.85


@pytest.mark.usefixtures("drawn")
def test_training_is_one_line_and_the_chief_score_is_the_last(tmp_path):
    args = ("--epochs", 31, "--hidden", 2, "--members", 1, "--learning-rate", 0.02)
    result = run("train", "iris", *args, "--out", tmp_path)
    lines = result.stdout.splitlines()
    assert not any(line.startswith("epoch") for line in lines)
    (trained,) = (line for line in lines if line.startswith("trained"))
    assert "31 epochs" in trained
    assert " loss 0." in trained
    score = r"test log loss [\d.]+ \(linear model [\d.]+, always the mean 1.099\)"
    assert re.fullmatch(score, lines[-1])
    assert result.stderr == ""  # the pictures of more than 30 epochs too
    with open(tmp_path / "history.csv") as file:
        assert len(list(csv.DictReader(file))) == 31


@pytest.mark.long
def test_a_device_that_is_there(tmp_path):
    args = ("train", "iris", "--epochs", 1, "--hidden", 2, "--members", 1, "--out", tmp_path)
    before = jax.config.jax_default_device
    try:
        assert run(*args, "--device", "cpu:1").exit_code == 0
        assert jax.config.jax_default_device == jax.devices()[1]
        result = run(*args, "--device", "abacus")
    finally:
        jax.config.update("jax_default_device", before)
    assert result.exit_code == 2
    assert "'--device': 'abacus' is no device; there are cpu:0, cpu:1" in result.stderr
    result = run(*args, "--device", "cpu", "--devices", 2)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--device names one device" in result.stderr


@pytest.mark.long
def test_values_in_their_own_units(tmp_path):
    result = run("train", "diabetes", "--epochs", 6, "--members", 1, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    line = next(row for row in result.stdout.splitlines() if row.startswith("test RMSE"))
    rmse, by_mean = (float(word.strip(",")) for word in line.split() if word[0].isdigit())
    assert 40 < rmse < by_mean < 90


@pytest.mark.long
def test_the_seed_decides_everything(tmp_path):
    args = ("--epochs", 2, "--hidden", 4, "--members", 1)
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        run("train", "iris", *args, "--seed", seed, "--out", tmp_path / out)
    a, b, c = ((tmp_path / out / "history.csv").read_bytes() for out in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "iris", "--epohcs", "3"], "'--epochs'"),
        (["train", "iris", "--hidden", "8,x"], "'8,x' is not a list of widths"),
        (["train", "iris", "--hidden", "0"], "'0' is not a list of widths"),
        (["train", "iris", "--learning-rate", "nan"], "'nan' is not a finite number"),
        (["train", "iris", "--learning-rate", "-1"], "-1.0 is not in the range x>0"),
        (["train", "iris", "--learning-rate", "1_0"], "'1_0' is not a finite number"),
        (["train", "iris", "--learning-rate", "1e400"], "'1e400' is not a finite number"),
        (["train", "iris", "--save-every", "nan"], "'nan' is not a finite number"),
        (["train", "iris", "--save-every", "inf"], "'inf' is not a finite number"),
        (["train", "iris", "--save-every", "-1"], "-1.0 is not in the range x>=0"),
        (["train", "iris", "--epochs", "1_0"], "'1_0' is not a whole number"),
        (["train", "iris", "--seed", "1_0"], "'1_0' is not a whole number"),
        (["train", "iris", "--hidden", "8,1_0"], "'8,1_0' is not a list of widths"),
        (["train", "iris", "--hidden", "99999999999"], "'99999999999' is not a list of widths"),
        (["train", "iris", "--hidden", "8,00"], "'8,00' is not a list of widths"),
        (["train", "iris", "--batch-size", "0"], "batch-size"),
        (["train", "iris", "--epochs", "0"], "epochs"),
        (["train", "iris", "--optimizer", "adm"], "did you mean 'adam'?"),
        (["train", "iris", "--activation", "softmax"], "'softmax' is unknown: known are elu"),
    ],
)
def test_wrong_options_get_one_line(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*args)
    assert result.exit_code == 2
    errors = [row for row in result.stderr.splitlines() if row.startswith("Error")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "runs").exists()


def test_a_batch_larger_than_the_training_part_is_refused(tmp_path):
    result = run("train", "iris", "--batch-size", 1000, "--out", tmp_path / "run")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "the batch size 1000 is larger than the 120 examples to train on" in result.stderr
    assert not (tmp_path / "run").exists()


def test_help_gives_every_default():
    text = " ".join(run("train", "--help").output.split())
    for option in (
        "hidden",
        "activation",
        "optimizer",
        "learning-rate",
        "batch-size",
        "epochs",
        "weight-decay",
        "seed",
        "out",
    ):
        assert f"--{option}" in text
    for default in (
        "128,128; 16,32 of cnn",
        "relu",
        "adamw",
        "0.002",
        "0.01",
        "64, or all where there are fewer",
        "40",
        "runs/SOURCE",
    ):
        assert f"default: {default}" in text or f"({default})" in text, default


@pytest.mark.long
def test_ctrl_c_leaves_what_was_learned(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fnn", "train", "iris", "--epochs", "1000000"]
    command += ["--hidden", "4", "--members", "1"]
    command += ["--save-every", "0", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while not (out / files.FILE).exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.returncode == 130
    assert "interrupted after" in rest
    assert "test accuracy" in rest
    with open(out / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(files.load(out).progress.history) >= 1


def test_a_split_keeps_each_class_and_every_example():
    everything = data.load("digits")
    learn, test = data.split(everything, 0.2, 0)
    assert len(learn.x) + len(test.x) == len(everything.x) == 1797
    shares = [np.bincount(part.y) / len(part.y) for part in (learn, test)]
    np.testing.assert_allclose(*shares, atol=0.005)
    rows = {row.tobytes() for row in learn.x} | {row.tobytes() for row in test.x}
    assert rows == {row.tobytes() for row in everything.x}


def test_scaling_is_undone():
    x = data.load("wine").x
    scaling = data.Scaling.of(x)
    z = scaling.apply(x)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(0), 1, atol=1e-5)
    np.testing.assert_allclose(scaling.undo(z), x, rtol=1e-4)
    constant = data.Scaling.of(np.ones((4, 1), np.float32))
    np.testing.assert_array_equal(constant.apply(np.ones((4, 1), np.float32)), np.zeros((4, 1)))


@pytest.fixture(scope="module")
def passengers(tmp_path_factory):
    """A table of 120 passengers, and a network trained on it."""
    folder = tmp_path_factory.mktemp("passengers")
    rng = np.random.default_rng(0)
    rows = ["id;name;class;age;joined;cabin;survived"]
    for i in range(120):
        kind, age = rng.choice(["first", "second", "third"]), rng.integers(1, 80)
        shown = "" if rng.random() < 0.2 else f"{age},5"
        cabin = rng.choice(["", "A", "B"])
        day = f"{rng.integers(1, 29):02}.{rng.integers(1, 13):02}.2020"
        lives = "yes" if (kind == "first") != (age < 16) else "no"
        rows.append(f"{i + 1};Passenger {i};{kind};{shown};{day};{cabin};{lives}")
    (folder / "a.csv").write_text("\n".join(rows) + "\n")
    args = ("--epochs", 40, "--batch-size", 32, "--hidden", 16, "--learning-rate", 0.01)
    args += ("--members", 1)
    result = run("train", folder / "a.csv", *args, "--out", folder / "run")
    assert result.exit_code == 0, result.output
    return folder, rows, result.stdout


@pytest.mark.long
def test_a_table_is_described_as_it_is_then_trained_on(passengers):
    folder, _, trained = passengers
    result = run("describe", folder / "a.csv")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:3] == [
        f"{folder}/a.csv: 120 examples",
        "separated by semicolons",
        "decimal commas",
    ]
    table = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[4:]}
    assert list(table) == ["id", "name", "class", "age", "joined", "cabin", "survived"]
    assert table["id"] == "number 120 0 1 60 120 ████████ left out: row numbers"
    assert table["name"] == "category 120 0 ████████ left out: a name or id per row"
    assert re.fullmatch("category 3 0 █[▁-█]{2} one-hot: 3 values", table["class"])
    assert re.fullmatch(
        r"number \d+ \d+ ([\d.]+ ){3}[ ▁-█]+ standardised, blanks as the median [\d.]+ and a flag",
        table["age"],
    )
    assert re.match(r"date \d+ \d+ (\d{4}-\d\d-\d\d ){3}[ ▁-█]+ standardised", table["joined"])
    assert "place in the year and week" in table["joined"]
    assert re.fullmatch(r"category 2 \d+ █[▁-█] one-hot: 2 values and blank", table["cabin"])
    assert re.fullmatch("classes 2 0 █[▁-█] to predict", table["survived"])
    said = " ".join(trained.split())
    for note in ("separated by semicolons", "decimal commas", "left out: 'id' (row numbers)"):
        assert note in said
    assert "4 features as 13 inputs, 2 classes" in said
    assert float(trained.split("test accuracy ")[-1].split()[0]) > 0.7


def test_a_table_is_predicted_with_what_training_decided(passengers):
    folder, rows, _ = passengers
    header, *cells = [row.split(";") for row in rows]
    turned = [[row[i] for i in (3, 5, 2, 4)] for row in [header, *cells]]
    (folder / "b.csv").write_text("\n".join("\t".join(row) for row in turned) + "\n")
    plain, other = (run("predict", folder / "run", folder / name) for name in ("a.csv", "b.csv"))
    assert plain.exit_code == other.exit_code == 0, plain.output + other.output
    assert plain.stdout == other.stdout
    assert len(plain.stdout.splitlines()) == 121
    assert plain.stderr == other.stderr == ""
    turned[1][2] = "steerage"
    turned[2][3] = ""
    (folder / "b.csv").write_text("\n".join("\t".join(row) for row in turned) + "\n")
    new = run("predict", folder / "run", folder / "b.csv")
    assert new.exit_code == 0
    assert "column 'class': 1 of 120 values was never seen in training" in new.stderr
    assert "column 'joined': 1 blank, where training saw none, filled with" in new.stderr
    assert new.stdout.splitlines()[3:] == plain.stdout.splitlines()[3:]


def test_a_table_is_measured_on_what_was_held_out(passengers):
    folder, rows, trained = passengers
    result = run("evaluate", folder / "run", folder / "a.csv")
    assert result.exit_code == 0, result.output
    assert "the held-out 24 examples" in result.stdout
    accuracy = trained.split("test accuracy ")[-1].split()[0]
    assert f"accuracy {accuracy}" in result.stdout
    (folder / "c.csv").write_text("\n".join([rows[0], *reversed(rows[1:])]) + "\n")
    result = run("evaluate", folder / "run", folder / "c.csv")
    assert "the 24 of 120 examples that were not trained on" in result.stdout
    again = run("train", folder / "a.csv", "--resume", "--out", folder / "run")
    assert "nothing to do" in again.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--drop", "nme"], "no column is called 'nme'; did you mean 'name'?"),
        (["--keep", "nme"], "no column is called 'nme'; did you mean 'name'?"),
        (["--missing", "error"], "no value; --missing fill fills it in"),
        (["--target", "name"], "120 classes in 120 examples; another column may be the target"),
        (
            ["--target", "survived", "--task", "regression"],
            "is not a number; another column may be",
        ),
        (["--no-header"], "is not a number"),
        (["--separator", "comma"], "columns"),
    ],
)
def test_a_table_that_cannot_be_learned_is_one_line(passengers, args, message, tmp_path):
    for command in (("train", "--out", tmp_path / "run"), ("describe",)):
        result = run(*command, passengers[0] / "a.csv", *args)
        assert result.exit_code in (1, 2), result.output
        errors = [row for row in result.stderr.splitlines() if row.startswith("Error: ")]
        assert len(errors) == 1
        assert message in errors[0]
    assert not (tmp_path / "run").exists()


def test_a_separator_by_name_and_a_header_are_taken(passengers, tmp_path):
    (tmp_path / "a.csv").write_text("1;2|x\n3;4|y\n" * 30)
    result = run("describe", tmp_path / "a.csv", "--separator", "pipe", "--header")
    assert "1;2" in result.stdout
    assert "59 examples" in result.stdout
    wrong = run("describe", tmp_path / "a.csv", "--separator", "dot")
    assert "'dot' is none of , ; | comma semicolon tab pipe" in wrong.stderr


def test_names_cannot_move_the_cursor(tmp_path):
    """A heading of two lines, and one that would colour the terminal."""
    path = tmp_path / "table.csv"
    rows = "".join(f"{i % 7},{i % 3 / 2},{'no' if i % 2 else 'yes'}\n" for i in range(40))
    path.write_text(f'"weight\n(kg)",\033[31mage,answer\n{rows}')
    shown = [run("describe", path).stdout]
    out = ("--out", tmp_path / "run")
    assert run("train", path, "--epochs", 1, "--hidden", 2, *out).exit_code == 0
    shown.append(run("explain", tmp_path / "run", path).stdout)
    for text in shown:
        assert "\033" not in text
        assert r"weight\n(kg)" in text
        assert r"\x1b[31mage" in text
