"""The `fnn` command: train a network from the shell, and use it."""

from fnn.cli.commands import fnn as fnn
