"""How the command starts: what it imports, what it lists, and how it reports faults."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import jax
import pytest
from click.testing import CliRunner

from fnn import __version__
from fnn.cli import fnn, signals
from fnn.cli.group import COMMANDS, Group
from fnn.runs import run as runs

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
    ("word", "code", "printed"),
    [
        ("--help", 0, "Usage: "),
        ("tran", 2, "No such command 'tran'"),
    ],
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
    run, _ = runs.prepare("iris", runs.Settings((), "relu", "sgd", 0.1, 32, 1, seed=0))
    runs.save(tmp_path, run)
    done, heavy = imported("predict", tmp_path, "iris")
    assert done.returncode == 0, done.stderr
    assert "jax" in heavy
    assert heavy.isdisjoint({"matplotlib", "tqdm"})


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_of_a_command_what_the_command_says(name):
    command = fnn.commands[name]
    assert command.name == name
    assert " ".join(command.help.split("\n\n")[0].split()) == COMMANDS[name]


def test_every_command_is_in_the_table():
    folder = Path(runs.__file__).parent
    modules = {path.stem for path in folder.glob("*.py") if "@click.command(" in path.read_text()}
    assert modules == {name.replace("-", "_") for name in COMMANDS}
    listed = CliRunner().invoke(fnn, ["--help"]).output.partition("Commands:")[2]
    assert [line.split()[0] for line in listed.splitlines() if line[:3].strip()] == list(COMMANDS)


@pytest.mark.parametrize(
    ("library", "args"),
    [
        ("click", ["--help"]),
        ("matplotlib", ["train", "iris"]),
        ("safetensors", ["predict", "a", "b"]),
        ("sklearn", ["noise-scale", "iris"]),
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
    gc.callbacks.append(interrupt)
    try:
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            gc.collect()
            gc.callbacks.remove(interrupt)
            threading.Event().wait(60)
        assert time.monotonic() - begun < 30  # it ended the wait
    finally:
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
    first, second = ((tmp_path / run / runs.FILE).read_bytes() for run in "ab")
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
    run, _ = runs.prepare("iris", runs.Settings((), "relu", "sgd", 0.1, 32, 1, seed=0))
    (tmp_path / "run").mkdir()
    runs.save(tmp_path / "run", run)
    done = subprocess.run(SHELL + line, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (code, error)


@pytest.mark.long
def test_without_standard_error_a_run_is_whole(tmp_path):
    train = "train iris --hidden 4 --epochs 2 --save-every 0 --out run 2>&-"
    done = subprocess.run(SHELL + train, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert "test accuracy" in done.stdout
    assert len(runs.load(tmp_path / "run").progress.history) == 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (jax.errors.JaxRuntimeError("out of memory\nat 0x7f"), "out of memory"),
        (ValueError("expected this,\n  got that"), "expected this, got that"),
        (FileNotFoundError(2, "No such file", "a.csv"), "a.csv: No such file"),
        (FloatingPointError("diverged"), "diverged"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_of_the_input_is_one_line(error, message):
    result = failing(error)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {message}\n"


@pytest.mark.parametrize("error", [RuntimeError("a defect"), AssertionError(), BrokenPipeError(32)])
def test_a_defect_is_not_hidden(error):
    assert failing(error).exception is error


def failing(error):
    """What the group makes of a command that raises this error."""

    def fail():
        raise error

    group = Group(commands={"fail": click.Command("fail", callback=fail)})
    return CliRunner().invoke(group, ["fail"])
