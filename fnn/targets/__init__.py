"""Functions compiled for GPUs and TPUs that need not be there: do they fit, and what would run.

`compile_for("TPU v5e:4x4", f, *args)` gives a report of the program that the accelerator's own
compiler makes of f: memory, kernels, loops, collectives, and XLA's modelled time. All of it is read
from the program or modelled; nothing is measured.
"""

from fnn.targets.compiling import compile_for as compile_for, mesh as mesh, targets as targets
from fnn.targets.report import Report as Report
