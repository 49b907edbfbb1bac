"""Packages that only a part of fnn needs: the extras of its installation."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Imports inside the block need `fnn[extra]`; a missing package is reported in one line.

    Raises ModuleNotFoundError with the command that installs the extra.

    >>> with needs("data"):
    ...     import not_installed
    Traceback (most recent call last):
    ModuleNotFoundError: not_installed is missing: python -m pip install 'fnn[data]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        command = f"python -m pip install 'fnn[{extra}]'"
        raise ModuleNotFoundError(f"{package} is missing: {command}", name=package) from None
