"""`python -m fnn`, and the `fnn` command."""

import sys


def main() -> None:
    """Run the command line, or say what to install where its libraries are missing."""
    try:
        from fnn.cli import fnn
    except ModuleNotFoundError as error:
        sys.exit(f"fnn: the command needs {error.name}: python -m pip install 'fnn[cli]'")
    fnn()


if __name__ == "__main__":
    main()
