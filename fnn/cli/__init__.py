"""The `fnn` command: train a network from the shell, and use it.

One file per command: describe, train, predict, evaluate, noise_scale, hardest, verify. Beside
them, what they share: group (the command group), options (parameter types), signals, runs,
metrics, report and plots.
"""

from fnn.cli.group import fnn as fnn
