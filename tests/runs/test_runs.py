"""Runs: nothing is lost, going on is as never having stopped, and what was trained can be used."""

import csv
import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings

import jax
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from jax.experimental.compilation_cache import compilation_cache
from sklearn import datasets, metrics

from fnn import atomic, checkpoint, cli, data, runs
from fnn.checkpoint import CheckpointError
from fnn.data import DataError
from fnn.runs import _plots, digests, evaluation, files, report, training

SETTINGS = runs.Settings((8,), "tanh", "adam", 0.01, 32, 6, seed=1, members=1)


pytestmark = pytest.mark.usefixtures("compiled_once", "undrawn")


def command(*args):
    return CliRunner().invoke(cli.fnn, [str(a) for a in args])


def one_line(result, message, code=1):
    """A failure that says what is wrong in one line, without a traceback."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    errors = [row for row in result.stderr.splitlines() if row.startswith("Error: ")]
    assert len(errors) == 1, result.stderr
    assert result.stderr.rstrip().endswith(errors[0])
    assert message in errors[0]


def finished(folder, source="iris", settings=SETTINGS, stop_after=None):
    """Train in two goes where stop_after is given, through the file; write all three files."""
    folder.mkdir(exist_ok=True)
    run, examples = training.prepare(source, settings)
    if stop_after is not None:
        whole = run.settings
        first = run._replace(settings=whole._replace(epochs=stop_after))
        files.save(folder, training.advance(first, examples, lambda r: None))
        run = files.load(folder)._replace(settings=whole)
    run = training.advance(run, examples, lambda r: None)
    files.save(folder, run)
    report.write(folder, run.progress.history, "title")
    return run, examples


@pytest.fixture(scope="module")
def iris_run(tmp_path_factory):
    """The folder of a run on iris, to be read."""
    folder = tmp_path_factory.mktemp("iris")
    finished(folder)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_a_user_does_with_a_run(tmp_path):
    seen = []
    settings = runs.Settings(hidden=(8,), epochs=2, batch_size=16, seed=3)
    run = runs.train("iris", settings, seen.append)
    assert [len(r.settings.hidden) for r in seen] == [1, 1]
    assert run.settings == settings._replace(weight_decay=0.01, members=8, bins=10)  # the defaults
    assert runs.train("iris", settings).progress.history == run.progress.history
    chances = run.predict("iris")
    np.testing.assert_allclose(chances.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(run.predict(data.load("iris").x), chances)
    assert run.evaluate("iris").confusion.sum() == 30
    assert set(run.explain("iris", repeats=1).columns) == set(run.features)
    run.save(tmp_path)
    assert run.report(tmp_path, "iris") == []
    assert {path.name for path in tmp_path.iterdir()} == {
        files.FILE, report.HISTORY, report.PICTURE
    }  # fmt: skip
    np.testing.assert_array_equal(runs.load(tmp_path).predict("iris"), chances)


def test_settings_without_a_meaning_are_refused():
    for change, message in (
        ({"optimizer": "adm"}, "unknown optimizer 'adm'"),
        ({"epochs": 0}, "epochs of at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"optimizer": "sgd", "weight_decay": 0.1}, "weight decay with sgd"),
    ):
        with pytest.raises(ValueError, match=message):
            runs.train("iris", runs.Settings()._replace(**change))


VARIANTS = {
    "classes": ("iris", SETTINGS),
    "patience": ("iris", SETTINGS._replace(patience=2, learning_rate=0.3, epochs=12)),
    "values": ("diabetes", SETTINGS._replace(optimizer="momentum", hidden=())),
    "members": ("iris", SETTINGS._replace(members=3)),
    "patient members": ("wine", SETTINGS._replace(members=2, patience=2, epochs=60)),
}


@pytest.mark.long
@pytest.mark.optimized
@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("name", VARIANTS)
def test_going_on_is_bit_for_bit_never_having_stopped(tmp_path, name):
    whole, _ = finished(tmp_path / "a", *VARIANTS[name])
    finished(tmp_path / "b", *VARIANTS[name], stop_after=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    if "patien" in name:
        assert 3 < len(whole.progress.history) < whole.settings.epochs


@pytest.mark.optimized
def test_a_run_comes_back_bit_for_bit(tmp_path):
    run, _ = finished(tmp_path)
    back = files.load(tmp_path)
    arrays = {"seen": None, "inputs": None, "progress": None, "bins": None}
    assert back._replace(**arrays) == run._replace(**arrays)
    np.testing.assert_array_equal(back.seen, run.seen)
    assert back.progress.history == run.progress.history
    kept, expected = (jax.tree.leaves((r.inputs, r.progress.state)) for r in (back, run))
    assert [np.asarray(a).tobytes() for a in kept] == [np.asarray(a).tobytes() for a in expected]


def test_a_run_written_before_a_setting_existed_has_its_default(tmp_path):
    settings = SETTINGS._replace(patience=3, target="a", task="classification")
    run, _ = training.prepare("iris", SETTINGS)
    files.save(tmp_path, run._replace(settings=settings._replace(patience=None)))
    path = tmp_path / files.FILE
    metadata = checkpoint.read_metadata(path)
    state, inputs = run.progress.state, run.inputs.scaling
    tree = {"state": state, "inputs": inputs, "outputs": run.outputs}
    assert files.load(tmp_path).settings == settings._replace(patience=None)
    later = ("patience", "target", "task", "separator", "header", "missing", "drop", "keep")
    later += ("members", "bins")
    for name in later:
        del metadata["settings"][name]
    del metadata["seen"], metadata["columns"]
    checkpoint.save(path, tree, metadata)
    assert files.load(tmp_path).settings == SETTINGS._replace(members=None)
    assert files.load(tmp_path).members == 1
    metadata["settings"] |= {"dropout": 0.5, "annealing": True}
    checkpoint.save(path, tree, metadata)
    with pytest.raises(CheckpointError, match="unknown settings annealing, dropout"):
        files.load(tmp_path)
    metadata["settings"] = {"hidden": [8]}
    checkpoint.save(path, tree, metadata)
    with pytest.raises(CheckpointError, match="'activation' not found"):
        files.load(tmp_path)


CRAFTED = {
    "sizes": {"sizes": [10**11, 8, 10**11]},
    "more sizes": {"sizes": [10**30, 8, 3]},
    "negative": {"sizes": [-1, 8, 3]},
    "digests": {"seen": 10**11},
    "no digests": {"seen": -1},
    "no number": {"seen": "many"},
    "seed": {"settings": {"seed": 2**80}},
    "negative seed": {"settings": {"seed": -1}},
    "widths": {"settings": {"hidden": [10**11]}},
    "rate": {"settings": {"learning_rate": float("nan")}},
    "rule": {"settings": {"optimizer": "no"}},
    "activation": {"settings": {"activation": ["relu"]}},
    "history": {"history": 5},
    "classes": {"classes": ["a"]},
    "one class twice": {"classes": ["a", "a", "a"]},
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_run_is_one_line(tmp_path, name):
    run, _ = training.prepare("iris", SETTINGS)
    files.save(tmp_path, run)
    metadata = checkpoint.read_metadata(tmp_path / files.FILE)
    for key, value in CRAFTED[name].items():
        metadata[key] = metadata[key] | value if isinstance(value, dict) else value
    checkpoint.save(tmp_path / files.FILE, files._tree(run), metadata)
    for args in (("predict", tmp_path, "iris"), ("train", "iris", "--resume", "--out", tmp_path)):
        one_line(command(*args), str(tmp_path))


@pytest.mark.parametrize("part", ["state", "inputs"])
def test_a_run_that_is_not_finite_predicts_nothing(tmp_path, part):
    run, _ = training.prepare("iris", SETTINGS)
    files.save(tmp_path, run)
    metadata = checkpoint.read_metadata(tmp_path / files.FILE)
    tree = files._tree(run)
    tree[part] = jax.tree.map(lambda a: a * np.nan if a.dtype.kind == "f" else a, tree[part])
    checkpoint.save(tmp_path / files.FILE, tree, metadata)
    one_line(command("predict", tmp_path, "iris"), "not finite")


def test_scaling_is_of_the_training_part_alone():
    run, examples = training.prepare("diabetes", SETTINGS._replace(patience=1))
    for fitted, part in ((run.inputs.scaling, examples.train.x), (run.outputs, examples.train.y)):
        np.testing.assert_allclose(fitted.mean, part.mean(0, dtype=np.float64), rtol=1e-9)
    parts = [len(part.x) for part in examples[:3]]
    assert sum(parts) == 442
    assert parts == [282, 71, 89]


def test_patience_keeps_the_best_epochs_network(tmp_path):
    settings = SETTINGS._replace(patience=2, learning_rate=0.3, epochs=50)
    run, examples = finished(tmp_path, "iris", settings)
    losses = [record["validation_loss"] for record in run.progress.history]
    assert len(losses) == int(np.argmin(losses)) + 1 + 2 < 50
    x, y = run.standardised(examples.validation)
    of_best = run.loss.value(run.network.forward(run.progress.best.params, x)[0], y).mean()
    np.testing.assert_allclose(of_best, min(losses), rtol=1e-5)
    predicted = files.load(tmp_path).predict(examples.validation.x)
    likelihood = predicted[np.arange(len(y)), y]
    np.testing.assert_allclose(-np.log(likelihood).mean(), min(losses), rtol=1e-4)


def test_of_equal_best_epochs_the_first_is_kept(monkeypatch):
    """As in `fit`, whose patience counts from the first."""
    losses = iter([2.0, 1.0, 1.0, 1.0])

    def fit(*args, on_epoch, start, **options):
        for epoch, loss in enumerate(losses, 1):
            state = start.state._replace(step=start.state.step + epoch)
            on_epoch(epoch, state, {"loss": loss, "validation_loss": loss})

    monkeypatch.setattr(training, "fit", fit)
    run, examples = training.prepare("iris", SETTINGS._replace(patience=2))
    run = training.advance(run, examples)
    assert [int(state.step) for state in (run.progress.best, run.progress.state)] == [2, 4]


@pytest.fixture(scope="module")
def csv_run(tmp_path_factory):
    """A network trained by the command on a CSV file of iris, and the folder it is in."""
    folder = tmp_path_factory.mktemp("csv")
    iris = datasets.load_iris()
    with open(folder / "iris.csv", "w") as file:
        writer = csv.writer(file)
        writer.writerow(["species", "a", "b", "c", "d"])
        for row, label in zip(iris.data, iris.target, strict=True):
            writer.writerow([iris.target_names[label], *row])
    args = ("--target", "species", "--hidden", 16, "--learning-rate", 0.01, "--members", 1)
    result = command("train", folder / "iris.csv", *args, "--out", folder / "run")
    assert result.exit_code == 0, result.output
    return folder


def test_predict_writes_names_and_probabilities(csv_run):
    with open(csv_run / "iris.csv") as file:
        rows = list(csv.DictReader(file))
    with open(csv_run / "new.csv", "w") as file:  # columns in another order, others beside
        writer = csv.writer(file)
        writer.writerow(["note", "d", "b", "a", "c"])
        writer.writerows([["x", row["d"], row["b"], row["a"], row["c"]] for row in rows])
    result = command("predict", csv_run / "run", csv_run / "new.csv")
    assert result.exit_code == 0, result.output
    predicted = list(csv.DictReader(result.stdout.splitlines()))
    assert list(predicted[0]) == [
        "class",
        "probability setosa",
        "probability versicolor",
        "probability virginica",
    ]
    right = [p["class"] == row["species"] for p, row in zip(predicted, rows, strict=True)]
    assert np.mean(right) > 0.95
    for row in predicted[::10]:
        probabilities = {k.split(" ", 1)[1]: float(v) for k, v in list(row.items())[1:]}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert max(probabilities, key=probabilities.get) == row["class"]
    command("predict", csv_run / "run", csv_run / "new.csv", "--out", csv_run / "p.csv")
    assert (csv_run / "p.csv").read_text() == result.stdout


def test_evaluate_counts_the_held_out_examples_of_its_own_data(csv_run):
    result = command("evaluate", csv_run / "run", csv_run / "iris.csv")
    assert result.exit_code == 0, result.output
    run = files.load(csv_run / "run")
    assert "the held-out 30 examples" in result.stdout
    accuracy = float(result.stdout.split("accuracy ")[1].split()[0])
    assert accuracy == pytest.approx(run.progress.history[-1]["test_accuracy"], abs=1e-4)
    table = [row.split() for row in result.stdout.splitlines()[-3:]]
    confusion = np.array([row[1:] for row in table], int)
    assert [row[0] for row in table] == list(run.classes)
    assert confusion.sum() == 30
    np.testing.assert_allclose(np.trace(confusion) / 30, accuracy, atol=1e-4)
    np.testing.assert_array_equal(confusion.sum(1), [10, 10, 10])


def test_held_out_examples_that_were_trained_on_too_are_said(tmp_path):
    settings = runs.Settings((), "relu", "sgd", 0.1, 16, 1, seed=0, task="regression")
    rows = [f"{i}.5,{i}.25\n" for i in range(30)]
    for name, text in (("once.csv", rows), ("twice.csv", rows * 2)):
        (tmp_path / name).write_text("".join(["x,y\n", *text]))
    run, _ = training.prepare(tmp_path / "once.csv", settings)
    assert (
        evaluation.held_out(run, data.load(tmp_path / "once.csv"))[1] == "the held-out 6 examples"
    )
    run, parts = training.prepare(tmp_path / "twice.csv", settings)
    again = int(np.isin(parts.test.y, parts.train.y).sum())
    assert 0 < again < 12
    said = evaluation.held_out(run, data.load(tmp_path / "twice.csv"))[1]
    assert said == f"the held-out 12 examples, {again} of them also trained on"


def test_evaluate_counts_no_example_that_was_trained_on(csv_run):
    """Whatever the order and the choice of the rows, of the columns, and however the file ends."""
    header, *lines = (csv_run / "iris.csv").read_text().splitlines()
    whole = data.load(csv_run / "iris.csv", target="species")
    _, test = data.split(whole, evaluation.HELD_OUT, 0)
    trained, _ = data.split(whole, evaluation.HELD_OUT, 0)
    seen = {(row.tobytes(), y) for row, y in zip(trained.x, trained.y, strict=True)}
    mine = [(row.tobytes(), y) not in seen for row, y in zip(whole.x, whole.y, strict=True)]
    assert 25 < sum(mine) <= len(test.x)
    turned = [",".join(reversed(line.split(","))) for line in (header, *reversed(lines))]
    sources = {
        "reversed": ([header, *reversed(lines)], sum(mine), 150),
        "some": ([header, *lines[60:80]], sum(mine[60:80]), 20),
        "columns": (turned, sum(mine), 150),
        "longer": ([header, *lines, "setosa,9,9,9,9"], sum(mine) + 1, 151),
    }
    for name, (rows, count, n) in sources.items():
        (csv_run / f"{name}.csv").write_text("\n".join(rows))
        result = command("evaluate", csv_run / "run", csv_run / f"{name}.csv")
        assert result.exit_code == 0, result.output
        assert f"the {count} of {n} examples that were not trained on" in result.stdout
        confusion = [line.split()[1:] for line in result.stdout.splitlines()[-3:]]
        assert np.array(confusion, int).sum() == count
    trained_on = [header, *(line for line, new in zip(lines, mine, strict=True) if not new)]
    (csv_run / "trained.csv").write_text("\n".join(trained_on))
    result = command("evaluate", csv_run / "run", csv_run / "trained.csv")
    assert f"all {150 - sum(mine)} examples, each of them trained on" in result.stdout


def test_evaluate_refuses_other_classes_and_features(csv_run):
    header = (csv_run / "iris.csv").read_text().splitlines()[0]
    (csv_run / "bad.csv").write_text("\n".join([header, "setossa,1,2,3,4"]))
    one_line(command("evaluate", csv_run / "run", csv_run / "bad.csv"), "did you mean 'setosa'?")
    one_line(command("evaluate", csv_run / "run", "diabetes"), "task is regression")
    one_line(command("evaluate", csv_run / "run", "wine"), "no column is called 'a'")
    one_line(command("predict", csv_run / "run", "wine"), "no column is called 'a'")


@pytest.mark.long
def test_evaluate_finds_the_target_by_its_name(tmp_path):
    """Trained without --target on the last column, which is the first in the other file."""
    diabetes = datasets.load_diabetes()
    for name, order in (("a", 1), ("b", -1)):
        columns = np.column_stack([diabetes.data, diabetes.target])[:, ::order]
        names = ",".join([*"abcdefghij", "target"][::order])
        np.savetxt(tmp_path / f"{name}.csv", columns, header=names, comments="", delimiter=",")
    (tmp_path / "none.csv").write_text((tmp_path / "a.csv").read_text().partition("\n")[2])
    args = ("--epochs", 30, "--hidden", "", "--learning-rate", 0.01, "--members", 1)
    args += ("--out", tmp_path / "run")
    assert command("train", tmp_path / "a.csv", *args).exit_code == 0
    printed = [
        command("evaluate", tmp_path / "run", tmp_path / f"{name}.csv").stdout
        for name in ("a", "b", "none")
    ]
    assert "the held-out 89 examples" in printed[0]
    assert "the 89 of 442 examples" in printed[1]
    rmse = [float(text.split("RMSE ")[1].split(",")[0]) for text in printed]
    assert max(rmse) < 70
    np.testing.assert_allclose(rmse, rmse[0], rtol=1e-3)


def test_a_run_without_digests_counts_all(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "SEEN", 100)
    run, _ = finished(tmp_path)
    assert files.load(tmp_path).seen.shape == run.seen.shape == (0,)
    iris = data.load("iris")
    turned = iris._replace(x=iris.x[::-1], y=iris.y[::-1])
    expected = "all 150 examples, some of which may have been trained on"
    assert evaluation.held_out(run, turned)[1] == expected


@pytest.mark.sampled(4)
@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30, 1e60])
def test_the_rmse_of_values_in_any_unit(tmp_path, unit):
    diabetes = datasets.load_diabetes()
    np.savez(tmp_path / "a.npz", x=diabetes.data, y=diabetes.target * unit)
    run, examples = training.prepare(tmp_path / "a.npz", SETTINGS._replace(epochs=1))
    first = training.advance(run, examples, lambda r: None).progress.history[0]
    assert 40 < first["test_RMSE"] / unit < 200
    files.save(tmp_path, run)
    np.testing.assert_array_equal(files.load(tmp_path).outputs.scale, run.outputs.scale)


def test_many_examples_are_predicted_in_chunks(tmp_path, monkeypatch):
    run, examples = finished(tmp_path, "diabetes")
    whole = run.predict(examples.train.x)
    source = tmp_path / "x.npy"
    np.save(source, examples.train.x)
    assert command("predict", tmp_path, source, "--out", tmp_path / "a.csv").exit_code == 0
    monkeypatch.setattr(evaluation, "CHUNK", 100)
    assert [len(piece) for piece in evaluation.predictions(run, [examples.train.x])] == [
        100
    ] * 3 + [53]
    np.testing.assert_allclose(run.predict(examples.train.x), whole, rtol=1e-5)
    assert command("predict", tmp_path, source, "--out", tmp_path / "b.csv").exit_code == 0
    a, b = ((tmp_path / name).read_text().splitlines() for name in ("a.csv", "b.csv"))
    assert a[0] == b[0] == "value"
    np.testing.assert_allclose(np.array(a[1:], float), np.array(b[1:], float), rtol=1e-5)
    far = examples.train.x.astype(np.float64)
    far[203] = 1e60
    with pytest.raises(DataError, match="example 204, column 1"):
        run.predict(far)
    np.save(source, far)
    one_line(command("predict", tmp_path, source, "--out", tmp_path / "b.csv"), "example 204")
    assert (tmp_path / "b.csv").read_text().splitlines() == b


def test_metrics_agree_with_scikit_learn():
    run, examples = training.prepare("iris", SETTINGS)
    run = training.advance(run, examples, lambda r: None)
    labels = run.predict(examples.test.x).argmax(-1)
    found = evaluation.evaluate(run, examples.test)
    np.testing.assert_array_equal(
        found.confusion, metrics.confusion_matrix(examples.test.y, labels)
    )
    assert found.accuracy == metrics.accuracy_score(examples.test.y, labels)


def test_values_come_back_in_their_own_units(tmp_path):
    """A linear relation, its values around a million: learned, predicted and measured there."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)) * [1, 100, 0.01] + [5, -300, 0]
    y = x @ np.array([[20.0, -1], [3, 2], [5000, 0]]) + [1e6, -50]
    np.savez(tmp_path / "a.npz", x=x, y=y)
    args = ("--hidden", "", "--learning-rate", 0.05, "--epochs", 60, "--optimizer", "adam")
    args += ("--members", 1)
    result = command("train", tmp_path / "a.npz", *args, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "test RMSE value 1" in result.stdout
    result = command("predict", tmp_path / "run", tmp_path / "a.npz")
    predicted = np.array(list(csv.reader(result.stdout.splitlines()))[1:], float)
    assert np.abs(predicted - y).max(0) == pytest.approx([0, 0], abs=2)
    run, (*_, test, _) = training.prepare(tmp_path / "a.npz", SETTINGS._replace(hidden=()))
    found = evaluation.evaluate(run, test)
    guess = run.predict(test.x)
    error = metrics.mean_squared_error(test.y, guess, multioutput="raw_values")
    np.testing.assert_allclose(found.rmse, np.sqrt(error))
    r2 = metrics.r2_score(test.y, guess, multioutput="raw_values")
    np.testing.assert_allclose(found.r2, r2)


# Killed, stopped, without room.

TRAIN = (sys.executable, "-um", "fnn", "train", "iris", "--members", "1")
TRAIN += ("--epochs", "40", "--hidden", "8")
SMALL = ("--hidden", 4, "--members", 1)


@pytest.mark.long
@pytest.mark.optimized
@pytest.mark.usefixtures("drawn")
def test_kills_at_any_instant_lose_nothing(tmp_path):
    """SIGKILL in the middle, then --resume, again and again: the same bytes in the end."""
    rng = random.Random(3)
    killed = [*TRAIN, "--save-every", "0", "--resume", "--out", str(tmp_path / "a")]
    for _ in range(2):
        with subprocess.Popen(killed, stdout=-3, stderr=-3) as child:
            saves, last = rng.randrange(2, 8), files.version(tmp_path / "a")
            while saves and child.poll() is None:
                time.sleep(rng.uniform(0, 0.002))
                if (now := files.version(tmp_path / "a")) != last:
                    saves, last = saves - 1, now
            child.kill()
        assert child.returncode == -signal.SIGKILL
        assert 0 < len(files.load(tmp_path / "a").progress.history) < 40
    assert "resumed" in command(*killed[3:]).stdout
    assert command(*TRAIN[3:], "--out", tmp_path / "b").exit_code == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.long
def test_sigterm_ends_at_the_epochs_border_with_all_saved(tmp_path):
    args = [*TRAIN[:-4], "--hidden", "8", "--epochs", "1000000", "--save-every", "0"]
    with subprocess.Popen(
        [*args, "--out", str(tmp_path)], stdout=-1, stderr=-3, text=True
    ) as child:
        while files.version(tmp_path) is None and child.poll() is None:
            time.sleep(0.01)
        child.terminate()
        rest = child.stdout.read()
    assert child.returncode == 128 + signal.SIGTERM
    assert "interrupted after" in rest
    run = files.load(tmp_path)
    with open(tmp_path / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(run.progress.history) >= 1
    assert int(run.progress.state.step) == 2 * len(rows)


@pytest.fixture
def small_files():
    """Files of at most 3000 bytes: a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    jax.config.update("jax_enable_compilation_cache", False)  # its files would be cut too
    compilation_cache.reset_cache()  # which is what makes JAX look at the setting again
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def test_a_full_disk_is_said_before_training(tmp_path, small_files):
    result = command("train", "iris", "--members", 1, "--out", tmp_path / "run")
    one_line(result, "run/probe")
    assert "trained" not in result.stdout
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_that_cannot_be_is_said_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    result = command("train", "iris", *SMALL, "--out", tmp_path / "file" / "run")
    one_line(result, "file")
    assert "trained" not in result.stdout


@pytest.mark.parametrize("name", report.FILES)
def test_a_folder_at_a_files_place_is_said_before_training(tmp_path, name):
    (tmp_path / name).mkdir()
    result = command("train", "iris", *SMALL, "--out", tmp_path)
    one_line(result, f"{name}: Is a directory")
    assert "trained" not in result.stdout


@pytest.mark.parametrize("name", ["a$x^{.csv", "$$.csv", os.fsdecode(b"\xff\xfe.csv"), "a\tb.csv"])
@pytest.mark.usefixtures("drawn")
def test_any_file_name_is_drawn(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a character that the font lacks
        problems = report.write(tmp_path, HISTORY, str(tmp_path / name))
    assert problems == []
    assert (tmp_path / report.PICTURE).read_bytes().startswith(b"\x89PNG")


HISTORY = [{"loss": 1.0, "test_loss": 1.5, "test_accuracy": 0.5}]


@pytest.mark.usefixtures("drawn")
def test_a_picture_that_fails_costs_a_warning_only(tmp_path, monkeypatch):
    monkeypatch.setattr(_plots, "curves", lambda *args: 1 / 0)
    result = command("train", "iris", "--epochs", 1, *SMALL, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "test accuracy" in result.stdout
    assert "Warning: " in result.stderr
    assert "curves.png is not written: division by zero" in result.stderr


@pytest.mark.parametrize(
    "code", [pytest.param(errno.ENOSPC, marks=pytest.mark.long), errno.EIO], ids=errno.errorcode.get
)
def test_a_disk_that_fails_while_training_costs_nothing_older(tmp_path, monkeypatch, code):
    args = ("train", "iris", *SMALL, "--save-every", 0, "--out", tmp_path)
    assert command(*args, "--epochs", 3).exit_code == 0
    older = contents(tmp_path)
    real, calls = os.fsync, []

    def fail(handle):
        calls.append(handle)
        if len(calls) > 7:  # the probe and some epochs, each file and folder
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(os, "fsync", fail)
    result = command(*args, "--epochs", 6, "--resume")
    one_line(result, os.strerror(code))
    monkeypatch.undo()
    now = contents(tmp_path)
    assert now.keys() == older.keys()
    assert now["history.csv"] == older["history.csv"]
    assert len(files.load(tmp_path).progress.history) >= 3


def test_a_folder_in_use_is_left_alone(tmp_path):
    with atomic.owned(tmp_path):
        result = command("train", "iris", *SMALL, "--out", tmp_path)
        one_line(result, "another process is writing")


@pytest.mark.long
def test_a_run_that_another_process_continued_is_not_replaced(tmp_path, monkeypatch):
    """A second --resume read the run before the first one finished it."""
    finished(tmp_path, settings=SETTINGS._replace(epochs=2))
    real = training.prepare

    def prepare(source, settings):
        found = real(source, settings)
        longer, examples = found
        files.save(tmp_path, training.advance(longer, examples, lambda r: None))
        return found

    monkeypatch.setattr(training, "prepare", prepare)
    result = command("train", "iris", "--resume", "--epochs", 5, "--out", tmp_path)
    one_line(result, "another process has just changed the run")
    assert len(files.load(tmp_path).progress.history) == 5


@pytest.mark.long
def test_another_run_in_the_folder_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    iris = datasets.load_iris()
    for name, factor in (("A", 1), ("B", 2)):
        (tmp_path / name).mkdir()
        rows = np.column_stack([iris.data * factor, iris.target])
        np.savetxt(tmp_path / name / "data.csv", rows, delimiter=",", header="a,b,c,d,e")
    args = (*SMALL, "--epochs", 2)
    assert command("train", "A/data.csv", *args).exit_code == 0
    first = contents(tmp_path / "runs" / "data")
    one_line(command("train", "B/data.csv", *args), "other data than B/data.csv; --overwrite")
    longer = command("train", "A/data.csv", *SMALL, "--epochs", 3)
    one_line(longer, "--epochs was 2; --resume continues it, --overwrite replaces it")
    both = command("train", "A/data.csv", *args, "--resume", "--overwrite")
    one_line(both, "--resume continues the run", code=2)
    assert contents(tmp_path / "runs" / "data") == first
    assert command("train", "A/data.csv", *args).exit_code == 0  # the same run once more
    assert contents(tmp_path / "runs" / "data") == first
    assert command("train", "B/data.csv", *args, "--overwrite").exit_code == 0
    path = tmp_path / "runs" / "data" / files.FILE
    assert path.read_bytes() != first[files.FILE]
    path.write_bytes(b"damaged")
    one_line(command("train", "A/data.csv", *args), "--overwrite replaces it")
    assert command("train", "A/data.csv", *args, "--overwrite").exit_code == 0
    assert contents(tmp_path / "runs" / "data") == first


@pytest.mark.parametrize(
    "args",
    [
        ("train", "iris", "--out", ""),
        ("train", ""),
        ("predict", "", "iris"),
        ("predict", ".", ""),
        ("predict", ".", "iris", "--out", ""),
        ("evaluate", "", "iris"),
    ],
)
def test_an_empty_word_is_not_the_working_directory(iris_run, tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(iris_run, tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    result = command(*args)
    one_line(result, "got an empty", result.exit_code)
    assert result.exit_code in (1, 2)
    assert contents(tmp_path) == before


# What is wrong, in a word.


def test_resume_refuses_what_would_be_another_run(csv_run, tmp_path):
    train = ("train", csv_run / "iris.csv", "--resume", "--out", csv_run / "run")
    for option, value in (("--seed", 5), ("--hidden", "3,3"), ("--optimizer", "sgd")):
        message = f"{option} {value}: the run in"
        one_line(command(*train, option, value), message, code=2)
    other = ("train", "wine", "--resume", "--out", csv_run / "run")
    one_line(command(*other), "only a table has a target column to choose")
    (tmp_path / "iris.csv").write_text((csv_run / "iris.csv").read_text().replace("5.1", "5.2"))
    changed = ("train", tmp_path / "iris.csv", "--resume", "--out", csv_run / "run")
    one_line(command(*changed), "trained on other data")


def test_resume_with_nothing_there_starts_and_done_changes_nothing(tmp_path):
    args = ("train", "iris", "--epochs", 2, *SMALL, "--out", tmp_path / "r", "--resume")
    assert "resumed" not in command(*args).stdout
    first = contents(tmp_path / "r")
    again = command(*args)
    assert "resumed   after epoch 2: nothing to do, these are all" in again.stdout
    assert contents(tmp_path / "r") == first


def test_faults_of_a_run_are_one_line(csv_run, tmp_path):
    path = csv_run / "run" / files.FILE
    whole = path.read_bytes()
    one_line(command("predict", tmp_path, "iris"), "there is no trained run")
    for damaged, message in (
        (whole[:-1], "damaged"),
        (whole[:100] + b"?" + whole[101:], "damaged"),
        (b"", "not a checkpoint"),
    ):
        (tmp_path / files.FILE).write_bytes(damaged)
        for args in (("predict", tmp_path, "iris"), ("evaluate", tmp_path, "iris")):
            one_line(command(*args), message)
        one_line(command("train", "iris", "--resume", "--out", tmp_path), message)
    checkpoint.save(tmp_path / files.FILE, {"a": np.ones(3)}, {"settings": {}})
    with pytest.raises(CheckpointError, match="'features' not found"):
        files.load(tmp_path)


@pytest.mark.long
def test_a_diverging_run_is_never_saved_as_nan(tmp_path):
    args = ("train", "diabetes", "--optimizer", "sgd", "--hidden", "", "--members", 1)
    args += ("--out", tmp_path)
    result = command(*args, "--learning-rate", 1e30)
    one_line(result, "training diverged in epoch 1, step")
    assert "nothing is saved" in result.stderr
    assert list(tmp_path.iterdir()) == []
    result = command(*args, "--learning-rate", 1.2, "--epochs", 4000)
    one_line(result, "has the network after epoch")
    run = files.load(tmp_path)
    for leaf in jax.tree.leaves(run.progress):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("a,b\n", "a header, but no examples"),
        ("1,2.5\n", "1 example: 2 are needed"),
        ("a,b\n1,2.5\n2\n", "line 3: expected 2 columns, got 1"),
        ("a,b\n1,2.5\nx,3.5\n", "line 3, column 1 'a': 'x' is not a number"),
        ("a,b\n1,2.5\ninf,3.5\n", "line 3, column 1 'a': expected a finite number, got inf"),
        (b"%PDF-1.7", "a PDF document; save its table as CSV"),
    ],
)
def test_faults_of_the_data_are_one_line(tmp_path, content, message):
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    one_line(command("train", path, "--out", tmp_path / "run"), message)
    assert not (tmp_path / "run").exists()


def test_unknown_sources_are_one_line(tmp_path):
    one_line(command("train", "digitz", "--out", tmp_path), "did you mean 'digits'?")
    one_line(command("train", tmp_path / "no.csv", "--out", tmp_path), "no.csv: no such file")
    with pytest.raises(DataError):
        data.load("digitz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1.5}, "expected seed to be a whole number, got 1.5"),
        ({"seed": -1}, "expected seed of at least 0, got -1"),
        ({"seed": 2**32}, r"expected a seed below 2\*\*32"),
        ({"skip": 1.5}, "expected skip to be a whole number, got 1.5"),
        ({"skip": -1}, "expected skip of at least 0, got -1"),
        ({"patience": 2.0}, "expected patience to be a whole number, got 2.0"),
        ({"epochs": None}, "expected epochs to be a whole number, got None"),
        ({"batch_size": 8.0}, "expected batch_size to be a whole number, got 8.0"),
        ({"hidden": 8}, "expected hidden to be a tuple, got 8"),
        ({"hidden": (8.0,)}, "expected hidden to be a whole number, got 8.0"),
        ({"drop": "size"}, "expected drop to be a tuple, got 'size'"),
        ({"id": (3,)}, "expected names as text, got 3"),
        ({"target": 1.5}, "expected a seed below .*, got 0, 1.5"),
        ({"class_weight": (1.0, -1.0, 1.0)}, "expected class_weight"),
        ({"class_weight": (1.0, float("nan"), 1.0)}, "expected class_weight"),
        ({"text": "size"}, "expected text to be a tuple, got 'size'"),
    ],
)
def test_settings_of_another_type_are_refused_by_name(change, message):
    with pytest.raises((TypeError, ValueError), match=f"^settings: {message}"):
        runs.train("iris", runs.Settings(**change))


@pytest.mark.parametrize("change", [{"repeats": 1.5}, {"repeats": 0}, {"seed": 1.5}])
def test_counts_of_an_explanation_are_whole(iris_run, change):
    run = runs.load(iris_run)
    with pytest.raises((TypeError, ValueError), match="explain: expected (repeats|seed)"):
        run.explain("iris", **change)


def rare(n=400, seed=0):
    """Two classes that overlap, one of them rare."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    y = np.where(x.sum(1) + rng.normal(size=n) > 2.5, "yes", "no")
    return pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "left": y})


@pytest.mark.sampled(2)
@pytest.mark.parametrize("members", [1, 3])
def test_class_weights_multiply_the_loss_of_each_class(members):
    settings = SETTINGS._replace(members=members, class_weight="balanced")
    run, examples = training.prepare(rare(), settings)
    counts = np.bincount(examples.train.y)
    np.testing.assert_allclose(run.weights, counts.sum() / (2 * counts))
    _, y = training.arrays(run, examples.train, None)
    z = np.random.default_rng(1).normal(size=(len(y), 2)).astype(np.float32)
    plain = [f(z, examples.train.y) for f in (run.loss.value, run.loss.gradient)]
    weights = np.array(run.weights)[examples.train.y]
    np.testing.assert_allclose(run.loss.value(z, y), weights * plain[0], rtol=1e-5)
    np.testing.assert_allclose(run.loss.gradient(z, y), weights[:, None] * plain[1], atol=1e-5)
    found = [
        runs.train(rare(), settings._replace(class_weight=how)).evaluate(rare(seed=1)).recall
        for how in (None, "balanced", (0.0, 1.0))
    ]
    assert found[0][1] + 0.1 < found[1][1] < found[2][1] == 1
    assert found[0][0] > found[1][0] > found[2][0]


@pytest.mark.long
def test_class_weights_are_held_by_the_run_and_go_on(tmp_path):
    rare().write_csv(tmp_path / "a.csv")
    args = ("train", tmp_path / "a.csv", "--class-weight", "balanced", "--members", 2)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert command(*args, "--epochs", 4, "--out", whole).exit_code == 0
    assert command(*args, "--epochs", 2, "--out", halves).exit_code == 0
    first = runs.load(halves)
    assert (first.settings.class_weight, len(first.weights)) == ("balanced", 2)
    went_on = command(*args, "--epochs", 4, "--out", halves, "--resume")
    assert went_on.exit_code == 0, went_on.output
    assert contents(whole) == contents(halves)
    run = runs.load(whole)
    given = run._replace(settings=run.settings._replace(class_weight=(1.0, 2.0)))
    given.save(tmp_path / "given")
    assert runs.load(tmp_path / "given").settings == given.settings
    run._replace(weights=(1.0, -1.0)).save(tmp_path / "given")
    with pytest.raises(checkpoint.CheckpointError, match="its sizes"):
        runs.load(tmp_path / "given")


def test_class_weights_are_for_classes(tmp_path):
    rare().write_csv(tmp_path / "a.csv")
    args = ("train", tmp_path / "a.csv", "--out", tmp_path / "run", "--class-weight")
    reason = "class weights apply to classes, and the target is values"
    one_line(command(*args, "balanced", "--target", "a"), reason)
    one_line(command(*args, "balance"), "'balance' is unknown: did you mean 'balanced'?", 2)
    with pytest.raises(DataError, match="expected 2 class weights, got 3"):
        runs.train(rare(), SETTINGS._replace(class_weight=(1.0, 1.0, 1.0)))
    with pytest.raises(ValueError, match="unknown class_weight 'even'"):
        runs.train(rare(), SETTINGS._replace(class_weight="even"))
