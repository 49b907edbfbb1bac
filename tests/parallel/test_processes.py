"""The command on several devices and processes: what it learns, and how it ends."""

import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from together import free_port

from fnn import checkpoint
from fnn.cli import fnn
from fnn.runs import files

OPTIONS = ["--hidden", "8", "--batch-size", "120", "--epochs", "3"]
TRAIN = ["train", "iris", *OPTIONS]
KEPT = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def started(*words, **environment):
    command = [sys.executable, "-m", "fnn", *map(str, words)]
    return subprocess.Popen(command, env=os.environ | environment, **KEPT)


def two(*words):
    """The command as two processes over loopback."""
    where = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", 2]
    return [started(*words, *where, "--process", i) for i in range(2)]


def ended(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def here(*words):
    """The command in this process, where JAX has two CPU devices, and computes already."""
    return CliRunner().invoke(fnn, [*map(str, words)])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process on one device: with full batches no order matters."""
    out = tmp_path_factory.mktemp("alone")
    assert here(*TRAIN, "--out", out).exit_code == 0
    return files.load(out)


def check_same(run, expected):
    for ours, theirs in zip(
        jax.tree.leaves(run.progress.state), jax.tree.leaves(expected.progress.state), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert [list(entry) for entry in run.progress.history] == [
        list(entry) for entry in expected.progress.history
    ]
    assert run.digest == expected.digest


@pytest.mark.long
def test_two_processes_train_together_as_one_does_and_the_first_alone_speaks(tmp_path, alone):
    first, second = map(ended, two(*TRAIN, "--out", tmp_path))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert first[1].startswith("devices   2 in 2 processes\n")
    assert len(re.findall("^trained   3 epochs", first[1], re.M)) == 1
    assert second[1:] == ("", "")
    check_same(files.load(tmp_path), alone)
    # It goes on alone, on one device and on two.
    for done, epochs, devices in ((3, 5, 1), (5, 6, 2)):
        words = *TRAIN[:-1], epochs, "--out", tmp_path, "--resume", "--devices", devices
        assert f"resumed   after epoch {done}" in here(*words).stdout
        assert len(files.load(tmp_path).progress.history) == epochs


@pytest.mark.long
def test_of_two_npy_files_each_process_reads_its_share(tmp_path):
    """Images of whole numbers, and 107 examples to train on, which two devices don't divide."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.integers(0, 99, (134, 2, 3)))
    np.save(tmp_path / "y.npy", rng.normal(size=(134, 2)))
    train = ["train", tmp_path / "x.npy", tmp_path / "y.npy", *OPTIONS]
    train[train.index("120")] = 107
    assert here(*train, "--out", tmp_path / "alone").exit_code == 0
    both = [ended(process) for process in two(*train, "--out", tmp_path / "two")]
    assert [code for code, *_ in both] == [0, 0], both
    check_same(files.load(tmp_path / "two"), files.load(tmp_path / "alone"))


@pytest.mark.long
def test_devices_of_this_machine(tmp_path, alone):
    words = [*TRAIN, "--out", tmp_path, "--devices"]
    result = here(*words, 3)
    assert result.exit_code == 2
    assert "--devices 3: there are 2" in result.stderr
    assert not list(tmp_path.iterdir())
    result = here(*words, 2)
    assert result.stdout.startswith("devices   2\n")
    check_same(files.load(tmp_path), alone)


@pytest.mark.long
def test_a_processor_becomes_as_many_devices_as_asked(tmp_path, alone):
    code, said, errors = ended(started(*TRAIN, "--out", tmp_path, "--devices", 4))
    assert code == 0, errors
    assert said.startswith("devices   4\n")
    check_same(files.load(tmp_path), alone)


@pytest.mark.long
def test_a_cluster_that_jax_knows_needs_no_options(tmp_path, alone):
    """As SLURM's srun starts them; the port of the coordinator follows from the job's number."""
    job = {
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
    }
    places = [{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    both = [started(*TRAIN, "--out", tmp_path, **job, **place) for place in places]
    first, second = map(ended, both)
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert second[1:] == ("", "")
    check_same(files.load(tmp_path), alone)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--process", "1"], "go together"),
        (["--coordinator", "localhost:1"], "go together"),
        (["--coordinator", "a:1", "--processes", "2", "--process", "2"], "from 0 to 1, got 2"),
        (
            ["--devices", "2", "--coordinator", "a:1", "--processes", "2", "--process", "0"],
            "--devices counts",
        ),
    ],
)
def test_options_that_contradict_one_another_are_refused(tmp_path, words, said):
    result = here(*TRAIN, "--out", tmp_path / "run", *words)
    assert result.exit_code in (1, 2)
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()[-1:]) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_when_a_process_dies_the_other_ends_with_one_line(tmp_path, killed, how):
    both = two(*TRAIN[:-1], 10**6, "--save-every", "0", "--out", tmp_path)
    try:
        end = time.monotonic() + 120
        while files.version(tmp_path) is None and time.monotonic() < end:
            time.sleep(0.2)
        both[killed].send_signal(how)
        out, errors = both[1 - killed].communicate(timeout=60)
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert both[1 - killed].returncode == 1
    assert errors.splitlines() == [
        "Error: another process of this run has ended, or can't be reached"
    ]
    assert bool(out) == (killed == 1)
    epochs = len(files.load(tmp_path).progress.history)
    assert epochs >= 1
    resumed = started(*TRAIN[:-1], epochs + 2, "--out", tmp_path, "--resume", "--devices", 2)
    assert ended(resumed)[0] == 0
    assert len(checkpoint.read_metadata(tmp_path / files.FILE)["history"]) == epochs + 2


@pytest.mark.long
@pytest.mark.parametrize("interrupted", [0, 1])
def test_ctrl_c_in_one_process_ends_all_after_the_same_epoch(tmp_path, interrupted):
    both = two(*TRAIN[:-1], 10**6, "--save-every", "0", "--out", tmp_path)
    end = time.monotonic() + 120
    while files.version(tmp_path) is None and time.monotonic() < end:
        time.sleep(0.2)
    both[interrupted].send_signal(signal.SIGINT)
    results = [ended(process) for process in both]
    assert results[interrupted][0] == 128 + signal.SIGINT
    assert results[1 - interrupted][0] in (0, 128 + signal.SIGINT)
    assert not any("Error" in errors for _, _, errors in results)  # they left together
    assert "saved     " in results[0][1]
    assert 1 <= len(files.load(tmp_path).progress.history) < 10**6
