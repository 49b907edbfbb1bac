"""Commands in processes forked from this one, in which what they import is imported already.

Such a process starts in a tenth of a second, so that many can be killed. JAX must not have been
used before: its threads do not survive a fork.
"""

import os
import signal
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import jax

import fnn.cli.train
from fnn.cli import fnn


def compiled_once(folder: Path) -> None:
    """Let the processes find in the folder what one of them has compiled.

    What matters here is what a killed process leaves, not how long it compiles.
    """
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def started(work: Callable[[], Any], log: Path) -> int:
    """The process that does this work; what it prints goes to the log."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.setsid()
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def command(*words: Any) -> Callable[[], Any]:
    """A command line as work; `fnn train` without its check of the gradient, which writes nothing
    and takes as long as the rest."""

    def work() -> None:
        module = import_module("fnn.cli.train")
        module._check_gradient = lambda run, examples: None
        fnn.main(args=[str(word) for word in words], prog_name="fnn")

    return work


def ended(child: int) -> int:
    """The exit code of the process when it has ended, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(child: int) -> int:
    """The exit code of the process, which is killed now if it has not ended."""
    os.kill(child, signal.SIGKILL)
    return ended(child)


def done(work: Callable[[], Any], log: Path) -> None:
    """Do this work in a process of its own; AssertionError where it fails."""
    code = ended(started(work, log))
    assert code == 0, f"exit code {code}: {log.read_text()[-2000:]}"
