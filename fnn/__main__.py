"""`python -m fnn`, and the `fnn` command."""

import sys


def main() -> None:
    """Run the command line, or say how to install click where it is missing.

    >>> from unittest import mock
    >>> with mock.patch("sys.argv", ["fnn", "--version"]):
    ...     main()
    Traceback (most recent call last):
    SystemExit: 0
    """
    try:
        from fnn.cli import fnn
    except ModuleNotFoundError as error:
        sys.exit(f"Error: {error.name} is missing: python -m pip install 'fnn[cli]'")
    fnn()


if __name__ == "__main__":
    main()
