"""Compile functions for GPUs and TPUs without having one: memory, kernels and modelled time.

`compile_for("TPU v5e:4x4", f, *args)` compiles f with the accelerator's own compiler and returns a
report: memory, kernels, loops, collectives, and XLA's modelled time. All of it is read from the
compiled program or modelled; nothing is measured.
"""

from fnn.targets.compiling import compile_for as compile_for, mesh as mesh, targets as targets
from fnn.targets.report import Report as Report
