"""`fnn verify`: all that the library ships, and what a user's module names."""

import subprocess
import sys

import pytest
from cases import LAYERS, LOSSES, OPTIMIZERS, TREE_LOSSES
from click.testing import CliRunner

import fnn
from fnn import catalog, cli
from fnn.verify import cases

MODULE = """
import jax.numpy as jnp
import numpy as np
import fnn

cube = fnn.elementwise(lambda x: x**3, lambda x, y: 3 * x**2)
wrong = fnn.elementwise(lambda x: x**3, lambda x, y: 2 * x**2)
cube_inputs = wrong_inputs = ((), np.linspace(0.1, 1, 6).reshape(2, 3))
half = fnn.Loss(lambda p, t: fnn.mse.value(p, t) / 2, lambda p, t: fnn.mse.gradient(p, t) / 2)
def half_inputs():
    return np.ones((2, 3)), np.zeros((2, 3))
slow = lambda rate: fnn.sgd(lambda step: rate(step) / 2)
slow_inputs = (lambda rate, t, theta, g, slots: (theta - rate / 2 * g, ()), {"w": jnp.ones(3)})
number = 3
number_inputs = ()
"""


TABLES = ("COMBINATORS", "ACTIVATIONS", "LAYERS", "LOSSES", "OPTIMIZERS", "WRAPPERS")


def run(*args):
    return CliRunner().invoke(cli.fnn, ["verify", *args])


def test_everything_is_listed():
    """Every name of the catalogue has a case, and `fnn verify` takes all cases."""
    names = {name for table in TABLES for name in getattr(catalog, table)}
    checked = {name for table in TABLES for name in getattr(cases, table)}
    assert names - {*cases.UNCHECKED} <= checked
    assert checked <= {
        case.name.split("/")[0] for case in LAYERS + LOSSES + TREE_LOSSES + OPTIMIZERS
    }


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "theirs", raising=False)


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("cube", 0, "check_layer: pass"),
        ("wrong", 1, "check_layer: fail"),
        ("half", 0, "check_loss: pass"),
        ("slow", 0, "check_optimizer: pass"),
        ("number", 2, "expected a Layer"),
        ("absent", 2, "theirs has no absent"),
        ("fnn", 2, "theirs has no fnn_inputs"),
        ("", 2, "expected package.module:name"),
    ],
)
def test_what_a_user_names(module, name, code, words):
    result = run(f"theirs:{name}")
    assert result.exit_code == code, result.output
    assert words in result.output


def test_a_module_that_is_not_there(module):
    result = run("nowhere:name")
    assert result.exit_code == 2
    assert "nowhere" in result.output


def test_what_is_shipped(monkeypatch):
    few = {"dense": cases.LAYERS["dense"]}
    monkeypatch.setattr(cases, "LAYERS", few)
    monkeypatch.setattr(cases, "ACTIVATIONS", {"relu": cases.ACTIVATIONS["relu"]})
    monkeypatch.setattr(cases, "LOSSES", {"mse": cases.LOSSES["mse"]})
    monkeypatch.setattr(cases, "OPTIMIZERS", {"sgd": cases.OPTIMIZERS["sgd"]})
    monkeypatch.setattr(cases, "WRAPPERS", {})
    result = run()
    assert result.exit_code == 0, result.output
    assert "4 of 4 pass" in result.output
    few["dense"] = (fnn.elementwise(lambda x: x * x, lambda x, y: x), few["dense"][1])
    result = run()
    assert result.exit_code == 1
    assert "3 of 4 pass" in result.output
    assert "0.5 times the reference" in result.output


def test_the_shell_gets_the_exit_code(module):
    done = subprocess.run([sys.executable, "-m", "fnn", "verify", "theirs:wrong"], check=False)
    assert done.returncode == 1
