"""The `fnn` command: train a network from the shell, and use it.

One file per command: describe, train, plan, predict, evaluate, explain, export, verify. Beside
them, what they share: group (the command group), options (parameter types), environment (JAX's
settings), spread (several devices and processes), signals.
"""

from fnn.cli.group import fnn as fnn
