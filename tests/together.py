"""Python programs that run as the processes of one JAX program, over loopback."""

import socket
import subprocess
import sys

BEGIN = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize("127.0.0.1:{port}", {count}, {number}, heartbeat_timeout_seconds=10)
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def started(program, count, *arguments):
    """The processes, under way, each with one CPU device."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-c", BEGIN.format(port=port, count=count, number=i) + program]
            + [str(argument) for argument in arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def run(program, count, *arguments, timeout=120):
    """What each process printed; every one of them must end well."""
    processes = started(program, count, *arguments)
    try:
        ended = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, ended, strict=True):
        assert process.returncode == 0, errors
    return [without_gloo(output) for output, _ in ended]


def without_gloo(output):
    """What a process printed itself: Gloo writes to the standard output when it connects."""
    return "".join(line for line in output.splitlines(True) if not line.startswith("[Gloo]"))
