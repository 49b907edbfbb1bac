"""`python -m fnn`, and the `fnn` command."""

import gc
import os
import sys


def main() -> None:
    """Run the command line, or say how to install click where it is missing.

    A file name that is not text in UTF-8 is printed as the bytes that it is.
    """
    gc.set_threshold(100_000)  # imports and traces make many objects, and little garbage
    try:
        _open_streams()
        try:
            from fnn.cli import fnn, signals
        except ModuleNotFoundError as error:
            sys.exit(f"Error: {error.name} is missing: python -m pip install 'fnn[cli]'")
        signals.end_at_once()
        fnn()
    except KeyboardInterrupt:
        print("Aborted!", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        sys.exit(f"Error: {error.strerror or error}")


def _open_streams() -> None:
    """Reopen closed standard streams, so that no data file receives descriptor 0 to 2.

    A closed standard output ends the command: what it is asked for would be lost.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        sys.exit("Error: standard output is closed")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="surrogateescape")


if __name__ == "__main__":
    main()
