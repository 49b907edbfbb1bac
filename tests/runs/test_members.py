"""Members: folds, what trains them, and the mean of what they predict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

import fnn
from fnn import cli, runs
from fnn.cli import predict
from fnn.data import DataError, Dataset, Scaling
from fnn.runs import _members, evaluation, training

SETTINGS = runs.Settings((8,), "tanh", "adam", 0.01, 32, 4, seed=1, members=3)


@pytest.mark.parametrize("classifies", [True, False])
def test_an_ensemble_is_a_layer(classifies):
    network = _members.ensemble(fnn.mlp((3, 5, 4)), 3, classifies)
    params, x = network.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (6, 3))
    assert fnn.verify.check_layer(network, params, x).verdict == "pass"
    one = lambda i: fnn.mlp((3, 5, 4)).forward(jax.tree.map(lambda a: a[i], params), x)[0]
    finish = jax.nn.softmax if classifies else lambda z: z
    mean = sum(finish(one(i)) for i in range(3)) / 3
    np.testing.assert_allclose(finish(network.forward(params, x)[0]), mean, atol=1e-6)


def test_a_member_never_learns_from_its_fold():
    layer, loss = fnn.dense(2, 1), fnn.mse
    params = _members.ensemble(layer, 2, False).init(jax.random.key(0))
    x, y = jnp.arange(8.0).reshape(4, 2), jnp.ones((4, 1))
    fold = jnp.array([0, 1, 1, 0])
    _, grads = _members.gradient(layer, loss)(params, (x, (y, fold)), jax.random.key(1))
    for i in range(2):
        kept = np.flatnonzero(fold != i)
        own = jax.tree.map(lambda a, i=i: a[i], params)
        expected = fnn.value_and_grad(layer, loss)(own, x[kept], y[kept])[1]
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b), grads, expected)


@pytest.mark.parametrize("rule", [fnn.adamw, fnn.muon])
def test_each_copy_is_updated_as_if_alone(rule):
    rule = rule(0.1)
    params = {"W": jax.random.normal(jax.random.key(0), (3, 4, 2))}
    both, one = _members.each(rule), {"W": params["W"][1]}
    state, alone = both.update(both.init(params), params), rule.update(rule.init(one), one)
    np.testing.assert_allclose(state.params["W"][1], alone.params["W"], rtol=1e-5)
    assert int(state.step) == 1


def dataset(n, **fields):
    return Dataset("a", np.ones((n, 1)), np.zeros((n, 1)), ())._replace(**fields)


def test_folds_have_the_same_shares_of_each_class():
    y = np.repeat([0, 1, 2], [40, 16, 8]).astype(np.int32)
    found = _members.folds(dataset(64, y=y, classes=("a", "b", "c")), 8, 0)
    counts = np.array([np.bincount(y[found == i], minlength=3) for i in range(8)])
    np.testing.assert_array_equal(counts, [[5, 2, 1]] * 8)
    places = _members.places(found, 8)
    assert sorted(places.ravel()) == list(range(64))


def test_folds_keep_groups_whole_and_times_together():
    groups = np.repeat(np.arange(9), 5)
    found = _members.folds(dataset(45, groups=groups), 4, 0)
    assert all(len(set(found[groups == g])) == 1 for g in range(9))
    assert set(found) == {0, 1, 2, 3}
    times = np.random.default_rng(0).permutation(np.repeat(np.arange(20.0), 2))
    found = _members.folds(dataset(40, times=times), 4, 0)
    np.testing.assert_array_equal(found, times // 5)
    with pytest.raises(DataError, match="2 groups to train on: 3 members need 3"):
        _members.folds(dataset(10, groups=np.arange(10) % 2), 3, 0)


def test_each_member_keeps_its_own_best_epoch():
    """And the ensemble predicts the mean of their probabilities."""
    settings = SETTINGS._replace(learning_rate=0.3, epochs=8)
    run, examples = training.prepare("iris", settings)
    fold, states, losses = examples.folds, [], []
    x, y = run.standardised(examples.train)

    def note(newest):
        params = newest.progress.state.params
        states.append(params)
        of = lambda i: jax.tree.map(lambda a: a[i], params)
        one = lambda i: run.loss.value(
            run.member.forward(of(i), x[fold == i])[0], y[fold == i]
        ).mean()
        losses.append([float(one(i)) for i in range(3)])

    run = training.advance(run, examples, note)
    best = np.argmin(losses, 0)
    assert len(set(best)) > 1
    for i, epoch in enumerate(best):
        kept, expected = run.progress.best.params, states[epoch]
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b[i]), kept, expected)
    mean = np.mean(losses, 1)
    np.testing.assert_allclose([e["validation_loss"] for e in run.progress.history], mean, 1e-5)


def test_too_many_members_for_the_examples():
    with pytest.raises(DataError, match="120 examples to train on: 200 members need 200"):
        runs.train("iris", SETTINGS._replace(members=200, batch_size=None))


@pytest.mark.parametrize(("n", "expected"), [(19, [18, 36]), (9, [9, 18]), (8, [])])
def test_a_margin_is_the_smallest_error_with_enough_below_it(n, expected):
    """The ceil(0.9 (n + 1))-th; of 8 errors there would have to be a 9th."""
    errors = np.random.default_rng(0).permutation(np.arange(1.0, n + 1))
    np.testing.assert_array_equal(_members.margins(np.stack([errors, 2 * errors], 1)), expected)


def test_intervals_are_by_members_that_have_not_seen_the_values(tmp_path):
    """Here written out, example by example, in the values' units."""
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 2))
    y = 100 * x[:, :1] + 5 * random.normal(size=(60, 1))
    settings = SETTINGS._replace(epochs=3)
    run, examples = training.begin(Dataset("a", x, y, ()), None, settings)
    run = training.advance(run, examples)
    errors = []
    for i in range(60):
        inputs, _ = run.standardised(examples.train)
        own = jax.tree.map(lambda a, i=i: a[examples.folds[i]], run.progress.best.params)
        z = run.outputs.undo(np.asarray(run.member.forward(own, inputs[i : i + 1])[0]))
        errors.append(abs(z[0, 0] - y[i, 0]))
    np.testing.assert_allclose(run.margins, np.sort(errors)[54], rtol=1e-5)  # 0.9 * 61 = 54.9
    run.save(tmp_path)
    loaded = runs.load(tmp_path)
    assert loaded.margins == run.margins
    far = np.where(np.arange(20) < 5, 1e4, 0.0)[:, None]
    later = Dataset("b", x[:20], run.predict(x[:20]) + far, ())
    found = evaluation.evaluate(loaded, later)
    assert found.covered == 0.75
    assert found.lines()[-1] == "value: 75.0% of the values are within their 90% intervals"


def test_the_ends_of_intervals_are_columns_of_the_predictions(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("a,price\n" + "".join(f"{i}.5,{3 * i}.25\n" for i in range(40)))
    run = runs.train(str(table), SETTINGS)
    run.save(tmp_path)
    found = CliRunner().invoke(cli.fnn, ["predict", str(tmp_path), str(table)])
    first, *rows = (line.split(",") for line in found.stdout.splitlines())
    assert first == ["price", "price lower", "price upper"]
    middle, lower, upper = np.array(rows, float).T
    np.testing.assert_allclose(middle - lower, run.margins[0], rtol=1e-6)
    np.testing.assert_allclose(upper - middle, run.margins[0], rtol=1e-6)
    both = run._replace(targets=("price", "price lower"), outputs=None, margins=(1.0, 2.0))
    frame = predict._frame(both._replace(outputs=Scaling(np.zeros(2), np.ones(2))), np.eye(2))
    assert frame["price lower"].to_list() == [0, 1]  # what is predicted, not the end of an interval
    assert frame["price lower upper"].to_list() == [2, 3]
    alone = runs.train(str(table), SETTINGS._replace(members=1))
    assert alone.margins == ()
    alone.save(tmp_path)
    found = CliRunner().invoke(cli.fnn, ["predict", str(tmp_path), str(table)])
    assert found.stdout.splitlines()[0] == "price"
