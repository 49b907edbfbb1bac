"""Packages that only a part of fnn needs: the extras of its installation."""

from collections.abc import Iterator
from contextlib import contextmanager

from fnn.errors import Error


class _MissingError(Error, ModuleNotFoundError):
    """A package that is not installed; the message says what installs it."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Imports inside the block need `fnn[extra]`; a missing package is reported in one line.

    Raises ModuleNotFoundError with the command that installs the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        command = f"python -m pip install 'fnn[{extra}]'"
        raise _MissingError(f"{package} is missing: {command}", name=package) from None
