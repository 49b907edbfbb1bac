"""`python -m fnn`, and the `fnn` command."""

import os
import sys


def main() -> None:
    """Run the command line, or say how to install click where it is missing.

    A file name that is not text in UTF-8 is printed as the bytes that it is.

    >>> from unittest import mock
    >>> with mock.patch("sys.argv", ["fnn", "--version"]):
    ...     main()
    Traceback (most recent call last):
    SystemExit: 0
    """
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
    """Open a standard stream that came closed, so that no file gets its number and its words.

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
