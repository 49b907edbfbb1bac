"""How the command starts: what it imports, what it lists, and how it reports faults."""

import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import click
import jax
import numpy as np
import pytest
from click.testing import CliRunner

from fnn import __version__, cli, data, runs
from fnn.checkpoint import CheckpointError
from fnn.cli import environment, fnn, signals
from fnn.cli.group import COMMANDS, DEBUG, FAULT, Group
from fnn.data import DataError, Encoding
from fnn.runs import files, training
from fnn.training.fitting import DivergedError

HEAVY = {"jax", "jaxlib", "numpy", "scipy", "sklearn", "matplotlib", "safetensors", "tqdm"}
HEAVY |= {"polars", "pandas", "pyarrow"}
IMPORTED = f"""
import atexit, sys
atexit.register(lambda: print("imported", *sorted({HEAVY} & set(sys.modules))))
from fnn.__main__ import main
main()
"""
WITHOUT = """
import sys
sys.modules[sys.argv.pop(1)] = None
from fnn.__main__ import main
main()
"""

INTERRUPTED = """
import os, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == library:
            os.kill(os.getpid(), signal.SIGINT)
library = sys.argv.pop(1)
sys.meta_path.insert(0, Interrupting())
from fnn.__main__ import main
main()
"""

JOINED = """
from jax._src import xla_bridge
from fnn.parallel import processes
def start(*where):
    raise RuntimeError(f"JAX had started: {xla_bridge.backends_are_initialized()}")
processes.start = start
from fnn.__main__ import main
main()
"""


def python(program, *args):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, args)], capture_output=True, text=True
    )


def imported(*args):
    done = python(IMPORTED, *args)
    return done, set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    ("word", "code", "printed"), [("--help", 0, "Usage: "), ("tran", 2, "No such command 'tran'")]
)
def test_nothing_heavy_is_imported_to_print_a_page(word, code, printed):
    done, heavy = imported(word)
    assert done.returncode == code, done.stderr
    assert printed in done.stdout + done.stderr
    assert heavy == set()


def test_the_versions_and_the_devices():
    result = CliRunner().invoke(fnn, ["--version"])
    assert result.exit_code == 0, result.output
    versions = f"fnn, version {__version__}\nJAX, version {jax.__version__}, on cpu:0"
    assert result.output.startswith(versions)


def test_processes_join_before_jax_looks_at_its_devices(tmp_path):
    """It would go on alone without a word."""
    done = python(JOINED, "train", "iris", "--device", "cpu", "--out", tmp_path)
    assert (done.returncode, done.stderr) == (1, "Error: JAX had started: False\n")


def test_predict_imports_no_plots(tmp_path):
    run, _ = training.prepare("iris", runs.Settings((), "relu", "sgd", 0.1, 32, 1, members=1))
    files.save(tmp_path, run)
    done, heavy = imported("predict", tmp_path, "iris")
    assert done.returncode == 0, done.stderr
    assert "jax" in heavy
    assert heavy.isdisjoint({"matplotlib", "tqdm"})


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_of_a_command_what_the_command_says(name):
    command = fnn.get_command(None, name)
    assert command.name == name
    assert " ".join(command.help.split("\n\n")[0].split()) == COMMANDS[name]


def test_every_command_is_in_the_table():
    folder = Path(cli.__file__).parent
    modules = {path.stem for path in folder.glob("*.py") if "@click.command(" in path.read_text()}
    assert modules == set(COMMANDS)
    listed = CliRunner().invoke(fnn, ["--help"]).output.partition("Commands:")[2]
    assert [line.split()[0] for line in listed.splitlines() if line[:3].strip()] == list(COMMANDS)


@pytest.mark.parametrize(
    ("library", "args"),
    [
        ("click", ["--help"]),
        ("matplotlib", ["train", "iris"]),
        ("safetensors", ["predict", "a", "b"]),
        ("sklearn", ["describe", "iris"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_missing_library_is_one_line_with_what_installs_it(library, args):
    done = python(WITHOUT, library, *args)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == f"Error: {library} is missing: python -m pip install 'fnn[cli]'"


@pytest.mark.parametrize(
    "library",
    [
        "jax",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("click", "scipy", "matplotlib")),
    ],
)
def test_ctrl_c_while_importing_is_one_line(library, tmp_path):
    train = ["train", "iris", "--epochs", "1", "--out", tmp_path]
    done = python(INTERRUPTED, library, *train)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Aborted!\n")


def test_ctrl_c_in_a_callback_of_the_garbage_collector_is_not_lost(monkeypatch):
    """Python prints an exception that such a callback raises, and JAX has one."""

    def interrupt(phase, info):
        if phase == "start":
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signals.end_at_once()
    signals.end_by_exception()
    gc.freeze()  # as in a process of its own: a collection takes seconds after many tests
    gc.callbacks.append(interrupt)
    try:
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            gc.collect()
            gc.callbacks.remove(interrupt)
            threading.Event().wait(60)
        assert time.monotonic() - begun < 30  # it ended the wait
    finally:
        gc.unfreeze()
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("platform", ["cuda", "foo"])
@pytest.mark.parametrize("name", ["train", pytest.param("verify", marks=pytest.mark.long)])
def test_a_platform_without_a_device_is_one_line(platform, name, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    done = python(IMPORTED, name, "iris")
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: no device for JAX_PLATFORMS='{platform}': ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.long
def test_the_environment_decides_no_bit_of_a_run(tmp_path, monkeypatch):
    train = ("train", "iris", "--hidden", "4", "--epochs", "1", "--out")
    python(IMPORTED, *train, tmp_path / "a")
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    monkeypatch.setenv("JAX_DEFAULT_PRNG_IMPL", "rbg")
    monkeypatch.setenv("JAX_THREEFRY_PARTITIONABLE", "0")
    done = python(IMPORTED, *train, tmp_path / "b")
    assert done.returncode == 0, done.stderr
    first, second = ((tmp_path / run / files.FILE).read_bytes() for run in "ab")
    assert first == second


SHELL = f"{sys.executable} -m fnn "


@pytest.mark.long
@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("predict run iris >&-", 1, "Error: standard output is closed"),
        ("predict run iris >/dev/full", 1, "Error: No space left on device"),
        ("--help >/dev/full", 1, "Error: No space left on device"),
        ("predict run iris <&- >p.csv", 0, ""),
    ],
)
def test_output_that_is_lost_is_said(line, code, error, tmp_path):
    run, _ = training.prepare("iris", runs.Settings((), "relu", "sgd", 0.1, 32, 1, members=1))
    (tmp_path / "run").mkdir()
    files.save(tmp_path / "run", run)
    done = subprocess.run(SHELL + line, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (code, error)


@pytest.mark.long
def test_without_standard_error_a_run_is_whole(tmp_path):
    train = "train iris --hidden 4 --epochs 2 --save-every 0 --out run 2>&-"
    done = subprocess.run(SHELL + train, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert "test accuracy" in done.stdout
    assert len(files.load(tmp_path / "run").progress.history) == 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (jax.errors.JaxRuntimeError("out of memory\nat 0x7f"), "out of memory"),
        (DataError("expected this,\n  got that"), "expected this, got that"),
        (FileNotFoundError(2, "No such file", "a.csv"), "a.csv: No such file"),
        (CheckpointError("damaged"), "damaged"),
        (DivergedError(2, 7, np.inf, "x", None, []), "training diverged in epoch 2, step 7"),
        (MemoryError(), "out of memory"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_of_the_input_is_one_line(error, message):
    result = failing(error)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {message}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("a defect"), AssertionError(), ValueError("one"), KeyError("a")]
)
def test_any_other_error_is_a_fault_of_fnn_with_its_traceback_in_a_file(error, monkeypatch):
    result = failing(error)
    assert result.exit_code == FAULT == 70
    assert result.stderr.startswith(f"Error: a fault of fnn, {type(error).__name__}")
    assert result.stderr.count("\n") == 1
    path = Path(result.stderr.split("traceback is in ")[1].split(";")[0])
    assert "raise error" in path.read_text()
    path.unlink()
    monkeypatch.setattr(tempfile, "mkstemp", lambda *args: 1 / 0)
    result = failing(error, "--debug")
    assert result.exit_code == FAULT
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert "raise error" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: a fault of fnn, ")


def test_a_fault_is_shown_where_its_traceback_cannot_be_written(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    result = failing(ValueError("one"))
    assert result.exit_code == FAULT
    assert "raise error" in result.stderr


@pytest.mark.parametrize("error", [KeyError("validation_loss"), ValueError("zero-size array")])
@pytest.mark.parametrize("place", [(Encoding, "apply"), (training, "fit"), (data, "split")])
def test_a_bug_in_the_library_is_no_mistake_of_the_user(place, error, tmp_path, monkeypatch):
    def broken(*args, **options):
        raise error

    monkeypatch.setattr(*place, broken)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    args = ["train", "iris", "--epochs", "1", "--hidden", "2", "--members", "1"]
    args += ["--out", str(tmp_path / "run")]
    result = CliRunner().invoke(fnn, args)
    assert result.exit_code == FAULT
    assert f"Error: a fault of fnn, {type(error).__name__} ({error})" in result.stderr
    assert "in broken" in next(tmp_path.glob("fnn-fault-*.txt")).read_text()
    assert "in broken" in CliRunner().invoke(fnn, [*args, "--debug"]).stderr


def test_a_closed_pipe_is_no_fault():
    error = BrokenPipeError(32)
    assert failing(error).exception is error


def test_importing_runs_changes_no_setting_of_jax():
    program = """
import jax
before = {name: getattr(jax.config, name) for name in %r}
import fnn.runs, fnn.runs.report, fnn.runs.importance
assert before == {name: getattr(jax.config, name) for name in %r}
print(before["jax_default_prng_impl"], before["jax_enable_x64"])
""" % ((list(environment.SETTINGS),) * 2)
    settings = {"JAX_ENABLE_X64": "1", "JAX_DEFAULT_PRNG_IMPL": "rbg"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings)
    assert (done.stdout, done.stderr) == ("rbg True\n", "")


def failing(error, *args):
    """What the group makes of a command that raises this error."""

    def fail():
        raise error

    command = click.Command("fail", callback=fail, params=[DEBUG])
    return CliRunner().invoke(Group(commands={"fail": command}), ["fail", *args])
