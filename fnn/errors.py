"""The base class of fnn's own errors."""


class Error(Exception):
    """The base class of `fnn.DivergedError`, `fnn.data.DataError` and
    `fnn.checkpoint.CheckpointError`. Each also has a built-in base class, such as ValueError.

    The command prints these errors in one line, and reports all others as bugs of fnn.

    >>> import fnn
    >>> issubclass(fnn.data.DataError, fnn.Error), issubclass(fnn.data.DataError, ValueError)
    (True, True)
    """
