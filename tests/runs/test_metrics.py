"""What the commands say about a trained network: metrics, for people and for programs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import polars
import pytest
from click.testing import CliRunner
from sklearn import metrics

from fnn import cli, runs
from fnn.runs import files, training
from fnn.runs.metrics import SHOWN, Classified, Predicted

pytestmark = pytest.mark.usefixtures("compiled_once", "undrawn")
RNG = np.random.default_rng(0)


def command(*args):
    return CliRunner().invoke(cli.fnn, [str(a) for a in args])


def softmax(logits):
    p = np.exp(logits.astype(np.float32))
    return p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize("k", [2, 5])
def test_classes_are_measured_as_scikit_learn_does(k):
    labels, p = RNG.integers(0, k, 200), softmax(RNG.normal(size=(200, k)))
    p[np.arange(200), labels] += 0.3
    p /= p.sum(-1, keepdims=True)
    names = tuple("abcde"[:k])
    found, guesses = Classified.of(names, labels, p).numbers(), p.argmax(-1)
    assert found["accuracy"] == metrics.accuracy_score(labels, guesses)
    assert found["largest_class"] == np.bincount(labels).max() / 200
    assert found["balanced_accuracy"] == pytest.approx(
        metrics.balanced_accuracy_score(labels, guesses)
    )
    assert found["log_loss"] == pytest.approx(metrics.log_loss(labels, p), rel=1e-5)
    recall = metrics.recall_score(labels, guesses, average=None)
    precision = metrics.precision_score(labels, guesses, average=None)
    each = [found["classes"][name] for name in names]
    assert [c["recall"] for c in each] == pytest.approx(list(recall))
    assert [c["precision"] for c in each] == pytest.approx(list(precision))
    if k == 2:
        assert found["roc_auc"] == pytest.approx(metrics.roc_auc_score(labels, p[:, 1]))
    else:
        assert "roc_auc" not in found


def test_what_is_not_defined_is_null():
    """One class only, another never predicted, a probability of 0: no warning, and valid JSON."""
    one_class = Classified.of(("a", "b"), np.array([0, 0]), np.array([[1.0, 0], [1, 0]]))
    found = json.loads(json.dumps(one_class.numbers(), allow_nan=False))
    assert found["roc_auc"] is None
    assert found["classes"]["b"] == {"examples": 0, "precision": None, "recall": None}
    assert found["balanced_accuracy"] == 1
    assert "nan" not in " ".join(one_class.lines()) + one_class.per_class()
    wrong = Classified.of(("a", "b"), np.array([0, 1]), np.array([[0.0, 1], [1, 0]]))
    assert np.isfinite(wrong.log_loss)
    same = Predicted.of(("v",), np.ones((1, 1)), np.ones((1, 1)), np.zeros(1)).numbers()
    assert json.loads(json.dumps(same, allow_nan=False))["r2"] is None


@pytest.mark.parametrize("unit", [1e-200, 1.0, 1e200])
def test_values_of_any_size_are_measured_as_scikit_learn_does(unit):
    y = RNG.normal(size=(50, 2)) * [1, 1000] + [5, 0]
    guess = y + RNG.normal(size=(50, 2))
    found = Predicted.of(("a", "b"), y * unit, guess * unit, np.array([4.0, 1]) * unit)
    for ours, theirs in (
        (found.rmse / unit, metrics.root_mean_squared_error),
        (found.mae / unit, metrics.mean_absolute_error),
        (found.r2, metrics.r2_score),
    ):
        np.testing.assert_allclose(ours, theirs(y, guess, multioutput="raw_values"))
    always = np.broadcast_to([4.0, 1], y.shape)
    expected = metrics.mean_absolute_error(y, always, multioutput="raw_values")
    np.testing.assert_allclose(found.mae_of_mean / unit, expected)


def test_a_class_that_is_hardly_ever_found_is_said():
    labels = np.repeat([0, 1], [90, 11])
    for found, warned in ((1, True), (2, False)):
        guesses = np.where(np.arange(101) >= 101 - found, 1, 0)
        measured = Classified.of(("no", "yes"), labels, np.eye(2)[guesses])
        assert (measured.warning() is not None) == warned
    never = Classified.of(tuple("abcdef"), np.arange(6), np.eye(6)[[0] * 6]).warning()
    assert never.endswith("class 'd', 0 of its 1 examples; and 2 more classes")


@pytest.mark.parametrize(("found", "warned"), [(1, True), (2, False), (3, False)])
def test_the_warning_begins_below_a_tenth_of_a_class(found, warned):
    """Exactly a tenth, 2 of 20, is worth no warning."""
    labels = np.repeat([0, 1], [30, 20])
    guesses = np.where(np.arange(50) >= 50 - found, 1, 0)
    measured = Classified.of(("no", "yes"), labels, np.eye(2)[guesses])
    assert (measured.warning() is not None) == warned


def test_an_absent_class_is_no_row_of_zeros_and_costs_no_warning():
    found = Classified.of(tuple("abc"), np.array([0, 0, 1]), np.eye(3)[[0, 1, 1]])
    assert found.per_class().splitlines() == [
        "class  examples  precision  recall",
        "    a         2     1.0000  0.5000",
        "    b         1     0.5000  1.0000",
        "    c         0          -       -",
    ]
    assert found.warning() is None
    assert found.balanced_accuracy == 0.75


@pytest.mark.parametrize("k", [SHOWN, SHOWN + 1])
def test_of_more_classes_than_are_shown_absent_ones_come_last(k):
    """Every class but the first is absent or found: an absent one is not the worst found."""
    labels = np.arange(1, k)  # the first class is absent
    guesses = labels.copy()
    guesses[-1] = 1  # the last is never found
    found = Classified.of(tuple(f"c{i}" for i in range(k)), labels, np.eye(k)[guesses])
    _, *rows = found.per_class().splitlines()
    names = [row.split()[0] for row in rows[:SHOWN]]
    if k == SHOWN:
        assert names == [f"c{i}" for i in range(k)]
        assert len(rows) == SHOWN
    else:
        assert names == [f"c{k - 1}", *(f"c{i}" for i in range(1, k - 1))]
        assert rows[SHOWN:] == [f"the {SHOWN} of {k} classes with the lowest recall"]


def test_of_many_classes_the_worst_found_are_shown():
    k = SHOWN + 5
    guesses = np.arange(k)
    guesses[-1] = 0  # the last class is the one that is not found
    rows = Classified.of(tuple(f"c{i}" for i in range(k)), np.arange(k), np.eye(k)[guesses])
    lines = rows.per_class().splitlines()
    assert len(lines) == 1 + SHOWN + 1
    assert lines[1].split()[0] == f"c{k - 1}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a table of two classes, one rare and without a pattern, and a run on it."""
    folder = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 3))
    rows = [f"{a},{b},{c},{'yes' if i % 10 == 0 else 'no'}" for i, (a, b, c) in enumerate(x)]
    (folder / "rare.csv").write_text("\n".join(["a,b,c,bought", *rows]) + "\n")
    args = ("--epochs", 9, "--learning-rate", 0.01, "--hidden", 4, "--members", 1)
    result = command("train", folder / "rare.csv", *args, "--out", folder / "run")
    assert result.exit_code == 0, result.output
    return folder, result


def test_train_and_evaluate_say_the_same_and_warn(trained):
    folder, trained_result = trained
    result = command("evaluate", folder / "run", folder / "rare.csv")
    assert result.exit_code == 0, result.output
    said = [line for line in trained_result.stdout.splitlines() if line.startswith("test ")][:-1]
    assert {line.removeprefix("test ") for line in said} <= set(result.stdout.splitlines())
    assert "(the largest class alone: 0.9000)" in said[0]
    assert [line.split()[1] for line in said] == ["accuracy", "balanced", "log", "ROC"]
    for said_by in (result, trained_result):
        assert "Warning: hardly ever found: class 'yes', 0 of its 8 examples" in said_by.stderr


def test_evaluate_prints_one_json_object(trained):
    folder, _ = trained
    result = command("evaluate", folder / "run", folder / "rare.csv", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["examples"] == 80
    assert found["measured_on"] == "the held-out 80 examples"
    assert found["confusion"] == [[72, 0], [8, 0]]
    assert found["accuracy"] == found["largest_class"] == 0.9
    assert found["balanced_accuracy"] == 0.5
    assert 0 < found["roc_auc"] < 1


def test_predictions_as_parquet_are_those_of_csv(trained):
    folder, _ = trained
    printed = command("predict", folder / "run", folder / "rare.csv").stdout
    table = folder / "predicted.PARQUET"
    assert command("predict", folder / "run", folder / "rare.csv", "--out", table).exit_code == 0
    frame = polars.read_parquet(table)
    assert frame.columns == ["class", "probability no", "probability yes"]
    assert frame.equals(polars.read_csv(printed.encode(), schema=frame.schema))


@pytest.mark.usefixtures("drawn")
def test_explain_ranks_the_columns_and_draws_them(tmp_path):
    """The class is the sign of b; a is noise, and c hardly matters."""
    x = np.random.default_rng(2).normal(size=(200, 3))
    labels = np.where(x[:, 1] + 0.2 * x[:, 2] > 0, "up", "down")
    rows = [",".join(map(str, [*row, label])) for row, label in zip(x, labels, strict=True)]
    (tmp_path / "signs.csv").write_text("\n".join(["a,b,c,sign", *rows]) + "\n")
    run, source = tmp_path / "run", tmp_path / "signs.csv"
    args = ("--epochs", 20, "--hidden", "", "--learning-rate", 0.05, "--optimizer", "adam")
    args += ("--members", 1)
    assert command("train", source, *args, "--out", run).exit_code == 0
    result = command("explain", run, source)
    assert result.exit_code == 0, result.output
    assert (run / "importance.png").read_bytes().startswith(b"\x89PNG")
    lines = [line.split() for line in result.stdout.splitlines()]
    table = lines[lines.index(["column", "log", "loss", "accuracy"]) + 1 :][:3]
    assert [row[0] for row in table] == ["b", "c", "a"]
    # Half of the shuffled examples get the other sign, which costs half of them.
    assert 0.3 < float(table[0][4]) < 0.6
    assert abs(float(table[2][4])) < 0.1
    again = command("explain", run, source, "--out", tmp_path / "other.png").stdout
    assert again.splitlines()[:-1] == result.stdout.splitlines()[:-1]
    result = command("explain", run, "wine")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


def test_the_weight_decay_is_that_of_an_epoch(tmp_path):
    """Without a gradient, an epoch takes its share of each parameter, whatever its steps."""
    settings = runs.Settings((), "relu", "adamw", 0.1, 32, 5, seed=0, weight_decay=0.25, members=1)
    run, _ = training.prepare("iris", settings)
    assert run.learned == 120
    files.save(tmp_path, run)
    for batch_size, steps in ((32, 4), (120, 1)):
        read = files.load(tmp_path)
        read = read._replace(settings=settings._replace(batch_size=batch_size))
        state = read.progress.state
        for _ in range(steps):
            state = read.optimizer.update(state, jax.tree.map(jnp.zeros_like, state.params))
        before, after = read.progress.state.params[0]["W"], state.params[0]["W"]
        np.testing.assert_allclose(after, before * (1 - 0.25 / steps) ** steps, rtol=1e-5)
    result = command("train", "iris", "--optimizer", "sgd", "--weight-decay", 0.1)
    assert result.exit_code == 2
    assert "--weight-decay applies only to --optimizer adamw, not to sgd" in result.stderr
