"""Exported networks: written here, called by a program that has no fnn."""

import csv
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

import fnn
from fnn import cli, export, runs
from fnn.cli.export import program
from fnn.data._features import _place
from fnn.runs import files, training

pytestmark = pytest.mark.usefixtures("compiled_once")

KEYS = jax.random.split(jax.random.key(3), 3)
PROGRAM = """
import sys
sys.modules["fnn"] = None  # import fnn raises ImportError
import numpy as np
x = np.load(sys.argv[2])

import jax
network = jax.export.deserialize(open(sys.argv[1], "rb").read())
y = network.call(x)

np.save(sys.argv[3], y)
assert not [name for name in sys.modules if name.startswith("fnn.")]
"""


def called_without_fnn(folder, path, x):
    np.save(folder / "x.npy", x)
    command = [sys.executable, "-c", PROGRAM, path, folder / "x.npy", folder / "y.npy"]
    subprocess.run(command, check=True)
    return np.load(folder / "y.npy")


def run(*args):
    return CliRunner().invoke(cli.fnn, [str(a) for a in args])


def predictions(folder, source):
    out = folder / "predictions.csv"
    assert run("predict", folder, source, "--out", out).exit_code == 0
    with open(out) as file:
        _, *rows = csv.reader(file)
    return rows


@pytest.mark.long
def test_a_run_predicts_the_same_without_fnn(tmp_path):
    options = ("--epochs", 6, "--patience", 1, "--learning-rate", 0.1, "--members", 3)
    run("train", "iris", *options, "--out", tmp_path)
    trained = files.load(tmp_path)
    leaves = map(jax.tree.leaves, (trained.progress.best, trained.progress.state))
    assert not all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))
    result = run("export", tmp_path, tmp_path / "network.bin")
    assert result.exit_code == 0, result.output
    assert "takes     (n, 4) float32\n          x[:, 0] is sepal length (cm)\n" in result.stdout
    assert "returns   (n, 3) float32: setosa, versicolor, virginica" in result.stdout
    x = fnn.data.load("iris").x.astype(np.float32)
    y = called_without_fnn(tmp_path, tmp_path / "network.bin", x)
    rows = predictions(tmp_path, "iris")
    np.testing.assert_allclose(y, [list(map(float, row[1:])) for row in rows], atol=1e-5)
    names = np.array(["setosa", "versicolor", "virginica"])
    assert (names[y.argmax(-1)] == [row[0] for row in rows]).mean() > 0.99


def prepared(source, network="mlp"):
    """A run of no epochs yet."""
    settings = runs.Settings((8,), "tanh", "sgd", 0.1, 32, 1, seed=0, network=network, members=1)
    return training.prepare(source, settings)[0]


def test_values_have_their_units_and_columns_far_from_zero_their_digits(tmp_path):
    rng = np.random.default_rng(0)
    x = np.column_stack([2e6 + rng.integers(-80, 80, 64) / 8, rng.normal(1e-9, 3e-9, 64)])
    np.savez(tmp_path / "data.npz", x=x, y=1000 + 50 * (x[:, 0] - 2e6))
    trained = prepared(tmp_path / "data.npz")
    y = program(trained)(x.astype(np.float32))
    np.testing.assert_allclose(y, trained.predict(x), rtol=2e-5)


def test_images_are_columns_of_pixels():
    trained, x = prepared("digits", "cnn"), fnn.data.load("digits").x[:40]
    call = jax.export.deserialize(export.lowered(program(trained), x[:1].astype(np.float32))).call
    np.testing.assert_allclose(call(x.astype(np.float32)), trained.predict(x), atol=1e-5)


def test_texts_dates_and_blanks_are_encoded_in_the_program(tmp_path):
    rng = np.random.default_rng(0)
    days = np.arange("1999-12-20", "2005-03-03", 37, dtype="datetime64[D]")
    rows = [
        f"{rng.choice(['', 1.5, 2, 7])},{rng.choice(['cat', 'dog', ''])},{day},"
        f"{rng.integers(24):02}:30,{rng.normal()}"
        for day in days
    ]
    source = tmp_path / "pets.csv"
    source.write_text("\n".join(["age,pet,day,time,y", *rows]))
    trained = prepared(source)
    cycles = [feature.cycles for feature in trained.inputs.used]
    assert cycles == [(), (), ("year", "week"), ("day",)]
    x = np.concatenate([part.x for part in trained.parts(source)])
    x[3, 0] = 5e4  # an error of entry
    y = program(trained)(x.astype(np.float32))
    np.testing.assert_allclose(y, trained.predict(x), rtol=1e-5, atol=1e-5)
    infinite = np.where(np.arange(x.size).reshape(x.shape) == 0, np.inf, x)
    assert np.isnan(program(trained)(infinite.astype(np.float32))[0]).all()

    files.save(tmp_path, trained)
    said = run("export", tmp_path, tmp_path / "network.bin").stdout
    assert "x[:, 0] is age: nan for a blank" in said
    assert "x[:, 1] is pet: 0 for cat, 1 for dog, -1 for any other, nan for a blank" in said
    assert "x[:, 2] is day: in days since 1970-01-01" in said
    call = jax.export.deserialize((tmp_path / "network.bin").read_bytes()).call
    np.testing.assert_allclose(call(x.astype(np.float32)), y, rtol=1e-5)


def test_hashed_text_is_a_range_of_columns(tmp_path):
    source, rng = tmp_path / "notes.csv", np.random.default_rng(0)
    words = ["good", "bad", "soup", "tea", "cold"]
    rows = [f"{' '.join(rng.choice(words, 6))} {i},{i}.5,{i % 7}.5" for i in range(60)]
    source.write_text("\n".join(["note,size,y", *rows]))
    trained = prepared(source)
    x = np.concatenate([part.x for part in trained.parts(source)])
    y = program(trained)(x.astype(np.float32))
    np.testing.assert_allclose(y, trained.predict(x), rtol=1e-5, atol=1e-5)
    files.save(tmp_path, trained)
    said = run("export", tmp_path, tmp_path / "network.bin").stdout
    made = "HashingVectorizer(n_features=256, **{'analyzer': 'char_wb', 'ngram_range': (3, 3)})"
    assert f"x[:, 0:256] is note: what scikit-learn's {made} makes of the text" in said
    assert "x[:, 256] is size\n" in said


def test_places_in_the_year_are_the_calendars():
    days = np.arange(-200_000, 200_000, 7)
    dates = days.astype("datetime64[D]")
    expected = (dates - dates.astype("datetime64[Y]")).astype(float) / 366
    np.testing.assert_allclose(_place(jnp.float32(days), "year", jnp), expected, atol=1e-6)


def test_columns_that_float32_cannot_hold_are_refused(tmp_path):
    x = np.random.default_rng(0).normal(size=(64, 2)) * [1, 1e-60]
    np.savez(tmp_path / "data.npz", x=x, y=x[:, 0])
    files.save(tmp_path, prepared(tmp_path / "data.npz"))
    result = run("export", tmp_path, tmp_path / "network.bin")
    assert result.exit_code == 1
    assert "float32 can't hold the mean or the scale of input 2, " in result.stderr
    assert not (tmp_path / "network.bin").exists()
    hours = np.arange("2024-01-01T00:30", "2024-01-09T00:30", 180, dtype="datetime64[m]")
    (tmp_path / "a.csv").write_text(
        "\n".join(["when,y", *(f"{t},{i}" for i, t in enumerate(hours))])
    )
    with pytest.raises(ValueError, match="'when' has dates with a time of day"):
        program(prepared(tmp_path / "a.csv"))


def test_networks_that_vary_are_written_as_they_evaluate(tmp_path):
    network = fnn.serial(
        fnn.conv2d(1, 4), fnn.batch_norm(4), fnn.relu, fnn.max_pool((2, 2)), fnn.flatten(3),
        fnn.dropout(0.5), fnn.repeat(fnn.skip(fnn.dense(36, 36)), 2), fnn.dense(36, 3),
    )  # fmt: skip
    params, x = network.init(KEYS[0]), jax.random.normal(KEYS[1], (5, 6, 6, 1))
    path = tmp_path / "network.bin"
    with pytest.raises(ValueError, match=r"with its statistics, fnn\.at\(network, statistics="):
        export.save(network, params, x, path)
    evaluated = fnn.at(network, statistics=fnn.statistics(network, params, x))
    export.save(evaluated, params, jax.ShapeDtypeStruct((1, 6, 6, 1), jnp.float32), path)
    call = jax.export.deserialize(path.read_bytes()).call
    for n in (1, 5):
        np.testing.assert_allclose(call(x[:n]), evaluated.forward(params, x[:n])[0], rtol=1e-5)
    with pytest.raises(ValueError, match="Shape mismatch"):
        call(x[:, :5])
    export.save(fnn.dropout(0.5), (), x, path)
    np.testing.assert_array_equal(jax.export.deserialize(path.read_bytes()).call(x), x)


def test_functions_of_others_and_trees_are_written_too(tmp_path):
    layer = fnn.serial(
        fnn.fork(fnn.from_function(lambda key: jnp.ones(3), lambda w, x: w * x["a"]),
                 fnn.from_function(lambda key: (), lambda _, x: x["b"].astype(jnp.float32))),
        fnn.concatenate,
    )  # fmt: skip
    x = {"a": jnp.ones((2, 3)), "b": jnp.arange(4).reshape(2, 2)}
    params = layer.init(KEYS[0])
    export.save(layer, params, x, tmp_path / "n.bin")
    call = jax.export.deserialize((tmp_path / "n.bin").read_bytes()).call
    np.testing.assert_array_equal(call(x), layer.forward(params, x)[0])
    with pytest.raises(ValueError, match="got a scalar"):
        export.save(fnn.tanh, (), jnp.ones(()), tmp_path / "n.bin")
    with pytest.raises(TypeError, match="save: expected a Layer"):
        export.save(jnp.tanh, (), x, tmp_path / "n.bin")
    with pytest.raises(OSError, match="no-such-folder"):
        export.save(fnn.tanh, (), x["a"], tmp_path / "no-such-folder" / "n.bin")


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ModuleNotFoundError, match=r"flatbuffers is missing: .*'fnn\[export\]'"):
        export.lowered(lambda x: x, jnp.ones((1, 1)))


@pytest.mark.long
def test_networks_become_onnx_by_jax2onnx(tmp_path):
    """With a free batch, where jax2onnx and onnxruntime are installed: see docs/ecosystem.md."""
    to_onnx = pytest.importorskip("jax2onnx").to_onnx
    runtime = pytest.importorskip("onnxruntime")
    images = fnn.serial(
        fnn.conv2d(1, 4), fnn.batch_norm(4), fnn.relu, fnn.max_pool((2, 2)), fnn.flatten(3),
        fnn.dense(36, 3),
    )  # fmt: skip
    deep = fnn.serial(fnn.layer_norm(4), fnn.repeat(fnn.skip(fnn.dense(4, 4)), 3), fnn.softmax)
    for network, shape in [
        *[(fnn.mlp((4, 8, 3), activation), (4,)) for activation in (fnn.relu, fnn.gelu)],
        (deep, (4,)),
        (images, (6, 6, 1)),
    ]:
        params, x = network.init(KEYS[0]), jax.random.normal(KEYS[1], (5, *shape))
        network = fnn.at(network, statistics=fnn.statistics(network, params, x))
        expected, _ = network.forward(params, x)
        to_onnx(lambda x, f=network.forward, p=params: f(p, x)[0], inputs=[("B", *shape)],
                return_mode="file", output_path=str(tmp_path / "n.onnx"))  # fmt: skip
        session = runtime.InferenceSession(tmp_path / "n.onnx")
        (y,) = session.run(None, {session.get_inputs()[0].name: np.asarray(x)})
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
