"""What the library raises by itself, as opposed to a fault of its own."""


class Error(Exception):
    """The base of the errors that fnn means to raise: `fnn.DivergedError`, `fnn.data.DataError`,
    `fnn.checkpoint.CheckpointError`. Each also has a built-in base, such as ValueError.

    The command prints these in one line, and reports all others as faults of fnn.

    >>> import fnn
    >>> issubclass(fnn.data.DataError, fnn.Error), issubclass(fnn.data.DataError, ValueError)
    (True, True)
    """
