"""A command on several devices and processes: the options that say which, and how they end.

Of several processes the first prints and writes. One that fails leaves at once, without waiting
for the others: they notice, say so in one line, and leave too.
"""

import atexit
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TextIO

import click
import jax

from fnn.cli import environment, options
from fnn.parallel import processes

LEFT = "another process of this run has ended, or can't be reached"
DEVICES_HELP = "Split each batch over this many devices of this machine: of a CPU, virtual ones."
COORDINATOR_HELP = """Where process 0 listens for the others. Under SLURM, Open MPI, Kubernetes and
on TPU pods this and the next two are found out."""
PROCESSES_HELP = "The number of processes, on all hosts."
OPTIONS = [
    click.Option(["--device"], help=options.DEVICE_HELP),
    click.Option(["--devices"], type=options.COUNT, help=DEVICES_HELP),
    click.Option(["--coordinator"], metavar="HOST:PORT", help=COORDINATOR_HELP),
    click.Option(["--processes"], type=options.COUNT, help=PROCESSES_HELP),
    click.Option(["--process"], type=options.Whole(min=0), help="Which of them this is, from 0."),
]


class Spread(click.Command):
    """A command that gets, as its context's obj, the mesh of the devices that it was given, None
    for a single device."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's parameters, and `OPTIONS`."""
        own = super().get_params(ctx)
        return [*own[:-1], *OPTIONS, *own[-1:]]

    def invoke(self, ctx: click.Context) -> Any:
        """Start the processes, and run the command with the mesh.

        Raises UsageError for options that contradict one another or the machine.
        """
        device, devices, *where = (ctx.params.pop(option.name) for option in OPTIONS)
        if None in where and where != [None] * 3:
            raise click.UsageError("--coordinator, --processes and --process go together")
        if None not in (*where, devices):
            raise click.UsageError("--devices counts those of one process only")
        if None not in (device, devices):
            raise click.UsageError("--device names one device, --devices their number")
        if devices is not None:
            with suppress(RuntimeError):  # where JAX has started already
                jax.config.update("jax_num_cpu_devices", devices)
        try:
            processes.start(*where)
        except (RuntimeError, ValueError) as error:
            raise click.ClickException(str(error).splitlines()[0]) from error
        environment.check_device()
        if (several := jax.process_count() > 1) and device is not None:
            raise click.UsageError("--device is for one process: several use all their devices")
        options.compute_on(ctx, OPTIONS[0], device)  # not before, because it starts JAX
        count = jax.device_count() if several else devices or 1
        if count > len(jax.devices()):
            raise click.UsageError(f"--devices {devices}: there are {len(jax.devices())}")
        with _one_of_several(processes.is_first()) if several else nullcontext():
            if count > 1:
                ctx.obj = jax.make_mesh((count,), ("data",), devices=jax.devices()[:count])
                click.echo(f"devices   {count}" + f" in {jax.process_count()} processes" * several)
            return super().invoke(ctx)


@contextmanager
def _one_of_several(is_first: bool) -> Iterator[None]:
    """Silence every process but the first, and the libraries beneath it.

    Where those give up, or where the block fails, the process leaves at once."""
    sys.stdout = _copy(sys.stdout) if is_first else open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = _copy(sys.stderr)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    failed = False

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def given_up(number: int) -> None:
        if failed:  # and about to say why
            time.sleep(5)
        os.write(sys.stderr.fileno(), f"Error: {LEFT}\n".encode())
        os._exit(1)

    # The coordination service aborts the process, in a thread of its own.
    ctypes.CDLL(None).signal(signal.SIGABRT, given_up)
    _KEPT.append(given_up)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        failed = True
        atexit.register(_leave, getattr(error, "exit_code", 1))
        if "Gloo" in str(error) or "coordination" in str(error):
            raise click.ClickException(LEFT) from error
        raise


_KEPT: list[Any] = []
"""Functions that C code may call for as long as the process lives."""


def _copy(stream: TextIO) -> TextIO:
    """The same stream with a file number of its own."""
    return open(os.dup(stream.fileno()), "w", 1, stream.encoding, stream.errors)


def _leave(code: int) -> None:
    """End the process before JAX would wait for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
