"""Bins: an encoding with a derivative, that stands aside where a linear model is better."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import runs
from fnn.runs import files
from fnn.runs._bins import Bins

SETTINGS = runs.Settings((8,), "tanh", "adam", 0.01, 32, 2, seed=1, members=2)


@pytest.mark.long
def test_a_number_beside_its_place_in_each_bin():
    x = np.stack([np.linspace(0, 4, 21), np.arange(21) % 2], 1).astype(np.float32)
    bins = Bins.of(x, 4)
    assert bins.columns == (0,)
    np.testing.assert_allclose(bins.edges, [[0, 1, 2, 3, 4]], atol=1e-6)
    y = bins.layer.forward((), jnp.array([[2.5, 1.0], [-9.0, 0.0]]))[0]
    expected = [[2.5, 1, 0.5, 0.5, 0, -0.5], [-9, 0, -0.5, -0.5, -0.5, -0.5]]
    np.testing.assert_allclose(y, expected, atol=1e-6)
    network = fnn.serial(fnn.dense(2, 2), bins.layer, fnn.dense(6, 1))
    params = network.init(jax.random.key(0))
    report = fnn.verify.check_layer(network, params, jax.random.normal(jax.random.key(1), (9, 2)))
    assert report.verdict == "pass"


def test_equal_quantiles_are_spread():
    x = np.concatenate([np.zeros(80), np.arange(1, 21)])[:, None].astype(np.float32)
    bins = Bins.of(x, 5)
    assert (np.diff(bins.edges) > 0).all()


def test_bins_are_used_where_they_help(tmp_path):
    x = np.random.default_rng(0).uniform(-3, 3, (400, 2))
    noise = np.random.default_rng(1).normal(size=400)
    for name, y in (("line", x.sum(1) + noise), ("waves", np.sin(3 * x).sum(1))):
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
        run = runs.train(tmp_path / f"{name}.npz", SETTINGS)
        assert run.settings.bins == (10 if name == "waves" else 0)
        assert run.bins.columns == ((0, 1) if name == "waves" else ())
        run.save(tmp_path)
        back = files.load(tmp_path)
        np.testing.assert_array_equal(back.predict(x), run.predict(x))
    plain = runs.train(tmp_path / "waves.npz", SETTINGS._replace(members=1))
    assert plain.settings.bins == 0
    assert runs.train(tmp_path / "waves.npz", SETTINGS._replace(members=1, bins=3)).bins.columns
