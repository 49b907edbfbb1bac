"""Training: a step, an epoch and a run as pure functions, and `fit`, the loop on the host."""

from fnn.training.fitting import DivergedError as DivergedError, Progress as Progress, fit as fit
from fnn.training.steps import (
    make_epoch as make_epoch,
    make_step as make_step,
    make_train as make_train,
)
