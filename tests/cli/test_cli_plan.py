"""`fnn plan`: what it compiles, says and refuses; by a TPU's own compiler where installed."""

import json
import os
import subprocess
import sys
from importlib import util

import jax
import pytest
from click.testing import CliRunner

from fnn import cli, extras, targets
from fnn.runs.settings import Settings

HAS_TPU = pytest.mark.skipif(
    not targets.targets()["TPU v5e"], reason="the TPU's compiler: pip install 'fnn[tpu]'"
)


def plan(*args):
    return CliRunner().invoke(cli.fnn, ["plan", *map(str, args)])


def test_a_compiler_that_is_missing_is_answered_by_the_command(monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    result = plan("iris", "--target", "TPU v5e")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line == "Error: the compiler for TPU v5e is missing: python -m pip install 'fnn[tpu]'"


def test_a_device_that_is_not_known():
    result = plan("iris", "--target", "TPU v9")
    assert result.exit_code == 1
    assert "expected one of TPU v4" in result.stderr
    assert "Missing option '--target'" in plan("iris").stderr


@pytest.fixture
def on_a_cpu(monkeypatch):
    """The CPU in the place of the target: what compile_for gets is compiled for it."""

    def compile_for(target, f, *args):
        jax.jit(f).trace(*args)
        size = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(args[:2]))
        return targets.Report(
            target, 1, True, size, 10**6, 0, 2e9, 0.0, {}, (), {}, {}, 0.5, None, ""
        )

    monkeypatch.setattr(
        targets, "mesh", lambda target: jax.sharding.Mesh(jax.devices()[:1], "data")
    )
    monkeypatch.setattr(targets, "compile_for", compile_for)


@pytest.mark.usefixtures("on_a_cpu")
def test_what_is_modelled_is_called_modelled():
    """Iris has 120 examples for training; 19 parameters per output and slots are 4 * 3 * 15."""
    alone = ("--hidden", "", "--batch-size", 40, "--members", 1)
    result = plan("iris", "--target", "H100", *alone)
    assert result.exit_code == 0, result.output
    assert "4-3 on H100: 120 examples per epoch, in batches of 40" in result.stdout
    heading, row = [line for line in result.stdout.splitlines() if "  " in line][-2:]
    assert heading.split("  ")[-2:] == ["examples/s, modelled", "ms per epoch, modelled"]
    assert row.split() == ["replicated", "yes", "1.0", "240", "500.000"]
    assert "Nothing was run" in result.stdout
    found = json.loads(plan("iris", "--target", "H100", "--json").stdout)
    assert found["epoch"]["replicated"]["modelled_examples_per_second"] == 240
    assert found["epoch"]["replicated"]["modelled_seconds"] == 0.5
    assert [found[key] for key in ("network", "members", "examples")] == ["4-128-128-3", 8, 120]


@pytest.mark.usefixtures("on_a_cpu")
def test_a_target_column_has_an_option_of_its_own(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("kind,size\n" + "a,1.5\nb,2\na,1.25\n" * 20)
    args = (table, "--target", "H100", "--members", 1, "--json")
    assert json.loads(plan(*args, "--target-column", "kind").stdout)["network"] == "1-128-128-2"
    assert json.loads(plan(*args).stdout)["network"] == "2-128-128-1"


def test_the_options_are_those_of_train():
    told = {param.name for param in cli.fnn.get_command(None, "plan").params}
    assert set(Settings._fields) <= told


@pytest.mark.parametrize("devices", [[], ["/dev/accel0"]])
def test_only_where_there_is_no_tpu_its_package_is_kept_quiet(devices, monkeypatch):
    monkeypatch.setattr(extras.glob, "glob", lambda pattern: devices)
    monkeypatch.setattr(extras.os, "environ", {"TPU_ACCELERATOR_TYPE": "v6e-8"})
    extras.quiet_tpu()
    assert len(extras.os.environ) == (1 if devices else 4)
    assert extras.os.environ["TPU_ACCELERATOR_TYPE"] == "v6e-8"


@HAS_TPU
@pytest.mark.long
@pytest.mark.parametrize("number", [1, 4])
def test_a_plan_for_a_tpu(number):
    target = "TPU v5e" if number == 1 else "TPU v5e:2x2"
    result = plan("digits", "--target", target, "--members", 1, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["epoch"]
    assert list(found) == ["replicated", "fully sharded"][: 1 if number == 1 else 2]
    for method in found.values():
        assert method["fits"]
        assert method["devices"] == number
        rate = 1437 / method["modelled_seconds"]
        assert method["modelled_examples_per_second"] == pytest.approx(rate)
    if number > 1:
        parts = [method["argument_bytes"] for method in found.values()]
        assert parts[1] < parts[0]
        refused = plan("digits", "--target", target, "--batch-size", 30)
        assert refused.exit_code == 2
        assert "expected one that 4 devices divide" in refused.stderr


@HAS_TPU
@pytest.mark.long
@pytest.mark.parametrize("words", [["--version"], ["describe", "iris"]])
def test_the_command_prints_no_line_of_the_tpu_s_package(words):
    kept = {name: value for name, value in os.environ.items() if "TPU" not in name}
    kept.pop("JAX_PLATFORMS", None)
    command = [sys.executable, "-m", "fnn", *words]
    done = subprocess.run(command, env=kept, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "TPU" not in done.stdout
