"""Training: a step, an epoch and a run as pure functions, and the host's loop around them."""

from fnn.training.fitting import DivergedError as DivergedError, Progress as Progress, fit as fit
from fnn.training.steps import (
    make_epoch as make_epoch,
    make_step as make_step,
    make_train as make_train,
)
